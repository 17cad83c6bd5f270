"""Impossible landmarks are refused, unusual ones give a warning, right ones pass without a sentence."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from transvert import levels
from transvert.clinical import autofill, landmark_checks, landmarks
from transvert.clinical.dicom import Acquisition
from transvert.clinical.landmarks import Landmarks, ViewSetup
from transvert.clinical.radiograph import BY_DPI, Radiograph
from transvert.drr import geometry
from transvert.drr.geometry import VIEWS, View
from transvert.io import InputError

ISOCENTRE = np.array([0.0, 0.0, 300.0])
T1_L5 = [n for n in levels.VERTEBRAE if 8 <= n <= 24]
SHAPES = {"ap": (2000, 900), "lateral": (1900, 1000)}
S1 = {"ap": {"right": np.array([1800.0, 400]), "left": np.array([1801.0, 500])}, "lateral": {}}


def _views(pitch: Mapping[str, float] | None = None) -> tuple[View, View]:
    ap, lateral = (geometry.named_view(w, ISOCENTRE, SHAPES[w], (pitch or {}).get(w, 0.5), cone=True) for w in VIEWS)
    return ap, lateral


def _points(chain: list[int], scoliosis_mm: float = 8.0, size: float = 1.0) -> dict[int, np.ndarray]:
    """A usual spine with a curve to the right."""
    places = np.cumsum(np.vstack([np.zeros(3), autofill.usual_spacing().steps(chain)[0]]), axis=0) * size
    places[:, 0] += scoliosis_mm * np.sin(np.linspace(0, np.pi, len(chain)))
    return dict(zip(chain, places - places.mean(axis=0) + ISOCENTRE, strict=True))


def _marks(points: dict[int, np.ndarray] | None = None, **more: Any) -> Landmarks:
    made = landmarks.project_landmarks(*_views(), ISOCENTRE, _points(T1_L5) if points is None else points)
    return replace(made, s1_endplate=S1, **more)


Pixels = dict[int, np.ndarray]


def _changed(marks: Landmarks, name: str, change: Callable[[Pixels], Pixels]) -> Landmarks:
    return replace(marks, centroids={**marks.centroids, name: change(dict(marks.centroids[name]))})


def _check(marks: Landmarks, **more: Any) -> list[str]:
    return landmark_checks.check_landmarks(marks, more.pop("views", None) or _views(), **more)


def _shape(marks: Landmarks, *shape: int) -> Landmarks:
    """The landmarks made on a lateral film of this shape."""
    lateral = marks.setups["lateral"].model_copy(update={"shape": shape})
    return replace(marks, setups={**marks.setups, "lateral": lateral})


def test_right_landmarks_give_no_warning() -> None:
    assert _check(_marks(), trained_levels=T1_L5) == []
    for factor in (0.97, 1.03):  # Within the limit of what a spacing may be off.
        _check(_marks(), views=_views({"ap": 0.5 * factor}))
    assert _check(replace(_marks(), s1_endplate={"ap": {}, "lateral": {}})) == [landmark_checks.SIDE_REMINDER]


@pytest.mark.parametrize("seed", range(3))
def test_landmarks_with_small_errors_pass_too(seed: int) -> None:
    random, marks = np.random.default_rng(seed), _marks()
    for name in VIEWS:
        marks = _changed(marks, name, _each(lambda pixel: pixel + random.normal(0, 4, 2)))
    # Pixels of 0.42 mm in the patient: two landmarks of one level are rarely more than 4 mm apart.
    warnings = _check(marks)
    assert len(warnings) < 4 and all("its two landmarks disagree by" in warning for warning in warnings)
    # Three lumbar vertebrae, one marked 7 mm too low, are too few to compare the scale: that is 10 % of so short a spine.
    marks = _changed(_marks(_points([20, 21, 22])), "ap", lambda pixels: pixels | {22: pixels[22] + (18, 0)})
    assert _check(marks) == ["L3: its two landmarks disagree by 7.5 mm."]


def _each(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Pixels], Pixels]:
    return lambda pixels: {n: change(pixel) for n, pixel in pixels.items()}


CENTROIDS: dict[str, tuple[str, Callable[[Pixels], Pixels]]] = {
    "The lateral landmark of C1 at row -40, column 10 lies off the film, which has 1900": (
        *("lateral", lambda p: p | {1: np.array([-40.0, 10])}),
    ),
    "T6 is marked above T5 on the AP film: correct them": ("ap", lambda p: p | {12: p[13], 13: p[12]}),
    "The lateral film's levels run from its foot to its top: turn it, or correct the levels": (
        *("lateral", _each(lambda pixel: np.array([1899.0, 999]) - pixel)),
    ),
    "No vertebra is marked on both films: mark at least one level": ("ap", lambda p: {1: np.array([30.0, 40])}),
    "The two landmarks of L3 disagree by 11 mm: check level, row": ("ap", lambda p: p | {22: p[22] + (26, 0)}),
    # 48 rows of 0.5 mm are 20 mm in the patient, magnified by 1.2.
    "All levels lie 20 mm higher on the AP film than on the lateral one: the films were cut or taken at": (
        *("ap", _each(lambda pixel: pixel - (48, 0))),
    ),
}


@pytest.mark.parametrize("sentence", CENTROIDS)
def test_impossible_centroids_are_refused(sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        _check(_changed(_marks(), *CENTROIDS[sentence]))


def test_exchanged_views_a_film_of_another_size_and_one_picture_given_twice_are_refused() -> None:
    with pytest.raises(InputError, match="'ap' view is named 'left_lateral'; give one frontal and one lateral film"):
        _check(_marks(), views=_views()[::-1])
    with pytest.raises(InputError, match="lateral landmarks were made on a film of 950 x 500 pixels and this one has"):
        _check(_shape(_marks(), 950, 500))
    assert _check(_shape(_marks(), 1900, 1000)) == []
    one = Radiograph(np.full((20, 20), np.nan, np.float32), (0.5, 0.5))
    with pytest.raises(InputError, match="one and the same picture: give two films"):
        _check(_marks(), films=(one, Radiograph(one.pixels.copy(), one.pixel_mm)))


@pytest.mark.parametrize(("name", "factor"), [("ap", 0.8), ("ap", 1.15), ("lateral", 0.9), ("lateral", 1.4)])
def test_a_wrong_pixel_spacing_is_refused_with_the_ratio_that_fits(name: str, factor: float) -> None:
    ratio = factor if name == "ap" else 1 / factor
    with pytest.raises(InputError, match="spacing or distances are wrong, or they show two people;") as caught:
        _check(_marks(), views=_views({name: 0.5 * factor}))
    said = re.search(r"are ([\d.]+) times .* AP pixel spacing times ([\d.]+),", str(caught.value)).groups()
    assert [float(number) for number in said] == pytest.approx([ratio, 1 / ratio], abs=0.02)


@pytest.mark.parametrize(("step", "word"), [(1, "higher"), (-1, "lower")])
def test_labels_one_level_apart_are_refused(step: int, word: str) -> None:
    marks = _marks(_points([n for n in levels.VERTEBRAE if 7 <= n <= 25 and n != 28]))
    shifted = _changed(marks, "ap", lambda pixels: {n + step: p for n, p in pixels.items() if 8 <= n <= 24})
    with pytest.raises(InputError, match=f"to be one apart: each of the AP film's may be the next {word} one"):
        _check(shifted)


def _ends(name: str, **ends: list[float]) -> dict[str, Any]:
    return {"s1_endplate": {"ap": {}, "lateral": {}} | {name: {end: np.array(p) for end, p in ends.items()}}}


def _corners(name: str, **corners: list[float]) -> dict[str, Any]:
    return {"corners": {"ap": {}, "lateral": {}} | {name: {20: {part: np.array(p) for part, p in corners.items()}}}}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_ends("ap", right=[1800, 500], left=[1800, 400]), "On the AP film the right side of S1's endplate is marked"),
        (_corners("ap", right_inferior=[9, 9], left_superior=[5, 3]), "the right side of L1 .* patient's right on its"),
        (_ends("lateral", anterior=[9, 9], posterior=[5, 3]), "the anterior side of S1's endplate.*front on its left"),
        (_corners("lateral", anterior_superior=[9, 3], posterior_inferior=[5, 9]), "inferior corner of L1 .*ed above"),
        (
            _corners("ap", right_superior=[100, 900]),
            r"AP landmark of L1 \(right superior\) at row 100, column 900 lies",
        ),
    ],
)
def test_corners_and_ends_that_contradict_the_picture_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        _check(replace(_marks(), **change))


def test_a_centroid_beyond_its_own_corners_is_refused() -> None:
    marks = _marks()
    down, right = np.array([20, 0]), np.array([0, 30])
    places = {"superior": -down, "inferior": down, "right": -right, "left": right}
    parts = {part: sum(places[word] for word in part.split("_")) for part in landmarks.CORNERS["ap"]}
    around = {part: marks.centroids["ap"][20] + offset for part, offset in parts.items()}
    assert _check(replace(marks, corners={"ap": {20: around}, "lateral": {}})) == []
    with pytest.raises(InputError, match="The AP centroid of L2 lies beyond its own corners"):
        _check(replace(marks, corners={"ap": {21: around}, "lateral": {}}))


def test_gaps_untrained_levels_proposals_and_unusual_sizes_give_warnings() -> None:
    marks = _changed(_marks(), "lateral", lambda pixels: {n: p for n, p in pixels.items() if n not in (12, 13)})
    marks = replace(marks, proposed={"ap": frozenset({10, 9}), "lateral": frozenset()})
    assert _check(marks, trained_levels=[n for n in T1_L5 if n != 24]) == [
        "T5: no landmarks between its neighbours', so the spine has a gap.",
        "T6: no landmarks between its neighbours', so the spine has a gap.",
        "L5: the network was not trained on this level.",
        "T2, T3: proposed on the AP film and not confirmed.",
    ]
    for size in (0.5, 1.6):
        (warning,) = _check(_marks(_points(T1_L5, size=size)))
        assert warning.startswith(f"Vertebrae stand {size:.2f} times as far apart as an adult's")


STATED = {"source_to_detector_mm": 1800.0, "source_to_patient_mm": 1500.0}


@pytest.mark.parametrize(
    ("acquisition", "setup", "warning"),
    [
        (STATED, {}, ""),
        ({}, {"source_to_detector_mm": 1800.0}, ""),
        (
            {},
            {},
            "The {} film's distance from source to detector is not known, 1800 mm was taken: state it, and .* if a slot",
        ),
        (
            STATED | {"source_to_patient_mm": 1746.0},
            {},
            "the patient is 54 mm before the detector, .* they end at the stand",
        ),
        (STATED | {"source_to_patient_mm": 1746.0}, {"source_to_isocentre_mm": 1600.0}, ""),
        (STATED | {"source_to_patient_mm": 1746.0}, {"projection": "slot"}, "they end at the stand"),
        (STATED | {"pixel_mm_from": BY_DPI}, {}, "The {} film's pixels of 0.5 mm come from the picture's resolution"),
        (STATED | {"pixel_mm_from": BY_DPI}, {"pixel_mm": (0.5, 0.5)}, ""),
    ],
)
def test_how_films_were_taken_is_doubted(acquisition: dict, setup: dict, warning: str) -> None:
    marks = _marks()
    marks = replace(marks, setups={name: ViewSetup(name=marks.setups[name].name, **setup) for name in VIEWS})
    rays = {"projection": setup.get("projection", "cone")}
    marks = replace(marks, setups={n: s.model_copy(update=rays) for n, s in marks.setups.items()})
    films = [Radiograph(np.zeros(SHAPES[name]), (0.5, 0.5), Acquisition(**acquisition)) for name in VIEWS]
    found = _check(marks, films=films)
    assert len(found) == 2 * bool(warning)
    assert all(re.search(warning.format(film), line) for film, line in zip(("AP", "lateral"), found, strict=False))


def test_sizes_that_nobody_measured_are_asked_for_and_high_films_too() -> None:
    films = [Radiograph(np.zeros(SHAPES[name]), (0.5, 0.5), Acquisition(pixel_mm_from=BY_DPI)) for name in VIEWS]
    setups = {name: ViewSetup(name=setup.name, projection="cone") for name, setup in _marks().setups.items()}
    small = replace(_marks(_points(T1_L5, size=0.7)), setups=setups)
    with pytest.raises(
        InputError, match=r"0\.70 times as far apart .* from the picture's resolution \(dpi\): state pixel"
    ):
        _check(small, films=films)
    high = replace(small, setups={name: ViewSetup(name=setup.name) for name, setup in setups.items()})
    with pytest.raises(
        InputError,
        match=r"AP film is 1000 mm high, .* \"projection\": \"slot\" for a slot .*, or \"cone\" for one exposure",
    ):
        _check(high, films=films)
    # A factor between the films, as of distances that end at a stand.
    warning = "Heights on the AP film are 1.05 times those on the lateral film: check distances and pixel sizes."
    assert warning in _check(_marks(_points(T1_L5[5:14])), views=_views({"ap": 0.5 * 1.05}))
