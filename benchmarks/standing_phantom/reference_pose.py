"""Vertebrae in their reference pose, with endplates and axes that move with them.

Both are found once, on the finest available data, so that a rigid motion of the bone moves them without another search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from benchmarks.studies import voxelisation
from transvert import levels
from transvert.clinical import endplates, vertebra
from transvert.clinical.endplates import Endplates
from transvert.clinical.vertebra import Vertebra, unit
from transvert.data.manifest import Subject
from transvert.imaging import mesh
from transvert.imaging.volume import Volume, cut_cube, read_ct
from transvert.io import InputError

if TYPE_CHECKING:
    import trimesh

FINE_MM = 0.75
"""Voxel size for the search for endplates; reconstructions have twice that."""
POINTS = 2000
"""Points sampled on a bone's surface."""
HU_MARGIN_MM = 3.0
_ROUNDS = 3


@dataclass(frozen=True)
class Bone:
    """A vertebra in its reference pose, RAS mm.

    Attributes:
        level: VerSe number.
        surface: of the whole vertebra.
        centroid: (3,) its centre of mass, the landmark.
        plates: its endplates; None for C1 and C2.
        axes: (3, 3), columns right, front and up; None without endplates. Right is the normal of the plane of symmetry;
            up is the mean normal of the endplates within that plane.
        points: (N, 3) spread over the surface.
        depth: float32 mm, depth of each voxel in the bone; negative outside.
        hu: the CT around it, HU; None where there is none.
    """

    level: int
    surface: trimesh.Trimesh
    centroid: np.ndarray
    plates: Endplates | None
    axes: np.ndarray | None
    points: np.ndarray
    depth: Volume
    hu: Volume | None = None


def open_bones(subject: Subject) -> list[Bone]:
    """Measures the whole vertebrae of a subject, head to tail, with the HU of its CT if it has one.

    Args:
        subject: has surfaces, or a mask with a voxel side of at most 1 mm.

    Raises:
        InputError: it has no such vertebra; or as `measure`.
    """
    ct = None if subject.ct is None else read_ct(subject.ct)
    found = {level: measure(level, surface, ct) for level, _, surface in voxelisation.solids(subject)}
    if not found:
        raise InputError(
            f"The subject {subject.name} has no whole vertebra known to 1 mm; use one with surfaces or a finer mask."
        )
    return [found[level] for level in levels.in_order(set(found))]


def measure(level: int, surface: trimesh.Trimesh, ct: Volume | None = None) -> Bone:
    """Measures endplates and axes of a bone.

    Args:
        level: VerSe number.
        surface: RAS mm; upright and facing forward within about 40 degrees.
        ct: HU, the CT of the bone.

    Raises:
        InputError: as `endplates.fit_endplates`, except for C1 and C2.
    """
    import trimesh

    solid = mesh.voxelise(surface, FINE_MM)
    inside, outside = (ndimage.distance_transform_edt(part, sampling=FINE_MM) for part in (solid.data, solid.data == 0))
    # Both distances end at a voxel's centre, half a voxel beyond the surface.
    depth = Volume((inside - outside - np.sign(inside - outside) * FINE_MM / 2).astype(np.float32), solid.affine)
    centroid = solid.world(np.argwhere(solid.data).mean(0))
    points = np.asarray(trimesh.sample.sample_surface(surface, POINTS, seed=0)[0])
    plates = axes = None
    if level > 2:
        size = max(solid.data.shape) + 16
        axes = np.eye(3)
        for _ in range(_ROUNDS):
            # Search in the bone's own axes, so that the endplates do not depend on its pose.
            upright = surface.copy().apply_transform(_about(centroid, axes.T))
            cube = cut_cube(mesh.voxelise(upright, FINE_MM), centroid, size, FINE_MM, order=0, fill=0)
            fine = Vertebra(level, centroid, cube.data.astype(np.float32), FINE_MM)
            plates = move_plates(endplates.fit_endplates(fine), _about(centroid, axes))
            right = axes @ vertebra.symmetry_normal(fine)
            front = unit(np.cross(plates.superior_normal + plates.inferior_normal, right))
            axes = np.stack([right, front, np.cross(right, front)], axis=1)
    return Bone(level, surface, centroid, plates, axes, points, depth, None if ct is None else _around(ct, surface))


def join(upper: Sequence[Bone], lower: Sequence[Bone]) -> list[Bone]:
    """Joins the bones of two people: those of `upper`, and below them those of `lower`.

    The lower bones are scaled, turned and moved so that both people's vertebrae of the lowest shared level coincide.

    Raises:
        InputError: no shared level with endplates.
    """
    mine, theirs = {bone.level: bone for bone in upper}, {bone.level: bone for bone in lower}
    shared = [n for n in levels.in_order(set(mine) & set(theirs)) if mine[n].plates and theirs[n].plates]
    if not shared:
        raise InputError("These two sets of bones share no level below C2, so they cannot be joined.")
    one, other = mine[shared[-1]], theirs[shared[-1]]
    assert one.plates and other.plates and one.axes is not None and other.axes is not None
    size = (one.plates.depth_mm + one.plates.width_mm) / (other.plates.depth_mm + other.plates.width_mm)
    motion = np.eye(4)
    motion[:3, :3] = size * one.axes @ other.axes.T
    motion[:3, 3] = one.plates.body_centre - motion[:3, :3] @ other.plates.body_centre
    last = list(levels.NAMES).index(levels.in_order(set(mine))[-1])
    added = []
    for bone in lower:
        if list(levels.NAMES).index(bone.level) > last:
            added.append(measure(bone.level, bone.surface.copy().apply_transform(motion)))
    return [*upper, *added]


def move_plates(plates: Endplates, motion: np.ndarray) -> Endplates:
    """Endplates after a rigid motion (4, 4)."""
    moved = {}
    for field in fields(plates):
        value = getattr(plates, field.name)
        if field.name.endswith("normal"):
            value = motion[:3, :3] @ value
        elif field.name.endswith("centre"):
            value = motion[:3, :3] @ value + motion[:3, 3]
        moved[field.name] = value
    return Endplates(**moved)


def penetration_mm(upper: Bone, lower: Bone, motion: np.ndarray) -> float:
    """Penetration depth of two bones.

    Args:
        upper: in the reference pose.
        lower: in the reference pose.
        motion: (4, 4), of the upper bone relative to the lower one.

    Returns:
        mm, the largest depth of a surface point of either bone in the other; 0 if they are apart.
    """
    there = upper.points @ motion[:3, :3].T + motion[:3, 3]
    back = (lower.points - motion[:3, 3]) @ motion[:3, :3]
    return max(0.0, *(float(_sample(bone.depth, at).max()) for bone, at in ((lower, there), (upper, back))))


def _about(centre: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """(4, 4) a rotation (3, 3) about a point."""
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = turn, centre - turn @ centre
    return motion


def _sample(depth: Volume, points: np.ndarray) -> np.ndarray:
    return ndimage.map_coordinates(depth.data, depth.index(points).T, order=1, mode="constant", cval=-np.inf)


def _around(ct: Volume, surface: trimesh.Trimesh) -> Volume:
    """The block of a CT around a surface."""
    low, high = surface.bounds + [[-HU_MARGIN_MM], [HU_MARGIN_MM]]
    ends = ct.index(np.array(np.meshgrid(*zip(low, high, strict=True))).reshape(3, -1).T)
    first = np.clip(np.floor(ends.min(0)).astype(int), 0, ct.data.shape)
    last = np.clip(np.ceil(ends.max(0)).astype(int) + 1, 0, ct.data.shape)
    affine = ct.affine.copy()
    affine[:3, 3] = ct.world(first)
    return Volume(ct.data[tuple(slice(a, b) for a, b in zip(first, last, strict=True))].copy(), affine)
