"""Dice of perfect shapes on coarse voxels, and of shapes with an offset surface."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from transvert import levels
from transvert.data.manifest import Subject
from transvert.data.subjects import read_subject_mask, read_surfaces
from transvert.imaging import masks, mesh
from transvert.imaging.volume import Volume
from transvert.phantom import shapes

if TYPE_CHECKING:
    import trimesh

FINE_MM = 0.25
"""Voxels on which solids of coarser voxels are compared."""
OFFSET_MM = 0.5
"""Voxels on which a surface is offset."""
COARSEST_MM = 1.0
"""Largest voxel side (the smallest of the three) of a mask that counts as finely known."""
POINTS_PER_MM2 = 10


def solids(subject: Subject) -> Iterator[tuple[int, str, trimesh.Trimesh]]:
    """The surfaces of a subject's whole vertebrae.

    Args:
        subject: with surfaces or a mask.

    Yields:
        Level, source ("surface", or the mask's voxel size), and surface, RAS mm. Surfaces from masks are smoothed. A mask
        with a voxel side above `COARSEST_MM` yields nothing.
    """
    if subject.mask is not None:
        mask = read_subject_mask(subject)
        if mask.spacing_mm.min() > COARSEST_MM:
            return
        source = "mask of " + " x ".join(f"{side:.2f}" for side in mask.spacing_mm) + " mm"
        for level, (part, box) in masks.clean_mask(mask).parts.items():
            affine = mask.affine.copy()
            affine[:3, 3] = mask.world(np.array([side.start for side in box]))
            yield level, source, mesh.extract_surface(part, affine)
    elif subject.surfaces:
        found = read_surfaces(subject)
        bones = levels.in_order(set(found) & set(levels.VERTEBRAE))
        yield from ((level, "surface", found[level]) for level in bones)


def voxel_cost(
    surface: trimesh.Trimesh, spacings_mm: tuple[float, ...], random: np.random.Generator
) -> list[tuple[float, float]]:
    """Dice between perfect shapes on different voxels.

    Args:
        surface: RAS mm.
        spacings_mm: voxel sides; a voxel is bone if its centre is.
        random: draws the offsets of two grids per spacing.

    Returns:
        Per spacing: Dice of the solid with its voxels (mean of both grids), and Dice between the two grids.
    """
    solid = mesh.voxelise(surface, FINE_MM)
    truth, found = solid.data > 0, []
    for spacing in spacings_mm:
        offsets = random.uniform(0, spacing, (2, 3))
        first, second = (onto(voxelise_at(surface, spacing, offset), solid) for offset in offsets)
        found.append(((dice(first, truth) + dice(second, truth)) / 2, dice(first, second)))
    return found


def voxelise_at(surface: trimesh.Trimesh, spacing_mm: float, offset_mm: np.ndarray) -> Volume:
    """As `mesh.voxelise`, with one voxel centre at `offset_mm` (3,) RAS mm."""
    moved = surface.copy()
    moved.apply_translation(-np.asarray(offset_mm))
    made = mesh.voxelise(moved, spacing_mm)
    affine = made.affine.copy()
    affine[:3, 3] += offset_mm
    return Volume(made.data, affine)


def onto(solid: Volume, grid: Volume) -> np.ndarray:
    """Resamples a solid to another axis-aligned grid: bool, by nearest voxel. The solid has an empty border."""
    places = []
    for axis, (mm, count) in enumerate(zip(shapes.axes_mm(grid), solid.data.shape, strict=True)):
        index = np.rint((mm - solid.affine[axis, 3]) / solid.affine[axis, axis]).astype(int)
        places.append(np.clip(index, 0, count - 1))
    return solid.data[np.ix_(*places)] > 0


def offset_cost(surface: trimesh.Trimesh, offsets_mm: tuple[float, ...]) -> list[float]:
    """Dice between a solid and itself with its whole surface offset.

    Args:
        surface: RAS mm, closed.
        offsets_mm: positive outwards, negative inwards.
    """
    solid = mesh.voxelise(surface, OFFSET_MM)
    rim = int(np.ceil(max(map(abs, offsets_mm)) / OFFSET_MM)) + 1  # Voxels that the surface may reach.
    affine = solid.affine.copy()
    affine[:3, 3] -= rim * OFFSET_MM
    solid = Volume(np.pad(solid.data, rim) > 0, affine)
    inside = solid.data
    near = ndimage.distance_transform_edt(inside) + ndimage.distance_transform_edt(~inside) <= rim
    away = np.where(inside, -np.inf, np.inf)
    away[near] = np.where(inside[near], -1, 1) * distances(surface, solid.world(np.argwhere(near)))
    return [dice(away < offset, inside) for offset in offsets_mm]


def distances(surface: trimesh.Trimesh, points: np.ndarray) -> np.ndarray:
    """(N,) distances in mm from points (N, 3) to a surface, sampled with `POINTS_PER_MM2`.

    Within the spacing of the samples only the distance along the normal counts.
    """
    import trimesh

    there, faces = trimesh.sample.sample_surface(surface, int(surface.area * POINTS_PER_MM2), seed=0)
    far, nearest = KDTree(there).query(points)
    across = np.abs(((points - there[nearest]) * surface.face_normals[faces[nearest]]).sum(1))
    aside = np.sqrt(np.maximum(far**2 - across**2, 0))
    return np.hypot(across, np.maximum(aside - POINTS_PER_MM2**-0.5, 0))


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Dice of two masks on one grid."""
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))
