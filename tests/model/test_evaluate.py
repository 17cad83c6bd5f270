"""Evaluation: tables of metrics of samples, stores and whole subjects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Patient, store_as
from torch import nn

from transvert.data import samples, store
from transvert.data.manifest import Subject
from transvert.data.patches import SIZE, SPACING_MM
from transvert.data.samples import Samples
from transvert.imaging.volume import Volume
from transvert.io import InputError
from transvert.model import evaluate, networks

L1, L2, L3 = 20, 21, 22
COLUMNS = ["subject", "level", "dice", "hd95_mm", "assd_mm", "nsd_1p5mm", "source"]


class Ball(nn.Module):
    """Predicts a ball of 15 mm from any input."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        steps = (torch.arange(SIZE) - (SIZE - 1) / 2) * SPACING_MM
        x, y, z = torch.meshgrid(steps, steps, steps, indexing="ij")
        self.logits = 15 - torch.sqrt(x**2 + y**2 + z**2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(images), 1, SIZE, SIZE, SIZE)


def test_every_whole_vertebra_is_scored_from_its_ct_or_a_phantom(
    patient: Patient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One subject has a CT, one has a mask of L2 and a truncated L3 alone, one cannot be read."""
    cut = Volume(patient.mask.data.copy(), patient.mask.affine)
    cut.data[cut.data == L1] = 0
    low = int(np.argwhere(cut.data == L3)[:, 2].mean())
    affine = cut.affine.copy()
    affine[:3, 3] = cut.world([0, 0, low])
    border = store_as(Volume(cut.data[:, :, low:].copy(), affine), "LPS", tmp_path / "cut.nii.gz")
    bad = tmp_path / "bad.nii.gz"
    bad.write_text("no volume")
    subjects = [Subject("sub-bad", mask=bad), patient.subject, Subject("sub-cut", mask=border, convention="verse")]
    table = evaluate.evaluate_subjects(subjects, Ball(), tmp_path / "out", progress=False)
    notes = capsys.readouterr().out.splitlines()
    written = pd.read_csv(tmp_path / "out" / "metrics.csv")
    assert list(table.columns) == list(written.columns) == list(evaluate.COLUMNS) == COLUMNS
    assert list(zip(written.subject, written.level, written.source, strict=True)) == [
        *(("sub-box", name, "ct") for name in ("L1", "L2", "L3")),
        ("sub-cut", "L2", "phantom"),
    ]
    assert written.dice.between(0.2, 0.9).all() and np.isfinite(written[COLUMNS[2:6]]).all(axis=None)
    assert notes[0].startswith("sub-bad: bad.nii.gz is not a NIfTI file")
    assert len(notes) == 2 and notes[1].startswith("sub-cut: L3: ")
    assert (tmp_path / "out" / "skipped.txt").read_text().splitlines() == notes


def test_nothing_to_evaluate_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    bad = tmp_path / "bad.nii.gz"
    bad.write_text("no volume")
    with pytest.raises(InputError, match=r"No subject could be evaluated\. sub-bad: bad\.nii\.gz is not a NIfTI"):
        evaluate.evaluate_subjects([Subject("sub-bad", mask=bad)], Ball(), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_the_wanted_rows_of_a_store_are_scored(box_samples: Samples, tmp_path: Path) -> None:
    for name in ("sub-0", "sub-1"):
        samples.write_samples(tmp_path, replace(box_samples.chosen([L1, L2]), subject=name))
    index = store.read_index(tmp_path)
    table = evaluate.score_store(tmp_path, index[index["subject"] == "sub-1"], Ball())
    assert list(table.columns) == COLUMNS and table.subject.tolist() == ["sub-1"] * 2
    assert evaluate.score_store(tmp_path, index[:0], Ball()).empty


def test_unseen_subjects_are_those_of_other_people(box_samples: Samples, tmp_path: Path) -> None:
    for name, person in (("sub-0", "sub-p"), ("sub-1", "sub-p"), ("sub-2", "")):
        samples.write_samples(tmp_path / "store", replace(box_samples.chosen([L2]), subject=name, person=person))
    network = networks.build_network("transvert", width=8)
    for fold, trained in (("a", ["sub-0"]), ("b", ["sub-2"])):
        path = tmp_path / "folds" / fold / "weights.safetensors"
        networks.save_weights(path, network, "transvert", {"width": 8}, subjects=trained)
    found = evaluate.iterate_unseen(tmp_path / "store", tmp_path / "folds")
    assert [(fold, subject.subject) for fold, _, _, subject in found] == [
        ("a", "sub-2"),
        ("b", "sub-0"),
        ("b", "sub-1"),
    ]
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no weights, or they were trained on everyone in this store"):
        list(evaluate.iterate_unseen(tmp_path / "store", tmp_path / "none"))


def test_a_perfect_and_an_empty_prediction(box_samples: Samples) -> None:
    two = box_samples.chosen([L1, L2])
    truth = two.targets()
    table = evaluate.score_samples(two, np.stack([truth[0], np.zeros_like(truth[1])]).astype(np.float32))
    assert table.dice.tolist() == [1, 0] and table.nsd_1p5mm.tolist() == [1, 0]
    assert table.hd95_mm.tolist() == [0, np.inf] and table.level.tolist() == ["L1", "L2"]


def test_the_mean_dice_never_mixes_cts_and_phantoms() -> None:
    table = pd.DataFrame({"dice": [0.8, 0.6, 0.3], "source": ["ct", "ct", "phantom"]})
    assert evaluate.describe_dice(table) == "Mean Dice 0.700 over 2 vertebrae (ct), 0.300 over 1 vertebrae (phantom)"
