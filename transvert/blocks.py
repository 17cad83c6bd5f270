"""What the networks are built of.

Inside a network a volume is `[z, y, x]` with every axis running the way the pictures run: head to feet, front to back,
right to left. So an AP picture is `[z, x]` and a lateral one `[z, y]`, without a flip; the result is turned to RAS
`[x, y, z]` at the very end, by `to_ras`.

Layers of one pixel's or voxel's channels alone are `nn.Linear` with the channels last, not convolutions of kernel 1:
on a CPU those hand back tensors with the channels first, and every layer around them waits for copies.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


def norm_act(channels: int, dims: int) -> nn.Sequential:
    """Batch normalisation over `dims` axes and a ReLU."""
    norm = nn.BatchNorm2d(channels) if dims == 2 else nn.BatchNorm3d(channels)
    return nn.Sequential(norm, nn.ReLU(inplace=True))


def conv(inputs: int, outputs: int, dims: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution over `dims` axes, normalised and rectified."""
    layer = (nn.Conv2d if dims == 2 else nn.Conv3d)(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(layer, norm_act(outputs, dims))


class Residual(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, channels: int, dims: int):
        super().__init__()
        self.body = nn.Sequential(conv(channels, channels, dims), conv(channels, channels, dims))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Attention(nn.Module):
    """Self-attention over the pixels of a feature map, added with a gain that starts at zero."""

    def __init__(self, channels: int, heads: int = 4):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        q, k, v = self.qkv(tokens).reshape(b, h * w, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, c)
        return x + self.gain * self.out(mixed).transpose(1, 2).reshape(b, c, h, w)


class Exchange(nn.Module):
    """Attention over the pixels of both views at once: the two side by side, with a learned mark for each place."""

    def __init__(self, channels: int, side: int = 8):
        super().__init__()
        self.places = nn.Parameter(0.02 * torch.randn(channels, side, 2 * side))
        self.attention = Attention(channels)

    def forward(self, ap: Tensor, lateral: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.attention(torch.cat([ap, lateral], dim=3) + self.places).chunk(2, dim=3)
        return first, second


class Encoder(nn.Module):
    """A picture to features at 64² and at half, quarter, ... of it, one for each of `widths`.

    Args:
        widths: channels at each scale.
        depths: residual blocks at each scale.
        kernel: of the first convolution.
        attention: self-attention over the last scale's pixels.
    """

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...], *, kernel: int = 7, attention: bool = False):
        super().__init__()
        self.stem = nn.Sequential(conv(2, widths[0], 2, kernel), *(Residual(widths[0], 2) for _ in range(depths[0])))
        self.stages = nn.ModuleList(
            nn.Sequential(conv(a, b, 2, stride=2), *(Residual(b, 2) for _ in range(depth)))
            for (a, b), depth in zip(pairwise(widths), depths[1:], strict=True)
        )
        self.attention = Attention(widths[-1]) if attention else nn.Identity()

    def forward(self, picture: Tensor) -> list[Tensor]:
        """(B, 2, 64, 64), patch and map, to the features of each scale, finest first."""
        features = [self.stem(picture)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        features[-1] = self.attention(features[-1])
        return features


class Finer(nn.Module):
    """Doubles the length of every axis: each place's channels become those of its 2² sub-pixels or 2³ sub-voxels.

    A transposed convolution of kernel and stride 2, as one matrix product.
    """

    def __init__(self, inputs: int, outputs: int, dims: int, bias: bool = False):
        super().__init__()
        self.outputs, self.dims = outputs, dims
        self.split = nn.Linear(inputs, outputs * 2**dims, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        b, _, *sides = x.shape
        parts = self.split(x.movedim(1, -1)).reshape(b, *sides, *(2,) * self.dims, self.outputs)
        order = [axis for i in range(1, self.dims + 1) for axis in (i, i + self.dims)]
        fine = parts.permute(0, *order, 2 * self.dims + 1).reshape(b, *(2 * n for n in sides), self.outputs)
        return fine.movedim(-1, 1)


class Decoder(nn.Module):
    """From the coarsest of several scales to the finest: each is added to what the coarser one makes of itself.

    Adding instead of concatenating leaves no convolution to do but those of one residual block a scale.

    Args:
        widths: channels at each scale, finest first.
        dims: 2 or 3.
    """

    def __init__(self, widths: tuple[int, ...], dims: int):
        super().__init__()
        self.finer = nn.ModuleList(Finer(b, a, dims) for a, b in pairwise(widths))
        self.blocks = nn.ModuleList(nn.Sequential(norm_act(a, dims), Residual(a, dims)) for a in widths[:-1])

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Features of each scale, finest first, to as many that know of all the coarser ones."""
        found = [features[-1]]
        for finer, block, own in zip(self.finer[::-1], self.blocks[::-1], features[-2::-1], strict=True):
            found.append(block(finer(found[-1]) + own))
        return found[::-1]


class Growth(nn.Module):
    """Grows a picture's features along the axis it does not see, doubling it each time.

    A step is a transposed convolution of stride 2 in its sub-pixel form: a convolution makes twice the channels, which
    become twice the length. (torch's own transposed convolution returns NaN gradients on a length of one in bfloat16 on
    a CPU, now and then, and not the same each time.)
    """

    def __init__(self, channels: int, axis: int, doublings: int):
        super().__init__()
        self.axis = axis
        self.widen = nn.ModuleList(
            nn.Conv3d(channels, 2 * channels, 3, padding=1, bias=False) for _ in range(doublings)
        )
        self.act = nn.ModuleList(norm_act(channels, 3) for _ in range(doublings))

    def forward(self, x: Tensor) -> Tensor:
        along = 2 + self.axis
        x = x.unsqueeze(along)
        for widen, act in zip(self.widen, self.act, strict=True):
            pair = torch.stack(widen(x).chunk(2, dim=1), dim=along + 1)
            x = act(pair.flatten(along, along + 1))
        return x


class Lift(nn.Module):
    """Turns a picture's features into a volume in one step: channels become depth along the axis it does not see."""

    def __init__(self, inputs: int, channels: int, depth: int, axis: int):
        super().__init__()
        self.channels, self.depth, self.axis = channels, depth, axis
        self.spread = nn.Linear(inputs, channels * depth, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        volume = self.spread(x.movedim(1, -1)).reshape(b, h, w, self.depth, self.channels)
        return volume.permute(0, 4, 1, 3, 2) if self.axis == 1 else volume.permute(0, 4, 1, 2, 3)


class Head(nn.Module):
    """Logits at 64³ from features at 32³: eight sub-voxels each, plus the product of both views' full-size features.

    The product, a sum over `rank` of A_k(z, x) B_k(z, y), can say at 64³ what both pictures agree on, a visual hull,
    for the price of a matrix product.
    """

    def __init__(self, channels: int, picture_channels: int, rank: int = 24):
        super().__init__()
        self.voxels = Finer(channels, 1, 3, bias=True)
        self.ap = nn.Linear(picture_channels, rank)
        self.lateral = nn.Linear(picture_channels, rank)
        self.gain = nn.Parameter(torch.full((1,), 0.1))

    def forward(self, x: Tensor, ap: Tensor, lateral: Tensor) -> Tensor:
        product = torch.einsum("bzxk,bzyk->bzyx", self.ap(ap.movedim(1, -1)), self.lateral(lateral.movedim(1, -1)))
        return self.voxels(x) + self.gain * product.unsqueeze(1)


def to_ras(logits: Tensor) -> Tensor:
    """(B, 1, z, y, x) along the pictures to (B, 1, x, y, z) in RAS order."""
    return logits.flip(2, 3, 4).permute(0, 1, 4, 3, 2)


def blanked(picture: Tensor, maps: bool) -> Tensor:
    """A picture (B, 2, 64, 64) with its centroid map, or with zeros in its place."""
    return picture if maps else torch.cat([picture[:, :1], torch.zeros_like(picture[:, 1:])], dim=1)
