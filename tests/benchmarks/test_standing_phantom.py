"""Standing phantoms: the given posture is reached, motions are rigid, and films show what was built."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from conftest import inside_vertebra
from numpy.testing import assert_allclose

from benchmarks.standing_phantom import curve, kinematic_chain, reconstruction, reference_pose, standing
from benchmarks.standing_phantom.curve import Curve
from benchmarks.standing_phantom.reference_pose import Bone
from transvert import levels
from transvert.clinical import endplates, landmarks
from transvert.clinical.posture import measure_posture
from transvert.clinical.vertebra import Vertebra, to_vertebra_centroids
from transvert.drr import geometry
from transvert.imaging import mesh, volume
from transvert.imaging.volume import Volume, cube_affine
from transvert.io import InputError

C7, T4, T12, L1, L3, L5 = 7, 11, 19, 20, 22, 24
PITCH_MM = 34.0
"""Distance of the bones in the reference pose: 24 of body and 10 of disc."""
RUN = [*range(C7, L5 + 1)]
BENT = Curve(38.0, 41.0, 12.0, 21.0, 33.0, 13, 19, "right", 11.0)


@pytest.fixture(scope="module")
def template() -> Bone:
    """The synthetic vertebra as a bone."""
    affine = cube_affine(np.zeros(3), 130, 0.75)
    grid = np.ix_(*(np.arange(130) * 0.75 + affine[i, 3] for i in range(3)))
    return reference_pose.measure(L1, mesh.extract_surface(inside_vertebra(*grid, (0.0, 0.0, 0.0)), affine))


def moved(bone: Bone, level: int, motion: np.ndarray) -> Bone:
    """The bone at another place and of another level."""
    assert bone.plates and bone.axes is not None
    turn, shift = motion[:3, :3], motion[:3, 3]
    return replace(
        bone,
        level=level,
        surface=bone.surface.copy().apply_transform(motion),
        centroid=turn @ bone.centroid + shift,
        plates=reference_pose.move_plates(bone.plates, motion),
        axes=turn @ bone.axes,
        points=bone.points @ turn.T + shift,
        depth=Volume(bone.depth.data, motion @ bone.depth.affine),
    )


def stack(template: Bone, wanted: list[int], pitch_mm: float = PITCH_MM) -> list[Bone]:
    """Equal bones, straight above one another."""
    motions = np.tile(np.eye(4), (len(wanted), 1, 1))
    motions[:, 2, 3] = 600 - pitch_mm * np.array([RUN.index(n) for n in wanted])
    return [moved(template, n, motion) for n, motion in zip(wanted, motions, strict=True)]


@pytest.fixture(scope="module")
def person(template: Bone) -> standing.Standing:
    """T12 to L2 in a bent posture; L1 has a CT, whose right half is denser."""
    bones = stack(template, [T12, L1, 21])
    affine = cube_affine(bones[1].centroid, 120, 1.0)
    x = affine[0, 3] + np.arange(120.0)
    hu = np.broadcast_to(np.where(x > 0, 1000.0, 400.0)[:, None, None], (120,) * 3).astype(np.float32)
    bones[1] = replace(bones[1], hu=Volume(hu, affine))
    lumbar = replace(BENT, upper=T12, lower=21, cobb_deg=30.0)
    return standing.build_standing(bones, kinematic_chain.stand(bones, lumbar), seed=3)


@pytest.fixture(scope="module")
def views(person: standing.Standing) -> tuple[geometry.View, geometry.View]:
    return tuple(geometry.covering_view(name, person.hu.corners(), 0.8, cone=True) for name in ("ap", "lateral"))


def test_a_bone_has_its_endplates_and_axes_in_any_pose(template: Bone) -> None:
    assert template.plates and template.axes is not None
    assert_allclose(template.plates.superior_normal, [0, 0, 1], atol=0.005)
    height = template.plates.superior_centre[2] - template.plates.inferior_centre[2]
    assert_allclose(height, 24, atol=reference_pose.FINE_MM)
    assert_allclose(template.axes, np.eye(3), atol=0.03)
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = kinematic_chain.attitude(8.0, 25.0, -12.0), (40, -30, 300)
    found = reference_pose.measure(L1, template.surface.copy().apply_transform(motion))
    truth = reference_pose.move_plates(template.plates, motion)
    assert found.plates and found.axes is not None
    assert np.degrees(np.arccos(found.plates.superior_normal @ truth.superior_normal)) < 1
    assert np.degrees(np.arccos(np.diag(found.axes.T @ motion[:3, :3] @ template.axes)).max()) < 1.5


def test_curves_follow_their_seed_and_the_published_ranges() -> None:
    drawn = [curve.draw_curve(seed) for seed in range(200)]
    assert drawn == [curve.draw_curve(seed) for seed in range(200)] and len(set(drawn)) == 200
    for values, (low, high) in (
        ([c.kyphosis_deg for c in drawn], curve.KYPHOSIS_DEG),
        ([c.lordosis_deg + c.sacral_disc_deg for c in drawn], curve.LORDOSIS_DEG),
        ([c.plumb_mm for c in drawn], curve.PLUMB_MM),
    ):
        assert low <= min(values) < low + (high - low) / 10 and high - (high - low) / 10 < max(values) <= high
    assert 0.3 < np.mean([c.cobb_deg < 10 for c in drawn]) < 0.5


@pytest.mark.parametrize("seed", [0, 3])
def test_the_given_posture_is_reached_by_rigid_motions(template: Bone, seed: int) -> None:
    stated = curve.draw_curve(seed)
    stance = kinematic_chain.stand(stack(template, RUN), stated)
    found = standing.truth(stance)
    total = stated.lordosis_deg + stated.sacral_disc_deg
    expected = {"kyphosis_deg": stated.kyphosis_deg, "lordosis_deg": stated.lordosis_deg, "lordosis_s1_deg": total}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=0.1)
    assert found["plumb_mm"] == pytest.approx(stated.plumb_mm, abs=0.1)
    upper, lower = (stance.plates[n] for n in (stated.upper, stated.lower))
    cobb = np.subtract(*(np.degrees(np.arctan(n[0] / n[2])) for n in (lower.inferior_normal, upper.superior_normal)))
    assert abs(cobb) == pytest.approx(stated.cobb_deg, abs=0.1)
    assert (cobb > 0) == (stated.convexity == "right")
    turned = max(stance.rotations_deg.values(), key=abs)
    assert abs(turned) == pytest.approx(stated.rotation_deg, abs=0.1)
    for motion in stance.motions.values():
        assert_allclose(motion[:3, :3] @ motion[:3, :3].T, np.eye(3), atol=1e-9)
        assert np.linalg.det(motion[:3, :3]) == pytest.approx(1)


def test_the_true_posture_is_measured_on_the_moved_bones(template: Bone) -> None:
    bones = stack(template, [T4, T12, L1, L5])
    stance = kinematic_chain.stand(bones, BENT)
    vertebrae = []
    for bone in bones:
        solid = mesh.voxelise(bone.surface.copy().apply_transform(stance.motions[bone.level]), 1.0)
        centre = solid.world(np.argwhere(solid.data).mean(0))
        cube = volume.cut_cube(solid, centre, 105, 1.0, order=0, fill=0)
        vertebrae.append(Vertebra(bone.level, centre, cube.data.astype(np.float32), 1.0))
    measured, found = measure_posture(vertebrae, stance.s1), standing.truth(stance)
    names = {"thoracic_kyphosis": "kyphosis_deg", "lumbar_lordosis": "lordosis_deg", "coronal_cobb": "cobb_deg"}
    for name, true in names.items():
        assert measured["measures"][name]["value"] == pytest.approx(found[true], abs=1.5)
    for row in measured["vertebrae"]:
        turn = stance.rotations_deg[levels.number(row["level"])]
        assert row["axial_rotation_deg"] == pytest.approx(turn, abs=1.5)


def test_overlapping_neighbours_are_moved_apart_or_refused(template: Bone, monkeypatch: pytest.MonkeyPatch) -> None:
    tight, arched = stack(template, [L1, 21, L3], pitch_mm=25.0), replace(BENT, lordosis_deg=85.0)
    stance = kinematic_chain.stand(tight, arched)
    assert stance.shifts_mm
    for upper, lower in itertools.pairwise(tight):
        motion = np.linalg.inv(stance.motions[lower.level]) @ stance.motions[upper.level]
        assert reference_pose.penetration_mm(upper, lower, motion) <= kinematic_chain.TOUCH_MM
    monkeypatch.setattr(kinematic_chain, "_SHIFTS", np.zeros((1, 3)))
    with pytest.raises(InputError, match=r"overlaps L[23] in this posture"):
        kinematic_chain.stand(tight, arched)
    with pytest.raises(InputError, match="share no level"):
        reference_pose.join(stack(template, [T12]), stack(template, [L3]))
    with pytest.raises(InputError, match="no vertebra with endplates"):
        kinematic_chain.stand([], BENT)
    with pytest.raises(InputError, match="twice"):
        kinematic_chain.stand(stack(template, [L1]) * 2, BENT)


def test_labels_centroids_and_hu_follow_the_bones(person: standing.Standing, template: Bone) -> None:
    assert person.contested == 0
    for level, centre in person.centroids.items():
        voxels = person.labels.world(np.argwhere(person.labels.data == level))
        assert_allclose(voxels.mean(0), centre, atol=0.2)
        assert len(voxels) == pytest.approx(template.surface.volume, rel=0.02)
    inside = person.labels.world(np.argwhere(person.labels.data == L1))
    values = person.hu.data[tuple(np.rint(person.hu.index(inside)).astype(int).T)]
    home = np.linalg.inv(person.stance.motions[L1])
    x = inside @ home[0, :3] + home[0, 3]
    assert np.median(values[x > 3]) == pytest.approx(1000, abs=1)
    assert np.median(values[x < -3]) == pytest.approx(400, abs=1)


def test_landmarks_meet_at_the_bones(person: standing.Standing, views: tuple[geometry.View, geometry.View]) -> None:
    middle = person.hu.corners().mean(0)
    marks = standing.mark(person, views, middle, [L1])
    points, residuals = marks.place(*views)
    assert max(residuals.values()) < 1e-6
    for level, point in points.items():
        assert_allclose(point, person.centroids[level], atol=1e-6)
    for name, end in marks.s1(*views).items():
        assert_allclose(end, person.stance.s1[name], atol=0.3)
    lines = endplates.endplate_lines(marks, views, points, 1.0)
    plates = person.stance.plates[L1]
    assert len(lines) == 4
    for line in lines:
        normal = plates.superior_normal if line.superior else plates.inferior_normal
        assert line.tilt_deg == pytest.approx(endplates.tilt_deg(normal, line.plane), abs=1.0)
    bodies = standing.mark_bodies(person, views, middle)
    for level, point in bodies.place(*views)[0].items():
        assert_allclose(point, person.stance.plates[level].body_centre, atol=1e-6)
    for level, point in to_vertebra_centroids(bodies, views).place(*views)[0].items():
        assert np.linalg.norm(point - person.centroids[level]) < 5


def test_refused_clicks_are_repeated_and_counted(
    person: standing.Standing, views: tuple[geometry.View, geometry.View]
) -> None:
    exact = standing.mark(person, views, person.hu.corners().mean(0))
    assert reconstruction.click(exact, views, 0.0, 0)[1] == 0
    marks, again = reconstruction.click(exact, views, 8.0, 0)
    assert again > 0 and max(marks.place(*views)[1].values()) <= landmarks.RESIDUAL_LIMIT_MM
