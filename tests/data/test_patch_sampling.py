"""Patches of films are life-sized, averaged, turned as the picture is, and free of the film's grey scale."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

from transvert.data import patches
from transvert.drr import projector
from transvert.drr.geometry import VIEW_NAMES, named_view
from transvert.imaging.volume import Volume

RNG = np.random.default_rng(0)


def test_standardise_forgets_a_film_s_grey_scale() -> None:
    patch = RNG.normal(300, 20, (40, 40))
    valid = np.ones(patch.shape, bool)
    valid[:5] = False
    result = patches.standardise(patch, valid)
    assert result.dtype == np.float32 and not result[:5].any()
    assert not result[5].any() and result[6].any()  # the film's last row is left out
    assert result[6:].mean() == pytest.approx(0, abs=0.05) and result[6:].std() == pytest.approx(1, abs=0.1)
    assert_allclose(result, patches.standardise(patch * 37 - 11, valid), atol=1e-5)
    assert not patches.standardise(np.full((4, 4), 1 / 3)).any()
    assert not patches.standardise(patch, np.zeros(patch.shape, bool)).any()
    patch[20, 20] = np.nan
    assert np.isfinite(patches.standardise(patch)).all() and patches.standardise(patch)[20, 20] == 0
    patch[20, 20] = 1e9
    assert patches.standardise(patch).max() <= patches.CLIP


def test_standardise_shows_the_vertebra_and_not_the_body() -> None:
    """A bone's faint edge under the slope of a body thirty times as strong."""
    slope = np.repeat(np.linspace(0, 30, 64)[:, None], 64, axis=1)
    bone = np.zeros((64, 64))
    bone[:, 32:] = 1
    alone, under = patches.standardise(bone), patches.standardise(bone + slope)
    edge = np.s_[20:44, 24:40]
    assert np.corrcoef(alone[edge].ravel(), under[edge].ravel())[0, 1] > 0.9
    plain = (bone + slope - (bone + slope).mean()) / (bone + slope).std()
    assert np.ptp(under[32]) > 5 * np.ptp(plain[32])


@pytest.mark.parametrize("beam", [{}, {"cone": True}, {"slot": True}], ids=["parallel", "cone", "slot"])
@pytest.mark.parametrize("name", VIEW_NAMES)
def test_a_patch_of_a_small_sphere_is_life_sized(name: str, beam: dict[str, bool]) -> None:
    radius, centre = 10.0, np.array([130.0, -60.0, 60.0])  # Far from the isocentre, where magnification differs.
    volume = Volume(np.zeros((48, 48, 48), np.float32), np.diag([0.5, 0.5, 0.5, 1.0]))
    volume.affine[:3, 3] = centre - 23.5 * 0.5
    distance = np.linalg.norm(volume.world(np.stack(np.indices(volume.data.shape), axis=-1)) - centre, axis=-1)
    volume.data[:] = np.clip((radius - distance) / 0.5 + 0.5, 0, 1)
    v = named_view(name, np.zeros(3), (500, 900), 0.6, **beam)
    patch, valid = patches.cut_patch(projector.cast(volume, v), v, centre, 33, 1.0)
    assert valid.all() and patch.dtype == np.float32
    rows, columns = np.indices(patch.shape) - 16
    # Rays are a little slanted here, which widens the picture by under 1 %.
    expected = 2 * np.sqrt(np.maximum(radius**2 - rows**2 - columns**2, 0))
    assert np.abs(patch - expected)[np.hypot(rows, columns) < 9].max() < 0.6
    diameter = 2 * np.sqrt((patch > 2).sum() / np.pi)
    assert diameter == pytest.approx(2 * np.sqrt(radius**2 - 1), abs=0.7)  # Unmagnified it would be 2 to 6 mm.


def test_a_patch_has_the_picture_s_directions_and_ends_with_it() -> None:
    v = named_view("ap", np.zeros(3), (40, 30), 2.0)
    rows, columns = np.indices(v.shape).astype(np.float32)
    centre = v.corner + 10 * v.row_step + 3 * v.column_step + 77 * v.direction
    for picture, along in ((rows, 0), (columns, 1)):
        patch, valid = patches.cut_patch(picture, v, centre, 11, 2.0)
        index = np.indices(patch.shape)
        assert_array_equal(valid, index[1] >= 2)
        expected = index[along] + (5, -2)[along]
        assert_allclose(patch, np.where(valid, expected, 0), atol=1e-4)
    patch, valid = patches.cut_patch(rows, v, centre + [1000, 0, 0], 11, 2.0)
    assert not valid.any() and not patch.any()


def test_a_coarse_patch_averages_fine_pixels() -> None:
    # The second is magnified twice: its points 0.3 mm apart meet every second pixel, all of them white ones.
    for spacing_mm, more in ((1.0, {}), (0.3, {"cone": True, "source_to_isocentre_mm": 900.0})):
        v = named_view("ap", np.zeros(3), (401, 401), 0.15 if not more else 0.3, **more)
        board = (np.indices(v.shape).sum(axis=0) % 2 == 0).astype(np.float32)
        patch, valid = patches.cut_patch(board, v, np.zeros(3), 25, spacing_mm)
        assert valid.all()
        assert_allclose(patch, 0.5, atol=0.05)


def test_a_film_of_finest_pixels_is_averaged_as_one_of_twice_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch's pixel covers 20 x 10 of the film's, which are sampled 6 x 3 at a time: as if each were."""
    smooth = np.sin(np.arange(900)[:, None] / 31) + np.cos(np.arange(900) / 17)
    v = named_view("ap", np.zeros(3), smooth.shape, (0.06, 0.12), cone=True)
    noisy = (smooth + RNG.normal(0, 0.3, smooth.shape)).astype(np.float32)
    for centre in (np.array([3.1, 7.0, -2.3]), np.array([-42.0, 0.0, 21.0]), np.array([44.0, 0.0, -21.0])):
        patch, valid = patches.cut_patch(noisy, v, centre, 21, 1.0)
        monkeypatch.setattr(patches, "_PARTS", 100)
        each, there = patches.cut_patch(noisy, v, centre, 21, 1.0)
        monkeypatch.undo()
        assert_array_equal(valid, there)
        assert valid.all() == (centre[0] == 3.1)
        # At the film's edge a few of its pixels are left out; `standardise` leaves the patch's last pixel out there.
        inner = ndimage.binary_erosion(valid, np.ones((3, 3)), border_value=1)
        assert_allclose(patch[inner], each[inner], atol=0.06)
        assert np.abs(patch - each)[inner].mean() < 0.015
