"""DICOM films: pixels and acquisition metadata.

A stored value becomes a grey value in this order:

1. The modality LUT or rescale, as the standard asks.
2. The logarithm, for raw images only ("FOR PROCESSING") whose values are linear in the exposure. A film here is
   proportional to attenuation.
3. MONOCHROME1, whose low values are white, is inverted, so that bone is white.
4. NaN where the file marks pixels that the detector did not expose (pixel padding).

The VOI LUT and the window are left out: they say how a viewer shows the values. A window is a linear step that clips.
Networks see standardised patches (`data.patches.standardise`), which undoes the linear part; what was clipped would
be lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transvert.io import InputError

if TYPE_CHECKING:
    from pydicom import Dataset

MOST_PIXELS = 150_000_000
"""Larger films are refused: 12,000 x 12,000 pixels take 0.6 GB as float32, and twice that while they are read."""
POSITIONS = {"ap": "AP", "pa": "PA", "left_lateral": "LL", "right_lateral": "RL"}
"""Each named view's code in DICOM's View Position."""

_FRONTAL = ("ap", "pa")
_PIXEL_MM = (0.01, 10.0)  # The range of a film's pixel pitch; values beyond it are not believed.
_DISTANCE_MM = (400.0, 10_000.0)
_ROWS = 256  # Converted at a time, so that a large film is held in memory once, not three times.

# Single projections: computed and digital radiography, digitised film, a fluoroscope's single shot.
_FILMS = frozenset(("CR", "DX", "RG", "RF", "XA", "DF", "HC", "OT", ""))
# Modalities that an error message may name; any other could be text that identifies a patient.
_NOT_FILMS = frozenset(
    ("BMD", "CT", "ES", "GM", "IO", "MG", "MR", "NM", "OCT", "OP", "PR", "PT", "PX", "SEG", "SM", "SR", "US", "XC")
)

# The only tags that are read: nothing else that the file holds of a patient is looked at.
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

# (transposed, upside down, mirrored) in words.
_ORIENTATIONS = {
    (False, False, False): "",
    (False, False, True): "mirrored left to right",
    (False, True, False): "mirrored top to bottom",
    (False, True, True): "turned by 180 degrees",
    (True, False, False): "mirrored about its diagonal",
    (True, False, True): "turned by 90 degrees clockwise",
    (True, True, False): "turned by 90 degrees counter-clockwise",
    (True, True, True): "mirrored about its other diagonal",
}


@dataclass(frozen=True)
class ImageOrientation:
    """The steps from the stored picture to the upright one, in this order.

    An upright picture has the head at the top. It shows the patient's right (AP, PA) or front (lateral) on the left.

    Attributes:
        transposed: rows and columns are exchanged.
        upside_down: then top and bottom.
        mirrored: then left and right.
    """

    transposed: bool = False
    upside_down: bool = False
    mirrored: bool = False

    def upright_picture(self, stored: np.ndarray) -> np.ndarray:
        """The upright picture of a stored one (rows, columns): a view of the array, not a copy."""
        picture = stored.T if self.transposed else stored
        return picture[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1]

    def upright_pair(self, stored: tuple[Any, Any]) -> tuple[Any, Any]:
        """An amount along rows and one along columns, such as the pixel pitch, in the order of the upright picture."""
        return (stored[1], stored[0]) if self.transposed else stored

    @property
    def words(self) -> str:
        """What was done to the stored picture, such as "mirrored left to right"; empty if nothing was."""
        return _ORIENTATIONS[self.transposed, self.upside_down, self.mirrored]

    def notes(self, origin: str) -> tuple[str, ...]:
        """A sentence for the report if the picture was turned; `origin` is "stated" or "recorded"."""
        return (f"The picture was {self.words}, by its {origin} orientation.",) if self.words else ()


@dataclass(frozen=True)
class Acquisition:
    """How a film was taken; None where its file does not say. Nothing here identifies a patient.

    Attributes:
        view: a name in `geometry.VIEW_NAMES`, or "lateral" if the side is unknown.
        source_to_detector_mm: along the central ray.
        source_to_patient_mm: likewise. A DX film states the distance to the side of the table or stand that faces the
            patient, not to the spine, so the spine is magnified a little more than the two distances imply.
        magnification: source to detector over source to patient.
        pixel_plane: "detector" or "patient", the plane in which the pixel pitch was measured. A pitch in the patient
            times the plane's magnification is the pitch on the detector.
        pixel_mm_from: the origin of the pixel pitch, in words.
        orientation: the steps from the stored picture to the upright one.
        notes: further sentences for the report.
    """

    view: str | None = None
    source_to_detector_mm: float | None = None
    source_to_patient_mm: float | None = None
    magnification: float | None = None
    pixel_plane: str = "detector"
    pixel_mm_from: str = ""
    orientation: ImageOrientation = ImageOrientation()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report's entry for the film, JSON-ready."""
        content = asdict(self)
        del content["orientation"]
        return content | {"turned": self.orientation.words, "notes": list(self.notes)}


def read_dicom(
    path: Path, view: str | None = None, orientation: Sequence[str] | None = None
) -> tuple[np.ndarray, tuple[float, float] | None, Acquisition]:
    """Reads a film's pixels, pixel pitch and acquisition metadata.

    Args:
        path: the file.
        view: the expected view, "ap", "pa" or a lateral one; None for any.
        orientation: replaces what the file says of its orientation and view, as in `orientation_from_letters`.

    Returns:
        (rows, columns) float32 of the upright picture, brighter is more attenuation, NaN where the detector was not
        exposed; its row and column pitch in mm, None if the file states none; and the metadata.

    Raises:
        InputError: not one grey film, damaged, too large, or another view than expected. The message quotes nothing
            from the file but DICOM's own codes.
    """
    import pydicom

    try:
        with _silence():
            dataset = pydicom.dcmread(path, specific_tags=list(_READ))
            _check_film(dataset, path.name)
            grey, notes = _grey_of_stored(dataset)
            pixel_mm, acquisition = _read_acquisition(dataset, path.name, view, orientation, notes)
            return _look_up(grey, acquisition.orientation.upright_picture(_stored(dataset))), pixel_mm, acquisition
    except InputError:
        raise
    except Exception:  # noqa: BLE001 A damaged file can raise any error in pydicom and its decoders.
        raise InputError(
            f"The film {path.name} can't be decoded; it is damaged or cut short: copy or export it once more."
        ) from None


def orientation_from_letters(letters: Sequence[str], view: str | None, name: str) -> ImageOrientation:
    """The steps that turn a picture upright.

    Args:
        letters: the patient's direction along a row and down a column, in DICOM's letters R, L, A, P, H or F, the
            strongest first. An upright AP or PA picture has ("L", "F"), a lateral one ("P", "F").
        view: the expected view, "ap", "pa" or a lateral one; None for any.
        name: the file's, for the error message.

    Raises:
        InputError: unknown letters, a picture from above or below, or another view than expected.
    """
    found = [str(part).upper() for part in letters] if isinstance(letters, Sequence) else []
    if len(found) != 2 or not all(part and set(part) <= set("RLAPHF") for part in found):
        raise InputError(
            f"The orientation of the film {name} is not understood; state the patient's directions along its rows and "
            "down its columns, such as ['L', 'F']."
        )
    across, down = found[0][0], found[1][0]
    transposed = across in "HF"
    if transposed:
        across, down = down, across
    if across in "HF" or down not in "HF":
        raise InputError(
            f"The film {name} shows the patient neither from the front nor from the side, by its orientation; give an "
            "AP (or PA) and a lateral film."
        )
    _check_view("lateral" if across in "AP" else "ap", view, name, "orientation")
    return ImageOrientation(transposed, upside_down=down == "H", mirrored=across in "RA")


def check_pixel_mm(pixel_mm: tuple[float, float], name: str) -> None:
    """Checks that a film can have this pixel pitch.

    Raises:
        InputError: it is not within 0.01 to 10 mm.
    """
    if not all(_PIXEL_MM[0] <= mm <= _PIXEL_MM[1] for mm in pixel_mm):
        raise InputError(
            f"Pixels of {pixel_mm[0]:g} x {pixel_mm[1]:g} mm make no film of {name}; check that pixel_mm is in mm."
        )


def too_large(name: str) -> str:
    """The error message for a film of more than `MOST_PIXELS`."""
    return f"The film {name} has more than {MOST_PIXELS // 10**6} million pixels; make it smaller."


def _check_film(dataset: Dataset, name: str) -> None:
    """Checks that a file holds one grey film that can be decoded."""
    modality = _code(dataset, "Modality")
    if modality not in _FILMS:
        kind = f"a {modality} image" if modality in _NOT_FILMS else "of another modality"
        raise InputError(f"{name} is {kind}, not a film; give a radiograph (CR or DX).")
    if "PixelData" not in dataset and "EncryptedAttributesSequence" in dataset:
        raise InputError(f"The film {name} is encrypted; decrypt it before you give it here.")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise InputError(f"The film {name} has {frames} frames; give one picture a view.")
    kind = _code(dataset, "PhotometricInterpretation")
    if kind not in ("MONOCHROME1", "MONOCHROME2") or int(dataset.get("SamplesPerPixel", 1)) != 1:
        raise InputError(
            f"The film {name} is a colour picture, such as a photograph or a screenshot; a film is grey: give the "
            "radiograph itself."
        )
    if dataset.Rows * dataset.Columns > MOST_PIXELS:
        raise InputError(too_large(name))
    if dataset.BitsAllocated not in (8, 16):
        raise InputError(f"The film {name} has {dataset.BitsAllocated:d} bits a pixel; export it with 8 or 16.")
    _check_compression(dataset, name)


def _check_compression(dataset: Dataset, name: str) -> None:
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    with contextlib.suppress(NotImplementedError):
        if get_decoder(syntax).is_available:
            return
    known = f"compressed as {syntax.name}" if syntax.name != syntax else "compressed or encrypted in a private way"
    raise InputError(
        f"The film {name} is {known}, which can't be read here; export it uncompressed, or convert it with "
        "`gdcmconv --raw`."
    )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Silences pydicom and the decoders: their complaints quote the file, and some go straight to the terminal."""
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


def _stored(dataset: Dataset) -> np.ndarray:
    """(rows, columns) unsigned, each pixel's `BitsStored` bits; a view of the file's bytes where that is possible."""
    from pydicom.pixels import pixel_array

    stored = pixel_array(dataset, raw=True, view_only=True, correct_unused_bits=False)
    stored = stored.view(f"{stored.dtype.byteorder}u{stored.dtype.itemsize}")
    # Overlays may lie in the bits above the picture's, or below them in old files.
    shift = 0 if dataset.file_meta.TransferSyntaxUID.is_encapsulated else dataset.HighBit + 1 - dataset.BitsStored
    return stored >> shift if shift else stored


def _look_up(grey: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """`grey` of every stored value: contiguous float32."""
    pixels = np.empty(stored.shape, np.float32)
    for top in range(0, len(stored), _ROWS):
        pixels[top : top + _ROWS] = grey[stored[top : top + _ROWS] & (len(grey) - 1)]
    return pixels


def _grey_of_stored(dataset: Dataset) -> tuple[np.ndarray, list[str]]:
    """(2**BitsStored,) float32, the grey of every value that can be stored; and notes for the report."""
    from pydicom.pixels import apply_modality_lut

    bits, notes = int(dataset.BitsStored), []
    stored = np.arange(2**bits)
    if dataset.PixelRepresentation:
        stored = np.where(stored < 2 ** (bits - 1), stored, stored - 2**bits)
    grey = np.asarray(apply_modality_lut(stored, dataset), float)
    if not np.isfinite(grey).all():
        raise ValueError("a rescale that is no number")
    white_is_high = dataset.PhotometricInterpretation == "MONOCHROME2"
    rises = _number(dataset, "PixelIntensityRelationshipSign")  # 1: high values mean many photons.
    sign = {1: False, -1: True}.get(int(rises or 0), white_is_high)
    raw = _code(dataset, "PresentationIntentType") == "FOR PROCESSING"
    shape = {"INVERSE": False, "IDENTITY": True}.get(_code(dataset, "PresentationLUTShape"), white_is_high)
    if raw:  # The detector's own sign counts, not how a viewer would show the values.
        white_is_high = sign
    elif sign != white_is_high or shape != white_is_high:
        notes.append("The file contradicts itself on which grey values are white; make sure that bone is white.")
    if raw and _code(dataset, "PixelIntensityRelationship") == "LIN":
        photons = grey.max() - grey if white_is_high else grey - grey.min()
        grey = -np.log(np.maximum(photons, 0.5 * photons[photons > 0].min()) / photons.max())
        notes.append("The film is a raw one, linear in the exposure: its logarithm was taken.")
    elif not white_is_high:  # Inverted within the whole range that can be stored.
        grey = grey.max() + grey.min() - grey
    padding = _number(dataset, "PixelPaddingValue")
    if padding is not None:
        limit = _number(dataset, "PixelPaddingRangeLimit")
        ends = sorted((padding, padding if limit is None else limit))
        grey = np.where((stored >= ends[0]) & (stored <= ends[1]), np.nan, grey)
    return grey.astype(np.float32), notes


def _read_acquisition(
    dataset: Dataset, name: str, view: str | None, letters: Sequence[str] | None, notes: Sequence[str]
) -> tuple[tuple[float, float] | None, Acquisition]:
    """The upright picture's pixel pitch, None if the file has no plausible one, and the acquisition metadata."""
    recorded_view, recorded_letters = _view(dataset), dataset.get("PatientOrientation")
    orientation = ImageOrientation()
    if letters:
        orientation = orientation_from_letters(letters, view, name)
        if view and recorded_view and (recorded_view in _FRONTAL) != (view in _FRONTAL):
            recorded_view = None  # The user's statement goes before the file's.
    else:
        if recorded_view:
            _check_view(recorded_view, view, name, "view position")
        if recorded_letters and any(recorded_letters):
            orientation = orientation_from_letters(recorded_letters, view or recorded_view, name)
    pixel_mm, plane, origin = _pixel_mm(dataset)
    detector = _number(dataset, "DistanceSourceToDetector", _DISTANCE_MM)
    patient = _number(dataset, "DistanceSourceToPatient", (1.0, (detector or np.inf) - 1e-6))
    magnification = _number(dataset, "EstimatedRadiographicMagnificationFactor", (1 + 1e-6, 3.0))
    if detector and patient:
        magnification = magnification or detector / patient
    elif detector and magnification:
        patient = detector / magnification
    return pixel_mm and orientation.upright_pair(pixel_mm), Acquisition(
        recorded_view,
        detector,
        patient,
        magnification,
        plane,
        origin,
        orientation,
        (*notes, *orientation.notes("stated" if letters else "recorded")),
    )


def _view(dataset: Dataset) -> str | None:
    position = _code(dataset, "ViewPosition")
    if position in ("LAT", "LATERAL", "LLAT", "RLAT"):
        side = _code(dataset, "ImageLaterality") if position.startswith("LAT") else position[0]
        return {"L": "left_lateral", "R": "right_lateral"}.get(side, "lateral")
    return {code: view for view, code in POSITIONS.items()}.get(position)


def _pixel_mm(dataset: Dataset) -> tuple[tuple[float, float] | None, str, str]:
    """Row and column pitch as stored, its plane, and its origin in words.

    The pitch on the detector, or of a digitised film, goes before Pixel Spacing, which may be calibrated to a plane in
    the patient.
    """
    for keyword, origin in (
        ("ImagerPixelSpacing", "the file's Imager Pixel Spacing, on the detector"),
        ("NominalScannedPixelSpacing", "the pitch at which the film was digitised, by the file"),
    ):
        if pair := _pair(dataset, keyword):
            return pair, "detector", origin
    pair = _pair(dataset, "PixelSpacing")
    calibrations = {"GEOMETRY": "by the distances", "FIDUCIAL": "by an object of known size"}
    calibration = calibrations.get(_code(dataset, "PixelSpacingCalibrationType"))
    if pair and calibration:
        return pair, "patient", f"the file's Pixel Spacing, calibrated {calibration} to a plane in the patient"
    origin = "the file's Pixel Spacing, which does not say of which plane; taken for the detector's"
    return pair, "detector", origin if pair else ""


def _pair(dataset: Dataset, keyword: str) -> tuple[float, float] | None:
    try:
        row_mm, column_mm = (float(mm) for mm in dataset.get(keyword))
    except (TypeError, ValueError):
        return None
    return (row_mm, column_mm) if all(_PIXEL_MM[0] <= mm <= _PIXEL_MM[1] for mm in (row_mm, column_mm)) else None


def _code(dataset: Dataset, keyword: str) -> str:
    """A code in capitals, the first of several; empty if the file has none."""
    value = dataset.get(keyword) or ""
    return str(value if isinstance(value, str) else value[0]).strip().upper()


def _number(dataset: Dataset, keyword: str, limits: tuple[float, float] = (-np.inf, np.inf)) -> float | None:
    """A number, None if the file has none within limits: scanners write 0 for what they don't know."""
    try:
        value = float(dataset.get(keyword))
    except (TypeError, ValueError):
        return None
    return value if limits[0] <= value <= limits[1] else None


def _check_view(found: str, expected: str | None, name: str, origin: str) -> None:
    if expected is not None and (found in _FRONTAL) != (expected in _FRONTAL):
        kinds = ("a frontal", "lateral") if found in _FRONTAL else ("a lateral", "frontal")
        raise InputError(
            f"The film {name} is {kinds[0]} one by its {origin}, but it is given as the {kinds[1]} one; exchange the two "
            "films, or state the film's orientation by hand if its file is wrong."
        )
