"""Radiographs with gradients: the same pictures as `drr.cast`, and gradients that finite differences agree with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import ndimage
from scipy.spatial.transform import Rotation

from transvert.drr import differentiable, projector
from transvert.drr.geometry import VIEW_NAMES, View, covering_view, named_view
from transvert.imaging.volume import Volume
from transvert.io import InputError

Beam = dict[str, bool]
BEAMS = pytest.mark.parametrize("beam", [{}, {"cone": True}, {"slot": True}], ids=["parallel", "cone", "slot"])
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="There is no CUDA device to compare with.")


def grid(spacing: tuple[float, float, float], angles: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    affine[:3, 3] = [-40, 25, 300]
    return affine


def phantom(shape: tuple[int, int, int], affine: np.ndarray, edge: float = 1.5) -> Volume:
    """Attenuation per mm up to the faces: smooth texture, a box and a sphere, their edges `edge` voxels soft (sigma)."""
    texture = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(shape), 4)
    x = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"), axis=-1)
    bone = 0.03 * (np.abs(x - [0.2, -0.1, 0.2]) < [0.3, 0.35, 0.3]).all(-1)
    bone += 0.02 * (np.linalg.norm(x + [0.3, 0.2, 0.2], axis=-1) < 0.35)
    data = 0.02 + 0.003 * texture / texture.std() + ndimage.gaussian_filter(bone, edge)
    return Volume(data.astype(np.float32), affine)


def oblique_view(volume: Volume, beam: Beam) -> View:
    """A detector that follows none of the world's axes."""
    turn = Rotation.from_euler("xyz", [20, -15, 35], degrees=True).as_matrix()
    column_step, direction, row_step = turn @ [-1.3, 0, 0], turn @ [0, -1.0, 0], turn @ [0, 0, -1.1]
    middle = volume.corners().mean(axis=0)
    corner = middle + 60 * direction - 45 * column_step - 55 * row_step
    source = middle - 700 * direction - (55 * row_step if "slot" in beam else 0) if beam else None
    return View("oblique", (111, 91), corner, row_step, column_step, direction, source, "slot" in beam)


def cast(volume: Volume, view: View, **options: object) -> np.ndarray:
    return differentiable.cast(torch.from_numpy(volume.data), volume.affine, view, **options).numpy()  # type: ignore[arg-type]


def relative_rmse(picture: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((picture - expected.astype(float)) ** 2) / np.mean(expected.astype(float) ** 2)))


@BEAMS
@pytest.mark.parametrize("name", VIEW_NAMES)
def test_both_engines_give_the_same_picture_in_each_view(name: str, beam: Beam) -> None:
    volume = phantom((80, 72, 64), grid((1.0, 1.1, 1.5)), edge=0)
    view = covering_view(name, volume.corners(), 1.3, **beam)
    picture = cast(volume, view)
    assert picture.dtype == np.float32 and picture.shape == view.shape
    assert relative_rmse(picture, projector.cast(volume, view)) < 2e-6


@BEAMS
@pytest.mark.parametrize("angles", [(0, 0, 0), (10, -8, 20), (25, -40, 70)])
def test_both_engines_give_the_same_picture_of_oblique_grids_and_in_oblique_views(
    angles: tuple[int, int, int], beam: Beam
) -> None:
    volume = phantom((64, 60, 48), grid((0.8, 1.0, 1.6), angles), edge=0)
    views = [covering_view("ap", volume.corners(), 2.0, **beam, turn_deg=turn) for turn in (8, 37)]
    for view in (*views, oblique_view(volume, beam)):
        assert relative_rmse(cast(volume, view), projector.cast(volume, view)) < 2e-6


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 5), (6, 1, 5), (6, 7, 1)])
def test_axes_of_a_single_voxel(shape: tuple[int, int, int]) -> None:
    volume = Volume(np.ones(shape, np.float32), grid((2.0, 3.0, 4.0)))
    for name in VIEW_NAMES:
        view = covering_view(name, volume.corners(), 0.37, cone=True)
        assert_allclose(cast(volume, view), projector.cast(volume, view), rtol=0, atol=2e-5)


def test_the_rim_counts_up_to_the_faces_and_rays_along_a_face_too() -> None:
    volume = Volume(np.ones((4, 6, 5), np.float32), np.diag([2.0, 3.0, 2.0, 1.0]))
    # Across x the faces are at -1 and 7: pixels lie at 7.5, 7, 6.5 ... on the rim, on the face itself, and beyond.
    view = named_view("ap", np.array([3.0, 0, 4]), (1, 22), 0.5)
    columns = 3 + (10.5 - np.arange(22)) * 0.5 - 0.25
    view = View(view.name, view.shape, view.corner - [0.25, 0, 0], view.row_step, view.column_step, view.direction)
    expected = np.where((columns >= -1) & (columns <= 7), 18.0, 0.0)
    assert {-1, 7} < set(columns)
    assert cast(volume, view)[0] == pytest.approx(expected, rel=1e-6)
    assert projector.cast(volume, view)[0] == pytest.approx(expected, rel=1e-6)


def test_a_pose_moves_the_volume_as_its_affine_would() -> None:
    volume = phantom((40, 36, 30), grid((1.0, 1.1, 1.5), (5, 10, -5)), edge=1)
    view = covering_view("ap", volume.corners(), 1.5, cone=True)
    away = [0.0, 0, 0, 0, 0, 5000]  # The rays miss one volume, not the others.
    parameters = torch.tensor([[[0.0] * 6], [[0.1, -0.05, 0.2, 4, -3, 6]], [away]], dtype=torch.float64)
    poses = differentiable.rigid(parameters, volume.corners().mean(axis=0))
    pictures = cast(volume, view, pose=poses)
    assert pictures.shape == (3, 1, *view.shape) and not pictures[2].any()
    for picture, pose in zip(pictures[:2, 0], poses[:2, 0], strict=True):
        moved = Volume(volume.data, pose.numpy() @ volume.affine)
        assert_allclose(picture, cast(volume, view, pose=pose), rtol=0, atol=2e-6 * pictures.max())
        assert_allclose(picture, cast(moved, view), rtol=0, atol=2e-6 * pictures.max())
        assert relative_rmse(picture, projector.cast(moved, view)) < 2e-4
    assert relative_rmse(pictures[1, 0], pictures[0, 0]) > 0.1


@BEAMS
def test_gradients_equal_finite_differences(beam: Beam) -> None:
    random = np.random.default_rng(0)
    data = torch.from_numpy(random.random((4, 5, 3))).requires_grad_()
    affine = grid((1.0, 0.8, 1.7), (10, 20, 30))
    corners = Volume(data.detach().numpy(), affine).corners()
    view = covering_view("ap", corners, 1.7, **beam, turn_deg=5)
    parameters = torch.tensor([0.02, -0.03, 0.05, 0.3, -0.2, 0.4], dtype=torch.float64, requires_grad=True)

    def picture(data: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        return differentiable.cast(data, affine, view, pose=differentiable.rigid(parameters, corners.mean(axis=0)))

    assert picture(data, parameters).dtype == torch.float64
    assert torch.autograd.gradcheck(picture, (data, parameters), eps=1e-7, atol=1e-5, rtol=1e-4)


def test_gradients_of_a_sum_are_the_voxels_weights() -> None:
    spacing = (1.0, 1.5, 2.0)
    data = torch.rand(9, 11, 7, requires_grad=True)
    affine = grid(spacing, (10, 20, -30))
    corners = Volume(data.detach().numpy(), affine).corners()
    # Parallel rays that lie close read a voxel with its volume: an impulse integrates to it.
    view = covering_view("ap", corners, 0.1)
    picture = differentiable.cast(data, affine, view)
    picture.sum().backward()
    assert data.grad is not None and data.grad.dtype == torch.float32
    weights = data.grad.numpy() * 0.1 * 0.1
    assert_allclose(weights[1:-1, 1:-1, 1:-1], np.prod(spacing), rtol=2e-3)
    assert weights.sum() == pytest.approx(np.prod(spacing) * weights.size, rel=1e-3)
    assert float((data.grad * data.detach()).sum()) == pytest.approx(float(picture.detach().sum()), rel=1e-5)


@pytest.mark.parametrize("variable", ["volume", "pose"])
def test_rays_in_parts_give_the_same_picture_and_gradients_with_little_memory(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = phantom((20, 24, 18), grid((1.0, 1.1, 1.5), (5, 10, -5)), edge=1)
    view = covering_view("ap", volume.corners(), 1.0, cone=True)
    weights = torch.rand(2, *view.shape)

    def work() -> tuple[torch.Tensor, torch.Tensor, int]:
        """Picture, gradient, and how many numbers are kept between the two passes."""
        kept = []
        data = torch.from_numpy(volume.data.copy()).requires_grad_(variable == "volume")
        parameters = torch.full((2, 6), 0.01, requires_grad=variable == "pose")
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            pictures = differentiable.cast(
                data, volume.affine, view, pose=differentiable.rigid(parameters, np.zeros(3))
            )
        (pictures * weights).sum().backward()
        gradient = data.grad if variable == "volume" else parameters.grad
        assert gradient is not None
        return pictures.detach(), gradient, sum(kept)

    picture, gradient, kept = work()
    monkeypatch.setattr(differentiable, "_AT_A_TIME", {"cpu": 3 * 48 * view.shape[1]})
    picture_in_parts, gradient_in_parts, kept_in_parts = work()
    assert_allclose(picture_in_parts, picture, rtol=1e-5)
    assert_allclose(gradient_in_parts, gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()))
    # The volume itself may be kept, a number for each sample may not.
    assert kept_in_parts < 5 * weights.numel() < 48 * weights.numel() < kept


def test_a_pose_is_found_again_in_two_views() -> None:
    volume = phantom((40, 40, 40), grid((1.2, 1.2, 1.2), (5, -5, 10)))
    middle = volume.corners().mean(axis=0)
    true = torch.tensor([0.06, -0.04, 0.08, 4.0, -3.0, 5.0])
    moved = Volume(volume.data, differentiable.rigid(true.double(), middle).numpy() @ volume.affine)
    views = [named_view(name, middle, (36, 36), 2.0, cone=True) for name in ("ap", "lateral")]
    films = torch.from_numpy(projector.cast_batch(moved, views))
    data = torch.from_numpy(volume.data)
    # One unit is 1 mm of shift or some 1 mm of turn at 25 mm from the middle, so that all six weigh alike.
    units = torch.tensor([1 / 25] * 3 + [1.0] * 3)
    found = torch.zeros(6, requires_grad=True)
    search = torch.optim.LBFGS([found], max_iter=25, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        search.zero_grad()
        pose = differentiable.rigid(found * units, middle)
        pictures = [differentiable.cast(data, volume.affine, view, pose=pose) for view in views]
        total = torch.nn.functional.mse_loss(torch.stack(pictures), films)
        total.backward()
        return total

    search.step(loss)
    error = (found.detach() * units - true).abs()
    assert error[:3].rad2deg().max() < 0.05
    assert error[3:].max() < 0.02


def test_rigid_turns_about_the_centre_and_then_shifts() -> None:
    turn, shift, centre = np.array([0.3, -0.5, 0.2]), np.array([3.0, -2, 7]), np.array([10.0, 200, -30])
    parameters = torch.tensor(np.concatenate([turn, shift])).expand(2, 3, 6)
    pose = differentiable.rigid(parameters, centre)
    assert pose.shape == (2, 3, 4, 4) and pose.dtype == torch.float64
    expected = np.eye(4)
    expected[:3, :3] = Rotation.from_rotvec(turn).as_matrix()
    expected[:3, 3] = centre + shift - expected[:3, :3] @ centre
    assert_allclose(pose[1, 2], expected, atol=1e-12)


def test_rigid_is_smooth_where_nothing_moves() -> None:
    still = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    centre = np.array([1.0, 2, 3])
    assert torch.equal(differentiable.rigid(still, centre), torch.eye(4, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda parameters: differentiable.rigid(parameters, centre), (still,))
    assert torch.autograd.gradgradcheck(lambda parameters: differentiable.rigid(parameters, centre), (still,))


@pytest.mark.parametrize("kind", [torch.uint8, torch.float16, torch.float64])
def test_other_types_count_as_their_values(kind: torch.dtype) -> None:
    data = (torch.rand(8, 9, 10) * 4).to(kind)
    view = covering_view("ap", Volume(data.numpy(), np.eye(4)).corners(), 1.0)
    picture = differentiable.cast(data, np.eye(4), view)
    assert picture.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
    assert_allclose(picture, projector.cast(Volume(data.numpy(), np.eye(4)), view), rtol=1e-5)


@needs_cuda
def test_cuda_gives_the_pictures_and_gradients_of_the_cpu() -> None:
    volume = phantom((40, 36, 30), grid((1.0, 1.1, 1.5), (5, 10, -5)), edge=1)
    view = covering_view("ap", volume.corners(), 1.5, cone=True, turn_deg=10)
    weights = torch.rand(view.shape)
    found = []
    for device in ("cpu", "cuda"):
        data = torch.tensor(volume.data, device=device, requires_grad=True)
        parameters = torch.full((6,), 0.01, device=device, requires_grad=True)
        picture = differentiable.cast(data, volume.affine, view, pose=differentiable.rigid(parameters, np.zeros(3)))
        assert picture.device.type == device
        (picture * weights.to(device)).sum().backward()
        assert data.grad is not None and parameters.grad is not None
        found.append([part.detach().cpu() for part in (picture, data.grad, parameters.grad)])
    for cpu, cuda in zip(*found, strict=True):
        assert_allclose(cuda, cpu, rtol=1e-3, atol=1e-3 * float(cpu.abs().max()))


BOX = np.ones((8, 8, 8), np.float32)
IN_A_PLANE = np.array([[1.0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("engine", [projector.cast, cast], ids=["numba", "torch"])
@pytest.mark.parametrize("cone", [False, True])
def test_bad_volumes_and_views_get_one_message_from_both_engines(engine: Callable, cone: bool) -> None:
    good = Volume(BOX, np.eye(4))
    view = covering_view("ap", good.corners(), 0.5, cone=cone)
    for affine in (np.diag([1.0, 0, 1, 1]), IN_A_PLANE, np.full((4, 4), np.nan)):
        with pytest.raises(InputError, match="affine is degenerate"):
            engine(Volume(BOX, affine), view)
    for shape in ((8, 8), (8, 0, 8)):
        with pytest.raises(InputError, match="three axes that are not empty are needed"):
            engine(Volume(np.ones(shape, np.float32), np.eye(4)), view)
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(InputError, match="NaN or infinite voxels"):
            engine(Volume(np.where(np.arange(8) == 4, value, BOX).astype(np.float32), np.eye(4)), view)
    with pytest.raises(InputError, match="Every ray of the view 'left_lateral' misses the volume"):
        engine(good, named_view("lateral", np.array([4.0, 4, 500]), (8, 8), 1.0, cone=cone))


def test_a_source_within_the_volume_or_beyond_it() -> None:
    box = Volume(np.ones((40, 400, 4), np.float32), np.eye(4))
    view = named_view("ap", box.corners().mean(axis=0), (8, 8), 1.0, cone=True, source_to_isocentre_mm=150.0)
    for engine in (projector.cast, cast):
        with pytest.raises(InputError, match="source of the view 'ap' is inside the volume"):
            engine(box, view)
    forward, back = (differentiable.rigid(torch.tensor([0, 0, 0, 0.0, mm, 0]), np.zeros(3)) for mm in (-500, 900))
    assert cast(box, view, pose=forward).min() > 399
    with pytest.raises(InputError, match="misses the volume"):
        cast(box, view, pose=back)


def test_bad_poses_and_devices() -> None:
    box = Volume(BOX, np.eye(4))
    view = covering_view("ap", box.corners(), 0.5)
    with pytest.raises(InputError, match=r"pose has the shape \(6,\); it needs \(..., 4, 4\)"):
        cast(box, view, pose=torch.zeros(6))
    mirror, shear, grown, lost = torch.eye(4).repeat(4, 1, 1)
    mirror[0, 0], shear[0, 1], grown[3, 3], lost[0, 3] = -1, 0.1, 2, torch.nan
    for pose in (mirror, shear, grown, lost, torch.full((4, 4), torch.nan), torch.stack([torch.eye(4), mirror])):
        with pytest.raises(InputError, match="pose is not a rotation and a translation"):
            cast(box, view, pose=pose)
    with pytest.raises(InputError, match="on the device 'meta'"):
        differentiable.cast(torch.ones(8, 8, 8, device="meta"), np.eye(4), view)
