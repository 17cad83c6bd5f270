"""The corner points of lumbar vertebrae on films, as the BUU-LSPINE set writes them.

A CSV file has one row for each end plate, from the upper one of L1 to the lower one of L5, and on lateral films one more
for the upper one of the sacrum: x and y of its end on the picture's left, x and y of the other, and a diagnosis.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from transvert import levels
from transvert.files import InputError

_ROWS = {10: "an AP film", 11: "a lateral film"}


def read(path: str | Path) -> dict[int, np.ndarray]:
    """Reads the corner points of one film.

    Returns:
        VerSe level to (4, 2), or (2, 2) for the sacrum: row and column in pixels of the upper left corner, the upper
        right, the lower left and the lower right.

    Raises:
        InputError: no such file, or it isn't of this form.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
        ends = np.array([[float(value) for value in row[:4]] for row in rows])
    except FileNotFoundError:
        raise InputError(f"The file of corner points {path} does not exist.") from None
    except (UnicodeDecodeError, csv.Error, ValueError):
        raise InputError(f"{path.name} holds no rows of four numbers and a diagnosis, so no corner points.") from None
    if len(ends) not in _ROWS or ends.shape[1:] != (4,):
        raise InputError(
            f"{path.name} has {len(rows)} rows; corner points have "
            f"{' or '.join(f'{rows} ({film})' for rows, film in _ROWS.items())}, of four numbers and a diagnosis."
        )
    points = ends.reshape(-1, 2, 2)[..., ::-1]
    if not (np.isfinite(points).all() and (points >= 0).all()):
        raise InputError(f"{path.name} has corner points that lie on no picture (below 0, or no number).")
    names = [f"L{i}" for i in range(1, 6)]
    found = {levels.number(name): points[2 * i : 2 * i + 2].reshape(4, 2) for i, name in enumerate(names)}
    if len(points) == 11:
        found[levels.number("sacrum")] = points[10]
    return found


def centroids(corners: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """(2,) row and column of the middle of each vertebral body, which has four corners; not of the sacrum."""
    return {level: points.mean(0) for level, points in corners.items() if len(points) == 4}
