"""Vertebrae placed into one standing spine, their endplates, and the spine's posture.

Sign conventions, with every endplate normal pointing to the head: a sagittal tilt is positive where the normal leans to
the front, a coronal tilt where it leans to the patient's right. Kyphosis is positive for a kyphotic curve, lordosis for
a lordotic one, a wedge where the vertebra is lower at its front. Angles are those that a lateral or an AP film shows, in
the sagittal or the coronal plane. The endplate search is this companion's: planes fitted to the endplates' middle,
where a reader of films draws lines along their rims.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from transvert import levels
from transvert.files import InputError, atomic_path, write_json
from transvert.volume import Volume, cube_affine

SCHEMA = "transvert-posture/1"
THRESHOLD = 0.5
_SHARE = 0.75  # of the body's half-widths: the endplate's middle, without rims, pedicles and uncinate processes
_KEPT = 0.8  # of the columns, by residual, in the trimmed fit
_STEP_MM = 0.5  # along a column
_SAGITTAL, _CORONAL = 1, 0  # the component in which a normal leans
_T4, _T12, _L1, _L5, _C7, _S1 = 11, 19, 20, 24, 7, 26
_TRUNK = levels.VERTEBRAE[7:]  # below the neck, whose small endplates would put noise into a maximum

# Each measure's unit, definition, and the levels it needs.
_MEASURES: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "thoracic_kyphosis": ("deg", "sagittal, superior T4 to inferior T12 endplate; positive if kyphotic", (_T4, _T12)),
    "lumbar_lordosis": ("deg", "sagittal, superior L1 to inferior L5 endplate; positive if lordotic", (_L1, _L5)),
    "coronal_cobb": ("deg", "coronal, T1 to L6, the largest from a superior to a further down inferior endplate", ()),
    "sagittal_vertical_axis": ("mm", "C7 body centre in front of the posterior edge of S1's endplate", (_C7, _S1)),
    "coronal_balance": ("mm", "C7 body centre to the patient's right of the middle of S1's endplate", (_C7, _S1)),
}
_COLUMNS: dict[str, tuple[str | None, str]] = {
    "level": (None, "name of the level"),
    "x_mm": ("mm", "centroid, to the patient's right"),
    "y_mm": ("mm", "centroid, to the front"),
    "z_mm": ("mm", "centroid, to the head"),
    "sagittal_tilt_deg": ("deg", "mean endplate normal; positive if it leans to the front"),
    "coronal_tilt_deg": ("deg", "mean endplate normal; positive if it leans to the patient's right"),
    "wedge_deg": ("deg", "sagittal, superior to inferior endplate; positive if lower at the front"),
    "anterior_mm": ("mm", "body height between the endplates' planes, at the front"),
    "middle_mm": ("mm", "body height between the endplates' planes, at the centre"),
    "posterior_mm": ("mm", "body height between the endplates' planes, at the back"),
    "disc_below_mm": ("mm", "inferior endplate's centre to the next vertebra's superior one, along their mean normal"),
    "reason": (None, "why there are no angles and heights"),
}


@dataclass(frozen=True)
class Vertebra:
    """One reconstructed vertebra and where it stands.

    Attributes:
        level: VerSe number.
        centroid_ras: (3,) RAS mm, the centre of the cube.
        probability: (S, S, S) float32 in 0..1, [x, y, z] in RAS order.
        spacing_mm: of the cube.
    """

    level: int
    centroid_ras: np.ndarray
    probability: np.ndarray
    spacing_mm: float

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) voxel index to RAS mm."""
        return cube_affine(self.centroid_ras, len(self.probability), self.spacing_mm)

    @property
    def name(self) -> str:
        """Such as "L1"."""
        return levels.name(self.level)


@dataclass(frozen=True)
class Endplates:
    """A vertebral body's two endplates; points (3,) in RAS mm, unit normals (3,) that both point to the head.

    A centre is where the body's axis meets the fitted plane, `body_centre` lies half-way between the two. `depth_mm` and
    `width_mm` are the body's at mid-height; the three heights are those between the planes at its front, centre and back.
    """

    body_centre: np.ndarray
    superior_centre: np.ndarray
    superior_normal: np.ndarray
    inferior_centre: np.ndarray
    inferior_normal: np.ndarray
    depth_mm: float
    width_mm: float
    anterior_mm: float
    middle_mm: float
    posterior_mm: float


def assemble(vertebrae: Sequence[Vertebra], spacing_mm: float = 1.0) -> Volume:
    """The standing spine as one label volume.

    Args:
        vertebrae: any order, each level once.
        spacing_mm: of the volume.

    Returns:
        uint8, VerSe numbers, an axis-aligned grid over all cubes. A voxel belongs to the vertebra with the highest
        probability there, if that is at least 0.5; of each level the largest connected part is kept.

    Raises:
        InputError: no vertebra, or a level twice.
    """
    vertebrae = _in_order(vertebrae)
    if not vertebrae:
        raise InputError("There is no vertebra to assemble: reconstruct at least one level.")
    corners = np.concatenate([Volume(v.probability, v.affine).corners() for v in vertebrae])
    low = corners.min(0) + spacing_mm / 2
    shape = np.ceil((corners.max(0) - corners.min(0)) / spacing_mm).astype(int)
    best = np.full(shape, np.nextafter(np.float32(THRESHOLD), np.float32(0)), np.float32)
    labels = np.zeros(shape, np.uint8)
    for vertebra in vertebrae:
        origin, ratio = vertebra.affine[:3, 3], spacing_mm / vertebra.spacing_mm
        first = np.floor((origin - low) / spacing_mm).astype(int).clip(0)
        last = first + int(np.ceil(len(vertebra.probability) / ratio)) + 1
        block = tuple(slice(a, b) for a, b in zip(first, np.minimum(last, shape), strict=True))
        offset = (low + first * spacing_mm - origin) / vertebra.spacing_mm
        probability = vertebra.probability.astype(np.float32)
        here = ndimage.affine_transform(probability, np.full(3, ratio), offset, best[block].shape, order=1)
        wins = here > best[block]
        best[block][wins] = here[wins]
        labels[block][wins] = vertebra.level
    for vertebra in vertebrae:
        mine = labels == vertebra.level
        labels[mine & ~largest_part(mine)] = 0
    return Volume(labels, cube_affine(low, 1, spacing_mm))


def gaps(vertebrae: Sequence[Vertebra]) -> list[str]:
    """Names of the levels that the spine lacks between its top and its bottom: absent, or reconstructed as nothing.

    T13 and L6, which most people do not have, are never missed.
    """
    given = [v.level for v in _in_order(vertebrae)]
    there = {v.level for v in vertebrae if (v.probability >= THRESHOLD).any()}
    usual = [n for n in levels.VERTEBRAE if n in given or levels.name(n) not in ("T13", "L6")]
    between = usual[usual.index(given[0]) : usual.index(given[-1]) + 1] if given else []
    return [levels.name(n) for n in between if n not in there]


def endplates(vertebra: Vertebra) -> Endplates:
    """Finds the vertebral body and fits a plane to each endplate.

    The body's centre is the deepest point of the front half. Columns along the body's axis, over the middle of the
    body's cross-section, meet the surface above and below; a trimmed least-squares plane goes through either set. The
    planes' mean normal is the next axis; it starts upright. On synthetic bodies tilted by up to 40 degrees the normals
    are within 1 degree; of a binary mask on a 1.5 mm grid within 3, and 5 for a body as small as a cervical one.

    Raises:
        InputError: C1 or C2, which have no ordinary body; an empty vertebra; or no body found in it.
    """
    if vertebra.level in (1, 2):
        raise InputError(f"{vertebra.name} has no ordinary vertebral body, so it has no pair of endplates.")
    mask = largest_part(vertebra.probability >= THRESHOLD)
    if not mask.any():
        raise InputError(f"The reconstruction of {vertebra.name} is empty, so it has no endplates.")
    # Stray parts and holes would lengthen or stop the columns; the smoothing takes the voxel steps of a mask away.
    solid = ndimage.binary_fill_holes(mask)
    values = np.where(solid & ~mask, 1.0, np.where(mask, vertebra.probability, np.minimum(vertebra.probability, 0.49)))
    field = Volume(ndimage.gaussian_filter(values.astype(np.float32), 1.0), vertebra.affine)

    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(np.pad(solid, 1))[1:-1, 1:-1, 1:-1], 1.0)
    depth[:, : int(np.flatnonzero(solid.any(axis=(0, 2))).mean())] = 0
    centre = field.world(np.array(np.unravel_index(depth.argmax(), depth.shape)))
    reach = 2.0 * float(depth.max()) * vertebra.spacing_mm
    axis = np.array([0.0, 0.0, 1.0])
    disc = np.stack(np.meshgrid(*[np.linspace(-_SHARE, _SHARE, 25)] * 2), axis=-1).reshape(-1, 2)
    disc = disc[np.linalg.norm(disc, axis=1) <= _SHARE]
    for _ in range(4):
        right = _unit(np.array([1.0, 0.0, 0.0]) - axis[0] * axis)
        front = np.cross(axis, right)
        # A way that leaves the body through a pedicle is cut short at twice the depth of the body's centre.
        ways = (right, -right, front, -front)
        reached = [float(np.nan_to_num(_exits(field, centre[None], way, reach), nan=reach)[0]) for way in ways]
        centre = centre + sum(way * mm for way, mm in zip(ways, reached, strict=True)) / 2
        width, length = sum(reached[:2]), sum(reached[2:])
        offsets = disc * [width / 2, length / 2]
        feet = centre + offsets @ np.stack([right, front])
        above = _plane(offsets, _exits(field, feet, axis, 1.5 * reach), vertebra)
        below = -_plane(offsets, _exits(field, feet, -axis, 1.5 * reach), vertebra)
        superior, inferior = centre + above[0] * axis, centre + below[0] * axis
        up, down = (_unit(axis - plane[1] * right - plane[2] * front) for plane in (above, below))
        axis, centre = _unit(up + down), (superior + inferior) / 2
    heights = [float((above - below) @ [1, 0, end * length / 2]) for end in (1, 0, -1)]
    return Endplates(centre, superior, up, inferior, down, length, width, *heights)


def posture(vertebrae: Sequence[Vertebra], s1_ras: np.ndarray | None = None) -> dict[str, Any]:
    """Measures the spine: its curves, its balance, and a row for each vertebra.

    Args:
        vertebrae: any order, each level once, placed where they stand in the patient.
        s1_ras: (3,) RAS mm, the middle of the posterior edge of S1's upper endplate. The sacrum is not reconstructed,
            so the balance needs this landmark from the films.

    Returns:
        JSON-ready, schema `SCHEMA`. An entry of `measures` has `value` (None if it cannot be told), `unit`,
        `definition` and `reason` (why there is no value); `coronal_cobb` also its end levels `upper` and `lower` and
        the side of its `convexity`; being a maximum it is a few degrees even on a straight spine, and no scoliosis below
        10. `vertebrae` are rows from head to tail, explained by `columns`; C1 and C2 have no angles and heights.

    Raises:
        InputError: a level occurs twice, or is not a vertebra.
    """
    vertebrae = _in_order(vertebrae)
    found: dict[int, Endplates] = {}
    why = {number: f"{name} is not in this spine." for number, name in levels.NAMES.items()}
    why[_S1] = "S1 is not known: mark the posterior edge of its upper endplate on the films."
    for vertebra in vertebrae:
        try:
            found[vertebra.level] = endplates(vertebra)
        except InputError as error:
            why[vertebra.level] = str(error)
    known = set(found) | (set() if s1_ras is None else {_S1})
    measures = {}
    for name, (unit, definition, needed) in _MEASURES.items():
        reason = " ".join(why[n] for n in needed if n not in known)
        if name == "coronal_cobb" and len(known & set(_TRUNK)) < 2:
            reason = "Fewer than two thoracic and lumbar vertebrae of this spine have endplates."
        value = {"value": None} if reason else _measure(name, found, s1_ras)
        measures[name] = {**_rounded(value), "unit": unit, "definition": definition, "reason": reason or None}
    return {
        "schema": SCHEMA,
        "frame": "RAS mm: x to the patient's right, y to the front, z to the head",
        "missing_levels": gaps(vertebrae),
        "measures": measures,
        "columns": {name: {"unit": unit, "definition": text} for name, (unit, text) in _COLUMNS.items()},
        "vertebrae": [_row(v, below, found, why) for v, below in zip(vertebrae, [*vertebrae[1:], None], strict=True)],
    }


def write_posture(path: str | Path, posture: dict[str, Any]) -> Path:
    """Writes a posture as JSON, and its rows of vertebrae beside it as CSV under the same name."""
    with atomic_path(Path(path).with_suffix(".csv")) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(posture["columns"]))
        writer.writeheader()
        writer.writerows(posture["vertebrae"])
    return write_json(Path(path).with_suffix(".json"), posture)


def _measure(name: str, found: dict[int, Endplates], s1_ras: np.ndarray | None) -> dict[str, Any]:
    """The value of one of `_MEASURES`, once all it needs is known."""
    if name == "thoracic_kyphosis":
        return {"value": _angle(found[_T4], found[_T12], _SAGITTAL)}
    if name == "lumbar_lordosis":
        return {"value": -_angle(found[_L1], found[_L5], _SAGITTAL)}
    if name == "coronal_cobb":
        trunk = [level for level in _TRUNK if level in found]
        pairs = [(_angle(found[a], found[b], _CORONAL), a, b) for a, b in combinations(trunk, 2)]
        angle, upper, lower = max(pairs, key=lambda pair: abs(pair[0]))
        # Above its apex a curve leans away from the side to which it bulges.
        side = "left" if angle > 0 else "right"
        return {"value": abs(angle), "upper": levels.name(upper), "lower": levels.name(lower), "convexity": side}
    offset = found[_C7].body_centre - s1_ras
    return {"value": offset[_SAGITTAL if name == "sagittal_vertical_axis" else _CORONAL]}


def _row(v: Vertebra, below: Vertebra | None, found: dict[int, Endplates], why: dict[int, str]) -> dict[str, Any]:
    """One vertebra's columns."""
    row: dict[str, Any] = dict.fromkeys(_COLUMNS)
    row |= {"level": v.name, **dict(zip(("x_mm", "y_mm", "z_mm"), np.asarray(v.centroid_ras), strict=True))}
    here = found.get(v.level)
    if here is None:
        return _rounded(row | {"reason": why[v.level]})
    mean = here.superior_normal + here.inferior_normal
    row |= {"sagittal_tilt_deg": _tilt(mean, _SAGITTAL), "coronal_tilt_deg": _tilt(mean, _CORONAL)}
    row |= {"anterior_mm": here.anterior_mm, "middle_mm": here.middle_mm, "posterior_mm": here.posterior_mm}
    row["wedge_deg"] = _angle(here, here, _SAGITTAL)
    if below is not None and below.level in found and not gaps([v, below]):
        following = found[below.level]
        across = _unit(here.inferior_normal + following.superior_normal)
        row["disc_below_mm"] = (here.inferior_centre - following.superior_centre) @ across
    return _rounded(row)


def _angle(upper: Endplates, lower: Endplates, component: int) -> float:
    """How much further the upper body's superior endplate leans than the lower one's inferior endplate, degrees."""
    return _tilt(upper.superior_normal, component) - _tilt(lower.inferior_normal, component)


def _tilt(normal: np.ndarray, component: int) -> float:
    """How far a normal leans from upright in the sagittal or the coronal plane, degrees."""
    return float(np.degrees(np.arctan2(normal[component], normal[2])))


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers to two decimals, the rest as it is."""
    return {key: round(float(v), 2) if isinstance(v, int | float | np.number) else v for key, v in values.items()}


def _exits(field: Volume, starts: np.ndarray, way: np.ndarray, reach: float) -> np.ndarray:
    """(N,) mm from (N, 3) starts to the surface along a unit way; NaN where it starts outside or meets none in reach."""
    steps = np.arange(0.0, reach + _STEP_MM, _STEP_MM)
    points = starts[:, None] + steps[:, None] * way
    values = ndimage.map_coordinates(field.data, np.moveaxis(field.index(points), -1, 0), order=1, mode="nearest")
    k = (values < THRESHOLD).argmax(axis=1)
    found, rows = k > 0, np.arange(len(k))
    before, after = values[rows, k - 1], values[rows, k]
    part = np.divide(before - THRESHOLD, before - after, out=np.zeros(len(k)), where=found)
    return np.where(found, steps[k - 1] + _STEP_MM * part, np.nan)


def _plane(offsets: np.ndarray, heights: np.ndarray, vertebra: Vertebra) -> np.ndarray:
    """(3,) height and slopes to the right and to the front, least squares over the columns that fit best."""
    met = np.isfinite(heights)
    if met.mean() < 0.5:
        raise InputError(f"No vertebral body with two endplates was found in {vertebra.name}: look at its shape.")
    system, heights = np.insert(offsets, 0, 1.0, axis=1)[met], heights[met]
    keep = np.ones(len(heights), bool)
    for _ in range(5):
        plane = np.linalg.lstsq(system[keep], heights[keep], rcond=None)[0]
        residual = np.abs(heights - system @ plane)
        # Within a voxel, residuals are the grid's: leaving those out would lock the plane onto one step of it.
        keep = residual <= max(float(np.quantile(residual, _KEPT)), vertebra.spacing_mm)
    return plane


def _in_order(vertebrae: Sequence[Vertebra]) -> list[Vertebra]:
    """From head to tail, once each level is known to be a vertebra's and to occur once."""
    given = [v.level for v in vertebrae]
    for level in given:
        if level not in levels.VERTEBRAE or given.count(level) > 1:
            raise InputError(f"{levels.name(level)} is no vertebra or is there twice; give each of C1-L6 once at most.")
    return sorted(vertebrae, key=lambda v: levels.VERTEBRAE.index(v.level))


def largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask (face neighbours); an empty one stays empty."""
    parts, count = ndimage.label(mask)
    return mask if count < 2 else parts == 1 + np.bincount(parts.ravel())[1:].argmax()


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
