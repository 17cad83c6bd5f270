"""Runs a study, or writes its page from the committed table.

python -m benchmarks.studies ablation STORE       trains; writes ablation.csv, ablation.png and ablation.md
python -m benchmarks.studies comparison STORE     likewise
python -m benchmarks.studies robustness STORE     tests the shipped weights
python -m benchmarks.studies resolution           needs no store and no network
python -m benchmarks.studies pages                writes figures and pages from the committed tables
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from benchmarks.results import markdown_table, write_page
from benchmarks.studies import charts, experiments, untrained
from benchmarks.studies.experiments import Plan
from benchmarks.studies.summary import (
    HERE,
    OTHER_PERSON_MM,
    PAPER_DICE,
    PORT_DICE,
    read_reliability,
    read_study,
    readable_summary,
    summarise,
    surface_offset_mm,
)
from transvert import levels
from transvert.model.augment import AUGMENTATIONS
from transvert.model.train import Recipe
from transvert.runs import write_table

STUDIES: dict[str, Callable[[Plan], pd.DataFrame]] = {
    "ablation": experiments.ablation,
    "comparison": experiments.comparison,
    "robustness": untrained.robustness,
    "resolution": untrained.resolution,
}
SETTINGS: dict[str, tuple[int, float, str, str]] = {
    "ablation": (300, 0.0, "folds:4:2", "films"),
    "comparison": (120, 5.0, "folds:6:2", "drr"),
}
"""Steps, minutes, folds and augmentation of the committed tables."""

_FIRST = ("study", "variant", "budget", "tested_on", "amount", "unit", "fold", "subject", "level", "region", "source")


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m benchmarks.studies", description="Run a study of the network.")
    options.add_argument("study", choices=[*STUDIES, "pages"])
    options.add_argument("store", nargs="?", default="", help="samples, from `transvert synthesize`")
    options.add_argument("--out", type=Path, default=HERE, help="folder of table, figure and page")
    options.add_argument("--work", type=Path, default=Path("runs/studies"), help="folder of the trainings")
    options.add_argument("--variants", default="", help="variants, separated by commas; all by default")
    options.add_argument("--weights", default="shipped", help="robustness: a file, or a folder of folds")
    options.add_argument("--data", default="embedded,public_samples", help="resolution: manifests")
    chosen = options.parse_args()
    if chosen.study == "pages":
        write_pages(HERE)
        return
    steps, minutes, folds, augmentation = SETTINGS.get(chosen.study, (1, 0.0, "", "films"))
    plan = Plan(
        chosen.store,
        chosen.work / chosen.study,
        Recipe(steps=steps, epoch_steps=100, augmentation=AUGMENTATIONS[augmentation]),
        minutes=minutes,
        variants=chosen.variants,
        folds=folds,
        weights=chosen.weights,
        data=chosen.data,
    )
    table = run_study(chosen.study, plan)
    write_table(chosen.out / f"{chosen.study}.csv", table)
    write_figure_and_page(chosen.study, table, chosen.out)


def run_study(name: str, plan: Plan) -> pd.DataFrame:
    """The table of a study: one row per vertebra and variant.

    Raises:
        InputError: as the study.
    """
    table = STUDIES[name](plan)
    table = table.assign(study=name, region=[levels.region(levels.number(level)) for level in table["level"]])
    first = [column for column in _FIRST if column in table]
    return table[[*first, *(column for column in table if column not in first)]]


def write_pages(folder: Path) -> None:
    """Writes figures and measured parts of all pages from the committed tables."""
    for name in (*STUDIES, "people"):
        write_figure_and_page(name, read_study(name), folder)
    write_page(folder / "dice_and_millimetres.md", dice_and_millimetres())
    write_page(folder / "field_of_view.md", field_of_view())
    report = read_reliability()
    _save(charts.reliability_diagram(report), folder / "calibration.png")
    write_page(folder / "calibration.md", charts.describe_reliability(report))


def write_figure_and_page(name: str, table: pd.DataFrame, folder: Path) -> None:
    """Writes the figure of a study and the measured part of its page."""
    _save(charts.draw(name, table), folder / f"{name}.png")
    write_page(folder / f"{name}.md", people_table(table) if name == "people" else study_table(table))


def study_table(table: pd.DataFrame) -> str:
    """The means of a study as a Markdown table."""
    shown = readable_summary(table)
    keys = shown.index.names
    cells = shown.reset_index().apply(lambda column: [_cell(value, str(column.name)) for value in column])
    heads = [str(column).replace("_", " ") for column in cells.columns]
    return markdown_table(heads, cells.itertuples(index=False), text_columns=len(keys))


def people_table(people: pd.DataFrame) -> str:
    """Means of the held-out people, with and without the cervical spine, and the share nearer than another person."""
    below = people[people.region != "C"]
    both = pd.concat([people, below.assign(variant=below.variant + ", without cervical")])
    crop = people[people.variant == "crop"]
    near = crop[crop.assd_mm < OTHER_PERSON_MM]
    line = (
        f"With the cropped field of view, {len(near)} of {len(crop)} vertebrae have an ASSD below {OTHER_PERSON_MM} mm."
    )
    return f"{study_table(both)}\n{line}"


def dice_and_millimetres() -> str:
    """The Dice values of paper and port as offsets of the whole surface."""
    table = read_study("resolution")
    bones = summarise(table).set_index(["variant", "amount", "region"]).dice
    rows = []
    for name, dice in (("paper", PAPER_DICE), ("public port", PORT_DICE)):
        offsets = [f"{surface_offset_mm(table, dice, region):.2f}" for region in ("all", "C", "T", "L")]
        rows.append([name, f"{dice:.4f}", *offsets])
    offsets_table = markdown_table(["", "Dice", "all, mm", "cervical, mm", "thoracic, mm", "lumbar, mm"], rows)
    own, other = (bones[kind, 1.5, "all"] for kind in ("own voxels", "other voxels"))
    return (
        f"Offset of the whole surface that gives the same Dice:\n\n{offsets_table}\n"
        f"Dice of a perfect shape on voxels of 1.5 mm: {own:.3f} with the bone, {other:.3f} with another grid of 1.5 mm."
    )


def field_of_view() -> str:
    """Dice of the ablation's recipe, trained and tested on both fields of view."""
    table = summarise(read_study("ablation")).query("region == 'all'").set_index(["variant", "tested_on"]).dice
    trained = {"full": "complete", "crop": "crop"}
    rows = [[name, *(f"{table[variant, tested]:.3f}" for tested in trained)] for name, variant in trained.items()]
    return markdown_table(["trained on", "tested on full", "tested on crop"], rows)


def _cell(value: object, column: str) -> object:
    if not isinstance(value, float):
        return value
    return "" if pd.isna(value) else f"{value:.3f}" if "Dice" in column or "NSD" in column else f"{value:g}"


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    main()
