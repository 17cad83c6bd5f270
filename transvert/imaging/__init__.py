"""Volumes, label masks and surfaces, all in RAS millimetres."""
