"""The posture of a standing spine: its curves, its balance, and each vertebra's lean, rotation, heights and disc.

Sign conventions, with every endplate normal pointing to the head: a sagittal tilt is positive where the normal leans to
the front, a coronal tilt where it leans to the patient's right. Kyphosis is positive for a kyphotic curve, lordosis for
a lordotic one, a wedge where the vertebra is lower at its front, an axial rotation where the vertebra's front is turned
to the patient's left. Angles are those that a lateral or an AP film shows, in the sagittal or the coronal plane. Each
measure's definition and source stand in `tables/posture_measures.csv`, those of a vertebra in `posture_columns.csv`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from transvert import levels
from transvert.clinical import endplates
from transvert.clinical.endplates import CORONAL, SAGITTAL, Observations, Sacrum, tilt_deg
from transvert.clinical.vertebra import THRESHOLD, Vertebra, axial_rotation_deg, missing_levels, sort_vertebrae, unit
from transvert.io import PACKAGE, InputError, read_rows, write_json
from transvert.runs import write_table

SCHEMA = "transvert-posture/2"
_S1 = levels.number("S1")

Bodies = Mapping[int, Any]  # Level to its `Endplates`, S1 to its `Sacrum`.


@functools.cache
def definitions(table: str) -> dict[str, dict[str, str]]:
    """What is measured, by name: the rows of tables/posture_measures.csv ("measures") or posture_columns.csv ("columns")."""
    rows = read_rows(PACKAGE / "tables" / f"posture_{table}.csv")
    return {next(iter(row.values())): row for row in rows}


def measure_posture(
    vertebrae: Sequence[Vertebra],
    s1: Mapping[str, np.ndarray] | None = None,
    reference: Mapping[str, Any] | None = None,
    observations: Observations | None = None,
) -> dict[str, Any]:
    """Measures the curves and the balance of a spine, and each of its vertebrae.

    Args:
        vertebrae: any order, each level once, placed where they stand in the patient.
        s1: the four ends of S1's upper endplate, as `Landmarks.s1` gives them. The sacrum is not reconstructed, so the
            balance, the sacral slope and the lordosis down to S1 need these landmarks from the films.
        reference: an earlier posture of nearly the same spine, whose end levels are kept and near whose rotations the
            search starts, so that the same quantities are measured again.
        observations: what is known besides the shapes; endplates then have their most likely tilts (`fit_endplate_tilts`).

    Returns:
        JSON-ready, schema `SCHEMA`. An entry of `measures` has `value` (None if unknown), `unit`, `definition`, `source`
        and `reason` (why there is no value); where end levels are found also `upper` and `lower`; `coronal_cobb` also its
        `apex` and the side of its `convexity`. `vertebrae` are rows from head to tail, explained by `columns`.
        A level that occurs twice or is no vertebra, or S1's ends that make no endplate, raise an InputError.
    """
    vertebrae = sort_vertebrae(vertebrae)
    found, reasons = fit_bodies(vertebrae, s1, observations)
    measures = {}
    for name, row in definitions("measures").items():
        needed = [levels.number(row[end]) for end in ("upper", "lower") if row[end]]
        reason = " ".join(reasons[n] for n in needed if n not in found)
        if not needed and len(_trunk(found)) < 2:
            reason = "Fewer than two thoracic and lumbar vertebrae of this spine have endplates."
        value = {"value": None} if reason else _measure(row, found, reference["measures"][name] if reference else {})
        about = {key: row[key] for key in ("unit", "definition", "source")}
        measures[name] = _rounded(value) | about | {"reason": reason or None}
    rotations = {row["level"]: row["axial_rotation_deg"] for row in reference["vertebrae"]} if reference else {}
    return {
        "schema": SCHEMA,
        "frame": "RAS mm: x to the patient's right, y to the front, z to the head",
        "endplates": "as reconstructed" if observations is None else "most likely by shapes and landmarks",
        "missing_levels": missing_levels(vertebrae),
        "measures": measures,
        "columns": {
            name: {"unit": row["unit"] or None, "definition": row["definition"]}
            for name, row in definitions("columns").items()
        },
        "vertebrae": [
            _row(v, below, found, reasons, rotations.get(v.name))
            for v, below in zip(vertebrae, [*vertebrae[1:], None], strict=True)
        ],
    }


def add_spread(measured: dict[str, Any], draws: Sequence[Mapping[str, Any]], cause: str) -> dict[str, Any]:
    """Adds to each measure its standard deviation `sd` and the ends `low` and `high` of a 95 % interval (Student's t).

    `draws` are postures of the same spine under random errors, measured with it as `reference`; `cause` says what varied.
    """
    entries = {
        name: _spread(entry, [draw["measures"][name] for draw in draws]) for name, entry in measured["measures"].items()
    }
    columns, rows = dict(measured["columns"]), [dict(row) for row in measured["vertebrae"]]
    others = [{row["level"]: row for row in draw["vertebrae"]} for draw in draws]
    for name in [name for name, column in measured["columns"].items() if column["unit"]]:
        columns[f"{name}_sd"] = {"unit": columns[name]["unit"], "definition": f"standard deviation of {name}"}
        for row in rows:
            values = [other[row["level"]][name] for other in others if row["level"] in other]
            row[f"{name}_sd"] = _rounded({"sd": _sd(values)})["sd"] if row[name] is not None else None
    about = {"cause": cause, "draws": len(draws), "interval": "95 %, value -+ Student's t times sd"}
    return measured | {"measures": entries, "columns": columns, "vertebrae": rows, "uncertainty": about}


def write_posture(path: str | Path, posture: dict[str, Any]) -> Path:
    """Writes a posture as JSON, its vertebrae as CSV of the same name, and its measures as `..._measures.csv`."""
    path = Path(path)
    write_table(path.with_suffix(".csv"), pd.DataFrame(posture["vertebrae"], columns=list(posture["columns"])))
    rows = [{"measure": name} | entry for name, entry in posture["measures"].items()]
    names = ["measure", "value", "sd", "low", "high", "unit", "upper", "lower", "apex", "convexity"]
    table = pd.DataFrame(rows, columns=[*names, "definition", "source", "reason"])
    write_table(path.with_name(f"{path.stem}_measures.csv"), table)
    return write_json(path.with_suffix(".json"), posture)


def fit_bodies(
    vertebrae: Sequence[Vertebra], s1: Mapping[str, np.ndarray] | None, observations: Observations | None
) -> tuple[Bodies, dict[int, str]]:
    """Each level's endplates, and for each other level the reason why it has none."""
    reasons = {number: f"{name} is not in this spine." for number, name in levels.NAMES.items()}
    reasons[_S1] = "S1 is not known: mark both ends of its upper endplate on both films."
    plates = {}
    for vertebra in vertebrae:
        try:
            plates[vertebra.level] = endplates.fit_endplates(vertebra)
        except InputError as error:
            reasons[vertebra.level] = str(error)
    if observations is not None:
        plates = endplates.fit_endplate_tilts(plates, observations)
    return {**plates, **({_S1: endplates.fit_sacrum(s1)} if s1 else {})}, reasons


def _measure(row: Mapping[str, str], found: Bodies, reference: Mapping[str, Any]) -> dict[str, Any]:
    """One measure whose levels are all there; between the end levels of `reference`, if it has any."""
    needed = [found[levels.number(row[end])] for end in ("upper", "lower") if row[end]]
    if row["sign"]:
        return {"value": int(row["sign"]) * _angle(needed[0], needed[1], SAGITTAL)}
    match row["measure"]:
        case "sacral_slope":
            return {"value": tilt_deg(needed[0].superior_normal, SAGITTAL)}
        case "sagittal_vertical_axis":
            return {"value": (needed[0].body_centre - needed[1].posterior)[SAGITTAL]}
        case "coronal_balance":
            return {"value": (needed[0].body_centre - needed[1].superior_centre)[CORONAL]}
    ends = [levels.number(reference[end]) for end in ("upper", "lower")] if reference.get("upper") else []
    if not set(ends) <= set(found):
        return {"value": None}
    pairs = [ends] if ends else combinations(_trunk(found), 2)
    if row["measure"] == "coronal_cobb":
        upper, lower = max(pairs, key=lambda pair: abs(_angle(found[pair[0]], found[pair[1]], CORONAL)))
        return _curve(found, upper, lower, reference.get("convexity"))
    angle, upper, lower = max((_angle(found[a], found[b], SAGITTAL), a, b) for a, b in pairs)
    return {"value": angle, "upper": levels.name(upper), "lower": levels.name(lower)}


def _trunk(found: Bodies) -> list[int]:
    """The thoracic and lumbar levels; the neck's small endplates are too noisy for a maximum."""
    return [level for level in levels.VERTEBRAE[7:] if level in found]


def _curve(found: Bodies, upper: int, lower: int, side: str | None = None) -> dict[str, Any]:
    """A coronal curve between two end vertebrae; positive, or with the sign that a given side of convexity implies.

    The apex is the vertebra whose body is farthest from the line between the end vertebrae's bodies, on the convex side.
    """
    angle = _angle(found[upper], found[lower], CORONAL)
    side = side or ("left" if angle > 0 else "right")  # Above its apex a curve leans away from its convex side.
    sign = -1 if side == "left" else 1
    top, bottom = found[upper].body_centre, found[lower].body_centre
    trunk = _trunk(found)
    bulges = {}
    for level in trunk[trunk.index(upper) + 1 : trunk.index(lower)]:
        middle = found[level].body_centre
        share = (middle[2] - bottom[2]) / (top[2] - bottom[2])
        bulges[level] = sign * (middle - bottom - share * (top - bottom))[CORONAL]
    apex = levels.name(max(bulges, key=lambda level: bulges[level])) if bulges else None
    ends = {"upper": levels.name(upper), "lower": levels.name(lower), "apex": apex, "convexity": side}
    return {"value": -sign * angle, **ends}


def _row(
    v: Vertebra, below: Vertebra | None, found: Bodies, reasons: Mapping[int, str], rotation: float | None
) -> dict[str, Any]:
    """One vertebra's columns; the search for its rotation starts at `rotation`, if known."""
    row: dict[str, Any] = dict.fromkeys(definitions("columns"))
    row |= {"level": v.name, **dict(zip(("x_mm", "y_mm", "z_mm"), np.asarray(v.centroid_ras), strict=True))}
    if v.probability.max() >= THRESHOLD:
        row["axial_rotation_deg"] = axial_rotation_deg(v, rotation)
    here = found.get(v.level)
    if here is None:
        return _rounded(row | {"reason": reasons[v.level]})
    mean = here.superior_normal + here.inferior_normal
    row |= {"sagittal_tilt_deg": tilt_deg(mean, SAGITTAL), "coronal_tilt_deg": tilt_deg(mean, CORONAL)}
    row |= {"anterior_mm": here.anterior_mm, "middle_mm": here.middle_mm, "posterior_mm": here.posterior_mm}
    row |= {"wedge_deg": _angle(here, here, SAGITTAL), "coronal_wedge_deg": _angle(here, here, CORONAL)}
    next_level = below.level if below is not None and not missing_levels([v, below]) else None
    if below is None and v.name in ("L5", "L6"):
        next_level = _S1
    if next_level is not None and next_level in found:
        following = found[next_level]
        along = unit(here.inferior_normal + following.superior_normal)
        row["disc_below_mm"] = (here.inferior_centre - following.superior_centre) @ along
    return _rounded(row)


def _angle(upper: Any, lower: Any, plane: int) -> float:
    """Tilt of the upper body's superior endplate minus that of the lower one's inferior (S1: superior) one, degrees."""
    last = lower.superior_normal if isinstance(lower, Sacrum) else lower.inferior_normal
    return tilt_deg(upper.superior_normal, plane) - tilt_deg(last, plane)


def _spread(entry: Mapping[str, Any], draws: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """An entry with `sd`, `low` and `high`; None if it has no value, or fewer than two draws have one."""
    values = [draw["value"] for draw in draws if draw["value"] is not None]
    sd = _sd(values) if entry["value"] is not None else None
    reach = None if sd is None else float(special.stdtrit(len(values) - 1, 0.975)) * sd
    low, high = (None, None) if reach is None else (entry["value"] - reach, entry["value"] + reach)
    return {**entry, **_rounded({"sd": sd, "low": low, "high": high})}


def _sd(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.std(known, ddof=1)) if len(known) > 1 else None


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers to two decimals, the rest unchanged."""
    return {key: round(float(v), 2) if isinstance(v, int | float | np.number) else v for key, v in values.items()}
