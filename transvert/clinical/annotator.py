"""A notebook widget to mark vertebrae on two films.

    tool = annotator.Annotator(ap_film, lateral_film, path="landmarks.json")
    tool               # in a cell of its own: shows it
    tool.landmarks     # the present landmarks, at any time

A click marks the next level, a drag moves a mark or the picture, the wheel zooms. Each film shows the other one's landmarks
as lines at their height: the projections of their rays. `static/annotator.js` runs in the browser and loads nothing from
elsewhere; all geometry is computed here.
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
from transvert.clinical import autofill, film_checks, landmark_checks, landmarks, radiograph
from transvert.clinical.landmarks import (
    Landmarks,
    empty_landmarks,
    landmarks_from_dict,
    read_landmarks,
    write_landmarks,
)
from transvert.clinical.radiograph import Radiograph
from transvert.clinical.vertebra import to_vertebra_centroids
from transvert.drr.geometry import VIEWS, View
from transvert.io import PACKAGE, InputError
from transvert.plots import figures

LONGEST = 3000  # The longer side of a picture in the browser, in pixels; coordinates stay those of the film.

_TITLES = {"ap": "AP", "pa": "PA", "left_lateral": "left lateral", "right_lateral": "right lateral"}
_SIDES = {"ap": ["R", "L"], "lateral": ["front", "back"]}
_NO_MARKS: dict[str, Any] = {
    "centroids": {},
    "corners": {},
    "s1_endplate": {},
    "proposed": [],
    "ruler": {},
    "ruler_mm": 0,
}
_INSTRUCTIONS = {
    landmarks.BODY: "Mark the middle of each vertebral body.",
    landmarks.VERTEBRA: "Mark the centre of mass of each whole vertebra, arch and processes included: on the lateral film "
    "near the back of its body.",
}


class Annotator(anywidget.AnyWidget):
    """Two films and their landmarks, in the browser and in Python at once."""

    _esm = PACKAGE / "static" / "annotator.js"
    _css = PACKAGE / "static" / "annotator.css"

    films: Any = traitlets.List().tag(sync=True)
    level_names = traitlets.List([levels.name(n) for n in levels.VERTEBRAE]).tag(sync=True)
    limits_mm = traitlets.List([landmarks.RESIDUAL_WARNING_MM, landmarks.RESIDUAL_LIMIT_MM]).tag(sync=True)
    marks = traitlets.Dict().tag(sync=True)
    feedback = traitlets.Dict().tag(sync=True)
    path = traitlets.Unicode().tag(sync=True)  #: The landmark file that "save" writes and "load" reads.
    message = traitlets.Unicode().tag(sync=True)  #: The widget's latest message to its user.
    instruction = traitlets.Unicode().tag(sync=True)  #: What is to be marked.
    height = traitlets.Int(640).tag(sync=True)  #: Of the pictures in the browser, in screen pixels.

    def __init__(
        self,
        ap: Radiograph,
        lateral: Radiograph,
        landmarks: Landmarks | None = None,
        path: str | Path = "landmarks.json",
        **traits: Any,
    ) -> None:
        """Opens an AP (or PA) and a lateral film; an InputError if a pixel spacing is unknown.

        It starts with the given landmarks, by default those of `path`, or what was saved automatically later. `traits` are such as `height`.
        """
        message, saved = "", [file for file in (_autosave_path(path), Path(path)) if file.exists()]
        if landmarks is None and saved:
            latest = max(saved, key=lambda file: file.stat().st_mtime)
            landmarks = read_landmarks(latest, partial=True)
            message = f"Continued from {latest.name}."
        self._films = {"ap": ap, "lateral": lateral}
        self._errors: dict[str, dict[str, float]] = {name: {} for name in VIEWS}
        shown = self._open(landmarks or empty_landmarks())
        super().__init__(
            films=[self._picture(name, shown[name]["centroids"]) for name in VIEWS],
            marks=shown,
            instruction=_INSTRUCTIONS[self._setup.centroids_of],
            message=message,
            path=str(path),
            **traits,
        )
        self.on_msg(self._run_command)
        self._update_feedback()

    @property
    def landmarks(self) -> Landmarks:
        """The present landmarks; setting them shows them in the browser."""
        content = self._setup.to_dict()
        for name in VIEWS:
            view, marks = content["views"][name], dict(self.marks[name])
            ruler, length = marks.pop("ruler", {}), marks.pop("ruler_mm", 0)
            view |= marks
            if length and len(ruler) == 2:  # Instead of the pixel size that was stated or read.
                content["views"][name] = {key: value for key, value in view.items() if not key.startswith("pixel_")}
                content["views"][name]["known_distance"] = ruler | {"mm": length}
        return landmarks_from_dict(content, "The annotator", partial=True)

    @landmarks.setter
    def landmarks(self, landmarks: Landmarks) -> None:
        self.marks = self._open(landmarks)
        self.instruction = _INSTRUCTIONS[landmarks.centroids_of]
        self._update_feedback()

    def save(self, path: str | Path | None = None) -> Path:
        """Writes the landmark file, atomically; it replaces what was saved automatically."""
        _autosave_path(path or self.path).unlink(missing_ok=True)
        return write_landmarks(path or self.path, self.landmarks)

    def load(self, path: str | Path | None = None) -> None:
        """Reads a landmark file, whose landmarks replace the present ones."""
        self.landmarks = read_landmarks(path or self.path, partial=True)

    def fill_in(self) -> None:
        """Proposes the vertebrae between the marked ones; raises InputError if these are too few."""
        proposal = autofill.propose_landmarks(self.landmarks, self._views["ap"], self._views["lateral"])
        for name in VIEWS:
            self._errors[name] |= {levels.name(n): round(mm, 1) for n, mm in proposal.error_mm[name].items()}
        self.landmarks = autofill.fill_landmarks(self.landmarks, proposal)

    def check(self) -> list[str]:
        """Warnings about landmarks, from `landmark_checks`, which may raise InputError, and about films, from `film_checks`."""
        views = self._views["ap"], self._views["lateral"]
        films = self._films["ap"], self._films["lateral"]
        found = landmark_checks.check_landmarks(self.landmarks, views, films)
        points = to_vertebra_centroids(self.landmarks, views).triangulate(*views)[0]
        try:
            return found + film_checks.check_films([film.pixels for film in films], views, points)
        except InputError as error:
            return [*found, str(error)]

    def _open(self, marks: Landmarks) -> dict[str, Any]:
        """Takes over how the films were taken, and returns the marks in the browser's form."""
        self._views = {name: marks.view(name, film) for name, film in self._films.items()}
        setups = {}
        for name, setup in marks.setups.items():
            stated: dict[str, Any] = {"shape": self._views[name].shape}
            if setup.counted_on == "stored":
                stated["counted_on"] = "film"
            by_dpi = self._films[name].acquisition.pixel_mm_from == radiograph.BY_DPI  # Left to be doubted.
            if not (setup.pixel_mm or setup.known_distance or by_dpi):
                stated |= {"pixel_mm": self._views[name].pixel_mm, "pixel_plane": None}
            setups[name] = setup.model_copy(update=stated)
        self._setup = Landmarks(setups, {name: {} for name in VIEWS}, marks.isocentre, centroids_of=marks.centroids_of)
        content = marks.to_dict()["views"]
        for name in VIEWS:
            if known := content[name].pop("known_distance", None):
                content[name] |= {"ruler": {end: list(known[end]) for end in ("from", "to")}, "ruler_mm": known["mm"]}
        return {name: {kind: content[name].get(kind, none) for kind, none in _NO_MARKS.items()} for name in VIEWS}

    def _picture(self, name: str, centroids: dict[str, Any]) -> dict[str, Any]:
        """A film as the browser gets it."""
        view = self._views[name]
        picture, factor = shrink_picture(self._films[name].pixels, view.pixel_mm)
        file = io.BytesIO()
        Image.fromarray(picture).save(file, format="PNG")
        # The next level is the one below the lowest mark, at first T1.
        index = self.level_names.index
        following = max((index(level) + 1 for level in centroids), default=index("T1"))
        return {
            "view": name,
            "title": _TITLES[view.name],
            "png": file.getvalue(),
            "rows": view.shape[0],
            "columns": view.shape[1],
            "factor": factor,
            "covered": [n * factor for n in picture.shape[:2]],
            "aspect": view.pixel_mm[1] / view.pixel_mm[0],
            "sides": _SIDES[name],
            "corners": list(landmarks.CORNERS[name]),
            "ends": list(landmarks.ENDS[name]),
            "next": self.level_names[min(following, len(self.level_names) - 1)],
        }

    @traitlets.observe("marks")
    def _update_feedback(self, _: Any = None) -> None:
        """Sends the browser the lines of height, the residuals and the proposals' errors."""
        try:
            landmarks = self.landmarks
            self._views = {name: landmarks.view(name, film) for name, film in self._films.items()}  # By the ruler.
        except InputError as error:  # A ruler that is too short or long; the browser half sends no other such marks.
            self.message = str(error)
            return
        lines: dict[str, Any] = {}
        for name, other in (VIEWS, VIEWS[::-1]):
            lines[name] = {
                levels.name(n): np.round(height_line(self._views[name], self._views[other], pixel), 2).tolist()
                for n, pixel in landmarks.centroids[other].items()
            }
        _, residuals = landmarks.triangulate(self._views["ap"], self._views["lateral"])
        # Two proposals of one chain always meet, so their residual means nothing.
        proposed = landmarks.proposed["ap"] & landmarks.proposed["lateral"]
        shown = {levels.name(n): round(mm, 2) for n, mm in residuals.items() if n not in proposed}
        self.feedback = {"lines": lines, "residuals": shown, "errors": self._errors}

    def _counts(self) -> str:
        ap, lateral = (len(self.marks[name]["centroids"]) for name in VIEWS)
        return f"{ap} AP and {lateral} lateral landmarks"

    def _run_command(self, _: Any, content: dict[str, Any], __: Any) -> None:
        """Runs a button's command; errors are shown in the widget, not in the notebook's log."""
        command = content.get("command")
        try:
            if command == "autosave":  # Beside the file, which only "save" replaces.
                write_landmarks(_autosave_path(self.path), self.landmarks)
            elif command == "save":
                self.save()
                self.message = f"Saved {self._counts()} to {self.path}."
            elif command == "load":
                self.load()
                self.message = f"Loaded {self._counts()} from {self.path}."
            elif command == "fill":
                self.fill_in()
                self.message = "Filled in the levels marked 'proposed': drag each to its place, or accept it."
            elif command == "check":
                self.message = "\n".join(self.check()) or "Nothing unusual was found."
        except (InputError, OSError) as error:
            self.message = str(error)


def _autosave_path(path: str | Path) -> Path:
    return Path(path).with_suffix(".autosave.json")


def shrink_picture(pixels: np.ndarray, pixel_mm: tuple[float, float]) -> tuple[np.ndarray, int]:
    """A film as 8-bit (rows, columns, 3), binned to `LONGEST`, and the bins' size; NaN becomes black.

    Red is the film, green its `local_contrast`, blue empty: the browser shows one of them in grey.
    """
    small, factor = figures.bin_picture(pixels, LONGEST)
    picture, exposed = np.zeros((*small.shape, 3), np.uint8), np.isfinite(small)
    if exposed.any():
        local = figures.local_contrast(small, [factor * mm for mm in pixel_mm])
        for channel, shown in enumerate((small, local)):
            low, high = (float(limit) for limit in np.percentile(shown[exposed], (0.5, 99.5)))
            window = low, max(high, low + 1e-6 * max(1.0, abs(low)))
            picture[..., channel] = radiograph.to_grey(np.where(exposed, shown, low), window=window)
    return picture, factor


def height_line(view: View, other: View, pixel: np.ndarray) -> np.ndarray:
    """The projection of another view's ray: the vertebra seen there at `pixel` lies on it here.

    Returns (2, 2), the row and column of its ends on the film's left and right edge.
    """
    start, along = other.rays(np.asarray(pixel, float))
    # Two points of the ray in front of both sources: 50 mm either side of the point nearest to the central ray.
    middle = view.corner + (np.array(view.shape) - 1) / 2 @ np.stack([view.row_step, view.column_step])
    axis, gap = view.direction, middle - start
    across = along - (along @ axis) * axis
    nearest = start + along * float((gap - (gap @ axis) * axis) @ across) / float(across @ across)
    (row_a, column_a), (row_b, column_b) = view.project(np.array([nearest - 50 * along, nearest + 50 * along]))
    slope = (row_b - row_a) / (column_b - column_a)
    edges = np.array([-0.5, view.shape[1] - 0.5])
    return np.stack([row_a + slope * (edges - column_a), edges], axis=1)
