"""What a trained network makes of pictures, and how well.

A network asked several times about one vertebra, and how far its answers lie apart.

It is asked as a second reader would see the same films: with other clicks, at another scale, through other noise, and
with the patient mirrored; or several networks are asked. What the answers have in common is the probability, what they
differ by is their spread. Neither is to be believed before `confidence` has put it right: networks are taught to overlap
and not to doubt, and what all answers get wrong together none of them shows.

"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from transvert.data.patches import SIZE, SPACING_MM
from transvert.data.samples import Samples
from transvert.io import InputError


@torch.no_grad()
def predict(network: nn.Module, images: np.ndarray, *, batch: int = 4, mirror: bool = False) -> np.ndarray:
    """Probabilities of a trained network.

    Args:
        network: in evaluation mode or not; it is put into it.
        images: (N, 2, 2, 64, 64) float32, as `samples.network_input` makes them.
        batch: how many at a time; memory grows with it.
        mirror: also predict the left-right mirrored patient and average (twice the time).

    Returns:
        (N, 64, 64, 64) float32, RAS order.
    """
    network.eval()
    device = next(network.parameters()).device
    parts = []
    for start in range(0, len(images), batch):
        chunk = torch.from_numpy(images[start : start + batch]).to(device)
        probability = network(chunk).float().sigmoid()
        if mirror:
            # The AP picture of the mirrored patient is mirrored; the lateral one shows the same shadow.
            other = torch.stack([chunk[:, 0].flip(-1), chunk[:, 1]], dim=1)
            probability = (probability + network(other).float().sigmoid().flip(2)) / 2
        parts.append(probability[:, 0].cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros((0, *(SIZE,) * 3), np.float32)


def stack(validation: list[Samples]) -> tuple[np.ndarray, np.ndarray] | None:
    """All samples' images, (N, 2, 2, 64, 64) float32, and targets, (N, 64, 64, 64) bool; None where there are none."""
    if not sum(map(len, validation)):
        return None
    return np.concatenate([s.images() for s in validation]), np.concatenate([s.targets() for s in validation])


def mean_dice(network: nn.Module, inputs: tuple[np.ndarray, np.ndarray] | None, fabric: Any) -> float:
    """The Dice at a threshold of 0.5 over what `stack` made, of which each process takes its share; NaN for None."""
    if inputs is None:
        return float("nan")
    images, targets = (array[fabric.global_rank :: fabric.world_size] for array in inputs)
    found = predict(network, images) > 0.5
    common = (found & targets).sum((1, 2, 3))
    total = np.sum(2 * common / (found.sum((1, 2, 3)) + targets.sum((1, 2, 3))))
    return float(fabric.all_reduce(torch.tensor(total, device=fabric.device), reduce_op="sum")) / len(inputs[0])


@dataclass(frozen=True)
class TTAConfig:
    """How far the inputs are moved from one answer to the next. All 0 asks the same again, mirrored every other time.

    Attributes:
        answers: of each network: the forward passes that a vertebra costs. Odd numbers begin with the inputs as they are.
        click_mm: standard deviation of each view's click, down and across, life-sized.
        magnification: that of the logarithm of each film's scale.
        noise: that of white noise on the standardised patches.
        seed: of all of them.
    """

    answers: int = 8
    click_mm: float = 1.0
    magnification: float = 0.02
    noise: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class Prediction:
    """What several answers say together, RAS order.

    Attributes:
        probability: (N, 64, 64, 64) float32, their mean; not calibrated.
        spread: (N, 64, 64, 64) float32, their standard deviation.
    """

    probability: np.ndarray
    spread: np.ndarray

    @property
    def ambiguity(self) -> np.ndarray:
        """(N, 64, 64, 64) float32, the mean of p (1 - p): the variance that every single answer admits.

        With the spread's square it makes the whole variance of a voxel, probability (1 - probability).
        """
        return np.maximum(self.probability * (1 - self.probability) - self.spread**2, 0)


@torch.no_grad()
def tta_predict(
    networks: nn.Module | Sequence[nn.Module], images: np.ndarray, jitter: TTAConfig | None = None, *, batch: int = 4
) -> Prediction:
    """Asks one network or several about the same vertebrae, each several times.

    Args:
        networks: trained; on any device, each on its own. They are put into evaluation mode.
        images: (N, 2, 2, 64, 64) float32, as `samples.network_input` makes them.
        jitter: the same for each vertebra and network, so that an answer does not depend on what else is asked.
        batch: vertebrae at a time; memory grows with it.

    Raises:
        InputError: no network, or no answer wanted.
    """
    jitter = jitter or TTAConfig()
    networks = [networks] if isinstance(networks, nn.Module) else list(networks)
    if not networks or jitter.answers < 1:
        raise InputError("Nobody is asked: give at least one network, and a jitter of at least one answer.")
    moves = _moves(jitter)
    probability = np.zeros((len(images), *(SIZE,) * 3), np.float32)
    spread = np.zeros_like(probability)
    for start in range(0, len(images), batch):
        chunk = torch.from_numpy(images[start : start + batch])
        mean, squares = torch.zeros(2, len(chunk), *(SIZE,) * 3)
        count = 0
        for network in networks:
            network.eval()
            there = chunk.to(next(network.parameters()).device)
            for n, (clicks, scales, noise) in enumerate(moves):
                found = _answer(network, there, clicks, scales, noise, mirrored=n % 2 == 1).cpu()
                count += 1
                # Welford's sums: equal answers leave exactly no spread.
                step = found - mean
                mean += step / count
                squares += step * (found - mean)
        probability[start : start + batch] = mean.numpy()
        spread[start : start + batch] = (squares / count).sqrt().numpy()
    return Prediction(probability, spread)


def _moves(jitter: TTAConfig) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Clicks (2, 2) mm, the films' scales (2,) and noise (2, 64, 64) of each answer.

    Clicks and scales come in opposite pairs, so that the mean answer is about the inputs as they are, and are stretched
    to have exactly the stated standard deviation.
    """
    random = np.random.default_rng(jitter.seed)
    drawn = random.standard_normal((max(1, jitter.answers // 2), 6))
    drawn /= np.sqrt((drawn**2).mean(axis=0))
    steps = np.concatenate([np.zeros((jitter.answers % 2, 6)), np.stack([drawn, -drawn], 1).reshape(-1, 6)])
    noise = jitter.noise * random.standard_normal((jitter.answers, 2, SIZE, SIZE))
    noise[: jitter.answers % 2] = 0
    return [
        (
            torch.from_numpy(jitter.click_mm * step[:4].reshape(2, 2)).float(),
            torch.from_numpy(np.exp(jitter.magnification * step[4:])).float(),
            torch.from_numpy(picture).float(),
        )
        for step, picture in zip(steps[: jitter.answers], noise, strict=True)
    ]


def _answer(
    network: nn.Module, images: Tensor, clicks: Tensor, scales: Tensor, noise: Tensor, *, mirrored: bool
) -> Tensor:
    """(B, 64, 64, 64) what a reader gets whose clicks are `clicks` off, as in `marked`.

    The answer lies in a cube around the place of the clicks and is moved back with it.
    """
    film = images[:, :, 0] != 0  # No noise beyond a film, or where a view is missing.
    images = marked(images, clicks, scales)
    images = torch.stack([images[:, :, 0] + noise.to(images) * film, images[:, :, 1]], dim=2)
    if mirrored:
        images = torch.stack([images[:, 0].flip(-1), images[:, 1]], dim=1)
    logits = network(images).float()[:, 0]
    if mirrored:
        logits = logits.flip(1)
    return _moved(logits, placed(clicks).tolist()).sigmoid()


def placed(clicks: Tensor) -> Tensor:
    """(3,) mm to the right, the front and the head: where clicks place a vertebra beside where it is.

    Left and right are told by the AP click, front and back by the lateral one, up and down half-way between both.

    Args:
        clicks: (2, 2) how far they are off, (down, across) mm in the AP and the lateral patch.
    """
    return -torch.stack([*clicks[:, 1], clicks[:, 0].mean()])  # Columns and rows run against x, y and z.


def marked(images: Tensor, clicks: Tensor, scales: Tensor) -> Tensor:
    """Patches as they are around clicks that are off, of films of other scales.

    Both patches are cut around the place of the clicks. Of its own click a view then shows, as its landmark, what differs
    in height.

    Args:
        images: (B, 2, 2, 64, 64) as `samples.network_input` makes them around the centroid.
        clicks: (2, 2) as `placed` takes them.
        scales: (2,) of each film.
    """
    down = clicks[:, 0].mean()
    patch = torch.stack([down.expand(2), clicks[:, 1]], dim=1)
    half = SPACING_MM * (SIZE - 1) / 2
    size = torch.stack([1 / scales, torch.ones(2)], dim=1)
    shift = torch.stack([patch, patch - clicks], dim=1) / half
    theta = torch.zeros(2, 2, 2, 3)
    theta[..., 0, 0] = theta[..., 1, 1] = size
    theta[..., 0, 2], theta[..., 1, 2] = shift[..., 1], shift[..., 0]
    grid = functional.affine_grid(theta.reshape(4, 2, 3), [4, 1, SIZE, SIZE], align_corners=True).to(images)
    flat = images.reshape(-1, 1, SIZE, SIZE)
    moved = functional.grid_sample(flat, grid.repeat(len(images), 1, 1, 1), "bicubic", "border", align_corners=True)
    return moved.reshape(images.shape)


def _moved(volumes: Tensor, mm: Sequence[float]) -> Tensor:
    """Volumes (B, S, S, S) moved along x, y and z, linear between voxels; the rim's voxels go on beyond."""
    size = volumes.shape[-1]
    for axis, distance in enumerate(mm, start=1):
        low = int(np.floor(-distance / SPACING_MM))
        part = -distance / SPACING_MM - low
        steps = torch.arange(size, device=volumes.device) + low
        before, after = (volumes.index_select(axis, (steps + n).clamp(0, size - 1)) for n in (0, 1))
        volumes = torch.lerp(before, after, part)
    return volumes
