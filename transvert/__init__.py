"""transvert: a reproducible companion to *Inferring the 3D Standing Spine Posture from 2D Radiographs*.

import transvert

spine = transvert.reconstruct("ap.dcm", "lateral.dcm", "landmarks.json")
spine.posture["measures"]["thoracic_kyphosis"]["value"]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from transvert import drr as drr
    from transvert.clinical.landmarks import read_landmarks as read_landmarks
    from transvert.clinical.radiograph import read_radiograph as read_radiograph
    from transvert.clinical.reconstruct import reconstruct as reconstruct
    from transvert.model.networks import load_network as load_network

# Imported on first use, so that `import transvert` and the command line's help don't wait for PyTorch.
_HOMES = {
    "reconstruct": "transvert.clinical.reconstruct",
    "read_radiograph": "transvert.clinical.radiograph",
    "read_landmarks": "transvert.clinical.landmarks",
    "load_network": "transvert.model.networks",
}
__all__ = ["__version__", "drr", "load_network", "read_landmarks", "read_radiograph", "reconstruct"]


def __getattr__(name: str) -> Any:
    if name == "drr":
        return importlib.import_module("transvert.drr")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'transvert' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
