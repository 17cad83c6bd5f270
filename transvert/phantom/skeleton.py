"""The bones around a column of vertebrae: ribs with cartilage, breastbone, shoulder girdle, arms, head and pelvis.

Each is a bent tube or an ellipsoid, placed by its level and by the oval of the ribs at its height. Tables and ranges are
this companion's choice, after common anatomy and by eye from one chest CT. Bones end with the canvas.
"""

from __future__ import annotations

import numpy as np

from transvert.imaging.volume import Volume
from transvert.phantom.column import Bone, Column
from transvert.phantom.shapes import ellipsoid, smooth_curve, tube
from transvert.phantom.torso import Torso

# Ranges of compact bone, of the bone inside it, and of the ribs' front ends.
SHELL_HU, CORE_HU, CARTILAGE_HU = (400.0, 900.0), (80.0, 260.0), (70.0, 140.0)
# Positions of the arms: probability; level and lateral mm of the shoulder; from the shoulder to the elbow and to the hand,
# mm outward, forward and up. Arms are up in a CT, except one of the neck, and forward in many standing radiographs.
ARMS = {
    "up": (0.5, (6.9, 148), ((0, 60, 260), (-40, 70, 480))),
    "forward": (0.3, (7.8, 160), ((10, 230, -120), (-20, 440, -40))),
    "down": (0.2, (7.8, 165), ((25, -10, -300), (35, 60, -640))),
}
SHOULDER_SPREAD_MM, ARM_SPREAD_MM = 7.0, 20.0  # Standard deviations of shoulders, and of elbows and hands.
MUSCLE_ARM_MM = (32.0, 46.0)  # Half the thickness of an upper arm.

RIB_HALF_MM = (3.6, 3.6, 6.0)
RIB_SHELL_MM = 1.3
# Angle at which the bone of each rib ends, from the back (0) to the front (180), and its descent from back to front.
_END_DEG = (150, 150, 148, 142, 138, 134, 130, 122, 114, 106, 82, 52)
_FALL_MM = (30, 46, 60, 74, 86, 94, 100, 98, 92, 84, 66, 46)
FALL_SCALE = (0.75, 1.15)  # Range of a person's factor on the descent of the ribs.
_LAST_NECK_LEVEL = 7


def paint_skeleton(canvas: Volume, column: Column, torso: Torso, random: np.random.Generator) -> None:
    """Paints the bones around the column on a canvas that has its soft tissue."""
    shell, core, cartilage = (float(random.uniform(*limits)) for limits in (SHELL_HU, CORE_HU, CARTILAGE_HU))
    fall = float(random.uniform(*FALL_SCALE))
    for bone in column.bones:
        number = bone.level - _LAST_NECK_LEVEL
        if 1 <= number <= len(_FALL_MM):
            for side in (-1, 1):
                path, front = rib(bone, number, side, fall, torso)
                if number <= 10:
                    tube(canvas, front, RIB_HALF_MM, cartilage)
                _bone(canvas, path, RIB_HALF_MM, shell, core)
    at = _Locator(column, torso)
    breastbone = smooth_curve(np.array([at(place, 0, 1.0) for place in (9.2, 11, 13, 14.8)]), 8.0)
    _bone(canvas, breastbone, (17.0, 5.0, 8.0), shell * 0.6, core)
    for side in (-1, 1):
        _shoulder(canvas, at, side, shell, core)
    _arms(canvas, at, shell, core, random)
    _head(canvas, at, shell)
    _pelvis(canvas, at, shell, core)


class _Locator:
    """Converts anatomical positions around a column to RAS mm."""

    def __init__(self, column: Column, torso: Torso):
        self.column, self.torso, self.scale = column, torso, column.scale

    def __call__(
        self, place: float, aside: float, forward: float, mm: tuple[float, float, float] = (0, 0, 0)
    ) -> np.ndarray:
        """(3,) RAS mm of a level, mm to the right, and `forward` from the bodies (0) to the front ribs (1), plus `mm`."""
        z = self.column.height(place)
        middle = self.column.middle(np.array([z]))[0]
        x, y, _, half_depth = self.torso.cage_at(z)
        front = y + half_depth
        point = np.array([x + self.scale * aside, middle[1] + forward * (front - middle[1]), z])
        return point + self.scale * np.array(mm)


def _bone(canvas: Volume, path: np.ndarray, half_mm: tuple[float, float, float], shell: float, core: float) -> None:
    """Paints a tube with a shell around a core."""
    tube(canvas, path, half_mm, shell)
    tube(canvas, path, tuple(np.array(half_mm) - RIB_SHELL_MM), core)


def rib(bone: Bone, number: int, side: int, fall: float, torso: Torso) -> tuple[np.ndarray, np.ndarray]:
    """Paths of the bone and cartilage of rib 1 to 12 of a vertebra, each (N, 3) RAS mm; `side` is 1 on the right, else -1."""
    start = bone.centre + bone.half_mm * [side * 1.1, -0.8, 0.5]
    _, _, half_width, _ = torso.cage_at(start[2])
    first = float(np.arcsin(min(0.8, 38.0 / float(half_width))))
    last, drop = np.deg2rad(_END_DEG[number - 1]), fall * _FALL_MM[number - 1]
    turn = np.linspace(first, last, 12)
    arch = torso.on_cage(side * turn, start[2] - drop * (turn - first) / (last - first))
    onward = np.linspace(last, last + 0.6 * (np.pi - last), 5)
    front = torso.on_cage(side * onward, arch[-1, 2] + np.linspace(0, 0.3 * drop, 5))
    behind = 0.5 * (start + arch[0]) - [0, 3, 0]
    return smooth_curve(np.concatenate([[start, behind], arch]), 6.0), smooth_curve(front, 6.0)


def _shoulder(canvas: Volume, at: _Locator, side: int, shell: float, core: float) -> None:
    """Paints collar bone and shoulder blade."""
    points = [at(9.0, side * 24, 1.0), at(8.6, side * 70, 0.9), at(8.0, side * 115, 0.5), at(7.6, side * 150, 0.1)]
    _bone(canvas, smooth_curve(np.array(points), 7.0), (5.5, 5.5, 5.5), shell, core)
    turn = np.deg2rad(side * 35)
    flat = np.array([[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    blade = at(11.0, side * 98, 0.0, (0, -34, 0))
    ellipsoid(canvas, blade, (40.0, 4.0, 68.0), core + 100, flat)
    ridge = ((9.5, 62, -52), (9.0, 100, -44), (8.2, 150, -12), (7.8, 162, 0))
    path = np.array([at(place, side * aside, 0.0, (0, back, 0)) for place, aside, back in ridge])
    _bone(canvas, smooth_curve(path, 8.0), (5.0, 5.0, 7.0), shell, core)


def _arms(canvas: Volume, at: _Locator, shell: float, core: float, random: np.random.Generator) -> None:
    """Paints the arms."""
    neck = any(bone.level < _LAST_NECK_LEVEL and not bone.copied for bone in at.column.bones)
    shares = np.array([share * (held != "up" or not neck) for held, (share, _, _) in ARMS.items()])
    held = str(random.choice(list(ARMS), p=shares / shares.sum()))
    muscle_mm = float(random.uniform(*MUSCLE_ARM_MM))
    _, (place, aside), onward = ARMS[held]
    for side in (-1, 1):
        shoulder = at(place, side * aside, 0.0) + random.normal(0, SHOULDER_SPREAD_MM, 3)
        joints = shoulder + at.scale * np.array(onward) * [side, 1, 1] + random.normal(0, ARM_SPREAD_MM, (2, 3))
        arm = smooth_curve(np.array([shoulder, *joints]), 25.0)
        tube(canvas, arm, (muscle_mm,) * 3, 50.0)
        _bone(canvas, arm, (11.0, 11.0, 11.0), shell + 200, core - 100)
        ellipsoid(canvas, shoulder, (23.0, 23.0, 23.0), core + 60)


def _head(canvas: Volume, at: _Locator, shell: float) -> None:
    """Paints skull, face and jaw, which overlie the upper neck in a radiograph."""
    crown = at(0.0, 0, 0.0, (0, 18, 92))
    for thickness, hu in ((0.0, shell + 200), (6.0, 35.0)):
        ellipsoid(canvas, crown, (74 - thickness, 94 - thickness, 80 - thickness), hu)
    ellipsoid(canvas, at(0.0, 0, 0.0, (0, 78, 28)), (38.0, 30.0, 34.0), 200.0)
    ellipsoid(canvas, at(0.0, 0, 0.0, (0, 88, 40)), (16.0, 22.0, 22.0), -800.0)
    half_jaw = ((50, 18, 8), (46, 34, -30), (30, 76, -42))
    jaw = [(-a, f, u) for a, f, u in half_jaw] + [(0, 94, -44)] + list(reversed(half_jaw))
    path = np.array([at(0.0, aside, 0.0, (0, front, up)) for aside, front, up in jaw])
    tube(canvas, smooth_curve(path, 8.0), (5.5, 6.0, 12.0), shell)


def _pelvis(canvas: Volume, at: _Locator, shell: float, core: float) -> None:
    """Paints the wings of the hip bones beside the sacrum."""
    for side in (-1, 1):
        turn = np.deg2rad(-side * 40)
        flat = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
        wing = at(24.6, side * 82, 0.0, (0, 6, -14))
        ellipsoid(canvas, wing, (9.0, 62.0, 64.0), shell * 0.7, flat)
        ellipsoid(canvas, wing, (6.0, 58.0, 60.0), core, flat)
