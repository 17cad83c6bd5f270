"""Trainings that differ in one thing: what a recipe is made of, and whose network it trains.

What each leaves lies in `<out>/<variant>/<fold>/`, so that a study that was stopped goes on when it is called again, and
several processes, given different variants, fill one folder, from which a call for all then reads.
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

from benchmarks.studies import baselines, comparison_networks, corruptions  # noqa: F401
from transvert import runs
from transvert.data import splits, store
from transvert.data.samples import Samples, StoredSamples
from transvert.io import InputError, read_json, write_json
from transvert.model import evaluate, networks
from transvert.model.predict import predict
from transvert.model.train import Recipe, train_network


@dataclass(frozen=True)
class Plan:
    """What a study works on, and how long.

    Attributes:
        store: of samples; of the whole body, if a study asks how much easier the cube alone is.
        out: the folder for trainings.
        recipe: of every training, but for what a variant changes.
        minutes: of each training in the peers' second half, on this machine; 0 leaves that half out.
        variants: the wanted ones, with commas between; "" for all.
        folds: a split as `stages.folds` has them; whom it holds out is tested.
        weights: whose robustness: a file, "shipped", or a folder with the weights of a fold in each of its folders.
        data: the manifests whose bones the study of resolution takes, with commas between.
        seed: of clicks, noise and grids; that of trainings is the recipe's.
        say: hears how it goes.
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
    say: Callable[[str], None] = print


@dataclass(frozen=True)
class Variant:
    """One training of a study.

    Attributes:
        changes: of the plan's recipe; another network has none of its options.
        options: of the network.
        strength: of the augmentation.
        source: learn from "phantom" subjects alone.
        shown: what the tested vertebrae are shown on; keys of `_SHOWN`.
        longer: times the plan's steps.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    strength: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    shown: Sequence[str] = ("own",)
    longer: int = 1

    def recipe(self, base: Recipe) -> Recipe:
        """The plan's recipe with what this variant changes."""
        options = dict(self.options) if "network" in self.changes else base.options | dict(self.options)
        steps = self.longer * base.steps
        changes: dict[str, Any] = {"steps": steps, "warmup": min(base.warmup, steps // 4 + 1), **self.changes}
        return replace(base, options=options, strength=replace(base.strength, **self.strength), **changes)


def _one_view(subject: Samples, gone: int) -> np.ndarray:
    images = subject.images()
    images[:, gone] = 0
    return images


_SHOWN: dict[str, Callable[[Samples], np.ndarray]] = {
    "own": lambda subject: subject.images(),
    "cube": lambda subject: corruptions.corrupted_images(subject, alone=True)[0],
    "AP alone": lambda subject: _one_view(subject, 1),
    "lateral alone": lambda subject: _one_view(subject, 0),
}

ABLATION = {
    "full": Variant(shown=("own", "cube")),
    "without_maps": Variant(options={"maps": False}),
    "without_attention": Variant(options={"attention": False}),
    # Each sample shows one view, either; in twice the steps each view is seen as often as by the others.
    "one_view": Variant({"one_view": 1.0}, shown=("AP alone", "lateral alone"), longer=2),
    "phantoms_only": Variant(source="phantom"),
    "cube": Variant(strength={"bare": 1.0, "clutter": 0.0, "collimate": 0.0}, shown=("own", "cube")),
    "paper": Variant({"network": "transvert"}),
    "paper_critic": Variant({"network": "transvert", "critic_weight": 0.01}),
}
"""What of the recipe matters. "full" and "cube" are tested on whole bodies and on the cube alone."""

# In bfloat16 the gradients of transposed 3D convolutions are not always numbers on a CPU.
_THEIRS = {
    name: {"network": name, "precision": "32"} for name in ("twod_permute_concat", "oned_concat", "attention_unet")
}
_PUBLISHED = {"optimiser": "adamw", "learning_rate": 2e-4, "weight_decay": 0.0, "loss": "dice"}
PEERS = {
    **{name: Variant({"network": name}) for name in ("transvert_hull", "transvert")},
    **{name: Variant(changes) for name, changes in _THEIRS.items()},
    **{f"{name}_published": Variant(changes | _PUBLISHED) for name, changes in _THEIRS.items()},
}
"""The peers, trained as ours are, and with soft Dice and Adam at 2e-4 as they were published."""


def ablation(plan: Plan) -> pd.DataFrame:
    """What of the recipe matters: the same training without one thing at a time.

    Raises:
        InputError: no such variant, or one that this store can't tell.
    """
    index = store.read_index(plan.store)
    lacks = {}
    if "body" not in set(index["surroundings"]):
        lacks["cube"] = "needs a store of whole bodies, and this one shows cubes alone"
    if len(set(index["source"])) < 2:
        lacks["phantoms_only"] = "needs phantoms and CTs in one store"
    tables = []
    for name in wanted(plan, ABLATION):
        if name in lacks:
            if plan.variants:
                raise InputError(f"The variant '{name}' {lacks[name]}; leave it out.")
            plan.say(f"{name}: left out, for it {lacks[name]}.")
            continue
        tables.append(_train(plan, name, ABLATION[name], ABLATION[name].recipe(plan.recipe)).assign(variant=name))
    return pd.concat(tables, ignore_index=True)


def peers(plan: Plan) -> pd.DataFrame:
    """Networks on the same data with the same seed: after equal steps, after equal minutes, and beside three nulls.

    Raises:
        InputError: no such variant.
    """
    tables = []
    for name in wanted(plan, [*PEERS, *baselines.BASELINES]):
        if name in baselines.BASELINES:
            tables.append(_null(plan, name).assign(variant=name))
            continue
        recipe = PEERS[name].recipe(plan.recipe)
        tables.append(_train(plan, name, PEERS[name], recipe).assign(variant=name, budget="steps"))
        if plan.minutes:
            budget, folder = f"{plan.minutes:g} min", f"{name}-{plan.minutes:g}min"
            steps = max(1, round(60 * plan.minutes / _pace(plan, folder, recipe)))
            recipe = PEERS[name].recipe(replace(plan.recipe, steps=steps))
            tables.append(_train(plan, folder, PEERS[name], recipe).assign(variant=name, budget=budget))
    return pd.concat(tables, ignore_index=True)


def seconds_a_step(subjects: Sequence[Samples | StoredSamples], recipe: Recipe, steps: int = 10) -> float:
    """What a training step takes on this machine, drawing its samples included: a longer training less a shorter one."""
    spent = []
    for count in (3, 3, 3 + steps):  # The first makes kernels and memory ready.
        short = replace(recipe, steps=count, epoch_steps=count, warmup=1)
        with tempfile.TemporaryDirectory() as folder:
            curve = train_network(subjects, [], short, folder, progress=False)
        spent.append(float(curve["seconds"].iloc[-1]))
    return max(spent[2] - spent[1], 1e-6) / steps


def _folds(plan: Plan) -> Iterator[tuple[str, pd.DataFrame]]:
    """`stages.folds`, each with somebody to test on."""
    for fold, rows in splits.iterate_folds(store.read_index(plan.store), plan.folds):
        if not (rows["split"] == "held_out_subject").any():
            raise InputError(
                f"The split '{plan.folds}' holds nobody out, so nobody can be tested; use folds:5 or loso."
            )
        yield fold, rows


def _pace(plan: Plan, folder: str, recipe: Recipe) -> float:
    """`seconds_a_step`, measured once and kept, so that a training that goes on keeps its number of steps."""
    path = plan.out / folder / "pace.json"
    if not path.exists():
        _, rows = next(_folds(plan))
        learned = splits.stream_samples(plan.store, rows[rows["split"] == "train"])
        write_json(path, {"seconds_a_step": seconds_a_step(learned, recipe)})
    return float(read_json(path, "pace")["seconds_a_step"])


def _train(plan: Plan, name: str, variant: Variant, recipe: Recipe) -> pd.DataFrame:
    """Every fold's held-out vertebrae; trained, or read where that was done."""
    tables = []
    for fold, rows in _folds(plan):
        learned, watched = splits.train_and_watched(rows, recipe.patience)
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
                plan.say(f"{who}: step {last.step:.0f} of {recipe.steps}, loss {last.loss:.3f}, {last.seconds:.0f} s")

            looked_at = splits.load_samples(plan.store, watched) if recipe.patience else []
            parts = splits.stream_samples(plan.store, learned)
            curve = train_network(parts, looked_at, recipe, folder, on_epoch=report, progress=False)
            scored = _score(plan, held, variant, folder / "weights.safetensors")
            told = {n: getattr(recipe, n) for n in ("network", "optimiser", "learning_rate", "loss", "critic_weight")}
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
        ways = {subject.surroundings if way == "own" else way: _SHOWN[way] for way in variant.shown}
        for told, show in ways.items():
            made = predict(network, show(subject), mirror=True)
            tables.append(evaluate.score_samples(subject, made).assign(tested_on=told, parameters=count))
    return pd.concat(tables, ignore_index=True)


def _null(plan: Plan, name: str) -> pd.DataFrame:
    tables = []
    for fold, rows in _folds(plan):
        sides = (rows[rows["split"] == side] for side in ("held_out_subject", "train"))
        held, learned = (splits.stream_samples(plan.store, side) for side in sides)
        tables.append(baselines.score_baselines((part.load() for part in held), learned, [name]).assign(fold=fold))
    return pd.concat(tables, ignore_index=True)


def wanted(plan: Plan, known: Iterable[str]) -> list[str]:
    """The plan's variants of those that a study has, in the study's order.

    Raises:
        InputError: one that the study does not have.
    """
    all_, asked = list(known), [name.strip() for name in plan.variants.split(",") if name.strip()]
    for name in asked:
        if name not in all_:
            raise InputError(f"'{name}' is no variant of this study; use some of {', '.join(all_)}.")
    return [name for name in all_ if name in asked or not asked]
