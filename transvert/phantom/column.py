"""The column of vertebrae that a phantom is built around: those of a mask, completed with copies.

A radiograph never shows a single vertebra. Levels that a mask lacks above, below and between its vertebrae are filled with
copies of the nearest one, moved along the column and scaled to their level.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from transvert import levels
from transvert.imaging import masks
from transvert.imaging.volume import Volume
from transvert.io import InputError

SACRUM = 26
USUAL = tuple(level for level in levels.NAMES if level not in levels.RARE)  # Most people's levels, from head to tail.
# Half the depth of the body of each usual level in an adult, after common anatomy; C1 first.
HALF_DEPTH_MM = np.interp(np.arange(25), [0, 6, 7, 8, 10, 14, 18, 21, 24], [8, 8.5, 9, 10.5, 12.5, 14.5, 16, 17.5, 18])
DISC_MM = {"C": (4.0, 6.0), "T": (3.0, 6.0), "L": (7.0, 11.0), "S": (1.0, 3.0)}  # Height of the disc below a vertebra.
BEYOND_MM = 9.0  # Copies reach this far beyond a phantom's margin.
SIZE_JITTER, TURN_JITTER_DEG = 0.03, 3.0  # Standard deviations of a copy's relative size and of its rotations.
LEAST_PITCH_MM = 3.0  # Smallest step down from one vertebra's centre to the next one's.
ATLAS_HALF_MM = (22.0, 8.0, 8.0)  # Half the size assumed for C1, which has no body.
SACRAL_TURN_DEG = 35.0  # Backward turn of the column where the sacrum begins.
LEAST_CANAL_MM2, LEAST_FRONT_MM = 40.0, 2.5  # Area of a recognised canal, and distance of the body from it.

_GRID_MM = 1.5
_PIXEL_MM = 2.0
_DIRECTIONS = 240


@dataclass(frozen=True)
class Bone:
    """A vertebra of the column.

    Attributes:
        level: VerSe number.
        part: (X, Y, Z) bool, its voxels with a margin of one.
        centre: (3,) RAS mm, the centre of its body.
        half_mm: (3,) half the size of its body along the axes of `part`.
        copied: True for a copy in place of a vertebra that the mask lacks.
    """

    level: int
    part: Volume
    centre: np.ndarray
    half_mm: np.ndarray
    copied: bool = False


@dataclass(frozen=True)
class Column:
    """Vertebrae from head to tail, and the curve through their bodies.

    A place is a position along the column in levels: 0 for C1, 7 for T1, 19 for L1, 24 for the sacrum. The scale is the
    person's size relative to the adult of the tables.
    """

    bones: tuple[Bone, ...]
    scale: float

    def place(self, z: np.ndarray) -> np.ndarray:
        """(N,) places at heights z (N,), RAS mm, extrapolated linearly beyond the column."""
        return _between(z, np.array([bone.centre[2] for bone in self.bones]), self._places())

    def height(self, place: float) -> float:
        """Height of a place, RAS mm."""
        heights = np.array([bone.centre[2] for bone in self.bones])
        return float(_between(np.array([place]), self._places(), heights)[0])

    def middle(self, z: np.ndarray) -> np.ndarray:
        """(N, 2) x and y of the bodies' centres at heights z (N,), RAS mm; constant beyond the column."""
        centres = np.array([bone.centre for bone in self.bones])[::-1]
        return np.stack([np.interp(z, centres[:, 2], centres[:, axis]) for axis in (0, 1)], axis=1)

    def _places(self) -> np.ndarray:
        places = np.array([levels.place(bone.level) for bone in self.bones])
        # Successive parts of the sacrum are half a level apart.
        return places + 0.5 * np.cumsum(np.diff(places, prepend=-1) == 0)


def build_column(mask: Volume, random: np.random.Generator, reach_mm: float) -> Column:
    """The column of a mask: its whole vertebrae, its sacrum, and copies between them and for `reach_mm` beyond.

    Raises:
        InputError: no whole vertebra in the mask, or vertebrae that are not one above the other.
    """
    found = masks.clean_mask(mask)
    if not found.parts:
        raise InputError("The mask has no whole vertebra: " + " ".join(found.notes or ["it is empty."]))
    bones = [measure_bone(level, *part, mask) for level, part in found.parts.items()]
    sizes = [bone.half_mm[1] / HALF_DEPTH_MM[int(levels.place(bone.level))] for bone in bones if bone.level > 2]
    # The root and the limits: trunks vary less than vertebrae, and the measurement is rough.
    scale = float(np.clip(np.sqrt(np.median(sizes or [1.0])), 0.75, 1.2))
    bones += _sacrum(mask)
    if any(upper.centre[2] - lower.centre[2] < LEAST_PITCH_MM for upper, lower in itertools.pairwise(bones)):
        raise InputError(
            "The vertebrae of the mask are not one above the other in their order; check its levels and its affine."
        )
    bones = _filled(bones, random)
    top, bottom = bones[0].centre[2] + reach_mm, bones[-1].centre[2] - reach_mm
    if len(bones) > 1:
        upward, downward = bones[0].centre - bones[1].centre, bones[-1].centre - bones[-2].centre
    else:
        # Halfway between the vertebra's canal and the world's z axis.
        canal = _canal_direction(bones[0].part)
        upward = np.array([0.0, 0.0, 1.0]) + (0 if canal is None else canal * np.sign(canal[2]))
        downward = -upward
    while bones[0].centre[2] < top and levels.place(bones[0].level) > 1:
        bones.insert(0, _next(bones[0], upward, random))
    while bones[-1].centre[2] > bottom and (bones[-1].level != SACRUM or bones[-1].copied):
        bones.append(_next(bones[-1], downward, random))
    return Column(tuple(bones), scale)


def measure_bone(level: int, part: np.ndarray, box: tuple[slice, ...], mask: Volume) -> Bone:
    """A vertebra, with the centre and size of its body, from its voxels (X, Y, Z) bool and their block of the mask."""
    voxels = np.pad(part, 1)
    affine = mask.affine.copy()
    affine[:3, 3] = mask.world(np.array([side.start - 1 for side in box]))
    own = Volume(voxels, affine)
    spacing = own.spacing_mm
    # The body is the thickest part of a vertebra. A fine grid is thinned out for speed.
    steps = np.maximum(np.rint(0.8 / spacing), 1).astype(int)
    depth = ndimage.distance_transform_edt(voxels[tuple(slice(None, None, s) for s in steps)], sampling=spacing * steps)
    if level == 1:
        # The atlas has a thick part on each side, so its centre is a weighted mean.
        where = np.argwhere(depth)
        weights = depth[tuple(where.T)]
        return Bone(level, own, own.world(weights @ where / weights.sum() * steps), np.array(ATLAS_HALF_MM))
    middle = np.argwhere(depth > 0.8 * depth.max()).mean(0) * steps
    half = np.full(3, depth.max())
    at = np.rint(middle).astype(int)
    for axis in range(3):
        line = np.moveaxis(voxels, axis, 0)[(slice(None), *np.delete(at, axis))]
        if line[at[axis]]:
            start, stop = at[axis] - np.argmin(line[at[axis] :: -1]), at[axis] + np.argmin(line[at[axis] :])
            half[axis] = (stop - start - 1) / 2 * spacing[axis]
            middle[axis] = (start + stop) / 2
    return Bone(level, own, own.world(middle), half)


def _sacrum(mask: Volume) -> list[Bone]:
    """The largest piece of the mask's sacrum, if any, truncated or not."""
    pieces, _ = ndimage.label(mask.data == SACRUM)
    sizes = np.bincount(pieces.ravel())[1:]
    if sizes.max(initial=0) * mask.spacing_mm.prod() < masks.SMALLEST_MM3:
        return []
    number = int(sizes.argmax()) + 1
    box = ndimage.find_objects(pieces, number)[number - 1]
    return [measure_bone(SACRUM, pieces[box] == number, box, mask)]


def _filled(bones: list[Bone], random: np.random.Generator) -> list[Bone]:
    """The bones with copies of the nearest one in the gaps between them."""
    filled = bones[:1]
    for bone in bones[1:]:
        start = filled[-1]
        missing = [
            level for level in USUAL if levels.place(start.level) < levels.place(level) < levels.place(bone.level)
        ]
        for step, level in enumerate(missing, 1):
            share = step / (len(missing) + 1)
            source = start if share <= 0.5 else bone
            filled.append(_copy(source, level, start.centre + share * (bone.centre - start.centre), random))
        filled.append(bone)
    return filled


def _next(bone: Bone, along: np.ndarray, random: np.random.Generator) -> Bone:
    """A copy of the column's first or last bone, one level further along (3,), up or down."""
    place = levels.place(bone.level)
    up = along[2] > 0
    level = USUAL[int(np.ceil(place)) - 1] if up else USUAL[min(int(place) + 1, len(USUAL) - 1)]
    if level == SACRUM:
        turn = np.deg2rad(SACRAL_TURN_DEG)
        along = np.array([0.0, -np.sin(turn), -np.cos(turn)])
    disc = random.uniform(*DISC_MM[levels.region(level if up else bone.level)])
    pitch = bone.half_mm[2] * (1 + _ratio(bone.level, level)) + disc
    return _copy(bone, level, bone.centre + along / np.linalg.norm(along) * pitch, random)


def _ratio(source: int, level: int) -> float:
    """Size of a level relative to the level it is copied from."""
    if level == SACRUM:
        return 0.85
    sizes = [HALF_DEPTH_MM[int(levels.place(n))] for n in (level, source)]
    return float(np.clip(sizes[0] / sizes[1], 0.9, 1.1))


def _copy(bone: Bone, level: int, centre: np.ndarray, random: np.random.Generator) -> Bone:
    """A bone moved to another level, with a small random change of size and rotation."""
    size = _ratio(bone.level, level) * (1 + SIZE_JITTER * float(np.clip(random.standard_normal(), -2, 2)))
    turn = Rotation.from_rotvec(TURN_JITTER_DEG * np.clip(random.standard_normal(3), -2, 2), degrees=True)
    motion = np.eye(4)
    motion[:3, :3] = size * turn.as_matrix()
    motion[:3, 3] = centre - motion[:3, :3] @ bone.centre
    part = Volume(bone.part.data, motion @ bone.part.affine)
    return replace(bone, level=level, part=part, centre=centre, half_mm=bone.half_mm * size, copied=True)


def _between(at: np.ndarray, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Linear interpolation, with linear extrapolation beyond the first and last known positions."""
    if known[0] > known[-1]:
        known, values = known[::-1], values[::-1]
    found = np.interp(at, known, values)
    first, last = ((values[b] - values[a]) / (known[b] - known[a]) for a, b in ((0, 1), (-2, -1)))
    found = np.where(at < known[0], values[0] + (at - known[0]) * first, found)
    return np.where(at > known[-1], values[-1] + (at - known[-1]) * last, found)


def _canal_direction(bone: Volume) -> np.ndarray | None:
    """(3,) unit vector along a vertebra's canal, up or down; None without a canal and a body in front of it."""
    points, depth = _bone_points(bone)
    directions = _hemisphere(_DIRECTIONS)
    areas = np.array([_largest_hole(points, direction)[0] for direction in directions])
    if areas.max() < LEAST_CANAL_MM2:
        return None
    # The principal axis of the directions that see through the canal, weighted by the area that they see.
    seen = np.where(areas > areas.max() / 2, areas, 0.0) ** 2
    canal = np.linalg.eigh((directions * seen[:, None]).T @ directions)[1][:, -1]
    area, middle = _largest_hole(points, canal)
    if area < LEAST_CANAL_MM2:
        return None
    to_body = (points * depth[:, None] ** 2).sum(0) / (depth**2).sum() - middle
    to_body -= to_body @ canal * canal
    return canal if np.linalg.norm(to_body) >= LEAST_FRONT_MM else None


def _bone_points(bone: Volume) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) RAS mm, points about `_GRID_MM` apart in a bone, and (N,) their depths below its surface in mm."""
    step = bone.spacing_mm / _GRID_MM
    finer = np.maximum(np.rint(step), 1).astype(int)
    data = np.pad(bone.data > 0, 1)
    data = data.repeat(finer[0], 0).repeat(finer[1], 1).repeat(finer[2], 2)
    depth = ndimage.distance_transform_edt(data, sampling=bone.spacing_mm / finer)
    index = np.argwhere(data)
    # One point per cell of the grid.
    points = bone.world((index + 0.5) / finer - 1.5)
    _, first = np.unique(np.floor(points / _GRID_MM).astype(int), axis=0, return_index=True)
    return points[first], depth[tuple(index[first].T)]


def _hemisphere(count: int) -> np.ndarray:
    """(count, 3) unit vectors spread evenly over half the sphere."""
    steps = np.arange(count) + 0.5
    z, turn = steps / count, np.pi * (1 + 5**0.5) * steps
    return np.stack([np.sqrt(1 - z * z) * np.cos(turn), np.sqrt(1 - z * z) * np.sin(turn), z], axis=1)


def _largest_hole(points: np.ndarray, direction: np.ndarray) -> tuple[float, np.ndarray]:
    """The largest hole in the projection of points along `direction`: its area in mm² and its centre (3,) in mm."""
    first = np.cross(direction, np.eye(3)[np.abs(direction).argmin()])
    first /= np.linalg.norm(first)
    plane = np.stack([first, np.cross(direction, first)], axis=1)
    flat = points @ plane / _PIXEL_MM
    low = flat.min(0) - 2
    pixels = (flat - low).astype(int)
    projection = np.zeros(pixels.max(0) + 3, bool)
    projection[tuple(pixels.T)] = True
    projection = ndimage.binary_closing(projection)
    holes, count = ndimage.label(ndimage.binary_fill_holes(projection) & ~projection)
    if not count:
        return 0.0, np.zeros(3)
    sizes = np.bincount(holes.ravel())[1:]
    middle = np.argwhere(holes == sizes.argmax() + 1).mean(0) + 0.5 + low
    return float(sizes.max()) * _PIXEL_MM**2, plane @ (middle * _PIXEL_MM)
