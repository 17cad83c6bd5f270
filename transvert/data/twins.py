"""One subject under two names: found by the shape of its vertebrae, whatever it is called and however it lies.

A copy that was moved, turned, mirrored or resampled, or whose bone was outlined a little farther out or in, still fits
after rigid alignment: of 477 copies of 53 vertebrae, made nine ways and read from samples of 1.5 mm, all lay nearer than
`SAME_MM`. So did some of 98 pairs of different people's vertebrae. What tells those apart is how the distance scatters:
of copies it is nearly the same all over the bone (0.2 to 0.5 mm), of people it is not (0.67 and more). So both have to be
small, and at up to three levels that two subjects share.

Comparing all surfaces of all subjects would take days. So vertebrae are first compared by four lengths each, which motion
and mirrors leave as they are, and only pairs that agree in every level they share are aligned. Of 135 copies of 15
subjects 133 were found this way; of the other two, with one level each, the outline lay 0.7 mm farther in. Subjects that
share no level can't be compared, nor can one whose levels are counted otherwise the second time.

The lengths of 1,000 subjects are compared in a second, of 10,000 in twenty. An alignment takes about 0.2 s, and of 1,000
subjects drawn with the spread of 13 L1 some 3,000 pairs need one. Both grow with the square of the number of subjects.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from transvert.imaging import mesh
from transvert.imaging.volume import Volume
from transvert.progress import progress_bar

LENGTHS = ("size_mm", "long_mm", "middle_mm", "short_mm")
"""What an index says of a vertebra, as `lengths_mm` gives it."""

SAME_MM = 1.3
"""Two vertebrae may be one where their mean symmetric surface distance is below this,"""
SAME_SCATTER_MM = 0.55
"""and the mean deviation of the signed distance from its median is below this."""
CHECKED = 3
"""At most so many shared levels are aligned; all must be the same."""

FARTHER_OUT = np.array([0.107, 0.038, 0.050, 0.083], np.float32)
"""How the logarithms of a vertebra's four lengths change, about, with a surface that lies 1 mm farther out."""
FARTHEST_MM = 1.7
"""How much farther out one outline may lie."""
ALIKE, ALIKE_MEAN = 0.05, 0.015
"""What else the logarithms may differ by: at one level, and in the mean of many; of one or two it says less."""

SMOOTH_MM = 1.5
"""Bones are smoothed by a Gaussian this wide before they are compared."""
ROUND = 1.15
"""Axes along which a bone is less than this much longer than along another may be taken for each other."""
START_MM = 5.0
"""An alignment that starts farther off than this is not followed,"""
STARTS = 2
"""and of the rest the best so many."""
ROBUST_MM = 2.0
"""Distances that are farther than this from their median lose their pull in an alignment."""
SETTLED = 1e-3
"""An alignment ends with a step below this, in radians and mm."""
DENSE_POINTS, POINTS, COARSE_POINTS = 6000, 1200, 300
"""On the surface that is aligned to, of the one that is aligned, and of that for a first look."""
ROUNDS = 40

_PAIRS_AT_ONCE = 2**20
_SURFACES_KEPT = 256


@dataclass(frozen=True)
class Fit:
    """How two bones lie after rigid alignment.

    Attributes:
        distance_mm: the mean symmetric surface distance.
        scatter_mm: the mean deviation of the signed distance from its median.
        mirrored: one was mirrored for it.
    """

    distance_mm: float
    scatter_mm: float
    mirrored: bool

    @property
    def same(self) -> bool:
        """Whether the two are one bone."""
        return self.distance_mm < SAME_MM and self.scatter_mm < SAME_SCATTER_MM


@dataclass(frozen=True)
class Twins:
    """Two names of one subject, and how the vertebra of `level` fits, where the two agree best."""

    first: str
    second: str
    level: str
    fit: Fit

    def __str__(self) -> str:
        how = ", one of them mirrored," if self.fit.mirrored else ""
        return (
            f"{self.first} and {self.second} are one subject under two names: their {self.level}{how} are "
            f"{self.fit.distance_mm:.2f} mm apart; leave one out."
        )


def lengths_mm(bone: Volume) -> np.ndarray:
    """(4,) the cube root of a bone's volume and its three radii of gyration, mm, the longest first."""
    where = np.argwhere(bone.data)
    voxel_mm3 = abs(float(np.linalg.det(bone.affine[:3, :3])))
    spread = bone.affine[:3, :3] @ np.cov(where.T, bias=True) @ bone.affine[:3, :3].T
    radii = np.sqrt(np.maximum(np.linalg.eigvalsh(spread)[::-1], 0))
    return np.array([np.cbrt(len(where) * voxel_mm3), *radii])


def candidates(index: pd.DataFrame) -> Iterator[list[tuple[int, int]]]:
    """Pairs of subjects whose shared levels all have nearly the same lengths.

    Args:
        index: one row a vertebra, with `subject`, `person`, `level` and `LENGTHS`.

    Yields:
        Of a pair, the places in `index` of each level that both have, the most alike first. Subjects of one person, or
        without a shared level, are no pair.
    """
    people = index.groupby("subject", sort=False)["person"].first()
    person = pd.factorize(people)[0]
    subject = people.index.get_indexer(index["subject"])
    level, names = pd.factorize(index["level"])
    places = np.full((len(people), len(names)), -1)
    places[subject, level] = np.arange(len(index))
    logs = np.log(index[list(LENGTHS)].to_numpy(np.float32))
    out = logs @ FARTHER_OUT / (FARTHER_OUT @ FARTHER_OUT)
    rest = logs - out[:, None] * FARTHER_OUT
    step = max(1, _PAIRS_AT_ONCE // max(1, len(people)))
    for first in range(0, len(people), step):
        shape = len(people[first : first + step]), len(people) - first
        worst, total, shared = np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
        for column in places.T:
            some, all_ = (np.flatnonzero(column[first:last] >= 0) for last in (first + step, None))
            one, other = column[first + some][:, None], column[first + all_][None]
            between = np.abs(rest[one] - rest[other]).max(axis=-1)
            between[np.abs(out[one] - out[other]) > FARTHEST_MM] = np.inf
            block = np.ix_(some, all_)
            worst[block] = np.maximum(worst[block], between)
            total[block] += between
            shared[block] += 1
        alike = (shared > 0) & (worst < ALIKE) & (total < ALIKE_MEAN * (shared + 1.0))
        alike &= np.triu(person[first : first + step, None] != person[None, first:], 1)
        for i, j in np.argwhere(alike) + first:
            both = np.flatnonzero((places[i] >= 0) & (places[j] >= 0))
            between = np.abs(rest[places[i, both]] - rest[places[j, both]]).max(axis=-1)
            yield [(int(places[i, n]), int(places[j, n])) for n in both[between.argsort()]]


def find(
    index: pd.DataFrame,
    open_bone: Callable[[pd.Series], Volume],
    new: Collection[str] | None = None,
    *,
    progress: bool = False,
) -> list[Twins]:
    """The subjects of a store that are one under two names.

    Args:
        index: as in `candidates`.
        open_bone: gives the vertebra of a row of it, 0 and 1, where it is needed for an alignment; 1.5 mm are enough.
        new: only pairs with one of these subjects; all by default.
        progress: shows a bar where there are pairs to align.
    """

    @lru_cache(_SURFACES_KEPT)
    def surface(place: int) -> _Surface:
        return _sample(open_bone(index.iloc[place]))

    names = index["subject"].to_numpy()
    pairs = [
        places
        for places in candidates(index)
        if new is None or names[places[0][0]] in new or names[places[0][1]] in new
    ]
    found = []
    for places in progress_bar(pairs, "pairs alike", quiet=not progress):
        fits = []
        for one, other in places[:CHECKED]:
            fits.append(_aligned(surface(one), surface(other)))
            if not fits[-1].same:
                break
        else:
            first, second = index.iloc[places[0][0]], index.iloc[places[0][1]]
            found.append(Twins(first["subject"], second["subject"], first["level"], fits[0]))
    return found


def compare(first: Volume, second: Volume) -> Fit:
    """How two bones, 0 and 1, in any place and turn, lie after rigid alignment."""
    return _aligned(_sample(first), _sample(second))


@dataclass(frozen=True)
class _Surface:
    """Points all over a bone's surface.

    Attributes:
        points: (M, 3) mm, in no order.
        normals: (M, 3) of the surface there.
        apart_mm: how far the points are from one another.
        axes: (3, 3) columns, the principal axes of the points, the longest first.
        radii_mm: (3,) how far the points spread along them.
        tree: of the points.
    """

    points: np.ndarray
    normals: np.ndarray
    apart_mm: float
    axes: np.ndarray
    radii_mm: np.ndarray
    tree: KDTree

    def mirrored(self) -> _Surface:
        """The same surface seen in a mirror."""
        flip = np.array([-1.0, 1.0, 1.0])
        points = self.points * flip
        return _Surface(
            points, self.normals * flip, self.apart_mm, self.axes * flip[:, None], self.radii_mm, KDTree(points)
        )


def _sample(bone: Volume) -> _Surface:
    """Points spread over a bone's smoothed surface, around its own middle."""
    (box,) = ndimage.find_objects(np.asarray(bone.data, np.uint8))
    # Voxel steps of two grids are no difference between bones.
    soft = ndimage.gaussian_filter(np.pad(bone.data[box].astype(np.float32), 4), SMOOTH_MM / bone.spacing_mm)
    shape = mesh.extract_surface(soft, bone.affine, smooth=False)
    random = np.random.default_rng(0)
    faces = random.choice(len(shape.faces), DENSE_POINTS, p=shape.area_faces / shape.area)
    weights = random.dirichlet(np.ones(3), DENSE_POINTS)
    points = (shape.triangles[faces] * weights[..., None]).sum(1)
    points -= points.mean(0)
    spread, axes = np.linalg.eigh(points.T @ points / DENSE_POINTS)
    apart = float(np.sqrt(shape.area / DENSE_POINTS))
    return _Surface(points, shape.face_normals[faces], apart, axes[:, ::-1], np.sqrt(spread[::-1]), KDTree(points))


def _aligned(first: _Surface, second: _Surface) -> Fit:
    """The best of all alignments, with a mirror and without."""
    fits = [Fit(np.inf, np.inf, False)]
    for mirrored in (False, True):
        target = second.mirrored() if mirrored else second
        starts = _turns(first, target)
        away = [target.tree.query(first.points[:COARSE_POINTS] @ turn.T)[0].mean() for turn in starts]
        for start in np.argsort(away)[:STARTS]:
            if away[start] < START_MM:
                fits.append(Fit(*_refined(first, target, starts[start]), mirrored))
    return min(fits, key=lambda fit: fit.distance_mm)


def _turns(first: _Surface, second: _Surface) -> list[np.ndarray]:
    """Rotations (3, 3) to start from: none, and those that lay principal axes on principal axes, either way round.

    Axes along which a bone is about as long may be exchanged, or lie anyhow between: then turns about the third are added.
    """
    about = [np.eye(3)]
    for axis in range(3):
        one, other = np.delete(first.radii_mm, axis)
        if one < ROUND * other:
            steps = np.deg2rad([45, 90, 135])[:, None] * np.eye(3)[axis]
            about += list(Rotation.from_rotvec(steps).as_matrix())
    flips = [np.diag(signs) for signs in itertools.product((-1.0, 1.0), repeat=3)]
    turns = [second.axes @ flip @ turn @ first.axes.T for flip in flips for turn in about]
    return [np.eye(3), *(turn for turn in turns if np.linalg.det(turn) > 0)]


def _refined(first: _Surface, second: _Surface, turn: np.ndarray) -> tuple[float, float]:
    """Slides one surface along the other, point to plane, until it rests: the distance and its scatter then, mm."""
    moving, shift = first.points[:POINTS], np.zeros(3)
    for _ in range(ROUNDS):
        placed = moving @ turn.T + shift
        nearest = second.tree.query(placed)[1]
        normals = second.normals[nearest]
        away = ((second.points[nearest] - placed) * normals).sum(1)
        slopes = np.concatenate([np.cross(placed, normals), normals], axis=1)
        # Where the two surfaces differ, as at a broken process, they shall not pull.
        unusual = (away - np.median(away)) / ROBUST_MM
        pull = slopes / (1 + unusual[:, None] ** 2)
        step = np.linalg.lstsq(pull.T @ slopes, pull.T @ away, rcond=None)[0]
        small = Rotation.from_rotvec(step[:3]).as_matrix()
        turn, shift = small @ turn, small @ shift + step[3:]
        if np.abs(step).max() < SETTLED:
            break
    there = _signed(moving @ turn.T + shift, second)
    back = _signed((second.points[:POINTS] - shift) @ turn, first)
    scatter = [np.abs(signed - np.median(signed)).mean() for signed in (there, back)]
    return float(np.abs([there, back]).mean()), float(np.mean(scatter))


def _signed(points: np.ndarray, surface: _Surface) -> np.ndarray:
    """(N,) mm from a surface to points, positive outside; its own points lie apart, and that much aside is none."""
    away, nearest = surface.tree.query(points)
    across = ((points - surface.points[nearest]) * surface.normals[nearest]).sum(1)
    aside = np.sqrt(np.maximum(away**2 - across**2, 0))
    return np.sign(across) * np.hypot(across, np.maximum(aside - surface.apart_mm, 0))
