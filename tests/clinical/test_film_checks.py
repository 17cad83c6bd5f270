"""Films that show no vertebrae where they are marked, black bone or another view are refused or warned of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from conftest import Patient

from transvert.clinical import film_checks
from transvert.clinical.film_checks import check_films
from transvert.clinical.reconstruct import simulate_radiographs
from transvert.clinical.vertebra import Views
from transvert.data.patches import SIZE, SPACING_MM
from transvert.drr.geometry import VIEWS, named_view
from transvert.io import InputError

Pair = list[np.ndarray]


def _usual(count: int) -> tuple[Pair, Views, dict[int, np.ndarray]]:
    """Parallel films that are the mean patches of the upper thorax, one below the other without overlap."""
    shape = (SIZE * count, SIZE)
    ap, lateral = (named_view(name, np.zeros(3), shape, SPACING_MM) for name in VIEWS)
    films = [np.tile(film_checks.mean_patches()[which, 1], (count, 1)).astype(np.float32) for which in (0, 1)]
    heights = ((count - 1) / 2 - np.arange(count)) * SIZE * SPACING_MM
    return films, (ap, lateral), {8 + n: np.array([0.0, 0.0, z]) for n, z in enumerate(heights)}


def _cover(films: Pair) -> Pair:
    films[0][SIZE : 2 * SIZE] = 5.0
    return films


CHANGES: dict[str, tuple[Callable[[Pair], Pair], str]] = {
    "nothing": (lambda films: films, ""),
    "exposure": (lambda films: [films[0] * 3 - 20, films[1] ** 1.5], ""),
    "black": (lambda films: [film * 0 for film in films], "AP film shows nothing like vertebrae where they are marked"),
    "noise": (
        lambda films: [films[0], np.random.default_rng(0).random(films[1].shape)],
        "lateral film shows nothing like vertebrae .* give the right film, or correct the landmarks",
    ),
    "inverted": (lambda films: [-film for film in films], "AP film shows bone darker .* invert the grey values"),
    "one inverted": (lambda films: [films[0], -films[1]], "lateral film shows bone darker .* invert the grey values"),
    "exchanged": (lambda films: films[::-1], "the AP film looks like a lateral one, or the landmarks are exchanged"),
    "one view twice": (lambda films: [films[0]] * 2, "the lateral film looks like an AP one"),
    "upside down": (lambda films: [film[::-1] for film in films], "look upside down: give each film upright"),
    "turned": (lambda films: [film[::-1, ::-1] for film in films], "look turned by 180 degrees"),
    "mirrored": (
        lambda films: [films[0], films[1][:, ::-1]],
        "the lateral film looks mirrored, with the front on the right",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_films_show(name: str) -> None:
    films, views, points = _usual(4)
    change, sentence = CHANGES[name]
    films = [np.ascontiguousarray(film, np.float32) for film in change(films)]
    if not sentence:
        assert check_films(films, views, points) == []
        return
    with pytest.raises(InputError, match=sentence):
        check_films(films, views, points)


def test_a_bar_over_a_vertebra_and_faint_films_give_a_warning() -> None:
    films, views, points = _usual(5)
    assert check_films(_cover(films), views, points) == ["T2: the AP film is blank around its landmark."]
    films, views, points = _usual(4)
    noise = np.random.default_rng(0).normal(0, 1, (2, *films[0].shape)) * [[[0.0]], [[1.0]]]
    faint = [film + 2 * np.std(film) * more.astype(np.float32) for film, more in zip(films, noise, strict=True)]
    (warning,) = check_films(faint, views, points)
    assert warning.startswith("The lateral film shows vertebrae only faintly where they are marked (agreement 0.")


def test_simulated_films_pass_and_one_vertebra_is_judged_on_both_films(patient: Patient) -> None:
    (ap, lateral), views, _ = simulate_radiographs(patient.ct)
    assert check_films([ap.pixels, lateral.pixels], views, patient.centroids) == []
    one = {20: patient.centroids[20]}
    assert check_films([ap.pixels, lateral.pixels], views, one) == []
    with pytest.raises(InputError, match="The two films show nothing like vertebrae"):
        check_films([0 * ap.pixels, 0 * lateral.pixels], views, one)
    with pytest.raises(InputError, match="The AP film shows bone darker than what is around it"):
        check_films([-ap.pixels, -lateral.pixels], views, patient.centroids)
    assert check_films([ap.pixels, lateral.pixels], views, {1: one[20]}) == []  # C1 and C2 have no usual patch.
