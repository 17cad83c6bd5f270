"""Figures and the 3D viewer."""
