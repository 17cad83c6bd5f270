"""The comparison networks: published size, orientation, gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.studies.comparison_networks import AttentionUnet, OneDConcat, TwoDPermuteConcat
from transvert.model import networks

NAMES = ("twod_permute_concat", "oned_concat", "attention_unet")


def _small(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return networks.build_network(name, width=4, **options)


def _images(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 2, 4, 64, 64, generator=torch.Generator().manual_seed(0))


def _size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_sizes_are_as_published() -> None:
    assert _size(TwoDPermuteConcat(maps=False)) == 1_194_049
    assert _size(TwoDPermuteConcat(maps=False, size=128)) == 1_249_537
    assert _size(TwoDPermuteConcat()) == 1_194_049 + 1_568
    assert round(_size(OneDConcat(maps=False)) / 1e6, 1) == 40.6
    assert round(_size(AttentionUnet(maps=False)) / 1e6, 1) == 1.5


@pytest.mark.parametrize("name", NAMES)
def test_each_sample_is_predicted_by_itself_from_patches_and_maps(name: str, tmp_path: Path) -> None:
    network, images = _small(name).eval(), _images(2)
    moved = images.clone()
    moved[:, :, 1] = moved[:, :, 1].flip(-1)
    with torch.no_grad():
        logits = network(images)
        assert logits.shape == (2, 1, 64, 64, 64) and torch.isfinite(logits).all()
        torch.testing.assert_close(network(images[1:]), logits[1:], atol=1e-4, rtol=1e-4)
        assert not torch.equal(network(moved), logits)
        without = _small(name, maps=False).eval()
        assert torch.equal(without(images[:1]), without(moved[:1]))
    path = networks.save_weights(tmp_path / "weights.safetensors", network, name, {"width": 4})
    loaded, _ = networks.load_weights(path)
    with torch.no_grad():
        assert torch.equal(loaded(images), logits)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_finite_gradient(name: str) -> None:
    network = _small(name)
    network(_images(2)).square().mean().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key
        layer, _, kind = key.rpartition(".")
        # A convolution's bias in front of a batch normalisation has no gradient but by rounding.
        if kind != "bias" or isinstance(network.get_submodule(layer), torch.nn.modules.batchnorm._BatchNorm):
            assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", ["twod_permute_concat", "attention_unet"])
@pytest.mark.parametrize(
    ("view", "row", "column", "sides"),
    [
        pytest.param(0, 10, 50, {2: 1, 0: -1}, id="AP, head, patient's left"),
        pytest.param(1, 50, 10, {2: -1, 1: 1}, id="lateral, feet, front"),
    ],
)
def test_a_spot_changes_the_matching_half_of_the_volume(
    name: str, view: int, row: int, column: int, sides: dict[int, int]
) -> None:
    network = _small(name).eval()
    plain, changed = _images(), _images()
    changed[0, view, 0, row - 3 : row + 4, column - 3 : column + 4] += 3
    with torch.no_grad():
        change = (network(changed) - network(plain)).square()[0, 0]
    for axis, side in sides.items():
        along = change.sum([other for other in range(3) if other != axis])
        middle = float((along * torch.arange(64)).sum() / along.sum())
        assert side * (middle - 31.5) > 1
