"""Networks: shapes, which way is right, front and up, gradients everywhere, and weights that come back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.studies import comparison_networks  # noqa: F401
from transvert.io import InputError
from transvert.model import networks

NAMES = ["transvert", "transvert_hull"]
Make = Callable[[str], nn.Module]


def _images(batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 2, 2, 64, 64, generator=torch.Generator().manual_seed(seed))


def _loud(made: nn.Module) -> nn.Module:
    """The attention and the head's product switched on: they start at or near zero."""
    for name, parameter in made.named_parameters():
        if name.endswith("gain"):
            nn.init.constant_(parameter, 0.7)
    return made


# Form


def test_our_own_network_is_the_size_that_the_benchmark_tells() -> None:
    sizes = {name: sum(p.numel() for p in networks.build_network(name).parameters()) for name in NAMES}
    assert sizes == {"transvert": 2_970_363, "transvert_hull": 4_516_026}


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_pictures_becomes_a_batch_of_volumes(name: str, tiny: Make) -> None:
    made = tiny(name).eval()
    with torch.no_grad():
        logits = made(_images(2))
        alone = made(_images(2)[1:])
    assert logits.shape == (2, 1, 64, 64, 64) and logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[1:], alone, atol=1e-4, rtol=1e-4)


# Which way is which

PLACES = {  # view, part of the picture, and the end of the volume it should reach
    "the AP picture's left column reaches the patient's right": (0, np.s_[:, :10], np.s_[52:], np.s_[:12]),
    "the AP picture's top row reaches the head": (0, np.s_[:10, :], np.s_[:, :, 52:], np.s_[:, :, :12]),
    "the lateral picture's left column reaches the front": (1, np.s_[:, :10], np.s_[:, 52:], np.s_[:, :12]),
    "the lateral picture's top row reaches the head": (1, np.s_[:10, :], np.s_[:, :, 52:], np.s_[:, :, :12]),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", PLACES)
def test_pictures_reach_the_part_of_space_they_show(name: str, place: str, tiny: Make) -> None:
    """A change in one part of a picture changes the volume where that part of the picture looks, and hardly elsewhere."""
    view, part, near, far = PLACES[place]
    made = tiny(name).eval()
    plain, changed = _images(), _images()
    changed[0, view, 0][part] += 2
    with torch.no_grad():
        difference = (made(changed) - made(plain)).abs()[0, 0]
    assert difference[near].mean() > 5 * difference[far].mean()


# Learning


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_finite_gradient(name: str, tiny: Make) -> None:
    made = _loud(tiny(name))
    made(_images(2)).square().mean().backward()
    for key, parameter in made.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().max() > 0 or key.endswith("qkv.bias"), key


def test_the_critic_scores_a_coarse_grid_and_learns() -> None:
    critic = networks.Discriminator(width=4)
    scores = critic(torch.rand(2, 1, 64, 64, 64))
    assert scores.shape == (2, 1, 4, 4, 4)
    scores.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().max() > 0 for p in critic.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_seen_unless_they_are_left_out(name: str) -> None:
    plain, moved = _images(), _images()
    moved[:, :, 1] = moved[:, :, 1].flip(-1)
    for maps in (True, False):
        made = networks.build_network(name, width=8, maps=maps).eval()
        with torch.no_grad():
            assert torch.equal(made(plain), made(moved)) is not maps
    assert not torch.equal(plain, moved)


def test_attention_can_be_left_out() -> None:
    for name in ("transvert", "transvert_hull"):
        without = networks.build_network(name, width=8, attention=False)
        assert not [key for key, _ in without.named_parameters() if "attention" in key]
        assert without(_images(2)).shape == (2, 1, 64, 64, 64)


# A view that is missing


def test_a_dropped_view_is_zero_and_the_other_is_untouched() -> None:
    images = _images(400)
    before = images.clone()
    found = networks.drop_views(images, 0.3, torch.Generator().manual_seed(1))
    assert torch.equal(images, before)
    gone = (found == 0).all(dim=(2, 3, 4))
    assert torch.equal(found[~gone], images[~gone])
    assert not gone.all(1).any()
    assert 0.22 < gone.any(1).double().mean() < 0.38
    assert 0.35 < gone[:, 0].sum() / gone.sum() < 0.65


def test_equal_seeds_drop_equal_views_and_shares_are_kept_at_their_ends() -> None:
    images = _images(64)

    def drop(share: float, seed: int) -> torch.Tensor:
        return networks.drop_views(images, share, torch.Generator().manual_seed(seed))

    assert torch.equal(drop(0.5, 3), drop(0.5, 3))
    assert not torch.equal(drop(0.5, 3), drop(0.5, 4))
    assert torch.equal(drop(0.0, 3), images)
    assert (drop(1.0, 3) == 0).all(dim=(2, 3, 4)).sum(1).tolist() == [1] * 64


@pytest.mark.parametrize("name", NAMES)
def test_one_view_alone_still_reaches_the_volume(name: str, tiny: Make) -> None:
    made = _loud(tiny(name)).eval()
    one, other = _images(1, 0), _images(1, 1)
    one[:, 0], other[:, 0] = 0, 0
    with torch.no_grad():
        first, second = made(one), made(other)
    assert torch.isfinite(first).all() and not torch.equal(first, second)


# Weights


@pytest.mark.parametrize("name", NAMES)
def test_weights_come_back_exactly_with_their_card(name: str, tiny: Make, tmp_path: Path) -> None:
    made = tiny(name)
    made(_images(2))  # so that the running means are not those of a new network
    made.eval()
    path = networks.save_weights(tmp_path / "new" / "w.safetensors", made, name, {"width": 8}, dice=0.9, data=["a"])
    found, card = networks.load_weights(path)
    assert card == {"network": name, "dice": 0.9, "data": ["a"]}
    assert not found.training
    for key, value in made.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key
    with torch.no_grad():
        assert torch.equal(found(_images()), made(_images()))


def test_more_is_written_into_a_card_and_the_weights_stay(tmp_path: Path) -> None:
    made = networks.build_network("transvert", width=8).eval()
    path = networks.save_weights(tmp_path / "w.safetensors", made, "transvert", {"width": 8}, half=True, dice=0.9)
    before, _ = networks.load_weights(path)
    size = path.stat().st_size
    networks.add_to_card(path, calibration={"bias": -0.5}, dice=0.8)
    found, card = networks.load_weights(path)
    assert card == {"network": "transvert", "dice": 0.8, "calibration": {"bias": -0.5}}
    assert abs(path.stat().st_size - size) < 200  # Still of half precision.
    for key, value in before.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key
    path.write_bytes(b"none of ours")
    with pytest.raises(InputError, match="is not a safetensors file"):
        networks.add_to_card(path, more=1)
    assert path.read_bytes() == b"none of ours"


@pytest.mark.parametrize("name", NAMES)
def test_half_the_precision_is_half_the_size_and_within_a_thousandth(name: str, tiny: Make, tmp_path: Path) -> None:
    made = tiny(name).eval()
    whole = networks.save_weights(tmp_path / "w.safetensors", made, name, {"width": 8})
    half = networks.save_weights(tmp_path / "h.safetensors", made, name, {"width": 8}, half=True)
    sizes = [sum(value.nbytes for value in load_file(path).values()) for path in (whole, half)]
    assert sizes[1] < 0.51 * sizes[0]
    found, _ = networks.load_weights(half)
    assert all(p.dtype == torch.float32 for p in found.parameters())
    with torch.no_grad():
        difference = (found(_images()).sigmoid() - made(_images()).sigmoid()).abs().max()
    assert difference < 1e-3


def test_no_pickle_and_no_path_travels_with_the_weights(tiny: Make, tmp_path: Path) -> None:
    path = networks.save_weights(tmp_path / "w.safetensors", tiny("transvert"), "transvert", {"width": 8})
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + length])
    assert header["__metadata__"] == {
        "format": "transvert-weights/1",
        "network": "transvert",
        "options": '{"width": 8}',
        "card": "{}",
    }


def _other(path: Path, **change: str) -> None:
    """The same file with other metadata."""
    metadata = {"format": "transvert-weights/1", "network": "transvert", "options": '{"width": 8}', "card": "{}"}
    save_file(load_file(path), path, metadata | change)


BAD_WEIGHTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (Path.unlink, r"The weights .*w\.safetensors do not exist; train some with notebook 02"),
    "text": (lambda p: p.write_text("no weights"), r"w\.safetensors is not a safetensors file, or is cut short"),
    "empty": (lambda p: p.write_bytes(b""), r"w\.safetensors is not a safetensors file, or is cut short"),
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[:-999]), "is not a safetensors file, or is cut short"),
    "foreign": (lambda p: save_file({"a": torch.zeros(3)}, p), "does not hold weights of this package"),
    "later": (lambda p: _other(p, format="transvert-weights/2"), "does not hold weights of this package"),
    "other size": (lambda p: _other(p, options='{"width": 16}'), "do not fit the network 'transvert'"),
    "other network": (lambda p: _other(p, network="transvert_hull"), "do not fit the network 'transvert_hull'"),
    "unknown network": (lambda p: _other(p, network="resnet"), "'resnet' is not a network"),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_a_file_without_our_weights_gets_its_sentence(kind: str, tiny: Make, tmp_path: Path) -> None:
    spoil, sentence = BAD_WEIGHTS[kind]
    path = networks.save_weights(tmp_path / "w.safetensors", tiny("transvert"), "transvert", {"width": 8})
    spoil(path)
    with pytest.raises(InputError, match=sentence):
        networks.load_weights(path)


def test_an_unknown_network_and_an_unknown_option_are_refused_by_name() -> None:
    with pytest.raises(
        InputError, match=r"'unet' is not a network; use one of transvert, transvert_hull, .*attention_unet\."
    ):
        networks.build_network("unet")
    with pytest.raises(InputError, match="The network 'transvert' can't be built: .*'depth'"):
        networks.build_network("transvert", depth=3)
