"""One subject under two names: caught however it was moved, and nobody else with it."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from conftest import Patient, axes_mm, inside_vertebra
from scipy import ndimage
from scipy.spatial.transform import Rotation

from transvert import levels
from transvert.data import twins
from transvert.imaging import masks
from transvert.imaging.volume import Volume, cube_affine, cut_cube


def bone(
    spacing_mm: float = 1.0,
    turn: np.ndarray | None = None,
    size: tuple[float, float, float] = (1, 1, 1),
    wave_mm: float = 0,
    stretch: np.ndarray | None = None,
) -> Volume:
    """The patient's kind of vertebra, stretched and waved, turned and cut into voxels."""
    count = round(110 / spacing_mm)
    affine = cube_affine(np.array([1.3, -2.1, 0.4]), count, spacing_mm)
    grid = np.stack(np.broadcast_arrays(*axes_mm(affine, (count,) * 3)), axis=-1)
    points = grid @ (np.eye(3) if turn is None else turn) / np.array(size)
    points = points if stretch is None else points @ np.linalg.inv(stretch).T
    points = points + wave_mm * np.sin(points[..., [1, 2, 0]] / 9.0)
    return Volume(inside_vertebra(*np.moveaxis(points, -1, 0), (0.0, 0.0, 0.0)).astype(np.uint8), affine)


TURN = Rotation.from_euler("xyz", (130, -50, 75), degrees=True).as_matrix()
COPIES = {
    "moved": Volume(bone().data, np.array([[1, 0, 0, 300], [0, 1, 0, -80], [0, 0, 1, 999], [0, 0, 0, 1.0]])),
    "turned": bone(turn=TURN),
    "resampled": bone(1.5),
    "turned and resampled": bone(1.4, TURN),
    "in thick slices": Volume(bone().data[:, :, ::3], bone().affine @ np.diag([1, 1, 3.0, 1])),
    "outlined a voxel farther in": Volume(ndimage.binary_erosion(bone(0.7).data).astype(np.uint8), bone(0.7).affine),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_lies_below_the_limit(how: str) -> None:
    fit = twins.compare(bone(), COPIES[how])
    assert fit.same and not fit.mirrored
    assert _pairs(_index({"a": {"L1": bone()}, "b": {"L1": COPIES[how]}})) == [("a", "b", ["L1"])]


def test_a_mirrored_copy_is_one_too_and_said_so() -> None:
    fit = twins.compare(bone(), Volume(bone().data[::-1].copy(), bone().affine))
    assert fit.same and fit.mirrored and fit.distance_mm < 0.3


def test_a_known_distance_is_measured() -> None:
    """Balls about one middle: nothing to align, and the gap between them is the difference of their radii."""
    affine = cube_affine(np.zeros(3), 70, 1.0)
    x, y, z = axes_mm(affine, (70,) * 3)
    balls = [Volume((x**2 + y**2 + z**2 < r**2).astype(np.uint8), affine) for r in (20, 23)]
    fit = twins.compare(*balls)
    assert fit.distance_mm == pytest.approx(3.0, abs=0.25) and fit.scatter_mm < 0.4
    assert not fit.same
    assert twins.compare(balls[0], balls[0]).distance_mm == pytest.approx(0.0, abs=0.05)


def test_a_bone_as_long_as_it_is_wide_is_aligned_too() -> None:
    """Its surface's principal axes say nothing of how it is turned."""
    stretch = np.eye(3)
    for _ in range(4):
        found = twins._sample(bone(stretch=stretch))
        stretch = found.axes @ np.diag([1, found.radii_mm[0] / found.radii_mm[1], 1]) @ found.axes.T @ stretch
    squat = bone(stretch=stretch)
    longest, second, _ = twins._sample(squat).radii_mm
    assert longest / second < 1.02
    for degrees in (45, 100, 190, 300):
        turn = Rotation.from_euler("zx", (degrees, 20), degrees=True).as_matrix()
        assert twins.compare(squat, bone(1.5, turn, stretch=stretch)).same


def test_other_shapes_lie_above_the_limit() -> None:
    for other in (bone(size=(1.25, 0.85, 1.0)), bone(wave_mm=4.0)):
        fit = twins.compare(bone(), other)
        assert not fit.same and fit.scatter_mm > twins.SAME_SCATTER_MM


def test_lengths_are_those_of_a_box_and_stay_with_motion() -> None:
    affine = cube_affine(np.zeros(3), 60, 1.0)
    x, y, z = axes_mm(affine, (60,) * 3)
    box = Volume(((np.abs(x) < 20) & (np.abs(y) < 12) & (np.abs(z) < 8)).astype(np.uint8), affine)
    sides = np.array([40, 24, 16.0])
    np.testing.assert_allclose(twins.lengths_mm(box)[0], np.cbrt(sides.prod()), rtol=1e-6)
    np.testing.assert_allclose(twins.lengths_mm(box)[1:], sides / np.sqrt(12), rtol=2e-3)
    np.testing.assert_allclose(twins.lengths_mm(bone(turn=TURN)), twins.lengths_mm(bone()), rtol=5e-3)


def _index(people: dict[str, dict[str, Volume]], **person: str) -> pd.DataFrame:
    """What a store's index says of people's vertebrae."""
    rows = []
    for name, bones in people.items():
        for level, found in bones.items():
            lengths = dict(zip(twins.LENGTHS, twins.lengths_mm(found), strict=True))
            rows.append({"subject": name, "person": person.get(name, name), "level": level, **lengths})
    return pd.DataFrame(rows, columns=["subject", "person", "level", *twins.LENGTHS])


def _pairs(index: pd.DataFrame) -> list[tuple[str, str, list[str]]]:
    return [
        (index["subject"][places[0][0]], index["subject"][places[0][1]], [index["level"][one] for one, _ in places])
        for places in twins.candidates(index)
    ]


def _people() -> dict[str, dict[str, Volume]]:
    """Three people with L1 to L3, one of them twice: turned, resampled, and without its L3."""
    people = {
        f"sub_{n}": {level: bone(size=tuple(size * (1 + 0.03 * step))) for step, level in enumerate(("L1", "L2", "L3"))}
        for n, size in enumerate(np.array([[1, 1, 1], [1.1, 0.95, 1.0], [0.95, 1.0, 1.1]]))
    }
    again = {level: bone(1.5, TURN, size=(1.1 * s, 0.95 * s, 1.0 * s)) for level, s in (("L1", 1.0), ("L2", 1.03))}
    return {**people, "sub_again": again}


def test_one_subject_under_two_names_is_found_and_told_of_with_both() -> None:
    people = _people()
    opened: list[tuple[str, str]] = []

    def open_bone(row: pd.Series) -> Volume:
        opened.append((row["subject"], row["level"]))
        return people[row["subject"]][row["level"]]

    (found,) = twins.find(_index(people), open_bone)
    assert (found.first, found.second) == ("sub_1", "sub_again") and found.fit.same and found.level in ("L1", "L2")
    assert set(opened) == set(itertools.product(("sub_1", "sub_again"), ("L1", "L2"))), "nobody else was worth a look"
    assert len(opened) == 4, "each once"
    assert re.fullmatch(
        r"sub_1 and sub_again are one subject under two names: their L[12] are 0\.\d\d mm apart; leave one out\.",
        str(found),
    )
    assert not twins.find(_index(people, sub_1="one", sub_again="one"), open_bone), "two scans of one person are known"
    del people["sub_again"]
    assert not twins.find(_index(people), open_bone)


def test_bones_of_samples_are_enough(patient: Patient) -> None:
    """As a run finds it: lengths from the masks, and bones from the samples at 1.5 mm, however these were turned."""
    turned = Volume(np.swapaxes(patient.mask.data, 0, 1)[:, ::-1], patient.mask.affine[[1, 0, 2, 3]][:, [1, 0, 2, 3]])
    people = {}
    for name, mask in (("one", patient.mask), ("other", turned)):
        people[name] = {}
        for level, (part, box) in masks.clean_mask(mask).parts.items():
            whole = np.zeros_like(mask.data)
            whole[box][part] = 1
            people[name][levels.name(level)] = Volume(whole, mask.affine)

    def open_bone(row: pd.Series) -> Volume:
        whole = people[row["subject"]][row["level"]]
        return cut_cube(whole, whole.world(np.argwhere(whole.data)).mean(0), 84, 1.5, order=0, fill=0)

    (found,) = twins.find(_index(people), open_bone)
    assert (found.first, found.second) == ("one", "other")


def test_subjects_that_share_no_level_are_no_pair_and_every_shared_level_counts() -> None:
    small, large = bone(), bone(size=(1.2, 1.2, 1.2))
    assert not _pairs(_index({"a": {"L1": small}, "b": {"L2": small}}))
    both = {"a": {"L1": small, "L2": small}, "b": {"L1": small, "L2": large}}
    assert not _pairs(_index(both))
    assert not _pairs(_index({})) and not _pairs(_index({"a": both["a"]}))


def test_pairs_are_the_same_however_few_are_compared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    rows = []
    for n in range(60):
        size = np.exp(random.normal(0, 0.02, 4) + random.normal() * twins.FARTHER_OUT) * (30, 14, 11, 6.5)
        for level in ("T12", "L1", "L2", "L3")[random.integers(3) : random.integers(3, 5)]:
            lengths = size * np.exp(random.normal(0, 0.01, 4))
            rows.append(
                {
                    "subject": f"s{n}",
                    "person": f"s{n}",
                    "level": level,
                    **dict(zip(twins.LENGTHS, lengths, strict=True)),
                }
            )
    index = pd.DataFrame(rows)
    # As the sentence of the module says it, pair by pair.
    expected = set()
    logs = np.log(index[list(twins.LENGTHS)].to_numpy())
    for a, b in itertools.combinations(index["subject"].unique(), 2):
        apart = []
        for i, j in itertools.product(*(index.index[index["subject"] == name] for name in (a, b))):
            if index["level"][i] == index["level"][j]:
                change = logs[i] - logs[j]
                out = change @ twins.FARTHER_OUT / (twins.FARTHER_OUT @ twins.FARTHER_OUT)
                rest = np.abs(change - out * twins.FARTHER_OUT).max()
                apart.append(rest if abs(out) < twins.FARTHEST_MM else np.inf)
        if apart and max(apart) < twins.ALIKE and sum(apart) < twins.ALIKE_MEAN * (len(apart) + 1):
            expected.add((a, b))
    assert 50 < len(expected) < 1200
    for at_once in (1, 700, 2**20):
        monkeypatch.setattr(twins, "_PAIRS_AT_ONCE", at_once)
        found = [(a, b) for a, b, _ in _pairs(index)]
        assert len(found) == len(set(found)) and set(found) == expected


def test_a_level_mirrored_is_told_in_the_sentence() -> None:
    told = str(twins.Twins("sub-a", "sub-b", "L1", twins.Fit(0.4321, 0.1, True)))
    assert told == (
        "sub-a and sub-b are one subject under two names: their L1, one of them mirrored, are 0.43 mm apart; "
        "leave one out."
    )
