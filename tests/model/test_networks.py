"""Networks: shapes, directions, gradients, layers, and weights in files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from transvert.io import InputError
from transvert.model import networks

NAMES = ["transvert", "transvert_hull"]
Make = Callable[[str], nn.Module]


def _images(batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 2, 4, 64, 64, generator=torch.Generator().manual_seed(seed))


def _loud(made: nn.Module) -> nn.Module:
    """The attention and the head's product switched on: they start at or near zero."""
    for name, parameter in made.named_parameters():
        if name.endswith("gain"):
            nn.init.constant_(parameter, 0.7)
    return made


# Form


def test_network_sizes_are_those_of_the_benchmark() -> None:
    sizes = {name: sum(p.numel() for p in networks.build_network(name).parameters()) for name in NAMES}
    assert sizes == {"transvert": 2_970_363, "transvert_hull": 4_522_202}


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


def test_the_discriminator_scores_a_coarse_grid_and_learns() -> None:
    discriminator = networks.Discriminator(width=4)
    scores = discriminator(torch.rand(2, 1, 64, 64, 64))
    assert scores.shape == (2, 1, 4, 4, 4)
    scores.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().max() > 0 for p in discriminator.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_maps_and_attention_can_be_left_out(name: str) -> None:
    plain, moved = _images(), _images()
    moved[:, :, 1] = moved[:, :, 1].flip(-1)
    for maps in (True, False):
        made = networks.build_network(name, width=8, maps=maps, attention=maps).eval()
        assert any("attention" in key for key, _ in made.named_parameters()) is maps
        with torch.no_grad():
            assert torch.equal(made(plain), made(moved)) is not maps
    assert not torch.equal(plain, moved)


def test_context_is_seen_unless_left_out() -> None:
    plain, other = _images(), _images()
    plain[:, :, 3], other[:, :, 3] = 12.0, 20.0
    far = plain.clone()
    far[:, :, 2] = plain[:, :, 2].flip(-2)
    for context in (True, False):
        made = networks.build_network("transvert_hull", width=8, context=context).eval()
        with torch.no_grad():
            assert torch.equal(made(plain), made(other)) is not context
            assert torch.equal(made(plain), made(far)) is not context


def test_an_unknown_level_embeds_as_zero_and_near_levels_alike() -> None:
    embed = networks.LevelEmbedding(16)
    with torch.no_grad():
        unknown, first, second, far = embed(torch.tensor([0.0, 10.0, 11.0, 24.0]))
    assert not unknown.any()
    assert (first - second).norm() < 0.7 * (first - far).norm()


# Layers


def test_to_ras_turns_head_to_feet_front_to_back_right_to_left_around() -> None:
    inside = torch.zeros(1, 1, 64, 64, 64)
    inside[0, 0, 2, 5, 7] = 1  # near the head, near the front, near the patient's right
    found = networks.to_ras(inside)
    assert found.nonzero().tolist() == [[0, 0, 63 - 7, 63 - 5, 63 - 2]]


def test_the_head_s_product_is_the_visual_hull_of_both_pictures() -> None:
    head = networks.Head(4, 1, rank=1)
    with torch.no_grad():
        for layer in (head.ap, head.lateral):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(head.voxels.split.weight)
        nn.init.zeros_(head.voxels.split.bias)
        nn.init.ones_(head.gain)
        ap, lateral = torch.zeros(2, 1, 1, 64, 64)
        ap[..., 10:20, 5:9] = 1
        lateral[..., 12:30, 40:43] = 1
        product = head(torch.zeros(1, 4, 32, 32, 32), ap, lateral)
    expected = torch.zeros(1, 1, 64, 64, 64)
    expected[..., 12:20, 40:43, 5:9] = 1
    torch.testing.assert_close(product, expected)


@pytest.mark.parametrize("dims", [2, 3])
def test_subpixel_upsampling_equals_a_transposed_convolution(dims: int) -> None:
    upsample = networks.SubpixelUpsample(5, 3, dims)
    twin = (nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose3d)(5, 3, 2, 2, bias=False)
    with torch.no_grad():
        # A row of `split` is a place among the 2² or 2³ (first axis slowest) and a channel.
        places = upsample.split.weight.reshape(*(2,) * dims, 3, 5)
        twin.weight.copy_(places.permute(dims + 1, dims, *range(dims)))
        x = torch.randn(2, 5, *(3, 4, 5)[:dims])
        torch.testing.assert_close(upsample(x), twin(x))


@pytest.mark.parametrize(("axis", "view"), [(1, "AP"), (2, "lateral")])
def test_expansion_and_lift_add_the_axis_that_a_view_does_not_show(axis: int, view: str) -> None:
    picture = torch.zeros(1, 3, 16, 16)
    picture[0, :, 6, 9] = 1
    for module in (networks.AxisExpansion(3, axis, 4).eval(), networks.ViewLift(3, 2, 16, axis)):
        with torch.no_grad():
            found = module(picture) - module(torch.zeros_like(picture))
        assert found.shape[2:] == (16, 16, 16)
        z, y, x = (found.abs().sum((0, 1, *axes)).nonzero().flatten() for axes in ((3, 4), (2, 4), (2, 3)))
        seen, unseen = (x, y) if view == "AP" else (y, x)
        assert z.double().mean() == 6 and seen.double().mean() == 9
        assert len(z) <= 9 and len(seen) <= 9  # a doubling reaches one pixel further
        assert len(unseen) == 16


def test_cross_view_attention_reaches_both_views_and_keeps_places() -> None:
    attention = networks.CrossViewAttention(8, side=4)
    ap, lateral = torch.randn(2, 1, 8, 4, 4).requires_grad_()
    plain = attention(ap, lateral)
    torch.testing.assert_close(plain[0], ap + attention.places[..., :4])
    torch.testing.assert_close(plain[1], lateral + attention.places[..., 4:])
    nn.init.ones_(attention.attention.gain)
    for seen in attention(ap, lateral):
        gradients = torch.autograd.grad(seen[0, :, 0, 0].sum(), (ap, lateral), retain_graph=True)
        assert all((gradient.abs().sum(1) > 0).all() for gradient in gradients)


@pytest.mark.parametrize("dims", [2, 3])
def test_channels_stay_last_through_a_scale_and_back(dims: int) -> None:
    """Another order makes each normalisation and ReLU next to it ten times slower."""
    order = torch.channels_last if dims == 2 else torch.channels_last_3d
    upsample = networks.SubpixelUpsample(8, 4, dims)
    x = torch.randn(2, 8, *(4,) * dims).contiguous(memory_format=order).requires_grad_()
    y = upsample(x)
    assert y.is_contiguous(memory_format=order)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.is_contiguous(memory_format=order)


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


def test_a_network_starts_from_weights_that_know_less(tmp_path: Path) -> None:
    old = networks.build_network("transvert_hull", width=8, context=False).eval()
    path = networks.save_weights(tmp_path / "w.safetensors", old, "transvert_hull", {"width": 8})
    assert networks.load_weights(path)[0].levels is None, "weights of version 0.1 do not state their context"
    new = networks.build_network("transvert_hull", width=8).eval()
    networks.start_from(new, path)
    with torch.no_grad():
        torch.testing.assert_close(new(_images()), old(_images()))
    wide = networks.build_network("transvert_hull", width=16)
    with pytest.raises(InputError, match="do not fit this network, which has no 'encoders"):
        networks.start_from(networks.build_network("transvert", width=8), path)
    networks.save_weights(path, wide, "transvert_hull", {"width": 16})
    with pytest.raises(InputError, match="do not fit this network: its '.*' has another shape"):
        networks.start_from(new, path)


def test_entries_are_added_to_a_card_and_the_weights_stay(tmp_path: Path) -> None:
    made = networks.build_network("transvert", width=8).eval()
    path = networks.save_weights(tmp_path / "w.safetensors", made, "transvert", {"width": 8}, bits=16, dice=0.9)
    before, _ = networks.load_weights(path)
    size = path.stat().st_size
    networks.add_to_card(path, calibration={"bias": -0.5}, dice=0.8)
    found, card = networks.load_weights(path)
    assert card == {"network": "transvert", "dice": 0.8, "calibration": {"bias": -0.5}}
    assert abs(path.stat().st_size - size) < 200
    assert all(value.dtype != torch.float32 for value in load_file(path).values())  # Still of half precision.
    for key, value in before.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key
    path.write_bytes(b"none of ours")
    with pytest.raises(InputError, match="is not a safetensors file"):
        networks.add_to_card(path, more=1)
    assert path.read_bytes() == b"none of ours"


@pytest.mark.parametrize("key", ["name", "known"])
def test_an_option_of_a_file_can_t_take_the_place_of_an_argument(key: str, tmp_path: Path) -> None:
    made = networks.build_network("transvert", width=8)
    path = networks.save_weights(tmp_path / "w.safetensors", made, "transvert", {"width": 8, key: "transvert"})
    with pytest.raises(InputError, match="can't be built"):
        networks.load_weights(path)


def test_weights_of_8_bits_are_a_quarter_as_large_and_give_nearly_the_same(tmp_path: Path) -> None:
    made = networks.build_network("transvert_hull", width=32).eval()
    images = torch.rand(1, 2, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    sizes = []
    for bits in (32, 8):
        path = networks.save_weights(tmp_path / f"{bits}.safetensors", made, "transvert_hull", {"width": 32}, bits=bits)
        found = networks.load_weights(path)[0]
        sizes.append(path.stat().st_size)
        with torch.inference_mode():
            assert torch.allclose(found(images), made(images), atol=0.02 if bits == 8 else 0)
    assert sizes[1] < 0.3 * sizes[0]


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


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def _other(path: Path, **change: str) -> None:
    """The same file with other metadata."""
    metadata = {"format": "transvert-weights/1", "network": "transvert", "options": '{"width": 8}', "card": "{}"}
    save_file(load_file(path), path, metadata | change)


BAD_WEIGHTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (Path.unlink, r"The weights .*w\.safetensors do not exist; train some with notebook 02"),
    "text": (lambda p: p.write_text("no weights"), r"w\.safetensors is not a safetensors file, or is truncated"),
    "empty": (lambda p: p.write_bytes(b""), r"w\.safetensors is not a safetensors file, or is truncated"),
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[:-999]), "is not a safetensors file, or is truncated"),
    "foreign": (lambda p: save_file({"a": torch.zeros(3)}, p), "does not hold weights of this package"),
    "later": (lambda p: _other(p, format="transvert-weights/2"), "does not hold weights of this package"),
    "other size": (lambda p: _other(p, options='{"width": 16}'), "do not fit the network 'transvert'"),
    "100,000 channels": (lambda p: _other(p, options='{"width": 100000}'), "do not fit the network 'transvert'"),
    "10^18 channels": (lambda p: _other(p, options='{"width": 100000000000000000}'), "can't be built"),
    "channels in words": (lambda p: _other(p, options='{"width": "many"}'), "can't be built"),
    "a list": (lambda p: _other(p, options="[1]"), "The options or the card of .* are not JSON objects"),
    "no JSON": (lambda p: _other(p, card="{"), "The 'card' of .* is not valid JSON"),
    "deep": (lambda p: _other(p, card="[" * 100_000), "The 'card' of .* is not valid JSON .maximum recursion"),
    "not a number": (
        lambda p: save_file({k: v * float("nan") for k, v in load_file(p).items()}, p, _metadata(p)),
        "holds weights that are not finite; train again",
    ),
    "other network": (lambda p: _other(p, network="transvert_hull"), "do not fit the network 'transvert_hull'"),
    "unknown network": (
        lambda p: _other(p, network="resnet"),
        "holds weights of the network 'resnet'; known are transvert",
    ),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_a_file_that_holds_no_weights_gets_its_sentence(kind: str, tiny: Make, tmp_path: Path) -> None:
    spoil, sentence = BAD_WEIGHTS[kind]
    path = networks.save_weights(tmp_path / "w.safetensors", tiny("transvert"), "transvert", {"width": 8})
    spoil(path)
    with pytest.raises(InputError, match=sentence):
        networks.load_weights(path)


def test_an_unknown_network_and_an_unknown_option_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"'unet' is not a network; use one of transvert, transvert_hull"):
        networks.build_network("unet")
    with pytest.raises(InputError, match="The network 'transvert' can't be built: .*'depth'"):
        networks.build_network("transvert", depth=3)
