"""Mask cleaning: which vertebrae of a label mask are whole, and which voxels belong to them.

A vertebra is the largest piece of its label. Another piece is joined to it within `GAP_MM`, or moved to the level that it
touches, or dropped as a fragment, unless it is half as large: then two vertebrae have one number. Then vertebrae are
skipped, in this order: at the volume's border, split into two numbers, merged with others (too tall, or too large beside
its neighbours), with a flat end as from a border, too small, of a size that its level never has, turned, and, where there
is a CT, without bone or at the edge of what the CT shows. Each event is counted and noted. The thresholds are this
companion's choice, far from the values of the whole vertebrae of 35 masks and 6 CTs.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from transvert import levels
from transvert.imaging.volume import Volume

Part = tuple[np.ndarray, tuple[slice, ...]]

GAP_MM = 3.0  # Thin bone of this length may be lost between a vertebra and a piece of it.
LEAST_SHARE = 0.02  # Smallest volume of a piece to be joined or moved, relative to the vertebra.
MERGED_SHARE = 0.5
FLAT_SHARE = 0.7  # Area of a flat end slice relative to the largest slice. Whole vertebrae have about 0.1.
TALLEST_MM = {"C": 65.0, "T": 75.0, "L": 80.0}
SMALLEST_MM3 = 1.5e3
# Mean volume in cm³ of C1, C2, C3, C7, T1, T4, T8, T12, L1, L3, L5, by `levels.place`, and the limits relative to it.
USUAL_CM3 = ((0, 1, 2, 6, 7, 10, 14, 18, 19, 21, 23), (12, 16, 11, 15, 18, 20, 27, 41, 47, 60, 65))
SIZES = (0.2, 2.2)
RIM_MM, AROUND_MM = 3.0, (1.5, 5.0)  # Depth of the rim of a vertebra, and distances of the tissue around it.
LEAST_BONE_HU, MOST_BONE_HU, LEAST_CONTRAST_HU = 100.0, 1000.0, 60.0  # Of the rim's median. The CTs have 237 to 375.
PADDING_HU, PADDING_SHARE = (-1024, -1000, 0), 0.05
CLOSEST_MM = {"C": 8.0, "T": 11.0, "L": 16.0}  # Between centroids along the column, by the upper one's region.
# Limits relative to the median of the nearby levels; C1 and C2 are left out, since their volumes differ.
LARGER_THAN_NEIGHBOURS, SMALLER_THAN_NEIGHBOURS, CLOSER_THAN_NEIGHBOURS, HALF_SHARE = 1.6, 0.5, 0.6, 0.8
NEAR = 3  # Nearby levels: up to this many above and below, T13 and L6 included.

NOTES = {
    "moved": "{} voxels that touch it had the label of {}, moved.",
    "joined": "a separate piece of {} voxels, joined.",
    "fragment": "{} fragment(s), {} voxels, dropped.",
    "missing": "no voxel has its number.",
    "truncated": "{}, skipped.",
    "split": "{} and {} are one vertebra with two numbers, skipped.",
    "merged": "two or more vertebrae with one number, skipped.",
    "small": "only {:.1f} cm3, so a part of it is missing, skipped.",
    "size": "{:.1f} cm3, {:.1f} times the usual size: wrong numbers or voxel size, skipped.",
    "turned": "its processes do not point backwards: the mask or its affine is turned, skipped.",
    "off bone": "{:.0f} HU in its rim, {:.0f} HU around it: the mask is off the bone or the CT is not in HU, skipped.",
}
_ORDER = {level: place for place, level in enumerate(levels.NAMES)}


@dataclass
class CleanedMask:
    """The result of mask cleaning.

    Attributes:
        parts: level to the bool array of the vertebra's voxels and its block of the volume, head to tail.
        notes: one sentence for each correction and each vertebra that is skipped or missing.
        counts: number of "whole" vertebrae and of each event of `NOTES`.
    """

    parts: dict[int, Part] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def note(self, event: str, level: int, *details: object) -> None:
        """Counts an event of `NOTES` and notes it."""
        self.counts[event] += 1
        self.notes.append(f"{levels.name(level)}: {NOTES[event].format(*details)}")


def clean_mask(mask: Volume, ct: Volume | None = None) -> CleanedMask:
    """Corrects a mask's pieces and finds its whole vertebrae.

    Args:
        mask: (X, Y, Z) uint8, VerSe levels.
        ct: HU, any grid; then a vertebra without bone in this CT is skipped.
    """
    made = CleanedMask()
    cleaned, doubled = _assign_pieces(mask, made)
    boxes = ndimage.find_objects(cleaned)
    found = levels.in_order([i + 1 for i, box in enumerate(boxes) if box is not None])
    for level in levels.NAMES:
        between = found and _ORDER[found[0]] < _ORDER[level] < _ORDER[found[-1]]
        if between and level not in found and level not in levels.RARE:
            made.note("missing", level)
    parts = {level: (cleaned[boxes[level - 1]] == level, boxes[level - 1]) for level in found}
    volumes = {level: float(part.sum() * mask.spacing_mm.prod()) for level, (part, _) in parts.items()}
    heights = {level: (box[2].stop - box[2].start) * mask.spacing_mm[2] for level, (_, box) in parts.items()}
    skipped: dict[int, tuple[str, tuple[object, ...]]] = {}

    def skip(event: str, level: int, *details: object) -> None:
        # A skipped vertebra no longer counts as a neighbour in the later tests.
        skipped[level] = (event, details)
        volumes.pop(level)

    for level, (_, box) in parts.items():
        if any(side.start == 0 or side.stop == n for side, n in zip(box, mask.data.shape, strict=True)):
            skip("truncated", level, "truncated by the volume's border")
    for pair in _halves(volumes, parts, mask):
        for level in set(pair) & set(volumes):
            skip("split", level, *map(levels.name, pair))
    large = [n for n, mm3 in volumes.items() if mm3 > LARGER_THAN_NEIGHBOURS * _usual_volume(volumes, n, mm3)]
    large += [n for n in volumes if heights[n] > TALLEST_MM[levels.region(n)] or n in doubled]
    for level in dict.fromkeys(large):
        skip("merged", level)
    for level in list(volumes):
        if _is_flat(parts[level][0]):
            skip("truncated", level, "it ends in a flat face, as if truncated")
    for level, mm3 in list(volumes.items()):
        if mm3 < max(SMALLEST_MM3, SMALLER_THAN_NEIGHBOURS * _usual_volume(volumes, level, mm3)):
            skip("small", level, mm3 / 1e3)
    sizes = {level: mm3 / 1e3 / np.interp(levels.place(level), *USUAL_CM3) for level, mm3 in volumes.items()}
    for level, size in sizes.items():
        # With wrong numbers some levels fit by chance, so the median counts too.
        if wrong := [s for s in (size, float(np.median([*sizes.values()]))) if not SIZES[0] < s < SIZES[1]]:
            skip("size", level, volumes[level] / 1e3, wrong[0])
        elif _is_turned(mask, *parts[level]):
            skip("turned", level)
        elif ct is not None:
            bone, around, padding = _look_around(ct, mask, *parts[level])
            if not LEAST_BONE_HU < bone < MOST_BONE_HU or bone - around < LEAST_CONTRAST_HU:
                skip("off bone", level, bone, around)
            elif padding > PADDING_SHARE:
                skip("truncated", level, "truncated by the edge of what the CT shows")
    for level, part in parts.items():
        if level in skipped:
            event, details = skipped[level]
            made.note(event, level, *details)
        else:
            made.parts[level] = part
            made.counts["whole"] += 1
    return made


def centroid(mask: Volume, part: np.ndarray, box: tuple[slice, ...]) -> np.ndarray:
    """(3,) RAS mm, the centre of mass of a vertebra of `CleanedMask.parts`."""
    return mask.world(np.argwhere(part).mean(0) + [side.start for side in box])


def _assign_pieces(mask: Volume, made: CleanedMask) -> tuple[np.ndarray, set[int]]:
    """(X, Y, Z) uint8, the vertebra that each voxel belongs to, and the levels with a second vertebra."""
    boxes = ndimage.find_objects(mask.data.astype(np.uint8, copy=False))
    present = levels.in_order([i + 1 for i, box in enumerate(boxes) if box is not None and i + 1 in levels.VERTEBRAE])
    cleaned, doubled = np.zeros(mask.data.shape, np.uint8), set()
    voxel_mm3 = mask.spacing_mm.prod()
    main_mm3, loose = {}, []
    for level in present:
        box = boxes[level - 1]
        pieces, count = ndimage.label(mask.data[box] == level, np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel(), minlength=2)[1:]
        main = int(sizes.argmax()) + 1
        cleaned[box][pieces == main] = level
        main_mm3[level] = sizes.max() * voxel_mm3
        if count > 1:
            loose.append((level, box, pieces, sizes.tolist(), main))
    for level, box, pieces, sizes, main in loose:
        gaps = ndimage.distance_transform_edt(cleaned[box] != level, sampling=mask.spacing_mm)
        fragments = []
        for number, size in enumerate(sizes, 1):
            mm3 = size * voxel_mm3
            if number == main:
                continue
            if mm3 < LEAST_SHARE * min(main_mm3.values()):
                fragments.append(size)
                continue
            piece = pieces == number
            near = gaps[piece].min() <= GAP_MM
            other = 0 if near else _touched(mask, box, piece, present)
            if mm3 < LEAST_SHARE * main_mm3[other or level]:
                fragments.append(size)
            elif other:
                cleaned[box][piece] = other
                made.note("moved", other, size, levels.name(level))
            elif near:
                cleaned[box][piece] = level
                made.note("joined", level, size)
            elif mm3 >= MERGED_SHARE * main_mm3[level]:
                doubled.add(level)
            else:
                fragments.append(size)
        if fragments:
            made.note("fragment", level, len(fragments), sum(fragments))
    return cleaned, doubled


def _touched(mask: Volume, box: tuple[slice, ...], piece: np.ndarray, present: list[int]) -> int:
    """The level whose label touches the most of a piece's rim, or 0."""
    grown = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
    around = mask.data[grown]
    padded = np.pad(piece, [(side.start - g.start, 1) for side, g in zip(box, grown, strict=True)])
    padded = padded[tuple(slice(0, n) for n in around.shape)]
    rim = ndimage.binary_dilation(padded, np.ones((3, 3, 3))) & ~padded
    counts = np.bincount(around[rim], minlength=256)
    return max((n for n in present if counts[n]), key=lambda n: int(counts[n]), default=0)


def _is_flat(voxels: np.ndarray) -> bool:
    """Whether a vertebra ends in a flat face, as after truncation by a border and later padding."""
    ends = []
    for axes in ((1, 2), (0, 2), (0, 1)):
        areas = voxels.sum(axes)
        ends.append(max(areas[0], areas[-1]) / areas.max())
    return max(ends) > FLAT_SHARE


def _is_turned(mask: Volume, part: np.ndarray, box: tuple[slice, ...]) -> bool:
    """Whether a vertebra's body, its thickest part, is not in front of its centre of mass (by 1 mm at the atlas)."""
    depth = ndimage.distance_transform_edt(np.pad(part, 1), sampling=mask.spacing_mm)[1:-1, 1:-1, 1:-1]
    offset = np.array(ndimage.center_of_mass(depth**2)) - np.argwhere(part).mean(0)
    right, front, _ = mask.affine[:3, :3] @ offset
    return front < -1.5 or abs(right) > front + 2.5


def _look_around(ct: Volume, mask: Volume, part: np.ndarray, box: tuple[slice, ...]) -> tuple[float, float, float]:
    """Median HU of a vertebra's rim, which is mostly cortical bone, and around it, and the share of padding there."""
    margin = int(np.ceil(AROUND_MM[1] / mask.spacing_mm.min()))
    inside = np.pad(part, margin)
    depth, away = (ndimage.distance_transform_edt(side, sampling=mask.spacing_mm) for side in (inside, ~inside))
    found = []
    for chosen in (inside & (depth <= RIM_MM), (away > AROUND_MM[0]) & (away <= AROUND_MM[1])):
        points = mask.world(np.argwhere(chosen) + [side.start - margin for side in box])
        found.append(ndimage.map_coordinates(ct.data, ct.index(points).T, order=0, mode="nearest"))
    rim, around = found
    return float(np.median(rim)), float(np.median(around)), float(np.isin(around, PADDING_HU).mean())


def _usual_volume(volumes: dict[int, float], level: int, unknown: float) -> float:
    """Median volume of the nearby levels; `unknown` if there is none."""
    near = [volumes[n] for n in volumes if n > 2 and n != level and abs(_ORDER[n] - _ORDER[level]) <= NEAR]
    return float(np.median(near)) if near and level > 2 else unknown


def _halves(volumes: dict[int, float], parts: dict[int, Part], mask: Volume) -> list[tuple[int, int]]:
    """Pairs of successive levels that are too small and too close along the column to be two vertebrae."""
    good = list(volumes)
    centres = np.array([centroid(mask, *parts[level]) for level in good])
    pairs = list(itertools.pairwise(good))
    steps = {}
    for i, pair in enumerate(pairs):
        ends = centres[max(i - 1, 0)] - centres[min(i + 2, len(good) - 1)]
        along = ends / np.linalg.norm(ends) if len(good) > 2 else np.array([0.0, 0.0, 1.0])
        steps[pair] = float((centres[i] - centres[i + 1]) @ along)
    found = []
    for pair, step in steps.items():
        near = [steps[other] for other in pairs if other != pair and abs(_ORDER[other[0]] - _ORDER[pair[0]]) <= NEAR]
        others = {n: mm3 for n, mm3 in volumes.items() if n not in pair}
        small = all(volumes[n] < HALF_SHARE * _usual_volume(others, n, np.inf) for n in pair)
        close = max(CLOSEST_MM[levels.region(pair[0])], CLOSER_THAN_NEIGHBOURS * float(np.median(near or [0.0])))
        if small and step < close:
            found.append(pair)
    return found
