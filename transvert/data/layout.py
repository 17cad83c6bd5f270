"""Sets of many subjects: whose file is at which path of a folder or a zip archive, and the unpacking of one subject.

A set of a thousand subjects is told by a few patterns, such as `**/derivatives/{subject}/{subject}{scan}_msk.nii.gz`.
Files that are one thing only together are joined: masks of one vertebra each, vertices and their faces.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import IO

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from transvert import levels
from transvert.data.download import room_told
from transvert.data.manifest_schema import DataFile, Manifest, Pattern, ZipMember, check_subject, places
from transvert.io import InputError, atomic_path, sha256

_WILD = {"**/": "(?:[^/]+/)*", "*": "[^/]*"}
_LEVELS = "|".join(sorted([*levels.NUMBERS, "S1"], key=len, reverse=True))
_NAMED = {"{subject}": "[^/]+", "{scan}": "[^/]*", "{level}": f"(?i:{_LEVELS})"}
_DAMAGE = (EOFError, zlib.error, zipfile.BadZipFile, gzip.BadGzipFile)


def expression(path: str) -> re.Pattern[str]:
    """The regular expression of a pattern's path.

    `{subject}` is a name without '/', the same at each place; `{scan}` what tells a person's scans apart, or nothing;
    `{level}` a vertebra's name, such as L1; `*` anything without '/'; `**/` any folders, or none.
    """
    made = ""
    for token in re.split(r"(\*\*/|\*|\{\w+\})", path):
        name = token.strip("{}")
        if token in _NAMED:
            made += f"(?P={name})" if f"(?P<{name}>" in made else f"(?P<{name}>{_NAMED[token]})"
        else:
            made += _WILD.get(token, re.escape(token))
    return re.compile(made)


class Sorter:
    """Sorts paths by a manifest's layout into subjects; keeps in mind what it has seen, over several archives.

    Attributes:
        missed: the patterns that no path has matched yet.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._licence = manifest.licence
        self._patterns = [(pattern, expression(pattern.path)) for pattern in manifest.layout]
        self._taken: dict[tuple[object, ...], str] = {}
        self.missed = set(manifest.layout)

    def sort(self, sources: Iterable[tuple[str, Path | ZipMember]], split: str = "") -> dict[str, list[DataFile]]:
        """Subject id to its files, in the order of the ids.

        Args:
            sources: each path that is looked at, with '/' between its parts, and the file it stands for.
            split: the official split that all are in.

        Raises:
            InputError: an id that can't be one, or two files that take one place.
        """
        found: dict[str, list[DataFile]] = {}
        for path, source in sources:
            if any(part.startswith(".") or part == "__MACOSX" for part in path.split("/")):
                continue
            for pattern, regular in self._patterns:
                match = regular.fullmatch(path)
                if match:
                    file = self._file(pattern, match.groupdict(), path, source, split)
                    found.setdefault(file.subject, []).append(file)
                    self.missed.discard(pattern)
                    break
        return dict(sorted(found.items()))

    def _file(
        self, pattern: Pattern, parts: dict[str, str], path: str, source: Path | ZipMember, split: str
    ) -> DataFile:
        scan = parts.get("scan", "")
        name = parts["subject"] + scan
        check_subject(name, f"The path {path}")
        file = DataFile(
            role=pattern.role,
            subject=name,
            sha256="",
            bytes=0,
            licence=self._licence,
            source=source,
            level=levels.number(parts["level"]) if "level" in parts else None,
            convention=pattern.convention,
            frame=pattern.frame,
            unit=pattern.unit,
            view=pattern.view,
            person=parts["subject"] if "{scan}" in pattern.path else "",
            split=split,
            levels=pattern.levels,
            faces=pattern.faces,
        )
        for place in places(file):
            other = self._taken.setdefault(place, path)
            if other != path:
                raise InputError(
                    f"{other} and {path} are both the {file.role} of the subject {name}: two subjects have one id, or "
                    "the layout is too wide; rename one or narrow the pattern."
                )
        return file


class Folder:
    """A folder whose files are used where they lie."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def sources(self) -> Iterator[tuple[str, Path]]:
        """Every file below, by its path from the root."""
        for folder, folders, names in os.walk(self.root, followlinks=True):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                yield path.relative_to(self.root).as_posix(), path

    def bring(self, file: DataFile, cache: Path) -> Path:
        """Where the file can be opened."""
        assert isinstance(file.source, Path)
        return file.source

    def read(self, file: DataFile) -> bytes:
        """What the file holds."""
        return self.bring(file, self.root).read_bytes()

    def stamp(self, file: DataFile) -> str:
        """A text that changes with the file."""
        return _stamp(self.bring(file, self.root))


class Zipped:
    """A zip archive, out of which files are unpacked one by one."""

    def __init__(self, path: Path, url: str) -> None:
        self.path, self.url = path, url
        self._zip = _open(path, path.stat().st_mtime_ns, os.getpid())

    def sources(self) -> Iterator[tuple[str, ZipMember]]:
        """Every file inside, by its path there."""
        for name in self._zip.namelist():
            if not name.endswith("/"):
                yield name, ZipMember(self.url, name)

    def bring(self, file: DataFile, cache: Path) -> Path:
        """Unpacks the file into its subject's folder of the cache, unless it is there, and says where it lies."""
        info = self._info(file)
        target = cache / file.subject / f"{info.CRC:08x}-{file.filename}"
        if not (target.is_file() and target.stat().st_size == info.file_size):
            with (
                room_told(cache),
                self.opened(file) as source,
                atomic_path(target) as temporary,
                temporary.open("wb") as sink,
            ):
                shutil.copyfileobj(source, sink, 2**20)
        return target

    @contextlib.contextmanager
    def opened(self, file: DataFile) -> Iterator[IO[bytes]]:
        """The file, open for reading; what is wrong with it is told in one sentence."""
        info = self._info(file)
        try:
            with self._zip.open(info) as source:
                yield source
        except (*_DAMAGE, RuntimeError) as error:
            raise InputError(
                f"{info.filename} can't be unpacked from {self.path} ({error}); delete the archive and fetch again."
            ) from None

    def read(self, file: DataFile) -> bytes:
        """What the file holds."""
        with self.opened(file) as source:
            return source.read()

    def stamp(self, file: DataFile) -> str:
        """A text that changes with the file."""
        info = self._info(file)
        return f"{info.filename} {info.file_size} {info.CRC}"

    def _info(self, file: DataFile) -> zipfile.ZipInfo:
        assert isinstance(file.source, ZipMember)
        try:
            return self._zip.getinfo(file.source.member)
        except KeyError:
            raise InputError(
                f"The archive {self.path.name} holds no file {file.source.member}; correct the manifest."
            ) from None


def merge_masks(files: list[DataFile], where: Folder | Zipped, cache: Path) -> DataFile:
    """Joins masks of one vertebra each into one label mask, which is kept in the cache.

    Args:
        files: masks of one subject; a voxel above 0 belongs to the file's level, and to the lower one of two.
        where: what reads them.
        cache: folder of the set.

    Returns:
        The joined mask, uint8, VerSe levels, on the grid of its parts. It may be empty, where no vertebra is seen.

    Raises:
        InputError: a part that can't be read, or lies on another grid than the first.
    """
    stamp = zlib.crc32("\n".join(where.stamp(file) for file in files).encode())
    target = cache / files[0].subject / f"{stamp:08x}-vertebrae.nii.gz"
    if not target.is_file():
        merged, affine = np.zeros(0, np.uint8), np.eye(4)
        for file in sorted(files, key=lambda file: list(levels.NAMES).index(file.level or 0)):
            data, own = _read_mask(file, where)
            if not merged.size:
                merged, affine = np.zeros(data.shape, np.uint8), own
            if data.shape != merged.shape or np.abs(own - affine).max() > 1e-3:
                raise InputError(f"{file.filename} of {file.subject} lies on another grid than {files[0].filename}.")
            merged[data > 0] = file.level or 0
        with atomic_path(target) as temporary:
            nibabel.save(nibabel.Nifti1Image(merged, affine), temporary)
    first = files[0]
    return DataFile(
        "mask", first.subject, "", 0, first.licence, target, convention="verse", person=first.person, split=first.split
    )


def join_faces(paths: Mapping[DataFile, Path], cache: Path) -> dict[DataFile, Path]:
    """Makes an OBJ file, which is kept in the cache, of each surface whose faces lie in a file of their own.

    Args:
        paths: files of one subject and where they lie.
        cache: folder of the set.

    Returns:
        The same, but for those surfaces, which have become one file with its own hash and size.

    Raises:
        InputError: no such faces, or tables that are no surface.
    """
    faces = {file.filename: path for file, path in paths.items() if file.role == "faces"}
    joined = {}
    for file, path in paths.items():
        if file.faces:
            if file.faces not in faces:
                raise InputError(
                    f"{file.filename} of {file.subject} has its faces in {file.faces}, but no file of the role faces of "
                    "this subject is named so; add it."
                )
            path = _joined(path, faces[file.faces], cache / file.subject)
            file = replace(file, sha256=sha256(path), bytes=path.stat().st_size, source=path, faces="")
        joined[file] = path
    return joined


def _joined(vertices: Path, faces: Path, folder: Path) -> Path:
    stamp = zlib.crc32(f"{_stamp(vertices)}\n{_stamp(faces)}".encode())
    target = folder / f"{stamp:08x}-{vertices.stem}.obj"
    if not target.is_file():
        points, corners = _read_table(vertices), _read_table(faces)
        if not ((corners == np.rint(corners)) & (corners >= 1) & (corners <= len(points))).all():
            raise InputError(
                f"The corners of the faces in {faces.name} must be whole numbers from 1 to {len(points)}, the rows of "
                f"{vertices.name}; correct it."
            )
        lines = [f"v {x!r} {y!r} {z!r}\n" for x, y, z in points.tolist()]
        lines += [f"f {a} {b} {c}\n" for a, b, c in corners.astype(int).tolist()]
        with atomic_path(target) as temporary:
            temporary.write_text("".join(lines), encoding="ascii")
    return target


def _read_table(path: Path) -> np.ndarray:
    """(N, 3) float64 of a CSV file without a heading."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            rows = np.loadtxt(path, delimiter=",", ndmin=2, comments=None, encoding="utf-8-sig")
        if rows.shape[1] != 3 or not np.isfinite(rows).all():
            raise ValueError("others are among them")
    except (ValueError, UserWarning) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"{path.name} must hold rows of three finite numbers, parted by commas ({reason}).") from None
    return rows


def _stamp(path: Path) -> str:
    """A text that changes with a file."""
    told = path.stat()
    return f"{path} {told.st_size} {told.st_mtime_ns}"


def _read_mask(file: DataFile, where: Folder | Zipped) -> tuple[np.ndarray, np.ndarray]:
    try:
        content = where.read(file)
        image = nibabel.Nifti1Image.from_bytes(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
        return np.asanyarray(image.dataobj), image.affine
    except InputError:
        raise
    except (*_DAMAGE, OSError, ValueError, ImageFileError, HeaderDataError, WrapStructError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file.filename} of {file.subject} is cut short or no NIfTI file ({reason}).") from None


@lru_cache(maxsize=8)
def _open(path: Path, mtime_ns: int, process: int) -> zipfile.ZipFile:
    """Opens an archive once a process: reading the list of 100,000 members takes a second."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise InputError(f"The archive {path} is damaged or no zip ({error}); delete it and fetch again.") from None
    for name in archive.namelist():
        # A drive or a root makes a path absolute; Windows also takes '\\' for '/'.
        windows = PureWindowsPath(name)
        if ".." in windows.parts or windows.anchor:
            archive.close()
            raise InputError(
                f"The archive {path} holds the member '{name}', which leads out of its folder; do not use it."
            )
    return archive
