"""Patches that look along a vertebra's own rays: the frame of its two local rays, and pictures cut in that frame.

A cone's rays reach a vertebra far from the central ray askew, up to 15 degrees on a whole spine's film. A network that
has learned from rays along y and x of its cube would take that for a lean of the vertebra. Its cube is therefore turned
until the local AP ray runs along y and the local lateral ray along x, as nearly as two rays that are not quite square
allow, and each patch is cut in the turned cube's own plane. What is left is the rays' spread over the cube itself, 2
degrees at its rim.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from transvert.drr.geometry import View
from transvert.io import InputError

SIZE = 64

SPACING_MM = 1.5

CENTROID_SIGMA_MM = 5.0
"""The width of a centroid map's Gaussian, as the public port of the paper draws it."""


LEAST_ANGLE_DEG = 45.0
"""Between two views' rays at a vertebra. With less, they see it from nearly one side."""


def crop_patches(
    films: Sequence[np.ndarray], views: tuple[View, View], clicks: Sequence[np.ndarray], centre: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What a network is shown of one vertebra, and the axes of the cube in which it answers.

    Args:
        films: the AP and the lateral film's pictures, brighter is more attenuation.
        views: theirs.
        clicks: the vertebra's landmark in each, (2,) row and column.
        centre: (3,) RAS mm, where the vertebra is placed.

    Returns:
        (2, 2, 64, 64) float32 as `network_input` makes it, and (3, 3) as `local_axes` gives them.
    """
    axes = local_axes(*views, centre)
    squares = [plane(axes, which) for which in (0, 1)]
    cuts = [
        cut_patch(pixels, view, centre, SIZE, SPACING_MM, square)
        for pixels, view, square in zip(films, views, squares, strict=True)
    ]
    # The rays rarely meet: each view's own landmark lies a little off its patch's centre.
    offsets = [
        offset_mm(view, click, centre, square) for view, click, square in zip(views, clicks, squares, strict=True)
    ]
    patches, valid = (np.array(parts) for parts in zip(*cuts, strict=True))
    return network_input(patches, valid, np.array(offsets)), axes


def local_axes(ap: View, lateral: View, point: np.ndarray) -> np.ndarray:
    """The frame in which two views see a small thing straight from the front and from the side.

    Of all right-handed frames it is the one nearest to the two rays, their signs as in the pictures: AP and PA views
    have one frame, and so have both lateral ones.

    Args:
        ap: a view whose picture has the patient's right on the left.
        lateral: a view whose picture has the patient's front on the left.
        point: (3,) RAS mm.

    Returns:
        (3, 3), the columns are the frame's x, y and z in RAS: to the right, to the front and to the head of a patient
        as straight as the views.

    Raises:
        InputError: the two rays are nearly parallel.
    """
    front, right = (_towards(view, point, sign) for view, sign in ((ap, 1), (lateral, -1)))
    if abs(right @ front) > np.cos(np.radians(LEAST_ANGLE_DEG)):
        raise InputError(
            f"The views '{ap.name}' and '{lateral.name}' see the spine from nearly one side; give an AP (or PA) film and "
            "a lateral one."
        )
    up = np.cross(right, front)
    left, _, last = np.linalg.svd(np.stack([right, front, up / np.linalg.norm(up)], axis=1))
    return left @ last


def plane(axes: np.ndarray, which: int) -> np.ndarray:
    """(2, 3) RAS: down and across in the AP patch (0) or in the lateral patch (1) of a frame of `local_axes`."""
    return -np.stack([axes[:, 2], axes[:, which]])


def offset_mm(view: View, pixel: np.ndarray, centre: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(2,) mm down and across from a square's centre to where the ray of a pixel (2,) passes through the square."""
    start, way = view.rays(np.asarray(pixel, float))
    normal = np.cross(*steps)
    passed = start + way * ((centre - start) @ normal / (way @ normal))
    return steps @ (passed - centre)


def _towards(view: View, point: np.ndarray, sign: int) -> np.ndarray:
    """(3,) the unit ray through a point, turned to the patient's front (an AP or PA view, 1) or right (a lateral, -1)."""
    way = view.direction if view.source is None else point - view.source
    way = way / np.linalg.norm(way)
    return way * np.sign(sign * (way @ np.cross(view.row_step, view.column_step)))


CLIP = 5.0
"""Standardised patches end at this many standard deviations, so that a metal implant leaves contrast to the rest."""
LOCAL_PIXELS = 8.0
"""The neighbourhood in which `standardise` looks: a Gaussian's sigma, 12 mm in a sample's patch."""
_PARTS = 3  # of a patch's pixel, down and across, are what is sampled of a picture at least
FLOOR = 0.1
"""How much of the whole patch's variance is added to the local one, so that noise is not blown up to bone."""


def standardise(patch: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Takes a patch's local brightness and contrast away, so that a network sees the vertebra and not the body.

    On a whole-body radiograph the shadows of lungs, heart and the body's edge vary 10 to 30 times as much over a patch
    as the vertebra's own bone does (measured on the embedded chest CT), and a film's grey scale is anybody's. So each
    pixel is put against the weighted mean and standard deviation around it, a Gaussian of `LOCAL_PIXELS`; film
    processors do the like before a radiologist looks.

    Args:
        patch: (N, N), float.
        valid: (N, N), bool; False where the patch lies beyond the film, whose last pixel is left out too. NaN is never
            valid.

    Returns:
        float32, clipped to -CLIP..CLIP; 0 where not valid, and everywhere in a patch that is constant.
    """
    valid = np.isfinite(patch) if valid is None else np.isfinite(patch) & valid
    # A film's outermost pixels are half film, and would be the strongest edge of the patch.
    valid = ndimage.binary_erosion(valid, np.ones((3, 3)), border_value=1)
    if not valid.any():
        return np.zeros(patch.shape, np.float32)
    values = np.where(valid, patch, 0).astype(float)
    values = np.where(valid, values - values[valid].mean(), 0)
    size = np.abs(values).max()
    # Against the values' size: a constant patch leaves the rounding of its mean, which is no contrast.
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
    """(size, size) float64: row i weights the pixels of a line by a Gaussian of `LOCAL_PIXELS` around pixel i."""
    distance = np.subtract.outer(np.arange(size), np.arange(size))
    return np.exp(-0.5 * (distance / LOCAL_PIXELS) ** 2)


def cut_patch(
    image: np.ndarray,
    view: View,
    centre: np.ndarray,
    size: int,
    spacing_mm: float,
    steps: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Samples a picture where it shows a square in space, so that the patch is life-sized whatever the magnification.

    Each point is where its own ray goes, so that magnification changes across a tilted square as it should. Where the
    patch is coarser than the picture, a point is the mean over its own small square, so that fine detail and noise do
    not alias.

    Args:
        image: (rows, columns) float, a picture of `view`.
        view: parallel or cone.
        centre: (3,) RAS mm, where point ((size - 1) / 2, (size - 1) / 2) of the patch lies.
        size: points a side.
        spacing_mm: between points, in the square.
        steps: (2, 3) unit vectors, down and across in the square; by default along the view's rows and columns.

    Returns:
        (size, size) float32, and (size, size) bool, True where the picture reaches; the patch is 0 elsewhere.

    Raises:
        InputError: a picture that is not the view's.
    """
    if image.shape != view.shape:
        raise InputError(f"A picture of {image.shape} is not one of the view '{view.name}', which has {view.shape}.")
    centre = np.asarray(centre, float)
    down, across = (view.row_step / view.pixel_mm[0], view.column_step / view.pixel_mm[1]) if steps is None else steps

    def pixels(parts: tuple[int, int]) -> np.ndarray:
        """Where the picture shows the patch's points, each split into parts along its rows and columns."""
        rows_mm, columns_mm = (((np.arange(size * n) + 0.5) / n - size / 2) * spacing_mm for n in parts)
        return view.project(centre + rows_mm[:, None, None] * down + columns_mm[None, :, None] * across)

    where = pixels((1, 1))
    valid = np.all((where >= -0.5) & (where <= np.array(image.shape) - 0.5), axis=-1)
    if not valid.any():
        return np.zeros((size, size), np.float32), valid
    coarser = spacing_mm * view.magnification(centre) / np.array(view.pixel_mm)
    # Of a film with much finer pixels, a few of them together are sampled as one.
    together = np.maximum(coarser // _PARTS, 1).astype(int)
    image, first = _bin(image, where, together)
    rows, columns = np.maximum(np.ceil(coarser / together - 0.25), 1).astype(int).tolist()
    where = np.nan_to_num((pixels((rows, columns)) - first) / together)
    sampled = ndimage.map_coordinates(image, np.moveaxis(where, -1, 0), output=np.float32, order=1, mode="nearest")
    patch = sampled.reshape(size, rows, size, columns).mean(axis=(1, 3))
    return np.where(valid, patch, np.float32(0)), valid


def _bin(image: np.ndarray, where: np.ndarray, together: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part of a picture around pixels (..., 2), `together` (2,) rows and columns made one, and its first pixel's middle."""
    if (together == 1).all():
        return image, np.zeros(2)
    low = (np.nanmin(where, axis=(0, 1)) - 2 * together).clip(0, image.shape - together).astype(int)
    high = (np.nanmax(where, axis=(0, 1)) + 3 * together).clip(low + together, image.shape).astype(int)
    (rows, columns), (down, across) = (high - low) // together, together
    part = image[low[0] : low[0] + rows * down, low[1] : low[1] + columns * across]
    coarse = part.reshape(rows, down, columns, across).mean(axis=(1, 3), dtype=np.float32)
    return coarse, low + (together - 1) / 2


def centroid_map(offset: np.ndarray, size: int = SIZE, sigma_mm: float = CENTROID_SIGMA_MM) -> np.ndarray:
    """A Gaussian at the landmark.

    Args:
        offset: (2,) mm down and across from the patch's centre.
        size: pixels a side, `SPACING_MM` apart.
        sigma_mm: of the Gaussian.

    Returns:
        (size, size) float32, 1 at the landmark.
    """
    steps = (np.arange(size) - (size - 1) / 2) * SPACING_MM
    down, across = (np.exp(-0.5 * ((steps - o) / sigma_mm) ** 2) for o in offset)
    return np.outer(down, across).astype(np.float32)


def network_input(patches: np.ndarray, valid: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Two patches as a network wants them.

    Args:
        patches: (2, 64, 64), AP and lateral, brighter is more attenuation, any linear grey scale.
        valid: (2, 64, 64) bool, False beyond the film.
        offsets: (2, 2) mm, each view's landmark, down and across from its patch's centre.

    Returns:
        (2, 2, 64, 64) float32: per view the standardised patch and the centroid map.
    """
    return np.stack(
        [
            np.stack([standardise(patch, inside), centroid_map(offset)])
            for patch, inside, offset in zip(patches, valid, offsets, strict=True)
        ]
    )
