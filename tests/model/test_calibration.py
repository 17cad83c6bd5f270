"""Calibration: fits find what was put in, statements hold for drawn truths, intervals cover what they promise."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from torch import nn

from transvert.data.samples import Samples
from transvert.io import InputError
from transvert.model import metrics, networks
from transvert.model.calibration import (
    BAND_MM,
    FARTHEST_MM,
    LOGITS,
    Calibration,
    ConformalInterval,
    HeldOutVertebra,
    _logit,
    expected_dice,
    fit_calibration,
    fit_interval,
    make_report,
    measure_vertebrae,
    reliability_histogram,
    surface_sd_mm,
    write_reliability,
)
from transvert.model.predict import TTAConfig, predict

SIZE, MM = 48, 1.5
AFFINE = np.diag([MM, MM, MM, 1.0])
FROM_MIDDLE_MM = np.linalg.norm((np.indices((SIZE,) * 3) - (SIZE - 1) / 2) * MM, axis=0)
PLAIN = Calibration()


def ball(radius_mm: float = 20.0, width_mm: float = 1.0) -> np.ndarray:
    """(48, 48, 48) the probability of a ball whose surface is spread by a logistic curve of this scale."""
    return (1 / (1 + np.exp((FROM_MIDDLE_MM - radius_mm) / width_mm))).astype(np.float32)


def points_on_ball(radius_mm: float = 20.0) -> np.ndarray:
    ways = np.random.default_rng(0).normal(size=(200, 3))
    return radius_mm * ways / np.linalg.norm(ways, axis=1, keepdims=True) + (SIZE - 1) / 2 * MM


def expect(probability: np.ndarray, calibration: Calibration = PLAIN) -> pd.Series:
    return expected_dice([reliability_histogram(probability, np.zeros((SIZE,) * 3, bool))], calibration).loc[0]


def make_case(person: str, seed: int, hidden: Calibration, factor: float = 1.0) -> HeldOutVertebra:
    """A vertebra whose truth is drawn from probabilities calibrated by `hidden`; its Dice error is off by `factor`."""
    random = np.random.default_rng(seed)
    probability = ball(random.uniform(12, 20), random.uniform(0.5, 1.0))
    stated = expect(probability, hidden)
    slope = random.uniform(0.5, 2.0, 300)
    distance = np.abs(random.logistic(0, 1, 300) / slope * hidden.temperature)
    error = min(1.0, factor * stated["dice_error"])
    truth = np.random.default_rng(seed).uniform(size=probability.shape) < hidden.apply(_logit(probability))
    histogram = reliability_histogram(probability, truth)
    return HeldOutVertebra(person, person, "T5", histogram, 1 - error, slope, np.zeros(300), distance)


@pytest.fixture(scope="module")
def cases() -> list[HeldOutVertebra]:
    hidden = Calibration(temperature=2.0)
    scatter = np.exp(np.random.default_rng(7).normal(0.2, 0.1, 24))
    return [make_case(f"p{n // 2:02}", n, hidden, factor) for n, factor in enumerate(scatter)]


# Statements about a vertebra


def test_the_expected_dice_is_the_mean_over_truths_drawn_voxel_by_voxel() -> None:
    probability = ball(width_mm=1.2)
    random = np.random.default_rng(0)
    near = np.abs(FROM_MIDDLE_MM - 20.0) < BAND_MM - 2 * MM  # Where probabilities are not taken as 0 or 1.
    probability[~near] = FROM_MIDDLE_MM[~near] < 20
    truths = (random.uniform(size=probability.shape) < probability for _ in range(5))
    seen = [metrics.compare(probability > 0.5, truth, MM)["dice"] for truth in truths]
    assert expect(probability)["dice_stated"] == pytest.approx(np.mean(seen), abs=0.003)
    assert np.mean(seen) < 0.95


def test_the_expected_dice_holds_for_truths_whose_voxels_are_correlated() -> None:
    """True balls whose radius is drawn."""
    width = 0.8
    radii = 20.0 + np.random.default_rng(1).logistic(0, width, 4000)
    dice = 2 * np.minimum(radii, 20.0) ** 3 / (20.0**3 + radii**3)
    assert expect(ball(width_mm=width))["dice_stated"] == pytest.approx(dice.mean(), abs=0.006)


def test_a_histogram_counts_the_band_once() -> None:
    probability, truth = ball(), FROM_MIDDLE_MM < 21
    counted, found = reliability_histogram(probability, truth), probability > 0.5
    assert counted.voxels[LOGITS > 0].sum() + counted.deep == found.sum()
    assert counted.bone.sum() + counted.deep == truth.sum()
    inner, outer = (np.count_nonzero(FROM_MIDDLE_MM < 20 + end) for end in (-BAND_MM, BAND_MM))
    assert counted.voxels.sum() == pytest.approx(outer - inner, rel=0.15)


def test_an_empty_prediction_is_certainly_nothing() -> None:
    calibration = Calibration(dice_interval=ConformalInterval(1.2, 1.0, 1.5))
    empty = np.full((SIZE,) * 3, 0.2, np.float32)
    nothing, some = expect(empty, calibration), expect(ball(), calibration)
    assert (nothing[["dice_stated", "dice_low", "dice_high"]] == 0).all()
    assert some["dice_low"] < some["dice_stated"] < some["dice_high"]
    without = expect(ball(), Calibration(dice_interval=ConformalInterval(1.2)))
    assert without["dice_low"] == 0 and without["dice_high"] == 1, "without a factor all is possible"
    assert (expect(empty)[["dice_stated", "dice_low", "dice_high"]] == 0).all()


def test_intervals_scale_errors_and_stay_possible() -> None:
    error = expect(ball())["dice_error"]
    read = expect(ball(), Calibration(dice_interval=ConformalInterval(2.0, 1.0, 1.5)))
    errors = [1 - read[n] for n in ("dice_high", "dice_stated", "dice_low")]
    assert errors == pytest.approx([error / 0.75, 2 * error, 3 * error])
    bent = expect(ball(), Calibration(dice_interval=ConformalInterval(3.0, 2.0, 2.0)))
    assert 1 - bent["dice_stated"] == pytest.approx(3 * error**2)
    worst = expect(ball(), Calibration(dice_interval=ConformalInterval(100.0, 1.0, 100.0)))
    assert worst["dice_stated"] == worst["dice_low"] == 0


# Statements about a surface point


@pytest.mark.parametrize("width", [0.8, 1.5, 3.0])
def test_the_error_of_a_surface_point_is_that_of_its_logistic_curve(width: float) -> None:
    found = surface_sd_mm(ball(width_mm=width), points_on_ball(), AFFINE, PLAIN)
    assert_allclose(found, width * np.pi / np.sqrt(3), rtol=0.06)
    assert found.dtype == np.float32


def test_calibration_affine_and_limit_of_a_surface_error() -> None:
    read = surface_sd_mm(ball(width_mm=1.0), points_on_ball(), AFFINE, Calibration(temperature=2.0, bias=-1.5))
    # The true surface lies 1.5 x 2 mm farther in, and is spread about there.
    assert_allclose(read, np.hypot(2 * np.pi / np.sqrt(3), 3.0), rtol=0.06)
    turned = np.array([[0, -MM, 0, 10.0], [0, 0, MM, -5.0], [MM, 0, 0, 3.0], [0, 0, 0, 1.0]])
    points = points_on_ball() / MM @ turned[:3, :3].T + turned[:3, 3]
    straight = surface_sd_mm(ball(), points_on_ball(), AFFINE, PLAIN)
    assert_allclose(surface_sd_mm(ball(), points, turned, PLAIN), straight, rtol=1e-4)
    flat = np.full((SIZE,) * 3, 0.5, np.float32)
    assert (surface_sd_mm(flat, points_on_ball(), AFFINE, PLAIN) == FARTHEST_MM).all()


# Fits


@pytest.mark.parametrize(("temperature", "bias"), [(1.0, 0.0), (2.0, -0.8), (0.6, 0.5)])
def test_temperature_and_bias_are_recovered(temperature: float, bias: float) -> None:
    hidden = Calibration(temperature=temperature, bias=bias)
    found = fit_calibration([make_case(f"p{n}", n, hidden) for n in range(3)])
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    assert found.bias == pytest.approx(bias, abs=0.06)


def test_a_person_counts_as_the_root_of_their_vertebrae() -> None:
    one, other = make_case("a", 0, Calibration(bias=-1.0)), make_case("b", 1, Calibration(bias=1.0))
    people = [replace(other, person=name) for name in ("b", "c")]
    four, two = fit_calibration([one, *[other] * 4]), fit_calibration([one, *people])
    assert (four.temperature, four.bias) == pytest.approx((two.temperature, two.bias), abs=1e-3)
    assert four.bias > fit_calibration([one, other]).bias + 0.1
    assert (four.people, four.vertebrae) == (2, 5)


def test_no_calibration_fits_where_all_is_wrong_or_nothing_is_predicted(cases: list[HeldOutVertebra]) -> None:
    wrong = replace(cases[0], histogram=reliability_histogram(ball(), np.zeros((SIZE,) * 3, bool)))
    empty = replace(cases[0], histogram=reliability_histogram(0.4 * ball(), ball() > 0.5))
    for case in (wrong, empty):
        with pytest.raises(InputError, match="there is no bone"):
            fit_calibration([case])


def test_an_interval_is_a_line_through_logarithms() -> None:
    people, stated = np.repeat([f"p{n}" for n in range(9)], 2), np.geomspace(0.02, 0.5, 18)
    straight = fit_interval(stated, 1.5 * stated, people)
    assert (straight.ratio, straight.power, straight.factor) == pytest.approx((1.5, 1.0, 1.0))
    bent = fit_interval(stated, 2.0 * stated**1.6, people)
    assert bent.power == pytest.approx(1.6, rel=0.02) and bent.ratio == pytest.approx(2.0, rel=0.05)
    expected, low, high = bent.apply(np.array([0.1]))
    assert expected == pytest.approx(2.0 * 0.1**1.6, rel=0.02) and low < expected < high
    assert fit_interval(np.full(18, 0.1), stated, people).power == 1.0, "equal statements have no slope"
    scattered = fit_interval(stated, stated * np.where(np.arange(18) % 2, 2.0, 0.5), people)
    assert scattered.factor == pytest.approx(2.0, rel=0.2)
    assert np.isfinite(fit_interval(stated, np.zeros(18), people).ratio)


def test_an_interval_needs_nine_people() -> None:
    people, stated = np.repeat([f"p{n}" for n in range(8)], 2), np.geomspace(0.02, 0.5, 16)
    found = fit_interval(stated, 1.5 * stated, people)
    expected, low, high = found.apply(stated)
    assert found.factor is None and (low == 0).all() and np.isinf(high).all()
    assert expected == pytest.approx(1.5 * stated)


def test_an_interval_covers_another_persons_vertebra_as_often_as_promised() -> None:
    random = np.random.default_rng(3)
    inside = []
    for _ in range(200):
        people = np.repeat(np.arange(16), random.integers(1, 8, 16))
        # Most of an error is common to a person's vertebrae.
        ratio = np.exp(random.normal(0, 0.4, 16)[people] + random.normal(0, 0.2, len(people)))
        stated = random.uniform(0.05, 0.3, len(people))
        known = people < 15
        made = fit_interval(stated[known], (ratio * stated)[known], people[known])
        _, low, high = made.apply(stated[~known])
        inside.append(np.mean((low <= (ratio * stated)[~known]) & ((ratio * stated)[~known] <= high)))
    assert 0.87 < np.mean(inside) < 0.97


# Reports


def test_a_report_is_calibrated(cases: list[HeldOutVertebra]) -> None:
    made = make_report(cases)
    assert made.calibration.people == 12 and made.calibration.vertebrae == 24
    assert made.calibration.temperature == pytest.approx(2.0, rel=0.1)
    assert made.calibration.dice_interval.ratio == pytest.approx(np.exp(0.2), rel=0.1)
    s = made.summary
    assert s["voxel_calibration_error_calibrated"] < 0.01 and s["voxel_calibration_error_network"] > 0.05
    assert s["dice_mean_absolute_error"] < 0.02
    assert s["dice_coverage"] >= 0.85
    assert s["surface_calibration_error_mm"] < 0.2
    assert len(made.vertebrae) == 24 and made.voxels.groupby("source")["voxels"].sum().nunique() == 1
    assert made.surface["points"].sum() == 24 * 300


def test_people_are_tested_with_a_calibration_that_has_not_seen_them(cases: list[HeldOutVertebra]) -> None:
    before = make_report(cases).vertebrae.set_index("person")
    bad = [replace(c, dice=0.1, histogram=replace(c.histogram, bone=0 * c.histogram.bone)) for c in cases[:2]]
    after = make_report(bad + cases[2:]).vertebrae.set_index("person")
    stated = [name for name in before if name.endswith(("_stated", "_low", "_high"))]
    pd.testing.assert_frame_equal(before.loc[["p00"], stated], after.loc[["p00"], stated])
    assert (before.loc["p01", "dice_stated"] > after.loc["p01", "dice_stated"] + 0.003).all()


def test_an_empty_prediction_is_stated_as_such_and_changes_no_other(cases: list[HeldOutVertebra]) -> None:
    none = np.zeros(0)
    empty = reliability_histogram(np.zeros((SIZE,) * 3, np.float32), FROM_MIDDLE_MM < 10)
    made = make_report([*cases, HeldOutVertebra("p99", "p99", "C1", empty, 0.0, none, none, none)])
    last = made.vertebrae[made.vertebrae["person"] == "p99"].iloc[0]
    assert last["dice_stated"] == last["dice_high"] == 0
    assert all(np.isfinite(value) for value in made.summary.values())
    assert made.summary["dice_coverage"] >= 0.85
    without = make_report(cases).summary["dice_mean_absolute_error"]
    assert made.summary["dice_mean_absolute_error"] == pytest.approx(without)


def test_few_people_have_no_interval_and_one_is_refused(cases: list[HeldOutVertebra]) -> None:
    made = make_report(cases[:6])
    assert made.calibration.dice_interval.factor is None
    assert not any("coverage" in name for name in made.summary)
    with pytest.raises(InputError, match="hold out two, not 1"):
        make_report(cases[:2])


def test_networks_are_examined_fold_by_fold(
    box_samples: Samples, tiny: Callable[[str], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transvert.model.calibration.tta_predict", predict)
    people = [replace(box_samples.chosen([20, 21]), subject=f"s{n}", person=f"p{n}") for n in range(2)]
    network = tiny("transvert")
    for parameter in network.head.parameters():
        parameter.data *= 3
    made = make_report([case for one in people for case in measure_vertebrae(network, one)])
    assert made.vertebrae["subject"].tolist() == ["s0", "s0", "s1", "s1"]
    assert made.vertebrae["level"].tolist() == ["L1", "L2"] * 2
    # Both people are equal, so a fit to one is right for the other.
    ratio = (1 - made.vertebrae["dice"]) / (1 - made.vertebrae["dice_stated"])
    assert ratio.median() == pytest.approx(1, abs=0.1)


# Files and cards


def test_a_report_is_written_as_tables_and_a_card(cases: list[HeldOutVertebra], tmp_path: Path) -> None:
    made = make_report(cases)
    write_reliability(made, tmp_path / "r")
    for name in ("vertebrae", "voxels", "surface"):
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "r" / f"{name}.csv"), getattr(made, name), rtol=1e-5)
    found = json.loads((tmp_path / "r" / "calibration.json").read_text())
    assert Calibration.from_card(found["calibration"]) == made.calibration and found["summary"] == made.summary


def test_a_calibration_is_read_from_cards_of_today_and_of_version_0_1() -> None:
    made = Calibration(1.7, -0.8, ConformalInterval(1.1, 1.8), 0.8, 9, 51, TTAConfig(passes=4, seed=2))
    card = json.loads(json.dumps(asdict(made), allow_nan=False))
    assert Calibration.from_card(card) == made
    for old in ("assd_mm", "assd_interval"):  # Dropped since, whatever is in it.
        assert Calibration.from_card(card | {old: {"ratio": 0.9, "power": 1.3, "factor": 2.0}}) == made
    interval = {"ratio": 4.277, "power": 1.88, "factor": 1.486}
    jitter = {"answers": 8, "click_mm": 1.0, "magnification": 0.02, "noise": 0.05, "seed": 0}
    first = {"temperature": 2.09, "bias": -0.196, "dice_error": interval, "assd_mm": interval, "jitter": jitter}
    read = Calibration.from_card(first)  # Version 0.1.
    assert read == Calibration(2.09, -0.196, ConformalInterval(**interval)) and read.tta == TTAConfig()
    _, card = networks.load_network("shipped")
    assert Calibration.from_card(card["calibration"]).people == 16


BAD_CARDS = [{"heat": 2.0}, {"dice_error": {"factor": 1, "off": 2}}, None, {"jitter": 3}, [1]]
BAD_CARDS += [{"tta": {"passes": 10**9}}, {"temperature": "hot"}, {"temperature": 0}, {"bias": float("inf")}]


@pytest.mark.parametrize("card", BAD_CARDS)
def test_a_card_without_calibration_is_refused(card: Any) -> None:
    with pytest.raises(InputError, match="holds no calibration"):
        Calibration.from_card(card)
