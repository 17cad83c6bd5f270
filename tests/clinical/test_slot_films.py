"""Films of slot scanners and scout views of a CT: their files give the geometry, and places in space come back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from scipy import ndimage

from transvert.clinical import landmark_checks
from transvert.clinical.landmarks import Landmarks, ViewSetup, landmarks_from_dict, project_landmarks
from transvert.clinical.radiograph import Radiograph, read_radiograph, to_grey, write_dicom
from transvert.drr import geometry, projector
from transvert.drr.geometry import VIEWS, View
from transvert.imaging.volume import Volume
from transvert.io import InputError

DISTANCES = {"source_to_detector_mm": 949.0, "source_to_isocentre_mm": 541.0}  # Those of a CT.
SCALE = 949 / 541
BALL = np.array([31.0, -22.0, 155.0])  # RAS mm, off the rays' axis in each direction.
ISOCENTRE = np.array([4.0, -6.0, 0.0])
ALONG = {"ap": (1, 0, 0), "lateral": (0, 1, 0)}  # A row's pixels, LPS.
ROW_MM, COLUMN_MM, TOP_MM = 1.25, 0.8, 260.0  # In the patient; the height of row 0.


def _body() -> Volume:
    """A box of faint attenuation that holds a dense ball at `BALL`."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-80, -80, 60)
    volume = Volume(np.zeros((81, 81, 96), np.float32), affine)
    at = volume.world(np.moveaxis(np.indices(volume.data.shape), 0, -1))
    volume.data[:] = 0.001 + 0.1 * (np.linalg.norm(at - BALL, axis=-1) < 9)
    return volume


def _view(name: str, *, slot: bool = True) -> View:
    """A view whose row 0 is at `TOP_MM`, the isocentre's column in its middle."""
    options: dict[str, Any] = {"slot": True, **DISTANCES} if slot else {}
    pixel_mm = (ROW_MM, COLUMN_MM * SCALE if slot else COLUMN_MM)
    return geometry.named_view(
        name, ISOCENTRE, (200, 300), pixel_mm, principal_point=(TOP_MM / ROW_MM, 149.5), **options
    )


def _write_scout(path: Path, name: str, picture: np.ndarray, layout: str = "upright", **changes: Any) -> Path:
    """A scout view as CTs write it: signed values with a rescale, placed by its first pixel and directions."""
    columns_way, rows_way = np.array(ALONG[name], float), np.array([0, 0, -1.0])
    first = np.array([-ISOCENTRE[0], -ISOCENTRE[1], TOP_MM]) - 149.5 * COLUMN_MM * columns_way
    spacing = [ROW_MM, COLUMN_MM]
    stored = np.rint(picture * 2000).astype(np.int16) - 1000
    if layout == "upside down":
        stored, first, rows_way = stored[::-1], first + 199 * ROW_MM * rows_way, -rows_way
    if layout == "along columns":
        stored, columns_way, rows_way, spacing = stored.T, rows_way, columns_way, spacing[::-1]
    if layout == "mirrored":
        stored, first, columns_way = stored[:, ::-1], first + 299 * COLUMN_MM * columns_way, -columns_way
    content = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": "1.2.3",
        "Modality": "CT",
        "PatientName": "SECRET^NAME",
        "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"],
        "Manufacturer": "A CT",
        "PatientPosition": "HFS",
        "DistanceSourceToDetector": 949,
        "DistanceSourceToPatient": 541,
        "PixelSpacing": spacing,
        "ImagePositionPatient": first.tolist(),
        "ImageOrientationPatient": [*columns_way, *rows_way],
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "SamplesPerPixel": 1,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "RescaleSlope": 1,
        "RescaleIntercept": 0,
        "PixelData": np.ascontiguousarray(stored).tobytes(),
    } | changes
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword, value in content.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def _marks(isocentre: np.ndarray = ISOCENTRE, **entries: Any) -> Landmarks:
    setups = {name: ViewSetup(**entries) for name in VIEWS}
    return Landmarks(setups, {name: {} for name in VIEWS}, isocentre)


def _ball_in(film: Radiograph) -> np.ndarray:
    return np.array(ndimage.center_of_mass(film.pixels > 0.6 * film.pixels.max()))


@pytest.mark.parametrize("layout", ["upright", "upside down", "along columns", "mirrored"])
@pytest.mark.parametrize("slot", [True, False], ids=["with distances", "without"])
def test_a_point_of_the_ct_is_found_from_its_two_scout_views(tmp_path: Path, slot: bool, layout: str) -> None:
    body, missing = _body(), {} if slot else {"DistanceSourceToDetector": None, "DistanceSourceToPatient": 0}
    views, films = {}, {}
    for name in VIEWS:
        picture = projector.cast(body, _view(name, slot=slot))
        path = _write_scout(tmp_path / f"{name}.dcm", name, picture, layout, **missing)
        films[name] = read_radiograph(path, view=name)
        views[name] = _marks().view(name, films[name])
        assert_allclose(films[name].pixels, np.rint(picture * 2000) - 1000, atol=1e-3)
        for vector in ("corner", "row_step", "column_step", "source") if slot else ("row_step", "column_step"):
            assert_allclose(getattr(views[name], vector), getattr(_view(name, slot=slot), vector), atol=1e-6)
        taken = films[name].acquisition
        assert (taken.view, taken.projection) == (name, "slot" if slot else "parallel")
        middle = "x = 4.0 mm" if name == "ap" else "y = -6.0 mm"
        assert any(middle in note for note in taken.notes) and "SECRET" not in str(taken)
        assert any("taken to be parallel" in note for note in taken.notes) == (not slot)
    found, miss = geometry.triangulate(*(v for n in VIEWS for v in (views[n], _ball_in(films[n]))))
    assert_allclose(found, BALL, atol=0.6)
    assert miss < 0.6
    # The isocentre's height moves the row in which it is seen, not the spine.
    higher = _marks(ISOCENTRE + [0, 0, 77]).view("ap", films["ap"])
    assert_allclose(higher.project(BALL), views["ap"].project(BALL), atol=1e-6)


def test_a_scout_view_is_asked_for_as_what_it_is(tmp_path: Path) -> None:
    picture = np.add.outer(np.arange(200), np.arange(300)) / 500
    lateral = _write_scout(tmp_path / "s.dcm", "lateral", picture)
    with pytest.raises(InputError, match=r"s\.dcm is a lateral one by its orientation"):
        read_radiograph(lateral, view="ap")
    axial = _write_scout(tmp_path / "s.dcm", "ap", picture, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
    with pytest.raises(InputError, match="is a CT image, not a film; give a radiograph .* or a CT's scout view"):
        read_radiograph(axial)
    # Without a place in the CT, the picture's middle is the isocentre's.
    for missing in (
        {"ImagePositionPatient": None},
        {"ImagePositionPatient": [1, 2]},
        {"ImageOrientationPatient": None},
    ):
        film = read_radiograph(_write_scout(tmp_path / "s.dcm", "ap", picture, **missing), view="ap")
        assert film.acquisition.zero_row is None
        assert_allclose(_marks().view("ap", film).project(ISOCENTRE), (99.5, 149.5))


@pytest.mark.parametrize("name", geometry.VIEW_NAMES)
def test_a_slot_film_s_file_gives_its_view_back(tmp_path: Path, name: str) -> None:
    view = geometry.named_view(name, ISOCENTRE, (90, 70), (0.7, 0.9), slot=True, **DISTANCES)
    grey = to_grey(np.random.default_rng(0).random(view.shape), bits=12)
    film = read_radiograph(write_dicom(tmp_path / "f.dcm", grey, view, bits=12, isocentre=ISOCENTRE))
    kind = "lateral" if "lateral" in name else "ap"
    again = _marks().view(kind, film)
    assert_array_equal(film.pixels, grey)
    assert (again.name, again.projection) == (name, "slot")
    for vector in ("corner", "row_step", "column_step", "source"):
        assert_allclose(getattr(again, vector), getattr(view, vector), atol=1e-5)
    setups = {"ap": ViewSetup(), "lateral": ViewSetup()}
    assert setups[kind].rays_of(film.acquisition) == "slot"
    # What the landmark file states goes before what the film's file does.
    assert _marks(projection="cone").view(kind, film).projection == "cone"


@pytest.mark.parametrize("maker", [{"DetectorConfiguration": "SLOT"}, {"Manufacturer": "EOS imaging"}])
def test_a_slot_film_without_distances_says_which_numbers_to_give(tmp_path: Path, maker: dict[str, str]) -> None:
    view = geometry.named_view("ap", ISOCENTRE, (90, 70), (0.7, 0.9))
    path = write_dicom(tmp_path / "f.dcm", to_grey(np.random.default_rng(0).random(view.shape)), view)
    dataset = pydicom.dcmread(path)
    for keyword, value in maker.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    film = read_radiograph(path)
    for known in ({}, {"source_to_detector_mm": 949.0}, {"source_to_isocentre_mm": 541.0}):
        with pytest.raises(
            InputError,
            match='slot scanner\'s .*: give source_to_detector_mm and source_to_isocentre_mm in the "ap" view',
        ):
            _marks(**known).view("ap", film)
    assert _marks(**DISTANCES).view("ap", film).pixel_mm == pytest.approx((0.7, 0.9))


@pytest.mark.parametrize(
    ("spacings", "row_mm", "column_mm"),
    [
        ({"ImagerPixelSpacing": [0.254, 0.254], "PixelSpacing": [0.18, 0.18]}, 0.18, 0.18 * SCALE),
        ({"ImagerPixelSpacing": None, "PixelSpacing": [0.18, 0.2]}, 0.18, 0.2 * SCALE),
        ({"ImagerPixelSpacing": [0.254, 0.254], "PixelSpacing": None}, 0.254, 0.254),
        ({"ImagerPixelSpacing": [0.2, 0.3], "PixelSpacing": [0.2, 0.3]}, 0.2, 0.3),
    ],
)
def test_a_slot_film_s_pixel_height_counts_in_every_plane(
    tmp_path: Path, spacings: dict[str, Any], row_mm: float, column_mm: float
) -> None:
    view = geometry.named_view("ap", ISOCENTRE, (90, 70), (0.7, 0.9), slot=True, **DISTANCES)
    path = write_dicom(tmp_path / "f.dcm", to_grey(np.random.default_rng(0).random(view.shape)), view)
    dataset = pydicom.dcmread(path)
    for keyword, value in spacings.items():
        delattr(dataset, keyword)
        if value:
            setattr(dataset, keyword, value)
    dataset.save_as(path)
    film = read_radiograph(path)
    assert _marks(**DISTANCES).view("ap", film).pixel_mm == pytest.approx((row_mm, column_mm))
    assert any("pixels' width is taken to be that" in note for note in film.acquisition.notes)


def test_a_high_slot_film_is_checked_by_its_own_geometry() -> None:
    """T6 to L1 on EOS-like films: the true spine as a slot pair, and not as a pair of cones."""
    heights = {level: 380.0 - 24.0 * n for n, level in enumerate((13, 14, 15, 16, 17, 18, 19, 20))}
    points = {level: np.array([6.0 * np.sin(z / 90), 15 * np.cos(z / 130), z]) for level, z in heights.items()}
    middle = np.array([0.0, 0.0, 280.0])
    options: dict[str, Any] = {"slot": True, "source_to_detector_mm": 1300.0}
    views = (
        geometry.named_view("ap", middle, (1500, 900), 0.6, source_to_isocentre_mm=987.0, **options),
        geometry.named_view("lateral", middle, (1500, 900), 0.6, source_to_isocentre_mm=918.0, **options),
    )
    marks = project_landmarks(*views, middle, points)
    films = tuple(Radiograph(np.full(view.shape, n, np.float32), (0.6, 0.6)) for n, view in enumerate(views))
    again = landmarks_from_dict(marks.to_dict())
    found = tuple(again.view(name, film) for name, film in zip(VIEWS, films, strict=True))
    placed, misses = again.triangulate(*found)
    for level, point in points.items():
        assert_allclose(placed[level], point, atol=1e-6)
    assert max(misses.values()) < 1e-6
    warnings = landmark_checks.check_landmarks(again, found, films)
    assert not [line for line in warnings if "pixel spacing" in line or "distance" in line or "heights" in line.lower()]
    cones = replace(again, setups={n: s.model_copy(update={"projection": "cone"}) for n, s in again.setups.items()})
    wrong = cones.triangulate(*(cones.view(n, f) for n, f in zip(VIEWS, films, strict=True)))[0]
    lengths = [np.linalg.norm(place[13] - place[20]) for place in (points, placed, wrong)]
    assert lengths[1] == pytest.approx(lengths[0], abs=1e-6) and lengths[2] < 0.85 * lengths[0]
