"""Views from and to the 3 x 4 projection matrices that C-arm and camera calibrations give.

Such a matrix takes a point in RAS mm, homogeneous, to (column, row, 1) times a factor: column first, as everywhere in
the literature (Hartley and Zisserman, Multiple View Geometry, 2004), with pixel centres on whole numbers as in
`geometry`.
"""

from __future__ import annotations

import numpy as np

from transvert.files import InputError
from transvert.geometry import View


def matrix_of(view: View) -> np.ndarray:
    """(3, 4) projection matrix of a view; `view_from_matrix` is the inverse.

    The factor is the point's distance from the source along the detector's normal in mm, positive in front of the
    source; in a parallel view it is 1.
    """
    depth = view.direction if view.source is None else view.source - view.corner
    world = np.eye(4)
    world[:3] = np.stack([view.across, view.down, depth, view.corner], axis=1)
    column, row, along, _ = np.linalg.inv(world)
    if view.source is None:
        return np.stack([column, row, [0, 0, 0, 1]])
    # Along is 0 on the detector and 1 at the source; in between, what lies nearer the source is magnified more.
    normal = np.cross(view.down, view.across)
    distance = abs(float((view.corner - view.source) @ normal)) / float(np.linalg.norm(normal))
    return distance * np.stack([column, row, np.array([0, 0, 0, 1]) - along])


def view_from_matrix(matrix: np.ndarray, shape: tuple[int, int], pixel_mm: float, name: str = "calibrated") -> View:
    """A view of any pose from its projection matrix.

    Args:
        matrix: (3, 4), its factor positive in front of the source; a last row of (0, 0, 0, w) makes a parallel view,
            whose rays go as in an AP view: into the picture if it shows no mirror image.
        shape: rows and columns.
        pixel_mm: pitch from one column to the next on the detector. The matrix fixes a cone view's rays, but not at
            what distance a detector catches them; this does. A parallel matrix has a pitch, which must be this one.
        name: of the view.

    Raises:
        InputError: no finite 3 x 4 matrix, one that makes no picture, or another pitch than a parallel matrix has.
    """
    matrix = np.asarray(matrix, float)
    if matrix.shape != (3, 4) or not np.isfinite(matrix).all():
        raise InputError(f"The matrix of the view '{name}' has the shape {matrix.shape}; give 3 x 4 finite numbers.")
    if not pixel_mm > 0:
        raise InputError(f"The pixels of the view '{name}' are {pixel_mm:g} mm; they must be positive.")
    lengths = np.linalg.norm(matrix[:, :3], axis=1)
    if lengths[2] <= 1e-12 * lengths.max():
        return _parallel(matrix, shape, pixel_mm, name)
    if abs(np.linalg.det(matrix[:, :3])) <= 1e-9 * lengths.prod():
        raise _degenerate(name)
    inverse = np.linalg.inv(matrix[:, :3])
    across, down, towards = (pixel_mm / np.linalg.norm(inverse[:, 0]) * inverse).T
    source = -inverse @ matrix[:, 3]
    return View(name, shape, source + towards, down, across, matrix[2, :3] / lengths[2], source)


def _parallel(matrix: np.ndarray, shape: tuple[int, int], pixel_mm: float, name: str) -> View:
    """Column and row grow evenly in space; rays run where neither changes, on a detector through the world's origin."""
    normal = np.cross(matrix[0, :3], matrix[1, :3])
    size = np.prod(np.linalg.norm(matrix[:2, :3], axis=1))
    if matrix[2, 3] == 0 or np.linalg.norm(normal) <= 1e-9 * size:
        raise _degenerate(name)
    matrix = matrix / matrix[2, 3]
    across, down = np.linalg.pinv(matrix[:2, :3]).T
    found = float(np.linalg.norm(across))
    if abs(found - pixel_mm) > 1e-3 * pixel_mm:
        raise InputError(f"The matrix of the parallel view '{name}' has pixels of {found:.4g} mm, not {pixel_mm:g} mm.")
    corner = -matrix[0, 3] * across - matrix[1, 3] * down
    return View(name, shape, corner, down, across, normal / np.linalg.norm(normal))


def _degenerate(name: str) -> InputError:
    return InputError(
        f"The matrix of the view '{name}' is degenerate: it maps space to a line or a point; check its three rows."
    )
