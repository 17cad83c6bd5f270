"""Films of whole trunks, with the place and the name of every vertebra, that the detector learns from and is measured on.

A spine is put together from the vertebrae of one or several people, bent into a posture, painted into a body
(`phantom.paint`), and cast as a pair of cone-beam films. Real CTs are cast as they are.

    python -m benchmarks.detector.films FOLDER --count 300 SOURCE ...
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from transvert import levels
from transvert.clinical.autofill import usual_spacing
from transvert.data.manifest import Subject
from transvert.data.subjects import find_subjects, load_subject, merge_levels, read_subject_mask, read_surfaces
from transvert.drr import geometry
from transvert.drr.geometry import VIEWS, View
from transvert.drr.projector import attenuation, cast
from transvert.imaging import masks, mesh
from transvert.imaging.volume import Volume
from transvert.io import InputError, atomic_path
from transvert.phantom import column, paint
from transvert.phantom.column import Bone
from transvert.progress import progress_bar

PIXEL_MM = 1.5  # In the patient's plane.
PAINT_MM = 1.0  # Coarser, the thin shells of the bodies fade, and with them their endplates.


@dataclass(frozen=True)
class Films:
    """A pair of films: ray integrals (rows, columns) float16, views, isocentre (3,), and body centres, level to (3,) RAS mm."""

    pictures: tuple[np.ndarray, np.ndarray]
    views: tuple[View, View]
    isocentre: np.ndarray
    centres: dict[int, np.ndarray]


def read_bones(subject: Subject) -> list[Bone]:
    """The whole vertebrae of a subject's mask or surfaces, head to tail."""
    if subject.mask is not None:
        mask = read_subject_mask(subject)
    else:
        mask = merge_levels({n: mesh.voxelise(s, 1.0) for n, s in read_surfaces(subject).items()})
    parts = masks.clean_mask(mask).parts
    bones = [column.measure_bone(n, *parts[n], mask) for n in levels.in_order(set(parts))]
    # Without a gap: a chain needs each level's neighbour.
    runs, last = [], None
    for bone in bones:
        place = levels.place(bone.level)
        if last is None or place - last > 1:
            runs.append([])
        runs[-1].append(bone)
        last = place
    return max(runs, key=len) if runs else []


def join_people(people: Sequence[list[Bone]], random: np.random.Generator) -> list[Bone]:
    """One person's vertebrae, continued up and down by those of others as far as anyone goes, scaled to the first."""
    sizes = np.array([len(p) for p in people], float)
    chain = list(people[random.choice(len(people), p=sizes / sizes.sum())])
    for up in (True, False):
        while True:
            end = chain[0] if up else chain[-1]
            wanted = levels.neighbour(column.USUAL[:-1], end.level, -1 if up else 1)
            others = [p for p in people if any(b.level == wanted for b in p)]
            if wanted is None or not others:
                break
            other = others[random.integers(len(others))]
            at = next(i for i, b in enumerate(other) if b.level == wanted)
            piece = other[: at + 1] if up else other[at:]
            piece = piece[-int(random.integers(3, 12)) :] if up else piece[: int(random.integers(3, 12))]
            ratio = _size(chain) / _size(piece)
            pair = (wanted, end.level) if up else (end.level, wanted)
            step = usual_spacing().mean[pair] * _relative_height(chain)
            joint = end.centre - step if up else end.centre + step
            start = piece[-1] if up else piece[0]
            moved = [_scale(b, ratio, start.centre, joint) for b in piece]
            chain = moved + chain if up else chain + moved
    return chain


def _size(bones: Sequence[Bone]) -> float:
    sizes = [b.half_mm[1] / column.HALF_DEPTH_MM[int(levels.place(b.level))] for b in bones if b.level > 2]
    return float(np.median(sizes or [1.0]))


def _relative_height(bones: Sequence[Bone]) -> float:
    """A person's steps from level to level relative to the usual ones."""
    pairs = [(a, b) for a, b in itertools.pairwise(bones) if (a.level, b.level) in usual_spacing().mean]
    ratios = [
        np.linalg.norm(b.centre - a.centre) / np.linalg.norm(usual_spacing().mean[a.level, b.level]) for a, b in pairs
    ]
    return float(np.clip(np.median(ratios or [1.0]), 0.8, 1.2))


def _scale(bone: Bone, ratio: float, origin: np.ndarray, target: np.ndarray) -> Bone:
    motion = np.diag([ratio] * 3 + [1.0])
    motion[:3, 3] = target - ratio * origin
    return _move(bone, motion, ratio)


def _move(bone: Bone, motion: np.ndarray, ratio: float = 1.0) -> Bone:
    centre = motion[:3, :3] @ bone.centre + motion[:3, 3]
    return replace(
        bone, part=replace(bone.part, affine=motion @ bone.part.affine), centre=centre, half_mm=bone.half_mm * ratio
    )


def bend(bones: Sequence[Bone], random: np.random.Generator) -> list[Bone]:
    """The vertebrae in another posture: each turns with the curve, and distances along it stay.

    Coronal curves: none, or one to three bends with Cobb angles up to 60 degrees and axial rotation. Sagittal curves change by
    up to 20 degrees a region.
    """
    places = np.array([levels.place(b.level) for b in bones])
    coronal = random.normal(0, 2) + np.zeros(len(bones))
    rotation = np.zeros(len(bones))
    if random.random() < 0.5:
        for _ in range(random.integers(1, 4)):
            apex, reach, cobb = random.uniform(8, 23), random.uniform(2.5, 6), random.uniform(-60, 60) * random.random()
            inside = np.clip((places - apex) / reach, -1, 1)
            coronal += cobb / 2 * np.sin(inside * np.pi / 2)
            rotation += 0.4 * cobb * np.exp(-(inside**2) * 3)
    knots = np.array([0.0, 4.0, 8.0, 13.0, 18.0, 21.0, 24.0])
    sagittal = np.interp(places, knots, random.normal(0, 9, len(knots)).clip(-20, 20))
    angles = np.stack([sagittal - sagittal.mean(), coronal, rotation + random.normal(0, 2)], axis=1)
    # About x (nodding forward is negative), y and z.
    turns = Rotation.from_euler("xyz", angles * [-1, 1, 1], degrees=True).as_matrix()
    moved, at = [], bones[0].centre
    for i, bone in enumerate(bones):
        if i:
            middle = Rotation.from_matrix(turns[i - 1 : i + 1]).mean().as_matrix()
            at = at + middle @ (bone.centre - bones[i - 1].centre)
        motion = np.eye(4)
        motion[:3, :3] = turns[i]
        motion[:3, 3] = at - turns[i] @ bone.centre
        moved.append(_move(bone, motion))
    return moved


def label_bones(bones: Sequence[Bone], spacing_mm: float) -> Volume:
    """The bones on one grid, axis-aligned, uint8."""
    corners = np.concatenate([b.part.corners() for b in bones])
    low = np.floor(corners.min(0)) - 3
    shape = (np.ceil((corners.max(0) - low) / spacing_mm) + 4).astype(int)
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = low
    made = Volume(np.zeros(shape, np.uint8), affine)
    for bone in bones:
        ends = made.index(bone.part.corners())
        first, last = np.floor(ends.min(0)).astype(int), np.ceil(ends.max(0)).astype(int) + 1
        mapping = np.linalg.inv(bone.part.affine) @ affine
        start = mapping[:3, :3] @ first + mapping[:3, 3]
        share = ndimage.affine_transform(
            bone.part.data.astype(np.float32), mapping[:3, :3], start, tuple(last - first), order=1
        )
        block = made.data[tuple(slice(a, b) for a, b in zip(first, last, strict=True))]
        block[(share > 0.5) & (block == 0)] = bone.level
    return made


def paint_person(bones: Sequence[Bone], seed: int, margin_mm: float) -> tuple[Volume, dict[int, np.ndarray]]:
    """A painted body, and the body centres of its vertebrae, copies included."""
    random = np.random.default_rng(seed)
    drawn = column.build_column(label_bones(bones, PAINT_MM), random, margin_mm + column.BEYOND_MM)
    hu = paint.paint_column(drawn, random, PAINT_MM, margin_mm)
    whole = [b for b in drawn.bones if b.level != column.SACRUM or not b.copied]
    first_sacrum = next((b for b in drawn.bones if b.level == column.SACRUM), None)
    centres = {b.level: b.centre for b in whole if b.level != column.SACRUM}
    if first_sacrum is not None:
        centres[column.SACRUM] = first_sacrum.centre
    own = {b.level: b.centre for b in bones}  # Exact, not measured again.
    return hu, centres | own


def cast_pair(hu: Volume, centres: dict[int, np.ndarray], random: np.random.Generator) -> Films:
    """Both films of a body: cone-beam, from usual distances, the patient turned by a few degrees."""
    mu, corners = Volume(attenuation(hu.data), hu.affine), hu.corners()
    distance = float(random.uniform(1100, 2500))
    options = {"source_to_detector_mm": distance + 300, "source_to_isocentre_mm": distance, "cone": True}
    turn = float(random.normal(0, 4))
    names = (("ap", "pa")[random.integers(2)], ("left_lateral", "right_lateral")[random.integers(2)])
    views = [
        geometry.covering_view(
            name,
            corners,
            PIXEL_MM * (distance + 300) / distance,
            turn_deg=turn + float(random.normal(0, 2)),
            **options,
        )
        for name in names
    ]
    pictures = [cast(mu, view).astype(np.float16) for view in views]
    inside = {
        n: at
        for n, at in centres.items()
        if all(((p := v.project(at)) >= 4).all() and (p < np.array(v.shape) - 4).all() for v in views)
        and hu.corners()[:, 2].min() + 8 < at[2] < hu.corners()[:, 2].max() - 8
    }
    return Films((pictures[0], pictures[1]), (views[0], views[1]), (corners.min(0) + corners.max(0)) / 2, inside)


def write_films(path: Path, films: Films) -> None:
    """One compressed numpy file without pickles."""
    arrays = {f"picture_{w}": p for w, p in zip(VIEWS, films.pictures, strict=True)}
    for which, view in zip(VIEWS, films.views, strict=True):
        rows = [view.corner, view.row_step, view.column_step, view.direction, view.source]
        arrays[f"view_{which}"], arrays[f"name_{which}"] = np.array(rows), np.array(view.name)
    arrays |= {"isocentre": films.isocentre, "levels": np.array(list(films.centres), int)}
    arrays["centres"] = np.array(list(films.centres.values()))
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_films(path: Path) -> Films:
    """The inverse of `write_films`."""
    with np.load(path, allow_pickle=False) as stored:
        pictures = stored["picture_ap"], stored["picture_lateral"]
        views = []
        for which, picture in zip(VIEWS, pictures, strict=True):
            corner, row, col, direction, source = stored[f"view_{which}"]
            views.append(View(str(stored[f"name_{which}"]), picture.shape, corner, row, col, direction, source))
        centres = dict(zip(stored["levels"].tolist(), stored["centres"], strict=True))
        return Films(pictures, (views[0], views[1]), stored["isocentre"], centres)


def draw_films(people: Sequence[list[Bone]], seed: int, *, joined: bool = True) -> Films:
    """A pair of films of a new person from the bones of people; of one of them alone if not `joined`."""
    random = np.random.default_rng(seed)
    for _ in range(20):
        if joined:
            bones = join_people(people, random)
            # Most films show a part of the spine.
            count = int(random.integers(8, 25))
            first = int(random.integers(0, max(1, len(bones) - count + 1)))
            bones = bones[first : first + count] if random.random() < 0.7 else bones
        else:
            bones = list(people[random.integers(len(people))])
        try:
            hu, centres = paint_person(bend(bones, random), int(random.integers(2**31)), float(random.uniform(40, 170)))
        except InputError:
            continue  # A posture in which vertebrae pass each other.
        return cast_pair(hu, centres, random)
    raise InputError("No posture could be drawn.")


def cast_ct(subject: Subject, seed: int) -> Films:
    """A pair of films of a real CT, cut to its whole vertebrae: no film shows one that has no label."""
    ct, mask, _ = load_subject(subject, seed=seed)
    parts = masks.clean_mask(mask).parts
    centres = {n: column.measure_bone(n, *parts[n], mask).centre for n in parts}
    ends = [at[2] for at in centres.values()]
    height = ct.affine[2, 3] + ct.affine[2, 2] * np.arange(ct.data.shape[2])
    inside = np.flatnonzero((height > min(ends) - 14) & (height < max(ends) + 14))
    affine = ct.affine.copy()
    affine[:3, 3] += affine[:3, 2] * inside[0]
    cut = Volume(np.ascontiguousarray(ct.data[..., inside[0] : inside[-1] + 1]), affine)
    return cast_pair(cut, centres, np.random.default_rng(seed))


def main() -> None:
    """Writes films."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--alone", action="store_true", help="each film of one person's vertebrae alone")
    parser.add_argument("--without", nargs="*", default=[], help="subjects to leave out")
    parser.add_argument("--cts", type=int, default=0, help="films of each real CT")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    found = [s for s in find_subjects(asked.sources) if s.name not in asked.without and not s.problem]
    people = [bones for s in found if len(bones := read_bones(s)) >= (4 if asked.alone else 1)]
    for n in progress_bar(range(asked.count), "films"):
        path = asked.folder / f"{n:05d}.npz"
        if not path.exists():
            write_films(path, draw_films(people, n, joined=not asked.alone))
    for subject, n in itertools.product([s for s in found if s.ct is not None], range(asked.cts)):
        write_films(asked.folder / f"{subject.name}-{n}.npz", cast_ct(subject, n))


if __name__ == "__main__":
    main()
