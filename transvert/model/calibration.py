"""What may be said of a predicted vertebra before anybody knows the truth: voxel by voxel, on its surface, as a whole.

Networks that are taught to overlap are far too sure, and too large. `Calibration` puts their probability p right with
what was seen on people who were held out (`reliability` fits and tests it). Three statements follow from a p that is
right near the surface:

- Dice. Of the n voxels found, the sum of p over them is expected to be bone, and of all bone the sum of p over all:
  2 sum(p in found) / (n + sum(p)). What is expected of a sum needs no independent voxels. How far it scatters does, and
  they are not; so intervals come from how far statements were off, not from p.
- ASSD. The volume that is expected to be wrong, sum(1 - p) inside and sum(p) outside, over the area of the surface is how
  far that is expected to be off, in mm.
- A surface point's error. Where p falls from 1 to 0 along the normal as a logistic curve, the true surface is spread
  about the middle of that curve with a standard deviation of pi / sqrt(3) over the slope of its logit.


Calibrations fitted on vertebrae that were predicted without having been learned from.

Vertebrae of one person go together, so that many of them say less than as many people would: in every fit a person counts
as the root of their vertebrae. The intervals are conformal over people (Lee, Barber and Willett, arXiv 2306.06342): they
cover a vertebra, taken at random, of a new person who is one like the K with the stated probability, but for what one
person more or less changes in the fits. For 90 % that takes 9 people at least; of fewer no interval is stated.


Whether a prediction is as good as it says: calibration fitted on some people and measured on others.

Whoever is measured has trained neither the network that answers nor the calibration that its answers are read with. Of
K people held out of some training, each is measured with a calibration fitted on the other K - 1 (`fitting`); the
calibration that comes out, fitted on all K, is for people who are none of them.

"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage, optimize
from torch import nn

from transvert import levels
from transvert.data.patches import SPACING_MM
from transvert.data.samples import Samples
from transvert.imaging import mesh
from transvert.imaging.volume import Volume
from transvert.io import InputError, read_json, write_json
from transvert.model import metrics
from transvert.model.predict import TTAConfig, tta_predict
from transvert.runs import write_table

BAND_MM = 6.0
"""A probability is calibrated within this distance of the found surface. Farther away it is taken at its word, found or
not: those voxels are many, trivially right, and would hide how wrong the others are. The band follows from the prediction
alone; one around the true surface would choose voxels by their answer."""

FARTHEST_MM = 10.0
"""No surface point is stated to be farther off: where a logit is that flat there is hardly a surface, and no vertebra is so
thick that its nearest surface would be."""

_BINS = 120  # Of the logit, on either side of 0: ten to one, which no statement can tell from single values.
LOGITS = (np.arange(2 * _BINS) - _BINS + 0.5) / 10


@dataclass(frozen=True)
class ConformalInterval:
    """What errors were to what the probabilities state: `ratio` times its `power`, and most within a `factor` of that.

    Where a vertebra is hard, networks doubt more, but not as much more as they err; hence a power above 1. The factor is
    None where too few people were held out to state one.
    """

    ratio: float = 1.0
    power: float = 1.0
    factor: float | None = None

    def apply(self, error: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The expected error and both ends of its interval; `error` is what the probabilities state, above 0."""
        expected = self.ratio * error**self.power
        if self.factor is None:
            return expected, np.zeros_like(expected), np.full_like(expected, np.inf)
        return expected, expected / self.factor, expected * self.factor


@dataclass(frozen=True)
class Calibration:
    """How probabilities and statements have to be read, from what was seen on people held out.

    Attributes:
        temperature: what the logit is divided by; above 1 the answers were too sure.
        bias: then added to it; below 0 the answers were too large.
        dice_error, assd_mm: of 1 - Dice and of the ASSD.
        coverage: how often the truth lies in the intervals of `state`, for a vertebra of another person.
        people, vertebrae: how many it was fitted on.
        jitter: how they were asked; it holds for answers to that alone.
    """

    temperature: float = 1.0
    bias: float = 0.0
    dice_error: ConformalInterval = field(default_factory=ConformalInterval)
    assd_mm: ConformalInterval = field(default_factory=ConformalInterval)
    coverage: float = 0.9
    people: int = 0
    vertebrae: int = 0
    jitter: TTAConfig = field(default_factory=TTAConfig)

    def apply(self, probability: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, float32; right within `BAND_MM` of the surface of what exceeds 0.5."""
        logits = _logit(probability) / self.temperature + self.bias
        return (1 / (1 + np.exp(-logits))).astype(np.float32)

    def card(self) -> dict[str, Any]:
        """As JSON, for the card of a network's weights."""
        return asdict(self)

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> Calibration:
        """From what `card` gave."""
        parts = {"dice_error": ConformalInterval, "assd_mm": ConformalInterval, "jitter": TTAConfig}
        try:
            return cls(**{name: parts[name](**value) if name in parts else value for name, value in card.items()})
        except (TypeError, AttributeError):
            raise InputError("These weights' card holds no calibration; fit one with `transvert calibrate`.") from None


def expected_metrics(probability: np.ndarray, calibration: Calibration) -> pd.DataFrame:
    """What is to be expected of each vertebra, before anybody knows the truth.

    Args:
        probability: (N, 64, 64, 64), not calibrated; the vertebra is where it exceeds 0.5.
        calibration: for such answers.

    Returns:
        A row a vertebra: `dice` and `assd_mm` as `metrics.compare` would find them, and the `_low` and `_high` ends of
        their intervals. Of an empty prediction Dice is 0 and ASSD infinite, and that is sure.
    """
    return metrics_from_histograms([reliability_histogram(p) for p in probability], calibration)


def surface_sd_mm(
    probability: np.ndarray, points: np.ndarray, affine: np.ndarray, calibration: Calibration
) -> np.ndarray:
    """How far the true surface is expected to be from points of the found one, root mean square.

    Args:
        probability: (S, S, S) of one vertebra, not calibrated.
        points: (M, 3) RAS mm, on or near its surface, such as the vertices of `mesh.surface`.
        affine: (4, 4) of the probability, voxel index to RAS mm; without shear.
        calibration: for such answers.

    Returns:
        (M,) float32 mm, `FARTHEST_MM` at most.
    """
    return spread_mm(*slopes(probability, points, affine), calibration)


def slopes(probability: np.ndarray, points: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How steeply the logit falls at points, per mm, and the logit there, (M,) each; as for `surface_sd_mm`."""
    logits = _logit(probability)
    slope = np.sqrt(sum(step**2 for step in np.gradient(logits, *np.linalg.norm(affine[:3, :3], axis=0))))
    where = Volume(logits, affine).index(points).T
    found = [ndimage.map_coordinates(values, where, order=1, mode="nearest") for values in (slope, logits)]
    return found[0], found[1]


def spread_mm(slope: np.ndarray, logit: np.ndarray, calibration: Calibration) -> np.ndarray:
    """`surface_sd_mm` of points whose `slopes` are known."""
    aside = logit / calibration.temperature + calibration.bias
    spread = np.sqrt(np.pi**2 / 3 + aside**2) * calibration.temperature / np.maximum(slope, 1e-6)
    return np.minimum(spread, FARTHEST_MM).astype(np.float32)


@dataclass(frozen=True)
class ReliabilityHistogram:
    """What statements and calibration need of a predicted vertebra: its band's voxels, counted by logit.

    Attributes:
        voxels: (240,) in the band.
        bone: (240,) those of them that are truly bone; all 0 where nobody knows.
        deep: voxels found farther inside than the band reaches.
        area_mm2: of the found surface; 0 where nothing is found.
    """

    voxels: np.ndarray
    bone: np.ndarray
    deep: int
    area_mm2: float


def reliability_histogram(probability: np.ndarray, truth: np.ndarray | None = None) -> ReliabilityHistogram:
    """Counts one vertebra, (S, S, S) voxels of 1.5 mm; `truth` is bool."""
    found = probability > 0.5
    if not found.any():
        return ReliabilityHistogram(np.zeros(2 * _BINS, int), np.zeros(2 * _BINS, int), 0, 0.0)
    distance = ndimage.distance_transform_edt(found) + ndimage.distance_transform_edt(~found)
    band = distance * SPACING_MM <= BAND_MM
    # Rounded up, so that the bins above 0 hold what is found.
    bins = np.clip(np.ceil(10 * _logit(probability[band])).astype(int) + _BINS - 1, 0, 2 * _BINS - 1)
    counts = [np.bincount(b, minlength=2 * _BINS) for b in (bins, bins[truth[band]] if truth is not None else bins[:0])]
    slope = ndimage.gaussian_gradient_magnitude(np.pad(found, 4).astype(np.float32), 0.7)
    return ReliabilityHistogram(counts[0], counts[1], int((found & ~band).sum()), float(slope.sum()) * SPACING_MM**2)


def metrics_from_histograms(tallies: Sequence[ReliabilityHistogram], calibration: Calibration) -> pd.DataFrame:
    """As `state`, of tallies; and what the probabilities alone say, as `dice_error_raw` and `assd_mm_raw`."""
    right = calibrated_bins(calibration)
    rows = []
    for one in tallies:
        inside, outside = one.voxels[_BINS:] @ right[_BINS:], one.voxels[:_BINS] @ right[:_BINS]
        found = one.voxels[_BINS:].sum() + one.deep
        wrong = found - one.deep - inside + outside
        bone = one.deep + inside + outside
        rows.append((wrong / (found + bone), wrong * SPACING_MM**3 / one.area_mm2) if found else (1.0, np.inf))
    dice_error, assd = np.array(rows, float).reshape(-1, 2).T
    table = pd.DataFrame({"dice_error_raw": dice_error, "assd_mm_raw": assd})
    sure = np.isinf(assd)
    error, low, high = (np.where(sure, 1.0, np.minimum(e, 1.0)) for e in calibration.dice_error.apply(dice_error))
    table["dice"], table["dice_low"], table["dice_high"] = 1 - error, 1 - high, 1 - low
    for name, values in zip(("assd_mm", "assd_mm_low", "assd_mm_high"), calibration.assd_mm.apply(assd), strict=True):
        table[name] = np.where(sure, np.inf, values)
    return table


def calibrated_bins(calibration: Calibration) -> np.ndarray:
    """(240,) the calibrated probability of each of a tally's bins."""
    return np.asarray(1 / (1 + np.exp(-(LOGITS / calibration.temperature + calibration.bias))))


def _logit(probability: np.ndarray) -> np.ndarray:
    """Logits, float32, as far as single precision tells them from certainty."""
    inside = np.clip(np.asarray(probability, np.float32), np.float32(6e-6), np.float32(1 - 6e-6))
    return np.asarray(np.log(inside) - np.log1p(-inside))


COVERAGE = 0.9
_LEAST = 1e-3
"""Errors below this, of Dice or mm, are as good as none; they have no logarithm."""
_STIFF = 0.01
"""How much a slope holds to 1: as much as people whose statements differ by 10 % hold to theirs."""


@dataclass(frozen=True)
class HeldOutVertebra:
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
    tally: ReliabilityHistogram
    dice: float
    assd_mm: float
    slope: np.ndarray
    logit: np.ndarray
    distance_mm: np.ndarray


def fit_voxel_calibration(probability: np.ndarray, targets: np.ndarray) -> Calibration:
    """Temperature and bias alone, of (N, S, S, S) probabilities and their bool targets; each vertebra counts alike.

    Raises:
        InputError: nothing was found, or no voxel near a found surface is right or none is wrong.
    """
    tallies = [reliability_histogram(p, t) for p, t in zip(probability, targets, strict=True)]
    return _fit_voxels(tallies, np.ones(len(tallies)))


def fit_calibration(
    cases: Sequence[HeldOutVertebra], jitter: TTAConfig | None = None, coverage: float = COVERAGE
) -> Calibration:
    """A calibration for people who are not among these.

    Raises:
        InputError: nothing was found in any of them.
    """
    people = np.array([case.person for case in cases])
    weights = _weights(people)
    bare = _fit_voxels([case.tally for case in cases], weights)
    stated = metrics_from_histograms([case.tally for case in cases], bare)
    observed = pd.DataFrame({"dice": [c.dice for c in cases], "assd_mm": [c.assd_mm for c in cases]})
    # An empty prediction is stated as what it is.
    there = np.isfinite(stated["assd_mm_raw"].to_numpy())
    margins = [
        fit_interval(raw[there], error[there], people[there], coverage)
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
        jitter=jitter or TTAConfig(),
    )


def fit_interval(
    stated: np.ndarray, observed: np.ndarray, people: np.ndarray, coverage: float = COVERAGE
) -> ConformalInterval:
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
    return ConformalInterval(float(np.exp(height)), power, factor if np.isfinite(factor) else None)


def _line(x: np.ndarray, y: np.ndarray, people: np.ndarray) -> tuple[float, float]:
    """Height and slope of the line through logarithms; where these hardly differ the slope stays 1."""
    if not len(x):
        return 0.0, 1.0
    weights = _weights(people)
    middle = weights @ x, weights @ y
    slope = (weights @ ((x - middle[0]) * (y - middle[1])) + _STIFF) / (weights @ (x - middle[0]) ** 2 + _STIFF)
    slope = float(np.clip(slope, 0.5, 3.0))
    return float(middle[1] - slope * middle[0]), slope


def _fit_voxels(tallies: Sequence[ReliabilityHistogram], weights: np.ndarray) -> Calibration:
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


_SURFACE_POINTS = 500
"""Of a vertebra's surface, evenly chosen, that its local errors are measured at."""
_SD_EDGES_MM = (0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, np.inf)
_MEASURES = ("dice", "assd_mm")
_TABLES = ("vertebrae", "voxels", "surface")


@dataclass(frozen=True)
class ReliabilityReport:
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


def examine_networks(
    folds: Iterable[tuple[nn.Module | Sequence[nn.Module], Samples]],
    jitter: TTAConfig | None = None,
    coverage: float = COVERAGE,
) -> ReliabilityReport:
    """Calibrates the networks of a cross-validation, and measures the calibration on people it was not fitted on.

    Args:
        folds: a network (or several) and the samples of a subject that it has not learned from, again and again; one
            subject's are in memory at a time. People whom another fold's network has learned from are as good.
        jitter: how they are asked.
        coverage: of the intervals.

    Raises:
        InputError: fewer than two people.
    """
    jitter = jitter or TTAConfig()
    cases = [case for networks, held_out in folds for case in gather(networks, held_out, jitter)]
    return make_report(cases, jitter, coverage)


def gather(
    networks: nn.Module | Sequence[nn.Module], held_out: Samples, jitter: TTAConfig | None = None
) -> list[HeldOutVertebra]:
    """Predicts the vertebrae of a subject whom the networks have not learned from, and compares them with the truth."""
    answer = tta_predict(networks, held_out.images(), jitter)
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    cases = []
    for level, probability, truth in zip(held_out.levels, answer.probability, held_out.targets(), strict=True):
        observed = metrics.compare(probability > 0.5, truth, SPACING_MM)
        points = np.zeros((0, 3))
        if observed["dice"] > 0:
            points = np.asarray(mesh.extract_surface(probability, affine).vertices)
            points = points[:: max(1, len(points) // _SURFACE_POINTS)]
        slope, logit = slopes(probability, points, affine)
        distance = np.abs(mesh.signed_distance_at(points, truth, affine)) if len(points) else slope
        who = held_out.person or held_out.subject, held_out.subject, levels.name(level)
        counted = reliability_histogram(probability, truth)
        cases.append(HeldOutVertebra(*who, counted, observed["dice"], observed["assd_mm"], slope, logit, distance))
    return cases


def make_report(
    cases: Sequence[HeldOutVertebra], jitter: TTAConfig | None = None, coverage: float = COVERAGE
) -> ReliabilityReport:
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
        other = fit_calibration([case for case in cases if case.person != person], jitter, coverage)
        tables.append(_compare_vertebra(own, other))
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
    return ReliabilityReport(
        fit_calibration(cases, jitter, coverage), vertebrae, voxels, surface, _summary(vertebrae, voxels, surface)
    )


def write_reliability(found: ReliabilityReport, folder: Path) -> None:
    """Writes a report's tables and its calibration, for `read`."""
    for name in _TABLES:
        write_table(folder / f"{name}.csv", getattr(found, name))
    # JSON has no NaN, which a correlation of values that are all equal is.
    summary = {name: value if np.isfinite(value) else None for name, value in found.summary.items()}
    write_json(folder / "calibration.json", {"calibration": found.calibration.card(), "summary": summary})


def read_reliability(folder: Path) -> ReliabilityReport:
    """Reads what `write` wrote.

    Raises:
        InputError: one of its files is missing or damaged.
    """
    said = read_json(folder / "calibration.json", "calibration")
    try:
        tables = {name: pd.read_csv(folder / f"{name}.csv") for name in _TABLES}
        summary = {name: np.nan if value is None else value for name, value in said["summary"].items()}
        return ReliabilityReport(Calibration.from_card(said["calibration"]), **tables, summary=summary)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} does not hold a report of `transvert calibrate` ({error}).") from None


def _compare_vertebra(cases: list[HeldOutVertebra], calibration: Calibration) -> pd.DataFrame:
    """`Report.vertebrae` of one person."""
    tallies = [case.tally for case in cases]
    rows = pd.DataFrame(
        [{n: getattr(case, n) for n in ("person", "subject", "level", "dice", "assd_mm")} for case in cases]
    )
    stated = metrics_from_histograms(tallies, calibration).rename(
        columns={"dice": "dice_stated", "assd_mm": "assd_mm_stated"}
    )
    plain = metrics_from_histograms(tallies, Calibration())
    network = {"dice_network": plain["dice"], "assd_mm_network": plain["assd_mm"]}
    return rows.join(stated.filter(regex="stated|low|high")).assign(**network)


def _by_probability(bins: list[tuple[ReliabilityHistogram, np.ndarray]]) -> pd.DataFrame:
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
