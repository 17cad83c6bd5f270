"""The annotator with a real pointer: clicks, drags, undo, zoom and save.

Each vertebra on the films has a dark dot at its centroid. The tests find a dot in the screenshot, click there, and expect
the dot's film pixel in the file: they share no arithmetic with the widget.
"""

from __future__ import annotations

import io
import json
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from browser.conftest import Lab, open_notebook, run_all, write_notebook
from transvert.drr import geometry

# RAS mm: a little scoliosis, and the bend of the thoracolumbar junction.
POINTS = {"T11": (4, -28, 62), "T12": (8, -22, 32), "L1": (10, -16, 0), "L2": (6, -11, -33), "L3": (0, -10, -66)}
# Rows and columns, and the pixels' height and width in mm.
FILMS = {"ap": ((560, 420), (0.6, 0.5)), "left_lateral": ((480, 400), (0.7, 0.7))}
MAKE = f"""
import numpy as np
from transvert.clinical.annotator import Annotator
from transvert.clinical.radiograph import Radiograph
from transvert.drr import exposure, geometry, projector
from transvert.imaging.volume import Volume

x, y, z = np.meshgrid(*(np.arange(-n, n, 2.0) for n in (80, 70, 120)), indexing="ij")
matter = np.where((x / 75) ** 2 + (y / 65) ** 2 < 1, 0.02, 0).astype(np.float32)
points = np.array({list(POINTS.values())}, float)
for middle in points:
    a, b, c = (axis - m for axis, m in zip((x, y, z), middle))
    matter[(np.abs(a) < 20) & (np.abs(b) < 15) & (np.abs(c) < 12)] = 0.06
affine = np.diag([2.0, 2, 2, 1])
affine[:3, 3] = (-80, -70, -120)
films = []
for name, (shape, pixel_mm) in {FILMS!r}.items():
    view = geometry.named_view(name, np.zeros(3), shape, pixel_mm, cone=True)
    pixels = exposure.expose(projector.cast(Volume(matter, affine), view), pixel_mm=pixel_mm, seed=1)
    for row, column in np.rint(view.project(points)).astype(int):
        pixels[row - 1 : row + 2, column - 1 : column + 2] = 0
    films.append(Radiograph(pixels, pixel_mm))
"""
SHOW = 'tool = Annotator(*films, path="marks.json", height=560)\ntool'


def true_pixels() -> dict[str, dict[str, np.ndarray]]:
    """ "ap" and "lateral" to level to the row and column of its dot."""
    found = {}
    for which, (name, (shape, pixel_mm)) in zip(("ap", "lateral"), FILMS.items(), strict=True):
        view = geometry.named_view(name, np.zeros(3), shape, pixel_mm, cone=True)
        found[which] = {level: np.rint(view.project(np.array(point, float))) for level, point in POINTS.items()}
    return found


class Tool:
    """The annotator on a page, as a person uses it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.stages = {which: page.locator(f".tv-stage[data-view='{which}']") for which in ("ap", "lateral")}
        for stage in self.stages.values():
            page.locator(f".tv-stage[data-view='{stage.get_attribute('data-view')}'][data-ready='yes']").wait_for()

    def dots(self, which: str) -> np.ndarray:
        """(N, 2) x and y on the page of all dark spots in bright surroundings, from the top."""
        stage = self.stages[which]
        grey = np.asarray(Image.open(io.BytesIO(stage.screenshot())).convert("L"), float)
        dark, count = ndimage.label(grey < 70)
        sizes = ndimage.sum_labels(np.ones_like(grey), dark, np.arange(1, count + 1))
        bright = ndimage.percentile_filter(grey, 80, 41)
        box, found = stage.bounding_box(), []
        for n in np.flatnonzero((sizes >= 2) & (sizes < 900)) + 1:
            y, x = ndimage.center_of_mass(dark == n)
            if bright[int(y), int(x)] > 200:
                found.append((box["x"] + x + 0.5, box["y"] + y + 0.5))
        return np.array(sorted(found, key=lambda place: place[1]))

    def click(self, place: np.ndarray) -> None:
        self.page.mouse.click(*place)

    def drag(self, start: np.ndarray, end: np.ndarray) -> None:
        self.page.mouse.move(*start)
        self.page.mouse.down()
        self.page.mouse.move(*((start + end) / 2), steps=4)
        self.page.mouse.move(*end, steps=4)
        self.page.mouse.up()

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def choose(self, label: str, value: str) -> None:
        self.page.get_by_label(label, exact=True).select_option(value)

    def waits_for(self, message: str) -> None:
        self.page.locator(".tv-message", has_text=message).wait_for(timeout=20_000)

    def residuals(self) -> dict[str, str]:
        rows = self.page.locator(".tv-list tbody tr").all()
        return {row.get_attribute("data-level"): row.locator("td").last.inner_text() for row in rows}

    def save(self, lab: Lab) -> dict[str, Any]:
        file = lab.folder / "marks.json"
        file.unlink(missing_ok=True)  # An earlier save's message would look the same.
        self.press("save to the file")
        end = time.monotonic() + 20
        while not file.exists() and time.monotonic() < end:
            self.page.wait_for_timeout(100)
        self.waits_for("Saved")
        return json.loads(file.read_text())["views"]


@pytest.fixture
def tool(page: Any, lab: Lab) -> Tool:
    for name in ("marks.json", "marks.autosave.json"):
        (lab.folder / name).unlink(missing_ok=True)
    open_notebook(page, lab, write_notebook(lab.folder, "annotate.ipynb", [MAKE, SHOW]))
    run_all(page)
    return Tool(page)


def test_vertebrae_are_marked_with_the_pointer(tool: Tool, lab: Lab) -> None:
    page, names, truth = tool.page, list(POINTS), true_pixels()
    before = {which: tool.dots(which) for which in tool.stages}
    assert {which: len(found) for which, found in before.items()} == {"ap": 5, "lateral": 5}

    # Three levels on the AP film and two on the lateral one; each click goes on to the next level by itself.
    for which, title, count in (("ap", "AP", 3), ("lateral", "left lateral", 2)):
        tool.choose(f"next level on {title}", "T11")
        for place in before[which][:count]:
            tool.click(place)
    assert set(tool.residuals()) == {"T11", "T12", "L1"}

    # The lateral film's L1 is next: the AP film's L1 is drawn as a line, and the dot lies on it.
    line = tool.stages["lateral"].locator(".tv-wanted[data-level='L1']")
    line.first.wait_for(state="attached")
    x1, y1, x2, y2 = (float(line.first.get_attribute(name)) for name in ("x1", "y1", "x2", "y2"))
    box = tool.stages["lateral"].bounding_box()
    x, y = before["lateral"][2] - (box["x"], box["y"])
    assert y == pytest.approx(y1 + (y2 - y1) * (x - x1) / (x2 - x1), abs=2)

    # A click beside the dot, then a drag onto it. Another drag is undone, redone, and undone again.
    beside = before["lateral"][2] + (0, 22)
    tool.click(beside)
    wrong = tool.page.locator(".tv-list tr[data-level='L1'] td", has_text="mm")
    wrong.wait_for()
    assert float(wrong.inner_text().split()[-2]) > 5
    tool.drag(beside, before["lateral"][2])
    tool.drag(before["ap"][0], before["ap"][0] + (40, 30))
    tool.press("undo the last change")
    tool.press("redo the undone change")
    page.keyboard.press("Control+z")

    # Zoomed in with the wheel, moved, and clicked: L2 on both films.
    for which in tool.stages:
        place = before[which][3]
        page.mouse.move(*place)
        for _ in range(6):
            page.mouse.wheel(0, -150)
        tool.drag(place + (60, 60), place + (20, 90))
        page.mouse.move(5, 5)
        seen = tool.dots(which)
        target = seen[np.linalg.norm(seen - place, axis=1).argmin()]
        assert np.linalg.norm(target - place) > 20, "the picture did not move"
        tool.click(target)

    views = tool.save(lab)
    for which, film in views.items():
        assert list(film["centroids"]) == names[:4]
        for level, pixel in film["centroids"].items():
            # Without zoom a film pixel is a screen pixel, and the pointer moves by whole ones.
            assert np.abs(np.array(pixel) - truth[which][level]).max() < 1.5, f"{which} {level} {pixel}"
        # Zoomed in, a film pixel is six screen pixels: a picture half a pixel off would be found.
        assert np.abs(np.array(film["centroids"]["L2"]) - truth[which]["L2"]).max() < 0.4
    assert all(float(text.split()[-2]) < 1.5 for text in tool.residuals().values())


def test_levels_are_renamed_deleted_filled_in_and_loaded(tool: Tool, lab: Lab) -> None:
    page, truth = tool.page, true_pixels()
    before = {which: tool.dots(which) for which in tool.stages}
    for which, title in (("ap", "AP"), ("lateral", "left lateral")):
        for name, dot in (("T11", 0), ("L1", 2), ("L4", 4)):
            tool.choose(f"next level on {title}", name)
            tool.click(before[which][dot])
        tool.click(before[which][4])  # on a mark: chosen, and nothing is placed
        tool.choose("rename the chosen mark", "L3")
    tool.press("propose the vertebrae between the clicked ones")
    tool.waits_for("Filled in")
    apart = tool.residuals()
    assert set(apart) == set(POINTS) and not apart["T12"] and apart["L1"].endswith("mm")
    views = tool.save(lab)
    for which, film in views.items():
        assert film["proposed"] == ["T12", "L2"]
        for level in POINTS:
            assert np.abs(np.array(film["centroids"][level]) - truth[which][level]).max() < 12
    tool.press("check the landmarks")
    tool.waits_for("T12, L2: proposed on the AP film and not confirmed.")
    tool.press("confirm all that is proposed")
    assert "proposed" not in tool.save(lab)["ap"]

    # With the keyboard: an arrow key moves the chosen mark by a film pixel, Delete removes it.
    tool.click(before["ap"][0])
    page.keyboard.press("ArrowDown")
    moved = tool.save(lab)["ap"]["centroids"]["T11"]
    assert moved == pytest.approx([views["ap"]["centroids"]["T11"][0] + 1, views["ap"]["centroids"]["T11"][1]])
    page.keyboard.press("Tab")
    tool.click(before["ap"][0])
    page.keyboard.press("Delete")
    assert "T11" not in tool.save(lab)["ap"]["centroids"]
    # The keyboard stays with the film, and a mark follows a drag of two screen pixels; both are saved automatically.
    tool.click(before["ap"][2])
    page.keyboard.press("Delete")
    page.keyboard.press("Control+z")
    was = tool.save(lab)["ap"]["centroids"]["L1"]
    tool.drag(before["ap"][2], before["ap"][2] + (0, 2))
    page.wait_for_timeout(1000)
    kept = json.loads((lab.folder / "marks.autosave.json").read_text())["views"]["ap"]["centroids"]["L1"]
    assert kept[0] > was[0] + 1
    tops = [stage.bounding_box()["y"] for stage in tool.stages.values()]
    assert tops[0] == tops[1] and tool.stages["ap"].bounding_box()["width"] > 400
    (lab.folder / "marks.json").write_text("{")
    tool.press("load the file")
    tool.waits_for("The landmark file marks.json is not valid JSON")


def test_corners_and_ends_are_marked_by_name(tool: Tool, lab: Lab) -> None:
    stage = tool.stages["ap"].bounding_box()
    middle = np.array([stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2])
    tool.choose("what a click marks", "corners")
    tool.choose("next level on AP", "L1")
    for x, y in ((-40, -25), (40, -25), (40, 25), (-40, 25)):
        tool.click(middle + (x, y))
    tool.choose("what a click marks", "s1_endplate")
    for x in (-30, 30):
        tool.click(middle + (x, 150))
    tool.choose("what a click marks", "ruler")
    for x in (-60, 60):
        tool.click(middle + (x, -150))
    tool.page.get_by_label("length of the ruler on AP", exact=True).fill("50")
    tool.page.keyboard.press("Enter")
    film = tool.save(lab)["ap"]
    ruler = film["known_distance"]
    assert ruler["mm"] == 50 and ruler["to"][1] - ruler["from"][1] > 50 and "pixel_mm" not in film
    corners = film["corners"]["L1"]
    assert list(film["corners"]) == ["L1"] and set(film["s1_endplate"]) == {"right", "left"}
    assert corners["right_superior"][1] < corners["left_superior"][1]
    assert corners["right_superior"][0] < corners["right_inferior"][0]
    assert film["s1_endplate"]["right"][1] < film["s1_endplate"]["left"][1]
