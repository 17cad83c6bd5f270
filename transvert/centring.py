"""Vertebrae brought from where a hand has marked them towards where their radiographs show them.

A network that is shown a vertebra beside its patch's middle draws it beside its cube's middle: its shape undoes a part of
the click's error by itself. How large a part, and how far a shape's centre of mass lies off where nothing has strayed, was
measured in people whom networks had not learned from (`tables/centring.csv`, benchmarks/anatomy.py): few people, and
somebody else's thorax may be seen less well. From that, from where the shape lies and from how unsteady the hand was
follows where the vertebra stands most likely: there it is looked at once more. Where clicks are exact nothing moves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transvert import levels, metrics, patches
from transvert.files import read_rows
from transvert.geometry import VIEWS, View
from transvert.samples import SIZE, SPACING_MM
from transvert.vertebra import THRESHOLD, Vertebra

TABLE = Path(__file__).parent / "tables" / "centring.csv"
AXES = ("right", "front", "up")
"""Of a cube, from its low end to its high one."""
SHARE_SD = 0.15
"""By how much networks differ in what they undo: weights that had learned for five times as many steps as those of the table
undid so much more. Without it a place could be thrown beyond the vertebra where clicks are wild."""
FAR = 2.5
"""Standard deviations of a click: who is moved farther is told of."""

Places = Mapping[int, np.ndarray]
"""Level to (3,)."""
Clicks = Mapping[str, Mapping[int, np.ndarray]]
"""View to level to (2,) row and column."""


@functools.cache
def usual() -> dict[str, np.ndarray]:
    """By region of `metrics.REGIONS`: (3, 3), a column each axis of `AXES`.

    The rows are how far off its cube's middle a shape's centre of mass lies where the click was right, mm; the share of a
    click's error that the shape undoes; and the standard deviation of what is left, mm.
    """
    rows = {(row["region"], row["axis"]): row for row in read_rows(TABLE)}
    kinds = ("off_mm", "undone", "sd_mm")
    return {
        name: np.array([[float(rows[name, axis][kind]) for axis in AXES] for kind in kinds]) for name in metrics.REGIONS
    }


def offset_mm(probability: np.ndarray, spacing_mm: float) -> np.ndarray | None:
    """(3,) how far a shape's centre of mass lies from its cube's middle along the cube's axes; None if there is none."""
    inside = np.argwhere(probability >= THRESHOLD)
    return (inside.mean(0) - (len(probability) - 1) / 2) * spacing_mm if len(inside) else None


def centre(vertebra: Vertebra, click_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a vertebra stands most likely, and how sure that is.

    Args:
        vertebra: as a network has drawn it around the place of its landmarks.
        click_mm: (3,) standard deviation of that place along the cube's axes.

    Returns:
        (3,) RAS mm and (3,) the standard deviation along the cube's axes; of an empty vertebra those that were given.
    """
    found = offset_mm(vertebra.probability, vertebra.spacing_mm)
    if found is None:
        return vertebra.centroid_ras, click_mm
    off, undone, sd = usual()[levels.region(vertebra.level)]
    share = gain(click_mm, undone, sd)
    return vertebra.centroid_ras + vertebra.axes @ (share * (found - off)), click_mm * np.sqrt(1 - share * undone)


def gain(click_mm: Any, undone: Any, sd_mm: Any) -> Any:
    """Of what a shape lies off, how much is likeliest to be the click's: numbers or arrays.

    The click's error is normal, and of it a share is seen through another normal error.
    """
    return click_mm**2 * undone / ((undone**2 + SHARE_SD**2) * click_mm**2 + sd_mm**2)


def settle(
    films: Sequence[np.ndarray],
    views: tuple[View, View],
    clicks: Clicks,
    points: Places,
    click_mm: Places,
    answer: Callable[[np.ndarray], np.ndarray],
) -> tuple[Places, Places, Clicks]:
    """Where a first look at vertebrae says that they stand.

    Args:
        films, views, clicks, points, answer: as `look` takes them.
        click_mm: how unsteady each of `points` is, as `centre` takes it. Where all are exact nobody looks.

    Returns:
        Their places, RAS mm, how unsteady those are, and where the views see them.
    """
    if not any(click_mm[level].any() for level in points):
        return points, click_mm, clicks
    settled = {v.level: centre(v, click_mm[v.level]) for v in look(films, views, clicks, points, answer)}
    places = {level: place for level, (place, _) in settled.items()}
    seen = {w: {n: view.project(at) for n, at in places.items()} for w, view in zip(VIEWS, views, strict=True)}
    return places, {level: sd for level, (_, sd) in settled.items()}, seen


def strayed(points: Places, places: Places, click_mm: Places) -> list[str]:
    """A sentence for each vertebra that `settle` moved farther than so steady a hand would ask for."""
    ways = {level: place - points[level] for level, place in places.items() if click_mm[level].all()}
    return [
        f"{levels.name(level)}: the films show it {np.linalg.norm(way):.0f} mm from where it is marked; look at its landmarks."
        for level, way in ways.items()
        if np.linalg.norm(way / click_mm[level]) > FAR
    ]


def look(
    films: Sequence[np.ndarray],
    views: tuple[View, View],
    clicks: Clicks,
    points: Places,
    answer: Callable[[np.ndarray], np.ndarray],
) -> list[Vertebra]:
    """The vertebrae that stand at some points, each in the cube of its own rays.

    Args:
        films: the AP and the lateral film's pictures, brighter is more attenuation.
        views: theirs.
        clicks: the landmarks.
        points: where they place the vertebrae, RAS mm.
        answer: takes images, as `samples.network_input` makes them, to probabilities.
    """
    seen = [patches.look(films, views, [clicks[w][n] for w in VIEWS], point) for n, point in points.items()]
    probabilities = answer(np.array([images for images, _ in seen], np.float32).reshape(-1, 2, 2, SIZE, SIZE))
    return [
        Vertebra(n, point, p, SPACING_MM, axes)
        for (n, point), p, (_, axes) in zip(points.items(), probabilities, seen, strict=True)
    ]
