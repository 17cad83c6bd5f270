"""Films in DICOM: read the pixels and how they were taken, describe a simulated film. `film` is the door to both.

What a stored value becomes, in this order:

1. The modality LUT or rescale, as the standard asks.
2. The logarithm, for raw images alone ("FOR PROCESSING") whose values are linear in the exposure: a film here is
   proportional to attenuation.
3. White bone: MONOCHROME1, whose low values are white, is turned over.
4. NaN where the file says that the detector saw nothing (pixel padding).

The VOI LUT and the window are left out. They say how a viewer should show the values to an eye: a window is a linear
step that clips, and networks are given patches standardised by their neighbourhood (`film.standardise`), which undoes
the linear part and could not bring the clipped bone back. An S-shaped VOI LUT only bends the same values.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transvert.clinical import acquisition, radiograph
from transvert.clinical.acquisition import Acquisition, dicom_code, dicom_number
from transvert.drr.geometry import View
from transvert.io import InputError

if TYPE_CHECKING:
    import pydicom

_FILMS = ("CR", "DX", "RG", "RF", "XA", "DF", "HC", "OT", "")
"""Modalities of single projections: computed and digital radiography, digitised film, and a fluoroscope's single shot."""
_NO_FILMS = (
    "BMD",
    "CT",
    "ES",
    "GM",
    "IO",
    "MG",
    "MR",
    "NM",
    "OCT",
    "OP",
    "PR",
    "PT",
    "PX",
    "SEG",
    "SM",
    "SR",
    "US",
    "XC",
)
"""Those that a sentence may name; any other is "another"."""
_ROWS = 256  # Looked up at a time, so that a large film is held once, not three times.

# All that is looked at; whatever else the file holds of a patient is never read.
_READ = (
    *("Modality", "NumberOfFrames", "PresentationIntentType", "EncryptedAttributesSequence", "PixelData"),
    *("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "PresentationLUTShape"),
    *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("PixelIntensityRelationship", "PixelIntensityRelationshipSign"),
    *("ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelSpacing", "PixelSpacingCalibrationType"),
    *("DistanceSourceToDetector", "DistanceSourceToPatient", "EstimatedRadiographicMagnificationFactor"),
    *("PatientOrientation", "ViewPosition", "ImageLaterality"),
)


def read_dicom(
    path: Path, view: str | None = None, orientation: Sequence[str] | None = None
) -> tuple[np.ndarray, tuple[float, float] | None, Acquisition]:
    """A film's pixels, their pitch, and how the film was taken.

    Args:
        path: the file.
        view: what it is given as: "ap", "pa" or a lateral; None for either.
        orientation: goes before what the file says of it and of its view, as in `facts.turn_of`.

    Returns:
        (rows, columns) float32, brighter is more attenuation, turned to this project's convention, NaN where the
        detector saw nothing; their row and column pitch in mm, if the file has it; and the rest.

    Raises:
        InputError: not one grey film, one that can't be decoded, is too large, or shows another view. The sentence
            holds nothing that stands in the file but the names of DICOM's own codes.
    """
    import pydicom

    try:
        with _quietly():
            dataset = pydicom.dcmread(path, specific_tags=list(_READ))
            _check(dataset, path.name)
            grey, notes = _grey_of_stored(dataset)
            pitch, known = acquisition.acquisition_from_dicom(dataset, path.name, view, orientation, notes)
            return _look_up(grey, known.turn.picture(_stored(dataset))), pitch, known
    except InputError:
        raise
    except Exception:  # noqa: BLE001 What a damaged file breaks in pydicom and its decoders is open-ended.
        raise InputError(
            f"The film {path.name} can't be decoded; it is damaged or cut short: copy or export it once more."
        ) from None


def _check(dataset: pydicom.Dataset, name: str) -> None:
    """Makes sure that a file holds one grey film that can be decoded."""
    modality = dicom_code(dataset, "Modality")
    if modality not in _FILMS:
        kind = f"a {modality} image" if modality in _NO_FILMS else "of another modality"
        raise InputError(f"{name} is {kind}, not a film; give a radiograph (CR or DX).")
    if "PixelData" not in dataset and "EncryptedAttributesSequence" in dataset:
        raise InputError(f"The film {name} is encrypted; decrypt it before you give it here.")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise InputError(f"The film {name} has {frames} frames; give one picture a view.")
    kind = dicom_code(dataset, "PhotometricInterpretation")
    if kind not in ("MONOCHROME1", "MONOCHROME2") or int(dataset.get("SamplesPerPixel", 1)) != 1:
        raise InputError(
            f"The film {name} is a colour picture, such as a photograph or a screenshot; a film is grey: give the "
            "radiograph itself."
        )
    if dataset.Rows * dataset.Columns > radiograph.MOST_PIXELS:
        raise InputError(radiograph.too_large(name))
    if dataset.BitsAllocated not in (8, 16):
        raise InputError(f"The film {name} has {dataset.BitsAllocated:d} bits a pixel; export it with 8 or 16.")
    syntax = dataset.file_meta.TransferSyntaxUID
    if not _readable(syntax):
        known = f"compressed as {syntax.name}" if syntax.name != syntax else "compressed or encrypted in a private way"
        raise InputError(
            f"The film {name} is {known}, which can't be read here; export it uncompressed, or convert it with "
            "`gdcmconv --raw`."
        )


def _readable(syntax: pydicom.uid.UID) -> bool:
    """Whether pixels of a transfer syntax can be decoded here."""
    from pydicom.pixels import get_decoder

    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:
        return False


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keeps pydicom and the decoders silent: what they complain of they quote, and the latter write to the terminal."""
    import pydicom

    log, terminal = logging.getLogger("pydicom"), os.dup(2)
    level = log.level
    with warnings.catch_warnings(), pydicom.config.disable_value_validation(), open(os.devnull, "w") as nothing:
        try:
            warnings.simplefilter("ignore")
            log.setLevel(logging.CRITICAL + 1)
            os.dup2(nothing.fileno(), 2)
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            log.setLevel(level)


def _stored(dataset: pydicom.Dataset) -> np.ndarray:
    """(rows, columns) unsigned: each pixel's `BitsStored` bits, a view of the file's bytes where that is possible."""
    from pydicom.pixels import pixel_array

    stored = pixel_array(dataset, raw=True, view_only=True, correct_unused_bits=False)
    stored = stored.view(f"{stored.dtype.byteorder}u{stored.dtype.itemsize}")
    # Overlays may lie in the bits above (or, in old files, below) the picture's.
    shift = 0 if dataset.file_meta.TransferSyntaxUID.is_encapsulated else dataset.HighBit + 1 - dataset.BitsStored
    return stored >> shift if shift else stored


def _look_up(grey: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """`grey` of every stored value: contiguous float32."""
    pixels = np.empty(stored.shape, np.float32)
    for top in range(0, len(stored), _ROWS):
        pixels[top : top + _ROWS] = grey[stored[top : top + _ROWS] & (len(grey) - 1)]
    return pixels


def _grey_of_stored(dataset: pydicom.Dataset) -> tuple[np.ndarray, list[str]]:
    """The grey of every value that can be stored, (2**BitsStored,) float32, by its bits; and what a reader should know."""
    from pydicom.pixels import apply_modality_lut

    bits, notes = int(dataset.BitsStored), []
    stored = np.arange(2**bits)
    if dataset.PixelRepresentation:
        stored = np.where(stored < 2 ** (bits - 1), stored, stored - 2**bits)
    grey = np.asarray(apply_modality_lut(stored, dataset), float)
    if not np.isfinite(grey).all():
        raise ValueError("a rescale that is no number")
    white_is_high = dataset.PhotometricInterpretation == "MONOCHROME2"
    rises = dicom_number(dataset, "PixelIntensityRelationshipSign")  # Whether high values are where many photons came.
    sign = {1: False, -1: True}.get(int(rises or 0), white_is_high)
    raw = dicom_code(dataset, "PresentationIntentType") == "FOR PROCESSING"
    shape = {"INVERSE": False, "IDENTITY": True}.get(dicom_code(dataset, "PresentationLUTShape"), white_is_high)
    if raw:  # Nobody has looked at it: what the detector says counts, not how a viewer would show it.
        white_is_high = sign
    elif sign != white_is_high or shape != white_is_high:
        notes.append("The file contradicts itself on which grey values are white; make sure that bone is white.")
    if raw and dicom_code(dataset, "PixelIntensityRelationship") == "LIN":
        photons = grey.max() - grey if white_is_high else grey - grey.min()
        grey = -np.log(np.maximum(photons, 0.5 * photons[photons > 0].min()) / photons.max())
        notes.append("The film is a raw one, linear in the exposure: its logarithm was taken.")
    elif not white_is_high:  # Turned over within all that can be stored, whatever this film uses.
        grey = grey.max() + grey.min() - grey
    padding = dicom_number(dataset, "PixelPaddingValue")
    if padding is not None:
        limit = dicom_number(dataset, "PixelPaddingRangeLimit")
        ends = sorted((padding, padding if limit is None else limit))
        grey = np.where((stored >= ends[0]) & (stored <= ends[1]), np.nan, grey)
    return grey.astype(np.float32), notes


def simulated_dicom(
    grey: np.ndarray, view: View, bits: int, inverted: bool, response: str, source_to_patient_mm: float | None
) -> pydicom.Dataset:
    """A DX image of DICOM PS3.3 A.26 with the least that it must hold; the arguments are those of `film.write_dicom`."""
    import pydicom
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    # The same film gets the same identifiers, so that a run can be repeated to the byte.
    study, series, instance = (
        generate_uid(entropy_srcs=[part, str((view.to_dict(), bits, inverted, response)), grey.tobytes().hex()])
        for part in ("study", "series", "sop")
    )
    spacing = [f"{mm:.8g}" for mm in view.pixel_mm]
    content: dict[str, Any] = {
        "SOPClassUID": DigitalXRayImageStorageForPresentation,
        "SOPInstanceUID": instance,
        "StudyInstanceUID": study,
        "SeriesInstanceUID": series,
        **dict.fromkeys(("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID"), ""),
        **dict.fromkeys(("PatientBirthDate", "PatientSex", "AcquisitionDeviceProcessingDescription"), ""),
        "PatientName": "SIMULATED^FILM",
        "PatientID": "SIMULATED",
        "PatientIdentityRemoved": "YES",
        "DeidentificationMethod": "Simulated by transvert; no film of a patient",
        "Modality": "DX",
        "PresentationIntentType": "FOR PRESENTATION",
        "Manufacturer": "transvert",
        "SeriesNumber": 1,
        "InstanceNumber": 1,
        "ImageType": ["DERIVED", "PRIMARY", ""],
        "DerivationDescription": "Simulated radiograph: ray integrals through a volume",
        "PatientOrientation": [_letters(view.column_step), _letters(view.row_step)],
        "ImageLaterality": "U",
        "AnatomicRegionSequence": [],
        "AcquisitionContextSequence": [],
        "DetectorType": "",
        "PositionerType": "",
        "ImagerPixelSpacing": spacing,
        "PixelSpacing": spacing,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME1" if inverted else "MONOCHROME2",
        "Rows": grey.shape[0],
        "Columns": grey.shape[1],
        "BitsAllocated": grey.dtype.itemsize * 8,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": 0,
        "PixelIntensityRelationship": {"log": "LOG", "linear": "LIN"}[response],
        "PixelIntensityRelationshipSign": 1 if inverted else -1,  # Whether high values are where many photons came.
        "RescaleIntercept": 0,
        "RescaleSlope": 1,
        "RescaleType": "US",
        "PresentationLUTShape": "INVERSE" if inverted else "IDENTITY",
        "WindowCenter": 2 ** (bits - 1),
        "WindowWidth": 2**bits,
        "LossyImageCompression": "00",
        "BurnedInAnnotation": "NO",
        "PixelData": np.ascontiguousarray(grey, grey.dtype.newbyteorder("<")).tobytes(),
    }
    if view.name in acquisition.POSITIONS:
        content["ViewPosition"] = acquisition.POSITIONS[view.name]
    if view.source is not None:
        normal = np.cross(view.row_step, view.column_step)
        distance = abs(float((view.corner - view.source) @ normal) / float(np.linalg.norm(normal)))
        content["DistanceSourceToDetector"] = f"{distance:.8g}"
        if source_to_patient_mm is not None:
            content["DistanceSourceToPatient"] = f"{source_to_patient_mm:.8g}"
            content["EstimatedRadiographicMagnificationFactor"] = f"{distance / source_to_patient_mm:.8g}"
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword, value in content.items():
        setattr(dataset, keyword, value)
    return dataset


def _letters(vector: np.ndarray) -> str:
    """The way a direction goes in the patient, strongest part first, such as "L", or "LA" if it is turned."""
    unit = vector / np.linalg.norm(vector)
    order = [i for i in np.argsort(-np.abs(unit), kind="stable") if abs(unit[i]) > 0.1]
    return "".join(("RL", "AP", "HF")[i][int(unit[i] < 0)] for i in order)
