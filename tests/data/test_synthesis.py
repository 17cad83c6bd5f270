"""Synthesis: which subjects are made and which are done, on how many workers, and what is left when one is killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import Patient, part_alone, part_of, store_as
from numpy.testing import assert_array_equal

from transvert.data import samples, store, synthesis
from transvert.data.cluster import WORKER_ENVIRONMENT, open_client
from transvert.data.manifest import Subject
from transvert.data.manifest_schema import DataFile
from transvert.imaging.volume import Volume
from transvert.io import InputError

L1, L2, L3 = 20, 21, 22


def _small(patient: Patient, name: str, folder: Path) -> Subject:
    """The same with a CT: made in a tenth of a second."""
    folder.mkdir(parents=True, exist_ok=True)
    without = part_alone(patient, name, folder / f"{name}_seg-vert_msk.nii.gz")
    ct = part_of(patient.ct)
    return replace(
        without, ct=store_as(Volume(ct.data.astype(np.int16), ct.affine), "RAS", folder / f"{name}_ct.nii.gz")
    )


# Into a store


@pytest.fixture
def one(patient: Patient, tmp_path: Path) -> Subject:
    """Whatever it is called, it is a scan of one known person."""
    return replace(_small(patient, "sub-one", tmp_path), person="sub-box")


@pytest.fixture
def bad(patient: Patient, tmp_path: Path) -> Subject:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(patient.mask_path.read_bytes()[:3000])
    return Subject("sub-bad", None, broken, "verse", {}, {})


def _times(place: Path) -> dict[str, int]:
    return {name: (place / name).stat().st_mtime_ns for name in store.shard_names(place)}


def test_synthesize_fills_a_store_and_names_what_it_could_not(one: Subject, bad: Subject, tmp_path: Path) -> None:
    place = tmp_path / "store"
    person = replace(one, split="training")
    notes = synthesis.synthesize([bad, person, replace(one, name="sub-b")], place, progress=False)
    assert len(notes) == 2 and notes[0].startswith("sub-bad: broken.nii.gz is cut short")
    assert notes[1] == "2 subjects, 1 failed. Vertebrae, and what was found of them: 2 whole."
    index = pd.read_parquet(place / "index.parquet")
    assert list(zip(index.subject, index.level, index.source, index.person, index.official_split, strict=True)) == [
        ("sub-b", "L2", "ct", "sub-box", ""),
        ("sub-one", "L2", "ct", "sub-box", "training"),
    ]
    failures = pd.read_csv(place / synthesis.FAILURES)
    assert failures.subject.tolist() == ["sub-bad"] and failures.reason[0].startswith("broken.nii.gz is cut short")


def test_if_all_fail_the_first_reasons_are_told(bad: Subject, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^No subject could be synthesised\. sub-bad: broken\.nii\.gz is cut short"):
        synthesis.synthesize([bad], tmp_path / "store", progress=False)
    many = [replace(bad, name=f"sub-{n}") for n in range(5)]
    with pytest.raises(InputError, match=r"sub-2: .* 2 more stand in failures\.csv\.$"):
        synthesis.synthesize(iter(many), tmp_path / "store", progress=False)
    assert len(pd.read_csv(tmp_path / "store" / synthesis.FAILURES)) == 6
    with pytest.raises(InputError, match="There is no sample store"):
        store.read_index(tmp_path / "store")


def test_done_subjects_are_not_done_again_and_changed_ones_are(one: Subject, tmp_path: Path) -> None:
    place, two = tmp_path / "store", replace(one, name="sub-two")

    def run(*subjects: Subject, **settings: object) -> dict[str, int]:
        synthesis.synthesize(subjects, place, progress=False, **settings)  # type: ignore[arg-type]
        return _times(place)

    first = run(one, two)
    assert len(first) == 2
    assert run(one, two) == first == run(two)
    assert one.mask is not None
    for changed in (
        lambda: run(one, two, projection="cone"),
        lambda: run(one, two, surroundings="cube"),
        lambda: (os.utime(one.mask, (1, 1)), run(one, two))[1],
        lambda: run(replace(one, person="p"), replace(two, person="p")),
    ):
        before, after = _times(place), changed()
        assert len(after) == 2, "what is replaced is removed"
        assert after.keys() != before.keys()
    assert set(store.read_index(place).person) == {"p"}


def test_a_seed_counts_for_phantoms_alone(one: Subject, patient: Patient, tmp_path: Path) -> None:
    place, phantom = tmp_path / "store", part_alone(patient, "sub-phantom", tmp_path / "m.nii.gz")
    phantom = replace(phantom, person=one.person)
    synthesis.synthesize([one, phantom], place, progress=False)
    before = _times(place)
    synthesis.synthesize([one, phantom], place, seed=1, progress=False)
    changed = before.items() ^ _times(place).items()
    assert {name.rpartition("-")[0] for name, _ in changed} == {"sub-phantom"} and len(_times(place)) == 2


def test_a_file_is_known_by_its_stated_hash(one: Subject, tmp_path: Path) -> None:
    place = tmp_path / "store"
    assert one.ct and one.mask
    stated = {path: DataFile("ct", "sub-one", n * 64, 1, "x", path) for n, path in (("0", one.ct), ("1", one.mask))}
    synthesis.synthesize([replace(one, files=stated)], place, progress=False)
    before = _times(place)
    for path in stated:
        os.utime(path, (1, 1))
    synthesis.synthesize([replace(one, files=stated)], place, progress=False)
    assert _times(place) == before
    other = stated | {one.ct: replace(stated[one.ct], sha256="f" * 64)}
    synthesis.synthesize([replace(one, files=other)], place, progress=False)
    assert _times(place).keys() != before.keys() and len(_times(place)) == 1


def test_failures_are_forgotten_once_they_are_mended(one: Subject, bad: Subject, tmp_path: Path) -> None:
    place = tmp_path / "store"
    synthesis.synthesize([one, bad, replace(bad, name="sub-other")], place, progress=False)
    synthesis.synthesize([replace(one, name="sub-bad")], place, progress=False)
    assert pd.read_csv(place / synthesis.FAILURES).subject.tolist() == ["sub-other"]
    assert set(store.read_index(place).subject) == {"sub-one", "sub-bad"}


def test_one_subject_under_two_names_is_refused(one: Subject, tmp_path: Path) -> None:
    """Also where an earlier run made the first, and where one was ended before it could compare."""
    place = tmp_path / "store"
    copy = replace(one, name="sub-two", person="")
    reason = "sub-one and sub-two are one subject under two names: their L2 are 0.00 mm apart; leave one out."
    told = synthesis.synthesize([one, copy], place, progress=False)
    assert told == [f"sub-two: {reason}", "1 subjects, 1 failed. Vertebrae, and what was found of them: 1 whole."]
    assert pd.read_csv(place / synthesis.FAILURES).values.tolist() == [["sub-two", reason]]
    assert list(store.read_index(place).subject) == ["sub-one"] and len(store.shard_names(place)) == 1
    assert synthesis.synthesize([one, copy], place, progress=False) == told
    samples.write_samples(place, replace(samples.read_samples(place, "sub-one"), subject="sub-a", person=""))
    assert synthesis.synthesize([one], place, progress=False)[-1].startswith("1 subjects, 1 failed.")
    assert list(store.read_index(place).subject) == ["sub-one"]


def test_two_subjects_of_one_id_and_a_missing_file_fail_alone(one: Subject, tmp_path: Path) -> None:
    notes = synthesis.synthesize(
        [one, replace(one, name="SUB-ONE"), replace(one, name="sub-x", mask=tmp_path / "gone.nii.gz")],
        tmp_path / "store",
        progress=False,
    )
    assert notes[:-1] == [
        "SUB-ONE: there are two subjects with the id SUB-ONE; rename one.",
        "sub-x: gone.nii.gz of sub-x does not exist.",
    ]


def test_an_unforeseen_error_fails_its_subject_alone(
    one: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = samples.cut_samples

    def break_down(*arguments: object, **options: object) -> samples.Samples:
        if "sub-x" in arguments:
            raise ZeroDivisionError("division by zero")
        return cut(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(samples, "cut_samples", break_down)
    notes = synthesis.synthesize([replace(one, name="sub-x"), one], tmp_path / "store", progress=False)
    assert notes[:-1] == ["sub-x: ZeroDivisionError: division by zero"]


def test_subjects_are_asked_for_as_they_are_made(one: Subject, tmp_path: Path) -> None:
    """A set of thousands is unpacked on the way."""
    place = tmp_path / "store"
    found = []

    def stream() -> Iterator[Subject]:
        for n in range(synthesis.FEW):
            found.append(len(store.shard_names(place)))
            yield replace(one, name=f"sub-{n}")

    synthesis.synthesize(stream(), f"memory://{tmp_path.name}/store", progress=False)
    assert samples.read_samples(f"memory://{tmp_path.name}/store", "sub-0").levels.tolist() == [L2]


def test_a_full_disk_ends_the_run_and_the_next_one_completes_it(
    one: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, many = tmp_path / "store", [replace(one, name=f"sub-{n}") for n in range(3)]
    put = store.put

    def full(folder: str, name: str, content: bytes) -> None:
        if name.startswith("sub-1"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(folder, name, content)

    with monkeypatch.context() as patched:
        patched.setattr(store, "put", full)
        with pytest.raises(InputError, match=r"^No room is left for .*store; free some and run this again"):
            synthesis.synthesize(many, place, progress=False)
    first = _times(place)
    assert set(store.read_index(place).subject) == {"sub-0"}
    synthesis.synthesize(many, place, progress=False)
    assert len(_times(place)) == 3 and first.items() <= _times(place).items()
    assert not (place / synthesis.FAILURES).exists()


# On workers


def test_dask_is_imported_where_it_is_used() -> None:
    code = "import sys, transvert.synthesis; print([m for m in ('dask', 'distributed', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_cluster_at_an_address_makes_what_one_process_makes(one: Subject, bad: Subject, tmp_path: Path) -> None:
    from distributed import LocalCluster

    many = [bad, *(replace(one, name=f"sub-{n}") for n in range(3))]
    here, there = tmp_path / "here", tmp_path / "there"
    told = synthesis.synthesize(many, here, progress=False)
    options = {
        "n_workers": 1,
        "threads_per_worker": 1,
        "processes": False,
        "protocol": "tcp",
        "dashboard_address": None,
    }
    with LocalCluster(**options) as cluster:
        assert synthesis.synthesize(many, there, scheduler=cluster.scheduler_address, progress=False) == told
    assert store.shard_names(here) == store.shard_names(there)
    for n in range(3):
        one_s, other_s = samples.read_samples(here, f"sub-{n}"), samples.read_samples(there, f"sub-{n}")
        assert_array_equal(one_s.hu, other_s.hu)
        assert_array_equal(one_s.pictures, other_s.pictures)


def test_a_worker_has_one_thread_its_memory_and_keeps_what_it_has() -> None:
    with open_client("", 1, "1 GB") as client:
        (found,) = client.run(lambda: dict(os.environ)).values()
        assert WORKER_ENVIRONMENT.items() <= found.items()
        ((worker, threads),) = client.nthreads().items()
        assert threads == 1 and client.scheduler_info()["workers"][worker]["memory_limit"] == 10**9


def test_no_cluster_and_no_amount_of_memory_get_their_sentence(one: Subject, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No Dask scheduler answers at nowhere .*; start one with `dask scheduler`"):
        synthesis.synthesize([one], tmp_path / "store", scheduler="nowhere", progress=False)
    with pytest.raises(InputError, match="'much' is no amount of memory; write it as \"4 GB\""):
        synthesis.synthesize([one], tmp_path / "store", workers=1, memory="much", progress=False)


@pytest.fixture
def start(patient: Patient, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command line on a folder of eight subjects; what still runs in the end is ended."""
    for n in range(8):
        _small(patient, f"sub-box_scan-{n}", tmp_path / "set")
    began: list[subprocess.Popen[str]] = []

    def begin(*options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "transvert", "synthesize", str(tmp_path / "set"), "--out"]
        began.append(subprocess.Popen([*command, str(tmp_path / "store"), *options], stdout=-1, stderr=-1, text=True))
        return began[-1]

    yield begin
    for process in began:
        process.kill()
        process.communicate()


def _first_shard(place: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not store.shard_names(place):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.01)


def _workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_a_killed_run_leaves_a_store_and_the_next_one_completes_it(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    place = tmp_path / "store"
    process = start("--workers", "1")
    _first_shard(place, process)
    workers = _workers(process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    first = _times(place)
    assert 1 <= len(first) < 8 and not (place / "index.parquet").exists()
    index = store.read_index(place)
    assert set(index["shard"]) <= set(store.shard_names(place))
    assert samples.read_samples(place, index.subject[0]).levels.tolist() == [L2]
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert workers and not alive, "no worker stays behind"
    first = _times(place)
    process = start("--workers", "1")
    assert process.communicate()[1] is not None and process.returncode == 0
    assert len(_times(place)) == 8 and first.items() <= _times(place).items()
    assert set(pd.read_parquet(place / "index.parquet").subject) == {f"sub-box_scan-{n}" for n in range(8)}


def test_a_killed_worker_is_replaced_and_nothing_is_missing(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start("--workers", "1")
    _first_shard(tmp_path / "store", process)
    killed = _workers(process)
    assert len(killed) == 1
    killed[0].kill()
    assert process.communicate(timeout=120)[1] is not None and process.returncode == 0
    assert set(store.read_index(tmp_path / "store").subject) == {f"sub-box_scan-{n}" for n in range(8)}
    assert not (tmp_path / "store" / synthesis.FAILURES).exists()


def test_a_subject_too_large_for_its_worker_is_listed_and_the_rest_go_on(patient: Patient, tmp_path: Path) -> None:
    """A mask as large as a city, of which nothing but its size counts, and a worker of 600 MB."""
    large = Volume(np.zeros((900, 900, 900), np.uint8), np.diag([0.1, 0.1, 0.1, 1.0]))
    large.data[100:400, 100:400, 100:400] = L2
    subjects = [
        Subject("sub-large", None, store_as(large, "RAS", tmp_path / "large.nii.gz"), "verse", {}, {}),
        _small(patient, "sub-one", tmp_path),
    ]
    notes = synthesis.synthesize(subjects, tmp_path / "store", workers=1, memory="600 MB", progress=False)
    assert notes[:-1] == ["sub-large: it ended its workers, most likely for want of memory; give them more."]
    assert set(store.read_index(tmp_path / "store").subject) == {"sub-one"}
