"""Finds vertebrae on films: a network over the whole film, and the points that both films agree on.

The network sees a film at `PIXEL_MM` in the patient's plane and gives, at twice that pitch, the probability of a body's centre and
of each level. Where the likeliest places of the AP film and of the lateral film have one height through the films' geometry, they are a
candidate in space. `chain` chooses among the candidates and names them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from transvert import levels
from transvert.drr import geometry
from transvert.drr.geometry import View
from transvert.io import PACKAGE
from transvert.model import networks
from transvert.model.networks import Attention, Residual, SubpixelUpsample, conv

WEIGHTS = PACKAGE / "weights" / "detector.safetensors"
PIXEL_MM = 1.5  # Of the network's input, in the patient's plane; its output has twice that.
LEVELS = (*(n for n in levels.VERTEBRAE if n not in levels.RARE), 26)
"""The levels that the network tells apart: C1 to L5 and the sacrum."""
LEAST_CENTRE = 0.03  # Probability of a body's centre below which a place is no candidate.
LEAST_PARTNER = 0.001  # The same, of its partner on the other film.
MOST_APART_MM = 4.0  # Between the rays of one vertebra's peaks on both films.
DEPTH_MM = 250.0  # How far a spine may lie from the isocentre.
LOCAL = 19  # Pixels of the square that local contrast is relative to: a vertebra.
FAINT = 0.3  # Mean probability of the vertebrae in the clearer film below which there may be no spine.
CLEARER = 0.02  # By how much more probable centres must be in another orientation of a film, for a doubt.
_PAD = 32  # The network halves its input this often.


class Detector(nn.Module):
    """A U-Net over a film: `widths` channels at twice the input's pitch, four times and so on; attention at the coarsest."""

    def __init__(self, widths: tuple[int, ...] = (16, 24, 48, 96, 128)):
        super().__init__()
        widths = tuple(widths)
        self.stem = nn.Sequential(nn.PixelUnshuffle(2), conv(16, widths[0], 2), Residual(widths[0], 2))
        pairs = list(itertools.pairwise(widths))
        self.down = nn.ModuleList(nn.Sequential(conv(a, b, 2, stride=2), Residual(b, 2)) for a, b in pairs)
        deep = [Attention(widths[-1]), *(Residual(widths[-1], 2) for _ in range(3))]
        self.deep = nn.Sequential(Residual(widths[-1], 2), *deep)
        self.up = nn.ModuleList(SubpixelUpsample(b, a, 2) for a, b in pairs)
        self.join = nn.ModuleList(nn.Sequential(networks.norm_act(a, 2), Residual(a, 2)) for a, _ in pairs)
        self.centre = nn.Conv2d(widths[0], 2, 1)
        self.level = nn.Sequential(conv(widths[2], 2 * widths[2], 2), nn.Conv2d(2 * widths[2], len(LEVELS), 1))

    def forward(self, films: Tensor) -> Tensor:
        """Films (B, 4, H, W) of `stack_input`; sides are multiples of 32.

        Returns:
            (B, 2 + 25, H / 2, W / 2): the logits of a body's centre and of a disc's, and the scores of `LEVELS`.
        """
        features = [self.stem(films)]
        for stage in self.down:
            features.append(stage(features[-1]))
        x = self.deep(features.pop())
        for up, join in zip(reversed(self.up), reversed(self.join), strict=True):
            x = join(up(x) + features.pop())
            if len(features) == 2:  # Levels change slowly along a film.
                level = self.level(x)
        return torch.cat([self.centre(x), functional.interpolate(level, scale_factor=4, mode="bilinear")], 1)


@dataclass(frozen=True)
class Maps:
    """What the network sees on one film, and where that is: a pixel of the maps is `scale` (2,) pixels of the film.

    `centre` is (H, W), the probability of a body's centre; `level` is (25, H, W), log probabilities that add up to one.
    """

    centre: np.ndarray
    level: np.ndarray
    scale: np.ndarray

    def film_pixel(self, place: np.ndarray) -> np.ndarray:
        """Rows and columns (..., 2) on the film of places on the maps."""
        return (np.asarray(place) + 0.5) * self.scale - 0.5

    def map_place(self, pixel: np.ndarray) -> np.ndarray:
        """The inverse of `film_pixel`."""
        return (np.asarray(pixel) + 0.5) / self.scale - 0.5

    def peak(self, place: np.ndarray) -> np.ndarray:
        """The centre of mass (2,) of the probability of a centre around its highest place within 2 pixels of a place (2,)."""
        padded = np.pad(self.centre, 5)
        for reach in (2, 1, 2):  # Towards the highest place, then around it.
            row, column = np.rint(place).astype(int).clip(0, np.array(self.centre.shape) - 1) + 5
            near = padded[row - reach : row + reach + 1, column - reach : column + reach + 1] ** 2 + 1e-12
            grid = np.indices(near.shape) - reach
            place = np.array([row, column]) - 5 + (grid * near).sum((1, 2)) / near.sum()
        return place

    def at(self, place: np.ndarray) -> tuple[float, np.ndarray]:
        """The highest probability of a centre within a pixel of a place (2,), and the levels' log probabilities (25,) there."""
        row, column = (int(np.clip(round(float(v)), 0, n - 1)) for v, n in zip(place, self.centre.shape, strict=True))
        near = self.centre[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        return float(near.max()), self.level[:, row, column]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A point that may be a body's centre.

    Attributes:
        point: (3,) RAS mm.
        pixels: (2, 2) row and column on the AP and on the lateral film.
        centre: (2,) logits of a body's centre on both films.
        level: (2, 25) log probabilities of `LEVELS` on both films.
    """

    point: np.ndarray
    pixels: np.ndarray
    centre: np.ndarray
    level: np.ndarray


@functools.cache
def shipped_detector() -> nn.Module:
    """The network that comes with the package."""
    return networks.load_weights(WEIGHTS, {"detector": Detector})[0]


def prepare_film(pixels: np.ndarray, scale: np.ndarray, lateral: bool) -> np.ndarray:
    """(4, H, W) float32, the network's input for a film (rows, columns).

    `scale` (2,) is how many rows and columns of the film are one pixel of the input. Sides become multiples of 32.
    """
    valid = np.isfinite(pixels)
    filled = np.where(valid, pixels, 0.0).astype(np.float32)
    shape = np.maximum(np.rint(np.array(pixels.shape) / scale).astype(int), 1)
    grey, inside = (_resize(a, shape, scale) for a in (filled, valid.astype(np.float32)))
    padding = [(0, -n % _PAD) for n in shape]
    grey, inside = np.pad(grey / np.maximum(inside, 0.5), padding), np.pad(inside > 0.5, padding)
    return stack_input(grey, inside, lateral)


def stack_input(grey: np.ndarray, inside: np.ndarray, lateral: bool) -> np.ndarray:
    """(4, H, W) float32: standardised grey values, where they are valid, 1 for lateral or -1 for AP, and local contrast."""
    grey = standardise(grey, inside)
    share = np.maximum(ndimage.uniform_filter(inside.astype(np.float32), LOCAL), 1e-3)
    mean = ndimage.uniform_filter(grey, LOCAL) / share
    spread = np.sqrt(np.maximum(ndimage.uniform_filter(grey**2, LOCAL) / share - mean**2, 0.0)) + 0.02
    local = np.where(inside, np.clip((grey - mean) / spread, -3, 3), 0.0)
    return np.stack([grey, inside, np.full_like(grey, 1.0 if lateral else -1.0), local]).astype(np.float32)


def _resize(picture: np.ndarray, shape: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The picture at the centres of larger or smaller pixels; larger ones are means."""
    smooth = ndimage.uniform_filter(picture, np.maximum(np.rint(scale), 1).astype(int), mode="nearest")
    offset = (scale - 1) / 2
    return ndimage.affine_transform(smooth, scale, offset, tuple(shape), order=1, mode="nearest")


def standardise(grey: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Grey values with their median at 0 and their middle 90 % from about -1 to 1; 0 outside, and for a blank film."""
    if not inside.any():
        return np.zeros_like(grey)
    low, middle, high = np.percentile(grey[inside], (5, 50, 95))
    if not high - low > 1e-6 * max(abs(low), abs(high)):
        return np.zeros_like(grey)
    return np.where(inside, np.clip((grey - middle) * 2 / (high - low), -3, 3), 0).astype(np.float32)


def find_centres(
    pixels: np.ndarray, view: View, point: np.ndarray, lateral: bool, network: nn.Module | None = None
) -> Maps:
    """What the network sees on a film (rows, columns) of a view; `point` (3,) RAS mm is in the patient's plane."""
    scale = PIXEL_MM * view.magnification(point) / np.array(view.pixel_mm)
    centre, level = _see(prepare_film(pixels, scale, lateral), network)
    return Maps(centre, torch.log_softmax(level, 0).numpy(), 2 * scale)


def _see(film: np.ndarray, network: nn.Module | None) -> tuple[np.ndarray, Tensor]:
    """The probability (H / 2, W / 2) of a body's centre on a prepared film (4, H, W), and the scores (25, ...) of levels."""
    with torch.inference_mode():
        found = (network or shipped_detector())(torch.from_numpy(np.ascontiguousarray(film[None])))[0]
    return torch.sigmoid(found[0]).numpy() * (film[1, ::2, ::2] > 0.5), found[2:]


def film_fault(
    pixels: np.ndarray, view: View, point: np.ndarray, lateral: bool, network: nn.Module | None = None
) -> str:
    """What a film looks like instead, such as "upside down"; "" where it shows vertebrae most clearly as it is.

    Arguments as for `find_centres`. Whether an AP film is mirrored can't be told.
    """
    film = prepare_film(pixels, PIXEL_MM * view.magnification(point) / np.array(view.pixel_mm), lateral)
    other, negative = (film * np.array(signs, np.float32)[:, None, None] for signs in ((1, 1, -1, 1), (-1, 1, 1, -1)))
    shown = {"": film, "upside down": film[:, ::-1], "like a negative, with black bone": negative}
    if lateral:
        shown |= {
            "like an AP film": other,
            "mirrored, with the front on the right": film[..., ::-1],
            "turned by 180 degrees": film[:, ::-1, ::-1],
        }
    else:
        shown["like a lateral one"] = other
    # Of the rows with the most probable centres: a spine of 120 mm.
    rows = round(120 / (2 * PIXEL_MM))
    clear = {words: float(np.sort(_see(f, network)[0].max(axis=1))[-rows:].mean()) for words, f in shown.items()}
    best = max(clear, key=lambda words: clear[words])
    return best if clear[best] > max(clear[""] + CLEARER, FAINT) else ""


def find_ridge(maps: Maps) -> np.ndarray:
    """(N, 2) places on the maps: of each row the one where a body's centre is most likely, to a fraction of a column.

    Between two centres the ridge is lower than at them, and `chain` finds the centres along it.
    """
    best = maps.centre.argmax(axis=1)
    rows = np.flatnonzero(maps.centre.max(axis=1) > LEAST_CENTRE)
    return np.array([[row, _middle(maps.centre[row], best[row])] for row in rows], float).reshape(-1, 2)


def _middle(line: np.ndarray, place: int) -> float:
    """The centre of mass within two pixels of the highest one of a line."""
    low = max(place - 2, 0)
    part = line[low : place + 3]
    return low + float((np.arange(len(part)) * part).sum() / part.sum())


def find_candidates(views: Sequence[View], maps: Sequence[Maps], point: np.ndarray) -> list[Candidate]:
    """Points in space that both films may show, from the head down.

    A place on the ridge of one film joins the most likely place of its height on the other: in the AP film many vertebrae are
    faint. `point` (3,) RAS mm is in the patient.
    """
    pairs = []
    for own in (0, 1):
        for place in find_ridge(maps[own]):
            partner = _partner(views, maps, own, place, point)
            if partner is not None:
                pairs.append((place, partner) if own == 0 else (partner, place))
    found = []
    for places in pairs:
        seen = [m.at(p) for m, p in zip(maps, places, strict=True)]
        centre = np.array([np.clip(p, 1e-4, 1 - 1e-4) for p, _ in seen])
        logits, level = np.log(centre / (1 - centre)), np.array([level for _, level in seen])
        found.append(Candidate(*_place(views, maps, places)[:2], logits, level))
    return sorted(found, key=lambda c: -c.point[2])


def refine_candidate(views: Sequence[View], maps: Sequence[Maps], candidate: Candidate) -> Candidate:
    """The candidate at the peaks of both maps near it, which are not bound to a row.

    Where their heights disagree, the clearer peak counts, and the other film's place is the most likely one of its height.
    """
    places = [m.peak(m.map_place(pixel)) for m, pixel in zip(maps, candidate.pixels, strict=True)]
    point, pixels, apart_mm = _place(views, maps, places)
    if apart_mm > MOST_APART_MM:
        own = int(candidate.centre.argmax())
        partner = _partner(views, maps, own, places[own], candidate.point)
        if partner is None:
            return candidate
        places[1 - own] = partner
        point, pixels, _ = _place(views, maps, places)
    return replace(candidate, point=point, pixels=pixels)


def _place(
    views: Sequence[View], maps: Sequence[Maps], places: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, float]:
    """The point (3,) RAS mm of a place on each map, its pixels (2, 2), and the distance of its two rays, mm."""
    pixels = np.array([m.film_pixel(p) for m, p in zip(maps, places, strict=True)])
    point, apart_mm = geometry.triangulate(views[0], pixels[0], views[1], pixels[1])
    return point, pixels, apart_mm


def _partner(
    views: Sequence[View], maps: Sequence[Maps], own: int, place: np.ndarray, point: np.ndarray
) -> np.ndarray | None:
    """The most likely place (2,) on the other film's map near the ray of a place on this one, within the patient."""
    start, along = views[own].rays(maps[own].film_pixel(place))
    other, seen = views[1 - own], maps[1 - own]
    middle = start + along * ((point - start) @ along)
    ends = np.array([other.project(middle + along * mm) for mm in (-DEPTH_MM, DEPTH_MM)])
    ends = seen.map_place(ends)
    if not np.isfinite(ends).all() or ends[0, 1] == ends[1, 1]:
        return None
    columns = np.arange(seen.centre.shape[1])
    ends = ends[np.argsort(ends[:, 1])]
    rows = np.interp(columns, ends[:, 1], ends[:, 0])
    line = ndimage.map_coordinates(seen.centre, [rows, columns], order=1, mode="constant")
    if line.max() < LEAST_PARTNER:
        return None
    column = _middle(line, int(line.argmax()))
    return np.array([np.interp(column, columns, rows), column])
