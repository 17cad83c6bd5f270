"""A bone phantom from labels alone: what a radiograph needs of a vertebra where there is no CT.

Each bone gets a dense cortical shell around a textured trabecular core, inside a body of soft tissue. The ranges are
this companion's choice, taken wide around textbook HU values, so that a network never learns one material.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from transvert.volume import AIR_HU, Volume

CORTICAL_HU = (250.0, 1200.0)
TRABECULAR_HU = (50.0, 320.0)
SOFT_HU = (0.0, 80.0)
SHELL_MM = (0.8, 2.0)
BODY_MARGIN_MM = (35.0, 60.0)
"""Ranges from which a phantom's material is drawn: uniform, one value a phantom."""


def paint(mask: Volume, seed: int, spacing_mm: float = 1.0) -> Volume:
    """Paints a CT-like volume from a label mask.

    Args:
        mask: labels, 0 for no bone; any grid.
        seed: of the material and its texture; equal seeds give equal phantoms.
        spacing_mm: of the phantom's grid.

    Returns:
        float32, HU, isotropic and aligned with the mask's own axes, covering the bones and a margin of soft tissue.
    """
    random = np.random.default_rng(seed)
    cortical, trabecular, soft, shell, margin = (
        random.uniform(*limits) for limits in (CORTICAL_HU, TRABECULAR_HU, SOFT_HU, SHELL_MM, BODY_MARGIN_MM)
    )
    bone, affine = _resampled_bone(mask, spacing_mm, margin)
    depth = ndimage.distance_transform_edt(bone, sampling=spacing_mm)
    # The shell fades into the core over a voxel instead of ending in a step.
    core = np.clip((depth - shell) / spacing_mm + 0.5, 0, 1).astype(np.float32)
    texture = (
        smooth_noise(bone.shape, 4.0 / spacing_mm, random) * 60
        + smooth_noise(bone.shape, 12.0 / spacing_mm, random) * 40
    )
    inside = cortical * (1 - core) + (trabecular + texture) * core
    outside = np.where(_body(bone.shape), soft + 10 * smooth_noise(bone.shape, 20.0 / spacing_mm, random), AIR_HU)
    return Volume(np.where(bone, inside, outside).astype(np.float32), affine)


def smooth_noise(shape: tuple[int, ...], scale: float, random: np.random.Generator) -> np.ndarray:
    """Smooth noise with mean near 0 and standard deviation 1: float32 of `shape`, detail near `scale` voxels."""
    coarse = random.standard_normal([max(4, int(np.ceil(n / scale)) + 3) for n in shape]).astype(np.float32)
    grown = ndimage.zoom(coarse, [(n + 2 * scale) / c for n, c in zip(shape, coarse.shape, strict=True)], order=1)
    start = [(g - n) // 2 for g, n in zip(grown.shape, shape, strict=True)]
    part = grown[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))]
    return (part / max(float(part.std()), 1e-6)).astype(np.float32)


def _resampled_bone(mask: Volume, spacing_mm: float, margin_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """The bones on an isotropic grid with a margin at the sides and none above and below."""
    box = ndimage.find_objects((mask.data > 0).astype(np.uint8))[0]
    low = np.array([s.start for s in box], float) - 0.5
    high = np.array([s.stop for s in box], float) - 0.5
    sides = np.array([margin_mm, margin_mm, 0.0]) / mask.spacing_mm
    low, high = low - sides, high + sides
    step = spacing_mm / mask.spacing_mm
    shape = np.ceil((high - low) / step).astype(int)
    start = low + step / 2
    affine = mask.affine.copy()
    affine[:3, :3] = mask.affine[:3, :3] * step
    affine[:3, 3] = mask.world(start)
    bone = ndimage.affine_transform(
        (mask.data > 0).astype(np.uint8), np.diag(step), start, tuple(shape.tolist()), order=0, mode="constant"
    )
    return bone > 0, affine


def _body(shape: tuple[int, ...]) -> np.ndarray:
    """An elliptic cylinder along z that touches the volume's sides: (X, Y, 1) bool."""
    x, y = (np.linspace(-1, 1, n) for n in shape[:2])
    return (x[:, None] ** 2 + y[None, :] ** 2 <= 1)[..., None]
