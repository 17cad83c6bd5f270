"""Metrics in mm against cubes and spheres whose answers are known, and the predictions that use no network."""

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from transvert.io import InputError
from transvert.model import metrics


def _cube(shape=(30, 30, 30), low=(5, 5, 5), side=16):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, a + side) for a in low)] = True
    return mask


def _ball(radius, size=36):
    grid = np.indices((size,) * 3) - (size - 1) / 2
    return np.linalg.norm(grid, axis=0) <= radius


@pytest.mark.parametrize("spacing", [1.0, 1.5, (3.0, 1.0, 0.5)])
def test_a_shifted_cube_is_its_shift_away_in_millimetres(spacing):
    values = metrics.compare(_cube(low=(7, 5, 5)), _cube(), spacing)
    assert values["dice"] == pytest.approx(14 / 16)
    # The face in front is a sixth of the surface, so the 95th percentile is the shift.
    assert values["hd95_mm"] == pytest.approx(2 * np.ravel(spacing)[0])


def test_equal_masks_are_perfect():
    assert metrics.compare(_ball(9), _ball(9), 1.5) == {"dice": 1, "hd95_mm": 0, "assd_mm": 0, "nsd_1p5mm": 1}


@pytest.mark.parametrize(("difference", "nsd"), [(1, 1.0), (3, 0.0)])
def test_concentric_balls_are_the_difference_of_their_radii_apart(difference, nsd):
    values = metrics.compare(_ball(12), _ball(12 + difference), 1.0)
    assert values["assd_mm"] == pytest.approx(difference, abs=0.25)
    assert values["hd95_mm"] == pytest.approx(difference, abs=0.7)
    assert values["nsd_1p5mm"] == pytest.approx(nsd, abs=0.02)


def test_the_definitions_are_those_written_down():
    spacing = np.array([2.0, 1.0, 1.5])
    prediction, truth = _ball(6) | _cube((36,) * 3, (2, 20, 20), 5), _ball(13)
    edges = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) * spacing for mask in (prediction, truth)]
    to_truth, to_prediction = cKDTree(edges[1]).query(edges[0])[0], cKDTree(edges[0]).query(edges[1])[0]
    pooled = np.concatenate([to_truth, to_prediction])
    values = metrics.compare(prediction, truth, tuple(spacing))
    assert values["assd_mm"] == pytest.approx(pooled.mean(), rel=1e-5)
    assert values["assd_mm"] != pytest.approx((to_truth.mean() + to_prediction.mean()) / 2, rel=0.02)
    assert values["nsd_1p5mm"] == pytest.approx((pooled <= 1.5).mean(), rel=1e-5)
    percentiles = np.percentile(to_truth, 95), np.percentile(to_prediction, 95)
    assert values["hd95_mm"] == pytest.approx(max(percentiles), rel=1e-5)


def test_the_array_border_is_a_surface_like_any_other():
    at_border = metrics.compare(_cube((16, 16, 18)[::-1], (2, 0, 0)), _cube((18, 16, 16), (0, 0, 0)), 1.5)
    inside = metrics.compare(_cube(low=(7, 5, 5)), _cube(), 1.5)
    assert at_border == pytest.approx(inside)


def test_an_empty_prediction_is_a_failure_and_an_empty_truth_an_error():
    nothing = np.zeros((30, 30, 30), bool)
    assert metrics.compare(nothing, _cube(), 1.5) == {
        "dice": 0,
        "hd95_mm": np.inf,
        "assd_mm": np.inf,
        "nsd_1p5mm": 0,
    }
    with pytest.raises(InputError, match="true mask is empty"):
        metrics.compare(_cube(), nothing, 1.5)


@pytest.mark.parametrize(
    ("prediction", "spacing", "message"),
    [
        (_cube((30, 30, 29)), 1.5, "one shape"),
        (_cube().astype(np.float32), 1.5, "boolean"),
        (_cube(), 0.0, "positive millimetres"),
    ],
)
def test_bad_input_is_told(prediction, spacing, message):
    with pytest.raises(InputError, match=message):
        metrics.compare(prediction, _cube(), spacing)


def test_a_summary_counts_empty_predictions_apart():
    frame = pd.DataFrame(
        {
            "level": ["T1", "T2", "T13", "L1"],
            "dice": [0.8, 0.0, 1.0, 0.6],
            "hd95_mm": [3.0, np.inf, 1.0, 5.0],
            "assd_mm": [1.0, np.inf, 0.5, 2.0],
            "nsd_1p5mm": [0.9, 0.0, 1.0, 0.5],
        }
    )
    table = metrics.summarise(frame).set_index("region")
    assert list(table.index) == ["thoracic", "lumbar", "all"]
    assert table.loc["thoracic", ["count", "empty"]].tolist() == [3, 1]
    assert table.loc["thoracic", "dice_mean"] == pytest.approx(0.6)
    assert table.loc["thoracic", "dice_median"] == pytest.approx(0.8)
    assert table.loc["thoracic", "assd_mm_mean"] == pytest.approx(0.75)
    assert table.loc["all", "hd95_mm_median"] == pytest.approx(3.0)
    with pytest.raises(InputError, match="lacks the column dice"):
        metrics.summarise(frame.drop(columns="dice"))
    with pytest.raises(InputError, match="no rows"):
        metrics.summarise(frame[:0])


def test_the_mean_shape_cut_at_half_has_the_mean_volume():
    rng = np.random.default_rng(0)
    balls = np.stack([np.roll(_ball(7, 24), rng.integers(-5, 6, 3), (0, 1, 2)) for _ in range(40)]).astype(np.uint8)
    shape = metrics.mean_shape(balls)
    volume = balls[0].sum()
    assert (balls.mean(0) >= 0.5).sum() < 0.8 * volume  # why a plain cut at a half will not do
    assert (shape >= 0.5).sum() == pytest.approx(volume, rel=0.08)
    order = np.argsort(balls.mean(0), axis=None, kind="stable")
    assert (np.diff(shape.ravel()[order]) >= 0).all()
    assert shape.dtype == np.float32
    assert 0 <= shape.min() <= shape.max() <= 1
    np.testing.assert_array_equal(metrics.mean_shape(balls[:1]), balls[0])
    with pytest.raises(InputError, match="not all of them empty"):
        metrics.mean_shape(balls[:0])


def test_the_visual_hulls_hold_the_shapes_and_have_their_silhouettes():
    shapes = np.random.default_rng(1).random((2, 10, 10, 10)) > 0.97
    hulls = metrics.visual_hulls(shapes)
    assert hulls.shape == shapes.shape and hulls.dtype == bool and (hulls | ~shapes).all()
    assert hulls.sum() > shapes.sum()
    for axis in (1, 2):
        np.testing.assert_array_equal(hulls.any(axis), shapes.any(axis))
