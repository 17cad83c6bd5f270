"""Mask cleaning: which vertebrae are whole, corrected or skipped, each with its reason."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from conftest import MIDDLES, Patient, axes_mm, inside_vertebra
from numpy.testing import assert_allclose, assert_array_equal

from transvert import levels
from transvert.imaging import masks
from transvert.imaging.volume import Volume

L1, L2, L3, L4 = 20, 21, 22, 23
AFFINE = np.diag([1.0, 1.0, 1.0, 1.0])
AFFINE[:3, 3] = (-40.0, -70.0, 150.0)
SHAPE = (110, 80, 220)
DEPTHS = axes_mm(AFFINE, SHAPE)[1] + 30.0  # (1, Y, 1) mm in front of the middles.


@pytest.fixture
def column() -> Volume:
    """L1 to L5, 34 mm apart, on a grid of 1 mm."""
    mask = Volume(np.zeros(SHAPE, np.uint8), AFFINE)
    for step in range(5):
        mask.data[vertebra(step)] = L1 + step
    return mask


def vertebra(step: int) -> np.ndarray:
    """The voxels of L1 (0), L2 (1), ..., bool."""
    return inside_vertebra(*axes_mm(AFFINE, SHAPE), (12.0, -30.0, 344.0 - 34.0 * step))


def voxels(made: masks.CleanedMask, level: int) -> np.ndarray:
    """The whole array of one found vertebra."""
    part, box = made.parts[level]
    found = np.zeros(SHAPE, bool)
    found[box] = part
    return found


def test_whole_vertebrae_are_found_head_to_tail_as_they_are(column: Volume, patient: Patient) -> None:
    made = masks.clean_mask(column)
    assert list(made.parts) == [20, 21, 22, 23, 24] and not made.notes and made.counts == {"whole": 5}
    for level in made.parts:
        assert_array_equal(voxels(made, level), column.data == level)
    assert list(masks.clean_mask(patient.mask).parts) == list(MIDDLES)
    for level, part in masks.clean_mask(patient.mask).parts.items():
        assert_allclose(masks.centroid(patient.mask, *part), patient.centroids[level], atol=1e-9)


@pytest.mark.parametrize("order", [(19, 28, 20, 21, 26), (26,), ()])
def test_t13_stands_in_its_place_and_the_sacrum_and_an_empty_mask_are_no_vertebrae(order: tuple[int, ...]) -> None:
    mask = Volume(np.zeros(SHAPE, np.uint8), AFFINE)
    for step, level in enumerate(order):
        mask.data[vertebra(step)] = level
    made = masks.clean_mask(mask)
    assert list(made.parts) == [n for n in order if n != 26] and not made.notes


def test_fragments_are_dropped(column: Volume) -> None:
    column.data[2:5, 2:4, 100] = L2
    column.data[100:106, 70:76, 40:52] = L2  # 432 voxels: as much as a fiftieth of it, far from anything
    made = masks.clean_mask(column)
    assert_array_equal(voxels(made, L2), vertebra(1))
    assert made.notes == ["L2: 2 fragment(s), 438 voxels, dropped."]
    assert made.counts == {"whole": 5, "fragment": 1}


def test_a_piece_beside_its_own_vertebra_is_joined(column: Volume) -> None:
    thin = vertebra(1) & (DEPTHS > -4) & (DEPTHS < -1)  # two voxels of the pedicles are lost
    column.data[thin] = 0
    made = masks.clean_mask(column)
    assert_array_equal(voxels(made, L2), vertebra(1) & ~thin)
    assert made.counts == {"whole": 5, "joined": 1}
    assert made.notes[0].startswith("L2: a separate piece of ") and made.notes[0].endswith("voxels, joined.")


def test_a_piece_under_the_next_level_s_number_is_moved(column: Volume) -> None:
    arch = vertebra(1) & (DEPTHS < -8)
    column.data[arch] = L3
    made = masks.clean_mask(column)
    for step, level in enumerate(range(20, 25)):
        assert_array_equal(voxels(made, level), vertebra(step))
    assert made.notes == [f"L2: {arch.sum()} voxels that touch it had the label of L3, moved."]
    assert made.counts == {"whole": 5, "moved": 1}


@pytest.mark.parametrize("bridge", [False, True])
def test_two_vertebrae_with_one_number_are_skipped(column: Volume, bridge: bool) -> None:
    column.data[column.data == L3] = L2
    if bridge:
        column.data[50:54, 52:56, 126:160] = L2
    made = masks.clean_mask(column)
    assert list(made.parts) == [L1, L4, 24]
    assert made.counts == {"whole": 3, "missing": 1, "merged": 1}
    assert made.notes == ["L3: no voxel has its number.", "L2: two or more vertebrae with one number, skipped."]


def test_merged_vertebrae_alone_are_recognised_by_their_height_and_a_small_piece_by_its_size() -> None:
    mask = Volume(np.zeros(SHAPE, np.uint8), AFFINE)
    mask.data[vertebra(1) | vertebra(2) | vertebra(3)] = L2
    mask.data[50:54, 52:56, 92:160] = L2
    assert masks.clean_mask(mask).counts == {"merged": 1}
    x, y, z = axes_mm(AFFINE, SHAPE)
    mask.data[:] = L2 * ((x - 10) ** 2 + (y + 30) ** 2 + (z - 300) ** 2 < 6**2)
    assert masks.clean_mask(mask).counts == {"small": 1}


@pytest.mark.parametrize("part", ["upper half", "left half", "front"])
def test_one_vertebra_with_two_numbers_is_skipped(part: str) -> None:
    mask = Volume(np.zeros(SHAPE, np.uint8), AFFINE)
    x = axes_mm(AFFINE, SHAPE)[0] - 12
    first = {"upper half": axes_mm(AFFINE, SHAPE)[2] > 310, "left half": x < 0, "front": DEPTHS > 5}[part]
    for step, level in ((0, 19), (1, L1), (1, L2), (2, L3), (3, L4)):
        mask.data[vertebra(step)] = level
    mask.data[vertebra(1) & first] = L1
    made = masks.clean_mask(mask)
    assert list(made.parts) == [19, L3, L4]
    assert made.counts == {"whole": 3, "split": 2}
    assert made.notes == [f"{n}: L1 and L2 are one vertebra with two numbers, skipped." for n in ("L1", "L2")]


CUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "above": lambda data: data[:, :, :200],
    "on the right": lambda data: data[:85],
    "behind": lambda data: data[:, 12:],
}


@pytest.mark.parametrize("side", CUTS)
def test_vertebrae_at_the_border_are_skipped(column: Volume, side: str) -> None:
    made = masks.clean_mask(Volume(CUTS[side](column.data), AFFINE))
    gone = [L1] if side == "above" else [20, 21, 22, 23, 24]
    assert made.notes == [f"{levels.name(n)}: truncated by the volume's border, skipped." for n in gone]
    assert not set(gone) & set(made.parts) and len(made.parts) == 5 - len(gone)


def test_a_vertebra_truncated_before_padding_is_skipped(column: Volume) -> None:
    column.data[:, :, 196:] = 0  # two thirds of L1 are left
    made = masks.clean_mask(column)
    assert made.notes == ["L1: it ends in a flat face, as if truncated, skipped."]
    assert made.counts == {"whole": 4, "truncated": 1}


def test_a_vertebra_without_its_body_is_skipped(column: Volume) -> None:
    x = axes_mm(AFFINE, SHAPE)[0] - 12
    column.data[vertebra(2) & ((x / 21) ** 2 + ((DEPTHS - 14) / 16) ** 2 <= 1)] = 0
    made = masks.clean_mask(column)
    assert list(made.parts) == [L1, L2, L4, 24] and made.counts == {"whole": 4, "small": 1}
    assert made.notes[0].startswith("L3: only ") and made.notes[0].endswith("a part of it is missing, skipped.")


def test_a_fragment_beside_a_piece_that_is_moved_beyond_its_label_is_dropped(column: Volume) -> None:
    arch = vertebra(1) & (DEPTHS < -8)  # It extends the block of L2, which has a loose piece of its own.
    column.data[arch] = L1
    column.data[100:108, 52:60, 130:142] = L2
    made = masks.clean_mask(column)
    assert_array_equal(voxels(made, L2), vertebra(1))
    assert made.counts == {"whole": 5, "moved": 1, "fragment": 1}


def test_voxels_count_by_their_size(patient: Patient) -> None:
    """The same bones on a grid of 1 x 1.2 x 2 mm, with one arch under the wrong number."""
    y = axes_mm(patient.mask.affine, patient.mask.data.shape)[1]
    data = patient.mask.data.copy()
    data[(data == L2) & (y < MIDDLES[L2][1] - 8)] = L3
    made = masks.clean_mask(Volume(data, patient.mask.affine))
    assert list(made.parts) == [L1, L2, L3] and made.counts == {"whole": 3, "moved": 1}
    assert made.parts[L2][0].sum() == (patient.mask.data == L2).sum()


@pytest.mark.parametrize(
    ("make", "counts", "said"),
    [
        (lambda ct, mask: None, {"whole": 3}, ""),
        (lambda ct, mask: mask.__setitem__(..., mask[:, ::-1].copy()), {"turned": 3}, "do not point backwards"),
        (lambda ct, mask: mask.__setitem__(..., np.roll(mask, -12, 1)), {"off bone": 3}, "off the bone"),
        (lambda ct, mask: np.negative(ct, out=ct), {"off bone": 3}, "-600 HU in its rim, "),
        (lambda ct, mask: ct.__iadd__(1024), {"off bone": 3}, "the CT is not in HU"),
        (lambda ct, mask: ct.__itruediv__(8), {"off bone": 3}, "75 HU in its rim, "),
        (lambda ct, mask: _cut_slanted(ct, mask, -1024), {"whole": 2, "truncated": 1}, "the edge of what the CT shows"),
        (lambda ct, mask: _cut_slanted(ct, mask, 0), {"whole": 2, "truncated": 1}, "the edge of what the CT shows"),
    ],
)
def test_a_vertebra_without_bone_in_the_ct_or_turned_is_skipped(
    make: Callable[[np.ndarray, np.ndarray], object], counts: dict[str, int], said: str, patient: Patient
) -> None:
    ct, mask = (Volume(one.data.copy(), one.affine) for one in (patient.ct, patient.mask))
    make(ct.data, mask.data)
    made = masks.clean_mask(mask, ct)
    assert made.counts == counts and all(said in note for note in made.notes), made.notes


def _cut_slanted(ct: np.ndarray, mask: np.ndarray, padding: int) -> None:
    """Cuts the upper front of L1 off by a plane, as resampling onto a turned grid does."""
    _, y, z = np.ogrid[tuple(slice(n) for n in ct.shape)]
    beyond = y * 1.2 + z * 2.0 > 190
    ct[np.broadcast_to(beyond, ct.shape)], mask[np.broadcast_to(beyond, ct.shape)] = padding, 0


@pytest.mark.parametrize(("first", "good"), [(L1, True), (2, False), (8, False)])
def test_sizes_that_no_such_level_has_are_skipped(first: int, good: bool, column: Volume) -> None:
    mask = Volume(np.where(column.data, column.data - (L1 - first), 0).astype(np.uint8), np.diag([1.2] * 3 + [1]))
    assert masks.clean_mask(mask).counts == {"whole" if good else "size": 5}
