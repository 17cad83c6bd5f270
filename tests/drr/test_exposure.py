"""The steps of an exposure against the physics of each, and their order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from transvert.drr import exposure
from transvert.io import InputError

RNG = np.random.default_rng(0)
FLAT = np.full((200, 200), np.log(20), np.float32)
PLAIN = {"pixel_mm": 1.0, "seed": 0, "photons": 0.0, "scatter": 0.0, "blur_mm": 0.0}


def expose(integral: np.ndarray, **options: object) -> np.ndarray:
    """A film with only the steps that `options` switches on."""
    return exposure.expose(integral, **(PLAIN | options))  # type: ignore[arg-type]


def test_without_scatter_noise_and_blur_a_film_is_its_integral() -> None:
    integral = np.log(np.array([[1.0, 2, 4, 1e9]]))
    exposed = expose(integral)
    assert_allclose(exposed, integral, atol=1e-5)
    assert exposed.dtype == np.float32


def test_expose_is_its_steps_in_the_order_of_the_physics() -> None:
    integral = RNG.random((40, 50)).astype(np.float32) * 5
    pixel_mm = (0.5, 0.4)
    signal = exposure.add_scatter(exposure.transmit(integral), 0.1, pixel_mm)
    signal = exposure.count_photons(signal, 5000, 7)
    signal = exposure.blur(signal, 0.2, pixel_mm)
    options = {"pixel_mm": pixel_mm, "seed": 7, "photons": 5000, "scatter": 0.1, "blur_mm": 0.2}
    assert_array_equal(expose(integral, **options), exposure.to_attenuation(signal, 5000))


def test_noise_is_white_and_the_detector_softens_it() -> None:
    plain, detector = (np.exp(-expose(FLAT, photons=20_000.0, blur_mm=mm)) for mm in (0.0, 1.5))

    def neighbours(picture: np.ndarray) -> float:
        return float(np.corrcoef(picture[:, 1:].ravel(), picture[:, :-1].ravel())[0, 1])

    assert abs(neighbours(plain)) < 0.02
    # White noise under a Gaussian of sigma s: its variance falls to 1/(4 pi s^2), a step of 1 correlates exp(-1/(4 s^2)).
    assert detector.std() / plain.std() == pytest.approx((4 * np.pi * 1.5**2) ** -0.5, rel=0.05)
    assert neighbours(detector) == pytest.approx(np.exp(-1 / (4 * 1.5**2)), abs=0.02)


@pytest.mark.parametrize("photons", [200.0, 20_000.0, 1e9])
def test_noise_is_seeded_and_has_poisson_s_size(photons: float) -> None:
    one, same, other = (expose(FLAT, seed=seed, photons=photons) for seed in (1, 1, 2))
    assert_array_equal(one, same)
    assert (one != other).any()
    signals = exposure.count_photons(exposure.transmit(FLAT), photons, 1) * photons
    assert signals.mean() == pytest.approx(photons / 20, rel=0.01)
    assert signals.var() == pytest.approx(photons / 20, rel=0.03)
    if photons > 1e4:  # The logarithm spreads by one over the root of the photons.
        assert one.std() == pytest.approx((photons / 20) ** -0.5, rel=0.03)
        assert one.mean() == pytest.approx(np.log(20), abs=1e-3)


def test_a_pixel_without_photons_stays_finite() -> None:
    assert_allclose(expose(np.full((5, 5), 200.0), photons=1000.0), np.log(2000), rtol=1e-5)
    assert np.isfinite(expose(np.full((5, 5), 200.0))).all()


def test_scatter_leaves_an_empty_film_empty_and_takes_contrast_from_dense_parts() -> None:
    assert_allclose(exposure.add_scatter(np.ones((50, 50), np.float32), 0.1, 1.0), 1, atol=1e-6)
    integral = np.zeros((60, 60), np.float32)
    integral[20:40, 20:40] = 8
    exposed = expose(integral, scatter=0.1)
    assert exposed[30, 30] < 5 and abs(exposed[0, 0]) < 0.1


def test_blur_is_measured_in_mm_along_rows_and_columns() -> None:
    point = np.zeros((101, 101), np.float32)
    point[50, 50] = 1
    blurred = exposure.blur(point, 3.0, (1.0, 0.5)).astype(float)
    rows, columns = np.indices(point.shape) - 50
    assert blurred.sum() == pytest.approx(1, abs=1e-4)
    assert np.sqrt((blurred * rows**2).sum()) * 1.0 == pytest.approx(3, rel=0.03)
    assert np.sqrt((blurred * columns**2).sum()) * 0.5 == pytest.approx(3, rel=0.03)


def test_photons_of_a_kerma_agree_with_the_standard_s_figure() -> None:
    # IEC 62220-1:2003, table 2: photons per mm2 and uGy, here at about the mean energies of these spectra.
    for energy_kev, stated in ((54.0, 30174), (63.0, 32362), (76.0, 31077)):
        assert exposure.photons_per_pixel(1, 1, energy_kev=energy_kev) == pytest.approx(stated, rel=0.12)
    # By hand at a tabled energy: 1e-6 Gy / (60 keV * 1.602e-16 J/keV * 0.003041 m2/kg) / 1e6 mm2/m2.
    assert exposure.photons_per_pixel(1, 1, energy_kev=60) == pytest.approx(34210, rel=1e-3)


def test_a_dose_scales_with_kerma_pixel_area_and_what_passes() -> None:
    one = exposure.photons_per_pixel(1, 1)
    assert exposure.photons_per_pixel(2.5, (0.2, 0.1)) == pytest.approx(one * 2.5 * 0.02)
    # 2.5 uGy behind a patient who lets 2 % pass are 125 uGy in the open beam.
    integral = np.full((100, 100), np.log(50), np.float32)
    behind = exposure.photons_per_pixel(2.5 / float(np.median(exposure.transmit(integral))), 0.2)
    assert behind == pytest.approx(exposure.photons_per_pixel(125, 0.2), rel=1e-6)
    counted = exposure.count_photons(exposure.transmit(integral), behind, 0) * behind
    assert counted.mean() == pytest.approx(one * 2.5 * 0.04, rel=1e-3)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda: exposure.transmit(np.array([[np.nan]])), "integrals have NaN or infinite"),
        (lambda: exposure.add_scatter(np.ones((3, 3)), -0.1, 1.0), "scattered fraction is -0.1; .* not be negative"),
        (lambda: exposure.blur(np.ones((3, 3)), np.nan, 1.0), "blur in mm is nan; it must be finite"),
        (lambda: exposure.blur(np.ones((3, 3)), 1.0, (1.0, 0.0)), "pixels are 1 x 0 mm; both must be positive"),
        (lambda: exposure.count_photons(np.ones((3, 3)), 0, 0), "0 photons per pixel can't be counted"),
        (lambda: exposure.count_photons(np.ones((3, 3)), 1e16, 0), r"1e\+16 photons per pixel can't be counted"),
        (lambda: exposure.count_photons(-np.ones((3, 3)), 10, 0), "negative or not finite"),
        (lambda: exposure.count_photons(np.ones((3, 3)), 10, -1), "seed of the photon noise is -1"),
        (lambda: exposure.to_attenuation(np.ones((3, 3)), -1), "number of photons is -1; .* not be negative"),
        (lambda: exposure.photons_per_pixel(0, 1), "air kerma is 0 uGy; it must be positive"),
        (lambda: exposure.photons_per_pixel(np.nan, 1), "air kerma is nan uGy"),
        (lambda: exposure.photons_per_pixel(1, -1), "both must be positive"),
        (lambda: exposure.photons_per_pixel(1, 1, energy_kev=30), "30 keV is outside 40 to 150 keV"),
        (lambda: expose(np.ones((3, 3)), photons=-1.0), "-1 photons per pixel can't be counted"),
        (lambda: expose(np.ones((3, 3)), blur_mm=-1.0), "must not be negative"),
    ],
)
def test_bad_input(step: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        step()
    assert str(caught.value).count(". ") == 0 and str(caught.value).endswith(".")
