"""Proposals: exact for the usual spine, at one height in both views, and with an error that grows away from landmarks."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

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
        name: geometry.named_view(name, ISOCENTRE, shape, 0.5, cone=cone)
        for name, shape in (("ap", (2000, 900)), ("lateral", (1900, 1000)))
    }


def _usual(chain: list[int], size: float = 1.0) -> dict[int, np.ndarray]:
    """A spine of the table's own steps."""
    places = np.cumsum(np.vstack([np.zeros(3), autofill.usual_spacing().steps(chain)[0]]), axis=0) * size
    return dict(zip(chain, places - places.mean(axis=0) + ISOCENTRE, strict=True))


def _marked(points: dict[int, np.ndarray], views: dict[str, View], **kept: list[int]) -> Landmarks:
    """The landmarks of some levels, by view."""
    marks = landmarks.project_landmarks(views["ap"], views["lateral"], ISOCENTRE, points)
    return replace(marks, centroids={name: {n: marks.centroids[name][n] for n in kept.get(name, [])} for name in VIEWS})


def _propose(points: dict[int, np.ndarray], views: dict[str, View], **kept: list[int]) -> autofill.Proposal:
    return autofill.propose_landmarks(_marked(points, views, **kept), views["ap"], views["lateral"])


def _off_mm(found: autofill.Proposal, points: dict[int, np.ndarray], views: dict[str, View], name: str) -> np.ndarray:
    """Distances on the film, mm."""
    view = views[name]
    return np.array([np.linalg.norm(p - view.project(points[n])) * 0.5 for n, p in found.centroids[name].items()])


@pytest.mark.parametrize(("cone", "offset"), [(True, (0, 0, 0)), (False, (0, 0, 0)), (True, (50, -90, 30))])
def test_a_usual_spine_is_found_exactly(cone: bool, offset: tuple[float, float, float]) -> None:
    views = _views(cone)
    points = {n: p + offset for n, p in _usual(THORACOLUMBAR).items()}
    ends = [8, 16, 24]
    found = _propose(points, views, ap=ends, lateral=ends)
    for name in VIEWS:
        assert list(found.centroids[name]) == [n for n in THORACOLUMBAR if n not in ends]
        assert _off_mm(found, points, views, name).max() < 0.3
    # A larger person is larger between the landmarks too.
    views, points = _views(), _usual(THORACOLUMBAR, size=1.15)
    found = _propose(points, views, lateral=[8, 13, 19, 24])
    assert not found.centroids["ap"], "nothing is marked there"
    assert _off_mm(found, points, views, "lateral").max() < 2.5


def test_the_other_view_gives_the_height() -> None:
    """An uneven spine, all of it marked on the lateral film and a few levels on the AP one."""
    views, points = _views(), _usual(THORACOLUMBAR)
    for n, level in enumerate(THORACOLUMBAR):
        points[level] = points[level] + (6 * np.sin(n / 3), 0, 8 * np.sin(np.pi * n / 4))
    some = THORACOLUMBAR[::4]
    alone = _propose(points, views, ap=some)
    helped = _propose(points, views, ap=some, lateral=THORACOLUMBAR)
    rows = {
        name: np.abs([p[0] - views["ap"].project(points[n])[0] for n, p in found.centroids["ap"].items()]).max() * 0.5
        for name, found in (("alone", alone), ("helped", helped))
    }
    assert rows["alone"] > 8 and rows["helped"] < 4
    assert not helped.centroids["lateral"]
    for level in helped.error_mm["ap"]:
        assert helped.error_mm["ap"][level] < alone.error_mm["ap"][level]


def test_more_landmarks_lower_the_expected_error_and_distance_raises_it() -> None:
    views, points = _views(), _usual(THORACOLUMBAR)
    few = _propose(points, views, ap=[8, 24], lateral=[8, 16, 24])
    more = _propose(points, views, ap=[8, 16, 24], lateral=[8, 12, 16, 20, 24])
    assert few.error_mm["lateral"][12] > more.error_mm["lateral"][11] > 1
    assert few.error_mm["lateral"][12] > few.error_mm["lateral"][9]
    # Levels with a larger expected error are not proposed.
    assert all(mm <= autofill.LIMIT_MM for name in VIEWS for mm in few.error_mm[name].values())
    assert 16 not in few.centroids["ap"] or few.error_mm["ap"][16] > more.error_mm["ap"][15]


def test_t13_and_l6_are_proposed_only_where_the_other_view_has_them() -> None:
    views, t13 = _views(), 28
    chain = [18, 19, t13, 20, 21]
    points = _usual(chain)
    without = _marked(points, views, ap=[18, 21], lateral=[18, 20, 21])
    assert t13 not in autofill.propose_landmarks(without, views["ap"], views["lateral"]).centroids["ap"]
    marks = _marked(points, views, ap=[18, 21], lateral=[18, t13, 21])
    found = autofill.propose_landmarks(marks, views["ap"], views["lateral"])
    assert list(found.centroids["ap"]) == [19, t13, 20]
    assert _off_mm(found, points, views, "ap").max() < 0.5


def test_nothing_is_proposed_off_the_film_or_from_too_few_landmarks() -> None:
    views, points = _views(), _usual(THORACOLUMBAR)
    small = geometry.named_view("ap", ISOCENTRE, (700, 900), 0.5, cone=True)
    marks = _marked(points, views | {"ap": small}, ap=[15, 17], lateral=[8, 16, 24])
    found = autofill.propose_landmarks(marks, small, views["lateral"])
    assert found.centroids["ap"] and 9 not in found.centroids["ap"]
    assert all(0 <= row <= 699 for row, _ in found.centroids["ap"].values())
    for kept in ({}, {"ap": [12]}, {"ap": [12], "lateral": [12]}):
        with pytest.raises(InputError, match="mark at least two, better four"):
            _propose(points, views, **kept)
    for kept in ({"ap": [12, 13]}, {"ap": [12, 13], "lateral": [12, 13]}):
        with pytest.raises(InputError, match="Nothing can be filled in between these landmarks: mark three or four"):
            _propose(points, views, **kept)


def test_the_spacing_table_is_plausible() -> None:
    table = autofill.usual_spacing()
    usual = [n for n in levels.VERTEBRAE if levels.name(n) != "T13"]
    assert list(table.mean) == list(itertools.pairwise(usual))
    for step, spread in zip(table.mean.values(), table.deviation.values(), strict=True):
        assert step[0] == 0 and 14 < -step[2] < 36 and (spread > 1).all() and (spread < 6).all()
    # A kyphosis from T1 to T12, a lordosis from L1 to L5.
    forward = {levels.name(lower): step[1] for (_, lower), step in table.mean.items()}
    assert forward["T3"] < forward["T7"] < forward["T11"] and forward["L2"] > forward["L5"]
