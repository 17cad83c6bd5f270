"""What a reader marks: the middles of bodies, or whole vertebrae, with an unsteady hand.

A network is shown where a whole vertebra's centre of mass is seen, arch and processes included, 8 to 18 mm behind the
middle of its body. A reader sees bodies. So landmarks may be of either, and those of bodies are moved back along the
vertebra by what was measured (`tables/bodies.csv`, benchmarks/anatomy.py).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from transvert import levels, tilts
from transvert.endplates import unit
from transvert.files import read_rows
from transvert.geometry import VIEWS, View
from transvert.landmarks import VERTEBRA, Landmarks

TABLE = Path(__file__).parent / "tables" / "bodies.csv"
_RIGHT = np.array([1.0, 0.0, 0.0])


@functools.cache
def usual() -> dict[str, tuple[float, float]]:
    """By region of `tilts.REGIONS`: how far a vertebra's centre of mass lies behind and above its body's middle, mm."""
    return {region: (float(row["back_mm"]), float(row["up_mm"])) for region, row in _table().items()}


@functools.cache
def _table() -> dict[str, dict[str, str]]:
    return {row["region"]: row for row in read_rows(TABLE)}


def of_vertebrae(marks: Landmarks, views: tuple[View, View]) -> Landmarks:
    """Landmarks of whole vertebrae, from those of bodies; the same where they are that already.

    Each vertebra is taken to stand square to the line from its upper to its lower neighbour. C1 and C2, whose middle a
    reader marks, stay where they are, and so does a level that one view alone marks, as nobody places it.

    Raises:
        InputError: as `Landmarks.place`.
    """
    if marks.of == VERTEBRA:
        return marks
    points = marks.place(*views)[0]
    moved = {which: dict(marks.centroids[which]) for which in VIEWS}
    chain = list(points)
    for n, level in enumerate(chain):
        if level in levels.WITHOUT_BODY:
            continue
        upper, lower = points[chain[max(n - 1, 0)]], points[chain[min(n + 1, len(chain) - 1)]]
        up = unit(upper - lower) if len(chain) > 1 else np.array([0.0, 0.0, 1.0])
        back, above = usual()[tilts.region(level)]
        centre = points[level] - back * unit(np.cross(up, _RIGHT)) + above * up
        for which, view in zip(VIEWS, views, strict=True):
            moved[which][level] = moved[which][level] + view.project(centre) - view.project(points[level])
    return replace(marks, centroids=moved, of=VERTEBRA)


def unsteady_mm(of: str, level: int, click_mm: float) -> np.ndarray:
    """(3,) standard deviation of a vertebra's place to the right, the front and the head; both views tell its height.

    Args:
        of: what is marked, `landmarks.VERTEBRA` or `BODY`: how far behind a body the whole lies is not known exactly.
        level: VerSe number.
        click_mm: standard deviation of the landmarks, down and across in each view, life-sized.
    """
    sd = click_mm * np.array([1, 1, np.sqrt(0.5)])
    if of == VERTEBRA or level in levels.WITHOUT_BODY:
        return sd
    row = _table()[tilts.region(level)]
    return np.hypot(sd, [0, float(row["back_sd_mm"]), float(row["up_sd_mm"])])


def click(marks: Landmarks, views: tuple[View, View], sd_mm: float, random: np.random.Generator) -> Landmarks:
    """Landmarks as an unsteady hand would click them: centroids, corners and S1's endplate.

    Args:
        marks: the steady ones.
        views: AP and lateral.
        sd_mm: standard deviation of each click down and across, life-sized: on the detector it is as much larger as the
            isocentre is magnified.
        random: the hand.
    """
    found = marks
    for which, view in zip(VIEWS, views, strict=True):
        sd = sd_mm * view.magnification(marks.isocentre) / np.array(view.pixel_mm)

        def moved(pixels: Mapping[Any, np.ndarray], sd: np.ndarray = sd) -> dict[Any, np.ndarray]:
            return {name: pixel + random.normal(0, sd) for name, pixel in pixels.items()}

        found = replace(
            found,
            centroids={**found.centroids, which: moved(marks.centroids[which])},
            s1_endplate={**found.s1_endplate, which: moved(marks.s1_endplate[which])},
            corners={**found.corners, which: {n: moved(body) for n, body in marks.corners[which].items()}},
        )
    return found
