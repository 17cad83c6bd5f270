"""Corrupted film pairs from stored samples: one corruption of a given size at a time.

The pictures are projected again from the stored cube of 126 mm with parallel rays, as in training, and the stored background
is added. So a turned view is truly turned. Without a corruption, the stored pictures come back. The background, and detail
finer than the voxels, only moves within the picture plane.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from transvert.data.patches import SPACING_MM, in_pictures, neighbour_offsets, network_input
from transvert.data.samples import MIDDLE, Samples
from transvert.model import intensity, warp
from transvert.model.augment import WATER_PER_MM, bone_contrast, warp_background
from transvert.model.intensity import Random

PER_VOXEL = SPACING_MM * WATER_PER_MM
"""Line integral through one voxel of water."""


@dataclass(frozen=True)
class Corruption:
    """A corruption of a film pair. The defaults change nothing.

    Attributes:
        turn_deg: rotation of the lateral view about the patient's long axis; positive moves the right side to the front.
        ap_size: magnification of the AP film about the vertebra.
        lateral_size: magnification of the lateral film.
        landmark_mm: error of the landmark in each view, in a random direction. The patch is cut, and the vertebra placed,
            where the two landmarks meet.
        noise: as `AugmentConfig.noise`, in both films.
        coarse: pixels per side averaged into one, in both films.
    """

    turn_deg: float = 0.0
    ap_size: float = 1.0
    lateral_size: float = 1.0
    landmark_mm: float = 0.0
    noise: float = 0.0
    coarse: int = 1


@dataclass(frozen=True)
class Kind:
    """A kind of corruption: unit, tested amounts, and the corruption of an amount."""

    unit: str
    amounts: tuple[float, ...]
    make: Callable[[float], Corruption]


KINDS = {
    "none": Kind("", (0.0,), lambda _: Corruption()),
    "lateral turned": Kind("deg", (-10.0, -5.0, -2.0, -1.0, 1.0, 2.0, 5.0, 10.0), lambda deg: Corruption(turn_deg=deg)),
    "landmark off": Kind("mm", (2.0, 5.0, 8.0), lambda mm: Corruption(landmark_mm=mm)),
    "AP too large": Kind("%", (5.0, 10.0), lambda part: Corruption(ap_size=1 + part / 100)),
    "lateral too large": Kind("%", (5.0, 10.0), lambda part: Corruption(lateral_size=1 + part / 100)),
    "both too large": Kind(
        "%", (5.0, 10.0), lambda part: Corruption(ap_size=1 + part / 100, lateral_size=1 + part / 100)
    ),
    "noise": Kind("of the bone's contrast", (0.03, 0.08, 0.25), lambda level: Corruption(noise=level)),
    "coarse pixels": Kind("times as wide", (2.0,), lambda times: Corruption(coarse=int(times))),
}
"""For the embedded CT, noise of 0.03 is a usual dose, 0.08 a tenth and 0.25 a hundredth of it."""


def corrupt_images(
    subject: Samples, corruption: Corruption | None = None, *, crop: bool = False, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Projects a subject's vertebrae with a corruption.

    Args:
        subject: the samples.
        corruption: none by default.
        crop: show the cube of 96 mm alone, as in the public benchmark. Always on for samples of that field of view.
        seed: of landmark errors and noise; a vertebra's own are equal for all corruptions.

    Returns:
        Images (N, 2, 4, 64, 64) float32, and the shift (N, 3) of the patch centres from those of the samples, mm. Pass the
        shift to `shift_back` with the predictions.
    """
    corruption = corruption or Corruption()
    crop = crop or subject.field_of_view == "crop"
    cube = torch.from_numpy(subject.hu).float().div(1000).add(1).clamp(min=0)
    views, right = _views(corruption, len(cube)), _views(Corruption(), len(cube))
    if crop:
        within = torch.zeros_like(cube)
        within[:, MIDDLE, MIDDLE, MIDDLE] = cube[:, MIDDLE, MIDDLE, MIDDLE]
        cube, outside = within, torch.zeros(subject.pictures.shape)
    else:
        outside = torch.from_numpy(subject.pictures) - warp.project_parallel(cube, right) * PER_VOXEL
    shadows = warp.project_parallel(cube, views) * PER_VOXEL
    seeds = [zlib.crc32(f"{subject.subject}/{level}/{seed}".encode()) for level in subject.levels]
    clicks = corruption.landmark_mm * np.stack([_directions(own) for own in seeds])
    moved = np.stack([-clicks[:, 0, 1], -clicks[:, 1, 1], -clicks[:, :, 0].mean(1)], axis=1)
    shift, upright = torch.from_numpy(moved).float(), torch.eye(3).repeat(len(cube), 1, 1)
    patches = warp_background(shadows, upright, shift, right)[0]
    beyond, seen = warp_background(outside, upright, shift, views)
    patches = patches + torch.where(seen, beyond, 0.0)
    if corruption.noise:
        patches = _noisy(patches, subject, corruption.noise, seeds)
    if corruption.coarse > 1:
        patches = functional.avg_pool2d(patches, corruption.coarse)
        patches = functional.interpolate(patches, scale_factor=corruption.coarse, mode="bilinear")
    offsets = np.zeros((len(cube), 2, 2))
    offsets[:, :, 0] = clicks[:, :, 0] + moved[:, 2:]  # The landmarks' heights differ, the patches' do not.
    around = in_pictures(neighbour_offsets(subject.levels, subject.centroids) - moved[:, None])
    parts = zip(patches.numpy(), seen.numpy(), offsets, around, subject.levels.tolist(), strict=True)
    return np.stack([network_input(*part) for part in parts]), moved


def shift_back(predictions: np.ndarray, shifts_mm: np.ndarray) -> np.ndarray:
    """Shifts predictions (N, 64, 64, 64) by (N, 3) mm into the cubes of their samples; 0 outside."""
    if not shifts_mm.any():
        return predictions
    pairs = zip(predictions, shifts_mm / SPACING_MM, strict=True)
    return np.stack([ndimage.shift(volume, voxels, order=1) for volume, voxels in pairs])


def _views(corruption: Corruption, count: int) -> torch.Tensor:
    """(N, 2, 3) views for `warp.project_parallel`."""
    lateral = [np.deg2rad(corruption.turn_deg), 0.0, corruption.lateral_size]
    return torch.tensor([[0.0, 0.0, corruption.ap_size], lateral], dtype=torch.float32).repeat(count, 1, 1)


def _directions(seed: int) -> np.ndarray:
    """(2, 2) unit vectors, one per view: row and column."""
    angles = np.random.default_rng(seed).uniform(0, 2 * np.pi, 2)
    return np.stack([np.sin(angles), np.cos(angles)], axis=1)


def _noisy(patches: torch.Tensor, subject: Samples, noise: float, seeds: list[int]) -> torch.Tensor:
    """Adds film noise to the patches, each with its own seed."""
    targets = torch.from_numpy(subject.targets())
    thickness = torch.stack([targets.sum(2), targets.sum(1)], dim=1) * SPACING_MM
    level = noise * bone_contrast(thickness)
    pairs = zip(patches.split(1), level.split(1), map(Random, seeds), strict=True)
    return torch.cat([intensity.add_noise(*three) for three in pairs])
