"""TransVert, its critic, and this companion's own faster network; from two radiographs to one vertebra in 3D.

What is known of the paper's network (its code and weights are not public): per view the image patch and an image that
marks the centroid, so four 2D inputs; one encoder a view; fusion; a 3D decoder; self-attention; and a least-squares
adversarial term beside the voxel loss. Channel counts, depths and everything below are this companion's choices.

| paper | here |
|---|---|
| AP and lateral image, AP and lateral vertebral annotation | `images[:, view, (patch, map)]` |
| AP and lateral encoder | `TransVert.encoders` |
| map-and-fuse block with anisotropic convolutions | `Growth`, `TransVert.fuse` |
| self-attention | `Attention` |
| decoder | `TransVert.decode` |
| discriminator of the least-squares GAN | `Critic` |

Inside a network a volume is `[z, y, x]` with every axis running the way the pictures run: head to feet, front to back,
right to left. So an AP picture is `[z, x]` and a lateral one `[z, y]`, without a flip; the result is turned to RAS
`[x, y, z]` at the very end.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from transvert.files import InputError, atomic_path


def _norm_act(channels: int, dims: int) -> nn.Sequential:
    norm = nn.BatchNorm2d(channels) if dims == 2 else nn.BatchNorm3d(channels)
    return nn.Sequential(norm, nn.ReLU(inplace=True))


def _conv(inputs: int, outputs: int, dims: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    conv = (nn.Conv2d if dims == 2 else nn.Conv3d)(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, _norm_act(outputs, dims))


class Residual(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, channels: int, dims: int):
        super().__init__()
        self.body = nn.Sequential(_conv(channels, channels, dims), _conv(channels, channels, dims))

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


class Encoder(nn.Module):
    """A picture to features at 64², 32² and 16² (and 8² where `deep`)."""

    def __init__(self, widths: tuple[int, ...], attention: bool):
        super().__init__()
        self.stem = nn.Sequential(_conv(2, widths[0], 2, kernel=7), Residual(widths[0], 2))
        self.stages = nn.ModuleList(
            nn.Sequential(_conv(a, b, 2, stride=2), Residual(b, 2), Residual(b, 2)) for a, b in pairwise(widths)
        )
        self.attention = Attention(widths[-1]) if attention else nn.Identity()

    def forward(self, picture: Tensor) -> list[Tensor]:
        features = [self.stem(picture)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        features[-1] = self.attention(features[-1])
        return features


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
        self.act = nn.ModuleList(_norm_act(channels, 3) for _ in range(doublings))

    def forward(self, x: Tensor) -> Tensor:
        along = 2 + self.axis
        x = x.unsqueeze(along)
        for widen, act in zip(self.widen, self.act, strict=True):
            pair = torch.stack(widen(x).chunk(2, dim=1), dim=along + 1)
            x = act(pair.flatten(along, along + 1))
        return x


class Head(nn.Module):
    """Logits at 64³ from features at 32³: eight sub-voxels each, plus the product of both views' full-size features."""

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


def _to_ras(logits: Tensor) -> Tensor:
    """(B, 1, z, y, x) along the pictures to (B, 1, x, y, z) in RAS order."""
    return logits.flip(2, 3, 4).permute(0, 1, 4, 3, 2)


class TransVert(nn.Module):
    """The paper's form: one encoder a view, anisotropic growth to 3D, fusion, a 3D decoder.

    Args:
        width: channels at 16² and 16³.
        attention: self-attention at the encoders' end.
        maps: whether the centroid maps are seen; False blanks them (an ablation).
    """

    def __init__(self, width: int = 64, attention: bool = True, maps: bool = True):
        super().__init__()
        self.maps = maps
        widths = (width // 4, width // 2, width)
        self.encoders = nn.ModuleList(Encoder(widths, attention) for _ in range(2))
        # The AP picture does not see y, the lateral one does not see x: axes 1 and 2 of [z, y, x].
        self.grow = nn.ModuleList(Growth(width, axis, doublings=4) for axis in (1, 2))
        self.fuse = _conv(2 * width, width, 3)
        self.decode = nn.Sequential(
            Residual(width, 3),
            Residual(width, 3),
            nn.ConvTranspose3d(width, width // 2, 2, 2, bias=False),
            _norm_act(width // 2, 3),
            Residual(width // 2, 3),
        )
        self.head = Head(width // 2, widths[0])

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 2, 2, 64, 64) to logits (B, 1, 64, 64, 64), RAS order."""
        ap, lateral = (encode(_blanked(images[:, v], self.maps)) for v, encode in enumerate(self.encoders))
        grown = [grow(features[-1]) for grow, features in zip(self.grow, (ap, lateral), strict=True)]
        solid = self.decode(self.fuse(torch.cat(grown, dim=1)))
        return _to_ras(self.head(solid, ap[0], lateral[0]))


class Lift(nn.Module):
    """Turns a picture's features into a volume in one step: channels become depth along the axis it does not see."""

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
        self.encoders = nn.ModuleList(Encoder(widths, attention) for _ in range(2))
        solid = (width // 4, width // 2, width)
        lifted = (12, 24, 48)
        sides = (32, 16, 8)
        self.lifts = nn.ModuleList(
            nn.ModuleList(Lift(w, c, n, axis) for axis in (1, 2))
            for w, c, n in zip(widths[1:], lifted, sides, strict=True)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(_conv(2 * c + up, s, 3), Residual(s, 3))
            for c, s, up in zip(lifted, solid, (solid[0], solid[1], 0), strict=True)
        )
        self.ups = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose3d(a, b, 2, 2, bias=False), _norm_act(b, 3))
            for a, b in ((solid[1], solid[0]), (solid[2], solid[1]))
        )
        self.head = Head(solid[0], widths[0])

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 2, 2, 64, 64) to logits (B, 1, 64, 64, 64), RAS order."""
        pyramids = [encode(_blanked(images[:, v], self.maps)) for v, encode in enumerate(self.encoders)]
        x: Tensor | None = None
        for scale in (2, 1, 0):
            parts = [
                lift(pyramid[scale + 1])
                for lift, pyramid in zip(cast(nn.ModuleList, self.lifts[scale]), pyramids, strict=True)
            ]
            if x is not None:
                parts.append(self.ups[scale](x))
            x = self.blocks[scale](torch.cat(parts, dim=1).contiguous(memory_format=torch.channels_last_3d))
        return _to_ras(self.head(x, pyramids[0][0], pyramids[1][0]))


class Critic(nn.Module):
    """Scores a vertebra (B, 1, 64, 64, 64) on a coarse grid, for the least-squares adversarial term."""

    def __init__(self, width: int = 16):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for step in range(4):
            outputs = width * 2**step
            layers += [nn.Conv3d(channels, outputs, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
            channels = outputs
        self.layers = nn.Sequential(*layers, nn.Conv3d(channels, 1, 1))

    def forward(self, volume: Tensor) -> Tensor:
        return self.layers(volume)


def _blanked(picture: Tensor, maps: bool) -> Tensor:
    return picture if maps else torch.cat([picture[:, :1], torch.zeros_like(picture[:, 1:])], dim=1)


NETWORKS: dict[str, type[nn.Module]] = {"transvert": TransVert, "transvert_lift": TransVertLift}


def build(name: str, **options: Any) -> nn.Module:
    """A network by its name in `NETWORKS`, in the memory layout that 3D convolutions on a CPU like.

    Raises:
        InputError: no such network, or an option it does not have.
    """
    if name not in NETWORKS:
        raise InputError(f"'{name}' is not a network; use {' or '.join(NETWORKS)}.")
    try:
        network = NETWORKS[name](**options)
    except TypeError as error:
        raise InputError(f"The network '{name}' can't be built: {error}.") from None
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in network.parameters():
        if parameter.dim() in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.dim()])
    return network


def save_weights(
    path: str | Path, network: nn.Module, name: str, options: dict[str, Any], *, half: bool = False, **card: Any
) -> Path:
    """Writes a network's weights as safetensors, with what is needed to build it again in the file's metadata.

    Args:
        path: the file.
        network: a network of `NETWORKS`.
        name: its key, and `options`: what it was built with.
        half: store float16, half the size; a shipped file's choice.
        **card: anything JSON that should travel with the weights.
    """
    dtype = torch.float16 if half else torch.float32
    tensors = {
        key: (value.to(dtype) if value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in network.state_dict().items()
    }
    metadata = {
        "format": "transvert-weights/1",
        "network": name,
        "options": json.dumps(options),
        "card": json.dumps(card),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)
    return Path(path)


def load_weights(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """A network from `save_weights`' file, in evaluation mode, and the card that came with it.

    Raises:
        InputError: no such file, not safetensors, or not of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"The weights {path} do not exist; train some with notebook 02 or `transvert train`.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path.name} is not a safetensors file, or is cut short ({error}).") from None
    if metadata.get("format") != "transvert-weights/1":
        raise InputError(f"{path.name} does not hold weights of this package.")
    network = build(metadata["network"], **json.loads(metadata["options"]))
    try:
        network.load_state_dict(tensors)
    except RuntimeError:
        raise InputError(f"{path.name} holds weights that do not fit the network '{metadata['network']}'.") from None
    return network.eval(), json.loads(metadata["card"]) | {"network": metadata["network"]}
