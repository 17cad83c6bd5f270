"""The steps of an exposure, each a function of its own: from ray integrals to what a detector has counted.

A signal is (rows, columns) float32, the share of the photons that arrive: 1 where nothing is in the way. The order is
that of the physics, and `film.expose` keeps it:

1. `transmit`: the primary photons, by Beer-Lambert.
2. `blur` by the focal spot. A source that is no point mixes neighbouring rays before a photon is counted: edges soften,
   noise does not.
3. `add_scatter`.
4. `count_photons`: the noise of the dose, which `photons_per_pixel` takes from the air kerma.
5. `blur` by the detector. A scintillator spreads the light of photons that it has stopped already: edges and noise
   soften alike, and neighbouring pixels' noise belongs together.
6. `to_attenuation` for a logarithmic film, `to_opacity` for a linear one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

from transvert.io import InputError

RESPONSES = ("log", "linear")
"""What a film's grey is proportional to: attenuation or exposure."""

SCATTER_REACH_MM = 40.0
"""Standard deviation of the glow of scattered photons on the detector: this companion's choice."""

_AIR_KEV = (40.0, 50.0, 60.0, 80.0, 100.0, 150.0)
_AIR_CM2_PER_G = (0.06833, 0.04098, 0.03041, 0.02407, 0.02325, 0.02496)
"""Dry air's mass energy-absorption coefficient: NIST tables (Hubbell and Seltzer 2004)."""
_JOULE_PER_KEV = 1.602176634e-16
_MOST_PHOTONS = 1e15  # A pixel; numpy's Poisson numbers end at 9e18.


def transmit(integral: np.ndarray) -> np.ndarray:
    """Beer-Lambert: the share of the photons that pass.

    Args:
        integral: (rows, columns) float, from `drr.cast` of attenuation, no unit.

    Raises:
        InputError: integrals that are not finite.
    """
    if not np.isfinite(integral).all():
        raise InputError("The ray integrals have NaN or infinite values; no film can be exposed with them.")
    return np.exp(-np.asarray(integral, np.float32))


def add_scatter(primary: np.ndarray, fraction: float, pixel_mm: float | tuple[float, float]) -> np.ndarray:
    """Adds a broad glow, `fraction` of the smoothed primary photons, calibrated so that an empty film still reads 1.

    Raises:
        InputError: a negative fraction, or pixels without a size.
    """
    _check_amount(fraction, "The scattered fraction")
    return (primary + np.float32(fraction) * blur(primary, SCATTER_REACH_MM, pixel_mm)) / np.float32(1 + fraction)


def photons_per_pixel(
    kerma_ugy: float, pixel_mm: float | tuple[float, float], *, energy_kev: float = 70.0, passing: float = 1.0
) -> float:
    """Photons that a pixel counts in the open beam, from the air kerma at the detector's entrance.

    A beam of one energy brings 1 / (energy x mass energy-absorption coefficient of air) photons per area and kerma:
    33,000 per mm2 and uGy at 70 keV. For the RQA 5 spectrum (70 kV behind 21 mm of aluminium) IEC 62220-1:2003 states
    30,174, so that a real spectrum differs by some 10 %. That the detector counts every photon is this companion's
    choice too; one of 60 % quantum efficiency has the noise of 0.6 times the kerma.

    Args:
        kerma_ugy: uGy.
        pixel_mm: pitch on the detector, one number or row and column.
        energy_kev: of a single-energy beam, 40 to 150, as in `drr.attenuation`.
        passing: the share of the photons that pass where the kerma is meant. 1 is the open beam. Radiographers state
            the kerma behind the patient, some 2.5 uGy at speed class 400: there it is the signal behind the patient,
            such as `np.median(transmit(integral))` of a film that the patient fills.

    Returns:
        Photons a pixel where the signal is 1, for `count_photons`.

    Raises:
        InputError: a kerma that is not positive, an energy outside the table, or a share that is not in (0, 1].
    """
    if not 0 < kerma_ugy < np.inf:
        raise InputError(f"The air kerma is {kerma_ugy:g} uGy; it must be positive.")
    if not _AIR_KEV[0] <= energy_kev <= _AIR_KEV[-1]:
        raise InputError(f"The beam energy {energy_kev:g} keV is outside {_AIR_KEV[0]:g} to {_AIR_KEV[-1]:g} keV.")
    if not 0 < passing <= 1:
        raise InputError(f"The share of photons that pass is {passing:g}; it must be above 0 and at most 1.")
    row_mm, column_mm = pitch_mm(pixel_mm)
    cm2_per_g = np.exp(np.interp(np.log(energy_kev), np.log(_AIR_KEV), np.log(_AIR_CM2_PER_G)))
    gray_mm2 = energy_kev * _JOULE_PER_KEV * cm2_per_g * 1e5  # 1 cm2/g is 1e5 mm2/kg; one photon per mm2 brings this.
    return float(kerma_ugy * 1e-6 / gray_mm2 * row_mm * column_mm / passing)


def count_photons(signal: np.ndarray, photons: float, seed: int) -> np.ndarray:
    """Poisson noise of `photons` per pixel where the signal is 1; float32 on the signal's scale.

    Raises:
        InputError: no photons or too many to count, a signal that is negative or not finite, or a negative seed.
    """
    if not 0 < photons <= _MOST_PHOTONS:
        raise InputError(f"{photons:g} photons a pixel can't be counted; give a number above 0, at most 1e15.")
    if not (np.isfinite(signal).all() and (np.asarray(signal) >= 0).all()):
        raise InputError("The signal has values that are negative or not finite; no photons can be counted in it.")
    if seed < 0:
        raise InputError(f"The seed of the photon noise is {seed}; it must not be negative.")
    return (np.random.default_rng(seed).poisson(signal * float(photons)) / photons).astype(np.float32)


def blur(signal: np.ndarray, sigma_mm: float, pixel_mm: float | tuple[float, float]) -> np.ndarray:
    """A Gaussian of standard deviation `sigma_mm` on the detector; beyond the picture its outer pixels go on.

    Raises:
        InputError: a negative sigma, or pixels without a size.
    """
    _check_amount(sigma_mm, "The blur in mm")
    return ndimage.gaussian_filter(signal, sigma_mm / np.array(pitch_mm(pixel_mm)), mode="nearest", truncate=3)


def to_attenuation(signal: np.ndarray, photons: float = 0.0) -> np.ndarray:
    """Grey of a logarithmic film: the signal's negative logarithm, 0 where nothing is in the way.

    Args:
        signal: the share of photons.
        photons: that were counted per pixel, 0 for no noise. Half a photon stands for none, whose logarithm no film
            can show.
    """
    _check_amount(photons, "The number of photons")
    return -np.log(np.maximum(signal, np.float32(0.5 / photons) if photons else np.finfo(np.float32).tiny))


def to_opacity(signal: np.ndarray) -> np.ndarray:
    """Grey of a linear film: the share of photons that is missing, 0 where nothing is in the way, 1 behind lead."""
    return np.float32(1) - signal


def pitch_mm(pixel_mm: Any) -> tuple[float, float]:
    """Row and column pitch in mm, from one number or both.

    Raises:
        InputError: a pitch that is not positive.
    """
    row_mm, column_mm = (float(mm) for mm in np.broadcast_to(pixel_mm, 2))
    if not (0 < row_mm < np.inf and 0 < column_mm < np.inf):
        raise InputError(f"Pixels of {row_mm:g} x {column_mm:g} mm make no film; both must be positive.")
    return row_mm, column_mm


def _check_amount(amount: float, what: str) -> None:
    if not 0 <= amount < np.inf:
        raise InputError(f"{what} is {amount:g}; it must be finite and must not be negative.")


def expose(
    integral: np.ndarray,
    *,
    pixel_mm: float | tuple[float, float],
    seed: int,
    photons: float = 1e6,
    scatter: float = 0.02,
    focus_mm: float = 0.0,
    blur_mm: float = 0.2,
    response: str = "log",
) -> np.ndarray:
    """What a digital film shows of ray integrals: all steps of `exposure`, in their order.

    The defaults are this companion's choice. Without scatter, noise and blur a logarithmic film is the integral itself.

    Args:
        integral: (rows, columns) float, from `drr.cast` of attenuation, no unit.
        pixel_mm: pitch on the detector, one number or row and column.
        seed: of the noise; equal seeds give equal films.
        photons: per pixel, where nothing is in the way; 0 for no noise. `exposure.photons_per_pixel` has them from
            the air kerma in uGy.
        scatter: scattered photons as a fraction of the smoothed primary ones.
        focus_mm: standard deviation of the focal spot's shadow on the detector: the spot's own, times magnification
            less 1. It blurs before the photons are counted.
        blur_mm: standard deviation of the detector's point spread, which blurs the noise too.
        response: "log", grey in proportion to attenuation; or "linear", grey in proportion to the exposure.

    Returns:
        (rows, columns) float32, brighter where more is attenuated: the attenuation, or the share of photons missing.

    Raises:
        InputError: integrals that are not finite, a negative amount, or another response.
    """
    _check_response(response)
    primary = blur(transmit(integral), focus_mm, pixel_mm)
    signal = add_scatter(primary, scatter, pixel_mm)
    signal = count_photons(signal, photons, seed) if photons else signal
    signal = blur(signal, blur_mm, pixel_mm)
    return to_attenuation(signal, photons) if response == "log" else to_opacity(signal)


def _check_response(response: str) -> None:
    if response not in RESPONSES:
        raise InputError(f"A film's response is {' or '.join(RESPONSES)}, not '{response}'.")
