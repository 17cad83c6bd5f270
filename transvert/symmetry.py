"""A vertebra's plane of symmetry, and how far it is turned about the body's long axis.

The plane is that in which the vertebra, mirrored, comes closest to itself. Its normal, which points to the patient's
right, tells the axial rotation: the angle by which the normal leaves the frontal plane, seen from the head, right-handed
about the axis to the head. It is positive where the vertebra's front is turned to the patient's left. How far a vertebra
leans to the front or back does not change it. This is the axial rotation of the Scoliosis Research Society's
three-dimensional terminology (Stokes, Spine 1994;19:236-248) in the axes of the body; finding it by mirroring is this
companion's choice.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage, optimize

from transvert.files import InputError
from transvert.vertebra import THRESHOLD, Vertebra, largest_part
from transvert.volume import Volume

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
