"""Proposals for the vertebrae between a few landmarks, in both views at once.

A spine is a chain of steps from each level to the next. The usual steps, their spread between people and the correlation
of one person's neighbouring steps were measured (`tables/spacing.csv`, benchmarks/tables/proposal.py). The proposal is
the most likely chain given the landmarks (Gaussian process regression): it passes near them, is as long and as bent as
spines are, and has one height in both views. The people of the table lay on their backs, and a standing spine bends
more: landmarks where the curve turns remove most of that error.
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
LANDMARK_SD_MM = 1.5  # Standard deviation of a landmark, in the patient: this companion's choice.
LIMIT_MM = 12.0  # A level is not proposed on a film where its expected error is larger.

# The correlation of one person's steps that are n levels apart, along x, y and z: SHARE + (1 - SHARE) * exp(-n / REACH),
# rounded from what benchmarks/tables/proposal.py fits. SHARE is due to the person's size.
REACH = np.array([1.8, 3.0, 2.0])
SHARE = np.array([0.0, 0.0, 0.47])
# Standard deviation of the spine's place: free in a marked view's plane, near the isocentre in depth if no view shows it.
_FREE_MM, _NEAR_MM = 1000.0, 50.0
_ITERATIONS = 4  # Cone projections are slightly nonlinear.


@dataclass(frozen=True)
class Spacing:
    """Steps from a level to the next below, by pair of levels: (3,) RAS mm and their standard deviation between people."""

    mean: Mapping[tuple[int, int], np.ndarray]
    deviation: Mapping[tuple[int, int], np.ndarray]

    def steps(self, chain: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of a chain's steps, (N - 1, 3) each; steps to and from T13 are those from T12 to L1."""
        t12, t13, l1 = 19, 28, 20
        pairs = [(t12, l1) if t13 in pair else pair for pair in itertools.pairwise(chain)]
        mean, deviation = ([table[pair] for pair in pairs] for table in (self.mean, self.deviation))
        return np.reshape(mean, (-1, 3)), np.reshape(deviation, (-1, 3))


@dataclass(frozen=True)
class Proposal:
    """Proposed landmarks by "ap" or "lateral" and level: (2,) row and column, and the expected RMS error in the patient."""

    centroids: Mapping[str, Mapping[int, np.ndarray]]
    error_mm: Mapping[str, Mapping[int, float]]


@functools.cache
def usual_spacing() -> Spacing:
    """The spacing table that comes with the package."""
    rows = {(levels.number(row["upper"]), levels.number(row["lower"])): row for row in read_rows(TABLE)}
    ways = ("right", "front", "up")
    mean, deviation = (
        {pair: np.array([float(row[f"{way}_{unit}"]) for way in ways]) for pair, row in rows.items()}
        for unit in ("mm", "sd_mm")
    )
    return Spacing(mean, deviation)


def propose_landmarks(landmarks: Landmarks, ap: View, lateral: View, spacing: Spacing | None = None) -> Proposal:
    """Proposes the levels between the uppermost and the lowermost landmark, in each view where they can be predicted.

    T13 and L6 are proposed only if they are marked in the other view. The default spacing is `usual_spacing()`. Too few
    landmarks, or nothing left to propose, raise an InputError.
    """
    marked = {name: {n: p for n, p in landmarks.centroids[name].items() if n in levels.VERTEBRAE} for name in VIEWS}
    chain = levels.between(marked["ap"].keys() | marked["lateral"].keys())
    if len(chain) < 2:
        raise InputError("A proposal fills in between marked vertebrae: mark at least two, better four.")
    views = {"ap": ap, "lateral": lateral}
    points, covariance = _most_likely(chain, marked, views, landmarks.isocentre, spacing or usual_spacing())
    centroids: dict[str, dict[int, np.ndarray]] = {name: {} for name in VIEWS}
    errors: dict[str, dict[int, float]] = {name: {} for name in VIEWS}
    for name, view in views.items():
        for n, level in enumerate(chain):
            pixel, slope = _linearise(view, points[n])
            in_patient = np.array(view.pixel_mm) / view.magnification(points[n])
            error = float(np.sqrt(np.diag(slope @ covariance[n, :, n] @ slope.T) @ in_patient**2))
            on_film = ((pixel >= -0.5) & (pixel <= np.array(view.shape) - 0.5)).all()
            if level not in marked[name] and error <= LIMIT_MM and on_film:
                centroids[name][level], errors[name][level] = pixel, error
    if not any(centroids.values()):
        raise InputError("Nothing can be filled in between these landmarks: mark three or four vertebrae of a film.")
    return Proposal(centroids, errors)


def fill_landmarks(landmarks: Landmarks, proposal: Proposal) -> Landmarks:
    """The landmarks with a proposal added; its levels count as `proposed` until they are confirmed."""
    return replace(
        landmarks,
        centroids={name: {**landmarks.centroids[name], **proposal.centroids[name]} for name in VIEWS},
        proposed={name: landmarks.proposed[name] | proposal.centroids[name].keys() for name in VIEWS},
    )


def _most_likely(
    chain: list[int],
    marked: Mapping[str, Mapping[int, np.ndarray]],
    views: Mapping[str, View],
    isocentre: np.ndarray,
    spacing: Spacing,
) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) RAS mm, the chain's most likely points, and their (N, 3, N, 3) covariance; by Gauss-Newton steps."""
    count = len(chain)
    mean, deviation = spacing.steps(chain)
    apart = np.abs(np.subtract.outer(np.arange(count - 1), np.arange(count - 1)))
    sums = np.tril(np.ones((count, count - 1)), -1)  # From steps to points, the first one at the origin.
    free = [_FREE_MM if marked[name] else _NEAR_MM for name in VIEWS] + [_FREE_MM]
    prior = np.zeros((count, 3, count, 3))
    for axis in range(3):
        correlation = SHARE[axis] + (1 - SHARE[axis]) * np.exp(-apart / REACH[axis])
        steps = correlation * np.outer(deviation[:, axis], deviation[:, axis])
        prior[:, axis, :, axis] = sums @ steps @ sums.T + free[axis] ** 2
    covariance = prior.reshape(3 * count, 3 * count)
    expected = sums @ mean
    expected += isocentre - expected.mean(axis=0)
    observed = [(view, chain.index(n), pixel) for name, view in views.items() for n, pixel in marked[name].items()]
    points, posterior = expected, covariance
    for _ in range(_ITERATIONS):
        slopes, misses, noise = [], [], []
        for view, place, pixel in observed:
            projected, slope = _linearise(view, points[place])
            row = np.zeros((2, count, 3))
            row[:, place] = slope
            slopes.append(row.reshape(2, -1))
            misses.append(pixel - projected + slope @ (points[place] - expected[place]))
            noise.append(LANDMARK_SD_MM * view.magnification(points[place]) / np.array(view.pixel_mm))
        slope, miss = np.concatenate(slopes), np.concatenate(misses)
        gain = np.linalg.solve(slope @ covariance @ slope.T + np.diag(np.concatenate(noise) ** 2), slope @ covariance).T
        points = expected + (gain @ miss).reshape(count, 3)
        posterior = covariance - gain @ slope @ covariance
    return points, posterior.reshape(prior.shape)


def _linearise(view: View, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A point's pixel (2,), and its change with the point, (2, 3) pixels per mm."""
    pixel = view.project(point)
    return pixel, (view.project(point + np.eye(3)) - pixel).T
