"""Calibrations fitted on vertebrae that were predicted without having been learned from.

Vertebrae of one person go together, so that many of them say less than as many people would: in every fit a person counts
as the root of their vertebrae. The intervals are conformal over people (Lee, Barber and Willett, arXiv 2306.06342): they
cover a vertebra, taken at random, of a new person who is one like the K with the stated probability, but for what one
person more or less changes in the fits. For 90 % that takes 9 people at least; of fewer no interval is stated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import optimize

from transvert.confidence import LOGITS, Calibration, Margin, Tally, statements, tally
from transvert.files import InputError
from transvert.uncertainty import Jitter

COVERAGE = 0.9
_LEAST = 1e-3
"""Errors below this, of Dice or mm, are as good as none; they have no logarithm."""
_STIFF = 0.01
"""How much a slope holds to 1: as much as people whose statements differ by 10 % hold to theirs."""


@dataclass(frozen=True)
class Case:
    """What is kept of a vertebra that was predicted without having been learned from.

    Attributes:
        person, subject, level: whose, and its name.
        tally: its voxels, with the truth.
        dice, assd_mm: as `metrics.compare` found them.
        slope, logit: (M,) at points of the found surface, as `confidence.slopes` gives them.
        distance_mm: (M,) from there to the true surface.
    """

    person: str
    subject: str
    level: str
    tally: Tally
    dice: float
    assd_mm: float
    slope: np.ndarray
    logit: np.ndarray
    distance_mm: np.ndarray


def fit_calibration(probability: np.ndarray, targets: np.ndarray) -> Calibration:
    """Temperature and bias alone, of (N, S, S, S) probabilities and their bool targets; each vertebra counts alike.

    Raises:
        InputError: nothing was found, or no voxel near a found surface is right or none is wrong.
    """
    tallies = [tally(p, t) for p, t in zip(probability, targets, strict=True)]
    return _fit_voxels(tallies, np.ones(len(tallies)))


def fit(cases: Sequence[Case], jitter: Jitter | None = None, coverage: float = COVERAGE) -> Calibration:
    """A calibration for people who are not among these.

    Raises:
        InputError: nothing was found in any of them.
    """
    people = np.array([case.person for case in cases])
    weights = _weights(people)
    bare = _fit_voxels([case.tally for case in cases], weights)
    stated = statements([case.tally for case in cases], bare)
    observed = pd.DataFrame({"dice": [c.dice for c in cases], "assd_mm": [c.assd_mm for c in cases]})
    # An empty prediction is stated as what it is.
    there = np.isfinite(stated["assd_mm_raw"].to_numpy())
    margins = [
        fit_margin(raw[there], error[there], people[there], coverage)
        for raw, error in (
            (stated["dice_error_raw"].to_numpy(), 1 - observed["dice"].to_numpy()),
            (stated["assd_mm_raw"].to_numpy(), observed["assd_mm"].to_numpy()),
        )
    ]
    return replace(
        bare,
        dice_error=margins[0],
        assd_mm=margins[1],
        coverage=coverage,
        people=len(set(people)),
        vertebrae=len(cases),
        jitter=jitter or Jitter(),
    )


def fit_margin(stated: np.ndarray, observed: np.ndarray, people: np.ndarray, coverage: float = COVERAGE) -> Margin:
    """How errors compare with what was stated, and the conformal factor between them.

    Args:
        stated: (N,) errors, as the probabilities have them.
        observed: (N,) errors of the same unit; finite.
        people: (N,) whose they are.
        coverage: of the interval.
    """
    x, y = np.log(np.maximum(stated, _LEAST)), np.log(np.maximum(observed, _LEAST))
    lines = {p: _line(x[people != p], y[people != p], people[people != p]) for p in np.unique(people)}
    # Each person's distance from what the others would have stated; and one more person, about whom nothing is known.
    off = np.abs([yn - lines[p][0] - lines[p][1] * xn for xn, yn, p in zip(x, y, people, strict=True)])
    shares = _weights(people, 0) * len(lines) / (len(lines) + 1)
    height, power = _line(x, y, people)
    factor = float(np.exp(_quantile(off, shares, coverage)))
    return Margin(float(np.exp(height)), power, factor if np.isfinite(factor) else None)


def _line(x: np.ndarray, y: np.ndarray, people: np.ndarray) -> tuple[float, float]:
    """Height and slope of the line through logarithms; where these hardly differ the slope stays 1."""
    if not len(x):
        return 0.0, 1.0
    weights = _weights(people)
    middle = weights @ x, weights @ y
    slope = (weights @ ((x - middle[0]) * (y - middle[1])) + _STIFF) / (weights @ (x - middle[0]) ** 2 + _STIFF)
    slope = float(np.clip(slope, 0.5, 3.0))
    return float(middle[1] - slope * middle[0]), slope


def _fit_voxels(tallies: Sequence[Tally], weights: np.ndarray) -> Calibration:
    """Temperature and bias of the least cross-entropy in the bands; a tally weighs as it should, not as it is large."""
    shares = [w / max(1, one.voxels.sum()) for w, one in zip(weights, tallies, strict=True)]
    voxels = sum(s * one.voxels for s, one in zip(shares, tallies, strict=True))
    bone = sum(s * one.bone for s, one in zip(shares, tallies, strict=True))
    if not 0 < np.sum(bone) < np.sum(voxels):
        raise InputError("No calibration fits: near the found surfaces there is no bone, or nothing else.")

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        slope = np.exp(-values[0])
        logits = LOGITS * slope + values[1]
        error = voxels / (1 + np.exp(-logits)) - bone
        total = voxels @ np.logaddexp(0, logits) - bone @ logits
        return float(total), np.array([-(error @ LOGITS) * slope, error.sum()])

    best = optimize.minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[(-4, 4), (-10, 10)])
    return Calibration(temperature=float(np.exp(best.x[0])), bias=float(best.x[1]))


def _weights(people: np.ndarray, power: float = 0.5) -> np.ndarray:
    """(N,) each person as their count of vertebrae to a power, and of a person each vertebra alike; they sum to 1."""
    _, number, counts = np.unique(people, return_inverse=True, return_counts=True)
    return np.asarray(counts[number] ** (power - 1.0) / (counts**power).sum())


def _quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    """The smallest value up to which `weights` sum to `share`; infinity where they never do."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) >= share - 1e-9
    return float(values[order][reached.argmax()]) if reached.any() else np.inf
