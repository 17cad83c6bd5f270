"""Vertebrae placed into one standing spine.

A vertebra's plane of symmetry, and how far it is turned about the body's long axis.

The plane is that in which the vertebra, mirrored, comes closest to itself. Its normal, which points to the patient's
right, tells the axial rotation: the angle by which the normal leaves the frontal plane, seen from the head, right-handed
about the axis to the head. It is positive where the vertebra's front is turned to the patient's left. How far a vertebra
leans to the front or back does not change it. This is the axial rotation of the Scoliosis Research Society's
three-dimensional terminology (Stokes, Spine 1994;19:236-248) in the axes of the body; finding it by mirroring is this
companion's choice.


One reconstructed vertebra in space, and the order and the gaps of several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage, optimize

from transvert import levels
from transvert.imaging.volume import Volume, cube_affine
from transvert.io import InputError

THRESHOLD = 0.5
"""The vertebra is where its probability is not below this."""


@dataclass(frozen=True)
class Vertebra:
    """One reconstructed vertebra and where it stands.

    Attributes:
        level: VerSe number.
        centroid_ras: (3,) RAS mm, the centre of the cube.
        probability: (S, S, S) float32 in 0..1, [x, y, z] in the cube's own axes.
        spacing_mm: of the cube.
        axes: (3, 3) its columns are the cube's x, y and z in RAS, right-handed unit vectors not far from RAS's own.
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
        """Such as "L1"."""
        return levels.name(self.level)


def in_order(vertebrae: Sequence[Vertebra]) -> list[Vertebra]:
    """From head to tail, once each level is known to be a vertebra's and to occur once."""
    given = [v.level for v in vertebrae]
    for level in given:
        if level not in levels.VERTEBRAE or given.count(level) > 1:
            raise InputError(f"{levels.name(level)} is no vertebra or is there twice; give each of C1-L6 once at most.")
    return sorted(vertebrae, key=lambda v: levels.VERTEBRAE.index(v.level))


def gaps(vertebrae: Sequence[Vertebra]) -> list[str]:
    """Names of the levels that the spine lacks between its top and its bottom: absent, or reconstructed as nothing.

    Those of `levels.RARE` are never missed.
    """
    given = [v.level for v in in_order(vertebrae)]
    there = {v.level for v in vertebrae if (v.probability >= THRESHOLD).any()}
    return [levels.name(n) for n in levels.between(given) if n not in there]


def largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask (face neighbours); an empty one stays empty."""
    parts, count = ndimage.label(mask)
    return mask if count < 2 else parts == 1 + np.bincount(parts.ravel())[1:].argmax()


def assemble_spine(vertebrae: Sequence[Vertebra], spacing_mm: float = 1.0) -> Volume:
    """The standing spine as one label volume.

    Args:
        vertebrae: any order, each level once; their cubes may stand askew.
        spacing_mm: of the volume.

    Returns:
        uint8, VerSe numbers, an axis-aligned grid over all cubes. A voxel belongs to the vertebra with the highest
        probability there, if that is at least 0.5; of each level the largest connected part is kept.

    Raises:
        InputError: no vertebra, or a level twice.
    """
    vertebrae = in_order(vertebrae)
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
        wins = here > best[block]
        best[block][wins] = here[wins]
        labels[block][wins] = vertebra.level
    for vertebra in vertebrae:
        mine = labels == vertebra.level
        labels[mine & ~largest_part(mine)] = 0
    return Volume(labels, grid)


_SMOOTH_MM = 1.5  # Of the vertebra that its mirrored points are compared with, so that they need not meet exactly.
_POINTS = 2000
_FARTHEST_DEG = 45.0
_STEP_DEG = 7.5


def axial_rotation_deg(vertebra: Vertebra, near_deg: float | None = None) -> float:
    """The angle of the symmetry plane's normal, degrees.

    Args:
        vertebra: of any level. It is found within 45 degrees.
        near_deg: a rotation to start from, known from a vertebra that is nearly the same; by default the best of several.

    Raises:
        InputError: an empty vertebra.
    """
    right = symmetry_normal(vertebra, near_deg)
    return float(np.degrees(np.arctan2(right[1], right[0])))


def symmetry_normal(vertebra: Vertebra, near_deg: float | None = None) -> np.ndarray:
    """(3,) RAS unit normal of the symmetry plane, to the patient's right; arguments as in `axial_rotation_deg`."""
    mask = vertebra.probability >= THRESHOLD
    if not mask.any():
        raise InputError(f"The reconstruction of {vertebra.name} is empty, so it has no rotation.")
    mask = largest_part(mask)
    points = Volume(mask, vertebra.affine).world(np.argwhere(mask))
    soft = ndimage.gaussian_filter(mask.astype(np.float32), _SMOOTH_MM / vertebra.spacing_mm)
    field = Volume(soft, vertebra.affine)
    centre = points.mean(0)
    points = points[:: max(1, len(points) // _POINTS)] - centre

    def apart(guess: np.ndarray) -> float:
        """How little the mirrored vertebra is where the vertebra is; the plane by turn and lean (degrees) and mm."""
        normal = _normal(guess)
        mirrored = points - 2 * np.outer(points @ normal - guess[2], normal)
        where = field.index(mirrored + centre).T
        return -float(ndimage.map_coordinates(soft, where, order=1).mean())

    turns = np.arange(-_FARTHEST_DEG, _FARTHEST_DEG + 1, _STEP_DEG) if near_deg is None else [near_deg]
    start = min((np.array([turn, 0.0, 0.0]) for turn in turns), key=apart)
    simplex = start + np.array([[0, 0, 0], [5, 0, 0], [0, 5, 0], [0, 0, 2]])
    options = {"initial_simplex": simplex, "xatol": 0.05, "fatol": 1e-6, "maxiter": 150}
    return _normal(optimize.minimize(apart, start, method="Nelder-Mead", options=options).x)


def _normal(guess: np.ndarray) -> np.ndarray:
    turn, lean = np.radians(guess[:2])
    return np.array([np.cos(turn) * np.cos(lean), np.sin(turn) * np.cos(lean), np.sin(lean)])
