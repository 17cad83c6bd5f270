"""Landmarks of bodies become those of whole vertebrae, and clicks stray as far as stated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from transvert.clinical import centroids, endplate_prior, landmarks
from transvert.clinical.endplates import unit
from transvert.clinical.landmarks import BODY, VERTEBRA, Landmarks
from transvert.drr import geometry
from transvert.drr.geometry import VIEWS, View
from transvert.io import InputError

ISOCENTRE = np.array([0.0, 0.0, 300.0])
T12, L1, L2 = 19, 20, 21
UP = unit(np.array([0.0, np.tan(np.radians(20)), 1.0]))  # The spine leans to the front.
BODIES = {T12: ISOCENTRE + 30 * UP, L1: ISOCENTRE, L2: ISOCENTRE - 32 * UP}


@pytest.fixture(params=[("ap", "left_lateral"), ("pa", "right_lateral")], ids=str)
def views(request: pytest.FixtureRequest) -> tuple[View, View]:
    ap, lateral = (geometry.named_view(n, ISOCENTRE, (700, 600), (0.6, 0.5), cone=True) for n in request.param)
    return ap, lateral


@pytest.fixture
def marks(views: tuple[View, View]) -> Landmarks:
    points = {1: ISOCENTRE + 120 * UP, **BODIES}
    made = landmarks.project_landmarks(*views, ISOCENTRE, points)
    ends = {which: dict.fromkeys(landmarks.ENDS[which], np.array([600.0, 300.0])) for which in VIEWS}
    corner = {which: {L1: {landmarks.CORNERS[which][0]: np.array([300.0, 300.0])}} for which in VIEWS}
    return replace(made, s1_endplate=ends, corners=corner, of=BODY)


def test_a_whole_vertebra_lies_behind_its_body_along_its_own_lean(marks: Landmarks, views: tuple[View, View]) -> None:
    whole = centroids.to_vertebra_centroids(marks, views)
    assert whole.of == VERTEBRA
    there = whole.place(*views)[0]
    front = np.cross(UP, [1.0, 0.0, 0.0])
    for level, body in BODIES.items():
        back, up = centroids.usual_body_offsets()[endplate_prior.region(level)]
        assert 8 < back < 18
        assert_allclose(there[level], body - back * front + up * UP, atol=0.05)
    assert_allclose(there[1], ISOCENTRE + 120 * UP, atol=1e-6)  # C1 has no body to be behind.
    assert centroids.to_vertebra_centroids(whole, views) is whole


def test_who_is_marked_once_stays_where_it_is(marks: Landmarks, views: tuple[View, View]) -> None:
    pixel = np.array([10.0, 20.0])
    once = replace(marks, centroids={**marks.centroids, "ap": {**marks.centroids["ap"], 24: pixel}})
    assert_array_equal(centroids.to_vertebra_centroids(once, views).centroids["ap"][24], pixel)


def test_what_is_marked_is_kept_in_the_file(marks: Landmarks, tmp_path) -> None:
    path = landmarks.write_landmarks(tmp_path / "marks.json", marks)
    assert '"centroids_of": "body"' in path.read_text()
    assert landmarks.read_landmarks(path).of == BODY
    assert "centroids_of" not in landmarks.write_landmarks(path, replace(marks, of=VERTEBRA)).read_text()
    assert landmarks.read_landmarks(path).of == VERTEBRA
    content = marks.to_dict() | {"centroids_of": "spinous process"}
    with pytest.raises(InputError, match="'centroids_of': 'spinous process'; use 'vertebra' or 'body'"):
        landmarks.landmarks_from_dict(content)
    assert landmarks.empty_landmarks().of == BODY


def test_clicks_stray_as_far_as_stated_and_alike_for_equal_seeds(marks: Landmarks, views: tuple[View, View]) -> None:
    many = [centroids.simulate_clicks(marks, views, 2.0, np.random.default_rng(seed)) for seed in range(300)]
    for which, view in zip(VIEWS, views, strict=True):
        name, corner = landmarks.ENDS[which][0], landmarks.CORNERS[which][0]
        for part in (
            lambda m, w=which: m.centroids[w][L1],
            lambda m, w=which, n=name: m.s1_endplate[w][n],
            lambda m, w=which, n=corner: m.corners[w][L1][n],
        ):
            mm = np.array([part(m) - part(marks) for m in many]) * view.pixel_mm / view.magnification(ISOCENTRE)
            assert_allclose(mm.std(0), 2.0, rtol=0.15)
            assert_allclose(mm.mean(0), 0, atol=0.4)
    again = centroids.simulate_clicks(marks, views, 2.0, np.random.default_rng(7))
    assert_array_equal(again.centroids["ap"][L1], many[7].centroids["ap"][L1])
    still = centroids.simulate_clicks(marks, views, 0.0, np.random.default_rng(1))
    assert_allclose(still.centroids["ap"][L1], marks.centroids["ap"][L1])
