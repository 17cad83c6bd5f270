"""Ray kernels for views that stand straight in the volume's grid; `rays` has the model they share, and any pose.

Ray kernels: the compiled loops under `drr`, which checks what comes in and chooses among them.

All kernels, those of `aligned` too, share one volume model and one frame. Positions are voxel indices, voxel centres
are whole numbers, and the volume ends at the outer faces of its voxels; between the outer voxel centres and the faces
the outer voxel's value holds. They are Joseph's method (IEEE Trans. Med. Imaging 1982): a ray crosses the volume slice
by slice along the index axis it follows most; in each slice the value is bilinear in the other two axes and counts with
the part of the slice that the ray passes, so that a uniform box integrates to value times chord.

A pose is four vectors in voxels, (4, 3): start, towards, down, across. Pixel (r, c) adds r*down + c*across to `start`
in a parallel view and to `towards` in a cone view. `metric` turns voxels to mm: v @ metric @ v is a length squared.

What makes them fast is reading the volume once, in an order the memory likes, and asking for the next slice ahead of
its use (`prefetch`), since a ray's steps are too irregular for the processor to guess.

"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

EDGE = 1e-7  # Voxels. A ray along a face must not come and go with the last bit of its position.
_TILE_ROWS, _TILE_COLUMNS = 64, 16  # Of a picture: neighbours in both directions, which read the same lines of voxels.
LINE = 16  # float32 in a line of the processor's cache
# Sums may be reordered and fused; NaN and infinity keep their meaning, `drr` looks for them.
FAST = {"contract", "reassoc", "nsz", "arcp"}


def _prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Asks the processor to fetch element `index` of a contiguous array for reading; never fails, changes nothing."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind)
        builder.call(function, [address, number(0), number(3), number(1)])  # To read, to keep, as data.
        return context.get_dummy_value()

    return types.void(array, index), generate


prefetch: Any = intrinsic(_prefetch)  # prefetch(array, index), within compiled code


@numba.njit(parallel=True, nogil=True, cache=True, fastmath=FAST)
def joseph(data: np.ndarray, poses: np.ndarray, cone: np.ndarray, metric: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Fills `images` (V, rows, columns) for any poses; arguments as in `aligned.upright`; returns (V,) rays that meet it.

    Rays are worked through in tiles of a picture. Within a tile a slice is finished for all rays before the next, in a
    loop without branches that the compiler turns into vector code. Positions are float32 there: some 1e-5 voxels.
    It does so only as long as it sees that no arrays overlap, which a bool array or a part taken out of `poses` ends
    (numba 0.68, half again the time): hence whole numbers for `cone`, and `poses` always with its index.
    """
    views, rows, columns = images.shape
    flat = data.reshape(-1)
    strides = (data.shape[1] * data.shape[2], data.shape[2], 1)
    down_tiles, across_tiles = (rows + _TILE_ROWS - 1) // _TILE_ROWS, (columns + _TILE_COLUMNS - 1) // _TILE_COLUMNS
    hits = np.zeros((views, down_tiles * across_tiles), np.int64)
    for tile in numba.prange(views * down_tiles * across_tiles):
        view, place = tile // (down_tiles * across_tiles), tile % (down_tiles * across_tiles)
        first_row, first_column = place % down_tiles * _TILE_ROWS, place // down_tiles * _TILE_COLUMNS
        high, wide = min(_TILE_ROWS, rows - first_row), min(_TILE_COLUMNS, columns - first_column)
        count = high * wide
        # A ray's position in slice u of its axis is (p0 + u*p_step, q0 + u*q_step), for u from enter to leave.
        # Eight arrays rather than eight rows of one: the compiler must see that they don't overlap.
        p0, p_step = np.zeros(count, np.float32), np.zeros(count, np.float32)
        q0, q_step = np.zeros(count, np.float32), np.zeros(count, np.float32)
        enter, leave = np.zeros(count, np.float32), np.zeros(count, np.float32)
        slice_mm, total = np.zeros(count, np.float32), np.zeros(count, np.float32)
        start, towards = np.empty(3), np.empty(3)
        met = 0
        for axis in range(3):
            p_axis, q_axis = (1 if axis == 0 else 0), (1 if axis == 2 else 2)
            lowest, highest = np.inf, -np.inf
            for i in range(count):
                _ray(poses, view, cone[view], first_row + i % high, first_column + i // high, start, towards)
                enter[i] = leave[i] = 0.0
                if _main_axis(towards) != axis:
                    continue
                p_slope, q_slope = towards[p_axis] / towards[axis], towards[q_axis] / towards[axis]
                p_base, q_base = start[p_axis] - start[axis] * p_slope, start[q_axis] - start[axis] * q_slope
                near, far = within_axis(cone[view], start[axis], towards[axis], data.shape[axis])
                near, far = clip(near, far, p_base, p_slope, data.shape[p_axis])
                near, far = clip(near, far, q_base, q_slope, data.shape[q_axis])
                if far <= near:
                    continue
                met += 1
                p0[i], p_step[i], q0[i], q_step[i], enter[i], leave[i] = p_base, p_slope, q_base, q_slope, near, far
                slice_mm[i] = thickness_mm(towards, metric, axis)
                lowest, highest = min(lowest, near), max(highest, far)
            if highest <= lowest:
                continue
            p_end, q_end = np.float32(data.shape[p_axis] - 1), np.float32(data.shape[q_axis] - 1)
            p_last, q_last = np.int32(max(data.shape[p_axis] - 2, 0)), np.int32(max(data.shape[q_axis] - 2, 0))
            p_next = np.uint64(strides[p_axis] if data.shape[p_axis] > 1 else 0)
            q_next = np.uint64(strides[q_axis] if data.shape[q_axis] > 1 else 0)
            slices = range(max(0, int(np.floor(lowest + 0.5))), min(data.shape[axis] - 1, int(highest + 0.5)) + 1)
            middle_row, middle_column = first_row + high // 2, first_column + wide // 2
            skip = _rays_per_line(poses, view, cone[view], middle_row, middle_column, axis, (lowest + highest) / 2)
            for k in slices:
                ahead = np.float32(min(k + 1, data.shape[axis] - 1))
                for i in range(0, count, skip):
                    p = min(max(p0[i] + ahead * p_step[i], np.float32(0)), p_end)
                    q = min(max(q0[i] + ahead * q_step[i], np.float32(0)), q_end)
                    at = np.uint64(
                        int(ahead) * strides[axis] + np.int32(p) * strides[p_axis] + np.int32(q) * strides[q_axis]
                    )
                    prefetch(flat, at)
                    prefetch(flat, at + p_next)
                slice_k = np.float32(k)
                near_k, far_k = np.float32(k - 0.5), np.float32(k + 0.5)
                for i in range(count):
                    weight = max(min(leave[i], far_k) - max(enter[i], near_k), np.float32(0))
                    # A ray that leaves by the side may be beyond it here: it reads the outer voxel, as it should.
                    p = min(max(p0[i] + slice_k * p_step[i], np.float32(0)), p_end)
                    q = min(max(q0[i] + slice_k * q_step[i], np.float32(0)), q_end)
                    p_index, q_index = min(np.int32(p), p_last), min(np.int32(q), q_last)
                    p_part, q_part = p - np.float32(p_index), q - np.float32(q_index)
                    at = np.uint64(k * strides[axis] + p_index * strides[p_axis] + q_index * strides[q_axis])
                    here = flat[at] + q_part * (flat[at + q_next] - flat[at])
                    there = flat[at + p_next] + q_part * (flat[at + p_next + q_next] - flat[at + p_next])
                    total[i] += weight * (here + p_part * (there - here))
        hits[view, place] = met
        for i in range(count):
            images[view, first_row + i % high, first_column + i // high] = total[i] * slice_mm[i]
    return hits.sum(axis=1)


@numba.njit(cache=True, error_model="numpy")
def _rays_per_line(poses: np.ndarray, view: int, cone: int, row: int, column: int, axis: int, slice_k: float) -> int:
    """How many rays down a column share a line of the cache, roughly: 1 to 8. Only speed depends on it."""
    here, there, towards = np.empty(3), np.empty(3), np.empty(3)
    _ray(poses, view, cone, row, column, here, towards)
    here += towards * ((slice_k - here[axis]) / towards[axis])
    _ray(poses, view, cone, row + 1, column, there, towards)
    there += towards * ((slice_k - there[axis]) / towards[axis])
    lines = 0.01
    for j in range(3):
        lines += abs(there[j] - here[j]) / (LINE if j == 2 else 1)
    return int(min(max(2.4 / lines, 1.0), 8.0))


@numba.njit(parallel=True, nogil=True, cache=True)
def joseph_parts(
    data: np.ndarray,
    parts: np.ndarray,
    poses: np.ndarray,
    cone: np.ndarray,
    metric: np.ndarray,
    images: np.ndarray,
) -> int:
    """What `joseph` casts, parted: each voxel's share goes to the picture of its own part.

    Args:
        data: (X, Y, Z) float32, contiguous.
        parts: (X, Y, Z) uint8, each voxel's part, below P.
        poses: (1, 4, 3) float64.
        cone: (1,) int64, 1 or 0.
        metric: (3, 3) float64.
        images: (P, rows, columns) float32.

    Returns:
        How many rays meet the volume.
    """
    count, rows, columns = images.shape
    flat, flat_parts = data.reshape(-1), parts.reshape(-1)
    strides = (data.shape[1] * data.shape[2], data.shape[2], 1)
    hits = 0
    for column in numba.prange(columns):
        start, towards, total = np.empty(3), np.empty(3), np.zeros(count)
        for row in range(rows):
            _ray(poses, 0, cone[0], row, column, start, towards)
            axis = _main_axis(towards)
            p_axis, q_axis = (1 if axis == 0 else 0), (1 if axis == 2 else 2)
            p_step, q_step = towards[p_axis] / towards[axis], towards[q_axis] / towards[axis]
            p0, q0 = start[p_axis] - start[axis] * p_step, start[q_axis] - start[axis] * q_step
            near, far = within_axis(cone[0], start[axis], towards[axis], data.shape[axis])
            near, far = clip(near, far, p0, p_step, data.shape[p_axis])
            near, far = clip(near, far, q0, q_step, data.shape[q_axis])
            if far <= near:
                continue
            hits += 1
            total[:] = 0
            p_end, q_end = data.shape[p_axis] - 1, data.shape[q_axis] - 1
            p_next = strides[p_axis] if p_end else 0
            q_next = strides[q_axis] if q_end else 0
            for k in range(max(0, int(np.floor(near + 0.5))), min(data.shape[axis] - 1, int(far + 0.5)) + 1):
                weight = min(far, k + 0.5) - max(near, k - 0.5)
                if weight <= 0:
                    continue
                p, q = min(max(p0 + k * p_step, 0.0), float(p_end)), min(max(q0 + k * q_step, 0.0), float(q_end))
                i, j = min(int(p), max(p_end - 1, 0)), min(int(q), max(q_end - 1, 0))
                p_part, q_part = p - i, q - j
                at = np.uint64(k * strides[axis] + i * strides[p_axis] + j * strides[q_axis])
                ahead = np.uint64(at + strides[axis])
                prefetch(flat, ahead)
                prefetch(flat, ahead + np.uint64(p_next))
                beside, beyond = at + np.uint64(q_next), at + np.uint64(p_next)
                across = beyond + np.uint64(q_next)
                total[flat_parts[at]] += weight * (1 - p_part) * (1 - q_part) * flat[at]
                total[flat_parts[beside]] += weight * (1 - p_part) * q_part * flat[beside]
                total[flat_parts[beyond]] += weight * p_part * (1 - q_part) * flat[beyond]
                total[flat_parts[across]] += weight * p_part * q_part * flat[across]
            mm = thickness_mm(towards, metric, axis)
            for part in range(count):
                images[part, row, column] = total[part] * mm
    return hits


@numba.njit(cache=True)
def _ray(
    poses: np.ndarray, view: int, cone: int, row: int, column: int, start: np.ndarray, towards: np.ndarray
) -> None:
    """Sets `start` and `towards` (3,) to the ray of a pixel."""
    for j in range(3):
        step = row * poses[view, 2, j] + column * poses[view, 3, j]
        start[j] = poses[view, 0, j] if cone else poses[view, 0, j] + step
        towards[j] = poses[view, 1, j] + step if cone else poses[view, 1, j]


@numba.njit(cache=True)
def _main_axis(ray: np.ndarray) -> int:
    """The index axis a ray follows most; z only if it must, since its neighbours lie together in memory."""
    axis = 0 if abs(ray[0]) > abs(ray[1]) else 1
    return 2 if abs(ray[2]) > abs(ray[axis]) else axis


@numba.njit(cache=True)
def thickness_mm(ray: np.ndarray, metric: np.ndarray, axis: int) -> float:
    """How many mm of a ray lie in one slice of its axis."""
    square = 0.0
    for i in range(3):
        for j in range(3):
            square += ray[i] * metric[i, j] * ray[j]
    return np.sqrt(square) / abs(ray[axis])


@numba.njit(cache=True)
def within_axis(cone: int, start: float, towards: float, length: int) -> tuple[float, float]:
    """The part of an axis of `length` voxels, from face to face, that lies in front of a cone's source."""
    low, high = -0.5, length - 0.5
    if cone and towards > 0:
        low = max(low, start)
    elif cone:
        high = min(high, start)
    return low, high


@numba.njit(cache=True)
def clip(low: float, high: float, base: float, slope: float, length: int) -> tuple[float, float]:
    """Narrows [low, high] to where base + u*slope lies between the faces of an axis of `length` voxels."""
    if abs(slope) < 1e-12:
        outside = base < -0.5 - EDGE or base > length - 0.5 + EDGE
        return (low, low) if outside else (low, high)
    one, other = (-0.5 - base) / slope, (length - 0.5 - base) / slope
    return max(low, min(one, other)), min(high, max(one, other))


_STEEP = 0.5  # Voxels a row, below which walking along voxels is cheaper than walking along rows (measured).


@numba.njit(parallel=True, nogil=True, cache=True)
def sum_lines(data: np.ndarray) -> np.ndarray:
    """Sums (A, N, B) float32 over its middle axis in float64, reading memory in order: (A, B) float64."""
    outer, count, inner = data.shape
    flat = data.reshape(-1)
    piece = 512  # Of a row: so that axis 0, a single huge row, has pieces for all threads, which stay in the cache.
    pieces = (inner + piece - 1) // piece
    sums = np.zeros((outer, inner))
    for job in numba.prange(outer * pieces):
        row, part = job // pieces, slice(job % pieces * piece, min((job % pieces + 1) * piece, inner))
        into = sums[row, part]
        for k in range(count):
            line = data[row, k, part]
            ahead = (row * count + k + 1) * inner + part.start
            for j in range(0, len(line), LINE):
                prefetch(flat, np.uint64(ahead + j))
            for j in range(len(line)):  # Over plain slices: three indices here are twice as slow.
                into[j] += line[j]
    return sums


@numba.njit(parallel=True, nogil=True, cache=True)
def sample_plane(
    plane: np.ndarray, corner: np.ndarray, down: np.ndarray, across: np.ndarray, scale: float, image: np.ndarray
) -> int:
    """Fills `image` with bilinear samples of `plane` (A, B) at corner + r*down + c*across, times `scale`.

    Returns:
        How many samples lie within the plane's faces; the others are left alone.
    """
    hits = 0
    a_end, b_end = plane.shape[0] - 1, plane.shape[1] - 1
    for r in numba.prange(image.shape[0]):
        for c in range(image.shape[1]):
            a, b = corner[0] + r * down[0] + c * across[0], corner[1] + r * down[1] + c * across[1]
            if min(a, b) < -0.5 - EDGE or a > a_end + 0.5 + EDGE or b > b_end + 0.5 + EDGE:
                continue
            hits += 1
            a, b = min(max(a, 0.0), float(a_end)), min(max(b, 0.0), float(b_end))
            i, j = min(int(a), max(a_end - 1, 0)), min(int(b), max(b_end - 1, 0))
            i_next, j_next = min(i + 1, a_end), min(j + 1, b_end)
            here = plane[i, j] + (b - j) * (plane[i, j_next] - plane[i, j])
            there = plane[i_next, j] + (b - j) * (plane[i_next, j_next] - plane[i_next, j])
            image[r, c] = scale * (here + (a - i) * (there - here))
    return hits


@numba.njit(parallel=True, nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def upright(
    data: np.ndarray, poses: np.ndarray, cone: np.ndarray, metric: np.ndarray, images: np.ndarray
) -> np.ndarray:
    """Fills `images` (V, rows, columns) for views whose rows run along the volume's last axis, and no ray does.

    All rays of a picture's column then lie in one plane, in which the last axis' voxel lines stand upright: in each
    slice two neighbouring lines become one, once for the whole column, and the column is read off it.

    Args:
        data: (X, Y, Z) float32, contiguous.
        poses: (V, 4, 3) float64, with down = (0, 0, z).
        cone: (V,) int64, 1 or 0.
        metric: (3, 3) float64.
        images: (V, rows, columns) float32.

    Returns:
        (V,) how many columns meet the volume.
    """
    count, rows, columns = images.shape
    deep = data.shape[2]
    flat = data.reshape(-1)
    met = np.zeros((count, columns), np.bool_)
    for job in numba.prange(count * columns):
        view, column = job // columns, job % columns
        start, towards, step = poses[view, 0].copy(), poses[view, 1].copy(), poses[view, 2, 2]
        if cone[view]:
            towards += column * poses[view, 3]
        else:
            start += column * poses[view, 3]
        axis = 0 if abs(towards[0]) > abs(towards[1]) else 1
        side = 1 - axis
        # Along slice u of the axis the column is at p0 + u*p_step, and row r of it at z0 + r*z_step, both below.
        p_step = towards[side] / towards[axis]
        p0 = start[side] - start[axis] * p_step
        low, high = within_axis(cone[view], start[axis], towards[axis], data.shape[axis])
        low, high = clip(low, high, p0, p_step, data.shape[side])
        if high <= low:
            continue
        strides = (data.shape[1] * deep, deep)
        side_next = strides[side] if data.shape[side] > 1 else 0
        total, bends = np.zeros(rows, np.float32), np.zeros(rows + 3)
        line = np.zeros(deep + 5, np.float32)  # Two more at both ends: a ray may sample up to a voxel beyond them.
        first_slice, last_slice = max(0, int(np.floor(low + 0.5))), min(data.shape[axis] - 1, int(high + 0.5))
        far = max(low, first_slice - 0.5)
        far_first, far_last = _rows_inside(far, start, towards, step, axis, cone[view], deep, rows)
        for k in range(first_slice, last_slice + 1):
            # Rows that are within the faces of the last axis where the column enters the slice, and where it leaves.
            near, near_first, near_last = far, far_first, far_last
            far = min(high, k + 0.5)
            if far <= near:
                break
            far_first, far_last = _rows_inside(far, start, towards, step, axis, cone[view], deep, rows)
            some_first, some_last = min(near_first, far_first), max(near_last, far_last)
            all_first, all_last = max(near_first, far_first), min(near_last, far_last)
            z0, z_step = _rows_at(float(k), start, towards, step, axis, cone[view])
            if some_last < some_first:
                continue
            met[view, column] = True
            at_first, at_last = z0 + some_first * z_step, z0 + some_last * z_step
            bottom = min(max(int(np.floor(min(at_first, at_last))) - 1, 0), deep - 1)
            top = min(max(int(np.ceil(max(at_first, at_last))) + 1, 0), deep - 1)
            p = min(max(p0 + k * p_step, 0.0), data.shape[side] - 1.0)
            beside = min(int(p), max(data.shape[side] - 2, 0))
            at = k * strides[axis] + beside * strides[side]
            ahead = at + strides[axis]
            for j in range(bottom, top + 1, LINE):
                prefetch(flat, np.uint64(ahead + j))
                prefetch(flat, np.uint64(ahead + side_next + j))
            share = np.float32(p - beside)
            one_line, other_line = flat[at : at + deep], flat[at + side_next : at + side_next + deep]
            for j in range(bottom, top + 1):
                line[j + 2] = one_line[j] + share * (other_line[j] - one_line[j])
            if bottom == 0:
                line[:2] = line[2]
            if top == deep - 1:
                line[top + 3 :] = line[top + 2]
            width = np.float32(far - near)
            if all_last - all_first < 2 or abs(z_step) > _STEEP:
                _read_rows(line, z0 + 2, z_step, all_first, all_last, width, total)
            else:
                _bend_rows(line, z0 + 2, z_step, all_first, all_last, float(width), bends)
            whole = max(all_last - all_first + 1, 0)
            for i in range(some_last - some_first + 1 - whole):
                row = some_first + i
                if whole and row >= all_first:
                    row += whole
                # This row leaves through the volume's top or bottom within the slice.
                z_slope = (towards[2] + (row * step if cone[view] else 0.0)) / towards[axis]
                z_base = z0 + row * z_step - k * z_slope
                enter, leave = clip(near, far, z_base, z_slope, deep)
                if leave > enter:
                    z = z0 + row * z_step + 2
                    below = min(max(int(z), 0), deep + 3)
                    value = line[below] + (z - below) * (line[below + 1] - line[below])
                    total[row] += np.float32((leave - enter) * value)
        ray = towards.copy()
        slope, value = 0.0, 0.0
        for row in range(rows):
            slope += bends[row]
            value += slope
            ray[2] = towards[2] + (row * step if cone[view] else 0.0)
            images[view, row, column] = (total[row] + value) * thickness_mm(ray, metric, axis)
    hits = np.zeros(count, np.int64)
    for view in range(count):
        hits[view] = met[view].sum()
    return hits


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _rows_at(
    u: float, start: np.ndarray, towards: np.ndarray, step: float, axis: int, cone: int
) -> tuple[float, float]:
    """Where row 0 of a column is on the last axis in slice u, and how far it is from there to the next row."""
    # Not 0, which it is at the source: rows are divided by it.
    along = max((u - start[axis]) / towards[axis], 1e-9) if cone else (u - start[axis]) / towards[axis]
    return start[2] + along * towards[2], along * step if cone else step


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _rows_inside(
    u: float, start: np.ndarray, towards: np.ndarray, step: float, axis: int, cone: int, deep: int, rows: int
) -> tuple[int, int]:
    """The first and the last row that lie within the faces of the last axis in slice u; crossed over if none does."""
    z0, z_step = _rows_at(u, start, towards, step, axis, cone)
    one, other = (-0.5 - EDGE - z0) / z_step, (deep - 0.5 + EDGE - z0) / z_step
    first = int(min(max(np.ceil(min(one, other)), 0.0), float(rows)))
    return first, int(min(max(np.floor(max(one, other)), -1.0), rows - 1.0))


@numba.njit(cache=True, fastmath=FAST)
def _read_rows(
    line: np.ndarray, z0: float, z_step: float, first: int, last: int, width: np.float32, total: np.ndarray
) -> None:
    """Adds to rows first..last of a column what `line` holds at z0 + row*z_step. Positions in float32: 1e-5 voxels."""
    z0_short, step_short = np.float32(z0), np.float32(z_step)
    for row in range(first, last + 1):
        z = z0_short + np.float32(row) * step_short
        below = np.uint32(z)  # An unsigned index spares the compiler the question whether it counts from the end.
        value = line[below]
        total[row] += width * (value + (z - np.float32(below)) * (line[below + np.uint32(1)] - value))


@numba.njit(cache=True, fastmath=FAST)
def _bend_rows(
    line: np.ndarray, z0: float, z_step: float, first: int, last: int, width: float, bends: np.ndarray
) -> None:
    """What `_read_rows` adds, as second differences: `line` is straight between voxels, so only its bends are noted.

    With several rows to a voxel that is a fraction of the work. A bend between two rows is shared by the later row and
    the one after it; summed up twice, exactly the sampled line comes out.
    """
    scale = abs(z_step) * width
    at_first, at_last = z0 + first * z_step, z0 + last * z_step
    # The voxels whose bend lies truly between the first and the last row, by the row it lies at.
    lowest, highest = int(np.floor(min(at_first, at_last))), int(np.ceil(max(at_first, at_last)))
    while lowest <= highest and not first < (lowest - z0) / z_step < last:
        lowest += 1
    while highest >= lowest and not first < (highest - z0) / z_step < last:
        highest -= 1
    if highest < lowest:  # All rows lie between two voxels.
        below = int(min(at_first, at_last) / 2 + max(at_first, at_last) / 2)
        lowest, highest = below + 1, below
    up, down = np.float64(line[highest + 1]) - line[highest], np.float64(line[lowest]) - line[lowest - 1]
    slope_first, slope_last = (down, up) if z_step > 0 else (-up, -down)
    below_first, below_last = int(at_first), int(at_last)
    value_first = line[below_first] + (at_first - below_first) * (np.float64(line[below_first + 1]) - line[below_first])
    value_last = line[below_last] + (at_last - below_last) * (np.float64(line[below_last + 1]) - line[below_last])
    bends[first] += width * value_first
    bends[first + 1] += scale * slope_first - width * value_first
    bends[last + 1] -= scale * slope_last + width * value_last
    bends[last + 2] += width * value_last
    inverse = 1 / z_step
    before = np.float64(line[lowest - 1])
    for i in range(lowest, highest + 1):
        place = (i - z0) * inverse
        row = np.uint64(place)
        here, after = np.float64(line[i]), np.float64(line[i + 1])
        bend = scale * (after - 2 * here + before)
        before = here
        late = bend * (place - np.float64(row))
        bends[row + np.uint64(1)] += bend - late
        bends[row + np.uint64(2)] += late
