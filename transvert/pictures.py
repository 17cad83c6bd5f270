"""Films in PNG, JPEG and TIFF: their grey values, and the pixel size where a PNG has one that somebody measured."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from transvert.files import InputError

MOST_PIXELS = 150_000_000
"""A film of more is refused: one of 12,000 x 12,000 takes 0.6 GB as float32, and reading it twice that."""

_SCREEN_DPI = (72, 96, 144)  # What drawing programs and screenshots write when nobody measured anything.
_ROWS = 256  # Converted at a time, so that a large film is held once, not three times.
# Object identifiers of what encryption leaves: enveloped, encrypted, and authenticated-enveloped data (RFC 5652, 5083).
_ENCRYPTED = [b"\x2a\x86\x48\x86\xf7\x0d\x01" + end for end in (b"\x07\x03", b"\x07\x06", b"\x09\x10\x01\x17")]


def read(path: Path) -> tuple[np.ndarray, tuple[float, float] | None]:
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
