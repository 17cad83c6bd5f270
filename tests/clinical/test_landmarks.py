"""Landmarks: what is projected is placed again, films get their geometry, and files that cannot be right are refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from transvert.clinical import landmarks
from transvert.clinical.dicom import Acquisition, ImageOrientation
from transvert.clinical.landmarks import KnownDistance, Landmarks, ViewSetup
from transvert.clinical.radiograph import Radiograph
from transvert.drr import geometry
from transvert.drr.geometry import VIEWS, View
from transvert.io import InputError

ISOCENTRE = np.array([12.0, -30.0, 310.0])
T13, L1, L2 = 28, 20, 21
POINTS = {L1: np.array([15.0, -31, 344]), L2: np.array([-9.0, -12, 310]), T13: np.array([20.0, -50, 390])}


def _views(beam: str = "cone", names: tuple[str, str] = VIEWS, **options: Any) -> tuple[View, View]:
    rays: Any = {} if beam == "parallel" else {beam: True}
    ap = geometry.named_view(names[0], ISOCENTRE, (420, 300), (0.6, 0.5), **rays, **options)
    return ap, geometry.named_view(names[1], ISOCENTRE, (400, 280), 0.7, **rays)


def _film(shape: tuple[int, int], pixel_mm: tuple[float, float] | None = None, **acquisition: Any) -> Radiograph:
    return Radiograph(np.zeros(shape, np.float32), pixel_mm, Acquisition(**acquisition))


def _marks() -> Landmarks:
    return landmarks.project_landmarks(*_views(), ISOCENTRE, POINTS)


def _content(**change: Any) -> dict[str, Any]:
    """A valid file's content."""
    return copy.deepcopy(_marks().to_dict()) | change


def _changed(*path: str, value: Any) -> dict[str, Any]:
    content = _content()
    part = content["views"]
    for key in path[:-1]:
        part = part.setdefault(key, {})
    part[path[-1]] = value
    return content


def _ap(**entries: Any) -> Landmarks:
    """Landmarks whose AP view says only this of its film."""
    return Landmarks({"ap": ViewSetup(**entries), "lateral": ViewSetup()}, {"ap": {}, "lateral": {}}, ISOCENTRE)


@pytest.mark.parametrize("names", [VIEWS, ("pa", "right_lateral")], ids=str)
@pytest.mark.parametrize("beam", ["cone", "parallel", "slot"])
def test_points_come_back_from_their_pixels_and_a_file(beam: str, names: tuple[str, str], tmp_path: Path) -> None:
    views = _views(beam, names, principal_point=(180.25, 140.5))
    marks = landmarks.project_landmarks(*views, ISOCENTRE, POINTS)
    assert marks.levels == [T13, L1, L2]
    one = replace(marks, centroids={**marks.centroids, "lateral": {L1: marks.centroids["lateral"][L1]}})
    assert one.levels == [L1] and set(one.place(*views)[0]) == {L1}, "a level marked in one view alone is left out"
    found = landmarks.read_landmarks(landmarks.write_landmarks(tmp_path / "marks.json", marks))
    again = tuple(found.view(name, _film(view.shape)) for name, view in zip(VIEWS, views, strict=True))
    for pair, placed in ((views, marks), (again, found)):
        points, residuals = placed.place(*pair)
        for level, point in POINTS.items():
            assert_allclose(points[level], point, atol=1e-3)
            assert residuals[level] < 1e-3
    for view, same in zip(views, again, strict=True):
        assert view.name == same.name and view.shape == same.shape and same.projection == beam
        for name in ("corner", "row_step", "column_step", "direction"):
            assert_allclose(getattr(view, name), getattr(same, name), atol=1e-6)
        assert (view.source is None) == (same.source is None)
        if view.source is not None:
            assert_allclose(view.source, same.source, atol=1e-6)


def test_a_file_with_every_entry_is_the_same_after_a_round_trip(tmp_path: Path) -> None:
    content = _content(centroids_of="body")
    ruler = {"from": [10.0, 20.0], "to": [310.0, 20.0], "mm": 100.0}
    content["views"]["ap"] |= {"proposed": ["L2"], "shape": [420, 300], "orientation": ["L", "F"]}
    content["views"]["ap"]["corners"] = {"L1": {"right_superior": [90.0, 100.0], "left_superior": [91.5, 140.0]}}
    del content["views"]["lateral"]["pixel_mm"]
    content["views"]["lateral"] |= {"known_distance": ruler, "pixel_plane": "patient"}
    content["views"]["lateral"]["s1_endplate"] = {"anterior": [300.5, 90.0], "posterior": [290.0, 120.0]}
    content["views"]["ap"]["s1_endplate"] = {"right": [310.0, 120.0], "left": [312.0, 170.0]}
    path = tmp_path / "marks.json"
    path.write_text(json.dumps(content))
    found = landmarks.read_landmarks(path)
    assert json.loads(landmarks.write_landmarks(tmp_path / "again.json", found).read_text()) == content
    assert_allclose(found.corners["ap"][L1]["left_superior"], (91.5, 140))
    assert_allclose(found.s1_endplate["lateral"]["posterior"], (290, 120))
    assert found.proposed == {"ap": {L2}, "lateral": set()} and found.setups["ap"].orientation == ("L", "F")


def test_unfinished_work_is_read_on_request_and_an_absent_file_refused(tmp_path: Path) -> None:
    path = landmarks.write_landmarks(tmp_path / "marks.json", landmarks.empty_landmarks())
    with pytest.raises(InputError, match="marks no vertebra in both views"):
        landmarks.read_landmarks(path)
    found = landmarks.read_landmarks(path, partial=True)
    assert found.levels == [] and found.setups["lateral"].name == "left_lateral" and found.centroids_of == "body"
    assert found.view("ap", _film((420, 300), (0.6, 0.6))).source is not None
    with pytest.raises(InputError, match=r"The landmark file .*none\.json does not exist"):
        landmarks.read_landmarks(tmp_path / "none.json")


def test_the_ends_of_s1_are_found_in_space_however_the_endplate_is_tilted() -> None:
    views = _views()
    ends = {"right": (30.0, -20, 250), "left": (-18.0, -20, 254), "anterior": (6.0, -4, 240)}
    ends["posterior"] = (6.0, -36, 266)
    marked = {
        name: {end: view.project(np.array(ends[end])) for end in landmarks.ENDS[name]}
        for name, view in zip(VIEWS, views, strict=True)
    }
    found = replace(_marks(), s1_endplate=marked).s1(*views)
    assert set(found) == set(ends)
    for name, point in ends.items():
        # The middle of two projections is the projected middle to a fraction of a millimetre.
        assert_allclose(found[name], point, atol=0.4)
    half = {name: dict(list(pixels.items())[:1]) for name, pixels in marked.items()}
    assert _marks().s1(*views) == replace(_marks(), s1_endplate=half).s1(*views) == {}


def _moved(name: str, level: int, rows: float) -> Landmarks:
    marks = _marks()
    centroids = {view: dict(pixels) for view, pixels in marks.centroids.items()}
    centroids[name][level] = centroids[name][level] + (rows, 0)
    return replace(marks, centroids=centroids)


def test_landmarks_of_different_heights_are_refused() -> None:
    points, residuals = _moved("lateral", L1, 8).place(*_views())
    # 8 rows of 0.7 mm on the detector are 5.6 mm, and less in the patient by the magnification of 1.2.
    assert residuals[L1] == pytest.approx(8 * 0.7 / 1.2, rel=0.02)
    assert residuals[L2] < 1e-3
    assert points[L1][2] == pytest.approx(POINTS[L1][2] - residuals[L1] / 2, abs=0.2)
    with pytest.raises(InputError, match="The two landmarks of L1 disagree by 12 mm: check level, row and pixel"):
        _moved("lateral", L1, 20).place(*_views())


@pytest.mark.parametrize(("upper", "lower", "names"), [(L2, L1, "L2 is marked above L1"), (L1, T13, "L1 is .* T13")])
def test_levels_from_feet_to_head_are_refused(upper: int, lower: int, names: str) -> None:
    """T13 stands above L1, though its number is higher."""
    swapped = {upper: POINTS[lower], lower: POINTS[upper]}
    with pytest.raises(InputError, match=f"{names}; correct the levels, or turn the films"):
        landmarks.project_landmarks(*_views(), ISOCENTRE, swapped).place(*_views())


def test_the_pixel_pitch_comes_from_the_file_else_from_the_film() -> None:
    film = _film((300, 200), (0.8, 0.9), pixel_mm_from="the file")
    assert _ap().view("ap", film).pixel_mm == pytest.approx((0.8, 0.9))
    assert _ap(pixel_mm=(0.6, 0.5)).view("ap", film).pixel_mm == pytest.approx((0.6, 0.5))
    measured = ViewSetup(pixel_mm=(0.6, 0.5)).measure_film(film, "ap")
    assert measured.pixel_mm == (0.6, 0.5) and measured.pixels is film.pixels
    assert measured.acquisition.pixel_mm_from == "stated in the landmark file"
    assert ViewSetup().measure_film(film, "ap") is film
    with pytest.raises(InputError, match="Neither the ap film nor the landmark file states the pixel spacing; give"):
        _ap().view("ap", _film((300, 200)))


def test_defaults_are_a_cone_view_centred_on_the_film() -> None:
    mark = {"L1": [100, 120]}
    bare = {"schema": landmarks.SCHEMA, "views": {n: {"centroids": mark, "pixel_mm": [0.5, 0.5]} for n in VIEWS}}
    marks = landmarks.landmarks_from_dict(bare)
    assert_allclose(marks.isocentre, 0)
    view = marks.view("lateral", _film((201, 241)))
    assert view.name == "left_lateral" and view.source is not None
    assert np.linalg.norm(view.source) == pytest.approx(geometry.SOURCE_TO_ISOCENTRE_MM)
    assert_allclose(view.project(np.zeros(3)), (100, 120), atol=1e-9)


def test_a_known_distance_in_the_patient_is_magnified_onto_the_detector() -> None:
    ruler = KnownDistance(start=(10, 20), end=(110, 20), mm=100)
    film = _film((300, 200))
    assert _ap(known_distance=ruler).view("ap", film).pixel_mm == pytest.approx((1.2, 1.2))
    assert _ap(known_distance=ruler, pixel_plane="detector").view("ap", film).pixel_mm == pytest.approx((1, 1))
    assert _ap(known_distance=ruler, projection="parallel").view("ap", film).pixel_mm == pytest.approx((1, 1))
    slot = {"projection": "slot", "source_to_detector_mm": 1800, "source_to_isocentre_mm": 1500}
    assert _ap(known_distance=ruler, **slot).view("ap", film).pixel_mm == pytest.approx((1, 1.2))
    measured = ViewSetup(known_distance=ruler).measure_film(film, "ap").acquisition
    assert (measured.pixel_plane, measured.pixel_mm_from) == ("patient", "a known distance of 100 mm")
    # The film's own pitch gives the pixels' aspect: 300 rows and 400 columns are 600 and 400 column widths.
    oblique = KnownDistance(start=(10, 20), end=(310, 420), mm=100)
    row_mm, column_mm = ViewSetup(known_distance=oblique).measure_film(_film((400, 500), (2.0, 1.0)), "ap").pixel_mm
    assert np.hypot(300 * row_mm, 400 * column_mm) == pytest.approx(100) and row_mm == pytest.approx(2 * column_mm)


def test_the_distances_and_the_view_are_the_film_s_unless_they_are_stated() -> None:
    def distances(entries: dict[str, Any] | None = None, **acquisition: Any) -> tuple[float, float]:
        return ViewSetup(**entries or {}).source_distances(Acquisition(**acquisition))

    assert distances() == (1800, 1500)
    assert distances(source_to_detector_mm=2000) == (2000, 1700)
    assert distances(magnification=1.2) == (1800, pytest.approx(1500))
    film = {"source_to_detector_mm": 2000, "source_to_patient_mm": 1850}
    assert distances(**film) == (2000, 1850)
    assert distances({"source_to_isocentre_mm": 1600}, **film) == (2000, 1600)
    assert distances({"source_to_detector_mm": 1900}, **film) == (1900, 1850)
    named = _ap().view("ap", _film((60, 50), (1.5, 1.5), view="pa", **film))
    assert named.name == "pa"
    assert_allclose(named.source, ISOCENTRE - (0, 1850, 0))


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"pixel_mm": (143, 143)}, "Pixels of 143 x 143 mm make no film of the ap view; give them in mm"),
        ({"pixel_mm": (-1, 1)}, "Pixels of -1 x 1 mm make no film of the ap view"),
        ({"pixel_mm": (1, 1), "source_to_detector_mm": 100}, "the first distance must be positive and smaller"),
    ],
)
def test_a_setup_that_makes_no_view_is_refused(entries: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        _ap(**entries).view("ap", _film((420, 300)))


def test_an_old_file_is_read_unless_its_film_was_turned() -> None:
    old = landmarks.landmarks_from_dict(_content(schema=landmarks.OLD_SCHEMA))
    turned = _film((420, 300), orientation=ImageOrientation(mirrored=True))
    assert_allclose(old.view("ap", _film((420, 300))).corner, _views()[0].corner)
    again = landmarks.landmarks_from_dict(old.to_dict())
    for marks in (old, again):
        with pytest.raises(InputError, match="an old one and .* mirrored left to right; mark the film again"):
            marks.view("ap", turned)
    content = _content(schema=landmarks.OLD_SCHEMA)
    content["views"]["ap"]["counted_on"] = "film"
    upright = landmarks.landmarks_from_dict(content)
    assert_allclose(upright.view("ap", turned).corner, _views()[0].corner)
    assert_allclose(_marks().view("ap", turned).corner, _views()[0].corner)


RULER = {"from": [0, 0], "to": [0, 99], "mm": 9}

BAD_FILES: list[tuple[Any, str]] = [
    ("{", r"The landmark file .*marks\.json is not valid JSON"),
    ([1, 2], 'lacks "schema": "transvert-landmarks/2"'),
    ({"views": {}}, 'lacks "schema": "transvert-landmarks/2"'),
    (_content(schema="transvert-landmarks/3"), 'lacks "schema": "transvert-landmarks/2"'),
    ({"schema": landmarks.SCHEMA}, "wrong at 'views': field required"),
    (_content(views={"ap": {"centroids": {}}}), "wrong at 'views.lateral': field required"),
    (_changed("oblique", value={}), "wrong at 'views.oblique': this key is not permitted"),
    (_changed("ap", value={}), "wrong at 'views.ap.centroids': field required"),
    (_changed("lateral", value="x"), "wrong at 'views.lateral'"),
    *(
        (_changed("ap", "centroids", value={"L1": pixel}), f"^The landmark file marks.json is wrong at {sentence}")
        for pixel, sentence in (
            ([3], "'views.ap.centroids.L1.2': field required"),
            ([1, 2, 3], "'views.ap.centroids.L1': tuple should have at most 2 items"),
            (["a", 2], "'views.ap.centroids.L1.1': input should be a valid number"),
            (None, "'views.ap.centroids.L1': input should be a valid tuple, not None"),
            ([1, float("nan")], "'views.ap.centroids.L1.2': input should be a finite number, not nan"),
        )
    ),
    (_changed("ap", "centroids", value={"L9": [3, 4]}), "'L9' is not a vertebral level; use C1-C7"),
    *((_changed("ap", "centroids", value=v), "marks no vertebra in b") for v in ({"L3": [3, 4]}, {}, {"S1": [3, 4]})),
    (_changed("ap", "centroids", value={"L1": [3, 4], "l1": [5, 6]}), "'views.ap.centroids': the level L1 is marked t"),
    (_changed("ap", "corners", value={"L1": {"anterior_superior": [1, 2]}}), "superior': input should be 'right_sup"),
    (_changed("ap", "corners", "L1", value={"right_superior": [1]}), "'views.ap.corners.L1.right_superior.2'"),
    (_changed("ap", "corners", value={"X": {}}), "'X' is not a vertebral level"),
    (_changed("ap", "corners", value=[1]), "'views.ap.corners': input should be a valid dictionary"),
    (_changed("lateral", "s1_endplate", value={"right": [1, 2]}), "should be 'anterior' or 'posterior', not 'right'"),
    (_changed("ap", "proposed", value="L1"), "'views.ap.proposed': input should be a valid list"),
    (_changed("ap", "proposed", value=["7"]), "'7' is not a vertebral level"),
    (_changed("ap", "shape", value=5), "'views.ap.shape': input should be a valid tuple"),
    (_changed("ap", "pixel_mm", value=0.5), "'views.ap.pixel_mm': input should be a valid tuple, not 0.5"),
    (_changed("ap", "source_to_detector_mm", value="far"), "'views.ap.source_to_detector_mm': input should be a valid"),
    (_changed("ap", "source_to_detector_mm", value=0), "'views.ap.source_to_detector_mm': input should be greater th"),
    (_changed("ap", "principal_point", value=[1]), "'views.ap.principal_point.2': field required"),
    (_changed("ap", "name", value="frontal"), "'views.ap.name': input should be 'ap', 'pa', 'left_lat"),
    (_changed("ap", "projection", value="fan"), "'views.ap.projection': input should be 'cone', 'parallel' or 'slot'"),
    (_changed("ap", "pixel_plane", value="table"), "'views.ap.pixel_plane': input should be 'detector' or 'pati"),
    (_changed("ap", "known_distance", value={"from": [0, 0], "mm": 9}), "known_distance.to': field req"),
    (_changed("ap", "known_distance", value=RULER | {"mm": 0}), "known_distance.mm': input should be greater than or"),
    (_changed("ap", "known_distance", value=RULER | {"to": [3, 4]}), "its ends lie 5.0 pixels apart, too few to meas"),
    (_changed("ap", "known_distance", value=RULER), "'views.ap': both pixel_mm and known_distance state the pixel s"),
    (_changed("ap", "ball", value={"mm": 25}), "'views.ap': a 'ball' no longer measures the pixel size; state its dia"),
    *((_content(isocentre_ras_mm=v), "at 'isocentre_ras_mm") for v in ([0, 0], "middle", None, [0, 0, float("inf")])),
    (_content(centroids_of="arch"), "'centroids_of': input should be 'vertebra' or 'body'"),
]


@pytest.mark.parametrize(("content", "sentence"), BAD_FILES)
def test_a_wrong_file_gets_one_sentence(content: Any, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "marks.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=sentence) as caught:
        landmarks.read_landmarks(path)
    assert "\n" not in str(caught.value)


def test_a_level_that_stands_twice_in_the_file_is_refused(tmp_path: Path) -> None:
    text = json.dumps(_content())
    for name in ("L1", "l1"):  # JSON's own reader keeps the last of two equal names.
        (tmp_path / "f.json").write_text(text.replace('"L1": [', f'"{name}": [10.0, 10.0], "L1": [', 1))
        with pytest.raises(InputError, match=r"file f\.json .*L1'? (is marked )?twice.*; keep one of the two"):
            landmarks.read_landmarks(tmp_path / "f.json")
    (tmp_path / "f.json").write_text(text)
    assert landmarks.read_landmarks(tmp_path / "f.json").levels == _marks().levels
