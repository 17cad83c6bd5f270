"""Nothing that names a patient leaves the radiographs: not into files, not onto the terminal, not into an error."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import logging
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from conftest import Patient, Seeing
from PIL import Image, PngImagePlugin
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from transvert import cli
from transvert.clinical import radiograph
from transvert.clinical.landmarks import project_landmarks
from transvert.clinical.reconstruct import simulate_radiographs, write_radiographs
from transvert.io import InputError
from transvert.model import networks

SECRETS = {
    "PatientName": "Zyxquark^Plantagenet",
    "PatientID": "MRN-7719-QQ",
    "PatientBirthDate": "19310417",
    "AccessionNumber": "ACC55501X",
    "InstitutionName": "Saint Obscura Hospital",
    "ReferringPhysicianName": "Dr^Veiledword",
    "OperatorsName": "Op^Shroudman",
    "StudyDescription": "Whole spine of Zyxquark",
    "PatientComments": "lives beside the Murkwater",
    "StationName": "XR-CELLAR-9",
    "ImageComments": "burned in: ZYXQUARK P 17.04.1931",
    "StudyInstanceUID": "1.2.826.0.1.3680043.9.7777.1",
    "SOPInstanceUID": "1.2.826.0.1.3680043.9.7777.3",
}
PRIVATE, NESTED, PREAMBLE = "PrivateWhisper", "NestedRumour", "PreambleGhost"
FOLDER, TEXT = "QUILLFEATHER_ADA", "PngMurmur"
# Parts of them that no honest output holds.
PARTS = ["zyxquark", "plantagenet", "veiledword", "shroudman", "murkwater", "obscura", "9.7777", "xr-cellar"]
WORDS = (*SECRETS.values(), *PARTS, PRIVATE, NESTED, PREAMBLE, FOLDER, TEXT, "quillfeather", "1931")
NEEDLES = {text.lower() for text in WORDS}


def plant(path: Path, **changes: Any) -> Path:
    """Puts a patient into a film."""
    dataset = pydicom.dcmread(path)
    for keyword, value in (SECRETS | changes).items():
        setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = SECRETS["SOPInstanceUID"]
    dataset.private_block(0x0099, PRIVATE, create=True).add_new(1, "LT", f"{PRIVATE} {SECRETS['PatientName']}")
    nested = Dataset()
    nested.PatientName, nested.CodeMeaning = NESTED, NESTED
    dataset.RequestAttributesSequence = Sequence([nested])
    dataset.preamble = PREAMBLE.encode().ljust(128, b"\0")
    dataset.save_as(path)
    return path


@pytest.fixture(scope="module")
def case(patient: Patient, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patient's radiographs: DICOM and PNG pairs with a landmark file, in a folder of the patient's name."""
    folder = tmp_path_factory.mktemp("films") / FOLDER
    films, views, isocentre = simulate_radiographs(patient.ct, pixel_mm=1.0, seed=1)
    marks = project_landmarks(*views, isocentre, patient.centroids)
    _, _, file = write_radiographs(folder, films, views, marks)
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"patient": SECRETS["PatientName"], "comment": PRIVATE}))
    for which in ("ap", "lateral"):
        plant(folder / f"{which}.dcm")
        note = PngImagePlugin.PngInfo()
        note.add_text("Author", f"{TEXT} {SECRETS['PatientName']}")
        note.add_itxt("Comment", TEXT, zip=True)
        with Image.open(folder / f"{which}.png") as picture:
            picture.save(folder / f"{which}.png", pnginfo=note, dpi=picture.info["dpi"])
    return folder


def layers(content: bytes) -> Iterator[bytes]:
    """A file's bytes, and what they pack: gzip, compressed text in PNG, and base64 in a page."""
    yield content
    if b"<html" in content[:500].lower():
        for found in re.findall(rb"[A-Za-z0-9+/]{64,}={0,2}", content):
            part = base64.b64decode(found[: len(found) // 4 * 4])
            yield from layers(part)
            with contextlib.suppress(zlib.error):
                yield zlib.decompress(part)
    if content.startswith(b"\x1f\x8b"):
        yield gzip.decompress(content)
    if content.startswith(b"\x89PNG"):
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            yield str(picture.info).encode()  # Text, colour profile and EXIF.


def leaks(content: bytes | str) -> list[str]:
    """The planted words in a file or text, in any case and any usual encoding."""
    parts = [layer.lower() for layer in layers(content.encode() if isinstance(content, str) else content)]
    codes = ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le")
    return sorted(n for n in NEEDLES if any(n.encode(code) in part for part in parts for code in codes))


def test_the_search_finds_what_is_planted(case: Path) -> None:
    """Otherwise the other tests prove nothing."""
    found = leaks((case / "ap.dcm").read_bytes())
    assert set(found) >= {n.lower() for n in SECRETS.values()} | {PRIVATE.lower(), NESTED.lower(), PREAMBLE.lower()}
    assert not set(found) & {FOLDER.lower(), TEXT.lower(), "quillfeather"}
    png = (case / "ap.png").read_bytes()
    assert set(leaks(png)) == {TEXT.lower(), *PARTS[:2], SECRETS["PatientName"].lower()}
    assert leaks(b"<!doctype html><html>" + base64.b64encode(png)) == leaks(png)
    assert leaks(b"<html>" + base64.b64encode(zlib.compress(b"Zyxquark " + bytes(range(200))))) == ["zyxquark"]
    assert leaks(gzip.compress(b"xx Zyxquark")) == leaks(b"a" + "ZyxQuark".encode("utf-16-le")) == ["zyxquark"]
    assert leaks(str(case)) == ["quillfeather", "quillfeather_ada"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Reconstructs the films of a folder into `out` of the test's folder, and gives the command's exit code."""
    monkeypatch.setattr(networks, "load_network", lambda weights: (Seeing(sees=False), {"network": "blob"}))

    def main(folder: Path, ending: str = ".dcm") -> int:
        words = ["--ap", folder / f"ap{ending}", "--lateral", folder / f"lateral{ending}", "--draws", 2]
        words += ["--landmarks", folder / "landmarks.json", "--out", tmp_path / "out", "--weights", tmp_path / "none"]
        monkeypatch.setattr(sys, "argv", ["transvert", "reconstruct", *map(str, words)])
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return main


@pytest.mark.parametrize("ending", [".dcm", ".png"])
def test_a_reconstruction_leaves_the_patient_out(
    case: Path, run: Callable[..., int], ending: str, tmp_path: Path, capfd: Any, caplog: Any, recwarn: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    before = {path: path.read_bytes() for path in case.iterdir()}
    assert run(case, ending) == 0
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path / "out").as_posix() for path in written} == {
        *("spine.nii.gz", "spine.stl", "spine.glb", "surface_sd.png", "report.json", "report.html"),
        *("spine.seg.nrrd", "centroids.mrk.json", "landmarks.json"),
        *("overlay.png", "spine.png", "posture.json", "posture.csv", "posture_measures.csv"),
        *(f"surfaces/{level}.{kind}" for level in ("L1", "L2", "L3") for kind in ("stl", "ply", "glb")),
    }
    assert {path: path.read_bytes() for path in case.iterdir()} == before
    assert {path.name: found for path in written if (found := leaks(path.read_bytes()) + leaks(path.name))} == {}
    printed = capfd.readouterr()
    assert "Wrote 3 vertebrae" in printed.out
    logged = [f"{record.getMessage()} {record.exc_text}" for record in caplog.records]
    assert leaks("\n".join([printed.out, printed.err, *logged, *(str(one.message) for one in recwarn)])) == []


BROKEN: dict[str, Callable[[Path], None]] = {
    "position": lambda path: _change(path, ViewPosition="LL"),
    "orientation": lambda path: _change(path, PatientOrientation=["ZYXQUARK", "F"]),
    "rescale": lambda path: _write_in(path, "RescaleSlope", 1),
    "a private code": lambda path: _recode(path, "1.2.826.0.1.3680043.9.7777.5"),
    "no pitch": lambda path: _write_in(path, "ImagerPixelSpacing", 2, PixelSpacing=[0, 0]),
    "cut late": lambda path: path.write_bytes(path.read_bytes()[:-99]) and None,
    "text": lambda path: path.write_text(SECRETS["PatientName"]) and None,
}


def _change(path: Path, **changes: Any) -> None:
    with pydicom.config.disable_value_validation():
        plant(path, **changes)


def _write_in(path: Path, keyword: str, parts: int, **changes: Any) -> None:
    """Puts a name where numbers belong, which pydicom itself would refuse to write."""
    _change(path, **{keyword: [12345678] * parts if parts > 1 else 12345678}, **changes)
    content = path.read_bytes()
    assert b"12345678" in content
    path.write_bytes(content.replace(b"12345678", b"Zyxquark"))


def _recode(path: Path, syntax: str) -> None:
    dataset = pydicom.dcmread(path)
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8" + SECRETS["PatientName"].encode() * 5])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=True)


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.filterwarnings("ignore:Invalid value:UserWarning")  # While it is planted.
def test_an_error_names_the_file_and_nothing_in_it(
    case: Path, run: Callable[..., int], kind: str, tmp_path: Path, capfd: Any, caplog: Any
) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    for name in ("ap.dcm", "lateral.dcm", "landmarks.json"):
        (folder / name).write_bytes((case / name).read_bytes())
    content = json.loads((folder / "landmarks.json").read_text())
    for view in content["views"].values():
        view.pop("pixel_mm")
    (folder / "landmarks.json").write_text(json.dumps(content))
    BROKEN[kind](folder / "ap.dcm")
    capfd.readouterr()
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    with pytest.raises(InputError) as caught:
        radiograph.read_radiograph(folder / "ap.dcm", view="ap")
    assert "ap.dcm" in str(caught.value) and str(caught.value).count("\n") == 0
    assert leaks(str(caught.value)) == [] and caught.value.__cause__ is None
    assert run(folder) == 2
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert leaks("\n".join([printed.err, *(f"{one.getMessage()} {one.exc_text}" for one in caplog.records)])) == []
    assert not (tmp_path / "out").exists()


def test_a_radiograph_in_memory_holds_nothing_of_the_patient(case: Path) -> None:
    found = radiograph.read_radiograph(case / "ap.dcm").acquisition
    assert leaks(repr(found)) == leaks(json.dumps(found.to_dict())) == []
