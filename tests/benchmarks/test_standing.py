"""Bones along a stated curve: the angles come out as stated, the motions are rigid, and the films show what was made."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import inside_vertebra
from numpy.testing import assert_allclose, assert_array_equal

from benchmarks import standing as benchmark
from benchmarks import standing_report
from benchmarks.standing_phantom import curve, kinematic_chain, reference_pose, standing
from benchmarks.standing_phantom.curve import Curve
from benchmarks.standing_phantom.reference_pose import Bone
from transvert import levels
from transvert.clinical import centroids, endplate_prior, landmarks
from transvert.clinical.posture import measure_posture
from transvert.clinical.vertebra import Vertebra
from transvert.drr import geometry, projector
from transvert.imaging import mesh, volume
from transvert.imaging.volume import Volume, cube_affine
from transvert.io import InputError

C7, T4, T8, T12, L1, L3, L5 = 7, 11, 15, 19, 20, 22, 24
PITCH_MM = 34.0
"""From one bone to the next, at rest: 24 of body and 10 of disc."""
RUN = [*range(C7, L5 + 1)]
FEW = [T4, T8, T12, L1, L3, L5]
BENT = Curve(38.0, 41.0, 12.0, 21.0, 33.0, 13, 19, "right", 11.0)


@pytest.fixture(scope="module")
def template() -> Bone:
    """The patient's vertebra, which has a lateral process longer on the right, as a bone."""
    affine = cube_affine(np.zeros(3), 130, 0.75)
    grid = np.ix_(*(np.arange(130) * 0.75 + affine[i, 3] for i in range(3)))
    return reference_pose.measure(L1, mesh.extract_surface(inside_vertebra(*grid, (0.0, 0.0, 0.0)), affine))


def moved(bone: Bone, level: int, motion: np.ndarray) -> Bone:
    """A bone at rest elsewhere, and of another level."""
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
def run(template: Bone) -> list[Bone]:
    return stack(template, RUN)


@pytest.fixture(scope="module")
def person(template: Bone) -> standing.Standing:
    """T11 to L2 in a bent posture; L1 has a CT, whose right half is denser."""
    bones = stack(template, [18, T12, L1, 21])
    affine = cube_affine(bones[2].centroid, 120, 1.0)
    x = affine[0, 3] + np.arange(120.0)
    hu = np.broadcast_to(np.where(x > 0, 1000.0, 400.0)[:, None, None], (120,) * 3).astype(np.float32)
    bones[2] = replace(bones[2], hu=Volume(hu, affine))
    lumbar = replace(BENT, upper=18, lower=21, cobb_deg=30.0)
    return standing.build_standing(bones, kinematic_chain.stand(bones, lumbar), seed=3)


# Bones at rest


def test_a_bone_knows_its_endplates_and_where_it_looks(template: Bone) -> None:
    assert template.plates and template.axes is not None
    for normal in (template.plates.superior_normal, template.plates.inferior_normal):
        assert_allclose(normal, [0, 0, 1], atol=0.005)
    assert_allclose(
        template.plates.superior_centre[2] - template.plates.inferior_centre[2], 24, atol=reference_pose.FINE_MM
    )
    assert_allclose(template.axes, np.eye(3), atol=0.03)


def test_a_bone_that_stands_askew_carries_its_axes_along(template: Bone) -> None:
    assert template.plates and template.axes is not None
    motion = np.eye(4)
    motion[:3, :3] = kinematic_chain.attitude(8.0, 25.0, -12.0)
    motion[:3, 3] = 40, -30, 300
    found = reference_pose.measure(L1, template.surface.copy().apply_transform(motion))
    truth = reference_pose.move_plates(template.plates, motion)
    assert found.plates and found.axes is not None
    for name in ("superior_normal", "inferior_normal"):
        assert np.degrees(np.arccos(getattr(found.plates, name) @ getattr(truth, name))) < 1
    assert np.degrees(np.arccos(np.diag(found.axes.T @ motion[:3, :3] @ template.axes)).max()) < 1.5


def test_depth_in_a_neighbour_is_that_of_the_overlap(template: Bone) -> None:
    """Bodies of 24 mm one on the other, 20 mm apart: each stands 4 mm in the other."""
    above = np.eye(4)
    above[2, 3] = PITCH_MM
    assert reference_pose.penetration_mm(template, template, above) == 0
    above[2, 3] = 20
    assert 3 < reference_pose.penetration_mm(template, template, above) < 5.5


def test_two_runs_are_joined_at_the_level_that_both_have(template: Bone) -> None:
    upper, lower = stack(template, [T12, L1]), stack(template, [L1, L3])
    motion = np.diag([1.3, 1.3, 1.3, 1.0])
    motion[:3, :3] = 1.3 * kinematic_chain.attitude(5.0, -20.0, 4.0)
    motion[:3, 3] = 100, 50, -20
    larger = [reference_pose.measure(bone.level, bone.surface.copy().apply_transform(motion)) for bone in lower]
    joined = reference_pose.join(upper, larger)
    assert [bone.level for bone in joined] == [T12, L1, L3]
    for bone, known in zip(joined, stack(template, [T12, L1, L3]), strict=True):
        assert_allclose(bone.centroid, known.centroid, atol=1.5)
        assert bone.plates and bone.plates.depth_mm == pytest.approx(30, abs=1)
    with pytest.raises(InputError, match="share none"):
        reference_pose.join(upper, larger[1:])


# The curve


def test_a_curve_is_its_seeds_and_within_the_published_ranges() -> None:
    drawn = [curve.draw_curve(seed) for seed in range(200)]
    assert drawn == [curve.draw_curve(seed) for seed in range(200)]
    assert len(set(drawn)) == 200
    for values, (low, high) in (
        ([c.kyphosis_deg for c in drawn], curve.KYPHOSIS_DEG),
        ([c.lordosis_deg + c.sacral_disc_deg for c in drawn], curve.LORDOSIS_DEG),
        ([c.plumb_mm for c in drawn], curve.PLUMB_MM),
    ):
        assert low <= min(values) < low + (high - low) / 10 and high - (high - low) / 10 < max(values) <= high
    thoracic = [c for c in drawn if c.upper < 18]
    assert 0.7 < np.mean([c.convexity == "right" for c in thoracic]) < 0.9
    assert 0.3 < np.mean([c.cobb_deg < 10 for c in drawn]) < 0.5
    assert all(c.upper < 18 for c in (curve.draw_curve(seed, lumbar=False) for seed in range(50)))


@pytest.mark.parametrize("seed", [0, 1, 3, 9])
def test_the_stated_posture_comes_out(run: list[Bone], seed: int) -> None:
    stated = curve.draw_curve(seed)
    stance = kinematic_chain.stand(run, stated)
    found = standing.truth(stance)
    assert found["kyphosis_deg"] == pytest.approx(stated.kyphosis_deg, abs=0.1)
    assert found["lordosis_deg"] == pytest.approx(stated.lordosis_deg, abs=0.1)
    total = stated.lordosis_deg + stated.sacral_disc_deg
    assert found["lordosis_s1_deg"] == pytest.approx(total, abs=0.1)
    assert found["plumb_mm"] == pytest.approx(stated.plumb_mm, abs=0.1)
    upper, lower = (stance.plates[n] for n in (stated.upper, stated.lower))
    cobb = np.subtract(*(np.degrees(np.arctan(n[0] / n[2])) for n in (lower.inferior_normal, upper.superior_normal)))
    assert abs(cobb) == pytest.approx(stated.cobb_deg, abs=0.1)
    assert (cobb > 0) == (stated.convexity == "right")
    # Alike bones in a smooth curve have it as their largest, but for what endplates of one bone lean apart.
    assert abs(found["cobb_deg"]) == pytest.approx(stated.cobb_deg, abs=1)
    turned = max(stance.rotations_deg.values(), key=abs)
    assert abs(turned) == pytest.approx(stated.rotation_deg, abs=0.1)


def test_motions_are_rigid_and_equal_for_equal_curves(run: list[Bone]) -> None:
    stance, again = kinematic_chain.stand(run, BENT), kinematic_chain.stand(run, BENT)
    assert list(stance.motions) == RUN
    for level, motion in stance.motions.items():
        assert_allclose(motion[:3, :3] @ motion[:3, :3].T, np.eye(3), atol=1e-9)
        assert np.linalg.det(motion[:3, :3]) == pytest.approx(1)
        assert_array_equal(motion[3], [0, 0, 0, 1])
        assert_array_equal(motion, again.motions[level])


def test_a_curve_to_the_right_bulges_there_and_its_bodies_turn_there(run: list[Bone]) -> None:
    for side, sign in (("right", 1), ("left", -1)):
        stance = kinematic_chain.stand(run, replace(BENT, convexity=side))
        x = {n: plates.body_centre[0] for n, plates in stance.plates.items()}
        apex = 16
        assert sign * (x[apex] - (x[BENT.upper] + x[BENT.lower]) / 2) > 8
        # Positive rotation is to the patient's left, as `symmetry` has it.
        assert stance.rotations_deg[apex] == pytest.approx(-sign * BENT.rotation_deg, abs=0.1)
        view = geometry.covering_view("ap", np.array([p.body_centre for p in stance.plates.values()]), 1.0, cone=True)
        columns = {n: view.project(plates.body_centre)[1] for n, plates in stance.plates.items()}
        assert sign * (columns[apex] - (columns[BENT.upper] + columns[BENT.lower]) / 2) < -8


def test_what_is_stated_is_what_is_measured(template: Bone) -> None:
    """The posture of the moved bones, as any reconstruction's is measured, without a look at what they were told."""
    bones = stack(template, FEW)
    stance = kinematic_chain.stand(bones, BENT)
    vertebrae = []
    for bone in bones:
        solid = mesh.voxelise(bone.surface.copy().apply_transform(stance.motions[bone.level]), 0.75)
        centre = solid.world(np.argwhere(solid.data).mean(0))
        cube = volume.cut_cube(solid, centre, 140, 0.75, order=0, fill=0)
        vertebrae.append(Vertebra(bone.level, centre, cube.data.astype(np.float32), 0.75))
    measured, found = measure_posture(vertebrae, stance.s1), standing.truth(stance)
    measures = {name: entry["value"] for name, entry in measured["measures"].items()}
    assert measures["thoracic_kyphosis"] == pytest.approx(found["kyphosis_deg"], abs=1.5)
    assert measures["lumbar_lordosis"] == pytest.approx(found["lordosis_deg"], abs=1.5)
    assert measures["lumbar_lordosis_l1_s1"] == pytest.approx(found["lordosis_s1_deg"], abs=1.5)
    assert measures["coronal_cobb"] == pytest.approx(found["cobb_deg"], abs=1.5)
    assert measured["measures"]["coronal_cobb"]["convexity"] == "right"
    for row in measured["vertebrae"]:
        turn = stance.rotations_deg[levels.number(row["level"])]
        assert row["axial_rotation_deg"] == pytest.approx(turn, abs=1.5)


def test_what_needs_a_missing_bone_is_left_out(template: Bone) -> None:
    found = standing.truth(kinematic_chain.stand(stack(template, [T4, T12, L1]), BENT))
    assert set(found) == {"kyphosis_deg", "cobb_deg", "upper", "lower"}
    assert found["kyphosis_deg"] == pytest.approx(BENT.kyphosis_deg, abs=0.1)


def test_the_first_two_vertebrae_go_with_the_third(template: Bone) -> None:
    bones = stack(template, RUN)
    above = np.eye(4)
    above[2, 3] = 600 + 4 * PITCH_MM
    third = moved(template, 3, above)
    first = replace(third, level=1, plates=None, axes=None)
    stance = kinematic_chain.stand([first, third, *bones], BENT)
    assert_array_equal(stance.motions[1], stance.motions[3])
    assert 1 not in stance.plates


# Neighbours


def test_neighbours_that_would_stand_in_each_other_are_moved_apart(template: Bone) -> None:
    tight, arched = stack(template, [L1, 21, L3], pitch_mm=25.0), replace(BENT, lordosis_deg=85.0)
    stance = kinematic_chain.stand(tight, arched)
    assert stance.shifts_mm, "nothing had to be moved: this tests nothing"
    for upper, lower in itertools.pairwise(tight):
        motion = np.linalg.inv(stance.motions[lower.level]) @ stance.motions[upper.level]
        assert reference_pose.penetration_mm(upper, lower, motion) <= kinematic_chain.TOUCH_MM
    for level, shift in stance.shifts_mm.items():
        assert 0 < np.linalg.norm(shift) <= kinematic_chain.FARTHEST_SHIFT_MM, level


def test_bones_that_stay_in_each_other_are_refused(template: Bone, monkeypatch: pytest.MonkeyPatch) -> None:
    tight, arched = stack(template, [L1, 21, L3], pitch_mm=25.0), replace(BENT, lordosis_deg=85.0)
    monkeypatch.setattr(kinematic_chain, "_SHIFTS", np.zeros((1, 3)))
    with pytest.raises(InputError, match="stands in L[23] in this posture"):
        kinematic_chain.stand(tight, arched)


def test_no_bones_or_one_twice_is_refused(template: Bone) -> None:
    with pytest.raises(InputError, match="No vertebra with endplates"):
        kinematic_chain.stand([], BENT)
    with pytest.raises(InputError, match="twice"):
        kinematic_chain.stand(stack(template, [L1]) * 2, BENT)


# The person


def test_labels_and_centroids_stand_where_the_bones_were_moved(person: standing.Standing, template: Bone) -> None:
    assert person.contested == 0
    for level, centre in person.centroids.items():
        voxels = person.labels.world(np.argwhere(person.labels.data == level))
        assert_allclose(voxels.mean(0), centre, atol=0.2)
        assert len(voxels) == pytest.approx(template.surface.volume, rel=0.02)


def test_a_trunk_is_around_the_bones(person: standing.Standing) -> None:
    low, high = person.hu.corners().min(0), person.hu.corners().max(0)
    for centre in person.centroids.values():
        assert ((centre - low)[:2] > 60).all() and ((high - centre)[:2] > 60).all()
        skin = person.hu.data[tuple(np.rint(person.hu.index(centre + [0, -60, 0])).astype(int))]
        assert -150 < skin < 1500, "there is no body behind the bone"


def test_a_bone_with_a_ct_keeps_its_hu(person: standing.Standing) -> None:
    """Its right half is the denser one wherever it was turned to."""
    inside = person.labels.world(np.argwhere(person.labels.data == L1))
    values = person.hu.data[tuple(np.rint(person.hu.index(inside)).astype(int).T)]
    home = np.linalg.inv(person.stance.motions[L1])
    x = inside @ home[0, :3] + home[0, 3]
    assert np.median(values[x > 3]) == pytest.approx(1000, abs=1)
    assert np.median(values[x < -3]) == pytest.approx(400, abs=1)
    others = person.labels.world(np.argwhere(person.labels.data == T12))
    painted = person.hu.data[tuple(np.rint(person.hu.index(others)).astype(int).T)]
    assert np.std(painted) > 50, "another bone has a shell and a core"


def test_landmarks_lie_where_the_films_show_the_bones(person: standing.Standing) -> None:
    corners = person.hu.corners()
    ap, lateral = (geometry.covering_view(name, corners, 0.8, cone=True) for name in ("ap", "lateral"))
    marks = standing.mark(person, (ap, lateral), (corners.min(0) + corners.max(0)) / 2)
    for view, which in ((ap, "ap"), (lateral, "lateral")):
        for level, pixel in marks.centroids[which].items():
            shown = projector.cast(Volume((person.labels.data == level).astype(np.float32), person.labels.affine), view)
            middle = np.array([np.arange(n) @ shown.sum(1 - i) for i, n in enumerate(view.shape)]) / shown.sum()
            assert_allclose(pixel, middle, atol=0.5)
    points, residuals = marks.place(ap, lateral)
    assert max(residuals.values()) < 1e-6
    for level, point in points.items():
        assert_allclose(point, person.centroids[level], atol=1e-6)
    for name, end in marks.s1(ap, lateral).items():
        assert_allclose(end, person.stance.s1[name], atol=0.3)


def test_corners_lie_where_the_endplates_end(person: standing.Standing) -> None:
    corners = person.hu.corners()
    views = tuple(geometry.covering_view(name, corners, 0.8, cone=True) for name in ("ap", "lateral"))
    marks = standing.mark(person, views, corners.mean(0), [L1])
    points = marks.place(*views)[0]
    told = {(rim.superior, rim.plane): rim.tilt_deg for rim in endplate_prior.endplate_lines(marks, views, points, 1.0)}
    plates = person.stance.plates[L1]
    for (superior, plane), tilt in told.items():
        normal = plates.superior_normal if superior else plates.inferior_normal
        assert tilt == pytest.approx(endplate_prior.tilt_deg(normal, plane), abs=1.0)
    assert len(told) == 4


def test_middles_of_bodies_lead_back_to_whole_vertebrae(person: standing.Standing) -> None:
    corners = person.hu.corners()
    views = tuple(geometry.covering_view(name, corners, 0.8, cone=True) for name in ("ap", "lateral"))
    bodies = standing.mark_bodies(person, views, corners.mean(0))
    for level, point in bodies.place(*views)[0].items():
        assert_allclose(point, person.stance.plates[level].body_centre, atol=1e-6)
        assert point[1] - person.centroids[level][1] > 5
    whole = centroids.to_vertebra_centroids(bodies, views)
    for level, point in whole.place(*views)[0].items():
        assert np.linalg.norm(point - person.centroids[level]) < 5


def test_bones_that_no_mask_would_have_are_refused(template: Bone) -> None:
    bones = stack(template, [T12, L1, 21])
    shrunk = bones[1].surface.copy()
    shrunk.apply_scale(0.4)
    shrunk.apply_translation(bones[1].centroid - shrunk.center_mass)
    bones[1] = replace(bones[1], surface=shrunk)
    with pytest.raises(InputError, match="whole vertebrae"):
        standing.build_standing(bones, kinematic_chain.stand(bones, BENT), 0)


# The benchmark


def test_alignment_undoes_a_motion_and_tells_a_shape_from_another(template: Bone) -> None:
    motion = np.eye(4)
    motion[:3, :3] = kinematic_chain.attitude(6.0, -28.0, 9.0)
    solid = mesh.voxelise(template.surface.copy().apply_transform(motion), 0.75)
    soft = benchmark.fine(template.surface.copy().apply_transform(motion))
    centre = solid.world(np.argwhere(solid.data).mean(0))
    cube = volume.cut_cube(soft, centre, 64, 1.5, order=1, fill=0)
    same = Vertebra(L1, centre, cube.data, 1.5)
    assert benchmark.aligned_mm(same, template) < 0.5
    larger = replace(template, points=1.15 * template.points, surface=template.surface.copy().apply_scale(1.15))
    assert benchmark.aligned_mm(same, larger) > 0.8


def test_the_share_of_bone_keeps_place_and_volume(template: Bone) -> None:
    soft = benchmark.fine(template.surface)
    where = soft.world(np.argwhere(soft.data > -1))
    weights = soft.data.ravel()
    assert_allclose(weights @ where / weights.sum(), template.surface.center_mass, atol=0.1)
    assert weights.sum() * benchmark.FINE_MM**3 == pytest.approx(template.surface.volume, rel=0.01)


def test_refused_clicks_are_made_again_and_counted(person: standing.Standing) -> None:
    corners = person.hu.corners()
    views = tuple(geometry.covering_view(name, corners, 0.8, cone=True) for name in ("ap", "lateral"))
    exact = standing.mark(person, views, corners.mean(0))
    marks, again = benchmark.click(exact, views, 0.0, 0)
    assert again == 0
    marks, again = benchmark.click(exact, views, 8.0, 0)
    _, residuals = marks.place(*views)
    assert again > 0 and max(residuals.values()) <= landmarks.RESIDUAL_LIMIT_MM


def test_the_page_sums_sizes_of_errors_up() -> None:
    keys = {"subject": "chest", "predictor": "network", "click_mm": 0.0, "dice": 0.9, "dice_alone": 0.91}
    keys |= {"clicked_again": 0, "vertebrae": 17}
    runs = pd.DataFrame([keys | {"posture": n, "error_cobb_deg": e} for n, e in enumerate((-1.0, 1.0, 3.0, None))])
    bones = pd.DataFrame([keys | {"posture": 0, "level": "T4", "centroid_mm": 0.4, "error_rotation_deg": None}])
    figures = standing_report.summarise(runs, bones).set_index("measure")
    cobb = figures.loc["Cobb between the true end levels, degrees"]
    assert cobb["count"] == 3
    assert (cobb["mean"], cobb["median"], cobb["signed"]) == pytest.approx((5 / 3, 1, 1))
    page = standing_report.as_markdown(runs, bones, "a machine", ["ctacardio"])
    assert "Postures: chest 4." in page
    assert "| exact landmarks | chest |" in page and "| centroid, mm | 0.40 (0.40; 0.40) |" in page
    assert "Cobb between the true end levels, degrees, exact landmarks: 1.67, to be at most 2: yes." in page
    assert "Dice, exact landmarks: 0.900, and 0.910 of the same bones" in page
