"""Proof of the ray integrals with analytic bodies, for each named view: parallel, cone and slot.

The relative RMSE of a 256 x 256 picture must be at most 1e-4. Voxels represent a body that well only if it is smooth or
ends with its grid, hence uniform boxes that fill their grid, piecewise linear slabs, and ellipsoids that fade towards
their rim. The error of a hard rim comes from the grid, not from the rays; the last part shows that it falls with the
voxel size as theory says.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from scipy import interpolate, ndimage, special
from scipy.spatial.transform import Rotation

from transvert.clinical import radiograph
from transvert.drr import exposure, projector
from transvert.drr.geometry import VIEW_NAMES, View, named_view
from transvert.imaging.volume import Volume

ORIGIN = np.array([-40.0, 25.0, 300.0])
OBLIQUE = Rotation.from_euler("xyz", [17, -24, 38], degrees=True)

Beam = dict[str, bool]
BEAMS = pytest.mark.parametrize("beam", [{}, {"cone": True}, {"slot": True}], ids=["parallel", "cone", "slot"])


def rays(view: View) -> tuple[np.ndarray, np.ndarray]:
    """(256, 256, 3) RAS mm: a point on each pixel's ray, and the ray's unit direction."""
    return view.rays(np.stack(np.indices(view.shape), axis=-1))


def relative_rmse(picture: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(((picture - truth) ** 2).mean() / (truth**2).mean()))


def grid(shape: tuple, spacing_mm: object, turn: Rotation | None = None, middle: np.ndarray = ORIGIN) -> Volume:
    """An empty volume around `middle`, its axes turned."""
    affine = np.eye(4)
    affine[:3, :3] = (turn or Rotation.identity()).as_matrix() * np.broadcast_to(spacing_mm, 3)
    affine[:3, 3] = middle - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return Volume(np.zeros(shape, np.float32), affine)


def fill(volume: Volume, density: Callable[[np.ndarray], np.ndarray]) -> None:
    """Sets each voxel to the density at its centre, (Y, Z, 3) RAS mm at a time."""
    across = np.stack(np.indices(volume.data.shape[1:]), axis=-1)
    for i, layer in enumerate(volume.data):
        layer[:] = density(volume.world(np.insert(across, 0, i, axis=-1)))


def passage(volume: Volume, start: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each ray enters and leaves the volume's outer faces, mm along the ray; equal where it does not meet them."""
    inverse = np.linalg.inv(volume.affine[:3, :3]).T
    start, direction = volume.index(start), direction @ inverse
    with np.errstate(divide="ignore"):
        faces = [(face - start) / direction for face in (-0.5, np.array(volume.data.shape) - 0.5)]
    low, high = np.minimum(*faces).max(axis=-1), np.maximum(*faces).min(axis=-1)
    return np.where(high > low, low, 0), np.where(high > low, high, 0)


# Bodies: each a volume and a function from rays to the truth.

Body = tuple[Volume, Callable[[np.ndarray, np.ndarray], np.ndarray]]


def uniform_box(turn: Rotation | None) -> Body:
    """A uniform volume: a box with exact faces; on a rotated grid, a slanted slab."""
    volume = grid((40, 62, 28), (2.0, 1.3, 2.5), turn)
    volume.data[:] = 0.02

    def truth(start: np.ndarray, direction: np.ndarray) -> np.ndarray:
        low, high = passage(volume, start, direction)
        return 0.02 * (high - low)

    return volume, truth


def interior_slab() -> Body:
    """A slab slanted to its grid, with a trapezoid as density profile.

    A ray's integral is the difference of the trapezoid's antiderivative at its ends, over the cosine to the normal.
    """
    volume = grid((88, 280, 94), (1.5, 0.48, 1.4))
    normal = np.array([0.3, 1.0, -0.25]) / np.linalg.norm([0.3, 1.0, -0.25])
    depth = [-24.0, -6.0, 6.0, 24.0]  # mm from the middle plane, where the ramps begin and end
    area = interpolate.make_interp_spline(depth, [0, 1, 1, 0], k=1).antiderivative()
    fill(volume, lambda at: np.interp((at - ORIGIN) @ normal, depth, [0, 1, 1, 0]))

    def truth(start: np.ndarray, direction: np.ndarray) -> np.ndarray:
        ends = [(start + mm[..., None] * direction - ORIGIN) @ normal for mm in passage(volume, start, direction)]
        first, last = (area(np.clip(end, -24, 24)) for end in ends)
        return (last - first) / (direction @ normal)

    return volume, truth


def fading(volume: Volume, centre: np.ndarray, axes: np.ndarray, power: int = 2) -> Body:
    """An ellipsoid of density (1 - q^2)^power, where q is the distance from its centre, 1 at the rim.

    `axes` (3, 3) takes the unit ball to the ellipsoid, so q = |inverse(axes) (x - centre)|. Along a ray q^2 is a
    quadratic a t^2 + 2 b t + c in mm; its least value is d^2 = c - b^2 / a, and from there 1 - q^2 = (1 - d^2) - a t^2.
    With t = v sqrt((1 - d^2) / a) the integral is (1 - d^2)^(power + 1/2) / sqrt(a) times that of (1 - v^2)^power from
    -1 to 1, the beta function B(1/2, power + 1). An error of 1e-4 needs a radius of 100 voxels (measured).
    """
    inverse = np.linalg.inv(axes).T
    fill(volume, lambda at: np.maximum(1 - (((at - centre) @ inverse) ** 2).sum(axis=-1), 0) ** power)

    def truth(start: np.ndarray, direction: np.ndarray) -> np.ndarray:
        d_squared, a = nearest(start, direction, centre, inverse)
        return np.maximum(1 - d_squared, 0) ** (power + 0.5) / np.sqrt(a) * special.beta(0.5, power + 1)

    return volume, truth


def nearest(
    start: np.ndarray, direction: np.ndarray, centre: np.ndarray, inverse: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """d^2 and a of `fading`, for each ray."""
    from_centre, step = (start - centre) @ inverse, direction @ inverse
    a, b, c = ((u * v).sum(axis=-1) for u, v in ((step, step), (from_centre, step), (from_centre, from_centre)))
    return c - b**2 / a, a


def ellipsoid() -> Body:
    """Off-centre and rotated, on a grid with another rotation."""
    turn = Rotation.from_euler("xyz", [-30, 10, 55], degrees=True)
    centre = ORIGIN + [13.0, -9.0, 8.0]
    volume = grid((206, 206, 206), 0.6, OBLIQUE, centre + [0.2, -0.1, 0.1])
    return fading(volume, centre, turn.as_matrix() * [59.0, 54.0, 61.0])


def unit_impulse() -> Body:
    """One voxel, which rays cross almost perpendicularly: its projection is a hat function in both directions."""
    volume = grid((7, 9, 11), (1.0, 1.5, 2.0))
    volume.data[3, 4, 5] = 1

    def truth(start: np.ndarray, direction: np.ndarray) -> np.ndarray:
        along = int(np.abs(direction[128, 128]).argmax())
        start, direction = volume.index(start) - [3, 4, 5], direction / volume.spacing_mm
        where = start - (start[..., along] / direction[..., along])[..., None] * direction
        hats = np.maximum(1 - np.abs(np.delete(where, along, axis=-1)), 0)
        return hats.prod(axis=-1) / np.abs(direction[..., along])

    return volume, truth


# Each body and the pixel size of its pictures in the plane of the isocentre, mm.
BODIES: dict[str, tuple[Callable[[], Body], float]] = {
    "box": (lambda: uniform_box(None), 0.43),
    "slanted box": (lambda: uniform_box(OBLIQUE), 0.5),
    "slanted slab": (interior_slab, 0.47),
    "ellipsoid": (ellipsoid, 0.6),
    "unit impulse": (unit_impulse, 0.0203),
}


@functools.cache
def body(name: str) -> Body:
    return BODIES[name][0]()


def proof_view(name: str, pixel_mm: float, beam: Beam) -> View:
    """256 x 256 pixels, the isocentre a little beside the body's middle, so that no ray runs along a voxel's edge."""
    isocentre = ORIGIN + [0.113, -0.171, 0.137]
    across, along = pixel_mm * (1.2 if beam else 1), pixel_mm * (1.2 if "cone" in beam else 1)
    return named_view(name, isocentre, (256, 256), (along, across), **beam)


@BEAMS
@pytest.mark.parametrize("name", VIEW_NAMES)
@pytest.mark.parametrize("which", BODIES)
def test_a_body_shows_its_ray_integrals(which: str, name: str, beam: Beam) -> None:
    volume, truth = body(which)
    view = proof_view(name, BODIES[which][1], beam)
    expected = truth(*rays(view))
    assert (expected > 0).mean() > 0.1
    assert relative_rmse(projector.cast(volume, view), expected) <= 1e-4


@pytest.mark.parametrize("turn", [None, OBLIQUE], ids=["aligned", "oblique"])
@BEAMS
@pytest.mark.parametrize("name", VIEW_NAMES)
def test_a_unit_impulse_integrates_to_its_voxel(name: str, beam: Beam, turn: Rotation | None) -> None:
    """Over the solid angle, and the distance squared, ray integrals add up to the volume integral.

    A pixel of area A at the distance D from a source is seen under the angle A cos / D^2, where cos is that between
    its ray and the detector's normal; in a slot view, whose fans do not spread along rows, A cos / D.
    """
    volume = grid((7, 9, 11), (1.0, 1.5, 2.0), turn)
    volume.data[3, 4, 5] = 1
    view = proof_view(name, 0.0297, beam)
    start, direction = rays(view)
    area = np.prod(view.pixel_mm) * np.abs(direction @ view.direction)
    if view.source is not None:
        pixels = np.indices(view.shape).transpose(1, 2, 0)
        on_detector = view.corner + pixels @ np.stack([view.row_step, view.column_step])
        source = view.rays(view.project(ORIGIN))[0]
        nearer = ((ORIGIN - source) ** 2).sum() / ((on_detector - start) ** 2).sum(axis=-1)
        area *= np.sqrt(nearer) if view.slot else nearer
    picture = projector.cast(volume, view)
    assert max(np.abs(picture[[0, -1]]).max(), np.abs(picture[:, [0, -1]]).max()) < 1e-6  # All of it is in the picture.
    assert (picture * area).sum() == pytest.approx(1.0 * 1.5 * 2.0, rel=2e-4)


# A hard rim: what the grid costs.


@functools.cache
def hard_ball(voxels: int, stretched: bool) -> tuple[Volume, np.ndarray]:
    """A uniform ball of 50 mm with `voxels` to its radius, or stretched together with its grid, and its axes."""
    axes = 50 * (np.array([[1.1, 0.1, 0.0], [0.2, 0.8, 0.1], [0.0, -0.1, 0.9]]) if stretched else np.eye(3))
    size = int(np.ceil(2.3 * voxels))
    unit = grid((size, size, size), 1 / voxels, OBLIQUE, np.array([0.013, -0.009, 0.011]))
    fill(unit, lambda at: np.clip((1 - np.linalg.norm(at, axis=-1)) * voxels + 0.5, 0, 1))
    stretch = np.eye(4)
    stretch[:3, :3], stretch[:3, 3] = axes, ORIGIN
    return Volume(unit.data, stretch @ unit.affine), axes


@pytest.mark.parametrize("stretched", [False, True], ids=["sphere", "ellipsoid"])
@BEAMS
@pytest.mark.parametrize("name", ["ap", "left_lateral"])
def test_a_hard_rim_s_error_falls_with_the_voxel_as_theory_says(name: str, beam: Beam, stretched: bool) -> None:
    """Voxels of h mm blur a projection: partial volumes by a box of variance h^2/12, interpolation by a hat of variance
    h^2/6, together a standard deviation of s = h/2. The error of a ball's projection 2 sqrt(R^2 - d^2) under a Gaussian
    of s follows from its Fourier transform, whose square falls as 8 pi^2 R^2 / k^4: relative to the projection's RMS it
    is sqrt(ln 2) s / R = 0.42 h / R. Stretching both body and grid changes nothing.
    """
    view = proof_view(name, 0.49, beam)
    voxels = np.array([8, 16, 32])
    errors = []
    for n in voxels.tolist():
        volume, axes = hard_ball(n, stretched)
        d_squared, a = nearest(*rays(view), ORIGIN, np.linalg.inv(axes).T)
        truth = 2 * np.sqrt(np.maximum(1 - d_squared, 0) / a)
        errors.append(relative_rmse(projector.cast(volume, view), truth))
    assert errors * voxels == pytest.approx(np.full(3, np.sqrt(np.log(2)) / 2), rel=0.1)
    assert np.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.05)
    assert np.log2(errors[1] / errors[2]) == pytest.approx(1, abs=0.05)


# Left and right, front and back, up and down: in the picture, and in the DICOM file.

WAYS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "H": (0, 0, 1), "F": (0, 0, -1)}
BLOBS = {"R": 0.3, "A": 0.2, "H": 0.1}  # Side of the patient and density, in the order of brightness in a picture.


def asymmetric(turn: Rotation | None) -> Volume:
    """A faint body with a ball of 7 mm on its right, in front and at its head, 28, 32 and 36 mm from its middle."""
    volume = grid((52, 61, 38), (1.7, 1.4, 2.6), turn)

    def density(at: np.ndarray) -> np.ndarray:
        at = at - ORIGIN
        total = 0.002 * (np.linalg.norm(at, axis=-1) < 38)
        for reach, (way, dense) in zip((28, 32, 36), BLOBS.items(), strict=True):
            total = total + dense * (np.linalg.norm(at - reach * np.array(WAYS[way]), axis=-1) < 7)
        return total

    fill(volume, density)
    return volume


def blobs_in(picture: np.ndarray) -> dict[str, np.ndarray]:
    """Position of each blob in a picture where dense is bright: (2,) rows and columns from the middle."""
    spots, count = ndimage.label(picture > picture.min() + 0.2 * np.ptp(picture))
    assert count == 3
    brightest_first = np.argsort(-ndimage.maximum(picture, spots, [1, 2, 3])) + 1
    places = ndimage.center_of_mass(picture, spots, brightest_first)
    return {way: np.array(place) - (np.array(picture.shape) - 1) / 2 for way, place in zip(BLOBS, places, strict=True)}


GRIDS = pytest.mark.parametrize("turn", [None, OBLIQUE], ids=["aligned", "oblique"])


@GRIDS
@BEAMS
@pytest.mark.parametrize("name", VIEW_NAMES)
def test_a_patient_s_sides_are_where_a_radiologist_expects_them(name: str, beam: Beam, turn: Rotation | None) -> None:
    view = named_view(name, ORIGIN, (120, 100), 1.1, **beam)
    found = blobs_in(projector.cast(asymmetric(turn), view))
    # Left of the picture: the patient's right in AP and PA, the front in both laterals. The third blob lies on the ray.
    left, hidden, reach = ("A", "R", 32) if "lateral" in name else ("R", "A", 28)
    magnified = 1.2 if beam else 1
    assert found["H"] == pytest.approx([-36 / 1.1 * (1 if "slot" in beam else magnified), 0], abs=0.5)
    assert found[left] == pytest.approx([0, -reach / 1.1 * magnified], abs=0.5)
    assert found[hidden] == pytest.approx([0, 0], abs=0.5)


@pytest.mark.parametrize(("near", "far", "reach"), [("ap", "pa", 32), ("left_lateral", "right_lateral", 28)])
@pytest.mark.parametrize("beam", ["cone", "slot"])
def test_the_source_stands_where_the_view_s_name_says(beam: str, near: str, far: str, reach: int) -> None:
    """AP is taken from the front and a left lateral from the right: the blob on that side is the more magnified."""
    areas, heights = [], []
    distances = {"source_to_isocentre_mm": 200.0, "source_to_detector_mm": 240.0}
    for name in (near, far):
        view = named_view(name, ORIGIN, (151, 151), 1.0, **{beam: True}, **distances)  # type: ignore[arg-type]
        picture = projector.cast(asymmetric(None), view)
        spots, _ = ndimage.label(picture > 0.5 * picture[75, 75])
        blob = spots == spots[75, 75]
        areas.append(blob.sum())
        heights.append(blob.any(axis=1).sum())
    ratio = (areas[0] / areas[1]) ** (0.5 if beam == "cone" else 1)
    assert ratio == pytest.approx((200 + reach) / (200 - reach), rel=0.05)
    assert (heights[0] == heights[1]) == (beam == "slot")  # A slot view magnifies only across.


@GRIDS
@BEAMS
@pytest.mark.parametrize("name", VIEW_NAMES)
def test_a_dicom_film_s_letters_agree_with_where_the_blobs_lie(
    tmp_path: Path, name: str, beam: Beam, turn: Rotation | None
) -> None:
    view = named_view(name, ORIGIN, (120, 100), (1.1, 1.3), **beam)
    exposed = exposure.expose(projector.cast(asymmetric(turn), view), pixel_mm=view.pixel_mm, seed=3, photons=1e5)
    grey = radiograph.to_grey(exposed, bits=12, window=(0, float(exposed.max())))
    path = radiograph.write_dicom(tmp_path / "f.dcm", grey, view, bits=12)

    dataset = pydicom.dcmread(path)
    shown = dataset.pixel_array.astype(float)
    assert np.array_equal(radiograph.read_radiograph(path).pixels, shown)
    # The first letter says where a row's pixels go, the second where a column's go.
    along_row, along_column = (np.array(WAYS[letters]) for letters in dataset.PatientOrientation)
    for way, (down, across) in blobs_in(shown).items():
        for offset, letter in ((across, along_row), (down, along_column)):
            expected = int(np.dot(WAYS[way], letter))
            assert (abs(offset) < 1) if not expected else (offset * expected > 15)
