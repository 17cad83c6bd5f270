"""What the networks are built of.

Inside a network a volume is `[z, y, x]` with every axis running the way the pictures run: head to feet, front to back,
right to left. So an AP picture is `[z, x]` and a lateral one `[z, y]`, without a flip; the result is turned to RAS
`[x, y, z]` at the very end, by `to_ras`.

Layers of one pixel's or voxel's channels alone are `nn.Linear` with the channels last, not convolutions of kernel 1:
on a CPU those hand back tensors with the channels first, and every layer around them waits for copies.


TransVert and its critic, this companion's own faster networks, and all networks by name with their weights in files.

What is known of the paper's network (its code and weights are not public): per view the image patch and an image that
marks the centroid, so four 2D inputs; one encoder a view; fusion; a 3D decoder; self-attention; and a least-squares
adversarial term beside the voxel loss. Channel counts, depths and everything below are this companion's choices.

| paper | here |
|---|---|
| AP and lateral image, AP and lateral vertebral annotation | `images[:, view, (patch, map)]` |
| AP and lateral encoder | `TransVert.encoders` |
| map-and-fuse block with anisotropic convolutions | `blocks.Growth`, `TransVert.fuse` |
| self-attention | `blocks.Attention`, at the encoders' end |
| decoder | `TransVert.decode` |
| discriminator of the least-squares GAN | `Critic` |

"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from transvert.io import PACKAGE, InputError, atomic_path


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


class CrossViewAttention(nn.Module):
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


class SubpixelUpsample(nn.Module):
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
        self.finer = nn.ModuleList(SubpixelUpsample(b, a, dims) for a, b in pairwise(widths))
        self.blocks = nn.ModuleList(nn.Sequential(norm_act(a, dims), Residual(a, dims)) for a in widths[:-1])

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Features of each scale, finest first, to as many that know of all the coarser ones."""
        found = [features[-1]]
        for finer, block, own in zip(self.finer[::-1], self.blocks[::-1], features[-2::-1], strict=True):
            found.append(block(finer(found[-1]) + own))
        return found[::-1]


class AxisExpansion(nn.Module):
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


class ViewLift(nn.Module):
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
        self.voxels = SubpixelUpsample(channels, 1, 3, bias=True)
        self.ap = nn.Linear(picture_channels, rank)
        self.lateral = nn.Linear(picture_channels, rank)
        self.gain = nn.Parameter(torch.full((1,), 0.1))

    def forward(self, x: Tensor, ap: Tensor, lateral: Tensor) -> Tensor:
        product = torch.einsum("bzxk,bzyk->bzyx", self.ap(ap.movedim(1, -1)), self.lateral(lateral.movedim(1, -1)))
        return self.voxels(x) + self.gain * product.unsqueeze(1)


def to_ras(logits: Tensor) -> Tensor:
    """(B, 1, z, y, x) along the pictures to (B, 1, x, y, z) in RAS order."""
    return logits.flip(2, 3, 4).permute(0, 1, 4, 3, 2)


def drop_maps(picture: Tensor, maps: bool) -> Tensor:
    """A picture (B, 2, 64, 64) with its centroid map, or with zeros in its place."""
    return picture if maps else torch.cat([picture[:, :1], torch.zeros_like(picture[:, 1:])], dim=1)


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
        self.encoders = nn.ModuleList(Encoder(widths, (1, 2, 2), attention=attention) for _ in range(2))
        # The AP picture does not see y, the lateral one does not see x: axes 1 and 2 of [z, y, x].
        self.grow = nn.ModuleList(AxisExpansion(width, axis, doublings=4) for axis in (1, 2))
        self.fuse = conv(2 * width, width, 3)
        self.decode = nn.Sequential(
            Residual(width, 3),
            Residual(width, 3),
            SubpixelUpsample(width, width // 2, 3),
            norm_act(width // 2, 3),
            Residual(width // 2, 3),
        )
        self.head = Head(width // 2, widths[0])

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 2, 2, 64, 64) to logits (B, 1, 64, 64, 64), RAS order."""
        ap, lateral = (encode(drop_maps(images[:, v], self.maps)) for v, encode in enumerate(self.encoders))
        grown = [grow(features[-1]) for grow, features in zip(self.grow, (ap, lateral), strict=True)]
        solid = self.decode(self.fuse(torch.cat(grown, dim=1)))
        return to_ras(self.head(solid, ap[0], lateral[0]))


class TransVertHull(nn.Module):
    """This companion's own: both pictures read to the end in 2D, where it is cheap, and met in 3D at every scale.

    A U-shaped network a view, joined by attention across both views where they are coarsest, makes features that know
    which of the shadows is the vertebra. Lifted to 3D they are added, not concatenated, to what comes from the coarser
    scale, so that all of the 3D convolutions are those of residual blocks, and most of them at 8³ and 16³. The 64³ is
    left to the head: sub-voxels, and the product of both views, which is a visual hull.

    Args:
        width: channels at 8² and 8³.
        attention: attention over both views' pixels at 8².
        maps: whether the centroid maps are seen; False blanks them.
    """

    def __init__(self, width: int = 128, attention: bool = True, maps: bool = True):
        super().__init__()
        self.maps = maps
        flat = (width // 8, width // 4, width // 2, width)
        solid = (width // 4, width // 2, width)
        self.encoders = nn.ModuleList(Encoder(flat, (0, 1, 1, 2), kernel=5) for _ in range(2))
        self.exchange = CrossViewAttention(width) if attention else None
        self.decoders = nn.ModuleList(Decoder(flat, 2) for _ in range(2))
        # The AP picture does not see y, the lateral one does not see x: axes 1 and 2 of [z, y, x].
        self.ap_lifts, self.lateral_lifts = (
            nn.ModuleList(ViewLift(f, s, side, axis) for f, s, side in zip(flat[1:], solid, (32, 16, 8), strict=True))
            for axis in (1, 2)
        )
        self.first = nn.Sequential(norm_act(solid[-1], 3), Residual(solid[-1], 3), Residual(solid[-1], 3))
        self.decode = Decoder(solid, 3)
        self.head = Head(solid[0], flat[0])

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 2, 2, 64, 64) to logits (B, 1, 64, 64, 64), RAS order."""
        ap, lateral = (encode(drop_maps(images[:, v], self.maps)) for v, encode in enumerate(self.encoders))
        if self.exchange is not None:
            ap[-1], lateral[-1] = self.exchange(ap[-1], lateral[-1])
        ap, lateral = (decode(features) for decode, features in zip(self.decoders, (ap, lateral), strict=True))
        # The lateral one first: the sum takes over its memory order, channels last.
        lifted = [
            lift_lateral(b) + lift_ap(a)
            for lift_ap, lift_lateral, a, b in zip(self.ap_lifts, self.lateral_lifts, ap[1:], lateral[1:], strict=True)
        ]
        lifted[-1] = self.first(lifted[-1])
        return to_ras(self.head(self.decode(lifted)[0], ap[0], lateral[0]))


class Discriminator(nn.Module):
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


NETWORKS: dict[str, type[nn.Module]] = {
    "transvert": TransVert,
    "transvert_hull": TransVertHull,
}
"""The paper's form, this companion's own, and those to compare with."""


def drop_views(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Takes one of the two views away from some samples, so that a network learns to do with the other.

    A missing view is all zeros, patch and centroid map. The map tells a network so: that of a view that is there peaks
    at its landmark, or beyond the patch's rim in a film that is cut there, where the patch itself is not zero.

    Args:
        images: (B, 2, 2, 64, 64) float32; not changed.
        share: of the samples that lose a view, 0 to 1; AP and lateral are as likely.
        generator: on the CPU, seeded by the step, so that equal steps lose equal views on every device.

    Returns:
        (B, 2, 2, 64, 64) float32.
    """
    count = len(images)
    gone = torch.zeros(count, 2, dtype=torch.bool)
    gone[torch.arange(count), torch.randint(2, (count,), generator=generator)] = True
    gone &= (torch.rand(count, generator=generator) < share)[:, None]
    return images.masked_fill(gone.to(images.device)[:, :, None, None, None], 0)


def build_network(name: str, **options: Any) -> nn.Module:
    """A network by its name in `NETWORKS`, in the memory layout that 3D convolutions on a CPU like.

    Raises:
        InputError: no such network, or an option it does not have.
    """
    if name not in NETWORKS:
        raise InputError(f"'{name}' is not a network; use one of {', '.join(NETWORKS)}.")
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
        temporary.write_bytes(save(tensors, metadata))
    return Path(path)


def load_weights(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """A network from `save_weights`' file, in evaluation mode, and the card that came with it.

    Raises:
        InputError: no such file, not safetensors, or not of this package.
    """
    metadata, tensors = _read_weights(Path(path))
    network = build_network(metadata["network"], **json.loads(metadata["options"]))
    try:
        network.load_state_dict(tensors)
    except RuntimeError:
        raise InputError(
            f"{Path(path).name} holds weights that do not fit the network '{metadata['network']}'."
        ) from None
    return network.eval(), json.loads(metadata["card"]) | {"network": metadata["network"]}


def add_to_card(path: str | Path, **more: Any) -> None:
    """Writes more into the card of a file of `save_weights`; the weights stay as they are, to the bit.

    Raises:
        InputError: as `load_weights`.
    """
    load_weights(path)
    metadata, tensors = _read_weights(Path(path))
    card = json.dumps(json.loads(metadata["card"]) | more)
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata | {"card": card}))


def _read_weights(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """The metadata and the tensors of a file of `save_weights`."""
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
    return metadata, tensors


SHIPPED_WEIGHTS = PACKAGE / "weights" / "transvert_hull.safetensors"


def load_network(weights: str | Path | None) -> tuple[nn.Module, dict[str, Any]]:
    """A trained network and its card: from a file, or the shipped one for None or "shipped"."""
    return load_weights(SHIPPED_WEIGHTS if weights in (None, "", "shipped") else Path(weights))
