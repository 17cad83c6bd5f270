"""File formats for the samples of a subject: `make bench-store` writes store.csv and store.md."""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.results import describe_run, markdown_table, write_results
from transvert.data import samples, store, subjects
from transvert.data.fetch import fetch_subjects

HERE = Path(__file__).resolve().parent
ROUNDS = 15
COLUMNS = ["format", "mb", "write_ms", "read_all_ms", "read_one_ms", "read_one_cold_ms", "requests_one", "mb_one"]
Arrays = dict[str, np.ndarray]


class Counting(io.BytesIO):
    """A file that counts reads and bytes, as requests to an object store."""

    requests, size = 0, 0

    def read(self, size: int | None = -1) -> bytes:
        part = super().read(size)
        self.requests, self.size = self.requests + 1, self.size + len(part)
        return part

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        self.requests, self.size = self.requests + 1, self.size + count
        return count


class Format(ABC):
    """One file format for the arrays of a subject."""

    name = ""

    @abstractmethod
    def write(self, path: Path, arrays: Arrays) -> None: ...

    @abstractmethod
    def read(self, file: Any, rows: list[int]) -> Arrays:
        """Reads some of the samples from an open file."""

    def read_path(self, path: Path, rows: list[int]) -> Arrays:
        with path.open("rb") as file:
            return self.read(file, rows)

    def count(self, path: Path, rows: list[int]) -> tuple[int, int]:
        """Requests and bytes needed to read some of the samples."""
        file = Counting(path.read_bytes())
        self.read(file, rows)
        return file.requests, file.size

    def size(self, path: Path) -> int:
        return path.stat().st_size


class Npz(Format):
    name = "npz (zlib)"

    def write(self, path: Path, arrays: Arrays) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)

    def read(self, file: Any, rows: list[int]) -> Arrays:
        with np.load(file, allow_pickle=False) as found:
            return {key: found[key][rows] for key in found}


class Plain(Format):
    """An uncompressed npz, from which single samples are read by their offset."""

    name = "npz (stored)"

    def write(self, path: Path, arrays: Arrays) -> None:
        with path.open("wb") as file:
            np.savez(file, **arrays)

    def read(self, file: Any, rows: list[int]) -> Arrays:
        found = {}
        with zipfile.ZipFile(file) as members:
            for name in members.namelist():
                with members.open(name) as member:
                    version = np.lib.format.read_magic(member)
                    assert version == (1, 0)
                    shape, _, dtype = np.lib.format.read_array_header_1_0(member)
                    start, bytes_each = member.tell(), int(np.prod(shape[1:])) * dtype.itemsize
                    parts = []
                    for row in rows:
                        member.seek(start + row * bytes_each)
                        parts.append(np.frombuffer(member.read(bytes_each), dtype).reshape(shape[1:]))
                found[name.removesuffix(".npy")] = np.stack(parts)
        return found


class Parquet(Format):
    """One row group per sample, bytes grouped by significance, zstd, page checksums."""

    name = "Parquet (zstd, grouped bytes)"

    def write(self, path: Path, arrays: Arrays) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        columns = {
            key: pa.array([_group_bytes(values) for values in stack], pa.binary()) for key, stack in arrays.items()
        }
        kinds = {key: [stack.dtype.str, stack.shape[1:]] for key, stack in arrays.items()}
        table = pa.table(columns).replace_schema_metadata({"arrays": json.dumps(kinds)})
        options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
        with parquet.ParquetWriter(path, table.schema, write_page_checksum=True, **options) as writer:
            writer.write_table(table, row_group_size=1)

    def read(self, file: Any, rows: list[int]) -> Arrays:
        from pyarrow import parquet

        groups = parquet.ParquetFile(file, pre_buffer=True, page_checksum_verification=True)
        kinds = json.loads(groups.schema_arrow.metadata[b"arrays"])
        found = {key: np.empty((len(rows), *shape), dtype) for key, (dtype, shape) in kinds.items()}
        for place, row in enumerate(rows):
            group = groups.read_row_group(row)
            for key, stack in found.items():
                _ungroup_bytes(group.column(key)[0].as_buffer(), stack[place])
        return found


class Store(Format):
    """The format of the store: a Zarr 2 group with one file per sample and array."""

    name = "Zarr 2 folder (zstd, shuffled): the store"

    def write(self, path: Path, arrays: Arrays) -> None:
        rows = pd.DataFrame({"subject": "s", "level": range(len(arrays["hu"]))})
        store.write_group(path.parent, path.name, rows, arrays)

    def read(self, file: Any, rows: list[int]) -> Arrays:
        import zarr

        return {key: np.stack([array[row] for row in rows]) for key, array in zarr.open_group(file, mode="r").arrays()}

    def read_path(self, path: Path, rows: list[int]) -> Arrays:
        return store.read_rows(path.parent, path.name, rows)

    def count(self, path: Path, rows: list[int]) -> tuple[int, int]:
        files = CountingFiles({str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()})
        self.read(files, rows)
        return files.requests, files.size

    def size(self, path: Path) -> int:
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


class CountingFiles(dict[str, bytes]):
    """Files by path that count reads and bytes."""

    requests, size = 0, 0

    def __getitem__(self, key: str) -> bytes:
        content = super().__getitem__(key)
        self.requests, self.size = self.requests + 1, self.size + len(content)
        return content


def _group_bytes(values: np.ndarray) -> bytes:
    """All first bytes, then all second bytes, and so on, which compress better."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return flat.view(np.uint8).reshape(len(flat), -1).T.tobytes()


def _ungroup_bytes(content: Any, values: np.ndarray) -> None:
    planes = np.frombuffer(content, np.uint8).reshape(values.itemsize, -1)
    values.reshape(-1).view(np.uint8).reshape(planes.shape[::-1])[...] = planes.T


FORMATS: tuple[type[Format], ...] = (Npz, Plain, Parquet, Store)


def main() -> None:
    options = argparse.ArgumentParser(description="Formats of a subject's samples: size, writing and reading.")
    options.add_argument("--out", type=Path, default=HERE, help="folder of store.csv and store.md")
    chosen = options.parse_args()
    load = os.getloadavg()[0]
    subject = fetch_subjects("embedded")[0]
    ct, mask, _ = subjects.load_subject(subject)
    cut = samples.cut_samples(ct, mask, subject.name)
    arrays = {key: getattr(cut, key) for key in ("hu", "labels", "pictures")}
    with tempfile.TemporaryDirectory(prefix="bench-store-") as folder:
        table = measure(arrays, Path(folder))
    write_results(chosen.out, "store", table, as_markdown(table, describe_run(load), len(cut)))


def measure(arrays: Arrays, folder: Path) -> pd.DataFrame:
    """One row per format. The formats take turns; each figure is a median."""
    formats = [kind() for kind in FORMATS]
    paths = {each.name: folder / f"s-{n}" for n, each in enumerate(formats)}
    every = list(range(len(arrays["hu"])))
    times: dict[tuple[str, str], list[float]] = {}
    for round_number in range(ROUNDS + 1):
        row = round_number % len(every)
        for each in formats:
            path = paths[each.name]
            steps: dict[str, Callable[[], Any]] = {
                "write_ms": lambda each=each, path=path: each.write(path, arrays),
                "read_all_ms": lambda each=each, path=path: each.read_path(path, every),
                "read_one_ms": lambda each=each, path=path, row=row: each.read_path(path, [row]),
                "read_one_cold_ms": lambda each=each, path=path, row=row: each.read_path(path, [row]),
            }
            for name, step in steps.items():
                if "cold" in name:
                    forget(path)
                began = time.perf_counter()
                found = step()
                spent = (time.perf_counter() - began) * 1e3
                if round_number:  # The first round imports and compiles.
                    times.setdefault((each.name, name), []).append(spent)
                elif found:
                    wanted = every if "all" in name else [row]
                    assert all(
                        np.array_equal(found[key], arrays[key][wanted], equal_nan=key == "pictures") for key in arrays
                    )
    rows = []
    for each in formats:
        requests, size = each.count(paths[each.name], [len(every) // 2])
        medians = {name: statistics.median(times[each.name, name]) for name in COLUMNS if name.endswith("_ms")}
        about = {"format": each.name, "mb": each.size(paths[each.name]) / 1e6, **medians}
        rows.append(about | ({"requests_one": requests, "mb_one": size / 1e6} if requests else {}))
    return pd.DataFrame(rows, columns=COLUMNS)


def forget(path: Path) -> None:
    """Asks the system to drop a file, or all files of a folder, from its cache."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def as_markdown(table: pd.DataFrame, run: str, count: int) -> str:
    """The measured part of store.md."""
    heads = ["format", "MB", "write", "read all", "read one", "read one, cold", "requests for one", "MB for one"]
    rows = []
    for row in table.itertuples(index=False):
        one = ["-", "-"] if pd.isna(row.requests_one) else [f"{row.requests_one:.0f}", f"{row.mb_one:.2f}"]
        rows.append([row.format, f"{row.mb:.1f}", *(f"{value:.1f}" for value in row[2:6]), *one])
    return f"{run} {count} samples; times in ms.\n\n{markdown_table(heads, rows)}"


if __name__ == "__main__":
    main()
