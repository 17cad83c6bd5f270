"""Bending and projecting: known points land where geometry says, and the compiled loops do what torch does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from transvert.model import warp
from transvert.model.warp import OTHER, OWN

WIDE, SIZE = 30, 24
NOMINAL = torch.tensor([0.0, 0.0, 1.0]).repeat(1, 2, 1)


def _views(turn_deg: float = 0.0, tilt_deg: float = 0.0, size: float = 1.0) -> torch.Tensor:
    """One sample's two views, both alike."""
    return torch.tensor([np.deg2rad(turn_deg), np.deg2rad(tilt_deg), size], dtype=torch.float32).repeat(1, 2, 1)


def _straight(coarse: int = 5) -> torch.Tensor:
    """(1, 3, C, C, C) the grid of the middle of the wide cube, unbent."""
    steps = torch.linspace(-(SIZE - 1) / 2, (SIZE - 1) / 2, coarse)
    return torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"))[None]


def _scene(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random HU, two boxes of parts, and strongly bent grids that leave the cube in places."""
    random = np.random.default_rng(0)
    hu = torch.from_numpy(random.integers(-1024, 4000, (batch, WIDE, WIDE, WIDE)).astype(np.int16))
    parts = torch.zeros(batch, WIDE, WIDE, WIDE, dtype=torch.uint8)
    parts[:, 8:20, 9:22, 10:16], parts[:, 7:21, 9:22, 16:26] = OWN, OTHER
    bends = torch.from_numpy(random.normal(0, 1.5, (batch, 3, 5, 5, 5)).astype(np.float32))
    return hu, parts, _straight() * 1.2 + bends


def _ball(centre: tuple[float, float, float], size: int = 64, sigma: float = 2.5) -> torch.Tensor:
    """(1, size, size, size) a Gaussian ball, its centre in voxels from the middle."""
    steps = np.arange(size) - (size - 1) / 2
    x, y, z = (np.exp(-0.5 * ((steps - c) / sigma) ** 2) for c in centre)
    return torch.from_numpy((x[:, None, None] * y[:, None] * z).astype(np.float32))[None]


def _place(picture: torch.Tensor) -> tuple[float, float]:
    """A picture's centre of mass, (beside, up) from the middle; columns run against beside, rows against up."""
    values = picture.numpy().astype(float)
    steps = (values.shape[0] - 1) / 2 - np.arange(values.shape[0])
    return (values.sum(0) @ steps) / values.sum(), (values.sum(1) @ steps) / values.sum()


# Bending


def test_a_straight_grid_cuts_the_middle_out() -> None:
    hu, parts, _ = _scene()
    density, found = warp.elastic_deform(hu, parts, _straight().repeat(2, 1, 1, 1, 1), SIZE)
    rim = (WIDE - SIZE) // 2
    middle = (slice(None), *(slice(rim, rim + SIZE),) * 3)
    assert_allclose(density, np.maximum(0, 1 + hu[middle].numpy() / 1000), atol=1e-4)
    assert_array_equal(found, parts[middle])


def test_a_ramp_is_read_exactly_between_voxels_and_goes_on_at_the_rim() -> None:
    steps = np.arange(WIDE) - (WIDE - 1) / 2
    ramp = (40 * steps[:, None, None] + 20 * steps[:, None] - 10 * steps).astype(np.int16)  # 5 is lost at the halves.
    hu = torch.from_numpy(ramp)[None]
    moved = _straight() + torch.tensor([0.5, -0.25, 2.75])[:, None, None, None]
    density, _ = warp.elastic_deform(hu, torch.zeros_like(hu, dtype=torch.uint8), moved, SIZE)
    x, y, z = np.clip(moved[0].numpy(), steps[0], steps[-1])
    # The coarse grid's points that are voxels of the new cube too are its corners.
    assert_allclose(density[0, ::23, ::23, ::23], 1 + (40 * x + 20 * y - 10 * z)[::4, ::4, ::4] / 1000, atol=1e-3)
    x = np.linspace(float(moved[0, 0, 0, 0, 0]), float(moved[0, 0, -1, 0, 0]), SIZE)
    y, z = (float(moved[0, axis, 0, 0, 0]) for axis in (1, 2))
    assert_allclose(density[0, :, 0, 0], 1 + (40 * x + 20 * y - 10 * z) / 1000, atol=1e-3)
    far = _straight() + 100.0
    outer, _ = warp.elastic_deform(hu, torch.zeros_like(hu, dtype=torch.uint8), far, SIZE)
    assert_allclose(outer, 1 + ramp[-1, -1, -1] / 1000, atol=1e-4)


def test_a_part_is_what_fills_more_than_half_of_a_voxel() -> None:
    hu = torch.zeros(1, WIDE, WIDE, WIDE, dtype=torch.int16)
    parts = torch.zeros(1, WIDE, WIDE, WIDE, dtype=torch.uint8)
    parts[:, :15], parts[:, 15:20] = OWN, OTHER
    for shift, first_other in ((0.4, 12), (0.6, 11)):
        _, found = warp.elastic_deform(hu, parts, _straight() + torch.tensor([shift, 0, 0])[:, None, None, None], SIZE)
        line = found[0, :, 5, 5].numpy()
        assert_array_equal(np.flatnonzero(line == OTHER)[0], first_other)
        assert (line[:first_other] == OWN).all() and line[-1] == 0


# Projecting


def test_the_nominal_view_is_the_sum_the_way_a_film_is_read() -> None:
    cube = torch.from_numpy(np.random.default_rng(1).random((1, SIZE, SIZE, SIZE)).astype(np.float32))
    ap, lateral = warp.project_parallel(cube, NOMINAL)[0].numpy()
    assert_allclose(ap, np.rot90(cube[0].numpy().sum(1), 1)[:, ::-1], rtol=1e-5)
    assert_allclose(lateral, np.rot90(cube[0].numpy().sum(0), 1)[:, ::-1], rtol=1e-5)


@pytest.mark.parametrize(("view", "deep"), [(0, (0.0, 20.0, 0.0)), (1, (20.0, 0.0, 0.0))], ids=["AP", "lateral"])
def test_a_turn_of_5_degrees_moves_a_point_30_mm_deep_by_30_sin_5(view: int, deep: tuple[float, float, float]) -> None:
    """20 voxels of 1.5 mm."""
    still, turned, tilted = (
        warp.project_parallel(_ball(deep), views)[0, view]
        for views in (NOMINAL, _views(turn_deg=5), _views(tilt_deg=5))
    )
    assert_allclose(_place(still), (0, 0), atol=1e-3)
    assert_allclose(np.multiply(_place(turned), 1.5), (30 * np.sin(np.deg2rad(5)), 0), atol=0.01)
    assert_allclose(np.multiply(_place(tilted), 1.5), (0, -30 * np.sin(np.deg2rad(5))), atol=0.01)


def test_any_view_shows_a_ball_where_show_says_and_keeps_its_mass() -> None:
    random = np.random.default_rng(2)
    for _ in range(6):
        centre = random.uniform(-12, 12, 3)
        angles, sizes = random.uniform(-0.15, 0.15, (1, 2, 2)), random.uniform(0.9, 1.1, (1, 2, 1))
        views = torch.from_numpy(np.concatenate([angles, sizes], 2).astype(np.float32))
        ball = _ball(tuple(centre))
        for view, point in enumerate((centre, centre[[1, 0, 2]])):
            picture = warp.project_parallel(ball, views)[0, view]
            assert_allclose(_place(picture), warp.projection_matrices(views)[0, view].numpy() @ point, atol=0.01)
            # Linear interpolation takes a little from a ball that beats with the pixels.
            assert float(picture.sum()) == pytest.approx(float(ball.sum()) * sizes[0, view, 0] ** 2, rel=0.015)
            (turn, tilt), size = angles[0, view], sizes[0, view, 0]
            side, deep, up = point
            # As a rotation about the upright axis of the body and then, in the picture's frame, about its horizontal.
            beside, away = side * np.cos(turn) + deep * np.sin(turn), deep * np.cos(turn) - side * np.sin(turn)
            expected = size * beside, size * (up * np.cos(tilt) - away * np.sin(tilt))
            assert_allclose(warp.projection_matrices(views)[0, view].numpy() @ point, expected, atol=1e-5)


def test_a_slab_is_longer_to_cross_by_the_cosine() -> None:
    cube = torch.ones(1, SIZE, SIZE, SIZE)
    pictures = warp.project_parallel(cube, _views(turn_deg=4, tilt_deg=3))
    assert_allclose(pictures, SIZE / np.cos(np.deg2rad(4)) / np.cos(np.deg2rad(3)), rtol=1e-5)


# Both ways


def test_compiled_loops_bend_as_torch_does() -> None:
    hu, parts, points = _scene()
    (density, found), (other, alike) = (
        bend(hu, parts, points, SIZE) for bend in (warp.elastic_deform, warp._elastic_deform_torch)
    )
    assert density.dtype == other.dtype == torch.float32 and found.dtype == alike.dtype == torch.uint8
    assert_allclose(density, other, atol=2e-3)  # Between neighbours 5,000 HU apart.
    assert (found == alike).float().mean() > 0.9999
    assert set(np.unique(found)) == {0, OWN, OTHER}


def test_compiled_loops_project_as_torch_does() -> None:
    random = np.random.default_rng(3)
    cube = torch.from_numpy(random.random((2, SIZE, SIZE, SIZE)).astype(np.float32))
    views = torch.from_numpy(random.normal(0, 0.1, (2, 2, 3)).astype(np.float32)) + torch.tensor([0, 0, 1.0])
    assert_allclose(
        warp.project_parallel(cube, views), warp._project_parallel_torch(cube, *warp.trace_rays(views)), rtol=1e-5
    )
