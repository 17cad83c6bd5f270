"""Training in processes of its own: two that share the batches, and one that is killed. They run `main` below."""

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

import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from small_network import RECIPE, is_equal

from transvert.data import samples, store
from transvert.data.samples import Samples, StoredSamples
from transvert.model import networks
from transvert.model.augment import AugmentConfig, Sampler
from transvert.model.train import Recipe, train_network

# Two batches per step, in one process or in two.
TWO = replace(RECIPE, batch=1, accumulate=2, adversarial_weight=0.1, view_dropout=0.3)
NUMBERS = ["step", "loss", "dice", "dice_validation", "learning_rate"]


def main(folder: Path, recipe: Recipe, killed_checkpoint: int) -> None:
    """Trains on the store beside `folder`; dies while it writes that checkpoint, 0 for none."""
    torch.set_num_threads(1)
    rank, draw, saves = os.environ.get("RANK", "0"), Sampler.draw, []

    def log_draw(sampler: Sampler, number: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        with Path(f"{folder}.{rank}").open("a") as log:
            log.write(f"{number}\n")
        return draw(sampler, number, size)

    def save(content: object, file: IO[bytes], whole: Callable[..., None] = torch.save, **options: bool) -> None:
        whole(content, file, **options)
        saves.append(file.tell())
        if len(saves) == killed_checkpoint:
            file.truncate(1000)
            os.kill(os.getpid(), signal.SIGKILL)

    Sampler.draw = log_draw  # type: ignore[method-assign]
    torch.save = save
    subject = StoredSamples(store.SampleCache(folder.parent / "store"), store.read_index(folder.parent / "store"))
    train_network(
        [subject], [subject.load()], recipe, folder, on_epoch=lambda curve: print(f"{rank}: epoch {len(curve)}")
    )


def _run(folder: Path, recipe: Recipe, killed_checkpoint: int = 0, processes: int = 1) -> tuple[int, str, str]:
    """Runs `main` in so many processes. Returns exit status, stdout and stderr."""
    command = [sys.executable, __file__, str(folder), json.dumps(asdict(recipe)), str(killed_checkpoint)]
    if processes > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=600, check=False
    )
    return done.returncode, done.stdout, done.stderr


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return networks.load_weights(folder / "weights.safetensors")[0].state_dict()


def _train_here(made: Samples, recipe: Recipe, folder: Path) -> pd.DataFrame:
    return train_network([made], [made], recipe, folder, progress=False)


@pytest.fixture(scope="module")
def place(box_samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    samples.write_samples(folder / "store", box_samples)
    return folder


def test_two_processes_share_the_batches_and_continue_one_that_accumulates_two(
    place: Path, box_samples: Samples
) -> None:
    """One process makes the first epoch, two make the second one."""
    alone = _train_here(box_samples, TWO, place / "alone")

    def interrupt(_: pd.DataFrame) -> None:
        raise KeyboardInterrupt

    folder = place / "two"
    with pytest.raises(KeyboardInterrupt):
        train_network([box_samples], [box_samples], TWO, folder, progress=False, on_epoch=interrupt)
    status, output, errors = _run(folder, replace(TWO, accumulate=1), processes=2)
    assert status == 0, errors
    drawn = [[int(line) for line in Path(f"{folder}.{rank}").read_text().split()] for rank in range(2)]
    assert drawn == [[4, 6], [5, 7]]
    assert_allclose(pd.read_csv(folder / "curve.csv")[NUMBERS], alone[NUMBERS], rtol=1e-5)
    ours, theirs = _weights(folder), _weights(place / "alone")
    for name, value in theirs.items():
        if value.is_floating_point():
            assert_allclose(ours[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    # The first process alone writes and prints.
    assert {p.name for p in folder.iterdir()} == {"checkpoint.pt", "curve.csv", "weights.safetensors"}
    assert output.splitlines() == ["0: epoch 2"] and errors.count("epoch 2 of 2:   0%") == 1


def test_a_training_killed_while_it_saves_ends_as_the_uninterrupted_one(place: Path, box_samples: Samples) -> None:
    recipe, folder = replace(TWO, accumulate=1), place / "killed"
    whole = _train_here(box_samples, recipe, place / "whole")
    status, _, errors = _run(folder, recipe, killed_checkpoint=2)
    assert status == -signal.SIGKILL, errors
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == 2
    assert [path.stat().st_size for path in folder.glob(".writing-*")] == [1000]
    curve = _train_here(box_samples, recipe, folder)
    pd.testing.assert_frame_equal(curve[NUMBERS], whole[NUMBERS], check_exact=True)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "curve.csv"), curve)
    assert is_equal(_weights(folder), _weights(place / "whole"))
    assert {p.name for p in folder.iterdir()} == {"checkpoint.pt", "curve.csv", "weights.safetensors"}


if __name__ == "__main__":
    wanted = json.loads(sys.argv[2])
    augmentation = AugmentConfig(**wanted["augmentation"])
    main(Path(sys.argv[1]), Recipe(**wanted | {"augmentation": augmentation}), int(sys.argv[3]))
