"""Landmarks: what is projected is placed again, and every file or pair of marks that cannot be right is told so."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from transvert.clinical import landmarks
from transvert.clinical.landmarks import Landmarks
from transvert.clinical.radiograph import Radiograph
from transvert.drr import geometry
from transvert.drr.geometry import View
from transvert.io import InputError

ISOCENTRE = np.array([12.0, -30.0, 310.0])
POINTS = {
    20: np.array([15.0, -31.0, 344.0]),
    21: np.array([-9.0, -12.0, 310.0]),
    28: np.array([20.0, -50.0, 390.0]),
}
T13, L1, L2 = 28, 20, 21


def _views(cone: bool, **options: Any) -> tuple[View, View]:
    ap = geometry.named_view("ap", ISOCENTRE, (420, 300), (0.6, 0.5), cone=cone, **options)
    return ap, geometry.named_view("lateral", ISOCENTRE, (400, 280), 0.7, cone=cone)


def _films(views: tuple[View, View], pitch: bool = True) -> tuple[Radiograph, Radiograph]:
    ap, lateral = (Radiograph(np.zeros(view.shape, np.float32), view.pixel_mm if pitch else None) for view in views)
    return ap, lateral


def _content(**change: Any) -> dict[str, Any]:
    """A right file's content."""
    return landmarks.project_landmarks(*_views(True), ISOCENTRE, POINTS).to_dict() | change


# There and back


@pytest.mark.parametrize("cone", [True, False], ids=["cone", "parallel"])
def test_points_come_back_from_their_two_pixels(cone: bool, tmp_path: Path) -> None:
    views = _views(cone, principal_point=(180.25, 140.5))
    marks = landmarks.project_landmarks(*views, ISOCENTRE, POINTS)
    assert marks.levels == [T13, L1, L2]
    points, residuals = marks.place(*views)
    for level, point in POINTS.items():
        assert_allclose(points[level], point, atol=1e-3)
        assert residuals[level] < 1e-3
    # And through a file, with films that know nothing but their shape.
    found = landmarks.read_landmarks(landmarks.write_landmarks(tmp_path / "marks.json", marks))
    again = tuple(found.view(which, film) for which, film in zip(("ap", "lateral"), _films(views, False), strict=True))
    points, _ = found.place(*again)
    for level, point in POINTS.items():
        assert_allclose(points[level], point, atol=1e-3)
    for view, same in zip(views, again, strict=True):
        assert view.name == same.name and view.shape == same.shape
        for name in ("corner", "down", "across", "direction"):
            assert_allclose(getattr(view, name), getattr(same, name), atol=1e-6)
        assert (view.source is None) == (same.source is None)
        if view.source is not None:
            assert_allclose(view.source, same.source, atol=1e-6)


def test_a_pa_and_a_right_lateral_film_place_the_same_points() -> None:
    views = (
        geometry.named_view("pa", ISOCENTRE, (420, 300), 0.6, cone=True),
        geometry.named_view("right_lateral", ISOCENTRE, (420, 300), 0.6, cone=True),
    )
    marks = landmarks.project_landmarks(*views, ISOCENTRE, POINTS)
    points, _ = marks.place(*(marks.view(w, f) for w, f in zip(("ap", "lateral"), _films(views), strict=True)))  # type: ignore[arg-type]
    for level, point in POINTS.items():
        assert_allclose(points[level], point, atol=1e-3)


def test_a_file_is_the_same_after_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "marks.json"
    path.write_text(json.dumps(_content()))
    found = landmarks.read_landmarks(path)
    assert json.loads(landmarks.write_landmarks(tmp_path / "again.json", found).read_text()) == _content()
    assert set(found.to_dict()["views"]["ap"]["centroids"]) == {"T13", "L1", "L2"}


def test_the_pixel_pitch_comes_from_the_file_else_from_the_film(tmp_path: Path) -> None:
    content = _content()
    del content["views"]["ap"]["pixel_mm"]
    marks = _read(content, tmp_path)
    ap, lateral = _views(True)
    film = Radiograph(np.zeros(ap.shape, np.float32), (0.8, 0.9))
    assert marks.view("ap", film).pixel_mm == pytest.approx((0.8, 0.9))
    assert marks.view("lateral", Radiograph(np.zeros(lateral.shape, np.float32), (9, 9))).pixel_mm == pytest.approx(
        (0.7, 0.7)
    )


def test_what_a_file_leaves_out_has_the_documented_default(tmp_path: Path) -> None:
    mark = {"L1": [100, 120]}
    bare = {
        "schema": landmarks.SCHEMA,
        "views": {w: {"centroids": mark, "pixel_mm": [0.5, 0.5]} for w in ("ap", "lateral")},
    }
    marks = _read(bare, tmp_path)
    assert_allclose(marks.isocentre, 0)
    view = marks.view("lateral", Radiograph(np.zeros((201, 241), np.float32), None))
    assert view.name == "left_lateral"
    assert view.source is not None
    assert np.linalg.norm(view.source) == pytest.approx(geometry.SOURCE_TO_ISOCENTRE_MM)
    assert_allclose(view.project(np.zeros(3)), (100, 120), atol=1e-9)


def test_levels_marked_in_one_view_alone_are_left_out() -> None:
    views = _views(True)
    marks = landmarks.project_landmarks(*views, ISOCENTRE, POINTS)
    centroids = {"ap": marks.centroids["ap"], "lateral": {L1: marks.centroids["lateral"][L1]}}
    one = Landmarks(marks.views, centroids, marks.isocentre)
    assert one.levels == [L1]
    assert set(one.place(*views)[0]) == {L1}


CORNERS = {"right_superior": [90.0, 100.0], "left_superior": [91.5, 140.0]}
ENDS = {
    "lateral": {"anterior": [300.5, 90.0], "posterior": [290.0, 120.0]},
    "ap": {"right": [310.0, 120.0], "left": [312.0, 170.0]},
}


def _full() -> dict[str, Any]:
    """A file that says all there is to say."""
    content = copy.deepcopy(_content())
    content["views"]["ap"] |= {"corners": {"L1": CORNERS}, "proposed": ["L2"], "shape": [420, 300]}
    for which, ends in ENDS.items():
        content["views"][which]["s1_endplate"] = ends
    return content


def test_corners_ends_and_proposals_go_there_and_back(tmp_path: Path) -> None:
    found = _read(_full(), tmp_path)
    assert_allclose(found.corners["ap"][L1]["left_superior"], (91.5, 140))
    assert_allclose(found.s1_endplate["lateral"]["posterior"], (290, 120))
    assert found.views["ap"]["proposed"] == ["L2"] and "corners" not in found.views["ap"]
    assert json.loads(landmarks.write_landmarks(tmp_path / "again.json", found).read_text()) == _full()


def test_the_ends_of_s1_are_found_in_space() -> None:
    """A tilted endplate: on the AP film its middle stands higher or lower than on the lateral one, and no matter."""
    views = _views(True)
    ends = {
        "right": (30.0, -20, 250),
        "left": (-18.0, -20, 254),
        "anterior": (6.0, -4, 240),
        "posterior": (6.0, -36, 266),
    }
    marked = {
        which: {name: view.project(np.array(ends[name])) for name in landmarks.ENDS[which]}
        for which, view in zip(geometry.VIEWS, views, strict=True)
    }
    marks = landmarks.project_landmarks(*views, ISOCENTRE, POINTS)
    found = Landmarks(marks.views, marks.centroids, marks.isocentre, s1_endplate=marked).s1(*views)
    assert set(found) == set(ends)
    for name, point in ends.items():
        # The middles of a cone's pictures are those in space to a fraction of a millimetre.
        assert_allclose(found[name], point, atol=0.4)
    assert marks.s1(*views) == {}
    half = {which: dict(list(pixels.items())[:1]) for which, pixels in marked.items()}
    assert Landmarks(marks.views, marks.centroids, marks.isocentre, s1_endplate=half).s1(*views) == {}


def test_work_that_goes_on_is_read_when_asked_for(tmp_path: Path) -> None:
    path = landmarks.write_landmarks(tmp_path / "marks.json", landmarks.empty_landmarks())
    with pytest.raises(InputError, match="marks no vertebra in both views"):
        landmarks.read_landmarks(path)
    found = landmarks.read_landmarks(path, partial=True)
    assert found.levels == [] and found.views["lateral"]["name"] == "left_lateral"
    assert found.view("ap", _films(_views(True))[0]).source is not None


# Refusals


def _read(content: Any, folder: Path) -> Landmarks:
    path = folder / "marks.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return landmarks.read_landmarks(path)


def _changed(*path: str, value: Any) -> dict[str, Any]:
    content = copy.deepcopy(_content())
    part = content
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return content


def _only(**marks: dict[str, list[float]]) -> dict[str, Any]:
    content = copy.deepcopy(_content())
    for which, centroids in marks.items():
        content["views"][which]["centroids"] = centroids
    return content


BAD_FILES: dict[str, tuple[Callable[[], Any], str]] = {
    "no JSON": (lambda: "{", r"The landmark file .*marks\.json is not valid JSON"),
    "a list": (lambda: [1, 2], 'lacks "schema": "transvert-landmarks/1"'),
    "no schema": (lambda: {"views": {}}, 'lacks "schema": "transvert-landmarks/1"'),
    "other schema": (lambda: _content(schema="transvert-landmarks/2"), 'lacks "schema": "transvert-landmarks/1"'),
    "no views": (lambda: {"schema": landmarks.SCHEMA}, "needs the two views 'ap' and 'lateral' under 'views'"),
    "one view": (lambda: _content(views={"ap": {}}), "needs the two views 'ap' and 'lateral'"),
    "no centroids": (lambda: _changed("views", "ap", value={}), "has no 'centroids' in its 'ap' view"),
    "view is text": (lambda: _changed("views", "lateral", value="x"), "has no 'centroids' in its 'lateral' view"),
    "one number": (lambda: _only(ap={"L1": [3]}), r"has no \[row, column\] for L1 in its 'ap' view"),
    "text": (lambda: _only(ap={"L1": ["a", "b"]}), r"has no \[row, column\] for L1 in its 'ap' view"),
    "null": (lambda: _only(ap={"L1": None}), r"has no \[row, column\] for L1"),
    "NaN": (lambda: _only(ap={"L1": [float("nan"), 1]}), r"has no \[row, column\] for L1"),
    "unknown level": (lambda: _only(ap={"L9": [3, 4]}), "'L9' is not a vertebral level; use C1-C7"),
    "none in common": (lambda: _only(ap={"L1": [3, 4]}, lateral={"L2": [3, 4]}), "marks no vertebra in both views"),
    "none at all": (lambda: _only(ap={}, lateral={}), "marks no vertebra in both views"),
    "sacrum": (lambda: _only(ap={"S1": [3, 4]}, lateral={"S1": [3, 4]}), "marks no vertebra in both views"),
    "a level twice": (lambda: _only(ap={"L1": [3, 4], "l1": [5, 6]}), "marks L1 twice in its 'ap' view; keep one"),
    "unknown corner": (
        lambda: _changed("views", "ap", "corners", value={"L1": {"anterior_superior": [1, 2]}}),
        "has an unknown 'anterior_superior' of L1 in its 'ap' view; use right_superior, left_superior, left_inferior",
    ),
    "corner without a place": (
        lambda: _changed("views", "ap", "corners", value={"L1": {"right_superior": [1]}}),
        r"has no \[row, column\] for right_superior of L1 in its 'ap' view",
    ),
    "corners of no level": (
        lambda: _changed("views", "ap", "corners", value={"X": {"right_superior": [1, 2]}}),
        "'X' is not a vertebral level",
    ),
    "corners as a list": (
        lambda: _changed("views", "ap", "corners", value=[1]),
        "'corners' that are not those of levels",
    ),
    "corner as a list": (
        lambda: _changed("views", "ap", "corners", value={"L1": [1, 2]}),
        r"has no \[row, column\] by name of L1 in its 'ap' view",
    ),
    "unknown end": (
        lambda: _changed("views", "lateral", "s1_endplate", value={"right": [1, 2]}),
        "has an unknown 'right' of S1's endplate in its 'lateral' view; use anterior, posterior",
    ),
    "proposed as text": (
        lambda: _changed("views", "ap", "proposed", value="L1"),
        "'proposed' that is no list of levels",
    ),
    "proposed no level": (lambda: _changed("views", "ap", "proposed", value=[7]), "'7' is not a vertebral level"),
    "shape of one": (
        lambda: _changed("views", "ap", "shape", value=5),
        "'shape' that is not rows and columns in its 'ap'",
    ),
    "isocentre of two": (lambda: _content(isocentre_ras_mm=[0, 0]), "'isocentre_ras_mm' that is not three numbers"),
    "isocentre as text": (lambda: _content(isocentre_ras_mm="middle"), "'isocentre_ras_mm' that is not three numbers"),
    "isocentre is null": (lambda: _content(isocentre_ras_mm=None), "'isocentre_ras_mm' that is not three numbers"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_says_no_landmarks_gets_its_sentence(kind: str, tmp_path: Path) -> None:
    make, sentence = BAD_FILES[kind]
    with pytest.raises(InputError, match=sentence):
        _read(make(), tmp_path)


def test_an_absent_file_gets_its_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The landmark file .*none\.json does not exist"):
        landmarks.read_landmarks(tmp_path / "none.json")


BAD_VIEWS: dict[str, tuple[dict[str, Any], str]] = {
    "scalar pitch": ({"pixel_mm": 0.5}, "The 'ap' view of the landmark file is garbled"),
    "short pitch": ({"pixel_mm": [0.5]}, "The 'ap' view of the landmark file is garbled"),
    "pitch as text": ({"pixel_mm": ["half", "half"]}, "The 'ap' view of the landmark file is garbled"),
    "negative pitch": ({"pixel_mm": [-1, 1]}, "both must be positive"),
    "distance as text": ({"source_to_detector_mm": "far"}, "The 'ap' view of the landmark file is garbled"),
    "distances swapped": ({"source_to_detector_mm": 100}, "the first must be positive and the smaller one"),
    "principal point": ({"principal_point": [1]}, "The 'ap' view of the landmark file is garbled"),
    "unknown name": ({"name": "frontal"}, "'frontal' is not a view; use ap, pa"),
    "unknown projection": ({"projection": "fan"}, "'fan' is not a projection; use parallel or cone"),
}


@pytest.mark.parametrize("kind", BAD_VIEWS)
def test_a_view_that_cannot_be_gets_its_sentence(kind: str, tmp_path: Path) -> None:
    change, sentence = BAD_VIEWS[kind]
    content = copy.deepcopy(_content())
    content["views"]["ap"] |= change
    marks = _read(content, tmp_path)
    with pytest.raises(InputError, match=sentence):
        marks.view("ap", _films(_views(True))[0])


def test_a_pitch_that_nobody_states_is_asked_for(tmp_path: Path) -> None:
    content = copy.deepcopy(_content())
    del content["views"]["ap"]["pixel_mm"]
    marks = _read(content, tmp_path)
    with pytest.raises(InputError, match="Neither the ap film nor the landmark file states the pixel spacing; add"):
        marks.view("ap", Radiograph(np.zeros((10, 10), np.float32), None))


def _moved(which: str, level: int, rows: float, columns: float) -> Landmarks:
    marks = landmarks.project_landmarks(*_views(True), ISOCENTRE, POINTS)
    centroids = {name: dict(pixels) for name, pixels in marks.centroids.items()}
    centroids[which][level] = centroids[which][level] + (rows, columns)
    return Landmarks(marks.views, centroids, marks.isocentre)


def test_marks_of_different_heights_are_named() -> None:
    points, residuals = _moved("lateral", L1, 8, 0).place(*_views(True))
    # 8 rows of 0.7 mm on the detector are 5.6 mm, and less in the patient by the magnification of 1.2.
    assert residuals[L1] == pytest.approx(8 * 0.7 / 1.2, rel=0.02)
    assert residuals[L2] < 1e-3
    assert points[L1][2] == pytest.approx(POINTS[L1][2] - residuals[L1] / 2, abs=0.2)
    with pytest.raises(
        InputError, match="The two landmarks of L1 disagree by 12 mm: check the level, the row, and the films"
    ):
        _moved("lateral", L1, 20, 0).place(*_views(True))


def test_levels_from_feet_to_head_are_refused() -> None:
    views = _views(True)
    swapped = {L1: POINTS[L2], L2: POINTS[L1]}
    with pytest.raises(InputError, match="L2 is marked above L1; check the levels and that no film is upside down"):
        landmarks.project_landmarks(*views, ISOCENTRE, swapped).place(*views)
    # T13 stands above L1, though its number is higher.
    with pytest.raises(InputError, match="L1 is marked above T13"):
        landmarks.project_landmarks(*views, ISOCENTRE, {T13: POINTS[L1], L1: POINTS[T13]}).place(*views)


def test_two_views_of_one_direction_find_no_depth() -> None:
    ap, _ = _views(False)
    pa = geometry.named_view("pa", ISOCENTRE, (420, 300), 0.6)
    with pytest.raises(InputError, match="look the same way: no depth can be found"):
        landmarks.project_landmarks(ap, pa, ISOCENTRE, POINTS).place(ap, pa)
