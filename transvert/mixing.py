"""Shapes between people: smooth displacements from a vertebra to another person's, of which a draw takes a part.

    transvert mix STORE

A dozen people are few, and bending them at random makes shapes that nobody has. On the way from one person's vertebra to
another's of the same level, or of the next one, lie shapes that somebody might. Each pair is registered once, on signed
distances at 3 mm, and kept beside the store's shards; who is held out of a training is left out of its mixtures, too.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from transvert import levels
from transvert import store as shards
from transvert.files import InputError
from transvert.progress import bar
from transvert.samples import SPACING_MM, WIDE

SHAPES = "shapes.npz"
"""Beside the shards: the displacements, as float16."""

CONTROLS = 11
"""Control points a side of a displacement, 12 mm apart."""
PARTNERS = 6
"""Of each vertebra, so many other people's."""
BEYOND = (-0.2, 1.1)
"""How much of a displacement a draw takes: 0 is the vertebra itself, 1 the other one."""

_COARSE_MM = 3.0
_COARSE = WIDE // 2
_HALF_MM = (_COARSE - 1) / 2 * _COARSE_MM
_STAGES = ((3, 60), (6, 60), (CONTROLS, 80))
_RATE_MM = 0.6
_SMOOTH = 0.02
_NEAR_MM = 5.0
_INSIDE_MM, _OUTSIDE_MM = 8.0, 12.0
_TOGETHER = 8
_SAVED_EVERY = 16


def distances(bones: np.ndarray) -> Tensor:
    """(P, 1, 42, 42, 42) float32, signed distance to the surface in mm at 3 mm, negative inside, clipped.

    Args:
        bones: (P, 84, 84, 84) bool, at 1.5 mm.
    """
    found = []
    for bone in bones:
        apart = (ndimage.distance_transform_edt(~bone) - ndimage.distance_transform_edt(bone)) * SPACING_MM
        found.append(apart.reshape(_COARSE, 2, _COARSE, 2, _COARSE, 2).mean((1, 3, 5)))
    return torch.from_numpy(np.clip(np.array(found, np.float32), -_INSIDE_MM, _OUTSIDE_MM))[:, None]


def register(sources: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Displacements u with which the sources at x + u(x) are the targets at x.

    Coarse to fine; squared differences of the distances near the target's surface, and second differences of the controls.

    Args:
        sources: (P, 1, 42, 42, 42) from `distances`.
        targets: as many.

    Returns:
        (P, 3, 11, 11, 11) float32, mm, along x, y and z, on an even grid over the sample's cube; and (P,) the root mean
        square of the distance that is left near the surface, mm.
    """
    axis = (torch.arange(_COARSE) - (_COARSE - 1) / 2) * _COARSE_MM
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    weight = torch.exp(-((targets / _NEAR_MM) ** 2)) + 0.05
    total = weight.sum((1, 2, 3, 4))
    controls = torch.zeros(len(sources), 3, 2, 2, 2)
    for count, rounds in _STAGES:
        controls = _finer(controls, count).detach().requires_grad_()
        optimiser = torch.optim.Adam([controls], lr=_RATE_MM)
        for _ in range(rounds):
            placed = (points + _finer(controls, _COARSE)) / _HALF_MM
            found = functional.grid_sample(
                sources, placed.movedim(1, -1).flip(-1), "bilinear", "border", align_corners=True
            )
            left = (weight * (found - targets) ** 2).sum((1, 2, 3, 4)) / total
            bent = sum(torch.diff(controls, 2, dim=d).pow(2).mean((1, 2, 3, 4)) for d in (2, 3, 4))
            optimiser.zero_grad()
            (left + _SMOOTH * (count / 3) ** 2 * bent).sum().backward()
            optimiser.step()
    return controls.detach(), left.detach().sqrt()


def at(fields: Tensor, points: Tensor) -> Tensor:
    """(B, 3, X, Y, Z) mm: displacements (B, 3, 11, 11, 11) at points (B, 3, X, Y, Z), mm from the cube's middle."""
    grid = (points / _HALF_MM).movedim(1, -1).flip(-1)
    return functional.grid_sample(fields, grid, "bilinear", "border", align_corners=True)


def _finer(controls: Tensor, count: int) -> Tensor:
    return functional.interpolate(controls, size=(count,) * 3, mode="trilinear", align_corners=True)


def pairs(index: pd.DataFrame, partners: int = PARTNERS) -> list[tuple[int, int]]:
    """Which vertebrae of an index are registered to which: places, the same for every order of its rows.

    Of each vertebra the nearest levels of other persons, and among equally near ones those that a digest of names draws.
    """
    order = {level: place for place, level in enumerate(levels.NAMES)}
    height = np.array([order[levels.number(name)] for name in index["level"]])
    person = index["person"].to_numpy()
    names = index["subject"] + "/" + index["level"]
    chosen = []
    for i in range(len(index)):
        away = np.abs(height - height[i])
        fit = np.flatnonzero((person != person[i]) & (away <= 1))
        key = pd.util.hash_array((names.iloc[fit] + "/" + names.iloc[i]).to_numpy(object))
        chosen += [(i, int(j)) for j in fit[np.lexsort((key, away[fit]))][:partners]]
    return chosen


def mix(place: str | Path, partners: int = PARTNERS, *, progress: bool = True) -> int:
    """Registers the vertebrae of a store and writes `SHAPES`; pairs that it has already are not registered again.

    Returns:
        How many pairs there are.

    Raises:
        InputError: as `store.read_index`, or nobody shares a level with anybody.
    """
    index = shards.read_index(place)
    names = (index["shard"] + "/" + index["level"]).tolist()
    wanted = [(names[i], names[j]) for i, j in pairs(index, partners)]
    if not wanted:
        raise InputError(f"No two people in {place} have vertebrae of levels near each other: nothing to mix.")
    known = {pair: field for pair, field in _read(place).items() if pair in set(wanted)}
    missing = [pair for pair in wanted if pair not in known]
    rows = dict(zip(names, zip(index["shard"], index["row"], index["level"], strict=True), strict=True))
    shelf = shards.Shelf(place, 64)

    def bones(some: list[str]) -> Tensor:
        cubes = ((shelf.read(*rows[name][:2])["labels"], levels.number(rows[name][2])) for name in some)
        return distances(np.stack([labels == level for labels, level in cubes]))

    starts = range(0, len(missing), _TOGETHER)
    for start in bar(starts, f"registering, {_TOGETHER} pairs at a time", quiet=not progress):
        some = missing[start : start + _TOGETHER]
        fields, _ = register(*(bones(list(side)) for side in zip(*some, strict=True)))
        known |= zip(some, fields.numpy().astype(np.float16), strict=True)
        if start // _TOGETHER % _SAVED_EVERY == _SAVED_EVERY - 1:
            _write(place, known)
    _write(place, known)
    return len(wanted)


def _write(place: str | Path, known: dict[tuple[str, str], np.ndarray]) -> None:
    buffer = io.BytesIO()
    names = np.array(list(known))
    np.savez_compressed(buffer, names=names, fields=np.array(list(known.values())))
    shards.put(place, SHAPES, buffer.getvalue())


def _read(place: str | Path) -> dict[tuple[str, str], np.ndarray]:
    content = shards.get(place, SHAPES)
    if content is None:
        return {}
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as found:
            pairs_found = [(str(one), str(other)) for one, other in found["names"]]
            return dict(zip(pairs_found, found["fields"], strict=True))
    except (OSError, ValueError, LookupError, zipfile.BadZipFile):
        raise InputError(f"{SHAPES} of {place} is damaged; delete it and run `transvert mix` again.") from None


class Shapes:
    """The displacements between the vertebrae of some subjects.

    Args:
        place: the store.
        subjects: who may be mixed: those that are learned from.

    Raises:
        InputError: the store has no displacements between them.
    """

    def __init__(self, place: str | Path, subjects: Collection[str]):
        index = shards.read_index(place)
        index = index[index["subject"].isin(list(subjects))]
        names = index["shard"] + "/" + index["level"]
        who = dict(zip(names, zip(index["subject"], index["level"], strict=True), strict=True))
        self._fields: dict[tuple[str, str], list[np.ndarray]] = {}
        for (one, other), field in _read(place).items():
            if one in who and other in who:
                self._fields.setdefault(who[one], []).append(field)
        if not self._fields:
            raise InputError(f"{place} has no shapes between the subjects of this training; run `transvert mix` on it.")

    def draw(self, subject: str, level: str, random: np.random.Generator) -> np.ndarray:
        """(3, 11, 11, 11) float32 mm: a part of the way to two others; 0 for a vertebra that has none."""
        fields = self._fields.get((subject, level), [])
        if not fields:
            return np.zeros((3, *(CONTROLS,) * 3), np.float32)
        one, other = (fields[n].astype(np.float32) for n in random.integers(len(fields), size=2))
        share, way = random.uniform(), random.uniform(*BEYOND)
        return np.float32(way) * (np.float32(share) * one + np.float32(1 - share) * other)
