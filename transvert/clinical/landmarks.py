"""Landmarks on two films: where each vertebra's centroid is seen, and how the films were taken.

One JSON file holds both views:

    {"schema": "transvert-landmarks/1",
     "isocentre_ras_mm": [0, 0, 0],
     "views": {
       "ap":      {"name": "ap", "pixel_mm": [0.6, 0.6], "projection": "cone", "source_to_detector_mm": 1800,
                   "source_to_isocentre_mm": 1500, "centroids": {"T1": [120.5, 311.0], "T2": [152.0, 309.5]}},
       "lateral": {"name": "left_lateral", ...}}}

Beside `"schema"`, `"centroids_of": "body"` tells that the middles of vertebral bodies are marked; without it a centroid
is the whole vertebra's centre of mass, arch and processes included, which lies 8 to 18 mm behind its body's.

A centroid is `[row, column]` in pixels of the picture that the film's file stores, as any viewer shows it, or of the film
as `film.read` turns it where the view says `"counted_on": "film"`; `Landmarks.on` goes from the one to the other. `pixel_mm`
(row, column, on the detector) and the distances may be left out where the film file states them, and the pixel size may be
measured instead (`spacing`); `principal_point` (row, column) where it is the film's middle; `isocentre_ras_mm` where the
world's origin may lie on the crossing of both central rays.

A view may say more, all of it optional:

    "shape": [1200, 700]                               rows and columns of the film that was marked
    "corners": {"L1": {"anterior_superior": [..]}}     of the vertebral body; in the AP view right_superior and so on
    "s1_endplate": {"anterior": [..], "posterior": [..]}    ends of S1's upper endplate; in the AP view right and left
    "orientation": ["R", "F"]                          where rows and columns go, if the film's file is wrong or silent
    "proposed": ["T5", "T6"]                           centroids that were filled in and that nobody has confirmed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from transvert import levels
from transvert.clinical import pixel_size
from transvert.clinical.acquisition import ImageOrientation, source_distances
from transvert.clinical.radiograph import Radiograph
from transvert.drr import geometry
from transvert.drr.geometry import VIEWS, View
from transvert.io import InputError, read_json, write_json

SCHEMA = "transvert-landmarks/1"
CORNERS = {
    "ap": ("right_superior", "left_superior", "left_inferior", "right_inferior"),
    "lateral": ("anterior_superior", "posterior_superior", "posterior_inferior", "anterior_inferior"),
}
"""A vertebral body's corners in each view, named by the patient's sides, in the order in which they go round it."""
ENDS = {"ap": ("right", "left"), "lateral": ("anterior", "posterior")}
"""The two ends of S1's upper endplate in each view."""
RESIDUAL_LIMIT_MM = 10.0
"""Two landmarks of one vertebra whose rays miss each other by more than this are not of one vertebra."""
RESIDUAL_WARNING_MM = 4.0
"""From here on a careful reader looks again."""

VERTEBRA, BODY = "vertebra", "body"
"""What centroids are of: of whole vertebrae, as their centres of mass, or of their bodies."""

Pixels = dict[str, np.ndarray]  # A part's name to its row and column.
_NAMES = ("ap", "left_lateral")
_MARKS = ("centroids", "corners", "s1_endplate")


@dataclass(frozen=True)
class Landmarks:
    """What a landmark file says.

    Attributes:
        views: "ap" and "lateral" to the view's description as in the file.
        centroids: "ap" and "lateral" to level to (2,) row and column.
        isocentre: (3,) RAS mm.
        corners: "ap" and "lateral" to level to some of `CORNERS` to (2,) row and column.
        s1_endplate: "ap" and "lateral" to some of `ENDS` to (2,) row and column.
        of: what the centroids are of, `VERTEBRA` or `BODY`.
    """

    views: Mapping[str, Mapping[str, Any]]
    centroids: Mapping[str, Mapping[int, np.ndarray]]
    isocentre: np.ndarray
    corners: Mapping[str, Mapping[int, Pixels]] = field(default_factory=lambda: {which: {} for which in VIEWS})
    s1_endplate: Mapping[str, Pixels] = field(default_factory=lambda: {which: {} for which in VIEWS})
    of: str = VERTEBRA

    @property
    def levels(self) -> list[int]:
        """The vertebrae marked in both views, head to tail."""
        return levels.in_order(set(self.centroids["ap"]) & set(self.centroids["lateral"]) & set(levels.VERTEBRAE))

    def on(self, ap: Radiograph, lateral: Radiograph) -> Landmarks:
        """The landmarks counted on films as they are turned here; on films that lay right, or once it is done, the same."""
        found = self
        for which, film in zip(VIEWS, (ap, lateral), strict=True):
            if film.facts.turn == ImageOrientation() or self.views[which].get("counted_on") == "film":
                continue

            def moved(pixels: Mapping[Any, np.ndarray], film: Radiograph = film) -> dict[Any, np.ndarray]:
                return {name: film.from_stored(pixel) for name, pixel in pixels.items()}

            found = replace(
                found,
                views={**found.views, which: pixel_size.counted_on_film(self.views[which], film)},
                centroids={**found.centroids, which: moved(self.centroids[which])},
                corners={**found.corners, which: {n: moved(body) for n, body in self.corners[which].items()}},
                s1_endplate={**found.s1_endplate, which: moved(self.s1_endplate[which])},
            )
        return found

    def view(self, which: str, film: Radiograph) -> View:
        """The geometry of a film.

        Args:
            which: "ap" or "lateral".
            film: the film, for its shape, and for its pixel pitch and distances where the landmark file has none.

        Raises:
            InputError: nobody says the pixel pitch, or it makes no view.
        """
        said = pixel_size.counted_on_film(self.views[which], film)
        film = pixel_size.measure_pixel_size(film, said, which)
        pixel = film.pixel_mm
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
            to_detector, to_isocentre = source_distances(film.facts, said)
            if projection == "cone" and film.facts.plane == "patient":
                pixel = pixel_size.on_detector(pixel, pixel_size.magnification(to_detector, to_isocentre))
            return geometry.named_view(
                said.get("name") or film.facts.view or which,
                self.isocentre,
                film.pixels.shape,
                pixel,
                cone=projection == "cone",
                source_to_detector_mm=to_detector,
                source_to_isocentre_mm=to_isocentre,
                principal_point=None if point is None else (float(point[0]), float(point[1])),
            )
        except InputError:
            raise
        except (TypeError, IndexError, ValueError) as error:
            raise InputError(f"The '{which}' view of the landmark file is garbled ({error}).") from None

    def triangulate(self, ap: View, lateral: View) -> tuple[dict[int, np.ndarray], dict[int, float]]:
        """As `place`, without a look at whether that can be right."""
        points, residuals = {}, {}
        for level in self.levels:
            one, other = (self.centroids[which][level] for which in VIEWS)
            points[level], residuals[level] = geometry.triangulate(ap, one, lateral, other)
        return points, residuals

    def place(self, ap: View, lateral: View) -> tuple[dict[int, np.ndarray], dict[int, float]]:
        """Each level's centroid in space (3,) RAS mm, and by how many mm its two rays miss each other.

        Raises:
            InputError: the two landmarks of one level do not belong together, or a level stands above a higher one.
        """
        points, residuals = self.triangulate(ap, lateral)
        for level, residual in residuals.items():
            if residual > RESIDUAL_LIMIT_MM:
                raise InputError(
                    f"The two landmarks of {levels.name(level)} disagree by {residual:.0f} mm: "
                    "check the level, the row, and the films' pixel spacing."
                )
        heights = [points[level][2] for level in self.levels]
        for above, below, high, low in zip(self.levels, self.levels[1:], heights, heights[1:], strict=False):
            if low >= high:
                raise InputError(
                    f"{levels.name(below)} is marked above {levels.name(above)}; check the levels and that no film is upside down."
                )
        return points, residuals

    def s1(self, ap: View, lateral: View) -> dict[str, np.ndarray]:
        """The ends of S1's upper endplate in space, those that the marks tell: name in `ENDS` to (3,) RAS mm.

        "anterior" and "posterior" need both ends on the AP film too: they lie on their lateral rays, at the depth of
        the AP ends' middle. "posterior" is the point that `posture.posture` takes its balance from. "right" and "left"
        lie on their AP rays, at the depth of the lateral ends' middle.
        """
        ends = self.s1_endplate
        if any(set(ends[which]) != set(ENDS[which]) for which in VIEWS):
            return {}
        middles = {which: np.mean(list(ends[which].values()), axis=0) for which in VIEWS}
        found = {name: meet_rays(lateral, pixel, ap, middles["ap"]) for name, pixel in ends["lateral"].items()}
        return found | {name: meet_rays(ap, pixel, lateral, middles["lateral"]) for name, pixel in ends["ap"].items()}

    def to_dict(self) -> dict[str, Any]:
        """The file's content."""
        views = {}
        for which, said in self.views.items():
            corners = {levels.name(level): _lists(pixels) for level, pixels in self.corners[which].items()}
            views[which] = dict(said)
            views[which]["centroids"] = _lists({levels.name(n): pixel for n, pixel in self.centroids[which].items()})
            views[which] |= {"corners": corners} if corners else {}
            views[which] |= {"s1_endplate": _lists(self.s1_endplate[which])} if self.s1_endplate[which] else {}
        said = {"centroids_of": self.of} if self.of != VERTEBRA else {}
        return {"schema": SCHEMA, **said, "isocentre_ras_mm": self.isocentre.tolist(), "views": views}


def read_landmarks(path: str | Path, *, partial: bool = False) -> Landmarks:
    """Reads a landmark file.

    Args:
        path: the file.
        partial: accept one that no vertebra is marked twice in: work that goes on.

    Raises:
        InputError: not JSON, not of this schema, an unknown level or part, or no level marked in both views.
    """
    return landmarks_from_dict(
        read_json(path, "landmark file"), f"The landmark file {Path(path).name}", partial=partial
    )


def landmarks_from_dict(content: Any, where: str = "The landmark file", *, partial: bool = False) -> Landmarks:
    """Landmarks from a file's content; `Landmarks.to_dict` is its inverse.

    Args:
        content: of the file.
        where: what the content is called in sentences.
        partial: as in `read`.

    Raises:
        InputError: as `read`.
    """
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise InputError(f'{where} lacks "schema": "{SCHEMA}".')
    views = content.get("views")
    if not isinstance(views, dict) or set(views) != set(VIEWS):
        raise InputError(f"{where} needs the two views 'ap' and 'lateral' under 'views'.")
    centroids, corners, ends = {}, {}, {}
    for which, view in views.items():
        here = f"in its '{which}' view"
        if not isinstance(view, dict) or not isinstance(view.get("centroids"), dict):
            raise InputError(f"{where} has no 'centroids' {here}.")
        centroids[which] = _by_level(_pixels(view["centroids"], where, here), where, here)
        bodies = view.get("corners", {})
        if not isinstance(bodies, dict):
            raise InputError(f"{where} has 'corners' that are not those of levels {here}.")
        said = {name: _pixels(body, where, f"of {name} {here}", CORNERS[which]) for name, body in bodies.items()}
        corners[which] = _by_level(said, where, here)
        if not isinstance(view.get("proposed", []), list):
            raise InputError(f"{where} has a 'proposed' that is no list of levels {here}.")
        for name in view.get("proposed", []):
            levels.number(str(name))
        if _numbers(view.get("shape", (1, 1))).shape != (2,):
            raise InputError(f"{where} has a 'shape' that is not rows and columns {here}.")
        ends[which] = _pixels(view.get("s1_endplate", {}), where, f"of S1's endplate {here}", ENDS[which])
    isocentre = _numbers(content.get("isocentre_ras_mm", (0, 0, 0)))
    if isocentre.shape != (3,) or not np.isfinite(isocentre).all():
        raise InputError(f"{where} has an 'isocentre_ras_mm' that is not three numbers.")
    of = content.get("centroids_of", VERTEBRA)
    if of not in (VERTEBRA, BODY):
        raise InputError(f"{where} has 'centroids_of': {of!r}; use '{VERTEBRA}' or '{BODY}'.")
    said = {which: {k: v for k, v in view.items() if k not in _MARKS} for which, view in views.items()}
    found = Landmarks(said, centroids, isocentre, corners, ends, of)
    if not partial and not found.levels:
        raise InputError(f"{where} marks no vertebra in both views.")
    return found


def empty_landmarks() -> Landmarks:
    """No marks yet, on cone views at the default distances; a reader will mark bodies."""
    nothing: dict[str, dict[int, np.ndarray]] = {which: {} for which in VIEWS}
    views = {which: {"name": name} for which, name in zip(VIEWS, _NAMES, strict=True)}
    return Landmarks(views, nothing, np.zeros(3), of=BODY)


def write_landmarks(path: str | Path, landmarks: Landmarks) -> Path:
    """Writes a landmark file, atomically; `read` is its inverse."""
    return write_json(path, landmarks.to_dict())


def project_landmarks(ap: View, lateral: View, isocentre: np.ndarray, points: Mapping[int, np.ndarray]) -> Landmarks:
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


def meet_rays(view: View, pixel: np.ndarray, other: View, other_pixel: np.ndarray) -> np.ndarray:
    """The point on a view's ray at the depth that another view tells by its column alone: (3,) RAS mm.

    Unlike `geometry.triangulate` it takes no height from the other view, so it serves marks of different heights.

    Args:
        view: whose ray, and `pixel`: (2,) row and column in it.
        other: a view from another side, and `other_pixel`: (2,) row and column in it.
    """
    start, way = view.rays(np.asarray(pixel, float))
    through, along = other.rays(np.asarray(other_pixel, float))
    normal = np.cross(along, other.row_step)
    return start + way * ((through - start) @ normal) / (way @ normal)


def _pixels(said: Any, where: str, here: str, names: tuple[str, ...] = ()) -> Pixels:
    """Names to (2,) pixels, as a file says them; `names` are those there may be, by default any."""
    if not isinstance(said, dict):
        raise InputError(f"{where} has no [row, column] by name {here}.")
    found = {}
    for name, pixel in said.items():
        found[name] = _numbers(pixel)
        if found[name].shape != (2,) or not np.isfinite(found[name]).all():
            raise InputError(f"{where} has no [row, column] for {name} {here}.")
        if names and name not in names:
            raise InputError(f"{where} has an unknown '{name}' {here}; use {', '.join(names)}.")
    return found


def _by_level(said: Mapping[str, Any], where: str, here: str) -> dict[int, Any]:
    """The same by VerSe number, once no two names are one level's."""
    found: dict[int, Any] = {}
    for name, value in said.items():
        if levels.number(name) in found:
            raise InputError(f"{where} marks {levels.name(levels.number(name))} twice {here}; keep one of the two.")
        found[levels.number(name)] = value
    return found


def _lists(pixels: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    return {name: np.asarray(pixel, float).tolist() for name, pixel in pixels.items()}


def _numbers(said: Any) -> np.ndarray:
    """What a file says as an array of floats, empty where it says no numbers."""
    try:
        return np.array(said, float)
    except (TypeError, ValueError):
        return np.zeros(0)
