"""Splits of a store: which people a network learns from and which are held out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from transvert import io
from transvert.data.samples import Samples, StoredSamples
from transvert.data.store import SampleCache
from transvert.io import InputError


def split_index(index: pd.DataFrame, name: str) -> pd.DataFrame:
    """Marks each sample of a store as training or held out. A person is held out with all of their scans.

    Args:
        index: a store's index.
        name: "subjects" holds out every fifth person; "loso:NAME" the person or subject of that name (leave one subject
            out); "folds:K:N" group N of K groups of people; "official" all but the data set's own training split; "all"
            no one. Any other name is a CSV of `data_manifests/splits` with columns subject, level and split.

    Returns:
        The index with a column `split`: "train", "held_out_vertebra" or "held_out_subject", without samples that a CSV
        does not name.

    Raises:
        InputError: no such split or subject, nothing to train on, or a held-out person who is also trained on.
    """
    if name in ("subjects", "official", "all") or name.partition(":")[0] in ("loso", "folds"):
        made = index.assign(split=np.where(_held_out(index, name), "held_out_subject", "train"))
    else:
        path = io.share_folder("data_manifests") / "splits" / f"{name}.csv"
        if not path.exists():
            raise InputError(f"There is no split '{name}': {path.name} is not among data_manifests/splits.")
        made = index.merge(pd.read_csv(path), on=["subject", "level"], how="inner")
    train = set(made["person"][made["split"] == "train"])
    if not train:
        raise InputError(f"The split '{name}' leaves nothing to train on in this store.")
    both = train & set(made["person"][made["split"] == "held_out_subject"])
    if both:
        raise InputError(f"The split '{name}' trains on the held-out subject {', '.join(sorted(both))}.")
    return made


def _held_out(index: pd.DataFrame, name: str) -> np.ndarray | pd.Series:
    """Whether each sample is held out by a split that has a rule."""
    people, (kind, _, rest) = index["person"], name.partition(":")
    if kind == "subjects":
        everyone = sorted(set(people))
        return people.isin(everyone[4::5] or everyone[1:][-1:])
    if kind == "official":
        return index["official_split"] != "training"
    if kind == "all":
        return np.zeros(len(index), bool)
    if kind == "folds":
        count, _, group = rest.partition(":")
        if not (count.isdecimal() and group.isdecimal() and 1 <= int(group) <= int(count)):
            raise InputError(f"'{name}' is not one split; write folds:K:N for group N of K, such as folds:5:1.")
        return people.isin(group_people(index, int(count))[int(group) - 1])
    held = people[(people == rest) | (index["subject"] == rest)]
    if held.empty:
        known = people.iloc[0]
        raise InputError(f"'{name}' names no subject of this store; write loso:NAME with a NAME such as {known}.")
    return people.isin(held)


def group_people(index: pd.DataFrame, count: int) -> list[list[str]]:
    """Divides the people of a store into groups of about as many vertebrae; equal stores give equal groups.

    People are taken from the most vertebrae to the fewest, and each joins the group with the fewest so far.

    Raises:
        InputError: fewer than two groups, or more groups than people.
    """
    sizes = index["person"].value_counts()
    if not 2 <= count <= len(sizes):
        raise InputError(f"{len(sizes)} people can't be put into {count} groups; use 2 to {len(sizes)}.")
    groups: list[list[str]] = [[] for _ in range(count)]
    for person in sorted(sizes.index, key=lambda person: (-sizes[person], person)):
        min(groups, key=lambda group: sizes[group].sum()).append(person)
    return groups


def iterate_folds(index: pd.DataFrame, name: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yields the trainings of a split: one, or several that together hold out each person once.

    Args:
        index: a store's index.
        name: as in `split_index`; or "loso" for one training per person, "folds:K" for one per group of people.

    Yields:
        The held-out person ("loso"), "fold1" and so on ("folds:K"), or ""; and the index as from `split_index`.
    """
    kind, _, count = name.partition(":")
    if name == "loso":
        parts = {person: f"loso:{person}" for person in sorted(set(index["person"]))}
    elif kind == "folds" and count.isdecimal():
        parts = {f"fold{n + 1}": f"{name}:{n + 1}" for n in range(len(group_people(index, int(count))))}
    else:
        parts = {"": name}
    for fold, part in parts.items():
        yield fold, split_index(index, part)


def stream_samples(place: str | Path, rows: pd.DataFrame, *, keep: int = 1000) -> list[StoredSamples]:
    """The samples of rows of a store's index, one entry per subject, left in the store until needed.

    `keep` samples stay in memory once they are read, 1.8 MB each.
    """
    cache = SampleCache(place, keep)
    return [StoredSamples(cache, part) for _, part in rows.groupby("subject", sort=False)]


def load_samples(place: str | Path, rows: pd.DataFrame) -> list[Samples]:
    """As `stream_samples`, but all in memory."""
    return [subject.load() for subject in stream_samples(place, rows)]
