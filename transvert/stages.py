"""The four steps of the walk as functions: what the notebooks and the command line both call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from transvert import levels, manifest, metrics, opening, record, samples, store, synthesis, training
from transvert import network as networks
from transvert.files import InputError, atomic_path
from transvert.prediction import predict
from transvert.progress import bar
from transvert.samples import SPACING_MM, Samples, StoredSamples
from transvert.training import Recipe

SHIPPED_WEIGHTS = Path(__file__).parent / "weights" / "transvert_hull.safetensors"
open_subject, synthesize = opening.open_subject, synthesis.synthesize
COLUMNS = ("subject", "level", "dice", "hd95_mm", "assd_mm", "nsd_1p5mm", "source")


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
        path = manifest.share_folder("data_manifests") / "splits" / f"{name}.csv"
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


def folds(index: pd.DataFrame, name: str) -> Iterator[tuple[str, pd.DataFrame]]:
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
        yield fold, split(index, part)


def sides(rows: pd.DataFrame, patience: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Which samples of a split a training learns from, and which it looks at meanwhile.

    That is everybody who is held out; but where a patience decides by it when to end, every fifth of the others, so that
    nothing is chosen by looking at whom the network will be tested on.
    """
    learned, watched = rows[rows["split"] == "train"], rows[rows["split"] != "train"]
    if patience:
        inner = split(learned, "subjects")
        learned, watched = inner[inner["split"] == "train"], inner[inner["split"] != "train"]
    return learned, watched


def streamed(place: str | Path, rows: pd.DataFrame, *, keep: int = 1000) -> list[StoredSamples]:
    """The samples that the rows of a store's index (or of `split`) name, by subject, left in the store until needed.

    Args:
        place: the store.
        rows: of its index.
        keep: how many samples stay in memory once read, 1.8 MB each.
    """
    shelf = store.Shelf(place, keep)
    return [StoredSamples(shelf, part) for _, part in rows.groupby("subject", sort=False)]


def chosen(place: str | Path, rows: pd.DataFrame) -> list[Samples]:
    """As `streamed`, all in memory."""
    return [subject.load() for subject in streamed(place, rows)]


def score_rows(place: str | Path, rows: pd.DataFrame, network: nn.Module) -> pd.DataFrame:
    """The metrics of the samples that the rows of a store's index name, as `score` gives them; mirrored and averaged."""
    loaded = (subject.load() for subject in streamed(place, rows))
    tables = [score(made, predict(network, made.images(), mirror=True)) for made in loaded]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))


def unseen(place: str | Path, weights: str | Path) -> Iterator[tuple[str, nn.Module, dict[str, Any], Samples]]:
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
    index, some = samples.read_index(place), False
    for fold, file in files.items():
        network, card = open_network(file)
        known = set(index["person"][index["subject"].isin(card.get("subjects", []))])
        for part in streamed(place, index[~index["person"].isin(known)]):
            some = True
            yield fold, network, card, part.load()
    if not some:
        raise InputError(f"The weights {weights} know everybody of this store, or there are none; test on others.")


def train(
    place: str | Path,
    name: str,
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = True,
    half: bool = False,
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Trains on a store, once a fold of a split, and scores what the split holds out with its subjects.

    Args:
        place: the store; what is learned from stays there until it is drawn.
        name: of the split, as in `folds`.
        recipe: of every training.
        folder: for `training.train`'s files, in a folder of the fold's name where there are several; for `metrics.csv`.
        resume: as in `training.train`; a fold that is done is not trained again.
        half: as in `training.train`.
        say: hears of each epoch.

    Returns:
        The metrics of all folds, as `score` gives them; empty where nobody is held out.
    """
    tables = []
    for fold, rows in folds(samples.read_index(place), name):
        own = folder / fold

        def report(curve: pd.DataFrame, who: str = f"{fold}: " if fold else "") -> None:
            last = curve.iloc[-1]
            figures = f"loss {last.loss:.3f}, Dice {last.dice:.3f}, held out {last.dice_validation:.3f}"
            say(f"{who}step {last.step:.0f}: {figures}, {last.seconds:.0f} s")

        learned, watched = sides(rows, recipe.patience)
        training.train(
            streamed(place, learned),
            chosen(place, watched),
            recipe,
            own,
            resume=resume,
            on_epoch=report,
            half=half,
        )
        if int(os.environ.get("RANK", "0")):
            continue  # One of several processes scores.
        network, _ = open_network(own / "weights.safetensors")
        tables.append(score_rows(place, rows[rows["split"] == "held_out_subject"], network))
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))
    if len(table):
        record.write_table(folder / "metrics.csv", table)
    return table


def verse_subjects(folders: Iterable[str | Path]) -> list[manifest.Subject]:
    """The subjects of folders in VerSe's layout: every `*_seg-vert_msk.nii.gz`, with its CT where there is one.

    What stands before the first "_" of a name is the person: VerSe calls two scans of one person
    `sub-verse401_split-verse253` and `sub-verse401_split-verse260`.

    Raises:
        InputError: a folder that does not exist, no mask in any of them, or two of one name.
    """
    found: dict[str, manifest.Subject] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f"The folder {folder} does not exist.")
        for mask in sorted(folder.rglob("*_seg-vert_msk.nii.gz")):
            name = mask.name.removesuffix("_seg-vert_msk.nii.gz")
            if name in found:
                raise InputError(f"Two masks in the folder(s) have the subject id {name}; rename or move one.")
            ct, person = _ct_beside(mask, name, folder), name.partition("_")[0]
            found[name] = manifest.Subject(name, ct, mask, "verse", {}, {}, person=person if person != name else "")
    if not found:
        raise InputError("No file *_seg-vert_msk.nii.gz lies in the folder(s); they hold VerSe's vertebra masks.")
    return list(found.values())


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
