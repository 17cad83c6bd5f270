"""A CT-like phantom painted from a label mask alone, for radiographs of people of whom only the vertebrae are known.

Each vertebra gets a dense cortical shell around a textured trabecular core. It stands in a column with discs, completed
with copies (`column`), among ribs and other bones (`skeleton`), in a trunk with organs and vessels (`torso`). The ranges
are this companion's choice, wide around textbook HU values, so that a network does not learn one material or person.
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy import ndimage

from transvert.imaging.volume import AIR_HU, Volume
from transvert.phantom import column, skeleton, torso
from transvert.phantom.column import Bone, Column
from transvert.phantom.shapes import Noise, blank, blend, box_of, edge, grid_mm

# Ranges of a phantom's material, drawn uniformly once per phantom.
CORTICAL_HU = (250.0, 1200.0)
TRABECULAR_HU = (50.0, 320.0)
SOFT_HU = (0.0, 80.0)
SHELL_MM = (0.5, 1.5)
DISC_HU = (50.0, 120.0)
BONE_JITTER = 0.08  # Relative standard deviation of the material between the vertebrae of a phantom.
MARGIN_MM = 66.0  # Smallest margin above the first and below the last centre of mass; stored patches end within it.


def paint_phantom(mask: Volume, seed: int, spacing_mm: float = 1.0) -> Volume:
    """Paints a CT-like volume around the vertebrae of a label mask.

    Args:
        mask: (X, Y, Z) uint8, VerSe levels, any grid; labels other than vertebrae and sacrum are ignored.
        seed: equal seeds give equal phantoms.

    Returns:
        (X, Y, Z) float32, HU, with voxels of `spacing_mm`, axis-aligned: the whole trunk around the mask's whole vertebrae,
        at least `MARGIN_MM` above and below their centres of mass.

    Raises:
        InputError: as `column.build_column`.
    """
    random = np.random.default_rng(seed)
    return paint_column(column.build_column(mask, random, MARGIN_MM + column.BEYOND_MM), random, spacing_mm, MARGIN_MM)


def paint_column(spine: Column, random: np.random.Generator, spacing_mm: float, margin_mm: float) -> Volume:
    """Paints a CT-like volume around a column that reaches beyond the margin; otherwise as `paint_phantom`."""
    known = [bone for bone in spine.bones if not bone.copied]
    middles = [float(bone.part.world(np.argwhere(bone.part.data).mean(0))[2]) for bone in known]
    heights = np.concatenate([bone.part.corners()[:, 2] for bone in known])
    low_z = min(min(middles) - margin_mm, heights.min())
    high_z = max(max(middles) + margin_mm, heights.max())
    z = np.arange(low_z + spacing_mm / 2, high_z + spacing_mm / 2, spacing_mm)
    person = torso.draw_torso(spine, z, random)
    low, high = torso.extent(person)
    # A little below the last slice's upper face, so that rounding adds no slice.
    top = z[-1] + spacing_mm / 4
    canvas = blank(np.array([*low, low_z]), np.array([*high, top]), spacing_mm, AIR_HU)
    blood_hu = torso.draw_blood(random)
    torso.paint_torso(canvas, spine, person, blood_hu, random)
    torso.paint_vessels(canvas, spine, blood_hu, random)
    skeleton.paint_skeleton(canvas, spine, person, random)
    _paint_discs(canvas, spine, random)
    material = [float(random.uniform(*limits)) for limits in (CORTICAL_HU, TRABECULAR_HU, SHELL_MM)]
    # The mask's own bones are painted last, so that no copy covers them.
    for bone in sorted(spine.bones, key=lambda bone: not bone.copied):
        cortical, trabecular = np.array(material[:2]) * (1 + BONE_JITTER * np.clip(random.standard_normal(2), -2, 2))
        _paint_bone(canvas, bone, float(cortical), float(trabecular), material[2], random)
    return canvas


def _paint_discs(canvas: Volume, spine: Column, random: np.random.Generator) -> None:
    """Paints discs from body centre to body centre; the bodies will cover all but the gaps."""
    hu = float(random.uniform(*DISC_HU))
    for upper, lower in itertools.pairwise(spine.bones):
        if upper.level == 1 or lower.level == upper.level == column.SACRUM:
            continue
        middle, half = (upper.centre + lower.centre) / 2, (upper.half_mm + lower.half_mm) / 2
        along = upper.centre - lower.centre
        length = float(np.linalg.norm(along))
        reach = np.abs(along) / 2 + half
        box = box_of(canvas, middle - reach, middle + reach)
        x, y, z = (axis - np.float32(m) for axis, m in zip(grid_mm(canvas, box), middle, strict=True))
        share = (x * along[0] + y * along[1] + z * along[2]) / length**2
        beside = np.sqrt(((x - share * along[0]) / half[0]) ** 2 + ((y - share * along[1]) / half[1]) ** 2)
        weight = edge(beside, float(half[:2].min()), canvas.affine[0, 0]) * (np.abs(share) <= 0.5)
        blend(canvas.data[box], weight.astype(np.float32), hu)


def _paint_bone(
    canvas: Volume, bone: Bone, cortical_hu: float, trabecular_hu: float, shell_mm: float, random: np.random.Generator
) -> None:
    """Paints one vertebra, resampled to the canvas: a shell around a textured core."""
    corners = bone.part.corners()
    box = box_of(canvas, corners.min(0), corners.max(0))
    shape = canvas.data[box].shape
    if 0 in shape:
        return
    spacing = float(canvas.affine[0, 0])
    mapping = np.linalg.inv(bone.part.affine) @ canvas.affine
    start = mapping[:3, :3] @ np.array([side.start for side in box]) + mapping[:3, 3]
    share = bone.part.data.astype(np.float32)
    for axis, width in enumerate(spacing / bone.part.spacing_mm):
        if width > 1.25:
            share = ndimage.uniform_filter1d(share, round(width), axis=axis, mode="constant")
    share = ndimage.affine_transform(share, mapping[:3, :3], start, shape, order=1)
    inside = share > 0.5
    depth = ndimage.distance_transform_edt(inside, sampling=spacing)
    # A voxel that the shell fills partly gets a mixture of shell and core.
    core = np.clip((depth - shell_mm) / spacing, 0, 1).astype(np.float32)
    texture = sum(hu * Noise(shape, mm / spacing, random).whole() for mm, hu in ((4.0, 60), (12.0, 40)))
    value = cortical_hu * (1 - core) + (trabecular_hu + texture) * core
    blend(canvas.data[box], inside.astype(np.float32), value.astype(np.float32))
