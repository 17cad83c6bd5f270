"""The page of a reconstruction: it stands alone, tells what was measured, and lets nothing through as markup."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transvert.clinical import vertebra
from transvert.clinical.posture import measure_posture
from transvert.clinical.radiograph import Radiograph
from transvert.clinical.reconstruct import Reconstruction, write_reconstruction
from transvert.clinical.report import NAMES, NORMAL, posture_rows, write_report
from transvert.clinical.vertebra import Vertebra
from transvert.data.patches import SIZE, SPACING_MM
from transvert.drr import geometry

ENDS = np.array([[-40.0, -30.0, -60.0], [40.0, 30.0, 60.0]])


def bone(level: int, z_mm: float) -> Vertebra:
    """A block of 40 x 30 x 24 mm, its edges soft."""
    x, y, z = (np.abs(np.indices((SIZE,) * 3) - (SIZE - 1) / 2) * SPACING_MM)[:3]
    depth = np.minimum(np.minimum(20 - x, 15 - y), 12 - z)
    probability = (1 / (1 + np.exp(-2 * depth))).astype(np.float32)
    return Vertebra(level, np.array([0.0, 0.0, z_mm]), probability, SPACING_MM)


def build() -> Reconstruction:
    """Two blocks, one above the other, and a warning that looks like markup."""
    vertebrae = [bone(20, 30.0), bone(21, 0.0)]
    views = tuple(geometry.covering_view(name, ENDS, 2.0, cone=True) for name in ("ap", "left_lateral"))
    return Reconstruction(
        vertebrae,
        vertebra.assemble_spine(vertebrae),
        (views[0], views[1]),
        {20: 1.25, 21: 0.5},
        ["L2: <b>odd</b> & unlikely."],
        measure_posture(vertebrae),
    )


def write(found: Reconstruction, folder: Path) -> Path:
    films = [Radiograph(np.zeros(one.shape, np.float32), one.pixel_mm) for one in found.views]
    card = {"network": "transvert_hull", "subjects": ["a", "b", "c"]}
    return write_report(folder / "report.html", found, films, write_reconstruction(found, folder), card, simulated=True)


@pytest.fixture(scope="module")
def found() -> Reconstruction:
    return build()


class Reader(HTMLParser):
    """What a browser would take from elsewhere, the tags, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.asked: list[str] = []
        self.text = ""
        self.inner = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.asked += [value or "" for name, value in attrs if name in ("src", "href")]
        self.inner += "".join(value or "" for name, value in attrs if name == "srcdoc")

    def handle_data(self, data: str) -> None:
        self.text += data


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


@pytest.fixture(scope="module")
def page(found: Reconstruction, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(found, tmp_path_factory.mktemp("report"))


def test_the_page_stands_alone(page: Path, found: Reconstruction, tmp_path: Path) -> None:
    made = read(page)
    assert made.tags.count("img") == 3 and made.tags.count("iframe") == 1
    assert all(source.startswith("data:image/png;base64,") for source in made.asked)
    inner = Reader()
    inner.feed(made.inner)
    assert not inner.asked and "script" in inner.tags
    assert "link" not in made.tags + inner.tags and "@import" not in made.text
    write_reconstruction(found, tmp_path)
    beside = {path.name for path in tmp_path.iterdir()}
    assert {path.name for path in page.parent.iterdir()} - beside == {"report.html", "overlay.png", "spine.png"}


def test_it_says_what_was_measured_and_with_what(page: Path, found: Reconstruction) -> None:
    said = " ".join(read(page).text.split())
    assert "For research only, not for diagnosis. The films are simulated from a CT." in said
    assert "miss each other by 1.2 mm" in said
    assert "Largest coronal Cobb angle 0.0° (L1 to L2) below 10°" in said
    assert "T4 is not in this spine." in said and "have no calibration" in said
    assert "learned from 3 subjects" in said and "torch" in said
    disc = next(row["disc_below_mm"] for row in found.posture["vertebrae"])
    assert disc == pytest.approx(6.0, abs=1.0) and f"{disc:.1f}" in said


def test_what_comes_from_outside_is_no_markup(page: Path) -> None:
    made = read(page)
    assert "b" not in made.tags and "L2: <b>odd</b> & unlikely." in made.text


@pytest.mark.parametrize(
    ("value", "place"), [(9.0, "outside"), (10.0, "inside"), (40.0, "inside"), (41.0, "outside"), (None, "")]
)
def test_a_value_is_inside_or_outside_its_usual_range(value: float | None, place: str, found: Reconstruction) -> None:
    entry: dict[str, Any] = found.posture["measures"]["thoracic_kyphosis_t5_t12"] | {"value": value}
    (row,) = posture_rows({"measures": {"thoracic_kyphosis_t5_t12": entry}})
    assert row["place"] == place and row["normal"] == "10 to 40°"
    assert bool(row["value"]) == (value is not None)


def test_a_spread_is_told_with_its_interval(found: Reconstruction) -> None:
    entry = found.posture["measures"]["coronal_cobb"] | {"sd": 2.04, "low": 3.0, "high": 11.2}
    (row,) = posture_rows({"measures": {"coronal_cobb": entry}})
    assert row["spread"] == "2.0°, 95 %: 3.0 to 11.2"


def test_every_measure_has_a_name_and_every_range_a_measure(found: Reconstruction) -> None:
    assert set(NAMES) == set(found.posture["measures"]) >= set(NORMAL)
