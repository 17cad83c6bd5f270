"""A store of samples: one Parquet file a subject, its shard, and a Parquet index made of what the shards say.

A shard has a row group a sample, so that a sample is read without its neighbours: from a folder or, by ranges, from any
place that fsspec knows, such as `s3://bucket/store`. What the index says of the samples stands in the shard's footer.
Voxels are kept as bytes, all low ones before all high ones, under zstd: a sixth smaller than npz and read six times as
fast, and a sample that is drawn alone costs no whole shard (benchmarks/store.md). Each page has a checksum.

Many workers write at once, for none touches another's file: a shard appears whole, under a name of its own, which is
its subject's and a digest of what it was made from. The index is a summary. One that names other shards than those that
are there is out of date, and the shards themselves are asked; so a store is readable at any moment, and complete
without one.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from transvert.io import InputError, atomic_path

INDEX = "index.parquet"
_KEY = "transvert"
_READERS = 8
_ABANDONED_S = 3600.0


def shard_name(subject: str, digest: str) -> str:
    """The file name of a subject's shard; `digest` stands for everything it was made from."""
    return f"{subject}-{digest[:12]}.parquet"


def shard_names(store: str | Path) -> list[str]:
    """The shards of a store, in order; none where there is no store."""
    files, folder = _place(store)
    files.invalidate_cache()
    try:
        paths = files.ls(folder, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    names = (path.rstrip("/").rpartition("/")[2] for path in paths)
    return sorted(name for name in names if name.endswith(".parquet") and name != INDEX and not name.startswith("."))


def put(store: str | Path, name: str, content: bytes) -> None:
    """Writes a file of a store, whole or not at all."""
    files, folder = _place(store)
    if _is_local(files):
        with atomic_path(Path(folder) / name) as temporary:
            temporary.write_bytes(content)
    else:
        files.pipe_file(f"{folder}/{name}", bytes(content))


def get(store: str | Path, name: str) -> bytes | None:
    """A file of a store; None where there is none."""
    files, folder = _place(store)
    try:
        return files.cat_file(f"{folder}/{name}")
    except FileNotFoundError:
        return None


def write_shard(store: str | Path, name: str, rows: pd.DataFrame, arrays: dict[str, np.ndarray]) -> None:
    """Writes a shard, replacing one of the same name.

    Args:
        store: a folder, or an address that fsspec knows.
        name: from `shard_name`.
        rows: one a sample, what the index says of it: text and numbers. Needs `subject` and `made`, a time that sorts.
        arrays: by name (samples, ...), of any dtype; what is read back.
    """
    import pyarrow as pa
    from pyarrow import parquet

    columns = {key: pa.array([_grouped(values) for values in stack], pa.binary()) for key, stack in arrays.items()}
    kinds = {key: [stack.dtype.str, stack.shape[1:]] for key, stack in arrays.items()}
    buffer = io.BytesIO()
    table = pa.table(columns)
    options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False, "store_schema": False}
    with parquet.ParquetWriter(buffer, table.schema, write_page_checksum=True, **options) as writer:
        writer.write_table(table, row_group_size=1)
        writer.add_key_value_metadata({_KEY: json.dumps({"arrays": kinds, "rows": rows.to_dict("list")})})
    put(store, name, buffer.getvalue())


def read_rows(store: str | Path, name: str, rows: Sequence[int]) -> dict[str, np.ndarray]:
    """Samples of a shard: each array of `write_shard` as (rows, ...).

    Raises:
        InputError: the shard is damaged or gone.
    """

    return _with_shard(store, name, lambda shard: _arrays(shard, rows))


def read_index(store: str | Path) -> pd.DataFrame:
    """The index of a store: one row a sample, by subject and then as the shard has them.

    Of a subject with several shards, the one made last counts.

    Raises:
        InputError: there is no store, or a shard of it is damaged.
    """
    names = shard_names(store)
    if not names:
        raise InputError(f"There is no sample store at {store}; run notebook 01 or `transvert synthesize` first.")
    written = _written_index(store)
    if written is not None and set(written["shard"]) == set(names):
        return written
    return _summary(store, names, written)


def write_index(store: str | Path, wanted: Collection[str] = ()) -> pd.DataFrame:
    """Writes the index of all shards, and removes shards that another of the same subject replaces.

    Args:
        store: as in `write_shard`; one without shards gets no index.
        wanted: names of shards that count even if the same subject has one that was made later.

    Returns:
        The index.
    """
    files, folder = _place(store)
    names = shard_names(store)
    if not names:
        return pd.DataFrame({"subject": [], "shard": []})
    index = _summary(store, names, _written_index(store), wanted)
    buffer = io.BytesIO()
    index.to_parquet(buffer, index=False)
    put(store, INDEX, buffer.getvalue())
    # Of those that were looked at: a shard that came since is another worker's.
    remove(store, set(names) - set(index["shard"]))
    for path in Path(folder).glob(".writing-*") if _is_local(files) else ():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink()
    return index


def remove(store: str | Path, names: Collection[str]) -> None:
    """Removes shards; who else tidies up may have been faster."""
    files, folder = _place(store)
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            files.rm_file(f"{folder}/{name}")


def listed(store: str | Path) -> set[str]:
    """The shards that the index named when it was last written; none where there is no index."""
    written = _written_index(store)
    return set() if written is None else set(written["shard"])


class Shelf:
    """Samples of a store, read when they are asked for; those read last are kept, and those to come can be ordered.

    Args:
        store: as in `write_shard`.
        keep: how many samples stay in memory.
    """

    def __init__(self, store: str | Path, keep: int = 1000):
        self.store = store
        self.keep = keep
        self._kept: OrderedDict[tuple[str, int], Future[dict[str, np.ndarray]]] = OrderedDict()
        self._readers = ThreadPoolExecutor(_READERS, "shelf")

    def order(self, shard: str, row: int) -> None:
        """Starts to read a sample, unless it is here."""
        if (shard, row) not in self._kept:
            self._kept[shard, row] = self._readers.submit(read_rows, self.store, shard, [row])
            while len(self._kept) > self.keep:
                self._kept.popitem(last=False)

    def read(self, shard: str, row: int) -> dict[str, np.ndarray]:
        """The arrays of one sample, as `read_rows` has them, without the first axis; not to be changed."""
        self.order(shard, row)
        self._kept.move_to_end((shard, row))
        try:
            arrays = self._kept[shard, row].result()
        except InputError:
            del self._kept[shard, row]  # Another time it may be whole.
            raise
        return {key: values[0] for key, values in arrays.items()}


def _place(store: str | Path) -> tuple[Any, str]:
    """The file system of a store, and its path there."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(str(store))
    except (ImportError, ValueError) as error:
        raise InputError(f"The store {store} can't be opened: {' '.join(str(error).split())}.") from None


def _is_local(files: Any) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(files, LocalFileSystem)


def _with_shard(store: str | Path, name: str, read: Callable[[Any], Any]) -> Any:
    from pyarrow import ArrowException, parquet

    files, folder = _place(store)
    try:
        with (
            # The ranges that Parquet asks for, and nothing around them.
            files.open(f"{folder}/{name}", "rb", cache_type="none") as file,
            parquet.ParquetFile(file, pre_buffer=True, page_checksum_verification=True) as shard,
        ):
            return read(shard)
    except (ArrowException, OSError, EOFError, LookupError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"The shard {name} is damaged ({reason}); delete it and run `transvert synthesize` again."
        ) from None


def _arrays(shard: Any, rows: Sequence[int]) -> dict[str, np.ndarray]:
    kinds = _said(shard)["arrays"]
    found = {key: np.empty((len(rows), *shape), dtype) for key, (dtype, shape) in kinds.items()}
    for place, row in enumerate(rows):
        group = shard.read_row_group(int(row), columns=list(kinds), use_threads=False)
        for key, stack in found.items():
            _ungroup(group.column(key)[0].as_buffer(), stack[place])
    return found


def _said(shard: Any) -> dict[str, Any]:
    return json.loads(shard.metadata.metadata[_KEY.encode()])


def _rows(store: str | Path, name: str) -> pd.DataFrame:
    """What a shard says of its samples, from its footer alone."""
    rows = pd.DataFrame(_with_shard(store, name, _said)["rows"])
    return rows.assign(shard=name, row=range(len(rows)))


def _written_index(store: str | Path) -> pd.DataFrame | None:
    """The index as it was last written; None where there is none that can be read, for it can be made again."""
    from pyarrow import ArrowException

    content = get(store, INDEX)
    try:
        return None if content is None else pd.read_parquet(io.BytesIO(content))
    except (ArrowException, OSError, ValueError):
        return None


def _summary(
    store: str | Path, names: list[str], written: pd.DataFrame | None, wanted: Collection[str] = ()
) -> pd.DataFrame:
    """The index of these shards; those that a written one knows are not asked again."""
    parts = [] if written is None else [written[written["shard"].isin(names)]]
    known = set() if written is None else set(written["shard"])
    with ThreadPoolExecutor(_READERS) as readers:
        parts += readers.map(lambda name: _rows(store, name), [name for name in names if name not in known])
    index = pd.concat(parts, ignore_index=True)
    shards = index.drop_duplicates("shard")[["subject", "shard", "made"]]
    shards = shards.assign(wanted=shards["shard"].isin(list(wanted))).sort_values(["wanted", "made"])
    chosen = shards.drop_duplicates("subject", keep="last")["shard"]
    return index[index["shard"].isin(chosen)].sort_values(["subject", "row"], ignore_index=True)


def _grouped(values: np.ndarray) -> bytes:
    """The bytes of an array, every value's first byte first, then every second: so alike ones stand together."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return flat.view(np.uint8).reshape(len(flat), -1).T.tobytes()


def _ungroup(content: Any, values: np.ndarray) -> None:
    """Fills an array with what `_grouped` made of one like it."""
    planes = np.frombuffer(content, np.uint8).reshape(values.itemsize, -1)
    singles = values.reshape(-1).view(np.uint8).reshape(planes.shape[::-1])
    for byte, plane in enumerate(planes):
        singles[:, byte] = plane
