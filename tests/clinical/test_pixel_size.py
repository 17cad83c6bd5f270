"""The pixel pitch by a ruler, a ball or the distances: analytic truths, then balls on simulated films."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from transvert.clinical import pixel_size
from transvert.clinical.acquisition import Acquisition, ImageOrientation, source_distances
from transvert.clinical.radiograph import Radiograph
from transvert.drr import exposure
from transvert.drr.geometry import View, named_view
from transvert.io import InputError

STEEL, ALUMINIUM = 0.8, 0.1  # Attenuation per mm, roughly, of a diagnostic beam.


def ball_film(
    offset: tuple[float, float] = (0.0, 0.0),
    mm: float = 25.0,
    pixel_mm: Any = 0.2,
    shape: tuple[int, int] = (320, 320),
    density: float = STEEL,
    response: str = "log",
    seed: int = 0,
) -> tuple[Radiograph, View, np.ndarray]:
    """A cone film of a ball in the isocentre's plane, behind a body with ribs: scatter, photon noise, detector blur."""
    view = named_view("ap", np.zeros(3), shape, pixel_mm, cone=True)
    centre = np.array([offset[0], 0.0, offset[1]])
    parts = np.array((-0.25, 0.25))  # Each pixel is the light of four rays.
    rows, columns = ((np.arange(n)[:, None] + parts).ravel() for n in shape)
    pixels = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)
    starts, ways = view.rays(pixels)
    towards = centre - starts
    miss = (towards**2).sum(-1) - (towards * ways).sum(-1) ** 2
    integral = 2 + 0.3 * np.sin(pixels[..., 0] / 190) + density * 2 * np.sqrt(np.maximum((mm / 2) ** 2 - miss, 0))
    integral += 0.15 * ((pixels[..., 0] + 0.4 * pixels[..., 1]) % 90 < 14)
    light = np.exp(-integral).reshape(shape[0], 2, shape[1], 2).mean((1, 3))
    grey = exposure.expose(-np.log(light), pixel_mm=pixel_mm, seed=seed, photons=1e5, scatter=0.05, response=response)
    return Radiograph(grey, None), view, view.project(centre)


# Truths


def test_magnification_and_the_two_planes() -> None:
    assert pixel_size.magnification(1800, 1500) == pytest.approx(1.2)
    assert pixel_size.on_detector((0.1, 0.2), 1.2) == pytest.approx((0.12, 0.24))
    for pair in ((1500, 1800), (1500, 1500), (1500, 0), (np.nan, 1), (np.inf, 1)):
        with pytest.raises(InputError, match="the first must be positive and the smaller one"):
            pixel_size.magnification(*pair)


def test_a_known_distance() -> None:
    assert pixel_size.pitch_from_distance((10, 20), (310, 420), 100.0) == pytest.approx((0.2, 0.2))
    # Rows twice as far apart as columns: 300 of them and 400 columns are 600 and 400 of the latter.
    row_mm, column_mm = pixel_size.pitch_from_distance((10, 20), (310, 420), 100.0, aspect=2.0)
    assert np.hypot(300 * row_mm, 400 * column_mm) == pytest.approx(100) and row_mm == pytest.approx(2 * column_mm)
    with pytest.raises(InputError, match=r"lie 5.0 pixels apart, too few to measure by"):
        pixel_size.pitch_from_distance((0, 0), (3, 4), 100)
    for mm in (0, -5, np.nan, 1e6):
        with pytest.raises(InputError, match="it must be 1 to 2000 mm"):
            pixel_size.pitch_from_distance((0, 0), (300, 400), mm)


# Balls


@pytest.mark.parametrize("response", ["log", "linear"])
@pytest.mark.parametrize(("mm", "pixel_mm", "density"), [(25, 0.2, STEEL), (50, 0.4, STEEL), (25, 0.2, ALUMINIUM)])
def test_a_ball_tells_the_pitch_in_its_plane(mm: float, pixel_mm: float, density: float, response: str) -> None:
    shown, view, centre = ball_film(mm=mm, pixel_mm=pixel_mm, density=density, response=response)
    radius = mm / 2 * 1.2 / pixel_mm
    true = pixel_mm / 1.2
    for click in ((0.4, -0.3), (-0.1, 0.5)):
        ball = pixel_size.find_ball(shown.pixels, centre + radius * np.array(click), mm)
        assert pixel_size.pitch_from_ball(ball, mm) == pytest.approx((true, true), rel=0.015)
        assert ball.centre == pytest.approx(centre, abs=1.0)
        assert ball.radius == pytest.approx(radius, rel=0.015) and ball.error < 0.01 * radius
    assert view.magnification(np.zeros(3)) == pytest.approx(1.2)


def test_a_ball_far_from_the_central_ray_is_an_ellipse_whose_short_axis_counts() -> None:
    shown, _, centre = ball_film(offset=(0.0, 300.0), shape=(1900, 240), pixel_mm=0.4, mm=30)
    ball = pixel_size.find_ball(shown.pixels, centre + (9, -7), 30)
    assert ball.stretch == pytest.approx(np.hypot(1500, 300) / 1500, abs=0.004)
    assert pixel_size.pitch_from_ball(ball, 30)[0] == pytest.approx(0.4 / 1.2, rel=0.015)


def test_a_ball_on_pixels_that_are_no_squares() -> None:
    shown, _, centre = ball_film(pixel_mm=(0.4, 0.2), shape=(200, 320))
    ball = pixel_size.find_ball(shown.pixels, centre + (9, 11), 25, aspect=2.0)
    assert pixel_size.pitch_from_ball(ball, 25, aspect=2.0) == pytest.approx((0.4 / 1.2, 0.2 / 1.2), rel=0.015)


def test_a_ball_at_the_film_s_edge_and_behind_a_wire() -> None:
    shown, _, centre = ball_film(offset=(-8.0, 0.0))
    shown.pixels[:, int(centre[1]) + 20 : int(centre[1]) + 30] += 1.5
    ball = pixel_size.find_ball(shown.pixels, centre + (11, 9), 25)
    assert pixel_size.pitch_from_ball(ball, 25)[0] == pytest.approx(0.2 / 1.2, rel=0.02)


def test_where_there_is_no_ball_it_says_so() -> None:
    shown, _, centre = ball_film()
    noise = np.random.default_rng(0).normal(0, 1, (300, 300)).astype(np.float32)
    square = np.zeros((300, 300), np.float32)
    square[80:220, 80:220] = 1
    for pixels, click in (
        *((shown.pixels, corner) for corner in ((30.0, 40.0), (300.0, 290.0), (-50.0, 5.0))),
        *((pixels, (150.0, 140.0)) for pixels in (noise, square, np.zeros((300, 300), np.float32), -shown.pixels)),
    ):
        with pytest.raises(InputError, match="There is no ball at the pixel that is marked; mark the middle"):
            pixel_size.find_ball(pixels, np.array(click), 25)
    with pytest.raises(InputError, match="The ball's diameter is 0 mm; it must be 1 to 2000 mm"):
        pixel_size.find_ball(shown.pixels, centre, 0)


# A landmark file's view


def test_a_landmark_file_s_view_says_or_measures_the_pitch() -> None:
    own = Radiograph(np.zeros((400, 500), np.float32), (0.5, 0.5), Acquisition(pitch_from="the file"))
    assert pixel_size.measure_pixel_size(own, {"name": "ap"}, "ap") is own
    said = pixel_size.measure_pixel_size(own, {"pixel_mm": [0.2, 0.3]}, "ap")
    assert said.pixel_mm == (0.2, 0.3) and said.pixels is own.pixels
    assert (said.facts.plane, said.facts.pitch_from) == ("detector", "stated in the landmark file")
    ruler = {"known_distance": {"from": [0, 10], "to": [0, 410], "mm": 100}}
    said = pixel_size.measure_pixel_size(own, ruler, "ap")
    assert said.pixel_mm == (0.25, 0.25)
    assert (said.facts.plane, said.facts.pitch_from) == ("patient", "a known distance of 100 mm")
    assert pixel_size.measure_pixel_size(own, ruler | {"pixel_plane": "detector"}, "ap").facts.plane == "detector"


def test_the_pixels_of_a_view_are_the_stored_ones() -> None:
    """A film stored on its side and mirrored: rulers, balls and pitches are marked where a viewer shows them."""
    shown, _, centre = ball_film(offset=(8.0, 7.0), shape=(200, 400), pixel_mm=(0.4, 0.2))
    turn = ImageOrientation(transposed=True, mirrored=True)
    turned = Radiograph(shown.pixels, (0.4, 0.2), Acquisition(turn=turn))
    click = turned.to_stored(centre)
    said = pixel_size.measure_pixel_size(turned, {"ball": {"at": click.tolist(), "mm": 25}}, "ap")
    assert said.pixel_mm == pytest.approx((0.4 / 1.2, 0.2 / 1.2), rel=0.015)
    assert re.fullmatch(r"a ball of 25 mm, 1[45]\d\.\d pixels wide", said.facts.pitch_from)
    ruler = {"known_distance": {"from": [0, 10], "to": [0, 210], "mm": 100}}  # Along a stored row: down the film.
    assert pixel_size.measure_pixel_size(turned, ruler, "ap").pixel_mm == pytest.approx((0.5, 0.25))
    assert pixel_size.measure_pixel_size(turned, {"pixel_mm": [0.2, 0.3]}, "ap").pixel_mm == (0.3, 0.2)
    # Once the view is counted on the film as it is here, nothing is turned any more.
    said = pixel_size.measure_pixel_size(
        turned, {"counted_on": "film", "ball": {"at": centre.tolist(), "mm": 25}}, "ap"
    )
    assert said.pixel_mm == pytest.approx((0.4 / 1.2, 0.2 / 1.2), rel=0.015)
    assert pixel_size.measure_pixel_size(turned, {"counted_on": "film", "pixel_mm": [0.2, 0.3]}, "ap").pixel_mm == (
        0.2,
        0.3,
    )


def test_a_view_is_counted_on_the_film_once() -> None:
    """Stored on its side: the stored row 3, column 70 is the film's row 70 and, mirrored, column 99 - 3."""
    turned = Radiograph(
        np.zeros((200, 100), np.float32), None, Acquisition(turn=ImageOrientation(transposed=True, mirrored=True))
    )
    said = {
        "name": "ap",
        "shape": [100, 200],
        "pixel_mm": [0.2, 0.3],
        "principal_point": [3, 70],
        "ball": {"at": [3, 70], "mm": 25},
        "known_distance": {"from": [0, 0], "to": [3, 70], "mm": 9},
    }
    here = pixel_size.counted_on_film(said, turned)
    assert here == {
        "name": "ap",
        "shape": [200, 100],
        "pixel_mm": [0.3, 0.2],
        "principal_point": [70, 96],
        "ball": {"at": [70, 96], "mm": 25},
        "known_distance": {"from": [0, 99], "to": [70, 96], "mm": 9},
        "counted_on": "film",
    }
    assert pixel_size.counted_on_film(here, turned) == here
    assert pixel_size.counted_on_film(said, Radiograph(turned.pixels, None)) == said
    with pytest.raises(InputError, match="is garbled"):
        pixel_size.counted_on_film({"ball": [1, 2]}, turned)


def test_the_distances_are_the_file_s_unless_somebody_states_them() -> None:
    assert source_distances(Acquisition(), {}) == (1800, 1500)
    assert source_distances(Acquisition(source_to_detector_mm=2000), {}) == (2000, 1700)
    assert source_distances(Acquisition(source_to_detector_mm=2000, source_to_patient_mm=1850), {}) == (2000, 1850)
    assert source_distances(Acquisition(magnification=1.2), {}) == (1800, pytest.approx(1500))
    known = Acquisition(source_to_detector_mm=2000, source_to_patient_mm=1850)
    assert source_distances(known, {"source_to_isocentre_mm": 1600}) == (2000, 1600)
    assert source_distances(known, {"source_to_detector_mm": 1900}) == (1900, 1850)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"pixel_mm": [1, 1], "ball": {}}, "The 'ap' view .* in two ways, pixel_mm and ball; keep one"),
        ({"pixel_mm": 0.5}, "The 'ap' view of the landmark file is garbled in its 'pixel_mm'"),
        ({"pixel_mm": [143, 143]}, "Pixels of 143 x 143 mm make no film"),
        ({"pixel_mm": [0, 0]}, "both must be positive"),
        ({"pixel_mm": [float("nan"), 1]}, "both must be positive"),
        ({"known_distance": {"from": [0, 0], "mm": 100}}, "The 'ap' view .* is garbled in its 'known_distance'"),
        (
            {"known_distance": {"from": [0, 0], "to": [1], "mm": 100}},
            "The 'ap' view .* is garbled in its 'known_distance'",
        ),
        (
            {"known_distance": {"from": [0, 0], "to": [None, 3], "mm": 1}},
            "The 'ap' view .* is garbled in its 'known_distance'",
        ),
        ({"ball": {"at": "here", "mm": 25}}, "The 'ap' view .* is garbled in its 'ball'; transvert/spacing.py shows"),
        ({"ball": [1, 2, 3]}, "The 'ap' view of the landmark file is garbled in its 'ball'"),
        ({"ball": {"at": [50, 50], "mm": 25}}, "There is no ball"),
        ({"pixel_mm": [1, 1], "pixel_plane": "table"}, "'pixel_plane' of the 'ap' view .* is detector or patient"),
    ],
)
def test_a_view_by_which_nothing_can_be_measured(said: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        pixel_size.measure_pixel_size(Radiograph(np.zeros((100, 100), np.float32), None), said, "ap")
