"""The studies of notebook 03: what of the recipe matters, how peers do, what faults of films cost, and what voxels do.

Each is a function of a `Plan` and gives one long table, a row a vertebra. The tables of this project's own runs are in
`tables/`; its README says how each was made.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import pandas as pd

from benchmarks.studies import corruptions, experiments, voxelisation
from benchmarks.studies.experiments import Plan, wanted
from transvert import levels
from transvert.data import manifest
from transvert.io import PACKAGE, InputError
from transvert.model import evaluate, metrics
from transvert.model.predict import predict

KEYS = ("variant", "budget", "optimiser", "learning_rate", "tested_on", "amount", "unit")
"""What tells the rows of a summary apart, as far as a study has it."""
PAPER_DICE, PORT_DICE = 0.9552, 0.836
"""Of the paper, by its abstract, on its own data; and of its public port on 241 vertebrae of VerSe19 (xrayto3D-benchmark),"""
PORT_TURNED = {1.0: 0.832, 2.0: 0.832, 5.0: 0.831, 10.0: 0.825}
"""and with the lateral view turned by so many degrees."""
OTHER_PERSON_MM = 1.4
"""About how far another person's vertebra of the same level lies from the true one, moved onto it rigidly (1.2 to 1.8 in `peers`)."""
SPACINGS_MM = (1.5, 1.0, 0.75, 0.5)
OFFSETS_MM = (0.25, 0.5, 0.75, 1.0, 1.5)
_FIRST = ("study", "variant", "budget", "tested_on", "amount", "unit", "fold", "subject", "level", "region", "source")
_REST = (("hd95_mm", "HD95 mm", 1), ("assd_mm", "ASSD mm", 2), ("nsd_1p5mm", "NSD 1.5 mm", 3), ("steps", "steps", 0))
_TABLES = PACKAGE / "tables"
CALIBRATION = _TABLES / "calibration"
"""The report that `reliability.read` reads: of the shipped weights' recipe, on the same people held out in turn."""


def robustness(plan: Plan) -> pd.DataFrame:
    """What faults of the films cost trained weights, tested on everybody of the store whom they were not trained on.

    Raises:
        InputError: no such fault, no weights, or nobody to test on.
    """
    kinds, tables = wanted(plan, corruptions.KINDS), []
    for fold, network, card, subject in evaluate.unseen_people(plan.store, plan.weights):
        for alone in (False, True) if subject.surroundings == "body" else (True,):
            for kind, amount in ((k, a) for k in dict.fromkeys(["none", *kinds]) for a in corruptions.KINDS[k].amounts):
                images, moved = corruptions.corrupted_images(
                    subject, corruptions.KINDS[kind].make(amount), alone=alone, seed=plan.seed
                )
                made = corruptions.put_back(predict(network, images, mirror=True), moved)
                table = evaluate.score_samples(subject, made).assign(variant=kind, amount=amount, fold=fold)
                told = {"tested_on": "cube" if alone else "body", "unit": corruptions.KINDS[kind].unit}
                tables.append(table.assign(network=card["network"], **told))
        plan.say(f"{subject.subject}: {len(subject)} vertebrae shown with every fault.")
    return pd.concat(tables, ignore_index=True)


def resolution(plan: Plan) -> pd.DataFrame:
    """What voxels alone cost in Dice, and what a surface costs that lies too far out or in everywhere.

    Raises:
        InputError: no such variant or manifest, or no bone is known finely enough.
    """
    chosen = wanted(plan, ("own voxels", "other voxels", "surface offset"))
    offsets = tuple(sign * mm for mm in OFFSETS_MM for sign in (1, -1))
    rows = []
    for name in plan.data.split(","):
        for subject in manifest.fetch_subjects(manifest.load_manifest(name.strip())):
            for level, source, surface in voxelisation.solids(subject):
                seed = zlib.crc32(f"{subject.name}/{level}/{plan.seed}".encode())
                costs = voxelisation.voxel_cost(surface, SPACINGS_MM, np.random.default_rng(seed))
                found = [("own voxels", mm, own) for mm, (own, _) in zip(SPACINGS_MM, costs, strict=True)]
                found += [("other voxels", mm, other) for mm, (_, other) in zip(SPACINGS_MM, costs, strict=True)]
                moved = zip(offsets, voxelisation.offset_cost(surface, offsets), strict=True)
                found += [("surface offset", mm, dice) for mm, dice in moved]
                told = {"subject": subject.name, "level": levels.name(level), "source": source, "unit": "mm"}
                rows += [{"variant": v, "amount": mm, "dice": d, **told} for v, mm, d in found if v in chosen]
                plan.say(f"{subject.name} {levels.name(level)}: measured.")
    if not rows:
        raise InputError(f"No bone of {plan.data} is known finely enough; name manifests with surfaces or fine masks.")
    return pd.DataFrame(rows)


STUDIES: dict[str, Callable[[Plan], pd.DataFrame]] = {
    "ablation": experiments.ablation,
    "peers": experiments.peers,
    "robustness": robustness,
    "resolution": resolution,
}


def run(name: str, plan: Plan) -> pd.DataFrame:
    """A study's table: a row a vertebra, with what it was made by and with, and its metrics.

    Raises:
        InputError: no such study; or as the study.
    """
    _check(name)
    table = STUDIES[name](plan)
    regions = [levels.region(levels.number(level)) for level in table["level"]]
    table = table.assign(study=name, region=regions)
    first = [column for column in _FIRST if column in table]
    return table[[*first, *(column for column in table if column not in first)]]


def committed(name: str) -> pd.DataFrame | None:
    """The table of this project's own run of a study, or of "people", held out in turn; None where there is none yet.

    Raises:
        InputError: no such study.
    """
    if name != "people":
        _check(name)
    path = _TABLES / f"{name}.csv"
    return pd.read_csv(path, keep_default_na=False, na_values=[""]) if path.exists() else None


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A study's means: a row for each of `KEYS` and region, "all" first.

    Returns:
        The keys, `region`, `count` (vertebrae), `empty` (predictions that were), and the means of metrics, steps and
        seconds. Distances are over the other predictions alone.
    """
    keys = [key for key in KEYS if key in table]
    both = pd.concat([table.assign(region="all"), *(table[table["region"] == letter] for letter in metrics.REGIONS)])
    both = both.assign(empty=np.isinf(both["assd_mm"]) if "assd_mm" in both else False)
    groups = both.replace(np.inf, np.nan).groupby([*keys, "region"], sort=False, dropna=False)
    means = groups[[c for c in (*metrics.METRICS, "steps", "seconds") if c in both]].mean()
    return means.assign(count=groups.size(), empty=groups["empty"].sum()).reset_index()


def telling(table: pd.DataFrame) -> list[str]:
    """Those of `KEYS` in which a study's variants differ."""
    return [key for key in KEYS if key in table and (key == "variant" or table[key].nunique() > 1)]


def legible(table: pd.DataFrame) -> pd.DataFrame:
    """A study's means to read: Dice of all and by region, distances of all, and what the trainings took."""
    means, keys = summary(table), telling(table)
    means[keys] = means[keys].astype(object).where(means[keys].notna(), "")
    by_region = {region: rows.set_index(keys) for region, rows in means.groupby("region", sort=False)}
    whole = by_region.pop("all")
    shown = {"vertebrae": whole["count"], "Dice": whole["dice"].round(3)}
    shown |= {f"Dice {metrics.REGIONS[letter]}": rows["dice"].round(3) for letter, rows in by_region.items()}
    for column, title, digits in _REST:
        if column in whole:
            shown[title] = whole[column].round(digits)
    if whole["empty"].any():
        shown["empty"] = whole["empty"]
    if "seconds" in whole:
        shown["minutes"] = (whole["seconds"] / 60).round(1)
    return pd.DataFrame(shown, index=whole.index)


def offset_at(table: pd.DataFrame, dice: float, region: str = "all") -> float:
    """How far off in mm a whole surface costs so much Dice: of the table of "resolution", outwards and inwards averaged."""
    means = summary(table)
    means = means[(means["variant"] == "surface offset") & (means["region"] == region)]
    curve = means.groupby(means["amount"].abs())["dice"].mean()
    return float(np.interp(-dice, [-1.0, *-curve], [0.0, *curve.index]))


def _check(name: str) -> None:
    if name not in STUDIES:
        raise InputError(f"'{name}' is not a study; use {', '.join(STUDIES)}.")
