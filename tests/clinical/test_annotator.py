"""The annotator's Python half: pictures, lines of height, residuals, commands and files."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from transvert.clinical import annotator, landmarks
from transvert.clinical.annotator import Annotator
from transvert.clinical.dicom import Acquisition
from transvert.clinical.landmarks import KnownDistance, Landmarks, ViewSetup
from transvert.clinical.radiograph import Radiograph
from transvert.drr import geometry
from transvert.drr.geometry import VIEWS
from transvert.io import PACKAGE, InputError

ISOCENTRE = np.array([0.0, 0.0, 300.0])
POINTS = {18: (4, -28, 362), 19: (8, -22, 332), 20: (10, -16, 300), 21: (6, -11, 267), 22: (0, -10, 234)}
SHAPES = {"ap": (560, 420), "lateral": (480, 400)}


def _films() -> tuple[Radiograph, Radiograph]:
    random = np.random.default_rng(0)
    ap, lateral = (Radiograph(random.normal(size=SHAPES[w]).astype(np.float32), (0.7, 0.6)) for w in VIEWS)
    return ap, lateral


def _truth() -> Landmarks:
    views = [geometry.named_view(w, ISOCENTRE, SHAPES[w], (0.7, 0.6), cone=True) for w in VIEWS]
    points = {n: np.array(p, float) for n, p in POINTS.items()}
    return landmarks.project_landmarks(*views, ISOCENTRE, points)


def _browser(tool: Annotator, **change: dict[str, list[float]]) -> None:
    """What comes from the browser: other centroids in a view."""
    tool.marks = {w: tool.marks[w] | ({"centroids": change[w]} if w in change else {}) for w in VIEWS}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "marks.json"


@pytest.mark.parametrize("cone", [True, False], ids=["cone", "parallel"])
@pytest.mark.parametrize("names", [("ap", "left_lateral"), ("pa", "right_lateral")], ids=str)
def test_a_line_of_height_holds_the_vertebra(cone: bool, names: tuple[str, str]) -> None:
    views = [geometry.named_view(n, ISOCENTRE, (560, 420), (0.7, 0.6), cone=cone) for n in names]
    for view, other in (views, views[::-1]):
        for point in map(np.array, POINTS.values()):
            line = annotator.height_line(view, other, other.project(point))
            row, column = view.project(point)
            assert_allclose(line[:, 1], (-0.5, 419.5))
            assert np.interp(column, line[:, 1], line[:, 0]) == pytest.approx(row, abs=1e-6)


def test_a_small_film_is_sent_as_it_is_and_a_huge_one_shrunk() -> None:
    pixels, mm = np.arange(12.0).reshape(3, 4), (0.5, 0.5)
    picture, factor = annotator.shrink_picture(pixels, mm)
    assert factor == 1 and picture.shape == (3, 4, 3) and picture.dtype == np.uint8 and not picture[..., 2].any()
    assert (picture[0, 0, :2] == 0).all() and (picture[2, 3, :2] == 255).all()
    huge = np.zeros((12_001, 50), np.float32)
    huge[:, 25:] = 1
    picture, factor = annotator.shrink_picture(huge, mm)
    assert factor == 5 and picture.shape == (2401, 10, 3)
    assert (picture[:, :5, 0] == 0).all() and (picture[:, 5:, 0] == 255).all()
    # Unexposed pixels are black.
    pixels = np.full((4, 4), np.nan, np.float32)
    assert (annotator.shrink_picture(pixels, mm)[0] == 0).all()
    pixels[1:, 1:] = np.arange(9.0).reshape(3, 3)
    picture = annotator.shrink_picture(pixels, mm)[0]
    assert (picture[0] == 0).all() and (picture[3, 3, :2] == 255).all()
    assert not annotator.shrink_picture(np.ones((3, 3), np.float32), mm)[0].any()


def test_the_browser_gets_pictures_sides_and_the_next_level(path: Path) -> None:
    tool = Annotator(*_films(), path=path)
    ap, lateral = tool.films
    assert (ap["rows"], ap["columns"], ap["factor"], ap["covered"]) == (560, 420, 1, [560, 420])
    assert ap["aspect"] == pytest.approx(0.6 / 0.7)
    assert ap["sides"] == ["R", "L"] and lateral["sides"] == ["front", "back"]
    assert Image.open(io.BytesIO(lateral["png"])).size == (400, 480)
    assert ap["next"] == "T1" and tool.level_names[-1] == "L6"


def test_marks_from_the_browser_give_feedback_at_once(path: Path) -> None:
    truth = _truth()
    tool = Annotator(*_films(), replace(truth, centroids={"ap": {}, "lateral": {}}), path)
    _browser(tool, ap={"L1": truth.centroids["ap"][20].tolist()})
    assert tool.landmarks.levels == [] and tool.feedback["residuals"] == {}
    (row_a, _), (row_b, _) = tool.feedback["lines"]["lateral"]["L1"]
    assert row_a == pytest.approx(row_b) == pytest.approx(truth.centroids["lateral"][20][0])  # level with the source
    _browser(tool, lateral={"L1": (truth.centroids["lateral"][20] + (10, 0)).tolist()})
    assert tool.landmarks.levels == [20]
    # 10 rows of 0.7 mm, less the magnification of 1.2.
    assert tool.feedback["residuals"]["L1"] == pytest.approx(10 * 0.7 / 1.2, rel=0.03)
    assert tool.limits_mm == [4, 10]


def test_saved_landmarks_are_continued(path: Path) -> None:
    tool = Annotator(*_films(), _truth(), path)
    tool._run_command(None, {"command": "save"}, [])
    assert tool.message == f"Saved 5 AP and 5 lateral landmarks to {path}."
    content = json.loads(path.read_text())
    assert content["views"]["ap"]["pixel_mm"] == [0.7, 0.6] and content["views"]["lateral"]["shape"] == [480, 400]
    assert "proposed" not in content["views"]["ap"]
    again = Annotator(*_films(), path=path)
    assert again.message == "Continued from marks.json." and again.films[0]["next"] == "L4"
    assert again.landmarks.to_dict() == tool.landmarks.to_dict()
    points, _ = again.landmarks.place(*(again.landmarks.view(w, f) for w, f in zip(VIEWS, _films(), strict=True)))  # type: ignore[arg-type]
    assert_allclose(points[20], POINTS[20], atol=1e-3)


def test_changes_are_saved_beside_the_file_until_it_is_saved(path: Path) -> None:
    tool = Annotator(*_films(), path=path)
    tool.landmarks = _truth()
    tool._run_command(None, {"command": "autosave"}, [])
    kept = path.with_name("marks.autosave.json")
    assert kept.exists() and not path.exists() and tool.message == ""
    again = Annotator(*_films(), path=path)
    assert again.message == "Continued from marks.autosave.json." and len(again.landmarks.levels) == 5
    again.save()
    assert path.exists() and not kept.exists()


def test_a_known_distance_stays_in_the_file(path: Path) -> None:
    ruler = KnownDistance(start=(10, 20), end=(110, 20), mm=58)
    setups = {"ap": ViewSetup(name="ap", known_distance=ruler), "lateral": ViewSetup(name="left_lateral")}
    Annotator(*_films(), replace(_truth(), setups=setups), path).save()
    views = json.loads(path.read_text())["views"]
    assert "pixel_mm" not in views["ap"] and views["ap"]["known_distance"]["mm"] == 58
    assert views["lateral"]["pixel_mm"] == [0.7, 0.6]
    again = Annotator(*_films(), path=path)
    # 58 mm in the patient on 100 rows, magnified by 1.2; columns are 6/7 of a row.
    assert again._views["ap"].pixel_mm == pytest.approx((0.696, 0.696 * 6 / 7))
    assert again.marks["ap"]["ruler"] == {"from": [10, 20], "to": [110, 20]} and again.marks["ap"]["ruler_mm"] == 58
    # A ruler drawn in the browser replaces the pixel size. One that is too short gives a message.
    again.marks = again.marks | {
        "lateral": again.marks["lateral"] | {"ruler": {"from": [0, 5], "to": [0, 105]}, "ruler_mm": 58}
    }
    assert again._views["lateral"].pixel_mm == pytest.approx((0.696 * 7 / 6, 0.696))
    content = json.loads(again.save().read_text())["views"]["lateral"]
    assert content["known_distance"] == {"from": [0, 5], "to": [0, 105], "mm": 58} and "pixel_mm" not in content
    again.marks = again.marks | {"lateral": again.marks["lateral"] | {"ruler": {"from": [0, 5], "to": [0, 6]}}}
    assert "its ends lie 1.0 pixels apart" in again.message
    # A pitch in the patient is saved as the detector's.
    path.unlink()
    films = [replace(film, acquisition=Acquisition(pixel_plane="patient")) for film in _films()]
    Annotator(*films, path=path).save()
    assert json.loads(path.read_text())["views"]["ap"]["pixel_mm"] == pytest.approx([0.84, 0.72])
    assert Annotator(*films, path=path)._views["ap"].pixel_mm == pytest.approx((0.84, 0.72))


def test_setting_and_loading_replaces_what_is_marked(path: Path) -> None:
    tool = Annotator(*_films(), path=path)
    tool.landmarks = _truth()
    assert set(tool.marks["ap"]["centroids"]) == {"T11", "T12", "L1", "L2", "L3"}
    assert set(tool.feedback["residuals"]) == {"T11", "T12", "L1", "L2", "L3"}
    landmarks.write_landmarks(path, landmarks.empty_landmarks())
    tool._run_command(None, {"command": "load"}, [])
    assert tool.message.startswith("Loaded 0 AP and 0 lateral") and tool.marks["ap"]["centroids"] == {}
    assert Annotator(*_films(), path=path).landmarks.levels == []


def test_filling_in_marks_proposals_until_they_are_confirmed(path: Path) -> None:
    truth = _truth()
    some = {w: {n: truth.centroids[w][n] for n in (18, 20, 22)} for w in VIEWS}
    tool = Annotator(*_films(), replace(truth, centroids=some), path)
    tool._run_command(None, {"command": "fill"}, [])
    assert tool.message.startswith("Filled in the levels marked 'proposed'")
    assert not tool.landmarks.proposed["ap"] - {19, 21} and (tool.landmarks.centroids["ap"][18] == some["ap"][18]).all()
    assert tool.marks["lateral"]["proposed"] == ["T12", "L2"]
    assert tool.feedback["errors"]["ap"]["T12"] > 0 and set(tool.feedback["residuals"]) == {"T11", "L1", "L3"}
    for name in VIEWS:
        off = tool.landmarks.centroids[name][19] - truth.centroids[name][19]
        assert np.linalg.norm(off * (0.7, 0.6)) < 12
    tool._run_command(None, {"command": "check"}, [])
    assert "T12, L2: proposed on the lateral film and not confirmed." in tool.message
    tool.marks = {w: tool.marks[w] | {"proposed": []} for w in VIEWS}
    assert not tool.landmarks.proposed["ap"] and "T12" in tool.feedback["residuals"]


def test_errors_are_shown_in_the_widget_and_a_film_of_unknown_spacing_is_refused(path: Path) -> None:
    tool = Annotator(*_films(), path=path)
    sentences = {"load": "does not exist", "fill": "mark at least two, better four", "check": "No vertebra is marked"}
    for command, sentence in sentences.items():
        tool._run_command(None, {"command": command}, [])
        assert sentence in tool.message
    tool.path = str(path / "below.json")
    path.write_text("a file, no folder")
    tool._run_command(None, {"command": "save"}, [])
    assert "marks.json" in tool.message
    tool.marks = {"ap": {"centroids": {"L1": "here"}}, "lateral": {"centroids": {}}}
    assert "The annotator is wrong at 'views.ap.centroids.L1'" in tool.message
    ap, lateral = _films()
    with pytest.raises(InputError, match="Neither the lateral film nor the landmark file states the pixel spacing"):
        Annotator(ap, Radiograph(lateral.pixels, None), path=path.with_name("new.json"))


def test_the_browser_half_loads_nothing_from_elsewhere() -> None:
    for name in ("annotator.js", "annotator.css"):
        text = (PACKAGE / "static" / name).read_text(encoding="utf-8")
        for remote in ("https:", "http://", "import ", "@import", "url("):
            assert remote not in text.replace("http://www.w3.org/2000/svg", "")


def test_the_instruction_says_what_to_mark(path: Path) -> None:
    tool = Annotator(*_films(), replace(_truth(), centroids_of=landmarks.BODY), path)
    assert "middle of each vertebral body" in tool.instruction
    assert tool.landmarks.centroids_of == landmarks.read_landmarks(tool.save()).centroids_of == landmarks.BODY
    tool.landmarks = _truth()
    assert "arch and processes included" in tool.instruction
