"""A standing person with known posture: vertebrae of a CT or of surfaces, moved as rigid bodies along a curve.

No licensed pair of standing films has a 3D truth, so this makes one:

    bones = reference_pose.open_bones(subject)
    stance = kinematic_chain.stand(bones, curve.draw_curve(seed))
    person = standing.build_standing(bones, stance, seed)

Films are cast from `person.hu` as from any CT; `truth` returns the posture, with the definitions of `clinical.posture`.
Endplates and planes of symmetry are found once, in the reference pose, and moved with the bones. The person faces +y and
stands along +z.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from benchmarks.standing_phantom.kinematic_chain import C7, L1, L5, T4, T12, Stance, tilts_deg
from benchmarks.standing_phantom.reference_pose import Bone
from transvert import levels
from transvert.clinical import endplates, landmarks
from transvert.clinical.landmarks import Landmarks
from transvert.clinical.vertebra import unit
from transvert.drr.geometry import VIEWS, View
from transvert.imaging import masks, mesh
from transvert.imaging.volume import Volume
from transvert.io import InputError
from transvert.phantom import paint, shapes

if TYPE_CHECKING:
    import trimesh


SPACING_MM = 1.0
_RIM = 3  # Empty voxels around the labels, so that no bone touches their border.


@dataclass(frozen=True)
class Standing:
    """A standing person.

    Attributes:
        hu: the whole trunk, float32, HU.
        labels: uint8, VerSe levels.
        surfaces: level to the surface of the standing bone, RAS mm.
        centroids: level to (3,) RAS mm, the landmarks.
        stance: pose and endplates of each bone.
        contested: number of voxels claimed by two bones; the lower bone gets them.
    """

    hu: Volume
    labels: Volume
    surfaces: dict[int, trimesh.Trimesh]
    centroids: dict[int, np.ndarray]
    stance: Stance
    contested: int


def build_standing(bones: Sequence[Bone], stance: Stance, seed: int) -> Standing:
    """Paints a trunk around standing bones: soft tissue, discs, ribs and other bones, as `phantom.paint` does.

    A bone with a CT keeps its HU; any other gets a shell and a core.

    Args:
        bones: in the reference pose.
        stance: their standing poses.
        seed: of the painted tissue.

    Raises:
        InputError: as `phantom.paint.paint_phantom`, or a bone that is not a whole vertebra.
    """
    there = {bone.level: bone.surface.copy().apply_transform(stance.motions[bone.level]) for bone in bones}
    labels, contested = _label(there)
    whole = masks.clean_mask(labels)
    if set(whole.parts) != set(there):
        raise InputError("Not all standing bones are whole vertebrae: " + " ".join(whole.notes))
    hu = paint.paint_phantom(labels, seed, SPACING_MM)
    for bone in bones:
        if bone.hu is not None:
            _lay(hu, labels, bone, stance.motions[bone.level])
    centroids = {bone.level: _moved(bone.centroid, stance.motions[bone.level]) for bone in bones}
    return Standing(hu, labels, there, centroids, stance, contested)


def truth(stance: Stance) -> dict[str, float]:
    """The true posture, degrees and mm. Measures whose bones are missing are left out.

    `kyphosis_deg`, `lordosis_deg` and `plumb_mm` are as in `Curve`; `lordosis_s1_deg` ends at S1. `cobb_deg` is the largest
    angle from T1 down between a superior and a lower inferior endplate, positive if convex to the right; `upper` and `lower`
    are its levels.
    """
    plates, found = stance.plates, {}
    if T4 in plates and T12 in plates:
        found["kyphosis_deg"] = tilts_deg(plates[T4].superior_normal)[1] - tilts_deg(plates[T12].inferior_normal)[1]
    if L1 in plates and L5 in plates:
        first = tilts_deg(plates[L1].superior_normal)[1]
        found["lordosis_deg"] = tilts_deg(plates[L5].inferior_normal)[1] - first
        found["lordosis_s1_deg"] = tilts_deg(endplates.fit_sacrum(stance.s1).superior_normal)[1] - first
    if C7 in plates and L5 in plates:
        found["plumb_mm"] = plates[C7].body_centre[1] - stance.s1["posterior"][1]
    trunk = [n for n in levels.in_order(set(plates)) if levels.place(n) > levels.place(C7)]
    bends = {
        (a, b): tilts_deg(plates[b].inferior_normal)[0] - tilts_deg(plates[a].superior_normal)[0]
        for a, b in itertools.combinations(trunk, 2)
    }
    if bends:
        upper, lower = max(bends, key=lambda pair: abs(bends[pair]))
        found |= {"cobb_deg": bends[upper, lower], "upper": upper, "lower": lower}
    return {name: float(value) for name, value in found.items()}


def mark(person: Standing, views: tuple[View, View], isocentre: np.ndarray, cornered: Sequence[int] = ()) -> Landmarks:
    """The exact landmarks of a standing person on both films: all centroids and S1's endplate.

    Args:
        person: the person.
        views: AP and lateral.
        isocentre: (3,) RAS mm.
        cornered: levels whose corners are marked too, where an endplate's plane ends on a film.
    """
    marks = landmarks.project_landmarks(*views, isocentre, person.centroids)
    by_view = list(zip(VIEWS, views, strict=True))
    ends = {
        which: {name: view.project(person.stance.s1[name]) for name in landmarks.ENDS[which]} for which, view in by_view
    }
    corners = {
        which: {
            n: {k: view.project(at) for k, at in _corners(person.stance.plates[n], which).items()} for n in cornered
        }
        for which, view in by_view
    }
    return replace(marks, s1_endplate=ends, corners=corners)


def mark_bodies(person: Standing, views: tuple[View, View], isocentre: np.ndarray) -> Landmarks:
    """As `mark`, with the middles of the bodies instead of the centroids, except for C1 and C2."""
    marks, plates = mark(person, views, isocentre), person.stance.plates
    middles = {n: plates[n].body_centre if n in plates else at for n, at in person.centroids.items()}
    bodies = landmarks.project_landmarks(*views, isocentre, middles)
    return replace(marks, centroids=bodies.centroids, centroids_of=landmarks.BODY)


def _corners(plates: endplates.Endplates, which: str) -> dict[str, np.ndarray]:
    """Names of a body's corners in one view, and their places (3,) in RAS mm."""
    found: dict[str, np.ndarray] = {}
    for end, centre, normal in (
        ("superior", plates.superior_centre, plates.superior_normal),
        ("inferior", plates.inferior_centre, plates.inferior_normal),
    ):
        right = unit(np.array([1.0, 0.0, 0.0]) - normal[0] * normal)
        if which == "ap":
            names, reach = ("right", "left"), right * plates.width_mm / 2
        else:
            names, reach = ("anterior", "posterior"), np.cross(normal, right) * plates.depth_mm / 2
        found |= {f"{names[0]}_{end}": centre + reach, f"{names[1]}_{end}": centre - reach}
    return found


def _label(surfaces: Mapping[int, trimesh.Trimesh]) -> tuple[Volume, int]:
    """The labels of the standing bones, and the number of voxels claimed by two bones."""
    solids = {level: mesh.voxelise(surface, SPACING_MM) for level, surface in surfaces.items()}
    corners = np.concatenate([solid.corners() for solid in solids.values()])
    # Voxel centres are multiples of the spacing, as in `voxelise`.
    low = np.floor(corners.min(0) / SPACING_MM) - _RIM
    shape = (np.ceil(corners.max(0) / SPACING_MM) + _RIM - low).astype(int)
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = low * SPACING_MM
    labels, contested = Volume(np.zeros(shape, np.uint8), affine), 0
    for level, solid in solids.items():
        where = tuple(np.rint(labels.index(solid.world(np.argwhere(solid.data)))).astype(int).T)
        contested += int(np.count_nonzero(labels.data[where]))
        labels.data[where] = level
    return labels, contested


def _lay(hu: Volume, labels: Volume, bone: Bone, motion: np.ndarray) -> None:
    """Blends a bone's own HU into the trunk where its label is."""
    assert bone.hu is not None
    ends = np.array(np.meshgrid(*bone.surface.bounds.T)).reshape(3, -1).T
    corners = _moved(ends, motion)
    box = shapes.box_of(hu, corners.min(0), corners.max(0))
    first, shape = np.array([side.start for side in box]), hu.data[box].shape

    def onto(data: np.ndarray, affine: np.ndarray, fill: float) -> np.ndarray:
        mapping = np.linalg.inv(affine) @ hu.affine
        start = mapping[:3, :3] @ first + mapping[:3, 3]
        return np.asarray(ndimage.affine_transform(data, mapping[:3, :3], start, shape, order=1, cval=fill))

    own = labels.index(hu.world(np.array([first - 1, first + np.array(shape) + 1])))
    low, high = (np.clip(end, 0, labels.data.shape).astype(int) for end in (np.floor(own[0]), np.ceil(own[1]) + 1))
    part = labels.data[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] == bone.level
    affine = labels.affine.copy()
    affine[:3, 3] = labels.world(low)
    weight = onto(part.astype(np.float32), affine, 0.0)
    shapes.blend(hu.data[box], weight, onto(bone.hu.data, motion @ bone.hu.affine, 0.0))


def _moved(points: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """(..., 3) points after a motion (4, 4)."""
    return np.asarray(points @ motion[:3, :3].T + motion[:3, 3])
