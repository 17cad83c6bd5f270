"""Simple shapes painted into a volume: ellipsoids, bent tubes and smooth noise, with edges as soft as a voxel.

A canvas is an axis-aligned `Volume` of float32 HU. Shapes are painted in place, in RAS mm.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import make_interp_spline

from transvert.imaging.volume import Volume

Box = tuple[slice, slice, slice]


def blank(low: np.ndarray, high: np.ndarray, spacing_mm: float, fill: float) -> Volume:
    """A canvas from corner `low` to `high` (3,) RAS mm, rounded up to whole voxels, filled with one value in HU."""
    shape = np.ceil((high - low) / spacing_mm).astype(int)
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = low + spacing_mm / 2
    return Volume(np.full(shape, fill, np.float32), affine)


def axes_mm(canvas: Volume) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates of the voxel centres along x, y and z: three vectors, RAS mm."""
    x, y, z = (np.arange(n) * canvas.affine[i, i] + canvas.affine[i, 3] for i, n in enumerate(canvas.data.shape))
    return x, y, z


def box_of(canvas: Volume, low: np.ndarray, high: np.ndarray) -> Box:
    """The block of voxels that a box in RAS mm touches, with a margin of one, clipped to the canvas."""
    first = np.floor(canvas.index(low)).astype(int) - 1
    last = np.ceil(canvas.index(high)).astype(int) + 2
    x, y, z = (slice(*np.clip((a, b), 0, n)) for a, b, n in zip(first, last, canvas.data.shape, strict=True))
    return x, y, z


def grid_mm(canvas: Volume, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Open grid of a block's voxel centres: three float32 arrays, RAS mm, that broadcast together."""
    x, y, z = (axis[part].astype(np.float32) for axis, part in zip(axes_mm(canvas), box, strict=True))
    return x[:, None, None], y[None, :, None], z[None, None, :]


def blend(block: np.ndarray, weight: np.ndarray | float, hu: np.ndarray | float) -> None:
    """Blends a tissue into a block in place: weight 1 replaces the old value, 0 keeps it."""
    block += weight * (hu - block)


def edge(radius: np.ndarray, mm: float, spacing_mm: float) -> np.ndarray:
    """Weights of a shape at relative radii: `radius` is 1 on the surface, which is `mm` from the centre."""
    return np.clip((1 - radius) * np.float32(mm / spacing_mm) + np.float32(0.5), 0, 1)


def oval_radius(dx: np.ndarray, dy: np.ndarray, half: np.ndarray, power: float) -> np.ndarray:
    """Relative radius of points, 1 on the oval: an ellipse for `power` 2, more rectangular towards 0."""
    u, v = (dx / np.float32(half[0])) ** 2, (dy / np.float32(half[1])) ** 2
    return np.sqrt(np.sqrt(u * u + v * v + np.float32(power) * u * v))


@dataclass(frozen=True)
class Ellipsoid:
    """An axis-aligned ellipsoid: centre (3,) RAS mm and half axes (3,) mm."""

    centre: np.ndarray
    half_mm: np.ndarray

    @property
    def top(self) -> float:
        """Height of the highest point, RAS mm."""
        return float(self.centre[2] + self.half_mm[2])

    def section(self, z: float) -> np.ndarray | None:
        """(2,) mm, half axes along x and y at a height in RAS mm; None above and below the ellipsoid."""
        rest = 1 - ((z - self.centre[2]) / self.half_mm[2]) ** 2
        return self.half_mm[:2] * np.sqrt(rest) if rest > 0 else None


@dataclass(frozen=True)
class Slice:
    """An axial slice to paint on: (X, Y) HU, with voxel coordinates (X, 1) and (1, Y) RAS mm."""

    picture: np.ndarray
    x: np.ndarray
    y: np.ndarray
    spacing_mm: float

    def oval(self, centre: np.ndarray, half: np.ndarray, power: float = 2.0) -> tuple[tuple[slice, slice], np.ndarray]:
        """The block of the slice that an oval touches, and the weights of the oval in it."""
        low, high = centre[:2] - half - self.spacing_mm, centre[:2] + half + self.spacing_mm
        ranges = zip((self.x[:, 0], self.y[0]), low, high, strict=True)
        i, j = (slice(*np.searchsorted(axis, ends)) for axis, *ends in ranges)
        radius = oval_radius(self.x[i] - centre[0], self.y[:, j] - centre[1], half, power)
        return (i, j), edge(radius, float(half.min()), self.spacing_mm)

    def paint(self, centre: np.ndarray, half: np.ndarray, hu: float, power: float = 2.0) -> None:
        """Paints an oval of one tissue."""
        block, weight = self.oval(centre, half, power)
        blend(self.picture[block], weight, hu)


def ellipsoid(
    canvas: Volume, centre: np.ndarray, half_mm: tuple[float, float, float], hu: float, turn: np.ndarray | None = None
) -> None:
    """Paints an ellipsoid; `turn` (3, 3) has the directions of its half axes in its columns, x, y and z by default."""
    centre, half = np.asarray(centre, float), np.asarray(half_mm, float)
    turn = np.eye(3) if turn is None else turn
    reach = np.sqrt((turn**2) @ half**2)
    box = box_of(canvas, centre - reach, centre + reach)
    offsets = [axis - np.float32(c) for axis, c in zip(grid_mm(canvas, box), centre, strict=True)]
    square: np.ndarray | float = 0.0
    for column, length in zip(turn.T, half, strict=True):
        square = square + (sum(np.float32(a / length) * o for a, o in zip(column, offsets, strict=True))) ** 2
    blend(canvas.data[box], edge(np.sqrt(square), half.min(), canvas.affine[0, 0]), hu)


def smooth_curve(points: np.ndarray, step_mm: float) -> np.ndarray:
    """(M, 3) smooth path through points (N, 3) in steps of about `step_mm`; a straight line for two points."""
    lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
    along = np.concatenate([[0.0], np.cumsum(lengths)])
    steps = np.linspace(0, along[-1], max(2, round(along[-1] / step_mm) + 1))
    return np.asarray(make_interp_spline(along, points, k=min(3, len(points) - 1))(steps))


def tube(
    canvas: Volume, path: np.ndarray, half_mm: tuple[float, float, float], hu: float, below_hu: float = np.inf
) -> None:
    """Paints a tube with round ends, `half_mm` from its path (N, 3) in x, y and z, where the canvas is below `below_hu`."""
    half = np.asarray(half_mm, float)
    for start, end in itertools.pairwise(path):
        box = box_of(canvas, np.minimum(start, end) - half, np.maximum(start, end) + half)
        if 0 in canvas.data[box].shape:
            continue
        offsets = [
            (axis - np.float32(s)) / np.float32(h) for axis, s, h in zip(grid_mm(canvas, box), start, half, strict=True)
        ]
        towards = ((end - start) / half).astype(np.float32)
        along = sum(t * o for t, o in zip(towards, offsets, strict=True)) / max(float(towards @ towards), 1e-9)
        along = np.clip(along, 0, 1)
        radius = np.sqrt(sum((o - along * t) ** 2 for t, o in zip(towards, offsets, strict=True)))
        weight = edge(radius, half.min(), canvas.affine[0, 0])
        blend(canvas.data[box], weight if below_hu == np.inf else weight * (canvas.data[box] < below_hu), hu)


class Noise:
    """Smooth noise with mean near 0, standard deviation near 1 and details of `scale` voxels, drawn once."""

    def __init__(self, shape: tuple[int, ...], scale: float, random: np.random.Generator):
        coarse = random.standard_normal([int(np.ceil(n / scale)) + 3 for n in shape]).astype(np.float32)
        # Linear interpolation between two random values has on average 2/3 of their variance, along each axis.
        self._coarse = coarse / np.float32((2 / 3) ** 1.5)
        self._at = [np.arange(n) / scale + 0.5 for n in shape]

    def slice(self, k: int) -> np.ndarray:
        """(X, Y) float32, the noise at index `k` along z."""
        x, y, z = self._at
        return _along(_along(_along(self._coarse, z[k : k + 1], 2)[..., 0], x, 0), y, 1)

    def whole(self) -> np.ndarray:
        """(X, Y, Z) float32."""
        x, y, z = self._at
        return _along(_along(_along(self._coarse, x, 0), y, 1), z, 2)


def _along(values: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation along one axis at positions `at` in samples."""
    low = at.astype(int)
    share = (at - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    first = values.take(low, axis)
    found: np.ndarray = first + share * (values.take(low + 1, axis) - first)
    return found
