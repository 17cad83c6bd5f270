"""The source that goes round: block means where they belong, sides as a viewer sees them, sliders that are followed."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from transvert.drr import projector, turntable
from transvert.drr.turntable import PIXELS
from transvert.imaging.volume import Volume, cube_affine

SIZE, SPACING = 60, 4.0


@pytest.fixture(scope="module")
def table() -> turntable.Turntable:
    """A dim ball in the middle, and small dense ones at the patient's right, front and head."""
    at = np.moveaxis(np.indices((SIZE,) * 3), 0, -1) * SPACING - (SIZE - 1) * SPACING / 2
    data = np.where(np.linalg.norm(at, axis=-1) < 30, 0.01, 0.0).astype(np.float32)
    for centre in ((90, 0, 0), (0, 60, 0), (0, 0, 100)):
        data[np.linalg.norm(at - np.array(centre), axis=-1) < 10] = 0.2
    return turntable.prepare(Volume(data, cube_affine(np.zeros(3), SIZE, SPACING)))


@pytest.mark.parametrize("affine", [np.diag([0.7, 1.1, 2.5, 1.0]), None], ids=["upright", "oblique"])
def test_block_means_lie_where_their_voxels_do(affine: np.ndarray | None) -> None:
    if affine is None:
        affine = np.array([[0.6, -0.3, 0, 5], [0.3, 0.6, 0.1, -8], [0, 0.2, 2.0, 3], [0, 0, 0, 1]])
    grid = Volume(np.zeros((13, 9, 5), np.float32), affine)
    ramp = grid.world(np.moveaxis(np.indices(grid.data.shape), 0, -1)) @ np.array([1, 2, 3])
    coarse = turntable.coarsen(Volume(ramp.astype(np.float32), affine), 1.45)
    assert coarse.data.shape == (6, 9 if affine[0, 1] == 0 else 4, 5)
    expected = coarse.world(np.moveaxis(np.indices(coarse.data.shape), 0, -1)) @ np.array([1, 2, 3])
    assert_allclose(coarse.data, expected, atol=1e-5)
    assert coarse.data.dtype == np.float32 and coarse.data.flags.c_contiguous


def test_sides_have_letters() -> None:
    for direction, letters in (
        ((1, 0, 0), "R"),
        ((-2, 0.1, 0), "L"),
        ((0, 3, 1), "A"),
        ((0, -1, -1), "PF"),
        ((-1, 0.8, 0), "LA"),
        ((0, 0, 5), "H"),
    ):
        assert turntable.side(np.array(direction, float)) == letters


@pytest.mark.parametrize(("turn", "right", "front"), [(0, -1, 0), (90, 0, -1), (180, 1, 0), (-90, 0, 1)])
def test_what_goes_round_is_seen_from_its_side(table: turntable.Turntable, turn: int, right: int, front: int) -> None:
    view, picture = table.view(turn), np.asarray(table.picture(turn).convert("L"), float)
    assert picture.shape == (PIXELS, PIXELS)
    middle = (PIXELS - 1) / 2
    for point, sign in (((90, 0, 0), right), ((0, 60, 0), front)):
        row, column = view.project(np.array(point, float))
        assert np.sign(np.rint((column - middle) / 20)) == sign and row == pytest.approx(middle, abs=1e-6)
        assert picture[round(row), round(column)] > 200
    row, column = view.project(np.array([0, 0, 100.0]))
    assert row < 60 and column == pytest.approx(middle) and picture[round(row), round(column)] > 200
    assert picture[5, 5] == 0 and 20 < picture[round(middle) + 12, round(middle) + 12] < 200
    assert turntable.side(-view.column_step) == {0: "R", 90: "A", 180: "L", -90: "P"}[turn]


def test_a_tilt_looks_from_above_and_the_whole_box_fits(table: turntable.Turntable) -> None:
    corners = table.matter.corners()
    for turn in (0, 90):
        seen = table.view(turn).project(corners)
        assert seen.min() >= -0.5 and seen.max() <= PIXELS - 0.5
    flat, tilted = (table.view(0, tilt).project(np.array([0, 60.0, 0]))[0] for tilt in (0, 20))
    assert tilted > flat + 5  # What is in front sinks.


def test_voxels_are_no_finer_than_the_pixels_need() -> None:
    fine = Volume(np.zeros((200, 150, 40), np.float32), np.diag([0.5, 0.5, 2.5, 1.0]))
    fine.data[50:150, 50:100, 10:30] = 0.02
    made = turntable.prepare(fine)
    at_isocentre = made.pixel_mm / made.view(0).magnification(made.isocentre)
    assert (made.matter.spacing_mm <= np.maximum(at_isocentre, 2.5) + 1e-6).all()
    exact = projector.cast(fine, made.view(30, 10))
    assert np.abs(projector.cast(made.matter, made.view(30, 10)) - exact).mean() < 0.02 * exact.max()


def test_sliders_are_followed_where_a_person_watches(
    table: turntable.Turntable, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    table.play()
    assert shown == []
    monkeypatch.setenv("TRANSVERT_VIEWER", "k3d")
    table.play()
    turn, tilt, picture = shown[0].children
    for slider, value, angles in ((turn, 35, (35, 0)), (tilt, -12, (35, -12))):
        slider.value = value
        drawn = np.asarray(Image.open(io.BytesIO(picture.value)))
        assert (drawn == np.asarray(table.picture(*angles))).all()
