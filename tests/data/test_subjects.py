"""What a user names becomes subjects; a subject becomes a CT or a phantom with its mask, in RAS millimetres."""

from __future__ import annotations

import functools
import os
import zlib
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import trimesh
import yaml
from conftest import MIDDLES, Patient, axes_mm, inside_vertebra, part_alone, store_as
from numpy.testing import assert_allclose, assert_array_equal

from transvert import levels
from transvert.data import fetch, subjects
from transvert.data.manifest import DataFile, Subject
from transvert.imaging import mesh
from transvert.imaging.volume import Volume, cube_affine
from transvert.io import InputError
from transvert.phantom import paint

L1, L2, L3, SACRUM = 20, 21, 22, 26


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSVERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TRANSVERT_MIRROR", raising=False)


def put(folder: Path, *names: str) -> None:
    """Files whose names alone count."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize("start", ["", "derivatives", "derivatives/sub-7"])
def test_a_folder_in_verse_s_layout(tmp_path: Path, start: str) -> None:
    top = tmp_path / "verse"
    put(top / "derivatives/sub-7", "sub-7_split-1_seg-vert_msk.nii.gz", "sub-7_split-2_seg-vert_msk.nii.gz")
    put(top / "rawdata/sub-7", "sub-7_split-1_ct.nii.gz")
    put(top / "rawdata/sub-9", "sub-9_ct.nii.gz")
    found = subjects.find_subjects(top / start)
    first, second = found
    assert len(found) == 2 and (first.name, second.name) == ("sub-7_split-1", "sub-7_split-2")
    assert (first.ct, second.ct) == (top / "rawdata/sub-7/sub-7_split-1_ct.nii.gz", None)
    assert first.mask == top / "derivatives/sub-7/sub-7_split-1_seg-vert_msk.nii.gz"
    assert (first.convention, first.person, second.person) == ("verse", "sub-7", "sub-7")


def test_a_ct_beside_its_mask_is_found_and_two_of_one_name_cost_no_other(tmp_path: Path) -> None:
    put(tmp_path / "a", "sub-1_ct.nii.gz", "sub-1_seg-vert_msk.nii.gz", "sub-2_seg-vert_msk.nii.gz")
    put(tmp_path / "b", "sub-2_seg-vert_msk.nii.gz", "sub-3_seg-vert_msk.nii.gz")
    one, two, three = subjects.find_subjects(tmp_path)
    assert one.ct == tmp_path / "a/sub-1_ct.nii.gz" and three.mask and not (one.problem or three.problem)
    assert "are both the mask of the subject sub-2; rename one." in two.problem
    with pytest.raises(InputError, match="are both the mask of the subject sub-2"):
        subjects.load_subject(two)
    several = list(subjects.find_subjects([tmp_path / "b", tmp_path / "a"]))
    assert [subject.name for subject in several] == ["sub-2", "sub-3", "sub-1", "sub-2"]
    assert [bool(subject.problem) for subject in several] == [False, False, False, True]


@pytest.mark.parametrize("name", ["sub-1_ct.nii", "sub-1_CT.nii.gz", "sub-1_dir-ax_ct.nii.gz", "ct.nii"])
def test_a_ct_that_is_named_otherwise_is_never_replaced_by_a_phantom(name: str, tmp_path: Path) -> None:
    put(tmp_path / "set/sub-1", name, "sub-1_seg-vert_msk.nii.gz")
    put(tmp_path / "set/sub-12", "sub-12_seg-vert_msk.nii.gz")
    one, other = subjects.find_subjects(tmp_path / "set")
    assert one.problem.endswith(f"sub-1/{name} is not read as its CT: name it sub-1_ct.nii.gz, or move it away.")
    assert not other.problem and other.mask


@pytest.mark.parametrize("name", [b"m\xfcller", b"=HYPERLINK(1)", b"a b"])
def test_a_name_that_can_t_be_one_costs_no_other_subject(name: bytes, tmp_path: Path) -> None:
    put(tmp_path / "set", "sub-1_seg-vert_msk.nii.gz")
    (tmp_path / "set" / os.fsdecode(name + b"_seg-vert_msk.nii.gz")).touch()
    good, bad = sorted(subjects.find_subjects(tmp_path / "set"), key=lambda subject: subject.problem)
    assert good.name == "sub-1" and not good.problem
    assert "must be letters, digits" in bad.problem and bad.name.startswith("'")
    (bad.name + bad.problem).encode("utf-8")


def put_totalsegmentator(patient: Patient, folder: Path, multilabel: bool = False) -> None:
    """A CT and TotalSegmentator's output: one file a structure, or one multilabel file."""
    (folder / "segmentations").mkdir(parents=True)
    (folder / "ct.nii.gz").write_bytes(patient.ct_path.read_bytes())
    numbers = {L1: 31, L2: 30, L3: 29}
    whole = np.zeros_like(patient.mask.data)
    for level, number in numbers.items():
        found = (patient.mask.data == level).astype(np.uint8)
        whole[found > 0] = number
        if not multilabel:
            name = f"segmentations/vertebrae_{levels.name(level)}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(found, patient.mask.affine), folder / name)
    if multilabel:
        nibabel.save(nibabel.Nifti1Image(whole, patient.mask.affine), folder / "segmentations.nii.gz")


def test_folders_of_totalsegmentator_output(patient: Patient, tmp_path: Path) -> None:
    put_totalsegmentator(patient, tmp_path / "scans/p1")
    put_totalsegmentator(patient, tmp_path / "scans/p2", multilabel=True)
    for source, names in (("scans", ["p1", "p2"]), ("scans/p1", ["p1"])):
        found = subjects.find_subjects(tmp_path / source)
        assert len(found) == len(names) and [subject.name for subject in found] == names
        for subject in found:
            ct, mask, kind = subjects.load_subject(subject)
            assert kind == "ct" and ct.data.shape == mask.data.shape
            assert_array_equal(mask.data, patient.mask.data)
    (tmp_path / "scans/p1/segmentations/vertebrae_L1.nii.gz").write_bytes(b"no mask")
    bad, good = subjects.find_subjects(tmp_path / "scans")
    assert "vertebrae_L1.nii.gz of p1 is cut short or no NIfTI file" in bad.problem and not good.problem


def test_a_manifest_by_path_and_by_name(tmp_path: Path, patient: Patient) -> None:
    terms = dict.fromkeys(("title", "version", "licence", "citation", "access"), "-")
    (tmp_path / "scans/one").mkdir(parents=True)
    (tmp_path / "scans/one/mask.nii.gz").write_bytes(patient.mask_path.read_bytes())
    layout = [{"role": "mask", "path": "{subject}/mask.nii.gz", "convention": "verse"}]
    content = {**terms, "name": "mine", "folder": "scans", "layout": layout}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    found = subjects.find_subjects(str(tmp_path / "mine.yaml"))
    assert len(found) == 1 and [subject.name for subject in found] == ["one"]
    assert len(subjects.find_subjects("embedded")) == 2, "nothing is fetched before it is asked for"
    assert len(subjects.find_subjects(["public_samples", tmp_path / "mine.yaml"])) == 15
    assert not (tmp_path / "cache").exists()


def test_a_source_without_subjects_gets_its_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds neither VerSe's masks \(.*\) nor TotalSegmentator's output \("):
        subjects.find_subjects(tmp_path / "empty")
    with pytest.raises(
        InputError, match=r"^There is no folder or data manifest 'nowhere'; .* `transvert fetch` brings: buu_"
    ):
        subjects.find_subjects("nowhere")
    with pytest.raises(InputError, match=r"absent\.yaml does not exist"):
        subjects.find_subjects([tmp_path / "absent.yaml"])


def test_a_ct_and_a_mask_are_read_as_they_are(patient: Patient, tmp_path: Path) -> None:
    ct, mask, source = subjects.load_subject(patient.subject)
    assert source == "ct" and ct.data.shape == mask.data.shape
    assert_array_equal(mask.data, patient.mask.data)
    with pytest.raises(InputError, match="The subject sub-x has neither a mask nor surfaces of vertebrae"):
        subjects.load_subject(Subject("sub-x", patient.ct_path))
    shifted = patient.mask.affine.copy()
    shifted[0, 3] += 5
    mask_path = store_as(Volume(patient.mask.data, shifted), "RAS", tmp_path / "m.nii.gz")
    with pytest.raises(InputError, match=r"The CT sub-box_ct\.nii\.gz .* and the mask \(.*\) lie on different grids"):
        subjects.load_subject(replace(patient.subject, mask=mask_path))


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of the phantoms that are painted; here each is its mask, for painting takes seconds."""
    seeds: list[int] = []
    monkeypatch.setattr(paint, "paint_phantom", lambda mask, seed: seeds.append(seed) or mask)
    return seeds


def test_a_mask_alone_becomes_a_phantom_of_its_own(patient: Patient, tmp_path: Path, painted: list[int]) -> None:
    one = part_alone(patient, "sub-one", tmp_path / "m.nii.gz")
    phantom, mask, source = subjects.load_subject(one)
    assert source == "phantom" and phantom is mask and set(np.unique(mask.data)) == {0, L2}
    subjects.load_subject(one)
    subjects.load_subject(replace(one, name="sub-other"))
    subjects.load_subject(one, seed=1)
    assert painted[0] == painted[1] and len(set(painted)) == 3


def test_a_cropped_ct_stands_in_a_painted_body_and_unused_labels_go(patient: Patient, tmp_path: Path) -> None:
    low, high = (f(np.argwhere(patient.mask.data), axis=0) for f in (np.min, np.max))
    box = tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))
    affine = patient.mask.affine.copy()
    affine[:3, 3] = patient.mask.world(low)
    mask_path = store_as(Volume(patient.mask.data[box], affine), "RAS", tmp_path / "m.nii.gz")
    hu = np.full(patient.mask.data[box].shape, 300, np.int16)
    hu[0, 0, 0] = -1000  # At a corner, which is not shown.
    ct_path = store_as(Volume(hu, affine), "RAS", tmp_path / "ct.nii.gz")
    file = DataFile(role="mask", subject="a", url="https://a.org/m", convention="verse", cropped=True, without=["L1"])
    ct, mask, _ = subjects.load_subject(Subject("a", ct_path, mask_path, "verse", files={mask_path: file}))
    assert mask.data.shape == tuple(high - low + 3) and not mask.data[[0, -1]].any()
    assert set(np.unique(mask.data)) == {0, L2, L3}
    body = paint.paint_phantom(mask, zlib.crc32(b"a/0"))
    ends = Volume(hu, affine).corners()
    places = ct.world(np.moveaxis(np.indices(ct.data.shape), 0, -1))
    depth = np.minimum(places - ends.min(0), ends.max(0) - places).min(-1)
    assert_array_equal(ct.data[depth < 0], body.data[depth < 0])
    assert (ct.data[depth > subjects.BLEND_MM] == 300).all() and (depth > subjects.BLEND_MM).any()
    rim = (depth > 2) & (depth < subjects.BLEND_MM)
    share = depth[rim] / subjects.BLEND_MM
    assert_allclose(ct.data[rim], (1 - share) * body.data[rim] + share * 300, atol=1)
    assert_allclose(mask.world(np.argwhere(mask.data == L2)).mean(0), patient.centroids[L2], atol=1e-4)


def frame_axes(frame: str) -> np.ndarray:
    """(3, 3) RAS to the coordinates of a file whose axes point where the letters say."""
    return mesh.axes_to_ras(frame).T


@functools.cache
def solid() -> trimesh.Trimesh:
    """A vertebra at the origin that is longer on its right, RAS mm; not to be changed."""
    affine = cube_affine(np.zeros(3), 100, 1.0)
    return mesh.extract_surface(inside_vertebra(*axes_mm(affine, (100,) * 3), (0.0, 0.0, 0.0)), affine)


def write_column(path: Path, frame: str, drops: tuple[float, ...], discs: float = 9.0, scale: float = 1e-3) -> Path:
    """One file with a vertebra at each drop, mm, and a ball behind each, which a reader takes for a disc."""
    disc = [trimesh.creation.icosphere(radius=discs).apply_translation([0, 60, 0])] if discs else []
    parts = [part.copy().apply_translation([0, 0, -drop]) for drop in drops for part in (solid(), *disc)]
    whole = mesh.join_surfaces(parts)
    whole.vertices = whole.vertices @ frame_axes(frame).T * scale
    if whole.volume < 0:
        whole.invert()
    return mesh.write_surface(path, whole)


def of_surfaces(files: dict[int, Path], frame: str = "LPS", unit: str = "m", **more: object) -> Subject:
    """A subject with these surfaces, whose manifest states one frame and unit."""
    file = DataFile(role="surface", subject="sub-stl", url="https://a.org/a.stl")
    file = file.model_copy(update={"frame": frame, "unit": unit, **more})
    return Subject("sub-stl", surfaces=files, files=dict.fromkeys(files.values(), file))


def test_surfaces_are_placed_by_their_frame_and_unit(patient: Patient, tmp_path: Path, painted: list[int]) -> None:
    found = Subject("sub-stl", surfaces={}, files={})
    for level, frame, unit in ((L1, "LPS", "mm"), (L2, "RAS", "m"), (L3, "LPS", "m")):
        surface = mesh.extract_surface(patient.mask.data == level, patient.mask.affine)
        surface.vertices = surface.vertices @ frame_axes(frame).T / mesh.UNITS_MM[unit]
        path = mesh.write_surface(tmp_path / f"{levels.name(level)}.stl", surface)
        one = of_surfaces({level: path}, frame, unit)
        found = replace(found, surfaces=found.surfaces | one.surfaces, files=found.files | one.files)
    _, mask, source = subjects.load_subject(found)
    assert source == "phantom" and len(painted) == 1
    for level in (L1, L2, L3):
        where = mask.world(np.argwhere(mask.data == level))
        assert_allclose(where.mean(0), patient.centroids[level], atol=0.5)
        reach = np.array([where.min(0), where.max(0)]) - np.array(MIDDLES[level])
        assert_allclose(reach[:, 0], [-28, 42], atol=2)  # The long process is on the right,
        assert_allclose(reach[:, 1], [-34, 29], atol=2)  # the spinous process behind.
    assert not mask.data[[0, -1]].any() and not mask.data[:, [0, -1]].any() and not mask.data[..., [0, -1]].any()


@pytest.mark.parametrize("frame", ["ASR", "RPI", "LAS", "SAL"])
def test_several_vertebrae_of_one_file_are_its_pieces_from_the_head_down(tmp_path: Path, frame: str) -> None:
    """Left-handed frames, too; the long process stays on the right, and the sacrum is a piece like the others."""
    pair = write_column(tmp_path / "pair.stl", frame, (34.0, 0.0))
    last = write_column(tmp_path / "last.stl", frame, (68.0, 102.0))
    placed = subjects.read_surfaces(of_surfaces({SACRUM: last, L2: pair, L1: pair, L3: last}, frame))
    assert list(placed) == [SACRUM, L2, L1, L3]
    for level, drop in ((L1, 0.0), (L2, 34.0), (L3, 68.0), (SACRUM, 102.0)):
        assert_allclose(placed[level].bounds, [[-28, -34, -14 - drop], [42, 29, 12 - drop]], atol=1.0)
        assert placed[level].volume == pytest.approx(solid().volume, rel=1e-3)


@pytest.mark.parametrize(("missing", "value"), [("frame", ""), ("frame", "unstated"), ("unit", "unstated")])
def test_a_surface_without_frame_or_unit_is_refused(tmp_path: Path, missing: str, value: str) -> None:
    path = write_column(tmp_path / "a.stl", "LPS", (0.0,), discs=0)
    sentence = rf"^The manifest states no '{missing}' of the surface a\.stl; add it there\.$"
    with pytest.raises(InputError, match=sentence):
        subjects.read_surfaces(of_surfaces({L1: path}, **{missing: value}))
    with pytest.raises(InputError, match="states no 'frame' of the surface"):
        subjects.read_surfaces(Subject("sub-stl", surfaces={L1: path}))


def test_surfaces_that_contradict_what_is_stated_are_refused(tmp_path: Path) -> None:
    one = write_column(tmp_path / "one.stl", "LPS", (0.0,), discs=0)
    for unit, length in (("mm", r"0\.07\d*"), ("cm", r"0\.7\d*")):
        with pytest.raises(InputError, match=rf"one\.stl is {length} mm long, which is no L1; correct its unit"):
            subjects.read_surfaces(of_surfaces({L1: one}, unit=unit))
    lower = write_column(tmp_path / "lower.stl", "LPS", (34.0,), discs=0)
    for found in (of_surfaces({L1: lower, L2: one}), of_surfaces({L1: one, L2: lower}, "LPI")):
        with pytest.raises(InputError, match="The surfaces of sub-stl don't stand in the order of their levels"):
            subjects.read_surfaces(found)
    pair = write_column(tmp_path / "pair.stl", "LPS", (0.0, 34.0))
    near = write_column(tmp_path / "near.stl", "LPS", (0.0, 4.3))
    for path, frame in ((pair, "SRA"), (near, "LPS")):
        with pytest.raises(InputError, match=rf"The vertebrae of {path.name} don't stand one above the other; corr"):
            subjects.read_surfaces(of_surfaces({L1: path, L2: path}, frame))
    discs = write_column(tmp_path / "discs.stl", "LPS", (0.0, 34.0), discs=24.0)
    with pytest.raises(InputError, match=r"^discs\.stl has another closed piece about as large as the smallest of"):
        subjects.read_surfaces(of_surfaces({L1: discs, L2: discs}))


def put_tables(folder: Path, points: str | None = None, corners: str | None = None) -> Subject:
    """The tables of two vertebrae by a manifest, or what stands in for one of them."""
    folder.mkdir(parents=True)
    whole = mesh.join_surfaces([solid(), solid().copy().apply_translation([0, 0, -34])])
    np.savetxt(folder / "p.csv", whole.vertices * [-1, -1, 1], delimiter=",")
    np.savetxt(folder / "f.csv", whole.faces + 1, delimiter=",", fmt="%d")
    for name, text in (("p.csv", points), ("f.csv", corners)):
        if text is not None:
            (folder / name).write_text(text, encoding="utf-8")
    more = {"faces": "f.csv", "levels": ["L1", "L2"], "frame": "LPS", "unit": "mm"}
    points_of = subjects.Pattern(role="surface", path="{subject}/p.csv", **more)
    layout = (points_of, subjects.Pattern(role="faces", path="{subject}/f.csv"))
    found = fetch.Manifest.model_construct(name="mine", licence="", folder=folder.parent, layout=layout)
    (subject,) = fetch.fetch_subjects(found, roles="surface")
    return subject


def test_vertices_and_faces_become_one_surface(tmp_path: Path) -> None:
    subject = put_tables(tmp_path / "scans/a")
    placed = subjects.read_surfaces(subject)
    for level, drop in ((L1, 0.0), (L2, 34.0)):
        assert placed[level].is_watertight and placed[level].volume == pytest.approx(solid().volume)
        assert_allclose(placed[level].bounds, solid().bounds - [0, 0, drop], atol=1e-6)
    subject.files.pop(tmp_path / "scans/a/f.csv")
    with pytest.raises(InputError, match=r"^p\.csv has its faces in f\.csv, but a has no such file of the role faces"):
        subjects.read_surfaces(subject)


@pytest.mark.parametrize(
    ("points", "corners", "sentence"),
    [
        *(
            (None, f, r"The faces in f\.csv must be whole numbers from 1 to \d+")
            for f in ("0,1,2\n", "1,2,999999\n", "1,2,2.5\n")
        ),
        *(
            (None, f, r"f\.csv must hold rows of three finite numbers with commas")
            for f in ("", "1,2,3\n1,2\n", "1,2,3,4\n")
        ),
        *((p, None, r"p\.csv must hold rows of three finite numbers") for p in ("x,y,z\n0,0,0\n", "0 0 0\n")),
    ],
)
def test_tables_that_are_no_surface(tmp_path: Path, points: str | None, corners: str | None, sentence: str) -> None:
    subject = put_tables(tmp_path / "scans/a", points, corners)
    with pytest.raises(InputError, match="^" + sentence) as caught:
        subjects.read_surfaces(subject)
    assert "\n" not in str(caught.value)
