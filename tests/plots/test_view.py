"""Figures: the outline of a silhouette lies where the whole picture's contour would, and is all that a figure keeps."""

from __future__ import annotations

import tracemalloc

import matplotlib.pyplot as plt
import numpy as np
import pytest
from numpy.testing import assert_allclose

from transvert.drr import geometry
from transvert.plots import figures

BOX = (-0.3, 59.7, 39.8, -0.2)
"""Left, right, bottom, top of 80 rows and 100 columns, mm."""


def _shape(rows: slice, columns: slice) -> np.ndarray:
    picture = np.zeros((80, 100), bool)
    picture[rows, columns] = True
    picture[rows.start, columns.start] = False  # A corner less, so that no mirror image is the same.
    return picture


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


def test_a_grey_picture_is_outlined_at_a_half_and_an_empty_one_not_at_all() -> None:
    figure, axis = plt.subplots()
    figures._outline(axis, np.zeros((80, 100)), BOX, "r")
    assert not axis.collections
    rows, columns = np.indices((80, 100))
    figures._outline(axis, np.clip(1 - np.hypot(rows - 30, columns - 60) / 20, 0, 1), BOX, "r")
    (found,) = axis.collections
    across, down = np.concatenate(found.allsegs[0]).T
    radius = np.hypot((down - BOX[3]) / 0.5 - 0.5 - 30, (across - BOX[0]) / 0.6 - 0.5 - 60)
    assert_allclose(radius, 10, atol=0.3)
    plt.close(figure)


def test_a_figure_of_films_keeps_no_picture_for_each_outline() -> None:
    film = geometry.named_view("ap", np.zeros(3), (600, 500), 0.5, cone=True)
    picture = np.random.default_rng(0).random((600, 500), np.float32)
    overlays = {}
    for level in range(8, 20):
        overlays[level] = np.zeros((600, 500), bool)
        overlays[level][40 * level - 300 : 40 * level - 270, 200:250] = True
    plt.close(
        figures.radiographs([picture], [film], ["first"], overlays=[overlays])
    )  # Whatever the first time imports.
    tracemalloc.start()
    figure = figures.radiographs([picture], [film], ["film"], overlays=[overlays])
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    plt.close(figure)
    assert kept < 4 * picture.nbytes  # The picture itself, as matplotlib keeps it, and lines.
