"""The training loop, read from top to bottom; on a CPU, on a GPU, on several.

One process, on the machine's GPU or its CPU:

    transvert train runs/demo/01_drr_synthesis/store --out runs/mine

Four GPUs of one machine, a process each (or four processes with `--device cpu`):

    torchrun --standalone --nproc-per-node 4 -m transvert train STORE --out runs/mine

Two machines of eight GPUs that share STORE and runs/mine, this on both; HOST is one of them, which the other reaches at
that port, and the id is no other job's:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 --rdzv-id mine \
        -m transvert train STORE --out runs/mine

When a process dies, all end; with `--max-restarts 3` torchrun starts them again, from the last epoch. Set
TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for that, or torch may look for processes where the dead ones were. (`fabric run`
is torchrun underneath, but starts no module, and nothing that calls `launch`, as a single process must.)

Each process makes its own draws of `batch` samples, and a step takes the mean of all processes' gradients: four
processes train on four times the samples. The draws are numbered, and seed and number decide a draw on any device. A
step takes the same draws from N processes that accumulate M as from one that accumulates N x M, each normalised by
itself, so that a run may go on with another N and M of the same product. Their weights differ by the rounding of sums.

A run can be stopped and killed at any moment, and goes on from its last epoch. On a CPU it ends with the weights of the
unbroken run to the bit, as equal seeds do; a GPU's sums have no fixed order. Over processes weights and optimisers
are always equal to the bit, and running statistics from each epoch's end, where they are averaged.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from transvert import levels, runs
from transvert.data import store
from transvert.data.samples import Samples, StoredSamples
from transvert.data.splits import iterate_folds, load_samples, stream_samples, train_and_watched
from transvert.io import InputError
from transvert.model import checkpoint, device, muon, networks
from transvert.model.augment import AugmentConfig, Sampler
from transvert.model.device import precision
from transvert.model.evaluate import COLUMNS, score_rows
from transvert.model.losses import loss_and_dice
from transvert.model.networks import load_network
from transvert.model.predict import mean_dice, stack
from transvert.progress import progress_bar


class Diverged(InputError, FloatingPointError):
    """A loss that is no number any more."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. The defaults are this companion's choice; the paper's are not public.

    Attributes:
        network: a key of `network.NETWORKS`, built with `options`.
        steps: optimiser steps; an epoch is `epoch_steps` of them.
        batch: samples a draw.
        accumulate: draws a step and process, whose gradients are averaged; 2 on one process train as 1 on two do.
        optimiser: a key of `muon.OPTIMISERS`.
        learning_rate: its peak, after `warmup` steps; a cosine takes it to a hundredth.
        average: of the moving average of the weights, which is what is validated and kept.
        loss: a key of `losses.LOSSES`.
        projection_weight: of `losses.projection_loss`; 0 for none.
        critic_weight: of the least-squares adversarial term; 0 trains without a critic.
        one_view: share of the samples that lose a view, so that one alone works too; see `network.drop_views`.
        patience: epochs without a better Dice of the validation samples after which a training ends, with the weights
            of the best epoch; 0 trains all steps and keeps the last. Never let it look at what is tested on.
        precision: "32", "bf16", or "auto" for bf16 where the processor computes in it.
        device: "auto", "cpu" or "cuda".
        strength: of the augmentation.
        seed: of the weights and of every draw.
    """

    network: str = "transvert_hull"
    options: dict[str, Any] = field(default_factory=dict)
    steps: int = 600
    epoch_steps: int = 50
    batch: int = 6
    accumulate: int = 1
    optimiser: str = "muon"
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    warmup: int = 50
    average: float = 0.995
    loss: str = "dice_ce"
    projection_weight: float = 0.0
    critic_weight: float = 0.0
    one_view: float = 0.0
    patience: int = 0
    precision: str = "auto"
    device: str = "auto"
    strength: AugmentConfig = field(default_factory=AugmentConfig)
    seed: int = 0


def train_network(
    subjects: Sequence[Samples | StoredSamples],
    validation: list[Samples],
    recipe: Recipe,
    folder: str | Path,
    *,
    resume: bool = True,
    on_epoch: Callable[[pd.DataFrame], None] | None = None,
    stop: Callable[[], bool] | None = None,
    progress: bool = True,
    half: bool = False,
) -> pd.DataFrame:
    """Trains a network and leaves `checkpoint.pt`, `curve.csv` and `weights.safetensors` in `folder`.

    Args:
        subjects: what is learned from; `StoredSamples` stay in their store until a step needs them.
        validation: what the curve's Dice is measured on, in memory; never learned from.
        recipe: how.
        folder: where; a checkpoint found there is continued if `resume`.
        on_epoch: called with the curve so far after each epoch, by the first process alone.
        stop: asked after each step where there is one process; True ends the epoch there, and with it the training. Its
            checkpoint goes on from that step.
        progress: whether to draw a bar an epoch.
        half: keep the weights as float16, half the size.

    Returns:
        The curve: one row an epoch with step, loss, dice (training), dice_validation, learning_rate and seconds.

    Raises:
        InputError: nothing to train on, a checkpoint of another recipe or data, or no room to write.
        Diverged: a loss or its gradient is not finite; the draw is saved to `bad_batch.pt` first.
    """
    if not sum(map(len, subjects)):
        raise InputError("There is no sample to train on.")
    if recipe.patience and not sum(map(len, validation)):
        raise InputError("Nobody is there to validate on, so patience has nothing to look at; set it to 0.")
    folder = Path(folder)
    fabric = device.launch(recipe.device, recipe.precision)
    torch.manual_seed(recipe.seed)
    network = networks.build_network(recipe.network, **recipe.options)
    kept = copy.deepcopy(network).requires_grad_(False)
    optimiser = muon.optimiser(
        recipe.optimiser,
        network.parameters(),
        recipe.learning_rate,
        recipe.weight_decay,
        torch.bfloat16 if precision(recipe.precision) == "bf16-mixed" else torch.float32,
    )
    critic = critic_optimiser = None
    network, optimiser = fabric.setup(network, optimiser)
    kept = kept.to(fabric.device)
    if recipe.critic_weight:
        critic = networks.Discriminator()
        critic_optimiser = torch.optim.Adam(critic.parameters(), 2e-4, betas=(0.5, 0.999))
        critic, critic_optimiser = fabric.setup(critic, critic_optimiser)
    sampler = Sampler(subjects, recipe.strength, recipe.seed, fabric.device, stride=fabric.world_size)
    inputs = stack(validation)
    draws = recipe.accumulate * fabric.world_size
    identity = {
        # Where the draws of a step are made, and how many of them together, changes nothing.
        "recipe": {name: value for name, value in asdict(recipe).items() if name not in ("accumulate", "device")},
        "subjects": [s.subject for s in subjects],
        "samples": sum(map(len, subjects)),
        "draws_a_step": draws,
    }
    state = {"network": network, "kept": kept, "optimiser": optimiser}
    best = kept
    if recipe.patience:
        best = state["best"] = copy.deepcopy(kept)
    if critic is not None:
        state |= {"critic": critic, "critic_optimiser": critic_optimiser}
    start, curve = checkpoint.load_checkpoint(fabric, folder, state, identity, resume)
    layers = device.norms(network)

    spent = curve[-1]["seconds"] if curve else 0.0
    began = time.perf_counter()
    first, stopped = start, False
    while first < recipe.steps and not stopped and not _has_settled(curve, recipe.patience):
        # An epoch that was stopped is completed first, so that the others end where they would have.
        epoch = range(first, min(first - first % recipe.epoch_steps + recipe.epoch_steps, recipe.steps))
        what = f"epoch {first // recipe.epoch_steps + 1} of {math.ceil(recipe.steps / recipe.epoch_steps)}"
        rows = []
        network.train()
        for step in progress_bar(epoch, what, quiet=not (progress and fabric.is_global_zero)):
            for group in optimiser.param_groups:
                group["lr"] = _learning_rate(step, recipe)
            pairs = []
            for turn in range(recipe.accumulate):
                number = (step * recipe.accumulate + turn) * fabric.world_size + fabric.global_rank
                images, targets = _draw(sampler, number, recipe)
                device.pace_statistics(layers, turn, recipe.accumulate)
                more = turn + 1 < recipe.accumulate
                with fabric.no_backward_sync(network, enabled=more):
                    logits = network(images)
                    loss, overlap = loss_and_dice(logits.float(), targets, recipe.loss, recipe.projection_weight)
                    if critic is not None:
                        term = _criticise(fabric, critic, logits, targets, recipe.accumulate, more)
                        loss = loss + recipe.critic_weight * term
                    fabric.backward(loss / recipe.accumulate)
                pairs.append((loss.detach(), overlap))
            norm = _move(fabric, network, optimiser, 1.0)
            if critic is not None:
                norm = norm + _move(fabric, critic, critic_optimiser, math.inf)
            rows += [torch.stack([*pair, norm]) for pair in pairs]
            _average(kept, network.module, step, recipe.average)
            if stop is not None and fabric.world_size == 1 and stop():
                stopped = True
                break
        # Asked once an epoch: a GPU that must tell of each step can't work ahead.
        scores = _gather(fabric, rows)
        bad = _first_bad(scores, draws)
        if bad is not None:
            _end(fabric, sampler, recipe, folder, first * draws + bad, draws)
        device.average_statistics(fabric, [*layers, *device.norms(kept)])
        curve.append(
            {
                "step": step + 1,
                "loss": float(np.mean(scores[:, 0])),
                "dice": float(np.mean(scores[:, 1])),
                "dice_validation": mean_dice(kept, inputs, fabric),
                "learning_rate": _learning_rate(step, recipe),
                "seconds": spent + time.perf_counter() - began,
            }
        )
        if recipe.patience and _epochs_since_best(curve) == 0:
            best.load_state_dict(kept.state_dict())
        if fabric.is_global_zero:
            checkpoint.save_checkpoint(folder, state, step + 1, curve, identity)
            if on_epoch is not None:
                on_epoch(pd.DataFrame(curve))
        first = step + 1
    if fabric.is_global_zero:
        card = {
            "subjects": [s.subject for s in subjects],
            "levels": [levels.name(n) for n in levels.in_order({int(n) for s in subjects for n in s.levels})],
            "samples": sum(map(len, subjects)),
            "recipe": asdict(recipe),
            "curve": [{key: round(value, 6) for key, value in row.items() if not math.isnan(value)} for row in curve],
        }
        with checkpoint.writing(folder / "weights.safetensors"):
            networks.save_weights(
                folder / "weights.safetensors", best, recipe.network, recipe.options, half=half, **card
            )
    fabric.barrier()
    return pd.DataFrame(curve)


def _learning_rate(step: int, recipe: Recipe) -> float:
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    part = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * part)) / 2)


def _draw(sampler: Sampler, number: int, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """A draw by its number, which decides all of it, and the dropout of the network that sees it next."""
    images, targets = sampler.draw(number, recipe.batch)
    torch.manual_seed(int(np.random.default_rng([recipe.seed, 2, number]).integers(2**62)))
    if recipe.one_view:
        images = networks.drop_views(images, recipe.one_view, torch.default_generator)
    return images, targets


def _criticise(fabric: Any, critic: Any, logits: Tensor, targets: Tensor, draws: int, more: bool) -> Tensor:
    """Adds to the critic's gradient what one of a step's draws teaches it; the network's adversarial loss comes back.

    Both are the critic's of before its step, which it makes together with the network.
    """
    made = logits.float().sigmoid()
    with fabric.no_backward_sync(critic, enabled=more):
        true, false = critic(torch.cat([targets, made.detach()])).chunk(2)
        fabric.backward((((true - 1) ** 2).mean() + (false**2).mean()) / (2 * draws))
    weights = {name: weight.detach() for name, weight in critic.module.named_parameters()}
    with fabric.autocast():
        score = torch.func.functional_call(critic.module, weights, made)
    return ((score.float() - 1) ** 2).mean() / 2


def _move(fabric: Any, network: nn.Module, optimiser: Any, limit: float) -> Tensor:
    """A step along the gradient, no longer than `limit`; its norm, which all processes share, comes back."""
    norm = fabric.clip_gradients(network, optimiser, max_norm=limit, error_if_nonfinite=False)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm


def _gather(fabric: Any, rows: list[Tensor]) -> np.ndarray:
    """(draws, 3) float64: loss, Dice and norm of the step's gradient for all processes' draws, ordered by number."""
    found = torch.zeros(len(rows), fabric.world_size, 3, device=fabric.device)
    found[:, fabric.global_rank] = torch.stack(rows)
    return fabric.all_reduce(found, reduce_op="sum").reshape(-1, 3).double().cpu().numpy()


def _first_bad(scores: np.ndarray, draws: int) -> int | None:
    """Which draw's loss is not finite first, or whose step's gradient; None where all are."""
    bad = ~np.isfinite(scores)
    if not bad.any():
        return None
    # What is not finite in one draw makes its step's gradient so, and with it a row of every draw of the step.
    first = int(bad.any(1).argmax()) // draws * draws
    return first + int(bad[first : first + draws, 0].argmax())


def _end(fabric: Any, sampler: Sampler, recipe: Recipe, folder: Path, number: int, draws: int) -> NoReturn:
    """Ends a training on all processes; the draw to blame is made again and saved."""
    if fabric.is_global_zero:
        images, targets = _draw(sampler, number, recipe)
        content = {"images": images, "targets": targets, "step": number // draws, "draw": number}
        checkpoint.write_tensors(folder / "bad_batch.pt", content)
    fabric.barrier()
    raise Diverged(
        f"The loss or its gradient is not finite at step {number // draws}; look at its draw in "
        f"{folder / 'bad_batch.pt'}, or train with a lower learning rate."
    )


@torch.no_grad()
def _average(kept: nn.Module, network: nn.Module, step: int, decay: float) -> None:
    """Moves the kept weights towards the trained ones; the first steps count more, so that the start is forgotten."""
    decay = min(decay, (1 + step) / (10 + step))
    for ours, theirs in zip(kept.state_dict().values(), network.state_dict().values(), strict=True):
        if ours.is_floating_point():
            ours.lerp_(theirs, 1 - decay)
        else:
            ours.copy_(theirs)


def _epochs_since_best(curve: list[dict[str, float]]) -> int:
    scores = [-np.inf if np.isnan(row["dice_validation"]) else row["dice_validation"] for row in curve]
    return len(scores) - 1 - int(np.argmax(scores))


def _has_settled(curve: list[dict[str, float]], patience: int) -> bool:
    return bool(patience and curve) and _epochs_since_best(curve) >= patience


def train_folds(
    place: str | Path,
    name: str,
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = True,
    half: bool = False,
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Trains on a store, once a fold of a split, and scores what the split holds out with its subjects.

    Args:
        place: the store; what is learned from stays there until it is drawn.
        name: of the split, as in `folds`.
        recipe: of every training.
        folder: for `training.train`'s files, in a folder of the fold's name where there are several; for `metrics.csv`.
        resume: as in `training.train`; a fold that is done is not trained again.
        half: as in `training.train`.
        say: hears of each epoch.

    Returns:
        The metrics of all folds, as `score` gives them; empty where nobody is held out.
    """
    tables = []
    for fold, rows in iterate_folds(store.read_index(place), name):
        own = folder / fold

        def report(curve: pd.DataFrame, who: str = f"{fold}: " if fold else "") -> None:
            last = curve.iloc[-1]
            figures = f"loss {last.loss:.3f}, Dice {last.dice:.3f}, held out {last.dice_validation:.3f}"
            say(f"{who}step {last.step:.0f}: {figures}, {last.seconds:.0f} s")

        learned, watched = train_and_watched(rows, recipe.patience)
        train_network(
            stream_samples(place, learned),
            load_samples(place, watched),
            recipe,
            own,
            resume=resume,
            on_epoch=report,
            half=half,
        )
        if int(os.environ.get("RANK", "0")):
            continue  # One of several processes scores.
        network, _ = load_network(own / "weights.safetensors")
        tables.append(score_rows(place, rows[rows["split"] == "held_out_subject"], network))
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))
    if len(table):
        runs.write_table(folder / "metrics.csv", table)
    return table
