"""The networks by name, their layers, and their weights in files.

The paper's code and weights are not public. Known are four 2D inputs (a patch and a centroid map per view), an encoder
per view, fusion, a 3D decoder, self-attention and a least-squares adversarial term; all else is this companion's choice.

| paper | `TransVert`, the paper's form | `TransVertHull`, this companion's own |
|---|---|---|
| image and annotation per view | `images[:, view, (patch, map)]` | the neighbours' map and the level too |
| encoder per view | `encoders` | `encoders`, `decoders` |
| self-attention | `Attention` at each encoder's end | `CrossViewAttention` over both views |
| map-and-fuse block, anisotropic | `AxisExpansion`, `fuse` | `ViewLift` at three scales, added |
| decoder | `decode`, `head` | `decode`, `head` |

Inside a network a volume is `[z, y, x]`, and each axis runs as in the pictures: head to feet, front to back, right to
left. So an AP picture is `[z, x]` and a lateral one `[z, y]`. `to_ras` turns the result to RAS. Layers over channels
alone are `nn.Linear`: a convolution of kernel 1 on a CPU returns tensors with the channels first, and costs copies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from transvert.io import PACKAGE, InputError, atomic_path, parse_json

SHIPPED_WEIGHTS = PACKAGE / "weights" / "transvert_hull.safetensors"
RESEARCH_WEIGHTS = PACKAGE / "weights" / "transvert_research.safetensors"
"""Weights that learned from research-only data too, which their card's `licence` states."""
_FORMAT = "transvert-weights/1"
_SCALE = ".scale"  # Ends the name of an int8 tensor's scales.
_HEADS = 4  # Of the attention.


def norm_act(channels: int, dims: int) -> nn.Sequential:
    """Batch normalisation in 2D or 3D and a ReLU."""
    norm = nn.BatchNorm2d(channels) if dims == 2 else nn.BatchNorm3d(channels)
    return nn.Sequential(norm, nn.ReLU(inplace=True))


def conv(inputs: int, outputs: int, dims: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A 2D or 3D convolution without bias, batch normalisation and a ReLU."""
    layer = (nn.Conv2d if dims == 2 else nn.Conv3d)(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(layer, norm_act(outputs, dims))


class Residual(nn.Module):
    """Two convolutions with a skip connection."""

    def __init__(self, channels: int, dims: int):
        super().__init__()
        self.body = nn.Sequential(conv(channels, channels, dims), conv(channels, channels, dims))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Attention(nn.Module):
    """Self-attention over the pixels of a feature map (B, C, H, W), added with a learned gain that starts at 0."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        q, k, v = self.qkv(tokens).reshape(b, h * w, 3, _HEADS, c // _HEADS).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, c)
        return x + self.gain * self.out(mixed).transpose(1, 2).reshape(b, c, h, w)


class CrossViewAttention(nn.Module):
    """Self-attention over the pixels of both views side by side, with a learned embedding per pixel."""

    def __init__(self, channels: int, side: int = 8):
        super().__init__()
        self.places = nn.Parameter(torch.empty(channels, side, 2 * side))
        if not self.places.is_meta:  # There torch would import its compiler, which takes seconds (`load_weights`).
            nn.init.normal_(self.places, std=0.02)
        self.attention = Attention(channels)

    def forward(self, ap: Tensor, lateral: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.attention(torch.cat([ap, lateral], dim=3) + self.places).chunk(2, dim=3)
        return first, second


class Encoder(nn.Module):
    """Features of a picture at 64², 32² and so on: `widths` channels and `depths` residual blocks at each scale.

    `kernel` is the size of the first convolution. With `attention` the coarsest scale ends in self-attention.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        *,
        inputs: int = 2,
        kernel: int = 7,
        attention: bool = False,
    ):
        super().__init__()
        first = conv(inputs, widths[0], 2, kernel)
        self.stem = nn.Sequential(first, *(Residual(widths[0], 2) for _ in range(depths[0])))
        self.stages = nn.ModuleList(
            nn.Sequential(conv(a, b, 2, stride=2), *(Residual(b, 2) for _ in range(depth)))
            for (a, b), depth in zip(pairwise(widths), depths[1:], strict=True)
        )
        self.attention = Attention(widths[-1]) if attention else nn.Identity()

    def forward(self, picture: Tensor) -> list[Tensor]:
        """Patch and maps (B, inputs, 64, 64) to the features of each scale, finest first."""
        features = [self.stem(picture)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        features[-1] = self.attention(features[-1])
        return features


class SubpixelUpsample(nn.Module):
    """Doubles every axis: a transposed convolution of kernel and stride 2 in 2D or 3D, as one matrix product."""

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
    """From the coarsest scale to the finest: each is added to the upsampled coarser one (`widths`: finest first).

    Added and not concatenated, so that each scale needs the convolutions of one residual block alone.
    """

    def __init__(self, widths: tuple[int, ...], dims: int):
        super().__init__()
        self.finer = nn.ModuleList(SubpixelUpsample(b, a, dims) for a, b in pairwise(widths))
        self.blocks = nn.ModuleList(nn.Sequential(norm_act(a, dims), Residual(a, dims)) for a in widths[:-1])

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Features of each scale, finest first, to as many that include those of all coarser scales."""
        found = [features[-1]]
        for finer, block, own in zip(self.finer[::-1], self.blocks[::-1], features[-2::-1], strict=True):
            found.append(block(finer(found[-1]) + own))
        return found[::-1]


class AxisExpansion(nn.Module):
    """Expands a picture's features along the axis that its view does not show, doubling the length each time.

    Each step is an anisotropic transposed convolution of stride 2 in sub-pixel form. (PyTorch's own sometimes returns NaN
    gradients in bfloat16 on a CPU.)
    """

    def __init__(self, channels: int, axis: int, doublings: int):
        super().__init__()
        self.axis, steps = axis, range(doublings)
        self.widen = nn.ModuleList(nn.Conv3d(channels, 2 * channels, 3, padding=1, bias=False) for _ in steps)
        self.act = nn.ModuleList(norm_act(channels, 3) for _ in steps)

    def forward(self, x: Tensor) -> Tensor:
        along = 2 + self.axis
        x = x.unsqueeze(along)
        for widen, act in zip(self.widen, self.act, strict=True):
            pair = torch.stack(widen(x).chunk(2, dim=1), dim=along + 1)
            x = act(pair.flatten(along, along + 1))
        return x


class ViewLift(nn.Module):
    """Turns a picture's features into a volume: channels become depth along the axis that its view does not show."""

    def __init__(self, inputs: int, channels: int, depth: int, axis: int):
        super().__init__()
        self.channels, self.depth, self.axis = channels, depth, axis
        self.spread = nn.Linear(inputs, channels * depth, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        volume = self.spread(x.movedim(1, -1)).reshape(b, h, w, self.depth, self.channels)
        return volume.permute(0, 4, 1, 3, 2) if self.axis == 1 else volume.permute(0, 4, 1, 2, 3)


class LevelEmbedding(nn.Module):
    """A vector for a vertebra's level that changes smoothly along the spine; zero where the level is unknown."""

    def __init__(self, channels: int, centres: int = 13):
        super().__init__()
        self.centres: Tensor
        # torch.linspace would import the compiler too.
        places = [1 + 24 * i / (centres - 1) for i in range(centres)]
        self.register_buffer("centres", torch.tensor(places), persistent=False)
        self.project = nn.Linear(centres, channels)

    def forward(self, code: Tensor) -> Tensor:
        """`patches.level_code` (B,) to (B, channels)."""
        near = torch.exp(-0.5 * ((code[:, None] - self.centres) / 2) ** 2)
        return self.project(near) * (code > 0)[:, None]


class Head(nn.Module):
    """Logits at 64³ from features at 32³: eight sub-voxels each, plus the product of both views' 64² features.

    The product, a sum over `rank` of A_k(z, x) B_k(z, y), is a learned visual hull for the cost of a matrix product.
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
    """Turns logits (B, 1, z, y, x) along the pictures to (B, 1, x, y, z) in RAS order."""
    return logits.flip(2, 3, 4).permute(0, 1, 4, 3, 2)


def drop_maps(picture: Tensor, maps: bool) -> Tensor:
    """A picture (B, C, 64, 64) with its maps, or with zeros in their place."""
    return picture if maps else torch.cat([picture[:, :1], torch.zeros_like(picture[:, 1:])], dim=1)


class TransVert(nn.Module):
    """The paper's form: an encoder per view, anisotropic expansion to 3D, fusion, a 3D decoder.

    `width` is the number of channels at 16² and 16³. Without `maps` the centroid maps are blank (an ablation).
    """

    def __init__(self, width: int = 64, attention: bool = True, maps: bool = True):
        super().__init__()
        self.maps = maps
        widths = (width // 4, width // 2, width)
        self.encoders = nn.ModuleList(Encoder(widths, (1, 2, 2), attention=attention) for _ in range(2))
        # The AP view does not show y, the lateral view does not show x: axes 1 and 2 of [z, y, x].
        self.grow = nn.ModuleList(AxisExpansion(width, axis, doublings=4) for axis in (1, 2))
        self.fuse = conv(2 * width, width, 3)
        self.decode = nn.Sequential(
            *(Residual(width, 3), Residual(width, 3), SubpixelUpsample(width, width // 2, 3)),
            *(norm_act(width // 2, 3), Residual(width // 2, 3)),
        )
        self.head = Head(width // 2, widths[0])

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 2, 4, 64, 64) to logits (B, 1, 64, 64, 64), RAS order; the context is not used."""
        ap, lateral = (encode(drop_maps(images[:, v, :2], self.maps)) for v, encode in enumerate(self.encoders))
        grown = [grow(features[-1]) for grow, features in zip(self.grow, (ap, lateral), strict=True)]
        solid = self.decode(self.fuse(torch.cat(grown, dim=1)))
        return to_ras(self.head(solid, ap[0], lateral[0]))


class TransVertHull(nn.Module):
    """This companion's own network: most of the work in 2D, where it is cheap, and a fusion in 3D at every scale.

    A U-shaped 2D network per view, with attention across both views at the coarsest scale, finds the vertebra. Its
    features are lifted to 3D and added at 32³, 16³ and 8³. 64³ is left to the head. `width` is the number of channels at
    8² and 8³. With `context` the network also gets the neighbours' centroids and the level.
    Without `maps` it gets no centroid at all.
    """

    def __init__(self, width: int = 128, attention: bool = True, maps: bool = True, context: bool = True):
        super().__init__()
        self.maps, self.inputs = maps, 3 if context else 2
        self.levels = nn.ModuleList(LevelEmbedding(width) for _ in range(3)) if context else None
        flat = (width // 8, width // 4, width // 2, width)
        solid = (width // 4, width // 2, width)
        self.encoders = nn.ModuleList(Encoder(flat, (0, 1, 1, 2), inputs=self.inputs, kernel=5) for _ in range(2))
        self.exchange = CrossViewAttention(width) if attention else None
        self.decoders = nn.ModuleList(Decoder(flat, 2) for _ in range(2))
        # The AP view does not show y, the lateral view does not show x: axes 1 and 2 of [z, y, x].
        self.ap_lifts, self.lateral_lifts = (
            nn.ModuleList(ViewLift(f, s, side, axis) for f, s, side in zip(flat[1:], solid, (32, 16, 8), strict=True))
            for axis in (1, 2)
        )
        self.first = nn.Sequential(norm_act(solid[-1], 3), Residual(solid[-1], 3), Residual(solid[-1], 3))
        self.decode = Decoder(solid, 3)
        self.head = Head(solid[0], flat[0])

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 2, 4, 64, 64) to logits (B, 1, 64, 64, 64), RAS order."""
        seen = images[:, :, : self.inputs]
        ap, lateral = (encode(drop_maps(seen[:, v], self.maps)) for v, encode in enumerate(self.encoders))
        if self.levels is not None:
            # Zero where a view is missing, so the larger one.
            in_ap, in_lateral, in_solid = (embed(images[:, :, 3].amax((1, 2, 3))) for embed in self.levels)
            ap[-1] = ap[-1] + in_ap[:, :, None, None]
            lateral[-1] = lateral[-1] + in_lateral[:, :, None, None]
        if self.exchange is not None:
            ap[-1], lateral[-1] = self.exchange(ap[-1], lateral[-1])
        ap, lateral = (decode(features) for decode, features in zip(self.decoders, (ap, lateral), strict=True))
        # The lateral features first: the sum takes their memory order, channels last.
        lifted = [
            lift_lateral(b) + lift_ap(a)
            for lift_ap, lift_lateral, a, b in zip(self.ap_lifts, self.lateral_lifts, ap[1:], lateral[1:], strict=True)
        ]
        if self.levels is not None:
            lifted[-1] = lifted[-1] + in_solid[:, :, None, None, None]
        lifted[-1] = self.first(lifted[-1])
        return to_ras(self.head(self.decode(lifted)[0], ap[0], lateral[0]))


class Discriminator(nn.Module):
    """Scores a vertebra (B, 1, 64, 64, 64) on a 4³ grid, 1 for real, for the least-squares adversarial term."""

    def __init__(self, width: int = 16):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((1, width, 2 * width, 4 * width, 8 * width)):
            layers += [nn.Conv3d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv3d(8 * width, 1, 1))

    def forward(self, volume: Tensor) -> Tensor:
        return self.layers(volume)


NETWORKS: dict[str, type[nn.Module]] = {"transvert": TransVert, "transvert_hull": TransVertHull}
"""The paper's form and this companion's own. `benchmarks.studies.comparison_networks` adds those to compare with."""


def build_network(name: str, known: Mapping[str, type[nn.Module]] = NETWORKS, /, **options: Any) -> nn.Module:
    """Builds an untrained network by its name among the known, with the channels last; an InputError if it can't."""
    if name not in known:
        raise InputError(f"'{name}' is not a network; use one of {', '.join(known)}.")
    try:
        network = known[name](**options)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise InputError(f"The network '{name}' can't be built: {' '.join(str(error).split())}.") from None
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in network.parameters():
        if parameter.dim() in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.dim()])
    return network


def save_weights(
    path: str | Path, network: nn.Module, name: str, options: dict[str, Any], *, bits: int = 32, **card: Any
) -> Path:
    """Writes a network as safetensors, whose metadata say how to build it: its name in `NETWORKS` and its options.

    With 16 bits the weights are float16, half the size. With 8, matrices and kernels are int8 with a scale per output channel,
    a quarter of the size. The card is what else the file says about them, as JSON.
    """
    tensors = {}
    for key, value in network.state_dict().items():
        value = value.detach().cpu()
        if bits == 8 and value.dim() > 1:
            scale = value.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
            tensors[key + _SCALE] = scale
            value = (value / scale.view(-1, *[1] * (value.dim() - 1))).round().to(torch.int8)
        elif bits < 32 and value.is_floating_point():
            value = value.to(torch.float16)
        tensors[key] = value.contiguous()
    metadata = {"format": _FORMAT, "network": name, "options": json.dumps(options), "card": json.dumps(card)}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))
    return Path(path)


def load_weights(path: str | Path, known: Mapping[str, type[nn.Module]] = NETWORKS) -> tuple[nn.Module, dict[str, Any]]:
    """Loads a network that `save_weights` wrote, in evaluation mode, and its card; other files are an InputError."""
    path = Path(path)
    metadata, stored = _read_weights(path)
    tensors = _unpack(stored)
    name = metadata.get("network", "")
    if name not in known:
        raise InputError(f"{path.name} holds weights of the network '{name}'; known are {', '.join(known)}.")
    options, card = (parse_json(metadata.get(key, ""), f"The '{key}' of {path.name}") for key in ("options", "card"))
    if not (isinstance(options, dict) and isinstance(card, dict)):
        raise InputError(f"The options or the card of {path.name} are not JSON objects.")
    if name == "transvert_hull":  # Weights of version 0.1 know no context.
        options.setdefault("context", "levels.0.project.weight" in tensors)
    with torch.device("meta"):  # Without memory, which a false size would fill.
        shapes = {key: tensor.shape for key, tensor in build_network(name, known, **options).state_dict().items()}
    if shapes != {key: tensor.shape for key, tensor in tensors.items()}:
        raise InputError(f"{path.name} holds weights that do not fit the network '{name}'.")
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise InputError(f"{path.name} holds weights that are not finite; train again.")
    network = build_network(name, known, **options)
    network.load_state_dict(tensors)
    return network.eval(), card | {"network": name}


def load_network(weights: str | Path | None) -> tuple[nn.Module, dict[str, Any]]:
    """Loads a trained network and its card from a file, or the shipped one for None, "" or "shipped".

    "research" loads the one that learned from research-only data too: show its card's `licence` beside every result.
    """
    named = {"": SHIPPED_WEIGHTS, "shipped": SHIPPED_WEIGHTS, "research": RESEARCH_WEIGHTS}
    return load_weights(named.get(str(weights or "")) or Path(str(weights)))


def start_from(network: nn.Module, weights: str | Path) -> None:
    """Gives a network the weights of a file; an input or a layer that the file's network lacks begins at zero.

    Raises:
        InputError: weights of another kind of network.
    """
    given = load_network(weights)[0].state_dict()
    own = network.state_dict()
    for key, tensor in own.items():
        part = given.pop(key, torch.zeros_like(tensor))
        if part.dim() != tensor.dim() or any(a > b for a, b in zip(part.shape, tensor.shape, strict=True)):
            raise InputError(f"The weights {weights} do not fit this network: its '{key}' has another shape.")
        tensor.zero_()
        tensor[tuple(slice(n) for n in part.shape)] = part
    if given:
        raise InputError(f"The weights {weights} do not fit this network, which has no '{next(iter(given))}'.")


def add_to_card(path: str | Path, **more: Any) -> None:
    """Adds entries to the card of a weights file; the weights stay equal to the bit."""
    load_weights(path)
    metadata, tensors = _read_weights(Path(path))
    card = json.dumps(json.loads(metadata["card"]) | more)
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata | {"card": card}))


def _read_weights(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    if not path.is_file():
        raise InputError(f"The weights {path} do not exist; train some with notebook 02 or `transvert train`.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path.name} is not a safetensors file, or is truncated ({error}).") from None
    if metadata.get("format") != _FORMAT:
        raise InputError(f"{path.name} does not hold weights of this package.")
    return metadata, tensors


def _unpack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as floating-point numbers."""
    found = {}
    for key, value in tensors.items():
        scale = tensors.get(key + _SCALE)
        if scale is not None and value.dim() > 1 and scale.shape == value.shape[:1]:
            value = value.float() * scale.view(-1, *[1] * (value.dim() - 1))
        if not key.endswith(_SCALE):
            found[key] = value
    return found
