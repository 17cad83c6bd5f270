"""Digitally reconstructed radiographs: views, ray integrals and the physics of an exposure."""
