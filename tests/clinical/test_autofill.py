"""Proposals: exact where the table is right, between the clicks, at one height in both views, and honest about their error."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from transvert import levels
from transvert.clinical import autofill, landmarks
from transvert.clinical.landmarks import Landmarks
from transvert.drr import geometry
from transvert.drr.geometry import VIEWS, View
from transvert.io import InputError

ISOCENTRE = np.array([5.0, -20.0, 300.0])
THORACOLUMBAR = [n for n in levels.VERTEBRAE if 8 <= n <= 24]  # T1 to L5


def _views(cone: bool = True) -> dict[str, View]:
    return {
        which: geometry.named_view(which, ISOCENTRE, shape, 0.5, cone=cone)
        for which, shape in (("ap", (2000, 900)), ("lateral", (1900, 1000)))
    }


def _usual(chain: list[int], size: float = 1.0) -> dict[int, np.ndarray]:
    """A spine of the table's own steps."""
    places = np.cumsum(np.vstack([np.zeros(3), autofill.usual_spacing().steps(chain)[0]]), axis=0) * size
    return dict(zip(chain, places - places.mean(axis=0) + ISOCENTRE, strict=True))


def _clicked(points: dict[int, np.ndarray], views: dict[str, View], **kept: list[int]) -> Landmarks:
    """The marks of some levels, by view."""
    marks = landmarks.project_landmarks(views["ap"], views["lateral"], ISOCENTRE, points)
    centroids = {which: {n: marks.centroids[which][n] for n in kept.get(which, [])} for which in VIEWS}
    return Landmarks(marks.views, centroids, ISOCENTRE)


def _off_mm(found: autofill.Proposal, points: dict[int, np.ndarray], views: dict[str, View], which: str) -> np.ndarray:
    """Distances on the film, mm."""
    view = views[which]
    return np.array([np.linalg.norm(p - view.project(points[n])) * 0.5 for n, p in found.centroids[which].items()])


@pytest.mark.parametrize("cone", [True, False], ids=["cone", "parallel"])
def test_a_spine_as_the_table_has_it_is_found_exactly(cone: bool) -> None:
    views, points = _views(cone), _usual(THORACOLUMBAR)
    ends = [8, 16, 24]
    found = autofill.propose_landmarks(_clicked(points, views, ap=ends, lateral=ends), views["ap"], views["lateral"])
    for which in VIEWS:
        assert list(found.centroids[which]) == [n for n in THORACOLUMBAR if n not in ends]
        assert _off_mm(found, points, views, which).max() < 0.2


def test_a_patient_beside_the_central_rays_is_found_as_well() -> None:
    views = _views()
    points = {n: p + (50, -90, 30) for n, p in _usual(THORACOLUMBAR).items()}
    ends = [8, 16, 24]
    found = autofill.propose_landmarks(_clicked(points, views, ap=ends, lateral=ends), views["ap"], views["lateral"])
    for which in VIEWS:
        assert _off_mm(found, points, views, which).max() < 0.3


def test_a_larger_person_is_larger_between_the_clicks_too() -> None:
    views, points = _views(), _usual(THORACOLUMBAR, size=1.15)
    found = autofill.propose_landmarks(_clicked(points, views, lateral=[8, 13, 19, 24]), views["ap"], views["lateral"])
    assert not found.centroids["ap"], "nothing was clicked there"
    assert _off_mm(found, points, views, "lateral").max() < 2.5


def test_the_other_view_gives_the_height() -> None:
    """A spine whose vertebrae stand unevenly: all are clicked on the lateral film, three on the AP one."""
    views, points = _views(), _usual(THORACOLUMBAR)
    for n, level in enumerate(THORACOLUMBAR):
        points[level] = points[level] + (6 * np.sin(n / 3), 0, 8 * np.sin(np.pi * n / 4))
    some = THORACOLUMBAR[::4]
    alone = autofill.propose_landmarks(_clicked(points, views, ap=some), views["ap"], views["lateral"])
    helped = autofill.propose_landmarks(
        _clicked(points, views, ap=some, lateral=THORACOLUMBAR), views["ap"], views["lateral"]
    )
    rows = {
        name: np.abs([p[0] - views["ap"].project(points[n])[0] for n, p in found.centroids["ap"].items()]).max() * 0.5
        for name, found in (("alone", alone), ("helped", helped))
    }
    assert rows["alone"] > 8 and rows["helped"] < 4
    assert not helped.centroids["lateral"]
    for level in helped.error_mm["ap"]:
        assert helped.error_mm["ap"][level] < alone.error_mm["ap"][level]


def test_more_clicks_leave_less_doubt_and_far_levels_more() -> None:
    views, points = _views(), _usual(THORACOLUMBAR)
    few = autofill.propose_landmarks(
        _clicked(points, views, ap=[8, 24], lateral=[8, 16, 24]), views["ap"], views["lateral"]
    )
    more = autofill.propose_landmarks(
        _clicked(points, views, ap=[8, 16, 24], lateral=[8, 12, 16, 20, 24]), views["ap"], views["lateral"]
    )
    assert few.error_mm["lateral"][12] > more.error_mm["lateral"][11] > 1
    assert few.error_mm["lateral"][12] > few.error_mm["lateral"][9]
    # What would be off by more than the limit is not proposed at all.
    assert all(mm <= autofill.LIMIT_MM for which in VIEWS for mm in few.error_mm[which].values())
    assert 16 not in few.centroids["ap"] or few.error_mm["ap"][16] > more.error_mm["ap"][15]


def test_t13_and_l6_are_proposed_only_where_the_other_view_has_them() -> None:
    views, t13 = _views(), 28
    chain = [18, 19, t13, 20, 21]
    points = _usual(chain)
    without = _clicked(points, views, ap=[18, 21], lateral=[18, 20, 21])
    assert t13 not in autofill.propose_landmarks(without, views["ap"], views["lateral"]).centroids["ap"]
    marks = _clicked(points, views, ap=[18, 21], lateral=[18, t13, 21])
    found = autofill.propose_landmarks(marks, views["ap"], views["lateral"])
    assert list(found.centroids["ap"]) == [19, t13, 20]
    assert _off_mm(found, points, views, "ap").max() < 0.5


def test_what_is_filled_in_is_listed_until_it_is_confirmed() -> None:
    views, points = _views(), _usual(THORACOLUMBAR[:6])
    marks = _clicked(points, views, ap=[8, 13], lateral=[8, 11, 13])
    filled = autofill.fill_landmarks(marks, autofill.propose_landmarks(marks, views["ap"], views["lateral"]))
    assert filled.views["lateral"]["proposed"] == ["T2", "T3", "T5"]
    assert filled.views["ap"]["proposed"] == ["T2", "T3", "T4", "T5"]
    assert set(filled.centroids["ap"]) == set(filled.centroids["lateral"]) == set(THORACOLUMBAR[:6])
    assert_allclose(filled.centroids["ap"][8], marks.centroids["ap"][8])
    assert "proposed" not in marks.views["ap"]


def test_nothing_is_proposed_off_the_film() -> None:
    views, points = _views(), _usual(THORACOLUMBAR)
    small = geometry.named_view("ap", ISOCENTRE, (700, 900), 0.5, cone=True)
    marks = _clicked(points, views | {"ap": small}, ap=[15, 17], lateral=[8, 16, 24])
    found = autofill.propose_landmarks(marks, small, views["lateral"])
    assert found.centroids["ap"] and 9 not in found.centroids["ap"]
    assert all(0 <= row <= 699 for row, _ in found.centroids["ap"].values())


def test_too_few_clicks_get_their_sentence() -> None:
    views, points = _views(), _usual(THORACOLUMBAR)
    for kept in ({}, {"ap": [12]}, {"ap": [12], "lateral": [12]}):
        with pytest.raises(InputError, match="click at least two, better four"):
            autofill.propose_landmarks(_clicked(points, views, **kept), views["ap"], views["lateral"])
    for kept in ({"ap": [12, 13]}, {"ap": [12, 13], "lateral": [12, 13]}):
        with pytest.raises(InputError, match="Nothing can be filled in between these landmarks: click three or four"):
            autofill.propose_landmarks(_clicked(points, views, **kept), views["ap"], views["lateral"])


def test_the_table_is_of_people() -> None:
    table = autofill.usual_spacing()
    usual = [n for n in levels.VERTEBRAE if levels.name(n) != "T13"]
    assert list(table.mean) == list(itertools.pairwise(usual))
    for step, spread in zip(table.mean.values(), table.deviation.values(), strict=True):
        assert step[0] == 0 and 14 < -step[2] < 36 and (spread > 1).all() and (spread < 6).all()
    # A kyphosis from T1 to T12, a lordosis from L1 to L5.
    forward = {levels.name(lower): step[1] for (_, lower), step in table.mean.items()}
    assert forward["T3"] < forward["T7"] < forward["T11"] and forward["L2"] > forward["L5"]


def test_the_committed_page_shows_the_committed_figures() -> None:
    folder = Path(__file__).parents[2] / "benchmarks"
    page, rows = (folder / "proposal.md").read_text(), (folder / "proposal.csv").read_text().splitlines()
    assert len(rows) > 30
    columns = rows[0].split(",")
    for line in rows[1:]:
        row = dict(zip(columns, line.split(","), strict=True))
        shown = f"{float(row['error_median_mm']):.1f} / {float(row['error_p95_mm']):.1f}"
        (found,) = [text for text in page.splitlines() if text.startswith(f"| {row['clicks']} | {row['view']} |")]
        assert shown in found
        assert float(row["error_median_mm"]) < 8
