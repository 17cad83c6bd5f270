"""Which way surfaces of vertebrae face, where nobody has stated it: from their shape alone.

The rule:

- *Up and down* run through the canal: the direction in which one sees the largest hole through a vertebra.
- *The front* is where the bone is thick: from the canal's middle to the body's.
- *Up*, of several vertebrae, is from the lower level to the higher one. Of one, the body stands higher than what lies
  behind the canal, and the pedicles leave it at its upper half.
- *Right* follows from the other two, since files are right-handed. A vertebra mirrors itself, so a file that was mirrored
  can't be told from one that was not: its patient's left and right stay exchanged.

A file's axes are taken to run along the body's, exchanged or reversed at most. Where the rule gives no clear answer the
surfaces are refused. Of several vertebrae in one file the same shapes tell which end of the row is the upper one. The thresholds are this companion's choice, tried on 52 vertebrae from C1 to L5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from transvert import levels
from transvert.imaging import mesh
from transvert.imaging.volume import Volume
from transvert.io import InputError
from transvert.phantom.column import _GRID_MM, FARTHEST_TURN_DEG, Pose, find_pose

if TYPE_CHECKING:
    import trimesh

UNSTATED = "unstated"
LONGEST_SIDE_MM = {"C": (32.0, 110.0), "T": (38.0, 115.0), "L": (45.0, 145.0)}
"""The longest side of a vertebra's box, by region, from a child's to a large man's."""
LEAST_UP_MM = 2.0
LEAST_PITCH_MM = 6.0
"""Below these the canal, the front, the upper side, and the distance of one level to the next can't be told."""
_LETTERS = np.array([["r", "l"], ["a", "p"], ["s", "i"]])


@dataclass(frozen=True)
class Surface:
    """A file of one vertebra's surface, or of several that are pieces of it.

    Attributes:
        path: of a file that `mesh.read_surface` reads.
        unit: a key of `mesh.UNITS_MM`, or "unstated".
        frame: where the file's axes point, as in `mesh.read_surface`, or "unstated".
    """

    path: Path
    unit: str = UNSTATED
    frame: str = UNSTATED


def read_surfaces(files: Mapping[int, Surface]) -> dict[int, trimesh.Trimesh]:
    """Reads a subject's surfaces and brings them to RAS mm.

    Args:
        files: level to file; the sacrum may be among them, and follows the vertebrae. Files without a stated frame share
            one. Levels that share a file are its largest pieces, from the head down (`mesh.largest_pieces`).

    Returns:
        Level to surface, RAS mm.

    Raises:
        InputError: as `mesh.read_surface` and `mesh.largest_pieces`; a unit, a frame or an order that can't be told; or
            shapes that contradict a stated unit or frame.
    """
    bones = [level for level in files if level in levels.VERTEBRAE]
    if not bones and any(UNSTATED in (file.unit, file.frame) for file in files.values()):
        raise InputError("A surface without a unit or a frame needs a vertebra beside it; state both.")
    together: dict[Surface, list[int]] = {}
    for level in levels.in_order(set(files)):
        together.setdefault(files[level], []).append(level)
    found: dict[int, trimesh.Trimesh] = {}
    poses: dict[int, Pose | None] = {}
    for file, shown in together.items():
        whole = mesh.read_surface(file.path)
        if len(shown) == 1:
            found[shown[0]] = whole
        else:
            pieces = mesh.largest_pieces(whole, len(shown), file.path.name)
            for level, (piece, pose) in zip(shown, _from_head(pieces, file, shown), strict=True):
                found[level], poses[level] = piece, pose
    units = {}
    for level in bones:
        file = files[level]
        units[level] = find_unit(float(found[level].extents.max()), level, file.path.name)
        if file.unit not in (UNSTATED, units[level]):
            raise InputError(
                f"{file.path.name} is stated in {file.unit}, but only in {units[level]} is it as large as "
                f"{levels.name(level)}; correct the unit."
            )
    common = next(iter(units.values()), UNSTATED)
    units = {level: units.get(level, common if file.unit == UNSTATED else file.unit) for level, file in files.items()}
    for level in bones:
        if level not in poses:
            poses[level] = find_pose(_solid(found[level], units[level]))
    unstated = {level: poses[level] for level in bones if files[level].frame == UNSTATED}
    frame = _frame_of(unstated) if unstated else "ras"
    frames = {level: frame if file.frame == UNSTATED else file.frame for level, file in files.items()}
    for level in set(bones) - set(unstated):
        pose, turn = poses[level], mesh.axes_to_ras(frames[level])
        if pose is not None and (abs(turn[2] @ pose.canal) < 0.5 or turn[1] @ pose.front < 0.5):
            raise InputError(
                f"{files[level].path.name} is stated in the frame {files[level].frame.upper()}, but there "
                f"{levels.name(level)} does not look ahead; correct the frame."
            )
    return {level: mesh.surface_to_ras(found[level], units[level], frames[level]) for level in files}


def _solid(surface: trimesh.Trimesh, unit: str) -> Volume:
    return mesh.voxelise(mesh.surface_to_ras(surface, unit, "ras"), _GRID_MM)


def _from_head(
    pieces: Sequence[trimesh.Trimesh], file: Surface, shown: Sequence[int]
) -> list[tuple[trimesh.Trimesh, Pose | None]]:
    """The pieces of a file from the head down, and their poses along the file's axes.

    They stand in a row along the stated frame's vertical, or else along their own longest line, whose upper end the shapes
    tell as in `find_frame`.
    """
    name, lowest = file.path.name, [level for level in shown if level in levels.VERTEBRAE][-1]
    unit = find_unit(float(max(piece.extents.max() for piece in pieces)), lowest, name)
    centres = np.array([piece.center_mass for piece in pieces]) * mesh.UNITS_MM[unit]
    stated = file.frame != UNSTATED
    up = mesh.axes_to_ras(file.frame)[2] if stated else np.linalg.svd(centres - centres.mean(0))[2][0]
    heights = centres @ up
    if np.diff(np.sort(heights)).min() < LEAST_PITCH_MM:
        raise InputError(
            f"The {len(pieces)} vertebrae of {name} don't stand one above the other, so their order can't be told; correct "
            "its frame, or give each a file."
        )
    poses = [find_pose(_solid(piece, unit)) for piece in pieces]
    vote = float(np.mean([np.sign(pose.canal @ up) * pose.up_mm for pose in poses if pose is not None] or [0.0]))
    if stated and vote < -LEAST_UP_MM:
        raise InputError(
            f"{name} is stated in the frame {file.frame.upper()}, but there its vertebrae stand on their heads; correct "
            "the frame."
        )
    if not stated and abs(vote) < LEAST_UP_MM:
        raise InputError(f"The vertebrae of {name} don't show which side of them is up; state the frame.")
    order = np.argsort(heights if not stated and vote < 0 else -heights)
    return [(pieces[place], poses[place]) for place in order]


def find_unit(longest_side: float, level: int, name: str) -> str:
    """The unit in which a surface is as large as its vertebra can be.

    Args:
        longest_side: of the surface's box, in the file's unit.
        level: VerSe number.
        name: of the file, for the message.

    Returns:
        A key of `mesh.UNITS_MM`.

    Raises:
        InputError: it fits in no unit.
    """
    low, high = LONGEST_SIDE_MM[levels.region(level)]
    for unit, scale in mesh.UNITS_MM.items():
        if low <= longest_side * scale <= high:
            return unit
    raise InputError(
        f"{name} is {longest_side:.3g} long, which is no {levels.name(level)} in {', '.join(mesh.UNITS_MM)} "
        f"({low:g} to {high:g} mm); check its level and its unit."
    )


def find_frame(bones: Mapping[int, Volume]) -> str:
    """The frame that vertebrae stand in.

    Args:
        bones: level to bone, 0 and 1, at least one; RAS mm as if the file's axes pointed there.

    Returns:
        Where the file's axes point, right-handed, such as "lps".

    Raises:
        InputError: the rule of this module gives no clear answer.
    """
    return _frame_of({level: find_pose(bone) for level, bone in bones.items()})


def _frame_of(found: Mapping[int, Pose | None]) -> str:
    """As `find_frame`, from the poses of the vertebrae."""
    names = levels.in_order(list(found))
    told = levels.name(names[0]) if len(names) == 1 else f"{levels.name(names[0])} to {levels.name(names[-1])}"
    poses = []
    for level in names:
        pose = found[level]
        if pose is None:
            raise InputError(
                f"No canal with a body before it goes through the surface of {levels.name(level)}, so its frame can't be "
                "told; state the frame."
            )
        poses.append(pose)
    signs = _signs(poses, told)
    up = np.sum([sign * pose.canal for sign, pose in zip(signs, poses, strict=True)], axis=0)
    front = np.sum([pose.front for pose in poses], axis=0)
    front, up = _nearest_axis(front, told), _nearest_axis(up, told)
    if np.abs(front) @ np.abs(up) > 0.5:
        raise InputError(f"The canal and the front of {told} point the same way; state the frame of the surfaces.")
    letters = np.empty(3, dtype="<U1")
    for vector, names_of in zip((np.cross(front, up), front, up), _LETTERS, strict=True):
        letters[np.abs(vector).argmax()] = names_of[0 if vector.sum() > 0 else 1]
    return "".join(letters)


def _signs(poses: list[Pose], told: str) -> np.ndarray:
    """(N,) 1 or -1: which way along each vertebra's canal is up; the poses stand in order from head to tail."""
    votes = np.array([pose.up_mm for pose in poses])
    if len(poses) == 1:
        if abs(votes[0]) < LEAST_UP_MM:
            raise InputError(f"The surface of {told} doesn't show which side of it is up; state the frame.")
        return np.sign(votes)
    centres = np.array([pose.centre for pose in poses])
    steps = centres[:-1] - centres[1:]
    along = np.array([np.abs(step @ pose.canal) for step, pose in zip(steps, poses[1:], strict=True)])
    upward = centres[0] - centres[-1]
    if (along < LEAST_PITCH_MM).any() or (steps @ upward <= 0).any():
        raise InputError(
            f"The surfaces of {told} don't stand one above the other in their order; check their levels, and that all "
            "share one frame."
        )
    signs = np.sign([pose.canal @ upward for pose in poses])
    if signs @ votes < 0:
        raise InputError(
            f"The surfaces of {told} stand on their heads in the order of their names; check their levels."
        )
    return signs


def _nearest_axis(vector: np.ndarray, told: str) -> np.ndarray:
    """(3,) the file's axis that a direction runs along, with its sign."""
    unit = vector / max(float(np.linalg.norm(vector)), 1e-9)
    axis = int(np.abs(unit).argmax())
    if abs(unit[axis]) < np.cos(np.deg2rad(FARTHEST_TURN_DEG)):
        raise InputError(
            f"{told} stands askew to the axes of its file by more than {FARTHEST_TURN_DEG:g} degrees; turn the surfaces "
            "upright or state the frame."
        )
    return np.sign(unit[axis]) * np.eye(3)[axis]
