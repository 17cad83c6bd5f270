"""Where each vertebra stands: from landmarks with a stated error, corrected by what the network sees.

If a landmark is off, the network's shape is off-centre in its cube. That offset estimates the landmark's error; the patch is
cropped again there. `tables/centroid_shifts.csv` holds how much of the error a shape shows, measured on people the networks
had not learned from (benchmarks/tables/anatomy.py); there are few of them.

A landmark marks a vertebra's centre of mass, or the middle of its body, which is what a reader sees. The centre of mass,
which the network is trained on, lies 8 to 18 mm behind that: `tables/body_offsets.csv`, made by the same script.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from transvert import levels
from transvert.clinical import endplates
from transvert.clinical.endplates import unit
from transvert.clinical.landmarks import VERTEBRA, Landmarks
from transvert.clinical.vertebra import THRESHOLD, Vertebra
from transvert.data import patches
from transvert.data.patches import SIZE, SPACING_MM
from transvert.drr.geometry import VIEWS, View
from transvert.io import PACKAGE, read_rows
from transvert.model import metrics

SHIFTS_TABLE = PACKAGE / "tables" / "centroid_shifts.csv"
BODIES_TABLE = PACKAGE / "tables" / "body_offsets.csv"
AXES = ("right", "front", "up")
"""Axes of a cube."""
SHARE_SD = 0.15
"""Standard deviation between networks of the share that a shape shows: weights trained five times as long showed that much
more than those of the table. It keeps a shift from overshooting where landmarks are very uncertain."""
WARN_SD = 2.5
"""A shift of more standard deviations of the landmark than this is reported."""

Points = Mapping[int, np.ndarray]
"""Level to (3,)."""
Pixels = Mapping[str, Mapping[int, np.ndarray]]
"""View to level to (2,) row and column."""
Predict = Callable[[np.ndarray], np.ndarray]
"""Takes images (N, 2, 2, S, S), as `samples.network_input` makes them, to probabilities (N, S, S, S)."""


@functools.cache
def shift_statistics() -> dict[str, np.ndarray]:
    """By region of `metrics.REGIONS` a (3, 3) array from `SHIFTS_TABLE`, a column per axis of `AXES`.

    Its rows are the offset in mm of a shape whose landmark is exact, the share of a landmark's error that the shape shows,
    and the standard deviation in mm of the rest.
    """
    rows = {(row["region"], row["axis"]): row for row in read_rows(SHIFTS_TABLE)}
    kinds = ("offset_mm", "share", "sd_mm")
    return {
        name: np.array([[float(rows[name, axis][kind]) for axis in AXES] for kind in kinds]) for name in metrics.REGIONS
    }


@functools.cache
def body_offsets() -> dict[str, dict[str, float]]:
    """By region of `endplates.REGIONS`: back_mm and up_mm from a body's middle to the centre of mass, and their sd."""
    columns = ("back_mm", "back_sd_mm", "up_mm", "up_sd_mm")
    return {row["region"]: {name: float(row[name]) for name in columns} for row in read_rows(BODIES_TABLE)}


def centroid_offset_mm(probability: np.ndarray, spacing_mm: float) -> np.ndarray | None:
    """(3,) from the cube's centre to the shape's centre of mass along the cube's axes; None for an empty shape."""
    inside = np.argwhere(probability >= THRESHOLD)
    return (inside.mean(0) - (len(probability) - 1) / 2) * spacing_mm if len(inside) else None


def shift_share(landmark_sd_mm: Any, share: Any, sd_mm: Any) -> Any:
    """The factor from a shape's offset to the most likely landmark error, for numbers or arrays (normal errors)."""
    return landmark_sd_mm**2 * share / ((share**2 + SHARE_SD**2) * landmark_sd_mm**2 + sd_mm**2)


def refine_centroid(vertebra: Vertebra, sd_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimates where a vertebra stands from its shape around the landmarks' place.

    Args:
        vertebra: as predicted there.
        sd_mm: (3,) standard deviation of that place along the cube's axes.

    Returns:
        (3,) RAS mm, and (3,) its standard deviation along the cube's axes. An empty vertebra stays where it is.
    """
    found = centroid_offset_mm(vertebra.probability, vertebra.spacing_mm)
    if found is None:
        return vertebra.centroid_ras, sd_mm
    offset, share, rest = shift_statistics()[levels.region(vertebra.level)]
    factor = shift_share(sd_mm, share, rest)
    return vertebra.centroid_ras + vertebra.axes @ (factor * (found - offset)), sd_mm * np.sqrt(1 - factor * share)


def refine_centroids(
    films: Sequence[np.ndarray],
    views: tuple[View, View],
    pixels: Pixels,
    points: Points,
    sd_mm: Points,
    predict: Predict,
) -> tuple[Points, Points, Pixels]:
    """Predicts all vertebrae once and moves each towards where its shape says that it stands.

    Args:
        films, views, pixels, points, predict: as in `predict_vertebrae`.
        sd_mm: level to (3,), standard deviation of `points`. If all are 0, nothing is predicted or moved.

    Returns:
        The new points, their standard deviations, and their pixels on both films.
    """
    if not any(sd_mm[level].any() for level in points):
        return points, sd_mm, pixels
    vertebrae = predict_vertebrae(films, views, pixels, points, predict)
    refined = {v.level: refine_centroid(v, sd_mm[v.level]) for v in vertebrae}
    moved = {level: point for level, (point, _) in refined.items()}
    projected = {w: {n: view.project(at) for n, at in moved.items()} for w, view in zip(VIEWS, views, strict=True)}
    return moved, {level: sd for level, (_, sd) in refined.items()}, projected


def warn_of_shifts(points: Points, moved: Points, sd_mm: Points) -> list[str]:
    """A sentence for each vertebra that moved further than its landmarks' standard deviation explains."""
    ways = {level: place - points[level] for level, place in moved.items() if sd_mm[level].all()}
    return [
        f"{levels.name(level)}: the films show it {np.linalg.norm(way):.0f} mm from where it is marked; look at its landmarks."
        for level, way in ways.items()
        if np.linalg.norm(way / sd_mm[level]) > WARN_SD
    ]


def predict_vertebrae(
    films: Sequence[np.ndarray], views: tuple[View, View], pixels: Pixels, points: Points, predict: Predict
) -> list[Vertebra]:
    """Crops the patches around points, and predicts each vertebra in a cube along the rays through its point.

    Args:
        films: AP and lateral pixels, brighter is more attenuation.
        views: AP and lateral geometry.
        pixels: the landmarks on the films.
        points: level to (3,) RAS mm.
        predict: the network.
    """
    patched = [patches.crop_patches(films, views, [pixels[w][n] for w in VIEWS], at) for n, at in points.items()]
    probabilities = predict(np.array([images for images, _ in patched], np.float32).reshape(-1, 2, 2, SIZE, SIZE))
    return [
        Vertebra(level, point, probability, SPACING_MM, axes)
        for (level, point), probability, (_, axes) in zip(points.items(), probabilities, patched, strict=True)
    ]


def to_vertebra_centroids(marks: Landmarks, views: tuple[View, View]) -> Landmarks:
    """Moves landmarks of bodies to the centres of mass of whole vertebrae; other landmarks stay.

    Each vertebra is assumed perpendicular to the line between its neighbours. C1, C2 and levels marked on one film stay.

    Raises:
        InputError: as `Landmarks.place`.
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
        offset = body_offsets()[endplates.region(level)]
        front = unit(np.cross(up, [1.0, 0.0, 0.0]))
        centre = points[level] - offset["back_mm"] * front + offset["up_mm"] * up
        for which, view in zip(VIEWS, views, strict=True):
            moved[which][level] = moved[which][level] + view.project(centre) - view.project(points[level])
    return replace(marks, centroids=moved, centroids_of=VERTEBRA)


def place_sd_mm(centroids_of: str, level: int, landmark_sd_mm: float) -> np.ndarray:
    """(3,) standard deviation in mm of a triangulated place to the right, front and head; both films tell its height.

    Args:
        centroids_of: as in `Landmarks`; the offset of a `BODY` from the centre of mass varies.
        level: VerSe number.
        landmark_sd_mm: standard deviation of a landmark along each axis of its film, mm in the patient.
    """
    sd = landmark_sd_mm * np.array([1, 1, np.sqrt(0.5)])
    if centroids_of == VERTEBRA or level in levels.WITHOUT_BODY:
        return sd
    offset = body_offsets()[endplates.region(level)]
    return np.hypot(sd, [0, offset["back_sd_mm"], offset["up_sd_mm"]])


def simulate_clicks(
    marks: Landmarks, views: tuple[View, View], landmark_sd_mm: float, random: np.random.Generator
) -> Landmarks:
    """Adds normal errors to landmarks: centroids, corners and S1's endplate.

    Args:
        marks: the exact landmarks.
        views: AP and lateral.
        landmark_sd_mm: standard deviation along rows and along columns, mm in the patient; on the detector it is magnified
            as the isocentre is.
        random: source of the errors.
    """
    centroids, ends, corners = dict(marks.centroids), dict(marks.s1_endplate), dict(marks.corners)
    for which, view in zip(VIEWS, views, strict=True):
        sd = landmark_sd_mm * view.magnification(marks.isocentre) / np.array(view.pixel_mm)

        def moved(pixels: Mapping[Any, np.ndarray], sd: np.ndarray = sd) -> dict[Any, np.ndarray]:
            return {name: pixel + random.normal(0, sd) for name, pixel in pixels.items()}

        centroids[which], ends[which] = moved(marks.centroids[which]), moved(marks.s1_endplate[which])
        corners[which] = {n: moved(body) for n, body in marks.corners[which].items()}
    return replace(marks, centroids=centroids, s1_endplate=ends, corners=corners)
