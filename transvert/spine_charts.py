"""How sure a reconstructed surface is, in colours: on the surfaces themselves and as a figure.

The colour map is cividis, which reads alike with and without colour vision: dark blue is sure, yellow is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy import ndimage
from scipy.spatial import KDTree

from transvert import render
from transvert.volume import Volume

if TYPE_CHECKING:
    import trimesh

SD_LIMIT_MM = 5.0
"""Where the colours end; the same in every file, so that two spines can be compared."""
SD_MM = "sd_mm"
"""The attribute of a surface's vertices that keeps the number itself; PLY and GLB files have it, too."""
_COLOURS = colormaps["cividis"]


def paint(surface: trimesh.Trimesh, sd_mm: np.ndarray) -> trimesh.Trimesh:
    """A copy of a surface that is coloured by the standard deviation (N,) mm at its vertices, and keeps it as `SD_MM`."""
    import trimesh

    painted = surface.copy()
    colours = (255 * _COLOURS(np.asarray(sd_mm) / SD_LIMIT_MM)).round().astype(np.uint8)
    painted.visual = trimesh.visual.ColorVisuals(painted, vertex_colors=colours)
    painted.vertex_attributes[SD_MM] = np.asarray(sd_mm, np.float32)
    return painted


def surface_sd(labels: Volume, painted: Mapping[int, trimesh.Trimesh], calibrated: bool) -> Figure:
    """A spine coloured by its surfaces' standard deviation, seen from the front, the left side and the back.

    Args:
        labels: isotropic, from `spine.assemble`.
        painted: level to a surface of `paint`.
        calibrated: whether the numbers are; the colour bar says so.
    """
    field = _at_voxels(labels, painted)
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 7), layout="constrained")
    spacing = float(labels.spacing_mm[0])
    for axis, (side, turn) in zip(axes, (("front", 0), ("left side", 90), ("back", 180)), strict=True):
        brightness, sd = render.shade(labels.data > 0, turn_deg=turn, values=field)
        lit = _COLOURS(np.nan_to_num(sd) / SD_LIMIT_MM)[..., :3] * (0.3 + 0.7 * np.nan_to_num(brightness))[..., None]
        picture = np.where(np.isfinite(brightness)[..., None], lit, 1.0)
        height, width = (n * spacing for n in brightness.shape)
        axis.imshow(picture, extent=(-width / 2, width / 2, height, 0))
        rows, columns = (np.flatnonzero(np.isfinite(brightness).any(axis=n)) for n in (1, 0))
        axis.set_xlim((columns[0] - 5) * spacing - width / 2, (columns[-1] + 5) * spacing - width / 2)
        axis.set_ylim((rows[-1] + 5) * spacing, (rows[0] - 5) * spacing)
        axis.set(title=f"seen from the {side}", xlabel="mm", ylabel="mm")
    said = "calibrated on other people" if calibrated else "the network's own, not calibrated"
    bar = figure.colorbar(ScalarMappable(Normalize(0, SD_LIMIT_MM), _COLOURS), ax=axes, extend="max", shrink=0.7)
    bar.set_label(f"expected distance from the true surface, RMS (mm)\n{said}")
    return figure


def _at_voxels(labels: Volume, painted: Mapping[int, trimesh.Trimesh]) -> np.ndarray:
    """(X, Y, Z) the standard deviation on either side of each vertebra's surface, from the nearest vertex."""
    field = np.zeros(labels.data.shape, np.float32)
    # A ray ends up to a voxel and a half beside the surface.
    grown = np.where(labels.data > 0, labels.data, ndimage.maximum_filter(labels.data, 5))
    rim = (grown > 0) & ~ndimage.binary_erosion(labels.data > 0, iterations=2)
    for level, surface in painted.items():
        voxels = np.argwhere(rim & (grown == level))
        nearest = KDTree(surface.vertices).query(labels.world(voxels))[1]
        field[tuple(voxels.T)] = np.asarray(surface.vertex_attributes[SD_MM])[nearest]
    return field
