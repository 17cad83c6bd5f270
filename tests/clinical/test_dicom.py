"""DICOM films: every way to store the same grey values, orientation, acquisition metadata, and what is refused."""

from __future__ import annotations

import io
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
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
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from transvert.clinical import dicom
from transvert.clinical.dicom import ImageOrientation, orientation_from_letters
from transvert.clinical.radiograph import Radiograph, read_radiograph, write_dicom
from transvert.drr.geometry import named_view
from transvert.io import InputError

RNG = np.random.default_rng(0)
SHAPE, PITCH = (37, 52), (0.7, 0.143)
SMOOTH = np.add.outer(np.linspace(0, 1500, SHAPE[0]) ** 1.05, np.linspace(0, 1500, SHAPE[1])).astype(np.uint16)
GREY12 = np.minimum(SMOOTH + RNG.integers(0, 60, SHAPE), 4095).astype(np.uint16)


def stored(path: Path, pixels: np.ndarray = GREY12, bits: int = 12, **changes: Any) -> Path:
    """A film whose file holds these pixels; a change to None removes a tag."""
    view = named_view("ap", np.zeros(3), pixels.shape, PITCH)
    unsigned = pixels.view(np.uint16 if pixels.dtype.itemsize == 2 else np.uint8)
    write_dicom(path, np.zeros(pixels.shape, unsigned.dtype), view, bits=bits)
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


@pytest.fixture
def film(tmp_path: Path) -> Callable[..., Radiograph]:
    """Reads a film that `stored` has written."""
    return lambda *args, **changes: read_radiograph(stored(tmp_path / "f.dcm", *args, **changes))


Film = Callable[..., Radiograph]


def test_projections_of_every_kind_are_films_and_an_overlay_s_bits_are_ignored(film: Film, tmp_path: Path) -> None:
    for modality in ("CR", "DX", "RF", "XA", "RG", None):
        assert_array_equal(film(Modality=modality).pixels, GREY12)
    overlay = RNG.integers(0, 16, SHAPE).astype(np.uint16)
    dataset = pydicom.dcmread(stored(tmp_path / "f.dcm", GREY12 | (overlay << 12)))
    dataset.add_new(0x60000102, "US", 12)
    dataset.save_as(tmp_path / "f.dcm")
    assert_array_equal(read_radiograph(tmp_path / "f.dcm").pixels, GREY12)
    # As old files have them: the picture in the upper bits, something else in the lower ones.
    assert_array_equal(film((GREY12 << 4) | overlay, HighBit=15).pixels, GREY12)


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_signed_values(film: Film, kind: str) -> None:
    values = GREY12.astype(np.int16) - 2048
    expected = values if kind == "MONOCHROME2" else -1 - values
    for same in (values, values & 0x0FFF):  # The sign is carried into the unused bits, or not.
        assert_array_equal(film(same, PixelRepresentation=1, PhotometricInterpretation=kind).pixels, expected)


def _table(values: np.ndarray, **entries: Any) -> Sequence:
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table.add_new("LUTData", "OW", values.astype(np.uint16).tobytes())
    for keyword, value in entries.items():
        setattr(table, keyword, value)
    return Sequence([table])


def test_the_modality_lut_counts_and_the_window_and_the_voi_lut_are_ignored(film: Film) -> None:
    values = np.arange(4096) ** 2 // 300
    lut = _table(values, ModalityLUTType="US")
    read = film(RescaleSlope=None, RescaleIntercept=None, ModalityLUTSequence=lut)
    assert_array_equal(read.pixels, values.astype(np.uint16)[GREY12])
    voi = _table(np.full(4096, 7))
    assert_array_equal(film(WindowCenter=100, WindowWidth=10, VOILUTSequence=voi).pixels, GREY12)


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_raw_film_becomes_attenuation_by_its_detector_s_sign(film: Film, kind: str, sign: int) -> None:
    integral = np.linspace(0.01, 5, 37 * 52).reshape(SHAPE)
    photons = np.rint(65535 * np.exp(-integral))
    values = (photons if sign == 1 else 65535 - photons).astype(np.uint16)
    raw = {"PresentationIntentType": "FOR PROCESSING", "PresentationLUTShape": None, "PhotometricInterpretation": kind}
    raw["PixelIntensityRelationshipSign"] = sign
    read = film(values, 16, PixelIntensityRelationship="LIN", **raw)
    assert_allclose(read.pixels, integral, atol=2e-3)
    assert read.acquisition.notes == ("The film is a raw one, linear in the exposure: its logarithm was taken.",)
    # A logarithmic one has its white bone turned only.
    assert_array_equal(film(values, 16, PixelIntensityRelationship="LOG", **raw).pixels, 65535 - photons)


def test_a_file_that_contradicts_itself_on_white_is_noted(film: Film) -> None:
    for changes in ({"PresentationLUTShape": "INVERSE"}, {"PixelIntensityRelationshipSign": 1}):
        read = film(**changes)
        assert_array_equal(read.pixels, GREY12)  # What viewers show.
        assert "make sure that bone is white" in read.acquisition.notes[0]
    inverse = {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}
    read = film(**inverse, PixelIntensityRelationshipSign=1)
    assert_array_equal(read.pixels, 4095 - GREY12)
    assert not read.acquisition.notes


def test_unexposed_pixels_are_nan(film: Film, tmp_path: Path) -> None:
    values = GREY12.copy()
    values[:, :5], values[:, 5:8] = 4095, 4090
    read = film(values, PixelPaddingValue=4095, PixelPaddingRangeLimit=4080)
    assert np.isnan(read.pixels[:, :8]).all()
    assert_array_equal(read.pixels[:, 8:], GREY12[:, 8:])
    path = _rewritten(stored(tmp_path / "f.dcm", values, PixelPaddingValue=4095), ImplicitVRLittleEndian)
    one = read_radiograph(path).pixels
    assert np.isnan(one[:, :5]).all() and (one[:, 5:8] == 4090).all()


def _rewritten(path: Path, uid: pydicom.uid.UID) -> Path:
    """The film in another uncompressed transfer syntax."""
    dataset = pydicom.dcmread(path)
    if uid == ExplicitVRBigEndian:
        dataset.PixelData = GREY12.astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = uid
    pydicom.dcmwrite(path, dataset, implicit_vr=uid == ImplicitVRLittleEndian, little_endian=uid.is_little_endian)
    return path


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


@pytest.mark.parametrize(
    ("kind", "bits"), [(k, n) for k in LOSSLESS for n in (8, 12, 16, -12) if n > 0 or not k.startswith("JPEG 2000")]
)
def test_compressed_films_come_back(tmp_path: Path, kind: str, bits: int) -> None:
    code, uid = LOSSLESS[kind]
    values = {8: (GREY12 >> 4).astype(np.uint8), 12: GREY12, 16: GREY12 * np.uint16(16)}
    values = values.get(bits, GREY12.astype(np.int16) - 2048)
    path = _recoded(stored(tmp_path / "f.dcm", values, abs(bits), PixelRepresentation=int(bits < 0)), code)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == uid
    difference = np.abs(read_radiograph(path).pixels - values)
    assert difference.max() <= (0 if kind != "JPEG 2000" else 2)


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize(
    "code", [None, *(LOSSLESS[name][0] for name in ("JPEG lossless", "JPEG 2000 lossless", "RLE"))]
)
def test_values_that_take_more_bits_than_are_stated_are_believed(tmp_path: Path, bits: int, code: int | None) -> None:
    path = stored(tmp_path / "f.dcm")
    dataset = pydicom.dcmread(path if code is None else _recoded(path, code))
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.save_as(path)
    read = read_radiograph(path)
    assert_array_equal(read.pixels, GREY12)
    assert read.acquisition.notes == (
        f"The file states {bits} bits a pixel, but its values take 12, which were believed.",
    )


def _encapsulated(path: Path, code: bytes, uid: str, **changes: Any) -> Path:
    dataset = pydicom.dcmread(stored(path, (GREY12 >> 4).astype(np.uint8), 8, **changes))
    dataset.PixelData = encapsulate([code])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(uid)
    dataset.save_as(path)
    return path


def test_baseline_jpeg_other_byte_orders_and_implicit_types(tmp_path: Path) -> None:
    for syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian):
        assert_array_equal(read_radiograph(_rewritten(stored(tmp_path / "f.dcm"), syntax)).pixels, GREY12)
    code = io.BytesIO()
    grey = (SMOOTH >> 4).astype(np.uint8)
    Image.fromarray(grey).save(code, format="JPEG", quality=98)
    read = read_radiograph(_encapsulated(tmp_path / "f.dcm", code.getvalue(), "1.2.840.10008.1.2.4.50"))
    assert np.abs(read.pixels - grey).max() <= 3


@pytest.mark.parametrize(
    ("uid", "sentence"),
    [
        ("1.2.840.10008.1.2.4.201", "is compressed as High-Throughput JPEG 2000 .*export it uncompressed"),
        ("1.2.840.10008.1.2.4.102", "is compressed as MPEG-4 .*which can't be read here"),
        ("1.2.826.0.1.3680043.2.999", "is compressed or encrypted in a private way, which can't be read here"),
        *((f"1.2.840.10008.1.2.{n}", "can't be decoded; it is damaged or") for n in ("4.80", "4.70", "4.90", "5")),
    ],
)
def test_unreadable_compressions_are_refused_silently(
    tmp_path: Path, uid: str, sentence: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = _encapsulated(tmp_path / "f.dcm", b"\xff\xd8not what it says\xff\xd9", uid)
    with pytest.raises(InputError, match=f"^[^\\n]*{sentence}[^\\n]*$"):
        read_radiograph(path)
    assert capfd.readouterr() == ("", "") and not caplog.records


OPPOSITE = dict(zip("RLAPHF", "LRPAFH", strict=True))
TURNS = [ImageOrientation(*flags) for flags in itertools.product((False, True), repeat=3)]


def stored_picture(picture: np.ndarray, letters: tuple, turn: ImageOrientation) -> tuple[np.ndarray, list[str]]:
    """An upright picture as a file stores it that `turn` turns upright, and that file's orientation letters."""
    across, down = letters
    if turn.mirrored:
        picture, across = np.fliplr(picture), OPPOSITE[across]
    if turn.upside_down:
        picture, down = np.flipud(picture), OPPOSITE[down]
    return (picture.T, [down, across]) if turn.transposed else (picture, [across, down])


@pytest.mark.parametrize("name", ["ap", "right_lateral"])
@pytest.mark.parametrize("turn", TURNS, ids=lambda turn: turn.words or "upright")
def test_a_film_stored_in_any_orientation_is_turned_upright(tmp_path: Path, name: str, turn: ImageOrientation) -> None:
    # A marker on the patient's right, in front, near the head: at the top left of an upright picture.
    marker = named_view(name, np.zeros(3), SHAPE, PITCH, cone=True).project(np.array([2.0, 1.5, 6.0]))
    assert marker[0] < 18 and marker[1] < 25
    truth = np.zeros(SHAPE, np.uint16)
    truth[tuple(np.rint(marker).astype(int))], truth[-1, -1] = 900, 333
    picture, letters = stored_picture(truth, ("L", "F") if name == "ap" else ("P", "F"), turn)
    tags = {"PatientOrientation": letters, "ImagerPixelSpacing": list(turn.upright_pair(PITCH)), "ViewPosition": None}
    path = stored(tmp_path / "f.dcm", np.ascontiguousarray(picture), **tags)
    Image.fromarray(picture).save(tmp_path / "f.png")
    read = read_radiograph(path, view="ap" if name == "ap" else "lateral")
    assert read.pixels.flags["C_CONTIGUOUS"]
    assert read.acquisition.notes == (f"The picture was {turn.words}, by its recorded orientation.",) * bool(turn.words)
    # The same stated by hand, for a file without tags; the pixel size counts on the upright picture.
    by_hand = read_radiograph(tmp_path / "f.png", PITCH, orientation=letters)
    for found in (read, by_hand):
        assert_array_equal(found.pixels, truth)
        assert found.pixel_mm == pytest.approx(PITCH) and found.acquisition.orientation == turn


def test_a_stated_orientation_replaces_the_file_s_and_has_words(tmp_path: Path) -> None:
    path = stored(tmp_path / "f.dcm", PatientOrientation=["R", "F"], ViewPosition="LL")
    read = read_radiograph(path, view="ap", orientation=["L", "F"])
    assert_array_equal(read.pixels, GREY12)
    assert read.acquisition.view is None
    picture = np.arange(6).reshape(2, 3)
    for turns, words in ((-1, "90 degrees clockwise"), (1, "90 degrees counter-clockwise"), (2, "180 degrees")):
        (turn,) = (turn for turn in TURNS if turn.words == f"turned by {words}")
        assert_array_equal(turn.upright_picture(picture), np.rot90(picture, turns))
    # In an oblique direction the strongest letter counts.
    assert orientation_from_letters(["LP", "FA"], "ap", "f") == ImageOrientation()


@pytest.mark.parametrize(
    ("changes", "view", "sentence"),
    [
        ({"ViewPosition": "LL", "PatientOrientation": None}, "ap", "a lateral one by its view position.*the frontal"),
        ({"PatientOrientation": ["P", "F"]}, "ap", "is a lateral one by its orientation, but .*exchange the two films"),
        ({}, "lateral", "is a frontal one by its view position, but it is given as the lateral one; exchange"),
        ({"PatientOrientation": ["P", "F"]}, None, "is a lateral one by its orientation, but .* the frontal one"),
        ({"PatientOrientation": ["L", "P"], "ViewPosition": None}, "ap", "neither as a frontal nor as a lateral film"),
        *(
            ({"ViewPosition": code, "PatientOrientation": None}, "ap", rf"f.dcm is neither .* view position \({code}\)")
            for code in ("LAO", "RAO", "OBLIQUE", "AXIAL", "LLD", "RLD", "RLO")
        ),
        ({"PatientOrientation": ["CR", "V"], "ViewPosition": None}, None, "orientation of the film f.dcm is not under"),
    ],
)
def test_a_film_of_another_view_is_refused(tmp_path: Path, changes: dict, view: str | None, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_radiograph(stored(tmp_path / "f.dcm", **changes), view=view)


@pytest.mark.parametrize(
    ("position", "laterality", "view"),
    [
        *[("PA", "U", "pa"), ("LL", "U", "left_lateral"), ("RL", "U", "right_lateral"), ("RLAT", "L", "right_lateral")],
        *[("LATERAL", "R", "right_lateral"), ("LAT", "L", "left_lateral"), ("LAT", "U", "lateral")],
        (None, "U", None),
    ],
)
def test_the_view_that_a_file_names(film: Film, position: str | None, laterality: str, view: str | None) -> None:
    read = film(ViewPosition=position, ImageLaterality=laterality, PatientOrientation=None)
    assert read.acquisition.view == view


def test_the_distances_and_the_report_s_entry_for_a_film(film: Film) -> None:
    def known(**changes: Any) -> tuple[float | None, float | None, float | None]:
        acquisition = film(**changes).acquisition
        return acquisition.source_to_detector_mm, acquisition.source_to_patient_mm, acquisition.magnification

    assert known() == (None, None, None)
    assert known(DistanceSourceToDetector=1800, DistanceSourceToPatient=1500) == (1800, 1500, pytest.approx(1.2))
    given = {"DistanceSourceToDetector": 1800, "EstimatedRadiographicMagnificationFactor": 1.25}
    assert known(**given) == (1800, pytest.approx(1440), 1.25)
    assert known(**given, DistanceSourceToPatient=1500) == (1800, 1500, 1.25)
    # Scanners write 0 for what they don't know; impossible values are ignored too.
    nothing = {"DistanceSourceToDetector": 0, "EstimatedRadiographicMagnificationFactor": 1}
    assert known(**nothing, DistanceSourceToPatient=0) == (None, None, None)
    assert known(DistanceSourceToDetector=1500, DistanceSourceToPatient=1800) == (1500, None, None)
    assert known(DistanceSourceToDetector=1.8) == (None, None, None)
    said = json.loads(json.dumps(film(PatientOrientation=["R", "F"]).acquisition.to_dict()))
    words = "mirrored left to right"
    assert said["turned"] == words and said["notes"] == [f"The picture was {words}, by its recorded orientation."]
    assert (said["view"], said["pixel_plane"], said["magnification"]) == ("ap", "detector", None)


OTHER = {"ImagerPixelSpacing": None, "PixelSpacing": [0.5, 0.1]}


@pytest.mark.parametrize(
    ("changes", "pitch", "plane", "words"),
    [
        ({"PixelSpacing": [0.5, 0.1], "PixelSpacingCalibrationType": "GEOMETRY"}, (0.7, 0.143), "detector", "Imager"),
        (OTHER, (0.5, 0.1), "detector", "does not say of which"),
        (OTHER | {"PixelSpacingCalibrationType": "FIDUCIAL"}, (0.5, 0.1), "patient", "by an object of known size to a"),
        (OTHER | {"PixelSpacingCalibrationType": "GEOMETRY"}, (0.5, 0.1), "patient", "by the distances to a plane in"),
        (OTHER | {"NominalScannedPixelSpacing": [0.17, 0.17]}, (0.17, 0.17), "detector", "digitised"),
    ],
)
def test_where_the_pixel_pitch_comes_from(tmp_path: Path, changes: dict, pitch: tuple, plane: str, words: str) -> None:
    path = stored(tmp_path / "f.dcm", **changes)
    read, by_hand = read_radiograph(path), read_radiograph(path, 0.3)
    assert read.pixel_mm == pytest.approx(pitch)
    assert read.acquisition.pixel_plane == plane and words in read.acquisition.pixel_mm_from
    assert by_hand.pixel_mm == (0.3, 0.3)
    assert by_hand.acquisition.pixel_plane == "detector" and by_hand.acquisition.pixel_mm_from == "stated by hand"


@pytest.mark.parametrize("spacing", [[0, 0], [143, 143], [-0.7, 0.7], [1e-9, 0.5], ["nan", "nan"], 0.5])
def test_an_impossible_pixel_size_is_ignored(tmp_path: Path, spacing: Any) -> None:
    with pydicom.config.disable_value_validation():
        path = stored(tmp_path / "f.dcm", ImagerPixelSpacing=spacing, PixelSpacing=spacing)
    with pytest.raises(InputError, match=r"f\.dcm does not say how large its pixels are, or states an impossible size"):
        read_radiograph(path)
    unknown = read_radiograph(path, require_pixel_mm=False)
    assert unknown.pixel_mm is None and unknown.acquisition.pixel_mm_from == ""
    assert read_radiograph(path, 0.2).pixel_mm == (0.2, 0.2)
    for wrong in (143.0, 1e-3, float("nan"), 0.0):
        with pytest.raises(InputError, match="make no film of f.dcm; give them in mm|both must be positive"):
            read_radiograph(path, wrong)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        *[({"Modality": m}, f"f.dcm is a {m} image, not a film") for m in ("CT", "MR", "US", "PT", "NM", "MG", "XC")],
        ({"Modality": "PLANTED"}, "f.dcm is of another modality, not a film; give a radiograph"),
        ({"RescaleSlope": 0}, "is flat, since its RescaleSlope is 0; export it again"),
        ({"NumberOfFrames": 12}, "has 12 frames; give one picture a view"),
        ({"PhotometricInterpretation": "RGB"}, "is a colour picture, such as a photograph; give the radiograph itself"),
        ({"SamplesPerPixel": 3}, "is a colour picture"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "is a colour picture"),
        ({"PixelData": None}, "can't be decoded; it is damaged or cut short"),
        ({"BitsAllocated": 32}, "has 32 bits a pixel; export it with 8 or 16"),
        ({"Rows": 40000, "Columns": 40000}, "has more than 150 million pixels; make it smaller"),
        ({"Rows": 500}, "can't be decoded; it is damaged or cut short"),
        ({"RescaleSlope": "nan"}, "can't be decoded; it is damaged"),
        ({"BitsStored": None}, "can't be decoded; it is damaged"),
    ],
)
def test_files_that_are_no_film_get_one_sentence(tmp_path: Path, changes: dict, sentence: str) -> None:
    with pydicom.config.disable_value_validation():
        path = stored(tmp_path / "f.dcm", **changes)
    with pytest.raises(InputError, match=sentence) as caught:
        read_radiograph(path)
    assert "\n" not in str(caught.value) and "PLANTED" not in str(caught.value)


def test_odd_headers_are_read(tmp_path: Path) -> None:
    whole = stored(tmp_path / "f.dcm").read_bytes()
    header = 144 + int.from_bytes(whole[140:144], "little")
    for content in (whole[132:], whole[header:]):  # Without a preamble, and without a header.
        (tmp_path / "bare.dcm").write_bytes(content)
        assert_array_equal(read_radiograph(tmp_path / "bare.dcm").pixels, GREY12)
    read = read_radiograph(stored(tmp_path / "f.dcm", PhotometricInterpretation=None, ViewPosition="PLANTED"))
    assert_array_equal(read.pixels, GREY12)
    assert read.acquisition.notes == (
        "The file's view position is not a known code; make sure that it is the right film.",
    )
    # A grey film as a secondary capture in colour.
    grey = (GREY12 >> 4).astype(np.uint8)
    rgb = {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3, "PlanarConfiguration": 0}
    path = stored(tmp_path / "f.dcm", grey, 8, **rgb, PixelData=np.stack([grey] * 3, -1).tobytes())
    assert_array_equal(read_radiograph(path).pixels, grey)
    path = stored(tmp_path / "f.dcm", grey, 8, **rgb, PixelData=np.stack([grey, grey, grey // 2], -1).tobytes())
    with pytest.raises(InputError, match="f.dcm is a colour picture, such as a photograph; give the radiograph itself"):
        read_radiograph(path)


def test_a_deflated_file_is_not_unpacked_beyond_the_largest_film(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored(tmp_path / "f.dcm", np.zeros((1000, 1000), np.uint16), Columns=10)
    path = _recoded(path, gdcm.TransferSyntax.DeflatedExplicitVRLittleEndian)
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(dicom, "MOST_PIXELS", 500_000)
    with pytest.raises(InputError, match="f.dcm has more than 0 million pixels; make it smaller"):
        read_radiograph(path)


def test_an_encrypted_file(tmp_path: Path) -> None:
    hidden = Dataset()
    hidden.EncryptedContentTransferSyntaxUID, hidden.EncryptedContent = "1.2.840.10008.1.2.1", b"\1\2\3\4"
    path = stored(tmp_path / "f.dcm", PixelData=None, EncryptedAttributesSequence=Sequence([hidden]))
    with pytest.raises(InputError, match="f.dcm is encrypted; decrypt it before you give it here"):
        read_radiograph(path)
    # The whole file in an envelope: no DICOM to be seen.
    envelope = bytes.fromhex("3082010006092a864886f70d010703a081f2") + RNG.bytes(300)
    (tmp_path / "f.p7m").write_bytes(envelope)
    with pytest.raises(InputError, match="f.p7m is encrypted; decrypt it"):
        read_radiograph(tmp_path / "f.p7m")


def test_a_file_cut_at_any_place(tmp_path: Path) -> None:
    content = stored(tmp_path / "f.dcm").read_bytes()
    for length in (*range(140, len(content) - 1, 173), len(content) - 2):
        (tmp_path / "cut.dcm").write_bytes(content[:length])
        with pytest.raises(InputError, match=r"cut\.dcm (can't be decoded|does not say|is )"):
            read_radiograph(tmp_path / "cut.dcm")


_READS = """
import sys, resource
from transvert.clinical.radiograph import read_radiograph
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    print(int(read_radiograph(path, 0.1, orientation=["R", "H"]).pixels[0, -1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is counted in KiB on Linux")
def test_a_large_film_is_held_about_once(tmp_path: Path) -> None:
    """4,000 x 4,000 pixels in 16 bits are 32 MB in the file and 64 MB as float32; 12,000 x 12,000 take 9 times that."""
    grey = np.zeros((4000, 4000), np.uint16)
    grey[-1, 0] = 1234
    Image.fromarray(grey).save(tmp_path / "big.png", compress_level=1)
    words = [sys.executable, "-c", _READS, str(stored(tmp_path / "big.dcm", grey, 16)), str(tmp_path / "big.png")]
    *corners, peak = map(int, subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())
    assert corners == [1234, 1234] and peak / 1024 < 150  # MiB; the stored and the float picture are 92.


def test_only_tags_that_identify_no_patient_are_read() -> None:
    identifying = re.compile("Name|Date|Time|UID|Institution|Accession|Physician|Comments|Description|Patient")
    asked = {keyword for keyword in dicom._READ if identifying.search(keyword)}
    assert asked == {
        *("PatientOrientation", "ImageOrientationPatient", "ImagePositionPatient", "DistanceSourceToPatient")
    }
