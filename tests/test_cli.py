"""The command line as a user types it."""

from __future__ import annotations

import errno
import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
import typer
from conftest import Patient, Seeing
from typer.testing import CliRunner

import transvert
from transvert import cli
from transvert.cli import app
from transvert.clinical import landmarks
from transvert.clinical.reconstruct import simulate_radiographs, write_radiographs
from transvert.data import fetch
from transvert.io import InputError
from transvert.model import networks


def test_eight_commands_with_at_most_32_options_that_all_have_help() -> None:
    commands = typer.main.get_command(app).commands
    names = {"reproduce", "fetch", "synthesize", "train", "evaluate", "calibrate", "detect", "reconstruct"}
    assert set(commands) == names
    options = [option for command in commands.values() for option in command.params if option.opts[0].startswith("--")]
    assert len(options) <= 32 and all(option.help for option in options)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["evaluate", "empty"], "empty"),
        (["reconstruct", "--ap", "film.png", "--lateral", "film.png", "--landmarks", "film.png"], "does not exist"),
    ],
)
def test_bad_input_ends_in_one_sentence_and_code_2(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(sys, "argv", ["transvert", *words, "--out", "out"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    told = capsys.readouterr().err
    assert sentence in told and told.strip().count("\n") == 0 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("--version", 0, f"transvert {transvert.__version__}"),
        ("-h", 0, "reproducible companion"),
        ("synthesize x --out s --workers -1", 2, "greater than or equal to 0"),
        ("reconstruct --ap a --lateral b --landmarks c --out d --landmark-sd inf", 2, "less than or equal to 50"),
    ],
)
def test_short_options_and_numbers_out_of_range(words: str, code: int, said: str) -> None:
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == code and said in " ".join(done.output.replace("│", "").split())


@pytest.mark.parametrize("words", ["evaluate embedded", "synthesize embedded", "train store", "calibrate store folds"])
@pytest.mark.parametrize("out", ["file", "file/out", "/proc/out"])
def test_an_output_that_cannot_be_written_is_told_first(words: str, out: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = CliRunner().invoke(app, [*words.split(), "--out", str(tmp_path / out)])
    assert isinstance(done.exception, InputError) and " can't be written (" in str(done.exception)


def test_a_disk_that_fills_up_ends_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "a.csv")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err == (
        "a.csv can't be written (No space left on device); what was written before is incomplete. "
        "Make room and run this again.\n"
    )


@pytest.mark.parametrize("name", ["embedded", "public_samples"])
def test_fetch_shows_licence_and_size_before_it_starts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "fetch_subjects", lambda found: [])
    shown = CliRunner().invoke(app, ["fetch", name]).output
    assert "Licence: " in shown and " MB\n" in shown


@pytest.fixture(scope="module")
def pair(patient: Patient, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two simulated films, in DICOM and PNG, and their landmarks."""
    folder = tmp_path_factory.mktemp("films")
    films, views, isocentre = simulate_radiographs(patient.ct, pixel_mm=1.2, seed=1)
    write_radiographs(folder, films, views, landmarks.project_landmarks(*views, isocentre, patient.centroids))
    return folder


@pytest.mark.parametrize(
    ("lateral", "change", "sentence"),
    [
        ("ap.dcm", {}, "ap.dcm is a frontal one by its view position, but it is given as the lateral one; exchange"),
        ("lateral.dcm", {"pixel_mm": [1.6, 1.6]}, "pixel spacing or distances are wrong, or they show two people"),
        ("lateral.dcm", {"centroids": {"T4": [90, 90]}}, "landmarks.json marks no vertebra in both views"),
    ],
)
def test_an_impossible_pair_ends_in_one_sentence(
    lateral: str, change: dict, sentence: str, pair: Path, tmp_path: Path
) -> None:
    content = json.loads((pair / "landmarks.json").read_text())
    content["views"]["lateral"].update(change)
    (tmp_path / "landmarks.json").write_text(json.dumps(content))
    words = ["--ap", pair / "ap.dcm", "--lateral", pair / lateral, "--landmarks", tmp_path / "landmarks.json"]
    done = CliRunner().invoke(app, ["reconstruct", *map(str, words), "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, InputError) and sentence in str(done.exception)
    assert "\n" not in str(done.exception) and not (tmp_path / "out").exists()


def test_reconstruct_prints_the_posture_with_its_spread_and_the_warnings(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = (Seeing(sees=False), {"network": "blob", "levels": ["L1", "L2"]})
    monkeypatch.setattr(networks, "load_network", lambda weights: made)
    words = ["--ap", pair / "ap.dcm", "--lateral", pair / "lateral.dcm", "--landmarks", pair / "landmarks.json"]
    words += ["--out", tmp_path, "--draws", 3, "--landmark-sd", 1]
    done = CliRunner().invoke(app, ["reconstruct", *map(str, words)])
    assert done.exit_code == 0, done.output
    # The first result, before the draws begin, and the last one.
    first, _, last = done.stdout.partition(
        f"Wrote shapes and posture to {tmp_path}. Their uncertainty, from 3 repetitions, and the report follow.\n\n"
    )
    assert first.splitlines()[0].split() == ["value", "unit"]
    lines = last.splitlines()
    assert lines[0].split() == ["value", "sd", "low", "high", "unit"]
    first_cobb, cobb = (
        next(line.split() for line in part.splitlines() if line.startswith("coronal_cobb")) for part in (first, last)
    )
    assert first_cobb[1] == cobb[1]
    assert re.search(r"Case: <strong>case [0-9a-f]{8}</strong>", (tmp_path / "report.html").read_text())
    posture = json.loads((tmp_path / "posture.json").read_text())
    said = posture["measures"]["coronal_cobb"]
    assert [float(cell) for cell in cobb[1:5]] == [said[name] for name in ("value", "sd", "low", "high")]
    cause = posture["uncertainty"]["cause"]
    assert cobb[5] == "deg" and posture["uncertainty"]["draws"] == 3 and "1 mm" in cause
    assert f"sd, and low to high (95 %), are from {cause}." in lines
    assert any(line.startswith("Not measured: thoracic_kyphosis, ") for line in lines)
    assert "Warning: L3: the network was not trained on this level." in done.stderr.splitlines()
    assert lines[-1].startswith("Wrote 3 vertebrae to ")


def test_evaluate_takes_a_folder_and_its_store_and_finds_the_same(patient: Patient, tmp_path: Path) -> None:
    folder, store = str(patient.mask_path.parent), str(tmp_path / "store")
    runner, tables = CliRunner(), []
    assert runner.invoke(app, ["synthesize", folder, "--out", store]).exit_code == 0
    for source in (folder, store):
        done = runner.invoke(app, ["evaluate", source, "--out", str(tmp_path / "out")], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        tables.append(pd.read_csv(tmp_path / "out" / "metrics.csv"))
    pd.testing.assert_frame_equal(*tables)
    assert list(tables[0].columns) == ["subject", "level", "dice", "hd95_mm", "assd_mm", "nsd_1p5mm", "source"]
    assert set(tables[0].source) == {"ct"}
