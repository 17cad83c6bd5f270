"""Shapes between people: what is registered fits, a part of the way is a part of the way, and nobody held out is in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import inside_vertebra
from numpy.testing import assert_allclose

from transvert import augment, mixing, samples, store, training
from transvert.augment import Sampler, Strength
from transvert.files import InputError
from transvert.mixing import Shapes
from transvert.samples import SPACING_MM, WIDE, Samples

L1, L2, L3 = 20, 21, 22
STILL = Strength(**{name: 0.0 for name in Strength.__dataclass_fields__})
MM = (np.arange(WIDE) - (WIDE - 1) / 2) * SPACING_MM


def _bone(size: tuple[float, float, float] = (1, 1, 1), turn: float = 0.0) -> np.ndarray:
    """(84, 84, 84) bool, the patient's kind of vertebra, stretched, with a little of a turn about z."""
    x, y, z = np.meshgrid(MM, MM, MM, indexing="ij")
    x, y = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    return np.asarray(inside_vertebra(x / size[0], y / size[1], z / size[2], (0.0, 0.0, 0.0)))


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def _moved(bone: np.ndarray, field: torch.Tensor, way: float = 1.0) -> np.ndarray:
    """The bone a part of the way along a displacement."""
    points = torch.from_numpy(np.stack(np.meshgrid(MM, MM, MM, indexing="ij")).astype(np.float32))[None]
    where = (points + way * mixing.at(field[None], points)) / (MM[-1])
    volume = torch.from_numpy(bone.astype(np.float32))[None, None]
    grid = where.movedim(1, -1).flip(-1)
    return torch.nn.functional.grid_sample(volume, grid, "bilinear", "border", align_corners=True)[0, 0].numpy() > 0.5


@pytest.fixture
def people(box_samples: Samples, tmp_path: Path) -> Path:
    """A store of four subjects of three people with L1 to L3; the second is 1.2 times as wide."""
    for name, person, wide in (("a", "", 1.0), ("b", "", 1.2), ("c-1", "c", 1.0), ("c-2", "c", 1.0)):
        labels = box_samples.labels
        if wide != 1:
            x = np.clip(np.rint((np.arange(WIDE) - 41.5) / wide + 41.5).astype(int), 0, WIDE - 1)
            labels = labels[:, x]
        samples.write(tmp_path / "store", replace(box_samples, subject=name, person=person, labels=labels))
    return tmp_path / "store"


def test_a_distance_is_negative_inside_and_one_per_mm() -> None:
    ball = np.linalg.norm(np.meshgrid(MM, MM, MM), axis=0) < 20
    found = mixing.distances(ball[None])[0, 0].numpy()
    coarse = (np.arange(42) - 20.5) * 3
    radius = np.linalg.norm(np.meshgrid(coarse, coarse, coarse), axis=0)
    near = np.abs(radius - 20) < 6
    assert_allclose(found[near], radius[near] - 20, atol=1.2)
    assert found.min() == -8 and found.max() == 12


def test_what_is_registered_fits_and_a_part_of_the_way_lies_between() -> None:
    plain, other = _bone(), _bone((1.2, 0.9, 1.1), 0.15)
    assert _overlap(plain, other) < 0.8
    fields, left = mixing.register(mixing.distances(plain[None]), mixing.distances(other[None]))
    assert fields.shape == (1, 3, 11, 11, 11) and float(left[0]) < 1.0
    assert _overlap(_moved(plain, fields[0]), other) > 0.93
    half = _moved(plain, fields[0], 0.5)
    assert 0.8 < _overlap(half, plain) < 0.95 and 0.8 < _overlap(half, other) < 0.95
    assert_allclose(half.sum(), (plain.sum() + other.sum()) / 2, rtol=0.05)
    assert (_moved(plain, fields[0], 0.0) == plain).all()


def test_pairs_are_of_other_people_and_like_levels_whatever_the_order(people: Path) -> None:
    index = store.read_index(people)
    found = mixing.pairs(index, 3)
    person, level = index["person"].tolist(), index["level"].tolist()
    assert len(found) == 12 * 3
    assert all(person[i] != person[j] for i, j in found)
    assert all(abs(int(level[i][1]) - int(level[j][1])) <= 1 for i, j in found)
    names = (index["subject"] + index["level"]).tolist()
    turned = index.iloc[::-1].reset_index(drop=True)
    again = (turned["subject"] + turned["level"]).tolist()
    assert {(names[i], names[j]) for i, j in found} == {(again[i], again[j]) for i, j in mixing.pairs(turned, 3)}
    nearest = {(names[i], names[j]) for i, j in mixing.pairs(index, 1)}
    assert all(one[-2:] == other[-2:] for one, other in nearest)


def test_pairs_are_registered_once_and_nobody_held_out_is_mixed(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def register(sources: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(len(sources))
        return torch.full((len(sources), 3, 11, 11, 11), float(sum(asked))), torch.zeros(len(sources))

    monkeypatch.setattr(mixing, "register", register)
    assert mixing.mix(people, 2, progress=False) == 24 == sum(asked)
    assert mixing.mix(people, 2, progress=False) == 24 == sum(asked)
    assert store.shard_names(people) and store.read_index(people).shape[0] == 12, "it is no shard"
    both = Shapes(people, ["a", "b"])
    assert set(both._fields) <= {(name, level) for name in "ab" for level in ("L1", "L2", "L3")}
    random = np.random.default_rng(0)
    assert both.draw("c-1", "L1", random).max() == 0 and both.draw("a", "L2", random).shape == (3, 11, 11, 11)
    with pytest.raises(InputError, match="has no shapes between the subjects of this training; run `transvert mix`"):
        Shapes(people, ["a"])
    (people / mixing.SHAPES).write_bytes(b"PK no more")
    with pytest.raises(InputError, match=r"shapes\.npz of .* is damaged; delete it and run `transvert mix` again"):
        mixing.mix(people, 2, progress=False)


def test_one_person_alone_can_not_be_mixed(box_samples: Samples, tmp_path: Path) -> None:
    samples.write(tmp_path, box_samples)
    with pytest.raises(InputError, match="No two people in .* have vertebrae of levels near each other"):
        mixing.mix(tmp_path, progress=False)


def test_a_draw_goes_the_way_that_it_is_given(box_samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    """All the way to the wide one, the drawn target is the wide one; with a share of 0 it is the sample."""
    plain, wide = _bone(), _bone((1.2, 1, 1))
    labels = np.where(plain, L2, 0).astype(np.uint8)[None]
    one = replace(box_samples.chosen([L2]), labels=labels)
    fields, _ = mixing.register(mixing.distances(plain[None]), mixing.distances(wide[None]))

    class Way(Shapes):
        def __init__(self) -> None: ...

        def draw(self, subject: str, level: str, random: np.random.Generator) -> np.ndarray:
            assert (subject, level) == ("sub-box", "L2")
            return fields[0].numpy()

    middle = slice(samples.RIM, samples.RIM + samples.SIZE)
    for share, expected in ((1.0, wide), (0.0, plain)):
        drawn = Sampler([one], replace(STILL, mix=share), 0, shapes=Way()).draw(0, 1)[1][0, 0].numpy() > 0.5
        assert _overlap(drawn, expected[middle, middle, middle]) > 0.95
    assert augment.Strength().mix == 0 == training.Recipe().strength.mix
