"""Corruptions: without one the stored pictures come back, and each changes what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import Patient
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

from benchmarks.studies import corruptions
from benchmarks.studies.corruptions import Corruption
from transvert.data import samples
from transvert.data.patches import SPACING_MM
from transvert.data.samples import WIDE, Samples
from transvert.model.augment import bone_contrast

MM = (np.arange(64) - 31.5) * SPACING_MM


def _blob(*centre_mm: float) -> Samples:
    """One sample of air with a dense ball of 4 mm in it, shown on its cube alone."""
    steps = (np.arange(WIDE) - (WIDE - 1) / 2) * SPACING_MM
    away = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(np.ix_(steps, steps, steps), centre_mm, strict=True)))
    hu = np.where(away < 4, 1000, -1000).astype(np.int16)[None]
    labels = np.where(away < 4, 21, 0).astype(np.uint8)[None]
    pictures = np.zeros((1, 2, WIDE, WIDE), np.float32)
    one = np.array([21], np.uint8), np.zeros((1, 3), np.float32)
    return Samples("sub-blob", "ct", "parallel", *one, hu, labels, pictures, field_of_view="crop")


def _where(picture: np.ndarray) -> np.ndarray:
    """(2,) mm down and across from the middle: the centre of mass of what is bright."""
    weight = np.clip(picture - 0.5 * picture.max(), 0, None)
    return np.array([(weight.sum(1) * MM).sum(), (weight.sum(0) * MM).sum()]) / weight.sum()


@pytest.fixture(scope="module")
def cube(patient: Patient) -> Samples:
    return samples.cut_samples(patient.ct, patient.mask, "sub-cube", field_of_view="crop")


def test_without_a_corruption_the_stored_pictures_come_back(box_samples: Samples, cube: Samples) -> None:
    for stored in (box_samples, cube):
        images, moved = corruptions.corrupt_images(stored)
        assert_allclose(images, stored.images(), atol=1e-3)
        assert not moved.any()
    # Of a whole body's samples, its vertebra alone is what the cube's own samples show.
    assert_allclose(corruptions.corrupt_images(box_samples, crop=True)[0], cube.images(), atol=1e-3)
    assert np.abs(corruptions.corrupt_images(box_samples)[0] - cube.images()).max() > 0.5


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("kind", corruptions.KINDS)
def test_amount_zero_equals_no_corruption(kind: str, crop: bool, box_samples: Samples) -> None:
    right, still = corruptions.corrupt_images(box_samples, crop=crop)
    images, moved = corruptions.corrupt_images(box_samples, corruptions.KINDS[kind].make(0), crop=crop)
    assert_array_equal(images, right)
    assert_array_equal(moved, still)


@pytest.mark.parametrize("kind", [kind for kind in corruptions.KINDS if kind != "none"])
def test_a_corruption_changes_the_pictures_and_is_reproducible(kind: str, box_samples: Samples) -> None:
    amount = corruptions.KINDS[kind].amounts[-1]
    once, again = (corruptions.corrupt_images(box_samples, corruptions.KINDS[kind].make(amount)) for _ in range(2))
    assert_array_equal(once[0], again[0])
    assert np.abs(once[0] - corruptions.corrupt_images(box_samples)[0]).max() > 0.05
    # The random errors of a vertebra do not depend on which others are evaluated with it.
    alone = corruptions.corrupt_images(box_samples.chosen([22]), corruptions.KINDS[kind].make(amount))
    assert_allclose(alone[0][0, :, :2], once[0][2, :, :2], atol=1e-5)  # Beyond these it has no neighbours.


def test_a_turned_lateral_view_moves_the_right_side_to_the_front() -> None:
    """The ball lies 20 mm to the right: the nearer to the front (left in the picture), the farther the view is turned."""
    for degrees in (5.0, 10.0, -10.0):
        images, _ = corruptions.corrupt_images(_blob(20, 0, 6), Corruption(turn_deg=degrees))
        assert_allclose(_where(images[0, 1, 0]), [-6, -20 * np.sin(np.deg2rad(degrees))], atol=0.3)
        assert_allclose(_where(images[0, 0, 0]), [-6, -20], atol=0.3)
    # What lies before the other side of the spine moves the other way.
    images, _ = corruptions.corrupt_images(_blob(-20, 0, 6), Corruption(turn_deg=10.0))
    assert _where(images[0, 1, 0])[1] > 3


def test_a_film_is_magnified_about_the_vertebra() -> None:
    for fault, sizes in ((Corruption(ap_size=1.1), (1.1, 1)), (Corruption(lateral_size=1.1), (1, 1.1))):
        images, _ = corruptions.corrupt_images(_blob(20, -10, 15), fault)
        assert_allclose(_where(images[0, 0, 0]), np.array([-15, -20]) * sizes[0], atol=0.3)
        assert_allclose(_where(images[0, 1, 0]), np.array([-15, 10]) * sizes[1], atol=0.3)


def test_a_click_is_off_by_its_distance_in_each_view_and_patches_follow() -> None:
    five, at_five = corruptions.corrupt_images(_blob(0, 0, 0), Corruption(landmark_mm=5))
    for view, axis in ((0, 0), (1, 1)):
        vertebra, mark = _where(five[0, view, 0]), _where(five[0, view, 1])
        assert np.hypot(*(mark - vertebra)) == pytest.approx(5, abs=0.3)
        # The vertebra lies beside the patch's centre as the centre lies beside it.
        assert_allclose(vertebra, [at_five[0, 2], at_five[0, axis]], atol=0.3)
        assert mark[1] == pytest.approx(0, abs=0.1)
    _, at_eight = corruptions.corrupt_images(_blob(0, 0, 0), Corruption(landmark_mm=8))
    assert_allclose(at_eight, 1.6 * at_five)
    _, other = corruptions.corrupt_images(_blob(0, 0, 0), Corruption(landmark_mm=5), seed=1)
    assert np.abs(other - at_five).max() > 0.5


def test_a_prediction_is_shifted_back_to_its_truth(box_samples: Samples) -> None:
    truth = box_samples.targets().astype(np.float32)
    moved = np.array([[1.5, -3, 4.5], [0, 0, 0], [-1.5, 0, 3]])
    seen = np.stack([ndimage.shift(one, -by / SPACING_MM, order=0) for one, by in zip(truth, moved, strict=True)])
    assert np.abs(seen[0] - truth[0]).sum() > 100
    assert_allclose(corruptions.shift_back(seen, moved), truth, atol=1e-6)
    assert corruptions.shift_back(truth, np.zeros((3, 3))) is truth


def test_noise_has_the_stated_size(box_samples: Samples) -> None:
    flat = torch.zeros(3, 2, 64, 64)
    found = corruptions._noisy(flat, box_samples, 0.25, [1, 2, 3]).numpy()
    targets = torch.from_numpy(box_samples.targets())
    relief = bone_contrast(torch.stack([targets.sum(2), targets.sum(1)], dim=1) * SPACING_MM)[..., 0, 0]
    assert_allclose(found.std((2, 3)), 0.25 * relief, rtol=0.05)
    assert abs(np.corrcoef(found[0, 0].ravel(), found[1, 0].ravel())[0, 1]) < 0.05
