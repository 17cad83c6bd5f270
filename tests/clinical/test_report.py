"""What a reconstruction writes: files that agree with it, and a page that works alone and escapes what it shows."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from transvert.clinical import exports, vertebra
from transvert.clinical.endplates import Observations
from transvert.clinical.landmarks import empty_landmarks
from transvert.clinical.posture import measure_posture
from transvert.clinical.radiograph import Radiograph
from transvert.clinical.reconstruct import Reconstruction, silhouettes
from transvert.clinical.report import posture_rows, write_reconstruction
from transvert.clinical.vertebra import Vertebra
from transvert.data.patches import SIZE, SPACING_MM
from transvert.drr import geometry
from transvert.imaging import mesh, volume
from transvert.plots import figures

ENDS = np.array([[-40.0, -30.0, -60.0], [40.0, 30.0, 60.0]])


def bone(level: int, z_mm: float) -> Vertebra:
    """A block of 40 x 30 x 24 mm with soft edges."""
    x, y, z = (np.abs(np.indices((SIZE,) * 3) - (SIZE - 1) / 2) * SPACING_MM)[:3]
    depth = np.minimum(np.minimum(20 - x, 15 - y), 12 - z)
    probability = (1 / (1 + np.exp(-2 * depth))).astype(np.float32)
    return Vertebra(level, np.array([0.0, 0.0, z_mm]), probability, SPACING_MM)


@pytest.fixture(scope="module")
def found() -> Reconstruction:
    return build()


def build() -> Reconstruction:
    """Two blocks, one above the other, and a warning that looks like markup."""
    vertebrae = [bone(20, 30.0), bone(21, 0.0)]
    views = tuple(geometry.covering_view(name, ENDS, 2.0, cone=True) for name in ("ap", "left_lateral"))
    films = tuple(Radiograph(np.zeros(view.shape, np.float32), view.pixel_mm) for view in views)
    return Reconstruction(
        vertebrae=vertebrae,
        labels=vertebra.assemble_spine(vertebrae),
        films=(films[0], films[1]),
        views=(views[0], views[1]),
        landmarks=empty_landmarks(),
        residuals_mm={20: 1.25, 21: 0.5},
        warnings=["L2: <b>odd</b> & unlikely."],
        posture=measure_posture(vertebrae),
        observations=Observations({}, {}),
        calibration=None,
        card={"network": "transvert_hull", "subjects": ["a", "b", "c"]},
    )


class Reader(HTMLParser):
    """The tags, the text, and what a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = self.inner = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        self.inner += "".join(value or "" for name, value in attrs if name == "srcdoc")

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def folder(found: Reconstruction, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("spine")
    (out / "surfaces").mkdir()
    (out / "surfaces" / "T7.ply").touch()  # Of an earlier spine.
    write_reconstruction(found, out, simulated=True, label="case <7>")
    return out


def test_the_files_hold_the_reconstruction(found: Reconstruction, folder: Path) -> None:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {
        *(
            "spine.seg.nrrd",
            "centroids.mrk.json",
            "spine.nii.gz",
            "spine.stl",
            "spine.glb",
            "landmarks.json",
            "overlay.png",
            "spine.png",
            "surface_sd.png",
        ),
        *("posture.json", "posture.csv", "posture_measures.csv", "report.json", "report.html"),
        *(f"surfaces/{name}.{kind}" for name in ("L1", "L2") for kind in ("stl", "ply", "glb")),
    }
    assert np.array_equal(volume.read_mask(folder / "spine.nii.gz").data, found.labels.data)
    points = exports.read_markups(folder / "centroids.mrk.json")
    for vertebra_ in found.vertebrae:
        assert_allclose(points[vertebra_.level], vertebra_.centroid_ras)
    assert mesh.read_surface(folder / "spine.stl").body_count == 2
    for vertebra_ in found.vertebrae:
        surface = mesh.read_surface(folder / "surfaces" / f"{vertebra_.name}.stl")
        assert surface.is_watertight and surface.volume == pytest.approx(40 * 30 * 24, rel=0.02)
        assert_allclose(surface.center_mass, vertebra_.centroid_ras, atol=0.1)
        assert b"property float sd_mm" in (folder / "surfaces" / f"{vertebra_.name}.ply").read_bytes()[:1000]
    assert json.loads((folder / "posture.json").read_text()) == found.posture


@pytest.mark.parametrize("rays", [{}, {"cone": True}, {"slot": True}], ids=["parallel", "cone", "slot"])
def test_a_silhouette_lies_where_its_bone_is_seen_on_a_film_that_is_shown_smaller(
    rays: dict[str, bool], found: Reconstruction
) -> None:
    factor = 3
    shape = (figures.LONGEST * (factor - 1) + 90, 240)
    views = tuple(geometry.named_view(name, np.array([9.0, -7, 2]), shape, 1.0, **rays) for name in geometry.VIEWS)
    shown = silhouettes(replace(found, views=(views[0], views[1])))
    for view, outlines in zip(views, shown, strict=True):
        for bone_ in found.vertebrae:
            middle = np.argwhere(outlines[bone_.level]).mean(axis=0) * factor + (factor - 1) / 2
            assert_allclose(middle, view.project(bone_.centroid_ras), atol=1.5)


def test_the_report_states_its_use_frame_and_warnings(found: Reconstruction, folder: Path) -> None:
    text = (folder / "report.json").read_text()
    report = json.loads(text)
    assert report["schema"] == "transvert-reconstruction/1"
    assert "not for diagnosis" in report["use"] and "RAS" in report["frame"]
    assert report["warnings"] == found.warnings and report["residuals_mm"] == {"L1": 1.25, "L2": 0.5}
    assert report["surface_sd_calibrated"] is False and set(report["surface_sd_mm"]) == {"L1", "L2"}
    assert str(folder) not in text


def test_the_page_loads_nothing_and_escapes_what_it_shows(folder: Path, found: Reconstruction) -> None:
    page = Reader((folder / "report.html").read_text(encoding="utf-8"))
    assert "b" not in page.tags and "L2: <b>odd</b> & unlikely." in page.text
    assert page.tags.count("img") == 3 and page.tags.count("iframe") == 1
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    inner = Reader(page.inner)
    assert not inner.sources and "script" in inner.tags
    assert "link" not in page.tags + inner.tags and "@import" not in page.text
    # It states what was measured and how.
    text = " ".join(page.text.split())
    assert "For research only, not for diagnosis. The films are simulated from a CT, whose patient was lying." in text
    assert "Case: case <7>. Reconstructed on 20" in text and "standing spine" not in text and "@media print" in text
    assert "miss each other by 1.2 mm" in text
    assert "Largest coronal Cobb angle 0.0° (L1 to L2) below 10°" in text
    assert "T4 is not in this spine." in text and "have no calibration" in text
    assert "trained on 3 subjects" in text and "torch" in text
    disc = found.posture["vertebrae"][0]["disc_below_mm"]
    assert disc == pytest.approx(6.0, abs=1.0) and f"{disc:.1f}" in text


@pytest.mark.parametrize(
    ("value", "place"), [(9.0, "outside"), (10.0, "inside"), (40.0, "inside"), (41.0, "outside"), (None, "")]
)
def test_a_value_is_inside_or_outside_its_usual_range(value: float | None, place: str, found: Reconstruction) -> None:
    entry: dict[str, Any] = found.posture["measures"]["thoracic_kyphosis_t5_t12"] | {"value": value}
    (row,) = posture_rows({"measures": {"thoracic_kyphosis_t5_t12": entry}})
    assert row["place"] == place and row["range"] == "10 to 40°"
    assert bool(row["value"]) == (value is not None)
    entry = found.posture["measures"]["coronal_cobb"] | {"sd": 2.04, "low": 3.0, "high": 11.2}
    assert posture_rows({"measures": {"coronal_cobb": entry}})[0]["spread"] == "2.0°, 95 %: 3.0 to 11.2"
