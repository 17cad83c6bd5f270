"""What a film adds to a vertebra's shadow, drawn at random: a body's other shadows, blur, noise, contrast and edges."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from transvert.data import patches


class Random:
    """Random numbers that are the same on every device: drawn on the CPU, moved where they are used."""

    def __init__(self, seed: int, device: torch.device | str = "cpu"):
        self.generator = torch.Generator().manual_seed(seed)
        self.device = torch.device(device)

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return (low + (high - low) * torch.rand(shape, generator=self.generator)).to(self.device)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device)


def expose_patches(
    shadows: torch.Tensor,
    relief: torch.Tensor,
    seen: torch.Tensor,
    random: Random,
    *,
    clutter: float,
    blur: float,
    noise: float,
    contrast: float,
    collimate: float,
) -> torch.Tensor:
    """Film patches from attenuation integrals, in the order of `exposure`: blur, photons' noise, the film's grey.

    Args:
        shadows: (B, 2, S, S) float32, attenuation × mm.
        relief: (B, 2, 1, 1) float32, how much the vertebra stands out in them.
        seen: (B, 2, S, S) bool, where there is film.
        random: the source of chance.
        clutter, blur, noise, contrast, collimate: as in `augment.Strength`.

    Returns:
        (B, 2, S, S) float32, as `film.standardise` makes them.
    """
    batch, size = len(shadows), shadows.shape[-1]
    shape = (batch, 2, 1, 1)
    if clutter > 0:
        shadows = shadows + relief * random.uniform(0, clutter, *shape) * draw_background(batch, size, random)
    soft = functional.avg_pool2d(shadows, 3, 1, 1, count_include_pad=False)
    softest = functional.avg_pool2d(soft, 5, 1, 2, count_include_pad=False)
    shadows = torch.lerp(shadows, soft, random.uniform(0, blur, *shape))
    shadows = torch.lerp(shadows, softest, random.uniform(-0.5 * blur, blur, *shape).clamp(min=0))
    shadows = add_noise(shadows, relief * random.uniform(0, noise, *shape), random)
    # A film's grey is rarely linear: a mild power of the patch's own range.
    low, high = shadows.amin((-2, -1), keepdim=True), shadows.amax((-2, -1), keepdim=True)
    unit = (shadows - low) / (high - low).clamp(min=1e-6)
    unit = unit ** torch.exp(random.uniform(-contrast, contrast, *shape))
    return standardise_batch(unit, seen & draw_collimation(batch, size, collimate, random))


def add_noise(shadows: torch.Tensor, level: torch.Tensor, random: Random) -> torch.Tensor:
    """Attenuation integrals as a film of a finite dose reads them.

    Photons that N of arrive on average vary by the root of N, their logarithm by its inverse. Behind one more unit of
    attenuation a share 1/e arrives, so the noise grows with the root of e.

    Args:
        shadows: (B, 2, S, S) float32.
        level: (B, 2, 1, 1) float32, the noise's standard deviation where a shadow is its patch's mean: 1 / root of N.
        random: the source of chance.
    """
    behind = (shadows - shadows.mean((-2, -1), keepdim=True)) / 2
    # No further: a patch's clutter may be far deeper than a body, and a film that starved would show nothing.
    return shadows + random.normal(*shadows.shape) * level * torch.exp(behind.clamp(max=1.5))


def draw_background(batch: int, size: int, random: Random) -> torch.Tensor:
    """(B, 2, size, size) random shadows in units of the vertebra's contrast.

    A body's shadows are many times stronger than the bone under them: smooth ones; a column with soft edges, such as
    the mediastinum between the lungs; edges, such as a diaphragm's; and bands, such as ribs. Each is there more often
    than not, with a strength drawn from a range on a logarithmic scale.
    """
    shape = (batch, 2, 1, 1)

    def strength(low: float, high: float) -> torch.Tensor:
        there = random.uniform(0, 1, *shape) < 0.8
        sign = torch.where(random.uniform(0, 1, *shape) < 0.5, -1.0, 1.0)
        return there * sign * torch.exp(random.uniform(np.log(low), np.log(high), *shape))

    total = torch.zeros(batch, 2, size, size, device=random.device)
    for cells, low, high in ((3, 0.5, 15.0), (7, 0.2, 2.0), (16, 0.05, 0.5)):
        coarse = random.normal(batch, 2, cells, cells)
        smooth = functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)
        total = total + strength(low, high) * smooth
    unit = torch.linspace(-1, 1, size, device=random.device)
    down, across = unit[:, None], unit[None, :]
    kinds = (("column", 0.5, 15.0), ("edge", 0.5, 8.0), ("edge", 0.3, 3.0), *[("band", 0.2, 2.0)] * 5)
    for kind, low, high in kinds:
        # A column stands nearly upright, as the spine does; the rest lie anyhow.
        reach = 0.35 if kind == "column" else np.pi
        angle = random.uniform(-reach, reach, *shape) + (np.pi / 2 if kind == "column" else 0.0)
        along = torch.cos(angle) * across + torch.sin(angle) * down
        beside = torch.cos(angle) * down - torch.sin(angle) * across
        offset = random.uniform(-0.5, 0.5, *shape) if kind == "column" else random.uniform(-1.2, 1.2, *shape)
        distance = beside - offset - random.uniform(-0.5, 0.5, *shape) * along**2
        soft = random.uniform(0.01, 0.12, *shape)
        if kind == "band":
            width = random.uniform(0.04, 0.15, *shape)
            profile = torch.sqrt((1 - (distance / width) ** 2).clamp(min=0))
        elif kind == "edge":
            profile = torch.sigmoid(distance / soft)
        else:
            half = random.uniform(0.25, 0.8, *shape)
            profile = torch.sigmoid((half - distance.abs()) / soft)
        total = total + strength(low, high) * profile
    return total


def draw_collimation(batch: int, size: int, collimate: float, random: Random) -> torch.Tensor:
    """(B, 2, size, size) bool: where there is film. A film's upper or lower edge may cut both patches, a side one."""
    rows = torch.arange(size, device=random.device)
    cut = random.uniform(0, 1, batch, 1, 1, 1) < collimate
    depth = random.uniform(1, size * 0.25, batch, 1, 1, 1)
    top = random.uniform(0, 1, batch, 1, 1, 1) < 0.5
    place = torch.where(top, rows[None, None, :, None], size - 1 - rows[None, None, :, None])
    return ~(cut & (place < depth)).expand(batch, 2, size, size)


def standardise_batch(images: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """`film.standardise` for a batch."""
    smooth = torch.from_numpy(patches.smoothing_matrix(images.shape[-1])).to(images)
    weight = 1 - functional.max_pool2d(1 - valid.to(images), 3, 1, 1)
    count = weight.sum((-2, -1), keepdim=True).clamp(min=1)
    values = (images - (images * weight).sum((-2, -1), keepdim=True) / count) * weight
    around = (smooth @ weight @ smooth.T).clamp(min=1e-6)
    detail = (values - smooth @ values @ smooth.T / around) * weight
    whole = (detail**2).sum((-2, -1), keepdim=True) / count
    spread = (smooth @ detail**2 @ smooth.T / around + patches.FLOOR * whole).sqrt()
    return (detail / spread.clamp(min=1e-9)).clamp(-patches.CLIP, patches.CLIP)
