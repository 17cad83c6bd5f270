"""From two simulated films to a spine: with a network that knows the answer, only geometry is tested."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from conftest import MIDDLES, Patient, Seeing, inside_vertebra, occupancy
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from test_dicom import stored_picture
from torch import nn
from tqdm.std import tqdm

from transvert.clinical import film_checks, landmarks, posture, radiograph
from transvert.clinical.dicom import ImageOrientation
from transvert.clinical.landmark_checks import SIDE_REMINDER
from transvert.clinical.landmarks import Landmarks
from transvert.clinical.posture import measure_posture
from transvert.clinical.radiograph import Radiograph
from transvert.clinical.reconstruct import (
    Reconstruction,
    compare_with_truth,
    posture_lines,
    reconstruct,
    silhouettes,
    simulate_radiographs,
    surfaces,
    write_radiographs,
)
from transvert.data import patches
from transvert.data.patches import SIZE, SPACING_MM, centroid_map
from transvert.data.samples import Samples
from transvert.drr import geometry, projector
from transvert.drr.geometry import View
from transvert.imaging.volume import Volume, cube_affine
from transvert.io import InputError
from transvert.model.calibration import Calibration, surface_sd_mm
from transvert.model.predict import TTAConfig
from transvert.plots import figures

L1, L2, L3 = 20, 21, 22


class Oracle(nn.Module):
    """Knows what stands at each landmark, mirrored each second time as `predict` does; keeps the images it was shown."""

    def __init__(self, truths: list[np.ndarray]):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))
        self.truths = np.array(truths, np.float32)
        self.logits = torch.logit(torch.from_numpy(self.truths)[:, None], eps=1e-4)
        self.shown: list[np.ndarray] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shown.append(images.numpy().copy())
        return self.logits.flip(2) if len(self.shown) in (2, 4) else self.logits


@pytest.fixture(autouse=True, scope="module")
def _unmoved() -> Iterator[None]:
    """Shapes lie in the middle of their cubes whatever the clicks are, so they must not count as evidence of errors."""
    still = dict.fromkeys("CTL", np.array([[0.0] * 3, [0.0] * 3, [1.0] * 3]))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("transvert.clinical.vertebra.shift_statistics", lambda: still)
        patched.setattr(posture, "axial_rotation_deg", lambda vertebra, near_deg: 0.0)  # Slow, and tested elsewhere.
        yield


Films = tuple[tuple[Radiograph, Radiograph], tuple[View, View], np.ndarray]


def _truths(patient: Patient, views: tuple[View, View]) -> list[np.ndarray]:
    """What fills the cube along each vertebra's own rays: the share of each voxel, from 27 points per voxel."""
    steps = (((np.arange(3 * SIZE) + 0.5) / 3 - SIZE / 2) * SPACING_MM).astype(np.float32)
    found = []
    for level in (L1, L2, L3):
        axes, centre = patches.local_axes(*views, patient.centroids[level]), patient.centroids[level]
        x, y, z = (
            centre[n] + (a[0] * steps)[:, None, None] + (a[1] * steps)[:, None] + a[2] * steps
            for n, a in enumerate(axes)
        )
        inside = inside_vertebra(x, y, z, MIDDLES[level])
        found.append(inside.reshape(SIZE, 3, SIZE, 3, SIZE, 3).mean((1, 3, 5), dtype=np.float32))
    return found


@pytest.fixture(scope="module")
def films(patient: Patient) -> Films:
    return simulate_radiographs(patient.ct, pixel_mm=0.8, seed=1)


@pytest.fixture(scope="module")
def marks(films: Films, patient: Patient) -> Landmarks:
    return landmarks.project_landmarks(*films[1], films[2], patient.centroids)


@pytest.fixture(scope="module")
def truths(films: Films, patient: Patient) -> list[np.ndarray]:
    return _truths(patient, films[1])


@pytest.fixture
def oracle(truths: list[np.ndarray]) -> Oracle:
    return Oracle(truths)


@pytest.fixture(scope="module")
def seen_by(truths: list[np.ndarray]) -> Oracle:
    """The network of `found`."""
    return Oracle(truths)


@pytest.fixture(scope="module")
def found(films: Films, marks: Landmarks, seen_by: Oracle) -> Reconstruction:
    return reconstruct(*films[0], marks, seen_by, draws=2)


def _middle(patient: Patient, level: int) -> np.ndarray:
    """(3,) RAS mm: the vertebra's own centre of mass, which the mask's coarse voxels miss by half a millimetre."""
    affine = cube_affine(patient.centroids[level], SIZE, SPACING_MM)
    share = occupancy(MIDDLES[level], affine, SIZE)
    return np.array(ndimage.center_of_mass(share)) * SPACING_MM + affine[:3, 3]


def _projection(patient: Patient, level: int, view: View) -> np.ndarray:
    return projector.cast(Volume((patient.mask.data == level).astype(np.float32), patient.mask.affine), view)


def _fit(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def _dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_simulated_films_are_a_cone_beam_pair_around_one_isocentre(films: Films, patient: Patient) -> None:
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
    again, other = (simulate_radiographs(patient.ct, pixel_mm=0.8, seed=seed)[0][0] for seed in (1, 2))
    assert np.array_equal(again.pixels, ap.pixels) and not np.array_equal(other.pixels, ap.pixels)


def test_written_films_and_landmarks_make_the_same_spine(
    films: Films, marks: Landmarks, truths: list[np.ndarray], patient: Patient, tmp_path: Path
) -> None:
    ap, lateral, file = write_radiographs(tmp_path / "films", films[0], films[1], marks)
    assert {p.name for p in (tmp_path / "films").iterdir()} == {
        *("ap.png", "ap.dcm", "lateral.png", "lateral.dcm", "landmarks.json")
    }
    said = landmarks.read_landmarks(file)
    for ending in (".png", ".dcm"):
        pair = [radiograph.read_radiograph(path.with_suffix(ending)) for path in (ap, lateral)]
        for ours, original in zip(pair, films[0], strict=True):
            assert _fit(ours.pixels, original.pixels) > 0.99  # bone is white in both, nothing is turned
            assert ours.pixel_mm == pytest.approx(original.pixel_mm, rel=1e-3)
        found = reconstruct(*pair, said, Oracle(truths), draws=0, landmark_sd_mm=0.0)
        for vertebra in found.vertebrae:
            assert_allclose(vertebra.centroid_ras, patient.centroids[vertebra.level], atol=0.05)


def test_the_spine_stands_where_the_patients_does(found: Reconstruction, patient: Patient) -> None:
    assert [v.level for v in found.vertebrae] == [L1, L2, L3]
    assert found.warnings == [SIDE_REMINDER]
    for vertebra in found.vertebrae:
        assert_allclose(vertebra.centroid_ras, patient.centroids[vertebra.level], atol=1e-3)
        voxels = found.labels.world(np.argwhere(found.labels.data == vertebra.level))
        assert np.linalg.norm(voxels.mean(0) - _middle(patient, vertebra.level)) < 0.5
    assert set(found.residuals_mm) == {L1, L2, L3} and max(found.residuals_mm.values()) < 1e-3


@pytest.mark.usefixtures("found")
def test_the_network_is_shown_what_it_was_trained_on(seen_by: Oracle, box_samples: Samples) -> None:
    """The films' patches stand as the samples' do: right on the left, front on the left, head up, life-sized."""
    shown = seen_by.shown[0]
    assert shown.shape == (3, 2, 4, SIZE, SIZE) and shown.dtype == np.float32
    for ours, trained in zip(shown, box_samples.images(), strict=True):
        for view in range(2):
            upright = _fit(ours[view, 0], trained[view, 0])
            assert upright > 0.65
            assert upright > _fit(ours[view, 0], trained[view, 0, :, ::-1]) + 0.05
            assert upright > _fit(ours[view, 0], trained[view, 0, ::-1]) + 0.01
        assert_allclose(ours[:, 1], trained[:, 1], atol=1e-3)
        # A neighbour's ray meets the patch's plane a little beside its place.
        assert_allclose(ours[:, 2], trained[:, 2], atol=0.15)
        assert_allclose(ours[:, 3], trained[:, 3])
    mirrored = seen_by.shown[1]
    assert_allclose(mirrored[:, 0], shown[:, 0, :, :, ::-1])
    assert_allclose(mirrored[:, 1], shown[:, 1])


def test_silhouettes_lie_on_the_vertebrae_of_both_films(
    found: Reconstruction, films: Films, patient: Patient, marks: Landmarks
) -> None:
    shadows = silhouettes(found)
    for which, view, shown, shadow in zip(("ap", "lateral"), films[1], films[0], shadows, strict=True):
        assert set(shadow) == {L1, L2, L3}
        for level, picture in shadow.items():
            assert picture.shape == view.shape and picture.dtype == bool
            truth = _projection(patient, level, view) > 0.75
            assert _dice(picture, truth) > 0.92
            assert _dice(picture[:, ::-1], truth) < 0.9
            row, column = np.rint(marks.centroids[which][level]).astype(int)
            assert ndimage.binary_dilation(picture, iterations=8)[row, column]
            around = ndimage.binary_dilation(picture, iterations=6) & ~ndimage.binary_dilation(picture, iterations=2)
            assert shown.pixels[picture].mean() > shown.pixels[around].mean() + 0.1


def test_silhouettes_of_large_films_are_binned(found: Reconstruction, monkeypatch: pytest.MonkeyPatch) -> None:
    fine = silhouettes(found)
    monkeypatch.setattr("transvert.plots.figures.LONGEST", -(-max(found.views[0].shape) // 3))
    for whole, binned in zip(fine, silhouettes(found), strict=True):
        for level, shape in whole.items():
            bins = figures.bin_picture(shape.astype(float), figures.LONGEST)[0]
            assert bins.shape == binned[level].shape and _dice(bins > 0.5, binned[level]) > 0.93


def test_landmarks_that_miss_each_other_mark_their_patches(films: Films, marks: Landmarks, oracle: Oracle) -> None:
    moved = {which: dict(pixels) for which, pixels in marks.centroids.items()}
    moved["lateral"][L2] = moved["lateral"][L2] + (9.0, 0.0)
    found = reconstruct(*films[0], replace(marks, centroids=moved), oracle, draws=0, landmark_sd_mm=0.0)
    apart = 9 * 0.8 / 1.2
    assert found.residuals_mm[L2] == pytest.approx(apart, rel=0.02)
    assert found.warnings == [f"L2: its two landmarks disagree by {found.residuals_mm[L2]:.1f} mm.", SIDE_REMINDER]
    # The centre lies half-way: above it in one patch, below it in the other.
    middle, steps = (SIZE - 1) / 2, np.arange(SIZE)
    rows = [(image[1].sum(1) * steps).sum() / image[1].sum() for image in oracle.shown[0][1]]
    assert_allclose(rows, [middle - apart / 2 / SPACING_MM, middle + apart / 2 / SPACING_MM], atol=0.1)


def test_a_right_spine_scores_well_and_a_shifted_one_does_not(found: Reconstruction, box_samples: Samples) -> None:
    table = compare_with_truth(found, box_samples)
    assert table.level.tolist() == ["L1", "L2", "L3"] and set(table.subject) == {"sub-box"}
    assert table.dice.min() > 0.9 and table.assd_mm.max() < 0.6
    assert table.centroid_error_mm.max() < 0.6
    moved = [replace(v, centroid_ras=v.centroid_ras + (0, 0, 6)) for v in found.vertebrae]
    worse = compare_with_truth(replace(found, vertebrae=moved), box_samples)
    assert worse.dice.max() < table.dice.min() - 0.1
    assert_allclose(worse.centroid_error_mm, 6, atol=0.6)


def _far(patient: Patient) -> tuple[tuple[Radiograph, Radiograph], Landmarks, tuple[View, View]]:
    """Films of L2 alone whose central rays pass 350 mm below it, so that all rays through it climb by 13 degrees."""
    isocentre = patient.ct.corners().mean(0) - (0, 0, 350)
    ap, lateral = (geometry.named_view(name, isocentre, (1200, 500), 0.8, cone=True) for name in ("ap", "lateral"))
    one, other = (Radiograph(_projection(patient, L2, view), view.pixel_mm) for view in (ap, lateral))
    return (one, other), landmarks.project_landmarks(ap, lateral, isocentre, patient.centroids), (ap, lateral)


def test_a_vertebra_seen_obliquely_is_placed_upright_and_shown_along_its_rays(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(film_checks, "NOTHING", -1.0)  # L1 and L3 are marked, but not there.
    pair, marks, views = _far(patient)
    oracle = Oracle(_truths(patient, views))
    found = reconstruct(*pair, marks, oracle, draws=0, landmark_sd_mm=0.0)
    for vertebra, surface in zip(found.vertebrae, surfaces(found).values(), strict=True):
        assert np.degrees(np.arccos(vertebra.axes[2, 2])) > 15
        assert_allclose(surface.center_mass, _middle(patient, vertebra.level), atol=0.3)
        reach = surface.bounds - np.array(MIDDLES[vertebra.level])
        assert_allclose(reach, [[-28, -34, -14], [42, 29, 12]], atol=1.5)
    for row in measure_posture(found.vertebrae)["vertebrae"]:  # Of the shapes alone.
        assert [row["sagittal_tilt_deg"], row["coronal_tilt_deg"]] == pytest.approx([0, 0], abs=1)
    cube = Volume(oracle.truths[1], cube_affine(np.zeros(3), SIZE, SPACING_MM))
    for n, (name, view, shadow) in enumerate(zip(("ap", "lateral"), views, silhouettes(found), strict=True)):
        assert _dice(shadow[L2], _projection(patient, L2, view) > 0.75) > 0.92
        straight = projector.cast(cube, geometry.named_view(name, np.zeros(3), (SIZE, SIZE), SPACING_MM))
        true = patches.standardise(straight, np.ones(straight.shape, bool))
        assert _fit(oracle.shown[0][1][n, 0], true) > 0.95
        assert_allclose(oracle.shown[0][1][n, 1], centroid_map(np.zeros(2)), atol=1e-3)


def test_a_calibrated_network_predicts_as_for_its_calibration(films: Films, marks: Landmarks, oracle: Oracle) -> None:
    calibration = Calibration(temperature=2.0, tta=TTAConfig(passes=3, landmark_sd_mm=0.0, scale_sd=0.0, noise_sd=0.0))
    card = {"calibration": asdict(calibration), "levels": ["L1", "L3"]}
    found = reconstruct(*films[0], marks, oracle, card=card, draws=0, landmark_sd_mm=0.0)
    assert found.calibration == calibration and len(oracle.shown) == 3
    assert found.warnings == ["L2: the network was not trained on this level.", SIDE_REMINDER]
    unread = surfaces(replace(found, calibration=None))
    for vertebra, surface in zip(found.vertebrae, surfaces(found).values(), strict=True):
        sd = surface.vertex_attributes[figures.SD_MM]
        stated = surface_sd_mm(vertebra.probability, surface.vertices, vertebra.affine, calibration)
        assert_allclose(sd, stated)
        assert np.median(sd / unread[vertebra.level].vertex_attributes[figures.SD_MM]) > 1.5


def test_landmarks_give_s1_and_their_errors_spread_all(films: Films, marks: Landmarks, oracle: Oracle) -> None:
    centre, tilt = np.array([6.0, -24.0, 250.0]), np.tan(np.radians(30))
    ends = {"anterior": (0, 15, -15 * tilt), "posterior": (0, -15, 15 * tilt), "right": (22, 0, 0), "left": (-22, 0, 0)}
    sides = {"ap": ("right", "left"), "lateral": ("anterior", "posterior")}
    marked = {
        which: {name: view.project(centre + ends[name]) for name in sides[which]}
        for which, view in zip(("ap", "lateral"), films[1], strict=True)
    }
    whole = replace(marks, s1_endplate=marked)
    found = reconstruct(*films[0], whole, oracle, draws=10, landmark_sd_mm=2.0, seed=3)
    spreads = np.array([[row[f"{axis}_mm_sd"] for axis in "xyz"] for row in found.posture["vertebrae"]])
    # One view shows left and right, the other one front and back, both the height.
    assert_allclose(spreads.mean(0), [2, 2, np.sqrt(2)], rtol=0.25)
    slope = found.posture["measures"]["sacral_slope"]
    assert slope["value"] == pytest.approx(30, abs=1)
    assert slope["sd"] == pytest.approx(np.degrees(2 * np.sqrt(2) / 30 * np.cos(np.radians(30)) ** 2), rel=0.7)
    assert found.posture["measures"]["lumbar_lordosis_l1_s1"]["value"] == pytest.approx(30, abs=1.5)


def test_an_empty_vertebra_is_left_out_and_a_fragment_is_in_no_surface(
    films: Films, marks: Landmarks, truths: list[np.ndarray], patient: Patient
) -> None:
    empty, fragments = np.full_like(truths[1], 0.2), truths[0].copy()
    fragments[2:7, 2:7, 2:7] = 1
    found = reconstruct(*films[0], marks, Oracle([fragments, empty, truths[2]]), draws=0, landmark_sd_mm=0.0)
    assert [v.name for v in found.vertebrae] == ["L1", "L3"]
    assert found.warnings[-1] == "L2: nothing was found, left out."
    surface, _ = surfaces(found).values()
    assert surface.body_count == 1
    assert_allclose(surface.center_mass, _middle(patient, L1), atol=0.3)
    with pytest.raises(InputError, match="There is no vertebra to assemble"):
        reconstruct(*films[0], marks, Oracle([np.zeros((SIZE,) * 3)] * 3))


LETTERS = {"ap": ("L", "F"), "lateral": ("P", "F")}


class Echo(Seeing):
    """Returns what it is shown, so that its prediction reveals a film's left and right."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        ap, lateral = images[:, 0, 0], images[:, 1, 0]
        return super().forward(images) / 2 + ap.mT[:, None, :, None, :] + lateral.mT[:, None, None, :, :]


@pytest.fixture(scope="module")
def upright(films: Films, patient: Patient, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with simulated films and their landmarks; the central rays miss the films' middles."""
    folder = tmp_path_factory.mktemp("upright")
    ap, lateral = (
        replace(v, shape=(v.shape[0] - 5, v.shape[1] - 9), corner=v.corner + 5 * v.row_step + 9 * v.column_step)
        for v in films[1]
    )
    one, other = (Radiograph(film.pixels[5:, 9:], film.pixel_mm) for film in films[0])
    marks = landmarks.project_landmarks(ap, lateral, films[2], patient.centroids)
    write_radiographs(folder, (one, other), (ap, lateral), marks)
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
def test_the_spine_is_the_same_however_the_films_are_stored(upright: Path, tmp_path: Path, flags: tuple) -> None:
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


def test_the_spine_is_handed_on_before_the_draws_and_an_error_closes_the_bar(
    films: Films, marks: Landmarks, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Reconstruction] = []
    found = reconstruct(*films[0], marks, oracle, draws=2, on_spine=seen.append)
    assert len(seen) == 1 and "uncertainty" not in seen[0].posture and "uncertainty" in found.posture
    assert seen[0].vertebrae is found.vertebrae
    reconstruct(*films[0], marks, oracle, draws=0, on_spine=seen.append)
    assert len(seen) == 1

    bars: list[tqdm] = []

    def fail(_: Reconstruction) -> None:
        bars.extend(tqdm._instances)  # type: ignore[attr-defined]
        raise InputError("stop")

    with pytest.raises(InputError, match="stop"):
        reconstruct(*films[0], marks, oracle, draws=1, on_spine=fail)
    assert bars and all(bar.disable for bar in bars), "tqdm disables a bar that is closed"


def test_the_posture_lines_on_the_films_have_the_measured_angles(
    films: Films, marks: Landmarks, oracle: Oracle
) -> None:
    found = reconstruct(*films[0], marks, oracle, draws=0, landmark_sd_mm=0.0)
    ap, lateral = posture_lines(found)
    assert ap[""].shape == lateral[""].shape == (6, 2, 2)
    (name,) = [name for name in ap if name]
    entry = found.posture["measures"]["coronal_cobb"]
    assert name == f"Cobb angle {entry['upper']}-{entry['lower']}: {entry['value']:.0f}°"
    down, across = np.moveaxis(ap[name][:, 1] - ap[name][:, 0], -1, 0) * np.array(found.views[0].pixel_mm)[:, None]
    shown = np.rad2deg(np.arctan2(down, across))
    assert abs(shown[0] - shown[1]) == pytest.approx(entry["value"], abs=1.0)
    # Each plate lies at its own vertebra: the six rows descend, and every pair is one body's height apart.
    rows = np.sort(lateral[""][..., 0].mean(axis=1)) * found.views[1].pixel_mm[0]
    assert (np.diff(rows) > 2).all() and np.diff(rows)[::2] == pytest.approx(24 * 1.2, abs=6)


def test_an_interrupt_ends_the_draws_and_keeps_the_spine(
    films: Films, marks: Landmarks, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter([marks])

    def click(*_: object) -> Landmarks:
        try:
            return next(left)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr("transvert.clinical.vertebra.simulate_clicks", click)
    found = reconstruct(*films[0], marks, oracle, draws=5)
    assert len(found.vertebrae) == 3 and found.posture["uncertainty"]["draws"] == 1
    assert "Stopped after 1 of 5 draws: the posture's uncertainty is from these." in found.warnings
