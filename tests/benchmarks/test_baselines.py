"""Baselines: rigid alignment, and what each baseline may use."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from benchmarks.studies import baselines
from transvert.data.samples import Samples
from transvert.model import evaluate, metrics

L1, L2, L3 = 20, 21, 22


@pytest.mark.parametrize("turn", [(0.0, 0.0, 0.0), (0.25, -0.1, 0.15), (-0.1, 0.2, -0.3)])
def test_a_turned_and_shifted_bone_is_aligned(turn: tuple[float, ...], box_samples: Samples) -> None:
    truth = box_samples.targets()[1]
    matrix, middle = Rotation.from_rotvec(turn).as_matrix(), np.array([31.5] * 3)
    offset = middle - matrix @ middle + [2.3, -1.4, 3.1]
    bone = ndimage.affine_transform(truth.astype(np.float32), matrix, offset, order=1) > 0.5
    before, after = (metrics.compare(mask, truth, 1.5)["dice"] for mask in (bone, baselines.align(bone, truth) > 0.5))
    assert before < 0.75 and after > 0.94


def test_each_baseline_uses_what_it_may_know(box_samples: Samples) -> None:
    tested = box_samples.chosen([L1, L3])
    wide = replace(box_samples.chosen([L2, L3]), subject="sub-wide")
    grown = np.stack([ndimage.binary_dilation(cube == n) * n for cube, n in zip(wide.labels, wide.levels, strict=True)])
    learned = [replace(wide, labels=grown.astype(np.uint8))]
    table = baselines.score_baselines([tested], learned)
    assert table.groupby("variant", sort=False)["level"].agg(list).to_dict() == {
        "mean_shape": ["L1", "L3"],
        "visual_hull": ["L1", "L3"],
        "other_person": ["L3"],  # nobody else has an L1
    }
    mean = metrics.mean_shape(learned[0].targets().astype(np.uint8))
    true = evaluate.score_samples(tested, np.stack([mean, mean])).dice.tolist()
    assert table[table.variant == "mean_shape"].dice.tolist() == true
    other = table[table.variant == "other_person"].iloc[0]
    thick = learned[0].targets()[1]
    assert other.dice == pytest.approx(metrics.compare(thick, tested.targets()[1], 1.5)["dice"], abs=0.02)
    assert list(baselines.score_baselines([tested], learned, ["visual_hull"]).variant.unique()) == ["visual_hull"]


def test_other_person_is_the_mean_over_people(box_samples: Samples) -> None:
    tested = box_samples.chosen([L2])
    same = replace(tested, subject="sub-same")
    thin = replace(
        tested, subject="sub-thin", labels=ndimage.binary_erosion(tested.labels[0] == L2)[None] * np.uint8(L2)
    )
    found = [
        baselines.score_baselines([tested], people, ["other_person"]).dice[0]
        for people in ([same], [thin], [same, thin])
    ]
    assert found[0] > 0.97 and found[1] < 0.85
    assert found[2] == pytest.approx((found[0] + found[1]) / 2)
