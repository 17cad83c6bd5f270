"""The trunk, its bones and its vessels: each on the patient's own side, in its place, and of its stated HU."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import ndimage

from transvert import levels
from transvert.imaging.volume import AIR_HU, Volume
from transvert.phantom import shapes, skeleton, torso
from transvert.phantom.column import SACRUM, USUAL, Bone, Column
from transvert.phantom.torso import Torso

SPACING_MM = 2.5
PITCH_MM = 25.0
C2, T1, T12, L1 = 2, 8, 19, 20
SPINE_X, SPINE_Y = 7.0, -20.0
BLOOD_HU = 2000.0
# One HU for each tissue, so that it can be found again.
TISSUES = ("MUSCLE", "FAT", "MEDIASTINUM", "LIVER", "SPLEEN", "KIDNEY", "BOWEL", "CANAL")
HU = {name: 100.0 * (n + 1) for n, name in enumerate(TISSUES)} | {"LUNG": -800.0, "GAS": -950.0}


def column_of(first: int, last: int, scale: float = 1.0, copied: bool = False) -> Column:
    """A straight column of usual levels, `PITCH_MM` apart, T1 at a height of 0."""
    part = Volume(np.ones((3, 3, 3), bool), np.eye(4))
    half = np.array([17.0, 13.0, 10.0])
    chosen = USUAL[USUAL.index(first) : USUAL.index(last) + 1]
    centres = [np.array([SPINE_X, SPINE_Y, -PITCH_MM * (levels.place(level) - 7)]) for level in chosen]
    bones = [Bone(level, part, centre, half, copied) for level, centre in zip(chosen, centres, strict=True)]
    return Column(tuple(bones), scale)


SPINE = column_of(C2, SACRUM)
HEIGHTS = np.arange(-450, 150, SPACING_MM) + SPACING_MM / 2


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def blank(person: Torso, fill: float = AIR_HU) -> Volume:
    low, high = torso.extent(person)
    top = HEIGHTS[-1] + SPACING_MM / 4
    return shapes.blank(np.array([*low, HEIGHTS[0] - SPACING_MM / 2]), np.array([*high, top]), SPACING_MM, fill)


@pytest.fixture(scope="module")
def person() -> Torso:
    return torso.draw_torso(SPINE, HEIGHTS, rng(3))


@pytest.fixture(scope="module")
def painted(person: Torso) -> Volume:
    """The soft tissue alone: each tissue of its own HU without texture, the right dome at T9, the left 10 mm lower."""
    with pytest.MonkeyPatch.context() as patch:
        for name, hu in HU.items():
            patch.setattr(torso, f"{name}_HU", (hu, hu))
        still = {"SOLID_TEXTURE_HU": 0.0, "LUNG_TEXTURE_HU": 0.0, "MOTTLE_HU": (0.0, 0.0)}
        for name, value in (still | {"DIAPHRAGM_PLACE": (15.0, 15.0), "LEFT_DOME_LOWER_MM": (10.0, 10.0)}).items():
            patch.setattr(torso, name, value)
        canvas = blank(person)
        torso.paint_torso(canvas, SPINE, person, BLOOD_HU, rng(4))
    return canvas


def where(canvas: Volume, hu: float, within: float = 1.0) -> np.ndarray:
    """(N, 3) RAS mm, the voxels of one HU among their like: soft edges have any HU."""
    return canvas.world(np.argwhere(ndimage.binary_erosion(np.abs(canvas.data - hu) < within)))


def value(canvas: Volume, points: np.ndarray) -> np.ndarray:
    """HU of the voxels that points (N, 3) in RAS mm lie in; air outside."""
    index = np.rint(canvas.index(points)).astype(int)
    inside = ((index >= 0) & (index < canvas.data.shape)).all(1)
    found = np.full(len(points), AIR_HU)
    found[inside] = canvas.data[tuple(index[inside].T)]
    return found


def test_liver_is_on_the_right_and_heart_spleen_and_stomach_are_on_the_left(painted: Volume, person: Torso) -> None:
    liver, spleen, heart = (where(painted, hu) for hu in (HU["LIVER"], HU["SPLEEN"], BLOOD_HU))
    assert liver[:, 0].mean() > SPINE_X + 25 and spleen[:, 0].max() < SPINE_X - 20
    assert heart[:, 0].mean() < SPINE_X - 8 and heart[:, 1].min() > SPINE_Y
    assert heart[:, 2].mean() > liver[:, 2].mean() and heart[:, 2].mean() > spleen[:, 2].mean()
    _, _, _, (stomach, _), *_ = torso._organs(SPINE, torso._domes(SPINE, person, rng()), BLOOD_HU, rng())
    assert stomach.centre[0] < SPINE_X - 25 and stomach.centre[1] > SPINE_Y + 40
    for name in ("LIVER", "SPLEEN", "BOWEL", "GAS"):
        assert where(painted, HU[name])[:, 2].max() < SPINE.height(15)  # below the diaphragm


def test_two_kidneys_flank_the_spine(painted: Volume) -> None:
    kidneys = where(painted, HU["KIDNEY"])
    right = kidneys[:, 0] > SPINE_X
    for side in (kidneys[right], kidneys[~right]):
        assert len(side) * SPACING_MM**3 > 3e4 and abs(SPINE.place(side[:, 2].mean(keepdims=True))[0] - 19.6) < 1
        assert 35 < abs(side[:, 0].mean() - SPINE_X) < 75


def test_the_lungs_lie_on_both_sides_above_the_domes(painted: Volume, person: Torso) -> None:
    lung = where(painted, HU["LUNG"])
    right = lung[:, 0] > SPINE_X
    assert 0.6 < right.mean() / (1 - right.mean()) < 2 and len(lung) * SPACING_MM**3 > 1.5e6
    assert lung[:, 2].min() >= SPINE.height(torso.LUNG_BASE_PLACE) - SPACING_MM
    assert lung[:, 2].max() <= SPINE.height(torso.THORAX_PLACE)
    # Each dome's top is in the middle of its side.
    x, y, half_width, half_depth = (float(v) for v in person.cage_at(SPINE.height(torso.LUNG_BASE_PLACE)))
    tops = []
    for side in (1, -1):
        near = np.hypot(lung[:, 0] - x - side * 0.5 * half_width, lung[:, 1] - y - 0.15 * half_depth) < 3
        tops.append(lung[near, 2].min())
    assert_allclose(tops, [SPINE.height(15), SPINE.height(15) - 10], atol=1.5 * SPACING_MM)


def test_muscle_fat_and_air_follow_each_other_outward(painted: Volume, person: Torso) -> None:
    k = int(np.abs(HEIGHTS - SPINE.height(21)).argmin())
    outline, fat = person.outline, person.fat_mm[k]
    for side in (-1, 1):
        skin = outline.x[k] + side * (outline.half_width[k] + fat)
        inward = np.array([-fat - 4, -fat / 2, 4])
        points = np.stack([skin + side * inward, np.full(3, outline.y[k]), np.full(3, HEIGHTS[k])], axis=1)
        assert_allclose(value(painted, points), [HU["MUSCLE"], HU["FAT"], AIR_HU])


def test_the_canal_runs_behind_the_bodies(painted: Volume) -> None:
    canal = where(painted, HU["CANAL"])
    assert_allclose(canal[:, :2].mean(0), [SPINE_X, SPINE_Y - 21], atol=1)
    assert len(np.unique(canal[:, 2])) == len(HEIGHTS) - 2
    assert all((painted.data.take(end, axis) == AIR_HU).all() for axis in (0, 1) for end in (0, -1))


def test_tissues_are_drawn_from_their_ranges(person: Torso) -> None:
    drawn = []
    for seed in range(3):
        canvas = blank(person)
        torso.paint_torso(canvas, SPINE, person, 45.0, rng(seed))
        lung = np.median(canvas.data[(canvas.data < -600) & (canvas.data > -900)])
        neck = canvas.data[:, :, int(np.abs(HEIGHTS - SPINE.height(2)).argmin())]  # muscle and fat around the canal
        drawn.append((lung, np.median(neck[neck > -20])))
        assert canvas.data.min() > AIR_HU - 0.01 and canvas.data.max() < 350
    limits = np.array([torso.LUNG_HU, torso.MUSCLE_HU]).T
    assert (drawn > limits[0] - 10).all() and (drawn < limits[1] + 10).all() and (np.ptp(drawn, axis=0) > 5).all()


def test_the_mediastinum_waves_by_its_stated_spread() -> None:
    fine = np.arange(-450, 150, 1.0)  # The wave is in mm, not in slices.
    drawn = np.array([torso.draw_torso(SPINE, fine, rng(seed)).middle_x for seed in range(30)])
    assert np.abs(np.diff(drawn)).max() < 0.5
    assert drawn.mean() == pytest.approx(-5, abs=0.5)
    assert drawn.std() == pytest.approx(torso.MEDIASTINUM_WAVE_MM, rel=0.2)


def test_a_larger_person_has_a_larger_trunk_and_the_belly_is_what_varies_most() -> None:
    small, large = (torso.draw_torso(column_of(C2, SACRUM, scale), HEIGHTS, rng()) for scale in (0.9, 1.1))
    assert_allclose(large.outline.half_width / small.outline.half_width, 1.1 / 0.9)
    people = [torso.draw_torso(SPINE, HEIGHTS, rng(seed)) for seed in range(20)]
    depth = np.array([one.outline.half_depth + one.fat_mm for one in people]).std(0)
    assert depth[np.abs(HEIGHTS - SPINE.height(21)).argmin()] > 1.5 * depth[np.abs(HEIGHTS - SPINE.height(9)).argmin()]


def test_points_on_the_cage_lie_on_its_oval(person: Torso) -> None:
    points = person.on_cage(np.deg2rad([0, 90, 180, -90]), np.full(4, -100.0))
    x, y, half_width, half_depth = (float(v) for v in person.cage_at(-100.0))
    assert_allclose(points[:, 0], [x, x + half_width, x, x - half_width], atol=1e-6)
    assert_allclose(points[:, 1], [y - half_depth, y, y + half_depth, y], atol=1e-6)


def test_twelve_pairs_of_ribs_start_at_their_vertebrae_fall_and_stay_outside_the_lungs(
    painted: Volume, person: Torso
) -> None:
    lengths = []
    for bone in SPINE.bones:
        if not T1 <= bone.level <= T12:
            continue
        for side in (1, -1):
            path, cartilage = skeleton.rib(bone, bone.level - T1 + 1, side, 1.0, person)
            assert np.linalg.norm(path[0] - bone.centre) < 25
            assert (side * (path[:, 0] - SPINE_X) > 0).all() and path[-1, 2] < path[0, 2] - 20
            assert np.linalg.norm(cartilage[0] - path[-1]) < 1e-6
            assert (value(painted, path) > torso.LUNG_BELOW_HU).all()
            lengths.append(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())
    right, left = lengths[::2], lengths[1::2]
    assert len(right) == 12
    assert_allclose(right, left, rtol=0.15)
    assert max(right) == max(right[5:9]) and right[-1] < 0.6 * max(right) and right[0] < 0.7 * max(right)


def test_every_thoracic_vertebra_bears_ribs_and_the_breastbone_is_in_front(person: Torso) -> None:
    bony = blank(person)
    skeleton.paint_skeleton(bony, SPINE, person, rng(5))
    for bone in SPINE.bones:
        beside = bone.centre + np.array([[18.0 * side, -8.0, 3.0] for side in (1, -1)])
        assert ((value(bony, beside) > 50) == (T1 <= bone.level <= T12)).all(), bone.level
    for place in (10.0, 12.0, 14.0):
        z = SPINE.height(place)
        x, y, _, half_depth = (float(v) for v in person.cage_at(z))
        assert value(bony, np.array([[x, y + half_depth, z]]))[0] > 80
        assert value(bony, np.array([[x, y + half_depth - 25, z]]))[0] == AIR_HU


def paths_of_arms(spine: Column, seeds: range, patch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The arms of several people, left and right in turn."""
    found: list[np.ndarray] = []

    def tube(_: Volume, path: np.ndarray, half_mm: tuple[float, float, float], *rest: float) -> None:
        if skeleton.MUSCLE_ARM_MM[0] <= half_mm[0] <= skeleton.MUSCLE_ARM_MM[1] and len(set(half_mm)) == 1:
            found.append(path)

    patch.setattr(skeleton, "tube", tube)
    patch.setattr(skeleton, "ellipsoid", lambda *_: None)
    for seed in seeds:
        person = torso.draw_torso(spine, HEIGHTS, rng(seed))
        skeleton.paint_skeleton(blank(person), spine, person, rng(seed))
    return found


def test_arms_hang_beside_the_trunk_or_are_held_forward_or_up(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = paths_of_arms(column_of(T1, SACRUM), range(24), monkeypatch)
    held = {"up": 0, "down": 0, "forward": 0}
    for path, side in zip(arms, [-1, 1] * 24, strict=True):
        way = path[-1] - path[0]
        assert abs(SPINE.place(path[:1, 2])[0] - 7.5) < 2.5 and 110 < side * (path[0, 0] - SPINE_X) < 200
        name = "forward" if way[1] > abs(way[2]) else "up" if way[2] > 0 else "down"
        held[name] += 1
        if name == "down":
            assert (side * (path[:, 0] - SPINE_X) > 110).all() and np.abs(path[:, 1] - SPINE_Y).max() < 160
    shares = {name: count / len(arms) for name, count in held.items()}
    assert all(shares[name] == pytest.approx(share, abs=0.25) for name, (share, _, _) in skeleton.ARMS.items())
    assert min(held.values()) > 0 and len(arms) == 48


def test_a_neck_is_never_taken_with_the_arms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = paths_of_arms(column_of(C2, T12), range(12), monkeypatch)
    assert len(arms) == 24 and all(path[-1, 2] < path[0, 2] + 40 for path in arms)
    copies = paths_of_arms(column_of(C2, T12, copied=True), range(12), monkeypatch)
    assert any(path[-1, 2] > path[0, 2] + 200 for path in copies)


@pytest.fixture(scope="module")
def vessel(person: Torso, painted: Volume) -> Volume:
    """Vessels painted into the trunk."""
    canvas = Volume(painted.data.copy(), painted.affine)
    torso.paint_vessels(canvas, SPINE, BLOOD_HU + 500, rng(6))
    return canvas


def test_the_aorta_arches_over_to_the_left_and_runs_down_beside_the_spine(vessel: Volume) -> None:
    blood = where(vessel, BLOOD_HU + 500)
    near = blood[(np.abs(blood[:, 1] - SPINE_Y - 12) < 12) & (np.abs(blood[:, 0] - SPINE_X) < 40)]
    for place in (13.0, 14.0, 15.0, 16.0):
        level = near[np.abs(near[:, 2] - SPINE.height(place)) < 5]
        assert level[:, 0].mean() < SPINE_X - 12
    ascending = blood[(np.abs(blood[:, 2] - SPINE.height(12.5)) < 5) & (blood[:, 1] > SPINE_Y + 58)]
    assert ascending[np.abs(ascending[:, 0] - SPINE_X) < 30, 0].mean() > SPINE_X
    assert SPINE.place(blood[:, 2].min(keepdims=True))[0] == pytest.approx(22.4, abs=1)


def test_airways_are_air_before_the_spine_and_divide_below_t4(vessel: Volume, painted: Volume) -> None:
    airway = (vessel.data == AIR_HU) & (painted.data > torso.LUNG_BELOW_HU)
    points = vessel.world(np.argwhere(airway))
    throat = points[np.abs(points[:, 2] - SPINE.height(5)) < 5]
    assert abs(throat[:, 0].mean() - SPINE_X) < 5 and throat[:, 1].min() > SPINE_Y + 12
    low = points[points[:, 2] < SPINE.height(11.5)]
    assert low[:, 0].max() > SPINE_X + 15 and low[:, 0].min() < SPINE_X - 15


def test_lung_vessels_stay_in_the_lungs(vessel: Volume, painted: Volume) -> None:
    changed = (vessel.data > -700) & (np.abs(painted.data - HU["LUNG"]) < 1)
    points = vessel.world(np.argwhere(changed))
    assert (points[:, 0] > SPINE_X + 50).sum() > 100 and (points[:, 0] < SPINE_X - 50).sum() > 100
    far = np.abs(points[:, 0] - SPINE_X) > 60
    belly = vessel.world(np.argwhere((vessel.data != painted.data) & (painted.data > -400)))
    assert far.any() and not (np.abs(belly[:, 0] - SPINE_X) > 75).any()
