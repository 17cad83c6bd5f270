"""How large a film's pixels are, where its file doesn't say: from a known distance, a ball, or the distances.

A ruler or a ball lies in the patient's plane, not on the detector, and a cone view magnifies it: the pitch found by it
is `magnification` times smaller than the detector's. `measure` notes which of the two a film's pitch is, and `on_detector`
goes from one to the other.

A view of a landmark file may hold one of these, pixels counted as viewers of the film's file show them:

    "pixel_mm": [0.15, 0.15]                                            height and width, on the detector
    "known_distance": {"from": [80, 512], "to": [1480, 512], "mm": 200}  a ruler, in the patient's plane
    "ball": {"at": [410, 1230], "mm": 25}                               a ball of that diameter, in the patient's plane

and `"pixel_plane": "detector"` or `"patient"` where it is the other of the two. A view with `"counted_on": "film"` counts its
pixels on the film as it is turned here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage, optimize

from transvert.clinical.acquisition import ImageOrientation, check_pitch
from transvert.clinical.radiograph import Radiograph
from transvert.drr import exposure
from transvert.io import InputError

WAYS = ("pixel_mm", "known_distance", "ball")
"""By which a landmark file's view tells how large its film's pixels are: one of them at most."""


_FINEST_MM = 0.05  # Films have no finer pixels, so a ball's radius in pixels has an upper end.


_ANGLES = 360


_STEP = 0.25  # Of a radial profile, pixels.


_REACH = 0.35  # How far a radial profile goes inwards and outwards, as a share of the radius.


@dataclass(frozen=True)
class Ball:
    """A ball's outline on a film.

    Attributes:
        centre: (2,) row and column of the film.
        radius: in pixels along columns: the ellipse's minor half axis, which a cone view does not stretch.
        stretch: the major half axis over the minor one; a cone view stretches a ball far from the central ray.
        error: standard error of the radius, pixels.
    """

    centre: np.ndarray
    radius: float
    stretch: float
    error: float


def magnification(source_to_detector_mm: float, source_to_object_mm: float) -> float:
    """How many times larger than life an object appears on the detector.

    Raises:
        InputError: distances that cannot be.
    """
    if not 0 < source_to_object_mm < source_to_detector_mm < np.inf:
        raise InputError(
            f"The source stands {source_to_object_mm:g} mm from the object and {source_to_detector_mm:g} mm from the "
            "detector; the first must be positive and the smaller one."
        )
    return source_to_detector_mm / source_to_object_mm


def on_detector(pitch: tuple[float, float], magnification: float) -> tuple[float, float]:
    """The detector's pitch of a pitch in the plane of an object that appears `magnification` times larger than life."""
    return pitch[0] * magnification, pitch[1] * magnification


def pitch_from_distance(start: np.ndarray, end: np.ndarray, mm: float, aspect: float = 1.0) -> tuple[float, float]:
    """Row and column pitch, mm, in the plane of a known distance.

    Args:
        start: (2,) row and column of one end.
        end: of the other.
        mm: between them.
        aspect: the row pitch over the column pitch.

    Raises:
        InputError: no distance, or ends that are too close to tell.
    """
    _check_size(mm, "known distance")
    rows, columns = np.asarray(end, float) - np.asarray(start, float)
    pixels = float(np.hypot(rows * aspect, columns))
    if not pixels >= 10:
        raise InputError(
            f"The ends of the known distance lie {pixels:.1f} pixels apart, too few to measure by; mark two that lie "
            "far apart."
        )
    return mm / pixels * aspect, mm / pixels


def pitch_from_ball(ball: Ball, mm: float, aspect: float = 1.0) -> tuple[float, float]:
    """Row and column pitch, mm, in the plane of a ball's middle, from its diameter."""
    _check_size(mm, "ball's diameter")
    return mm / 2 / ball.radius * aspect, mm / 2 / ball.radius


def find_ball(pixels: np.ndarray, at: np.ndarray, mm: float, aspect: float = 1.0) -> Ball:
    """A ball's outline around a rough click, found to a fraction of a pixel.

    Edges along rays from the click vote for a circle; around it the mean profile across the edge is fitted by that of
    a blurred, absorbing ball on any film from logarithmic to linear, which tells where on the grey slope the edge lies;
    and each direction's own shift makes the circle an ellipse. Bones, wires and noise that cross the outline are
    outvoted.

    Args:
        pixels: (rows, columns) of a film, brighter is more attenuation.
        at: (2,) row and column, anywhere well within the ball.
        mm: the ball's diameter.
        aspect: the row pitch over the column pitch.

    Raises:
        InputError: there is no round bright shadow.
    """
    _check_size(mm, "ball's diameter")
    at = np.asarray(at, float)
    inside = (at >= 0) & (at <= np.array(pixels.shape) - 1)
    if not inside.all():
        raise _no_ball()
    centre, radius = _vote(pixels, at, min(mm / _FINEST_MM, max(pixels.shape) / 2), aspect)
    if radius < 4:
        raise _no_ball()
    waves = np.zeros(4)
    angles = np.arange(_ANGLES) * (2 * np.pi / _ANGLES)
    across = np.arange(-_REACH * radius, _REACH * radius, _STEP)
    starts = [np.array([0, 0, tone, opacity]) for tone in (-3.0, 2.0) for opacity in (-0.5, 2.5)]
    error = np.inf
    for _ in range(4):
        outline = radius + _basis(angles)[:, 2:] @ waves[2:]
        profiles = _sample(pixels, centre, outline[:, None] + across, angles, aspect)
        whole = profiles[np.isfinite(profiles).all(axis=1)]
        if len(whole) < _ANGLES / 2 or radius < 4:
            raise _no_ball()
        mean = np.median(whole, axis=0)
        edge, slope = _ball_edge(across, mean, radius, starts)
        fitted, error = _robust_fit(_basis(angles), _shifts(profiles, mean, slope))
        starts = [edge * (0, 1, 1, 1)]
        radius += edge[0]
        centre = centre + fitted[:2] * (1 / aspect, 1)
        waves = waves + [0, 0, *fitted[2:]]
    wave = float(np.hypot(*waves[2:]))
    # Else it is no circle, or as faint as what crosses it.
    if not (error * np.sqrt(_ANGLES) < 0.03 * radius and wave < 0.07 * radius):
        raise _no_ball()
    return Ball(centre, radius - wave, (radius + wave) / (radius - wave), error)


def measure_pixel_size(film: Radiograph, said: Mapping[str, Any], which: str) -> Radiograph:
    """The film with the pixel pitch that a landmark file's view states or lets measure; with its own where it does neither.

    Args:
        film: as read, its own pitch perhaps None.
        said: the view of the landmark file.
        which: "ap" or "lateral", for the sentences.

    Raises:
        InputError: two ways at once, a garbled one, or one by which nothing can be measured.
    """
    ways = [way for way in WAYS if way in said]
    plane = said.get("pixel_plane", "detector" if ways == ["pixel_mm"] else "patient")
    if len(ways) > 1:
        raise InputError(
            f"The '{which}' view of the landmark file states the pixel size in two ways, {' and '.join(ways)}; keep one."
        )
    if plane not in ("detector", "patient"):
        raise InputError(f"The 'pixel_plane' of the '{which}' view of the landmark file is detector or patient.")
    if not ways:
        return film
    aspect = film.pixel_mm[0] / film.pixel_mm[1] if film.pixel_mm else 1.0
    content = said[ways[0]]
    turn = ImageOrientation() if said.get("counted_on") == "film" else film.facts.turn

    def pixel(stored: Any) -> np.ndarray:
        return turn.to_film(_pixel(stored), film.pixels.shape)

    try:
        if ways == ["pixel_mm"]:
            row_mm, column_mm = (float(mm) for mm in content)
            pitch, origin = turn.pair(exposure.pitch_mm((row_mm, column_mm))), "stated in the landmark file"
        elif ways == ["known_distance"]:
            start, end = (pixel(content[name]) for name in ("from", "to"))
            pitch = pitch_from_distance(start, end, float(content["mm"]), aspect)
            origin = f"a known distance of {float(content['mm']):g} mm"
        else:
            ball = find_ball(film.pixels, pixel(content["at"]), float(content["mm"]), aspect)
            pitch = pitch_from_ball(ball, float(content["mm"]), aspect)
            origin = f"a ball of {float(content['mm']):g} mm, {2 * ball.radius:.1f} pixels wide"
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, IndexError):
        raise InputError(
            f"The '{which}' view of the landmark file is garbled in its '{ways[0]}'; transvert/spacing.py shows the form."
        ) from None
    check_pitch(pitch, f"the {which} view")
    return replace(film, pixel_mm=pitch, facts=replace(film.facts, plane=plane, pitch_from=origin))


def counted_on_film(said: Mapping[str, Any], film: Radiograph) -> dict[str, Any]:
    """A landmark file's view, its own pixels counted on the film as it is turned here; marked so, and not done twice."""
    turn, shape = film.facts.turn, film.pixels.shape
    if turn == ImageOrientation() or said.get("counted_on") == "film":
        return dict(said)

    def moved(key: str, value: Any) -> Any:
        if key == "pixel_mm":
            return list(turn.pair((value[0], value[1])))
        if key in ("principal_point", "from", "to", "at"):
            return turn.to_film(_pixel(value), shape).tolist()
        if key == "shape":
            return list(shape)
        if key in ("known_distance", "ball"):
            return {name: moved(name, part) for name, part in value.items()}
        return value

    try:
        return {key: moved(key, value) for key, value in said.items()} | {"counted_on": "film"}
    except (AttributeError, IndexError, TypeError, ValueError):
        raise InputError("A view of the landmark file is garbled; transvert/spacing.py shows the form.") from None


def _pixel(said: Any) -> np.ndarray:
    pixel = np.array(said, float)
    if pixel.shape != (2,) or not np.isfinite(pixel).all():
        raise ValueError("no pixel")
    return pixel


def _no_ball() -> InputError:
    return InputError(
        "There is no ball at the pixel that is marked; mark the middle of one that is seen whole and stands out from what "
        "is around it, or give the pixel size another way."
    )


def _check_size(mm: float, what: str) -> None:
    if not 1 <= mm <= 2000:
        raise InputError(f"The {what} is {mm:g} mm; it must be 1 to 2000 mm.")


def _sample(pixels: np.ndarray, centre: np.ndarray, radii: np.ndarray, angles: np.ndarray, aspect: float) -> np.ndarray:
    """(angles, radii): the picture along rays from a centre, radii in pixels along columns; NaN beyond the film."""
    rows = centre[0] + radii * np.sin(angles)[:, None] / aspect
    columns = centre[1] + radii * np.cos(angles)[:, None]
    return ndimage.map_coordinates(pixels, [rows, columns], np.float64, order=1, cval=np.nan)


def _vote(pixels: np.ndarray, at: np.ndarray, largest: float, aspect: float) -> tuple[np.ndarray, float]:
    """Centre (row, column) and radius of the circle that most of the strong edges around a click lie on; 0 for none."""
    angles = np.arange(_ANGLES) * (2 * np.pi / _ANGLES)
    radii = np.arange(2.0, 2 * largest)
    rays = _sample(pixels, at, np.broadcast_to(radii, (_ANGLES, len(radii))), angles, aspect)
    fall = np.nan_to_num(-ndimage.gaussian_filter1d(rays, 1.5, axis=1, order=1))
    fall[:, 1:-1] *= (fall[:, 1:-1] >= fall[:, :-2]) & (fall[:, 1:-1] >= fall[:, 2:])
    best = np.argsort(-fall, axis=1)[:, :4]
    weight = np.maximum(np.take_along_axis(fall, best, 1), 0)
    x, y = radii[best] * np.cos(angles)[:, None], radii[best] * np.sin(angles)[:, None]
    random = np.random.default_rng(0)
    three = random.integers(_ANGLES, size=(3, 1000))
    which = three, np.minimum(random.geometric(0.6, size=three.shape) - 1, 3)
    a, b, radius = _circle(x[which], y[which])
    fits = np.isfinite(radius) & (radius >= 4) & (radius <= largest) & (np.hypot(a, b) < 0.9 * radius)
    a, b, radius = a[fits], b[fits], radius[fits]
    if not len(radius):
        return at, 0.0
    near = np.abs(np.hypot(x[..., None] - a, y[..., None] - b) - radius) < np.maximum(1.5, 0.03 * radius)
    votes = np.where(near, weight[..., None], 0).max(axis=1)
    found = int(np.argmax(votes.sum(0)))
    if (votes[:, found] > 0).mean() < 0.6:
        return at, 0.0
    return at + (b[found] / aspect, a[found]), float(radius[found])


def _circle(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres and radii of circles through three points each, (3, n)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        d = 2 * (x[0] * (y[1] - y[2]) + x[1] * (y[2] - y[0]) + x[2] * (y[0] - y[1]))
        s = x**2 + y**2
        a = (s[0] * (y[1] - y[2]) + s[1] * (y[2] - y[0]) + s[2] * (y[0] - y[1])) / d
        b = (s[0] * (x[2] - x[1]) + s[1] * (x[0] - x[2]) + s[2] * (x[1] - x[0])) / d
        return a, b, np.hypot(x[0] - a, y[0] - b)


def _basis(angles: np.ndarray) -> np.ndarray:
    """(angles, 4): what a shift down, a shift across, and the two ways of being an ellipse add to an outline."""
    return np.stack([np.sin(angles), np.cos(angles), np.cos(2 * angles), np.sin(2 * angles)], axis=1)


def _ball_edge(
    across: np.ndarray, mean: np.ndarray, radius: float, starts: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """A ball's model fitted to its mean profile, and the profile's slope: the model's first number is where the edge lies.

    The model is a ball that absorbs, blurred before the film's tone: grey goes with the logarithm of the light that
    passes, plus a constant that stands for scatter and is large on a linear film.
    """

    def shape(at: float, blur: float, tone: float, opacity: float) -> np.ndarray:
        depth = at - across
        chord = np.sqrt(np.maximum(depth * (2 * radius - depth), 0)) / radius
        light = ndimage.gaussian_filter1d(np.exp(-np.exp(opacity) * chord), np.exp(blur) / _STEP, mode="nearest")
        return np.log1p((1 - light) / (light + np.exp(tone))) / np.log1p(np.exp(-tone))

    def fitted(parameters: np.ndarray) -> np.ndarray:
        columns = np.stack([np.ones_like(across), across, shape(*parameters)], axis=1)
        return columns @ np.linalg.lstsq(columns, mean, rcond=None)[0]

    scale = float(np.ptp(mean)) or 1.0
    limits = ([across[0], np.log(0.3), -6.0, -2.0], [across[-1], np.log(max(2.0, radius / 4)), 5.0, 5.0])
    fits = [
        optimize.least_squares(
            lambda p: (fitted(p) - mean) / scale,
            np.clip(start, *limits),
            bounds=limits,
            loss="soft_l1",
            f_scale=0.02,
            max_nfev=60,
        )
        for start in starts
    ]
    best = min(fits, key=lambda fit: fit.cost)
    return best.x, np.gradient(fitted(best.x), across)


def _shifts(profiles: np.ndarray, mean: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """(angles,) by how much each profile lies farther out than their mean, NaN where it can't be told."""
    tilt = slope - slope.mean()
    return -((profiles - mean) @ tilt) / (tilt @ tilt)


def _robust_fit(basis: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, float]:
    """Coefficients of a basis by Tukey's weights, and the standard error of the values' mean."""
    known = np.isfinite(values)
    basis, values = np.column_stack([np.ones(known.sum()), basis[known]]), values[known]
    weight = np.ones(len(values))
    for _ in range(10):
        fitted = np.linalg.lstsq(basis * weight[:, None], values * weight, rcond=None)[0]
        rest = values - basis @ fitted
        spread = 1.4826 * np.median(np.abs(rest)) + 1e-9
        weight = np.maximum(1 - (rest / (4.7 * spread)) ** 2, 0)
    return fitted[1:], float(spread / np.sqrt(len(values)))
