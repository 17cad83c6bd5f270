"""Tilts of endplates: what shapes, places and marked corners say about a spine whose tilts are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from transvert.clinical import endplates, landmarks
from transvert.clinical.endplates import CORONAL, SAGITTAL, EndplateLine, Endplates, Observations
from transvert.clinical.vertebra import REGIONS, body_region, unit
from transvert.drr import geometry
from transvert.drr.geometry import VIEWS

LEVELS = range(8, 25)  # T1 to L5
PITCH_MM = 25.0


def _plates(superior: tuple, inferior: tuple, at: np.ndarray | tuple = (0.0, 0.0, 0.0)) -> Endplates:
    """Endplates of a body 20 mm high and 30 mm deep; tilts are coronal and sagittal, degrees."""
    at = np.asarray(at)
    up, down = (unit(np.array([*np.tan(np.radians(t)), 1.0])) for t in (superior, inferior))
    axis = unit(up + down)
    return Endplates(at, at + 10 * axis, up, at - 10 * axis, down, 30.0, 40.0, 20.0, 20.0, 20.0)


def _spine(leans: dict[int, float], plane: int = SAGITTAL) -> tuple[dict[int, Endplates], dict[int, np.ndarray]]:
    """Bodies that lean as stated in one plane, as usual bodies do (wedge and offset of the table), and their places.

    Places are chosen from the tail up so that each line from neighbour to neighbour is as usual beside its body's lean.
    """
    known, order = endplates.tilt_statistics(), sorted(leans)
    places = {order[-1]: np.zeros(3), order[-2]: np.zeros(3)}
    way = np.radians(leans[order[-1]] + known["chord_above", plane, body_region(order[-1])][0])
    step = PITCH_MM * np.array([np.sin(way), np.cos(way)])
    places[order[-2]][[plane, 2]] = step
    for n in range(len(order) - 3, -1, -1):
        middle, lower = order[n + 1], order[n + 2]
        way = np.tan(np.radians(leans[middle] + known["chord", plane, body_region(middle)][0]))
        places[order[n]] = places[lower].copy()
        places[order[n]][[plane, 2]] += 2 * PITCH_MM * np.array([way, 1.0])
    found = {}
    for level, lean in leans.items():
        wedge = known["wedge", plane, body_region(level)][0]
        ends = np.zeros((2, 2))
        ends[:, plane] = lean + wedge / 2, lean - wedge / 2
        found[level] = _plates(tuple(ends[0]), tuple(ends[1]), places[level])
    return found, places


def _marked(places: dict[int, np.ndarray], mm: float, lines: Sequence[EndplateLine] = (), **more: Any) -> Observations:
    """Places that all are as unsteady, along each axis."""
    return Observations(places, dict.fromkeys(places, np.full(3, mm)), lines, **more)


def _lean(plates: Endplates, plane: int = SAGITTAL) -> float:
    return (endplates.tilt_deg(plates.superior_normal, plane) + endplates.tilt_deg(plates.inferior_normal, plane)) / 2


def _leans(found: dict[int, Endplates]) -> np.ndarray:
    return np.array([_lean(found[level]) for level in sorted(found)])


@pytest.fixture
def smooth() -> dict[int, float]:
    return {level: float(lean) for level, lean in zip(LEVELS, np.linspace(25, -20, len(LEVELS)), strict=True)}


def test_the_table_has_every_kind_plane_and_region() -> None:
    kinds = {"shape_lean", "shape_wedge", "wedge", "disc", "chord", "chord_above", "chord_below"}
    assert set(endplates.tilt_statistics()) == {(k, p, r) for k in kinds for p in (CORONAL, SAGITTAL) for r in REGIONS}
    assert all(sd > 0 for _, sd in endplates.tilt_statistics().values())
    assert all(mean == 0 for (_, plane, _), (mean, _) in endplates.tilt_statistics().items() if plane == CORONAL)
    assert {level for numbers in REGIONS.values() for level in numbers} == {*range(3, 26), 28}


def test_one_wrong_shape_is_corrected_by_where_the_spine_stands(smooth: dict[int, float]) -> None:
    found, places = _spine(smooth)
    wild = dict(found)
    wild[11] = _plates((0, smooth[11] + 25), (0, smooth[11] + 5), found[11].body_centre)
    tilted = endplates.fit_endplate_tilts(wild, _marked(places, 1.0))
    assert _lean(wild[11]) - smooth[11] == pytest.approx(15, abs=0.1)
    assert abs(_lean(tilted[11]) - smooth[11]) < 3.5
    for level, plates in tilted.items():
        assert_allclose(np.linalg.norm([plates.superior_normal, plates.inferior_normal], axis=1), 1)
        assert_allclose(plates.superior_centre, wild[level].superior_centre)
        assert abs(level - 11) < 3 or level == 24 or abs(_lean(plates) - smooth[level]) < 1.0  # L5 has no line below.


def test_fitted_tilts_are_closer_to_the_truth_by_as_much_as_the_covariance_states(smooth: dict[int, float]) -> None:
    """Shapes with the table's own errors, clicks with theirs: what comes out is off by what the system says."""
    random, known = np.random.default_rng(0), endplates.tilt_statistics()
    found, places = _spine(smooth)
    before, after, stated = [], [], []
    for _ in range(30):
        wrong = {}
        for level, plates in found.items():
            here = body_region(level)
            lean = random.normal(0, known["shape_lean", SAGITTAL, here][1])
            wedge = random.normal(0, known["shape_wedge", SAGITTAL, here][1])
            ends = [endplates.tilt_deg(n, SAGITTAL) for n in (plates.superior_normal, plates.inferior_normal)]
            wrong[level] = _plates((0, ends[0] + lean + wedge / 2), (0, ends[1] + lean - wedge / 2))
        clicked = {level: at + random.normal(0, 2.0, 3) for level, at in places.items()}
        tilted = endplates.fit_endplate_tilts(wrong, _marked(clicked, 2.0))
        truth = _leans(endplates.fit_endplate_tilts(found, _marked(places, 0.0)))
        before.append(_leans(wrong) - truth)
        after.append(_leans(tilted) - truth)
    assert np.std(after) < 0.5 * np.std(before)
    spread = endplates._solve_tilts(endplates._tilt_equations(found, sorted(found), _marked(places, 2.0), SAGITTAL))[1]
    halves = np.kron(np.eye(len(found)), [0.5, 0.5])
    stated = np.sqrt(np.diag(halves @ spread @ halves.T))
    # Anatomy, which is exact here, is part of what is stated.
    assert 0.4 < np.sqrt(np.mean(np.square(after))) / np.sqrt(np.mean(stated**2)) < 1.1


def test_uncertain_landmarks_have_less_weight(smooth: dict[int, float]) -> None:
    found, places = _spine(smooth)
    off = {level: at + np.array([0, 8.0, 0]) if level == 13 else at for level, at in places.items()}
    moved = []
    for mm in (0.0, 2.0, 8.0):
        one, other = (_leans(endplates.fit_endplate_tilts(found, _marked(at, mm))) for at in (off, places))
        moved.append(np.abs(one - other).max())
    assert moved[0] > 1.3 * moved[1] > 1.3 * 1.3 * moved[2]


def test_a_certain_line_fixes_its_tilt_in_its_own_plane(smooth: dict[int, float]) -> None:
    found, places = _spine(smooth)
    lines = [EndplateLine(11, True, SAGITTAL, 40.0, 0.1), EndplateLine(19, False, CORONAL, -12.0, 0.1)]
    tilted = endplates.fit_endplate_tilts(found, _marked(places, 1.0, lines))
    assert endplates.tilt_deg(tilted[11].superior_normal, SAGITTAL) == pytest.approx(40, abs=0.1)
    assert endplates.tilt_deg(tilted[19].inferior_normal, CORONAL) == pytest.approx(-12, abs=0.1)
    assert abs(endplates.tilt_deg(tilted[11].superior_normal, CORONAL)) < 1.5
    # Heights follow the wedge.
    turned = endplates.tilt_endplates(_plates((0, 0), (0, 0)), np.array([0.0, 5.0]), np.array([0.0, -5.0]))
    # 10 degrees over 30 mm, lower at the front.
    assert turned.posterior_mm - turned.anterior_mm == pytest.approx(60 * np.tan(np.radians(5)))
    assert turned.anterior_mm < turned.middle_mm == 20.0


def test_random_tilts_vary_as_the_covariance_states(smooth: dict[int, float]) -> None:
    found, places = _spine(smooth)
    marked = _marked(places, 0.0, random=np.random.default_rng(3))
    drawn = np.array([_leans(endplates.fit_endplate_tilts(found, marked)) for _ in range(120)])
    equations = endplates._tilt_equations(found, sorted(found), _marked(places, 0.0), SAGITTAL)
    spread = endplates._solve_tilts(equations, places_exact=True)[1]
    halves = np.kron(np.eye(len(found)), [0.5, 0.5])
    assert_allclose(drawn.std(0), np.sqrt(np.diag(halves @ spread @ halves.T)), rtol=0.2)


@pytest.mark.parametrize("levels", [[20], [11, 13], [3, 4], []])
def test_few_vertebrae_and_gaps_give_finite_tilts(levels: list[int]) -> None:
    found = {level: _plates((3, 10), (3, 4)) for level in levels}
    places = {level: np.array([0.0, 0.0, -PITCH_MM * level]) for level in levels}
    tilted = endplates.fit_endplate_tilts(found, _marked(places, 2.0))
    assert list(tilted) == levels
    for plates in tilted.values():
        assert np.isfinite(plates.superior_normal).all()
    if levels == [11, 13]:  # T5 is missing: nothing is known of the line between them.
        alone = endplates.fit_endplate_tilts({11: found[11]}, _marked({}, 2.0))
        assert_allclose(tilted[11].superior_normal, alone[11].superior_normal)


@pytest.mark.parametrize("names", [("ap", "left_lateral"), ("pa", "right_lateral")], ids=str)
def test_marked_corners_give_the_endplates_tilts(names: tuple[str, str]) -> None:
    """Corners of a tilted body far off the central rays, on cone films from either side."""
    isocentre, centre = np.array([5.0, -8.0, 300.0]), np.array([20.0, -30.0, 420.0])
    views = tuple(geometry.named_view(name, isocentre, (800, 600), (0.5, 0.5), cone=True) for name in names)
    plates = _plates((6.0, 18.0), (2.0, 9.0), centre)
    marks = landmarks.project_landmarks(*views, isocentre, {19: centre})
    corners: dict[str, dict[int, dict[str, np.ndarray]]] = {which: {19: {}} for which in VIEWS}
    for end, middle, normal in (
        ("superior", plates.superior_centre, plates.superior_normal),
        ("inferior", plates.inferior_centre, plates.inferior_normal),
    ):
        right = unit(np.array([1.0, 0, 0]) - normal[0] * normal)
        front = np.cross(normal, right)
        for which, view, way, sides in (
            ("ap", views[0], 20 * right, ("right", "left")),
            ("lateral", views[1], 15 * front, ("anterior", "posterior")),
        ):
            for side, sign in zip(sides, (1, -1), strict=True):
                corners[which][19][f"{side}_{end}"] = view.project(middle + sign * way)
    found = endplates.endplate_lines(replace(marks, corners=corners), views, {19: centre}, 1.0)
    by_end = {(line.superior, line.plane): line for line in found}
    assert len(found) == 4
    for (superior, plane), line in by_end.items():
        normal = plates.superior_normal if superior else plates.inferior_normal
        # The view looks along the other tilt too: a small angle's small part.
        assert line.tilt_deg == pytest.approx(endplates.tilt_deg(normal, plane), abs=0.8)
        click_deg = np.degrees(np.sqrt(2) / (30 if plane == SAGITTAL else 40))
        assert line.sd_deg == pytest.approx(np.hypot(endplates.CORNER_SD_DEG, click_deg), rel=0.05)
    lost = {"ap": {}, "lateral": {19: {"anterior_superior": corners["lateral"][19]["anterior_superior"]}}}
    assert endplates.endplate_lines(replace(marks, corners=lost), views, {19: centre}, 1.0) == []
