"""What is known of how vertebrae lean is summed up as it should be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import anatomy
from transvert import endplates, tilts


def test_leans_are_summed_up_by_region_with_what_nobody_shows_taken_from_next_to_it() -> None:
    def rows(kind: str, plane: str, region: str, *degrees: float) -> list[dict[str, Any]]:
        return [{"kind": kind, "plane": plane, "region": region, "deg": deg} for deg in degrees]

    made = rows("wedge", "sagittal", "T1-T6", 0.0, 10.0, 20.0) + rows("wedge", "coronal", "T1-T6", 4.0, 8.0)
    made += rows("shape_lean", "sagittal", "L1-L3", -10.0, 10.0) + rows("shape_lean", "coronal", "L1-L3", 0.1, -0.1)
    table = anatomy.summarise(pd.DataFrame(made)).set_index(["kind", "plane", "region"])
    assert len(table) == 2 * 2 * len(tilts.REGIONS)
    assert tuple(table.loc["wedge", "sagittal", "T1-T6"]) == (10.0, 10.0, 3)
    assert tuple(table.loc["wedge", "sagittal", "L4-L6"]) == (10.0, 10.0, 0)  # Nobody was measured there.
    # To neither side on average; and normal errors whose mean size is 10 degrees.
    assert tuple(table.loc["wedge", "coronal", "T1-T6"]) == (0.0, 8.94, 2)
    assert tuple(table.loc["shape_lean", "sagittal", "L1-L3"]) == (0.0, 12.53, 2)
    assert table.loc["shape_lean", "coronal", "C"]["sd_deg"] == anatomy.LEAST_DEG["shape_lean"]


def test_bones_at_rest_tell_wedge_disc_and_lean_beside_their_neighbours() -> None:
    def bone(level: int, centre: tuple[float, float, float], upper: float, lower: float) -> Any:
        ends = [endplates.unit(np.array([0.0, np.tan(np.radians(deg)), 1.0])) for deg in (upper, lower)]
        plates = endplates.Endplates(
            np.array(centre), np.array(centre), ends[0], np.array(centre), ends[1], 30.0, 40.0, 20.0, 20.0, 20.0
        )
        axes = np.eye(3)
        return SimpleNamespace(level=level, centroid=np.array(centre) + (0, -12.0, 1.0), plates=plates, axes=axes)

    bones = [bone(11, (0, 25, 50), 20, 10), bone(12, (0, 0, 25), 8, 2), bone(14, (0, 0, -30), 0, 0)]
    found = pd.DataFrame(anatomy.at_rest(bones, coronal=False)).set_index(["kind", "region"])["deg"]
    assert found["wedge"].tolist() == pytest.approx([10, 6, 0])
    assert found["disc"].tolist() == pytest.approx([2])  # T6 is missing, and with it two discs.
    assert found["chord_below"].tolist() == pytest.approx([45 - 15])
    assert found["chord_above"].tolist() == pytest.approx([45 - 5])
    assert "chord" not in found.index
    behind = pd.DataFrame(anatomy.behind(bones))
    assert behind["back_mm"].tolist() == [12.0] * 3 and behind["up_mm"].tolist() == [1.0] * 3
