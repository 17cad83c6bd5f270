"""The endplates of vertebral bodies: fitted to a shape, read from marked corners, and combined into likely tilts.

A reconstructed shape tells where its endplates face, in the thorax often with errors of 10 degrees. Landmarks help: a
vertebra stands almost perpendicular to the line between its neighbours, its two endplates are almost parallel, and so are
the two endplates of a disc. `tables/endplate_tilts.csv` holds how closely (made by benchmarks/tables/anatomy.py).
`fit_endplate_tilts` combines all of this, for the sagittal and the coronal plane separately, by generalised least squares.
Every normal points to the head. The methods are this companion's choice.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from transvert import levels
from transvert.clinical.landmarks import Landmarks
from transvert.clinical.vertebra import THRESHOLD, Vertebra, Views, body_region, largest_part, unit
from transvert.data import patches
from transvert.drr.geometry import VIEWS
from transvert.imaging.volume import Volume
from transvert.io import PACKAGE, InputError, read_rows

TABLE = PACKAGE / "tables" / "endplate_tilts.csv"
CORONAL, SAGITTAL = 0, 1  # Plane of a tilt: the index of the normal's component, and of the view that shows it.
CORNER_SD_DEG = 2.0  # Between a line through marked corners and the endplate's middle: this companion's estimate.
_Equation = tuple[Mapping[int, float], float, float, Mapping[int, float]]
"""One linear equation in the tilts: weights by endplate, value, its own sd, and the effect of one sd of each place."""
_FITTED_WIDTH = 0.75  # Share of the body's half-widths: the endplate without rims, pedicles and uncinate processes.
_KEPT_COLUMNS = 0.8  # Share of columns with the smallest residuals in the trimmed fit.
_STEP_MM = 0.5  # Sampling along a column.


@dataclass(frozen=True)
class Endplates:
    """A vertebral body's two endplates; points (3,) in RAS mm, unit normals (3,) towards the head.

    A centre is where the body's axis meets the fitted plane; `body_centre` is half-way between the two. `depth_mm` and
    `width_mm` are the body's at mid-height. The heights are between the planes at the body's front, centre and back.
    """

    body_centre: np.ndarray
    superior_centre: np.ndarray
    superior_normal: np.ndarray
    inferior_centre: np.ndarray
    inferior_normal: np.ndarray
    depth_mm: float
    width_mm: float
    anterior_mm: float
    middle_mm: float
    posterior_mm: float


@dataclass(frozen=True)
class Sacrum:
    """S1's upper endplate: its centre and the middle of its posterior edge (3,) RAS mm, its unit normal to the head."""

    superior_centre: np.ndarray
    superior_normal: np.ndarray
    posterior: np.ndarray


@dataclass(frozen=True)
class EndplateLine:
    """An endplate's line on a film, from corner to corner: the tilt of its normal in a plane, and the tilt's sd."""

    level: int
    superior: bool
    plane: int
    tilt_deg: float
    sd_deg: float


@dataclass(frozen=True)
class Observations:
    """What is known about a spine besides the shapes."""

    places: Mapping[int, np.ndarray]  #: Level to (3,) RAS mm, the centre of mass that its landmarks give.
    sd_mm: Mapping[int, np.ndarray]  #: Level to (3,), standard deviation of that place along x, y and z.
    lines: Sequence[EndplateLine] = ()  #: Endplates marked on the films.
    random: np.random.Generator | None = None  #: Draws tilts from their distribution; None takes the most likely ones.


def fit_sacrum(ends: Mapping[str, np.ndarray]) -> Sacrum:
    """The plane of S1's upper endplate, from the four ends that `Landmarks.s1` gives; refuses missing or exchanged ends."""
    names = ("anterior", "posterior", "right", "left")
    missing = [name for name in names if name not in ends]
    if missing:
        raise InputError(f"S1's upper endplate lacks its {' and '.join(missing)} end; mark both ends on both films.")
    to_right, to_front = ends["right"] - ends["left"], ends["anterior"] - ends["posterior"]
    normal = np.cross(to_right, to_front)
    if not (to_right[0] > 0 and to_front[1] > 0 and normal[2] > 0):
        raise InputError("S1's upper endplate is marked the wrong way round; check which end is which on both films.")
    centre = np.mean([ends[name] for name in names], axis=0)
    return Sacrum(centre, unit(normal), np.asarray(ends["posterior"], float))


def fit_endplates(vertebra: Vertebra) -> Endplates:
    """Finds the vertebral body and fits a plane to each endplate.

    The body's centre is the deepest point of the front half. Columns along the body's axis, over the middle of its
    cross-section, meet the surface above and below; a trimmed least-squares plane goes through each set of points. The
    planes' mean normal is the next axis, which starts upright. On synthetic bodies tilted by up to 40 degrees the normals
    are within 1 degree; for a binary mask on a 1.5 mm grid within 3, and 5 for a body as small as a cervical one. C1 and C2,
    which have no ordinary body, an empty vertebra, and one where no body is found raise an InputError.
    """
    solid, field = _solid_body(vertebra)
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(np.pad(solid.data, 1))[1:-1, 1:-1, 1:-1], 1.0)
    depth[:, : int(np.flatnonzero(solid.data.any(axis=(0, 2))).mean())] = 0
    centre = solid.world(np.array(np.unravel_index(depth.argmax(), depth.shape)))
    reach = 2.0 * float(depth.max()) * vertebra.spacing_mm
    axis = np.array([0.0, 0.0, 1.0])
    disc = np.stack(np.meshgrid(*[np.linspace(-_FITTED_WIDTH, _FITTED_WIDTH, 25)] * 2), axis=-1).reshape(-1, 2)
    disc = disc[np.linalg.norm(disc, axis=1) <= _FITTED_WIDTH]
    for _ in range(4):
        right = unit(np.array([1.0, 0.0, 0.0]) - axis[0] * axis)
        front = np.cross(axis, right)
        ways = (right, -right, front, -front)
        # A ray that leaves the body through a pedicle is cut at twice the depth of the body's centre.
        reached = [float(np.nan_to_num(_exit_mm(field, centre[None], way, reach), nan=reach)[0]) for way in ways]
        centre = centre + sum(way * mm for way, mm in zip(ways, reached, strict=True)) / 2
        width, length = sum(reached[:2]), sum(reached[2:])
        offsets = disc * [width / 2, length / 2]
        feet = centre + offsets @ np.stack([right, front])
        above = _fit_plane(offsets, _exit_mm(field, feet, axis, 1.5 * reach), vertebra)
        below = -_fit_plane(offsets, _exit_mm(field, feet, -axis, 1.5 * reach), vertebra)
        superior, inferior = centre + above[0] * axis, centre + below[0] * axis
        up, down = (unit(axis - plane[1] * right - plane[2] * front) for plane in (above, below))
        axis, centre = unit(up + down), (superior + inferior) / 2
    heights = [float((above - below) @ [1, 0, end * length / 2]) for end in (1, 0, -1)]
    return Endplates(centre, superior, up, inferior, down, length, width, *heights)


def fit_endplate_tilts(fitted: Mapping[int, Endplates], observations: Observations) -> dict[int, Endplates]:
    """Tilts the endplates fitted to shapes to their most likely directions; centres, widths and middle heights stay."""
    if not fitted:
        return {}
    order = levels.in_order(set(fitted))
    tilts = np.empty((2, 2 * len(order)))
    for plane in (CORONAL, SAGITTAL):
        equations = _tilt_equations(fitted, order, observations, plane)
        tilts[plane] = _solve_tilts(equations)[0]
        if observations.random is not None:
            # The landmarks are redrawn by the caller: their error must not be counted twice.
            covariance = _solve_tilts(equations, places_exact=True)[1]
            tilts[plane] += np.linalg.cholesky(covariance) @ observations.random.standard_normal(len(covariance))
    return {n: tilt_endplates(fitted[n], tilts[:, 2 * k], tilts[:, 2 * k + 1]) for k, n in enumerate(order)}


def endplate_lines(
    marks: Landmarks, views: Views, places: Mapping[int, np.ndarray], landmark_sd_mm: float
) -> list[EndplateLine]:
    """Reads the endplates whose two corners are marked on a film, of levels with a place (3,) RAS mm.

    `landmark_sd_mm` is the standard deviation of a corner along each axis of the film, mm in the patient.
    """
    found = []
    for plane, which in enumerate(VIEWS):
        first, second = ("right", "left") if plane == CORONAL else ("anterior", "posterior")
        for level, corners in marks.corners[which].items():
            if level not in places or level in levels.WITHOUT_BODY:
                continue
            place = places[level]
            steps = patches.plane(patches.local_axes(*views, place), plane)
            at = {name: steps.T @ patches.offset_mm(views[plane], c, place, steps) for name, c in corners.items()}
            for end in ("superior", "inferior"):
                if f"{first}_{end}" not in at or f"{second}_{end}" not in at:
                    continue
                line = at[f"{first}_{end}"] - at[f"{second}_{end}"]
                length = float(np.hypot(line[plane], line[2]))
                tilt = float(np.degrees(np.arctan2(-line[2], line[plane])))
                sd = float(np.hypot(CORNER_SD_DEG, np.degrees(np.sqrt(2) * landmark_sd_mm / length)))
                found.append(EndplateLine(level, end == "superior", plane, tilt, sd))
    return found


@functools.cache
def tilt_statistics() -> dict[tuple[str, int, str], tuple[float, float]]:
    """Mean and standard deviation in degrees by kind, plane and region, from `TABLE`."""
    found = {}
    for row in read_rows(TABLE):
        plane = SAGITTAL if row["plane"] == "sagittal" else CORONAL
        found[row["kind"], plane, row["region"]] = float(row["mean_deg"]), float(row["sd_deg"])
    return found


def tilt_deg(normal: np.ndarray, plane: int) -> float:
    """The angle of a normal (3,) from the vertical in a plane, degrees."""
    return float(np.degrees(np.arctan2(normal[plane], normal[2])))


def lean_and_wedge_deg(plates: Endplates, plane: int) -> tuple[float, float]:
    """Mean tilt of the two endplates, and the upper tilt minus the lower one, degrees."""
    upper, lower = (tilt_deg(normal, plane) for normal in (plates.superior_normal, plates.inferior_normal))
    return (upper + lower) / 2, upper - lower


def tilt_endplates(plates: Endplates, superior: np.ndarray, inferior: np.ndarray) -> Endplates:
    """Endplates with new tilts, (2,) degrees each; heights at the front and the back follow."""
    up, down = (unit(np.array([*np.tan(np.radians(tilt)), 1.0])) for tilt in (superior, inferior))
    middle = (superior[SAGITTAL] + inferior[SAGITTAL]) / 2
    opening = sum(sign * np.tan(np.radians(tilt[SAGITTAL] - middle)) for sign, tilt in ((1, superior), (-1, inferior)))
    change = float(opening) * plates.depth_mm / 2
    front, back = plates.middle_mm - change, plates.middle_mm + change
    return replace(plates, superior_normal=up, inferior_normal=down, anterior_mm=front, posterior_mm=back)


def _solid_body(vertebra: Vertebra) -> tuple[Volume, Volume]:
    """The vertebra's largest part without holes (bool), and its probability on voxels of half the size."""
    if vertebra.level in levels.WITHOUT_BODY:
        raise InputError(f"{vertebra.name} has no ordinary vertebral body, so it has no pair of endplates.")
    mask = largest_part(vertebra.probability >= THRESHOLD)
    if not mask.any():
        raise InputError(f"The reconstruction of {vertebra.name} is empty, so it has no endplates.")
    # Cropped with a margin wider than the smoothing.
    box = tuple(slice(max(0, part.start - 5), part.stop + 5) for part in ndimage.find_objects(mask.astype(int))[0])
    probability, mask = vertebra.probability[box], mask[box]
    affine = vertebra.affine
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    # Fragments would lengthen the columns and holes would stop them.
    solid = ndimage.binary_fill_holes(mask)
    values = np.where(solid & ~mask, 1.0, np.where(mask, probability, np.minimum(probability, 0.49)))
    # Half-size voxels remove a mask's steps; smoothing by a whole voxel of 1.5 mm would round off the rim and tilt the
    # endplates by 1.5 degrees.
    half = np.diag([0.5, 0.5, 0.5, 1.0])
    half[:3, 3] = -0.25
    coarse = torch.from_numpy(values.astype(np.float32))[None, None]
    # In a sixth of scipy's time.
    fine = functional.interpolate(coarse, scale_factor=2, mode="trilinear")[0, 0].numpy()
    return Volume(solid, affine), Volume(ndimage.gaussian_filter(fine, 1.0), affine @ half)


def _exit_mm(field: Volume, starts: np.ndarray, way: np.ndarray, reach: float) -> np.ndarray:
    """(N,) mm from starts (N, 3) to the surface along a unit vector; NaN for a start outside or no surface within reach."""
    steps = np.arange(0.0, reach + _STEP_MM, _STEP_MM)
    points = starts[:, None] + steps[:, None] * way
    values = ndimage.map_coordinates(field.data, np.moveaxis(field.index(points), -1, 0), order=1, mode="nearest")
    k = (values < THRESHOLD).argmax(axis=1)
    found, rows = k > 0, np.arange(len(k))
    before, after = values[rows, k - 1], values[rows, k]
    part = np.divide(before - THRESHOLD, before - after, out=np.zeros(len(k)), where=found)
    return np.where(found, steps[k - 1] + _STEP_MM * part, np.nan)


def _fit_plane(offsets: np.ndarray, heights: np.ndarray, vertebra: Vertebra) -> np.ndarray:
    """(3,) height, slope to the right and slope to the front: trimmed least squares over the columns."""
    met = np.isfinite(heights)
    if met.mean() < 0.5:
        raise InputError(f"No vertebral body with two endplates was found in {vertebra.name}: look at its shape.")
    system, heights = np.insert(offsets, 0, 1.0, axis=1)[met], heights[met]
    keep = np.ones(len(heights), bool)
    for _ in range(5):
        plane = np.linalg.lstsq(system[keep], heights[keep], rcond=None)[0]
        residual = np.abs(heights - system @ plane)
        # Residuals below half a voxel come from the grid: trimming them would fit the plane to one step of it.
        keep = residual <= max(float(np.quantile(residual, _KEPT_COLUMNS)), vertebra.spacing_mm / 2)
    return plane


def _tilt_equations(
    fitted: Mapping[int, Endplates], order: Sequence[int], observations: Observations, plane: int
) -> list[_Equation]:
    """What is known about the tilts in a plane; endplate 2k is the upper and 2k + 1 the lower one of level k in `order`."""
    known, places = tilt_statistics(), observations.places
    upper = {level: 2 * k for k, level in enumerate(order)}
    placed = [n for n in levels.VERTEBRAE if n in places or n in upper]
    found: list[_Equation] = []
    for level in order:
        here, top = body_region(level), upper[level]
        lean, wedge = {top: 0.5, top + 1: 0.5}, {top: 1.0, top + 1: -1.0}
        measured = lean_and_wedge_deg(fitted[level], plane)
        for weights, value, kind in zip((lean, wedge), measured, ("shape_lean", "shape_wedge"), strict=True):
            mean, sd = known[kind, plane, here]
            found.append((weights, value - mean, sd, {}))
        found.append((wedge, *known["wedge", plane, here], {}))
        above, below = (levels.neighbour(placed, level, step) for step in (-1, 1))
        if below in upper:
            found.append(({top + 1: 1.0, upper[below]: -1.0}, *known["disc", plane, here], {}))
        ends = [n if n in places else None for n in (above, below)]
        if level in places and any(ends):
            kind = "chord" if all(ends) else "chord_above" if ends[0] else "chord_below"
            first, last = (n or level for n in ends)
            chord = places[first] - places[last]
            per_mm = float(np.degrees(1 / np.hypot(chord[plane], chord[2])))
            effect = {n: sign * per_mm * float(observations.sd_mm[n][plane]) for n, sign in ((first, 1), (last, -1))}
            mean, sd = known[kind, plane, here]
            found.append((lean, tilt_deg(chord, plane) - mean, sd, effect))
    for line in observations.lines:
        if line.level in upper and line.plane == plane:
            found.append(({upper[line.level] + (0 if line.superior else 1): 1.0}, line.tilt_deg, line.sd_deg, {}))
    return found


def _solve_tilts(equations: Sequence[_Equation], places_exact: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Generalised least squares: the tilts (n,) and their covariance (n, n), degrees; places exact or with their errors."""
    weights, values, sds, effects = zip(*equations, strict=True)
    rows = np.array([[row.get(n, 0.0) for n in range(1 + max(map(max, weights)))] for row in weights])
    covariance = np.diag(np.square(sds))
    if not places_exact:
        placed = sorted({level for effect in effects for level in effect})
        by_place = np.array([[effect.get(level, 0.0) for level in placed] for effect in effects])
        covariance = covariance + by_place @ by_place.T
    weighted = np.linalg.solve(covariance, np.column_stack([rows, values]))
    system = rows.T @ weighted
    spread = np.linalg.inv(system[:, :-1])
    return spread @ system[:, -1], spread
