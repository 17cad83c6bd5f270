"""Shaded pictures: right on the left, head up, and the patient's left side after a quarter turn. Interactive viewers."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trimesh
from numpy.testing import assert_allclose, assert_array_equal

from transvert import levels
from transvert.io import InputError
from transvert.plots import viewer

N = 40
RIGHT, FRONT, HEAD = np.array([32, 20, 10]), np.array([12, 33, 28]), np.array([20, 14, 34])
"""Three balls at the right, the front and the head of a grid of N voxels."""
DIRECTIONS = {0: (-1, 0), 90: (-1, 1), 180: (1, 0), 270: (1, 1), 360: (-1, 0)}
"""Turn to the sign and index of the axis along which the picture's columns run."""


def _ball(centre: Any, radius: float = 4.0) -> np.ndarray:
    return np.clip(radius - np.linalg.norm(np.moveaxis(np.indices((N, N, N)), 0, -1) - centre, axis=-1) + 0.5, 0, 1)


@pytest.mark.parametrize("turn", DIRECTIONS)
@pytest.mark.parametrize("centre", [RIGHT, FRONT, HEAD], ids=["right", "front", "head"])
def test_a_ball_is_drawn_where_a_viewer_sees_it(turn: int, centre: np.ndarray) -> None:
    brightness, _ = viewer.shade(_ball(centre), _ball(centre), turn_deg=turn)
    sign, axis = DIRECTIONS[turn]
    place = np.argwhere(np.isfinite(brightness)).mean(0) - (np.array(brightness.shape) - 1) / 2
    assert_allclose(place, [-(centre[2] - (N - 1) / 2), sign * (centre[axis] - (N - 1) / 2)], atol=0.6)


@pytest.mark.parametrize(
    ("first", "second", "turn", "seen"),
    [
        ((20, 32, 20), (20, 8, 20), 0, 1),  # The front one hides the back one.
        ((20, 32, 20), (20, 8, 20), 180, 2),
        ((6, 20, 20), (33, 20, 20), 90, 1),  # From the left the left one.
    ],
)
def test_the_nearer_shape_hides_the_farther_one(first: Any, second: Any, turn: int, seen: int) -> None:
    values = np.where(_ball(first, 6) > 0, 1, 2)
    _, read = viewer.shade(np.maximum(_ball(first), _ball(second)), values, turn_deg=turn)
    assert read[read.shape[0] // 2, read.shape[1] // 2] == seen


def test_light_comes_from_the_upper_left() -> None:
    ball = _ball((20, 20, 20), 12.0)
    brightness, _ = viewer.shade(ball, ball, scale=2)
    inside = np.isfinite(brightness)
    assert brightness.shape == (2 * N, 2 * N) and brightness.dtype == np.float32
    assert brightness[inside].min() >= 0 and brightness[inside].max() <= 1
    assert np.nanmean(brightness[:N, :N]) > np.nanmean(brightness[N:, N:]) + 0.1


def test_nothing_is_an_empty_picture() -> None:
    assert np.isnan(viewer.shade(np.zeros((8, 8, 8)), np.zeros((8, 8, 8)))).all()


def test_neighbouring_levels_have_different_colours() -> None:
    numbers = np.array(list(levels.NAMES))
    colours = viewer.level_colours(numbers)
    assert colours.shape == (len(numbers), 3) and (colours >= 0).all() and (colours <= 1).all()
    usual = viewer.level_colours(np.array([n for n in levels.VERTEBRAE if n != 28]))  # T13 is rare.
    assert (np.abs(np.diff(usual, axis=0)).max(axis=1) > 0.1).all()


# Interactive viewers

BALL = trimesh.creation.icosphere(radius=12).apply_translation([5, 0, 40])
BOX = trimesh.creation.box((30, 20, 14)).apply_translation([0.6, 0.7, 0.3])
SPINE = {8: BALL, 20: BOX}


@pytest.fixture
def interactive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSVERT_VIEWER", "k3d")


def test_a_batch_run_gets_no_viewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRANSVERT_VIEWER", raising=False)
    assert viewer.view_surfaces(SPINE) is None
    monkeypatch.setenv("TRANSVERT_VIEWER", "none")
    assert viewer.view_surfaces(SPINE) is None


@pytest.mark.usefixtures("interactive")
def test_k3d_draws_each_level_in_its_colour_seen_from_the_front() -> None:
    plot = viewer.view_surfaces(SPINE)
    assert [one.name for one in plot.objects] == ["T1", "L1"]
    for one, (level, surface) in zip(plot.objects, SPINE.items(), strict=True):
        red, green, blue = (255 * viewer.level_colours(np.array(level))).astype(int)
        assert one.color == red * 65536 + green * 256 + blue
        assert_allclose(one.vertices, surface.vertices, atol=1e-5)
        assert_array_equal(one.indices, surface.faces)
    eye, target, up = np.reshape(plot.camera, (3, 3))
    low, high = np.minimum(BALL.bounds[0], BOX.bounds[0]), np.maximum(BALL.bounds[1], BOX.bounds[1])
    assert_allclose(target, (low + high) / 2)
    assert eye[1] > high[1] and eye[0] < target[0]  # In front, to the patient's left.
    assert_array_equal(up, [0, 0, 1])


def test_itkwidgets_is_given_labels_where_the_surfaces_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    fakes = {
        "itkwidgets": SimpleNamespace(view=lambda label_image: shown.append(label_image)),
        "ngff_zarr": SimpleNamespace(to_ngff_image=lambda data, **where: (data, where)),
    }
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)  # type: ignore[arg-type]
    viewer._view_with_itkwidgets(SPINE)
    ((data, where),) = shown
    assert where["dims"] == ["z", "y", "x"] and set(np.unique(data)) == {0, 8, 20}
    for level, surface in SPINE.items():
        z, y, x = np.argwhere(data == level).mean(0) + [where["translation"][axis] for axis in "zyx"]
        assert_allclose([-x, -y, z], surface.center_mass, atol=0.5)


@pytest.mark.usefixtures("interactive")
def test_an_unknown_viewer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="'pyvista' is not a viewer; use k3d, itkwidgets or none"):
        viewer.view_surfaces(SPINE, "pyvista")
    assert viewer.view_surfaces(SPINE, "none") is None and viewer.view_surfaces({}) is None
    monkeypatch.setenv("TRANSVERT_VIEWER", "vedo")
    with pytest.raises(InputError, match="'vedo'"):
        viewer.view_surfaces(SPINE)


@pytest.mark.usefixtures("interactive")
def test_colab_is_told_to_draw_foreign_widgets(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    colab = ModuleType("google.colab")
    colab.output = SimpleNamespace(enable_custom_widget_manager=lambda: calls.append("yes"))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    viewer.view_surfaces(SPINE, "k3d")
    assert calls == ["yes"]


@pytest.mark.usefixtures("interactive")
@pytest.mark.parametrize(
    ("lacking", "sentence"),
    [
        ("itkwidgets", "itkwidgets is not installed: pip install 'transvert[itkwidgets]'"),
        ("imjoy_jupyterlab_extension", "itkwidgets is not installed: pip install 'transvert[itkwidgets]'"),
        ("", "itkwidgets needs a person's browser, and this run has none. This is k3d"),
    ],
)
def test_k3d_replaces_itkwidgets_where_it_cannot_work(
    lacking: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(viewer, "find_spec", lambda name: None if name == lacking else object())
    assert len(viewer.view_surfaces(SPINE, "itkwidgets").objects) == 2
    assert sentence in capsys.readouterr().out
    assert "itkwidgets" not in sys.modules
