"""Augmentation: random shapes, poses, materials, backgrounds and radiographs of the training vertebrae.

Each sample's wide cube is deformed in 3D and projected again, so that shape, radiographs and landmarks always agree. Equal
seeds give equal batches on any device.

The target lives in the patient's frame, in which nominal AP rays run along y and nominal lateral rays along x. Each view
is turned, tilted and magnified on its own, as a patient never stands quite straight; its landmark follows, the target does
not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from transvert.data.patches import CENTROID_SIGMA_MM, SIZE, SPACING_MM, level_code, neighbour_offsets
from transvert.data.samples import MIDDLE, WIDE, Samples, StoredSamples
from transvert.drr import projector
from transvert.model import intensity, warp
from transvert.model.intensity import Random
from transvert.model.warp import OTHER, OWN
from transvert.phantom import paint

WATER_PER_MM = float(projector.attenuation(np.zeros(1, np.float32))[0])
_STEPS_MM = (torch.arange(SIZE) - (SIZE - 1) / 2) * SPACING_MM
_GRID = 17  # Points along each side of the deformed grid, 6 mm apart.


@dataclass(frozen=True)
class AugmentConfig:
    """The ranges of the augmentation: half-widths of uniform distributions unless stated. All 0 changes nothing.

    `crop=1, background=0, collimation=0` gives what the public benchmark trains on: a DRR of the 96 mm cube alone.
    """

    tilt_deg: float = 20.0  #: Rotation about the left-right axis, which varies most, also from lying to standing.
    turn_deg: float = 10.0  #: Rotation about each of the other two axes.
    scale: float = 0.12  #: Relative size of all axes together.
    stretch: float = 0.1  #: Relative size of each axis by itself.
    shift_mm: float = 4.0  #: Translation of the vertebra in its cube; the landmark moves with it.
    elastic_mm: float = 2.0  #: Standard deviation of a smooth displacement, on control points 24 mm apart.
    elastic_fine_mm: float = 0.8  #: The same on control points 12 mm apart.
    mirror: float = 0.5  #: Probability that left and right are exchanged.
    view_deg: float = 5.0  #: Rotation of each view's rays, about the body's long and the picture's horizontal axis.
    magnification: float = 0.05  #: Relative size of each radiograph about the patch's centre, not of the target.
    landmark_shift_mm: float = 3.0  #: Error of each view's landmark along rows and columns.
    repaint: float = 0.2  #: Probability of a phantom's material, with nothing around but the neighbours' bones.
    crop: float = 0.0  #: Probability that nothing beyond the 96 mm cube is projected.
    background: float = 0.8  #: Size of random structures behind the vertebra; 1 is a body's.
    blur: float = 1.0  #: Blur of the radiograph; 1 is up to about 6 mm.
    noise: float = 0.25  #: SD at the mean attenuation, relative to bone contrast. Usual dose 0.03, a hundredth 0.25.
    contrast: float = 0.4  #: Logarithm of the exponent of a grey-value power law.
    collimation: float = 0.15  #: Probability that the edge of the exposed field cuts the patch.
    drop_neighbour: float = 0.1  #: Probability that a neighbour's centroid is left out.
    drop_level: float = 0.15  #: Probability that the level is left out.


AUGMENTATIONS = {
    "films": AugmentConfig(),
    "drr": AugmentConfig(
        view_deg=1.0,
        magnification=0.01,
        landmark_shift_mm=1.0,
        crop=1.0,
        background=0.15,
        blur=0.3,
        noise=0.1,
        collimation=0.0,
    ),
}
"""For clinical radiographs, and for clean DRRs of the cube alone, as public benchmarks use them."""


class Sampler:
    """Draws training batches from subjects in memory or in a store.

    Seed and step decide a batch, whatever was drawn before. The samples of the next steps are requested ahead, so that
    reading overlaps with computing; a store's `SampleCache` must hold three steps' samples at least. `stride` is the
    distance between two steps that are drawn here: the number of processes that share the steps.
    """

    def __init__(
        self,
        subjects: Sequence[Samples | StoredSamples],
        config: AugmentConfig,
        seed: int,
        device: torch.device | str = "cpu",
        stride: int = 1,
    ):
        self.subjects = subjects
        self.config = config
        self.seed = seed
        self.device = torch.device(device)
        self.stride = stride
        self.neighbours = [neighbour_offsets(s.levels, s.centroids) for s in subjects]
        self.rows = [(s, row) for s, samples in enumerate(subjects) for row in range(len(samples))]

    def draw(self, step: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws a step's batch: images (size, 2, 4, 64, 64) and targets (size, 1, 64, 64, 64), float32.

        Steps walk through shuffled passes over all samples, so that each pass holds every sample once.
        """
        chosen = self._choose(step, size)
        for s, row in chosen:
            self.subjects[s].prefetch(row)
        unpacked = [unpack_sample(self.subjects[s], row) for s, row in chosen]
        for s, row in self._choose(step + self.stride, size) + self._choose(step + 2 * self.stride, size):
            self.subjects[s].prefetch(row)
        hu, parts, outside = (
            torch.from_numpy(np.stack(arrays)).to(self.device) for arrays in zip(*unpacked, strict=True)
        )
        neighbours = torch.from_numpy(np.stack([self.neighbours[s][row] for s, row in chosen])).to(self.device)
        codes = torch.tensor([level_code(int(self.subjects[s].levels[row])) for s, row in chosen], device=self.device)
        random = Random(int(np.random.default_rng([self.seed, 1, step]).integers(2**62)), self.device)
        # One thread: pictures are too small to be shared among several.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return augment_batch(hu, parts, outside, neighbours, codes, self.config, random, threads)
        finally:
            torch.set_num_threads(threads)

    def _choose(self, step: int, size: int) -> list[tuple[int, int]]:
        """Subject and row of each sample of a step."""
        places = range(step * size, (step + 1) * size)
        count = len(self.rows)
        passes = {p // count for p in places}
        orders = {n: np.random.default_rng([self.seed, 0, n]).permutation(count) for n in passes}
        return [self.rows[orders[p // count][p % count]] for p in places]


def unpack_sample(subject: Samples | StoredSamples, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A sample as `augment_batch` takes it: HU, parts, and the attenuation outside the 96 mm cube.

    Augmented rays are parallel, whatever the sample's are. For the full field of view, what cone rays change counts as
    outside; for a crop there is no outside.
    """
    hu, labels, pictures = subject.sample(row)
    own = labels == subject.levels[row]
    parts = np.where(own, np.uint8(OWN), OTHER * (labels > 0).view(np.uint8))
    if not (parts == OTHER).any():
        # An isolated bone gets two copies of itself as neighbours.
        extent = int(0.7 * np.flatnonzero(own.any((0, 1))).size)
        parts[(np.roll(own, extent, 2) | np.roll(own, -extent, 2)) & ~own] = OTHER
    if subject.field_of_view == "crop":
        return hu, parts, np.zeros_like(pictures)
    return hu, parts, pictures - _project_middle(hu)


def augment_batch(
    hu: torch.Tensor,
    parts: torch.Tensor,
    outside: torch.Tensor,
    neighbours: torch.Tensor,
    codes: torch.Tensor,
    config: AugmentConfig,
    random: Random,
    threads: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Augments each sample of a batch once.

    Args:
        hu: (B, 84, 84, 84) int16, HU, RAS order.
        parts: (B, 84, 84, 84) uint8, `warp.OWN` in the vertebra, `warp.OTHER` in any other, or 0.
        outside: (B, 2, 84, 84) float32, attenuation × mm outside the middle 96 mm, AP and lateral; NaN beyond the film.
        neighbours: (B, 2, 3) float32, mm from the sample's centre to the centroids of the vertebrae above and below; NaN
            where there is none.
        codes: (B,) float32, `patches.level_code`.
        config, random: ranges of the augmentation, and the source of random numbers.
        threads: CPU threads for the 3D steps.

    Returns:
        images (B, 2, 4, 64, 64), as `patches.network_input` makes them, and targets (B, 1, 64, 64, 64), float32.
    """
    batch = len(hu)
    matrix, shift = _draw_affine(batch, config, random)
    density, found = warp.elastic_deform(hu, parts, _draw_grid(matrix, shift, config, random), SIZE, threads)
    target = (found == OWN).float()
    keep = random.uniform(0, 1, batch) >= config.repaint
    density = _repaint(density, found > 0, ~keep, random)
    views = _draw_views(batch, config, random)
    attenuation = warp.project_parallel(density, views, threads) * (SPACING_MM * WATER_PER_MM)
    full = (keep & (random.uniform(0, 1, batch) >= config.crop))[:, None, None, None]
    beyond, exposed = warp_background(outside, matrix, shift, views)
    attenuation = attenuation + torch.where(full & exposed, beyond, 0.0)
    # (B, 2, x or y, z): the orientation matters neither to the spread nor to the centroid.
    thickness = torch.stack([target.sum(2), target.sum(1)], dim=1) * SPACING_MM
    amounts = {name: getattr(config, name) for name in ("background", "blur", "noise", "contrast", "collimation")}
    images = intensity.expose_patches(attenuation, bone_contrast(thickness), exposed | ~full, random, **amounts)
    own = _draw_maps(_centroids(thickness)[:, None], views, config, random)[:, :, 0]
    # From the sample's frame to the new cube's.
    moved = torch.linalg.solve(matrix[:, None], (neighbours - shift[:, None])[..., None])[..., 0]
    known = torch.isfinite(moved).all(-1) & (random.uniform(0, 1, batch, 2) >= config.drop_neighbour)
    beside = (_draw_maps(moved.nan_to_num(), views, config, random) * known[:, None, :, None, None]).sum(2)
    told = codes * (random.uniform(0, 1, batch) >= config.drop_level)
    return torch.stack([images, own, beside, told[:, None, None, None].expand_as(own)], dim=2), target[:, None]


def drop_views(images: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """View dropout: images (B, 2, C, 64, 64) with zeros for one view in a share of the samples, AP or lateral alike.

    The generator is on the CPU, so that equal seeds drop equal views on every device.
    """
    count = len(images)
    dropped = torch.zeros(count, 2, dtype=torch.bool)
    dropped[torch.arange(count), torch.randint(2, (count,), generator=generator)] = True
    dropped &= (torch.rand(count, generator=generator) < share)[:, None]
    return images.masked_fill(dropped.to(images.device)[:, :, None, None, None], 0)


def bone_contrast(thickness: torch.Tensor) -> torch.Tensor:
    """The contrast of vertebrae in their pictures, (B, 2, 1, 1), from their thickness along the rays (B, 2, S, S) in mm."""
    return thickness.std(dim=(-2, -1), keepdim=True) * WATER_PER_MM * 0.6


def warp_background(
    outside: torch.Tensor, matrix: torch.Tensor, shift: torch.Tensor, views: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Moves the attenuation outside the cube in the plane of each picture.

    What lies in front of the cube and behind it is moved in opposite directions by a turn, so only the motion in the plane
    counts.

    Args:
        outside: (B, 2, 84, 84) float32, NaN beyond the film.
        matrix, shift: (B, 3, 3) and (B, 3), from the new cube's mm to the sample's.
        views: (B, 2, 3) as `warp.project_parallel` takes them.

    Returns:
        (B, 2, 64, 64) float32, and bool where there is film.
    """
    planes = warp.trace_rays(views)[0]
    layers = torch.stack([outside.nan_to_num(), torch.isfinite(outside).float()], dim=2)
    parts = []
    for view, axes in enumerate(([0, 2], [1, 2])):
        # Picture steps run against the world's axes: (column, row) is -(x or y, z). Both signs cancel in the matrix.
        plane = matrix[:, axes][:, :, axes] @ planes[:, view]
        move = -shift[:, axes] / (SPACING_MM * (WIDE - 1) / 2)
        theta = torch.cat([plane * ((SIZE - 1) / (WIDE - 1)), move[:, :, None]], dim=2)
        grid = functional.affine_grid(theta, [len(outside), 1, SIZE, SIZE], align_corners=True)
        parts.append(functional.grid_sample(layers[:, view], grid, "bilinear", "border", align_corners=True))
    moved = torch.stack(parts, dim=1)
    return moved[:, :, 0], moved[:, :, 1] > 0.99


def _project_middle(hu: np.ndarray) -> np.ndarray:
    """(2, 84, 84) float32, AP and lateral pictures of a wide cube's middle 96 mm along the rays, attenuation × mm."""
    above_air = np.maximum(hu, -1000)
    above_air += 1000
    # Integers, so that the sums are exact.
    sums = np.stack([above_air[:, MIDDLE].sum(1, dtype=np.int32), above_air[MIDDLE].sum(0, dtype=np.int32)])
    return sums.swapaxes(1, 2)[:, ::-1, ::-1].astype(np.float32) * np.float32(WATER_PER_MM * SPACING_MM / 1000)


def _draw_affine(batch: int, config: AugmentConfig, random: Random) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 3, 3) from the new cube's mm to the sample's mm, and (B, 3) mm."""
    limits = torch.tensor([config.tilt_deg, config.turn_deg, config.turn_deg], device=random.device)
    angles = torch.deg2rad(random.uniform(-1.0, 1.0, batch, 3) * limits)
    matrix = torch.eye(3, device=random.device).expand(batch, 3, 3)
    for axis in range(3):
        cosine, sine = torch.cos(angles[:, axis]), torch.sin(angles[:, axis])
        turn = torch.eye(3, device=random.device).repeat(batch, 1, 1)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[:, i, i], turn[:, j, j], turn[:, i, j], turn[:, j, i] = cosine, cosine, -sine, sine
        matrix = matrix @ turn
    size = 1 + random.uniform(-config.scale, config.scale, batch, 1)
    size = size * (1 + random.uniform(-config.stretch, config.stretch, batch, 3))
    mirror = torch.where(random.uniform(0, 1, batch, 1) < config.mirror, -1.0, 1.0)
    size = torch.cat([size[:, :1] * mirror, size[:, 1:]], dim=1)
    return matrix * size[:, None, :], random.uniform(-config.shift_mm, config.shift_mm, batch, 3)


def _draw_grid(matrix: torch.Tensor, shift: torch.Tensor, config: AugmentConfig, random: Random) -> torch.Tensor:
    """(B, 3, 17, 17, 17) the position of a coarse grid of the new cube in the wide cube, voxels from the middle."""
    mm = torch.linspace(float(_STEPS_MM[0]), float(_STEPS_MM[-1]), _GRID, device=random.device)
    points = torch.stack(torch.meshgrid(mm, mm, mm, indexing="ij"))
    moved = torch.einsum("bij,jxyz->bixyz", matrix, points) + shift[:, :, None, None, None]
    coarse = random.normal(len(matrix), 3, 5, 5, 5) * config.elastic_mm
    fine = random.normal(len(matrix), 3, 9, 9, 9) * config.elastic_fine_mm
    coarse, fine = (
        functional.interpolate(points, size=(_GRID,) * 3, mode="trilinear", align_corners=True)
        for points in (coarse, fine)
    )
    coarse = functional.avg_pool3d(coarse, 3, 1, 1, count_include_pad=False)
    return (moved + coarse + fine) / SPACING_MM


def _draw_views(batch: int, config: AugmentConfig, random: Random) -> torch.Tensor:
    """(B, 2, 3) turn and tilt in radians and magnification of each view, as `warp.project_parallel` takes them."""
    angles = torch.deg2rad(random.uniform(-config.view_deg, config.view_deg, batch, 2, 2))
    size = 1 + random.uniform(-config.magnification, config.magnification, batch, 2, 1)
    return torch.cat([angles, size], dim=2)


def _repaint(density: torch.Tensor, bone: torch.Tensor, wanted: torch.Tensor, random: Random) -> torch.Tensor:
    """(B, 64, 64, 64) attenuation relative to water; where `wanted`, a phantom's bone minus its soft tissue."""
    batch = len(bone)
    limits = (paint.CORTICAL_HU, paint.TRABECULAR_HU, paint.SOFT_HU, paint.SHELL_MM, (0.4, 1.0))
    drawn = torch.stack([random.uniform(*pair, batch, 1, 1, 1) for pair in limits])
    texture = random.normal(batch, 1, 12, 12, 12)
    if not wanted.any():
        return density
    cortical, trabecular, soft, shell_mm, fade = drawn[:, wanted]
    outside = ~bone[wanted]
    for axis in (1, 2, 3):
        whole, last = outside, outside.shape[axis] - 1
        outside = whole.clone()
        outside.narrow(axis, 0, last).logical_or_(whole.narrow(axis, 1, last))
        outside.narrow(axis, 1, last).logical_or_(whole.narrow(axis, 0, last))
    # A shell thinner than a voxel is a voxel of a lower value.
    rim = trabecular + (cortical - trabecular) * (shell_mm / SPACING_MM).clamp(max=1.0)
    grain = functional.interpolate(texture[wanted], size=(SIZE,) * 3, mode="trilinear")[:, 0]
    value = torch.where(outside, rim, trabecular + 50 * grain) - soft
    # `fade` below 1 is osteoporotic bone.
    density = density.clone()
    density[wanted] = bone[wanted] * value * fade / 1000
    return density


def _centroids(thickness: torch.Tensor) -> torch.Tensor:
    """(B, 3) mm from the cube's middle, of vertebrae whose thickness (B, 2, x or y, z) is given along both views' rays."""
    mm = _STEPS_MM.to(thickness.device)
    total = thickness.sum((-2, -1)).clamp(min=1e-6)
    z = (thickness.sum(-2) @ mm / total)[:, :1]
    return torch.cat([thickness.sum(-1) @ mm / total, z], dim=1)


def _draw_maps(points: torch.Tensor, views: torch.Tensor, config: AugmentConfig, random: Random) -> torch.Tensor:
    """(B, 2, N, 64, 64) maps of N points (B, N, 3) mm in each view, each with its own landmark error."""
    mm = _STEPS_MM.to(points.device)
    # Beside, deep and up: one view's depth is the other's side.
    sides = torch.stack([points, points[..., [1, 0, 2]]], dim=1)
    shown = sides @ warp.projection_matrices(views).mT
    limit = config.landmark_shift_mm
    offsets = -shown.flip(-1) + random.uniform(-limit, limit, *shown.shape)
    rows, columns = (torch.exp(-0.5 * ((mm - offsets[..., i, None]) / CENTROID_SIGMA_MM) ** 2) for i in (0, 1))
    return rows[..., :, None] * columns[..., None, :]
