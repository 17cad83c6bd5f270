"""Views from and to the 3 x 4 projection matrices that C-arm and camera calibrations give.

Such a matrix takes a point in RAS mm, homogeneous, to (column, row, 1) times a factor: column first, as everywhere in
the literature (Hartley and Zisserman, Multiple View Geometry, 2004), with pixel centres on whole numbers as in
`geometry`.


Radiograph views: where the source and the detector stand, point to pixel, two pixels to a point.

World coordinates are RAS millimetres: +x to the patient's right, +y to the front, +z to the head. An image is
`[row, column]` with row 0 at the top. AP and PA show the patient's right on the left of the picture; a lateral
view shows the front of the patient on the left. Pixel coordinates are those of pixel centres, so `(0, 0)` is the
centre of the top left pixel.

"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from transvert.io import InputError

# For each named view: where the rays go, and where the picture's columns go, both in RAS. Rows always go down.
_NAMED: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "ap": ((0, -1, 0), (-1, 0, 0)),
    "pa": ((0, 1, 0), (-1, 0, 0)),
    "left_lateral": ((-1, 0, 0), (0, -1, 0)),
    "right_lateral": ((1, 0, 0), (0, -1, 0)),
}
VIEW_NAMES = tuple(_NAMED)

VIEWS = ("ap", "lateral")
"""The two views of a pair of films, in the order in which arrays have them."""

SOURCE_TO_DETECTOR_MM = 1800.0
SOURCE_TO_ISOCENTRE_MM = 1500.0
"""A standing full-spine radiograph: this companion's choice, the paper's abstract states no geometry."""


@dataclass(frozen=True)
class View:
    """A radiograph's geometry: a detector grid in space and the rays that reach it.

    Attributes:
        name: one of `VIEW_NAMES`, or a name of the caller's for any other pose.
        shape: rows and columns of the picture.
        corner: (3,) RAS mm, the centre of pixel (0, 0).
        row_step: (3,) RAS mm, the step from one row to the next.
        column_step: (3,) RAS mm, the step from one column to the next.
        direction: (3,) unit vector, the way the central ray goes, from source to detector.
        source: (3,) RAS mm for a cone view, None for a parallel one.

    Raises:
        InputError: shape, pixels or rays that make no picture.
    """

    name: str
    shape: tuple[int, int]
    corner: np.ndarray
    row_step: np.ndarray
    column_step: np.ndarray
    direction: np.ndarray
    source: np.ndarray | None = None

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
            raise InputError(f"The view '{self.name}' has pixels without an area, or rays along its detector.")
        # Along the detector's normal, turned to point the way the rays go.
        if self.source is not None and (self.corner - self.source) @ normal * (normal @ self.direction) <= 0:
            raise InputError(f"The view '{self.name}' has its source behind its detector.")

    @property
    def pixel_mm(self) -> tuple[float, float]:
        """Row and column pitch on the detector, mm."""
        return float(np.linalg.norm(self.row_step)), float(np.linalg.norm(self.column_step))

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixel coordinates of points in space.

        Args:
            points: (..., 3) RAS mm.

        Returns:
            (..., 2) row and column, not rounded, not clipped to the picture; NaN for a point that no ray of a cone
            view can reach, since it is not in front of the source.
        """
        points = np.asarray(points, float)
        normal = np.cross(self.row_step, self.column_step)
        if self.source is None:
            rays = np.broadcast_to(self.direction, points.shape)
            start = points
        else:
            rays = points - self.source
            start = np.broadcast_to(self.source, points.shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            travel = ((self.corner - start) @ normal) / (rays @ normal)
        if self.source is not None:
            travel = np.where((travel > 0) & np.isfinite(travel), travel, np.nan)
        offset = start + travel[..., None] * rays - self.corner
        axes = np.stack([self.row_step, self.column_step], axis=1)
        return offset @ np.linalg.pinv(axes).T

    def rays(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A point on the ray of each pixel and the ray's unit direction.

        Args:
            pixels: (..., 2) row and column.

        Returns:
            Two (..., 3) arrays: a point on the ray in RAS mm (the source of a cone view, else the pixel on the
            detector) and the unit direction towards the detector.
        """
        pixels = np.asarray(pixels, float)
        on_detector = self.corner + pixels[..., :1] * self.row_step + pixels[..., 1:] * self.column_step
        if self.source is None:
            return on_detector, np.broadcast_to(self.direction, on_detector.shape)
        towards = on_detector - self.source
        return np.broadcast_to(self.source, on_detector.shape), towards / np.linalg.norm(
            towards, axis=-1, keepdims=True
        )

    def magnification(self, point: np.ndarray) -> float:
        """How many times larger than life a small object at `point` (3,) RAS mm appears on the detector."""
        if self.source is None:
            return 1.0
        normal = np.cross(
            self.row_step, self.column_step
        )  # Depth counts across the detector's plane, however it is tilted.
        return float((self.corner - self.source) @ normal) / float((np.asarray(point, float) - self.source) @ normal)

    def moved(self, motion: np.ndarray) -> View:
        """The view after a rigid motion of source and detector, which keeps its name, shape and pixels.

        Args:
            motion: (4, 4), RAS mm to RAS mm. To move the patient instead, give the inverse.

        Raises:
            InputError: a matrix that bends, stretches or mirrors.
        """
        motion = np.asarray(motion, float)
        turn = motion[:3, :3] if motion.shape == (4, 4) else np.zeros((3, 3))
        rigid = np.abs(turn @ turn.T - np.eye(3)).max() < 1e-6 and np.linalg.det(turn) > 0
        if not rigid or not np.isfinite(motion).all() or np.abs(motion[3] - [0, 0, 0, 1]).max() > 1e-9:
            raise InputError(
                f"The motion of the view '{self.name}' is not rigid; give a 4 x 4 matrix of a rotation and a translation."
            )
        corner, source = (
            None if point is None else turn @ point + motion[:3, 3] for point in (self.corner, self.source)
        )
        assert corner is not None
        down, across, direction = (turn @ vector for vector in (self.row_step, self.column_step, self.direction))
        return View(self.name, self.shape, corner, down, across, direction, source)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description; `View.from_dict` is its inverse."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "corner_ras_mm": self.corner.tolist(),
            "down_mm": self.row_step.tolist(),
            "across_mm": self.column_step.tolist(),
            "direction": self.direction.tolist(),
            "source_ras_mm": None if self.source is None else self.source.tolist(),
        }

    @classmethod
    def from_dict(cls, description: dict[str, Any]) -> View:
        """A view from `to_dict`'s description.

        Raises:
            InputError: a key is missing, or the vectors do not make a view.
        """
        try:
            source = description.get("source_ras_mm")
            return cls(
                str(description["name"]),
                (int(description["shape"][0]), int(description["shape"][1])),
                np.array(description["corner_ras_mm"], float),
                np.array(description["down_mm"], float),
                np.array(description["across_mm"], float),
                np.array(description["direction"], float),
                None if source is None else np.array(source, float),
            )
        except InputError:
            raise
        except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
            raise InputError(f"The view's description lacks or garbles {error}.") from None


def named_view(
    name: str,
    isocentre: np.ndarray,
    shape: tuple[int, int],
    pixel_mm: float | tuple[float, float],
    *,
    cone: bool = False,
    source_to_detector_mm: float = SOURCE_TO_DETECTOR_MM,
    source_to_isocentre_mm: float = SOURCE_TO_ISOCENTRE_MM,
    turn_deg: float = 0.0,
    tilt_deg: float = 0.0,
    principal_point: tuple[float, float] | None = None,
) -> View:
    """A clinical view by name.

    Args:
        name: "ap", "pa", "left_lateral" or "right_lateral"; "lateral" stands for the left lateral, in which the
            patient's left side is next to the detector.
        isocentre: (3,) RAS mm, the point the central ray passes through.
        shape: rows and columns.
        pixel_mm: pixel pitch on the detector, one number or row and column.
        cone: rays from a point source; else parallel rays and a detector through the isocentre.
        source_to_detector_mm: for a cone view.
        source_to_isocentre_mm: for a cone view.
        turn_deg: the gantry's turn about the patient's long axis, counter-clockwise seen from the head.
        tilt_deg: the source's tilt towards the head, about the picture's rows, the detector staying across the rays.
        principal_point: row and column that the central ray meets; the picture's centre by default.

    Raises:
        InputError: an unknown name, or distances, shape or pixels that make no picture.
    """
    name = "left_lateral" if name == "lateral" else name
    if name not in _NAMED:
        raise InputError(f"'{name}' is not a view; use {', '.join(VIEW_NAMES)}.")
    row_mm, column_mm = (float(mm) for mm in np.broadcast_to(pixel_mm, 2))
    turn = np.deg2rad(turn_deg)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    direction, across = (rotation @ np.array(vector, float) for vector in _NAMED[name])
    tilt = np.deg2rad(tilt_deg)
    up = np.array([0.0, 0.0, 1.0])
    # Seen along the rays, a source nearer the head looks down on the patient.
    direction, down = np.cos(tilt) * direction - np.sin(tilt) * up, -np.cos(tilt) * up - np.sin(tilt) * direction
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
    if cone:
        if not 0 < source_to_isocentre_mm < source_to_detector_mm:
            raise InputError(
                f"The source stands {source_to_isocentre_mm:g} mm from the isocentre and {source_to_detector_mm:g} mm "
                "from the detector; the first must be positive and the smaller one."
            )
        source = isocentre - source_to_isocentre_mm * direction
        centre = source + source_to_detector_mm * direction
    corner = centre - middle[0] * row_mm * down - middle[1] * column_mm * across
    return View(name, (int(shape[0]), int(shape[1])), corner, down * row_mm, across * column_mm, direction, source)


def covering_view(name: str, corners: np.ndarray, pixel_mm: float, **options: Any) -> View:
    """A named view whose picture holds a whole box.

    Args:
        name: as in `named_view`.
        corners: (N, 3) RAS mm, for example a volume's eight corners; their middle becomes the isocentre.
        pixel_mm: pixel pitch on the detector.
        **options: passed on to `named_view`, all but `principal_point`: the picture is centred on the box.

    Raises:
        InputError: as `named_view`, or a source that stands within or beside the box.
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
    """The point in space that two pixels of two views see.

    Args:
        first: a view, and `first_pixel`: (2,) row and column in it.
        second: another view, and `second_pixel`: (2,) row and column in it.

    Returns:
        (3,) RAS mm, the middle of the rays' closest approach, and the distance in mm by which they miss each other.

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


def projection_matrix(view: View) -> np.ndarray:
    """(3, 4) projection matrix of a view; `view_from_matrix` is the inverse.

    The factor is the point's distance from the source along the detector's normal in mm, positive in front of the
    source; in a parallel view it is 1.
    """
    depth = view.direction if view.source is None else view.source - view.corner
    world = np.eye(4)
    world[:3] = np.stack([view.column_step, view.row_step, depth, view.corner], axis=1)
    column, row, along, _ = np.linalg.inv(world)
    if view.source is None:
        return np.stack([column, row, [0, 0, 0, 1]])
    # Along is 0 on the detector and 1 at the source; in between, what lies nearer the source is magnified more.
    normal = np.cross(view.row_step, view.column_step)
    distance = abs(float((view.corner - view.source) @ normal)) / float(np.linalg.norm(normal))
    return distance * np.stack([column, row, np.array([0, 0, 0, 1]) - along])


def view_from_matrix(matrix: np.ndarray, shape: tuple[int, int], pixel_mm: float, name: str = "calibrated") -> View:
    """A view of any pose from its projection matrix.

    Args:
        matrix: (3, 4), its factor positive in front of the source; a last row of (0, 0, 0, w) makes a parallel view,
            whose rays go as in an AP view: into the picture if it shows no mirror image.
        shape: rows and columns.
        pixel_mm: pitch from one column to the next on the detector. The matrix fixes a cone view's rays, but not at
            what distance a detector catches them; this does. A parallel matrix has a pitch, which must be this one.
        name: of the view.

    Raises:
        InputError: no finite 3 x 4 matrix, one that makes no picture, or another pitch than a parallel matrix has.
    """
    matrix = np.asarray(matrix, float)
    if matrix.shape != (3, 4) or not np.isfinite(matrix).all():
        raise InputError(f"The matrix of the view '{name}' has the shape {matrix.shape}; give 3 x 4 finite numbers.")
    if not pixel_mm > 0:
        raise InputError(f"The pixels of the view '{name}' are {pixel_mm:g} mm; they must be positive.")
    lengths = np.linalg.norm(matrix[:, :3], axis=1)
    if lengths[2] <= 1e-12 * lengths.max():
        return _parallel(matrix, shape, pixel_mm, name)
    if abs(np.linalg.det(matrix[:, :3])) <= 1e-9 * lengths.prod():
        raise _degenerate(name)
    inverse = np.linalg.inv(matrix[:, :3])
    across, down, towards = (pixel_mm / np.linalg.norm(inverse[:, 0]) * inverse).T
    source = -inverse @ matrix[:, 3]
    return View(name, shape, source + towards, down, across, matrix[2, :3] / lengths[2], source)


def _parallel(matrix: np.ndarray, shape: tuple[int, int], pixel_mm: float, name: str) -> View:
    """Column and row grow evenly in space; rays run where neither changes, on a detector through the world's origin."""
    normal = np.cross(matrix[0, :3], matrix[1, :3])
    size = np.prod(np.linalg.norm(matrix[:2, :3], axis=1))
    if matrix[2, 3] == 0 or np.linalg.norm(normal) <= 1e-9 * size:
        raise _degenerate(name)
    matrix = matrix / matrix[2, 3]
    across, down = np.linalg.pinv(matrix[:2, :3]).T
    found = float(np.linalg.norm(across))
    if abs(found - pixel_mm) > 1e-3 * pixel_mm:
        raise InputError(f"The matrix of the parallel view '{name}' has pixels of {found:.4g} mm, not {pixel_mm:g} mm.")
    corner = -matrix[0, 3] * across - matrix[1, 3] * down
    return View(name, shape, corner, down, across, normal / np.linalg.norm(normal))


def _degenerate(name: str) -> InputError:
    return InputError(
        f"The matrix of the view '{name}' is degenerate: it maps space to a line or a point; check its three rows."
    )
