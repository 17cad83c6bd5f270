"""The figures of numbers: a training's curves, Dice and distances, and a calibration, stated against seen.

How sure a reconstructed surface is, in colours: on the surfaces themselves and as a figure.

The colour map is cividis, which reads alike with and without colour vision: dark blue is sure, yellow is not.


The figures of the notebooks. Pictures carry millimetres, a colour bar and the patient's sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from scipy import ndimage
from scipy.spatial import KDTree

from transvert import levels
from transvert.data.patches import SIZE, SPACING_MM
from transvert.data.samples import MIDDLE, Samples
from transvert.drr.geometry import View
from transvert.imaging import mesh
from transvert.imaging.volume import Volume
from transvert.io import atomic_path
from transvert.model import metrics
from transvert.model.calibration import ReliabilityReport
from transvert.plots import viewer

if TYPE_CHECKING:
    import trimesh

_SOURCES = {
    "network": ("#999999", "s", "the network's own"),
    "calibrated": ("#0072B2", "o", "calibrated on other people"),
}
_MEASURES = {"dice": ("Dice", ""), "assd_mm": ("ASSD", " (mm)")}
METHOD_COLOURS = ("#0072B2", "#E69F00", "#C8C8C8", "#444444")
"""Apart for the colour-blind too."""


def training_curve(history: pd.DataFrame, shipped: pd.DataFrame | None = None) -> Figure:
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
        figure = training_curve(history)
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


def reliability_diagram(report: ReliabilityReport) -> Figure:
    """Voxels, surface points and vertebrae of people whom no fit has seen, stated against observed."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 9.5), layout="constrained")
    _voxel_panel(axes[0, 0], report)
    _surface_panel(axes[0, 1], report)
    for axis, measure in zip(axes[1], _MEASURES, strict=True):
        _vertebra_panel(axis, report, measure)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    people, count = (int(report.summary[name]) for name in ("people", "vertebrae"))
    figure.suptitle(f"{count} vertebrae of {people} people, each read with the calibration of the others")
    return figure


def describe_reliability(report: ReliabilityReport) -> str:
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


def _voxel_panel(axis: Axes, report: ReliabilityReport) -> None:
    axis.plot([0, 1], [0, 1], color="k", lw=1, ls="--", label="as stated")
    counts = axis.twinx()
    for n, (said, (colour, marker, label)) in enumerate(_SOURCES.items()):
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


def _surface_panel(axis: Axes, report: ReliabilityReport) -> None:
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


def _vertebra_panel(axis: Axes, report: ReliabilityReport, measure: str) -> None:
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


REGION_COLOURS = {"C": "#0072B2", "T": "#E69F00", "L": "#009E73"}
_SIDES = {"ap": ("R", "L"), "pa": ("R", "L"), "left_lateral": ("front", "back"), "right_lateral": ("front", "back")}
_SEEN_FROM = (("front", 0, "R", "L"), ("left side", 90, "front", "back"), ("back", 180, "L", "R"))
AROUND_MM = 70
_HALF = SIZE * SPACING_MM / 2
_EDGED: list[AbstractPathEffect] = [withStroke(linewidth=2.2, foreground="k")]
"""A dark rim, so that lines and names can be read on bright bone."""

# What a notebook shows and keeps; the files that `save` writes are finer.
plt.rcParams["figure.dpi"] = 72


def save_figure(figure: Figure, path: str | Path) -> Figure:
    """Writes a figure as PNG, atomically, and hands it back for the notebook to show."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, bbox_inches="tight", format="png")
    return figure


def three_planes(ct: Volume, mask: Volume, point: np.ndarray) -> Figure:
    """Coronal, sagittal and axial slices of a CT through `point` (3,) RAS mm, with its vertebrae laid over.

    The volumes share a grid. Coronal and axial slices show the patient's right on the left, the sagittal one the front
    on the left, as the radiographs do.
    """
    i, j, k = np.clip(np.rint(ct.index(point)).astype(int), 0, np.array(ct.data.shape) - 1)
    x, y, z = (ct.spacing_mm[a] * ct.data.shape[a] for a in range(3))
    planes = [
        ("coronal", (slice(None), j, slice(None)), (x, z), ("R", "L", "head", "feet")),
        ("sagittal", (i, slice(None), slice(None)), (y, z), ("front", "back", "head", "feet")),
        ("axial", (slice(None), slice(None), k), (x, y), ("R", "L", "front", "back")),
    ]
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.6), layout="constrained")
    for axis, (title, cut, (width, height), sides) in zip(axes, planes, strict=True):
        grey, label = (volume.data[cut][::-1, ::-1].T for volume in (ct, mask))
        box = (0, width, height, 0)
        shown = axis.imshow(grey, cmap="gray", vmin=-300, vmax=900, extent=box)
        alpha = np.where(label > 0, 0.45, 0.0)
        axis.imshow(viewer.level_colours(label), alpha=alpha, extent=box, interpolation="nearest")
        axis.set(title=title, xlabel="mm", ylabel="mm")
        _mark(axis, *sides)
    figure.colorbar(shown, ax=axes, label="HU", shrink=0.8)
    return figure


def acquisition_setup(views: Sequence[View], corners: np.ndarray) -> Figure:
    """The set-up in space, to scale: the patient's box, sources, detectors, central and edge rays; RAS mm.

    Args:
        views: up to two, of one isocentre.
        corners: (8, 3) RAS mm, of the patient's box, in the order of `Volume.corners`.
    """
    figure = plt.figure(figsize=(9, 5.6))
    axis: Any = figure.add_axes((0, 0, 1, 0.9), projection="3d", computed_zorder=False)
    # The reader stands where the sources are, a little to the side.
    x, y, _ = -sum((view.direction for view in views), np.zeros(3))
    turn = np.arctan2(y, x) + np.deg2rad(5)
    axis.view_init(elev=25, azim=np.rad2deg(turn))
    to_the_right = np.array([-np.sin(turn), np.cos(turn), 0])
    seen = [corners]
    middle, width = corners.mean(axis=0), np.ptp(corners, axis=0)
    label: str | None = "patient's box, {:.0f} × {:.0f} × {:.0f} mm".format(*width)
    for edge in ([a, b] for a in range(8) for b in range(a) if (a ^ b).bit_count() == 1):
        axis.plot(*corners[edge].T, color="0.3", lw=1.2, label=label)
        label = None
    for view, colour in zip(views, ("#0072B2", "#D55E00"), strict=False):
        rows, columns = view.shape
        name = {"ap": "AP", "pa": "PA"}.get(view.name, view.name.replace("_", " "))
        ends = np.array([[0, 0], [0, columns], [rows, columns], [rows, 0]]) - 0.5
        frame = view.corner + ends[:, :1] * view.row_step + ends[:, 1:] * view.column_step
        starts = frame - 600 * view.direction if view.source is None else np.array([view.source] * 4)
        central = np.array([starts.mean(axis=0), frame.mean(axis=0)])
        seen += [frame, starts]
        axis.add_collection3d(Poly3DCollection([frame], facecolor=colour, edgecolor=colour, lw=2, alpha=0.25))
        for start, corner in zip(starts, frame, strict=True):
            axis.plot(*np.array([start, corner]).T, color=colour, lw=0.7, ls=":")
        size = " × ".join(f"{n * mm:.0f}" for n, mm in zip(view.shape, view.pixel_mm, strict=True))
        axis.plot(*central.T, color=colour, lw=1.4, label=f"{name}: detector of {size} mm, central ray")
        axis.plot(*view.corner, "o", color=colour, ms=6, label=f"{name}: row 0, column 0")
        if view.source is not None:
            whole, part = (np.linalg.norm(end - view.source) for end in (central[1], middle))
            label = f"{name}: source, {part:.0f} mm to the middle, {whole:.0f} mm to the detector"
            axis.plot(*view.source, "*", color=colour, ms=13, label=label, clip_on=False)
            side = "right" if (view.source - middle) @ to_the_right > 0 else "left"  # Inwards, below its rays.
            axis.text(*(view.source - [0, 0, 130]), f"{name} source", color=colour, ha=side, fontsize=9)
        # At the outer upper corner, outwards: away from the other view's label.
        outwards = (frame[:2] - middle) @ to_the_right
        outer = int(np.abs(outwards).argmax())
        side = "left" if outwards[outer] > 0 else "right"
        axis.text(*(frame[outer] + [0, 0, 50]), f"{name} detector", color=colour, ha=side, fontsize=9)
    points = np.concatenate(seen)
    low, high = points.min(axis=0) - 60, points.max(axis=0) + 60
    # The axes stand on the floor, between the patient and whichever corner of it is emptiest.
    floor = np.array([[x, y, low[2]] for x in (low[0], high[0]) for y in (low[1], high[1])])
    empty = floor[np.argmax([np.linalg.norm(points - corner, axis=1).min() for corner in floor])]
    origin, length = (empty + [*middle[:2], low[2]]) / 2, 0.14 * (high - low)[:2].max()
    for step, letter in zip(np.eye(3) * length, ("R", "A", "S"), strict=True):
        axis.quiver(*origin, *step, color="k", lw=1.8, arrow_length_ratio=0.25)
        axis.text(*(origin + 1.25 * step), letter, ha="center", va="center", fontsize=11, weight="bold")
    axis.set(xlabel="x, to the patient's right (mm)", ylabel="y, to the front (mm)", zlabel="z, to the head (mm)")
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
    axis.set_box_aspect(high - low, zoom=1.1)
    for side, count in ((axis.xaxis, 5), (axis.yaxis, 5), (axis.zaxis, 3)):
        side.set_major_locator(MaxNLocator(count))
    figure.legend(loc="upper center", ncols=2, fontsize=8, frameon=False)
    return figure


def radiographs(
    pictures: Sequence[np.ndarray],
    views: Sequence[View],
    titles: Sequence[str],
    *,
    landmarks: Sequence[Mapping[int, np.ndarray]] = (),
    overlays: Sequence[Mapping[int, np.ndarray]] = (),
    unit: str = "line integral of attenuation (no unit)",
) -> Figure:
    """Radiographs side by side, in mm on the detector.

    Args:
        pictures: each (rows, columns).
        views: each picture's view.
        titles: each picture's title.
        landmarks: per picture, level to (2,) row and column, drawn as named dots.
        overlays: per picture, level to a (rows, columns) silhouette, whose outline is drawn; what is farther than
            `AROUND_MM` beside them is left out.
        unit: of the grey values.
    """
    figure, axes = plt.subplots(
        1, len(pictures), figsize=(5.2 * len(pictures), 5.6), layout="constrained", squeeze=False
    )
    for n, (axis, picture, view) in enumerate(zip(axes[0], pictures, views, strict=True)):
        row_mm, column_mm = view.pixel_mm
        box = (-column_mm / 2, (picture.shape[1] - 0.5) * column_mm, (picture.shape[0] - 0.5) * row_mm, -row_mm / 2)
        low, high = np.nanpercentile(picture, (1, 99.7))
        shown = axis.imshow(picture, cmap="gray", extent=box, vmin=low, vmax=high)
        figure.colorbar(shown, ax=axis, label=unit, shrink=0.7)
        axis.set(title=titles[n], xlabel="mm on the detector", ylabel="mm on the detector")
        for level, (row, column) in (landmarks[n] if landmarks else {}).items():
            place = np.array([column * column_mm, row * row_mm])
            axis.plot(*place, "+", color="#E69F00", ms=7, path_effects=_EDGED)
            axis.annotate(
                levels.name(level), place + [4, 0], color="#E69F00", fontsize=7, va="center", path_effects=_EDGED
            )
        for level, silhouette in (overlays[n] if overlays else {}).items():
            colour = viewer.level_colours(np.array(level))
            _outline(axis, silhouette, box, colour)
        if overlays and overlays[n]:
            seen = (
                np.flatnonzero(np.any([silhouette.any(0) for silhouette in overlays[n].values()], axis=0)) * column_mm
            )
            axis.set_xlim(max(box[0], seen.min() - AROUND_MM), min(box[1], seen.max() + AROUND_MM))
        _mark(axis, *_SIDES.get(view.name, ("", "")), "head", "feet")
    return figure


def contact_sheet(samples: Samples) -> Figure:
    """Every sample of a subject: AP patch above lateral patch, the target's outline and the landmark on both."""
    targets = samples.targets()
    silhouettes = [np.any(targets, axis=axis) for axis in (2, 1)]
    columns = min(7, len(samples))
    rows = -(-len(samples) // columns)
    figure, axes = plt.subplots(
        2 * rows, columns, figsize=(max(1.5 * columns, 6.5), 3.2 * rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    box = (-_HALF, _HALF, _HALF, -_HALF)
    for n in range(len(samples)):
        for view, name in enumerate(("AP", "lateral")):
            axis = axes[2 * (n // columns) + view, n % columns]
            axis.imshow(samples.pictures[n, view][MIDDLE, MIDDLE], cmap="gray", extent=box)
            outline = silhouettes[view][n][::-1, ::-1].T
            _outline(axis, outline, box, "#56B4E9")
            axis.plot(0, 0, "+", color="#E69F00", ms=6)
            axis.set_title(f"{levels.name(samples.levels[n])} {name}", fontsize=8, pad=2)
    figure.suptitle(
        f"{samples.subject}: patches of 96 mm, the vertebra's outline (blue) and its landmark (orange)", fontsize=10
    )
    return figure


def batch_sheet(images: np.ndarray, targets: np.ndarray) -> Figure:
    """What training draws: (N, 2, 2, 64, 64) images and (N, 64, 64, 64) targets; per column patch and outline."""
    figure, axes = plt.subplots(2, len(images), figsize=(1.8 * len(images), 3.9), layout="constrained", squeeze=False)
    box = (-_HALF, _HALF, _HALF, -_HALF)
    for n, (image, target) in enumerate(zip(images, targets, strict=True)):
        for view, (name, axis_away) in enumerate((("AP", 1), ("lateral", 0))):
            axis = axes[view, n]
            axis.imshow(image[view, 0], cmap="gray", extent=box, vmin=-3, vmax=3)
            silhouette = target.max(axis_away)[::-1, ::-1].T
            _outline(axis, silhouette, box, "#56B4E9")
            _outline(axis, image[view, 1], box, "#E69F00")
            axis.set(title=name, xticks=[], yticks=[])
    figure.suptitle(
        "Random draws: patch (grey: 3 standard deviations either way), the target's outline (blue), the centroid map (orange)",
        fontsize=10,
    )
    return figure


def errors_on_surface(cases: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> Figure:
    """Predicted vertebrae seen from the front, the left and the back, coloured by distance from the truth.

    Args:
        cases: title, probability (64, 64, 64) and truth (64, 64, 64) bool of each.
    """
    figure, axes = plt.subplots(len(cases), 3, figsize=(8.5, 2.9 * len(cases)), layout="constrained", squeeze=False)
    for row, (title, probability, truth) in zip(axes, cases, strict=True):
        distance = _distance_near(probability > 0.5, truth)
        row[0].set_ylabel(title, fontsize=9)
        for axis, (side, turn, left, right) in zip(row, _SEEN_FROM, strict=True):
            axis.imshow(viewer.error_picture(probability, distance, turn), extent=(-_HALF, _HALF, -_HALF, _HALF))
            axis.set(title=f"from the {side}", xticks=[], yticks=[])
            axis.plot([_HALF - 24, _HALF - 4], [6 - _HALF] * 2, "k", lw=2)
            axis.text(_HALF - 14, 8 - _HALF, "20 mm", ha="center", fontsize=7)
            axis.set_xlabel(f"{left}                {right}", fontsize=8)
    limit = viewer.ERROR_LIMIT_MM
    bar = plt.cm.ScalarMappable(plt.Normalize(-limit, limit), "RdBu_r")
    figure.colorbar(bar, ax=axes, label="outside (+) or inside (-) the true surface, mm", shrink=0.7, extend="both")
    return figure


def _distance_near(shape: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(S, S, S) float32 signed distance in mm from the surface of `truth`, in the voxels on both sides of `shape`'s."""
    rim = ndimage.binary_dilation(shape, iterations=2) & ~ndimage.binary_erosion(shape, iterations=2)
    field = np.zeros(shape.shape, np.float32)
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    field[rim] = mesh.signed_distance_at(np.argwhere(rim) * SPACING_MM, truth, affine)
    return field


def spine_views(labels: Volume) -> Figure:
    """A spine's label volume, isotropic, seen from the front, the left side and the back."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 7), layout="constrained")
    spacing = float(labels.spacing_mm[0])
    for axis, (side, turn, left, right) in zip(axes, _SEEN_FROM, strict=True):
        picture = viewer.spine_picture(labels, turn)
        height, width = (n * spacing for n in picture.shape[:2])
        axis.imshow(picture, extent=(-width / 2, width / 2, height, 0))
        filled = np.flatnonzero((picture < 1).any(axis=(0, 2)))
        if filled.size:
            axis.set_xlim((filled[0] - 15) * spacing - width / 2, (filled[-1] + 15) * spacing - width / 2)
        axis.set(title=f"seen from the {side}", xlabel=f"{left}     mm     {right}", ylabel="mm")
        for n in levels.in_order(set(np.unique(labels.data).tolist()) - {0}):
            down = (labels.data.shape[2] - 1 - np.argwhere(labels.data == n)[:, 2].mean()) * spacing
            colour = viewer.level_colours(np.array(n))
            axis.text(0.98, down, levels.name(n), color=colour, ha="right", transform=axis.get_yaxis_transform())
    return figure


def _outline(axis: Axes, shape: np.ndarray, box: tuple[float, float, float, float], colour: Any) -> None:
    """The line at 0.5 of a picture that `imshow(extent=box)` would show: with one extent for both, rows go down in both."""
    found = ndimage.find_objects((shape > 0.5).astype(np.uint8))
    if not found:
        return
    # A figure keeps three float64 a pixel of whatever it has drawn the contours of: no more than the shape and its rim.
    rows, columns = (
        slice(max(side.start - 1, 0), min(side.stop + 1, n)) for side, n in zip(found[0], shape.shape, strict=True)
    )
    x, y = np.linspace(*box[:2], shape.shape[1] + 1), np.linspace(box[3], box[2], shape.shape[0] + 1)
    extent = (x[columns.start], x[columns.stop], y[rows.stop], y[rows.start])
    line = axis.contour(shape[rows, columns], [0.5], colors=[colour], linewidths=0.9, extent=extent, origin="upper")
    line.set_path_effects(_EDGED)


def _mark(axis: Axes, left: str, right: str, top: str = "", bottom: str = "") -> None:
    """Writes what each side of a picture shows, small and inside."""
    style: dict[str, Any] = {"color": "#56B4E9", "fontsize": 9, "transform": axis.transAxes, "path_effects": _EDGED}
    # Bold, for at a screen's resolution the foot of a thin L is lost.
    axis.text(0.02, 0.5, left, ha="left", va="center", weight="bold", **style | {"fontsize": 12})
    axis.text(0.98, 0.5, right, ha="right", va="center", weight="bold", **style | {"fontsize": 12})
    axis.text(0.02, 0.98, top, ha="left", va="top", **style)
    axis.text(0.02, 0.02, bottom, ha="left", va="bottom", **style)


SD_LIMIT_MM = 5.0
"""Where the colours end; the same in every file, so that two spines can be compared."""
SD_MM = "sd_mm"
"""The attribute of a surface's vertices that keeps the number itself; PLY and GLB files have it, too."""
_COLOURS = colormaps["cividis"]


def colour_by_sd(surface: trimesh.Trimesh, sd_mm: np.ndarray) -> trimesh.Trimesh:
    """A copy of a surface that is coloured by the standard deviation (N,) mm at its vertices, and keeps it as `SD_MM`."""
    import trimesh

    painted = surface.copy()
    colours = (255 * _COLOURS(np.asarray(sd_mm) / SD_LIMIT_MM)).round().astype(np.uint8)
    painted.visual = trimesh.visual.ColorVisuals(painted, vertex_colors=colours)
    painted.vertex_attributes[SD_MM] = np.asarray(sd_mm, np.float32)
    return painted


def surface_sd_views(labels: Volume, painted: Mapping[int, trimesh.Trimesh], calibrated: bool) -> Figure:
    """A spine coloured by its surfaces' standard deviation, seen from the front, the left side and the back.

    Args:
        labels: isotropic, from `spine.assemble`.
        painted: level to a surface of `paint`.
        calibrated: whether the numbers are; the colour bar says so.
    """
    field = _at_voxels(labels, painted)
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 7), layout="constrained")
    spacing = float(labels.spacing_mm[0])
    for axis, (side, turn) in zip(axes, (("front", 0), ("left side", 90), ("back", 180)), strict=True):
        brightness, sd = viewer.shade(labels.data > 0, turn_deg=turn, values=field)
        lit = _COLOURS(np.nan_to_num(sd) / SD_LIMIT_MM)[..., :3] * (0.3 + 0.7 * np.nan_to_num(brightness))[..., None]
        picture = np.where(np.isfinite(brightness)[..., None], lit, 1.0)
        height, width = (n * spacing for n in brightness.shape)
        axis.imshow(picture, extent=(-width / 2, width / 2, height, 0))
        rows, columns = (np.flatnonzero(np.isfinite(brightness).any(axis=n)) for n in (1, 0))
        axis.set_xlim((columns[0] - 5) * spacing - width / 2, (columns[-1] + 5) * spacing - width / 2)
        axis.set_ylim((rows[-1] + 5) * spacing, (rows[0] - 5) * spacing)
        axis.set(title=f"seen from the {side}", xlabel="mm", ylabel="mm")
    said = "calibrated on other people" if calibrated else "the network's own, not calibrated"
    bar = figure.colorbar(ScalarMappable(Normalize(0, SD_LIMIT_MM), _COLOURS), ax=axes, extend="max", shrink=0.7)
    bar.set_label(f"expected distance from the true surface, RMS (mm)\n{said}")
    return figure


def _at_voxels(labels: Volume, painted: Mapping[int, trimesh.Trimesh]) -> np.ndarray:
    """(X, Y, Z) the standard deviation on either side of each vertebra's surface, from the nearest vertex."""
    field = np.zeros(labels.data.shape, np.float32)
    # A ray ends up to a voxel and a half beside the surface.
    grown = np.where(labels.data > 0, labels.data, ndimage.maximum_filter(labels.data, 5))
    rim = (grown > 0) & ~ndimage.binary_erosion(labels.data > 0, iterations=2)
    for level, surface in painted.items():
        voxels = np.argwhere(rim & (grown == level))
        nearest = KDTree(surface.vertices).query(labels.world(voxels))[1]
        field[tuple(voxels.T)] = np.asarray(surface.vertex_attributes[SD_MM])[nearest]
    return field
