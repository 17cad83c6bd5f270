"""What voxels and millimetres cost in Dice, of bones whose surfaces are known: no network takes part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from transvert import levels
from transvert.data import manifest, orient
from transvert.imaging import masks, mesh, volume
from transvert.imaging.volume import Volume
from transvert.phantom import shapes

if TYPE_CHECKING:
    import trimesh

FINE_MM = 0.25
"""Voxels on which solids are compared whose own voxels are coarser,"""
OFFSET_MM = 0.5
"""and those on which surfaces are moved, by the distance at each voxel's centre."""
COARSEST_MM = 1.0
"""A mask's finest side: one with coarser voxels says nothing of what finer ones would cost."""
POINTS_PER_MM2 = 10


def solids(subject: manifest.Subject) -> Iterator[tuple[int, str, trimesh.Trimesh]]:
    """The whole vertebrae of a subject as finely as they are known.

    Args:
        subject: with surfaces, or with a mask.

    Yields:
        Level; what is known of it, "surface" or the mask's voxel size; and its surface, RAS mm. A mask's is smoothed, for
        its steps are the scanner's. Nothing for a mask of voxels wider than `COARSEST_MM` on every side.
    """
    if subject.mask is not None:
        mask = volume.read_mask(subject.mask, subject.convention)
        if mask.spacing_mm.min() > COARSEST_MM:
            return
        told = "mask of " + " x ".join(f"{side:.2f}" for side in mask.spacing_mm) + " mm"
        for level, (part, box) in masks.clean_mask(mask).parts.items():
            affine = mask.affine.copy()
            affine[:3, 3] = mask.world(np.array([side.start for side in box]))
            yield level, told, mesh.extract_surface(part, affine)
    elif subject.surfaces:
        found = orient.read_surfaces({n: _file(subject, path) for n, path in subject.surfaces.items()})
        bones = levels.in_order(set(found) & set(levels.VERTEBRAE))
        yield from ((level, "surface", found[level]) for level in bones)


def _file(subject: manifest.Subject, path: Path) -> orient.Surface:
    """A surface with what its manifest states of it."""
    file = subject.files.get(path)
    return orient.Surface(path, (file and file.unit) or orient.UNSTATED, (file and file.frame) or orient.UNSTATED)


def voxel_cost(
    surface: trimesh.Trimesh, spacings_mm: tuple[float, ...], random: np.random.Generator
) -> list[tuple[float, float]]:
    """Dice between perfect answers that differ only in their voxels.

    Args:
        surface: RAS mm.
        spacings_mm: of the voxels; a voxel is bone where its centre is.
        random: where the voxels lie: two grids anywhere, for each spacing.

    Returns:
        For each spacing, Dice of the solid with its own voxels (the mean of both grids), and of both grids' voxels with
        each other.
    """
    solid = mesh.voxelise(surface, FINE_MM)
    truth, found = solid.data > 0, []
    for spacing in spacings_mm:
        offsets = random.uniform(0, spacing, (2, 3))
        first, second = (onto(voxelise_at(surface, spacing, offset), solid) for offset in offsets)
        found.append(((dice(first, truth) + dice(second, truth)) / 2, dice(first, second)))
    return found


def voxelise_at(surface: trimesh.Trimesh, spacing_mm: float, offset_mm: np.ndarray) -> Volume:
    """As `mesh.voxelise`, with a voxel's centre at `offset_mm` (3,) RAS mm."""
    moved = surface.copy()
    moved.apply_translation(-np.asarray(offset_mm))
    made = mesh.voxelise(moved, spacing_mm)
    affine = made.affine.copy()
    affine[:3, 3] += offset_mm
    return Volume(made.data, affine)


def onto(solid: Volume, grid: Volume) -> np.ndarray:
    """A solid's voxels as boxes, read at the centres of another axis-aligned grid: bool of its shape.

    The solid has a rim of empty voxels, which goes on beyond it.
    """
    places = []
    for axis, (mm, count) in enumerate(zip(shapes.axes_mm(grid), solid.data.shape, strict=True)):
        index = np.rint((mm - solid.affine[axis, 3]) / solid.affine[axis, axis]).astype(int)
        places.append(np.clip(index, 0, count - 1))
    return solid.data[np.ix_(*places)] > 0


def offset_cost(surface: trimesh.Trimesh, offsets_mm: tuple[float, ...]) -> list[float]:
    """Dice between a solid and itself with its whole surface moved outwards, or inwards where an offset is negative.

    Args:
        surface: RAS mm, closed.
        offsets_mm: how far.
    """
    solid = mesh.voxelise(surface, OFFSET_MM)
    rim = int(np.ceil(max(map(abs, offsets_mm)) / OFFSET_MM)) + 1  # Voxels in which the surface may come to lie.
    affine = solid.affine.copy()
    affine[:3, 3] -= rim * OFFSET_MM
    solid = Volume(np.pad(solid.data, rim) > 0, affine)
    inside = solid.data
    near = ndimage.distance_transform_edt(inside) + ndimage.distance_transform_edt(~inside) <= rim
    away = np.where(inside, -np.inf, np.inf)
    away[near] = np.where(inside[near], -1, 1) * distances(surface, solid.world(np.argwhere(near)))
    return [dice(away < offset, inside) for offset in offsets_mm]


def distances(surface: trimesh.Trimesh, points: np.ndarray) -> np.ndarray:
    """(N,) mm from points (N, 3) to a surface: to the nearest of `POINTS_PER_MM2` points on it, along that one's normal.

    The points' own distance from each other counts for none.
    """
    import trimesh

    there, faces = trimesh.sample.sample_surface(surface, int(surface.area * POINTS_PER_MM2), seed=0)
    far, nearest = KDTree(there).query(points)
    across = np.abs(((points - there[nearest]) * surface.face_normals[faces[nearest]]).sum(1))
    aside = np.sqrt(np.maximum(far**2 - across**2, 0))
    return np.hypot(across, np.maximum(aside - POINTS_PER_MM2**-0.5, 0))


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Of two masks on one grid."""
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))
