"""DICOM films: pixels and acquisition metadata.

A stored value becomes a grey value in this order:

1. The modality LUT or rescale, as the standard asks.
2. The logarithm, for raw images only ("FOR PROCESSING") whose values are linear in the exposure. A film here is
   proportional to attenuation.
3. MONOCHROME1, whose low values are white, is inverted, so that bone is white.
4. NaN where the file marks pixels that the detector did not expose (pixel padding).

A scout view of a CT (its localizer) is a film too, and so is that of a slot scanner such as EOS; `Acquisition.projection`
tells them apart.

The VOI LUT and the window are left out: they say how a viewer shows the values. Networks see standardised patches
(`data.patches.standardise`), which undoes a window's linear part; what it clips would be lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transvert.io import InputError

if TYPE_CHECKING:
    from pydicom import Dataset

MOST_PIXELS = 150_000_000  # Larger films are refused: these take 0.6 GB as float32, and twice that to read.
POSITIONS = {"ap": "AP", "pa": "PA", "left_lateral": "LL", "right_lateral": "RL"}  # Codes of DICOM's View Position.
ROWS = 256  # Rows that are converted at a time, so that a large film is held in memory once, not three times.

_VIEWS = {code: view for view, code in POSITIONS.items()} | {"LAT": "lateral", "LATERAL": "lateral"}
_VIEWS |= {"LLAT": "left_lateral", "RLAT": "right_lateral"}
_FRONTAL = ("ap", "pa")
# Codes of views that are neither frontal nor lateral, and of films of a lying patient's side.
_OTHER_VIEWS = ("LAO", "RAO", "LPO", "RPO", "LLO", "RLO", "OBLIQUE", "AXIAL", "LLD", "RLD", "LD", "RD", "DECUBITUS")
_PIXEL_MM = (0.01, 10.0)  # The range of a film's pixel pitch; values beyond it are not believed.
_DISTANCE_MM = (400.0, 10_000.0)

# Single projections: computed and digital radiography, digitised film, a fluoroscope's single shot.
_FILMS = ("CR", "DX", "RG", "RF", "XA", "DF", "HC", "OT", "")
# Modalities that an error message may name; any other could be text that identifies a patient.
_NOT_FILMS = (
    *("BMD", "CT", "ES", "GM", "IO", "MG", "MR", "NM", "OCT", "OP", "PR", "PT", "PX", "SEG", "SM", "SR", "US", "XC"),
)

# The only tags that are read: nothing else that the file holds of a patient is looked at.
_READ = (
    *("Modality", "NumberOfFrames", "PresentationIntentType", "EncryptedAttributesSequence", "PixelData"),
    *("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"),
    *("PlanarConfiguration", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("PresentationLUTShape", "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("PixelIntensityRelationship", "PixelIntensityRelationshipSign"),
    *("ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelSpacing", "PixelSpacingCalibrationType"),
    *("DistanceSourceToDetector", "DistanceSourceToPatient", "EstimatedRadiographicMagnificationFactor"),
    *("PatientOrientation", "ViewPosition", "ImageLaterality", "DetectorConfiguration", "Manufacturer"),
    *("ImageType", "ImageOrientationPatient", "ImagePositionPatient"),  # Of a CT's scout views.
)
_OVERLAY_BITS = [0x60000102 + n * 0x20000 for n in range(16)]  # The bit of the picture's words that holds an overlay.

# What (transposed, upside down, mirrored) do to a picture, counted in binary.
_ORIENTATIONS = (
    *("", "mirrored left to right", "mirrored top to bottom", "turned by 180 degrees"),
    *("mirrored about its diagonal", "turned by 90 degrees clockwise"),
    *("turned by 90 degrees counter-clockwise", "mirrored about its other diagonal"),
)

# The tags of the pixel pitch. The last may be calibrated to a plane in the patient.
_PITCHES = {
    "ImagerPixelSpacing": "the file's Imager Pixel Spacing, on the detector",
    "NominalScannedPixelSpacing": "the pitch at which the film was digitised, by the file",
    "PixelSpacing": "the file's Pixel Spacing, which does not say of which plane; taken for the detector's",
}
_CALIBRATIONS = {"GEOMETRY": "by the distances", "FIDUCIAL": "by an object of known size"}


@dataclass(frozen=True)
class ImageOrientation:
    """The steps from the stored picture to the upright one, in this order.

    An upright picture has the head at the top. It shows the patient's right (AP, PA) or front (lateral) on the left.
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
        return _ORIENTATIONS[4 * self.transposed + 2 * self.upside_down + self.mirrored]

    def notes(self, origin: str) -> tuple[str, ...]:
        """A sentence for the report if the picture was turned; `origin` is "stated" or "recorded"."""
        return (f"The picture was {self.words}, by its {origin} orientation.",) if self.words else ()


@dataclass(frozen=True)
class Acquisition:
    """How a film was taken; None where its file does not say. Nothing here identifies a patient.

    Distances are along the central ray. A DX film states that to the table or stand, not to the spine, which is magnified
    a little more.
    """

    view: str | None = None  #: A name in `geometry.VIEW_NAMES`, or "lateral" if the side is unknown.
    source_to_detector_mm: float | None = None
    source_to_patient_mm: float | None = None
    magnification: float | None = None  #: Source to detector over source to patient.
    pixel_plane: str = "detector"  #: "detector" or "patient", the plane in which the pixel pitch was measured.
    pixel_mm_from: str = ""  #: The origin of the pixel pitch, in words.
    orientation: ImageOrientation = ImageOrientation()  #: From the stored picture to the upright one.
    projection: str | None = None  #: "slot" of a slot scanner, "slot" or "parallel" of a CT's scout view.
    zero_row: float | None = None  #: Row of the upright picture at z = 0 of the CT that a scout view belongs to.
    notes: tuple[str, ...] = ()  #: Further sentences for the report.

    def to_dict(self) -> dict[str, Any]:
        """The report's entry for the film, JSON-ready."""
        content = asdict(self) | {"turned": self.orientation.words, "notes": list(self.notes)}
        del content["orientation"]
        return content


def read_dicom(
    path: Path, view: str | None = None, orientation: Sequence[str] | None = None
) -> tuple[np.ndarray, tuple[float, float] | None, Acquisition]:
    """Reads a film; the arguments are those of `radiograph.read_radiograph`.

    Returns:
        (rows, columns) float32 of the upright picture, brighter is more attenuation, NaN where the detector was not
        exposed; its row and column pitch in mm, None if the file states none; and the metadata.

    Raises:
        InputError: no film, or not the expected view. The message quotes nothing from the file but DICOM's own codes.
    """
    from pydicom.pixels import pixel_array

    try:
        with _silence():
            dataset = _read_dataset(path)
            _check_film(dataset, path.name)
            colour = dataset.SamplesPerPixel == 3
            bits = dataset.BitsStored
            if dataset.file_meta.TransferSyntaxUID.is_encapsulated and not dataset.PixelRepresentation:
                dataset.BitsStored = dataset.BitsAllocated  # Decoders cut off the bits beyond.
            stored = pixel_array(dataset, raw=not colour, view_only=True, correct_unused_bits=False)
            dataset.BitsStored = bits
            if colour:
                stored = grey_channel(stored, path.name)
                dataset.PhotometricInterpretation = "MONOCHROME2"
            stored = stored.view(f"{stored.dtype.byteorder}u{stored.itemsize}")
            widened = _widen(dataset, stored)
            grey, notes = _grey_of_stored(dataset)
            pixel_mm, acquisition = _read_acquisition(dataset, path.name, view, orientation, [*widened, *notes])
            stored = acquisition.orientation.upright_picture(stored)
            shift = _shift(dataset)
            pixels = np.empty(stored.shape, np.float32)
            for top in range(0, len(stored), ROWS):
                pixels[top : top + ROWS] = grey[(stored[top : top + ROWS] >> shift) & (len(grey) - 1)]
            return pixels, pixel_mm, acquisition
    except InputError:
        raise
    except Exception:  # noqa: BLE001 A damaged file can raise any error in pydicom and its decoders.
        raise InputError(f"The film {path.name} can't be decoded; it is damaged or cut short: copy it again.") from None


def orientation_from_letters(letters: Sequence[str], view: str | None, name: str) -> ImageOrientation:
    """The steps that turn a picture upright.

    `letters` are the patient's direction along a row and down a column, in DICOM's R, L, A, P, H or F, the strongest first:
    ("L", "F") for an upright AP or PA picture, ("P", "F") for a lateral one. Unknown letters, a picture from above, or one of
    another than the expected view raise an InputError that names the file.
    """
    found = [str(part).upper() for part in letters] if isinstance(letters, Sequence) else []
    if len(found) != 2 or not all(re.fullmatch("[RLAPHF]+", part) for part in found):
        raise InputError(f"The orientation of the film {name} is not understood; state letters such as ['L', 'F'].")
    across, down = found[0][0], found[1][0]
    transposed = across in "HF"
    if transposed:
        across, down = down, across
    if across in "HF" or down not in "HF":
        raise InputError(f"The film {name} is oriented neither as a frontal nor as a lateral film; give one of each.")
    _check_view("lateral" if across in "AP" else "ap", view, name, "orientation")
    return ImageOrientation(transposed, upside_down=down == "H", mirrored=across in "RA")


def check_pixel_mm(pixel_mm: tuple[float, float], name: str) -> None:
    """Refuses a pixel pitch that is not within 0.01 to 10 mm, with an InputError."""
    if not all(_PIXEL_MM[0] <= mm <= _PIXEL_MM[1] for mm in pixel_mm):
        raise InputError(f"Pixels of {pixel_mm[0]:g} x {pixel_mm[1]:g} mm make no film of {name}; give them in mm.")


def too_large(name: str) -> str:
    """The error message for a film of more than `MOST_PIXELS`."""
    return f"The film {name} has more than {MOST_PIXELS // 10**6} million pixels; make it smaller."


def grey_channel(channels: np.ndarray, name: str) -> np.ndarray:
    """(rows, columns) of a grey picture (rows, columns, 3); one in colour raises an InputError."""
    # JPEG may part the channels of a grey picture by a step or two.
    if np.ptp(channels, axis=2).max() > 2:
        raise InputError(
            f"The film {name} is a colour picture, such as a photograph; give the radiograph itself, as DICOM or grey PNG."
        )
    return np.ascontiguousarray(channels[..., 1])


def _read_dataset(path: Path) -> Dataset:
    """The tags that are read of a file with or without DICOM's preamble and header."""
    import pydicom
    from pydicom import filereader, uid

    with path.open("rb") as file:
        filereader.read_preamble(file, force=True)
        # A deflated file is unpacked whole, so its size is counted before.
        if filereader._read_file_meta_info(file).get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
            inflate, size, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, file.read(1 << 20)
            while rest:
                size += len(inflate.decompress(rest, 1 << 24))
                if size > 3 * MOST_PIXELS:
                    raise InputError(too_large(path.name))
                rest = inflate.unconsumed_tail or file.read(1 << 20)
    tags: list[Any] = [*_READ, *_OVERLAY_BITS]
    dataset = pydicom.dcmread(path, specific_tags=tags, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit = dataset.original_encoding[0]
        dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
    return dataset


def _check_film(dataset: Dataset, name: str) -> None:
    """Refuses a file that does not hold one grey film that can be decoded."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import MediaStorageDirectoryStorage

    if dataset.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise InputError(f"{name} is a DICOMDIR, the list of a disc's files; give the film's own file.")
    modality, frames = _code(dataset, "Modality"), int(dataset.get("NumberOfFrames") or 1)
    if modality not in _FILMS and not _is_scout(dataset):
        kind = f"a {modality} image" if modality in _NOT_FILMS else "of another modality"
        raise InputError(f"{name} is {kind}, not a film; give a radiograph (CR or DX) or a CT's scout view.")
    if "PixelData" not in dataset and "EncryptedAttributesSequence" in dataset:
        raise InputError(f"The film {name} is encrypted; decrypt it before you give it here.")
    if _number(dataset, "RescaleSlope") == 0:
        raise InputError(f"The film {name} is flat, since its RescaleSlope is 0; export it again.")
    if frames > 1:
        raise InputError(f"The film {name} has {frames} frames; give one picture a view.")
    dataset.SamplesPerPixel = dataset.get("SamplesPerPixel", 1)
    if dataset.SamplesPerPixel == 1 and not _code(dataset, "PhotometricInterpretation"):
        dataset.PhotometricInterpretation = "MONOCHROME2"  # `_check_evidence` sees if bone is not white.
    kinds = {1: "MONOCHROME", 3: "RGB YBR"}.get(dataset.SamplesPerPixel, "")
    if not any(_code(dataset, "PhotometricInterpretation").startswith(kind) for kind in kinds.split()):
        raise InputError(f"The film {name} is a colour picture, such as a photograph; give the radiograph itself.")
    if dataset.Rows * dataset.Columns > MOST_PIXELS:
        raise InputError(too_large(name))
    if dataset.BitsAllocated not in (8, 16):
        raise InputError(f"The film {name} has {dataset.BitsAllocated:d} bits a pixel; export it with 8 or 16.")
    syntax = dataset.file_meta.TransferSyntaxUID
    with contextlib.suppress(NotImplementedError):
        if get_decoder(syntax).is_available:
            return
    known = f"compressed as {syntax.name}" if syntax.name != syntax else "compressed or encrypted in a private way"
    raise InputError(f"The film {name} is {known}, which can't be read here; export it uncompressed (gdcmconv --raw).")


def _shift(dataset: Dataset) -> int:
    """Old files may hold something else in the bits below the picture's."""
    encapsulated = dataset.file_meta.TransferSyntaxUID.is_encapsulated
    return 0 if encapsulated else int(dataset.HighBit) + 1 - int(dataset.BitsStored)


def _widen(dataset: Dataset, stored: np.ndarray) -> list[str]:
    """Raises `BitsStored` to what unsigned values (any shape) take, with a note, unless an overlay lies in those bits."""
    bits = int(stored.max(initial=0)).bit_length() - _shift(dataset)
    if dataset.PixelRepresentation or bits <= dataset.BitsStored or any(map(dataset.get_item, _OVERLAY_BITS)):
        return []
    note = f"The file states {dataset.BitsStored} bits a pixel, but its values take {bits}, which were believed."
    dataset.HighBit, dataset.BitsStored = _shift(dataset) + bits - 1, bits
    return [note]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Silences pydicom and the decoders: their complaints quote the file, and some go straight to the terminal."""
    import pydicom

    log, terminal = logging.getLogger("pydicom"), os.dup(2)
    level = log.level
    with warnings.catch_warnings(action="ignore"), pydicom.config.disable_value_validation():
        try:
            log.setLevel(logging.CRITICAL + 1)
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 2)
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            log.setLevel(level)


def _grey_of_stored(dataset: Dataset) -> tuple[np.ndarray, list[str]]:
    """(2**BitsStored,) float32, the grey of every value that can be stored; and notes for the report."""
    from pydicom.pixels import apply_modality_lut

    notes, stored = [], np.arange(2 ** int(dataset.BitsStored))
    if dataset.PixelRepresentation:
        stored[len(stored) // 2 :] -= len(stored)
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
    padding = [_number(dataset, f"PixelPadding{end}") for end in ("Value", "RangeLimit")]
    if padding[0] is not None:
        ends = sorted(end for end in padding if end is not None)
        grey = np.where((stored >= ends[0]) & (stored <= ends[-1]), np.nan, grey)
    return grey.astype(np.float32), notes


def _read_acquisition(
    dataset: Dataset, name: str, view: str | None, letters: Sequence[str] | None, notes: Sequence[str]
) -> tuple[tuple[float, float] | None, Acquisition]:
    """The upright picture's pixel pitch, None if the file has no plausible one, and the acquisition metadata."""
    position, recorded_letters = _code(dataset, "ViewPosition"), dataset.get("PatientOrientation")
    scout, zero_row = _is_scout(dataset), None
    if scout and not letters:
        recorded_letters, zero_row, found = _place_scout(dataset, recorded_letters)
        notes = (*notes, *found)
    if position in _OTHER_VIEWS and not letters:
        raise InputError(
            f"The film {name} is neither frontal nor lateral by its view position ({position}); give one of each, or state "
            "the film's orientation."
        )
    if position and position not in (*_VIEWS, *_OTHER_VIEWS):
        notes = (*notes, "The file's view position is not a known code; make sure that it is the right film.")
    recorded_view = _VIEWS.get(position)
    if recorded_view == "lateral":
        recorded_view = _VIEWS.get(_code(dataset, "ImageLaterality") + "LAT", recorded_view)
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
    if scout and not recorded_view and (asked := letters or recorded_letters):
        recorded_view = "lateral" if {part[0].upper() for part in asked} & {"A", "P"} else "ap"
    slot = scout or _code(dataset, "DetectorConfiguration") == "SLOT"
    slot |= bool({"EOS", "BIOSPACE"} & set(_code(dataset, "Manufacturer").split()))
    pixel_mm, plane, origin = _pixel_mm(dataset, slot)
    detector = _number(dataset, "DistanceSourceToDetector", _DISTANCE_MM)
    patient = _number(dataset, "DistanceSourceToPatient", (1.0, (detector or np.inf) - 1e-6))
    magnification = _number(dataset, "EstimatedRadiographicMagnificationFactor", (1 + 1e-6, 3.0))
    if detector and patient:
        magnification = magnification or detector / patient
    elif detector and magnification:
        patient = detector / magnification
    notes = (*notes, *orientation.notes("stated" if letters else "recorded"))
    projection = "slot" if slot else None
    if scout and not (detector and patient):
        projection = "parallel"
        notes = (*notes, "The scout view's file lacks the source's distances, so its rays are taken to be parallel.")
    elif slot:
        where = "in the patient" if plane == "patient" else "on the detector"
        notes = (*notes, f"A slot scanner took it; its pixels' width is taken to be that {where}.")
    if projection == "slot" and scout:
        side = "an AP one, taken from the front" if recorded_view == "ap" else "a left lateral, taken from the right"
        notes = (*notes, f"A scout view's file lacks its tube's side: it counts as {side}, unless its name is stated.")
    acquisition = Acquisition(
        recorded_view, detector, patient, magnification, plane, origin, orientation, projection, zero_row, notes
    )
    return pixel_mm and orientation.upright_pair(pixel_mm), acquisition


def _is_scout(dataset: Dataset) -> bool:
    kinds = dataset.get("ImageType") or ()
    return _code(dataset, "Modality") == "CT" and "LOCALIZER" in [str(kind).strip().upper() for kind in kinds]


def _place_scout(dataset: Dataset, letters: Any) -> tuple[Any, float | None, list[str]]:
    """A scout view's letters, its row at z = 0 of its CT's frame if the file says that, and notes for the report."""
    try:
        along = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)  # LPS: of a row's pixels, a column's.
    except (AttributeError, TypeError, ValueError):
        return letters, None, []
    axes = np.abs(along).argmax(axis=1)
    letters = [("LR", "PA", "HF")[axis][int(way[axis] < 0)] for axis, way in zip(axes, along, strict=True)]
    try:
        pitch = np.array(dataset.PixelSpacing, float)[::-1]
        ends = along * (pitch * (dataset.Columns - 1, dataset.Rows - 1))[:, None]  # From the first pixel to the last.
        first = np.array(dataset.ImagePositionPatient, float)
        across = int(axes[axes != 2][0])
        middle = -(first + ends.sum(axis=0) / 2)[across]
        zero_row = (first[2] + np.maximum(ends[:, 2], 0).sum()) / float(pitch[axes == 2][0])
    except (AttributeError, IndexError, TypeError, ValueError):
        return letters, None, []
    if not np.isfinite([middle, zero_row]).all():
        return letters, None, []
    name = "xy"[across]
    note = f"The scout view's middle column is at {name} = {middle:.1f} mm of its CT: the {name} of isocentre_ras_mm."
    return letters, zero_row, [note]


def _pixel_mm(dataset: Dataset, slot: bool = False) -> tuple[tuple[float, float] | None, str, str]:
    """Row and column pitch as stored, its plane, and its origin in words.

    A slot scanner's Pixel Spacing counts before its Imager Pixel Spacing, unless they are equal: its height is the same in
    all planes, so only one of the two is right.
    """
    equal = dataset.get("PixelSpacing") == dataset.get("ImagerPixelSpacing")
    order = reversed(_PITCHES.items()) if slot and not equal else _PITCHES.items()
    for keyword, origin in order:
        try:
            row_mm, column_mm = (float(mm) for mm in dataset.get(keyword))
            check_pixel_mm((row_mm, column_mm), "")
        except (TypeError, ValueError):
            continue
        if keyword == "PixelSpacing" and slot:
            return (row_mm, column_mm), "patient", "the file's Pixel Spacing, taken to be that in the patient"
        calibration = _CALIBRATIONS.get(_code(dataset, "PixelSpacingCalibrationType"))
        if keyword == "PixelSpacing" and calibration:
            origin = f"the file's Pixel Spacing, calibrated {calibration} to a plane in the patient"
            return (row_mm, column_mm), "patient", origin
        return (row_mm, column_mm), "detector", origin
    return None, "detector", ""


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
            "films, or state the film's orientation."
        )
