"""Evaluation: the metrics of predicted vertebrae, of samples, stores and whole subjects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from transvert import levels, runs
from transvert.data import manifest, samples, store
from transvert.data.patches import SPACING_MM
from transvert.data.samples import Samples
from transvert.data.splits import stream_samples
from transvert.data.subjects import load_subject
from transvert.io import InputError, atomic_path
from transvert.model import metrics
from transvert.model.networks import load_network
from transvert.model.predict import predict
from transvert.progress import progress_bar

COLUMNS = ("subject", "level", *metrics.METRICS, "source")
"""Columns of a table of metrics; `source` is "ct" or "phantom"."""


def score_samples(subject: Samples, predictions: np.ndarray) -> pd.DataFrame:
    """The metrics of predictions (N, 64, 64, 64), probabilities or bool: one row each, with the columns `COLUMNS`."""
    rows = []
    for level, truth, prediction in zip(subject.levels, subject.targets(), predictions, strict=True):
        found = metrics.compare(prediction > 0.5, truth, SPACING_MM)
        rows.append({"subject": subject.subject, "level": levels.name(level), **found, "source": subject.source})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def score_store(place: str | Path, rows: pd.DataFrame, network: nn.Module) -> pd.DataFrame:
    """The metrics of the samples that rows of a store's index name, as `score_samples`; predicted with `mirror`."""
    loaded = (subject.load() for subject in stream_samples(place, rows))
    tables = [score_samples(made, predict(network, made.images(), mirror=True)) for made in loaded]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))


def describe_dice(table: pd.DataFrame) -> str:
    """The mean Dice of a table of metrics as text, for CTs and phantoms apart."""
    means = table.groupby("source")["dice"].agg(["mean", "size"])
    return "Mean Dice " + ", ".join(
        f"{row['mean']:.3f} over {row['size']:.0f} vertebrae ({n})" for n, row in means.iterrows()
    )


def iterate_unseen(place: str | Path, weights: str | Path) -> Iterator[tuple[str, nn.Module, dict[str, Any], Samples]]:
    """Iterates over the subjects of a store whose people the weights were not trained on.

    Args:
        place: the store.
        weights: a file, "shipped", or a folder of `train.train_folds` with one folder per fold.

    Yields:
        The fold's name ("" for a file), its network and card, and a subject's samples.

    Raises:
        InputError: no weights, or they were trained on everyone.
    """
    if weights == "shipped" or not Path(weights).is_dir():
        files = {"": weights}
    else:
        files = {path.parent.name: path for path in sorted(Path(weights).glob("*/weights.safetensors"))}
    index, some = store.read_index(place), False
    for fold, file in files.items():
        network, card = load_network(file)
        trained = set(index["person"][index["subject"].isin(card.get("subjects", []))])
        for part in stream_samples(place, index[~index["person"].isin(trained)]):
            some = True
            yield fold, network, card, part.load()
    if not some:
        raise InputError(f"{weights} holds no weights, or they were trained on everyone in this store; test on others.")


def evaluate_subjects(
    subjects: Iterable[manifest.Subject],
    network: nn.Module,
    out: Path,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """Evaluates every whole vertebra of every subject, and writes `metrics.csv` and `skipped.txt`.

    A vertebra or subject that is skipped is printed too. If no subject could be evaluated, that is an InputError.

    Returns:
        The table of metrics, with the columns `COLUMNS`.
    """
    tables, notes = [], []
    for subject in progress_bar(list(subjects), "subjects", quiet=not progress):
        try:
            ct, mask, source = load_subject(subject)
            made = samples.cut_samples(ct, mask, subject.name, source=source)
            tables.append(score_samples(made, predict(network, made.images(), mirror=True)))
            found = [f"{subject.name}: {note}" for note in made.notes]
        except InputError as error:
            found = [f"{subject.name}: {error}"]
        for note in found:
            print(note)
        notes += found
    if not tables:
        raise InputError(" ".join(["No subject could be evaluated.", *notes[:1]]))  # All of them were printed.
    table = pd.concat(tables, ignore_index=True)
    runs.write_table(out / "metrics.csv", table)
    with atomic_path(out / "skipped.txt") as temporary:
        temporary.write_text("".join(note + "\n" for note in notes), encoding="utf-8")
    return table
