"""Which vertebrae of a mask can be trusted, and in which voxels they are: one rule for every mask.

In this order, each thing that happens said in a note and counted:

- *moved*: a piece that touches another level's vertebra and lies apart from its own was given the wrong number: it is
  added to the one it touches.
- *joined*: a piece within `GAP_MM` of its own vertebra belongs to it; thin bone was lost between them.
- *stray*: any other piece is dropped, unless it is half as large as the vertebra itself: two carry one number.
- *split*: two levels that are too small and stand too close are one vertebra under two numbers; both are skipped.
- *merged*: two vertebrae carry one number, and the level is skipped. So is one that is too tall or too large for itself
  or beside its neighbours.
- *cut*: a vertebra at the volume's border, or with a flat end as of one, is skipped.
- *small*: one that is too small for itself or beside its neighbours is skipped: a part of it is missing.
- *missing*: a level without a voxel between others is said.

The thresholds are this companion's choice, far from what the whole vertebrae of three masks show.
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

GAP_MM = 3.0
LEAST_SHARE = 0.02
"""Of a vertebra's volume: what a piece must have to be joined or moved; less is stray."""
MERGED_SHARE = 0.5
FLAT_SHARE = 0.7
"""Of a vertebra's largest slice: an end slice with more of it is a cut. Whole vertebrae end in a tenth of it."""
TALLEST_MM = {"C": 65.0, "T": 75.0, "L": 80.0}
LARGEST_MM3 = {"C": 45e3, "T": 75e3, "L": 130e3}
SMALLEST_MM3 = 1.5e3
CLOSEST_MM = {"C": 8.0, "T": 11.0, "L": 16.0}
"""The least distance of two levels' centroids along the column, by the upper one's region."""
LARGER_THAN_NEIGHBOURS = 1.6
SMALLER_THAN_NEIGHBOURS = 0.5
CLOSER_THAN_NEIGHBOURS = 0.6
HALF_SHARE = 0.8
"""Relative to the median of the levels near one; C1 and C2 have volumes like no other and are left out."""
NEAR = 3
"""How many levels up and down are near; T13 and L6 count."""

_ORDER = {level: place for place, level in enumerate(levels.NAMES)}


@dataclass
class CleanedMask:
    """What a mask's vertebrae came to.

    Attributes:
        parts: level to the bool array of the vertebra's voxels and the block of the volume it fills, head to tail.
        notes: what was mended, skipped or missing, one sentence each.
        counts: how many vertebrae are "whole", and how often each thing happened that the module names.
    """

    parts: dict[int, Part] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def say(self, kind: str, level: int, text: str) -> None:
        """Counts a thing of a kind and notes it."""
        self.counts[kind] += 1
        self.notes.append(f"{levels.name(level)}: {text}")


@dataclass
class _Label:
    """One label's pieces while they are sorted: which voxels of its box are the vertebra's."""

    box: tuple[slice, ...]
    own: np.ndarray
    merged: bool = False


def clean_mask(mask: Volume) -> CleanedMask:
    """The vertebrae of a mask that are whole, after mending.

    Args:
        mask: VerSe levels, uint8.
    """
    made = CleanedMask()
    boxes = ndimage.find_objects(mask.data.astype(np.uint8, copy=False))
    present = [i + 1 for i, box in enumerate(boxes) if box is not None and i + 1 in levels.VERTEBRAE]
    found = _pieces(mask, {level: boxes[level - 1] for level in levels.in_order(present)}, made)
    _note_missing(list(found), made)
    parts = {level: _tight(label) for level, label in found.items()}
    volumes = {level: float(part.sum() * mask.spacing_mm.prod()) for level, (part, _) in parts.items()}
    heights = {level: (box[2].stop - box[2].start) * mask.spacing_mm[2] for level, (_, box) in parts.items()}
    reasons: dict[int, tuple[str, str]] = {}

    def judge(kind: str, text: str, level: int) -> None:
        reasons[level] = (kind, text)
        volumes.pop(level)

    # Each judgement leaves those that it throws out to no later one, for they are no measure of the others.
    for level, (_, box) in parts.items():
        if any(side.start == 0 or side.stop == n for side, n in zip(box, mask.data.shape, strict=True)):
            judge("cut", "cut by the volume's border", level)
    for upper, lower in _halves(volumes, parts, mask):
        text = f"{levels.name(upper)} and {levels.name(lower)} are one vertebra under two numbers"
        for level in {upper, lower} & set(volumes):
            judge("split", text, level)
    large = [n for n, mm3 in volumes.items() if mm3 > LARGER_THAN_NEIGHBOURS * _usual_volume(volumes, n, mm3)]
    large += [n for n, mm3 in volumes.items() if mm3 > LARGEST_MM3[levels.region(n)]]
    large += [n for n in volumes if heights[n] > TALLEST_MM[levels.region(n)] or found[n].merged]
    for level in dict.fromkeys(large):
        judge("merged", "two vertebrae or more under one number", level)
    for level in list(volumes):
        if _is_flat(parts[level][0]):
            judge("cut", "it ends in a flat face, as if cut", level)
    for level, mm3 in list(volumes.items()):
        if mm3 < max(SMALLEST_MM3, SMALLER_THAN_NEIGHBOURS * _usual_volume(volumes, level, mm3)):
            judge("small", f"only {mm3 / 1e3:.1f} cm3, so that a part of it is missing", level)
    for level, part in parts.items():
        if level in reasons:
            made.say(reasons[level][0], level, f"{reasons[level][1]}, skipped.")
        else:
            made.parts[level] = part
            made.counts["whole"] += 1
    return made


def centroid(mask: Volume, part: np.ndarray, box: tuple[slice, ...]) -> np.ndarray:
    """(3,) RAS mm, the centre of mass of a vertebra that `find` found: its bool array and its block."""
    return mask.world(np.argwhere(part).mean(0) + [side.start for side in box])


def _pieces(mask: Volume, boxes: dict[int, tuple[slice, ...]], made: CleanedMask) -> dict[int, _Label]:
    """Each level's vertebra: its largest piece, what is joined to it, and what other levels' labels had of it."""
    touching = np.ones((3, 3, 3))
    voxel_mm3 = float(mask.spacing_mm.prod())
    labels, loose = {}, []
    for level, box in boxes.items():
        pieces, count = ndimage.label(mask.data[box] == level, touching)
        sizes = np.bincount(pieces.ravel(), minlength=2)[1:]
        main = int(sizes.argmax()) + 1
        labels[level] = _Label(box, pieces == main)
        if count > 1:
            loose.append((level, pieces, sizes, main))
    main_mm3 = {level: float(label.own.sum()) * voxel_mm3 for level, label in labels.items()}
    for level, pieces, sizes, main in loose:
        gaps = ndimage.distance_transform_edt(~labels[level].own, sampling=mask.spacing_mm)
        stray = []
        for number in np.flatnonzero(np.arange(1, len(sizes) + 1) != main) + 1:
            size = int(sizes[number - 1])
            if size * voxel_mm3 < LEAST_SHARE * min(main_mm3.values()):
                stray.append(size)
                continue
            piece = pieces == number
            near = gaps[piece].min() <= GAP_MM
            other = 0 if near else _touched(mask, labels, boxes[level], piece, level)
            receiver = other or level
            if size * voxel_mm3 < LEAST_SHARE * main_mm3[receiver] or not (
                near or other or size >= MERGED_SHARE * sizes.max()
            ):
                stray.append(size)
            elif other:
                _add(labels[other], boxes[level], piece)
                made.say("moved", other, f"{size} voxels that touch it were labelled {levels.name(level)}, moved.")
            elif near:
                labels[level].own |= piece
                made.say("joined", level, f"a piece of {size} voxels beside it, joined.")
            else:
                labels[level].merged = True
        if stray:
            made.say("stray", level, f"{len(stray)} stray piece(s), {sum(stray)} voxels, dropped.")
    return labels


def _touched(mask: Volume, labels: dict[int, _Label], box: tuple[slice, ...], piece: np.ndarray, level: int) -> int:
    """The other level whose vertebra a piece touches most, or 0."""
    grown = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
    around = mask.data[grown]
    padded = np.pad(piece, [(side.start - g.start, 1) for side, g in zip(box, grown, strict=True)])
    padded = padded[tuple(slice(0, n) for n in around.shape)]
    rim = ndimage.binary_dilation(padded, np.ones((3, 3, 3))) & ~padded
    counts = np.bincount(around[rim], minlength=256)
    others = [other for other in labels if other != level and counts[other]]
    return max(others, key=lambda other: int(counts[other]), default=0)


def _add(label: _Label, box: tuple[slice, ...], piece: np.ndarray) -> None:
    """Adds voxels of another block to a label's own, in a block that holds both."""
    joint = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(label.box, box, strict=True))
    own = np.zeros([side.stop - side.start for side in joint], bool)
    for block, voxels in ((label.box, label.own), (box, piece)):
        place = tuple(slice(b.start - j.start, b.stop - j.start) for b, j in zip(block, joint, strict=True))
        own[place] |= voxels
    label.box, label.own = joint, own


def _tight(label: _Label) -> Part:
    """A label's voxels in the smallest block that holds them."""
    (tight,) = ndimage.find_objects(label.own.astype(np.uint8))
    block = tuple(slice(b.start + t.start, b.start + t.stop) for b, t in zip(label.box, tight, strict=True))
    return label.own[tight], block


def _is_flat(voxels: np.ndarray) -> bool:
    """Whether a vertebra ends in a flat face, such as a volume's border leaves when something was put around it."""
    ends = []
    for axes in ((1, 2), (0, 2), (0, 1)):
        areas = voxels.sum(axes)
        ends.append(max(areas[0], areas[-1]) / areas.max())
    return max(ends) > FLAT_SHARE


def _usual_volume(volumes: dict[int, float], level: int, unknown: float) -> float:
    """The median volume of the levels near one; `unknown` where there is none to compare with."""
    near = [volumes[n] for n in volumes if n > 2 and n != level and abs(_ORDER[n] - _ORDER[level]) <= NEAR]
    return float(np.median(near)) if near and level > 2 else unknown


def _halves(volumes: dict[int, float], parts: dict[int, Part], mask: Volume) -> list[tuple[int, int]]:
    """Pairs of levels, one after the other, too small and too close along the column to be two vertebrae."""
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


def _note_missing(present: list[int], made: CleanedMask) -> None:
    """Says which levels between the first and the last have no voxel; T13 and L6, which few people have, are none."""
    for level in levels.NAMES:
        between = present and _ORDER[present[0]] < _ORDER[level] < _ORDER[present[-1]]
        if between and level not in present and level not in (25, 28):
            made.say("missing", level, "no voxel carries its number.")
