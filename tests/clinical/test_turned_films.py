"""Films that lie any way in their files, marked as a viewer shows them, give the same spine: left stays left."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from conftest import Patient
from numpy.testing import assert_allclose, assert_array_equal
from test_dicom import laid
from test_privacy import Blob

from transvert.clinical import landmarks, radiograph
from transvert.clinical.acquisition import ImageOrientation
from transvert.clinical.radiograph import Radiograph
from transvert.clinical.reconstruct import (
    Reconstruction,
    open_radiographs,
    reconstruct,
    simulate_radiographs,
    write_radiographs,
    write_reconstruction,
)
from transvert.drr.geometry import View, named_view

LETTERS = {"ap": ("L", "F"), "lateral": ("P", "F")}


class Echo(Blob):
    """Answers with what it is shown, so that a film's left and right can be told in its answer."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits + images[:, 0, 0][:, None, :, None, :].transpose(2, 4) + images[:, 1, 0][:, None, None, :, :]


@pytest.fixture(scope="module")
def upright(patient: Patient, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pair of simulated films and their landmarks, cut so that the central ray meets no middle."""
    folder = tmp_path_factory.mktemp("upright")
    films, views, isocentre = simulate_radiographs(patient.ct, pixel_mm=1.2, seed=1)
    views = tuple(
        replace(v, shape=(v.shape[0] - 5, v.shape[1] - 9), corner=v.corner + 5 * v.row_step + 9 * v.column_step)
        for v in views
    )
    films = tuple(Radiograph(f.pixels[5:, 9:], f.pixel_mm) for f in films)
    write_radiographs(folder, films, views, landmarks.project_landmarks(*views, isocentre, patient.centroids))
    return folder


def stored_as(upright: Path, folder: Path, turn: ImageOrientation, spacing: bool = True) -> Path:
    """The same films as files that store them turned, with their landmarks marked on those pictures."""
    content = json.loads((upright / "landmarks.json").read_text())
    for which, letters in LETTERS.items():
        dataset = pydicom.dcmread(upright / f"{which}.dcm")
        shape = dataset.pixel_array.shape
        picture, dataset.PatientOrientation = laid(dataset.pixel_array, letters, turn)
        dataset.Rows, dataset.Columns = picture.shape
        dataset.PixelData = np.ascontiguousarray(picture).tobytes()
        dataset.save_as(folder / f"{which}.dcm")
        view = content["views"][which]
        view["principal_point"] = turn.to_stored(view["principal_point"], shape).tolist()
        for name, pixel in view["centroids"].items():
            view["centroids"][name] = turn.to_stored(pixel, shape).tolist()
    (folder / "landmarks.json").write_text(json.dumps(content))
    return folder


def spine_of(folder: Path) -> Reconstruction:
    marks = landmarks.read_landmarks(folder / "landmarks.json")
    films = open_radiographs(folder / "ap.dcm", folder / "lateral.dcm", marks)
    assert marks.on(*films).on(*films).to_dict() == marks.on(*films).to_dict()
    return reconstruct(*films, marks, Echo(), draws=0)


@pytest.mark.parametrize(
    "turn",
    [ImageOrientation(*flags) for flags in itertools.product((False, True), repeat=3) if any(flags)],
    ids=lambda turn: turn.words,
)
def test_the_spine_is_the_same_however_the_films_lie(upright: Path, tmp_path: Path, turn: ImageOrientation) -> None:
    expected, found = spine_of(upright), spine_of(stored_as(upright, tmp_path, turn))
    for one, other in zip(found.vertebrae, expected.vertebrae, strict=True):
        assert one.level == other.level
        assert_allclose(one.centroid_ras, other.centroid_ras, atol=1e-6)
        assert_allclose(one.probability, other.probability, atol=1e-4)
    assert_array_equal(found.labels.data, expected.labels.data)
    assert [w for w in found.warnings if w not in expected.warnings] == [
        f"The {which} film: The picture was {turn.words}, as its recorded orientation asks." for which in LETTERS
    ]
    write_reconstruction(found, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [film["turned"] for film in report["films"]] == [turn.words] * 2
    assert [View.from_dict(view).shape for view in report["views"]] == [view.shape for view in expected.views]


def test_a_reader_s_marks_come_back_from_a_file_that_counts_on_the_film(upright: Path, tmp_path: Path) -> None:
    folder = stored_as(upright, tmp_path, ImageOrientation(False, False, True))
    marks = landmarks.read_landmarks(folder / "landmarks.json")
    films = open_radiographs(folder / "ap.dcm", folder / "lateral.dcm", marks)
    again = landmarks.read_landmarks(landmarks.write_landmarks(tmp_path / "again.json", marks.on(*films)))
    assert again.views["ap"]["counted_on"] == "film"
    first, second = (
        m.on(*films).place(*(m.view(w, f) for w, f in zip(LETTERS, films, strict=True)))[0] for m in (marks, again)
    )
    assert all(np.allclose(first[n], second[n]) for n in first)


def test_a_pitch_measured_in_the_patient_is_magnified_onto_the_detector(upright: Path) -> None:
    marks = landmarks.read_landmarks(upright / "landmarks.json")
    said = dict(marks.views["ap"]) | {"known_distance": {"from": [10, 20], "to": [110, 20], "mm": 100}}
    del said["pixel_mm"]
    picture = radiograph.read_radiograph(upright / "ap.dcm")
    measured = landmarks.Landmarks({"ap": said, "lateral": marks.views["lateral"]}, marks.centroids, marks.isocentre)
    assert measured.view("ap", picture).pixel_mm == pytest.approx((1.2, 1.2))
    on = landmarks.Landmarks({"ap": said | {"pixel_plane": "detector"}}, marks.centroids, marks.isocentre)
    assert on.view("ap", picture).pixel_mm == pytest.approx((1.0, 1.0))
    flat = landmarks.Landmarks({"ap": said | {"projection": "parallel"}}, marks.centroids, marks.isocentre)
    assert flat.view("ap", picture).pixel_mm == pytest.approx((1.0, 1.0))


def test_what_the_film_s_file_says_serves_where_the_landmarks_are_silent(tmp_path: Path) -> None:
    view = named_view(
        "pa", np.zeros(3), (60, 50), 1.5, cone=True, source_to_detector_mm=2000, source_to_isocentre_mm=1850
    )
    path = radiograph.write_dicom(tmp_path / "f.dcm", np.zeros(view.shape, np.uint8), view, source_to_patient_mm=1850)
    marks = landmarks.Landmarks({"ap": {}, "lateral": {}}, {"ap": {}, "lateral": {}}, np.zeros(3))
    found = marks.view("ap", radiograph.read_radiograph(path, view="ap"))
    assert found.name == "pa"
    assert_allclose(found.source, view.source)
    assert_allclose(found.corner, view.corner)
    other = landmarks.Landmarks({"ap": {"source_to_isocentre_mm": 1700, "name": "ap"}}, marks.centroids, np.zeros(3))
    assert_allclose(other.view("ap", radiograph.read_radiograph(path)).source, (0, 1700, 0))
