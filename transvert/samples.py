"""Vertebra samples: what is cut around each vertebra of a subject, and the store that keeps it.

A sample is a cube of 96 mm at 1.5 mm around the centroid of one vertebra: the target, its patch of each radiograph and
the landmark in each. The store keeps a wider cube (126 mm) of CT and labels and a wider patch, so that training can
turn, stretch and shift a vertebra without inventing what lies at the rim.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from transvert import drr, film, geometry, levels
from transvert.files import InputError, atomic_path
from transvert.volume import Volume, cut_cube

SIZE = 64
WIDE = 84
SPACING_MM = 1.5
DRR_PIXEL_MM = 0.75
"""Detector pitch of the whole-body DRRs that patches are cut from."""

CENTROID_SIGMA_MM = 5.0
"""The width of a centroid map's Gaussian, as the public port of the paper draws it."""

VIEWS = ("ap", "lateral")
RIM = (WIDE - SIZE) // 2
MIDDLE = slice(RIM, RIM + SIZE)
_INDEX = "index.parquet"


@dataclass(frozen=True)
class Samples:
    """The samples of one subject.

    Attributes:
        subject: its name.
        source: "ct" or "phantom", where the radiographs come from.
        projection: "parallel" or "cone".
        levels: (N,) uint8, VerSe numbers.
        centroids: (N, 3) float32, RAS mm, the centre of mass of each vertebra.
        hu: (N, 84, 84, 84) int16, HU, RAS order.
        labels: (N, 84, 84, 84) uint8, VerSe numbers, RAS order.
        pictures: (N, 2, 84, 84) float32, whole-body attenuation × mm, AP and lateral; NaN beyond the picture.
        notes: what was mended or skipped, one sentence each.
    """

    subject: str
    source: str
    projection: str
    levels: np.ndarray
    centroids: np.ndarray
    hu: np.ndarray
    labels: np.ndarray
    pictures: np.ndarray
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.levels)

    def targets(self) -> np.ndarray:
        """(N, 64, 64, 64) bool, the vertebra itself, RAS order."""
        return self.labels[:, MIDDLE, MIDDLE, MIDDLE] == self.levels[:, None, None, None]

    def images(self) -> np.ndarray:
        """(N, 2, 2, 64, 64) float32: per view the standardised patch and the centroid map; a network's input."""
        patches = self.pictures[:, :, MIDDLE, MIDDLE]
        middle = np.zeros((2, 2))
        return np.stack([network_input(pair, np.isfinite(pair), middle) for pair in patches])

    def chosen(self, wanted: list[int]) -> Samples:
        """The samples of the wanted levels only, in the wanted order."""
        rows = [int(np.flatnonzero(self.levels == level)[0]) for level in wanted]
        arrays = {name: getattr(self, name)[rows] for name in ("levels", "centroids", "hu", "labels", "pictures")}
        return Samples(self.subject, self.source, self.projection, notes=self.notes, **arrays)


def centroid_map(offset: np.ndarray, size: int = SIZE, sigma_mm: float = CENTROID_SIGMA_MM) -> np.ndarray:
    """A Gaussian at the landmark.

    Args:
        offset: (2,) mm down and across from the patch's centre.
        size: pixels a side, `SPACING_MM` apart.
        sigma_mm: of the Gaussian.

    Returns:
        (size, size) float32, 1 at the landmark.
    """
    steps = (np.arange(size) - (size - 1) / 2) * SPACING_MM
    down, across = (np.exp(-0.5 * ((steps - o) / sigma_mm) ** 2) for o in offset)
    return np.outer(down, across).astype(np.float32)


def network_input(patches: np.ndarray, valid: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Two patches as a network wants them.

    Args:
        patches: (2, 64, 64), AP and lateral, brighter is more attenuation, any linear grey scale.
        valid: (2, 64, 64) bool, False beyond the film.
        offsets: (2, 2) mm, each view's landmark, down and across from its patch's centre.

    Returns:
        (2, 2, 64, 64) float32: per view the standardised patch and the centroid map.
    """
    return np.stack(
        [
            np.stack([film.standardise(patch, inside), centroid_map(offset)])
            for patch, inside, offset in zip(patches, valid, offsets, strict=True)
        ]
    )


def cut(ct: Volume, mask: Volume, subject: str, *, source: str = "ct", projection: str = "parallel") -> Samples:
    """Cuts the samples of one subject out of its CT (or phantom) and mask.

    Args:
        ct: HU; it need not share the mask's grid, the world coordinates count.
        mask: VerSe levels.
        subject: the subject's name.
        source: "ct" or "phantom".
        projection: "parallel", or "cone" with the distances of `geometry` around the volume's middle.

    Returns:
        The subject's whole vertebrae, head to tail. Vertebrae that touch a face of the mask's volume are cut by its
        border and skipped; parts not joined to the largest piece are dropped; both are said in `notes`.

    Raises:
        InputError: no whole vertebra is left.
    """
    found, notes = whole_vertebrae(mask)
    if not found:
        raise InputError(f"No whole vertebra in {subject}: " + " ".join(notes or ["its mask is empty."]))
    attenuation = Volume(drr.attenuation(ct.data), ct.affine)
    views = body_views(ct, projection)
    pictures = [drr.cast(attenuation, view) for view in views]
    clean = np.where(np.isin(mask.data, list(found)), 0, mask.data)
    for level, (part, box) in found.items():
        clean[box][part] = level
    labels = Volume(clean, mask.affine)
    centroids, hus, cubes, patches = [], [], [], []
    for part, box in found.values():
        centre = centroid(mask, part, box)
        centroids.append(centre)
        cubes.append(cut_cube(labels, centre, WIDE, SPACING_MM, order=0, fill=0).data)
        hu = cut_cube(ct, centre, WIDE, SPACING_MM, order=1, fill=-1000).data
        hus.append(np.clip(np.rint(hu), -1024, 4000).astype(np.int16))
        cuts = [film.cut_patch(p, v, centre, WIDE, SPACING_MM) for p, v in zip(pictures, views, strict=True)]
        patches.append([np.where(valid, patch, np.nan) for patch, valid in cuts])
    return Samples(
        subject,
        source,
        projection,
        np.array(list(found), np.uint8),
        np.array(centroids, np.float32),
        np.array(hus),
        np.array(cubes),
        np.array(patches, np.float32),
        notes,
    )


def body_views(volume: Volume, projection: str) -> tuple[geometry.View, geometry.View]:
    """The AP and left lateral views of a whole volume, parallel or cone, with pixels of `DRR_PIXEL_MM` in the body.

    Raises:
        InputError: an unknown projection.
    """
    if projection not in ("parallel", "cone"):
        raise InputError(f"'{projection}' is not a projection; use parallel or cone.")
    cone = projection == "cone"
    magnification = geometry.SOURCE_TO_DETECTOR_MM / geometry.SOURCE_TO_ISOCENTRE_MM if cone else 1.0
    ap, lateral = (
        geometry.covering_view(name, volume.corners(), DRR_PIXEL_MM * magnification, cone=cone) for name in VIEWS
    )
    return ap, lateral


def whole_vertebrae(mask: Volume) -> tuple[dict[int, tuple[np.ndarray, tuple[slice, ...]]], list[str]]:
    """The whole vertebrae of a mask, head to tail, and what was skipped or mended.

    Returns:
        Per level the bool array of its largest connected piece with the block of the volume it fills; and notes.
    """
    boxes = ndimage.find_objects(mask.data.astype(np.uint8))
    present = [i + 1 for i, box in enumerate(boxes) if box is not None and i + 1 in levels.VERTEBRAE]
    found, notes = {}, []
    for level in levels.in_order(present):
        box = boxes[level - 1]
        pieces, count = ndimage.label(mask.data[box] == level, np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel())[1:]
        if count > 1:
            stray = int(sizes.sum() - sizes.max())
            notes.append(f"{levels.name(level)}: {count - 1} stray piece(s), {stray} voxels, dropped.")
        part = pieces == sizes.argmax() + 1
        (tight,) = ndimage.find_objects(part.astype(np.uint8))
        block = tuple(slice(b.start + t.start, b.start + t.stop) for b, t in zip(box, tight, strict=True))
        if any(s.start == 0 or s.stop == n for s, n in zip(block, mask.data.shape, strict=True)):
            notes.append(f"{levels.name(level)}: cut by the volume's border, skipped.")
            continue
        found[level] = (part[tight], block)
    return found, notes


def centroid(mask: Volume, part: np.ndarray, box: tuple[slice, ...]) -> np.ndarray:
    """(3,) RAS mm, the centre of mass of a piece that `whole_vertebrae` found: its bool array and its block."""
    return mask.world(np.argwhere(part).mean(0) + [side.start for side in box])


def write(store: str | Path, samples: Samples) -> Path:
    """Adds a subject's shard to a store, replacing an earlier one of the same subject; then its rows in the index."""
    store = Path(store)
    shard = store / f"{samples.subject}.npz"
    with atomic_path(shard) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            levels=samples.levels,
            centroids=samples.centroids,
            hu=samples.hu,
            labels=samples.labels,
            pictures=samples.pictures,
        )
    rows = pd.DataFrame(
        {
            "subject": samples.subject,
            "level": [levels.name(level) for level in samples.levels],
            "source": samples.source,
            "projection": samples.projection,
            "shard": shard.name,
            "row": range(len(samples)),
            **{f"centroid_{axis}_mm": samples.centroids[:, i] for i, axis in enumerate("xyz")},
        }
    )
    if (store / _INDEX).exists():
        old = read_index(store)
        rows = pd.concat([old[old.subject != samples.subject], rows], ignore_index=True)
    with atomic_path(store / _INDEX) as temporary:
        rows.to_parquet(temporary)
    return shard


def read_index(store: str | Path) -> pd.DataFrame:
    """The index of a store: one row a sample.

    Raises:
        InputError: there is no store.
    """
    path = Path(store) / _INDEX
    if not path.exists():
        raise InputError(f"There is no sample store at {store}; run notebook 01 or `transvert synthesize` first.")
    return pd.read_parquet(path)


def read(store: str | Path, subject: str) -> Samples:
    """The samples of one subject of a store.

    Raises:
        InputError: no such subject, or a damaged shard.
    """
    index = read_index(store)
    rows = index[index.subject == subject]
    if rows.empty:
        raise InputError(
            f"The store {store} has no subject '{subject}'; it has {', '.join(sorted(set(index.subject)))}."
        )
    path = Path(store) / rows.shard.iloc[0]
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Samples(subject, rows.source.iloc[0], rows.projection.iloc[0], **{k: arrays[k] for k in arrays})
    except (OSError, zipfile.BadZipFile, zlib.error, ValueError, EOFError, TypeError) as error:
        raise InputError(f"The shard {path.name} is damaged ({error}); synthesise {subject} again.") from None
