"""The model for i-PI: from a batch of beads to energies, forces and virials, in atomic units.

The socket client, the PES file for ``<ffdirect>`` and the tests share this function of cells and
positions. The virial is -dE/dstrain, that is ``-V`` times ASE's stress, the potential part
only; i-PI adds the kinetic part (docs/ipi.md#units-and-layout).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.units import Bohr, Hartree

from dpa3sim.clients.ipi.wire import Results
from dpa3sim.common.errors import InputError
from dpa3sim.common.settings import suggestion
from dpa3sim.potential.interface import rigidity_of
from dpa3sim.structures.geometry import check_geometry, complete_cell
from dpa3sim.structures.system import AtomsLike, System, as_system

if TYPE_CHECKING:
    from dpa3sim.potential.evaluation import Ensemble, Evaluation, Uncertainty
    from dpa3sim.potential.interface import PotentialLike

_Committee = tuple[np.ndarray, np.ndarray, np.ndarray]
# Additional quantities that a result may contain, in atomic units.
EXTRAS: dict[str, Callable[[Evaluation], float | list[float]]] = {
    "energy_atomic": lambda e: (e.energies / Hartree).tolist(),
    "n_edges": lambda e: e.n_edges,
    "n_angles": lambda e: e.n_angles,
    "n_cut_edges": lambda e: e.n_cut_edges,
}
# The same, for a model with an uncertainty.
JUDGED: dict[str, Callable[[Uncertainty], float]] = {
    "energy_uncertainty": lambda u: (u.energy or 0.0) / Hartree,
    "novelty": lambda u: u.novelty,
}


class BatchEvaluator:
    """Beads, replicas or displaced copies of one structure, evaluated as one batch.

    Every slot of the batch keeps its own neighbour list with a skin; a list is tested by
    minimum-image displacements and renewed only when it could miss a pair, whether atoms were
    wrapped meanwhile or not. Atoms are wrapped here in float64, so that it does not matter how
    far they have drifted; along the non-periodic axes of ``structure`` they are not wrapped.

    Args:
        potentials: one model or several; of several, the mean is returned, and the energy, forces
            and virial of each as extras for ``<ffcommittee>``.
        structure: elements, their order, and the periodic axes, which i-PI does not send.
        extras: names from :data:`EXTRAS` and :data:`JUDGED`, which are sent as JSON with every
            result.
        members: how many members of a committee are made from the uncertainty of one model, and
            sent as those of several models; 0 for none.

    Attributes:
        natoms: number of atoms of the structure.
        calls, structures: number of batches and structures evaluated so far.

    Raises:
        InputError: the structure cannot be evaluated, an extra is unknown, or the model lacks the
            uncertainty for it.
    """

    def __init__(
        self,
        potentials: PotentialLike | Sequence[PotentialLike],
        structure: AtomsLike | System,
        extras: Sequence[str] = (),
        members: int = 0,
    ) -> None:
        several = isinstance(potentials, Sequence)
        self._potentials: list[PotentialLike] = list(potentials) if several else [potentials]  # type: ignore[arg-type, list-item]
        if not self._potentials:
            raise InputError("a committee needs at least one model")
        known = [*EXTRAS, *JUDGED]
        for name in extras:
            if name not in known:
                hint = suggestion(name, known) or f"; available are {', '.join(known)}"
                raise InputError(f"unknown extra {name!r}" + hint)
        self._extras = tuple(extras)
        self._changes = self._scatter(members)
        self._structure = as_system(structure).copy()
        self.natoms = len(self._structure.numbers)
        self.calls = self.structures = 0
        for potential in self._potentials:
            potential.check(self._structure)
        self._device = getattr(self._potentials[0], "device", None)

    def _scatter(self, members: int) -> Callable[[Sequence[System]], list[Ensemble]] | None:
        """What tells how members of the model differ from it; None for no members.

        Raises:
            InputError: the first model lacks the uncertainty that this or an extra needs.
        """
        wanted = [name for name in self._extras if name in JUDGED]
        wanted += ["members"] if members else []
        if not wanted:
            return None
        model = self._potentials[0]
        rigidity = rigidity_of(model)
        if rigidity is None:
            raise InputError(f"{wanted[0]} needs an uncertainty of the model: --uncertainty FILE")
        scale = None if wanted == ["novelty"] else rigidity.energy_scale
        if not members or scale is None:
            return None
        changes = getattr(model, "changes", None)
        if len(self._potentials) > 1 or changes is None:
            raise InputError("members are made of one Potential; several are a committee already")
        return partial(changes, directions=scale * rigidity.directions(members))

    def __call__(self, cells: np.ndarray, positions: np.ndarray) -> Results:
        """Evaluate a batch.

        Args:
            cells: ``(m, 3, 3)``, lattice vectors as rows, bohr.
            positions: ``(m, natoms, 3)``, bohr, wrapped or not.

        Returns:
            Energies ``(m,)``, hartree; forces ``(m, natoms, 3)``, hartree/bohr; symmetric virials
            ``(m, 3, 3)``, hartree; m texts, JSON or empty.

        Raises:
            InputError: a structure cannot be computed. NonFiniteError: a result is NaN.
        """
        cells, positions = cells * Bohr, positions * Bohr
        m = len(positions)
        structures = self._make(cells, positions)
        structures += [structures[-1]] * (self._room(m) - m)
        with self._own_device():
            members = [p.evaluate(structures)[:m] for p in self._potentials]
        self.calls += 1
        self.structures += m
        energies = np.array([[e.energy for e in member] for member in members]) / Hartree
        forces = np.array([[e.forces for e in member] for member in members]) * (Bohr / Hartree)
        virials = np.array([[e.virial for e in member] for member in members]) / Hartree
        virials = _symmetric(virials)
        committee = (energies, forces, virials) if len(members) > 1 else None
        if self._changes is not None:
            with self._own_device():
                d_energies, d_forces, d_virials = _stacked(self._changes(structures[:m]))
            committee = energies + d_energies, forces + d_forces, virials + d_virials
        extras = [self._text(members[0][k], committee, k) for k in range(m)]
        return energies.mean(axis=0), forces.mean(axis=0), virials.mean(axis=0), extras

    def warm_up(self, batch: int = 1) -> None:
        """Evaluate the structure once and in a batch, so that the first step is fast."""
        cell = self._structure.cell / Bohr
        positions = self._structure.positions / Bohr
        for m in sorted({1, batch}):
            self(np.repeat(cell[None], m, axis=0), np.repeat(positions[None], m, axis=0))
        self.calls = self.structures = 0

    def _make(self, cells: np.ndarray, positions: np.ndarray) -> list[System]:
        """Wrapped structures from cells and positions in Å."""
        pbc = self._structure.pbc
        structures = []
        for cell, where in zip(cells, positions, strict=True):
            if pbc.any():
                check_geometry(np.zeros((1, 3)), cell, pbc)
                shifts = np.floor(where @ np.linalg.inv(complete_cell(cell, pbc))) * pbc
                where = where - shifts @ cell
            structures.append(replace(self._structure, positions=where, cell=cell))
        return structures

    def _room(self, m: int) -> int:
        """The size to which a batch of ``m`` is filled up.

        On a GPU, a separate program is captured for each size when it first occurs; therefore only
        a few sizes are used: 1, 2, 3, 4, 6, 8, 12, 16 ... with at most a third of them unused.
        """
        if getattr(self._device, "type", "cpu") == "cpu":
            return m
        power = 1 << (m - 1).bit_length()
        return 3 * power // 4 if power >= 4 and m <= 3 * power // 4 else power

    def _own_device(self) -> AbstractContextManager[object]:
        """Select the CUDA device, which is set per thread; i-PI calls from several threads."""
        if getattr(self._device, "type", "cpu") != "cuda":
            return nullcontext()
        import torch

        return torch.cuda.device(self._device)

    def _text(
        self,
        evaluation: Evaluation,
        committee: _Committee | None,
        k: int,
    ) -> str:
        """The extras of structure ``k`` as JSON; empty if none were requested."""
        own = [name for name in self._extras if name in EXTRAS]
        values: dict[str, Any] = {name: EXTRAS[name](evaluation) for name in own}
        if evaluation.uncertainty is not None:
            others = [name for name in self._extras if name in JUDGED]
            values |= {name: JUDGED[name](evaluation.uncertainty) for name in others}
        if committee is not None:
            # A list for each member, as ffcommittee expects (docs/ipi.md#units-and-layout).
            for name, array in zip(("pot", "force", "virial"), committee, strict=True):
                flat = array[:, k].reshape(len(array), -1).tolist()
                values[f"committee_{name}"] = [x[0] for x in flat] if name == "pot" else flat
        return json.dumps(values) if values else ""


def _symmetric(virials: np.ndarray) -> np.ndarray:
    """The symmetric part of ``(..., 3, 3)``."""
    return 0.5 * (virials + virials.swapaxes(-1, -2))


def _stacked(ensembles: Sequence[Ensemble]) -> _Committee:
    """Energies, forces and virials, ``(members, structures, ...)``, in atomic units."""
    energies = np.stack([x.energies for x in ensembles], axis=1) / Hartree
    forces = np.stack([x.forces for x in ensembles], axis=1) * (Bohr / Hartree)
    virials = np.stack([x.virials for x in ensembles], axis=1) / Hartree
    return energies, forces, _symmetric(virials)
