"""Training, read from top to bottom: on a CPU, on a GPU, or in several processes.

    transvert train STORE --out runs/mine

On the four GPUs of one machine, one process each (several machines: docs/many-cts-and-gpus.md):

    torchrun --standalone --nproc-per-node 4 -m transvert.cli train STORE --out runs/mine

Each process draws its own batches, and a step uses the mean gradient of all. Seed and number decide a batch on any device:
N processes that accumulate M batches draw the same as one that accumulates N x M.

A training may be interrupted at any time and resumes from its last epoch; on a CPU it ends with the weights of an
uninterrupted one to the bit. If one process dies, all end: run the command again.
"""

from __future__ import annotations

import atexit
import contextlib
import inspect
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pandas as pd
import pydantic
import torch
from safetensors import SafetensorError
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from transvert import levels, runs
from transvert.data import store
from transvert.data.samples import Samples, StoredSamples
from transvert.data.splits import iterate_folds, load_samples, stream_samples
from transvert.io import InputError, atomic_path
from transvert.model import networks
from transvert.model.augment import AugmentConfig, Sampler, drop_views
from transvert.model.evaluate import COLUMNS, score_store
from transvert.model.muon import build_optimiser
from transvert.model.predict import predict
from transvert.progress import progress_bar

EMA_DECAY = 0.995
"""Decay of the moving average of the weights, which is what is validated and saved."""
LOSSES = ("dice_ce", "dice")
"""Soft Dice plus cross-entropy; soft Dice alone, which the public port is trained with."""
_FORMAT = "transvert-checkpoint/2"
Curve = list[dict[str, float]]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. The defaults are this companion's choice; the paper's are not public."""

    network: str = "transvert_hull"  #: A key of `networks.NETWORKS`, built with `options`.
    options: dict[str, Any] = field(default_factory=dict)
    steps: int = 600  #: Optimiser steps.
    epoch_steps: int = 50  #: Steps between two checkpoints, each with a point of the curve.
    batch: int = 6  #: Samples per batch.
    accumulate: int = 1  #: Gradient accumulation, batches per step and process (2 on one process match 1 on two).
    optimiser: str = "muon"  #: One of `muon.OPTIMISERS`.
    learning_rate: float = 4e-3  #: Its maximum, see `schedule_learning_rate`; 0.002 is good for adamw.
    weight_decay: float = 0.02  #: Decoupled, as AdamW's.
    loss: str = "dice_ce"  #: One of `LOSSES`.
    adversarial_weight: float = 0.0  #: Of the least-squares adversarial term; 0 trains without a discriminator.
    view_dropout: float = 0.0  #: Share of the samples that lose a view, so that the network works with one view.
    precision: str = "auto"  #: "32", "bf16", or "auto" for bf16 where the processor is fast with it.
    device: str = "auto"  #: "auto", "cpu" or "cuda".
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)
    start: str = ""  #: Weights file to begin with, "shipped" too; "" for random weights.
    seed: int = 0  #: Of the weights and of every batch.

    def __post_init__(self) -> None:
        """Checks the types, which a notebook's caller may get wrong; raises InputError."""
        for name, kind in get_type_hints(Recipe).items():
            value = getattr(self, name)
            try:
                pydantic.TypeAdapter(kind).validate_python(value, strict=True)
            except pydantic.ValidationError:
                wanted = getattr(kind, "__name__", kind)
                raise InputError(f"The recipe's {name} must be of type {wanted}, which {value!r} is not.") from None


def train_network(
    subjects: Sequence[Samples | StoredSamples],
    validation: list[Samples],
    recipe: Recipe,
    folder: str | Path,
    *,
    resume: bool = True,
    on_epoch: Callable[[pd.DataFrame], None] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Trains a network and writes `checkpoint.pt` and `curve.csv` after each epoch, `weights.safetensors` at the end.

    Args:
        subjects: the training data; `StoredSamples` stay in their store until a step needs them.
        validation: the data of the validation Dice, never trained on and never the test data.
        recipe: how to train.
        folder: where to write.
        resume: whether to continue a checkpoint found in the folder.
        on_epoch: called by the first process with the curve so far, after each epoch.
        progress: whether to show a progress bar per epoch.

    Returns:
        The curve: one row per epoch with step, loss, dice (training), dice_validation, learning_rate and seconds.

    Raises:
        InputError: nothing to train on, another recipe's checkpoint, no room to write, or a loss that is not finite.
    """
    if not sum(map(len, subjects)):
        raise InputError("There is no sample to train on.")
    folder = Path(folder)
    device, bf16, rank, processes = start_processes(recipe.device, recipe.precision)
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=bf16)

    torch.manual_seed(recipe.seed)
    network = networks.build_network(recipe.network, **recipe.options).to(device)
    if recipe.start:
        networks.start_from(network, recipe.start)
    optimiser = build_optimiser(recipe.optimiser, network.parameters(), recipe.learning_rate, recipe.weight_decay)
    ema_model = AveragedModel(network, avg_fn=average_weights, use_buffers=True)
    ema_model.n_averaged += 1  # The untrained weights are the first ones averaged.
    model = distribute(network, device)
    state: dict[str, Any] = {"network": network, "optimiser": optimiser, "ema_model": ema_model}
    discriminator = None
    if recipe.adversarial_weight:
        state["discriminator"] = networks.Discriminator().to(device)
        discriminator = distribute(state["discriminator"], device)
        discriminator_optimiser = torch.optim.Adam(discriminator.parameters(), 2e-4, betas=(0.5, 0.999))
        state["discriminator_optimiser"] = discriminator_optimiser

    # All that the weights depend on.
    data: dict[str, Any] = {"subjects": [s.subject for s in subjects], "samples": sum(map(len, subjects))}
    identity = asdict(recipe) | data | {"batches_per_step": recipe.accumulate * processes}
    del identity["accumulate"], identity["device"]
    start, curve = load_checkpoint(folder, state, identity, resume)

    sampler = Sampler(subjects, recipe.augmentation, recipe.seed, device, stride=processes)
    momenta = {layer: layer.momentum or 0.0 for layer in _batch_norms(network)}
    spent, began = curve[-1]["seconds"] if curve else 0.0, time.perf_counter()
    while start < recipe.steps:
        end = min(start + recipe.epoch_steps, recipe.steps)
        title = f"epoch {start // recipe.epoch_steps + 1} of {math.ceil(recipe.steps / recipe.epoch_steps)}"
        scores = []
        model.train()
        for step in progress_bar(range(start, end), title, quiet=not progress or rank > 0):
            for group in optimiser.param_groups:
                group["lr"] = schedule_learning_rate(step, recipe)
            for turn in range(recipe.accumulate):
                number = (step * recipe.accumulate + turn) * processes + rank
                images, targets = sampler.draw(number, recipe.batch)
                # The number also decides view dropout and the network's own dropout.
                torch.manual_seed(int(np.random.default_rng([recipe.seed, 2, number]).integers(2**62)))
                if recipe.view_dropout:
                    images = drop_views(images, recipe.view_dropout, torch.default_generator)
                _pace_statistics(momenta, turn, recipe.accumulate)
                with autocast():
                    logits = model(images).float()
                loss, dice = segmentation_loss(logits, targets, recipe.loss)
                if discriminator is not None:
                    with autocast():
                        discriminator_loss, adversarial_loss = adversarial_losses(discriminator, logits, targets)
                    (discriminator_loss / recipe.accumulate).backward()
                    loss = loss + recipe.adversarial_weight * adversarial_loss
                (loss / recipe.accumulate).backward()
                scores.append(torch.stack([loss.detach(), dice]))
            norms = [_step(optimiser, 1.0)]
            if discriminator is not None:
                norms.append(_step(discriminator_optimiser, math.inf))
            scores[-1] = scores[-1] + 0 * sum(norms)  # NaN if a gradient is not finite.
            ema_model.update_parameters(network)
        # Read once per epoch, so that a GPU works ahead.
        mean_loss, mean_dice = _mean_scores(scores, start, recipe)
        for layer in [*momenta, *_batch_norms(ema_model)]:
            average_processes(layer.running_mean)
            average_processes(layer.running_var)
        start = step + 1
        dice_validation = measure_dice(ema_model.module, validation, rank, processes)
        row = {"step": start, "loss": mean_loss, "dice": mean_dice, "dice_validation": dice_validation}
        row |= {"learning_rate": schedule_learning_rate(step, recipe), "seconds": spent + time.perf_counter() - began}
        curve.append(row)
        if rank == 0:
            save_checkpoint(folder, state, start, curve, identity)
            if on_epoch is not None:
                on_epoch(pd.DataFrame(curve))
    if rank == 0:
        shown = {int(level) for s in subjects for level in s.levels}
        card = data | {
            "levels": [levels.name(n) for n in levels.in_order(shown)],
            "recipe": runs.portable(asdict(recipe)),
        }
        card["curve"] = [{key: round(v, 6) for key, v in row.items() if not math.isnan(v)} for row in curve]
        path = folder / "weights.safetensors"
        with explain_write_errors(path):
            networks.save_weights(path, ema_model.module, recipe.network, recipe.options, **card)
    if processes > 1:
        distributed.barrier()
    return pd.DataFrame(curve)


def schedule_learning_rate(step: int, recipe: Recipe) -> float:
    """The learning rate of a step: a linear warm-up over at most 50 steps, then a cosine to a hundredth."""
    warmup = min(50, recipe.steps // 4 + 1)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    part = (step - warmup) / max(1, recipe.steps - warmup)
    return recipe.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * part)) / 2)


def segmentation_loss(logits: Tensor, targets: Tensor, kind: str = "dice_ce") -> tuple[Tensor, Tensor]:
    """The loss of a batch, with gradients, and its mean soft Dice, without.

    Args:
        logits: (B, 1, X, Y, Z) float32.
        targets: (B, 1, X, Y, Z) float32, 0 and 1.
        kind: one of `LOSSES`; another is an InputError.
    """
    if kind not in LOSSES:
        raise InputError(f"'{kind}' is not a loss; use {' or '.join(LOSSES)}.")
    probability = logits.sigmoid()
    overlap = (probability * targets).sum((1, 2, 3, 4))
    total = (probability + targets).sum((1, 2, 3, 4))
    dice = ((2 * overlap + 1) / (total + 1)).mean()
    loss = 1 - dice
    if kind == "dice_ce":
        loss = loss + functional.binary_cross_entropy_with_logits(logits, targets)
    return loss, dice.detach()


def adversarial_losses(discriminator: nn.Module, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The least-squares losses of a discriminator and of the network (Mao et al., 2017, arXiv 1611.04076).

    The discriminator, which may be distributed, learns to score real vertebrae as 1 and predictions as 0, the network to be
    scored as 1. The gradient of each loss reaches its own weights alone.
    """
    predicted = logits.sigmoid()
    real, fake = discriminator(torch.cat([targets, predicted.detach()])).float().chunk(2)
    module = getattr(discriminator, "module", discriminator)
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    score = torch.func.functional_call(module, weights, predicted).float()
    return (((real - 1) ** 2).mean() + (fake**2).mean()) / 2, ((score - 1) ** 2).mean() / 2


def _pace_statistics(momenta: dict[Any, float], turn: int, turns: int) -> None:
    """Moves running statistics once per step, towards the mean of its batches, as if each had its own process."""
    for layer, momentum in momenta.items():
        layer.momentum = momentum / (turns - (turns - 1 - turn) * momentum)


def average_weights(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
    """Moving average of a parameter or buffer for `AveragedModel`, shorter in the first steps to forget the start."""
    if not averaged.is_floating_point():
        return current
    count = torch.as_tensor(count).double()  # A tensor, so that nothing waits for a GPU.
    decay = (count / (count + 9)).clamp(max=EMA_DECAY)
    return torch.lerp(averaged, current, (1 - decay).to(averaged.dtype))


def measure_dice(network: nn.Module, validation: list[Samples], rank: int = 0, processes: int = 1) -> float:
    """The mean Dice at a threshold of 0.5, of which each process computes its share; NaN without samples."""
    count = sum(map(len, validation))
    if not count:
        return math.nan
    images = np.concatenate([s.images() for s in validation])[rank::processes]
    targets = np.concatenate([s.targets() for s in validation])[rank::processes]
    found = predict(network, images) > 0.5
    total = found.sum((1, 2, 3)) + targets.sum((1, 2, 3))
    dice = processes * np.sum(2 * (found & targets).sum((1, 2, 3)) / total)
    return float(average_processes(torch.tensor(dice, device=next(network.parameters()).device))) / count


def _step(optimiser: torch.optim.Optimizer, limit: float) -> Tensor:
    """Makes a step with the gradient clipped to a norm of `limit`; returns its norm before."""
    norm = nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], limit)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm


def _mean_scores(scores: list[Tensor], start: int, recipe: Recipe) -> tuple[float, float]:
    """The mean loss and Dice of an epoch's batches in all processes."""
    rows = average_processes(torch.stack(scores)).double().cpu().numpy()
    bad = ~np.isfinite(rows).all(1)
    if bad.any():
        step = start + int(bad.argmax()) // recipe.accumulate
        raise InputError(f"The loss or its gradient is not finite at step {step}; train with a lower learning rate.")
    return float(rows[:, 0].mean()), float(rows[:, 1].mean())


def _batch_norms(network: nn.Module) -> list[Any]:
    return [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d)]


def start_processes(device: str, precision: str) -> tuple[torch.device, bool, int, int]:
    """Joins torchrun's processes, if any; returns device, whether in bfloat16, own number and number of processes."""
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"'{device}' is not a device; use auto, cpu or cuda.")
    if precision not in ("auto", "32", "bf16"):
        raise InputError(f"'{precision}' is not a precision; use auto, 32 or bf16.")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("There is no CUDA GPU that PyTorch can use; train with device 'auto' or 'cpu'.")
    rank, local_rank = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
    processes, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    used = torch.device("cpu")
    if device != "cpu" and torch.cuda.is_available():
        if here > torch.cuda.device_count():
            raise InputError(f"{here} processes were started for {torch.cuda.device_count()} GPU; start one for each.")
        used = torch.device("cuda", local_rank)
        torch.cuda.set_device(used)
    if processes > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if used.type == "cuda" else "gloo")
        atexit.register(distributed.destroy_process_group)
    # A private test, which builds for other processors lack. AVX512-BF16 without AMX is slower than float32.
    fast = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    if used.type == "cuda":
        fast = torch.cuda.is_bf16_supported()
    return used, precision == "bf16" or (precision == "auto" and fast), rank, processes


def distribute(network: nn.Module, device: torch.device) -> nn.Module:
    """The network, with its gradients averaged over all processes in the backward pass."""
    if not distributed.is_initialized():
        return network
    # Running statistics are averaged once per epoch. PyTorch 2.13 has renamed the option.
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    option: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(network, [device] if device.type == "cuda" else None, **option)


def average_processes(values: Tensor) -> Tensor:
    """Replaces a tensor by its mean over all processes."""
    if distributed.is_initialized():
        distributed.all_reduce(values)
        values /= distributed.get_world_size()
    return values


def load_checkpoint(folder: Path, state: dict[str, Any], identity: dict[str, Any], resume: bool) -> tuple[int, Curve]:
    """Loads a checkpoint of equal `identity` into networks and optimisers by name; returns the steps done and the curve.

    What a killed training was writing is removed.
    """
    if os.environ.get("RANK", "0") == "0":
        for ending in (".pt", ".csv", ".safetensors"):
            for leftover in folder.glob(f".writing-*{ending}"):
                leftover.unlink(missing_ok=True)
    path, weights = folder / "checkpoint.pt", folder / "weights.safetensors"
    try:
        if weights.exists():
            networks.load_weights(weights)
    except InputError as error:
        raise InputError(f"Training would replace {weights}, so move it away: {error}") from None
    if not (resume and path.exists()):
        return 0, []
    over = "start over with resume off (--fresh)"
    try:
        # weights_only: tensors and plain values, never pickled code.
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if saved["format"] != _FORMAT:
            raise ValueError("another format")
        theirs = saved["identity"]
        other = [key for key in identity | theirs if identity.get(key) != theirs.get(key)]
        if not other:
            for name, part in state.items():
                part.load_state_dict(saved[name])
            return saved["step"], saved["curve"]
    except Exception as error:  # noqa: BLE001 a foreign file may raise anything
        raise InputError(
            f"{path} is not a checkpoint of this version of the package ({type(error).__name__}); move it away, or {over}."
        ) from None
    raise InputError(f"{path} was made with another {', '.join(other)}; use another run or folder, or {over}.")


def save_checkpoint(folder: Path, state: dict[str, Any], step: int, curve: Curve, identity: dict[str, Any]) -> None:
    """Writes `curve.csv` and `checkpoint.pt`, or leaves the former ones."""
    # The curve first: a training killed in between repeats its last epoch, and with it this row.
    path = folder / "curve.csv"
    with explain_write_errors(path), atomic_path(path) as temporary:
        pd.DataFrame(curve).to_csv(temporary, index=False)
    path = folder / "checkpoint.pt"
    content = {name: part.state_dict() for name, part in state.items()}
    content |= {"format": _FORMAT, "step": step, "curve": curve, "identity": identity}
    with explain_write_errors(path), atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


@contextlib.contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turns an error while `path` is written, such as a full disk, into one sentence."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # PyTorch raises its own error after the system's.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise InputError(
            f"{path} can't be written ({cause}); make room and train again: it resumes from the last checkpoint."
        ) from error


def train_folds(place: str | Path, name: str, recipe: Recipe, folder: Path, *, resume: bool = True) -> pd.DataFrame:
    """Trains on a store, once per fold of a split of `splits.iterate_folds`, and evaluates the held-out subjects.

    Writes the files of `train_network`, in a folder per fold if there are several, and `metrics.csv`. A finished fold is
    not trained again.

    Returns:
        The metrics of all folds, as `evaluate.score_store` returns them; empty if no subject is held out.
    """
    tables = []
    for fold, rows in iterate_folds(store.read_index(place), name):
        own = folder / fold

        def report(curve: pd.DataFrame, title: str = f"{fold}: " if fold else "") -> None:
            last = curve.iloc[-1]
            figures = f"loss {last.loss:.3f}, Dice {last.dice:.3f}, validation Dice {last.dice_validation:.3f}"
            print(f"{title}step {last.step:.0f}: {figures}, {last.seconds:.0f} s")

        learned = rows["split"] == "train"
        parts = stream_samples(place, rows[learned]), load_samples(place, rows[~learned])
        train_network(*parts, recipe, own, resume=resume, on_epoch=report)
        if os.environ.get("RANK", "0") == "0":
            network, _ = networks.load_network(own / "weights.safetensors")
            tables.append(score_store(place, rows[rows["split"] == "held_out_subject"], network))
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))
    if len(table):
        runs.write_table(folder / "metrics.csv", table)
    return table
