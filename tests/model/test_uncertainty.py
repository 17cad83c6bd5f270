"""Several answers: moved and put back into one frame, equal for equal seeds, and as far apart as they should be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor, nn

from transvert.data.patches import SIZE, SPACING_MM, centroid_map
from transvert.data.samples import Samples
from transvert.io import InputError
from transvert.model.predict import Prediction, TTAConfig, _answer, _moves, predict, tta_predict

Make = Callable[[str], nn.Module]
STILL = TTAConfig(answers=2, click_mm=0, magnification=0, noise=0)
STEPS_MM = (np.arange(SIZE) - (SIZE - 1) / 2) * SPACING_MM


class Shadows(nn.Module):
    """Believes what a picture shows: a voxel is as much bone as both of its shadows say. `channel` 1 is the map."""

    def __init__(self, channel: int = 0):
        super().__init__()
        self.channel = channel
        self.anchor = nn.Parameter(torch.zeros(1))
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        # Rows fall with z, columns with x and y.
        ap, lateral = (images[:, v, self.channel].flip(1, 2).transpose(1, 2) for v in range(2))
        return (20 * (ap[:, :, None] + lateral[:, None]) - 30)[:, None]


class Says(nn.Module):
    """Has its mind made up."""

    def __init__(self, logit: float):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(logit))

    def forward(self, images: Tensor) -> Tensor:
        return self.logit.expand(len(images), 1, SIZE, SIZE, SIZE)


def blob(ap: tuple[float, float] = (0, 0), lateral: tuple[float, float] = (0, 0)) -> np.ndarray:
    """(1, 2, 2, 64, 64): a vertebra like a cushion, shown and marked at mm down and across in either view."""
    shown = [centroid_map(np.array(where), sigma_mm=12.0) for where in (ap, lateral)]
    marked = [centroid_map(np.array(where)) for where in (ap, lateral)]
    return np.stack([shown, marked], axis=1)[None]


def middle(probability: Tensor | np.ndarray) -> np.ndarray:
    """(3,) RAS mm from the cube's middle, of what is found."""
    weight = np.asarray(probability, float)
    return np.array([(weight.sum(tuple({0, 1, 2} - {a})) @ STEPS_MM) / weight.sum() for a in range(3)])


def one(network: nn.Module, images: np.ndarray, clicks: list[list[float]], mirrored: bool = False) -> np.ndarray:
    """The answer to clicks (AP and lateral: down, across) that are off, without other jitter."""
    still = torch.ones(2), torch.zeros(2, SIZE, SIZE)
    return (
        _answer(network, torch.from_numpy(images), torch.tensor(clicks), *still, mirrored=mirrored)[0].detach().numpy()
    )


# What an answer is


def test_without_jitter_it_is_the_prediction_and_with_two_answers_the_mirrored_one(
    box_samples: Samples, tiny: Make
) -> None:
    network, images = tiny("transvert"), box_samples.images()
    single = tta_predict(network, images, TTAConfig(answers=1))
    assert_allclose(single.probability, predict(network, images), atol=1e-4)
    assert (single.spread == 0).all()
    both = tta_predict(network, images, STILL)
    assert_allclose(both.probability, predict(network, images, mirror=True), atol=1e-4)
    apart = np.abs(predict(network, images) - both.probability)
    assert_allclose(both.spread, apart, atol=2e-4)
    assert apart.max() > 1e-3


def test_what_the_pictures_show_stays_where_it_is_however_the_clicks_were_off() -> None:
    images = blob((-6.0, 4.5), (-6.0, -7.5))
    still = one(Shadows(), images, [[0.0, 0.0], [0.0, 0.0]])
    assert_allclose(middle(still), [-4.5, 7.5, 6.0], atol=0.05)
    for mirrored in (False, True):
        moved = one(Shadows(), images, [[1.0, 3.0], [2.5, -2.0]], mirrored)
        assert_allclose(middle(moved), middle(still), atol=0.1)
        # Interpolation flattens the steepest of it by a tenth or so; a vertebra put back wrongly would be off by all of 1.
        assert np.abs(moved - still).max() < 0.15


def test_whoever_believes_the_clicks_moves_with_them() -> None:
    maps = Shadows(channel=1)
    for mirrored in (False, True):
        moved = one(maps, blob(), [[2.0, 3.0], [2.0, -1.5]], mirrored)
        # Across is to the patient's left and to the back, down to the feet.
        assert_allclose(middle(moved), [-3.0, 1.5, -2.0], atol=0.1)


def test_clicks_at_two_heights_meet_half_way_and_each_view_keeps_its_own() -> None:
    network = Shadows()
    one(network, blob(), [[3.0, 0.0], [-1.5, 0.0]])
    (seen,) = network.seen
    for view, patch, landmark in ((0, -0.75, 2.25), (1, -0.75, -2.25)):
        expected = centroid_map(np.array([patch, 0.0]), sigma_mm=12.0), centroid_map(np.array([landmark, 0.0]))
        assert_allclose(seen[0, view, 0], expected[0], atol=0.01)
        assert_allclose(seen[0, view, 1], expected[1], atol=0.01)


def test_a_film_of_another_scale_shows_a_larger_vertebra_and_the_same_landmark() -> None:
    network = Shadows()
    scales = torch.tensor([1.1, 1.0])
    _answer(network, torch.from_numpy(blob()), torch.zeros(2, 2), scales, torch.zeros(2, SIZE, SIZE), mirrored=False)
    assert_allclose(network.seen[0][0, 0, 0], centroid_map(np.zeros(2), sigma_mm=13.2), atol=0.01)
    assert_allclose(network.seen[0][0, :, 1], blob()[0, :, 1], atol=1e-4)


def test_noise_lies_on_film_alone() -> None:
    network, images = Shadows(), blob()
    images[0, 0, 0, :10] = 0
    images[0, 1] = 0
    tta_predict(network, images, TTAConfig(answers=2, click_mm=0, magnification=0, noise=0.5))
    seen = network.seen[0]
    assert_allclose(seen[0, 0, 0, :10], 0, atol=1e-3)
    assert (seen[0, 1] == 0).all()
    assert np.std(np.asarray(seen[0, 0, 0, 20:]) - images[0, 0, 0, 20:]) == pytest.approx(0.5, rel=0.05)


def test_the_moves_have_the_stated_spread_and_no_mean() -> None:
    moves = _moves(TTAConfig(answers=8, click_mm=1.5, magnification=0.03, seed=4))
    clicks, scales = (np.stack([np.asarray(move[n]) for move in moves]) for n in (0, 1))
    assert clicks.shape == (8, 2, 2)
    assert_allclose(clicks.mean(0), 0, atol=1e-6)
    assert_allclose(clicks.std(0), 1.5, rtol=1e-5)
    assert_allclose(np.log(scales).std(0), 0.03, rtol=1e-4)
    odd = _moves(TTAConfig(answers=3))
    assert (odd[0][0] == 0).all() and (odd[0][1] == 1).all() and (odd[1][0] == -odd[2][0]).all()


# Several


def test_an_answer_follows_from_the_seed_and_not_from_the_company(box_samples: Samples, tiny: Make) -> None:
    network, images = tiny("transvert"), box_samples.images()
    jitter = TTAConfig(answers=2, noise=0.3)
    all_of_them = tta_predict(network, images, jitter)
    alone = tta_predict(network, images[1:2], jitter, batch=1)
    assert_allclose(alone.probability[0], all_of_them.probability[1], atol=1e-5)
    assert_array_equal(tta_predict(network, images, jitter).spread, all_of_them.spread)
    other = tta_predict(network, images, TTAConfig(answers=2, noise=0.3, seed=1))
    assert not np.allclose(other.probability, all_of_them.probability, atol=1e-4)


def test_networks_that_disagree_spread_and_the_variance_has_two_parts() -> None:
    answer = tta_predict([Says(2.0), Says(-1.0)], blob(), TTAConfig(answers=3))
    low, high = (1 / (1 + np.exp(-z)) for z in (-1.0, 2.0))
    assert_allclose(answer.probability, (low + high) / 2, rtol=1e-5)
    assert_allclose(answer.spread, (high - low) / 2, rtol=1e-5)
    assert_allclose(answer.ambiguity, (low * (1 - low) + high * (1 - high)) / 2, rtol=1e-4)


def test_nobody_to_predict_is_no_error_and_nobody_to_ask_is() -> None:
    nothing = tta_predict(Says(0.0), blob()[:0])
    assert isinstance(nothing, Prediction) and nothing.probability.shape == (0, SIZE, SIZE, SIZE)
    with pytest.raises(InputError, match="at least one network"):
        tta_predict([], blob())
    with pytest.raises(InputError, match="at least one answer"):
        tta_predict(Says(0.0), blob(), TTAConfig(answers=0))
