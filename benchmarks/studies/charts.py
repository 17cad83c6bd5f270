"""The figures of the studies."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.studies import corruptions, summary
from transvert import levels
from transvert.model import metrics
from transvert.model.calibration import ReliabilityReport
from transvert.plots.figures import BLUE, GREY, REGION_COLOURS

_MARKS = {"C": "^", "T": "o", "L": "s", "all": "D"}
_NAMES = metrics.REGIONS | {"all": "all"}
_TITLES = {"dice": "Dice", "hd95_mm": "HD95 (mm)", "assd_mm": "ASSD (mm)", "nsd_1p5mm": "NSD at 1.5 mm"}
_FIELDS_OF_VIEW = {"full": ("#0072B2", "o-"), "crop": ("#D55E00", "s--")}


def draw(name: str, table: pd.DataFrame) -> Figure:
    """The figure of a study, by its name."""
    return {"robustness": robustness, "resolution": resolution, "people": people}.get(name, variants)(table)


def variants(table: pd.DataFrame, measures: tuple[str, ...] = ("dice", "assd_mm")) -> Figure:
    """Means of every variant, by region and over all. A grey bar spans the means of its folds."""
    keys = table[
        [key for key in summary.distinguishing_keys(table) if key in ("variant", "budget", "tested_on")]
    ].astype(object)
    names = keys.where(keys.notna(), "").astype(str).agg(lambda row: ", ".join(filter(None, row)), axis=1)
    rows = list(dict.fromkeys(names))
    finite = table.replace(np.inf, np.nan).assign(name=names)
    size = (4.5 * len(measures) + 2, 1.4 + 0.36 * len(rows))
    figure, axes = plt.subplots(1, len(measures), figsize=size, layout="constrained", sharey=True, squeeze=False)
    for axis, measure in zip(axes[0], measures, strict=True):
        folds = finite.groupby(["name", "fold"], sort=False, dropna=False)[measure].mean().groupby("name", sort=False)
        low, high = folds.min()[rows], folds.max()[rows]
        if (high > low).any():
            axis.barh(range(len(rows)), high - low, left=low, height=0.5, color="0.87", label="range of the folds")
        for region, mark in _MARKS.items():
            here = finite if region == "all" else finite[finite["region"] == region]
            means = here.groupby("name")[measure].mean().reindex(rows)
            if means.notna().any():
                style = {"color": REGION_COLOURS.get(region, "k"), "marker": mark, "label": _NAMES[region]}
                axis.scatter(means, range(len(rows)), 40, **style)
        axis.use_sticky_edges = False
        axis.set(xlabel=_TITLES[measure])
        axis.grid(axis="x", alpha=0.3)
    axes[0, 0].set_yticks(range(len(rows)), rows)
    axes[0, 0].invert_yaxis()
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    return figure


def robustness(table: pd.DataFrame) -> Figure:
    """Dice against the size of each corruption, with the public port's published figures for the turned view."""
    means = summary.summarise(table)
    means = means[means["region"] == "all"]
    kinds = [kind for kind in corruptions.KINDS if kind != "none" and kind in set(means["variant"])]
    columns = min(4, len(kinds))
    shape = -(-len(kinds) // columns), columns
    figure, axes = plt.subplots(
        *shape, figsize=(3 * columns, 2.9 * shape[0]), layout="constrained", sharey=True, squeeze=False
    )
    for axis, kind in zip(axes.flat, kinds, strict=False):
        for tested, (colour, style) in _FIELDS_OF_VIEW.items():
            rows = means[means["variant"].isin(["none", kind]) & (means["tested_on"] == tested)]
            if len(rows):
                right = 1.0 if kind == "coarse pixels" else 0.0
                rows = rows.assign(amount=rows["amount"].where(rows["variant"] == kind, right)).sort_values("amount")
                axis.plot(rows["amount"], rows["dice"], style, color=colour, label=f"field of view: {tested}")
        if kind == "lateral turned":
            port = {0.0: summary.PORT_DICE} | summary.PORT_TURNED
            axis.plot(list(port), list(port.values()), "^:", color="0.5", label="public port (published, VerSe19)")
        axis.set(title=kind, xlabel=corruptions.KINDS[kind].unit)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(kinds) :]:
        axis.axis("off")
    for axis in axes[:, 0]:
        axis.set(ylabel="mean Dice")
    handles = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def resolution(table: pd.DataFrame) -> Figure:
    """Dice against the offset of the whole surface, and Dice of perfect shapes against the voxel size."""
    means = summary.summarise(table)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    moved = means[means["variant"] == "surface offset"].assign(mm=lambda rows: rows["amount"].abs())
    ways = {"own voxels": ("-", "with the bone"), "other voxels": ("--", "with another grid")}
    for region, mark in _MARKS.items():
        style = {"color": REGION_COLOURS.get(region, "k"), "marker": mark}
        rows = moved[moved["region"] == region].groupby("mm")["dice"].mean()
        if len(rows):
            left.plot([0, *rows.index], [1, *rows], label=_NAMES[region], **style)
        for variant, (line, label) in ways.items():
            rows = means[(means["variant"] == variant) & (means["region"] == region)]
            if len(rows):
                right.plot(rows["amount"], rows["dice"], ls=line, label=label if region == "all" else None, **style)
    left.set(title="whole surface offset", xlabel="offset, mean of outwards and inwards (mm)", ylabel="mean Dice")
    right.set(title="perfect shape, voxelised", xlabel="voxel side (mm)", ylabel="mean Dice")
    _level(left, summary.PAPER_DICE, "paper", 0.99)
    _level(left, summary.PORT_DICE, "public port", 0.01)
    _level(right, summary.PAPER_DICE, "paper", 0.01)
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(loc="lower left", fontsize=8, handlelength=3, title="" if axis is left else "compared")
    return figure


def _level(axis: Axes, dice: float, name: str, place: float) -> None:
    """A dotted line at a published Dice, with its name below at this share of the axis' width."""
    axis.axhline(dice, color="0.5", lw=1, ls=":")
    side = "left" if place < 0.5 else "right"
    style: dict[str, Any] = {"va": "top", "ha": side, "fontsize": 8, "color": "0.3"}
    axis.text(place, dice - 0.001, f"{name}, {dice:.3f}", transform=axis.get_yaxis_transform(), **style)


def people(table: pd.DataFrame) -> Figure:
    """Dice of each held-out vertebra by level, head to tail, with the median of each variant."""
    names = [name for name in (levels.name(n) for n in levels.VERTEBRAE) if name in set(table["level"])]
    figure, axis = plt.subplots(figsize=(11, 4.2), layout="constrained")
    styles = {"crop": ("#D55E00", "s"), "full": ("#0072B2", "o")}
    for n, (variant, rows) in enumerate(table.groupby("variant", sort=False)):
        colour, marker = styles[str(variant)]
        aside = 0.22 * (n - 0.5)
        axis.scatter(rows["level"].map(names.index) + aside, rows["dice"], 26, colour, marker=marker, alpha=0.6)
        median = rows.groupby("level")["dice"].median().reindex([name for name in names if name in set(rows["level"])])
        places = [names.index(name) + aside for name in median.index]
        axis.plot(places, median, color=colour, marker=marker, ms=3, label=f"field of view: {variant} (line: median)")
    axis.set_xticks(range(len(names)), names, fontsize=9)
    axis.set(ylabel="Dice", xlabel="level", ylim=(0, 1))
    axis.legend(fontsize=9, loc="lower right")
    axis.grid(alpha=0.3)
    return figure


def reliability_diagram(report: ReliabilityReport) -> Figure:
    """Stated against observed: voxels, surface points and vertebrae of people that no fit has seen."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 5.6), layout="constrained")
    for axis, panel in zip(axes, (_voxel_panel, _surface_panel, _vertebra_panel), strict=True):
        panel(axis, report)
        low, high = max(axis.get_xlim()[0], 0), axis.get_xlim()[1]
        axis.plot([low, high], [low, high], color="k", lw=1, ls="--", label="as stated", zorder=1)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    people, count = (int(report.summary[name]) for name in ("people", "vertebrae"))
    figure.suptitle(f"{count} vertebrae of {people} people, each read with the calibration of the others")
    return figure


def describe_reliability(report: ReliabilityReport) -> str:
    """A caption of the reliability diagram."""
    s = report.summary
    network, calibrated = (100 * s[f"voxel_calibration_error_{source}"] for source in ("network", "calibrated"))
    rank = report.vertebrae["dice"].corr(report.vertebrae["dice_stated"], method="spearman")
    text = (
        f"Stated against observed, {s['vertebrae']:.0f} vertebrae of {s['people']:.0f} people. Mean errors of what is "
        f"stated: probabilities of voxels near the surface {calibrated:.1f} points (the network's own: {network:.1f}); "
        f"distances of surface points {s['surface_calibration_error_mm']:.2f} mm; "
        f"Dice {s['dice_mean_absolute_error']:.3f}, rank correlation {rank:.2f}"
    )
    if "dice_coverage" in s:
        inside, stated = s["dice_coverage"], report.calibration.coverage
        text += f", {100 * inside:.0f} % within their {100 * stated:.0f} % intervals"
    return f"{text}."


def _voxel_panel(axis: Axes, report: ReliabilityReport) -> None:
    counts = axis.twinx()
    sources = (("network", GREY, "s", "the network's own"), ("calibrated", BLUE, "o", "calibrated"))
    for n, (source, colour, marker, label) in enumerate(sources):
        rows = report.voxels[report.voxels["source"] == source]
        label = f"{label}: {100 * report.summary[f'voxel_calibration_error_{source}']:.1f} points off"
        axis.plot(rows["stated"], rows["observed"], marker=marker, color=colour, label=label)
        places = np.arange(len(rows)) / 10 + 0.03 + 0.04 * n
        counts.bar(places, rows["voxels"], width=0.035, color=colour, alpha=0.35)
    counts.set(yscale="log", ylabel="voxels (bars)")
    low, high = counts.get_ylim()
    counts.set_ylim(low, high * (high / low) ** 2)  # The bars stay in the lower third, under the curves.
    axis.set_zorder(counts.get_zorder() + 1)
    axis.patch.set_visible(False)
    axis.set(title="voxels near the found surface", xlabel="stated probability of bone", xlim=(0, 1))
    axis.set_ylabel("observed share of bone")


def _surface_panel(axis: Axes, report: ReliabilityReport) -> None:
    rows = report.surface[report.surface["points"] > 0]
    top = 1.1 * float(rows[["stated_mm", "observed_mm"]].max(axis=None))
    axis.plot(rows["stated_mm"], rows["observed_mm"], "o-", color=BLUE, label="calibrated on other people")
    for place in rows[["stated_mm", "observed_mm", "points"]].itertuples(index=False):
        axis.annotate(f"{place.points:,}", place[:2], (4, -10), textcoords="offset points", fontsize="x-small")
    axis.set(title="points of the found surface, with their number", xlim=(0, top), ylim=(0, top))
    axis.set(xlabel="stated distance from the true surface, RMS (mm)", ylabel="observed distance, RMS (mm)")


def _vertebra_panel(axis: Axes, report: ReliabilityReport) -> None:
    table = report.vertebrae
    stated, observed = table["dice_stated"], table["dice"]
    if "dice_coverage" in report.summary:
        label = f"{100 * report.calibration.coverage:.0f} % interval"
        axis.vlines(stated, table["dice_low"], table["dice_high"], color="0.8", lw=1.5, label=label, zorder=1)
    for letter, marker in _MARKS.items():
        here = table["level"].str[0] == letter
        if here.any():
            look: dict[str, Any] = {"color": REGION_COLOURS[letter], "marker": marker, "label": metrics.REGIONS[letter]}
            axis.scatter(stated[here], observed[here], 24, zorder=2, **look)
    low = max(0.0, float(min(stated.min(), observed.min())) - 0.1)
    axis.set(title="vertebrae", xlabel="stated Dice", ylabel="observed Dice", xlim=(low, 1), ylim=(low, 1))
