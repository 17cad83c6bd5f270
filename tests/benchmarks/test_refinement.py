"""Refinement moves a vertebra back to where its films were made, and does nothing where films show nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import inside_vertebra
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.transform import Rotation

from benchmarks.studies import refinement
from transvert.clinical.vertebra import Vertebra
from transvert.data import patches
from transvert.drr import geometry, projector
from transvert.drr.geometry import View
from transvert.imaging.volume import Volume
from transvert.io import InputError

L3, SIZE, MM = 22, 64, 1.5
HERE = np.array([20.0, -10.0, 60.0])


@pytest.fixture(scope="module")
def views() -> tuple[View, View]:
    return tuple(geometry.named_view(n, np.zeros(3), (400, 300), 0.8, cone=True) for n in ("ap", "lateral"))


@pytest.fixture(scope="module")
def bone(views: tuple[View, View]) -> Vertebra:
    """The synthetic vertebra, in the cube of its own rays, with soft edges."""
    axes = patches.local_axes(*views, HERE)
    fine = (np.arange(3 * SIZE) - (3 * SIZE - 1) / 2) * MM / 3
    grid = np.stack(np.meshgrid(fine, fine, fine, indexing="ij"))
    inside = inside_vertebra(*np.einsum("ij,jxyz->ixyz", axes, grid), (0.0, 0.0, 0.0))
    shares = inside.reshape(SIZE, 3, SIZE, 3, SIZE, 3).mean((1, 3, 5)).astype(np.float32)
    return Vertebra(L3, HERE, shares, MM, axes)


@pytest.fixture(scope="module")
def films(bone: Vertebra, views: tuple[View, View]) -> list[np.ndarray]:
    """The bone in front of a slope and a bright edge, such as a diaphragm's."""
    pictures = []
    for view in views:
        rows, columns = np.indices(view.shape)
        shown = projector.cast(Volume(bone.probability, bone.affine), view)
        pictures.append((0.02 * shown + 0.004 * rows + 1.0 * (columns + 0.3 * rows > 225)).astype(np.float32))
    return pictures


def test_a_displaced_vertebra_moves_back(bone: Vertebra, films: list[np.ndarray], views: tuple[View, View]) -> None:
    turn = Rotation.from_rotvec((0.0, 3.0, -3.0), degrees=True).as_matrix()
    given = replace(bone, centroid_ras=bone.centroid_ras + (-2.0, 0.0, 1.5), axes=turn @ bone.axes)
    (found,) = refinement.refine([given], films, views)
    assert np.degrees(Rotation.from_matrix(found.axes @ bone.axes.T).magnitude()) < 1.7
    assert np.linalg.norm(found.centroid_ras - bone.centroid_ras) < 0.9
    assert_array_equal(found.probability, bone.probability)


def test_nothing_moves_without_edges_or_without_bone(
    bone: Vertebra, films: list[np.ndarray], views: tuple[View, View]
) -> None:
    blank = np.full(views[0].shape, 7.0, np.float32)
    (found,) = refinement.refine([bone], [blank, blank], views)
    assert_allclose(found.centroid_ras, bone.centroid_ras, atol=1e-6)
    empty = replace(bone, probability=np.zeros((SIZE,) * 3, np.float32))
    assert refinement.refine([empty], films, views) == [empty]


def test_bad_input_is_refused(bone: Vertebra, films: list[np.ndarray], views: tuple[View, View]) -> None:
    with pytest.raises(InputError, match="twice"):
        refinement.refine([bone, bone], films, views)
    with pytest.raises(InputError, match="picture"):
        refinement.refine([bone], [films[0][:-1], films[1]], views)
