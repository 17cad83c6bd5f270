"""What goes wrong with a pair of films, done to stored samples: one fault at a time, of a stated size.

A vertebra's pictures are cast anew from its stored cube of 126 mm by parallel rays, as a training draw casts them, and
what else threw a shadow onto its films is laid over. So a turned view is turned: what lies in front moves one way, what
lies behind the other. Without a fault the same path gives the stored pictures back.

What the films show of the body beyond the cube, and of detail finer than its voxels, moves in the picture's plane alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from transvert.data.patches import SPACING_MM, network_input
from transvert.data.samples import MIDDLE, Samples
from transvert.model import intensity, warp
from transvert.model.augment import WATER_PER_MM, bone_contrast, warp_background
from transvert.model.intensity import Random

PER_VOXEL = SPACING_MM * WATER_PER_MM
"""Attenuation × mm of a voxel of water."""


@dataclass(frozen=True)
class Corruption:
    """What is wrong with a pair of films; the defaults are right.

    Attributes:
        turn_deg: of the lateral view, about the patient's long axis; above 0 what lies to the right moves to the front.
        ap_size: of the AP film relative to what it is taken for, about the vertebra.
        lateral_size: of the lateral film.
        click_mm: how far off the centroid is marked in each view, in a random direction in each. Patches are cut and
            the vertebra is placed where the two marks meet, as notebook 04 does.
        noise: as `augment.Strength.noise`, of both films.
        coarse: pixels a side that become one, of both films.
    """

    turn_deg: float = 0.0
    ap_size: float = 1.0
    lateral_size: float = 1.0
    click_mm: float = 0.0
    noise: float = 0.0
    coarse: int = 1


@dataclass(frozen=True)
class Kind:
    """A kind of fault: its unit, the amounts that are tried, and what an amount means."""

    unit: str
    amounts: tuple[float, ...]
    make: Callable[[float], Corruption]


KINDS = {
    "none": Kind("", (0.0,), lambda _: Corruption()),
    "lateral turned": Kind("deg", (-10.0, -5.0, -2.0, -1.0, 1.0, 2.0, 5.0, 10.0), lambda deg: Corruption(turn_deg=deg)),
    "click off": Kind("mm", (2.0, 5.0, 8.0), lambda mm: Corruption(click_mm=mm)),
    "AP too large": Kind("%", (5.0, 10.0), lambda part: Corruption(ap_size=1 + part / 100)),
    "lateral too large": Kind("%", (5.0, 10.0), lambda part: Corruption(lateral_size=1 + part / 100)),
    "both too large": Kind(
        "%", (5.0, 10.0), lambda part: Corruption(ap_size=1 + part / 100, lateral_size=1 + part / 100)
    ),
    "noise": Kind("of the bone's contrast", (0.03, 0.08, 0.25), lambda level: Corruption(noise=level)),
    "coarse pixels": Kind("times as wide", (2.0,), lambda times: Corruption(coarse=int(times))),
}
"""For the embedded CT, noise of 0.03 is a usual dose, 0.08 a tenth and 0.25 a hundredth of it."""


def corrupted_images(
    subject: Samples, fault: Corruption | None = None, *, alone: bool = False, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A subject's vertebrae on films with a fault.

    Args:
        subject: the samples.
        fault: none by default.
        alone: nothing but the cube of 96 mm is on the films, as the public benchmark has it. So it is anyway for samples
            whose surroundings are "cube".
        seed: of the clicks' directions and the noise; a vertebra's own are equal for all faults.

    Returns:
        images (N, 2, 2, 64, 64) float32, a network's input; and (N, 3) mm, how far from the sample's the centre lies
        around which the patches were cut: give it to `put_back` with the prediction.
    """
    fault = fault or Corruption()
    alone = alone or subject.surroundings == "cube"
    cube = torch.from_numpy(subject.hu).float().div(1000).add(1).clamp(min=0)
    views, right = _views(fault, len(cube)), _views(Corruption(), len(cube))
    if alone:
        within = torch.zeros_like(cube)
        within[:, MIDDLE, MIDDLE, MIDDLE] = cube[:, MIDDLE, MIDDLE, MIDDLE]
        cube, outside = within, torch.zeros(subject.pictures.shape)
    else:
        outside = torch.from_numpy(subject.pictures) - warp.project_parallel(cube, right) * PER_VOXEL
    shadows = warp.project_parallel(cube, views) * PER_VOXEL
    seeds = [zlib.crc32(f"{subject.subject}/{level}/{seed}".encode()) for level in subject.levels]
    clicks = fault.click_mm * np.stack([_directions(own) for own in seeds])
    moved = np.stack([-clicks[:, 0, 1], -clicks[:, 1, 1], -clicks[:, :, 0].mean(1)], axis=1)
    shift, upright = torch.from_numpy(moved).float(), torch.eye(3).repeat(len(cube), 1, 1)
    patches = warp_background(shadows, upright, shift, right)[0]
    beyond, seen = warp_background(outside, upright, shift, views)
    patches = patches + torch.where(seen, beyond, 0.0)
    if fault.noise:
        patches = _noisy(patches, subject, fault.noise, seeds)
    if fault.coarse > 1:
        patches = functional.avg_pool2d(patches, fault.coarse)
        patches = functional.interpolate(patches, scale_factor=fault.coarse, mode="bilinear")
    offsets = np.zeros((len(cube), 2, 2))
    offsets[:, :, 0] = clicks[:, :, 0] + moved[:, 2:]  # The two marks' heights differ; the patches' don't.
    parts = zip(patches.numpy(), seen.numpy(), offsets, strict=True)
    return np.stack([network_input(*part) for part in parts]), moved


def put_back(predictions: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Predictions (N, 64, 64, 64) in the cubes that they were made in, brought to the samples' own; 0 beyond."""
    if not moved.any():
        return predictions
    pairs = zip(predictions, moved / SPACING_MM, strict=True)
    return np.stack([ndimage.shift(volume, voxels, order=1) for volume, voxels in pairs])


def _views(fault: Corruption, count: int) -> torch.Tensor:
    """(N, 2, 3) as `warp.project` wants them."""
    lateral = [np.deg2rad(fault.turn_deg), 0.0, fault.lateral_size]
    return torch.tensor([[0.0, 0.0, fault.ap_size], lateral], dtype=torch.float32).repeat(count, 1, 1)


def _directions(seed: int) -> np.ndarray:
    """(2, 2) unit vectors, one a view, down and across."""
    angles = np.random.default_rng(seed).uniform(0, 2 * np.pi, 2)
    return np.stack([np.sin(angles), np.cos(angles)], axis=1)


def _noisy(patches: torch.Tensor, subject: Samples, noise: float, seeds: list[int]) -> torch.Tensor:
    """The patches with the noise of a film's dose, each vertebra's by its own seed."""
    targets = torch.from_numpy(subject.targets())
    thickness = torch.stack([targets.sum(2), targets.sum(1)], dim=1) * SPACING_MM
    level = noise * bone_contrast(thickness)
    pairs = zip(patches.split(1), level.split(1), map(Random, seeds), strict=True)
    return torch.cat([intensity.add_noise(*three) for three in pairs])
