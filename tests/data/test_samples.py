"""Samples have the vertebra in the middle, pictures as a radiologist views them, and come back from a store unchanged."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import MIDDLES, Patient, occupancy
from numpy.testing import assert_allclose, assert_array_equal

from transvert.data import patches, samples, store
from transvert.data.patches import SIZE, SPACING_MM, standardise
from transvert.data.samples import WIDE, Samples, StoredSamples
from transvert.data.store import SampleCache
from transvert.drr import projector
from transvert.imaging import volume
from transvert.imaging.volume import Volume, cube_affine
from transvert.io import InputError

L1, L2, L3 = 20, 21, 22
MID = (SIZE - 1) / 2


def _silhouettes(target: np.ndarray) -> np.ndarray:
    """(2, 64, 64): how much of a target (x, y, z) lies behind each pixel, written out index by index."""
    ap, lateral = np.zeros((2, SIZE, SIZE))
    for row, column in itertools.product(range(SIZE), range(SIZE)):
        ap[row, column] = target[SIZE - 1 - column, :, SIZE - 1 - row].sum()
        lateral[row, column] = target[:, SIZE - 1 - column, SIZE - 1 - row].sum()
    return np.stack([ap, lateral])


def _fit(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def test_each_whole_vertebra_once_from_head_to_tail(box_samples: Samples, patient: Patient) -> None:
    assert box_samples.levels.tolist() == [L1, L2, L3]
    assert len(box_samples) == 3 and box_samples.notes == []
    assert (box_samples.source, box_samples.projection) == ("ct", "parallel")
    assert box_samples.hu.shape == box_samples.labels.shape == (3, WIDE, WIDE, WIDE)
    assert (box_samples.hu.dtype, box_samples.labels.dtype) == (np.int16, np.uint8)
    assert box_samples.pictures.shape == (3, 2, WIDE, WIDE)
    assert_allclose(box_samples.centroids, [patient.centroids[level] for level in (L1, L2, L3)], atol=1e-3)


def test_samples_do_not_depend_on_the_file_orientation(box_samples: Samples, patient: Patient) -> None:
    ct, mask = volume.read_ct(patient.ct_path), volume.read_mask(patient.mask_path)
    found = samples.cut_samples(ct, mask, "sub-box")
    assert_allclose(found.centroids, box_samples.centroids, atol=1e-3)
    assert_array_equal(found.labels, box_samples.labels)
    assert _fit(np.nan_to_num(found.pictures), np.nan_to_num(box_samples.pictures)) > 0.9999


def test_targets_are_the_vertebra_around_its_centroid(box_samples: Samples) -> None:
    targets = box_samples.targets()
    assert targets.shape == (3, SIZE, SIZE, SIZE) and targets.dtype == bool
    for level, centroid, target in zip(box_samples.levels, box_samples.centroids, targets, strict=True):
        truth = occupancy(MIDDLES[level], cube_affine(centroid, SIZE, SPACING_MM), SIZE) > 0.5
        assert 2 * (truth & target).sum() / (truth.sum() + target.sum()) > 0.93
        assert_allclose(np.argwhere(target).mean(0), MID, atol=0.3)


def test_the_wide_cube_holds_neighbours_and_hu(box_samples: Samples) -> None:
    middle = box_samples.labels[1]
    assert set(np.unique(middle)) == {0, L1, L2, L3}
    z = [np.argwhere(middle == level)[:, 2].mean() for level in (L1, L2, L3)]
    assert z[0] > z[1] > z[2]  # the third axis runs to the head
    bone = box_samples.hu[1][middle == L2]
    assert np.median(bone) == pytest.approx(600, abs=20)
    assert box_samples.hu[1].min() >= -1024


def test_pictures_show_the_vertebra_as_a_radiograph_is_viewed(box_samples: Samples) -> None:
    """Right on the left, front on the left, head up: every flipped or rotated patch fits the truth less."""
    images, bones = box_samples.images(), box_samples.labels[:, samples.MIDDLE, samples.MIDDLE, samples.MIDDLE] > 0
    for row in range(3):
        for view, shadow in enumerate(_silhouettes(bones[row])):
            patch = images[row, view, 0]
            upright = _fit(patch, shadow)
            others = [shadow[::-1], shadow[:, ::-1], shadow[::-1, ::-1], *(np.rot90(shadow, n) for n in (1, 3))]
            assert upright > 0.65
            assert upright > max(_fit(patch, np.ascontiguousarray(other)) for other in others) + 0.02


def test_the_image_is_standardised_and_its_map_peaks_in_the_middle(box_samples: Samples) -> None:
    images = box_samples.images()
    assert images.shape == (3, 2, 4, SIZE, SIZE) and images.dtype == np.float32
    assert np.isfinite(images).all()
    patches = box_samples.pictures[:, :, samples.MIDDLE, samples.MIDDLE]
    assert not np.isfinite(patches).all()  # L1's patch reaches beyond the film
    for image, patch in zip(images.reshape(-1, 4, SIZE, SIZE), patches.reshape(-1, SIZE, SIZE), strict=True):
        assert_allclose(image[0], standardise(patch))
        assert (image[0][np.isnan(patch)] == 0).all()
        weights = image[1] / image[1].sum()
        assert_allclose([(weights * i).sum() for i in np.indices((SIZE, SIZE))], MID, atol=1e-3)


def test_images_show_the_neighbours_and_tell_the_level(box_samples: Samples) -> None:
    """Row offsets run against z; columns against x in the AP view and against y in the lateral one."""
    images = box_samples.images()
    steps = np.diff(box_samples.centroids, axis=0)
    for n, step in enumerate(steps):
        for view, axis in enumerate((0, 1)):
            below = patches.centroid_map(-step[[2, axis]])
            above = patches.centroid_map(step[[2, axis]])
            assert (images[n, view, 2] >= below - 1e-5).all() and below.max() > 0.9
            assert (images[n + 1, view, 2] >= above - 1e-5).all()
    assert_allclose(images[1, 0, 2], patches.centroid_map(steps[0][[2, 0]]) + patches.centroid_map(-steps[1][[2, 0]]))
    assert [set(np.unique(image[:, 3])) for image in images] == [{20.0}, {21.0}, {22.0}]


def test_a_missing_level_is_no_neighbour() -> None:
    found = patches.neighbour_offsets(np.array([18, 19, 20, 22]), np.arange(12.0).reshape(4, 3))
    assert np.isnan(found[:, :, 0]).tolist() == [[True, False], [False, False], [False, True], [True, True]]
    assert_allclose(found[1], [[-3, -3, -3], [3, 3, 3]])
    thirteenth = patches.neighbour_offsets(np.array([19, 28, 20]), np.zeros((3, 3)))
    assert not np.isnan(thirteenth[1]).any() and np.isfinite(thirteenth[2, 0]).all()


def test_a_centroid_map_is_a_gaussian_of_5_mm_at_its_offset() -> None:
    found = patches.centroid_map(np.array([7.5, -3.0]) + SPACING_MM / 2)
    row, column = np.unravel_index(found.argmax(), found.shape)
    assert (row, column) == (32 + 5, 32 - 2)
    assert found.max() == pytest.approx(1)
    assert found[row, column + 4] == pytest.approx(np.exp(-0.5 * (6 / 5) ** 2), rel=1e-5)


def test_cone_and_parallel_views_agree_at_the_centre(box_samples: Samples, patient: Patient) -> None:
    cone = samples.cut_samples(patient.ct, patient.mask, "sub-box", projection="cone")
    assert_array_equal(cone.labels, box_samples.labels)
    ours, theirs = box_samples.images()[1, :, 0], cone.images()[1, :, 0]
    for one, other in zip(ours, theirs, strict=True):
        core = one[12:52, 12:52]
        fits = {(i, j): _fit(core, other[12 + i : 52 + i, 12 + j : 52 + j]) for i in range(-2, 3) for j in range(-2, 3)}
        assert max(fits, key=fits.__getitem__) == (0, 0)
        assert fits[0, 0] > 0.95


def _part(whole: Volume, low: int) -> Volume:
    affine = whole.affine.copy()
    affine[:3, 3] = whole.world([0, 0, low])
    return Volume(whole.data[:, :, low:].copy(), affine)


def test_a_vertebra_cut_by_the_border_is_skipped_and_named(patient: Patient) -> None:
    low = int(np.argwhere(patient.mask.data == L3)[:, 2].mean())
    found = samples.cut_samples(_part(patient.ct, low), _part(patient.mask, low), "sub-cut")
    assert found.levels.tolist() == [L1, L2]
    assert found.notes == ["L3: truncated by the volume's border, skipped."]
    assert L3 in found.labels[1]  # it is still a neighbour
    low = int(np.argwhere(patient.mask.data == L1)[:, 2].mean())
    with pytest.raises(InputError, match="No whole vertebra in sub-cut: L1: truncated by the volume's border, skipped"):
        samples.cut_samples(_part(patient.ct, low), _part(patient.mask, low), "sub-cut")


def test_a_fragment_is_dropped_and_named(patient: Patient) -> None:
    stray = patient.mask.data.copy()
    stray[150:153, 100:103, 30:33] = L2
    found = samples.cut_samples(patient.ct, Volume(stray, patient.mask.affine), "sub-stray").chosen([L2])
    assert found.notes == ["L2: 1 fragment(s), 27 voxels, dropped."]
    assert_allclose(found.centroids[0], patient.centroids[L2], atol=1e-3)
    assert (found.labels == L2).sum() == pytest.approx((patient.mask.data == L2).sum() * 2.4 / 1.5**3, rel=0.03)


def test_cropped_radiographs_show_the_cube_alone(box_samples: Samples, patient: Patient) -> None:
    """As in the public benchmark, they are sums of the resampled cube's own voxels, and NaN beyond."""
    for projection in ("parallel", "cone"):
        found = samples.cut_samples(patient.ct, patient.mask, "sub-box", projection=projection, field_of_view="crop")
        assert (found.field_of_view, box_samples.field_of_view) == ("crop", "full")
        assert_array_equal(found.hu, box_samples.hu)
        inside = np.zeros((WIDE, WIDE), bool)
        inside[samples.MIDDLE, samples.MIDDLE] = True
        assert np.isfinite(found.pictures[..., inside]).all() and np.isnan(found.pictures[..., ~inside]).all()
        cubes = projector.attenuation(found.hu[:, samples.MIDDLE, samples.MIDDLE, samples.MIDDLE])
        patches = found.pictures[:, :, samples.MIDDLE, samples.MIDDLE]
        for cube, pair in zip(cubes, patches, strict=True):
            for patch, sums in zip(pair, _silhouettes(cube), strict=True):
                if projection == "parallel":
                    assert_allclose(patch, sums * SPACING_MM, rtol=1e-4, atol=1e-4)
                else:
                    assert _fit(patch[8:-8, 8:-8], sums[8:-8, 8:-8]) > 0.95


def test_objects_outside_the_cube_show_in_full_radiographs_alone(patient: Patient) -> None:
    """A plate lies 60 mm in front of L2: outside its cube, inside the CT."""
    ct = patient.ct.data.copy()
    y = round(float(patient.ct.index(patient.centroids[L2] + np.array([0, 60, 0]))[1]))
    ct[:, y : y + 2] = 1500
    plated = Volume(ct, patient.ct.affine)
    for field_of_view, changed in (("full", True), ("crop", False)):
        found = [
            samples.cut_samples(one, patient.mask, "a", field_of_view=field_of_view) for one in (patient.ct, plated)
        ]
        plain, plate = (one.chosen([L2]).images()[0, 0, 0] for one in found)
        assert np.allclose(plain, plate, atol=1e-3) != changed


@pytest.mark.parametrize("what", ["projection", "field of view"])
def test_an_unknown_projection_or_field_of_view_is_refused(what: str, patient: Patient) -> None:
    with pytest.raises(InputError, match=f"'fan' is not a {what}; use (parallel or cone|full or crop)"):
        samples.cut_samples(patient.ct, patient.mask, "sub-box", **{what.replace(" ", "_"): "fan"})


def test_the_store_gives_back_what_it_was_given(box_samples: Samples, tmp_path: Path) -> None:
    more = {"counts": {"whole": 3}, "notes": ["one.", 'two, "three".']}
    given = replace(box_samples, person="box", official_split="training", **more)
    name = samples.write_samples(tmp_path / "store", given, "abcdefabcdefabcdef")
    assert name == "sub-box-abcdefabcdef"
    found = samples.read_samples(tmp_path / "store", "sub-box")
    for field in fields(Samples):
        assert_array_equal(getattr(found, field.name), getattr(given, field.name))
    for name in ("levels", "centroids", "hu", "labels", "pictures"):
        assert getattr(found, name).dtype == getattr(given, name).dtype


def test_the_index_has_a_row_per_sample_and_a_subject_replaces_itself(box_samples: Samples, tmp_path: Path) -> None:
    few = box_samples.chosen([L3, L1])
    assert few.levels.tolist() == [L3, L1]
    for made in (few, replace(few, subject="sub-other", source="phantom", person="p"), few.chosen([L1])):
        samples.write_samples(tmp_path, made)
    index = store.read_index(tmp_path)
    assert list(zip(index.subject, index.level, index.row, index.source, index.person, strict=True)) == [
        ("sub-box", "L1", 0, "ct", "sub-box"),
        ("sub-other", "L3", 0, "phantom", "p"),
        ("sub-other", "L1", 1, "phantom", "p"),
    ]
    assert set(index.field_of_view) == {"full"} and set(index.projection) == {"parallel"}
    here = index[index.subject == "sub-box"].iloc[0]
    assert_allclose([here[f"centroid_{axis}_mm"] for axis in "xyz"], box_samples.centroids[0])
    assert samples.read_samples(tmp_path, "sub-box").levels.tolist() == [L1]
    with pytest.raises(InputError, match="has no subject 'sub-x', but for example sub-box"):
        samples.read_samples(tmp_path, "sub-x")


def test_stored_samples_are_the_samples_one_by_one(box_samples: Samples, tmp_path: Path) -> None:
    samples.write_samples(tmp_path, box_samples)
    index = store.read_index(tmp_path)
    few = StoredSamples(SampleCache(tmp_path, keep=1), index.iloc[[2, 0]])
    expected = box_samples.chosen([L3, L1])
    assert len(few) == 2 and few.levels.tolist() == [L3, L1]
    assert (few.subject, few.source, few.field_of_view) == ("sub-box", "ct", "full")
    for row in (1, 0, 1):
        few.prefetch(0)
        for ours, theirs in zip(few.sample(row), expected.sample(row), strict=True):
            assert_array_equal(ours, theirs)
    assert_array_equal(few.load().images(), expected.images())
    assert_array_equal(few.load().centroids, expected.centroids)
