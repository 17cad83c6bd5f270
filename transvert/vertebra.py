"""One reconstructed vertebra in space, and the order and the gaps of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from transvert import levels
from transvert.files import InputError

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
