"""The ASE calculator."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    PropertyNotImplementedError,
    all_changes,
)
from ase.outputs import Properties, all_outputs
from ase.stress import full_3x3_to_voigt_6_stress

from dpa3sim.checkpoints import ModelFile
from dpa3sim.common.errors import InputError
from dpa3sim.kernels.api import Matmul
from dpa3sim.potential import interface
from dpa3sim.potential.evaluation import Evaluation
from dpa3sim.potential.interface import PotentialLike
from dpa3sim.potential.potential import Potential
from dpa3sim.potential.settings import DispersionName, Dtype, ModelSettings, Truncate
from dpa3sim.structures.geometry import complete_cell
from dpa3sim.structures.system import System
from dpa3sim.uncertainty.rigidity import MEMBERS, Rigidity

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("dpa3sim.calculator")


class DPA3Calculator(Calculator):
    """Energies, forces and stresses of a DPA3 model, for ASE.

    Args:
        model: path of a checkpoint (``.pth``, ``.pt``, ``.safetensors``), a registry name, a
            loaded model, a :class:`Potential` or a client of an :class:`Engine`; None is the
            embedded default model, which the logger ``dpa3sim.calculator`` reports.
        head: name of the head of a multi-task checkpoint.
        device: ``"auto"`` (CUDA if available), ``"cpu"``, ``"cuda:0"`` ..., or a member of an
            enum with such a value.
        dtype: ``"auto"`` (the precision of the checkpoint), ``"float32"`` or ``"float64"``.
        truncate: ``"auto"``, ``"deepmd"`` or ``"none"``, see :class:`Potential`.
        smooth_cutoff: width over which the step at the angle cutoff is smoothed, Å, such as 0.3,
            for models that have one; see :class:`Potential`. None means no smoothing.
        matmul: ``"full"``; ``"tf32"`` or ``"bf16"`` on GPUs, see :class:`Potential`.
        uncertainty: file of ``dpa3sim uncertainty fit`` for this model, or None.
        dispersion: ``"none"``, or ``"d3"`` to add D3(BJ), see :class:`Potential`.
        ranks: processes that share the work, see :class:`Potential`.
        default_dtype: another name of ``dtype``, which other tools use.

    Results: ``energy`` and ``free_energy`` (eV), ``energies`` (eV per atom), ``forces`` (eV/Å),
    ``stress`` (eV/Å^3, Voigt order, positive = tensile; only for periodic structures) and
    ``virial`` (eV, (3, 3), -dE/dstrain). ``evaluation`` is the complete result for the last
    structure, and ``warnings`` are its warnings. With an uncertainty there are also ``novelties``
    (of the atoms, without a unit) and, where energies were known, ``energy_uncertainty`` (eV) and
    ``energies_uncertainty`` (of the atoms, eV); :meth:`forces_uncertainty` takes more time.

    Models that depend on charge and spin read them from ``atoms.info["charge_spin"]``.

    Deep copies share the model. Calculators can be pickled, see :class:`Potential`; their last
    results go along. ``parameters`` is a dict for those who want to know what was computed with
    which model: ``model``, ``head``, ``dtype``. Changing it changes no results.

    Raises:
        CheckpointError, InputError: see :class:`Potential`. Calculations also raise InputError,
            for structures that the model cannot evaluate.
    """

    implemented_properties = [  # noqa: RUF012 - ASE declares it as an instance variable
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
        "virial",
        "novelties",
        "energy_uncertainty",
        "energies_uncertainty",
    ]

    def __init__(
        self,
        model: str | Path | ModelFile | PotentialLike | None = None,
        *,
        head: str | None = None,
        device: str | torch.device | Enum = "auto",
        dtype: Dtype = "auto",
        truncate: Truncate = "auto",
        smooth_cutoff: float | None = None,
        matmul: Matmul = "full",
        uncertainty: str | Path | Rigidity | None = None,
        dispersion: DispersionName = "none",
        ranks: int | str = 1,
        default_dtype: Dtype | None = None,
    ) -> None:
        super().__init__()
        self.potential: PotentialLike
        dtype = _one_dtype(dtype, default_dtype)
        device = str(device.value if isinstance(device, Enum) else device)
        settings = ModelSettings(
            *(None, head, device, dtype, matmul, truncate, smooth_cutoff),
            dispersion=dispersion,
            ranks=str(ranks),
        )
        if not isinstance(model, PotentialLike):
            self.potential = Potential.load(settings, model, uncertainty)
        elif settings == ModelSettings() and uncertainty is None:
            self.potential = model
        else:
            raise InputError(
                "set head, device, dtype, truncate, smooth_cutoff, matmul, uncertainty, dispersion "
                "and ranks in the Potential"
            )
        if model is None:
            _log.warning("no model was named, using the embedded one: %s", self.potential)
        self.parameters = {
            "model": self.model.name,
            "head": self.model.head,
            "dtype": self.potential.dtype,
        }
        self._key: tuple[Any, ...] | None = None
        self.warnings: tuple[str, ...] = ()
        self.evaluation: Evaluation | None = None

    @property
    def model(self) -> ModelFile:
        """The model in use: ``model.name``, ``model.head``, ``model.sha256`` ..."""
        return self.potential.model

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """The changes since the last calculation that affect the model's result.

        Charges, magnetic moments, constraints and the cell of a molecule do not affect it; the
        charge, spin and parameters in ``atoms.info`` do.
        """
        changed = self._key is None or System.from_atoms(atoms).key() != self._key
        return list(all_changes) if changed else []

    def reset(self) -> None:
        """Discard the last results."""
        super().reset()
        self._key = None

    def export_properties(self) -> Properties:
        """The results that ASE knows, which are not the virial and the uncertainties."""
        return Properties({k: v for k, v in self.results.items() if k in all_outputs})

    def forces_uncertainty(self, atoms: Atoms | None = None, members: int = MEMBERS) -> np.ndarray:
        """Standard deviations of the forces, ``(n, 3)``, eV/Å; see :class:`Potential`.

        Args:
            atoms: the structure; None is the last one.
            members: how many models they are estimated from.

        Raises:
            InputError: there is no uncertainty of forces, or no structure yet.
        """
        structure = self.atoms if atoms is None else atoms
        if structure is None:
            raise InputError("nothing was calculated yet: name the structure")
        return interface.forces_uncertainty(self.potential, [structure], members)[0]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute all properties of ``atoms`` (ASE calls this)."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        structure = System.from_atoms(self.atoms)
        self._take(structure, self.potential.evaluate([structure])[0])
        if "stress" in properties and not structure.pbc.any():
            raise PropertyNotImplementedError("a structure without periodic axes has no stress")

    def take(self, atoms: Atoms, evaluation: Evaluation) -> None:
        """Use an existing evaluation of ``atoms`` instead of repeating it."""
        self.atoms = atoms.copy()
        self._take(System.from_atoms(atoms), evaluation)

    def _take(self, structure: System, result: Evaluation) -> None:
        self._key = structure.key()
        self.evaluation = result
        self.warnings = result.warnings
        self.results = {
            "energy": result.energy,
            "free_energy": result.energy,
            "energies": result.energies,
            "forces": result.forces,
            "virial": result.virial,
        }
        judged = result.uncertainty
        if judged is not None:
            self.results["novelties"] = judged.novelties
            if judged.energy is not None:
                self.results["energy_uncertainty"] = judged.energy
                self.results["energies_uncertainty"] = judged.energies
        if structure.pbc.any():
            stress = virial_stress(result.virial, structure.cell, structure.pbc)
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress)


def _one_dtype(dtype: Dtype, default_dtype: Dtype | None) -> Dtype:
    """The precision under either of its names.

    Raises:
        InputError: the two differ.
    """
    if default_dtype is None:
        return dtype
    if dtype not in ("auto", default_dtype):
        raise InputError(
            f"dtype = {dtype!r} and default_dtype = {default_dtype!r} are two names of one option: "
            "give one of them"
        )
    return default_dtype


def virial_stress(virial: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Stress ``(3, 3)`` in eV/Å^3, positive = tensile, from the virial in eV.

    Along non-periodic axes, the cell vector only determines the reference volume (a slab with its
    vacuum); a missing vector counts as 1 Å.
    """
    rank_deficient = abs(np.linalg.det(cell)) < 1e-9
    volume = abs(np.linalg.det(complete_cell(cell, pbc) if rank_deficient else cell))
    return -(virial + virial.T) / (2 * volume)
