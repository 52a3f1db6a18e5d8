"""Densities of states and thermal properties from a mesh of wave vectors (phonopy)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.units import KJ_PER_MOL

from ..crystals.cells import Cells, Extensive
from .properties import series

if TYPE_CHECKING:
    from phonopy import Phonopy

# Frequencies at which densities of states are given.
DOS_POINTS = 201


@dataclass(frozen=True)
class Thermal:
    """Thermal properties of a primitive cell in the harmonic approximation.

    Attributes:
        temperatures: ``(n,)``, K. free_energy: ``(n,)``, kJ/mol.
        entropy, heat_capacity: ``(n,)``, J/K/mol, at constant volume.
        zero_point: kJ/mol. n_atoms: number of atoms of the primitive cell.
    """

    temperatures: np.ndarray
    free_energy: np.ndarray
    entropy: np.ndarray
    heat_capacity: np.ndarray
    zero_point: float
    n_atoms: int

    @classmethod
    def of(cls, phonon: Phonopy, temperatures: np.ndarray) -> Thermal:
        """From the mesh of a phonopy object, without imaginary modes and acoustic ones at Γ."""
        found = phonon.run_thermal_properties(
            temperatures=temperatures, exclude_gamma_acoustic=True
        )
        return cls(
            np.asarray(found.temperatures),
            np.asarray(found.free_energy),
            np.asarray(found.entropy),
            np.asarray(found.heat_capacity),
            float(found.zero_point_energy or 0.0),
            len(phonon.primitive),
        )

    def to_dict(self, cells: Cells) -> dict[str, Any]:
        """JSON-ready: lists over the temperatures, per cell, atom and formula unit."""
        zero_point = Extensive(self.zero_point / KJ_PER_MOL, self.n_atoms)
        return {
            **zero_point.keys("zero_point_energy", "eV", cells),
            "temperatures_K": self.temperatures.tolist(),
            **series(self.free_energy, self.n_atoms, "free_energy", "kJ_per_mol", cells),
            **series(self.entropy, self.n_atoms, "entropy", "J_per_K_mol", cells),
            **series(self.heat_capacity, self.n_atoms, "heat_capacity", "J_per_K_mol", cells),
        }


@dataclass(frozen=True)
class Dos:
    """Densities of states per primitive cell, by linear tetrahedra.

    Attributes:
        frequencies: ``(n,)``, THz.
        projected: ``(n_atoms, n)``, 1/THz, on each atom of the primitive cell, the same for
            equivalent atoms.
    """

    frequencies: np.ndarray
    projected: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """``(n,)``, 1/THz; its integral is three times the number of atoms."""
        return self.projected.sum(axis=0)

    @classmethod
    def of(cls, phonon: Phonopy) -> Dos:
        """From the bands and the mesh, with eigenvectors, of a phonopy object.

        The mean over equivalent atoms is the same at all wave vectors of a star. It therefore needs
        only the irreducible ones, unlike phonopy's projection.
        """
        from phonopy.phonon.tetrahedron_method import get_integration_weights

        assert phonon.band_structure is not None
        on_path = phonon.band_structure.frequencies
        highest = 1.02 * max(f.max() for f in on_path)
        lowest = min(0.0, 1.02 * min(f.min() for f in on_path))
        frequencies = np.linspace(lowest, highest, DOS_POINTS)
        mesh: Any = phonon.mesh
        n_points, n_bands = mesh.frequencies.shape
        vectors = mesh.eigenvectors.reshape(n_points, -1, 3, n_bands)
        weights = (np.abs(vectors) ** 2).sum(axis=2)  # points, atoms, bands
        first = np.asarray(phonon.primitive_symmetry.get_map_atoms())
        for atom in set(first.tolist()):
            alike = first == atom
            weights[:, alike] = weights[:, alike].mean(axis=1, keepdims=True)
        grid = mesh.bz_grid
        irreducible = np.zeros(int(mesh.ir_grid_points.max()) + 1, dtype=np.int64)
        irreducible[mesh.ir_grid_points] = np.arange(n_points)
        # phonopy's accumulator would also integrate the density, which takes as long again.
        shares = get_integration_weights(
            frequencies,
            mesh.frequencies,
            grid,
            grid_points=grid.grg2bzg[mesh.ir_grid_points],
            bzgp2irgp_map=irreducible[mesh.grid_mapping_table[grid.bzg2grg]],
        )
        weights *= mesh.weights[:, None, None]
        density = np.einsum("pfb,pab->af", shares, weights, optimize=True)
        return cls(frequencies, density / np.prod(grid.D_diag))
