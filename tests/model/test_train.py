"""Training: it learns, resumes to the bit, refuses foreign files, and stops at values that are not finite."""

from __future__ import annotations

import resource
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
from small_network import RECIPE, is_equal
from torch import Tensor, nn

from transvert.data import store
from transvert.data.samples import Samples, StoredSamples, write_samples
from transvert.io import InputError
from transvert.model import networks, train
from transvert.model.augment import AugmentConfig, Sampler
from transvert.model.predict import predict
from transvert.model.train import (
    Recipe,
    adversarial_losses,
    average_weights,
    schedule_learning_rate,
    segmentation_loss,
    train_folds,
    train_network,
)

STILL = AugmentConfig(**{part.name: 0.0 for part in fields(AugmentConfig)})


def _train(samples: Samples, recipe: Recipe, folder: Path, **options: Any) -> pd.DataFrame:
    return train_network([samples], [samples.chosen([21])], recipe, folder, progress=False, **options)


def _train_and_interrupt(samples: Samples, recipe: Recipe, folder: Path, epochs: int) -> None:
    """Trains so many epochs and ends as Ctrl-C does."""

    def interrupt(curve: pd.DataFrame) -> None:
        if len(curve) == epochs:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(samples, recipe, folder, on_epoch=interrupt)


def _weights(folder: Path) -> dict[str, Tensor]:
    return networks.load_weights(folder / "weights.safetensors")[0].state_dict()


# Recipes and devices


@pytest.mark.parametrize(
    ("name", "value"), [("steps", "many"), ("steps", 2.5), ("batch", True), ("augmentation", None)]
)
def test_a_recipe_names_the_field_that_has_another_type(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"The recipe's {name} must be of type .*, which {value!r} is not"):
        Recipe(**{name: value})
    assert Recipe(learning_rate=1, options={"width": 8}).learning_rate == 1, "a whole number is a number"


@pytest.mark.parametrize("amx", [True, False])
def test_bfloat16_is_chosen_only_where_the_processor_is_fast_with_it(
    amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert train.start_processes("cpu", "auto")[1] is amx
    assert train.start_processes("cpu", "bf16")[1] and not train.start_processes("cpu", "32")[1]


# Parts of a step


def test_the_learning_rate_warms_up_and_falls_to_a_hundredth() -> None:
    recipe = Recipe(steps=500, learning_rate=1.0)
    rates = [schedule_learning_rate(step, recipe) for step in range(500)]
    assert_allclose(rates[:50], np.arange(1, 51) / 50)
    assert max(rates) == rates[50] == 1.0 and (np.diff(rates[50:]) < 0).all()
    assert rates[-1] == pytest.approx(0.01, abs=1e-3)
    assert schedule_learning_rate(2, Recipe(steps=8, learning_rate=1.0)) == 1.0  # Warms up for a quarter.


def test_the_moving_average_forgets_the_start_and_keeps_counters() -> None:
    one, zero = torch.ones(1), torch.zeros(1)
    assert average_weights(zero, one, torch.tensor(1)).item() == pytest.approx(0.9)
    assert average_weights(zero, one, torch.tensor(100_000)).item() == pytest.approx(0.005)
    assert average_weights(torch.tensor(3), torch.tensor(7), torch.tensor(1)) == 7


def test_running_statistics_move_once_per_step_towards_the_mean_of_its_batches() -> None:
    layer = nn.BatchNorm2d(1)
    for number in range(6):
        train._pace_statistics({layer: 0.1}, number % 3, 3)
        layer(torch.tensor([number - 1.0, number + 1.0]).reshape(2, 1, 1, 1))  # Its mean is `number`, its variance 2.
    assert layer.running_mean.item() == pytest.approx(0.9 * 0.1 * 1 + 0.1 * 4)
    assert layer.running_var.item() == pytest.approx(0.9**2 * 1 + (1 - 0.9**2) * 2)


# Losses


@pytest.fixture
def half() -> Tensor:
    """(2, 1, 4, 4, 4), the front half of the x axis."""
    targets = torch.zeros(2, 1, 4, 4, 4)
    targets[:, :, :2] = 1
    return targets


def test_dice_and_cross_entropy_of_known_volumes(half: Tensor) -> None:
    sure = (half * 2 - 1) * 50
    loss, dice = segmentation_loss(sure, half)
    assert float(loss) == pytest.approx(0, abs=1e-6) and float(dice) == pytest.approx(1)
    loss, dice = segmentation_loss(-sure, half)
    assert float(dice) == pytest.approx(1 / 65) and float(loss) == pytest.approx(1 - 1 / 65 + 50)
    loss, dice = segmentation_loss(torch.zeros_like(half), half)
    assert float(dice) == pytest.approx((2 * 16 + 1) / (32 + 32 + 1))
    assert float(loss) == pytest.approx(1 - float(dice) + np.log(2), rel=1e-5)
    loss, dice = segmentation_loss(half, half, "dice")
    assert float(loss) == pytest.approx(1 - float(dice))


class Score(nn.Module):
    """Scores a volume by its mean times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, volume: Tensor) -> Tensor:
        return self.weight * volume.mean((1, 2, 3, 4))


def test_adversarial_losses_are_least_squares_and_reach_their_own_weights_alone(half: Tensor) -> None:
    discriminator = Score()
    logits = torch.zeros_like(half, requires_grad=True)
    of_discriminator, of_network = adversarial_losses(discriminator, logits, half)
    # Targets and predictions both have a mean of 0.5, and so a score of 0.25.
    assert of_discriminator.item() == pytest.approx(((0.25 - 1) ** 2 + 0.25**2) / 2)
    assert of_network.item() == pytest.approx((0.25 - 1) ** 2 / 2)
    of_discriminator.backward()
    assert logits.grad is None and discriminator.weight.grad is not None
    discriminator.weight.grad = None
    of_network.backward()
    assert (logits.grad < 0).all() and discriminator.weight.grad is None


# Learning


@pytest.mark.parametrize(("name", "width"), [("transvert", 8), ("transvert_hull", 16)])
def test_both_networks_learn_one_batch(
    name: str, width: int, box_samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Sampler([box_samples], STILL, 0).draw(0, 1)
    monkeypatch.setattr(Sampler, "draw", lambda *_: batch)
    recipe = replace(RECIPE, network=name, options={"width": width}, steps=9, epoch_steps=3, learning_rate=0.1)
    curve = train_network([box_samples], [], recipe, tmp_path, progress=False)
    assert curve.loss.is_monotonic_decreasing and curve.loss.iloc[-1] < 0.8 * curve.loss.iloc[0]
    assert curve.dice.iloc[-1] > curve.dice.iloc[0] and curve.dice_validation.isna().all()


def test_the_curve_the_files_and_the_card(box_samples: Samples, tmp_path: Path) -> None:
    lengths: list[int] = []
    curve = _train(box_samples, replace(RECIPE, steps=5), tmp_path, on_epoch=lambda table: lengths.append(len(table)))
    assert curve.columns.tolist() == ["step", "loss", "dice", "dice_validation", "learning_rate", "seconds"]
    assert curve.step.tolist() == [2, 4, 5] and lengths == [1, 2, 3] and curve.seconds.is_monotonic_increasing
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint.pt", "curve.csv", "weights.safetensors"}
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "curve.csv"), curve)
    found, card = networks.load_weights(tmp_path / "weights.safetensors")
    assert card["network"] == "small" and card["levels"] == ["L1", "L2", "L3"] and card["samples"] == 3
    pd.testing.assert_frame_equal(pd.DataFrame(card["curve"]), curve, atol=1e-6, check_dtype=False)
    # The saved weights are the validated ones.
    one = box_samples.chosen([21])
    prediction, truth = predict(found, one.images()) > 0.5, one.targets()
    dice = 2 * (prediction & truth).sum() / (prediction.sum() + truth.sum())
    assert curve.dice_validation.iloc[-1] == pytest.approx(dice, abs=1e-6)


def test_equal_seeds_train_equal_weights_from_memory_and_from_a_store(box_samples: Samples, tmp_path: Path) -> None:
    write_samples(tmp_path / "store", box_samples)
    cache = store.SampleCache(tmp_path / "store", keep=2)
    stored = StoredSamples(cache, store.read_index(tmp_path / "store"))
    for name, data, seed in (("memory", box_samples, 0), ("store", stored, 0), ("other", box_samples, 1)):
        train_network([data], [], replace(RECIPE, seed=seed), tmp_path / name, progress=False)
    assert is_equal(_weights(tmp_path / "memory"), _weights(tmp_path / "store"))
    assert not is_equal(_weights(tmp_path / "memory"), _weights(tmp_path / "other"))


@pytest.mark.parametrize(
    "change", [{"loss": "dice"}, {"view_dropout": 0.9}, {"adversarial_weight": 0.5}, {"optimiser": "adamw"}]
)
def test_each_option_changes_the_training(change: dict[str, Any], box_samples: Samples, tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=2, epoch_steps=1)
    plain, changed = (
        _train(box_samples, replace(recipe, **options), tmp_path / str(len(options))) for options in ({}, change)
    )
    assert changed.loss.iloc[1] != plain.loss.iloc[1]


# Resuming


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"dropout": 0.5}},
        {"adversarial_weight": 0.1, "view_dropout": 0.5, "accumulate": 2, "batch": 1},
        {"precision": "bf16", "optimiser": "adamw"},
    ],
    ids=["dropout", "all options", "bfloat16"],
)
def test_a_resumed_training_is_the_uninterrupted_one_to_the_bit(
    change: dict[str, Any], box_samples: Samples, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, **change)
    whole = _train(box_samples, recipe, tmp_path / "whole")
    _train_and_interrupt(box_samples, recipe, tmp_path / "parts", 1)
    assert not (tmp_path / "parts" / "weights.safetensors").exists()
    torch.manual_seed(99)  # Random numbers drawn in between must not matter.
    resumed = _train(box_samples, recipe, tmp_path / "parts")
    assert is_equal(_weights(tmp_path / "parts"), _weights(tmp_path / "whole"))
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), whole.drop(columns="seconds"), check_exact=True)
    ours, theirs = (torch.load(tmp_path / n / "checkpoint.pt", weights_only=True) for n in ("parts", "whole"))
    assert is_equal(ours["network"], theirs["network"]) and ours.keys() == theirs.keys()


def test_a_training_interrupted_within_an_epoch_repeats_that_epoch(
    box_samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _train(box_samples, RECIPE, tmp_path / "whole")
    draw, drawn = Sampler.draw, []

    def interrupt(sampler: Sampler, number: int, size: int) -> tuple[Tensor, Tensor]:
        drawn.append(number)
        if drawn == [0, 1, 2, 3]:
            raise KeyboardInterrupt
        return draw(sampler, number, size)

    monkeypatch.setattr(Sampler, "draw", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _train(box_samples, RECIPE, tmp_path / "parts")
    assert _train(box_samples, RECIPE, tmp_path / "parts").step.tolist() == [2, 4]
    assert drawn == [0, 1, 2, 3, 2, 3]
    assert is_equal(_weights(tmp_path / "parts"), _weights(tmp_path / "whole"))


@pytest.fixture(scope="module")
def finished(box_samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    _train(box_samples, replace(RECIPE, steps=1), folder)
    return folder


def test_a_finished_training_is_not_repeated(finished: Path, box_samples: Samples) -> None:
    before, time = _weights(finished), (finished / "checkpoint.pt").stat().st_mtime_ns
    (finished / "weights.safetensors").unlink()  # As if it had been killed before it wrote them.
    assert _train(box_samples, replace(RECIPE, steps=1, device="auto"), finished).step.tolist() == [1]
    assert is_equal(before, _weights(finished)) and (finished / "checkpoint.pt").stat().st_mtime_ns == time


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"learning_rate": 1e-3, "batch": 3}, "batch, learning_rate"),
        ({"options": {"width": 16}}, "options"),
        ({"augmentation": AugmentConfig(turn_deg=3.0)}, "augmentation"),
        ({"accumulate": 2}, "batches_per_step"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused_by_name(
    change: dict[str, Any], named: str, finished: Path, box_samples: Samples
) -> None:
    with pytest.raises(InputError, match=f"was made with another {named}; use another run or folder"):
        _train(box_samples, replace(RECIPE, **{"steps": 1} | change), finished)


def test_a_checkpoint_of_other_data_is_refused_and_can_be_started_over(
    finished: Path, box_samples: Samples, tmp_path: Path
) -> None:
    (tmp_path / "checkpoint.pt").write_bytes((finished / "checkpoint.pt").read_bytes())
    recipe, fewer = replace(RECIPE, steps=1), box_samples.chosen([20, 22])
    with pytest.raises(InputError, match="was made with another samples;"):
        train_network([fewer], [], recipe, tmp_path, progress=False)
    train_network([fewer], [], recipe, tmp_path, resume=False, progress=False)
    assert (tmp_path / "weights.safetensors").exists()


class _Stranger:
    """Pickled code."""

    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('a checkpoint ran code')",))


FOREIGN: dict[str, Any] = {
    "bytes": b"random bytes",
    "truncated": "truncated",
    "another package": {"state_dict": {"weight": torch.zeros(3)}, "epoch": 3},
    "code": {"format": _Stranger()},
    "another version": {"format": "transvert-checkpoint/1"},
    "other weights": {"network": {"weight": torch.zeros(3)}},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_not_a_checkpoint_is_refused(
    kind: str, finished: Path, box_samples: Samples, tmp_path: Path
) -> None:
    content = FOREIGN[kind]
    path, whole = tmp_path / "checkpoint.pt", finished / "checkpoint.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "truncated":
        path.write_bytes(whole.read_bytes()[:5000])
    else:
        saved = torch.load(whole, weights_only=True)
        if content.keys() <= saved.keys():
            content = saved | content
        torch.save(content, path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"checkpoint\.pt is not a checkpoint of this version of the package \(\w+\)"):
        _train(box_samples, replace(RECIPE, steps=1), tmp_path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("resume", [True, False])
def test_weights_of_another_package_are_not_replaced(resume: bool, box_samples: Samples, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="Training would replace .*, so move it away: weights.safetensors does not"):
        _train(box_samples, replace(RECIPE, steps=1), tmp_path, resume=resume)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# Errors


def test_a_full_disk_leaves_the_last_checkpoint_and_the_training_resumes(box_samples: Samples, tmp_path: Path) -> None:
    """Files may grow to half a checkpoint here, as on a full disk."""
    _train(box_samples, RECIPE, tmp_path / "whole")
    _train_and_interrupt(box_samples, RECIPE, tmp_path / "full", 1)
    path = tmp_path / "full" / "checkpoint.pt"
    before, (soft, hard) = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(InputError, match=r"checkpoint\.pt can't be written \(.*File too large\); make room"):
            _train(box_samples, RECIPE, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert {p.name for p in path.parent.iterdir()} == {"checkpoint.pt", "curve.csv"}
    _train(box_samples, RECIPE, tmp_path / "full")
    assert is_equal(_weights(tmp_path / "full"), _weights(tmp_path / "whole"))


@pytest.mark.parametrize("spoil", ["a loss of NaN", "an infinite loss", "a gradient"])
def test_values_that_are_not_finite_end_a_training_and_are_never_saved(
    spoil: str, box_samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fourth batch, of the second step, is bad."""
    calls: list[int] = []

    def spoiled(logits: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        loss, dice = segmentation_loss(logits, *others)
        calls.append(1)
        if len(calls) == 4:
            slope = ((logits * 0).abs() ** 0.5).sum()  # 0, with an infinite gradient.
            loss = loss + slope if spoil == "a gradient" else loss * (nan if "NaN" in spoil else inf)
        return loss, dice

    monkeypatch.setattr(train, "segmentation_loss", spoiled)
    with pytest.raises(InputError, match="The loss or its gradient is not finite at step 1; train with a lower"):
        _train(box_samples, replace(RECIPE, batch=1, accumulate=2, epoch_steps=1), tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 1
    assert not (tmp_path / "weights.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"precision": "fp8"}, "'fp8' is not a precision; use auto, 32 or bf16"),
        ({"device": "tpu"}, "'tpu' is not a device; use auto, cpu or cuda"),
        ({"device": "cuda"}, "There is no CUDA GPU that PyTorch can use"),
        ({"loss": "focal"}, "'focal' is not a loss; use dice_ce or dice"),
        ({"optimiser": "sgd"}, "'sgd' is not an optimiser; use muon or adamw"),
        ({"network": "resnet"}, "'resnet' is not a network; use one of transvert, transvert_hull"),
    ],
)
def test_an_unknown_option_is_refused(
    change: dict[str, Any], sentence: str, box_samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=sentence):
        _train(box_samples, replace(RECIPE, **change), tmp_path)
    assert not list(tmp_path.iterdir())


def test_missing_data_and_more_processes_than_gpus_are_refused(
    box_samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for nothing in ([], [box_samples.chosen([])]):
        with pytest.raises(InputError, match="There is no sample to train on"):
            train_network(nothing, [], RECIPE, tmp_path, progress=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(InputError, match="4 processes were started for 1 GPU; start one for each"):
        _train(box_samples, replace(RECIPE, device="cuda"), tmp_path)
    assert not list(tmp_path.iterdir())


# Folds


def test_each_fold_is_trained_once_and_one_table_has_all_held_out_subjects(
    box_samples: Samples, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, out = tmp_path / "store", tmp_path / "out"
    for name, person in (("sub-0", ""), ("sub-1", "sub-p"), ("sub-2", "sub-p")):
        write_samples(place, replace(box_samples.chosen([21]), subject=name, person=person))
    table = train_folds(place, "loso", replace(RECIPE, steps=1), out)
    assert table.subject.tolist() == ["sub-0", "sub-1", "sub-2"]
    assert pd.read_csv(out / "metrics.csv").dice.tolist() == pytest.approx(table.dice.tolist(), abs=1e-6)
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["sub-0", "sub-p"]
    for person, trained in (("sub-0", ["sub-1", "sub-2"]), ("sub-p", ["sub-0"])):
        assert networks.load_network(out / person / "weights.safetensors")[1]["subjects"] == trained
    before = (out / "sub-0" / "checkpoint.pt").stat().st_mtime_ns
    assert train_folds(place, "loso", replace(RECIPE, steps=1), out).equals(table)
    assert (out / "sub-0" / "checkpoint.pt").stat().st_mtime_ns == before and not capsys.readouterr().out
