"""Vertebral levels: the package uses VerSe numbers inside and names such as "L3" outside.

VerSe (Sekuboyina et al. 2021) numbers C1-C7 as 1-7, T1-T12 as 8-19, L1-L6 as 20-25, the sacrum 26 and a
thirteenth thoracic vertebra 28. TotalSegmentator v2 counts upward from the sacrum.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from transvert.io import InputError

NAMES: dict[int, str] = {
    **{i: f"C{i}" for i in range(1, 8)},
    **{7 + i: f"T{i}" for i in range(1, 13)},
    28: "T13",
    **{19 + i: f"L{i}" for i in range(1, 7)},
    26: "sacrum",
}
"""Number to name, from head to tail; T13 (28) lies between T12 and L1."""

NUMBERS: dict[str, int] = {name: number for number, name in NAMES.items()}
VERTEBRAE: tuple[int, ...] = tuple(number for number in NAMES if number != 26)
"""Levels that can be reconstructed, from C1 down; the sacrum is not one of them."""
WITHOUT_BODY: tuple[int, ...] = (1, 2)
"""C1 and C2, which have no ordinary vertebral body between two endplates."""
RARE: tuple[int, ...] = (28, 25)
"""T13 and L6, which most people do not have: never reported as missing, never proposed."""

TOTALSEGMENTATOR: dict[int, int] = {
    25: 26,
    26: 26,
    **{27 + i: 24 - i for i in range(5)},
    **{32 + i: 19 - i for i in range(12)},
    **{44 + i: 7 - i for i in range(7)},
}
"""TotalSegmentator v2 label to VerSe level (sacrum and S1 both become the sacrum)."""

CONVENTIONS: dict[str, dict[int, int]] = {
    "verse": {n: n for n in NAMES},
    "totalsegmentator": TOTALSEGMENTATOR,
    "totalsegmentator_v1": {n - 9: level for n, level in TOTALSEGMENTATOR.items() if level != 26},
}


def name(level: int) -> str:
    """The name of a VerSe level number: 20 is "L1"."""
    try:
        return NAMES[int(level)]
    except KeyError:
        raise InputError(f"{level} is not a VerSe level number (1-26 or 28).") from None


def number(level: str) -> int:
    """The VerSe number of a level name: "L1" is 20. Case and surrounding blanks do not matter."""
    text = level.strip()
    key = "sacrum" if text.lower() in ("sacrum", "s", "s1") else text.upper()
    try:
        return NUMBERS[key]
    except KeyError:
        raise InputError(f"'{level}' is not a vertebral level; use C1-C7, T1-T13, L1-L6 or sacrum.") from None


def region(level: int) -> str:
    """The region "C", "T", "L" or "S" of a VerSe level number."""
    return name(level)[0].upper()


def in_order(levels: list[int] | set[int]) -> list[int]:
    """Sorts levels from head to tail, which is not the order of their numbers (T13 is 28)."""
    order = list(NAMES)
    return sorted(levels, key=order.index)


def between(given: Collection[int]) -> list[int]:
    """All vertebrae from the uppermost to the lowermost given one, head to tail; `RARE` ones only if given."""
    order = [n for n in VERTEBRAE if n in given or n not in RARE]
    places = [order.index(n) for n in given]
    return order[min(places) : max(places) + 1] if places else []


def neighbour(given: Collection[int], level: int, step: int) -> int | None:
    """The given level right above (step -1) or below (1) a level; None if it or a level between them is not given."""
    order = in_order({level, *given})
    n = order.index(level) + step
    return order[n] if 0 <= n < len(order) and len(between([level, order[n]])) == 2 else None


def place(level: int) -> float:
    """The position along the spine: 0 for C1, 7 for T1, 19 for L1, 24 for the sacrum; T13 is 18.5 and L6 23.5."""
    common = [n for n in NAMES if n not in RARE]
    return float(common.index(level)) if level in common else {28: 18.5, 25: 23.5}[level]


def to_verse(labels: np.ndarray, convention: str) -> np.ndarray:
    """Maps integer labels of any shape and one of `CONVENTIONS` to VerSe levels, uint8; other structures become 0.

    An unknown convention is an InputError.
    """
    if convention not in CONVENTIONS:
        raise InputError(f"'{convention}' is not a known label convention; use {' or '.join(CONVENTIONS)}.")
    table = np.zeros(256, np.uint8)
    for source, level in CONVENTIONS[convention].items():
        table[source] = level
    if labels.dtype != np.uint8:
        labels = np.where((labels >= 0) & (labels < 256), labels, 0).astype(np.uint8)
    return table[labels]
