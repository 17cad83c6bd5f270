"""What is stated of a vertebra, against truths that are drawn from the very probabilities it is stated from."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose

from transvert.io import InputError
from transvert.model import metrics
from transvert.model.calibration import (
    BAND_MM,
    FARTHEST_MM,
    LOGITS,
    Calibration,
    ConformalInterval,
    expected_metrics,
    reliability_histogram,
    surface_sd_mm,
)
from transvert.model.predict import TTAConfig

SIZE, MM = 48, 1.5
AFFINE = np.diag([MM, MM, MM, 1.0])
FROM_MIDDLE = np.linalg.norm((np.indices((SIZE,) * 3) - (SIZE - 1) / 2) * MM, axis=0)
PLAIN = Calibration()


def ball(radius_mm: float = 20.0, width_mm: float = 1.0) -> np.ndarray:
    """(48, 48, 48) the probability of a ball whose surface is spread by a logistic curve of this scale."""
    return (1 / (1 + np.exp((FROM_MIDDLE - radius_mm) / width_mm))).astype(np.float32)


def on_the_ball(radius_mm: float = 20.0) -> np.ndarray:
    ways = np.random.default_rng(0).normal(size=(200, 3))
    return radius_mm * ways / np.linalg.norm(ways, axis=1, keepdims=True) + (SIZE - 1) / 2 * MM


# A vertebra


def test_the_stated_dice_is_the_mean_over_truths_drawn_voxel_by_voxel() -> None:
    probability = ball(width_mm=1.2)
    random = np.random.default_rng(0)
    near = np.abs(FROM_MIDDLE - 20.0) < BAND_MM - 2 * MM  # Where state takes them for probabilities, too.
    probability[~near] = FROM_MIDDLE[~near] < 20
    truths = (random.uniform(size=probability.shape) < probability for _ in range(10))
    seen = [metrics.compare(probability > 0.5, truth, MM)["dice"] for truth in truths]
    assert expected_metrics(probability[None], PLAIN)["dice"][0] == pytest.approx(np.mean(seen), abs=0.003)
    assert np.mean(seen) < 0.95


def test_the_stated_dice_and_distance_hold_for_truths_whose_voxels_go_together() -> None:
    width = 0.8
    random = np.random.default_rng(1)
    radii = 20.0 + random.logistic(0, width, 4000)
    dice, distance = [], []
    for radius in radii:
        small, large = sorted((radius, 20.0))
        dice.append(2 * small**3 / (20.0**3 + radius**3))
        distance.append(large - small)
    stated = expected_metrics(ball(width_mm=width)[None], PLAIN).loc[0]
    # Farther than the band reaches nothing is foreseen: with this width one truth in a thousand.
    assert stated["dice"] == pytest.approx(np.mean(dice), abs=0.006)
    assert stated["assd_mm"] == pytest.approx(np.mean(distance), rel=0.1)


def test_the_area_is_that_of_a_ball() -> None:
    assert reliability_histogram(ball(20.0)).area_mm2 == pytest.approx(4 * np.pi * 20.0**2, rel=0.03)
    assert reliability_histogram(ball(12.0)).area_mm2 == pytest.approx(4 * np.pi * 12.0**2, rel=0.04)


def test_a_tally_counts_the_band_once_and_knows_what_is_found() -> None:
    probability = ball()
    truth = FROM_MIDDLE < 21
    counted = reliability_histogram(probability, truth)
    found = probability > 0.5
    assert counted.voxels[LOGITS > 0].sum() + counted.deep == found.sum()
    assert counted.bone.sum() + counted.deep == truth.sum()
    assert (reliability_histogram(probability).voxels == counted.voxels).all() and not reliability_histogram(
        probability
    ).bone.any()
    inner, outer = (np.count_nonzero(FROM_MIDDLE < 20 + end) for end in (-BAND_MM, BAND_MM))
    assert counted.voxels.sum() == pytest.approx(outer - inner, rel=0.15)


def test_doubt_costs_dice_and_a_bias_moves_bone() -> None:
    sure, warm = (
        expected_metrics(ball()[None], PLAIN).loc[0],
        expected_metrics(ball()[None], Calibration(temperature=2.0)).loc[0],
    )
    assert warm["dice"] < sure["dice"] and warm["assd_mm"] > 1.8 * sure["assd_mm"]
    probability = ball()
    shifted = Calibration(bias=-1.0).apply(probability)
    assert_allclose(shifted, 1 / (1 + np.exp(FROM_MIDDLE - 19.0)), atol=1e-3)
    assert shifted.dtype == np.float32


def test_an_empty_prediction_is_surely_nothing() -> None:
    calibration = Calibration(dice_error=ConformalInterval(1.2, 1.0, 1.5), assd_mm=ConformalInterval(1.1))
    table = expected_metrics(np.stack([np.full((SIZE,) * 3, 0.2, np.float32), ball()]), calibration)
    assert (table.loc[0, ["dice", "dice_low", "dice_high"]] == 0).all()
    assert np.isinf(table.loc[0, ["assd_mm", "assd_mm_low", "assd_mm_high"]].astype(float)).all()
    assert table.loc[1, "dice_low"] < table.loc[1, "dice"] < table.loc[1, "dice_high"]
    assert table.loc[1, "assd_mm_low"] == 0 and table.loc[1, "assd_mm_high"] == np.inf
    assert expected_metrics(np.zeros((0, SIZE, SIZE, SIZE), np.float32), PLAIN).empty


def test_margins_scale_errors_and_stay_within_what_is_possible() -> None:
    plain = expected_metrics(ball()[None], PLAIN).loc[0]
    read = expected_metrics(
        ball()[None], Calibration(dice_error=ConformalInterval(2.0, 1.0, 1.5), assd_mm=ConformalInterval(0.5, 2.0, 2.0))
    ).loc[0]
    error = 1 - plain["dice"]
    assert [1 - read[n] for n in ("dice_high", "dice", "dice_low")] == pytest.approx(
        [error / 0.75, 2 * error, 3 * error]
    )
    half = plain["assd_mm"] ** 2 / 2
    assert [read[f"assd_mm{n}"] for n in ("_low", "", "_high")] == pytest.approx([half / 2, half, 2 * half])
    worst = expected_metrics(ball()[None], Calibration(dice_error=ConformalInterval(100.0, 1.0, 100.0))).loc[0]
    assert worst["dice"] == worst["dice_low"] == 0


# A point of the surface


@pytest.mark.parametrize("width", [0.8, 1.5, 3.0])
def test_the_error_of_a_surface_point_is_the_curves_own(width: float) -> None:
    found = surface_sd_mm(ball(width_mm=width), on_the_ball(), AFFINE, PLAIN)
    assert_allclose(found, width * np.pi / np.sqrt(3), rtol=0.06)
    assert found.dtype == np.float32


def test_calibration_widens_it_and_a_surface_that_is_off_is_off_everywhere() -> None:
    read = surface_sd_mm(ball(width_mm=1.0), on_the_ball(), AFFINE, Calibration(temperature=2.0, bias=-1.5))
    # The true surface lies 1.5 x 2 mm farther in and is spread about there.
    assert_allclose(read, np.hypot(2 * np.pi / np.sqrt(3), 3.0), rtol=0.06)


def test_it_follows_the_affine_and_ends_where_nothing_is_known() -> None:
    turned = np.array([[0, -MM, 0, 10.0], [0, 0, MM, -5.0], [MM, 0, 0, 3.0], [0, 0, 0, 1.0]])
    points = on_the_ball() / MM @ turned[:3, :3].T + turned[:3, 3]
    assert_allclose(
        surface_sd_mm(ball(), points, turned, PLAIN), surface_sd_mm(ball(), on_the_ball(), AFFINE, PLAIN), rtol=1e-4
    )
    assert (surface_sd_mm(np.full((SIZE,) * 3, 0.5, np.float32), on_the_ball(), AFFINE, PLAIN) == FARTHEST_MM).all()


# The card


def test_a_calibration_travels_in_a_card() -> None:
    made = Calibration(
        1.7,
        -0.8,
        ConformalInterval(1.1, 1.8),
        ConformalInterval(0.9, 1.2, 1.6),
        0.8,
        9,
        51,
        TTAConfig(answers=4, seed=2),
    )
    assert Calibration.from_card(json.loads(json.dumps(made.card(), allow_nan=False))) == made


@pytest.mark.parametrize("card", [{"heat": 2.0}, {"dice_error": {"factor": 1, "off": 2}}, None, {"jitter": 3}])
def test_a_card_without_calibration_is_told(card: object) -> None:
    with pytest.raises(InputError, match="holds no calibration"):
        Calibration.from_card(card)  # type: ignore[arg-type]
