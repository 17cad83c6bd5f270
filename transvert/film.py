"""Films: from ray integrals to what a film shows, files of films, and the patches that the network sees.

A film here is brighter where more is attenuated: bone is white. Its pixel size is that on the detector, so a vertebra
on a cone film is larger than life; `cut_patch` undoes that. Films of patients are read for their pixels and for how they
were taken (`facts`); nothing else of the file is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scipy import ndimage

from transvert import dicom, exposure, facts, pictures
from transvert.facts import Facts
from transvert.files import InputError, atomic_path
from transvert.geometry import View

CLIP = 5.0
"""Standardised patches end at this many standard deviations, so that a metal implant leaves contrast to the rest."""
LOCAL_PIXELS = 8.0
"""The neighbourhood in which `standardise` looks: a Gaussian's sigma, 12 mm in a sample's patch."""
_PARTS = 3  # of a patch's pixel, down and across, are what is sampled of a picture at least
FLOOR = 0.1
"""How much of the whole patch's variance is added to the local one, so that noise is not blown up to bone."""


@dataclass(frozen=True)
class Film:
    """A film's picture, turned to this project's convention.

    Attributes:
        pixels: (rows, columns) float32, any scale, brighter is more attenuation; NaN where the detector saw nothing.
        pixel_mm: row and column pitch on the detector, or in the patient where `facts.plane` says so; None where a
            landmark file will state it.
        facts: how the film was taken and how its picture lies in the file.
    """

    pixels: np.ndarray
    pixel_mm: tuple[float, float] | None
    facts: Facts = field(default_factory=Facts)

    def from_stored(self, pixel: np.ndarray) -> np.ndarray:
        """(..., 2) row and column here of a pixel as viewers of the file count it, such as a landmark's."""
        return self.facts.turn.to_film(pixel, self.pixels.shape)

    def to_stored(self, pixel: np.ndarray) -> np.ndarray:
        """The inverse of `from_stored`."""
        return self.facts.turn.to_stored(pixel, self.pixels.shape)


def expose(
    integral: np.ndarray,
    *,
    pixel_mm: float | tuple[float, float],
    seed: int,
    photons: float = 1e6,
    scatter: float = 0.02,
    focus_mm: float = 0.0,
    blur_mm: float = 0.2,
    response: str = "log",
) -> np.ndarray:
    """What a digital film shows of ray integrals: all steps of `exposure`, in their order.

    The defaults are this companion's choice. Without scatter, noise and blur a logarithmic film is the integral itself.

    Args:
        integral: (rows, columns) float, from `drr.cast` of attenuation, no unit.
        pixel_mm: pitch on the detector, one number or row and column.
        seed: of the noise; equal seeds give equal films.
        photons: per pixel, where nothing is in the way; 0 for no noise. `exposure.photons_per_pixel` has them from
            the air kerma in uGy.
        scatter: scattered photons as a fraction of the smoothed primary ones.
        focus_mm: standard deviation of the focal spot's shadow on the detector: the spot's own, times magnification
            less 1. It blurs before the photons are counted.
        blur_mm: standard deviation of the detector's point spread, which blurs the noise too.
        response: "log", grey in proportion to attenuation; or "linear", grey in proportion to the exposure.

    Returns:
        (rows, columns) float32, brighter where more is attenuated: the attenuation, or the share of photons missing.

    Raises:
        InputError: integrals that are not finite, a negative amount, or another response.
    """
    _check_response(response)
    primary = exposure.blur(exposure.transmit(integral), focus_mm, pixel_mm)
    signal = exposure.add_scatter(primary, scatter, pixel_mm)
    signal = exposure.count_photons(signal, photons, seed) if photons else signal
    signal = exposure.blur(signal, blur_mm, pixel_mm)
    return exposure.to_attenuation(signal, photons) if response == "log" else exposure.to_opacity(signal)


def to_grey(
    image: np.ndarray, *, bits: int = 8, window: tuple[float, float] | None = None, inverted: bool = False
) -> np.ndarray:
    """Grey values of a picture.

    Args:
        image: (rows, columns) float.
        bits: 8 to 16; the highest grey value is 2**bits - 1.
        window: the values that become black and white; by default the 0.5th and 99.5th percentile.
        inverted: white for low values: the exact complement of the picture that is not inverted.

    Returns:
        (rows, columns) uint8 for 8 bits, else uint16.

    Raises:
        InputError: another number of bits, a window without a width, or a picture that is not finite.
    """
    if bits not in range(8, 17):
        raise InputError(f"A grey picture has 8 to 16 bits, not {bits}.")
    if not np.isfinite(image).all():
        raise InputError("The picture has NaN or infinite values, which have no grey.")
    low, high = np.percentile(image, (0.5, 99.5)) if window is None else window
    if window is not None and not -np.inf < low < high < np.inf:
        raise InputError(f"The window from {low:g} to {high:g} shows nothing; its first value must be the smaller one.")
    scaled = np.clip((np.asarray(image, float) - low) / (high - low if high > low else 1.0), 0, 1)
    grey = np.rint(scaled * (2**bits - 1))
    return (2**bits - 1 - grey if inverted else grey).astype(np.uint8 if bits == 8 else np.uint16)


def write_png(
    path: str | Path, grey: np.ndarray, pixel_mm: float | tuple[float, float], *, bits: int | None = None
) -> Path:
    """Writes uint8 or uint16 as PNG, atomically. PNG keeps whole pixels per metre: 0.7 mm comes back as 0.6998 mm.

    Args:
        path: the file.
        grey: (rows, columns), from `to_grey`.
        pixel_mm: pitch on the detector, one number or row and column.
        bits: of `grey`; by default all of its type. 9 to 15 bits are stretched over PNG's 16, so that viewers show
            white as white, and PNG's "sBIT" tells how many there were: divide by 65535 / (2**bits - 1).

    Raises:
        InputError: a picture that is not `bits` deep, or pixels without a size.
    """
    bits = pictures.depth(grey, bits)
    row_mm, column_mm = exposure.pitch_mm(pixel_mm)
    more = PngInfo()
    if bits not in (8, 16):
        more.add(b"sBIT", bytes([bits]))
        grey = np.rint(grey * (65535 / (2**bits - 1))).astype(np.uint16)
    with atomic_path(path) as temporary:
        Image.fromarray(grey).save(temporary, format="PNG", dpi=(25.4 / column_mm, 25.4 / row_mm), pnginfo=more)
    return Path(path)


def write_dicom(
    path: str | Path,
    grey: np.ndarray,
    view: View,
    *,
    bits: int | None = None,
    inverted: bool = False,
    response: str = "log",
    source_to_patient_mm: float | None = None,
) -> Path:
    """Writes a simulated film as a DX image, atomically. It says that it is simulated and names no patient.

    Viewers show bone white either way: `inverted` is stored as MONOCHROME1, in which low values are white, and `read`
    turns it back.

    Args:
        path: the file.
        grey: (rows, columns), from `to_grey` with the same `bits` and `inverted`.
        view: gives the pixel size, the patient's orientation and, for a cone view, the source's distance.
        bits: of `grey`; by default all of its type.
        inverted: high values are where the exposure was high.
        response: that of `expose`, "log" or "linear".
        source_to_patient_mm: of a cone view, if known: the source's distance from the isocentre.

    Raises:
        InputError: a picture that is not the view's, or not `bits` deep, or another response.
    """
    if grey.shape != view.shape:
        raise InputError(
            f"A picture of {grey.shape} is no film of the view '{view.name}', which has {view.shape}; "
            "it must have the view's shape."
        )
    _check_response(response)
    dataset = dicom.simulated(grey, view, pictures.depth(grey, bits), inverted, response, source_to_patient_mm)
    with atomic_path(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)
    return Path(path)


def read(
    path: str | Path,
    pixel_mm: float | tuple[float, float] | None = None,
    *,
    view: str | None = None,
    orientation: Sequence[str] | None = None,
    sized: bool = True,
) -> Film:
    """Reads a film from DICOM, PNG, JPEG or TIFF and turns it to this project's convention.

    Args:
        path: the file.
        pixel_mm: pitch on the detector, one number or row and column as stored; goes before what the file says.
        view: what the film is given as: "ap", "pa" or a lateral; None for either.
        orientation: where a row's pixels go in the patient and where a column's go, as in `facts.turn_of`; goes before
            what a DICOM file says. Without either the picture is taken to follow the convention already.
        sized: whether somebody has to say the pitch: the file, by DICOM's tags or PNG's pixel size (not one of 72, 96
            or 144 dpi, which programs write unasked), or else `pixel_mm`.

    Raises:
        InputError: no film, cut short, encrypted, in colour, several pictures, too large, another view than is said, or
            pixels of unknown or impossible size.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"The film {path.name} does not exist.")
    with path.open("rb") as file:
        is_dicom = file.read(132)[128:] == b"DICM"
    if is_dicom:
        pixels, pitch, known = dicom.read(path, view, orientation)
    else:
        pixels, pitch = pictures.read(path)
        pitch, known = facts.of_picture(pitch, path.name, view, orientation)
        pixels = known.turn.picture(pixels)
    if pixel_mm is not None:
        pitch = known.turn.pair(exposure.pitch_mm(pixel_mm))
        known = replace(known, plane="detector", pitch_from="stated by hand")
    if pitch is None and sized:
        raise InputError(
            f"The film {path.name} does not say how large its pixels are, or not what they can be; give pixel_mm, their "
            "height and width on the detector in mm."
        )
    if pitch is not None:
        facts.check_pitch(pitch, path.name)
    return Film(np.ascontiguousarray(pixels, np.float32), pitch, known)


def standardise(patch: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Takes a patch's local brightness and contrast away, so that a network sees the vertebra and not the body.

    On a whole-body radiograph the shadows of lungs, heart and the body's edge vary 10 to 30 times as much over a patch
    as the vertebra's own bone does (measured on the embedded chest CT), and a film's grey scale is anybody's. So each
    pixel is put against the weighted mean and standard deviation around it, a Gaussian of `LOCAL_PIXELS`; film
    processors do the like before a radiologist looks.

    Args:
        patch: (N, N), float.
        valid: (N, N), bool; False where the patch lies beyond the film, whose last pixel is left out too. NaN is never
            valid.

    Returns:
        float32, clipped to -CLIP..CLIP; 0 where not valid, and everywhere in a patch that is constant.
    """
    valid = np.isfinite(patch) if valid is None else np.isfinite(patch) & valid
    # A film's outermost pixels are half film, and would be the strongest edge of the patch.
    valid = ndimage.binary_erosion(valid, np.ones((3, 3)), border_value=1)
    if not valid.any():
        return np.zeros(patch.shape, np.float32)
    values = np.where(valid, patch, 0).astype(float)
    values = np.where(valid, values - values[valid].mean(), 0)
    size = np.abs(values).max()
    # Against the values' size: a constant patch leaves the rounding of its mean, which is no contrast.
    if size <= 1e-6 * np.abs(patch[valid]).max():
        return np.zeros(patch.shape, np.float32)
    rows, columns = (smoothing_matrix(n) for n in patch.shape)
    weight = np.maximum(rows @ valid @ columns.T, 1e-6)
    detail = np.where(valid, values - rows @ values @ columns.T / weight, 0)
    spread = rows @ detail**2 @ columns.T / weight
    spread = np.sqrt(spread + FLOOR * (detail**2).sum() / valid.sum())
    return np.clip(detail / spread, -CLIP, CLIP).astype(np.float32)


@functools.cache
def smoothing_matrix(size: int) -> np.ndarray:
    """(size, size) float64: row i weights the pixels of a line by a Gaussian of `LOCAL_PIXELS` around pixel i."""
    distance = np.subtract.outer(np.arange(size), np.arange(size))
    return np.exp(-0.5 * (distance / LOCAL_PIXELS) ** 2)


def cut_patch(
    image: np.ndarray,
    view: View,
    centre: np.ndarray,
    size: int,
    spacing_mm: float,
    steps: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Samples a picture where it shows a square in space, so that the patch is life-sized whatever the magnification.

    Each point is where its own ray goes, so that magnification changes across a tilted square as it should. Where the
    patch is coarser than the picture, a point is the mean over its own small square, so that fine detail and noise do
    not alias.

    Args:
        image: (rows, columns) float, a picture of `view`.
        view: parallel or cone.
        centre: (3,) RAS mm, where point ((size - 1) / 2, (size - 1) / 2) of the patch lies.
        size: points a side.
        spacing_mm: between points, in the square.
        steps: (2, 3) unit vectors, down and across in the square; by default along the view's rows and columns.

    Returns:
        (size, size) float32, and (size, size) bool, True where the picture reaches; the patch is 0 elsewhere.

    Raises:
        InputError: a picture that is not the view's.
    """
    if image.shape != view.shape:
        raise InputError(f"A picture of {image.shape} is not one of the view '{view.name}', which has {view.shape}.")
    centre = np.asarray(centre, float)
    down, across = (view.down / view.pixel_mm[0], view.across / view.pixel_mm[1]) if steps is None else steps

    def pixels(parts: tuple[int, int]) -> np.ndarray:
        """Where the picture shows the patch's points, each split into parts along its rows and columns."""
        rows_mm, columns_mm = (((np.arange(size * n) + 0.5) / n - size / 2) * spacing_mm for n in parts)
        return view.project(centre + rows_mm[:, None, None] * down + columns_mm[None, :, None] * across)

    where = pixels((1, 1))
    valid = np.all((where >= -0.5) & (where <= np.array(image.shape) - 0.5), axis=-1)
    if not valid.any():
        return np.zeros((size, size), np.float32), valid
    coarser = spacing_mm * view.magnification(centre) / np.array(view.pixel_mm)
    # Of a film with much finer pixels, a few of them together are sampled as one.
    together = np.maximum(coarser // _PARTS, 1).astype(int)
    image, first = _bin(image, where, together)
    rows, columns = np.maximum(np.ceil(coarser / together - 0.25), 1).astype(int).tolist()
    where = np.nan_to_num((pixels((rows, columns)) - first) / together)
    sampled = ndimage.map_coordinates(image, np.moveaxis(where, -1, 0), output=np.float32, order=1, mode="nearest")
    patch = sampled.reshape(size, rows, size, columns).mean(axis=(1, 3))
    return np.where(valid, patch, np.float32(0)), valid


def _bin(image: np.ndarray, where: np.ndarray, together: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part of a picture around pixels (..., 2), `together` (2,) rows and columns made one, and its first pixel's middle."""
    if (together == 1).all():
        return image, np.zeros(2)
    low = (np.nanmin(where, axis=(0, 1)) - 2 * together).clip(0, image.shape - together).astype(int)
    high = (np.nanmax(where, axis=(0, 1)) + 3 * together).clip(low + together, image.shape).astype(int)
    (rows, columns), (down, across) = (high - low) // together, together
    part = image[low[0] : low[0] + rows * down, low[1] : low[1] + columns * across]
    coarse = part.reshape(rows, down, columns, across).mean(axis=(1, 3), dtype=np.float32)
    return coarse, low + (together - 1) / 2


def _check_response(response: str) -> None:
    if response not in exposure.RESPONSES:
        raise InputError(f"A film's response is {' or '.join(exposure.RESPONSES)}, not '{response}'.")
