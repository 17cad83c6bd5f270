"""CT and label volumes: reading into canonical RAS order, cutting cubes, writing.

The array of a volume is `[x, y, z]` in canonical RAS order: the first index grows to the patient's right, the second to
the front, the third to the head (up to the obliquity in the affine). The affine takes voxel indices, whole at voxel
centres, to RAS millimetres.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder
from scipy import ndimage

from transvert import levels
from transvert.io import InputError, atomic_path

AIR_HU = -1000.0
FINEST_MM, LONGEST_MM, FARTHEST_MM = 0.01, 5e3, 1e5  # A plausible voxel, volume, and distance from the origin.

_PACKED = {".nii": 1, ".gz": 1032}  # Largest ratio of content to file size; 1032 is the limit of deflate.
_OPPOSITE = {frozenset("LR"): "left and right", frozenset("AP"): "front and back", frozenset("IS"): "head and feet"}
_AT_ONCE = 2**20  # Voxels that are read and scaled at a time, in whole slices.
_MOST_ZEROS = 0.1  # Share of a CT's voxels at exactly 0 HU. Real CTs have 0.01.
_MOST_TOUCHING = (
    0.04  # Voxels behind another level's, relative to all. Masks have up to 0.004, after interpolation 0.14.
)
_CRUMB = 0.05  # Smaller labels, relative to the largest, are ignored when the order of a mask's labels is checked.


@dataclass(frozen=True)
class Volume:
    """An array and the affine that places it.

    Attributes:
        data: (X, Y, Z), canonical RAS order.
        affine: (4, 4), voxel index to RAS mm.
    """

    data: np.ndarray
    affine: np.ndarray

    @property
    def spacing_mm(self) -> np.ndarray:
        """(3,) voxel size along x, y and z."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def world(self, indices: np.ndarray) -> np.ndarray:
        """(..., 3) voxel indices to RAS mm."""
        return np.asarray(indices, float) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def index(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) RAS mm to voxel indices, not rounded."""
        return (np.asarray(points, float) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    def corners(self) -> np.ndarray:
        """(8, 3) RAS mm, the corners of the volume: half a voxel beyond the outer voxel centres."""
        ends = np.array([[-0.5, n - 0.5] for n in self.data.shape])
        return self.world(np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(8, 3))


def cube_affine(centre: np.ndarray, size: int, spacing_mm: float) -> np.ndarray:
    """(4, 4) affine of an axis-aligned cube with `size` voxels per side around `centre` (3,) RAS mm."""
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = np.asarray(centre, float) - spacing_mm * (size - 1) / 2
    return affine


def cut_cube(volume: Volume, centre: np.ndarray, size: int, spacing_mm: float, *, order: int, fill: float) -> Volume:
    """The cube of `cube_affine`, (size, size, size), resampled from a volume on any grid, with `fill` outside.

    `order` is 1 for values (averaged over the volume's voxels if the cube is coarser) and 0 for labels.
    """
    target = cube_affine(centre, size, spacing_mm)
    mapping = np.linalg.inv(volume.affine) @ target
    # Only the block of voxels that the cube touches is resampled, with a margin of two.
    corners = np.array(list(itertools.product([0.0, size - 1.0], repeat=3))) @ mapping[:3, :3].T + mapping[:3, 3]
    low = np.clip(np.floor(corners.min(0)).astype(int) - 2, 0, volume.data.shape)
    high = np.clip(np.ceil(corners.max(0)).astype(int) + 3, 0, volume.data.shape)
    if (high <= low).any():
        return Volume(np.full((size,) * 3, fill, volume.data.dtype), target)
    block = volume.data[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    start = mapping[:3, 3] - low
    if order == 1:
        block = block.astype(np.float32)
        # A box filter as wide as the cube's voxel avoids aliasing.
        for axis, width in enumerate(np.maximum(spacing_mm / volume.spacing_mm, 1.0)):
            if width > 1.25:
                voxels = max(1, round(width))
                block = ndimage.uniform_filter1d(block, voxels, axis=axis, mode="nearest")
                # An even box is centred half a voxel before the voxel that it is written to.
                start[axis] += 0.0 if voxels % 2 else 0.5
    cut = ndimage.affine_transform(block, mapping[:3, :3], start, (size,) * 3, order=order, mode="constant", cval=fill)
    return Volume(cut.astype(volume.data.dtype), target)


def read_ct(path: str | Path) -> Volume:
    """Reads a CT from NIfTI.

    Returns:
        (X, Y, Z) float32, HU; values below -1024 (outside the scanner's field of view) become air.

    Raises:
        InputError: not a NIfTI file, truncated, not 3D, no usable affine, or values that are not HU.
    """
    volume = _read(path, np.float32)
    lowest, high = float(volume.data.min()), float(volume.data.max())  # NaN if any voxel is.
    if not (math.isfinite(lowest) and math.isfinite(high)):
        raise InputError(f"The CT {Path(path).name} has NaN or infinite voxels; fill them with -1000 HU.")
    zeros, low = 0, math.inf
    for plane in volume.data:  # One by one, to avoid a boolean array of the volume's size.
        outside = plane < -1024
        low = min(low, float(plane.min(initial=math.inf, where=~outside)))
        plane[outside] = AIR_HU
        zeros += plane.size - np.count_nonzero(plane)
    if low > -300 or high < 300 or high > 40000 or lowest < -40000:
        raise InputError(
            f"The CT {Path(path).name} has values from {low:g} to {high:g}, which are not Hounsfield units "
            "(air is near -1000, cortical bone above 300); rescale it to HU."
        )
    if zeros > _MOST_ZEROS * volume.data.size:
        share = zeros / volume.data.size
        raise InputError(
            f"The CT {Path(path).name} is 0 HU in {share:.0%} of its voxels; fill its background with -1000."
        )
    return volume


def read_mask(path: str | Path, convention: str = "verse") -> Volume:
    """Reads a vertebra label mask from NIfTI, whose label numbers follow a key of `levels.CONVENTIONS`.

    Returns:
        (X, Y, Z) uint8, VerSe levels, 0 elsewhere.

    Raises:
        InputError: not a NIfTI file, truncated, not 3D, values that are not whole numbers, no vertebra, or vertebrae that
            are not in order from head to tail, as with the numbers of another convention.
    """
    volume = _read(path, None)
    values = volume.data
    if not all(np.isfinite(plane).all() and np.abs(plane - np.rint(plane)).max() < 1e-2 for plane in values):
        raise InputError(f"The mask {Path(path).name} has values that are not whole numbers: it holds no labels.")
    if values.dtype.kind == "f":
        np.rint(values, out=values)
    labels = levels.to_verse(values, convention)
    # From back to front, since vertebrae touch each other from head to tail.
    pairs = ((plane[1:], plane[:-1]) for plane in labels)
    touching = sum(np.count_nonzero((one != other) & (one > 0) & (other > 0)) for one, other in pairs)
    if touching > _MOST_TOUCHING * np.count_nonzero(labels):
        raise InputError(
            f"The mask {Path(path).name} has shells of other numbers around its vertebrae, as after resampling with "
            "interpolation; resample it with nearest neighbours."
        )
    _check_convention(values, labels, convention, Path(path).name)
    return Volume(labels, volume.affine)


def check_same_grid(ct: Volume, mask: Volume, names: tuple[str, str] = ("CT", "mask")) -> None:
    """Raises InputError unless both volumes have one shape and affines that agree within 0.01 mm at the corners."""
    if ct.data.shape == mask.data.shape and np.abs(ct.corners() - mask.corners()).max() < 1e-2:
        return
    apart = f", {np.abs(ct.corners() - mask.corners()).max():.3g} mm apart" if _grid(ct) == _grid(mask) else ""
    raise InputError(
        f"The {names[0]} ({_grid(ct)}) and the {names[1]} ({_grid(mask)}) lie on different grids{apart}; "
        "resample the mask to the CT's grid with nearest neighbours."
    )


def write_volume(volume: Volume, path: str | Path) -> Path:
    """Writes NIfTI atomically, in mm and scanner coordinates (sform and qform alike)."""
    image = nibabel.Nifti1Image(volume.data, volume.affine)
    image.set_sform(volume.affine, 1)
    image.set_qform(volume.affine, 1)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nibabel.save(image, temporary)
    return Path(path)


def _read(path: str | Path, dtype: type | None) -> Volume:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    try:
        nibabel.imageglobals.logger.disabled = True  # Its repairs are refused below or harmless.
        image = nibabel.load(path)
        if isinstance(image, nibabel.Nifti1Pair) and not isinstance(image, nibabel.Nifti1Image):
            raise InputError(f"{path.name} is half of a pair of .hdr and .img; save it as one file (.nii.gz).")
        if not isinstance(image, nibabel.Nifti1Image):  # Nifti2Image is a subclass
            raise InputError(f"{path.name} is a {type(image).__name__}, not a NIfTI volume.")
        _check_header(image, path)
        return _in_ras(image, dtype)
    except ImageFileError:
        with path.open("rb") as file:
            found = {b"\x1f\x8b": ".nii.gz", b"\x5c\1": ".nii", b"\0\0": ".nii"}.get(file.read(2), path.suffix)
        if not found.endswith(path.suffix):
            raise InputError(
                f"{path.name} may be a NIfTI file under a wrong name: rename it to end in {found}."
            ) from None
        raise InputError(f"{path.name} is not a NIfTI file (.nii or .nii.gz).") from None
    except MemoryError:
        raise InputError(f"{path.name} needs more memory than available; resample or crop it.") from None
    except (ArithmeticError, EOFError, OSError, zlib.error, nibabel.spatialimages.HeaderDataError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise _damaged(path, " ".join(str(error).split())) from None
    finally:
        nibabel.imageglobals.logger.disabled = False


def _in_ras(image: nibabel.Nifti1Image, dtype: type | None) -> Volume:
    """A checked image's values in canonical order, scaled; a `dtype` of None keeps unscaled whole numbers.

    Slices are written directly to their place in the result, so the memory is little more than that of the volume.
    (nibabel's `as_closest_canonical` and `get_fdata` need seven times an int16 CT.)
    """
    # One open file, so that a compressed volume is decompressed once and not from its start for each slab.
    holder: Any = image.file_map["image"]
    with holder.get_prepare_fileobj("rb") as file:
        stored = type(image).from_file_map({"image": FileHolder(fileobj=file)}).dataobj
        if dtype is None:
            whole = stored.dtype.kind in "iu" and (stored.slope, stored.inter) == (1, 0)
            dtype = stored.dtype.newbyteorder("=") if whole else np.float32
        shape = np.array(stored.shape[:3])
        to_ras = nibabel.io_orientation(image.affine)
        data = np.empty(shape[np.argsort(to_ras[:, 0])], dtype)
        from_ras = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), to_ras)
        as_stored = nibabel.apply_orientation(data, from_ras)  # A view of `data`
        step = max(1, _AT_ONCE // (shape[0] * shape[1]))
        with np.errstate(over="ignore"):  # `read_ct` refuses values that the scale makes infinite.
            for start in range(0, shape[2], step):
                slab = stored[:, :, start : start + step]
                as_stored[:, :, start : start + step] = slab.reshape(slab.shape[:3])
        while file.read(_AT_ONCE):  # Reading to the end of a gzip file verifies its checksum.
            pass
    affine = image.affine @ nibabel.orientations.inv_ornt_aff(to_ras, shape)
    return Volume(data, affine.astype(float))


def _check_header(image: nibabel.Nifti1Image, path: Path) -> None:
    """Raises InputError for an impossible header, before memory is allocated for the volume."""
    shape, dtype = image.shape, image.get_data_dtype()
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise InputError(f"{path.name} has the shape {shape}; one 3D volume is needed.")
    if dtype.names or dtype.kind == "c":
        raise InputError(f"{path.name} holds colours or complex numbers; a volume of single values is needed.")
    with image.file_map["image"].get_prepare_fileobj("rb") as file:
        header = type(image.header).from_fileobj(file, check=False)  # Before nibabel's repairs
    room = path.stat().st_size * _PACKED.get(path.suffix.lower(), math.inf)
    if min(shape) < 1 or float(header["vox_offset"]) + math.prod(map(int, shape)) * dtype.itemsize > room:
        raise _damaged(path, f"it is too short for the {' x '.join(map(str, shape))} voxels of its header")
    if np.isinf(header["scl_slope"]):
        raise _damaged(path, "its header scales the values by infinity")
    if not image.header["sform_code"] and not image.header["qform_code"]:
        raise InputError(
            f"{path.name} does not state its orientation in the patient (sform and qform codes are 0); set one of them."
        )
    forms: tuple[Any, ...] = ()
    with contextlib.suppress(
        nibabel.spatialimages.HeaderDataError, np.linalg.LinAlgError
    ):  # A qform that is broken, beside a good sform.
        if image.header["sform_code"] and image.header["qform_code"]:
            forms = tuple(nibabel.aff2axcodes(form) for form in (image.get_sform(), image.get_qform()))
    for pair in zip(*forms, strict=True):
        if frozenset(pair) in _OPPOSITE:
            sides = _OPPOSITE[frozenset(pair)]
            raise InputError(f"{path.name} has a sform and a qform that exchange the patient's {sides}; correct one.")
    matrix, origin = image.affine[:3, :3], image.affine[:3, 3]
    spacing = np.linalg.norm(matrix, axis=0) if image.header["sform_code"] else header["pixdim"][1:4]
    sized = (
        np.isfinite(image.affine).all() and (spacing > FINEST_MM).all() and (spacing * shape[:3] <= LONGEST_MM).all()
    )
    if not sized or (np.abs(origin) > FARTHEST_MM).any() or abs(np.linalg.det(matrix / spacing)) < 0.1:
        size, first = " x ".join(f"{s:.3g}" for s in spacing), ", ".join(f"{x:.3g}" for x in origin)
        said = f"voxels of {size} mm, the first at {first}"
        raise InputError(f"{path.name} has an impossible affine ({said}); correct it.")


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path.name} is cut short or damaged ({reason}); fetch or copy it again.")


def _check_convention(values: np.ndarray, labels: np.ndarray, convention: str, name: str) -> None:
    """Raises InputError unless the labels (VerSe levels) of a file's values are vertebrae in order from head to tail."""
    heights = _heights(labels)
    wrong, pairs = _out_of_order(heights), len(heights) - 1
    spine = 3 * len(wrong) <= pairs and len(heights) > 2
    if spine and convention == "verse":  # TotalSegmentator's two numberings run the same way, VerSe's the other.
        return
    # A convention in which a mask has a few vertebrae in order is right, unless another one fits much better.
    fits = bool(heights) and (spine or not wrong)
    least = 1 if not heights else len(heights) + 3 if fits else 2
    others = ((other, _heights(levels.to_verse(values, other))) for other in levels.CONVENTIONS if other != convention)
    better = [other for other, found in others if len(found) >= least and not _out_of_order(found)]
    if fits and not better:
        return
    numbers = [f"{v:g}" for v in np.unique(values)]
    held = ", ".join(numbers[:8] + ["..."] * (len(numbers) > 8))
    if wrong:
        said = f"{levels.name(wrong[0][1])} above {levels.name(wrong[0][0])}"
    else:
        said = " and ".join(map(levels.name, heights)) or "no vertebra"
    if better:
        hint = f"its numbers look like {' or '.join(map(repr, better))}: state that convention in its data manifest"
    elif wrong:
        hint = "its numbers are wrong or it is upside down: renumber its labels or correct its affine"
    else:
        hint = f"leave it out, or state another convention of {', '.join(levels.CONVENTIONS)} in its data manifest"
    raise InputError(f"The mask {name} has {said} by the '{convention}' label numbers (it holds {held}); {hint}.")


def _heights(labels: np.ndarray) -> dict[int, float]:
    """Mean z index of each vertebra of a mask, from head to tail by name."""
    found, sizes = {}, {}
    for level, box in enumerate(ndimage.find_objects(labels), 1):
        if box is not None and level in levels.VERTEBRAE:
            slices = (labels[box] == level).sum((0, 1))
            sizes[level] = int(slices.sum())
            found[level] = box[2].start + float(slices @ np.arange(len(slices))) / sizes[level]
    kept = [level for level in found if sizes[level] >= _CRUMB * max(sizes.values())]
    return {level: found[level] for level in levels.in_order(kept)}


def _out_of_order(heights: dict[int, float]) -> list[tuple[int, int]]:
    """Pairs of successive levels of which the upper one by name is not higher."""
    return [(upper, lower) for upper, lower in itertools.pairwise(heights) if heights[upper] <= heights[lower]]


def _grid(volume: Volume) -> str:
    shape, spacing = " x ".join(map(str, volume.data.shape)), " x ".join(f"{s:.3g}" for s in volume.spacing_mm)
    return f"{shape} voxels of {spacing} mm"
