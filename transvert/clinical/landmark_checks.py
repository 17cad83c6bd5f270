"""Whether landmarks can be right: asked before anything is made of them.

`check` refuses what cannot be (a mark off its film, levels out of order, a wrong pixel spacing, sides that contradict
each other) and returns a sentence for what is merely odd. It was tried on the centroids of 193 CTs (supine-193 of the
manifest `public_samples`): as they are, none raised a false alarm. Of the 82 spines with twelve levels or more 81 were
told when their lateral film was mirrored, 72 when the films were swapped, and 71 when one view served as both. Shorter
ones bend too little to tell a mirrored or a swapped film, and nothing is said of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping

import numpy as np

from transvert import levels
from transvert.clinical import autofill
from transvert.clinical.landmarks import (
    CORNERS,
    ENDS,
    RESIDUAL_LIMIT_MM,
    RESIDUAL_WARNING_MM,
    Landmarks,
    Pixels,
    meet_rays,
)
from transvert.clinical.radiograph import Radiograph
from transvert.drr.geometry import VIEWS, View
from transvert.io import InputError

SCALE_LIMIT = 0.08
"""Films whose heights differ by a larger share have not both their true pixel spacing."""
SIZES = (0.6, 1.35)
"""From small children to tall people, against the adults of the spacing's table."""
CURVE_LEVELS = 12
"""From so many levels on the curve tells a mirrored lateral film and swapped films."""
SIDE_REMINDER = (
    "Nothing in these landmarks tells the patient's right from left: the left of the AP picture is taken to be the "
    "patient's right, so compare with the film's marker, or mark S1's ends."
)

_SAME_MM, _CURVED_MM = 1.0, 3.0  # two curves that differ by less are one; a spine that bends by less tells nothing
_FILM = {"ap": "AP", "lateral": "lateral"}


def check_landmarks(
    marks: Landmarks,
    views: tuple[View, View],
    films: tuple[Radiograph, Radiograph] | None = None,
    learned: Collection[int] | None = None,
) -> list[str]:
    """Looks at landmarks before they are used.

    Args:
        marks: the landmarks.
        views: the AP and the lateral view, from `Landmarks.view`.
        films: the two films, where they are at hand.
        learned: the VerSe levels that the network has seen; None where it is not known.

    Returns:
        Warnings, one sentence each.

    Raises:
        InputError: the landmarks cannot be right; one sentence says why and what to do.
    """
    by_name = dict(zip(VIEWS, views, strict=True))
    _check_names(by_name)
    _check_films(marks, by_name, films)
    for which, view in by_name.items():
        _check_place(marks, which, view)
        _check_order(marks, which)
        _check_sides(marks, which)
    if not marks.levels:
        raise InputError("No vertebra is marked on both films: mark at least one level on both.")
    heights = _heights(marks, views)
    _check_scale(heights, marks.levels)
    _check_labels(heights, marks.levels)
    _, residuals = marks.place(*views)
    return [
        *_odd_levels(marks, learned),
        *_odd_residuals(residuals),
        *_odd_size(marks, views),
        *_odd_curves(marks, views),
        *_odd_sides(marks),
    ]


def _check_names(views: Mapping[str, View]) -> None:
    for which, names in (("ap", ("ap", "pa")), ("lateral", ("left_lateral", "right_lateral"))):
        if views[which].name not in names:
            raise InputError(
                f"The landmarks' '{which}' view is named '{views[which].name}'; give one film from the front or back (ap or "
                "pa) and one from the side (left_lateral or right_lateral), each as its own view."
            )


def _check_films(marks: Landmarks, views: Mapping[str, View], films: tuple[Radiograph, Radiograph] | None) -> None:
    for which, view in views.items():
        said = marks.views[which].get("shape")
        if said is not None and list(said) != list(view.shape):
            raise InputError(
                f"The {_FILM[which]} landmarks were made on a film of {' x '.join(map(str, said))} pixels and this one "
                f"has {view.shape[0]} x {view.shape[1]}: give the film that was marked, or mark this one."
            )
    if films is None or films[0].pixels.shape != films[1].pixels.shape:
        return
    # Row by row, so that large films are not held twice.
    rows = zip(films[0].pixels, films[1].pixels, strict=True)
    if all(np.array_equal(one, other, equal_nan=True) for one, other in rows):
        raise InputError("The AP and the lateral film are one and the same picture: give two films.")


def _check_place(marks: Landmarks, which: str, view: View) -> None:
    for name, pixel in _all_pixels(marks, which).items():
        if not ((pixel >= -0.5) & (pixel <= np.array(view.shape) - 0.5)).all():
            raise InputError(
                f"The {_FILM[which]} landmark of {name} at row {pixel[0]:.0f}, column {pixel[1]:.0f} lies off the film, "
                f"which has {view.shape[0]} rows and {view.shape[1]} columns: move or delete it."
            )


def _check_order(marks: Landmarks, which: str) -> None:
    marked = levels.in_order(set(marks.centroids[which]))
    rows = [marks.centroids[which][level][0] for level in marked]
    if len(marked) > 2 and all(low < high for high, low in itertools.pairwise(rows)):
        raise InputError(
            f"The levels of the {_FILM[which]} film run from its foot to its top: turn the film, or correct the levels."
        )
    for above, below in itertools.pairwise(marked):
        if marks.centroids[which][below][0] <= marks.centroids[which][above][0]:
            raise InputError(
                f"{levels.name(below)} is marked above {levels.name(above)} on the {_FILM[which]} film: exchange or "
                "correct the two levels."
            )


def _check_sides(marks: Landmarks, which: str) -> None:
    """Corners and S1's ends lie as their names say, on a picture that shows right, or the front, on its left."""
    first, second = ENDS[which]
    groups = {levels.name(level): pixels for level, pixels in marks.corners[which].items()}
    groups["S1's endplate"] = marks.s1_endplate[which]
    for name, pixels in groups.items():
        for a, b in itertools.product(*([n for n in pixels if n.startswith(side)] for side in (first, second))):
            if pixels[a][1] >= pixels[b][1]:
                raise InputError(
                    f"On the {_FILM[which]} film the {first} side of {name} is marked further to the picture's right than "
                    f"its {second} side: the film is mirrored, or the marks are exchanged; a picture here shows the "
                    f"patient's {'right' if which == 'ap' else 'front'} on its left."
                )
        for a, b in itertools.product(*([n for n in pixels if n.endswith(end)] for end in ("superior", "inferior"))):
            if pixels[a][0] >= pixels[b][0]:
                lower, upper = (corner.replace("_", " ") for corner in (b, a))
                raise InputError(
                    f"On the {_FILM[which]} film the {lower} corner of {name} is marked above the {upper} one: exchange "
                    "the two."
                )
    for level, corners in marks.corners[which].items():
        centre = marks.centroids[which].get(level)
        if centre is not None and set(corners) == set(CORNERS[which]) and not _holds(corners, centre):
            raise InputError(
                f"The {_FILM[which]} centroid of {levels.name(level)} lies beyond its own corners: one of the two belongs "
                "to another level."
            )


def _heights(marks: Landmarks, views: tuple[View, View]) -> np.ndarray:
    """(N, 2) mm: z of the levels marked twice, as the AP film tells it and as the lateral one does."""
    ap, lateral = views
    pairs = [(marks.centroids["ap"][n], marks.centroids["lateral"][n]) for n in marks.levels]
    return np.array([[meet_rays(ap, a, lateral, b)[2], meet_rays(lateral, b, ap, a)[2]] for a, b in pairs])


def _check_scale(heights: np.ndarray, marked: list[int]) -> None:
    if len(marked) < 3:
        return
    centred = heights - heights.mean(axis=0)
    spread = np.sqrt((centred**2).sum(axis=0))
    ratio = spread[0] / spread[1]
    # What a few clicks, or short spines, cannot tell is not held against them.
    unsure = 3 * np.sqrt(2) * autofill.CLICK_MM / spread.min()
    if abs(np.log(ratio)) > max(SCALE_LIMIT, unsure):
        raise InputError(
            f"Heights on the AP film are {ratio:.2f} times those on the lateral film: one film's pixel spacing or "
            f"distances are wrong, or they show two people; the AP pixel spacing times {1 / ratio:.2f}, or the lateral one times {ratio:.2f}, fits."
        )


def _check_labels(heights: np.ndarray, marked: list[int]) -> None:
    """Films whose heights differ throughout: by a shift, or because one was labelled a level off."""
    if len(marked) < 3:
        return
    offsets = heights[:, 0] - heights[:, 1]
    if abs(np.median(offsets)) <= RESIDUAL_LIMIT_MM:
        return
    for step, word in ((1, "lower"), (-1, "higher")):
        # A label one level too low on the AP film stands where the lateral film has the level above.
        moved = heights[:-1, 0] - heights[1:, 1] if step > 0 else heights[1:, 0] - heights[:-1, 1]
        if np.abs(moved).max() <= RESIDUAL_LIMIT_MM / 2 < np.abs(offsets).min():
            raise InputError(
                f"The levels of the two films seem to be one apart: the AP film's heights fit if each of its levels is "
                f"the next {word} one."
            )
    if np.abs(offsets - np.median(offsets)).max() <= RESIDUAL_LIMIT_MM / 2:
        raise InputError(
            f"All levels lie {abs(np.median(offsets)):.0f} mm {'higher' if offsets[0] > 0 else 'lower'} on the AP film than "
            "on the lateral one: the films were cut or taken at different heights; correct the row of a principal_point."
        )


def _odd_levels(marks: Landmarks, learned: Collection[int] | None) -> list[str]:
    found, both = [], marks.levels
    between = [n for n in levels.between(both) if n not in both]
    found += [f"{levels.name(n)}: no landmarks between its neighbours', so the spine has a gap." for n in between]
    strange = [] if learned is None else [n for n in both if n not in learned]
    found += [f"{levels.name(n)}: the network has learned from no vertebra of this level." for n in strange]
    for which in VIEWS:
        waiting = marks.views[which].get("proposed", [])
        if waiting:
            found.append(f"{', '.join(waiting)}: proposed on the {_FILM[which]} film and confirmed by nobody.")
    return found


def _odd_residuals(residuals: Mapping[int, float]) -> list[str]:
    return [
        f"{levels.name(n)}: its two landmarks disagree by {mm:.1f} mm."
        for n, mm in residuals.items()
        if mm > RESIDUAL_WARNING_MM
    ]


def _odd_size(marks: Landmarks, views: tuple[View, View]) -> list[str]:
    """Vertebrae that stand much farther apart, or closer, than people's."""
    points = _points(marks, views)
    steps = [(a, b) for a, b in itertools.pairwise(marks.levels) if (a, b) in autofill.usual_spacing().mean]
    if len(steps) < 2:
        return []
    usual = sum(np.linalg.norm(autofill.usual_spacing().mean[step]) for step in steps)
    size = float(sum(np.linalg.norm(points[b] - points[a]) for a, b in steps) / usual)
    if SIZES[0] <= size <= SIZES[1]:
        return []
    return [f"Vertebrae stand {size:.2f} times as far apart as an adult's: check both films' pixel spacing."]


def _odd_curves(marks: Landmarks, views: tuple[View, View]) -> list[str]:
    """What the spine's two curves tell of mirrored, swapped or doubled films; nothing where they are too short."""
    marked = [n for n in marks.levels if n not in levels.RARE]
    if len(marked) < 3:
        return []
    points = _points(marks, views)
    places = np.array([points[n] for n in marked])
    across, forward = (_bend_mm(places[:, 2], places[:, axis]) for axis in (0, 1))
    if len(marked) >= 5 and np.abs(across).max() > _CURVED_MM:
        apart = min(np.abs(across - forward).max(), np.abs(across + forward).max())
        if apart < _SAME_MM:
            return ["Both films show the same curve: are they two films from two sides, or one film twice?"]
    if len(marked) < CURVE_LEVELS:
        return []
    chain = levels.between(marked)
    usual = np.array([[0.0, 0.0, 0.0], *np.cumsum(autofill.usual_spacing().steps(chain)[0], axis=0)])
    usual = usual[[chain.index(n) for n in marked]]
    shape = _bend_mm(usual[:, 2], usual[:, 1])
    sizes = [float(curve @ shape / (shape @ shape)) for curve in (across, forward)]
    alike = [
        float(curve @ shape / (np.linalg.norm(curve) * np.linalg.norm(shape) + 1e-9)) for curve in (across, forward)
    ]
    if abs(sizes[0]) > 0.6 and abs(alike[0]) > 0.85 and sizes[1] < 0.3:
        return ["The AP film shows the curve that a spine has from the side, and the lateral film does not: swapped?"]
    if alike[1] < -0.5:
        return ["On the lateral film the spine bends the wrong way: is it mirrored, with the front on the right?"]
    return []


def _odd_sides(marks: Landmarks) -> list[str]:
    told = bool(marks.s1_endplate["ap"]) or any(marks.corners["ap"].values())
    return [] if told else [SIDE_REMINDER]


def _points(marks: Landmarks, views: tuple[View, View]) -> dict[int, np.ndarray]:
    """Level to (3,) RAS mm: between what the two films say of its height."""
    ap, lateral = views
    pairs = {n: (marks.centroids["ap"][n], marks.centroids["lateral"][n]) for n in marks.levels}
    return {n: (meet_rays(ap, a, lateral, b) + meet_rays(lateral, b, ap, a)) / 2 for n, (a, b) in pairs.items()}


def _bend_mm(z: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(N,) how far points lie off the straight line that fits them best, mm."""
    line = np.stack([z, np.ones_like(z)], axis=1)
    return values - line @ np.linalg.lstsq(line, values, rcond=None)[0]


def _all_pixels(marks: Landmarks, which: str) -> Pixels:
    """Every mark of a view by what it is called in a sentence."""
    found = {levels.name(level): pixel for level, pixel in marks.centroids[which].items()}
    for level, corners in marks.corners[which].items():
        found |= {f"{levels.name(level)} ({name.replace('_', ' ')})": pixel for name, pixel in corners.items()}
    return found | {f"S1's endplate ({name})": pixel for name, pixel in marks.s1_endplate[which].items()}


def _holds(corners: Pixels, centre: np.ndarray) -> bool:
    """Whether a point lies within the corners' box."""
    places = np.array(list(corners.values()))
    return bool(((centre >= places.min(axis=0)) & (centre <= places.max(axis=0))).all())
