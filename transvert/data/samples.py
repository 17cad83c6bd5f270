"""Vertebra samples: what is cut around each vertebra of a subject, and the store that keeps it.

A sample is a cube of 96 mm at 1.5 mm around the centroid of one vertebra: the target, its patch of each radiograph and
the landmark in each. The store keeps a wider cube (126 mm) of CT and labels and a wider patch, so that training can
turn, stretch and shift a vertebra without inventing what lies at the rim.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from transvert import levels
from transvert.data import twins
from transvert.data.patches import SIZE, SPACING_MM, cut_patch, network_input
from transvert.data.store import Shelf, read_index, read_rows, shard_name, write_shard
from transvert.drr import geometry, projector
from transvert.drr.geometry import VIEWS
from transvert.imaging import masks
from transvert.imaging.volume import Volume, cube_affine, cut_cube
from transvert.io import InputError

WIDE = 84
DRR_PIXEL_MM = 0.75
"""Detector pitch of the whole-body DRRs that patches are cut from."""


FIELDS_OF_VIEW = ("body", "cube")
"""What a vertebra's radiographs show around it: the whole CT, or nothing beyond its own cube of 96 mm."""

RIM = (WIDE - SIZE) // 2
MIDDLE = slice(RIM, RIM + SIZE)


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
        pictures: (N, 2, 84, 84) float32, attenuation × mm, AP and lateral; NaN beyond the picture.
        notes: what was mended or skipped, one sentence each.
        surroundings: one of `SURROUNDINGS`: what the pictures show.
        person: whom several subjects (scans) may have in common, "" for the subject itself.
        official_split: that of the data set, such as "training", or "".
        counts: how many vertebrae of the mask were whole, cut, merged ...; the kinds are those of `mend`.
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
    surroundings: str = "body"
    person: str = ""
    official_split: str = ""
    counts: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def names(self) -> list[str]:
        """Of the levels: "T4" and so on."""
        return [levels.name(level) for level in self.levels]

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
        names = ("levels", "centroids", "hu", "labels", "pictures")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def sample(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """HU, labels and pictures of one sample: (84, 84, 84) int16 and uint8, and (2, 84, 84) float32."""
        return self.hu[row], self.labels[row], self.pictures[row]

    def order(self, row: int) -> None:
        """Nothing to wait for here; see `StoredSamples.order`."""


def cut_samples(
    ct: Volume,
    mask: Volume,
    subject: str,
    *,
    source: str = "ct",
    projection: str = "parallel",
    surroundings: str = "body",
) -> Samples:
    """Cuts the samples of one subject out of its CT (or phantom) and mask.

    Args:
        ct: HU; it need not share the mask's grid, the world coordinates count.
        mask: VerSe levels.
        subject: the subject's name.
        source: "ct" or "phantom".
        projection: "parallel", or "cone" with the distances of `geometry` around the middle of what is cast.
        surroundings: "body" casts the whole CT: ribs and bowel lie over the vertebra as on a film. "cube" casts each
            vertebra's cube of 96 mm alone, resampled to 1.5 mm, as the public benchmark does: an easier task.

    Returns:
        The subject's whole vertebrae, head to tail, mended and chosen by the rule of `mend`; `notes` say what it did.

    Raises:
        InputError: no whole vertebra is left; unknown surroundings or projection.
    """
    if surroundings not in FIELDS_OF_VIEW:
        raise InputError(f"'{surroundings}' are no surroundings; use {' or '.join(FIELDS_OF_VIEW)}.")
    mended = masks.clean_mask(mask)
    found = mended.parts
    if not found:
        raise InputError(f"No whole vertebra in {subject}: " + " ".join(mended.notes or ["its mask is empty."]))
    centroids = [masks.centroid(mask, *part) for part in found.values()]
    cubes = _cut_labels(mask, found, centroids)
    found_hu = (cut_cube(ct, centre, WIDE, SPACING_MM, order=1, fill=-1000).data for centre in centroids)
    hu = [np.clip(np.rint(cube), -1024, 4000).astype(np.int16) for cube in found_hu]
    if surroundings == "body":
        patches = _cast(ct, centroids, projection)
    else:
        patches = np.array([_cast_cube(*pair, projection) for pair in zip(hu, centroids, strict=True)])
    arrays = np.array(list(found), np.uint8), np.array(centroids, np.float32), np.array(hu), np.array(cubes), patches
    return Samples(subject, source, projection, *arrays, mended.notes, surroundings, counts={**mended.counts})


def _cut_labels(mask: Volume, found: dict[int, masks.Part], centres: list[np.ndarray]) -> list[np.ndarray]:
    """(84, 84, 84) uint8 around each of `centres`: the mask's labels, of mended vertebrae as they were mended."""
    kept = np.arange(256, dtype=np.uint8)
    kept[list(found)] = 0
    clean = kept[mask.data]
    for level, (part, box) in found.items():
        clean[box][part] = level
    labels = Volume(clean, mask.affine)
    return [cut_cube(labels, centre, WIDE, SPACING_MM, order=0, fill=0).data for centre in centres]


def _cast(ct: Volume, centres: list[np.ndarray], projection: str) -> np.ndarray:
    """(N, 2, 84, 84) float32, the patches around `centres` of both pictures of a whole volume; NaN beyond them."""
    attenuation = Volume(projector.attenuation(ct.data), ct.affine)
    views = body_views(ct, projection)
    pictures = [projector.cast(attenuation, view) for view in views]
    patches = np.empty((len(centres), 2, WIDE, WIDE), np.float32)
    for n, centre in enumerate(centres):
        for v, (picture, view) in enumerate(zip(pictures, views, strict=True)):
            patch, valid = cut_patch(picture, view, centre, WIDE, SPACING_MM)
            patches[n, v] = np.where(valid, patch, np.nan)
    return patches


def _cast_cube(hu: np.ndarray, centre: np.ndarray, projection: str) -> np.ndarray:
    """(2, 84, 84) float32, both pictures of the middle of a vertebra's own cube; NaN around them."""
    cone, pixel_mm = _detector(projection, SPACING_MM)
    views = [geometry.named_view(name, centre, (SIZE, SIZE), pixel_mm, cone=cone) for name in VIEWS]
    cube = Volume(projector.attenuation(hu[MIDDLE, MIDDLE, MIDDLE]), cube_affine(centre, SIZE, SPACING_MM))
    patches = np.full((2, WIDE, WIDE), np.nan, np.float32)
    patches[:, MIDDLE, MIDDLE] = projector.cast_batch(cube, views)
    return patches


def body_views(volume: Volume, projection: str) -> tuple[geometry.View, geometry.View]:
    """The AP and left lateral views of a whole volume, parallel or cone, with pixels of `DRR_PIXEL_MM` in the body.

    Raises:
        InputError: an unknown projection.
    """
    cone, pixel_mm = _detector(projection, DRR_PIXEL_MM)
    ap, lateral = (geometry.covering_view(name, volume.corners(), pixel_mm, cone=cone) for name in VIEWS)
    return ap, lateral


def _detector(projection: str, pixel_mm: float) -> tuple[bool, float]:
    """Whether rays spread, and the pitch on the detector of pixels of `pixel_mm` in the body's middle."""
    if projection not in ("parallel", "cone"):
        raise InputError(f"'{projection}' is not a projection; use parallel or cone.")
    cone = projection == "cone"
    return cone, pixel_mm * (geometry.SOURCE_TO_DETECTOR_MM / geometry.SOURCE_TO_ISOCENTRE_MM if cone else 1.0)


def write_samples(store: str | Path, samples: Samples, digest: str = "") -> str:
    """Adds a subject's shard to a store; whole, beside any number of other writers. `transvert.store` says how.

    Args:
        store: a folder, or an address that fsspec knows.
        samples: at least one.
        digest: of what they were made from, or else of themselves; equal ones are written in the same place.

    Returns:
        The shard's name. `read_index` knows it from now on; `store.write_index` makes that fast.
    """
    arrays = {name: getattr(samples, name) for name in ("hu", "labels", "pictures")}
    grid = cube_affine(np.zeros(3), WIDE, SPACING_MM)
    bones = [Volume(cube == level, grid) for cube, level in zip(samples.labels, samples.levels, strict=True)]
    lengths = np.array([twins.lengths_mm(bone) for bone in bones])
    digest = digest or hashlib.sha256(b"".join(array.tobytes() for array in arrays.values())).hexdigest()
    rows = pd.DataFrame(
        {
            "subject": samples.subject,
            "person": samples.person or samples.subject,
            "level": samples.names,
            "source": samples.source,
            "projection": samples.projection,
            "surroundings": samples.surroundings,
            **{f"centroid_{axis}_mm": samples.centroids[:, i] for i, axis in enumerate("xyz")},
            **dict(zip(twins.LENGTHS, lengths.T, strict=True)),
            "official_split": samples.official_split,
            "notes": "\n".join(samples.notes),
            "counts": json.dumps(samples.counts),
            "made": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
    )
    name = shard_name(samples.subject, digest)
    write_shard(store, name, rows, arrays)
    return name


def read_samples(store: str | Path, subject: str) -> Samples:
    """The samples of one subject of a store.

    Raises:
        InputError: no such subject, or a damaged shard.
    """
    index = read_index(store)
    rows = index[index["subject"] == subject]
    if rows.empty:
        known = sorted(set(index["subject"]))
        told = ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
        raise InputError(f"The store {store} has no subject '{subject}'; it has {told}.")
    return StoredSamples(Shelf(store), rows).load()


class StoredSamples:
    """The samples of one subject that stay in their store: to training what `Samples` is, read one by one.

    Args:
        shelf: of the store; all subjects share it.
        rows: of the store's index, of this subject and in the wanted order.
    """

    def __init__(self, shelf: Shelf, rows: pd.DataFrame):
        self._shelf = shelf
        self._rows = rows
        self.subject, self.source = str(rows["subject"].iloc[0]), str(rows["source"].iloc[0])
        self.surroundings = str(rows["surroundings"].iloc[0])
        self.levels = np.array([levels.number(level) for level in rows["level"]], np.uint8)
        self._places = list(zip(rows["shard"], rows["row"], strict=True))

    def __len__(self) -> int:
        return len(self._places)

    def order(self, row: int) -> None:
        """Starts to read a sample, so that `sample` need not wait for it."""
        self._shelf.order(*self._places[row])

    def sample(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `Samples.sample`; not to be changed."""
        arrays = self._shelf.read(*self._places[row])
        return arrays["hu"], arrays["labels"], arrays["pictures"]

    def load(self) -> Samples:
        """All of them, in memory."""
        first = self._rows.iloc[0]
        (shard,) = set(self._rows["shard"])
        return Samples(
            subject=self.subject,
            source=self.source,
            projection=first["projection"],
            levels=self.levels,
            centroids=self._rows[[f"centroid_{axis}_mm" for axis in "xyz"]].to_numpy(np.float32),
            notes=first["notes"].splitlines(),
            surroundings=self.surroundings,
            person=first["person"],
            official_split=first["official_split"],
            counts=json.loads(first["counts"]),
            **read_rows(self._shelf.store, shard, list(self._rows["row"])),
        )
