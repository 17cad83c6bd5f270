"""Assembly of placed vertebrae: labels where they stand, overlaps, strays, gaps, cubes that stand askew."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from transvert.clinical import vertebra
from transvert.imaging.volume import Volume
from transvert.io import InputError

SIZE, SPACING = 64, 1.5
T4, T12, L1 = 11, 19, 20
POINTS = (np.indices((SIZE,) * 3) - (SIZE - 1) / 2) * SPACING


def _ball(level, at, radius=9.0, value=1.0):
    inside = radius - np.linalg.norm(POINTS, axis=0)
    probability = value * np.clip(inside / SPACING + 0.5, 0, 1)
    return vertebra.Vertebra(level, np.asarray(at, float), probability.astype(np.float32), SPACING)


def test_assembled_labels_stand_where_the_vertebrae_stand():
    volume = vertebra.assemble_spine([_ball(28, (30.0, -20.0, 400.0)), _ball(L1, (10.0, 5.0, 340.0), radius=6.0)], 1.0)
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
    volume = vertebra.assemble_spine([weak, strong], 1.5)
    i, j, k = np.rint(volume.index([0.0, 0.0, 5.0])).astype(int)
    assert volume.data[i, j, k] == T4
    i, j, k = np.rint(volume.index([0.0, 0.0, -4.0])).astype(int)
    assert volume.data[i, j, k] == 12
    assert np.linalg.norm(volume.world(np.argwhere(volume.data == 12)), axis=1).max() < 10
    np.testing.assert_array_equal(volume.data, vertebra.assemble_spine([strong, weak], 1.5).data)


def test_gaps_are_missing_and_empty_levels_and_never_t13():
    empty = vertebra.Vertebra(18, np.zeros(3), np.zeros((8, 8, 8), np.float32), SPACING)
    assert vertebra.missing_levels([_ball(21, (0, 0, 0)), empty, _ball(16, (0, 0, 90))]) == ["T10", "T11", "T12", "L1"]
    assert vertebra.missing_levels([_ball(T12, (0, 0, 30)), _ball(L1, (0, 0, 0))]) == []
    assert vertebra.missing_levels([]) == []


def test_impossible_spines_are_refused():
    with pytest.raises(InputError, match="no vertebra to assemble"):
        vertebra.assemble_spine([])
    with pytest.raises(InputError, match="T4 is no vertebra or is there twice"):
        vertebra.assemble_spine([_ball(T4, (0, 0, 0)), _ball(T4, (0, 0, 30))])
    with pytest.raises(InputError, match="sacrum is no vertebra"):
        vertebra.assemble_spine([_ball(26, (0, 0, 0))])


def test_a_cube_that_stands_askew_is_assembled_where_its_axes_put_it():
    axes = Rotation.from_euler("xyz", [14, -11, 5], degrees=True).as_matrix()
    box = (np.abs(POINTS - np.reshape([10.0, -6.0, 4.0], (3, 1, 1, 1))) < np.reshape([25, 15, 9], (3, 1, 1, 1))).all(0)
    placed = vertebra.Vertebra(L1, np.array([30.0, -80.0, 200.0]), box.astype(np.float32), SPACING, axes)
    np.testing.assert_allclose(Volume(box, placed.affine).world(np.full(3, (SIZE - 1) / 2)), [30, -80, 200])
    other = _ball(T12, (30.0, -80.0, 270.0))
    volume = vertebra.assemble_spine([placed, other], 1.0)
    own = (volume.world(np.argwhere(volume.data == L1)) - placed.centroid_ras) @ axes
    given = POINTS[:, box]
    np.testing.assert_allclose(own.mean(0), given.mean(1), atol=0.05)
    np.testing.assert_allclose(np.ptp(own, axis=0), np.ptp(given, axis=1) + SPACING, atol=1.5)
    assert len(own) == pytest.approx(box.sum() * SPACING**3, rel=0.02)
    np.testing.assert_allclose(volume.world(np.argwhere(volume.data == T12)).mean(0), [30, -80, 270], atol=0.05)
