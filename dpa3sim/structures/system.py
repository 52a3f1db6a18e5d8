"""Structures as the potential uses them: plain arrays, from anything like ASE Atoms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from dpa3sim.common.elements import SYMBOLS
from dpa3sim.common.errors import InputError
from dpa3sim.model.config import ModelConfig
from dpa3sim.model.weights import CHARGE_ROWS, SPIN_ROWS

CHARGE_RANGE = (-CHARGE_ROWS // 2, CHARGE_ROWS // 2 - 1)
SPIN_RANGE = (0, SPIN_ROWS - 1)


class AtomsLike(Protocol):
    """The attributes of ``ase.Atoms`` that are used."""

    numbers: np.ndarray
    positions: np.ndarray
    cell: Any
    pbc: np.ndarray
    info: dict[str, Any]
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class Structure:
    """Atoms with positions, a cell and the extra inputs of some models.

    Attributes:
        numbers: ``(n,)`` atomic numbers.
        positions: ``(n, 3)``, Å.
        cell: ``(3, 3)``, lattice vectors as rows, Å.
        pbc: ``(3,)`` bool.
        fparam, aparam, charge_spin: extra inputs as given, None if absent.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    fparam: Any = None
    aparam: Any = None
    charge_spin: Any = None

    @classmethod
    def from_atoms(cls, atoms: AtomsLike) -> Structure:
        """Make a structure from the arrays of ASE Atoms.

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

    def copy(self) -> Structure:
        """A copy with its own arrays."""
        arrays = ("numbers", "positions", "cell", "pbc")
        return replace(self, **{name: getattr(self, name).copy() for name in arrays})

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


def stated_charge(info: dict[str, Any]) -> float:
    """The total charge in ``atoms.info``; 0 if it is missing, or a word such as ``neutral``."""
    try:
        value = np.asarray(info.get("charge", 0), dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return float(value.sum()) if value.size else 0.0


def as_structure(structure: AtomsLike | Structure) -> Structure:
    """The structure, converted from ASE Atoms if necessary."""
    return structure if isinstance(structure, Structure) else Structure.from_atoms(structure)


def type_indices(structure: Structure, config: ModelConfig) -> np.ndarray:
    """The index of every atom in the model's type map, ``(n,)``.

    Raises:
        InputError: the map does not contain an element.
    """
    index_of = {symbol: index for index, symbol in enumerate(config.type_map)}
    lookup = np.full(len(SYMBOLS) + 1, -1)
    for z, symbol in enumerate(SYMBOLS, start=1):
        lookup[z] = index_of.get(symbol, -1)
    numbers = structure.numbers
    valid = (numbers >= 1) & (numbers <= len(SYMBOLS))
    types = np.where(valid, lookup[np.where(valid, numbers, 0)], -1)
    unknown = np.flatnonzero(types < 0)
    if len(unknown):
        z = int(numbers[unknown[0]])
        symbol = SYMBOLS[z - 1] if 1 <= z <= len(SYMBOLS) else "X"
        names = config.type_map
        known = f"{names[0]} ... {names[-1]}" if len(names) > 20 else ", ".join(names)
        raise InputError(
            f"unknown element {symbol!r} (atom {unknown[0]}); this model knows {known}"
        )
    return types


def extra_inputs(
    structure: Structure, config: ModelConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Fparam ``(numb_fparam,)``, aparam ``(n, numb_aparam)`` and charge_spin ``(2,)`` or None.

    Raises:
        InputError: an input that the model needs is missing, mis-shaped or out of range.
    """
    fitting, descriptor, n = config.fitting, config.descriptor, len(structure.numbers)
    given_fparam, given_charge_spin = structure.fparam, structure.charge_spin
    if descriptor.add_chg_spin_ebd and descriptor.default_chg_spin is None:
        # One input for both in deepmd-kit 3.1.3: docs/model.md#charge-and-spin-inputs.
        if given_charge_spin is None:
            given_charge_spin = given_fparam
        if given_charge_spin is None:
            given_charge_spin = fitting.default_fparam
        if given_fparam is None and fitting.numb_fparam == 2:
            given_fparam = given_charge_spin
    fparam = np.zeros(0)
    if fitting.numb_fparam:
        given = given_fparam if given_fparam is not None else fitting.default_fparam
        fparam = _numbers("fparam", given, (fitting.numb_fparam,))
    aparam = np.zeros((n, 0))
    if fitting.numb_aparam and not fitting.use_aparam_as_mask:
        aparam = _numbers("aparam", structure.aparam, (n, fitting.numb_aparam))
    charge_spin = None
    if descriptor.add_chg_spin_ebd:
        given = given_charge_spin if given_charge_spin is not None else descriptor.default_chg_spin
        charge_spin = _charge_spin(_numbers("charge_spin", given, (2,)))
    return fparam, aparam, charge_spin


def _numbers(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    if value is None:
        raise InputError(f"this model needs {name}: set atoms.info[{name!r}], {shape} numbers")
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} = {value!r} is not numeric") from None
    if array.size != np.prod(shape):
        raise InputError(f"{name} has {array.size} values, this model needs {shape}")
    if not np.isfinite(array).all():
        raise InputError(f"{name} contains NaN or infinity")
    return array.reshape(shape)


def _charge_spin(values: np.ndarray) -> np.ndarray:
    whole = np.rint(values).astype(np.int64)
    if (whole != values).any():
        raise InputError(f"charge and spin must be whole numbers, not {values.tolist()}")
    for name, value, (low, high) in zip(
        ("charge", "spin"), whole, (CHARGE_RANGE, SPIN_RANGE), strict=True
    ):
        if not low <= value <= high:
            raise InputError(f"{name} {value} is outside the model's range {low} ... {high}")
    return whole
