"""Stacks bones from the lowest up into a given posture.

The distance between the endplate centres of neighbours is that of the reference pose. Levels missing between C7 and L5 are
replaced by virtual bodies of typical height, so that the sagittal vertical axis is defined. Where a posture pushes two bones
into each other, the upper one is moved by the smallest shift that frees it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq

from benchmarks.standing_phantom import reference_pose
from benchmarks.standing_phantom.curve import Curve
from benchmarks.standing_phantom.reference_pose import Bone
from transvert import levels
from transvert.clinical.endplates import Endplates
from transvert.clinical.vertebra import unit
from transvert.io import InputError
from transvert.phantom import column

C3, C7, T4, T12, L1, L5 = 3, 7, 11, 19, 20, 24

GAZE_DEG = 8.0
"""Forward tilt of C3."""
VIRTUAL_BODY_MM = {"C": 14.0, "T": 20.0, "L": 27.0}
"""Height of a virtual body, by region."""
HALF_CLOSED_MM = 1.0
"""Least height of a disc at its rim."""
TOUCH_MM = 1.0
"""Bones that touch in a CT's mask overlap by this at most: one voxel of the phantom."""
FARTHEST_SHIFT_MM = 6.0
"""Largest shift of a bone away from the next one."""
_MISSED_DEG, _ROUNDS = 1e-6, 30  # Tolerance of the angles, and most rounds to reach it.
_LEANS_DEG = (-55.0, 15.0)
"""Range of the tilt of L1's superior endplate; positive is forward."""


def _shifts() -> np.ndarray:
    """(N, 3) mm right, forward and up, shortest first: at most 2 mm sideways, never down."""
    steps = np.arange(-FARTHEST_SHIFT_MM, FARTHEST_SHIFT_MM + 1)
    shifts = np.array(list(itertools.product(steps[np.abs(steps) <= 2], steps, steps[steps >= 0])))
    lengths = np.linalg.norm(shifts, axis=1)
    return np.asarray(shifts[np.argsort(lengths, kind="stable")][: (lengths <= FARTHEST_SHIFT_MM).sum()])


_SHIFTS = _shifts()


@dataclass(frozen=True)
class Stance:
    """Where the bones stand.

    Attributes:
        motions: level to (4, 4), rigid, from the reference pose to the standing one, RAS mm.
        plates: level to its standing endplates; not for C1 and C2.
        rotations_deg: level to its axial rotation, positive to the left, as `clinical.vertebra` defines it.
        s1: "anterior", "posterior", "right" and "left" end of the virtual upper endplate of S1: (3,) RAS mm.
        shifts_mm: level to (3,) the shift right, forward and up away from the bone below.
    """

    motions: dict[int, np.ndarray]
    plates: dict[int, Endplates]
    rotations_deg: dict[int, float]
    s1: dict[str, np.ndarray]
    shifts_mm: dict[int, np.ndarray]


def stand(bones: Sequence[Bone], curve: Curve) -> Stance:
    """Moves bones into a posture.

    Sagittal tilts change by a smooth function of the level, so each disc keeps its own wedge up to a smooth part. Coronal
    tilts and axial rotations follow smooth curves. The angles of the posture are reached exactly.

    Args:
        bones: in the reference pose, each level once; C1 and C2 move with C3.
        curve: the posture.

    Raises:
        InputError: no bone with endplates, or the bones overlap in this posture.
    """
    chain = _Chain(bones, curve)
    # Separating bones changes the sagittal vertical axis a little, so both steps are repeated.
    for _ in range(2):
        chain.lean(curve.plumb_mm)
        chain.part()
    chain.lean(curve.plumb_mm)
    return chain.stance()


class _Link:
    """One level of the chain, with its endplates in its own axes, relative to the middle of its body."""

    def __init__(self, level: int, bone: Bone | None):
        self.level, self.bone = level, bone
        self.tilt = 0.0  # At rest, sagittal, degrees.
        if bone is None:
            half = np.array([0.0, 0.0, VIRTUAL_BODY_MM[levels.region(level)] / 2])
            up = np.array([0.0, 0.0, 1.0])
            depth = 2 * float(column.HALF_DEPTH_MM[int(levels.place(level))])
            self.plates = Endplates(np.zeros(3), half, up, -half, up, depth, 1.2 * depth, *[2 * half[2]] * 3)
        else:
            assert bone.plates is not None and bone.axes is not None
            home = np.eye(4)
            home[:3, :3] = bone.axes.T
            home[:3, 3] = -bone.axes.T @ bone.plates.body_centre
            self.plates = reference_pose.move_plates(bone.plates, home)
            self.tilt = float(tilts_deg(bone.axes[:, 2])[1])
        self.turn = np.eye(3)
        self.place = np.zeros(3)

    def plates_there(self) -> Endplates:
        """The endplates in the present pose."""
        motion = np.eye(4)
        motion[:3, :3], motion[:3, 3] = self.turn, self.place
        return reference_pose.move_plates(self.plates, motion)


class _Chain:
    """The links from head to tail. `lean` and `part` move them into the posture."""

    def __init__(self, bones: Sequence[Bone], curve: Curve):
        known = {bone.level: bone for bone in bones if bone.plates is not None}
        self.curve, self.bones = curve, bones
        if not known:
            raise InputError("There is no vertebra with endplates: include vertebrae below C2.")
        if len(known) + sum(bone.plates is None for bone in bones) != len(bones):
            raise InputError("A level occurs twice; include each level once.")
        whole = [n for n in column.USUAL if levels.place(C7) <= levels.place(n) <= levels.place(L5)]
        self.links = [_Link(n, known.get(n)) for n in levels.in_order({*whole, *known})]
        self.at = {link.level: i for i, link in enumerate(self.links)}
        held = [i for i, link in enumerate(self.links) if link.bone]
        # The reference tilt of a virtual level is interpolated between its neighbours.
        tilts = np.interp(range(len(self.links)), held, [self.links[i].tilt for i in held])
        for link, tilt in zip(self.links, tilts, strict=True):
            link.tilt = float(tilt)
        self.gaps = [_gap(upper, lower) for upper, lower in itertools.pairwise(self.links)]
        self.shifts = np.zeros((len(self.gaps), 3))

    def lean(self, plumb_mm: float) -> None:
        """Turns and places all links so that the sagittal vertical axis is as given."""

        def beyond(lean_deg: float) -> float:
            self._turn(lean_deg)
            self._place()
            return float(self.links[self.at[C7]].place[1] - self._s1()["posterior"][1] - plumb_mm)

        try:
            lean_deg = brentq(beyond, *_LEANS_DEG, xtol=1e-6)
        except ValueError:
            raise InputError(f"C7 cannot stand {plumb_mm:.0f} mm in front of S1 with these bones.") from None
        self._turn(lean_deg)
        self._place()

    def part(self) -> None:
        """Separates overlapping bones, from the lowest up."""
        for i in reversed(range(len(self.gaps))):
            upper, lower = self.links[i], self.links[i + 1]
            if upper.bone and lower.bone:
                self.shifts[i] = self._least_shift(i)
        self._place()

    def stance(self) -> Stance:
        """The present pose of all bones."""
        motions, plates, rotations = {}, {}, {}
        for link in self.links:
            if link.bone is not None:
                motions[link.level] = _motion_of(link)
                plates[link.level] = link.plates_there()
                right = link.turn[:, 0]
                rotations[link.level] = float(np.degrees(np.arctan2(right[1], right[0])))
        highest = motions[levels.in_order(set(motions))[0]]
        motions |= {bone.level: highest for bone in self.bones if bone.plates is None}
        moved = {self.links[i].level: shift for i, shift in enumerate(self.shifts) if shift.any()}
        return Stance({n: motions[n] for n in levels.in_order(set(motions))}, plates, rotations, self._s1(), moved)

    def _turn(self, lean_deg: float) -> None:
        """Sets the orientation of each link; `lean_deg` is the tilt of L1's superior endplate."""
        curve, last = self.curve, len(self.links) - 1
        to_right = 1.0 if curve.convexity == "right" else -1.0
        apex = (self.at[curve.upper] + self.at[curve.lower]) // 2
        known = {0, self.at[curve.upper], apex, self.at[curve.lower], last}
        rotation = _smooth({i: -to_right * curve.rotation_deg * (i == apex) for i in known}, last)
        # Given tilts of endplates: place in the chain, axis, superior or not, degrees. Above its apex a curve tilts away
        # from its convex side.
        lowest = lean_deg + curve.lordosis_deg
        stated = [
            (self.at[L1], 1, True, lean_deg),
            (self.at[L5], 1, False, lowest),
            (self.at[curve.upper], 0, True, -to_right * curve.cobb_deg / 2),
            (self.at[curve.lower], 0, False, to_right * curve.cobb_deg / 2),
        ]
        coronal = dict.fromkeys((0, self.at[curve.upper], self.at[curve.lower], last), 0.0)
        change = dict.fromkeys((self.at[n] for n in (C3, C7, T4, T12, L1, L5) if n in self.at), 0.0)
        for _ in range(_ROUNDS):
            # The disc below T12 keeps its wedge, T4 follows from T12, and the neck moves with T4.
            change[self.at[T12]] = change[self.at[L1]]
            change[self.at[C7]] = change[self.at[T4]]
            if C3 in self.at:
                change[self.at[C3]] = GAZE_DEG - self.links[self.at[C3]].tilt
            for link, *leans in zip(self.links, _smooth(coronal, last), _smooth(change, last), rotation, strict=True):
                link.turn = attitude(leans[0], link.tilt + leans[1], leans[2])
            t12 = self._tilt(self.at[T12], 1, superior=False)
            farthest = 0.0
            for i, axis, superior, wanted in [*stated, (self.at[T4], 1, True, t12 + curve.kyphosis_deg)]:
                missed = wanted - self._tilt(i, axis, superior=superior)
                (coronal, change)[axis][i] += missed
                farthest = max(farthest, abs(missed))
            if farthest < _MISSED_DEG:
                break

    def _tilt(self, i: int, axis: int, *, superior: bool) -> float:
        plates = self.links[i].plates
        return float(
            tilts_deg(self.links[i].turn @ (plates.superior_normal if superior else plates.inferior_normal))[axis]
        )

    def _place(self) -> None:
        """Stacks the links from the lowest up."""
        self.links[-1].place = np.zeros(3)
        for i in reversed(range(len(self.gaps))):
            self.links[i].place = self._above(i, self.shifts[i])

    def _above(self, i: int, shift: np.ndarray) -> np.ndarray:
        """(3,) the place of the body of link `i`, from its gap to the next and a shift (3,) in the disc's axes."""
        upper, lower = self.links[i], self.links[i + 1]
        below, disc = lower.plates_there(), _disc_axes(upper, lower)
        gap = self.gaps[i] + shift
        half = (upper.plates.depth_mm + lower.plates.depth_mm) / 4
        wedge = np.arccos(np.clip((upper.turn @ upper.plates.inferior_normal) @ below.superior_normal, -1, 1))
        gap[2] = max(gap[2], HALF_CLOSED_MM + half * np.tan(wedge))
        return np.asarray(below.superior_centre + disc @ gap - upper.turn @ upper.plates.inferior_centre)

    def _least_shift(self, i: int) -> np.ndarray:
        """(3,) mm right, forward and up, the smallest shift that frees bone `i` from the next one."""
        upper, lower = self.links[i], self.links[i + 1]
        assert upper.bone and lower.bone
        away = np.linalg.inv(_motion_of(lower))
        for shift in _SHIFTS:
            upper.place = self._above(i, shift)
            if reference_pose.penetration_mm(upper.bone, lower.bone, away @ _motion_of(upper)) <= TOUCH_MM:
                return np.asarray(shift)
        raise InputError(
            f"{levels.name(upper.level)} overlaps {levels.name(lower.level)} in this posture; draw another curve."
        )

    def _s1(self) -> dict[str, np.ndarray]:
        """The ends of S1's endplate, of the size of the lowest body's."""
        lowest = self.links[-1]
        plates, wedge = lowest.plates_there(), self.curve.sacral_disc_deg
        coronal, sagittal = tilts_deg(plates.inferior_normal)
        right, front, up = attitude(coronal, sagittal + wedge, 0.0).T
        height = max(float(np.mean(column.DISC_MM["L"])), plates.depth_mm / 2 * np.tan(np.radians(wedge)))
        middle = plates.inferior_centre - height * unit(plates.inferior_normal + up)
        ends = {"anterior": plates.depth_mm * front, "right": plates.width_mm * right}
        ends |= {"posterior": -ends["anterior"], "left": -ends["right"]}
        return {name: middle + end / 2 for name, end in ends.items()}


def attitude(coronal_deg: float, sagittal_deg: float, rotation_deg: float) -> np.ndarray:
    """(3, 3) rotation: the axes right, front and up of a vertebra with these tilts.

    Args:
        coronal_deg: tilt of its up axis to the patient's right.
        sagittal_deg: tilt of its up axis to the front.
        rotation_deg: axial rotation, positive from right to front.
    """
    coronal, sagittal, rotation = np.radians([coronal_deg, sagittal_deg, rotation_deg])
    up = unit(np.array([np.tan(coronal), np.tan(sagittal), 1.0]))
    level = np.array([np.cos(rotation), np.sin(rotation), 0.0])
    right = unit(level - [0.0, 0.0, (level @ up) / up[2]])
    return np.stack([right, np.cross(up, right), up], axis=1)


def _gap(upper: _Link, lower: _Link) -> np.ndarray:
    """(3,) mm right, front and up, from the lower link's superior to the upper link's inferior endplate, in the reference pose."""
    region = levels.region(upper.level)
    if upper.bone is None or lower.bone is None:
        return np.array([0.0, 0.0, np.mean(column.DISC_MM[region])])
    above, below = upper.bone.plates, lower.bone.plates
    assert above and below and upper.bone.axes is not None and lower.bone.axes is not None
    up, ahead = above.inferior_normal + below.superior_normal, upper.bone.axes[:, 1] + lower.bone.axes[:, 1]
    return np.asarray(_axes(up, ahead).T @ (above.inferior_centre - below.superior_centre))


def _disc_axes(upper: _Link, lower: _Link) -> np.ndarray:
    """(3, 3) right, front and up of the disc between two links."""
    up = upper.turn @ upper.plates.inferior_normal + lower.turn @ lower.plates.superior_normal
    return _axes(up, upper.turn[:, 1] + lower.turn[:, 1])


def _axes(up: np.ndarray, ahead: np.ndarray) -> np.ndarray:
    up = unit(up)
    front = unit(ahead - (ahead @ up) * up)
    return np.stack([np.cross(front, up), front, up], axis=1)


def _motion_of(link: _Link) -> np.ndarray:
    """(4, 4) motion of the link's bone from the reference pose."""
    bone = link.bone
    assert bone and bone.plates and bone.axes is not None
    motion = np.eye(4)
    motion[:3, :3] = link.turn @ bone.axes.T
    motion[:3, 3] = link.place - motion[:3, :3] @ bone.plates.body_centre
    return motion


def tilts_deg(normal: np.ndarray) -> np.ndarray:
    """(2,) tilt of a normal to the right (coronal) and to the front (sagittal), degrees."""
    return np.degrees(np.arctan2(normal[:2], normal[2]))


def _smooth(known: Mapping[int, float], last: int) -> np.ndarray:
    """Monotone interpolation of known values at places 0 to `last`, constant beyond the outermost."""
    places = sorted(known)
    curve = PchipInterpolator(places, [known[i] for i in places])
    return np.asarray(curve(np.clip(np.arange(last + 1), places[0], places[-1])))
