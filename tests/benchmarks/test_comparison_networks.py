"""The networks to compare with: of the published size, right way round, able to learn, and built by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.studies import comparison_networks
from transvert.model import losses, networks

SMALL = {"twod_permute_concat": 4, "oned_concat": 4, "attention_unet": 4}
"""Networks to compare with, and a width that is quick to try."""


def _small(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return networks.build_network(name, width=SMALL[name], **options)


def _images(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 2, 2, 64, 64, generator=torch.Generator().manual_seed(0))


def _size(made: nn.Module) -> int:
    return sum(p.numel() for p in made.parameters())


# Form


def test_two_d_permute_concat_has_the_published_number_of_parameters() -> None:
    assert _size(comparison_networks.TwoDPermuteConcat(maps=False)) == 1_194_049
    assert _size(comparison_networks.TwoDPermuteConcat(maps=False, size=128)) == 1_249_537
    assert _size(comparison_networks.TwoDPermuteConcat()) == 1_194_049 + 1_568


def test_the_others_come_to_the_published_millions() -> None:
    assert round(_size(comparison_networks.OneDConcat(maps=False)) / 1e6, 1) == 40.6
    assert round(_size(comparison_networks.AttentionUnet(maps=False)) / 1e6, 1) == 1.5


def test_two_d_permute_concat_takes_the_size_that_it_is_built_for() -> None:
    made = comparison_networks.TwoDPermuteConcat(width=1, size=32).eval()
    with torch.no_grad():
        assert made(torch.randn(1, 2, 2, 32, 32)).shape == (1, 1, 32, 32, 32)


@pytest.mark.parametrize("name", SMALL)
def test_a_batch_of_pictures_becomes_a_batch_of_volumes(name: str) -> None:
    made = _small(name).eval()
    with torch.no_grad():
        logits = made(_images(2))
        alone = made(_images(2)[1:])
    assert logits.shape == (2, 1, 64, 64, 64) and torch.isfinite(logits).all()
    torch.testing.assert_close(logits[1:], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_without_maps_only_the_patches_are_seen(name: str) -> None:
    plain, moved = _images(), _images()
    moved[:, :, 1] = moved[:, :, 1].flip(-1)
    for maps in (True, False):
        made = _small(name, maps=maps).eval()
        with torch.no_grad():
            assert torch.equal(made(plain), made(moved)) is not maps


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_finite_gradient(name: str) -> None:
    made = _small(name)
    made(_images(2)).square().mean().backward()
    for key, parameter in made.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().max() > 0, key


def test_weights_come_back_with_their_network(tmp_path: Path) -> None:
    for name, width in SMALL.items():
        made = _small(name).eval()
        path = networks.save_weights(tmp_path / f"{name}.safetensors", made, name, {"width": width})
        found, card = networks.load_weights(path)
        with torch.no_grad():
            assert card["network"] == name and torch.equal(found(_images()), made(_images()))


# Which way is which

PLACES = {  # view, the row and the column of a spot, the axes of RAS that these tell, and which half of each it is
    "AP, head, patient's left": (0, (10, 50), (2, 1), (0, -1)),
    "AP, feet, patient's right": (0, (50, 10), (2, -1), (0, 1)),
    "lateral, head, back": (1, (10, 50), (2, 1), (1, -1)),
    "lateral, feet, front": (1, (50, 10), (2, -1), (1, 1)),
}


@pytest.mark.parametrize("name", ["twod_permute_concat", "attention_unet"])
@pytest.mark.parametrize("place", PLACES)
def test_a_spot_changes_the_half_of_the_volume_that_it_is_seen_in(name: str, place: str) -> None:
    """Five convolutions of kernel 7 on 16² spread it widely, so that more than the half can't be asked."""
    view, (row, column), *told = PLACES[place]
    made = _small(name).eval()
    plain, changed = _images(), _images()
    changed[0, view, 0, row - 3 : row + 4, column - 3 : column + 4] += 3
    with torch.no_grad():
        change = (made(changed) - made(plain)).square()[0, 0]
    for axis, side in told:
        along = change.sum([other for other in range(3) if other != axis])
        middle = float((along * torch.arange(64)).sum() / along.sum())
        assert side * (middle - 31.5) > 1


def test_one_d_concat_learns_a_shape_where_it_is() -> None:
    """Its vectors keep no place, so there is nothing to mirror but what it has learned."""
    target = torch.zeros(1, 1, 64, 64, 64)
    target[..., 36:56, 8:28, 34:58] = 1
    made = _small("oned_concat")
    optimiser = torch.optim.Adam(made.parameters(), 1e-2)
    for _ in range(20):
        loss, _ = losses.loss_and_dice(made(_images()), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = made(_images())[0, 0].sigmoid().detach()
    found = (found > found.max() / 2).float()
    middle = [
        float((found.sum([o for o in range(3) if o != a]) * torch.arange(64)).sum() / found.sum()) for a in range(3)
    ]
    assert middle == pytest.approx([45.5, 17.5, 45.5], abs=3)
