"""The column: vertebrae measured, gaps and ends filled with copies, and heights converted to levels and back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from conftest import PITCH_MM, axes_mm, stacked
from numpy.testing import assert_allclose
from scipy.spatial.transform import Rotation

from transvert import levels
from transvert.imaging.volume import Volume
from transvert.io import InputError
from transvert.phantom import column
from transvert.phantom.column import Bone, Column

REACH_MM = 75.0
C1, T11, T12, L1, L2, L3, L4, L5, L6, SACRUM, T13 = 1, 18, 19, 20, 21, 22, 23, 24, 25, 26, 28


def build(mask: Volume, seed: int = 0) -> Column:
    return column.build_column(mask, np.random.default_rng(seed), REACH_MM)


def own(made: Column) -> list[Bone]:
    return [bone for bone in made.bones if not bone.copied]


@pytest.mark.parametrize("angles", [(0, 0, 0), (10, -15, 20)])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.5, 0.7, 1.2), (2, 2, 3)])
def test_a_body_is_found_and_measured(spacing: tuple[float, float, float], angles: tuple[int, int, int]) -> None:
    mask, turn = stacked({L2: 0}, spacing=spacing), np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    (bone,) = own(build(Volume(mask.data, turn @ mask.affine)))
    # The body is an elliptic disc, 14 mm before the vertebra's middle.
    assert_allclose(bone.centre, turn[:3, :3] @ [0, 14, 0], atol=max(spacing))
    assert_allclose(bone.half_mm, [20, 15, 12], atol=max(spacing))
    assert bone.level == L2 and bone.part.data.sum() == (mask.data > 0).sum()


def test_the_atlas_has_its_middle_between_its_two_thick_parts() -> None:
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 3] = -35
    x, y, z = axes_mm(affine, (70,) * 3)
    ring = (np.abs(np.hypot(x, y) - 18) < 3) & (np.abs(z) < 4)
    for side, radius in ((-1, 9), (1, 10)):
        ring |= (x - 18 * side) ** 2 + y**2 + z**2 < radius**2
    bone = column.measure_bone(C1, ring, (slice(0, 70),) * 3, Volume(ring.astype(np.uint8), affine))
    assert np.abs(bone.centre).max() < 5
    assert_allclose(bone.half_mm, column.ATLAS_HALF_MM)


def test_gaps_are_filled_with_the_nearest_one_at_even_steps() -> None:
    made = build(stacked({L1: 0, L4: 3}))
    bones = {bone.level: bone for bone in made.bones}
    assert [bones[level].copied for level in (L1, L2, L3, L4)] == [False, True, True, False]
    for step, level in enumerate((L1, L2, L3, L4)):
        assert_allclose(bones[level].centre, [0, 14, -PITCH_MM * step], atol=1)
    assert bones[L2].part.data is bones[L1].part.data and bones[L3].part.data is bones[L4].part.data


@pytest.mark.parametrize(
    ("known", "between"),
    [
        ({T11: 0, T13: 2}, [T12]),
        ({T12: 0, T13: 1, L1: 2}, []),
        ({T13: 0, L3: 3}, [L1, L2]),
        ({L4: 0, L6: 2}, [L5]),
        ({L5: 0, L6: 1}, []),
    ],
)
def test_t13_and_l6_stand_between_the_usual_levels(known: dict[int, int], between: list[int]) -> None:
    made = build(stacked(known))
    order = [bone.level for bone in made.bones]
    first, last = order.index(next(iter(known))), order.index(list(known)[-1])
    assert [bone.level for bone in made.bones[first : last + 1] if bone.copied] == between
    assert order[first - 1] == column.USUAL[int(np.ceil(levels.place(order[first]))) - 1]
    assert np.diff([levels.place(level) for level in order]).min() >= 0


@pytest.mark.parametrize("level", [2, 9, L1, L6])
def test_one_vertebra_gets_neighbours_as_far_as_asked(level: int) -> None:
    made = build(stacked({level: 0}, 0.7 if level == 2 else 1.0))
    order = [bone.level for bone in made.bones]
    assert [bone.level for bone in own(made)] == [level]
    assert order[0] == 2 or made.bones[0].centre[2] >= REACH_MM
    assert made.bones[-1].centre[2] <= -REACH_MM
    places = [levels.place(n) for n in order]
    assert all(0 < step <= 1 or upper == SACRUM for upper, step in zip(order, np.diff(places), strict=False))
    # A body's height and a disc, by its region.
    for upper, lower in itertools.pairwise(made.bones):
        low, high = column.DISC_MM[levels.region(upper.level)]
        gap = np.linalg.norm(upper.centre - lower.centre) - upper.half_mm[2] - lower.half_mm[2]
        assert low - 3 <= gap <= high + 3


def test_the_sacrum_turns_back_and_ends_the_column() -> None:
    made = build(stacked({L4: 0, L5: 1}))
    order = [bone.level for bone in made.bones]
    assert order[-1] == SACRUM
    first = order.index(SACRUM)
    step = made.bones[first].centre - made.bones[first - 1].centre
    assert np.rad2deg(np.arctan2(-step[1], -step[2])) == pytest.approx(column.SACRAL_TURN_DEG, abs=0.1)
    assert not [level for level in order[first:] if level != SACRUM]


def test_a_mask_s_own_sacrum_is_kept_and_a_speck_of_one_is_not() -> None:
    with_one = stacked({L5: 0, SACRUM: 1})
    with_one.data[:, :, :15] = 0  # cut by the border, as many are
    assert [bone.level for bone in own(build(with_one))] == [L5, SACRUM]
    speck = stacked({L5: 0})
    speck.data[2:5, 2:5, -5:] = SACRUM
    assert SACRUM not in [bone.level for bone in own(build(speck))]


def test_a_copy_keeps_its_right_side_and_jitters_within_its_limits() -> None:
    made = build(stacked({L3: 0}))
    for bone in made.bones:
        where = bone.part.world(np.argwhere(bone.part.data)) - bone.centre
        # The process on the right is 14 mm longer, and the spinous one points back and down.
        assert where[:, 0].max() + where[:, 0].min() > 6
        assert where[:, 1].min() < -30 and where[where[:, 1].argmin(), 2] < 3
    sizes = [np.cbrt(np.linalg.det(bone.part.affine[:3, :3])) for bone in made.bones if bone.copied]
    assert 0.7 < min(sizes) and max(sizes) < 1.3 and len(set(np.round(sizes, 6))) == len(sizes)


@pytest.mark.parametrize("known", [{L1: 0, L2: 1, L5: 4}, {8: 0}, {3: 0, 4: 1}, {L5: 0, SACRUM: 1}])
def test_place_and_height_are_inverses(known: dict[int, int]) -> None:
    made = build(stacked(known, 0.7 if 3 in known else 1.0))
    for bone in made.bones:
        if bone.level != SACRUM:
            assert made.height(levels.place(bone.level)) == pytest.approx(bone.centre[2])
    places = np.linspace(-4, 28, 33)
    heights = np.array([made.height(place) for place in places])
    assert (np.diff(heights) < 0).all()
    assert_allclose(made.place(heights), places, atol=1e-9)


def test_copies_lean_like_the_column_and_its_middle_line_passes_through_the_bodies() -> None:
    mask = stacked({L1: 0, L2: 1})
    lean = np.eye(4)
    lean[1, 2] = 0.3  # each vertebra stands 0.3 mm further forward for each mm up
    made = build(Volume(mask.data, lean @ mask.affine))
    step = made.bones[0].centre - made.bones[1].centre
    assert step[1] / step[2] == pytest.approx(0.3, abs=0.02) and step[0] == pytest.approx(0, abs=0.5)
    centres = np.array([bone.centre for bone in made.bones])
    assert_allclose(made.middle(centres[:, 2]), centres[:, :2], atol=1e-9)
    assert_allclose(made.middle((centres[:1, 2] + centres[1:2, 2]) / 2), centres[:2, :2].mean(0)[None], atol=1e-9)
    assert_allclose(made.middle(np.array([9e3, -9e3])), centres[[0, -1], :2])


def test_a_larger_person_has_a_larger_scale_within_limits() -> None:
    scales = [build(stacked({L1: 0, L2: 1}, size)).scale for size in (0.7, 0.85, 1.0, 1.2)]
    assert (np.diff(scales) > 0).all() and scales[0] >= 0.75 and scales[-1] <= 1.2
    # The root of how much deeper the body is than the table's.
    assert scales[2] == pytest.approx(np.sqrt(15 / column.HALF_DEPTH_MM[19:21].mean()), abs=0.02)


def test_a_mask_without_a_whole_vertebra_or_upside_down_is_refused_with_its_reason() -> None:
    with pytest.raises(InputError, match=r"no whole vertebra: it is empty\."):
        build(Volume(np.zeros((9, 9, 9), np.uint8), np.eye(4)))
    cut = stacked({L2: 0})
    with pytest.raises(InputError, match="no whole vertebra: L2: truncated by the volume's border"):
        build(Volume(cut.data[:, :, 15:], cut.affine))
    with pytest.raises(InputError, match="are not one above the other in their order; check its levels"):
        build(stacked({L3: 0, L2: 1, L1: 2}))
