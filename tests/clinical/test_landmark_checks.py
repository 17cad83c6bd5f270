"""Impossible landmarks are refused, unusual ones give a warning, right ones pass without a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from transvert import levels
from transvert.clinical import autofill, landmark_checks, landmarks
from transvert.clinical.landmarks import Landmarks
from transvert.clinical.radiograph import Radiograph
from transvert.drr import geometry
from transvert.drr.geometry import VIEWS, View
from transvert.io import InputError

ISOCENTRE = np.array([0.0, 0.0, 300.0])
T1_L5 = [n for n in levels.VERTEBRAE if 8 <= n <= 24]
SHAPES = {"ap": (2000, 900), "lateral": (1900, 1000)}
S1 = {"ap": {"right": np.array([1800.0, 400]), "left": np.array([1801.0, 500])}, "lateral": {}}


def _views(pitch: Mapping[str, float] | None = None) -> tuple[View, View]:
    made = [
        geometry.named_view(w, ISOCENTRE, SHAPES[w], (pitch or {}).get(w, 0.5), cone=True) for w in ("ap", "lateral")
    ]
    return made[0], made[1]


def _points(chain: list[int], scoliosis_mm: float = 8.0, size: float = 1.0) -> dict[int, np.ndarray]:
    """A usual spine with a curve to the right."""
    places = np.cumsum(np.vstack([np.zeros(3), autofill.usual_spacing().steps(chain)[0]]), axis=0) * size
    places[:, 0] += scoliosis_mm * np.sin(np.linspace(0, np.pi, len(chain)))
    return dict(zip(chain, places - places.mean(axis=0) + ISOCENTRE, strict=True))


def _marks(points: dict[int, np.ndarray] | None = None, **more: Any) -> Landmarks:
    made = landmarks.project_landmarks(*_views(), ISOCENTRE, _points(T1_L5) if points is None else points)
    return replace(made, s1_endplate=S1, **more)


def _changed(
    marks: Landmarks, name: str, change: Callable[[dict[int, np.ndarray]], dict[int, np.ndarray]]
) -> Landmarks:
    return replace(marks, centroids={**marks.centroids, name: change(dict(marks.centroids[name]))})


def _check(marks: Landmarks, **more: Any) -> list[str]:
    return landmark_checks.check_landmarks(marks, more.pop("views", None) or _views(), **more)


def _shape(marks: Landmarks, *shape: int) -> Landmarks:
    """The landmarks made on a lateral film of this shape."""
    lateral = marks.setups["lateral"].model_copy(update={"shape": shape})
    return replace(marks, setups={**marks.setups, "lateral": lateral})


# Right landmarks


def test_right_landmarks_give_no_warning() -> None:
    assert _check(_marks(), trained_levels=T1_L5) == []


@pytest.mark.parametrize("seed", range(3))
def test_landmarks_with_small_errors_pass_too(seed: int) -> None:
    random = np.random.default_rng(seed)
    marks = _marks()
    for name in VIEWS:
        marks = _changed(marks, name, lambda pixels: {n: p + random.normal(0, 4, 2) for n, p in pixels.items()})
    # Pixels of 0.42 mm in the patient: two landmarks of one level are rarely more than 4 mm apart.
    warnings = _check(marks)
    assert len(warnings) < 4 and all("its two landmarks disagree by" in warning for warning in warnings)


def test_a_few_neighbours_are_too_few_to_compare_the_scale() -> None:
    """Three lumbar vertebrae, one marked 7 mm too low: that is 10 % of so short a spine."""
    marks = _changed(_marks(_points([20, 21, 22])), "ap", lambda pixels: pixels | {22: pixels[22] + (18, 0)})
    assert _check(marks) == ["L3: its two landmarks disagree by 7.5 mm."]


# Refused


def test_exchanged_views_are_refused() -> None:
    ap, lateral = _views()
    with pytest.raises(InputError, match="'ap' view is named 'left_lateral'; give one frontal and one lateral film"):
        _check(_marks(), views=(lateral, ap))


def test_a_film_of_another_size_than_the_marked_one_is_refused() -> None:
    marks = _shape(_marks(), 950, 500)
    with pytest.raises(
        InputError, match="lateral landmarks were made on a film of 950 x 500 pixels and this one has 1900 x"
    ):
        _check(marks)
    assert _check(_shape(_marks(), 1900, 1000)) == []


def test_one_picture_given_twice_is_refused() -> None:
    one = Radiograph(np.full((20, 20), np.nan, np.float32), (0.5, 0.5))
    with pytest.raises(InputError, match="one and the same picture: give two films"):
        _check(_marks(), films=(one, Radiograph(one.pixels.copy(), one.pixel_mm)))


def test_marks_off_a_film_are_refused_by_name() -> None:
    marks = _marks()
    one = _changed(marks, "lateral", lambda pixels: pixels | {1: np.array([-40.0, 10])})
    with pytest.raises(
        InputError, match="The lateral landmark of C1 at row -40, column 10 lies off the film, which has 1900"
    ):
        _check(one)
    corner = {"ap": {20: {"right_superior": np.array([100.0, 900.0])}}, "lateral": {}}
    with pytest.raises(InputError, match=r"The AP landmark of L1 \(right superior\) at row 100, column 900 lies off"):
        _check(replace(marks, corners=corner))


def test_levels_out_of_order_are_named() -> None:
    exchanged = _changed(_marks(), "ap", lambda pixels: pixels | {12: pixels[13], 13: pixels[12]})
    with pytest.raises(InputError, match="T6 is marked above T5 on the AP film: correct them"):
        _check(exchanged)


def test_a_film_upside_down_is_refused() -> None:
    turned = _changed(_marks(), "lateral", lambda pixels: {n: np.array([1899.0, 999]) - p for n, p in pixels.items()})
    with pytest.raises(InputError, match="The lateral film's levels run from its foot to its top: turn it, or correct"):
        _check(turned)


def test_no_level_in_common_is_refused() -> None:
    marks = _changed(_marks(), "ap", lambda pixels: {n: pixels[n] for n in T1_L5[:5]})
    marks = _changed(marks, "lateral", lambda pixels: {n: pixels[n] for n in T1_L5[5:]})
    with pytest.raises(InputError, match="No vertebra is marked on both films: mark at least one level on both"):
        _check(marks)


@pytest.mark.parametrize(("name", "factor"), [("ap", 0.8), ("ap", 1.15), ("lateral", 0.9), ("lateral", 1.4)])
def test_a_wrong_pixel_spacing_is_refused_with_the_ratio_that_fits(name: str, factor: float) -> None:
    views = _views({name: 0.5 * factor})
    ratio = factor if name == "ap" else 1 / factor
    with pytest.raises(
        InputError, match="spacing or distances are wrong, or they show two people; the AP pixel spacing times"
    ) as caught:
        _check(_marks(), views=views)
    assert float(str(caught.value).split("are ")[1].split()[0]) == pytest.approx(ratio, abs=0.02)
    assert float(str(caught.value).split("spacing times ")[1].split(",")[0]) == pytest.approx(1 / ratio, abs=0.02)


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_a_spacing_within_the_limit_passes(factor: float) -> None:
    _check(_marks(), views=_views({"ap": 0.5 * factor}))


def test_a_level_whose_two_marks_lie_far_apart_is_refused() -> None:
    marks = _changed(_marks(), "ap", lambda pixels: pixels | {22: pixels[22] + (26, 0)})
    with pytest.raises(InputError, match="The two landmarks of L3 disagree by 11 mm: check level, row and pixel"):
        _check(marks)


@pytest.mark.parametrize(("step", "word"), [(1, "higher"), (-1, "lower")])
def test_labels_one_level_apart_are_refused(step: int, word: str) -> None:
    whole = _points([n for n in levels.VERTEBRAE if 7 <= n <= 25 and n != 28])
    marks = _marks(whole)
    shifted = _changed(marks, "ap", lambda pixels: {n + step: p for n, p in pixels.items() if 8 <= n <= 24})
    with pytest.raises(InputError, match=f"to be one apart: each of the AP film's may be the next {word} one"):
        _check(shifted)


def test_films_cut_at_different_heights_are_refused() -> None:
    moved = _changed(_marks(), "ap", lambda pixels: {n: p - (48, 0) for n, p in pixels.items()})
    # 48 rows of 0.5 mm are 20 mm in the patient, magnified by 1.2.
    with pytest.raises(
        InputError, match="All levels lie 20 mm higher on the AP film than on the lateral one: the films were"
    ):
        _check(moved)


MIRRORED: dict[str, tuple[dict[str, Any], str]] = {
    "S1's ends": (
        {"s1_endplate": {"ap": {"right": np.array([1800.0, 500]), "left": np.array([1800.0, 400])}, "lateral": {}}},
        "On the AP film the right side of S1's endplate is marked further to the picture's right than its left side: the film is",
    ),
    "corners": (
        {
            "corners": {
                "ap": {20: {"right_inferior": np.array([9.0, 9]), "left_superior": np.array([5.0, 3])}},
                "lateral": {},
            }
        },
        "the right side of L1 is marked further to the picture's right.*shows the patient's right on its left",
    ),
    "front and back": (
        {"s1_endplate": {"ap": {}, "lateral": {"anterior": np.array([9.0, 9]), "posterior": np.array([5.0, 3])}}},
        "On the lateral film the anterior side of S1's endplate.*shows the patient's front on its left",
    ),
    "upside down": (
        {
            "corners": {
                "ap": {},
                "lateral": {20: {"anterior_superior": np.array([9.0, 3]), "posterior_inferior": np.array([5.0, 9])}},
            }
        },
        "On the lateral film the posterior inferior corner of L1 is marked above the anterior superior one",
    ),
}


@pytest.mark.parametrize("kind", MIRRORED)
def test_sides_that_contradict_the_picture_are_refused(kind: str) -> None:
    change, sentence = MIRRORED[kind]
    with pytest.raises(InputError, match=sentence):
        _check(replace(_marks(), **change))


def test_a_centroid_beyond_its_own_corners_is_refused() -> None:
    marks = _marks()
    middle = marks.centroids["ap"][20]
    around = {
        name: middle + (20 if "inferior" in name else -20, 30 if "left" in name else -30)
        for name in landmarks.CORNERS["ap"]
    }
    fitting = replace(marks, corners={"ap": {20: around}, "lateral": {}})
    assert _check(fitting) == []
    other = replace(marks, corners={"ap": {21: around}, "lateral": {}})
    with pytest.raises(InputError, match="The AP centroid of L2 lies beyond its own corners"):
        _check(other)


# Warnings


def test_gaps_untrained_levels_and_proposals_give_warnings() -> None:
    marks = _changed(_marks(), "lateral", lambda pixels: {n: p for n, p in pixels.items() if n not in (12, 13)})
    marks = replace(marks, proposed={"ap": frozenset({10, 9}), "lateral": frozenset()})
    assert _check(marks, trained_levels=[n for n in T1_L5 if n != 24]) == [
        "T5: no landmarks between its neighbours', so the spine has a gap.",
        "T6: no landmarks between its neighbours', so the spine has a gap.",
        "L5: the network was not trained on this level.",
        "T2, T3: proposed on the AP film and not confirmed.",
    ]


@pytest.mark.parametrize("size", [0.5, 1.6])
def test_a_spine_of_an_unusual_size_gives_a_warning(size: float) -> None:
    (warning,) = _check(_marks(_points(T1_L5, size=size)))
    assert warning.startswith(f"Vertebrae stand {size:.2f} times as far apart as an adult's")


def test_exchanged_films_are_found_by_their_curves() -> None:
    points = _points(T1_L5)
    swapped = {n: np.array([-p[1], p[0], p[2]]) + [0, 0, 0] for n, p in points.items()}
    (warning,) = _check(_marks(swapped))
    assert warning.startswith("The AP film shows the curve that a spine has from the side") and warning.endswith(
        "exchanged?"
    )


def test_a_mirrored_lateral_film_is_found_by_its_curve() -> None:
    mirrored = {n: p * (1, -1, 1) for n, p in _points(T1_L5).items()}
    (warning,) = _check(_marks(mirrored))
    assert warning.startswith("On the lateral film the spine bends the wrong way: is it mirrored")


@pytest.mark.parametrize("sign", [1, -1], ids=["AP", "PA"])
def test_one_view_given_twice_is_found(sign: int) -> None:
    points = {n: np.array([p[0], sign * p[0], p[2]]) for n, p in _points(T1_L5, 20).items()}
    (warning,) = _check(_marks(points))
    assert warning.startswith("Both films show the same curve")


def test_short_spines_are_not_judged_by_their_curve() -> None:
    mirrored = {n: p * (1, -1, 1) for n, p in _points(T1_L5).items() if n > 16}
    assert _check(_marks(mirrored)) == []


def test_without_a_marked_side_the_convention_is_stated() -> None:
    bare = replace(_marks(), s1_endplate={"ap": {}, "lateral": {}})
    assert _check(bare) == [landmark_checks.SIDE_REMINDER]
