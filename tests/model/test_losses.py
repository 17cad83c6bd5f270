"""What a training lowers, of shapes whose overlap and shadows are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from transvert.io import InputError
from transvert.model.losses import loss_and_dice, projection_loss


@pytest.fixture
def half() -> torch.Tensor:
    """(2, 1, 4, 4, 4), the front half of the x axis."""
    targets = torch.zeros(2, 1, 4, 4, 4)
    targets[:, :, :2] = 1
    return targets


def test_dice_and_cross_entropy_of_known_pictures(half: torch.Tensor) -> None:
    sure = (half * 2 - 1) * 50
    loss, dice = loss_and_dice(sure, half)
    assert float(loss) == pytest.approx(0, abs=1e-6) and float(dice) == pytest.approx(1)
    loss, dice = loss_and_dice(-sure, half)
    assert float(dice) == pytest.approx(1 / 65) and float(loss) == pytest.approx(1 - 1 / 65 + 50)
    loss, dice = loss_and_dice(torch.zeros_like(half), half)
    assert float(dice) == pytest.approx((2 * 16 + 1) / (32 + 32 + 1))
    assert float(loss) == pytest.approx(1 - float(dice) + np.log(2), rel=1e-5)


def test_regression_is_the_wrong_volume_over_the_bone_s(half: torch.Tensor) -> None:
    sure = (half * 2 - 1) * 50
    assert float(loss_and_dice(sure, half, "regression")[0]) == pytest.approx(0, abs=1e-6)
    assert float(loss_and_dice(-sure, half, "regression")[0]) == pytest.approx(64 / 32)
    assert float(loss_and_dice(torch.zeros_like(half), half, "regression")[0]) == pytest.approx(1)


def test_shadows_tell_what_overlap_does_not(half: torch.Tensor) -> None:
    """Moved along y the AP shadow stays and the lateral one goes elsewhere; turned inside out along both, none does."""
    assert float(projection_loss(half, half)) == 0
    bar = torch.zeros(1, 1, 4, 4, 4)
    bar[..., 1, 1, :] = 1
    moved = bar.roll(1, dims=3)
    assert float(projection_loss(moved, bar)) == pytest.approx(1)  # none of AP, all of lateral twice
    corner, other = torch.zeros(2, 1, 1, 4, 4, 4)
    corner[..., 0, 0, :] = corner[..., 1, 1, :] = 1
    other[..., 0, 1, :] = other[..., 1, 0, :] = 1
    assert float(projection_loss(other, corner)) == 0
    sure = (other * 2 - 1) * 50
    plain, with_shadows = loss_and_dice(-sure, other)[0], loss_and_dice(-sure, other, projection_weight=0.5)[0]
    assert float(with_shadows - plain) == pytest.approx(0.5 * float(projection_loss(1 - other, other)), rel=1e-4)


def test_an_unknown_loss_is_refused(half: torch.Tensor) -> None:
    with pytest.raises(InputError, match="'focal' is not a loss; use dice_ce, dice or regression"):
        loss_and_dice(half, half, "focal")


def test_dice_alone_is_the_default_without_its_cross_entropy(half: torch.Tensor) -> None:
    logits = half * 2 - 1
    loss, dice = loss_and_dice(logits, half, "dice")
    assert float(loss) == pytest.approx(1 - float(dice))
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, half)
    assert float(loss_and_dice(logits, half)[0]) == pytest.approx(float(loss + entropy))
