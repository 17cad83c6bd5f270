"""Splits: which people are trained on and which are held out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from transvert import io
from transvert.data import store
from transvert.data.samples import Samples, StoredSamples
from transvert.io import InputError


def split_index(index: pd.DataFrame, name: str) -> pd.DataFrame:
    """Which samples of a store are learned from. What is held out is a person, with all of their scans.

    Args:
        index: a store's.
        name: a CSV of `data_manifests/splits`; "subjects" to hold out every fifth person; "loso:NAME" to hold out the
            person or the subject of that name alone (leave one subject out; `folds` gives them all); "folds:K:N" to
            hold out the Nth of K groups of people; "official" for what the data set's authors trained on; "all" to hold
            out nobody.

    Returns:
        The index with a column `split`: "train", "held_out_vertebra" or "held_out_subject". Samples the CSV does not
        name are left out.

    Raises:
        InputError: no such split or subject, nothing to train on, or a held-out person who is also trained on.
    """
    persons = index["person"]
    if name == "subjects":
        everyone = sorted(set(persons))
        made = _held_out(index, persons.isin(everyone[4::5] or everyone[1:][-1:]))
    elif name == "all":
        made = index.assign(split="train")
    elif name == "official":
        made = _held_out(index, index["official_split"] != "training")
    elif name == "folds" or name.startswith("folds:"):
        made = _held_out(index, persons.isin(_group(index, name)))
    elif name == "loso" or name.startswith("loso:"):
        one = name.removeprefix("loso").removeprefix(":")
        held = persons[(persons == one) | (index["subject"] == one)]
        if held.empty:
            raise InputError(
                f"'{name}' names no subject of this store; write loso:NAME with a NAME such as {persons.iloc[0]}."
            )
        made = _held_out(index, persons.isin(held))
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


def _held_out(index: pd.DataFrame, held: pd.Series) -> pd.DataFrame:
    return index.assign(split=np.where(held, "held_out_subject", "train"))


def group_people(index: pd.DataFrame, count: int) -> list[list[str]]:
    """The people of a store in `count` groups of about as many vertebrae; equal stores give equal groups.

    Whoever has most vertebrae comes first, and each goes to the group that has fewest so far.

    Raises:
        InputError: fewer than two groups, or more than there are people.
    """
    sizes = index["person"].value_counts()
    if not 2 <= count <= len(sizes):
        raise InputError(f"{len(sizes)} people can't be put into {count} groups; use 2 to {len(sizes)}.")
    groups: list[list[str]] = [[] for _ in range(count)]
    totals = [0] * count
    for person in sorted(sizes.index, key=lambda person: (-sizes[person], person)):
        least = totals.index(min(totals))
        groups[least].append(person)
        totals[least] += int(sizes[person])
    return groups


def _group(index: pd.DataFrame, name: str) -> list[str]:
    """The people whom "folds:K:N" holds out."""
    parts = name.split(":")[1:]
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not 1 <= int(parts[1]) <= int(parts[0]):
        raise InputError(f"'{name}' is not one split; write folds:K:N for group N of K, such as folds:5:1.")
    return group_people(index, int(parts[0]))[int(parts[1]) - 1]


def iterate_folds(index: pd.DataFrame, name: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """The trainings that a split asks for: one, or several that hold out each person once.

    Args:
        index: a store's.
        name: as in `split`; "loso" for one training a person; "folds:K" for K, each with a group of people held out.

    Yields:
        The training's name and the index as `split` gives it. The name is the held-out person's for "loso", "fold1" and
        so on for "folds:K", and "" where there is one training alone.
    """
    kind, _, count = name.partition(":")
    if name == "loso":
        parts = {person: f"loso:{person}" for person in sorted(set(index["person"]))}
    elif kind == "folds" and count.isdecimal():
        group_people(index, int(count))  # Says what is wrong before anything is trained.
        parts = {f"fold{n}": f"{name}:{n}" for n in range(1, int(count) + 1)}
    else:
        parts = {"": name}
    for fold, part in parts.items():
        yield fold, split_index(index, part)


def train_and_watched(rows: pd.DataFrame, patience: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Which samples of a split a training learns from, and which it looks at meanwhile.

    That is everybody who is held out; but where a patience decides by it when to end, every fifth of the others, so that
    nothing is chosen by looking at whom the network will be tested on.
    """
    learned, watched = rows[rows["split"] == "train"], rows[rows["split"] != "train"]
    if patience:
        inner = split_index(learned, "subjects")
        learned, watched = inner[inner["split"] == "train"], inner[inner["split"] != "train"]
    return learned, watched


def stream_samples(place: str | Path, rows: pd.DataFrame, *, keep: int = 1000) -> list[StoredSamples]:
    """The samples that the rows of a store's index (or of `split`) name, by subject, left in the store until needed.

    Args:
        place: the store.
        rows: of its index.
        keep: how many samples stay in memory once read, 1.8 MB each.
    """
    shelf = store.Shelf(place, keep)
    return [StoredSamples(shelf, part) for _, part in rows.groupby("subject", sort=False)]


def load_samples(place: str | Path, rows: pd.DataFrame) -> list[Samples]:
    """As `streamed`, all in memory."""
    return [subject.load() for subject in stream_samples(place, rows)]
