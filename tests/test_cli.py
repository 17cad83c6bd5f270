"""The command line as a user types it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import Patient
from test_privacy import Blob
from typer.testing import CliRunner

from transvert.cli import app
from transvert.clinical import landmarks
from transvert.clinical.reconstruct import simulate_radiographs, write_radiographs
from transvert.data import manifest
from transvert.io import InputError
from transvert.model import networks


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "transvert", *words], capture_output=True, text=True, check=False)


def test_help_names_every_command():
    shown = CliRunner().invoke(app, ["--help"]).output
    for command in ("reproduce", "fetch", "synthesize", "train", "evaluate", "reconstruct"):
        assert command in shown


def test_bad_input_ends_in_one_sentence_and_code_2(tmp_path):
    done = run("evaluate", str(tmp_path), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert "*_seg-vert_msk.nii.gz" in done.stderr
    assert not (tmp_path / "out").exists()
    film = tmp_path / "film.png"
    done = run(
        "reconstruct",
        "--ap",
        str(film),
        "--lateral",
        str(film),
        "--landmarks",
        str(film),
        "--out",
        str(tmp_path / "out"),
    )
    assert done.returncode == 2
    assert "does not exist" in done.stderr


@pytest.mark.parametrize("name", ["embedded", "public_samples"])
def test_fetch_says_licence_and_size_before_it_starts(name, monkeypatch):

    monkeypatch.setattr(manifest, "fetch_subjects", lambda found: [])
    shown = CliRunner().invoke(app, ["fetch", name]).output
    assert "Licence: " in shown
    assert " MB in " in shown


@pytest.fixture(scope="module")
def pair(patient: Patient, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two simulated films, in DICOM and PNG, and their landmarks."""
    folder = tmp_path_factory.mktemp("films")
    films, views, isocentre = simulate_radiographs(patient.ct, pixel_mm=1.2, seed=1)
    write_radiographs(folder, films, views, landmarks.project_landmarks(*views, isocentre, patient.centroids))
    return folder


Change = Callable[[dict], object]
IMPOSSIBLE: dict[str, tuple[tuple[str, str], Change, str]] = {
    "two AP films": (
        ("ap.dcm", "ap.dcm"),
        lambda views: None,
        "ap.dcm is a frontal one by its view position, but it is given as the lateral one; exchange the two films",
    ),
    "one picture twice": (("ap.png", "ap.png"), lambda views: None, "one and the same picture: give two films"),
    "two AP views": (
        ("ap.dcm", "lateral.dcm"),
        lambda views: views["lateral"].update(name="pa"),
        "'lateral' view is named 'pa'; give one film from the front or back",
    ),
    "two people": (
        ("ap.dcm", "lateral.dcm"),
        lambda views: views["lateral"].update(pixel_mm=[1.6, 1.6]),
        "one film's pixel spacing or distances are wrong, or they show two people",
    ),
    "no level in common": (
        ("ap.dcm", "lateral.dcm"),
        lambda views: views["lateral"].update(centroids={"T4": [90, 90]}),
        "landmarks.json marks no vertebra in both views",
    ),
    "upside down": (
        ("ap.png", "lateral.png"),
        lambda views: [pixel.__setitem__(0, 139 - pixel[0]) for pixel in views["ap"]["centroids"].values()],
        "The levels of the AP film run from its foot to its top: turn the film, or correct the levels",
    ),
    "mirrored": (
        ("ap.png", "lateral.png"),
        lambda views: views["lateral"].update(s1_endplate={"anterior": [130, 90], "posterior": [130, 60]}),
        "further to the picture's right than its posterior side: the film is mirrored, or the marks are exchanged",
    ),
}


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_a_pair_that_cannot_be_ends_in_one_sentence(kind, pair, tmp_path):
    films, change, sentence = IMPOSSIBLE[kind]
    content = json.loads((pair / "landmarks.json").read_text())
    change(content["views"])
    (tmp_path / "landmarks.json").write_text(json.dumps(content))
    words = ["--ap", str(pair / films[0]), "--lateral", str(pair / films[1])]
    done = CliRunner().invoke(
        app, ["reconstruct", *words, "--landmarks", str(tmp_path / "landmarks.json"), "--out", str(tmp_path / "out")]
    )
    assert isinstance(done.exception, InputError) and sentence in str(done.exception)
    assert "\n" not in str(done.exception) and not (tmp_path / "out").exists()


def test_reconstruct_prints_the_posture_with_its_spread_and_the_warnings(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "load_network", lambda weights: (Blob(), {"network": "blob", "levels": ["L1", "L2"]}))
    words = ["--ap", str(pair / "ap.dcm"), "--lateral", str(pair / "lateral.dcm"), "--draws", "3", "--landmark-sd", "1"]
    done = CliRunner().invoke(
        app, ["reconstruct", *words, "--landmarks", str(pair / "landmarks.json"), "--out", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["value", "sd", "low", "high", "unit"]
    (cobb,) = (line.split() for line in lines if line.startswith("coronal_cobb"))
    with (tmp_path / "posture.json").open() as file:
        posture = json.load(file)
    said = posture["measures"]["coronal_cobb"]
    assert [float(cell) for cell in cobb[1:5]] == [said[name] for name in ("value", "sd", "low", "high")]
    assert cobb[5] == "deg" and posture["uncertainty"]["draws"] == 3 and "1 mm" in posture["uncertainty"]["cause"]
    cause = "clicks of 1 mm standard deviation in each view, and endplates that lean as differently as those of people held out do"
    assert f"sd, and low to high (95 %), are from {cause}." in lines
    assert any(line.startswith("Not measured: thoracic_kyphosis, ") for line in lines)
    assert "Warning: L3: the network has learned from no vertebra of this level." in done.stderr.splitlines()
    assert lines[-1].startswith("Wrote 3 vertebrae to ")


def test_evaluate_writes_the_promised_columns(patient, tmp_path):
    done = run("evaluate", str(patient.mask_path.parent), "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert list(table.columns) == ["subject", "level", "dice", "hd95_mm", "assd_mm", "nsd_1p5mm", "source"]
    assert set(table.source) <= {"ct", "phantom"}


def test_evaluate_takes_a_store_too_and_says_the_same(patient, tmp_path):
    folder, store = str(patient.mask_path.parent), str(tmp_path / "store")
    assert run("synthesize", folder, "--out", store).returncode == 0
    tables = []
    for source in (folder, store):
        done = run("evaluate", source, "--out", str(tmp_path / "out"))
        assert done.returncode == 0, done.stderr
        tables.append(pd.read_csv(tmp_path / "out" / "metrics.csv"))
    pd.testing.assert_frame_equal(*tables)
