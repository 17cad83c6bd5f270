"""A standing posture in numbers, drawn from published ranges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KYPHOSIS_DEG = (20.0, 50.0)
"""T4 to T12, the normal range of White and Panjabi, Clinical Biomechanics of the Spine."""
LORDOSIS_DEG = (30.0, 70.0)
"""L1 to S1. Standing, 627 healthy volunteers had 49.8 ± 11.2 from T12 to S1 (Asian Spine Journal 2019, PMC6680033), 100 over
forty 64 ± 10 (Gelb et al., Spine 20, 1995, 1351)."""
SACRAL_SHARE = (0.2, 0.3)
"""Share of the lordosis in the disc below L5: this companion's choice."""
PLUMB_MM = (-30.0, 35.0)
"""C7 in front of the posterior edge of S1: 3.2 ± 3.2 cm behind the front of the sacrum (Gelb et al.), of some 33 mm depth."""
STRAIGHT_SHARE, STRAIGHT_DEG, SCOLIOSIS_DEG = 0.4, (0.0, 9.0), (10.0, 45.0)
"""Share of postures without scoliosis (below 10 degrees), and the ranges without and with."""
ROTATION_SHARE = (0.2, 0.45)
"""Axial rotation at the apex divided by the Cobb angle. Upright, 62 patients had 22 degrees at 68 thoracic and 11 at 44 lumbar
(Brink et al., 2017, PMC5320720); bodies turn to the convex side."""
CURVES = {"thoracic": ((12, 13), (18, 19), 0.8), "lumbar": ((18, 19), (22, 23), 0.2)}
"""Upper and lower end levels, and the share of curves convex to the right."""


@dataclass(frozen=True)
class Curve:
    """A posture.

    Attributes:
        kyphosis_deg: superior T4 to inferior T12 endplate.
        lordosis_deg: superior L1 to inferior L5 endplate.
        sacral_disc_deg: lordosis of the disc below L5, down to S1.
        plumb_mm: the middle of C7's body in front of the posterior edge of S1's endplate.
        cobb_deg: superior endplate of `upper` to inferior one of `lower`, in the coronal plane.
        upper: VerSe number of the curve's upper end level, and `lower`: of its lower one.
        convexity: "right" or "left", the patient's.
        rotation_deg: axial, of the level at the apex, to the convex side.
    """

    kyphosis_deg: float
    lordosis_deg: float
    sacral_disc_deg: float
    plumb_mm: float
    cobb_deg: float
    upper: int
    lower: int
    convexity: str
    rotation_deg: float


def draw_curve(seed: int, *, lumbar: bool = True) -> Curve:
    """Draws a posture; each value is uniform in its range above.

    Args:
        seed: equal seeds give equal curves.
        lumbar: allow lumbar coronal curves, which need L4.
    """
    random = np.random.default_rng(seed)
    total, share = random.uniform(*LORDOSIS_DEG), random.uniform(*SACRAL_SHARE)
    kind = "lumbar" if random.uniform() < 0.4 and lumbar else "thoracic"
    upper, lower, right = CURVES[kind]
    cobb = float(random.uniform(*(STRAIGHT_DEG if random.uniform() < STRAIGHT_SHARE else SCOLIOSIS_DEG)))
    return Curve(
        kyphosis_deg=float(random.uniform(*KYPHOSIS_DEG)),
        lordosis_deg=float(total * (1 - share)),
        sacral_disc_deg=float(total * share),
        plumb_mm=float(random.uniform(*PLUMB_MM)),
        cobb_deg=cobb,
        upper=int(random.choice(upper)),
        lower=int(random.choice(lower)),
        convexity="right" if random.uniform() < right else "left",
        rotation_deg=cobb * float(random.uniform(*ROTATION_SHARE)),
    )
