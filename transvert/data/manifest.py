"""Data manifests: the files of a data set, where each comes from, and the terms of its use.

A manifest is a YAML file; `data_manifests/README.md` describes its keys. `fetch` brings its files into the cache.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args
from urllib.parse import unquote

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

from transvert import levels
from transvert.imaging.mesh import axes_to_ras
from transvert.io import NAME, InputError, describe_error, read_yaml, share_folder

_TOKENS = {
    "**/": "(?:[^/]+/)*",
    "*": "[^/]*",
    "{subject}": "(?P<subject>[^/]+?)",
    "{scan}": "(?P<scan>(?:_[^/]*)?)",
    "{level}": r"(?P<level>(?i:[CTL]\d+|S1|sacrum))",
}
"""What may stand in a pattern's path, and the regular expression that it stands for."""


def _check_frame(frame: str) -> str:
    if frame != "unstated":
        axes_to_ras(frame)
    return frame


def _check_url(url: str) -> str:
    """Refuses a path that leads out of its folder, since a mirror is searched by it."""
    if ".." in unquote(url).split("/"):
        raise ValueError(f"'..' is not allowed in {url}")
    return url


Role = Literal["ct", "mask", "surface", "faces", "centroids", "film", "landmarks", "structures", "licence"]
ROLES: tuple[Role, ...] = get_args(Role)
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Name = Annotated[str, Field(pattern=f"^{NAME}$")]
Url = Annotated[str, Field(pattern=r"^https://[^/?#\s]+/[^?#\s]+$"), AfterValidator(_check_url)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Md5 = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Level = Annotated[int, BeforeValidator(lambda name: levels.number(str(name)))]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WheelMember(_Model):
    """A file in a wheel on the package index."""

    # pip's command line receives both, and a leading dash would be an option.
    package: Name
    version: Annotated[str, Field(pattern=r"^[0-9][A-Za-z0-9.!+_-]*$")]
    member: Text


class Archive(_Model):
    """A zip archive on the web that holds subjects; `split` is the official split of all of them."""

    url: Url
    sha256: Sha256 = ""
    md5: Md5 = ""
    bytes: PositiveInt | None = None
    split: Name = ""


class _Entry(_Model):
    """The keys that files and patterns share. `levels` and `without` hold VerSe numbers."""

    role: Role
    convention: Literal["", "verse", "totalsegmentator", "totalsegmentator_v1"] = ""
    frame: Annotated[str, AfterValidator(_check_frame)] = ""
    unit: Literal["", "mm", "cm", "m", "voxel", "pixel", "unstated"] = ""
    view: Literal["", "ap", "lateral"] = ""
    levels: tuple[Level, ...] = ()
    faces: Annotated[str, Field(pattern=r"^[^/]+$")] = ""
    cropped: bool = False
    without: tuple[Level, ...] = ()

    @model_validator(mode="after")
    def _check_role(self) -> _Entry:
        for owner, keys in (("surface", ("levels", "faces")), ("mask", ("convention", "cropped", "without"))):
            for key in keys:
                if getattr(self, key) and self.role != owner:
                    raise ValueError(f"only a {owner} may have the key '{key}', not a {self.role}")
        if self.role == "film" and not self.view:
            raise ValueError("a film must have the key 'view'")
        return self


class Pattern(_Entry):
    """The files of one role in an archive or a folder, by their path with the `_TOKENS`."""

    path: Text

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
        used = set(re.findall(r"\{.*?\}|[{}]", self.path))
        if "{subject}" not in used or used - _TOKENS.keys():
            raise ValueError(f"the path {self.path} must hold {{subject}}, and may hold {', '.join(_TOKENS)}")
        if "{level}" in used and (self.role not in ("mask", "surface") or self.levels):
            raise ValueError("only the path of a mask, or of a surface without 'levels', may hold {level}")
        if self.role == "mask" and bool(self.convention) == ("{level}" in used):
            raise ValueError("a mask must have either the key 'convention' or {level} in its path")
        return self


class DataFile(_Entry):
    """One file of a data set, with the VerSe number of its `level`; files found by a pattern state no source."""

    subject: Name
    url: Url = ""
    wheel: WheelMember | None = None
    sha256: Sha256 = ""
    bytes: PositiveInt | None = None
    level: Level | None = None
    licence: Text = ""
    person: Name = ""
    split: Name = ""

    @model_validator(mode="after")
    def _check_file(self) -> DataFile:
        if bool(self.url) == bool(self.wheel):
            raise ValueError("a file must have exactly one source, 'wheel' or 'url'")
        if self.wheel and not self.sha256:
            raise ValueError("a file of a wheel must have the key 'sha256'")
        if self.role == "mask" and not self.convention:
            raise ValueError("a mask must have the key 'convention'")
        if self.levels and self.level is not None:
            raise ValueError("a file must have either 'level' or 'levels'")
        return self

    @property
    def shown(self) -> tuple[int, ...]:
        """VerSe numbers of the vertebrae it is known to show."""
        return self.levels or (() if self.level is None else (self.level,))


class Manifest(_Model):
    """A data set: its terms of use, and its files, either named one by one or found by a layout."""

    name: Name
    title: Text
    version: Text
    licence: Text
    citation: Text
    access: Text
    note: str = ""
    files: tuple[DataFile, ...] = ()
    archives: tuple[Archive, ...] = ()
    layout: tuple[Pattern, ...] = ()
    folder: Path | None = None

    @model_validator(mode="after")
    def _check_set(self) -> Manifest:
        if bool(self.files) == bool(self.layout):
            raise ValueError("a manifest must have either 'files' or 'layout'")
        if self.folder is not None and (self.archives or self.files):
            raise ValueError("a manifest must not have a 'folder' beside 'files' or 'archives'")
        return self


@dataclass(frozen=True)
class Subject:
    """The fetched files of one subject."""

    name: str  #: Subject id; the scan's id where a person has several scans.
    ct: Path | None = None
    mask: Path | None = None
    convention: str = ""  #: Label convention of the mask, a key of `levels.CONVENTIONS`.
    surfaces: dict[int, Path] = field(default_factory=dict)  #: By VerSe level; the pieces of one file share it.
    files: dict[Path, DataFile] = field(default_factory=dict)  #: Every fetched file and its manifest entry.
    person: str = ""  #: Id that all scans of one person share, "" if it is `name`. Splits keep a person on one side.
    split: str = ""  #: Official split.
    problem: str = ""  #: Why the subject is unusable; then it has no files.


def available_manifests() -> list[str]:
    """Names of the manifests that come with the package."""
    return sorted(path.stem for path in share_folder("data_manifests").glob("*.yaml"))


def load_manifest(name_or_path: str | Path) -> Manifest:
    """Reads and checks a manifest.

    Args:
        name_or_path: a name such as "embedded" (one of `available_manifests()`), or the path of a YAML file.

    Raises:
        InputError: there is no such manifest; or the first error in it, with its place.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = share_folder("data_manifests") / f"{name_or_path}.yaml"
        if not path.is_file():
            known = ", ".join(available_manifests())
            hint = f"use a folder, a YAML file, or what `transvert fetch` brings: {known}"
            raise InputError(f"There is no folder or data manifest '{name_or_path}'; {hint}.")
    try:
        found = Manifest.model_validate(read_yaml(path, "data manifest"))
    except ValidationError as error:
        raise InputError(describe_error(error, f"The data manifest {path.name}")) from None
    files = tuple(file if file.licence else file.model_copy(update={"licence": found.licence}) for file in found.files)
    folder = found.folder and path.resolve().parent / found.folder.expanduser()
    return found.model_copy(update={"files": files, "folder": folder})
