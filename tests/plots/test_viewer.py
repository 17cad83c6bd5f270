"""Shaded pictures: right on the left, head up, and the patient's left side after a quarter turn. Interactive viewers."""

from __future__ import annotations

import contextlib
import http.server
import sys
import threading
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trimesh
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

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
    brightness, _ = viewer.shade(_ball(centre), turn_deg=turn)
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
    _, read = viewer.shade(np.maximum(_ball(first), _ball(second)), turn_deg=turn, values=values)
    assert read[read.shape[0] // 2, read.shape[1] // 2] == seen


def test_light_comes_from_the_upper_left() -> None:
    brightness, depth = viewer.shade(_ball((20, 20, 20), 12.0), scale=2)
    inside = np.isfinite(brightness)
    assert brightness.shape == (2 * N, 2 * N) and brightness.dtype == np.float32
    assert brightness[inside].min() >= 0 and brightness[inside].max() <= 1
    assert np.nanmean(brightness[:N, :N]) > np.nanmean(brightness[N:, N:]) + 0.1
    assert depth[N, N] == np.nanmin(depth)  # The ball's middle is nearest.


def test_the_gradient_at_some_voxels_is_sobels_at_the_border_too() -> None:
    field = np.random.default_rng(0).random((5, 6, 7))
    voxels = np.argwhere(field > 0.3)
    expected = np.stack([ndimage.sobel(field, axis)[tuple(voxels.T)] for axis in range(3)], axis=-1)
    assert_allclose(viewer._sobel_at(field, voxels), expected, atol=1e-5)


def test_nothing_is_an_empty_picture_on_white() -> None:
    brightness, read = viewer.shade(np.zeros((8, 8, 8)))
    assert np.isnan(brightness).all() and np.isnan(read).all()
    assert_array_equal(viewer.light_picture(brightness, viewer.level_colours(read)), 1)


def test_neighbouring_levels_have_different_colours() -> None:
    numbers = np.array(list(levels.NAMES))
    colours = viewer.level_colours(numbers)
    assert colours.shape == (len(numbers), 3) and (colours >= 0).all() and (colours <= 1).all()
    ordered = dict(zip(levels.NAMES, colours, strict=True))
    for above, below in zip(levels.VERTEBRAE, levels.VERTEBRAE[1:], strict=False):
        if {above, below} != {19, 28}:  # T12 and T13, rarely together, may look alike.
            assert np.abs(ordered[above] - ordered[below]).max() > 0.1, levels.name(above)


# Interactive viewers

BALL = trimesh.creation.icosphere(radius=12).apply_translation([5, 0, 40])
BOX = trimesh.creation.box((30, 20, 14)).apply_translation([0.6, 0.7, 0.3])
SPINE = {8: BALL, 20: BOX}


@pytest.fixture
def interactive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSVERT_VIEWER", "k3d")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An itkwidgets that is found and only says where it loads from."""
    (tmp_path / "viewer_config.py").write_text('ITK_VIEWER_SRC = PYDATA_SPHINX_HREF = "http://127.0.0.1:9/index.html"')
    found = ModuleSpec("itkwidgets", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(viewer, "find_spec", lambda name: found)


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


def test_surfaces_become_labels_where_they_lie() -> None:
    labels = viewer.label_volume(SPINE, 0.5)
    assert set(np.unique(labels.data)) == {0, 8, 20}
    for level, surface in SPINE.items():
        own = labels.data == level
        assert own.sum() * 0.5**3 == pytest.approx(surface.volume, rel=0.02)
        assert_allclose(labels.world(np.argwhere(own).mean(0)), surface.center_mass, atol=0.25)


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


@pytest.mark.usefixtures("installed", "interactive")
@pytest.mark.parametrize(
    ("lacking", "in_browser", "sentence"),
    [
        ("itkwidgets", True, "itkwidgets is not installed: pip install 'transvert[itkwidgets]'"),
        ("imjoy_jupyterlab_extension", True, "itkwidgets is not installed: pip install 'transvert[itkwidgets]'"),
        ("", False, "itkwidgets needs a person's browser"),
        ("", True, "itkwidgets loads its viewer from 127.0.0.1:9, which does not answer. This is k3d"),
    ],
)
def test_k3d_replaces_itkwidgets_where_it_cannot_work(
    lacking: str, in_browser: bool, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = viewer.find_spec("itkwidgets")
    monkeypatch.setattr(viewer, "find_spec", lambda name: None if name == lacking else found)
    shell = SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=in_browser))
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: shell)
    assert len(viewer.view_surfaces(SPINE, "itkwidgets").objects) == 2
    assert sentence in capsys.readouterr().out
    assert "itkwidgets" not in sys.modules


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder's address while the block runs."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_host_is_silent_if_a_page_is_missing_or_nothing_answers(tmp_path: Path) -> None:
    (tmp_path / "there.js").touch()
    with served(tmp_path) as address:
        assert viewer._silent_host([f"{address}/there.js"]) == ""
        assert viewer._silent_host([f"{address}/there.js", f"{address}/gone.js"]) == address.removeprefix("http://")
    assert viewer._silent_host([f"{address}/there.js"]) == address.removeprefix("http://")
