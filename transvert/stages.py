"""The four steps of the walk as functions: what the notebooks and the command line both call."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from transvert import (
    levels,
    manifest,
    mesh,
    metrics,
    phantom,
    record,
    samples,
    volume,
)
from transvert import network as networks
from transvert.files import InputError, atomic_path
from transvert.progress import bar
from transvert.samples import SPACING_MM, Samples
from transvert.training import predict
from transvert.volume import Volume

SHIPPED_WEIGHTS = Path(__file__).parent / "weights" / "transvert_lift.safetensors"
COLUMNS = ("subject", "level", "dice", "hd95_mm", "assd_mm", "nsd_1p5mm", "source")


def open_subject(subject: manifest.Subject, *, seed: int = 0) -> tuple[Volume, Volume, str]:
    """A subject's CT and mask on one grid, or a phantom and its mask.

    Args:
        subject: with a mask, or with surfaces; with a CT or without.
        seed: of the phantom's material; a subject's name makes it the subject's own.

    Returns:
        CT or phantom in HU, mask in VerSe levels, and "ct" or "phantom".

    Raises:
        InputError: neither mask nor surfaces, or CT and mask on different grids.
    """
    if subject.mask is not None:
        mask = volume.read_mask(subject.mask, subject.convention)
    elif subject.surfaces:
        parts = {
            level: mesh.voxelise(mesh.read_surface(path, subject.files[path].unit, subject.files[path].frame), 1.0)
            for level, path in subject.surfaces.items()
        }
        mask = _merged(parts, 1.0)
    else:
        raise InputError(f"The subject {subject.name} has neither a mask nor surfaces of vertebrae.")
    if subject.ct is not None:
        ct = volume.read_ct(subject.ct)
        volume.check_same_grid(ct, mask, (f"CT {subject.ct.name}", "mask"))
        return ct, mask, "ct"
    return phantom.paint(mask, _own_seed(subject.name, seed)), mask, "phantom"


def _own_seed(name: str, seed: int) -> int:
    return zlib.crc32(f"{name}/{seed}".encode())


def _merged(parts: dict[int, Volume], spacing_mm: float) -> Volume:
    """Masks of single levels on one axis-aligned grid, with a margin so that none touches its border."""
    corners = np.concatenate([part.corners() for part in parts.values()])
    # `voxelise` puts voxel centres on whole multiples of the spacing; so does this, and every voxel finds its own.
    low = np.floor(corners.min(0) / spacing_mm) - 3
    shape = (np.ceil(corners.max(0) / spacing_mm) + 4 - low).astype(int)
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = low * spacing_mm
    merged = Volume(np.zeros(shape, np.uint8), affine)
    for level, part in parts.items():
        where = np.argwhere(part.data)
        merged.data[tuple(np.rint(merged.index(part.world(where))).astype(int).T)] = level
    return merged


def synthesize(
    subjects: Iterable[manifest.Subject],
    store: Path,
    *,
    projection: str = "parallel",
    seed: int = 0,
    progress: bool = True,
) -> list[str]:
    """Cuts the samples of subjects into a store; a subject that fails does not stop the rest.

    Returns:
        What was skipped, mended or failed, one sentence each.

    Raises:
        InputError: every subject failed.
    """
    notes, failed = [], []
    subjects = list(subjects)
    for subject in bar(subjects, "subjects", quiet=not progress):
        try:
            ct, mask, source = open_subject(subject, seed=seed)
            made = samples.cut(ct, mask, subject.name, source=source, projection=projection)
        except InputError as error:
            failed.append(f"{subject.name}: {error}")
            continue
        samples.write(store, made)
        notes += [f"{subject.name}: {note}" for note in made.notes]
    if len(failed) == len(subjects):
        raise InputError("No subject could be synthesised. " + " ".join(failed))
    return notes + failed


def open_network(weights: str | Path | None) -> tuple[nn.Module, dict[str, Any]]:
    """A trained network and its card: from a file, or the shipped one for None or "shipped"."""
    return networks.load_weights(SHIPPED_WEIGHTS if weights in (None, "", "shipped") else Path(weights))


def score(subject: Samples, predictions: np.ndarray, *, threshold: float = 0.5) -> pd.DataFrame:
    """The metrics of predicted vertebrae, one row each, with the columns `COLUMNS`.

    Args:
        subject: the truth.
        predictions: (N, 64, 64, 64), probabilities or bool.
        threshold: above which a voxel is bone.
    """
    rows = []
    for level, truth, prediction in zip(subject.levels, subject.targets(), predictions, strict=True):
        found = metrics.compare(prediction > threshold, truth, (SPACING_MM,) * 3)
        rows.append({"subject": subject.subject, "level": levels.name(level), **found, "source": subject.source})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def hulls(subject: Samples) -> np.ndarray:
    """(N, 64, 64, 64) bool: the visual hull of each vertebra from its two perfect silhouettes; the second null."""
    targets = subject.targets()
    ap, lateral = (np.swapaxes(targets.any(axis=axis), 1, 2)[:, ::-1, ::-1] for axis in (2, 1))
    return np.array([metrics.visual_hull(a, b) for a, b in zip(ap, lateral, strict=True)])


def split(index: pd.DataFrame, name: str) -> pd.DataFrame:
    """Which samples of a store are learned from.

    Args:
        index: a store's.
        name: a CSV of `data_manifests/splits`, or "subjects" to hold out every fifth subject.

    Returns:
        The index with a column `split`: "train", "held_out_vertebra" or "held_out_subject". Samples the CSV does not
        name are left out.

    Raises:
        InputError: no such split, nothing to train on, or a held-out subject that is also trained on.
    """
    if name == "subjects":
        subjects = sorted(set(index.subject))
        held = set(subjects[4::5]) or set(subjects[1:][-1:])
        made = index.assign(split=np.where(index.subject.isin(list(held)), "held_out_subject", "train"))
    else:
        path = manifest.share_folder("data_manifests") / "splits" / f"{name}.csv"
        if not path.exists():
            raise InputError(f"There is no split '{name}': {path.name} is not among data_manifests/splits.")
        made = index.merge(pd.read_csv(path), on=["subject", "level"], how="inner")
    train = set(made.subject[made.split == "train"])
    if not train:
        raise InputError(f"The split '{name}' leaves nothing to train on in this store.")
    both = train & set(made.subject[made.split == "held_out_subject"])
    if both:
        raise InputError(f"The split '{name}' trains on the held-out subject {', '.join(sorted(both))}.")
    return made


def chosen(store: Path, rows: pd.DataFrame) -> list[Samples]:
    """The samples of a store that the rows of its index (or of `split`) name, by subject."""
    found = []
    for subject, part in rows.groupby("subject", sort=False):
        found.append(samples.read(store, str(subject)).chosen([levels.number(level) for level in part["level"]]))
    return found


def verse_subjects(folders: Iterable[str | Path]) -> list[manifest.Subject]:
    """The subjects of folders in VerSe's layout: every `*_seg-vert_msk.nii.gz`, with its CT where there is one.

    Raises:
        InputError: a folder that does not exist, or no mask in any of them.
    """
    found = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f"The folder {folder} does not exist.")
        for mask in sorted(folder.rglob("*_seg-vert_msk.nii.gz")):
            name = mask.name.removesuffix("_seg-vert_msk.nii.gz")
            found.append(manifest.Subject(name, _ct_beside(mask, name, folder), mask, "verse", {}, {}))
    if not found:
        raise InputError("No file *_seg-vert_msk.nii.gz lies in the folder(s); they hold VerSe's vertebra masks.")
    return found


def _ct_beside(mask: Path, name: str, folder: Path) -> Path | None:
    """The CT of a mask: in its own folder, or below a `rawdata/` around it, up to two folders above `folder`.

    Two, so that `derivatives` itself and one subject's folder in it find the `rawdata` that stands beside.
    """
    file = f"{name}_ct.nii.gz"
    if (mask.parent / file).is_file():
        return mask.parent / file
    around = mask.absolute().parent
    for place in (around, *around.parents)[: len(around.parts) - len(folder.absolute().parts) + 3]:
        raw = place / "rawdata"
        if raw.is_dir():
            direct = raw / mask.parent.name / file
            found = [direct] if direct.is_file() else sorted(raw.rglob(file))
            if found:
                return found[0]
    return None


def evaluate(
    subjects: Iterable[manifest.Subject],
    network: nn.Module,
    out: Path,
    *,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> pd.DataFrame:
    """Predicts every whole vertebra of every subject and writes `metrics.csv` (and `skipped.txt`) into `out`.

    Raises:
        InputError: no subject could be evaluated; nothing is written then.
    """
    tables, notes = [], []
    for subject in bar(list(subjects), "subjects", quiet=not progress):
        try:
            ct, mask, source = open_subject(subject)
            made = samples.cut(ct, mask, subject.name, source=source)
            tables.append(score(made, predict(network, made.images(), mirror=True)))
            fresh = [f"{subject.name}: {note}" for note in made.notes]
        except InputError as error:
            fresh = [f"{subject.name}: {error}"]
        for note in fresh:
            say(note)
        notes += fresh
    if not tables:
        raise InputError("No subject could be evaluated. " + " ".join(notes))
    table = pd.concat(tables, ignore_index=True)
    record.write_table(out / "metrics.csv", table)
    with atomic_path(out / "skipped.txt") as temporary:
        temporary.write_text("".join(note + "\n" for note in notes), encoding="utf-8")
    return table
