"""Whether a prediction is as good as it says: calibration fitted on some people and measured on others.

Whoever is measured has trained neither the network that answers nor the calibration that its answers are read with. Of
K people held out of some training, each is measured with a calibration fitted on the other K - 1 (`fitting`); the
calibration that comes out, fitted on all K, is for people who are none of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from transvert import levels, mesh, metrics
from transvert.confidence import Calibration, Tally, calibrated_bins, slopes, spread_mm, statements, tally
from transvert.files import InputError, read_json, write_json
from transvert.fitting import COVERAGE, Case, fit
from transvert.record import write_table
from transvert.samples import SPACING_MM, Samples
from transvert.uncertainty import Jitter, ask

_POINTS = 500
"""Of a vertebra's surface, evenly chosen, that its local errors are measured at."""
_SD_EDGES_MM = (0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, np.inf)
_MEASURES = ("dice", "assd_mm")
_TABLES = ("vertebrae", "voxels", "surface")


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


def write(found: Report, folder: Path) -> None:
    """Writes a report's tables and its calibration, for `read`."""
    for name in _TABLES:
        write_table(folder / f"{name}.csv", getattr(found, name))
    # JSON has no NaN, which a correlation of values that are all equal is.
    summary = {name: value if np.isfinite(value) else None for name, value in found.summary.items()}
    write_json(folder / "calibration.json", {"calibration": found.calibration.card(), "summary": summary})


def read(folder: Path) -> Report:
    """Reads what `write` wrote.

    Raises:
        InputError: one of its files is missing or damaged.
    """
    said = read_json(folder / "calibration.json", "calibration")
    try:
        tables = {name: pd.read_csv(folder / f"{name}.csv") for name in _TABLES}
        summary = {name: np.nan if value is None else value for name, value in said["summary"].items()}
        return Report(Calibration.from_card(said["calibration"]), **tables, summary=summary)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} does not hold a report of `transvert calibrate` ({error}).") from None


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
