"""A subject's CT and mask, whatever a data set has of them: images, a mask alone, or surfaces of vertebrae."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from transvert.data import manifest, orient
from transvert.data.manifest_schema import DataFile
from transvert.imaging import mesh, volume
from transvert.imaging.volume import Volume
from transvert.io import InputError
from transvert.phantom import paint


def load_subject(subject: manifest.Subject, *, seed: int = 0) -> tuple[Volume, Volume, str]:
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
    return paint.paint_phantom(mask, _own_seed(subject.name, seed)), mask, "phantom"


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


def verse_subjects(folders: Iterable[str | Path]) -> list[manifest.Subject]:
    """The subjects of folders in VerSe's layout: every `*_seg-vert_msk.nii.gz`, with its CT where there is one.

    What stands before the first "_" of a name is the person: VerSe calls two scans of one person
    `sub-verse401_split-verse253` and `sub-verse401_split-verse260`.

    Raises:
        InputError: a folder that does not exist, no mask in any of them, or two of one name.
    """
    found: dict[str, manifest.Subject] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f"The folder {folder} does not exist.")
        for mask in sorted(folder.rglob("*_seg-vert_msk.nii.gz")):
            name = mask.name.removesuffix("_seg-vert_msk.nii.gz")
            if name in found:
                raise InputError(f"Two masks in the folder(s) have the subject id {name}; rename or move one.")
            ct, person = _ct_beside(mask, name, folder), name.partition("_")[0]
            found[name] = manifest.Subject(name, ct, mask, "verse", {}, {}, person=person if person != name else "")
    if not found:
        raise InputError("No file *_seg-vert_msk.nii.gz lies in the folder(s); they hold VerSe's vertebra masks.")
    return list(found.values())


def _ct_beside(mask: Path, name: str, folder: Path) -> Path | None:
    """The CT of a mask: in its own folder, or below a `rawdata/` around it, up to two folders above `folder`.

    Two, so that `derivatives` itself and one subject's folder in it find the `rawdata` that stands beside.
    """
    file = f"{name}_ct.nii.gz"
    if (mask.parent / file).is_file():
        return mask.parent / file
    around = mask.absolute().parent
    for place in (around, *around.parents)[: len(around.parts) - len(folder.absolute().parts) + 3]:
        raw = place / "rawdata"
        if raw.is_dir():
            direct = raw / mask.parent.name / file
            found = [direct] if direct.is_file() else sorted(raw.rglob(file))
            if found:
                return found[0]
    return None
