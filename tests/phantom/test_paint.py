"""The phantom: the bones of the mask in place, a column and a trunk around them, equal for equal seeds."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import MIDDLES, PITCH_MM, Patient, part_of, stacked
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from scipy.spatial.transform import Rotation

from transvert.data import samples
from transvert.imaging.volume import AIR_HU, Volume
from transvert.phantom import column, paint

L1, L2, L3, L5, SACRUM = 20, 21, 22, 24, 26


@pytest.fixture(scope="module")
def painted(patient: Patient) -> Volume:
    return paint.paint_phantom(patient.mask, 3)


def on_canvas(mask: Volume, canvas: Volume) -> np.ndarray:
    """(X, Y, Z) uint8, the mask's levels on the phantom's grid, by the nearest voxel."""
    mapping = np.linalg.inv(mask.affine) @ canvas.affine
    return ndimage.affine_transform(mask.data, mapping[:3, :3], mapping[:3, 3], canvas.data.shape, order=0)


def depth_in(mask: Volume, canvas: Volume) -> np.ndarray:
    """(X, Y, Z) voxels, how deep each voxel of the phantom lies in the mask's bones; 0 outside."""
    bone = on_canvas(mask, canvas) > 0
    depth = np.zeros(bone.shape)
    (box,) = ndimage.find_objects(bone.astype(np.uint8))
    depth[box] = ndimage.distance_transform_edt(np.pad(bone[box], 1))[1:-1, 1:-1, 1:-1]
    return depth


def fix(patch: pytest.MonkeyPatch, **hu: float) -> None:
    """Narrows each named range of the phantom to one value, with one material for all bones."""
    for name, value in hu.items():
        patch.setattr(paint, name, (value, value))
    patch.setattr(paint, "BONE_JITTER", 0.0)


def test_bones_lie_where_the_mask_has_them_and_have_a_shell(painted: Volume, patient: Patient) -> None:
    bone = on_canvas(patient.mask, painted) > 0
    depth = depth_in(patient.mask, painted)
    around = ndimage.binary_dilation(bone, iterations=3) & ~ndimage.binary_dilation(bone)
    rim, core = painted.data[depth == 1], painted.data[depth > 4]
    assert np.median(rim) > np.median(core) + 80 and np.median(core) > np.median(painted.data[around]) + 20
    assert core.std() > 5  # it has a texture
    # The shell outlines the bone; placed a voxel off, it would not.
    for axis in range(3):
        for shift in (-1, 1):
            assert rim.mean() > painted.data[np.roll(depth == 1, shift, axis)].mean() + 20


@pytest.mark.parametrize(("shell_mm", "share"), [(0.5, 0.5), (1.5, 1.0)])
def test_shell_and_core_have_the_given_material(shell_mm: float, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    fix(monkeypatch, CORTICAL_HU=1000.0, TRABECULAR_HU=200.0, SHELL_MM=shell_mm)
    mask = stacked({L2: 0})
    made = paint.paint_phantom(mask, 0)
    depth = depth_in(mask, made)
    assert made.data[depth == 1].mean() == pytest.approx(200 + 800 * share, abs=30)
    assert made.data[depth == 2].mean() == pytest.approx(200 + 800 * max(shell_mm - 1, 0), abs=30)
    assert made.data[depth > 4].mean() == pytest.approx(200, abs=40)


def test_materials_are_drawn_from_their_ranges() -> None:
    mask = stacked({L2: 0, L3: 1})
    cores = []
    for seed in range(4):
        made = paint.paint_phantom(mask, seed, spacing_mm=2.0)
        depth = depth_in(mask, made)
        cores.append(made.data[depth > 3].mean())
        spread = 1 + 2 * paint.BONE_JITTER
        assert paint.TRABECULAR_HU[0] / spread - 40 < cores[-1] < paint.TRABECULAR_HU[1] * spread + 40
        assert made.data[depth > 0].max() < paint.CORTICAL_HU[1] * spread
    assert np.ptp(cores) > 50


def test_no_copy_covers_the_mask_s_own_bones(monkeypatch: pytest.MonkeyPatch) -> None:
    fix(monkeypatch, CORTICAL_HU=1000.0, TRABECULAR_HU=100.0, SHELL_MM=2.0)
    # Copies overlap their neighbours.
    monkeypatch.setattr(column, "DISC_MM", {"C": (-10.0, -10.0), "T": (-10.0, -10.0)})
    mask = stacked({12: 0, 13: 1})
    made = paint.paint_phantom(mask, 0, spacing_mm=2.0)
    depth = depth_in(mask, made)
    assert (depth > 2).any() and made.data[depth > 2].max() < 600
    assert (np.abs(made.data[depth == 0] - 1000) < 1).sum() > 1000  # the shells of the copies


def test_missing_vertebrae_are_copied_and_discs_lie_between(monkeypatch: pytest.MonkeyPatch) -> None:
    fix(monkeypatch, DISC_HU=600.0, CORTICAL_HU=300.0, TRABECULAR_HU=250.0)
    made = paint.paint_phantom(stacked({L1: 0, L3: 2}), 1)

    def at(x: float, y: float, z: float) -> float:
        return float(made.data[tuple(np.rint(made.index(np.array([x, y, z]))).astype(int))])

    assert_allclose([at(0, 14, -17), at(10, 14, -17), at(0, 14, -51)], 600, atol=1)
    assert at(0, 14, -PITCH_MM) == pytest.approx(250, abs=200)  # the body of L2, a copy
    assert at(35, 14, -17) < 500 and at(0, -20, -17) < 500  # beside and behind the disc


def test_the_patient_s_right_stays_right(painted: Volume, patient: Patient) -> None:
    for level, middle in MIDDLES.items():
        process = {side: np.array(middle) + (side * 38, -9, 0) for side in (1, -1)}
        dense = {side: painted.data[tuple(np.rint(painted.index(p)).astype(int))] for side, p in process.items()}
        assert dense[1] > dense[-1] + 60, level


def test_the_canvas_holds_the_bones_the_trunk_and_every_patch(painted: Volume, patient: Patient) -> None:
    assert painted.data.dtype == np.float32
    assert_allclose(painted.affine[:3, :3], np.eye(3))
    low, high = painted.corners().min(0), painted.corners().max(0)
    heights = [centre[2] for centre in patient.centroids.values()]
    assert 0 <= min(heights) - paint.MARGIN_MM - low[2] < 25 and 0 <= high[2] - max(heights) - paint.MARGIN_MM < 25
    for axis in (0, 1):
        assert high[axis] - low[axis] > 180
    for end in (0, -1):
        assert (painted.data.take(end, 1) == AIR_HU).all()
    cut = samples.cut_samples(painted, patient.mask, "x", source="phantom")
    assert np.isfinite(cut.pictures).all()


@pytest.mark.parametrize(
    "steps", [{2: 0, 3: 1, 4: 2}, {7: 0, 8: 1}, {12: 0}, {L5: 0, SACRUM: 1}, {19: 0, 28: 1, L1: 2}]
)
def test_every_region_gets_its_phantom(steps: dict[int, int]) -> None:
    mask = stacked(steps, 0.75 if 2 in steps else 1.0)
    made = paint.paint_phantom(mask, 5, spacing_mm=2.0)
    levels_there = on_canvas(mask, made)
    for level in steps:
        bone = levels_there == level
        assert bone.sum() * 8 == pytest.approx((mask.data == level).sum(), rel=0.12)
        around = ndimage.binary_dilation(bone, iterations=4) & ~ndimage.binary_dilation(levels_there > 0)
        assert made.data[bone].mean() > np.median(made.data[around]) + 40
    low, high = made.corners().min(0), made.corners().max(0)
    own = mask.world(np.argwhere(mask.data))
    assert (low <= own.min(0)).all() and (high >= own.max(0)).all()
    assert made.data.min() > AIR_HU - 0.01 and made.data.max() < 1600


@pytest.mark.parametrize(("spacing", "angles"), [((0.4, 0.4, 1.0), (0, 0, 0)), ((1.5, 1.5, 1.5), (12, -8, 25))])
def test_other_and_oblique_grids_give_the_same_bone(spacing: tuple, angles: tuple[int, int, int]) -> None:
    mask, turn = stacked({L2: 0, L3: 1}, spacing=spacing), np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    turn[:3, 3] = (5, 60, -9)
    mask = Volume(mask.data, turn @ mask.affine)
    made = paint.paint_phantom(mask, 2, spacing_mm=1.2)
    assert_allclose(made.affine[:3, :3], 1.2 * np.eye(3))
    bone, depth = on_canvas(mask, made) > 0, depth_in(mask, made)
    assert made.data[depth == 1].mean() > made.data[depth > 4].mean() + 50
    assert made.data[bone].mean() > made.data[ndimage.binary_dilation(bone, iterations=3) & ~bone].mean() + 50
    assert_allclose(made.world(np.argwhere(bone)).mean(0), mask.world(np.argwhere(mask.data)).mean(0), atol=0.4)


def test_equal_seeds_paint_equal_phantoms_and_other_labels_are_left_out(patient: Patient) -> None:
    alone = part_of(patient.mask)
    alone.data[alone.data != L2] = 0
    marked = Volume(alone.data.copy(), alone.affine)
    marked.data[:20, :20] = 100
    before = marked.data.copy()
    one, two, other = (paint.paint_phantom(m, s, spacing_mm=4.0) for m, s in ((alone, 4), (marked, 4), (alone, 5)))
    assert_array_equal(marked.data, before)
    assert_array_equal(one.data, two.data)
    assert one.data.shape != other.data.shape or not np.array_equal(one.data, other.data)
