"""How often films that show no spine, or are given wrongly, become a spine without a word.

python -m benchmarks.detector.bad_films runs/detector/test --out benchmarks/detector
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.detector.evaluate import expose_pair
from benchmarks.detector.films import Films, read_films
from transvert import runs
from transvert.clinical import chain, film_checks, landmark_checks, landmarks, vertebra
from transvert.clinical.radiograph import Radiograph
from transvert.drr.geometry import View
from transvert.io import InputError
from transvert.progress import progress_bar

# Said of all proposed landmarks.
USUAL = ("proposed", "Nothing in these landmarks tells")


def fit_shape(picture: np.ndarray, view: View) -> np.ndarray:
    """A picture cut or padded to the shape of another view."""
    made = np.full(view.shape, float(np.median(picture)), np.float32)
    height, width = np.minimum(picture.shape, view.shape)
    made[:height, :width] = picture[:height, :width]
    return made


def spoil(shown: tuple[np.ndarray, np.ndarray], others: np.ndarray, films: Films, seed: int) -> dict[str, tuple]:
    """Kind of fault to an AP and a lateral film; `others` is another person's lateral film."""
    ap, lateral = shown
    ap_view, lateral_view = films.views
    random = np.random.default_rng(seed)
    noise = tuple(random.normal(size=p.shape).astype(np.float32) for p in shown)
    as_ap, as_lateral = fit_shape(lateral, ap_view), fit_shape(ap, lateral_view)
    return {
        "good": shown,
        "two lateral films": (as_ap, lateral),
        "two AP films": (ap, as_lateral),
        "exchanged": (as_ap, as_lateral),
        "another person's lateral film": (ap, fit_shape(others, lateral_view)),
        "lateral mirrored": (ap, lateral[:, ::-1]),
        "lateral upside down": (ap, lateral[::-1]),
        "AP upside down": (ap[::-1], lateral),
        "both upside down": (ap[::-1], lateral[::-1]),
        "both turned by 180 degrees": (ap[::-1, ::-1], lateral[::-1, ::-1]),
        "lateral turned by 90 degrees": (ap, fit_shape(np.rot90(lateral), lateral_view)),
        "black bone": (-ap, -lateral),
        "noise": noise,
        "blank": tuple(np.zeros_like(p) for p in shown),
    }


def what_is_said(shown: tuple[np.ndarray, np.ndarray], films: Films) -> str:
    """The doubt, warnings or refusal that a user reads; "" for none."""
    setup = landmarks.project_landmarks(*films.views, films.isocentre, {})
    pair = [Radiograph(np.ascontiguousarray(p), v.pixel_mm) for p, v in zip(shown, films.views, strict=True)]
    try:
        found = chain.detect_landmarks(pair[0], pair[1], setup)
        if found.doubt:
            return found.doubt
        warnings = landmark_checks.check_landmarks(found.landmarks, films.views, pair, None)
        points, _ = vertebra.to_vertebra_centroids(found.landmarks, films.views).place(*films.views)
        warnings += film_checks.check_films([film.pixels for film in pair], films.views, points)
        return " ".join(w for w in warnings if not any(words in w for words in USUAL))
    except InputError as error:
        return f"Refused: {error}"


def main() -> None:
    """Writes bad_films.csv and prints how many pairs of each kind pass in silence."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("films", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    every = [read_films(path) for path in sorted(asked.films.glob("*.npz"))]
    shown = [expose_pair(films, n) for n, films in enumerate(every)]
    rows = []
    for n, films in enumerate(progress_bar(every, "pairs")):
        for kind, pair in spoil(shown[n], shown[(n + 5) % len(every)][1], films, n).items():
            rows.append({"pair": n, "kind": kind, "said": what_is_said(pair, films)})
    table = pd.DataFrame(rows)
    runs.write_table(asked.out / "bad_films.csv", table)
    table["silent"] = table["said"] == ""
    print(table.groupby("kind", sort=False)["silent"].agg(["sum", "size"]))


if __name__ == "__main__":
    main()
