"""The peak memory of one projection, in a process of its own: `python -m benchmarks.memory ENGINE SCENE FOLDER` prints bytes."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.engines import ENGINES
from benchmarks.scenes import make_scenes, read_volume
from transvert.imaging.volume import Volume


def main(engine_name: str, scene_name: str, folder: Path) -> None:
    # Should memory run out, this process is the one to go.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    volume = read_volume(folder)
    (scene,) = (scene for scene in make_scenes(volume) if scene.name == scene_name)
    (make_engine,) = (engine for engine in ENGINES if engine.name == engine_name)

    # Code is compiled and threads are started on another volume: what a first projection does with its volume, such as
    # a copy in another order, belongs to its memory.
    with tempfile.TemporaryDirectory() as other:
        make_engine(_small(volume), Path(other)).warm_up(scene.views)
    engine = make_engine(volume, folder)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    print(engine.memory(scene.views))


def _small(volume: Volume) -> Volume:
    """A volume of 8 x 8 x 8 voxels in the same box."""
    affine = volume.affine.copy()
    affine[:3, :3] *= np.array(volume.data.shape) / 8
    affine[:3, 3] = volume.corners()[0] + affine[:3, :3].sum(axis=1) / 2
    return Volume(np.ones((8, 8, 8), np.float32), affine)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
