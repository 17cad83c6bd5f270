"""Runs: where they are stored, and the record of a step."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import Patient

from transvert import io, runs
from transvert.io import InputError, sha256


@pytest.fixture(autouse=True)
def _runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSVERT_RUNS", str(tmp_path / "runs"))


def test_a_step_names_the_notebook_that_should_have_run(tmp_path: Path) -> None:
    stage = runs.Stage("mine", "02_train_transvert", {})
    with pytest.raises(InputError) as caught:
        stage.need("01_drr_synthesis", "store", "index.json")
    assert str(caught.value) == (
        "The run 'mine' has no 01_drr_synthesis/store/index.json: "
        'run notebooks/01_drr_synthesis.ipynb with run="mine" first.'
    )
    made = tmp_path / "runs" / "mine" / "01_drr_synthesis" / "store"
    made.mkdir(parents=True)
    assert stage.need("01_drr_synthesis", "store") == made


def test_a_record_holds_hashes_and_versions_and_no_absolute_path(patient: Patient, tmp_path: Path) -> None:
    weights = tmp_path / "somewhere" / "w.safetensors"
    parameters = {"run": "mine", "steps": 3, "weights": str(weights), "folders": [str(tmp_path / "data"), "data/here"]}
    stage = runs.Stage("mine", "03_evaluate_dice", parameters)
    stage.read(patient.mask_path)
    stage.read(ap_film=str(patient.ct_path), landmark_file="")
    runs.write_table(stage.folder / "metrics.csv", pd.DataFrame({"dice": [1 / 3]}))
    files = stage.finish(dice=0.5, dice_held_out=float("nan"))
    assert files == [tmp_path / "runs/mine/03_evaluate_dice" / name for name in ("metrics.csv", "run.json")]
    assert (stage.folder / "metrics.csv").read_text() == "dice\n0.333333\n"
    text = (stage.folder / "run.json").read_text()
    record = json.loads(text)
    assert (record["schema"], record["run"], record["stage"]) == ("transvert-run/1", "mine", "03_evaluate_dice")
    assert record["results"] == {"dice": 0.5, "dice_held_out": None}
    name = f"{patient.mask_path.parent.name}/{patient.mask_path.name}"
    assert record["inputs_sha256"] == {name: sha256(patient.mask_path), "ap_film": sha256(patient.ct_path)}
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["parameters"] == parameters | {"weights": "w.safetensors", "folders": ["data", "data/here"]}
    assert str(tmp_path) not in text and str(Path.home()) not in text and str(io.PACKAGE) not in text
    assert parameters["weights"] == str(weights)  # The caller's own stay.


def test_runs_are_stored_where_the_variable_says_or_in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRANSVERT_RUNS")
    assert runs.runs_folder().name == "runs"
    assert (runs.runs_folder().parent / "pyproject.toml").exists() or runs.runs_folder().parent == Path.cwd()


@pytest.mark.parametrize("run", ["../../outside", "/elsewhere", "a/../b", "a//b", ".hidden", "", "a b", 7])
def test_a_run_never_leaves_the_folder_of_runs(run: str) -> None:
    assert runs.run_folder("demo/seed=0,learning_rate=0.002").parent == runs.runs_folder() / "demo"
    with pytest.raises(InputError, match=r"^The run .* must be (letters|text)"):
        _ = runs.Stage(run, "01_drr_synthesis", {}).folder
