"""What voxels and millimetres cost: bodies whose Dice can be written down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh
from conftest import Patient, store_as
from numpy.testing import assert_allclose

from benchmarks.studies import voxelisation
from transvert.data.manifest import DataFile, Subject
from transvert.imaging import mesh
from transvert.imaging.volume import Volume


def _ball(radius_mm: float) -> trimesh.Trimesh:
    ball = trimesh.creation.icosphere(subdivisions=5, radius=radius_mm)
    ball.apply_translation([0.31, -0.17, 40.23])
    return ball


def test_a_ball_whose_surface_is_moved_loses_what_its_volume_says() -> None:
    offsets = (0.25, 0.5, 1.0, 1.5, -0.25, -0.5, -1.0, -1.5)
    for radius in (8.0, 14.0):
        true = [2 * min(radius, radius + d) ** 3 / (radius**3 + (radius + d) ** 3) for d in offsets]
        assert_allclose(voxelisation.offset_cost(_ball(radius), offsets), true, atol=0.0015)


def test_voxels_cost_in_proportion_to_their_side_and_two_grids_more_than_one() -> None:
    costs = np.array(voxelisation.voxel_cost(_ball(12), (1.5, 0.75), np.random.default_rng(0)))
    own, other = 1 - costs.T
    assert own[0] / own[1] == pytest.approx(2, abs=0.25)
    assert (other > own).all() and 0.03 < own[0] < 0.07
    assert voxelisation.voxel_cost(_ball(12), (1.5,), np.random.default_rng(0))[0] == tuple(costs[0])


def test_a_mask_s_vertebrae_become_closed_solids_in_their_place(patient: Patient) -> None:
    found = list(voxelisation.solids(patient.subject))
    assert [(level, source) for level, source, _ in found] == [
        (n, "mask of 1.00 x 1.20 x 2.00 mm") for n in (20, 21, 22)
    ]
    for level, _, surface in found:
        assert surface.is_watertight
        assert surface.volume == pytest.approx((patient.mask.data == level).sum() * 2.4, rel=0.02)
        assert_allclose(surface.center_mass, patient.centroids[level], atol=0.5)


def test_a_coarse_mask_says_nothing(patient: Patient, tmp_path: Path) -> None:
    coarse = Volume(patient.mask.data, patient.mask.affine @ np.diag([1.2, 1, 1, 1]))
    path = store_as(coarse, "RAS", tmp_path / "coarse.nii.gz")
    assert not list(voxelisation.solids(Subject("sub-coarse", None, path, "verse", {}, {})))


def test_surfaces_are_taken_as_they_are(patient: Patient, tmp_path: Path) -> None:
    surfaces = {}
    for level, _, surface in voxelisation.solids(patient.subject):
        surfaces[level] = mesh.write_surface(tmp_path / f"{level}.ply", surface)
    file = DataFile(role="surface", subject="sub-mesh", url="https://example.org/a.ply", frame="RAS", unit="mm")
    files = dict.fromkeys(surfaces.values(), file)
    found = list(voxelisation.solids(Subject("sub-mesh", surfaces=surfaces, files=files)))
    assert [(level, source) for level, source, _ in found] == [(n, "surface") for n in (20, 21, 22)]
    assert found[0][2].volume == pytest.approx(mesh.read_surface(surfaces[20]).volume)
