"""The committed DRR table is whole: every engine in every scene, figures that can be, and a page that shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from benchmarks import engines, report, scenes
from transvert.drr import projector
from transvert.imaging.volume import Volume

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return pd.read_csv(FOLDER / "drr.csv", keep_default_na=False, na_values=[""])


@pytest.fixture
def ramp() -> Volume:
    """Values that grow linearly in millimetres along all axes: trilinear interpolation has no error between centres."""
    affine = np.diag([1.5, 2.0, 2.5, 1.0])
    affine[:3, 3] = [-20, 10, 300]
    x, y, z = np.indices((30, 24, 20))
    return Volume((1.5 * x + 4.0 * y + 7.5 * z).astype(np.float32), affine)


def test_every_engine_stands_in_every_scene(table: pd.DataFrame) -> None:
    names = [scene.name for scene in scenes.make_scenes(Volume(np.ones((4, 4, 4)), np.eye(4)))]
    assert list(table.columns) == report.COLUMNS
    rows = table[table.study == "scenes"]
    assert list(zip(rows.scene, rows.engine, strict=True)) == [(s, e.name) for s in names for e in engines.ENGINES]
    for study in ("volume", "pixels", "threads"):
        assert set(table[table.study == study].engine) == {"transvert", "RTK"}


def test_each_row_has_its_figures_or_says_why_not(table: pd.DataFrame) -> None:
    measured = table.median_ms.notna()
    assert (measured != table.note.notna()).all()
    assert (table[measured].median_ms > 0).all() and (table[measured].rounds >= 1).all()
    rows = table[measured & (table.study == "scenes")]
    assert rows.relative_rmse.between(0, 0.01).all(), "more than a difference of models: a mirrored or shifted picture"
    assert (rows.peak_memory_volumes >= 0).all()
    joseph = rows[rows.engine.isin(["transvert", "RTK"])]
    assert joseph.relative_rmse.lt(1e-3).all()
    assert joseph.rounds.ge(5).all(), "the engines that every ratio is about need their rounds"


def test_ratios_are_of_the_medians(table: pd.DataFrame) -> None:
    for _, rows in table[table.median_ms.notna()].groupby(["study", "scene"]):
        rtk = rows[rows.engine == "RTK"].median_ms.item()
        assert_allclose(rows.ratio_to_rtk, rows.median_ms / rtk, rtol=1e-4)


def test_page_shows_the_table(table: pd.DataFrame) -> None:
    page = (FOLDER / "drr.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in page if line.startswith("| cone AP 1024 |")]
    assert len(rows) == 3, "time, accuracy and memory"
    cells = [cell.strip() for cell in rows[0].strip("|").split("|")][1:]
    expected = table[(table.study == "scenes") & (table.scene == "cone AP 1024")]
    assert cells == [report._time(row) for row in expected.itertuples()]


def test_reference_of_a_ramp_is_the_sum_of_its_voxels(ramp: Volume) -> None:
    (view,) = next(one.views for one in scenes.make_scenes(ramp) if one.name == "parallel AP 256")
    view = scenes.with_pixels(view, 64)
    chosen, values = scenes.reference(ramp, [view])
    index = ramp.index(view.rays(np.stack(np.divmod(chosen, 64), axis=-1))[0])
    hit = ((index > -0.5) & (index < np.array(ramp.data.shape) - 0.5))[:, [0, 2]].all(axis=1)
    x, z = (np.clip(index[:, axis], 0, ramp.data.shape[axis] - 1) for axis in (0, 2))
    # 24 voxels of 2 mm along y, whose values 4*y have the mean 46; linear interpolation keeps the sum.
    assert_allclose(values, np.where(hit, 48 * (1.5 * x + 46 + 7.5 * z), 0), rtol=1e-5)
    assert 0 < hit.sum() < len(hit)


@pytest.mark.parametrize("scene", ["cone lateral 256", "cone oblique 256"])
def test_reference_tells_a_view_from_its_mirror_image(ramp: Volume, scene: str) -> None:
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


def test_the_readme_quotes_the_table(table: pd.DataFrame) -> None:
    assert report.readme_table(table) in (FOLDER.parent / "README.md").read_text(encoding="utf-8")
