"""The four notebooks as a reader meets them: opened in JupyterLab, run, turned, and played with.

With the parameters of `params/smoke.yaml`, put in as papermill does. Each goes on from what the one before it left.
"""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from PIL import Image

from browser.conftest import Lab, open_notebook, run_all
from transvert import runs, workflow

RUN_S = 400.0
SEEN_S = 60.0
CANVAS = ".jp-OutputArea-output canvas"


@pytest.fixture(scope="module")
def walk(lab: Lab) -> Lab:
    """A Lab with the notebooks in it, without a single output."""
    parameters = workflow.read_parameters("smoke")
    for name, known in workflow.declared_parameters().items():
        own = {key: value for key, value in parameters.items() if key in known}
        notebook = parameterize_notebook(load_notebook_node(str(workflow.notebook_path(name))), own)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, lab.folder / f"{name}.ipynb")
    return lab


def run(page: Any, walk: Lab, number: int) -> None:
    """Opens a notebook and runs all of its cells; none fails, and a figure is there before any widget."""
    open_notebook(page, walk, f"{runs.STAGES[number - 1]}.ipynb")
    run_all(page, RUN_S)
    assert page.locator(".jp-OutputArea-output img[src^='data:image/png']").count() > 0


def pixels(area: Any) -> np.ndarray:
    """(rows, columns, 3) what the screen shows of an element."""
    area.scroll_into_view_if_needed()
    return np.asarray(Image.open(io.BytesIO(area.screenshot())).convert("RGB")).astype(int)


def wait_until_it_differs(area: Any, before: np.ndarray) -> np.ndarray:
    """What an element shows once more than one pixel in 500 is another."""
    end = time.monotonic() + SEEN_S
    while time.monotonic() < end:
        now = pixels(area)
        if now.shape == before.shape and (np.abs(now - before).max(-1) > 20).mean() > 0.002:
            return now
        time.sleep(0.5)
    raise AssertionError("it looks the same as before")


def turn(page: Any, canvas: Any) -> None:
    """Waits until something is drawn, drags it with the mouse, and expects another picture."""
    canvas.wait_for(timeout=SEEN_S * 1000)
    drawn = wait_until_it_differs(canvas, np.full_like(pixels(canvas), 255))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 50, "one colour, or few"
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.row_step()
    page.mouse.move(x + 200, y + 40, steps=4)
    page.mouse.up()
    page.mouse.move(5, 5)
    wait_until_it_differs(canvas, drawn)


def slide(page: Any, label: str, times: int = 3) -> None:
    """Moves a slider by its keys."""
    row = page.locator(".widget-slider", has_text=label).first
    row.scroll_into_view_if_needed()
    row.locator(".noUi-handle").focus()
    for _ in range(times):
        page.keyboard.press("PageUp")
    assert row.locator(".widget-readout").inner_text() not in ("0", "0.00")


def test_01_the_radiograph_follows_the_source(page: Any, walk: Lab, tmp_path: Path) -> None:
    run(page, walk, 1)
    picture = page.locator(".widget-image").first
    before = pixels(picture)
    slide(page, "turn")
    wait_until_it_differs(picture, before)
    page.screenshot(path=tmp_path / "01.png")


def test_02_it_trains_draws_its_curve_and_has_a_button_to_stop(page: Any, walk: Lab, tmp_path: Path) -> None:
    run(page, walk, 2)
    button = page.get_by_role("button", name="Stop and keep")
    button.scroll_into_view_if_needed()
    assert button.is_disabled()  # It is done.
    page.screenshot(path=tmp_path / "02.png")


def test_03_a_vertebra_is_picked_and_turned(page: Any, walk: Lab, tmp_path: Path) -> None:
    run(page, walk, 3)
    canvas = page.locator(CANVAS).first
    turn(page, canvas)
    page.screenshot(path=tmp_path / "03.png")
    of_error = pixels(canvas)
    page.get_by_role("button", name="truth", exact=True).click()
    page.get_by_text("as it is", exact=False).first.wait_for(timeout=SEEN_S * 1000)
    wait_until_it_differs(canvas, of_error)


def test_04_the_spine_turns_and_follows_a_landmark(page: Any, walk: Lab, tmp_path: Path) -> None:
    run(page, walk, 4)
    turn(page, page.locator(CANVAS).first)
    page.screenshot(path=tmp_path / "04.png")
    table = page.locator("table", has_text="before").last
    before = table.inner_text()
    slide(page, "front (mm)", times=1)
    page.wait_for_function(
        "(old) => { const all = [...document.querySelectorAll('.widget-html-content table')];"
        " return all.length && all.at(-1).innerText !== old; }",
        arg=before,
        timeout=2 * SEEN_S * 1000,
    )
    changes = [row.split()[-2] for row in table.inner_text().splitlines()[1:]]
    assert any(float(change) for change in changes), changes
    page.screenshot(path=tmp_path / "04_moved.png")
