"""Prediction of vertebrae from pairs of patches: once, mirrored too, or with test-time augmentation.

Test-time augmentation (TTA) repeats a prediction as other readers would see the same radiographs: with other landmarks,
another scale, other noise, and the patient mirrored. `calibration` corrects its mean, which is overconfident.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from transvert.data.patches import SIZE, SPACING_MM
from transvert.io import InputError


@torch.no_grad()
def predict(network: nn.Module, images: np.ndarray, *, batch: int = 4, mirror: bool = False) -> np.ndarray:
    """Predicts probabilities of bone.

    Args:
        network: trained, on any device; it is switched to evaluation mode.
        images: (N, 2, 4, 64, 64) float32, as `patches.network_input` makes them.
        batch: vertebrae at a time; memory grows with it.
        mirror: whether to average with the prediction of the mirrored patient, for twice the time.

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
            probability = (probability + network(_mirror(chunk)).float().sigmoid().flip(2)) / 2
        parts.append(probability[:, 0].cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros((0, *(SIZE,) * 3), np.float32)


@dataclass(frozen=True)
class TTAConfig:
    """Test-time augmentation. All standard deviations at 0 repeat one prediction, mirrored every other time."""

    passes: int = 8  #: Forward passes per vertebra. Odd numbers begin with the inputs as they are.
    landmark_sd_mm: float = 1.0  #: Of each view's landmark along rows and columns, in the patient.
    scale_sd: float = 0.02  #: Of the logarithm of each radiograph's scale.
    noise_sd: float = 0.05  #: Of white noise on the standardised patches.
    seed: int = 0


@torch.no_grad()
def tta_predict(
    network: nn.Module, images: np.ndarray, config: TTAConfig | None = None, *, batch: int = 4
) -> np.ndarray:
    """Predicts the mean probability over test-time augmentation, as `predict`; not calibrated.

    The changes are equal for every vertebra, so that a prediction does not depend on the other vertebrae.
    """
    config = config or TTAConfig()
    if config.passes < 1:
        raise InputError(f"Test-time augmentation needs at least one pass, not {config.passes}.")
    network.eval()
    device = next(network.parameters()).device
    changes = _draw_changes(config)
    result = np.zeros((len(images), *(SIZE,) * 3), np.float32)
    for start in range(0, len(images), batch):
        chunk = torch.from_numpy(images[start : start + batch]).to(device)
        mean = torch.zeros(len(chunk), *(SIZE,) * 3)
        for n, (errors, scales, noise) in enumerate(changes):
            found = _predict_changed(network, chunk, errors, scales, noise, mirrored=n % 2 == 1).cpu()
            mean += (found - mean) / (n + 1)
        result[start : start + batch] = mean.numpy()
    return result


def landmark_offset_mm(errors_mm: Tensor) -> Tensor:
    """Where landmark errors place a vertebra relative to its true place, (3,) mm to the right, the front and the head.

    The AP landmark decides left and right, the lateral one front and back, the mean of both up and down. `errors_mm` (2, 2)
    are the row and column error of the AP and the lateral landmark, mm in the patient.
    """
    return -torch.stack([*errors_mm[:, 1], errors_mm[:, 0].mean()])  # Columns and rows run against x, y and z.


def apply_landmark_errors(images: Tensor, errors_mm: Tensor, scales: Tensor) -> Tensor:
    """Recrops images (B, 2, C, 64, 64) around landmarks with errors, from radiographs of other scales (2,).

    Both patches are cropped at the place of `landmark_offset_mm`. A view's map shows what its own landmark differs in
    height from there.
    """
    row = errors_mm[:, 0].mean()
    patch = torch.stack([row.expand(2), errors_mm[:, 1]], dim=1)
    half = SPACING_MM * (SIZE - 1) / 2
    channels = images.shape[2]
    size, shift = (1 / scales)[:, None].repeat(1, channels), patch[:, None].repeat(1, channels, 1)
    size[:, 1], shift[:, 1] = 1, patch - errors_mm  # The vertebra's own map.
    shift = shift / half
    theta = torch.zeros(2, channels, 2, 3)
    theta[..., 0, 0] = theta[..., 1, 1] = size
    theta[..., 0, 2], theta[..., 1, 2] = shift[..., 1], shift[..., 0]
    grid = functional.affine_grid(theta.reshape(-1, 2, 3), [2 * channels, 1, SIZE, SIZE], align_corners=True).to(images)
    flat = images.reshape(-1, 1, SIZE, SIZE)
    moved = functional.grid_sample(flat, grid.repeat(len(images), 1, 1, 1), "bicubic", "border", align_corners=True)
    return moved.reshape(images.shape)


def _mirror(images: Tensor) -> Tensor:
    """The images of the mirrored patient: the lateral projection does not change."""
    return torch.stack([images[:, 0].flip(-1), images[:, 1]], dim=1)


def _draw_changes(config: TTAConfig) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Landmark errors (2, 2) mm, scales (2,) and noise (2, 64, 64) of each pass."""
    random = np.random.default_rng(config.seed)
    drawn = random.standard_normal((max(1, config.passes // 2), 6))
    drawn /= np.sqrt((drawn**2).mean(axis=0))
    # Opposite pairs with exactly the stated standard deviation, so that the mean is unchanged.
    steps = np.concatenate([np.zeros((config.passes % 2, 6)), np.stack([drawn, -drawn], 1).reshape(-1, 6)])
    noise = config.noise_sd * random.standard_normal((config.passes, 2, SIZE, SIZE))
    noise[: config.passes % 2] = 0
    errors, scales = config.landmark_sd_mm * steps[:, :4].reshape(-1, 2, 2), np.exp(config.scale_sd * steps[:, 4:])
    changes = (torch.from_numpy(values[: config.passes]).float() for values in (errors, scales, noise))
    return list(zip(*changes, strict=True))


def _predict_changed(
    network: nn.Module, images: Tensor, errors_mm: Tensor, scales: Tensor, noise: Tensor, *, mirrored: bool
) -> Tensor:
    """(B, 64, 64, 64) prediction from changed images, in a cube at the wrong place, moved back to the true one."""
    film = images[:, :, 0] != 0  # No noise beyond the film, or where a view is missing.
    images = apply_landmark_errors(images, errors_mm, scales)
    images = torch.cat([images[:, :, :1] + (noise.to(images) * film)[:, :, None], images[:, :, 1:]], dim=2)
    logits = network(_mirror(images)).float()[:, 0].flip(1) if mirrored else network(images).float()[:, 0]
    return _shift(logits, landmark_offset_mm(errors_mm).tolist()).sigmoid()


def _shift(volumes: Tensor, mm: Sequence[float]) -> Tensor:
    """Volumes (B, S, S, S) shifted along x, y and z, linearly; the border's voxels extend outwards."""
    size = volumes.shape[-1]
    for axis, distance in enumerate(mm, start=1):
        low = int(np.floor(-distance / SPACING_MM))
        part = -distance / SPACING_MM - low
        steps = torch.arange(size, device=volumes.device) + low
        before, after = (volumes.index_select(axis, (steps + n).clamp(0, size - 1)) for n in (0, 1))
        volumes = torch.lerp(before, after, part)
    return volumes
