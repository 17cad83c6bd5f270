"""Mask cleaning: which vertebrae of a label mask are whole, and which voxels belong to them.

Each event is counted and noted, in this order:

- *moved*: a piece that touches another level's vertebra, apart from its own, is added to the vertebra that it touches.
- *joined*: a piece within `GAP_MM` of its own vertebra is added to it; thin bone between them was lost.
- *fragment*: any other piece is dropped, unless it has half the vertebra's volume (then two vertebrae have one number).
- *split*: two levels that are too small and too close together are one vertebra with two numbers; both are skipped.
- *merged*: two vertebrae with one number, or one too tall or too large for itself or beside its neighbours, are skipped.
- *truncated*: a vertebra at the volume's border, or with a flat end as from a border, is skipped.
- *small*: a vertebra that is too small for itself or beside its neighbours is skipped, since a part of it is missing.
- *missing*: a level between others has no voxel.

The thresholds are this companion's choice, far from the values of the whole vertebrae of three masks.
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
"""Smallest volume of a piece to be joined or moved, relative to the vertebra; a smaller piece is a fragment."""
MERGED_SHARE = 0.5
FLAT_SHARE = 0.7
"""Area of an end slice relative to the largest slice above which the end is flat. Whole vertebrae have about 0.1."""
TALLEST_MM = {"C": 65.0, "T": 75.0, "L": 80.0}
LARGEST_MM3 = {"C": 45e3, "T": 75e3, "L": 130e3}
SMALLEST_MM3 = 1.5e3
CLOSEST_MM = {"C": 8.0, "T": 11.0, "L": 16.0}
"""Smallest distance between the centroids of two levels along the column, by the upper one's region."""
LARGER_THAN_NEIGHBOURS, SMALLER_THAN_NEIGHBOURS, CLOSER_THAN_NEIGHBOURS, HALF_SHARE = 1.6, 0.5, 0.6, 0.8
"""Limits relative to the median of the nearby levels; C1 and C2 are left out, since their volumes differ."""
NEAR = 3
"""Nearby levels: up to this many above and below, T13 and L6 included."""

_ORDER = {level: place for place, level in enumerate(levels.NAMES)}


@dataclass
class CleanedMask:
    """The result of mask cleaning.

    Attributes:
        parts: level to the bool array of the vertebra's voxels and its block of the volume, head to tail.
        notes: one sentence for each correction and each vertebra that is skipped or missing.
        counts: number of "whole" vertebrae and of each event that the module lists.
    """

    parts: dict[int, Part] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def note(self, kind: str, level: int, text: str) -> None:
        """Counts an event and notes it."""
        self.counts[kind] += 1
        self.notes.append(f"{levels.name(level)}: {text}")


@dataclass
class _Label:
    """The voxels of one label's box that belong to its vertebra, while pieces are assigned."""

    box: tuple[slice, ...]
    own: np.ndarray
    merged: bool = False


def clean_mask(mask: Volume) -> CleanedMask:
    """Corrects a mask's pieces and finds its whole vertebrae.

    Args:
        mask: (X, Y, Z) uint8, VerSe levels.
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

    def skip(kind: str, text: str, level: int) -> None:
        reasons[level] = (kind, text)
        volumes.pop(level)

    # A skipped vertebra no longer counts as a neighbour in the later tests.
    for level, (_, box) in parts.items():
        if any(side.start == 0 or side.stop == n for side, n in zip(box, mask.data.shape, strict=True)):
            skip("truncated", "truncated by the volume's border", level)
    for upper, lower in _halves(volumes, parts, mask):
        text = f"{levels.name(upper)} and {levels.name(lower)} are one vertebra with two numbers"
        for level in {upper, lower} & set(volumes):
            skip("split", text, level)
    large = [n for n, mm3 in volumes.items() if mm3 > LARGER_THAN_NEIGHBOURS * _usual_volume(volumes, n, mm3)]
    large += [n for n, mm3 in volumes.items() if mm3 > LARGEST_MM3[levels.region(n)]]
    large += [n for n in volumes if heights[n] > TALLEST_MM[levels.region(n)] or found[n].merged]
    for level in dict.fromkeys(large):
        skip("merged", "two or more vertebrae with one number", level)
    for level in list(volumes):
        if _is_flat(parts[level][0]):
            skip("truncated", "it ends in a flat face, as if truncated", level)
    for level, mm3 in list(volumes.items()):
        if mm3 < max(SMALLEST_MM3, SMALLER_THAN_NEIGHBOURS * _usual_volume(volumes, level, mm3)):
            skip("small", f"only {mm3 / 1e3:.1f} cm3, so a part of it is missing", level)
    for level, part in parts.items():
        if level in reasons:
            made.note(reasons[level][0], level, f"{reasons[level][1]}, skipped.")
        else:
            made.parts[level] = part
            made.counts["whole"] += 1
    return made


def centroid(mask: Volume, part: np.ndarray, box: tuple[slice, ...]) -> np.ndarray:
    """(3,) RAS mm, the centre of mass of a vertebra of `CleanedMask.parts`."""
    return mask.world(np.argwhere(part).mean(0) + [side.start for side in box])


def _pieces(mask: Volume, boxes: dict[int, tuple[slice, ...]], made: CleanedMask) -> dict[int, _Label]:
    """Each level's vertebra: its largest piece, with the pieces that are joined or moved to it."""
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
        fragments = []
        for number in np.flatnonzero(np.arange(1, len(sizes) + 1) != main) + 1:
            size = int(sizes[number - 1])
            if size * voxel_mm3 < LEAST_SHARE * min(main_mm3.values()):
                fragments.append(size)
                continue
            piece = pieces == number
            near = gaps[piece].min() <= GAP_MM
            other = 0 if near else _touched(mask, labels, boxes[level], piece, level)
            receiver = other or level
            if size * voxel_mm3 < LEAST_SHARE * main_mm3[receiver] or not (
                near or other or size >= MERGED_SHARE * sizes.max()
            ):
                fragments.append(size)
            elif other:
                _add(labels[other], boxes[level], piece)
                made.note("moved", other, f"{size} voxels that touch it had the label of {levels.name(level)}, moved.")
            elif near:
                labels[level].own |= piece
                made.note("joined", level, f"a separate piece of {size} voxels, joined.")
            else:
                labels[level].merged = True
        if fragments:
            made.note("fragment", level, f"{len(fragments)} fragment(s), {sum(fragments)} voxels, dropped.")
    return labels


def _touched(mask: Volume, labels: dict[int, _Label], box: tuple[slice, ...], piece: np.ndarray, level: int) -> int:
    """The other level whose label touches the most of a piece's rim, or 0."""
    grown = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
    around = mask.data[grown]
    padded = np.pad(piece, [(side.start - g.start, 1) for side, g in zip(box, grown, strict=True)])
    padded = padded[tuple(slice(0, n) for n in around.shape)]
    rim = ndimage.binary_dilation(padded, np.ones((3, 3, 3))) & ~padded
    counts = np.bincount(around[rim], minlength=256)
    others = [other for other in labels if other != level and counts[other]]
    return max(others, key=lambda other: int(counts[other]), default=0)


def _add(label: _Label, box: tuple[slice, ...], piece: np.ndarray) -> None:
    """Adds the voxels of another block to a label, in a block that contains both."""
    joint = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(label.box, box, strict=True))
    own = np.zeros([side.stop - side.start for side in joint], bool)
    for block, voxels in ((label.box, label.own), (box, piece)):
        place = tuple(slice(b.start - j.start, b.stop - j.start) for b, j in zip(block, joint, strict=True))
        own[place] |= voxels
    label.box, label.own = joint, own


def _tight(label: _Label) -> Part:
    """A label's voxels in the smallest block that contains them."""
    (tight,) = ndimage.find_objects(label.own.astype(np.uint8))
    block = tuple(slice(b.start + t.start, b.start + t.stop) for b, t in zip(label.box, tight, strict=True))
    return label.own[tight], block


def _is_flat(voxels: np.ndarray) -> bool:
    """Whether a vertebra ends in a flat face, as after truncation by a border and later padding."""
    ends = []
    for axes in ((1, 2), (0, 2), (0, 1)):
        areas = voxels.sum(axes)
        ends.append(max(areas[0], areas[-1]) / areas.max())
    return max(ends) > FLAT_SHARE


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


def _note_missing(present: list[int], made: CleanedMask) -> None:
    """Notes levels without a voxel between the first and the last; the rare T13 and L6 are not expected."""
    for level in levels.NAMES:
        between = present and _ORDER[present[0]] < _ORDER[level] < _ORDER[present[-1]]
        if between and level not in present and level not in (25, 28):
            made.note("missing", level, "no voxel has its number.")
