"""Pictures of 3D shapes: shaded PNGs that need no graphics card, and an interactive viewer.

A shaded picture casts one parallel ray per pixel to the first voxel of the shape, so it looks the same on every machine. The
interactive viewer is k3d, or itkwidgets on request, which is an extra to install, shows voxels and needs the web.
"""

from __future__ import annotations

import itertools
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from transvert import levels
from transvert.imaging import mesh
from transvert.imaging.volume import Volume, cube_affine
from transvert.io import InputError
from transvert.progress import is_interactive

if TYPE_CHECKING:
    import trimesh

VIEWERS = ("k3d", "itkwidgets")
ANSWER_TIMEOUT_S = 2.0
"""Time limit for each of the sites that itkwidgets loads from."""
_IMJOY_PAGES = ("https://lib.imjoy.io/imjoy-loader.js", "https://imjoy-team.github.io/vue-js-modal/index.js")
_LIGHT = np.array([-0.35, 0.8, -0.5])  # Direction of the light: from the viewer's upper left into the picture.


def shade(
    field: np.ndarray, *, turn_deg: float = 0.0, level: float = 0.5, values: np.ndarray | None = None, scale: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a shape as a viewer sees it who walks around the patient.

    Args:
        field: (X, Y, Z), isotropic voxels, RAS order; the shape is where it exceeds `level`.
        turn_deg: viewing direction: 0 from the front, 90 from the patient's left, 180 from the back.
        level: value on the surface.
        values: (X, Y, Z), read at the nearest voxel where each ray ends.
        scale: pixels per voxel.

    Returns:
        Two (rows, columns) float32 pictures, NaN outside the shape: brightness from 0 to 1, and the values (depth in voxels
        without `values`). The head is up; at 0 degrees the patient's right is on the left.
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
    above = solid > level
    hit = above.any(axis=1)
    first = above.argmax(axis=1)
    x, z = np.nonzero(hit)
    y = first[x, z]
    smooth = ndimage.gaussian_filter(solid, 0.8 * scale, output=solid)  # In place, to save memory.
    inward = _sobel_at(smooth, np.stack([x, y, z], axis=-1))
    inward /= np.maximum(np.linalg.norm(inward, axis=-1, keepdims=True), 1e-6)
    brightness = 0.35 + 0.65 * np.clip(inward @ (_LIGHT / np.linalg.norm(_LIGHT)), 0, 1)
    if values is None:
        read = y.astype(np.float32)
    else:
        ends = np.stack([x, shape[1] - 1 - y, z], axis=-1) / scale @ turn.T + offset
        nearest = np.clip(np.rint(ends).astype(int), 0, np.array(values.shape) - 1)
        read = values[tuple(nearest.T)]
    pictures = []
    for found in (brightness, read):
        picture = np.full(hit.shape, np.nan, np.float32)
        picture[x, z] = found
        # From [x, z] to [row, column]: head up, the patient's right (+x) on the left.
        pictures.append(picture[::-1, ::-1].T)
    return pictures[0], pictures[1]


def light_picture(brightness: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """(rows, columns, 3) RGB on white from a brightness of `shade` and colours (rows, columns, 3)."""
    lit = colours * np.nan_to_num(brightness)[..., None]
    return np.where(np.isfinite(brightness)[..., None], lit, 1.0)


def level_colours(numbers: np.ndarray) -> np.ndarray:
    """(..., 3) RGB of VerSe numbers: regions differ in hue and neighbours in lightness, visible to colour-blind readers."""
    hues = {"C": (0.00, 0.45, 0.70), "T": (0.90, 0.62, 0.00), "L": (0.00, 0.62, 0.45), "S": (0.6, 0.6, 0.6)}
    table = np.zeros((256, 3))
    for number in levels.NAMES:
        light = 0.25 if number % 2 else 0.0
        table[number] = np.array(hues[levels.region(number)]) * (1 - light) + light
    return table[np.nan_to_num(numbers).astype(int)]


def view_surfaces(meshes: Mapping[int, trimesh.Trimesh], viewer: str = "") -> Any:
    """An interactive view of surfaces, to be displayed; None if there is no interactive front end.

    Args:
        meshes: VerSe level to surface, RAS mm.
        viewer: one of `VIEWERS`, or "none"; by default the environment variable TRANSVERT_VIEWER, else k3d. If itkwidgets
            is unavailable, a sentence says why and k3d is used.

    Raises:
        InputError: an unknown viewer.
    """
    viewer = viewer or os.environ.get("TRANSVERT_VIEWER") or "k3d"
    if viewer not in (*VIEWERS, "none"):
        raise InputError(f"'{viewer}' is not a viewer; use {', '.join(VIEWERS)} or none.")
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


def label_volume(meshes: Mapping[int, trimesh.Trimesh], spacing_mm: float = 1.0) -> Volume:
    """Surfaces by level as a label volume, uint8; where two overlap, the later one counts."""
    solids = {level: mesh.voxelise(surface, spacing_mm) for level, surface in meshes.items()}
    # All their grids are parts of one.
    firsts = {level: np.rint(solid.affine[:3, 3] / spacing_mm).astype(int) for level, solid in solids.items()}
    first = np.min(list(firsts.values()), axis=0)
    last = np.max([firsts[level] + solid.data.shape for level, solid in solids.items()], axis=0)
    data = np.zeros(last - first, np.uint8)
    for level, solid in solids.items():
        block = tuple(slice(a, a + n) for a, n in zip(firsts[level] - first, solid.data.shape, strict=True))
        data[block][solid.data > 0] = level
    return Volume(data, cube_affine(first * spacing_mm, 1, spacing_mm))


def _sobel_at(field: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """(N, 3) Sobel gradient of a field (X, Y, Z) at voxels (N, 3) alone, which saves two thirds of the memory."""
    gradient = np.zeros(voxels.shape, np.float32)
    last = np.array(field.shape) - 1
    for step in itertools.product((-1, 0, 1), repeat=3):
        beside = field[tuple(np.clip(voxels + step, 0, last).T)]
        for axis, along in enumerate(step):
            if along:
                gradient[:, axis] += along * 2.0 ** step.count(0) * beside
    return gradient


def _view_with_itkwidgets(meshes: Mapping[int, trimesh.Trimesh]) -> None:
    """Shows voxels in ITK's own frame, which is LPS; itkwidgets displays itself."""
    import itkwidgets
    import ngff_zarr

    labels = label_volume(meshes)
    far = labels.world(np.array(labels.data.shape) - 1)
    start = dict(zip("xyz", (-far[0], -far[1], labels.affine[2, 3]), strict=True))
    spacing = dict(zip("xyz", labels.spacing_mm, strict=True))
    flipped = np.ascontiguousarray(labels.data[::-1, ::-1].T)
    image = ngff_zarr.to_ngff_image(flipped, dims=["z", "y", "x"], scale=spacing, translation=start)
    itkwidgets.view(label_image=image)


def _itkwidgets_obstacle() -> str:
    """Why itkwidgets cannot be used here, in a sentence; "" if it can. Used regardless, it blocks every later cell."""
    found = find_spec("itkwidgets")
    # The extension answers itkwidgets in JupyterLab.
    if found is None or found.origin is None or find_spec("imjoy_jupyterlab_extension") is None:
        return "itkwidgets is not installed: pip install 'transvert[itkwidgets]', and load the page again."
    from IPython.core.getipython import get_ipython

    # Independent of TRANSVERT_VIEWER: without a browser itkwidgets waits forever.
    if not getattr(getattr(get_ipython(), "kernel", None), "_allow_stdin", False):
        return "itkwidgets needs a person's browser, and this run has none."
    # Its configuration alone: importing the package takes over the cells.
    config = runpy.run_path(str(Path(found.origin).with_name("viewer_config.py")))
    host = _silent_host([config["ITK_VIEWER_SRC"], config["PYDATA_SPHINX_HREF"], *_IMJOY_PAGES])
    return f"itkwidgets loads its viewer from {host}, which does not answer." if host else ""


def _silent_host(pages: Sequence[str]) -> str:
    """The host of the first page that does not answer within `ANSWER_TIMEOUT_S`; "" if all do."""
    import requests

    for page in pages:
        try:
            requests.head(page, timeout=ANSWER_TIMEOUT_S, allow_redirects=True).raise_for_status()
        except requests.RequestException:
            return page.split("/")[2]
    return ""
