"""Radiographs: grey values, files that are read and written, and the one pixel frame that everything counts in.

A film here is brighter where more is attenuated: bone is white. Its picture is turned upright when it is read: head at
the top, the patient's right (AP, PA) or front (lateral) on the left. Every pixel coordinate from then on counts there.
"""

from __future__ import annotations

import contextlib
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from transvert.clinical import dicom
from transvert.clinical.dicom import MOST_PIXELS, Acquisition, ImageOrientation
from transvert.drr import exposure
from transvert.drr.geometry import View
from transvert.io import InputError, atomic_path

BY_DPI = "the picture's resolution (dpi)"  # Where a pixel pitch comes from that no one may have measured.
_SCREEN_DPI = (72, 96, 144)  # Written by drawing programs and screenshots without any measurement.
_BARE_DICOM = (b"\x02\x00", b"\x08\x00")  # The first group of a DICOM file without preamble, or without header.
_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
# Object identifiers of enveloped, encrypted, and authenticated-enveloped data (RFC 5652, 5083).
_ENCRYPTED = [b"\x2a\x86\x48\x86\xf7\x0d\x01" + end for end in (b"\x07\x03", b"\x07\x06", b"\x09\x10\x01\x17")]

# The DICOM attributes that all simulated films share. The sign -1 means that low values are many photons.
_SIMULATED: dict[str, Any] = (
    dict.fromkeys(("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"), "")
    | dict.fromkeys(("PatientBirthDate", "PatientSex", "AcquisitionDeviceProcessingDescription"), "")
    | dict.fromkeys(("DetectorType", "PositionerType"), "")
    | {"PatientName": "SIMULATED^FILM", "PatientID": "SIMULATED", "PatientIdentityRemoved": "YES"}
    | {"DeidentificationMethod": "Simulated by transvert; no film of a patient", "Manufacturer": "transvert"}
    | {"Modality": "DX", "PresentationIntentType": "FOR PRESENTATION", "ImageType": ["DERIVED", "PRIMARY", ""]}
    | {"DerivationDescription": "Simulated radiograph: ray integrals through a volume", "ImageLaterality": "U"}
    | {"SeriesNumber": 1, "InstanceNumber": 1, "AnatomicRegionSequence": [], "AcquisitionContextSequence": []}
    | {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0}
    | {"PixelIntensityRelationship": "LOG", "PixelIntensityRelationshipSign": -1, "PresentationLUTShape": "IDENTITY"}
    | {"RescaleIntercept": 0, "RescaleSlope": 1, "RescaleType": "US"}
    | {"LossyImageCompression": "00", "BurnedInAnnotation": "NO"}
)


@dataclass(frozen=True)
class Radiograph:
    """A film's upright picture.

    The row and column pitch is that in the plane `acquisition.pixel_plane`; None if a landmark file will state it.
    """

    pixels: np.ndarray  #: (rows, columns) float32, brighter is more attenuation; NaN where nothing was exposed.
    pixel_mm: tuple[float, float] | None
    acquisition: Acquisition = field(default_factory=Acquisition)


def read_radiograph(
    path: str | Path,
    pixel_mm: float | tuple[float, float] | None = None,
    *,
    view: str | None = None,
    orientation: Sequence[str] | None = None,
    require_pixel_mm: bool = True,
) -> Radiograph:
    """Reads a film from DICOM, PNG, JPEG or TIFF and turns its picture upright.

    Args:
        path: the file.
        pixel_mm: pitch on the detector, one number, or row and column of the upright picture; replaces the file's.
        view: the expected view, "ap", "pa" or a lateral one; None for any.
        orientation: the patient's directions along a row and down a column of the stored picture, such as
            ("L", "F"); replaces what a DICOM file says. Without either the picture is taken to be upright.
        require_pixel_mm: refuse a film of unknown pixel pitch. A file states it by DICOM's tags or PNG's pixel size,
            except for 72, 96 and 144 dpi, which programs write without a measurement.

    Raises:
        InputError: no film of the expected view, or an unknown or impossible pixel pitch.
    """
    path = Path(path)
    if not path.is_file():
        problem = "is a folder; give the film's file in it" if path.is_dir() else "does not exist"
        raise InputError(f"The film {path.name} {problem}.")
    with path.open("rb") as file:
        head = file.read(132)
    if head[128:] == b"DICM" or head[:2] in _BARE_DICOM:
        pixels, pitch, acquisition = dicom.read_dicom(path, view, orientation)
    else:
        stored, pitch = _read_picture(path, head)
        turn = dicom.orientation_from_letters(orientation, view, path.name) if orientation else ImageOrientation()
        pixels, pitch = turn.upright_picture(stored), pitch and turn.upright_pair(pitch)
        origin = BY_DPI if pitch else ""
        acquisition = Acquisition(pixel_mm_from=origin, orientation=turn, notes=turn.notes("stated"))
    if pixel_mm is not None:
        pitch = exposure.pitch_mm(pixel_mm)
        acquisition = replace(acquisition, pixel_plane="detector", pixel_mm_from="stated by hand")
    if pitch is None and require_pixel_mm:
        raise InputError(
            f"The film {path.name} does not say how large its pixels are, or states an impossible size; give pixel_mm."
        )
    if pitch is not None:
        dicom.check_pixel_mm(pitch, path.name)
    return Radiograph(np.ascontiguousarray(pixels, np.float32), pitch, acquisition)


def to_grey(image: np.ndarray, *, bits: int = 8, window: tuple[float, float] | None = None) -> np.ndarray:
    """Converts a picture to grey values.

    Args:
        image: (rows, columns) float, finite.
        bits: 8 to 16; the highest grey value is 2**bits - 1.
        window: the values that become black and white; by default the 0.5th and 99.5th percentile.

    Returns:
        (rows, columns) uint8 for 8 bits, else uint16.
    """
    if bits not in range(8, 17):
        raise InputError(f"A grey picture has 8 to 16 bits, not {bits}.")
    if not np.isfinite(image).all():
        raise InputError("The picture has NaN or infinite values, which have no grey.")
    low, high = np.percentile(image, (0.5, 99.5)) if window is None else window
    if window is not None and not -np.inf < low < high < np.inf:
        raise InputError(f"The window from {low:g} to {high:g} shows nothing; its first value must be the smaller one.")
    scaled = np.clip((np.asarray(image, float) - low) / (high - low if high > low else 1.0), 0, 1)
    return np.rint(scaled * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)


def write_png(path: str | Path, grey: np.ndarray, pixel_mm: float | tuple[float, float]) -> Path:
    """Writes a grey picture (rows, columns), from `to_grey`, as PNG, atomically.

    `pixel_mm` is the pitch on the detector, one number or row and column. PNG keeps whole pixels per metre: 0.7 mm is read
    as 0.6998 mm.
    """
    _check_bits(grey, grey.dtype.itemsize * 8)
    row_mm, column_mm = exposure.pitch_mm(pixel_mm)
    with atomic_path(path) as temporary:
        Image.fromarray(grey).save(temporary, format="PNG", dpi=(25.4 / column_mm, 25.4 / row_mm))
    return Path(path)


def write_dicom(
    path: str | Path,
    grey: np.ndarray,
    view: View,
    *,
    bits: int | None = None,
    isocentre: np.ndarray | None = None,
) -> Path:
    """Writes a simulated, logarithmic film as a DX image (DICOM PS3.3 A.26), atomically.

    `grey` comes from `to_grey` and has `bits`, by default all of its type. The view gives the pixel pitch, the patient's
    orientation and, unless its rays are parallel, the source's distance; `isocentre` (3,) RAS mm that to the patient. The
    file says that it is simulated. Equal films give equal files.
    """
    import pydicom
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    if grey.shape != view.shape:
        raise InputError(f"A picture of {grey.shape} is no film of the view '{view.name}', which has {view.shape}.")
    bits = grey.dtype.itemsize * 8 if bits is None else bits
    _check_bits(grey, bits)
    study, series, instance = (
        generate_uid(entropy_srcs=[part, str((view.to_dict(), bits)), grey.tobytes().hex()])
        for part in ("study", "series", "sop")
    )
    spacing = [f"{mm:.8g}" for mm in view.pixel_mm]
    content: dict[str, Any] = {
        "SOPClassUID": DigitalXRayImageStorageForPresentation,
        "SOPInstanceUID": instance,
        "StudyInstanceUID": study,
        "SeriesInstanceUID": series,
        **_SIMULATED,
        "PatientOrientation": [_direction_letters(view.column_step), _direction_letters(view.row_step)],
        "ImagerPixelSpacing": spacing,
        "PixelSpacing": spacing,
        "Rows": grey.shape[0],
        "Columns": grey.shape[1],
        "BitsAllocated": grey.dtype.itemsize * 8,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "WindowCenter": 2 ** (bits - 1),
        "WindowWidth": 2**bits,
        "PixelData": np.ascontiguousarray(grey, grey.dtype.newbyteorder("<")).tobytes(),
    }
    if view.name in dicom.POSITIONS:
        content["ViewPosition"] = dicom.POSITIONS[view.name]
    if view.source is not None:
        content["DistanceSourceToDetector"] = f"{(view.corner - view.source) @ view.direction:.8g}"
        if isocentre is not None:
            content["DistanceSourceToPatient"] = f"{(isocentre - view.source) @ view.direction:.8g}"
    if view.slot:
        content["DetectorConfiguration"] = "SLOT"
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword, value in content.items():
        setattr(dataset, keyword, value)
    with atomic_path(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)
    return Path(path)


def _direction_letters(vector: np.ndarray) -> str:
    """The patient's direction of a vector, strongest part first, such as "L", or "LA" if it is oblique."""
    unit = vector / np.linalg.norm(vector)
    order = [i for i in np.argsort(-np.abs(unit), kind="stable") if abs(unit[i]) > 0.1]
    return "".join(("RL", "AP", "HF")[i][int(unit[i] < 0)] for i in order)


def _check_bits(grey: np.ndarray, bits: int) -> None:
    if grey.dtype not in (np.uint8, np.uint16) or grey.ndim != 2:
        raise InputError(f"A picture of {grey.shape} {grey.dtype} is no grey picture; make one with to_grey.")
    full = grey.dtype.itemsize * 8
    if bits not in range(8 if full == 8 else 9, full + 1) or int(grey.max(initial=0)) >= 2**bits:
        raise InputError(
            f"A picture with values up to {grey.max(initial=0)} does not have {bits} bits; give those it was made with."
        )


def _read_picture(path: Path, head: bytes) -> tuple[np.ndarray, tuple[float, float] | None]:
    """(rows, columns) float32, turned as EXIF says and viewers do; and the row and column pitch in mm if stated."""
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # Pillow warns of large pictures, which are checked here.
            Image.open(path, formats=("PNG", "JPEG", "TIFF")) as image,
        ):
            return _decode(path.name, image)
    except InputError:
        raise
    except Image.UnidentifiedImageError:
        if any(mark in head for mark in _ENCRYPTED):
            problem = "is encrypted; decrypt it before you give it here."
        elif head.startswith(b"PK"):
            problem = "is a ZIP archive; unpack it and give the film within."
        elif head[:4] in _TIFF:
            problem = "is a TIFF of a kind that can't be read, such as of 64-bit numbers; save it with 16 bits a pixel."
        else:
            problem = "is not a film: it is neither DICOM nor PNG, JPEG or TIFF."
        raise InputError(f"{path.name} {problem}") from None
    except Image.DecompressionBombError:
        raise InputError(dicom.too_large(path.name)) from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error):
        raise InputError(f"The film {path.name} can't be decoded; it is damaged or cut short: copy it again.") from None


def _decode(name: str, image: Image.Image) -> tuple[np.ndarray, tuple[float, float] | None]:
    with contextlib.suppress(EOFError):  # Not `n_frames`, which reads every page of a long file.
        image.seek(1 if image.format == "TIFF" else 0)
        if image.tell():
            raise InputError(f"The film {name} holds more than one picture; give one a view.")
    if image.width * image.height > MOST_PIXELS:
        raise InputError(dicom.too_large(name))
    white_is_zero = image.format == "TIFF" and image.tag_v2.get(262) == 0  # type: ignore[attr-defined]
    dpi = image.info.get("dpi") if image.format == "PNG" else None
    image.load()
    transposed = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
    ImageOps.exif_transpose(image, in_place=True)
    single = image.mode in ("1", "L", "F") or image.mode.startswith("I")
    pixels = np.empty((image.height, image.width), np.float32)
    for top in range(0, image.height, dicom.ROWS):
        part = image.crop((0, top, image.width, min(top + dicom.ROWS, image.height)))
        rows = np.asarray(part if single else part.convert("RGB"))
        if not single:
            rows = dicom.grey_channel(rows, name)
        pixels[top : top + dicom.ROWS] = rows
    if not np.isfinite(pixels).all():
        raise InputError(f"The film {name} has NaN or infinite values, which have no grey; save it as 16-bit integers.")
    if white_is_zero and image.mode.startswith("I"):  # Pillow inverts 8 bits, but not 16.
        np.subtract(pixels.max() + pixels.min(), pixels, out=pixels)
    if dpi is None or any(abs(number - screen) < 0.02 for number in dpi for screen in _SCREEN_DPI):
        return pixels, None
    row_mm, column_mm = 25.4 / dpi[1], 25.4 / dpi[0]
    return pixels, (column_mm, row_mm) if transposed else (row_mm, column_mm)
