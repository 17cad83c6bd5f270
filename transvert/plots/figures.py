"""The figures of the notebooks and the report. Pictures show millimetres, a colour bar and the patient's sides.

Figures are as large as they are shown; `save_figure` writes them at a higher resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from transvert.plots.viewer import level_colours, shade

if TYPE_CHECKING:
    import trimesh

BLUE, ORANGE, GREY, YELLOW, PINK = "#0072B2", "#E69F00", "#999999", "#F0E442", "#CC79A7"
REGION_COLOURS = {"C": BLUE, "T": ORANGE, "L": "#009E73"}  # Distinct for colour-blind readers.
ERROR_LIMIT_MM = 3.0  # Surface error at which the colours saturate.
SD_LIMIT_MM = 5.0  # Expected surface error at which the colours saturate, the same in all files, to compare spines.
SD_MM = "sd_mm"  # The vertex attribute that holds the expected error; PLY and GLB files have it, too.
LONGEST = 1500  # Pixels of a radiograph's longer side as a figure shows it; larger ones are binned.
AROUND_MM = 70  # Width shown on each side of the silhouettes.

_SD_COLOURS = colormaps["cividis"]  # Reads alike with and without colour vision: dark blue is a small error.
_SIDES = {"ap": ("R", "L"), "pa": ("R", "L"), "left_lateral": ("front", "back"), "right_lateral": ("front", "back")}
_SEEN_FROM = (("front", 0, "R", "L"), ("left side", 90, "front", "back"), ("back", 180, "L", "R"))
_HALF = SIZE * SPACING_MM / 2
_PATCH_BOX = (-_HALF, _HALF, _HALF, -_HALF)
_EDGED: list[AbstractPathEffect] = [withStroke(linewidth=2.2, foreground="k")]  # Legible on bright bone.
_NAMED: dict[str, Any] = {"color": "w", "path_effects": _EDGED, "va": "center", "fontsize": 10}

plt.rcParams.update({"figure.dpi": 72, "font.size": 11})


def bin_picture(picture: np.ndarray, longest: int = LONGEST) -> tuple[np.ndarray, int]:
    """The means of `factor` x `factor` pixels, so that no side is longer than `longest`; and `factor`.

    The last rows and columns are repeated to fill up the last bins.
    """
    factor = -(-max(picture.shape) // longest)
    if factor == 1:
        return picture, 1
    rows, columns = (-(-n // factor) for n in picture.shape)
    small = np.empty((rows, columns), picture.dtype if picture.dtype.kind == "f" else float)
    for row in range(rows):  # Row by row, so that a large film is not copied.
        part = picture[row * factor : (row + 1) * factor]
        padded = np.pad(part, [(0, factor - len(part)), (0, -picture.shape[1] % factor)], mode="edge")
        small[row] = padded.reshape(factor, columns, factor).mean(axis=(0, 2))
    return small, factor


def local_contrast(picture: np.ndarray, pixel_mm: Sequence[float]) -> np.ndarray:
    """A film as a reader sees it best: each pixel's distance from the mean around it, in standard deviations around it.

    Means are weighted by Gaussians of 8 mm, deviations by 16 mm: this companion's choice. For the eye alone, never for the
    network. NaN stays NaN. Returns float32.
    """
    sigma = 8.0 / np.asarray(pixel_mm)
    exposed = np.isfinite(picture).astype(np.float32)
    film = np.where(exposed, picture, 0).astype(np.float32)
    share = np.maximum(ndimage.gaussian_filter(exposed, sigma), 1e-3)
    distance = np.where(exposed, film - ndimage.gaussian_filter(film, sigma) / share, 0)
    share = np.maximum(ndimage.gaussian_filter(exposed, 2 * sigma), 1e-3)
    deviation = np.sqrt(ndimage.gaussian_filter(distance**2, 2 * sigma) / share)
    # The constant keeps the noise of empty parts dark.
    return np.where(exposed, distance / (deviation + 0.05 * deviation.max() + 1e-12), np.nan).astype(np.float32)


def save_figure(figure: Figure, path: str | Path) -> Figure:
    """Writes a figure as PNG, atomically, and returns it for the notebook to show."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, bbox_inches="tight", format="png")
    return figure


def training_curve(history: pd.DataFrame, shipped: pd.DataFrame | None = None) -> Figure:
    """Loss and Dice against steps, beside those of the shipped weights' training if they are given."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axis, column in ((left, "loss"), (right, "dice")):
        if shipped is not None:
            axis.plot(shipped.step, shipped[column], color=GREY, label="shipped weights, training samples")
            axis.set_xscale("log")  # Tens of steps beside thousands.
        axis.plot(history.step, history[column], "o-", ms=3, color=BLUE, label="this run, training samples")
        axis.grid(alpha=0.3)
    left.set(xlabel="step", ylabel="loss (1 - soft Dice + cross-entropy)", title="training loss")
    right.plot(history.step, history.dice_validation, "s-", ms=3, color="#D55E00", label="this run, held-out vertebrae")
    right.set(xlabel="step", ylabel="Dice", ylim=(0, 1), title="Dice")
    right.legend(fontsize="small", loc="lower right")
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


def by_region(table: pd.DataFrame) -> Figure:
    """Dice, HD95, ASSD and NSD by region: a dot per vertebra, a line at the median. `table` is metrics.csv."""
    measures = {"dice": "Dice", "hd95_mm": "HD95 (mm)", "assd_mm": "ASSD (mm)", "nsd_1p5mm": "NSD at 1.5 mm"}
    regions = [r for r in REGION_COLOURS if (table.level.str[0] == r).any()]
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.6), layout="constrained")
    jitter = np.random.default_rng(0)
    for axis, (column, label) in zip(axes, measures.items(), strict=True):
        for place, letter in enumerate(regions):
            values = table[table.level.str[0] == letter][column].replace(np.inf, np.nan).dropna()
            places = place + jitter.uniform(-0.15, 0.15, len(values))
            axis.plot(places, values, "o", ms=6, color=REGION_COLOURS[letter], alpha=0.7)
            axis.hlines(values.median(), place - 0.3, place + 0.3, color="k")
        axis.set_xticks(range(len(regions)), [metrics.REGIONS[letter] for letter in regions])
        axis.set(title=label, xlim=(-0.6, len(regions) - 0.4))
        axis.set_ylim(0, None if column.endswith("_mm") else 1)
        axis.grid(axis="y", alpha=0.3)
    return figure


def three_planes(ct: Volume, mask: Volume, point: np.ndarray) -> Figure:
    """Coronal, sagittal and axial slices through `point` (3,) RAS mm of a CT and its mask, which share a grid."""
    i, j, k = np.clip(np.rint(ct.index(point)).astype(int), 0, np.array(ct.data.shape) - 1)
    x, y, z = (ct.spacing_mm[a] * ct.data.shape[a] for a in range(3))
    planes = [
        ("coronal", (slice(None), j, slice(None)), (x, z), ("R", "L", "head", "feet")),
        ("sagittal", (i, slice(None), slice(None)), (y, z), ("front", "back", "head", "feet")),
        ("axial", (slice(None), slice(None), k), (x, y), ("R", "L", "front", "back")),
    ]
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.2), layout="constrained")
    for axis, (title, cut, (width, height), sides) in zip(axes, planes, strict=True):
        grey, label = (volume.data[cut][::-1, ::-1].T for volume in (ct, mask))
        box = (0, width, height, 0)
        shown = axis.imshow(grey, cmap="gray", vmin=-300, vmax=900, extent=box)
        alpha = np.where(label > 0, 0.45, 0.0)
        axis.imshow(level_colours(label), alpha=alpha, extent=box, interpolation="nearest")
        axis.set(title=title, xlabel="mm", ylabel="mm")
        _mark_sides(axis, *sides)
    figure.colorbar(shown, ax=axes, label="HU", shrink=0.8)
    return figure


def acquisition_setup(views: Sequence[View], corners: np.ndarray) -> Figure:
    """The acquisition of one or two views in space, to scale, RAS mm, with the patient's box `corners` (`Volume.corners`)."""
    figure = plt.figure(figsize=(11, 6.8))
    axis: Any = figure.add_axes((0, 0, 1, 0.9), projection="3d", computed_zorder=False)
    # Seen from the sources, a little from the side.
    x, y, _ = -sum((view.direction for view in views), np.zeros(3))
    axis.view_init(elev=25, azim=np.rad2deg(np.arctan2(y, x)) + 5)
    middle, points = corners.mean(axis=0), [corners]
    label = "patient's box, {:.0f} × {:.0f} × {:.0f} mm".format(*np.ptp(corners, axis=0))
    # A walk over all edges of the box.
    axis.plot(*corners[[0, 1, 3, 2, 0, 4, 5, 7, 6, 4, 5, 1, 3, 7, 6, 2]].T, color="0.3", lw=1.2, label=label)
    for view, colour in zip(views, (BLUE, "#D55E00"), strict=False):
        rows, columns = view.shape
        name = {"ap": "AP", "pa": "PA"}.get(view.name, view.name.replace("_", " "))
        ends = np.array([[0, 0], [0, columns], [rows, columns], [rows, 0]]) - 0.5
        frame = view.corner + ends[:, :1] * view.row_step + ends[:, 1:] * view.column_step
        starts = frame - 600 * view.direction if view.source is None else view.rays(ends)[0]
        central = np.array([starts.mean(axis=0), frame.mean(axis=0)])
        points += [frame, starts]
        axis.add_collection3d(Poly3DCollection([frame], facecolor=colour, edgecolor=colour, lw=2, alpha=0.25))
        for ray in zip(starts, frame, strict=True):
            axis.plot(*np.array(ray).T, color=colour, lw=0.7, ls=":")
        size = " × ".join(f"{n * mm:.0f}" for n, mm in zip(view.shape, view.pixel_mm, strict=True))
        axis.plot(*central.T, color=colour, lw=1.4, label=f"{name}: detector of {size} mm, central ray")
        axis.plot(*view.corner, "o", color=colour, ms=6, label=f"{name}: row 0, column 0")
        if view.source is not None:
            whole, part = (np.linalg.norm(end - central[0]) for end in (central[1], middle))
            text = f"{name}: source, {part:.0f} mm to the middle, {whole:.0f} mm to the detector"
            track = starts[[0, 2]] if view.slot else starts[:1]  # The source of a slot view moves.
            axis.plot(*track.T, "*-", color=colour, ms=13, label=text, clip_on=False)
    low, high = np.concatenate(points).min(axis=0) - 60, np.concatenate(points).max(axis=0) + 60
    axis.set(xlabel="x, to the patient's right (mm)", ylabel="y, to the front (mm)", zlabel="z, to the head (mm)")
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
    axis.set_box_aspect(high - low, zoom=1.3)
    axis.locator_params(nbins=5)
    figure.legend(loc="upper center", ncols=2, fontsize="small", frameon=False)
    return figure


def radiographs(
    pictures: Sequence[np.ndarray],
    views: Sequence[View],
    titles: Sequence[str],
    *,
    landmarks: Sequence[Mapping[int, np.ndarray]] = (),
    overlays: Sequence[Mapping[int, np.ndarray]] = (),
    lines: Sequence[Mapping[str, np.ndarray]] = (),
    films: bool = False,
) -> Figure:
    """Radiographs side by side, in mm on the detector.

    `landmarks` are per picture level to (2,) row and column, drawn as named crosses; `overlays` level to a silhouette, (rows,
    columns) as binned by `bin_picture`, drawn as a named outline, beside which `AROUND_MM` of the picture are shown; `lines`
    name to (N, 2, 2), the ends of N lines, at most two names and "", which the legend leaves out. `films` are shown with
    `local_contrast`, other pictures by their values.
    """
    count = len(pictures)
    height = 8 if overlays else 5.6 if count < 3 else 4
    figure, axes = plt.subplots(1, count, figsize=(11, height), layout="constrained", squeeze=False)
    unit = "local contrast (standard deviations)" if films else "line integral of attenuation (no unit)"
    for n, (axis, picture, view) in enumerate(zip(axes[0], pictures, views, strict=True)):
        row_mm, column_mm = view.pixel_mm
        small, factor = bin_picture(picture)
        rows, columns = (n * factor - 0.5 for n in small.shape)
        box = (-column_mm / 2, columns * column_mm, rows * row_mm, -row_mm / 2)
        small = local_contrast(small, (row_mm * factor, column_mm * factor)) if films else small
        low, high = np.nanpercentile(small, (1, 99.7))
        shown = axis.imshow(small, cmap="gray", extent=box, vmin=low, vmax=high)
        figure.colorbar(shown, ax=axis, label=unit, shrink=0.8)
        axis.set(title=titles[n], xlabel="mm on the detector", ylabel="mm on the detector")
        for level, (row, column) in (landmarks[n] if landmarks else {}).items():
            place = np.array([column * column_mm, row * row_mm])
            axis.plot(*place, "+", ms=7, color=ORANGE, path_effects=_EDGED)
            axis.annotate(levels.name(level), place, (9, 0), textcoords="offset points", **_NAMED)
        silhouettes = overlays[n] if overlays else {}
        for level, silhouette in silhouettes.items():
            _outline(axis, silhouette, box, level_colours(np.array(level)))
            if silhouette.any():
                row, column = np.argwhere(silhouette).mean(axis=0) * factor
                axis.annotate(levels.name(level), (column * column_mm, row * row_mm), ha="center", **_NAMED)
        if silhouettes:
            seen = np.flatnonzero(np.any([shape.any(0) for shape in silhouettes.values()], axis=0)) * factor * column_mm
            axis.set_xlim(max(box[0], seen.min() - AROUND_MM), min(box[1], seen.max() + AROUND_MM))
        styles = iter(((YELLOW, 1.8), (PINK, 1.8)))
        for name, ends in (lines[n] if lines else {}).items():
            colour, width = next(styles) if name else ("w", 0.9)
            style: dict[str, Any] = {"color": colour, "lw": width, "path_effects": _EDGED if name else None}
            for number, line in enumerate(ends):
                label = "_" if number or not name else name
                axis.plot(line[:, 1] * column_mm, line[:, 0] * row_mm, label=label, **style)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(loc="lower right", fontsize="small")
        _mark_sides(axis, *_SIDES.get(view.name, ("", "")), "head", "feet")
    return figure


def contact_sheet(samples: Samples) -> Figure:
    """Every sample of a subject: AP patch above lateral patch, with the target's outline and the landmark."""
    silhouettes = [np.any(samples.targets(), axis=axis) for axis in (2, 1)]
    columns, rows = min(7, len(samples)), -(-len(samples) // 7)
    size = (max(1.5 * columns, 6.5), 3.2 * rows + 0.3)
    figure, axes = plt.subplots(2 * rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for n in range(len(samples)):
        for view, name in enumerate(("AP", "lateral")):
            axis = axes[2 * (n // columns) + view, n % columns]
            axis.imshow(samples.pictures[n, view][MIDDLE, MIDDLE], cmap="gray", extent=_PATCH_BOX)
            _outline(axis, silhouettes[view][n][::-1, ::-1].T, _PATCH_BOX, "#56B4E9")
            axis.plot(0, 0, "+", color=ORANGE, ms=6)
            axis.set_title(f"{levels.name(samples.levels[n])} {name}", fontsize="small", pad=2)
    side = SIZE * SPACING_MM
    figure.suptitle(f"{samples.subject}: patches of {side:g} mm, the vertebra's outline (blue), its landmark (orange)")
    return figure


def batch_sheet(images: np.ndarray, targets: np.ndarray) -> Figure:
    """A training batch, images (N, 2, 4, 64, 64) and targets (N, 64, 64, 64): AP above lateral patch, with outlines."""
    figure, axes = plt.subplots(2, len(images), figsize=(1.6 * len(images), 3.9), layout="constrained", squeeze=False)
    for n, (image, target) in enumerate(zip(images, targets, strict=True)):
        for view, (name, axis_away) in enumerate((("AP", 1), ("lateral", 0))):
            axis = axes[view, n]
            axis.imshow(image[view, 0], cmap="gray", extent=_PATCH_BOX, vmin=-3, vmax=3)
            _outline(axis, target.max(axis_away)[::-1, ::-1].T, _PATCH_BOX, "#56B4E9")
            _outline(axis, image[view, 1], _PATCH_BOX, ORANGE)
            axis.set(title=name, xticks=[], yticks=[])
    figure.suptitle("patch (grey: ±3 standard deviations), the target's outline (blue), the centroid map (orange)")
    return figure


def spine_views(labels: Volume) -> Figure:
    """A spine's label volume, isotropic, coloured by level, seen from the front, the left side and the back."""
    # A ray may end a little before the voxel it meets, so the labels reach one voxel further.
    grown = np.where(labels.data > 0, labels.data, ndimage.maximum_filter(labels.data, 3))
    figure, axes = plt.subplots(1, 3, figsize=(11, 7), layout="constrained")
    _draw_sides(axes, labels.data > 0, grown, level_colours, labels.spacing_mm[0])
    for axis in axes:
        for n in levels.in_order(set(np.unique(labels.data).tolist()) - {0}):
            down = (labels.data.shape[2] - 1 - np.argwhere(labels.data == n)[:, 2].mean()) * labels.spacing_mm[2]
            style: dict[str, Any] = {"ha": "right", "transform": axis.get_yaxis_transform()}
            axis.text(0.98, down, levels.name(n), color=level_colours(np.array(n)), **style)
    return figure


def surface_sd_views(labels: Volume, coloured: Mapping[int, trimesh.Trimesh], calibrated: bool) -> Figure:
    """A spine (`assemble_spine`) coloured by its surfaces' expected error (`colour_by_sd`), seen from three sides.

    The colour bar says whether the errors are `calibrated`.
    """
    sd, colours = _sd_at_voxels(labels, coloured), ScalarMappable(Normalize(0, SD_LIMIT_MM), _SD_COLOURS)
    figure, axes = plt.subplots(1, 3, figsize=(11, 7), layout="constrained")
    _draw_sides(axes, labels.data > 0, sd, colours.to_rgba, labels.spacing_mm[0], ambient=0.3)
    source = "calibrated on other people" if calibrated else "the network's own, not calibrated"
    bar = figure.colorbar(colours, ax=axes, extend="max", shrink=0.7)
    bar.set_label(f"expected distance from the true surface, RMS (mm)\n{source}")
    return figure


def errors_on_surface(cases: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> Figure:
    """Predicted vertebrae from three sides, coloured by their distance from the truth.

    Each case is a title, a probability (64, 64, 64) and the truth (64, 64, 64) bool.
    """
    colours = ScalarMappable(Normalize(-ERROR_LIMIT_MM, ERROR_LIMIT_MM), "RdBu_r")
    figure, axes = plt.subplots(len(cases), 3, figsize=(9.5, 2.8 * len(cases)), layout="constrained", squeeze=False)
    for row, (title, probability, truth) in zip(axes, cases, strict=True):
        shape = probability > 0.5
        rim = ndimage.binary_dilation(shape, iterations=2) & ~ndimage.binary_erosion(shape, iterations=2)
        distance = np.zeros(shape.shape, np.float32)
        affine = np.diag([SPACING_MM] * 3 + [1.0])
        distance[rim] = mesh.signed_distance_at(np.argwhere(rim) * SPACING_MM, truth, affine)
        _draw_sides(row, probability, distance, colours.to_rgba, SPACING_MM, scale=2)
        row[0].set_ylabel(f"{title}\nmm")
    label = "outside (+) or inside (-) the true surface (mm)"
    figure.colorbar(colours, ax=axes, label=label, shrink=0.7, extend="both")
    return figure


def colour_by_sd(surface: trimesh.Trimesh, sd_mm: np.ndarray) -> trimesh.Trimesh:
    """A copy of a surface, coloured by the expected error (N,) in mm at its vertices, which it keeps as `SD_MM`."""
    import trimesh

    coloured = surface.copy()
    colours = (255 * _SD_COLOURS(np.asarray(sd_mm) / SD_LIMIT_MM)).round().astype(np.uint8)
    coloured.visual = trimesh.visual.ColorVisuals(coloured, vertex_colors=colours)
    coloured.vertex_attributes[SD_MM] = np.asarray(sd_mm, np.float32)
    return coloured


def _draw_sides(
    axes: Sequence[Axes],
    shape: np.ndarray,
    values: np.ndarray,
    colours: Callable[[np.ndarray], np.ndarray],
    voxel_mm: float,
    *,
    scale: int = 1,
    ambient: float = 0.0,
) -> None:
    """Draws a shape from three sides in mm, cropped, with the colours of the values at its surface; see `shade`."""
    pixel_mm = voxel_mm / scale
    for axis, (side, turn_deg, left, right) in zip(axes, _SEEN_FROM, strict=True):
        brightness, seen = shade(shape, values, turn_deg=turn_deg, scale=scale)
        lit = ambient + (1 - ambient) * brightness[..., None]
        picture = np.where(np.isfinite(lit), lit * colours(np.nan_to_num(seen))[..., :3], 1.0)
        height, width = (n * pixel_mm for n in picture.shape[:2])
        axis.imshow(picture, extent=(-width / 2, width / 2, height, 0))
        filled = np.isfinite(brightness)
        if filled.any():
            rows, columns = (np.flatnonzero(filled.any(axis=n)) * pixel_mm for n in (1, 0))
            axis.set(xlim=(columns[0] - 15 - width / 2, columns[-1] + 15 - width / 2), ylim=(rows[-1] + 5, rows[0] - 5))
        axis.set(title=f"seen from the {side}", xlabel=f"{left}     mm     {right}", ylabel="mm")


def _sd_at_voxels(labels: Volume, coloured: Mapping[int, trimesh.Trimesh]) -> np.ndarray:
    """(X, Y, Z) the expected error near each vertebra's surface, from the nearest vertex."""
    field = np.zeros(labels.data.shape, np.float32)
    # A ray ends up to a voxel and a half beside the surface.
    grown = np.where(labels.data > 0, labels.data, ndimage.maximum_filter(labels.data, 5))
    rim = (grown > 0) & ~ndimage.binary_erosion(labels.data > 0, iterations=2)
    for level, surface in coloured.items():
        voxels = np.argwhere(rim & (grown == level))
        nearest = KDTree(surface.vertices).query(labels.world(voxels))[1]
        field[tuple(voxels.T)] = np.asarray(surface.vertex_attributes[SD_MM])[nearest]
    return field


def _outline(axis: Axes, shape: np.ndarray, box: tuple[float, float, float, float], colour: Any) -> None:
    """Draws the contour at 0.5 of a picture that is shown with `imshow(extent=box)`."""
    found = ndimage.find_objects((shape > 0.5).astype(np.uint8))
    if not found:
        return
    # A figure keeps three float64 per pixel of each contour's picture, so the picture is cropped to the shape.
    rows, columns = (
        slice(max(side.start - 1, 0), min(side.stop + 1, n)) for side, n in zip(found[0], shape.shape, strict=True)
    )
    x, y = np.linspace(*box[:2], shape.shape[1] + 1), np.linspace(box[3], box[2], shape.shape[0] + 1)
    extent = (x[columns.start], x[columns.stop], y[rows.stop], y[rows.start])
    line = axis.contour(shape[rows, columns], [0.5], colors=[colour], linewidths=0.9, extent=extent, origin="upper")
    line.set_path_effects(_EDGED)


def _mark_sides(axis: Axes, left: str, right: str, top: str = "", bottom: str = "") -> None:
    """Writes inside a picture what each of its sides shows."""
    for x, y, text in ((0.02, 0.5, left), (0.98, 0.5, right), (0.02, 0.98, top), (0.02, 0.02, bottom)):
        style: dict[str, Any] = {"ha": "right" if x > 0.5 else "left", "weight": "bold" if y == 0.5 else "normal"}
        style["va"] = {0.5: "center", 0.98: "top"}.get(y, "bottom")
        axis.text(x, y, text, color="#56B4E9", transform=axis.transAxes, path_effects=_EDGED, **style)
