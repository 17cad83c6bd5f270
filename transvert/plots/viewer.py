"""Pictures of 3D shapes: a shaded PNG that needs no graphics card, and a turning viewer where a person sits.

The shaded picture casts one parallel ray a pixel and stops where it first meets the shape, so it is exact to the voxel
and looks the same on every machine.

The viewer is k3d, or on request (a parameter, or TRANSVERT_VIEWER in the environment) one of these, each an extra of its
own to install: pyvista (the scene as HTML that needs no kernel), ipyniivue (reads as films do: radiologists' tool), or
itkwidgets. That one shows voxels, loads itself from the web, and holds every later cell back until it has: it is asked
for by name, where a person sits, and only if its pages answer; otherwise k3d takes its place.
"""

from __future__ import annotations

import itertools
import os
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from scipy import ndimage

from transvert import levels
from transvert.imaging import mesh
from transvert.imaging.volume import Volume, cube_affine
from transvert.io import InputError
from transvert.progress import is_interactive

if TYPE_CHECKING:
    import trimesh

ERROR_LIMIT_MM = 3.0
"""Where the colours of a surface error saturate."""
IMJOY_PAGES = ("https://lib.imjoy.io/imjoy-loader.js", "https://imjoy-team.github.io/vue-js-modal/index.js")
"""What itkwidgets' extension of JupyterLab loads from elsewhere than the viewer itself."""
ANSWERS_WITHIN_S = 2.0
"""How long each of the sites that itkwidgets loads from may take to answer."""
_BESIDE = {"pyvista": "trame_pyvista", "itkwidgets": "imjoy_jupyterlab_extension"}
"""What writes pyvista's page, and what answers itkwidgets in JupyterLab: without it every later cell waits for ever."""


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
    solid = ndimage.affine_transform(field, turn / finer, offset, shape, np.float32, order=1)
    solid = solid[:, ::-1]  # the viewer's side first
    above = solid > level
    hit = above.any(axis=1)
    first = above.argmax(axis=1)
    x, z = np.nonzero(hit)
    y = first[x, z]
    smooth = ndimage.gaussian_filter(solid, 0.8 * finer, output=solid)  # In place of what is not needed any more.
    normal = _slopes(smooth, np.stack([x, y, z], axis=-1))
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


def _slopes(field: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """(N, 3) what Sobel's filter makes of a field (X, Y, Z) along each axis, at voxels (N, 3) alone."""
    slopes = np.zeros(voxels.shape, np.float32)
    last = np.array(field.shape) - 1
    for step in itertools.product((-1, 0, 1), repeat=3):
        beside = field[tuple(np.clip(voxels + step, 0, last).T)]
        for axis, along in enumerate(step):
            if along:
                slopes[:, axis] += along * 2.0 ** step.count(0) * beside
    return slopes


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


def show(figure: Figure, meshes: Mapping[int, trimesh.Trimesh], *, which: str = "") -> None:
    """Shows a figure as PNG, and below it surfaces in 3D where a person watches.

    Args:
        figure: of the same; closed afterwards.
        meshes: VerSe level to surface, RAS mm.
        which: as in `viewer`.

    Raises:
        InputError: as `viewer`.
    """
    from IPython.display import display

    display(figure)
    plt.close(figure)
    plot = viewer(meshes, which)
    if plot is not None:
        display(plot)


def viewer(meshes: Mapping[int, trimesh.Trimesh], which: str = "") -> Any:
    """Surfaces by level, to be turned with the mouse; what comes back is to be displayed, None where nobody watches.

    Args:
        meshes: VerSe level to surface, RAS mm.
        which: a key of `VIEWERS`; without one TRANSVERT_VIEWER decides, else it is k3d. Where a viewer can't be had, a
            sentence says why and k3d takes its place.

    Raises:
        InputError: an unknown viewer.
    """
    which = which or os.environ.get("TRANSVERT_VIEWER") or "k3d"
    if which not in (*VIEWERS, "none"):
        raise InputError(f"'{which}' is not a viewer; use {', '.join(VIEWERS)} or none.")
    if which == "none" or not meshes or not is_interactive():
        return None
    why = _obstacle(which)
    if why:
        print(f"{why} This is k3d instead.")
        which = "k3d"
    return VIEWERS[which](meshes)


def k3d_plot(meshes: Mapping[int, trimesh.Trimesh]) -> Any:
    """A k3d plot of surfaces by level; it has axes in RAS mm."""
    plot = k3d_scene(*_bounds(meshes))
    for level, surface in meshes.items():
        plot += k3d_mesh(surface, levels.name(level), level_colours(np.array(level)))
    return plot


def k3d_scene(low: np.ndarray, high: np.ndarray) -> Any:
    """An empty k3d plot of a box from `low` (3,) to `high` (3,), RAS mm, seen from the front and a little from the left."""
    import k3d

    _let_colab_draw()
    plot = k3d.plot(camera_auto_fit=False, grid_visible=False, axes=["right", "front", "head"], height=600)
    plot.camera = [*np.ravel(_camera(low, high)), 0, 0, 1]
    return plot


def k3d_mesh(surface: trimesh.Trimesh, name: str, colour: np.ndarray, values_mm: np.ndarray | None = None) -> Any:
    """A surface as k3d draws it.

    Args:
        surface: RAS mm.
        name: in k3d's list of objects.
        colour: (3,) RGB, 0 to 1.
        values_mm: (vertices,) signed distances instead of the colour: red is too large, blue too small.
    """
    import k3d

    how: dict[str, Any] = {"color": int(_bytes(colour) @ [1 << 16, 1 << 8, 1])}
    if values_mm is not None:
        ramp = [[x, *colormaps["RdBu_r"](x)[:3]] for x in np.linspace(0, 1, 17)]
        limits = [-ERROR_LIMIT_MM, ERROR_LIMIT_MM]
        # Without a colour of its own, which k3d would multiply by.
        how = {"attribute": values_mm.astype(np.float32), "color_map": np.ravel(ramp), "color_range": limits}
    vertices, faces = np.asarray(surface.vertices, np.float32), np.asarray(surface.faces, np.uint32)
    return k3d.mesh(vertices, faces, name=name, flat_shading=False, **how)


def label_volume(meshes: Mapping[int, trimesh.Trimesh], spacing_mm: float = 1.0) -> Volume:
    """Surfaces by level as a volume of their numbers, uint8; where two overlap, the later one."""
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


def _pyvista(meshes: Mapping[int, trimesh.Trimesh]) -> Any:
    """The scene in a frame of its own, as HTML without a server, so that it also turns where no kernel runs."""
    import html

    import pyvista
    from IPython.display import HTML

    plotter = pyvista.Plotter(off_screen=True)
    for level, surface in meshes.items():
        colour = level_colours(np.array(level))
        plotter.add_mesh(pyvista.wrap(surface), color=colour.tolist(), name=levels.name(level), smooth_shading=True)
    plotter.camera_position = [*_camera(*_bounds(meshes)), (0, 0, 1)]
    page = plotter.trame.export_html(None).getvalue()
    plotter.close()
    frame = f'<iframe srcdoc="{html.escape(page)}" style="width: 100%; height: 600px; border: 0"></iframe>'
    return HTML(f"<div>{frame}</div>")  # IPython warns of a bare frame.


def _ipyniivue(meshes: Mapping[int, trimesh.Trimesh]) -> Any:
    from ipyniivue import NiiVue

    _let_colab_draw()
    plot = NiiVue(height=600)
    parts = []
    for level, surface in meshes.items():
        name = f"{levels.name(level)}.stl"
        colour = [*_bytes(level_colours(np.array(level))).tolist(), 255]
        parts.append({"name": name, "data": surface.export(file_type="stl"), "rgba255": colour})
    plot.load_meshes(parts)
    return plot


def _itkwidgets(meshes: Mapping[int, trimesh.Trimesh]) -> Any:
    """Voxels in ITK's own frame, which is LPS; itkwidgets displays them itself."""
    import itkwidgets
    import ngff_zarr

    labels = label_volume(meshes)
    far = labels.world(np.array(labels.data.shape) - 1)
    start = dict(zip("xyz", (-far[0], -far[1], labels.affine[2, 3]), strict=True))
    spacing = dict(zip("xyz", labels.spacing_mm, strict=True))
    flipped = np.ascontiguousarray(labels.data[::-1, ::-1].T)
    image = ngff_zarr.to_ngff_image(flipped, dims=["z", "y", "x"], scale=spacing, translation=start)
    itkwidgets.view(label_image=image)


VIEWERS: dict[str, Callable[[Mapping[int, Any]], Any]] = {
    "k3d": k3d_plot,
    "pyvista": _pyvista,
    "ipyniivue": _ipyniivue,
    "itkwidgets": _itkwidgets,
}


def _obstacle(which: str) -> str:
    """Why a viewer can't be had here, in a sentence; "" where it can."""
    found = find_spec(which)
    if found is None or found.origin is None or find_spec(_BESIDE.get(which, which)) is None:
        return f"{which} is not installed: pip install 'transvert[{which}]', and load the page again."
    if which == "itkwidgets":
        from IPython.core.getipython import get_ipython

        # Whatever TRANSVERT_VIEWER says: without a browser it would wait for ever.
        if not getattr(getattr(get_ipython(), "kernel", None), "_allow_stdin", False):
            return "itkwidgets needs a person's browser, and this run has none."
        # Imported as a whole, it would take the cells over before anybody knows whether it can show them.
        config = runpy.run_path(str(Path(found.origin).with_name("viewer_config.py")))
        silent = _silent([config["ITK_VIEWER_SRC"], config["PYDATA_SPHINX_HREF"], *IMJOY_PAGES])
        if silent:
            return f"itkwidgets loads its viewer from {silent}, which does not answer."
    return ""


def _silent(pages: Sequence[str]) -> str:
    """The host of the first page that can't be had within `ANSWERS_WITHIN_S`; "" where all can."""
    import requests

    for page in pages:
        try:
            requests.head(page, timeout=ANSWERS_WITHIN_S, allow_redirects=True).raise_for_status()
        except requests.RequestException:
            return page.split("/")[2]
    return ""


def _let_colab_draw() -> None:
    """Colab draws a widget that it does not know itself only when asked to."""
    if "google.colab" in sys.modules:
        from google.colab import output

        output.enable_custom_widget_manager()


def _bounds(meshes: Mapping[int, trimesh.Trimesh]) -> tuple[np.ndarray, np.ndarray]:
    bounds = np.array([surface.bounds for surface in meshes.values()])
    return bounds[:, 0].min(0), bounds[:, 1].max(0)


def _camera(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the viewer stands, and what is looked at: (3,) each, RAS mm."""
    middle = (low + high) / 2
    return middle + float((high - low).max()) * np.array([-0.5, 1.6, 0.2]), middle


def _bytes(colour: np.ndarray) -> np.ndarray:
    return (255 * colour).astype(int)
