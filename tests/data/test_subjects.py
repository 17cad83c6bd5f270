"""A subject as a data set has it: images, a mask alone, surfaces with a frame and without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import MIDDLES, Patient, part_alone, store_as
from numpy.testing import assert_allclose, assert_array_equal

from transvert import levels
from transvert.data import manifest, samples, subjects
from transvert.data.manifest import Subject
from transvert.data.manifest_schema import DataFile
from transvert.imaging import mesh
from transvert.imaging.volume import Volume
from transvert.io import InputError

L1, L2, L3 = 20, 21, 22


def test_a_ct_and_a_mask_are_opened_as_they_are(patient: Patient) -> None:
    ct, mask, source = subjects.load_subject(patient.subject)
    assert source == "ct"
    assert_array_equal(mask.data, patient.mask.data)
    assert ct.data.shape == mask.data.shape


def test_a_mask_alone_becomes_a_phantom_of_its_own(patient: Patient, tmp_path: Path) -> None:
    one = part_alone(patient, "sub-one", tmp_path / "m.nii.gz")
    painted, mask, source = subjects.load_subject(one)
    assert source == "phantom" and set(np.unique(mask.data)) == {0, L2}
    again, _, _ = subjects.load_subject(one)
    assert_array_equal(painted.data, again.data)
    for other in (subjects.load_subject(replace(one, name="sub-other")), subjects.load_subject(one, seed=1)):
        assert other[0].data.shape != painted.data.shape or not np.array_equal(other[0].data, painted.data)


def test_surfaces_are_placed_by_their_frame_and_unit(patient: Patient, tmp_path: Path) -> None:
    surfaces, files = {}, {}
    for level, frame, factor in ((L1, "LPS", 1.0), (L2, "RAS", 0.001), (L3, "LPS", 0.001)):
        surface = mesh.extract_surface(patient.mask.data == level, patient.mask.affine)
        surface.vertices = surface.vertices * ([-1, -1, 1] if frame == "LPS" else [1, 1, 1]) * factor
        path = mesh.write_surface(tmp_path / f"{levels.name(level)}.stl", surface)
        unit = "mm" if factor == 1 else "m"
        surfaces[level] = path
        files[path] = DataFile("surface", "sub-stl", "0" * 64, 1, "x", "https://x.org/a", level, frame=frame, unit=unit)
    painted, mask, source = subjects.load_subject(Subject("sub-stl", None, None, "", surfaces, files))
    assert source == "phantom"
    for level in (L1, L2, L3):
        where = mask.world(np.argwhere(mask.data == level))
        assert_allclose(where.mean(0), patient.centroids[level], atol=0.5)
        reach = np.array([where.min(0), where.max(0)]) - np.array(MIDDLES[level])
        assert_allclose(reach[:, 0], [-28, 42], atol=2)  # the long process is on the right
        assert_allclose(reach[:, 1], [-34, 29], atol=2)  # the spinous process is behind
    assert not mask.data[[0, -1]].any() and not mask.data[:, [0, -1]].any() and not mask.data[..., [0, -1]].any()
    assert samples.cut_samples(painted, mask, "sub-stl", source=source).levels.tolist() == [L1, L2, L3]


FILES_OF_SEVERAL = [
    [{"path": "{subject}/column.stl", "frame": "ASR", "unit": "m"}],
    [
        {"path": "{subject}/points.csv", "faces": "faces.csv", "frame": "unstated", "unit": "mm"},
        {"path": "{subject}/faces.csv", "role": "faces"},
    ],
]


@pytest.mark.parametrize("layout", FILES_OF_SEVERAL, ids=["stl", "csv"])
def test_vertebrae_of_one_file_keep_their_places_and_their_right(patient, tmp_path, monkeypatch, layout) -> None:
    """A folder's file with all vertebrae, as OpenSim's axes run, or as vertices and faces in LPS that nobody states."""
    monkeypatch.setenv("TRANSVERT_CACHE", str(tmp_path / "cache"))
    whole = mesh.join_surfaces(
        [mesh.extract_surface(patient.mask.data == n, patient.mask.affine) for n in (L2, L3, L1)]
    )
    (tmp_path / "scans" / "one").mkdir(parents=True)
    if len(layout) == 1:
        whole.vertices = whole.vertices[:, [1, 2, 0]] / 1000
        mesh.write_surface(tmp_path / "scans/one/column.stl", whole)
    else:
        np.savetxt(tmp_path / "scans/one/points.csv", whole.vertices * [-1, -1, 1], delimiter=",")
        np.savetxt(tmp_path / "scans/one/faces.csv", whole.faces + 1, delimiter=",", fmt="%d")
    texts = dict.fromkeys(("title", "version", "licence", "citation", "access"), "-")
    layout = [{"role": "surface", "levels": ["L1", "L2", "L3"]} | layout[0], *layout[1:]]
    content = {**texts, "name": "mine", "folder": "scans", "layout": layout}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (subject,) = manifest.fetch_subjects(manifest.load_manifest(tmp_path / "mine.yaml"), roles="surface")
    _, mask, source = subjects.load_subject(subject)
    assert source == "phantom" and set(np.unique(mask.data)) == {0, L1, L2, L3}
    for level in (L1, L2, L3):
        where = mask.world(np.argwhere(mask.data == level))
        assert_allclose(where.mean(0), patient.centroids[level], atol=0.5)
        reach = np.array([where.min(0), where.max(0)]) - np.array(MIDDLES[level])
        assert_allclose(reach[:, 0], [-28, 42], atol=2)  # the long process is on the right
        assert_allclose(reach[:, 1], [-34, 29], atol=2)  # the spinous process is behind


def test_a_subject_with_nothing_and_one_on_two_grids_get_their_sentence(patient: Patient, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="The subject sub-x has neither a mask nor surfaces of vertebrae"):
        subjects.load_subject(Subject("sub-x", patient.ct_path, None, "", {}, {}))
    shifted = patient.mask.affine.copy()
    shifted[0, 3] += 5
    mask = store_as(Volume(patient.mask.data, shifted), "RAS", tmp_path / "m.nii.gz")
    with pytest.raises(
        InputError, match=r"The CT sub-box_ct\.nii\.gz \(.*mm\) and the mask \(.*\) lie on different grids"
    ):
        subjects.load_subject(replace(patient.subject, mask=mask))


def test_surfaces_that_state_nothing_are_placed_by_their_shape(patient: Patient, tmp_path: Path) -> None:
    """In metres, in LPS, with a manifest that says neither; and refused where the shape says nothing."""
    surfaces = {}
    for level in (L1, L2, L3):
        surface = mesh.extract_surface(patient.mask.data == level, patient.mask.affine)
        surface.vertices = surface.vertices * np.array([-1, -1, 1]) / 1000
        surfaces[level] = mesh.write_surface(tmp_path / f"{levels.name(level)}.stl", surface)
    _, mask, _ = subjects.load_subject(Subject("sub-stl", None, None, "", surfaces, {}))
    for level in (L1, L2, L3):
        where = mask.world(np.argwhere(mask.data == level))
        assert_allclose(where.mean(0), patient.centroids[level], atol=0.5)
    ball = mesh.extract_surface(np.linalg.norm(np.indices((60,) * 3) - 29.5, axis=0) < 28, np.eye(4))
    ball = {L1: mesh.write_surface(tmp_path / "ball.stl", ball)}
    with pytest.raises(InputError, match="No canal with a body before it goes through the surface of L1"):
        subjects.load_subject(Subject("sub-ball", None, None, "", ball, {}))
