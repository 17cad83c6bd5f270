"""Pictures of 3D shapes: a shaded PNG that needs no graphics card, and a turning viewer where a person sits.

The shaded picture casts one parallel ray a pixel and stops where it first meets the shape, so it is exact to the voxel
and looks the same on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from scipy import ndimage

from transvert import levels
from transvert.progress import someone_watches
from transvert.volume import Volume

if TYPE_CHECKING:
    import trimesh

ERROR_LIMIT_MM = 3.0
"""Where the colours of a surface error saturate."""


def shade(
    field: np.ndarray, *, turn_deg: float = 0.0, level: float = 0.5, values: np.ndarray | None = None, finer: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """A shape as seen from the front, with the patient turned.

    Args:
        field: (X, Y, Z), isotropic voxels, RAS order; the shape is where it exceeds `level`.
        turn_deg: how far the viewer walks round: 0 sees the front, 90 the patient's left side, 180 the back.
        level: the value on the surface.
        values: (X, Y, Z), something to read off where each ray ends; nearest voxel.
        finer: pixels a voxel.

    Returns:
        Two (rows, columns) float32 pictures, NaN where no ray meets the shape: brightness from 0 to 1 and the values
        (the depth in voxels where none are given). The head is up; at 0° the patient's right is on the left.
    """
    angle = np.deg2rad(turn_deg)
    # Walking to the patient's left brings what was at -x to the front (+y).
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    around = int(np.ceil(np.hypot(*field.shape[:2]))) if turn_deg % 180 else max(field.shape[:2])
    shape = (around * finer, around * finer, field.shape[2] * finer)
    middle = (np.array(field.shape) - 1) / 2
    offset = middle - turn @ (np.array(shape) - 1) / 2 / finer
    solid = ndimage.affine_transform(field.astype(np.float32), turn / finer, offset, shape, order=1)
    solid = solid[:, ::-1]  # the viewer's side first
    above = solid > level
    hit = above.any(axis=1)
    first = above.argmax(axis=1)
    x, z = np.nonzero(hit)
    y = first[x, z]
    smooth = ndimage.gaussian_filter(solid, 0.8 * finer)
    normal = np.stack([ndimage.sobel(smooth, axis)[x, y, z] for axis in range(3)], axis=-1)
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6)
    # The gradient points inward, as the light travels: from the viewer's upper left, down and into the picture.
    light = np.array([-0.35, 0.8, -0.5]) / np.linalg.norm([-0.35, 0.8, -0.5])
    brightness = 0.35 + 0.65 * np.clip(normal @ light, 0, 1)
    ends = np.stack([x, shape[1] - 1 - y, z], axis=-1) / finer @ turn.T + offset
    if values is None:
        read = y.astype(np.float32)
    else:
        nearest = np.clip(np.rint(ends).astype(int), 0, np.array(values.shape) - 1)
        read = values[tuple(nearest.T)]
    pictures = []
    for found in (brightness, read):
        picture = np.full(hit.shape, np.nan, np.float32)
        picture[x, z] = found
        # From [x, z] to [row, column]: head up, the patient's right (+x) on the left.
        pictures.append(picture[::-1, ::-1].T)
    return pictures[0], pictures[1]


def level_colours(numbers: np.ndarray) -> np.ndarray:
    """(..., 3) RGB of level numbers: the regions differ in hue, neighbours in lightness; told apart by colour-blind eyes."""
    hues = {"C": (0.00, 0.45, 0.70), "T": (0.90, 0.62, 0.00), "L": (0.00, 0.62, 0.45), "S": (0.6, 0.6, 0.6)}
    table = np.zeros((256, 3))
    for number in levels.NAMES:
        light = 0.25 if number % 2 else 0.0
        table[number] = np.array(hues[levels.region(number)]) * (1 - light) + light
    return table[np.nan_to_num(numbers).astype(int)]


def spine_picture(labels: Volume, turn_deg: float) -> np.ndarray:
    """(rows, columns, 3) a label volume, isotropic, seen from the front and turned, coloured by level on white."""
    # A ray may end a little before the voxel it meets, so the labels reach one further.
    grown = np.where(labels.data > 0, labels.data, ndimage.maximum_filter(labels.data, 3))
    brightness, level = shade(labels.data > 0, turn_deg=turn_deg, values=grown)
    coloured = level_colours(level) * np.nan_to_num(brightness)[..., None]
    return np.where(np.isfinite(brightness)[..., None], coloured, 1.0)


def error_picture(probability: np.ndarray, distance_mm: np.ndarray, turn_deg: float) -> np.ndarray:
    """(rows, columns, 3) a predicted vertebra, its surface coloured by its signed distance from the truth.

    Args:
        probability: (S, S, S).
        distance_mm: (S, S, S), signed distance to the true surface, positive outside; red is too large, blue too small.
        turn_deg: as in `shade`.
    """
    brightness, distance = shade(probability, turn_deg=turn_deg, values=distance_mm, finer=2)
    colour = colormaps["RdBu_r"](np.nan_to_num(distance) / (2 * ERROR_LIMIT_MM) + 0.5)[..., :3]
    return np.where(np.isfinite(brightness)[..., None], colour * np.nan_to_num(brightness)[..., None], 1.0)


def viewer(meshes: Mapping[int, trimesh.Trimesh]) -> Any:
    """A k3d plot of surfaces by level, to be turned with the mouse; None where nobody watches.

    Args:
        meshes: VerSe level to surface, RAS mm.
    """
    if not someone_watches():
        return None
    import sys

    import k3d

    if "google.colab" in sys.modules:
        from google.colab import output

        output.enable_custom_widget_manager()
    plot = k3d.plot(camera_auto_fit=False, grid_visible=False, axes=["right", "front", "head"], height=600)
    for level, mesh in meshes.items():
        red, green, blue = (255 * level_colours(np.array(level))).astype(int).tolist()
        plot += k3d.mesh(
            np.asarray(mesh.vertices, np.float32),
            np.asarray(mesh.faces, np.uint32),
            color=red << 16 | green << 8 | blue,
            name=levels.name(level),
            flat_shading=False,
        )
    bounds = np.array([mesh.bounds for mesh in meshes.values()])
    low, high = bounds[:, 0].min(0), bounds[:, 1].max(0)
    middle, reach = (low + high) / 2, float((high - low).max())
    # From the front and a little to the patient's left, head up.
    plot.camera = [middle[0] - 0.5 * reach, middle[1] + 1.6 * reach, middle[2] + 0.2 * reach, *middle, 0, 0, 1]
    return plot
