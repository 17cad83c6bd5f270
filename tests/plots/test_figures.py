"""Figures: the colours of expected errors, outlines of silhouettes, and sides of the patient."""

from __future__ import annotations

import tracemalloc

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib import colormaps
from numpy.testing import assert_allclose

from transvert.clinical import vertebra
from transvert.clinical.vertebra import Vertebra
from transvert.drr import geometry
from transvert.imaging import mesh
from transvert.plots import figures

SPACING = 1.5
T12, L1 = 19, 20
BOX = (-0.3, 59.7, 39.8, -0.2)
"""Left, right, bottom, top of 80 rows and 100 columns, mm."""


def _ball(level: int, z: float) -> Vertebra:
    points = (np.indices((32,) * 3) - 15.5) * SPACING
    share = np.clip((12 - np.linalg.norm(points, axis=0)) / SPACING + 0.5, 0, 1)
    return Vertebra(level, np.array([5.0, -3.0, z]), share.astype(np.float32), SPACING)


def _shape(rows: slice, columns: slice) -> np.ndarray:
    picture = np.zeros((80, 100), bool)
    picture[rows, columns] = True
    picture[rows.start, columns.start] = False  # Asymmetric.
    return picture


def test_a_coloured_surface_keeps_its_numbers() -> None:
    ball = _ball(T12, 0.0)
    surface = mesh.extract_surface(ball.probability, ball.affine)
    sd = np.linspace(0, 8, len(surface.vertices))
    coloured = figures.colour_by_sd(surface, sd)
    assert_allclose(coloured.vertex_attributes[figures.SD_MM], sd, rtol=1e-6)
    expected = 255 * colormaps["cividis"](np.minimum(sd / figures.SD_LIMIT_MM, 1.0))
    assert_allclose(coloured.visual.vertex_colors, expected, atol=1)
    assert figures.SD_MM not in surface.vertex_attributes


def test_each_vertebra_has_the_colour_of_its_error_from_all_sides() -> None:
    values = {T12: 1.0, L1: 4.0}
    balls = [_ball(T12, 40.0), _ball(L1, 0.0)]
    coloured = {}
    for ball in balls:
        surface = mesh.extract_surface(ball.probability, ball.affine)
        coloured[ball.level] = figures.colour_by_sd(surface, np.full(len(surface.vertices), values[ball.level]))
    figure = figures.surface_sd_views(vertebra.assemble_spine(balls), coloured, False)
    *pictures, bar = figure.axes
    assert [axis.get_title() for axis in pictures] == [
        f"seen from the {side}" for side in ("front", "left side", "back")
    ]
    assert {axis.get_ylabel() for axis in pictures} == {"mm"}
    assert "RMS (mm)" in bar.get_ylabel() and "not calibrated" in bar.get_ylabel()
    for axis in pictures:
        shown = np.asarray(axis.images[0].get_array())
        middle = int(np.flatnonzero((shown < 1).any(axis=(1, 2))).mean())
        for part, value in ((shown[:middle], 1.0), (shown[middle:], 4.0)):
            pixels = part[(part < 1).any(axis=2)]
            true = np.array(colormaps["cividis"](value / figures.SD_LIMIT_MM)[:3])
            # Shading darkens a colour and keeps its hue.
            hues = pixels / pixels.sum(1, keepdims=True)
            assert_allclose(hues, np.tile(true / true.sum(), (len(pixels), 1)), atol=0.01)
    plt.close(figure)


def test_a_spine_names_its_levels_and_the_sides() -> None:
    figure = figures.spine_views(vertebra.assemble_spine([_ball(T12, 40.0), _ball(L1, 0.0)]))
    for axis, sides in zip(figure.axes, ("R L", "front back", "L R"), strict=True):
        upper, lower = axis.texts
        assert (upper.get_text(), lower.get_text()) == ("T12", "L1")
        assert upper.get_position()[1] < lower.get_position()[1]  # The y axis runs down.
        assert axis.get_xlabel().replace("mm", " ").split() == sides.split()
    plt.close(figure)


def test_an_error_is_red_outside_and_blue_inside() -> None:
    large = _ball(L1, 0.0).probability
    truth, narrow = large > 0.5, np.zeros_like(large)
    narrow[2:-2, 2:-2, 2:-2] = np.clip(1.5 * large[2:-2, 2:-2, 2:-2] - 0.9, 0, 1)
    wide = np.clip(1.5 * np.roll(truth, 2, axis=1) + truth, 0, 1).astype(np.float32)
    figure = figures.errors_on_surface([("large", wide, truth), ("small", narrow, truth)])
    for axis, strongest in ((figure.axes[0], 0), (figure.axes[3], 2)):
        shown = np.asarray(axis.images[0].get_array())
        pixels = shown[(shown < 1).any(axis=2)].mean(0)
        assert pixels.argmax() == strongest
    plt.close(figure)


@pytest.mark.parametrize(
    "shape",
    [_shape(slice(10, 30), slice(40, 45)), _shape(slice(0, 12), slice(70, 100)), _shape(slice(0, 80), slice(0, 100))],
    ids=["inside", "at the rim", "everywhere"],
)
def test_an_outline_lies_where_the_contour_of_the_whole_picture_does(shape: np.ndarray) -> None:
    figure, axes = plt.subplots(1, 2)
    figures._outline(axes[0], shape, BOX, "r")
    whole = axes[1].contour(shape, [0.5], extent=BOX, origin="upper")
    (found,) = axes[0].collections
    expected = [part for part in whole.allsegs[0] if len(part)]
    parts = [part for part in found.allsegs[0] if len(part)]
    assert len(parts) == len(expected) > 0
    for part, other in zip(parts, expected, strict=True):
        assert_allclose(np.sort(part, axis=0), np.sort(other, axis=0), atol=1e-9)
    plt.close(figure)


def test_local_contrast_shows_a_faint_square_as_well_in_bright_as_in_dark_parts() -> None:
    film = np.tile(np.repeat([0.0, 1000.0], 200).astype(np.float32), (300, 1))
    film[:, :200] += np.linspace(0, 30, 300)[:, None]  # Slow shades are no contrast.
    noise = np.random.default_rng(0).normal(0, 1, film.shape).astype(np.float32)
    for column in (80, 300):
        film[140:160, column : column + 20] += 10
    shown = figures.local_contrast(film + noise, (1.0, 1.0))
    inside = [shown[145:155, column + 5 : column + 15].mean() for column in (80, 300)]
    beside = [shown[165:185, column : column + 20].mean() for column in (80, 300)]
    plain = np.ptp(np.percentile(film, (1, 99.7)))
    for square, other in zip(inside, beside, strict=True):
        assert (square - other) / np.ptp(np.percentile(shown, (1, 99.7))) > 10 * 10 / plain
    assert inside[0] == pytest.approx(inside[1], rel=0.3)
    # Nothing reaches out of what was not exposed, whose rim is no edge.
    film[:, 390:] = np.nan
    cut = figures.local_contrast(film + noise, (1.0, 1.0))
    assert np.isnan(cut[:, 390:]).all() and np.isfinite(cut[:, :390]).all()
    assert np.abs(cut[:, 380:390]).mean() < 3 and not figures.local_contrast(np.ones((9, 9)), (1.0, 1.0)).any()


def test_a_figure_of_films_keeps_no_picture_for_each_outline() -> None:
    film = geometry.named_view("ap", np.zeros(3), (600, 500), 0.5, cone=True)
    picture = np.random.default_rng(0).random((600, 500), np.float32)
    overlays = {level: np.zeros((600, 500), bool) for level in range(8, 20)}
    for level, silhouette in overlays.items():
        silhouette[40 * level - 300 : 40 * level - 270, 200:250] = True
    overlays[20] = np.zeros((600, 500), bool)  # An empty silhouette has no outline.
    plt.close(figures.radiographs([picture], [film], ["first"], overlays=[overlays]))  # Whatever the first one imports.
    tracemalloc.start()
    lines = {"": np.zeros((3, 2, 2)), "Cobb angle T1-T5: 12°": np.array([[[9.0, 8.0], [7.0, 90.0]]] * 2)}
    figure = figures.radiographs([picture], [film], ["film"], overlays=[overlays], lines=[lines], films=True)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 4 * picture.nbytes  # The picture itself, as matplotlib keeps it, and lines.
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert texts >= {"R", "L", "head", "feet", "T1", "T12"} and "L1" not in texts
    legend = figure.axes[0].get_legend()
    assert legend and [text.get_text() for text in legend.get_texts()] == ["Cobb angle T1-T5: 12°"]
    assert len(figure.axes[0].lines) == 5
    assert [line.get_xydata().tolist() for line in figure.axes[0].lines[3:]] == [[[4.0, 4.5], [45.0, 3.5]]] * 2
    plt.close(figure)


def test_a_large_picture_is_binned() -> None:
    picture = np.arange(35.0).reshape(5, 7)
    small, factor = figures.bin_picture(picture, 3)
    assert factor == 3 and small.shape == (2, 3)
    assert small[0, 0] == picture[:3, :3].mean() and small[1, 2] == np.mean([27, 27, 27, 34, 34, 34, 34, 34, 34])
    assert figures.bin_picture(picture, 7) == (picture, 1)
