"""Compiled ray kernels, Joseph's method (IEEE Trans. Med. Imaging 1982); `projector` checks input and chooses one.

Positions are voxel indices. A ray crosses the volume slice by slice along the index axis that it follows most; in each
slice the value is bilinear and weighted by the part of the slice that the ray crosses. The outer value continues from the
outer voxel centres to the faces, so a uniform box integrates to value times chord. A pose is four vectors in voxels,
(4, 3): start, towards, row step, column step. Pixel (r, c) adds r*row_step + c*column_step to `start` in a parallel view
(`cone` 0) and to `towards` in a cone view (1); a slot view (2) adds r*row_step to `start` and c*column_step to `towards`.
`metric` gives lengths in mm: v @ metric @ v is a squared length.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

EDGE = 1e-7  # Voxels. Rounding must not decide whether a ray along a face counts.
LINE = 16  # float32 values per cache line
# Sums may be reordered and fused. NaN and infinity stay: `projector` checks for them.
FAST = {"contract", "reassoc", "nsz", "arcp"}
_TILE_ROWS, _TILE_COLUMNS = 64, 16  # Neighbouring rays read the same cache lines.
_STEEP = 0.5  # Voxels per row. Below it, a loop over voxels is faster than a loop over rows (measured).


def _prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Code of the processor's prefetch for element `index` of a contiguous array; an index out of range is harmless."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind)
        builder.call(function, [address, number(0), number(3), number(1)])  # Read, high locality, data cache.
        return context.get_dummy_value()

    return types.void(array, index), generate


prefetch: Any = intrinsic(_prefetch)  # prefetch(array, index), only in compiled code


@numba.njit(cache=True)
def _ray(
    poses: np.ndarray, view: int, cone: int, row: int, column: int, start: np.ndarray, towards: np.ndarray
) -> None:
    """Writes the ray of a pixel into `start` and `towards` (3,)."""
    for j in range(3):
        down, across = row * poses[view, 2, j], column * poses[view, 3, j]
        start[j] = poses[view, 0, j] + (0.0 if cone == 1 else down) + (0.0 if cone else across)
        towards[j] = poses[view, 1, j] + (down if cone == 1 else 0.0) + (across if cone else 0.0)


@numba.njit(cache=True)
def _main_axis(ray: np.ndarray) -> int:
    """The index axis that a ray follows most. Ties avoid the last axis, which is contiguous in memory."""
    axis = 0 if abs(ray[0]) > abs(ray[1]) else 1
    return 2 if abs(ray[2]) > abs(ray[axis]) else axis


@numba.njit(cache=True)
def thickness_mm(ray: np.ndarray, metric: np.ndarray, axis: int) -> float:
    """Length in mm of a ray within one slice of its axis."""
    square = 0.0
    for i in range(3):
        for j in range(3):
            square += ray[i] * metric[i, j] * ray[j]
    return np.sqrt(square) / abs(ray[axis])


@numba.njit(cache=True)
def within_axis(cone: int, start: float, towards: float, length: int) -> tuple[float, float]:
    """The interval of an axis of `length` voxels, from face to face, that is in front of the source, if there is one."""
    low, high = -0.5, length - 0.5
    if cone and towards > 0:
        low = max(low, start)
    elif cone:
        high = min(high, start)
    return low, high


@numba.njit(cache=True)
def clip(low: float, high: float, base: float, slope: float, length: int) -> tuple[float, float]:
    """Clips [low, high] to the u for which base + u*slope is between the faces of an axis of `length` voxels."""
    if abs(slope) < 1e-12:
        outside = base < -0.5 - EDGE or base > length - 0.5 + EDGE
        return (low, low) if outside else (low, high)
    one, other = (-0.5 - base) / slope, (length - 0.5 - base) / slope
    return max(low, min(one, other)), min(high, max(one, other))


@numba.njit(parallel=True, nogil=True, cache=True, fastmath=FAST)
def joseph(data: np.ndarray, poses: np.ndarray, cone: np.ndarray, metric: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Fills `images` for views of any pose; arguments as in `upright`; returns (V,) numbers of rays that meet the volume.

    Within a tile of the picture, one slice is finished for all rays before the next, in a loop without branches that the
    compiler vectorises; positions are float32 there, accurate to 1e-5 voxels. A bool `cone` or a slice of `poses` prevents
    this, since the compiler cannot prove that no arrays overlap (numba 0.68: 1.5 times slower).
    """
    views, rows, columns = images.shape
    flat = data.reshape(-1)
    strides = (data.shape[1] * data.shape[2], data.shape[2], 1)
    tiles_high, tiles_wide = (rows + _TILE_ROWS - 1) // _TILE_ROWS, (columns + _TILE_COLUMNS - 1) // _TILE_COLUMNS
    hits = np.zeros((views, tiles_high * tiles_wide), np.int64)
    for tile in numba.prange(views * tiles_high * tiles_wide):
        view, place = tile // (tiles_high * tiles_wide), tile % (tiles_high * tiles_wide)
        first_row, first_column = place % tiles_high * _TILE_ROWS, place // tiles_high * _TILE_COLUMNS
        high, wide = min(_TILE_ROWS, rows - first_row), min(_TILE_COLUMNS, columns - first_column)
        count = high * wide
        # In slice u of its axis a ray is at (p0 + u*p_step, q0 + u*q_step), for u from enter to leave.
        # Eight arrays, not eight rows of one array: the compiler must see that they don't overlap.
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
                    # A ray that leaves through a side face within the slice reads the outer voxel.
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
    """Approximate number of successive rays in a column that share a cache line, 1 to 8. It affects only speed."""
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
    data: np.ndarray, parts: np.ndarray, poses: np.ndarray, cone: np.ndarray, metric: np.ndarray, images: np.ndarray
) -> int:
    """Fills `images` (P, rows, columns) for one view of any pose, each voxel in the picture of its own part.

    `parts` (X, Y, Z) uint8 has the index of each voxel's part, below P; else as `joseph`.
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
                opposite = beyond + np.uint64(q_next)
                total[flat_parts[at]] += weight * (1 - p_part) * (1 - q_part) * flat[at]
                total[flat_parts[beside]] += weight * (1 - p_part) * q_part * flat[beside]
                total[flat_parts[beyond]] += weight * p_part * (1 - q_part) * flat[beyond]
                total[flat_parts[opposite]] += weight * p_part * q_part * flat[opposite]
            mm = thickness_mm(towards, metric, axis)
            for part in range(count):
                images[part, row, column] = total[part] * mm
    return hits


@numba.njit(parallel=True, nogil=True, cache=True)
def sum_lines(data: np.ndarray) -> np.ndarray:
    """(A, B) float64 sums of `data` (A, N, B) float32 over its middle axis, reading memory in order."""
    outer, count, inner = data.shape
    flat = data.reshape(-1)
    piece = 512  # Even a sum along axis 0 (A = 1) then has work for all threads, in pieces that fit the cache.
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
            for j in range(len(line)):  # Three indices instead of slices would be twice as slow.
                into[j] += line[j]
    return sums


@numba.njit(parallel=True, nogil=True, cache=True)
def sample_plane(
    plane: np.ndarray,
    corner: np.ndarray,
    row_step: np.ndarray,
    column_step: np.ndarray,
    scale: float,
    image: np.ndarray,
) -> int:
    """Fills `image` with bilinear samples of `plane` (A, B) times `scale`; returns the number of samples within it."""
    hits = 0
    a_end, b_end = plane.shape[0] - 1, plane.shape[1] - 1
    for r in numba.prange(image.shape[0]):
        for c in range(image.shape[1]):
            a = corner[0] + r * row_step[0] + c * column_step[0]
            b = corner[1] + r * row_step[1] + c * column_step[1]
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
    """Fills `images` for views whose row step follows the volume's last axis while no ray mainly does.

    All rays of one picture column then lie in a plane that contains whole voxel lines of the last axis. In each slice two
    neighbouring lines are interpolated once for the whole column, and every row is read from the result. Arguments: `data`
    (X, Y, Z) float32, contiguous; `poses` (V, 4, 3) float64; `cone` (V,) int64, 0 to 2; `metric` (3, 3) float64; `images`
    (V, rows, columns) float32. Returns (V,) numbers of columns that meet the volume.
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
        # In slice u the column is at p0 + u*p_step on the side axis; its row r is at z0 + r*z_step on the last axis.
        p_step = towards[side] / towards[axis]
        p0 = start[side] - start[axis] * p_step
        low, high = within_axis(cone[view], start[axis], towards[axis], data.shape[axis])
        low, high = clip(low, high, p0, p_step, data.shape[side])
        if high <= low:
            continue
        strides = (data.shape[1] * deep, deep)
        side_next = strides[side] if data.shape[side] > 1 else 0
        total, slope_changes = np.zeros(rows, np.float32), np.zeros(rows + 3)
        line = np.zeros(deep + 5, np.float32)  # Padded by two at both ends: rays sample up to one voxel beyond them.
        first_slice, last_slice = max(0, int(np.floor(low + 0.5))), min(data.shape[axis] - 1, int(high + 0.5))
        far = max(low, first_slice - 0.5)
        far_first, far_last = _rows_inside(far, start, towards, step, axis, cone[view], deep, rows)
        for k in range(first_slice, last_slice + 1):
            # Rows between the faces of the last axis where the column enters the slice (near) and leaves it (far).
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
                _add_slopes(line, z0 + 2, z_step, all_first, all_last, float(width), slope_changes)
            whole = max(all_last - all_first + 1, 0)
            for i in range(some_last - some_first + 1 - whole):
                row = some_first + i
                if whole and row >= all_first:
                    row += whole
                # This row crosses the top or bottom face of the volume within the slice.
                z_slope = (towards[2] + (row * step if cone[view] == 1 else 0.0)) / towards[axis]
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
            slope += slope_changes[row]
            value += slope
            ray[2] = towards[2] + (row * step if cone[view] == 1 else 0.0)
            images[view, row, column] = (total[row] + value) * thickness_mm(ray, metric, axis)
    hits = np.zeros(count, np.int64)
    for view in range(count):
        hits[view] = met[view].sum()
    return hits


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _rows_at(
    u: float, start: np.ndarray, towards: np.ndarray, step: float, axis: int, cone: int
) -> tuple[float, float]:
    """Position of row 0 of a column on the last axis in slice u, and the step from row to row."""
    # Rows are divided by this, and it is 0 at the source.
    along = max((u - start[axis]) / towards[axis], 1e-9) if cone else (u - start[axis]) / towards[axis]
    return start[2] + along * towards[2], along * step if cone == 1 else step


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _rows_inside(
    u: float, start: np.ndarray, towards: np.ndarray, step: float, axis: int, cone: int, deep: int, rows: int
) -> tuple[int, int]:
    """First and last row between the faces of the last axis in slice u; first > last if there is none."""
    z0, z_step = _rows_at(u, start, towards, step, axis, cone)
    one, other = (-0.5 - EDGE - z0) / z_step, (deep - 0.5 + EDGE - z0) / z_step
    first = int(min(max(np.ceil(min(one, other)), 0.0), float(rows)))
    return first, int(min(max(np.floor(max(one, other)), -1.0), rows - 1.0))


@numba.njit(cache=True, fastmath=FAST)
def _read_rows(
    line: np.ndarray, z0: float, z_step: float, first: int, last: int, width: np.float32, total: np.ndarray
) -> None:
    """Adds `line` at z0 + row*z_step to rows first..last of a column. float32 positions are accurate to 1e-5 voxels."""
    z0_short, step_short = np.float32(z0), np.float32(z_step)
    for row in range(first, last + 1):
        z = z0_short + np.float32(row) * step_short
        below = np.uint32(z)  # An unsigned index avoids the check for negative indices.
        value = line[below]
        total[row] += width * (value + (z - np.float32(below)) * (line[below + np.uint32(1)] - value))


@numba.njit(cache=True, fastmath=FAST)
def _add_slopes(
    line: np.ndarray, z0: float, z_step: float, first: int, last: int, width: float, changes: np.ndarray
) -> None:
    """The sums of `_read_rows` as second differences, which the caller integrates twice.

    Each voxel changes only the slope, which is less work when several rows share a voxel. A change of slope between two
    rows is split over the two rows after it.
    """
    scale = abs(z_step) * width
    at_first, at_last = z0 + first * z_step, z0 + last * z_step
    # Voxels strictly between the first and the last row.
    lowest, highest = int(np.floor(min(at_first, at_last))), int(np.ceil(max(at_first, at_last)))
    while lowest <= highest and not first < (lowest - z0) / z_step < last:
        lowest += 1
    while highest >= lowest and not first < (highest - z0) / z_step < last:
        highest -= 1
    if highest < lowest:  # All rows are between two neighbouring voxels.
        below = int(min(at_first, at_last) / 2 + max(at_first, at_last) / 2)
        lowest, highest = below + 1, below
    up, down = np.float64(line[highest + 1]) - line[highest], np.float64(line[lowest]) - line[lowest - 1]
    slope_first, slope_last = (down, up) if z_step > 0 else (-up, -down)
    below_first, below_last = int(at_first), int(at_last)
    value_first = line[below_first] + (at_first - below_first) * (np.float64(line[below_first + 1]) - line[below_first])
    value_last = line[below_last] + (at_last - below_last) * (np.float64(line[below_last + 1]) - line[below_last])
    changes[first] += width * value_first
    changes[first + 1] += scale * slope_first - width * value_first
    changes[last + 1] -= scale * slope_last + width * value_last
    changes[last + 2] += width * value_last
    inverse = 1 / z_step
    before = np.float64(line[lowest - 1])
    for i in range(lowest, highest + 1):
        place = (i - z0) * inverse
        row = np.uint64(place)
        here, after = np.float64(line[i]), np.float64(line[i + 1])
        change = scale * (after - 2 * here + before)
        before = here
        late = change * (place - np.float64(row))
        changes[row + np.uint64(1)] += change - late
        changes[row + np.uint64(2)] += late
