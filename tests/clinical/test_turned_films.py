"""Films that are stored in any orientation give the same spine as upright ones: left stays left."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from conftest import Patient, Seeing
from numpy.testing import assert_allclose, assert_array_equal
from test_dicom import stored_picture

from transvert.clinical import landmarks
from transvert.clinical.dicom import ImageOrientation
from transvert.clinical.radiograph import Radiograph
from transvert.clinical.reconstruct import Reconstruction, reconstruct, simulate_radiographs, write_radiographs
from transvert.io import InputError

LETTERS = {"ap": ("L", "F"), "lateral": ("P", "F")}


class Echo(Seeing):
    """Returns what it is shown, so that its prediction reveals a film's left and right."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        ap, lateral = images[:, 0, 0], images[:, 1, 0]
        return super().forward(images) / 2 + ap.mT[:, None, :, None, :] + lateral.mT[:, None, None, :, :]


@pytest.fixture(scope="module")
def upright(patient: Patient, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with simulated films and their landmarks; the central rays miss the films' middles."""
    folder = tmp_path_factory.mktemp("upright")
    films, views, isocentre = simulate_radiographs(patient.ct, pixel_mm=1.2, seed=1)
    ap, lateral = (
        replace(v, shape=(v.shape[0] - 5, v.shape[1] - 9), corner=v.corner + 5 * v.row_step + 9 * v.column_step)
        for v in views
    )
    cropped = (Radiograph(films[0].pixels[5:, 9:], ap.pixel_mm), Radiograph(films[1].pixels[5:, 9:], lateral.pixel_mm))
    marks = landmarks.project_landmarks(ap, lateral, isocentre, patient.centroids)
    write_radiographs(folder, cropped, (ap, lateral), marks)
    return folder


def store_turned(upright: Path, folder: Path, turn: ImageOrientation) -> None:
    """Copies the films and landmarks, the films stored so that `turn` turns them upright."""
    shutil.copy(upright / "landmarks.json", folder)
    for name, letters in LETTERS.items():
        dataset = pydicom.dcmread(upright / f"{name}.dcm")
        picture, dataset.PatientOrientation = stored_picture(dataset.pixel_array, letters, turn)
        dataset.Rows, dataset.Columns = picture.shape
        dataset.PixelData = np.ascontiguousarray(picture).tobytes()
        dataset.save_as(folder / f"{name}.dcm")


def spine_of(folder: Path) -> Reconstruction:
    return reconstruct(folder / "ap.dcm", folder / "lateral.dcm", folder / "landmarks.json", Echo(sees=False), draws=0)


@pytest.mark.parametrize("flags", [(False, False, True), (True, True, False)], ids=["mirrored", "turned by 90 degrees"])
def test_the_spine_is_the_same_however_the_films_are_stored(
    upright: Path, tmp_path: Path, flags: tuple[bool, bool, bool]
) -> None:
    turn = ImageOrientation(*flags)
    store_turned(upright, tmp_path, turn)
    expected, found = spine_of(upright), spine_of(tmp_path)
    for one, other in zip(found.vertebrae, expected.vertebrae, strict=True):
        assert one.level == other.level
        assert_allclose(one.centroid_ras, other.centroid_ras, atol=1e-6)
        assert_allclose(one.probability, other.probability, atol=1e-4)
    assert_array_equal(found.labels.data, expected.labels.data)
    assert [w for w in found.warnings if w not in expected.warnings] == [
        f"The {name} film: The picture was {turn.words}, by its recorded orientation." for name in LETTERS
    ]
    assert [film.acquisition.to_dict()["turned"] for film in found.films] == [turn.words] * 2
    assert [view.shape for view in found.views] == [view.shape for view in expected.views]

    # Landmarks of an old file would count on the stored pictures.
    content = json.loads((tmp_path / "landmarks.json").read_text())
    (tmp_path / "landmarks.json").write_text(json.dumps(content | {"schema": landmarks.OLD_SCHEMA}))
    with pytest.raises(InputError, match=f"counts on the ap film's picture before it was {turn.words}; mark the film"):
        spine_of(tmp_path)
