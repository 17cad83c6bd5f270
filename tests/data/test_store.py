"""The store: what comes back is what went in, from anywhere, at any moment, whoever else writes and whatever dies."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal

from transvert.data import store
from transvert.io import InputError


def _rows(subject: str, made: str, count: int = 3) -> pd.DataFrame:
    return pd.DataFrame({"subject": subject, "made": made, "level": [f"T{n + 1}" for n in range(count)]})


def _arrays(seed: int, count: int = 3) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    pictures = random.normal(size=(count, 2, 5)).astype(np.float32)
    pictures[0, 0, 0] = np.nan
    return {"hu": random.integers(-1024, 4000, (count, 7, 3), np.int16), "pictures": pictures}


def _write(place: str | Path, subject: str, digest: str, made: str = "2026-01-01", seed: int = 0) -> str:
    name = store.shard_name(subject, digest)
    store.write_shard(place, name, _rows(subject, made), _arrays(seed))
    return name


# Shards


@pytest.mark.parametrize("kind", ["folder", "file", "memory"])
def test_a_sample_comes_back_from_a_folder_and_from_an_object_store(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    place = {"folder": folder, "file": folder.as_uri(), "memory": f"memory://{tmp_path.name}/store"}[kind]
    name = _write(place, "sub-a", "0123456789abcdef")
    assert name == "sub-a-0123456789ab.parquet" and store.shard_names(place) == [name]
    arrays = _arrays(0)
    found = store.read_rows(place, name, [2, 0])
    for key, values in arrays.items():
        assert_array_equal(found[key], values[[2, 0]])
        assert found[key].dtype == values.dtype
    _write(place, "sub-b", "1")
    index = store.write_index(place)
    assert list(zip(index.subject, index.level, index.row, strict=True)) == [
        (subject, f"T{n + 1}", n) for subject in ("sub-a", "sub-b") for n in range(3)
    ]
    pd.testing.assert_frame_equal(store.read_index(place), index)


def test_one_sample_is_read_without_its_neighbours(tmp_path: Path) -> None:
    """What an object store would be asked for: the footer, and one sample's bytes."""
    arrays = {"hu": np.random.default_rng(0).integers(0, 30000, (8, 100_000), np.int16)}
    name = store.shard_name("sub-a", "0")
    place = f"memory://{tmp_path.name}/ranges"
    store.write_shard(place, name, _rows("sub-a", "", 8), arrays)
    files, folder = fsspec.core.url_to_fs(place)
    content = files.cat_file(f"{folder}/{name}")
    read: list[int] = []

    class Counting(type(files.store[f"{folder}/{name}"])):  # type: ignore[misc]
        def read(self, size: int = -1) -> bytes:
            part = super().read(size)
            read.append(len(part))
            return part

    files.store[f"{folder}/{name}"] = Counting(files, f"{folder}/{name}", content)
    store.read_rows(place, name, [5])
    assert len(content) > 8 * 150_000
    assert 100_000 < sum(read) < 2 * len(content) / 8 + 70_000  # Parquet reads the last 64 KB for the footer.


@pytest.mark.parametrize("damage", ["cut short", "overwritten", "emptied", "removed", "another"])
def test_a_damaged_shard_gets_its_sentence(damage: str, tmp_path: Path) -> None:
    shard = tmp_path / _write(tmp_path, "sub-a", "0")
    content = shard.read_bytes()
    if damage == "cut short":
        shard.write_bytes(content[: len(content) // 2])
    elif damage == "overwritten":
        shard.write_bytes(content[:60] + b"\xff" * 8 + content[68:])
    elif damage == "emptied":
        shard.write_bytes(b"")
    elif damage == "removed":
        shard.unlink()
    else:
        _rows("sub-a", "").to_parquet(shard)
    with pytest.raises(
        InputError, match=r"^The shard sub-a-0\.parquet is damaged \(.*\); delete it and run `transvert"
    ):
        store.read_rows(tmp_path, "sub-a-0.parquet", [0, 1, 2])


def test_an_address_that_cannot_be_opened_gets_its_sentence() -> None:
    with pytest.raises(InputError, match="The store nowhere://x/y can't be opened: .*nowhere"):
        store.read_index("nowhere://x/y")


# The index


def test_no_store_and_an_empty_one_get_their_sentence(tmp_path: Path) -> None:
    for place in (tmp_path / "none", tmp_path):
        with pytest.raises(
            InputError, match="There is no sample store at .*; run notebook 01 or `transvert synthesize"
        ):
            store.read_index(place)
    assert store.write_index(tmp_path).empty and not any(tmp_path.iterdir())


def test_shards_that_the_index_does_not_know_are_found_and_those_gone_are_not(tmp_path: Path) -> None:
    first = _write(tmp_path, "sub-a", "0")
    store.write_index(tmp_path)
    _write(tmp_path, "sub-b", "0")
    assert set(store.read_index(tmp_path).subject) == {"sub-a", "sub-b"}
    assert set(pd.read_parquet(tmp_path / store.INDEX).subject) == {"sub-a"}, "reading writes nothing"
    (tmp_path / first).unlink()
    assert set(store.read_index(tmp_path).subject) == {"sub-b"}
    (tmp_path / store.INDEX).write_bytes(b"no index")
    assert set(store.read_index(tmp_path).subject) == {"sub-b"}


def test_of_a_subjects_shards_the_last_or_the_wanted_one_counts(tmp_path: Path) -> None:
    names = [_write(tmp_path, "sub-a", str(n), f"2026-01-0{n + 1}", seed=n) for n in (1, 0, 2)]
    other = _write(tmp_path, "sub-b", "0")
    assert set(store.read_index(tmp_path).shard) == {names[2], other}
    index = store.write_index(tmp_path, wanted={names[0]})
    assert set(index.shard) == {names[0], other} == set(store.shard_names(tmp_path))
    assert_array_equal(store.read_rows(tmp_path, names[0], [0, 1, 2])["hu"], _arrays(1)["hu"])


def test_what_dead_writers_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    _write(tmp_path, "sub-a", "0")
    old, young = tmp_path / ".writing-old.parquet", tmp_path / ".writing-young.parquet"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    assert len(store.read_index(tmp_path)) == 3
    store.write_index(tmp_path)
    assert young.exists() and not old.exists()


def test_many_writers_and_readers_at_once(tmp_path: Path) -> None:
    def work(n: int) -> int:
        _write(tmp_path, f"sub-{n:02d}", "0", seed=n)
        if n % 3 == 0:
            store.write_index(tmp_path)
        return store.read_index(tmp_path).subject.nunique()

    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(work, range(24)))
    assert min(counts) >= 1
    assert sorted(set(store.read_index(tmp_path).subject)) == [f"sub-{n:02d}" for n in range(24)]


# Whatever dies

_KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_store import _write
from transvert import store
import pyarrow.parquet, fsspec.implementations.local, pandas.io.parquet

def work(place, last):
    _write(place, "sub-a", "old", "2026-01-01", seed=0)
    store.write_index(place)
    step = 0

    def count(event, arguments):
        # Each time a file of the store is about to be opened, renamed, removed or listed.
        nonlocal step
        if event.split(".")[0] in ("open", "os") and any(str(place) in str(a) for a in arguments):
            step += 1
            if step == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    _write(place, "sub-a", "new", "2026-02-02", seed=1)
    _write(place, "sub-b", "new", "2026-02-02", seed=2)
    store.write_index(place)

for last in range(1, 100):
    child = os.fork()
    if not child:
        work(sys.argv[1] + "/store" + str(last), last)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
    if not status:
        break
"""


def test_killed_at_every_step_the_store_can_be_read_and_completed(tmp_path: Path) -> None:
    script = tmp_path / "write.py"
    script.write_text(_KILLED.format(tests=str(Path(__file__).parent)))
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    codes = [int(code) for code in done.stdout.split()]
    assert len(codes) > 8 and set(codes[:-1]) == {-9} and codes[-1] == 0, done.stderr
    truth = {
        f"sub-{name}-{digest}.parquet": seed
        for name, digest, seed in (("a", "old", 0), ("a", "new", 1), ("b", "new", 2))
    }
    seen = set()
    for step in range(1, len(codes) + 1):
        place = tmp_path / f"store{step}"
        index = store.read_index(place)
        for shard in set(index["shard"]):
            assert_array_equal(store.read_rows(place, shard, [0, 1, 2])["hu"], _arrays(truth[shard])["hu"])
        assert index["subject"].value_counts().to_dict() in ({"sub-a": 3}, {"sub-a": 3, "sub-b": 3})
        seen.add(tuple(sorted(set(index["shard"]))))
        for name, seed in (("sub-a", 1), ("sub-b", 2)):
            _write(place, name, "new", "2026-02-02", seed)
        store.write_index(place)
        assert store.shard_names(place) == ["sub-a-new.parquet", "sub-b-new.parquet"]
    assert len(seen) == 3, "killed before the first shard, between the two, and after both"


def test_a_full_disk_leaves_the_store_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, "sub-a", "0")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write = Path.write_bytes

    def half(self: Path, content: bytes) -> int:
        write(self, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", half)
        for fails in (lambda: _write(tmp_path, "sub-b", "0"), lambda: store.write_index(tmp_path)):
            with pytest.raises(OSError, match="No space left"):
                fails()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert set(store.read_index(tmp_path).subject) == {"sub-a"}


# The shelf


def test_the_shelf_keeps_so_many_and_reads_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = _write(tmp_path, "sub-a", "0")
    asked: list[int] = []
    read = store.read_rows

    def count(place: str | Path, shard: str, rows: list[int]) -> dict[str, np.ndarray]:
        asked.extend(rows)
        return read(place, shard, rows)

    monkeypatch.setattr(store, "read_rows", count)
    shelf = store.Shelf(tmp_path, keep=2)
    for row in (0, 1, 0, 1, 2, 1, 0):
        assert_array_equal(shelf.read(name, row)["hu"], _arrays(0)["hu"][row])
    assert asked == [0, 1, 2, 0]
    shelf.order(name, 2)
    shelf.order(name, 2)
    assert_array_equal(shelf.read(name, 2)["hu"], _arrays(0)["hu"][2])
    assert asked == [0, 1, 2, 0, 2]


def test_the_shelf_tells_of_damage_each_time_and_recovers(tmp_path: Path) -> None:
    name = _write(tmp_path, "sub-a", "0")
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    shelf = store.Shelf(tmp_path)
    for _ in range(2):
        with pytest.raises(InputError, match="The shard .* is damaged"):
            shelf.read(name, 0)
    (tmp_path / name).write_bytes(content)
    assert_array_equal(shelf.read(name, 0)["hu"], _arrays(0)["hu"][0])
