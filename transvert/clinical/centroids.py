"""Vertebrae brought from where a hand has marked them towards where their radiographs show them.

A network that is shown a vertebra beside its patch's middle draws it beside its cube's middle: its shape undoes a part of
the click's error by itself. How large a part, and how far a shape's centre of mass lies off where nothing has strayed, was
measured in people whom networks had not learned from (`tables/centring.csv`, benchmarks/anatomy.py): few people, and
somebody else's thorax may be seen less well. From that, from where the shape lies and from how unsteady the hand was
follows where the vertebra stands most likely: there it is looked at once more. Where clicks are exact nothing moves.


What a reader marks: the middles of bodies, or whole vertebrae, with an unsteady hand.

A network is shown where a whole vertebra's centre of mass is seen, arch and processes included, 8 to 18 mm behind the
middle of its body. A reader sees bodies. So landmarks may be of either, and those of bodies are moved back along the
vertebra by what was measured (`tables/bodies.csv`, benchmarks/anatomy.py).

"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from transvert import levels
from transvert.clinical import endplate_prior
from transvert.clinical.endplates import unit
from transvert.clinical.landmarks import VERTEBRA, Landmarks
from transvert.clinical.vertebra import THRESHOLD, Vertebra
from transvert.data import patches
from transvert.data.patches import SIZE, SPACING_MM
from transvert.drr.geometry import VIEWS, View
from transvert.io import PACKAGE, read_rows
from transvert.model import metrics

CENTRING_TABLE = PACKAGE / "tables" / "centring.csv"
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
def usual_offsets() -> dict[str, np.ndarray]:
    """By region of `metrics.REGIONS`: (3, 3), a column each axis of `AXES`.

    The rows are how far off its cube's middle a shape's centre of mass lies where the click was right, mm; the share of a
    click's error that the shape undoes; and the standard deviation of what is left, mm.
    """
    rows = {(row["region"], row["axis"]): row for row in read_rows(CENTRING_TABLE)}
    kinds = ("off_mm", "undone", "sd_mm")
    return {
        name: np.array([[float(rows[name, axis][kind]) for axis in AXES] for kind in kinds]) for name in metrics.REGIONS
    }


def centroid_offset_mm(probability: np.ndarray, spacing_mm: float) -> np.ndarray | None:
    """(3,) how far a shape's centre of mass lies from its cube's middle along the cube's axes; None if there is none."""
    inside = np.argwhere(probability >= THRESHOLD)
    return (inside.mean(0) - (len(probability) - 1) / 2) * spacing_mm if len(inside) else None


def refine_centroid(vertebra: Vertebra, click_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a vertebra stands most likely, and how sure that is.

    Args:
        vertebra: as a network has drawn it around the place of its landmarks.
        click_mm: (3,) standard deviation of that place along the cube's axes.

    Returns:
        (3,) RAS mm and (3,) the standard deviation along the cube's axes; of an empty vertebra those that were given.
    """
    found = centroid_offset_mm(vertebra.probability, vertebra.spacing_mm)
    if found is None:
        return vertebra.centroid_ras, click_mm
    off, undone, sd = usual_offsets()[levels.region(vertebra.level)]
    share = shift_share(click_mm, undone, sd)
    return vertebra.centroid_ras + vertebra.axes @ (share * (found - off)), click_mm * np.sqrt(1 - share * undone)


def shift_share(click_mm: Any, undone: Any, sd_mm: Any) -> Any:
    """Of what a shape lies off, how much is likeliest to be the click's: numbers or arrays.

    The click's error is normal, and of it a share is seen through another normal error.
    """
    return click_mm**2 * undone / ((undone**2 + SHARE_SD**2) * click_mm**2 + sd_mm**2)


def refine_centroids(
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
    settled = {
        v.level: refine_centroid(v, click_mm[v.level]) for v in predict_vertebrae(films, views, clicks, points, answer)
    }
    places = {level: place for level, (place, _) in settled.items()}
    seen = {w: {n: view.project(at) for n, at in places.items()} for w, view in zip(VIEWS, views, strict=True)}
    return places, {level: sd for level, (_, sd) in settled.items()}, seen


def far_moved_warnings(points: Places, places: Places, click_mm: Places) -> list[str]:
    """A sentence for each vertebra that `settle` moved farther than so steady a hand would ask for."""
    ways = {level: place - points[level] for level, place in places.items() if click_mm[level].all()}
    return [
        f"{levels.name(level)}: the films show it {np.linalg.norm(way):.0f} mm from where it is marked; look at its landmarks."
        for level, way in ways.items()
        if np.linalg.norm(way / click_mm[level]) > FAR
    ]


def predict_vertebrae(
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
    seen = [patches.crop_patches(films, views, [clicks[w][n] for w in VIEWS], point) for n, point in points.items()]
    probabilities = answer(np.array([images for images, _ in seen], np.float32).reshape(-1, 2, 2, SIZE, SIZE))
    return [
        Vertebra(n, point, p, SPACING_MM, axes)
        for (n, point), p, (_, axes) in zip(points.items(), probabilities, seen, strict=True)
    ]


BODIES_TABLE = PACKAGE / "tables" / "bodies.csv"
_RIGHT = np.array([1.0, 0.0, 0.0])


@functools.cache
def usual_body_offsets() -> dict[str, tuple[float, float]]:
    """By region of `tilts.REGIONS`: how far a vertebra's centre of mass lies behind and above its body's middle, mm."""
    return {region: (float(row["back_mm"]), float(row["up_mm"])) for region, row in _table().items()}


@functools.cache
def _table() -> dict[str, dict[str, str]]:
    return {row["region"]: row for row in read_rows(BODIES_TABLE)}


def to_vertebra_centroids(marks: Landmarks, views: tuple[View, View]) -> Landmarks:
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
        back, above = usual_body_offsets()[endplate_prior.region(level)]
        centre = points[level] - back * unit(np.cross(up, _RIGHT)) + above * up
        for which, view in zip(VIEWS, views, strict=True):
            moved[which][level] = moved[which][level] + view.project(centre) - view.project(points[level])
    return replace(marks, centroids=moved, of=VERTEBRA)


def landmark_sd_mm(of: str, level: int, click_mm: float) -> np.ndarray:
    """(3,) standard deviation of a vertebra's place to the right, the front and the head; both views tell its height.

    Args:
        of: what is marked, `landmarks.VERTEBRA` or `BODY`: how far behind a body the whole lies is not known exactly.
        level: VerSe number.
        click_mm: standard deviation of the landmarks, down and across in each view, life-sized.
    """
    sd = click_mm * np.array([1, 1, np.sqrt(0.5)])
    if of == VERTEBRA or level in levels.WITHOUT_BODY:
        return sd
    row = _table()[endplate_prior.region(level)]
    return np.hypot(sd, [0, float(row["back_sd_mm"]), float(row["up_sd_mm"])])


def simulate_clicks(marks: Landmarks, views: tuple[View, View], sd_mm: float, random: np.random.Generator) -> Landmarks:
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
