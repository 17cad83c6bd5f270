"""Landmarks on two films: where each vertebra's centroid appears, and how the films were taken.

One JSON file holds both views, here with every kind of mark; all but the centroids is optional (`ViewSetup`):

    {"schema": "transvert-landmarks/2",
     "isocentre_ras_mm": [0, 0, 0],
     "centroids_of": "body",
     "views": {
       "ap": {"name": "ap", "pixel_mm": [0.6, 0.6], "projection": "cone", "source_to_detector_mm": 1800,
              "centroids": {"T1": [120.5, 311.0], "T2": [152.0, 309.5]}, "proposed": ["T2"]},
       "lateral": {"name": "left_lateral", "known_distance": {"from": [80, 512], "to": [1480, 512], "mm": 200},
                   "centroids": {"T1": [118.0, 402.5]}, "corners": {"L1": {"anterior_superior": [710.5, 398.0]}},
                   "s1_endplate": {"anterior": [981.5, 420.0], "posterior": [970.0, 465.5]}}}}

The "projection" is "cone" (the default), "parallel", or "slot" for a slot scanner such as EOS, which needs both
"source_to_detector_mm" and "source_to_isocentre_mm". A pixel is `[row, column]` of the upright picture, as
`radiograph.read_radiograph` turns it and the annotator shows it. "centroids_of" is "body" for the middles of vertebral bodies, or "vertebra" (the default) for the centres of mass of whole
vertebrae, arch and processes included, which lie 8 to 18 mm behind. Proposed centroids were filled in and not confirmed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import AfterValidator, BaseModel, Field, FiniteFloat, ValidationError, model_validator

from transvert import levels
from transvert.clinical.dicom import Acquisition, check_pixel_mm
from transvert.clinical.radiograph import Radiograph
from transvert.drr import geometry
from transvert.drr.geometry import SOURCE_TO_DETECTOR_MM, SOURCE_TO_ISOCENTRE_MM, VIEWS, View
from transvert.io import InputError, describe_error, read_json, write_json

SCHEMA = "transvert-landmarks/2"
OLD_SCHEMA = "transvert-landmarks/1"
"""Files of this schema count on the picture as stored, not turned upright, unless a view says "counted_on": "film"."""
_APCorner = Literal["right_superior", "left_superior", "left_inferior", "right_inferior"]
_LateralCorner = Literal["anterior_superior", "posterior_superior", "posterior_inferior", "anterior_inferior"]
CORNERS = {"ap": get_args(_APCorner), "lateral": get_args(_LateralCorner)}
"""A vertebral body's corners in each view, named by the patient's sides, in order around the body."""
ENDS = {"ap": ("right", "left"), "lateral": ("anterior", "posterior")}  # Of S1's upper endplate in each view.
RESIDUAL_LIMIT_MM = 10.0  # Two landmarks whose rays miss each other by more do not belong to one vertebra.
RESIDUAL_WARNING_MM = 4.0  # Residuals above this give a warning.
VERTEBRA, BODY = "vertebra", "body"  # What a centroid is the centre of: the whole vertebra, or its body.


def _by_level(marks: dict[str, Any]) -> dict[int, Any]:
    """Marks by VerSe number instead of by level name."""
    numbers = [levels.number(name) for name in marks]
    for level in numbers:
        if numbers.count(level) > 1:
            raise ValueError(f"the level {levels.name(level)} is marked twice; keep one of the two")
    return dict(zip(numbers, marks.values(), strict=True))


_Pair = tuple[FiniteFloat, FiniteFloat]
_Pixel = Annotated[_Pair, AfterValidator(np.array)]
_Distance = Annotated[FiniteFloat, Field(gt=0)]
_Levels = Annotated[list[str], AfterValidator(lambda names: frozenset(map(levels.number, names)))]


class KnownDistance(BaseModel, frozen=True, populate_by_name=True):
    """Both ends of a known distance on a film, row and column, and its length."""

    start: _Pair = Field(alias="from")
    end: _Pair = Field(alias="to")
    mm: Annotated[float, Field(ge=1, le=2000)]

    @model_validator(mode="after")
    def _check_length(self) -> KnownDistance:
        if (pixels := np.hypot(*np.subtract(self.end, self.start))) < 10:
            raise ValueError(f"its ends lie {pixels:.1f} pixels apart, too few to measure by; mark two far apart")
        return self


class ViewSetup(BaseModel, frozen=True):
    """How a film was taken, as far as the landmark file says; `counted_on` is "stored" in files of schema 1."""

    name: Literal["ap", "pa", "left_lateral", "right_lateral", "lateral"] | None = None
    pixel_mm: _Pair | None = None  # Height and width of a pixel on the detector; by default the film's own.
    known_distance: KnownDistance | None = None  # Instead: a ruler in the patient's plane.
    pixel_plane: Literal["detector", "patient"] | None = None  # If the size was measured in the other plane.
    projection: Literal["cone", "parallel", "slot"] | None = None  # By default the film's, else a cone.
    source_to_detector_mm: _Distance | None = None
    source_to_isocentre_mm: _Distance | None = None
    principal_point: _Pair | None = None  # The pixel that the central ray meets; by default the film's middle.
    shape: tuple[int, int] | None = None  # Rows and columns of the film that was marked.
    orientation: tuple[str, str] | None = None  # As in `read_radiograph`, if the film's file is wrong or silent.
    counted_on: Literal["film", "stored"] = "film"

    def measure_film(self, film: Radiograph, view_name: str) -> Radiograph:
        """The film with the pixel pitch that the landmark file states or measures, else with its own."""
        if self.known_distance:
            aspect = film.pixel_mm[0] / film.pixel_mm[1] if film.pixel_mm else 1.0
            rows, columns = np.subtract(self.known_distance.end, self.known_distance.start)
            column_mm = self.known_distance.mm / float(np.hypot(rows * aspect, columns))
            pixel_mm = column_mm * aspect, column_mm
            plane, origin = "patient", f"a known distance of {self.known_distance.mm:g} mm"
        elif self.pixel_mm:
            pixel_mm, plane, origin = self.pixel_mm, "detector", "stated in the landmark file"
        else:
            return film
        check_pixel_mm(pixel_mm, f"the {view_name} view")
        acquisition = replace(film.acquisition, pixel_plane=self.pixel_plane or plane, pixel_mm_from=origin)
        return replace(film, pixel_mm=pixel_mm, acquisition=acquisition)

    def rays_of(self, acquisition: Acquisition) -> str:
        """The projection: "cone", "parallel" or "slot"."""
        return self.projection or acquisition.projection or "cone"

    def source_distances(self, acquisition: Acquisition) -> tuple[float, float]:
        """Source to detector and source to isocentre, mm: as stated, else the film's, else the defaults.

        If only the detector's distance is known, the isocentre keeps its default distance from the detector.
        """
        detector = self.source_to_detector_mm or acquisition.source_to_detector_mm or SOURCE_TO_DETECTOR_MM
        isocentre = detector - (SOURCE_TO_DETECTOR_MM - SOURCE_TO_ISOCENTRE_MM)
        if acquisition.source_to_patient_mm:
            isocentre = acquisition.source_to_patient_mm
        elif acquisition.magnification:
            isocentre = detector / acquisition.magnification
        return detector, self.source_to_isocentre_mm or isocentre


class _FileView(ViewSetup, frozen=True):
    centroids: Annotated[dict[str, _Pixel], AfterValidator(_by_level)]
    proposed: _Levels = Field([], validate_default=True)
    ball: Any = None

    @model_validator(mode="after")
    def _check_pixel_size(self) -> _FileView:
        if self.ball is not None:
            raise ValueError("a 'ball' no longer measures the pixel size; state its diameter as a 'known_distance'")
        if self.pixel_mm and self.known_distance:
            raise ValueError("both pixel_mm and known_distance state the pixel size; keep one")
        return self


class _APView(_FileView, frozen=True):
    corners: Annotated[dict[str, dict[_APCorner, _Pixel]], AfterValidator(_by_level)] = {}
    s1_endplate: dict[Literal["right", "left"], _Pixel] = {}


class _LateralView(_FileView, frozen=True):
    corners: Annotated[dict[str, dict[_LateralCorner, _Pixel]], AfterValidator(_by_level)] = {}
    s1_endplate: dict[Literal["anterior", "posterior"], _Pixel] = {}


class _FileViews(BaseModel, extra="forbid"):
    ap: _APView
    lateral: _LateralView


class _File(BaseModel):
    views: _FileViews
    isocentre_ras_mm: tuple[FiniteFloat, FiniteFloat, FiniteFloat] = (0.0, 0.0, 0.0)
    centroids_of: Literal["vertebra", "body"] = "vertebra"


def _per_view() -> Any:
    return field(default_factory=lambda: {name: {} for name in VIEWS})


@dataclass(frozen=True)
class Landmarks:
    """The content of a landmark file: by "ap" or "lateral", then by level or part; a pixel is (2,) row and column.

    The isocentre is (3,) RAS mm. Levels that are `proposed` have centroids that were filled in and are not confirmed.
    """

    setups: Mapping[str, ViewSetup]
    centroids: Mapping[str, Mapping[int, np.ndarray]]
    isocentre: np.ndarray
    corners: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]] = _per_view()
    s1_endplate: Mapping[str, Mapping[str, np.ndarray]] = _per_view()
    centroids_of: str = VERTEBRA
    proposed: Mapping[str, frozenset[int]] = field(default_factory=lambda: {name: frozenset() for name in VIEWS})

    @property
    def levels(self) -> list[int]:
        """The vertebrae marked in both views, head to tail."""
        return levels.in_order(set(self.centroids["ap"]) & set(self.centroids["lateral"]) & set(levels.VERTEBRAE))

    def view(self, view_name: str, film: Radiograph) -> View:
        """The geometry of the "ap" or "lateral" film, which gives what the landmark file does not state.

        An unknown pixel pitch, distances that make no view, or an old file whose film was turned raise an InputError.
        """
        setup = self.setups[view_name]
        if setup.counted_on == "stored" and film.acquisition.orientation.words:
            raise InputError(
                f"The landmark file is an old one and counts on the {view_name} film's picture before it was "
                f"{film.acquisition.orientation.words}; mark the film again."
            )
        film = setup.measure_film(film, view_name)
        if film.pixel_mm is None:
            raise InputError(
                f"Neither the {view_name} film nor the landmark file states the pixel spacing; give pixel_mm, or add "
                "it or a 'known_distance' to the landmark file."
            )
        rays, taken = setup.rays_of(film.acquisition), film.acquisition
        to_detector, to_isocentre = setup.source_distances(taken)
        detector_known = setup.source_to_detector_mm or taken.source_to_detector_mm
        isocentre_known = setup.source_to_isocentre_mm or taken.source_to_patient_mm or taken.magnification
        if rays == "slot" and not (detector_known and isocentre_known):
            raise InputError(
                f"The {view_name} film is a slot scanner's (such as EOS) and its distances are not known: give "
                f'source_to_detector_mm and source_to_isocentre_mm in the "{view_name}" view of the landmark file.'
            )
        row_mm, column_mm = film.pixel_mm
        principal_point = setup.principal_point
        if principal_point is None and taken.zero_row is not None:
            principal_point = taken.zero_row - self.isocentre[2] / row_mm, (film.pixels.shape[1] - 1) / 2
        if rays != "parallel" and taken.pixel_plane == "patient":
            column_mm *= to_detector / to_isocentre
            row_mm *= to_detector / to_isocentre if rays == "cone" else 1  # A slot scanner magnifies only across.
        return geometry.named_view(
            setup.name or film.acquisition.view or view_name,
            self.isocentre,
            film.pixels.shape,
            (row_mm, column_mm),
            cone=rays == "cone",
            slot=rays == "slot",
            source_to_detector_mm=to_detector,
            source_to_isocentre_mm=to_isocentre,
            principal_point=principal_point,
        )

    def triangulate(self, ap: View, lateral: View) -> tuple[dict[int, np.ndarray], dict[int, float]]:
        """Each level's centroid (3,) RAS mm, and its residual: by how many mm its two rays miss each other."""
        in_ap, in_lateral = self.centroids["ap"], self.centroids["lateral"]
        found = {n: geometry.triangulate(ap, in_ap[n], lateral, in_lateral[n]) for n in self.levels}
        return {n: point for n, (point, _) in found.items()}, {n: miss for n, (_, miss) in found.items()}

    def place(self, ap: View, lateral: View) -> tuple[dict[int, np.ndarray], dict[int, float]]:
        """As `triangulate`; raises InputError if two landmarks of a level disagree, or if levels are out of order."""
        points, residuals = self.triangulate(ap, lateral)
        for level, mm in residuals.items():
            if mm > RESIDUAL_LIMIT_MM:
                name = levels.name(level)
                raise InputError(
                    f"The two landmarks of {name} disagree by {mm:.0f} mm: check level, row and pixel spacing."
                )
        for pair in itertools.pairwise(self.levels):
            if points[pair[1]][2] >= points[pair[0]][2]:
                above, below = map(levels.name, pair)
                raise InputError(f"{below} is marked above {above}; correct the levels, or turn the films.")
        return points, residuals

    def s1(self, ap: View, lateral: View) -> dict[str, np.ndarray]:
        """The four ends of S1's upper endplate, name in `ENDS` to (3,) RAS mm; empty unless all four are marked.

        Each lies on its own ray, at the depth of the middle of the other view's ends.
        """
        ends = self.s1_endplate
        if any(set(ends[name]) != set(ENDS[name]) for name in VIEWS):
            return {}
        middles = {name: np.mean(list(ends[name].values()), axis=0) for name in VIEWS}
        found = {name: meet_rays(lateral, pixel, ap, middles["ap"]) for name, pixel in ends["lateral"].items()}
        return found | {name: meet_rays(ap, pixel, lateral, middles["lateral"]) for name, pixel in ends["ap"].items()}

    def to_dict(self) -> dict[str, Any]:
        """The file's content; `landmarks_from_dict` is the inverse."""
        views = {}
        for name, setup in self.setups.items():
            marks = {
                "corners": {levels.name(n): _lists(pixels) for n, pixels in self.corners[name].items()},
                "s1_endplate": _lists(self.s1_endplate[name]),
                "proposed": [levels.name(n) for n in levels.in_order(set(self.proposed[name]))],
            }
            views[name] = setup.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
            views[name]["centroids"] = _lists({levels.name(n): pixel for n, pixel in self.centroids[name].items()})
            views[name] |= {key: value for key, value in marks.items() if value}
        kind = {"centroids_of": self.centroids_of} if self.centroids_of != VERTEBRA else {}
        return {"schema": SCHEMA, **kind, "isocentre_ras_mm": self.isocentre.tolist(), "views": views}


def read_landmarks(path: str | Path, *, partial: bool = False) -> Landmarks:
    """Reads a landmark file, or raises InputError; `partial` accepts that no vertebra is marked in both views."""
    source = f"The landmark file {Path(path).name}"

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:  # JSON's reader would keep the last one.
                raise InputError(f"{source} states '{name}' twice in one place; keep one of the two.")
        return dict(pairs)

    return landmarks_from_dict(read_json(path, "landmark file", once), source, partial=partial)


def landmarks_from_dict(content: Any, source: str = "The landmark file", *, partial: bool = False) -> Landmarks:
    """Landmarks from a file's content, as `read_landmarks`; `source` names the content in error messages."""
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema not in (SCHEMA, OLD_SCHEMA):
        raise InputError(f'{source} lacks "schema": "{SCHEMA}".')
    try:
        file = _File.model_validate(content)
    except ValidationError as error:
        raise InputError(describe_error(error, source)) from None
    old = {"counted_on": "stored"} if schema == OLD_SCHEMA else {}
    setups = {name: ViewSetup.model_validate(old | content["views"][name]) for name in VIEWS}
    centroids, corners, ends, proposed = (
        {name: getattr(getattr(file.views, name), kind) for name in VIEWS}
        for kind in ("centroids", "corners", "s1_endplate", "proposed")
    )
    isocentre = np.array(file.isocentre_ras_mm)
    found = Landmarks(setups, centroids, isocentre, corners, ends, file.centroids_of, proposed)
    if not partial and not found.levels:
        raise InputError(f"{source} marks no vertebra in both views.")
    return found


def empty_landmarks() -> Landmarks:
    """No marks, on cone views at the default distances; the centroids to be marked are those of bodies."""
    setups = {"ap": ViewSetup(name="ap"), "lateral": ViewSetup(name="left_lateral")}
    return Landmarks(setups, {name: {} for name in VIEWS}, np.zeros(3), centroids_of=BODY)


def write_landmarks(path: str | Path, landmarks: Landmarks) -> Path:
    """Writes a landmark file, atomically; `read_landmarks` is the inverse."""
    return write_json(path, landmarks.to_dict())


def project_landmarks(ap: View, lateral: View, isocentre: np.ndarray, points: Mapping[int, np.ndarray]) -> Landmarks:
    """The exact landmarks of points (level to (3,) RAS mm) on two views that `geometry.named_view` made."""
    setups, centroids = {}, {}
    for name, view in zip(VIEWS, (ap, lateral), strict=True):
        setup: dict[str, Any] = {"name": view.name, "pixel_mm": view.pixel_mm, "projection": view.projection}
        setup["principal_point"] = tuple(view.project(isocentre))
        if view.source is not None:
            setup["source_to_detector_mm"] = float((view.corner - view.source) @ view.direction)
            setup["source_to_isocentre_mm"] = float((isocentre - view.source) @ view.direction)
        setups[name] = ViewSetup(**setup)
        centroids[name] = {level: view.project(point) for level, point in points.items()}
    return Landmarks(setups, centroids, np.asarray(isocentre, float))


def meet_rays(view: View, pixel: np.ndarray, other: View, other_pixel: np.ndarray) -> np.ndarray:
    """The point on the ray of a view's pixel at the depth that the other view's column gives: (3,) RAS mm.

    Unlike `geometry.triangulate` it takes no height from the other view, so the two marks may differ in height.
    """
    start, along = view.rays(np.asarray(pixel, float))
    other_start, other_along = other.rays(np.asarray(other_pixel, float))
    normal = np.cross(other_along, other.row_step)
    return start + along * ((other_start - start) @ normal) / (along @ normal)


def _lists(pixels: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    return {name: np.asarray(pixel, float).tolist() for name, pixel in pixels.items()}
