"""A subject's CT and mask, whatever a data set has of them: images, a mask alone, or surfaces of vertebrae."""

from __future__ import annotations

import zlib

import numpy as np

from transvert import manifest, mesh, orient, phantom, volume
from transvert.files import InputError
from transvert.manifest_schema import DataFile
from transvert.volume import Volume


def open_subject(subject: manifest.Subject, *, seed: int = 0) -> tuple[Volume, Volume, str]:
    """A subject's CT and mask on one grid, or a phantom and its mask.

    Args:
        subject: with a mask, or with surfaces; with a CT or without.
        seed: of the phantom's material; a subject's name makes it the subject's own.

    Returns:
        CT or phantom in HU, mask in VerSe levels, and "ct" or "phantom".

    Raises:
        InputError: neither mask nor surfaces, CT and mask on different grids, or surfaces whose frame can't be told.
    """
    if subject.mask is not None:
        mask = volume.read_mask(subject.mask, subject.convention)
    elif subject.surfaces:
        files = {n: orient.Surface(path, *_stated(subject.files.get(path))) for n, path in subject.surfaces.items()}
        surfaces = orient.read_surfaces(files)
        mask = _merged({level: mesh.voxelise(surface, 1.0) for level, surface in surfaces.items()}, 1.0)
    else:
        raise InputError(f"The subject {subject.name} has neither a mask nor surfaces of vertebrae.")
    if subject.ct is not None:
        ct = volume.read_ct(subject.ct)
        volume.check_same_grid(ct, mask, (f"CT {subject.ct.name}", "mask"))
        # Of one grid, written by two programs, only the rounding differs.
        return ct, Volume(mask.data, ct.affine), "ct"
    return phantom.paint(mask, _own_seed(subject.name, seed)), mask, "phantom"


def _stated(file: DataFile | None) -> tuple[str, str]:
    """The unit and the frame that a manifest states of a surface."""
    return (file and file.unit) or orient.UNSTATED, (file and file.frame) or orient.UNSTATED


def _own_seed(name: str, seed: int) -> int:
    return zlib.crc32(f"{name}/{seed}".encode())


def _merged(parts: dict[int, Volume], spacing_mm: float) -> Volume:
    """Masks of single levels on one axis-aligned grid, with a margin so that none touches its border."""
    corners = np.concatenate([part.corners() for part in parts.values()])
    # `voxelise` puts voxel centres on whole multiples of the spacing; so does this, and every voxel finds its own.
    low = np.floor(corners.min(0) / spacing_mm) - 3
    shape = (np.ceil(corners.max(0) / spacing_mm) + 4 - low).astype(int)
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = low * spacing_mm
    merged = Volume(np.zeros(shape, np.uint8), affine)
    for level, part in parts.items():
        where = np.argwhere(part.data)
        merged.data[tuple(np.rint(merged.index(part.world(where))).astype(int).T)] = level
    return merged
