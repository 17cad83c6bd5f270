"""From two films and their landmarks to a standing spine; and a pair of simulated films to try it on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from torch import nn

from transvert import film, geometry, landmarks, levels, mesh, metrics, samples, spine, volume
from transvert.drr import attenuation, cast
from transvert.files import write_json
from transvert.film import Film
from transvert.geometry import View
from transvert.landmarks import Landmarks
from transvert.prediction import predict
from transvert.samples import SIZE, SPACING_MM, Samples
from transvert.spine import Vertebra
from transvert.volume import Volume

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
    """

    vertebrae: list[Vertebra]
    labels: Volume
    views: tuple[View, View]
    residuals_mm: dict[int, float]
    warnings: list[str]


def simulate(
    ct: Volume, *, pixel_mm: float = 0.6, photons: float = 1e6, seed: int = 0
) -> tuple[tuple[Film, Film], tuple[View, View], np.ndarray]:
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
    for n, name in enumerate(samples.VIEWS):
        view = geometry.covering_view(name, corners, pixel_mm, cone=True)
        integral = cast(matter, view)
        films.append(Film(film.expose(integral, photons=photons, pixel_mm=pixel_mm, seed=seed + n), view.pixel_mm))
        views.append(view)
    return (films[0], films[1]), (views[0], views[1]), (corners.min(0) + corners.max(0)) / 2


def write_films(
    out: Path,
    films: tuple[Film, Film],
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
        click_mm: standard deviation of the clicks, on the detector.
        seed: of the clicks.

    Returns:
        The AP and the lateral PNG and the landmark file.
    """
    random = np.random.default_rng(seed)
    paths = []
    for which, picture, view in zip(samples.VIEWS, films, views, strict=True):
        grey = film.to_grey(picture.pixels, bits=8, window=None)
        paths.append(film.write_png(out / f"{which}.png", grey, view.pixel_mm))
        film.write_dicom(out / f"{which}.dcm", film.to_grey(picture.pixels, bits=16, window=None), view)
    clicked = {
        which: {
            level: pixel + random.normal(0, click_mm, 2) / np.array(view.pixel_mm)
            for level, pixel in marks.centroids[which].items()
        }
        for which, view in zip(samples.VIEWS, views, strict=True)
    }
    file = landmarks.write(out / "landmarks.json", Landmarks(marks.views, clicked, marks.isocentre))
    return paths[0], paths[1], file


def reconstruct(ap: Film, lateral: Film, marks: Landmarks, network: nn.Module) -> Reconstruction:
    """Two films and their landmarks to a spine.

    Args:
        ap: the AP (or PA) film.
        lateral: the lateral film.
        marks: their landmarks.
        network: trained.

    Returns:
        The spine in the frame of `marks.isocentre`.

    Raises:
        InputError: landmarks that do not fit the films or each other.
    """
    views = marks.view("ap", ap), marks.view("lateral", lateral)
    points, residuals = marks.place(*views)
    images = []
    for level in marks.levels:
        centre = points[level]
        cuts = [
            film.cut_patch(f.pixels, v, centre, SIZE, SPACING_MM) for f, v in zip((ap, lateral), views, strict=True)
        ]
        # The rays rarely meet: each view's own landmark lies a little off its patch's centre.
        offsets = [
            (marks.centroids[which][level] - view.project(centre)) * view.pixel_mm / view.magnification(centre)
            for which, view in zip(samples.VIEWS, views, strict=True)
        ]
        patches, valid = (np.array(parts) for parts in zip(*cuts, strict=True))
        images.append(samples.network_input(patches, valid, np.array(offsets)))
    probabilities = predict(network, np.array(images, np.float32), mirror=True)
    vertebrae = [Vertebra(n, points[n], p, SPACING_MM) for n, p in zip(marks.levels, probabilities, strict=True)]
    warnings = [f"{v.name}: nothing was found, left out." for v in vertebrae if not (v.probability > 0.5).any()]
    warnings += [
        f"{name}: no landmarks between its neighbours', so the spine has a gap." for name in spine.gaps(vertebrae)
    ]
    warnings += [
        f"{levels.name(n)}: its two landmarks disagree by {r:.1f} mm." for n, r in residuals.items() if r > 4.0
    ]
    vertebrae = [v for v in vertebrae if (v.probability > 0.5).any()]
    return Reconstruction(vertebrae, spine.assemble(vertebrae), views, residuals, warnings)


def silhouettes(found: Reconstruction) -> list[dict[int, np.ndarray]]:
    """Per view, each reconstructed vertebra projected back onto the film: level to a (rows, columns) bool picture."""
    solids = {v.level: Volume((v.probability > 0.5).astype(np.float32), v.affine) for v in found.vertebrae}
    return [{level: cast(solid, view) > 0.5 * SPACING_MM for level, solid in solids.items()} for view in found.views]


def surfaces(found: Reconstruction) -> dict[int, trimesh.Trimesh]:
    """Level to smoothed, closed surface, RAS mm."""
    meshes = {}
    for v in found.vertebrae:
        inside = v.probability > 0.5
        stray = inside & ~spine.largest_part(inside)
        meshes[v.level] = mesh.surface(np.where(stray, 0, v.probability), v.affine)
    return meshes


def write(found: Reconstruction, out: Path) -> dict[int, trimesh.Trimesh]:
    """Writes `spine.nii.gz`, one STL a vertebra below `surfaces/`, `spine.stl`, `posture.json` and `.csv`, `report.json`.

    Returns:
        The surfaces that were written.
    """
    volume.write(found.labels, out / "spine.nii.gz")
    meshes = surfaces(found)
    for level, surface in meshes.items():
        mesh.write_surface(out / "surfaces" / f"{levels.name(level)}.stl", surface)
    mesh.write_surface(out / "spine.stl", mesh.join(list(meshes.values())))
    spine.write_posture(out / "posture.json", spine.posture(found.vertebrae))
    write_json(
        out / "report.json",
        {
            "schema": "transvert-reconstruction/1",
            "use": "for research only, not for diagnosis",
            "frame": "RAS mm; surfaces too",
            "views": [view.to_dict() for view in found.views],
            "residuals_mm": {levels.name(n): round(r, 3) for n, r in found.residuals_mm.items()},
            "warnings": found.warnings,
        },
    )
    return meshes


def against(found: Reconstruction, truth: Samples) -> pd.DataFrame:
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
