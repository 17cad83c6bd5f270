"""Names the vertebrae that a detector found: the most likely chain of levels through candidates in space.

Dynamic programming over candidates and levels (Viterbi). A candidate gains by its probabilities in both films. A level loses by
how much less likely the pictures make it than the likeliest one. A step loses by its difference from usual steps
(`tables/spacing.csv`), scaled to the person. T12 may be absent, and T13 or L6 present, at the odds below. How certain the names
are follows from the best chains that are named otherwise.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from transvert import levels
from transvert.clinical.autofill import usual_spacing
from transvert.clinical.detector import (
    FAINT,
    LEVELS,
    Candidate,
    film_fault,
    find_candidates,
    find_centres,
    refine_candidate,
)
from transvert.clinical.landmarks import BODY, Landmarks, empty_landmarks
from transvert.clinical.radiograph import Radiograph
from transvert.drr.geometry import VIEWS
from transvert.io import InputError

ORDER = tuple(levels.NAMES)  # C1 to sacrum, with T13 and L6.
FEWEST = 5  # Vertebrae of a spine.
# This companion's choices, tried on films of the detector's training (benchmarks/detector).
BIAS = 2.2  # Added to the mean logit of a candidate: from a probability of a tenth on it is worth including.
STEP_SD = 0.18  # Relative standard deviation of a step's length before the person's size is known; later 0.6 of it.
LEAN_SD_DEG = 18.0  # Standard deviation of a step's direction from usual.
SKIPPED = 7.0  # Cost of a vertebra that no candidate shows.
LEVEL_WEIGHT = 1.0  # Of the levels against the centres and the steps.
# Negative log odds of unusual numbers of vertebrae: 11 or 13 thoracic, 6 lumbar. Each has a few per cent of people.
VARIANTS = {("T11", "L1"): 3.5, ("T12", "T13"): 4.5, ("L5", "L6"): 3.2}
EVIDENCE = 0.1  # Share of the chains' difference in score that counts as evidence for a name.


@dataclass(frozen=True)
class Chain:
    """Named vertebrae.

    Attributes:
        found: level to its candidate, head to tail; the sacrum (26) too if it was found.
        certainty: probability that all names are right, and not all one or more levels off.
        other: the second likeliest name of the lowest vertebra.
    """

    found: dict[int, Candidate]
    certainty: float
    other: str

    @property
    def vertebrae(self) -> list[int]:
        """The levels without the sacrum, head to tail."""
        return [n for n in self.found if n != 26]


def name_vertebrae(candidates: Sequence[Candidate], lowest: int | None = None) -> Chain | None:
    """The most likely chain through candidates, sorted from the head down; None where there is none.

    `lowest` is the level of the lowest vertebra, where it is known; one that the films can't show is an InputError.
    """
    if not candidates:
        return None
    size = 1.0
    for sd in (STEP_SD, 0.6 * STEP_SD):
        scores = _Scores(candidates, size, sd)
        path = scores.best_path()
        if len(path) < 2:
            return None
        size = _person_size(candidates, path)
    if lowest is not None:
        path = _rename(scores, [i for i, place in path if ORDER[place] != 26], lowest)
    shifts = {shift: scores.renamed(path, shift) for shift in range(-3, 4)}
    weights = {n: float(np.exp(np.clip(EVIDENCE * (value - shifts[0]), -700, 50))) for n, value in shifts.items()}
    likeliest = max((n for n in weights if n), key=lambda n: weights[n])
    last = [place for _, place in path if ORDER[place] != 26][-1]
    other = levels.name(ORDER[int(np.clip(last + likeliest, 0, len(ORDER) - 2))])
    return Chain({ORDER[place]: candidates[i] for i, place in path}, 1 / sum(weights.values()), other)


def level_scores(candidate: Candidate) -> np.ndarray:
    """(26,) by `ORDER`: log probabilities of the levels relative to the likeliest; T13 and L6 are between their neighbours."""
    both = candidate.level.sum(0)
    usual = dict(zip(LEVELS, both - both.max(), strict=True))
    between = {28: (19, 20), 25: (24, 26)}
    pairs = {n: [usual[m] for m in near] for n, near in between.items()}
    return np.array([usual[n] if n in usual else float(np.logaddexp(*pairs[n]) - np.log(2)) for n in ORDER])


def _person_size(candidates: Sequence[Candidate], path: Sequence[tuple[int, int]]) -> float:
    """The median of the chain's steps relative to usual ones."""
    ratios = [
        np.linalg.norm(candidates[j].point - candidates[i].point) / np.linalg.norm(_usual_step(a, b))
        for (i, a), (j, b) in itertools.pairwise(path)
    ]
    return float(np.clip(np.median(ratios), 0.6, 1.3))


def _usual_step(place: int, other: int) -> np.ndarray:
    """(3,) RAS mm from a place in `ORDER` to a lower one."""
    mean, step = usual_spacing().mean, np.zeros(3)
    chain = [n for n in ORDER[place : other + 1] if n not in levels.RARE or n in (ORDER[place], ORDER[other])]
    for upper, lower in itertools.pairwise(chain):
        if lower == 26:
            step += np.array([0.0, -14.0, -30.0])  # The middle of S1, this companion's choice.
        else:
            step += mean.get((upper, lower), mean[19, 20])
    return step


def _rename(scores: _Scores, order: Sequence[int], lowest: int) -> list[tuple[int, int]]:
    """The names of candidates of which the last is `lowest`."""
    path, score = scores.name_from(order, ORDER.index(lowest))
    if not np.isfinite(score):
        raise InputError(f"{len(order)} vertebrae were found, which can't end at {levels.name(lowest)}; correct it.")
    return path


class _Scores:
    """Scores of nodes and steps for a person's size."""

    def __init__(self, candidates: Sequence[Candidate], size: float, sd: float):
        self.sd = sd
        points = np.array([c.point for c in candidates])
        self.steps = points[None] - points[:, None]
        self.lengths = np.linalg.norm(self.steps, axis=2)
        gains = [c.centre.mean() + BIAS for c in candidates]
        self.gain = np.clip(gains, -6, 4)
        self.level = LEVEL_WEIGHT * np.array([level_scores(c) for c in candidates]).clip(-12, 0)
        # Upper place, lower place, and the (N, N) scores of such a step from each candidate to each other.
        self.moves = [(a, b, self._step_scores(step) - cost) for a, b, cost, step in self._edges(size)]

    @staticmethod
    def _edges(size: float) -> Iterator[tuple[int, int, float, np.ndarray]]:
        """The possible steps: upper place, lower place, cost, usual step (3,)."""
        number = {levels.name(n): i for i, n in enumerate(ORDER)}
        usual = [i for i, n in enumerate(ORDER) if n not in levels.RARE]
        for a, b in itertools.pairwise(usual):
            yield a, b, 0.0, size * _usual_step(a, b)
        for a, b in zip(usual, usual[2:], strict=False):
            yield a, b, SKIPPED, size * _usual_step(a, b)
        for (upper, lower), cost in VARIANTS.items():
            a, b = number[upper], number[lower]
            near = _usual_step(number["T12"], number["L1"])
            yield a, b, cost, size * (near if upper != "L5" else _usual_step(number["L4"], number["L5"]))
        yield number["T13"], number["L1"], 0.0, size * _usual_step(number["T12"], number["L1"])
        yield number["L6"], number["sacrum"], 0.0, size * _usual_step(number["L5"], number["sacrum"])

    def _step_scores(self, usual: np.ndarray) -> np.ndarray:
        """(N, N): the score of a step from each candidate to each lower one; -inf to one that is not lower."""
        expected = float(np.linalg.norm(usual))
        with np.errstate(divide="ignore", invalid="ignore"):
            cosine = np.nan_to_num(self.steps @ usual / (self.lengths * expected))
            off = (np.log(self.lengths / expected) / self.sd) ** 2
        lean = (np.degrees(np.arccos(np.clip(cosine, -1, 1))) / LEAN_SD_DEG) ** 2
        return np.where(self.steps[..., 2] < -2.0, -0.5 * (off + lean), -np.inf)

    def best_path(self) -> list[tuple[int, int]]:
        """Pairs of candidate and place in `ORDER`, from the head down."""
        count, places = len(self.gain), len(ORDER)
        best = self.gain[:, None] + self.level  # Of the best chain that ends here.
        origin = np.full((count, places, 2), -1)
        for place in range(places):
            own = self.gain + self.level[:, place]
            for upper, _, move in (m for m in self.moves if m[1] == place):
                total = best[:, upper, None] + move
                source = total.argmax(axis=0)
                value = total[source, np.arange(count)] + own
                better = value > best[:, place]
                best[better, place] = value[better]
                origin[better, place] = np.stack([source[better], np.full(better.sum(), upper)], axis=1)
        at = np.unravel_index(int(best.argmax()), best.shape)
        path = [(int(at[0]), int(at[1]))]
        while origin[path[-1]][0] >= 0:
            i, place = origin[path[-1]]
            path.append((int(i), int(place)))
        return path[::-1]

    def renamed(self, path: Sequence[tuple[int, int]], shift: int) -> float:
        """The score of the path's candidates with the lowest one named `shift` levels further down."""
        usual = [i for i, n in enumerate(ORDER) if n not in levels.RARE]
        place = path[-1][1]
        if shift:
            n = min(range(len(usual)), key=lambda i: abs(usual[i] - place)) + shift
            if not 0 <= n < len(usual):
                return -np.inf
            place = usual[n]
        return self.name_from([i for i, _ in path], place)[1]

    def name_from(self, order: Sequence[int], lowest: int) -> tuple[list[tuple[int, int]], float]:
        """The best names of given candidates, head to tail, of which the last has the place `lowest`; and their score."""
        score = np.full(len(ORDER), -np.inf)
        score[lowest] = self.gain[order[-1]] + self.level[order[-1], lowest]
        below = []
        for lower, upper in itertools.pairwise(order[::-1]):
            fresh, origin = np.full(len(ORDER), -np.inf), np.full(len(ORDER), -1)
            for a, b, move in self.moves:
                value = score[b] + move[upper, lower] + self.gain[upper] + self.level[upper, a]
                if value > fresh[a]:
                    fresh[a], origin[a] = value, b
            score = fresh
            below.append(origin)
        place = int(score.argmax())
        places = [place]
        for origin in below[::-1]:
            places.append(int(origin[places[-1]]))
        return list(zip(order, places, strict=True)), float(score.max())


CERTAIN = 0.9  # Names less certain than this are asked about.
APART = 2.5  # Levels by which the two films may differ, on average.


@dataclass(frozen=True)
class Detection:
    """What was found on two films.

    Attributes:
        landmarks: bodies' centres on both films, all of them `proposed`.
        chain: their names and certainty; None where there is none.
        doubt: why they should not be used before a person has looked at them; "" if there is no reason.
    """

    landmarks: Landmarks
    chain: Chain | None
    doubt: str

    def describe(self) -> str:
        """What was found, in one sentence, and the doubt."""
        names = [levels.name(n) for n in self.chain.vertebrae] if self.chain else []
        if not names or self.chain is None:
            return self.doubt
        text = f"Found {len(names)} vertebrae, {names[0]} to {names[-1]}; certainty of the names {self.chain.certainty:.0%}."
        return f"{text} {self.doubt}".strip()


def detect_landmarks(
    ap: Radiograph, lateral: Radiograph, setup: Landmarks | None = None, *, lowest: str = ""
) -> Detection:
    """Finds and names the vertebrae on two films.

    Args:
        ap: the AP film.
        lateral: the lateral film.
        setup: how the films were taken, as `Landmarks`, whose marks are not used; by default as the films themselves say.
        lowest: the name of the lowest vertebra that is whole on both films, if it is known; the others follow from it.

    Raises:
        InputError: a film without pixel size, or an impossible view or level.
    """
    setup = setup or empty_landmarks()
    views = setup.view("ap", ap), setup.view("lateral", lateral)
    shown = [
        (film.pixels, view, setup.isocentre, i == 1)
        for i, (film, view) in enumerate(zip((ap, lateral), views, strict=True))
    ]
    maps = [find_centres(*film) for film in shown]
    faults = dict(zip(("AP", "lateral"), (film_fault(*film) for film in shown), strict=True))
    candidates = find_candidates(views, maps, setup.isocentre)
    chain = name_vertebrae(candidates, levels.number(lowest) if lowest else None)
    if chain is not None:
        chain = replace(chain, found={n: refine_candidate(views, maps, c) for n, c in chain.found.items()})
    found = {n: chain.found[n] for n in chain.vertebrae} if chain else {}
    centroids = {name: {n: c.pixels[i] for n, c in found.items()} for i, name in enumerate(VIEWS)}
    proposed = {name: frozenset(found) for name in VIEWS}
    landmarks = Landmarks(setup.setups, centroids, setup.isocentre, centroids_of=BODY, proposed=proposed)
    looks = [f"the {name} film looks {fault}" for name, fault in faults.items() if fault]
    doubt = f"By the pictures, {' and '.join(looks)}: give each film upright and in its place." if looks else ""
    return Detection(landmarks, chain, doubt or _doubt(chain, named=bool(lowest)))


def _doubt(chain: Chain | None, *, named: bool) -> str:
    """Why a chain should be looked at first."""
    found = [chain.found[n] for n in chain.vertebrae] if chain else []
    if len(found) < FEWEST or chain is None:
        return f"Only {len(found)} vertebrae were found on both films, which is no spine: mark them by hand."
    seen = np.mean([1 / (1 + np.exp(-c.centre.max())) for c in found])
    if seen < FAINT:
        return "The films show vertebrae too faintly to find them: mark them by hand."
    apart = np.mean([np.diff(_expected_place(c)) for c in found])
    if abs(apart) > APART:
        return (
            f"The films do not belong together: by what they show, the vertebrae on the lateral film are {abs(apart):.0f} "
            f"levels {'lower' if apart > 0 else 'higher'} than those at their height on the AP film."
        )
    if chain.certainty < CERTAIN and not named:
        lowest = levels.name(chain.vertebrae[-1])
        return (
            f"The vertebrae may be named one level off (certainty {chain.certainty:.0%}): the lowest one was taken for "
            f"{lowest}, and may be {chain.other}. Name it (`transvert detect --lowest {lowest}`, or `lowest` in notebook 04), or "
            "correct the landmarks."
        )
    return ""


def _expected_place(candidate: Candidate) -> np.ndarray:
    """(2,) the mean place along the spine (`levels.place`) that the AP and the lateral film give a candidate."""
    return np.exp(candidate.level) @ [levels.place(n) for n in LEVELS]
