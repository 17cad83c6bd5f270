"""From two films and their landmarks to a standing spine; and a pair of simulated films to try it on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from torch import nn

from transvert import levels
from transvert.clinical import (
    centroids,
    endplate_prior,
    landmark_checks,
    landmarks,
    pixel_size,
    radiograph,
    vertebra,
)
from transvert.clinical.acquisition import Acquisition
from transvert.clinical.endplate_prior import Observations
from transvert.clinical.landmarks import Landmarks
from transvert.clinical.posture import add_spread, measure_posture, write_posture
from transvert.clinical.radiograph import Radiograph
from transvert.clinical.vertebra import Vertebra, gaps, largest_part
from transvert.data.patches import SIZE, SPACING_MM
from transvert.data.samples import Samples
from transvert.drr import exposure, geometry
from transvert.drr.geometry import VIEWS, View
from transvert.drr.projector import attenuation, cast
from transvert.imaging import mesh, volume
from transvert.imaging.volume import Volume
from transvert.io import write_json
from transvert.model import metrics
from transvert.model.calibration import Calibration, surface_sd_mm
from transvert.model.predict import predict, tta_predict
from transvert.plots import figures
from transvert.plots.figures import save_figure

if TYPE_CHECKING:
    import trimesh


@dataclass(frozen=True)
class Reconstruction:
    """A standing spine.

    Attributes:
        vertebrae: head to tail.
        labels: uint8 VerSe numbers, 1 mm.
        views: the AP and the lateral film's geometry.
        residuals_mm: level to the distance by which its two rays miss each other.
        warnings: one sentence each.
        posture: as `posture.posture` measures it, with its uncertainty where that was asked for.
        calibration: with which the probabilities are to be read; None where the weights have none.
        taken: how the AP and the lateral film were taken, and where their pixel size comes from.
        click_mm: standard deviation of the landmarks, as it was told.
        evidence: what the posture was told beside the shapes.
    """

    vertebrae: list[Vertebra]
    labels: Volume
    views: tuple[View, View]
    residuals_mm: dict[int, float]
    warnings: list[str]
    posture: dict[str, Any]
    calibration: Calibration | None = None
    taken: tuple[Acquisition, Acquisition] = (Acquisition(), Acquisition())
    click_mm: float = 2.0
    evidence: Observations = field(default_factory=lambda: Observations({}, {}))


def simulate_radiographs(
    ct: Volume, *, pixel_mm: float = 0.6, photons: float = 1e6, seed: int = 0
) -> tuple[tuple[Radiograph, Radiograph], tuple[View, View], np.ndarray]:
    """A pair of simulated cone-beam films of a CT, AP and left lateral, with scatter, photon noise and detector blur.

    Args:
        ct: HU.
        pixel_mm: detector pitch.
        photons: a pixel in air.
        seed: of the noise.

    Returns:
        The films, their views and the isocentre (3,) RAS mm that both share.
    """
    corners = ct.corners()
    matter = Volume(attenuation(ct.data), ct.affine)
    films, views = [], []
    for n, name in enumerate(VIEWS):
        view = geometry.covering_view(name, corners, pixel_mm, cone=True)
        integral = cast(matter, view)
        films.append(
            Radiograph(exposure.expose(integral, photons=photons, pixel_mm=pixel_mm, seed=seed + n), view.pixel_mm)
        )
        views.append(view)
    return (films[0], films[1]), (views[0], views[1]), (corners.min(0) + corners.max(0)) / 2


def write_radiographs(
    out: Path,
    films: tuple[Radiograph, Radiograph],
    views: tuple[View, View],
    marks: Landmarks,
    *,
    click_mm: float = 0.0,
    seed: int = 0,
) -> tuple[Path, Path, Path]:
    """Writes simulated films as 8-bit PNG and as DICOM, and their landmarks, as if a reader had clicked them.

    Args:
        out: the folder.
        films: AP and lateral.
        views: theirs.
        marks: the exact landmarks.
        click_mm: standard deviation of the clicks, life-sized.
        seed: of the clicks.

    Returns:
        The AP and the lateral PNG and the landmark file.
    """
    paths = []
    for which, picture, view in zip(VIEWS, films, views, strict=True):
        grey = radiograph.to_grey(picture.pixels, bits=8, window=None)
        paths.append(radiograph.write_png(out / f"{which}.png", grey, view.pixel_mm))
        radiograph.write_dicom(out / f"{which}.dcm", radiograph.to_grey(picture.pixels, bits=16, window=None), view)
    clicked = centroids.simulate_clicks(marks, views, click_mm, np.random.default_rng(seed))
    file = landmarks.write_landmarks(out / "landmarks.json", clicked)
    return paths[0], paths[1], file


def open_radiographs(ap: str | Path, lateral: str | Path, marks: Landmarks) -> tuple[Radiograph, Radiograph]:
    """Reads two films as a landmark file describes them, each turned right; `Landmarks.on` brings the marks along."""
    ap_film, lateral_film = (
        radiograph.read_radiograph(path, view=which, orientation=marks.views[which].get("orientation"), sized=False)
        for which, path in zip(VIEWS, (ap, lateral), strict=True)
    )
    return ap_film, lateral_film


def reconstruct(
    ap: Radiograph,
    lateral: Radiograph,
    marks: Landmarks,
    network: nn.Module,
    *,
    card: Mapping[str, Any] | None = None,
    draws: int = 10,
    click_mm: float = 2.0,
    seed: int = 0,
) -> Reconstruction:
    """Two films and their landmarks to a spine.

    Args:
        ap: the AP (or PA) film.
        lateral: the lateral film.
        marks: their landmarks.
        network: trained.
        card: of the network's weights: its calibration and the levels it has learned from.
        draws: how often the spine is reconstructed again from other clicks, for the posture's uncertainty; 0 for none.
            Each costs about as much as the spine itself. A standard deviation of 10 draws is itself within a quarter,
            one of 20 within a sixth.
        click_mm: standard deviation of the landmarks, down and across in each view, life-sized: 0 for exact ones. The less
            it is, the more they count beside the shapes for where vertebrae stand (`centring`) and how they lean (`tilts`).
        seed: of the other clicks.

    Returns:
        The spine in the frame of `marks.isocentre`.

    Raises:
        InputError: landmarks that cannot be right (`plausibility.check`), or that find nothing.
    """
    card = card or {}
    marks = marks.on(ap, lateral)
    views = marks.view("ap", ap), marks.view("lateral", lateral)
    learned = [levels.number(name) for name in card["levels"]] if "levels" in card else None
    warnings = landmark_checks.check_landmarks(marks, views, (ap, lateral), learned)
    unsteady = {level: centroids.landmark_sd_mm(marks.of, level, click_mm) for level in levels.VERTEBRAE}
    marks = centroids.to_vertebra_centroids(marks, views)
    points, residuals = marks.place(*views)
    calibration = Calibration.from_card(card["calibration"]) if "calibration" in card else None
    films = ap.pixels, lateral.pixels
    places, sds, clicks = centroids.refine_centroids(
        films, views, marks.centroids, points, unsteady, partial(predict, network, mirror=True)
    )
    warnings += centroids.far_moved_warnings(points, places, unsteady)
    given = centroids.predict_vertebrae(
        films, views, clicks, places, lambda images: _answer(network, images, calibration)
    )
    vertebrae = [v for v in given if (v.probability > 0.5).any()]
    found = {v.level for v in vertebrae}
    labels = vertebra.assemble_spine(vertebrae)
    evidence = Observations(places, sds, endplate_prior.endplate_lines(marks, views, places, click_mm))
    measured = measure_posture(vertebrae, marks.s1(*views), evidence=evidence)
    if draws:
        random, others, look = np.random.default_rng(seed), [], partial(predict, network)
        for _ in range(draws):
            clicked = centroids.simulate_clicks(marks, views, click_mm, random)
            around = {n: at for n, at in clicked.triangulate(*views)[0].items() if n in found}
            places, sds, clicks = centroids.refine_centroids(films, views, clicked.centroids, around, unsteady, look)
            again = centroids.predict_vertebrae(films, views, clicks, places, look)
            other = Observations(places, sds, endplate_prior.endplate_lines(clicked, views, places, click_mm), random)
            others.append(measure_posture(again, clicked.s1(*views), like=measured, evidence=other))
        measured = add_spread(
            measured,
            others,
            f"clicks of {click_mm:g} mm standard deviation in each view, and endplates that lean as differently as those of "
            "people held out do",
        )
    warnings += [f"{v.name}: nothing was found, left out." for v in given if v.level not in found]
    taken = [
        pixel_size.measure_pixel_size(f, marks.views[w], w).facts for w, f in zip(VIEWS, (ap, lateral), strict=True)
    ]
    warnings += [f"The {w} film: {note}" for w, known in zip(VIEWS, taken, strict=True) for note in known.notes]
    return Reconstruction(
        vertebrae, labels, views, residuals, warnings, measured, calibration, (taken[0], taken[1]), click_mm, evidence
    )


def _answer(network: nn.Module, images: np.ndarray, calibration: Calibration | None) -> np.ndarray:
    """As the calibration asks, if there is one: it holds for such answers alone."""
    if calibration is None:
        return predict(network, images, mirror=True)
    return tta_predict(network, images, calibration.jitter).probability


def posture_table(found: Reconstruction, truth: Samples | None = None) -> pd.DataFrame:
    """The posture's measures, one a row: value, its sd, low and high (a 95 % range), unit; without a value the reason.

    Of a simulated pair `truth` is the CT's samples; `true` is measured as `value` is, on its labels.
    """
    table = pd.DataFrame(found.posture["measures"]).T.reindex(columns=["value", "sd", "low", "high", "unit", "reason"])
    if truth is not None:
        bones = zip(truth.levels.tolist(), truth.centroids, truth.targets().astype(np.float32), strict=True)
        own = measure_posture([Vertebra(level, centre, bone, SPACING_MM) for level, centre, bone in bones])
        table.insert(1, "true", [entry["value"] for entry in own["measures"].values()])
    return table


def silhouettes(found: Reconstruction) -> list[dict[int, np.ndarray]]:
    """Per view, each reconstructed vertebra projected back onto the film: level to a (rows, columns) bool picture."""
    solids = {v.level: Volume((v.probability > 0.5).astype(np.float32), v.affine) for v in found.vertebrae}
    return [{level: cast(solid, view) > 0.5 * SPACING_MM for level, solid in solids.items()} for view in found.views]


def surfaces(found: Reconstruction) -> dict[int, trimesh.Trimesh]:
    """Level to smoothed, closed surface, RAS mm, coloured by its vertices' standard deviation as `spine_charts.paint` does.

    Where the weights have no calibration, that is the network's own opinion of itself.
    """
    meshes = {}
    for v in found.vertebrae:
        inside = v.probability > 0.5
        stray = inside & ~largest_part(inside)
        surface = mesh.extract_surface(np.where(stray, 0, v.probability), v.affine)
        sd = surface_sd_mm(v.probability, surface.vertices, v.affine, found.calibration or Calibration())
        meshes[v.level] = figures.colour_by_sd(surface, sd)
    return meshes


def write_reconstruction(found: Reconstruction, out: Path) -> dict[int, trimesh.Trimesh]:
    """Writes the spine: labels, surfaces, posture, and a report.

    `spine.nii.gz`; below `surfaces/` an STL, a PLY and a GLB a vertebra; `spine.stl`, and `spine.glb` with a node a
    vertebra; `surface_sd.png`; `posture.json`, `posture.csv` (vertebrae) and `posture_measures.csv`; `report.json`.

    Returns:
        The surfaces that were written.
    """
    volume.write_volume(found.labels, out / "spine.nii.gz")
    meshes = surfaces(found)
    named = {levels.name(level): surface for level, surface in meshes.items()}
    for name, surface in named.items():
        for ending in mesh.WRITABLE:
            mesh.write_surface(out / "surfaces" / f"{name}{ending}", surface)
    mesh.write_surface(out / "spine.stl", mesh.join_surfaces(list(meshes.values())))
    mesh.write_scene(out / "spine.glb", named)
    figure = figures.surface_sd_views(found.labels, meshes, found.calibration is not None)
    plt.close(save_figure(figure, out / "surface_sd.png"))
    write_posture(out / "posture.json", found.posture)
    sd = {name: np.asarray(surface.vertex_attributes[figures.SD_MM]) for name, surface in named.items()}
    write_json(
        out / "report.json",
        {
            "schema": "transvert-reconstruction/1",
            "use": "for research only, not for diagnosis",
            "frame": "RAS mm; surfaces too",
            "views": [view.to_dict() for view in found.views],
            "films": [known.to_dict() for known in found.taken],
            "residuals_mm": {levels.name(n): round(r, 3) for n, r in found.residuals_mm.items()},
            "cube_axes_ras": {v.name: v.axes.round(6).tolist() for v in found.vertebrae},
            "surface_sd_mm": {name: round(float(np.median(values)), 3) for name, values in sd.items()},
            "surface_sd_calibrated": found.calibration is not None,
            "missing_levels": gaps(found.vertebrae),
            "warnings": found.warnings,
        },
    )
    return meshes


def compare_with_truth(found: Reconstruction, truth: Samples) -> pd.DataFrame:
    """A reconstruction beside the truth, each vertebra where it was placed: metrics and the centroid's error in mm.

    Args:
        found: of a simulated pair.
        truth: the samples of the CT that the films were cast from.
    """
    rows = []
    for v in found.vertebrae:
        true = truth.chosen([v.level])
        target = true.targets()[0]
        # The prediction is brought to the truth's cube, so that an error of place counts as one.
        here = volume.cut_cube(Volume(v.probability, v.affine), true.centroids[0], SIZE, SPACING_MM, order=1, fill=0)
        scores = metrics.compare(here.data > 0.5, target, (SPACING_MM,) * 3)
        centroid = Volume(v.probability, v.affine).world(np.argwhere(v.probability > 0.5).mean(0))
        error = float(np.linalg.norm(centroid - true.centroids[0]))
        rows.append({"subject": truth.subject, "level": v.name, **scores, "centroid_error_mm": error})
    return pd.DataFrame(rows)
