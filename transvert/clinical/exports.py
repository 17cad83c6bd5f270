"""Files of a spine for other programs: 3D Slicer's segmentations and point lists, and DICOM segmentations.

All of them count in LPS (x to the patient's left, y to the back), as their formats ask; `Volume` and points here are RAS.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from transvert import __version__, levels
from transvert.imaging.volume import Volume
from transvert.io import InputError, atomic_path, read_json, write_json
from transvert.plots.viewer import level_colours

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # Its own inverse.
_MARKUPS = (
    "https://raw.githubusercontent.com/Slicer/Slicer/main/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)


def write_segmentation(labels: Volume, path: str | Path) -> Path:
    """Writes labels (X, Y, Z) of VerSe numbers as a segmentation of 3D Slicer (`.seg.nrrd`), atomically.

    Each level is a segment with its name, its colour and its VerSe number as label value.
    """
    import nrrd

    affine = _RAS_TO_LPS @ labels.affine
    header: dict[str, Any] = {
        "space": "left-posterior-superior",
        "space directions": affine[:3, :3].T,
        "space origin": affine[:3, 3],
        "kinds": ["domain"] * 3,
        "encoding": "gzip",
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    extent = " ".join(f"0 {size - 1}" for size in labels.data.shape)
    for n, level in enumerate(_levels_in(labels)):
        segment = {
            "ID": f"vertebra_{levels.name(level)}",
            "Name": levels.name(level),
            "LabelValue": str(level),
            "Layer": "0",
            "Extent": extent,
            "Color": " ".join(f"{part:.3f}" for part in level_colours(np.array(level))),
        }
        header |= {f"Segment{n}_{key}": value for key, value in segment.items()}
    with atomic_path(path) as temporary:
        nrrd.write(str(temporary), labels.data.astype(np.uint8), header)
    return Path(path)


def write_dicom_segmentation(labels: Volume, path: str | Path) -> Path:
    """Writes labels (X, Y, Z) of VerSe numbers as a DICOM Segmentation (PS3.3 A.51), atomically.

    It names no patient and belongs to no CT: study, frame of reference and the axial series that it refers to are made up,
    since the reconstruction has none. Its segments have the SNOMED CT codes of their vertebrae; T13 and L6, which have
    none, that of a vertebra. Equal labels give equal segmentations, but for date and time.
    """
    import highdicom
    from pydicom import Dataset
    from pydicom.sr.codedict import codes
    from pydicom.uid import CTImageStorage, generate_uid

    digest = hashlib.sha256(labels.affine.tobytes() + labels.data.tobytes()).hexdigest()
    study, frame, series, image, own_series, own = (generate_uid(entropy_srcs=[digest, str(n)]) for n in range(6))
    source = Dataset()
    blank = ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber")
    content: dict[str, Any] = dict.fromkeys((*blank, "ReferringPhysicianName", "PositionReferenceIndicator"), "")
    content |= {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": image,
        "StudyInstanceUID": study,
        "SeriesInstanceUID": series,
        "FrameOfReferenceUID": frame,
        "Modality": "CT",
        "PatientName": "RECONSTRUCTED^SPINE",
        "PatientID": "RECONSTRUCTED",
        "Rows": labels.data.shape[1],
        "Columns": labels.data.shape[0],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [0, 0, 0],
        "PixelSpacing": [1, 1],
        "SliceThickness": 1,
    }
    for keyword, value in content.items():
        setattr(source, keyword, value)
    numbers = _levels_in(labels)
    family = highdicom.AlgorithmIdentificationSequence("transvert", codes.DCM.ArtificialIntelligence, __version__)
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=n + 1,
            segment_label=levels.name(level),
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=getattr(codes.SCT, f"{levels.name(level)}Vertebra", codes.SCT.Vertebra),
            algorithm_type="AUTOMATIC",
            algorithm_identification=family,
        )
        for n, level in enumerate(numbers)
    ]
    places = np.zeros(256, np.uint8)
    places[numbers] = np.arange(len(numbers)) + 1
    volume = highdicom.Volume(  # Its first axis becomes the frames: slices from the feet up.
        places[labels.data].transpose(2, 1, 0),
        (_RAS_TO_LPS @ labels.affine)[:, [2, 1, 0, 3]],
        coordinate_system="PATIENT",
        frame_of_reference_uid=frame,
    )
    dataset = highdicom.seg.Segmentation(
        *([source], volume, "BINARY", segments, own_series, 1, own, 1),
        *("transvert", "transvert", __version__, "0"),
    )
    with atomic_path(path) as temporary:
        dataset.save_as(temporary)
    return Path(path)


def write_markups(path: str | Path, points: Mapping[int, np.ndarray]) -> Path:
    """Writes points, level to (3,) RAS mm, as a point list of 3D Slicer (`.mrk.json`), atomically."""
    controls = [
        {
            "id": str(n + 1),
            "label": levels.name(level),
            "position": (np.asarray(points[level], float) * (-1, -1, 1)).tolist(),
        }
        | {"positionStatus": "defined"}
        for n, level in enumerate(levels.in_order(set(points)))
    ]
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": controls}
    return write_json(path, {"@schema": _MARKUPS, "markups": [markup]})


def read_markups(path: str | Path) -> dict[int, np.ndarray]:
    """Level to (3,) RAS mm, from a point list of 3D Slicer whose labels are names of levels such as "L3".

    `landmarks.project_landmarks` makes the landmarks of two views of them.

    Raises:
        InputError: no point list in mm and in LPS or RAS, a label that names no level or twice the same one.
    """
    source, found = f"The point list {Path(path).name}", {}
    try:
        for markup in read_json(path, "point list")["markups"]:
            frame, unit = markup.get("coordinateSystem", "LPS"), markup.get("coordinateUnits", "mm")
            if frame not in ("LPS", "RAS") or unit != "mm":
                raise InputError(f"{source} is in {frame} and {unit}; save it in LPS or RAS, in mm.")
            for control in markup["controlPoints"]:
                if control.get("positionStatus", "defined") != "defined":
                    continue
                level, (x, y, z) = levels.number(control["label"]), map(float, control["position"])
                if level in found or not all(map(math.isfinite, (x, y, z))):
                    raise InputError(f"{source} has {levels.name(level)} twice, or not as three finite numbers.")
                found[level] = np.array([x, y, z]) * ((-1, -1, 1) if frame == "LPS" else 1)
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(f"{source} is not one of 3D Slicer; save a point list as .mrk.json.") from None
    return found


def _levels_in(labels: Volume) -> list[int]:
    return levels.in_order({int(n) for n in np.unique(labels.data) if n})
