"""What all engines share: the interface, and how a view looks to a camera."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.scenes import with_pixels
from transvert.drr.geometry import View
from transvert.imaging.volume import Volume

THREADS = 2
SAMPLES = 500
"""Along each ray, for the engines that march."""

Job = Callable[[], tuple[np.ndarray, float]]
"""Projects prepared views: (N, rows, columns) float32 and seconds."""


class Engine(ABC):
    """One way to project.

    Args:
        volume: attenuation per mm. Bringing it into the engine's own format is no part of a projection.
        folder: for files that the engine needs.
    """

    name = ""
    packages: tuple[str, ...] = ()
    does_parallel = True

    @abstractmethod
    def __init__(self, volume: Volume, folder: Path) -> None: ...

    @abstractmethod
    def prepare(self, views: Sequence[View], threads: int = THREADS) -> Job:
        """Views of one shape and beam, with the central ray through the middle of the picture, as a job."""

    def warm_up(self, views: Sequence[View]) -> None:
        """Projects 8 x 8 pixels, so that what is compiled or loaded once is."""
        self.prepare([with_pixels(view, 8) for view in views])()

    def memory(self, views: Sequence[View]) -> float:
        """Peak resident bytes during a projection above those before it; NaN where the system can't tell."""
        try:
            idle = resident_bytes("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return float("nan")
        self.prepare(views)()
        return max(resident_bytes("VmHWM") - idle, 0)


def resident_bytes(field: str) -> int:
    """What this process has resident, "VmRSS", or has had at most, "VmHWM". Linux only.

    Not getrusage: its peak begins with that of the process that started this one.

    Raises:
        OSError: the system doesn't tell.
    """
    (kilobytes,) = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024


def clocked(project: Callable[[], np.ndarray]) -> Job:
    def job() -> tuple[np.ndarray, float]:
        began = time.perf_counter()
        pictures = project()
        return pictures, time.perf_counter() - began

    return job


def middle(view: View) -> np.ndarray:
    rows, columns = view.shape
    return view.corner + view.row_step * ((rows - 1) / 2) + view.column_step * ((columns - 1) / 2)


def source_to_detector_mm(view: View) -> float:
    return 0.0 if view.source is None else float((middle(view) - view.source) @ view.direction)


def as_seen_from_the_source(views: Sequence[View]) -> tuple[list[View], int]:
    """Views that a rotated camera can take, and the step that brings their pictures' columns back into order.

    A left lateral is -1: it shows what the detector sees from behind.
    """
    if np.cross(views[0].column_step, views[0].row_step) @ views[0].direction > 0:
        return list(views), 1
    mirrored = [
        replace(view, corner=view.corner + (view.shape[1] - 1) * view.column_step, column_step=-view.column_step)
        for view in views
    ]
    return mirrored, -1
