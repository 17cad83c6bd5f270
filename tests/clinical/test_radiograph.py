"""Films: grey values, files that come back as they were written, and files that are refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from pydicom.pixels import apply_voi_lut

from transvert.clinical.radiograph import read_radiograph, to_grey, write_dicom, write_png
from transvert.drr.geometry import View, named_view
from transvert.io import InputError

RNG = np.random.default_rng(0)
GREY8 = RNG.integers(0, 256, (7, 9), np.uint8)
GREY16 = RNG.integers(0, 65536, (7, 9), np.uint16)


def view(name: str = "ap", shape: tuple[int, int] = (7, 9), **options: object) -> View:
    return named_view(name, np.zeros(3), shape, (0.7, 0.143), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [8, 9, 12, 15, 16])
def test_grey_values_fill_the_window_at_every_depth(bits: int) -> None:
    image = np.array([[-1.0, 0, 0.5, 1.2, 2, 3]])
    full = 2**bits - 1
    grey = to_grey(image, bits=bits, window=(0, 2))
    assert grey.tolist() == [[0, 0, round(full / 4), round(full * 0.6), full, full]]
    assert grey.dtype == (np.uint8 if bits == 8 else np.uint16)


def test_the_default_window_ignores_a_few_pixels_and_impossible_ones_are_refused() -> None:
    assert not to_grey(np.full((3, 3), 7.0)).any()
    ramp = to_grey(np.append(np.arange(1000.0), 1e9).reshape(7, 143))
    assert (ramp == 255).sum() < 10 and ramp.min() == 0
    image = np.ones((3, 3))
    for bits in (7, 17):
        with pytest.raises(InputError, match=f"8 to 16 bits, not {bits}"):
            to_grey(image, bits=bits)
    for window in ((2, 1), (1, 1), (1.5, -1.5), (np.nan, 1), (0, np.inf)):
        with pytest.raises(InputError, match="shows nothing; its first value must be the smaller one"):
            to_grey(image, window=window)
    with pytest.raises(InputError, match="have no grey"):
        to_grey(np.array([[0, np.nan]]))


def picture(bits: int) -> np.ndarray:
    """Grey values from 0 to the highest, every bit in use."""
    return to_grey(np.linspace(0, 1, 63).reshape(7, 9), bits=bits, window=(0, 1))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_png_comes_back_with_its_pixel_size(tmp_path: Path, bits: int) -> None:
    path = write_png(tmp_path / "f.png", picture(bits), (0.7, 0.143))
    read = read_radiograph(path)
    assert_array_equal(read.pixels, picture(bits))
    assert read.pixels.dtype == np.float32 and read.pixel_mm == pytest.approx((0.7, 0.143), rel=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["f.png"]


@pytest.mark.parametrize("bits", [8, 9, 12, 16])
def test_a_dicom_film_comes_back_with_white_bone(tmp_path: Path, bits: int) -> None:
    path = write_dicom(tmp_path / "f.dcm", picture(bits), view(), bits=bits)
    read = read_radiograph(path)
    assert_array_equal(read.pixels, picture(bits))
    assert read.pixel_mm == pytest.approx((0.7, 0.143))
    dataset = pydicom.dcmread(path)
    assert_array_equal(dataset.pixel_array, picture(bits))
    assert (dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit) == (8 if bits == 8 else 16, bits, bits - 1)
    assert_allclose(apply_voi_lut(np.array([0, 2**bits - 1]), dataset), [0, 2**bits - 1])
    # As its tags say, the values rise with attenuation and are shown as they are.
    assert (dataset.PixelIntensityRelationship, dataset.PixelIntensityRelationshipSign) == ("LOG", -1)
    assert (dataset.PhotometricInterpretation, dataset.PresentationLUTShape) == ("MONOCHROME2", "IDENTITY")
    # Equal films give equal files, others other identifiers.
    films = [write_dicom(tmp_path / "f.dcm", picture(12), view(), bits=bits).read_bytes() for bits in (12, 12, 14)]
    first, second, other = (pydicom.dcmread(io.BytesIO(film)).SOPInstanceUID for film in films)
    assert films[0] == films[1] and first == second != other


@pytest.mark.parametrize(
    ("name", "turn_deg", "orientation", "position"),
    [
        *[("ap", 0, "L F", "AP"), ("pa", 0, "L F", "PA"), ("ap", 10, "LP F", "AP")],
        *[("left_lateral", 0, "P F", "LL"), ("right_lateral", 0, "P F", "RL")],
    ],
)
def test_a_dicom_film_states_orientation_and_distances(
    tmp_path: Path, name: str, turn_deg: float, orientation: str, position: str
) -> None:
    v = view(name, cone=True, turn_deg=turn_deg)
    dataset = pydicom.dcmread(write_dicom(tmp_path / "f.dcm", GREY16, v))
    assert list(dataset.PatientOrientation) == orientation.split()
    # A step in the stated direction along a row or down a column raises the pixel's number.
    ways = {"L": (-1, 0, 0), "P": (0, -1, 0), "F": (0, 0, -1)}
    steps = v.project(np.array([ways[way[0]] for way in orientation.split()])) - v.project(np.zeros(3))
    assert steps[0, 1] > 0 and steps[1, 0] > 0
    assert dataset.ViewPosition == position and dataset.DistanceSourceToDetector == 1800
    assert list(dataset.ImageType) == ["DERIVED", "PRIMARY", ""] and dataset.PatientName == "SIMULATED^FILM"


def test_pictures_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    square = view(shape=(7, 9))
    for grey, bits in ((picture(12), 10), (picture(8), 12), (picture(8), 7), (picture(16), 17), (picture(12), 8)):
        with pytest.raises(InputError, match=f"does not have {bits} bits; give those it was made with"):
            write_dicom(tmp_path / "f.dcm", grey, square, bits=bits)
    for write, where in ((write_png, 1.0), (write_dicom, square)):
        with pytest.raises(InputError, match="is no grey picture; make one with to_grey"):
            write(tmp_path / "f", np.zeros((7, 9)), where)  # type: ignore[operator]
    with pytest.raises(InputError, match="is no film of the view 'ap'"):
        write_dicom(tmp_path / "f.dcm", GREY8[1:], view())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "more"), [("f.png", {}), ("f.tif", {}), ("f.jpg", {}), *(("f.png", {"dpi": (n, n)}) for n in (72, 96))]
)
def test_a_picture_without_pixel_size_or_of_a_screen_s_needs_one(tmp_path: Path, name: str, more: dict) -> None:
    Image.fromarray(GREY8).save(tmp_path / name, **more)
    with pytest.raises(InputError, match="does not say how large its pixels are.*give pixel_mm"):
        read_radiograph(tmp_path / name)
    assert read_radiograph(tmp_path / name, require_pixel_mm=False).pixel_mm is None
    assert read_radiograph(tmp_path / name, (0.2, 0.3)).pixel_mm == (0.2, 0.3)


@pytest.mark.parametrize("grey", [GREY8, GREY16], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_a_tiff_of_either_depth(tmp_path: Path, grey: np.ndarray, compression: str | None) -> None:
    big = np.tile(grey, (60, 3))  # More rows than are converted at a time.
    Image.fromarray(big).save(tmp_path / "f.tif", compression=compression)
    assert_array_equal(read_radiograph(tmp_path / "f.tif", 0.2).pixels, big)
    # Where white is zero, Pillow writes 8 bits inverted, but not 16.
    Image.fromarray(grey).save(tmp_path / "f.tif", tiffinfo={262: 0})
    stored = read_radiograph(tmp_path / "f.tif", 1.0).pixels
    assert np.corrcoef(stored.ravel(), grey.ravel())[0, 1] == pytest.approx(-1 if grey is GREY16 else 1)
    # Floats are grey values too, unless they are none.
    values = grey.astype(np.float32)
    for worst in (values[3, 4], np.nan, np.inf):
        values[3, 4] = worst
        Image.fromarray(values).save(tmp_path / "f.tif")
        if np.isfinite(worst):
            assert_array_equal(read_radiograph(tmp_path / "f.tif", 0.2).pixels, grey)
            continue
        with pytest.raises(InputError, match="f.tif has NaN or infinite values, which have no grey; save it as 16-bit"):
            read_radiograph(tmp_path / "f.tif", 0.2)


def test_a_picture_is_turned_as_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # To be shown turned by 90 degrees clockwise.
    Image.fromarray(GREY8).save(tmp_path / "f.png", exif=exif, dpi=(254, 127))  # Stored 0.2 mm high and 0.1 mm wide.
    read = read_radiograph(tmp_path / "f.png")
    assert_array_equal(read.pixels, np.rot90(GREY8, -1))
    assert read.pixel_mm == pytest.approx((0.1, 0.2), rel=1e-3)


def test_grey_pictures_in_colour_files_are_read_and_coloured_ones_refused(tmp_path: Path) -> None:
    channels = np.stack([GREY8] * 3, axis=-1)
    Image.fromarray(channels).save(tmp_path / "grey.png")
    assert_array_equal(read_radiograph(tmp_path / "grey.png", 1.0).pixels, GREY8)
    Image.fromarray(RNG.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / "photo.jpg")
    channels[..., 0] //= 2
    Image.fromarray(channels).save(tmp_path / "screen.png")
    for name in ("photo.jpg", "screen.png"):
        with pytest.raises(InputError, match=f"{name} is a colour picture, such as a photograph; .*grey PNG"):
            read_radiograph(tmp_path / name, 0.2)


@pytest.mark.parametrize("name", ["f.png", "f.jpg", "f.tif"])
def test_a_file_that_is_cut_short(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    Image.fromarray(RNG.integers(0, 256, (64, 64), np.uint8)).save(path)
    content = path.read_bytes()
    for part in (0.3, 0.8):
        path.write_bytes(content[: int(len(content) * part)])
        with pytest.raises(InputError, match=r"^The film f\.\w+ can't be decoded; it is damaged or cut short[^\n]+$"):
            read_radiograph(path, 1.0)


def test_files_that_are_no_film(tmp_path: Path) -> None:
    Image.new("1", (12_000, 13_000)).save(tmp_path / "large.png")
    (tmp_path / "films.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    (tmp_path / "note.txt").write_text("no film")
    (tmp_path / "folder").mkdir()
    tifffile.imwrite(tmp_path / "doubles.tif", GREY8.astype(np.float64))
    pages = [Image.fromarray(GREY8)] * 2
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    for name, sentence in (
        ("large.png", "large.png has more than 150 million pixels; make it smaller"),
        ("none.png", "The film none.png does not exist"),
        ("films.zip", "films.zip is a ZIP archive; unpack it and give the film within"),
        ("note.txt", "neither DICOM nor PNG, JPEG or TIFF"),
        ("pages.tif", "holds more than one picture; give one a view"),
        ("folder", "The film folder is a folder; give the film's file in it"),
        ("doubles.tif", "of a kind that can't be read, such as of 64-bit numbers; save it with 16 bits a pixel"),
    ):
        with pytest.raises(InputError, match=sentence):
            read_radiograph(tmp_path / name, 1.0)
