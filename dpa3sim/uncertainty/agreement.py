"""How well the uncertainties of a model tell its true errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Judged:
    """A structure with known energy or forces, and what a model expected of its errors.

    Attributes:
        novelties: ``(n,)`` of the atoms.
        energy_uncertainty: eV; None without a calibration.
        energy_error: eV; None if the energy is not known.
        force_errors: ``(n, 3)`` eV/Å; None if the forces are not known.
    """

    novelties: np.ndarray
    energy_uncertainty: float | None
    energy_error: float | None
    force_errors: np.ndarray | None

    @property
    def force_rmse(self) -> float | None:
        """Root mean square of the force errors, eV/Å."""
        return None if self.force_errors is None else float(np.sqrt((self.force_errors**2).mean()))


@dataclass(frozen=True)
class Agreement:
    """Rank correlations (Spearman) of true with expected errors; None where they do not exist.

    Attributes:
        energies: of absolute energy errors per atom with their uncertainties.
        structures: of the RMSE of a structure's forces with its largest novelty.
        atoms: of the lengths of an atom's force error with its novelty.
    """

    energies: float | None
    structures: float | None
    atoms: float | None

    @classmethod
    def of(cls, judged: Sequence[Judged]) -> Agreement:
        """Compare all structures."""
        energies = [
            (abs(x.energy_error) / len(x.novelties), x.energy_uncertainty / len(x.novelties))
            for x in judged
            if x.energy_error is not None and x.energy_uncertainty is not None
        ]
        known = [(x, x.force_errors) for x in judged if x.force_errors is not None]
        structures = [(x.force_rmse, x.novelties.max()) for x, _ in known]
        atoms = [
            pair
            for x, errors in known
            for pair in zip(np.linalg.norm(errors, axis=1), x.novelties, strict=True)
        ]
        return cls(
            *(
                rank_correlation(*np.array(x, dtype=float).reshape(-1, 2).T)
                for x in (energies, structures, atoms)
            )
        )


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's, of two arrays ``(n,)``; None of less than three pairs, or of equal numbers."""
    if len(a) < 3 or not (np.ptp(a) > 0 and np.ptp(b) > 0):
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)
