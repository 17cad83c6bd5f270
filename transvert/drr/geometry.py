"""Radiograph views: source and detector in space, projection and triangulation.

World coordinates are RAS millimetres: +x to the patient's right, +y to the front, +z to the head. An image is
`[row, column]` with row 0 at the top; whole coordinates are the centres of pixels. AP and PA show the patient's right on
the left of the picture; a lateral view shows the front of the patient on the left.

Rays are parallel, a cone from a point source, or those of a slot scanner (EOS, a CT's scout view): its source and detector
move along the patient, row by row, so that rays fan out across and are parallel along the patient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from transvert.io import InputError

# Direction of the rays and of the picture's columns, RAS. Rows point to the feet.
_NAMED: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "ap": ((0, -1, 0), (-1, 0, 0)),
    "pa": ((0, 1, 0), (-1, 0, 0)),
    "left_lateral": ((-1, 0, 0), (0, -1, 0)),
    "right_lateral": ((1, 0, 0), (0, -1, 0)),
}
VIEW_NAMES = tuple(_NAMED)
VIEWS = ("ap", "lateral")  # The two views of a pair of radiographs, in the order in which arrays hold them.

# Distances of a standing full-spine radiograph: this companion's choice, the paper's abstract states none.
SOURCE_TO_DETECTOR_MM = 1800.0
SOURCE_TO_ISOCENTRE_MM = 1500.0


@dataclass(frozen=True)
class View:
    """The geometry of a radiograph: a detector grid in space and the rays that reach it.

    Attributes:
        name: one of `VIEW_NAMES`, or any other name for another pose.
        shape: rows and columns of the picture.
        corner: (3,) RAS mm, the centre of pixel (0, 0).
        row_step: (3,) RAS mm, from one row to the next.
        column_step: (3,) RAS mm, from one column to the next.
        direction: (3,) unit vector of the central ray, from source to detector.
        source: (3,) RAS mm for a cone view, None for a parallel view; of a slot view that of row 0.
        slot: the source moves by `row_step` from row to row.

    Raises:
        InputError: invalid shape, vectors, pixels or source.
    """

    name: str
    shape: tuple[int, int]
    corner: np.ndarray
    row_step: np.ndarray
    column_step: np.ndarray
    direction: np.ndarray
    source: np.ndarray | None = None
    slot: bool = False

    def __post_init__(self) -> None:
        values = [self.corner, self.row_step, self.column_step, self.direction]
        if self.source is not None:
            values.append(self.source)
        if any(value.shape != (3,) or not np.isfinite(value).all() for value in values):
            raise InputError(f"The view '{self.name}' has a vector that is not three finite numbers.")
        if min(self.shape) < 1:
            raise InputError(
                f"The view '{self.name}' has {self.shape[0]} x {self.shape[1]} pixels; both must be positive."
            )
        if abs(np.linalg.norm(self.direction) - 1) > 1e-6:
            raise InputError(f"The view '{self.name}' has a direction that is not a unit vector.")
        normal = np.cross(self.row_step, self.column_step)
        if np.linalg.norm(normal) < 1e-9 or abs(normal @ self.direction) < 1e-6 * np.linalg.norm(normal):
            raise InputError(f"The view '{self.name}' has pixels without an area, or rays parallel to its detector.")
        # The sign of the normal is arbitrary; the direction of the rays fixes it.
        if self.source is not None and (self.corner - self.source) @ normal * (normal @ self.direction) <= 0:
            raise InputError(f"The view '{self.name}' has its source behind its detector.")
        if self.slot and self.source is None:
            raise InputError(f"The slot view '{self.name}' has no source.")

    @property
    def projection(self) -> str:
        """ "parallel", "cone" or "slot"."""
        return "parallel" if self.source is None else "slot" if self.slot else "cone"

    @property
    def pixel_mm(self) -> tuple[float, float]:
        """Distance between neighbouring rows and between neighbouring columns on the detector, mm."""
        return float(np.linalg.norm(self.row_step)), float(np.linalg.norm(self.column_step))

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixel coordinates of points (..., 3) in space, RAS mm.

        Returns:
            (..., 2) row and column, neither rounded nor clipped to the picture; NaN for a point that is not in front of
            the source of a cone or slot view.
        """
        origin = self.corner if self.source is None else self.source
        towards = self.direction if self.source is None else self.corner - self.source
        axes = np.linalg.inv([self.row_step, self.column_step, towards])
        # A point is origin + row * row_step + column * column_step + depth * towards, the steps scaled by their depth.
        row, column, depth = np.moveaxis((np.asarray(points, float) - origin) @ axes, -1, 0)
        if self.source is not None:
            depth = np.where(depth > 1e-12, depth, np.nan)
            row, column = row if self.slot else row / depth, column / depth
            row = np.where(depth > 0, row, np.nan)
        return np.stack([row, column], axis=-1)

    def rays(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Start and unit direction of the ray of each pixel (..., 2), row and column.

        Returns:
            Two (..., 3) arrays: a point on the ray in RAS mm (the source of a cone or slot view, the pixel itself in a
            parallel view) and the unit direction towards the detector.
        """
        pixels = np.asarray(pixels, float)
        on_detector = self.corner + pixels[..., :1] * self.row_step + pixels[..., 1:] * self.column_step
        if self.source is None:
            return on_detector, np.broadcast_to(self.direction, on_detector.shape)
        source = self.source + pixels[..., :1] * self.row_step if self.slot else self.source
        towards = on_detector - source
        towards /= np.linalg.norm(towards, axis=-1, keepdims=True)
        return np.broadcast_to(source, on_detector.shape), towards

    def ray_through(self, point: np.ndarray) -> np.ndarray:
        """(3,) unit direction of the ray through a point (3,) RAS mm, from source to detector."""
        if self.source is None:
            return self.direction
        way = point - self.source
        if self.slot:
            way = way - self.project(point)[0] * self.row_step
        return way / np.linalg.norm(way)

    def magnification(self, point: np.ndarray) -> np.ndarray:
        """(2,) size on the detector over true size along rows' step and columns' step, for a small object at (3,) RAS mm.

        A slot view magnifies only across.
        """
        if self.source is None:
            return np.ones(2)
        normal = np.cross(self.row_step, self.column_step)  # Depth is measured perpendicular to the detector.
        across = float((self.corner - self.source) @ normal) / float((np.asarray(point, float) - self.source) @ normal)
        return np.array([1.0 if self.slot else across, across])

    def to_dict(self) -> dict[str, Any]:
        """Description of the view for JSON."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "corner_ras_mm": self.corner.tolist(),
            "row_step_mm": self.row_step.tolist(),
            "column_step_mm": self.column_step.tolist(),
            "direction": self.direction.tolist(),
            "source_ras_mm": None if self.source is None else self.source.tolist(),
            "projection": self.projection,
        }


def named_view(
    name: str,
    isocentre: np.ndarray,
    shape: tuple[int, int],
    pixel_mm: float | tuple[float, float],
    *,
    cone: bool = False,
    slot: bool = False,
    source_to_detector_mm: float = SOURCE_TO_DETECTOR_MM,
    source_to_isocentre_mm: float = SOURCE_TO_ISOCENTRE_MM,
    turn_deg: float = 0.0,
    tilt_deg: float = 0.0,
    principal_point: tuple[float, float] | None = None,
) -> View:
    """A clinical view by name.

    Args:
        name: "ap", "pa", "left_lateral" or "right_lateral"; "lateral" means the left lateral, with the patient's left
            side next to the detector.
        isocentre: (3,) RAS mm, a point on the central ray.
        shape: rows and columns.
        pixel_mm: pixel pitch on the detector, one number or row and column.
        cone: rays from a point source instead of parallel rays and a detector through the isocentre.
        slot: rays of a slot scanner, whose source and detector move along the rows.
        source_to_detector_mm: for a cone or slot view, along the central ray.
        source_to_isocentre_mm: for a cone or slot view, smaller than `source_to_detector_mm`.
        turn_deg: rotation of the gantry about the patient's long axis, counter-clockwise seen from the head.
        tilt_deg: tilt of the source towards the head; the detector stays perpendicular to the central ray.
        principal_point: row and column where the central ray meets the detector; the picture's centre by default.

    Raises:
        InputError: an unknown name, or invalid distances, shape, isocentre or pixels.
    """
    name = "left_lateral" if name == "lateral" else name
    if name not in _NAMED:
        raise InputError(f"'{name}' is not a view; use {', '.join(VIEW_NAMES)}.")
    row_mm, column_mm = (float(mm) for mm in np.broadcast_to(pixel_mm, 2))
    turn = np.deg2rad(turn_deg)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    direction, column_way = (rotation @ np.array(vector, float) for vector in _NAMED[name])
    tilt = np.deg2rad(tilt_deg)
    up = np.array([0.0, 0.0, 1.0])
    # A source nearer the head sends its rays towards the feet.
    direction, row_way = np.cos(tilt) * direction - np.sin(tilt) * up, -np.cos(tilt) * up - np.sin(tilt) * direction
    isocentre = np.asarray(isocentre, float)
    if isocentre.shape != (3,):
        raise InputError(
            f"The isocentre of the view '{name}' has the shape {isocentre.shape}; it needs x, y and z in mm."
        )
    if not (row_mm > 0 and column_mm > 0):
        raise InputError(f"The pixels of the view '{name}' are {row_mm:g} x {column_mm:g} mm; both must be positive.")
    middle = np.array(principal_point) if principal_point is not None else (np.array(shape) - 1) / 2
    source = None
    centre = isocentre
    if cone and slot:
        raise InputError(f"The view '{name}' is given as a cone and as a slot view; it is one of both.")
    if cone or slot:
        if not 0 < source_to_isocentre_mm < source_to_detector_mm:
            raise InputError(
                f"The source is {source_to_isocentre_mm:g} mm from the isocentre and {source_to_detector_mm:g} mm from "
                "the detector; the first distance must be positive and smaller than the second."
            )
        source = isocentre - source_to_isocentre_mm * direction
        centre = source + source_to_detector_mm * direction
    corner = centre - middle[0] * row_mm * row_way - middle[1] * column_mm * column_way
    if source is not None and slot:
        source = source - middle[0] * row_mm * row_way
    shape = (int(shape[0]), int(shape[1]))
    return View(name, shape, corner, row_way * row_mm, column_way * column_mm, direction, source, slot)


def covering_view(name: str, corners: np.ndarray, pixel_mm: float, **options: Any) -> View:
    """A view of `named_view`, with its other options, that shows a whole box in the middle of the picture.

    Args:
        name: as in `named_view`.
        corners: (N, 3) RAS mm, for example the eight corners of a volume; their middle becomes the isocentre.
        pixel_mm: pixel pitch on the detector.
        **options: of `named_view`, except `principal_point`.

    Raises:
        InputError: as `named_view`, or a source that is not in front of the whole box.
    """
    if "principal_point" in options:
        raise InputError("A covering view is centred on its box; leave out principal_point, or use named_view.")
    isocentre = (corners.min(0) + corners.max(0)) / 2
    pixels = named_view(name, isocentre, (1, 1), pixel_mm, **options).project(corners)
    half = np.abs(pixels).max(axis=0)
    if not np.isfinite(half).all():
        raise InputError(f"The source of the view '{name}' is not in front of the whole box; move it farther away.")
    rows, columns = (2 * np.ceil(half - 1e-9).astype(int)).tolist()
    return named_view(name, isocentre, (rows, columns), pixel_mm, **options)


def triangulate(
    first: View, first_pixel: np.ndarray, second: View, second_pixel: np.ndarray
) -> tuple[np.ndarray, float]:
    """The point in space that appears at one pixel, (2,) row and column, of each of two views.

    Returns:
        (3,) RAS mm, the midpoint of the shortest segment between the two rays, and the length of that segment in mm.

    Raises:
        InputError: the two rays are parallel.
    """
    a, u = first.rays(np.asarray(first_pixel, float))
    b, v = second.rays(np.asarray(second_pixel, float))
    cosine = float(u @ v)
    if 1 - cosine**2 < 1e-6:
        raise InputError(f"The views '{first.name}' and '{second.name}' look the same way: no depth can be found.")
    along_first, along_second = np.linalg.solve(np.array([[1, -cosine], [cosine, -1]]), np.array([u, v]) @ (b - a))
    on_first, on_second = a + along_first * u, b + along_second * v
    return (on_first + on_second) / 2, float(np.linalg.norm(on_first - on_second))
