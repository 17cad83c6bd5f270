"""Every committed page shows the figures of its committed table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import results
from benchmarks.speed import augment, drr_report, networks, store, synthesis
from benchmarks.standing_phantom import report
from benchmarks.studies import __main__ as studies
from benchmarks.studies import refinement, summary
from transvert.io import PACKAGE

FOLDER = Path(results.__file__).parent


def read(name: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / f"{name}.csv", keep_default_na=False, na_values=[""])


PAGES: dict[str, Callable[[], str]] = {
    "speed/drr": lambda: drr_report.as_markdown(read("speed/drr"), ""),
    "speed/augment": lambda: augment.as_markdown(read("speed/augment"), "", 13),
    "speed/networks": lambda: networks.as_markdown(read("speed/networks"), ""),
    "speed/store": lambda: store.as_markdown(read("speed/store"), "", 13),
    "speed/synthesis": lambda: synthesis.as_markdown(read("speed/synthesis"), ""),
    "standing_phantom/reconstruction": lambda: report.as_markdown(
        read("standing_phantom/reconstruction"), read("standing_phantom/vertebrae"), "", []
    ),
    "studies/refinement": lambda: refinement.as_markdown(read("studies/refinement"), "", []),
    "studies/people": lambda: studies.people_table(summary.read_study("people")),
    "studies/field_of_view": studies.field_of_view,
    "studies/dice_and_millimetres": studies.dice_and_millimetres,
    **{
        f"studies/{name}": lambda name=name: studies.study_table(summary.read_study(name))  # type: ignore[misc]
        for name in studies.STUDIES
    },
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_its_table(name: str) -> None:
    page = results.read_measured(FOLDER / f"{name}.md").splitlines()
    rows = [line for line in PAGES[name]().splitlines() if line.startswith("|")]
    assert len(rows) >= 4
    missing = [row for row in rows if row not in page]
    assert not missing, f"{name}.md lacks rows of {name}.csv"


def test_every_page_is_in_the_index_with_a_conclusion() -> None:
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in FOLDER.glob("*/*.md"):
        text = path.read_text(encoding="utf-8")
        assert f"]({path.relative_to(FOLDER).as_posix()})" in index
        assert "## Conclusion" in text or path.stem == "anatomy", path


def test_writing_results_keeps_the_prose(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": [1]})
    results.write_results(tmp_path, "page", table, "first")
    page = tmp_path / "page.md"
    page.write_text("# Title\n\nBefore.\n" + page.read_text().partition("# page\n")[2] + "After.\n")
    results.write_results(tmp_path, "page", table, "second")
    assert page.read_text() == f"# Title\n\nBefore.\n\n{results.BEGIN}\n\nsecond\n\n{results.END}\nAfter.\n"
    assert results.read_measured(page) == "second"
    assert (tmp_path / "page.csv").read_text() == "a\n1\n"


def test_a_markdown_table_aligns_numbers_to_the_right() -> None:
    assert (
        results.markdown_table(["a", "b"], [["x", 1], ["y", 2.5]]) == "| a | b |\n|---|---:|\n| x | 1 |\n| y | 2.5 |\n"
    )


def test_the_package_quotes_the_studies() -> None:
    published = pd.read_csv(PACKAGE / "tables" / "published.csv").set_index("method")
    people = summary.read_study("people")
    for variant in ("crop", "full"):
        row, rows = published.loc[f"recipe on held-out people, {variant}"], people[people.variant == variant]
        assert (row.dice, row.assd_mm) == (round(rows.dice.mean(), 3), round(rows.assd_mm.mean(), 2))
        assert f"{len(rows)} vertebrae of" in row.data
    resolution = summary.read_study("resolution")
    for name, dice in (("paper", summary.PAPER_DICE), ("public port", summary.PORT_DICE)):
        assert published.dice[name] == dice
        assert published.surface_mm[name] == round(summary.surface_offset_mm(resolution, dice), 2)
