"""The posture of a standing spine: its curves, its balance, and each vertebra's lean, rotation, heights and disc.

Sign conventions, with every endplate normal pointing to the head: a sagittal tilt is positive where the normal leans to
the front, a coronal tilt where it leans to the patient's right. Kyphosis is positive for a kyphotic curve, lordosis for
a lordotic one, a wedge where the vertebra is lower at its front, an axial rotation where the vertebra's front is turned
to the patient's left. Angles are those that a lateral or an AP film shows, in the sagittal or the coronal plane.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from transvert import levels
from transvert.clinical import endplate_prior, endplates
from transvert.clinical.endplate_prior import CORONAL, SAGITTAL, Observations, tilt_deg
from transvert.clinical.endplates import Endplates, Sacrum, unit
from transvert.clinical.vertebra import THRESHOLD, Vertebra, axial_rotation_deg, gaps, in_order
from transvert.io import InputError, atomic_path, write_json

SCHEMA = "transvert-posture/1"
LEAST_CURVE_DEG = 10.0
"""A coronal curve below this is no scoliosis (Scoliosis Research Society), and no further curve is told of."""
_C7, _T1, _T4, _T5, _T12, _L1, _L5, _L6, _S1 = 7, 8, 11, 12, 19, 20, 24, 25, 26
_TRUNK = levels.VERTEBRAE[7:]  # below the neck, whose small endplates would put noise into a maximum

_COBB = "Cobb, AAOS Instr Course Lect 1948;5:261-275"
_VIALLE = "Vialle et al., J Bone Joint Surg Am 2005;87:260-267"
_LENKE = "Lenke et al., J Bone Joint Surg Am 2001;83:1169-1181"
_SCHWAB = "Schwab et al., Spine 2012;37:1077-1082"
_STAGNARA = "Stagnara et al., Spine 1982;7:335-342"
_MANUAL = "O'Brien et al., Spinal Deformity Study Group Radiographic Measurement Manual, 2004"
_GENANT = "Genant et al., J Bone Miner Res 1993;8:1137-1148"
_FROBIN = "Frobin et al., Clin Biomech 1997;12(Suppl 1):S1-S63"
_STOKES = "Stokes, Spine 1994;19:236-248"

# Each angle between two fixed levels: the sign that makes it positive, and both levels.
_ANGLES: dict[str, tuple[int, int, int]] = {
    "thoracic_kyphosis": (1, _T4, _T12),
    "thoracic_kyphosis_t1_t12": (1, _T1, _T12),
    "thoracic_kyphosis_t5_t12": (1, _T5, _T12),
    "lumbar_lordosis": (-1, _L1, _L5),
    "lumbar_lordosis_l1_s1": (-1, _L1, _S1),
}
# Each measure's unit, definition, source, and the levels it needs.
_MEASURES: dict[str, tuple[str, str, str, tuple[int, ...]]] = {
    "thoracic_kyphosis": ("deg", "sagittal, superior T4 to inferior T12 endplate", _VIALLE, (_T4, _T12)),
    "thoracic_kyphosis_t1_t12": ("deg", "sagittal, superior T1 to inferior T12 endplate", _COBB, (_T1, _T12)),
    "thoracic_kyphosis_t5_t12": ("deg", "sagittal, superior T5 to inferior T12 endplate", _LENKE, (_T5, _T12)),
    "largest_kyphosis": (
        "deg",
        "sagittal, T1 to L6, the largest from a superior to a further down inferior endplate",
        _STAGNARA,
        (),
    ),
    "lumbar_lordosis": ("deg", "sagittal, superior L1 to inferior L5 endplate", _VIALLE, (_L1, _L5)),
    "lumbar_lordosis_l1_s1": ("deg", "sagittal, superior L1 to superior S1 endplate", _SCHWAB, (_L1, _S1)),
    "sacral_slope": (
        "deg",
        "sagittal, S1's endplate to the horizontal; positive if it falls to the front",
        _MANUAL,
        (_S1,),
    ),
    "coronal_cobb": (
        "deg",
        "coronal, T1 to L6, the largest from a superior to a further down inferior endplate; no scoliosis below 10",
        _COBB,
        (),
    ),
    "sagittal_vertical_axis": (
        "mm",
        "plumb line from C7's body centre: how far in front of the posterior edge of S1's endplate",
        _MANUAL,
        (_C7, _S1),
    ),
    "coronal_balance": (
        "mm",
        "plumb line from C7's body centre: how far to the patient's right of the middle of S1's endplate",
        _MANUAL,
        (_C7, _S1),
    ),
}
_COLUMNS: dict[str, tuple[str | None, str]] = {
    "level": (None, "name of the level"),
    "x_mm": ("mm", "centre of its cube, where its landmarks and its shape place it, to the patient's right"),
    "y_mm": ("mm", "the same, to the front"),
    "z_mm": ("mm", "the same, to the head"),
    "sagittal_tilt_deg": ("deg", "mean endplate normal; positive if it leans to the front"),
    "coronal_tilt_deg": ("deg", "mean endplate normal; positive if it leans to the patient's right"),
    "axial_rotation_deg": (
        "deg",
        f"normal of the symmetry plane in the horizontal plane; positive if the front is turned to the left ({_STOKES})",
    ),
    "wedge_deg": ("deg", "sagittal, superior to inferior endplate; positive if lower at the front"),
    "coronal_wedge_deg": ("deg", "coronal, superior to inferior endplate; positive if lower at the right"),
    "anterior_mm": ("mm", f"body height between the endplates' planes, at the front ({_GENANT})"),
    "middle_mm": ("mm", "body height between the endplates' planes, at the centre"),
    "posterior_mm": ("mm", "body height between the endplates' planes, at the back"),
    "disc_below_mm": (
        "mm",
        f"inferior to next superior endplate, between centres along their mean normal (at the corners: {_FROBIN})",
    ),
    "reason": (None, "why there are no angles and heights"),
}


def measure_posture(
    vertebrae: Sequence[Vertebra],
    s1: Mapping[str, np.ndarray] | None = None,
    like: Mapping[str, Any] | None = None,
    evidence: Observations | None = None,
) -> dict[str, Any]:
    """Measures the spine: its curves, its balance, and a row for each vertebra.

    Args:
        vertebrae: any order, each level once, placed where they stand in the patient.
        s1: the four ends of S1's upper endplate, as `Landmarks.s1` gives them. The sacrum is not reconstructed, so the
            balance, the sacral slope and the lordosis down to S1 need these landmarks from the films.
        like: an earlier posture of nearly the same spine. Its curves' end levels are held, and rotations are looked for
            near its own: so that what is measured is the same again.
        evidence: what is known beside the shapes; then endplates lean as is likeliest (`tilts`), and not as they were
            reconstructed.

    Returns:
        JSON-ready, schema `SCHEMA`. An entry of `measures` has `value` (None if it cannot be told), `unit`,
        `definition`, `source` and `reason` (why there is no value); where it has to be found, also its end levels
        `upper` and `lower`; `coronal_cobb` also its `apex` and the side of its `convexity`. `curves` are coronal ones of
        10 degrees or more, the largest first, that share no more than an end vertebra. `vertebrae` are rows from head to
        tail, explained by `columns`; C1 and C2 have no angles and heights.

    Raises:
        InputError: a level occurs twice, or is not a vertebra; S1's ends make no endplate.
    """
    vertebrae = in_order(vertebrae)
    plates: dict[int, Endplates] = {}
    why = {number: f"{name} is not in this spine." for number, name in levels.NAMES.items()}
    why[_S1] = "S1 is not known: mark both ends of its upper endplate on both films."
    for vertebra in vertebrae:
        try:
            plates[vertebra.level] = endplates.fit_endplates(vertebra)
        except InputError as error:
            why[vertebra.level] = str(error)
    found: dict[int, Endplates | Sacrum] = dict(
        plates if evidence is None else endplate_prior.fit_endplate_tilts(plates, evidence)
    )
    if s1:
        found[_S1] = endplates.fit_sacrum(s1)
    measures = {}
    for name, (unit_, definition, source, needed) in _MEASURES.items():
        reason = " ".join(why[n] for n in needed if n not in found)
        if not needed and len(_trunk(found)) < 2:
            reason = "Fewer than two thoracic and lumbar vertebrae of this spine have endplates."
        value = {"value": None} if reason else _measure(name, found, like["measures"][name] if like else {})
        told = {"unit": unit_, "definition": definition, "source": source, "reason": reason or None}
        measures[name] = _rounded(value) | told
    if like:
        curves = [_measure("coronal_cobb", found, curve) for curve in like["curves"]]
    else:
        curves = _curves(found, _trunk(found))
    turns = {row["level"]: row["axial_rotation_deg"] for row in like["vertebrae"]} if like else {}
    return {
        "schema": SCHEMA,
        "frame": "RAS mm: x to the patient's right, y to the front, z to the head",
        "endplates": "as reconstructed" if evidence is None else "as is likeliest by their shapes and the landmarks",
        "missing_levels": gaps(vertebrae),
        "measures": measures,
        "curves": [_rounded(curve) for curve in curves],
        "columns": {name: {"unit": unit_, "definition": text} for name, (unit_, text) in _COLUMNS.items()},
        "vertebrae": [
            _row(v, below, found, why, turns.get(v.name))
            for v, below in zip(vertebrae, [*vertebrae[1:], None], strict=True)
        ],
    }


def add_spread(measured: dict[str, Any], draws: Sequence[Mapping[str, Any]], cause: str) -> dict[str, Any]:
    """A posture with how far each measure varies: `sd`, and `low` and `high`, the ends of a 95 % interval around it.

    The interval is Student's for the standard deviation of as many draws.

    Args:
        measured: from `posture`.
        draws: postures of the same spine as it might have been found, measured `like` the first.
        cause: what was varied, told in the result.
    """
    entries = {
        name: _spread(entry, (draw["measures"][name] for draw in draws)) for name, entry in measured["measures"].items()
    }
    curves = [_spread(c, (draw["curves"][n] for draw in draws)) for n, c in enumerate(measured["curves"])]
    columns, rows = dict(measured["columns"]), [dict(row) for row in measured["vertebrae"]]
    names = [name for name, column in measured["columns"].items() if column["unit"]]
    others = [{row["level"]: row for row in draw["vertebrae"]} for draw in draws]
    for name in names:
        columns[f"{name}_sd"] = {"unit": columns[name]["unit"], "definition": f"standard deviation of {name}"}
        for row in rows:
            values = [o[row["level"]][name] for o in others if row["level"] in o]
            row[f"{name}_sd"] = _rounded({"sd": _sd(values)})["sd"] if row[name] is not None else None
    told = {"cause": cause, "draws": len(draws), "interval": "95 %, value -+ Student's t times sd"}
    return measured | {
        "measures": entries,
        "curves": curves,
        "columns": columns,
        "vertebrae": rows,
        "uncertainty": told,
    }


def write_posture(path: str | Path, posture: dict[str, Any]) -> Path:
    """Writes a posture as JSON, and as CSV its rows of vertebrae (the same name) and its measures (`..._measures`)."""
    path = Path(path)
    _write_table(path.with_suffix(".csv"), list(posture["columns"]), posture["vertebrae"])
    rows = [{"measure": name} | entry for name, entry in posture["measures"].items()]
    rows += [{"measure": f"coronal_curve_{n}", "unit": "deg"} | c for n, c in enumerate(posture["curves"], start=1)]
    names = ["measure", "value", "sd", "low", "high", "unit", "upper", "lower", "apex", "convexity"]
    _write_table(path.with_name(f"{path.stem}_measures.csv"), [*names, "definition", "source", "reason"], rows)
    return write_json(path.with_suffix(".json"), posture)


def _write_table(path: Path, names: list[str], rows: Iterable[Mapping[str, Any]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _trunk(found: Mapping[int, Endplates | Sacrum]) -> list[int]:
    return [level for level in _TRUNK if level in found]


def _measure(name: str, found: Mapping[int, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """The value of one of `_MEASURES`, once all it needs is known; between the end levels of `like`, if it has any."""
    if name in _ANGLES:
        sign, upper, lower = _ANGLES[name]
        return {"value": sign * _angle(found[upper], found[lower], SAGITTAL)}
    if name == "sacral_slope":
        return {"value": tilt_deg(found[_S1].superior_normal, SAGITTAL)}
    if name in ("largest_kyphosis", "coronal_cobb"):
        held = _ends(like) if like.get("upper") else None
        if held and not set(held) <= set(found):
            return {"value": None}
        if name == "coronal_cobb":
            return _curve(found, *(held or _steepest(found, _trunk(found))), like)
        pairs = [held] if held else combinations(_trunk(found), 2)
        angle, upper, lower = max((_angle(found[a], found[b], SAGITTAL), a, b) for a, b in pairs)
        return {"value": angle, "upper": levels.name(upper), "lower": levels.name(lower)}
    if name == "sagittal_vertical_axis":
        return {"value": (found[_C7].body_centre - found[_S1].posterior)[SAGITTAL]}
    return {"value": (found[_C7].body_centre - found[_S1].superior_centre)[CORONAL]}


def _curves(found: Mapping[int, Any], trunk: list[int]) -> list[dict[str, Any]]:
    """The largest coronal curve of a stretch of the spine and those of what is left above and below it, largest first."""
    if len(trunk) < 2:
        return []
    upper, lower = _steepest(found, trunk)
    curve = _curve(found, upper, lower, {})
    if curve["value"] < LEAST_CURVE_DEG:
        return []
    above, below = trunk[: trunk.index(upper) + 1], trunk[trunk.index(lower) :]
    return sorted([curve, *_curves(found, above), *_curves(found, below)], key=lambda c: -c["value"])


def _steepest(found: Mapping[int, Any], trunk: list[int]) -> tuple[int, int]:
    """The two levels between whose endplates the coronal angle is largest."""
    return max(combinations(trunk, 2), key=lambda pair: abs(_angle(found[pair[0]], found[pair[1]], CORONAL)))


def _curve(found: Mapping[int, Any], upper: int, lower: int, like: Mapping[str, Any]) -> dict[str, Any]:
    """A coronal curve between two end vertebrae; its angle is positive, or has the sign that the side of `like` gives it.

    The apex is the vertebra in between whose body bulges farthest from the line between the end vertebrae's bodies.
    """
    angle = _angle(found[upper], found[lower], CORONAL)
    # Above its apex a curve leans away from the side to which it bulges.
    side = like.get("convexity") or ("left" if angle > 0 else "right")
    away = -1 if side == "left" else 1
    top, bottom = found[upper].body_centre, found[lower].body_centre
    trunk = _trunk(found)
    bulges = {}
    for level in trunk[trunk.index(upper) + 1 : trunk.index(lower)]:
        middle = found[level].body_centre
        share = (middle[2] - bottom[2]) / (top[2] - bottom[2])
        bulges[level] = away * (middle - bottom - share * (top - bottom))[CORONAL]
    apex = levels.name(max(bulges, key=lambda level: bulges[level])) if bulges else None
    ends = {"upper": levels.name(upper), "lower": levels.name(lower), "apex": apex, "convexity": side}
    return {"value": -away * angle, **ends}


def _ends(entry: Mapping[str, Any]) -> tuple[int, int]:
    return levels.number(entry["upper"]), levels.number(entry["lower"])


def _row(
    v: Vertebra, below: Vertebra | None, found: Mapping[int, Any], why: Mapping[int, str], turn: float | None
) -> dict[str, Any]:
    """One vertebra's columns; its rotation is looked for near `turn`, where that is known."""
    row: dict[str, Any] = dict.fromkeys(_COLUMNS)
    row |= {"level": v.name, **dict(zip(("x_mm", "y_mm", "z_mm"), np.asarray(v.centroid_ras), strict=True))}
    if v.probability.max() >= THRESHOLD:
        row["axial_rotation_deg"] = axial_rotation_deg(v, turn)
    here = found.get(v.level)
    if here is None:
        return _rounded(row | {"reason": why[v.level]})
    mean = here.superior_normal + here.inferior_normal
    row |= {"sagittal_tilt_deg": tilt_deg(mean, SAGITTAL), "coronal_tilt_deg": tilt_deg(mean, CORONAL)}
    row |= {"anterior_mm": here.anterior_mm, "middle_mm": here.middle_mm, "posterior_mm": here.posterior_mm}
    row |= {"wedge_deg": _angle(here, here, SAGITTAL), "coronal_wedge_deg": _angle(here, here, CORONAL)}
    next_level = below.level if below is not None and not gaps([v, below]) else None
    if below is None and v.level in (_L5, _L6):
        next_level = _S1
    if next_level is not None and next_level in found:
        following = found[next_level]
        across = unit(here.inferior_normal + following.superior_normal)
        row["disc_below_mm"] = (here.inferior_centre - following.superior_centre) @ across
    return _rounded(row)


def _angle(upper: Any, lower: Any, component: int) -> float:
    """How much further the upper body's superior endplate leans than the lower one's inferior endplate, degrees.

    Of the sacrum only the superior endplate is known.
    """
    last = lower.superior_normal if isinstance(lower, Sacrum) else lower.inferior_normal
    return tilt_deg(upper.superior_normal, component) - tilt_deg(last, component)


def _spread(entry: Mapping[str, Any], draws: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """An entry with `sd`, `low` and `high`; None where it has no value, or fewer than two draws have one."""
    values = [draw["value"] for draw in draws if draw["value"] is not None]
    sd = _sd(values) if entry["value"] is not None else None
    reach = None if sd is None else float(special.stdtrit(len(values) - 1, 0.975)) * sd
    ends = (None, None) if reach is None else (entry["value"] - reach, entry["value"] + reach)
    return {**entry, **_rounded({"sd": sd, "low": ends[0], "high": ends[1]})}


def _sd(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.std(known, ddof=1)) if len(known) > 1 else None


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers to two decimals, the rest as it is."""
    return {key: round(float(v), 2) if isinstance(v, int | float | np.number) else v for key, v in values.items()}
