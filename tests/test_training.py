"""Training: it learns, it resumes to the bit, it refuses what is not its own, and it stops where numbers end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from transvert import network, samples, store, training
from transvert.augment import Sampler, Strength
from transvert.files import InputError
from transvert.samples import Samples, StoredSamples
from transvert.training import Recipe, predict, train

STILL = Strength(**{part.name: 0.0 for part in fields(Strength)})
TINY = Recipe(
    network="transvert",
    options={"width": 8},
    steps=4,
    epoch_steps=2,
    batch=2,
    warmup=2,
    average=0.9,
    precision="32",
    device="cpu",
)
Make = Callable[[str], nn.Module]


def _train(samples: Samples, recipe: Recipe, folder: Path, **options: object) -> pd.DataFrame:
    return train([samples], [samples.chosen([21])], recipe, folder, progress=False, **options)  # type: ignore[arg-type]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return network.load_weights(folder / "weights.safetensors")[0].state_dict()


def _same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


# The steps


def test_the_learning_rate_warms_up_and_falls_to_a_hundredth() -> None:
    recipe = replace(TINY, steps=100, warmup=10, learning_rate=1.0)
    rates = [training._learning_rate(step, recipe) for step in range(100)]
    assert_allclose(rates[:10], np.arange(1, 11) / 10)
    assert max(rates) == rates[10] == 1.0
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[-1] == pytest.approx(0.01, abs=1e-3)


# Learning


def test_it_overfits_one_batch(box_samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Sampler([box_samples], STILL, 0).draw(0, 1)
    monkeypatch.setattr(Sampler, "draw", lambda *_: batch)
    recipe = replace(TINY, options={"width": 16}, steps=30, epoch_steps=10, learning_rate=3e-2, warmup=5)
    curve = train([box_samples], [], recipe, tmp_path, progress=False)
    assert curve.dice.iloc[0] < 0.4
    assert curve.dice.iloc[-1] > 0.75
    assert curve.loss.is_monotonic_decreasing
    assert curve.dice_validation.isna().all()


def test_the_curve_and_the_files_it_leaves(box_samples: Samples, tmp_path: Path) -> None:
    shown: list[int] = []
    curve = _train(box_samples, replace(TINY, steps=5), tmp_path, on_epoch=lambda table: shown.append(len(table)))
    assert curve.columns.tolist() == ["step", "loss", "dice", "dice_validation", "learning_rate", "seconds"]
    assert curve.step.tolist() == [2, 4, 5]
    assert shown == [1, 2, 3]
    assert curve.seconds.is_monotonic_increasing
    assert curve.dice_validation.between(0, 1).all()
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint.pt", "curve.csv", "weights.safetensors"}
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "curve.csv"), curve)
    found, card = network.load_weights(tmp_path / "weights.safetensors")
    assert card["network"] == "transvert"
    # What is kept is what was validated.
    one = box_samples.chosen([21])
    prediction, truth = predict(found, one.images()) > 0.5, one.targets()
    dice = 2 * (prediction & truth).sum() / (prediction.sum() + truth.sum())
    assert curve.dice_validation.iloc[-1] == pytest.approx(dice, abs=1e-6)


def test_the_kept_weights_lag_behind_the_trained_ones() -> None:
    kept, trained = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.zeros_(kept.weight)
    nn.init.ones_(trained.weight)
    training._average(kept, trained, 0, 0.995)
    assert kept.weight.item() == pytest.approx(0.9)  # the start is forgotten fast
    training._average(kept, trained, 100_000, 0.75)
    assert kept.weight.item() == pytest.approx(0.9 + 0.1 * 0.25)


def test_equal_seeds_train_equal_weights_and_others_do_not(box_samples: Samples, tmp_path: Path) -> None:
    recipe = replace(TINY, steps=1)
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        _train(box_samples, replace(recipe, seed=seed), tmp_path / folder)
    assert _same(_weights(tmp_path / "a"), _weights(tmp_path / "b"))
    assert not _same(_weights(tmp_path / "a"), _weights(tmp_path / "c"))


def test_training_from_a_store_streams_and_gives_the_weights_of_training_from_memory(
    box_samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples.write(tmp_path / "store", box_samples)
    shelf = store.Shelf(tmp_path / "store", keep=2)
    kept: list[int] = []
    read = store.Shelf.read
    monkeypatch.setattr(store.Shelf, "read", lambda s, *place: (read(s, *place), kept.append(len(s._kept)))[0])
    stored = StoredSamples(shelf, store.read_index(tmp_path / "store"))
    held = [box_samples.chosen([21])]
    one = train([stored], held, replace(TINY, strength=Strength()), tmp_path / "streamed", progress=False)
    assert len(kept) == TINY.steps * TINY.batch and max(kept) <= 2 < len(stored)
    same = train([box_samples], held, replace(TINY, strength=Strength()), tmp_path / "memory", progress=False)
    assert len(kept) == TINY.steps * TINY.batch
    assert _same(_weights(tmp_path / "streamed"), _weights(tmp_path / "memory"))
    assert one.loss.tolist() == same.loss.tolist() and one.dice_validation.tolist() == same.dice_validation.tolist()


def test_each_of_the_recipe_s_terms_changes_what_is_learned(box_samples: Samples, tmp_path: Path) -> None:
    plain = _train(box_samples, TINY, tmp_path / "plain")
    for change in ({"loss": "regression"}, {"projection_weight": 0.5}, {"one_view": 0.9}):
        name = next(iter(change))
        changed = _train(box_samples, replace(TINY, **change), tmp_path / name)  # type: ignore[arg-type]
        assert changed.loss.tolist() != plain.loss.tolist()
        again = _train(box_samples, replace(TINY, **change), tmp_path / f"{name} again")  # type: ignore[arg-type]
        assert changed.loss.tolist() == again.loss.tolist()


def test_patience_ends_a_training_and_keeps_its_best_epoch(
    box_samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation says .1, .5, .3, .4, .9: with a patience of two the last is never reached, stopped or not."""
    kept: list[dict[str, torch.Tensor]] = []

    def scores(network: nn.Module, *_: object) -> float:
        kept.append({key: value.clone() for key, value in network.state_dict().items()})
        return [0.1, 0.5, 0.3, 0.4, 0.9][len(kept) - 1]

    monkeypatch.setattr(training, "_validate", scores)
    recipe = replace(TINY, steps=5, epoch_steps=1, patience=2)
    curve = _train(box_samples, recipe, tmp_path / "unbroken")
    assert curve.dice_validation.tolist() == [0.1, 0.5, 0.3, 0.4]
    assert _same(_weights(tmp_path / "unbroken"), kept[1])
    kept.clear()
    _train(box_samples, recipe, tmp_path / "stopped", stop_after=3)
    assert len(_train(box_samples, recipe, tmp_path / "stopped")) == 4
    assert _same(_weights(tmp_path / "stopped"), _weights(tmp_path / "unbroken"))
    assert len(_train(box_samples, recipe, tmp_path / "stopped")) == len(kept) == 4, "it has settled"
    with pytest.raises(InputError, match="Nobody is there to validate on, so patience has nothing to look at"):
        train([box_samples], [], recipe, tmp_path / "nobody", progress=False)


# Stopping and resuming


@pytest.mark.parametrize("critic_weight", [0.0, 0.1], ids=["alone", "with a critic"])
def test_a_resumed_run_is_the_unbroken_one_to_the_bit(
    critic_weight: float, box_samples: Samples, tmp_path: Path
) -> None:
    recipe = replace(TINY, critic_weight=critic_weight)
    whole = _train(box_samples, recipe, tmp_path / "whole")
    first = _train(box_samples, recipe, tmp_path / "parts", stop_after=2)
    assert first.step.tolist() == [2]
    assert not _same(_weights(tmp_path / "parts"), _weights(tmp_path / "whole"))
    torch.manual_seed(99)  # what the process did in between must not matter
    resumed = _train(box_samples, recipe, tmp_path / "parts")
    assert _same(_weights(tmp_path / "parts"), _weights(tmp_path / "whole"))
    numbers = [column for column in whole.columns if column != "seconds"]
    pd.testing.assert_frame_equal(resumed[numbers], whole[numbers], check_exact=True)
    assert resumed.seconds.is_monotonic_increasing


def test_a_run_stopped_within_an_epoch_ends_with_the_same_weights(box_samples: Samples, tmp_path: Path) -> None:
    _train(box_samples, TINY, tmp_path / "whole")
    _train(box_samples, TINY, tmp_path / "parts", stop_after=1)
    _train(box_samples, TINY, tmp_path / "parts")
    assert _same(_weights(tmp_path / "parts"), _weights(tmp_path / "whole"))


def test_a_finished_run_is_not_trained_again(box_samples: Samples, tmp_path: Path) -> None:
    recipe = replace(TINY, steps=2)
    curve = _train(box_samples, recipe, tmp_path)
    before = _weights(tmp_path)
    again = _train(box_samples, recipe, tmp_path)
    pd.testing.assert_frame_equal(again, curve)
    assert _same(before, _weights(tmp_path))


@pytest.fixture(scope="module")
def finished(box_samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    _train(box_samples, replace(TINY, steps=1), folder)
    return folder


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 7}, "recipe.seed"),
        ({"learning_rate": 1e-3, "batch": 3}, "recipe.batch, recipe.learning_rate"),
        ({"options": {"width": 16}}, "recipe.options.width"),
        ({"strength": Strength(turn_deg=3.0)}, "recipe.strength.turn_deg"),
        ({"steps": 9}, "recipe.steps"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused_by_name(
    change: dict, named: str, finished: Path, box_samples: Samples
) -> None:
    with pytest.raises(InputError, match=f"was made with another {named}; train under another run"):
        _train(box_samples, replace(TINY, **{"steps": 1} | change), finished)


def test_a_checkpoint_of_other_data_is_refused_and_can_be_started_over(
    finished: Path, box_samples: Samples, tmp_path: Path
) -> None:
    (tmp_path / "checkpoint.pt").write_bytes((finished / "checkpoint.pt").read_bytes())
    recipe, fewer = replace(TINY, steps=1), box_samples.chosen([20, 22])
    with pytest.raises(InputError, match="was made with another samples;"):
        train([fewer], [], recipe, tmp_path, progress=False)
    train([fewer], [], recipe, tmp_path, resume=False, progress=False)
    assert (tmp_path / "weights.safetensors").exists()


class _Stranger:
    """What somebody's pickle might run."""

    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('a checkpoint ran code')",))


@pytest.mark.parametrize("kind", ["text", "cut short", "foreign", "pickled code"])
def test_a_file_that_is_no_checkpoint_is_refused(
    kind: str, finished: Path, box_samples: Samples, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    if kind == "text":
        path.write_text("no checkpoint")
    elif kind == "cut short":
        path.write_bytes((finished / "checkpoint.pt").read_bytes()[:5000])
    else:
        torch.save({"identity": _Stranger()} if kind == "pickled code" else {"weights": torch.zeros(3)}, path)
    with pytest.raises(InputError, match=r"checkpoint\.pt is not a checkpoint of this package .*; move it away"):
        _train(box_samples, replace(TINY, steps=1), tmp_path)


# Where it ends


def test_a_loss_that_is_not_finite_stops_and_leaves_its_batch(
    box_samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = training.loss_and_dice
    seen: list[torch.Tensor] = []

    def spoiled(
        logits: torch.Tensor, targets: torch.Tensor, kind: str, weight: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(targets)
        loss, dice = honest(logits, targets, kind, weight)
        return (loss * float("nan") if len(seen) == 3 else loss), dice

    monkeypatch.setattr(training, "loss_and_dice", spoiled)
    with pytest.raises(FloatingPointError, match=r"The loss is nan at step 2; its batch is in bad_batch\.pt"):
        _train(box_samples, TINY, tmp_path)
    batch = torch.load(tmp_path / "bad_batch.pt", weights_only=True)
    assert batch["step"] == 2
    assert torch.equal(batch["targets"], seen[2]) and batch["images"].shape == (2, 2, 2, 64, 64)
    # The last good state is still there.
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2
    assert not (tmp_path / "weights.safetensors").exists()


def test_nothing_to_train_on_and_a_wrong_precision_or_device_are_refused(
    box_samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for nothing in ([], [box_samples.chosen([])]):
        with pytest.raises(InputError, match="There is no sample to train on"):
            train(nothing, [], TINY, tmp_path, progress=False)
    with pytest.raises(InputError, match="'fp8' is not a precision; use auto, 32 or bf16"):
        _train(box_samples, replace(TINY, precision="fp8"), tmp_path)
    with pytest.raises(InputError, match="'tpu' is not a device; use auto, cpu or cuda"):
        _train(box_samples, replace(TINY, device="tpu"), tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="There is no CUDA GPU that torch can use here"):
        _train(box_samples, replace(TINY, device="cuda"), tmp_path)
    assert not list(tmp_path.iterdir())


# Prediction


def test_a_mirrored_patient_gets_the_mirrored_prediction(tiny: Make, box_samples: Samples) -> None:
    made = tiny("transvert")
    images = box_samples.images()[:2]
    mirrored = images.copy()
    mirrored[:, 0] = images[:, 0, :, :, ::-1]
    plain, other = predict(made, images, mirror=True), predict(made, mirrored, mirror=True)
    assert plain.shape == (2, 64, 64, 64) and plain.dtype == np.float32
    assert_allclose(other, plain[:, ::-1], atol=1e-6)
    # Without the mirror it is no such thing: the network has no symmetry of its own.
    assert np.abs(predict(made, mirrored) - predict(made, images)[:, ::-1]).max() > 1e-4


def test_predictions_do_not_depend_on_how_many_are_made_at_a_time(tiny: Make, box_samples: Samples) -> None:
    made, images = tiny("transvert").train(), box_samples.images()
    assert_allclose(predict(made, images, batch=1), predict(made, images, batch=8), atol=1e-5)
    assert not made.training
    assert predict(made, images[:0]).shape == (0, 64, 64, 64)
