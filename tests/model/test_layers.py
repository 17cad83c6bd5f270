"""What networks are built of: places are kept, axes are the right ones, memory order stays as convolutions want it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from transvert.model import networks


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
def test_finer_puts_sub_voxels_where_a_transposed_convolution_does(dims: int) -> None:
    finer = networks.SubpixelUpsample(5, 3, dims)
    twin = (nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose3d)(5, 3, 2, 2, bias=False)
    with torch.no_grad():
        # A row of `split` is a place among the 2² or 2³ (first axis slowest) and a channel.
        places = finer.split.weight.reshape(*(2,) * dims, 3, 5)
        twin.weight.copy_(places.permute(dims + 1, dims, *range(dims)))
        x = torch.randn(2, 5, *(3, 4, 5)[:dims])
        torch.testing.assert_close(finer(x), twin(x))


@pytest.mark.parametrize(("axis", "view"), [(1, "AP"), (2, "lateral")])
def test_growth_and_lift_grow_the_axis_the_view_does_not_see(axis: int, view: str) -> None:
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


def test_attention_starts_as_nothing() -> None:
    attention = networks.Attention(8)
    x = torch.randn(1, 8, 5, 5)
    torch.testing.assert_close(attention(x), x)
    nn.init.ones_(attention.gain)
    assert not torch.allclose(attention(x), x)


def test_attention_reaches_every_pixel() -> None:
    attention = networks.Attention(8)
    nn.init.ones_(attention.gain)
    x = torch.randn(1, 8, 6, 6, requires_grad=True)
    attention(x)[0, :, 0, 0].sum().backward()
    assert (x.grad.abs().sum(1) > 0).all()


def test_a_decoder_tells_every_scale_of_the_coarser_ones_alone() -> None:
    decoder = networks.Decoder((2, 4, 8), 2).eval()
    features = [torch.randn(1, c, n, n, requires_grad=True) for c, n in ((2, 16), (4, 8), (8, 4))]
    found = decoder(features)
    assert [f.shape for f in found] == [f.shape for f in features]
    for scale, made in enumerate(found):
        gradients = torch.autograd.grad(made.sum(), features, retain_graph=True, allow_unused=True)
        assert [g is not None for g in gradients] == [n >= scale for n in range(3)]


def test_views_exchange_what_they_see_without_changing_places() -> None:
    exchange = networks.CrossViewAttention(8, side=4)
    ap, lateral = torch.randn(2, 1, 8, 4, 4).requires_grad_()
    plain = exchange(ap, lateral)
    torch.testing.assert_close(plain[0], ap + exchange.places[..., :4])
    torch.testing.assert_close(plain[1], lateral + exchange.places[..., 4:])
    nn.init.ones_(exchange.attention.gain)
    for seen in exchange(ap, lateral):
        gradients = torch.autograd.grad(seen[0, :, 0, 0].sum(), (ap, lateral), retain_graph=True)
        assert all((gradient.abs().sum(1) > 0).all() for gradient in gradients)


@pytest.mark.parametrize("dims", [2, 3])
def test_channels_stay_last_through_a_scale_and_back(dims: int) -> None:
    """A tensor that falls out of this order costs every normalisation and ReLU next to it a tenfold of its time."""
    order = torch.channels_last if dims == 2 else torch.channels_last_3d
    finer = networks.SubpixelUpsample(8, 4, dims)
    x = torch.randn(2, 8, *(4,) * dims).contiguous(memory_format=order).requires_grad_()
    y = finer(x)
    assert y.is_contiguous(memory_format=order)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.is_contiguous(memory_format=order)


def test_blanking_the_maps_keeps_the_patch() -> None:
    picture = torch.randn(2, 2, 4, 4)
    assert networks.drop_maps(picture, maps=True) is picture
    blank = networks.drop_maps(picture, maps=False)
    assert torch.equal(blank[:, 0], picture[:, 0]) and not blank[:, 1].any()
