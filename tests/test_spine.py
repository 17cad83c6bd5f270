"""Assembly, endplates and posture against bodies with known tilt: discs of bone with an arch and processes behind."""

import csv
import json

import numpy as np
import pytest

from transvert import levels, spine
from transvert.files import InputError

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


def _vertebra(level, sagittal=0.0, coronal=0.0, at=(0.0, 0.0, 0.0), wedge=0.0, radii=(17.0, 15.0), height=20.0):
    """A tilted elliptic disc with bars behind it; degrees and mm. Occupancies, as a network's output."""
    axis = np.array([np.tan(np.radians(coronal)), np.tan(np.radians(sagittal)), 1.0])
    axis /= np.linalg.norm(axis)
    right = np.array([1.0, 0.0, 0.0]) - axis[0] * axis
    right /= np.linalg.norm(right)
    x, y, z = np.einsum("ij,jxyz->ixyz", [right, np.cross(axis, right), axis], POINTS - BODY[:, None, None, None])
    half = height / 2 - np.tan(np.radians(wedge / 2)) * y
    parts = [np.minimum(radii[0] - np.hypot(x, y * radii[0] / radii[1]), half - np.abs(z))]
    for widths, middle in BARS:
        offset = np.abs(POINTS - np.reshape(np.add(middle, BODY - (0, radii[1], 0)), (3, 1, 1, 1)))
        parts.append((np.reshape(widths, (3, 1, 1, 1)) - offset).min(axis=0))
    inside = np.maximum.reduce(parts)
    return spine.Vertebra(
        level, np.asarray(at, float), np.clip(inside / SPACING + 0.5, 0, 1).astype(np.float32), SPACING
    )


def _ball(level, at, radius=9.0, value=1.0):
    inside = radius - np.linalg.norm(POINTS, axis=0)
    probability = value * np.clip(inside / SPACING + 0.5, 0, 1)
    return spine.Vertebra(level, np.asarray(at, float), probability.astype(np.float32), SPACING)


def _degrees(normal):
    return np.degrees(np.arctan2(normal[[1, 0]], normal[2]))


@pytest.mark.parametrize(
    ("sagittal", "coronal", "radii", "height"),
    [
        (0, 0, (17, 15), 20),
        (35, 0, (17, 15), 20),
        (-20, 30, (22, 16), 26),
        (12, -25, (17, 17), 20),
        (-7, 5, (9, 8), 12),
    ],
)
def test_endplates_of_a_tilted_body(sagittal, coronal, radii, height):
    found = spine.endplates(_vertebra(T4, sagittal, coronal, (40.0, -30.0, 500.0), radii=radii, height=height))
    for normal in (found.superior_normal, found.inferior_normal):
        np.testing.assert_allclose(_degrees(normal), [sagittal, coronal], atol=1.5)
    np.testing.assert_allclose(found.body_centre, np.add((40.0, -30.0, 500.0), BODY), atol=1.0)
    along = (found.superior_centre - found.inferior_centre) @ found.superior_normal
    assert along == pytest.approx(height, abs=0.5)
    for mm in (found.anterior_mm, found.middle_mm, found.posterior_mm):
        assert mm == pytest.approx(height, abs=1.0)
    assert found.depth_mm == pytest.approx(2 * radii[1], abs=2)
    assert found.width_mm == pytest.approx(2 * radii[0], abs=2)


def test_a_binary_mask_and_stray_parts_and_holes_do_no_harm():
    clean = _vertebra(T4, 20, -10)
    mask = clean.probability >= 0.5
    mask[2:9, 55:62, 2:9] = True
    mask[30:33, 36:39, 30:33] = False
    found = spine.endplates(spine.Vertebra(T4, clean.centroid_ras, mask.astype(np.float32), SPACING))
    for normal in (found.superior_normal, found.inferior_normal):
        np.testing.assert_allclose(_degrees(normal), [20, -10], atol=3)


@pytest.mark.parametrize(
    ("level", "voxels", "message"),
    [
        (2, 64, "C2 has no ordinary"),
        (T4, 0, "T4 is empty"),
        (T4, 1, "No vertebral body"),
        (T4, 64, "No vertebral body"),
    ],
)
def test_no_endplates_where_there_is_no_body(level, voxels, message):
    probability = np.zeros((64, 64, 64), np.float32)
    probability[:voxels, :voxels, :voxels] = 1
    with pytest.raises(InputError, match=message):
        spine.endplates(spine.Vertebra(level, np.zeros(3), probability, SPACING))


def test_kyphosis_wedges_and_discs_of_an_arc():
    # Nine bodies on a circle whose middle lies in front, 5 degrees apart: going up, each leans further to the front.
    radius, step = 330.0, np.radians(5)
    arc = []
    for level in range(T4, T12 + 1):
        angle = (15 - level) * step
        at = (0, radius * (1 - np.cos(angle)), radius * np.sin(angle))
        arc.append(_vertebra(level, np.degrees(angle), at=at))
    measured = spine.posture(arc[::-1])  # the order given does not matter
    assert measured["measures"]["thoracic_kyphosis"]["value"] == pytest.approx(40, abs=1.5)
    assert measured["measures"]["coronal_cobb"]["value"] == pytest.approx(0, abs=1)
    rows = measured["vertebrae"]
    assert [row["level"] for row in rows] == [f"T{n}" for n in range(4, 13)]
    np.testing.assert_allclose([row["sagittal_tilt_deg"] for row in rows], np.arange(20, -21, -5), atol=1)
    np.testing.assert_allclose([row["wedge_deg"] for row in rows], 0, atol=1.5)
    # Chord between neighbours, less a body's height; both bodies' centres lie 8 mm in front of the arc.
    assert rows[-1]["disc_below_mm"] is None
    assert rows[3]["disc_below_mm"] == pytest.approx(2 * radius * np.sin(step / 2) - 20, abs=1.5)


def test_a_wedge_is_positive_where_the_front_is_lower():
    row = spine.posture([_vertebra(T12, wedge=8.0)])["vertebrae"][0]
    assert row["wedge_deg"] == pytest.approx(8, abs=1)
    assert row["posterior_mm"] - row["anterior_mm"] == pytest.approx(2 * 15 * 2 * np.tan(np.radians(4)), abs=0.7)


def test_lordosis_and_what_is_said_without_l5():
    lumbar = [_vertebra(L1 + i, 10.0 * i - 15, at=(0, 0, -35.0 * i)) for i in range(5)]
    assert spine.posture(lumbar)["measures"]["lumbar_lordosis"]["value"] == pytest.approx(40, abs=1.5)
    entry = spine.posture(lumbar[:4])["measures"]["lumbar_lordosis"]
    assert entry["value"] is None
    assert entry["reason"] == "L5 is not in this spine."
    empty = spine.Vertebra(L5, np.zeros(3), np.zeros((8, 8, 8), np.float32), SPACING)
    assert "L5 is empty" in spine.posture([*lumbar[:4], empty])["measures"]["lumbar_lordosis"]["reason"]


@pytest.mark.parametrize(("sign", "side"), [(1, "right"), (-1, "left")])
def test_cobb_angle_its_end_levels_and_its_convexity(sign, side):
    # A curve that bulges to one side between T6 and T10: above its apex the bodies lean back to the other side.
    tilts = {10: 0, 11: -4, 13: -16, 15: 2, 17: 20, 19: 5, 20: 0}
    heights = -25.0 * np.arange(len(tilts))
    curve = [_vertebra(n, coronal=sign * t, at=(0, 0, z)) for (n, t), z in zip(tilts.items(), heights, strict=True)]
    entry = spine.posture(curve)["measures"]["coronal_cobb"]
    assert entry["value"] == pytest.approx(36, abs=1.5)
    assert (entry["upper"], entry["lower"]) == ("T6", "T10")
    assert entry["convexity"] == side
    alone = spine.posture(curve[:1])["measures"]["coronal_cobb"]
    assert alone["value"] is None
    assert "Fewer than two" in alone["reason"]


def test_balance_needs_c7_and_the_landmark_of_s1():
    c7 = _vertebra(C7, at=(-12.0, 22.0, 480.0), radii=(9, 8), height=12)
    measures = spine.posture([c7], s1_ras=np.array([3.0, 5.0, 0.0]))["measures"]
    assert measures["sagittal_vertical_axis"]["value"] == pytest.approx(22 + BODY[1] - 5, abs=1)
    assert measures["coronal_balance"]["value"] == pytest.approx(-15, abs=1)
    without = spine.posture([c7])["measures"]["sagittal_vertical_axis"]
    assert without["value"] is None
    assert without["reason"].startswith("S1 is not known")
    no_c7 = spine.posture([_vertebra(T4)], s1_ras=np.zeros(3))["measures"]["coronal_balance"]
    assert no_c7["reason"] == "C7 is not in this spine."


def test_c1_and_c2_stand_in_the_table_without_angles():
    rows = spine.posture([_ball(1, (0, 0, 40)), _ball(2, (1.5, -2, 20))])["vertebrae"]
    assert [row["level"] for row in rows] == ["C1", "C2"]
    assert (rows[1]["x_mm"], rows[1]["y_mm"], rows[1]["z_mm"]) == (1.5, -2, 20)
    assert rows[1]["sagittal_tilt_deg"] is None
    assert "no ordinary vertebral body" in rows[1]["reason"]


def test_a_written_posture_is_strict_json_and_a_table(tmp_path):
    measured = spine.posture([_vertebra(T4, 10.0), _ball(1, (0, 0, 200))])
    path = spine.write_posture(tmp_path / "posture.json", measured)

    def refuse(word):
        raise AssertionError(word)

    read = json.loads(path.read_text(), parse_constant=refuse)
    assert read == measured
    assert read["schema"] == "transvert-posture/1"
    assert read["missing_levels"] == [levels.name(n) for n in range(2, T4)]
    for entry in read["measures"].values():
        assert {"value", "unit", "definition", "reason"} <= set(entry)
        assert (entry["value"] is None) == bool(entry["reason"])
    with (tmp_path / "posture.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["level"] for row in rows] == ["C1", "T4"]
    assert set(rows[0]) == set(read["columns"])
    assert float(rows[1]["sagittal_tilt_deg"]) == pytest.approx(10, abs=1.5)


def test_assembled_labels_stand_where_the_vertebrae_stand():
    volume = spine.assemble([_ball(28, (30.0, -20.0, 400.0)), _ball(L1, (10.0, 5.0, 340.0), radius=6.0)], 1.0)
    assert volume.data.dtype == np.uint8
    assert set(np.unique(volume.data)) == {0, 28, L1}
    np.testing.assert_allclose(volume.spacing_mm, 1)
    for level, at, radius in ((28, (30.0, -20.0, 400.0), 9), (L1, (10.0, 5.0, 340.0), 6)):
        voxels = volume.world(np.argwhere(volume.data == level))
        np.testing.assert_allclose(voxels.mean(axis=0), at, atol=0.05)
        assert len(voxels) == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.05)
    corners = volume.corners()
    half = SIZE * SPACING / 2
    np.testing.assert_allclose(corners.min(0), [10 - half, -20 - half, 340 - half], atol=1e-6)
    assert (corners.max(0) >= [30 + half, 5 + half, 400 + half]).all()


def test_the_more_probable_vertebra_wins_and_stray_parts_go():
    strong, weak = _ball(T4, (0.0, 0.0, 10.0)), _ball(12, (0.0, 0.0, 0.0), value=0.8)
    weak.probability[2:5, 2:5, 2:5] = 1.0
    volume = spine.assemble([weak, strong], 1.5)
    i, j, k = np.rint(volume.index([0.0, 0.0, 5.0])).astype(int)
    assert volume.data[i, j, k] == T4
    i, j, k = np.rint(volume.index([0.0, 0.0, -4.0])).astype(int)
    assert volume.data[i, j, k] == 12
    assert np.linalg.norm(volume.world(np.argwhere(volume.data == 12)), axis=1).max() < 10
    np.testing.assert_array_equal(volume.data, spine.assemble([strong, weak], 1.5).data)


def test_gaps_are_missing_and_empty_levels_and_never_t13():
    empty = spine.Vertebra(18, np.zeros(3), np.zeros((8, 8, 8), np.float32), SPACING)
    assert spine.gaps([_ball(21, (0, 0, 0)), empty, _ball(16, (0, 0, 90))]) == ["T10", "T11", "T12", "L1"]
    assert spine.gaps([_ball(T12, (0, 0, 30)), _ball(L1, (0, 0, 0))]) == []
    assert spine.gaps([]) == []


def test_impossible_spines_are_refused():
    with pytest.raises(InputError, match="no vertebra to assemble"):
        spine.assemble([])
    with pytest.raises(InputError, match="T4 is no vertebra or is there twice"):
        spine.posture([_ball(T4, (0, 0, 0)), _ball(T4, (0, 0, 30))])
    with pytest.raises(InputError, match="sacrum is no vertebra"):
        spine.assemble([_ball(26, (0, 0, 0))])
