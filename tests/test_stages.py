"""The steps: which subjects a folder holds, what is written about them, and what a step says where something is missing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import MIDDLES, Patient, store_as
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from transvert import levels, mesh, record, samples, stages, volume
from transvert.files import InputError, sha256
from transvert.manifest import Subject
from transvert.manifest_schema import DataFile
from transvert.samples import SIZE, SPACING_MM, Samples
from transvert.volume import Volume

L1, L2, L3 = 20, 21, 22
COLUMNS = ["subject", "level", "dice", "hd95_mm", "assd_mm", "nsd_1p5mm", "source"]


class Ball(nn.Module):
    """Predicts a ball of 15 mm, whatever it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))
        steps = (torch.arange(SIZE) - (SIZE - 1) / 2) * SPACING_MM
        x, y, z = torch.meshgrid(steps, steps, steps, indexing="ij")
        self.logits = 15 - torch.sqrt(x**2 + y**2 + z**2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(images), 1, SIZE, SIZE, SIZE)


@pytest.fixture(autouse=True)
def _runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSVERT_RUNS", str(tmp_path / "runs"))


def _alone(patient: Patient, name: str, path: Path) -> Subject:
    """A subject with a mask of L2 alone and no CT: small and fast."""
    part = Volume(np.where(patient.mask.data == L2, L2, 0).astype(np.uint8)[30:140, 20:100, 12:54], patient.mask.affine)
    return Subject(name, None, store_as(part, "RAS", path), "verse", {}, {})


# VerSe's layouts


def _lay(patient: Patient, mask: Path, ct: Path | None) -> None:
    for source, target in ((patient.mask_path, mask), (patient.ct_path, ct)):
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(b"" if source is None else source.read_bytes()[:64])  # names alone count here


def test_a_ct_beside_its_mask_is_found(patient: Patient, tmp_path: Path) -> None:
    ct = tmp_path / "sub-verse004" / "sub-verse004_ct.nii.gz"
    _lay(patient, ct.with_name("sub-verse004_seg-vert_msk.nii.gz"), ct)
    (found,) = stages.verse_subjects([tmp_path])
    assert (found.name, found.ct, found.convention) == ("sub-verse004", ct, "verse")
    assert found.mask == ct.with_name("sub-verse004_seg-vert_msk.nii.gz")


@pytest.mark.parametrize("start", ["", "derivatives", "derivatives/sub-verse500"])
def test_a_ct_below_rawdata_beside_derivatives_is_found(start: str, patient: Patient, tmp_path: Path) -> None:
    top = tmp_path / "dataset-verse20training"
    name = "sub-verse500_dir-ax"
    ct = top / "rawdata" / "sub-verse500" / f"{name}_ct.nii.gz"
    _lay(patient, top / "derivatives" / "sub-verse500" / f"{name}_seg-vert_msk.nii.gz", ct)
    (found,) = stages.verse_subjects([top / start])
    assert found.name == name and found.ct == ct


def test_a_mask_alone_and_another_s_ct_make_no_pair(patient: Patient, tmp_path: Path) -> None:
    _lay(patient, tmp_path / "derivatives" / "sub-a_seg-vert_msk.nii.gz", tmp_path / "rawdata" / "sub-b_ct.nii.gz")
    (found,) = stages.verse_subjects([tmp_path])
    assert found.name == "sub-a" and found.ct is None


def test_several_folders_are_read_in_order(patient: Patient, tmp_path: Path) -> None:
    for folder, name in (("b", "sub-2"), ("b", "sub-1"), ("a", "sub-3")):
        _lay(patient, tmp_path / folder / f"{name}_seg-vert_msk.nii.gz", None)
    assert [s.name for s in stages.verse_subjects([tmp_path / "b", tmp_path / "a"])] == ["sub-1", "sub-2", "sub-3"]


def test_an_absent_or_empty_folder_gets_its_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The folder .*none does not exist"):
        stages.verse_subjects([tmp_path / "none"])
    with pytest.raises(InputError, match=r"No file \*_seg-vert_msk\.nii\.gz lies in the folder"):
        stages.verse_subjects([tmp_path])


# Opening a subject


def test_a_ct_and_a_mask_are_opened_as_they_are(patient: Patient) -> None:
    ct, mask, source = stages.open_subject(patient.subject)
    assert source == "ct"
    assert_array_equal(mask.data, patient.mask.data)
    assert ct.data.shape == mask.data.shape


def test_a_mask_alone_becomes_a_phantom_of_its_own(patient: Patient, tmp_path: Path) -> None:
    one = _alone(patient, "sub-one", tmp_path / "m.nii.gz")
    painted, mask, source = stages.open_subject(one)
    assert source == "phantom" and set(np.unique(mask.data)) == {0, L2}
    again, _, _ = stages.open_subject(one)
    assert_array_equal(painted.data, again.data)
    for other in (stages.open_subject(replace(one, name="sub-other")), stages.open_subject(one, seed=1)):
        assert other[0].data.shape != painted.data.shape or not np.array_equal(other[0].data, painted.data)


def test_surfaces_are_placed_by_their_frame_and_unit(patient: Patient, tmp_path: Path) -> None:
    surfaces, files = {}, {}
    for level, frame, factor in ((L1, "LPS", 1.0), (L2, "RAS", 0.001), (L3, "LPS", 0.001)):
        surface = mesh.surface(patient.mask.data == level, patient.mask.affine)
        surface.vertices = surface.vertices * ([-1, -1, 1] if frame == "LPS" else [1, 1, 1]) * factor
        path = mesh.write_surface(tmp_path / f"{levels.name(level)}.stl", surface)
        unit = "mm" if factor == 1 else "m"
        surfaces[level] = path
        files[path] = DataFile("surface", "sub-stl", "0" * 64, 1, "x", "https://x.org/a", level, frame=frame, unit=unit)
    painted, mask, source = stages.open_subject(Subject("sub-stl", None, None, "", surfaces, files))
    assert source == "phantom"
    for level in (L1, L2, L3):
        where = mask.world(np.argwhere(mask.data == level))
        assert_allclose(where.mean(0), patient.centroids[level], atol=0.5)
        reach = np.array([where.min(0), where.max(0)]) - np.array(MIDDLES[level])
        assert_allclose(reach[:, 0], [-28, 42], atol=2)  # the long process is on the right
        assert_allclose(reach[:, 1], [-34, 29], atol=2)  # the spinous process is behind
    assert not mask.data[[0, -1]].any() and not mask.data[:, [0, -1]].any() and not mask.data[..., [0, -1]].any()
    assert samples.cut(painted, mask, "sub-stl", source=source).levels.tolist() == [L1, L2, L3]


def test_a_subject_with_nothing_and_one_on_two_grids_get_their_sentence(patient: Patient, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="The subject sub-x has neither a mask nor surfaces of vertebrae"):
        stages.open_subject(Subject("sub-x", patient.ct_path, None, "", {}, {}))
    shifted = patient.mask.affine.copy()
    shifted[0, 3] += 5
    mask = store_as(Volume(patient.mask.data, shifted), "RAS", tmp_path / "m.nii.gz")
    with pytest.raises(
        InputError, match=r"The CT sub-box_ct\.nii\.gz \(.*mm\) and the mask \(.*\) lie on different grids"
    ):
        stages.open_subject(replace(patient.subject, mask=mask))


# Into a store


def test_synthesize_fills_a_store_and_names_what_it_could_not(patient: Patient, tmp_path: Path) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(patient.mask_path.read_bytes()[:3000])
    bad = Subject("sub-bad", None, broken, "verse", {}, {})
    good = _alone(patient, "sub-good", tmp_path / "m.nii.gz")
    notes = stages.synthesize([bad, good], tmp_path / "store", progress=False)
    assert len(notes) == 1 and notes[0].startswith("sub-bad: broken.nii.gz is cut short")
    index = samples.read_index(tmp_path / "store")
    assert list(zip(index.subject, index.level, index.source, strict=True)) == [("sub-good", "L2", "phantom")]
    with pytest.raises(InputError, match=r"No subject could be synthesised\. sub-bad: broken"):
        stages.synthesize([bad], tmp_path / "other", progress=False)
    assert not (tmp_path / "other").exists()


def test_a_split_holds_whole_subjects_out(box_samples: Samples, tmp_path: Path) -> None:
    one = box_samples.chosen([L2])
    for n in range(6):
        samples.write(tmp_path, replace(one, subject=f"sub-{n}"))
    made = stages.split(samples.read_index(tmp_path), "subjects")
    assert dict(zip(made.subject, made.split, strict=True)) == {
        **{f"sub-{n}": "train" for n in (0, 1, 2, 3, 5)},
        "sub-4": "held_out_subject",
    }
    train = stages.chosen(tmp_path, made[made.split == "train"])
    assert [s.subject for s in train] == [f"sub-{n}" for n in (0, 1, 2, 3, 5)]
    with pytest.raises(InputError, match="There is no split 'none': none.csv is not among data_manifests/splits"):
        stages.split(made, "none")
    with pytest.raises(InputError, match="The split 'demo' leaves nothing to train on in this store"):
        stages.split(samples.read_index(tmp_path), "demo")


# Evaluation


def test_metrics_have_the_promised_columns_and_six_digits(patient: Patient, tmp_path: Path) -> None:
    cut = Volume(patient.mask.data.copy(), patient.mask.affine)
    cut.data[cut.data == L1] = 0
    low = int(np.argwhere(cut.data == L3)[:, 2].mean())
    affine = cut.affine.copy()
    affine[:3, 3] = cut.world([0, 0, low])
    border = store_as(Volume(cut.data[:, :, low:].copy(), affine), "LPS", tmp_path / "cut.nii.gz")
    bad = tmp_path / "bad.nii.gz"
    bad.write_text("no volume")
    said: list[str] = []
    table = stages.evaluate(
        [
            Subject("sub-bad", None, bad, "verse", {}, {}),
            patient.subject,
            Subject("sub-cut", None, border, "verse", {}, {}),
        ],
        Ball(),
        tmp_path / "out",
        say=said.append,
        progress=False,
    )
    written = pd.read_csv(tmp_path / "out" / "metrics.csv")
    assert list(table.columns) == list(written.columns) == list(stages.COLUMNS) == COLUMNS
    assert list(zip(written.subject, written.level, written.source, strict=True)) == [
        *(("sub-box", name, "ct") for name in ("L1", "L2", "L3")),
        ("sub-cut", "L2", "phantom"),
    ]
    assert written.dice.between(0.2, 0.9).all() and np.isfinite(written[COLUMNS[2:6]]).all(axis=None)
    assert said[0].startswith("sub-bad: bad.nii.gz is not a NIfTI file")
    assert said[1:] == ["sub-cut: L3: cut by the volume's border, skipped."]
    assert (tmp_path / "out" / "skipped.txt").read_text().splitlines() == said


def test_nothing_to_evaluate_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    bad = tmp_path / "bad.nii.gz"
    bad.write_text("no volume")
    with pytest.raises(InputError, match=r"No subject could be evaluated\. sub-bad: bad\.nii\.gz is not a NIfTI"):
        stages.evaluate(
            [Subject("sub-bad", None, bad, "verse", {}, {})],
            Ball(),
            tmp_path / "out",
            say=lambda _: None,
            progress=False,
        )
    assert not (tmp_path / "out").exists()


def test_a_perfect_and_an_empty_prediction_score_as_such(box_samples: Samples) -> None:
    two = box_samples.chosen([L1, L2])
    truth = two.targets()
    table = stages.score(two, np.stack([truth[0], np.zeros_like(truth[1])]).astype(np.float32))
    assert table.dice.tolist() == [1, 0] and table.nsd_1p5mm.tolist() == [1, 0]
    assert table.hd95_mm.tolist() == [0, np.inf] and table.level.tolist() == ["L1", "L2"]


def test_hulls_hold_the_vertebra_and_throw_its_shadows(box_samples: Samples) -> None:
    targets, hulls = box_samples.targets(), stages.hulls(box_samples)
    assert hulls.shape == targets.shape and hulls.dtype == bool
    assert not (targets & ~hulls).any()
    assert (hulls.sum((1, 2, 3)) > 1.2 * targets.sum((1, 2, 3))).all()
    for axis in (1, 2):
        assert_array_equal(hulls.any(axis), targets.any(axis))


def test_the_shipped_network_opens_and_others_are_asked_for(tmp_path: Path) -> None:
    network, card = stages.open_network("shipped")
    assert isinstance(network, nn.Module) and card["network"] == "transvert_lift"
    with pytest.raises(InputError, match="do not exist; train some with notebook 02"):
        stages.open_network(tmp_path / "none.safetensors")


# The record of a run


def test_a_step_names_the_notebook_that_should_have_run(tmp_path: Path) -> None:
    stage = record.Stage("mine", "02_train_transvert", {})
    with pytest.raises(InputError) as caught:
        stage.need("01_drr_synthesis", "store", "index.parquet")
    assert str(caught.value) == (
        "The run 'mine' has no 01_drr_synthesis/store/index.parquet: "
        'run notebooks/01_drr_synthesis.ipynb with run="mine" first.'
    )
    made = tmp_path / "runs" / "mine" / "01_drr_synthesis" / "store"
    made.mkdir(parents=True)
    assert stage.need("01_drr_synthesis", "store") == made


def test_a_step_leaves_its_record_and_no_absolute_path(patient: Patient, tmp_path: Path) -> None:
    weights = tmp_path / "somewhere" / "w.safetensors"
    parameters = {"run": "mine", "steps": 3, "weights": str(weights), "folders": [str(tmp_path / "data"), "data/here"]}
    stage = record.Stage("mine", "03_evaluate_dice", parameters)
    stage.read(patient.mask_path)
    record.write_table(stage.folder / "metrics.csv", pd.DataFrame({"dice": [1 / 3]}))
    files = stage.finish(dice=0.5, dice_held_out=float("nan"))
    assert files == [tmp_path / "runs/mine/03_evaluate_dice" / name for name in ("metrics.csv", "run.json")]
    assert (stage.folder / "metrics.csv").read_text() == "dice\n0.333333\n"
    text = (stage.folder / "run.json").read_text()
    said = json.loads(text)
    assert said["schema"] == "transvert-run/1"
    assert (said["run"], said["stage"], said["results"]) == (
        "mine",
        "03_evaluate_dice",
        {"dice": 0.5, "dice_held_out": None},
    )
    assert said["inputs_sha256"] == {
        f"{patient.mask_path.parent.name}/{patient.mask_path.name}": sha256(patient.mask_path)
    }
    assert said["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert said["parameters"]["steps"] == 3
    assert said["parameters"]["weights"] == "w.safetensors" and said["parameters"]["folders"] == ["data", "data/here"]
    assert str(tmp_path) not in text and str(Path.home()) not in text and str(Path(record.__file__).parent) not in text
    assert parameters["weights"] == str(weights)  # the caller's own are left alone


def test_runs_are_kept_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert record.runs_folder() == tmp_path / "runs"
    monkeypatch.delenv("TRANSVERT_RUNS")
    assert record.runs_folder().name == "runs"
    assert (record.runs_folder().parent / "pyproject.toml").exists() or record.runs_folder().parent == Path.cwd()


def test_the_whole_of_a_subject_from_files_to_table(patient: Patient, tmp_path: Path) -> None:
    """VerSe's folders, a network, a table: what the command line does."""
    top = tmp_path / "verse"
    for source, target in (
        (patient.ct_path, top / "rawdata" / "sub-box" / "sub-box_ct.nii.gz"),
        (patient.mask_path, top / "derivatives" / "sub-box" / "sub-box_seg-vert_msk.nii.gz"),
    ):
        target.parent.mkdir(parents=True)
        shutil.copy(source, target)
    table = stages.evaluate(stages.verse_subjects([top]), Ball(), tmp_path / "out", progress=False)
    assert set(table.source) == {"ct"} and table.level.tolist() == ["L1", "L2", "L3"]
    assert volume.read_ct(top / "rawdata" / "sub-box" / "sub-box_ct.nii.gz").data.shape == patient.ct.data.shape
