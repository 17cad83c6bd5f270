"""Synthesis makes what a store lacks, here or on workers, and a killed run or worker costs nothing but time."""

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
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import Patient, part_alone, part_of, store_as
from numpy.testing import assert_array_equal

from transvert.data import samples, store, synthesis
from transvert.data.manifest import DataFile, Subject
from transvert.data.subjects import find_subjects
from transvert.data.synthesis import WORKER_ENVIRONMENT, open_client
from transvert.imaging.volume import Volume
from transvert.io import InputError
from transvert.phantom import paint

L1, L2, L3 = 20, 21, 22


def _small(patient: Patient, name: str, folder: Path) -> Subject:
    """A subject with a small CT of L2: made in a tenth of a second."""
    folder.mkdir(parents=True, exist_ok=True)
    without = part_alone(patient, name, folder / f"{name}_seg-vert_msk.nii.gz")
    ct = part_of(patient.ct)
    whole = Volume(ct.data.astype(np.int16), ct.affine)
    return replace(without, ct=store_as(whole, "RAS", folder / f"{name}_ct.nii.gz"))


@pytest.fixture
def one(patient: Patient, tmp_path: Path) -> Subject:
    return replace(_small(patient, "sub-one", tmp_path), person="sub-box")


@pytest.fixture
def bad(patient: Patient, tmp_path: Path) -> Subject:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(patient.mask_path.read_bytes()[:3000])
    return Subject("sub-bad", None, broken, "verse", {}, {})


def _times(place: Path) -> dict[str, int]:
    return {name: (place / name / ".zattrs").stat().st_mtime_ns for name in store.group_names(place)}


def _run(place: str | Path, *subjects: Subject, **settings: Any) -> list[str]:
    return synthesis.synthesize(subjects, place, progress=False, **settings)


def test_synthesize_fills_a_store_and_lists_what_failed(one: Subject, bad: Subject, tmp_path: Path) -> None:
    place = tmp_path / "store"
    notes = _run(place, bad, replace(one, split="training"), replace(one, name="sub-b"))
    assert len(notes) == 2 and notes[0].startswith("sub-bad: broken.nii.gz is cut short")
    assert notes[1] == "2 subjects, 1 failed. Vertebrae: 2 whole."
    assert (place / store.INDEX).exists()
    index = store.read_index(place)
    assert list(zip(index.subject, index.level, index.source, index.person, index.official_split, strict=True)) == [
        ("sub-b", "L2", "ct", "sub-box", ""),
        ("sub-one", "L2", "ct", "sub-box", "training"),
    ]
    failures = pd.read_csv(place / synthesis.FAILURES)
    assert failures.subject.tolist() == ["sub-bad"] and failures.reason[0].startswith("broken.nii.gz is cut short")
    _run(place, replace(one, name="sub-bad"))
    assert pd.read_csv(place / synthesis.FAILURES).empty, "it lists the failures of the last run"
    assert set(store.read_index(place).subject) == {"sub-one", "sub-b", "sub-bad"}


def test_the_first_reasons_are_given_if_all_fail(bad: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "store"
    monkeypatch.setattr(synthesis, "FEW", 9)
    with pytest.raises(InputError, match=r"^No subject could be synthesised\. sub-0: broken\.nii\.gz is cut .* lists"):
        _run(place, *(replace(bad, name=f"sub-{n}") for n in range(5)))
    assert len(pd.read_csv(place / synthesis.FAILURES)) == 5
    with pytest.raises(InputError, match="There is no sample store"):
        store.read_index(place)


def test_subjects_are_made_again_only_if_files_or_settings_change(one: Subject, tmp_path: Path) -> None:
    place, two = tmp_path / "store", replace(one, name="sub-two")

    def times(*subjects: Subject, **settings: Any) -> dict[str, int]:
        _run(place, *subjects, **settings)
        return _times(place)

    first = times(one, two)
    assert len(first) == 2
    assert times(one, two) == first == times(two)
    assert one.mask is not None
    for changed in (
        lambda: times(one, two, projection="cone"),
        lambda: times(one, two, field_of_view="crop"),
        lambda: (os.utime(one.mask, (1, 1)), times(one, two))[1],
        lambda: times(replace(one, person="p"), replace(two, person="p")),
    ):
        before, after = _times(place), changed()
        assert len(after) == 2, "what is replaced is removed"
        assert not before.keys() & after.keys()
    assert set(store.read_index(place).person) == {"p"}


def test_a_seed_matters_to_phantoms_alone(
    one: Subject, patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paint, "paint_phantom", lambda mask, seed: Volume(mask.data.astype(np.float32), mask.affine))
    place, phantom = tmp_path / "store", part_alone(patient, "sub-phantom", tmp_path / "m.nii.gz")
    _run(place, one, phantom)
    before = _times(place)
    _run(place, one, phantom, seed=1)
    changed = before.items() ^ _times(place).items()
    assert {name.rpartition("-")[0] for name, _ in changed} == {"sub-phantom"} and len(_times(place)) == 2


def test_several_bodies_are_painted_of_one_person(
    one: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []

    def paint_phantom(mask: Volume, seed: int) -> Volume:
        seeds.append(seed)
        return Volume(mask.data.astype(np.float32), mask.affine)

    monkeypatch.setattr(paint, "paint_phantom", paint_phantom)
    place = tmp_path / "store"
    _run(place, one)
    _run(place, one, bodies=2)
    index = store.read_index(place)
    assert set(index.subject) == {one.name, f"{one.name}-body1", f"{one.name}-body2"} and len(set(seeds)) == 2
    assert set(index.person) == {one.person}, "they are held out together"
    assert index.groupby("source").subject.nunique().to_dict() == {"ct": 1, "phantom": 2}


def test_a_subject_with_a_problem_is_reported_once_whatever_is_painted(one: Subject, tmp_path: Path) -> None:
    notes = _run(tmp_path / "store", one, Subject("sub-odd", problem="It is odd."), bodies=2)
    assert [note for note in notes if "odd" in note] == ["sub-odd: It is odd."]
    assert notes[-1].startswith("2 subjects, 1 failed.")


def test_a_file_is_identified_by_its_stated_hash(one: Subject, tmp_path: Path) -> None:
    place = tmp_path / "store"
    assert one.ct and one.mask
    stated = {path: _stated(n * 64) for n, path in (("0", one.ct), ("1", one.mask))}
    _run(place, replace(one, files=stated))
    before = _times(place)
    for path in stated:
        os.utime(path, (1, 1))
    _run(place, replace(one, files=stated))
    assert _times(place) == before
    _run(place, replace(one, files={**stated, one.ct: _stated("f" * 64)}))
    assert _times(place).keys() != before.keys() and len(_times(place)) == 1


def _stated(sha256: str) -> DataFile:
    return DataFile(role="ct", subject="sub-one", sha256=sha256, url="https://example.org/a.nii.gz")


def test_a_missing_file_and_an_unforeseen_error_fail_alone(
    one: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = samples.cut_samples

    def break_down(*arguments: Any, **options: Any) -> samples.Samples:
        if "sub-y" in arguments:
            raise ZeroDivisionError("division by zero")
        return cut(*arguments, **options)

    monkeypatch.setattr(samples, "cut_samples", break_down)
    gone = replace(one, name="sub-x", mask=tmp_path / "gone.nii.gz")
    notes = synthesis.synthesize(iter([one, gone, replace(one, name="sub-y")]), tmp_path / "store", progress=False)
    assert notes[:-1] == ["sub-x: gone.nii.gz of sub-x does not exist.", "sub-y: ZeroDivisionError: division by zero"]


def test_a_full_disk_ends_the_run_and_the_next_one_completes_it(
    one: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, many = tmp_path / "store", [replace(one, name=f"sub-{n}") for n in range(3)]
    write = store.write_files

    def full(folder: str, contents: dict[str, bytes]) -> None:
        if any(name.startswith("sub-1") for name in contents):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(folder, contents)

    with monkeypatch.context() as patched:
        patched.setattr(store, "write_files", full)
        with pytest.raises(InputError, match=r"^The disk of .*store is full; make room and run this again"):
            _run(place, *many)
    first = _times(place)
    assert set(store.read_index(place).subject) == {"sub-0"}
    _run(place, *many)
    assert len(_times(place)) == 3 and first.items() <= _times(place).items()


def test_a_cluster_at_an_address_makes_what_one_process_makes(one: Subject, bad: Subject, tmp_path: Path) -> None:
    from distributed import LocalCluster

    many = [bad, *(replace(one, name=f"sub-{n}") for n in range(2))]
    here, there = tmp_path / "here", tmp_path / "there"
    told = _run(here, *many)
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "protocol": "tcp"}
    with LocalCluster(**options, dashboard_address=None) as cluster:
        assert synthesis.synthesize(many, there, scheduler=cluster.scheduler_address, progress=False) == told
    assert store.group_names(here) == store.group_names(there)
    for n in range(2):
        one_s, other_s = samples.read_samples(here, f"sub-{n}"), samples.read_samples(there, f"sub-{n}")
        assert_array_equal(one_s.hu, other_s.hu)
        assert_array_equal(one_s.pictures, other_s.pictures)


def test_a_worker_has_one_thread_and_its_memory_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis, "WORKER_MEMORY", "1 GB")
    with open_client("", 1) as client:
        (found,) = client.run(lambda: dict(os.environ)).values()
        assert WORKER_ENVIRONMENT.items() <= found.items()
        ((worker, threads),) = client.nthreads().items()
        assert threads == 1 and client.scheduler_info()["workers"][worker]["memory_limit"] == 10**9


def test_an_address_without_a_cluster_is_refused(one: Subject, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="-1 workers can't be started; use 0 for as many as fit"):
        synthesis.synthesize([one], tmp_path, workers=-1)
    with pytest.raises(InputError, match="No Dask scheduler answers at nowhere .*; start `dask scheduler`"):
        synthesis.synthesize([one], tmp_path / "store", scheduler="nowhere", progress=False)


@pytest.fixture
def start(patient: Patient, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command line on a folder of eight subjects, and ends it after the test."""
    for n in range(8):
        _small(patient, f"sub-box_scan-{n}", tmp_path / "set")
    began: list[subprocess.Popen[str]] = []

    def begin(*options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "transvert.cli", "synthesize", str(tmp_path / "set"), "--out"]
        began.append(subprocess.Popen([*command, str(tmp_path / "store"), *options], stdout=-1, stderr=-1, text=True))
        return began[-1]

    yield begin
    for process in began:
        process.kill()
        process.communicate()


def _first_group(place: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not store.group_names(place):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.01)


def _workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_a_killed_run_leaves_a_store_and_the_next_one_completes_it(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "store"
    process = start("--workers", "1")
    _first_group(place, process)
    workers = _workers(process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    first = _times(place)
    assert 1 <= len(first) < 8 and not (place / store.INDEX).exists()
    index = store.read_index(place)
    assert set(index["group"]) <= set(store.group_names(place))
    assert samples.read_samples(place, index.subject[0]).levels.tolist() == [L2]
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert workers and not alive, "no worker stays behind"
    first = _times(place)
    monkeypatch.setattr(synthesis, "FEW", 8)
    synthesis.synthesize(find_subjects([str(tmp_path / "set")]), place, progress=False)
    assert len(_times(place)) == 8 and first.items() <= _times(place).items()
    assert set(store.read_index(place).subject) == {f"sub-box_scan-{n}" for n in range(8)}


def test_a_subject_too_large_for_its_worker_is_listed_and_the_rest_go_on(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthesis, "WORKER_MEMORY", "600 MB")
    path = tmp_path / "large.nii"
    header = nibabel.Nifti1Header()
    header.set_data_shape((900, 900, 900))
    header.set_data_dtype(np.uint8)
    header.set_sform(np.diag([0.1, 0.1, 0.1, 1.0]), 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    with path.open("wb") as file:
        file.write(header.binaryblock)
        file.truncate(352 + 900**3)
    subjects = [Subject("sub-large", None, path, "verse", {}, {}), _small(patient, "sub-one", tmp_path)]
    notes = _run(tmp_path / "store", *subjects, workers=1)
    assert notes[:-1] == ["sub-large: it ended its workers, most likely for lack of memory; give them more."]
    assert set(store.read_index(tmp_path / "store").subject) == {"sub-one"}
