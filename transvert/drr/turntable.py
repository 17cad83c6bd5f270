"""A source that goes round the patient, and the radiograph that follows it while a slider is dragged."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from transvert.drr import geometry, projector
from transvert.drr.geometry import View
from transvert.imaging.volume import Volume
from transvert.progress import is_interactive

PIXELS = 256
"""Of a picture, a side."""
_BLUE = (86, 180, 233)


@dataclass(frozen=True)
class Turntable:
    """A patient between a source and a square detector that go round together.

    Attributes:
        matter: attenuation per mm, as finely as the detector's pixels need it.
        isocentre: (3,) RAS mm, what they go round.
        pixel_mm: on the detector.
        window: the ray integrals that are drawn black and white, from whatever side.
    """

    matter: Volume
    isocentre: np.ndarray
    pixel_mm: float
    window: tuple[float, float]

    def view(self, turn_deg: float, tilt_deg: float = 0.0) -> View:
        """The cone view from a side; both angles as `geometry.named_view` has them for "ap"."""
        made = geometry.named_view(
            "ap", self.isocentre, (PIXELS, PIXELS), self.pixel_mm, cone=True, turn_deg=turn_deg, tilt_deg=tilt_deg
        )
        return replace(made, name=f"turned {turn_deg:g}°")

    def picture(self, turn_deg: float, tilt_deg: float = 0.0) -> Image.Image:
        """The radiograph from a side, grey, with what of the patient lies to the left and to the right written on it."""
        view = self.view(turn_deg, tilt_deg)
        low, high = self.window
        grey = np.clip((projector.cast(self.matter, view) - low) / (high - low), 0, 1)
        picture = Image.fromarray((255 * grey).astype(np.uint8)).convert("RGB")
        draw = ImageDraw.Draw(picture)
        draw.text((4, PIXELS / 2), side(-view.column_step), _BLUE, anchor="lm")
        draw.text((PIXELS - 4, PIXELS / 2), side(view.column_step), _BLUE, anchor="rm")
        return picture

    def play(self) -> None:
        """Shows two sliders and the radiograph that follows them, where a person watches."""
        if not is_interactive():
            return
        import ipywidgets
        from IPython.display import display

        turn = ipywidgets.IntSlider(0, -180, 180, 1, description="turn (°)")
        tilt = ipywidgets.IntSlider(0, -30, 30, 1, description="tilt (°)")
        shown = ipywidgets.Image(format="png", width=2 * PIXELS, height=2 * PIXELS)

        def follow(_: Any) -> None:
            shown.value = to_png(self.picture(turn.value, tilt.value))

        for slider in (turn, tilt):
            slider.observe(follow, "value")
        follow(None)
        display(ipywidgets.VBox([turn, tilt, shown]))


def prepare(attenuation: Volume) -> Turntable:
    """Prepares a volume once, so that each further view takes milliseconds.

    Voxels much finer than a pixel's rays are apart cost time and show nothing: they are averaged first.

    Args:
        attenuation: per mm, as `drr.attenuation` makes it.
    """
    corners = attenuation.corners()
    isocentre = (corners.min(0) + corners.max(0)) / 2
    front_and_side = [geometry.covering_view(name, corners, 1.0, cone=True) for name in ("ap", "left_lateral")]
    pixel_mm = max(max(view.shape) for view in front_and_side) / PIXELS
    made = Turntable(
        coarsen(attenuation, pixel_mm / front_and_side[0].magnification(isocentre)), isocentre, pixel_mm, (0, 1)
    )
    seen = np.stack([projector.cast(made.matter, made.view(turn)) for turn in (0, 90)])
    low, high = np.percentile(seen[seen > 0], (1, 99.7))
    return replace(made, window=(float(low), float(high)))


def coarsen(volume: Volume, spacing_mm: float) -> Volume:
    """A volume of block means, float32, along each axis of as many voxels as fit into `spacing_mm`; rests are cut off."""
    blocks = np.maximum(np.floor(spacing_mm / volume.spacing_mm + 1e-6), 1).astype(int)
    shape = np.array(volume.data.shape) // blocks
    data = volume.data[tuple(slice(n) for n in shape * blocks)]
    for axis, block in enumerate(blocks):
        parts = np.moveaxis(data, axis, 0).reshape(shape[axis], block, *np.delete(data.shape, axis))
        data = np.moveaxis(parts.mean(1, dtype=np.float32), 0, axis)
    affine = volume.affine @ np.diag([*blocks, 1.0])
    affine[:3, 3] = volume.world((blocks - 1) / 2)
    return Volume(np.ascontiguousarray(data), affine)


def side(direction: np.ndarray) -> str:
    """What of the patient lies in a direction (3,), RAS: "R", "A", or two letters in between, the nearer one first."""
    parts = direction / np.linalg.norm(direction)
    letters = ("LR"[int(parts[0] > 0)], "PA"[int(parts[1] > 0)], "FH"[int(parts[2] > 0)])
    return "".join(letters[i] for i in np.argsort(-np.abs(parts)) if abs(parts[i]) > np.sin(np.pi / 8))


def to_png(picture: Image.Image) -> bytes:
    """A picture as a widget wants it: quickly made, not small."""
    out = io.BytesIO()
    picture.save(out, "png", compress_level=1)
    return out.getvalue()
