"""One reconstructed vertebra in space, its symmetry plane, and several of them assembled into a spine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage, optimize

from transvert import levels
from transvert.imaging.volume import Volume, cube_affine
from transvert.io import InputError

THRESHOLD = 0.5
"""A voxel is part of the vertebra if its probability is at least this."""

# Search for the symmetry plane: this companion's choice.
_SMOOTH_MM = 1.5
_POINTS = 2000
_LARGEST_TURN_DEG = 45.0
_TURN_STEP_DEG = 7.5


@dataclass(frozen=True)
class Vertebra:
    """One reconstructed vertebra and its place in the patient.

    Attributes:
        level: VerSe number.
        centroid_ras: (3,) RAS mm, the centre of the cube.
        probability: (S, S, S) float32 in 0..1, [x, y, z] along the cube's axes.
        spacing_mm: voxel size of the cube.
        axes: (3, 3), columns are the cube's x, y and z as right-handed unit vectors in RAS, each close to RAS's own axis.
    """

    level: int
    centroid_ras: np.ndarray
    probability: np.ndarray
    spacing_mm: float
    axes: np.ndarray = field(default_factory=lambda: np.eye(3))

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) voxel index to RAS mm."""
        affine = np.eye(4)
        affine[:3, :3] = self.axes * self.spacing_mm
        affine[:3, 3] = self.centroid_ras - affine[:3, :3] @ np.full(3, (len(self.probability) - 1) / 2)
        return affine

    @property
    def name(self) -> str:
        """The level's name, such as "L1"."""
        return levels.name(self.level)


def sort_vertebrae(vertebrae: Sequence[Vertebra]) -> list[Vertebra]:
    """Sorts vertebrae from head to tail.

    Raises:
        InputError: a level is not a vertebra or occurs twice.
    """
    given = [v.level for v in vertebrae]
    for level in given:
        if level not in levels.VERTEBRAE or given.count(level) > 1:
            raise InputError(f"{levels.name(level)} is no vertebra or is there twice; give each of C1-L6 once at most.")
    return sorted(vertebrae, key=lambda v: levels.VERTEBRAE.index(v.level))


def missing_levels(vertebrae: Sequence[Vertebra]) -> list[str]:
    """Names of the levels between the top and the bottom vertebra that are absent or empty; never those of `levels.RARE`."""
    given = [v.level for v in sort_vertebrae(vertebrae)]
    present = {v.level for v in vertebrae if (v.probability >= THRESHOLD).any()}
    return [levels.name(n) for n in levels.between(given) if n not in present]


def largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask (face neighbours), bool; an empty mask stays empty."""
    parts, count = ndimage.label(mask)
    return mask if count < 2 else parts == 1 + np.bincount(parts.ravel())[1:].argmax()


def assemble_spine(vertebrae: Sequence[Vertebra], spacing_mm: float = 1.0) -> Volume:
    """Assembles vertebrae into one label volume.

    Args:
        vertebrae: any order, each level once; their cubes may be oblique.
        spacing_mm: voxel size of the volume.

    Returns:
        uint8 VerSe numbers on an axis-aligned grid around all cubes. A voxel gets the level with the highest probability
        there, if that is at least 0.5; only the largest connected part of each level is kept.

    Raises:
        InputError: no vertebra, or a level twice.
    """
    vertebrae = sort_vertebrae(vertebrae)
    if not vertebrae:
        raise InputError("There is no vertebra to assemble: reconstruct at least one level.")
    cubes = [Volume(v.probability.astype(np.float32), v.affine) for v in vertebrae]
    corners = np.array([cube.corners() for cube in cubes])
    low = corners.min((0, 1)) + spacing_mm / 2
    shape = np.ceil((corners.max((0, 1)) - corners.min((0, 1))) / spacing_mm).astype(int)
    grid = cube_affine(low, 1, spacing_mm)
    best = np.full(shape, np.nextafter(np.float32(THRESHOLD), np.float32(0)), np.float32)
    labels = np.zeros(shape, np.uint8)
    for vertebra, cube, ends in zip(vertebrae, cubes, (corners - low) / spacing_mm, strict=True):
        first = np.floor(ends.min(0)).astype(int).clip(0)
        block = tuple(slice(a, b) for a, b in zip(first, np.ceil(ends.max(0)).astype(int) + 1, strict=True))
        mapping = np.linalg.inv(cube.affine) @ grid
        offset = mapping[:3, :3] @ first + mapping[:3, 3]
        here = ndimage.affine_transform(cube.data, mapping[:3, :3], offset, best[block].shape, order=1)
        higher = here > best[block]
        best[block][higher] = here[higher]
        labels[block][higher] = vertebra.level
    for vertebra in vertebrae:
        own = labels == vertebra.level
        labels[own & ~largest_part(own)] = 0
    return Volume(labels, grid)


def axial_rotation_deg(vertebra: Vertebra, near_deg: float | None = None) -> float:
    """Measures the axial rotation, degrees: positive if the vertebra's front is turned to the patient's left.

    It is the angle between the normal of the symmetry plane and the frontal plane, seen from the head (Scoliosis Research
    Society's terminology: Stokes, Spine 1994;19:236-248). How far the vertebra leans forward or back does not change it.

    Args:
        vertebra: any level, turned by at most 45 degrees.
        near_deg: start value of the search, from a nearly equal vertebra; by default several are tried.

    Raises:
        InputError: the vertebra is empty.
    """
    right = symmetry_normal(vertebra, near_deg)
    return float(np.degrees(np.arctan2(right[1], right[0])))


def symmetry_normal(vertebra: Vertebra, near_deg: float | None = None) -> np.ndarray:
    """Finds the plane in which the mirrored vertebra overlaps itself best (this companion's choice).

    Args:
        vertebra, near_deg: as in `axial_rotation_deg`.

    Returns:
        (3,) unit normal in RAS, to the patient's right.

    Raises:
        InputError: the vertebra is empty.
    """
    mask = vertebra.probability >= THRESHOLD
    if not mask.any():
        raise InputError(f"The reconstruction of {vertebra.name} is empty, so it has no rotation.")
    mask = largest_part(mask)
    points = Volume(mask, vertebra.affine).world(np.argwhere(mask))
    # Smoothed, so that mirrored points need not match to the voxel.
    smooth = ndimage.gaussian_filter(mask.astype(np.float32), _SMOOTH_MM / vertebra.spacing_mm)
    field = Volume(smooth, vertebra.affine)
    centre = points.mean(0)
    points = points[:: max(1, len(points) // _POINTS)] - centre

    def mismatch(plane: np.ndarray) -> float:
        """Minus the mean of the smoothed vertebra at its mirrored points; plane: turn, lean (degrees) and offset (mm)."""
        normal = _plane_normal(plane)
        mirrored = points - 2 * np.outer(points @ normal - plane[2], normal)
        index = field.index(mirrored + centre).T
        return -float(ndimage.map_coordinates(smooth, index, order=1).mean())

    turns = np.arange(-_LARGEST_TURN_DEG, _LARGEST_TURN_DEG + 1, _TURN_STEP_DEG) if near_deg is None else [near_deg]
    start = min((np.array([turn, 0.0, 0.0]) for turn in turns), key=mismatch)
    simplex = start + np.array([[0, 0, 0], [5, 0, 0], [0, 5, 0], [0, 0, 2]])
    options = {"initial_simplex": simplex, "xatol": 0.05, "fatol": 1e-6, "maxiter": 150}
    return _plane_normal(optimize.minimize(mismatch, start, method="Nelder-Mead", options=options).x)


def _plane_normal(plane: np.ndarray) -> np.ndarray:
    turn, lean = np.radians(plane[:2])
    return np.array([np.cos(turn) * np.cos(lean), np.sin(turn) * np.cos(lean), np.sin(lean)])
