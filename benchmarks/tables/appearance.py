"""What vertebrae look like on films, and how often `film_checks` refuses or warns of good and bad films.

python -m benchmarks.tables.appearance [FOLDER]    (FOLDER keeps the simulated films; an hour without them)

Writes transvert/tables/mean_patches.png and benchmarks/tables/appearance.md.
"""

from __future__ import annotations

import sys
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from benchmarks import results
from transvert import levels
from transvert.clinical import film_checks, reconstruct
from transvert.clinical.vertebra import REGIONS, Views, body_region
from transvert.data import patches, samples, subjects
from transvert.data.patches import SIZE, SPACING_MM
from transvert.drr import geometry
from transvert.io import InputError

LEARNED, HELD = ("verse_predictions", "verse_samples"), ("embedded", "public_samples", "generic_skeleton")
LANDMARK_SD_MM = 2.0
Pair = list[np.ndarray]


@dataclass
class Person:
    """Simulated films of a person."""

    name: str
    source: str
    films: Pair
    views: Views
    points: dict[int, np.ndarray]


def people(folder: Path) -> Iterator[Person]:
    """Simulates each person's films, with 3e4 to 3e6 photons a pixel, or reads those of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in (*LEARNED, *HELD):
        for subject in subjects.find_subjects(source):
            seed = zlib.crc32(subject.name.encode())
            path = folder / f"{source}__{subject.name}.npz"
            if not path.exists():
                try:
                    ct, mask, _ = subjects.load_subject(subject)
                    truth = samples.cut_samples(ct, mask, subject.name, projection="cone")
                except InputError:
                    continue
                photons = 10 ** np.random.default_rng(seed).uniform(4.5, 6.5)
                films, _, isocentre = reconstruct.simulate_radiographs(ct, photons=photons, seed=seed % 1000)
                arrays = {"ap": films[0].pixels, "lateral": films[1].pixels, "isocentre": isocentre}
                np.savez(path, levels=truth.levels, centroids=truth.centroids, corners=ct.corners(), **arrays)
            kept = np.load(path)
            views = tuple(geometry.covering_view(name, kept["corners"], 0.6, cone=True) for name in geometry.VIEWS)
            points = dict(zip(kept["levels"].tolist(), kept["centroids"], strict=True))
            points = {n: at for n, at in points.items() if n not in levels.WITHOUT_BODY}
            if points:
                yield Person(subject.name, source, [kept["ap"], kept["lateral"]], (views[0], views[1]), points)


def _grey(picture: np.ndarray) -> np.ndarray:
    low, high = np.percentile(picture, (0.5, 99.5))
    return np.clip((picture - low) / (high - low), 0, 1)


def _each(change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Callable[..., Pair]:
    return lambda films, random: [change(film, random).astype(np.float32) for film in films]


def _cover(film: np.ndarray, _: np.random.Generator) -> np.ndarray:
    covered = film.copy()
    covered[:, film.shape[1] // 4 : -film.shape[1] // 4] = film.min()
    return covered


def _cloud(film: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return ndimage.gaussian_filter(random.normal(size=film.shape), 8)


GOOD: dict[str, Callable[..., Pair]] = {
    "as simulated": _each(lambda film, _: film),
    "gamma 0.5 to 2": _each(lambda film, random: _grey(film) ** random.uniform(0.5, 2)),
    "noise of 3 % of the grey scale": _each(lambda film, random: _grey(film) + random.normal(0, 0.03, film.shape)),
    "edges enhanced": _each(lambda film, _: film + 2 * (film - ndimage.gaussian_filter(film, 4))),
    "blurred by 2 mm": _each(lambda film, _: ndimage.gaussian_filter(film, 3)),
    "background removed": _each(lambda film, _: film - 0.9 * ndimage.gaussian_filter(film, 40)),
}
BAD: dict[str, Callable[..., Pair]] = {
    "black": _each(lambda film, _: np.zeros_like(film)),
    "noise": _each(lambda film, random: random.random(film.shape)),
    "smooth noise": _each(_cloud),
    "the lateral film is noise": lambda films, random: [films[0], random.random(films[1].shape, np.float32)],
    "covered by a bar": _each(_cover),
    "bone black": _each(lambda film, _: -film),
}


def _turned(
    person: Person, turn: Callable[[np.ndarray], np.ndarray], matrix: np.ndarray, lateral: bool = False
) -> Person:
    """The films turned, and the spine as someone who took them for upright would mark it."""
    middle = _middle(person)
    order = levels.in_order(set(person.points))
    places = [matrix @ (person.points[n] - middle) + middle for n in order]
    places = places[::-1] if matrix[2, 2] < 0 else places
    films = [film if lateral and n == 0 else turn(film) for n, film in enumerate(person.films)]
    return Person(person.name, person.source, films, person.views, dict(zip(order, places, strict=True)))


def _middle(person: Person) -> np.ndarray:
    """The point that the middles of both films show."""
    middles = [(np.array(view.shape) - 1) / 2 for view in person.views]
    return geometry.triangulate(person.views[0], middles[0], person.views[1], middles[1])[0]


def _exchanged(person: Person) -> Person:
    """Each film given for the other; seen from the other side, x and y change places."""
    middle = _middle(person)
    swap = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
    points = {n: swap @ (at - middle) + middle for n, at in person.points.items()}
    names = ("ap", "left_lateral")
    shapes, corners = [film.shape for film in person.films[::-1]], person.views
    views = tuple(
        geometry.named_view(name, middle, shape, corners[0].pixel_mm, cone=True)
        for name, shape in zip(names, shapes, strict=True)
    )
    return Person(person.name, person.source, person.films[::-1], (views[0], views[1]), points)


WRONG: dict[str, Callable[[Person], Person]] = {
    "marked 60 mm beside the spine": lambda p: Person(
        p.name, p.source, p.films, p.views, {n: at + (60.0, 60.0, 0.0) for n, at in p.points.items()}
    ),
    "AP and lateral exchanged": _exchanged,
    "upside down": lambda p: _turned(p, np.flipud, np.diag([1.0, 1, -1])),
    "turned by 180 degrees": lambda p: _turned(p, lambda film: film[::-1, ::-1], np.diag([-1.0, -1, -1])),
    "the lateral film mirrored": lambda p: _turned(p, np.fliplr, np.diag([1.0, -1, 1]), lateral=True),
}


def outcome(person: Person, random: np.random.Generator) -> str:
    """Whether the films are refused, warned of, or pass, with landmarks marked by hand."""
    points = {n: at + random.normal(0, LANDMARK_SD_MM, 3) for n, at in person.points.items()}
    try:
        return "warned" if film_checks.check_films(person.films, person.views, points) else "passed"
    except InputError:
        return "refused"


def mean_of(cut: dict[str, dict[tuple[int, int], Pair]], without: str = "") -> np.ndarray:
    """(2, regions, SIZE, SIZE) mean patches of all people but one."""
    made = np.zeros((2, len(REGIONS), SIZE, SIZE))
    for which, region in np.ndindex(made.shape[:2]):
        made[which, region] = np.mean(
            [patch for name, own in cut.items() if name != without for patch in own.get((which, region), [])], axis=0
        )
    return made


def main(folder: Path) -> None:
    everyone = list(people(folder))
    cut: dict[str, dict[tuple[int, int], Pair]] = defaultdict(lambda: defaultdict(list))
    for person in everyone:
        random = np.random.default_rng(zlib.crc32(person.name.encode()))
        for level, at in person.points.items() if person.source in LEARNED else ():
            near = at + random.normal(0, LANDMARK_SD_MM, 3)
            for which, (film, view) in enumerate(zip(person.films, person.views, strict=True)):
                steps = patches.plane(patches.local_axes(*person.views, near), which)
                patch = patches.standardise(*patches.cut_patch(film, view, near, SIZE, SPACING_MM, steps))
                cut[person.name][which, list(REGIONS).index(body_region(level))].append(patch)
    whole = mean_of(cut)
    scale = np.rint(np.clip(128 + 127 * whole / np.abs(whole).max(), 0, 255)).astype(np.uint8)
    Image.fromarray(scale.transpose(0, 2, 1, 3).reshape(2 * SIZE, -1)).save(film_checks.TABLE)
    counts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for person in everyone:
        usual = mean_of(cut, person.name) if person.source in LEARNED else film_checks.mean_patches()
        film_checks.mean_patches = lambda usual=usual: usual  # type: ignore[assignment]
        random = np.random.default_rng(zlib.crc32(person.name.encode()) + 1)
        group = ("left out in turn" if person.source in LEARNED else "held out") + (
            ", 3 vertebrae or more" if len(person.points) >= film_checks.ENOUGH else ", 1 or 2 vertebrae"
        )
        for kind, made in (GOOD | BAD).items():
            films = made(person.films, random)
            changed = Person(person.name, person.source, films, person.views, person.points)
            counts[kind, group].append(outcome(changed, random))
        for kind, change in WRONG.items():
            counts[kind, group].append(outcome(change(person), random))
    groups = sorted({group for _, group in counts})
    rows = []
    for kind in [*GOOD, *BAD, *WRONG]:
        found = [counts[kind, group] for group in groups]
        rows.append((kind, *(f"{f.count('refused')} + {f.count('warned')} of {len(f)}" for f in found)))
    results.write_page(Path(__file__).with_suffix(".md"), results.markdown_table(["films", *groups], rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/appearance"))
