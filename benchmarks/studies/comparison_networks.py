"""Comparison networks, written from their descriptions, with the interface of `transvert.model.networks`.

A public benchmark of X-ray to 3D networks measures them at 64³ (Shakya and Khanal, arXiv 2309.13587). Images are
(B, 2, 4, 64, 64), logits (B, 1, 64, 64, 64) in RAS order. `maps=False` leaves out the centroid maps, as published.
Importing this module registers the networks.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from transvert.model import networks
from transvert.model.networks import conv, to_ras


def _inputs(images: Tensor, maps: bool) -> tuple[Tensor, Tensor]:
    """The AP and the lateral picture, each (B, 1 or 2, N, N)."""
    seen = images[:, :, : 2 if maps else 1]
    return seen[:, 0], seen[:, 1]


def _layer(layer: nn.Module, channels: int, dims: int, dropout: float) -> nn.Sequential:
    """A convolution with normalisation, dropout and ReLU, as in `TwoDPermuteConcat`."""
    norm = nn.BatchNorm2d(channels) if dims == 2 else nn.BatchNorm3d(channels)
    return nn.Sequential(layer, norm, nn.Dropout(dropout), nn.ReLU(inplace=True))


def _transposed(inputs: int, outputs: int, stride: tuple[int, int, int], dropout: float) -> nn.Sequential:
    """A transposed convolution of kernel 3 that lengthens each axis by its stride."""
    surplus = (stride[0] - 1, stride[1] - 1, stride[2] - 1)
    return _layer(nn.ConvTranspose3d(inputs, outputs, 3, stride, 1, surplus), outputs, 3, dropout)


class TwoDPermuteConcat(nn.Module):
    """The public port of the paper's network: separate encoders, axis expansion, concatenation, decoder.

    Two encoders of six 7 x 7 convolutions with strides 2-2-1-1-1-1; a singleton axis expanded by transposed convolutions,
    log2(N) - 2 times; a decoder of four convolutions, two transposed ones, and one of kernel 7. 1,194,049 parameters
    with `maps=False`, as published; the centroid maps add 1,568.

    Args:
        width: channels of the first layer; the published 16.
        maps: use the centroid maps as a second input channel.
        size: pixels a side of the pictures and voxels a side of the volume, a power of two.
        dropout: after each normalisation.
    """

    def __init__(self, width: int = 16, maps: bool = True, size: int = 64, dropout: float = 0.1):
        super().__init__()
        self.maps = maps
        widths = (1 + maps, width, *(2 * width,) * 5)
        strides = (2, 2, 1, 1, 1, 1)
        self.encoders = nn.ModuleList(
            nn.Sequential(
                *(
                    _layer(nn.Conv2d(a, b, 7, stride, 3), b, 2, dropout)
                    for (a, b), stride in zip(pairwise(widths), strides, strict=True)
                )
            )
            for _ in range(2)
        )
        doublings = int(math.log2(size)) - 2
        self.grow = nn.ModuleList(
            nn.Sequential(*(_transposed(2 * width, 2 * width, stride, dropout) for _ in range(doublings)))
            for stride in ((1, 2, 1), (1, 1, 2))
        )
        self.decode = nn.Sequential(
            *(_layer(nn.Conv3d(4 * width, 4 * width, 3, 1, 1), 4 * width, 3, dropout) for _ in range(4)),
            _transposed(4 * width, 2 * width, (2, 2, 2), dropout),
            _transposed(2 * width, width, (2, 2, 2), dropout),
            nn.Conv3d(width, 1, 7, 1, 3),
        )

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 2, 4, N, N) to logits (B, 1, N, N, N), RAS order."""
        # The axes of (batch, channel, z, y, x) that the AP and the lateral picture do not see.
        grown = [
            grow(encode(picture).unsqueeze(axis))
            for grow, encode, picture, axis in zip(
                self.grow, self.encoders, _inputs(images, self.maps), (3, 4), strict=True
            )
        ]
        return to_ras(self.decode(torch.cat(grown, dim=1)))


class OneDConcat(nn.Module):
    """One vector per picture; both vectors, concatenated, become a volume.

    Published are the idea and the size, 40.6 million parameters. The layers are this companion's, chosen for that size:
    nothing but the vectors connects pictures and volume, so it can keep no place of what it sees.

    Args:
        width: channels of the first layer; the vector of a picture is 16 times as long.
        maps: use the centroid maps as a second input channel.
    """

    def __init__(self, width: int = 32, maps: bool = True):
        super().__init__()
        self.maps, self.solid = maps, 16 * width
        widths = (1 + maps, width, 2 * width, 4 * width, 8 * width)
        self.encoders = nn.ModuleList(
            nn.Sequential(
                *(conv(a, b, 2, stride=2) for a, b in pairwise(widths)),
                nn.Flatten(),
                nn.Linear(8 * width * 4**2, 16 * width),
                nn.ReLU(),
            )
            for _ in range(2)
        )
        self.spread = nn.Linear(2 * 16 * width, self.solid * 4**3)
        steps = (self.solid, 4 * width, 2 * width, width, width // 2)
        self.decode = nn.Sequential(
            nn.ReLU(),
            *(_transposed(a, b, (2, 2, 2), 0.0) for a, b in pairwise(steps)),
            nn.Conv3d(width // 2, 1, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 2, 4, 64, 64) to logits (B, 1, 64, 64, 64), RAS order."""
        vectors = [encode(picture) for encode, picture in zip(self.encoders, _inputs(images, self.maps), strict=True)]
        volume = self.spread(torch.cat(vectors, dim=1)).reshape(-1, self.solid, 4, 4, 4)
        return to_ras(self.decode(volume))


class AttentionUnet(nn.Module):
    """MONAI's AttentionUnet, a 3D network, on both pictures, each repeated along the axis that it does not see.

    Five scales give the published 1.5 million parameters.

    Args:
        width: channels at 64³, doubled at each of four coarser scales.
        maps: whether the centroid maps are input channels as well.
    """

    def __init__(self, width: int = 8, maps: bool = True):
        super().__init__()
        from monai.networks import nets  # Takes seconds.

        self.maps = maps
        channels = [width * 2**scale for scale in range(5)]
        self.unet = nets.AttentionUnet(3, 2 + 2 * maps, 1, channels, strides=(2,) * 4)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 2, 4, 64, 64) to logits (B, 1, 64, 64, 64), RAS order."""
        ap, lateral = _inputs(images, self.maps)
        size = images.shape[-1]
        ap = ap.unsqueeze(3).expand(-1, -1, -1, size, -1)
        lateral = lateral.unsqueeze(4).expand(-1, -1, -1, -1, size)
        return to_ras(self.unet(torch.cat([ap, lateral], dim=1)))


networks.NETWORKS |= {
    "twod_permute_concat": TwoDPermuteConcat,
    "oned_concat": OneDConcat,
    "attention_unet": AttentionUnet,
}
