"""The figures of numbers: a training's curves, Dice and distances, and a calibration, stated against seen."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from transvert import levels, metrics
from transvert.reliability import Report
from transvert.view import REGION_COLOURS

_SAID = {"network": ("#999999", "s", "the network's own"), "calibrated": ("#0072B2", "o", "calibrated on other people")}
_MEASURES = {"dice": ("Dice", ""), "assd_mm": ("ASSD", " (mm)")}
METHOD_COLOURS = ("#0072B2", "#E69F00", "#C8C8C8", "#444444")
"""Apart for the colour-blind too."""


def curve(history: pd.DataFrame, shipped: pd.DataFrame | None = None) -> Figure:
    """Loss and Dice against steps, beside those of the training that made the shipped weights if they are given."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for axis, column in ((left, "loss"), (right, "dice")):
        if shipped is not None:
            axis.plot(shipped.step, shipped[column], color="#999999", label="the shipped weights' training draws")
            axis.set_xscale("log")  # Tens of steps beside thousands.
        axis.plot(history.step, history[column], "o-", ms=3, color="#0072B2", label="this run's training draws")
        axis.grid(alpha=0.3)
    left.set(xlabel="step", ylabel="loss (1 - soft Dice + cross-entropy)", title="training loss")
    right.plot(
        history.step, history.dice_validation, "s-", ms=3, color="#D55E00", label="this run's held-out vertebrae"
    )
    right.set(xlabel="step", ylabel="Dice", ylim=(0, 1), title="Dice")
    right.legend(fontsize=8, loc="lower right")
    return figure


class LiveCurve:
    """A curve that redraws itself in the cell's output after each epoch; pass it as `on_epoch`."""

    def __init__(self) -> None:
        from IPython.display import display

        self._handle = display(display_id=True)

    def __call__(self, history: pd.DataFrame) -> None:
        figure = curve(history)
        if self._handle is not None:
            self._handle.update(figure)
        plt.close(figure)


def dice_by_level(table: pd.DataFrame) -> Figure:
    """Dice of each vertebra by method. `table` has the columns subject, level, method and dice."""
    methods = list(dict.fromkeys(table.method))
    cases = list(dict.fromkeys(zip(table.subject, table.level, strict=True)))
    figure, axis = plt.subplots(figsize=(max(8, 0.55 * len(cases) * 1.2), 4), layout="constrained")
    width = 0.8 / len(methods)
    for m, (method, colour) in enumerate(zip(methods, METHOD_COLOURS, strict=False)):
        rows = table[table.method == method].set_index(["subject", "level"]).dice
        heights = [rows.get(case, np.nan) for case in cases]
        axis.bar(
            np.arange(len(cases)) + (m - (len(methods) - 1) / 2) * width,
            heights,
            width,
            color=colour,
            label=method,
            hatch="//" if method.startswith("null") else None,
            edgecolor="white",
        )
    axis.set_xticks(range(len(cases)), [f"{level}\n{subject}" for subject, level in cases], fontsize=9)
    axis.set(ylabel="Dice", ylim=(0, 1))
    axis.legend(ncols=len(methods), fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    axis.grid(axis="y", alpha=0.3)
    return figure


def along_spine(table: pd.DataFrame) -> Figure:
    """Dice of each vertebra by its level, head to tail; `table` has the columns variant, level and dice.

    A line joins the medians of each variant's levels.
    """
    names = [name for name in (levels.name(n) for n in levels.VERTEBRAE) if name in set(table["level"])]
    kinds = list(dict.fromkeys(table["variant"]))
    figure, axis = plt.subplots(figsize=(11, 4.2), layout="constrained")
    for n, (kind, colour, marker) in enumerate(zip(kinds, METHOD_COLOURS, "os^Dv", strict=False)):
        rows = table[table["variant"] == kind]
        aside = 0.22 * (n - (len(kinds) - 1) / 2)
        places = rows["level"].map(names.index) + aside
        axis.scatter(places, rows["dice"], 26, color=colour, marker=marker, alpha=0.75, edgecolor="none")
        middle = rows.groupby("level")["dice"].median().reindex([name for name in names if name in set(rows["level"])])
        axis.plot(
            [names.index(name) + aside for name in middle.index], middle, color=colour, marker=marker, ms=3, label=kind
        )
    axis.set_xticks(range(len(names)), names, fontsize=9)
    axis.set(ylabel="Dice", xlabel="level, head to tail (dots: vertebrae; line: median)", ylim=(0, 1))
    axis.legend(fontsize=9, loc="lower right")
    axis.grid(alpha=0.3)
    return figure


def by_region(table: pd.DataFrame) -> Figure:
    """Dice, HD95, ASSD and NSD by region: every vertebra a dot, the median a line. `table` is metrics.csv."""
    measures = {"dice": "Dice", "hd95_mm": "HD95 (mm)", "assd_mm": "ASSD (mm)", "nsd_1p5mm": "NSD at 1.5 mm"}
    regions = [r for r in REGION_COLOURS if (table.level.str[0] == r).any()]
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.4), layout="constrained")
    spread = np.random.default_rng(0)
    for axis, (column, label) in zip(axes, measures.items(), strict=True):
        for place, letter in enumerate(regions):
            values = table[table.level.str[0] == letter][column].replace(np.inf, np.nan).dropna()
            axis.plot(
                place + spread.uniform(-0.15, 0.15, len(values)),
                values,
                "o",
                ms=6,
                color=REGION_COLOURS[letter],
                alpha=0.7,
            )
            axis.hlines(values.median(), place - 0.3, place + 0.3, color="k")
        axis.set_xticks(range(len(regions)), [metrics.REGIONS[letter] for letter in regions])
        axis.set(title=label, xlim=(-0.6, len(regions) - 0.4))
        axis.set_ylim(0, None if column.endswith("_mm") else 1)
        axis.grid(axis="y", alpha=0.3)
    return figure


def reliability(report: Report) -> Figure:
    """Voxels, surface points and vertebrae of people whom no fit has seen, stated against observed."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 9.5), layout="constrained")
    _voxels(axes[0, 0], report)
    _surface(axes[0, 1], report)
    for axis, measure in zip(axes[1], _MEASURES, strict=True):
        _vertebrae(axis, report, measure)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    people, count = (int(report.summary[name]) for name in ("people", "vertebrae"))
    figure.suptitle(f"{count} vertebrae of {people} people, each read with the calibration of the others")
    return figure


def describe(report: Report) -> str:
    """The figure in words, for whoever can't see it."""
    s = report.summary
    voxels, points = report.voxels["voxels"].sum() // 2, report.surface["points"].sum()
    text = (
        f"Four panels, stated against observed, for {s['vertebrae']:.0f} vertebrae of {s['people']:.0f} people. Voxels "
        f"near the found surface ({voxels:,}): the network's own probabilities are off by "
        f"{100 * s['voxel_calibration_error_network']:.1f} points in the mean, the calibrated ones by "
        f"{100 * s['voxel_calibration_error_calibrated']:.1f}. Surface points ({points:,}): the stated error is off by "
        f"{s['surface_calibration_error_mm']:.2f} mm in the mean."
    )
    for measure, (name, unit) in _MEASURES.items():
        off, rank = s[f"{measure}_mean_absolute_error"], s[f"{measure}_spearman"]
        text += f" {name}{unit}: off by {off:.3f} in the mean, rank correlation {rank:.2f}"
        if f"{measure}_coverage" in s:
            inside, wanted = s[f"{measure}_coverage"], report.calibration.coverage
            text += f", {100 * inside:.0f} % within their {100 * wanted:.0f} % intervals"
        text += "."
    return text


def _voxels(axis: Axes, report: Report) -> None:
    axis.plot([0, 1], [0, 1], color="k", lw=1, ls="--", label="as stated")
    counts = axis.twinx()
    for n, (said, (colour, marker, label)) in enumerate(_SAID.items()):
        rows = report.voxels[report.voxels["said"] == said]
        error = 100 * report.summary[f"voxel_calibration_error_{said}"]
        axis.plot(
            rows["stated"],
            rows["observed"],
            marker=marker,
            color=colour,
            label=f"{label}: {error:.1f} points off in the mean",
        )
        places = np.arange(len(rows)) / 10 + 0.03 + 0.04 * n
        counts.bar(places, rows["voxels"], width=0.035, color=colour, alpha=0.35)
    counts.set(yscale="log", ylabel="voxels (bars)")
    # The bars keep to the lower third, under the curves.
    low, high = counts.get_ylim()
    counts.set_ylim(low, high * (high / low) ** 2)
    axis.set_zorder(counts.get_zorder() + 1)
    axis.patch.set_visible(False)
    axis.set(
        title="voxels near the found surface", xlabel="stated probability of bone", ylabel="observed share of bone"
    )
    axis.legend(loc="upper left", fontsize=8)


def _surface(axis: Axes, report: Report) -> None:
    rows = report.surface[report.surface["points"] > 0]
    top = 1.1 * float(rows[["stated_mm", "observed_mm"]].max(axis=None))
    axis.plot([0, top], [0, top], color="k", lw=1, ls="--", label="as stated")
    axis.plot(rows["stated_mm"], rows["observed_mm"], "o-", color="#0072B2", label="calibrated on other people")
    for row in rows.itertuples():
        axis.annotate(
            f"{row.points:,}", (row.stated_mm, row.observed_mm), (4, -10), textcoords="offset points", fontsize=7
        )
    axis.set(
        title="points of the found surface, with their number",
        xlabel="stated distance from the true surface, RMS (mm)",
        ylabel="observed distance, RMS (mm)",
        xlim=(0, top),
        ylim=(0, top),
    )
    axis.legend(loc="upper left", fontsize=8)


def _vertebrae(axis: Axes, report: Report, measure: str) -> None:
    name, unit = _MEASURES[measure]
    table = report.vertebrae[np.isfinite(report.vertebrae[measure])]
    stated = table[f"{measure}_stated"]
    top = 1.0 if not unit else 1.1 * float(table[[measure, f"{measure}_stated"]].max(axis=None))
    axis.plot([0, top], [0, top], color="k", lw=1, ls="--", label="as stated")
    ends = table[f"{measure}_low"], table[f"{measure}_high"]
    if np.isfinite(ends[1]).all() and (ends[0] > 0).any():  # Else too few people to state any.
        label = f"{100 * report.calibration.coverage:.0f} % interval"
        axis.vlines(stated, *ends, color="0.8", lw=1.5, label=label, zorder=1)
    for letter, colour in REGION_COLOURS.items():
        here = table["level"].str[0] == letter
        if here.any():
            marker = {"C": "^", "T": "o", "L": "s"}[letter]
            axis.scatter(
                stated[here],
                table[measure][here],
                24,
                color=colour,
                marker=marker,
                label=metrics.REGIONS[letter],
                zorder=2,
            )
    low = 0.0 if unit else max(0.0, float(table[[measure, f"{measure}_stated"]].min(axis=None)) - 0.1)
    axis.set(title=f"vertebrae: {name}", xlabel=f"stated {name}{unit}", ylabel=f"observed {name}{unit}")
    axis.set(xlim=(low, top), ylim=(low, top))
    axis.legend(loc="upper left", fontsize=8)
