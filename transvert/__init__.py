"""transvert: a reproducible companion to *Inferring the 3D Standing Spine Posture from 2D Radiographs*.

Two films and their landmarks become a spine::

    import transvert

    spine = transvert.reconstruct("ap.dcm", "lateral.dcm", "landmarks.json")
    transvert.write_reconstruction(spine, "spine")
"""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:
    from transvert import drr as drr
    from transvert.clinical.landmarks import read_landmarks as read_landmarks
    from transvert.clinical.radiograph import read_radiograph as read_radiograph
    from transvert.clinical.reconstruct import posture_table as posture_table
    from transvert.clinical.reconstruct import reconstruct as reconstruct
    from transvert.clinical.report import write_reconstruction as write_reconstruction
    from transvert.model.networks import load_network as load_network

# Imported on first use, so that `import transvert` and the command line's help don't wait for PyTorch.
_HOMES = {
    "reconstruct": "transvert.clinical.reconstruct",
    "posture_table": "transvert.clinical.reconstruct",
    "read_radiograph": "transvert.clinical.radiograph",
    "read_landmarks": "transvert.clinical.landmarks",
    "load_network": "transvert.model.networks",
    "write_reconstruction": "transvert.clinical.report",
}
__all__ = [
    "__version__",
    "drr",
    "load_network",
    "posture_table",
    "read_landmarks",
    "read_radiograph",
    "reconstruct",
    "write_reconstruction",
]


def _find_compile_cache() -> None:
    """Gives numba a folder of this process where it finds none: neither the package nor the home can be written."""
    if "NUMBA_CACHE_DIR" in os.environ or os.access(Path(__file__).parent, os.W_OK):
        return
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "numba").expanduser()
        cache.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=cache).close()
    except (OSError, RuntimeError):
        os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="transvert-")
        atexit.register(shutil.rmtree, os.environ["NUMBA_CACHE_DIR"], ignore_errors=True)


_find_compile_cache()


def __getattr__(name: str) -> Any:
    if name == "drr":
        return importlib.import_module("transvert.drr")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'transvert' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
