"""Reconstructed vertebrae: where each stands, how far it is rotated, and the spine that they make.

If a landmark is off, the network's shape is off-centre in its cube. That offset estimates the landmark's error; the patch is
cropped again there. `tables/centroid_shifts.csv` holds how much of the error a shape shows, measured on a few people the
networks had not learned from. A landmark marks a vertebra's centre of mass, which the network is trained on, or the middle of
its body, 8 to 18 mm in front of that (`tables/body_offsets.csv`). benchmarks/tables/anatomy.py makes both tables.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import ndimage, optimize

from transvert import levels
from transvert.clinical.landmarks import VERTEBRA, Landmarks
from transvert.data import patches
from transvert.data.patches import SIZE, SPACING_MM
from transvert.drr.geometry import VIEWS, View
from transvert.imaging.volume import Volume, cube_affine
from transvert.io import PACKAGE, InputError, read_rows
from transvert.model import metrics

THRESHOLD = 0.5  # A voxel is part of the vertebra if its probability is at least this.
AXES = ("right", "front", "up")  # Of a cube.
REGIONS = {
    "C": range(3, 8),
    "T1-T6": range(8, 14),
    "T7-T12": (*range(14, 20), 28),
    "L1-L3": range(20, 23),
    "L4-L6": range(23, 26),
}
"""Rows of the tables of bodies and endplates: region to VerSe numbers."""
SHARE_SD = 0.15
"""Standard deviation between networks of the share that a shape shows: weights trained five times as long showed that much
more than those of the table. It keeps a shift from overshooting where landmarks are very uncertain."""
OUT_OF_LINE = np.array([0.25, -1.0, 1.5, -1.0, 0.25])
"""Weights of five neighbouring places: 0 on a straight line and on an even curve, so that no curve is flattened."""
_FREEDOM = 4.0
_EXACT_MM = 1e-3  # A smaller standard deviation counts as this.
WARN_SD = 2.5  # A shift of more standard deviations of the landmark than this is reported.

Points = Mapping[int, np.ndarray]  # Level to (3,).
Pixels = Mapping[str, Points]  # View to level to (2,) row and column.
Views = tuple[View, View]  # AP and lateral.
Predict = Callable[[np.ndarray], np.ndarray]  # Images (N, 2, 4, S, S) of `patches.network_input` to (N, S, S, S).


@dataclass(frozen=True)
class Vertebra:
    """One reconstructed vertebra and its place in the patient.

    The columns of `axes` are the cube's x, y and z as right-handed unit vectors in RAS, each close to RAS's own axis.
    """

    level: int  #: VerSe number.
    centroid_ras: np.ndarray  #: (3,) RAS mm, the centre of the cube.
    probability: np.ndarray  #: (S, S, S) float32 in 0..1, [x, y, z] along the cube's axes.
    spacing_mm: float  #: Voxel size of the cube.
    axes: np.ndarray = field(default_factory=lambda: np.eye(3))  #: (3, 3).

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) voxel index to RAS mm."""
        affine = np.eye(4)
        affine[:3, :3] = self.axes * self.spacing_mm
        affine[:3, 3] = self.centroid_ras - affine[:3, :3] @ np.full(3, (len(self.probability) - 1) / 2)
        return affine

    @property
    def name(self) -> str:
        """The level's name, such as "L1"."""
        return levels.name(self.level)


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector with length 1."""
    return vector / np.linalg.norm(vector)


def body_region(level: int) -> str:
    """The name in `REGIONS` of a level below C2."""
    return next(name for name, numbers in REGIONS.items() if level in numbers)


def largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask (face neighbours), bool; an empty mask stays empty."""
    parts, count = ndimage.label(mask)
    return mask if count < 2 else parts == 1 + np.bincount(parts.ravel())[1:].argmax()


@functools.cache
def shift_statistics() -> dict[str, np.ndarray]:
    """By region "C", "T" or "L" a (3, 3) array with a column per axis of `AXES`.

    Its rows are the offset in mm of a shape whose landmark is exact, the share of a landmark's error that the shape shows,
    and the standard deviation in mm of the rest.
    """
    rows = {(row["region"], row["axis"]): row for row in read_rows(PACKAGE / "tables" / "centroid_shifts.csv")}
    return {
        name: np.array([[float(rows[name, axis][kind]) for axis in AXES] for kind in ("offset_mm", "share", "sd_mm")])
        for name in metrics.REGIONS
    }


@functools.cache
def body_offsets() -> dict[str, dict[str, float]]:
    """By region of `REGIONS`: back_mm and up_mm from a body's middle to the centre of mass, and their sd."""
    columns = ("back_mm", "back_sd_mm", "up_mm", "up_sd_mm")
    rows = read_rows(PACKAGE / "tables" / "body_offsets.csv")
    return {row["region"]: {name: float(row[name]) for name in columns} for row in rows}


def centroid_offset_mm(probability: np.ndarray, spacing_mm: float) -> np.ndarray | None:
    """(3,) from the cube's centre to the shape's centre of mass along the cube's axes; None for an empty shape."""
    inside = np.argwhere(probability >= THRESHOLD)
    return (inside.mean(0) - (len(probability) - 1) / 2) * spacing_mm if len(inside) else None


def shift_share(landmark_sd_mm: Any, share: Any, sd_mm: Any) -> Any:
    """The factor from a shape's offset to the most likely landmark error, for numbers or arrays (normal errors)."""
    return landmark_sd_mm**2 * share / ((share**2 + SHARE_SD**2) * landmark_sd_mm**2 + sd_mm**2)


def refine_centroid(vertebra: Vertebra, sd_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest place (3,) RAS mm of a vertebra predicted at a place with errors, and its sd (3,) along the cube's axes."""
    found = centroid_offset_mm(vertebra.probability, vertebra.spacing_mm)
    if found is None:
        return vertebra.centroid_ras, sd_mm
    offset, share, rest = shift_statistics()[levels.region(vertebra.level)]
    factor = shift_share(sd_mm, share, rest)
    return vertebra.centroid_ras + vertebra.axes @ (factor * (found - offset)), sd_mm * np.sqrt(1 - factor * share)


@functools.cache
def alignment_sd_mm() -> dict[str, np.ndarray]:
    """By region "C", "T" or "L": (3,) standard deviation in mm of how far vertebrae are out of line (`OUT_OF_LINE`)."""
    rows = {(row["region"], row["axis"]): row for row in read_rows(PACKAGE / "tables" / "alignment.csv")}
    return {name: np.array([float(rows[name, axis]["sd_mm"]) for axis in AXES]) for name in metrics.REGIONS}


def runs_of_five(found: Collection[int]) -> list[tuple[int, ...]]:
    """Each five neighbouring levels below C2 of those found, head to tail."""
    order = [n for n in levels.in_order(set(found)) if n not in levels.WITHOUT_BODY]
    fives = [tuple(order[n : n + 5]) for n in range(len(order) - 4)]
    return [five for five in fives if len(levels.between(five)) == 5]


def align_places(points: Points, sd_mm: Points) -> tuple[Points, Points]:
    """The likeliest places of vertebrae that stand in line as those of people do.

    Places have errors of `sd_mm` to the right, front and head; one of 0 mm stays. What is out of line by far more than people's
    vertebrae are counts less (Student's t with `_FREEDOM` degrees of freedom), as where one has slipped. Returns the places
    and their standard deviations.
    """
    order, fives = list(points), runs_of_five(points)
    made, spread = np.empty((len(order), 3)), np.empty((len(order), 3))
    for axis in range(3):
        given = np.array([points[n][axis] for n in order])
        certain = 1 / np.maximum([sd_mm[n][axis] for n in order], _EXACT_MM) ** 2
        lines = np.zeros((len(fives), len(order)))
        for row, five in zip(lines, fives, strict=True):
            sd = alignment_sd_mm()[levels.region(five[2])][axis]
            row[[order.index(n) for n in five]] = OUT_OF_LINE / sd
        count, place = np.ones(len(fives)), given
        for _ in range(5):
            matrix = np.diag(certain) + lines.T @ (count[:, None] * lines)
            place = np.linalg.solve(matrix, certain * given)
            count = (_FREEDOM + 1) / (_FREEDOM + (lines @ place) ** 2)
        made[:, axis], spread[:, axis] = place, np.sqrt(np.diag(np.linalg.inv(matrix)))
    return dict(zip(order, made, strict=True)), dict(zip(order, spread, strict=True))


def refine_centroids(
    films: Sequence[np.ndarray], views: Views, pixels: Pixels, points: Points, sd_mm: Points, predict: Predict
) -> tuple[Points, Points, Pixels]:
    """Predicts all vertebrae once and moves each towards where its shape says that it stands.

    Arguments as in `predict_vertebrae`. `sd_mm` is the standard deviation of `points`; if all are 0, nothing is predicted
    or moved. Returns the new points, their standard deviations, and their pixels on both films.
    """
    if not any(sd_mm[level].any() for level in points):
        return points, sd_mm, pixels
    vertebrae = predict_vertebrae(films, views, pixels, points, predict)
    refined = {v.level: refine_centroid(v, sd_mm[v.level]) for v in vertebrae}
    moved, sds = align_places(*({level: pair[i] for level, pair in refined.items()} for i in (0, 1)))
    projected = {w: {n: view.project(at) for n, at in moved.items()} for w, view in zip(VIEWS, views, strict=True)}
    return moved, sds, projected


def warn_of_shifts(points: Points, moved: Points, sd_mm: Points) -> list[str]:
    """A sentence for each vertebra that moved further than its landmarks' standard deviation explains."""
    warnings = []
    for level, place in moved.items():
        way = place - points[level]
        if sd_mm[level].all() and np.linalg.norm(way / sd_mm[level]) > WARN_SD:
            seen = f"{levels.name(level)}: the films show it {np.linalg.norm(way):.0f} mm from where it is marked"
            warnings.append(f"{seen}; look at its landmarks.")
    return warnings


def predict_vertebrae(
    films: Sequence[np.ndarray], views: Views, pixels: Pixels, points: Points, predict: Predict
) -> list[Vertebra]:
    """Crops the patches around points, and predicts each vertebra in a cube along the rays through its point.

    Films are (rows, columns), AP and lateral, brighter is more attenuation; `points` are RAS mm, `pixels` their landmarks.
    """
    clicks = [pixels[which] for which in VIEWS]
    patched = [patches.crop_patches(films, views, clicks, level, at) for level, at in points.items()]
    probabilities = predict(np.array([images for images, _ in patched], np.float32).reshape(-1, 2, 4, SIZE, SIZE))
    return [
        Vertebra(level, point, probability, SPACING_MM, axes)
        for (level, point), probability, (_, axes) in zip(points.items(), probabilities, patched, strict=True)
    ]


def to_vertebra_centroids(marks: Landmarks, views: Views) -> Landmarks:
    """Moves landmarks of bodies, checked by `Landmarks.place`, to the centres of mass of whole vertebrae.

    Each vertebra is assumed perpendicular to the line between its neighbours. C1, C2 and levels marked on one film stay.
    """
    if marks.centroids_of == VERTEBRA:
        return marks
    points = marks.place(*views)[0]
    moved = {which: dict(marks.centroids[which]) for which in VIEWS}
    order = list(points)
    for n, level in enumerate(order):
        if level in levels.WITHOUT_BODY:
            continue
        upper, lower = points[order[max(n - 1, 0)]], points[order[min(n + 1, len(order) - 1)]]
        up = unit(upper - lower) if len(order) > 1 else np.array([0.0, 0.0, 1.0])
        front = unit(np.cross(up, [1.0, 0.0, 0.0]))
        offset = body_offsets()[body_region(level)]
        centre = points[level] - offset["back_mm"] * front + offset["up_mm"] * up
        for which, view in zip(VIEWS, views, strict=True):
            moved[which][level] = moved[which][level] + view.project(centre) - view.project(points[level])
    return replace(marks, centroids=moved, centroids_of=VERTEBRA)


def place_sd_mm(centroids_of: str, level: int, landmark_sd_mm: float) -> np.ndarray:
    """(3,) standard deviation in mm of a triangulated place to the right, front and head; both films show its height."""
    sd = landmark_sd_mm * np.array([1, 1, np.sqrt(0.5)])
    if centroids_of == VERTEBRA or level in levels.WITHOUT_BODY:
        return sd
    offset = body_offsets()[body_region(level)]
    return np.hypot(sd, [0, offset["back_sd_mm"], offset["up_sd_mm"]])


def simulate_clicks(marks: Landmarks, views: Views, landmark_sd_mm: float, random: np.random.Generator) -> Landmarks:
    """Adds normal errors to landmarks (centroids, corners and S1's endplate).

    `landmark_sd_mm` is their standard deviation along rows and along columns, mm in the patient at the isocentre's depth.
    """
    centroids, ends, corners = dict(marks.centroids), dict(marks.s1_endplate), dict(marks.corners)
    for which, view in zip(VIEWS, views, strict=True):
        sd = landmark_sd_mm * view.magnification(marks.isocentre) / np.array(view.pixel_mm)

        def moved(pixels: Mapping[Any, np.ndarray], sd: np.ndarray = sd) -> dict[Any, np.ndarray]:
            return {name: pixel + random.normal(0, sd) for name, pixel in pixels.items()}

        centroids[which], ends[which] = moved(marks.centroids[which]), moved(marks.s1_endplate[which])
        corners[which] = {n: moved(body) for n, body in marks.corners[which].items()}
    return replace(marks, centroids=centroids, s1_endplate=ends, corners=corners)


def sort_vertebrae(vertebrae: Sequence[Vertebra]) -> list[Vertebra]:
    """Sorts vertebrae from head to tail; refuses a level that is not a vertebra or occurs twice."""
    given = [v.level for v in vertebrae]
    for level in given:
        if level not in levels.VERTEBRAE or given.count(level) > 1:
            raise InputError(f"{levels.name(level)} is no vertebra or is there twice; give each of C1-L6 once at most.")
    return sorted(vertebrae, key=lambda v: levels.VERTEBRAE.index(v.level))


def missing_levels(vertebrae: Sequence[Vertebra]) -> list[str]:
    """Names of the levels between the top and the bottom vertebra that are absent or empty; never those of `levels.RARE`."""
    present = {v.level for v in vertebrae if (v.probability >= THRESHOLD).any()}
    return [levels.name(n) for n in levels.between([v.level for v in vertebrae]) if n not in present]


def assemble_spine(vertebrae: Sequence[Vertebra]) -> Volume:
    """Assembles vertebrae, in any order and with oblique cubes, into one label volume.

    Returns uint8 VerSe numbers on an axis-aligned grid of 1 mm around all cubes. A voxel gets the level with the highest
    probability there, if that is at least 0.5; only the largest connected part of each level is kept. No vertebra, or a level
    twice, raises an InputError.
    """
    vertebrae = sort_vertebrae(vertebrae)
    if not vertebrae:
        raise InputError("There is no vertebra to assemble: reconstruct at least one level.")
    cubes = [Volume(v.probability.astype(np.float32), v.affine) for v in vertebrae]
    corners = np.array([cube.corners() for cube in cubes])
    low = corners.min((0, 1)) + 0.5
    shape = np.ceil(corners.max((0, 1)) - corners.min((0, 1))).astype(int)
    grid = cube_affine(low, 1, 1.0)
    best = np.full(shape, np.nextafter(np.float32(THRESHOLD), np.float32(0)), np.float32)
    labels = np.zeros(shape, np.uint8)
    for vertebra, cube, ends in zip(vertebrae, cubes, corners - low, strict=True):
        first = np.floor(ends.min(0)).astype(int).clip(0)
        block = tuple(slice(a, b) for a, b in zip(first, np.ceil(ends.max(0)).astype(int) + 1, strict=True))
        mapping = np.linalg.inv(cube.affine) @ grid
        offset = mapping[:3, :3] @ first + mapping[:3, 3]
        here = ndimage.affine_transform(cube.data, mapping[:3, :3], offset, best[block].shape, order=1)
        higher = here > best[block]
        best[block][higher] = here[higher]
        labels[block][higher] = vertebra.level
    for level, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is not None:
            own = labels[box] == level
            labels[box][own & ~largest_part(own)] = 0
    return Volume(labels, grid)


def axial_rotation_deg(vertebra: Vertebra, near_deg: float | None = None) -> float:
    """Measures the axial rotation, degrees: positive if the vertebra's front is turned to the patient's left.

    It is the angle from `symmetry_normal` to the frontal plane, seen from the head (Scoliosis Research Society's terminology:
    Stokes, Spine 1994;19:236-248). How far the vertebra leans forward or back does not change it.
    """
    right = symmetry_normal(vertebra, near_deg)
    return float(np.degrees(np.arctan2(right[1], right[0])))


def symmetry_normal(vertebra: Vertebra, near_deg: float | None = None) -> np.ndarray:
    """The unit normal (3,) of the symmetry plane, to the patient's right: there the mirrored vertebra overlaps itself best.

    The search starts at `near_deg`, the axial rotation of a nearly equal vertebra; by default at several within 45 degrees.
    An empty vertebra raises an InputError. The method and its constants are this companion's choice.
    """
    mask = largest_part(vertebra.probability >= THRESHOLD)
    if not mask.any():
        raise InputError(f"The reconstruction of {vertebra.name} is empty, so it has no rotation.")
    points = Volume(mask, vertebra.affine).world(np.argwhere(mask))
    # Smoothed, so that mirrored points need not match to the voxel.
    smooth = ndimage.gaussian_filter(mask.astype(np.float32), 1.5 / vertebra.spacing_mm)
    field = Volume(smooth, vertebra.affine)
    centre = points.mean(0)
    points = points[:: max(1, len(points) // 2000)] - centre

    def normal_of(plane: np.ndarray) -> np.ndarray:
        turn, lean = np.radians(plane[:2])
        return np.array([np.cos(turn) * np.cos(lean), np.sin(turn) * np.cos(lean), np.sin(lean)])

    def mismatch(plane: np.ndarray) -> float:
        """Minus the mean of the smoothed vertebra at its mirrored points; plane: turn, lean (degrees) and offset (mm)."""
        normal = normal_of(plane)
        mirrored = points - 2 * np.outer(points @ normal - plane[2], normal)
        return -float(ndimage.map_coordinates(smooth, field.index(mirrored + centre).T, order=1).mean())

    turns = np.arange(-45.0, 46.0, 7.5) if near_deg is None else [near_deg]
    start = min((np.array([turn, 0.0, 0.0]) for turn in turns), key=mismatch)
    simplex = start + np.array([[0, 0, 0], [5, 0, 0], [0, 5, 0], [0, 0, 2]])
    options = {"initial_simplex": simplex, "xatol": 0.05, "fatol": 1e-6, "maxiter": 150}
    return normal_of(optimize.minimize(mismatch, start, method="Nelder-Mead", options=options).x)
