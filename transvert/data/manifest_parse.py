"""Reads a data manifest's content and checks it: one sentence for the first thing that is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from transvert import levels
from transvert.data.manifest_schema import (
    FRAME,
    FRAME_TOLD,
    ID,
    ID_TOLD,
    ROLES,
    UNITS,
    Archive,
    DataFile,
    Manifest,
    Pattern,
    WheelMember,
    ZipMember,
    places,
)
from transvert.drr.geometry import VIEWS
from transvert.io import InputError

_HEXADECIMAL = {"sha256": 64, "md5": 32}
_DESCRIBED = ("convention", "frame", "unit", "view", "levels", "faces")


def parse_manifest(content: Any, filename: str, base: Path) -> Manifest:
    """Checks what a manifest's YAML holds.

    Args:
        content: as the YAML parser gives it.
        filename: for the sentence a user gets.
        base: the folder of the YAML file, from which its `folder` counts.

    Raises:
        InputError: the first thing that is wrong, and where.
    """
    where = f"The data manifest {filename}"
    texts = ("name", "title", "version", "licence", "citation", "access")
    _check_keys(content, texts, ("note", "files", "archives", "layout", "folder"), where)
    fields = {key: _text(content, key, where) for key in (*texts, "note") if key in content}
    _text(content, "name", where, ID, ID_TOLD)
    if ("files" in content) == ("layout" in content):
        raise InputError(f"{where} must have either 'files' or 'layout'.")
    lists = {key: _list(content, key, where) for key in ("files", "archives", "layout") if key in content}
    if "folder" in content and ("archives" in content or "files" in content):
        raise InputError(f"{where} must not have a 'folder' beside 'files' or 'archives'.")
    told = f"of the data manifest {filename}"
    archives = [_archive(entry, f"Archive {n} {told}") for n, entry in enumerate(lists.get("archives", []), 1)]
    if len({archive.filename for archive in archives}) < len(archives):
        raise InputError(f"{where} names two archives alike; remove one.")
    return Manifest(
        **fields,
        files=_files(lists.get("files", []), fields["licence"], told),
        archives=tuple(archives),
        layout=tuple(
            _pattern(entry, f"Entry {n} of the layout {told}") for n, entry in enumerate(lists.get("layout", []), 1)
        ),
        folder=base / Path(_text(content, "folder", where)).expanduser() if "folder" in content else None,
    )


def _files(entries: list[Any], licence: str, told: str) -> tuple[DataFile, ...]:
    files: list[DataFile] = []
    first: dict[tuple[object, ...], int] = {}
    for number, entry in enumerate(entries, start=1):
        where = f"File {number} {told}"
        file = _data_file(entry, licence, where)
        for place in places(file):
            if first.setdefault(place, number) != number:
                raise InputError(
                    f"{where}, a {file.role} of {file.subject}, takes the place of file {first[place]}; remove one."
                )
        files.append(file)
    present = {(file.subject, file.filename) for file in files if file.role == "faces"}
    for number, file in enumerate(files, start=1):
        if file.faces and (file.subject, file.faces) not in present:
            raise InputError(
                f"File {number} {told} has its faces in {file.faces}, but no file of the role faces of {file.subject} is "
                "named so; add it."
            )
    return tuple(files)


def _data_file(entry: Any, licence: str, where: str) -> DataFile:
    own = ("sha256", "bytes", "level", "licence", "wheel", "zip", "url")
    _check_keys(entry, ("role", "subject"), (*own, *_DESCRIBED), where)
    if sum(key in entry for key in ("wheel", "zip", "url")) != 1:
        raise InputError(f"{where} must have exactly one source: 'wheel', 'zip' or 'url'.")
    role = _choice(entry, "role", ROLES, where)
    if (role == "mask") != ("convention" in entry):
        raise InputError(f"{where} is a {role}: a mask must have the key 'convention', and no other role may.")
    return DataFile(
        role=role,
        subject=_text(entry, "subject", where, ID, ID_TOLD),
        sha256=_hash(entry, "sha256", where),
        bytes=_size(entry, where),
        licence=_text(entry, "licence", where) if "licence" in entry else licence,
        source=_source(entry, where),
        level=_level(entry, "level", where) if "level" in entry else None,
        **_described(entry, role, "level" in entry, where),
    )


def _archive(entry: Any, where: str) -> Archive:
    _check_keys(entry, ("url",), ("sha256", "md5", "bytes", "split"), where)
    split = _text(entry, "split", where, ID, ID_TOLD) if "split" in entry else ""
    return Archive(
        _url(entry, where), _hash(entry, "sha256", where), _hash(entry, "md5", where), _size(entry, where), split
    )


def _pattern(entry: Any, where: str) -> Pattern:
    _check_keys(entry, ("role", "path"), _DESCRIBED, where)
    role = _choice(entry, "role", ROLES, where)
    path = _text(entry, "path", where)
    _check_inside(path, where)
    unknown = set(re.findall(r"\{.*?\}|[{}]", path)) - {"{subject}", "{scan}", "{level}"}
    if unknown or "{subject}" not in path:
        raise InputError(
            f"{where}: 'path' must hold {{subject}}, and may hold {{scan}}, {{level}}, * and **/, not {path!r}."
        )
    if "{level}" in path and role not in ("mask", "surface"):
        raise InputError(f"{where} is a {role}: only a mask or a surface may have {{level}} in its path.")
    if ("convention" in entry) != (role == "mask" and "{level}" not in path):
        raise InputError(
            f"{where} is a {role}: a mask must have either the key 'convention' or {{level}} in its path, "
            "and no other role may have a convention."
        )
    return Pattern(role, path, **_described(entry, role, "{level}" in path, where))


def _described(entry: dict[str, Any], role: str, has_level: bool, where: str) -> dict[str, Any]:
    """What files and patterns have in common; `has_level` where the entry tells of one level in another way."""
    if role == "film" and "view" not in entry:
        raise InputError(f"{where} is a film and must have the key 'view': {' or '.join(VIEWS)}.")
    for key in ("levels", "faces"):
        if key in entry and role != "surface":
            raise InputError(f"{where} is a {role}: only a surface may have the key '{key}'.")
    if "levels" in entry and has_level:
        raise InputError(f"{where} must have either one level or 'levels'.")
    known = {"convention": tuple(levels.CONVENTIONS), "unit": UNITS, "view": VIEWS}
    texts = {key: _choice(entry, key, values, where) for key, values in known.items() if key in entry}
    if "frame" in entry:
        texts["frame"] = _text(entry, "frame", where, FRAME, FRAME_TOLD)
    if "faces" in entry:
        texts["faces"] = _text(entry, "faces", where, r"[^/\\]+", "a file's name")
    return {**texts, "levels": _levels(entry, where) if "levels" in entry else ()}


def _level(entry: dict[str, Any], key: str, where: str) -> int:
    name = _text(entry, key, where)
    try:
        return levels.number(name)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _levels(entry: dict[str, Any], where: str) -> tuple[int, ...]:
    found = [_level({"levels": name}, "levels", where) for name in _list(entry, "levels", where)]
    if len(found) < 2 or found != levels.in_order(set(found)):
        raise InputError(f"{where}: 'levels' must name two levels or more, each once and from the head down.")
    return tuple(found)


def _source(entry: dict[str, Any], where: str) -> WheelMember | ZipMember | str:
    if "url" in entry:
        return _url(entry, where)
    kind = "wheel" if "wheel" in entry else "zip"
    inner, where = entry[kind], f"The {kind} of {where[0].lower()}{where[1:]}"
    _check_keys(inner, ("package", "version", "member") if kind == "wheel" else ("url", "member"), (), where)
    member = _text(inner, "member", where)
    _check_inside(member, where)
    if kind == "zip":
        return ZipMember(_url(inner, where), member)
    # Both go to pip's command line, where a leading dash would be an option.
    package = _text(inner, "package", where, ID, "a package name")
    return WheelMember(package, _text(inner, "version", where, r"[0-9][A-Za-z0-9.!+_-]*", "a version"), member)


def _url(entry: dict[str, Any], where: str) -> str:
    url = _text(entry, "url", where, r"https://[^/?#\s]+/[^?#\s]+", "an https address without blanks, '?' and '#'")
    _check_inside(unquote(urlsplit(url).path).removeprefix("/"), where)
    return url


def _hash(entry: dict[str, Any], key: str, where: str) -> str:
    digits = _HEXADECIMAL[key]
    told = f"{digits} lower-case hexadecimal digits"
    return _text(entry, key, where, rf"[0-9a-f]{{{digits}}}", told) if key in entry else ""


def _size(entry: dict[str, Any], where: str) -> int:
    size = entry.get("bytes", 0)
    if not isinstance(size, int) or isinstance(size, bool) or ("bytes" in entry and size <= 0):
        raise InputError(f"{where}: 'bytes' must be a whole number above 0, not {size!r}.")
    return size


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


def _list(entry: dict[str, Any], key: str, where: str) -> list[Any]:
    if not isinstance(entry[key], list) or not entry[key]:
        raise InputError(f"{where} must list at least one entry under '{key}'.")
    return entry[key]


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
