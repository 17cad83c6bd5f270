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
from transvert.model.train import average_weights
from transvert.progress import progress_bar

SHAPE = (448, 256)  # Of a training film, pixels of 1.5 mm.
SIGMA = 1.4  # Of a centre's peak, pixels of 3 mm.
LEVEL_RADIUS = 4.0


def draw_film(films: Films, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One film as the network sees it: (4, H, W); centres (N, 2) in its pixels; and their places in `LEVELS`."""
    which = int(random.integers(2))
    view, picture = films.views[which], films.pictures[which].astype(np.float32)
    known = [n for n in films.centres if n in LEVELS]
    at = view.project(np.array([films.centres[n] for n in known]))
    number = np.array([LEVELS.index(n) for n in known])

    # Where the film is cut: around a part of the spine, most often of the whole width.
    size = np.array([random.uniform(230, 680), random.uniform(140, 400)]) / PIXEL_MM
    if random.random() < 0.4:
        size = np.array(SHAPE, float)
    focus = at[random.integers(len(at))] + random.normal(0, 25, 2)
    angle, zoom = np.radians(random.normal(0, 5)), np.exp(random.normal(0, 0.1))
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
    if which == 0 and random.random() < 0.5:
        matrix = matrix @ np.diag([1.0, -1.0])
    half = (np.array(SHAPE) - 1) / 2
    bend = [ndimage.zoom(random.normal(0, 2.5, (7, 4)), (SHAPE[0] / 7, SHAPE[1] / 4), order=2) for _ in range(2)]
    grid = np.stack(np.indices(SHAPE, np.float32))
    source = np.einsum("ij,jrc->irc", matrix, grid - half[:, None, None]) + focus[:, None, None] + np.stack(bend)
    film = ndimage.map_coordinates(picture, source, order=1, mode="constant")
    inverse = np.linalg.inv(matrix)
    seen = (at - focus) @ inverse.T + half
    for _ in range(3):  # The bend is small and smooth.
        here = np.stack([ndimage.map_coordinates(b, seen.T, order=1, mode="nearest") for b in bend], axis=1)
        seen = (at - focus - here) @ inverse.T + half

    size = np.minimum(size, SHAPE).astype(int)
    corner = np.array([random.integers(0, n - s + 1) for n, s in zip(SHAPE, size, strict=True)])
    if random.random() < 0.8:
        corner = np.clip((half - size / 2 + random.normal(0, 12, 2)).astype(int), 0, np.array(SHAPE) - size)
    inside = np.zeros(SHAPE, bool)
    inside[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]] = True
    film = cover(expose(film, random), inside, seen, random)
    if random.random() < 0.3:  # Collimated: the film is larger than its field, and dark or bright around it.
        around, inside = ~inside, np.ones(SHAPE, bool)
        film[around] = random.choice([film.min(), film.max(), 0.0])
        hidden = around
    else:
        hidden = ~inside
    rows, columns = np.rint(seen).astype(int).T
    on = (rows >= 2) & (columns >= 2) & (rows < SHAPE[0] - 2) & (columns < SHAPE[1] - 2)
    on[on] &= ~hidden[rows[on], columns[on]]
    return detector.stack_input(film.astype(np.float32), inside, lateral=which == 1), seen[on], number[on]


def expose(integral: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Grey values of an exposure: scatter, noise, blur, and the processing of many makers."""
    signal = np.exp(-integral * random.uniform(0.7, 1.15))
    scatter = random.uniform(0, 0.3) * random.random()
    signal = signal + scatter * ndimage.uniform_filter(signal, 41)
    photons = 10 ** random.uniform(5.5, 7.5)
    signal = signal + np.sqrt(signal / photons) * random.standard_normal(signal.shape).astype(np.float32)
    film = -np.log(np.maximum(signal, 1e-6))
    if random.random() < 0.5:
        film = ndimage.gaussian_filter(film, random.uniform(0, 1.2))
    if random.random() < 0.5:  # Processing that evens out thick and thin parts.
        film = film - random.uniform(0.2, 0.95) * ndimage.uniform_filter(film, int(random.integers(21, 121)))
    low, high = np.percentile(film, (random.uniform(0, 12), random.uniform(92, 100)))
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


def targets(centres: np.ndarray, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The map of centres (H / 2, W / 2) in 0..1, and the place in `LEVELS` near each centre, -1 elsewhere."""
    shape = SHAPE[0] // 2, SHAPE[1] // 2
    heat, level = np.zeros(shape, np.float32), np.full(shape, -1)
    if len(centres):
        grid = np.stack(np.indices(shape), axis=-1)[:, :, None]
        distance = ((grid - (centres - 0.5) / 2) ** 2).sum(-1)
        nearest = distance.argmin(-1)
        least = np.take_along_axis(distance, nearest[..., None], -1)[..., 0]
        heat = np.exp(-least / (2 * SIGMA**2)).astype(np.float32)
        level = np.where(least < LEVEL_RADIUS**2, number[nearest], -1)
    return heat, level


def detector_loss(found: Tensor, heat: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """The focal loss of centres (CenterNet, Zhou et al. 2019, arXiv 1904.07850) and the cross-entropy of levels."""
    logit = found[:, 0]
    p, log_p, log_q = logit.sigmoid(), functional.logsigmoid(logit), functional.logsigmoid(-logit)
    peak = heat > 0.8
    loss = -torch.where(peak, (1 - p) ** 2 * log_p, (1 - heat) ** 4 * p**2 * log_q).sum() / peak.sum().clamp(min=1)
    return loss, functional.cross_entropy(found[:, 1:], level, ignore_index=-1)


def main() -> None:
    """Trains and writes the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("films", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(asked.seed)
    network = networks.build_network("detector", {"detector": Detector})
    torch.nn.init.constant_(network.centre.bias, -4.0)
    if asked.start:
        network.load_state_dict(networks.load_weights(asked.start, {"detector": Detector})[0].state_dict())
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), asked.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, asked.rate, asked.steps, pct_start=0.05)
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
        drawn = [draw_film(list(cache.values())[random.integers(len(cache))], random) for _ in range(asked.batch)]
        made = [targets(at, number) for _, at, number in drawn]
        images = torch.from_numpy(np.stack([film for film, _, _ in drawn])).contiguous(
            memory_format=torch.channels_last
        )
        heat, level = (torch.from_numpy(np.stack(part)) for part in zip(*made, strict=True))
        centre_loss, level_loss = detector_loss(network(images), heat, level)
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
