"""Time and memory of the package and of comparable software."""
