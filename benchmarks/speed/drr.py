"""Time, accuracy and memory of DRR engines on one CT: `make bench-drr` writes drr.csv and drr.md."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks.results import describe_run, write_results
from benchmarks.speed import drr_report
from benchmarks.speed.engine import Engine, Job
from benchmarks.speed.engines import ENGINES, Rtk, Transvert
from benchmarks.speed.scenes import (
    Scene,
    load_volume,
    make_scenes,
    reference,
    relative_rmse,
    resample,
    save_volume,
    square_view,
)
from transvert.imaging.volume import Volume

HERE = Path(__file__).resolve().parent

MOST_ROUNDS = 7
LONGEST_S = 9.0
"""Time limit for all rounds of one engine and scene. If the first call takes longer, it is the only round."""

PAUSE_S = 0.05
"""Pause before each call, so that spinning threads of the previous engine have gone to sleep."""

SHARES = {"1/8": 1 / 8, "1/4": 1 / 4, "1/2": 1 / 2, "1": 1.0, "2": 2.0}
PICTURES = (64, 128, 256, 512, 1024)

Row = dict[str, Any]


def main() -> None:
    options = argparse.ArgumentParser(description="DRR engines: time, accuracy and memory, side by side.")
    options.add_argument("--out", type=Path, default=HERE, help="folder of drr.csv and drr.md")
    options.add_argument("--only", default="", help="only scenes whose name contains this text; writes nothing")
    chosen = options.parse_args()

    load = os.getloadavg()[0]
    if load > 0.3:
        tqdm.write(f"{load:.1f} cores are busy with other work: the times will be too long.", file=sys.stderr)
    volume = load_volume()
    scenes = [scene for scene in make_scenes(volume) if chosen.only in scene.name]
    steps = len(scenes) * (2 * len(ENGINES) + 1) + (0 if chosen.only else len(SHARES) + len(PICTURES) + 2)
    with tempfile.TemporaryDirectory(prefix="bench-drr-") as folder, tqdm(total=steps, unit="step") as bar:
        rows = measure_scenes(volume, scenes, Path(folder), bar)
        if not chosen.only:
            rows += measure_growth(volume, Path(folder), bar)
    table = pd.DataFrame(rows, columns=drr_report.COLUMNS)
    packages = dict.fromkeys(package for engine in ENGINES for package in engine.packages)
    run = f"{describe_run(load, packages)} Python {platform.python_version()}."
    measured = drr_report.as_markdown(table, run)
    if not chosen.only:
        write_results(chosen.out, "drr", table, measured)
    print(measured)


def measure_memories(scenes: list[Scene], folder: Path, bar: tqdm) -> dict[tuple[str, str], float | str]:
    """Peak bytes by scene and engine name, or the reason why the engine cannot project the scene."""
    peaks: dict[tuple[str, str], float | str] = {}
    for scene in scenes:
        for engine in ENGINES:
            bar.set_description(f"memory: {engine.name}, {scene.name}")
            able = engine.does_parallel or not scene.parallel
            peaks[scene.name, engine.name] = measure_memory(engine, scene, folder) if able else "has no parallel rays"
            bar.update()
    return peaks


def measure_scenes(volume: Volume, scenes: list[Scene], folder: Path, bar: tqdm) -> list[Row]:
    """One row per scene and engine, also where an engine cannot project the scene."""
    save_volume(volume, folder)
    peaks = measure_memories(scenes, folder, bar)  # First, while this process is small.
    engines = [make(volume, folder) for make in ENGINES]
    rows = []
    for scene in scenes:
        bar.set_description(f"reference: {scene.name}")
        truth = reference(volume, scene.views)
        bar.update()
        jobs = {}
        for engine in engines:
            if not isinstance(peaks[scene.name, engine.name], str):
                engine.warm_up(scene.views)
                jobs[engine.name] = engine.prepare(scene.views)
        bar.set_description(f"time: {scene.name}")
        seconds, pictures = interleave(jobs)
        for engine in engines:
            row: Row = {"study": "scenes", "scene": scene.name, "engine": engine.name, "note": ""}
            peak = peaks[scene.name, engine.name]
            if isinstance(peak, str):
                row["note"] = peak
            else:
                row |= timing(seconds, engine.name)
                row["relative_rmse"] = relative_rmse(pictures[engine.name], *truth)
                row["peak_memory_volumes"] = peak / volume.data.nbytes
                if len(scene.views) > 1:
                    row["patches_per_s"] = len(scene.views) / row["median_ms"] * 1000
            rows.append(row)
            bar.update()
    return rows


def measure_growth(volume: Volume, folder: Path, bar: tqdm) -> list[Row]:
    """Time of transvert and RTK for a cone AP view against the number of voxels, pixels and threads."""
    middle = volume.corners().mean(axis=0)
    view = square_view("ap", middle, 256, cone=True)
    rows: list[Row] = []

    def measure(study: str, scene: str, jobs: dict[str, Job]) -> None:
        bar.set_description(f"growth: {study} {scene}")
        seconds, _ = interleave(jobs)
        rows.extend(
            {"study": study, "scene": scene, "engine": name, "note": ""} | timing(seconds, name) for name in jobs
        )
        bar.update()

    for name, share in SHARES.items():
        resized = volume if share == 1 else resample(volume, share)
        measure("volume", name, {e.name: e(resized, folder).prepare([view]) for e in (Transvert, Rtk)})
    engines = [engine(volume, folder) for engine in (Transvert, Rtk)]
    for pixels in PICTURES:
        views = [square_view("ap", middle, pixels, cone=True)]
        measure("pixels", f"{pixels} x {pixels}", {e.name: e.prepare(views) for e in engines})
    for threads in (1, 2):
        measure("threads", str(threads), {e.name: e.prepare([view], threads) for e in engines})
    return rows


def measure_memory(engine: type[Engine], scene: Scene, folder: Path) -> float | str:
    """Peak bytes of one projection above the idle process, or the reason why there is no such figure."""
    command = [sys.executable, "-m", "benchmarks.speed.memory", engine.name, scene.name, str(folder)]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    if done.returncode == -9:
        return "memory ran out"
    if done.returncode:
        raise RuntimeError(f"{engine.name} failed on {scene.name}:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def interleave(jobs: dict[str, Job]) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Runs the jobs in turn (A B C, A B C). The first call of each counts only if it is the only one.

    Returns:
        Seconds of each round by engine, and the pictures of the first call by engine.
    """
    seconds: dict[str, list[float]] = {}
    pictures: dict[str, np.ndarray] = {}
    rounds: dict[str, int] = {}
    for name, job in jobs.items():
        time.sleep(PAUSE_S)
        began = time.perf_counter()
        pictures[name], first = job()
        took = time.perf_counter() - began
        rounds[name] = min(MOST_ROUNDS, int(LONGEST_S / took))
        seconds[name] = [] if rounds[name] else [first]
    for number in range(MOST_ROUNDS):
        for name, job in jobs.items():
            if number < rounds[name]:
                time.sleep(PAUSE_S)
                seconds[name].append(job()[1])
    return seconds, pictures


def timing(seconds: dict[str, list[float]], name: str) -> Row:
    median = float(np.median(seconds[name]))
    row: Row = {"rounds": len(seconds[name]), "median_ms": median * 1000}
    if Rtk.name in seconds:
        row["ratio_to_rtk"] = median / float(np.median(seconds[Rtk.name]))
    return row


if __name__ == "__main__":
    main()
