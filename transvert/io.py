"""Errors a user can act on, and files that are either whole or absent."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
"""The installed package's folder, which holds `tables`, `weights` and `static`."""


class InputError(ValueError):
    """Bad input, told in one sentence that names the input and what to do."""


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` that replaces it once the block has succeeded.

    The temporary file keeps the ending of `path` (writers such as nibabel choose a format by it) and is
    removed when the block raises, so that a reader never meets a half-written file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # `tempfile` would make it for its owner's eyes alone, and the umask can't be asked without setting it for all threads.
    temporary = path.parent / f".writing-{secrets.token_hex(8)}{''.join(path.suffixes[-2:])}"
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> Path:
    """Writes `content` as indented JSON, atomically. NaN and infinity are refused: JSON has neither."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def read_json(path: str | Path, what: str) -> Any:
    """Reads a JSON file; `what` names it in the sentence a user gets when it can't be read.

    Raises:
        InputError: the file is absent or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"The {what} {path} does not exist.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"The {what} {path} is not valid JSON ({error}).") from None


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV table that comes with this package, by its columns' names."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def share_folder(kind: str) -> Path:
    """The folder of a checkout such as "data_manifests", "params" or "notebooks", or the copy inside a wheel."""
    package = PACKAGE
    # The wheel's own copy first: site-packages may hold somebody else's folder named "notebooks".
    for folder in (package / "_share" / kind, package.parent / kind):
        if folder.is_dir():
            return folder
    raise InputError(f"This installation of transvert has no folder '{kind}'; install it again.")
