"""Patterns find whose file is where; what is doubtful is refused in one sentence, and what is damaged is not used."""

from __future__ import annotations

import copy
import os
import re
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

from transvert.data import layout, manifest
from transvert.data.manifest_schema import Manifest
from transvert.imaging import mesh, volume
from transvert.io import InputError, sha256

CONTENT = {
    "name": "mine",
    "title": "Mine",
    "version": "1",
    "licence": "-",
    "citation": "-",
    "access": "By hand.",
    "layout": [
        {"role": "ct", "path": "{subject}/ct.nii.gz"},
        {"role": "mask", "path": "{subject}/mask.nii.gz", "convention": "verse"},
    ],
}
URL = "https://example.org/sets/scans.zip"
MIRRORED = "mirror/example.org/sets/scans.zip"


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mirror").mkdir()
    monkeypatch.setenv("TRANSVERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TRANSVERT_MIRROR", str(tmp_path / "mirror"))


def load(where: Path, **more: object) -> Manifest:
    path = where / "mine.yaml"
    path.write_text(yaml.safe_dump({**CONTENT, **more}), encoding="utf-8")
    return manifest.load_manifest(path)


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def put_zip(folder: Path, *names: str, url: str = URL) -> Path:
    path = folder / "mirror" / url.removeprefix("https://")
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, name.encode())
    return path


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
        ("{subject}/vertebrae_{level}.nii", "a/vertebrae_T12.nii", {"subject": "a", "level": "T12"}),
        ("{subject}/vertebrae_{level}.nii", "a/vertebrae_body.nii", None),
        ("{subject}/{level}.stl", "a/L1x.stl", None),
    ],
)
def test_what_a_path_stands_for(pattern: str, path: str, found: dict | None) -> None:
    match = layout.expression(pattern).fullmatch(path)
    assert (match and match.groupdict()) == found


OF_MASK = "Entry 2 of the layout of the data manifest mine.yaml"


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"path": "mask.nii"}, f"{OF_MASK}: 'path' must hold {{subject}}"),
        ({"path": "{subject}/{name}.nii"}, f"{OF_MASK}: 'path' must hold {{subject}}"),
        ({"path": "{subject"}, f"{OF_MASK}: 'path' must hold {{subject}}"),
        ({"path": "../{subject}.nii"}, f"{OF_MASK} names '../{{subject}}.nii', which must be a plain relative path"),
        ({"path": "/{subject}.nii"}, f"{OF_MASK} names '/{{subject}}.nii', which must be"),
        ({"path": "{subject}/{level}.nii"}, f"{OF_MASK} is a mask: a mask must have either the key 'convention' or"),
        ({"role": "ct"}, f"{OF_MASK} is a ct: a mask must have either"),
        (
            {"role": "ct", "path": "{subject}/{level}.nii"},
            f"{OF_MASK} is a ct: only a mask or a surface may have {{level}}",
        ),
        ({"convention": "mine"}, f"{OF_MASK} has the unknown convention 'mine'; use verse, totalseg"),
        ({"levels": ["L1", "L2"]}, f"{OF_MASK} is a mask: only a surface may have the key 'levels'."),
        ({"url": URL}, f"{OF_MASK} has the unknown key 'url'; the known ones are role, path"),
    ],
)
def test_layouts_that_make_no_sense(tmp_path: Path, entry: dict, sentence: str) -> None:
    entries = copy.deepcopy(CONTENT["layout"])
    entries[1] |= entry
    with pytest.raises(InputError, match=re.escape(sentence)) as told:
        load(tmp_path, layout=entries)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            {"archives": [{"url": "ftp://a/b"}]},
            "Archive 1 of the data manifest mine.yaml: 'url' must be an https address",
        ),
        ({"archives": [{"url": URL, "md5": "1"}]}, "'md5' must be 32 lower-case hexadecimal digits, not '1'."),
        ({"archives": [{"url": URL}, {"url": URL + "/scans.zip"}]}, "names two archives alike; remove one."),
        ({"archives": [{"url": URL}], "folder": "scans"}, "must not have a 'folder' beside 'files' or 'archives'."),
        ({"archives": []}, "must list at least one entry under 'archives'."),
    ],
)
def test_archives_that_make_no_sense(tmp_path: Path, more: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        load(tmp_path, **more)


# Folders


def test_a_folder_is_used_where_it_lies(tmp_path: Path) -> None:
    put(tmp_path / "scans", "b/ct.nii.gz", "b/mask.nii.gz", "a/mask.nii.gz", "notes.txt", "._c/ct.nii.gz")
    found = load(tmp_path, folder="scans")
    first, second = manifest.fetch_subjects(found)
    assert (first.name, first.ct, first.mask) == ("a", None, tmp_path / "scans/a/mask.nii.gz")
    assert (second.name, second.ct, second.convention) == ("b", tmp_path / "scans/b/ct.nii.gz", "verse")
    assert second.files[second.ct].role == "ct" and second.person == second.split == ""
    assert manifest.subject_names(found) == ["a", "b"]
    assert [subject.mask for subject in manifest.fetch_subjects(found, roles="ct")] == [None]
    assert [subject.name for subject in manifest.fetch_subjects(found, subjects="b")] == ["b"]
    assert not (tmp_path / "cache").exists(), "nothing was copied or recorded"
    assert str(tmp_path / "scans") in manifest.told_size(found)


def test_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="The folder .*absent of the manifest mine does not exist; correct 'folder'"):
        manifest.fetch_subjects(load(tmp_path, folder="absent"))
    put(tmp_path / "scans", "a/ct.nii.gz", "a/msk.nii.gz")
    found = load(tmp_path, folder="scans")
    with pytest.raises(InputError, match="No file in .*scans fits the path {subject}/mask.nii.gz of the role mask"):
        manifest.fetch_subjects(found)
    assert len(manifest.fetch_subjects(found, roles="ct")) == 1
    put(tmp_path / "scans", "a/mask.nii.gz")
    with pytest.raises(InputError, match="'c' is not a subject of the manifest mine"):
        manifest.fetch_subjects(found, subjects=["a", "c"])
    put(tmp_path / "scans", "Müller, H/ct.nii.gz")
    with pytest.raises(
        InputError, match="The path Müller, H/ct.nii.gz gives the subject id 'Müller, H', which must be"
    ):
        manifest.fetch_subjects(found)


def test_two_subjects_with_one_id(tmp_path: Path) -> None:
    entries = [{"role": "ct", "path": "**/{subject}/ct.nii.gz"}]
    put(tmp_path / "scans", "north/s1/ct.nii.gz", "south/s1/ct.nii.gz")
    with pytest.raises(
        InputError, match="^north/s1/ct.nii.gz and south/s1/ct.nii.gz are both the ct of the subject s1"
    ):
        manifest.fetch_subjects(load(tmp_path, layout=entries, folder="scans"))
    (tmp_path / "scans/south/s1").rename(tmp_path / "scans/south/S1")
    with pytest.raises(InputError, match="are both the ct of the subject S1: two subjects have one id"):
        manifest.fetch_subjects(load(tmp_path, layout=entries, folder="scans"))
    (tmp_path / "scans/south/S1").rename(tmp_path / "scans/south/s2")
    assert manifest.subject_names(load(tmp_path, layout=entries, folder="scans")) == ["s1", "s2"]


def test_a_set_that_is_put_there_by_hand(tmp_path: Path) -> None:
    found = load(tmp_path)
    with pytest.raises(InputError, match=r"Mine can't be fetched by a program: By hand\. Put it into .*cache/mine, so"):
        manifest.fetch_subjects(found)
    put(tmp_path / "cache/mine", "a/ct.nii.gz", "a/mask.nii.gz")
    assert [subject.name for subject in manifest.fetch_subjects(found)] == ["a"]


# Archives


def test_subjects_are_unpacked_one_by_one(tmp_path: Path) -> None:
    names = [f"{subject}/{file}.nii.gz" for subject in "abc" for file in ("ct", "mask")]
    put_zip(tmp_path, *names, "__MACOSX/d/ct.nii.gz", "a/unasked.txt")
    found = load(tmp_path, archives=[{"url": URL, "split": "training"}])
    assert manifest.subject_names(found) == ["a", "b", "c"]
    cache = tmp_path / "cache" / "mine"
    assert not cache.exists(), "the mirror's archive is used where it lies, and listing unpacks nothing"
    subjects = manifest.stream_subjects(found, progress=False)
    first = next(subjects)
    assert (first.name, first.split, first.ct.read_bytes()) == ("a", "training", b"a/ct.nii.gz")
    assert [path.name for path in cache.iterdir()] == ["a"] and len(list((cache / "a").iterdir())) == 2
    (last,) = manifest.fetch_subjects(found, subjects="c", roles="ct", progress=False)
    assert (last.ct.read_bytes(), last.mask) == (b"c/ct.nii.gz", None)
    assert sorted(path.name for path in cache.iterdir()) == ["a", "c"], "a worker unpacks what it asked for"
    assert [subject.name for subject in subjects] == ["b", "c"]
    with pytest.raises(InputError, match="'d' is not a subject of the manifest mine"):
        manifest.fetch_subjects(found, subjects="d")
    with pytest.raises(InputError, match="No file in its archives fits the path {subject}/x.nii of the role film"):
        manifest.fetch_subjects(
            load(tmp_path, archives=[{"url": URL}], layout=[{"role": "film", "view": "ap", "path": "{subject}/x.nii"}])
        )


def test_an_unpacked_file_that_was_cut_short_is_unpacked_again(tmp_path: Path) -> None:
    put_zip(tmp_path, "a/ct.nii.gz", "a/mask.nii.gz")
    found = load(tmp_path, archives=[{"url": URL}])
    (subject,) = manifest.fetch_subjects(found, progress=False)
    subject.ct.write_bytes(b"a/ct")
    assert manifest.fetch_subjects(found, progress=False)[0].ct.read_bytes() == b"a/ct.nii.gz"


def test_a_thousand_subjects_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"s{i:04}/{file}.nii.gz" for i in range(1000) for file in ("ct", "mask")]
    put_zip(tmp_path, *names)
    found = load(tmp_path, archives=[{"url": URL}])
    assert len(manifest.fetch_subjects(found, progress=False)) == 1000
    monkeypatch.setattr("transvert.cache.digests", lambda *_: pytest.fail("hashed again"))
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("unpacked again"))
    assert sum(subject.ct.is_file() for subject in manifest.stream_subjects(found, progress=False)) == 1000


def test_one_scan_in_two_archives_is_refused(tmp_path: Path) -> None:
    other = URL.replace("scans", "more")
    put_zip(tmp_path, "a/ct.nii.gz", "a/mask.nii.gz")
    put_zip(tmp_path, "b/ct.nii.gz", "x/a/ct.nii.gz", url=other)
    entries = [{"role": "ct", "path": "**/{subject}/ct.nii.gz"}]
    found = load(tmp_path, archives=[{"url": URL}, {"url": other}], layout=entries)
    with pytest.raises(InputError, match="a/ct.nii.gz and x/a/ct.nii.gz are both the ct of the subject a"):
        manifest.fetch_subjects(found, progress=False)


def test_a_changed_archive_is_refused(tmp_path: Path) -> None:
    put_zip(tmp_path, "a/ct.nii.gz", "a/mask.nii.gz")
    found = load(tmp_path, archives=[{"url": URL}])
    manifest.fetch_subjects(found, progress=False)
    put_zip(tmp_path, "a/ct.nii.gz", "a/mask.nii.gz", "b/ct.nii.gz")
    with pytest.raises(InputError, match="^The mirror's file .*scans.zip is not the file that came the first time"):
        manifest.fetch_subjects(found, progress=False)


def test_archives_that_cannot_be_read(tmp_path: Path) -> None:
    found = load(tmp_path, archives=[{"url": URL}])
    path = put_zip(tmp_path, "a/ct.nii.gz", "a/mask.nii.gz")
    whole = path.read_bytes()
    lock = tmp_path / "cache/_locks/mine.lock.json"
    for broken, sentence in (
        (whole[: len(whole) // 2], "scans.zip is damaged or no zip .*; delete it and fetch again"),
        (
            whole.replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"),
            "a/ct.nii.gz can't be unpacked from .*scans.zip .*encrypted",
        ),
        (whole.replace(b"a/ct.nii.gz", b"b/ct.nii.gz", 1), "can't be unpacked from"),
    ):
        path.write_bytes(broken)
        lock.unlink(missing_ok=True)
        with pytest.raises(InputError, match=sentence):
            manifest.fetch_subjects(found, progress=False)
        assert not (tmp_path / "cache/mine/a").is_dir() or not list((tmp_path / "cache/mine/a").iterdir())


# Vertices in one file and faces in another

POINTS = "0,0,0\n1.5e1,0,0\n0,15,-0.25\n0,0,0.1\n"
CORNERS = "1,3,2\n1,2,4\n2,3,4\n3,1,4\n"
PAIR = [
    {
        "role": "surface",
        "path": "{subject}/p.csv",
        "faces": "f.csv",
        "levels": ["L1", "L2"],
        "frame": "LPS",
        "unit": "mm",
    },
    {"role": "faces", "path": "{subject}/f.csv"},
]


def put_pair(folder: Path, points: str = POINTS, corners: str = CORNERS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "p.csv").write_text(points, encoding="utf-8")
    (folder / "f.csv").write_text(corners, encoding="utf-8")


def test_vertices_and_faces_become_one_surface(tmp_path: Path) -> None:
    found = load(tmp_path, layout=PAIR, folder="scans")
    put_pair(tmp_path / "scans/a")
    (subject,) = manifest.fetch_subjects(found, roles="surface")
    path = subject.surfaces[20]
    assert subject.surfaces == {20: path, 21: path} and path.is_relative_to(tmp_path / "cache/mine/a")
    surface = mesh.read_surface(path)
    assert surface.is_watertight and surface.volume == pytest.approx(15 * 15 * 0.1 / 6)
    np.testing.assert_array_equal(
        sorted(surface.vertices.tolist()), [[0, 0, 0], [0, 0, 0.1], [0, 15, -0.25], [15, 0, 0]]
    )
    file = subject.files[path]
    assert (file.frame, file.unit, file.levels, file.faces) == ("LPS", "mm", (20, 21), "")
    assert (file.sha256, file.bytes) == (sha256(path), path.stat().st_size), "samples are told by it"
    made = path.stat().st_mtime_ns
    assert manifest.fetch_subjects(found)[0].surfaces[20].stat().st_mtime_ns == made, "joined once"
    (tmp_path / "scans/a/f.csv").write_text("1,2,3\n", encoding="utf-8")
    changed = manifest.fetch_subjects(found)[0]
    assert changed.files[changed.surfaces[20]].sha256 != file.sha256, "and again when the faces have changed"


@pytest.mark.parametrize(
    ("points", "corners", "sentence"),
    [
        (POINTS, "0,1,2\n", "The corners of the faces in f.csv must be whole numbers from 1 to 4, the rows of p.csv"),
        (POINTS, "1,2,5\n", "The corners of the faces in f.csv must be whole numbers from 1 to 4, the rows of p.csv"),
        (POINTS, "1,2,2.5\n", "The corners of the faces in f.csv must be whole numbers from 1 to 4, the rows of p.csv"),
        (
            POINTS,
            "",
            "f.csv must hold rows of three finite numbers, parted by commas (loadtxt: input contained no data",
        ),
        (
            POINTS,
            "1,2,3\n1,2\n",
            "f.csv must hold rows of three finite numbers, parted by commas (the number of columns",
        ),
        (
            POINTS,
            "1,2,3,4\n",
            "f.csv must hold rows of three finite numbers, parted by commas (others are among them).",
        ),
        ("", CORNERS, "p.csv must hold rows of three finite numbers, parted by commas"),
        (
            "x,y,z\n" + POINTS,
            CORNERS,
            "p.csv must hold rows of three finite numbers, parted by commas (could not convert",
        ),
        ("0,0,nan\n" + POINTS, CORNERS, "p.csv must hold rows of three finite numbers, parted by commas (others are"),
        ("0 0 0\n", CORNERS, "p.csv must hold rows of three finite numbers, parted by commas"),
    ],
)
def test_tables_that_are_no_surface(tmp_path: Path, points: str, corners: str, sentence: str) -> None:
    put_pair(tmp_path / "scans/a", points, corners)
    with pytest.raises(InputError, match="^" + re.escape(sentence)) as told:
        manifest.fetch_subjects(load(tmp_path, layout=PAIR, folder="scans"))
    assert "\n" not in str(told.value)
    assert not [name for _, _, names in os.walk(tmp_path / "cache") for name in names]


def test_faces_that_a_subject_lacks(tmp_path: Path) -> None:
    put_pair(tmp_path / "scans/a")
    put_pair(tmp_path / "scans/b")
    (tmp_path / "scans/b/f.csv").unlink()
    found = load(tmp_path, layout=PAIR, folder="scans")
    first, second = manifest.stream_subjects(found, strict=False)
    assert first.surfaces and not first.problem
    assert second.problem == (
        "p.csv of b has its faces in f.csv, but no file of the role faces of this subject is named so; add it."
    )
    entry = PAIR[0] | {"path": "{subject}/{level}.csv"}
    with pytest.raises(InputError, match="Entry 1 of the layout of .* must have either one level or 'levels'"):
        load(tmp_path, layout=[entry, PAIR[1]], folder="scans")


# Masks of one vertebra each

GRID = np.array([[0, -1.5, 0, 20], [1.5, 0, 0, -30], [0, 0, 2.0, 5], [0, 0, 0, 1]])


def put_masks(folder: Path, shapes: dict[str, tuple[int, int, int]], affine: np.ndarray = GRID) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (level, shape) in enumerate(shapes.items()):
        data = np.zeros(shape, np.uint8)
        data[1:3, 1:3, number : number + 2] = 1
        nibabel.save(nibabel.Nifti1Image(data, affine), folder / f"vertebrae_{level}.nii.gz")


def test_masks_of_one_vertebra_become_one(tmp_path: Path) -> None:
    entries = [{"role": "mask", "path": "{subject}/vertebrae_{level}.nii.gz"}]
    put_masks(tmp_path / "scans/a", {level: (5, 6, 7) for level in ("S1", "L5", "T12")})
    found = load(tmp_path, layout=entries, folder="scans")
    (subject,) = manifest.fetch_subjects(found)
    assert subject.convention == "verse" and subject.files[subject.mask].role == "mask"
    read = volume.read_mask(subject.mask, subject.convention)
    whole = nibabel.load(subject.mask)
    np.testing.assert_allclose(whole.affine, GRID)
    # From the head down: T12 lies at 2 and 3, L5 at 1 and 2, S1 at 0 and 1, and the lower one has the voxels of both.
    assert [int(value) for value in whole.get_fdata()[1, 1]] == [26, 26, 24, 19, 0, 0, 0]
    assert set(np.unique(read.data)) == {0, 19, 24, 26}
    made = subject.mask.stat().st_mtime_ns
    assert manifest.fetch_subjects(found)[0].mask.stat().st_mtime_ns == made, "joined once"
    put_masks(tmp_path / "scans/a", {"L5": (5, 6, 7)})
    assert manifest.fetch_subjects(found)[0].mask != subject.mask, "and again when a part has changed"


def test_masks_that_do_not_fit_each_other(tmp_path: Path) -> None:
    entries = [{"role": "mask", "path": "{subject}/vertebrae_{level}.nii.gz"}]
    found = load(tmp_path, layout=entries, folder="scans")
    put_masks(tmp_path / "scans/a", {"L1": (5, 6, 7), "L2": (5, 6, 8)})
    with pytest.raises(InputError, match="vertebrae_L2.nii.gz of a lies on another grid than vertebrae_L1.nii.gz"):
        manifest.fetch_subjects(found)
    put_masks(tmp_path / "scans/a", {"L2": (5, 6, 7)}, np.eye(4))
    with pytest.raises(InputError, match="lies on another grid"):
        manifest.fetch_subjects(found)
    path = tmp_path / "scans/a/vertebrae_L2.nii.gz"
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"no mask", b""):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="vertebrae_L2.nii.gz of a is cut short or no NIfTI file"):
            manifest.fetch_subjects(found)
    assert not [name for _, _, names in os.walk(tmp_path / "cache") for name in names]
