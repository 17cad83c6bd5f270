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

from transvert import network
from transvert.files import InputError

NAMES = sorted(network.NETWORKS)
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


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_pictures_becomes_a_batch_of_volumes(name: str, tiny: Make) -> None:
    made = tiny(name).eval()
    with torch.no_grad():
        logits = made(_images(2))
        alone = made(_images(2)[1:])
    assert logits.shape == (2, 1, 64, 64, 64) and logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[1:], alone, atol=1e-4, rtol=1e-4)


def test_to_ras_turns_head_to_feet_front_to_back_right_to_left_around() -> None:
    inside = torch.zeros(1, 1, 64, 64, 64)
    inside[0, 0, 2, 5, 7] = 1  # near the head, near the front, near the patient's right
    found = network._to_ras(inside)
    assert found.nonzero().tolist() == [[0, 0, 63 - 7, 63 - 5, 63 - 2]]


def test_the_head_s_product_is_the_visual_hull_of_both_pictures() -> None:
    head = network.Head(4, 1, rank=1)
    with torch.no_grad():
        for layer in (head.ap, head.lateral):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(head.voxels.weight)
        nn.init.zeros_(head.voxels.bias)
        nn.init.ones_(head.gain)
        ap, lateral = torch.zeros(2, 1, 1, 64, 64)
        ap[..., 10:20, 5:9] = 1
        lateral[..., 12:30, 40:43] = 1
        product = head(torch.zeros(1, 4, 32, 32, 32), ap, lateral)
    expected = torch.zeros(1, 1, 64, 64, 64)
    expected[..., 12:20, 40:43, 5:9] = 1
    torch.testing.assert_close(product, expected)


def test_the_head_s_sub_voxels_keep_their_places() -> None:
    head = network.Head(1, 1, rank=1)
    with torch.no_grad():
        nn.init.zeros_(head.gain)
        head.voxels.weight[:] = torch.arange(1.0, 9.0)[:, None, None, None, None]
        nn.init.zeros_(head.voxels.bias)
        coarse = torch.zeros(1, 1, 32, 32, 32)
        coarse[0, 0, 3, 7, 11] = 1
        fine = head(coarse, torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64))[0, 0]
    torch.testing.assert_close(fine[6:8, 14:16, 22:24].flatten(), torch.arange(1.0, 9.0))
    assert int((fine != 0).sum()) == 8


@pytest.mark.parametrize(("axis", "view"), [(1, "AP"), (2, "lateral")])
def test_growth_and_lift_grow_the_axis_the_view_does_not_see(axis: int, view: str) -> None:
    picture = torch.zeros(1, 3, 16, 16)
    picture[0, :, 6, 9] = 1
    for module in (network.Growth(3, axis, 4).eval(), network.Lift(3, 2, 16, axis)):
        with torch.no_grad():
            found = module(picture) - module(torch.zeros_like(picture))
        assert found.shape[2:] == (16, 16, 16)
        z, y, x = (found.abs().sum((0, 1, *axes)).nonzero().flatten() for axes in ((3, 4), (2, 4), (2, 3)))
        seen, unseen = (x, y) if view == "AP" else (y, x)
        assert z.double().mean() == 6 and seen.double().mean() == 9
        assert len(z) <= 9 and len(seen) <= 9  # a doubling reaches one pixel further
        assert len(unseen) == 16


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
    critic = network.Critic(width=4)
    scores = critic(torch.rand(2, 1, 64, 64, 64))
    assert scores.shape == (2, 1, 4, 4, 4)
    scores.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().max() > 0 for p in critic.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_seen_unless_they_are_left_out(name: str) -> None:
    plain, moved = _images(), _images()
    moved[:, :, 1] = moved[:, :, 1].flip(-1)
    for maps in (True, False):
        made = network.build(name, width=8, maps=maps).eval()
        with torch.no_grad():
            assert torch.equal(made(plain), made(moved)) is not maps
    assert not torch.equal(plain, moved)


def test_attention_starts_as_nothing_and_can_be_left_out() -> None:
    attention = network.Attention(8)
    x = torch.randn(1, 8, 5, 5)
    torch.testing.assert_close(attention(x), x)
    without = network.build("transvert", width=8, attention=False)
    assert not [key for key, _ in without.named_parameters() if "attention" in key]


def test_attention_reaches_every_pixel() -> None:
    attention = _loud(network.Attention(8))
    x = torch.randn(1, 8, 6, 6, requires_grad=True)
    attention(x)[0, :, 0, 0].sum().backward()
    assert (x.grad.abs().sum(1) > 0).all()


# Weights


@pytest.mark.parametrize("name", NAMES)
def test_weights_come_back_exactly_with_their_card(name: str, tiny: Make, tmp_path: Path) -> None:
    made = tiny(name)
    made(_images(2))  # so that the running means are not those of a new network
    made.eval()
    path = network.save_weights(tmp_path / "new" / "w.safetensors", made, name, {"width": 8}, dice=0.9, data=["a"])
    found, card = network.load_weights(path)
    assert card == {"network": name, "dice": 0.9, "data": ["a"]}
    assert not found.training
    for key, value in made.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key
    with torch.no_grad():
        assert torch.equal(found(_images()), made(_images()))


@pytest.mark.parametrize("name", NAMES)
def test_half_the_precision_is_half_the_size_and_within_a_thousandth(name: str, tiny: Make, tmp_path: Path) -> None:
    made = tiny(name).eval()
    whole = network.save_weights(tmp_path / "w.safetensors", made, name, {"width": 8})
    half = network.save_weights(tmp_path / "h.safetensors", made, name, {"width": 8}, half=True)
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    found, _ = network.load_weights(half)
    assert all(p.dtype == torch.float32 for p in found.parameters())
    with torch.no_grad():
        difference = (found(_images()).sigmoid() - made(_images()).sigmoid()).abs().max()
    assert difference < 1e-3


def test_no_pickle_and_no_path_travels_with_the_weights(tiny: Make, tmp_path: Path) -> None:
    path = network.save_weights(tmp_path / "w.safetensors", tiny("transvert"), "transvert", {"width": 8})
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
    "other network": (lambda p: _other(p, network="transvert_lift"), "do not fit the network 'transvert_lift'"),
    "unknown network": (lambda p: _other(p, network="resnet"), "'resnet' is not a network"),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_a_file_without_our_weights_gets_its_sentence(kind: str, tiny: Make, tmp_path: Path) -> None:
    spoil, sentence = BAD_WEIGHTS[kind]
    path = network.save_weights(tmp_path / "w.safetensors", tiny("transvert"), "transvert", {"width": 8})
    spoil(path)
    with pytest.raises(InputError, match=sentence):
        network.load_weights(path)


def test_an_unknown_network_and_an_unknown_option_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="'unet' is not a network; use transvert or transvert_lift"):
        network.build("unet")
    with pytest.raises(InputError, match="The network 'transvert' can't be built: .*'depth'"):
        network.build("transvert", depth=3)
