"""The four notebooks in a row, through papermill."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from transvert import execution, io, runs
from transvert.io import InputError, atomic_path, write_json

tidy = execution.tidy
MEASURES = ["dice", "hd95_mm", "assd_mm", "nsd_1p5mm"]


@dataclass
class Summary:
    """What a chain of notebooks came to.

    Attributes:
        run: the run's name.
        folder: `runs/<run>`.
        seconds: by notebook; also of earlier ones, from which this chain went on.
        peak_memory_gib: likewise; `execution.Outcome` says of what.
        table: the metrics of notebook 03, one row a vertebra and method; None if it has not run.
        spine: the means of notebook 04's table of vertebrae, by column; empty if there is none.
        files: everything below `folder` but a sweep's runs.
        failed: one sentence about the notebook that stopped the chain, or None.
        said: the last lines of the cell that failed.
        again: the command that goes on from there.
    """

    run: str
    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_gib: dict[str, float] = field(default_factory=dict)
    table: pd.DataFrame | None = None
    spine: dict[str, float] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    failed: str | None = None
    said: str = ""
    again: str = ""


def read_parameters(path: str | Path) -> dict[str, Any]:
    """A parameter set: one flat YAML mapping that all notebooks share. What it says of a sweep is left out.

    Args:
        path: a file, or the name of one of `params/` ("demo", "smoke", "paper").

    Raises:
        InputError: no such file, or not a mapping with a `run`.
    """
    return {key: value for key, value in read_set(path).items() if key != "sweep"}


def read_set(path: str | Path) -> dict[str, Any]:
    """As `read_parameters`, with the `sweep`."""
    file = Path(path)
    if not file.exists():
        file = io.share_folder("params") / f"{file.stem}.yaml"
    if not file.exists():
        raise InputError(f"The parameter set {path} does not exist.")
    try:
        said = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"The parameter set {file.name} is not valid YAML ({error}).") from None
    if not isinstance(said, dict) or not said.get("run"):
        raise InputError(f"The parameter set {file.name} is not a mapping that names its 'run'.")
    return said


def stages(start: str = "01", stop: str = "04") -> list[str]:
    """The notebooks' names from one number to another.

    Raises:
        InputError: there are none of these numbers, or none between them.
    """
    numbers = [name[:2] for name in runs.STAGES]
    for number in (start, stop):
        if number not in numbers:
            raise InputError(f"There is no notebook {number}; use 01, 02, 03 or 04.")
    if stop < start:
        raise InputError(f"Notebook {stop} comes before {start}: there is nothing to run.")
    return list(runs.STAGES[numbers.index(start) : numbers.index(stop) + 1])


def declared() -> dict[str, dict[str, Any]]:
    """Of each notebook, the parameters that it declares, as papermill describes them."""
    import papermill

    return {name: papermill.inspect_notebook(str(source(name))) for name in runs.STAGES}


def check_declared(parameters: Iterable[str], known: Mapping[str, Iterable[str]]) -> None:
    """Raises InputError for parameters that none of the notebooks of `declared` has."""
    unknown = set(parameters) - set().union(*known.values())
    if unknown:
        raise InputError(f"No notebook has the parameter {', '.join(sorted(unknown))}.")


def source(name: str) -> Path:
    """The notebook of a stage."""
    return io.share_folder("notebooks") / f"{name}.ipynb"


def reproduce(
    parameters: dict[str, Any],
    *,
    start: str = "01",
    stop: str = "04",
    say: Callable[[str], None] = print,
    progress: bool = True,
    memory: int = 0,
    cwd: str | None = None,
    command: str = "transvert reproduce --from {}",
) -> Summary:
    """Runs notebooks in a row with one parameter set and writes `summary.json` and `summary.md` into the run's folder.

    Args:
        parameters: as `read_parameters` gives them; each notebook takes those it declares.
        start: the first notebook's number; the earlier ones must have been run.
        stop: the last one's.
        say: where lines for the user go.
        progress: whether to show bars, a cell's and an epoch's.
        memory: as in `execution.execute`.
        cwd: likewise.
        command: what a user types to go on after a failure, with {} for the number of the notebook that failed.

    Raises:
        InputError: a parameter no notebook declares, no notebook of that number, or a run that another process works on.
        KeyboardInterrupt: after the summary was written.
    """
    names, known = stages(start, stop), declared()
    check_declared(parameters, known)
    summary = Summary(parameters["run"], runs.runs_folder() / parameters["run"])
    with _alone(summary):
        for name in runs.STAGES[: runs.STAGES.index(names[0])]:
            if known_facts := execution.facts(summary.folder / name):
                summary.seconds[name] = known_facts["seconds"]
                summary.peak_memory_gib[name] = known_facts["peak_memory_gib"]
        for file in ("summary.json", "summary.md"):
            (summary.folder / file).unlink(missing_ok=True)
        for name in names:
            say(f"[{name[:2]} of {names[-1][:2]}] {name}")
            out = summary.folder / name
            own = {key: value for key, value in parameters.items() if key in known[name]}
            try:
                done = execution.execute_notebook(source(name), out, own, progress=progress, memory=memory, cwd=cwd)
            except KeyboardInterrupt:
                _stop(summary, name, f"{name} was stopped in cell {execution.stopped_in(out)}.", command, say)
                raise
            summary.seconds[name] = done.seconds
            summary.peak_memory_gib[name] = done.peak_memory_gib
            if done.failed:
                summary.said = done.said
                _stop(summary, name, done.failed, command, say)
                return summary
        _conclude(summary)
    return summary


def results(summary: Summary) -> str:
    """The table that a reader wants: Dice, HD95, ASSD and NSD by level, each method beside the nulls."""
    if summary.table is None:
        return "(there is no table of notebook 03)"
    shown = summary.table[["split", "subject", "level", "method", *MEASURES]]
    lines = means(summary.table).drop(columns=["vertebrae", "empty"]).assign(subject="", level="mean")
    shown = pd.concat([shown, lines], ignore_index=True).fillna("")
    heads = {"dice": "Dice", "hd95_mm": "HD95 mm", "assd_mm": "ASSD mm", "nsd_1p5mm": "NSD 1.5 mm"}
    return shown.rename(columns=heads).to_string(index=False, float_format=lambda value: f"{value:.3f}")


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Of a table of notebook 03, the means by `split` and `method`, the notebook's first method first.

    `vertebrae` counts them, `empty` those with an empty prediction, whose distances are infinite and left out.
    """
    finite = table.assign(vertebrae=1, empty=np.isinf(table["assd_mm"]).astype(int)).replace(np.inf, np.nan)
    groups = finite.groupby(["split", "method"], sort=False)
    counts = groups[["vertebrae", "empty"]].sum()
    return counts.join(groups[MEASURES].mean()).reset_index()


@contextlib.contextmanager
def _alone(summary: Summary) -> Iterator[None]:
    """Lets no other process work on the run. It ends with the process, however that ends."""
    from filelock import FileLock, Timeout

    summary.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(summary.folder / ".busy", timeout=0):
            yield
    except Timeout:
        raise InputError(
            f"Another process works on the run '{summary.run}': wait for it, or name another 'run'."
        ) from None


def _stop(summary: Summary, name: str, failed: str, command: str, say: Callable[[str], None]) -> None:
    """Tells why a chain ends at a notebook, and how to go on, and concludes."""
    summary.failed = failed
    summary.again = command.replace("{}", name[:2])
    say(failed)
    if summary.said:
        say("\n".join(f"    {line}" for line in summary.said.splitlines()))
    half = summary.folder / name / execution.HALF
    if half.exists():
        say(f"As far as it came: {half}")
    say(f"To go on: {summary.again}")
    _conclude(summary)


def _conclude(summary: Summary) -> None:
    """Reads what the notebooks that ran found, and writes the summary."""
    whole = [name for name in summary.seconds if (summary.folder / name / execution.EXECUTED).exists()]
    tables = {name: summary.folder / name / "metrics.csv" for name in whole}
    if (path := tables.get(runs.STAGES[2])) and path.exists():
        summary.table = pd.read_csv(path)
    if (path := tables.get(runs.STAGES[3])) and path.exists():
        numbers = pd.read_csv(path).replace(np.inf, np.nan).mean(numeric_only=True).dropna()
        summary.spine = {str(key): round(float(value), 6) for key, value in numbers.items()}
    summary.files = sorted(
        path
        for path in summary.folder.rglob("*")
        if path.is_file()
        and not path.name.startswith((".", "summary.", "sweep."))
        and "=" not in path.relative_to(summary.folder).parts[0]
    )
    table = None if summary.table is None else means(summary.table).round(6)
    names = [path.relative_to(summary.folder).as_posix() for path in summary.files]
    write_json(
        summary.folder / "summary.json",
        {
            "schema": "transvert-summary/2",
            "run": summary.run,
            "seconds": summary.seconds,
            "peak_memory_gib": summary.peak_memory_gib,
            "processors": os.cpu_count(),
            "results": [] if table is None else table.astype(object).where(table.notna(), None).to_dict("records"),
            "spine": summary.spine,
            "failed": summary.failed,
            "said": summary.said,
            "again": summary.again,
            "files": names,
        },
    )
    lines = [f"# Run {summary.run}", "", summary.failed or "All notebooks ran.", ""]
    if summary.said:
        lines += ["```", *summary.said.splitlines(), "```", ""]
    if summary.again:
        lines += [f"To go on: `{summary.again}`", ""]
    rows = [
        [name, f"{seconds:.0f}", f"{summary.peak_memory_gib[name]:.2f}"] for name, seconds in summary.seconds.items()
    ]
    lines += [*grid(["notebook", "s", "peak memory GiB"], rows), "", "```", results(summary), "```", ""]
    if summary.spine:
        lines += ["Means of the vertebrae in the standing spine:", ""]
        lines += [*grid(["of", "mean"], [[key, f"{value:.3f}"] for key, value in summary.spine.items()]), ""]
    lines += [f"- {name}" for name in names]
    with atomic_path(summary.folder / "summary.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def grid(heads: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table's lines; the first column is text, the others are figures."""
    return [
        f"| {' | '.join(heads)} |",
        "|---" + "|---:" * (len(heads) - 1) + "|",
        *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows),
    ]
