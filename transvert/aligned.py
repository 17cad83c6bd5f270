"""Ray kernels for views that stand straight in the volume's grid; `rays` has the model they share, and any pose."""

from __future__ import annotations

import numba
import numpy as np

from transvert.rays import EDGE, FAST, LINE, clip, prefetch, thickness_mm, within_axis

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
