"""The network of the shipped weights: the four inputs lifted to 3D at every scale. `network.TransVertHull` follows it."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from transvert.blocks import Encoder, Residual, blanked, conv, norm_act, to_ras


class _Head(nn.Module):
    """As `blocks.Head`, by convolutions of kernel 1."""

    def __init__(self, channels: int, picture_channels: int, rank: int = 24):
        super().__init__()
        self.voxels = nn.Conv3d(channels, 8, 1)
        self.ap = nn.Conv2d(picture_channels, rank, 1)
        self.lateral = nn.Conv2d(picture_channels, rank, 1)
        self.gain = nn.Parameter(torch.full((1,), 0.1))

    def forward(self, x: Tensor, ap: Tensor, lateral: Tensor) -> Tensor:
        b, _, z, y, w = x.shape
        fine = self.voxels(x).reshape(b, 2, 2, 2, z, y, w).permute(0, 4, 1, 5, 2, 6, 3).reshape(b, 2 * z, 2 * y, 2 * w)
        product = torch.einsum("bkzx,bkzy->bzyx", self.ap(ap), self.lateral(lateral))
        return (fine + self.gain * product).unsqueeze(1)


class _Lift(nn.Module):
    """As `blocks.Lift`, by a convolution of kernel 1."""

    def __init__(self, inputs: int, channels: int, depth: int, axis: int):
        super().__init__()
        self.channels, self.depth, self.axis = channels, depth, axis
        self.project = nn.Conv2d(inputs, channels * depth, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        volume = self.project(x).reshape(b, self.channels, self.depth, h, w)
        return volume.transpose(2, 3) if self.axis == 1 else volume.permute(0, 1, 3, 4, 2)


class TransVertLift(nn.Module):
    """This companion's own: the same four inputs, lifted to 3D at every scale, so that the 3D part can stay small.

    Args:
        width: channels at the coarsest 3D scale (8³); halved at each finer one.
        attention: self-attention at the encoders' end.
        maps: whether the centroid maps are seen; False blanks them.
    """

    def __init__(self, width: int = 128, attention: bool = True, maps: bool = True):
        super().__init__()
        self.maps = maps
        widths = (24, 48, 96, 128)
        self.encoders = nn.ModuleList(Encoder(widths, (1, 2, 2, 2), attention=attention) for _ in range(2))
        solid = (width // 4, width // 2, width)
        lifted = (12, 24, 48)
        sides = (32, 16, 8)
        self.lifts = nn.ModuleList(
            nn.ModuleList(_Lift(w, c, n, axis) for axis in (1, 2))
            for w, c, n in zip(widths[1:], lifted, sides, strict=True)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(2 * c + up, s, 3), Residual(s, 3))
            for c, s, up in zip(lifted, solid, (solid[0], solid[1], 0), strict=True)
        )
        self.ups = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose3d(a, b, 2, 2, bias=False), norm_act(b, 3))
            for a, b in ((solid[1], solid[0]), (solid[2], solid[1]))
        )
        self.head = _Head(solid[0], widths[0])

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 2, 2, 64, 64) to logits (B, 1, 64, 64, 64), RAS order."""
        pyramids = [encode(blanked(images[:, v], self.maps)) for v, encode in enumerate(self.encoders)]
        x: Tensor | None = None
        for scale in (2, 1, 0):
            parts = [
                lift(pyramid[scale + 1])
                for lift, pyramid in zip(cast(nn.ModuleList, self.lifts[scale]), pyramids, strict=True)
            ]
            if x is not None:
                parts.append(self.ups[scale](x))
            x = self.blocks[scale](torch.cat(parts, dim=1).contiguous(memory_format=torch.channels_last_3d))
        return to_ras(self.head(x, pyramids[0][0], pyramids[1][0]))
