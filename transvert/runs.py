"""Run folders, and the record `run.json` of how each step was made."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
import resource
import subprocess
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from transvert import __version__
from transvert.io import InputError, atomic_path, sha256, write_json

STAGES = ("01_drr_synthesis", "02_train_transvert", "03_evaluate_dice", "04_clinical_reconstruction")
_PACKAGES = ("torch", "numpy", "scipy", "monai", "numba", "nibabel", "scikit-image")


def runs_folder() -> Path:
    """The folder of all runs: TRANSVERT_RUNS, or `runs/` of the checkout, or `runs/` of the working directory."""
    if chosen := os.environ.get("TRANSVERT_RUNS"):
        return Path(chosen).expanduser()
    checkout = Path(__file__).parents[1]
    return (checkout if (checkout / "pyproject.toml").exists() else Path.cwd()) / "runs"


def run_folder(run: str) -> Path:
    """The folder of a run; a run of a sweep has a name of two parts, "run/values"."""
    if not isinstance(run, str):
        raise InputError(f"The run {run} must be text; write it in quotes.")
    if not all(re.fullmatch(r"\w[\w.,=+-]*", part) for part in run.split("/")):
        raise InputError(f"The run {run!r} must be letters, digits and '._,=+-', since it names a folder; rename it.")
    return runs_folder() / run


def versions() -> dict[str, str]:
    """Versions of this package, Python, and the packages that results depend on."""
    found = {"transvert": __version__, "python": platform.python_version()}
    return found | {name: metadata.version(name) for name in _PACKAGES}


@dataclass
class Stage:
    """One step of one run, with the name of one of `STAGES`: its folder and its record."""

    run: str
    name: str
    parameters: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)
    _began: float = field(default_factory=time.time)

    @property
    def folder(self) -> Path:
        """`runs/<run>/<name>`."""
        return run_folder(self.run) / self.name

    def need(self, stage: str, *parts: str) -> Path:
        """The path of what an earlier stage wrote; if it is absent, an InputError names the notebook to run first."""
        path = self.folder.parent / stage / Path(*parts)
        if not path.exists():
            missing, hint = "/".join((stage, *parts)), f'run notebooks/{stage}.ipynb with run="{self.run}" first.'
            raise InputError(f"The run '{self.run}' has no {missing}: {hint}")
        return path

    def read(self, *paths: Path, **named: str | Path) -> None:
        """Records the SHA-256 of input files: by path, or by a given name where the file's own may name a patient."""
        self.inputs |= {f"{path.parent.name}/{path.name}": sha256(path) for path in paths}
        self.inputs |= {name: sha256(path) for name, path in named.items() if path}

    def finish(self, **results: Any) -> list[Path]:
        """Writes `run.json` with the given results, and returns every file of the stage's folder."""
        record = {
            "schema": "transvert-run/1",
            "run": self.run,
            "stage": self.name,
            "parameters": portable(self.parameters),
            "results": portable(results),
            "inputs_sha256": self.inputs,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._began)),
            "seconds": round(time.time() - self._began, 1),
            "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
            "versions": versions(),
            "commit": _commit(),
        }
        write_json(self.folder / "run.json", record)
        return sorted(path for path in self.folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def portable(value: Any) -> Any:
    """A value that is safe to record: absolute paths shortened to their last part, NaN and infinity as None."""
    if isinstance(value, dict):
        return {key: portable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [portable(part) for part in value]
    if isinstance(value, str | Path):
        return Path(value).name if Path(value).is_absolute() else str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _commit() -> str | None:
    """The checkout's commit, with "-dirty" if files differ from it; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.check_output(
            command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True, timeout=10
        ).strip()
    return None


def write_table(path: str | Path, table: pd.DataFrame) -> Path:
    """Writes a table as CSV, atomically, with six significant digits."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    return Path(path)
