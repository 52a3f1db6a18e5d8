"""What follows from a stiffness tensor: averages, anisotropy, stability, velocities of sound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

# Steps of the search for the softest and stiffest direction, degrees.
GRID = 3.0


@dataclass(frozen=True)
class Moduli:
    """Moduli, in GPa, of a tensor in some orientation and of its isotropic aggregate.

    Voigt averages the stiffness, Reuss the compliance, and Hill takes the mean of both (Hill, Proc.
    Phys. Soc. A 65, 349 (1952)); Young's modulus and all that follows use Hill's averages.

    Attributes:
        bulk, shear: Voigt, Reuss and Hill.
        young: Young's modulus; poisson: Poisson's ratio; pugh: bulk over shear modulus.
        universal_anisotropy: of Ranganathan and Ostoja-Starzewski, PRL 101, 055504 (2008).
        zener: 2 C44 / (C11 - C12) of a cubic crystal in its axes, else None.
        young_extremes: smallest and largest directional Young's modulus; young_directions: their
            directions as unit vectors. Both are None for an unstable crystal.
        eigenvalues: ``(6,)`` of the stiffness in Kelvin's notation, ascending; born_stable: whether
            all of them are positive (Mouhat and Coudert, PRB 90, 224104 (2014)).
        density: g/cm^3. velocities: longitudinal, transverse and mean velocity of sound, km/s.
        debye_temperature: K, from the mean velocity (Anderson, J. Phys. Chem. Solids 24, 909
            (1963)). It and the velocities are None if a modulus is not positive.
    """

    bulk: tuple[float, float, float]
    shear: tuple[float, float, float]
    young: float
    poisson: float
    pugh: float
    universal_anisotropy: float
    zener: float | None
    young_extremes: tuple[float, float] | None
    young_directions: tuple[tuple[float, ...], tuple[float, ...]] | None
    eigenvalues: tuple[float, ...]
    born_stable: bool
    density: float
    velocities: tuple[float, float, float] | None
    debye_temperature: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, units in the keys."""
        names = ("voigt", "reuss", "hill")
        sound = self.velocities or (None, None, None)
        low, high = self.young_extremes or (None, None)
        softest, stiffest = self.young_directions or (None, None)
        return {
            **{f"bulk_modulus_{n}_GPa": v for n, v in zip(names, self.bulk, strict=True)},
            **{f"shear_modulus_{n}_GPa": v for n, v in zip(names, self.shear, strict=True)},
            "youngs_modulus_GPa": self.young,
            "poisson_ratio": self.poisson,
            "pugh_ratio": self.pugh,
            "universal_anisotropy": self.universal_anisotropy,
            "zener_anisotropy": self.zener,
            "youngs_modulus_min_GPa": low,
            "youngs_modulus_max_GPa": high,
            "youngs_modulus_min_direction_ieee": softest and list(softest),
            "youngs_modulus_max_direction_ieee": stiffest and list(stiffest),
            "stiffness_eigenvalues_GPa": list(self.eigenvalues),
            "born_stable": self.born_stable,
            "density_g_per_cm3": self.density,
            "sound_velocity_longitudinal_km_per_s": sound[0],
            "sound_velocity_transverse_km_per_s": sound[1],
            "sound_velocity_mean_km_per_s": sound[2],
            "debye_temperature_K": self.debye_temperature,
        }


def moduli(stiffness: np.ndarray, atoms: Atoms) -> Moduli:
    """All moduli from the stiffness tensor ``(6, 6)``, GPa, of the crystal ``atoms``."""
    c, s = stiffness, np.linalg.inv(stiffness)
    bulk_voigt = c[:3, :3].sum() / 9
    bulk_reuss = 1 / s[:3, :3].sum()
    shear_voigt = (3 * np.trace(c[:3, :3]) - c[:3, :3].sum()) / 30 + np.trace(c[3:, 3:]) / 5
    shear_reuss = 15 / (6 * np.trace(s[:3, :3]) - 2 * s[:3, :3].sum() + 3 * np.trace(s[3:, 3:]))
    bulk, shear = (bulk_voigt + bulk_reuss) / 2, (shear_voigt + shear_reuss) / 2
    kelvin = np.array([1.0] * 3 + [math.sqrt(2)] * 3)
    eigenvalues = np.linalg.eigvalsh(c * np.outer(kelvin, kelvin))
    stable = bool(eigenvalues[0] > 0)
    extremes, directions = _extremes(s) if stable else (None, None)
    density = atoms.get_masses().sum() / atoms.get_volume() * 1.66053906892
    sound = _sound(bulk, shear, density)
    return Moduli(
        bulk=(float(bulk_voigt), float(bulk_reuss), float(bulk)),
        shear=(float(shear_voigt), float(shear_reuss), float(shear)),
        young=float(9 * bulk * shear / (3 * bulk + shear)),
        poisson=float((3 * bulk - 2 * shear) / (2 * (3 * bulk + shear))),
        pugh=float(bulk / shear),
        universal_anisotropy=float(5 * shear_voigt / shear_reuss + bulk_voigt / bulk_reuss - 6),
        zener=_zener(c),
        young_extremes=extremes,
        young_directions=directions,
        eigenvalues=tuple(eigenvalues.tolist()),
        born_stable=stable,
        density=float(density),
        velocities=sound,
        debye_temperature=None if sound is None else _debye(sound[2], atoms),
    )


def directional_young(compliance: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Young's modulus, GPa, along unit vectors ``(..., 3)``; ``compliance`` ``(6, 6)``, 1/GPa.

    A unit stress n n, v in Voigt's order, causes the strain S v, whose component along n is v S v.
    """
    x, y, z = np.moveaxis(directions, -1, 0)
    v = np.stack([x * x, y * y, z * z, y * z, x * z, x * y], axis=-1)
    return 1 / np.einsum("...i,ij,...j->...", v, compliance, v)


def _extremes(
    compliance: np.ndarray,
) -> tuple[tuple[float, float], tuple[tuple[float, ...], tuple[float, ...]]]:
    """Smallest and largest directional Young's modulus, and their directions."""
    from scipy.optimize import minimize

    theta, phi = np.meshgrid(
        np.radians(np.arange(0, 90 + GRID, GRID)), np.radians(np.arange(0, 360, GRID))
    )
    values = directional_young(compliance, _unit(theta, phi))
    found: list[tuple[float, tuple[float, ...]]] = []
    for sign in (1, -1):
        best = np.unravel_index(np.argmin(sign * values), values.shape)

        def objective(angles: np.ndarray, sign: int = sign) -> float:
            return sign * float(directional_young(compliance, _unit(angles[0], angles[1])))

        refined = minimize(objective, [theta[best], phi[best]], method="Nelder-Mead").x
        direction = _unit(refined[0], refined[1])
        value = float(directional_young(compliance, direction))
        found.append((value, tuple(np.round(direction, 4).tolist())))
    (low, softest), (high, stiffest) = found
    return (low, high), (softest, stiffest)


def _unit(theta: Any, phi: Any) -> np.ndarray:
    return np.stack(
        [np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=-1
    )


def _zener(c: np.ndarray) -> float | None:
    """2 C44 / (C11 - C12) if the tensor is that of a cubic crystal in its axes; else None."""
    cubic = np.zeros((6, 6))
    cubic[:3, :3] = c[0, 1]
    np.fill_diagonal(cubic, [c[0, 0]] * 3 + [c[3, 3]] * 3)
    if np.abs(c - cubic).max() > 1e-6 * np.abs(c).max():
        return None
    return float(2 * c[3, 3] / (c[0, 0] - c[0, 1]))


def _sound(bulk: float, shear: float, density: float) -> tuple[float, float, float] | None:
    """Longitudinal, transverse and mean velocity, km/s; sqrt(GPa / (g/cm^3)) is km/s."""
    if bulk <= 0 or shear <= 0:
        return None
    longitudinal = math.sqrt((bulk + 4 * shear / 3) / density)
    transverse = math.sqrt(shear / density)
    mean = ((2 / transverse**3 + 1 / longitudinal**3) / 3) ** (-1 / 3)
    return longitudinal, transverse, mean


def _debye(velocity: float, atoms: Atoms) -> float:
    """Debye temperature, K, from the mean velocity of sound, km/s."""
    from scipy.constants import h, k

    per_m3 = len(atoms) / atoms.get_volume() * 1e30
    return float(h / k * (3 * per_m3 / (4 * math.pi)) ** (1 / 3) * velocity * 1e3)
