"""The benchmarks of synthesis and store: what they are made on, what they measure, and what their pages work out."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Patient
from numpy.testing import assert_array_equal

from benchmarks import store as formats
from benchmarks import synthesis


def test_a_deformed_ct_is_another_near_the_first_and_its_mask_goes_along(patient: Patient) -> None:
    ct, mask = synthesis.deform(patient.ct, patient.mask, seed=1)
    again, _ = synthesis.deform(patient.ct, patient.mask, seed=1)
    other, _ = synthesis.deform(patient.ct, patient.mask, seed=2)
    assert ct.data.dtype == np.int16
    assert_array_equal(ct.data, again.data)
    assert not np.array_equal(ct.data, other.data)
    for level, centre in patient.centroids.items():
        moved = np.linalg.norm(mask.world(np.argwhere(mask.data == level)).mean(0) - centre)
        assert 0.2 < moved < 4 * synthesis.SHIFT_MM
    assert np.median(ct.data[mask.data > 0]) == pytest.approx(600, abs=20)


@pytest.mark.parametrize("kind", formats.FORMATS, ids=lambda kind: kind.__name__)
def test_each_format_gives_back_what_it_was_given(kind: type[formats.Format], tmp_path: Path) -> None:
    if "Zarr" in kind.name:
        pytest.importorskip("zarr")
    random = np.random.default_rng(0)
    arrays = {"hu": random.integers(-9, 9, (4, 5, 6, 7), np.int16), "pictures": random.random((4, 2, 3), np.float32)}
    made, path = kind(), tmp_path / "a.parquet"
    made.write(path, arrays)
    for key, values in made.read_path(path, [3, 1]).items():
        assert_array_equal(values, arrays[key][[3, 1]])
    requests, size = made.count(path, [2])
    assert size <= made.size(path) * 2 and (requests > 0) == (size > 0)


def test_counting_counts_what_is_read() -> None:
    file = formats.Counting(bytes(100))
    file.seek(20)
    assert len(file.read(30)) == 30 and file.readinto(bytearray(100)) == 50
    assert (file.requests, file.size) == (2, 80)
    assert isinstance(file, io.BytesIO)


def test_the_page_works_out_what_the_table_says() -> None:
    """3.6 s a CT and 10 MB; ten bytes a voxel above 300 MB; a long CT takes eight times as long."""
    growth = [
        {
            "study": "growth",
            "cts": n,
            "workers": w,
            "wall_s": 3.6 * n / w + 2,
            "start_s": 2.0,
            "busy_s": 3.5,
            "cpu_s": 3.4,
        }
        | {"cost_s": 3.6 if n > 1 else 3.78, "mb": 10.0, "samples": 12.0}
        for n, w in ((1, 1), (64, 1), (64, 2))
    ]
    length = [
        {
            "study": "length",
            "cts": 1,
            "workers": 0,
            "slices": n,
            "cpu_s": t,
            "busy_s": t,
            "peak_mb": 300 + 512 * 512 * n * 10e-6,
        }
        for n, t in ((133, 2.0), (500, 8.0), (1000, 16.0))
    ]
    page = synthesis.as_markdown(pd.DataFrame([*growth, *length], columns=synthesis.COLUMNS), "a machine")
    assert "on 1 worker(s), from 1 to 64 CTs: the largest is 5% above the smallest" in page
    assert "300 MB + 10.0 bytes a voxel: 2.9 GB for 512 x 512 x 1000" in page
    assert "| 1,000 | 133 | 1.0 | 30.0 min | 56 s | 7 s | 0.05 $ | 10 GB | 0.23 $ |" in page
    assert "| 100,000 | 1000 | 800.0 | 16.7 days | 12.5 h | 1.6 h | 40.00 $ | 1,000 GB | 23.00 $ |" in page
