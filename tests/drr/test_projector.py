"""Ray integrals against values worked out by hand, for every view and grid."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.spatial.transform import Rotation

from transvert import progress
from transvert.drr import projector
from transvert.drr.geometry import VIEW_NAMES, View, covering_view, named_view
from transvert.imaging.volume import Volume
from transvert.io import InputError

RNG = np.random.default_rng(0)
Beam = dict[str, bool]
BEAMS = pytest.mark.parametrize("beam", [{}, {"cone": True}, {"slot": True}], ids=["parallel", "cone", "slot"])


def grid(spacing: tuple[float, float, float], turn: Rotation | None = None) -> np.ndarray:
    affine = np.diag([*spacing, 1.0])
    affine[:3, :3] = (turn or Rotation.identity()).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = [-40, 25, 300]
    return affine


def middle(volume: Volume) -> np.ndarray:
    return volume.corners().mean(axis=0)


def clipped(volume: Volume, view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Each pixel's ray in voxels (start, step per mm), and from where to where in mm it is within the volume's faces."""
    start, direction = view.rays(np.stack(np.indices(view.shape), axis=-1))
    start, direction = volume.index(start), direction @ np.linalg.inv(volume.affine[:3, :3]).T
    with np.errstate(divide="ignore"):
        ends = np.sort([(face - start) / direction for face in (-0.5, np.array(volume.data.shape) - 0.5)], axis=0)
    low, high = ends[0].max(axis=-1), ends[1].min(axis=-1)
    if view.source is not None:
        low = np.maximum(low, 0)
    meets = high > low
    return start, direction, np.where(meets, low, 0), np.where(meets, high, 0)


def chords(volume: Volume, view: View) -> np.ndarray:
    """The length in mm of each pixel's ray within the volume's faces."""
    _, _, low, high = clipped(volume, view)
    return high - low


@pytest.mark.parametrize("turn_deg", [0, 4, 45, 80])
@BEAMS
@pytest.mark.parametrize("name", VIEW_NAMES)
def test_a_uniform_box_integrates_to_value_times_chord(name: str, beam: Beam, turn_deg: float) -> None:
    volume = Volume(np.full((20, 31, 14), 3, np.float32), grid((1.0, 0.7, 2.5)))
    view = covering_view(name, volume.corners(), 0.213, **beam, turn_deg=turn_deg)
    assert_allclose(projector.cast(volume, view), 3 * chords(volume, view), rtol=0, atol=1e-4)


@pytest.mark.parametrize("source", [(60, 0, 0), (-5, 40, 20), (-30, 55, 10), (5, -8, 70)])
def test_a_source_close_by_casts_rays_along_different_axes(source: tuple[int, int, int]) -> None:
    turn = Rotation.from_euler("xyz", [20, -35, 50], True)
    volume = Volume(np.ones((30, 20, 10), np.float32), grid((1.0, 1.5, 3.0), turn))
    towards = -np.array(source) / np.linalg.norm(source)
    column_step = np.cross(towards, [0.3, 0.2, 0.9])
    column_step /= np.linalg.norm(column_step)
    row_step = np.cross(towards, column_step)
    corner = middle(volume) + 40 * towards - 150 * column_step - 150 * row_step
    view = View("near", (301, 301), corner, row_step, column_step, towards, middle(volume) + source)
    expected = chords(volume, view)
    steps = view.rays(np.argwhere(expected > 0))[1] @ np.linalg.inv(volume.affine[:3, :3]).T
    assert len(set(np.abs(steps).argmax(axis=-1))) > 1
    assert_allclose(projector.cast(volume, view), expected, rtol=0, atol=1e-4)


def test_a_volume_beyond_the_source_is_not_seen() -> None:
    volume = Volume(np.ones((5, 5, 5), np.float32), np.eye(4))
    front, back = (
        named_view(name, np.array([0.0, 1000, 0]), (9, 9), 2.0, cone=True, source_to_isocentre_mm=900.0)
        for name in ("ap", "pa")
    )
    assert projector.cast(volume, front).max() > 4.9
    with pytest.raises(InputError, match="misses the volume"):
        projector.cast(volume, back)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 5), (6, 1, 5), (6, 7, 1)])
@BEAMS
def test_axes_of_a_single_voxel(shape: tuple[int, int, int], beam: Beam) -> None:
    volume = Volume(np.ones(shape, np.float32), grid((2.0, 3.0, 4.0)))
    for name in VIEW_NAMES:
        view = covering_view(name, volume.corners(), 0.37, **beam)
        assert_allclose(projector.cast(volume, view), chords(volume, view), rtol=0, atol=1e-5)


@BEAMS
@pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.5), (0.4, 0.6, 1.0)])
@pytest.mark.parametrize("angles", [(0, 0, 0), (25, -40, 70)])
def test_an_off_centre_sphere_shows_its_chords(
    spacing: tuple[float, float, float], beam: Beam, angles: tuple[int, int, int]
) -> None:
    radius, centre = 15.0, np.array([-9.0, 33.0, 328.0])
    turn = Rotation.from_euler("xyz", angles, degrees=True)
    affine = grid(spacing, turn)
    shape = np.ceil(40 / np.array(spacing)).astype(int)
    affine[:3, 3] = centre + [1.3, -2.1, 0.7] - affine[:3, :3] @ (shape / 2)
    volume = Volume(np.empty(shape, np.float32), affine)
    distance = np.linalg.norm(volume.world(np.stack(np.indices(shape), axis=-1)) - centre, axis=-1)
    volume.data[:] = np.clip((radius - distance) / max(spacing) + 0.5, 0, 1)  # Partial volume at the rim.
    for name in ("ap", "left_lateral"):
        view = named_view(name, centre + [5, -4, 3], (90, 90), 0.5, **beam, turn_deg=8)
        start, direction = view.rays(np.stack(np.indices(view.shape), axis=-1))
        d = np.linalg.norm(np.cross(centre - start, direction), axis=-1)
        error = projector.cast(volume, view) - 2 * np.sqrt(np.maximum(radius**2 - d**2, 0))
        assert np.abs(error[d < 0.9 * radius]).max() < 0.5  # mm, of 30: the stairs of the voxels
        assert abs(error[d < 0.9 * radius].mean()) < 0.05
        assert np.abs(error[d > radius + 2]).max() < 1e-12


@BEAMS
def test_a_ramp_is_right_in_slices_that_a_ray_leaves_by_the_side(beam: Beam) -> None:
    ramp = np.arange(16, dtype=np.float32)
    volume = Volume(np.ascontiguousarray(np.broadcast_to(ramp[:, None, None], (16, 12, 10))), grid((1.0, 1.0, 1.0)))
    view = covering_view("ap", volume.corners(), 0.5, **beam, turn_deg=37)
    start, step, low, high = clipped(volume, view)
    first, last = (np.clip(start[..., 0] + t * step[..., 0], -0.5, 15.5) for t in (low, high))

    def area(x: np.ndarray) -> np.ndarray:
        """Below the ramp from 0 to x; the rims beyond the voxel centres are level."""
        return np.clip(x, 0, 15) ** 2 / 2 + 15 * np.maximum(x - 15, 0)

    expected = np.where(high > low, (area(last) - area(first)) / step[..., 0], 0)
    # A slice that holds the ramp's kink at a rim is not linear, which costs a little.
    assert np.abs(projector.cast(volume, view) - expected).max() < 0.15


@BEAMS
def test_moving_the_world_changes_nothing(beam: Beam) -> None:
    volume = Volume(RNG.random((25, 30, 20), np.float32), grid((1.2, 0.9, 2.0)))
    view = covering_view("ap", volume.corners(), 0.8, **beam, turn_deg=20)
    turn = Rotation.from_euler("xyz", [30, 50, -70], degrees=True).as_matrix()
    move = np.eye(4)
    move[:3, :3], move[:3, 3] = turn, [100, -50, 20]
    steps = [turn @ step for step in (view.row_step, view.column_step, view.direction)]
    source = None if view.source is None else turn @ view.source + move[:3, 3]
    moved = View("moved", view.shape, turn @ view.corner + move[:3, 3], *steps, source, view.slot)
    expected = projector.cast(volume, view)
    again = projector.cast(Volume(volume.data, move @ volume.affine), moved)
    assert_allclose(again, expected, rtol=0, atol=1e-5 * expected.max())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_parallel_rays_along_an_axis_equal_the_general_kernel(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Volume(RNG.random((70, 60, 50), np.float32), grid((0.7, 1.1, 2.3)))
    direction = -np.eye(3)[axis]
    column_step, row_step = np.eye(3)[(axis + 1) % 3], np.eye(3)[(axis + 2) % 3]
    # A tilted detector, a little wider than the volume.
    row_step = row_step + 0.2 * direction
    corner = middle(volume) - 70 * column_step - 75 * row_step
    view = View("along", (150, 140), corner, row_step, column_step, direction)
    along = projector.cast(volume, view)
    monkeypatch.setattr(projector, "_kernel_name", lambda *_: "any")
    general = projector.cast(volume, view)
    assert ((along > 0) == (general > 0)).all()
    assert_allclose(along, general, rtol=0, atol=1e-5 * general.max())


def kernel_name(volume: Volume, view: View) -> str:
    poses, cone, _ = projector._poses(volume, [view])
    return projector._kernel_name(poses[0], cone[0], volume.data.shape, view.shape)


def upright_view(random: np.random.Generator, volume: Volume, beam: Beam) -> View:
    """A random view whose rows follow the last axis: a tilted detector, a source near or far, few or many rows."""
    centre, size = middle(volume), np.linalg.norm(np.ptp(volume.corners(), axis=0))
    axes = volume.affine[:3, :3] / volume.spacing_mm
    angle = random.uniform(0, 2 * np.pi)
    direction = axes @ [np.cos(angle), np.sin(angle), random.uniform(-0.3, 0.3)]
    direction /= np.linalg.norm(direction)
    column_step = axes @ [-np.sin(angle) + random.uniform(-0.2, 0.2), np.cos(angle), random.uniform(-0.2, 0.2)]
    row_step = axes[:, 2] * random.choice([-1, 1])
    shape = (int(random.integers(1, 90)), int(random.integers(1, 60)))
    row_step, column_step = row_step * 1.6 * size / shape[0] / 2, column_step * 1.6 * size / shape[1] / 2
    middle_pixel = centre + random.uniform(0, 0.6) * size * direction + random.uniform(-0.1, 0.1, 3) * size
    corner = middle_pixel - shape[0] / 2 * row_step - shape[1] / 2 * column_step
    source = centre - direction * size * random.uniform(0.55, 4)
    if "slot" in beam:  # At row 0; the middle row's is beside the volume's middle.
        source -= shape[0] / 2 * row_step
    return View("upright", shape, corner, row_step, column_step, direction, source if beam else None, "slot" in beam)


@BEAMS
@pytest.mark.parametrize("seed", range(8))
def test_upright_views_equal_the_general_kernel(seed: int, beam: Beam, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(1, 40, 3)) if seed % 4 else (40, 1, 2)
    turn = Rotation.random(random_state=seed) if seed % 2 else None
    volume = Volume(random.random(shape, np.float32), grid(tuple(random.uniform(0.5, 3, 3)), turn))
    views = [upright_view(random, volume, beam) for _ in range(12)]
    # Rays between two voxels, or far apart.
    rays = beam or {"cone": True}
    views += [named_view("ap", middle(volume), (50, 8), pixel_mm, **rays) for pixel_mm in (0.03, 0.3, 3.0)]
    views = [view for view in views if kernel_name(volume, view) == "upright" and chords(volume, view).any()]
    assert len(views) > 2
    upright = [projector.cast(volume, view) for view in views]
    monkeypatch.setattr(projector, "_kernel_name", lambda *_: "any")
    for view, picture in zip(views, upright, strict=True):
        general = projector.cast(volume, view)
        assert_allclose(picture, general, rtol=0, atol=2e-5 * general.max())


@BEAMS
@pytest.mark.parametrize("name", VIEW_NAMES)
def test_named_views_of_an_unturned_volume_need_no_general_kernel(name: str, beam: Beam) -> None:
    volume = Volume(np.ones((20, 20, 20), np.float32), grid((1.0, 1.5, 2.0)))
    view = covering_view(name, volume.corners(), 0.5, **beam)
    assert kernel_name(volume, view) == ("upright" if beam else "along")
    turned = covering_view(name, volume.corners(), 0.5, **beam, turn_deg=20)
    assert kernel_name(volume, turned) == "upright"
    oblique = Volume(volume.data, grid((1.0, 1.5, 2.0), Rotation.from_euler("xyz", [3, 2, 4], degrees=True)))
    assert kernel_name(oblique, view) == "any"


def test_a_batch_is_its_views_one_by_one() -> None:
    volume = Volume(RNG.random((30, 25, 20), np.float32), grid((1.2, 0.9, 2.0)))
    views = []
    for n in range(9):
        turn = (0, 10, 0)[n % 3]
        rays: Beam = [{"cone": True}, {}, {"slot": True}, {}][n % 4]
        view = named_view(VIEW_NAMES[n % 4], middle(volume) + n, (70, 50), 0.8, **rays, turn_deg=turn)
        views.append(replace(view, row_step=view.row_step + 0.1 * view.column_step) if n > 6 else view)
    assert {kernel_name(volume, view) for view in views} == {"along", "upright", "any"}
    for picture, view in zip(projector.cast_batch(volume, views), views, strict=True):
        assert np.array_equal(picture, projector.cast(volume, view))


def test_a_batch_says_which_view_is_wrong() -> None:
    volume = Volume(np.ones((8, 8, 8), np.float32), np.eye(4))
    good = covering_view("ap", volume.corners(), 0.5)
    with pytest.raises(InputError, match="'left_lateral' misses the volume"):
        projector.cast_batch(volume, [good, named_view("lateral", middle(volume) + 500, good.shape, 0.5, cone=True)])
    with pytest.raises(InputError, match="views of one shape"):
        projector.cast_batch(volume, [good, named_view("pa", middle(volume), (3, 4), 0.5)])
    with pytest.raises(InputError, match="views of one shape.*none"):
        projector.cast_batch(volume, [])


@BEAMS
@pytest.mark.parametrize(("name", "dtype"), [("ap", np.int16), ("left_lateral", np.uint64), ("pa", bool)])
def test_parts_add_up_to_the_whole(name: str, dtype: type, beam: Beam) -> None:
    volume = Volume(RNG.random((25, 20, 30), np.float32), grid((1.2, 0.9, 2.0)))
    labels = np.zeros(volume.data.shape, dtype)
    labels[5:12, 3:9, 4:20], labels[14:20, 8:15, 10:30], labels[10:16, 2:18, 21:25] = 8, 300, 20
    view = covering_view(name, volume.corners(), 0.7, **beam, turn_deg=5)
    pictures = projector.cast_parts(volume, Volume(labels, volume.affine), view)
    assert list(pictures) == ([0, 1] if dtype is bool else [0, 8, 20, 300])
    whole = projector.cast(volume, view)
    assert_allclose(sum(pictures.values()), whole, rtol=0, atol=1e-5 * whole.max())
    for number, picture in pictures.items():
        alone = projector.cast(Volume(np.where(labels == number, volume.data, 0), volume.affine), view)
        assert_allclose(picture, alone, rtol=0, atol=1e-5 * whole.max())


def test_parts_that_do_not_fit() -> None:
    volume = Volume(np.ones((6, 6, 9), np.float32), np.eye(4))
    view = covering_view("ap", volume.corners(), 0.5)
    with pytest.raises(InputError, match="lie on different grids"):
        projector.cast_parts(volume, Volume(np.ones((6, 6, 8), np.uint8), np.eye(4)), view)
    with pytest.raises(InputError, match="parts are float32 numbers"):
        projector.cast_parts(volume, volume, view)
    for low, high, message in ((-1, 3, "from -1 to 3"), (0, 323, "324 different parts"), (0, 70000, "from 0 to 70000")):
        numbers = np.linspace(low, high, 324).astype(int).reshape(6, 6, 9)
        with pytest.raises(InputError, match=message):
            projector.cast_parts(volume, Volume(numbers, np.eye(4)), view)
    with pytest.raises(InputError, match="misses the volume"):
        mask = Volume(np.ones((6, 6, 9), np.uint8), np.eye(4))
        projector.cast_parts(volume, mask, named_view("ap", np.full(3, 900.0), (4, 4), 1.0))


@BEAMS
@pytest.mark.parametrize("name", ["ap", "left_lateral"])
def test_the_storage_order_of_the_array_does_not_matter(name: str, beam: Beam) -> None:
    volume = Volume(np.zeros((20, 22, 24), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    volume.data[16, 11, 12], volume.data[10, 18, 12], volume.data[10, 11, 20] = 1, 3, 9  # right, front, head
    view = named_view(name, volume.world(np.array([10, 11, 12])), (41, 41), 2.0, **beam)
    expected = projector.cast(volume, view)
    for order, signs in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
        affine = volume.affine[:, [*order, 3]].copy()
        affine[:, 3] += sum(affine[:, i] * (volume.data.shape[order[i]] - 1) for i in range(3) if signs[i] < 0)
        affine[:, :3] *= signs
        stored = Volume(volume.data.transpose(order)[tuple(slice(None, None, sign) for sign in signs)], affine)
        assert_allclose(projector.cast(stored, view), expected, rtol=0, atol=1e-4)


def test_a_mask_gives_its_thickness_in_any_type() -> None:
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[5:15, 4:12, 3:17] = 1
    affine = np.diag([1.0, 2.0, 1.0, 1.0])
    view = named_view("ap", np.array([9.5, 19, 9.5]), (20, 20), 1.0)
    thickness = projector.cast(Volume(mask.astype(np.float32), affine), view)
    assert thickness[10, 10] == 16 and thickness.dtype == np.float32
    for other in (mask, mask.astype(bool), np.asfortranarray(mask, float)):
        assert np.array_equal(projector.cast(Volume(other, affine), view), thickness)


def test_equal_calls_give_equal_pictures_from_several_threads_too() -> None:
    volume = Volume(RNG.random((40, 40, 40), np.float32), np.eye(4))
    views = [covering_view(name, volume.corners(), 0.5, cone=True) for name in VIEW_NAMES]
    alone = [projector.cast(volume, view) for view in views]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda view: projector.cast(volume, view), views * 4))
    assert all(np.array_equal(a, b) for a, b in zip(alone * 4, together, strict=True))


def test_attenuation_is_water_s_at_0_hu_and_nothing_in_air() -> None:
    hu = np.array([-2000, -1000, 0, 1000], np.int16)
    per_mm = projector.attenuation(hu, 60)
    assert per_mm == pytest.approx([0, 0, 0.02059, 0.04118], rel=1e-6)
    assert per_mm.dtype == np.float32 and hu.tolist() == [-2000, -1000, 0, 1000]
    water = np.zeros(1, np.float32)
    assert projector.attenuation(water)[0] == pytest.approx(0.0193, rel=5e-3)  # XCOM: 0.1929 per cm at 70 keV
    assert not water.any()
    for energy in (39.0, 151.0, float("nan")):
        with pytest.raises(InputError, match="outside 40 to 150 keV"):
            projector.attenuation(np.zeros(1), energy)


@pytest.mark.parametrize(
    ("takes_s", "viewer", "stream"), [(0.3, "none", "err"), (0.3, "k3d", "out"), (0.0, "none", "")]
)
def test_a_first_call_says_that_it_compiles_if_that_takes_long(
    takes_s: float, viewer: str, stream: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def compile_slowly(kinds: tuple) -> None:
        time.sleep(takes_s)
        kernel.overloads[kinds] = None

    monkeypatch.setenv("TRANSVERT_VIEWER", viewer)  # An interactive notebook shows stderr in pink.
    notice = progress.notice
    monkeypatch.setattr(progress, "notice", lambda text, after_s: notice(text, after_s / 20))
    kernel = Mock(overloads={}, compile=compile_slowly, return_value=2)
    assert projector._run(kernel, np.zeros(3), 1.0) == 2
    shown = capsys.readouterr()
    assert [name for name in ("out", "err") if "Compiling a ray kernel" in getattr(shown, name)] == [stream] * bool(
        stream
    )
    assert projector._run(kernel, np.zeros(3), 2.0) == 2
    assert len(kernel.overloads) == 1 and not capsys.readouterr().err
