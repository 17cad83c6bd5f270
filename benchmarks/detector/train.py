"""Trains the detector on the films of `films`.

    python -m benchmarks.detector.train runs/detector/train --out runs/detector/run --minutes 60

Each film is turned, scaled, bent a little, cut to a part, exposed, and covered here and there by what films have: markers, text,
metal, grids, dark or bright shades. Equal seeds give equal films. A stopped training resumes.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from benchmarks.detector.films import PIXEL_MM, Films, read_films
from transvert.clinical import detector
from transvert.clinical.detector import LEVELS, Detector
from transvert.io import atomic_path
from transvert.model import networks
from transvert.model.muon import Muon
from transvert.model.train import average_weights
from transvert.progress import progress_bar

SHAPE = (448, 256)  # Of a training film, pixels of 1.5 mm.
FIRST_SHAPE, FIRST = (128, 96), 0.5  # Of the parts of films that the first share of the steps sees, twice as many.
HARDER = 0.3  # The share of the steps until all films have noise, processing and covers.
SIGMA = 1.4  # Of a centre's peak, pixels of 3 mm.
NEAR = 4.0  # How far around the spine every pixel counts fully, pixels of 3 mm.
FAR = 0.1  # How much others count.
LEVEL_RADIUS = 4.0


def draw_film(
    films: Films, random: np.random.Generator, shape: tuple[int, int] = SHAPE, *, plain: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One film as the network sees it: (4, H, W) of a shape; centres (N, 2) in its pixels; and their places in `LEVELS`.

    A `plain` one is not exposed and has no covers.
    """
    which = int(random.integers(2))
    view, picture = films.views[which], films.pictures[which].astype(np.float32)
    known = [n for n in films.centres if n in LEVELS]
    at = view.project(np.array([films.centres[n] for n in known]))
    number = np.array([LEVELS.index(n) for n in known])

    # Where the film is cut: around a part of the spine, most often of the whole width.
    size = np.array([random.uniform(230, 680), random.uniform(140, 400)]) / PIXEL_MM
    if random.random() < 0.4:
        size = np.array(shape, float)
    focus = at[random.integers(len(at))] + random.normal(0, 25, 2)
    angle, zoom = np.radians(random.normal(0, 5)), np.exp(random.normal(0, 0.1))
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
    if which == 0 and random.random() < 0.5:
        matrix = matrix @ np.diag([1.0, -1.0])
    half = (np.array(shape) - 1) / 2
    knots = torch.from_numpy(random.normal(0, 2.5, (1, 2, 7, 4)).astype(np.float32))
    bend = functional.interpolate(knots, shape, mode="bicubic", align_corners=True)[0].numpy()
    grid = np.stack(np.indices(shape, np.float32))
    source = np.einsum("ij,jrc->irc", matrix, grid - half[:, None, None]) + focus[:, None, None] + bend
    film = ndimage.map_coordinates(picture, source, order=1, mode="constant")
    inverse = np.linalg.inv(matrix)
    seen = (at - focus) @ inverse.T + half
    for _ in range(3):  # The bend is small and smooth.
        here = np.stack([ndimage.map_coordinates(b, seen.T, order=1, mode="nearest") for b in bend], axis=1)
        seen = (at - focus - here) @ inverse.T + half

    size = np.minimum(size, shape).astype(int)
    corner = np.array([random.integers(0, n - s + 1) for n, s in zip(shape, size, strict=True)])
    if random.random() < 0.8:
        corner = np.clip((half - size / 2 + random.normal(0, 12, 2)).astype(int), 0, np.array(shape) - size)
    inside = np.zeros(shape, bool)
    inside[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]] = True
    if not plain:
        film = cover(expose(film, random), inside, seen, random)
    if random.random() < 0.3:  # Collimated: the film is larger than its field, and dark or bright around it.
        around, inside = ~inside, np.ones(shape, bool)
        film[around] = random.choice([film.min(), film.max(), 0.0])
        hidden = around
    else:
        hidden = ~inside
    rows, columns = np.rint(seen).astype(int).T
    on = (rows >= 2) & (columns >= 2) & (rows < shape[0] - 2) & (columns < shape[1] - 2)
    on[on] &= ~hidden[rows[on], columns[on]]
    return detector.stack_input(film.astype(np.float32), inside, lateral=which == 1), seen[on], number[on]


def expose(integral: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Grey values of an exposure: scatter, noise, blur, and the processing of many makers."""
    signal = np.exp(-integral * random.uniform(0.7, 1.15))
    signal = signal + random.uniform(0, 0.03) * ndimage.uniform_filter(signal, 41)
    photons = 10 ** random.uniform(3.3, 5.5) / np.percentile(signal, 10)  # Some 10^5 behind a patient are usual.
    signal = signal + np.sqrt(signal / photons) * random.standard_normal(signal.shape).astype(np.float32)
    film = -np.log(np.maximum(signal, 1 / photons))
    if random.random() < 0.5:
        film = ndimage.gaussian_filter(film, random.uniform(0, 1.0))
    if random.random() < 0.5:  # Processing that evens out thick and thin parts.
        film = film - random.uniform(0.2, 0.95) * ndimage.uniform_filter(film, int(random.integers(21, 121)))
    # The spine is among the densest parts: a film on which it is white throughout shows nothing.
    low, high = np.percentile(film, (random.uniform(0, 12), 100 - random.exponential(0.5)))
    film = np.clip((film - low) / max(high - low, 1e-6), 0, 1)
    film = film ** np.exp(random.normal(0, 0.4))
    shade = ndimage.zoom(random.normal(0, 0.12, (4, 3)), (film.shape[0] / 4, film.shape[1] / 3), order=1)
    return film + shade * random.random() + random.normal(0, 0.004) * random.standard_normal(film.shape)


def cover(film: np.ndarray, inside: np.ndarray, centres: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Markers, text, metal, a grid's lines, and soft shades."""
    top, height, width = float(film.max()), *film.shape
    for _ in range(random.poisson(0.7)):  # Letters and labels.
        r, c, h, w = (
            random.integers(0, height),
            random.integers(0, width),
            random.integers(4, 26),
            random.integers(4, 40),
        )
        block = film[r : r + h, c : c + w]
        block[:] = np.where(random.random(block.shape) < random.uniform(0.3, 1), top * random.uniform(0.6, 1.4), block)
    for _ in range(random.poisson(0.4)):  # Tubes, arms and clothes.
        middle, half = random.uniform(0, height), random.uniform(6, 60, 2)
        grid = np.indices(film.shape)
        x = (grid[0] - middle) / half[0], (grid[1] - random.uniform(0, width)) / half[1]
        film = film + random.normal(0, 0.12) * np.clip(1.2 - x[0] ** 2 - x[1] ** 2, 0, 0.3) / 0.3
    if random.random() < 0.12 and len(centres) > 2:  # Rods and screws.
        first = int(random.integers(0, len(centres) - 1))
        chosen = centres[first : first + int(random.integers(2, 8))]
        for offset in random.uniform(-14, 14, 2):
            for a, b in itertools.pairwise(chosen):
                for t in np.linspace(0, 1, 24):
                    r, c = np.rint(a + t * (b - a) + [0, offset]).astype(int)
                    if 2 <= r < height - 2 and 2 <= c < width - 2:
                        film[r - 1 : r + 2, c - 1 : c + 2] = top * 1.2
    if random.random() < 0.08:
        film[:: int(random.integers(12, 40))] += 0.2 * top
    return film


def targets(
    centres: np.ndarray, number: np.ndarray, shape: tuple[int, int] = SHAPE
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maps (H / 2, W / 2) of a film with centres (N, 2) and their places in `LEVELS`.

    Returns:
        (2, H / 2, W / 2) peaks of bodies' and of discs' centres, in 0..1; how much each pixel counts; and the place in
        `LEVELS` near each centre, -1 elsewhere.
    """
    size = shape[0] // 2, shape[1] // 2
    order = np.argsort(number)
    bodies, number = (centres[order] - 0.5) / 2, number[order]
    pairs = np.flatnonzero(np.diff(number) == 1)
    discs = (bodies[pairs] + bodies[pairs + 1]) / 2
    peaks = np.stack([_peaks(at, SIGMA, size) for at in (bodies, discs)])
    near = np.maximum(_peaks(bodies, NEAR, size), _peaks(discs, NEAR, size))
    level, (rows, columns) = np.full(size, -1), np.ogrid[: size[0], : size[1]]
    for (row, column), n in zip(bodies, number, strict=True):
        level[(rows - row) ** 2 + (columns - column) ** 2 < LEVEL_RADIUS**2] = n
    return peaks, FAR + near, level


def _peaks(places: np.ndarray, sigma: float, size: tuple[int, int]) -> np.ndarray:
    """The highest of Gaussians at places (N, 2), float32."""
    if not len(places):
        return np.zeros(size, np.float32)
    rows, columns = (
        np.exp(-((np.arange(n) - places[:, i, None]) ** 2) / (2 * sigma**2)).astype(np.float32)
        for i, n in enumerate(size)
    )
    return (rows[:, :, None] * columns[:, None]).max(0)


def detector_loss(found: Tensor, peaks: Tensor, weight: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted cross-entropy of bodies' and discs' centres beyond its least value, and the cross-entropy of levels."""
    least = functional.binary_cross_entropy(peaks, peaks, reduction="none")
    excess = functional.binary_cross_entropy_with_logits(found[:, :2], peaks, reduction="none") - least
    centres = (weight[:, None] * excess).sum() / (peaks[:, 0] > 0.8).sum().clamp(min=1) / 10
    return centres, functional.cross_entropy(found[:, 2:], level, ignore_index=-1)


def main() -> None:
    """Trains and writes the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("films", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-2)
    parser.add_argument(
        "--start", type=Path, help="weights to go on from, with whole and spoilt films from the first step"
    )
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(asked.seed)
    network = networks.build_network("detector", {"detector": Detector})
    torch.nn.init.constant_(network.centre.bias, -3.0)
    if asked.start:
        network.load_state_dict(networks.load_weights(asked.start, {"detector": Detector})[0].state_dict())
    network.train()
    optimiser = Muon(network.parameters(), asked.rate, 0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, asked.rate, asked.steps, pct_start=0.03, cycle_momentum=False
    )
    average = AveragedModel(network, avg_fn=average_weights, use_buffers=True)
    state = {"network": network, "optimiser": optimiser, "schedule": schedule, "average": average}
    checkpoint, begin, rows = asked.out / "checkpoint.pt", 0, []
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        begin, rows = saved["step"], saved["rows"]
        for name, part in state.items():
            part.load_state_dict(saved[name])
    asked.out.mkdir(parents=True, exist_ok=True)
    cache: dict[Path, Films] = {}
    sums, clock = np.zeros(3), time.perf_counter()
    for step in progress_bar(range(begin, asked.steps), "steps"):
        if step % 50 == 0 or not cache:
            cache |= {path: read_films(path) for path in sorted(asked.films.glob("*.npz")) if path not in cache}
        random = np.random.default_rng([asked.seed, step])
        first = not asked.start and step < FIRST * asked.steps
        shape, count = (FIRST_SHAPE, 2 * asked.batch) if first else (SHAPE, asked.batch)
        drawn = []
        for _ in range(count):
            plain = not asked.start and bool(random.random() > step / (HARDER * asked.steps))
            drawn.append(draw_film(list(cache.values())[random.integers(len(cache))], random, shape, plain=plain))
        made = [targets(at, number, shape) for _, at, number in drawn]
        images = torch.from_numpy(np.stack([film for film, _, _ in drawn])).contiguous(
            memory_format=torch.channels_last
        )
        peaks, weight, level = (torch.from_numpy(np.stack(part)) for part in zip(*made, strict=True))
        centre_loss, level_loss = detector_loss(network(images), peaks, weight, level)
        loss = centre_loss + torch.nan_to_num(level_loss)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(network)
        sums += [centre_loss.item(), level_loss.item(), 1]
        if (step + 1) % 100 == 0 or step + 1 == asked.steps:
            rows.append([step + 1, *(sums[:2] / sums[2]).tolist(), time.perf_counter() - clock])
            print(" ".join(f"{v:.3f}" for v in rows[-1]), flush=True)
            sums[:] = 0
            content = {name: part.state_dict() for name, part in state.items()} | {"step": step + 1, "rows": rows}
            with atomic_path(checkpoint) as temporary:
                torch.save(content, temporary)
            card = {"films": len(cache), "steps": step + 1}
            networks.save_weights(asked.out / "detector.safetensors", average.module, "detector", {}, bits=8, **card)
    pd.DataFrame(rows, columns=["step", "centre_loss", "level_loss", "seconds"]).to_csv(asked.out / "curve.csv")


if __name__ == "__main__":
    main()
