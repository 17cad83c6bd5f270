"""Random draws of a vertebra for training: its shape and pose, its material, its surroundings, its films.

Everything happens on the batch's device in one pass: the wide cube is warped, projected along y and x, laid over the
body's shadow outside the cube, and turned into what a film might look like. Equal seeds draw equal batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from transvert import drr, film, phantom
from transvert.samples import CENTROID_SIGMA_MM, MIDDLE, SIZE, SPACING_MM, WIDE, Samples

WATER_PER_MM = float(drr.attenuation(np.zeros(1, np.float32))[0])
_MM = (torch.arange(SIZE) - (SIZE - 1) / 2) * SPACING_MM


@dataclass(frozen=True)
class Strength:
    """How far a draw may stray from its sample; ranges are half-widths, `elastic_mm` a standard deviation.

    Attributes:
        turn_deg: rotation about each axis.
        scale: relative size of all axes together.
        stretch: relative size of each axis by itself.
        shift_mm: of the vertebra in its cube; the landmark goes with it.
        elastic_mm: smooth displacement, on control points about 24 mm apart.
        click_mm: of each view's landmark away from the true centroid.
        repaint: how often a CT vertebra gets a phantom's material instead of its own.
        clutter: of random shadows: 1 for a body's, 0 for none.
        noise: of the film, relative to the vertebra's own contrast.
        collimate: how often a film's edge cuts the patch.
    """

    turn_deg: float = 15.0
    scale: float = 0.15
    stretch: float = 0.12
    shift_mm: float = 4.0
    elastic_mm: float = 3.5
    click_mm: float = 2.0
    repaint: float = 0.3
    clutter: float = 1.0
    noise: float = 0.25
    collimate: float = 0.15


class Sampler:
    """Draws training batches from subjects.

    Args:
        subjects: the training subjects' samples.
        strength: of the augmentation.
        seed: with a step's number it decides the whole batch, whatever was drawn before.
        device: where the batches are made.
    """

    def __init__(self, subjects: list[Samples], strength: Strength, seed: int, device: torch.device | str = "cpu"):
        self.subjects = subjects
        self.strength = strength
        self.seed = seed
        self.device = torch.device(device)
        self.rows = [(s, row) for s, samples in enumerate(subjects) for row in range(len(samples))]
        self._outside = [_outside(samples) for samples in subjects]

    def draw(self, step: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch of a step: images (size, 2, 2, 64, 64) and targets (size, 1, 64, 64, 64), float32.

        Steps walk through shuffled passes over all samples, so that none comes twice before each came once.
        """
        places = range(step * size, (step + 1) * size)
        count = len(self.rows)
        turns = {p // count for p in places}
        orders = {turn: np.random.default_rng([self.seed, 0, turn]).permutation(count) for turn in turns}
        chosen = [self.rows[orders[p // count][p % count]] for p in places]
        cubes = [self._cubes(s, row) for s, row in chosen]
        hu, own, other, outside = (
            torch.from_numpy(np.stack(parts)).to(self.device) for parts in zip(*cubes, strict=True)
        )
        real = torch.tensor([self.subjects[s].source == "ct" for s, _ in chosen], device=self.device)
        random = _Random(int(np.random.default_rng([self.seed, 1, step]).integers(2**62)), self.device)
        return draw(hu, own, other, outside, real, self.strength, random)

    def _cubes(self, s: int, row: int) -> tuple[np.ndarray, ...]:
        samples = self.subjects[s]
        labels = samples.labels[row]
        own = labels == samples.levels[row]
        other = (labels > 0) & ~own
        if not other.any():
            # A vertebra that came alone is shown between two copies of itself, as its neighbours would look.
            extent = int(0.7 * np.flatnonzero(own.any((0, 1))).size)
            other = (np.roll(own, extent, 2) | np.roll(own, -extent, 2)) & ~own
        return (
            samples.hu[row].astype(np.float32),
            own.astype(np.float32),
            other.astype(np.float32),
            self._outside[s][row],
        )


class _Random:
    """Random numbers that are the same on every device: drawn on the CPU, moved where they are used."""

    def __init__(self, seed: int, device: torch.device):
        self.generator = torch.Generator().manual_seed(seed)
        self.device = device

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return (low + (high - low) * torch.rand(shape, generator=self.generator)).to(self.device)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device)


def draw(
    hu: torch.Tensor,
    own: torch.Tensor,
    other: torch.Tensor,
    outside: torch.Tensor,
    real: torch.Tensor,
    strength: Strength,
    random: _Random,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One random draw of each sample of a batch.

    Args:
        hu: (B, 84, 84, 84) float32, HU, RAS order.
        own: (B, 84, 84, 84) float32, 1 in the vertebra.
        other: (B, 84, 84, 84) float32, 1 in any other vertebra.
        outside: (B, 2, 84, 84) float32, attenuation × mm of what lies beyond the middle 96 mm, AP and lateral; NaN
            where there is no film.
        real: (B,) bool, whether `hu` and `outside` come from a CT.
        strength: of the draw.
        random: the source of chance.

    Returns:
        images (B, 2, 2, 64, 64) and targets (B, 1, 64, 64, 64), float32.
    """
    batch = len(hu)
    matrix, shift = _affine(batch, strength, random)
    grid = _grid(matrix, shift, strength, random)
    sources = torch.stack([hu, own, other], dim=1)
    warped = functional.grid_sample(sources, grid, "bilinear", "border", align_corners=True)
    target = (warped[:, 1] > 0.5).float()
    bone = torch.maximum(target, (warped[:, 2] > 0.5).float())
    painted = _paint(bone, random)
    keep = real & (random.uniform(0, 1, batch) >= strength.repaint)
    chosen = torch.where(keep[:, None, None, None], (1 + warped[:, 0] / 1000).clamp(min=0), painted)
    shadows = project(chosen) * WATER_PER_MM
    own_body = keep[:, None, None, None]
    seen = _warp_outside(torch.isfinite(outside).float(), matrix, shift) > 0.99
    beyond = _warp_outside(outside.nan_to_num(), matrix, shift)
    shadows = shadows + torch.where(own_body & seen, beyond, torch.zeros_like(beyond))
    contrast = project(target).std(dim=(-2, -1), keepdim=True) * WATER_PER_MM * 0.6
    images = _films(shadows, contrast, seen | ~own_body, strength, random)
    maps = _maps(target, strength, random)
    return torch.stack([images, maps], dim=2), target[:, None]


def project(cube: torch.Tensor) -> torch.Tensor:
    """(B, X, Y, Z) summed into AP and lateral pictures (B, 2, rows, columns), times the voxel size in mm."""
    return torch.stack([_shadow(cube, 2), _shadow(cube, 1)], dim=1)


def _shadow(cube: torch.Tensor, along: int) -> torch.Tensor:
    """(B, rows, columns): the sum along y (2, AP) or x (1, lateral), turned from [x or y, z] to a picture, × mm."""
    return cube.sum(dim=along).flip(1, 2).transpose(1, 2) * SPACING_MM


def _outside(samples: Samples) -> np.ndarray:
    """(N, 2, 84, 84) float32, the pictures less what the middle slab of the cube throws; NaN beyond the picture."""
    parts = []
    for hu, pictures in zip(samples.hu, samples.pictures, strict=True):
        cube = torch.from_numpy(drr.attenuation(hu.astype(np.float32)))[None]
        slabs = torch.cat([_shadow(cube[:, :, MIDDLE], 2), _shadow(cube[:, MIDDLE], 1)])
        parts.append(pictures - slabs.numpy())
    return np.array(parts, np.float32)


def _affine(batch: int, strength: Strength, random: _Random) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 3, 3) from the drawn cube's mm to the sample's mm, mirrored at the midplane every second time; (B, 3) mm."""
    angles = torch.deg2rad(random.uniform(-strength.turn_deg, strength.turn_deg, batch, 3))
    matrix = torch.eye(3, device=random.device).expand(batch, 3, 3)
    for axis in range(3):
        cosine, sine = torch.cos(angles[:, axis]), torch.sin(angles[:, axis])
        turn = torch.eye(3, device=random.device).repeat(batch, 1, 1)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[:, i, i], turn[:, j, j], turn[:, i, j], turn[:, j, i] = cosine, cosine, -sine, sine
        matrix = matrix @ turn
    size = 1 + random.uniform(-strength.scale, strength.scale, batch, 1)
    size = size * (1 + random.uniform(-strength.stretch, strength.stretch, batch, 3))
    mirror = torch.where(random.uniform(0, 1, batch, 1) < 0.5, -1.0, 1.0)
    size = torch.cat([size[:, :1] * mirror, size[:, 1:]], dim=1)
    return matrix * size[:, None, :], random.uniform(-strength.shift_mm, strength.shift_mm, batch, 3)


def _grid(matrix: torch.Tensor, shift: torch.Tensor, strength: Strength, random: _Random) -> torch.Tensor:
    """(B, 64, 64, 64, 3) where each voxel of the drawn cube lies in the wide cube, as `grid_sample` wants it."""
    batch = len(matrix)
    mm = _MM.to(random.device)
    points = torch.stack(torch.meshgrid(mm, mm, mm, indexing="ij"), dim=-1).reshape(1, -1, 3)
    moved = (points @ matrix.transpose(1, 2) + shift[:, None]).reshape(batch, SIZE, SIZE, SIZE, 3)
    if strength.elastic_mm > 0:
        control = random.normal(batch, 3, 5, 5, 5) * strength.elastic_mm
        control = functional.interpolate(control, size=(17, 17, 17), mode="trilinear", align_corners=True)
        control = functional.avg_pool3d(control, 3, 1, 1, count_include_pad=False)
        field = functional.interpolate(control, size=(SIZE,) * 3, mode="trilinear", align_corners=True)
        moved = moved + field.permute(0, 2, 3, 4, 1)
    return moved.flip(-1) / (SPACING_MM * (WIDE - 1) / 2)


def _warp_outside(outside: torch.Tensor, matrix: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """(B, 2, 64, 64) the shadows from beyond the cube, moved with the plane of each picture."""
    parts = []
    for view, axes in enumerate(([0, 2], [1, 2])):
        # Picture steps go against the world's axes, (across, down) = -(x or y, z): both signs cancel in the matrix.
        plane = matrix[:, axes][:, :, axes]
        move = -shift[:, axes] / (SPACING_MM * (WIDE - 1) / 2)
        scale = (SIZE - 1) / (WIDE - 1)
        theta = torch.cat([plane * scale, move[:, :, None]], dim=2)
        grid = functional.affine_grid(theta, [len(outside), 1, SIZE, SIZE], align_corners=True)
        parts.append(
            functional.grid_sample(outside[:, view : view + 1], grid, "bilinear", "border", align_corners=True)
        )
    return torch.cat(parts, dim=1)


def _paint(bone: torch.Tensor, random: _Random) -> torch.Tensor:
    """(B, 64, 64, 64) attenuation relative to water of a bone phantom, above that of its soft tissue."""
    batch = len(bone)

    def one(limits: tuple[float, float]) -> torch.Tensor:
        return random.uniform(*limits, batch, 1, 1, 1)

    cortical, trabecular, soft = one(phantom.CORTICAL_HU), one(phantom.TRABECULAR_HU), one(phantom.SOFT_HU)
    inner = -functional.max_pool3d(-bone[:, None], 3, 1, 1)[:, 0]
    # A shell thinner than a voxel is a voxel of a lower value.
    shell = (one(phantom.SHELL_MM) / SPACING_MM).clamp(max=1.0)
    texture = functional.interpolate(random.normal(batch, 1, 12, 12, 12), size=(SIZE,) * 3, mode="trilinear")[:, 0]
    rim = trabecular + (cortical - trabecular) * shell
    value = torch.where(inner > 0.5, trabecular + 50 * texture, rim) - soft
    # Osteoporotic bone hardly stands out from what surrounds it.
    return bone * value * one((0.4, 1.0)) / 1000


def _films(
    shadows: torch.Tensor, contrast: torch.Tensor, seen: torch.Tensor, strength: Strength, random: _Random
) -> torch.Tensor:
    """(B, 2, 64, 64) standardised film patches from attenuation integrals, with clutter, blur, noise and edges."""
    batch = len(shadows)
    amount = random.uniform(0, strength.clutter, batch, 2, 1, 1)
    shadows = shadows + contrast * amount * _clutter(batch, random)
    grain = random.normal(batch, 2, SIZE, SIZE) * random.uniform(0, strength.noise, batch, 2, 1, 1)
    # A film's grey is rarely linear: a mild power of the patch's own range.
    low, high = shadows.amin((-2, -1), keepdim=True), shadows.amax((-2, -1), keepdim=True)
    unit = (shadows - low) / (high - low).clamp(min=1e-6)
    unit = unit ** torch.exp(random.uniform(-0.4, 0.4, batch, 2, 1, 1))
    soft = functional.avg_pool2d(unit, 3, 1, 1, count_include_pad=False)
    softest = functional.avg_pool2d(soft, 5, 1, 2, count_include_pad=False)
    unit = torch.lerp(unit, soft, random.uniform(0, 1, batch, 2, 1, 1))
    unit = torch.lerp(unit, softest, random.uniform(-0.5, 1, batch, 2, 1, 1).clamp(min=0))
    unit = unit + grain * contrast / (high - low).clamp(min=1e-6)
    return _standardise(unit, seen & _field(batch, strength, random))


def _clutter(batch: int, random: _Random) -> torch.Tensor:
    """(B, 2, 64, 64) random shadows in units of the vertebra's contrast.

    A body's shadows are many times stronger than the bone under them: smooth ones; a column with soft edges, such as
    the mediastinum between the lungs; edges, such as a diaphragm's; and bands, such as ribs. Each is there more often
    than not, with a strength drawn from a range on a logarithmic scale.
    """
    shape = (batch, 2, 1, 1)

    def strength(low: float, high: float) -> torch.Tensor:
        there = random.uniform(0, 1, *shape) < 0.8
        sign = torch.where(random.uniform(0, 1, *shape) < 0.5, -1.0, 1.0)
        return there * sign * torch.exp(random.uniform(np.log(low), np.log(high), *shape))

    total = torch.zeros(batch, 2, SIZE, SIZE, device=random.device)
    for cells, low, high in ((3, 0.5, 15.0), (7, 0.2, 2.0), (16, 0.05, 0.5)):
        coarse = random.normal(batch, 2, cells, cells)
        smooth = functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic", align_corners=True)
        total = total + strength(low, high) * smooth
    unit = torch.linspace(-1, 1, SIZE, device=random.device)
    down, across = unit[:, None], unit[None, :]
    kinds = (("column", 0.5, 15.0), ("edge", 0.5, 8.0), ("edge", 0.3, 3.0), *[("band", 0.2, 2.0)] * 5)
    for kind, low, high in kinds:
        # A column stands nearly upright, as the spine does; the rest lie anyhow.
        reach = 0.35 if kind == "column" else np.pi
        angle = random.uniform(-reach, reach, *shape) + (np.pi / 2 if kind == "column" else 0.0)
        along = torch.cos(angle) * across + torch.sin(angle) * down
        beside = torch.cos(angle) * down - torch.sin(angle) * across
        offset = random.uniform(-0.5, 0.5, *shape) if kind == "column" else random.uniform(-1.2, 1.2, *shape)
        distance = beside - offset - random.uniform(-0.5, 0.5, *shape) * along**2
        soft = random.uniform(0.01, 0.12, *shape)
        if kind == "band":
            width = random.uniform(0.04, 0.15, *shape)
            profile = torch.sqrt((1 - (distance / width) ** 2).clamp(min=0))
        elif kind == "edge":
            profile = torch.sigmoid(distance / soft)
        else:
            half = random.uniform(0.25, 0.8, *shape)
            profile = torch.sigmoid((half - distance.abs()) / soft)
        total = total + strength(low, high) * profile
    return total


def _field(batch: int, strength: Strength, random: _Random) -> torch.Tensor:
    """(B, 2, 64, 64) bool: where there is film. A film's upper or lower edge may cut both patches, a side one."""
    rows = torch.arange(SIZE, device=random.device)
    cut = random.uniform(0, 1, batch, 1, 1, 1) < strength.collimate
    depth = random.uniform(1, SIZE * 0.25, batch, 1, 1, 1)
    top = random.uniform(0, 1, batch, 1, 1, 1) < 0.5
    place = torch.where(top, rows[None, None, :, None], SIZE - 1 - rows[None, None, :, None])
    return ~(cut & (place < depth)).expand(batch, 2, SIZE, SIZE)


def _standardise(images: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """`film.standardise` for a batch."""
    smooth = torch.from_numpy(film.smoothing_matrix(SIZE)).to(images)
    weight = 1 - functional.max_pool2d(1 - valid.to(images), 3, 1, 1)
    count = weight.sum((-2, -1), keepdim=True).clamp(min=1)
    values = (images - (images * weight).sum((-2, -1), keepdim=True) / count) * weight
    around = (smooth @ weight @ smooth.T).clamp(min=1e-6)
    detail = (values - smooth @ values @ smooth.T / around) * weight
    whole = (detail**2).sum((-2, -1), keepdim=True) / count
    spread = (smooth @ detail**2 @ smooth.T / around + film.FLOOR * whole).sqrt()
    return (detail / spread.clamp(min=1e-9)).clamp(-film.CLIP, film.CLIP)


def _maps(target: torch.Tensor, strength: Strength, random: _Random) -> torch.Tensor:
    """(B, 2, 64, 64) centroid maps at the drawn vertebra's centroid, each view with its own click error."""
    mm = _MM.to(target.device)
    total = target.sum((1, 2, 3)).clamp(min=1)
    x, y, z = (target.sum(dims) @ mm / total for dims in ((2, 3), (1, 3), (1, 2)))
    offsets = torch.stack([torch.stack([-z, -x], -1), torch.stack([-z, -y], -1)], dim=1)
    offsets = offsets + random.uniform(-strength.click_mm, strength.click_mm, len(target), 2, 2)
    down, across = (torch.exp(-0.5 * ((mm - offsets[..., i, None]) / CENTROID_SIGMA_MM) ** 2) for i in (0, 1))
    return down[..., :, None] * across[..., None, :]
