"""From two films and their landmarks to a spine; and simulated films to try it on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import nn

from transvert import levels
from transvert.clinical import chain, endplates, film_checks, landmark_checks, radiograph, vertebra
from transvert.clinical.endplates import CORONAL, SAGITTAL, Endplates, Observations, Sacrum
from transvert.clinical.landmarks import Landmarks, empty_landmarks, read_landmarks, write_landmarks
from transvert.clinical.posture import add_spread, definitions, fit_bodies, measure_posture
from transvert.clinical.radiograph import Radiograph
from transvert.clinical.vertebra import Points, Predict, Vertebra, Views, assemble_spine, largest_part, unit
from transvert.data.patches import SIZE, SPACING_MM
from transvert.data.samples import Samples
from transvert.drr import exposure, geometry
from transvert.drr.geometry import VIEWS
from transvert.drr.projector import attenuation, cast
from transvert.imaging import mesh
from transvert.imaging.volume import Volume, cut_cube
from transvert.io import InputError
from transvert.model import metrics, networks
from transvert.model.calibration import Calibration, surface_sd_mm
from transvert.model.predict import predict, tta_predict
from transvert.plots import figures
from transvert.progress import progress_bar

if TYPE_CHECKING:
    import trimesh


@dataclass(frozen=True)
class Reconstruction:
    """A standing spine."""

    vertebrae: list[Vertebra]  #: Head to tail.
    labels: Volume  #: uint8 VerSe numbers, 1 mm.
    films: tuple[Radiograph, Radiograph]  #: AP and lateral, with the pixel size that was used.
    views: Views  #: Geometry of the AP and the lateral film.
    landmarks: Landmarks  #: As given or found.
    residuals_mm: dict[int, float]  #: Level to the distance between its two rays.
    warnings: list[str]  #: One sentence each.
    posture: dict[str, Any]  #: From `measure_posture`, with its uncertainty if there are draws.
    observations: Observations  #: What the posture used besides the shapes.
    calibration: Calibration | None  #: Of the probabilities; None if the weights have none.
    card: Mapping[str, Any]  #: Of the network's weights.
    s1: Mapping[str, np.ndarray] | None = None  #: The ends of S1's upper endplate, if they are marked.


def reconstruct(
    ap: Radiograph | str | Path,
    lateral: Radiograph | str | Path,
    landmarks: Landmarks | str | Path | None = None,
    network: nn.Module | str | Path | None = None,
    *,
    card: Mapping[str, Any] | None = None,
    draws: int = 10,
    landmark_sd_mm: float = 2.0,
    seed: int = 0,
    on_spine: Callable[[Reconstruction], None] | None = None,
) -> Reconstruction:
    """Reconstructs a spine from two films and their landmarks. For research only, not for diagnosis.

    Args:
        ap: the AP (or PA) film, or its file (DICOM, PNG, JPEG, TIFF).
        lateral: the lateral film, or its file.
        landmarks: of both films, or their JSON file; without them, or if they only say how the films were taken, the vertebrae
            are found (`chain.detect_landmarks`).
        network: a trained network, or its weights file; by default the shipped weights.
        card: of the given network: its calibration and the levels that it has learned.
        draws: reconstructions from randomly shifted landmarks, for the posture's uncertainty; 0 for none. Each takes about
            as long as the spine itself; an interrupt (Ctrl-C, the stop button) ends them and keeps the spine. A standard
            deviation from 10 draws is accurate to a quarter, from 20 to a sixth.
        landmark_sd_mm: standard deviation of the landmarks along rows and along columns, mm in the patient; 0 if they are
            exact. The smaller it is, the less the shapes correct places (`vertebra`) and tilts (`endplates`).
        seed: of the draws.
        on_spine: called with the spine before the draws, if there are any.

    Returns:
        The spine in RAS mm around `landmarks.isocentre`.

    Raises:
        InputError: an unreadable file, landmarks that are impossible (`check_landmarks`), nothing is found, or it is not
            certain which vertebrae were found.
    """
    if landmarks is None:
        marks = empty_landmarks()
    else:
        marks = landmarks if isinstance(landmarks, Landmarks) else read_landmarks(landmarks, partial=True)
    films = read_films(ap, lateral, marks)
    if not any(marks.centroids.values()):
        detection = chain.detect_landmarks(*films, marks)
        if detection.doubt:
            raise InputError(f"{detection.doubt} `transvert detect` writes what was found, for the annotator.")
        marks = detection.landmarks
    if not marks.levels:
        given_as = f"landmark file {Path(landmarks).name}" if isinstance(landmarks, str | Path) else "set of landmarks"
        raise InputError(f"The {given_as} marks no vertebra in both views.")
    given = marks
    if not isinstance(network, nn.Module):
        network, card = networks.load_network(network)
    card = card or {}
    calibration = Calibration.from_card(card["calibration"]) if "calibration" in card else None
    learned = [levels.number(name) for name in card["levels"]] if "levels" in card else None
    views = marks.view("ap", films[0]), marks.view("lateral", films[1])
    licence = [f"The weights' licence: {card['licence']}."] if "licence" in card else []
    warnings = licence + landmark_checks.check_landmarks(marks, views, films, learned)
    sd_mm = {n: vertebra.place_sd_mm(marks.centroids_of, n, landmark_sd_mm) for n in levels.VERTEBRAE}
    marks = vertebra.to_vertebra_centroids(marks, views)
    points, residuals = marks.place(*views)
    warnings += film_checks.check_films([film.pixels for film in films], views, points)

    once, mirrored = partial(predict, network), partial(predict, network, mirror=True)
    # A calibration holds for predictions with its own test-time augmentation alone.
    final = partial(tta_predict, network, config=calibration.tta) if calibration else mirrored

    def locate(
        marks: Landmarks, points: Points, first: Predict, final: Predict, random: np.random.Generator | None = None
    ) -> tuple[list[Vertebra], Observations]:
        """Refines the places with a first prediction, and predicts the vertebrae there."""
        pixels = films[0].pixels, films[1].pixels
        places, sds, at = vertebra.refine_centroids(pixels, views, marks.centroids, points, sd_mm, first)
        bar.update(random is None)
        lines = endplates.endplate_lines(marks, views, places, landmark_sd_mm)
        found = vertebra.predict_vertebrae(pixels, views, at, places, final)
        bar.update()
        return found, Observations(places, sds, lines, random)

    with progress_bar(range(2 + draws), "Reconstructing") as bar:
        predicted, observations = locate(marks, points, mirrored, final)
        warnings += vertebra.warn_of_shifts(points, observations.places, sd_mm)
        vertebrae = [v for v in predicted if (v.probability > 0.5).any()]
        labels, s1 = assemble_spine(vertebrae), marks.s1(*views)
        posture = measure_posture(vertebrae, s1, observations=observations)
        found = {v.level for v in vertebrae}
        warnings += [f"{v.name}: nothing was found, left out." for v in predicted if v.level not in found]
        if overlapping := [row["level"] for row in posture["vertebrae"] if (row["disc_below_mm"] or 0.0) < 0]:
            text = "the height of the disc below is negative: it is smaller than its error of a few mm."
            warnings.append(f"{', '.join(overlapping)}: {text}")
        ap, lateral = (marks.setups[name].measure_film(film, name) for name, film in zip(VIEWS, films, strict=True))
        for name, film in zip(VIEWS, (ap, lateral), strict=True):
            warnings += [f"The {name} film: {note}" for note in film.acquisition.notes]
        spine = Reconstruction(
            vertebrae,
            labels,
            (ap, lateral),
            views,
            given,
            residuals,
            warnings,
            posture,
            observations,
            calibration,
            card,
            s1,
        )
        if not draws:
            return spine
        if on_spine is not None:
            bar.clear()
            on_spine(spine)
        random, others = np.random.default_rng(seed), []
        try:
            for _ in range(draws):
                clicked = vertebra.simulate_clicks(marks, views, landmark_sd_mm, random)
                places = {n: at for n, at in clicked.triangulate(*views)[0].items() if n in found}
                drawn, seen = locate(clicked, places, once, once, random)
                others.append(measure_posture(drawn, clicked.s1(*views), reference=posture, observations=seen))
        except KeyboardInterrupt:  # The spine itself is there.
            warnings.append(f"Stopped after {len(others)} of {draws} draws: the posture's uncertainty is from these.")
    cause = (
        f"landmarks shifted with a standard deviation of {landmark_sd_mm:g} mm along rows and columns, and endplate "
        "tilts that vary as those of people held out from training do"
    )
    return replace(spine, posture=add_spread(posture, others, cause))


def read_films(
    ap: Radiograph | str | Path, lateral: Radiograph | str | Path, marks: Landmarks, pixel_mm: float | None = None
) -> tuple[Radiograph, Radiograph]:
    """Reads the films that are given as files; the landmark file may state their orientation and pixel size.

    `pixel_mm` is the pitch on the detector of both films, in place of their files'.
    """
    read = []
    for name, film in zip(VIEWS, (ap, lateral), strict=True):
        if not isinstance(film, Radiograph):
            orientation = marks.setups[name].orientation
            film = radiograph.read_radiograph(
                film, pixel_mm, view=name, orientation=orientation, require_pixel_mm=False
            )
        read.append(film)
    return read[0], read[1]


def posture_table(found: Reconstruction, truth: Samples | None = None) -> pd.DataFrame:
    """The posture's measures, one per row: value, sd, low and high (95 %), unit, and the reason if there is no value.

    With `truth`, the samples of the CT that the films were simulated from, `true` is measured on its labels.
    """
    table = pd.DataFrame(found.posture["measures"]).T.reindex(columns=["value", "sd", "low", "high", "unit", "reason"])
    if truth is not None:
        bones = zip(truth.levels.tolist(), truth.centroids, truth.targets().astype(np.float32), strict=True)
        own = measure_posture([Vertebra(level, centre, bone, SPACING_MM) for level, centre, bone in bones])
        table.insert(1, "true", [entry["value"] for entry in own["measures"].values()])
    return table


def silhouettes(found: Reconstruction) -> list[dict[int, np.ndarray]]:
    """Per film, each vertebra projected back onto it, binned as `figures.bin_picture`: level to (rows, columns) bool."""
    solids = {v.level: Volume((v.probability > 0.5).astype(np.float32), v.affine) for v in found.vertebrae}
    views = []
    for view in found.views:
        factor = -(-max(view.shape) // figures.LONGEST)
        rows, columns = (-(-n // factor) for n in view.shape)
        steps = factor * view.row_step, factor * view.column_step
        middle = (factor - 1) / 2 * view.row_step, (factor - 1) / 2 * view.column_step
        source = view.source + middle[0] if view.source is not None and view.slot else view.source
        moved = replace(view, corner=view.corner + sum(middle), source=source)
        views.append(replace(moved, shape=(rows, columns), row_step=steps[0], column_step=steps[1]))
    return [{level: cast(solid, view) > 0.5 * SPACING_MM for level, solid in solids.items()} for view in views]


def posture_lines(found: Reconstruction) -> list[dict[str, np.ndarray]]:
    """What the posture was measured between, per film, for `figures.radiographs`: name to (N, 2, 2), ends (row, column).

    "" are all endplates. A named pair, 30 mm longer at both ends, are those of the Cobb angle on the AP film, and of the first
    thoracic kyphosis and lumbar lordosis that have a value on the lateral film.
    """
    bodies, _ = fit_bodies(found.vertebrae, found.s1, found.observations)
    measures, shown = found.posture["measures"], []
    kinds_of = {CORONAL: ("coronal_cobb",), SAGITTAL: ("thoracic_kyphosis", "lumbar_lordosis")}
    for plane, view in enumerate(found.views):
        plates = {(n, side): _plate_line(body, side, plane) for n, body in bodies.items() for side in _sides(body)}
        lines = {"": np.array([view.project(ends) for ends in plates.values()])}
        for kind in kinds_of[plane]:
            known = (name for name in measures if name.startswith(kind) and measures[name]["value"] is not None)
            if name := next(known, ""):
                row, entry = definitions("measures")[name], measures[name]
                upper, lower = (entry.get(end) or row[end] for end in ("upper", "lower"))
                title = row["title"] if row["upper"] else f"Cobb angle {upper}-{lower}"
                last = levels.number(lower)
                pair = plates[levels.number(upper), "superior"], plates[last, _sides(bodies[last])[-1]]
                longer = [ends + 30.0 * np.outer([-1, 1], unit(ends[1] - ends[0])) for ends in pair]
                lines[f"{title}: {entry['value']:.0f}°"] = np.array([view.project(ends) for ends in longer])
        shown.append(lines)
    return shown


def _sides(body: Endplates | Sacrum) -> tuple[str, ...]:
    return ("superior",) if isinstance(body, Sacrum) else ("superior", "inferior")


def _plate_line(body: Endplates | Sacrum, side: str, plane: int) -> np.ndarray:
    """(2, 3) RAS mm, an endplate's ends in the coronal or sagittal plane; S1's, whose size is unknown, are 40 mm apart."""
    width = 40.0 if isinstance(body, Sacrum) else (body.width_mm, body.depth_mm)[plane]
    centre, normal = getattr(body, f"{side}_centre"), getattr(body, f"{side}_normal")
    along = np.zeros(3)
    along[plane], along[2] = normal[2], -normal[plane]
    return centre + width / 2 * np.outer([-1, 1], unit(along))


def surfaces(found: Reconstruction) -> dict[int, trimesh.Trimesh]:
    """Level to its closed surface in RAS mm, coloured by its expected error (`figures.colour_by_sd`).

    Without a calibration the error is the network's own estimate, which is too small.
    """
    meshes = {}
    for v in found.vertebrae:
        inside = v.probability > 0.5
        fragments = inside & ~largest_part(inside)
        surface = mesh.extract_surface(np.where(fragments, 0, v.probability), v.affine)
        sd = surface_sd_mm(v.probability, surface.vertices, v.affine, found.calibration or Calibration())
        meshes[v.level] = figures.colour_by_sd(surface, sd)
    return meshes


def compare_with_truth(found: Reconstruction, truth: Samples) -> pd.DataFrame:
    """Metrics and centroid error in mm of each vertebra where it was placed, against the samples of the simulated CT."""
    rows = []
    for v in found.vertebrae:
        true = truth.chosen([v.level])
        # Resampled into the true cube, so that an error of place lowers the metrics.
        here = cut_cube(Volume(v.probability, v.affine), true.centroids[0], SIZE, SPACING_MM, order=1, fill=0)
        scores = metrics.compare(here.data > 0.5, true.targets()[0], (SPACING_MM,) * 3)
        centroid = Volume(v.probability, v.affine).world(np.argwhere(v.probability > 0.5).mean(0))
        error = float(np.linalg.norm(centroid - true.centroids[0]))
        rows.append({"subject": truth.subject, "level": v.name, **scores, "centroid_error_mm": error})
    return pd.DataFrame(rows)


def simulate_radiographs(
    ct: Volume, *, pixel_mm: float = 0.6, photons: float = 1e6, seed: int = 0
) -> tuple[tuple[Radiograph, Radiograph], Views, np.ndarray]:
    """Simulates an AP and a left lateral cone-beam film of a CT (HU), with scatter, photon noise and detector blur.

    `pixel_mm` is the detector's pitch, `photons` their number per pixel in air. Returns the films, their views, and their
    common isocentre (3,) RAS mm.
    """
    corners = ct.corners()
    mu = Volume(attenuation(ct.data), ct.affine)
    films, views = [], []
    for n, name in enumerate(VIEWS):
        view = geometry.covering_view(name, corners, pixel_mm, cone=True)
        pixels = exposure.expose(cast(mu, view), photons=photons, pixel_mm=pixel_mm, seed=seed + n)
        films.append(Radiograph(pixels, view.pixel_mm))
        views.append(view)
    return (films[0], films[1]), (views[0], views[1]), (corners.min(0) + corners.max(0)) / 2


def write_radiographs(
    out: Path,
    films: tuple[Radiograph, Radiograph],
    views: Views,
    marks: Landmarks,
    *,
    landmark_sd_mm: float = 0.0,
    seed: int = 0,
) -> tuple[Path, Path, Path]:
    """Writes simulated films as 8-bit PNG and 16-bit DICOM, and their landmarks with random errors.

    `marks` are exact; `landmark_sd_mm` is the errors' standard deviation, mm in the patient. Returns the AP and the lateral
    PNG, and the landmark file.
    """
    paths = []
    for name, film, view in zip(VIEWS, films, views, strict=True):
        paths.append(radiograph.write_png(out / f"{name}.png", radiograph.to_grey(film.pixels, bits=8), view.pixel_mm))
        radiograph.write_dicom(out / f"{name}.dcm", radiograph.to_grey(film.pixels, bits=16), view)
    clicked = vertebra.simulate_clicks(marks, views, landmark_sd_mm, np.random.default_rng(seed))
    return paths[0], paths[1], write_landmarks(out / "landmarks.json", clicked)
