"""The page of a reconstruction in a browser without any network: its 3D view draws, and turns under the mouse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clinical.test_report import build, write

from browser.test_notebooks_browser import turn


def test_the_spine_turns_offline(browser: Any, tmp_path: Path) -> None:
    path = write(build(), tmp_path)
    context = browser.new_context(viewport={"width": 1200, "height": 900}, offline=True)
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    turn(page, page.locator("iframe"))
    assert all(image.evaluate("i => i.naturalWidth > 100") for image in page.locator("img").all())
    # k3d looks for fonts of its formulas, of which there are none, beside the page.
    assert not [address for address in asked if address.startswith("http")]
    context.close()
