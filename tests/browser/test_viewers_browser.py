"""What a person sees and moves: the viewers draw, the radiograph follows its slider, a click ends a running cell.

The viewers on request are tried where they are installed. itkwidgets loads its pages from the web; here they come from
the packages that those pages are published in, so that what is seen to draw is the viewer itself.
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

from browser.conftest import Lab, open_notebook, run_all, wait_idle, write_notebook

WAIT_MS = 60_000
SURFACES = """
%matplotlib inline
import matplotlib.pyplot as plt
import trimesh
from transvert import render
ball = trimesh.creation.icosphere(radius=20).apply_translation([0, 0, 45])
box = trimesh.creation.box((60, 40, 30))
figure = plt.figure(figsize=(2, 1))
figure.add_subplot()
"""
SHOW = "render.show(figure, {20: ball, 8: box}, which=%r)"
SOURCE = """
import numpy as np
from transvert import turntable
from transvert.volume import Volume, cube_affine
x, y, z = np.indices((64, 64, 64)) - 31.5
body = np.where((x / 28) ** 2 + (y / 20) ** 2 < 1, 0.02, 0).astype(np.float32)
body[(x - 18) ** 2 + y**2 < 30] = 0.1
table = turntable.prepare(Volume(body, cube_affine(np.zeros(3), 64, 4.0)))
table.play()
"""
PICK = """
import numpy as np
from transvert import explore
from transvert.samples import SIZE, WIDE, Samples
x = np.linalg.norm(np.indices((WIDE,) * 3) - (WIDE - 1) / 2, axis=0)
labels = np.stack([np.where(x < 20, 20, 0), np.where(x < 14, 21, 0)]).astype(np.uint8)
truth = Samples("one", "ct", "parallel", np.array([20, 21], np.uint8), np.zeros((2, 3)), None, labels, None)
middle = slice((WIDE - SIZE) // 2, (WIDE + SIZE) // 2)
larger = np.clip(24 - x[middle, middle, middle], 0, 1)
explore.pick_vertebra([truth], {"one": np.stack([larger, truth.targets()[1].astype(float)])})
"""


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


def test_k3d_draws_below_the_figure(page: Any, lab: Lab) -> None:
    open_and_run(page, lab, "k3d.ipynb", [SURFACES, SHOW % "k3d"])
    shown = outputs(page, 1)
    assert shown.nth(0).locator("img[src^='data:image/png']").count() == 1
    coloured = wait_for_colour(shown.nth(1).locator("canvas").first)
    # T1 is orange, L1 green: both are there.
    assert (coloured[:, 0] > coloured[:, 1] + 20).sum() > 100 and (coloured[:, 1] > coloured[:, 0] + 40).sum() > 100


@pytest.mark.parametrize("which", ["ipyniivue", "pyvista"])
def test_viewers_on_request_draw(which: str, page: Any, lab: Lab) -> None:
    if find_spec(which) is None:
        pytest.skip(f"{which} is not installed, so it isn't seen to draw.")
    open_and_run(page, lab, f"{which}.ipynb", [SURFACES, SHOW % which])
    shown = outputs(page, 1).nth(1)
    area = shown.locator("iframe").first if which == "pyvista" else shown.locator("canvas").first
    coloured = wait_for_colour(area)
    assert (coloured[:, 0] > coloured[:, 2] + 40).sum() > 100


def test_the_radiograph_follows_the_slider(page: Any, lab: Lab) -> None:
    open_and_run(page, lab, "source.ipynb", [SOURCE])
    picture = page.locator(".jp-OutputArea-output img").first
    picture.wait_for(timeout=WAIT_MS)
    at_first = picture.get_attribute("src")
    page.locator(".noUi-handle").first.focus()
    for _ in range(3):
        page.keyboard.press("PageUp")
    page.wait_for_function("(old) => document.querySelector('.jp-OutputArea-output img').src !== old", arg=at_first)
    wait_idle(page)
    assert page.locator(".widget-readout").first.inner_text() != "0"


def test_a_vertebra_is_picked_and_its_error_seen(page: Any, lab: Lab) -> None:
    open_and_run(page, lab, "pick.ipynb", [PICK])
    area = page.locator(".jp-OutputArea-output canvas").first
    page.get_by_text(re.compile(r"^L1: the predicted surface is \d\.\d mm off")).wait_for(timeout=WAIT_MS)
    red = wait_for_colour(area)
    assert (red[:, 0] > red[:, 2]).sum() > 5 * (
        red[:, 0] < red[:, 2]
    ).sum()  # Too large everywhere, but for the legend.
    page.locator(".jp-OutputArea-output select").nth(1).select_option("L2")
    page.get_by_text(re.compile(r"^L2: the predicted surface is 0\.\d mm off")).wait_for(timeout=WAIT_MS)
    page.get_by_role("button", name="truth").click()
    page.get_by_text("L2 as it is").wait_for(timeout=WAIT_MS)


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
        # The pages come by way of the browser alone; whether they answer is tested elsewhere.
        "render._silent = lambda pages: ''\n" + SHOW % "itkwidgets",
        "print('next cell')",
    ]
    open_notebook(page, lab, write_notebook(lab.folder, "itkwidgets.ipynb", cells))
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.get_by_text("next cell", exact=True).wait_for(timeout=4 * WAIT_MS)
    viewer = page.locator("iframe[src*='ipfs']").first
    coloured = wait_for_colour(viewer, 2000)
    page.screenshot(path=tmp_path / "itkwidgets.png", timeout=WAIT_MS)
    assert len(np.unique(coloured // 32, axis=0)) > 5
