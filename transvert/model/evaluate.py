"""The four steps of the walk as functions: what the notebooks and the command line both call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from transvert import levels, runs
from transvert.data import manifest, samples, store, synthesis
from transvert.data.patches import SPACING_MM
from transvert.data.samples import Samples
from transvert.data.splits import stream_samples
from transvert.data.subjects import load_subject
from transvert.io import InputError, atomic_path
from transvert.model import metrics
from transvert.model.networks import load_network
from transvert.model.predict import predict
from transvert.progress import progress_bar

open_subject, synthesize = load_subject, synthesis.synthesize
COLUMNS = ("subject", "level", "dice", "hd95_mm", "assd_mm", "nsd_1p5mm", "source")


def score_samples(subject: Samples, predictions: np.ndarray, *, threshold: float = 0.5) -> pd.DataFrame:
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


def visual_hulls(subject: Samples) -> np.ndarray:
    """(N, 64, 64, 64) bool: the visual hull of each vertebra from its two perfect silhouettes; the second null."""
    targets = subject.targets()
    ap, lateral = (np.swapaxes(targets.any(axis=axis), 1, 2)[:, ::-1, ::-1] for axis in (2, 1))
    return np.array([metrics.visual_hull(a, b) for a, b in zip(ap, lateral, strict=True)])


def score_rows(place: str | Path, rows: pd.DataFrame, network: nn.Module) -> pd.DataFrame:
    """The metrics of the samples that the rows of a store's index name, as `score` gives them; mirrored and averaged."""
    loaded = (subject.load() for subject in stream_samples(place, rows))
    tables = [score_samples(made, predict(network, made.images(), mirror=True)) for made in loaded]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))


def unseen_people(place: str | Path, weights: str | Path) -> Iterator[tuple[str, nn.Module, dict[str, Any], Samples]]:
    """Everybody of a store whom trained weights have not learned from, a subject at a time.

    Args:
        place: the store.
        weights: a file, "shipped", or a folder with the weights of a fold in each of its folders.

    Yields:
        The fold's name ("" of a file), its network and card, and a subject's samples.

    Raises:
        InputError: no weights, or they know everybody.
    """
    if weights == "shipped" or not Path(weights).is_dir():
        files = {"": weights}
    else:
        files = {path.parent.name: path for path in sorted(Path(weights).glob("*/weights.safetensors"))}
    index, some = store.read_index(place), False
    for fold, file in files.items():
        network, card = load_network(file)
        known = set(index["person"][index["subject"].isin(card.get("subjects", []))])
        for part in stream_samples(place, index[~index["person"].isin(known)]):
            some = True
            yield fold, network, card, part.load()
    if not some:
        raise InputError(f"The weights {weights} know everybody of this store, or there are none; test on others.")


def evaluate_subjects(
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
    for subject in progress_bar(list(subjects), "subjects", quiet=not progress):
        try:
            ct, mask, source = open_subject(subject)
            made = samples.cut_samples(ct, mask, subject.name, source=source)
            tables.append(score_samples(made, predict(network, made.images(), mirror=True)))
            fresh = [f"{subject.name}: {note}" for note in made.notes]
        except InputError as error:
            fresh = [f"{subject.name}: {error}"]
        for note in fresh:
            say(note)
        notes += fresh
    if not tables:
        raise InputError("No subject could be evaluated. " + " ".join(notes))
    table = pd.concat(tables, ignore_index=True)
    runs.write_table(out / "metrics.csv", table)
    with atomic_path(out / "skipped.txt") as temporary:
        temporary.write_text("".join(note + "\n" for note in notes), encoding="utf-8")
    return table
