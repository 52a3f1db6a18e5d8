"""A stand-in for the ASE calculator of deepmd-kit, for scripts and tools that import it.

It needs no deepmd-kit, and contains none of it: it has the arguments and results of
``deepmd.calculator.DP`` as its documentation describes them, computed by this package.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_changes
from ase.data import atomic_numbers, chemical_symbols

import dpa3sim
from dpa3sim.clients.ase import DPA3Calculator
from dpa3sim.common.errors import BAD_INPUT, DONE, Dpa3simError, InputError
from dpa3sim.potential.evaluation import Evaluation
from dpa3sim.structures.system import System

REPRODUCED = "3.1.3"
"""The version of deepmd-kit whose results ours are compared with."""
USAGE = """\
usage: python -m dpa3sim.deepmd_compat [-h] -- PROGRAM [ARGUMENT ...]

Run an installed program, or a Python script, that imports 'deepmd.calculator.DP'. Models that it
names are evaluated by dpa3sim. This is for environments without deepmd-kit.

example:
  python -m dpa3sim.deepmd_compat -- janus singlepoint --arch deepmd --model FILE --struct NaCl.cif
"""


class DP(DPA3Calculator):
    """The calculator under the name and with the arguments of deepmd-kit's.

    Results: ``energy``, ``free_energy`` (eV), ``forces`` (eV/Å), ``virial`` (eV, -dE/dstrain),
    ``stress`` (eV/Å^3, only for periodic structures).

    Args:
        model: path of a checkpoint, or a registry name.
        label: as for every calculator of ASE.
        type_dict: index in the model's type map for each element; None takes elements by name.
        neighbor_list: has no effect; neighbours are found without it.
        head: of a multi-task model.
        options: of :class:`DPA3Calculator`: ``device``, ``dtype`` ...

    Raises:
        CheckpointError, InputError: see :class:`DPA3Calculator`. Calculations raise InputError for
            elements that the model, or ``type_dict``, does not know.
    """

    name = "DP"
    implemented_properties: ClassVar[list[str]] = [  # type: ignore[misc]  # a variable there
        "energy",
        "free_energy",
        "forces",
        "virial",
        "stress",
    ]

    def __init__(
        self,
        model: str | Path,
        label: str = "DP",
        type_dict: Mapping[str, int] | None = None,
        neighbor_list: object = None,
        head: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, head=head, **options)
        self.label = label
        self._elements = None if type_dict is None else self._elements_of(type_dict)

    def _elements_of(self, type_dict: Mapping[str, int]) -> dict[int, int]:
        """The element that the model knows each element of ``type_dict`` as, atomic numbers."""
        types = self.model.config.type_map
        found = {}
        for symbol, index in type_dict.items():
            known = 0 <= index < len(types) and types[index] in atomic_numbers
            if symbol not in atomic_numbers or not known:
                raise InputError(
                    f"type_dict: {symbol!r}: {index} is no element, or no type of this model, "
                    f"which are 0 ... {len(types) - 1}: {', '.join(types)}"
                )
            found[atomic_numbers[symbol]] = atomic_numbers[types[index]]
        return found

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute all properties of ``atoms`` (ASE calls this)."""
        if atoms is None or self._elements is None:
            super().calculate(atoms, properties, system_changes)
            return
        unknown = sorted(set(atoms.numbers.tolist()) - self._elements.keys())
        if unknown:
            raise InputError(f"element {chemical_symbols[unknown[0]]!r} is not in type_dict")
        renamed = atoms.copy()
        renamed.numbers = np.array([self._elements[z] for z in atoms.numbers.tolist()])
        super().calculate(renamed, properties, system_changes)
        assert self.evaluation is not None
        self.take(atoms, self.evaluation)

    def _take(self, structure: System, result: Evaluation) -> None:
        super()._take(structure, result)
        known = self.implemented_properties
        self.results = {name: x for name, x in self.results.items() if name in known}


def install() -> None:
    """Let ``from deepmd.calculator import DP`` give :class:`DP` in this process.

    Raises:
        InputError: deepmd-kit is installed here.
    """
    if isinstance(sys.modules.get("deepmd"), _StandIn):
        return
    if "deepmd" in sys.modules or find_spec("deepmd") is not None:
        raise InputError(
            "deepmd-kit is installed here, and its name is not taken from it: use an environment "
            "without it, or dpa3sim.deepmd_compat.DP instead of deepmd.calculator.DP"
        )
    package, calculator = _StandIn("deepmd"), _StandIn("deepmd.calculator")
    package.__path__ = []
    for module in (package, calculator):  # without one, find_spec fails
        module.__spec__ = ModuleSpec(module.__name__, None)
    package.__version__ = f"{REPRODUCED}+dpa3sim.{dpa3sim.__version__}"
    package.calculator, calculator.DP = calculator, DP
    sys.modules |= {"deepmd": package, "deepmd.calculator": calculator}


class _StandIn(ModuleType):
    """A module in the place of one of deepmd-kit."""

    __path__: list[str]
    __version__: str
    calculator: ModuleType
    DP: type[DP]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a program with the stand-in.

    Args:
        arguments: ``--``, the program and its arguments; None are those of this process.

    Returns:
        The exit code, unless the program exits itself.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["-h"], ["--help"]):
        print(USAGE, end="")
        return DONE
    try:
        if words[:1] != ["--"] or len(words) < 2:
            raise InputError("a program is missing: python -m dpa3sim.deepmd_compat -- PROGRAM ...")
        install()
        run = _program(words[1])
    except Dpa3simError as error:
        print(f"dpa3sim: error: {error}", file=sys.stderr)
        return BAD_INPUT
    sys.argv = words[1:]
    run()
    return DONE


def _program(name: str) -> Callable[[], object]:
    """What runs an installed program, or the script with this path.

    Raises:
        InputError: there is neither.
    """
    found = list(entry_points(group="console_scripts", name=name))
    if found:
        program = found[0].load()
        return lambda: sys.exit(program())
    if not Path(name).is_file():
        raise InputError(f"{name}: no installed program of that name, and no Python script")
    sys.path.insert(0, str(Path(name).resolve().parent))
    return lambda: runpy.run_path(name, run_name="__main__")
