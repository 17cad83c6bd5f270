"""Losses of shapes whose overlap is known, and the gradients of the adversarial losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from transvert.io import InputError
from transvert.model.losses import adversarial_losses, segmentation_loss


@pytest.fixture
def half() -> torch.Tensor:
    """(2, 1, 4, 4, 4), the front half of the x axis."""
    targets = torch.zeros(2, 1, 4, 4, 4)
    targets[:, :, :2] = 1
    return targets


def test_dice_and_cross_entropy_of_known_pictures(half: torch.Tensor) -> None:
    sure = (half * 2 - 1) * 50
    loss, dice = segmentation_loss(sure, half)
    assert float(loss) == pytest.approx(0, abs=1e-6) and float(dice) == pytest.approx(1)
    loss, dice = segmentation_loss(-sure, half)
    assert float(dice) == pytest.approx(1 / 65) and float(loss) == pytest.approx(1 - 1 / 65 + 50)
    loss, dice = segmentation_loss(torch.zeros_like(half), half)
    assert float(dice) == pytest.approx((2 * 16 + 1) / (32 + 32 + 1))
    assert float(loss) == pytest.approx(1 - float(dice) + np.log(2), rel=1e-5)


def test_an_unknown_loss_is_refused(half: torch.Tensor) -> None:
    with pytest.raises(InputError, match="'focal' is not a loss; use dice_ce or dice"):
        segmentation_loss(half, half, "focal")


def test_dice_alone_is_the_default_without_its_cross_entropy(half: torch.Tensor) -> None:
    logits = half * 2 - 1
    loss, dice = segmentation_loss(logits, half, "dice")
    assert float(loss) == pytest.approx(1 - float(dice))
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, half)
    assert float(segmentation_loss(logits, half)[0]) == pytest.approx(float(loss + entropy))


class Score(torch.nn.Module):
    """Scores a volume by its mean times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        return self.weight * volume.mean((1, 2, 3, 4))


def test_adversarial_losses_are_least_squares_and_reach_their_own_weights_alone(half: torch.Tensor) -> None:
    discriminator = Score()
    logits = torch.zeros_like(half, requires_grad=True)
    of_discriminator, of_network = adversarial_losses(discriminator, logits, half)
    # Targets and predictions both have a mean of 0.5, and so a score of 0.25.
    assert of_discriminator.item() == pytest.approx(((0.25 - 1) ** 2 + 0.25**2) / 2)
    assert of_network.item() == pytest.approx((0.25 - 1) ** 2 / 2)
    of_discriminator.backward()
    assert logits.grad is None and discriminator.weight.grad is not None
    discriminator.weight.grad = None
    of_network.backward()
    assert (logits.grad < 0).all() and discriminator.weight.grad is None
