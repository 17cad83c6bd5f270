"""Baselines without a network: mean shape, visual hull, another person's vertebra."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy import ndimage, optimize
from scipy.spatial.transform import Rotation

from transvert.data.samples import Samples, StoredSamples
from transvert.model import evaluate, metrics

BASELINES = ("mean_shape", "visual_hull", "other_person")
"""The mean of the training shapes at the landmark; the intersection of two perfect silhouettes; the same vertebra of another
person, aligned rigidly to the true one. The last two use the truth: its silhouettes, its pose."""

MOST_OTHERS = 5
"""Most people averaged in "other_person"."""
_COARSE = 2
_ARM = 10.0
"""Voxels: scales rotations, so that a unit step moves a point this far from the middle by one voxel."""


def score_baselines(
    subjects: Iterable[Samples], learned: Iterable[Samples | StoredSamples], wanted: Iterable[str] = BASELINES
) -> pd.DataFrame:
    """Scores the baselines.

    Args:
        subjects: the test subjects.
        learned: the training subjects.
        wanted: names of `BASELINES`.

    Returns:
        The columns of `evaluate.score_samples` and `variant`. "other_person" is the mean over at most `MOST_OTHERS` training
        subjects with the level; levels without one have no row.
    """
    known = [(s.levels, (s if isinstance(s, Samples) else s.load()).targets()) for s in learned]
    mean = metrics.mean_shape(np.concatenate([targets for _, targets in known]).astype(np.uint8))
    tables = []
    for subject in subjects:
        for name in wanted:
            if name == "mean_shape":
                table = evaluate.score_samples(subject, np.repeat(mean[None], len(subject), axis=0))
            elif name == "visual_hull":
                table = evaluate.score_samples(subject, metrics.visual_hulls(subject.targets()))
            else:
                table = _others(subject, known)
            tables.append(table.assign(variant=name))
    # An empty table has no dtypes, and concat would spread that.
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def _others(subject: Samples, known: list[tuple[np.ndarray, np.ndarray]]) -> pd.DataFrame:
    tables = []
    for level, truth in zip(subject.levels, subject.targets(), strict=True):
        same = [targets[found == level][0] for found, targets in known if level in found][:MOST_OTHERS]
        one = subject.chosen([int(level)])
        tables += [evaluate.score_samples(one, align(bone, truth)[None]) for bone in same]
    if not tables:
        return pd.DataFrame(columns=list(evaluate.COLUMNS))
    table = pd.concat(tables, ignore_index=True)
    return table.groupby(["subject", "level", "source"], sort=False).mean().reset_index()[list(evaluate.COLUMNS)]


def align(bone: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Aligns a bone rigidly to another one.

    Minimises the mean squared difference of the blurred masks, starting from coinciding centres of mass.

    Args:
        bone: (S, S, S) bool.
        truth: (S, S, S) bool.

    Returns:
        (S, S, S) float32, the aligned bone; bone where above 0.5.
    """
    here, there = (np.array(ndimage.center_of_mass(mask)) for mask in (bone, truth))
    soft, aim = (ndimage.gaussian_filter(mask.astype(np.float32), _COARSE) for mask in (bone, truth))
    soft, aim = (array[::_COARSE, ::_COARSE, ::_COARSE] for array in (soft, aim))

    def laid(pose: np.ndarray, array: np.ndarray, coarse: int) -> np.ndarray:
        turn = Rotation.from_rotvec(pose[:3] / _ARM).as_matrix()
        offset = (here + pose[3:]) / coarse - turn @ (there / coarse)
        return ndimage.affine_transform(array, turn, offset, order=1)

    def away(pose: np.ndarray) -> float:
        return float(((laid(pose, soft, _COARSE) - aim) ** 2).sum() / aim.sum())

    pose = optimize.minimize(away, np.zeros(6), method="BFGS", options={"eps": 0.05, "gtol": 2e-3}).x
    return laid(pose, bone.astype(np.float32), 1)
