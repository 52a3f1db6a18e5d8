"""The degrees of freedom of a relaxing cell: ASE's filter, with its mathematics done once a step.

ASE's :class:`~ase.filters.FrechetCellFilter` takes 12 ms a step, as long as the model takes for a
few atoms: optimizers ask three or four times for the same forces, and each time it computes a
logarithm of the deformation and nine derivatives of its exponential. Besides, scipy's matrix
functions wake the threads of its linear algebra, which then wait busily beside those of the model:
measured on two cores, the next evaluation of four atoms takes 90 to 150 ms instead of 40.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.filters import FrechetCellFilter
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

# A cell that differs by less from the one that was set is the same, Å: symmetry constraints round.
SAME_CELL = 1e-10

# Number of terms of the exponential series, and the largest norm for which they suffice.
TERMS, LARGEST = 14, 0.5


def exponential(matrix: np.ndarray) -> np.ndarray:
    """Exponential of a small square matrix, to rounding error, by scaling and squaring a series."""
    size = float(np.abs(matrix).sum(axis=1).max())
    squarings = int(np.clip(np.ceil(np.log2(size / LARGEST)), 0, 64)) if size > 0 else 0
    scaled, unit = matrix / 2**squarings, np.eye(len(matrix))
    found = unit
    for term in range(TERMS, 0, -1):
        found = unit + scaled @ found / term
    for _ in range(squarings):
        found = found @ found
    return found


def exponential_derivative(matrix: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Directional derivative of the exponential, from the exponential of a block matrix."""
    size = float(np.abs(direction).max())
    if size == 0:
        return np.zeros_like(direction)
    n = len(matrix)
    blocks = np.block([[matrix, direction / size], [np.zeros((n, n)), matrix]])
    return size * exponential(blocks)[:n, n:]


class CellFilter(FrechetCellFilter):
    """Positions in the undeformed cell, and the logarithm of the deformation times a factor.

    Arguments, degrees of freedom and forces are those of the base class, except that the logarithm
    is zero for the initial cell.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._log, self._log_of = np.zeros((3, 3)), np.array(self.orig_cell)
        self._forces = np.empty((0, 3))
        self._forces_of: tuple[bytes, bytes] | None = None

    def get_positions(self) -> np.ndarray:
        """``(n_atoms + 3, 3)``."""
        deformation = self._deformation()
        positions = np.linalg.solve(deformation, self.atoms.positions.T).T
        return np.vstack([positions, self.exp_cell_factor * self._logarithm(deformation)])

    def set_positions(self, new: np.ndarray, **kwargs: Any) -> None:  # type: ignore[override]
        """Deform the cell and move the atoms, ``(n_atoms + 3, 3)``."""
        log = new[-3:] / self.exp_cell_factor
        deformation = np.eye(3) + (exponential(log) - np.eye(3)).T * self.mask
        cell = self.orig_cell @ deformation
        self.atoms.set_cell(cell, scale_atoms=True)
        self.atoms.set_positions(new[:-3] @ deformation, **kwargs)
        self._log, self._log_of = log, cell

    def get_forces(self, **kwargs: Any) -> np.ndarray:
        """Negative derivatives of the enthalpy by :meth:`get_positions`, ``(n_atoms + 3, 3)``."""
        if kwargs:
            return self._compute_forces(**kwargs)
        here = self.atoms.positions.tobytes(), self.atoms.cell.tobytes()
        if self._forces_of != here:
            self._forces, self._forces_of = self._compute_forces(), here
        return self._forces.copy()

    def _compute_forces(self, **kwargs: Any) -> np.ndarray:
        stress = voigt_6_to_full_3x3_stress(self.atoms.get_stress(**kwargs))
        forces = self.atoms.get_forces(**kwargs)
        volume = self.atoms.cell.volume
        virial = -volume * (stress + self.scalar_pressure * np.eye(3))
        if self.hydrostatic_strain:
            virial = np.trace(virial) / 3 * np.eye(3)
        virial = virial * self.mask
        deformation = self._deformation()
        # The derivatives of the exponential along all nine directions, contracted with the
        # gradient, are the derivative of the transposed matrix along the gradient.
        gradient = virial @ np.linalg.inv(deformation.T)
        log = self._logarithm(deformation)
        strains = exponential_derivative(log.T, gradient)
        if self.constant_volume:
            strains -= np.trace(strains) / 3 * np.eye(3)
            virial -= np.trace(virial) / 3 * np.eye(3)
        self.stress = full_3x3_to_voigt_6_stress(-virial / volume)
        return np.vstack([forces @ deformation, strains / self.exp_cell_factor])

    def _deformation(self) -> np.ndarray:
        """Deformation from the initial cell to the present one, ``(3, 3)``, acting on columns."""
        found: np.ndarray = np.linalg.solve(self.orig_cell, self.atoms.cell[:]).T
        return found

    def _logarithm(self, deformation: np.ndarray) -> np.ndarray:
        """Logarithm of the deformation: as it was set, unless the cell was changed since."""
        if np.abs(self.atoms.cell[:] - self._log_of).max() > SAME_CELL:
            from scipy.linalg import logm

            self._log, self._log_of = np.real(logm(deformation)), self.atoms.cell[:].copy()
        return self._log
