"""DICOM films: every way to store the same grey values, how the picture lies, how it was taken, and what is refused."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from transvert.clinical import dicom, radiograph
from transvert.clinical.acquisition import ImageOrientation, orientation_from_letters
from transvert.drr.geometry import named_view
from transvert.io import InputError

RNG = np.random.default_rng(0)
SHAPE = (37, 52)
SMOOTH = np.add.outer(np.linspace(0, 1500, SHAPE[0]) ** 1.05, np.linspace(0, 1500, SHAPE[1])).astype(np.uint16)
GREY12 = np.minimum(SMOOTH + RNG.integers(0, 60, SHAPE), 4095).astype(np.uint16)


def stored(path: Path, pixels: np.ndarray = GREY12, bits: int = 12, **changes: Any) -> Path:
    """A film whose file holds these pixels; a change to None takes a tag away."""
    view = named_view("ap", np.zeros(3), pixels.shape, (0.7, 0.143))
    unsigned = pixels.view(np.uint16 if pixels.dtype.itemsize == 2 else np.uint8)
    radiograph.write_dicom(path, np.zeros(pixels.shape, unsigned.dtype), view, bits=bits)
    dataset = pydicom.dcmread(path)
    dataset.PixelData = unsigned.tobytes()
    for keyword, value in changes.items():
        if value is None:
            delattr(dataset, keyword)
        elif keyword.startswith("PixelPadding"):
            dataset.add_new(keyword, "SS" if dataset.PixelRepresentation else "US", value)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


# Grey values


def test_the_bits_beyond_the_picture_s_are_left_out(tmp_path: Path) -> None:
    overlaid = GREY12 | (RNG.integers(0, 16, SHAPE).astype(np.uint16) << 12)
    assert_array_equal(radiograph.read_radiograph(stored(tmp_path / "f.dcm", overlaid)).pixels, GREY12)
    # As old files have them: the picture in the upper bits, something else in the lower ones.
    raised = (GREY12 << 4) | RNG.integers(0, 16, SHAPE).astype(np.uint16)
    assert_array_equal(radiograph.read_radiograph(stored(tmp_path / "f.dcm", raised, HighBit=15)).pixels, GREY12)


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_signed_values(tmp_path: Path, kind: str) -> None:
    values = GREY12.astype(np.int16) - 2048
    changes = {"PixelRepresentation": 1, "PhotometricInterpretation": kind}
    expected = values if kind == "MONOCHROME2" else -1 - values
    assert_array_equal(radiograph.read_radiograph(stored(tmp_path / "f.dcm", values, **changes)).pixels, expected)
    # The same without the sign carried into the unused bits.
    assert_array_equal(
        radiograph.read_radiograph(stored(tmp_path / "f.dcm", values & 0x0FFF, **changes)).pixels, expected
    )


def test_a_modality_lut(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4096, 0, 16], "US"
    values = (np.arange(4096) ** 2 // 300).astype(np.uint16)
    table.add_new("LUTData", "OW", values.tobytes())
    path = stored(tmp_path / "f.dcm", RescaleSlope=None, RescaleIntercept=None, ModalityLUTSequence=Sequence([table]))
    assert_array_equal(radiograph.read_radiograph(path).pixels, values[GREY12])


def test_the_window_and_the_voi_lut_are_a_viewer_s_business(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table.add_new("LUTData", "OW", np.full(4096, 7, np.uint16).tobytes())
    path = stored(tmp_path / "f.dcm", WindowCenter=100, WindowWidth=10, VOILUTSequence=Sequence([table]))
    assert_array_equal(radiograph.read_radiograph(path).pixels, GREY12)


RAW = {"PresentationIntentType": "FOR PROCESSING", "PresentationLUTShape": None}


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_raw_film_becomes_attenuation_by_what_its_detector_says(tmp_path: Path, kind: str, sign: int) -> None:
    integral = np.linspace(0.01, 5, 37 * 52).reshape(SHAPE)
    photons = np.rint(65535 * np.exp(-integral))
    values = (photons if sign == 1 else 65535 - photons).astype(np.uint16)
    changes = {"PixelIntensityRelationship": "LIN", "PixelIntensityRelationshipSign": sign}
    read = radiograph.read_radiograph(
        stored(tmp_path / "f.dcm", values, 16, PhotometricInterpretation=kind, **changes, **RAW)
    )
    assert_allclose(read.pixels, integral, atol=2e-3)
    assert read.facts.notes == ("The film is a raw one, linear in the exposure: its logarithm was taken.",)
    # A logarithmic one has its white bone turned only.
    changes["PixelIntensityRelationship"] = "LOG"
    read = radiograph.read_radiograph(
        stored(tmp_path / "f.dcm", values, 16, PhotometricInterpretation=kind, **changes, **RAW)
    )
    assert_array_equal(read.pixels, 65535 - photons)


def test_a_file_that_contradicts_itself_on_white_is_noted(tmp_path: Path) -> None:
    for changes in ({"PresentationLUTShape": "INVERSE"}, {"PixelIntensityRelationshipSign": 1}):
        read = radiograph.read_radiograph(stored(tmp_path / "f.dcm", **changes))
        assert_array_equal(read.pixels, GREY12)  # What viewers show.
        assert "make sure that bone is white" in read.facts.notes[0]
    inverse = {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}
    read = radiograph.read_radiograph(stored(tmp_path / "f.dcm", **inverse, PixelIntensityRelationshipSign=1))
    assert_array_equal(read.pixels, 4095 - GREY12) and not read.facts.notes


def test_what_the_detector_did_not_see_is_nan(tmp_path: Path) -> None:
    values = GREY12.copy()
    values[:, :5], values[:, 5:8] = 4095, 4090
    read = radiograph.read_radiograph(
        stored(tmp_path / "f.dcm", values, PixelPaddingValue=4095, PixelPaddingRangeLimit=4080)
    )
    assert np.isnan(read.pixels[:, :8]).all()
    assert_array_equal(read.pixels[:, 8:], GREY12[:, 8:])
    path = stored(tmp_path / "f.dcm", values, PixelPaddingValue=4095)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    pydicom.dcmwrite(path, dataset, implicit_vr=True, little_endian=True)
    one = radiograph.read_radiograph(path).pixels
    assert np.isnan(one[:, :5]).all() and (one[:, 5:8] == 4090).all()


# Transfer syntaxes


def _recoded(path: Path, syntax: int) -> Path:
    """The film in another transfer syntax, by GDCM."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return path


LOSSLESS = {
    "JPEG lossless, first-order": (gdcm.TransferSyntax.JPEGLosslessProcess14_1, "1.2.840.10008.1.2.4.70"),
    "JPEG lossless": (gdcm.TransferSyntax.JPEGLosslessProcess14, "1.2.840.10008.1.2.4.57"),
    "JPEG-LS lossless": (gdcm.TransferSyntax.JPEGLSLossless, "1.2.840.10008.1.2.4.80"),
    "JPEG 2000 lossless": (gdcm.TransferSyntax.JPEG2000Lossless, "1.2.840.10008.1.2.4.90"),
    "JPEG 2000": (gdcm.TransferSyntax.JPEG2000, "1.2.840.10008.1.2.4.91"),
    "RLE": (gdcm.TransferSyntax.RLELossless, "1.2.840.10008.1.2.5"),
    "deflated": (gdcm.TransferSyntax.DeflatedExplicitVRLittleEndian, "1.2.840.10008.1.2.1.99"),
}


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_what_was_compressed_comes_back(tmp_path: Path, kind: str, bits: int) -> None:
    code, uid = LOSSLESS[kind]
    values = (GREY12 >> 4).astype(np.uint8) if bits == 8 else GREY12 if bits == 12 else GREY12 * np.uint16(16)
    path = _recoded(stored(tmp_path / "f.dcm", values, bits), code)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == uid
    difference = np.abs(radiograph.read_radiograph(path).pixels - values)
    assert difference.max() <= (0 if kind != "JPEG 2000" else 2)


@pytest.mark.parametrize("kind", ["JPEG lossless, first-order", "JPEG-LS lossless", "RLE"])
def test_signed_values_that_were_compressed_come_back(tmp_path: Path, kind: str) -> None:
    values = GREY12.astype(np.int16) - 2048
    path = stored(tmp_path / "f.dcm", values, PixelRepresentation=1)
    assert_array_equal(radiograph.read_radiograph(_recoded(path, LOSSLESS[kind][0])).pixels, values)


@pytest.mark.parametrize("uid", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_other_ways_of_writing_the_same(tmp_path: Path, uid: pydicom.uid.UID) -> None:
    path = stored(tmp_path / "f.dcm")
    dataset = pydicom.dcmread(path)
    if uid == RLELossless:
        dataset.compress(RLELossless)
        dataset.save_as(path)
    else:
        if uid == ExplicitVRBigEndian:
            dataset.PixelData = GREY12.astype(">u2").tobytes()
        dataset.file_meta.TransferSyntaxUID = uid
        pydicom.dcmwrite(path, dataset, implicit_vr=uid == ImplicitVRLittleEndian, little_endian=uid.is_little_endian)
    assert_array_equal(radiograph.read_radiograph(path).pixels, GREY12)


def _encapsulated(path: Path, code: bytes, uid: str, **changes: Any) -> Path:
    dataset = pydicom.dcmread(stored(path, (GREY12 >> 4).astype(np.uint8), 8, **changes))
    dataset.PixelData = encapsulate([code])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(uid)
    dataset.save_as(path)
    return path


def test_baseline_jpeg(tmp_path: Path) -> None:
    code = io.BytesIO()
    grey = (SMOOTH >> 4).astype(np.uint8)
    Image.fromarray(grey).save(code, format="JPEG", quality=98)
    read = radiograph.read_radiograph(_encapsulated(tmp_path / "f.dcm", code.getvalue(), "1.2.840.10008.1.2.4.50"))
    assert np.abs(read.pixels - grey).max() <= 3


@pytest.mark.parametrize(
    ("uid", "sentence"),
    [
        ("1.2.840.10008.1.2.4.201", "is compressed as High-Throughput JPEG 2000 .*export it uncompressed, or convert"),
        ("1.2.840.10008.1.2.4.102", "is compressed as MPEG-4 .*which can't be read here"),
        ("1.2.826.0.1.3680043.2.999", "is compressed or encrypted in a private way, which can't be read here"),
        ("1.2.840.10008.1.2.4.80", "can't be decoded; it is damaged or cut short"),
        ("1.2.840.10008.1.2.4.70", "can't be decoded; it is damaged or cut short"),
        ("1.2.840.10008.1.2.4.90", "can't be decoded; it is damaged or cut short"),
        ("1.2.840.10008.1.2.5", "can't be decoded; it is damaged or cut short"),
    ],
)
def test_a_syntax_that_is_not_read_and_a_code_that_is_none(
    tmp_path: Path, uid: str, sentence: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = _encapsulated(tmp_path / "f.dcm", b"\xff\xd8not what it says\xff\xd9", uid)
    with pytest.raises(InputError, match=sentence) as caught:
        radiograph.read_radiograph(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "") and not caplog.records


# How the picture lies

OPPOSITE = dict(zip("RLAPHF", "LRPAFH", strict=True))
TURNS = [ImageOrientation(*flags) for flags in itertools.product((False, True), repeat=3)]


def laid(picture: np.ndarray, letters: tuple[str, str], turn: ImageOrientation) -> tuple[np.ndarray, list[str]]:
    """A picture as a file would hold it that asks for `turn`, and the letters that file must have."""
    across, down = letters
    if turn.mirrored:
        picture, across = np.fliplr(picture), OPPOSITE[across]
    if turn.upside_down:
        picture, down = np.flipud(picture), OPPOSITE[down]
    return (picture.T, [down, across]) if turn.transposed else (picture, [across, down])


@pytest.mark.parametrize("name", ["ap", "pa", "left_lateral", "right_lateral"])
@pytest.mark.parametrize("turn", TURNS, ids=lambda turn: turn.words or "as it should be")
def test_a_film_that_lies_any_way_is_turned_right(tmp_path: Path, name: str, turn: ImageOrientation) -> None:
    view = named_view(name, np.zeros(3), SHAPE, (0.7, 0.143), cone=True)
    # A marker on the patient's right, in front, near the head: a viewer of the project's pictures knows where.
    marker = view.project(np.array([2.0, 1.5, 6.0]))
    assert marker[0] < 18 and marker[1] < 25
    truth = np.zeros(SHAPE, np.uint16)
    truth[tuple(np.rint(marker).astype(int))] = 900
    truth[-1, -1] = 333
    letters = ("L", "F") if name in ("ap", "pa") else ("P", "F")
    picture, said = laid(truth, letters, turn)
    spacing = [0.7, 0.143][:: -1 if turn.transposed else 1]
    path = stored(
        tmp_path / "f.dcm", np.ascontiguousarray(picture), PatientOrientation=said, ImagerPixelSpacing=spacing,
        ViewPosition=None,
    )  # fmt: skip
    read = radiograph.read_radiograph(path, view="ap" if name in ("ap", "pa") else "lateral")
    assert_array_equal(read.pixels, truth)
    assert read.pixels.flags["C_CONTIGUOUS"] and read.pixel_mm == pytest.approx((0.7, 0.143))
    assert read.facts.turn == turn
    assert read.facts.notes == (
        (f"The picture was {turn.words}, as its recorded orientation asks.",) * bool(turn.words)
    )
    # A landmark is a pixel of the stored picture, as a viewer shows it; here it lies on the marker again.
    clicked = np.argwhere(picture == 900)[0]
    assert_allclose(read.from_stored(clicked), np.rint(marker))
    assert_allclose(read.to_stored(read.from_stored([[3.25, 7.5], [0, 0]])), [[3.25, 7.5], [0, 0]])
    # The same by hand, for a file without tags.
    Image.fromarray(picture).save(tmp_path / "f.png")
    by_hand = radiograph.read_radiograph(tmp_path / "f.png", tuple(spacing), orientation=said)  # type: ignore[arg-type]
    assert_array_equal(by_hand.pixels, truth)
    assert by_hand.pixel_mm == (0.7, 0.143) and by_hand.facts.turn == turn


def test_what_is_stated_by_hand_goes_before_the_file(tmp_path: Path) -> None:
    path = stored(tmp_path / "f.dcm", PatientOrientation=["R", "F"], ViewPosition="LL")
    read = radiograph.read_radiograph(path, view="ap", orientation=["L", "F"])
    assert_array_equal(read.pixels, GREY12)
    assert read.facts.view is None
    mirrored = stored(tmp_path / "f.dcm", PatientOrientation=["R", "F"])
    assert_array_equal(radiograph.read_radiograph(mirrored).pixels, GREY12[:, ::-1])


def test_the_words_for_a_turn() -> None:
    picture = np.arange(6).reshape(2, 3)
    assert_array_equal(ImageOrientation(True, False, True).picture(picture), np.rot90(picture, -1))
    assert ImageOrientation(True, False, True).words == "turned by 90 degrees clockwise"
    assert_array_equal(ImageOrientation(True, True, False).picture(picture), np.rot90(picture))
    assert_array_equal(ImageOrientation(False, True, True).picture(picture), np.rot90(picture, 2))
    assert (
        orientation_from_letters(["LP", "FA"], "ap", "f") == ImageOrientation()
    )  # Oblique: the strongest letter counts.


@pytest.mark.parametrize(
    ("changes", "view", "sentence"),
    [
        (
            {"ViewPosition": "LL", "PatientOrientation": None},
            "ap",
            "is a lateral one by its view position.*the frontal",
        ),
        ({"PatientOrientation": ["P", "F"]}, "ap", "is a lateral one by its orientation, but .*exchange the two films"),
        ({}, "lateral", "is a frontal one by its view position, but it is given as the lateral one; exchange"),
        ({"PatientOrientation": ["P", "F"]}, None, "is a lateral one by its orientation, but .* the frontal one"),
        ({"PatientOrientation": ["L", "P"], "ViewPosition": None}, "ap", "neither from the front nor from the side"),
        ({"PatientOrientation": ["CR", "V"], "ViewPosition": None}, None, "orientation of the film f.dcm is not under"),
    ],
)
def test_a_film_of_another_view_than_is_said(tmp_path: Path, changes: dict, view: str | None, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        radiograph.read_radiograph(stored(tmp_path / "f.dcm", **changes), view=view)


@pytest.mark.parametrize(
    ("position", "laterality", "view"),
    [
        ("PA", "U", "pa"),
        ("LL", "U", "left_lateral"),
        ("RL", "U", "right_lateral"),
        ("LATERAL", "R", "right_lateral"),
        ("LAT", "L", "left_lateral"),
        ("LAT", "U", "lateral"),
        ("RLAT", "L", "right_lateral"),
        ("RLO", "U", None),
        (None, "U", None),
    ],
)
def test_the_view_that_a_file_names(tmp_path: Path, position: str | None, laterality: str, view: str | None) -> None:
    changes = {"ViewPosition": position, "ImageLaterality": laterality, "PatientOrientation": None}
    assert radiograph.read_radiograph(stored(tmp_path / "f.dcm", **changes)).facts.view == view


# How it was taken


def test_the_distances(tmp_path: Path) -> None:
    def known(**changes: Any) -> tuple[float | None, float | None, float | None]:
        facts = radiograph.read_radiograph(stored(tmp_path / "f.dcm", **changes)).facts
        return facts.source_to_detector_mm, facts.source_to_patient_mm, facts.magnification

    assert known() == (None, None, None)
    assert known(DistanceSourceToDetector=1800, DistanceSourceToPatient=1500) == (1800, 1500, pytest.approx(1.2))
    given = {"DistanceSourceToDetector": 1800, "EstimatedRadiographicMagnificationFactor": 1.25}
    assert known(**given) == (1800, pytest.approx(1440), 1.25)
    assert known(**given, DistanceSourceToPatient=1500) == (1800, 1500, 1.25)
    # What scanners write where they know nothing, and what cannot be.
    nothing = {"DistanceSourceToDetector": 0, "EstimatedRadiographicMagnificationFactor": 1}
    assert known(**nothing, DistanceSourceToPatient=0) == (None, None, None)
    assert known(DistanceSourceToDetector=1500, DistanceSourceToPatient=1800) == (1500, None, None)
    assert known(DistanceSourceToDetector=1.8) == (None, None, None)


def test_what_a_report_says_of_a_film(tmp_path: Path) -> None:
    path = stored(tmp_path / "f.dcm", DistanceSourceToDetector=1800, PatientOrientation=["R", "F"])
    said = radiograph.read_radiograph(path).facts.to_dict()
    assert json.loads(json.dumps(said)) == {
        "view": "ap",
        "source_to_detector_mm": 1800.0,
        "source_to_patient_mm": None,
        "magnification": None,
        "pixel_plane": "detector",
        "pixel_mm_from": "the file's Imager Pixel Spacing, on the detector",
        "turned": "mirrored left to right",
        "notes": ["The picture was mirrored left to right, as its recorded orientation asks."],
    }


@pytest.mark.parametrize(
    ("changes", "pitch", "plane", "words"),
    [
        ({"PixelSpacing": [0.5, 0.1], "PixelSpacingCalibrationType": "GEOMETRY"}, (0.7, 0.143), "detector", "Imager"),
        ({"ImagerPixelSpacing": None, "PixelSpacing": [0.5, 0.1]}, (0.5, 0.1), "detector", "does not say of which"),
        (
            {"ImagerPixelSpacing": None, "PixelSpacing": [0.5, 0.1], "PixelSpacingCalibrationType": "FIDUCIAL"},
            *((0.5, 0.1), "patient", "calibrated by an object of known size to a plane in the patient"),
        ),
        (
            {"ImagerPixelSpacing": [0, 0], "PixelSpacing": [0.5, 0.1], "PixelSpacingCalibrationType": "GEOMETRY"},
            *((0.5, 0.1), "patient", "calibrated by the distances to a plane in the patient"),
        ),
        (
            {"ImagerPixelSpacing": None, "NominalScannedPixelSpacing": [0.17, 0.17]},
            *((0.17, 0.17), "detector", "digitised"),
        ),
    ],
)
def test_where_the_pixel_pitch_comes_from(
    tmp_path: Path, changes: dict, pitch: tuple[float, float], plane: str, words: str
) -> None:
    read = radiograph.read_radiograph(stored(tmp_path / "f.dcm", **changes))
    assert read.pixel_mm == pytest.approx(pitch)
    assert read.facts.plane == plane and words in read.facts.pitch_from
    by_hand = radiograph.read_radiograph(stored(tmp_path / "f.dcm", **changes), 0.3)
    assert by_hand.pixel_mm == (0.3, 0.3)
    assert by_hand.facts.plane == "detector" and by_hand.facts.pitch_from == "stated by hand"


@pytest.mark.parametrize("spacing", [[0, 0], [143, 143], [-0.7, 0.7], [1e-9, 0.5], ["nan", "nan"], 0.5])
def test_a_pitch_that_cannot_be_is_not_believed(tmp_path: Path, spacing: Any) -> None:
    with pydicom.config.disable_value_validation():
        path = stored(tmp_path / "f.dcm", ImagerPixelSpacing=spacing, PixelSpacing=spacing)
    with pytest.raises(InputError, match=r"f\.dcm does not say how large its pixels are, or not what they can be"):
        radiograph.read_radiograph(path)
    assert radiograph.read_radiograph(path, sized=False).pixel_mm is None
    assert radiograph.read_radiograph(path, sized=False).facts.pitch_from == ""
    assert radiograph.read_radiograph(path, 0.2).pixel_mm == (0.2, 0.2)
    for wrong in (143.0, float("nan"), 0.0, 1e-3):
        with pytest.raises(InputError, match=r"^Pixels of .* mm make no film"):
            radiograph.read_radiograph(path, wrong)


# What is no film


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        *[({"Modality": m}, f"f.dcm is a {m} image, not a film") for m in ("CT", "MR", "US", "PT", "NM", "MG", "XC")],
        ({"Modality": "PLANTED"}, "f.dcm is of another modality, not a film; give a radiograph"),
        ({"NumberOfFrames": 12}, "has 12 frames; give one picture a view"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "is a colour picture, such as a photograph"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "is a colour picture"),
        ({"PixelData": None}, "can't be decoded; it is damaged or cut short"),
        ({"BitsAllocated": 32}, "has 32 bits a pixel; export it with 8 or 16"),
        ({"Rows": 40000, "Columns": 40000}, "has more than 150 million pixels; make it smaller"),
        ({"Rows": 500}, "can't be decoded; it is damaged or cut short"),
        ({"RescaleSlope": "nan"}, "can't be decoded; it is damaged"),
        ({"BitsStored": None}, "can't be decoded; it is damaged"),
    ],
)
def test_what_is_no_film_gets_one_sentence(tmp_path: Path, changes: dict, sentence: str) -> None:
    with pydicom.config.disable_value_validation():
        path = stored(tmp_path / "f.dcm", **changes)
    with pytest.raises(InputError, match=sentence) as caught:
        radiograph.read_radiograph(path)
    assert "\n" not in str(caught.value) and "PLANTED" not in str(caught.value)


@pytest.mark.parametrize("modality", ["CR", "DX", "RF", "XA", "RG", None])
def test_projections_of_every_kind_are_films(tmp_path: Path, modality: str | None) -> None:
    assert_array_equal(radiograph.read_radiograph(stored(tmp_path / "f.dcm", Modality=modality)).pixels, GREY12)


def test_an_encrypted_file(tmp_path: Path) -> None:
    hidden = Dataset()
    hidden.EncryptedContentTransferSyntaxUID, hidden.EncryptedContent = "1.2.840.10008.1.2.1", b"\1\2\3\4"
    path = stored(tmp_path / "f.dcm", PixelData=None, EncryptedAttributesSequence=Sequence([hidden]))
    with pytest.raises(InputError, match="f.dcm is encrypted; decrypt it before you give it here"):
        radiograph.read_radiograph(path)
    # The whole file in an envelope: no DICOM to be seen.
    envelope = bytes.fromhex("3082010006092a864886f70d010703a081f2") + RNG.bytes(300)
    (tmp_path / "f.p7m").write_bytes(envelope)
    with pytest.raises(InputError, match="f.p7m is encrypted; decrypt it"):
        radiograph.read_radiograph(tmp_path / "f.p7m")


def test_a_file_cut_at_any_place(tmp_path: Path) -> None:
    content = stored(tmp_path / "f.dcm").read_bytes()
    for length in (*range(140, len(content) - 1, 173), len(content) - 2):
        (tmp_path / "cut.dcm").write_bytes(content[:length])
        with pytest.raises(InputError, match=r"cut\.dcm (can't be decoded|does not say|is )"):
            radiograph.read_radiograph(tmp_path / "cut.dcm")


# Large films

_READS = """
import sys, resource
from transvert import film
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read = film.read(sys.argv[1], 0.1, orientation=["R", "H"])
print(read.pixels.shape[0], int(read.pixels[0, -1]), before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("name", ["big.dcm", "big.png", "big.tif"])
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is counted in KiB on Linux")
def test_a_large_film_is_held_about_once(tmp_path: Path, name: str) -> None:
    """4,000 x 4,000 pixels in 16 bits are 32 MB in the file and 64 MB as float32; 12,000 x 12,000 take 9 times that."""
    grey = np.zeros((4000, 4000), np.uint16)
    grey[-1, 0] = 1234
    if name.endswith("dcm"):
        stored(tmp_path / name, grey, 16)
    else:
        Image.fromarray(grey).save(tmp_path / name)
    said = subprocess.run(
        [sys.executable, "-c", _READS, str(tmp_path / name)], capture_output=True, text=True, check=True
    ).stdout.split()
    rows, corner, before, peak = map(int, said)
    assert (rows, corner) == (4000, 1234)
    assert (peak - before) / 1024 < 150  # MiB; the stored and the float picture are 92.


def test_the_reader_looks_at_nothing_that_names_a_patient() -> None:
    names = (
        "Name",
        "Date",
        "Time",
        "UID",
        "Institution",
        "Accession",
        "Physician",
        "Comments",
        "Description",
        "Patient",
    )
    asked = {keyword for keyword in dicom._READ if any(part in keyword for part in names)}
    assert asked == {"PatientOrientation", "DistanceSourceToPatient"}
