"""A store of samples: one Zarr group per subject, and an index that summarises them.

    store/index.json
    store/sub-verse004-0123456789ab/.zgroup  .zattrs  hu/  labels/  pictures/

A store is a folder, or any address that fsspec knows, such as `s3://bucket/store`. Each array has one chunk per sample,
byte-shuffled and compressed by zstd with a checksum. Many processes write at once, each its own groups. A group counts
from the moment it has attributes, which are written last: a subject is there whole or not at all. The index only saves
time: an absent or outdated one is completed from the groups' attributes.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from transvert.io import InputError, atomic_path, check_name

INDEX = "index.json"
_ATTRIBUTES = ".zattrs"
_READERS = 8


def group_name(subject: str, digest: str) -> str:
    """The folder name of a subject's group; `digest` identifies the input files and settings."""
    return f"{subject}-{digest[:12]}"


def _subject(name: str) -> str:
    return name.rpartition("-")[0]


def group_names(store: str | Path) -> list[str]:
    """The names of the complete groups of a store; none where there is no store."""
    return sorted(_read_attributes(store))


def write_files(store: str | Path, contents: dict[str, bytes]) -> None:
    """Writes files into a store by their paths there, each whole or not at all."""
    files, folder, local = _locate(store)
    if not local:
        files.pipe({f"{folder}/{name}": content for name, content in contents.items()})
        return
    for name, content in contents.items():
        with atomic_path(Path(folder) / name) as temporary:
            temporary.write_bytes(content)


def write_group(store: str | Path, name: str, rows: pd.DataFrame, arrays: dict[str, np.ndarray]) -> None:
    """Writes a subject's group, whole or not at all, in place of all earlier groups of the same subject.

    Each sample has a row of text and numbers for the index, with a column `subject`, and an entry (N, ...) in each array.
    """
    write_files(store, {f"{name}/{key}": content for key, content in _encode(arrays).items()})
    files, _, _ = _locate(store)
    for other, path in _list_groups(store).items():
        if other != name and _subject(other) == _subject(name):
            # The attributes first: what is left after a kill does not count.
            for target in (f"{path}/{_ATTRIBUTES}", path):
                with contextlib.suppress(FileNotFoundError):
                    files.rm(target, recursive=True)
    write_files(store, {f"{name}/{_ATTRIBUTES}": json.dumps({"rows": rows.to_dict("records")}).encode()})


def read_rows(store: str | Path, name: str, rows: Sequence[int]) -> dict[str, np.ndarray]:
    """Reads samples of a group, each array as (rows, ...); raises InputError if the group is damaged or gone."""
    try:
        found = {}
        for key, array in _open_arrays(str(store), name).items():
            found[key] = np.stack([array[row] for row in rows])
            if (found[key].reshape(len(rows), -1)[:, 0] == array.fill_value).any():
                raise ValueError(f"a chunk of {key} is missing")
    except Exception as error:  # noqa: BLE001 Zarr, its codecs and fsspec raise errors of many types
        raise _damage(name, error) from None
    return found


def read_index(store: str | Path) -> pd.DataFrame:
    """The index of a store: one row per sample with its `group` and `row` there, by subject and then by row."""
    found = _as_table(_read_attributes(store))
    if found.empty:
        raise InputError(f"There is no sample store at {store}; run notebook 01 or `transvert synthesize` first.")
    for name in {*found["subject"], *found.get("person", ())}:
        check_name(str(name), f"In the store {store} the subject")
    return found


def write_index(store: str | Path) -> pd.DataFrame:
    """Writes the index of all complete groups, if there are any, and returns it as `read_index` does."""
    found = _read_attributes(store)
    if found:
        write_files(store, {INDEX: json.dumps(found).encode()})
    return _as_table(found)


class SampleCache:
    """Reads samples of a store, ahead of time if wished, and keeps the last `keep` of them in memory."""

    def __init__(self, store: str | Path, keep: int = 1000):
        self.store = store
        self.keep = keep
        self._kept: OrderedDict[tuple[str, int], Future[dict[str, np.ndarray]]] = OrderedDict()
        self._readers = ThreadPoolExecutor(_READERS, "samples")

    def prefetch(self, group: str, row: int) -> None:
        """Starts to read a sample in the background, unless it is kept."""
        if (group, row) not in self._kept:
            self._kept[group, row] = self._readers.submit(read_rows, self.store, group, [row])
            while len(self._kept) > self.keep:
                self._kept.popitem(last=False)

    def read(self, group: str, row: int) -> dict[str, np.ndarray]:
        """The arrays of one sample, as in `read_rows` but without the first axis; not to be changed."""
        self.prefetch(group, row)
        self._kept.move_to_end((group, row))
        try:
            arrays = self._kept[group, row].result()
        except InputError:
            del self._kept[group, row]  # The next attempt reads it again.
            raise
        return {key: values[0] for key, values in arrays.items()}


def _locate(store: str | Path) -> tuple[Any, str, bool]:
    """The file system of a store, its path there, and whether it is a local folder."""
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    try:
        files, folder = fsspec.core.url_to_fs(str(store))
    except (ImportError, ValueError) as error:
        raise InputError(f"The store {store} can't be opened: {' '.join(str(error).split())}.") from None
    return files, folder, isinstance(files, LocalFileSystem)


def _list_groups(store: str | Path) -> dict[str, str]:
    """Name and path of every group of a store, complete or not."""
    files, folder, _ = _locate(store)
    files.invalidate_cache()
    entries = files.ls(folder, detail=True) if files.isdir(folder) else []
    paths = [entry["name"].rstrip("/") for entry in entries if entry["type"] == "directory"]
    return {path.rpartition("/")[2]: path for path in paths}


def _encode(arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    """The files of a Zarr group without its attributes, by path. Zarr 2 and Zarr 3 both read its format 2."""
    import zarr
    from numcodecs import Shuffle, Zstd

    content: dict[str, Any] = {}
    version = {} if zarr.__version__.startswith("2.") else {"zarr_format": 2}
    zarr.open_group(content, mode="w", **version)
    for key, stack in arrays.items():
        zarr.create(
            stack.shape,
            chunks=(1, *stack.shape[1:]),
            dtype=stack.dtype,
            filters=[Shuffle(stack.itemsize)],
            compressor=Zstd(3, checksum=True),
            fill_value=_mark_of_loss(stack.dtype),
            store=content,
            path=key,
            **version,
        )[:] = stack
    content.pop(_ATTRIBUTES, None)
    return {key: value if isinstance(value, bytes) else value.to_bytes() for key, value in content.items()}


def _mark_of_loss(dtype: np.dtype[Any]) -> float:
    """A value that no sample has. Zarr fills a chunk that is missing, without an error."""
    if dtype.kind == "f":
        return -np.inf
    return int(np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max)


@functools.lru_cache(4096)
def _open_arrays(store: str, name: str) -> dict[str, Any]:
    """The arrays of a group by name. Equal names mean equal arrays, so they are opened once."""
    import zarr

    files, folder, local = _locate(store)
    path = f"{folder}/{name}"
    arrays = dict(zarr.open_group(path if local else files.get_mapper(path), mode="r").arrays())
    if not arrays:
        raise ValueError("it has no arrays")
    return arrays


def _damage(name: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())
    return InputError(f"The samples {name} can't be read ({reason}); delete this folder of the store to make it again.")


def _read_attributes(store: str | Path) -> dict[str, Any]:
    """The attributes of every complete group by name: from the index where it has them, else from the groups."""
    files, folder, _ = _locate(store)
    paths = _list_groups(store)
    try:
        written = json.loads(files.cat_file(f"{folder}/{INDEX}"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        written = {}
    found = {name: written[name] for name in paths if name in written}
    unknown = {f"{path}/{_ATTRIBUTES}": name for name, path in paths.items() if name not in found}
    for path, content in (files.cat(list(unknown), on_error="return") if unknown else {}).items():
        if isinstance(content, FileNotFoundError):
            continue
        try:
            found[unknown[path]] = json.loads(content)
            found[unknown[path]]["rows"][0]["subject"]
        except (ValueError, LookupError, TypeError) as error:
            raise _damage(unknown[path], content if isinstance(content, Exception) else error) from None
    return found


def _as_table(attributes: dict[str, Any]) -> pd.DataFrame:
    """The index as a table. Two runs at once may leave two groups of a subject; the last by name counts."""
    groups = {_subject(name): name for name in sorted(attributes)}.values()
    rows = [{**row, "group": name, "row": n} for name in groups for n, row in enumerate(attributes[name]["rows"])]
    table = pd.DataFrame(rows) if rows else pd.DataFrame({"subject": [], "group": [], "row": []})
    return table.sort_values(["subject", "row"], ignore_index=True)
