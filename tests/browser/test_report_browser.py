"""The page of a reconstruction in a browser without any network: its 3D view draws, and turns under the mouse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clinical.test_report import build

from browser.test_notebooks_browser import turn
from transvert.clinical.report import write_reconstruction


def test_the_spine_turns_offline(browser: Any, tmp_path: Path) -> None:
    write_reconstruction(build(), tmp_path)
    context = browser.new_context(viewport={"width": 1200, "height": 900}, offline=True)
    page = context.new_page()
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto((tmp_path / "report.html").as_uri())
    turn(page, page.locator("iframe"))
    assert all(image.evaluate("i => i.naturalWidth > 100") for image in page.locator("img").all())
    # k3d looks for fonts of its formulas beside the page; there are none.
    assert not [address for address in requested if address.startswith("http")]
    page.screenshot(path=tmp_path / "report.png", full_page=True)
    context.close()
