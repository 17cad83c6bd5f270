"""Colours of a surface's standard deviation, on the surface and in the figure."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps

from transvert.clinical import vertebra
from transvert.clinical.vertebra import Vertebra
from transvert.imaging import mesh
from transvert.plots import figures

SPACING = 1.5
T12, L1 = 19, 20


def _ball(level: int, z: float) -> Vertebra:
    points = (np.indices((32,) * 3) - 15.5) * SPACING
    share = np.clip((12 - np.linalg.norm(points, axis=0)) / SPACING + 0.5, 0, 1)
    return Vertebra(level, np.array([5.0, -3.0, z]), share.astype(np.float32), SPACING)


def test_a_painted_surface_keeps_its_numbers_and_wears_their_colours() -> None:
    ball = _ball(T12, 0.0)
    surface = mesh.extract_surface(ball.probability, ball.affine)
    sd = np.linspace(0, 8, len(surface.vertices))
    painted = figures.colour_by_sd(surface, sd)
    np.testing.assert_allclose(painted.vertex_attributes[figures.SD_MM], sd, rtol=1e-6)
    expected = 255 * colormaps["cividis"](np.minimum(sd / figures.SD_LIMIT_MM, 1.0))
    np.testing.assert_allclose(painted.visual.vertex_colors, expected, atol=1)
    # Lighter is less sure, for eyes without colour vision too; beyond the limit nothing changes.
    light = painted.visual.vertex_colors[:, :3] @ [0.2126, 0.7152, 0.0722]
    below = sd < figures.SD_LIMIT_MM
    assert (np.diff(light[below]) > -1.5).all() and light[below][-1] > light[0] + 100
    assert figures.SD_MM not in surface.vertex_attributes


def test_the_figure_shows_each_vertebra_in_its_colour_from_all_sides_and_says_what_it_is() -> None:
    balls, values = [_ball(T12, 40.0), _ball(L1, 0.0)], (1.0, 4.0)
    surfaces = [mesh.extract_surface(ball.probability, ball.affine) for ball in balls]
    painted = {
        ball.level: figures.colour_by_sd(surface, np.full(len(surface.vertices), value))
        for ball, surface, value in zip(balls, surfaces, values, strict=True)
    }
    figure = figures.surface_sd_views(vertebra.assemble_spine(balls), painted, calibrated=False)
    *pictures, bar = figure.axes
    assert [axis.get_title() for axis in pictures] == [
        "seen from the front",
        "seen from the left side",
        "seen from the back",
    ]
    assert {axis.get_ylabel() for axis in pictures} == {"mm"}
    assert "RMS (mm)" in bar.get_ylabel() and "not calibrated" in bar.get_ylabel()
    for axis in pictures:
        shown = np.asarray(axis.images[0].get_array())
        filled = (shown < 1).any(axis=2)
        rows = np.flatnonzero(filled.any(axis=1))
        upper, lower = shown[: rows.mean().astype(int)], shown[rows.mean().astype(int) :]
        for part, value in ((upper, 1.0), (lower, 4.0)):
            pixels = part[(part < 1).any(axis=2)]
            true = np.array(colormaps["cividis"](value / figures.SD_LIMIT_MM)[:3])
            # Shading makes a colour darker and leaves its hue.
            np.testing.assert_allclose(
                pixels / pixels.sum(1, keepdims=True), np.tile(true / true.sum(), (len(pixels), 1)), atol=0.01
            )
    plt.close(figure)
    told = figures.surface_sd_views(vertebra.assemble_spine(balls), painted, calibrated=True)
    assert "calibrated on other people" in told.axes[-1].get_ylabel()
    plt.close(told)
