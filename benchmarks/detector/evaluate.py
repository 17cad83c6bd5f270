"""Measures the detector on pairs of films of people that it has not learned from.

    python -m benchmarks.detector.evaluate runs/detector/test --out benchmarks/detector

A vertebra counts as found if a point of the chain lies within 10 mm of its body's centre on both films, whatever its name. The
detector is not told by how much the patient is turned, so errors in space are those of its pixels in the true views.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.detector.films import Films, read_films
from transvert import levels, runs
from transvert.clinical import chain, detector, landmarks
from transvert.clinical.radiograph import Radiograph
from transvert.drr import exposure, geometry
from transvert.drr.geometry import VIEWS, View
from transvert.model import networks

FOUND_MM = 10.0


def expose(integral: np.ndarray, view: View, seed: int) -> np.ndarray:
    """A film with 2.5 uGy behind the densest parts, as an exposure control gives it."""
    integral = integral.astype(np.float32)
    open_ugy = 2.5 / float(np.percentile(exposure.transmit(integral), 10))
    photons = exposure.photons_per_pixel(open_ugy, view.pixel_mm)
    return exposure.expose(integral, pixel_mm=view.pixel_mm, seed=seed, photons=photons, scatter=0.02)


def expose_pair(films: Films, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Both films of a pair, exposed."""
    ap, lateral = (expose(p, v, 2 * seed + i) for i, (p, v) in enumerate(zip(films.pictures, films.views, strict=True)))
    return ap, lateral


def measure(path: Path, seed: int) -> tuple[list[dict], dict]:
    """Rows of the vertebrae of a pair of films, and a row of the pair."""
    films = read_films(path)
    shown = expose_pair(films, seed)
    setup = landmarks.project_landmarks(*films.views, films.isocentre, {})
    made = [Radiograph(p, v.pixel_mm) for p, v in zip(shown, films.views, strict=True)]
    found = chain.detect_landmarks(made[0], made[1], setup)
    true = {n: at for n, at in films.centres.items() if n != 26}
    chosen = {n: found.chain.found[n] for n in found.chain.vertebrae} if found.chain else {}
    rows, used = [], set()
    for n, at in true.items():
        where = np.array([v.project(at) for v in films.views])
        scale = np.array([np.array(v.pixel_mm) / v.magnification(at) for v in films.views])
        off = {m: np.linalg.norm((c.pixels - where) * scale, axis=1) for m, c in chosen.items()}
        nearest = min(off, key=lambda m: off[m].max(), default=None)
        hit = nearest is not None and bool(off[nearest].max() <= FOUND_MM)
        row = {"film": path.stem, "level": levels.name(n), "found": hit, "named": hit and nearest == n}
        if hit:
            used.add(nearest)
            row |= {f"{name}_mm": float(mm) for name, mm in zip(VIEWS, off[nearest], strict=True)}
            point, _ = geometry.triangulate(*itertools.chain(*zip(films.views, chosen[nearest].pixels, strict=True)))
            row["error_mm"] = float(np.linalg.norm(point - at))
        rows.append(row)
    hits = [row for row in rows if row["found"]]
    pair = {
        "film": path.stem,
        "vertebrae": len(true),
        "found": len(hits),
        "false": len(set(chosen) - used),
        "names_right": bool(hits) and all(row["named"] for row in hits),
        "certainty": found.chain.certainty if found.chain else 0.0,
        "doubt": found.doubt,
    }
    return rows, pair


def main() -> None:
    """Writes the tables and prints a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("films", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    asked = parser.parse_args()
    if asked.weights:
        network = networks.load_weights(asked.weights, {"detector": detector.Detector})[0]
        detector.shipped_detector = lambda: network
    made = [measure(path, n) for n, path in enumerate(sorted(asked.films.glob("*.npz")))]
    vertebrae = pd.DataFrame([row for rows, _ in made for row in rows])
    pairs = pd.DataFrame([pair for _, pair in made])
    runs.write_table(asked.out / "vertebrae.csv", vertebrae)
    runs.write_table(asked.out / "pairs.csv", pairs)
    vertebrae["region"] = [name[0] for name in vertebrae["level"]]
    for region, rows in [*vertebrae.groupby("region"), ("all", vertebrae)]:
        line = f"{region}: {len(rows)} vertebrae, found {rows['found'].mean():.1%}, named {rows['named'].mean():.1%}"
        for which in ("ap_mm", "lateral_mm", "error_mm"):
            line += f", {which} median {rows[which].median():.1f} 95th {rows[which].quantile(0.95):.1f}"
        print(line)
    wrong = pairs[~pairs["names_right"]]
    print(f"{len(pairs)} pairs: names right {pairs['names_right'].mean():.0%}, false points {pairs['false'].sum()};")
    print(f"wrong: {len(wrong)}, of which {(wrong['doubt'] != '').sum()} are doubted; right but doubted:", end=" ")
    print(int((pairs[pairs["names_right"]]["doubt"] != "").sum()))


if __name__ == "__main__":
    main()
