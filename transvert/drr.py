"""Digitally reconstructed radiographs: exact ray integrals through a volume for any view, on the CPU.

One ray kernel serves parallel and cone views and grids of any orientation. It is Joseph's method (IEEE Trans. Med.
Imaging 1982): a ray crosses the volume slice by slice along the index axis it follows most; in each slice the value
is bilinear in the other two axes and counts with the length of the ray within that slice.

The volume ends at the outer faces of its voxels. Between the outer voxel centres and the faces the outer voxel's
value holds, beyond the faces there is nothing, and a slice that a ray enters or leaves through a side counts with the
part the ray passes. So a uniform box integrates to value times chord, up to the rounding of float32.
"""

from __future__ import annotations

import logging
import threading

import numba
import numpy as np
from scipy import ndimage

from transvert.files import InputError
from transvert.geometry import View
from transvert.volume import Volume

_LOG = logging.getLogger("transvert")

_WATER_KEV = (40.0, 50.0, 60.0, 80.0, 100.0, 150.0)
_WATER_PER_CM = (0.2683, 0.2269, 0.2059, 0.1837, 0.1707, 0.1505)
"""Water's linear attenuation: NIST tables of X-ray mass attenuation (Hubbell and Seltzer 2004) at 1 g/cm3."""

_EDGE = 1e-7  # Voxels. A ray along a face must not come and go with the last bit of its position.
_DRIFT = 1e-4  # Voxels. A parallel ray that strays less over the whole volume counts as running along the axis.
_BLOCK = 1024  # Rays: a few picture columns, which pass the same part of a slice while it is in the cache.
_ONE_AT_A_TIME = (
    threading.Lock()
)  # Each call uses all threads, and not every numba backend may be called twice at once.


def attenuation(volume_hu: np.ndarray, energy_kev: float = 70.0) -> np.ndarray:
    """Linear attenuation by the definition of the Hounsfield unit, every tissue scaled from water.

    Args:
        volume_hu: any shape, HU.
        energy_kev: of a single-energy beam, 40 to 150; 70 stands for a spine film's 80-90 kV (this companion's choice).

    Returns:
        float32, the same shape, per mm, never below 0.

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

    Rays are lines: what lies behind a detector that cuts the volume counts too, what lies behind a source does not.

    Args:
        volume: float32 (other types are copied), any grid. Attenuation per mm for a radiograph, 0 and 1 for the
            thickness of a mask.
        view: parallel or cone.

    Returns:
        (rows, columns) float32, the volume's unit times mm.

    Raises:
        InputError: no 3D volume, a degenerate affine, the source within the volume, rays that all miss it, or values
            that are not finite.
    """
    to_index = _to_index(volume)
    data = np.ascontiguousarray(volume.data, np.float32)
    cone = view.source is not None
    origin = view.corner if view.source is None else view.source
    start = to_index @ (origin - volume.affine[:3, 3])
    towards = to_index @ (view.direction if view.source is None else view.corner - view.source)
    down, across = to_index @ view.down, to_index @ view.across
    metric = volume.affine[:3, :3].T @ volume.affine[:3, :3].astype(float)
    if cone and ((start >= -0.5) & (start <= np.array(data.shape) - 0.5)).all():
        raise InputError(
            f"The source of the view '{view.name}' stands inside the volume; move it away from the patient."
        )

    axis = int(np.abs(towards).argmax())
    image = np.zeros(view.shape, np.float32)
    with _ONE_AT_A_TIME:
        if not cone and np.delete(np.abs(towards), axis).max() * data.shape[axis] < _DRIFT * abs(towards[axis]):
            hits = _along_axis(data, axis, start, towards, down, across, metric, image)
        else:
            _announce(_joseph)
            hits = _joseph(data, start, towards, down, across, cone, metric, image)
    if not hits:
        raise InputError(
            f"Every ray of the view '{view.name}' misses the volume; check isocentre, shape and pixel size."
        )
    if not np.isfinite(image).all():
        raise InputError("The volume has NaN or infinite voxels; fill them (air is -1000 HU) before casting rays.")
    return image


def _to_index(volume: Volume) -> np.ndarray:
    """(3, 3) RAS mm to voxel steps, once the volume is one that rays can cross."""
    if volume.data.ndim != 3 or not volume.data.size:
        raise InputError(f"The volume has the shape {volume.data.shape}; rays need three axes that are not empty.")
    matrix = np.asarray(volume.affine, float)[:3, :3]
    # Relative to the voxel's size, so that micrometre voxels are no less of a volume.
    if not np.isfinite(volume.affine).all() or abs(np.linalg.det(matrix)) <= 1e-6 * volume.spacing_mm.prod():
        raise InputError("The volume's affine is degenerate: its three axes need a length and must not lie in a plane.")
    return np.linalg.inv(matrix)


def _along_axis(
    data: np.ndarray,
    axis: int,
    start: np.ndarray,
    towards: np.ndarray,
    down: np.ndarray,
    across: np.ndarray,
    metric: np.ndarray,
    image: np.ndarray,
) -> int:
    """What `_joseph` does for parallel rays along one index axis: every ray reads the same sums."""
    first, second = (i for i in range(3) if i != axis)
    _announce(_sums)
    inner = int(np.prod(data.shape[axis + 1 :]))
    sums = _sums(data.reshape(-1, data.shape[axis], inner)).reshape(data.shape[first], data.shape[second])
    # Where the rays cross the middle of the volume, so that what little they stray averages out.
    middle = start + towards * (((data.shape[axis] - 1) / 2 - start[axis]) / towards[axis])
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    where = [middle[i] + rows * down[i] + columns * across[i] for i in (first, second)]
    # The detector's own tilt moves pixels along the rays, which is no move across them.
    for n, i in enumerate((first, second)):
        where[n] -= (rows * down[axis] + columns * across[axis]) * (towards[i] / towards[axis])
    inside = np.ones(image.shape, bool)
    for positions, length in zip(where, sums.shape, strict=True):
        inside &= (positions >= -0.5 - _EDGE) & (positions <= length - 0.5 + _EDGE)
    sampled = ndimage.map_coordinates(sums, where, order=1, mode="nearest")
    np.multiply(sampled, np.sqrt(metric[axis, axis]), out=image, where=inside, casting="same_kind")
    return int(inside.sum())


def _announce(kernel: numba.core.dispatcher.Dispatcher) -> None:
    if not kernel.signatures:
        _LOG.info("Loading the ray kernel: its first use on a computer compiles it, which takes some seconds.")


@numba.njit(parallel=True, nogil=True, cache=True)
def _sums(data: np.ndarray) -> np.ndarray:
    """Sums (A, N, B) float32 over its middle axis in float64, reading memory in order: (A, B) float64."""
    outer, count, inner = data.shape
    piece = 4096  # Of a row: so that axis 0, a single huge row, has pieces for all threads.
    pieces = (inner + piece - 1) // piece
    sums = np.zeros((outer, inner))
    for job in numba.prange(outer * pieces):
        row, part = job // pieces, slice(job % pieces * piece, min((job % pieces + 1) * piece, inner))
        into = sums[row, part]
        for k in range(count):
            line = data[row, k, part]
            for j in range(len(line)):  # Over plain slices: three indices here are twice as slow.
                into[j] += line[j]
    return sums


# Sums may be reordered and fused; NaN and infinity keep their meaning, `cast` looks for them.
@numba.njit(parallel=True, nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz", "arcp"})
def _joseph(
    data: np.ndarray,
    start: np.ndarray,
    towards: np.ndarray,
    down: np.ndarray,
    across: np.ndarray,
    cone: bool,
    metric: np.ndarray,
    image: np.ndarray,
) -> int:
    """Fills `image` with ray integrals; all vectors are in voxels, and v @ metric @ v is a step's length in mm, squared.

    Pixel (r, c) adds r*down + c*across to `start` in a parallel view and to `towards` in a cone view. Rays are worked
    through in blocks that run down the picture's columns, since rows mostly follow z, the axis contiguous in memory.
    Within a block a slice is finished for all rays before the next, in a loop without branches that the compiler
    turns into vector code. Positions are float32 there: good to some 1e-5 voxels.

    Returns:
        How many rays meet the volume.
    """
    rows, columns = image.shape
    flat = data.reshape(-1)
    strides = (data.shape[1] * data.shape[2], data.shape[2], 1)
    hits = 0
    for block in numba.prange((rows * columns + _BLOCK - 1) // _BLOCK):
        first = block * _BLOCK
        count = min(_BLOCK, rows * columns - first)
        # A ray's position in slice u of its axis is (p0 + u*p_step, q0 + u*q_step), for u from enter to leave.
        # Eight arrays rather than eight rows of one: the compiler must see that they don't overlap.
        p0, p_step = np.zeros(count, np.float32), np.zeros(count, np.float32)
        q0, q_step = np.zeros(count, np.float32), np.zeros(count, np.float32)
        enter, leave = np.zeros(count, np.float32), np.zeros(count, np.float32)
        slice_mm, total = np.zeros(count, np.float32), np.zeros(count, np.float32)
        origin, ray = np.empty(3), np.empty(3)
        for axis in range(3):
            p_axis, q_axis = (1 if axis == 0 else 0), (1 if axis == 2 else 2)
            lowest, highest = np.inf, -np.inf
            for i in range(count):
                row, column = (first + i) % rows, (first + i) // rows
                for j in range(3):
                    step = row * down[j] + column * across[j]
                    origin[j] = start[j] if cone else start[j] + step
                    ray[j] = towards[j] + step if cone else towards[j]
                enter[i] = leave[i] = 0.0
                if _main_axis(ray) != axis:
                    continue
                low, high = -0.5, data.shape[axis] - 0.5
                if cone and ray[axis] > 0:
                    low = max(low, origin[axis])
                elif cone:
                    high = min(high, origin[axis])
                p_slope, q_slope = ray[p_axis] / ray[axis], ray[q_axis] / ray[axis]
                p_base, q_base = origin[p_axis] - origin[axis] * p_slope, origin[q_axis] - origin[axis] * q_slope
                low, high = _clip(low, high, p_base, p_slope, data.shape[p_axis])
                low, high = _clip(low, high, q_base, q_slope, data.shape[q_axis])
                if high <= low:
                    continue
                hits += 1
                p0[i], p_step[i], q0[i], q_step[i], enter[i], leave[i] = p_base, p_slope, q_base, q_slope, low, high
                square = 0.0
                for j in range(3):
                    for m in range(3):
                        square += ray[j] * metric[j, m] * ray[m]
                slice_mm[i] = np.sqrt(square) / abs(ray[axis])
                lowest, highest = min(lowest, low), max(highest, high)
            if highest <= lowest:
                continue
            p_end, q_end = np.float32(data.shape[p_axis] - 1), np.float32(data.shape[q_axis] - 1)
            p_last, q_last = np.int32(max(data.shape[p_axis] - 2, 0)), np.int32(max(data.shape[q_axis] - 2, 0))
            p_next = np.uint64(strides[p_axis] if data.shape[p_axis] > 1 else 0)
            q_next = np.uint64(strides[q_axis] if data.shape[q_axis] > 1 else 0)
            for k in range(max(0, int(np.floor(lowest + 0.5))), min(data.shape[axis] - 1, int(highest + 0.5)) + 1):
                slice_k = np.float32(k)
                near, far = np.float32(k - 0.5), np.float32(k + 0.5)
                for i in range(count):
                    weight = max(min(leave[i], far) - max(enter[i], near), np.float32(0))
                    # A ray that leaves by the side may be beyond it here: it reads the outer voxel, as it should.
                    p = min(max(p0[i] + slice_k * p_step[i], np.float32(0)), p_end)
                    q = min(max(q0[i] + slice_k * q_step[i], np.float32(0)), q_end)
                    p_index, q_index = min(np.int32(p), p_last), min(np.int32(q), q_last)
                    p_part, q_part = p - np.float32(p_index), q - np.float32(q_index)
                    # An unsigned index spares the compiler the question whether it counts from the end.
                    at = np.uint64(k * strides[axis] + p_index * strides[p_axis] + q_index * strides[q_axis])
                    here = flat[at] + q_part * (flat[at + q_next] - flat[at])
                    there = flat[at + p_next] + q_part * (flat[at + p_next + q_next] - flat[at + p_next])
                    total[i] += weight * (here + p_part * (there - here))
        for i in range(count):
            image[(first + i) % rows, (first + i) // rows] = total[i] * slice_mm[i]
    return hits


@numba.njit(cache=True)
def _main_axis(ray: np.ndarray) -> int:
    """The index axis a ray follows most; z only if it must, since its neighbours lie together in memory."""
    axis = 0 if abs(ray[0]) > abs(ray[1]) else 1
    return 2 if abs(ray[2]) > abs(ray[axis]) else axis


@numba.njit(cache=True)
def _clip(low: float, high: float, base: float, slope: float, length: int) -> tuple[float, float]:
    """Narrows [low, high] to where base + u*slope lies between the faces of an axis of `length` voxels."""
    if abs(slope) < 1e-12:
        outside = base < -0.5 - _EDGE or base > length - 0.5 + _EDGE
        return (low, low) if outside else (low, high)
    one, other = (-0.5 - base) / slope, (length - 0.5 - base) / slope
    return max(low, min(one, other)), min(high, max(one, other))
