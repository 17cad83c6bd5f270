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
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage

from transvert.files import InputError
from transvert.samples import SPACING_MM
from transvert.uncertainty import Jitter
from transvert.volume import Volume

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
class Margin:
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
    dice_error: Margin = field(default_factory=Margin)
    assd_mm: Margin = field(default_factory=Margin)
    coverage: float = 0.9
    people: int = 0
    vertebrae: int = 0
    jitter: Jitter = field(default_factory=Jitter)

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
        parts = {"dice_error": Margin, "assd_mm": Margin, "jitter": Jitter}
        try:
            return cls(**{name: parts[name](**value) if name in parts else value for name, value in card.items()})
        except (TypeError, AttributeError):
            raise InputError("These weights' card holds no calibration; fit one with `transvert calibrate`.") from None


def state(probability: np.ndarray, calibration: Calibration) -> pd.DataFrame:
    """What is to be expected of each vertebra, before anybody knows the truth.

    Args:
        probability: (N, 64, 64, 64), not calibrated; the vertebra is where it exceeds 0.5.
        calibration: for such answers.

    Returns:
        A row a vertebra: `dice` and `assd_mm` as `metrics.compare` would find them, and the `_low` and `_high` ends of
        their intervals. Of an empty prediction Dice is 0 and ASSD infinite, and that is sure.
    """
    return statements([tally(p) for p in probability], calibration)


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
class Tally:
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


def tally(probability: np.ndarray, truth: np.ndarray | None = None) -> Tally:
    """Counts one vertebra, (S, S, S) voxels of 1.5 mm; `truth` is bool."""
    found = probability > 0.5
    if not found.any():
        return Tally(np.zeros(2 * _BINS, int), np.zeros(2 * _BINS, int), 0, 0.0)
    distance = ndimage.distance_transform_edt(found) + ndimage.distance_transform_edt(~found)
    band = distance * SPACING_MM <= BAND_MM
    # Rounded up, so that the bins above 0 hold what is found.
    bins = np.clip(np.ceil(10 * _logit(probability[band])).astype(int) + _BINS - 1, 0, 2 * _BINS - 1)
    counts = [np.bincount(b, minlength=2 * _BINS) for b in (bins, bins[truth[band]] if truth is not None else bins[:0])]
    slope = ndimage.gaussian_gradient_magnitude(np.pad(found, 4).astype(np.float32), 0.7)
    return Tally(counts[0], counts[1], int((found & ~band).sum()), float(slope.sum()) * SPACING_MM**2)


def statements(tallies: Sequence[Tally], calibration: Calibration) -> pd.DataFrame:
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
