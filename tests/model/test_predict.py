"""Predictions: the mirrored patient, and test-time augmentation that is moved back into one frame."""

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
from transvert.model.predict import TTAConfig, _draw_changes, _predict_changed, predict, tta_predict

Make = Callable[[str], nn.Module]
STEPS_MM = (np.arange(SIZE) - (SIZE - 1) / 2) * SPACING_MM


class Shadows(nn.Module):
    """Predicts bone where both pictures show it. `channel` 1 takes the maps for pictures."""

    def __init__(self, channel: int = 0):
        super().__init__()
        self.channel = channel
        self.anchor = nn.Parameter(torch.zeros(1))
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        # Rows run against z, columns against x and y.
        ap, lateral = (images[:, v, self.channel].flip(1, 2).transpose(1, 2) for v in range(2))
        return (20 * (ap[:, :, None] + lateral[:, None]) - 30)[:, None]


def blob(ap: tuple[float, float] = (0, 0), lateral: tuple[float, float] = (0, 0)) -> np.ndarray:
    """(1, 2, 2, 64, 64): a smooth vertebra, shown and marked at a row and column offset in mm in each view."""
    shown = [centroid_map(np.array(where), sigma_mm=12.0) for where in (ap, lateral)]
    marked = [centroid_map(np.array(where)) for where in (ap, lateral)]
    return np.stack([shown, marked], axis=1)[None]


def middle(probability: Tensor | np.ndarray) -> np.ndarray:
    """(3,) RAS mm from the cube's middle to the centre of a prediction."""
    weight = np.asarray(probability, float)
    return np.array([(weight.sum(tuple({0, 1, 2} - {a})) @ STEPS_MM) / weight.sum() for a in range(3)])


def predict_with_errors(
    network: nn.Module, images: np.ndarray, errors: list[list[float]], mirrored: bool = False, scale: float = 1.0
) -> np.ndarray:
    """The prediction with landmark errors (AP and lateral: row and column) and no noise."""
    rest = torch.tensor([scale, 1.0]), torch.zeros(2, SIZE, SIZE)
    found = _predict_changed(network, torch.from_numpy(images), torch.tensor(errors), *rest, mirrored=mirrored)
    return found[0].detach().numpy()


# One prediction


def test_a_mirrored_patient_gets_the_mirrored_prediction(tiny: Make, box_samples: Samples) -> None:
    network, images = tiny("transvert"), box_samples.images()[:2]
    mirrored = images.copy()
    mirrored[:, 0] = images[:, 0, :, :, ::-1]
    plain, other = predict(network, images, mirror=True), predict(network, mirrored, mirror=True)
    assert plain.shape == (2, 64, 64, 64) and plain.dtype == np.float32
    assert_allclose(other, plain[:, ::-1], atol=1e-6)
    # The network alone has no symmetry.
    assert np.abs(predict(network, mirrored) - predict(network, images)[:, ::-1]).max() > 1e-4


def test_predictions_do_not_depend_on_the_batch(tiny: Make, box_samples: Samples) -> None:
    network, images = tiny("transvert").train(), box_samples.images()
    assert_allclose(predict(network, images, batch=1), predict(network, images, batch=8), atol=1e-5)
    assert not network.training
    assert predict(network, images[:0]).shape == tta_predict(network, images[:0]).shape == (0, 64, 64, 64)


# Test-time augmentation


def test_without_changes_it_is_the_prediction_and_with_two_passes_the_mirrored_one(
    box_samples: Samples, tiny: Make
) -> None:
    network, images = tiny("transvert"), box_samples.images()
    still = TTAConfig(passes=2, landmark_sd_mm=0, scale_sd=0, noise_sd=0)
    assert_allclose(tta_predict(network, images, TTAConfig(passes=1)), predict(network, images), atol=1e-4)
    assert_allclose(tta_predict(network, images, still), predict(network, images, mirror=True), atol=1e-4)


@pytest.mark.parametrize("mirrored", [False, True])
def test_what_the_pictures_show_stays_in_place_whatever_the_landmark_errors(mirrored: bool) -> None:
    images = blob((-6.0, 4.5), (-6.0, -7.5))
    still = predict_with_errors(Shadows(), images, [[0.0, 0.0], [0.0, 0.0]])
    assert_allclose(middle(still), [-4.5, 7.5, 6.0], atol=0.05)
    moved = predict_with_errors(Shadows(), images, [[1.0, 3.0], [2.5, -2.0]], mirrored)
    assert_allclose(middle(moved), middle(still), atol=0.1)
    # Interpolation flattens the steepest parts by a tenth; a vertebra put back wrongly would differ by 1.
    assert np.abs(moved - still).max() < 0.15


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_network_that_follows_the_landmarks_moves_with_their_errors(mirrored: bool) -> None:
    moved = predict_with_errors(Shadows(channel=1), blob(), [[2.0, 3.0], [2.0, -1.5]], mirrored)
    # Columns run to the patient's left and to the back, rows to the feet.
    assert_allclose(middle(moved), [-3.0, 1.5, -2.0], atol=0.1)


def test_patches_are_cropped_at_the_mean_height_and_each_map_keeps_its_own() -> None:
    network = Shadows()
    predict_with_errors(network, blob(), [[3.0, 0.0], [-1.5, 0.0]])
    (seen,) = network.seen
    assert_allclose(seen[0, 0, 0], centroid_map(np.array([-0.75, 0.0]), sigma_mm=12.0), atol=0.01)
    assert_allclose(seen[0, 0, 1], centroid_map(np.array([2.25, 0.0])), atol=0.01)
    assert_allclose(seen[0, 1, 1], centroid_map(np.array([-2.25, 0.0])), atol=0.01)


def test_another_scale_enlarges_one_radiograph_and_no_map() -> None:
    network = Shadows()
    predict_with_errors(network, blob(), [[0.0, 0.0], [0.0, 0.0]], scale=1.1)
    assert_allclose(network.seen[0][0, 0, 0], centroid_map(np.zeros(2), sigma_mm=13.2), atol=0.01)
    assert_allclose(network.seen[0][0, :, 1], blob()[0, :, 1], atol=1e-4)


def test_noise_lies_on_the_film_alone() -> None:
    network, images = Shadows(), blob()
    images[0, 0, 0, :10] = 0
    images[0, 1] = 0
    tta_predict(network, images, TTAConfig(passes=2, landmark_sd_mm=0, scale_sd=0, noise_sd=0.5))
    seen = network.seen[0]
    assert_allclose(seen[0, 0, 0, :10], 0, atol=1e-3)
    assert (seen[0, 1] == 0).all()
    assert np.std(np.asarray(seen[0, 0, 0, 20:]) - images[0, 0, 0, 20:]) == pytest.approx(0.5, rel=0.05)


def test_changes_have_the_stated_spread_and_no_mean() -> None:
    changes = _draw_changes(TTAConfig(passes=8, landmark_sd_mm=1.5, scale_sd=0.03, seed=4))
    errors, scales = (np.stack([np.asarray(change[n]) for change in changes]) for n in (0, 1))
    assert errors.shape == (8, 2, 2)
    assert_allclose(errors.mean(0), 0, atol=1e-6)
    assert_allclose(errors.std(0), 1.5, rtol=1e-5)
    assert_allclose(np.log(scales).std(0), 0.03, rtol=1e-4)
    odd = _draw_changes(TTAConfig(passes=3))
    assert (odd[0][0] == 0).all() and (odd[0][1] == 1).all() and (odd[1][0] == -odd[2][0]).all()


def test_a_prediction_depends_on_the_seed_and_not_on_the_other_vertebrae(box_samples: Samples, tiny: Make) -> None:
    network, images = tiny("transvert"), box_samples.images()
    config = TTAConfig(passes=2, noise_sd=0.3)
    together = tta_predict(network, images, config)
    assert_allclose(tta_predict(network, images[1:2], config, batch=1)[0], together[1], atol=1e-5)
    assert_array_equal(tta_predict(network, images, config), together)
    other = tta_predict(network, images, TTAConfig(passes=2, noise_sd=0.3, seed=1))
    assert not np.allclose(other, together, atol=1e-4)
    with pytest.raises(InputError, match="needs at least one pass, not 0"):
        tta_predict(network, images, TTAConfig(passes=0))
