"""From a few clicked vertebrae to a first proposal of all between them, in both views at once.

A spine is taken as a chain of steps from each level to the next. What steps are usual, how much they differ between
people, and how alike neighbouring steps of one person are was measured (`tables/spacing.csv`, benchmarks/proposal.py).
The proposal is the chain that is likeliest given the clicks: it passes through them as a smoothing spline does, is as
long between them as spines are, bends as they do, and has one height in both views. So a vertebra that is clicked on
one film is looked for at its own height on the other. Like all least squares it also tells its expected error.

The people of the table lay on their backs. Between clicks a standing spine bends more than theirs; clicks at the
curves' turns take most of that away.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from transvert import levels
from transvert.clinical.landmarks import Landmarks
from transvert.drr.geometry import VIEWS, View
from transvert.io import PACKAGE, InputError, read_rows

TABLE = PACKAGE / "tables" / "spacing.csv"
CLICK_MM = 1.5
"""Standard deviation of a click from the vertebra's centroid, in the patient: this companion's choice."""
LIMIT_MM = 12.0
"""A level whose expected error on a film is larger than this is not proposed there."""

# Neighbouring steps of one person are alike: correlation along x, y and z over n steps is share + (1 - share) *
# exp(-n / reach). The share is that of the person's size. benchmarks/proposal.py prints what they were rounded from.
REACH = np.array([1.8, 3.0, 2.0])
SHARE = np.array([0.0, 0.0, 0.47])
# Where the spine stands: anywhere in a view's plane, and near the isocentre in depth where no view tells it.
_ANYWHERE_MM, _NEAR_MM = 1000.0, 50.0
_ROUNDS = 4  # a cone's projections bend a little


@dataclass(frozen=True)
class Spacing:
    """Steps from a level to the next below, RAS mm.

    Attributes:
        mean: pair of levels to (3,).
        deviation: pair of levels to (3,), standard deviation between people.
    """

    mean: Mapping[tuple[int, int], np.ndarray]
    deviation: Mapping[tuple[int, int], np.ndarray]

    def steps(self, chain: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of a chain's steps, (N - 1, 3) each; those from and to T13 are as from T12 to L1."""
        pairs = [_pair(*pair) for pair in itertools.pairwise(chain)]
        return (
            np.array([self.mean[pair] for pair in pairs]).reshape(-1, 3),
            np.array([self.deviation[pair] for pair in pairs]).reshape(-1, 3),
        )


@dataclass(frozen=True)
class Proposal:
    """What was filled in: "ap" and "lateral" to level.

    Attributes:
        centroids: to (2,) row and column.
        error_mm: to the expected error in the patient, the root of the mean square.
    """

    centroids: Mapping[str, Mapping[int, np.ndarray]]
    error_mm: Mapping[str, Mapping[int, float]]


@functools.cache
def usual_spacing() -> Spacing:
    """The spacing that comes with transvert."""
    rows = read_rows(TABLE)
    pairs = [(levels.number(row["upper"]), levels.number(row["lower"])) for row in rows]
    mean, deviation = (
        {
            pair: np.array([float(row[f"{way}_{what}"]) for way in ("right", "front", "up")])
            for pair, row in zip(pairs, rows, strict=True)
        }
        for what in ("mm", "sd_mm")
    )
    return Spacing(mean, deviation)


def propose_landmarks(marks: Landmarks, ap: View, lateral: View, spacing: Spacing | None = None) -> Proposal:
    """The levels between the uppermost and the lowermost clicked ones, in each view where they can be told.

    Args:
        marks: the clicks; T13 and L6 are proposed only where they are clicked in the other view.
        ap: the AP film's view.
        lateral: the lateral film's view.
        spacing: by default `usual()`.

    Raises:
        InputError: too few clicks to tell any level, or none that is not clicked already.
    """
    clicked = {which: {n: p for n, p in marks.centroids[which].items() if n in levels.VERTEBRAE} for which in VIEWS}
    chain = _chain(set(clicked["ap"]) | set(clicked["lateral"]))
    views = {"ap": ap, "lateral": lateral}
    points, spread = _likeliest(chain, clicked, views, marks.isocentre, spacing or usual_spacing())
    centroids: dict[str, dict[int, np.ndarray]] = {which: {} for which in VIEWS}
    errors: dict[str, dict[int, float]] = {which: {} for which in VIEWS}
    for which, view in views.items():
        for n, level in enumerate(chain):
            pixel, slope = _linear(view, points[n])
            own = slice(3 * n, 3 * n + 3)
            in_patient = np.array(view.pixel_mm) / view.magnification(points[n])
            error = float(np.sqrt(np.diag(slope @ spread[own, own] @ slope.T) @ in_patient**2))
            on_film = ((pixel >= -0.5) & (pixel <= np.array(view.shape) - 0.5)).all()
            if level not in clicked[which] and error <= LIMIT_MM and on_film:
                centroids[which][level], errors[which][level] = pixel, error
    if not any(centroids.values()):
        raise InputError(
            "Nothing can be filled in between these landmarks: click three or four vertebrae of a film, the uppermost "
            "and the lowermost among them."
        )
    return Proposal(centroids, errors)


def fill_landmarks(marks: Landmarks, proposal: Proposal) -> Landmarks:
    """The landmarks with a proposal added, each of its levels listed under the view's "proposed" until confirmed."""
    views, centroids = {}, {}
    for which in VIEWS:
        new = proposal.centroids[which]
        centroids[which] = dict(marks.centroids[which]) | dict(new)
        waiting = {levels.number(name) for name in marks.views[which].get("proposed", [])} | set(new)
        names = [levels.name(level) for level in levels.in_order(waiting)]
        views[which] = dict(marks.views[which]) | ({"proposed": names} if names else {})
    return replace(marks, views=views, centroids=centroids)


def _chain(clicked: set[int]) -> list[int]:
    """The levels from the uppermost to the lowermost clicked one, head to tail."""
    if len(clicked) < 2:
        raise InputError("A proposal fills in between clicked vertebrae: click at least two, better four.")
    return levels.between(clicked)


def _pair(upper: int, lower: int) -> tuple[int, int]:
    """The row of the table that a step is read from."""
    t12, t13, l1 = 19, 28, 20
    return (t12, l1) if t13 in (upper, lower) else (upper, lower)


def _likeliest(
    chain: list[int],
    clicked: Mapping[str, Mapping[int, np.ndarray]],
    views: Mapping[str, View],
    isocentre: np.ndarray,
    spacing: Spacing,
) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) RAS mm, the chain's points given the clicks, and (3 N, 3 N) their covariance; Gauss-Newton."""
    count = len(chain)
    mean, deviation = spacing.steps(chain)
    apart = np.abs(np.subtract.outer(np.arange(count - 1), np.arange(count - 1)))
    sums = np.tril(np.ones((count, count - 1)), -1)  # from steps to places, the first at the origin
    # The first point is anywhere where a view sees it, and so are all with it.
    free = [_ANYWHERE_MM if clicked[which] else _NEAR_MM for which in VIEWS] + [_ANYWHERE_MM]
    prior = np.zeros((count, 3, count, 3))
    for axis in range(3):
        alike = SHARE[axis] + (1 - SHARE[axis]) * np.exp(-apart / REACH[axis])
        steps = alike * np.outer(deviation[:, axis], deviation[:, axis])
        prior[:, axis, :, axis] = sums @ steps @ sums.T + free[axis] ** 2
    covariance = prior.reshape(3 * count, 3 * count)
    expected = sums @ mean
    expected += isocentre - expected.mean(axis=0)
    seen = [(view, chain.index(n), pixel) for which, view in views.items() for n, pixel in clicked[which].items()]
    points, spread = expected, covariance
    for _ in range(_ROUNDS):
        slopes, misses, noise = [], [], []
        for view, place, pixel in seen:
            here, slope = _linear(view, points[place])
            row = np.zeros((2, count, 3))
            row[:, place] = slope
            slopes.append(row.reshape(2, -1))
            misses.append(pixel - here + slope @ (points[place] - expected[place]))
            noise.append(CLICK_MM * view.magnification(points[place]) / np.array(view.pixel_mm))
        slope, miss = np.concatenate(slopes), np.concatenate(misses)
        gain = np.linalg.solve(slope @ covariance @ slope.T + np.diag(np.concatenate(noise) ** 2), slope @ covariance).T
        points = expected + (gain @ miss).reshape(count, 3)
        spread = covariance - gain @ slope @ covariance
    return points, spread


def _linear(view: View, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a view shows a point, (2,), and how that changes with the point, (2, 3) pixels per mm."""
    pixel = view.project(point)
    return pixel, (view.project(point + np.eye(3)) - pixel).T
