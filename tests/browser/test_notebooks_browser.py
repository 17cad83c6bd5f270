"""The notebooks as a reader meets them: opened in JupyterLab and run with the parameters of `params/smoke.yaml`.

Each goes on from what the one before it left.
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

RUN_S = 900.0
SEEN_S = 60.0


@pytest.fixture(scope="module")
def smoke(lab: Lab) -> Lab:
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


def pixels(area: Any) -> np.ndarray:
    """(rows, columns, 3) what the screen shows of an element."""
    area.scroll_into_view_if_needed()
    return np.asarray(Image.open(io.BytesIO(area.screenshot())).convert("RGB")).astype(int)


def wait_until_it_differs(area: Any, before: np.ndarray) -> np.ndarray:
    """What an element shows once more than one pixel in 500 has changed."""
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
    page.mouse.down()
    page.mouse.move(x + 200, y + 40, steps=4)
    page.mouse.up()
    page.mouse.move(5, 5)
    wait_until_it_differs(canvas, drawn)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_notebook_runs_and_shows_figures(number: int, page: Any, smoke: Lab, tmp_path: Path) -> None:
    open_notebook(page, smoke, f"{runs.STAGES[number - 1]}.ipynb")
    run_all(page, RUN_S)
    assert page.locator(".jp-OutputArea-output img[src^='data:image/png']").count() > 0
    if number == 4:
        turn(page, page.locator(".jp-OutputArea-output canvas").first)
    page.screenshot(path=tmp_path / f"{number}.png")
