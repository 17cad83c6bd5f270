"""Intensity augmentation: background, blur, noise, contrast and collimation of radiograph patches."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from transvert.data import patches


class Random:
    """Random numbers that are equal on every device: drawn on the CPU, then moved."""

    def __init__(self, seed: int, device: torch.device | str = "cpu"):
        self.generator = torch.Generator().manual_seed(seed)
        self.device = torch.device(device)

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return (low + (high - low) * torch.rand(shape, generator=self.generator)).to(self.device)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device)


def expose_patches(
    attenuation: torch.Tensor,
    bone_contrast: torch.Tensor,
    exposed: torch.Tensor,
    random: Random,
    *,
    background: float,
    blur: float,
    noise: float,
    contrast: float,
    collimation: float,
) -> torch.Tensor:
    """Turns attenuation integrals into radiograph patches, in the order of `drr.exposure`.

    Args:
        attenuation: (B, 2, S, S) float32, attenuation × mm.
        bone_contrast: (B, 2, 1, 1) float32, the vertebra's contrast in them.
        exposed: (B, 2, S, S) bool, True where there is film.
        random: source of random numbers.
        background, blur, noise, contrast, collimation: as in `augment.AugmentConfig`.

    Returns:
        (B, 2, S, S) float32, standardised as by `patches.standardise`.
    """
    batch, size = len(attenuation), attenuation.shape[-1]
    shape = (batch, 2, 1, 1)
    if background > 0:
        amplitude = bone_contrast * random.uniform(0, background, *shape)
        attenuation = attenuation + amplitude * draw_background(batch, size, random)
    soft = functional.avg_pool2d(attenuation, 3, 1, 1, count_include_pad=False)
    softer = functional.avg_pool2d(soft, 5, 1, 2, count_include_pad=False)
    attenuation = torch.lerp(attenuation, soft, random.uniform(0, blur, *shape))
    attenuation = torch.lerp(attenuation, softer, random.uniform(-0.5 * blur, blur, *shape).clamp(min=0))
    attenuation = add_noise(attenuation, bone_contrast * random.uniform(0, noise, *shape), random)
    # Grey values are rarely linear: a mild power of the patch's own range.
    low, high = attenuation.amin((-2, -1), keepdim=True), attenuation.amax((-2, -1), keepdim=True)
    unit = (attenuation - low) / (high - low).clamp(min=1e-6)
    unit = unit ** torch.exp(random.uniform(-contrast, contrast, *shape))
    return standardise_batch(unit, exposed & draw_collimation(batch, size, collimation, random))


def add_noise(attenuation: torch.Tensor, level: torch.Tensor, random: Random) -> torch.Tensor:
    """Adds the noise of counted photons to attenuation integrals.

    N photons on average vary by sqrt(N), so their logarithm varies by 1 / sqrt(N). Behind one more unit of attenuation
    1/e of them arrive, so the noise grows by sqrt(e). `level` (B, 2, 1, 1) is its standard deviation at the patch's mean.
    """
    behind = (attenuation - attenuation.mean((-2, -1), keepdim=True)) / 2
    # Limited, because a random background can be far thicker than a body.
    return attenuation + random.normal(*attenuation.shape) * level * torch.exp(behind.clamp(max=1.5))


def draw_background(batch: int, size: int, random: Random) -> torch.Tensor:
    """Draws structures behind a vertebra, (batch, 2, size, size) in units of its contrast.

    They are smooth fields, a column with soft edges (the mediastinum), edges (a diaphragm) and bands (ribs), up to many
    times stronger than bone. Each is present with a probability of 0.8.
    """
    shape = (batch, 2, 1, 1)

    def amplitude(low: float, high: float) -> torch.Tensor:
        present = random.uniform(0, 1, *shape) < 0.8
        sign = torch.where(random.uniform(0, 1, *shape) < 0.5, -1.0, 1.0)
        return present * sign * torch.exp(random.uniform(np.log(low), np.log(high), *shape))

    total = torch.zeros(batch, 2, size, size, device=random.device)
    for cells, low, high in ((3, 0.5, 15.0), (7, 0.2, 2.0), (16, 0.05, 0.5)):
        coarse = random.normal(batch, 2, cells, cells)
        smooth = functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)
        total = total + amplitude(low, high) * smooth
    unit = torch.linspace(-1, 1, size, device=random.device)
    y, x = unit[:, None], unit[None, :]
    for kind, low, high in (("column", 0.5, 15.0), ("edge", 0.5, 8.0), ("edge", 0.3, 3.0), *[("band", 0.2, 2.0)] * 5):
        # A column stands nearly upright, as the spine does; the others have any direction.
        reach = 0.35 if kind == "column" else np.pi
        angle = random.uniform(-reach, reach, *shape) + (np.pi / 2 if kind == "column" else 0.0)
        along = torch.cos(angle) * x + torch.sin(angle) * y
        beside = torch.cos(angle) * y - torch.sin(angle) * x
        offset = random.uniform(-0.5, 0.5, *shape) if kind == "column" else random.uniform(-1.2, 1.2, *shape)
        distance = beside - offset - random.uniform(-0.5, 0.5, *shape) * along**2
        softness = random.uniform(0.01, 0.12, *shape)
        if kind == "band":
            width = random.uniform(0.04, 0.15, *shape)
            profile = torch.sqrt((1 - (distance / width) ** 2).clamp(min=0))
        elif kind == "edge":
            profile = torch.sigmoid(distance / softness)
        else:
            profile = torch.sigmoid((random.uniform(0.25, 0.8, *shape) - distance.abs()) / softness)
        total = total + amplitude(low, high) * profile
    return total


def draw_collimation(batch: int, size: int, probability: float, random: Random) -> torch.Tensor:
    """Draws where there is film, (batch, 2, size, size) bool: its upper or lower edge may cut both patches."""
    rows = torch.arange(size, device=random.device)
    cut = random.uniform(0, 1, batch, 1, 1, 1) < probability
    depth = random.uniform(1, size * 0.25, batch, 1, 1, 1)
    top = random.uniform(0, 1, batch, 1, 1, 1) < 0.5
    place = torch.where(top, rows[None, None, :, None], size - 1 - rows[None, None, :, None])
    return ~(cut & (place < depth)).expand(batch, 2, size, size)


def standardise_batch(images: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Standardises a batch as `patches.standardise` does one patch: images (B, 2, S, S) float32, valid bool."""
    smooth = torch.from_numpy(patches.smoothing_matrix(images.shape[-1])).to(images)
    weight = 1 - functional.max_pool2d(1 - valid.to(images), 3, 1, 1)
    count = weight.sum((-2, -1), keepdim=True).clamp(min=1)
    values = (images - (images * weight).sum((-2, -1), keepdim=True) / count) * weight
    around = (smooth @ weight @ smooth.T).clamp(min=1e-6)
    detail = (values - smooth @ values @ smooth.T / around) * weight
    whole = (detail**2).sum((-2, -1), keepdim=True) / count
    spread = (smooth @ detail**2 @ smooth.T / around + patches.FLOOR * whole).sqrt()
    return (detail / spread.clamp(min=1e-9)).clamp(-patches.CLIP, patches.CLIP)
