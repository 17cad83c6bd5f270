"""Exposure of a digital radiograph, step by step: from ray integrals to the grey values of the detector.

A signal is (rows, columns) float32, the fraction of the photons that arrive: 1 where nothing attenuates. `expose` applies
the steps in the order of the physics: primary photons by Beer-Lambert (`transmit`); `add_scatter`; quantum noise
(`count_photons`); `blur` by the light of the detector's scintillator, which softens edges and noise; and the logarithm
(`to_attenuation`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

from transvert.io import InputError

SCATTER_REACH_MM = 40.0  # Standard deviation of the scatter's blur on the detector: this companion's choice.

# Mass energy-absorption coefficient of dry air: NIST tables (Hubbell and Seltzer 2004).
_AIR_KEV = (40.0, 50.0, 60.0, 80.0, 100.0, 150.0)
_AIR_CM2_PER_G = (0.06833, 0.04098, 0.03041, 0.02407, 0.02325, 0.02496)
_JOULE_PER_KEV = 1.602176634e-16
_MOST_PHOTONS = 1e15  # Per pixel; numpy's Poisson numbers end at 9e18.


def expose(
    integral: np.ndarray,
    *,
    pixel_mm: float | tuple[float, float],
    seed: int,
    photons: float = 1e6,
    scatter: float = 0.02,
    blur_mm: float = 0.2,
) -> np.ndarray:
    """A digital radiograph from ray integrals: all steps of this module in their order.

    The defaults are this companion's choice. Without scatter, noise and blur, the result is the integral itself.

    Args:
        integral: (rows, columns) float, from `projector.cast` of attenuation, no unit.
        pixel_mm: pitch on the detector, one number or row and column.
        seed: of the noise; equal seeds give equal pictures.
        photons: per pixel where nothing attenuates (see `photons_per_pixel`); 0 for no noise.
        scatter: scattered photons as a fraction of the smoothed primary photons.
        blur_mm: standard deviation of the detector's point spread.

    Returns:
        (rows, columns) float32, the attenuation, no unit.

    Raises:
        InputError: integrals that are not finite, or a negative amount.
    """
    signal = add_scatter(transmit(integral), scatter, pixel_mm)
    signal = count_photons(signal, photons, seed) if photons else signal
    return to_attenuation(blur(signal, blur_mm, pixel_mm), photons)


def transmit(integral: np.ndarray) -> np.ndarray:
    """The fraction of the photons that pass, by Beer-Lambert; raises InputError unless `integral` is finite."""
    if not np.isfinite(integral).all():
        raise InputError("The ray integrals have NaN or infinite values; check the volume and the view.")
    return np.exp(-np.asarray(integral, np.float32))


def add_scatter(primary: np.ndarray, fraction: float, pixel_mm: float | tuple[float, float]) -> np.ndarray:
    """Adds broadly blurred primary photons times `fraction`, then divides so that the open beam stays 1."""
    _check_amount(fraction, "The scattered fraction")
    return (primary + np.float32(fraction) * blur(primary, SCATTER_REACH_MM, pixel_mm)) / np.float32(1 + fraction)


def photons_per_pixel(kerma_ugy: float, pixel_mm: float | tuple[float, float], *, energy_kev: float = 70.0) -> float:
    """Photons per pixel in the open beam, from the air kerma at the detector.

    A monochromatic beam has 1 / (energy x mass energy-absorption coefficient of air) photons per area and kerma: 33,000
    per mm2 and uGy at 70 keV. IEC 62220-1:2003 states 30,174 for the RQA 5 spectrum (70 kV behind 21 mm of aluminium), so
    a real spectrum differs by about 10 %. This companion's choice: the detector counts every photon; for one with 60 %
    quantum efficiency give 0.6 times the kerma. For a kerma behind the patient (about 2.5 uGy at speed class 400), divide
    it by the signal there, such as `np.median(transmit(integral))`.

    Args:
        pixel_mm: pitch on the detector, one number or row and column.
        energy_kev: energy of a monochromatic beam, 40 to 150 keV, as in `projector.attenuation`.

    Returns:
        Photons per pixel where the signal is 1, for `count_photons`.

    Raises:
        InputError: a kerma that is not positive, or an energy outside the table.
    """
    if not 0 < kerma_ugy < np.inf:
        raise InputError(f"The air kerma is {kerma_ugy:g} uGy; it must be positive.")
    if not _AIR_KEV[0] <= energy_kev <= _AIR_KEV[-1]:
        raise InputError(f"The beam energy {energy_kev:g} keV is outside {_AIR_KEV[0]:g} to {_AIR_KEV[-1]:g} keV.")
    row_mm, column_mm = pitch_mm(pixel_mm)
    cm2_per_g = np.exp(np.interp(np.log(energy_kev), np.log(_AIR_KEV), np.log(_AIR_CM2_PER_G)))
    gray_mm2 = energy_kev * _JOULE_PER_KEV * cm2_per_g * 1e5  # Dose of one photon per mm2; 1 cm2/g is 1e5 mm2/kg.
    return float(kerma_ugy * 1e-6 / gray_mm2 * row_mm * column_mm)


def count_photons(signal: np.ndarray, photons: float, seed: int) -> np.ndarray:
    """The signal with the Poisson noise of `photons` per pixel (above 0, at most 1e15) where the signal is 1, float32."""
    if not 0 < photons <= _MOST_PHOTONS:
        raise InputError(f"{photons:g} photons per pixel can't be counted; give a number above 0, at most 1e15.")
    if not (np.isfinite(signal).all() and (np.asarray(signal) >= 0).all()):
        raise InputError("The signal has values that are negative or not finite; no photons can be counted in it.")
    if seed < 0:
        raise InputError(f"The seed of the photon noise is {seed}; it must not be negative.")
    return (np.random.default_rng(seed).poisson(signal * float(photons)) / photons).astype(np.float32)


def blur(signal: np.ndarray, sigma_mm: float, pixel_mm: float | tuple[float, float]) -> np.ndarray:
    """The signal blurred by a Gaussian of standard deviation `sigma_mm` on the detector; outer pixels are repeated."""
    _check_amount(sigma_mm, "The blur in mm")
    return ndimage.gaussian_filter(signal, sigma_mm / np.array(pitch_mm(pixel_mm)), mode="nearest", truncate=3)


def to_attenuation(signal: np.ndarray, photons: float = 0.0) -> np.ndarray:
    """Grey values of a logarithmic response: the signal's negative logarithm, 0 where nothing attenuates.

    A pixel without any of the `photons` of the open beam (0 for no noise) counts as half a photon, to stay finite.
    """
    _check_amount(photons, "The number of photons")
    return -np.log(np.maximum(signal, np.float32(0.5 / photons) if photons else np.finfo(np.float32).tiny))


def pitch_mm(pixel_mm: Any) -> tuple[float, float]:
    """Row and column pitch in mm, from one number or both; raises InputError unless both are positive."""
    row_mm, column_mm = (float(mm) for mm in np.broadcast_to(pixel_mm, 2))
    if not (0 < row_mm < np.inf and 0 < column_mm < np.inf):
        raise InputError(f"The pixels are {row_mm:g} x {column_mm:g} mm; both must be positive.")
    return row_mm, column_mm


def _check_amount(amount: float, what: str) -> None:
    if not 0 <= amount < np.inf:
        raise InputError(f"{what} is {amount:g}; it must be finite and must not be negative.")
