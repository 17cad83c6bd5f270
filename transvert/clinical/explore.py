"""To play with below the notebooks' figures: a predicted vertebra's error in 3D, and a landmark that is moved.

Built of ipywidgets and k3d alone, which JupyterLab and Colab both draw; nothing is shown where nobody watches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import nn

from transvert import levels
from transvert.clinical import centroids, radiograph
from transvert.clinical.landmarks import Landmarks
from transvert.clinical.posture import measure_posture
from transvert.clinical.radiograph import Radiograph
from transvert.clinical.reconstruct import Reconstruction, reconstruct, surfaces
from transvert.data.patches import SIZE, SPACING_MM
from transvert.data.samples import Samples
from transvert.drr.geometry import VIEWS
from transvert.drr.turntable import to_png
from transvert.imaging import mesh
from transvert.imaging.volume import cube_affine
from transvert.io import InputError
from transvert.plots import viewer
from transvert.progress import is_interactive

FILM_ROWS = 420
"""Of the films beside the sliders, in pixels of the screen."""
REACH_MM = 30
"""How far a landmark can be moved, each way."""
_BLUE, _ORANGE = (86, 180, 233), (230, 159, 0)


def pick_vertebra(truths: Sequence[Samples], made: Mapping[str, np.ndarray]) -> None:
    """Shows predicted vertebrae in 3D, one at a time: the prediction, the truth, or the error on the surface.

    Args:
        truths: subjects.
        made: subject to (N, 64, 64, 64) probabilities in the order of its samples.
    """
    if not is_interactive():
        return
    import ipywidgets
    from IPython.display import display

    by_name = {truth.subject: truth for truth in truths}
    subject = ipywidgets.Dropdown(options=list(by_name), description="subject")
    level = ipywidgets.Dropdown(description="level")
    what = ipywidgets.ToggleButtons(options=["error", "prediction", "truth"])
    told = ipywidgets.HTML()
    half = np.full(3, 0.5 * SIZE * SPACING_MM)
    plot = viewer.k3d_scene(-half, half)

    def offer(_: Any) -> None:
        truth = by_name[subject.value]
        level.options = [(name, (truth.subject, row)) for row, name in enumerate(truth.names)]
        level.index = 0

    def follow(_: Any) -> None:
        if level.value is not None:  # As it is while its options change.
            name, row = level.value
            drawn, told.value = vertebra_in_3d(by_name[name], row, made[name][row], what.value)
            replace_objects(plot, list(plot.objects), drawn)

    offer(None)
    follow(None)
    subject.observe(offer, "value")
    for control in (level, what):
        control.observe(follow, "value")
    display(ipywidgets.VBox([ipywidgets.HBox([subject, level, what]), told, plot]))


def vertebra_in_3d(truth: Samples, row: int, probability: np.ndarray, what: str) -> tuple[list[Any], str]:
    """What k3d draws of one prediction around its landmark, and a sentence that goes with it.

    Args:
        truth: a subject.
        row: of its samples.
        probability: (64, 64, 64).
        what: "error", "prediction" or "truth".
    """
    level, grid = int(truth.levels[row]), cube_affine(np.zeros(3), SIZE, SPACING_MM)
    name, colour = levels.name(level), viewer.level_colours(np.array(level))
    target = truth.targets()[row]
    if what == "truth":
        return [viewer.k3d_mesh(mesh.extract_surface(target, grid), name, colour)], f"{name} as it is"
    if not (probability > 0.5).any():
        return [], f"{name}: nothing was predicted"
    predicted = mesh.extract_surface(probability, grid)
    away = mesh.signed_distance_at(predicted.vertices, target, grid)
    error, worst = np.abs(away).mean(), np.abs(away).max()
    sentence = f"{name}: the predicted surface is {error:.1f} mm off on average, {worst:.1f} mm at most"
    if what == "prediction":
        return [viewer.k3d_mesh(predicted, name, colour)], sentence
    limit = viewer.ERROR_LIMIT_MM
    sentence += f"; red stands out too far, blue too little, white fits ({limit:g} mm either way)"
    return [viewer.k3d_mesh(predicted, name, colour, away)], sentence


def replace_objects(plot: Any, old: Sequence[Any], new: Sequence[Any]) -> None:
    """Takes objects out of a k3d plot and puts others in."""
    for one in old:
        plot -= one
    for one in new:
        plot += one


class MovedLandmark:
    """A reconstruction whose landmarks can be moved, one vertebra at a time; the others stay as they are.

    Args:
        films: AP and lateral.
        marks: their landmarks.
        network: trained.
        found: what `clinical.reconstruct` made of them.
        card: of the network's weights, as `clinical.reconstruct` was given it.

    Attributes:
        marks: as they are now.
        found: as it is now.
    """

    def __init__(
        self,
        films: tuple[Radiograph, Radiograph],
        marks: Landmarks,
        network: nn.Module,
        found: Reconstruction,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        self._films, self._network, self._card = films, network, card
        marks = centroids.to_vertebra_centroids(marks, found.views)
        self._marks_before, self._before = marks, found
        self.marks, self.found = marks, found

    def move(self, level: int, mm: np.ndarray) -> None:
        """Puts a level's landmarks where its centroid would be seen `mm` (3,), RAS, from where they were at first.

        Raises:
            InputError: they would lie off a film, or above or below a neighbour's; nothing has changed then.
        """
        views, first = self.found.views, self._marks_before
        there = first.place(*views)[0][level]
        moved = {
            which: first.centroids[which][level] + view.project(there + mm) - view.project(there)
            for which, view in zip(VIEWS, views, strict=True)
        }
        marks = replace(
            self.marks, centroids={which: {**self.marks.centroids[which], level: moved[which]} for which in VIEWS}
        )
        marks.place(*views)
        alone = replace(marks, centroids={which: {level: moved[which]} for which in VIEWS})
        click_mm = self.found.click_mm
        again = reconstruct(*self._films, alone, self._network, card=self._card, draws=0, click_mm=click_mm)
        vertebrae = [v for v in self.found.vertebrae if v.level != level] + again.vertebrae
        known, here = self.found.evidence, again.evidence
        evidence = replace(known, places={**known.places, **here.places}, sd_mm={**known.sd_mm, **here.sd_mm})
        measured = measure_posture(vertebrae, marks.s1(*views), evidence=evidence)
        self.marks, self.found = marks, replace(self.found, vertebrae=vertebrae, posture=measured, evidence=evidence)

    def angles(self) -> str:
        """An HTML table of the posture's measures: before any move, now, and the difference."""
        rows = ["<tr><th></th><th>before</th><th>now</th><th>change</th></tr>"]
        for name, now in self.found.posture["measures"].items():
            was, value = self._before.posture["measures"][name]["value"], now["value"]
            if was is not None and value is not None:
                cells = [name.replace("_", " "), f"{was:.1f}", f"{value:.1f}", f"{value - was:+.1f} {now['unit']}"]
                rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        return f"<table>{''.join(rows)}</table>"

    def picture(self, level: int) -> Image.Image:
        """Both films side by side with all landmarks, the level's own in orange."""
        drawn = []
        for which, one in zip(VIEWS, self._films, strict=True):
            grey = radiograph.to_grey(one.pixels, bits=8)
            scale = FILM_ROWS / grey.shape[0]
            picture = Image.fromarray(grey).resize((round(grey.shape[1] * scale), FILM_ROWS)).convert("RGB")
            draw = ImageDraw.Draw(picture)
            for n, pixel in self.marks.centroids[which].items():
                row, column = (pixel + 0.5) * scale
                radius, colour = (5, _ORANGE) if n == level else (2, _BLUE)
                draw.ellipse((column - radius, row - radius, column + radius, row + radius), outline=colour, width=2)
            drawn.append(np.asarray(picture))
        return Image.fromarray(np.concatenate(drawn, axis=1))

    def in_3d(self, level: int) -> list[Any]:
        """What k3d draws of a level now: its surface, or nothing where nothing was found."""
        alone = replace(self.found, vertebrae=[v for v in self.found.vertebrae if v.level == level])
        colour = viewer.level_colours(np.array(level))
        return [viewer.k3d_mesh(surface, levels.name(level), colour) for surface in surfaces(alone).values()]

    def play(self) -> None:
        """Shows a slider for each direction, the films, the spine and its angles; they follow when a slider is let go."""
        if not is_interactive():
            return
        import ipywidgets
        from IPython.display import display

        order = levels.in_order({v.level for v in self.found.vertebrae})
        level = ipywidgets.Dropdown(
            options=[(levels.name(n), n) for n in order], value=order[len(order) // 2], description="vertebra"
        )
        sliders = [
            ipywidgets.FloatSlider(0, min=-REACH_MM, max=REACH_MM, step=0.5, description=text, continuous_update=False)
            for text in ("right (mm)", "front (mm)", "head (mm)")
        ]
        films, told = ipywidgets.Image(format="png"), ipywidgets.HTML()
        plot = viewer.k3d_plot(surfaces(self.found))
        moved = {n: np.zeros(3) for n in order}

        def draw(said: str = "") -> None:
            films.value = to_png(self.picture(level.value))
            told.value = self.angles() + said

        def choose(_: Any) -> None:
            for slider, mm in zip(sliders, moved[level.value], strict=True):
                slider.value = mm
            draw()

        def follow(_: Any) -> None:
            n, mm = level.value, np.array([slider.value for slider in sliders])
            if (mm == moved[n]).all():
                return  # Another vertebra was chosen, and the sliders show where it is.
            told.value = f"Reconstructing {levels.name(n)} ..."
            try:
                self.move(n, mm)
            except InputError as error:
                draw(str(error))
                return
            moved[n] = mm
            replace_objects(plot, [one for one in plot.objects if one.name == levels.name(n)], self.in_3d(n))
            draw()

        level.observe(choose, "value")
        for slider in sliders:
            slider.observe(follow, "value")
        draw()
        plot.layout.flex = "1"
        display(ipywidgets.HBox([ipywidgets.VBox([level, *sliders, films, told]), plot]))
