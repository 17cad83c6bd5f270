"""Patches that look along a vertebra's own rays: the frame of its two local rays, and pictures cut in that frame.

A cone's rays reach a vertebra far from the central ray askew, up to 15 degrees on a whole spine's film. A network that
has learned from rays along y and x of its cube would take that for a lean of the vertebra. Its cube is therefore turned
until the local AP ray runs along y and the local lateral ray along x, as nearly as two rays that are not quite square
allow, and each patch is cut in the turned cube's own plane. What is left is the rays' spread over the cube itself, 2
degrees at its rim.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from transvert import film, samples
from transvert.files import InputError
from transvert.geometry import View
from transvert.samples import SIZE, SPACING_MM

LEAST_ANGLE_DEG = 45.0
"""Between two views' rays at a vertebra. With less, they see it from nearly one side."""


def look(
    films: Sequence[np.ndarray], views: tuple[View, View], clicks: Sequence[np.ndarray], centre: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What a network is shown of one vertebra, and the axes of the cube in which it answers.

    Args:
        films: the AP and the lateral film's pictures, brighter is more attenuation.
        views: theirs.
        clicks: the vertebra's landmark in each, (2,) row and column.
        centre: (3,) RAS mm, where the vertebra is placed.

    Returns:
        (2, 2, 64, 64) float32 as `samples.network_input` makes it, and (3, 3) as `local_axes` gives them.
    """
    axes = local_axes(*views, centre)
    squares = [plane(axes, which) for which in (0, 1)]
    cuts = [
        film.cut_patch(pixels, view, centre, SIZE, SPACING_MM, square)
        for pixels, view, square in zip(films, views, squares, strict=True)
    ]
    # The rays rarely meet: each view's own landmark lies a little off its patch's centre.
    offsets = [
        offset_mm(view, click, centre, square) for view, click, square in zip(views, clicks, squares, strict=True)
    ]
    patches, valid = (np.array(parts) for parts in zip(*cuts, strict=True))
    return samples.network_input(patches, valid, np.array(offsets)), axes


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
    return way * np.sign(sign * (way @ np.cross(view.down, view.across)))
