"""Each set that no test can fetch, as a small copy of exactly its layout, and a folder of one's own as the README says."""

from __future__ import annotations

import csv
import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

from transvert import io, levels
from transvert.data import cache, manifest
from transvert.imaging import volume
from transvert.io import InputError

SHAPE = (8, 9, 10)
AFFINE = np.array([[-1.0, 0, 0, 4], [0, -1.2, 0, 5], [0, 0, 2.0, -6], [0, 0, 0, 1]])


@pytest.fixture(autouse=True)
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv("TRANSVERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TRANSVERT_MIRROR", str(folder))
    return folder


def nifti(path: Path, labels: tuple[int, ...] = ()) -> bytes:
    """A CT without labels, or a mask with a block of each label, from head to tail."""
    data = np.linspace(-1000, 1200, np.prod(SHAPE)).reshape(SHAPE).astype(np.int16)
    if labels:
        data = np.zeros(SHAPE, np.uint8)
        for place, label in enumerate(labels):
            data[2:5, 2:5, SHAPE[2] - 2 * place - 2 : SHAPE[2] - 2 * place] = label
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, AFFINE), path)
    return path.read_bytes()


def put_zip(mirror: Path, url: str, members: dict[str, bytes]) -> None:
    path = mirror / url.removeprefix("https://")
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def check_readable(subject: manifest.Subject, seen: set[str]) -> None:
    """CT and mask of a subject lie on one grid, and the mask shows these vertebrae."""
    ct, mask = volume.read_ct(subject.ct), volume.read_mask(subject.mask, subject.convention)
    volume.check_same_grid(ct, mask)
    assert {levels.name(int(value)) for value in np.unique(mask.data) if value} == seen


# VerSe

VERSE = {
    "verse19": {
        "training": (
            "dataset-verse19training",
            ["sub-verse004", "sub-verse401_split-verse201", "sub-verse401_split-verse253"],
        ),
        "validation": ("dataset-verse19validation", ["sub-verse013"]),
        "test": ("dataset-verse19test", ["sub-verse059"]),
    },
    "verse20": {
        "training": ("dataset-01training", ["sub-gl003_dir-ax", "sub-verse500_dir-sag"]),
        "validation": ("dataset-02validation", ["sub-gl017"]),
        "test": ("dataset-03test", ["sub-verse563_dir-iso"]),
    },
}


def put_verse(tmp_path: Path, mirror: Path, name: str) -> dict[str, str]:
    """Three archives in the publisher's layout, with its previews; gives each scan's split."""
    splits = {}
    ct = nifti(tmp_path / "ct.nii.gz")
    mask = nifti(tmp_path / "mask.nii.gz", (19, 28, 20, 25))
    centroids = json.dumps([{"direction": ["L", "P", "S"]}, {"label": 20, "X": 3.0, "Y": 3.0, "Z": 2.5}]).encode()
    for archive in manifest.load_manifest(name).archives:
        top, scans = VERSE[name][archive.split]
        members = {f"{top}/": b"", f"__MACOSX/{top}/._rawdata": b""}
        for scan in scans:
            person = scan.split("_")[0]
            members[f"{top}/rawdata/{person}/{scan}_ct.nii.gz"] = ct
            members[f"{top}/derivatives/{person}/{scan}_seg-vert_msk.nii.gz"] = mask
            members[f"{top}/derivatives/{person}/{scan}_seg-subreg_ctd.json"] = centroids
            members[f"{top}/derivatives/{person}/{scan}_seg-vert_snp.png"] = b"a preview"
            splits[scan] = archive.split
        put_zip(mirror, archive.url, members)
    return splits


@pytest.mark.parametrize("name", VERSE)
def test_verse_has_its_official_splits(tmp_path: Path, mirror: Path, name: str) -> None:
    splits = put_verse(tmp_path, mirror, name)
    subjects = manifest.fetch_subjects(manifest.load_manifest(name), progress=False)
    assert {subject.name: subject.split for subject in subjects} == splits
    assert {subject.person for subject in subjects} == {scan.split("_")[0] for scan in splits}
    for subject in subjects:
        check_readable(subject, {"T12", "L1", "L6", "T13"})
        (points,) = [path for path, file in subject.files.items() if file.role == "centroids"]
        assert json.loads(points.read_text())[1]["label"] == 20 and subject.files[points].unit == "voxel"
        assert all(file.licence == "CC BY-SA 4.0" for file in subject.files.values())


def test_verse_states_no_hash_and_records_the_first(tmp_path: Path, mirror: Path) -> None:
    found = manifest.load_manifest("verse19")
    assert all(not archive.sha256 and not archive.bytes for archive in found.archives), "none is published: invent none"
    put_verse(tmp_path, mirror, "verse19")
    manifest.fetch_subjects(found, progress=False)
    recorded = json.loads(cache.lock_path("verse19").read_text(encoding="utf-8"))["files"]
    assert set(recorded) == {archive.url for archive in found.archives}
    put_zip(mirror, found.archives[1].url, {"dataset-verse19validation/rawdata/sub-x/sub-x_ct.nii.gz": b"changed"})
    with pytest.raises(InputError, match="dataset-verse19validation.zip is not the file that came the first time"):
        manifest.fetch_subjects(found, progress=False)


# TotalSegmentator


def test_totalsegmentator_joins_its_masks(tmp_path: Path, mirror: Path) -> None:
    found = manifest.load_manifest("totalsegmentator")
    (archive,) = found.archives
    assert len(archive.md5) == 32 and archive.bytes > 2e10
    names = {f"vertebrae_{name}": () for name in [*levels.NUMBERS, "S1"] if name not in ("T13", "L6", "sacrum")}
    seen = {"vertebrae_T12": (1,), "vertebrae_L1": (0, 1)}
    members = {"meta.csv": b"image_id;age;split\ns0000;50;train\ns0001;60;test\n"}
    for person, masks in (("s0000", names | seen), ("s0001", names)):
        members[f"{person}/ct.nii.gz"] = nifti(tmp_path / "ct.nii.gz")
        for name, labels in {**masks, "sacrum": (1,), "liver": (1,)}.items():
            members[f"{person}/segmentations/{name}.nii.gz"] = nifti(tmp_path / "mask.nii.gz", labels or (0,))
    put_zip(mirror, archive.url, members)
    with pytest.raises(
        InputError, match=f"not the file that the manifest describes: .*, not one of the MD5 {archive.md5}"
    ):
        manifest.fetch_subjects(found, progress=False)
    small = replace(found, archives=(replace(archive, md5="", bytes=0),))
    whole, without = manifest.fetch_subjects(small, progress=False)
    assert (whole.name, whole.convention) == ("s0000", "verse")
    check_readable(whole, {"T12", "L1"})
    with pytest.raises(InputError, match="has no vertebra"):
        volume.read_mask(without.mask, without.convention)


# Sets that are fetched by hand


def test_ctspine1k(tmp_path: Path) -> None:
    found = manifest.load_manifest("ctspine1k")
    with pytest.raises(
        InputError, match=r"can't be fetched by a program: Free, about 150 GB.*Put it into .*ctspine1k, so"
    ):
        manifest.fetch_subjects(found)
    data = cache.cache_folder() / "ctspine1k" / "raw_data"
    sources = {"COLONOG": "1.3.6.1.4.1.9328.50.4.0001", "HNSCC-3DCT-RT": "HN_P001", "MSD-T10": "liver_106"}
    for source, name in sources.items():
        nifti(data / "volumes" / source / f"{name}.nii.gz")
        nifti(data / "labels" / source / f"{name}_seg.nii.gz", (1, 8, 20, 25))
    subjects = manifest.fetch_subjects(found)
    assert [subject.name for subject in subjects] == sorted(sources.values())
    for subject in subjects:
        check_readable(subject, {"C1", "T1", "L1", "L6"})


def test_lidc_idri_says_how_to_get_labels() -> None:
    found = manifest.load_manifest("lidc_idri")
    with pytest.raises(InputError, match="it has no vertebra labels; make NIfTI volumes with `dcm2niix .* `TotalSegm"):
        manifest.fetch_subjects(found)
    data = cache.cache_folder() / "lidc_idri"
    nifti(data / "LIDC-IDRI-0001" / "ct.nii.gz")
    with pytest.raises(InputError, match="fits the path {subject}/vertebrae.nii.gz of the role mask"):
        manifest.fetch_subjects(found)
    nifti(data / "LIDC-IDRI-0001" / "vertebrae.nii.gz", (32, 31, 5))
    (subject,) = manifest.fetch_subjects(found)
    check_readable(subject, {"L1", "T12"})


ENDS = [[100 + i, 50 * i + 20, 200 + i, 50 * i + 25] for i in range(11)]


def put_corners(path: Path, rows: list[list[float]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(",".join(map(str, [*row, 0])) + "\n" for row in rows), encoding="utf-8")
    return path


def test_buu_lspine_has_pairs_of_films_with_corner_points() -> None:
    data = cache.cache_folder() / "buu_lspine"
    for name in ("0001-F-037Y", "0003-F-013Y"):
        put_corners(data / "AP" / f"{name}0.csv", ENDS[:10])
        put_corners(data / "LA" / f"{name}1.csv", ENDS)
        (data / "AP" / f"{name}0.jpg").write_bytes(b"an AP film")
        (data / "LA" / f"{name}1.jpg").write_bytes(b"a lateral film")
    first, second = manifest.fetch_subjects(manifest.load_manifest("buu_lspine"))
    assert (first.name, second.name, first.ct, first.mask) == ("0001-F-037Y", "0003-F-013Y", None, None)
    assert {view: path.read_bytes() for view, path in first.films.items()} == {
        "ap": b"an AP film",
        "lateral": b"a lateral film",
    }
    assert {file.view for file in first.files.values() if file.role == "landmarks"} == {"ap", "lateral"}


# One's own folder


def readme() -> str:
    return (io.share_folder("data_manifests") / "README.md").read_text(encoding="utf-8")


def test_ten_lines_describe_a_folder_of_ones_own(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", readme(), re.MULTILINE | re.DOTALL)
    assert len(text.splitlines()) == 10
    path = tmp_path / "my_clinic.yaml"
    path.write_text(text, encoding="utf-8")
    for name in ("p01", "p02"):
        nifti(tmp_path / "scans" / name / "ct.nii.gz")
        nifti(tmp_path / "scans" / name / "mask.nii.gz", (20, 21))
    subjects = manifest.fetch_subjects(manifest.load_manifest(path))
    assert [subject.name for subject in subjects] == ["p01", "p02"]
    for subject in subjects:
        check_readable(subject, {"L1", "L2"})
    # Surfaces, as the sentence below the example has it.
    (entry,) = re.findall(r"^`(\{role: surface.*\})`\.$", readme(), re.MULTILINE)
    surfaces = yaml.safe_load(text)
    surfaces["layout"] = [yaml.safe_load(entry)]
    path.write_text(yaml.safe_dump(surfaces), encoding="utf-8")
    (tmp_path / "scans/p01/L1.stl").write_bytes(b"solid")
    (subject,) = manifest.fetch_subjects(manifest.load_manifest(path))
    assert subject.surfaces == {20: tmp_path / "scans/p01/L1.stl"}
    assert subject.files[subject.surfaces[20]].frame == "LPS"


# What is said of the sets


def test_the_readme_tells_of_every_set() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| .* \| .* \| .* \|$", readme(), re.MULTILINE)
    assert sorted(rows) == manifest.available_manifests()
    for name in manifest.available_manifests():
        found = manifest.load_manifest(name)
        assert len(found.citation) > 40 and len(found.access) > 20 and found.licence


@pytest.mark.parametrize("name", manifest.available_manifests())
def test_each_line_of_a_manifest_can_be_read(name: str) -> None:
    path = io.share_folder("data_manifests") / f"{name}.yaml"
    long = [line for line in path.read_text(encoding="utf-8").splitlines() if len(line) > 120 and "url:" not in line]
    assert not long


def test_splits_name_subjects_and_levels() -> None:
    for path in (io.share_folder("data_manifests") / "splits").glob("*.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            assert all(levels.number(row["level"]) for row in csv.DictReader(file))
