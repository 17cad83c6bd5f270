"""Splits hold out people with all of their scans, each once over the folds, and never train on a held-out person."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from numpy.testing import assert_array_equal

from transvert import io
from transvert.data import samples, store
from transvert.data.samples import Samples
from transvert.data.splits import iterate_folds, load_samples, split_index, stream_samples
from transvert.io import InputError


def _index(**people: int) -> pd.DataFrame:
    """A store's index with this many vertebrae per person; from the fifth on they belong to a second scan."""
    rows = [(f"{person}-{n > 3}", person) for person, count in people.items() for n in range(count)]
    return pd.DataFrame(rows, columns=["subject", "person"]).assign(level="L1", official_split="training")


def _held_out(rows: pd.DataFrame) -> set[str]:
    return set(rows["person"][rows["split"] == "held_out_subject"])


SIX = _index(a=2, b=2, c=5, d=2, e=5, f=2)


@pytest.mark.parametrize(
    ("name", "held_out"),
    [("subjects", {"e"}), ("all", set()), ("official", {"a"}), ("loso:c", {"c"}), ("loso:c-True", {"c"})],
)
def test_a_split_holds_out_people_with_all_scans(name: str, held_out: set[str]) -> None:
    index = SIX.assign(official_split=["test"] * 2 + ["training"] * 16)
    made = split_index(index, name)
    assert len(made) == len(index) and set(made["split"]) <= {"train", "held_out_subject"}
    assert _held_out(made) == held_out and not held_out & set(made["person"][made["split"] == "train"])


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("none", "There is no split 'none': none.csv is not among data_manifests/splits"),
        ("demo", "The split 'demo' leaves nothing to train on in this store"),
        ("official", "The split 'official' leaves nothing to train on"),
        ("loso:", "'loso:' names no subject of this store; write loso:NAME with .* such as a"),
        ("loso:x", "'loso:x' names no subject of this store"),
        *((f"folds{rest}", "is not one split; write folds:K:N for .*") for rest in ("", ":", ":3:4", ":3:0", ":-3:1")),
        *((f"folds:{rest}", r"6 people can't be put into \d groups; use 2 to 6") for rest in ("1", "7", "9:2")),
    ],
)
def test_a_split_that_cannot_be_made_is_refused(name: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        list(iterate_folds(SIX.assign(official_split=""), name))


def test_no_one_is_trained_on_and_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "splits").mkdir()
    monkeypatch.setattr(io, "share_folder", lambda kind: tmp_path)
    text = "subject,level,split\na-False,L1,train\nc-False,L1,train\nc-True,L1,held_out_subject\n"
    (tmp_path / "splits" / "mine.csv").write_text(text)
    with pytest.raises(InputError, match="The split 'mine' trains on the held-out subject c"):
        split_index(SIX, "mine")


def test_loso_holds_out_each_person_once() -> None:
    folds = dict(iterate_folds(SIX, "loso"))
    assert list(folds) == list("abcdef")
    assert all(_held_out(made) == {person} for person, made in folds.items())
    ((name, only),) = iterate_folds(SIX, "subjects")
    assert name == "" and _held_out(only) == {"e"}


def test_folds_hold_out_each_person_once_in_even_groups() -> None:
    index = _index(a=1, b=13, c=5, d=5, e=11, f=1, g=1)
    found = dict(iterate_folds(index, "folds:3"))
    assert list(found) == ["fold1", "fold2", "fold3"]
    # Both fives join the third group, then a with its 10, f the second with 11, and g the third again.
    assert [_held_out(rows) for rows in found.values()] == [{"b"}, {"e", "f"}, {"a", "c", "d", "g"}]
    shuffled = dict(iterate_folds(index.sample(frac=1, random_state=0), "folds:3"))
    assert [_held_out(rows) for rows in shuffled.values()] == [_held_out(rows) for rows in found.values()]
    ((_, one),) = iterate_folds(index, "folds:3:2")
    assert _held_out(one) == {"e", "f"}


def test_streamed_and_loaded_samples_are_those_of_the_rows(box_samples: Samples, tmp_path: Path) -> None:
    for name in ("sub-0", "sub-2"):
        samples.write_samples(tmp_path, replace(box_samples.chosen([20, 21]), subject=name))
    rows = store.read_index(tmp_path).iloc[[3, 2, 1]]
    loaded, streamed = load_samples(tmp_path, rows), stream_samples(tmp_path, rows, keep=2)
    assert [s.subject for s in streamed] == [s.subject for s in loaded] == ["sub-2", "sub-0"]
    for one, other in zip(streamed, loaded, strict=True):
        assert one.levels.tolist() == other.levels.tolist()
        for row in range(len(one)):
            for ours, theirs in zip(one.sample(row), other.sample(row), strict=True):
                assert_array_equal(ours, theirs)
