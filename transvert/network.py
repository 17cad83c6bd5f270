"""TransVert and its critic, this companion's own faster networks, and all networks by name with their weights in files.

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
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from transvert.blocks import (
    Decoder,
    Encoder,
    Exchange,
    Finer,
    Growth,
    Head,
    Lift,
    Residual,
    blanked,
    conv,
    norm_act,
    to_ras,
)
from transvert.files import InputError, atomic_path
from transvert.peers import AttentionUnet, OneDConcat, TwoDPermuteConcat


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
        self.grow = nn.ModuleList(Growth(width, axis, doublings=4) for axis in (1, 2))
        self.fuse = conv(2 * width, width, 3)
        self.decode = nn.Sequential(
            Residual(width, 3),
            Residual(width, 3),
            Finer(width, width // 2, 3),
            norm_act(width // 2, 3),
            Residual(width // 2, 3),
        )
        self.head = Head(width // 2, widths[0])

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 2, 2, 64, 64) to logits (B, 1, 64, 64, 64), RAS order."""
        ap, lateral = (encode(blanked(images[:, v], self.maps)) for v, encode in enumerate(self.encoders))
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
        self.exchange = Exchange(width) if attention else None
        self.decoders = nn.ModuleList(Decoder(flat, 2) for _ in range(2))
        # The AP picture does not see y, the lateral one does not see x: axes 1 and 2 of [z, y, x].
        self.ap_lifts, self.lateral_lifts = (
            nn.ModuleList(Lift(f, s, side, axis) for f, s, side in zip(flat[1:], solid, (32, 16, 8), strict=True))
            for axis in (1, 2)
        )
        self.first = nn.Sequential(norm_act(solid[-1], 3), Residual(solid[-1], 3), Residual(solid[-1], 3))
        self.decode = Decoder(solid, 3)
        self.head = Head(solid[0], flat[0])

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 2, 2, 64, 64) to logits (B, 1, 64, 64, 64), RAS order."""
        ap, lateral = (encode(blanked(images[:, v], self.maps)) for v, encode in enumerate(self.encoders))
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


NETWORKS: dict[str, type[nn.Module]] = {
    "transvert": TransVert,
    "transvert_hull": TransVertHull,
    "twod_permute_concat": TwoDPermuteConcat,
    "oned_concat": OneDConcat,
    "attention_unet": AttentionUnet,
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


def build(name: str, **options: Any) -> nn.Module:
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
    metadata, tensors = _read(Path(path))
    network = build(metadata["network"], **json.loads(metadata["options"]))
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
    metadata, tensors = _read(Path(path))
    card = json.dumps(json.loads(metadata["card"]) | more)
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata | {"card": card}))


def _read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
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
