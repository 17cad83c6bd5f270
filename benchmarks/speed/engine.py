"""The interface of a DRR engine, and how to describe a view to a camera model."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.results import resident_bytes
from benchmarks.speed.scenes import with_pixels
from transvert.drr.geometry import View
from transvert.imaging.volume import Volume

THREADS = 2
SAMPLES = 500
"""Samples along each ray, for engines that march."""

Job = Callable[[], tuple[np.ndarray, float]]
"""Projects prepared views. Returns pictures (N, rows, columns) float32 and seconds."""


class Engine(ABC):
    """One DRR engine.

    Args:
        volume: attenuation per mm. Conversion to the engine's own format does not count as projection time.
        folder: for the engine's temporary files.
    """

    name = ""
    packages: tuple[str, ...] = ()
    does_parallel = True

    @abstractmethod
    def __init__(self, volume: Volume, folder: Path) -> None: ...

    @abstractmethod
    def prepare(self, views: Sequence[View], threads: int = THREADS) -> Job:
        """Prepares a job for views of one shape and beam, whose central ray goes through the middle of the picture."""

    def warm_up(self, views: Sequence[View]) -> None:
        """Projects 8 x 8 pixels, so that compiling and loading do not count."""
        self.prepare([with_pixels(view, 8) for view in views])()

    def memory(self, views: Sequence[View]) -> float:
        """Peak resident bytes during a projection above those before it; NaN where the system has no such figure."""
        try:
            idle = resident_bytes("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return float("nan")
        self.prepare(views)()
        return max(resident_bytes("VmHWM") - idle, 0)


def clocked(project: Callable[[], np.ndarray]) -> Job:
    """A job that times a projection."""

    def job() -> tuple[np.ndarray, float]:
        began = time.perf_counter()
        pictures = project()
        return pictures, time.perf_counter() - began

    return job


def middle(view: View) -> np.ndarray:
    """(3,) RAS mm, the middle of the detector."""
    rows, columns = view.shape
    return view.corner + view.row_step * ((rows - 1) / 2) + view.column_step * ((columns - 1) / 2)


def source_to_detector_mm(view: View) -> float:
    """Distance from source to detector in mm; 0 for a parallel view."""
    return 0.0 if view.source is None else float((middle(view) - view.source) @ view.direction)


def as_seen_from_the_source(views: Sequence[View]) -> tuple[list[View], int]:
    """Views that a rotated camera can take, and the step that restores the order of their pictures' columns.

    The step is -1 for a left lateral view, which shows the detector from behind.
    """
    if np.cross(views[0].column_step, views[0].row_step) @ views[0].direction > 0:
        return list(views), 1
    mirrored = [
        replace(view, corner=view.corner + (view.shape[1] - 1) * view.column_step, column_step=-view.column_step)
        for view in views
    ]
    return mirrored, -1
