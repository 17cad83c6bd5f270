"""Checks of landmarks before they are used.

`check_landmarks` refuses what cannot be right (a mark off its film, levels out of order, a wrong pixel spacing, sides that
contradict each other) and returns a warning for what is merely unusual. `film_checks` looks at the pictures.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection

import numpy as np

from transvert import levels
from transvert.clinical import autofill
from transvert.clinical.landmarks import CORNERS, ENDS, RESIDUAL_LIMIT_MM, RESIDUAL_WARNING_MM, Landmarks, meet_rays
from transvert.clinical.radiograph import BY_DPI, Radiograph
from transvert.drr.geometry import VIEWS, View
from transvert.io import InputError

SCALE_LIMIT = 0.08  # If the heights on the two films differ by a larger share, one pixel spacing is wrong.
SCALE_WARNING = 0.03  # A smaller share may be real: the films are then only doubted.
SIZES = (0.6, 1.35)  # From small children to tall people, relative to the adults of the spacing table.
ADULTS = (0.8, 1.25)  # Narrower limits, for films whose pixel size comes from their dpi and was not measured.
LEAST_GAP_MM = {"ap": 80.0, "lateral": 130.0}  # From the spine of a slim adult to the detector behind the patient.
ONE_EXPOSURE_MM = 600.0  # Most detectors are 430 mm high; higher films are rarely of one exposure.
SIDE_REMINDER = (
    "Nothing in these landmarks tells the patient's right from left: the left of the AP picture is taken to be the "
    "patient's right, so compare with the film's marker, or mark S1's ends."
)

_FILM = {"ap": "AP", "lateral": "lateral"}


def check_landmarks(
    landmarks: Landmarks,
    views: tuple[View, View],
    films: tuple[Radiograph, Radiograph] | None = None,
    trained_levels: Collection[int] | None = None,
) -> list[str]:
    """Checks landmarks against each other, their films and the shape of a spine.

    The two views come from `Landmarks.view`; `trained_levels` are the VerSe levels that the network was trained on, None if
    unknown. Returns warnings, one sentence each. Landmarks that cannot be right raise an InputError.
    """
    for name, view in zip(VIEWS, views, strict=True):
        _check_view(landmarks, name, view)
        height = view.shape[0] * view.pixel_mm[0]
        film = films and films[VIEWS.index(name)]
        stated = landmarks.setups[name].projection or (film and film.acquisition.projection)
        if film and height > ONE_EXPOSURE_MM and not stated:
            raise InputError(
                f"The {_FILM[name]} film is {height:.0f} mm high, more than most detectors: state how it was taken in the "
                'landmark file, "projection": "slot" for a slot scanner (such as EOS), or "cone" for one exposure; stitched '
                "films can't be used."
            )
    # Row by row, so that large films are not copied.
    if films and films[0].pixels.shape == films[1].pixels.shape:
        rows = zip(films[0].pixels, films[1].pixels, strict=True)
        if all(np.array_equal(one, other, equal_nan=True) for one, other in rows):
            raise InputError("The AP and the lateral film are one and the same picture: give two films.")
    for name, view in zip(VIEWS, views, strict=True):
        _check_on_film(landmarks, name, view)
        _check_order(landmarks, name)
        _check_sides(landmarks, name)
    marked = landmarks.levels
    if not marked:
        raise InputError("No vertebra is marked on both films: mark at least one level on both.")
    ap, lateral = views
    pairs = [(landmarks.centroids["ap"][n], landmarks.centroids["lateral"][n]) for n in marked]
    # (levels, 2, 3) RAS mm, each centroid on its AP ray and on its lateral ray, which may differ in height.
    points = np.array([(meet_rays(ap, a, lateral, b), meet_rays(lateral, b, ap, a)) for a, b in pairs])
    doubts = _check_heights(*points[..., 2].T) if len(marked) >= 3 else []
    unmeasured = []
    for name, film in zip(VIEWS, films or (), strict=bool(films)):
        film = landmarks.setups[name].measure_film(film, name)
        doubts += _acquisition_warnings(landmarks, name, film)
        unmeasured += [name] * (film.acquisition.pixel_mm_from == BY_DPI)
    apart = {n: mm for n, mm in landmarks.place(*views)[1].items() if mm > RESIDUAL_WARNING_MM}
    points = points.mean(axis=1)
    return [
        *_level_warnings(landmarks, trained_levels),
        *doubts,
        *(f"{levels.name(n)}: its two landmarks disagree by {mm:.1f} mm." for n, mm in apart.items()),
        *_size_warnings(marked, points, bool(unmeasured)),
        *([] if landmarks.s1_endplate["ap"] or any(landmarks.corners["ap"].values()) else [SIDE_REMINDER]),
    ]


def _check_view(landmarks: Landmarks, name: str, view: View) -> None:
    if view.name not in (("ap", "pa") if name == "ap" else ("left_lateral", "right_lateral")):
        raise InputError(f"The '{name}' view is named '{view.name}'; give one frontal and one lateral film.")
    shape = landmarks.setups[name].shape
    if shape not in (None, view.shape):
        raise InputError(
            f"The {_FILM[name]} landmarks were made on a film of {shape[0]} x {shape[1]} pixels and this one has "
            f"{view.shape[0]} x {view.shape[1]}: give the film that was marked, or mark this one."
        )


def _check_on_film(landmarks: Landmarks, name: str, view: View) -> None:
    marks = {levels.name(level): pixel for level, pixel in landmarks.centroids[name].items()}
    for level, corners in landmarks.corners[name].items():
        marks |= {f"{levels.name(level)} ({part.replace('_', ' ')})": pixel for part, pixel in corners.items()}
    marks |= {f"S1's endplate ({end})": pixel for end, pixel in landmarks.s1_endplate[name].items()}
    for mark, pixel in marks.items():
        if not ((pixel >= -0.5) & (pixel <= np.array(view.shape) - 0.5)).all():
            raise InputError(
                f"The {_FILM[name]} landmark of {mark} at row {pixel[0]:.0f}, column {pixel[1]:.0f} lies off the film, "
                f"which has {view.shape[0]} rows and {view.shape[1]} columns: move or delete it."
            )


def _check_order(landmarks: Landmarks, name: str) -> None:
    marked = levels.in_order(set(landmarks.centroids[name]))
    rows = [landmarks.centroids[name][level][0] for level in marked]
    if len(marked) > 2 and all(low < high for high, low in itertools.pairwise(rows)):
        raise InputError(
            f"The {_FILM[name]} film's levels run from its foot to its top: turn it, or correct the levels."
        )
    for (upper, lower), (high, low) in zip(itertools.pairwise(marked), itertools.pairwise(rows), strict=True):
        if low <= high:
            raise InputError(
                f"{levels.name(lower)} is marked above {levels.name(upper)} on the {_FILM[name]} film: correct them."
            )


def _check_sides(landmarks: Landmarks, name: str) -> None:
    """Checks that corners and S1's ends lie as their names say, with the right or the front on the picture's left."""
    first, second = ENDS[name]
    groups = {levels.name(level): pixels for level, pixels in landmarks.corners[name].items()}
    for bone, pixels in (groups | {"S1's endplate": landmarks.s1_endplate[name]}).items():
        for a, b in itertools.permutations(pixels, 2):
            if a.startswith(first) and b.startswith(second) and pixels[a][1] >= pixels[b][1]:
                raise InputError(
                    f"On the {_FILM[name]} film the {first} side of {bone} is marked further to the picture's right than "
                    f"its {second} side: the film is mirrored, or the marks are exchanged; a picture here shows the "
                    f"patient's {'right' if name == 'ap' else 'front'} on its left."
                )
            if a.endswith("superior") and b.endswith("inferior") and pixels[a][0] >= pixels[b][0]:
                raise InputError(
                    f"On the {_FILM[name]} film the {b.replace('_', ' ')} corner of {bone} is marked above the "
                    f"{a.replace('_', ' ')} one: exchange the two."
                )
    for level, corners in landmarks.corners[name].items():
        centre, places = landmarks.centroids[name].get(level), np.array(list(corners.values()))
        if centre is None or set(corners) != set(CORNERS[name]):
            continue
        if not ((centre >= places.min(axis=0)) & (centre <= places.max(axis=0))).all():
            raise InputError(
                f"The {_FILM[name]} centroid of {levels.name(level)} lies beyond its own corners: correct them."
            )


def _acquisition_warnings(landmarks: Landmarks, name: str, film: Radiograph) -> list[str]:
    """Doubts about the pixel size and the distances that a film states or lacks."""
    found, setup, taken = [], landmarks.setups[name], film.acquisition
    if taken.pixel_mm_from == BY_DPI and film.pixel_mm:
        found.append(
            f"The {_FILM[name]} film's pixels of {film.pixel_mm[0]:.3g} mm come from {BY_DPI}, which programs write "
            "without a measurement: state pixel_mm if you know it."
        )
    detector, isocentre = setup.source_distances(taken)
    rays = setup.rays_of(taken)
    if rays == "cone" and not (setup.source_to_detector_mm or taken.source_to_detector_mm):
        found.append(
            f"The {_FILM[name]} film's distance from source to detector is not known, {detector:.0f} mm was taken: state it, "
            'and "projection": "slot" if a slot scanner (such as EOS) took it.'
        )
    elif rays != "parallel" and not setup.source_to_isocentre_mm and detector - isocentre < LEAST_GAP_MM[name]:
        found.append(
            f"By the {_FILM[name]} film's distances the patient is {detector - isocentre:.0f} mm before the detector, less "
            "than the spine can be, so they end at the stand and sizes are wrong: state source_to_isocentre_mm."
        )
    return found


def _check_heights(ap: np.ndarray, lateral: np.ndarray) -> list[str]:
    """Refuses heights, mm by level, that differ throughout: by a factor, by one level, or by a shift. Warns of a doubt."""
    spread = ap.std(), lateral.std()
    ratio = spread[0] / spread[1]
    # A few landmarks, or a short spine, are too uncertain for a strict limit.
    uncertainty = 3 * np.sqrt(2 / len(ap)) * autofill.LANDMARK_SD_MM / min(spread)
    if abs(np.log(ratio)) > max(SCALE_LIMIT, uncertainty):
        raise InputError(
            f"Heights on the AP film are {ratio:.2f} times those on the lateral film: one film's pixel spacing or "
            f"distances are wrong, or they show two people; the AP pixel spacing times {1 / ratio:.2f}, or the lateral "
            f"one times {ratio:.2f}, fits."
        )
    offsets = ap - lateral
    if abs(np.median(offsets)) <= RESIDUAL_LIMIT_MM:
        if abs(np.log(ratio)) <= max(SCALE_WARNING, 4 / 3 * uncertainty):  # Three standard deviations of 2 mm.
            return []
        return [
            f"Heights on the AP film are {ratio:.2f} times those on the lateral film: check distances and pixel sizes."
        ]
    # If the AP levels are one too low, an AP height is that of the lateral film's next higher level.
    for shifted, word in ((ap[:-1] - lateral[1:], "lower"), (ap[1:] - lateral[:-1], "higher")):
        if np.abs(shifted).max() <= RESIDUAL_LIMIT_MM / 2 < np.abs(offsets).min():
            raise InputError(
                f"The two films' levels seem to be one apart: each of the AP film's may be the next {word} one."
            )
    if np.abs(offsets - np.median(offsets)).max() <= RESIDUAL_LIMIT_MM / 2:
        raise InputError(
            f"All levels lie {abs(np.median(offsets)):.0f} mm {'higher' if offsets[0] > 0 else 'lower'} on the AP film than "
            "on the lateral one: the films were cut or taken at different heights; correct the row of a principal_point."
        )
    return []


def _level_warnings(landmarks: Landmarks, trained_levels: Collection[int] | None) -> list[str]:
    marked = landmarks.levels
    gaps = [n for n in levels.between(marked) if n not in marked]
    unknown = [n for n in marked if trained_levels is not None and n not in trained_levels]
    proposed = {name: levels.in_order(set(landmarks.proposed[name])) for name in VIEWS if landmarks.proposed[name]}
    listed = {_FILM[name]: ", ".join(map(levels.name, numbers)) for name, numbers in proposed.items()}
    return [
        *(f"{levels.name(n)}: no landmarks between its neighbours', so the spine has a gap." for n in gaps),
        *(f"{levels.name(n)}: the network was not trained on this level." for n in unknown),
        *(f"{names}: proposed on the {film} film and not confirmed." for film, names in listed.items()),
    ]


def _size_warnings(marked: list[int], points: np.ndarray, unmeasured: bool) -> list[str]:
    """Warns of vertebrae that lie much farther apart, or closer together, than those of people.

    Refuses them if a film's pixel size is `unmeasured` and no adult's vertebrae stand so.
    """
    usual = autofill.usual_spacing().mean
    steps = dict(zip(itertools.pairwise(marked), np.diff(points, axis=0), strict=True))
    known = [pair for pair in steps if pair in usual]
    if len(known) < 2:
        return []
    size = sum(np.linalg.norm(steps[pair]) for pair in known) / sum(np.linalg.norm(usual[pair]) for pair in known)
    if unmeasured and not ADULTS[0] <= size <= ADULTS[1]:
        raise InputError(
            f"Vertebrae stand {size:.2f} times as far apart as an adult's, and the pixel size comes from {BY_DPI}: state "
            "pixel_mm or a known_distance in the landmark file."
        )
    if SIZES[0] <= size <= SIZES[1]:
        return []
    return [f"Vertebrae stand {size:.2f} times as far apart as an adult's: check both films' pixel spacing."]
