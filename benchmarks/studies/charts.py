"""The figures of the studies."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.studies import corruptions, studies
from transvert.model import metrics
from transvert.plots.figures import REGION_COLOURS

_MARKS = {"C": "^", "T": "o", "L": "s", "all": "D"}
_NAMES = metrics.REGIONS | {"all": "all"}
_TITLES = {"dice": "Dice", "hd95_mm": "HD95 (mm)", "assd_mm": "ASSD (mm)", "nsd_1p5mm": "NSD at 1.5 mm"}
_TESTED = {"body": ("#0072B2", "o-"), "cube": ("#D55E00", "s--")}


def draw(name: str, table: pd.DataFrame) -> Figure:
    """The figure of a study of `studies.STUDIES`."""
    return {"robustness": faulty, "resolution": resolution}.get(name, variants)(table)


def variants(table: pd.DataFrame, measures: tuple[str, ...] = ("dice", "assd_mm")) -> Figure:
    """Every variant's mean, by region and over all; a grey bar from its worst fold's mean to its best one's."""
    # How a variant was trained its name says, or the table beside the figure.
    keys = table[[key for key in studies.telling(table) if key in ("variant", "budget", "tested_on")]].astype(object)
    names = keys.where(keys.notna(), "").astype(str).agg(lambda row: ", ".join(filter(None, row)), axis=1)
    rows = list(dict.fromkeys(names))
    finite = table.replace(np.inf, np.nan).assign(name=names)
    size = (4.5 * len(measures) + 2, 1.4 + 0.36 * len(rows))
    figure, axes = plt.subplots(1, len(measures), figsize=size, layout="constrained", sharey=True, squeeze=False)
    for axis, measure in zip(axes[0], measures, strict=True):
        folds = finite.groupby(["name", "fold"], sort=False, dropna=False)[measure].mean().groupby("name", sort=False)
        low, high = folds.min()[rows], folds.max()[rows]
        if (high > low).any():
            axis.barh(range(len(rows)), high - low, left=low, height=0.5, color="0.87", label="from fold to fold")
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


def faulty(table: pd.DataFrame) -> Figure:
    """Dice against the size of each fault of the films; the public port's published figures beside the turned view."""
    means = studies.summary(table)
    means = means[means["region"] == "all"]
    kinds = [kind for kind in corruptions.KINDS if kind != "none" and kind in set(means["variant"])]
    columns = min(4, len(kinds))
    shape = -(-len(kinds) // columns), columns
    figure, axes = plt.subplots(
        *shape, figsize=(3 * columns, 2.9 * shape[0]), layout="constrained", sharey=True, squeeze=False
    )
    for axis, kind in zip(axes.flat, kinds, strict=False):
        for tested, (colour, style) in _TESTED.items():
            rows = means[means["variant"].isin(["none", kind]) & (means["tested_on"] == tested)]
            if len(rows):
                right = 1.0 if kind == "coarse pixels" else 0.0
                rows = rows.assign(amount=rows["amount"].where(rows["variant"] == kind, right)).sort_values("amount")
                axis.plot(rows["amount"], rows["dice"], style, color=colour, label=f"films of the {tested}")
        if kind == "lateral turned":
            port = {0.0: studies.PORT_DICE} | studies.PORT_TURNED
            axis.plot(list(port), list(port.values()), "^:", color="0.5", label="the public port, published, VerSe19")
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
    """What a surface costs in Dice that lies off everywhere, and what voxels cost that are right."""
    means = studies.summary(table)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    moved = means[means["variant"] == "surface offset"].assign(mm=lambda rows: rows["amount"].abs())
    ways = {"own voxels": ("-", "with the bone itself"), "other voxels": ("--", "with voxels of another grid")}
    for region, mark in _MARKS.items():
        style = {"color": REGION_COLOURS.get(region, "k"), "marker": mark}
        rows = moved[moved["region"] == region].groupby("mm")["dice"].mean()
        if len(rows):
            left.plot([0, *rows.index], [1, *rows], label=_NAMES[region], **style)
        for variant, (line, told) in ways.items():
            rows = means[(means["variant"] == variant) & (means["region"] == region)]
            if len(rows):
                right.plot(rows["amount"], rows["dice"], ls=line, label=told if region == "all" else None, **style)
    left.set(title="the whole surface moved", xlabel="outwards or inwards, mean of both (mm)", ylabel="mean Dice")
    right.set(title="a perfect answer, voxelised", xlabel="voxel side (mm)", ylabel="mean Dice")
    _level(left, studies.PAPER_DICE, "the paper", 0.99)
    _level(left, studies.PORT_DICE, "its public port", 0.01)
    _level(right, studies.PAPER_DICE, "the paper", 0.01)
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(loc="lower left", fontsize=8, handlelength=3, title="" if axis is left else "compared")
    return figure


def _level(axis: Axes, dice: float, name: str, place: float) -> None:
    """A dotted line at a published Dice, its name below it at a share of the axis' width."""
    axis.axhline(dice, color="0.5", lw=1, ls=":")
    side = "left" if place < 0.5 else "right"
    style: dict[str, Any] = {"va": "top", "ha": side, "fontsize": 8, "color": "0.3"}
    axis.text(place, dice - 0.001, f"{name}, {dice:.3f}", transform=axis.get_yaxis_transform(), **style)
