"""The lock file: the SHA-256 of what was downloaded, and the size and time by which it is known again without hashing.

    {"schema": "transvert-lock/1",
     "files": {"https://example.org/scans.zip": {"sha256": "...", "bytes": 12345, "mtime_ns": 1700000000000000000}}}

A copy of it beside a manifest `<name>.yaml`, as `<name>.lock.json`, gives the manifest the hashes that its publisher
does not; the times mean nothing there and may be left out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transvert.io import InputError, read_json, write_json

SCHEMA = "transvert-lock/1"


@dataclass(frozen=True)
class Entry:
    """What is recorded of one file: 64 hexadecimal digits, its size, and when the copy on this machine was written."""

    sha256: str
    bytes: int
    mtime_ns: int = 0


class Lock:
    """A lock file that is read once and written whenever something is recorded.

    Attributes:
        path: the file, which need not exist.
        entries: address (or another name that doesn't change) to what is recorded of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = read(path)

    def knows(self, key: str, file: Path, sha256: str = "") -> bool:
        """Whether the file is the recorded one, by its size and time, and the recorded one has this SHA-256."""
        entry = self.entries.get(key)
        if entry is None or (sha256 and sha256 != entry.sha256):
            return False
        told = file.stat()
        return (told.st_size, told.st_mtime_ns) == (entry.bytes, entry.mtime_ns)

    def record(self, key: str, file: Path, sha256: str) -> None:
        """Records a file whose SHA-256 has just been taken."""
        told = file.stat()
        self.entries = {**read(self.path), key: Entry(sha256, told.st_size, told.st_mtime_ns)}
        write_json(self.path, {"schema": SCHEMA, "files": {key: vars(entry) for key, entry in self.entries.items()}})


def read(path: Path) -> dict[str, Entry]:
    """The entries of a lock file; none where there is no such file.

    Raises:
        InputError: it is no lock file.
    """
    if not path.is_file():
        return {}
    content: Any = read_json(path, "lock file")
    try:
        if content["schema"] != SCHEMA:
            raise ValueError
        return {key: _entry(**entry) for key, entry in content["files"].items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(f"The lock file {path} is garbled; restore or delete it.") from None


def digests(path: Path, *algorithms: str) -> tuple[str, ...]:
    """The hexadecimal digests of a file, such as its "sha256" and its "md5", in one reading."""
    hashes = [hashlib.new(algorithm, usedforsecurity=False) for algorithm in algorithms]
    with path.open("rb") as file:
        while block := file.read(2**20):
            for one in hashes:
                one.update(block)
    return tuple(one.hexdigest() for one in hashes)


def _entry(sha256: str, bytes: int, mtime_ns: int = 0) -> Entry:
    if len(sha256) != 64 or int(sha256, 16) < 0 or bytes < 1:
        raise ValueError
    return Entry(sha256, bytes, mtime_ns)
