"""What a reconstruction writes: the label volume, surfaces, figures, the posture, and one page that shows them all.

The page is a single file that works offline: pictures are embedded as PNG, the 3D view with its own program. It names
neither files nor patients.
"""

from __future__ import annotations

import base64
import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import matplotlib.pyplot as plt
import numpy as np

from transvert import levels, runs
from transvert.clinical import exports
from transvert.clinical.landmarks import write_landmarks
from transvert.clinical.posture import definitions, write_posture
from transvert.clinical.reconstruct import Reconstruction, posture_lines, silhouettes, surfaces
from transvert.clinical.vertebra import missing_levels
from transvert.drr.geometry import VIEWS
from transvert.imaging import mesh, volume
from transvert.io import PACKAGE, atomic_path, write_json
from transvert.plots import figures, viewer

if TYPE_CHECKING:
    import trimesh

_UNITS = {"deg": "°", "mm": " mm"}


def write_reconstruction(
    found: Reconstruction,
    out: str | Path,
    *,
    simulated: bool = False,
    label: str = "",
    meshes: dict[int, trimesh.Trimesh] | None = None,
) -> dict[int, trimesh.Trimesh]:
    """Writes a reconstruction into a folder; `simulated` films are called so. `label` names the case in the report.

    The files of `write_spine`, unless it has written them and returned `meshes`; the figures `overlay.png`, `spine.png` and
    `surface_sd.png`; `report.json`; and the page `report.html`. Returns level to the surface that was written.
    """
    out = Path(out)
    if meshes:  # Written before the draws, so without their spread.
        write_posture(out / "posture.json", found.posture)
    else:
        meshes = write_spine(found, out)
    named = {levels.name(level): surface for level, surface in meshes.items()}
    titles = [f"{name} film" + (" (simulated)" if simulated else "") for name in ("AP", "lateral")]
    pixels, overlays = [film.pixels for film in found.films], silhouettes(found)
    pictures = {
        "overlay": figures.radiographs(
            pixels, found.views, titles, overlays=overlays, lines=posture_lines(found), films=True
        ),
        "spine": figures.spine_views(found.labels),
        "surface_sd": figures.surface_sd_views(found.labels, meshes, found.calibration is not None),
    }
    for name, figure in pictures.items():
        plt.close(figures.save_figure(figure, out / f"{name}.png"))
    sd = {name: np.asarray(surface.vertex_attributes[figures.SD_MM]) for name, surface in named.items()}
    report = {
        "schema": "transvert-reconstruction/1",
        "use": "for research only, not for diagnosis",
        "frame": "RAS mm; surfaces too",
        "views": [view.to_dict() for view in found.views],
        "films": [film.acquisition.to_dict() for film in found.films],
        "residuals_mm": {levels.name(n): round(r, 3) for n, r in found.residuals_mm.items()},
        "cube_axes_ras": {v.name: v.axes.round(6).tolist() for v in found.vertebrae},
        "surface_sd_mm": {name: round(float(np.median(values)), 3) for name, values in sd.items()},
        "surface_sd_calibrated": found.calibration is not None,
        "missing_levels": missing_levels(found.vertebrae),
        "warnings": found.warnings,
    }
    write_json(out / "report.json", report)
    plot = viewer.k3d_plot(meshes)
    plot.menu_visibility = False
    snapshot = plot.get_snapshot(9)
    embedded = {name: base64.b64encode((out / f"{name}.png").read_bytes()).decode() for name in pictures}
    with atomic_path(out / "report.html") as temporary:
        temporary.write_text(render_page(found, embedded, snapshot, simulated=simulated, label=label), encoding="utf-8")
    return meshes


def write_spine(found: Reconstruction, out: str | Path) -> dict[int, trimesh.Trimesh]:
    """Writes a spine's shapes and posture into a folder, and returns level to the surface that was written.

    `spine.nii.gz` and `spine.seg.nrrd`; `surfaces/` with an STL, a PLY and a GLB per vertebra; `spine.stl` and
    `spine.glb`; `centroids.mrk.json`; `posture.json`, `posture.csv` and `posture_measures.csv`; and `landmarks.json`, as given or
    found.
    """
    out = Path(out)
    volume.write_volume(found.labels, out / "spine.nii.gz")
    exports.write_segmentation(found.labels, out / "spine.seg.nrrd")
    exports.write_markups(out / "centroids.mrk.json", {v.level: v.centroid_ras for v in found.vertebrae})
    write_landmarks(out / "landmarks.json", found.landmarks)
    meshes = surfaces(found)
    named = {levels.name(level): surface for level, surface in meshes.items()}
    for name, ending in itertools.product(levels.NUMBERS, mesh.WRITABLE):  # Of an earlier spine in this folder.
        (out / "surfaces" / f"{name}{ending}").unlink(missing_ok=True)
    for name, surface in named.items():
        for ending in mesh.WRITABLE:
            mesh.write_surface(out / "surfaces" / f"{name}{ending}", surface)
    mesh.write_surface(out / "spine.stl", mesh.join_surfaces(list(meshes.values())))
    mesh.write_scene(out / "spine.glb", named)
    write_posture(out / "posture.json", found.posture)
    return meshes


def render_page(
    found: Reconstruction, pictures: Mapping[str, str], snapshot: str, *, simulated: bool, label: str
) -> str:
    """The report's HTML, with pictures as base64 PNG and the HTML of the 3D view; every value put into it is escaped."""
    rows = found.posture["vertebrae"]
    titles = {
        name: row["title"]
        for name, row in definitions("columns").items()
        if row["title"] and any(vertebra[name] is not None for vertebra in rows)
    }
    text = (PACKAGE / "static" / "report.html").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(text)
    return page.render(
        pictures=pictures,
        snapshot=snapshot,
        measures=posture_rows(found.posture),
        uncertainty=found.posture.get("uncertainty"),
        endplates=found.posture["endplates"],
        columns=list(titles.values()),
        vertebrae=[{"name": row["level"], "cells": [_cell(row, name) for name in titles]} for row in rows],
        warnings=found.warnings,
        views=dict(zip(VIEWS, found.views, strict=True)),
        residual=max(found.residuals_mm.values(), default=0.0),
        calibrated=found.calibration,
        network=found.card.get("network", "unknown"),
        learned=found.card.get("subjects", []),
        versions=runs.versions(),
        simulated=simulated,
        label=label,
        date=time.strftime("%Y-%m-%d"),
    )


def posture_rows(posture: Mapping[str, Any]) -> list[dict[str, str]]:
    """A posture's measures as the page shows them; `place` is "inside" or "outside" the usual range, or ""."""
    rows = []
    for name, entry in posture["measures"].items():
        row = definitions("measures")[name]
        value, sd, unit = entry["value"], entry.get("sd"), _UNITS[entry["unit"]]
        low, high = row["range_low"], row["range_high"]
        normal = f"{low} to {high}{unit}" if low else f"below {high}{unit}" if high else ""
        place = ""
        if normal and value is not None:
            place = "inside" if float(low or -np.inf) <= value <= float(high) else "outside"
        ends = f" ({entry['upper']} to {entry['lower']})" if entry.get("upper") else ""
        interval = "" if sd is None else f"{sd:.1f}{unit}, 95 %: {entry['low']:.1f} to {entry['high']:.1f}"
        shown = {
            "title": row["title"],
            "value": "" if value is None else f"{value:.1f}{unit}{ends}",
            "spread": interval,
        }
        shown |= {"range": normal, "place": place, "range_source": row["range_source"]}
        shown |= {"definition": f"{entry['definition']} ({entry['source']})", "reason": entry["reason"] or ""}
        rows.append(shown)
    return rows


def _cell(row: Mapping[str, Any], name: str) -> str:
    value, sd = row[name], row.get(f"{name}_sd")
    return "" if value is None else f"{value:.1f}" + (f" ± {sd:.1f}" if sd is not None else "")
