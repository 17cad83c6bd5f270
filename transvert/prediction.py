"""What a trained network makes of pictures, and how well."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from transvert.samples import SIZE, Samples


@torch.no_grad()
def predict(network: nn.Module, images: np.ndarray, *, batch: int = 4, mirror: bool = False) -> np.ndarray:
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
    return np.concatenate(parts) if parts else np.zeros((0, *(SIZE,) * 3), np.float32)


def stack(validation: list[Samples]) -> tuple[np.ndarray, np.ndarray] | None:
    """All samples' images, (N, 2, 2, 64, 64) float32, and targets, (N, 64, 64, 64) bool; None where there are none."""
    if not sum(map(len, validation)):
        return None
    return np.concatenate([s.images() for s in validation]), np.concatenate([s.targets() for s in validation])


def mean_dice(network: nn.Module, inputs: tuple[np.ndarray, np.ndarray] | None, fabric: Any) -> float:
    """The Dice at a threshold of 0.5 over what `stack` made, of which each process takes its share; NaN for None."""
    if inputs is None:
        return float("nan")
    images, targets = (array[fabric.global_rank :: fabric.world_size] for array in inputs)
    found = predict(network, images) > 0.5
    common = (found & targets).sum((1, 2, 3))
    total = np.sum(2 * common / (found.sum((1, 2, 3)) + targets.sum((1, 2, 3))))
    return float(fabric.all_reduce(torch.tensor(total, device=fabric.device), reduce_op="sum")) / len(inputs[0])
