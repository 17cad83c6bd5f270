"""The studies: who is held out, what each variant changes, resuming, and what the summaries say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import Patient, part_alone
from pandas.testing import assert_frame_equal

from benchmarks.studies import charts, experiments, summary, untrained
from benchmarks.studies.__main__ import STUDIES, run_study
from benchmarks.studies.experiments import Plan, Variant
from transvert.data import samples, splits
from transvert.data.samples import Samples
from transvert.data.store import read_index
from transvert.io import InputError
from transvert.model import metrics, networks
from transvert.model.train import Recipe

L1, L2 = 20, 21


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dice alone: distances have tests of their own and are slow."""

    def compare(prediction: np.ndarray, truth: np.ndarray, _: Any) -> dict[str, float]:
        dice = 2 * (prediction & truth).sum() / (prediction.sum() + truth.sum())
        return {"dice": float(dice), "hd95_mm": 4.0, "assd_mm": 1.0, "nsd_1p5mm": 0.5}

    monkeypatch.setattr(metrics, "compare", compare)


@pytest.fixture
def store(box_samples: Samples, tmp_path: Path) -> Path:
    """Four people, one with two scans; the first two are phantoms."""
    for n, person in enumerate(("", "", "sub-p", "sub-p", "")):
        one = box_samples.chosen([L1, L2] if n == 0 else [L2])
        samples.write_samples(
            tmp_path / "store", replace(one, subject=f"sub-{n}", person=person, source=("phantom", "ct")[n > 1])
        )
    return tmp_path / "store"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], Recipe]]:
    """Replaces training and prediction, and lists the subjects and recipe of each training."""
    calls: list[tuple[list[str], Recipe]] = []

    def train(subjects: Any, _: Any, recipe: Recipe, folder: Path, *, on_epoch: Any = None, **__: Any) -> pd.DataFrame:
        names = [subject.subject for subject in subjects]
        curve = pd.DataFrame([{"step": recipe.steps, "loss": 1.0, "seconds": 2.0 * recipe.steps}])
        if on_epoch:
            on_epoch(curve)
        network = networks.build_network(recipe.network, **recipe.options)
        card = {"subjects": names}
        networks.save_weights(Path(folder) / "weights.safetensors", network, recipe.network, recipe.options, **card)
        calls.append((names, recipe))
        return curve

    monkeypatch.setattr(experiments, "train_network", train)
    monkeypatch.setattr(experiments, "predict", lambda _, images, **__: np.ones((len(images), 64, 64, 64), np.float32))
    return calls


@pytest.fixture
def plan(store: Path, tmp_path: Path, quick: None, trained: list[Any]) -> Plan:
    recipe = Recipe("transvert", {"width": 8}, steps=2, epoch_steps=1, batch=2, precision="32", device="cpu")
    return Plan(store, tmp_path / "out", recipe, folds="folds:2", log=lambda _: None)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variants with small networks."""
    small = Variant({"network": "transvert"}, {"width": 8}, shown=("own", "crop"))
    monkeypatch.setattr(
        experiments, "ABLATION", {"complete": small, "other": replace(small, augmentation={"crop": 1.0})}
    )
    monkeypatch.setattr(experiments, "COMPARISON", {"small": small, "smaller": replace(small, options={"width": 4})})


@pytest.mark.usefixtures("tiny")
def test_each_held_out_vertebra_is_tested_once_per_variant_and_input(plan: Plan) -> None:
    table = run_study("ablation", plan)
    assert len(table) == 6 * 2 * 2 and not table.duplicated(["variant", "tested_on", "subject", "level"]).any()
    assert table.columns[:3].tolist() == ["study", "variant", "tested_on"]
    assert set(table["tested_on"]) == {"full", "crop"} and set(table["region"]) == {"L"}
    people = table.merge(read_index(plan.store)[["subject", "person"]].drop_duplicates())
    assert (people.groupby("person")["fold"].nunique() == 1).all()
    for fold, part in table.groupby("fold"):
        _, card = networks.load_network(plan.out / "complete" / str(fold) / "weights.safetensors")
        assert not set(card["subjects"]) & set(part["subject"])


@pytest.mark.usefixtures("tiny")
def test_a_stopped_study_trains_only_what_is_missing(plan: Plan, trained: list[Any]) -> None:
    def stop(line: str) -> None:
        if line.startswith("complete fold2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study("ablation", replace(plan, log=stop))
    assert len(trained) == 1
    one = run_study("ablation", replace(plan, variants="complete"))
    assert len(trained) == 2
    both = run_study("ablation", plan)
    assert len(trained) == 4
    assert_frame_equal(both[both["variant"] == "complete"], one)
    run_study("ablation", replace(plan, recipe=replace(plan.recipe, seed=1)))
    assert len(trained) == 8, "another recipe trains again"


def test_each_variant_changes_what_it_says() -> None:
    base = Recipe("transvert_hull", {"width": 64}, steps=40, learning_rate=1e-3)
    made = {name: variant.recipe(base) for name, variant in (experiments.ABLATION | experiments.COMPARISON).items()}
    complete = made["complete"]
    assert complete == base
    changed = {
        "without_maps": {"options": {"width": 64, "maps": False}},
        "without_attention": {"options": {"width": 64, "attention": False}},
        "one_view": {"view_dropout": 1.0, "steps": 80},
        "phantoms_only": {},
        "crop": {"augmentation": replace(base.augmentation, crop=1.0, background=0.0, collimation=0.0)},
        "paper": {"network": "transvert", "options": {}},
        "attention_unet": {"network": "attention_unet", "options": {}, "precision": "32"},
    }
    for name, changes in changed.items():
        assert made[name] == replace(complete, **changes), name
    published = made["oned_concat_published"]
    assert (published.optimiser, published.learning_rate, published.loss) == ("adamw", 2e-4, "dice")


def test_phantoms_alone_and_one_view_are_used(plan: Plan, trained: list[Any]) -> None:
    table = run_study("ablation", replace(plan, variants="phantoms_only,one_view", folds="loso:sub-4"))
    assert [names for names, _ in trained] == [["sub-0", "sub-1", "sub-2", "sub-3"], ["sub-0", "sub-1"]]
    tested = list(zip(table["variant"], table["tested_on"], strict=True))
    assert tested == [("one_view", "AP alone"), ("one_view", "lateral alone"), ("phantoms_only", "full")]
    images = {name: show(samples.read_samples(plan.store, "sub-4")) for name, show in experiments.TEST_INPUTS.items()}
    assert not images["AP alone"][:, 1].any() and not images["lateral alone"][:, 0].any()


def test_variants_that_a_store_cannot_test_are_refused(box_samples: Samples, plan: Plan, tmp_path: Path) -> None:
    for n in range(2):
        one = replace(box_samples.chosen([L2]), subject=f"sub-{n}", field_of_view="crop")
        samples.write_samples(tmp_path / "crops", one)
    crops = replace(plan, store=tmp_path / "crops")
    for name, why in (("crop", "needs a store with the full field"), ("phantoms_only", "needs phantoms and CTs")):
        with pytest.raises(InputError, match=f"The variant '{name}' {why}.*; leave it out"):
            run_study("ablation", replace(crops, variants=name))
    with pytest.raises(InputError, match="holds no person out"):
        run_study("ablation", replace(crops, variants="complete", folds="all"))


@pytest.mark.parametrize("name", STUDIES)
def test_an_unknown_variant_is_refused(name: str, plan: Plan) -> None:
    with pytest.raises(InputError, match="'nothing' is not a variant of this study; use "):
        run_study(name, replace(plan, variants="nothing"))


@pytest.mark.usefixtures("tiny")
def test_networks_get_equal_steps_and_equal_minutes(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    pace = {8: 12.0, 4: 4.0}
    monkeypatch.setattr(experiments, "seconds_per_step", lambda _, recipe: pace[recipe.options["width"]])
    table = run_study("comparison", replace(plan, minutes=0.2, variants="small,smaller,mean_shape"))
    steps = table.groupby(["variant", "budget"], sort=False)["steps"].first().to_dict()
    expected = {("small", "steps"): 2, ("small", "0.2 min"): 1, ("smaller", "steps"): 2, ("smaller", "0.2 min"): 3}
    assert steps == expected
    count = table[table["budget"].isna()]["variant"].value_counts().to_dict()
    assert count == {"mean_shape": 6}


def test_corruptions_are_tested_on_people_that_the_weights_do_not_know(plan: Plan, tmp_path: Path) -> None:
    rows = splits.split_index(read_index(plan.store), "loso:sub-p")
    learned = splits.stream_samples(plan.store, rows[rows["split"] == "train"])
    experiments.train_network(learned, [], plan.recipe, tmp_path / "w")
    weights = tmp_path / "w" / "weights.safetensors"
    table = run_study("robustness", replace(plan, weights=weights, variants="landmark off"))
    assert set(table["subject"]) == {"sub-2", "sub-3"}
    assert len(table) == 2 * 2 * (1 + 3) and list(table["variant"].unique()) == ["none", "landmark off"]


def test_bones_are_measured_and_coarse_ones_refused(
    patient: Patient, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = part_alone(patient, "sub-one", tmp_path / "one.nii.gz")
    monkeypatch.setattr(untrained, "fetch_subjects", lambda name: [one] if name == "fine" else [])
    monkeypatch.setattr(untrained, "SPACINGS_MM", (1.5,))
    monkeypatch.setattr(untrained, "OFFSETS_MM", (1.0,))
    table = run_study("resolution", replace(plan, data="fine"))
    assert table["variant"].tolist() == ["own voxels", "other voxels", "surface offset", "surface offset"]
    assert table["amount"].tolist() == [1.5, 1.5, 1.0, -1.0] and table["dice"].between(0.5, 0.99).all()
    with pytest.raises(InputError, match="No bone of none is known finely enough"):
        run_study("resolution", replace(plan, data="none"))


def _table(**columns: Any) -> pd.DataFrame:
    base = {"study": "x", "fold": "", "subject": "s", "nsd_1p5mm": 0.5, "hd95_mm": 4.0, "assd_mm": 1.0, "level": "L1"}
    return pd.DataFrame(base | columns)


def test_a_summary_has_means_by_region_and_counts_empty_predictions() -> None:
    dice, region = [0.0, 0.6, 0.9, 0.8], ["C", "C", "L", "L"]
    table = _table(
        variant=["a", "a", "a", "b"], region=region, dice=dice, assd_mm=[np.inf, 2.0, 1.0, 3.0], seconds=60.0
    )
    means = summary.summarise(table).set_index(["variant", "region"])
    assert means.index.tolist() == [("a", "all"), ("b", "all"), ("a", "C"), ("a", "L"), ("b", "L")]
    assert means.loc[("a", "all"), ["dice", "assd_mm", "count", "empty"]].tolist() == [0.5, 1.5, 3, 1]
    shown = summary.readable_summary(table)
    columns = ["vertebrae", "Dice", "Dice cervical", "ASSD, mm", "minutes"]
    assert shown.loc["a", columns].tolist() == [3, 0.5, 0.3, 1.5, 1]
    assert shown["empty"].tolist() == [1, 0] and np.isnan(shown.loc["b", "Dice cervical"])
    budgets = _table(variant=["a", "b"], budget=["steps", "5 min"], learning_rate=1e-3, region="L", dice=[0.5, 0.6])
    assert summary.readable_summary(budgets).index.tolist() == [("a", "steps"), ("b", "5 min")]


@pytest.mark.parametrize("name", [*STUDIES, "people"])
def test_committed_tables_and_their_figures_are_complete(name: str) -> None:
    table = summary.read_study(name)
    assert set(table["study"]) == {name} and table["dice"].between(0, 1).all() and table["level"].notna().all()
    figure = charts.draw(name, table)
    labels = [axis.get_xlabel() + axis.get_ylabel() for axis in figure.axes]
    plt.close(figure)
    assert any("Dice" in label for label in labels)


def test_the_reliability_diagram_has_units_and_its_caption_counts_people() -> None:
    report = summary.read_reliability()
    figure = charts.reliability_diagram(report)
    labels = {axis.get_xlabel() for axis in figure.axes} | {axis.get_ylabel() for axis in figure.axes}
    plt.close(figure)
    assert {"stated Dice", "observed Dice", "observed distance, RMS (mm)", "voxels (bars)"} <= labels
    assert charts.describe_reliability(report) in (summary.HERE / "calibration.md").read_text(encoding="utf-8")


def test_the_published_dice_values_are_read_as_offsets() -> None:
    table = summary.read_study("resolution")
    assert 0.2 < summary.surface_offset_mm(table, summary.PAPER_DICE) < 0.35
    assert summary.surface_offset_mm(table, 1.0) == 0
