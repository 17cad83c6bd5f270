"""What one gets for nothing: predictions that no network makes, fold by fold beside those that one does."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy import ndimage, optimize
from scipy.spatial.transform import Rotation

from transvert.data.samples import Samples, StoredSamples
from transvert.model import evaluate, metrics

BASELINES = ("mean_shape", "visual_hull", "other_person")
"""The mean of the learned vertebrae at the landmark; everything that two perfect outlines allow; and the same vertebra of
somebody else, laid onto the true one as well as a rigid motion can. The last two know the answer: its outlines, its pose."""

MOST_OTHERS = 5
_COARSE = 2
_ARM = 10.0
"""Voxels: a turn is tried in steps that move a point this far from the middle as far as a shift's."""


def score_baselines(
    subjects: Iterable[Samples], learned: Iterable[Samples | StoredSamples], wanted: Iterable[str] = BASELINES
) -> pd.DataFrame:
    """The metrics of nulls.

    Args:
        subjects: the truth.
        learned: what a network would have learned from.
        wanted: of `NULLS`.

    Returns:
        The columns of `stages.score` and `variant`. For "other_person", the mean over up to `MOST_OTHERS` people who have
        the level; no row where nobody has it.
    """
    known = [(s.levels, (s if isinstance(s, Samples) else s.load()).targets()) for s in learned]
    mean = metrics.mean_shape(np.concatenate([targets for _, targets in known]).astype(np.uint8))
    tables = []
    for subject in subjects:
        for name in wanted:
            if name == "mean_shape":
                table = evaluate.score_samples(subject, np.repeat(mean[None], len(subject), axis=0))
            elif name == "visual_hull":
                table = evaluate.score_samples(subject, evaluate.visual_hulls(subject))
            else:
                table = _others(subject, known)
            tables.append(table.assign(variant=name))
    # A table without rows has columns without a kind, which the others would take over.
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def _others(subject: Samples, known: list[tuple[np.ndarray, np.ndarray]]) -> pd.DataFrame:
    tables = []
    for level, truth in zip(subject.levels, subject.targets(), strict=True):
        same = [targets[found == level][0] for found, targets in known if level in found][:MOST_OTHERS]
        one = subject.chosen([int(level)])
        tables += [evaluate.score_samples(one, lay(bone, truth)[None]) for bone in same]
    if not tables:
        return pd.DataFrame(columns=list(evaluate.COLUMNS))
    table = pd.concat(tables, ignore_index=True)
    return table.groupby(["subject", "level", "source"], sort=False).mean().reset_index()[list(evaluate.COLUMNS)]


def lay(bone: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Turns and shifts a bone until it covers another as well as it can.

    Both are blurred, so that what is near pulls too, and the mean squared difference is lowered from where the centres of
    mass lie on each other, without a turn.

    Args:
        bone: (S, S, S) bool.
        truth: (S, S, S) bool.

    Returns:
        (S, S, S) float32, the bone laid onto the other; above 0.5 it is bone.
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
