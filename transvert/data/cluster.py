"""Dask's workers: on this computer's cores, or of a cluster at an address.

A cluster's workers need this package and the same paths as here, and `--nthreads 1`: `dask worker HOST:8786 --nthreads 1`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from transvert.io import InputError

WORKER_MEMORY = "4 GB"
WORKER_ENVIRONMENT = {
    **dict.fromkeys(("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    # Large arrays come and go. Handed back each time, as Dask has it, their memory costs a phantom a third of its time.
    "MALLOC_MMAP_THRESHOLD_": str(2**26),
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
}
"""Of the processes that are started here: one thread, and freed memory is kept up to a limit."""

_COUNT_WORKERS_S = 5.0


def work(
    task: Callable[..., Any],
    jobs: Iterable[tuple[str, tuple[Any, ...]]],
    *,
    scheduler: str = "",
    workers: int = 0,
    memory: str = WORKER_MEMORY,
) -> Generator[tuple[str, BaseException | None]]:
    """Calls `task` for every job on Dask's workers.

    Args:
        task: a function of a module, so that a worker finds it.
        jobs: a name that no other has, and the arguments; asked for as workers become free.
        scheduler: the address of a Dask scheduler; without one, processes are started here.
        workers: how many; 0 for as many as cores and memory allow.
        memory: what each of them may take.

    Yields:
        A job's name and the error it ended in, or None, in the order in which they are done.

    Raises:
        InputError: there is no such cluster, or it has gone.
    """
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    waiting = iter(jobs)
    with open_client(scheduler, workers, memory) as client:
        names: dict[str, str] = {}
        running = as_completed(raise_errors=False)

        def submit(some: int) -> None:
            for name, arguments in itertools.islice(waiting, some):
                future = client.submit(task, *arguments, pure=False)
                names[future.key] = name
                running.add(future)

        # One a worker and none in wait: Dask holds a worker's death against all it was given. Others may join later.
        counted = time.monotonic()
        room = max(1, sum(client.nthreads().values()))
        submit(room)
        for future in running:
            name = names.pop(future.key)
            if future.status not in ("finished", "error"):
                raise InputError("The Dask cluster is gone; run this again, to go on from here.")
            error = future.exception()
            if isinstance(error, KilledWorker):
                error = InputError("it ended its workers, most likely for want of memory; give them more.")
            yield name, error
            if time.monotonic() - counted > _COUNT_WORKERS_S:
                counted, room = time.monotonic(), max(1, sum(client.nthreads().values()))
            submit(max(0, room - len(names)))


def parse_memory(memory: str) -> int:
    """An amount of memory such as "4 GB", in bytes.

    Raises:
        InputError: it is none.
    """
    import dask.utils

    try:
        return dask.utils.parse_bytes(memory)
    except ValueError:
        raise InputError(f"'{memory}' is no amount of memory; write it as \"4 GB\".") from None


@contextlib.contextmanager
def open_client(scheduler: str, workers: int, memory: str) -> Iterator[Any]:
    """A client of the cluster at an address, or of one made for the purpose.

    Raises:
        InputError: nobody answers there, or `memory` is no amount.
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
    limit = parse_memory(memory)
    number = workers or max(1, min(CPU_COUNT, MEMORY_LIMIT // limit))
    # A worker computes on one thread; a job that has ended two workers ends no third.
    settings = {f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in WORKER_ENVIRONMENT.items()}
    with (
        dask.config.set({**settings, "distributed.scheduler.allowed-failures": 1}),
        LocalCluster(
            n_workers=number,
            threads_per_worker=1,
            memory_limit=limit,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
