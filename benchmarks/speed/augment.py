"""Augmented training samples per second: `make bench-augment` writes augment.csv and augment.md."""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import torch

from benchmarks.results import describe_run, markdown_table, write_results
from transvert.data import samples, store, subjects
from transvert.data.fetch import fetch_subjects
from transvert.data.samples import Samples, StoredSamples
from transvert.model import augment, intensity, warp
from transvert.model.augment import AugmentConfig, Sampler
from transvert.model.train import Recipe

HERE = Path(__file__).resolve().parent
BATCH = Recipe().batch
STEPS = 10  # Per round.
ROUNDS = 7
COPIES = 8  # Of the subject in the store, so that one pass is longer than the cache.
KEEP = 3 * BATCH  # Samples in the cache: the current step and the two that are prefetched.
CONFIGS = {"full": AugmentConfig(), "crop": AugmentConfig(crop=1.0, background=0.0, collimation=0.0)}
STEP_NAMES: dict[str, tuple[Any, str]] = {
    "unpack: labels, background": (augment, "unpack_sample"),
    "pose and elastic grid": (augment, "_draw_grid"),
    "elastic deformation: CT and labels": (warp, "elastic_deform"),
    "repaint": (augment, "_repaint"),
    "project: two turned views": (warp, "project_parallel"),
    "move the background": (augment, "warp_background"),
    "film: random structures": (intensity, "draw_background"),
    "film: standardise": (intensity, "standardise_batch"),
    "film: blur, noise, contrast, edges": (intensity, "expose_patches"),
    "landmarks": (augment, "_draw_maps"),
}
COLUMNS = ["study", "field_of_view", "place", "cores", "what", "samples_per_s", "ms_per_sample", "read_per_sample"]


def main() -> None:
    options = argparse.ArgumentParser(description="Samples a second that are drawn for training.")
    options.add_argument("--out", type=Path, default=HERE, help="folder of augment.csv and augment.md")
    chosen = options.parse_args()
    load = os.getloadavg()[0]
    subject = fetch_subjects("embedded")[0]
    ct, mask, _ = subjects.load_subject(subject)
    cut = {kind: samples.cut_samples(ct, mask, subject.name, field_of_view=kind) for kind in CONFIGS}
    with tempfile.TemporaryDirectory(prefix="bench-augment-") as folder:
        table = measure(cut, Path(folder))
    measured = as_markdown(table, describe_run(load, ["torch"]), len(cut["full"]))
    write_results(chosen.out, "augment", table, measured)
    print(measured)


def measure(cut: dict[str, Samples], folder: Path) -> pd.DataFrame:
    """One row per field of view, place and number of cores, and one per step of a draw."""
    samplers: dict[tuple[str, str], Sampler] = {}
    for kind, made in cut.items():
        copies = [replace(made, subject=f"{made.subject}-{n}") for n in range(COPIES)]
        for copy in copies:
            samples.write_samples(folder / kind, copy, copy.subject)
        shelf = store.SampleCache(folder / kind, KEEP)
        stored = [StoredSamples(shelf, rows) for _, rows in store.read_index(folder / kind).groupby("subject")]
        samplers[kind, "memory"] = Sampler(copies, CONFIGS[kind], 0)
        samplers[kind, "store"] = Sampler(stored, CONFIGS[kind], 0)
    ways = [(*way, cores) for cores in (1, 2) for way in samplers]
    rates: dict[tuple[str, str, int], list[float]] = {way: [] for way in ways}
    reads: dict[tuple[str, str, int], list[int]] = {way: [] for way in ways}
    for round_number in range(ROUNDS + 1):
        for way in ways:
            kind, place, cores = way
            with use_cores(cores), counted(store, "read_rows") as count:
                seconds = draw_steps(samplers[kind, place], round_number * STEPS)
            if round_number:  # The first round imports and compiles.
                rates[way].append(STEPS * BATCH / seconds)
                reads[way].append(len(count))
    rows = []
    for way in ways:
        rate, read = statistics.median(rates[way]), sum(reads[way]) / (ROUNDS * STEPS * BATCH)
        figures = {"samples_per_s": rate, "ms_per_sample": 1e3 / rate, "read_per_sample": read}
        rows.append(dict(zip(("field_of_view", "place", "cores"), way, strict=True)) | {"study": "rate"} | figures)
    for name, ms in profile(samplers["full", "memory"]).items():
        about = {"study": "step", "field_of_view": "full", "place": "memory", "cores": 1}
        rows.append(about | {"what": name, "ms_per_sample": ms})
    return pd.DataFrame(rows, columns=COLUMNS)


def draw_steps(sampler: Sampler, first: int) -> float:
    """Seconds of one round of steps."""
    began = time.perf_counter()
    for step in range(first, first + STEPS):
        sampler.draw(step, BATCH)
    return time.perf_counter() - began


def profile(sampler: Sampler) -> dict[str, float]:
    """Milliseconds per sample of each step of a draw on one core, and of "the rest"; medians of the rounds."""
    rounds: list[dict[str, float]] = []
    for round_number in range(ROUNDS):
        spent = dict.fromkeys(STEP_NAMES, 0.0)
        with use_cores(1), contextlib.ExitStack() as stack:
            for name, (module, function) in STEP_NAMES.items():
                stack.enter_context(mock.patch.object(module, function, _timed(getattr(module, function), spent, name)))
            whole = draw_steps(sampler, round_number * STEPS)
        inner = spent["film: random structures"] + spent["film: standardise"]
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

    def call(*arguments: Any) -> Any:
        calls.append(None)
        return original(*arguments)

    with mock.patch.object(module, function, call):
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


def as_markdown(table: pd.DataFrame, run: str, count: int) -> str:
    """The measured part of augment.md."""
    rates, steps = table[table.study == "rate"], table[table.study == "step"]
    rows = []
    for (kind, place), group in rates.groupby(["field_of_view", "place"], sort=False):
        one, two = (group[group.cores == cores].iloc[0] for cores in (1, 2))
        where = "in memory" if place == "memory" else "read from a store"
        rows.append([kind, where, f"{one.samples_per_s:.0f}", f"{two.samples_per_s:.0f}", f"{two.read_per_sample:.2f}"])
    whole = steps.ms_per_sample.sum()
    shares = [[row.what, f"{row.ms_per_sample:.2f}", f"{row.ms_per_sample / whole:.0%}"] for row in steps.itertuples()]
    heads = ["field of view", "samples are", "1 core", "2 cores", "reads per sample"]
    return "\n".join(
        [
            f"{run} {COPIES} copies of {count} samples, in batches of {BATCH}.\n",
            "### Samples per second\n",
            markdown_table(heads, rows, text_columns=2),
            "### Time of each step\n",
            "Samples with the full field of view, in memory, on one core.\n",
            markdown_table(["step", "ms per sample", "share"], shares),
        ]
    )


if __name__ == "__main__":
    main()
