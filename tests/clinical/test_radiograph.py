"""Films: grey values, files that come back as they went, and patches that are life-sized."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from pydicom.pixels import apply_voi_lut
from scipy import ndimage

from transvert.clinical import radiograph
from transvert.data import patches
from transvert.drr import exposure, projector
from transvert.drr.geometry import VIEW_NAMES, View, named_view
from transvert.imaging.volume import Volume
from transvert.io import InputError

RNG = np.random.default_rng(0)
GREY8 = RNG.integers(0, 256, (7, 9), np.uint8)
GREY16 = RNG.integers(0, 65536, (7, 9), np.uint16)


def view(name: str = "ap", shape: tuple[int, int] = (7, 9), **options: object) -> View:
    return named_view(name, np.zeros(3), shape, (0.7, 0.143), **options)  # type: ignore[arg-type]


# Grey values


@pytest.mark.parametrize("bits", range(8, 17))
def test_grey_values_of_every_depth(bits: int) -> None:
    image = np.array([[-1.0, 0, 0.5, 1.2, 2, 3]])
    full = 2**bits - 1
    grey = radiograph.to_grey(image, bits=bits, window=(0, 2))
    assert grey.tolist() == [[0, 0, round(full / 4), round(full * 0.6), full, full]]
    assert grey.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert_array_equal(radiograph.to_grey(image, bits=bits, window=(0, 2), inverted=True), full - grey)
    assert_array_equal(radiograph.to_grey(image, bits=bits, window=(0, 2)), grey)


def test_the_default_window_is_the_picture_s_own() -> None:
    assert not radiograph.to_grey(np.full((3, 3), 7.0)).any()
    ramp = radiograph.to_grey(np.append(np.arange(1000.0), 1e9).reshape(7, 143))
    assert (ramp == 255).sum() < 10  # One bright pixel does not make the rest black.
    assert ramp.min() == 0


def test_bad_grey() -> None:
    image = np.ones((3, 3))
    for bits in (7, 17):
        with pytest.raises(InputError, match=f"8 to 16 bits, not {bits}"):
            radiograph.to_grey(image, bits=bits)
    for window in ((2, 1), (1, 1), (1.5, -1.5), (np.nan, 1), (0, np.inf)):
        with pytest.raises(InputError, match="shows nothing; its first value must be the smaller one"):
            radiograph.to_grey(image, window=window)
    with pytest.raises(InputError, match="have no grey"):
        radiograph.to_grey(np.array([[0, np.nan]]))


# Files


def picture(bits: int, inverted: bool = False, shape: tuple[int, int] = (7, 9)) -> np.ndarray:
    """Grey values from 0 to the highest of all, every bit in use."""
    ramp = np.linspace(0, 1, shape[0] * shape[1]).reshape(shape)
    return radiograph.to_grey(ramp, bits=bits, window=(0, 1), inverted=inverted)


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("bits", range(8, 17))
def test_a_png_comes_back_with_its_pixel_size(tmp_path: Path, bits: int, inverted: bool) -> None:
    grey = picture(bits, inverted)
    path = radiograph.write_png(tmp_path / "f.png", grey, (0.7, 0.143), bits=bits)
    read = radiograph.read_radiograph(path)
    highest = 255 if bits == 8 else 65535
    assert read.pixels.max() == highest and read.pixels.min() == 0
    assert_array_equal(np.rint(read.pixels * ((2**bits - 1) / highest)), grey)
    assert read.pixels.dtype == np.float32
    assert read.pixel_mm == pytest.approx((0.7, 0.143), rel=1e-3)
    content = path.read_bytes()
    stated = content.find(b"sBIT")
    assert (stated > 0) == (bits not in (8, 16)) and stated < content.find(b"IDAT")
    if stated > 0:
        assert content[stated - 4 : stated + 5] == b"\0\0\0\1sBIT" + bytes([bits])
    assert [path.name for path in tmp_path.iterdir()] == ["f.png"]


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("bits", range(8, 17))
def test_a_dicom_film_comes_back(tmp_path: Path, bits: int, inverted: bool) -> None:
    v = view(cone=inverted)
    grey = picture(bits, inverted)
    path = radiograph.write_dicom(tmp_path / "f.dcm", grey, v, bits=bits, inverted=inverted)
    read = radiograph.read_radiograph(path)
    assert_array_equal(read.pixels, picture(bits))  # Bone white, whichever way it was stored.
    assert read.pixel_mm == pytest.approx((0.7, 0.143))
    dataset = pydicom.dcmread(path)
    assert_array_equal(dataset.pixel_array, grey)
    assert (dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit) == (8 if bits == 8 else 16, bits, bits - 1)
    # The window shows the stored range from end to end.
    shown = apply_voi_lut(np.array([0, 2**bits - 1]), dataset)
    assert_allclose(shown, [0, 2**bits - 1])
    first = path.read_bytes()
    assert radiograph.write_dicom(path, grey, v, bits=bits, inverted=inverted).read_bytes() == first


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("response", ["log", "linear"])
def test_a_dicom_film_says_what_its_grey_means(tmp_path: Path, response: str, inverted: bool) -> None:
    v = view()
    integral = np.linspace(0, 5, 63).reshape(7, 9).astype(np.float32)
    exposed = exposure.expose(integral, pixel_mm=v.pixel_mm, seed=0, photons=0, scatter=0, blur_mm=0, response=response)
    grey = radiograph.to_grey(exposed, bits=12, window=(0, 5 if response == "log" else 1), inverted=inverted)
    path = radiograph.write_dicom(tmp_path / "f.dcm", grey, v, bits=12, inverted=inverted, response=response)
    dataset = pydicom.dcmread(path)
    assert dataset.PhotometricInterpretation == ("MONOCHROME1" if inverted else "MONOCHROME2")
    assert dataset.PresentationLUTShape == ("INVERSE" if inverted else "IDENTITY")
    # What the relationship and its sign promise, from the pixels: how they go with the photons that came.
    photons = np.exp(-integral) if dataset.PixelIntensityRelationship == "LIN" else -integral
    stored = dataset.PixelIntensityRelationshipSign * dataset.pixel_array.astype(float)
    assert dataset.PixelIntensityRelationship == {"log": "LOG", "linear": "LIN"}[response]
    assert np.corrcoef(photons.ravel(), stored.ravel())[0, 1] > 0.9999
    # Shown by DICOM's rules, dense is white.
    shown = dataset.pixel_array if dataset.PresentationLUTShape == "IDENTITY" else 4095 - dataset.pixel_array
    assert (np.diff(shown.ravel().astype(int)) >= 0).all() and np.ptp(shown) > 4000
    assert_array_equal(radiograph.read_radiograph(path).pixels, shown)


def test_other_films_have_other_identifiers(tmp_path: Path) -> None:
    def identifier(**options: object) -> str:
        path = radiograph.write_dicom(tmp_path / "f.dcm", picture(12), view(), **options)  # type: ignore[arg-type]
        return str(pydicom.dcmread(path).SOPInstanceUID)

    same = {"bits": 12, "inverted": False, "response": "log"}
    changes = ({}, {"bits": 14}, {"inverted": True}, {"response": "linear"})
    assert len({identifier(**same | change) for change in changes}) == 4
    assert identifier(**same) == identifier(**same)


@pytest.mark.parametrize("write", ["png", "dicom"])
def test_a_depth_that_the_picture_has_not(tmp_path: Path, write: str) -> None:
    def store(grey: np.ndarray, bits: int | None) -> None:
        if write == "png":
            radiograph.write_png(tmp_path / "f.png", grey, 1.0, bits=bits)
        else:
            radiograph.write_dicom(tmp_path / "f.dcm", grey, view(), bits=bits)

    for grey, bits in ((picture(12), 10), (picture(8), 12), (picture(8), 7), (picture(16), 17), (picture(12), 8)):
        with pytest.raises(InputError, match=f"has not {bits} bits; give the bits that it was made with"):
            store(grey, bits)
    with pytest.raises(InputError, match="is no grey picture; make one with to_grey"):
        store(np.zeros((7, 9)), None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "turn_deg", "orientation"),
    [
        ("ap", 0, ["L", "F"]),
        ("pa", 0, ["L", "F"]),
        ("left_lateral", 0, ["P", "F"]),
        ("right_lateral", 0, ["P", "F"]),
        ("ap", 10, ["LP", "F"]),
    ],
)
def test_a_dicom_film_says_how_the_patient_stands(
    tmp_path: Path, name: str, turn_deg: float, orientation: list[str]
) -> None:
    v = view(name, cone=True, turn_deg=turn_deg)
    dataset = pydicom.dcmread(radiograph.write_dicom(tmp_path / "f.dcm", GREY16, v, source_to_patient_mm=1500.0))
    assert list(dataset.PatientOrientation) == orientation
    # The letters once more, from points: a step along the row and down the column must raise the pixel's number.
    ways = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "H": (0, 0, 1), "F": (0, 0, -1)}
    steps = v.project(np.array([ways[way[0]] for way in orientation])) - v.project(np.zeros(3))
    assert steps[0, 1] > 0 and steps[1, 0] > 0
    assert dataset.ViewPosition == dict(zip(VIEW_NAMES, ["AP", "PA", "LL", "RL"], strict=True))[name]
    assert dataset.DistanceSourceToDetector == 1800 and dataset.DistanceSourceToPatient == 1500
    assert dataset.EstimatedRadiographicMagnificationFactor == pytest.approx(1.2)
    assert list(dataset.ImageType) == ["DERIVED", "PRIMARY", ""] and dataset.PatientName == "SIMULATED^FILM"


def test_a_picture_of_another_shape_is_no_film_of_the_view(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no film of the view 'ap'"):
        radiograph.write_dicom(tmp_path / "f.dcm", GREY8[1:], view())
    with pytest.raises(InputError, match="response is log or linear, not 'gamma'"):
        radiograph.write_dicom(tmp_path / "f.dcm", GREY8, view(), response="gamma")
    assert not list(tmp_path.iterdir())


def changed_dicom(path: Path, **changes: object) -> Path:
    dataset = pydicom.dcmread(radiograph.write_dicom(path, GREY16, view()))
    for keyword, value in changes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


def test_a_foreign_monochrome1_is_turned_to_white_bone(tmp_path: Path) -> None:
    read = radiograph.read_radiograph(changed_dicom(tmp_path / "f.dcm", PhotometricInterpretation="MONOCHROME1"))
    assert_array_equal(read.pixels, 65535 - GREY16.astype(np.float32))
    changes = {"RescaleSlope": 0.5, "RescaleIntercept": -7, "PhotometricInterpretation": "MONOCHROME1"}
    read = radiograph.read_radiograph(changed_dicom(tmp_path / "f.dcm", **changes))
    assert_allclose(read.pixels, (65535 - GREY16.astype(float)) * 0.5 - 7)
    signed = changed_dicom(tmp_path / "f.dcm", PhotometricInterpretation="MONOCHROME1", PixelRepresentation=1)
    assert_array_equal(radiograph.read_radiograph(signed).pixels, -1 - GREY16.view(np.int16).astype(np.float32))


def test_the_modality_rescale_is_applied(tmp_path: Path) -> None:
    read = radiograph.read_radiograph(changed_dicom(tmp_path / "f.dcm", RescaleSlope=0.5, RescaleIntercept=-7))
    assert_allclose(read.pixels, GREY16 * 0.5 - 7)


def test_the_detector_s_pixel_size_goes_before_a_calibrated_one(tmp_path: Path) -> None:
    path = changed_dicom(tmp_path / "f.dcm", PixelSpacing=[0.5, 0.1])
    assert radiograph.read_radiograph(path).pixel_mm == pytest.approx((0.7, 0.143))
    path = changed_dicom(tmp_path / "f.dcm", PixelSpacing=[0.5, 0.1], ImagerPixelSpacing=None)
    assert radiograph.read_radiograph(path).pixel_mm == pytest.approx((0.5, 0.1))


@pytest.mark.parametrize("spacing", [None, [0, 0]])
def test_a_pixel_size_that_no_one_states_is_asked_for(tmp_path: Path, spacing: list[float] | None) -> None:
    path = changed_dicom(tmp_path / "f.dcm", PixelSpacing=spacing, ImagerPixelSpacing=spacing)
    with pytest.raises(InputError, match=r"f\.dcm does not say how large its pixels are, or .*; give pixel_mm"):
        radiograph.read_radiograph(path)
    assert radiograph.read_radiograph(path, 0.2).pixel_mm == (0.2, 0.2)


@pytest.mark.parametrize("name", ["f.png", "f.tif", "f.jpg"])
def test_pictures_without_pixel_size(tmp_path: Path, name: str) -> None:
    Image.fromarray(GREY8).save(tmp_path / name)
    with pytest.raises(InputError, match="give pixel_mm"):
        radiograph.read_radiograph(tmp_path / name)
    read = radiograph.read_radiograph(tmp_path / name, (0.2, 0.3))
    assert read.pixel_mm == (0.2, 0.3)
    if name != "f.jpg":
        assert_array_equal(read.pixels, GREY8)


@pytest.mark.parametrize("dpi", [72, 96, 144])
def test_a_screen_s_resolution_is_no_pixel_size(tmp_path: Path, dpi: int) -> None:
    Image.fromarray(GREY8).save(tmp_path / "screenshot.png", dpi=(dpi, dpi))
    with pytest.raises(InputError, match="give pixel_mm"):
        radiograph.read_radiograph(tmp_path / "screenshot.png")


def test_the_pixel_size_given_by_hand_goes_first(tmp_path: Path) -> None:
    path = radiograph.write_png(tmp_path / "f.png", GREY8, 0.5)
    assert radiograph.read_radiograph(path, 0.4).pixel_mm == (0.4, 0.4)
    with pytest.raises(InputError, match="both must be positive"):
        radiograph.read_radiograph(path, -1.0)


@pytest.mark.parametrize("grey", [GREY8, GREY16])
def test_a_tiff_whose_white_is_zero(tmp_path: Path, grey: np.ndarray) -> None:
    Image.fromarray(grey).save(tmp_path / "f.tif", tiffinfo={262: 0})
    stored = radiograph.read_radiograph(tmp_path / "f.tif", 1.0).pixels
    assert np.corrcoef(stored.ravel(), grey.ravel())[0, 1] == pytest.approx(-1 if grey is GREY16 else 1)


def test_colour(tmp_path: Path) -> None:
    channels = np.stack([GREY8] * 3, axis=-1)
    Image.fromarray(channels).save(tmp_path / "grey.png")
    assert_array_equal(radiograph.read_radiograph(tmp_path / "grey.png", 1.0).pixels, GREY8)
    channels[..., 0] //= 2
    Image.fromarray(channels).save(tmp_path / "colour.png")
    with pytest.raises(InputError, match=r"colour\.png is a colour picture"):
        radiograph.read_radiograph(tmp_path / "colour.png", 1.0)
    path = changed_dicom(tmp_path / "colour.dcm", PhotometricInterpretation="RGB")
    with pytest.raises(InputError, match=r"colour\.dcm is a colour picture"):
        radiograph.read_radiograph(path)


@pytest.mark.parametrize("name", ["f.dcm", "f.png", "f.jpg", "f.tif"])
@pytest.mark.filterwarnings("ignore")  # pydicom also warns, in its own words.
def test_a_file_that_is_cut_short(tmp_path: Path, name: str) -> None:
    path, big = tmp_path / name, RNG.integers(0, 256, (64, 64), np.uint8)
    if name == "f.dcm":
        radiograph.write_dicom(path, big, view(shape=(64, 64)))
    else:
        Image.fromarray(big).save(path)
    content = path.read_bytes()
    for part in (0.3, 0.8):
        path.write_bytes(content[: int(len(content) * part)])
        with pytest.raises(
            InputError, match=r"^The film f\.\w+ can't be decoded; it is damaged or cut short"
        ) as caught:
            radiograph.read_radiograph(path, 1.0)
        assert "\n" not in str(caught.value)


def test_a_photograph_and_a_screenshot(tmp_path: Path) -> None:
    """The one is refused as coloured; the other, even a grey one, says nothing of the size of its pixels."""
    photograph = RNG.integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(photograph).save(tmp_path / "photo.jpg")
    screen = np.stack([np.repeat(GREY8, 5, axis=0)] * 3 + [np.full((35, 9), 255, np.uint8)], axis=-1)
    screen[:4, :, 0] = 255  # A red bar.
    Image.fromarray(screen).save(tmp_path / "screen.png", dpi=(96, 96))
    for name in ("photo.jpg", "screen.png"):
        with pytest.raises(
            InputError, match=f"{name} is a colour picture, such as a photograph or a screenshot; .*grey PNG"
        ):
            radiograph.read_radiograph(tmp_path / name, 0.2)
    screen[:4, :, 0] = screen[:4, :, 1]
    Image.fromarray(screen).save(tmp_path / "screen.png", dpi=(96, 96))
    with pytest.raises(InputError, match="does not say how large its pixels are"):
        radiograph.read_radiograph(tmp_path / "screen.png")
    assert_array_equal(radiograph.read_radiograph(tmp_path / "screen.png", 0.2).pixels, screen[..., 1])


@pytest.mark.parametrize("grey", [GREY8, GREY16], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}])
def test_a_tiff_of_either_depth(tmp_path: Path, grey: np.ndarray, options: dict[str, str]) -> None:
    big = np.tile(grey, (60, 3))  # More rows than are converted at a time.
    Image.fromarray(big).save(tmp_path / "f.tif", **options)
    assert_array_equal(radiograph.read_radiograph(tmp_path / "f.tif", 0.2).pixels, big)


@pytest.mark.parametrize("worst", [np.nan, np.inf])
def test_a_picture_with_values_that_are_no_grey(tmp_path: Path, worst: float) -> None:
    values = GREY8.astype(np.float32)
    Image.fromarray(values).save(tmp_path / "f.tif")
    assert_array_equal(radiograph.read_radiograph(tmp_path / "f.tif", 0.2).pixels, GREY8)
    values[3, 4] = worst
    Image.fromarray(values).save(tmp_path / "f.tif")
    with pytest.raises(InputError, match="f.tif has NaN or infinite values, which have no grey; save it as 16-bit"):
        radiograph.read_radiograph(tmp_path / "f.tif", 0.2)


def test_a_picture_that_exif_turns_is_stored_as_viewers_show_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # To be shown turned by 90 degrees clockwise.
    Image.fromarray(GREY8).save(
        tmp_path / "f.png", exif=exif, dpi=(254, 127)
    )  # 0.1 mm across, 0.2 mm down, as it lies.
    read = radiograph.read_radiograph(tmp_path / "f.png")
    assert_array_equal(read.pixels, np.rot90(GREY8, -1))
    assert read.pixel_mm == pytest.approx((0.1, 0.2), rel=1e-3)


def test_a_picture_of_too_many_pixels(tmp_path: Path) -> None:
    for rows in (13_000, 30_000):
        Image.new("1", (12_000, rows)).save(tmp_path / "f.png")
        with pytest.raises(InputError, match="f.png has more than 150 million pixels; make it smaller"):
            radiograph.read_radiograph(tmp_path / "f.png", 0.1)


def test_an_archive_is_no_film(tmp_path: Path) -> None:
    (tmp_path / "films.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(InputError, match="films.zip is a ZIP archive; unpack it and give the film within"):
        radiograph.read_radiograph(tmp_path / "films.zip")


def test_what_is_not_a_film(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        radiograph.read_radiograph(tmp_path / "none.png")
    (tmp_path / "note.txt").write_text("no film")
    with pytest.raises(InputError, match="neither DICOM nor PNG, JPEG or TIFF"):
        radiograph.read_radiograph(tmp_path / "note.txt")
    with pytest.raises(InputError, match="is a CT image, not a film"):
        radiograph.read_radiograph(changed_dicom(tmp_path / "slice.dcm", Modality="CT"))
    with pytest.raises(InputError, match="has 2 frames"):
        radiograph.read_radiograph(changed_dicom(tmp_path / "run.dcm", NumberOfFrames=2))
    pages = [Image.fromarray(GREY8)] * 2
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match="holds 2 pictures"):
        radiograph.read_radiograph(tmp_path / "pages.tif", 1.0)


# Patches


def test_standardise_forgets_a_film_s_grey_scale() -> None:
    patch = RNG.normal(300, 20, (40, 40))
    valid = np.ones(patch.shape, bool)
    valid[:5] = False
    result = patches.standardise(patch, valid)
    assert result.dtype == np.float32 and not result[:5].any()
    assert not result[5].any() and result[6].any()  # the film's last row is left out
    assert result[6:].mean() == pytest.approx(0, abs=0.05) and result[6:].std() == pytest.approx(1, abs=0.1)
    assert_allclose(result, patches.standardise(patch * 37 - 11, valid), atol=1e-5)
    assert not patches.standardise(np.full((4, 4), 1 / 3)).any()
    assert not patches.standardise(patch, np.zeros(patch.shape, bool)).any()
    patch[20, 20] = np.nan
    assert np.isfinite(patches.standardise(patch)).all() and patches.standardise(patch)[20, 20] == 0
    patch[20, 20] = 1e9
    assert patches.standardise(patch).max() <= patches.CLIP


def test_standardise_shows_the_vertebra_and_not_the_body() -> None:
    """A bone's faint edge under the slope of a body thirty times as strong."""
    slope = np.repeat(np.linspace(0, 30, 64)[:, None], 64, axis=1)
    bone = np.zeros((64, 64))
    bone[:, 32:] = 1
    alone, under = patches.standardise(bone), patches.standardise(bone + slope)
    edge = np.s_[20:44, 24:40]
    assert np.corrcoef(alone[edge].ravel(), under[edge].ravel())[0, 1] > 0.9
    plain = (bone + slope - (bone + slope).mean()) / (bone + slope).std()
    assert np.ptp(under[32]) > 5 * np.ptp(plain[32])


@pytest.mark.parametrize("cone", [False, True])
@pytest.mark.parametrize("name", VIEW_NAMES)
def test_a_patch_of_a_small_sphere_is_life_sized(name: str, cone: bool) -> None:
    radius, centre = 10.0, np.array([130.0, -60.0, 60.0])  # Far from the isocentre, where magnification differs.
    volume = Volume(np.zeros((48, 48, 48), np.float32), np.diag([0.5, 0.5, 0.5, 1.0]))
    volume.affine[:3, 3] = centre - 23.5 * 0.5
    distance = np.linalg.norm(volume.world(np.stack(np.indices(volume.data.shape), axis=-1)) - centre, axis=-1)
    volume.data[:] = np.clip((radius - distance) / 0.5 + 0.5, 0, 1)
    v = named_view(name, np.zeros(3), (500, 900), 0.6, cone=cone)
    patch, valid = patches.cut_patch(projector.cast(volume, v), v, centre, 33, 1.0)
    assert valid.all() and patch.dtype == np.float32
    rows, columns = np.indices(patch.shape) - 16
    # Rays are a little slanted here, which widens the picture by under 1 %.
    expected = 2 * np.sqrt(np.maximum(radius**2 - rows**2 - columns**2, 0))
    assert np.abs(patch - expected)[np.hypot(rows, columns) < 9].max() < 0.6
    diameter = 2 * np.sqrt((patch > 2).sum() / np.pi)
    assert diameter == pytest.approx(2 * np.sqrt(radius**2 - 1), abs=0.7)  # Unmagnified it would be 2 to 6 mm.


def test_a_patch_has_the_picture_s_directions_and_ends_with_it() -> None:
    v = named_view("ap", np.zeros(3), (40, 30), 2.0)
    rows, columns = np.indices(v.shape).astype(np.float32)
    centre = v.corner + 10 * v.row_step + 3 * v.column_step + 77 * v.direction
    for picture, along in ((rows, 0), (columns, 1)):
        patch, valid = patches.cut_patch(picture, v, centre, 11, 2.0)
        index = np.indices(patch.shape)
        assert_array_equal(valid, index[1] >= 2)
        expected = index[along] + (5, -2)[along]
        assert_allclose(patch, np.where(valid, expected, 0), atol=1e-4)
    patch, valid = patches.cut_patch(rows, v, centre + [1000, 0, 0], 11, 2.0)
    assert not valid.any() and not patch.any()


def test_a_coarse_patch_averages_fine_pixels() -> None:
    v = named_view("ap", np.zeros(3), (400, 400), 0.15)
    board = (np.indices(v.shape).sum(axis=0) % 2).astype(np.float32)
    patch, valid = patches.cut_patch(board, v, np.array([0.1, 0, -0.07]), 25, 1.0)
    assert valid.all()
    assert_allclose(patch, 0.5, atol=0.01)


def test_a_film_of_finest_pixels_is_averaged_as_one_of_twice_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch's pixel covers 20 x 10 of the film's, which are sampled 6 x 3 at a time: as if each were."""
    smooth = np.sin(np.arange(900)[:, None] / 31) + np.cos(np.arange(900) / 17)
    v = named_view("ap", np.zeros(3), smooth.shape, (0.06, 0.12), cone=True)
    noisy = (smooth + RNG.normal(0, 0.3, smooth.shape)).astype(np.float32)
    for centre in (np.array([3.1, 7.0, -2.3]), np.array([-42.0, 0.0, 21.0]), np.array([44.0, 0.0, -21.0])):
        patch, valid = patches.cut_patch(noisy, v, centre, 21, 1.0)
        monkeypatch.setattr(patches, "_PARTS", 100)
        each, there = patches.cut_patch(noisy, v, centre, 21, 1.0)
        monkeypatch.undo()
        assert_array_equal(valid, there)
        assert valid.all() == (centre[0] == 3.1)
        # At the film's edge a few of its pixels are left out; `standardise` leaves the patch's last pixel out there.
        inner = ndimage.binary_erosion(valid, np.ones((3, 3)), border_value=1)
        assert_allclose(patch[inner], each[inner], atol=0.06)
        assert np.abs(patch - each)[inner].mean() < 0.015


def test_a_patch_of_a_large_film_takes_little_memory() -> None:
    large = np.zeros((6000, 6000), np.float32)  # 137 MiB, of which a vertebra's patch covers a seventh.
    v = named_view("ap", np.zeros(3), large.shape, 0.05, cone=True)
    tracemalloc.start()
    patches.cut_patch(large, v, np.array([10.0, 0.0, 20.0]), 64, 1.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * 2**20


def test_the_averaging_knows_the_magnification() -> None:
    # Magnified twice, points 0.3 mm apart meet every second pixel of 0.3 mm: all white ones, if nothing is averaged.
    v = named_view("ap", np.zeros(3), (101, 101), 0.3, cone=True, source_to_isocentre_mm=900.0)
    board = (np.indices(v.shape).sum(axis=0) % 2 == 0).astype(np.float32)
    patch, _ = patches.cut_patch(board, v, np.zeros(3), 25, 0.3)
    assert_allclose(patch, 0.5, atol=0.05)


def test_a_patch_needs_the_view_s_own_picture() -> None:
    with pytest.raises(InputError, match="is not one of the view 'ap'"):
        patches.cut_patch(np.zeros((5, 5)), view(), np.zeros(3), 3, 1.0)
