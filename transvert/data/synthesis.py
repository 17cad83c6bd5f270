"""From subjects to a sample store: in this process, on this computer's cores, or on a Dask cluster.

    transvert synthesize embedded --out store
    transvert synthesize verse20 --out s3://bucket/store --scheduler tcp://HOST:8786

Each worker takes one subject at a time and writes its samples, whole or not at all. A run may be stopped at any moment;
the next one makes what is missing. A subject is done if its name, its files and the settings are the same as before.
Files are compared by the SHA-256 that their manifest states, or else by size and time of change. The workers of a
cluster need this package, the same paths, and one thread each: `dask worker HOST:8786 --nthreads 1`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from transvert.data import samples
from transvert.data.manifest import Subject
from transvert.data.store import group_name, group_names, write_files, write_index
from transvert.data.subjects import load_subject
from transvert.io import InputError
from transvert.progress import progress_bar

FAILURES = "failures.csv"
"""The store's table of the last run's subjects that could not be made into samples, with the reasons."""
Jobs = Iterable[tuple[Subject, str]]  #: Subjects with their digests.
Results = Iterator[tuple[str, BaseException | None]]  #: The name of each finished subject, and why it failed.
FEW = 3  #: Up to this many subjects are made in this process: starting workers takes longer than they save.
WORKER_MEMORY = "4 GB"  #: Limit of a process; a subject that exceeds it fails.
WORKER_ENVIRONMENT = {
    **dict.fromkeys(("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    # Keep freed memory for the next array: returning it each time, Dask's default, costs a phantom a third of its time.
    "MALLOC_MMAP_THRESHOLD_": str(2**26),
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
}
_VERSION = 5  #: Part of a group's digest. Raise it when the same files and settings give other samples.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Settings:
    """How samples are made: see `cut_samples`; `seed` is the phantoms'."""

    projection: str = "parallel"
    field_of_view: str = "full"
    seed: int = 0


def synthesize(
    subjects: Iterable[Subject],
    store: str | Path,
    *,
    projection: str = "parallel",
    field_of_view: str = "full",
    bodies: int = 0,
    seed: int = 0,
    scheduler: str = "",
    workers: int = 0,
    progress: bool = True,
) -> list[str]:
    """Makes the samples of all subjects that a store does not have yet. A subject that fails does not stop the rest.

    Args:
        subjects: taken one by one, so that they may be fetched meanwhile.
        store: a folder, or an address that fsspec can write to.
        projection: as in `cut_samples`; `field_of_view` likewise.
        bodies: phantoms to paint of each subject's mask, even of those with a CT, as subjects named NAME-body1 and so on;
            0 for the CT, or one phantom named NAME where there is none. In several bodies a network learns to look
            through them.
        seed: of the phantoms.
        scheduler: address of a Dask scheduler; "" uses this computer.
        workers: processes on this computer; 0 for as many as cores and memory allow, and none for a few subjects.
        progress: show a bar.

    Returns:
        One sentence per cleaned or skipped vertebra and per failed subject, and last a summary. The failures also stand
        in the store's `FAILURES`.

    Raises:
        InputError: every subject failed, the disk is full, or there is no such cluster.
    """
    store = str(store) if "://" in str(store) else str(Path(store).absolute())
    settings = Settings(projection, field_of_view, seed)
    present, groups, failed = set(group_names(store)), set(), {}
    number = range(len(subjects) * max(1, bodies)) if isinstance(subjects, Sized) else itertools.count()
    with progress_bar(number, "subjects", quiet=not progress) as bar:

        def missing() -> Jobs:
            """The subjects that the store lacks."""
            for subject in itertools.chain.from_iterable(_paint(one, bodies) for one in subjects):
                try:
                    digest = _digest(subject, settings)
                except InputError as error:
                    failed[subject.name] = str(error)
                else:
                    groups.add(group_name(subject.name, digest))
                    if group_name(subject.name, digest) not in present:
                        yield subject, digest
                        continue
                bar.update()

        jobs = iter(missing())
        first = list(itertools.islice(jobs, FEW + 1))
        with contextlib.ExitStack() as stack:
            if first and (scheduler or workers or len(first) > FEW):
                client = stack.enter_context(open_client(scheduler, workers))
                results = _make_on(client, itertools.chain(first, jobs), store, settings)
            else:
                results = _make_here(first, store, settings)
            for name, error in results:
                if isinstance(error, OSError) and error.errno in _DISK_FULL:
                    raise InputError(f"The disk of {store} is full; make room and run this again to continue.")
                if error:
                    text = " ".join(str(error).split())
                    failed[name] = text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
                bar.update()
    return _summarise(store, groups, dict(sorted(failed.items())))


def make_samples(subject: Subject, store: str, digest: str, settings: Settings) -> None:
    """Makes one subject's samples and writes them into a store; raises what `load_subject` and `cut_samples` raise."""
    ct, mask, source = load_subject(subject, seed=settings.seed)
    how = {"projection": settings.projection, "field_of_view": settings.field_of_view}
    made = samples.cut_samples(ct, mask, subject.name, source=source, **how)
    samples.write_samples(store, replace(made, person=subject.person, official_split=subject.split), digest)


def _paint(subject: Subject, bodies: int) -> list[Subject]:
    """The subject, or as many subjects without its CT: a phantom depends on the name. A subject with a problem stays one."""
    if subject.problem:
        return [subject]
    person = subject.person or subject.name
    names = [f"{subject.name}-body{n}" for n in range(1, bodies + 1)]
    return [replace(subject, name=name, person=person, ct=None) for name in names] or [subject]


def _digest(subject: Subject, settings: Settings) -> str:
    """64 hexadecimal digits that identify a subject's input files and the settings."""
    if subject.problem:
        raise InputError(subject.problem)
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


def _make_here(jobs: Jobs, store: str, settings: Settings) -> Results:
    """Makes subjects in this process."""
    for subject, digest in jobs:
        try:
            make_samples(subject, store, digest, settings)
        except Exception as error:  # noqa: BLE001 one subject among thousands must not stop the rest
            yield subject.name, error
        else:
            yield subject.name, None


def _make_on(client: Any, jobs: Jobs, store: str, settings: Settings) -> Results:
    """Makes subjects on the workers of a Dask client."""
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    waiting = iter(jobs)
    names: dict[str, str] = {}
    running = as_completed(raise_errors=False)

    def submit() -> None:
        # One job per thread: Dask holds a worker's death against every job that waits there.
        free = max(1, sum(client.nthreads().values())) - len(names)
        for subject, digest in itertools.islice(waiting, max(0, free)):
            future = client.submit(make_samples, subject, store, digest, settings, pure=False)
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
        yield name, error
        submit()


@contextlib.contextmanager
def open_client(scheduler: str = "", workers: int = 0) -> Iterator[Any]:
    """Yields a `distributed.Client` of the Dask scheduler at an address, or of `workers` new processes on this computer.

    Each has one thread. The default is as many as cores and memory allow.

    Raises:
        InputError: no scheduler answers.
    """
    import dask
    from dask.system import CPU_COUNT
    from distributed import Client, LocalCluster
    from distributed.system import MEMORY_LIMIT

    if workers < 0:
        raise InputError(f"{workers} workers can't be started; use 0 for as many as fit.")
    if scheduler:
        try:
            client = Client(scheduler, timeout=20)
        except (OSError, ValueError) as error:
            raise InputError(f"No Dask scheduler answers at {scheduler} ({error}); start `dask scheduler`.") from None
        with client:
            yield client
        return
    fitting = max(1, min(CPU_COUNT, MEMORY_LIMIT // dask.utils.parse_bytes(WORKER_MEMORY)))
    limits: dict[str, Any] = {"threads_per_worker": 1, "memory_limit": WORKER_MEMORY}
    quiet: dict[str, Any] = {"dashboard_address": ":0", "silence_logs": logging.CRITICAL}
    settings = {f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in WORKER_ENVIRONMENT.items()}
    with (
        # A job that has ended two workers fails.
        dask.config.set({**settings, "distributed.scheduler.allowed-failures": 1}),
        LocalCluster(n_workers=workers or fitting, **limits, **quiet) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _summarise(store: str, groups: set[str], failed: dict[str, str]) -> list[str]:
    """Writes the index and the table of failures, and returns the sentences of `synthesize`."""
    index = write_index(store)
    table = pd.DataFrame({"subject": failed.keys(), "reason": failed.values()})
    write_files(store, {FAILURES: table.to_csv(index=False).encode()})
    made = index[index["group"].isin(groups)].drop_duplicates("group")
    reasons = [f"{name}: {reason}" for name, reason in failed.items()]
    if made.empty:
        raise InputError(f"No subject could be synthesised. {' '.join(reasons[:3])} {FAILURES} lists all reasons.")
    texts = zip(made["subject"], made["notes"], strict=True)
    notes = [f"{name}: {note}" for name, text in texts for note in text.splitlines()]
    counts = sum((Counter(json.loads(one)) for one in made["counts"]), Counter())
    found = ", ".join(f"{number} {kind}" for kind, number in counts.most_common())
    return [*notes, *reasons, f"{len(made)} subjects, {len(failed)} failed. Vertebrae: {found}."]
