"""Subjects: what a user names as a source of CTs, and the CT and mask (or phantom and mask) of each subject."""

from __future__ import annotations

import os
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from transvert import levels
from transvert.data import fetch
from transvert.data.manifest import Manifest, Pattern, Subject, load_manifest
from transvert.imaging import mesh, volume
from transvert.imaging.volume import AIR_HU, Volume
from transvert.io import NAME, InputError
from transvert.phantom import paint

if TYPE_CHECKING:
    import trimesh

BLEND_MM = 8.0
_SPACING_MM = 1.0
_LEAST_PITCH_MM = 6.0
"""Pieces of a file whose centres differ less than this in height are not vertebrae that stand on each other."""
_LENGTH_MM = (25.0, 160.0)
"""Limits of the longest side of a vertebra's box, from a child's neck to a large man's lumbar spine."""
_VERSE = (
    Pattern(role="ct", path="**/{subject}{scan}_ct.nii.gz"),
    Pattern(role="mask", path="**/{subject}{scan}_seg-vert_msk.nii.gz", convention="verse"),
)
_CT = re.compile(r"(?i)(?:^|[/_-])ct\.nii(?:\.gz)?$")
_TOTALSEGMENTATOR = (
    Pattern(role="ct", path="**/{subject}/ct.nii.gz"),
    Pattern(role="mask", path="**/{subject}/segmentations/vertebrae_{level}.nii.gz"),
    Pattern(role="mask", path="**/{subject}/vertebrae_{level}.nii.gz"),
    Pattern(role="mask", path="**/{subject}/segmentations.nii.gz", convention="totalsegmentator"),
    Pattern(role="mask", path="**/{subject}/vertebrae.nii.gz", convention="totalsegmentator"),
)


@dataclass(frozen=True)
class SubjectStream:
    """Subjects that are fetched while they are iterated. An unusable subject is yielded with its `problem`.

    `unused` are the paths of CTs that belong to no mask by their names.
    """

    found: list[tuple[fetch.Cache, str, list]]
    unused: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[Subject]:
        seen: set[str] = set()
        for cache, name, files in self.found:
            try:
                if name.casefold() in seen:  # Some file systems do not distinguish upper and lower case.
                    raise InputError(f"There are two subjects {name}; rename one.")
                subject = fetch.make_subject(name, files, cache)
                person = re.compile(rf"(?<![^\W_]){re.escape(subject.person or name)}(?![^\W_])")
                near = [path for path in self.unused if person.search(path)]
                if near and subject.ct is None:
                    raise InputError(f"{near[0]} is not read as its CT: name it {name}_ct.nii.gz, or move it away.")
            except InputError as error:
                subject = Subject(name if re.fullmatch(NAME, name) else ascii(name), problem=str(error))
            seen.add(name.casefold())
            yield subject


def find_subjects(sources: str | Path | Iterable[str | Path]) -> SubjectStream:
    """Finds the subjects of what a user names.

    Args:
        sources: one or several of: a manifest's name; the path of a manifest (.yaml); a folder in VerSe's layout; a
            folder of TotalSegmentator's output. `data_manifests/README.md` describes both layouts.

    Raises:
        InputError: a source that is none of these, or holds no subject.
    """
    found: list[tuple[fetch.Cache, str, list]] = []
    unused: list[str] = []
    for source in [sources] if isinstance(sources, str | Path) else sources:
        if Path(source).is_dir():
            cache, listing, others = _find_in_folder(Path(os.path.abspath(source)))
            unused += others
        else:
            cache = fetch.Cache(load_manifest(source), progress=True)
            listing = fetch.list_files(cache, ("ct", "mask", "surface"))
        found += [(cache, name, files) for name, files in listing.items()]
    return SubjectStream(found, tuple(unused))


def _find_in_folder(root: Path) -> tuple[fetch.Cache, fetch.Listing, list[str]]:
    """The subjects of a folder in VerSe's layout, or else of one of TotalSegmentator's output; and its unused CTs."""
    # With its own name before each path, a single subject's folder fits the same patterns.
    paths = [(f"{root.name.lstrip('.')}/{path}", file) for path, file in fetch.walk_folder(root)]
    # `derivatives` and a subject's folder in it have their CTs in the `rawdata` beside them.
    beside = [parent / "rawdata" for parent in root.parents[:2] if "derivatives" in (root.name, root.parent.name)]
    raw = [(f"rawdata/{path}", file) for folder in beside for path, file in fetch.walk_folder(folder)]
    name = f"{root.name}-{zlib.crc32(str(root).encode()):08x}"
    for layout, more in ((_VERSE, raw), (_TOTALSEGMENTATOR, [])):
        cache = fetch.Cache(Manifest.model_construct(name=name, licence="", layout=layout))
        listing = fetch.sort_paths(cache.manifest, [*paths, *more])
        masked = {n: files for n, files in listing.items() if any(file.role == "mask" for file, _ in files)}
        if masked:
            used = {source for files in masked.values() for _, source in files}
            return cache, masked, [path for path, file in [*paths, *more] if file not in used and _CT.search(path)]
    raise InputError(
        f"The folder {root} holds neither VerSe's masks (*_seg-vert_msk.nii.gz) nor TotalSegmentator's output "
        "(SUBJECT/segmentations/vertebrae_L1.nii.gz, or one multilabel file SUBJECT/segmentations.nii.gz)."
    )


def load_subject(subject: Subject, *, seed: int = 0) -> tuple[Volume, Volume, str]:
    """Reads a subject's CT and mask, or paints a phantom where there is no CT.

    Returns:
        CT or phantom, float32, HU; mask, uint8, VerSe levels, which may cover less; and "ct" or "phantom". The phantom's
        material depends on the seed and the subject's name.

    Raises:
        InputError: the subject has a problem, or neither mask nor surfaces; a file can't be used; grids differ.
    """
    if subject.problem:
        raise InputError(subject.problem)
    if subject.mask is not None:
        mask = read_subject_mask(subject)
    elif subject.surfaces:
        mask = merge_levels(
            {level: mesh.voxelise(found, _SPACING_MM) for level, found in read_surfaces(subject).items()}
        )
    else:
        raise InputError(f"The subject {subject.name} has neither a mask nor surfaces of vertebrae.")
    paint_seed = zlib.crc32(f"{subject.name}/{seed}".encode())
    if subject.ct is None:
        return paint.paint_phantom(mask, paint_seed), mask, "phantom"
    ct = volume.read_ct(subject.ct)
    if subject.mask in subject.files and subject.files[subject.mask].cropped:
        volume.check_same_grid(_add_margin(ct, AIR_HU), mask, (f"CT {subject.ct.name}", "mask"))
        return insert_ct(ct, paint.paint_phantom(mask, paint_seed)), mask, "ct"
    volume.check_same_grid(ct, mask, (f"CT {subject.ct.name}", "mask"))
    # The affines of one grid, written by two programs, may differ in rounding.
    return ct, Volume(mask.data, ct.affine), "ct"


def insert_ct(ct: Volume, body: Volume) -> Volume:
    """Inserts a CT that was cropped to the bones into a painted body, in place; they blend over `BLEND_MM` at its faces."""
    mapping = np.linalg.inv(ct.affine) @ body.affine
    corners = body.index(ct.corners())
    low = np.clip(np.floor(corners.min(0)).astype(int), 0, body.data.shape)
    high = np.clip(np.ceil(corners.max(0)).astype(int) + 1, 0, body.data.shape)
    block, shape = tuple(slice(a, b) for a, b in zip(low, high, strict=True)), tuple(high - low)
    start = mapping[:3, :3] @ low + mapping[:3, 3]
    values = ndimage.affine_transform(ct.data, mapping[:3, :3], start, shape, order=1, mode="nearest")
    index = np.einsum("ij,jxyz->ixyz", mapping[:3, :3], np.indices(shape, np.float32)) + start[:, None, None, None]
    depth_mm = np.full(shape, np.inf)
    for axis, n in enumerate(ct.data.shape):
        faces = np.minimum(index[axis] + 0.5, n - 0.5 - index[axis]) * ct.spacing_mm[axis]
        depth_mm = np.minimum(depth_mm, faces)
    share = np.clip(depth_mm / BLEND_MM, 0, 1).astype(np.float32)
    body.data[block] += share * (values - body.data[block])
    return body


def read_subject_mask(subject: Subject) -> Volume:
    """Reads a subject's mask, uint8, VerSe levels, without the labels that its manifest lists under `without`.

    A mask that is `cropped` to its labels gets a margin of one voxel, so that its border truncates no vertebra.
    """
    assert subject.mask is not None
    mask = volume.read_mask(subject.mask, subject.convention)
    file = subject.files.get(subject.mask)
    if file and file.without:
        mask.data[np.isin(mask.data, file.without)] = 0
    return _add_margin(mask, 0) if file and file.cropped else mask


def _add_margin(inside: Volume, fill: float) -> Volume:
    affine = inside.affine.copy()
    affine[:3, 3] = inside.world(np.array([-1, -1, -1]))
    return Volume(np.pad(inside.data, 1, constant_values=fill), affine)


def read_surfaces(subject: Subject) -> dict[int, trimesh.Trimesh]:
    """Reads the surface of each VerSe level of a subject, in RAS millimetres by the frame and unit that are stated.

    Levels that share a file are its largest pieces (`mesh.largest_pieces`), from the head down along the stated frame.

    Raises:
        InputError: a surface without frame or unit, or that contradicts them by its size or by the order of its levels.
    """
    placed: dict[int, trimesh.Trimesh] = {}
    for path in dict.fromkeys(subject.surfaces.values()):
        shown = levels.in_order({level for level, other in subject.surfaces.items() if other == path})
        file = subject.files.get(path)
        for key in ("frame", "unit"):
            if getattr(file, key, "") in ("", "unstated"):
                raise InputError(f"The manifest states no '{key}' of the surface {path.name}; add it there.")
        assert file is not None
        pieces = [_read_surface(subject, path)]
        if len(shown) > 1:
            pieces = mesh.largest_pieces(pieces[0], len(shown), path.name)
        pieces = [mesh.surface_to_ras(piece, file.unit, file.frame) for piece in pieces]
        pieces.sort(key=lambda piece: -piece.center_mass[2])
        if len(shown) > 1 and -np.diff([piece.center_mass[2] for piece in pieces]).max() < _LEAST_PITCH_MM:
            raise InputError(f"The vertebrae of {path.name} don't stand one above the other; correct its frame.")
        placed |= dict(zip(shown, pieces, strict=True))
    _check_surfaces(subject, placed)
    return {level: placed[level] for level in subject.surfaces}


def _check_surfaces(subject: Subject, placed: dict[int, trimesh.Trimesh]) -> None:
    """Refuses surfaces whose sizes or order contradict the stated units, frames and levels."""
    vertebrae = levels.in_order(set(placed) & set(levels.VERTEBRAE))
    for level in vertebrae:
        length = float(placed[level].extents.max())
        if not _LENGTH_MM[0] <= length <= _LENGTH_MM[1]:
            name = subject.surfaces[level].name
            raise InputError(f"{name} is {length:.3g} mm long, which is no {levels.name(level)}; correct its unit.")
    if (np.diff([placed[level].center_mass[2] for level in vertebrae]) >= 0).any():
        raise InputError(f"The surfaces of {subject.name} don't stand in the order of their levels; correct frames.")


def _read_surface(subject: Subject, path: Path) -> trimesh.Trimesh:
    """A surface in its file's own frame and unit; a table of vertices has its faces in another file of the subject."""
    name = subject.files[path].faces
    if not name:
        return mesh.read_surface(path)
    # A cached file's name begins with digits of its hash.
    faces = [other for other, file in subject.files.items() if file.role == "faces" and other.name.endswith(name)]
    if not faces:
        raise InputError(f"{path.name} has its faces in {name}, but {subject.name} has no such file of the role faces.")
    points, corners = _read_table(path), _read_table(faces[0])
    if not ((corners == np.rint(corners)) & (corners >= 1) & (corners <= len(points))).all():
        raise InputError(f"The faces in {name} must be whole numbers from 1 to {len(points)}, the rows of {path.name}.")
    import trimesh

    surface = trimesh.Trimesh(points, corners.astype(int) - 1, process=False)
    surface.merge_vertices(merge_tex=True, merge_norm=True)
    return surface


def _read_table(path: Path) -> np.ndarray:
    """(N, 3) float64 of a CSV file without a heading."""
    try:
        with warnings.catch_warnings(action="ignore"):  # An empty file is refused below.
            rows = np.loadtxt(path, delimiter=",", ndmin=2)
    except ValueError:
        rows = np.zeros((0, 0))
    if rows.shape[1] != 3 or not np.isfinite(rows).all():
        raise InputError(f"{path.name} must hold rows of three finite numbers with commas between.")
    return rows


def merge_levels(parts: dict[int, Volume]) -> Volume:
    """Masks of single levels from `mesh.voxelise` on one grid, with a margin so that none touches its border."""
    corners = np.concatenate([part.corners() for part in parts.values()])
    # `voxelise` puts voxel centres on whole multiples of the spacing, and so does this grid.
    low = np.floor(corners.min(0) / _SPACING_MM) - 3
    shape = (np.ceil(corners.max(0) / _SPACING_MM) + 4 - low).astype(int)
    affine = np.diag([_SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = low * _SPACING_MM
    merged = Volume(np.zeros(shape, np.uint8), affine)
    for level, part in parts.items():
        where = np.argwhere(part.data)
        merged.data[tuple(np.rint(merged.index(part.world(where))).astype(int).T)] = level
    return merged
