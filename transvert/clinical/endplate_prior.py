"""How far each vertebra of a spine leans: what its shape says, weighed against where it and its neighbours stand.

A shape that a network found tells its endplates' directions, in the thorax behind ribs and shoulders often 10 degrees
off. The landmarks tell more: a vertebra stands nearly square to the line from its upper to its lower neighbour, its two
endplates are nearly parallel, and so are the two that face each other across a disc. How nearly was measured
(`tables/tilts.csv`, benchmarks/anatomy.py), of bones at rest and of shapes of people whom a network had not learned from.
The corners of a body, where a film's reader marks them, say it outright. All of that is one linear system of normal errors
in each of the sagittal and the coronal plane; its solution is the likeliest spine, its covariance how sure it is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from transvert import levels
from transvert.clinical.endplates import Endplates, unit
from transvert.clinical.landmarks import Landmarks
from transvert.data import patches
from transvert.drr.geometry import VIEWS, View
from transvert.io import PACKAGE, read_rows

TABLE = PACKAGE / "tables" / "tilts.csv"
CORONAL, SAGITTAL = 0, 1
"""The component in which a normal leans, which is also the view that shows it."""
REGIONS = {
    "C": range(3, 8),
    "T1-T6": range(8, 14),
    "T7-T12": (*range(14, 20), 28),
    "L1-L3": range(20, 23),
    "L4-L6": range(23, 26),
}
CORNER_DEG = 2.0
"""By how much a line through a body's two corners leans from the plane through its endplate's middle: this companion's guess."""


@dataclass(frozen=True)
class EndplateLine:
    """An endplate's line on a film, from corner to corner.

    Attributes:
        level: VerSe number.
        superior: the upper endplate, or the lower one.
        plane: `SAGITTAL` or `CORONAL`.
        tilt_deg: of the line's normal, which points to the head.
        sd_deg: standard deviation.
    """

    level: int
    superior: bool
    plane: int
    tilt_deg: float
    sd_deg: float


@dataclass(frozen=True)
class Observations:
    """What is known of a spine beside its shapes.

    Attributes:
        places: level to (3,) RAS mm, where its landmarks place its centre of mass.
        sd_mm: level to (3,), standard deviation of that place along each axis.
        rims: endplates as the films' reader has marked them.
        random: of a spine as it might be as well; None for the likeliest.
    """

    places: Mapping[int, np.ndarray]
    sd_mm: Mapping[int, np.ndarray]
    rims: Sequence[EndplateLine] = ()
    random: np.random.Generator | None = None


@dataclass
class _System:
    """Rows of a linear system in the tilts of n endplates, with what is read and its covariance."""

    size: int
    rows: list[np.ndarray] = field(default_factory=list)
    read: list[float] = field(default_factory=list)
    # Standard deviation of a row by itself, and by how much a place's error of one standard deviation changes it, degrees.
    sd: list[float] = field(default_factory=list)
    by_place: list[dict[int, float]] = field(default_factory=list)

    def add(
        self, weights: Mapping[int, float], read: float, sd: float, by_place: Mapping[int, float] | None = None
    ) -> None:
        row = np.zeros(self.size)
        row[list(weights)] = list(weights.values())
        self.rows.append(row)
        self.read.append(read)
        self.sd.append(sd)
        self.by_place.append(dict(by_place or {}))

    def solve(self, unsteady: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest tilts and their covariance; as if all places were right unless they are `unsteady`."""
        placed = sorted({level for row in self.by_place for level in row})
        leverage = np.array([[row.get(level, 0.0) for level in placed] for row in self.by_place]).reshape(
            len(self.rows), -1
        )
        covariance = np.diag(np.square(self.sd)) + unsteady * leverage @ leverage.T
        weighed = np.linalg.solve(covariance, np.column_stack([np.array(self.rows), self.read]))
        system = np.array(self.rows).T @ weighed
        spread = np.linalg.inv(system[:, :-1])
        return spread @ system[:, -1], spread


def tilt_deg(normal: np.ndarray, plane: int) -> float:
    """How far a normal leans from upright in a plane, degrees."""
    return float(np.degrees(np.arctan2(normal[plane], normal[2])))


def lean_and_wedge_deg(plates: Endplates, plane: int) -> tuple[float, float]:
    """The mean of two endplates' tilts in a plane, and how much further the upper one leans, degrees."""
    upper, lower = (tilt_deg(normal, plane) for normal in (plates.superior_normal, plates.inferior_normal))
    return (upper + lower) / 2, upper - lower


def region(level: int) -> str:
    """The name in `REGIONS` of a level below C2."""
    return next(name for name, numbers in REGIONS.items() if level in numbers)


def fit_endplate_tilts(found: Mapping[int, Endplates], evidence: Observations) -> dict[int, Endplates]:
    """Endplates in their likeliest directions; centres, widths and the height at the centre stay the shapes' own.

    Args:
        found: level to the endplates of its shape.
        evidence: what else is known.
    """
    if not found:
        return {}
    chain = levels.in_order(set(found))
    tilts = np.empty((2, 2 * len(chain)))
    for plane in (CORONAL, SAGITTAL):
        system = _system(found, chain, evidence, plane)
        tilts[plane] = system.solve()[0]
        if evidence.random is not None:
            # The clicks themselves are drawn anew as well, by `clinical`: their error must not count a second time.
            spread = system.solve(unsteady=False)[1]
            tilts[plane] += np.linalg.cholesky(spread) @ evidence.random.standard_normal(len(spread))
    return {level: _turned(found[level], tilts[:, 2 * n], tilts[:, 2 * n + 1]) for n, level in enumerate(chain)}


def endplate_lines(
    marks: Landmarks, views: tuple[View, View], places: Mapping[int, np.ndarray], click_mm: float
) -> list[EndplateLine]:
    """The endplates whose two corners are marked on a film.

    Args:
        marks: with corners.
        views: AP and lateral.
        places: level to (3,) RAS mm; a level without a place is left out.
        click_mm: standard deviation of a corner's click, life-sized.
    """
    made = []
    for plane, which in enumerate(VIEWS):
        first, second = ("right", "left") if plane == CORONAL else ("anterior", "posterior")
        for level, body in marks.corners[which].items():
            if level not in places or level in levels.WITHOUT_BODY:
                continue
            steps = patches.plane(patches.local_axes(*views, places[level]), plane)
            at = {
                name: steps.T @ patches.offset_mm(views[plane], pixel, places[level], steps)
                for name, pixel in body.items()
            }
            for end in ("superior", "inferior"):
                if f"{first}_{end}" not in at or f"{second}_{end}" not in at:
                    continue
                line = at[f"{first}_{end}"] - at[f"{second}_{end}"]
                length = float(np.hypot(line[plane], line[2]))
                sd = float(np.hypot(CORNER_DEG, np.degrees(np.sqrt(2) * click_mm / length)))
                made.append(
                    EndplateLine(
                        level, end == "superior", plane, float(np.degrees(np.arctan2(-line[2], line[plane]))), sd
                    )
                )
    return made


@functools.cache
def usual_tilts() -> dict[tuple[str, int, str], tuple[float, float]]:
    """Mean and standard deviation in degrees by kind, plane and region, as `tables/tilts.csv` has them."""
    return {
        (row["kind"], SAGITTAL if row["plane"] == "sagittal" else CORONAL, row["region"]): (
            float(row["mean_deg"]),
            float(row["sd_deg"]),
        )
        for row in read_rows(TABLE)
    }


def _system(found: Mapping[int, Endplates], chain: Sequence[int], evidence: Observations, plane: int) -> _System:
    known, at, places = usual_tilts(), {level: 2 * n for n, level in enumerate(chain)}, evidence.places
    system = _System(2 * len(chain))
    order = [n for n in levels.VERTEBRAE if n in places or n in at]
    for level in chain:
        here, sup = region(level), at[level]
        lean, wedge = {sup: 0.5, sup + 1: 0.5}, {sup: 1.0, sup + 1: -1.0}
        of_shape = lean_and_wedge_deg(found[level], plane)
        for weights, read, kind in zip((lean, wedge), of_shape, ("shape_lean", "shape_wedge"), strict=True):
            mean, sd = known[kind, plane, here]
            system.add(weights, read - mean, sd)
        system.add(wedge, *known["wedge", plane, here])
        above, below = (neighbour(order, level, step) for step in (-1, 1))
        if below in at:
            system.add({sup + 1: 1.0, at[below]: -1.0}, *known["disc", plane, here])
        ends = [n if n in places else None for n in (above, below)]
        if level in places and any(ends):
            kind = "chord" if all(ends) else "chord_above" if ends[0] else "chord_below"
            first, last = (n or level for n in ends)
            way = places[first] - places[last]
            each = float(np.degrees(1 / np.hypot(way[plane], way[2])))
            by_place = {n: sign * each * float(evidence.sd_mm[n][plane]) for n, sign in ((first, 1), (last, -1))}
            mean, sd = known[kind, plane, here]
            system.add(lean, tilt_deg(way, plane) - mean, sd, by_place)
    for rim in evidence.rims:
        if rim.level in at and rim.plane == plane:
            system.add({at[rim.level] + (0 if rim.superior else 1): 1.0}, rim.tilt_deg, rim.sd_deg)
    return system


def neighbour(order: Sequence[int], level: int, step: int) -> int | None:
    """The level above another (step -1) or below it (1) in a chain from head to tail, if none between them is missing."""
    n = order.index(level) + step
    if not 0 <= n < len(order):
        return None
    return order[n] if len(levels.between([level, order[n]])) == 2 else None


def _turned(plates: Endplates, superior: np.ndarray, inferior: np.ndarray) -> Endplates:
    """Endplates whose normals lean as told, (2,) degrees each; their heights at the front and the back follow."""
    up, down = (unit(np.array([*np.tan(np.radians(tilt)), 1.0])) for tilt in (superior, inferior))
    middle = (superior[SAGITTAL] + inferior[SAGITTAL]) / 2
    opened = sum(sign * np.tan(np.radians(tilt[SAGITTAL] - middle)) for sign, tilt in ((1, superior), (-1, inferior)))
    gain = float(opened) * plates.depth_mm / 2
    return replace(
        plates,
        superior_normal=up,
        inferior_normal=down,
        anterior_mm=plates.middle_mm - gain,
        posterior_mm=plates.middle_mm + gain,
    )
