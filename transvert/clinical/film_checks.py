"""Whether films show a spine where it is marked, with white bone, upright, and from the side that they are given for.

The patch around each vertebra is compared with the mean patch of its region and view over people (`TABLE`), by their weighted
correlation. It asks no network. benchmarks/tables/appearance.py makes the table and measures how often good and bad
films are refused and warned of.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from transvert import levels
from transvert.clinical.vertebra import REGIONS, Views, body_region
from transvert.data import patches
from transvert.data.patches import SIZE, SPACING_MM
from transvert.io import PACKAGE, InputError

TABLE = PACKAGE / "tables" / "mean_patches.png"
"""8 bits: AP above lateral patches, the regions of `REGIONS` side by side."""
INVERTED, NOTHING, UNSURE = -0.15, 0.12, 0.22  # Mean correlations below which films are refused, or warned of.
CLEARLY = 0.1  # Films that fit another view by so much more are refused, by less only warned of.
ENOUGH = 3  # With fewer vertebrae, both films are judged together, and only by what they show.


def check_films(films: Sequence[np.ndarray], views: Views, points: Mapping[int, np.ndarray]) -> list[str]:
    """Checks an AP and a lateral film, (rows, columns), around vertebrae: level to (3,) RAS mm of the whole vertebra's centre.

    Returns warnings, one sentence each. A film that shows nothing there, black bone, or another view raises an InputError.
    """
    order = [n for n in levels.in_order(set(points)) if n not in levels.WITHOUT_BODY]
    if not order:
        return []
    seen, blank = np.zeros((2, len(order), SIZE * SIZE)), []
    for which, (film, view) in enumerate(zip(films, views, strict=True)):
        for n, level in enumerate(order):
            steps = patches.plane(patches.local_axes(*views, points[level]), which)
            patch, valid = patches.cut_patch(film, view, points[level], SIZE, SPACING_MM, steps)
            seen[which, n] = normalise(patches.standardise(patch, valid))
            middle = patch[SIZE // 2 - 8 : SIZE // 2 + 8, SIZE // 2 - 8 : SIZE // 2 + 8]
            if not np.ptp(middle) > 1e-6 * np.abs(middle).max():  # NaN too.
                blank.append(f"{levels.name(level)}: the {('AP', 'lateral')[which]} film is blank around its landmark.")
    usual = mean_patches()[:, [list(REGIONS).index(body_region(n)) for n in order]]

    def fit(expected: np.ndarray) -> np.ndarray:
        """(2, N) correlations with the patches that are expected, (2, N, SIZE, SIZE)."""
        return (seen * np.array([[normalise(patch) for patch in row] for row in expected])).sum(axis=-1)

    own = fit(usual)
    both, enough = slice(None), len(order) >= ENOUGH
    # Films turned or mirrored, with their levels counted from the other end where the head is at the bottom.
    others: dict[str, tuple[np.ndarray, int | slice]] = {
        "the AP film looks like a lateral one, or the landmarks are exchanged": (usual[::-1], 0 if enough else both)
    }
    if enough:
        others |= {
            "the lateral film looks like an AP one, or the landmarks are exchanged": (usual[::-1], 1),
            "the films look upside down": (usual[:, ::-1, ::-1], both),
            "the films look turned by 180 degrees": (usual[:, ::-1, ::-1, ::-1], both),
            "the lateral film looks mirrored, with the front on the right": (usual[..., ::-1], 1),
        }
    judged = {"AP film shows": 0, "lateral film shows": 1} if enough else {"two films show": both}
    found = []
    for words, (expected, rows) in others.items():
        score = float(fit(expected)[rows].mean())
        gain = score - float(own[rows].mean())
        if score > UNSURE and gain > 0:
            found.append((gain, words))
    # An inverted film would score minus what it does; a change that explains more is the likelier one.
    for words, rows in judged.items():
        if (score := float(own[rows].mean())) < INVERTED and not any(gain > -2 * score for gain, _ in found):
            raise InputError(
                f"The {words} bone darker than what is around it: invert the grey values, so that bone is white."
            )
    if found and max(found)[0] > CLEARLY:
        raise InputError(f"By the pictures, {max(found)[1]}: give each film upright and in its place.")
    doubts = [f"By the pictures, {words}: make sure that this is not so." for _, words in found]
    return _judge(own, judged) + doubts + blank


def _judge(own: np.ndarray, films: Mapping[str, int | slice]) -> list[str]:
    """Refuses films by their mean correlation, or warns."""
    found = []
    for words, rows in films.items():
        score = float(own[rows].mean())
        if score < NOTHING:
            raise InputError(
                f"The {words} nothing like vertebrae where they are marked (agreement {score:.2f}, usually above 0.3): give the "
                "right film, or correct the landmarks."
            )
        if score < UNSURE:
            found.append(
                f"The {words} vertebrae only faintly where they are marked (agreement {score:.2f}, usually above 0.3): look at "
                "the landmarks and the outlines."
            )
    return found


@functools.cache
def mean_patches() -> np.ndarray:
    """(2, regions, SIZE, SIZE), AP and lateral, on any grey scale."""
    with Image.open(TABLE) as image:
        return np.asarray(image, float).reshape(2, SIZE, len(REGIONS), SIZE).transpose(0, 2, 1, 3)


def normalise(patch: np.ndarray) -> np.ndarray:
    """(SIZE * SIZE,), so that a product of two is their correlation, weighted by a Gaussian of 24 mm; 0 if constant."""
    along = np.exp(-0.5 * ((np.arange(SIZE) - (SIZE - 1) / 2) * SPACING_MM / 24.0) ** 2)
    weights = np.outer(along, along)
    values = (patch - (weights * patch).sum() / weights.sum()) * np.sqrt(weights)
    length = np.linalg.norm(values)
    return (values / length if length > 1e-6 else np.zeros_like(values)).ravel()
