"""One notebook through papermill: how long it took, the memory it needed, and where it failed."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

EXECUTED = "notebook.ipynb"
"""In a stage's folder once it is whole; with the time and memory that it took in its metadata."""

HALF = "notebook.failed.ipynb"
"""In its place when a cell failed or the run was stopped: as far as it came."""

_LAST_LINES = 6
_SAMPLE_S = 0.2
# Until it has loaded its own program, a new process seems to hold all that its parent holds.
_SETTLED_S = 0.5


@dataclass(frozen=True)
class Outcome:
    """How a notebook went.

    Attributes:
        seconds: from the kernel's start to its end.
        peak_memory_gib: the most that the kernel and the processes it started held at once (resident, read five times
            a second and half a second after a process's start, so that a shorter peak can be missed).
        failed: one sentence with the cell and the error, or "".
        said: the failing cell's last lines of output, and last the line of code that failed.
    """

    seconds: float
    peak_memory_gib: float
    failed: str = ""
    said: str = ""


def execute_notebook(
    source: Path,
    out: Path,
    parameters: dict[str, Any],
    *,
    progress: bool = True,
    memory: int = 0,
    cwd: str | None = None,
) -> Outcome:
    """Runs a notebook and leaves it in `out`, as `EXECUTED` or as `HALF`.

    Args:
        source: the notebook.
        out: its stage's folder.
        parameters: those that it declares.
        progress: whether to show bars, a cell's and an epoch's.
        memory: bytes; a notebook that takes more is ended. 0 for no limit.
        cwd: where it runs; by default here.

    Raises:
        KeyboardInterrupt: after the kernel has ended and what there is of the notebook was kept.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    out.mkdir(parents=True, exist_ok=True)
    # What they show are the files beside them, which are about to be replaced.
    for name in (EXECUTED, HALF):
        (out / name).unlink(missing_ok=True)
    running = out / ".notebook-running.ipynb"
    failed = ""
    began = time.perf_counter()
    with watch_memory(memory) as watched:
        try:
            papermill.execute_notebook(
                str(source),
                str(running),
                parameters,
                progress_bar=progress,
                stderr_file=sys.stderr if progress else None,
                kernel_name="python3",
                # Its warning about unencrypted loopback, and its complaints on being ended, would break into the bars.
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
                cwd=cwd,
            )
        except KeyboardInterrupt:
            # nbclient may have left a task that ends with the kernel; asyncio would tell of it with a traceback.
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            _keep(running, out / HALF)
            raise
        except PapermillExecutionError as error:
            failed = f"{error.ename}: {' '.join(str(error.evalue).split())}"
        except Exception as error:  # noqa: BLE001 a kernel that dies, a disk that is full
            failed = f"{type(error).__name__}: {' '.join(str(error).split())}"
            if watched.exceeded:
                failed = f"it took more than {memory / 2**30:.1f} GiB of memory; give it more."
            elif type(error).__name__ == "DeadKernelError":
                failed = "its kernel ended (DeadKernelError), most likely for want of memory."
    seconds = round(time.perf_counter() - began, 1)
    peak = round(watched.peak_bytes / 2**30, 2)
    if not failed:
        tidy(running, seconds=seconds, peak_memory_gib=peak).replace(out / EXECUTED)
        return Outcome(seconds, peak)
    cell, said = _last_cell(running)
    _keep(running, out / HALF)
    return Outcome(seconds, peak, f"{source.stem} failed in cell {cell}: {failed}", said)


def stopped_in(out: Path) -> int:
    """The number of the cell (the 3 of In [3]) at which the notebook in `HALF` stopped; 0 before the first."""
    return _last_cell(out / HALF)[0]


def facts(out: Path) -> dict[str, float] | None:
    """`seconds` and `peak_memory_gib` of a stage's executed notebook; None if there is none."""
    notebook = _read(out / EXECUTED)
    return notebook.metadata.get("transvert") if notebook else None


def finished(source: Path, out: Path, parameters: dict[str, Any]) -> tuple[datetime, datetime] | None:
    """When a stage began and ended, if its executed notebook is `source` as it is now, with these parameters; or None.

    The run's name does not count, nor does what has changed in the package or the data.
    """
    executed, now = _read(out / EXECUTED), _read(source)
    if not executed or not now or "papermill" not in executed.metadata:
        return None
    made = executed.metadata.papermill
    had = {key: value for key, value in made.get("parameters", {}).items() if key != "run"}
    cells = [c.source for c in executed.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    if had != {key: value for key, value in parameters.items() if key != "run"} or made.get("exception"):
        return None
    if cells != [c.source for c in now.cells] or not made.get("end_time"):
        return None
    return datetime.fromisoformat(made.start_time), datetime.fromisoformat(made.end_time)


def tidy(path: Path, **facts: float) -> Path:
    """Drops from an executed notebook what only makes it large: saved widget state and bars that have run out.

    Args:
        path: the notebook.
        **facts: go into its metadata.
    """
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)
    if facts:
        notebook.metadata["transvert"] = facts
    for key in {"input_path", "output_path"} & set(notebook.metadata.get("papermill", {})):
        notebook.metadata.papermill[key] = Path(notebook.metadata.papermill[key]).name
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
                output.text = "".join(line + "\n" for line in _lines(output.text))
        if "outputs" in cell:
            cell.outputs = [o for o in outputs if o.output_type != "stream" or o.text]
    nbformat.write(notebook, path)
    return path


def _lines(text: str) -> list[str]:
    """What a terminal would show in the end: the last state of every line, without the empty ones."""
    lines = (line.rsplit("\r", 1)[-1].rstrip() for line in text.split("\n"))
    return [line for line in lines if line]


def _read(path: Path) -> Any:
    """A notebook, or None where there is none that can be read."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, nbformat.reader.NotJSONError):
        return None


def _keep(running: Path, half: Path) -> None:
    """Moves a notebook that stopped to its place, if it can be read at all."""
    if _read(running):
        tidy(running).replace(half)
    running.unlink(missing_ok=True)


def _last_cell(path: Path) -> tuple[int, str]:
    """The number of the last cell that began, as in In [3], its last lines of output, and the line that failed."""
    notebook = _read(path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"] if notebook else []
    begun = [cell for cell in cells if cell.metadata.get("papermill", {}).get("start_time")]
    if not begun:
        return 0, ""
    streams = [output.text for output in begun[-1].outputs if output.output_type == "stream"]
    said = _lines("".join(streams))[-_LAST_LINES:]
    for output in begun[-1].outputs:
        if output.output_type == "error":
            plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output.traceback))
            said += [f"> {line}" for line in re.findall(r"^-+> *\d+ (.*)$", plain, re.MULTILINE)[:1]]
    # A kernel that died has counted nothing.
    return begun[-1].execution_count or len(begun), "\n".join(said)


class _Watched:
    """What `watch_memory` has seen so far."""

    peak_bytes = 0
    exceeded = False


@contextlib.contextmanager
def watch_memory(limit: int = 0) -> Iterator[_Watched]:
    """Follows the resident memory of the processes that this one starts within the block, with all they start in turn.

    Args:
        limit: bytes; past it they are ended. 0 for none.
    """
    import psutil

    here = psutil.Process()
    others = {child.pid for child in here.children(recursive=True)}
    watched, done = _Watched(), threading.Event()
    seen: dict[int, float] = {}

    def follow() -> None:
        pause = 0.0
        while not done.wait(pause):
            began = time.perf_counter()
            family = [child for child in here.children(recursive=True) if child.pid not in others]
            held = 0
            for child in family:
                if began - seen.setdefault(child.pid, began) >= _SETTLED_S:
                    with contextlib.suppress(psutil.Error):
                        held += child.memory_info().rss
            watched.peak_bytes = max(watched.peak_bytes, held)
            if limit and held > limit:
                watched.exceeded = True
                for child in family:
                    with contextlib.suppress(psutil.Error):
                        child.kill()
            # Among thousands of processes a look takes long: never more than a twentieth of a core.
            pause = max(_SAMPLE_S, 20 * (time.perf_counter() - began))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield watched
    finally:
        done.set()
        thread.join()
