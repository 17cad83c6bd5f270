"""A standing person with known truth, for the posture benchmark."""
