"""The four notebooks in a row, through papermill."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from transvert import manifest, record
from transvert.files import InputError, atomic_path, write_json


@dataclass
class Summary:
    """What a chain of notebooks came to.

    Attributes:
        run: the run's name.
        folder: `runs/<run>`.
        seconds: by notebook.
        table: the metrics of notebook 03, one row a vertebra and method; None if it did not run.
        files: everything below `folder`.
        failed: one sentence about the notebook that stopped the chain, or None.
    """

    run: str
    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)
    table: pd.DataFrame | None = None
    files: list[Path] = field(default_factory=list)
    failed: str | None = None


def read_parameters(path: str | Path) -> dict[str, Any]:
    """A parameter set: one flat YAML mapping that all notebooks share.

    Args:
        path: a file, or the name of one of `params/` ("demo", "smoke", "paper").

    Raises:
        InputError: no such file, or not a mapping with a `run`.
    """
    file = Path(path)
    if not file.exists():
        file = manifest.share_folder("params") / f"{file.stem}.yaml"
    if not file.exists():
        raise InputError(f"The parameter set {path} does not exist.")
    try:
        said = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"The parameter set {file.name} is not valid YAML ({error}).") from None
    if not isinstance(said, dict) or not said.get("run"):
        raise InputError(f"The parameter set {file.name} is not a mapping that names its 'run'.")
    return said


def reproduce(
    parameters: dict[str, Any], *, start: str = "01", say: Callable[[str], None] = print, progress: bool = True
) -> Summary:
    """Runs notebooks 01 to 04 with one parameter set and writes `summary.json` and `summary.md` into the run's folder.

    Args:
        parameters: as `read_parameters` gives them; each notebook takes those it declares.
        start: the first notebook's number; the earlier ones must have been run.
        say: where lines for the user go.
        progress: whether to show bars, a cell's and an epoch's.

    Raises:
        InputError: a parameter no notebook declares, or no notebook of that number.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    names = [name for name in record.STAGES if name >= start]
    if not names or not any(name.startswith(start) for name in names):
        raise InputError(f"There is no notebook {start} to start from; use 01, 02, 03 or 04.")
    notebooks = {name: manifest.share_folder("notebooks") / f"{name}.ipynb" for name in record.STAGES}
    declared = {name: set(papermill.inspect_notebook(str(path))) for name, path in notebooks.items()}
    unknown = set(parameters) - set().union(*declared.values())
    if unknown:
        raise InputError(f"No notebook has the parameter {', '.join(sorted(unknown))}.")
    summary = Summary(parameters["run"], record.runs_folder() / parameters["run"])
    for name in names:
        say(f"[{name[:2]} of {record.STAGES[-1][:2]}] {name}")
        began = time.perf_counter()
        out = summary.folder / name
        out.mkdir(parents=True, exist_ok=True)
        executed = out / ".notebook-running.ipynb"
        try:
            papermill.execute_notebook(
                str(notebooks[name]),
                str(executed),
                {key: value for key, value in parameters.items() if key in declared[name]},
                progress_bar=progress,
                stderr_file=sys.stderr if progress else None,
                kernel_name="python3",
                # Its warning about unencrypted loopback would break into the bars.
                extra_arguments=["--IPKernelApp.log_level=ERROR"],
            )
            tidy(executed).replace(out / "notebook.ipynb")
            (out / "notebook.failed.ipynb").unlink(missing_ok=True)
        except PapermillExecutionError as error:
            executed.replace(out / "notebook.failed.ipynb")
            summary.failed = f"{name} failed in cell {error.exec_count}: {error.ename}: {error.evalue}"
            say(summary.failed)
            say("\n".join(error.source.splitlines()[-3:]))
            break
        finally:
            executed.unlink(missing_ok=True)
            summary.seconds[name] = round(time.perf_counter() - began, 1)
    _conclude(summary)
    return summary


def results(summary: Summary) -> str:
    """The table that a reader wants: Dice, HD95, ASSD and NSD by level, each method beside the nulls."""
    if summary.table is None:
        return "(notebook 03 left no table)"
    rows = summary.table.rename(
        columns={"dice": "Dice", "hd95_mm": "HD95 mm", "assd_mm": "ASSD mm", "nsd_1p5mm": "NSD 1.5 mm"}
    )
    measures = ["Dice", "HD95 mm", "ASSD mm", "NSD 1.5 mm"]
    shown = rows[["split", "subject", "level", "method", *measures]].copy()
    means = rows.groupby(["split", "method"], sort=False)[measures].mean().reset_index()
    shown = pd.concat([shown, means.assign(subject="", level="mean")], ignore_index=True).fillna("")
    return shown.to_string(index=False, float_format=lambda value: f"{value:.3f}")


def tidy(path: Path) -> Path:
    """Drops from an executed notebook what only makes it large: saved widget state and bars that have run out."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        outputs: list[Any] = []
        for output in cell.get("outputs", []):
            stream = output.output_type == "stream"
            if stream and outputs and outputs[-1].get("name") == output.name:
                outputs[-1].text += output.text
            else:
                outputs.append(output)
        for output in outputs:
            if output.output_type == "stream":
                # What a terminal would show in the end: the last state of every line, without the empty ones.
                lines = (line.rsplit("\r", 1)[-1].rstrip() for line in output.text.split("\n"))
                output.text = "".join(line + "\n" for line in lines if line)
        if "outputs" in cell:
            cell.outputs = [o for o in outputs if o.output_type != "stream" or o.text]
    nbformat.write(notebook, path)
    return path


def _conclude(summary: Summary) -> None:
    metrics = summary.folder / record.STAGES[2] / "metrics.csv"
    if metrics.exists():
        summary.table = pd.read_csv(metrics)
    summary.files = sorted(
        p for p in summary.folder.rglob("*") if p.is_file() and p.name not in ("summary.md", "summary.json")
    )
    # The notebooks' kernels are this process's children.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    names = [path.relative_to(summary.folder).as_posix() for path in summary.files]
    write_json(
        summary.folder / "summary.json",
        {
            "schema": "transvert-summary/1",
            "run": summary.run,
            "seconds": summary.seconds,
            "peak_memory_gib": round(peak, 2),
            "processors": os.cpu_count(),
            "failed": summary.failed,
            "files": names,
        },
    )
    lines = [f"# Run {summary.run}", ""]
    lines += [f"- {name}: {seconds:.0f} s" for name, seconds in summary.seconds.items()]
    lines += [f"- peak memory of one notebook: {peak:.2f} GiB", ""]
    lines += [
        summary.failed or "All notebooks ran.",
        "",
        "```",
        results(summary),
        "```",
        "",
        *(f"- {name}" for name in names),
    ]
    with atomic_path(summary.folder / "summary.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
