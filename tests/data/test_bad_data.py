"""Bad CTs and masks get one sentence each from the command line, and no other subject is lost."""

from __future__ import annotations

import gzip
import re
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import Patient, part_of, store_as
from numpy.testing import assert_array_equal

from transvert import cli
from transvert.data import samples, store, synthesis
from transvert.imaging import volume
from transvert.imaging.volume import Volume
from transvert.io import InputError

L1, L2, L3 = 20, 21, 22
CT, MASK = "{}_ct.nii.gz", "{}_seg-vert_msk.nii.gz"

Type = Callable[..., tuple[int, str, str]]
Edit = Callable[[bytes], bytes]


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSVERT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Type:
    """Runs `transvert` with arguments: the exit code, and what it wrote to stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["transvert", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        # Progress bars and the notice of a compilation are no complaints.
        complaints = [line.rpartition("\r")[2].replace("\x1b[A", "").strip() for line in said.err.split("\n")]
        complaints = [line for line in complaints if line and not re.search(r"\d%\||^Compiling", line)]
        return int(ended.value.code or 0), said.out, "\n".join(complaints)

    return run


@pytest.fixture
def two(patient: Patient, tmp_path: Path) -> Path:
    """A folder in VerSe's layout with a good subject and its copy, which a test damages."""
    ct, mask = part_of(patient.ct), part_of(patient.mask)
    for name in ("sub-good", "sub-bad"):
        (tmp_path / "set" / name).mkdir(parents=True)
        ct_path, mask_path = _paths(tmp_path / "set", name)
        store_as(Volume(ct.data.astype(np.int16), ct.affine), "RAS", ct_path)
        store_as(mask, "RAS", mask_path)
    return tmp_path / "set"


def _paths(folder: Path, name: str = "sub-bad") -> tuple[Path, Path]:
    """CT and mask of a subject."""
    return folder / name / CT.format(name), folder / name / MASK.format(name)


def _save(array: np.ndarray, like: Path) -> None:
    """Replaces the voxels of a file, keeping its grid."""
    nibabel.save(nibabel.Nifti1Image(array, nibabel.load(like).affine), like)


def _voxels(path: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(path).dataobj).copy()


def _refused(typed: Type, source: Path, sentence: str, bad: str = "sub-bad") -> None:
    """The good subject is made; the bad one gets the sentence on the screen and in the list of failures."""
    place = source.parent / "store"
    code, out, err = typed("synthesize", source, "--out", place)
    told = [line for line in out.splitlines() if line.startswith(f"{bad}: ")]
    assert (code, err, len(told)) == (0, "", 1), (out, err)
    assert re.search(sentence, told[0]) and told[0].endswith("."), told[0]
    index = store.read_index(place)
    assert list(zip(index["subject"], index["level"], strict=True)) == [("sub-good", "L2")]
    failures = pd.read_csv(place / synthesis.FAILURES)
    assert failures.to_numpy().tolist() == [[bad, told[0].removeprefix(f"{bad}: ")]]


def _assert_equal(one: samples.Samples, other: samples.Samples) -> None:
    for name in ("levels", "centroids", "hu", "labels", "pictures"):
        assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize(("which", "kind"), [(0, "ct"), (1, "seg-vert_msk")])
def test_a_gzip_cut_short(typed: Type, two: Path, which: int, kind: str) -> None:
    path = _paths(two)[which]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    _refused(typed, two, rf"^sub-bad: sub-bad_{kind}\.nii\.gz is cut short or damaged \(.*\); fetch or copy it again\.")


def _renumber(path: Path, numbers: dict[int, int]) -> None:
    voxels = _voxels(path)
    table = np.zeros(256, np.uint8)
    table[list(numbers)] = list(numbers.values())
    _save(table[voxels], path)


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ({L1: 31, L2: 30, L3: 29}, r"\(it holds 0, 29, 30, 31\);"),
        ({}, r"\(it holds 0\)"),
    ],
    ids=["TotalSegmentator", "none"],
)
def test_label_numbers_of_another_convention_and_a_subject_without_vertebrae(
    typed: Type, two: Path, numbers: dict[int, int], sentence: str
) -> None:
    _renumber(_paths(two)[1], numbers)
    words = "has no vertebra by the 'verse' label numbers"
    _refused(typed, two, rf"^sub-bad: The mask {MASK.format('sub-bad')} {words} {sentence}")


def test_the_convention_named_in_the_sentence_is_the_right_one(typed: Type, two: Path) -> None:
    _renumber(_paths(two)[1], {L1: 31, L2: 30, L3: 29})
    place = two.parent / "store"
    _, out, _ = typed("synthesize", two, "--out", place)
    convention = re.search(
        r"its numbers look like '(\w+)' or 'totalsegmentator_v1': state that convention in its data manifest", out
    )
    assert convention
    layout = [{"role": "ct", "path": "sub-{subject}/*_ct.nii.gz"}]
    layout += [{"role": "mask", "path": "sub-{subject}/*_msk.nii.gz", "convention": convention[1]}]
    code, out, _ = typed("synthesize", _manifest(two.parent, folder="set", layout=layout), "--out", place)
    assert code == 0 and "\ngood: The mask " in out, "the good subject has VerSe's numbers"
    _assert_equal(samples.read_samples(place, "sub-good"), samples.read_samples(place, "bad"))


def _manifest(where: Path, **more: object) -> Path:
    terms = dict.fromkeys(("title", "version", "licence", "citation", "access"), "-")
    path = where / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", **terms, **more}), encoding="utf-8")
    return path


def _put(offset: int, kind: str, *values: float) -> Edit:
    """Writes over a header: numbers of a kind (as `struct` names them) at a place that NIfTI-1 gives."""

    def edit(content: bytes) -> bytes:
        made = bytearray(content)
        struct.pack_into(f"<{len(values)}{kind}", made, offset, *values)
        return bytes(made)

    return edit


def _by_qform(edit: Edit) -> Edit:
    return lambda content: edit(_put(CODES, "h", 1, 0)(content))


def _nifti2(content: bytes) -> bytes:
    """The header of NIfTI-2, whose sizes have 64 bits: their product overflows one of 64."""
    header = nibabel.Nifti2Header()
    header.set_data_dtype(np.int16)
    header["dim"] = [3, 2**40, 2**40, 4, 1, 1, 1, 1]
    header["vox_offset"], header["magic"], header["sform_code"] = 544, b"n+2", 1
    return header.binaryblock + bytes(4) + content[352:]


NAN, INFINITY = float("nan"), float("inf")
DIM, DATATYPE, BITPIX, PIXDIM, OFFSET, SCALE, CODES, QUATERNION, SFORM = 40, 70, 72, 80, 108, 112, 252, 256, 280
HELD = r"is cut short or damaged \(it is too short for the {} voxels of its header\); fetch or copy it again\.$"
PLACED = r"has an impossible affine \(voxels of {} mm, the first at .*\); correct it\.$"
HEADERS = {
    "a negative size": (_put(DIM, "h", 3, -110, 80, 42), HELD.format("-110 x 80 x 42")),
    "all that fits a header": (_put(DIM, "h", 3, *[32767] * 3), HELD.format("32767 x 32767 x 32767")),
    "one that might be": (_put(DIM, "h", 3, 2048, 2048, 2048), HELD.format("2048 x 2048 x 2048")),
    "2^82 voxels": (_nifti2, HELD.format("1099511627776 x 1099511627776 x 4")),
    "voxels beyond the file": (_put(OFFSET, "f", 1e12), HELD.format("110 x 80 x 42")),
    "an infinite scale": (_put(SCALE, "f", INFINITY), r"is cut short or damaged \(its header scales the values by inf"),
    "a scale beyond all numbers": (_put(SCALE, "f", 1e38), r"has NaN or infinite voxels"),
    "an unknown type": (_put(DATATYPE, "h", 9999), r"is cut short or damaged \(data code 9999 not recognized\)"),
    "complex numbers": (_put(DATATYPE, "h", 32), r"holds colours or complex numbers; a volume of single values is ne"),
    "an sform of NaN": (_put(SFORM, "f", NAN), PLACED.format("nan x 1.2 x 2")),
    "a flat sform": (_put(SFORM, "f", 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 2, 0), PLACED.format("1.41 x 1.41 x 2")),
    "an sform of km": (_put(SFORM, "f", 1e6, 0, 0, 0, 0, 1e6, 0, 0, 0, 0, 1e6, 0), PLACED.format(r"1e\+06 x .*")),
    "a quaternion beyond 1": (_by_qform(_put(QUATERNION, "f", 5, 5, 5)), r"is cut short or damaged"),
    "a qform without sizes": (_by_qform(_put(PIXDIM, "f", 0, 0, 0)), PLACED.format("0 x 0 x 0")),
    "an unstated place": (_put(CODES, "h", 0, 0), r"does not state its orientation in the patient \(sform and"),
}


def _edit(path: Path, edit: Edit) -> None:
    path.write_bytes(gzip.compress(edit(gzip.decompress(path.read_bytes()))))


@pytest.mark.parametrize("what", HEADERS)
def test_headers_that_cannot_be(two: Path, what: str) -> None:
    edit, sentence = HEADERS[what]
    _edit(_paths(two)[0], edit)
    with pytest.raises(InputError, match=rf"^(The CT )?sub-bad_ct\.nii\.gz {sentence}"):
        volume.read_ct(_paths(two)[0])


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("what", ["all that fits a header", "one that might be", "2^82 voxels"])
def test_the_volume_that_a_header_claims_is_never_allocated(two: Path, ending: str, what: str) -> None:
    """Many machines would find the 16 GB that one header claims, and fill them with nothing."""
    ct, _ = _paths(two)
    _edit(ct, HEADERS[what][0])
    if ending == "nii":
        ct = ct.with_suffix("")
        ct.write_bytes(gzip.decompress(ct.with_suffix(".nii.gz").read_bytes()))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=HEADERS[what][1]):
            volume.read_ct(ct)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 100e6


def test_names_that_differ_in_case_alone_are_refused(typed: Type, two: Path) -> None:
    (two / "more").mkdir()
    for path in _paths(two, "sub-good"):
        (two / "more" / path.name.replace("sub-good", "SUB-good")).write_bytes(path.read_bytes())
    _, out, _ = typed("synthesize", two, "--out", two.parent / "store")
    assert re.search(r"^(SUB|sub)-good: .*two subjects .*; rename one", out, re.MULTILINE), out
    assert len(store.read_index(two.parent / "store").subject.unique()) == 2
