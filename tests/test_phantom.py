"""The phantom: the mask's bones where the mask has them, denser than what is around them, and the same for one seed."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Patient
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

from transvert import phantom
from transvert.volume import AIR_HU, Volume


@pytest.fixture(scope="module")
def painted(patient: Patient) -> Volume:
    return phantom.paint(patient.mask, 3)


def _bone(painted: Volume, mask: Volume) -> np.ndarray:
    """The mask on the phantom's grid, by its nearest voxel."""
    index = mask.index(painted.world(np.moveaxis(np.indices(painted.data.shape), 0, -1)))
    return ndimage.map_coordinates(mask.data > 0, np.moveaxis(np.rint(index), -1, 0), order=0, cval=0)


def test_bones_lie_where_the_mask_has_them_and_are_denser(painted: Volume, patient: Patient) -> None:
    bone = _bone(painted, patient.mask)
    soft = ~bone & (painted.data > -500)
    assert painted.data[bone].mean() > painted.data[soft].mean() + 80
    assert painted.data[soft].max() < 200
    # The shell outlines every bone and nothing else: placed a voxel off, it would not.
    rim = bone & ~ndimage.binary_erosion(bone)
    assert painted.data[rim].mean() > painted.data[soft].max() + 150
    assert not ((painted.data > 300) & ~bone).any()


def test_the_shell_is_denser_than_the_core(painted: Volume, patient: Patient) -> None:
    bone = _bone(painted, patient.mask)
    depth = ndimage.distance_transform_edt(bone)
    assert painted.data[depth == 1].mean() > painted.data[depth > 4].mean() + 100
    assert painted.data[depth > 4].std() > 5  # the core has a texture


def test_it_is_isotropic_with_margins_at_the_sides_alone(painted: Volume, patient: Patient) -> None:
    assert_allclose(painted.spacing_mm, 1.0)
    where = patient.mask.world(np.argwhere(patient.mask.data))
    half = patient.mask.spacing_mm / 2
    low, high = where.min(0) - half, where.max(0) + half
    corners = painted.corners()
    before, after = low - corners.min(0), corners.max(0) - high
    for margin in (before[:2], after[:2]):
        assert (margin >= phantom.BODY_MARGIN_MM[0] - 1).all() and (margin <= phantom.BODY_MARGIN_MM[1] + 1).all()
    assert_allclose([before[2], after[2]], 0, atol=1)
    assert_array_equal(painted.data[0, 0], AIR_HU)  # beyond the elliptic body
    assert painted.data.dtype == np.float32


def test_it_follows_an_oblique_mask() -> None:
    turn = np.deg2rad(25)
    affine = np.array(
        [[np.cos(turn), -np.sin(turn), 0, 5], [np.sin(turn), np.cos(turn), 0, 60], [0, 0, 2, -9], [0] * 4]
    )
    affine[3, 3] = 1
    mask = Volume(np.zeros((30, 24, 12), np.uint8), affine)
    mask.data[8:20, 6:16, 3:9] = 20
    painted = phantom.paint(mask, 0, spacing_mm=0.7)
    bone = _bone(painted, mask)
    assert_allclose(painted.spacing_mm, 0.7)
    assert_allclose(painted.world(np.argwhere(bone)).mean(0), mask.world(np.argwhere(mask.data)).mean(0), atol=0.4)
    assert painted.data[bone].mean() > painted.data[~bone & (painted.data > -500)].mean() + 150


def test_equal_seeds_paint_equal_phantoms_and_others_do_not() -> None:
    mask = Volume(np.zeros((20, 20, 20), np.uint8), np.eye(4))
    mask.data[5:15, 5:15, 5:15] = 20
    one, same, other = (phantom.paint(mask, seed) for seed in (1, 1, 2))
    assert_array_equal(one.data, same.data)
    assert one.data.shape != other.data.shape or not np.array_equal(one.data, other.data)


@pytest.mark.parametrize(("shape", "scale"), [((64, 50, 30), 4.0), ((5, 7, 9), 20.0)])
def test_noise_has_unit_spread_and_the_wanted_grain(shape: tuple[int, ...], scale: float) -> None:
    noise = phantom.smooth_noise(shape, scale, np.random.default_rng(0))
    assert noise.shape == shape and noise.dtype == np.float32
    assert noise.std() == pytest.approx(1, abs=1e-3)
    if scale == 4.0:
        assert abs(noise.mean()) < 0.3
        near, far = (np.corrcoef(noise[d:].ravel(), noise[:-d].ravel())[0, 1] for d in (1, 16))
        assert near > 0.8 and abs(far) < 0.3
