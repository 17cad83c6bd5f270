"""A notebook's tool to mark vertebrae on two films: click, drag, zoom, and see at once how well the two views agree.

    tool = annotator.Annotator(ap_film, lateral_film, path="landmarks.json")
    tool               # in a cell of its own shows it
    tool.landmarks     # what is marked, at any time

A click marks the next level, dragging moves a mark, dragging beside the marks moves the picture, the wheel zooms. While
one view is marked, the other's landmarks show in it as lines at their height: in cone geometry the picture of the ray.
`static/annotator.js` is what runs in the browser; it fetches nothing from elsewhere, and all geometry stays here.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from PIL import Image

from transvert import levels
from transvert.clinical import autofill, landmark_checks, landmarks, pixel_size, radiograph
from transvert.clinical.landmarks import CORNERS, ENDS, Landmarks
from transvert.clinical.radiograph import Radiograph
from transvert.drr import geometry
from transvert.drr.geometry import VIEWS, View
from transvert.io import PACKAGE, InputError

LONGEST = 3000
"""Pixels of a picture's longer side as it is sent to the browser; coordinates are those of the film all the same."""
FIRST_LEVEL = "T1"

_STATIC = PACKAGE / "static"
_TITLES = {"ap": "AP", "pa": "PA", "left_lateral": "left lateral", "right_lateral": "right lateral"}
_SIDES = {"ap": ["R", "L"], "lateral": ["front", "back"]}
_MARKS = ("centroids", "corners", "s1_endplate", "proposed")
_WHAT = {
    landmarks.BODY: "Mark the middle of each vertebral body.",
    landmarks.VERTEBRA: "Mark the centre of mass of each whole vertebra, arch and processes included: on the lateral film "
    "near the back of its body.",
}


class Annotator(anywidget.AnyWidget):
    """Two films and the marks on them, in the browser and here at once.

    Attributes:
        path: of the landmark file that "save" writes and "load" reads.
        message: what the tool last said to its user.
        what: is to be marked, in words.
        height: of the pictures in the browser, pixels.
    """

    _esm = _STATIC / "annotator.js"
    _css = _STATIC / "annotator.css"

    films: Any = traitlets.List().tag(sync=True)
    level_names = traitlets.List([levels.name(n) for n in levels.VERTEBRAE]).tag(sync=True)
    limits_mm = traitlets.List([landmarks.RESIDUAL_WARNING_MM, landmarks.RESIDUAL_LIMIT_MM]).tag(sync=True)
    marks = traitlets.Dict().tag(sync=True)
    told = traitlets.Dict().tag(sync=True)
    path = traitlets.Unicode().tag(sync=True)
    message = traitlets.Unicode().tag(sync=True)
    what = traitlets.Unicode().tag(sync=True)
    height = traitlets.Int(640).tag(sync=True)

    def __init__(
        self,
        ap: Radiograph,
        lateral: Radiograph,
        marks: Landmarks | None = None,
        path: str | Path = "landmarks.json",
        **traits: Any,
    ) -> None:
        """Opens two films.

        Args:
            ap: the AP (or PA) film.
            lateral: the lateral film.
            marks: marks to go on from, or, without a single one, how the films were taken. By default those of `path`
                if that file exists, else none, and cone views at the default distances.
            path: of the landmark file.
            **traits: such as `height`.

        Raises:
            InputError: a film of unknown pixel spacing, or landmarks that make no view.
        """
        said = ""
        if marks is None and Path(path).exists():
            marks = landmarks.read_landmarks(path, partial=True)
            said = f"Goes on from {Path(path).name}."
        self._films = {"ap": ap, "lateral": lateral}
        self._open(landmarks.empty_landmarks() if marks is None else marks)
        pictures = [self._picture(which) for which in VIEWS]
        told = {"what": _WHAT[self._of], "message": said, "path": str(path)}
        super().__init__(films=pictures, marks=self._told_marks(), **told, **traits)
        self.on_msg(self._obey)
        self._refresh()

    @property
    def landmarks(self) -> Landmarks:
        """What is marked now; setting it shows it in the browser."""
        views = {which: dict(self._said[which]) | self.marks[which] for which in VIEWS}
        for view in views.values():
            if not view.get("proposed"):
                view.pop("proposed", None)
        isocentre = self._isocentre.tolist()
        content = {"schema": landmarks.SCHEMA, "centroids_of": self._of, "isocentre_ras_mm": isocentre, "views": views}
        return landmarks.landmarks_from_dict(content, "What is marked", partial=True)

    @landmarks.setter
    def landmarks(self, marks: Landmarks) -> None:
        self._open(marks)
        self.what, self.marks = _WHAT[self._of], self._told_marks()
        self._refresh()

    def save(self, path: str | Path | None = None) -> Path:
        """Writes the landmark file, atomically."""
        return landmarks.write_landmarks(path or self.path, self.landmarks)

    def load(self, path: str | Path | None = None) -> None:
        """Reads a landmark file in place of what is marked.

        Raises:
            InputError: as `landmarks.read`.
        """
        self.landmarks = landmarks.read_landmarks(path or self.path, partial=True)

    def fill_in(self) -> None:
        """Proposes the vertebrae between the marked ones.

        Raises:
            InputError: too little is marked for it.
        """
        found = autofill.propose_landmarks(self.landmarks, self._views["ap"], self._views["lateral"])
        for which in VIEWS:
            self._errors[which] |= {levels.name(n): round(mm, 1) for n, mm in found.error_mm[which].items()}
        self.landmarks = autofill.fill_landmarks(self.landmarks, found)

    def check(self) -> list[str]:
        """What is odd about the marks: `plausibility.check`.

        Raises:
            InputError: the marks cannot be right.
        """
        views, films = self._views, self._films
        return landmark_checks.check_landmarks(
            self.landmarks, (views["ap"], views["lateral"]), (films["ap"], films["lateral"])
        )

    def _open(self, marks: Landmarks) -> None:
        """Takes over how the films were taken, and the marks as the browser gets them: counted on the turned films."""
        marks = marks.on(self._films["ap"], self._films["lateral"])
        views = {which: marks.view(which, picture) for which, picture in self._films.items()}
        content = marks.to_dict()["views"]
        self._views: dict[str, View] = views
        self._isocentre, self._of = marks.isocentre, marks.of
        self._given = {which: {key: content[which].get(key, {}) for key in _MARKS[:3]} for which in VIEWS}
        for which in VIEWS:
            self._given[which]["proposed"] = list(content[which].get("proposed", []))
        self._said = {
            which: {key: value for key, value in content[which].items() if key not in _MARKS}
            | {"shape": list(views[which].shape)}
            for which in VIEWS
        }
        for which, said in self._said.items():
            if not said.keys() & set(pixel_size.WAYS):
                said["pixel_mm"] = list(views[which].pixel_mm)
        if not hasattr(self, "_errors"):
            self._errors: dict[str, dict[str, float]] = {which: {} for which in VIEWS}

    def _told_marks(self) -> dict[str, Any]:
        return {which: dict(self._given[which]) for which in VIEWS}

    def _picture(self, which: str) -> dict[str, Any]:
        """A film as the browser gets it."""
        grey, factor = shrink_picture(self._films[which].pixels)
        file = io.BytesIO()
        Image.fromarray(grey).save(file, format="PNG")
        view = self._views[which]
        marked = [n for n in levels.in_order({levels.number(name) for name in self._given[which]["centroids"]})]
        after = levels.VERTEBRAE.index(marked[-1]) + 1 if marked else levels.VERTEBRAE.index(levels.number(FIRST_LEVEL))
        return {
            "which": which,
            "title": _TITLES[view.name],
            "png": file.getvalue(),
            "rows": view.shape[0],
            "columns": view.shape[1],
            "factor": factor,
            "covered": [n * factor for n in grey.shape],
            "aspect": view.pixel_mm[1] / view.pixel_mm[0],
            "sides": _SIDES[which],
            "corners": list(CORNERS[which]),
            "ends": list(ENDS[which]),
            "next": levels.name(levels.VERTEBRAE[min(after, len(levels.VERTEBRAE) - 1)]),
        }

    @traitlets.observe("marks")
    def _refresh(self, _: Any = None) -> None:
        """Tells the browser the lines of height and the residuals."""
        try:
            marks = self.landmarks
        except InputError as error:  # Only another program's message can be so wrong.
            self.message = str(error)
            return
        ap, lateral = self._views["ap"], self._views["lateral"]
        lines: dict[str, Any] = {which: {} for which in VIEWS}
        for which, other in (("ap", "lateral"), ("lateral", "ap")):
            for level, pixel in marks.centroids[other].items():
                line = height_line(self._views[which], self._views[other], pixel)
                lines[which][levels.name(level)] = np.round(line, 2).tolist()
        residuals = {
            levels.name(n): round(
                geometry.triangulate(ap, marks.centroids["ap"][n], lateral, marks.centroids["lateral"][n])[1], 2
            )
            for n in marks.levels
            # Two proposals of one chain always meet, which tells nothing.
            if not all(levels.name(n) in marks.views[which].get("proposed", []) for which in VIEWS)
        }
        self.told = {"lines": lines, "residuals": residuals, "errors": self._errors}

    def _obey(self, _: Any, content: dict[str, Any], __: Any) -> None:
        """Does what a button asks for; what is wrong with it is said in the tool, not in the notebook's log."""
        try:
            if content.get("do") == "save":
                self.save()
                self.message = f"Saved {_counted(self.landmarks)} to {self.path}."
            elif content.get("do") == "load":
                self.load()
                self.message = f"Loaded {_counted(self.landmarks)} from {self.path}."
            elif content.get("do") == "fill":
                self.fill_in()
                self.message = "Filled in what is marked 'proposed': drag each to its place, or accept it."
            elif content.get("do") == "check":
                self.message = "\n".join(self.check()) or "Nothing odd was found."
        except (InputError, OSError) as error:
            self.message = str(error)


def shrink_picture(pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """A film as an 8-bit picture of at most `LONGEST` pixels, and the film's rows and columns that make one of its own.

    Each pixel is the mean of `factor` x `factor` of the film's, whose last rows and columns are repeated to fill it up.

    Args:
        pixels: (rows, columns) float, NaN where there is nothing, which becomes black.
    """
    factor = -(-max(pixels.shape) // LONGEST)
    over = [(0, -n % factor) for n in pixels.shape]
    padded = np.pad(np.asarray(pixels, np.float32), over, mode="edge")
    rows, columns = (n // factor for n in padded.shape)
    small = padded.reshape(rows, factor, columns, factor).mean(axis=(1, 3))
    seen = np.isfinite(small)
    if not seen.any():
        return np.zeros(small.shape, np.uint8), factor
    window = np.percentile(small[seen], (0.5, 99.5))
    low, high = float(window[0]), float(max(window[1], window[0] + 1e-6 * max(1.0, abs(window[0]))))
    return radiograph.to_grey(np.where(seen, small, low), window=(low, high)), factor


def height_line(view: View, other: View, pixel: np.ndarray) -> np.ndarray:
    """The line on a film on which a vertebra lies that another film shows at `pixel`: (2, 2) its ends, row and column.

    It reaches from the film's left edge to its right one.
    """
    start, way = other.rays(np.asarray(pixel, float))
    # Two points of the ray near the patient, in front of both sources: either side of its foot on the central ray.
    middle = view.corner + (np.array(view.shape) - 1) / 2 @ np.stack([view.row_step, view.column_step])
    axis, gap = view.direction, middle - start
    across = way - (way @ axis) * axis
    foot = start + way * float((gap - (gap @ axis) * axis) @ across) / float(across @ across)
    (row_a, column_a), (row_b, column_b) = view.project(np.array([foot - 50 * way, foot + 50 * way]))
    slope = (row_b - row_a) / (column_b - column_a)
    edges = np.array([-0.5, view.shape[1] - 0.5])
    return np.stack([row_a + slope * (edges - column_a), edges], axis=1)


def _counted(marks: Landmarks) -> str:
    ap, lateral = (len(marks.centroids[which]) for which in VIEWS)
    return f"{ap} AP and {lateral} lateral landmarks"
