"""Radiograph views: points land where a clinician expects them, and two views find the point again."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from transvert.drr.geometry import VIEW_NAMES, View, covering_view, named_view, triangulate
from transvert.io import InputError

ISOCENTRE = np.array([10.0, -20.0, 300.0])
RIGHT, FRONT, UP = np.eye(3)
POINTS = ISOCENTRE + np.random.default_rng(0).uniform(-250, 250, (50, 3))


def view(name: str, **options: object) -> View:
    return named_view(name, ISOCENTRE, (401, 301), (0.8, 0.6), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("tilt_deg", [0, 25])
@pytest.mark.parametrize("turn_deg", [0, 7, -60])
@pytest.mark.parametrize("cone", [False, True])
@pytest.mark.parametrize("name", VIEW_NAMES)
def test_a_point_lies_on_the_ray_of_its_pixel(name: str, cone: bool, turn_deg: float, tilt_deg: float) -> None:
    v = view(name, cone=cone, turn_deg=turn_deg, tilt_deg=tilt_deg)
    start, direction = v.rays(v.project(POINTS))
    away = POINTS - start
    miss = away - (away * direction).sum(-1, keepdims=True) * direction
    assert np.linalg.norm(direction, axis=-1) == pytest.approx(1)
    assert np.linalg.norm(miss, axis=-1).max() < 1e-6


@pytest.mark.parametrize("turn_deg", [0, 7])
@pytest.mark.parametrize("cone", [False, True])
@pytest.mark.parametrize("first", ["ap", "pa"])
@pytest.mark.parametrize("second", ["left_lateral", "right_lateral"])
def test_two_pixels_give_the_point_back(first: str, second: str, cone: bool, turn_deg: float) -> None:
    a, b = view(first, cone=cone), view(second, cone=cone, turn_deg=turn_deg)
    for point in POINTS:
        found, miss = triangulate(a, a.project(point), b, b.project(point))
        assert np.linalg.norm(found - point) < 1e-3
        assert miss < 1e-6


def test_the_miss_of_two_rays_is_their_distance() -> None:
    a, b = view("ap"), view("lateral")
    found, miss = triangulate(a, a.project(ISOCENTRE + 2 * UP), b, b.project(ISOCENTRE - 2 * UP))
    assert miss == pytest.approx(4)
    assert found == pytest.approx(ISOCENTRE)


def test_views_that_look_the_same_way_find_no_depth() -> None:
    with pytest.raises(InputError, match="look the same way"):
        triangulate(view("ap"), np.zeros(2), view("pa"), np.zeros(2))


@pytest.mark.parametrize("cone", [False, True])
@pytest.mark.parametrize("name", VIEW_NAMES)
def test_the_isocentre_is_the_middle_and_the_head_is_up(name: str, cone: bool) -> None:
    v = view(name, cone=cone)
    assert v.project(ISOCENTRE) == pytest.approx([200, 150])
    magnification = 1.2 if cone else 1.0
    assert v.project(ISOCENTRE + 8 * UP) == pytest.approx([200 - 10 * magnification, 150])


@pytest.mark.parametrize("name", VIEW_NAMES)
def test_a_tilt_raises_the_source_and_keeps_the_detector_across_the_rays(name: str) -> None:
    v = view(name, cone=True, tilt_deg=30)
    assert v.source is not None
    away = v.source - ISOCENTRE
    assert np.linalg.norm(away) == pytest.approx(1500)
    assert away @ UP == pytest.approx(750)
    assert [v.direction @ v.row_step, v.direction @ v.column_step, v.row_step @ v.column_step] == pytest.approx(
        [0, 0, 0]
    )
    assert v.project(ISOCENTRE) == pytest.approx([200, 150])
    # Seen from above, what lies nearer the source is lower in the picture.
    near = ISOCENTRE - 10 * view(name).direction
    assert v.project(near)[0] > 200 and v.project(ISOCENTRE + UP)[0] < 200


@pytest.mark.parametrize("cone", [False, True])
def test_a_moved_view_sees_the_moved_point_at_the_same_pixel(cone: bool) -> None:
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("xyz", [30, 50, -70], degrees=True).as_matrix()
    motion[:3, 3] = [100, -50, 20]
    v = view("lateral", cone=cone)
    moved = v.moved(motion)
    assert moved.project(POINTS @ motion[:3, :3].T + motion[:3, 3]) == pytest.approx(v.project(POINTS))
    assert moved.moved(np.linalg.inv(motion)).to_dict()["corner_ras_mm"] == pytest.approx(v.corner)


@pytest.mark.parametrize(
    "motion", [np.eye(3), 1.1 * np.eye(4), np.diag([1, -1, 1, 1]), np.diag([1, 1, 1, 2]), np.full((4, 4), np.nan)]
)
def test_a_motion_that_is_not_rigid(motion: np.ndarray) -> None:
    with pytest.raises(InputError, match="'ap' is not rigid"):
        view("ap").moved(motion)


@pytest.mark.parametrize("cone", [False, True])
@pytest.mark.parametrize("name", ["ap", "pa"])
def test_right_is_on_the_left_from_front_and_back(name: str, cone: bool) -> None:
    column = view(name, cone=cone).project(ISOCENTRE + 6 * RIGHT)[1]
    assert column == pytest.approx(150 - 10 * (1.2 if cone else 1))


@pytest.mark.parametrize("cone", [False, True])
@pytest.mark.parametrize("name", ["left_lateral", "right_lateral"])
def test_front_is_on_the_left_from_either_side(name: str, cone: bool) -> None:
    column = view(name, cone=cone).project(ISOCENTRE + 6 * FRONT)[1]
    assert column == pytest.approx(150 - 10 * (1.2 if cone else 1))


@pytest.mark.parametrize(
    ("name", "towards_detector"), [("ap", -FRONT), ("pa", FRONT), ("lateral", -RIGHT), ("right_lateral", RIGHT)]
)
def test_magnification_falls_towards_the_detector(name: str, towards_detector: np.ndarray) -> None:
    v = view(name, cone=True)
    assert v.magnification(ISOCENTRE) == pytest.approx(1800 / 1500)
    assert v.magnification(ISOCENTRE + 100 * towards_detector) == pytest.approx(1800 / 1600)
    assert v.magnification(ISOCENTRE + 50 * UP) == pytest.approx(1800 / 1500)
    assert view(name).magnification(ISOCENTRE + 100 * towards_detector) == 1


def test_magnification_on_a_tilted_detector_is_that_of_the_picture() -> None:
    v = view("ap", cone=True)
    tilted = replace(v, row_step=0.8 * np.array([0, -0.6, -0.8]))
    seen = np.diff(tilted.project(ISOCENTRE + np.outer([0, 1], tilted.row_step / 0.8)), axis=0)[0] * tilted.pixel_mm
    assert np.linalg.norm(seen) == pytest.approx(tilted.magnification(ISOCENTRE), rel=1e-3)


def test_lateral_means_left_lateral() -> None:
    assert view("lateral").name == "left_lateral"
    assert view("lateral").direction == pytest.approx(-RIGHT)  # The left side is next to the detector.


def test_a_turn_is_counter_clockwise_seen_from_the_head() -> None:
    # A quarter turn takes the source from the front to the patient's left.
    assert view("ap", turn_deg=90).direction == pytest.approx(RIGHT)


def test_a_point_behind_the_source_has_no_pixel() -> None:
    v = view("ap", cone=True)
    behind = np.array([ISOCENTRE + 1600 * FRONT, ISOCENTRE + 1500 * FRONT, ISOCENTRE])
    assert np.isnan(v.project(behind)).all(axis=-1).tolist() == [True, True, False]


def test_principal_point() -> None:
    v = view("ap", cone=True, principal_point=(10.0, 20.5))
    assert v.project(ISOCENTRE) == pytest.approx([10, 20.5])


@pytest.mark.parametrize("cone", [False, True])
@pytest.mark.parametrize("name", VIEW_NAMES)
def test_a_covering_view_holds_its_box_and_little_more(name: str, cone: bool) -> None:
    corners = np.stack(np.meshgrid([-180, 180], [-100, 140], [0, 400.5], indexing="ij"), -1).reshape(8, 3)
    v = covering_view(name, corners, 0.5, cone=cone, turn_deg=10)
    pixels = v.project(corners)
    assert (pixels >= -0.5 - 1e-6).all() and (pixels <= np.array(v.shape) - 0.5 + 1e-6).all()
    # The isocentre stays in the middle, so a magnified box fills one side of two.
    spare = np.minimum(pixels.min(axis=0) + 0.5, np.array(v.shape) - 0.5 - pixels.max(axis=0))
    assert (spare < 1).all()


@pytest.mark.parametrize("cone", [False, True])
def test_a_description_survives_json(cone: bool) -> None:
    v = view("right_lateral", cone=cone, turn_deg=3)
    again = View.from_dict(json.loads(json.dumps(v.to_dict())))
    assert again.to_dict() == v.to_dict()
    assert np.array_equal(again.project(POINTS), v.project(POINTS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corner_ras_mm": None}, "lacks or garbles"),
        ({"corner_ras_mm": ["a", 0, 0]}, "lacks or garbles"),
        ({"corner_ras_mm": [0, 0]}, "not three finite numbers"),
        ({"down_mm": [0, 0, float("nan")]}, "not three finite numbers"),
        ({"shape": [0, 5]}, "both must be positive"),
        ({"across_mm": [0, 0, 1]}, "without an area"),
        ({"direction": [0, 0, -1]}, "rays along its detector"),
        ({"direction": [0, -2, 0]}, "not a unit vector"),
        ({"source_ras_mm": [0, -5000, 0]}, "behind its detector"),
    ],
)
def test_bad_descriptions(change: dict, message: str) -> None:
    description = view("ap", cone=True).to_dict() | change
    if change == {"corner_ras_mm": None}:
        del description["corner_ras_mm"]
    with pytest.raises(InputError, match=message):
        View.from_dict(description)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "oblique"}, "'oblique' is not a view; use ap, pa"),
        ({"pixel_mm": -1.0}, "both must be positive"),
        ({"pixel_mm": (1.0, 0.0)}, "both must be positive"),
        ({"shape": (0, 10)}, "both must be positive"),
        ({"isocentre": np.zeros(2)}, "needs x, y and z"),
        ({"isocentre": np.array([0, 0, np.nan])}, "not three finite numbers"),
        ({"cone": True, "source_to_isocentre_mm": 2000.0}, "the first must be positive and the smaller one"),
        ({"cone": True, "source_to_isocentre_mm": 0.0}, "the first must be positive and the smaller one"),
    ],
)
def test_bad_views(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        named_view(**{"name": "ap", "isocentre": ISOCENTRE, "shape": (10, 10), "pixel_mm": 1.0} | options)


def test_bad_covering_views() -> None:
    corners = np.array([[-1.0, -1, -1], [1, 1, 1]]) * 300
    with pytest.raises(InputError, match="leave out principal_point"):
        covering_view("ap", corners, 1.0, principal_point=(0, 0))
    with pytest.raises(InputError, match="not in front of the whole box"):
        covering_view("ap", corners, 1.0, cone=True, source_to_isocentre_mm=200.0)
