"""The four notebooks in a row through papermill, and a grid of such runs on Dask's workers.

Each combination of a grid has a run folder of its own, such as `runs/demo/learning_rate=0.002,seed=0/`.
"""

from __future__ import annotations

import builtins
import contextlib
import fcntl
import hashlib
import itertools
import json
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pydantic

from transvert import io
from transvert.io import InputError, atomic_path, check_writable, read_json, read_yaml, write_json
from transvert.runs import STAGES, portable, run_folder, runs_folder, write_table

EXECUTED, FAILED = "notebook.ipynb", "notebook.failed.ipynb"
OWN_FILES = ("ap_film", "lateral_film", "landmark_file")
"""Parameters that hold a path of the user's own."""
_PENDING = "It has not run yet."
METRICS = ["dice", "hd95_mm", "assd_mm", "nsd_1p5mm"]


@dataclass
class Summary:
    """The outcome of a chain of notebooks, as written to `summary.json`; times and memory by notebook."""

    run: str
    parameters: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_gib: dict[str, float] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)
    spine: dict[str, float] = field(default_factory=dict)
    failed: str = ""
    last_lines: list[str] = field(default_factory=list)
    resume: str = ""


def read_parameters(path: str | Path) -> dict[str, Any]:
    """Reads a parameter set, a flat YAML mapping that names the `run`: a file, or a name in `params/` such as "demo"."""
    file = Path(path)
    if not file.exists():
        file = io.share_folder("params") / f"{file.stem}.yaml"
    content = read_yaml(file, "parameter set")
    if not isinstance(content, dict) or not content.get("run"):
        raise InputError(f"The parameter set {file.name} is not a mapping that names its 'run'.")
    if "sweep" in content:
        raise InputError(f"The parameter set {file.name} holds a 'sweep': use the option --sweep name=value,value.")
    return content


def notebook_path(name: str) -> Path:
    """The notebook of a stage."""
    return io.share_folder("notebooks") / f"{name}.ipynb"


def declared_parameters() -> dict[str, dict[str, Any]]:
    """Parameters of each notebook, as papermill describes them."""
    import papermill

    return {name: papermill.inspect_notebook(str(notebook_path(name))) for name in STAGES}


def check_value(declared: dict[str, dict[str, Any]], key: str, value: Any) -> Any:
    """A parameter's value in its declared type, such as 2.0 for the text "2"."""
    known = {name: found["inferred_type_name"] for one in declared.values() for name, found in one.items()}
    if key not in known:
        raise InputError(f"No notebook has the parameter {key}.")
    try:
        return pydantic.TypeAdapter(getattr(builtins, known[key])).validate_python(value)
    except pydantic.ValidationError:
        raise InputError(f"The parameter {key} is of type {known[key]}, which {value} is not.") from None


def reproduce(
    parameters: Mapping[str, Any], *, start: str = "01", command: str = "transvert reproduce", quiet: bool = False
) -> Summary:
    """Runs the notebooks in a row and writes `summary.json` and `summary.md` into the run's folder.

    Each notebook takes those parameters that it declares; the ones before number `start` must have run. A failure's
    message repeats `command` with `--from`.
    """
    say = (lambda line: None) if quiet else print
    declared = declared_parameters()
    parameters = {key: check_value(declared, key, value) for key, value in parameters.items()}
    names = stages_from(start)
    summary = Summary(parameters["run"], dict(parameters))
    folder = check_writable(run_folder(summary.run))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".busy").open("w") as lock:  # It ends with this process, however that ends.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"Another process works on the run '{summary.run}': wait, or choose another 'run'."
            raise InputError(message) from None
        (folder / "summary.json").unlink(missing_ok=True)
        try:
            for name in names:
                say(f"[{name[:2]} of {names[-1][:2]}] {name}")
                own = {key: value for key, value in parameters.items() if key in declared[name]}
                summary.failed = execute_notebook(notebook_path(name), folder / name, own, quiet=quiet)
                if summary.failed:
                    break
        except KeyboardInterrupt:
            summary.failed = f"{name} was interrupted in cell {_last_cell(folder / name / FAILED)[0]}."
            raise
        finally:
            if summary.failed:
                summary.last_lines = _last_cell(folder / name / FAILED)[1]
                summary.resume = f"{command} --from {name[:2]}"
                say("\n".join([summary.failed, *(f"    {line}" for line in summary.last_lines)]))
                say(f"The notebook so far: {folder / name / FAILED}\nTo go on: {summary.resume}")
            _write_summary(summary, folder)
    return summary


def stages_from(start: str) -> tuple[str, ...]:
    """The stages from a notebook's number on."""
    if start not in (numbers := [name[:2] for name in STAGES]):
        raise InputError(f"There is no notebook {start}; use 01, 02, 03 or 04.")
    return STAGES[numbers.index(start) :]


def execute_notebook(source: Path, out: Path, parameters: dict[str, Any], *, quiet: bool = False) -> str:
    """Runs one notebook into the folder `out`; returns "" or a sentence about the failure, with the cell's number."""
    import papermill

    out.mkdir(parents=True, exist_ok=True)
    for old in (EXECUTED, FAILED, "run.json"):
        (out / old).unlink(missing_ok=True)
    running = out / ".notebook-running.ipynb"
    error = "interrupted"
    try:
        papermill.execute_notebook(
            str(source),
            str(running),
            parameters,
            progress_bar=not quiet,
            stderr_file=None if quiet else sys.stderr,
            kernel_name="python3",
            # The kernel's warnings about its connection break into the progress bars.
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            # Widget state and every redraw of a progress bar would make the notebook large.
            store_widget_state=False,
            coalesce_streams=True,
        )
        error = ""
    except KeyboardInterrupt:
        # asyncio would report a task that nbclient left behind, with a traceback.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        raise
    except Exception as failure:  # noqa: BLE001 a cell that failed, a kernel that died, a full disk
        # papermill's error has the names `ename` and `evalue` of the cell's own error.
        kind, text = getattr(failure, "ename", type(failure).__name__), getattr(failure, "evalue", failure)
        error = " ".join(f"{kind}: {text}".split())
        if kind == "DeadKernelError":
            error = "its kernel ended (DeadKernelError), most likely because memory ran out."
    finally:
        if notebook := _read_notebook(running):
            for key in ("input_path", "output_path"):  # A record holds no absolute path.
                notebook.metadata.papermill[key] = Path(notebook.metadata.papermill[key]).name
            running.write_text(hide_names(nbformat.writes(notebook), parameters), encoding="utf-8")
            running.replace(out / (FAILED if error else EXECUTED))
    return f"{source.stem} failed in cell {_last_cell(out / FAILED)[0]}: {error}" if error else ""


def hide_names(text: str, parameters: Mapping[str, Any]) -> str:
    """JSON without the paths and names of the user's own files, which are often patients': neutral names with a hash."""
    for key in OWN_FILES:
        if path := parameters.get(key):
            neutral = f"{key}-{hashlib.sha256(path.encode()).hexdigest()[:8]}{Path(path).suffix}"
            names = [path, Path(path).name]
            names += [name.encode("unicode_escape").decode() for name in names]  # As papermill writes them.
            for name in names:
                text = text.replace(json.dumps(name, ensure_ascii=False)[1:-1], neutral)
    return text


def _record(content: Any, parameters: Mapping[str, Any]) -> Any:
    """Content that is safe to record, by `portable` and `hide_names`."""
    return json.loads(hide_names(json.dumps(portable(content), ensure_ascii=False), parameters))


def _read_notebook(path: Path) -> Any:
    with contextlib.suppress(OSError, ValueError, nbformat.reader.NotJSONError):
        return nbformat.read(path, as_version=4)
    return None


def _last_cell(path: Path) -> tuple[int, list[str]]:
    """Number of the last cell that began, its last lines of output, and the line of code that failed."""
    notebook = _read_notebook(path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"] if notebook else []
    begun = [cell for cell in cells if cell.metadata.get("papermill", {}).get("start_time")]
    if not begun:
        return 0, []
    printed = "".join(output.text for output in begun[-1].outputs if output.output_type == "stream")
    lines = [line.rsplit("\r", 1)[-1] for line in printed.split("\n") if line.strip()][-6:]
    for output in begun[-1].outputs:
        if output.output_type == "error":
            plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output.traceback))
            lines += [f"> {line}" for line in re.findall(r"^-+> *\d+ (.*)$", plain, re.MULTILINE)[:1]]
    # A kernel that died has sent no count.
    return begun[-1].execution_count or len(begun), lines


def describe(summary: Summary) -> str:
    """The results as text: mean metrics, the standing spine, and the time and memory of each notebook."""
    tables = [pd.DataFrame(summary.results).set_index(["split", "method", "source"])] if summary.results else []
    tables.append(pd.DataFrame({"mean of vertebrae": summary.spine}))
    tables.append(pd.DataFrame({"seconds": summary.seconds, "peak GiB": summary.peak_memory_gib}))
    return "\n\n".join(table.to_string(na_rep="", float_format="{:.3f}".format) for table in tables if len(table))


def _write_summary(summary: Summary, folder: Path) -> None:
    """Collects what the notebooks found, and writes `summary.json` and `summary.md`."""
    for name in STAGES:
        if summary.failed.startswith(name):
            break  # Results of an earlier run may lie in the folders after it.
        if notebook := _read_notebook(folder / name / EXECUTED):
            summary.seconds[name] = round(notebook.metadata.papermill.duration, 1)
            if (record := folder / name / "run.json").exists():
                summary.peak_memory_gib[name] = read_json(record, "record")["peak_memory_gib"]
    tables = {name: folder / name / "metrics.csv" for name in summary.seconds}
    if (path := tables.get(STAGES[2])) and path.exists():
        table = pd.read_csv(path).assign(vertebrae=1, empty=lambda rows: np.isinf(rows["assd_mm"]).astype(int))
        # The means leave out the infinite distances of empty predictions.
        groups = table.replace(np.inf, np.nan).groupby(["split", "method", "source"], sort=False)
        means = groups[["vertebrae", "empty"]].sum().join(groups[METRICS].mean()).reset_index().round(6)
        summary.results = means.astype(object).where(means.notna(), None).to_dict("records")
    if (path := tables.get(STAGES[3])) and path.exists():
        numbers = pd.read_csv(path).replace(np.inf, np.nan).mean(numeric_only=True).dropna()
        summary.spine = {str(key): round(float(value), 6) for key, value in numbers.items()}
    record = _record(asdict(summary), summary.parameters)
    write_json(folder / "summary.json", {"schema": "transvert-summary/3", **record})
    failure = [summary.failed, *summary.last_lines, f"To go on: {summary.resume}", ""] if summary.failed else []
    lines = [f"# Run {summary.run}", "", "```", *failure, describe(summary), "```", ""]
    with atomic_path(folder / "summary.md") as temporary:
        temporary.write_text(hide_names("\n".join(lines), summary.parameters), encoding="utf-8")


def read_grid(words: Sequence[str]) -> dict[str, list[Any]]:
    """Values of each swept parameter, such as "seed=0,1,2", in the type that the notebooks declare."""
    declared, grid = declared_parameters(), {}
    for word in words:
        key, _, values = (part.strip() for part in word.partition("="))
        texts = [value.strip() for value in values.split(",")]
        if not all(texts):
            raise InputError(f"'{word}' is not a sweep; write it as seed=0,1,2.")
        if key == "run":
            raise InputError("'run' cannot be swept.")
        grid[key] = list(dict.fromkeys(check_value(declared, key, text) for text in texts))
    return grid


def sweep(
    parameters: Mapping[str, Any], grid: Mapping[str, list[Any]], *, start: str = "", scheduler: str = ""
) -> pd.DataFrame:
    """Runs the notebooks for every combination of parameter values, and writes `sweep.csv` into the run's folder.

    Without `start`, a run that has succeeded with the same parameters is not repeated; with it, all combinations share
    the earlier notebooks of `runs/<run>/`. The workers of the Dask `scheduler` must see the same folders; "" uses this
    computer's cores.
    """
    from distributed import as_completed

    from transvert.data.synthesis import open_client

    folder = check_writable(run_folder(parameters["run"]))
    shared = set(STAGES) - set(stages_from(start or "01"))
    rows, jobs = {}, {}
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        name = _folder_name(chosen)
        rows[name] = {"run": name, **chosen}
        point = {**parameters, **chosen, "run": f"{parameters['run']}/{name}"}
        for stage in shared:
            (folder / name).mkdir(parents=True, exist_ok=True)
            if (folder / stage).exists() and not (folder / name / stage).exists():
                (folder / name / stage).symlink_to(Path("..") / stage, target_is_directory=True)
        last = _read_summary(folder / name)
        if start or last.get("failed", "absent") or last["parameters"] != _record(point, point):
            jobs[name] = (point, start or "01", str(runs_folder().absolute()), os.getcwd())
    failures = dict.fromkeys(jobs, _PENDING)
    print(f"{len(rows)} runs in {folder}; {len(rows) - len(jobs)} are done already.")
    table = _write_sweep(folder, rows, failures)
    if jobs:
        with open_client(scheduler) as client:
            futures = {client.submit(_run_point, *job, pure=False): name for name, job in jobs.items()}
            for count, future in enumerate(as_completed(list(futures), raise_errors=False), 1):
                name, error = futures[future], future.exception()
                failures[name] = " ".join(str(error).split()) if error else future.result()
                print(f"[{count} of {len(jobs)}] {name}: {failures[name] or 'done'}")
                table = _write_sweep(folder, rows, failures)
    return table


def _run_point(parameters: dict[str, Any], start: str, runs: str, folder: str) -> str:
    """Runs one combination in a worker; returns its failure or ""."""
    os.environ["TRANSVERT_RUNS"] = runs
    with contextlib.chdir(folder):
        return reproduce(parameters, start=start, quiet=True).failed


def _read_summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    return read_json(path, "summary") if path.exists() else {}


def _folder_name(values: Mapping[str, Any]) -> str:
    """A folder name for one combination, such as "learning_rate=0.002,seed=0"."""
    plain = ",".join(f"{key}={value}" for key, value in values.items())
    safe = re.sub(r"[^\w.,=+-]", "_", plain)[:120]
    # The digest tells names apart that differ only in what was replaced.
    return safe if safe == plain else f"{safe}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"


def _write_sweep(folder: Path, rows: Mapping[str, dict[str, Any]], failures: Mapping[str, str]) -> pd.DataFrame:
    """Writes the table of all runs so far: the metrics of notebook 03's first method, the spine, and the time."""
    table = []
    for name, values in rows.items():
        row = dict(values)
        found = {} if failures.get(name) == _PENDING else _read_summary(folder / name)
        for result in found.get("results", []):
            if all(result[key] == found["results"][0][key] for key in ("method", "source")):
                row |= {f"{result['split']}_{key}": result[key] for key in ("vertebrae", "empty", *METRICS)}
        row |= {f"spine_{key}": value for key, value in found.get("spine", {}).items()}
        table.append(row | {"seconds": sum(found.get("seconds", {}).values()), "failed": failures.get(name, "")})
    frame = pd.DataFrame(table)
    frame = frame[[*frame.columns.drop(["seconds", "failed"]), "seconds", "failed"]]
    write_table(folder / "sweep.csv", frame)
    return frame
