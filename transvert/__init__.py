"""transvert: a reproducible companion to *Inferring the 3D Standing Spine Posture from 2D Radiographs*."""

__version__ = "0.1.0"
