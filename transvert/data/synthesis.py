"""From subjects to a sample store: in this process, on this computer's cores, or on a Dask cluster.

    transvert synthesize embedded --out store
    transvert synthesize verse20 --out s3://bucket/store --scheduler tcp://HOST:8786

Each worker takes one subject at a time and writes its samples, whole or not at all. A run may be stopped at any moment;
the next one makes what is missing. A subject is done if its name, its files and the settings are the same as before.
Files are compared by the SHA-256 that their manifest states, or else by size and time of change.

The workers of a cluster need this package, the same paths, and one thread each: `dask worker HOST:8786 --nthreads 1`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import itertools
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from transvert.data import samples
from transvert.data.manifest import Subject
from transvert.data.store import group_name, group_names, read_file, write_files, write_index
from transvert.data.subjects import load_subject
from transvert.io import InputError
from transvert.progress import progress_bar

FAILURES = "failures.csv"
"""The store's table of subjects that could not be made into samples, with the reasons."""
FEW = 3
"""Up to this many subjects are made in this process: starting workers takes longer than they save."""
WORKER_MEMORY = "4 GB"
WORKER_ENVIRONMENT = {
    **dict.fromkeys(("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    # Keep freed memory for the next array: returning it each time, Dask's default, costs a phantom a third of its time.
    "MALLOC_MMAP_THRESHOLD_": str(2**26),
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
}
_VERSION = 4
"""Part of a group's digest. Raise it when the same files and settings give other samples."""
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Settings:
    """How samples are made: see `cut_samples`; `seed` is the phantoms'."""

    projection: str = "parallel"
    field_of_view: str = "full"
    seed: int = 0


@dataclass
class _Run:
    """What a run has done so far: the groups that belong to its subjects, and why others failed."""

    store: str
    settings: Settings
    bar: Any = None
    groups: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def synthesize(
    subjects: Iterable[Subject],
    store: str | Path,
    *,
    projection: str = "parallel",
    field_of_view: str = "full",
    phantoms: bool = False,
    seed: int = 0,
    scheduler: str = "",
    workers: int = 0,
    memory: str = WORKER_MEMORY,
    progress: bool = True,
) -> list[str]:
    """Makes the samples of all subjects that a store does not have yet. A subject that fails does not stop the rest.

    Args:
        subjects: taken one by one, so that they may be fetched meanwhile.
        store: a folder, or an address that fsspec can write to.
        projection: "parallel" or "cone", as in `cut_samples`.
        field_of_view: "full" or "crop", as in `cut_samples`.
        phantoms: paint every subject as a phantom from its mask, even those with a CT.
        seed: of the phantoms.
        scheduler: address of a Dask scheduler; "" uses this computer.
        workers: processes on this computer; 0 for as many as cores and memory allow, and none for a few subjects.
        memory: limit per process; a subject that exceeds it fails.
        progress: shows a bar.

    Returns:
        One sentence per cleaned or skipped vertebra and per failed subject, and last a summary. The failures also stand
        in the store's `FAILURES`.

    Raises:
        InputError: every subject failed, the disk is full, or there is no such cluster.
    """
    run = _Run(
        str(store) if "://" in str(store) else str(Path(store).absolute()), Settings(projection, field_of_view, seed)
    )
    number = range(len(subjects)) if isinstance(subjects, Sized) else itertools.count()
    if phantoms:
        subjects = (replace(subject, ct=None) for subject in subjects)
    try:
        with progress_bar(number, "subjects", quiet=not progress) as run.bar:
            jobs = _missing(run, subjects)
            first = list(itertools.islice(jobs, FEW + 1))
            if first and (scheduler or workers or len(first) > FEW):
                with open_client(scheduler, workers, memory) as client:
                    _make_on(client, run, itertools.chain(first, jobs))
            else:
                _make_here(run, first)
        return _summarise(run)
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise InputError(f"The disk of {run.store} is full; free some space and run this again to continue.") from None


def make_samples(subject: Subject, store: str, digest: str, settings: Settings) -> None:
    """Makes one subject's samples and writes them into a store.

    Raises:
        InputError: as `load_subject` and `cut_samples`.
    """
    ct, mask, source = load_subject(subject, seed=settings.seed)
    how = {"projection": settings.projection, "field_of_view": settings.field_of_view}
    made = samples.cut_samples(ct, mask, subject.name, source=source, **how)
    samples.write_samples(store, replace(made, person=subject.person, official_split=subject.split), digest)


def _missing(run: _Run, subjects: Iterable[Subject]) -> Iterator[tuple[Subject, str]]:
    """The subjects that the store lacks, with their digests. Notes the groups of all, and those that fail already."""
    present = set(group_names(run.store))
    names: set[str] = set()
    for subject in subjects:
        try:
            if subject.name.casefold() in names:
                raise InputError(f"there are two subjects with the id {subject.name}; rename one.")
            names.add(subject.name.casefold())
            if subject.problem:
                raise InputError(subject.problem)
            digest = _digest(subject, run.settings)
        except InputError as error:
            run.failed[subject.name] = str(error)
            run.bar.update()
            continue
        group = group_name(subject.name, digest)
        run.groups[group] = subject.name
        if group in present:
            run.bar.update()
        else:
            yield subject, digest


def _digest(subject: Subject, settings: Settings) -> str:
    """64 hexadecimal digits that identify a subject's input files and the settings."""
    inputs: list[Any] = []
    for role, path in (("ct", subject.ct), (f"mask/{subject.convention}", subject.mask), *subject.surfaces.items()):
        if path is not None:
            file = subject.files.get(path)
            if not path.is_file():
                raise InputError(f"{path.name} of {subject.name} does not exist.")
            state = path.stat()
            known = [file.sha256] if file and file.sha256 else [state.st_size, state.st_mtime_ns]
            stated = [file.unit, file.frame, file.cropped, file.without] if file else []
            inputs.append([role, *known, *stated])
    seed = settings.seed if subject.ct is None else None
    how = [_VERSION, settings.projection, settings.field_of_view, seed, subject.person, subject.split]
    return hashlib.sha256(json.dumps([how, inputs]).encode()).hexdigest()


def _make_here(run: _Run, jobs: Iterable[tuple[Subject, str]]) -> None:
    """Makes subjects in this process."""
    for subject, digest in jobs:
        try:
            make_samples(subject, run.store, digest, run.settings)
        except Exception as error:  # noqa: BLE001 one subject among thousands must not stop the rest
            run.failed[subject.name] = _reason(error)
        run.bar.update()


def _make_on(client: Any, run: _Run, jobs: Iterator[tuple[Subject, str]]) -> None:
    """Makes subjects on the workers of a Dask client."""
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    names: dict[str, str] = {}
    running = as_completed(raise_errors=False)

    def submit() -> None:
        # One job per thread: Dask holds a worker's death against every job that waits there.
        free = max(1, sum(client.nthreads().values())) - len(names)
        for subject, digest in itertools.islice(jobs, max(0, free)):
            future = client.submit(make_samples, subject, run.store, digest, run.settings, pure=False)
            names[future.key] = subject.name
            running.add(future)

    submit()
    for future in running:
        name = names.pop(future.key)
        if future.status not in ("finished", "error"):
            raise InputError("The Dask cluster is gone; run this again to continue.")
        error = future.exception()
        if isinstance(error, KilledWorker):
            error = InputError("it ended its workers, most likely for lack of memory; give them more.")
        if error:
            run.failed[name] = _reason(error)
        run.bar.update()
        submit()


@contextlib.contextmanager
def open_client(scheduler: str = "", workers: int = 0, memory: str = WORKER_MEMORY) -> Iterator[Any]:
    """Yields a `distributed.Client` of the cluster at an address, or of new processes on this computer.

    Args:
        scheduler: address of a Dask scheduler, or "".
        workers: number of processes on this computer, one thread each; 0 for as many as cores and memory allow.
        memory: limit per process, such as "4 GB".

    Raises:
        InputError: no scheduler answers, or `memory` is not an amount.
    """
    import dask
    from dask.system import CPU_COUNT
    from distributed import Client, LocalCluster
    from distributed.system import MEMORY_LIMIT

    if scheduler:
        try:
            client = Client(scheduler, timeout=20)
        except (OSError, ValueError) as error:
            raise InputError(
                f"No Dask scheduler answers at {scheduler} ({error}); start one with `dask scheduler`."
            ) from None
        with client:
            yield client
        return
    try:
        limit = dask.utils.parse_bytes(memory)
    except ValueError:
        raise InputError(f"'{memory}' is not an amount of memory; write it as \"4 GB\".") from None
    settings = {f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in WORKER_ENVIRONMENT.items()}
    options = {
        "threads_per_worker": 1,
        "memory_limit": limit,
        "dashboard_address": ":0",
        "silence_logs": logging.CRITICAL,
    }
    with (
        # A job that has ended two workers fails.
        dask.config.set({**settings, "distributed.scheduler.allowed-failures": 1}),
        LocalCluster(n_workers=workers or max(1, min(CPU_COUNT, MEMORY_LIMIT // limit)), **options) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _reason(error: BaseException) -> str:
    """The sentence for a failed subject. A full disk concerns all subjects and is raised again."""
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        raise error
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


def _summarise(run: _Run) -> list[str]:
    """Writes the index and the table of failures, and returns the sentences of `synthesize`."""
    index = write_index(run.store)
    failed = dict(sorted(run.failed.items()))
    table = pd.DataFrame({"subject": failed.keys(), "reason": failed.values()})
    earlier = read_file(run.store, FAILURES)
    if earlier:
        before = pd.read_csv(io.BytesIO(earlier), dtype=str)
        table = pd.concat([before[~before["subject"].isin({*run.groups.values(), *failed})], table])
    if failed or earlier:
        write_files(run.store, {FAILURES: table.to_csv(index=False).encode()})
    made = index[index["group"].isin(list(run.groups))].drop_duplicates("group")
    reasons = [f"{name}: {reason}" for name, reason in failed.items()]
    if made.empty:
        more = f" {len(reasons) - 3} more are listed in {FAILURES}." if len(reasons) > 3 else ""
        raise InputError("No subject could be synthesised. " + " ".join(reasons[:3]) + more)
    notes = [
        f"{name}: {note}"
        for name, text in zip(made["subject"], made["notes"], strict=True)
        for note in text.splitlines()
    ]
    counts = sum((Counter(json.loads(one)) for one in made["counts"]), Counter())
    found = ", ".join(f"{number} {kind}" for kind, number in counts.most_common())
    return [*notes, *reasons, f"{len(made)} subjects, {len(failed)} failed. Vertebrae: {found}."]
