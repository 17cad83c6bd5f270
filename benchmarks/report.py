"""Measured tables as CSV, and as Markdown for readers; of the DRR benchmark, the page itself."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.engine import SAMPLES, THREADS
from benchmarks.engines import ENGINES
from transvert.io import atomic_path
from transvert.runs import write_table

COLUMNS = [
    "study",
    "scene",
    "engine",
    "rounds",
    "median_ms",
    "ratio_to_rtk",
    "patches_per_s",
    "relative_rmse",
    "peak_memory_volumes",
    "note",
]
_GROWTH = {"volume": "share of the voxels", "pixels": "pixels", "threads": "threads"}


def write(folder: Path, name: str, table: pd.DataFrame, page: str) -> None:
    """Writes `name`.csv and `name`.md into `folder`, each whole or not at all."""
    write_table(folder / f"{name}.csv", table)
    with atomic_path(folder / f"{name}.md") as temporary:
        temporary.write_text(page, encoding="utf-8")


def as_markdown(table: pd.DataFrame, machine: str) -> str:
    """The page that is committed; `machine` is from `describe_machine`."""
    scenes = table[table.study == "scenes"]
    parts = [
        "# DRR engines on a CPU\n",
        "Written by `make bench-drr`. [README.md](README.md) says what is measured and how, [drr.csv](drr.csv) has more.\n",
        f"- {date.today().isoformat()}. {machine}.",
        f"- Python {platform.python_version()}, {_versions()}.",
        f"- {THREADS} threads. nanodrr and diffdrr take {SAMPLES} samples a ray.",
        f"- Rounds: {_rounds(scenes)}.\n",
        "## Time\n",
        "Median in ms; in brackets its ratio to RTK's; for patches also their number a second.\n",
        _grid(scenes, _time),
        "## Accuracy\n",
        "Root mean square error against ray marching in steps of 0.1 mm, relative to the picture's root mean square.\n",
        _grid(scenes, lambda row: _number(row.relative_rmse, ".1e")),
        "## Memory\n",
        "Peak during a projection above the idle process, as a multiple of the volume.\n",
        _grid(scenes, lambda row: _number(row.peak_memory_volumes, ".3f")),
    ]
    if growth := set(table.study) & set(_GROWTH):
        parts.append(
            "## Growth\n\nCone AP 256, one thing changed at a time; median in ms, in brackets its ratio to RTK's.\n"
        )
    parts += [_grid(table[table.study == study], _time, title) for study, title in _GROWTH.items() if study in growth]
    if scenes.note.any():
        parts.append("## Left out\n")
        for (engine, note), rows in scenes[scenes.note != ""].groupby(["engine", "note"], sort=False):
            parts.append(f"- {engine}, {', '.join(rows.scene)}: {note}.")
    return "\n".join(parts).rstrip() + "\n"


def readme_table(table: pd.DataFrame) -> str:
    """The lines that the project's README quotes: transvert against the peers that are libraries."""
    cells = table[table.study == "scenes"].set_index(["scene", "engine"])

    def cell(scene: str, engine: str, column: str, how: str) -> str:
        return _number(cells.loc[(scene, engine), column], how)

    lines = [
        "| view | ms | ÷ RTK | nanodrr ÷ RTK | diffdrr ÷ RTK | relative error | of RTK | of nanodrr | memory |",
        "|---" + "|---:" * 8 + "|",
    ]
    for scene in dict.fromkeys(cells.index.get_level_values("scene")):
        figures = [
            cell(scene, "transvert", "median_ms", ".1f"),
            cell(scene, "transvert", "ratio_to_rtk", ".2f"),
            cell(scene, "nanodrr", "ratio_to_rtk", ".1f"),
            cell(scene, "diffdrr", "ratio_to_rtk", ".1f"),
            *(cell(scene, engine, "relative_rmse", ".1e") for engine in ("transvert", "RTK", "nanodrr")),
            cell(scene, "transvert", "peak_memory_volumes", ".2f"),
        ]
        lines.append(f"| {scene} | " + " | ".join(figures) + " |")
    return "\n".join(lines) + "\n"


def describe_machine(cores: int, load: float) -> str:
    """Processor, usable cores, memory, system, and how many cores were busy before the run."""
    cpu, memory = platform.processor() or platform.machine(), ""
    try:
        cpu = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())[0]
        (kilobytes,) = re.findall(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
        memory = f"{int(kilobytes) / 2**20:.0f} GiB, "
    except (OSError, IndexError, ValueError):
        pass  # Not Linux.
    return f"{cpu}, {cores} cores, {memory}{platform.system()}; {load:.1f} cores busy before the run"


def _versions() -> str:
    packages = dict.fromkeys(package for engine in ENGINES for package in engine.packages)
    return ", ".join(f"{package} {metadata.version(package)}" for package in packages)


def _rounds(scenes: pd.DataFrame) -> str:
    """Each engine's fewest and most rounds."""
    told = []
    for engine in ENGINES:
        counts = scenes[(scenes.engine == engine.name) & (scenes.rounds > 0)].rounds
        if len(counts):
            span = f"{counts.min():.0f} to {counts.max():.0f}" if counts.nunique() > 1 else f"{counts.min():.0f}"
            told.append(f"{engine.name} {span}")
    return ", ".join(told)


def _grid(rows: pd.DataFrame, show: Callable[[Any], str], first: str = "scene") -> str:
    """Scenes down, engines across."""
    engines = [engine.name for engine in ENGINES if engine.name in set(rows.engine)]
    lines = [f"| {first} | " + " | ".join(engines) + " |", "|---" + "|---:" * len(engines) + "|"]
    for scene, of_scene in rows.groupby("scene", sort=False):
        cells = {row.engine: show(row) for row in of_scene.itertuples()}
        lines.append(f"| {scene} | " + " | ".join(cells.get(engine, "-") for engine in engines) + " |")
    return "\n".join(lines) + "\n"


def _time(row: Any) -> str:
    if pd.isna(row.median_ms):
        return "-"
    text = _number(row.median_ms, ".1f" if row.median_ms < 100 else ".0f")
    if pd.notna(row.ratio_to_rtk):
        text += f" ({_number(row.ratio_to_rtk, '.2f' if row.ratio_to_rtk < 10 else '.0f')})"
    if pd.notna(row.patches_per_s):
        text += f", {_number(row.patches_per_s, '.0f' if row.patches_per_s >= 10 else '.1f')}/s"
    return text


def _number(value: float, how: str) -> str:
    return "-" if pd.isna(value) else f"{value:{how}}"
