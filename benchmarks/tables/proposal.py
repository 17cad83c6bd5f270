"""Error of landmark proposals: `make bench-proposal` writes proposal.csv, proposal.md and transvert/tables/spacing.csv.

The centroids of 193 CTs (supine-193 of the manifest `public_samples`) give the mean steps from level to level
(spacing.csv). Each spine of at least `LONG` levels is then projected onto two cone films and some levels are clicked.
The others are proposed with the spacing of all other people, and compared with the truth.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.interpolate import make_interp_spline

from benchmarks.results import describe_run, markdown_table, write_results
from transvert import levels
from transvert.clinical import autofill, landmarks
from transvert.clinical.autofill import Spacing
from transvert.clinical.landmarks import Landmarks
from transvert.data.fetch import fetch_subjects
from transvert.drr import geometry
from transvert.drr.geometry import VIEWS
from transvert.model import metrics
from transvert.runs import write_table

HERE = Path(__file__).resolve().parent
LONG = 10
CLICK_MM = 1.5
"""Standard deviation of the simulated clicks along rows and columns, in the patient."""
ALL = 99
CLICKS = ((3, 0), (4, 0), (5, 0), (0, 3), (0, 4), (0, 5), (3, 3), (4, 4), (5, 5), (2, 5), (2, ALL), (3, ALL))
"""Numbers of clicked levels on the AP and on the lateral film."""

# Columns of the files: VerSe numbers in anatomical order, then T13 if there are 26.
_COLUMNS = (*range(1, 26), 28)
_PIXEL_MM, _SHAPE = 0.5, (2400, 1200)


@dataclass(frozen=True)
class Scan:
    """One row of the files.

    Attributes:
        person: identifier; scans of one person share it.
        centroids: level to (3,) RAS mm; left and right may be swapped.
    """

    person: str
    centroids: dict[int, np.ndarray]

    @property
    def chain(self) -> list[int]:
        """The levels, head to tail."""
        return levels.in_order(set(self.centroids))


def main() -> None:
    options = argparse.ArgumentParser(description="Error of a proposal against the number of clicks.")
    options.add_argument("--out", type=Path, default=HERE, help="folder of proposal.csv and proposal.md")
    options.add_argument("--table", type=Path, default=autofill.TABLE, help="path of the spacing table")
    chosen = options.parse_args()
    load = os.getloadavg()[0]
    (subject,) = fetch_subjects("public_samples", roles="centroids", subjects="supine-193")
    scans = read(subject.files)
    write_table(chosen.table, spacing_table(scans))
    autofill.usual_spacing.cache_clear()
    correlations = alike(scans)
    print(correlations.round(2).to_string())
    table = measure(scans)
    summary = summarise(table)
    write_results(chosen.out, "proposal", summary, as_markdown(summary, scans, correlations, describe_run(load)))
    print(summary.round(2).to_string(index=False))


def read(paths: Iterable[Path]) -> list[Scan]:
    """Reads the scans. Names that share an identifier belong to one person."""
    rows = [row for path in paths for row in csv.reader(path.read_text(encoding="utf-8").splitlines())]
    ids = [re.findall(r"(?:verse|GL)\d+", row[0]) for row in rows]
    person = {name: name for names in ids for name in names}
    for names in ids:
        merged = {person[name] for name in names}
        person |= {name: min(merged) for name in person if person[name] in merged}
    scans = []
    for row, names in zip(rows, ids, strict=True):
        points = np.array(row[1:], float).reshape(-1, 3) * (-1, -1, 1)  # the files' axes run to the back, as LPS
        found = {n: point for n, point in zip(_COLUMNS, points, strict=False) if np.isfinite(point).all()}
        scans.append(Scan(person[names[0]], found))
    return scans


def spacing_table(scans: list[Scan]) -> pd.DataFrame:
    """Mean and standard deviation of the step from each level to the next, and the number of people.

    Each person counts once. The mean to the right is 0 by symmetry.
    """
    rows = []
    for upper, lower in _pairs():
        steps: dict[str, list[np.ndarray]] = {}
        for scan in scans:
            if _follows(scan, upper, lower):
                steps.setdefault(scan.person, []).append(scan.centroids[lower] - scan.centroids[upper])
        each = np.array([np.mean(some, axis=0) for some in steps.values()])
        mean, deviation = each.mean(axis=0) * (0, 1, 1), np.array([np.sqrt((each[:, 0] ** 2).mean()), *each.std(0)[1:]])
        row: dict[str, object] = {"upper": levels.name(upper), "lower": levels.name(lower), "people": len(each)}
        for name, of, spread in zip(("right", "front", "up"), mean, deviation, strict=True):
            row |= {f"{name}_mm": round(float(of), 2) + 0.0, f"{name}_sd_mm": round(float(spread), 2)}
        rows.append(row)
    return pd.DataFrame(rows)


def spacing(table: pd.DataFrame) -> Spacing:
    """The spacing table as `autofill` uses it."""
    pairs = [(levels.number(a), levels.number(b)) for a, b in zip(table["upper"], table["lower"], strict=True)]
    mean, deviation = (
        dict(zip(pairs, table[[f"{way}_{what}" for way in ("right", "front", "up")]].to_numpy(float), strict=True))
        for what in ("mm", "sd_mm")
    )
    return Spacing(mean, deviation)


def alike(scans: list[Scan]) -> pd.DataFrame:
    """Correlation of steps with the steps n levels below, measured and as `autofill` assumes it."""
    known, pairs = spacing(spacing_table(scans)), _pairs()
    scaled = np.full((len(scans), len(pairs), 3), np.nan)
    for n, scan in enumerate(scans):
        for k, pair in enumerate(pairs):
            if _follows(scan, *pair):
                step = scan.centroids[pair[1]] - scan.centroids[pair[0]]
                scaled[n, k] = (step - known.mean[pair]) / known.deviation[pair]
    rows = {}
    for apart in range(1, 11):
        found = np.nanmean(scaled[:, :-apart] * scaled[:, apart:], axis=(0, 1))
        taken = autofill.SHARE + (1 - autofill.SHARE) * np.exp(-apart / autofill.REACH)
        names = ("right", "front", "up")
        rows[apart] = dict(zip(names, found, strict=True)) | {
            f"{name}, taken": v for name, v in zip(names, taken, strict=True)
        }
    return pd.DataFrame(rows).T.rename_axis("steps apart")


def measure(scans: list[Scan]) -> pd.DataFrame:
    """One row per proposed level: error, expected error and error of the plain spline, mm in the patient."""
    random, rows = np.random.default_rng(0), []
    long = [scan for scan in scans if len(scan.chain) >= LONG and all(_follows(scan, *pair) for pair in _steps(scan))]
    known: dict[str, Spacing] = {}
    for number, scan in enumerate(long):
        if scan.person not in known:
            known[scan.person] = spacing(spacing_table([other for other in scans if other.person != scan.person]))
        middle = np.mean(list(scan.centroids.values()), axis=0)
        views = {w: geometry.named_view(w, middle, _SHAPE, _PIXEL_MM, cone=True) for w in VIEWS}
        truth = landmarks.project_landmarks(views["ap"], views["lateral"], middle, scan.centroids)
        for counts in CLICKS:
            clicked = {w: _click(scan, truth.centroids[w], n, random) for w, n in zip(VIEWS, counts, strict=True)}
            marks = Landmarks(truth.setups, clicked, middle)
            found = autofill.propose_landmarks(marks, views["ap"], views["lateral"], known[scan.person])
            for which, view in views.items():
                if not clicked[which]:
                    continue
                plain = _plain_spline(scan.chain, clicked[which], known[scan.person])
                for level, pixel in found.centroids[which].items():
                    true, life = truth.centroids[which][level], _PIXEL_MM / view.magnification(scan.centroids[level])[1]
                    rows.append(
                        {
                            "clicks": _clicks_text(counts),
                            "view": which,
                            "region": levels.region(level),
                            "spine": number,
                            "error_mm": float(np.linalg.norm(pixel - true)) * life,
                            "expected_mm": found.error_mm[which][level],
                            "spline_mm": float(np.linalg.norm(plain[level] - true)) * life,
                        }
                    )
    return pd.DataFrame(rows)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Median and 95th percentile of the errors by clicks, view and region, and those of the spline."""
    rows = []
    for (clicks, view, region), some in table.groupby(["clicks", "view", "region"], sort=False):
        row = {"clicks": clicks, "view": view, "region": region, "spines": some["spine"].nunique(), "levels": len(some)}
        for name in ("error", "spline"):
            median, worst = np.percentile(some[f"{name}_mm"], (50, 95))
            row |= {f"{name}_median_mm": median, f"{name}_p95_mm": worst}
        row["rms_mm"] = np.sqrt((some["error_mm"] ** 2).mean())
        row["expected_rms_mm"] = np.sqrt((some["expected_mm"] ** 2).mean())
        rows.append(row)
    found = pd.DataFrame(rows)
    order = [_clicks_text(counts) for counts in CLICKS]
    place = {"clicks": order, "view": list(VIEWS), "region": list(metrics.REGIONS)}
    keys = [found[name].map(names.index) for name, names in place.items()]
    return found.iloc[np.lexsort(keys[::-1])].reset_index(drop=True)


def as_markdown(summary: pd.DataFrame, scans: list[Scan], correlations: pd.DataFrame, run: str) -> str:
    """The measured part of proposal.md."""
    people, next_step = len({scan.person for scan in scans}), correlations.iloc[0]
    rows = []
    for (clicks, view), group in summary.groupby(["clicks", "view"], sort=False):
        cells = []
        for region in metrics.REGIONS:
            row = group[group["region"] == region].iloc[0]
            cells.append(f"{row.error_median_mm:.1f} / {row.error_p95_mm:.1f}")
            cells[-1] += f" ({row.spline_median_mm:.1f} / {row.spline_p95_mm:.1f})"
        square = [(group[f"{name}rms_mm"] ** 2 * group["levels"]).sum() for name in ("expected_", "")]
        rows.append([clicks, view, *cells, f"{np.sqrt(square[0] / square[1]):.2f}"])
    heads = ["clicks", "on", "cervical", "thoracic", "lumbar", "expected ÷ real"]
    correlated = ", ".join(
        f"{next_step[name]:.2f} {way}" for name, way in (("right", "x"), ("front", "y"), ("up", "z"))
    )
    return "\n".join(
        [
            f"{run} {len(scans)} CTs of {people} people; {summary['spines'].max()} spines are measured.\n",
            markdown_table(heads, rows, text_columns=2),
            f"Correlation of a step with the next: {correlated}.",
        ]
    )


def _clicks_text(counts: tuple[int, int]) -> str:
    """For example "2 AP + all lateral"."""
    named = zip(counts, ("AP", "lateral"), strict=True)
    return " + ".join(f"{'all' if count == ALL else count} {name}" for count, name in named if count)


def _pairs() -> list[tuple[int, int]]:
    """All steps of the table, from a level to the next, without T13."""
    usual = [n for n in levels.VERTEBRAE if levels.name(n) != "T13"]
    return list(itertools.pairwise(usual))


def _steps(scan: Scan) -> list[tuple[int, int]]:
    return list(itertools.pairwise(scan.chain))


def _follows(scan: Scan, upper: int, lower: int) -> bool:
    """Whether the scan has this step: both levels, with none (such as T13) between them."""
    return (upper, lower) in _pairs() and (upper, lower) in _steps(scan)


def _click(
    scan: Scan, truth: Mapping[int, np.ndarray], count: int, random: np.random.Generator
) -> dict[int, np.ndarray]:
    """Simulated clicks on a few levels, evenly spread from the first to the last."""
    chosen = np.rint(np.linspace(0, len(scan.chain) - 1, min(count, len(scan.chain)))).astype(int)
    # At the default distances a film magnifies lengths in the patient 1.2 times.
    off = CLICK_MM * geometry.SOURCE_TO_DETECTOR_MM / geometry.SOURCE_TO_ISOCENTRE_MM / _PIXEL_MM
    return {scan.chain[n]: truth[scan.chain[n]] + random.normal(0, off, 2) for n in chosen}


def _plain_spline(chain: list[int], clicked: Mapping[int, np.ndarray], known: Spacing) -> dict[int, np.ndarray]:
    """The baseline: a polynomial spline through the clicks over the mean distance from the top; cubic from 4 clicks."""
    along = np.r_[0, np.cumsum(np.linalg.norm(known.steps(chain)[0], axis=1))]
    at = [along[chain.index(n)] for n in clicked]
    curve = make_interp_spline(at, np.array(list(clicked.values())), k=min(3, len(at) - 1))(along)
    return dict(zip(chain, curve, strict=True))


if __name__ == "__main__":
    main()
