"""The store gives back what it was given, from any address, while others write and whatever is killed or damaged."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal

from transvert.data import store
from transvert.io import InputError


def _arrays(seed: int, count: int = 3) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    pictures = random.normal(size=(count, 2, 5)).astype(np.float32)
    pictures[0, 0, 0] = np.nan
    return {"hu": random.integers(-1024, 4000, (count, 7, 3), np.int16), "pictures": pictures}


def _write(place: str | Path, subject: str, digest: str, seed: int = 0) -> str:
    name = store.group_name(subject, digest)
    arrays = _arrays(seed)
    store.write_group(place, name, pd.DataFrame({"subject": subject, "level": ["T1", "T2", "T3"]}), arrays)
    return name


@pytest.mark.parametrize("kind", ["folder", "file", "memory"])
def test_a_sample_comes_back_from_a_folder_and_from_an_object_store(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    place = {"folder": folder, "file": folder.as_uri(), "memory": f"memory://{tmp_path.name}/store"}[kind]
    name = _write(place, "sub-a", "0123456789abcdef")
    assert name == "sub-a-0123456789ab" and store.group_names(place) == [name]
    found = store.read_rows(place, name, [2, 0])
    for key, values in _arrays(0).items():
        assert_array_equal(found[key], values[[2, 0]])
        assert found[key].dtype == values.dtype
    _write(place, "sub-b", "1")
    index = store.write_index(place)
    assert list(zip(index.subject, index.level, index.row, strict=True)) == [
        (subject, f"T{n + 1}", n) for subject in ("sub-a", "sub-b") for n in range(3)
    ]
    pd.testing.assert_frame_equal(store.read_index(place), index)


def test_one_sample_is_read_without_its_neighbours(tmp_path: Path) -> None:
    name = _write(tmp_path, "sub-a", "0")
    for array in ("hu", "pictures"):
        for chunk in (tmp_path / name / array).glob("[02].*"):
            chunk.unlink()
    assert_array_equal(store.read_rows(tmp_path, name, [1])["hu"], _arrays(0)["hu"][[1]])


DAMAGED = r"^The samples sub-a-0 can't be read \(.*\); delete this folder of the store to make"
DAMAGES: dict[str, Callable[[Path, bytes], object]] = {
    "cut short": lambda chunk, content: chunk.write_bytes(content[: len(content) // 2]),
    "overwritten": lambda chunk, content: chunk.write_bytes(content[:20] + bytes([content[20] ^ 255]) + content[21:]),
    "emptied": lambda chunk, _: chunk.write_bytes(b""),
    "removed": lambda chunk, _: chunk.unlink(),
    "group removed": lambda chunk, _: shutil.rmtree(chunk.parents[1]),
    "no metadata": lambda chunk, _: (chunk.parent / ".zarray").write_bytes(b"{"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_samples_are_refused_with_a_sentence(damage: str, tmp_path: Path) -> None:
    name = _write(tmp_path, "sub-a", "0")
    chunk = tmp_path / name / "hu" / "1.0.0"
    DAMAGES[damage](chunk, chunk.read_bytes())
    with pytest.raises(InputError, match=DAMAGED):
        store.read_rows(tmp_path, name, [0, 1, 2])


def test_damaged_attributes_are_refused_with_a_sentence(tmp_path: Path) -> None:
    for content in (b"{", b"[]", b"{}", b'{"rows": [{"level": 1}]}'):
        (tmp_path / _write(tmp_path, "sub-a", "0") / ".zattrs").write_bytes(content)
        with pytest.raises(InputError, match=DAMAGED):
            store.read_index(tmp_path)


def test_a_missing_store_an_empty_one_and_an_unknown_address_are_refused(tmp_path: Path) -> None:
    for place in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="There is no sample store at .*; run notebook 01 or `transvert synth"):
            store.read_index(place)
    assert store.write_index(tmp_path).empty and not any(tmp_path.iterdir())
    with pytest.raises(InputError, match="The store nowhere://x/y can't be opened: .*nowhere"):
        store.read_index("nowhere://x/y")


def test_an_outdated_or_broken_index_is_completed_from_the_groups(tmp_path: Path) -> None:
    first = _write(tmp_path, "sub-a", "0")
    store.write_index(tmp_path)
    written = (tmp_path / store.INDEX).read_bytes()
    _write(tmp_path, "sub-b", "0")
    assert set(store.read_index(tmp_path).subject) == {"sub-a", "sub-b"}
    assert (tmp_path / store.INDEX).read_bytes() == written, "reading writes nothing"
    shutil.rmtree(tmp_path / first)
    assert set(store.read_index(tmp_path).subject) == {"sub-b"}
    (tmp_path / store.INDEX).write_bytes(b"no index")
    assert set(store.read_index(tmp_path).subject) == {"sub-b"}


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_a_new_group_replaces_those_of_the_same_subject_alone(kind: str, tmp_path: Path) -> None:
    place = str(tmp_path) if kind == "folder" else f"memory://{tmp_path.name}/replaced"
    for digest, seed in (("1", 1), ("0", 0), ("2", 2), ("0", 0)):
        _write(place, "sub-a", digest, seed)
        other = _write(place, "sub-a-b", "0", 3)
        store.write_index(place)
    assert store.group_names(place) == ["sub-a-0", other]
    assert_array_equal(store.read_rows(place, "sub-a-0", [0, 1, 2])["hu"], _arrays(0)["hu"])
    files, folder = fsspec.core.url_to_fs(place)
    assert sorted(path.rpartition("/")[2] for path in files.ls(folder, detail=False)) == [store.INDEX, "sub-a-0", other]


def test_many_writers_and_readers_work_at_once(tmp_path: Path) -> None:
    def work(n: int) -> int:
        _write(tmp_path, f"sub-{n % 12:02d}", "0", seed=n % 12)  # Two writers of each subject.
        if n % 3 == 0:
            store.write_index(tmp_path)
        return store.read_index(tmp_path).subject.nunique()

    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(work, range(24)))
    assert min(counts) >= 1
    assert sorted(set(store.read_index(tmp_path).subject)) == [f"sub-{n:02d}" for n in range(12)]
    for n in range(12):
        assert_array_equal(store.read_rows(tmp_path, f"sub-{n:02d}-0", [2])["hu"], _arrays(n)["hu"][[2]])


_KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_store import _write
from transvert.data import store
import zarr, fsspec.implementations.local

def work(place, last):
    _write(place, "sub-a", "01d", seed=0)
    store.write_index(place)
    step = 0

    def count(event, arguments):
        # Each time a file of the store is about to be opened, renamed, removed or listed.
        nonlocal step
        if event.split(".")[0] in ("open", "os", "shutil") and any(str(place) in str(a) for a in arguments):
            step += 1
            if step == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    _write(place, "sub-a", "new", seed=1)
    _write(place, "sub-b", "new", seed=2)
    store.write_index(place)

for last in range(1, 400, {stride}):
    child = os.fork()
    if not child:
        work(sys.argv[1] + "/store" + str(last), last)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(last, os.waitstatus_to_exitcode(status), flush=True)
    if not status:
        break
"""


def test_a_store_can_be_read_and_completed_after_a_kill_at_any_step(tmp_path: Path) -> None:
    script = tmp_path / "write.py"
    script.write_text(_KILLED.format(tests=str(Path(__file__).parent), stride=8))
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, capture_output=True, text=True)
    codes = {int(last): int(code) for last, code in map(str.split, done.stdout.splitlines())}
    *killed, completed = codes.values()
    assert len(killed) > 8 and set(killed) == {-9} and completed == 0, done.stderr
    truth, seen = {"sub-a-01d": 0, "sub-a-new": 1, "sub-b-new": 2}, set()
    for step in codes:
        place = tmp_path / f"store{step}"
        groups = store.group_names(place)
        for group in groups:
            assert_array_equal(store.read_rows(place, group, [0, 1, 2])["hu"], _arrays(truth[group])["hu"])
        seen.add(tuple(groups))
        for name, seed in (("sub-a", 1), ("sub-b", 2)):
            _write(place, name, "new", seed)
        store.write_index(place)
        assert store.group_names(place) == ["sub-a-new", "sub-b-new"]
    assert {("sub-a-01d",), ("sub-a-new",), ("sub-a-new", "sub-b-new")} <= seen, "before, between and after"


def test_the_cache_keeps_the_last_samples_and_reads_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = _write(tmp_path, "sub-a", "0")
    rows_read: list[int] = []
    read = store.read_rows

    def count(place: str | Path, group: str, rows: list[int]) -> dict[str, np.ndarray]:
        rows_read.extend(rows)
        return read(place, group, rows)

    monkeypatch.setattr(store, "read_rows", count)
    cache = store.SampleCache(tmp_path, keep=2)
    for row in (0, 1, 0, 1, 2, 1, 0):
        assert_array_equal(cache.read(name, row)["hu"], _arrays(0)["hu"][row])
    assert rows_read == [0, 1, 2, 0]
    cache.prefetch(name, 2)
    cache.prefetch(name, 2)
    assert_array_equal(cache.read(name, 2)["hu"], _arrays(0)["hu"][2])
    assert rows_read == [0, 1, 2, 0, 2]


def test_the_cache_reports_damage_each_time_and_recovers(tmp_path: Path) -> None:
    chunk = tmp_path / _write(tmp_path, "sub-a", "0") / "hu" / "0.0.0"
    content = chunk.read_bytes()
    chunk.unlink()
    cache = store.SampleCache(tmp_path)
    for _ in range(2):
        with pytest.raises(InputError, match="The samples sub-a-0 can't be read"):
            cache.read("sub-a-0", 0)
    chunk.write_bytes(content)
    assert_array_equal(cache.read("sub-a-0", 0)["hu"], _arrays(0)["hu"][0])


@pytest.mark.parametrize("column", ["subject", "person"])
@pytest.mark.parametrize("name", ["../../elsewhere", "/elsewhere", '=HYPERLINK("http://x")'])
def test_a_stranger_s_store_names_no_folder_and_no_formula(column: str, name: str, tmp_path: Path) -> None:
    rows = pd.DataFrame({"subject": ["a"], "person": ["a"], "level": ["L1"]}).assign(**{column: name})
    store.write_group(tmp_path, "a-1", rows, {"hu": np.ones((1, 2), np.int16)})
    with pytest.raises(InputError, match=r"In the store .* the subject .* must be letters, digits"):
        store.read_index(tmp_path)
