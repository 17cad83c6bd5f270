"""Intensity augmentation: the noise of photons, and no change without an amount."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from transvert.data.patches import standardise
from transvert.drr import exposure
from transvert.model import intensity
from transvert.model.intensity import Random

SIZE = 64
OFF = {"background": 0.0, "blur": 0.0, "noise": 0.0, "contrast": 0.0, "collimation": 0.0}


def _steps(batch: int = 16) -> torch.Tensor:
    """(batch, 2, 64, 64) attenuation of four steps, 3.0, 3.5, 4.0 and 4.5, a quarter of the rows each."""
    wedge = np.repeat(np.arange(3.0, 5.0, 0.5), SIZE // 4)[:, None].repeat(SIZE, 1)
    return torch.from_numpy(wedge.astype(np.float32)).expand(batch, 2, SIZE, SIZE)


def _expose(shadows: torch.Tensor, seed: int = 0, **amounts: float) -> torch.Tensor:
    contrast_, seen = torch.full((len(shadows), 2, 1, 1), 0.1), torch.ones_like(shadows, dtype=torch.bool)
    return intensity.expose_patches(shadows, contrast_, seen, Random(seed), **OFF | amounts)


def test_noise_is_that_of_counted_photons() -> None:
    """The spread on each step of a wedge, beside the film that `exposure` makes of as many photons."""
    wedge, photons = _steps(), 60_000
    behind = photons * np.exp(-float(wedge.mean()))  # Some 1,400 photons arrive behind the patch's mean.
    level = torch.full((len(wedge), 2, 1, 1), float(behind**-0.5))
    ours = (intensity.add_noise(wedge, level, Random(0)) - wedge).numpy()
    counted = exposure.count_photons(exposure.transmit(wedge[0, 0].numpy()), photons, 0)
    theirs = exposure.to_attenuation(counted, photons) - wedge[0, 0].numpy()
    for rows in np.split(np.arange(SIZE), 4):
        spread = ours[:, :, rows].std()
        assert spread == pytest.approx(theirs[rows].std(), rel=0.06)  # 1,024 pixels say no more.
        assert spread == pytest.approx((photons * np.exp(-float(wedge[0, 0, rows[0], 0]))) ** -0.5, rel=0.02)
    neighbours = np.corrcoef(ours[..., 1:].ravel(), ours[..., :-1].ravel())[0, 1]
    assert abs(neighbours) < 0.02


def test_without_strength_a_film_is_the_standardised_shadow() -> None:
    shadows = torch.from_numpy(np.random.default_rng(0).random((3, 2, SIZE, SIZE)).astype(np.float32))
    expected = intensity.standardise_batch(shadows, torch.ones_like(shadows, dtype=torch.bool))
    assert_allclose(_expose(shadows), expected, atol=1e-4)


@pytest.mark.parametrize("name", list(OFF))
def test_each_amount_changes_the_film_and_equal_seeds_change_it_alike(name: str) -> None:
    shadows = torch.from_numpy(np.random.default_rng(0).random((3, 2, SIZE, SIZE)).astype(np.float32))
    plain, some, same, other = (
        _expose(shadows, seed, **{name: amount}) for seed, amount in ((0, 0.0), (0, 1.0), (0, 1.0), (1, 1.0))
    )
    assert torch.equal(some, same)
    assert not torch.allclose(plain, some, atol=1e-3) and not torch.allclose(some, other, atol=1e-3)


def test_collimation_blanks_the_same_rows_of_both_views() -> None:
    shadows = torch.from_numpy(np.random.default_rng(0).random((8, 2, SIZE, SIZE)).astype(np.float32))
    dark = (_expose(shadows, collimation=1.0) == 0).all(-1).numpy()
    assert (dark[:, 0] == dark[:, 1]).all()
    edges = dark[:, 0].sum(1)
    assert (edges > 0).all() and (edges <= SIZE * 0.25 + 1).all()
    assert 0 < dark[:, 0, 0].sum() < 8  # now the upper edge, now the lower one


def test_a_batch_is_standardised_like_a_single_patch() -> None:
    patches = torch.from_numpy(np.random.default_rng(0).normal(3, 7, (2, 2, SIZE, SIZE)).astype(np.float32))
    valid = torch.rand(2, 2, SIZE, SIZE) > 0.2
    ours = intensity.standardise_batch(patches, valid).numpy()
    for i, j in np.ndindex(2, 2):
        assert_allclose(ours[i, j], standardise(patches[i, j].numpy(), valid[i, j].numpy()), atol=1e-4)
