"""Vertebrae are moved to where their shapes say that they stand, by as much as the hand was unsteady."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Patient, Seeing, ball
from numpy.testing import assert_allclose, assert_array_equal

from transvert import levels
from transvert.clinical import centroids, landmarks
from transvert.clinical.landmarks import BODY, VERTEBRA
from transvert.clinical.reconstruct import reconstruct, simulate_radiographs
from transvert.clinical.vertebra import Vertebra
from transvert.data import patches
from transvert.data.patches import SIZE, SPACING_MM
from transvert.model import metrics
from transvert.model.predict import placed

L2 = 21
TURN = np.linalg.qr(np.array([[1.0, 0.1, -0.2], [-0.1, 1.0, 0.3], [0.2, -0.3, 1.0]]))[0]
TURN *= np.sign(np.diag(TURN))


def test_the_table_has_every_region_and_axis_and_says_that_shapes_follow_the_films_in_part() -> None:
    assert list(centroids.usual_offsets()) == ["C", "T", "L"]
    for off, undone, sd in centroids.usual_offsets().values():
        assert off[0] == 0 and (np.abs(off) < 5).all()
        assert ((undone >= 0) & (undone < 1)).all() and ((sd > 0) & (sd < 6)).all()
    assert all((centroids.usual_offsets()[name][1] > 0.1).all() for name in ("T", "L"))
    assert [levels.region(level) for level in (1, 7, 8, 19, 28, 20, 25)] == ["C", "C", "T", "T", "T", "L", "L"]


def test_where_a_vertebra_stands_is_as_sure_as_it_says() -> None:
    """Clicks and shapes err as the table says: what comes out errs by what is stated, and less than the clicks."""
    random, (off, undone, sd) = np.random.default_rng(0), centroids.usual_offsets()["L"]
    click_mm, left, stated = np.array([3.0, 2.0, 1.5]), [], []
    for _ in range(300):
        strayed = random.normal(0, click_mm)
        share = undone + random.normal(0, centroids.SHARE_SD, 3)
        shape = ball(off + share * strayed + random.normal(0, sd))
        place, sure = centroids.refine_centroid(Vertebra(L2, -TURN @ strayed, shape, SPACING_MM, TURN), click_mm)
        left.append(TURN.T @ place)  # It stands at the origin.
        stated.append(sure)
    rms = np.sqrt(np.mean(np.square(left), axis=0))
    assert_allclose(rms, np.mean(stated, axis=0), rtol=0.12)
    assert (rms < 0.95 * click_mm).all()
    assert_allclose(np.mean(left, axis=0), 0, atol=0.4)


def test_exact_clicks_and_empty_shapes_stay() -> None:
    here = np.array([1.0, 2.0, 3.0])
    place, sure = centroids.refine_centroid(Vertebra(L2, here, ball(np.full(3, 6.0)), SPACING_MM), np.zeros(3))
    assert_array_equal(place, here)
    assert_array_equal(sure, 0)
    empty = Vertebra(L2, here, np.zeros((SIZE,) * 3, np.float32), SPACING_MM)
    place, sure = centroids.refine_centroid(empty, np.full(3, 2.0))
    assert_array_equal(place, here)
    assert_array_equal(sure, 2)


def test_only_the_axis_along_which_a_click_is_unsteady_moves() -> None:
    v = Vertebra(L2, np.zeros(3), ball(np.full(3, 8.0)), SPACING_MM, TURN)
    place, sure = centroids.refine_centroid(v, np.array([0, 4.0, 0]))
    moved = TURN.T @ place
    assert moved[1] > 2 and sure[1] < 4
    assert_allclose(moved[[0, 2]], 0, atol=1e-9)


def test_a_reconstruction_stands_where_the_films_show_it(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each centroid is a bright spot on both films; the network sees it, though the clicks have strayed."""
    films, views, isocentre = simulate_radiographs(patient.ct, pixel_mm=0.8)
    points = {L2: patient.centroids[L2]}
    exact = landmarks.project_landmarks(*views, isocentre, points)
    spots = []
    for which, view, one in zip(("ap", "lateral"), views, films, strict=True):
        rows, columns = np.indices(one.pixels.shape)
        away = np.hypot(rows - exact.centroids[which][L2][0], columns - exact.centroids[which][L2][1])
        spots.append(replace(one, pixels=np.exp(-((away * view.pixel_mm[0] / 4) ** 2)).astype(np.float32)))
    perfect = {name: np.array([[0.0] * 3, [1.0] * 3, [0.5] * 3]) for name in metrics.REGIONS}
    monkeypatch.setattr(centroids, "usual_offsets", lambda: perfect)
    strayed = points[L2] + np.array([5.0, -4.0, 3.0])
    marks = landmarks.project_landmarks(*views, isocentre, {L2: strayed})
    network = Seeing()
    (v,) = reconstruct(*spots, marks, network, draws=0, click_mm=4.0).vertebrae
    assert np.linalg.norm(v.centroid_ras - points[L2]) < 1.6  # Of 7.1; half a pixel of each patch is 1.3.
    assert network.asked == 4  # Twice each look: as the patient is, and mirrored.
    found = reconstruct(*spots, marks, network, draws=2, click_mm=4.0)
    assert not any("look at its landmarks" in line for line in found.warnings)
    assert found.posture["vertebrae"][0]["x_mm"] == pytest.approx(points[L2][0], abs=1.2)
    assert found.posture["vertebrae"][0]["x_mm_sd"] < 1.5  # Other clicks find the same place.
    assert_allclose(found.evidence.sd_mm[L2], [0.77, 0.77, 0.64], atol=0.01)
    found = reconstruct(*spots, marks, network, draws=0, click_mm=1.5)
    assert "L2: the films show it 7 mm from where it is marked; look at its landmarks." in found.warnings
    found = reconstruct(*spots, marks, network, draws=0, click_mm=0.0)
    assert_allclose(found.vertebrae[0].centroid_ras, strayed, atol=0.01)
    assert not any("look at its landmarks" in line for line in found.warnings)


def test_bodies_are_less_sure_along_the_way_to_the_arch() -> None:
    assert_allclose(centroids.landmark_sd_mm(VERTEBRA, L2, 2.0), [2, 2, np.sqrt(2)])
    right, front, up = centroids.landmark_sd_mm(BODY, L2, 2.0)
    assert right == 2 and 2.5 < front < 5 and np.sqrt(2) < up < 3
    assert_allclose(centroids.landmark_sd_mm(BODY, 1, 2.0), centroids.landmark_sd_mm(VERTEBRA, 1, 2.0))
    assert not centroids.landmark_sd_mm(VERTEBRA, L2, 0.0).any()


def test_clicks_place_a_vertebra_as_triangulation_does(patient: Patient) -> None:
    """`uncertainty.placed` says of patches what two rays say in space."""
    _, views, isocentre = simulate_radiographs(patient.ct, pixel_mm=1.5)
    there = patient.centroids[L2]
    marks = landmarks.project_landmarks(*views, isocentre, {L2: there})
    clicks = torch.tensor([[1.0, 2.0], [-3.0, 4.0]])
    axes = patches.local_axes(*views, there)
    for which, (down, across), view in zip(("ap", "lateral"), clicks.tolist(), views, strict=True):
        steps = patches.plane(axes, ("ap", "lateral").index(which))
        marks.centroids[which][L2] = view.project(there + steps.T @ [down, across])
    place = marks.triangulate(*views)[0][L2]
    assert_allclose(axes.T @ (place - there), placed(clicks), atol=0.1)
