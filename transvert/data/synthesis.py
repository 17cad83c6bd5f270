"""From subjects to a sample store: in this process, on this computer's cores, or on a Dask cluster.

    transvert synthesize embedded --out store
    transvert synthesize verse20 --out store --workers 16 --memory "4 GB"
    transvert synthesize verse20 --out s3://bucket/store --scheduler tcp://HOST:8786

A worker holds one subject at a time and writes its shard, which is whole or absent (`transvert.store`). Stop a run at
any moment; the next one makes what is missing. A subject is known as done by its id, its files and the settings: a
file counts as the same by the SHA-256 that its manifest states, or else by size and time of change.

A cluster's workers need this package, the subjects' files and the store under the same paths, and `--nthreads 1`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from transvert import levels
from transvert.data import cluster, manifest, patches, samples, twins
from transvert.data.cluster import WORKER_MEMORY
from transvert.data.store import get, listed, put, read_index, read_rows, remove, shard_name, shard_names, write_index
from transvert.data.subjects import load_subject
from transvert.imaging.volume import Volume, cube_affine
from transvert.io import InputError
from transvert.progress import progress_bar

FAILURES = "failures.csv"
"""Beside the shards: which subjects could not be made into samples, and why."""

FEW = 3
"""Up to so many subjects are made in this process: starting workers would take longer than they save."""

_MADE_BY = 3
"""Part of what a shard is known by. Raise it whenever the same files and settings come to give other samples."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Settings:
    """How samples are made: `projection` and `surroundings` as in `samples.cut`, and the `seed` of phantoms."""

    projection: str = "parallel"
    surroundings: str = "body"
    seed: int = 0


def make_samples(subject: manifest.Subject, store: str, digest: str, settings: Settings) -> None:
    """Makes one subject's samples and writes them: what a worker does.

    Raises:
        InputError: as `opening.open_subject` and `samples.cut`.
    """
    ct, mask, source = load_subject(subject, seed=settings.seed)
    how = {"projection": settings.projection, "surroundings": settings.surroundings}
    made = samples.cut_samples(ct, mask, subject.name, source=source, **how)
    samples.write_samples(store, replace(made, person=subject.person, official_split=subject.split), digest)


def synthesize(
    subjects: Iterable[manifest.Subject],
    store: str | Path,
    *,
    projection: str = "parallel",
    surroundings: str = "body",
    phantoms: bool = False,
    seed: int = 0,
    scheduler: str = "",
    workers: int = 0,
    memory: str = WORKER_MEMORY,
    total: int = 0,
    progress: bool = True,
) -> list[str]:
    """Makes the samples of subjects that a store does not have yet; a subject that fails does not stop the rest.

    Args:
        subjects: asked for one by one, so they may be fetched on the way.
        store: a folder, or an address that fsspec can write to.
        projection: as in `samples.cut`.
        surroundings: as in `samples.cut`.
        phantoms: paint every subject as a phantom from its mask, even those with a CT.
        seed: of the phantoms.
        scheduler: the address of a Dask scheduler; without one, this computer works.
        workers: processes on this computer; 0 for as many as cores and memory allow, and none for a few subjects.
        memory: what each of them may take; one that takes more is ended, and its subject fails.
        total: how many subjects there are, for the bar, where `subjects` has no length.
        progress: shows a bar.

    Returns:
        What was skipped, mended or failed, one sentence each, and last how much of it there was, by the kinds of `mend`.
        What failed also stands in `FAILURES` of the store.

    Raises:
        InputError: every subject failed; no room is left; there is no such cluster.
    """
    store = str(store) if "://" in str(store) else str(Path(store).absolute())
    settings = Settings(projection, surroundings, seed)
    number = total or (len(subjects) if isinstance(subjects, Sized) else 0)
    if phantoms:
        subjects = (replace(subject, ct=None) for subject in subjects)
    wanted: dict[str, str] = {}
    failed: dict[str, str] = {}
    try:
        with progress_bar(range(number) if number else itertools.count(), "subjects", quiet=not progress) as shown:
            jobs = _missing(subjects, store, settings, wanted, failed, shown)
            first = list(itertools.islice(jobs, FEW + 1))
            if first and (scheduler or workers or len(first) > FEW):
                made = _on_workers(itertools.chain(first, jobs), store, settings, scheduler, workers, memory)
            else:
                made = _here(first, store, settings)
            for name, reason in made:
                if reason:
                    failed[name] = reason
                shown.update()
        _refuse_twins(store, failed, progress)
        return _finish(store, wanted, failed)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise InputError(f"No room is left for {store}; free some and run this again, to go on from here.") from None


def _missing(
    subjects: Iterable[manifest.Subject],
    store: str,
    settings: Settings,
    wanted: dict[str, str],
    failed: dict[str, str],
    shown: Any,
) -> Iterator[tuple[manifest.Subject, str]]:
    """The subjects to be made and their digests; `wanted` learns the shards of all, with their subjects' ids."""
    present = set(shard_names(store))
    ids: set[str] = set()
    for subject in subjects:
        try:
            if subject.name.casefold() in ids:
                raise InputError(f"there are two subjects with the id {subject.name}; rename one.")
            ids.add(subject.name.casefold())
            if subject.problem:
                raise InputError(subject.problem)
            digest = _digest(subject, settings)
        except InputError as error:
            failed[subject.name] = str(error)
            shown.update()
            continue
        shard = shard_name(subject.name, digest)
        wanted[shard] = subject.name
        if shard in present:
            shown.update()
        else:
            yield subject, digest


def _digest(subject: manifest.Subject, settings: Settings) -> str:
    """What a subject's samples are made from: 64 hexadecimal digits."""
    inputs: list[Any] = []
    for role, path in (("ct", subject.ct), (f"mask/{subject.convention}", subject.mask), *subject.surfaces.items()):
        if path is not None:
            file = subject.files.get(path)
            if not path.is_file():
                raise InputError(f"{path.name} of {subject.name} does not exist.")
            state = path.stat()
            known = [file.sha256] if file and file.sha256 else [state.st_size, state.st_mtime_ns]
            inputs.append([role, *known, *([file.unit, file.frame] if file else [])])
    seed = settings.seed if subject.ct is None else None
    how = [_MADE_BY, settings.projection, settings.surroundings, seed, subject.person, subject.split]
    return hashlib.sha256(json.dumps([how, inputs]).encode()).hexdigest()


def _here(jobs: Iterable[tuple[manifest.Subject, str]], store: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """Makes subjects in this process; yields each one's id and why it failed, or ""."""
    for subject, digest in jobs:
        reason = ""
        try:
            make_samples(subject, store, digest, settings)
        except Exception as error:  # noqa: BLE001 one subject among thousands must not stop the rest
            reason = _reason(error)
        yield subject.name, reason


def _on_workers(
    jobs: Iterator[tuple[manifest.Subject, str]],
    store: str,
    settings: Settings,
    scheduler: str,
    workers: int,
    memory: str,
) -> Iterator[tuple[str, str]]:
    """As `_here`, on Dask's workers, in the order in which they are done."""
    each = ((subject.name, (subject, store, digest, settings)) for subject, digest in jobs)
    options: dict[str, Any] = {"scheduler": scheduler, "workers": workers, "memory": memory}
    with contextlib.closing(cluster.work(make_samples, each, **options)) as done:
        for name, error in done:
            yield name, _reason(error) if error else ""


def _reason(error: BaseException) -> str:
    """What is said of a failed subject. A full disk is no subject's fault: it is raised again."""
    if isinstance(error, OSError) and error.errno in _FULL:
        raise error
    said = " ".join(str(error).split())
    return said if isinstance(error, InputError) else f"{type(error).__name__}: {said}"


def _finish(store: str, wanted: dict[str, str], failed: dict[str, str]) -> list[str]:
    """Writes index and failures, and tells of both."""
    failed = dict(sorted(failed.items()))
    index = write_index(store, wanted)
    old = get(store, FAILURES)
    if failed or old:
        rows = pd.DataFrame({"subject": failed.keys(), "reason": failed.values()})
        if old:
            before = pd.read_csv(io.BytesIO(old))
            asked = {*wanted.values(), *failed}
            rows = pd.concat([before[~before["subject"].isin(asked)], rows])
        put(store, FAILURES, rows.to_csv(index=False).encode())
    made = index[index["shard"].isin(list(wanted))].drop_duplicates("shard")
    told = [f"{name}: {reason}" for name, reason in failed.items()]
    if made.empty:
        more = f" {len(told) - 3} more stand in {FAILURES}." if len(told) > 3 else ""
        raise InputError("No subject could be synthesised. " + " ".join(told[:3]) + more)
    notes = zip(made["subject"], made["notes"], strict=True)
    counts: Counter[str] = Counter()
    for one in made["counts"]:
        counts.update(json.loads(one))
    all_told = ", ".join(f"{number} {kind}" for kind, number in counts.most_common())
    sum_up = f"{len(made)} subjects, {len(failed)} failed. Vertebrae, and what was found of them: {all_told}."
    return [f"{name}: {note}" for name, several in notes for note in several.splitlines()] + [*told, sum_up]


def _refuse_twins(store: str, failed: dict[str, str], progress: bool) -> None:
    """Removes the samples of who came under two names, as which the other stays; `failed` learns of it.

    Whoever the index names has been compared: it is written last, and a run that was ended before is made up for.
    """
    if not shard_names(store):
        return
    index = read_index(store)
    new = set(index["subject"][~index["shard"].isin(listed(store))])
    for pair in twins.find(index, partial(_bone, store), new, progress=progress):
        refused = pair.second if pair.second in new else pair.first
        if refused not in failed:
            failed[refused] = str(pair)
            remove(store, set(index["shard"][index["subject"] == refused]))


def _bone(store: str, row: pd.Series) -> Volume:
    """The vertebra of a row of a store's index, 0 and 1."""
    labels = read_rows(store, row["shard"], [row["row"]])["labels"][0]
    return Volume(labels == levels.number(row["level"]), cube_affine(np.zeros(3), samples.WIDE, patches.SPACING_MM))
