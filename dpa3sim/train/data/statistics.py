"""Energies of elements, from a least-squares fit of energies to compositions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpa3sim.common.elements import ATOMIC_NUMBERS, SYMBOLS
from dpa3sim.common.errors import InputError
from dpa3sim.train.data.frames import Frames

# With fewer energies nobody can tell which of them are strange.
FEWEST_ENERGIES = 20
# Smallest robust sigma, eV/atom: energies that fit exactly differ by rounding errors.
SMALLEST_SIGMA = 1e-6
# The median absolute deviation of a normal distribution, as a share of sigma, is 1 / 1.4826.
MAD_TO_SIGMA = 1.4826
# A single atom in a larger cell, Å^3, has no bonds; in the least dense crystal it has 120.
ISOLATED = 300.0
# Frames that are further away, in robust sigma, are left out of the fit, which is then repeated.
FAR, _MOST_FITS = 6.0, 20


def composition_fit(counts: np.ndarray, energies: np.ndarray) -> np.ndarray:
    """Energies of the elements whose sums are closest to those of the frames.

    Of all that are equally close, these are the smallest (minimum norm). Elements without atoms
    get 0.

    Args:
        counts: ``(n_frames, ntypes)``, atoms of every type.
        energies: ``(n_frames,)`` eV.

    Returns:
        ``(ntypes,)`` eV.
    """
    fit, *_ = np.linalg.lstsq(
        np.asarray(counts, dtype=np.float64), np.asarray(energies, dtype=np.float64), rcond=None
    )
    found: np.ndarray = fit
    return found


def counts(frames: Frames, type_map: Sequence[str]) -> np.ndarray:
    """``(n_frames, ntypes)`` float64, atoms of every element of ``type_map``.

    Raises:
        InputError: there are atoms of other elements.
    """
    ntypes = len(type_map)
    type_of = np.full(len(SYMBOLS) + 1, -1)
    for index, symbol in enumerate(type_map):
        type_of[ATOMIC_NUMBERS.get(symbol, 0)] = index
    type_of[0] = -1
    types = type_of[frames.numbers]
    if (types < 0).any():
        symbol = SYMBOLS[int(frames.numbers[types < 0][0]) - 1]
        raise InputError(f"the data have atoms of {symbol}, which is not in the type map")
    frame_of = np.repeat(np.arange(len(frames)), frames.sizes)
    found = np.bincount(frame_of * ntypes + types, minlength=len(frames) * ntypes)
    return found.reshape(len(frames), ntypes).astype(np.float64)


def elements(frames: Frames) -> tuple[str, ...]:
    """Symbols of the elements in the data, by atomic number."""
    return tuple(SYMBOLS[z - 1] for z in np.flatnonzero(np.bincount(frames.numbers)))


@dataclass(frozen=True)
class Residuals:
    """How far energies are from those of their compositions.

    Attributes:
        values: ``(n_frames,)`` eV/atom, relative to their median; NaN without an energy, and for
            isolated atoms.
        sigma: robust standard deviation, eV/atom.
    """

    values: np.ndarray
    sigma: float


def energy_residuals(frames: Frames) -> Residuals | None:
    """Energies per atom minus a fit to the compositions; None if there are too few of them.

    The fit is to energies per atom, and without frames that are far away from it. Isolated atoms
    take no part: their energy is far from that of their element in other frames.
    """
    sizes = frames.sizes
    volumes = np.abs(np.linalg.det(frames.cells))
    isolated = (sizes == 1) & (~frames.pbc.all(axis=1) | (volumes > ISOLATED))
    used = frames.has_energy & ~isolated
    if used.sum() < FEWEST_ENERGIES:
        return None
    shares = counts(frames, elements(frames)) / sizes[:, None]
    energies = np.where(used, frames.energies / sizes, np.nan)
    near = used
    for _ in range(_MOST_FITS):
        values = energies - shares @ composition_fit(shares[near], energies[near])
        values -= np.median(values[used])
        sigma = max(MAD_TO_SIGMA * float(np.median(np.abs(values[used]))), SMALLEST_SIGMA)
        before, near = near, np.abs(values) <= FAR * sigma
        if (near == before).all():
            break
    return Residuals(values, sigma)
