"""Serve i-PI with anything that computes energies and forces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.clients.ipi import wire
from dpa3sim.clients.ipi.client import IPIClient, Statistics
from dpa3sim.clients.ipi.wire import Address, Evaluate, Results
from dpa3sim.common.errors import InputError
from dpa3sim.common.settings import option, validate

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import PotentialLike


@dataclass(frozen=True)
class Settings:
    """How to serve i-PI."""

    extras: str = option(
        "",
        "additional quantities to send, as JSON: energy_atomic, n_edges, novelty ...",
    )
    members: int = option(
        0,
        "with --uncertainty, members of a committee made from it, sent for <ffcommittee>",
        minimum=0,
    )
    batch: int = option(
        1, "structures per message of i-PI; the model is warmed up for this number", minimum=1
    )
    wait: float = option(60.0, "time to wait until i-PI listens", unit="s", minimum=0.0)
    reconnect: int = option(
        0, "how often to wait for another i-PI after a lost connection", minimum=0
    )

    def __post_init__(self) -> None:
        validate(self)

    @property
    def extra_names(self) -> list[str]:
        """The names of the extras."""
        return [name.strip() for name in self.extras.split(",") if name.strip()]


def serve(
    what: Any,
    structure: Atoms,
    address: str | tuple[str, int] | Address,
    settings: Settings | None = None,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> Statistics:
    """Serve i-PI, or another server that speaks its protocol, until it ends.

    Args:
        what: a :class:`Potential`, a client of an engine, any ASE calculator, or a function as
            :data:`dpa3sim.clients.ipi.wire.Evaluate`.
        structure: elements, their order and periodic axes, and cell and positions for the warm-up.
        address: name or path of a unix socket, or host and port.
        settings: see :class:`Settings`.
        say: receives lines for the user.

    Raises:
        InputError: bad arguments; others as :meth:`IPIClient.run`.
    """
    client = make_client(what, structure, address, settings or Settings(), say=say)
    return client.run()


def make_client(
    what: Any,
    structure: Atoms,
    address: str | tuple[str, int] | Address,
    settings: Settings,
    *,
    say: Callable[[str], None] = lambda line: None,
    verbose: bool = False,
) -> IPIClient:
    """A client with a warmed-up evaluator, not yet connected; see :func:`serve`."""
    evaluate = make_evaluator(what, structure, settings)
    if isinstance(address, tuple):
        address = Address(host=address[0], port=address[1])
    elif isinstance(address, str):
        address = Address.unix(address)
    return IPIClient(
        evaluate,
        len(structure),
        address,
        order=wire.order_hash(structure.numbers),
        wait=settings.wait,
        reconnect=settings.reconnect,
        say=say,
        verbose=verbose,
    )


def make_evaluator(what: Any, structure: Atoms, settings: Settings) -> Evaluate:
    """A warmed-up evaluator of anything that :func:`serve` accepts, or a list of potentials."""
    from ase.calculators.calculator import BaseCalculator

    from dpa3sim.clients.ipi.evaluator import BatchEvaluator
    from dpa3sim.potential.interface import PotentialLike

    potentials = getattr(what, "potential", what)  # our own calculator is batched
    if isinstance(potentials, PotentialLike | list):
        batched = BatchEvaluator(
            *(_as_list(potentials), structure, settings.extra_names, settings.members)
        )
        batched.warm_up(settings.batch)
        return batched
    if settings.members:
        raise InputError("members of a committee are available with a DPA3 model only")
    if settings.extra_names:
        raise InputError(f"extras {settings.extras!r} are available with a DPA3 model only")
    if isinstance(what, BaseCalculator):
        single = CalculatorEvaluator(what, structure)
        single.warm_up()
        return single
    if callable(what):
        evaluate: Evaluate = what
        return evaluate
    raise InputError(f"{what!r} is not a potential, an ASE calculator or a function")


def _as_list(potentials: PotentialLike | list[PotentialLike]) -> list[PotentialLike]:
    return potentials if isinstance(potentials, list) else [potentials]


class CalculatorEvaluator:
    """Any ASE calculator, one structure after the other.

    Args:
        calculator: must provide stresses for periodic structures; the virial is never set to zero.
        structure: elements, their order and periodic axes.

    Raises:
        InputError: it provides no stresses for a periodic structure.
    """

    def __init__(self, calculator: Any, structure: Atoms) -> None:
        self._atoms = structure.copy()
        self._atoms.calc = calculator
        self._is_periodic = bool(structure.pbc.any())
        if self._is_periodic and "stress" not in calculator.implemented_properties:
            raise InputError(
                f"{type(calculator).__name__} provides no stress, and i-PI needs the virial of a "
                "periodic structure"
            )

    def warm_up(self) -> None:
        """Evaluate the structure as it is."""
        self._atoms.get_potential_energy()

    def __call__(self, cells: np.ndarray, positions: np.ndarray) -> Results:
        """See :data:`dpa3sim.clients.ipi.wire.Evaluate`."""
        from ase.units import Bohr, Hartree

        m = len(positions)
        energies, forces, virials = np.empty(m), np.empty(positions.shape), np.empty((m, 3, 3))
        atoms = self._atoms
        for k in range(m):
            if self._is_periodic:
                atoms.set_cell(cells[k] * Bohr)
            atoms.set_positions(positions[k] * Bohr, apply_constraint=False)
            energies[k] = atoms.get_potential_energy() / Hartree
            forces[k] = atoms.get_forces(apply_constraint=False) * (Bohr / Hartree)
            if self._is_periodic:
                stress = atoms.get_stress(voigt=False, apply_constraint=False)
                virials[k] = stress * (-atoms.get_volume() / Hartree)
            else:  # without a cell the strain moves the atoms only
                w = positions[k].T @ forces[k]
                virials[k] = 0.5 * (w + w.T)
        return energies, forces, virials, [""] * m
