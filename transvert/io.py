"""Errors a user can act on, and files that are either whole or absent."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

PACKAGE = Path(__file__).resolve().parent
"""Folder of the installed package, which holds `tables`, `weights` and `static`."""
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
"""Regular expression of a name from outside that may become the name of a file or folder."""


class InputError(ValueError):
    """Bad input, described in one sentence that names the input and what to do."""


def check_name(name: str, what: str) -> str:
    """Returns a name that matches `NAME`; otherwise `what` begins the sentence of an InputError."""
    if not re.fullmatch(NAME, name):
        raise InputError(f"{what} {name!r} must be letters, digits, '.', '_' and '-'; rename it.")
    return name


def describe_error(error: ValidationError, source: str) -> str:
    """One sentence about the first error in the content of `source`; the entries of a list are counted from 1."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part + 1 if isinstance(part, int) else part) for part in first["loc"] if part != "[key]")
    message = first["msg"].removeprefix("Value error, ").rstrip(".").replace("Extra inputs are", "this key is")
    given = (
        ""
        if first["type"] in ("missing", "extra_forbidden", "too_long", "value_error")
        else f", not {first['input']!r}"
    )
    where = f" at '{place}'" if place else ""
    return f"{source} is wrong{where}: {message[0].lower()}{message[1:]}{given}."


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path with the suffix of `path`, which it replaces when the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not `tempfile`: its files are readable by their owner alone, whatever the umask says.
    temporary = path.parent / f".writing-{secrets.token_hex(8)}{''.join(path.suffixes[-2:])}"
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(out: Any) -> Any:
    """Returns a folder to write into, or the address of a store; an InputError says at once if nothing can be written."""
    if "://" not in str(out):
        folder = Path(out).absolute()
        place = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
        try:
            with tempfile.TemporaryFile(dir=place) as file:
                file.write(bytes(2**16))
        except OSError as error:
            raise InputError(
                f"{out} can't be written ({error.strerror}); choose another folder or make room."
            ) from None
    return out


def write_json(path: str | Path, content: Any) -> Path:
    """Writes indented JSON atomically; NaN and infinity raise ValueError, since JSON has neither."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def read_text(path: str | Path, what: str) -> str:
    """Reads a text file in UTF-8, which an error message calls `what`, such as "landmark file"."""
    path = Path(path)
    if not path.is_file():  # A pipe would be waited for.
        raise InputError(f"The {what} {path} {'is not a file' if path.exists() else 'does not exist'}.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The {what} {path} is not text in UTF-8 that can be read ({error}).") from None


Hook = Callable[[list[tuple[str, Any]]], Any]


def parse_json(text: str, source: str, hook: Hook | None = None) -> Any:
    """Parses JSON; `source` begins the sentence of an InputError, and `hook` makes each object from its pairs."""

    def parse_int(digits: str) -> int:
        if len(digits) > 18:
            raise ValueError("a number has too many digits")
        return int(digits)

    try:
        return json.loads(text, parse_int=parse_int, object_pairs_hook=hook)
    except InputError:  # Of the hook.
        raise
    except (RecursionError, ValueError) as error:
        raise InputError(f"{source} is not valid JSON ({error}).") from None


def read_json(path: str | Path, what: str, hook: Hook | None = None) -> Any:
    """Reads a JSON file, which an error message calls `what`, by `parse_json`."""
    return parse_json(read_text(path, what), f"The {what} {path}", hook)


def read_yaml(path: str | Path, what: str) -> Any:
    """Reads a YAML file, which an error message calls `what`; aliases are refused, since they can multiply."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it holds aliases")
            return super().compose_node(parent, index)

    text = read_text(path, what)
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"The {what} {path} is not valid YAML ({' '.join(str(error).split())}).") from None


def read_rows(path: Path) -> list[dict[str, str]]:
    """Reads one of the package's CSV tables: one dictionary per row, column name to text."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def share_folder(kind: str) -> Path:
    """The folder "data_manifests", "params" or "notebooks" of a checkout, or its copy in an installed wheel."""
    # The wheel's copy first: site-packages may hold another project's folder named "notebooks".
    for folder in (PACKAGE / "_share" / kind, PACKAGE.parent / kind):
        if folder.is_dir():
            return folder
    raise InputError(f"This installation of transvert has no folder '{kind}'; install it again.")
