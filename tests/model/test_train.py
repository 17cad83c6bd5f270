"""Training: it learns, it resumes to the bit, it refuses what is not its own, and it stops where numbers end."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import fields, replace
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from numpy.testing import assert_allclose
from torch import nn

from transvert.data import store
from transvert.data.samples import Samples, StoredSamples, write_samples
from transvert.io import InputError
from transvert.model import device, losses, networks, train
from transvert.model.augment import AugmentConfig, Sampler
from transvert.model.predict import predict
from transvert.model.train import Diverged, Recipe, _average, _learning_rate, train_network

STILL = AugmentConfig(**{part.name: 0.0 for part in fields(AugmentConfig)})
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
    return train_network([samples], [samples.chosen([21])], recipe, folder, progress=False, **options)  # type: ignore[arg-type]


def _interrupt(epochs: int) -> Callable[[pd.DataFrame], None]:
    """For `on_epoch`: ends a training after so many of them, as Ctrl-C would."""

    def on_epoch(curve: pd.DataFrame) -> None:
        if len(curve) == epochs:
            raise KeyboardInterrupt

    return on_epoch


def _interrupted(samples: Samples, recipe: Recipe, folder: Path, epochs: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        _train(samples, recipe, folder, on_epoch=_interrupt(epochs))


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return networks.load_weights(folder / "weights.safetensors")[0].state_dict()


def _same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


# The steps


def test_the_learning_rate_warms_up_and_falls_to_a_hundredth() -> None:
    recipe = replace(TINY, steps=100, warmup=10, learning_rate=1.0)
    rates = [_learning_rate(step, recipe) for step in range(100)]
    assert_allclose(rates[:10], np.arange(1, 11) / 10)
    assert max(rates) == rates[10] == 1.0
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[-1] == pytest.approx(0.01, abs=1e-3)


# Learning


def test_it_overfits_one_batch(box_samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Sampler([box_samples], STILL, 0).draw(0, 1)
    monkeypatch.setattr(Sampler, "draw", lambda *_: batch)
    recipe = replace(TINY, options={"width": 16}, steps=30, epoch_steps=10, learning_rate=3e-2, warmup=5)
    curve = train_network([box_samples], [], recipe, tmp_path, progress=False)
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
    found, card = networks.load_weights(tmp_path / "weights.safetensors")
    assert card["network"] == "transvert" and card["levels"] == ["L1", "L2", "L3"]
    pd.testing.assert_frame_equal(pd.DataFrame(card["curve"]), curve, atol=1e-6, check_dtype=False)
    # What is kept is what was validated.
    one = box_samples.chosen([21])
    prediction, truth = predict(found, one.images()) > 0.5, one.targets()
    dice = 2 * (prediction & truth).sum() / (prediction.sum() + truth.sum())
    assert curve.dice_validation.iloc[-1] == pytest.approx(dice, abs=1e-6)


def test_the_kept_weights_lag_behind_the_trained_ones() -> None:
    kept, trained = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.zeros_(kept.weight)
    nn.init.ones_(trained.weight)
    _average(kept, trained, 0, 0.995)
    assert kept.weight.item() == pytest.approx(0.9)  # the start is forgotten fast
    _average(kept, trained, 100_000, 0.75)
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
    write_samples(tmp_path / "store", box_samples)
    shelf = store.Shelf(tmp_path / "store", keep=2)
    kept: list[int] = []
    read = store.Shelf.read
    monkeypatch.setattr(store.Shelf, "read", lambda s, *place: (read(s, *place), kept.append(len(s._kept)))[0])
    stored = StoredSamples(shelf, store.read_index(tmp_path / "store"))
    held = [box_samples.chosen([21])]
    one = train_network([stored], held, replace(TINY, strength=AugmentConfig()), tmp_path / "streamed", progress=False)
    assert len(kept) == TINY.steps * TINY.batch and max(kept) <= 2 < len(stored)
    same = train_network(
        [box_samples], held, replace(TINY, strength=AugmentConfig()), tmp_path / "memory", progress=False
    )
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

    monkeypatch.setattr(train, "mean_dice", scores)
    recipe = replace(TINY, steps=5, epoch_steps=1, patience=2)
    curve = _train(box_samples, recipe, tmp_path / "unbroken")
    assert curve.dice_validation.tolist() == [0.1, 0.5, 0.3, 0.4]
    assert _same(_weights(tmp_path / "unbroken"), kept[1])
    kept.clear()
    _interrupted(box_samples, recipe, tmp_path / "stopped", 3)
    assert len(_train(box_samples, recipe, tmp_path / "stopped")) == 4
    assert _same(_weights(tmp_path / "stopped"), _weights(tmp_path / "unbroken"))
    assert len(_train(box_samples, recipe, tmp_path / "stopped")) == len(kept) == 4, "it has settled"
    with pytest.raises(InputError, match="Nobody is there to validate on, so patience has nothing to look at"):
        train_network([box_samples], [], recipe, tmp_path / "nobody", progress=False)


# Stopping and resuming


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"critic_weight": 0.1, "one_view": 0.5, "accumulate": 2, "batch": 1, "patience": 5},
        {"network": "twod_permute_concat", "options": {"width": 4}},
    ],
    ids=["plain", "with all there is", "with dropout"],
)
def test_a_resumed_run_is_the_unbroken_one_to_the_bit(change: dict, box_samples: Samples, tmp_path: Path) -> None:
    recipe = replace(TINY, **change)
    whole = _train(box_samples, recipe, tmp_path / "whole")
    _interrupted(box_samples, recipe, tmp_path / "parts", 1)
    assert not (tmp_path / "parts" / "weights.safetensors").exists()
    torch.manual_seed(99)  # what the process did in between must not matter
    resumed = _train(box_samples, recipe, tmp_path / "parts")
    assert _same(_weights(tmp_path / "parts"), _weights(tmp_path / "whole"))
    numbers = [column for column in whole.columns if column != "seconds"]
    pd.testing.assert_frame_equal(resumed[numbers], whole[numbers], check_exact=True)
    assert resumed.seconds.is_monotonic_increasing
    ours, theirs = (torch.load(tmp_path / n / "checkpoint.pt", weights_only=True) for n in ("parts", "whole"))
    assert _same(ours["network"], theirs["network"]) and ours.keys() == theirs.keys()


def test_a_run_stopped_within_an_epoch_goes_on_from_the_one_before(
    box_samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _train(box_samples, TINY, tmp_path / "whole")
    draw, drawn = Sampler.draw, []

    def watched(sampler: Sampler, number: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        drawn.append(number)
        if drawn == [0, 1, 2, 3]:
            raise KeyboardInterrupt
        return draw(sampler, number, size)

    monkeypatch.setattr(Sampler, "draw", watched)
    with pytest.raises(KeyboardInterrupt):
        _train(box_samples, TINY, tmp_path / "parts")
    resumed = _train(box_samples, TINY, tmp_path / "parts")
    assert drawn == [0, 1, 2, 3, 2, 3]
    assert resumed.step.tolist() == [2, 4] and resumed.loss.tolist() == whole.loss.tolist()
    assert _same(_weights(tmp_path / "parts"), _weights(tmp_path / "whole"))


def _after(steps: int) -> Callable[[], bool]:
    """For `stop`: says yes at that many steps."""
    asked = iter(range(1, steps + 1))
    return lambda: next(asked) == steps


def test_a_stopped_run_keeps_its_last_step_and_goes_on_from_there(box_samples: Samples, tmp_path: Path) -> None:
    recipe = replace(TINY, steps=6, epoch_steps=3)
    whole = _train(box_samples, recipe, tmp_path / "whole")
    stopped = _train(box_samples, recipe, tmp_path / "parts", stop=_after(2))
    assert stopped.step.tolist() == [2] and not _same(_weights(tmp_path / "parts"), _weights(tmp_path / "whole"))
    resumed = _train(box_samples, recipe, tmp_path / "parts", stop=lambda: False)
    assert resumed.step.tolist() == [2, 3, 6]  # The broken epoch ends where it would have.
    assert resumed.loss.tolist()[2] == whole.loss.tolist()[1]
    assert _same(_weights(tmp_path / "parts"), _weights(tmp_path / "whole"))


def test_a_finished_run_is_not_trained_again(box_samples: Samples, tmp_path: Path) -> None:
    recipe = replace(TINY, steps=2)
    curve = _train(box_samples, recipe, tmp_path)
    before = _weights(tmp_path)
    (tmp_path / "weights.safetensors").unlink()  # as if it had been killed before its last word
    again = _train(box_samples, replace(recipe, device="auto" if not torch.cuda.is_available() else "cpu"), tmp_path)
    pd.testing.assert_frame_equal(again, curve)
    assert _same(before, _weights(tmp_path))


def test_running_statistics_move_once_a_step_towards_the_mean_of_its_draws() -> None:
    layer = nn.BatchNorm2d(1)
    layers = device.norms(nn.Sequential(layer))
    for number in range(6):
        device.pace_statistics(layers, number % 3, 3)
        layer(torch.tensor([number - 1.0, number + 1.0]).reshape(2, 1, 1, 1))  # of mean `number` and variance 2
    assert layer.running_mean.item() == pytest.approx(0.9 * 0.1 * 1 + 0.1 * 4)
    assert layer.running_var.item() == pytest.approx(0.9**2 * 1 + (1 - 0.9**2) * 2)


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
        ({"strength": AugmentConfig(turn_deg=3.0)}, "recipe.strength.turn_deg"),
        ({"steps": 9}, "recipe.steps"),
        ({"accumulate": 2}, "draws_a_step"),
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
        train_network([fewer], [], recipe, tmp_path, progress=False)
    train_network([fewer], [], recipe, tmp_path, resume=False, progress=False)
    assert (tmp_path / "weights.safetensors").exists()


class _Stranger:
    """What somebody's pickle might run."""

    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('a checkpoint ran code')",))


def _foreign(kind: str, ours: Path, path: Path) -> None:
    """Writes to `path` what a checkpoint is not, one that `ours` was made into."""
    if kind == "random bytes":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif kind == "cut short":
        path.write_bytes(ours.read_bytes()[:5000])
    elif kind == "safetensors":
        safetensors.torch.save_file({"weight": torch.zeros(3)}, path)
    else:
        content = {
            "of another package": {"state_dict": {"weight": torch.zeros(3)}, "epoch": 3},
            "a list": [torch.zeros(3)],
            "another identity": {"identity": 3},
            "pickled code": {"identity": _Stranger()},
        }[kind]
        torch.save(content, path)


@pytest.mark.parametrize(
    "kind",
    [
        "random bytes",
        "cut short",
        "safetensors",
        "of another package",
        "a list",
        "another identity",
        "pickled code",
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(
    kind: str, finished: Path, box_samples: Samples, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    _foreign(kind, finished / "checkpoint.pt", path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"checkpoint\.pt is not a checkpoint of this package \(\w+\); move it away"):
        _train(box_samples, replace(TINY, steps=1), tmp_path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("part", ["network", "optimiser", "kept", "step"])
def test_a_checkpoint_whose_parts_do_not_fit_is_refused(
    part: str, finished: Path, box_samples: Samples, tmp_path: Path
) -> None:
    """As that of a version whose networks were other ones, though the recipe is the same."""
    saved = torch.load(finished / "checkpoint.pt", weights_only=True)
    if part == "optimiser":
        state = saved[part]["state"][0]
        name = next(name for name, value in state.items() if value.dim())
        state[name] = state[name][:1]
    elif part == "step":
        del saved[part]
    else:
        name = next(iter(saved[part]))
        saved[part][name] = saved[part][name][:1]
    torch.save(saved, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match=r"checkpoint\.pt does not fit this version's networks \(\w+\); move it away"):
        _train(box_samples, replace(TINY, steps=1), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("resume", [True, False])
def test_weights_of_another_package_are_not_replaced(resume: bool, box_samples: Samples, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="Training would replace .*, so move it away: weights.safetensors does not"):
        _train(box_samples, replace(TINY, steps=1), tmp_path, resume=resume)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# Where it ends


def test_a_full_disk_leaves_the_last_checkpoint_and_a_later_run_goes_on(box_samples: Samples, tmp_path: Path) -> None:
    """Files may grow to half a checkpoint here, as on a disk that has no more room."""
    _train(box_samples, TINY, tmp_path / "whole")
    _interrupted(box_samples, TINY, tmp_path / "full", 1)
    path = tmp_path / "full" / "checkpoint.pt"
    before, (soft, hard) = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(InputError, match=r"checkpoint\.pt can't be written \(.*File too large\); make room"):
            _train(box_samples, TINY, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert {p.name for p in path.parent.iterdir()} == {"checkpoint.pt", "curve.csv"}
    _train(box_samples, TINY, tmp_path / "full")
    assert _same(_weights(tmp_path / "full"), _weights(tmp_path / "whole"))


@pytest.mark.parametrize("bad", [nan, inf])
def test_a_loss_that_is_not_finite_stops_and_leaves_its_draw(
    bad: float, box_samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the fourth draw the loss is bad, and from the next step on that of every draw."""
    honest = losses.loss_and_dice
    seen: list[torch.Tensor] = []

    def spoiled(
        logits: torch.Tensor, targets: torch.Tensor, kind: str, weight: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(targets)
        loss, dice = honest(logits, targets, kind, weight)
        return (loss * bad if len(seen) == 4 else loss), dice

    monkeypatch.setattr(train, "loss_and_dice", spoiled)
    recipe = replace(TINY, batch=1, accumulate=2, epoch_steps=1)
    with pytest.raises(Diverged, match=r"The loss or its gradient is not finite at step 1; look at its draw in .*"):
        _train(box_samples, recipe, tmp_path)
    assert issubclass(Diverged, FloatingPointError) and issubclass(Diverged, InputError)
    batch = torch.load(tmp_path / "bad_batch.pt", weights_only=True)
    assert (batch["step"], batch["draw"]) == (1, 3)
    assert torch.equal(batch["targets"], seen[3]) and batch["images"].shape == (1, 2, 2, 64, 64)
    # The last good state is still there.
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 1
    assert not (tmp_path / "weights.safetensors").exists()


def test_a_gradient_that_is_not_finite_is_never_saved(
    box_samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the loss of an epoch's last step, which it comes from, is."""
    honest = losses.loss_and_dice

    def steep(*inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        loss, dice = honest(*inputs)
        return loss + ((inputs[0] * 0).abs() ** 0.5).sum(), dice

    monkeypatch.setattr(train, "loss_and_dice", steep)
    with pytest.raises(Diverged, match="The loss or its gradient is not finite at step 0"):
        _train(box_samples, replace(TINY, epoch_steps=1), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["bad_batch.pt"]


def test_nothing_to_train_on_and_a_wrong_precision_or_device_are_refused(
    box_samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for nothing in ([], [box_samples.chosen([])]):
        with pytest.raises(InputError, match="There is no sample to train on"):
            train_network(nothing, [], TINY, tmp_path, progress=False)
    with pytest.raises(InputError, match="'fp8' is not a precision; use auto, 32 or bf16"):
        _train(box_samples, replace(TINY, precision="fp8"), tmp_path)
    with pytest.raises(InputError, match="'tpu' is not a device; use auto, cpu or cuda"):
        _train(box_samples, replace(TINY, device="tpu"), tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="There is no CUDA GPU that torch can use here"):
        _train(box_samples, replace(TINY, device="cuda"), tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(InputError, match="4 processes were started for 1 GPU here; start one for each"):
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
