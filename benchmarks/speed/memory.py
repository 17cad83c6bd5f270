"""Peak memory of one projection in its own process: `python -m benchmarks.speed.memory ENGINE SCENE FOLDER`."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.speed.engines import ENGINES
from benchmarks.speed.scenes import make_scenes, read_volume
from transvert.imaging.volume import Volume


def main(engine_name: str, scene_name: str, folder: Path) -> None:
    # If memory runs out, the system ends this process first.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    volume = read_volume(folder)
    (scene,) = (scene for scene in make_scenes(volume) if scene.name == scene_name)
    (make_engine,) = (engine for engine in ENGINES if engine.name == engine_name)

    # Compile and start threads with another volume: a copy of the measured volume counts as memory of its projection.
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
