"""Reads the studies' tables and averages them by variant and region."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from transvert.io import read_json
from transvert.model import metrics
from transvert.model.calibration import Calibration, ReliabilityReport

HERE = Path(__file__).resolve().parent
KEYS = ("variant", "budget", "optimiser", "learning_rate", "tested_on", "amount", "unit")
"""Columns that distinguish the rows of a summary, as far as a table has them."""

PAPER_DICE = 0.9552
"""From the paper's abstract, on its own data, which are not public."""
PORT_DICE = 0.836
"""The paper's public port on 241 vertebrae of VerSe19 (Shakya and Khanal, arXiv 2309.13587)."""
PORT_TURNED = {1.0: 0.832, 2.0: 0.832, 5.0: 0.831, 10.0: 0.825}
"""The same port with the lateral view turned by so many degrees."""
OTHER_PERSON_MM = 1.4
"""Typical ASSD of another person's vertebra of the same level, aligned rigidly (1.2 to 1.8 in comparison.csv)."""

_METRICS = (
    ("hd95_mm", "HD95, mm", 1),
    ("assd_mm", "ASSD, mm", 2),
    ("nsd_1p5mm", "NSD 1.5 mm", 3),
    ("steps", "steps", 0),
)


def read_study(name: str) -> pd.DataFrame:
    """The committed table of a study, such as "ablation" or "people": one row per vertebra and variant."""
    return pd.read_csv(HERE / f"{name}.csv", keep_default_na=False, na_values=[""], dtype={"fold": str})


def read_reliability() -> ReliabilityReport:
    """The committed report of `transvert calibrate`."""
    folder = HERE / "calibration"
    card = read_json(folder / "calibration.json", "calibration")["calibration"]
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in ("vertebrae", "voxels", "surface")}
    return ReliabilityReport(Calibration.from_card(card), **tables)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Means of a study, one row per combination of `KEYS` and region, with the region "all" first.

    Returns:
        The keys, `region`, `count` (vertebrae), `empty` (empty predictions), and the means of metrics, steps and seconds.
        Empty predictions count in Dice, not in distances.
    """
    keys = [key for key in KEYS if key in table]
    both = pd.concat([table.assign(region="all"), *(table[table["region"] == letter] for letter in metrics.REGIONS)])
    both = both.assign(empty=np.isinf(both["assd_mm"]) if "assd_mm" in both else False)
    groups = both.replace(np.inf, np.nan).groupby([*keys, "region"], sort=False, dropna=False)
    means = groups[[c for c in (*metrics.METRICS, "steps", "seconds") if c in both]].mean()
    return means.assign(count=groups.size(), empty=groups["empty"].sum()).reset_index()


def distinguishing_keys(table: pd.DataFrame) -> list[str]:
    """Those of `KEYS` in which a study's variants differ."""
    return [key for key in KEYS if key in table and (key == "variant" or table[key].nunique() > 1)]


def readable_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means for a page: Dice over all and by region, distances over all, steps and minutes of the trainings."""
    means, keys = summarise(table), distinguishing_keys(table)
    means[keys] = means[keys].astype(object).where(means[keys].notna(), "")
    by_region = {region: rows.set_index(keys) for region, rows in means.groupby("region", sort=False)}
    whole = by_region.pop("all")
    shown = {"vertebrae": whole["count"], "Dice": whole["dice"].round(3)}
    shown |= {f"Dice {metrics.REGIONS[letter]}": rows["dice"].round(3) for letter, rows in by_region.items()}
    for column, title, digits in _METRICS:
        if column in whole:
            shown[title] = whole[column].round(digits)
    if whole["empty"].any():
        shown["empty"] = whole["empty"]
    if "seconds" in whole:
        shown["minutes"] = (whole["seconds"] / 60).round(1)
    return pd.DataFrame(shown, index=whole.index)


def surface_offset_mm(table: pd.DataFrame, dice: float, region: str = "all") -> float:
    """The offset of a whole surface, in mm, that gives this Dice (mean of outwards and inwards).

    Args:
        table: of the study "resolution".
        dice: from 0 to 1.
        region: "all" or a key of `metrics.REGIONS`.
    """
    means = summarise(table)
    means = means[(means["variant"] == "surface offset") & (means["region"] == region)]
    curve = means.groupby(means["amount"].abs())["dice"].mean()
    return float(np.interp(-dice, [-1.0, *-curve], [0.0, *curve.index]))
