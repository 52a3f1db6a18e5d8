"""The model for OpenMM, as OpenMM-ML adds potentials to systems (``MLPotential("dpa3")``)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import openmm
from ase import units
from openmm.unit import angstrom
from openmmml.mlpotential import MLPotentialImpl

from dpa3sim.common.errors import InputError
from dpa3sim.potential.interface import PotentialLike
from dpa3sim.structures.system import System

if TYPE_CHECKING:
    from openmm.app import Topology

_KJ_PER_MOL = units.kJ / units.mol
"""eV."""


class Implementation(MLPotentialImpl):  # type: ignore[misc]  # OpenMM-ML need not be installed
    """Adds a potential to systems of OpenMM.

    Args:
        potential: the model.
    """

    def __init__(self, potential: PotentialLike) -> None:
        self.potential = potential

    def addForces(  # noqa: N802 - OpenMM-ML calls it so
        self,
        topology: Topology,
        system: openmm.System,
        atoms: Iterable[int] | None,
        forceGroup: int,  # noqa: N803
        *,
        charge: int | None = None,
        spin: int | None = None,
        **_: object,  # of methods that embed a part of a system
    ) -> None:
        """Add the force of the model.

        Args:
            topology: elements, and whether there is a periodic box.
            system: where the force is added.
            atoms: indices of those that the model is for; None is all.
            forceGroup: of the force.
            charge, spin: for models that depend on them.

        Raises:
            InputError: an atom has no element, or one that the model does not know.
        """
        chosen = None if atoms is None else list(atoms)
        numbers = self._numbers(topology, chosen)
        periodic = topology.getPeriodicBoxVectors() is not None
        charge_spin = None if charge is None or spin is None else (charge, spin)
        force = openmm.PythonForce(Computation(self.potential, numbers, periodic, charge_spin))
        force.setForceGroup(forceGroup)
        force.setUsesPeriodicBoundaryConditions(periodic)
        if chosen is not None:
            force.setParticles(chosen)
        system.addForce(force)

    def getMLLongRange(self) -> bool:  # noqa: N802
        """Interactions are local."""
        return False

    def _numbers(self, topology: Topology, chosen: list[int] | None) -> np.ndarray:
        """Atomic numbers of the chosen atoms, ``(n,)``."""
        all_atoms = list(topology.atoms())
        known = set(self.potential.model.config.type_map)
        found = []
        for atom in all_atoms if chosen is None else [all_atoms[index] for index in chosen]:
            if atom.element is None:
                raise InputError(f"{atom} has no element in the topology: set atom.element")
            if atom.element.symbol not in known:
                raise InputError(
                    f"{atom} is {atom.element.symbol}, which model {self.potential.model.name} "
                    "does not know"
                )
            found.append(atom.element.atomic_number)
        return np.array(found, dtype=np.int64)


class Computation:
    """What OpenMM calls in every step; it can be pickled, so that systems can be saved.

    Args:
        potential: the model.
        numbers: ``(n,)`` atomic numbers.
        periodic: whether all axes are periodic.
        charge_spin: for models that depend on them.
    """

    def __init__(
        self,
        potential: PotentialLike,
        numbers: np.ndarray,
        periodic: bool,
        charge_spin: tuple[int, int] | None,
    ) -> None:
        self._potential = potential
        self._numbers, self._charge_spin = numbers, charge_spin
        self._periodic = periodic

    def __call__(self, state: openmm.State) -> tuple[float, np.ndarray]:
        """Energy in kJ/mol and forces ``(n, 3)`` in kJ/mol/nm of a state.

        Raises:
            InputError, NonFiniteError: see :meth:`Potential.evaluate`.
        """
        cell = np.zeros((3, 3))
        if self._periodic:
            cell = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(angstrom)
        system = System(
            numbers=self._numbers,
            positions=state.getPositions(asNumpy=True).value_in_unit(angstrom),
            cell=cell,
            pbc=np.full(3, self._periodic),
            charge_spin=self._charge_spin,
        )
        found = self._potential.evaluate([system])[0]
        return found.energy / _KJ_PER_MOL, 10 * found.forces / _KJ_PER_MOL
