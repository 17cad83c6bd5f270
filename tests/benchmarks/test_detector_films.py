"""Films that the detector learns from: what is drawn lies where its target says, and films come back from their file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.detector import bad_films, spines, train
from benchmarks.detector.films import Films, read_films, write_films
from transvert.clinical.detector import LEVELS
from transvert.clinical.vertebra import Vertebra
from transvert.data.patches import SPACING_MM
from transvert.drr import geometry

ENDS = np.array([[-90.0, -90.0, -150.0], [90.0, 90.0, 150.0]])
CENTRES = {n: np.array([3.0 * n - 50, 40.0 - 2 * n, 130.0 - 12 * n]) for n in range(8, 20)}


def _films() -> Films:
    """A dot at each centre, of a size that other centres do not reach."""
    views = [geometry.covering_view(name, ENDS, 1.5, cone=True) for name in ("ap", "left_lateral")]
    pictures = []
    for view in views:
        grid = np.stack(np.indices(view.shape), axis=-1)
        dots = [np.exp(-((grid - view.project(at)) ** 2).sum(-1) / 4.0) for at in CENTRES.values()]
        slope = grid[..., 0] / view.shape[0]  # A range of grey values that standardising keeps the dots in.
        pictures.append((np.sum(dots, axis=0) + slope).astype(np.float16))
    return Films((pictures[0], pictures[1]), (views[0], views[1]), np.zeros(3), CENTRES)


@pytest.mark.parametrize("seed", range(6))
def test_a_drawn_film_shows_each_centre_where_its_target_is(seed: int) -> None:
    film, seen, number = train.draw_film(_films(), np.random.default_rng(seed), (224, 160), plain=True)
    assert film.shape == (4, 224, 160) and len(seen) == len(number) >= 1
    assert {LEVELS[n] for n in number} <= set(CENTRES)
    for row, column in np.rint(seen).astype(int):
        near = film[0, max(row - 4, 0) : row + 5, max(column - 4, 0) : column + 5]
        at = np.array(np.unravel_index(near.argmax(), near.shape)) + [max(row - 4, 0), max(column - 4, 0)]
        assert np.abs(at - [row, column]).max() <= 1
    peaks, weight, level = train.targets(seen, number, (224, 160))
    assert peaks.shape[-2:] == weight.shape[-2:] == level.shape[-2:] == (112, 80)


def test_films_come_back_from_their_file_without_pickles(tmp_path: Path) -> None:
    films = _films()
    write_films(tmp_path / "a.npz", films)
    again = read_films(tmp_path / "a.npz")
    for old, new in zip(films.pictures, again.pictures, strict=True):
        assert np.array_equal(old, new)
    for old, new in zip(films.views, again.views, strict=True):
        assert np.allclose(old.project(CENTRES[9]), new.project(CENTRES[9]))
    assert again.centres.keys() == CENTRES.keys() and np.array_equal(again.centres[9], CENTRES[9])


def test_bad_films_are_no_longer_the_pair_and_have_its_shapes() -> None:
    films = _films()
    shown = tuple(p.astype(np.float32) for p in films.pictures)
    made = bad_films.spoil((shown[0], shown[1]), shown[1][::-1], films, 0)
    for kind, pair in made.items():
        assert [p.shape for p in pair] == [v.shape for v in films.views], kind
        same = all(np.array_equal(one, other) for one, other in zip(pair, shown, strict=True))
        assert same == (kind == "good"), kind


def test_a_spine_is_scored_where_it_stands() -> None:
    cube = np.zeros((64, 64, 64), np.float32)
    cube[20:44, 20:44, 20:44] = 1
    true = {20: (np.zeros(3), cube > 0.5)}
    right, off = (Vertebra(20, np.array([mm, 0.0, 0.0]), cube, SPACING_MM) for mm in (0.0, 6 * SPACING_MM))
    assert spines.score_spine([right], true) == {20: pytest.approx(1.0)}
    assert spines.score_spine([off], true)[20] == pytest.approx(0.75)
    assert spines.score_spine([Vertebra(21, np.zeros(3), cube, SPACING_MM)], true) == {}
