"""Vertebrae move to where their shapes say that they stand, and are assembled into label volumes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Patient, Seeing, ball
from numpy.testing import assert_allclose, assert_array_equal, assert_array_less
from scipy.spatial.transform import Rotation

from transvert.clinical import film_checks, landmarks, vertebra
from transvert.clinical.landmarks import BODY, VERTEBRA, Landmarks
from transvert.clinical.reconstruct import reconstruct, simulate_radiographs
from transvert.clinical.vertebra import Vertebra, unit
from transvert.data import patches
from transvert.data.patches import SIZE, SPACING_MM
from transvert.drr import geometry
from transvert.drr.geometry import VIEWS, View
from transvert.imaging.volume import Volume
from transvert.io import InputError
from transvert.model import metrics
from transvert.model.predict import landmark_offset_mm

T4, T12, L1, L2 = 11, 19, 20, 21
TURN = np.linalg.qr(np.array([[1.0, 0.1, -0.2], [-0.1, 1.0, 0.3], [0.2, -0.3, 1.0]]))[0]
TURN *= np.sign(np.diag(TURN))


def test_the_table_has_every_region_and_axis() -> None:
    assert list(vertebra.shift_statistics()) == ["C", "T", "L"]
    for off, share, sd in vertebra.shift_statistics().values():
        assert off[0] == 0 and (np.abs(off) < 5).all()
        assert ((share >= 0) & (share < 1)).all() and ((sd > 0) & (sd < 6)).all()
    assert all((vertebra.shift_statistics()[name][1] > 0.1).all() for name in ("T", "L"))


def test_a_refined_place_has_the_stated_error() -> None:
    """Clicks and shapes err as the table says: what comes out errs by what is stated, and less than the clicks."""
    random, (off, share, sd) = np.random.default_rng(0), vertebra.shift_statistics()["L"]
    click_mm, left, stated = np.array([3.0, 2.0, 1.5]), [], []
    for _ in range(60):
        strayed = random.normal(0, click_mm)
        seen = share + random.normal(0, vertebra.SHARE_SD, 3)
        shape = ball(off + seen * strayed + random.normal(0, sd))
        place, sure = vertebra.refine_centroid(Vertebra(L2, -TURN @ strayed, shape, SPACING_MM, TURN), click_mm)
        left.append(TURN.T @ place)  # It stands at the origin.
        stated.append(sure)
    rms = np.sqrt(np.mean(np.square(left), axis=0))
    assert_allclose(rms, np.mean(stated, axis=0), rtol=0.2)
    assert (rms < 0.95 * click_mm).all()
    assert_allclose(np.mean(left, axis=0), 0, atol=0.6)


def test_exact_landmarks_and_empty_shapes_stay() -> None:
    here = np.array([1.0, 2.0, 3.0])
    for shape, sd in ((ball(np.full(3, 6.0)), 0.0), (np.zeros((SIZE,) * 3, np.float32), 2.0)):
        place, stated = vertebra.refine_centroid(Vertebra(L2, here, shape, SPACING_MM), np.full(3, sd))
        assert_array_equal(place, here)
        assert_array_equal(stated, sd)
    # Only the uncertain axis moves.
    shape = Vertebra(L2, np.zeros(3), ball(np.full(3, 8.0)), SPACING_MM, TURN)
    place, sd = vertebra.refine_centroid(shape, np.array([0, 4.0, 0]))
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
    monkeypatch.setattr(vertebra, "shift_statistics", lambda: perfect)
    monkeypatch.setattr(film_checks, "NOTHING", -1.0)  # A spot is no vertebra.
    strayed = points[L2] + np.array([5.0, -4.0, 3.0])
    marks = landmarks.project_landmarks(*views, isocentre, {L2: strayed})
    network = Seeing()
    found = reconstruct(*spots, marks, network, draws=2, landmark_sd_mm=4.0)
    # Of 7.1 mm; half a pixel of each patch is 1.3.
    assert np.linalg.norm(found.vertebrae[0].centroid_ras - points[L2]) < 1.6
    assert network.asked == 8  # Two looks as the patient is and mirrored, and two looks for each draw.
    assert not any("look at its landmarks" in line for line in found.warnings)
    assert found.posture["vertebrae"][0]["x_mm"] == pytest.approx(points[L2][0], abs=1.2)
    assert found.posture["vertebrae"][0]["x_mm_sd"] < 1.5  # Other clicks find the same place.
    assert_allclose(found.observations.sd_mm[L2], [0.77, 0.77, 0.64], atol=0.01)
    found = reconstruct(*spots, marks, network, draws=0, landmark_sd_mm=1.5)
    assert "L2: the films show it 7 mm from where it is marked; look at its landmarks." in found.warnings
    found = reconstruct(*spots, marks, network, draws=0, landmark_sd_mm=0.0)
    assert_allclose(found.vertebrae[0].centroid_ras, strayed, atol=0.01)


def test_a_body_is_less_certain_along_its_depth() -> None:
    assert_allclose(vertebra.place_sd_mm(VERTEBRA, L2, 2.0), [2, 2, np.sqrt(2)])
    right, front, up = vertebra.place_sd_mm(BODY, L2, 2.0)
    assert right == 2 and 2.5 < front < 5 and np.sqrt(2) < up < 3
    assert_allclose(vertebra.place_sd_mm(BODY, 1, 2.0), vertebra.place_sd_mm(VERTEBRA, 1, 2.0))
    assert not vertebra.place_sd_mm(VERTEBRA, L2, 0.0).any()


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
    whole = vertebra.to_vertebra_centroids(marks, views)
    assert whole.centroids_of == VERTEBRA
    there = whole.place(*views)[0]
    front = np.cross(UP, [1.0, 0.0, 0.0])
    for level, body in BODIES.items():
        offset = vertebra.body_offsets()[vertebra.body_region(level)]
        back, up = offset["back_mm"], offset["up_mm"]
        assert 8 < back < 18
        assert_allclose(there[level], body - back * front + up * UP, atol=0.05)
    assert_allclose(there[1], ISOCENTRE + 120 * UP, atol=1e-6)  # C1 has no body to be behind.
    assert vertebra.to_vertebra_centroids(whole, views) is whole
    # A level marked on one film stays.
    pixel = np.array([10.0, 20.0])
    once = replace(marks, centroids={**marks.centroids, "ap": {**marks.centroids["ap"], 24: pixel}})
    assert_array_equal(vertebra.to_vertebra_centroids(once, views).centroids["ap"][24], pixel)


def test_simulated_clicks_have_the_stated_error_and_repeat_by_seed(marks: Landmarks, views: tuple[View, View]) -> None:
    many = [vertebra.simulate_clicks(marks, views, 2.0, np.random.default_rng(seed)) for seed in range(200)]
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
    again = vertebra.simulate_clicks(marks, views, 2.0, np.random.default_rng(7))
    assert_array_equal(again.centroids["ap"][L1], many[7].centroids["ap"][L1])


CUBE_MM = (np.indices((SIZE,) * 3) - (SIZE - 1) / 2) * SPACING_MM


def _ball(level: int, at: tuple[float, float, float], radius: float = 9.0, value: float = 1.0) -> Vertebra:
    share = value * np.clip((radius - np.linalg.norm(CUBE_MM, axis=0)) / SPACING_MM + 0.5, 0, 1)
    return Vertebra(level, np.array(at), share.astype(np.float32), SPACING_MM)


def test_assembled_labels_stand_where_the_vertebrae_stand() -> None:
    volume = vertebra.assemble_spine([_ball(28, (30.0, -20.0, 400.0)), _ball(L1, (10.0, 5.0, 340.0), radius=6.0)])
    assert volume.data.dtype == np.uint8
    assert set(np.unique(volume.data)) == {0, 28, L1}
    assert_allclose(volume.spacing_mm, 1)
    for level, at, radius in ((28, (30.0, -20.0, 400.0), 9), (L1, (10.0, 5.0, 340.0), 6)):
        voxels = volume.world(np.argwhere(volume.data == level))
        assert_allclose(voxels.mean(axis=0), at, atol=0.05)
        assert len(voxels) == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.05)
    corners = volume.corners()
    half = SIZE * SPACING_MM / 2
    assert_allclose(corners.min(0), [10 - half, -20 - half, 340 - half], atol=1e-6)
    assert (corners.max(0) >= [30 + half, 5 + half, 400 + half]).all()


def test_the_more_probable_vertebra_wins_and_stray_parts_go() -> None:
    strong, weak = _ball(T4, (0.0, 0.0, 10.0)), _ball(12, (0.0, 0.0, 0.0), value=0.8)
    weak.probability[2:5, 2:5, 2:5] = 1.0
    volume = vertebra.assemble_spine([weak, strong])
    i, j, k = np.rint(volume.index([0.0, 0.0, 5.0])).astype(int)
    assert volume.data[i, j, k] == T4
    i, j, k = np.rint(volume.index([0.0, 0.0, -4.0])).astype(int)
    assert volume.data[i, j, k] == 12
    assert np.linalg.norm(volume.world(np.argwhere(volume.data == 12)), axis=1).max() < 10
    assert_array_equal(volume.data, vertebra.assemble_spine([strong, weak]).data)


def test_gaps_are_missing_and_impossible_spines_refused() -> None:
    empty = Vertebra(18, np.zeros(3), np.zeros((8, 8, 8), np.float32), SPACING_MM)
    assert vertebra.missing_levels([_ball(21, (0, 0, 0)), empty, _ball(16, (0, 0, 90))]) == ["T10", "T11", "T12", "L1"]
    assert vertebra.missing_levels([_ball(T12, (0, 0, 30)), _ball(L1, (0, 0, 0))]) == []
    assert vertebra.missing_levels([]) == []
    with pytest.raises(InputError, match="no vertebra to assemble"):
        vertebra.assemble_spine([])
    with pytest.raises(InputError, match="T4 is no vertebra or is there twice"):
        vertebra.assemble_spine([_ball(T4, (0, 0, 0)), _ball(T4, (0, 0, 30))])
    with pytest.raises(InputError, match="sacrum is no vertebra"):
        vertebra.assemble_spine([_ball(26, (0, 0, 0))])


def test_a_cube_that_stands_askew_is_assembled_where_its_axes_put_it() -> None:
    axes = Rotation.from_euler("xyz", [14, -11, 5], degrees=True).as_matrix()
    box = (np.abs(CUBE_MM - np.reshape([10.0, -6.0, 4.0], (3, 1, 1, 1))) < np.reshape([25, 15, 9], (3, 1, 1, 1))).all(0)
    placed = Vertebra(L1, np.array([30.0, -80.0, 200.0]), box.astype(np.float32), SPACING_MM, axes)
    assert_allclose(Volume(box, placed.affine).world(np.full(3, (SIZE - 1) / 2)), [30, -80, 200])
    other = _ball(T12, (30.0, -80.0, 270.0))
    volume = vertebra.assemble_spine([placed, other])
    own = (volume.world(np.argwhere(volume.data == L1)) - placed.centroid_ras) @ axes
    given = CUBE_MM[:, box]
    assert_allclose(own.mean(0), given.mean(1), atol=0.05)
    assert_allclose(np.ptp(own, axis=0), np.ptp(given, axis=1) + SPACING_MM, atol=1.5)
    assert len(own) == pytest.approx(box.sum() * SPACING_MM**3, rel=0.02)
    assert_allclose(volume.world(np.argwhere(volume.data == T12)).mean(0), [30, -80, 270], atol=0.05)


def _curve(cobb_deg: float) -> dict[int, np.ndarray]:
    """T3 to L4 along an even curve to the side, 25 mm apart."""
    turns = np.radians(np.linspace(-cobb_deg / 2, cobb_deg / 2, 14))
    steps = 25.0 * np.stack([np.sin(turns), np.full(14, 0.1), -np.cos(turns)], axis=1)
    return dict(zip(range(10, 24), np.cumsum(steps, axis=0), strict=True))


def test_places_in_line_gain_and_their_stated_error_is_right() -> None:
    true, random, sd = _curve(0.0), np.random.default_rng(0), {n: np.array([1.0, 2.0, 1.5]) for n in range(10, 24)}
    errors, before, stated = [], [], []
    for _ in range(40):
        given = {n: at + random.normal(0, sd[n]) for n, at in true.items()}
        found, left = vertebra.align_places(given, sd)
        errors.append([found[n] - true[n] for n in true])
        before.append([given[n] - true[n] for n in true])
        stated.append([left[n] for n in true])
    assert np.square(errors).mean() < 0.7 * np.square(before).mean()
    # People's vertebrae are not perfectly in line, so on a perfect line the stated error is not the smaller one.
    assert_array_less(np.sqrt(np.square(errors).mean((0, 1))), 1.05 * np.mean(stated, (0, 1)))
    assert_array_less(np.mean(stated, (0, 1)), [1.0, 2.0, 1.5])


def test_no_curve_is_flattened_and_a_slipped_vertebra_stays_where_the_films_show_it() -> None:
    sd = {n: np.full(3, 1.5) for n in range(10, 24)}
    true = _curve(60.0)
    found, _ = vertebra.align_places(true, sd)
    assert_allclose([found[n] for n in true], list(true.values()), atol=0.1)
    slipped = true | {22: true[22] + [0.0, 15.0, 0.0]}
    found, _ = vertebra.align_places(slipped, sd)
    assert abs(found[22][1] - slipped[22][1]) < 3.0


def test_exact_axes_of_a_place_stay() -> None:
    """As with exact landmarks of bodies, whose depth alone is uncertain."""
    random, sd = np.random.default_rng(0), {n: np.array([0.0, 2.0, 1.0]) for n in range(10, 24)}
    given = {n: at + random.normal(0, 2, 3) for n, at in _curve(20.0).items()}
    found, _ = vertebra.align_places(given, sd)
    moved = np.array([found[n] - given[n] for n in given])
    assert_allclose(moved[:, 0], 0, atol=1e-3)
    assert (np.abs(moved[:, 1:]).max(0) > 0.1).all()


def test_few_places_and_gaps_stay() -> None:
    sd = {n: np.full(3, 1.5) for n in range(10, 24)}
    for levels_ in ([10, 11, 12, 13], [10, 11, 13, 14, 15]):
        given = {n: np.random.default_rng(n).normal(size=3) for n in levels_}
        found, left = vertebra.align_places(given, sd)
        for n in levels_:
            assert_allclose(found[n], given[n])
            assert_allclose(left[n], sd[n])
