"""Volumes: one canonical order whatever was stored, cubes that read what the world holds, and bad files' sentences."""

from __future__ import annotations

import gzip
import itertools
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import store_as
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.transform import Rotation

from transvert import levels
from transvert.imaging import volume
from transvert.imaging.volume import Volume
from transvert.io import InputError

ORDERS = ["".join(order) for order in itertools.permutations("RAS")]
FLIPPED = ["LAS", "LPI", "PIR", "ILA", "SLP"]


def _ct(shape: tuple[int, ...] = (6, 5, 4)) -> np.ndarray:
    hu = np.full(shape, -1000, np.int16)
    hu[1:4, 1:4, 1:3] = 40
    hu[2, 3, 1] = 900
    return hu


def _affine(angles: tuple[float, ...] = (0, 0, 0)) -> np.ndarray:
    affine = np.diag([0.8, 1.5, 2.5, 1.0])
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = (-11, 7, 300)
    return affine


def _oblique() -> np.ndarray:
    """Turned by 20 degrees about x and 12 about z: still closest to RAS."""
    return _affine((20, 0, 12))


def _save(array: np.ndarray, path: Path, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, _affine() if affine is None else affine), path)
    return path


# Orientation and the affine


@pytest.mark.parametrize("axes", ORDERS + FLIPPED)
@pytest.mark.parametrize("affine", [_affine(), _oblique()], ids=["straight", "oblique"])
def test_any_stored_order_reads_as_one_canonical_volume(axes: str, affine: np.ndarray, tmp_path: Path) -> None:
    path = store_as(Volume(_ct(), affine), axes, tmp_path / "ct.nii")
    assert "".join(nibabel.aff2axcodes(nibabel.load(path).affine)) == axes
    found = volume.read_ct(path)
    assert_array_equal(found.data, _ct())
    assert_allclose(found.affine, affine, atol=1e-5)
    assert found.data.dtype == np.float32
    assert_allclose(found.spacing_mm, [0.8, 1.5, 2.5], atol=1e-5)


def test_world_and_index_are_inverse_on_an_oblique_grid() -> None:
    grid = Volume(np.zeros((6, 5, 4)), _oblique())
    indices = np.random.default_rng(0).uniform(-3, 9, (2, 7, 3))
    assert_allclose(grid.index(grid.world(indices)), indices, atol=1e-12)
    assert_allclose(grid.world([0, 0, 0]), [-11, 7, 300])
    assert_allclose(grid.world(indices), nibabel.affines.apply_affine(_oblique(), indices), atol=1e-12)


def test_corners_lie_half_a_voxel_beyond_the_outer_centres() -> None:
    corners = Volume(np.zeros((6, 5, 4)), _affine()).corners()
    assert_allclose(corners.min(0), [-11 - 0.4, 7 - 0.75, 300 - 1.25])
    assert_allclose(corners.max(0), [-11 + 5.5 * 0.8, 7 + 4.5 * 1.5, 300 + 3.5 * 2.5])


@pytest.mark.parametrize(
    ("signs", "sides"),
    [((-1, 1, 1), "left and right"), ((1, -1, 1), "front and back"), ((1, 1, -1), "head and feet"), ((1, 1, 1), "")],
)
def test_a_sform_and_a_qform_that_exchange_sides_are_refused(
    signs: tuple[int, ...], sides: str, tmp_path: Path
) -> None:
    path, affine = tmp_path / "ct.nii.gz", np.diag([-1.0, -1.0, 2.0, 1.0])
    image = nibabel.Nifti1Image(np.resize(np.array([-1000, 1000], np.int16), (4, 5, 6)), affine)
    image.set_sform(affine, 1)
    image.set_qform(np.diag([*signs, 1.0]) @ affine, 1)
    nibabel.save(image, path)
    if not sides:
        assert volume.read_ct(path).data.shape == (4, 5, 6)
        return
    with pytest.raises(InputError, match=f"sform and a qform that exchange the patient's {sides}; correct one"):
        volume.read_ct(path)


def test_a_pair_of_header_and_image_is_to_be_saved_as_one_file(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Pair(np.zeros((4, 5, 6), np.int16), np.eye(4)), tmp_path / "ct.img")
    with pytest.raises(InputError, match=r"ct.hdr is half of a pair of .hdr and .img; save it as one file"):
        volume.read_ct(tmp_path / "ct.hdr")


# Cubes


@pytest.mark.parametrize("affine", [_affine(), _oblique()], ids=["straight", "oblique"])
def test_a_cube_of_a_linear_ramp_is_the_ramp(affine: np.ndarray) -> None:
    slope, base = np.array([2.0, -3.0, 0.5]), 17.0
    ramp = Volume(np.zeros((30, 20, 16), np.float32), affine)
    index = np.moveaxis(np.indices(ramp.data.shape), 0, -1)
    ramp.data[:] = ramp.world(index) @ slope + base
    centre = ramp.world([15.2, 9.7, 8.1])
    cube = volume.cut_cube(ramp, centre, 6, 0.9, order=1, fill=np.nan)
    where = cube.world(np.moveaxis(np.indices((6, 6, 6)), 0, -1))
    assert_allclose(cube.data, where @ slope + base, atol=2e-3)
    assert_allclose(where.mean((0, 1, 2)), centre, atol=1e-9)
    assert_allclose(cube.affine[:3, :3], 0.9 * np.eye(3))


@pytest.mark.parametrize("voxels_mm", [0.5, 0.7, 0.75, 1.0, 1.2])
def test_a_finer_volume_is_averaged_about_the_cube_s_own_voxels(voxels_mm: float) -> None:
    affine = np.diag([voxels_mm] * 3 + [1.0])
    ramp = Volume(np.broadcast_to((np.arange(80.0) * voxels_mm)[:, None, None], (80,) * 3).astype(np.float32), affine)
    cube = volume.cut_cube(ramp, np.full(3, 40 * voxels_mm), 8, 1.5, order=1, fill=np.nan)
    assert_allclose(cube.data[:, 4, 4], cube.world(np.argwhere(np.ones((8, 1, 1))))[:, 0], atol=1e-3)
    thin = Volume(np.zeros((9, 9, 90), np.float32), np.diag([1.0, 1.0, 0.2, 1.0]))
    thin.data[..., ::2] = 100  # alternating slices: sampling without averaging would give 0 or 100
    assert_allclose(volume.cut_cube(thin, thin.world([4, 4, 45]), 5, 1.0, order=1, fill=0).data, 50, atol=11)


def test_labels_are_never_mixed_and_lie_where_they_were() -> None:
    labels = Volume(np.zeros((40, 30, 20), np.uint8), _oblique())
    labels.data[10:30, 8:22, 5:15] = 20
    labels.data[10:30, 8:22, 10:15] = 24
    centre = labels.world([20, 15, 10])
    cube = volume.cut_cube(labels, centre, 20, 1.5, order=0, fill=0)
    assert set(np.unique(cube.data)) == {0, 20, 24} and cube.data.dtype == np.uint8
    index = np.rint(labels.index(cube.world(np.moveaxis(np.indices(cube.data.shape), 0, -1)))).astype(int)
    inside = ((index >= 0) & (index < labels.data.shape)).all(-1)
    expected = np.where(inside, labels.data[tuple(np.moveaxis(np.where(inside[..., None], index, 0), -1, 0))], 0)
    assert (cube.data == expected).mean() > 0.999


def test_a_cube_at_and_beyond_the_border_is_filled() -> None:
    ones = Volume(np.ones((20, 20, 20), np.float32), np.eye(4))
    half = volume.cut_cube(ones, np.array([0, 9.5, 9.5]), 10, 1.0, order=1, fill=-7)
    assert_array_equal(half.data[:4], -7)
    assert_array_equal(half.data[5:], 1)
    outside = volume.cut_cube(ones, np.array([500.0, 0, 0]), 10, 1.0, order=1, fill=-7)
    assert_array_equal(outside.data, np.full((10, 10, 10), -7))


# Files


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_write_and_read_round_trip(ending: str, tmp_path: Path) -> None:
    ct = Volume(_ct().astype(np.float32), _oblique())
    path = volume.write_volume(ct, tmp_path / f"new/ct{ending}")
    found = volume.read_ct(path)
    assert_array_equal(found.data, ct.data)
    assert_allclose(found.affine, ct.affine, atol=1e-4)
    image = nibabel.load(path)
    assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 1
    assert_allclose(image.get_qform(), ct.affine, atol=1e-4)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_a_trailing_axis_is_dropped_and_values_below_air_become_air(tmp_path: Path) -> None:
    hu = _ct()
    hu[0, 0, 0] = -3024
    assert_array_equal(volume.read_ct(_save(hu[..., None], tmp_path / "a.nii")).data, _ct())


# As what a file stores its values, and its slope and intercept.
STORED = {
    "int16": (np.int16, None, None),
    "int16, shifted": (np.int16, 1, -1024),
    "int16, scaled": (np.int16, 0.3, 11.7),
    "uint8, scaled": (np.uint8, 10.1, -1000),
    "uint16, big-endian": (">u2", 1, -1024),
    "float32": (np.float32, None, None),
    "float64, scaled": (np.float64, 0.7, 3),
}


def _stored(kind: str, path: Path, shape: tuple[int, ...] = (7, 6, 9)) -> Path:
    """HU from -1000 to about 1500, stored one way or another."""
    dtype, slope, inter = STORED[kind]
    a, b = slope or 1, inter or 0
    values = np.random.default_rng(3).integers(-1000, 1500, shape)
    raw = np.rint((values - b) / a) if np.dtype(dtype).kind in "iu" else (values - b) / a
    header = nibabel.Nifti1Header(endianness=">" if str(dtype).startswith(">") else "<")
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_slope_inter(slope, inter)
    header.set_sform(np.diag([-1, -1, 1, 1]) @ _affine(), 1)  # LPS
    header["vox_offset"], header["magic"] = 352, b"n+1"
    # `nibabel.save` would choose a scale of its own.
    content = header.binaryblock + bytes(4) + raw.astype(dtype).tobytes(order="F")
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("at_once", [1, 100, 2**20], ids=["slice by slice", "some slices", "all at once"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", STORED)
def test_stored_values_are_scaled_as_nibabel_scales_them(
    kind: str, ending: str, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume, "_AT_ONCE", at_once)
    path = _stored(kind, tmp_path / f"a{ending}")
    image = nibabel.as_closest_canonical(nibabel.load(path))
    found = volume.read_ct(path)
    assert np.ptp(image.get_fdata()) > 2000
    assert_array_equal(found.data, image.get_fdata().astype(np.float32))
    assert_allclose(found.affine, image.affine, atol=1e-9)
    assert found.data.flags.c_contiguous


# Bytes a voxel of a CT, and of a mask: as it is read (float64 as float32), as uint8, and in between which may be labels.
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("read", "dtype", "bytes_a_voxel"),
    [
        *((volume.read_ct, dtype, 5.2) for dtype in (np.int16, np.float32, np.float64)),
        *((volume.read_mask, *pair) for pair in ((np.uint8, 2.5), (np.int16, 6.5), (np.float64, 10.5))),
    ],
)
def test_reading_keeps_the_values_and_holds_little_more_than_the_volume(
    read: Callable, dtype: type, bytes_a_voxel: float, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.full((96, 96, 96), -1000 if read is volume.read_ct else 0).astype(dtype)
    values[20:40, 20:40, 30:50], values[20:40, 20:40, 10:28] = (900, 40) if read is volume.read_ct else (20, 21)
    path = _save(values, tmp_path / f"a{ending}")
    monkeypatch.setattr(volume, "_AT_ONCE", 2**12)
    assert_array_equal(read(path).data, values)  # The first time imports.
    tracemalloc.start()
    read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < bytes_a_voxel * values.size + 2**20  # The file's buffers.


def _bytes(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def _cut_short(folder: Path, name: str) -> Path:
    noise = np.random.default_rng(0).integers(-1000, 1000, (40, 40, 40)).astype(np.int16)
    return _bytes(folder, name, _save(noise, folder / name).read_bytes()[:-20_000])


def _damaged_inside(folder: Path) -> Path:
    """One bit has changed, in a voxel: as long as before, and nothing but the checksum can tell."""
    packed = bytearray(gzip.compress(_save(_ct((40, 40, 40)), folder / "b.nii").read_bytes(), compresslevel=0))
    packed[-20] ^= 1
    return _bytes(folder, "a.nii.gz", packed)


def _other_format(folder: Path) -> Path:
    nibabel.save(nibabel.MGHImage(_ct().astype(np.float32), _affine()), folder / "a.mgz")
    return folder / "a.mgz"


DAMAGED = r"is cut short or damaged .*; fetch or copy it again"
COLOUR = np.zeros((6, 5, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
BAD_VOLUMES = {
    "absent": (lambda f: f / "a.nii", r"a\.nii does not exist"),
    "folder": (lambda f: f, "does not exist"),
    "text": (
        lambda f: _bytes(f, "a.nii.gz", b"text" * 99),
        r"is not a NIfTI file \(\.nii or \.nii\.gz\)",
    ),
    "not packed": (
        lambda f: _save(_ct(), f / "a.nii").rename(f / "a.nii.gz"),
        r"^a\.nii\.gz may be a NIfTI file under a wrong name: rename it to end in \.nii\.$",
    ),
    "packed": (
        lambda f: _save(_ct(), f / "a.nii.gz").rename(f / "a.nii"),
        r"^a\.nii may be a NIfTI file under a wrong name: rename it to end in \.nii\.gz\.$",
    ),
    "empty": (lambda f: _bytes(f, "a.nii", b""), r"a\.nii is not a NIfTI file"),
    "other format": (_other_format, r"a\.mgz is a MGHImage, not a NIfTI volume"),
    "cut short": (lambda f: _cut_short(f, "a.nii.gz"), rf"a\.nii\.gz {DAMAGED}"),
    "cut short, plain": (lambda f: _cut_short(f, "a.nii"), rf"a\.nii {DAMAGED}"),
    "damaged inside": (_damaged_inside, r"a\.nii\.gz is cut short or damaged \(CRC check failed"),
    "4D": (lambda f: _save(np.zeros((6, 5, 4, 3), np.int16), f / "a.nii"), r"shape \(6, 5, 4, 3\); one 3D volume"),
    "2D": (lambda f: _save(np.zeros((6, 5), np.int16), f / "a.nii"), r"shape \(6, 5\); one 3D volume"),
    "colour": (
        lambda f: _save(COLOUR, f / "a.nii"),
        r"holds colours or complex numbers; a volume of single",
    ),
}


@pytest.mark.parametrize("kind", BAD_VOLUMES)
@pytest.mark.parametrize("read", [volume.read_ct, volume.read_mask], ids=["ct", "mask"])
@pytest.mark.filterwarnings("ignore")
def test_a_file_that_is_no_volume_gets_its_sentence(kind: str, read, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    make, sentence = BAD_VOLUMES[kind]
    with pytest.raises(InputError, match=sentence) as caught:
        read(make(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (np.linspace(0, 1, 120).reshape(6, 5, 4), "values from 0 to 1, which are not Hounsfield units"),
        (_ct() + 1024.0, "not Hounsfield units .*; rescale it to HU"),
        (_ct().clip(-1000, 100) * 1.0, "not Hounsfield units"),
        (_ct() * 100.0, "not Hounsfield units"),
        (np.where(_ct() == -1000, -2000.0, _ct() + 1024), "values from 1064 to 1924, which are not Hounsfield units"),
        (_ct() / 4.0, "values from -250 to 225, which are not Hounsfield units"),
        (np.where(np.arange(5)[:, None] < 1, 0.0, _ct()), "is 0 HU in 20% .*; fill its background with -1000"),
        (np.where(_ct() == 900, np.nan, _ct()), "NaN or infinite voxels; fill them with -1000 HU"),
        (np.where(_ct() == 900, np.inf, _ct()), "NaN or infinite voxels"),
        ([0, 0.5], "values that are not whole numbers: it holds no labels"),
        ([0, np.nan], "values that are not whole numbers"),
        ([0, 0], r"no vertebra by the 'verse' label numbers \(it holds 0\)"),
        ([29, 31], r"no vertebra by the 'verse' label numbers \(it holds 29, 31\)"),
        (range(40, 60), r"no vertebra .* \(it holds 40, 41, 42, 43, 44, 45, 46, 47, \.\.\.\)"),
    ],
)
def test_a_ct_without_hu_or_a_mask_without_vertebrae_gets_its_sentence(
    values: np.ndarray | list[float], sentence: str, tmp_path: Path
) -> None:
    kind, read = ("CT", volume.read_ct) if isinstance(values, np.ndarray) else ("mask", volume.read_mask)
    path = _save(np.resize(np.array(values, np.float32), (6, 5, 4)), tmp_path / "a.nii")
    with pytest.raises(InputError, match=rf"The {kind} a\.nii (has .*)?{sentence}"):
        read(path)


def _column(numbers: list[int], path: Path, speck: int = 0) -> Path:
    """A mask whose labels stand one on the other, the first at the head, and a voxel above them."""
    labels = np.zeros((8, 8, 4 * len(numbers) + 2), np.int16)
    labels[0, 0, -1] = speck
    for step, number in enumerate(reversed(numbers)):
        labels[2:6, 2:6, 4 * step + 1 : 4 * step + 5] = number
    return _save(labels, path)


@pytest.mark.parametrize(
    ("numbers", "convention"),
    [
        (list(range(1, 27)), "verse"),
        ([18, 19, 28, 20, 21, 22, 23, 24, 25, 26], "verse"),  # T13 and L6
        ([28], "verse"),
        ([28, 20], "verse"),
        ([6, 7, 126, 227], "verse"),  # whatever else a mask holds
        ([20, 22, 21, 23, 24], "verse"),  # one slip is left to mask cleaning
        (list(range(50, 25, -1)), "totalsegmentator"),
        ([31], "totalsegmentator"),
        ([30, 29, 1, 2, 3], "totalsegmentator"),  # organs
        (list(range(41, 17, -1)), "totalsegmentator_v1"),
    ],
)
def test_vertebrae_that_stand_head_to_tail_are_read(numbers: list[int], convention: str, tmp_path: Path) -> None:
    known = levels.CONVENTIONS[convention]
    found = volume.read_mask(_column(numbers, tmp_path / "a.nii"), convention)
    assert set(np.unique(found.data)) == {0, *(known[number] for number in numbers if number in known)}


def test_labels_beside_whole_numbers_are_rounded_and_interpolated_ones_refused(tmp_path: Path) -> None:
    labels = np.zeros((20, 20, 20))
    labels[3:17, 3:17, 11:17], labels[3:17, 3:17, 3:9] = 20, 21
    found = volume.read_mask(_save(labels * 0.9999, tmp_path / "near.nii"))
    assert_array_equal(found.data, labels)
    moved = np.rint((labels + np.roll(labels, 1, 1)) / 2)
    with pytest.raises(
        InputError, match=r"The mask moved\.nii has shells of other numbers .*; resample it with nearest"
    ):
        volume.read_mask(_save(moved, tmp_path / "moved.nii"))


def test_a_few_voxels_in_the_wrong_place_are_ignored(tmp_path: Path) -> None:
    assert 24 in volume.read_mask(_column([20, 21], tmp_path / "a.nii", speck=24)).data


@pytest.mark.parametrize(
    ("numbers", "convention", "sentence"),
    [
        (
            [5, 4, 3, 2, 1],
            "verse",
            r"C2 above C1 by the 'verse' label numbers .*; its numbers are wrong or it is upside",
        ),
        ([20, 22, 21], "verse", "L3 above L2 by the 'verse'"),
        ([21, 20], "verse", "L2 above L1 by the 'verse'"),
        ([17, 2, 9, 4, 13, 3], "verse", ".* above .* by the 'verse' .*; its numbers are wrong"),
        ([*range(32, 26, -1), 25], "verse", r"T13 and L6 by the 'verse' .*; its numbers look like 'totalsegmentator'"),
        (
            [*range(32, 26, -1)],
            "verse",
            r"T13 by the 'verse' .*; its numbers look like 'totalsegmentator' or 'totalsegmentator_v1': state",
        ),
        ([31], "verse", r"no vertebra by the 'verse' .*; its numbers look like 'totalsegmentator'"),
        ([20, 21, 22], "totalsegmentator", r"no vertebra by the 'totalsegmentator' .*; its numbers look like 'verse'"),
        ([31, 32, 33], "totalsegmentator", "T12 above T11 by"),
        (list(range(41, 17, -1)), "totalsegmentator", r"T3 and T4 and .* look like 'totalsegmentator_v1'"),
        ([27, 26, 25, 24], "totalsegmentator", r"L5 by the 'totalsegmentator' .* look like 'totalsegmentator_v1'"),
        ([27, 26, 25, 24], "verse", r".* by the 'verse' .* look like 'totalsegmentator_v1'"),
    ],
)
def test_label_numbers_of_another_convention_get_its_name(
    numbers: list[int], convention: str, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=rf"^The mask a\.nii has ({sentence})") as caught:
        volume.read_mask(_column(numbers, tmp_path / "a.nii"), convention)
    assert "\n" not in str(caught.value)


def test_nibabel_logs_its_repairs_again_afterwards(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = _save(_ct(), tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    content[252:256] = bytes([99, 0, 99, 0])
    path.write_bytes(content)
    with pytest.raises(InputError, match="does not state its orientation in the patient"):
        volume.read_ct(path)
    assert not caplog.messages
    nibabel.load(path)
    assert "sform_code 99 not valid; setting to 0" in caplog.messages


def test_different_grids_get_a_sentence_and_rounding_none() -> None:
    ct = Volume(_ct(), _affine())
    near = Volume(_ct(), _affine() + np.array([[0, 0, 0, 1e-3]] * 3 + [[0] * 4]))
    volume.check_same_grid(ct, near)
    shifted = Volume(_ct(), _affine() + np.array([[0, 0, 0, 0.1]] * 3 + [[0] * 4]))
    with pytest.raises(InputError, match=r"The CT \(6 x 5 x 4 voxels of 0\.8 x 1\.5 x 2\.5 mm\) and the mask"):
        volume.check_same_grid(ct, shifted)
    with pytest.raises(InputError, match=r"lie on different grids, 0\.1 mm apart; resample"):
        volume.check_same_grid(ct, shifted)
    with pytest.raises(InputError, match="lie on different grids; resample the mask to the CT's grid"):
        volume.check_same_grid(ct, Volume(_ct((6, 5, 5)), _affine()))
