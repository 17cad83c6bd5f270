"""Digitally reconstructed radiographs on the CPU: exact ray integrals through a volume for any view.

The integrals are Joseph's (see `kernels`), on the volume's own grid, also an oblique or anisotropic one: it is never
resampled. `cast` chooses the fastest kernel that is exact for a view: a sum along an axis for parallel rays along it, a
kernel for picture columns that follow the grid's last axis (all named views of an unrotated CT), or a kernel for any pose.
`differentiable` computes the same integrals in torch, with gradients, on the CPU or a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np

from transvert import progress
from transvert.drr import kernels
from transvert.drr.geometry import View
from transvert.imaging.volume import Volume, check_same_grid
from transvert.io import InputError

# Linear attenuation of water: NIST mass attenuation tables (Hubbell and Seltzer 2004) at 1 g/cm3.
_WATER_KEV = (40.0, 50.0, 60.0, 80.0, 100.0, 150.0)
_WATER_PER_CM = (0.2683, 0.2269, 0.2059, 0.1837, 0.1707, 0.1505)

_DRIFT = 1e-4  # Voxels: the largest deviation over the whole volume of a direction that counts as along an axis.
_ONE_AT_A_TIME = threading.Lock()  # Some numba threading layers do not allow concurrent calls of a parallel kernel.


def attenuation(volume_hu: np.ndarray, energy_kev: float = 70.0) -> np.ndarray:
    """Linear attenuation by the definition of the Hounsfield unit: every tissue is scaled from water.

    Args:
        volume_hu: any shape, HU.
        energy_kev: energy of a monochromatic beam, 40 to 150 keV. 70 represents the 80-90 kV of a spine radiograph
            (this companion's choice).

    Returns:
        float32 of the same shape, per mm, not negative.

    Raises:
        InputError: an energy outside the table.
    """
    if not _WATER_KEV[0] <= energy_kev <= _WATER_KEV[-1]:
        raise InputError(f"The beam energy {energy_kev:g} keV is outside {_WATER_KEV[0]:g} to {_WATER_KEV[-1]:g} keV.")
    water_per_cm = np.exp(np.interp(np.log(energy_kev), np.log(_WATER_KEV), np.log(_WATER_PER_CM)))
    per_mm = np.array(volume_hu, np.float32)
    per_mm += 1000
    per_mm *= np.float32(water_per_cm / 10 / 1000)
    return np.maximum(per_mm, 0, out=per_mm)


def cast(volume: Volume, view: View) -> np.ndarray:
    """The line integral of a volume along the ray of each pixel, from face to face of the volume.

    Rays start at the source of a cone view but do not end at the detector.

    Args:
        volume: (X, Y, Z) float32 (other types are copied), any grid. Attenuation per mm for a radiograph, 0 and 1 for
            the thickness of a mask.

    Returns:
        (rows, columns) float32, the volume's unit times mm.

    Raises:
        InputError: not a 3D volume, a degenerate affine, a source inside the volume, no ray that meets it, or values
            that are not finite.
    """
    return cast_batch(volume, [view])[0]


def cast_batch(volume: Volume, views: Sequence[View]) -> np.ndarray:
    """The pictures (views, rows, columns) of several views of one shape, as `cast` makes them.

    Raises:
        InputError: as `cast`, with the view's name; or no views, or views of different shapes.
    """
    shapes = sorted({view.shape for view in views})
    if len(shapes) != 1:
        raise InputError(f"A batch needs views of one shape, but these have {shapes or 'none'}; cast them one by one.")
    poses, cone, metric = _poses(volume, views)
    data = np.ascontiguousarray(volume.data, np.float32)
    images = np.zeros((len(views), *shapes[0]), np.float32)
    hits = np.zeros(len(views), int)
    names = [_kernel_name(pose, is_cone, data.shape, shapes[0]) for pose, is_cone in zip(poses, cone, strict=True)]
    with _ONE_AT_A_TIME:
        for name, kernel in (("upright", kernels.upright), ("any", kernels.joseph)):
            chosen = np.flatnonzero(np.array(names) == name)
            if len(chosen):
                pictures = images if len(chosen) == len(views) else np.zeros((len(chosen), *shapes[0]), np.float32)
                hits[chosen] = _run(kernel, data, poses[chosen], cone[chosen], metric, pictures)
                if pictures is not images:
                    images[chosen] = pictures
        for i in np.flatnonzero(np.array(names) == "along"):
            hits[i] = _along_axis(data, poses[i], metric, images[i])
    check_result(views, hits, bool(np.isfinite(images).all()))
    return images


def cast_parts(volume: Volume, parts: Volume, view: View) -> dict[int, np.ndarray]:
    """One picture per part of a volume in one pass, such as one per vertebra and one for everything else.

    The pictures add up to that of `cast`. For a CT and its label mask, all pictures but that of label 0 add up to the bone.

    Args:
        volume: as in `cast`.
        parts: (X, Y, Z) integers from 0 on the volume's grid, such as a label mask; at most 256 different ones.

    Returns:
        For each number in `parts`: (rows, columns) float32, the volume's unit times mm.

    Raises:
        InputError: as `cast`; or parts that lie on another grid, are too many, or are not whole numbers.
    """
    check_same_grid(volume, parts, ("volume", "parts"))
    if parts.data.dtype.kind not in "bui":
        raise InputError(f"The parts are {parts.data.dtype} numbers; give whole ones, such as the labels of a mask.")
    numbers, index = _compact(parts.data)
    poses, cone, metric = _poses(volume, [view])
    data = np.ascontiguousarray(volume.data, np.float32)
    images = np.zeros((len(numbers), *view.shape), np.float32)
    with _ONE_AT_A_TIME:
        hits = _run(kernels.joseph_parts, data, index, poses, cone, metric, images)
    check_result([view], [hits], bool(np.isfinite(images).all()))
    return dict(zip(numbers.tolist(), images, strict=True))


def check_input(volume: Volume, view: View) -> None:
    """Raises InputError unless the volume is valid and the view's source is outside of it."""
    _poses(volume, [view])


def check_result(views: Sequence[View], hits: Sequence[int] | np.ndarray, finite: bool) -> None:
    """Raises InputError unless rays of each view hit the volume and all integrals are finite."""
    for view, hit in zip(views, hits, strict=True):
        if not hit:
            raise InputError(
                f"Every ray of the view '{view.name}' misses the volume; check isocentre, shape and pixel size."
            )
    if not finite:
        raise InputError("The volume has NaN or infinite voxels; fill them (air is -1000 HU) before casting rays.")


def _poses(volume: Volume, views: Sequence[View]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arguments of the kernels: poses (V, 4, 3) in voxels, cone (V,) int64, 0 to 2, and the metric (3, 3)."""
    if volume.data.ndim != 3 or not volume.data.size:
        raise InputError(f"The volume has the shape {volume.data.shape}; three axes that are not empty are needed.")
    matrix = np.asarray(volume.affine, float)[:3, :3]
    # Relative to the voxel size, so that micrometre voxels are valid too.
    if not np.isfinite(volume.affine).all() or abs(np.linalg.det(matrix)) <= 1e-6 * volume.spacing_mm.prod():
        raise InputError("The volume's affine is degenerate: its three axes need a length and must not lie in a plane.")
    vectors, cone = np.empty((len(views), 4, 3)), np.empty(len(views), np.int64)
    for i, view in enumerate(views):
        cone[i] = ("parallel", "cone", "slot").index(view.projection)
        towards = view.direction if view.source is None else view.corner - view.source
        origin = view.corner if view.source is None else view.source
        vectors[i] = origin - volume.affine[:3, 3], towards, view.row_step, view.column_step
    poses = vectors @ np.linalg.inv(matrix).T
    ends = np.array(volume.data.shape) - 0.5
    for view, (start, _, row_step, _), is_cone in zip(views, poses, cone, strict=True):
        sources = start + np.arange(view.shape[0] if view.slot else 1)[:, None] * row_step
        if is_cone and ((sources >= -0.5) & (sources <= ends)).all(axis=1).any():
            raise InputError(
                f"The source of the view '{view.name}' is inside the volume; move it away from the patient."
            )
    return poses, cone, matrix.T @ matrix


def _kernel_name(pose: np.ndarray, cone: int, volume: tuple[int, ...], picture: tuple[int, int]) -> str:
    """The fastest kernel that is exact for a view: "along" an axis, "upright" in the grid, or "any" pose."""
    _, towards, row_step, column_step = pose
    axis = int(np.abs(towards).argmax())
    if not cone and np.delete(np.abs(towards), axis).max() * volume[axis] < _DRIFT * abs(towards[axis]):
        return "along"
    if np.abs(row_step[:2]).max() * picture[0] > _DRIFT or not abs(row_step[2]) > 0:
        return "any"
    steps = np.linspace(0, picture[1] - 1, picture[1])[:, None] * column_step if cone else np.zeros((1, 3))
    last_row = (picture[0] - 1) * row_step[2] if cone == 1 else 0.0
    columns = towards + steps
    most_upwards = np.maximum(np.abs(columns[:, 2]), np.abs(columns[:, 2] + last_row))
    return "upright" if (most_upwards <= np.abs(columns[:, :2]).max(axis=1)).all() else "any"


def _along_axis(data: np.ndarray, pose: np.ndarray, metric: np.ndarray, image: np.ndarray) -> int:
    """Fills the picture of parallel rays along one index axis, which all sample the same sums."""
    start, towards, row_step, column_step = pose
    axis = int(np.abs(towards).argmax())
    plane = [i for i in range(3) if i != axis]
    inner = int(np.prod(data.shape[axis + 1 :]))
    sums = _run(kernels.sum_lines, data.reshape(-1, data.shape[axis], inner)).reshape([data.shape[i] for i in plane])
    # Rays are sampled where they cross the middle of the volume, so that their small drift averages out. A tilt of the
    # detector moves pixels only along the rays, so it is removed from the steps.
    slope = towards / towards[axis]
    middle = start + slope * ((data.shape[axis] - 1) / 2 - start[axis])
    row_step, column_step = row_step - slope * row_step[axis], column_step - slope * column_step[axis]
    mm = float(np.sqrt(metric[axis, axis]))
    return _run(kernels.sample_plane, sums, middle[plane], row_step[plane], column_step[plane], mm, image)


def _compact(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different numbers of an array, ascending, and the index of each voxel's number among them, uint8."""
    labels = labels.view(np.uint8) if labels.dtype == bool else labels
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > 65535:
        raise InputError(f"The parts have numbers from {low} to {high}; use 0 to 65535.")
    present = np.zeros(high + 1, bool)
    present[labels] = True
    numbers = np.flatnonzero(present)
    if len(numbers) > 256:
        raise InputError(f"There are {len(numbers)} different parts; at most 256 are possible.")
    places = np.zeros(high + 1, np.uint8)
    places[numbers] = np.arange(len(numbers))
    return numbers, np.ascontiguousarray(places[labels])


def _run(kernel: Any, *arguments: Any) -> Any:
    """Calls a kernel. Its first call on a computer compiles and caches it, with a notice."""
    kinds = tuple(numba.typeof(argument) for argument in arguments)
    if kinds not in kernel.overloads:
        with progress.notice("Compiling a ray kernel for this computer; done once, about ten seconds.", after_s=2):
            kernel.compile(kinds)
    return kernel(*arguments)
