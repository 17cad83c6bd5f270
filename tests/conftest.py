"""A small patient with known truth, and small networks.

The patient's vertebrae are formulas in millimetres, so that the truth is known at any point. Each has a body in front,
a canal, a spinous process behind that points down, and a lateral process that is longer on the patient's right: a
mirrored, rotated or swapped axis changes the result.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")

import nibabel
import numpy as np
import pytest
import torch

from transvert.data import patches, samples
from transvert.data.manifest import Subject
from transvert.data.samples import Samples
from transvert.imaging.volume import Volume
from transvert.model import networks

MIDDLES = {20: (15.0, -28.0, 344.0), 21: (12.0, -30.0, 310.0), 22: (8.0, -27.0, 276.0)}
"""Origins of L1, L2 and L3, RAS mm."""

# Low and high corners of boxes, mm from the vertebra's origin: pedicles, lamina, spinous process, and lateral processes,
# 42 mm to the right and 28 mm to the left.
_BOXES = (
    ((9, -9, -6), (17, 6, 8)),
    ((-17, -9, -6), (-9, 6, 8)),
    ((-17, -14, -9), (17, -8, 9)),
    ((-3, -34, -14), (3, -14, 2)),
    ((16, -12, -4), (42, -6, 4)),
    ((-28, -12, -4), (-16, -6, 4)),
)


def inside_vertebra(x: np.ndarray, y: np.ndarray, z: np.ndarray, middle: tuple[float, float, float]) -> np.ndarray:
    """Whether points (RAS mm, broadcast together) lie in the vertebra at `middle`."""
    x, y, z = x - middle[0], y - middle[1], z - middle[2]
    found = ((x / 20) ** 2 + ((y - 14) / 15) ** 2 <= 1) & (np.abs(z) <= 12)
    for low, high in _BOXES:
        sides = [(at >= a) & (at <= b) for at, a, b in zip((x, y, z), low, high, strict=True)]
        found |= sides[0] & sides[1] & sides[2]
    return found


def axes_mm(affine: np.ndarray, shape: tuple[int, ...], parts: int = 1) -> tuple[np.ndarray, ...]:
    """Open grids of an axis-aligned volume's voxel centres, RAS mm, each voxel split into `parts` along each axis."""
    steps = [((np.arange(n * parts) + 0.5) / parts - 0.5) * affine[i, i] + affine[i, 3] for i, n in enumerate(shape)]
    return tuple(np.ix_(*steps))


PITCH_MM = 34.0


def stacked(steps: dict[int, int], size: float = 1.0, spacing: tuple[float, float, float] = (1, 1, 1)) -> Volume:
    """A mask of vertebrae at and below the origin: level to how many times `PITCH_MM` it stands below."""
    low = np.array([-45.0, -45.0, -PITCH_MM * max(steps.values()) - 20]) * size
    shape = tuple(np.ceil((np.array([50.0, 45.0, 20.0]) * size - low) / spacing).astype(int).tolist())
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = low
    mask = Volume(np.zeros(shape, np.uint8), affine)
    for level, step in steps.items():
        x, y, z = (axis / size for axis in axes_mm(affine, shape))
        mask.data[inside_vertebra(x, y, z, (0.0, 0.0, -PITCH_MM * step))] = level
    return mask


def occupancy(middle: tuple[float, float, float], affine: np.ndarray, size: int) -> np.ndarray:
    """(size, size, size) float32: the fraction of each voxel inside the vertebra at `middle`, from 27 points a voxel."""
    found = inside_vertebra(*axes_mm(affine, (size,) * 3, 3), middle)
    return found.reshape(size, 3, size, 3, size, 3).mean((1, 3, 5), dtype=np.float32)


def ball(offset_mm: np.ndarray, radius_mm: float = 12.0) -> np.ndarray:
    """(64, 64, 64) float32: a ball at an offset from its cube's centre."""
    steps = (np.arange(patches.SIZE) - (patches.SIZE - 1) / 2) * patches.SPACING_MM
    away = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1) - offset_mm
    return (np.linalg.norm(away, axis=-1) < radius_mm).astype(np.float32)


class Seeing(torch.nn.Module):
    """A network that predicts a ball where both patches are brightest, or always in the centre."""

    def __init__(self, sees: bool = True) -> None:
        super().__init__()
        self.nothing, self.sees = torch.nn.Parameter(torch.zeros(1)), sees
        self.asked = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.asked += len(images)
        made = []
        for ap, lateral in images[:, :, 0].numpy():
            (z, x), (_, y) = (np.unravel_index(picture.argmax(), picture.shape) for picture in (ap, lateral))
            # Columns and rows run against x, y and z.
            off = ((patches.SIZE - 1) / 2 - np.array([x, y, z])) * patches.SPACING_MM
            made.append(ball(off if self.sees else np.zeros(3)))
        return torch.from_numpy(20 * np.array(made) - 10)[:, None]


def store_as(volume: Volume, axes: str, path: Path) -> Path:
    """Writes a canonical volume in another axis order, such as "PIR", with nibabel alone."""
    image = nibabel.Nifti1Image(volume.data, volume.affine)
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(volume.affine), nibabel.orientations.axcodes2ornt(tuple(axes))
    )
    nibabel.save(image.as_reoriented(turn), path)
    return path


@dataclass(frozen=True)
class Patient:
    """The synthetic patient: L1 to L3, whole, on a grid of 1 x 1.2 x 2 mm; the files' axes are in the order P, I, R."""

    ct: Volume
    mask: Volume
    centroids: dict[int, np.ndarray]  # level to the centre of mass of its voxels, RAS mm
    ct_path: Path
    mask_path: Path

    @property
    def subject(self) -> Subject:
        """The patient as a subject of a manifest."""
        return Subject("sub-box", self.ct_path, self.mask_path, "verse", {}, {})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts with the longest tests, so that two processes end at about the same time."""
    items.sort(key=lambda item: item.get_closest_marker("reproduce") is None)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Background jobs of a shell ignore Ctrl-C, and so would the processes that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small networks gain nothing from several threads. Set before each test, because numba resets torch's number."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Patient:
    shape = (170, 126, 66)
    affine = np.diag([1.0, 1.2, 2.0, 1.0])
    affine[:3, 3] = (-72.5, -100.0, 245.0)
    grid = axes_mm(affine, shape)
    labels = np.zeros(shape, np.uint8)
    for level, middle in MIDDLES.items():
        labels[inside_vertebra(*grid, middle)] = level
    x, y = grid[0] - 12, grid[1] + 25
    flat = np.where((x / 80) ** 2 + (y / 66) ** 2 <= 1, 30.0, -1000.0)
    flat[((x - 45) / 25) ** 2 + ((y - 25) / 25) ** 2 <= 1] = 70  # a liver: in front, on the right
    hu = np.where(labels > 0, 600.0, flat)
    hu += np.random.default_rng(0).normal(0, 15, shape)
    ct, mask = Volume(np.rint(hu).astype(np.int16), affine), Volume(labels, affine)
    centroids = {n: np.argwhere(labels == n).mean(0) * np.diag(affine)[:3] + affine[:3, 3] for n in MIDDLES}
    folder = tmp_path_factory.mktemp("patient")
    return Patient(
        Volume(ct.data.astype(np.float32), affine),
        mask,
        centroids,
        store_as(ct, "PIR", folder / "sub-box_ct.nii.gz"),
        store_as(mask, "PIR", folder / "sub-box_seg-vert_msk.nii.gz"),
    )


@pytest.fixture(scope="session")
def box_samples(patient: Patient) -> Samples:
    """The patient's samples, parallel; tests must not change them."""
    return samples.cut_samples(patient.ct, patient.mask, "sub-box")


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], torch.nn.Module]:
    """Builds small networks, equal at each call."""

    def make(name: str) -> torch.nn.Module:
        torch.manual_seed(0)
        return networks.build_network(name, width=8)

    return make


def part_of(whole: Volume) -> Volume:
    """The block around L2."""
    affine = whole.affine.copy()
    affine[:3, 3] = whole.world([30, 20, 12])
    return Volume(whole.data[30:140, 20:100, 12:54].copy(), affine)


def part_alone(patient: Patient, name: str, path: Path) -> Subject:
    """A subject with a mask of L2 alone and no CT: a phantom."""
    mask = part_of(patient.mask)
    mask.data[mask.data != 21] = 0
    return Subject(name, None, store_as(mask, "RAS", path), "verse", {}, {})
