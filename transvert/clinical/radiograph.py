"""Films: from ray integrals to what a film shows, files of films, and the patches that the network sees.

A film here is brighter where more is attenuated: bone is white. Its pixel size is that on the detector, so a vertebra
on a cone film is larger than life; `cut_patch` undoes that. Films of patients are read for their pixels and for how they
were taken (`facts`); nothing else of the file is kept.


Films in PNG, JPEG and TIFF: their grey values, and the pixel size where a PNG has one that somebody measured.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from transvert.clinical import acquisition, dicom
from transvert.clinical.acquisition import Acquisition
from transvert.drr import exposure
from transvert.drr.exposure import _check_response
from transvert.drr.geometry import View
from transvert.io import InputError, atomic_path


@dataclass(frozen=True)
class Radiograph:
    """A film's picture, turned to this project's convention.

    Attributes:
        pixels: (rows, columns) float32, any scale, brighter is more attenuation; NaN where the detector saw nothing.
        pixel_mm: row and column pitch on the detector, or in the patient where `facts.plane` says so; None where a
            landmark file will state it.
        facts: how the film was taken and how its picture lies in the file.
    """

    pixels: np.ndarray
    pixel_mm: tuple[float, float] | None
    facts: Acquisition = field(default_factory=Acquisition)

    def from_stored(self, pixel: np.ndarray) -> np.ndarray:
        """(..., 2) row and column here of a pixel as viewers of the file count it, such as a landmark's."""
        return self.facts.turn.to_film(pixel, self.pixels.shape)

    def to_stored(self, pixel: np.ndarray) -> np.ndarray:
        """The inverse of `from_stored`."""
        return self.facts.turn.to_stored(pixel, self.pixels.shape)


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
    bits = depth(grey, bits)
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
    dataset = dicom.simulated_dicom(grey, view, depth(grey, bits), inverted, response, source_to_patient_mm)
    with atomic_path(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)
    return Path(path)


def read_radiograph(
    path: str | Path,
    pixel_mm: float | tuple[float, float] | None = None,
    *,
    view: str | None = None,
    orientation: Sequence[str] | None = None,
    sized: bool = True,
) -> Radiograph:
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
        pixels, pitch, known = dicom.read_dicom(path, view, orientation)
    else:
        pixels, pitch = read_picture(path)
        pitch, known = acquisition.acquisition_of_picture(pitch, path.name, view, orientation)
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
        acquisition.check_pitch(pitch, path.name)
    return Radiograph(np.ascontiguousarray(pixels, np.float32), pitch, known)


MOST_PIXELS = 150_000_000
"""A film of more is refused: one of 12,000 x 12,000 takes 0.6 GB as float32, and reading it twice that."""

_SCREEN_DPI = (72, 96, 144)  # What drawing programs and screenshots write when nobody measured anything.
_ROWS = 256  # Converted at a time, so that a large film is held once, not three times.
# Object identifiers of what encryption leaves: enveloped, encrypted, and authenticated-enveloped data (RFC 5652, 5083).
_ENCRYPTED = [b"\x2a\x86\x48\x86\xf7\x0d\x01" + end for end in (b"\x07\x03", b"\x07\x06", b"\x09\x10\x01\x17")]


def read_picture(path: Path) -> tuple[np.ndarray, tuple[float, float] | None]:
    """A picture's grey values, (rows, columns) float32, and its row and column pitch in mm if the file states one.

    A picture that its file's EXIF turns is turned, as viewers do.

    Raises:
        InputError: not one grey picture, one that can't be decoded, or one that is too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of large pictures, which are checked here, and with the file's own words.
            with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as image:
                return _decode(path.name, image)
    except InputError:
        raise
    except Image.UnidentifiedImageError:
        raise InputError(_what_it_is(path)) from None
    except Image.DecompressionBombError:
        raise InputError(too_large(path.name)) from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error):
        raise InputError(
            f"The film {path.name} can't be decoded; it is damaged or cut short: copy it once more."
        ) from None


def too_large(name: str) -> str:
    """The sentence for a film of more than `MOST_PIXELS`."""
    return f"The film {name} has more than {MOST_PIXELS // 10**6} million pixels; make it smaller."


def depth(grey: np.ndarray, bits: int | None) -> int:
    """The bits of a grey picture that is to be written, by default all of its type.

    Raises:
        InputError: its type or its values do not agree with them.
    """
    if grey.dtype not in (np.uint8, np.uint16) or grey.ndim != 2:
        raise InputError(f"A picture of {grey.shape} {grey.dtype} is no grey picture; make one with to_grey.")
    full = grey.dtype.itemsize * 8
    bits = full if bits is None else bits
    if bits not in range(8 if full == 8 else 9, full + 1) or int(grey.max(initial=0)) >= 2**bits:
        raise InputError(
            f"A picture of {grey.dtype} with values up to {grey.max(initial=0)} has not {bits} bits; "
            "give the bits that it was made with."
        )
    return bits


def _decode(name: str, image: Image.Image) -> tuple[np.ndarray, tuple[float, float] | None]:
    pictures = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
    if pictures > 1:
        raise InputError(f"The film {name} holds {pictures} pictures; give one a view.")
    if image.width * image.height > MOST_PIXELS:
        raise InputError(too_large(name))
    white_is_zero = image.format == "TIFF" and image.tag_v2.get(262) == 0  # type: ignore[attr-defined]
    dpi = image.info.get("dpi") if image.format == "PNG" else None
    image.load()
    on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
    ImageOps.exif_transpose(image, in_place=True)
    single = image.mode in ("1", "L", "F") or image.mode.startswith("I")
    pixels = np.empty((image.height, image.width), np.float32)
    for top in range(0, image.height, _ROWS):
        part = image.crop((0, top, image.width, min(top + _ROWS, image.height)))
        pixels[top : top + _ROWS] = np.asarray(part) if single else _grey(np.asarray(part.convert("RGB")), name)
    if not np.isfinite(pixels).all():
        raise InputError(f"The film {name} has NaN or infinite values, which have no grey; save it as 16-bit integers.")
    if white_is_zero and image.mode.startswith("I"):  # The imaging library turns 8 bits over, not 16.
        np.subtract(pixels.max() + pixels.min(), pixels, out=pixels)
    if dpi is None or any(abs(number - screen) < 0.02 for number in dpi for screen in _SCREEN_DPI):
        return pixels, None
    row_mm, column_mm = 25.4 / dpi[1], 25.4 / dpi[0]
    return pixels, (column_mm, row_mm) if on_its_side else (row_mm, column_mm)


def _grey(channels: np.ndarray, name: str) -> np.ndarray:
    """(rows, columns) float of (rows, columns, 3) uint8."""
    # JPEG may part the channels of a grey picture by a step or two.
    if np.ptp(channels, axis=2).max() > 2:
        raise InputError(
            f"The film {name} is a colour picture, such as a photograph or a screenshot; a film is grey: export it from "
            "its viewer as DICOM or as a grey PNG."
        )
    return channels.mean(axis=2, dtype=np.float32)


def _what_it_is(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(64)
    if any(mark in head for mark in _ENCRYPTED):
        return f"{path.name} is encrypted; decrypt it before you give it here."
    if head.startswith(b"PK"):
        return f"{path.name} is a ZIP archive; unpack it and give the film within."
    return f"{path.name} is not a film: it is neither DICOM nor PNG, JPEG or TIFF."
