"""What the viewers draw in JupyterLab: k3d, and itkwidgets where it is installed.

itkwidgets loads its pages from the web; here they come from the packages that publish them.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from browser.conftest import Lab, open_notebook, run_all, write_notebook

WAIT_MS = 60_000
SURFACES = """
%matplotlib inline
import matplotlib.pyplot as plt
import trimesh
from transvert.plots import viewer
ball = trimesh.creation.icosphere(radius=20).apply_translation([0, 0, 45])
box = trimesh.creation.box((60, 40, 30))
figure = plt.figure(figsize=(2, 1))
figure.add_subplot()
plt.show()
"""
SHOW = "viewer.view_surfaces({20: ball, 8: box}, %r)"


def colours(area: Any) -> np.ndarray:
    """(pixels, 3) of what the screen shows of an element."""
    area.scroll_into_view_if_needed()
    return np.asarray(Image.open(io.BytesIO(area.screenshot())).convert("RGB")).reshape(-1, 3).astype(int)


def wait_for_colour(area: Any, least: int = 200) -> np.ndarray:
    """The pixels of an element in which red and blue differ clearly, once there are some; grey and white aren't any."""
    end = time.monotonic() + WAIT_MS / 1000
    while time.monotonic() < end:
        seen = colours(area)
        coloured = seen[np.abs(seen[:, 0] - seen[:, 2]) > 40]
        if len(coloured) > least:
            return coloured
        time.sleep(0.5)
    raise AssertionError("nothing was drawn in colour")


def outputs(page: Any, cell: int) -> Any:
    """What a code cell has shown, one by one."""
    return page.locator(".jp-CodeCell").nth(cell).locator(".jp-OutputArea-output")


def open_and_run(page: Any, lab: Lab, name: str, cells: list[str]) -> None:
    open_notebook(page, lab, write_notebook(lab.folder, name, cells))
    run_all(page)


def test_a_cell_that_fails_is_seen(page: Any, lab: Lab) -> None:
    for cells in (["1 / 0", "print(1)"], ["import sys\nprint('fine', file=sys.stderr)", "1 / 0"]):
        with pytest.raises(AssertionError, match="ZeroDivisionError: division by zero"):
            open_and_run(page, lab, f"fails{len(cells[0])}.ipynb", cells)


def test_k3d_draws_each_level_in_its_colour(page: Any, lab: Lab) -> None:
    open_and_run(page, lab, "k3d.ipynb", [SURFACES, SHOW % "k3d"])
    assert outputs(page, 0).locator("img[src^='data:image/png']").count() == 1
    coloured = wait_for_colour(outputs(page, 1).locator("canvas").first)
    # T1 is orange, L1 green: both are there.
    assert (coloured[:, 0] > coloured[:, 1] + 20).sum() > 100 and (coloured[:, 1] > coloured[:, 0] + 40).sum() > 100


PACKAGES = {
    "itk-vtk-viewer": "14.51.0",
    "itk-viewer-bootstrap-ui": "0.30.0",
    "imjoy-core": "0.14.5",
    "imjoy-rpc": "0.5.9",
    "vue": "2.6.10",
    "vue-js-modal": "1.3.31",
}
"""What the pages of itkwidgets 1.0a55 are published in; its own viewer is a build of the first that has no number."""
PAGES = [
    (r"https://\w+\.ipfs\.dweb\.link/(.*)", "itk-vtk-viewer", "dist/"),
    (r"https://cdn\.jsdelivr\.net/npm/itk-viewer-bootstrap-ui@[^/]+/(.*)", "itk-viewer-bootstrap-ui", ""),
    (r"https://cdn\.jsdelivr\.net/npm/imjoy-core@[^/]+/(.*)", "imjoy-core", ""),
    (r"https://cdn\.jsdelivr\.net/npm/imjoy-rpc@[^/]+/(.*)", "imjoy-rpc", ""),
    (r"https://cdn\.jsdelivr\.net/npm/vue@[^/]+/(.*)", "vue", ""),
    (r"https://imjoy-team\.github\.io/vue-js-modal/(.*)", "vue-js-modal", "dist/"),
    (r"https://lib\.imjoy\.io/(.*)", "imjoy-core", "dist/"),
]
KINDS = {".js": "text/javascript", ".html": "text/html", ".css": "text/css", ".wasm": "application/wasm"}
NO_WINDOWS = "window.VueWindow = {install() {}};"
"""Instead of what draws floating windows, which is not published and not used in a notebook."""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("itkwidgets") is None:
        pytest.skip("itkwidgets is not installed, so it isn't seen to draw.")
    npm = shutil.which("npm")
    folder = tmp_path_factory.mktemp("packages")
    names = [f"{name}@{version}" for name, version in PACKAGES.items()]
    if npm is None or subprocess.run([npm, "pack", *names], cwd=folder, capture_output=True, check=False).returncode:
        pytest.skip("npm can't fetch itkwidgets' pages, so it isn't seen to draw.")
    for name, version in PACKAGES.items():
        with tarfile.open(folder / f"{name}-{version}.tgz") as packed:
            packed.extractall(folder / name, filter="data")
    return folder


@pytest.fixture
def page_with_pages(browser: Any, lab: Lab, packages: Path, tmp_path: Path) -> Iterator[Any]:
    """A page that finds itkwidgets' pages, and nothing else of the web."""
    context = browser.new_context(viewport={"width": 900, "height": 800}, service_workers="block")

    def answer(route: Any) -> None:
        url = route.request.url.partition("?")[0]
        if url.startswith((lab.address, "data:", "blob:")):
            return route.continue_()
        if "vue-window@" in url:
            return route.fulfill(body=NO_WINDOWS, content_type="text/javascript")
        for pattern, name, folder in PAGES:
            if found := re.fullmatch(pattern, url):
                file = packages / name / "package" / (folder + (found[1] or "index.html"))
                kind = KINDS.get(file.suffix, "application/octet-stream")
                allowed = {"Access-Control-Allow-Origin": "*"}
                return route.fulfill(body=file.read_bytes(), content_type=kind, headers=allowed)
        return route.abort()

    context.route("**/*", answer)
    made = context.new_page()
    yield made
    context.close()


def test_itkwidgets_draws_and_lets_the_next_cell_run(page_with_pages: Any, lab: Lab, tmp_path: Path) -> None:
    page = page_with_pages
    cells = [
        SURFACES.replace("radius=20", "radius=9").replace("45", "20").replace("(60, 40, 30)", "(20, 14, 10)"),
        SHOW % "itkwidgets",
        "print('next cell')",
    ]
    open_notebook(page, lab, write_notebook(lab.folder, "itkwidgets.ipynb", cells))
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.get_by_text("next cell", exact=True).wait_for(timeout=4 * WAIT_MS)
    coloured = wait_for_colour(page.locator("iframe[src*='ipfs']").first, 2000)
    page.screenshot(path=tmp_path / "itkwidgets.png", timeout=WAIT_MS)
    assert len(np.unique(coloured // 32, axis=0)) > 5
