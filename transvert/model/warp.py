"""Deformation of a vertebra's cube and its parallel projection: the costly part of the augmentation.

On the CPU compiled loops run with a thread per sample; other devices use PyTorch's sampling, with the same results. Points
are in voxels from a cube's middle.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from torch.nn import functional

from transvert.drr.kernels import FAST

OWN, OTHER = 1, 2
"""The values of `parts` above 0: the vertebra itself, and any other vertebra."""


def elastic_deform(
    hu: torch.Tensor, parts: torch.Tensor, points: torch.Tensor, size: int, threads: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples cubes of CT and parts at the points of a deformed grid, trilinearly; the border's voxels extend outwards.

    Args:
        hu: (B, W, W, W) int16, HU.
        parts: (B, W, W, W) uint8, `OWN`, `OTHER` or 0.
        points: (B, 3, C, C, C) float32, the position of a coarse grid of the new cube in the old one, linear in between.
            Corner points are the centres of the corner voxels.
        size: voxels along each side of the new cube.
        threads: CPU threads.

    Returns:
        (B, size, size, size) float32 attenuation relative to water, and uint8 the part that fills more than half.
    """
    if hu.device.type != "cpu":
        return _elastic_deform_torch(hu, parts, points, size)
    density = torch.empty(len(hu), size, size, size)
    found = torch.empty(len(hu), size, size, size, dtype=torch.uint8)
    _run_threads(threads, _elastic_deform, hu, parts, points, density, found)
    return density, found


def project_parallel(cube: torch.Tensor, views: torch.Tensor, threads: int = 1) -> torch.Tensor:
    """Line integrals along parallel rays, by Joseph's method; the border's voxels extend outwards.

    Args:
        cube: (B, S, S, S) float32, RAS order.
        views: (B, 2, 3), AP and lateral: turn about the z axis and tilt about the picture's horizontal axis in radians,
            and magnification. (0, 0, 1) is the nominal view.
        threads: CPU threads.

    Returns:
        (B, 2, S, S) float32 AP and lateral pictures, in voxels times the cube's unit.
    """
    if cube.device.type != "cpu":
        return _project_parallel_torch(cube, *trace_rays(views))
    pictures = torch.empty(len(cube), 2, *cube.shape[2:])
    _run_threads(threads, _project_parallel, cube, *trace_rays(views), pictures)
    return pictures


def projection_matrices(views: torch.Tensor) -> torch.Tensor:
    """(B, 2, 2, 3) matrices to the picture's (beside, up): from (x, y, z) for AP and from (y, x, z) for lateral.

    A view that is turned by a and tilted by b, with magnification m, shows a point h beside the middle, d deep and z up
    at m (h cos a + d sin a) and m (z cos b - (d cos a - h sin a) sin b).
    """
    turn, tilt, size = views.unbind(-1)
    beside = torch.stack([torch.cos(turn), torch.sin(turn), torch.zeros_like(turn)], dim=-1)
    up = torch.stack([torch.sin(turn) * torch.sin(tilt), -torch.cos(turn) * torch.sin(tilt), torch.cos(tilt)], dim=-1)
    return torch.stack([beside, up], dim=-2) * size[..., None, None]


def trace_rays(views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Traces rays through a cube: that of picture point p, in (beside, up), is at plane @ p + slope * d at the depth d.

    Returns plane (B, 2, 2, 2), slope (B, 2, 2), and the length of a ray in a slice (B, 2), in voxels.
    """
    matrices = projection_matrices(views)
    plane = torch.linalg.inv(matrices[..., [0, 2]])
    slope = -(plane @ matrices[..., [1]])[..., 0]
    return plane, slope, (1 + (slope**2).sum(-1)).sqrt()


def _elastic_deform_torch(
    hu: torch.Tensor, parts: torch.Tensor, points: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    sources = torch.stack([hu.float(), (parts == OWN).float(), (parts == OTHER).float()], dim=1)
    fine = functional.interpolate(points, size=(size,) * 3, mode="trilinear", align_corners=True)
    grid = fine.movedim(1, -1).flip(-1) / ((hu.shape[-1] - 1) / 2)
    values = functional.grid_sample(sources, grid, "bilinear", "border", align_corners=True)
    found = torch.where(values[:, 2] > 0.5, OTHER, 0).to(torch.uint8)
    found[values[:, 1] > 0.5] = OWN
    return (1 + values[:, 0] / 1000).clamp(min=0), found


def _project_parallel_torch(
    cube: torch.Tensor, plane: torch.Tensor, slope: torch.Tensor, length: torch.Tensor
) -> torch.Tensor:
    middle = (cube.shape[-1] - 1) / 2
    steps = torch.arange(cube.shape[-1], device=cube.device) - middle
    depth, row_step, column_step = torch.meshgrid(steps, steps, steps, indexing="ij")
    pictures = []
    for view in range(2):
        beside, up = (
            shear[:, None, None, None] * depth
            - matrix[:, 0, None, None, None] * column_step
            - matrix[:, 1, None, None, None] * row_step
            for matrix, shear in zip(plane[:, view].unbind(1), slope[:, view].unbind(1), strict=True)
        )
        along = depth.expand_as(up)
        grid = torch.stack([up, along, beside] if view == 0 else [up, beside, along], dim=-1) / middle
        slices = functional.grid_sample(cube[:, None], grid, "bilinear", "border", align_corners=True)
        pictures.append(slices[:, 0].sum(dim=1) * length[:, view, None, None])
    return torch.stack(pictures, dim=1)


def _run_threads(threads: int, kernel: Callable[..., None], *tensors: torch.Tensor) -> None:
    """Calls a kernel for each sample of a batch; it fills its last arrays."""
    with ThreadPoolExecutor(threads) as workers:
        list(workers.map(kernel, *(tensor.contiguous().numpy() for tensor in tensors)))


@numba.njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _elastic_deform(
    hu: np.ndarray, parts: np.ndarray, points: np.ndarray, density: np.ndarray, found: np.ndarray
) -> None:
    """`elastic_deform` of one sample."""
    wide, size, coarse = hu.shape[0], density.shape[0], points.shape[1]
    middle, last = np.float32((wide - 1) / 2), np.float32(wide - 1)
    step = np.float32((coarse - 1) / (size - 1))
    flat, kinds = hu.reshape(-1), parts.reshape(-1)
    line = np.empty((3, coarse), np.float32)
    at = np.empty((3, size), np.float32)
    for i in range(size):
        p = min(int(i * step), coarse - 2)
        p_part = np.float32(i) * step - np.float32(p)
        for j in range(size):
            q = min(int(j * step), coarse - 2)
            q_part = np.float32(j) * step - np.float32(q)
            for axis in range(3):
                for k in range(coarse):
                    here = points[axis, p, q, k] + q_part * (points[axis, p, q + 1, k] - points[axis, p, q, k])
                    there = points[axis, p + 1, q, k]
                    there += q_part * (points[axis, p + 1, q + 1, k] - there)
                    line[axis, k] = here + p_part * (there - here) + middle
                for k in range(size):
                    r = min(int(k * step), coarse - 2)
                    value = line[axis, r] + (np.float32(k) * step - np.float32(r)) * (line[axis, r + 1] - line[axis, r])
                    at[axis, k] = min(max(value, np.float32(0)), last)
            for k in range(size):
                x, y, z = at[0, k], at[1, k], at[2, k]
                a, b, c = min(int(x), wide - 2), min(int(y), wide - 2), min(int(z), wide - 2)
                u, v, w = x - np.float32(a), y - np.float32(b), z - np.float32(c)
                o, one = np.uint64((a * wide + b) * wide + c), np.uint64(1)
                o01, o10 = o + np.uint64(wide), o + np.uint64(wide * wide)
                o11 = o10 + np.uint64(wide)
                v00 = np.float32(flat[o]) + w * np.float32(flat[o + one] - flat[o])
                v01 = np.float32(flat[o01]) + w * np.float32(flat[o01 + one] - flat[o01])
                v10 = np.float32(flat[o10]) + w * np.float32(flat[o10 + one] - flat[o10])
                v11 = np.float32(flat[o11]) + w * np.float32(flat[o11 + one] - flat[o11])
                v00 += v * (v01 - v00)
                v10 += v * (v11 - v10)
                value = np.float32(1) + (v00 + u * (v10 - v00)) * np.float32(0.001)
                density[i, j, k] = max(value, np.float32(0))
                kind = np.uint8(0)
                k0, k1, k2, k3 = kinds[o], kinds[o + one], kinds[o01], kinds[o01 + one]
                k4, k5, k6, k7 = kinds[o10], kinds[o10 + one], kinds[o11], kinds[o11 + one]
                if (k0 | k1 | k2 | k3 | k4 | k5 | k6 | k7) != 0:
                    own = other = np.float32(0)
                    for n, value in enumerate((k0, k1, k2, k3, k4, k5, k6, k7)):
                        share = (u if n & 4 else 1 - u) * (v if n & 2 else 1 - v) * (w if n & 1 else 1 - w)
                        own += share * (value == OWN)
                        other += share * (value == OTHER)
                    kind = np.uint8(OWN if own > 0.5 else OTHER if other > 0.5 else 0)
                found[i, j, k] = kind


@numba.njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _project_parallel(
    cube: np.ndarray, plane: np.ndarray, slope: np.ndarray, length: np.ndarray, pictures: np.ndarray
) -> None:
    """`project_parallel` of one sample. The rays of a picture column share the rows of z that they cross."""
    size = cube.shape[0]
    middle, last = np.float32((size - 1) / 2), np.float32(size - 1)
    line, total = np.empty(size, np.float32), np.empty(size, np.float32)
    for view in range(2):
        for column in range(size):
            total[:] = 0
            column_step = middle - np.float32(column)
            for depth in range(size):
                deep = np.float32(depth) - middle
                beside = middle + plane[view, 0, 0] * column_step + slope[view, 0] * deep
                beside = min(max(beside, np.float32(0)), last)
                i = min(int(beside), size - 2)
                part = beside - np.float32(i)
                one = cube[i, depth] if view == 0 else cube[depth, i]
                two = cube[i + 1, depth] if view == 0 else cube[depth, i + 1]
                for k in range(size):
                    line[k] = one[k] + part * (two[k] - one[k])
                top = middle + plane[view, 1, 0] * column_step + slope[view, 1] * deep
                for row in range(size):
                    up = top + plane[view, 1, 1] * (middle - np.float32(row))
                    up = min(max(up, np.float32(0)), last)
                    k = min(int(up), size - 2)
                    total[row] += line[k] + (up - np.float32(k)) * (line[k + 1] - line[k])
            for row in range(size):
                pictures[view, row, column] = total[row] * length[view]
