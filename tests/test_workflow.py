"""Notebooks in a row and in a grid, on four small notebooks."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
from typer.testing import CliRunner

from transvert import io, workflow
from transvert.cli import app
from transvert.io import InputError
from transvert.runs import STAGES

METRICS = """
metrics = "subject,level,dice,hd95_mm,assd_mm,nsd_1p5mm,source,method,split\\n"
for name, value in (("this run", dice), ("baseline", 0.1)):
    metrics += f"a,L1,{value},2,1,0.5,ct,{name},held_out\\na,L2,0,inf,inf,0,ct,{name},held_out\\n"
(out / "metrics.csv").write_text(metrics)
"""
CELLS = {
    "01_drr_synthesis": [
        'run: str = "x"  # the run\ndata: str = "embedded"  # what is read\nseed: int = 0  # of it',
        '(out / "store").write_text(f"{data} {seed}")\n(out / "run.json").write_text(\'{"peak_memory_gib": 0.5}\')',
    ],
    "02_train_transvert": [
        'run: str = "x"  # the run\nlearning_rate: float = 0.5  # breaks above 1\nwait_s: float = 0.0  # a long cell',
        'store = (out.parent / "01_drr_synthesis" / "store").read_text()\nimport time\ntime.sleep(wait_s)',
        'for step in range(9):\n    print("step", step)\nif learning_rate > 1:\n    raise ValueError("too\\nfast")',
        '(out / "weights").write_text(f"{store} {learning_rate}")',
    ],
    "03_evaluate_dice": [
        'run: str = "x"  # the run\nattention: bool = True  # of the network',
        'dice = float((out.parent / "02_train_transvert" / "weights").read_text().split()[-1])\n' + METRICS,
    ],
    "04_clinical_reconstruction": [
        'run: str = "x"  # the run\nlandmark_sd_mm: float = 0.0  # an error\nap_film: str = ""  # the user\'s',
        "print(ap_film)",
        'if landmark_sd_mm > 3:\n    raise ValueError("landmarks disagree")',
        '(out / "metrics.csv").write_text(f"level,error_mm\\nL1,{landmark_sd_mm}\\n")',
    ],
}
WHERE = 'import os\nfrom pathlib import Path\nout = Path(os.environ["TRANSVERT_RUNS"]) / run / "{}"'


def write_notebook(path: Path, *cells: str) -> Path:
    """A notebook of code cells, the first of which declares the parameters."""
    made = [nbformat.v4.new_code_cell(cell) for cell in cells]
    made[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel}), path)
    return path


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of runs; the small notebooks lie in `notebooks` beside it."""
    (tmp_path / "notebooks").mkdir()
    for name, (first, *others) in CELLS.items():
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", first, WHERE.format(name), *others)
    monkeypatch.setattr(io, "share_folder", lambda kind: tmp_path / kind)
    monkeypatch.setenv("TRANSVERT_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a Dask cluster within this process, where the small notebooks are."""
    from distributed import LocalCluster

    options = {"threads_per_worker": 1, "processes": False, "protocol": "tcp", "dashboard_address": None}
    with LocalCluster(n_workers=1, **options) as made:
        yield made.scheduler_address


def test_a_chain_writes_its_results_and_stops_at_the_first_failure(runs: Path, tmp_path: Path) -> None:
    parameters = {"run": "a", "learning_rate": 0.8, "landmark_sd_mm": 2.0}
    done = workflow.reproduce(parameters, quiet=True)
    assert not done.failed and tuple(done.seconds) == STAGES
    found = json.loads((runs / "a" / "summary.json").read_text())
    mine = {"split": "held_out", "method": "this run", "source": "ct", "vertebrae": 2, "empty": 1, "dice": 0.4}
    assert found["results"][0] == mine | {"hd95_mm": 2.0, "assd_mm": 1.0, "nsd_1p5mm": 0.25}
    assert found["spine"] == {"error_mm": 2.0} and found["peak_memory_gib"] == {STAGES[0]: 0.5}
    assert str(tmp_path) not in (runs / "a" / "01_drr_synthesis" / workflow.EXECUTED).read_text()

    file = tmp_path / "p.yaml"
    file.write_text("run: a\nlearning_rate: 2.0\n")
    shown = CliRunner().invoke(app, ["reproduce", str(file), "--from", "02"])
    assert shown.exit_code == 1
    failed = "02_train_transvert failed in cell 5: ValueError: too fast"
    lines = [*(f"step {n}" for n in range(3, 9)), '>     raise ValueError("too\\nfast")']
    notebook = runs / "a" / "02_train_transvert" / workflow.FAILED
    resume = f"transvert reproduce {file} --from 02"
    told = [failed, *(f"    {line}" for line in lines), f"The notebook so far: {notebook}", f"To go on: {resume}"]
    assert "\n".join(told) in shown.stdout
    assert {path.name for path in notebook.parent.iterdir()} == {workflow.FAILED, "weights"}
    found = json.loads((runs / "a" / "summary.json").read_text())
    assert found["failed"] == failed and found["last_lines"] == lines and found["resume"] == resume
    assert all(part in (runs / "a" / "summary.md").read_text() for part in (failed, "step 8", resume))


def test_a_kernel_that_dies_is_reported_with_its_cell(tmp_path: Path) -> None:
    source = write_notebook(tmp_path / "n.ipynb", "import os", "os._exit(3)", "1 / 0")
    failed = workflow.execute_notebook(source, tmp_path, {}, quiet=True)
    assert failed == "n failed in cell 2: its kernel ended (DeadKernelError), most likely because memory ran out."


@pytest.mark.parametrize("landmark_sd_mm", [0.0, 5.0])
def test_nothing_names_a_patient_whose_film_was_read(runs: Path, landmark_sd_mm: float) -> None:
    film = {"ap_film": "/data/Müller, Anna/Müller_Anna.dcm", "landmark_sd_mm": landmark_sd_mm}
    workflow.reproduce({"run": "a", **film}, start="04", quiet=True)
    files = [path for path in (runs / "a").rglob("*") if path.is_file()]
    texts = {path.name: path.read_text(encoding="utf-8") for path in files}
    assert {"summary.json", workflow.FAILED if landmark_sd_mm else workflow.EXECUTED} <= texts.keys()
    for name, text in texts.items():
        assert not any(part in text for part in ("Müller", "ller_", "Anna")), name
    assert json.loads(texts["summary.json"])["parameters"]["ap_film"].startswith("ap_film-")


def test_an_executed_notebook_holds_no_progress_bars_and_no_widget_state(tmp_path: Path) -> None:
    bar = 'import sys\nfor n in range(3):\n    sys.stderr.write(f"\\repoch: {n}%")\nsys.stderr.write("\\r   \\r")'
    cells = (f'{bar}\nprint("13 vertebrae")', "import ipywidgets\nipywidgets.Button()")
    source = write_notebook(tmp_path / "n.ipynb", *cells)
    assert workflow.execute_notebook(source, tmp_path, {}, quiet=True) == ""
    left = nbformat.read(tmp_path / workflow.EXECUTED, as_version=4)
    assert "widgets" not in left.metadata
    assert "".join(output.text for output in left.cells[0].outputs).strip() == "13 vertebrae"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- 1\n", "is not a mapping that names its 'run'"),
        ("run: [", "is not valid YAML"),
        ("run: g\nsweep:\n  seed: [0, 1]\n", "holds a 'sweep': use the option --sweep name=value,value"),
    ],
)
def test_bad_parameter_sets_are_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(InputError, match="does not exist"):
        workflow.read_parameters(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match=sentence):
        workflow.read_parameters(tmp_path / "p.yaml")


def test_unknown_parameters_and_notebooks_and_a_busy_run_are_refused(runs: Path) -> None:
    with pytest.raises(InputError, match="No notebook has the parameter stepz"):
        workflow.reproduce({"run": "x", "stepz": 3})
    for key, value in (("run", 7), ("run", datetime.date(2024, 5, 1)), ("seed", "many"), ("attention", [1])):
        with pytest.raises(InputError, match=f"The parameter {key} is of type .*, which .* is not"):
            workflow.reproduce({"run": "x", key: value})
    with pytest.raises(InputError, match="no notebook 09"):
        workflow.reproduce({"run": "x"}, start="09")
    (runs / "a").mkdir(parents=True)
    with (runs / "a" / ".busy").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="Another process works on the run 'a'"):
            workflow.reproduce({"run": "a"})


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("seed", "'seed' is not a sweep; write it as seed=0,1,2"),
        ("seed=1,,2", "'seed=1,,2' is not a sweep"),
        ("seed=a", "seed is of type int, which a is not"),
        ("attention=maybe", "attention is of type bool"),
        ("stepz=1", "No notebook has the parameter stepz"),
        ("run=a", "'run' cannot be swept"),
    ],
)
def test_swept_values_have_the_declared_types(word: str, sentence: str, runs: Path) -> None:
    grid = workflow.read_grid(["learning_rate=2e-3,0.004, 0.002", "attention=false", "seed=1"])
    assert grid == {"learning_rate": [0.002, 0.004], "attention": [False], "seed": [1]}
    with pytest.raises(InputError, match=sentence):
        workflow.read_grid([word])


def test_every_combination_has_a_safe_folder_name_of_its_own() -> None:
    values = ["../up", "__/up", "a b", "x" * 300, "x" * 301, "plain"]
    names = {workflow._folder_name({"data": value}) for value in values}
    assert len(names) == len(values) and "data=plain" in names
    assert all("/" not in name and len(name) < 200 for name in names)


def test_a_refused_reconstruction_is_a_row_with_the_metrics_of_the_notebooks_before_it(
    runs: Path, scheduler: str
) -> None:
    table = workflow.sweep({"run": "g"}, {"landmark_sd_mm": [2.0, 4.0]}, scheduler=scheduler)
    assert list(table.failed) == ["", "04_clinical_reconstruction failed in cell 5: ValueError: landmarks disagree"]
    np.testing.assert_allclose(table.held_out_dice, 0.25)
    np.testing.assert_allclose(table.spine_error_mm, [2, np.nan])


def test_a_sweep_reports_every_run_and_repeats_only_what_failed(runs: Path, scheduler: str) -> None:
    parameters = {"run": "g", "data": "here"}
    table = workflow.sweep(parameters, {"learning_rate": [0.4, 2.0]}, scheduler=scheduler)
    assert list(table.learning_rate) == [0.4, 2.0]
    assert list(table.failed) == ["", "02_train_transvert failed in cell 5: ValueError: too fast"]
    np.testing.assert_allclose(table.held_out_dice, [0.2, np.nan])
    np.testing.assert_allclose(table.spine_error_mm, [0, np.nan])
    written = pd.read_csv(runs / "g" / "sweep.csv", keep_default_na=False)
    assert list(written.run) == ["learning_rate=0.4", "learning_rate=2.0"]
    assert list(written.failed) == list(table.failed)
    assert (runs / "g" / "learning_rate=0.4" / "02_train_transvert" / "weights").read_text() == "here 0 0.4"

    made = {path: path.stat().st_mtime_ns for path in runs.rglob(workflow.EXECUTED)}
    workflow.sweep(parameters, {"learning_rate": [0.4, 2.0]}, scheduler=scheduler)
    new = {path.parent.parent.name for path in runs.rglob(workflow.EXECUTED) if path.stat().st_mtime_ns != made[path]}
    assert new == {"learning_rate=2.0"}


def test_a_sweep_from_a_notebook_shares_the_earlier_ones(runs: Path, scheduler: str) -> None:
    for name, file, text in ((STAGES[1], "weights", "0.5"), (STAGES[0], "store", "mine")):
        (runs / "g" / name).mkdir(parents=True)
        (runs / "g" / name / file).write_text(text)
    parameters, grid = {"run": "g", "data": "other"}, {"landmark_sd_mm": [1.0, 3.0]}
    table = workflow.sweep(parameters, grid, start="03", scheduler=scheduler)
    assert list(table.spine_error_mm) == [1, 3] and list(table.held_out_dice) == [0.25, 0.25]
    link = runs / "g" / "landmark_sd_mm=1.0" / STAGES[0]
    assert link.is_symlink() and (link / "store").read_text() == "mine"


def test_an_interrupt_leaves_no_kernel_and_a_run_that_goes_on(runs: Path, tmp_path: Path) -> None:
    folder = runs / "g" / STAGES[1]
    (runs / "g" / STAGES[0]).mkdir(parents=True)
    (runs / "g" / STAGES[0] / "store").write_text("mine")
    (tmp_path / "p.yaml").write_text("run: g\nwait_s: 100\n")
    share = f"lambda kind: Path({str(tmp_path)!r}) / kind"
    code = f"from pathlib import Path; from transvert import cli, io; io.share_folder = {share}; cli.main()"
    command = [sys.executable, "-c", code, "reproduce", "p.yaml", "--from", "02"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **pipes)
    try:
        until = time.monotonic() + 120
        while not _in_long_cell(folder / ".notebook-running.ipynb"):
            assert process.poll() is None and time.monotonic() < until, process.communicate()
            time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
        kernels = [child for child in children if "ipykernel_launcher" in " ".join(child.cmdline())]
        os.killpg(process.pid, signal.SIGINT)
        printed, complained = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode != 0 and "Traceback" not in complained
    assert "02_train_transvert was interrupted in cell 4." in printed
    assert "To go on: transvert reproduce p.yaml --from 02" in printed
    _, alive = psutil.wait_procs(kernels, timeout=30)
    assert len(kernels) == 1 and not alive
    assert {path.name for path in folder.iterdir()} == {workflow.FAILED}
    assert json.loads((runs / "g" / "summary.json").read_text())["failed"].endswith("interrupted in cell 4.")


def _in_long_cell(notebook: Path) -> bool:
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):  # It hasn't begun, or it is being written.
        (long,) = (cell for cell in json.loads(notebook.read_text())["cells"] if "sleep" in "".join(cell["source"]))
        return long["metadata"]["papermill"]["status"] == "running"
    return False
