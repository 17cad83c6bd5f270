"""What a training lowers: overlap and cross-entropy, or the paper's kind of regression, and what the films must show."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from transvert.io import InputError

LOSSES = ("dice_ce", "dice", "regression")
"""Soft Dice plus cross-entropy; soft Dice alone, as the public port is trained; or the mean absolute difference, as a network that regresses grey values is trained."""


def loss_and_dice(
    logits: Tensor, targets: Tensor, kind: str = "dice_ce", projection_weight: float = 0.0
) -> tuple[Tensor, Tensor]:
    """What a training lowers, and the soft Dice for its curve.

    Args:
        logits: (B, 1, X, Y, Z) float32.
        targets: (B, 1, X, Y, Z) float32, 0 and 1.
        kind: one of `LOSSES`.
        projection_weight: of `projection_loss`, which is added.

    Returns:
        The loss, with gradients, and the mean soft Dice, without.

    Raises:
        InputError: an unknown kind.
    """
    probability = logits.sigmoid()
    common = (probability * targets).sum((1, 2, 3, 4))
    total = (probability + targets).sum((1, 2, 3, 4))
    dice = ((2 * common + 1) / (total + 1)).mean()
    if kind == "dice_ce":
        loss = 1 - dice + functional.binary_cross_entropy_with_logits(logits, targets)
    elif kind == "dice":
        loss = 1 - dice
    elif kind == "regression":
        loss = (probability - targets).abs().mean() * targets[0].numel() / targets.sum((1, 2, 3, 4)).mean().clamp(min=1)
    else:
        raise InputError(f"'{kind}' is not a loss; use {', '.join(LOSSES[:-1])} or {LOSSES[-1]}.")
    if projection_weight:
        loss = loss + projection_weight * projection_loss(probability, targets)
    return loss, dice.detach()


def projection_loss(probability: Tensor, targets: Tensor) -> Tensor:
    """How far the prediction's thickness along both views' rays is from the bone's, relative to the bone's mean.

    (B, 1, X, Y, Z) each. The films show thickness; a reconstruction that does not throw their shadows is wrong.
    """
    parts = []
    for along in (3, 2):
        made, true = probability.sum(along), targets.sum(along)
        parts.append((made - true).abs().sum((1, 2, 3)) / true.sum((1, 2, 3)).clamp(min=1))
    return (parts[0] + parts[1]).mean() / 2
