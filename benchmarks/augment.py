"""How many samples a second are drawn for training: `python -m benchmarks.augment` writes augment.csv and augment.md.

README.md beside this file says what each figure means.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import torch

from benchmarks.report import describe_machine, write
from transvert.data import manifest, samples, store, subjects
from transvert.data.samples import Samples, StoredSamples
from transvert.model import augment, intensity, warp
from transvert.model.augment import AugmentConfig, Sampler
from transvert.model.train import Recipe

HERE = Path(__file__).resolve().parent
BATCH = Recipe().batch
STEPS = 10  # That one round draws.
ROUNDS = 7
COPIES = 8  # Of the subject in the store, so that a pass is longer than what the shelf keeps.
KEEP = 3 * BATCH  # What the shelf must keep: the step that is drawn, and the two that are ordered.
STRENGTHS = {"body": AugmentConfig(), "cube": AugmentConfig(bare=1.0, clutter=0.0, collimate=0.0)}
STEP_NAMES: dict[str, tuple[Any, str]] = {
    "unpack: parts, shadows from outside": (augment, "unpack"),
    "pose and elastic grid": (augment, "_bent_grid"),
    "bend: CT and labels": (warp, "bend"),
    "repaint": (augment, "_paint"),
    "project: two turned views": (warp, "project"),
    "move the shadows from outside": (augment, "warp_outside"),
    "film: clutter": (intensity, "draw_clutter"),
    "film: standardise": (intensity, "standardise"),
    "film: blur, noise, contrast, edges": (intensity, "expose"),
    "landmarks": (augment, "_maps"),
}
COLUMNS = ["study", "surroundings", "place", "cores", "what", "samples_per_s", "ms_per_sample", "read_per_sample"]


def main() -> None:
    options = argparse.ArgumentParser(description="Samples a second that are drawn for training.")
    options.add_argument("--out", type=Path, default=HERE, help="folder of augment.csv and augment.md")
    chosen = options.parse_args()
    load = os.getloadavg()[0]
    subject = manifest.fetch_subjects(manifest.load_manifest("embedded"))[0]
    ct, mask, _ = subjects.load_subject(subject)
    cut = {kind: samples.cut_samples(ct, mask, subject.name, surroundings=kind) for kind in STRENGTHS}
    with tempfile.TemporaryDirectory(prefix="bench-augment-") as folder:
        table = measure(cut, Path(folder))
    machine = describe_machine(len(os.sched_getaffinity(0)), load)
    write(chosen.out, "augment", table, as_markdown(table, machine, len(cut["body"])))


def measure(cut: dict[str, Samples], folder: Path) -> pd.DataFrame:
    """A row for each way to draw, and one for each step of a draw."""
    samplers: dict[tuple[str, str], Sampler] = {}
    for kind, made in cut.items():
        copies = [replace(made, subject=f"{made.subject}-{n}") for n in range(COPIES)]
        for copy in copies:
            samples.write_samples(folder / kind, copy, copy.subject)
        shelf = store.Shelf(folder / kind, KEEP)
        stored = [StoredSamples(shelf, rows) for _, rows in store.read_index(folder / kind).groupby("subject")]
        samplers[kind, "memory"] = Sampler(copies, STRENGTHS[kind], 0)
        samplers[kind, "store"] = Sampler(stored, STRENGTHS[kind], 0)
    ways = [(*way, cores) for cores in (1, 2) for way in samplers]
    rates: dict[tuple[str, str, int], list[float]] = {way: [] for way in ways}
    reads: dict[tuple[str, str, int], list[int]] = {way: [] for way in ways}
    for round_number in range(ROUNDS + 1):
        for way in ways:
            kind, place, cores = way
            with use_cores(cores), counted(store, "read_rows") as count:
                seconds = draw_steps(samplers[kind, place], round_number * STEPS)
            if round_number:  # The first one imports and compiles.
                rates[way].append(STEPS * BATCH / seconds)
                reads[way].append(len(count))
    rows = []
    for way in ways:
        rate, read = statistics.median(rates[way]), sum(reads[way]) / (ROUNDS * STEPS * BATCH)
        figures = {"samples_per_s": rate, "ms_per_sample": 1e3 / rate, "read_per_sample": read}
        rows.append(dict(zip(("surroundings", "place", "cores"), way, strict=True)) | {"study": "rate"} | figures)
    for name, ms in profile(samplers["body", "memory"]).items():
        about = {"study": "step", "surroundings": "body", "place": "memory", "cores": 1}
        rows.append(about | {"what": name, "ms_per_sample": ms})
    return pd.DataFrame(rows, columns=COLUMNS)


def draw_steps(sampler: Sampler, first: int) -> float:
    """Seconds for one round of steps."""
    began = time.perf_counter()
    for step in range(first, first + STEPS):
        sampler.draw(step, BATCH)
    return time.perf_counter() - began


def profile(sampler: Sampler) -> dict[str, float]:
    """Milliseconds a sample that each step of a draw takes on one core, and "the rest"; medians of the rounds."""
    rounds: list[dict[str, float]] = []
    for round_number in range(ROUNDS):
        spent = dict.fromkeys(STEP_NAMES, 0.0)
        with use_cores(1), contextlib.ExitStack() as stack:
            for name, (module, function) in STEP_NAMES.items():
                stack.enter_context(mock.patch.object(module, function, _timed(getattr(module, function), spent, name)))
            whole = draw_steps(sampler, round_number * STEPS)
        inner = spent["film: clutter"] + spent["film: standardise"]
        spent["film: blur, noise, contrast, edges"] -= inner
        spent["the rest"] = whole - sum(spent.values())
        rounds.append({name: seconds * 1e3 / (STEPS * BATCH) for name, seconds in spent.items()})
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def _timed(function: Callable[..., Any], spent: dict[str, float], name: str) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            spent[name] += time.perf_counter() - began

    return call


@contextlib.contextmanager
def counted(module: Any, function: str) -> Iterator[list[None]]:
    """A list that grows by one with each call."""
    calls: list[None] = []
    original = getattr(module, function)
    with mock.patch.object(module, function, lambda *given: (calls.append(None), original(*given))[1]):
        yield calls


@contextlib.contextmanager
def use_cores(count: int) -> Iterator[None]:
    """Keeps all of this process's threads on the first cores, and torch to as many threads."""
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    _bind(set(sorted(before)[:count]))
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _bind(before)


def _bind(cores: set[int]) -> None:
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)


def as_markdown(table: pd.DataFrame, machine: str, count: int) -> str:
    """The page that is committed."""
    rates, steps = table[table.study == "rate"], table[table.study == "step"]
    grid = ["| shown | samples are | 1 core | 2 cores | reads a sample |", "|---|---|---:|---:|---:|"]
    for (kind, place), rows in rates.groupby(["surroundings", "place"]):
        one, two = (rows[rows.cores == cores].iloc[0] for cores in (1, 2))
        where = "in memory" if place == "memory" else "read from a store"
        grid.append(
            f"| {kind} | {where} | {one.samples_per_s:.0f} | {two.samples_per_s:.0f} | {two.read_per_sample:.2f} |"
        )
    shares = ["| step | ms a sample | share |", "|---|---:|---:|"]
    for row in steps.itertuples():
        shares.append(f"| {row.what} | {row.ms_per_sample:.2f} | {row.ms_per_sample / steps.ms_per_sample.sum():.0%} |")
    return "\n".join(
        [
            "# Drawing samples for training\n",
            "Written by `python -m benchmarks.augment`. [README.md](README.md) says what is measured and how.\n",
            f"- {date.today().isoformat()}. {machine}. torch {torch.__version__}.",
            f"- {COPIES} times the {count} samples of the chest CT of the manifest `embedded`, in batches of {BATCH}.\n",
            "## Samples a second\n",
            *grid,
            "\n## What takes the time\n",
            "A body's samples in memory, one core.\n",
            *shares,
            "",
        ]
    )


if __name__ == "__main__":
    main()
