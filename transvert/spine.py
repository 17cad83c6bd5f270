"""Vertebrae placed into one standing spine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from transvert.files import InputError
from transvert.vertebra import THRESHOLD, Vertebra, in_order, largest_part
from transvert.volume import Volume, cube_affine


def assemble(vertebrae: Sequence[Vertebra], spacing_mm: float = 1.0) -> Volume:
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
