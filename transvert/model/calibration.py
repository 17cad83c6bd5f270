"""Calibration: the errors that a prediction states before the truth is known, fitted and tested on held-out people.

Networks trained for overlap are overconfident and predict too much. `Calibration` corrects their probabilities p near the
surface. Two statements follow:

- Dice: 2 sum(p in predicted) / (n + sum(p)) for n predicted voxels.
- A surface point's error: where p falls along the normal as a logistic curve, the true surface is spread about the
  curve's middle with a standard deviation of pi / sqrt(3) over the slope of its logit.

A person counts as the root of their number of vertebrae, which are correlated. Intervals are conformal over people (Lee,
Barber and Willett, arXiv 2306.06342): they cover a vertebra of a new person with a probability of 90 %, if at least 9
people were held out. People are tested with a calibration of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydantic
from scipy import ndimage, optimize
from torch import nn

from transvert import levels
from transvert.data.patches import SPACING_MM
from transvert.data.samples import Samples
from transvert.imaging import mesh
from transvert.imaging.volume import Volume
from transvert.io import InputError, write_json
from transvert.model import metrics
from transvert.model.predict import TTAConfig, tta_predict
from transvert.runs import write_table

COVERAGE = 0.9
BAND_MM = 6.0
"""Distance from the predicted surface within which probabilities are calibrated; beyond, too many are trivially right."""
FARTHEST_MM = 10.0
"""The largest stated error of a surface point; a flatter logit is hardly a surface."""
_BINS = 120  # Of the logit on either side of 0, ten per unit.
LOGITS = (np.arange(2 * _BINS) - _BINS + 0.5) / 10
_SURFACE_POINTS = 500  # Per vertebra, evenly chosen.
_SD_EDGES_MM = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)  # Of the groups in the reliability diagram.
MOST_PASSES = 1000  # Of a card's test-time augmentation.
# Keys of older cards, and their names today.
_OLD_KEYS = {"jitter": "tta", "dice_error": "dice_interval"}
_OLD_KEYS |= {"answers": "passes", "click_mm": "landmark_sd_mm", "magnification": "scale_sd", "noise": "noise_sd"}
_GONE_KEYS = {"assd_mm", "assd_interval"}  # An interval of the ASSD, in older cards.


@dataclass(frozen=True)
class ConformalInterval:
    """Observed errors relative to stated ones: `ratio` times a `power` of them, mostly within a `factor` of that.

    The factor is None if too few people were held out for an interval.
    """

    ratio: float = 1.0
    power: float = 1.0
    factor: float | None = None

    def apply(self, stated: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The expected error and the two ends of its interval, from the error that the probabilities state."""
        expected = self.ratio * stated**self.power
        if self.factor is None:
            return expected, np.zeros_like(expected), np.full_like(expected, np.inf)
        return expected, expected / self.factor, expected * self.factor


@dataclass(frozen=True)
class Calibration:
    """The correction of probabilities and statements, fitted on held-out people; `asdict` is its entry in a card."""

    temperature: float = 1.0  #: Divides the logit; above 1 the network was overconfident.
    bias: float = 0.0  #: Is then added; below 0 the network predicted too much.
    dice_interval: ConformalInterval = field(default_factory=ConformalInterval)  #: Of 1 - Dice.
    coverage: float = COVERAGE  #: Probability that the truth lies in an interval, for a vertebra of a new person.
    people: int = 0
    vertebrae: int = 0
    tta: TTAConfig = field(default_factory=TTAConfig)  #: The test-time augmentation that it holds for.

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, from logits of any shape."""
        return np.asarray(1 / (1 + np.exp(-(logits / self.temperature + self.bias))))

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> Calibration:
        """From the card of weights of any version; other content is an InputError."""
        kinds = {"dice_interval": ConformalInterval, "tta": TTAConfig}
        try:
            values = {_OLD_KEYS.get(key, key): value for key, value in card.items() if key not in _GONE_KEYS}
            for name in kinds.keys() & values.keys():
                values[name] = kinds[name](**{_OLD_KEYS.get(key, key): value for key, value in values[name].items()})
            found: Calibration = pydantic.TypeAdapter(cls).validate_python(asdict(cls(**values)))
            if not (
                0 < found.temperature < np.inf and abs(found.bias) < np.inf and 1 <= found.tta.passes <= MOST_PASSES
            ):
                raise ValueError
            return found
        except (TypeError, AttributeError, ValueError):
            raise InputError("These weights' card holds no calibration; fit one with `transvert calibrate`.") from None


@dataclass(frozen=True)
class ReliabilityHistogram:
    """The voxels near a predicted vertebra's surface, counted by logit."""

    voxels: np.ndarray  #: (240,) within `BAND_MM`.
    bone: np.ndarray  #: (240,) those of them that are truly bone.
    deep: int  #: Predicted voxels farther inside.


@dataclass(frozen=True)
class HeldOutVertebra:
    """A predicted vertebra of a person whom the network was not trained on, with its observed errors."""

    person: str
    subject: str
    level: str
    histogram: ReliabilityHistogram
    dice: float
    slope: np.ndarray  #: (M,) of the logit per mm, at points of the predicted surface.
    logit: np.ndarray  #: (M,) there.
    distance_mm: np.ndarray  #: (M,) from there to the true surface.


@dataclass(frozen=True)
class ReliabilityReport:
    """A calibration, and its errors on people whom it was not fitted on.

    A row of `vertebrae` has person, subject, level, the observed `dice`, and `dice_stated`, `dice_low` and `dice_high`.
    `voxels` are grouped by tenths of stated probability, for the `source` "network" and "calibrated":
    their number `voxels`, means `stated` and `observed`. `surface` are points grouped by stated error: their number
    `points`, root mean squares `stated_mm` and `observed_mm`.
    """

    calibration: Calibration  #: Fitted on everyone, for new people.
    vertebrae: pd.DataFrame
    voxels: pd.DataFrame
    surface: pd.DataFrame

    @property
    def summary(self) -> dict[str, float]:
        """Counts, mean errors of what is stated, and the coverage of the intervals, if there are any."""
        result: dict[str, float] = {"people": self.vertebrae["person"].nunique(), "vertebrae": len(self.vertebrae)}
        for source, rows in self.voxels.groupby("source"):
            gaps = (rows["stated"] - rows["observed"]).abs()
            result[f"voxel_calibration_error_{source}"] = float((rows["voxels"] * gaps).sum() / rows["voxels"].sum())
        observed, stated, low, high = (self.vertebrae[f"dice{end}"] for end in ("", "_stated", "_low", "_high"))
        found = high > 0  # Not of empty predictions.
        result["dice_mean_absolute_error"] = float((observed - stated)[found].abs().mean())
        inside = ((observed >= low) & (observed <= high))[(low > 0) | (high < 1)]
        if len(inside):
            result["dice_coverage"] = float(inside.mean())
        gaps = (self.surface["stated_mm"] - self.surface["observed_mm"]).abs()
        error = (self.surface["points"] * gaps).sum() / max(1, self.surface["points"].sum())
        return result | {"surface_calibration_error_mm": float(error)}


def surface_sd_mm(
    probability: np.ndarray, points: np.ndarray, affine: np.ndarray, calibration: Calibration
) -> np.ndarray:
    """The expected distance (root mean square) of the true surface from points (M, 3) RAS mm of the predicted one.

    The probability (S, S, S) is not calibrated yet; the affine (4, 4) has no shear. Returns (M,) float32 mm, at most
    `FARTHEST_MM`.
    """
    return _slope_to_sd(*_measure_slopes(probability, points, affine), calibration)


def reliability_histogram(probability: np.ndarray, truth: np.ndarray) -> ReliabilityHistogram:
    """Counts one vertebra: probability (S, S, S) on voxels of 1.5 mm, truth bool."""
    found = probability > 0.5
    if not found.any():
        none = np.zeros(2 * _BINS, int)
        return ReliabilityHistogram(none, none, 0)
    distance = ndimage.distance_transform_edt(found) + ndimage.distance_transform_edt(~found)
    band = distance * SPACING_MM <= BAND_MM
    # Rounded up, so that the bins above 0 hold what is predicted.
    bins = np.clip(np.ceil(10 * _logit(probability[band])).astype(int) + _BINS - 1, 0, 2 * _BINS - 1)
    return ReliabilityHistogram(
        np.bincount(bins, minlength=2 * _BINS),
        np.bincount(bins[truth[band]], minlength=2 * _BINS),
        int((found & ~band).sum()),
    )


def expected_dice(histograms: Sequence[ReliabilityHistogram], calibration: Calibration) -> pd.DataFrame:
    """The Dice expected of vertebrae before their truth is known, one row each.

    `dice_stated` has an interval from `dice_low` to `dice_high`; `dice_error` is 1 - Dice as the probabilities state it
    alone. An empty prediction has Dice 0.
    """
    probability = calibration.apply(LOGITS)
    rows = []
    for one in histograms:
        inside, outside = one.voxels[_BINS:] @ probability[_BINS:], one.voxels[:_BINS] @ probability[:_BINS]
        found = one.voxels[_BINS:].sum() + one.deep
        wrong = found - one.deep - inside + outside
        bone = one.deep + inside + outside
        rows.append(wrong / (found + bone) if found else 1.0)  # Only an empty prediction is wrong altogether.
    stated = np.array(rows)
    error, low, high = (np.where(stated < 1, np.minimum(e, 1.0), 1.0) for e in calibration.dice_interval.apply(stated))
    return pd.DataFrame({"dice_error": stated, "dice_stated": 1 - error, "dice_low": 1 - high, "dice_high": 1 - low})


def fit_calibration(cases: Sequence[HeldOutVertebra]) -> Calibration:
    """Fits a calibration for new people; an InputError if there is no bone near the predicted surfaces, or only bone."""
    people = np.array([case.person for case in cases])
    histograms = [case.histogram for case in cases]
    # Temperature and bias: the least cross-entropy in the bands, in which each vertebra has the weight of its person.
    shares = [w / max(1, one.voxels.sum()) for w, one in zip(_weights(people), histograms, strict=True)]
    voxels = sum(s * one.voxels for s, one in zip(shares, histograms, strict=True))
    bone = sum(s * one.bone for s, one in zip(shares, histograms, strict=True))
    if not 0 < np.sum(bone) < np.sum(voxels):
        raise InputError("No calibration fits: near the predicted surfaces there is no bone, or nothing else.")

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        slope = np.exp(-values[0])
        logits = LOGITS * slope + values[1]
        error = voxels / (1 + np.exp(-logits)) - bone
        total = voxels @ np.logaddexp(0, logits) - bone @ logits
        return float(total), np.array([-(error @ LOGITS) * slope, error.sum()])

    best = optimize.minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[(-4, 4), (-10, 10)])
    plain = Calibration(temperature=float(np.exp(best.x[0])), bias=float(best.x[1]))
    stated = expected_dice(histograms, plain)["dice_error"].to_numpy()
    found = stated < 1  # Empty predictions need no interval.
    observed = 1 - np.array([case.dice for case in cases])
    interval = fit_interval(stated[found], observed[found], people[found])
    return replace(plain, dice_interval=interval, people=len(set(people)), vertebrae=len(cases))


def fit_interval(stated: np.ndarray, observed: np.ndarray, people: np.ndarray) -> ConformalInterval:
    """Fits observed errors (N,) to stated ones (N,) of the same unit and people (N,), and a conformal factor between."""
    # Errors below 0.001 have no useful logarithm.
    x, y = np.log(np.maximum(stated, 1e-3)), np.log(np.maximum(observed, 1e-3))
    lines = {p: _fit_line(x[people != p], y[people != p], people[people != p]) for p in np.unique(people)}
    # The distances of each person from the others' line, and of a new person, about whom nothing is known.
    off = np.abs([yn - lines[p][0] - lines[p][1] * xn for xn, yn, p in zip(x, y, people, strict=True)])
    shares = _weights(people, 0) * len(lines) / (len(lines) + 1)
    order = np.argsort(off)
    reached = np.cumsum(shares[order]) >= COVERAGE - 1e-9
    factor = float(np.exp(off[order][reached.argmax()])) if reached.any() else None
    height, power = _fit_line(x, y, people)
    return ConformalInterval(float(np.exp(height)), power, factor)


def measure_vertebrae(network: nn.Module, held_out: Samples) -> list[HeldOutVertebra]:
    """Predicts the vertebrae of a subject whose person the network was not trained on, and compares them with the truth."""
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    predicted = tta_predict(network, held_out.images())
    cases = []
    for level, probability, truth in zip(held_out.levels, predicted, held_out.targets(), strict=True):
        dice = metrics.compare(probability > 0.5, truth, SPACING_MM)["dice"]
        points = np.zeros((0, 3))
        if dice > 0:
            points = np.asarray(mesh.extract_surface(probability, affine).vertices)
            points = points[:: max(1, len(points) // _SURFACE_POINTS)]
        slope, logit = _measure_slopes(probability, points, affine)
        distance = np.abs(mesh.signed_distance_at(points, truth, affine)) if len(points) else slope
        names = held_out.person or held_out.subject, held_out.subject, levels.name(level)
        histogram = reliability_histogram(probability, truth)
        cases.append(HeldOutVertebra(*names, histogram, dice, slope, logit, distance))
    return cases


def make_report(cases: Sequence[HeldOutVertebra]) -> ReliabilityReport:
    """Calibrates vertebrae of `measure_vertebrae`, and tests each person with a calibration of the others."""
    people = sorted({case.person for case in cases})
    if len(people) < 2:
        raise InputError(f"A calibration is tested on people it was not fitted on: hold out two, not {len(people)}.")
    tables, bins, points = [], [], []
    names = ["person", "subject", "level", "dice"]
    for person in people:
        own = [case for case in cases if case.person == person]
        other = fit_calibration([case for case in cases if case.person != person])
        stated = expected_dice([case.histogram for case in own], other).drop(columns="dice_error")
        tables.append(pd.DataFrame(own)[names].join(stated))
        bins += [(case.histogram, other.apply(LOGITS)) for case in own]
        points += [(_slope_to_sd(case.slope, case.logit, other), case.distance_mm) for case in own]
    plain = [(histogram, Calibration().apply(LOGITS)) for histogram, _ in bins]
    voxels = [_group_voxels(plain).assign(source="network"), _group_voxels(bins).assign(source="calibrated")]
    surface = _group_points(*(np.concatenate(part) for part in zip(*points, strict=True)))
    vertebrae, voxels = (pd.concat(parts, ignore_index=True) for parts in (tables, voxels))
    return ReliabilityReport(fit_calibration(cases), vertebrae, voxels, surface)


def write_reliability(report: ReliabilityReport, folder: Path) -> None:
    """Writes a report's tables, its calibration and its summary."""
    for name in ("vertebrae", "voxels", "surface"):
        write_table(folder / f"{name}.csv", getattr(report, name))
    write_json(folder / "calibration.json", {"calibration": asdict(report.calibration), "summary": report.summary})


def _logit(probability: np.ndarray) -> np.ndarray:
    """Logits, float32, limited to what single precision distinguishes from certainty."""
    inside = np.clip(np.asarray(probability, np.float32), np.float32(6e-6), np.float32(1 - 6e-6))
    return np.asarray(np.log(inside) - np.log1p(-inside))


def _measure_slopes(probability: np.ndarray, points: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The slope of the logit per mm at points, and the logit there, (M,) each."""
    logits = _logit(probability)
    slope = np.sqrt(sum(step**2 for step in np.gradient(logits, *np.linalg.norm(affine[:3, :3], axis=0))))
    where = Volume(logits, affine).index(points).T
    slope, logit = (ndimage.map_coordinates(values, where, order=1, mode="nearest") for values in (slope, logits))
    return slope, logit


def _slope_to_sd(slope: np.ndarray, logit: np.ndarray, calibration: Calibration) -> np.ndarray:
    offset = logit / calibration.temperature + calibration.bias
    sd = np.sqrt(np.pi**2 / 3 + offset**2) * calibration.temperature / np.maximum(slope, 1e-6)
    return np.minimum(sd, FARTHEST_MM).astype(np.float32)


def _fit_line(x: np.ndarray, y: np.ndarray, people: np.ndarray) -> tuple[float, float]:
    """Height and slope of a line; the slope is drawn to 1 as by people whose x differ by 0.1."""
    if not len(x):
        return 0.0, 1.0
    weights = _weights(people)
    middle = weights @ x, weights @ y
    slope = (weights @ ((x - middle[0]) * (y - middle[1])) + 0.01) / (weights @ (x - middle[0]) ** 2 + 0.01)
    slope = float(np.clip(slope, 0.5, 3.0))
    return float(middle[1] - slope * middle[0]), slope


def _weights(people: np.ndarray, power: float = 0.5) -> np.ndarray:
    """(N,) weights that sum to 1: a person has their count of vertebrae to a power, shared among these."""
    _, number, counts = np.unique(people, return_inverse=True, return_counts=True)
    return np.asarray(counts[number] ** (power - 1.0) / (counts**power).sum())


def _group_voxels(bins: list[tuple[ReliabilityHistogram, np.ndarray]]) -> pd.DataFrame:
    """Voxels by tenths of stated probability."""
    count, stated, bone = np.zeros((3, 10))
    for one, probability in bins:
        tenth = np.minimum((10 * probability).astype(int), 9)
        count += np.bincount(tenth, one.voxels, 10)
        stated += np.bincount(tenth, one.voxels * probability, 10)
        bone += np.bincount(tenth, one.bone, 10)
    some = np.where(count > 0, count, np.nan)
    return pd.DataFrame({"voxels": count.astype(int), "stated": stated / some, "observed": bone / some})


def _group_points(stated: np.ndarray, observed: np.ndarray) -> pd.DataFrame:
    """Surface points by stated error; groups without points have a mean of 0."""
    group = np.digitize(stated, _SD_EDGES_MM)
    rows = []
    for here in (group == n for n in range(len(_SD_EDGES_MM) + 1)):
        count = int(here.sum())
        rms = [float(np.sqrt((values[here] ** 2).sum() / max(1, count))) for values in (stated, observed)]
        rows.append({"points": count, "stated_mm": rms[0], "observed_mm": rms[1]})
    return pd.DataFrame(rows)
