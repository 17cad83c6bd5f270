"""Patches along a vertebra's own rays show shapes as their known projections in their own frame."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from transvert.data import patches
from transvert.data.patches import SIZE, SPACING_MM
from transvert.drr import geometry, projector
from transvert.drr.geometry import View
from transvert.imaging.volume import Volume
from transvert.io import InputError

FAR = np.array([40.0, -30.0, 330.0])
"""A point at which both rays of `_views` are oblique by 12 degrees."""
VOXEL_MM = 0.75


def _views(
    ap: str = "ap", lateral: str = "left_lateral", *, cone: bool = True, slot: bool = False
) -> tuple[View, View]:
    rays = {"cone": cone, "slot": slot}
    one, other = (geometry.named_view(name, np.zeros(3), (1100, 400), 0.9, **rays) for name in (ap, lateral))
    return one, other


def _solid(inside: np.ndarray, axes: np.ndarray, centre: np.ndarray) -> Volume:
    """A shape on a grid whose axes are `axes`, its middle at `centre`."""
    affine = np.eye(4)
    affine[:3, :3] = axes * VOXEL_MM
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(inside.shape) - 1) / 2)
    return Volume(inside.astype(np.float32), affine)


def _grid(size: int) -> np.ndarray:
    return (np.indices((size,) * 3) - (size - 1) / 2) * VOXEL_MM


@pytest.mark.parametrize("names", [("ap", "left_lateral"), ("pa", "right_lateral"), ("ap", "right_lateral")])
@pytest.mark.parametrize("cone", [True, False])
def test_the_frame_is_the_patient_s_on_central_and_parallel_rays(names: tuple[str, str], cone: bool) -> None:
    views = _views(*names, cone=cone)
    assert_allclose(patches.local_axes(*views, np.zeros(3)), np.eye(3), atol=1e-12)
    if not cone:
        assert_allclose(patches.local_axes(*views, FAR), np.eye(3), atol=1e-12)
    # The fans of a slot scanner lie across: the frame does not tilt, and turns by the mean of the two rays' turns.
    fans = _views(*names, cone=False, slot=True)
    axes = patches.local_axes(*fans, FAR)
    assert_allclose(axes[:, 2], [0, 0, 1], atol=1e-12)
    turns = [np.arcsin(np.cross(fan.direction, fan.ray_through(FAR))[2]) for fan in fans]
    assert np.abs(turns).min() > 0.01
    assert np.arctan2(axes[1, 0], axes[0, 0]) == pytest.approx(np.mean(turns))


def test_a_far_frame_is_right_handed_and_equally_close_to_both_rays() -> None:
    views = _views()
    axes = patches.local_axes(*views, FAR)
    assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    assert np.linalg.det(axes) == pytest.approx(1)
    ways = [(FAR - view.source) / np.linalg.norm(FAR - view.source) for view in views if view.source is not None]
    aside = [np.degrees(np.arccos(-way @ axes[:, axis])) for way, axis in zip(ways, (1, 0), strict=True)]
    assert aside[0] == pytest.approx(aside[1]) and aside[0] < 2.0
    assert all(np.degrees(np.arccos(abs(way @ np.eye(3)[axis]))) > 11 for way, axis in zip(ways, (1, 0), strict=True))
    # Where both rays climb, the frame's front and right look down: its long axis leans to the front and to the right.
    assert axes[2, 1] < -0.15 and axes[2, 0] < -0.15 and axes[1, 2] > 0.15 and axes[0, 2] > 0.15


def test_a_far_box_is_projected_along_its_own_rays() -> None:
    views = _views()
    axes = patches.local_axes(*views, FAR)
    x, y, z = _grid(100)
    box = (np.abs(x) < 21) & (np.abs(y) < 15) & (np.abs(z) < 12)
    pictures = [projector.cast(_solid(box, axes, FAR), view) for view in views]
    above = FAR + 30 * axes[:, 2]
    clicks = [{20: view.project(FAR), 19: view.project(above), 22: view.project(FAR - above)} for view in views]
    shown, found = patches.crop_patches(pictures, views, clicks, 20, FAR)
    assert_allclose(found, axes)
    assert shown.shape == (2, 4, SIZE, SIZE) and shown.dtype == np.float32
    # The neighbour above is 30 mm up in both patches; L3 is no neighbour of L1.
    for context in shown[:, 2]:
        assert_allclose(context, patches.centroid_map(np.array([-30.0, 0.0])), atol=1e-4)
    assert (shown[:, 3] == patches.level_code(20)).all()
    steps = (np.arange(SIZE) - (SIZE - 1) / 2) * SPACING_MM
    for which, (half, thick) in enumerate(((21, 30), (15, 42))):
        square = patches.plane(axes, which)
        patch, valid = patches.cut_patch(pictures[which], views[which], FAR, SIZE, SPACING_MM, square)
        assert valid.all()
        truth = np.outer(np.abs(steps) < 12, np.abs(steps) < half) * float(thick)
        away = np.minimum(np.abs(np.abs(steps) - 12)[:, None], np.abs(np.abs(steps) - half)[None])
        # The cone spreads by 1 to 2 degrees over the box: half a millimetre at its rims.
        assert_allclose(patch[away > 2], truth[away > 2], atol=1.0)
        straight, _ = patches.cut_patch(pictures[which], views[which], FAR, SIZE, SPACING_MM)
        assert np.abs(straight - truth)[away > 2].max() > 15, "cut along the detector, the box is smeared"


@pytest.mark.parametrize("which", [0, 1])
def test_a_landmark_offset_is_where_its_ray_meets_the_patch_plane(which: int) -> None:
    views = _views()
    square = patches.plane(patches.local_axes(*views, FAR), which)
    for beside in ([0.0, 0.0], [7.0, -3.0], [-20.0, 11.0]):
        pixel = views[which].project(FAR + beside @ square)
        assert_allclose(patches.offset_mm(views[which], pixel, FAR, square), beside, atol=1e-9)


def test_two_views_from_one_side_and_a_picture_of_another_shape_are_refused() -> None:
    ap, lateral = _views()
    with pytest.raises(InputError, match="'ap' and 'pa' see the spine from nearly one side; give an AP"):
        patches.local_axes(ap, _views("pa")[0], FAR)
    with pytest.raises(InputError, match=r"A picture of \(3, 3\) is not one of the view 'left_lateral'"):
        patches.cut_patch(np.ones((3, 3)), lateral, FAR, SIZE, SPACING_MM, patches.plane(np.eye(3), 1))
