"""London dispersion, which PBE lacks: D3 with rational damping, by simple-dftd3.

Sources: Grimme, Antony, Ehrlich, Krieg, J. Chem. Phys. 132, 154104 (2010); Grimme, Ehrlich,
Goerigk, J. Comput. Chem. 32, 1456 (2011) (docs/dispersion.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase.units import Bohr, Hartree

from dpa3sim.checkpoints.theory import theory_of
from dpa3sim.common.errors import Dpa3simError, InputError
from dpa3sim.potential.evaluation import Evaluation
from dpa3sim.potential.settings import DispersionName
from dpa3sim.structures.geometry import complete_cell
from dpa3sim.structures.system import System

if TYPE_CHECKING:
    from dpa3sim.checkpoints import ModelFile

# The library has coefficients up to lawrencium; beyond, it adds nothing without a word.
LAST_ELEMENT = 103


@dataclass(frozen=True)
class Correction:
    """What dispersion adds to an evaluation; see :class:`~dpa3sim.potential.Evaluation`.

    Attributes:
        energy: eV. energies: ``(n,)`` eV; half of each pair belongs to either atom.
        forces: ``(n, 3)`` eV/Å. virial: ``(3, 3)`` eV.
    """

    energy: float
    energies: np.ndarray
    forces: np.ndarray
    virial: np.ndarray


class Dispersion:
    """D3(BJ) with the parameters of the functional that a model was trained to.

    Args:
        name: ``"d3"``, which has no three-body term.
        model: the model; its level of theory decides the parameters.

    Attributes:
        name: see above. functional: the parameters are those for it.
        warnings: reasons to doubt the choice.

    Raises:
        InputError: the package ``dftd3`` is missing, or the model includes dispersion already, or
            is of a level of theory without parameters.
    """

    def __init__(self, name: DispersionName, model: ModelFile) -> None:
        self.name = name
        self.warnings: tuple[str, ...] = ()
        try:
            from dftd3.interface import RationalDampingParam
        except ImportError:
            raise InputError(
                f"dispersion={name!r} needs the package dftd3: pip install 'dpa3sim[d3]'"
            ) from None
        theory = theory_of(model)
        which = model.name if model.head is None else f"{model.name}, head {model.head}"
        if theory is not None and theory.dispersion is not None:
            raise InputError(
                f"dispersion={name!r}: {which} was trained to {theory}, which includes dispersion "
                "already; leave the option out"
            )
        self.functional = "PBE" if theory is None else theory.functional
        if theory is None:
            self.warnings = (
                f"the level of theory of {which} is not known: the dispersion has the parameters "
                "for PBE, and is wrong if the model was trained to anything else",
            )
        # With three-body terms a crystal takes a hundred times as long.
        self._parameters = RationalDampingParam(method=self.functional, atm=False)

    @property
    def identity(self) -> str:
        """A text that distinguishes it from others."""
        return f"{self.name}/{self.functional}"

    def __str__(self) -> str:
        return f"D3(BJ) for {self.functional}"

    def facts(self) -> dict[str, Any]:
        """What was added, JSON-ready."""
        return {
            "method": "D3(BJ)",
            "functional": self.functional,
            "program": f"dftd3 {metadata.version('dftd3')}",
        }

    def check(self, numbers: np.ndarray) -> None:
        """Raise InputError if there are no coefficients for one of these elements."""
        if len(numbers) and numbers.max() > LAST_ELEMENT:
            from ase.data import chemical_symbols

            raise InputError(
                f"D3 has no coefficients for {chemical_symbols[int(numbers.max())]}; leave the "
                "option dispersion out"
            )

    def evaluate(self, systems: Sequence[System]) -> list[Correction | InputError]:
        """The corrections of structures, side by side on as many cores as torch may use.

        A structure that the library refuses has its error in the place of its correction.
        """
        threads = min(torch.get_num_threads(), len(systems))
        if threads <= 1:
            return [self._one(system) for system in systems]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self._one, systems))

    @staticmethod
    def to(
        output: Evaluation | Dpa3simError, correction: Correction | InputError
    ) -> Evaluation | Dpa3simError:
        """The evaluation with its correction; an error of either, the model's first."""
        if isinstance(output, Dpa3simError):
            return output
        if isinstance(correction, InputError):
            return correction
        return replace(
            output,
            energy=output.energy + correction.energy,
            energies=output.energies + correction.energies,
            forces=output.forces + correction.forces,
            virial=output.virial + correction.virial,
        )

    def hessian(self, system: System, atoms: Sequence[int]) -> np.ndarray:
        """Second derivatives, ``(3k, 3n)`` for k of the n atoms, eV/Å^2.

        Raises:
            InputError: the library refuses the structure.
        """
        self.check(system.numbers)
        try:
            full = self._loaded(system).get_hessian(self._parameters)["hessian"]
        except RuntimeError as error:
            raise _refused(error) from None
        rows = (3 * np.asarray(atoms, dtype=int)[:, None] + np.arange(3)).ravel()
        return np.asarray(full[rows] * (Hartree / Bohr**2))

    def _one(self, system: System) -> Correction | InputError:
        try:
            loaded = self._loaded(system)
            found = loaded.get_dispersion(self._parameters, grad=True)
            pairs = loaded.get_pairwise_dispersion(self._parameters)
        except RuntimeError as error:
            return _refused(error)
        energies = pairs["additive pairwise energy"].sum(axis=1)
        return Correction(
            float(found["energy"]) * Hartree,
            energies * Hartree,
            -found["gradient"] * (Hartree / Bohr),
            -found["virial"] * Hartree,
        )

    @staticmethod
    def _loaded(system: System) -> Any:
        from dftd3.interface import DispersionModel

        cell, positions = _room(system)
        return DispersionModel(system.numbers, positions / Bohr, cell / Bohr, system.pbc)


def _room(system: System) -> tuple[np.ndarray, np.ndarray]:
    """A cell, and positions that are inside of it along the axes that are not periodic, Å.

    The library moves atoms into the cell along these axes, too, where they have no images.
    """
    cell = complete_cell(system.cell, system.pbc)
    positions = system.positions.copy()
    for axis in np.flatnonzero(~system.pbc):
        normal = cell[axis]
        heights = positions @ normal
        positions += (1.0 - heights.min()) * normal
        cell[axis] *= np.ptp(heights) + 2.0
    return cell, positions


def _refused(error: RuntimeError) -> InputError:
    return InputError(f"the dispersion cannot be computed: {' '.join(str(error).split())}")
