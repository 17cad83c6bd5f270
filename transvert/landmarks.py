"""Landmarks on two films: where each vertebra's centroid is seen, and how the films were taken.

One JSON file holds both views:

    {"schema": "transvert-landmarks/1",
     "isocentre_ras_mm": [0, 0, 0],
     "views": {
       "ap":      {"name": "ap", "pixel_mm": [0.6, 0.6], "projection": "cone", "source_to_detector_mm": 1800,
                   "source_to_isocentre_mm": 1500, "centroids": {"T1": [120.5, 311.0], "T2": [152.0, 309.5]}},
       "lateral": {"name": "left_lateral", ...}}}

A centroid is `[row, column]` in pixels of the film. `pixel_mm` (row, column, on the detector) may be left out where the
film file states it; `principal_point` (row, column) where it is the film's middle; `isocentre_ras_mm` where the world's
origin may lie on the crossing of both central rays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transvert import geometry, levels
from transvert.files import InputError, read_json, write_json
from transvert.film import Film
from transvert.geometry import View

SCHEMA = "transvert-landmarks/1"
RESIDUAL_LIMIT_MM = 10.0
"""Two landmarks of one vertebra whose rays miss each other by more than this are not of one vertebra."""


@dataclass(frozen=True)
class Landmarks:
    """What a landmark file says.

    Attributes:
        views: "ap" and "lateral" to the view's description as in the file.
        centroids: "ap" and "lateral" to level to (2,) row and column.
        isocentre: (3,) RAS mm.
    """

    views: Mapping[str, Mapping[str, Any]]
    centroids: Mapping[str, Mapping[int, np.ndarray]]
    isocentre: np.ndarray

    @property
    def levels(self) -> list[int]:
        """The vertebrae marked in both views, head to tail."""
        return levels.in_order(set(self.centroids["ap"]) & set(self.centroids["lateral"]) & set(levels.VERTEBRAE))

    def view(self, which: str, film: Film) -> View:
        """The geometry of a film.

        Args:
            which: "ap" or "lateral".
            film: the film, for its shape, and its pixel pitch where the landmark file has none.

        Raises:
            InputError: nobody says the pixel pitch, or it makes no view.
        """
        said = self.views[which]
        pixel = said.get("pixel_mm", film.pixel_mm)
        if pixel is None:
            raise InputError(
                f"Neither the {which} film nor the landmark file states the pixel spacing; add 'pixel_mm': [row, column] "
                f"to the '{which}' view of the landmark file."
            )
        projection = said.get("projection", "cone")
        if projection not in ("parallel", "cone"):
            raise InputError(f"'{projection}' is not a projection; use parallel or cone in the landmark file.")
        point = said.get("principal_point")
        try:
            return geometry.named_view(
                said.get("name", which),
                self.isocentre,
                film.pixels.shape,
                (float(pixel[0]), float(pixel[1])),
                cone=projection == "cone",
                source_to_detector_mm=float(said.get("source_to_detector_mm", geometry.SOURCE_TO_DETECTOR_MM)),
                source_to_isocentre_mm=float(said.get("source_to_isocentre_mm", geometry.SOURCE_TO_ISOCENTRE_MM)),
                principal_point=None if point is None else (float(point[0]), float(point[1])),
            )
        except InputError:
            raise
        except (TypeError, IndexError, ValueError) as error:
            raise InputError(f"The '{which}' view of the landmark file is garbled ({error}).") from None

    def place(self, ap: View, lateral: View) -> tuple[dict[int, np.ndarray], dict[int, float]]:
        """Each level's centroid in space (3,) RAS mm, and by how many mm its two rays miss each other.

        Raises:
            InputError: a landmark lies off its film, or the two of one level do not belong together.
        """
        points, residuals = {}, {}
        for level in self.levels:
            pair = []
            for which, view in (("ap", ap), ("lateral", lateral)):
                pixel = self.centroids[which][level]
                if not ((pixel >= -0.5) & (pixel <= np.array(view.shape) - 0.5)).all():
                    raise InputError(
                        f"The {which} landmark of {levels.name(level)} at {_pixel(pixel)} lies off the film, "
                        f"which has {view.shape[0]} rows and {view.shape[1]} columns."
                    )
                pair.append(pixel)
            points[level], residuals[level] = geometry.triangulate(ap, pair[0], lateral, pair[1])
            if residuals[level] > RESIDUAL_LIMIT_MM:
                raise InputError(
                    f"The two landmarks of {levels.name(level)} disagree by {residuals[level]:.0f} mm: "
                    "check the level, the row, and the films' pixel spacing."
                )
        heights = [points[level][2] for level in self.levels]
        for above, below, high, low in zip(self.levels, self.levels[1:], heights, heights[1:], strict=False):
            if low >= high:
                raise InputError(
                    f"{levels.name(below)} is marked above {levels.name(above)}; check the levels and that no film is upside down."
                )
        return points, residuals

    def to_dict(self) -> dict[str, Any]:
        """The file's content."""
        views = {
            which: dict(said)
            | {"centroids": {levels.name(n): np.asarray(p).tolist() for n, p in self.centroids[which].items()}}
            for which, said in self.views.items()
        }
        return {"schema": SCHEMA, "isocentre_ras_mm": self.isocentre.tolist(), "views": views}


def read(path: str | Path) -> Landmarks:
    """Reads a landmark file.

    Raises:
        InputError: not JSON, not of this schema, an unknown level, or no level marked in both views.
    """
    content = read_json(path, "landmark file")
    where = f"The landmark file {Path(path).name}"
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise InputError(f'{where} lacks "schema": "{SCHEMA}".')
    views = content.get("views")
    if not isinstance(views, dict) or set(views) != {"ap", "lateral"}:
        raise InputError(f"{where} needs the two views 'ap' and 'lateral' under 'views'.")
    centroids: dict[str, dict[int, np.ndarray]] = {}
    for which, view in views.items():
        marked = view.get("centroids") if isinstance(view, dict) else None
        if not isinstance(marked, dict):
            raise InputError(f"{where} has no 'centroids' in its '{which}' view.")
        centroids[which] = {}
        for name, pixel in marked.items():
            point = _numbers(pixel)
            if point.shape != (2,) or not np.isfinite(point).all():
                raise InputError(f"{where} has no [row, column] for {name} in its '{which}' view.")
            centroids[which][levels.number(name)] = point
    isocentre = _numbers(content.get("isocentre_ras_mm", (0, 0, 0)))
    if isocentre.shape != (3,) or not np.isfinite(isocentre).all():
        raise InputError(f"{where} has an 'isocentre_ras_mm' that is not three numbers.")
    found = Landmarks(
        {k: {n: v for n, v in view.items() if n != "centroids"} for k, view in views.items()}, centroids, isocentre
    )
    if not found.levels:
        raise InputError(f"{where} marks no vertebra in both views.")
    return found


def write(path: str | Path, landmarks: Landmarks) -> Path:
    """Writes a landmark file, atomically; `read` is its inverse."""
    return write_json(path, landmarks.to_dict())


def project(ap: View, lateral: View, isocentre: np.ndarray, points: Mapping[int, np.ndarray]) -> Landmarks:
    """The landmarks that points in space leave on two views made by `geometry.named_view`: a simulation's truth.

    Args:
        ap: the AP or PA view.
        lateral: the lateral view.
        isocentre: (3,) RAS mm, of both.
        points: level to (3,) RAS mm.
    """
    views, centroids = {}, {}
    for which, view in (("ap", ap), ("lateral", lateral)):
        said: dict[str, Any] = {"name": view.name, "pixel_mm": list(view.pixel_mm), "projection": "parallel"}
        said["principal_point"] = view.project(isocentre).tolist()
        if view.source is not None:
            said["projection"] = "cone"
            said["source_to_detector_mm"] = float((view.corner - view.source) @ view.direction)
            said["source_to_isocentre_mm"] = float((isocentre - view.source) @ view.direction)
        views[which] = said
        centroids[which] = {level: view.project(point) for level, point in points.items()}
    return Landmarks(views, centroids, np.asarray(isocentre, float))


def _numbers(said: Any) -> np.ndarray:
    """What a file says as an array of floats, empty where it says no numbers."""
    try:
        return np.array(said, float)
    except (TypeError, ValueError):
        return np.zeros(0)


def _pixel(pixel: np.ndarray) -> str:
    return f"row {pixel[0]:.0f}, column {pixel[1]:.0f}"
