"""Endplates, rotation and posture against bodies with known tilt: discs of bone with an arch and processes behind."""

import csv
import functools
import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from transvert import levels
from transvert.clinical import endplates, posture, vertebra
from transvert.clinical.posture import add_spread, measure_posture, write_posture
from transvert.clinical.vertebra import Vertebra
from transvert.io import InputError

SIZE, SPACING = 64, 1.5
C7, T4, T12, L1, L5 = 7, 11, 19, 20, 24
POINTS = (np.indices((SIZE,) * 3) - (SIZE - 1) / 2) * SPACING
BODY = np.array([0.0, 8.0, 0.0])
"""Where the body lies in its cube, mm."""

# The arch: half the bars' widths, and their middles beside the body's back, mm: pedicles, lamina, spinous process,
# transverse processes, facets. A canal lies between the body and the lamina.
BARS = [
    ((4, 8, 4), (11, -4, 4)),
    ((4, 8, 4), (-11, -4, 4)),
    ((15, 3, 8), (0, -14, 0)),
    ((3, 10, 6), (0, -24, -6)),
    ((30, 4, 4), (0, -12, 2)),
    ((4, 3, 10), (13, -11, 12)),
    ((4, 3, 10), (-13, -11, 12)),
]


def _occupancy(points, radii=(17.0, 15.0), height=20.0, wedge=0.0, bars=None):
    """An elliptic disc with bars behind it, at points (3, ...) in its own frame; the bars have a frame of their own."""
    x, y, z = points - np.reshape(BODY, (3, 1, 1, 1))
    half = height / 2 - np.tan(np.radians(wedge / 2)) * y
    parts = [np.minimum(radii[0] - np.hypot(x, y * radii[0] / radii[1]), half - np.abs(z))]
    for widths, middle in BARS:
        offset = np.abs(
            (points if bars is None else bars) - np.reshape(np.add(middle, BODY - (0, radii[1], 0)), (3, 1, 1, 1))
        )
        parts.append((np.reshape(widths, (3, 1, 1, 1)) - offset).min(axis=0))
    return np.clip(np.maximum.reduce(parts) / SPACING + 0.5, 0, 1).astype(np.float32)


@functools.cache
def _tilted(sagittal, coronal, **shape):
    axis = vertebra.unit(np.array([np.tan(np.radians(coronal)), np.tan(np.radians(sagittal)), 1.0]))
    right = vertebra.unit(np.array([1.0, 0.0, 0.0]) - axis[0] * axis)
    around = POINTS - BODY[:, None, None, None]
    points = np.einsum("ij,jxyz->ixyz", [right, np.cross(axis, right), axis], around) + BODY[:, None, None, None]
    return _occupancy(points, bars=POINTS, **shape)


def _vertebra(level, sagittal=0.0, coronal=0.0, at=(0.0, 0.0, 0.0), **shape):
    """A body tilted by degrees, with an upright arch."""
    return Vertebra(level, np.asarray(at, float), _tilted(float(sagittal), float(coronal), **shape), SPACING)


@pytest.fixture(autouse=True)
def _without_rotations(monkeypatch):
    """The search for rotations takes most of the time."""
    monkeypatch.setattr(posture, "axial_rotation_deg", lambda vertebra, near_deg: 0.0)


def _spine(sagittal=None, coronal=None, beside=None, step=30.0):
    """Bodies with the given tilts by level, one below the other."""
    order = list(sagittal or coronal)
    places = [(x, 0, -step * n) for n, x in enumerate(beside or [0] * len(order))]
    return [
        _vertebra(n, (sagittal or {}).get(n, 0), (coronal or {}).get(n, 0), at=at)
        for n, at in zip(order, places, strict=True)
    ]


def _degrees(normal):
    return np.degrees(np.arctan2(normal[[1, 0]], normal[2]))


@pytest.mark.parametrize(
    ("sagittal", "coronal", "radii", "height"),
    [(35, 0, (17, 15), 20), (-20, 30, (22, 16), 26), (12, -25, (17, 17), 20), (-30, -25, (9, 8), 12)],
)
def test_endplates_of_a_tilted_body(sagittal, coronal, radii, height):
    found = endplates.fit_endplates(_vertebra(T4, sagittal, coronal, (40.0, -30.0, 500.0), radii=radii, height=height))
    for normal in (found.superior_normal, found.inferior_normal):
        np.testing.assert_allclose(_degrees(normal), [sagittal, coronal], atol=0.75)
    np.testing.assert_allclose(found.body_centre, np.add((40.0, -30.0, 500.0), BODY), atol=1.0)
    along = (found.superior_centre - found.inferior_centre) @ found.superior_normal
    assert along == pytest.approx(height, abs=0.5)
    for mm in (found.anterior_mm, found.middle_mm, found.posterior_mm):
        assert mm == pytest.approx(height, abs=1.0)
    assert found.depth_mm == pytest.approx(2 * radii[1], abs=2)
    assert found.width_mm == pytest.approx(2 * radii[0], abs=2)


def test_a_binary_mask_with_fragments_and_holes_has_the_same_endplates():
    clean = _vertebra(T4, 20, -10)
    mask = clean.probability >= 0.5
    mask[2:9, 55:62, 2:9] = True
    mask[30:33, 36:39, 30:33] = False
    found = endplates.fit_endplates(Vertebra(T4, clean.centroid_ras, mask.astype(np.float32), SPACING))
    for normal in (found.superior_normal, found.inferior_normal):
        np.testing.assert_allclose(_degrees(normal), [20, -10], atol=3)


@pytest.mark.parametrize(
    ("level", "voxels", "message"),
    [(2, 64, "C2 has no ordinary"), (T4, 0, "T4 is empty"), *((T4, n, "No vertebral body") for n in (1, 64))],
)
def test_no_endplates_where_there_is_no_body(level, voxels, message):
    probability = np.zeros((64, 64, 64), np.float32)
    probability[:voxels, :voxels, :voxels] = 1
    with pytest.raises(InputError, match=message):
        endplates.fit_endplates(Vertebra(level, np.zeros(3), probability, SPACING))


def test_kyphosis_wedges_and_discs_of_an_arc():
    # Nine bodies on a circle whose middle lies in front, 5 degrees apart: going up, each leans further to the front.
    radius, step = 330.0, np.radians(5)
    arc = []
    for level in range(T4, T12 + 1):
        angle = (15 - level) * step
        at = (0, radius * (1 - np.cos(angle)), radius * np.sin(angle))
        arc.append(_vertebra(level, np.degrees(angle), at=at))
    measured = measure_posture(arc[::-1])  # the order given does not matter
    assert measured["measures"]["thoracic_kyphosis"]["value"] == pytest.approx(40, abs=1.5)
    rows = measured["vertebrae"]
    assert [row["level"] for row in rows] == [f"T{n}" for n in range(4, 13)]
    np.testing.assert_allclose([row["sagittal_tilt_deg"] for row in rows], np.arange(20, -21, -5), atol=1)
    np.testing.assert_allclose([row["wedge_deg"] for row in rows], 0, atol=1.5)
    wedged = measure_posture([_vertebra(T12, wedge=8.0)])["vertebrae"][0]  # Positive where the front is lower.
    assert wedged["wedge_deg"] == pytest.approx(8, abs=1) and wedged["posterior_mm"] > wedged["anterior_mm"] + 3
    # Chord between neighbours, less a body's height; both bodies' centres lie 8 mm in front of the arc.
    assert rows[-1]["disc_below_mm"] is None
    assert rows[3]["disc_below_mm"] == pytest.approx(2 * radius * np.sin(step / 2) - 20, abs=1.5)


def test_lordosis_and_the_reason_why_it_is_missing():
    lumbar = [_vertebra(L1 + i, 10.0 * i - 15, at=(0, 0, -35.0 * i)) for i in range(5)]
    assert measure_posture(lumbar)["measures"]["lumbar_lordosis"]["value"] == pytest.approx(40, abs=1.5)
    entry = measure_posture(lumbar[:4])["measures"]["lumbar_lordosis"]
    assert entry["value"] is None and entry["reason"] == "L5 is not in this spine."
    empty = Vertebra(L5, np.zeros(3), np.zeros((8, 8, 8), np.float32), SPACING)
    assert "L5 is empty" in measure_posture([*lumbar[:4], empty])["measures"]["lumbar_lordosis"]["reason"]


@pytest.mark.parametrize(("sign", "side"), [(1, "right"), (-1, "left")])
def test_a_cobb_angle_has_end_levels_an_apex_and_a_side_that_draws_keep(sign, side):
    # A curve that bulges to one side between T6 and T10: above its apex the bodies lean back to the other side.
    tilts = {10: 0, 11: -4, 13: -16, 15: 2, 17: 20, 19: 5, 20: 0}
    beside = [sign * mm for mm in (0, 3, 8, 12, 8, 3, 0)]
    curve = _spine(coronal={n: sign * tilt for n, tilt in tilts.items()}, beside=beside)
    measured = measure_posture(curve)
    entry = measured["measures"]["coronal_cobb"]
    assert entry["value"] == pytest.approx(36, abs=1.5)
    assert [entry[key] for key in ("upper", "lower", "apex", "convexity")] == ["T6", "T10", "T8", side]
    # A draw measures the same curve again; if its top leans to the other side, the sign changes.
    other = _spine(coronal=dict.fromkeys(tilts, 0.0) | {13: sign * 9.0})
    again = measure_posture(other, reference=measured)["measures"]["coronal_cobb"]
    assert (again["upper"], again["lower"]) == ("T6", "T10") and again["value"] == pytest.approx(-9, abs=1.5)
    assert measure_posture(other[3:], reference=measured)["measures"]["coronal_cobb"]["value"] is None
    alone = measure_posture(curve[:1])["measures"]["coronal_cobb"]
    assert alone["value"] is None and "Fewer than two" in alone["reason"]


def _s1_ends(slope=0.0, lean=0.0, at=(3.0, 5.0, 0.0)):
    """The ends of an endplate 40 mm wide and 30 mm deep that falls to the front by `slope`, to the right by `lean`."""
    ends = {"anterior": (0, 15), "posterior": (0, -15), "right": (20, 0), "left": (-20, 0)}
    falls = np.tan(np.radians([lean, slope]))
    return {name: np.add(at, (x, y, -np.dot(falls, (x, y)))) for name, (x, y) in ends.items()}


def test_balance_needs_c7_and_the_landmarks_of_s1():
    c7 = _vertebra(C7, at=(-12.0, 22.0, 480.0), radii=(9, 8), height=12)
    measures = measure_posture([c7], _s1_ends())["measures"]
    assert measures["sagittal_vertical_axis"]["value"] == pytest.approx(22 + BODY[1] - (5 - 15), abs=1)
    assert measures["coronal_balance"]["value"] == pytest.approx(-15, abs=1)
    without = measure_posture([c7])["measures"]["sagittal_vertical_axis"]
    assert without["value"] is None and without["reason"].startswith("S1 is not known: mark both ends")
    no_c7 = measure_posture([_vertebra(T4)], _s1_ends())["measures"]["coronal_balance"]
    assert no_c7["reason"] == "C7 is not in this spine."
    ends = _s1_ends()
    with pytest.raises(InputError, match="S1's upper endplate is marked the wrong way round"):
        measure_posture([c7], ends | {"anterior": ends["posterior"], "posterior": ends["anterior"]})
    with pytest.raises(InputError, match="lacks its right and left end; mark both ends on both films"):
        measure_posture([c7], {name: ends[name] for name in ("anterior", "posterior")})


def test_lordosis_goes_down_to_s1_and_the_last_disc_ends_there():
    l1 = _vertebra(L1, -12.0, at=(0, 0, 150))
    l5 = _vertebra(L5, 20.0, at=(0, 0, 30.0))
    # S1 lies 8 mm below L5's lower endplate, parallel to it.
    down = np.array([0, -np.sin(np.radians(20)), -np.cos(np.radians(20))])
    ends = _s1_ends(slope=20.0, at=np.add((0, 0, 30), BODY + (10 + 8) * down))
    measured = measure_posture([l1, l5], ends)
    assert measured["measures"]["lumbar_lordosis_l1_s1"]["value"] == pytest.approx(32, abs=1.5)
    assert measured["measures"]["sacral_slope"]["value"] == pytest.approx(20, abs=0.1)
    assert measured["vertebrae"][-1]["disc_below_mm"] == pytest.approx(8, abs=0.5)
    assert measure_posture([l1, l5])["vertebrae"][-1]["disc_below_mm"] is None


def test_each_kyphosis_by_its_own_levels_and_the_largest_found():
    measured = measure_posture(_spine({8: 5, 9: 14, 11: 25, 12: 18, 16: -10, 19: -22, 20: -16}))["measures"]
    for name, angle in {"": 47, "_t1_t12": 27, "_t5_t12": 40}.items():
        assert measured[f"thoracic_kyphosis{name}"]["value"] == pytest.approx(angle, abs=1.5)
    largest = measured["largest_kyphosis"]
    assert largest["value"] == pytest.approx(47, abs=1.5) and (largest["upper"], largest["lower"]) == ("T4", "T12")
    assert all(entry["source"] and entry["definition"] for entry in measured.values())


@pytest.mark.parametrize(("turn", "coronal", "sagittal"), [(-25, 0, 0), (30, 10, 0), (-15, -10, -30)])
def test_the_axial_rotation_of_a_turned_vertebra_with_a_growth_on_one_side(turn, coronal, sagittal):
    # It leans to the front first, then to the side, then turns about the body's long axis.
    own = Rotation.from_euler("ZYX", [turn, coronal, sagittal], degrees=True).as_matrix()
    axes = Rotation.from_euler("xyz", [9, -7, 4], degrees=True).as_matrix()  # of the cube: of no account
    points = np.einsum("ij,jxyz->ixyz", own.T @ axes, POINTS)
    growth = (np.abs(points - np.reshape([22.0, 9.0, 0.0], (3, 1, 1, 1))) < np.reshape([5, 9, 8], (3, 1, 1, 1))).all(0)
    turned = Vertebra(T4, np.array([5.0, -3.0, 80.0]), np.maximum(_occupancy(points), growth), SPACING, axes)
    assert vertebra.axial_rotation_deg(turned) == pytest.approx(turn, abs=1.0)
    assert vertebra.axial_rotation_deg(turned, turn + 4.0) == pytest.approx(turn, abs=1.0)
    # Positive where the front is turned to the left.
    assert vertebra.symmetry_normal(turned)[1] * turn >= 0
    # The endplates do not depend on how the cube stands either.
    found = endplates.fit_endplates(turned)
    for normal in (found.superior_normal, found.inferior_normal):
        assert np.degrees(np.arccos(normal @ own[:, 2])) < 2.5
    np.testing.assert_allclose(found.body_centre, turned.centroid_ras + own @ BODY, atol=2.5)  # The growth draws it.


def test_each_measure_and_row_has_the_spread_of_the_draws():
    steps = np.array([-3.0, -1.0, 1.0, 3.0])
    spine = [_vertebra(T4, 20.0, at=(0, 0, 200)), _vertebra(T12, -20.0)]
    measured = measure_posture(spine)
    draws = [
        measure_posture([_vertebra(T4, 20.0 + mm, at=(mm, 0, 200)), _vertebra(T12, -20.0)], reference=measured)
        for mm in steps
    ]
    stated = add_spread(measured, draws, "steps")
    entry = stated["measures"]["thoracic_kyphosis"]
    assert entry["value"] == measured["measures"]["thoracic_kyphosis"]["value"]
    assert entry["sd"] == pytest.approx(np.std(steps, ddof=1), abs=0.3)
    reach = 3.182 * entry["sd"]  # Student's t for four draws, 97.5 %
    assert (entry["low"], entry["high"]) == pytest.approx((entry["value"] - reach, entry["value"] + reach), abs=0.05)
    assert stated["uncertainty"]["cause"] == "steps" and stated["uncertainty"]["draws"] == 4
    absent = stated["measures"]["lumbar_lordosis"]
    assert absent["sd"] is None and absent["low"] is None and absent["reason"]
    row = stated["vertebrae"][0]
    assert row["x_mm_sd"] == pytest.approx(np.std(steps, ddof=1), abs=0.01)
    assert stated["vertebrae"][1]["x_mm_sd"] == 0 and stated["vertebrae"][1]["disc_below_mm_sd"] is None
    assert set(row) == set(stated["columns"])
    assert "sd" not in measured["measures"]["thoracic_kyphosis"], "the posture that was given stays as it was"


def test_a_written_posture_is_strict_json_and_a_table_where_c1_has_no_angles(tmp_path):
    measured = measure_posture([_vertebra(T4, 10.0), _vertebra(1, at=(1.5, -2, 200))])
    atlas = measured["vertebrae"][0]
    assert [atlas[name] for name in ("x_mm", "y_mm", "z_mm", "sagittal_tilt_deg")] == [1.5, -2, 200, None]
    assert "no ordinary vertebral body" in atlas["reason"]
    path = write_posture(tmp_path / "posture.json", measured)
    read = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert read == measured
    assert read["schema"] == "transvert-posture/2"
    assert read["missing_levels"] == [levels.name(n) for n in range(2, T4)]
    for entry in read["measures"].values():
        assert {"value", "unit", "definition", "source", "reason"} <= set(entry)
        assert (entry["value"] is None) == bool(entry["reason"])
    with (tmp_path / "posture.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["level"] for row in rows] == ["C1", "T4"]
    assert set(rows[0]) == set(read["columns"])
    assert float(rows[1]["sagittal_tilt_deg"]) == pytest.approx(10, abs=1.5)
    with (tmp_path / "posture_measures.csv").open(newline="") as file:
        lines = {line["measure"]: line for line in csv.DictReader(file)}
    assert set(lines) == set(measured["measures"])
    assert lines["lumbar_lordosis"]["reason"] == "L1 is not in this spine. L5 is not in this spine."
