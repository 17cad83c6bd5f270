"""The DRR engine plastimatch, a command line program."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.speed.engine import THREADS, Engine, Job, as_seen_from_the_source, middle, source_to_detector_mm
from benchmarks.speed.scenes import with_pixels
from transvert.drr.geometry import View
from transvert.imaging.volume import Volume


class Plastimatch(Engine):
    """One process per view, timed by the ray casting time that plastimatch prints."""

    name = "plastimatch exact"
    packages = ("plastimatch",)
    does_parallel = False
    algorithm = "exact"

    def __init__(self, volume: Volume, folder: Path) -> None:
        self.folder = folder
        self.program = Path(sys.executable).with_name("plastimatch")
        self.file = folder / f"{'x'.join(map(str, volume.data.shape))}.mha"
        if not self.file.exists():
            _write_meta_image(volume, self.file)

    def prepare(self, views: Sequence[View], threads: int = THREADS) -> Job:
        views, step = as_seen_from_the_source(views)
        commands = [self._command(view) for view in views]
        picture = self.folder / f"{self.algorithm}-0000.raw"

        def project() -> tuple[np.ndarray, float]:
            pictures, seconds = [], 0.0
            for command in commands:
                said = self._run(command, threads)
                seconds += float(re.findall(r"Total time: ([\d.]+)", said)[0])
                seconds -= float(re.findall(r"I/O time: ([\d.]+)", said)[0])
                pictures.append(np.fromfile(picture, np.float32).reshape(views[0].shape))
            return np.stack(pictures)[..., ::step] * 10, seconds  # It integrates over cm.

        return project

    def warm_up(self, views: Sequence[View]) -> None:
        """Does nothing: each view is a new process."""

    def memory(self, views: Sequence[View]) -> float:
        """Peak of the process above its peak for 8 x 8 pixels, which only reads the volume."""
        views, _ = as_seen_from_the_source(views[:1])
        return max(self._peak(views[0]) - self._peak(with_pixels(views[0], 8)), 0)

    def _peak(self, view: View) -> int:
        # A small process in between, since a child's peak includes the memory of the process that forked it.
        between = "import resource, subprocess, sys\nsubprocess.run(sys.argv[1:], check=True, capture_output=True)\n"
        between += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        return 1024 * int(self._run([sys.executable, "-S", "-c", between, *self._command(view)], THREADS))

    def _run(self, command: list[str], threads: int) -> str:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    def _command(self, view: View) -> list[str]:
        (rows, columns), (row_mm, column_mm) = view.shape, view.pixel_mm
        length = source_to_detector_mm(view)
        # Coordinates are LPS. Any point of the central ray can be the isocentre: here the middle of the detector.
        options = {
            "--algorithm": self.algorithm,
            "--hu-conversion": "none",
            "--output-format": "raw",
            "--sad": f"{length}",
            "--sid": f"{length}",
            "--isocenter": _lps(middle(view)),
            "--nrm": _lps(-view.direction),
            "--vup": _lps(-view.row_step / row_mm),
            "--dim": f"{rows} {columns}",
            "--detector-size": f"{rows * row_mm} {columns * column_mm}",
            "--output": str(self.folder / f"{self.algorithm}-"),
        }
        return [str(self.program), "drr", *(part for pair in options.items() for part in pair), str(self.file)]


class PlastimatchUniform(Plastimatch):
    name = "plastimatch uniform"
    algorithm = "uniform"


def _lps(vector: np.ndarray) -> str:
    return " ".join(f"{value:.9g}" for value in vector * [-1, -1, 1])


def _write_meta_image(volume: Volume, path: Path) -> None:
    """Writes the volume in LPS order, since plastimatch ignores a volume's direction."""
    data = np.ascontiguousarray(volume.data[::-1, ::-1].T)
    origin = volume.world(np.array([volume.data.shape[0] - 1, volume.data.shape[1] - 1, 0]))
    header = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "Offset": _lps(origin),
        "ElementSpacing": " ".join(map(str, volume.spacing_mm)),
        "DimSize": " ".join(map(str, volume.data.shape)),
        "ElementType": "MET_FLOAT",
        "ElementDataFile": "LOCAL",
    }
    text = "".join(f"{key} = {value}\n" for key, value in header.items())
    path.write_bytes(text.encode() + data.tobytes())
