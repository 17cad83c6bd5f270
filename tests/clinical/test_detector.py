"""From films to candidates in space, with a network that finds bright dots; and the shipped network on a simulated pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from transvert import levels
from transvert.clinical import chain, detector
from transvert.clinical.landmarks import project_landmarks
from transvert.clinical.radiograph import Radiograph
from transvert.drr import geometry
from transvert.drr.geometry import View
from transvert.io import InputError
from transvert.model import networks

POINTS = np.array([[4.0, -10.0, 60.0], [-3.0, 2.0, 31.0], [0.0, 8.0, -4.0], [6.0, 5.0, -38.0]])
ENDS = np.array([[-90.0, -90.0, -120.0], [90.0, 90.0, 120.0]])


class Dots(nn.Module):
    """The brighter, the more likely a centre; no opinion on levels."""

    def forward(self, films: Tensor) -> Tensor:
        seen = functional.avg_pool2d(films[:, :1], 2)
        return torch.cat([12 * seen - 12, torch.zeros(len(seen), len(detector.LEVELS), *seen.shape[2:])], 1)


def dotted(view: View, points: np.ndarray, seed: int = 0) -> np.ndarray:
    """A film with a blob of 4 mm at each point."""
    grid = np.stack(np.indices(view.shape), axis=-1)
    film = 0.02 * np.random.default_rng(seed).standard_normal(view.shape)
    for point in points:
        mm = (grid - view.project(point)) * view.pixel_mm / view.magnification(point)
        film += np.exp(-(mm**2).sum(-1) / (2 * 4.0**2))
    margin = view.shape[1] // 8  # Bright and dark borders, so that dots are within the range of the grey values.
    film[:, :margin], film[:, -margin:] = 0.5, -1.0
    return film.astype(np.float32)


def pair(pixel_mm: float = 0.7, **options: object) -> tuple[View, View]:
    ap, lateral = (geometry.covering_view(name, ENDS, pixel_mm, **options) for name in ("ap", "left_lateral"))
    return ap, lateral


@pytest.mark.parametrize(
    "views",
    [
        pair(),
        pair(cone=True),
        pair(0.15, cone=True),
        (pair(cone=True)[0], geometry.covering_view("right_lateral", ENDS, 1.9)),
    ],
    ids=["parallel", "cone", "fine", "mixed"],
)
def test_dots_become_candidates_at_their_places_in_space(views: tuple[View, View]) -> None:
    maps = [
        detector.find_centres(dotted(view, POINTS, i), view, np.zeros(3), lateral=i == 1, network=Dots())
        for i, view in enumerate(views)
    ]
    found = detector.find_candidates(views, maps, np.zeros(3))
    assert [c.point[2] for c in found] == sorted((c.point[2] for c in found), reverse=True)
    for point in POINTS:
        nearest = min(found, key=lambda c: np.linalg.norm(c.point - point))
        assert np.linalg.norm(nearest.point - point) < 2.0
        for pixel, view in zip(nearest.pixels, views, strict=True):
            assert np.abs((pixel - view.project(point)) * view.pixel_mm).max() < 2.0


def test_a_dot_of_one_film_takes_the_likeliest_place_of_its_height_on_the_other() -> None:
    views = pair(cone=True)
    faint = dotted(views[0], POINTS)
    faint[:, views[0].shape[1] // 8 :] *= 0.85
    films = faint, dotted(views[1], POINTS, 1)
    maps = [
        detector.find_centres(f, v, np.zeros(3), lateral=i == 1, network=Dots())
        for i, (f, v) in enumerate(zip(films, views, strict=True))
    ]
    ridge = detector.find_ridge(maps[1])
    peak = max(ridge, key=lambda place: maps[1].at(place)[0])
    partner = detector._partner(views, maps, 1, peak, np.zeros(3))
    pixels = maps[0].film_pixel(partner), maps[1].film_pixel(peak)
    point, miss = geometry.triangulate(views[0], pixels[0], views[1], pixels[1])
    assert np.linalg.norm(POINTS - point, axis=1).min() < 4.0
    assert miss < 2.0


def test_a_blank_film_and_one_with_unexposed_parts_give_finite_maps() -> None:
    (view, _) = pair()
    for film in (np.zeros(view.shape, np.float32), np.full(view.shape, np.nan, np.float32)):
        maps = detector.find_centres(film, view, np.zeros(3), lateral=False)
        assert np.isfinite(maps.centre).all()
    film = dotted(view, POINTS)
    film[:, :40] = np.nan
    maps = detector.find_centres(film, view, np.zeros(3), lateral=False, network=Dots())
    assert (maps.centre[:, : int(35 / maps.scale[1])] == 0).all()


class FrontOfLateral(nn.Module):
    """Centres where the upper left of a lateral film is bright; none on an AP film."""

    def forward(self, films: Tensor) -> Tensor:
        seen = functional.avg_pool2d(films[:, :1], 2) * films[:, 2:3, ::2, ::2].clamp(0)
        height, width = seen.shape[2:]
        inside = torch.zeros_like(seen)
        inside[:, :, : height // 2, : width // 2] = 1
        return torch.cat([12 * seen * inside - 12, torch.zeros(len(seen), len(detector.LEVELS), height, width)], 1)


@pytest.mark.parametrize(
    ("steps", "lateral", "fault"),
    [
        ((1, 1), True, ""),
        ((1, -1), True, "mirrored, with the front on the right"),
        ((-1, 1), True, "upside down"),
        ((-1, -1), True, "turned by 180 degrees"),
        ((1, 1), False, "like a lateral one"),
    ],
)
def test_a_film_that_lies_wrongly_is_told(steps: tuple[int, int], lateral: bool, fault: str) -> None:
    view = geometry.covering_view("left_lateral", ENDS, detector.PIXEL_MM)
    film = np.zeros(view.shape, np.float32)
    film[10:76, 10:50] = 1.0
    given = film[:: steps[0], :: steps[1]]
    assert detector.film_fault(given, view, np.zeros(3), lateral, FrontOfLateral()) == fault
    if not fault:
        assert detector.film_fault(-given, view, np.zeros(3), lateral, FrontOfLateral()).startswith("like a negative")


def test_a_film_without_vertebrae_lies_as_well_one_way_as_another(monkeypatch: pytest.MonkeyPatch) -> None:
    views = pair(cone=True)
    for film in (np.zeros(views[1].shape), np.random.default_rng(0).random(views[1].shape)):
        assert detector.film_fault(film.astype(np.float32), views[1], np.zeros(3), lateral=True) == ""
    monkeypatch.setattr(detector, "shipped_detector", FrontOfLateral)
    flat = geometry.covering_view("left_lateral", ENDS, detector.PIXEL_MM)
    lateral = np.zeros(flat.shape, np.float32)
    lateral[10:76, -50:-10] = 1.0
    films = [Radiograph(np.zeros(views[0].shape, np.float32), views[0].pixel_mm), Radiograph(lateral, flat.pixel_mm)]
    found = chain.detect_landmarks(*films, project_landmarks(views[0], flat, np.zeros(3), {}))
    assert found.doubt.startswith("By the pictures, the lateral film looks mirrored, with the front on the right:")


def test_films_without_a_spine_are_doubted() -> None:
    views = pair(cone=True)
    setup = project_landmarks(*views, np.zeros(3), {})
    random = np.random.default_rng(0)
    for make in (np.zeros, lambda shape: random.random(shape)):
        films = [Radiograph(make(view.shape).astype(np.float32), view.pixel_mm) for view in views]
        found = chain.detect_landmarks(*films, setup)
        assert "mark them by hand" in found.doubt
        assert not found.landmarks.levels or found.chain is not None


def test_levels_are_those_that_the_network_gives() -> None:
    assert len(detector.LEVELS) == 25
    assert [levels.name(n) for n in detector.LEVELS[-2:]] == ["L5", "sacrum"]
    made = networks.build_network("detector", {"detector": detector.Detector}).eval()
    with torch.inference_mode():
        assert made(torch.zeros(1, 4, 64, 96)).shape == (1, 27, 32, 48)


def test_an_unknown_level_is_refused() -> None:
    views = pair(cone=True)
    films = [Radiograph(np.zeros(view.shape, np.float32), view.pixel_mm) for view in views]
    with pytest.raises(InputError, match="is not a vertebral level"):
        chain.detect_landmarks(*films, project_landmarks(*views, np.zeros(3), {}), lowest="X9")
