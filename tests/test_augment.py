"""Random draws: what is drawn stays one patient, whose pictures, landmarks and shape belong together."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from transvert import augment, film, phantom
from transvert.augment import Sampler, Strength
from transvert.samples import SIZE, SPACING_MM, WIDE, Samples, centroid_map

STILL = Strength(**{part.name: 0.0 for part in fields(Strength)})
L2 = 21
MM = (np.arange(SIZE) - (SIZE - 1) / 2) * SPACING_MM


class _Middle(augment._Random):
    """No chance at all: every number is the middle of its range, so that nothing is mirrored, bent or cut.

    But a picture's share (batch, views, 1, 1) that may be 0 and may be 1 is 0: no blur.
    """

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        share = low <= 0 and high == 1 and len(shape) == 4
        return torch.full(shape, 0.0 if share else (low + high) / 2, device=self.device)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, device=self.device)


def _draw(samples: Samples, strength: Strength, random: augment._Random) -> tuple[np.ndarray, np.ndarray]:
    """One draw of each sample, in order: images and targets."""
    sampler = Sampler([samples], strength, 0)
    cubes = [torch.from_numpy(np.stack(parts)) for parts in zip(*(sampler._cubes(0, n) for n in range(3)), strict=True)]
    real = torch.full((3,), samples.source == "ct")
    images, targets = augment.draw(*cubes, real, strength, random)
    return images.numpy(), targets[:, 0].numpy() > 0.5


def _middle() -> augment._Random:
    return _Middle(0, torch.device("cpu"))


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


# Without strength


def test_a_still_draw_is_the_sample_itself(box_samples: Samples) -> None:
    images, targets = _draw(box_samples, STILL, _middle())
    truth = box_samples.targets()
    overlap = 2 * (targets & truth).sum((1, 2, 3)) / (targets.sum((1, 2, 3)) + truth.sum((1, 2, 3)))
    assert overlap.min() > 0.98
    for image, expected in zip(images, box_samples.images(), strict=True):
        for view in range(2):
            assert _fit(image[view, 0], expected[view, 0]) > 0.999
            assert_allclose(image[view, 0], expected[view, 0], atol=1e-3)
            assert_allclose(image[view, 1], expected[view, 1], atol=0.08)


def test_without_strength_chance_still_mirrors_and_grades_and_blurs_mildly(box_samples: Samples) -> None:
    sampler = Sampler([box_samples.chosen([L2])], STILL, 5)
    images, targets = (part.numpy() for part in sampler.draw(0, 8))
    expected, truth = box_samples.images()[1], box_samples.targets()[1]
    mirrored = [_right_reach(target[0]) < 0 for target in targets]
    assert 0 < sum(mirrored) < 8
    for image, target, other in zip(images, targets[:, 0] > 0.5, mirrored, strict=True):
        ap, lateral = expected[0, 0], expected[1, 0]
        assert _fit(image[0, 0], ap[:, ::-1] if other else ap) > 0.95
        assert _fit(image[1, 0], lateral) > 0.95
        assert_array_equal(target, truth[::-1] if other else truth)


# Chance


def test_equal_seeds_draw_equal_batches_whatever_was_drawn_before(box_samples: Samples) -> None:
    one, same = Sampler([box_samples], Strength(), 3), Sampler([box_samples], Strength(), 3)
    for step in range(1):
        same.draw(step, 2)
    for ours, theirs in zip(one.draw(4, 2), same.draw(4, 2), strict=True):
        assert torch.equal(ours, theirs)


def test_other_seeds_and_other_steps_draw_otherwise(box_samples: Samples) -> None:
    alone = box_samples.chosen([L2])
    draws = [Sampler([alone], Strength(), seed).draw(step, 1) for seed, step in ((3, 0), (4, 0), (3, 1))]
    for part in range(2):
        for i, j in ((0, 1), (0, 2), (1, 2)):
            assert not torch.equal(draws[i][part], draws[j][part])


def test_one_batch_holds_different_draws_of_one_sample(box_samples: Samples) -> None:
    images, targets = Sampler([box_samples.chosen([L2])], Strength(), 0).draw(0, 2)
    assert not torch.equal(images[0], images[1]) and not torch.equal(targets[0], targets[1])


@pytest.mark.parametrize("size", [1, 2, 4])
def test_each_pass_covers_every_sample_once(size: int, box_samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    subjects = [box_samples, box_samples.chosen([20, 22])]
    sampler = Sampler(subjects, STILL, 1)
    seen: list[tuple[int, int]] = []
    cubes = sampler._cubes
    monkeypatch.setattr(sampler, "_cubes", lambda s, row: seen.append((s, row)) or cubes(s, row))
    monkeypatch.setattr(augment, "draw", lambda *_: None)
    for step in range(20 // size):
        sampler.draw(step, size)
    passes = [seen[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(one) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)] for one in passes)
    assert len({tuple(one) for one in passes}) > 1


# Shape, pictures and landmarks together


@pytest.mark.parametrize("source", ["ct", "phantom"])
def test_pictures_show_the_drawn_shape(source: str, box_samples: Samples) -> None:
    """Of a strong draw, mirrored or not, the picture fits the drawn target and no flipped one."""
    sampler = Sampler([replace(box_samples, source=source)], replace(Strength(), clutter=0.0, collimate=0.0), 2)
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
    sampler = Sampler([box_samples], replace(Strength(), click_mm=0.0), 0)
    images, targets = (part.numpy() for part in sampler.draw(0, 6))
    for image, target in zip(images, targets[:, 0], strict=True):
        x, y, z = np.argwhere(target > 0.5).mean(0) * SPACING_MM + MM[0]
        assert np.abs([x, y, z]).max() > 0.5
        assert_allclose(image[0, 1], centroid_map(np.array([-z, -x])), atol=1e-4)
        assert_allclose(image[1, 1], centroid_map(np.array([-z, -y])), atol=1e-4)


def test_a_click_error_moves_each_view_s_map_by_itself(box_samples: Samples) -> None:
    images, _ = Sampler([box_samples.chosen([L2])], replace(STILL, click_mm=4.0), 0).draw(0, 8)
    maps = images[:, :, 1].numpy()
    where = np.stack([(maps * MM[:, None]).sum((2, 3)), (maps * MM).sum((2, 3))], -1) / maps.sum((2, 3))[..., None]
    assert np.abs(where).max() < 4.5
    assert where.std(0).min() > 1
    assert np.abs(np.corrcoef(where[:, 0, 0], where[:, 1, 0])[0, 1]) < 0.9  # the two rows differ


@pytest.mark.parametrize(
    ("name", "amount"), [("scale", 0.3), ("turn_deg", 30.0), ("shift_mm", 8.0), ("elastic_mm", 4.0)]
)
def test_each_strength_changes_the_shape(name: str, amount: float, box_samples: Samples) -> None:
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


def test_a_scaled_draw_is_larger_where_the_grid_is_finer(box_samples: Samples) -> None:
    class Larger(_Middle):
        def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
            return torch.full(shape, low) if low == -0.1 else super().uniform(low, high, *shape)

    _, targets = _draw(box_samples, replace(STILL, scale=0.1), Larger(0, torch.device("cpu")))
    ratio = targets.sum((1, 2, 3)) / box_samples.targets().sum((1, 2, 3))
    # 0.9 of a millimetre a step: an object appears 1 / 0.9 as large.
    assert_allclose(ratio, 1 / 0.9**3, rtol=0.05)


def test_what_lies_outside_the_cube_moves_with_the_vertebra() -> None:
    """A ramp over each wide picture, mirrored, turned, scaled and shifted, reads what the moved millimetres say."""
    strength = replace(STILL, turn_deg=10.0, scale=0.1, shift_mm=6.0)
    matrix, shift = augment._affine(6, strength, augment._Random(0, torch.device("cpu")))
    assert 0 < int((matrix[:, 0, 0] < 0).sum()) < 6
    wide = (np.arange(WIDE) - (WIDE - 1) / 2) * SPACING_MM
    slopes = 2.0, -3.0  # along x (AP) or y (lateral), and along z, per mm; columns and rows run against both
    ramp = (-wide[:, None] * slopes[1] - wide[None, :] * slopes[0]).astype(np.float32)
    found = augment._warp_outside(torch.from_numpy(np.tile(ramp, (6, 2, 1, 1))), matrix, shift).numpy()
    for view, axes in enumerate(([0, 2], [1, 2])):
        plane = matrix.numpy()[:, axes][:, :, axes]
        drawn = np.stack(np.broadcast_arrays(-MM[None, :], -MM[:, None]), -1)
        moved = np.einsum("bij,rcj->brci", plane, drawn) + shift.numpy()[:, None, None, axes]
        reached = np.abs(moved).max(-1) < wide[-1]
        assert reached.mean() > 0.9
        assert_allclose(found[:, view][reached], (moved @ slopes)[reached], atol=0.05)


# Films


def test_repainting_takes_the_ct_away(box_samples: Samples) -> None:
    strength = replace(STILL, repaint=1.0)
    real, _ = _draw(box_samples, strength, _middle())
    blank, _ = _draw(replace(box_samples, hu=np.full_like(box_samples.hu, 40)), strength, _middle())
    assert_allclose(real, blank, atol=1e-5)
    kept, _ = _draw(box_samples, STILL, _middle())
    assert np.abs(real[:, :, 0] - kept[:, :, 0]).mean() > 0.1


def test_a_painted_bone_is_denser_at_its_rim_and_lies_within_the_phantom_s_ranges() -> None:
    bone = torch.zeros(2, SIZE, SIZE, SIZE)
    bone[:, 20:44, 20:44, 20:44] = 1
    painted = augment._paint(bone, _middle()).numpy()[0] * 1000
    assert (painted[bone[0].numpy() == 0] == 0).all()
    core, rim = painted[30, 30, 30], painted[20, 30, 30]
    soft, fade = np.mean(phantom.SOFT_HU), 0.7  # the middle of how much a bone stands out
    assert core == pytest.approx(fade * (np.mean(phantom.TRABECULAR_HU) - soft), abs=1e-3)
    assert core < rim < fade * (np.mean(phantom.CORTICAL_HU) - soft) + 1e-3


def test_collimation_blanks_the_same_rows_of_both_views(box_samples: Samples) -> None:
    images, _ = Sampler([box_samples.chosen([L2])], replace(STILL, collimate=1.0), 0).draw(0, 8)
    dark = (images[:, :, 0] == 0).all(-1).numpy()
    assert (dark[:, 0] == dark[:, 1]).all()
    edges = dark[:, 0].sum(1)
    assert (edges > 0).all() and (edges <= SIZE * 0.25).all()
    assert 0 < dark[:, 0, 0].sum() < 8  # now the upper edge, now the lower one


def test_what_lies_beyond_the_film_is_zero(box_samples: Samples) -> None:
    images, _ = _draw(box_samples, STILL, _middle())
    beyond = ~np.isfinite(box_samples.pictures[0, :, 10:74, 10:74])
    assert beyond.any()
    # The draw is a little more cautious at the film's edge, never less.
    assert (images[0, :, 0][beyond] == 0).all()


def test_images_are_standardised_like_the_network_s_input(box_samples: Samples) -> None:
    images = Sampler([box_samples], replace(Strength(), collimate=0.0), 0).draw(0, 6)[0].numpy()
    assert np.isfinite(images).all()
    assert np.abs(images[:, :, 0]).max() <= film.CLIP
    patches = torch.from_numpy(np.random.default_rng(0).normal(3, 7, (2, 2, SIZE, SIZE)).astype(np.float32))
    valid = torch.rand(2, 2, SIZE, SIZE) > 0.2
    ours = augment._standardise(patches, valid).numpy()
    for i, j in np.ndindex(2, 2):
        assert_allclose(ours[i, j], film.standardise(patches[i, j].numpy(), valid[i, j].numpy()), atol=1e-4)


def test_a_vertebra_alone_gets_neighbours_of_its_own_kind(box_samples: Samples) -> None:
    alone = replace(box_samples, labels=np.where(box_samples.labels == box_samples.levels[:, None, None, None], L2, 0))
    alone = replace(alone, levels=np.full(3, L2, np.uint8), labels=alone.labels.astype(np.uint8))
    _, own, other, _ = Sampler([alone], STILL, 0)._cubes(0, 1)
    assert other.sum() > 0.5 * own.sum() and not (own * other).any()
    z = np.argwhere(other)[:, 2] - np.argwhere(own)[:, 2].mean()
    assert (z > 5).any() and (z < -5).any()
