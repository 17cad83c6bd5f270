"""Shaded pictures: right on the left, head up, and the patient's left side after a quarter turn."""

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

import matplotlib.pyplot as plt
import numpy as np
import pytest
import trimesh
from matplotlib.figure import Figure
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

from transvert import levels, progress
from transvert.imaging.volume import Volume
from transvert.io import InputError
from transvert.plots import viewer

N = 40
RIGHT, FRONT, HEAD = np.array([32, 20, 10]), np.array([12, 33, 28]), np.array([20, 14, 34])
"""Three balls: at the right, the front and the head, each elsewhere in the middle."""


def _ball(centre: np.ndarray, radius: float = 4.0) -> np.ndarray:
    return np.clip(radius - np.linalg.norm(np.moveaxis(np.indices((N, N, N)), 0, -1) - centre, axis=-1) + 0.5, 0, 1)


def _place(picture: np.ndarray) -> np.ndarray:
    """Row and column of the middle of what is drawn, from the picture's middle."""
    return np.argwhere(np.isfinite(picture)).mean(0) - (np.array(picture.shape) - 1) / 2


# Seen from a side: the columns run against this axis (sign and index).
TURNS = {0: (-1, 0), 90: (-1, 1), 180: (1, 0), 270: (1, 1), 360: (-1, 0)}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("centre", [RIGHT, FRONT, HEAD], ids=["right", "front", "head"])
def test_a_ball_is_drawn_where_a_viewer_would_see_it(turn: int, centre: np.ndarray) -> None:
    brightness, _ = viewer.shade(_ball(centre), turn_deg=turn)
    sign, axis = TURNS[turn]
    expected = [-(centre[2] - (N - 1) / 2), sign * (centre[axis] - (N - 1) / 2)]
    assert_allclose(_place(brightness), expected, atol=0.6)


def test_in_words() -> None:
    # From the front the patient's right is on the left of the picture.
    assert _place(viewer.shade(_ball(RIGHT))[0])[1] < -8
    # From the patient's left side the front is on the left, and what is on the right is in the middle.
    side = viewer.shade(_ball(FRONT), turn_deg=90)[0]
    assert _place(side)[1] < -8
    assert _place(viewer.shade(_ball(HEAD), turn_deg=37)[0])[0] < -8


def test_the_nearer_hides_the_farther() -> None:
    near, far = np.array([20, 32, 20]), np.array([20, 8, 20])
    values = np.where(_ball(near, 6) > 0, 1, 2)
    both = np.maximum(_ball(near), _ball(far, 6))
    for turn, first in ((0, 1), (180, 2)):
        _, read = viewer.shade(both, turn_deg=turn, values=values)
        row, column = np.array(read.shape) // 2
        assert read[row, column] == first
    left, right = np.array([6, 20, 20]), np.array([33, 20, 20])
    values = np.where(_ball(left, 6) > 0, 1, 2)
    _, read = viewer.shade(np.maximum(_ball(left), _ball(right)), turn_deg=90, values=values)
    assert read[read.shape[0] // 2, read.shape[1] // 2] == 1  # from the patient's left


def test_brightness_is_lit_from_the_upper_left_and_within_bounds() -> None:
    brightness, depth = viewer.shade(_ball(np.array([20, 20, 20]), 12.0), finer=2)
    inside = brightness[np.isfinite(brightness)]
    assert inside.min() >= 0 and inside.max() <= 1
    assert brightness.shape == (2 * N, 2 * N) and brightness.dtype == np.float32
    rows, columns = np.nonzero(np.isfinite(brightness))
    upper_left = (rows < N) & (columns < N)
    lower_right = (rows > N) & (columns > N)
    assert inside[upper_left].mean() > inside[lower_right].mean() + 0.1
    assert np.isfinite(depth).sum() == len(inside)
    assert depth[N, N] == np.nanmin(depth)  # the ball's middle is nearest


def test_slopes_at_some_voxels_are_sobel_s_at_the_rim_too() -> None:
    field = np.random.default_rng(0).random((5, 6, 7))
    voxels = np.argwhere(field > 0.3)
    expected = np.stack([ndimage.sobel(field, axis)[tuple(voxels.T)] for axis in range(3)], axis=-1)
    assert_allclose(viewer._slopes(field, voxels), expected, atol=1e-5)


def test_nothing_is_an_empty_picture() -> None:
    brightness, read = viewer.shade(np.zeros((8, 8, 8)))
    assert np.isnan(brightness).all() and np.isnan(read).all()


def test_levels_have_colours_told_apart() -> None:
    numbers = np.array(list(levels.NAMES))
    colours = viewer.level_colours(numbers)
    assert colours.shape == (len(numbers), 3) and (colours >= 0).all() and (colours <= 1).all()
    ordered = dict(zip(levels.NAMES, colours, strict=True))
    for above, below in zip(levels.VERTEBRAE, levels.VERTEBRAE[1:], strict=False):
        if {above, below} != {19, 28}:  # T12 and T13 share a hue and, rarely together, may share a lightness
            assert np.abs(ordered[above] - ordered[below]).max() > 0.1, levels.name(above)
    assert_array_equal(viewer.level_colours(np.array([np.nan, 0])), 0)


def test_a_spine_picture_is_coloured_by_level_on_white() -> None:
    labels = np.zeros((N, N, N), np.uint8)
    labels[_ball(RIGHT, 6) > 0.5] = 20
    labels[_ball(HEAD, 6) > 0.5] = 8
    picture = viewer.spine_picture(Volume(labels, np.eye(4)), 0)
    assert picture.shape == (N, N, 3)
    assert_array_equal(picture[-1, -1], 1)
    for centre, level in ((RIGHT, 20), (HEAD, 8)):
        pixel = picture[N - 1 - centre[2], N - 1 - centre[0]]
        colour = viewer.level_colours(np.array(level))
        assert_allclose(pixel / pixel.max(), colour / colour.max(), atol=0.02)
    drawn = (picture < 1).any(-1)
    assert (picture[drawn].max(-1) > 0.15).all()  # no black pixel at an edge, where no label would be read


def test_an_error_picture_is_red_where_too_large_and_blue_where_too_small() -> None:
    ball = _ball(np.array([20, 20, 20]), 10.0)
    large, small = (viewer.error_picture(ball, np.full(ball.shape, mm), 0) for mm in (2.5, -2.5))
    middle = (N, N)
    assert large.shape == (2 * N, 2 * N, 3)
    assert large[middle][0] > large[middle][2] + 0.2
    assert small[middle][2] > small[middle][0] + 0.2
    assert_array_equal(large[0, 0], 1)


def test_no_viewer_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSVERT_VIEWER", "none")
    assert not progress.is_interactive() and viewer.viewer({}) is None
    monkeypatch.delenv("TRANSVERT_VIEWER")
    assert not progress.is_interactive() and viewer.viewer({}) is None
    monkeypatch.setenv("TRANSVERT_VIEWER", "k3d")
    assert progress.is_interactive()


# In 3D

BALL, BOX = (
    trimesh.creation.icosphere(radius=12).apply_translation([5, 0, 40]),
    trimesh.creation.box((30, 20, 14)).apply_translation([0.6, 0.7, 0.3]),
)
SPINE = {8: BALL, 20: BOX}


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSVERT_VIEWER", "k3d")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An itkwidgets that can be found, and does nothing but say where it loads from."""
    (tmp_path / "viewer_config.py").write_text('ITK_VIEWER_SRC = PYDATA_SPHINX_HREF = "http://127.0.0.1:9/index.html"')
    found = ModuleSpec("itkwidgets", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(viewer, "find_spec", lambda name: found)


@pytest.mark.usefixtures("watched")
def test_k3d_draws_each_level_in_its_colour_seen_from_the_front() -> None:
    plot = viewer.viewer(SPINE)
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


def test_errors_are_red_outside_and_blue_inside() -> None:
    values = np.linspace(-9, 9, len(BALL.vertices))
    drawn = viewer.k3d_mesh(BALL, "T1", np.zeros(3), values)
    assert_allclose(drawn.attribute, values.astype(np.float32))
    assert drawn.color == 0xFFFFFF  # Nothing of the level's own colour is left.
    assert drawn.color_range == [-viewer.ERROR_LIMIT_MM, viewer.ERROR_LIMIT_MM]
    ramp = np.reshape(drawn.color_map, (-1, 4))
    assert ramp[0, 0] == 0 and ramp[-1, 0] == 1
    assert ramp[0, 3] > ramp[0, 1] and ramp[-1, 1] > ramp[-1, 3]


def test_surfaces_become_labels_where_they_lie() -> None:
    labels = viewer.label_volume(SPINE, 0.5)
    assert set(np.unique(labels.data)) == {0, 8, 20}
    for level, surface in SPINE.items():
        mine = labels.data == level
        assert mine.sum() * 0.5**3 == pytest.approx(surface.volume, rel=0.02)
        assert_allclose(labels.world(np.argwhere(mine).mean(0)), surface.center_mass, atol=0.25)


@pytest.mark.usefixtures("watched")
def test_a_figure_comes_first_and_the_viewer_where_a_person_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    figure = plt.figure()
    viewer.show(figure, SPINE)
    assert shown[0] is figure and len(shown) == 2 and [one.name for one in shown[1].objects] == ["T1", "L1"]
    assert not plt.fignum_exists(figure.number)
    monkeypatch.delenv("TRANSVERT_VIEWER")
    viewer.show(Figure(), SPINE)
    assert isinstance(shown[2], Figure) and len(shown) == 3


@pytest.mark.usefixtures("watched")
def test_an_unknown_viewer_is_refused_and_none_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="'vedo' is not a viewer; use k3d, pyvista, ipyniivue, itkwidgets or none"):
        viewer.viewer(SPINE, "vedo")
    assert viewer.viewer(SPINE, "none") is None and viewer.viewer({}) is None
    monkeypatch.setenv("TRANSVERT_VIEWER", "vedo")
    with pytest.raises(InputError, match="'vedo'"):
        viewer.viewer(SPINE)


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("which", ["pyvista", "ipyniivue", "itkwidgets"])
def test_a_viewer_that_is_not_installed_says_how_and_leaves_its_place_to_k3d(
    which: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(viewer, "find_spec", lambda name: None)
    assert len(viewer.viewer(SPINE, which).objects) == 2
    assert f"{which} is not installed: pip install 'transvert[{which}]'" in capsys.readouterr().out
    assert which not in sys.modules


@pytest.mark.usefixtures("watched")
def test_colab_is_asked_to_draw_foreign_widgets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    colab = ModuleType("google.colab")
    colab.output = SimpleNamespace(enable_custom_widget_manager=lambda: asked.append("yes"))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    viewer.viewer(SPINE, "k3d")
    assert asked == ["yes"]


@pytest.mark.usefixtures("installed", "watched")
@pytest.mark.parametrize(
    ("which", "lacks"), [("itkwidgets", "imjoy_jupyterlab_extension"), ("pyvista", "trame_pyvista")]
)
def test_a_viewer_without_what_it_needs_beside_itself_is_not_used(
    which: str, lacks: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = viewer.find_spec(which)
    monkeypatch.setattr(viewer, "find_spec", lambda name: None if name == lacks else found)
    assert len(viewer.viewer(SPINE, which).objects) == 2
    assert f"{which} is not installed: pip install 'transvert[{which}]'" in capsys.readouterr().out


@pytest.mark.usefixtures("installed")
def test_itkwidgets_is_never_used_where_no_browser_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert viewer.viewer(SPINE, "itkwidgets") is None
    monkeypatch.setenv("TRANSVERT_VIEWER", "itkwidgets")  # Not even on request.
    assert len(viewer.viewer(SPINE).objects) == 2
    assert "itkwidgets needs a person's browser" in capsys.readouterr().out


@pytest.mark.usefixtures("installed", "watched")
def test_itkwidgets_is_not_used_where_its_pages_are_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Front:
        class kernel:
            _allow_stdin = True

    monkeypatch.setattr("IPython.core.getipython.get_ipython", Front)
    assert len(viewer.viewer(SPINE, "itkwidgets").objects) == 2
    assert "itkwidgets loads its viewer from 127.0.0.1:9, which does not answer. This is k3d" in capsys.readouterr().out
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


def test_a_page_is_silent_if_it_is_not_there_or_nobody_answers(tmp_path: Path) -> None:
    (tmp_path / "there.js").touch()
    with served(tmp_path) as address:
        assert viewer._silent([f"{address}/there.js"]) == ""
        assert viewer._silent([f"{address}/there.js", f"{address}/gone.js"]) == address.removeprefix("http://")
    assert viewer._silent([f"{address}/there.js"]) == address.removeprefix("http://")


@pytest.mark.usefixtures("watched")
def test_ipyniivue_gets_each_surface_by_name() -> None:
    pytest.importorskip("ipyniivue", reason="ipyniivue is not installed, so its scene is not made.")
    plot = viewer.viewer(SPINE, "ipyniivue")
    assert [one.name for one in plot.meshes] == ["T1.stl", "L1.stl"]
    back = trimesh.load(trimesh.util.wrap_as_stream(plot.meshes[1].data), file_type="stl")
    assert_allclose(back.bounds, BOX.bounds)


@pytest.mark.usefixtures("watched")
def test_pyvista_writes_a_page_of_its_own() -> None:
    pytest.importorskip("trame_pyvista", reason="pyvista is not installed, so its scene is not made.")
    page = viewer.viewer(SPINE, "pyvista").data
    assert page.startswith("<div><iframe srcdoc=") and len(page) > 100_000
