"""The training loop, read from top to bottom; on a CPU, on a GPU, on several.

One process, whatever the machine has:

    transvert train runs/demo/01_drr_synthesis/store --out runs/mine

Four GPUs of one machine, or two machines of eight (the batch is a process's own, so the global one grows with them):

    torchrun --standalone --nproc-per-node 4 -m transvert train STORE --out runs/mine
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m transvert train ...

A run can be stopped at any moment. Every batch follows from the seed and the step alone, so a resumed run draws what
the unbroken one would have drawn.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from transvert import muon
from transvert import network as networks
from transvert import samples as sample_store
from transvert.augment import Sampler, Strength
from transvert.device import accelerator, precision
from transvert.files import InputError, atomic_path
from transvert.losses import loss_and_dice
from transvert.progress import bar
from transvert.samples import Samples, StoredSamples


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. The defaults are this companion's choice; the paper's are not public.

    Attributes:
        network: a key of `network.NETWORKS`, built with `options`.
        steps: optimiser steps; an epoch is `epoch_steps` of them.
        batch: samples a step and process.
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
    strength: Strength = field(default_factory=Strength)
    seed: int = 0


def train(
    subjects: Sequence[Samples | StoredSamples],
    validation: list[Samples],
    recipe: Recipe,
    folder: str | Path,
    *,
    resume: bool = True,
    on_epoch: Callable[[pd.DataFrame], None] | None = None,
    progress: bool = True,
    stop_after: int | None = None,
    half: bool = False,
) -> pd.DataFrame:
    """Trains a network and leaves `checkpoint.pt`, `curve.csv` and `weights.safetensors` in `folder`.

    Args:
        subjects: what is learned from; `StoredSamples` stay in their store until a step needs them.
        validation: what the curve's Dice is measured on, in memory; never learned from.
        recipe: how.
        folder: where; a checkpoint found there is continued if `resume`.
        on_epoch: called with the curve so far after each epoch.
        progress: whether to draw a bar an epoch.
        stop_after: stop after this step, as if interrupted.
        half: keep the weights as float16, half the size.

    Returns:
        The curve: one row an epoch with step, loss, dice (training), dice_validation, learning_rate and seconds.

    Raises:
        InputError: nothing to train on, or a checkpoint of another recipe or data.
        FloatingPointError: the loss is not finite; the batch is saved to `bad_batch.pt` first.
    """
    from lightning.fabric import Fabric

    if not sum(map(len, subjects)):
        raise InputError("There is no sample to train on.")
    if recipe.patience and not sum(map(len, validation)):
        raise InputError("Nobody is there to validate on, so patience has nothing to look at; set it to 0.")
    folder = Path(folder)
    fabric = Fabric(
        accelerator=accelerator(recipe.device),
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")),
        precision=precision(recipe.precision),
    )
    fabric.launch()
    torch.manual_seed(recipe.seed)
    network = networks.build(recipe.network, **recipe.options)
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
        critic = networks.Critic()
        critic_optimiser = torch.optim.Adam(critic.parameters(), 2e-4, betas=(0.5, 0.999))
        critic, critic_optimiser = fabric.setup(critic, critic_optimiser)
    sampler = Sampler(subjects, recipe.strength, recipe.seed, fabric.device, stride=fabric.world_size)
    inputs = _validation_inputs(validation)
    identity = {
        "recipe": asdict(recipe),
        "subjects": [s.subject for s in subjects],
        "samples": sum(map(len, subjects)),
        "processes": fabric.world_size,
    }
    state = {"network": network, "kept": kept, "optimiser": optimiser}
    best = kept
    if recipe.patience:
        best = state["best"] = copy.deepcopy(kept)
    if critic is not None:
        state |= {"critic": critic, "critic_optimiser": critic_optimiser}
    start = 0
    curve: list[dict[str, float]] = []
    if resume and (folder / "checkpoint.pt").exists():
        start, curve = _resume(folder / "checkpoint.pt", state, identity)

    spent = curve[-1]["seconds"] if curve else 0.0
    began = time.perf_counter()
    end = recipe.steps if stop_after is None else min(stop_after, recipe.steps)
    for first in range(start, end, recipe.epoch_steps):
        if _has_settled(curve, recipe.patience):
            break
        epoch = range(first, min(first + recipe.epoch_steps, end))
        what = f"epoch {first // recipe.epoch_steps + 1} of {math.ceil(recipe.steps / recipe.epoch_steps)}"
        losses, overlaps = [], []
        network.train()
        for step in bar(epoch, what, quiet=not (progress and fabric.is_global_zero)):
            drawn = step * fabric.world_size + fabric.global_rank
            images, targets = sampler.draw(drawn, recipe.batch)
            if recipe.one_view:
                seed = int(np.random.default_rng([recipe.seed, 2, drawn]).integers(2**62))
                images = networks.drop_views(images, recipe.one_view, torch.Generator().manual_seed(seed))
            for group in optimiser.param_groups:
                group["lr"] = _learning_rate(step, recipe)
            logits = network(images)
            loss, overlap = loss_and_dice(logits.float(), targets, recipe.loss, recipe.projection_weight)
            if critic is not None:
                loss = loss + recipe.critic_weight * _criticise(fabric, critic, critic_optimiser, logits, targets)
            if not torch.isfinite(loss):
                _save({"images": images, "targets": targets, "step": step}, folder / "bad_batch.pt")
                raise FloatingPointError(f"The loss is {loss.item()} at step {step}; its batch is in bad_batch.pt.")
            optimiser.zero_grad(set_to_none=True)
            fabric.backward(loss)
            fabric.clip_gradients(network, optimiser, max_norm=1.0)
            optimiser.step()
            _average(kept, network.module if hasattr(network, "module") else network, step, recipe.average)
            losses.append(loss.item())
            overlaps.append(overlap.item())
        curve.append(
            {
                "step": epoch[-1] + 1,
                "loss": float(np.mean(losses)),
                "dice": float(np.mean(overlaps)),
                "dice_validation": _validate(kept, inputs, fabric.device),
                "learning_rate": _learning_rate(epoch[-1], recipe),
                "seconds": spent + time.perf_counter() - began,
            }
        )
        if recipe.patience and _epochs_since_best(curve) == 0:
            best.load_state_dict(kept.state_dict())
        if fabric.is_global_zero:
            _save(
                _snapshot(state) | {"step": epoch[-1] + 1, "curve": curve, "identity": identity},
                folder / "checkpoint.pt",
            )
            with atomic_path(folder / "curve.csv") as temporary:
                pd.DataFrame(curve).to_csv(temporary, index=False)
        if on_epoch is not None:
            on_epoch(pd.DataFrame(curve))
    if fabric.is_global_zero:
        card = {"subjects": [s.subject for s in subjects], "samples": sum(map(len, subjects)), "recipe": asdict(recipe)}
        networks.save_weights(folder / "weights.safetensors", best, recipe.network, recipe.options, half=half, **card)
    fabric.barrier()
    return pd.DataFrame(curve)


@torch.no_grad()
def predict(network: nn.Module, images: np.ndarray, *, batch: int = 8, mirror: bool = False) -> np.ndarray:
    """Probabilities of a trained network.

    Args:
        network: in evaluation mode or not; it is put into it.
        images: (N, 2, 2, 64, 64) float32, as `samples.network_input` makes them.
        batch: how many at a time; memory grows with it.
        mirror: also predict the left-right mirrored patient and average (twice the time).

    Returns:
        (N, 64, 64, 64) float32, RAS order.
    """
    network.eval()
    device = next(network.parameters()).device
    parts = []
    for start in range(0, len(images), batch):
        chunk = torch.from_numpy(images[start : start + batch]).to(device)
        probability = network(chunk).float().sigmoid()
        if mirror:
            # The AP picture of the mirrored patient is mirrored; the lateral one shows the same shadow.
            other = torch.stack([chunk[:, 0].flip(-1), chunk[:, 1]], dim=1)
            probability = (probability + network(other).float().sigmoid().flip(2)) / 2
        parts.append(probability[:, 0].cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros((0, *(sample_store.SIZE,) * 3), np.float32)


def _learning_rate(step: int, recipe: Recipe) -> float:
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    part = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * part)) / 2)


def _criticise(fabric: Any, critic: nn.Module, optimiser: Any, logits: Tensor, targets: Tensor) -> Tensor:
    """One step of the critic on this batch; the network's own adversarial loss comes back."""
    made = logits.float().sigmoid()
    loss = ((critic(targets) - 1) ** 2).mean() / 2 + (critic(made.detach()) ** 2).mean() / 2
    optimiser.zero_grad(set_to_none=True)
    fabric.backward(loss)
    optimiser.step()
    return ((critic(made) - 1) ** 2).mean() / 2


@torch.no_grad()
def _average(kept: nn.Module, network: nn.Module, step: int, decay: float) -> None:
    """Moves the kept weights towards the trained ones; the first steps count more, so that the start is forgotten."""
    decay = min(decay, (1 + step) / (10 + step))
    for ours, theirs in zip(kept.state_dict().values(), network.state_dict().values(), strict=True):
        if ours.is_floating_point():
            ours.lerp_(theirs, 1 - decay)
        else:
            ours.copy_(theirs)


def _validation_inputs(validation: list[Samples]) -> tuple[np.ndarray, np.ndarray] | None:
    if not sum(map(len, validation)):
        return None
    return np.concatenate([s.images() for s in validation]), np.concatenate([s.targets() for s in validation])


def _validate(network: nn.Module, inputs: tuple[np.ndarray, np.ndarray] | None, device: torch.device) -> float:
    """The mean Dice over the validation samples at a threshold of 0.5; NaN where there are none."""
    if inputs is None:
        return float("nan")
    images, targets = inputs
    found = predict(network, images) > 0.5
    common = (found & targets).sum((1, 2, 3))
    return float(np.mean(2 * common / (found.sum((1, 2, 3)) + targets.sum((1, 2, 3)))))


def _epochs_since_best(curve: list[dict[str, float]]) -> int:
    scores = [-np.inf if np.isnan(row["dice_validation"]) else row["dice_validation"] for row in curve]
    return len(scores) - 1 - int(np.argmax(scores))


def _has_settled(curve: list[dict[str, float]], patience: int) -> bool:
    return bool(patience and curve) and _epochs_since_best(curve) >= patience


def _snapshot(state: dict[str, Any]) -> dict[str, Any]:
    return {name: part.state_dict() for name, part in state.items()}


def _save(content: dict[str, Any], path: Path) -> None:
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def _resume(path: Path, state: dict[str, Any], identity: dict[str, Any]) -> tuple[int, list[dict[str, float]]]:
    try:
        # weights_only: tensors and plain values, never a stranger's pickled code.
        saved = torch.load(path, map_location="cpu", weights_only=True)
        theirs = saved["identity"]
    except Exception as error:  # noqa: BLE001 torch raises whatever unpickling meets
        raise InputError(
            f"{path} is not a checkpoint of this package ({type(error).__name__}); move it away."
        ) from None
    if theirs != identity:
        ours, other = _flat(identity), _flat(theirs)
        odd = sorted(k for k in ours | other if ours.get(k) != other.get(k))
        raise InputError(
            f"{path} was made with another {', '.join(odd)}; train under another run or into another folder, or start over with resume off (--fresh)."
        )
    for name, part in state.items():
        part.load_state_dict(saved[name])
    return saved["step"], saved["curve"]


def _flat(nested: dict[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return flat
