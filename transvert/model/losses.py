"""Losses: soft Dice with cross-entropy, and the least-squares adversarial term of the paper."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from transvert.io import InputError

LOSSES = ("dice_ce", "dice")
"""Soft Dice plus cross-entropy; soft Dice alone, which the public port is trained with."""


def segmentation_loss(logits: Tensor, targets: Tensor, kind: str = "dice_ce") -> tuple[Tensor, Tensor]:
    """The loss of a batch and its mean soft Dice.

    Args:
        logits: (B, 1, X, Y, Z) float32.
        targets: (B, 1, X, Y, Z) float32, 0 and 1.
        kind: one of `LOSSES`.

    Returns:
        The loss, with gradients, and the soft Dice, without.

    Raises:
        InputError: an unknown kind.
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

    The discriminator learns to score real vertebrae as 1 and predictions as 0, the network to be scored as 1.

    Args:
        discriminator: scores (B, 1, X, Y, Z); may be distributed.
        logits: (B, 1, X, Y, Z) float32.
        targets: (B, 1, X, Y, Z) float32, 0 and 1.

    Returns:
        The discriminator's loss and the network's; the gradient of each reaches its own weights alone.
    """
    predicted = logits.sigmoid()
    real, fake = discriminator(torch.cat([targets, predicted.detach()])).float().chunk(2)
    module = getattr(discriminator, "module", discriminator)
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    score = torch.func.functional_call(module, weights, predicted).float()
    return (((real - 1) ** 2).mean() + (fake**2).mean()) / 2, ((score - 1) ** 2).mean() / 2
