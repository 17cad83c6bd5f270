"""The anatomical tables: tilts by region, and the share of a landmark's error that a shape undoes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Seeing

from benchmarks.tables import anatomy
from transvert.clinical import endplates
from transvert.clinical.vertebra import AXES, REGIONS, unit
from transvert.data.patches import SIZE, SPACING_MM


def test_tilts_are_averaged_by_region_and_missing_regions_take_the_nearest() -> None:
    def rows(kind: str, plane: str, region: str, *degrees: float) -> list[dict[str, Any]]:
        return [{"kind": kind, "plane": plane, "region": region, "deg": deg} for deg in degrees]

    made = rows("wedge", "sagittal", "T1-T6", 0.0, 10.0, 20.0) + rows("wedge", "coronal", "T1-T6", 4.0, 8.0)
    made += rows("shape_lean", "sagittal", "L1-L3", -10.0, 10.0) + rows("shape_lean", "coronal", "L1-L3", 0.1, -0.1)
    table = anatomy.summarise(pd.DataFrame(made)).set_index(["kind", "plane", "region"])
    assert len(table) == 2 * 2 * len(REGIONS)
    assert tuple(table.loc["wedge", "sagittal", "T1-T6"]) == (10.0, 10.0, 3)
    assert tuple(table.loc["wedge", "sagittal", "L4-L6"]) == (10.0, 10.0, 0)  # The nearest region's.
    # Coronal means are 0.
    assert tuple(table.loc["wedge", "coronal", "T1-T6"]) == (0.0, 8.94, 2)
    assert tuple(table.loc["shape_lean", "sagittal", "L1-L3"]) == (0.0, 12.53, 2)
    assert table.loc["shape_lean", "coronal", "C"]["sd_deg"] == anatomy.LEAST_DEG["shape_lean"]


def test_bones_at_rest_give_wedges_discs_and_tilts() -> None:
    def bone(level: int, centre: tuple[float, float, float], upper: float, lower: float) -> Any:
        ends = [unit(np.array([0.0, np.tan(np.radians(deg)), 1.0])) for deg in (upper, lower)]
        plates = endplates.Endplates(
            np.array(centre), np.array(centre), ends[0], np.array(centre), ends[1], 30.0, 40.0, 20.0, 20.0, 20.0
        )
        axes = np.eye(3)
        return SimpleNamespace(level=level, centroid=np.array(centre) + (0, -12.0, 1.0), plates=plates, axes=axes)

    bones = [bone(11, (0, 25, 50), 20, 10), bone(12, (0, 0, 25), 8, 2), bone(14, (0, 0, -30), 0, 0)]
    found = pd.DataFrame(anatomy.at_rest(bones, coronal=False)).set_index(["kind", "region"])["deg"]
    assert found["wedge"].tolist() == pytest.approx([10, 6, 0])
    assert found["disc"].tolist() == pytest.approx([2])  # Level 13 is missing, and with it two discs.
    assert found["chord_below"].tolist() == pytest.approx([45 - 15])
    assert found["chord_above"].tolist() == pytest.approx([45 - 5])
    assert "chord" not in found.index
    behind = pd.DataFrame(anatomy.behind(bones))
    assert behind["back_mm"].tolist() == [12.0] * 3 and behind["up_mm"].tolist() == [1.0] * 3


@pytest.mark.parametrize(("sees", "undone"), [(True, 1.0), (False, 0.0)], ids=str)
def test_a_shape_that_follows_the_films_undoes_the_whole_error(sees: bool, undone: float) -> None:
    steps = (np.arange(SIZE) - (SIZE - 1) / 2) * SPACING_MM
    spot = np.exp(-((np.hypot(steps[:, None], steps) / 5) ** 2)).astype(np.float32)
    images = np.broadcast_to(spot, (3, 2, 2, SIZE, SIZE)).copy()
    images, levels = np.repeat(images, anatomy.LEAST, axis=0), np.repeat(np.array([7, 19, 20], np.uint8), anatomy.LEAST)
    person: Any = SimpleNamespace(images=lambda: images, levels=levels)
    table = anatomy.summarise_centring(pd.DataFrame(anatomy.follow(Seeing(sees), person, "some")))
    assert table[["region", "axis"]].values.tolist() == [[r, a] for r in "CTL" for a in AXES]
    assert table["share"].tolist() == pytest.approx([undone] * 9, abs=0.2)
    assert table["offset_mm"].abs().max() < 0.4 and (table["count"] == anatomy.LEAST).all()


def test_alignment_is_how_far_a_vertebra_is_out_of_line() -> None:
    line = {n: np.array([0.0, 0.0, -20.0 * n]) for n in range(10, 20)}
    assert all(row["mm"] == pytest.approx(0) for row in anatomy.steps_out(line))
    out = pd.DataFrame(anatomy.steps_out(line | {15: line[15] + [0.0, 4.0, 0.0]}))
    front = out[out["axis"] == "front"]["mm"].tolist()
    assert front == pytest.approx([0.0, 1.0, -4.0, 6.0, -4.0, 1.0]) and not out[out["axis"] == "up"]["mm"].any()
    table = anatomy.summarise_alignment(out).set_index(["region", "axis"])
    assert len(table) == 3 * len(AXES)
    assert table.loc["T", "front"]["sd_mm"] == pytest.approx(np.sqrt(np.pi / 2) * 16 / 6, abs=0.01)
