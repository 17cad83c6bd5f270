"""Standing people with known posture, to measure reconstructions against."""
