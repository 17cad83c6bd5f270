"""Vertebra samples: cubes and patches cut around each vertebra of a subject.

A sample is a cube of 96 mm at 1.5 mm around the centroid of one vertebra: the target, its patch of each radiograph and
its landmark in each. Kept is a wider cube of CT and labels (126 mm) and a wider patch, so that training can rotate,
stretch and shift a vertebra without inventing what lies at the border.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from transvert import levels
from transvert.data.patches import SIZE, SPACING_MM, cut_patch, in_pictures, neighbour_offsets, network_input
from transvert.data.store import SampleCache, group_name, read_index, read_rows, write_group
from transvert.drr import geometry, projector
from transvert.drr.geometry import VIEWS
from transvert.imaging import masks
from transvert.imaging.volume import Volume, cube_affine, cut_cube
from transvert.io import InputError

WIDE = 84  #: Voxels along each side of the wide cube, and pixels along each side of the wide patch.
RIM = (WIDE - SIZE) // 2
MIDDLE = slice(RIM, RIM + SIZE)
DRR_PIXEL_MM = 0.75  #: Pixel size in the body of the full DRRs that patches are cut from.
FIELDS_OF_VIEW = ("full", "crop")  #: What a vertebra's radiographs show: the whole CT, or its own cube of 96 mm alone.
_ARRAYS = ("hu", "labels", "pictures")


@dataclass(frozen=True)
class Samples:
    """The samples of one subject. Arrays of voxels are in RAS order, [n, x, y, z]."""

    subject: str
    source: str  #: "ct" or "phantom", where the radiographs come from.
    projection: str  #: "parallel" or "cone".
    levels: np.ndarray  #: (N,) uint8, VerSe numbers.
    centroids: np.ndarray  #: (N, 3) float32, RAS mm, the centre of mass of each vertebra.
    hu: np.ndarray  #: (N, 84, 84, 84) int16, HU.
    labels: np.ndarray  #: (N, 84, 84, 84) uint8, VerSe numbers.
    pictures: np.ndarray  #: (N, 2, 84, 84) float32, attenuation × mm, AP and lateral; NaN beyond the picture.
    notes: list[str] = field(default_factory=list)  #: One sentence for each vertebra that was cleaned or skipped.
    field_of_view: str = "full"  #: One of `FIELDS_OF_VIEW`.
    person: str = ""  #: The name that all scans of one person share; "" if it is the subject's name.
    official_split: str = ""  #: The data set's own split, such as "training".
    counts: dict[str, int] = field(default_factory=dict)  #: Vertebrae of the mask by kind, as `clean_mask` counts them.

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def names(self) -> list[str]:
        """Names of the levels, such as "T4"."""
        return [levels.name(level) for level in self.levels]

    def targets(self) -> np.ndarray:
        """(N, 64, 64, 64) bool, True in the vertebra itself, RAS order."""
        return self.labels[:, MIDDLE, MIDDLE, MIDDLE] == self.levels[:, None, None, None]

    def images(self) -> np.ndarray:
        """(N, 2, 4, 64, 64) float32, a network's input, as `network_input` makes it with exact landmarks."""
        patches = self.pictures[:, :, MIDDLE, MIDDLE]
        middle = np.zeros((2, 2))
        parts = zip(patches, in_pictures(neighbour_offsets(self.levels, self.centroids)), self.levels, strict=True)
        return np.stack(
            [network_input(pair, np.isfinite(pair), middle, around, int(level)) for pair, around, level in parts]
        )

    def chosen(self, wanted: list[int]) -> Samples:
        """The samples of the wanted levels only, in the wanted order."""
        rows = [int(np.flatnonzero(self.levels == level)[0]) for level in wanted]
        return replace(self, **{name: getattr(self, name)[rows] for name in ("levels", "centroids", *_ARRAYS)})

    def sample(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """HU, labels and pictures of one sample: (84, 84, 84) int16 and uint8, and (2, 84, 84) float32."""
        return self.hu[row], self.labels[row], self.pictures[row]

    def prefetch(self, row: int) -> None:
        """Does nothing: the samples are in memory. See `StoredSamples.prefetch`."""


def cut_samples(
    ct: Volume,
    mask: Volume,
    subject: str,
    *,
    source: str = "ct",
    projection: str = "parallel",
    field_of_view: str = "full",
) -> Samples:
    """Cuts the samples of a subject's whole vertebrae, head to tail, cleaned and chosen by `clean_mask`.

    Args:
        ct: HU; its grid may differ from the mask's, both are placed by world coordinates.
        mask: VerSe levels.
        subject: its name.
        source: "ct" or "phantom".
        projection: "parallel", or "cone" with the distances of `geometry` around the middle of the projected volume.
        field_of_view: "full" projects the whole CT, so that ribs and bowel overlie the vertebra as on a radiograph.
            "crop" projects each vertebra's cube of 96 mm alone, resampled to 1.5 mm, as the public benchmark does: an
            easier task.

    Raises:
        InputError: no whole vertebra is left; unknown field of view or projection.
    """
    if field_of_view not in FIELDS_OF_VIEW:
        raise InputError(f"'{field_of_view}' is not a field of view; use {' or '.join(FIELDS_OF_VIEW)}.")
    cleaned = masks.clean_mask(mask, ct if source == "ct" else None)
    found = cleaned.parts
    if not found:
        raise InputError(f"No whole vertebra in {subject}: " + " ".join(cleaned.notes or ["its mask is empty."]))
    centroids = [masks.centroid(mask, *part) for part in found.values()]
    cubes = (cut_cube(ct, centre, WIDE, SPACING_MM, order=1, fill=-1000).data for centre in centroids)
    hu = [np.clip(np.rint(cube), -1024, 4000).astype(np.int16) for cube in cubes]
    if field_of_view == "full":
        pictures = _project_full(ct, centroids, projection)
    else:
        pictures = np.array([_project_crop(*pair, projection) for pair in zip(hu, centroids, strict=True)])
    return Samples(
        subject,
        source,
        projection,
        levels=np.array(list(found), np.uint8),
        centroids=np.array(centroids, np.float32),
        hu=np.array(hu),
        labels=_cut_labels(mask, found, centroids),
        pictures=pictures,
        notes=cleaned.notes,
        field_of_view=field_of_view,
        counts={**cleaned.counts},
    )


def _cut_labels(mask: Volume, found: dict[int, masks.Part], centres: list[np.ndarray]) -> np.ndarray:
    """(N, 84, 84, 84) uint8, the mask's labels around each centre, with cleaned vertebrae in place of its own."""
    kept = np.arange(256, dtype=np.uint8)
    kept[list(found)] = 0
    labels = Volume(kept[mask.data], mask.affine)
    for level, (part, box) in found.items():
        labels.data[box][part] = level
    return np.array([cut_cube(labels, centre, WIDE, SPACING_MM, order=0, fill=0).data for centre in centres])


def _project_full(ct: Volume, centres: list[np.ndarray], projection: str) -> np.ndarray:
    """(N, 2, 84, 84) float32, patches around the centres in both views of a whole volume; NaN beyond the pictures."""
    attenuation = Volume(projector.attenuation(ct.data), ct.affine)
    patches = np.empty((len(centres), 2, WIDE, WIDE), np.float32)
    for v, view in enumerate(body_views(ct, projection)):
        picture = projector.cast(attenuation, view)
        for n, centre in enumerate(centres):
            patch, valid = cut_patch(picture, view, centre, WIDE, SPACING_MM)
            patches[n, v] = np.where(valid, patch, np.nan)
    return patches


def _project_crop(hu: np.ndarray, centre: np.ndarray, projection: str) -> np.ndarray:
    """(2, 84, 84) float32, both views of the middle of a vertebra's own cube; NaN around them."""
    cone, pixel_mm = _detector(projection, SPACING_MM)
    views = [geometry.named_view(name, centre, (SIZE, SIZE), pixel_mm, cone=cone) for name in VIEWS]
    cube = Volume(projector.attenuation(hu[MIDDLE, MIDDLE, MIDDLE]), cube_affine(centre, SIZE, SPACING_MM))
    patches = np.full((2, WIDE, WIDE), np.nan, np.float32)
    patches[:, MIDDLE, MIDDLE] = projector.cast_batch(cube, views)
    return patches


def body_views(volume: Volume, projection: str) -> tuple[geometry.View, geometry.View]:
    """The AP and left lateral views of a whole volume, "parallel" or "cone", with pixels of `DRR_PIXEL_MM` in the body."""
    cone, pixel_mm = _detector(projection, DRR_PIXEL_MM)
    ap, lateral = (geometry.covering_view(name, volume.corners(), pixel_mm, cone=cone) for name in VIEWS)
    return ap, lateral


def _detector(projection: str, pixel_mm: float) -> tuple[bool, float]:
    """Whether rays diverge, and the detector's pixel size for pixels of `pixel_mm` at the isocentre."""
    if projection not in ("parallel", "cone"):
        raise InputError(f"'{projection}' is not a projection; use parallel or cone.")
    cone = projection == "cone"
    return cone, pixel_mm * (geometry.SOURCE_TO_DETECTOR_MM / geometry.SOURCE_TO_ISOCENTRE_MM if cone else 1.0)


def write_samples(store: str | Path, samples: Samples, digest: str = "") -> str:
    """Writes a subject's samples into a store, in place of any that it has of the same subject.

    `digest` identifies what the samples were made from; by default it is a hash of the samples. Returns the group's name.
    """
    arrays = {name: getattr(samples, name) for name in _ARRAYS}
    rows = pd.DataFrame(
        {
            "subject": samples.subject,
            "person": samples.person or samples.subject,
            "level": samples.names,
            "source": samples.source,
            "projection": samples.projection,
            "field_of_view": samples.field_of_view,
            **{f"centroid_{axis}_mm": samples.centroids[:, i] for i, axis in enumerate("xyz")},
            "official_split": samples.official_split,
            "notes": "\n".join(samples.notes),
            "counts": json.dumps(samples.counts),
        }
    )
    if not digest:
        content = rows.to_json().encode() + b"".join(array.tobytes() for array in arrays.values())
        digest = hashlib.sha256(content).hexdigest()
    name = group_name(samples.subject, digest)
    write_group(store, name, rows, arrays)
    return name


def read_samples(store: str | Path, subject: str) -> Samples:
    """Reads the samples of one subject of a store.

    Raises:
        InputError: no such subject, or damaged samples.
    """
    index = read_index(store)
    rows = index[index["subject"] == subject]
    if rows.empty:
        raise InputError(f"The store {store} has no subject '{subject}', but for example {index['subject'].iloc[0]}.")
    return StoredSamples(SampleCache(store), rows).load()


class StoredSamples:
    """The samples of one subject, by its rows of the store's index. Training reads them one by one, as `Samples`."""

    def __init__(self, cache: SampleCache, rows: pd.DataFrame):
        self._cache, self._rows = cache, rows
        self.subject, self.source, self.field_of_view = rows[["subject", "source", "field_of_view"]].iloc[0]
        self.levels = np.array([levels.number(level) for level in rows["level"]], np.uint8)
        self.centroids = rows[[f"centroid_{axis}_mm" for axis in "xyz"]].to_numpy(np.float32)
        self._places = list(zip(rows["group"], rows["row"], strict=True))

    def __len__(self) -> int:
        return len(self._places)

    def prefetch(self, row: int) -> None:
        """Starts to read a sample in the background."""
        self._cache.prefetch(*self._places[row])

    def sample(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `Samples.sample`; not to be changed."""
        arrays = self._cache.read(*self._places[row])
        return arrays["hu"], arrays["labels"], arrays["pictures"]

    def load(self) -> Samples:
        """Reads all samples into memory."""
        first = self._rows.iloc[0]
        return Samples(
            subject=self.subject,
            source=self.source,
            projection=first["projection"],
            levels=self.levels,
            centroids=self.centroids,
            notes=first["notes"].splitlines(),
            field_of_view=self.field_of_view,
            person=first["person"],
            official_split=first["official_split"],
            counts=json.loads(first["counts"]),
            **read_rows(self._cache.store, first["group"], list(self._rows["row"])),
        )
