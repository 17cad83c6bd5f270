"""File formats for the samples of a subject: `make bench-store` writes store.csv and store.md.

Zarr is measured if it is installed: `pip install "zarr<3"`.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
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
from transvert.data import manifest, samples, store, subjects

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


class Feather(Format):
    """Arrow IPC: one record batch per sample, bytes grouped as in the store."""

    name = "Arrow IPC (zstd)"

    def write(self, path: Path, arrays: Arrays) -> None:
        import pyarrow as pa

        columns = {key: pa.array([store._grouped(values) for values in stack]) for key, stack in arrays.items()}
        kinds = {key: f"{stack.dtype.str} {stack.shape[1:]}" for key, stack in arrays.items()}
        table = pa.table(columns).replace_schema_metadata(kinds)
        with pa.ipc.new_file(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(table, max_chunksize=1)

    def read(self, file: Any, rows: list[int]) -> Arrays:
        import pyarrow as pa

        with pa.ipc.open_file(file) as batches:
            kinds = {key.decode(): value.decode() for key, value in batches.schema.metadata.items()}
            found = {}
            for key, kind in kinds.items():
                dtype, _, shape = kind.partition(" ")
                found[key] = np.empty((len(rows), *(int(side) for side in shape.strip("()").split(","))), dtype)
            for place, row in enumerate(rows):
                batch = batches.get_batch(row)
                for key, stack in found.items():
                    store._ungroup(batch.column(key)[0].as_buffer(), stack[place])
        return found


class Shard(Format):
    """The format of the store."""

    name = "Parquet (zstd, grouped bytes)"

    def write(self, path: Path, arrays: Arrays) -> None:
        rows = pd.DataFrame({"subject": "s", "made": "", "level": range(len(arrays["hu"]))})
        store.write_shard(path.parent, path.name, rows, arrays)

    def read(self, file: Any, rows: list[int]) -> Arrays:
        from pyarrow import parquet

        return store._arrays(parquet.ParquetFile(file, pre_buffer=True, page_checksum_verification=True), rows)

    def read_path(self, path: Path, rows: list[int]) -> Arrays:
        return store.read_rows(path.parent, path.name, rows)


class Zarr(Format):
    """Zarr 2: a folder with one file per sample and array."""

    name = "Zarr 2 folder (Blosc zstd, shuffled)"

    def write(self, path: Path, arrays: Arrays) -> None:
        import zarr

        self._write(zarr.DirectoryStore(str(path)), arrays)

    def _write(self, place: Any, arrays: Arrays) -> None:
        import zarr

        codec = zarr.Blosc(cname="zstd", clevel=3, shuffle=zarr.Blosc.SHUFFLE)
        group = zarr.group(place, overwrite=True)
        for key, stack in arrays.items():
            group.create_dataset(key, data=stack, chunks=(1, *stack.shape[1:]), compressor=codec)
        zarr.consolidate_metadata(place)

    def read(self, file: Any, rows: list[int]) -> Arrays:
        import zarr

        return {key: np.stack([array[row] for row in rows]) for key, array in zarr.open_consolidated(file).arrays()}

    def read_path(self, path: Path, rows: list[int]) -> Arrays:
        import zarr

        return self.read(zarr.DirectoryStore(str(path)), rows)

    def count(self, path: Path, rows: list[int]) -> tuple[int, int]:
        class Files(dict):  # type: ignore[type-arg]
            requests, size_read = 0, 0

            def __getitem__(self, key: str) -> bytes:
                part = super().__getitem__(key)
                self.requests, self.size_read = self.requests + 1, self.size_read + len(part)
                return part

        files = Files({str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()})
        self.read(files, rows)
        return files.requests, files.size_read

    def size(self, path: Path) -> int:
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


class ZarrZip(Zarr):
    """Zarr 2 in one zip file."""

    name = "Zarr 2 zip (Blosc zstd, shuffled)"

    def write(self, path: Path, arrays: Arrays) -> None:
        import zarr

        path.unlink(missing_ok=True)
        with zarr.ZipStore(str(path), mode="w") as place:
            self._write(place, arrays)

    def read_path(self, path: Path, rows: list[int]) -> Arrays:
        import zarr

        with zarr.ZipStore(str(path), mode="r") as place:
            return self.read(place, rows)

    def count(self, path: Path, rows: list[int]) -> tuple[int, int]:
        return 0, 0  # Zarr opens a zip by its path only.

    def size(self, path: Path) -> int:
        return path.stat().st_size


FORMATS: tuple[type[Format], ...] = (Npz, Plain, Zarr, ZarrZip, Feather, Shard)


def main() -> None:
    options = argparse.ArgumentParser(description="Formats of a subject's samples: size, writing and reading.")
    options.add_argument("--out", type=Path, default=HERE, help="folder of store.csv and store.md")
    chosen = options.parse_args()
    load = os.getloadavg()[0]
    subject = manifest.fetch_subjects(manifest.load_manifest("embedded"))[0]
    ct, mask, _ = subjects.load_subject(subject)
    cut = samples.cut_samples(ct, mask, subject.name)
    arrays = {key: getattr(cut, key) for key in ("hu", "labels", "pictures")}
    with tempfile.TemporaryDirectory(prefix="bench-store-") as folder:
        table = measure(arrays, Path(folder))
    write_results(chosen.out, "store", table, as_markdown(table, describe_run(load), len(cut)))


def measure(arrays: Arrays, folder: Path) -> pd.DataFrame:
    """One row per format. The formats take turns; each figure is a median."""
    formats = [kind() for kind in FORMATS if "Zarr" not in kind.name or importlib.util.find_spec("zarr")]
    paths = {each.name: folder / f"{n}.parquet" for n, each in enumerate(formats)}
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
