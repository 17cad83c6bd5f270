"""Pictures of 3D shapes: shaded PNGs that need no graphics card, and an interactive viewer.

A shaded picture casts one parallel ray per pixel to the first voxel of the shape, so it looks the same on every machine. The
interactive viewer is k3d. itkwidgets on request is an extra to install, shows voxels and waits for the web, from which it loads.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from transvert import levels
from transvert.data.subjects import merge_levels
from transvert.imaging import mesh
from transvert.io import InputError
from transvert.progress import is_interactive

if TYPE_CHECKING:
    import trimesh

VIEWERS = ("k3d", "itkwidgets", "none")
_LIGHT = np.array([-0.35, 0.8, -0.5])  # Direction of the light: from the viewer's upper left into the picture.


def shade(
    field: np.ndarray, values: np.ndarray, *, turn_deg: float = 0.0, scale: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a shape as a viewer sees it who walks around the patient.

    Args:
        field: (X, Y, Z), isotropic voxels, RAS order; the shape is where it exceeds 0.5.
        values: (X, Y, Z), read at the nearest voxel where each ray ends.
        turn_deg: viewing direction: 0 from the front, 90 from the patient's left, 180 from the back.
        scale: pixels per voxel.

    Returns:
        Two (rows, columns) float32 pictures, NaN outside the shape: brightness from 0 to 1, and the values. The head is up;
        at 0 degrees the patient's right is on the left.
    """
    angle = np.deg2rad(turn_deg)
    # A viewer at the patient's left (-x) sees there what stands at the front (+y) otherwise.
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    width = int(np.ceil(np.hypot(*field.shape[:2]))) if turn_deg % 180 else max(field.shape[:2])
    shape = (width * scale, width * scale, field.shape[2] * scale)
    middle = (np.array(field.shape) - 1) / 2
    offset = middle - turn @ (np.array(shape) - 1) / 2 / scale
    solid = ndimage.affine_transform(field, turn / scale, offset, shape, np.float32, order=1)
    solid = solid[:, ::-1]  # Now y grows away from the viewer.
    above = solid > 0.5
    hit = above.any(axis=1)
    x, z = np.nonzero(hit)
    y = above.argmax(axis=1)[x, z]
    smooth = ndimage.gaussian_filter(solid, 0.8 * scale, output=solid)  # In place, to save memory.
    inward = np.stack([ndimage.sobel(smooth, axis)[x, y, z] for axis in range(3)], axis=-1)
    inward /= np.maximum(np.linalg.norm(inward, axis=-1, keepdims=True), 1e-6)
    brightness = 0.35 + 0.65 * np.clip(inward @ (_LIGHT / np.linalg.norm(_LIGHT)), 0, 1)
    ends = np.stack([x, shape[1] - 1 - y, z], axis=-1) / scale @ turn.T + offset
    nearest = np.clip(np.rint(ends).astype(int), 0, np.array(values.shape) - 1)
    pictures = []
    for found in (brightness, values[tuple(nearest.T)]):
        picture = np.full(hit.shape, np.nan, np.float32)
        picture[x, z] = found
        # From [x, z] to [row, column]: head up, the patient's right (+x) on the left.
        pictures.append(picture[::-1, ::-1].T)
    return pictures[0], pictures[1]


def level_colours(numbers: np.ndarray) -> np.ndarray:
    """(..., 3) RGB of VerSe numbers: regions differ in hue and neighbours in lightness, visible to colour-blind readers."""
    hues = {"C": (0.00, 0.45, 0.70), "T": (0.90, 0.62, 0.00), "L": (0.00, 0.62, 0.45), "S": (0.6, 0.6, 0.6)}
    table = np.zeros((256, 3))
    for number in levels.NAMES:
        light = 0.25 if number % 2 else 0.0
        table[number] = np.array(hues[levels.region(number)]) * (1 - light) + light
    return table[np.nan_to_num(numbers).astype(int)]


def view_surfaces(meshes: Mapping[int, trimesh.Trimesh], viewer: str = "") -> Any:
    """An interactive view of surfaces by VerSe level, RAS mm, to be displayed; None if there is no interactive front end.

    `viewer` is one of `VIEWERS`, by default the environment variable TRANSVERT_VIEWER, else k3d. If itkwidgets cannot be
    used, a sentence says why and k3d is used. An unknown viewer raises an InputError.
    """
    viewer = viewer or os.environ.get("TRANSVERT_VIEWER") or "k3d"
    if viewer not in VIEWERS:
        raise InputError(f"'{viewer}' is not a viewer; use k3d, itkwidgets or none.")
    if viewer == "none" or not meshes or not is_interactive():
        return None
    if viewer == "itkwidgets":
        obstacle = _itkwidgets_obstacle()
        if not obstacle:
            return _view_with_itkwidgets(meshes)
        print(f"{obstacle} This is k3d instead.")
    return k3d_plot(meshes)


def k3d_plot(meshes: Mapping[int, trimesh.Trimesh]) -> Any:
    """A k3d plot of surfaces by level, seen from the front and slightly from the left, with axes in RAS mm."""
    import k3d

    if "google.colab" in sys.modules:
        from google.colab import output

        output.enable_custom_widget_manager()
    bounds = np.array([surface.bounds for surface in meshes.values()])
    low, high = bounds[:, 0].min(0), bounds[:, 1].max(0)
    middle = (low + high) / 2
    plot = k3d.plot(camera_auto_fit=False, grid_visible=False, axes=["right", "front", "head"], height=600)
    plot.camera = [*(middle + float((high - low).max()) * np.array([-0.5, 1.6, 0.2])), *middle, 0, 0, 1]
    for level, surface in meshes.items():
        colour = int((255 * level_colours(np.array(level))).astype(int) @ [1 << 16, 1 << 8, 1])
        vertices, faces = np.asarray(surface.vertices, np.float32), np.asarray(surface.faces, np.uint32)
        plot += k3d.mesh(vertices, faces, name=levels.name(level), flat_shading=False, color=colour)
    return plot


def _view_with_itkwidgets(meshes: Mapping[int, trimesh.Trimesh]) -> None:
    """Shows the surfaces' voxels of 1 mm in ITK's own frame, which is LPS; itkwidgets displays itself."""
    import itkwidgets
    import ngff_zarr

    labels = merge_levels({level: mesh.voxelise(surface, 1.0) for level, surface in meshes.items()})
    last, first = labels.world(np.array(labels.data.shape) - 1), labels.affine[:3, 3]
    start = dict(zip("xyz", (-last[0], -last[1], first[2]), strict=True))
    flipped = np.ascontiguousarray(labels.data[::-1, ::-1].T)
    image = ngff_zarr.to_ngff_image(flipped, dims=["z", "y", "x"], scale=dict.fromkeys("xyz", 1.0), translation=start)
    itkwidgets.view(label_image=image)


def _itkwidgets_obstacle() -> str:
    """Why itkwidgets cannot be used here, in a sentence; "" if it can. Used regardless, it blocks every later cell."""
    # The extension answers itkwidgets in JupyterLab.
    if find_spec("itkwidgets") is None or find_spec("imjoy_jupyterlab_extension") is None:
        return "itkwidgets is not installed: pip install 'transvert[itkwidgets]', and load the page again."
    from IPython.core.getipython import get_ipython

    # Independent of TRANSVERT_VIEWER: without a browser itkwidgets waits forever.
    if not getattr(getattr(get_ipython(), "kernel", None), "_allow_stdin", False):
        return "itkwidgets needs a person's browser, and this run has none."
    return ""
