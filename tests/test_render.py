"""Shaded pictures: right on the left, head up, and the patient's left side after a quarter turn."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from transvert import levels, progress, render
from transvert.volume import Volume

N = 40
RIGHT, FRONT, HEAD = np.array([32, 20, 10]), np.array([12, 33, 28]), np.array([20, 14, 34])
"""Three balls: at the right, the front and the head, each elsewhere in the middle."""


def _ball(centre: np.ndarray, radius: float = 4.0) -> np.ndarray:
    return np.clip(radius - np.linalg.norm(np.moveaxis(np.indices((N, N, N)), 0, -1) - centre, axis=-1) + 0.5, 0, 1)


def _place(picture: np.ndarray) -> np.ndarray:
    """Row and column of the middle of what is drawn, from the picture's middle."""
    return np.argwhere(np.isfinite(picture)).mean(0) - (np.array(picture.shape) - 1) / 2


# Seen from a side: the columns run against this axis (sign and index).
TURNS = {0: (-1, 0), 90: (-1, 1), 180: (1, 0), 270: (1, 1), 360: (-1, 0)}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("centre", [RIGHT, FRONT, HEAD], ids=["right", "front", "head"])
def test_a_ball_is_drawn_where_a_viewer_would_see_it(turn: int, centre: np.ndarray) -> None:
    brightness, _ = render.shade(_ball(centre), turn_deg=turn)
    sign, axis = TURNS[turn]
    expected = [-(centre[2] - (N - 1) / 2), sign * (centre[axis] - (N - 1) / 2)]
    assert_allclose(_place(brightness), expected, atol=0.6)


def test_in_words() -> None:
    # From the front the patient's right is on the left of the picture.
    assert _place(render.shade(_ball(RIGHT))[0])[1] < -8
    # From the patient's left side the front is on the left, and what is on the right is in the middle.
    side = render.shade(_ball(FRONT), turn_deg=90)[0]
    assert _place(side)[1] < -8
    assert _place(render.shade(_ball(HEAD), turn_deg=37)[0])[0] < -8


def test_the_nearer_hides_the_farther() -> None:
    near, far = np.array([20, 32, 20]), np.array([20, 8, 20])
    values = np.where(_ball(near, 6) > 0, 1, 2)
    both = np.maximum(_ball(near), _ball(far, 6))
    for turn, first in ((0, 1), (180, 2)):
        _, read = render.shade(both, turn_deg=turn, values=values)
        row, column = np.array(read.shape) // 2
        assert read[row, column] == first
    left, right = np.array([6, 20, 20]), np.array([33, 20, 20])
    values = np.where(_ball(left, 6) > 0, 1, 2)
    _, read = render.shade(np.maximum(_ball(left), _ball(right)), turn_deg=90, values=values)
    assert read[read.shape[0] // 2, read.shape[1] // 2] == 1  # from the patient's left


def test_brightness_is_lit_from_the_upper_left_and_within_bounds() -> None:
    brightness, depth = render.shade(_ball(np.array([20, 20, 20]), 12.0), finer=2)
    inside = brightness[np.isfinite(brightness)]
    assert inside.min() >= 0 and inside.max() <= 1
    assert brightness.shape == (2 * N, 2 * N) and brightness.dtype == np.float32
    rows, columns = np.nonzero(np.isfinite(brightness))
    upper_left = (rows < N) & (columns < N)
    lower_right = (rows > N) & (columns > N)
    assert inside[upper_left].mean() > inside[lower_right].mean() + 0.1
    assert np.isfinite(depth).sum() == len(inside)
    assert depth[N, N] == np.nanmin(depth)  # the ball's middle is nearest


def test_nothing_is_an_empty_picture() -> None:
    brightness, read = render.shade(np.zeros((8, 8, 8)))
    assert np.isnan(brightness).all() and np.isnan(read).all()


def test_levels_have_colours_told_apart() -> None:
    numbers = np.array(list(levels.NAMES))
    colours = render.level_colours(numbers)
    assert colours.shape == (len(numbers), 3) and (colours >= 0).all() and (colours <= 1).all()
    ordered = dict(zip(levels.NAMES, colours, strict=True))
    for above, below in zip(levels.VERTEBRAE, levels.VERTEBRAE[1:], strict=False):
        if {above, below} != {19, 28}:  # T12 and T13 share a hue and, rarely together, may share a lightness
            assert np.abs(ordered[above] - ordered[below]).max() > 0.1, levels.name(above)
    assert_array_equal(render.level_colours(np.array([np.nan, 0])), 0)


def test_a_spine_picture_is_coloured_by_level_on_white() -> None:
    labels = np.zeros((N, N, N), np.uint8)
    labels[_ball(RIGHT, 6) > 0.5] = 20
    labels[_ball(HEAD, 6) > 0.5] = 8
    picture = render.spine_picture(Volume(labels, np.eye(4)), 0)
    assert picture.shape == (N, N, 3)
    assert_array_equal(picture[-1, -1], 1)
    for centre, level in ((RIGHT, 20), (HEAD, 8)):
        pixel = picture[N - 1 - centre[2], N - 1 - centre[0]]
        colour = render.level_colours(np.array(level))
        assert_allclose(pixel / pixel.max(), colour / colour.max(), atol=0.02)
    drawn = (picture < 1).any(-1)
    assert (picture[drawn].max(-1) > 0.15).all()  # no black pixel at an edge, where no label would be read


def test_an_error_picture_is_red_where_too_large_and_blue_where_too_small() -> None:
    ball = _ball(np.array([20, 20, 20]), 10.0)
    large, small = (render.error_picture(ball, np.full(ball.shape, mm), 0) for mm in (2.5, -2.5))
    middle = (N, N)
    assert large.shape == (2 * N, 2 * N, 3)
    assert large[middle][0] > large[middle][2] + 0.2
    assert small[middle][2] > small[middle][0] + 0.2
    assert_array_equal(large[0, 0], 1)


def test_no_viewer_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSVERT_VIEWER", "none")
    assert not progress.someone_watches() and render.viewer({}) is None
    monkeypatch.delenv("TRANSVERT_VIEWER")
    assert not progress.someone_watches() and render.viewer({}) is None
    monkeypatch.setenv("TRANSVERT_VIEWER", "k3d")
    assert progress.someone_watches()
