"""One page that tells a reconstruction to whoever opens it: pictures, a turning spine, its posture, warnings, versions.

The page is a single file and asks nothing of any network: pictures lie in it as PNG, the 3D view with its own program.
It names neither files nor patients.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import matplotlib.pyplot as plt

from transvert import runs
from transvert.clinical.radiograph import Radiograph
from transvert.clinical.reconstruct import Reconstruction, silhouettes
from transvert.drr.geometry import VIEWS
from transvert.io import PACKAGE, atomic_path
from transvert.plots import figures, viewer

if TYPE_CHECKING:
    import trimesh

NORMAL: dict[str, tuple[float | None, float | None, str]] = {
    "thoracic_kyphosis": (20, 50, "White and Panjabi, Clinical Biomechanics of the Spine"),
    "thoracic_kyphosis_t5_t12": (10, 40, "the normal modifier of Lenke et al., J Bone Joint Surg Am 2001;83:1169-1181"),
    "lumbar_lordosis_l1_s1": (
        40,
        80,
        "60 ± 10, two standard deviations; Vialle et al., J Bone Joint Surg Am 2005;87:260-267",
    ),
    "sacral_slope": (24, 58, "41 ± 8.4, two standard deviations; Vialle et al., J Bone Joint Surg Am 2005;87:260-267"),
    "coronal_cobb": (None, 10, "no scoliosis below it: Scoliosis Research Society"),
    "sagittal_vertical_axis": (None, 40, "the lowest modifier of Schwab et al., Spine 2012;37:1077-1082"),
}
"""Each measure's usual range in standing adults, with None for an end that it does not have, and who says so."""
NAMES = {
    "thoracic_kyphosis": "Thoracic kyphosis T4-T12",
    "thoracic_kyphosis_t1_t12": "Thoracic kyphosis T1-T12",
    "thoracic_kyphosis_t5_t12": "Thoracic kyphosis T5-T12",
    "largest_kyphosis": "Largest kyphosis",
    "lumbar_lordosis": "Lumbar lordosis L1-L5",
    "lumbar_lordosis_l1_s1": "Lumbar lordosis L1-S1",
    "sacral_slope": "Sacral slope",
    "coronal_cobb": "Largest coronal Cobb angle",
    "sagittal_vertical_axis": "Sagittal vertical axis (C7 plumb line)",
    "coronal_balance": "Coronal balance",
}
_UNITS = {"deg": "°", "mm": " mm"}
_ROW = {
    "sagittal_tilt_deg": "sagittal tilt (°)",
    "coronal_tilt_deg": "coronal tilt (°)",
    "axial_rotation_deg": "axial rotation (°)",
    "wedge_deg": "wedge (°)",
    "anterior_mm": "anterior height (mm)",
    "middle_mm": "middle height (mm)",
    "posterior_mm": "posterior height (mm)",
    "disc_below_mm": "disc below (mm)",
}


def posture_rows(posture: Mapping[str, Any]) -> list[dict[str, str]]:
    """A posture's measures as a page shows them: what has no value comes with the reason.

    Returns:
        Rows of strings: name, value, spread, normal, place ("inside", "outside" or ""), source, definition, reason.
    """
    found = []
    for name, entry in posture["measures"].items():
        low, high, source = NORMAL.get(name, (None, None, ""))
        value, unit = entry["value"], _UNITS[entry["unit"]]
        place = ""
        if value is not None and source:
            below, above = low is not None and value < low, high is not None and value > high
            place = "outside" if below or above else "inside"
        ends = f" ({entry['upper']} to {entry['lower']})" if entry.get("upper") else ""
        sd = entry.get("sd")
        spread = (
            "" if value is None or sd is None else f"{sd:.1f}{unit}, 95 %: {entry['low']:.1f} to {entry['high']:.1f}"
        )
        found.append(
            {
                "name": NAMES[name],
                "value": "" if value is None else f"{value:.1f}{unit}{ends}",
                "spread": spread,
                "normal": _range(low, high, unit),
                "place": place,
                "source": source,
                "definition": f"{entry['definition']} ({entry['source']})",
                "reason": entry["reason"] or "",
            }
        )
    return found


def write_report(
    path: str | Path,
    found: Reconstruction,
    films: Sequence[Radiograph],
    meshes: Mapping[int, trimesh.Trimesh],
    card: Mapping[str, Any] | None = None,
    *,
    simulated: bool = False,
) -> Path:
    """Writes the page, and beside it its pictures of the films and of the spine, `overlay.png` and `spine.png`.

    Args:
        path: of the page, `report.html`, in the folder that `clinical.write` has written.
        found: the reconstruction.
        films: the AP and the lateral film.
        meshes: its surfaces, as `clinical.write` gives them.
        card: of the network's weights.
        simulated: the films are, and the page says so.
    """
    path = Path(path)
    titles = [f"{name} film" + (" (simulated)" if simulated else "") for name in ("AP", "lateral")]
    pictures = [f.pixels for f in films]
    overlay = figures.radiographs(pictures, found.views, titles, overlays=silhouettes(found), unit="grey value")
    for name, figure in (("overlay", overlay), ("spine", figures.spine_views(found.labels))):
        plt.close(figures.save_figure(figure, path.parent / f"{name}.png"))
    columns = {
        key: title for key, title in _ROW.items() if any(row[key] is not None for row in found.posture["vertebrae"])
    }
    page = _template().render(
        overlay=_embed(path.parent / "overlay.png"),
        spine=_embed(path.parent / "spine.png"),
        sure=_embed(path.parent / "surface_sd.png"),
        turning=viewer.k3d_plot(meshes).get_snapshot(9),
        measures=posture_rows(found.posture),
        uncertainty=found.posture.get("uncertainty"),
        endplates=found.posture["endplates"],
        columns=list(columns.values()),
        vertebrae=[
            {"name": row["level"], "cells": [_cell(row, key) for key in columns]} for row in found.posture["vertebrae"]
        ],
        warnings=found.warnings,
        views=dict(zip(VIEWS, found.views, strict=True)),
        residual=max(found.residuals_mm.values(), default=0.0),
        calibrated=found.calibration,
        network=(card or {}).get("network", "not told"),
        learned=(card or {}).get("subjects", []),
        versions=runs.versions(),
        simulated=simulated,
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _template() -> jinja2.Template:
    """The page; everything put into it is escaped."""
    text = (PACKAGE / "static" / "report.html").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(text)


def _embed(picture: Path) -> str:
    """A PNG file as the address of an image that lies in the page."""
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()


def _cell(row: Mapping[str, Any], key: str) -> str:
    value, sd = row[key], row.get(f"{key}_sd")
    return "" if value is None else f"{value:.1f}" + (f" ± {sd:.1f}" if sd is not None else "")


def _range(low: float | None, high: float | None, unit: str) -> str:
    if low is None:
        return "" if high is None else f"below {high:g}{unit}"
    return f"{low:g} to {high:g}{unit}"
