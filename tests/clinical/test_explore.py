"""Errors in 3D say what they are, and a moved landmark takes its vertebra along and no other."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Patient, occupancy
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from torch import Tensor, nn

from transvert import levels
from transvert.clinical import explore, landmarks
from transvert.clinical.explore import MovedLandmark
from transvert.clinical.posture import measure_posture
from transvert.clinical.reconstruct import reconstruct, simulate_radiographs
from transvert.data.patches import SIZE, SPACING_MM
from transvert.data.samples import Samples
from transvert.drr import geometry
from transvert.imaging.volume import cube_affine
from transvert.io import InputError

L2 = 21


class Always(nn.Module):
    """A network that finds the same vertebra in the middle of every cube."""

    def __init__(self) -> None:
        super().__init__()
        filled = occupancy((0.0, -10.0, 0.0), cube_affine(np.zeros(3), SIZE, SPACING_MM), SIZE)
        self.logits = nn.Parameter(torch.from_numpy(20 * filled - 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), 1, SIZE, SIZE, SIZE)


@pytest.fixture(scope="module")
def start(patient: Patient) -> Callable[[], MovedLandmark]:
    films, views, isocentre = simulate_radiographs(patient.ct, pixel_mm=1.5)
    marks = landmarks.project_landmarks(*views, isocentre, patient.centroids)
    # Clicks that miss each other a little, as people's do.
    marks = replace(
        marks, centroids={**marks.centroids, "ap": {n: p + [0.5, 0] for n, p in marks.centroids["ap"].items()}}
    )
    network = Always()
    found = reconstruct(*films, marks, network, draws=0)
    return lambda: MovedLandmark(films, marks, network, found)


def _centres(moved: MovedLandmark) -> dict[int, np.ndarray]:
    return {v.level: v.centroid_ras for v in moved.found.vertebrae}


@pytest.mark.parametrize("mm", [(6, 0, 0), (0, -5, 0), (0, 0, 4), (3, 4, -5)], ids=str)
def test_a_vertebra_follows_its_landmark_and_the_others_stay(
    start: Callable[[], MovedLandmark], mm: tuple[float, float, float]
) -> None:
    moved = start()
    before, first = _centres(moved), {v.level: v for v in moved.found.vertebrae}
    moved.move(L2, np.array(mm, float))
    after = _centres(moved)
    assert_allclose(after[L2] - before[L2], mm, atol=0.05)
    for v in moved.found.vertebrae:
        assert v.level == L2 or v is first[v.level]
    rows = {row["level"]: row for row in moved.found.posture["vertebrae"]}
    assert_allclose([rows["L2"][f"{axis}_mm"] for axis in "xyz"], after[L2], atol=0.01)


def test_the_front_is_seen_by_the_lateral_film_alone_and_the_right_by_the_ap(
    start: Callable[[], MovedLandmark],
) -> None:
    for mm, still, gone in (((8.0, 0, 0), "lateral", "ap"), ((0, 8.0, 0), "ap", "lateral")):
        moved = start()
        before = moved.marks.centroids
        moved.move(L2, np.array(mm))
        assert abs(moved.marks.centroids[still][L2] - before[still][L2]).max() < 0.3
        assert abs(moved.marks.centroids[gone][L2] - before[gone][L2])[1] > 4


def test_moves_count_from_the_start_and_back_is_back(start: Callable[[], MovedLandmark]) -> None:
    moved, once = start(), start()
    for mm in ((5.0, 0, 0), (0, 3.0, 2.0)):
        moved.move(L2, np.array(mm))
    once.move(L2, np.array((0, 3.0, 2.0)))
    assert_array_equal(_centres(moved)[L2], _centres(once)[L2])
    assert moved.found.posture == once.found.posture
    moved.move(L2, np.zeros(3))
    assert_allclose(_centres(moved)[L2], _centres(start())[L2], atol=1e-6)


def test_the_angles_are_those_of_the_spine_as_it_is_now(start: Callable[[], MovedLandmark]) -> None:
    moved = start()
    assert "+0.0 deg" in moved.angles() and "coronal cobb" in moved.angles()
    moved.move(L2, np.array([10.0, 0, 0]))
    evidence = moved.found.evidence
    assert_array_equal(evidence.places[L2], _centres(moved)[L2])
    assert moved.found.posture == measure_posture(moved.found.vertebrae, evidence=evidence)
    assert moved.found.posture["vertebrae"] != start().found.posture["vertebrae"]


def test_a_landmark_beyond_its_neighbour_is_refused_and_nothing_changes(start: Callable[[], MovedLandmark]) -> None:
    moved = start()
    marks, found = moved.marks, moved.found
    with pytest.raises(InputError, match="L2 is marked above L1"):
        moved.move(L2, np.array([0, 0, 60.0]))
    assert moved.marks is marks and moved.found is found


def test_the_films_show_the_chosen_landmark_in_orange(start: Callable[[], MovedLandmark]) -> None:
    moved = start()
    pixels = np.asarray(moved.picture(L2)).astype(int)
    assert pixels.shape[0] == explore.FILM_ROWS
    orange = np.argwhere((abs(pixels - explore._ORANGE) < 3).all(-1))
    films = [film.pixels.shape for film in moved._films]
    width = round(films[0][1] * explore.FILM_ROWS / films[0][0])
    for which, left, inside in (("ap", 0, orange[:, 1] < width), ("lateral", width, orange[:, 1] >= width)):
        shape = films[geometry.VIEWS.index(which)]
        expected = (moved.marks.centroids[which][L2] + 0.5) * explore.FILM_ROWS / shape[0]
        assert_allclose(orange[inside].mean(0) - [0, left], expected, atol=1.5)


def _like(truth: Samples, grown: int) -> np.ndarray:
    """A prediction as large as the truth, or larger or smaller by so many voxels."""
    target = truth.targets()[1]
    if grown:
        change = ndimage.binary_dilation if grown > 0 else ndimage.binary_erosion
        target = change(target, iterations=abs(grown))
    return target.astype(np.float32)


@pytest.mark.parametrize("grown", [-1, 0, 1])
def test_an_error_in_3d_is_as_large_as_it_is(box_samples: Samples, grown: int) -> None:
    (drawn,), sentence = explore.vertebra_in_3d(box_samples, 1, _like(box_samples, grown), "error")
    assert drawn.name == "L2" and len(drawn.attribute) == len(drawn.vertices)
    assert np.median(drawn.attribute) == pytest.approx(grown * SPACING_MM, abs=0.35)
    told = re.match(r"L2: the predicted surface is ([\d.]+) mm off on average", sentence)
    assert told and float(told[1]) == pytest.approx(np.abs(drawn.attribute).mean(), abs=0.1)


def test_prediction_truth_and_nothing(box_samples: Samples) -> None:
    shapes = {}
    for what in ("prediction", "truth"):
        (drawn,), _ = explore.vertebra_in_3d(box_samples, 1, _like(box_samples, 2), what)
        assert len(drawn.attribute) == 0
        shapes[what] = np.ptp(drawn.vertices, axis=0)
    assert (shapes["prediction"] > shapes["truth"] + 3).all()
    drawn, sentence = explore.vertebra_in_3d(box_samples, 1, np.zeros((SIZE,) * 3), "error")
    assert drawn == [] and sentence == "L2: nothing was predicted"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr("IPython.display.display", found.append)
    return found


def test_in_a_batch_nothing_is_shown(
    shown: list[Any], box_samples: Samples, start: Callable[[], MovedLandmark]
) -> None:
    explore.pick_vertebra([box_samples], {"sub-box": np.zeros((3, SIZE, SIZE, SIZE))})
    start().play()
    assert shown == []


def test_a_picked_vertebra_is_shown(shown: list[Any], box_samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSVERT_VIEWER", "k3d")
    made = box_samples.targets().astype(np.float32)
    second = replace(box_samples, subject="other")
    explore.pick_vertebra([box_samples, second], {"sub-box": made, "other": np.zeros_like(made)})
    (subject, level, what), told, plot = shown[0].children[0].children, *shown[0].children[1:]
    assert [one.name for one in plot.objects] == ["L1"] and len(plot.objects[0].attribute)
    level.value = level.options[2][1]
    assert [one.name for one in plot.objects] == ["L3"]
    what.value = "truth"
    assert told.value == "L3 as it is" and not len(plot.objects[0].attribute)
    what.value = "error"
    level.value = level.options[0][1]
    subject.value = "other"  # The same level of another subject is another vertebra.
    assert told.value == "L1: nothing was predicted" and plot.objects == []


def test_sliders_move_what_is_chosen(
    shown: list[Any], start: Callable[[], MovedLandmark], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSVERT_VIEWER", "k3d")
    moved = start()
    moved.play()
    panel, plot = shown[0].children
    level, right, _, head, films, told = panel.children
    assert [name for name, _ in level.options] == ["L1", "L2", "L3"] and level.value == L2
    before, picture, surfaces = _centres(moved), films.value, {one.name: one for one in plot.objects}
    right.value = 6.0
    assert_allclose(_centres(moved)[L2] - before[L2], [6, 0, 0], atol=0.05)
    assert films.value != picture and "change" in told.value
    now = {one.name: one for one in plot.objects}
    assert now["L1"] is surfaces["L1"] and now["L2"] is not surfaces["L2"] and len(now) == 3
    assert now["L2"].vertices[:, 0].mean() == pytest.approx(surfaces["L2"].vertices[:, 0].mean() + 6, abs=0.3)
    head.value = 30.0
    right.value = 30.0  # Onto the neighbour's height: told, and left where it was.
    level.value = levels.number("L3")
    assert (right.value, head.value) == (0, 0)
    level.value = L2
    assert right.value == moved_mm(moved, before)[0]


def moved_mm(moved: MovedLandmark, before: dict[int, np.ndarray]) -> np.ndarray:
    """(3,) mm, how far L2 has come, to half a millimetre as the sliders go."""
    return np.round(2 * (_centres(moved)[L2] - before[L2])) / 2
