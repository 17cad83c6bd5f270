"""Writes a benchmark's table and the measured part of its page, and describes the machine it ran on."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from datetime import date
from importlib import metadata
from pathlib import Path

import pandas as pd

from transvert.io import atomic_path
from transvert.runs import write_table

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
"""A script replaces what stands between these lines of a page. The prose around them is written by hand."""


def write_results(folder: Path, name: str, table: pd.DataFrame, measured: str) -> None:
    """Writes `<name>.csv` and the measured part of `<name>.md` into a folder, each atomically.

    Args:
        folder: where both files are.
        name: their name without suffix.
        table: the results.
        measured: Markdown with the figures, without a title.
    """
    write_table(folder / f"{name}.csv", table)
    write_page(folder / f"{name}.md", measured)


def write_page(path: Path, measured: str) -> None:
    """Replaces the measured part of a page, or creates a page with nothing else."""
    block = f"{BEGIN}\n\n{measured.strip()}\n\n{END}"
    page = path.read_text(encoding="utf-8") if path.exists() else f"# {path.stem}\n\n{block}\n"
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    with atomic_path(path) as temporary:
        temporary.write_text(before + block + after, encoding="utf-8")


def read_measured(path: Path) -> str:
    """The measured part of a page."""
    return path.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()


def markdown_table(heads: Iterable[str], rows: Iterable[Iterable[object]], text_columns: int = 1) -> str:
    """A Markdown table: the first columns hold text, the others are aligned to the right."""
    heads = list(heads)
    lines = [" | ".join(heads), "|".join("---" if n < text_columns else "---:" for n in range(len(heads)))]
    lines += [" | ".join(map(str, row)) for row in rows]
    return f"| {lines[0]} |\n|{lines[1]}|\n" + "".join(f"| {line} |\n" for line in lines[2:])


def describe_run(load: float, packages: Iterable[str] = ()) -> str:
    """One line on the date, the machine and the package versions of a run.

    Args:
        load: `os.getloadavg()[0]` before the run.
        packages: distributions whose versions matter.
    """
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in packages)
    return f"{date.today().isoformat()}. {describe_machine(load)}." + (f" {versions}." if versions else "")


def describe_machine(load: float) -> str:
    """Processor, usable cores, memory, system, and how many cores were busy before the run."""
    cpu, memory = platform.processor() or platform.machine(), ""
    try:
        cpu = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())[0]
        (kilobytes,) = re.findall(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
        memory = f"{int(kilobytes) / 2**20:.0f} GiB, "
    except (OSError, IndexError, ValueError):
        pass  # Not Linux.
    return f"{cpu}, {usable_cores()} cores, {memory}{platform.system()}; {load:.1f} cores busy before the run"


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resident_bytes(field: str) -> int:
    """Resident memory of this process: now ("VmRSS") or at its peak ("VmHWM"). Linux only.

    `getrusage` would not do: its peak starts with that of the parent process.

    Raises:
        OSError: the system has no `/proc/self/status`.
    """
    (kilobytes,) = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024
