"""The steps: which subjects a folder holds, what is written about them, and what a step says where something is missing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Patient, store_as
from numpy.testing import assert_array_equal
from torch import nn

from transvert import io, runs
from transvert.data import manifest, samples, store, subjects
from transvert.data.manifest import Subject
from transvert.data.patches import SIZE, SPACING_MM
from transvert.data.samples import Samples
from transvert.data.splits import iterate_folds, load_samples, split_index, stream_samples
from transvert.imaging import volume
from transvert.imaging.volume import Volume
from transvert.io import InputError, sha256
from transvert.model import evaluate, networks
from transvert.model.train import Recipe, train_folds

L1, L2, L3 = 20, 21, 22
COLUMNS = ["subject", "level", "dice", "hd95_mm", "assd_mm", "nsd_1p5mm", "source"]


class Ball(nn.Module):
    """Predicts a ball of 15 mm, whatever it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))
        steps = (torch.arange(SIZE) - (SIZE - 1) / 2) * SPACING_MM
        x, y, z = torch.meshgrid(steps, steps, steps, indexing="ij")
        self.logits = 15 - torch.sqrt(x**2 + y**2 + z**2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(images), 1, SIZE, SIZE, SIZE)


@pytest.fixture(autouse=True)
def _runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSVERT_RUNS", str(tmp_path / "runs"))


# Splits


@pytest.fixture
def six(box_samples: Samples, tmp_path: Path) -> Path:
    """A store of six subjects with L1 and L2; sub-3 and sub-4 are scans of one person."""
    two = box_samples.chosen([L1, L2])
    for n in range(6):
        person, official = "sub-p" if n in (3, 4) else "", "test" if n == 0 else "training"
        samples.write_samples(tmp_path, replace(two, subject=f"sub-{n}", person=person, official_split=official))
    return tmp_path


def _held(made: pd.DataFrame) -> list[str]:
    return sorted(set(made.subject[made.split == "held_out_subject"]))


def test_a_split_holds_whole_subjects_out(six: Path) -> None:
    index = store.read_index(six)
    made = split_index(index, "subjects")
    assert _held(made) == ["sub-3", "sub-4"] and set(made.split) == {"train", "held_out_subject"}
    train = load_samples(six, made[made.split == "train"])
    assert [s.subject for s in train] == [f"sub-{n}" for n in (0, 1, 2, 5)]
    assert _held(split_index(index, "official")) == ["sub-0"] and _held(split_index(index, "all")) == []
    with pytest.raises(InputError, match="There is no split 'none': none.csv is not among data_manifests/splits"):
        split_index(made, "none")
    with pytest.raises(InputError, match="The split 'demo' leaves nothing to train on in this store"):
        split_index(index, "demo")
    with pytest.raises(InputError, match="The split 'subjects' leaves nothing to train on"):
        split_index(index[:0], "subjects")


def test_one_subject_is_left_out_with_all_its_scans(six: Path) -> None:
    index = store.read_index(six)
    for name in ("loso:sub-p", "loso:sub-3", "loso:sub-4"):
        assert _held(split_index(index, name)) == ["sub-3", "sub-4"]
    for name in ("loso", "loso:", "loso:sub-9"):
        with pytest.raises(InputError, match=f"'{name}' names no subject of this store; write loso:NAME with .*sub-0"):
            split_index(index, name)
    with pytest.raises(InputError, match="The split 'loso:sub-0' leaves nothing to train on"):
        split_index(index[index.subject == "sub-0"], "loso:sub-0")


def test_leaving_each_out_in_turn_tests_every_subject_once(six: Path) -> None:
    index = store.read_index(six)
    folds = dict(iterate_folds(index, "loso"))
    assert list(folds) == ["sub-0", "sub-1", "sub-2", "sub-5", "sub-p"]
    tested = pd.concat([made[made.split == "held_out_subject"] for made in folds.values()])
    assert sorted(zip(tested.subject, tested.level, strict=True)) == sorted(
        zip(index.subject, index.level, strict=True)
    )
    for made in folds.values():
        assert len(made) == len(index)
        assert not set(made.person[made.split == "train"]) & set(made.person[made.split == "held_out_subject"])
    ((name, only),) = iterate_folds(index, "subjects")
    assert name == "" and _held(only) == ["sub-3", "sub-4"]


def test_nobody_is_trained_on_and_held_out(six: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = tmp_path / "share" / "splits"
    splits.mkdir(parents=True)
    monkeypatch.setattr(manifest, "share_folder", lambda kind: splits.parent)
    index = store.read_index(six)
    lines = {"mine": ("sub-1", "L2"), "theirs": ("sub-4", "L1")}  # the same subject, and another scan of one person
    for name, (subject, level) in lines.items():
        text = f"subject,level,split\nsub-1,L1,train\nsub-3,L1,train\n{subject},{level},held_out_subject\n"
        (splits / f"{name}.csv").write_text(text)
        with pytest.raises(InputError, match=f"The split '{name}' trains on the held-out subject sub-(1|p)"):
            split_index(index, name)


def test_streamed_samples_are_the_chosen_ones(six: Path) -> None:
    rows = store.read_index(six).iloc[[5, 4, 1]]
    loaded, streamed = load_samples(six, rows), stream_samples(six, rows, keep=2)
    assert [s.subject for s in streamed] == [s.subject for s in loaded] == ["sub-2", "sub-0"]
    for one, other in zip(streamed, loaded, strict=True):
        assert one.levels.tolist() == other.levels.tolist()
        for row in range(len(one)):
            for ours, theirs in zip(one.sample(row), other.sample(row), strict=True):
                assert_array_equal(ours, theirs)


# Evaluation


def test_metrics_have_the_promised_columns_and_six_digits(patient: Patient, tmp_path: Path) -> None:
    cut = Volume(patient.mask.data.copy(), patient.mask.affine)
    cut.data[cut.data == L1] = 0
    low = int(np.argwhere(cut.data == L3)[:, 2].mean())
    affine = cut.affine.copy()
    affine[:3, 3] = cut.world([0, 0, low])
    border = store_as(Volume(cut.data[:, :, low:].copy(), affine), "LPS", tmp_path / "cut.nii.gz")
    bad = tmp_path / "bad.nii.gz"
    bad.write_text("no volume")
    said: list[str] = []
    table = evaluate.evaluate_subjects(
        [
            Subject("sub-bad", None, bad, "verse", {}, {}),
            patient.subject,
            Subject("sub-cut", None, border, "verse", {}, {}),
        ],
        Ball(),
        tmp_path / "out",
        say=said.append,
        progress=False,
    )
    written = pd.read_csv(tmp_path / "out" / "metrics.csv")
    assert list(table.columns) == list(written.columns) == list(evaluate.COLUMNS) == COLUMNS
    assert list(zip(written.subject, written.level, written.source, strict=True)) == [
        *(("sub-box", name, "ct") for name in ("L1", "L2", "L3")),
        ("sub-cut", "L2", "phantom"),
    ]
    assert written.dice.between(0.2, 0.9).all() and np.isfinite(written[COLUMNS[2:6]]).all(axis=None)
    assert said[0].startswith("sub-bad: bad.nii.gz is not a NIfTI file")
    assert said[1:] == ["sub-cut: L3: cut by the volume's border, skipped."]
    assert (tmp_path / "out" / "skipped.txt").read_text().splitlines() == said


def test_the_rows_are_scored_and_nobody_else(six: Path) -> None:
    index = store.read_index(six)
    rows = split_index(index, "loso:sub-p")
    table = evaluate.score_rows(six, rows[rows["split"] == "held_out_subject"], Ball())
    assert list(table.columns) == COLUMNS and sorted(set(table.subject)) == ["sub-3", "sub-4"] and len(table) == 4
    assert evaluate.score_rows(six, rows[:0], Ball()).empty


def test_each_is_left_out_once_and_one_table_has_them_all(box_samples: Samples, tmp_path: Path) -> None:
    place, out = tmp_path / "store", tmp_path / "out"
    for name, person in (("sub-0", ""), ("sub-1", "sub-p"), ("sub-2", "sub-p")):
        samples.write_samples(place, replace(box_samples.chosen([L2]), subject=name, person=person))
    recipe = Recipe("transvert", {"width": 8}, steps=1, epoch_steps=1, batch=2, precision="32", device="cpu")
    said: list[str] = []
    table = train_folds(place, "loso", recipe, out, say=said.append)
    assert table.subject.tolist() == ["sub-0", "sub-1", "sub-2"]
    assert pd.read_csv(out / "metrics.csv").dice.tolist() == pytest.approx(table.dice.tolist(), abs=1e-6)
    assert [line.partition(":")[0] for line in said] == ["sub-0", "sub-p"]
    for person, learned in (("sub-0", ["sub-1", "sub-2"]), ("sub-p", ["sub-0"])):
        _, card = networks.load_network(out / person / "weights.safetensors")
        assert card["subjects"] == learned
    before = (out / "sub-0" / "checkpoint.pt").stat().st_mtime_ns
    assert train_folds(place, "loso", recipe, out, say=said.append).equals(table)
    assert (out / "sub-0" / "checkpoint.pt").stat().st_mtime_ns == before and len(said) == 2


def test_nothing_to_evaluate_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    bad = tmp_path / "bad.nii.gz"
    bad.write_text("no volume")
    with pytest.raises(InputError, match=r"No subject could be evaluated\. sub-bad: bad\.nii\.gz is not a NIfTI"):
        evaluate.evaluate_subjects(
            [Subject("sub-bad", None, bad, "verse", {}, {})],
            Ball(),
            tmp_path / "out",
            say=lambda _: None,
            progress=False,
        )
    assert not (tmp_path / "out").exists()


def test_a_perfect_and_an_empty_prediction_score_as_such(box_samples: Samples) -> None:
    two = box_samples.chosen([L1, L2])
    truth = two.targets()
    table = evaluate.score_samples(two, np.stack([truth[0], np.zeros_like(truth[1])]).astype(np.float32))
    assert table.dice.tolist() == [1, 0] and table.nsd_1p5mm.tolist() == [1, 0]
    assert table.hd95_mm.tolist() == [0, np.inf] and table.level.tolist() == ["L1", "L2"]


def test_hulls_hold_the_vertebra_and_throw_its_shadows(box_samples: Samples) -> None:
    targets, hulls = box_samples.targets(), evaluate.visual_hulls(box_samples)
    assert hulls.shape == targets.shape and hulls.dtype == bool
    assert not (targets & ~hulls).any()
    assert (hulls.sum((1, 2, 3)) > 1.2 * targets.sum((1, 2, 3))).all()
    for axis in (1, 2):
        assert_array_equal(hulls.any(axis), targets.any(axis))


def test_the_shipped_network_opens_and_others_are_asked_for(tmp_path: Path) -> None:
    network, card = networks.load_network("shipped")
    assert isinstance(network, nn.Module) and card["network"] == "transvert_hull"
    with pytest.raises(InputError, match="do not exist; train some with notebook 02"):
        networks.load_network(tmp_path / "none.safetensors")


# The record of a run


def test_a_step_names_the_notebook_that_should_have_run(tmp_path: Path) -> None:
    stage = runs.Stage("mine", "02_train_transvert", {})
    with pytest.raises(InputError) as caught:
        stage.need("01_drr_synthesis", "store", "index.parquet")
    assert str(caught.value) == (
        "The run 'mine' has no 01_drr_synthesis/store/index.parquet: "
        'run notebooks/01_drr_synthesis.ipynb with run="mine" first.'
    )
    made = tmp_path / "runs" / "mine" / "01_drr_synthesis" / "store"
    made.mkdir(parents=True)
    assert stage.need("01_drr_synthesis", "store") == made


def test_a_step_leaves_its_record_and_no_absolute_path(patient: Patient, tmp_path: Path) -> None:
    weights = tmp_path / "somewhere" / "w.safetensors"
    parameters = {"run": "mine", "steps": 3, "weights": str(weights), "folders": [str(tmp_path / "data"), "data/here"]}
    stage = runs.Stage("mine", "03_evaluate_dice", parameters)
    stage.read(patient.mask_path)
    runs.write_table(stage.folder / "metrics.csv", pd.DataFrame({"dice": [1 / 3]}))
    files = stage.finish(dice=0.5, dice_held_out=float("nan"))
    assert files == [tmp_path / "runs/mine/03_evaluate_dice" / name for name in ("metrics.csv", "run.json")]
    assert (stage.folder / "metrics.csv").read_text() == "dice\n0.333333\n"
    text = (stage.folder / "run.json").read_text()
    said = json.loads(text)
    assert said["schema"] == "transvert-run/1"
    assert (said["run"], said["stage"], said["results"]) == (
        "mine",
        "03_evaluate_dice",
        {"dice": 0.5, "dice_held_out": None},
    )
    assert said["inputs_sha256"] == {
        f"{patient.mask_path.parent.name}/{patient.mask_path.name}": sha256(patient.mask_path)
    }
    assert said["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert said["parameters"]["steps"] == 3
    assert said["parameters"]["weights"] == "w.safetensors" and said["parameters"]["folders"] == ["data", "data/here"]
    assert str(tmp_path) not in text and str(Path.home()) not in text and str(io.PACKAGE) not in text
    assert parameters["weights"] == str(weights)  # the caller's own are left alone


def test_runs_are_kept_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs.runs_folder() == tmp_path / "runs"
    monkeypatch.delenv("TRANSVERT_RUNS")
    assert runs.runs_folder().name == "runs"
    assert (runs.runs_folder().parent / "pyproject.toml").exists() or runs.runs_folder().parent == Path.cwd()


def test_the_whole_of_a_subject_from_files_to_table(patient: Patient, tmp_path: Path) -> None:
    """VerSe's folders, a network, a table: what the command line does."""
    top = tmp_path / "verse"
    for source, target in (
        (patient.ct_path, top / "rawdata" / "sub-box" / "sub-box_ct.nii.gz"),
        (patient.mask_path, top / "derivatives" / "sub-box" / "sub-box_seg-vert_msk.nii.gz"),
    ):
        target.parent.mkdir(parents=True)
        shutil.copy(source, target)
    table = evaluate.evaluate_subjects(subjects.find_subjects(top), Ball(), tmp_path / "out", progress=False)
    assert set(table.source) == {"ct"} and table.level.tolist() == ["L1", "L2", "L3"]
    assert volume.read_ct(top / "rawdata" / "sub-box" / "sub-box_ct.nii.gz").data.shape == patient.ct.data.shape
