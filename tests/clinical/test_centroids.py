"""Vertebrae are moved to where their shapes say that they stand, as far as the landmarks' error allows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Patient, Seeing, ball
from numpy.testing import assert_allclose, assert_array_equal

from transvert import levels
from transvert.clinical import centroids, endplates, landmarks
from transvert.clinical.endplates import unit
from transvert.clinical.landmarks import BODY, VERTEBRA, Landmarks
from transvert.clinical.reconstruct import reconstruct, simulate_radiographs
from transvert.clinical.vertebra import Vertebra
from transvert.data import patches
from transvert.data.patches import SIZE, SPACING_MM
from transvert.drr import geometry
from transvert.drr.geometry import VIEWS, View
from transvert.model import metrics
from transvert.model.predict import landmark_offset_mm

T12, L1, L2 = 19, 20, 21
TURN = np.linalg.qr(np.array([[1.0, 0.1, -0.2], [-0.1, 1.0, 0.3], [0.2, -0.3, 1.0]]))[0]
TURN *= np.sign(np.diag(TURN))


def test_the_table_has_every_region_and_axis() -> None:
    assert list(centroids.shift_statistics()) == ["C", "T", "L"]
    for off, share, sd in centroids.shift_statistics().values():
        assert off[0] == 0 and (np.abs(off) < 5).all()
        assert ((share >= 0) & (share < 1)).all() and ((sd > 0) & (sd < 6)).all()
    assert all((centroids.shift_statistics()[name][1] > 0.1).all() for name in ("T", "L"))
    assert [levels.region(level) for level in (1, 7, 8, 19, 28, 20, 25)] == ["C", "C", "T", "T", "T", "L", "L"]


def test_a_refined_place_has_the_stated_error() -> None:
    """Clicks and shapes err as the table says: what comes out errs by what is stated, and less than the clicks."""
    random, (off, share, sd) = np.random.default_rng(0), centroids.shift_statistics()["L"]
    click_mm, left, stated = np.array([3.0, 2.0, 1.5]), [], []
    for _ in range(100):
        strayed = random.normal(0, click_mm)
        seen = share + random.normal(0, centroids.SHARE_SD, 3)
        shape = ball(off + seen * strayed + random.normal(0, sd))
        place, sure = centroids.refine_centroid(Vertebra(L2, -TURN @ strayed, shape, SPACING_MM, TURN), click_mm)
        left.append(TURN.T @ place)  # It stands at the origin.
        stated.append(sure)
    rms = np.sqrt(np.mean(np.square(left), axis=0))
    assert_allclose(rms, np.mean(stated, axis=0), rtol=0.2)
    assert (rms < 0.95 * click_mm).all()
    assert_allclose(np.mean(left, axis=0), 0, atol=0.6)


def test_exact_landmarks_and_empty_shapes_stay() -> None:
    here = np.array([1.0, 2.0, 3.0])
    for shape, sd in ((ball(np.full(3, 6.0)), 0.0), (np.zeros((SIZE,) * 3, np.float32), 2.0)):
        place, stated = centroids.refine_centroid(Vertebra(L2, here, shape, SPACING_MM), np.full(3, sd))
        assert_array_equal(place, here)
        assert_array_equal(stated, sd)


def test_only_the_uncertain_axis_moves() -> None:
    vertebra = Vertebra(L2, np.zeros(3), ball(np.full(3, 8.0)), SPACING_MM, TURN)
    place, sd = centroids.refine_centroid(vertebra, np.array([0, 4.0, 0]))
    moved = TURN.T @ place
    assert moved[1] > 2 and sd[1] < 4
    assert_allclose(moved[[0, 2]], 0, atol=1e-9)


def test_a_reconstruction_stands_where_the_films_show_it(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The centroid is a bright spot on both films, which the network sees; the landmark is 7 mm off."""
    films, views, isocentre = simulate_radiographs(patient.ct, pixel_mm=0.8)
    points = {L2: patient.centroids[L2]}
    exact = landmarks.project_landmarks(*views, isocentre, points)
    spots = []
    for which, view, one in zip(("ap", "lateral"), views, films, strict=True):
        rows, columns = np.indices(one.pixels.shape)
        away = np.hypot(rows - exact.centroids[which][L2][0], columns - exact.centroids[which][L2][1])
        spots.append(replace(one, pixels=np.exp(-((away * view.pixel_mm[0] / 4) ** 2)).astype(np.float32)))
    perfect = {name: np.array([[0.0] * 3, [1.0] * 3, [0.5] * 3]) for name in metrics.REGIONS}
    monkeypatch.setattr(centroids, "shift_statistics", lambda: perfect)
    strayed = points[L2] + np.array([5.0, -4.0, 3.0])
    marks = landmarks.project_landmarks(*views, isocentre, {L2: strayed})
    network = Seeing()
    (v,) = reconstruct(*spots, marks, network, draws=0, landmark_sd_mm=4.0).vertebrae
    assert np.linalg.norm(v.centroid_ras - points[L2]) < 1.6  # Of 7.1; half a pixel of each patch is 1.3.
    assert network.asked == 4  # Twice each look: as the patient is, and mirrored.
    found = reconstruct(*spots, marks, network, draws=2, landmark_sd_mm=4.0)
    assert not any("look at its landmarks" in line for line in found.warnings)
    assert found.posture["vertebrae"][0]["x_mm"] == pytest.approx(points[L2][0], abs=1.2)
    assert found.posture["vertebrae"][0]["x_mm_sd"] < 1.5  # Other clicks find the same place.
    assert_allclose(found.observations.sd_mm[L2], [0.77, 0.77, 0.64], atol=0.01)
    found = reconstruct(*spots, marks, network, draws=0, landmark_sd_mm=1.5)
    assert "L2: the films show it 7 mm from where it is marked; look at its landmarks." in found.warnings
    found = reconstruct(*spots, marks, network, draws=0, landmark_sd_mm=0.0)
    assert_allclose(found.vertebrae[0].centroid_ras, strayed, atol=0.01)
    assert not any("look at its landmarks" in line for line in found.warnings)


def test_a_body_is_less_certain_along_its_depth() -> None:
    assert_allclose(centroids.place_sd_mm(VERTEBRA, L2, 2.0), [2, 2, np.sqrt(2)])
    right, front, up = centroids.place_sd_mm(BODY, L2, 2.0)
    assert right == 2 and 2.5 < front < 5 and np.sqrt(2) < up < 3
    assert_allclose(centroids.place_sd_mm(BODY, 1, 2.0), centroids.place_sd_mm(VERTEBRA, 1, 2.0))
    assert not centroids.place_sd_mm(VERTEBRA, L2, 0.0).any()


def test_clicks_place_a_vertebra_as_triangulation_does(patient: Patient) -> None:
    """`predict.landmark_offset_mm` gives the same place from patches as two rays do in space."""
    _, views, isocentre = simulate_radiographs(patient.ct, pixel_mm=1.5)
    there = patient.centroids[L2]
    marks = landmarks.project_landmarks(*views, isocentre, {L2: there})
    clicks = torch.tensor([[1.0, 2.0], [-3.0, 4.0]])
    axes = patches.local_axes(*views, there)
    for which, (down, across), view in zip(("ap", "lateral"), clicks.tolist(), views, strict=True):
        steps = patches.plane(axes, ("ap", "lateral").index(which))
        marks.centroids[which][L2] = view.project(there + steps.T @ [down, across])
    place = marks.triangulate(*views)[0][L2]
    assert_allclose(axes.T @ (place - there), landmark_offset_mm(clicks), atol=0.1)


# Bodies and clicks

ISOCENTRE = np.array([0.0, 0.0, 300.0])
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
    return replace(made, s1_endplate=ends, corners=corner, centroids_of=BODY)


def test_a_vertebras_centroid_lies_behind_its_body_along_its_lean(marks: Landmarks, views: tuple[View, View]) -> None:
    whole = centroids.to_vertebra_centroids(marks, views)
    assert whole.centroids_of == VERTEBRA
    there = whole.place(*views)[0]
    front = np.cross(UP, [1.0, 0.0, 0.0])
    for level, body in BODIES.items():
        offset = centroids.body_offsets()[endplates.region(level)]
        back, up = offset["back_mm"], offset["up_mm"]
        assert 8 < back < 18
        assert_allclose(there[level], body - back * front + up * UP, atol=0.05)
    assert_allclose(there[1], ISOCENTRE + 120 * UP, atol=1e-6)  # C1 has no body to be behind.
    assert centroids.to_vertebra_centroids(whole, views) is whole


def test_a_level_marked_on_one_film_stays(marks: Landmarks, views: tuple[View, View]) -> None:
    pixel = np.array([10.0, 20.0])
    once = replace(marks, centroids={**marks.centroids, "ap": {**marks.centroids["ap"], 24: pixel}})
    assert_array_equal(centroids.to_vertebra_centroids(once, views).centroids["ap"][24], pixel)


def test_simulated_clicks_have_the_stated_error_and_repeat_by_seed(marks: Landmarks, views: tuple[View, View]) -> None:
    many = [centroids.simulate_clicks(marks, views, 2.0, np.random.default_rng(seed)) for seed in range(200)]
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
