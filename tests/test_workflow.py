"""Notebooks in a row and in a grid: on four small ones, as a copy of the package finds them beside itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import nibabel
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from conftest import Patient
from safetensors.torch import load_file
from typer.testing import CliRunner

from transvert import execution, io, sweep, workflow
from transvert.cli import app
from transvert.data.samples import Samples
from transvert.io import InputError
from transvert.model import evaluate, networks
from transvert.model.train import Recipe, train_network
from transvert.runs import STAGES, write_table

HEAD = "metrics = 'subject,level,dice,hd95_mm,assd_mm,nsd_1p5mm,source,method,split\\n'"
WRITE_METRICS = """
for name, value in (("this run", dice), ("null", 0.1)):
    metrics += f"a,L1,{value},2,1,0.5,ct,{name},held_out\\na,L2,0,inf,inf,0,ct,{name},held_out\\n"
out.mkdir(parents=True, exist_ok=True)
(out / "metrics.csv").write_text(metrics)
"""
CELLS = {
    "01_drr_synthesis": [
        'run: str = "x"  # the run\ndata: str = "embedded"  # what is read\nseed: int = 0  # of it',
        'out.mkdir(parents=True, exist_ok=True)\n(out / "store").write_text(f"{data} {seed}")',
    ],
    "02_train_transvert": [
        'run: str = "x"  # the run\nlearning_rate: float = 0.5  # breaks above 1\nwait_s: float = 0.0  # a long cell',
        'store = (out.parent / "01_drr_synthesis" / "store").read_text()\nprint("read", store)',
        'import time\nprint("waiting")\ntime.sleep(wait_s)',
        'for step in range(9):\n    print("step", step)\nif learning_rate > 1:\n    raise ValueError("too\\nfast")',
        'out.mkdir(parents=True, exist_ok=True)\n(out / "weights").write_text(f"{store} {learning_rate}")',
    ],
    "03_evaluate_dice": [
        'run: str = "x"  # the run\nmeasured: str = "run"  # what',
        'dice = float((out.parent / "02_train_transvert" / "weights").read_text().split()[-1])\n' + HEAD,
        WRITE_METRICS,
    ],
    "04_clinical_reconstruction": [
        'run: str = "x"  # the run\nclick_mm: float = 0.0  # an error',
        'out.mkdir(parents=True, exist_ok=True)\n(out / "metrics.csv").write_text(f"level,error_mm\\nL1,{click_mm}\\n")',
    ],
}


def hush(line: str) -> None:
    """Says nothing."""


def write_notebook(path: Path, *cells: str) -> Path:
    """A notebook of code cells, the first of which declares the parameters."""
    made = [nbformat.v4.new_code_cell(cell) for cell in cells]
    made[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel}), path)
    return path


@pytest.fixture
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of runs; the notebooks lie in `notebooks` beside it."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name, (first, *others) in CELLS.items():
        where = f'import os\nfrom pathlib import Path\nout = Path(os.environ["TRANSVERT_RUNS"]) / run / "{name}"'
        write_notebook(folder / f"{name}.ipynb", first, where, *others)
    share = io.share_folder
    monkeypatch.setattr(io, "share_folder", lambda kind: folder if kind == "notebooks" else share(kind))
    monkeypatch.setenv("TRANSVERT_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a cluster within this process, where the small notebooks are."""
    from distributed import LocalCluster

    options = {"threads_per_worker": 1, "processes": False, "protocol": "tcp", "dashboard_address": None}
    with LocalCluster(n_workers=1, **options) as made:
        yield made.scheduler_address


def kernels(process: int) -> list[psutil.Process]:
    children = psutil.Process(process).children(recursive=True)
    return [child for child in children if "ipykernel_launcher" in " ".join(child.cmdline())]


# One notebook


def test_the_peak_is_of_one_notebook_with_the_processes_it_starts(tmp_path: Path) -> None:
    """Not the greatest of all so far; a running maximum gives the small one what the large one took."""
    hold = "import sys, subprocess, time"
    child = 'subprocess.run([sys.executable, "-c", "import time; a = bytes([1]) * 2**28; time.sleep(1.5)"], check=True)'
    large = write_notebook(tmp_path / "large.ipynb", hold, child)
    small = write_notebook(tmp_path / "small.ipynb", hold, "time.sleep(0.5)")
    one = execution.execute_notebook(large, tmp_path / "large", {}, progress=False)
    two = execution.execute_notebook(small, tmp_path / "small", {}, progress=False)
    assert one.failed == two.failed == ""
    assert 0.02 < two.peak_memory_gib < one.peak_memory_gib - 0.2
    assert execution.facts(tmp_path / "large") == {"seconds": one.seconds, "peak_memory_gib": one.peak_memory_gib}


def test_a_notebook_that_takes_more_than_it_may_is_ended(tmp_path: Path) -> None:
    cells = ("import time", 'print("soon", flush=True)', "a = bytes([1]) * 2**29\ntime.sleep(60)")
    done = execution.execute_notebook(
        write_notebook(tmp_path / "n.ipynb", *cells), tmp_path, {}, progress=False, memory=2**28
    )
    assert done.failed == "n failed in cell 3: it took more than 0.2 GiB of memory; give it more."
    assert {path.name for path in tmp_path.iterdir()} == {"n.ipynb", execution.HALF}


def test_a_kernel_that_dies_is_told_by_its_cell(tmp_path: Path) -> None:
    source = write_notebook(tmp_path / "n.ipynb", "import os", "os._exit(3)", "1 / 0")
    done = execution.execute_notebook(source, tmp_path, {}, progress=False)
    assert done.failed == "n failed in cell 2: its kernel ended (DeadKernelError), most likely for want of memory."


def test_a_notebook_is_done_with_its_parameters_and_its_cells_as_they_are(tmp_path: Path) -> None:
    source = write_notebook(tmp_path / "n.ipynb", 'run: str = "x"\nrate: float = 0.1', "rate")
    assert execution.execute_notebook(source, tmp_path / "out", {"run": "a", "rate": 0.2}, progress=False).failed == ""
    times = execution.finished(source, tmp_path / "out", {"run": "b", "rate": 0.2})
    assert times and times[0] < times[1]
    assert execution.finished(source, tmp_path / "out", {"run": "a", "rate": 0.3}) is None
    assert execution.finished(source, tmp_path / "out", {"run": "a"}) is None
    write_notebook(source, 'run: str = "x"\nrate: float = 0.1', "2 * rate")
    assert execution.finished(source, tmp_path / "out", {"run": "a", "rate": 0.2}) is None
    (tmp_path / "out" / execution.EXECUTED).write_text("{")
    assert execution.finished(source, tmp_path / "out", {"run": "a", "rate": 0.2}) is None


# A chain


def test_a_chain_stops_at_the_first_failure_and_says_all_one_needs(walk: Path, tmp_path: Path) -> None:
    assert workflow.reproduce({"run": "a", "learning_rate": 0.8}, stop="03", say=hush, progress=False).failed is None
    (tmp_path / "p.yaml").write_text("run: a\nlearning_rate: 2.0\n")
    done = CliRunner().invoke(app, ["reproduce", str(tmp_path / "p.yaml"), "--to", "03"])
    assert done.exit_code == 1
    failed, again = (
        "02_train_transvert failed in cell 6: ValueError: too fast",
        f"transvert reproduce {tmp_path / 'p.yaml'} --to 03 --from 02",
    )
    said = [*(f"step {n}" for n in range(3, 9)), '>     raise ValueError("too\\nfast")']
    half = walk / "a" / "02_train_transvert" / execution.HALF
    told = [failed, *(f"    {line}" for line in said), f"As far as it came: {half}", f"To go on: {again}"]
    assert done.stdout.splitlines()[-len(told) :] == told
    assert {path.name for path in half.parent.iterdir()} == {execution.HALF, "weights"}
    found = json.loads((walk / "a" / "summary.json").read_text())
    assert found["failed"] == failed and found["again"] == again and found["said"] == "\n".join(said)
    assert list(found["seconds"]) == list(found["peak_memory_gib"]) == list(STAGES[:2])
    assert found["results"] == [], "what notebook 03 found of the former weights is not told of these"
    text = (walk / "a" / "summary.md").read_text()
    assert all(part in text for part in (failed, "step 8", again))


def test_a_chain_that_goes_on_keeps_the_times_of_what_was_done(walk: Path) -> None:
    parameters = {"run": "a", "learning_rate": 0.8, "click_mm": 2.0}
    first = workflow.reproduce(parameters, stop="02", say=hush, progress=False)
    assert first.table is None and list(first.seconds) == list(STAGES[:2])
    summary = workflow.reproduce(parameters, start="03", say=hush, progress=False)
    assert list(summary.seconds) == list(summary.peak_memory_gib) == list(STAGES)
    assert summary.seconds[STAGES[0]] == first.seconds[STAGES[0]]
    found = json.loads((walk / "a" / "summary.json").read_text())
    mine = {"split": "held_out", "method": "this run", "vertebrae": 2, "empty": 1, "dice": 0.4}
    assert found["results"][0] == mine | {"hd95_mm": 2.0, "assd_mm": 1.0, "nsd_1p5mm": 0.25}
    assert found["spine"] == {"error_mm": 2.0}
    with pytest.raises(InputError, match="02 comes before 03"):
        workflow.reproduce(parameters, start="03", stop="02")


def test_two_processes_do_not_work_on_one_run(walk: Path) -> None:
    from filelock import FileLock

    (walk / "a").mkdir(parents=True)
    with FileLock(walk / "a" / ".busy"), pytest.raises(InputError, match="Another process works on the run 'a'"):
        workflow.reproduce({"run": "a"}, progress=False)


# A grid


def test_a_grid_is_read_from_its_set_and_from_words(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("run: g\nsteps: 3\nsweep:\n  seed: [0, 1]\n  data: embedded\n")
    assert workflow.read_parameters(path) == {"run": "g", "steps": 3}
    assert sweep.read_grid(path, ["seed=4, 5"]) == {"seed": ["4", "5"], "data": ["embedded"]}
    for wrong in ("seed", "seed=", "seed=1,,2"):
        with pytest.raises(InputError, match=f"'{wrong}' is no sweep; write it as seed=0,1,2"):
            sweep.read_grid(path, [wrong])
    path.write_text("run: g\nsweep: [seed]\n")
    with pytest.raises(InputError, match="is not a mapping of parameters"):
        sweep.read_grid(path)


def test_values_get_the_types_that_the_notebooks_declare() -> None:
    runs = sweep.points({"run": "g", "steps": 3}, {"learning_rate": ["2e-3", 0.004, "0.002"], "attention": ["no"]})
    assert [run.values for run in runs] == [{"learning_rate": rate, "attention": False} for rate in (0.002, 0.004)]
    assert runs[0].name == "learning_rate=0.002,attention=False"
    assert runs[0].parameters == {"steps": 3, "run": f"g/{runs[0].name}", **runs[0].values}
    for grid, sentence in (
        ({"seed": ["a"]}, "seed is of type int"),
        ({"attention": ["maybe"]}, "attention is of type bool"),
        ({"stepz": [1]}, "No notebook has the parameter stepz"),
        ({"run": ["a"]}, "The run can't be swept"),
        ({"seed": []}, "no value for seed"),
    ):
        with pytest.raises(InputError, match=sentence):
            sweep.points({"run": "g"}, grid)


def test_a_folder_has_a_safe_name_of_its_own_for_every_point() -> None:
    values = ["../up", "__/up", "a,b", "x" * 300, "x" * 301, "plain"]
    names = [run.name for run in sweep.points({"run": "g"}, {"data": values})]
    assert len(set(names)) == len(values) and names[-1] == "data=plain"
    assert all("/" not in name and name.count(",") <= 1 and len(name) < 200 for name in names)


def test_every_run_of_a_grid_is_in_the_table_and_one_that_fails_stops_no_other(walk: Path, scheduler: str) -> None:
    # Each run lasts long enough for its memory to be read, which begins half a second after a kernel's start.
    parameters, grid = {"run": "g", "data": "here", "wait_s": 2.0}, {"learning_rate": [0.4, 2.0, 0.8]}
    how = {"scheduler": scheduler, "say": hush, "progress": False, "stop": "03"}
    table = sweep.run_sweep(parameters, grid, command="transvert reproduce g", **how)
    failed = json.loads((walk / "g" / "learning_rate=2.0" / "summary.json").read_text())
    assert failed["again"] == "transvert reproduce g"
    assert list(table.learning_rate) == [0.4, 2.0, 0.8]
    assert list(table.failed) == ["", "02_train_transvert failed in cell 6: ValueError: too fast", ""]
    np.testing.assert_allclose(table.held_out_dice, [0.2, np.nan, 0.4])
    assert set(table.method.dropna()) == {"this run"} and list(table.held_out_empty.dropna()) == [1, 1]
    assert (table.seconds > 0).all() and (table.peak_memory_gib > 0.02).all()
    written = pd.read_csv(walk / "g" / "sweep.csv", keep_default_na=False)
    assert list(written.run) == list(table.run) and list(written.failed) == list(table.failed)
    text = (walk / "g" / "sweep.md").read_text()
    assert "| 0.8 |" in text and "too fast" in text and "01_drr_synthesis, once for all" in text
    # Notebook 01 has no learning rate: it ran once, and the others read it where it is.
    link = walk / "g" / "learning_rate=0.8" / "01_drr_synthesis"
    assert link.is_symlink() and (link / "store").read_text() == "here 0"
    assert (walk / "g" / "learning_rate=0.8" / "02_train_transvert" / "weights").read_text() == "here 0 0.8"

    made = {path: path.stat().st_mtime_ns for path in walk.rglob(execution.EXECUTED)}
    again = sweep.run_sweep(parameters, {"learning_rate": [0.4, 0.8]}, **how)
    assert list(again.failed) == ["", ""]
    assert {path: path.stat().st_mtime_ns for path in walk.rglob(execution.EXECUTED)} == made

    (walk / "g" / "learning_rate=0.4" / "03_evaluate_dice" / execution.EXECUTED).unlink()
    sweep.run_sweep(parameters, {"learning_rate": [0.4, 0.8]}, **how)
    new = {path for path in walk.rglob(execution.EXECUTED) if path.stat().st_mtime_ns != made[path]}
    assert {path.parent.name for path in new} == {STAGES[2]}
    assert {path.parent.parent.name for path in new} == {"learning_rate=0.4"}

    # Other data: what was made of the former is made again.
    sweep.run_sweep(parameters | {"data": "there"}, {"learning_rate": [0.4]}, **how | {"stop": "02"})
    assert (walk / "g" / "learning_rate=0.4" / "02_train_transvert" / "weights").read_text() == "there 0 0.4"


def test_a_sweep_from_a_notebook_takes_the_earlier_ones_as_they_are(walk: Path, scheduler: str) -> None:
    how = {"scheduler": scheduler, "say": hush, "progress": False}
    workflow.reproduce({"run": "g", "data": "mine"}, stop="03", say=hush, progress=False)
    made = {path: path.stat().st_mtime_ns for path in walk.rglob(execution.EXECUTED)}
    table = sweep.run_sweep({"run": "g", "data": "other"}, {"click_mm": [1, 3]}, start="04", **how)
    assert list(table.spine_error_mm) == [1, 3] and list(table.held_out_dice) == [0.25, 0.25]
    assert {path: path.stat().st_mtime_ns for path in made} == made
    fresh = {path: path.stat().st_mtime_ns for path in walk.rglob(execution.EXECUTED)}
    sweep.run_sweep({"run": "g", "data": "other"}, {"click_mm": [3]}, start="04", **how)
    newer = {path for path in fresh if path.stat().st_mtime_ns > fresh[path]}
    assert {path.parent.parent.name for path in newer} == {"click_mm=3.0"} and len(newer) == 1
    with pytest.raises(InputError, match="No notebook up to 02 has the parameter click_mm"):
        sweep.run_sweep({"run": "g"}, {"click_mm": [1]}, stop="02", **how)


def test_what_fails_for_all_is_told_of_all(walk: Path, scheduler: str) -> None:
    parameters = {"run": "g", "learning_rate": 2.0}
    table = sweep.run_sweep(parameters, {"click_mm": [1, 3]}, scheduler=scheduler, say=hush, progress=False)
    assert list(table.failed) == ["02_train_transvert failed in cell 6: ValueError: too fast"] * 2
    assert not (walk / "g" / "click_mm=1.0" / "04_clinical_reconstruction").exists()


# The command line, in processes of its own


@pytest.fixture
def start(walk: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `transvert` of a copy of the package, which has the small notebooks; what still runs in the end is ended."""
    package = io.PACKAGE
    shutil.copytree(package, tmp_path / "transvert", ignore=shutil.ignore_patterns("weights", "__pycache__"))
    (tmp_path / "p.yaml").write_text("run: g\ndata: here\n")
    began: list[subprocess.Popen[str]] = []

    def begin(*options: str) -> subprocess.Popen[str]:
        began.append(
            subprocess.Popen(
                [sys.executable, "-m", "transvert", "reproduce", "p.yaml", *options],
                stdout=-1,
                stderr=-1,
                text=True,
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": str(tmp_path)},
                start_new_session=True,
            )
        )
        return began[-1]

    yield begin
    for process in began:
        process.kill()
        process.communicate()


def wait_for_cell(process: subprocess.Popen[str], *notebooks: Path) -> list[psutil.Process]:
    """Until notebooks have come to their long cell; returns the kernels."""
    until = time.monotonic() + 240
    while not all(map(_in_long_cell, notebooks)):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.1)
    return kernels(process.pid)


def _in_long_cell(notebook: Path) -> bool:
    try:
        cells = json.loads(notebook.read_text())["cells"]
    except (FileNotFoundError, json.JSONDecodeError):  # not begun; being written
        return False
    (long,) = (cell for cell in cells if "sleep" in "".join(cell["source"]))
    return long["metadata"]["papermill"]["status"] == "running"


def interrupt(process: subprocess.Popen[str]) -> None:
    """Ctrl-C, as a terminal gives it to a process and all its children."""
    os.killpg(process.pid, signal.SIGINT)


def test_ctrl_c_leaves_no_kernel_and_a_run_that_goes_on(
    start: Callable[..., subprocess.Popen[str]], walk: Path, tmp_path: Path
) -> None:
    (tmp_path / "p.yaml").write_text("run: g\nwait_s: 100\n")
    process = start()
    running = wait_for_cell(process, walk / "g" / "02_train_transvert" / ".notebook-running.ipynb")
    interrupt(process)
    said, complained = process.communicate(timeout=240)
    assert process.returncode != 0 and "Traceback" not in complained
    assert "02_train_transvert was stopped in cell 5." in said
    assert "To go on: transvert reproduce p.yaml --from 02" in said
    _, alive = psutil.wait_procs(running, timeout=30)
    assert len(running) == 1 and not alive
    assert {path.name for path in (walk / "g" / "02_train_transvert").iterdir()} == {execution.HALF}
    assert json.loads((walk / "g" / "summary.json").read_text())["failed"].endswith("stopped in cell 5.")
    (tmp_path / "p.yaml").write_text("run: g\n")
    process = start("--from", "02", "--to", "02")
    said, complained = process.communicate(timeout=240)
    assert process.returncode == 0, complained
    assert "02_train_transvert: " in said and not (walk / "g" / "02_train_transvert" / execution.HALF).exists()


def test_a_sweep_that_was_stopped_goes_on_side_by_side(start: Callable[..., subprocess.Popen[str]], walk: Path) -> None:
    grid = ("--sweep", "wait_s=0,100,101", "--to", "02", "--workers", "2")
    process = start(*grid)
    long = [walk / "g" / f"wait_s={n}.0" / "02_train_transvert" / ".notebook-running.ipynb" for n in (100, 101)]
    running = wait_for_cell(process, *long)  # which would not be both, if they were not at one time
    interrupt(process)
    said, complained = process.communicate(timeout=180)
    assert process.returncode != 0 and "Traceback" not in complained, complained
    _, alive = psutil.wait_procs(running, timeout=30)
    assert len(running) == 2 and not alive, "no kernel stays behind"
    table = pd.read_csv(walk / "g" / "sweep.csv", keep_default_na=False)
    assert list(table.failed) == ["", *["It has not run yet."] * 2]
    done = walk / "g" / "wait_s=0.0" / "02_train_transvert" / execution.EXECUTED
    before = done.stat().st_mtime_ns
    process = start("--sweep", "wait_s=0,1", "--to", "02", "--workers", "1")
    said, complained = process.communicate(timeout=240)
    assert process.returncode == 0, complained
    assert "2 runs in" in said and "of which 1 are done" in said and done.stat().st_mtime_ns == before


# Equal numbers


def test_the_table_of_equal_seeds_is_equal_to_the_byte(box_samples: Samples, tmp_path: Path) -> None:
    from transvert.model.predict import predict

    one = box_samples.chosen([21])

    def table(seed: int, name: str) -> bytes:
        recipe = Recipe("transvert_hull", options={"width": 8}, steps=2, epoch_steps=2, batch=2, seed=seed)
        train_network([one], [], recipe, tmp_path / name)
        network, _ = networks.load_network(tmp_path / name / "weights.safetensors")
        scores = evaluate.score_samples(one, predict(network, one.images()))
        return write_table(tmp_path / name / "metrics.csv", scores).read_bytes()

    assert table(0, "one") == table(0, "two") != table(1, "other")


@pytest.mark.reproduce
def test_two_runs_of_the_notebooks_with_one_seed_give_equal_numbers(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each casts, trains and measures for itself. With a folder the name of a manifest counts for nothing but to part them."""
    monkeypatch.setenv("TRANSVERT_RUNS", str(tmp_path / "runs"))
    folder = tmp_path / "set"
    folder.mkdir()
    for name, scale in (("sub-small", 1.0), ("sub-large", 1.12)):
        for path in (patient.ct_path, patient.mask_path):
            image = nibabel.load(path)
            affine = image.affine.copy()
            affine[:3] *= scale
            other = nibabel.Nifti1Image(np.asarray(image.dataobj), affine)
            nibabel.save(other, folder / path.name.replace("sub-box", name))
    small = {"split": "loso:sub-small", "network_name": "transvert_hull", "steps": 4, "epoch_steps": 2, "batch": 2}
    parameters = {"run": "twice", "folder": str(folder), "compare_shipped": False, "seed": 3, **small}
    table = sweep.run_sweep(parameters, {"data": ["one", "two"]}, stop="03", workers=2, progress=False)
    assert list(table.failed) == ["", ""]
    one, two = (tmp_path / "runs" / "twice" / f"data={name}" for name in ("one", "two"))
    assert not (two / "01_drr_synthesis").is_symlink()
    for name in ("metrics.csv", "worst_and_best.png"):
        assert (one / "03_evaluate_dice" / name).read_bytes() == (two / "03_evaluate_dice" / name).read_bytes(), name
    weights, others = (load_file(place / "02_train_transvert" / "weights.safetensors") for place in (one, two))
    assert all(torch.equal(weights[name], others[name]) for name in weights | others)
    metrics = pd.read_csv(one / "03_evaluate_dice" / "metrics.csv")
    assert set(metrics.subject) == {"sub-small"} and metrics.dice[metrics.method == "this run"].max() > 0
