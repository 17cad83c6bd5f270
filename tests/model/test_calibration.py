"""Fits that find what was put in, intervals that cover what they promise, and people who are not in their own fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from torch import nn

from transvert.data.samples import Samples
from transvert.io import InputError
from transvert.model.calibration import (
    Calibration,
    ConformalInterval,
    HeldOutVertebra,
    _by_error,
    examine_networks,
    expected_metrics,
    fit_calibration,
    fit_interval,
    fit_voxel_calibration,
    make_report,
    read_reliability,
    reliability_histogram,
    write_reliability,
)
from transvert.model.predict import TTAConfig
from transvert.plots import figures

SIZE = 40
FROM_MIDDLE_MM = np.linalg.norm((np.indices((SIZE,) * 3) - (SIZE - 1) / 2) * 1.5, axis=0)


def ball(radius_mm: float, width_mm: float) -> np.ndarray:
    return (1 / (1 + np.exp((FROM_MIDDLE_MM - radius_mm) / width_mm))).astype(np.float32)


def draw(probability: np.ndarray, calibration: Calibration, seed: int) -> np.ndarray:
    """A truth that is drawn from the calibrated probability, voxel by voxel."""
    return np.random.default_rng(seed).uniform(size=probability.shape) < calibration.apply(probability)


def make_case(person: str, seed: int, hidden: Calibration, factor: float = 1.0) -> HeldOutVertebra:
    """A vertebra whose probabilities are off by `hidden`, and its Dice and ASSD by `factor` beyond that."""
    random = np.random.default_rng(seed)
    probability = ball(random.uniform(12, 20), random.uniform(0.5, 1.0))
    stated = expected_metrics(probability[None], hidden).loc[0]
    slope = random.uniform(0.5, 2.0, 300)
    distance = np.abs(random.logistic(0, 1, 300) / slope * hidden.temperature)
    errors = min(1.0, factor * stated["dice_error_raw"]), factor * stated["assd_mm_raw"]
    counted = reliability_histogram(probability, draw(probability, hidden, seed))
    return HeldOutVertebra(person, person, "T5", counted, 1 - errors[0], errors[1], slope, np.zeros(300), distance)


@pytest.fixture(scope="module")
def cases() -> list[HeldOutVertebra]:
    hidden = Calibration(temperature=2.0)
    scatter = np.exp(np.random.default_rng(7).normal(0.2, 0.1, 24))
    return [make_case(f"p{n // 2:02}", n, hidden, factor) for n, factor in enumerate(scatter)]


# Fits


@pytest.mark.parametrize(("temperature", "bias"), [(1.0, 0.0), (2.0, -0.8), (0.6, 0.5)])
def test_temperature_and_bias_are_found_again(temperature: float, bias: float) -> None:
    hidden = Calibration(temperature=temperature, bias=bias)
    probability = np.stack([ball(radius, 0.8) for radius in (12.0, 15.0, 18.0)])
    found = fit_voxel_calibration(probability, np.stack([draw(p, hidden, n) for n, p in enumerate(probability)]))
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    assert found.bias == pytest.approx(bias, abs=0.06)


def test_a_person_counts_as_the_root_of_their_vertebrae() -> None:
    one, other = make_case("a", 0, Calibration(bias=-1.0)), make_case("b", 1, Calibration(bias=1.0))
    people = [replace(other, person=name) for name in ("b", "c")]
    four, two = fit_calibration([one, *[other] * 4]), fit_calibration([one, *people])
    assert (four.temperature, four.bias) == pytest.approx((two.temperature, two.bias), abs=1e-3)
    assert four.bias > fit_calibration([one, other]).bias + 0.1
    assert (four.people, four.vertebrae) == (2, 5)


def test_no_calibration_fits_where_all_is_wrong_or_nothing_found() -> None:
    probability = ball(15.0, 0.8)[None]
    with pytest.raises(InputError, match="there is no bone"):
        fit_voxel_calibration(probability, np.zeros(probability.shape, bool))
    with pytest.raises(InputError, match="there is no bone"):
        fit_voxel_calibration(0.4 * probability, probability > 0.5)


def test_a_margin_is_a_line_through_logarithms() -> None:
    people = np.repeat([f"p{n}" for n in range(9)], 2)
    stated = np.geomspace(0.02, 0.5, 18)
    assert fit_interval(stated, 1.5 * stated, people) == ConformalInterval(
        pytest.approx(1.5), pytest.approx(1.0), pytest.approx(1.0)
    )
    bent = fit_interval(stated, 2.0 * stated**1.6, people)
    assert bent.power == pytest.approx(1.6, rel=0.02) and bent.ratio == pytest.approx(2.0, rel=0.05)
    expected, low, high = bent.apply(np.array([0.1]))
    assert expected == pytest.approx(2.0 * 0.1**1.6, rel=0.02) and low < expected < high
    alike = fit_interval(np.full(18, 0.1), stated, people)
    assert alike.power == 1.0, "statements that are all the same tell no slope"
    scattered = fit_interval(stated, stated * np.where(np.arange(18) % 2, 2.0, 0.5), people)
    assert scattered.factor == pytest.approx(2.0, rel=0.2)
    assert np.isfinite(fit_interval(stated, np.zeros(18), people).ratio)


def test_an_interval_needs_people() -> None:
    people, stated = np.repeat([f"p{n}" for n in range(8)], 2), np.geomspace(0.02, 0.5, 16)
    assert fit_interval(stated, 1.5 * stated, people).factor is None
    assert fit_interval(stated, 1.5 * stated, people, coverage=0.8).factor == pytest.approx(1.0)
    expected, low, high = fit_interval(stated, 1.5 * stated, people).apply(stated)
    assert (low == 0).all() and np.isinf(high).all() and expected == pytest.approx(1.5 * stated)


def test_the_interval_covers_another_persons_vertebra_as_often_as_promised() -> None:
    random = np.random.default_rng(3)
    inside = []
    for _ in range(400):
        counts = random.integers(1, 8, 16)
        people = np.repeat(np.arange(16), counts)
        # Vertebrae of one person go together: most of what an error is off by is the person's.
        ratio = np.exp(random.normal(0, 0.4, 16)[people] + random.normal(0, 0.2, len(people)))
        stated = random.uniform(0.05, 0.3, len(people))
        known = people < 15
        made = fit_interval(stated[known], (ratio * stated)[known], people[known], coverage=0.8)
        _, low, high = made.apply(stated[~known])
        inside.append(np.mean((low <= (ratio * stated)[~known]) & ((ratio * stated)[~known] <= high)))
    assert 0.76 < np.mean(inside) < 0.9


# Reports


def test_a_report_is_calibrated_and_says_so(cases: list[HeldOutVertebra]) -> None:
    made = make_report(cases)
    assert made.calibration.people == 12 and made.calibration.vertebrae == 24
    assert made.calibration.temperature == pytest.approx(2.0, rel=0.1)
    assert made.calibration.dice_error.ratio == pytest.approx(np.exp(0.2), rel=0.1)
    s = made.summary
    assert s["voxel_calibration_error_calibrated"] < 0.01
    assert s["voxel_calibration_error_network"] > 0.05
    assert s["dice_mean_absolute_error"] < 0.5 * s["dice_mean_absolute_error_network"]
    assert s["dice_spearman"] > 0.7 and s["assd_mm_spearman"] > 0.5
    assert s["dice_coverage"] >= 0.85 and s["assd_mm_coverage"] >= 0.85
    assert s["surface_calibration_error_mm"] < 0.2
    assert len(made.vertebrae) == 24 and (made.voxels.groupby("said")["voxels"].sum().nunique() == 1)
    assert made.surface["points"].sum() == 24 * 300


def test_nobody_is_read_with_a_calibration_that_has_seen_them(cases: list[HeldOutVertebra]) -> None:
    before = make_report(cases).vertebrae.set_index("person")
    other = [replace(c, dice=0.1, assd_mm=9.0, tally=replace(c.tally, bone=0 * c.tally.bone)) for c in cases[:2]]
    after = make_report(other + cases[2:]).vertebrae.set_index("person")
    stated = [name for name in before if name.endswith(("_stated", "_low", "_high"))]
    pd.testing.assert_frame_equal(before.loc[["p00"], stated], after.loc[["p00"], stated])
    assert (before.loc["p01", "dice_stated"] > after.loc["p01", "dice_stated"] + 0.003).all()


def test_an_empty_prediction_is_stated_as_such_and_spoils_nothing(cases: list[HeldOutVertebra]) -> None:
    none = np.zeros(0)
    nothing = reliability_histogram(np.zeros((SIZE,) * 3, np.float32), FROM_MIDDLE_MM < 10)
    made = make_report([*cases, HeldOutVertebra("p99", "p99", "C1", nothing, 0.0, np.inf, none, none, none)])
    last = made.vertebrae[made.vertebrae["person"] == "p99"].iloc[0]
    assert last["dice_stated"] == 0 and np.isinf(last["assd_mm_stated"])
    assert all(np.isfinite(value) for value in made.summary.values())
    assert made.summary["dice_coverage"] >= 0.85


def test_few_people_allow_no_interval_and_none_is_claimed(cases: list[HeldOutVertebra]) -> None:
    made = make_report(cases[:6])
    assert made.calibration.dice_error.factor is None
    assert not any("coverage" in name for name in made.summary)
    assert "interval" not in figures.describe_reliability(made) and "% intervals" in figures.describe_reliability(
        make_report(cases)
    )
    figure = figures.reliability_diagram(made)
    assert "90 % interval" not in {text.get_text() for text in figure.axes[2].get_legend().get_texts()}
    plt.close(figure)


def test_one_person_is_not_enough(cases: list[HeldOutVertebra]) -> None:
    with pytest.raises(InputError, match="hold out two, not 1"):
        make_report(cases[:2])


def test_folds_are_asked_one_by_one_and_measured_together(
    box_samples: Samples, tiny: Callable[[str], nn.Module]
) -> None:
    people = [replace(box_samples.chosen([20, 21]), subject=f"s{n}", person=f"p{n}") for n in range(2)]
    network = tiny("transvert")
    for parameter in network.head.parameters():
        parameter.data *= 3
    made = examine_networks(((network, one) for one in people), TTAConfig(answers=2))
    assert made.vertebrae["subject"].tolist() == ["s0", "s0", "s1", "s1"]
    assert made.vertebrae["level"].tolist() == ["L1", "L2"] * 2
    assert made.calibration.jitter.answers == 2
    # Both people are one: what is fitted on either is right for the other.
    observed = 1 - made.vertebrae["dice"]
    assert (observed / (1 - made.vertebrae["dice_stated"])).median() == pytest.approx(1, abs=0.1)


# The files


def test_a_report_comes_back_as_it_was_written(cases: list[HeldOutVertebra], tmp_path: Path) -> None:
    made = make_report(cases)
    write_reliability(made, tmp_path / "r")
    found = read_reliability(tmp_path / "r")
    assert found.calibration == made.calibration and found.summary == made.summary
    for name in ("vertebrae", "voxels", "surface"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(made, name), rtol=1e-5)
    (tmp_path / "r" / "voxels.csv").unlink()
    with pytest.raises(InputError, match="does not hold a report of `transvert calibrate`"):
        read_reliability(tmp_path / "r")


# The figure


def test_the_figure_has_units_and_words(cases: list[HeldOutVertebra]) -> None:
    made = make_report(cases)
    figure = figures.reliability_diagram(made)
    labels = {axis.get_xlabel() for axis in figure.axes} | {axis.get_ylabel() for axis in figure.axes}
    assert {"stated ASSD (mm)", "observed ASSD (mm)", "stated probability of bone", "voxels (bars)"} <= labels
    drawn = figure.axes[2].collections[-1].get_offsets()
    assert len(drawn) == 24
    told = figures.describe_reliability(made)
    assert "24 vertebrae of 12 people" in told and f"{made.summary['dice_mean_absolute_error']:.3f}" in told
    plt.close(figure)


def test_points_are_grouped_by_what_was_stated() -> None:
    table = _by_error(np.array([0.5, 0.7, 3.5, 50.0]), np.array([1.0, 1.0, 2.0, 7.0]))
    shown = table[table["points"] > 0]
    assert shown["points"].tolist() == [2, 1, 1]
    assert shown["observed_mm"].tolist() == [1.0, 2.0, 7.0]
    assert shown["stated_mm"].iloc[0] == pytest.approx(np.sqrt((0.25 + 0.49) / 2))
