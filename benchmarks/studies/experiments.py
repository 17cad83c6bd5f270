"""Studies that train: ablation of the recipe, and comparison of networks.

Each training writes to `<out>/<variant>/<fold>/`. A stopped study continues when it is called again. Several processes with
different variants may share the folder; a call for all variants then reads their results.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.studies import baselines, comparison_networks, corruptions  # noqa: F401 registers the networks
from transvert import runs
from transvert.data import splits, store
from transvert.data.samples import Samples, StoredSamples
from transvert.io import InputError, read_json, write_json
from transvert.model import evaluate, networks
from transvert.model.predict import predict
from transvert.model.train import Recipe, train_network


@dataclass(frozen=True)
class Plan:
    """Inputs and settings of a study.

    Attributes:
        store: samples.
        out: folder of the trainings.
        recipe: of every training; a variant changes parts of it.
        minutes: comparison: also train each network for so many minutes on this machine; 0 for equal steps alone.
        variants: names separated by commas; "" for all.
        folds: a split of `splits.iterate_folds`; the held-out people are tested.
        weights: robustness: a file, "shipped", or a folder with one folder of weights per fold.
        data: resolution: names of manifests separated by commas.
        seed: of landmark errors, noise and grids; the recipe has the seed of trainings.
        log: called with progress messages.
    """

    store: str | Path = ""
    out: Path = Path("studies")
    recipe: Recipe = field(default_factory=lambda: Recipe("transvert_hull"))
    minutes: float = 0.0
    variants: str = ""
    folds: str = "folds:5"
    weights: str | Path = "shipped"
    data: str = "embedded,public_samples"
    seed: int = 0
    log: Callable[[str], None] = print


@dataclass(frozen=True)
class Variant:
    """One variant of a study.

    Attributes:
        changes: to the plan's recipe; another network does not inherit the options.
        options: of the network.
        augmentation: changes to the augmentation.
        source: train on subjects of this source alone, such as "phantom".
        shown: inputs of the test; keys of `TEST_INPUTS`.
        longer: factor on the plan's steps.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    augmentation: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    shown: Sequence[str] = ("own",)
    longer: int = 1

    def recipe(self, base: Recipe) -> Recipe:
        """The plan's recipe with what this variant changes."""
        options = dict(self.options) if "network" in self.changes else base.options | dict(self.options)
        augmentation = replace(base.augmentation, **self.augmentation)
        return replace(
            base,
            **{"steps": self.longer * base.steps, "options": options, "augmentation": augmentation, **self.changes},
        )


def _one_view(subject: Samples, gone: int) -> np.ndarray:
    images = subject.images()
    images[:, gone] = 0
    return images


TEST_INPUTS: dict[str, Callable[[Samples], np.ndarray]] = {
    "own": lambda subject: subject.images(),
    "crop": lambda subject: corruptions.corrupt_images(subject, crop=True)[0],
    "AP alone": lambda subject: _one_view(subject, 1),
    "lateral alone": lambda subject: _one_view(subject, 0),
}

ABLATION = {
    "complete": Variant(shown=("own", "crop")),
    "without_maps": Variant(options={"maps": False}),
    "without_attention": Variant(options={"attention": False}),
    # Each sample shows one of the views. With twice the steps, each view is seen as often as in the other variants.
    "one_view": Variant({"view_dropout": 1.0}, shown=("AP alone", "lateral alone"), longer=2),
    "phantoms_only": Variant(source="phantom"),
    "crop": Variant(augmentation={"crop": 1.0, "background": 0.0, "collimation": 0.0}, shown=("own", "crop")),
    "paper": Variant({"network": "transvert"}),
    "paper_critic": Variant({"network": "transvert", "adversarial_weight": 0.01}),
}
"""Variants of the ablation. "complete" and "crop" are tested on both fields of view."""

# On a CPU, bfloat16 gradients of transposed 3D convolutions can be NaN.
_COMPARED = {
    name: {"network": name, "precision": "32"} for name in ("twod_permute_concat", "oned_concat", "attention_unet")
}
_PUBLISHED = {"optimiser": "adamw", "learning_rate": 2e-4, "weight_decay": 0.0, "loss": "dice"}
COMPARISON = {
    **{name: Variant({"network": name}) for name in ("transvert_hull", "transvert")},
    **{name: Variant(changes) for name, changes in _COMPARED.items()},
    **{f"{name}_published": Variant(changes | _PUBLISHED) for name, changes in _COMPARED.items()},
}
"""Networks of the comparison, trained with this companion's recipe, or "published": soft Dice and Adam at 2e-4."""


def ablation(plan: Plan) -> pd.DataFrame:
    """Trains the recipe without one of its parts at a time.

    Raises:
        InputError: unknown variant, or a variant that this store cannot test.
    """
    index = store.read_index(plan.store)
    lacks = {}
    if "full" not in set(index["field_of_view"]):
        lacks["crop"] = "needs a store with the full field of view"
    if len(set(index["source"])) < 2:
        lacks["phantoms_only"] = "needs phantoms and CTs in one store"
    tables = []
    for name in chosen_variants(plan, ABLATION):
        if name in lacks:
            if plan.variants:
                raise InputError(f"The variant '{name}' {lacks[name]}; leave it out.")
            plan.log(f"{name}: left out, because it {lacks[name]}.")
            continue
        tables.append(_train(plan, name, ABLATION[name], ABLATION[name].recipe(plan.recipe)).assign(variant=name))
    return pd.concat(tables, ignore_index=True)


def comparison(plan: Plan) -> pd.DataFrame:
    """Trains networks on the same data with the same seed, for equal steps and equal minutes, beside three baselines.

    Raises:
        InputError: unknown variant.
    """
    tables = []
    for name in chosen_variants(plan, [*COMPARISON, *baselines.BASELINES]):
        if name in baselines.BASELINES:
            tables.append(_baseline(plan, name).assign(variant=name))
            continue
        recipe = COMPARISON[name].recipe(plan.recipe)
        tables.append(_train(plan, name, COMPARISON[name], recipe).assign(variant=name, budget="steps"))
        if plan.minutes:
            budget, folder = f"{plan.minutes:g} min", f"{name}-{plan.minutes:g}min"
            steps = max(1, round(60 * plan.minutes / _pace(plan, folder, recipe)))
            recipe = COMPARISON[name].recipe(replace(plan.recipe, steps=steps))
            tables.append(_train(plan, folder, COMPARISON[name], recipe).assign(variant=name, budget=budget))
    return pd.concat(tables, ignore_index=True)


def seconds_per_step(subjects: Sequence[Samples | StoredSamples], recipe: Recipe, steps: int = 10) -> float:
    """Seconds per training step on this machine, from the difference of a longer and a shorter training."""
    spent = []
    for count in (3, 3, 3 + steps):  # The first warms up.
        short = replace(recipe, steps=count, epoch_steps=count)
        with tempfile.TemporaryDirectory() as folder:
            curve = train_network(subjects, [], short, folder, progress=False)
        spent.append(float(curve["seconds"].iloc[-1]))
    return max(spent[2] - spent[1], 1e-6) / steps


def _folds(plan: Plan) -> Iterator[tuple[str, pd.DataFrame]]:
    """`splits.iterate_folds`; every fold must hold people out."""
    for fold, rows in splits.iterate_folds(store.read_index(plan.store), plan.folds):
        if not (rows["split"] == "held_out_subject").any():
            raise InputError(f"The split '{plan.folds}' holds no person out for the test; use folds:5 or loso.")
        yield fold, rows


def _pace(plan: Plan, folder: str, recipe: Recipe) -> float:
    """`seconds_per_step`, measured once and stored, so that a continued training keeps its number of steps."""
    path = plan.out / folder / "pace.json"
    if not path.exists():
        _, rows = next(_folds(plan))
        learned = splits.stream_samples(plan.store, rows[rows["split"] == "train"])
        write_json(path, {"seconds_per_step": seconds_per_step(learned, recipe)})
    return float(read_json(path, "pace")["seconds_per_step"])


def _train(plan: Plan, name: str, variant: Variant, recipe: Recipe) -> pd.DataFrame:
    """Scores of the held-out vertebrae of every fold, trained now or read from an earlier run."""
    tables = []
    for fold, rows in _folds(plan):
        learned = rows[rows["split"] == "train"]
        if variant.source:
            learned = learned[learned["source"] == variant.source]
        held = rows[rows["split"] == "held_out_subject"]
        named = {
            side: (part["subject"] + " " + part["level"]).tolist()
            for side, part in (("learned", learned), ("held", held))
        }
        made_from = json.loads(json.dumps({"recipe": asdict(recipe), "shown": list(variant.shown), **named}))
        folder = plan.out / name / fold
        if not (folder / "scores.json").exists() or read_json(folder / "scores.json", "record") != made_from:

            def report(curve: pd.DataFrame, who: str = f"{name} {fold}".strip()) -> None:
                last = curve.iloc[-1]
                plan.log(f"{who}: step {last.step:.0f} of {recipe.steps}, loss {last.loss:.3f}, {last.seconds:.0f} s")

            parts = splits.stream_samples(plan.store, learned)
            curve = train_network(parts, [], recipe, folder, on_epoch=report, progress=False)
            scored = _score(plan, held, variant, folder / "weights.safetensors")
            told = {
                n: getattr(recipe, n) for n in ("network", "optimiser", "learning_rate", "loss", "adversarial_weight")
            }
            told |= {"precision": recipe.precision, "batch": recipe.batch, "seed": recipe.seed}
            last = curve.iloc[-1]
            scored = scored.assign(fold=fold, **told, steps=int(last["step"]), seconds=round(last["seconds"], 1))
            runs.write_table(folder / "scores.csv", scored)
            write_json(folder / "scores.json", made_from)
        tables.append(pd.read_csv(folder / "scores.csv", dtype={"fold": str}, keep_default_na=False))
    return pd.concat(tables, ignore_index=True)


def _score(plan: Plan, held: pd.DataFrame, variant: Variant, weights: Path) -> pd.DataFrame:
    network, _ = networks.load_network(weights)
    count = sum(parameter.numel() for parameter in network.parameters())
    tables = []
    for part in splits.stream_samples(plan.store, held):
        subject = part.load()
        ways = {subject.field_of_view if way == "own" else way: TEST_INPUTS[way] for way in variant.shown}
        for told, show in ways.items():
            made = predict(network, show(subject), mirror=True)
            tables.append(evaluate.score_samples(subject, made).assign(tested_on=told, parameters=count))
    return pd.concat(tables, ignore_index=True)


def _baseline(plan: Plan, name: str) -> pd.DataFrame:
    tables = []
    for fold, rows in _folds(plan):
        sides = (rows[rows["split"] == side] for side in ("held_out_subject", "train"))
        held, learned = (splits.stream_samples(plan.store, side) for side in sides)
        tables.append(baselines.score_baselines((part.load() for part in held), learned, [name]).assign(fold=fold))
    return pd.concat(tables, ignore_index=True)


def chosen_variants(plan: Plan, known: Iterable[str]) -> list[str]:
    """The plan's variants in the study's order.

    Raises:
        InputError: unknown variant.
    """
    all_, asked = list(known), [name.strip() for name in plan.variants.split(",") if name.strip()]
    for name in asked:
        if name not in all_:
            raise InputError(f"'{name}' is not a variant of this study; use {', '.join(all_)}.")
    return [name for name in all_ if name in asked or not asked]
