"""The tables of the DRR page: time, accuracy, memory and growth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from benchmarks.results import markdown_table
from benchmarks.speed.engine import SAMPLES, THREADS
from benchmarks.speed.engines import ENGINES

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


def as_markdown(table: pd.DataFrame, run: str) -> str:
    """The measured part of drr.md."""
    scenes = table[table.study == "scenes"]
    parts = [
        f"{run}\n",
        f"{THREADS} threads. nanodrr and diffdrr take {SAMPLES} samples a ray. Rounds: {_rounds(scenes)}.\n",
        "### Time\n",
        "Median in ms, in brackets the ratio to RTK. For patches also their number per second.\n",
        _grid(scenes, time_cell),
        "### Accuracy\n",
        "Root mean square error against ray marching in steps of 0.1 mm, relative to the picture's root mean square.\n",
        _grid(scenes, lambda row: _number(row.relative_rmse, ".1e")),
        "### Memory\n",
        "Peak during a projection above the idle process, as a multiple of the volume.\n",
        _grid(scenes, lambda row: _number(row.peak_memory_volumes, ".3f")),
    ]
    if growth := [study for study in _GROWTH if study in set(table.study)]:
        parts.append(
            "### Growth\n\nCone AP 256, one thing changed at a time. Median in ms, in brackets the ratio to RTK.\n"
        )
        parts += [_grid(table[table.study == study], time_cell, _GROWTH[study]) for study in growth]
    return "\n".join(parts)


def time_cell(row: Any) -> str:
    """A cell of the table of times."""
    if pd.isna(row.median_ms):
        return "-"
    text = _number(row.median_ms, ".1f" if row.median_ms < 100 else ".0f")
    if pd.notna(row.ratio_to_rtk):
        text += f" ({_number(row.ratio_to_rtk, '.2f' if row.ratio_to_rtk < 10 else '.0f')})"
    if pd.notna(row.patches_per_s):
        text += f", {_number(row.patches_per_s, '.0f' if row.patches_per_s >= 10 else '.1f')}/s"
    return text


def _rounds(scenes: pd.DataFrame) -> str:
    spans = []
    for engine in ENGINES:
        counts = scenes[(scenes.engine == engine.name) & (scenes.rounds > 0)].rounds
        if len(counts):
            span = f"{counts.min():.0f} to {counts.max():.0f}" if counts.nunique() > 1 else f"{counts.min():.0f}"
            spans.append(f"{engine.name} {span}")
    return ", ".join(spans)


def _grid(rows: pd.DataFrame, show: Callable[[Any], str], first: str = "scene") -> str:
    """Scenes down, engines across."""
    engines = [engine.name for engine in ENGINES if engine.name in set(rows.engine)]
    lines = []
    for scene, group in rows.groupby("scene", sort=False):
        cells = {row.engine: show(row) for row in group.itertuples()}
        lines.append([scene, *(cells.get(engine, "-") for engine in engines)])
    return markdown_table([first, *engines], lines)


def _number(value: float, how: str) -> str:
    return "-" if pd.isna(value) else f"{value:{how}}"
