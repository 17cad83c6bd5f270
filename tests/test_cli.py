"""The command line as a user types it."""

import subprocess
import sys

import pandas as pd
import pytest
from typer.testing import CliRunner

from transvert.cli import app


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
    from transvert import manifest

    monkeypatch.setattr(manifest, "fetch", lambda found: [])
    shown = CliRunner().invoke(app, ["fetch", name]).output
    assert "Licence: " in shown
    assert " MB in " in shown


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
