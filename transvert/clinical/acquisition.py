"""What is known of how a film was taken, besides its pixels: how the picture lies in its file, where the source stood.

Pixels of a picture are counted as any viewer of the file shows it: that picture is the *stored* one, and landmark files
speak of it. A `film.Film` holds the picture turned to this project's convention: AP and PA with the patient's right on
the left, laterals with the front on the left, heads up. `Turn` is the step between the two, for pictures and for pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from transvert.drr.geometry import SOURCE_TO_DETECTOR_MM, SOURCE_TO_ISOCENTRE_MM
from transvert.io import InputError

if TYPE_CHECKING:
    from pydicom import Dataset

POSITIONS = {"ap": "AP", "pa": "PA", "left_lateral": "LL", "right_lateral": "RL"}
"""Each named view's code in DICOM's View Position."""

_FRONTAL = ("ap", "pa")
_PITCH_MM = (0.01, 10.0)  # What a film's pixel can measure; what a file says beyond that is not believed.
_DISTANCE_MM = (400.0, 10_000.0)

# (transposed, top and bottom exchanged, left and right exchanged) in words.
_TURNS = {
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
    """From a stored picture to a film's: rows and columns exchanged first, then what is upside down, then what is mirrored.

    Attributes:
        transposed: rows and columns are exchanged.
        upside_down: then top and bottom.
        mirrored: then left and right.
    """

    transposed: bool = False
    upside_down: bool = False
    mirrored: bool = False

    def picture(self, stored: np.ndarray) -> np.ndarray:
        """The film's picture of a stored one (rows, columns): a view, not a copy."""
        turned = stored.T if self.transposed else stored
        return turned[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1]

    def to_film(self, pixel: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Where a stored picture's pixel lies on the film.

        Args:
            pixel: (..., 2) row and column.
            shape: rows and columns of the film.
        """
        pixel = np.asarray(pixel, float)
        return self._mirror(pixel[..., ::-1] if self.transposed else pixel, shape)

    def to_stored(self, pixel: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Where a film's pixel lies in the stored picture: the inverse of `to_film`, `shape` still the film's."""
        pixel = self._mirror(np.asarray(pixel, float), shape)
        return pixel[..., ::-1] if self.transposed else pixel

    def pair(self, along: tuple[float, float]) -> tuple[float, float]:
        """An amount along rows and one along columns, such as the pixel pitch, from the stored picture to the film."""
        return (along[1], along[0]) if self.transposed else along

    @property
    def words(self) -> str:
        """What was done to the stored picture; empty where it was left as it was."""
        return _TURNS[self.transposed, self.upside_down, self.mirrored]

    def _mirror(self, pixel: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        flipped = np.array((self.upside_down, self.mirrored))
        return np.where(flipped, np.array(shape) - 1 - pixel, pixel)


@dataclass(frozen=True)
class Acquisition:
    """How a film was taken, as far as its file says; None where it doesn't. Nothing here identifies a patient.

    Attributes:
        view: the view's name in `geometry.VIEW_NAMES`, or "lateral" where no side is said.
        source_to_detector_mm: along the central ray.
        source_to_patient_mm: likewise. In a DX film this is to the side of the table or stand that faces the patient,
            not to the spine, so the spine's own magnification is a little more than these two say.
        magnification: source to detector over source to patient.
        plane: "detector" or "patient": where the pixel pitch was measured. One calibrated to a plane in the patient has
            to be multiplied by that plane's magnification to be the detector's.
        pitch_from: where the pixel pitch comes from, in words.
        turn: from the stored picture to the film's.
        notes: whatever else a reader should know, one sentence each.
    """

    view: str | None = None
    source_to_detector_mm: float | None = None
    source_to_patient_mm: float | None = None
    magnification: float | None = None
    plane: str = "detector"
    pitch_from: str = ""
    turn: ImageOrientation = ImageOrientation()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """What a report says of the film, JSON-ready."""
        return {
            "view": self.view,
            "source_to_detector_mm": self.source_to_detector_mm,
            "source_to_patient_mm": self.source_to_patient_mm,
            "magnification": self.magnification,
            "pixel_plane": self.plane,
            "pixel_mm_from": self.pitch_from,
            "turned": self.turn.words,
            "notes": list(self.notes),
        }


def source_distances(known: Acquisition, said: Mapping[str, Any]) -> tuple[float, float]:
    """Source to detector and source to isocentre, mm: as a landmark file's view says, else the film, else the defaults.

    A film's source-to-patient distance stands for that to the isocentre. Where only the detector's is known, the
    isocentre keeps its default distance from the detector.
    """
    detector = float(said.get("source_to_detector_mm") or known.source_to_detector_mm or SOURCE_TO_DETECTOR_MM)
    nearer = detector - (SOURCE_TO_DETECTOR_MM - SOURCE_TO_ISOCENTRE_MM)
    if known.source_to_patient_mm:
        nearer = known.source_to_patient_mm
    elif known.magnification:
        nearer = detector / known.magnification
    return detector, float(said.get("source_to_isocentre_mm") or nearer)


def orientation_from_letters(orientation: Sequence[str], view: str | None, name: str) -> ImageOrientation:
    """The turn that a picture needs whose directions are known.

    Args:
        orientation: where a row's pixels go in the patient and where a column's go, in DICOM's letters: R, L, A, P, H
            or F, strongest first. A picture in this project's convention has ("L", "F"), a lateral one ("P", "F").
        view: what the picture is said to show, "ap", "pa", or a lateral; None for either.
        name: of the file, for the sentence.

    Raises:
        InputError: no such letters, a picture that shows neither the front nor the side, or not what is said.
    """
    letters = [str(part).upper() for part in orientation] if isinstance(orientation, Sequence) else []
    if len(letters) != 2 or not all(part and set(part) <= set("RLAPHF") for part in letters):
        raise InputError(
            f"The orientation of the film {name} is not understood; state where its rows and its columns go in the "
            "patient, such as ['L', 'F']."
        )
    across, down = letters[0][0], letters[1][0]
    transposed = across in "HF"
    if transposed:
        across, down = down, across
    if across in "HF" or down not in "HF":
        raise InputError(
            f"The film {name} shows the patient neither from the front nor from the side, by its orientation; give an "
            "AP (or PA) and a lateral film."
        )
    _check_kind("lateral" if across in "AP" else "ap", view, name, "orientation")
    return ImageOrientation(transposed, upside_down=down == "H", mirrored=across in "RA")


def acquisition_from_dicom(
    dataset: Dataset,
    name: str,
    view: str | None = None,
    orientation: Sequence[str] | None = None,
    notes: Sequence[str] = (),
) -> tuple[tuple[float, float] | None, Acquisition]:
    """The pixel pitch of a DICOM film, turned, and what its file says of how it was taken.

    The pitch on the detector (Imager Pixel Spacing) or of a digitised film goes before Pixel Spacing, which may be
    calibrated to a plane in the patient.

    Args:
        dataset: of the film.
        name: of the file, for a sentence.
        view: what the film is given as; None for a frontal or a lateral one.
        orientation: as in `turn_of`; goes before what the file says of it and of its view.
        notes: to begin with.

    Returns:
        Row and column pitch in mm, or None where the file has none that can be; and the facts.

    Raises:
        InputError: the file says that the film shows something else.
    """
    seen, lies = _view(dataset), dataset.get("PatientOrientation")
    turn = ImageOrientation()
    if orientation:
        turn = orientation_from_letters(orientation, view, name)
        if view and seen and (seen in _FRONTAL) != (view in _FRONTAL):
            seen = None  # What is stated by hand goes before it.
    else:
        if seen:
            _check_kind(seen, view, name, "view position")
        if lies and any(lies):
            turn = orientation_from_letters(lies, view or seen, name)
    said = [*notes]
    if turn.words:
        said.append(f"The picture was {turn.words}, as its {'stated' if orientation else 'recorded'} orientation asks.")
    pitch, plane, origin = _pitch(dataset)
    detector = dicom_number(dataset, "DistanceSourceToDetector", _DISTANCE_MM)
    patient = dicom_number(dataset, "DistanceSourceToPatient", (1.0, (detector or np.inf) - 1e-6))
    magnification = dicom_number(dataset, "EstimatedRadiographicMagnificationFactor", (1 + 1e-6, 3.0))
    if detector and patient:
        magnification = magnification or detector / patient
    elif detector and magnification:
        patient = detector / magnification
    return pitch and turn.pair(pitch), Acquisition(
        seen, detector, patient, magnification, plane, origin, turn, tuple(said)
    )


def acquisition_of_picture(
    pitch: tuple[float, float] | None, name: str, view: str | None, orientation: Sequence[str] | None
) -> tuple[tuple[float, float] | None, Acquisition]:
    """The same of a PNG, JPEG or TIFF, whose file tells a pixel pitch at most; arguments as in `from_dicom`."""
    turn = orientation_from_letters(orientation, view, name) if orientation else ImageOrientation()
    notes = (f"The picture was {turn.words}, as its stated orientation asks.",) if turn.words else ()
    return pitch and turn.pair(pitch), Acquisition(
        pitch_from="the file's pixel size" if pitch else "", turn=turn, notes=notes
    )


def check_pitch(pitch: tuple[float, float], name: str) -> None:
    """Makes sure that a pixel pitch in mm can be a film's.

    Raises:
        InputError: it is not within 0.01 to 10 mm.
    """
    if not all(_PITCH_MM[0] <= mm <= _PITCH_MM[1] for mm in pitch):
        raise InputError(
            f"Pixels of {pitch[0]:g} x {pitch[1]:g} mm make no film of {name}; check that pixel_mm is in mm."
        )


def dicom_code(dataset: Dataset, keyword: str) -> str:
    """A code in capitals, the first where there are several; empty where the file has none."""
    value = dataset.get(keyword) or ""
    return str(value if isinstance(value, str) else value[0]).strip().upper()


def dicom_number(dataset: Dataset, keyword: str, limits: tuple[float, float] = (-np.inf, np.inf)) -> float | None:
    """A number, or None where the file has none within limits. Scanners write 0 for what they don't know."""
    try:
        value = float(dataset.get(keyword))
    except (TypeError, ValueError):
        return None
    return value if limits[0] <= value <= limits[1] else None


def _view(dataset: Dataset) -> str | None:
    position = dicom_code(dataset, "ViewPosition")
    if position in ("LAT", "LATERAL", "LLAT", "RLAT"):
        side = dicom_code(dataset, "ImageLaterality") if position.startswith("LAT") else position[0]
        return {"L": "left_lateral", "R": "right_lateral"}.get(side, "lateral")
    return {short: view for view, short in POSITIONS.items()}.get(position)


def _pitch(dataset: Dataset) -> tuple[tuple[float, float] | None, str, str]:
    """Row and column pitch as stored, the plane of it, and where it comes from in words."""
    for keyword, origin in (
        ("ImagerPixelSpacing", "the file's Imager Pixel Spacing, on the detector"),
        ("NominalScannedPixelSpacing", "the pitch at which the film was digitised, by the file"),
    ):
        if pitch := _pair(dataset, keyword):
            return pitch, "detector", origin
    pitch = _pair(dataset, "PixelSpacing")
    by = {"GEOMETRY": "by the distances", "FIDUCIAL": "by an object of known size"}
    how = by.get(dicom_code(dataset, "PixelSpacingCalibrationType"))
    if pitch and how:
        return pitch, "patient", f"the file's Pixel Spacing, calibrated {how} to a plane in the patient"
    said = "the file's Pixel Spacing, which does not say of which plane; taken for the detector's"
    return pitch, "detector", said if pitch else ""


def _pair(dataset: Dataset, keyword: str) -> tuple[float, float] | None:
    try:
        row_mm, column_mm = (float(mm) for mm in dataset.get(keyword))
    except (TypeError, ValueError):
        return None
    return (row_mm, column_mm) if all(_PITCH_MM[0] <= mm <= _PITCH_MM[1] for mm in (row_mm, column_mm)) else None


def _check_kind(found: str, said: str | None, name: str, by: str) -> None:
    if said is not None and (found in _FRONTAL) != (said in _FRONTAL):
        kinds = ("a frontal", "lateral") if found in _FRONTAL else ("a lateral", "frontal")
        raise InputError(
            f"The film {name} is {kinds[0]} one by its {by}, but it is given as the {kinds[1]} one; exchange the two films, "
            "or state the film's orientation by hand if its file is wrong."
        )
