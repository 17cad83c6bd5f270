"""The benchmarks of speed: reference projection, file formats, and the figures of the synthesis page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Patient
from numpy.testing import assert_allclose, assert_array_equal

from benchmarks.speed import scenes, synthesis
from benchmarks.speed import store as formats
from transvert.drr import projector
from transvert.imaging.volume import Volume


@pytest.fixture
def ramp() -> Volume:
    """Values that grow linearly in mm along all axes, so that trilinear interpolation is exact between voxel centres."""
    affine = np.diag([1.5, 2.0, 2.5, 1.0])
    affine[:3, 3] = [-20, 10, 300]
    x, y, z = np.indices((30, 24, 20))
    return Volume((1.5 * x + 4.0 * y + 7.5 * z).astype(np.float32), affine)


def test_reference_of_a_ramp_is_the_sum_of_its_voxels(ramp: Volume) -> None:
    (view,) = next(one.views for one in scenes.make_scenes(ramp) if one.name == "parallel AP 256")
    view = scenes.with_pixels(view, 64)
    chosen, values = scenes.reference(ramp, [view])
    index = ramp.index(view.rays(np.stack(np.divmod(chosen, 64), axis=-1))[0])
    hit = ((index > -0.5) & (index < np.array(ramp.data.shape) - 0.5))[:, [0, 2]].all(axis=1)
    x, z = (np.clip(index[:, axis], 0, ramp.data.shape[axis] - 1) for axis in (0, 2))
    # 24 voxels of 2 mm along y with a mean of 46.
    assert_allclose(values, np.where(hit, 48 * (1.5 * x + 46 + 7.5 * z), 0), rtol=1e-5)
    assert 0 < hit.sum() < len(hit)


@pytest.mark.parametrize("scene", ["cone lateral 256", "cone oblique 256"])
def test_reference_distinguishes_a_view_from_its_mirror_image(ramp: Volume, scene: str) -> None:
    (view,) = next(one.views for one in scenes.make_scenes(ramp) if one.name == scene)
    view = scenes.with_pixels(view, 64)
    picture, truth = projector.cast(ramp, view), scenes.reference(ramp, [view])
    assert scenes.relative_rmse(picture, *truth) < 1e-3
    assert scenes.relative_rmse(picture[:, ::-1], *truth) > 0.05


def test_resampling_keeps_the_box_and_the_empty_border(ramp: Volume) -> None:
    halved = scenes.resample(ramp, 1 / 8)
    assert halved.data.shape == (15, 12, 10)
    assert_allclose(halved.corners(), ramp.corners())
    for axis in range(3):
        ends = np.moveaxis(halved.data, axis, 0)
        assert not ends[0].any() and not ends[-1].any()


@pytest.mark.parametrize("kind", formats.FORMATS, ids=lambda kind: kind.__name__)
def test_each_format_returns_what_was_written(kind: type[formats.Format], tmp_path: Path) -> None:
    if kind is formats.Parquet:
        pytest.importorskip("pyarrow", reason="only the benchmark's own environment has it")
    if "Zarr" in kind.name:
        pytest.importorskip("zarr")
    random = np.random.default_rng(0)
    arrays = {"hu": random.integers(-9, 9, (4, 5, 6, 7), np.int16), "pictures": random.random((4, 2, 3), np.float32)}
    made, path = kind(), tmp_path / "s-0"
    made.write(path, arrays)
    for key, values in made.read_path(path, [3, 1]).items():
        assert_array_equal(values, arrays[key][[3, 1]])
    requests, size = made.count(path, [2])
    assert size <= made.size(path) * 2 and (requests > 0) == (size > 0)


def test_a_deformed_ct_is_reproducible_and_its_mask_moves_with_it(patient: Patient) -> None:
    ct, mask = synthesis.deform(patient.ct, patient.mask, seed=1)
    again, _ = synthesis.deform(patient.ct, patient.mask, seed=1)
    other, _ = synthesis.deform(patient.ct, patient.mask, seed=2)
    assert_array_equal(ct.data, again.data)
    assert ct.data.dtype == np.int16 and not np.array_equal(ct.data, other.data)
    for level, centre in patient.centroids.items():
        moved = np.linalg.norm(mask.world(np.argwhere(mask.data == level)).mean(0) - centre)
        assert 0.2 < moved < 4 * synthesis.SHIFT_MM
    assert np.median(ct.data[mask.data > 0]) == pytest.approx(600, abs=20)


def test_the_synthesis_page_extrapolates_from_its_table() -> None:
    """3.6 s and 10 MB per CT; ten bytes per voxel above 300 MB; a long CT takes eight times as long."""
    growth = pd.DataFrame([(1, 1), (64, 1), (64, 2)], columns=["cts", "workers"]).assign(
        study="growth", start_s=2.0, busy_s=3.5, cpu_s=3.4, cost_s=[3.78, 3.6, 3.6], mb=10.0, samples=12.0
    )
    growth["wall_s"] = 3.6 * growth.cts / growth.workers + 2
    length = pd.DataFrame({"slices": [133, 500, 1000], "cpu_s": [2.0, 8.0, 16.0]}).assign(
        study="length", busy_s=1.0, cts=1, workers=0
    )
    length["peak_mb"] = 300 + 512 * 512 * length.slices * 10e-6
    page = synthesis.as_markdown(pd.concat([growth, length]), "")
    assert "workers: 1, from 1 to 64 CTs: the largest is 5% above the smallest" in page
    assert "300 MB + 10.0 bytes per voxel: 2.9 GB for 512 x 512 x 1000" in page
    assert "| 1,000 | 133 | 1.0 | 30.0 min | 56 s | 7 s | 0.05 $ | 10 GB | 0.23 $ |" in page
    assert "| 100,000 | 1000 | 800.0 | 16.7 days | 12.5 h | 1.6 h | 40.00 $ | 1,000 GB | 23.00 $ |" in page
