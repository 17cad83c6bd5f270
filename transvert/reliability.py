"""Whether a prediction is as good as it says: calibration fitted on some people and measured on others.

Whoever is measured has trained neither the network that answers nor the calibration that its answers are read with. Of
K people held out of some training, each is measured with a calibration fitted on the other K - 1; the calibration that
comes out, fitted on all K, is for people who are none of them.

Vertebrae of one person go together, so that many of them say less than as many people would: in every fit a person counts
as the root of their vertebrae. The intervals are conformal over people (Lee, Barber and Willett, arXiv 2306.06342): they cover a vertebra, taken at random,
of a new person who is one like the K with the stated probability, but for what one person more or less changes in the
fits. For 90 % that takes 9 people at least; of fewer no interval is stated.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import optimize
from torch import nn

from transvert import levels, mesh, metrics
from transvert.confidence import (
    LOGITS,
    Calibration,
    Margin,
    Tally,
    calibrated_bins,
    slopes,
    spread_mm,
    statements,
    tally,
)
from transvert.files import InputError
from transvert.samples import SPACING_MM, Samples
from transvert.uncertainty import Jitter, ask

COVERAGE = 0.9
_POINTS = 500
"""Of a vertebra's surface, evenly chosen, that its local errors are measured at."""
_LEAST = 1e-3
"""Errors below this, of Dice or mm, are as good as none; they have no logarithm."""
_STIFF = 0.01
"""How much a slope holds to 1: as much as people whose statements differ by 10 % hold to theirs."""
_SD_EDGES_MM = (0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, np.inf)
_MEASURES = ("dice", "assd_mm")


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


@dataclass(frozen=True)
class Report:
    """How answers were calibrated, and how right they were on the people whom no fit has seen.

    Attributes:
        calibration: fitted on everybody, for somebody else.
        vertebrae: a row each: person, subject, level, the observed dice and assd_mm, what was stated (`dice_stated`,
            `dice_low`, `dice_high`, likewise assd_mm) and what the network's own probabilities say (`dice_network`).
        voxels: of the bands, a row each tenth of stated probability: `said` by "network" or "calibrated", `voxels`,
            mean `stated` probability and `observed` share of bone.
        surface: points of found surfaces by stated error: `points`, root mean squares `stated_mm` and `observed_mm`.
        summary: mean calibration errors, rank correlations and coverages; of intervals only where any could be stated.
    """

    calibration: Calibration
    vertebrae: pd.DataFrame
    voxels: pd.DataFrame
    surface: pd.DataFrame
    summary: dict[str, float]


def examine(
    folds: Iterable[tuple[nn.Module | Sequence[nn.Module], Samples]],
    jitter: Jitter | None = None,
    coverage: float = COVERAGE,
) -> Report:
    """Calibrates the networks of a cross-validation, and measures the calibration on people it was not fitted on.

    Args:
        folds: a network (or several) and the samples of a subject that it has not learned from, again and again; one
            subject's are in memory at a time. People whom another fold's network has learned from are as good.
        jitter: how they are asked.
        coverage: of the intervals.

    Raises:
        InputError: fewer than two people.
    """
    jitter = jitter or Jitter()
    cases = [case for networks, held_out in folds for case in gather(networks, held_out, jitter)]
    return report(cases, jitter, coverage)


def gather(networks: nn.Module | Sequence[nn.Module], held_out: Samples, jitter: Jitter | None = None) -> list[Case]:
    """Predicts the vertebrae of a subject whom the networks have not learned from, and compares them with the truth."""
    answer = ask(networks, held_out.images(), jitter)
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    cases = []
    for level, probability, truth in zip(held_out.levels, answer.probability, held_out.targets(), strict=True):
        observed = metrics.compare(probability > 0.5, truth, SPACING_MM)
        points = np.zeros((0, 3))
        if observed["dice"] > 0:
            points = np.asarray(mesh.surface(probability, affine).vertices)
            points = points[:: max(1, len(points) // _POINTS)]
        slope, logit = slopes(probability, points, affine)
        distance = np.abs(mesh.signed_distance_at(points, truth, affine)) if len(points) else slope
        who = held_out.person or held_out.subject, held_out.subject, levels.name(level)
        counted = tally(probability, truth)
        cases.append(Case(*who, counted, observed["dice"], observed["assd_mm"], slope, logit, distance))
    return cases


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


def report(cases: Sequence[Case], jitter: Jitter | None = None, coverage: float = COVERAGE) -> Report:
    """As `examine`, of cases that were gathered before.

    Raises:
        InputError: fewer than two people.
    """
    people = sorted({case.person for case in cases})
    if len(people) < 2:
        raise InputError(
            f"Calibration is measured on other people than it is fitted on: hold out two, not {len(people)}."
        )
    tables, bins, points = [], [], []
    for person in people:
        own = [case for case in cases if case.person == person]
        other = fit([case for case in cases if case.person != person], jitter, coverage)
        tables.append(_compare(own, other))
        for case in own:
            bins.append((case.tally, calibrated_bins(other)))
            points.append((spread_mm(case.slope, case.logit, other), case.distance_mm))
    vertebrae = pd.concat(tables, ignore_index=True)
    voxels = pd.concat(
        [
            _by_probability([(one, calibrated_bins(Calibration())) for one, _ in bins]).assign(said="network"),
            _by_probability(bins).assign(said="calibrated"),
        ],
        ignore_index=True,
    )
    surface = _by_error(*(np.concatenate(part) for part in zip(*points, strict=True)))
    return Report(fit(cases, jitter, coverage), vertebrae, voxels, surface, _summary(vertebrae, voxels, surface))


def _compare(cases: list[Case], calibration: Calibration) -> pd.DataFrame:
    """`Report.vertebrae` of one person."""
    tallies = [case.tally for case in cases]
    rows = pd.DataFrame(
        [{n: getattr(case, n) for n in ("person", "subject", "level", "dice", "assd_mm")} for case in cases]
    )
    stated = statements(tallies, calibration).rename(columns={"dice": "dice_stated", "assd_mm": "assd_mm_stated"})
    plain = statements(tallies, Calibration())
    network = {"dice_network": plain["dice"], "assd_mm_network": plain["assd_mm"]}
    return rows.join(stated.filter(regex="stated|low|high")).assign(**network)


def _by_probability(bins: list[tuple[Tally, np.ndarray]]) -> pd.DataFrame:
    """Voxels by tenths of stated probability."""
    count, stated, bone = np.zeros((3, 10))
    for one, probability in bins:
        tenth = np.minimum((10 * probability).astype(int), 9)
        count += np.bincount(tenth, one.voxels, 10)
        stated += np.bincount(tenth, one.voxels * probability, 10)
        bone += np.bincount(tenth, one.bone, 10)
    some = np.where(count > 0, count, np.nan)
    return pd.DataFrame({"voxels": count.astype(int), "stated": stated / some, "observed": bone / some})


def _by_error(stated: np.ndarray, observed: np.ndarray) -> pd.DataFrame:
    """Surface points by stated error."""
    group = np.digitize(stated, _SD_EDGES_MM) - 1
    rows = []
    for n, (low, high) in enumerate(itertools.pairwise(_SD_EDGES_MM)):
        here = group == n
        size = max(1, int(here.sum()))
        means = [float(np.sqrt((values[here] ** 2).sum() / size)) for values in (stated, observed)]
        rows.append(
            {"from_mm": low, "to_mm": high, "points": int(here.sum()), "stated_mm": means[0], "observed_mm": means[1]}
        )
    return pd.DataFrame(rows)


def _summary(vertebrae: pd.DataFrame, voxels: pd.DataFrame, surface: pd.DataFrame) -> dict[str, float]:
    """The figures of a report, one number each."""
    found: dict[str, float] = {"people": vertebrae["person"].nunique(), "vertebrae": len(vertebrae)}
    for said, rows in voxels.groupby("said"):
        gap = (rows["voxels"] * (rows["stated"] - rows["observed"]).abs()).sum() / rows["voxels"].sum()
        found[f"voxel_calibration_error_{said}"] = float(gap)
    there = vertebrae[np.isfinite(vertebrae["assd_mm"]) & np.isfinite(vertebrae["assd_mm_stated"])]
    for name in _MEASURES:
        found |= {
            f"{name}_spearman": float(there[name].corr(there[f"{name}_stated"], method="spearman")),
            f"{name}_mean_absolute_error": float((there[name] - there[f"{name}_stated"]).abs().mean()),
            f"{name}_mean_absolute_error_network": float((there[name] - there[f"{name}_network"]).abs().mean()),
        }
        low, high = vertebrae[f"{name}_low"], vertebrae[f"{name}_high"]
        inside = ((vertebrae[name] >= low) & (vertebrae[name] <= high))[(low > 0) | (high < 1)]
        if len(inside):
            found[f"{name}_coverage"] = float(inside.mean())
            found[f"{name}_coverage_of_people"] = float(inside.groupby(vertebrae["person"]).mean().mean())
    weights = surface["points"] / surface["points"].sum()
    found["surface_calibration_error_mm"] = float(
        (weights * (surface["stated_mm"] - surface["observed_mm"]).abs()).sum()
    )
    return found


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
