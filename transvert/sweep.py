"""A grid of parameters: a run of the notebooks for each of its points, side by side on Dask's workers, in one table.

    transvert reproduce params/demo.yaml --sweep learning_rate=0.002,0.004 --sweep seed=0,1,2
    transvert reproduce params/sweep_clicks.yaml --workers 2

Each run lies in a folder of its own, `runs/<run>/learning_rate=0.002,seed=0/`, as any other run does. Notebooks before
the first one that declares a parameter of the grid are run once, in `runs/<run>/`, and linked from the others. Call it
again to go on: a notebook that is done with the same parameters is not run again.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from transvert import execution, workflow
from transvert.data import cluster
from transvert.io import InputError, atomic_path, read_json
from transvert.runs import STAGES, runs_folder, write_table

_KINDS: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": lambda text: {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()],
}
_LONGEST_NAME = 120


@dataclass(frozen=True)
class Point:
    """One run of a grid.

    Attributes:
        name: of its folder, such as "learning_rate=0.002,seed=0".
        values: of the grid's parameters.
        parameters: all, with `run` as the notebooks see it.
    """

    name: str
    values: dict[str, Any]
    parameters: dict[str, Any]

    @property
    def folder(self) -> Path:
        """`runs/<run>/<name>`."""
        return runs_folder() / self.parameters["run"]


def read_grid(path: str | Path, words: Sequence[str] = ()) -> dict[str, list[Any]]:
    """The values of each swept parameter: of the set's own mapping `sweep`, and of words such as "seed=0,1,2".

    Raises:
        InputError: what is said is no grid.
    """
    said = workflow.read_set(path).get("sweep") or {}
    if not isinstance(said, dict):
        raise InputError(f"The 'sweep' of {path} is not a mapping of parameters to lists of values.")
    grid = {str(key): values if isinstance(values, list) else [values] for key, values in said.items()}
    for word in words:
        key, equals, values = word.partition("=")
        if not equals or not all(part.strip() for part in values.split(",")):
            raise InputError(f"'{word}' is no sweep; write it as seed=0,1,2.")
        grid[key.strip()] = [part.strip() for part in values.split(",")]
    return grid


def points(parameters: Mapping[str, Any], grid: Mapping[str, list[Any]]) -> list[Point]:
    """The runs of a grid, its last parameter varying fastest.

    Raises:
        InputError: a parameter that no notebook declares, or a value that is not of its type.
    """
    known: dict[str, Any] = {}
    for notebook in workflow.declared().values():
        known |= notebook
    values: dict[str, list[Any]] = {}
    for key, said in grid.items():
        if key not in known or key == "run":
            raise InputError(f"No notebook has the parameter {key}." if key != "run" else "The run can't be swept.")
        kind = known[key]["inferred_type_name"]
        try:
            values[key] = list(dict.fromkeys(_KINDS[kind](str(value)) for value in said))
        except (ValueError, KeyError):
            raise InputError(f"The parameter {key} is of type {kind}, which {said} are not.") from None
        if not said:
            raise InputError(f"The sweep has no value for {key}.")
    found = []
    for one in itertools.product(*values.values()):
        chosen = dict(zip(values, one, strict=True))
        name = _folder_name(chosen)
        found.append(Point(name, chosen, {**parameters, **chosen, "run": f"{parameters['run']}/{name}"}))
    return found


def run_sweep(
    parameters: Mapping[str, Any],
    grid: Mapping[str, list[Any]],
    *,
    start: str = "",
    stop: str = "04",
    scheduler: str = "",
    workers: int = 0,
    memory: str = cluster.WORKER_MEMORY,
    say: Callable[[str], None] = print,
    progress: bool = True,
    command: str = "transvert reproduce",
) -> pd.DataFrame:
    """Runs the notebooks for every point of a grid and writes `sweep.csv` and `sweep.md` into `runs/<run>/`.

    A run that fails does not stop the others. Whenever one is done the table is written, so that it also stands after a
    stop.

    Args:
        parameters: as `runner.read_parameters` gives them.
        grid: the values of each parameter.
        start: the first notebook's number, from which each run starts anew; by default each goes on where it was.
        stop: the last one's.
        scheduler: the address of a Dask scheduler, whose workers see the same folders; without one, this computer works.
        workers: processes on this computer; 0 for as many as it has room for. Those on one GPU share it.
        memory: what each of them may take; a notebook here that takes more is ended, and its run fails.
        say: where lines for the user go.
        progress: whether to show bars.
        command: what a user types to run this, and to go on.

    Returns:
        The table: a row a run.

    Raises:
        InputError: as `points` and `cluster.work`; or no notebook up to `stop` has a parameter of the grid.
    """
    names, known = workflow.stages(start or "01", stop), workflow.declared()
    workflow.check_declared(parameters, known)
    runs, folder = points(parameters, grid), runs_folder() / parameters["run"]
    upto = list(STAGES[: STAGES.index(names[-1]) + 1])
    shared = list(itertools.takewhile(lambda name: not set(grid) & set(known[name]), upto))
    if shared == upto:
        raise InputError(f"No notebook up to {stop} has the parameter {', '.join(grid)}: there is nothing to sweep.")
    own = upto[len(shared) :]
    limit = 0 if scheduler else cluster.parse_memory(memory)
    reasons = dict.fromkeys((run.name for run in runs), "It has not run yet.")
    jobs = []
    try:
        first = _begin(folder, parameters, shared, start, known)
        if first:
            say(f"Once for all {len(runs)} runs, from notebook {first} to {shared[-1][:2]}:")
            how: dict[str, Any] = {"say": say, "progress": progress, "memory": limit, "command": command}
            common = workflow.reproduce(dict(parameters), start=first, stop=shared[-1][:2], **how)
            if common.failed:
                reasons = dict.fromkeys(reasons, common.failed)
                return _write(folder, parameters, runs, reasons, shared)
        for run in runs:
            _link(run, shared)
            begin = _begin(run.folder, run.parameters, own if start else upto, start, known)
            if begin:
                where = str(runs_folder().absolute()), str(Path.cwd())
                jobs.append((run.name, (run.parameters, max(begin, own[0][:2]), names[-1][:2], limit, command, *where)))
            else:
                reasons[run.name] = ""
        say(f"{len(runs)} runs in {folder}, of which {len(runs) - len(jobs)} are done.")
        _write(folder, parameters, runs, reasons, shared)
        by_name = {run.name: run for run in runs}
        options: dict[str, Any] = {"scheduler": scheduler, "workers": workers, "memory": memory}
        with contextlib.closing(cluster.work(_run_point, jobs, **options)) as done:
            for count, (name, error) in enumerate(done if jobs else (), 1):
                reasons[name] = " ".join(f"{error}".split()) if error else ""
                row = _point_row(by_name[name], reasons[name], shared)
                say(f"[{count} of {len(jobs)}] {name}: {row['failed'] or format(row['seconds'], '.0f') + ' s'}")
                _write(folder, parameters, runs, reasons, shared)
    finally:
        table = _write(folder, parameters, runs, reasons, shared)
    return table


def _run_point(
    parameters: dict[str, Any], start: str, stop: str, memory: int, command: str, runs: str, cwd: str
) -> None:
    """One run, in a worker. How it failed stands in its summary."""
    os.environ["TRANSVERT_RUNS"] = runs
    how: dict[str, Any] = {"memory": memory, "command": command, "cwd": cwd}
    workflow.reproduce(parameters, start=start, stop=stop, say=lambda line: None, progress=False, **how)


def _begin(folder: Path, parameters: Mapping[str, Any], names: list[str], start: str, known: Mapping[str, Any]) -> str:
    """The number of the first of some notebooks that is to run: `start`, else the first that is not done; "" for none."""
    if start:
        return next((name[:2] for name in names if name[:2] >= start), "")
    ended = None
    for name in names:
        wanted = {key: value for key, value in parameters.items() if key in known[name]}
        times = execution.finished(workflow.source(name), folder / name, wanted)
        # One that an earlier one has overtaken was made from something else.
        if times is None or (ended and times[0] < ended):
            return name[:2]
        ended = times[1]
    return ""


def _link(run: Point, shared: list[str]) -> None:
    """Lets a run find the stages that it shares."""
    run.folder.mkdir(parents=True, exist_ok=True)
    for name in shared:
        place = run.folder / name
        if place.is_symlink() or not (run.folder.parent / name).exists():
            continue
        if place.exists():
            raise InputError(f"{place} stands where a link to the shared {name} should be: move it away.")
        place.symlink_to(Path("..") / name, target_is_directory=True)


def _folder_name(values: Mapping[str, Any]) -> str:
    """A name for a run's folder; where it can't show the values as they are, with a digest of them."""
    plain = ",".join(f"{key}={value}" for key, value in values.items())
    safe = re.sub(r"[^\w.,=+-]", "_", plain)[:_LONGEST_NAME]
    if safe == plain and not any("," in str(value) for value in values.values()):
        return safe
    return f"{safe}-{hashlib.sha256(repr(values).encode()).hexdigest()[:8]}"


def _point_row(run: Point, reason: str, shared: list[str]) -> dict[str, Any]:
    """A line of the table: what a run's summary says of its notebooks, without the shared ones."""
    row: dict[str, Any] = {"run": run.name, **run.values}
    try:
        said = read_json(run.folder / "summary.json", "summary")
    except InputError:
        said = {}
    failed = reason or (said.get("failed") or "" if said else "Its summary is gone: run it again with --from.")
    if said and not reason:
        method = next((found["method"] for found in said["results"]), None)
        for found in said["results"]:
            if found["method"] == method:
                row["method"] = method
                row |= {f"{found['split']}_{key}": found[key] for key in ("vertebrae", "empty", *workflow.MEASURES)}
        row |= {f"spine_{key}": value for key, value in said["spine"].items()}
        row["seconds"] = round(sum(s for name, s in said["seconds"].items() if name not in shared), 1)
        row["peak_memory_gib"] = max((p for n, p in said["peak_memory_gib"].items() if n not in shared), default=0.0)
    return row | {"failed": failed}


def _write(
    folder: Path, parameters: Mapping[str, Any], runs: list[Point], reasons: Mapping[str, str], shared: list[str]
) -> pd.DataFrame:
    """Writes the table of all runs, as far as they are."""
    table = pd.DataFrame([_point_row(run, reasons[run.name], shared) for run in runs])
    last = [name for name in ("seconds", "peak_memory_gib", "failed") if name in table]
    table = table[[name for name in table if name not in last] + last]
    write_table(folder / "sweep.csv", table)
    fixed = ", ".join(f"{key} {value}" for key, value in parameters.items() if key not in runs[0].values)
    lines = [f"# Sweep of {parameters['run']}", "", f"The same in all: {fixed}.", ""]
    shown = [name for name in table if name not in ("run", "method", "failed") and not str(name).endswith("_empty")]
    rows = [[_cell(row[name]) for name in shown] for _, row in table.iterrows()]
    lines += workflow.grid([str(name) for name in shown], rows)
    if "method" in table:
        lines += ["", f"Measured: {', '.join(table['method'].dropna().unique())}; means over held-out vertebrae."]
    times = {name: execution.facts(folder / name) for name in shared}
    for name, took in times.items():
        if took:
            lines += ["", f"{name}, once for all: {took['seconds']:.0f} s, {took['peak_memory_gib']:.2f} GiB."]
    lines += ["", *(f"- {row['run']}: {row['failed']}" for _, row in table.iterrows() if row["failed"])]
    with atomic_path(folder / "sweep.md") as temporary:
        temporary.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return table


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.4g}"
    return str(value)
