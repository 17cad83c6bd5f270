"""Surfaces that nobody has oriented: found, whichever way their file's axes point, or refused in one sentence."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import numpy as np
import pytest
import trimesh
from conftest import axes_mm, inside_vertebra
from numpy.testing import assert_allclose
from scipy import ndimage
from scipy.spatial.transform import Rotation

from transvert.data import orient
from transvert.data.orient import Surface
from transvert.imaging import mesh
from transvert.imaging.volume import Volume, cube_affine
from transvert.io import InputError
from transvert.phantom.column import find_pose

T12, L1, L2, L3, SACRUM = 19, 20, 21, 22, 26
LETTERS = {"r": (1, 0, 0), "l": (-1, 0, 0), "a": (0, 1, 0), "p": (0, -1, 0), "s": (0, 0, 1), "i": (0, 0, -1)}
FRAMES = [
    "".join(letters)
    for letters in itertools.product("rlapsi", repeat=3)
    if np.linalg.det([LETTERS[letter] for letter in letters]) > 0.5
]
"""The 24 right-handed ones."""


def bone(turn: np.ndarray | None = None, drop_mm: float = 0.0) -> Volume:
    """The patient's kind of vertebra at the origin, `drop_mm` lower, seen in coordinates that `turn` takes RAS to."""
    affine = cube_affine(np.zeros(3), 100, 1.0)
    made = inside_vertebra(*axes_mm(affine, (100,) * 3), (0.0, 0.0, 0.0)).astype(np.uint8)
    motion = np.eye(4)
    motion[:3, :3] = np.eye(3) if turn is None else turn
    motion[:3, 3] = motion[:3, :3] @ np.array([0, 0, -drop_mm])
    return Volume(made, motion @ affine)


def to_file(frame: str) -> np.ndarray:
    """(3, 3) RAS to the coordinates of a file whose axes point where the letters say."""
    return np.array([LETTERS[letter] for letter in frame], float)


def write(folder: Path, frame: str, scale: float, levels_: tuple[int, ...]) -> dict[int, Path]:
    """Surfaces of levels 34 mm apart, from L1 at the origin down, in a file's frame and scale."""
    paths = {}
    for step, level in enumerate(levels_):
        ras = mesh.extract_surface(bone().data, bone().affine)
        ras.vertices = (ras.vertices - [0, 0, 34.0 * step]) @ to_file(frame).T * scale
        if ras.volume < 0:
            ras.invert()
        paths[level] = mesh.write_surface(folder / f"{frame}-{level}.stl", ras)
    return paths


@functools.cache
def solid() -> trimesh.Trimesh:
    """The surface of `bone`, which is longer on the right, RAS mm; not to be changed."""
    return mesh.extract_surface(bone().data, bone().affine)


def column(path: Path, frame: str, drops: tuple[float, ...] = (68.0, 0.0, 34.0), discs: float = 9.0) -> Path:
    """One file in metres with a vertebra at each drop and a ball behind each, a disc to the reader."""
    parts = []
    for drop in drops:
        parts += [solid().copy(), trimesh.creation.icosphere(radius=discs).apply_translation([0, 60, 0])]
        for part in parts[-2:]:
            part.apply_translation([0, 0, -drop])
    whole = mesh.join_surfaces(parts)
    whole.vertices = whole.vertices @ to_file(frame).T / 1000
    if whole.volume < 0:
        whole.invert()
    return mesh.write_surface(path, whole)


@pytest.mark.parametrize("frame", FRAMES)
def test_every_right_handed_frame_is_found_from_one_vertebra(frame: str) -> None:
    assert orient.find_frame({L1: bone(to_file(frame))}) == frame


@pytest.mark.parametrize("frame", ["lps", "als", "sra", "rsp"])
def test_every_frame_is_found_from_a_column(frame: str) -> None:
    assert orient.find_frame({L1 + n: bone(to_file(frame), 34.0 * n) for n in range(3)}) == frame


def test_a_vertebra_may_lean_as_far_as_vertebrae_do() -> None:
    for degrees in (-35, -15, 15, 35):
        for axis in "xz":
            lean = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
            assert orient.find_frame({L1: bone(to_file("lps") @ lean)}) == "lps"


def test_a_mirrored_vertebra_can_not_be_told() -> None:
    """Stated so in the module: left and right of a mirrored file stay exchanged."""
    assert orient.find_frame({L1: bone(np.diag([-1.0, 1.0, 1.0]))}) == "ras"


def test_a_pose_shows_canal_front_and_upper_side() -> None:
    pose = find_pose(bone())
    assert pose is not None
    assert abs(pose.canal[2]) > 0.98 and pose.front[1] > 0.98
    assert pose.up_mm * np.sign(pose.canal[2]) > orient.LEAST_UP_MM


def test_an_anisotropic_grid_changes_nothing() -> None:
    affine = np.diag([0.8, 0.8, 2.5, 1.0])
    affine[:3, 3] = (-50, -50, -50)
    data = inside_vertebra(*axes_mm(affine, (125, 125, 40)), (0.0, 0.0, 0.0)).astype(np.uint8)
    assert orient.find_frame({L1: Volume(data, affine)}) == "ras"


@pytest.mark.parametrize(("unit", "scale"), [("mm", 1.0), ("cm", 0.1), ("m", 0.001)])
def test_files_without_unit_and_frame_come_to_ras_mm(tmp_path: Path, unit: str, scale: float) -> None:
    paths = write(tmp_path, "lps", scale, (L1, L2))
    placed = orient.read_surfaces({level: Surface(path) for level, path in paths.items()})
    stated = orient.read_surfaces({level: Surface(path, unit, "LPS") for level, path in paths.items()})
    for level, drop in ((L1, 0.0), (L2, 34.0)):
        for surface in (placed[level], stated[level]):
            assert_allclose(surface.bounds, [[-28, -34, -14 - drop], [42, 29, 12 - drop]], atol=1.0)
            assert surface.volume > 0


@pytest.mark.parametrize(
    ("frame", "stated"),
    [("asr", "ASR"), ("asr", "unstated"), ("rpi", "RPI"), ("rpi", "unstated"), ("las", "LAS"), ("sal", "SAL")],
)
def test_several_vertebrae_of_one_file_are_its_pieces(tmp_path: Path, frame: str, stated: str) -> None:
    """Whichever way the file's axes point, left-handed too, from the head down; the long process stays on the right."""
    file = Surface(column(tmp_path / "column.stl", frame), "m", stated)
    placed = orient.read_surfaces(dict.fromkeys((L1, L2, L3), file))
    assert list(placed) == [L1, L2, L3]
    for level, drop in ((L1, 0.0), (L2, 34.0), (L3, 68.0)):
        assert_allclose(placed[level].bounds, [[-28, -34, -14 - drop], [42, 29, 12 - drop]], atol=1.0)
        assert placed[level].volume == pytest.approx(solid().volume, rel=1e-3)


def test_pieces_stand_beside_files_of_one_vertebra_and_beside_their_sacrum(tmp_path: Path) -> None:
    pair = Surface(column(tmp_path / "pair.stl", "als", (0.0, 34.0)), "unstated", "ALS")
    last = Surface(column(tmp_path / "last.stl", "als", (68.0, 102.0)))
    placed = orient.read_surfaces({SACRUM: last, L2: pair, L1: pair, L3: last})
    assert list(placed) == [SACRUM, L2, L1, L3]
    for level, drop in ((L1, 0.0), (L2, 34.0), (L3, 68.0), (SACRUM, 102.0)):
        assert_allclose(placed[level].bounds[:, 2], [-14 - drop, 12 - drop], atol=1.0)


def test_pieces_whose_order_can_not_be_told_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path, frame: str, *levels_: int) -> None:
        orient.read_surfaces(dict.fromkeys(levels_, Surface(path, "m", frame)))

    with pytest.raises(
        InputError, match=r"^discs\.stl has another closed piece about as large as the smallest of its 2 v"
    ):
        read(column(tmp_path / "discs.stl", "lps", (0.0, 34.0), discs=24.0), "LPS", L1, L2)
    pair = column(tmp_path / "pair.stl", "lps", (0.0, 34.0))
    with pytest.raises(
        InputError, match="is stated in the frame RPI, but there its vertebrae stand on their heads; corr"
    ):
        read(pair, "RPI", L1, L2)
    with pytest.raises(InputError, match="The 2 vertebrae of pair.stl don't stand one above the other, so their order"):
        read(pair, "SRA", L1, L2)
    with pytest.raises(
        InputError, match=r"pair\.stl is stated in the frame RAS, but there L1 does not look ahead; corre"
    ):
        read(pair, "RAS", L1, L2)
    with pytest.raises(InputError, match="The 2 vertebrae of near.stl don't stand one above the other"):
        read(column(tmp_path / "near.stl", "lps", (0.0, 4.3)), "LPS", L1, L2)
    monkeypatch.setattr(orient, "LEAST_UP_MM", 100.0)
    with pytest.raises(
        InputError, match=r"The vertebrae of pair\.stl don't show which side of them is up; state the fr"
    ):
        read(pair, "unstated", L1, L2)


def test_a_sacrum_follows_its_vertebrae(tmp_path: Path) -> None:
    paths = write(tmp_path, "als", 0.001, (L1, L2, SACRUM))
    placed = orient.read_surfaces({level: Surface(path) for level, path in paths.items()})
    assert_allclose(placed[SACRUM].bounds[:, 2], [-14 - 68, 12 - 68], atol=1.0)
    with pytest.raises(InputError, match="A surface without a unit or a frame needs a vertebra beside it; state both"):
        orient.read_surfaces({SACRUM: Surface(paths[SACRUM], "m")})
    assert set(orient.read_surfaces({SACRUM: Surface(paths[SACRUM], "m", "als")})) == {SACRUM}


def test_stated_units_and_frames_that_the_shape_contradicts_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "lps", 0.001, (L1,))[L1]
    with pytest.raises(InputError, match=r"lps-20\.stl is stated in mm, but only in m is it as large as L1; correct"):
        orient.read_surfaces({L1: Surface(path, "mm", "LPS")})
    for frame in ("RAS", "ALS", "LSA"):
        with pytest.raises(InputError, match=rf"frame {frame}, but there L1 does not look ahead; correct the frame"):
            orient.read_surfaces({L1: Surface(path, "m", frame)})
    # Left-handed, as some programs write it, is no contradiction.
    orient.read_surfaces({L1: Surface(path, "m", "RPS")})


def test_sizes_of_no_vertebra_are_refused() -> None:
    assert orient.find_unit(0.09, L1, "x") == "m" and orient.find_unit(9.0, L1, "x") == "cm"
    with pytest.raises(InputError, match=r"big\.stl is 300 long, which is no L1 in mm, cm, m \(45 to 145 mm\); check"):
        orient.find_unit(300.0, L1, "big.stl")
    with pytest.raises(InputError, match="is 3.5 long"):  # inches
        orient.find_unit(3.5, L1, "inches.stl")


def test_shapes_that_do_not_tell_are_refused() -> None:
    affine = cube_affine(np.zeros(3), 100, 1.0)
    x, y, z = axes_mm(affine, (100,) * 3)
    ball = Volume((x**2 + y**2 + z**2 < 30**2).astype(np.uint8), affine)
    with pytest.raises(InputError, match="No canal with a body before it goes through the surface of L1"):
        orient.find_frame({L1: ball})
    ring = Volume((((x**2 + y**2) ** 0.5 - 25) ** 2 + z**2 < 8**2).astype(np.uint8), affine)
    with pytest.raises(InputError, match="No canal with a body before it goes through the surface of L2"):
        orient.find_frame({L1: bone(), L2: ring})
    even = bone()
    even.data[:] |= even.data[:, :, ::-1]
    with pytest.raises(InputError, match="The surface of L1 doesn't show which side of it is up; state the frame"):
        orient.find_frame({L1: even})
    askew = Rotation.from_euler("x", 45, degrees=True).as_matrix()
    with pytest.raises(InputError, match="L1 stands askew to the axes of its file by more than 40 degrees"):
        orient.find_frame({L1: bone(askew)})
    # Beside a neighbour the even one is no riddle: the order of their names tells.
    assert orient.find_frame({L1: even, L2: bone(drop_mm=34.0)}) == "ras"


def test_levels_out_of_order_are_refused() -> None:
    stack = [bone(drop_mm=34.0 * n) for n in range(3)]
    with pytest.raises(InputError, match="The surfaces of L1 to L3 stand on their heads in the order of their names"):
        orient.find_frame(dict(zip((L3, L2, L1), stack, strict=True)))
    with pytest.raises(InputError, match="The surfaces of L1 to L3 don't stand one above the other in their order"):
        orient.find_frame(dict(zip((L1, L3, L2), stack, strict=True)))
    with pytest.raises(InputError, match="The surfaces of T12 to L1 don't stand one above the other"):
        orient.find_frame({T12: bone(), L1: bone()})


def test_a_canal_closed_by_a_voxel_s_noise_is_still_found() -> None:
    """A thin web across the canal, such as a shrunk wrapping leaves, makes the shadow's hole vanish: refused, not guessed."""
    filled = bone()
    filled.data[:] = ndimage.binary_fill_holes(filled.data.any(2))[:, :, None] & (filled.data.any((0, 1)))
    with pytest.raises(InputError, match="No canal"):
        orient.find_frame({L1: filled})
