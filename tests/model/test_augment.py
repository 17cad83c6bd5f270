"""Augmentation: pictures, landmarks and shape still belong to one patient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Patient
from numpy.testing import assert_allclose, assert_array_equal

from transvert.data import store
from transvert.data.patches import SIZE, SPACING_MM, centroid_map, level_code, neighbour_offsets
from transvert.data.samples import MIDDLE, WIDE, Samples, StoredSamples, cut_samples, write_samples
from transvert.drr import projector
from transvert.model import augment as augment_module
from transvert.model.augment import (
    AugmentConfig,
    Sampler,
    _centroids,
    _draw_affine,
    _draw_maps,
    _draw_views,
    _repaint,
    augment_batch,
    drop_views,
    unpack_sample,
    warp_background,
)
from transvert.model.intensity import Random
from transvert.model.warp import OTHER, OWN
from transvert.phantom import paint

STILL = AugmentConfig(**{part.name: 0.0 for part in fields(AugmentConfig)})
L2 = 21
MM = (np.arange(SIZE) - (SIZE - 1) / 2) * SPACING_MM


class _Middle(Random):
    """No chance at all: every number is the middle of its range, so that nothing is mirrored, bent or cut."""

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.full(shape, (low + high) / 2, device=self.device)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, device=self.device)


def _draw(
    samples: Samples, config: AugmentConfig, random: Random | None = None, neighbours: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One draw of each sample, in order: images and targets. By default in the middle of all chance."""
    if neighbours is None:
        neighbours = neighbour_offsets(samples.levels, samples.centroids)
    context = torch.from_numpy(neighbours), torch.tensor([level_code(int(level)) for level in samples.levels])
    parts = zip(*(unpack_sample(samples, n) for n in range(len(samples))), strict=True)
    arrays = (torch.from_numpy(np.stack(part)) for part in parts)
    images, targets = augment_batch(*arrays, *context, config, random or _Middle(0))
    return images.numpy(), targets[:, 0].numpy() > 0.5


@pytest.fixture(scope="module")
def cube_samples(patient: Patient) -> Samples:
    """The patient's samples as the public benchmark has them: of each cube alone."""
    return cut_samples(patient.ct, patient.mask, "sub-cube", field_of_view="crop")


def _fit(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def _shadows(target: np.ndarray) -> np.ndarray:
    """(2, 64, 64) AP and lateral thickness of a target (x, y, z) as pictures, both axes turned by numpy alone."""
    return np.stack([np.rot90(target.sum(1), 1)[:, ::-1], np.rot90(target.sum(0), 1)[:, ::-1]]).astype(float)


def _right_reach(target: np.ndarray) -> float:
    """How much further the target reaches to the right of its centroid than to the left, voxels."""
    x = np.flatnonzero(target.any((1, 2)))
    centre = np.argwhere(target)[:, 0].mean()
    return float((x[-1] - centre) - (centre - x[0]))


# No change, and a mirrored patient


@pytest.mark.parametrize("field_of_view", ["full", "crop"])
def test_augmentation_of_size_0_is_the_sample_itself(
    field_of_view: str, box_samples: Samples, cube_samples: Samples
) -> None:
    samples = box_samples if field_of_view == "full" else cube_samples
    images, targets = _draw(samples, STILL, Random(7))
    assert_array_equal(targets, samples.targets())
    for image, expected in zip(images, samples.images(), strict=True):
        for view in range(2):
            assert _fit(image[view, 0], expected[view, 0]) > 0.999
            assert_allclose(image[view, 0], expected[view, 0], atol=1e-3)
            assert_allclose(image[view, 1], expected[view, 1], atol=0.08)


def test_mirroring_gives_the_mirrored_patient(box_samples: Samples) -> None:
    sampler = Sampler([box_samples.chosen([L2])], replace(STILL, mirror=0.5), 5)
    images, targets = (part.numpy() for part in sampler.draw(0, 8))
    expected, truth = box_samples.images()[1], box_samples.targets()[1]
    mirrored = [_right_reach(target[0]) < 0 for target in targets]
    assert 0 < sum(mirrored) < 8
    for image, target, other in zip(images, targets[:, 0] > 0.5, mirrored, strict=True):
        ap, lateral = expected[0, 0], expected[1, 0]
        assert_allclose(image[0, 0], ap[:, ::-1] if other else ap, atol=1e-3)
        assert_allclose(image[1, 0], lateral, atol=1e-3)
        assert_array_equal(target, truth[::-1] if other else truth)


# The background


def test_a_crop_has_no_background(cube_samples: Samples) -> None:
    for row in range(3):
        _, _, outside = unpack_sample(cube_samples, row)
        assert not np.isfinite(cube_samples.pictures[row]).all() and (outside == 0).all()
    # Turned and shifted, the cube still fills its patch: the wide cube extends beyond it.
    config = replace(STILL, turn_deg=15.0, shift_mm=4.0, view_deg=5.0)
    images, _ = Sampler([cube_samples], config, 0).draw(0, 6)
    assert ((images[:, :, 0] == 0).float().mean((-2, -1)) < 0.01).all()


def test_a_cropped_full_view_equals_the_crop(box_samples: Samples, cube_samples: Samples) -> None:
    config = replace(AugmentConfig(), crop=1.0, background=0.0, collimation=0.0)
    bare, of_cube, in_body = (
        Sampler([samples], amount, 3).draw(0, 3)[0]
        for samples, amount in (
            (box_samples, config),
            (cube_samples, config),
            (box_samples, replace(config, crop=0.0)),
        )
    )
    assert torch.equal(bare, of_cube)
    assert not torch.allclose(bare, in_body, atol=0.1)


def test_the_background_is_the_picture_minus_the_cube(box_samples: Samples) -> None:
    """The slab's sum by whole numbers, beside attenuation summed as floats."""
    hu, _, outside = unpack_sample(box_samples, 1)
    slab = projector.attenuation(hu).astype(float)[:, MIDDLE].sum(1) * SPACING_MM
    found = box_samples.pictures[1, 0] - outside[0]
    seen = np.isfinite(found)
    assert seen.any()
    assert_allclose(found[seen], np.rot90(slab, 1)[:, ::-1][seen], atol=1e-4)


# Batches


def test_seed_and_step_decide_a_batch_whatever_was_drawn_before(box_samples: Samples) -> None:
    alone, config = box_samples.chosen([L2]), AugmentConfig()
    again = Sampler([alone], config, 3)
    again.draw(0, 2)
    first = Sampler([alone], config, 3).draw(4, 2)
    others = Sampler([alone], config, 4).draw(4, 2), Sampler([alone], config, 3).draw(5, 2)
    for n, same in enumerate(again.draw(4, 2)):
        assert torch.equal(first[n], same)
        assert not torch.equal(first[n][0], first[n][1])
        assert all(not torch.equal(first[n], other[n]) for other in others)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_each_pass_covers_every_sample_once(size: int, box_samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    subjects = [box_samples, box_samples.chosen([20, 22])]
    sampler = Sampler(subjects, STILL, 1)
    seen: list[tuple[int, int]] = []
    numbers, unpack = {id(subject): n for n, subject in enumerate(subjects)}, unpack_sample
    monkeypatch.setattr(
        augment_module, "unpack_sample", lambda s, row: seen.append((numbers[id(s)], row)) or unpack(s, row)
    )
    monkeypatch.setattr(augment_module, "augment_batch", lambda *_: None)
    for step in range(20 // size):
        sampler.draw(step, size)
    passes = [seen[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(one) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)] for one in passes)
    assert len({tuple(one) for one in passes}) > 1


# Shape, pictures and landmarks together


@pytest.mark.parametrize("repaint", [0.0, 1.0])
def test_pictures_show_the_drawn_shape(repaint: float, box_samples: Samples) -> None:
    """Of a strong draw, mirrored or not, the picture fits the drawn target and no flipped one."""
    sampler = Sampler([box_samples], replace(AugmentConfig(), repaint=repaint, background=0.0, collimation=0.0), 2)
    images, targets = (part.numpy() for part in sampler.draw(0, 8))
    signs = [_right_reach(target[0]) > 0 for target in targets]
    assert 0 < sum(signs) < 8
    upright, sideways, upside_down = [], [], []
    for image, target in zip(images, targets[:, 0], strict=True):
        ap, lateral = _shadows(target)
        upright.append((_fit(image[0, 0], ap), _fit(image[1, 0], lateral)))
        sideways.append((_fit(image[0, 0], ap[:, ::-1]), _fit(image[1, 0], lateral[:, ::-1])))
        upside_down.append((_fit(image[0, 0], ap[::-1]), _fit(image[1, 0], lateral[::-1])))
    assert np.min(upright) > 0.1 and np.mean(upright) > 0.35
    assert (np.mean(upright, 0) > np.mean(sideways, 0) + 0.03).all()
    assert (np.mean(upright, 0) > np.mean(upside_down, 0) + 0.01).all()
    assert all(here[0] > there[0] for here, there in zip(upright, sideways, strict=True))


def test_the_map_peaks_at_the_target_s_own_centroid(box_samples: Samples) -> None:
    sampler = Sampler(
        [box_samples], replace(AugmentConfig(), landmark_shift_mm=0.0, view_deg=0.0, magnification=0.0), 0
    )
    images, targets = (part.numpy() for part in sampler.draw(0, 6))
    for image, target in zip(images, targets[:, 0], strict=True):
        x, y, z = np.argwhere(target > 0.5).mean(0) * SPACING_MM + MM[0]
        assert np.abs([x, y, z]).max() > 0.5
        assert_allclose(image[0, 1], centroid_map(np.array([-z, -x])), atol=1e-4)
        assert_allclose(image[1, 1], centroid_map(np.array([-z, -y])), atol=1e-4)


def test_a_click_error_moves_each_view_s_map_by_itself(box_samples: Samples) -> None:
    images, _ = Sampler([box_samples.chosen([L2])], replace(STILL, landmark_shift_mm=4.0), 0).draw(0, 8)
    maps = images[:, :, 1].numpy()
    where = np.stack([(maps * MM[:, None]).sum((2, 3)), (maps * MM).sum((2, 3))], -1) / maps.sum((2, 3))[..., None]
    assert np.abs(where).max() < 4.5
    assert where.std(0).min() > 1
    assert np.abs(np.corrcoef(where[:, 0, 0], where[:, 1, 0])[0, 1]) < 0.9  # the two rows differ


@pytest.mark.parametrize(
    ("name", "amount"), [("scale", 0.3), ("turn_deg", 30.0), ("shift_mm", 8.0), ("elastic_mm", 4.0)]
)
def test_each_config_changes_the_shape(name: str, amount: float, box_samples: Samples) -> None:
    sampler = Sampler([box_samples.chosen([L2])], replace(STILL, **{name: amount}), 1)
    targets = sampler.draw(0, 4)[1].numpy()[:, 0] > 0.5
    truth = box_samples.targets()[1]
    plain = max((targets[0] & t).sum() * 2 / (targets[0].sum() + t.sum()) for t in (truth, truth[::-1]))
    assert plain < 0.97
    sizes = targets.sum((1, 2, 3)) / truth.sum()
    if name == "scale":
        assert sizes.min() < 0.9 and sizes.max() > 1.1
    elif name in ("turn_deg", "shift_mm"):
        assert_allclose(sizes, 1, atol=0.06)


def test_what_lies_outside_the_cube_moves_with_the_vertebra() -> None:
    """A ramp over each wide picture, mirrored, turned, scaled and shifted, reads what the moved millimetres say."""
    config = replace(STILL, turn_deg=10.0, scale=0.1, shift_mm=6.0, mirror=0.5)
    matrix, shift = _draw_affine(6, config, Random(0))
    assert 0 < int((matrix[:, 0, 0] < 0).sum()) < 6
    wide = (np.arange(WIDE) - (WIDE - 1) / 2) * SPACING_MM
    slopes = 2.0, -3.0  # along x (AP) or y (lateral), and along z, per mm; columns and rows run against both
    ramp = (-wide[:, None] * slopes[1] - wide[None, :] * slopes[0]).astype(np.float32)
    views = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.05]]).repeat(6, 1, 1)
    found, seen = warp_background(torch.from_numpy(np.tile(ramp, (6, 2, 1, 1))), matrix, shift, views)
    assert seen.all()
    for view, axes in enumerate(([0, 2], [1, 2])):
        plane = matrix.numpy()[:, axes][:, :, axes]
        drawn = np.stack(np.broadcast_arrays(-MM[None, :], -MM[:, None]), -1) / (1.0, 1.05)[view]
        moved = np.einsum("bij,rcj->brci", plane, drawn) + shift.numpy()[:, None, None, axes]
        reached = np.abs(moved).max(-1) < wide[-1]
        assert reached.mean() > 0.9
        assert_allclose(found.numpy()[:, view][reached], (moved @ slopes)[reached], atol=0.05)


# Views that are not what they are called


class _Views(_Middle):
    """The AP view turned by 5 degrees and the lateral one tilted by 5; both magnified by 1.05."""

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        if high == 5.0 and shape[1:] == (2, 2):
            return torch.tensor([[5.0, 0.0], [0.0, 5.0]]).expand(*shape)
        return torch.full(shape, high) if high == pytest.approx(0.05) else super().uniform(low, high, *shape)


def test_a_turned_view_turns_picture_and_landmark_but_no_target(box_samples: Samples) -> None:
    """A pin 30 mm before the vertebra's middle: 30 sin 5 beside it in the AP view, 30 cos 5 before it in the lateral."""
    hu = np.full((1, WIDE, WIDE, WIDE), -1000, np.int16)
    x, y, z = WIDE // 2, WIDE // 2 + 20, WIDE // 2
    hu[0, x - 1 : x + 1, y - 1 : y + 1, z - 1 : z + 1] = 2000
    one = replace(box_samples.chosen([L2]), hu=hu, field_of_view="crop")
    config = replace(STILL, view_deg=5.0)
    images, targets = _draw(one, config, _Views(0))
    assert_array_equal(targets, one.targets())
    for view, beside in ((0, 30 * np.sin(np.deg2rad(5))), (1, 30.0)):
        row, column = np.unravel_index(images[0, view, 0].argmax(), (SIZE, SIZE))
        assert_allclose([-MM[column], -MM[row]], [beside, 0], atol=SPACING_MM)


def test_the_landmark_follows_its_view(box_samples: Samples) -> None:
    config = replace(STILL, view_deg=5.0, magnification=0.05)
    thickness = torch.zeros(1, 2, SIZE, SIZE)
    thickness[0, 0, 40, 20] = thickness[0, 1, 52, 20] = 1
    x, y, z = MM[[40, 52, 20]]
    point = _centroids(thickness)
    assert_allclose(point, [[x, y, z]], atol=1e-5)
    views = _draw_views(1, config, _Views(0))
    sine, cosine = np.sin(np.deg2rad(5)), np.cos(np.deg2rad(5))
    ap, lateral = _draw_maps(point[:, None], views, STILL, _Middle(0))[0, :, 0].numpy()
    assert_allclose(ap, centroid_map(-1.05 * np.array([z, x * cosine + y * sine])), atol=1e-4)
    assert_allclose(lateral, centroid_map(-1.05 * np.array([z * cosine - x * sine, y])), atol=1e-4)


# Context


def test_without_chance_the_context_is_that_of_the_samples(box_samples: Samples) -> None:
    images, _ = _draw(box_samples, STILL)
    plain = box_samples.images()
    assert images.shape == plain.shape == (3, 2, 4, SIZE, SIZE)
    assert_allclose(images[:, :, 2:], plain[:, :, 2:], atol=1e-4)


def test_neighbours_move_with_the_vertebra(box_samples: Samples) -> None:
    """A rod turned by 15 degrees about the left-right axis points at the neighbour 30 mm above it."""

    class Turned(_Middle):
        def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
            found = super().uniform(low, high, *shape)
            if shape == (1, 3) and high == 1.0:  # The angles.
                found[0, 0] = 1.0
            return found

    above = np.array([[[0.0, 0.0, 30.0], [np.nan] * 3]], np.float32)
    labels = np.zeros((1, WIDE, WIDE, WIDE), np.uint8)
    labels[0, 40:44, 40:44, 22:62] = L2
    rod = replace(box_samples.chosen([L2]), labels=labels)
    images, targets = _draw(rod, replace(STILL, tilt_deg=15.0), Turned(0), above)
    _, y, z = (np.argwhere(targets[0]) * SPACING_MM + MM[0]).T
    slope = float(np.polyfit(z, y, 1)[0])
    assert abs(np.degrees(np.arctan(slope))) == pytest.approx(15, abs=1)
    place = 30 * np.array([0, slope, 1]) / np.hypot(1, slope)
    for view in (0, 1):
        assert_allclose(images[0, view, 2], centroid_map(-place[[2, view]]), atol=0.05)
    upright, _ = _draw(rod, STILL, None, above)
    assert_allclose(upright[0, :, 2], [centroid_map(np.array([-30.0, 0.0]))] * 2, atol=1e-4)


def test_neighbours_and_level_are_left_out_at_the_stated_rate(box_samples: Samples) -> None:
    config = replace(STILL, drop_neighbour=0.3, drop_level=0.4)
    images = np.concatenate([_draw(box_samples, config, Random(seed))[0] for seed in range(40)])
    codes = images[:, 0, 3, 0, 0].reshape(40, 3)
    told = codes > 0
    assert 0.5 < told.mean() < 0.7
    assert all(set(codes[told[:, n], n]) == {level_code(20 + n)} for n in range(3))
    # L2 has two neighbours, each known in both views or in none.
    known = images.reshape(40, 3, 2, 4, SIZE, SIZE)[:, 1, :, 2].max((2, 3)) > 0.5
    assert (known[:, 0] == known[:, 1]).all() and 0.75 < known[:, 0].mean() <= 1


# Films


def test_repainting_takes_the_ct_away(box_samples: Samples) -> None:
    config = replace(STILL, repaint=1.0)
    real, _ = _draw(box_samples, config)
    blank, _ = _draw(replace(box_samples, hu=np.full_like(box_samples.hu, 40)), config)
    assert_allclose(real, blank, atol=1e-5)
    kept, _ = _draw(box_samples, STILL)
    assert np.abs(real[:, :, 0] - kept[:, :, 0]).mean() > 0.1


def test_a_painted_bone_is_denser_at_its_rim_and_lies_within_the_phantom_s_ranges() -> None:
    bone = torch.zeros(2, SIZE, SIZE, SIZE, dtype=torch.bool)
    bone[:, 20:44, 20:44, 20:44] = True
    flesh = torch.full(bone.shape, 1.05)
    drawn = _repaint(flesh, bone, torch.tensor([True, False]), _Middle(0))
    assert torch.equal(drawn[1], flesh[1])  # not wanted
    painted = drawn[0].numpy() * 1000
    assert (painted[~bone[0].numpy()] == 0).all()
    core, rim = painted[30, 30, 30], painted[20, 30, 30]
    soft, fade = np.mean(paint.SOFT_HU), 0.7  # the middle of how much a bone stands out
    assert core == pytest.approx(fade * (np.mean(paint.TRABECULAR_HU) - soft), abs=1e-3)
    assert core < rim < fade * (np.mean(paint.CORTICAL_HU) - soft) + 1e-3
    assert (painted[21:43, 21:43, 21:43] == core).all() and (painted[20:44, 20:44, 43] == rim).all()


def test_what_lies_beyond_the_film_is_zero(box_samples: Samples) -> None:
    images, _ = _draw(box_samples, STILL)
    beyond = ~np.isfinite(box_samples.pictures[0, :, 10:74, 10:74])
    assert beyond.any()
    # The draw is a little more cautious at the film's edge, never less.
    assert (images[0, :, 0][beyond] == 0).all()


def test_a_vertebra_alone_gets_neighbours_of_its_own_kind(box_samples: Samples) -> None:
    alone = replace(box_samples, labels=np.where(box_samples.labels == box_samples.levels[:, None, None, None], L2, 0))
    alone = replace(alone, levels=np.full(3, L2, np.uint8), labels=alone.labels.astype(np.uint8))
    parts = unpack_sample(alone, 1)[1]
    own, other = parts == OWN, parts == OTHER
    assert_array_equal(own, alone.labels[1] == L2)
    assert other.sum() > 0.5 * own.sum()
    z = np.argwhere(other)[:, 2] - np.argwhere(own)[:, 2].mean()
    assert (z > 5).any() and (z < -5).any()


# Out of a store


@pytest.fixture
def stored(box_samples: Samples, tmp_path: Path) -> Callable[[int], list[StoredSamples]]:
    """A maker of two subjects in a store, L1 to L3 and L2 alone, with a cache for so many samples."""
    subjects = [box_samples, replace(box_samples.chosen([L2]), subject="sub-other")]
    for subject in subjects:
        write_samples(tmp_path, subject)

    def make(keep: int) -> list[StoredSamples]:
        shelf = store.SampleCache(tmp_path, keep)
        return [StoredSamples(shelf, rows) for _, rows in store.read_index(tmp_path).groupby("subject")]

    return make


@pytest.mark.parametrize("keep", [1, 100])
def test_a_store_gives_the_batches_of_memory(keep: int, stored: Callable[[int], list[StoredSamples]]) -> None:
    subjects = stored(keep)
    streamed, loaded = (Sampler(each, AugmentConfig(), 3) for each in (subjects, [s.load() for s in subjects]))
    for step in range(3):
        for ours, theirs in zip(streamed.draw(step, 2), loaded.draw(step, 2), strict=True):
            assert torch.equal(ours, theirs)
        assert len(subjects[0]._cache._kept) <= keep


def test_the_samples_of_the_next_steps_are_requested_ahead(
    stored: Callable[[int], list[StoredSamples]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stride of 3 the process makes the steps 1, 4 and 7."""
    ordered: list[tuple[str, int]] = []
    read: list[tuple[str, int]] = []
    order, sample = StoredSamples.prefetch, StoredSamples.sample
    monkeypatch.setattr(StoredSamples, "prefetch", lambda s, n: ordered.append((s.subject, n)) or order(s, n))
    monkeypatch.setattr(StoredSamples, "sample", lambda s, n: read.append((s.subject, n)) or sample(s, n))
    sampler = Sampler(stored(100), STILL, 0, stride=3)
    sampler.draw(1, 1)
    ahead = ordered.copy()
    sampler.draw(4, 1)
    sampler.draw(7, 1)
    assert len(ahead) == 3 and ahead == read


# View dropout


def test_view_dropout_zeroes_one_view_of_a_share_of_the_samples() -> None:
    images = torch.randn(400, 2, 2, 8, 8)
    before = images.clone()

    def drop(share: float, seed: int) -> torch.Tensor:
        return drop_views(images, share, torch.Generator().manual_seed(seed))

    found = drop(0.3, 1)
    gone = (found == 0).all(dim=(2, 3, 4))
    assert torch.equal(images, before) and torch.equal(found[~gone], images[~gone])
    assert not gone.all(1).any() and 0.22 < gone.any(1).double().mean() < 0.38
    assert 0.35 < gone[:, 0].sum() / gone.sum() < 0.65
    assert torch.equal(found, drop(0.3, 1)) and not torch.equal(found, drop(0.3, 2))
    assert torch.equal(drop(0.0, 3), images)
    assert (drop(1.0, 3) == 0).all(dim=(2, 3, 4)).sum(1).tolist() == [1] * 400
