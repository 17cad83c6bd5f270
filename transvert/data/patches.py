"""Patches of radiographs around a vertebra, as a network expects them.

A cone beam reaches a vertebra far from the central ray obliquely, up to 15 degrees on a whole-spine radiograph. A network
trained with rays along y and x of its cube would take this for a tilt of the vertebra. Its cube is therefore rotated
until the local AP ray runs along y and the local lateral ray along x, as closely as the two rays allow, and each patch is
sampled in the rotated cube's own plane. This companion's choice; the paper does not treat it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from transvert import levels
from transvert.drr.geometry import View
from transvert.io import InputError

SIZE = 64  #: Pixels along each side of a patch, and voxels along each side of a cube.
SPACING_MM = 1.5
CENTROID_SIGMA_MM = 5.0  #: Standard deviation of a centroid map's Gaussian, as in the public port of the paper.
LEAST_ANGLE_DEG = 45.0  #: Smallest angle between the rays of two views at a vertebra.
CLIP = 5.0
"""Standardised patches are clipped to this many standard deviations, for the sake of films with metal implants."""
LOCAL_PIXELS = 8.0  #: Standard deviation of the Gaussian neighbourhood of `standardise`: 12 mm in a patch.
FLOOR = 0.1
"""Share of the whole patch's variance that is added to the local one, so that noise is not amplified to look like bone."""
_PARTS = 3  #: Least number of image samples per patch pixel along rows and columns before the image is binned.


def crop_patches(
    films: Sequence[np.ndarray],
    views: tuple[View, View],
    clicks: Sequence[Mapping[int, np.ndarray]],
    level: int,
    centre: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """A network's input for one vertebra, and the axes of the cube that the network predicts.

    Args:
        films: the AP and the lateral picture, (rows, columns); brighter is more attenuation.
        views: their views.
        clicks: the landmarks in each picture, VerSe number to (2,) row and column; the neighbours' are used too.
        level: the vertebra's VerSe number.
        centre: (3,) RAS mm, of the cube.

    Returns:
        (2, 4, 64, 64) float32 as from `network_input`, and (3, 3) as from `local_axes`.
    """
    axes = local_axes(*views, centre)
    patches, valid, offsets, around = [], [], [], np.full((2, 2, 2), np.nan)
    for which, (pixels, view, marked) in enumerate(zip(films, views, clicks, strict=True)):
        steps = plane(axes, which)
        patch, inside = cut_patch(pixels, view, centre, SIZE, SPACING_MM, steps)
        patches.append(patch)
        valid.append(inside)
        # The two rays rarely meet, so each landmark lies a little off its patch's centre.
        offsets.append(offset_mm(view, marked[level], centre, steps))
        for n, step in enumerate((-1, 1)):
            if other := levels.neighbour(marked, level, step):
                around[which, n] = offset_mm(view, marked[other], centre, steps)
    return network_input(np.array(patches), np.array(valid), np.array(offsets), around, level), axes


def local_axes(ap: View, lateral: View, point: np.ndarray) -> np.ndarray:
    """The right-handed frame nearest to the rays of an AP (or PA) and a lateral view at a point (3,) RAS mm.

    The signs of the rays follow the pictures, so that AP and PA views give one frame, and so do both lateral views.

    Returns:
        (3, 3), its columns are unit vectors in RAS: to the right, front and head of a patient as straight as the views.

    Raises:
        InputError: the two rays are nearly parallel.
    """
    front, right = _oriented_ray(ap, point, 1), _oriented_ray(lateral, point, -1)
    if abs(right @ front) > np.cos(np.radians(LEAST_ANGLE_DEG)):
        names = f"'{ap.name}' and '{lateral.name}'"
        raise InputError(f"The views {names} see the spine from nearly one side; give an AP film and a lateral one.")
    up = np.cross(right, front)
    left, _, last = np.linalg.svd(np.stack([right, front, up / np.linalg.norm(up)], axis=1))
    return left @ last


def plane(axes: np.ndarray, which: int) -> np.ndarray:
    """(2, 3) RAS: the row and column directions of the AP patch (0) or lateral patch (1) in a frame of `local_axes`."""
    return -np.stack([axes[:, 2], axes[:, which]])


def offset_mm(view: View, pixel: np.ndarray, centre: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(2,) mm along rows and columns from a patch's centre to the point where the ray of a pixel meets the patch's plane."""
    start, way = view.rays(np.asarray(pixel, float))
    normal = np.cross(*steps)
    passed = start + way * ((centre - start) @ normal / (way @ normal))
    return steps @ (passed - centre)


def _oriented_ray(view: View, point: np.ndarray, sign: int) -> np.ndarray:
    """(3,) the unit ray through a point, pointing to the patient's front (AP or PA view, 1) or right (lateral, -1)."""
    way = view.ray_through(point)
    return way * np.sign(sign * (way @ np.cross(view.row_step, view.column_step)))


def standardise(patch: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Removes local brightness and contrast, so that the patch shows the vertebra and not the body.

    Lungs, heart and the body's outline vary 10 to 30 times as much over a patch as the vertebra's bone does (measured on
    the embedded chest CT), and grey scales differ between films. The mean around each pixel is subtracted, and the result
    divided by the standard deviation around it, both weighted by a Gaussian of `LOCAL_PIXELS`. This companion's choice.

    Args:
        patch: (N, N) float.
        valid: (N, N) bool, False beyond the film, whose last pixel is left out too. NaN is never valid.

    Returns:
        (N, N) float32, clipped to -CLIP..CLIP; 0 where not valid, and everywhere in a constant patch.
    """
    valid = np.isfinite(patch) if valid is None else np.isfinite(patch) & valid
    # The outermost pixels are only half covered and would be the strongest edge of the patch.
    valid = ndimage.binary_erosion(valid, np.ones((3, 3)), border_value=1)
    if not valid.any():
        return np.zeros(patch.shape, np.float32)
    values = np.where(valid, patch, 0).astype(float)
    values = np.where(valid, values - values[valid].mean(), 0)
    size = np.abs(values).max()
    # Relative to the values: in a constant patch only the rounding error of the mean is left.
    if size <= 1e-6 * np.abs(patch[valid]).max():
        return np.zeros(patch.shape, np.float32)
    rows, columns = (smoothing_matrix(n) for n in patch.shape)
    weight = np.maximum(rows @ valid @ columns.T, 1e-6)
    detail = np.where(valid, values - rows @ values @ columns.T / weight, 0)
    spread = rows @ detail**2 @ columns.T / weight
    spread = np.sqrt(spread + FLOOR * (detail**2).sum() / valid.sum())
    return np.clip(detail / spread, -CLIP, CLIP).astype(np.float32)


@functools.cache
def smoothing_matrix(size: int) -> np.ndarray:
    """(size, size) float64; row i weights the pixels of a line by a Gaussian of `LOCAL_PIXELS` around pixel i."""
    distance = np.subtract.outer(np.arange(size), np.arange(size))
    return np.exp(-0.5 * (distance / LOCAL_PIXELS) ** 2)


def cut_patch(
    image: np.ndarray, view: View, centre: np.ndarray, size: int, spacing_mm: float, steps: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Samples a picture where it shows a square in space, so that the patch is life-sized at any magnification.

    Each point is projected along its own ray. Where the patch is coarser than the picture, a point is the mean over its
    own small square, to avoid aliasing.

    Args:
        image: (rows, columns) float, a picture of `view`.
        view: parallel, cone or slot.
        centre: (3,) RAS mm, of the patch.
        size: points along each side.
        spacing_mm: between points, in the square.
        steps: (2, 3) unit vectors along the square's rows and columns; by default the view's own.

    Returns:
        (size, size) float32, 0 beyond the picture, and (size, size) bool, True within it.
    """
    if image.shape != view.shape:
        raise InputError(f"A picture of {image.shape} is not one of the view '{view.name}', which has {view.shape}.")
    centre = np.asarray(centre, float)
    if steps is None:
        steps = np.stack([view.row_step / view.pixel_mm[0], view.column_step / view.pixel_mm[1]])
    row_step, column_step = steps

    def pixels(parts: tuple[int, int]) -> np.ndarray:
        """The picture's pixel at each point of the patch, which is split into parts along rows and columns."""
        rows_mm, columns_mm = (((np.arange(size * n) + 0.5) / n - size / 2) * spacing_mm for n in parts)
        return view.project(centre + rows_mm[:, None, None] * row_step + columns_mm[None, :, None] * column_step)

    where = pixels((1, 1))
    valid = np.all((where >= -0.5) & (where <= np.array(image.shape) - 0.5), axis=-1)
    if not valid.any():
        return np.zeros((size, size), np.float32), valid
    coarser = spacing_mm * view.magnification(centre) / np.array(view.pixel_mm)
    # If the picture's pixels are much finer, several are binned into one before sampling.
    factor = np.maximum(coarser // _PARTS, 1).astype(int)
    image, first = _bin(image, where, factor)
    rows, columns = np.maximum(np.ceil(coarser / factor - 0.25), 1).astype(int).tolist()
    where = np.nan_to_num((pixels((rows, columns)) - first) / factor)
    sampled = ndimage.map_coordinates(image, np.moveaxis(where, -1, 0), output=np.float32, order=1, mode="nearest")
    patch = sampled.reshape(size, rows, size, columns).mean(axis=(1, 3))
    return np.where(valid, patch, np.float32(0)), valid


def _bin(image: np.ndarray, where: np.ndarray, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bins the part of a picture around pixels (..., 2); also gives the centre of its first bin, (2,) row and column."""
    if (factor == 1).all():
        return image, np.zeros(2)
    low = (np.nanmin(where, axis=(0, 1)) - 2 * factor).clip(0, image.shape - factor).astype(int)
    high = (np.nanmax(where, axis=(0, 1)) + 3 * factor).clip(low + factor, image.shape).astype(int)
    rows, columns = (high - low) // factor
    part = image[low[0] : low[0] + rows * factor[0], low[1] : low[1] + columns * factor[1]]
    coarse = part.reshape(rows, factor[0], columns, factor[1]).mean(axis=(1, 3), dtype=np.float32)
    return coarse, low + (factor - 1) / 2


def centroid_map(offset: np.ndarray, sigma_mm: float = CENTROID_SIGMA_MM) -> np.ndarray:
    """(64, 64) float32: a Gaussian that is 1 at the landmark, `offset` (2,) mm from the patch's centre."""
    steps = (np.arange(SIZE) - (SIZE - 1) / 2) * SPACING_MM
    rows, columns = (np.exp(-0.5 * ((steps - o) / sigma_mm) ** 2) for o in offset)
    return np.outer(rows, columns).astype(np.float32)


def network_input(
    patches: np.ndarray,
    valid: np.ndarray,
    offsets: np.ndarray,
    neighbours: np.ndarray | None = None,
    level: int | None = None,
) -> np.ndarray:
    """A network's input from two patches and what is known about the vertebra.

    Args:
        patches: (2, 64, 64), AP and lateral, brighter is more attenuation, any linear grey scale.
        valid: (2, 64, 64) bool, False beyond the film.
        offsets: (2, 2) mm along rows and columns from each patch's centre to its landmark.
        neighbours: (2, 2, 2) mm, per view from the patch's centre to the landmarks of the vertebrae above and below; NaN
            where unknown. None for none.
        level: VerSe number; None where unknown.

    Returns:
        (2, 4, 64, 64) float32: per view the standardised patch, the centroid map, the map of the neighbours' centroids,
        and a constant plane of `level_code`.
    """
    neighbours = np.full((2, 2, 2), np.nan) if neighbours is None else neighbours
    plane = np.full((SIZE, SIZE), level_code(level), np.float32)
    views = []
    for patch, inside, offset, around in zip(patches, valid, offsets, neighbours, strict=True):
        beside = sum((centroid_map(o) for o in around if np.isfinite(o).all()), np.zeros_like(plane))
        views.append([standardise(patch, inside), centroid_map(offset), beside, plane])
    return np.array(views, np.float32)


def level_code(level: int | None) -> float:
    """The value of the level channel: 1 for C1, 2 for C2 and so on down the spine; 0 where the level is unknown."""
    return 0.0 if level is None else 1.0 + levels.place(level)


def neighbour_offsets(numbers: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """(N, 2, 3) mm from each centroid to those of the vertebrae above and below; NaN where that one is absent.

    Args:
        numbers: (N,) VerSe numbers.
        centroids: (N, 3) RAS mm.
    """
    rows = {int(n): row for row, n in enumerate(numbers)}
    found = np.full((len(numbers), 2, 3), np.nan, np.float32)
    for level, row in rows.items():
        for n, step in enumerate((-1, 1)):
            if other := levels.neighbour(rows, level, step):
                found[row, n] = centroids[rows[other]] - centroids[row]
    return found


def in_pictures(steps_mm: np.ndarray) -> np.ndarray:
    """Steps (N, K, 3) in RAS along rows and columns of the AP and the lateral picture, (N, 2, K, 2)."""
    return -np.stack([steps_mm[..., [2, 0]], steps_mm[..., [2, 1]]], axis=1)
