"""Files for other programs: the libraries that read them find the same labels and points at the same places."""

from __future__ import annotations

import json
from pathlib import Path

import highdicom
import nrrd
import numpy as np
import pydicom
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from transvert.clinical import exports
from transvert.clinical.landmarks import project_landmarks
from transvert.drr import geometry
from transvert.imaging.volume import Volume
from transvert.io import InputError

T13, L1, L6 = 28, 20, 25
TO_LPS = np.diag([-1.0, -1, 1, 1])


@pytest.fixture
def labels() -> Volume:
    """Three vertebrae on an oblique, anisotropic grid, no two axes of one length."""
    data = np.zeros((20, 31, 42), np.uint8)
    data[3:9, 20:28, 30:38], data[4:10, 18:25, 17:25], data[10:19, 2:9, 1:6] = T13, L1, L6
    affine = np.array([[0.8, 0.3, 0, -14], [-0.24, 1.0, 0, 25], [0, 0, 1.5, 300], [0, 0, 0, 1]])
    return Volume(data, affine)


def test_3d_slicer_s_segmentation_has_each_vertebra_by_name(labels: Volume, tmp_path: Path) -> None:
    data, header = nrrd.read(str(exports.write_segmentation(labels, tmp_path / "spine.seg.nrrd")))
    assert_array_equal(data, labels.data)
    assert data.dtype == np.uint8 and header["space"] == "left-posterior-superior"
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = header["space directions"].T, header["space origin"]
    assert_allclose(affine, TO_LPS @ labels.affine)
    segments = [(header[f"Segment{n}_Name"], header[f"Segment{n}_LabelValue"]) for n in range(3)]
    assert segments == [("T13", "28"), ("L1", "20"), ("L6", "25")] and "Segment3_Name" not in header
    assert header["Segment0_Extent"] == "0 19 0 30 0 41" and len(header["Segment0_Color"].split()) == 3


def test_a_dicom_segmentation_has_each_vertebra_where_it_is(labels: Volume, tmp_path: Path) -> None:
    path = exports.write_dicom_segmentation(Volume(labels.data, np.diag([0.8, 1.1, 1.5, 1])), tmp_path / "spine.dcm")
    found = highdicom.seg.segread(path)
    names = [found.get_segment_description(n).segment_label for n in found.segment_numbers]
    assert names == ["T13", "L1", "L6"]
    codes = [found.get_segment_description(n).segmented_property_type.value for n in found.segment_numbers]
    assert codes == ["51282000", "66794005", "51282000"]  # SNOMED CT: a vertebra, the first lumbar one.
    volume = found.get_volume(combine_segments=True)
    for n, level in enumerate((T13, L1, L6)):
        seen = volume.affine[:3, :3] @ np.argwhere(volume.array == n + 1).mean(0) + volume.affine[:3, 3]
        true = TO_LPS[:3, :3] @ (np.argwhere(labels.data == level).mean(0) * (0.8, 1.1, 1.5))
        assert_allclose(seen, true, atol=1e-6)
        assert (volume.array == n + 1).sum() == (labels.data == level).sum()
    dataset = pydicom.dcmread(path)
    assert (dataset.Modality, dataset.PatientID) == ("SEG", "RECONSTRUCTED")


def test_points_go_to_3d_slicer_and_back(tmp_path: Path) -> None:
    points = {L1: np.array([15.0, -31, 344]), T13: np.array([20.0, -50, 390])}
    path = exports.write_markups(tmp_path / "c.mrk.json", points)
    (markup,) = json.loads(path.read_text())["markups"]
    assert markup["coordinateSystem"] == "LPS" and markup["type"] == "Fiducial"
    assert [control["label"] for control in markup["controlPoints"]] == ["T13", "L1"]
    assert markup["controlPoints"][1]["position"] == [-15, 31, 344]
    found = exports.read_markups(path)
    assert list(found) == [T13, L1]
    for level, point in points.items():
        assert_allclose(found[level], point)
    # As RAS, with a point that was deleted; and onto two views.
    markup |= {"coordinateSystem": "RAS", "coordinateUnits": "mm"}
    markup["controlPoints"] += [{"label": "F-9", "position": [0, 0, 0], "positionStatus": "undefined"}]
    path.write_text(json.dumps({"markups": [markup]}))
    assert_allclose(exports.read_markups(path)[L1], [-15, 31, 344])
    views = [geometry.named_view(name, np.zeros(3), (9, 9), 1.0, slot=True) for name in geometry.VIEWS]
    marks = project_landmarks(views[0], views[1], np.zeros(3), found)
    assert_allclose(marks.place(views[0], views[1])[0][L1], points[L1], atol=1e-9)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"coordinateSystem": "IJK"}, r"c\.mrk\.json is in IJK and mm; save it in LPS or RAS"),
        ({"coordinateUnits": "cm"}, "is in LPS and cm"),
        ({"controlPoints": [{"label": "F-1", "position": [1, 2, 3]}]}, "'F-1' is not a vertebral level"),
        ({"controlPoints": [{"label": "L1", "position": [1, 2, 3]}] * 2}, "has L1 twice"),
        ({"controlPoints": [{"label": "L1", "position": [1, 2]}]}, "is not one of 3D Slicer"),
        ({"controlPoints": None}, "is not one of 3D Slicer"),
    ],
)
def test_a_list_of_points_that_cannot_be_used(change: dict, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "c.mrk.json"
    path.write_text(json.dumps({"markups": [{"coordinateSystem": "LPS", "controlPoints": []} | change]}))
    with pytest.raises(InputError, match=sentence):
        exports.read_markups(path)
