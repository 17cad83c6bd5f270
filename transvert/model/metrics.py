"""Metrics of a reconstruction in millimetres, tables of them, and two baselines without a network.

The numbers are MONAI's, with these definitions (read in its source, version 1.6):

- A surface is the set of a mask's voxels that have a face neighbour outside it; a mask that touches the array's border
  ends there. A distance runs from the centre of a surface voxel to the nearest surface voxel of the other mask.
- `dice`: twice the common volume over the sum of both volumes.
- `hd95_mm`: the 95th percentile of the distances from prediction to truth, and that from truth to prediction; the
  larger of the two.
- `assd_mm`: the mean over the distances of both directions pooled, so that the larger surface weighs more. (The mean of
  the two directions' means is another definition in use.)
- `nsd_1p5mm`: the share of both surfaces' voxels that lie within 1.5 mm of the other surface.

An empty prediction counts as a failure and not as a gap: its Dice and NSD are 0 and its distances infinite.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd

from transvert import levels
from transvert.io import InputError

NSD_TOLERANCE_MM = 1.5
METRICS = ("dice", "hd95_mm", "assd_mm", "nsd_1p5mm")
REGIONS = {"C": "cervical", "T": "thoracic", "L": "lumbar"}


def compare(
    prediction: np.ndarray, truth: np.ndarray, spacing_mm: float | tuple[float, float, float]
) -> dict[str, float]:
    """Compares a predicted mask with the true one on the same grid.

    Args:
        prediction: (X, Y, Z) bool.
        truth: (X, Y, Z) bool.
        spacing_mm: the voxel's size, one number or one for each axis.

    Returns:
        `METRICS` and their values; dice 0, nsd 0 and infinite distances where the prediction is empty.

    Raises:
        InputError: other shapes or types, a spacing that is not positive, or an empty truth.
    """
    spacing = np.broadcast_to(np.asarray(spacing_mm, float), 3)
    if prediction.shape != truth.shape or truth.ndim != 3:
        raise InputError(
            f"The prediction {prediction.shape} and the truth {truth.shape} must be 3D masks of one shape."
        )
    if prediction.dtype != bool or truth.dtype != bool:
        raise InputError(
            f"The prediction ({prediction.dtype}) and the truth ({truth.dtype}) must be boolean: threshold them."
        )
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise InputError(f"The spacing {spacing_mm} must be positive millimetres.")
    if not truth.any():
        raise InputError("The true mask is empty, so there is nothing to compare with: leave this vertebra out.")
    if not prediction.any():
        return dict(zip(METRICS, (0.0, np.inf, np.inf, 0.0), strict=True))

    import torch
    from monai.metrics import (
        compute_average_surface_distance,
        compute_dice,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    # A voxel of margin, so that a mask which touches the array's border has its surface there and no hole.
    y_pred, y = (torch.from_numpy(np.pad(mask, 1)[None, None].astype(np.float32)) for mask in (prediction, truth))
    background = {"include_background": True}  # the one channel is the vertebra
    surface = {**background, "spacing": spacing.tolist()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy")  # MONAI 1.6 warns of a call of its own
        values = {
            "dice": compute_dice(y_pred, y, **background),
            "hd95_mm": compute_hausdorff_distance(y_pred, y, percentile=95, **surface),
            "assd_mm": compute_average_surface_distance(y_pred, y, symmetric=True, **surface),
            "nsd_1p5mm": compute_surface_dice(y_pred, y, class_thresholds=[NSD_TOLERANCE_MM], **surface),
        }
    return {name: float(value) for name, value in values.items()}


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """A table by region (cervical, thoracic, lumbar; those that occur) and over all vertebrae.

    Args:
        frame: one row per vertebra, with `level` (its name) and the columns of `METRICS`.

    Returns:
        One row per region and a last row "all": `region`, `count` (vertebrae), `empty` (empty predictions), and for each
        metric its `_mean` and `_median`. Dice and NSD count an empty prediction as 0; the distances leave it out: read
        them beside `empty`. NaN where none is left.

    Raises:
        InputError: a column is missing, there is no row, or a value is NaN.
    """
    missing = [column for column in ("level", *METRICS) if column not in frame.columns]
    if missing:
        raise InputError(f"The table of metrics lacks the column {', '.join(missing)}.")
    if frame.empty:
        raise InputError("The table of metrics has no rows: evaluate at least one vertebra.")
    if frame[list(METRICS)].isna().any(axis=None):
        raise InputError("The table of metrics has NaN values: evaluate those vertebrae again, or drop their rows.")
    regions = frame["level"].map(lambda name: levels.region(levels.number(name)))
    groups = [(name, frame[regions == letter]) for letter, name in REGIONS.items()] + [("all", frame)]
    rows = []
    for name, group in groups:
        if group.empty:
            continue
        row: dict[str, object] = {"region": name, "count": len(group), "empty": int(np.isinf(group["assd_mm"]).sum())}
        for metric in METRICS:
            values = group[metric][np.isfinite(group[metric])]
            row |= {f"{metric}_mean": values.mean(), f"{metric}_median": values.median()}
        rows.append(row)
    return pd.DataFrame(rows)


def mean_shape(targets: np.ndarray) -> np.ndarray:
    """Baseline: the mean training shape, a prediction without any radiograph.

    The plain mean of varying shapes, thresholded at 0.5, is smaller than they are. So its values are mapped piecewise
    linearly (keeping their order, with 0 and 1 fixed) such that 0.5 cuts out the mean volume.

    Args:
        targets: (N, S, S, S) uint8, 0 or 1, aligned as the samples are.

    Returns:
        (S, S, S) float32 in 0..1.

    Raises:
        InputError: no targets, or only empty ones.
    """
    if targets.ndim != 4 or not targets.any():
        raise InputError(f"The targets {targets.shape} must be (N, S, S, S) masks, and not all of them empty.")
    mean = targets.mean(axis=0, dtype=np.float32)
    values, counts = np.unique(mean, return_counts=True)
    if values[0] > 0:
        values, counts = np.append(0.0, values), np.append(0, counts)
    volumes = np.cumsum(counts[::-1])[::-1]  # Voxels at least as large as each value.
    best = 1 + int(np.argmin(np.abs(volumes[1:] - mean.sum(dtype=float))))
    cut = float(values[best - 1] + values[best]) / 2
    return np.interp(mean, [0.0, cut, 1.0], [0.0, 0.5, 1.0]).astype(np.float32)


def visual_hulls(targets: np.ndarray) -> np.ndarray:
    """Baseline: the visual hulls of vertebrae, the largest shapes with their exact parallel AP and lateral silhouettes.

    Args:
        targets: (N, S, S, S) bool, RAS order.

    Returns:
        (N, S, S, S) bool.
    """
    return np.logical_and(targets.any(axis=2, keepdims=True), targets.any(axis=1, keepdims=True))
