"""The model for torch-sim: its ``ModelInterface`` around a resident potential.

torch-sim (the package ``torch-sim-atomistic``, which needs Python 3.12) moves many systems at once.
In every step, positions and cells go to the host and the results come back to the device of the
state. The neighbour lists are ours: they are kept between steps, and found again by their content
when systems join a batch or leave it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dpa3sim.checkpoints import ModelFile
from dpa3sim.clients.ase import virial_stress
from dpa3sim.common.errors import InputError
from dpa3sim.model.network import DTYPES
from dpa3sim.potential.evaluation import Evaluation
from dpa3sim.potential.interface import BatchPotential
from dpa3sim.potential.potential import Potential
from dpa3sim.potential.settings import Dtype
from dpa3sim.structures.system import System

try:
    from torch_sim.models.interface import ModelInterface
except ImportError as error:
    raise InputError(
        f"torch-sim cannot be imported ({error}): install torch-sim-atomistic, which needs Python "
        "3.12 or later"
    ) from error

if TYPE_CHECKING:
    from torch_sim.state import SimState

_NAMES: dict[torch.dtype, Dtype] = {torch.float32: "float32", torch.float64: "float64"}


class DPA3Model(ModelInterface):  # type: ignore[misc]  # torch-sim need not be installed
    """Energies, forces and stresses of a DPA3 model, for torch-sim.

    The output has ``energy`` ``(n_systems,)`` eV, ``forces`` ``(n_atoms, 3)`` eV/Å, ``stress``
    ``(n_systems, 3, 3)`` eV/Å^3 (positive = tensile; not for systems without periodic axes) and
    ``energies`` ``(n_atoms,)`` eV; with an uncertainty also ``novelties`` ``(n_atoms,)`` and, where
    energies were known, ``energies_uncertainty`` ``(n_atoms,)`` eV. All have the dtype of the
    model. Models that depend on them read ``charge``, ``spin`` and ``fparam`` of the systems, and
    ``aparam`` of the atoms, from the state.

    Batches of any size are evaluated, in parts if the memory requires it: use
    ``autobatcher=False``. torch-sim's own batcher would wait for an out-of-memory error that never
    comes; it needs a ``max_memory_scaler``.

    Args:
        model: as for :class:`dpa3sim.DPA3Calculator`; other options belong to a ``Potential``.
        device: ``"auto"`` (as None: CUDA if it is available), or any device of torch.
        dtype: ``"auto"`` (the precision of the checkpoint), ``"float32"`` or ``"float64"``, or
            torch's.
        compute_forces, compute_stress: whether the output has them.

    Attributes:
        potential: the model.

    Raises:
        CheckpointError, InputError: see :class:`dpa3sim.Potential`. Calculations also raise
            InputError, for systems that the model cannot evaluate.
    """

    def __init__(
        self,
        model: str | Path | ModelFile | BatchPotential | None = None,
        *,
        device: str | torch.device | None = "auto",
        dtype: Dtype | torch.dtype = "auto",
        compute_forces: bool = True,
        compute_stress: bool = True,
    ) -> None:
        super().__init__()
        device = device or "auto"
        if not isinstance(model, BatchPotential):
            model = Potential(model, device=device, dtype=_name(dtype))
        elif (device, dtype) != ("auto", "auto"):
            raise InputError("set device and dtype in the Potential")
        self.potential: BatchPotential = model
        self._device, self._dtype = model.device, DTYPES[model.dtype]
        self._compute_forces, self._compute_stress = compute_forces, compute_stress
        self._memory_scales_with = "n_atoms_x_density"

    @ModelInterface.compute_forces.setter  # type: ignore[untyped-decorator]
    def compute_forces(self, value: bool) -> None:
        """Whether the output has forces."""
        self._compute_forces = value

    @ModelInterface.compute_stress.setter  # type: ignore[untyped-decorator]
    def compute_stress(self, value: bool) -> None:
        """Whether the output has stresses."""
        self._compute_stress = value

    def forward(self, state: SimState, **_: object) -> dict[str, torch.Tensor]:
        """The results of all systems of a state, see the class.

        Args:
            state: torch-sim's, on any device.

        Raises:
            InputError: a system that the model cannot evaluate, named by its index.
        """
        systems = systems_of(state)
        found = self.potential.evaluate(systems)
        output = {
            "energy": np.array([x.energy for x in found]),
            "energies": np.concatenate([x.energies for x in found]),
        }
        if self._compute_forces:
            output["forces"] = np.concatenate([x.forces for x in found])
        if self._compute_stress and systems[0].pbc.any():
            stresses = [
                virial_stress(x.virial, s.cell, s.pbc) for x, s in zip(found, systems, strict=True)
            ]
            output["stress"] = np.stack(stresses)
        output |= _uncertainties(found)
        return {k: torch.from_numpy(x).to(state.device, self._dtype) for k, x in output.items()}


def _name(dtype: Dtype | torch.dtype) -> Dtype:
    """The name of a precision.

    Raises:
        InputError: the model cannot have it.
    """
    if not isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in _NAMES:
        raise InputError(f"dtype = {dtype} must be torch.float32 or torch.float64")
    return _NAMES[dtype]


def systems_of(state: SimState) -> list[System]:
    """The systems of a state of torch-sim, whose cells have their vectors as columns."""
    sizes = np.bincount(_numpy(state.system_idx))
    ends = np.cumsum(sizes)[:-1]

    def by_system(values: torch.Tensor) -> list[np.ndarray]:
        return np.split(_numpy(values), ends)

    def extra(name: str) -> Sequence[Any]:
        if name in state.system_extras:
            return list(_numpy(state.system_extras[name]))
        if name in state.atom_extras:
            return by_system(state.atom_extras[name])
        return [None] * len(sizes)

    pbc = _numpy(state.pbc).astype(bool)
    cells = np.ascontiguousarray(_numpy(state.cell).transpose(0, 2, 1), dtype=np.float64)
    parts = zip(
        *(by_system(state.atomic_numbers), by_system(state.positions), cells),
        *(extra("charge"), extra("spin"), extra("fparam"), extra("aparam")),
        strict=True,
    )
    return [
        System(
            numbers=numbers,
            positions=positions.astype(np.float64),
            cell=cell,
            pbc=pbc,
            fparam=fparam,
            aparam=aparam,
            charge_spin=None if charge is None or spin is None else (charge, spin),
        )
        for numbers, positions, cell, charge, spin, fparam, aparam in parts
    ]


def _numpy(values: torch.Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()


def _uncertainties(found: Sequence[Evaluation]) -> dict[str, np.ndarray]:
    """Those of atoms, if there are any.

    Those of systems are left out: torch-sim takes what has as many rows as there are atoms for a
    property of atoms, which they would be in a batch of one-atom cells.
    """
    judged = [x.uncertainty for x in found if x.uncertainty is not None]
    if not judged:
        return {}
    output = {"novelties": np.concatenate([x.novelties for x in judged])}
    energies = [x.energies for x in judged if x.energies is not None]
    if energies:
        output["energies_uncertainty"] = np.concatenate(energies)
    return output
