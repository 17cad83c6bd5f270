"""The figure of a calibration: what was stated against what was seen."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from transvert.reliability import Report
from transvert.view import REGION_COLOURS

_SAID = {"network": ("#999999", "s", "the network's own"), "calibrated": ("#0072B2", "o", "calibrated on other people")}
_MEASURES = {"dice": ("Dice", ""), "assd_mm": ("ASSD", " (mm)")}
_REGIONS = {"C": "cervical", "T": "thoracic", "L": "lumbar"}


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
                stated[here], table[measure][here], 24, color=colour, marker=marker, label=_REGIONS[letter], zorder=2
            )
    low = 0.0 if unit else max(0.0, float(table[[measure, f"{measure}_stated"]].min(axis=None)) - 0.1)
    axis.set(title=f"vertebrae: {name}", xlabel=f"stated {name}{unit}", ylabel=f"observed {name}{unit}")
    axis.set(xlim=(low, top), ylim=(low, top))
    axis.legend(loc="upper left", fontsize=8)
