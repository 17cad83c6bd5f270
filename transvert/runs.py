"""What a run leaves behind: its folders, and the record of how each step was made."""

from __future__ import annotations

import math
import os
import platform
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
_PACKAGES = ("torch", "numpy", "scipy", "monai", "numba", "nibabel", "scikit-image", "lightning")


def runs_folder() -> Path:
    """Where runs are kept: TRANSVERT_RUNS, else `runs/` of the checkout, else of the working directory."""
    said = os.environ.get("TRANSVERT_RUNS")
    if said:
        return Path(said).expanduser()
    checkout = Path(__file__).parents[1]
    return (checkout if (checkout / "pyproject.toml").exists() else Path.cwd()) / "runs"


def versions() -> dict[str, str]:
    """Of this package, Python, and the packages that figures depend on."""
    found = {"transvert": __version__, "python": platform.python_version()}
    return found | {name: metadata.version(name) for name in _PACKAGES}


@dataclass
class Stage:
    """One step of one run: its folder, what it wrote, and the record of how.

    Attributes:
        run: the run's name.
        name: one of `STAGES`.
        parameters: what the step was called with.
    """

    run: str
    name: str
    parameters: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)
    _began: float = field(default_factory=time.time)

    @property
    def folder(self) -> Path:
        """`runs/<run>/<name>`."""
        return runs_folder() / self.run / self.name

    def need(self, stage: str, *parts: str) -> Path:
        """A file or folder that an earlier step of the same run left.

        Raises:
            InputError: it is not there; the sentence names the notebook to run first.
        """
        path = runs_folder() / self.run / stage / Path(*parts)
        if not path.exists():
            raise InputError(
                f"The run '{self.run}' has no {'/'.join((stage, *parts))}: run notebooks/{stage}.ipynb with run=\"{self.run}\" first."
            )
        return path

    def read(self, *paths: Path) -> None:
        """Notes the SHA-256 of input files."""
        self.inputs |= {f"{path.parent.name}/{path.name}": sha256(path) for path in paths}

    def finish(self, **results: Any) -> list[Path]:
        """Writes `run.json` and returns every file of the step's folder.

        Args:
            **results: numbers worth finding again.
        """
        write_json(
            self.folder / "run.json",
            {
                "schema": "transvert-run/1",
                "run": self.run,
                "stage": self.name,
                "parameters": _portable(self.parameters),
                "results": _portable(results),
                "inputs_sha256": self.inputs,
                "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._began)),
                "seconds": round(time.time() - self._began, 1),
                "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
                "versions": versions(),
                "commit": _commit(),
            },
        )
        return sorted(p for p in self.folder.rglob("*") if p.is_file() and not p.name.startswith("."))


def _portable(value: Any) -> Any:
    """A value as a record may carry it: absolute paths cut to their last part, None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _portable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(part) for part in value]
    if isinstance(value, str | Path):
        return Path(value).name if Path(value).is_absolute() else str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _commit() -> str | None:
    """The checkout's commit, marked where files differ from it; None outside a checkout."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()


def write_table(path: str | Path, table: pd.DataFrame) -> Path:
    """Writes a table as CSV, atomically; figures with six significant digits."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    return Path(path)
