"""From two simulated films to a spine: with a network that knows the answer, what is left is geometry."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MIDDLES, Patient, occupancy
from numpy.testing import assert_allclose
from scipy import ndimage
from torch import nn

from transvert import clinical, drr, film, landmarks, mesh, volume
from transvert.clinical import Reconstruction
from transvert.files import InputError
from transvert.film import Film
from transvert.geometry import View
from transvert.landmarks import Landmarks
from transvert.samples import SIZE, SPACING_MM, Samples
from transvert.volume import Volume, cube_affine

L1, L2, L3 = 20, 21, 22


class Oracle(nn.Module):
    """Knows what stands at each landmark; keeps the images it was shown.

    `predict` asks twice: for the patient, and for the mirrored one, whose answer is mirrored.
    """

    def __init__(self, truths: list[np.ndarray]):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))
        self.logits = torch.logit(torch.from_numpy(np.array(truths, np.float32))[:, None], eps=1e-4)
        self.shown: list[np.ndarray] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shown.append(images.numpy().copy())
        return self.logits.flip(2) if len(self.shown) == 2 else self.logits


def _truths(patient: Patient, levels: list[int]) -> list[np.ndarray]:
    return [occupancy(MIDDLES[n], cube_affine(patient.centroids[n], SIZE, SPACING_MM), SIZE) for n in levels]


Films = tuple[tuple[Film, Film], tuple[View, View], np.ndarray]


@pytest.fixture(scope="module")
def films(patient: Patient) -> Films:
    return clinical.simulate(patient.ct, pixel_mm=0.8, seed=1)


@pytest.fixture(scope="module")
def marks(films: Films, patient: Patient) -> Landmarks:
    return landmarks.project(*films[1], films[2], patient.centroids)


@pytest.fixture(scope="module")
def oracle(patient: Patient) -> Oracle:
    return Oracle(_truths(patient, [L1, L2, L3]))


@pytest.fixture(scope="module")
def found(films: Films, marks: Landmarks, oracle: Oracle) -> Reconstruction:
    return clinical.reconstruct(*films[0], marks, oracle)


def _middle(patient: Patient, level: int) -> np.ndarray:
    """(3,) RAS mm: the vertebra's own centre of mass, which the mask's coarse voxels miss by half a millimetre."""
    affine = cube_affine(patient.centroids[level], SIZE, SPACING_MM)
    share = occupancy(MIDDLES[level], affine, SIZE)
    return np.array(ndimage.center_of_mass(share)) * SPACING_MM + affine[:3, 3]


def _fit(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def _dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


# The films


def test_films_are_a_seeded_cone_beam_pair_around_one_isocentre(films: Films, patient: Patient) -> None:
    (ap, lateral), views, isocentre = films
    corners = patient.ct.corners()
    assert_allclose(isocentre, corners.mean(0))
    assert [view.name for view in views] == ["ap", "left_lateral"]
    for picture, view in zip((ap, lateral), views, strict=True):
        assert view.source is not None and picture.pixels.shape == view.shape
        assert picture.pixel_mm == pytest.approx((0.8, 0.8))
        pixels = view.project(corners)
        assert (pixels >= -0.5).all() and (pixels <= np.array(view.shape) - 0.5).all()
        assert np.isfinite(picture.pixels).all()
    again, _, _ = clinical.simulate(patient.ct, pixel_mm=0.8, seed=1)
    other, _, _ = clinical.simulate(patient.ct, pixel_mm=0.8, seed=2)
    assert np.array_equal(again[0].pixels, ap.pixels) and not np.array_equal(other[0].pixels, ap.pixels)
    assert _fit(other[0].pixels, ap.pixels) > 0.9


def test_written_films_and_landmarks_make_the_same_spine(
    films: Films, marks: Landmarks, patient: Patient, tmp_path: Path
) -> None:
    ap, lateral, file = clinical.write_films(tmp_path / "films", films[0], films[1], marks)
    assert {p.name for p in (tmp_path / "films").iterdir()} == {
        *("ap.png", "ap.dcm", "lateral.png", "lateral.dcm", "landmarks.json")
    }
    said = landmarks.read(file)
    for ending in (".png", ".dcm"):
        pair = [film.read(path.with_suffix(ending)) for path in (ap, lateral)]
        for ours, original in zip(pair, films[0], strict=True):
            assert _fit(ours.pixels, original.pixels) > 0.99  # bone is white in both, nothing is turned
            assert ours.pixel_mm == pytest.approx(original.pixel_mm, rel=1e-3)
        found = clinical.reconstruct(*pair, said, Oracle(_truths(patient, [L1, L2, L3])))
        for vertebra in found.vertebrae:
            assert_allclose(vertebra.centroid_ras, patient.centroids[vertebra.level], atol=0.05)


def test_clicks_stray_by_the_given_millimetres_and_by_seed(films: Films, marks: Landmarks, tmp_path: Path) -> None:
    many = Landmarks(
        marks.views,
        {w: {n: pixels[L1] for n in range(1, 25)} for w, pixels in marks.centroids.items()},
        marks.isocentre,
    )

    def clicked(seed: int) -> np.ndarray:
        *_, file = clinical.write_films(tmp_path, films[0], films[1], many, click_mm=3.0, seed=seed)
        found = landmarks.read(file).centroids
        return np.array([[found[w][n] - many.centroids[w][n] for n in range(1, 25)] for w in ("ap", "lateral")])

    one = clicked(1)
    assert np.array_equal(one, clicked(1)) and not np.array_equal(one, clicked(2))
    assert one.std() * 0.8 == pytest.approx(3.0, rel=0.25)  # pixels of 0.8 mm
    assert abs(one.mean()) * 0.8 < 1.0


# Where it stands


def test_the_spine_stands_where_the_patient_s_does(found: Reconstruction, patient: Patient) -> None:
    assert [v.level for v in found.vertebrae] == [L1, L2, L3]
    assert found.warnings == []
    for vertebra in found.vertebrae:
        assert_allclose(vertebra.centroid_ras, patient.centroids[vertebra.level], atol=1e-3)
        voxels = found.labels.world(np.argwhere(found.labels.data == vertebra.level))
        assert np.linalg.norm(voxels.mean(0) - _middle(patient, vertebra.level)) < 0.5
    assert set(found.residuals_mm) == {L1, L2, L3} and max(found.residuals_mm.values()) < 1e-3


def test_its_labels_are_the_patient_s_mask(found: Reconstruction, patient: Patient) -> None:
    where = patient.mask.world(np.moveaxis(np.indices(patient.mask.data.shape), 0, -1))
    index = np.moveaxis(found.labels.index(where), -1, 0)
    ours = ndimage.map_coordinates(found.labels.data, index, order=0, cval=0)
    for level in (L1, L2, L3):
        assert _dice(ours == level, patient.mask.data == level) > 0.9


def test_the_network_is_shown_what_it_was_trained_on(
    found: Reconstruction, oracle: Oracle, box_samples: Samples
) -> None:
    """The films' patches stand as the samples' do: right on the left, front on the left, head up, life-sized."""
    shown = oracle.shown[0]
    assert shown.shape == (3, 2, 2, SIZE, SIZE) and shown.dtype == np.float32
    for ours, trained in zip(shown, box_samples.images(), strict=True):
        for view in range(2):
            upright = _fit(ours[view, 0], trained[view, 0])
            assert upright > 0.65
            assert upright > _fit(ours[view, 0], trained[view, 0, :, ::-1]) + 0.05
            assert upright > _fit(ours[view, 0], trained[view, 0, ::-1]) + 0.01
        assert_allclose(ours[:, 1], trained[:, 1], atol=1e-3)
    mirrored = oracle.shown[1]
    assert_allclose(mirrored[:, 0], shown[:, 0, :, :, ::-1])
    assert_allclose(mirrored[:, 1], shown[:, 1])


def test_silhouettes_lie_on_the_vertebrae_of_both_films(
    found: Reconstruction, films: Films, patient: Patient, marks: Landmarks
) -> None:
    shadows = clinical.silhouettes(found)
    for which, view, shown, shadow in zip(("ap", "lateral"), films[1], films[0], shadows, strict=True):
        assert set(shadow) == {L1, L2, L3}
        for level, picture in shadow.items():
            assert picture.shape == view.shape and picture.dtype == bool
            truth = drr.cast(Volume((patient.mask.data == level).astype(np.float32), patient.mask.affine), view) > 0.75
            assert _dice(picture, truth) > 0.92
            assert _dice(picture[:, ::-1], truth) < 0.9
            row, column = np.rint(marks.centroids[which][level]).astype(int)
            assert ndimage.binary_dilation(picture, iterations=8)[row, column]
            around = ndimage.binary_dilation(picture, iterations=6) & ~ndimage.binary_dilation(picture, iterations=2)
            assert shown.pixels[picture].mean() > shown.pixels[around].mean() + 0.1


def test_landmarks_that_miss_each_other_mark_each_patch_by_itself(
    films: Films, marks: Landmarks, patient: Patient
) -> None:
    moved = {which: dict(pixels) for which, pixels in marks.centroids.items()}
    moved["lateral"][L2] = moved["lateral"][L2] + (9.0, 0.0)
    oracle = Oracle(_truths(patient, [L1, L2, L3]))
    found = clinical.reconstruct(*films[0], replace(marks, centroids=moved), oracle)
    apart = 9 * 0.8 / 1.2
    assert found.residuals_mm[L2] == pytest.approx(apart, rel=0.02)
    assert found.warnings == [f"L2: its two landmarks disagree by {found.residuals_mm[L2]:.1f} mm."]
    # The centre lies half-way: above it in one patch, below it in the other.
    middle, steps = (SIZE - 1) / 2, np.arange(SIZE)
    rows = [(image[1].sum(1) * steps).sum() / image[1].sum() for image in oracle.shown[0][1]]
    assert_allclose(rows, [middle - apart / 2 / SPACING_MM, middle + apart / 2 / SPACING_MM], atol=0.1)


def test_against_the_truth_a_right_spine_scores_well_and_a_shifted_one_does_not(
    found: Reconstruction, box_samples: Samples
) -> None:
    table = clinical.against(found, box_samples)
    assert table.level.tolist() == ["L1", "L2", "L3"] and set(table.subject) == {"sub-box"}
    assert table.dice.min() > 0.9 and table.assd_mm.max() < 0.6
    assert table.centroid_error_mm.max() < 0.6
    moved = [replace(v, centroid_ras=v.centroid_ras + (0, 0, 6)) for v in found.vertebrae]
    worse = clinical.against(replace(found, vertebrae=moved), box_samples)
    assert worse.dice.max() < table.dice.min() - 0.1
    assert_allclose(worse.centroid_error_mm, 6, atol=0.6)


# What is written


def test_it_writes_labels_surfaces_posture_and_a_report(
    found: Reconstruction, patient: Patient, tmp_path: Path
) -> None:
    meshes = clinical.write(found, tmp_path / "out")
    files = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert files == {
        *("spine.nii.gz", "spine.stl", "posture.json", "posture.csv", "report.json"),
        *(f"surfaces/{name}.stl" for name in ("L1", "L2", "L3")),
    }
    labels = volume.read_mask(tmp_path / "out" / "spine.nii.gz")
    assert np.array_equal(labels.data, found.labels.data)
    for level, name in ((L1, "L1"), (L2, "L2"), (L3, "L3")):
        surface = mesh.read_surface(tmp_path / "out" / "surfaces" / f"{name}.stl")
        assert surface.is_watertight
        assert_allclose(surface.center_mass, _middle(patient, level), atol=0.3)
        truth = (patient.mask.data == level).sum() * patient.mask.spacing_mm.prod()
        assert surface.volume == pytest.approx(truth, rel=0.1)
        assert meshes[level].volume == pytest.approx(surface.volume, rel=1e-3)
        # The longer process is on the patient's right, the spinous process behind.
        reach = surface.bounds - np.array(MIDDLES[level])
        assert_allclose(reach[:, 0], [-28, 42], atol=1.5)
        assert_allclose(reach[:, 1], [-34, 29], atol=1.5)
    assert mesh.read_surface(tmp_path / "out" / "spine.stl").body_count == 3
    with (tmp_path / "out" / "posture.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["level"] for row in rows] == ["L1", "L2", "L3"]
    assert_allclose([float(row["x_mm"]) for row in rows], [patient.centroids[n][0] for n in (L1, L2, L3)], atol=0.01)
    posture = json.loads((tmp_path / "out" / "posture.json").read_text())
    assert posture["schema"] == "transvert-posture/1" and posture["missing_levels"] == []


def test_the_report_says_how_and_for_what(found: Reconstruction, tmp_path: Path) -> None:
    clinical.write(found, tmp_path)
    text = (tmp_path / "report.json").read_text()
    report = json.loads(text)
    assert report["schema"] == "transvert-reconstruction/1"
    assert "not for diagnosis" in report["use"] and "RAS" in report["frame"]
    assert report["warnings"] == [] and set(report["residuals_mm"]) == {"L1", "L2", "L3"}
    for said, view in zip(report["views"], found.views, strict=True):
        assert View.from_dict(said).to_dict() == view.to_dict()
    assert str(tmp_path) not in text


# What goes wrong


def test_a_level_in_between_that_was_not_marked_is_a_gap(films: Films, marks: Landmarks, patient: Patient) -> None:
    ends = {which: {n: pixels[n] for n in (L1, L3)} for which, pixels in marks.centroids.items()}
    found = clinical.reconstruct(*films[0], replace(marks, centroids=ends), Oracle(_truths(patient, [L1, L3])))
    assert found.warnings == ["L2: no landmarks between its neighbours', so the spine has a gap."]
    assert [v.name for v in found.vertebrae] == ["L1", "L3"]


def test_a_vertebra_that_was_not_found_is_left_out_and_named(
    films: Films, marks: Landmarks, patient: Patient, tmp_path: Path
) -> None:
    truths = _truths(patient, [L1, L2, L3])
    truths[1][:] = 0.2
    found = clinical.reconstruct(*films[0], marks, Oracle(truths))
    assert [v.name for v in found.vertebrae] == ["L1", "L3"]
    assert found.warnings[0] == "L2: nothing was found, left out."
    assert set(clinical.write(found, tmp_path)) == {L1, L3}
    assert json.loads((tmp_path / "report.json").read_text())["warnings"] == found.warnings


def test_nothing_found_at_all_is_an_error(films: Films, marks: Landmarks) -> None:
    with pytest.raises(InputError, match="There is no vertebra to assemble"):
        clinical.reconstruct(*films[0], marks, Oracle([np.zeros((SIZE,) * 3)] * 3))


def test_a_stray_part_is_in_no_surface(films: Films, marks: Landmarks, patient: Patient) -> None:
    truths = _truths(patient, [L1, L2, L3])
    truths[1][2:7, 2:7, 2:7] = 1
    found = clinical.reconstruct(*films[0], marks, Oracle(truths))
    surface = clinical.surfaces(found)[L2]
    assert surface.body_count == 1
    assert_allclose(surface.center_mass, _middle(patient, L2), atol=0.3)


def test_films_of_another_size_than_the_landmarks_are_refused(films: Films, marks: Landmarks, oracle: Oracle) -> None:
    small = Film(films[0][1].pixels[:100, :100], films[0][1].pixel_mm)
    with pytest.raises(InputError, match="landmark of L. at row .* lies off the film, which has 100 rows"):
        clinical.reconstruct(films[0][0], small, marks, oracle)
