"""Simple bodies on a canvas: their volumes by formula, edges as soft as a voxel, and noise with a known spread."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.transform import Rotation

from transvert.imaging.volume import Volume
from transvert.phantom import shapes


def canvas(spacing_mm: float = 1.0) -> Volume:
    """80 mm a side around the origin, zero."""
    return shapes.blank(np.full(3, -40.0), np.full(3, 40.0), spacing_mm, 0.0)


def volume_mm3(painted: Volume) -> float:
    """Of what was painted with HU 1."""
    return float(painted.data.sum(dtype=float) * painted.spacing_mm.prod())


def test_a_blank_canvas_covers_its_box_and_a_block_ends_with_the_canvas() -> None:
    made = shapes.blank(np.array([1.0, 2.0, 3.0]), np.array([11.0, 7.0, 6.5]), 2.0, -1000.0)
    assert made.data.shape == (5, 3, 2) and made.data.dtype == np.float32 and (made.data == -1000).all()
    assert_allclose(made.corners().min(0), [1, 2, 3])
    assert_allclose(made.corners().max(0), [11, 8, 7])
    assert_allclose(shapes.axes_mm(made)[1], [3, 5, 7])
    made = canvas(2.0)
    block = shapes.box_of(made, np.array([-10.0, -100.0, 35.0]), np.array([10.0, -37.0, 99.0]))
    x, y, z = shapes.grid_mm(made, block)
    assert x.shape[1:] == (1, 1) and y.shape[::2] == (1, 1) and z.shape[:2] == (1, 1)
    assert x.min() <= -10 < -8 < x.max() and -15 < x.min() and x.max() < 15
    assert (y.min(), z.max()) == (-39, 39) and y.max() >= -37 and z.min() <= 35
    assert made.data[shapes.box_of(made, np.full(3, 90.0), np.full(3, 95.0))].size == 0


@pytest.mark.parametrize("spacing_mm", [1.0, 1.7])
@pytest.mark.parametrize("turn", [None, Rotation.from_euler("xyz", (20, 35, 50), degrees=True).as_matrix()])
def test_an_ellipsoid_has_the_formula_s_volume_middle_and_axes(spacing_mm: float, turn: np.ndarray | None) -> None:
    made, half, centre = canvas(spacing_mm), (8.0, 12.0, 17.0), np.array([3.3, -4.1, 5.2])
    shapes.ellipsoid(made, centre, half, 1.0, turn)
    assert volume_mm3(made) == pytest.approx(4 / 3 * np.pi * np.prod(half), rel=0.012 * spacing_mm)
    where = made.world(np.argwhere(made.data > 0.5))
    assert_allclose(where.mean(0), centre, atol=0.15)
    # A solid ellipsoid's variance along an axis is a fifth of its half axis squared.
    axes = np.eye(3) if turn is None else turn
    assert_allclose(np.var((where - centre) @ axes, axis=0), np.array(half) ** 2 / 5, rtol=0.05)


def test_a_straight_tube_is_a_flat_cylinder_with_round_ends() -> None:
    made = canvas()
    # Where segments meet, their soft edges add up.
    shapes.tube(made, np.linspace(-20, 20, 5)[:, None] * np.array([0, 0, 1.0]), (10.0, 4.0, 7.0), 1.0)
    assert volume_mm3(made) == pytest.approx(np.pi * 10 * 4 * (40 + 4 / 3 * 7), rel=0.03)
    where = made.world(np.argwhere(made.data > 0.5))
    assert_allclose(where.max(0), [10, 4, 27], atol=0.6)
    assert_allclose(where.mean(0), 0, atol=0.1)


def test_a_bent_tube_follows_its_path() -> None:
    made, radius, bow = canvas(), 4.0, 25.0
    turn = np.linspace(0, np.pi / 2, 20)
    path = bow * np.stack([np.cos(turn), np.sin(turn), 0 * turn], axis=1)
    shapes.tube(made, path, (radius,) * 3, 1.0)
    assert volume_mm3(made) == pytest.approx(np.pi * radius**2 * (bow * np.pi / 2 + 4 / 3 * radius), rel=0.09)
    where = made.world(np.argwhere(made.data > 0.5))
    assert np.abs(np.hypot(np.hypot(where[:, 0], where[:, 1]) - bow, where[:, 2]))[where[:, :2].min(1) > 0].max() < 4.6


def test_a_tube_beyond_the_canvas_or_over_denser_tissue_leaves_it_as_it_was() -> None:
    made = canvas()
    made.data[:, :, 40:] = 100
    before = made.data.copy()
    shapes.tube(made, np.array([[90.0, 0, 0], [120, 0, 0]]), (5.0,) * 3, 1.0)
    assert_array_equal(made.data, before)
    shapes.tube(made, np.array([[0.0, 0, -20], [0, 0, 20]]), (5.0,) * 3, 50.0, below_hu=60.0)
    assert_array_equal(made.data[:, :, 40:], before[:, :, 40:])
    assert made.data[40, 40, 30] == 50


def test_an_edge_fades_over_one_voxel_and_blending_covers_by_weight() -> None:
    weights = shapes.edge(1 + np.array([-2.0, -1.0, 0.0, 0.5, 1.0]) / 10, 10.0, 2.0)
    assert_allclose(weights, [1, 1, 0.5, 0.25, 0], atol=1e-6)
    block = np.full(5, 10.0)
    shapes.blend(block, weights, 50.0)
    assert_allclose(block, [50, 50, 30, 20, 10], atol=1e-4)


def test_a_bend_goes_through_its_points_in_even_steps() -> None:
    points = np.array([[0.0, 0, 0], [10, 5, 0], [20, 0, 5], [30, 10, 0]])
    path = shapes.smooth_curve(points, 0.5)
    assert_allclose(path[[0, -1]], points[[0, -1]])
    for point in points:
        assert np.linalg.norm(path - point, axis=1).min() < 0.3
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    assert steps.mean() == pytest.approx(0.5, rel=0.3) and steps.max() < 3 * 0.5
    line = shapes.smooth_curve(points[:2], 3.0)
    assert_allclose(np.cross(line - line[0], points[1]), 0, atol=1e-9)
    assert len(line) == round(np.hypot(10, 5) / 3) + 1


def test_an_oval_is_an_ellipse_or_squarer() -> None:
    half = np.array([30.0, 20.0])
    turn = np.linspace(0, 2 * np.pi, 17)
    on = half * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    assert_allclose(shapes.oval_radius(on[:, 0], on[:, 1], half, 2.0), 1, rtol=1e-6)
    for power in (2.0, 1.0, 0.0):
        assert_allclose(shapes.oval_radius(np.array([30.0, 0]), np.array([0, -20.0]), half, power), 1, rtol=1e-6)
    # A square has a radius of 1 at its corner, where an ellipse's is the root of 2.
    corner = [float(shapes.oval_radius(*half[:, None], half, power)[0]) for power in (2.0, 1.0, 0.0)]
    assert_allclose(corner, [2**0.5, 3**0.25, 2**0.25], rtol=1e-6)


def test_a_slice_takes_ovals_where_they_are() -> None:
    x, y = np.arange(-40.0, 41)[:, None], np.arange(-30.0, 31)[None, :]
    level = shapes.Slice(np.zeros((81, 61)), x, y, 1.0)
    block, weight = level.oval(np.array([5.0, -3.0]), np.array([15.0, 9.0]))
    assert weight.sum() == pytest.approx(np.pi * 15 * 9, rel=0.01) and weight.shape == level.picture[block].shape
    level.paint(np.array([5.0, -3.0]), np.array([15.0, 9.0]), 7.0)
    assert level.picture.sum() == pytest.approx(7 * np.pi * 15 * 9, rel=0.01)
    level.paint(np.array([500.0, 0.0]), np.array([15.0, 9.0]), 9.0)
    assert level.picture.max() == 7


def test_an_ellipsoid_s_sections_shrink_towards_its_ends() -> None:
    body = shapes.Ellipsoid(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 5.0]))
    assert_allclose([body.section(3.0), body.section(6.0)], [[10, 20], [8, 16]])
    assert body.top == 8 and body.section(8.0) is None and body.section(-2.5) is None


@pytest.mark.parametrize(("shape", "scale"), [((90, 80, 70), 4.0), ((5, 7, 9), 20.0)])
def test_noise_has_unit_spread_and_the_wanted_grain(shape: tuple[int, ...], scale: float) -> None:
    noise = shapes.Noise(shape, scale, np.random.default_rng(0))
    whole = noise.whole()
    assert whole.shape == shape and whole.dtype == np.float32
    for k in (0, shape[2] - 1):
        assert_allclose(noise.slice(k), whole[..., k], atol=1e-5)
    if shape[0] > 20:
        assert abs(whole.mean()) < 0.12 and whole.std() == pytest.approx(1, abs=0.1)
        near = np.corrcoef(whole[1:].ravel(), whole[:-1].ravel())[0, 1]
        far = np.corrcoef(whole[int(3 * scale) :].ravel(), whole[: -int(3 * scale)].ravel())[0, 1]
        assert near > 0.85 and abs(far) < 0.2
