"""Files are whole or absent; levels have one number inside and their own names outside."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import transvert
from transvert import levels
from transvert.io import InputError, atomic_path, read_json, read_yaml, write_json


def test_the_package_imports_fast_and_offers_its_public_names() -> None:
    heavy = "import sys, transvert; sys.exit(bool({'torch', 'numpy', 'numba'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", heavy], check=False).returncode == 0
    assert all(callable(getattr(transvert, name)) for name in transvert.__all__ if name not in ("__version__", "drr"))
    assert callable(transvert.drr.cast)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        transvert.nothing  # noqa: B018


def test_numba_finds_a_folder_where_neither_the_package_nor_the_home_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "kept")  # so that it is restored
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    transvert._find_compile_cache()
    assert "NUMBA_CACHE_DIR" not in os.environ
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nohome")
    transvert._find_compile_cache()
    assert Path(os.environ["NUMBA_CACHE_DIR"]).is_dir()


def test_a_write_replaces_the_whole_file_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "volume.nii.gz"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent and temporary.name.endswith(".nii.gz")
        temporary.write_text("one")
        assert not path.exists()
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o444 == 0o444 & ~mask
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "one" and list(path.parent.iterdir()) == [path]


def test_json_round_trip_and_refusals(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"ä": [1, None]})
    assert read_json(path, "thing") == {"ä": [1, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"value": float("nan")})
    assert read_json(path, "thing") == {"ä": [1, None]}
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(path, "thing") == [1], "a byte order mark is left out"


@pytest.mark.parametrize(
    ("read", "content", "sentence"),
    [
        (read_json, None, "does not exist"),
        (read_json, b"{", "is not valid JSON"),
        (read_json, b"\xff\xfe\x00", "is not text in UTF-8"),
        (read_json, b"[" * 100_000, r".* \(maximum recursion depth exceeded.*\)"),
        (read_json, b"[" + b"9" * 400 + b"]", r"is not valid JSON \(a number has too many digits\)"),
        (read_yaml, b"a: [", "is not valid YAML"),
        (read_yaml, b"[" * 100_000, r".* \(maximum recursion depth exceeded.*\)"),
        (read_yaml, b"a: &a [1]\nb: [*a, *a]", r"is not valid YAML \(it holds aliases\)"),
        (read_yaml, b"a: " + b"9" * 5000, "is not valid YAML"),
        (read_yaml, "folder", "is not a file"),
        (read_json, "pipe", "is not a file"),
    ],
)
def test_a_file_that_cannot_be_parsed_gets_one_sentence(
    read: Callable[[Path, str], object], content: bytes | str | None, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "c.txt"
    if content == "folder":
        path.mkdir()
    elif content == "pipe":
        os.mkfifo(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^The thing .*c\.txt {sentence}") as caught:
        read(path, "thing")
    assert "\n" not in str(caught.value)


def test_names_and_numbers_of_levels_are_inverse() -> None:
    assert [levels.name(n) for n in (1, 7, 8, 19, 20, 24, 25, 26, 28)] == [
        *("C1", "C7", "T1", "T12", "L1", "L5", "L6", "sacrum", "T13")
    ]
    for number, name in levels.NAMES.items():
        assert levels.number(name) == number
    assert levels.number(" l3 ") == 22
    assert levels.number("S1") == levels.number("Sacrum") == 26
    assert 26 not in levels.VERTEBRAE and len(levels.VERTEBRAE) == 26
    with pytest.raises(InputError, match="27 is not a VerSe level number"):
        levels.name(27)


@pytest.mark.parametrize("name", ["L7", "", "T0", "20", "C8"])
def test_an_unknown_name_is_refused_by_name(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' is not a vertebral level; use C1-C7"):
        levels.number(name)


def test_regions_and_order_from_head_to_tail() -> None:
    assert "".join(levels.region(n) for n in (3, 12, 28, 22, 26)) == "CTTLS"
    assert levels.in_order({26, 20, 28, 19, 1}) == [1, 19, 28, 20, 26]


def test_totalsegmentator_counts_up_from_the_sacrum() -> None:
    labels = np.array([[0, 25, 26, 27, 31], [32, 43, 44, 50, 51]])
    expected = [[0, 26, 26, levels.number("L5"), 20], [levels.number("T12"), 8, 7, 1, 0]]
    found = levels.to_verse(labels, "totalsegmentator")
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint8
    # Every level once; only the sacrum has two labels.
    assert sorted(levels.TOTALSEGMENTATOR.values()) == [*range(1, 25), 26, 26]


def test_labels_beyond_a_byte_and_below_zero_are_no_vertebra() -> None:
    labels = np.array([-1, -236, 20, 27, 276, 100_000])
    np.testing.assert_array_equal(levels.to_verse(labels, "verse"), [0, 0, 20, 0, 0, 0])
    known = "verse or totalsegmentator or totalsegmentator_v1"
    with pytest.raises(InputError, match=f"'spineweb' is not a known label convention; use {known}"):
        levels.to_verse(labels, "spineweb")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["T11", "L2"], ["T11", "T12", "L1", "L2"]),
        (["L2", "T11", "T13"], ["T11", "T12", "T13", "L1", "L2"]),
        (["L4", "L6"], ["L4", "L5", "L6"]),
        ([], []),
    ],
)
def test_between_are_the_usual_levels_and_the_given_rare_ones(given: list[str], found: list[str]) -> None:
    assert [levels.name(n) for n in levels.between([levels.number(name) for name in given])] == found
