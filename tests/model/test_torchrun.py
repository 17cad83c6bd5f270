"""Training in processes of its own: two that share the draws, two of which one fails, and one that is killed.

What runs in them is `main`, below.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose

from transvert.data import samples, store
from transvert.data.samples import Samples, StoredSamples
from transvert.io import InputError
from transvert.model import networks
from transvert.model.augment import AugmentConfig, Sampler
from transvert.model.train import Recipe, train_network

# Two draws a step, in one process or in two.
RECIPE = Recipe(
    network="transvert",
    options={"width": 8},
    steps=6,
    epoch_steps=2,
    batch=1,
    accumulate=2,
    warmup=2,
    average=0.9,
    critic_weight=0.1,
    one_view=0.3,
    precision="32",
    device="cpu",
)
NUMBERS = ["step", "loss", "dice", "dice_validation", "learning_rate"]


def main(folder: Path, recipe: Recipe, fault: str = "") -> None:
    """Trains on the store beside `folder`, and fails where `fault` says.

    "spoil N" gives draw N pictures without numbers; "kill checkpoint N" kills the process while it writes its Nth one.
    """
    torch.set_num_threads(1)
    rank, draw, saves = os.environ.get("RANK", "0"), Sampler.draw, []

    def watched(sampler: Sampler, number: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        with Path(f"{folder}.{rank}").open("a") as log:
            log.write(f"{number}\n")
        images, targets = draw(sampler, number, size)
        return (images * np.nan if fault == f"spoil {number}" else images), targets

    def cut_short(content: object, file: IO[bytes], save: Callable[..., None] = torch.save, **options: bool) -> None:
        save(content, file, **options)
        saves.append(file.tell())
        if fault == f"kill checkpoint {len(saves)}":
            file.truncate(10_000)
            os.kill(os.getpid(), signal.SIGKILL)

    Sampler.draw = watched  # type: ignore[method-assign]
    torch.save = cut_short
    index = store.read_index(folder.parent / "store")
    subject = StoredSamples(store.SampleCache(folder.parent / "store"), index)
    train_network(
        [subject], [subject.load()], recipe, folder, on_epoch=lambda curve: print(f"{rank}: epoch {len(curve)}")
    )


def _run(folder: Path, recipe: Recipe, fault: str = "", processes: int = 1) -> tuple[int, str, str]:
    """Runs `main` in so many processes: exit status, and what they said on stdout and stderr."""
    command = [sys.executable, __file__, str(folder), json.dumps(asdict(recipe)), fault]
    if processes > 1:
        starter = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command[1:1] = starter
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            output, errors = process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun takes its processes with it.
            raise
    return process.returncode, output, errors


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return networks.load_weights(folder / "weights.safetensors")[0].state_dict()


def _trained_here(made: Samples, recipe: Recipe, folder: Path) -> pd.DataFrame:
    return train_network([made], [made], recipe, folder, progress=False)


@pytest.fixture(scope="module")
def place(box_samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    samples.write_samples(folder / "store", box_samples)
    return folder


@pytest.fixture(scope="module")
def alone(box_samples: Samples, place: Path) -> pd.DataFrame:
    """The curve of one process that accumulates two draws."""
    torch.set_num_threads(1)
    return _trained_here(box_samples, RECIPE, place / "alone")


def _assert_like_alone(curve: pd.DataFrame, folder: Path, alone: pd.DataFrame) -> None:
    assert_allclose(curve[NUMBERS], alone[NUMBERS], rtol=1e-5)
    ours, theirs = _weights(folder), _weights(folder.parent / "alone")
    for name, value in theirs.items():
        if value.is_floating_point():
            assert_allclose(ours[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_two_processes_share_the_draws_and_train_as_one_that_accumulates_two(place: Path, alone: pd.DataFrame) -> None:
    status, output, errors = _run(place / "two", replace(RECIPE, accumulate=1), processes=2)
    assert status == 0, errors
    drawn = [[int(line) for line in Path(place / f"two.{rank}").read_text().split()] for rank in range(2)]
    assert drawn == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]
    _assert_like_alone(pd.read_csv(place / "two" / "curve.csv"), place / "two", alone)
    # One process writes and speaks.
    assert {p.name for p in (place / "two").iterdir()} == {"checkpoint.pt", "curve.csv", "weights.safetensors"}
    assert output.split("\n")[:-1] == ["0: epoch 1", "0: epoch 2", "0: epoch 3"]
    assert errors.count("epoch 1 of 3:   0%") == 1


def test_two_processes_take_over_and_what_one_breaks_ends_both_and_one_goes_on(
    place: Path, alone: pd.DataFrame, box_samples: Samples
) -> None:
    """Each makes an epoch; the two break in the second of theirs."""
    folder = place / "broken"

    def stop(_: pd.DataFrame) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_network([box_samples], [box_samples], RECIPE, folder, progress=False, on_epoch=stop)
    status, _, errors = _run(folder, replace(RECIPE, accumulate=1), "spoil 9", processes=2)
    assert status == 1
    assert "The loss or its gradient is not finite at step 4; look at its draw" in errors
    assert [int(line) for line in Path(f"{folder}.1").read_text().split()] == [5, 7, 9, 11]
    batch = torch.load(folder / "bad_batch.pt", weights_only=True)
    assert (batch["step"], batch["draw"]) == (4, 9)
    assert batch["images"].isnan().all()
    assert torch.equal(batch["targets"], Sampler([box_samples], AugmentConfig(), 0).draw(9, 1)[1])
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == 4
    _assert_like_alone(_trained_here(box_samples, RECIPE, folder), folder, alone)
    with pytest.raises(InputError, match="was made with another draws_a_step;"):
        _trained_here(box_samples, replace(RECIPE, accumulate=3), folder)


def test_a_run_that_is_killed_while_it_saves_ends_as_the_unbroken_one(place: Path, box_samples: Samples) -> None:
    recipe, folder = replace(RECIPE, accumulate=1), place / "killed"
    whole = _trained_here(box_samples, recipe, place / "whole")
    status, _, errors = _run(folder, recipe, "kill checkpoint 2")
    assert status == -signal.SIGKILL, errors
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == 2
    assert [path.stat().st_size for path in folder.glob(".writing-*")] == [10_000]
    curve = _trained_here(box_samples, recipe, folder)
    pd.testing.assert_frame_equal(curve[NUMBERS], whole[NUMBERS], check_exact=True)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "curve.csv"), curve)
    ours, theirs = _weights(folder), _weights(place / "whole")
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert {p.name for p in folder.iterdir()} == {"checkpoint.pt", "curve.csv", "weights.safetensors"}


if __name__ == "__main__":
    wanted = json.loads(sys.argv[2])
    main(Path(sys.argv[1]), Recipe(**wanted | {"strength": AugmentConfig(**wanted["strength"])}), sys.argv[3])
