"""Views from projection matrices: the same rays and pixels as the view that the matrix came from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from transvert.drr.geometry import VIEW_NAMES, View, named_view, projection_matrix, triangulate, view_from_matrix
from transvert.io import InputError

ISOCENTRE = np.array([10.0, -20.0, 300.0])
POINTS = ISOCENTRE + np.random.default_rng(0).uniform(-250, 250, (50, 3))


def view(name: str, **options: object) -> View:
    return named_view(name, ISOCENTRE, (401, 301), (0.8, 0.6), principal_point=(190, 160), **options)  # type: ignore[arg-type]


def leaning(v: View) -> View:
    """The same detector with skewed pixels, turned against the rays."""
    return replace(
        v, row_step=v.row_step + 0.1 * v.column_step + 0.2 * v.direction, column_step=v.column_step - 0.1 * v.direction
    )


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Row and column by the textbook."""
    column, row, factor = matrix @ np.append(points, np.ones((len(points), 1)), axis=1).T
    return np.stack([row / factor, column / factor], axis=1)


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("cone", [False, True])
@pytest.mark.parametrize("name", VIEW_NAMES)
def test_a_matrix_projects_like_its_view(name: str, cone: bool, lean: bool) -> None:
    v = view(name, cone=cone, turn_deg=20, tilt_deg=10)
    v = leaning(v) if lean else v
    assert apply(projection_matrix(v), POINTS) == pytest.approx(v.project(POINTS), abs=1e-9)


def test_the_factor_is_the_depth_in_mm() -> None:
    v = view("ap", cone=True)
    assert projection_matrix(v)[2] @ [*ISOCENTRE, 1] == pytest.approx(1500)
    assert projection_matrix(view("ap"))[2] == pytest.approx([0, 0, 0, 1])


@pytest.mark.parametrize("factor", [1, 0.03])
@pytest.mark.parametrize("cone", [False, True])
@pytest.mark.parametrize("name", VIEW_NAMES)
def test_a_view_comes_back_from_its_matrix(name: str, cone: bool, factor: float) -> None:
    v = view(name, cone=cone, turn_deg=20, tilt_deg=10)
    again = view_from_matrix(factor * projection_matrix(v), v.shape, 0.6)
    assert again.project(POINTS) == pytest.approx(v.project(POINTS), abs=1e-9)
    assert again.pixel_mm == pytest.approx(v.pixel_mm)
    if cone:
        assert again.source == pytest.approx(v.source)
        assert again.corner == pytest.approx(v.corner)
        assert again.direction == pytest.approx(v.direction)
    else:  # A parallel matrix knows the line, not from which end the rays come.
        assert abs(again.direction @ v.direction) == pytest.approx(1)


def test_two_matrices_triangulate() -> None:
    first, second = (
        view_from_matrix(projection_matrix(leaning(view(n, cone=True))), (401, 301), 0.6 * 1.005**0.5)
        for n in ("ap", "lateral")
    )
    for point in POINTS:
        found, miss = triangulate(first, first.project(point), second, second.project(point))
        assert np.linalg.norm(found - point) < 1e-3
        assert miss < 1e-6


def changed(row: int, values: list[float], cone: bool = True) -> np.ndarray:
    matrix = projection_matrix(view("ap", cone=cone))
    matrix[row] = values
    return matrix


@pytest.mark.parametrize(
    ("matrix", "pixel_mm", "message"),
    [
        (np.eye(4), 0.6, r"shape \(4, 4\); give 3 x 4"),
        (np.full((3, 4), np.nan), 0.6, "give 3 x 4 finite"),
        (np.zeros((3, 4)), 0.6, "degenerate"),
        (changed(2, [0, 0, 0, 0]), 0.6, "degenerate"),
        (changed(0, [0, 0, 1, 5]), 0.6, "degenerate"),
        (changed(0, [0, 0, 1, 5], cone=False), 0.6, "degenerate"),
        (changed(1, [0, 0, 0, 5]), 0.6, "degenerate"),
        (projection_matrix(view("ap", cone=True)), 0.0, "must be positive"),
        (projection_matrix(view("ap", cone=True)), np.nan, "must be positive"),
        (projection_matrix(view("ap")), 0.5, "has pixels of 0.6 mm, not 0.5 mm"),
    ],
)
def test_bad_matrices(matrix: np.ndarray, pixel_mm: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        view_from_matrix(matrix, (401, 301), pixel_mm)
