"""The page of the standing phantoms: from a row a reconstruction, and a row a vertebra, to sums and aims."""

from __future__ import annotations

from datetime import date

import pandas as pd
import torch

CLICKS_MM = (0.0, 2.0, 4.0)
PREDICTORS = {
    "network": "landmarks of whole vertebrae; endplates lean as is likeliest by shapes and landmarks",
    "corners": "the same shapes; beside the centroids the corners of six bodies or so are marked, clicked as the centroids are",
    "bodies": "landmarks of the bodies' middles, as a reader sees them",
    "shapes": "the first one's shapes alone: endplates as they were reconstructed",
    "oracle": "a perfect network: the true bone, as far as the patch's cube holds it",
    "centred": "the true shape, centred where the clicks place it",
}

RUN_MEASURES = {
    "Cobb between the true end levels, degrees": "error_cobb_deg",
    "largest Cobb, degrees": "error_largest_cobb_deg",
    "kyphosis T4-T12, degrees": "error_kyphosis_deg",
    "lordosis L1-L5, degrees": "error_lordosis_deg",
    "lordosis L1-S1, degrees": "error_lordosis_s1_deg",
    "sagittal vertical axis, mm": "error_plumb_mm",
    "processor seconds from landmarks to spine and posture": "seconds",
}
BONE_MEASURES = {
    "axial rotation, degrees": "error_rotation_deg",
    "centroid, mm": "centroid_mm",
    "place, mm": "place_mm",
    "Dice": "dice",
    "ASSD, mm": "assd_mm",
    "ASSD to the bone at rest, aligned, mm": "aligned_assd_mm",
}
OPERATORS = {
    "Cobb between the true end levels, degrees": "4",
    "largest Cobb, degrees": "4",
    "kyphosis T4-T12, degrees": "4",
    "lordosis L1-S1, degrees": "7",
    "axial rotation, degrees": "6.5",
    "centroid, mm": "2",
    "processor seconds from landmarks to spine and posture": "660 to 900",
}
"""Published reproducibility of operators on a clinical biplanar system, and the time they take for a spine."""

DICE_AIM = 0.02
AIMS = (
    *((0.0, name, 2.0) for name in [*list(RUN_MEASURES)[:5], "axial rotation, degrees"]),
    (0.0, "centroid, mm", 1.0),
    *((2.0, name, 3.0) for name in list(RUN_MEASURES)[:3]),
    *((2.0, name, 4.0) for name in list(RUN_MEASURES)[3:5]),
    (2.0, "axial rotation, degrees", 5.0),
)
"""Clicks' error in mm, measure, and the most that its mean may be."""


def summarise(runs: pd.DataFrame, bones: pd.DataFrame) -> pd.DataFrame:
    """The size of each measure's errors, by predictor and click: mean, median, 95th percentile, and the signed mean."""
    rows = []
    for table, names in ((runs, RUN_MEASURES), (bones, BONE_MEASURES)):
        for (predictor, click_mm), part in table.groupby(["predictor", "click_mm"], sort=False):
            for name, column in names.items():
                values = part[column].dropna().astype(float) if column in part else pd.Series(dtype=float)
                if len(values):
                    sizes = values.abs()
                    row = {"predictor": predictor, "click_mm": click_mm, "measure": name, "count": len(values)}
                    row |= {"mean": sizes.mean(), "median": sizes.median(), "p95": sizes.quantile(0.95)}
                    rows.append(row | {"signed": values.mean()})
    return pd.DataFrame(rows)


def as_markdown(runs: pd.DataFrame, bones: pd.DataFrame, machine: str, learned: list[str]) -> str:
    """The page that is committed; `machine` is from `describe_machine`, `learned` the subjects of the weights."""
    figures = summarise(runs, bones).set_index(["predictor", "click_mm", "measure"])
    counts = runs.drop_duplicates(["subject", "posture"]).groupby("subject", sort=False).size()
    told = ", ".join(f"{subject} {count}" for subject, count in counts.items())
    parts = [
        "# Standing phantoms, reconstructed\n",
        "Written by `make bench-standing`. [README.md](README.md) says what is measured and how, "
        + "[standing.csv](standing.csv) and [standing_vertebrae.csv](standing_vertebrae.csv) have more.\n",
        f"{machine}; {date.today()}; torch {torch.__version__}, one thread a process.\n",
        f"Postures: {told}. The weights have learned from: {', '.join(learned) or 'unknown'}.\n",
        "Cells: mean size of the error (median; 95 % are below).\n",
    ]
    for predictor, what in PREDICTORS.items():
        clicks = [mm for mm in CLICKS_MM if (predictor, mm) in {key[:2] for key in figures.index}]
        heads = ["exact landmarks" if not mm else f"clicks of {mm:g} mm" for mm in clicks]
        parts.append(f"## {predictor.capitalize()}\n\n{what[0].upper()}{what[1:]}.\n")
        lines = [f"| | {' | '.join(heads)} | operators |", "|---" + "|---:" * (len(heads) + 1) + "|"]
        for measure in [*RUN_MEASURES, *BONE_MEASURES]:
            cells = [_cell(figures, (predictor, mm, measure)) for mm in clicks]
            if any(cell != "-" for cell in cells):
                lines.append(f"| {measure} | {' | '.join(cells)} | {OPERATORS.get(measure, '-')} |")
        parts.append("\n".join(lines) + "\n")
        if predictor == "network":
            parts.append(_by_person(runs, bones))
    network = runs[runs.predictor == "network"]
    parts.append("## Aims\n")
    parts += [f"- {line}\n" for line in _aims(figures, network)]
    return "\n".join(parts).replace("\n\n- ", "\n- ").rstrip() + "\n"


def _by_person(runs: pd.DataFrame, bones: pd.DataFrame) -> str:
    """The network's figures with exact landmarks, a column a person: some of them it has learned from."""
    people = list(dict.fromkeys(runs["subject"]))
    tables = {}
    for person in people:
        mine = (
            t[(t["subject"] == person) & (t["predictor"] == "network") & (t["click_mm"] == 0)] for t in (runs, bones)
        )
        tables[person] = summarise(*mine).set_index(["predictor", "click_mm", "measure"])
    lines = [f"| exact landmarks | {' | '.join(people)} |", "|---" + "|---:" * len(people) + "|"]
    for measure in [*RUN_MEASURES, *BONE_MEASURES]:
        cells = [_cell(tables[person], ("network", 0.0, measure)) for person in people]
        if any(cell != "-" for cell in cells):
            lines.append(f"| {measure} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _aims(figures: pd.DataFrame, network: pd.DataFrame) -> list[str]:
    """What was to be reached, by the mean size of the error, and whether it is."""
    lines = []
    for predictor, marked in (("network", "landmarks"), ("corners", "landmarks with corners")):
        for click_mm, measure, most in AIMS:
            if (predictor, click_mm, measure) in figures.index:
                mean = figures.loc[(predictor, click_mm, measure), "mean"]
                how = f"exact {marked}" if not click_mm else f"{marked}, clicks of {click_mm:g} mm"
                lines.append(
                    f"{measure}, {how}: {mean:.2f}, to be at most {most:g}: {'yes' if mean <= most else 'no'}."
                )
    exact = network[network.click_mm == 0]
    lost = float((exact.dice_alone - exact.dice).mean())
    reached = "yes" if lost <= DICE_AIM else "no"
    lines.append(
        f"Dice, exact landmarks: {exact.dice.mean():.3f}, and {exact.dice_alone.mean():.3f} of the same bones one by one "
        f"from parallel pictures without noise; to be at most {DICE_AIM} less: {reached}."
    )
    clicked = network[network.click_mm > 0].groupby("click_mm")[["clicked_again", "vertebrae"]].sum()
    for click_mm, row in clicked.iterrows():
        share = row.clicked_again / row.vertebrae
        lines.append(f"Clicks of {click_mm:g} mm: {share:.1%} of the vertebrae were refused and clicked again.")
    return lines


def _cell(figures: pd.DataFrame, key: tuple[str, float, str]) -> str:
    if key not in figures.index:
        return "-"
    row = figures.loc[key]
    digits = 3 if key[2] == "Dice" else 2
    return f"{row['mean']:.{digits}f} ({row['median']:.{digits}f}; {row['p95']:.{digits}f})"
