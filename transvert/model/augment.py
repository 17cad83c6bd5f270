"""Random draws of a vertebra for training: its shape and pose, its material, its surroundings, its films.

Everything happens on the batch's device: the wide cube is bent, shone through from two sides, laid over the body's
shadow outside the cube, and turned into what a film might look like. Equal seeds draw equal batches.

A drawn target lives in the patient's own frame, in which the nominal AP rays run along y and the lateral ones along x.
Neither film need be nominal: each view is turned, tilted and magnified by itself, as a patient is never quite straight
before either detector and a film's scale is never quite known. The target follows neither view, so that it is right on
average; the landmarks follow their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from transvert.data.patches import CENTROID_SIGMA_MM, SIZE, SPACING_MM
from transvert.data.samples import MIDDLE, WIDE, Samples, StoredSamples
from transvert.drr import projector
from transvert.model import intensity, warp
from transvert.model.intensity import Random
from transvert.model.warp import OTHER, OWN
from transvert.phantom import paint

WATER_PER_MM = float(projector.attenuation(np.zeros(1, np.float32))[0])
_MM = (torch.arange(SIZE) - (SIZE - 1) / 2) * SPACING_MM
_COARSE = 17  # Points a side of the grid that is bent, 6 mm apart.
_AHEAD = 2  # Steps whose samples are ordered before they are due.


@dataclass(frozen=True)
class AugmentConfig:
    """How far a draw may stray from its sample; ranges are half-widths, `elastic_mm` and `fine_mm` standard
    deviations.

    All at 0 gives a CT's sample itself. `bare=1, clutter=0, collimate=0` gives what the public benchmark trains on: a DRR of
    the cube alone, bone and flesh, with nothing beyond it. (Samples that were cut with `surroundings="cube"` are bare
    anyway, but not without clutter.)

    Attributes:
        tilt_deg: how far the vertebra leans to the front or back; along one spine, and from lying to standing, this
            varies more than any other angle.
        turn_deg: rotation about each of the other two axes.
        scale: relative size of all axes together.
        stretch: relative size of each axis by itself.
        shift_mm: of the vertebra in its cube; the landmark goes with it.
        elastic_mm: smooth displacement, on control points about 24 mm apart.
        fine_mm: as `elastic_mm`, on points 12 mm apart: processes and endplates by themselves.
        mirror: how often left and right are exchanged.
        view_deg: of each view by itself, its rays turned about the body's long axis and tilted about the horizontal
            axis of its picture. The angle between two views strays by up to twice as much.
        magnification: relative size of each film by itself, about the patch's centre. The target keeps its size.
        click_mm: of each view's landmark away from the true centroid.
        repaint: how often a vertebra gets other material than its CT or its phantom has, and nothing around it but its
            neighbours' bones.
        bare: how often a vertebra is shown without the body beyond its cube.
        clutter: of random shadows: 1 for a body's, 0 for none.
        blur: of the film: 1 for up to some 6 mm, 0 for none.
        noise: of the film where a patch has its mean attenuation, relative to the vertebra's own contrast. For the
            embedded CT a usual dose (2.5 uGy behind the patient) gives 0.03, a tenth of it 0.08, a hundredth 0.25.
        contrast: of the film: its grey is a power of the attenuation, whose exponent's logarithm this is.
        collimate: how often a film's edge cuts the patch.
    """

    tilt_deg: float = 20.0
    turn_deg: float = 10.0
    scale: float = 0.15
    stretch: float = 0.1
    shift_mm: float = 4.0
    elastic_mm: float = 2.5
    fine_mm: float = 1.0
    mirror: float = 0.5
    view_deg: float = 5.0
    magnification: float = 0.05
    click_mm: float = 3.0
    repaint: float = 0.3
    bare: float = 0.0
    clutter: float = 1.0
    blur: float = 1.0
    noise: float = 0.25
    contrast: float = 0.4
    collimate: float = 0.15


AUGMENTATIONS = {
    "films": AugmentConfig(),
    "drr": AugmentConfig(
        view_deg=1.0, magnification=0.01, click_mm=1.0, bare=1.0, clutter=0.15, blur=0.3, noise=0.1, collimate=0.0
    ),
}
"""By name: what real films ask for, and DRRs of the cube alone, cast straight and marked well, as benchmarks have them."""


class Sampler:
    """Draws training batches from subjects, in memory or in a store.

    Of a store only what a step needs is read, and the samples of the next steps are ordered before they are due, so
    that reading hides behind computing. Nothing is kept here: the store's `Shelf` keeps the samples that were read
    last (three steps' at least, or what was ordered is gone when it is due and is read again), and what is derived from
    them is derived anew for each draw, which takes a tenth of the draw's time.

    Args:
        subjects: the training subjects' samples.
        strength: of the augmentation.
        seed: with a step's number it decides the whole batch, whatever was drawn before.
        device: where the batches are made.
        stride: from one step that is drawn here to the next: the number of processes that share the steps.
    """

    def __init__(
        self,
        subjects: Sequence[Samples | StoredSamples],
        strength: AugmentConfig,
        seed: int,
        device: torch.device | str = "cpu",
        stride: int = 1,
    ):
        self.subjects = subjects
        self.strength = strength
        self.seed = seed
        self.device = torch.device(device)
        self.stride = stride
        self.rows = [(s, row) for s, samples in enumerate(subjects) for row in range(len(samples))]

    def draw(self, step: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch of a step: images (size, 2, 2, 64, 64) and targets (size, 1, 64, 64, 64), float32.

        Steps walk through shuffled passes over all samples, so that none comes twice before each came once.
        """
        chosen = self._choose(step, size)
        self._order(chosen)
        unpacked = [unpack_sample(self.subjects[s], row) for s, row in chosen]
        for n in range(1, _AHEAD + 1):
            self._order(self._choose(step + n * self.stride, size))
        hu, labels, outside = (
            torch.from_numpy(np.stack(arrays)).to(self.device) for arrays in zip(*unpacked, strict=True)
        )
        random = Random(int(np.random.default_rng([self.seed, 1, step]).integers(2**62)), self.device)
        # Pictures are too small to be shared: threads would wait for one another, and for long on a busy machine.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return augment(hu, labels, outside, self.strength, random, threads)
        finally:
            torch.set_num_threads(threads)

    def _order(self, chosen: list[tuple[int, int]]) -> None:
        for s, row in chosen:
            self.subjects[s].order(row)

    def _choose(self, step: int, size: int) -> list[tuple[int, int]]:
        """Subject and row of each sample of a step."""
        places = range(step * size, (step + 1) * size)
        count = len(self.rows)
        turns = {p // count for p in places}
        orders = {turn: np.random.default_rng([self.seed, 0, turn]).permutation(count) for turn in turns}
        return [self.rows[orders[p // count][p % count]] for p in places]


def unpack_sample(subject: Samples | StoredSamples, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One sample as `draw` wants it: HU, parts, and the body's shadows from outside the cube.

    A draw's rays are parallel, whatever the sample's are. In a body, what cone rays make different is counted to the
    outside; of a cube alone there is no outside, and its draws are those of parallel rays.
    """
    hu, labels, pictures = subject.sample(row)
    own = labels == subject.levels[row]
    parts = np.where(own, np.uint8(OWN), OTHER * (labels > 0).view(np.uint8))
    if not (parts == OTHER).any():
        # A vertebra that came alone is shown between two copies of itself, as its neighbours would look.
        extent = int(0.7 * np.flatnonzero(own.any((0, 1))).size)
        parts[(np.roll(own, extent, 2) | np.roll(own, -extent, 2)) & ~own] = OTHER
    if subject.surroundings == "cube":
        return hu, parts, np.zeros_like(pictures)
    return hu, parts, pictures - _slabs(hu)


def augment(
    hu: torch.Tensor,
    parts: torch.Tensor,
    outside: torch.Tensor,
    strength: AugmentConfig,
    random: Random,
    threads: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One random draw of each sample of a batch.

    Args:
        hu: (B, 84, 84, 84) int16, HU, RAS order.
        parts: (B, 84, 84, 84) uint8, `warp.OWN` in the vertebra, `warp.OTHER` in any other, or 0.
        outside: (B, 2, 84, 84) float32, attenuation × mm of what lies beyond the middle 96 mm, AP and lateral; NaN
            where there is no film. All 0 where the pictures show the cube alone.
        strength: of the draw.
        random: the source of chance.
        threads: of the CPU, for what is worth sharing.

    Returns:
        images (B, 2, 2, 64, 64) and targets (B, 1, 64, 64, 64), float32.
    """
    batch = len(hu)
    matrix, shift = _affine(batch, strength, random)
    density, found = warp.elastic_deform(hu, parts, _bent_grid(matrix, shift, strength, random), SIZE, threads)
    target = (found == OWN).float()
    keep = random.uniform(0, 1, batch) >= strength.repaint
    density = _paint(density, found > 0, ~keep, random)
    views = _views(batch, strength, random)
    shadows = warp.project_parallel(density, views, threads) * (SPACING_MM * WATER_PER_MM)
    in_body = (keep & (random.uniform(0, 1, batch) >= strength.bare))[:, None, None, None]
    beyond, seen = warp_background(outside, matrix, shift, views)
    shadows = shadows + torch.where(in_body & seen, beyond, 0.0)
    # (B, 2, x or y, z): which way a picture of it would be turned matters neither to the spread nor to the centroid.
    thickness = torch.stack([target.sum(2), target.sum(1)], dim=1) * SPACING_MM
    images = intensity.expose_patches(
        shadows,
        bone_contrast(thickness),
        seen | ~in_body,
        random,
        clutter=strength.clutter,
        blur=strength.blur,
        noise=strength.noise,
        contrast=strength.contrast,
        collimate=strength.collimate,
    )
    maps = _maps(thickness, views, strength, random)
    return torch.stack([images, maps], dim=2), target[:, None]


def _slabs(hu: np.ndarray) -> np.ndarray:
    """(2, 84, 84) float32, the AP and lateral pictures of a wide cube's middle 96 mm along the rays, attenuation × mm."""
    above_air = np.maximum(hu, -1000)
    above_air += 1000
    # Whole numbers, so that the sums are exact.
    sums = np.stack([above_air[:, MIDDLE].sum(1, dtype=np.int32), above_air[MIDDLE].sum(0, dtype=np.int32)])
    return sums.swapaxes(1, 2)[:, ::-1, ::-1].astype(np.float32) * np.float32(WATER_PER_MM * SPACING_MM / 1000)


def _affine(batch: int, strength: AugmentConfig, random: Random) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 3, 3) from the drawn cube's mm to the sample's mm, some mirrored at the midplane; (B, 3) mm."""
    limits = torch.tensor([strength.tilt_deg, strength.turn_deg, strength.turn_deg], device=random.device)
    angles = torch.deg2rad(random.uniform(-1.0, 1.0, batch, 3) * limits)
    matrix = torch.eye(3, device=random.device).expand(batch, 3, 3)
    for axis in range(3):
        cosine, sine = torch.cos(angles[:, axis]), torch.sin(angles[:, axis])
        turn = torch.eye(3, device=random.device).repeat(batch, 1, 1)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[:, i, i], turn[:, j, j], turn[:, i, j], turn[:, j, i] = cosine, cosine, -sine, sine
        matrix = matrix @ turn
    size = 1 + random.uniform(-strength.scale, strength.scale, batch, 1)
    size = size * (1 + random.uniform(-strength.stretch, strength.stretch, batch, 3))
    mirror = torch.where(random.uniform(0, 1, batch, 1) < strength.mirror, -1.0, 1.0)
    size = torch.cat([size[:, :1] * mirror, size[:, 1:]], dim=1)
    return matrix * size[:, None, :], random.uniform(-strength.shift_mm, strength.shift_mm, batch, 3)


def _bent_grid(matrix: torch.Tensor, shift: torch.Tensor, strength: AugmentConfig, random: Random) -> torch.Tensor:
    """(B, 3, 17, 17, 17) where a coarse grid of the drawn cube lies in the wide cube, voxels from the middle."""
    mm = torch.linspace(float(_MM[0]), float(_MM[-1]), _COARSE, device=random.device)
    points = torch.stack(torch.meshgrid(mm, mm, mm, indexing="ij"))
    moved = torch.einsum("bij,jxyz->bixyz", matrix, points) + shift[:, :, None, None, None]
    control = random.normal(len(matrix), 3, 5, 5, 5) * strength.elastic_mm
    fine = random.normal(len(matrix), 3, 9, 9, 9) * strength.fine_mm
    control, fine = (
        functional.interpolate(points, size=(_COARSE,) * 3, mode="trilinear", align_corners=True)
        for points in (control, fine)
    )
    control = functional.avg_pool3d(control, 3, 1, 1, count_include_pad=False)
    return (moved + control + fine) / SPACING_MM


def _views(batch: int, strength: AugmentConfig, random: Random) -> torch.Tensor:
    """(B, 2, 3): each view's turn and tilt in radians, and its magnification, as `warp.project` wants them."""
    angles = torch.deg2rad(random.uniform(-strength.view_deg, strength.view_deg, batch, 2, 2))
    size = 1 + random.uniform(-strength.magnification, strength.magnification, batch, 2, 1)
    return torch.cat([angles, size], dim=2)


def bone_contrast(thickness: torch.Tensor) -> torch.Tensor:
    """(B, 2, 1, 1) how much a vertebra stands out in its pictures, of its thickness (B, 2, S, S) in mm along their rays."""
    return thickness.std(dim=(-2, -1), keepdim=True) * WATER_PER_MM * 0.6


def warp_background(
    outside: torch.Tensor, matrix: torch.Tensor, shift: torch.Tensor, views: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The shadows from beyond the cube, moved with the plane of each picture; and where there are any.

    They lie before the cube and behind it: what a turned view moves to one side in front, it moves to the other behind.
    So they are turned in their plane alone. (B, 2, 64, 64) float32 and bool.
    """
    planes = warp.cross(views)[0]
    layers = torch.stack([outside.nan_to_num(), torch.isfinite(outside).float()], dim=2)
    parts = []
    for view, axes in enumerate(([0, 2], [1, 2])):
        # Picture steps go against the world's axes, (across, down) = -(x or y, z): both signs cancel in the matrix.
        plane = matrix[:, axes][:, :, axes] @ planes[:, view]
        move = -shift[:, axes] / (SPACING_MM * (WIDE - 1) / 2)
        theta = torch.cat([plane * ((SIZE - 1) / (WIDE - 1)), move[:, :, None]], dim=2)
        grid = functional.affine_grid(theta, [len(outside), 1, SIZE, SIZE], align_corners=True)
        parts.append(functional.grid_sample(layers[:, view], grid, "bilinear", "border", align_corners=True))
    moved = torch.stack(parts, dim=1)
    return moved[:, :, 0], moved[:, :, 1] > 0.99


def _paint(density: torch.Tensor, bone: torch.Tensor, wanted: torch.Tensor, random: Random) -> torch.Tensor:
    """(B, 64, 64, 64) attenuation relative to water, of a bone phantom above its soft tissue where it is `wanted`."""
    batch = len(bone)
    limits = (paint.CORTICAL_HU, paint.TRABECULAR_HU, paint.SOFT_HU, paint.SHELL_MM, (0.4, 1.0))
    drawn = torch.stack([random.uniform(*pair, batch, 1, 1, 1) for pair in limits])
    texture = random.normal(batch, 1, 12, 12, 12)
    if not wanted.any():
        return density
    cortical, trabecular, soft, shell_mm, fade = drawn[:, wanted]
    inner = ~bone[wanted]
    for axis in (1, 2, 3):
        whole, last = inner, inner.shape[axis] - 1
        inner = whole.clone()
        inner.narrow(axis, 0, last).logical_or_(whole.narrow(axis, 1, last))
        inner.narrow(axis, 1, last).logical_or_(whole.narrow(axis, 0, last))
    inner = ~inner
    # A shell thinner than a voxel is a voxel of a lower value.
    rim = trabecular + (cortical - trabecular) * (shell_mm / SPACING_MM).clamp(max=1.0)
    grain = functional.interpolate(texture[wanted], size=(SIZE,) * 3, mode="trilinear")[:, 0]
    value = torch.where(inner, trabecular + 50 * grain, rim) - soft
    # Osteoporotic bone hardly stands out from what surrounds it.
    density = density.clone()
    density[wanted] = bone[wanted] * value * fade / 1000
    return density


def _maps(thickness: torch.Tensor, views: torch.Tensor, strength: AugmentConfig, random: Random) -> torch.Tensor:
    """(B, 2, 64, 64) centroid maps where each view shows the drawn vertebra's centroid, each with its own click error."""
    mm = _MM.to(thickness.device)
    total = thickness.sum((-2, -1)).clamp(min=1e-6)
    x_or_y = thickness.sum(-1) @ mm / total
    z = thickness.sum(-2) @ mm / total
    points = torch.stack([x_or_y, x_or_y.flip(1), z], dim=-1)  # Beside, deep, up; one view's depth is the other's side.
    shown = (warp.show(views) @ points[..., None])[..., 0]
    offsets = -shown.flip(-1) + random.uniform(-strength.click_mm, strength.click_mm, *shown.shape)
    down, across = (torch.exp(-0.5 * ((mm - offsets[..., i, None]) / CENTROID_SIGMA_MM) ** 2) for i in (0, 1))
    return down[..., :, None] * across[..., None, :]
