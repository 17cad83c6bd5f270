"""Digitally reconstructed radiographs: views, ray casting and X-ray physics."""

from transvert.drr import exposure
from transvert.drr.geometry import View, covering_view, named_view
from transvert.drr.projector import attenuation, cast, cast_batch, cast_parts

__all__ = ["View", "attenuation", "cast", "cast_batch", "cast_parts", "covering_view", "exposure", "named_view"]
