"""A structure as the potential uses it: plain arrays, from anything like ASE Atoms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np


class AtomsLike(Protocol):
    """The attributes of ``ase.Atoms`` that are used."""

    numbers: np.ndarray
    positions: np.ndarray
    cell: Any
    pbc: np.ndarray
    info: dict[str, Any]
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class System:
    """Atoms with positions, a cell and the extra inputs of some models.

    Attributes:
        numbers: ``(n,)`` atomic numbers.
        positions: ``(n, 3)``, Å, wrapped or not.
        cell: ``(3, 3)``, lattice vectors as rows, Å.
        pbc: ``(3,)`` bool.
        fparam, aparam, charge_spin: extra inputs as given, None if absent; from
            :func:`~dpa3sim.model.inputs.with_inputs` on, arrays of the shapes that the model takes.
        types: ``(n,)`` indices into the model's type map, from then on.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    fparam: Any = None
    aparam: Any = None
    charge_spin: Any = None
    types: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.numbers)

    @classmethod
    def from_atoms(cls, atoms: AtomsLike) -> System:
        """Make a system from the arrays of ASE Atoms.

        Extra inputs come from ``atoms.info``: ``charge_spin`` (or ``charge`` and ``spin``),
        ``fparam`` and ``aparam``; the last one also from ``atoms.arrays``.
        """
        info = atoms.info
        charge_spin = info.get("charge_spin")
        if charge_spin is None and "charge" in info and "spin" in info:
            charge_spin = (info["charge"], info["spin"])
        return cls(
            numbers=np.asarray(atoms.numbers),
            positions=np.asarray(atoms.positions, dtype=np.float64),
            cell=np.asarray(atoms.cell[:], dtype=np.float64),
            pbc=np.asarray(atoms.pbc, dtype=bool),
            fparam=info.get("fparam"),
            aparam=atoms.arrays.get("aparam", info.get("aparam")),
            charge_spin=charge_spin,
        )

    def copy(self) -> System:
        """A copy with its own arrays."""
        arrays = ("numbers", "positions", "cell", "pbc")
        return replace(self, **{name: getattr(self, name).copy() for name in arrays})

    @property
    def list_key(self) -> bytes:
        """Equal for systems with types that may share a list of neighbours."""
        return self.pbc.tobytes() + self.types.tobytes()

    @property
    def batch_key(self) -> tuple[bytes, ...]:
        """Equal for systems with inputs that differ in positions and cell only."""
        extra = (self.fparam, self.aparam, self.charge_spin)
        return self.list_key, *(b"" if e is None else e.tobytes() for e in extra)

    def key(self) -> tuple[Any, ...]:
        """Hashable value of everything that affects the model's result."""
        extra = (self.fparam, self.aparam, self.charge_spin)
        # A molecule's cell has no effect; a slab's vacuum determines the volume for its stress.
        cell = self.cell if self.pbc.any() else np.zeros(0)
        arrays = (self.numbers, self.positions, cell, self.pbc)
        return (
            *(a.tobytes() for a in arrays),
            # A file may contain anything here; it is checked elsewhere.
            *(repr(e.tolist() if isinstance(e, np.ndarray) else e) for e in extra),
        )


def model_inputs(
    systems: Sequence[System],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Types and extra inputs of a batch of systems that have them.

    Returns:
        types ``(n_atoms,)``, fparam ``(n_systems, numb_fparam)``, aparam ``(n_atoms,
        numb_aparam)``, charge_spin ``(n_systems, 2)`` or None.
    """
    charge_spin = [x.charge_spin for x in systems if x.charge_spin is not None]
    return (
        np.concatenate([x.types for x in systems]),
        np.stack([x.fparam for x in systems]),
        np.concatenate([x.aparam for x in systems]),
        np.stack(charge_spin) if charge_spin else None,
    )


def as_system(structure: AtomsLike | System) -> System:
    """The system, taken from ASE Atoms where it is not one yet."""
    return structure if isinstance(structure, System) else System.from_atoms(structure)


def stated_charge(info: dict[str, Any]) -> float:
    """The total charge in ``atoms.info``; 0 if it is missing, or a word such as ``neutral``."""
    try:
        value = np.asarray(info.get("charge", 0), dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return float(value.sum()) if value.size else 0.0
