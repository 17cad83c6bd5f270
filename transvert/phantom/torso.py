"""The soft tissue around a column of vertebrae: skin, fat, muscle, lungs, organs, airways and vessels.

The trunk is painted slice by slice from a few ovals, whose sizes are read from tables by the place (level) at that height,
as in `Column`. Airways and vessels are bent tubes. Distances are from the centres of the vertebral bodies in an average
adult, scaled to the person. Tables and ranges are this companion's choice, after common anatomy, textbook HU values, and
by eye from one chest CT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage

from transvert.imaging.volume import AIR_HU, Volume
from transvert.phantom.column import Column
from transvert.phantom.shapes import Ellipsoid, Noise, Slice, axes_mm, blend, oval_radius, smooth_curve, tube

# Ranges of tissues, drawn uniformly once per phantom or organ.
MUSCLE_HU = (20.0, 70.0)
FAT_HU = (-115.0, -85.0)
LUNG_HU = (-880.0, -720.0)
MEDIASTINUM_HU = (-20.0, 45.0)
LIVER_HU = (40.0, 110.0)
SPLEEN_HU = (40.0, 120.0)
KIDNEY_HU = (28.0, 190.0)
BOWEL_HU = (-60.0, 60.0)
GAS_HU = (-1000.0, -850.0)
CANAL_HU = (0.0, 35.0)
BLOOD_HU, CONTRAST_HU = (35.0, 55.0), (120.0, 350.0)  # Blood without and with contrast medium.
CONTRAST_SHARE = 0.4  # Fraction of the phantoms with contrast medium.
MOTTLE_HU = (12.0, 40.0)  # Range of the standard deviation within soft tissue (planes of fat, vessels).
SOLID_TEXTURE_HU, LUNG_TEXTURE_HU = 25.0, 30.0  # Standard deviations of the finer texture of mediastinum and lungs.
LUNG_BELOW_HU = -500.0  # Lung and gas are below this, all other tissue is above.

GAS_SHARE = 0.35  # Fraction of the bowel loops that hold gas.
BOWEL_LOOPS = (18, 48)
FAT_MM = (3.0, 32.0)  # Range of the fat under the skin of the trunk; the neck has a third of it.
BELLY_MM = 45.0  # Extra depth of the largest belly.
TRUNK_SCALE = (0.93, 1.08)  # Range of the factors on the trunk's width and depth, besides the scale of the column.
TRUNK_MM = 45.0  # Standard deviation of the smoothing that makes the trunk's axis from the spine.
AIR_MM = 6.0  # Air around the skin at its widest.
WALL_MM = 7.0  # From the middle of a rib to the lung.
CAGE_POWER = 1.2  # Shape of the oval of the ribs, as in `oval_radius`.
WAVE_MM, MEDIASTINUM_WAVE_MM = 20.0, 1.5  # Length and standard deviation of the mediastinum's variation.
THORAX_PLACE, LUNG_BASE_PLACE = 6.2, 19.0  # Places of the lungs' tips and of their lower end.
DIAPHRAGM_PLACE = (14.4, 16.8)  # Range of the right dome's top: T8 (expiration) to T10 (deep inspiration).
LEFT_DOME_LOWER_MM = (2.0, 18.0)
FADE_MM = 50.0  # Length above the base of the domes over which chest tissue fades into abdominal tissue.
CARINA_PLACE = (10.2, 11.2)  # Range of the place where the windpipe divides: T4 to T5.
LUNG_VESSELS = (30, 60)  # Range of the number of vessels per lung.
LUNG_VESSEL_MM = (0.8, 3.2)  # Half their thickness at the ends and, at most, at the lung's root.
SLAB = 16  # Slices painted at a time.

# The muscular outline: half width, and distances behind and in front of the bodies' centres.
_OUTLINE_PLACE = (-4, 0, 3, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 19, 21, 23, 25, 28)
_OUTLINE_MM = {
    "half_width": (74, 74, 60, 60, 86, 126, 150, 156, 154, 148, 145, 143, 139, 136, 134, 142, 155, 165),
    "back": (80, 55, 52, 58, 70, 80, 79, 76, 73, 73, 73, 73, 76, 80, 82, 80, 78, 80),
    "front": (105, 100, 58, 52, 52, 62, 80, 98, 116, 138, 152, 154, 146, 138, 116, 106, 110, 115),
}
# The oval of the ribs, and below them of the abdominal cavity.
_CAGE_PLACE = (6, 7, 8, 9, 10, 12, 14, 16, 18, 19, 21, 23, 25)
_CAGE_MM = {
    "half_width": (30, 50, 74, 92, 103, 118, 128, 131, 127, 124, 120, 122, 125),
    "back": (15, 24, 31, 35, 38, 41, 41, 39, 35, 30, 18, 15, 15),
    "front": (25, 46, 66, 86, 102, 124, 138, 141, 133, 124, 102, 92, 95),
}
_MEDIASTINUM_PLACE = (6, 8, 10, 12, 14, 17)
_MEDIASTINUM_MM = (26, 28, 24, 25, 30, 30)
_PSOAS_PLACE = (18, 19, 21, 23, 25)
_PSOAS_MM = (2, 8, 17, 23, 22)
# Points as (place, mm to the right, mm to the front) of the bodies' centres; bronchi (right, left) from the carina.
_AORTA = (
    *((14.0, 10, 70), (12.0, 14, 72), (10.8, 10, 62), (10.2, -2, 44), (10.3, -16, 22), (11.2, -21, 10), (13.0, -21, 8)),
    *((16.0, -15, 18), (19.0, -8, 28), (21.0, -6, 30), (22.4, -4, 30)),
)
_THROAT = ((0.0, 0, 24), (3.0, 1, 26), (5.5, 2, 27), (8.0, 2, 28))
_BRONCHI = (((0.5, 12, 36), (1.3, 28, 30), (2.2, 42, 22)), ((0.5, -12, 36), (1.0, -30, 30), (1.7, -48, 22)))


@dataclass(frozen=True)
class Oval:
    """An axial oval at each of K heights: centre (K,) RAS mm, half width and half depth (K,) mm."""

    x: np.ndarray
    y: np.ndarray
    half_width: np.ndarray
    half_depth: np.ndarray


@dataclass(frozen=True)
class Torso:
    """One person's trunk at each slice of a canvas.

    Attributes:
        z: (K,) RAS mm, the heights.
        place: (K,) places in the column.
        spine: (K, 2) x and y of the bodies' centres, RAS mm.
        outline: the muscles.
        cage: the ribs, and below them the abdominal cavity.
        fat_mm: (K,) thickness of the fat under the skin.
        middle_x: (K,) mm from the spine to the mediastinum's centre, positive to the right.
        middle_half: (K,) mm, half width of the mediastinum.
    """

    z: np.ndarray
    place: np.ndarray
    spine: np.ndarray
    outline: Oval
    cage: Oval
    fat_mm: np.ndarray
    middle_x: np.ndarray
    middle_half: np.ndarray

    def cage_at(self, height: float | np.ndarray) -> tuple[np.ndarray, ...]:
        """The oval of the ribs at heights in RAS mm: x and y of its centre, half width and half depth."""
        cage = self.cage
        x, y, half_width, half_depth = (
            np.interp(height, self.z, values) for values in (cage.x, cage.y, cage.half_width, cage.half_depth)
        )
        return x, y, half_width, half_depth

    def on_cage(self, turn: np.ndarray, height: np.ndarray) -> np.ndarray:
        """(N, 3) RAS mm, points on the oval of the ribs; `turn` (N,) in rad is 0 at the back and pi/2 on the right."""
        x, y, half_width, half_depth = self.cage_at(height)
        right, front = np.sin(turn), -np.cos(turn)
        size = oval_radius(right, front, np.ones(2), CAGE_POWER)
        return np.stack([x + half_width * right / size, y + half_depth * front / size, height], axis=1)


def draw_torso(column: Column, z: np.ndarray, random: np.random.Generator) -> Torso:
    """Draws a person's trunk around a column at evenly spaced, increasing heights z (K,), RAS mm."""
    width, depth = random.uniform(*TRUNK_SCALE, 2)
    stout = random.uniform(0, 1) ** 2
    place, spine = column.place(z), column.middle(z)
    # The front follows only the smoothed spine; the back follows the spine a little and stays behind it.
    trunk = ndimage.gaussian_filter1d(spine, TRUNK_MM / (z[1] - z[0]), axis=0, mode="nearest")
    belly = stout * BELLY_MM * np.exp(-(((place - 21) / 3) ** 2))

    def oval(
        places: tuple[float, ...], table: Mapping[str, tuple[float, ...]], line: np.ndarray, bulge: np.ndarray
    ) -> Oval:
        half_width, back, front = (np.interp(place, places, table[name]) * column.scale for name in table)
        behind, ahead = line - back, trunk[:, 1] + front * depth + bulge
        return Oval(trunk[:, 0], (behind + ahead) / 2, half_width * width, (ahead - behind) / 2)

    outline = oval(_OUTLINE_PLACE, _OUTLINE_MM, np.minimum(trunk[:, 1], spine[:, 1] + 10), belly)
    cage = oval(_CAGE_PLACE, _CAGE_MM, spine[:, 1], 0 * belly)
    fat = (FAT_MM[0] + stout * (FAT_MM[1] - FAT_MM[0])) * np.interp(place, (4, 8), (1 / 3, 1))
    steps = WAVE_MM / (z[1] - z[0])
    waves = ndimage.gaussian_filter1d(random.standard_normal((2, len(z))), steps, axis=1, mode="wrap")
    # Undoes the loss of variance of filtered white noise.
    waves *= MEDIASTINUM_WAVE_MM * np.sqrt(2 * np.sqrt(np.pi) * steps)
    middle = np.interp(place, _MEDIASTINUM_PLACE, _MEDIASTINUM_MM) * column.scale + waves[0]
    return Torso(z, place, spine, outline, cage, fat, waves[1] - 5.0, middle)


def extent(torso: Torso) -> tuple[np.ndarray, np.ndarray]:
    """Low and high corner, (2,) x and y in RAS mm, of a box around the trunk with some air."""
    outline, more = torso.outline, torso.fat_mm + AIR_MM
    low = [(outline.x - outline.half_width - more).min(), (outline.y - outline.half_depth - more).min()]
    high = [(outline.x + outline.half_width + more).max(), (outline.y + outline.half_depth + more).max()]
    return np.array(low), np.array(high)


def paint_torso(canvas: Volume, column: Column, torso: Torso, blood_hu: float, random: np.random.Generator) -> None:
    """Paints the soft tissue of a trunk, without airways and vessels, on a canvas of air with slices at `torso.z`."""
    x, y, z = (axis.astype(np.float32) for axis in axes_mm(canvas))
    spacing = float(canvas.affine[0, 0])
    ranges = {"muscle": MUSCLE_HU, "fat": FAT_HU, "lung": LUNG_HU, "mediastinum": MEDIASTINUM_HU, "canal": CANAL_HU}
    hu = {name: float(random.uniform(*limits)) for name, limits in ranges.items()}
    mottle_hu = float(random.uniform(*MOTTLE_HU))
    domes = _domes(column, torso, random)
    organs = _organs(column, domes, blood_hu, random)
    coarse, fine = (Noise(canvas.data.shape, mm / spacing, random) for mm in (14.0, 5.0))
    # In slabs of contiguous slices, since the slices of a canvas are not contiguous in memory.
    for start in range(0, len(z), SLAB):
        stop = min(start + SLAB, len(z))
        slab = np.full((stop - start, len(x), len(y)), AIR_HU, np.float32)
        for k, picture in enumerate(slab, start):
            level = Slice(picture, x[:, None], y[None, :], spacing)
            centre = np.array([torso.outline.x[k], torso.outline.y[k]])
            half = np.array([torso.outline.half_width[k], torso.outline.half_depth[k]])
            power = float(np.interp(torso.place[k], (5, 9), (1.7, 1.0)))
            level.paint(centre, half + torso.fat_mm[k], hu["fat"], power)
            level.paint(centre, half, hu["muscle"], power)
            if torso.place[k] > THORAX_PLACE:
                _paint_cavity(level, torso, k, hu, domes, organs, fine.slice(k))
            level.paint(torso.spine[k] + (0, -21), np.array([9.0, 8.0]), hu["canal"])
            picture += np.where(picture > LUNG_BELOW_HU, mottle_hu * coarse.slice(k), 0)
        canvas.data[:, :, start:stop] = slab.transpose(1, 2, 0)


def _paint_cavity(
    level: Slice,
    torso: Torso,
    k: int,
    hu: dict[str, float],
    domes: list[Ellipsoid],
    organs: list[tuple[Ellipsoid, float]],
    noise: np.ndarray,
) -> None:
    """Paints one slice inside the muscles: lungs and mediastinum, or organs in fat, and the psoas muscles."""
    z, place, spine, picture = float(torso.z[k]), float(torso.place[k]), torso.spine[k], level.picture
    middle_x, middle_y, half_width, half_depth = (float(value) for value in torso.cage_at(z))
    size = np.array([half_width - WALL_MM, half_depth - WALL_MM])
    cavity = np.zeros_like(picture)
    block, weight = level.oval(np.array([middle_x, middle_y]), size, CAGE_POWER)
    cavity[block] = weight
    # The spine and the muscles behind it reach into the cavity.
    for behind, around, power in ((-1, (24.0, 22.0), 2.0), (-44, (40.0, 36.0), 1.2)):
        block, weight = level.oval(spine + (0, behind), np.array(around), power)
        cavity[block] *= 1 - weight
    below = [level.oval(dome.centre, half) for dome in domes if (half := dome.section(z)) is not None]
    # Chest tissue fades into abdominal tissue above the base of the domes.
    high = min(max((z - domes[0].centre[2]) / FADE_MM, 0.0), 1.0)
    if high > 0:
        depth = 0.95 * half_depth
        centre, half = spine + (torso.middle_x[k], 0.8 * depth), np.array([torso.middle_half[k], depth])
        block, weight = level.oval(centre, half)
        solid = weight * cavity[block]
        air = cavity.copy()
        air[block] -= solid
        for dome, weight in below:
            air[dome] *= 1 - weight
        tissue = hu["mediastinum"] * high + hu["fat"] * (1 - high)
        blend(picture[block], solid, tissue + SOLID_TEXTURE_HU * noise[block])
        blend(picture, air, np.maximum(hu["lung"] + LUNG_TEXTURE_HU * noise, AIR_HU))
    else:
        blend(picture, cavity, hu["fat"])
    for dome, weight in below:
        blend(picture[dome], weight * cavity[dome], hu["muscle"] * high + hu["fat"] * (1 - high))
    for organ, organ_hu in organs:
        section = organ.section(z)
        if section is not None:
            block, weight = level.oval(organ.centre, section)
            blend(picture[block], weight * cavity[block], organ_hu)
    psoas = float(np.interp(place, _PSOAS_PLACE, _PSOAS_MM, left=0))
    if psoas > 3:
        for side in (-1, 1):
            level.paint(spine + (side * (22 + psoas * 0.8), -4), np.array([psoas, psoas * 1.1]), hu["muscle"])


def _domes(column: Column, torso: Torso, random: np.random.Generator) -> list[Ellipsoid]:
    """The right and left dome of the diaphragm; everything below their centres is abdomen."""
    base = column.height(LUNG_BASE_PLACE)
    top = column.height(random.uniform(*DIAPHRAGM_PLACE))
    lower = random.uniform(*LEFT_DOME_LOWER_MM)
    x, y, half_width, half_depth = torso.cage_at(base)
    domes = []
    for side, height in ((1, top - base), (-1, top - lower - base)):
        centre = np.array([x + side * 0.5 * half_width, y + 0.15 * half_depth, base])
        domes.append(Ellipsoid(centre, np.array([0.64 * half_width, 1.1 * half_depth, max(height, 20.0)])))
    return domes


def _organs(
    column: Column, domes: list[Ellipsoid], blood_hu: float, random: np.random.Generator
) -> list[tuple[Ellipsoid, float]]:
    """Heart, liver, spleen, stomach with gas, kidneys and bowel loops with their HU, in the order of painting."""
    found = []

    def spread() -> np.ndarray:
        return np.clip(random.standard_normal(3), -2, 2)

    def add(z: float, x: float, y: float, half: tuple[float, float, float], hu: float, dome: int | None = None) -> None:
        """Adds an organ at height `z`, or at `z` mm below the top of a dome."""
        half_mm = np.array(half) * column.scale * (1 + 0.1 * spread())
        if dome is not None:
            z = domes[dome].top - half_mm[2] - z
        middle = column.middle(np.array([z]))[0]
        centre = np.array([middle[0] + column.scale * x, middle[1] + column.scale * y, z])
        found.append((Ellipsoid(centre + 6.0 * spread() * (1, 1, dome is None), half_mm), hu))

    def hu(limits: tuple[float, float]) -> float:
        return float(random.uniform(*limits))

    def bowel_hu() -> float:
        return hu(GAS_HU if random.uniform() < GAS_SHARE else BOWEL_HU)

    # The heart rests on the diaphragm.
    add(domes[1].top + 36 * column.scale, -22, 72, (60, 48, 58), blood_hu)
    add(6, 62, 52, (72, 78, 82), hu(LIVER_HU), 0)
    add(12, -88, 8, (28, 45, 48), hu(SPLEEN_HU), 1)
    add(10, -52, 72, (45, 38, 55), hu(BOWEL_HU), 1)
    add(14, -50, 85, (28, 20, 26), bowel_hu(), 1)
    kidney_hu = hu(KIDNEY_HU)
    for side in (-1, 1):
        add(column.height(19.6), side * 58, 2, (27, 25, 52), kidney_hu)
    for _ in range(int(random.integers(*BOWEL_LOOPS))):
        place, aside, ahead = random.uniform(18.5, 25), random.uniform(-95, 95), random.uniform(35, 95)
        add(column.height(place), aside, ahead, tuple(random.uniform(9, 27, 3)), bowel_hu())
    return found


def draw_blood(random: np.random.Generator) -> float:
    """HU of a phantom's blood, with or without contrast medium."""
    return float(random.uniform(*(CONTRAST_HU if random.uniform() < CONTRAST_SHARE else BLOOD_HU)))


def paint_vessels(canvas: Volume, column: Column, blood_hu: float, random: np.random.Generator) -> None:
    """Paints airways, aorta and lung vessels into a canvas with the trunk around `column`."""

    def at(place: float, aside: float, ahead: float) -> np.ndarray:
        z = column.height(place)
        middle = column.middle(np.array([z]))[0]
        return np.array([middle[0] + column.scale * aside, middle[1] + column.scale * ahead, z])

    carina = float(random.uniform(*CARINA_PLACE))
    roots = []
    windpipe = [at(*point) for point in (*_THROAT, (carina, 2, 36))]
    for bronchus in _BRONCHI:
        path = smooth_curve(np.array([windpipe[-1], *(at(carina + down, x, y) for down, x, y in bronchus)]), 5.0)
        tube(canvas, path, (6.0,) * 3, AIR_HU)
        roots.append(path[-1])
    tube(canvas, smooth_curve(np.array(windpipe), 6.0), (8.5, 7.5, 8.0), AIR_HU)
    tube(canvas, smooth_curve(np.array([at(*point) for point in _AORTA]), 6.0), (12.0,) * 3, blood_hu)
    for side, root in zip((1, -1), roots, strict=True):
        for _ in range(int(random.integers(*LUNG_VESSELS))):
            end = root + column.scale * np.array([side, 1, 1]) * random.uniform((-5, -75, -120), (80, 75, 110))
            turn = root + 0.5 * (end - root) + random.normal(0, 12, 3)
            path = smooth_curve(np.array([root, turn, end]), 10.0)
            widest = LUNG_VESSEL_MM[0] + (LUNG_VESSEL_MM[1] - LUNG_VESSEL_MM[0]) * random.uniform(0.5, 1.0)
            for half, step in zip(np.linspace(widest, LUNG_VESSEL_MM[0], len(path) - 1), pairwise(path), strict=True):
                tube(canvas, np.array(step), (float(half),) * 3, blood_hu, LUNG_BELOW_HU)
