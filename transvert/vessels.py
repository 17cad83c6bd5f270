"""What branches and bends in a trunk: windpipe and bronchi, aorta, the vessels of the lungs. Bent tubes all.

Places are levels, as `Column.place` counts, with millimetres to the right and to the front of the bodies' middles in an
adult of usual size. All numbers are this companion's choice, after common anatomy.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from transvert.column import Column
from transvert.shapes import bend, tube
from transvert.torso import LUNG_BELOW_HU
from transvert.volume import AIR_HU, Volume

BLOOD_HU = (35.0, 55.0)
CONTRAST_HU = (120.0, 350.0)
"""Of blood without contrast medium, and with it, as in `CONTRAST_SHARE` of people."""
CONTRAST_SHARE = 0.4
CARINA_PLACE = (10.2, 11.2)
"""Where the windpipe divides: T4 to T5."""
LUNG_VESSELS = (30, 60)
"""How many run from each lung's root."""
LUNG_VESSEL_MM = (0.8, 3.2)
"""Half their thickness, at their ends and at the root."""

_AORTA = (
    *((14.0, 10, 70), (12.0, 14, 72), (10.8, 10, 62), (10.2, -2, 44), (10.3, -16, 22), (11.2, -21, 10), (13.0, -21, 8)),
    *((16.0, -15, 18), (19.0, -8, 28), (21.0, -6, 30), (22.4, -4, 30)),
)
_THROAT = ((0.0, 0, 24), (3.0, 1, 26), (5.5, 2, 27), (8.0, 2, 28))
_BRONCHI = (((0.5, 12, 36), (1.3, 28, 30), (2.2, 42, 22)), ((0.5, -12, 36), (1.0, -30, 30), (1.7, -48, 22)))
"""Each bronchus, right and left, in levels below the carina."""


def draw_blood(random: np.random.Generator) -> float:
    """HU of a person's blood."""
    return float(random.uniform(*(CONTRAST_HU if random.uniform() < CONTRAST_SHARE else BLOOD_HU)))


def paint(canvas: Volume, column: Column, blood_hu: float, random: np.random.Generator) -> None:
    """Paints airways, aorta and lung vessels into a trunk with its lungs.

    Args:
        canvas: to paint on.
        column: that the trunk stands around.
        blood_hu: of the aorta and the lung vessels.
        random: the source of chance for the carina's place and the lung vessels.
    """

    def at(place: float, aside: float, ahead: float) -> np.ndarray:
        z = column.height(place)
        middle = column.middle(np.array([z]))[0]
        return np.array([middle[0] + column.scale * aside, middle[1] + column.scale * ahead, z])

    carina = float(random.uniform(*CARINA_PLACE))
    roots = []
    windpipe = [at(*point) for point in (*_THROAT, (carina, 2, 36))]
    for bronchus in _BRONCHI:
        path = bend(np.array([windpipe[-1], *(at(carina + down, x, y) for down, x, y in bronchus)]), 5.0)
        tube(canvas, path, (6.0,) * 3, AIR_HU)
        roots.append(path[-1])
    tube(canvas, bend(np.array(windpipe), 6.0), (8.5, 7.5, 8.0), AIR_HU)
    tube(canvas, bend(np.array([at(*point) for point in _AORTA]), 6.0), (12.0,) * 3, blood_hu)
    for side, root in zip((1, -1), roots, strict=True):
        for _ in range(int(random.integers(*LUNG_VESSELS))):
            end = root + column.scale * np.array([side, 1, 1]) * random.uniform((-5, -75, -120), (80, 75, 110))
            turn = root + 0.5 * (end - root) + random.normal(0, 12, 3)
            path = bend(np.array([root, turn, end]), 10.0)
            widest = LUNG_VESSEL_MM[0] + (LUNG_VESSEL_MM[1] - LUNG_VESSEL_MM[0]) * random.uniform(0.5, 1.0)
            for half, step in zip(np.linspace(widest, LUNG_VESSEL_MM[0], len(path) - 1), pairwise(path), strict=True):
                tube(canvas, np.array(step), (float(half),) * 3, blood_hu, LUNG_BELOW_HU)
