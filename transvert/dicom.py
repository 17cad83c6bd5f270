"""Films in DICOM: read the pixels and their size, describe a simulated film. `film` is the door to both."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transvert.files import InputError
from transvert.geometry import View

if TYPE_CHECKING:
    import pydicom

_NO_FILMS = ("CT", "MR", "NM", "PT", "US")
_VIEW_POSITIONS = {"ap": "AP", "pa": "PA", "left_lateral": "LL", "right_lateral": "RL"}


def read(path: Path) -> tuple[np.ndarray, list[float] | None]:
    """A film's pixels, float32, brighter is more attenuation, and their row and column pitch in mm if the file has it.

    Nothing else is kept of the file. Imager Pixel Spacing, on the detector, goes before Pixel Spacing, which may be
    calibrated to a plane in the patient.

    Raises:
        InputError: not one grey film, or one that can't be decoded.
    """
    import pydicom
    from pydicom.pixels import apply_modality_lut

    try:
        dataset = pydicom.dcmread(path)
        modality = dataset.get("Modality", "")
        if modality in _NO_FILMS:
            raise InputError(f"{path.name} is a {modality} image, not a film.")
        if int(dataset.get("NumberOfFrames") or 1) > 1:
            raise InputError(f"The film {path.name} has {dataset.NumberOfFrames} frames; give one picture a view.")
        kind = dataset.PhotometricInterpretation
        if kind not in ("MONOCHROME1", "MONOCHROME2"):
            raise InputError(f"The film {path.name} is a colour picture ({kind}); a film is grey.")
        stored = dataset.pixel_array
        pixels = np.asarray(apply_modality_lut(stored, dataset), np.float32)
        if kind == "MONOCHROME1":  # White is low. Turned over within all that can be stored, whatever this film uses.
            half = 2 ** (int(dataset.BitsStored) - 1)
            ends = (-half, half - 1) if dataset.PixelRepresentation else (0, 2 * half - 1)
            pixels = np.float32(apply_modality_lut(np.array(ends, stored.dtype), dataset).sum()) - pixels
        spacing = [float(mm) for mm in dataset.get("ImagerPixelSpacing") or dataset.get("PixelSpacing") or []]
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 What a damaged file breaks in pydicom and its decoders is open-ended.
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InputError(f"The film {path.name} can't be decoded; it is damaged or cut short ({reason}).") from None
    # Scanners write 0 for a pitch they don't know.
    return pixels, spacing if len(spacing) == 2 and min(spacing) > 0 else None


def simulated(
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
        "PatientOrientation": [_letters(view.across), _letters(view.down)],
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
    if view.name in _VIEW_POSITIONS:
        content["ViewPosition"] = _VIEW_POSITIONS[view.name]
    if view.source is not None:
        normal = np.cross(view.down, view.across)
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
