"""The chain that names vertebrae, on candidates whose truth is known."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from transvert import levels
from transvert.clinical import chain
from transvert.clinical.autofill import usual_spacing
from transvert.clinical.detector import LEVELS, Candidate
from transvert.io import InputError

CLEAR = 3.0
USUAL = [n for n in levels.VERTEBRAE if n not in levels.RARE]


def spine(names: list[str], size: float = 1.0) -> dict[int, np.ndarray]:
    """Points of a usual spine of some levels."""
    numbers = [levels.number(name) for name in names]
    points = {numbers[0]: np.array([3.0, 10.0, 500.0])}
    for upper, lower in itertools.pairwise(numbers):
        step = usual_spacing().mean.get((upper, lower), usual_spacing().mean[19, 20])
        points[lower] = points[upper] + size * step
    return points


def candidate(
    point: np.ndarray, level: int | None, gain: float = CLEAR, sure: float = 3.0, miss: float = 1.0
) -> Candidate:
    """A candidate whose pictures favour a level by `sure` over the next, and that over the next; None for no opinion."""
    scores = np.zeros(len(LEVELS))
    if level is not None:
        scores = -sure * np.abs(np.arange(len(LEVELS)) - LEVELS.index(level)).astype(float)
    scores -= np.log(np.exp(scores).sum())
    return Candidate(point, np.zeros((2, 2)), np.array([gain, gain]), np.array([scores, scores]) / 2)


def sort(candidates: list[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda c: -c.point[2])


def named(found: chain.Chain) -> list[str]:
    return [levels.name(n) for n in found.found]


def between(first: str, last: str) -> list[str]:
    return [levels.name(n) for n in USUAL[USUAL.index(levels.number(first)) : USUAL.index(levels.number(last)) + 1]]


def test_a_clear_spine_is_named_and_false_candidates_are_left_out() -> None:
    points = spine(between("T3", "L5"))
    random = np.random.default_rng(0)
    true = [candidate(p + random.normal(0, 1.5, 3), n) for n, p in points.items()]
    beside = [candidate(p + [60.0, 5.0, 8.0], n, -4.0) for n, p in points.items()]
    found = chain.name_vertebrae(sort(true + beside))
    assert named(found) == between("T3", "L5")
    assert all(found.found[n] in true for n in points)
    assert found.certainty > 0.7


def test_one_sure_vertebra_names_the_others() -> None:
    points = spine(between("T8", "L4"))
    given = [candidate(p, n if n == levels.number("L2") else None, sure=8.0) for n, p in points.items()]
    assert named(chain.name_vertebrae(sort(given))) == between("T8", "L4")


def test_without_any_opinion_the_names_are_uncertain() -> None:
    given = [candidate(p, None) for p in spine(between("T5", "T12")).values()]
    found = chain.name_vertebrae(sort(given))
    assert len(found.found) == 8
    assert found.certainty < chain.CERTAIN
    right = chain.name_vertebrae(sort(given), levels.number("T11"))
    assert named(right) == between("T4", "T11")


def test_a_missing_vertebra_leaves_a_gap_not_a_shift() -> None:
    points = spine(between("T4", "L4"))
    given = [candidate(p, n) for n, p in points.items() if levels.name(n) != "T9"]
    assert named(chain.name_vertebrae(sort(given))) == [n for n in between("T4", "L4") if n != "T9"]


@pytest.mark.parametrize("size", [0.7, 1.15])
def test_a_small_and_a_large_person(size: float) -> None:
    given = [candidate(p, n) for n, p in spine(between("C3", "L5"), size).items()]
    assert named(chain.name_vertebrae(sort(given))) == between("C3", "L5")


def test_unusual_numbers_of_vertebrae() -> None:
    def look(names: list[str], seen: list[str]) -> list[str]:
        points = list(spine(names).values())
        given = [candidate(p, levels.number(n), sure=6.0) for p, n in zip(points, seen, strict=True)]
        return named(chain.name_vertebrae(sort(given)))

    eleven = between("T6", "T11") + between("L1", "L5")
    assert look(eleven, eleven) == eleven
    # The pictures know no T13 or L6: a thirteenth looks like T12 or L1.
    thirteen = [*between("T6", "T12"), "T13", *between("L1", "L5")]
    points = list(spine(thirteen).values())
    given = [candidate(p, levels.number(n), sure=6.0) for p, n in zip(points, thirteen, strict=True) if n != "T13"]
    both = candidate(points[7], None)
    scores = np.full(len(LEVELS), -30.0)
    scores[[LEVELS.index(19), LEVELS.index(20)]] = np.log(0.5)
    given.append(Candidate(points[7], both.pixels, both.centre, np.array([scores, scores]) / 2))
    assert named(chain.name_vertebrae(sort(given))) == thirteen


def test_nothing_and_impossible_names() -> None:
    assert chain.name_vertebrae([]) is None
    assert chain.name_vertebrae([candidate(np.zeros(3), 20)]) is None
    given = [candidate(p, n) for n, p in spine(between("C3", "T4")).items()]
    with pytest.raises(InputError, match="can't end at C3"):
        chain.name_vertebrae(sort(given), 3)


def test_films_of_different_parts_do_not_belong_together() -> None:
    points = spine(between("T3", "L1"))
    given = [candidate(p, n) for n, p in points.items()]
    together = [replace(c, level=c.level - np.log(np.exp(c.level).sum(1, keepdims=True))) for c in given]
    moved = [np.array([c.level[0], np.roll(c.level[1], 4)]) for c in together]
    apart = [replace(c, level=level) for c, level in zip(together, moved, strict=True)]
    found = chain.Chain(dict(zip(points, together, strict=True)), 1.0, "T12")
    assert chain._doubt(found, named=False) == ""
    found = replace(found, found=dict(zip(points, apart, strict=True)))
    doubt = chain._doubt(found, named=True)
    assert "do not belong together" in doubt and "4 levels lower" in doubt
