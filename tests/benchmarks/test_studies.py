"""The studies: who is held out, what each training changes, that a stop changes nothing, and what the tables say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import Patient, part_alone
from pandas.testing import assert_frame_equal
from typer.testing import CliRunner

from benchmarks.studies import (
    charts,
    comparison_networks,  # noqa: F401
    experiments,
    studies,
)
from benchmarks.studies.experiments import Plan, Variant
from transvert import cli
from transvert.data import manifest, samples, splits
from transvert.data.samples import Samples
from transvert.data.store import read_index
from transvert.io import InputError
from transvert.model import calibration, evaluate, metrics, networks, train
from transvert.model.calibration import Calibration
from transvert.model.predict import predict
from transvert.model.train import Recipe, train_network
from transvert.plots import figures

L1, L2, L3 = 20, 21, 22
SECONDS = "seconds"


def _index(**people: int) -> pd.DataFrame:
    """A store's index of people with so many vertebrae each; whoever has over four has two scans."""
    rows = [(f"{who}-{n > 3}", who) for who, count in people.items() for n in range(count)]
    return pd.DataFrame(rows, columns=["subject", "person"]).assign(level="L1", source="ct")


def _held(rows: pd.DataFrame) -> set[str]:
    return set(rows["person"][rows["split"] == "held_out_subject"])


# Folds


def test_each_person_is_held_out_once_with_all_scans_and_groups_are_even() -> None:
    index = _index(a=1, b=13, c=5, d=5, e=11, f=1, g=1)
    found = dict(splits.iterate_folds(index, "folds:3"))
    assert list(found) == ["fold1", "fold2", "fold3"]
    # Both fives go to the third group, then a to it for its 10, f to the second with 11 of each, and g to the third again.
    assert [_held(rows) for rows in found.values()] == [{"b"}, {"e", "f"}, {"a", "c", "d", "g"}]
    for rows in found.values():
        assert len(rows) == len(index) and not _held(rows) & set(rows["person"][rows["split"] == "train"])
        assert rows.groupby("person")["split"].nunique().max() == 1
    shuffled = dict(splits.iterate_folds(index.sample(frac=1, random_state=0), "folds:3"))
    assert [_held(rows) for rows in shuffled.values()] == [_held(rows) for rows in found.values()]
    ((_, one),) = splits.iterate_folds(index, "folds:3:2")
    assert _held(one) == {"e", "f"}


@pytest.mark.parametrize("name", ["folds", "folds:", "folds:3:4", "folds:3:0", "folds:x", "folds:3:1:1", "folds:-3:1"])
def test_a_name_that_is_no_fold_gets_its_sentence(name: str) -> None:
    with pytest.raises(InputError, match=r"is not one split; write folds:K:N for group N of K, such as folds:5:1"):
        list(splits.iterate_folds(_index(a=2, b=2, c=2), name))


@pytest.mark.parametrize("name", ["folds:1", "folds:4", "folds:9:2"])
def test_more_groups_than_people_get_their_sentence(name: str) -> None:
    with pytest.raises(InputError, match=r"3 people can't be put into \d groups; use 2 to 3"):
        list(splits.iterate_folds(_index(a=2, b=2, c=2), name))


def test_patience_looks_at_nobody_who_is_tested() -> None:
    ((_, rows),) = splits.iterate_folds(_index(a=2, b=2, c=2, d=2), "folds:4:1")
    learned, watched = splits.train_and_watched(rows, 0)
    assert set(learned["person"]) == {"b", "c", "d"} and set(watched["person"]) == {"a"}
    learned, watched = splits.train_and_watched(rows, 3)
    assert set(learned["person"]) == {"b", "c"} and set(watched["person"]) == {"d"}


# Trainings


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Overlap alone: the distances have tests of their own, and take half a second a vertebra."""

    def compare(prediction: np.ndarray, truth: np.ndarray, _: Any) -> dict[str, float]:
        dice = 2 * (prediction & truth).sum() / (prediction.sum() + truth.sum())
        return {"dice": float(dice), "hd95_mm": 4.0, "assd_mm": 1.0, "nsd_1p5mm": 0.5}

    monkeypatch.setattr(metrics, "compare", compare)


@pytest.fixture
def store(box_samples: Samples, tmp_path: Path) -> Path:
    """Four people, of whom one has two scans; two are phantoms."""
    for n, person in enumerate(("", "", "sub-p", "sub-p", "")):
        one = box_samples.chosen([L1, L2] if n == 0 else [L2])
        samples.write_samples(
            tmp_path / "store", replace(one, subject=f"sub-{n}", person=person, source=("phantom", "ct")[n > 1])
        )
    return tmp_path / "store"


@pytest.fixture
def plan(store: Path, tmp_path: Path, quick: None) -> Plan:
    recipe = Recipe("transvert", {"width": 8}, steps=2, epoch_steps=1, batch=2, precision="32", device="cpu")
    return Plan(store, tmp_path / "out", recipe, folds="folds:2", say=lambda _: None)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of a study that are small enough for a test."""
    small = Variant({"network": "transvert"}, {"width": 8}, shown=("own", "cube"))
    monkeypatch.setattr(experiments, "ABLATION", {"full": small, "other": replace(small, strength={"bare": 1.0})})
    monkeypatch.setattr(experiments, "PEERS", {"small": small, "smaller": replace(small, options={"width": 4})})


@pytest.mark.usefixtures("tiny")
def test_a_table_has_every_vertebra_once_a_variant_and_a_way_it_is_shown(plan: Plan) -> None:
    table = studies.run("ablation", plan)
    assert len(table) == 6 * 2 * 2 and not table.duplicated(["variant", "tested_on", "subject", "level"]).any()
    assert table.columns[:3].tolist() == ["study", "variant", "tested_on"]
    assert set(table["tested_on"]) == {"body", "cube"} and set(table["region"]) == {"L"}
    assert (table["steps"] == 2).all() and (table["seconds"] > 0).all() and set(table["optimiser"]) == {"muon"}
    people = table.merge(read_index(plan.store)[["subject", "person"]].drop_duplicates())
    assert (people.groupby("person")["fold"].nunique() == 1).all()
    for fold, part in table.groupby("fold"):
        _, card = networks.load_network(plan.out / "full" / str(fold) / "weights.safetensors")
        assert not set(card["subjects"]) & set(part["subject"])


@pytest.mark.usefixtures("tiny")
def test_a_stopped_study_ends_as_the_unbroken_one(plan: Plan, tmp_path: Path) -> None:
    def stop(line: str) -> None:
        if line.startswith("full fold2: step 1"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        studies.run("ablation", replace(plan, say=stop))
    assert not (plan.out / "other").exists()
    said: list[str] = []
    resumed = studies.run("ablation", replace(plan, say=said.append))
    assert [line[:18] for line in said[:2]] == ["full fold2: step 2", "other fold1: step "]
    unbroken = studies.run("ablation", replace(plan, out=tmp_path / "unbroken"))
    assert_frame_equal(resumed.drop(columns=SECONDS), unbroken.drop(columns=SECONDS))


@pytest.mark.usefixtures("tiny")
def test_parts_of_a_study_merge_without_another_training(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [studies.run("ablation", replace(plan, variants=name)) for name in ("other", " full")]
    assert [set(part["variant"]) for part in parts] == [{"other"}, {"full"}]
    monkeypatch.setattr(train, "train_network", None)
    whole = studies.run("ablation", plan)
    assert_frame_equal(whole, pd.concat(parts[::-1], ignore_index=True))


@pytest.mark.usefixtures("tiny")
def test_another_recipe_in_the_same_folder_is_refused(plan: Plan) -> None:
    one = replace(plan, variants="full")
    studies.run("ablation", one)
    with pytest.raises(InputError, match=r"was made with another recipe\.seed"):
        studies.run("ablation", replace(one, recipe=replace(plan.recipe, seed=1)))


def _spy(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], list[str], Recipe]]:
    """Whom each training learns from and looks at, and its recipe."""
    seen, train = [], train_network

    def note(subjects: Any, validation: Any, recipe: Recipe, *others: Any, **options: Any) -> pd.DataFrame:
        seen.append(([s.subject for s in subjects], [s.subject for s in validation], recipe))
        return train(subjects, validation, recipe, *others, **options)

    monkeypatch.setattr(train, "train_network", note)
    return seen


@pytest.mark.usefixtures("tiny")
def test_a_training_never_looks_at_whom_it_is_tested_on(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _spy(monkeypatch)
    patient = replace(plan, recipe=replace(plan.recipe, patience=5), variants="full", folds="loso")
    table = studies.run("ablation", patient)
    assert len(seen) == 4
    for (learned, watched, _), (_, held) in zip(seen, table.groupby("fold", sort=False), strict=True):
        assert watched and not set(watched) & set(learned) and not set(held["subject"]) & set(learned + watched)
    seen.clear()
    studies.run("ablation", replace(plan, out=plan.out / "more", variants="full"))
    assert all(watched == [] for _, watched, _ in seen)


def test_each_variant_changes_what_it_says(plan: Plan) -> None:
    base = Recipe("transvert_hull", {"width": 64}, steps=40, learning_rate=1e-3)
    made = {name: variant.recipe(base) for name, variant in (experiments.ABLATION | experiments.PEERS).items()}
    full = made["full"]
    assert full == replace(base, warmup=11)
    changed = {
        "without_maps": {"options": {"width": 64, "maps": False}},
        "without_attention": {"options": {"width": 64, "attention": False}},
        "one_view": {"one_view": 1.0, "steps": 80, "warmup": 21},
        "phantoms_only": {},
        "cube": {"strength": replace(base.strength, bare=1.0, clutter=0.0, collimate=0.0)},
        "paper": {"network": "transvert", "options": {}},
        "paper_critic": {"network": "transvert", "options": {}, "critic_weight": 0.01},
        "attention_unet": {"network": "attention_unet", "options": {}, "precision": "32"},
    }
    for name, changes in changed.items():
        assert made[name] == replace(full, **changes), name
    for name in ("twod_permute_concat", "oned_concat", "attention_unet"):
        published = made[f"{name}_published"]
        assert (published.optimiser, published.learning_rate, published.weight_decay) == ("adamw", 2e-4, 0.0)
        assert published.loss == "dice"
        ours = {"optimiser": "muon", "learning_rate": 1e-3, "weight_decay": 0.02, "loss": "dice_ce"}
        assert replace(published, **ours) == made[name]


def test_phantoms_alone_and_one_view_are_learned_from_and_shown(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _spy(monkeypatch)
    small = replace(plan, variants="phantoms_only,one_view", folds="loso:sub-4")
    table = studies.run("ablation", small)
    assert [(learned, recipe.steps, recipe.one_view) for learned, _, recipe in seen] == [
        (["sub-0", "sub-1", "sub-2", "sub-3"], 4, 1.0),
        (["sub-0", "sub-1"], 2, 0.0),
    ]
    assert list(zip(table["variant"], table["tested_on"], strict=True)) == [
        ("one_view", "AP alone"),
        ("one_view", "lateral alone"),
        ("phantoms_only", "body"),
    ]
    images = {name: show(samples.read_samples(plan.store, "sub-4")) for name, show in experiments._SHOWN.items()}
    assert not images["AP alone"][:, 1].any() and not images["lateral alone"][:, 0].any()
    np.testing.assert_array_equal(images["AP alone"][:, 0], images["own"][:, 0])


def test_what_a_store_can_t_tell_is_left_out_or_refused(box_samples: Samples, plan: Plan, tmp_path: Path) -> None:
    place = tmp_path / "cubes"
    for n in range(2):
        samples.write_samples(place, replace(box_samples.chosen([L2]), subject=f"sub-{n}", surroundings="cube"))
    for name, why in (("cube", "needs a store of whole bodies"), ("phantoms_only", "needs phantoms and CTs")):
        with pytest.raises(InputError, match=f"The variant '{name}' {why}.*; leave it out"):
            studies.run("ablation", replace(plan, store=place, variants=name))
    table = studies.run("ablation", replace(plan, store=place, variants="full"))
    assert table["tested_on"].tolist() == ["cube", "cube"]
    with pytest.raises(InputError, match=r"The split 'all' holds nobody out, so nobody can be tested; use folds:5"):
        studies.run("ablation", replace(plan, store=place, variants="full", folds="all"))


@pytest.mark.usefixtures("tiny")
def test_peers_have_equal_steps_and_equal_minutes_beside_the_nulls(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        experiments, "seconds_a_step", lambda subjects, recipe: 12.0 if recipe.options["width"] == 8 else 4.0
    )
    table = studies.run("peers", replace(plan, minutes=0.2))
    by = table.groupby(["variant", "budget"], sort=False)["steps"].unique()
    assert {name: steps.tolist() for name, steps in by.items()} == {
        ("small", "steps"): [2],
        ("small", "0.2 min"): [1],
        ("smaller", "steps"): [2],
        ("smaller", "0.2 min"): [3],
    }
    count = table[table["budget"].isna()]["variant"].value_counts().to_dict()
    assert count == {"mean_shape": 6, "visual_hull": 6, "other_person": 5}  # nobody else has an L1
    # The number of steps is kept: a machine that is busier when the study goes on changes nothing.
    monkeypatch.setattr(experiments, "seconds_a_step", None)
    assert_frame_equal(studies.run("peers", replace(plan, minutes=0.2)), table)


def test_a_step_s_time_is_a_longer_training_s_less_a_shorter_one_s(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    def train(subjects: Any, validation: Any, recipe: Recipe, folder: Path, **_: Any) -> pd.DataFrame:
        counts.append(recipe.steps)
        return pd.DataFrame({"seconds": [7.0 + 0.25 * recipe.steps + 20 * (len(counts) == 1)]})

    monkeypatch.setattr(train, "train_network", train)
    assert experiments.seconds_a_step([], plan.recipe) == pytest.approx(0.25)
    assert counts == [3, 3, 13]


# Trained weights and bones


def test_faults_are_tried_on_whom_the_weights_do_not_know(plan: Plan, tmp_path: Path) -> None:
    rows = splits.split_index(read_index(plan.store), "loso:sub-p")
    train_network(
        splits.stream_samples(plan.store, rows[rows["split"] == "train"]),
        [],
        plan.recipe,
        tmp_path / "w" / "f1",
        progress=False,
    )
    weights = tmp_path / "w" / "f1" / "weights.safetensors"
    table = studies.run("robustness", replace(plan, weights=weights, variants="click off, noise"))
    assert set(table["subject"]) == {"sub-2", "sub-3"}
    assert len(table) == 2 * 2 * (1 + 3 + 3) and list(table["variant"].unique()) == ["none", "click off", "noise"]
    read = samples.read_samples(plan.store, "sub-2")
    true = evaluate.score_samples(read, predict(networks.load_network(weights)[0], read.images(), mirror=True))
    clean = table[(table["subject"] == "sub-2") & (table["tested_on"] == "body") & (table["variant"] == "none")]
    assert clean["dice"].tolist() == pytest.approx(true["dice"].tolist(), abs=1e-3)
    folds = studies.run("robustness", replace(plan, weights=tmp_path / "w", variants="noise"))
    assert set(folds["fold"]) == {"f1"} and set(folds["subject"]) == {"sub-2", "sub-3"}
    card = json.dumps({"subjects": [f"sub-{n}" for n in range(5)]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "open_network", lambda _: (None, json.loads(card)))
        with pytest.raises(InputError, match="know everybody of this store, or there are none; test on others"):
            studies.run("robustness", plan)


def test_a_calibration_is_fitted_on_people_of_other_folds_and_kept_in_the_card(plan: Plan, tmp_path: Path) -> None:
    out, index = tmp_path / "w" / "f1", read_index(plan.store)
    learned = splits.stream_samples(plan.store, index[index["person"] == "sub-p"])
    train_network(learned, [], plan.recipe, out, progress=False)
    asked = ["calibrate", str(plan.store), "--folds", str(tmp_path / "w"), "--out", str(tmp_path / "c")]
    ended = CliRunner().invoke(cli.app, [*asked, "--weights", str(out / "weights.safetensors")])
    assert ended.exit_code == 0, ended.output
    assert "4 vertebrae of 3 people" in ended.output and (tmp_path / "c" / "reliability.png").stat().st_size
    stated = calibration.read_reliability(tmp_path / "c").calibration
    _, card = networks.load_network(out / "weights.safetensors")
    assert Calibration.from_card(card["calibration"]) == stated and stated.people == 3


def test_bones_are_measured_and_coarse_ones_refused(
    patient: Patient, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = part_alone(patient, "sub-one", tmp_path / "one.nii.gz")
    monkeypatch.setattr(manifest, "load", lambda name: name)
    monkeypatch.setattr(manifest, "fetch", lambda name: [one] if name == "fine" else [])
    monkeypatch.setattr(studies, "SPACINGS_MM", (1.5, 1.0))
    monkeypatch.setattr(studies, "OFFSETS_MM", (0.5, 1.0))
    table = studies.run("resolution", replace(plan, data="fine"))
    assert table["variant"].tolist() == ["own voxels"] * 2 + ["other voxels"] * 2 + ["surface offset"] * 4
    assert table["amount"].tolist() == [1.5, 1.0, 1.5, 1.0, 0.5, -0.5, 1.0, -1.0]
    dice = table["dice"]
    assert dice[0] < dice[1] and dice[2] < dice[0] and dice[6] < dice[4] < 1 and dice[7] < dice[5] < 1
    assert set(table["region"]) == {"L"}
    with pytest.raises(InputError, match="No bone of none is known finely enough"):
        studies.run("resolution", replace(plan, data="none"))


# Tables


def _table(**columns: Any) -> pd.DataFrame:
    base = {"study": "x", "fold": "", "subject": "s", "nsd_1p5mm": 0.5, "hd95_mm": 4.0, "assd_mm": 1.0, "level": "L1"}
    return pd.DataFrame(base | columns)


def test_a_summary_has_means_by_region_and_counts_empty_predictions_apart() -> None:
    table = _table(
        variant=["a", "a", "a", "b"],
        region=["C", "C", "L", "L"],
        dice=[0.0, 0.6, 0.9, 0.8],
        assd_mm=[np.inf, 2.0, 1.0, 3.0],
        seconds=60.0,
        steps=5,
    )
    means = studies.summary(table).set_index(["variant", "region"])
    assert means.index.tolist() == [("a", "all"), ("b", "all"), ("a", "C"), ("a", "L"), ("b", "L")]
    assert means.loc[("a", "all"), ["dice", "assd_mm", "count", "empty"]].tolist() == [0.5, 1.5, 3, 1]
    assert means.loc[("a", "C"), "dice"] == pytest.approx(0.3)
    shown = studies.legible(table)
    assert shown.loc["a", ["vertebrae", "Dice", "Dice cervical", "ASSD mm", "minutes"]].tolist() == [
        3,
        0.5,
        0.3,
        1.5,
        1,
    ]
    assert shown["empty"].tolist() == [1, 0] and "empty" not in studies.legible(table[1:])
    assert np.isnan(shown.loc["b", "Dice cervical"]) and "Dice thoracic" not in shown


def test_only_what_differs_tells_variants_apart() -> None:
    table = _table(
        variant=["a", "b", "b"], budget=["steps", "2 min", None], learning_rate=1e-3, region="L", dice=[0.5, 0.6, 0.7]
    )
    assert studies.telling(table) == ["variant", "budget"]
    assert studies.legible(table).index.tolist() == [("a", "steps"), ("b", "2 min"), ("b", "")]
    assert studies.legible(table[:1]).index.tolist() == [("a")]


def test_a_committed_table_is_read_and_an_absent_one_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in studies.STUDIES:
        table = studies.committed(name)
        if table is not None:
            assert set(table["study"]) == {name} and not studies.legible(table)["Dice"].isna().any()
            assert table["dice"].between(0, 1).all() and table["level"].notna().all()
    monkeypatch.setattr(studies, "_TABLES", tmp_path)
    assert studies.committed("peers") is None
    for ask in (studies.committed, lambda name: studies.run(name, Plan())):
        with pytest.raises(InputError, match="'nothing' is not a study; use ablation, peers, robustness, resolution"):
            ask("nothing")


@pytest.mark.parametrize("name", studies.STUDIES)
def test_an_unknown_variant_is_refused_before_anything_is_done(name: str, plan: Plan) -> None:
    with pytest.raises(InputError, match="'nothing' is no variant of this study; use some of "):
        studies.run(name, replace(plan, variants="nothing"))


# Figures


def _texts(figure: Any) -> str:
    texts = [axis.get_title() + axis.get_xlabel() for axis in figure.axes]
    texts += [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    texts += [label.get_text() for axis in figure.axes for label in axis.get_yticklabels()]
    plt.close(figure)
    return " | ".join(texts)


def test_figures_name_what_they_show() -> None:
    shown = _texts(
        charts.draw(
            "peers",
            _table(
                variant=["a", "b"],
                budget=["steps", "2 min"],
                optimiser=["muon", "adamw"],
                region=["L", "C"],
                dice=[0.5, 0.4],
                assd_mm=[1.0, np.inf],
            ),
        )
    )
    assert "ASSD (mm)" in shown and "| a, steps | b, 2 min" in shown and "cervical" in shown
    kinds = [("none", 0.0), ("lateral turned", 5.0), ("coarse pixels", 2.0)]
    rows = [(kind, amount, where) for kind, amount in kinds for where in ("body", "cube")]
    faulty = _table(
        **dict(zip(("variant", "amount", "tested_on"), zip(*rows, strict=True), strict=True)),
        unit="",
        region="L",
        dice=0.8,
    )
    figure = charts.draw("robustness", faulty)
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert lines["films of the cube"] == [[0, 0.8], [5, 0.8]] and lines["the public port, published, VerSe19"][0] == [
        0,
        0.836,
    ]
    assert "deg" in _texts(figure)
    moved = _table(
        variant=["surface offset"] * 2 + ["own voxels", "other voxels"],
        amount=[0.5, -0.5, 1.5, 1.5],
        region="L",
        dice=[0.9, 0.8, 0.95, 0.9],
    )
    figure = charts.draw("resolution", moved)
    assert figure.axes[0].lines[0].get_xydata().tolist() == pytest.approx(np.array([[0, 1], [0.5, 0.85]]))
    assert "voxel side (mm)" in _texts(figure)


def test_people_are_drawn_along_the_spine() -> None:
    table = pd.DataFrame(
        {"variant": ["a", "a", "a", "b"], "level": ["L1", "C7", "L1", "L1"], "dice": [0.9, 0.6, 0.7, 0.5]}
    )
    (axis,) = figures.along_spine(table).axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["C7", "L1"]
    medians = {line.get_label(): line.get_ydata().tolist() for line in axis.lines}
    assert medians == {"a": [0.6, pytest.approx(0.8)], "b": [0.5]}
    assert sum(len(dots.get_offsets()) for dots in axis.collections) == 4


def test_the_parameter_sets_ask_for_studies_and_variants_that_exist() -> None:
    from benchmarks.studies import baselines
    from transvert import io, workflow

    known: dict[str, Callable[[], Any]] = {
        "ablation": lambda: experiments.ABLATION,
        "peers": lambda: [*experiments.PEERS, *baselines.BASELINES],
    }
    found = set()
    for path in sorted(io.share_folder("params").glob("study_*.yaml")):
        said = workflow.read_parameters(path)
        found.add(said["study"])
        assert path.stem == f"study_{said['study']}"
        for name in filter(None, str(said.get("study_variants", "")).split(",")):
            assert name in known[said["study"]](), name
    assert found == set(studies.STUDIES)
