"""Radiograph views: points land where a clinician expects them, and two views find the point again."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from transvert.drr.geometry import VIEW_NAMES, View, covering_view, named_view, triangulate
from transvert.io import InputError

ISOCENTRE = np.array([10.0, -20.0, 300.0])
RIGHT, FRONT, UP = np.eye(3)
POINTS = ISOCENTRE + np.random.default_rng(0).uniform(-250, 250, (50, 3))

Beam = dict[str, bool]
BEAMS = pytest.mark.parametrize("beam", [{}, {"cone": True}, {"slot": True}], ids=["parallel", "cone", "slot"])


def view(name: str, **options: object) -> View:
    return named_view(name, ISOCENTRE, (401, 301), (0.8, 0.6), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("tilt_deg", [0, 25])
@pytest.mark.parametrize("turn_deg", [0, 7, -60])
@BEAMS
@pytest.mark.parametrize("name", VIEW_NAMES)
def test_a_point_lies_on_the_ray_of_its_pixel(name: str, beam: Beam, turn_deg: float, tilt_deg: float) -> None:
    v = view(name, **beam, turn_deg=turn_deg, tilt_deg=tilt_deg)
    start, direction = v.rays(v.project(POINTS))
    away = POINTS - start
    miss = away - (away * direction).sum(-1, keepdims=True) * direction
    assert np.linalg.norm(direction, axis=-1) == pytest.approx(1)
    assert np.linalg.norm(miss, axis=-1).max() < 1e-6


@pytest.mark.parametrize("turn_deg", [0, 7])
@BEAMS
@pytest.mark.parametrize("first", ["ap", "pa"])
@pytest.mark.parametrize("second", ["left_lateral", "right_lateral"])
def test_two_pixels_give_the_point_back(first: str, second: str, beam: Beam, turn_deg: float) -> None:
    a, b = view(first, **beam), view(second, **beam, turn_deg=turn_deg)
    for point in POINTS:
        found, miss = triangulate(a, a.project(point), b, b.project(point))
        assert np.linalg.norm(found - point) < 1e-3
        assert miss < 1e-6


def test_the_miss_of_two_rays_is_their_distance_and_parallel_rays_find_no_depth() -> None:
    a, b = view("ap"), view("lateral")
    found, miss = triangulate(a, a.project(ISOCENTRE + 2 * UP), b, b.project(ISOCENTRE - 2 * UP))
    assert miss == pytest.approx(4) and found == pytest.approx(ISOCENTRE)
    with pytest.raises(InputError, match="look the same way"):
        triangulate(view("ap"), np.zeros(2), view("pa"), np.zeros(2))


@BEAMS
@pytest.mark.parametrize("name", VIEW_NAMES)
def test_the_isocentre_is_the_middle_the_head_is_up_and_right_or_front_is_on_the_left(name: str, beam: Beam) -> None:
    v, side = view(name, **beam), FRONT if "lateral" in name else RIGHT
    across, along = (1.2 if beam else 1.0), (1.2 if beam == {"cone": True} else 1.0)
    assert v.project(ISOCENTRE) == pytest.approx([200, 150])
    assert v.project(ISOCENTRE + 8 * UP) == pytest.approx([200 - 10 * along, 150])
    assert v.project(ISOCENTRE + 6 * side) == pytest.approx([200, 150 - 10 * across])


@pytest.mark.parametrize("name", VIEW_NAMES)
def test_a_tilt_raises_the_source_and_keeps_the_detector_across_the_rays(name: str) -> None:
    v = view(name, cone=True, tilt_deg=30)
    assert v.source is not None
    away = v.source - ISOCENTRE
    assert np.linalg.norm(away) == pytest.approx(1500)
    assert away @ UP == pytest.approx(750)
    right_angles = [v.direction @ v.row_step, v.direction @ v.column_step, v.row_step @ v.column_step]
    assert right_angles == pytest.approx([0, 0, 0])
    assert v.project(ISOCENTRE) == pytest.approx([200, 150])
    # Seen from above, what lies nearer the source is lower in the picture.
    near = ISOCENTRE - 10 * view(name).direction
    assert v.project(near)[0] > 200 and v.project(ISOCENTRE + UP)[0] < 200


@pytest.mark.parametrize(
    ("name", "towards_detector"), [("ap", -FRONT), ("pa", FRONT), ("lateral", -RIGHT), ("right_lateral", RIGHT)]
)
def test_magnification_falls_towards_the_detector(name: str, towards_detector: np.ndarray) -> None:
    v = view(name, cone=True)
    assert v.magnification(ISOCENTRE) == pytest.approx(1800 / 1500)
    assert v.magnification(ISOCENTRE + 100 * towards_detector) == pytest.approx(1800 / 1600)
    assert v.magnification(ISOCENTRE + 50 * UP) == pytest.approx(1800 / 1500)
    assert view(name).magnification(ISOCENTRE + 100 * towards_detector) == pytest.approx(1)
    # A slot scanner's source moves along the patient: it magnifies only across.
    slot = view(name, slot=True).magnification(ISOCENTRE + 100 * towards_detector + 50 * UP)
    assert slot == pytest.approx([1, 1800 / 1600])


def test_magnification_on_a_tilted_detector_is_that_of_the_picture() -> None:
    v = view("ap", cone=True)
    tilted = replace(v, row_step=0.8 * np.array([0, -0.6, -0.8]))
    seen = np.diff(tilted.project(ISOCENTRE + np.outer([0, 1], tilted.row_step / 0.8)), axis=0)[0] * tilted.pixel_mm
    assert np.linalg.norm(seen) == pytest.approx(tilted.magnification(ISOCENTRE), rel=1e-3)


def test_lateral_means_left_lateral_and_a_turn_is_counter_clockwise_seen_from_the_head() -> None:
    assert view("lateral").name == "left_lateral"
    assert view("lateral").direction == pytest.approx(-RIGHT)  # The left side is next to the detector.
    # A quarter turn takes the source from the front to the patient's left.
    assert view("ap", turn_deg=90).direction == pytest.approx(RIGHT)


def test_a_point_behind_the_source_has_no_pixel_and_the_isocentre_has_the_principal_point() -> None:
    for beam in ({"cone": True}, {"slot": True}):
        v = view("ap", **beam, principal_point=(10.0, 20.5))
        behind = np.array([ISOCENTRE + 1600 * FRONT, ISOCENTRE + 1500 * FRONT])
        assert np.isnan(v.project(behind)).all()
        assert v.project(ISOCENTRE) == pytest.approx([10, 20.5])


@pytest.mark.parametrize("tilt_deg", [0, 25])
def test_a_slot_view_is_a_stack_of_fans_one_a_row(tilt_deg: float) -> None:
    """Each row of a slot view is the picture of a cone view of one row, whose source is at the row's height."""
    v = view("ap", slot=True, tilt_deg=tilt_deg)
    for row in (0, 57, 400):
        up = (200 - row) * 0.8 * -v.row_step / 0.8
        fan = named_view("ap", ISOCENTRE + up, (1, 301), (0.8, 0.6), cone=True, tilt_deg=tilt_deg)
        pixels = np.stack([np.zeros(301), np.arange(301)], axis=-1)
        for mine, its in zip(v.rays(pixels + [row, 0]), fan.rays(pixels), strict=True):
            assert mine == pytest.approx(its)
        assert v.ray_through(v.rays(pixels[7] + [row, 0])[0] + 900 * v.rays(pixels[7])[1]) == pytest.approx(
            v.rays(pixels[7])[1]
        )


@BEAMS
@pytest.mark.parametrize("name", VIEW_NAMES)
def test_a_covering_view_holds_its_box_and_little_more(name: str, beam: Beam) -> None:
    corners = np.stack(np.meshgrid([-180, 180], [-100, 140], [0, 400.5], indexing="ij"), -1).reshape(8, 3)
    v = covering_view(name, corners, 0.5, **beam, turn_deg=10)
    pixels = v.project(corners)
    assert (pixels >= -0.5 - 1e-6).all() and (pixels <= np.array(v.shape) - 0.5 + 1e-6).all()
    # The isocentre stays in the middle, so a magnified box fills one side of two.
    spare = np.minimum(pixels.min(axis=0) + 0.5, np.array(v.shape) - 0.5 - pixels.max(axis=0))
    assert (spare < 1).all()


def test_a_description_is_json_and_has_every_vector() -> None:
    v = view("right_lateral", cone=True, turn_deg=3)
    description = json.loads(json.dumps(v.to_dict()))
    assert (description["name"], description["shape"]) == ("right_lateral", [401, 301])
    assert np.linalg.norm(description["row_step_mm"]) == pytest.approx(0.8)
    assert np.linalg.norm(description["column_step_mm"]) == pytest.approx(0.6)
    assert description["source_ras_mm"] == pytest.approx(v.source)
    assert description["direction"] == pytest.approx(v.direction)
    assert view("ap").to_dict()["source_ras_mm"] is None
    found = [view("ap", **beam).to_dict()["projection"] for beam in ({}, {"cone": True}, {"slot": True})]
    assert found == ["parallel", "cone", "slot"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corner": np.zeros(2)}, "not three finite numbers"),
        ({"row_step": np.array([0, 0, np.nan])}, "not three finite numbers"),
        ({"shape": (0, 5)}, "both must be positive"),
        ({"column_step": UP}, "without an area"),
        ({"direction": -UP}, "rays parallel to its detector"),
        ({"direction": -2 * FRONT}, "not a unit vector"),
        ({"source": -5000 * FRONT}, "behind its detector"),
        ({"source": None, "slot": True}, "slot view 'ap' has no source"),
    ],
)
def test_bad_vectors(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(view("ap", cone=True), **change)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "oblique"}, "'oblique' is not a view; use ap, pa"),
        ({"pixel_mm": (1.0, 0.0)}, "both must be positive"),
        ({"shape": (0, 10)}, "both must be positive"),
        ({"isocentre": np.zeros(2)}, "needs x, y and z"),
        ({"isocentre": np.array([0, 0, np.nan])}, "not three finite numbers"),
        ({"cone": True, "source_to_isocentre_mm": 2000.0}, "the first distance must be positive and smaller"),
        ({"cone": True, "slot": True}, "a cone and as a slot view; it is one of both"),
        ({"slot": True, "source_to_isocentre_mm": 0.0}, "the first distance must be positive and smaller"),
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
