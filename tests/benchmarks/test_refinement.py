"""A vertebra goes back to where its films were made, and stays where films say nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import inside_vertebra
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.transform import Rotation

from benchmarks import refine as benchmark
from benchmarks.studies import refinement
from transvert.clinical.vertebra import Vertebra
from transvert.data import patches
from transvert.drr import geometry, projector
from transvert.drr.geometry import View
from transvert.imaging.volume import Volume
from transvert.io import InputError

L2, L3, SIZE, MM = 21, 22, 64, 1.5
HERE = np.array([20.0, -10.0, 60.0])
ABOVE = np.array([0.0, 0.0, 34.0])


def occupancy(axes: np.ndarray) -> np.ndarray:
    """(64, 64, 64) soft shares of the vertebra in a cube that stands askew: the mean of 3 x 3 x 3 points a voxel."""
    fine = (np.arange(3 * SIZE) - (3 * SIZE - 1) / 2) * MM / 3
    grid = np.stack(np.meshgrid(fine, fine, fine, indexing="ij"))
    inside = inside_vertebra(*np.einsum("ij,jxyz->ixyz", axes, grid), (0.0, 0.0, 0.0))
    return inside.reshape(SIZE, 3, SIZE, 3, SIZE, 3).mean((1, 3, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def views() -> tuple[View, View]:
    return tuple(geometry.named_view(n, np.zeros(3), (400, 300), 0.8, cone=True) for n in ("ap", "lateral"))


@pytest.fixture(scope="module")
def bones(views: tuple[View, View]) -> list[Vertebra]:
    """Two alike, one above the other, each in the cube of its own rays."""
    found = []
    for level, place in ((L2, HERE + ABOVE), (L3, HERE)):
        axes = patches.local_axes(*views, place)
        found.append(Vertebra(level, place, occupancy(axes), MM, axes))
    return found


@pytest.fixture(scope="module")
def films(bones: list[Vertebra], views: tuple[View, View]) -> list[np.ndarray]:
    """Both bones, in another scale than they are drawn in, before a slope and a bright edge like a diaphragm's."""
    pictures = []
    for view in views:
        rows, columns = np.indices(view.shape)
        bone = sum(projector.cast(Volume(v.probability, v.affine), view) for v in bones)
        pictures.append((0.02 * bone + 0.004 * rows + 1.0 * (columns + 0.3 * rows > 225)).astype(np.float32))
    return pictures


def astray(vertebra: Vertebra, turn_deg: tuple[float, float, float], shift_mm: tuple[float, float, float]) -> Vertebra:
    turn = Rotation.from_rotvec(turn_deg, degrees=True).as_matrix()
    return replace(vertebra, centroid_ras=vertebra.centroid_ras + shift_mm, axes=turn @ vertebra.axes)


def apart(one: Vertebra, other: Vertebra) -> tuple[float, float]:
    """Degrees and mm."""
    turn = Rotation.from_matrix(one.axes @ other.axes.T).magnitude()
    return float(np.degrees(turn)), float(np.linalg.norm(one.centroid_ras - other.centroid_ras))


@pytest.mark.parametrize(
    ("turn", "shift"),
    [((3.0, 0.0, 0.0), (0.0, 2.0, 0.0)), ((0.0, 3.0, -3.0), (-2.0, 0.0, 1.5)), ((0.0, 0.0, 0.0), (0.0, 0.0, -3.0))],
)
def test_a_vertebra_goes_back_to_where_the_films_show_it(
    bones: list[Vertebra],
    films: list[np.ndarray],
    views: tuple[View, View],
    turn: tuple[float, float, float],
    shift: tuple[float, float, float],
) -> None:
    upper, lower = bones
    given = [upper, astray(lower, turn, shift)]
    degrees, mm = apart(refinement.refine(given, films, views)[1], lower)
    assert degrees < 1.7, degrees
    assert mm < 0.9, mm


def test_where_it_belongs_a_vertebra_stays(
    bones: list[Vertebra], films: list[np.ndarray], views: tuple[View, View]
) -> None:
    """But for what the bright edge across the films pulls at it."""
    for found, known in zip(refinement.refine(bones, films, views), bones, strict=True):
        degrees, mm = apart(found, known)
        assert degrees < 1.5, degrees
        assert mm < 0.6, mm
        assert_allclose(found.axes @ found.axes.T, np.eye(3), atol=1e-9)
        assert_array_equal(found.probability, known.probability)


def test_brightness_and_contrast_do_not_matter(
    bones: list[Vertebra], films: list[np.ndarray], views: tuple[View, View]
) -> None:
    given = [astray(bones[1], (0.0, 3.0, 0.0), (1.0, 0.0, 1.0))]
    one = refinement.refine(given, films, views)[0]
    other = refinement.refine(given, [1000 * films[0] - 5000, 0.01 * films[1] + 3], views)[0]
    degrees, mm = apart(one, other)
    assert degrees < 0.2
    assert mm < 0.1


def test_films_that_show_nothing_move_nothing(bones: list[Vertebra], views: tuple[View, View]) -> None:
    for blank in (np.full(views[0].shape, 7.0, np.float32), np.full(views[0].shape, np.nan, np.float32)):
        for found, known in zip(refinement.refine(bones, [blank, blank], views), bones, strict=True):
            assert_allclose(found.centroid_ras, known.centroid_ras, atol=1e-6)
            assert_allclose(found.axes, known.axes, atol=1e-9)


def test_an_empty_vertebra_stays_and_the_order_is_head_to_tail(
    bones: list[Vertebra], films: list[np.ndarray], views: tuple[View, View]
) -> None:
    empty = replace(bones[1], probability=np.zeros((SIZE,) * 3, np.float32))
    found = refinement.refine([empty, bones[0]], films, views)
    assert [v.level for v in found] == [L2, L3]
    assert found[1] is empty


def test_one_level_twice_and_a_picture_of_another_view_are_refused(
    bones: list[Vertebra], films: list[np.ndarray], views: tuple[View, View]
) -> None:
    with pytest.raises(InputError, match="twice"):
        refinement.refine([bones[0], bones[0]], films, views)
    with pytest.raises(InputError, match="picture"):
        refinement.refine(bones, [films[0][:-1], films[1]], views)


def test_the_page_has_both_means_by_click_and_region() -> None:
    keys = {"subject": "chest", "posture": 0, "error_cobb_deg": None}
    rows = [
        keys | {"click_mm": mm, "when": when, "level": level, "dice": dice, "centroid_mm": -1.0}
        for mm in (0.0, 2.0, 4.0)
        for when, dice in (("before", 0.7), ("after", 0.75))
        for level in ("T4", "L1")
    ]
    rows += [{**row, "level": "", "dice": None, "error_cobb_deg": -2.0} for row in rows if row["level"] == "L1"]
    page = benchmark.as_markdown(pd.DataFrame(rows), "a machine", ["ctacardio"])
    assert "Postures: chest 1. The weights have learned from: ctacardio." in page
    assert page.count("| Dice | 0.700 → 0.750 | 0.700 → 0.750 | 0.700 → 0.750 |") == 3
    assert "| Cobb between the true end levels, degrees | 2.00 → 2.00 |" in page
    assert "## All, thoracic" in page and "## All, cervical" not in page
