"""The edges, types and extra inputs of a system, as a model takes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dpa3sim.common.elements import SYMBOLS
from dpa3sim.common.errors import InputError
from dpa3sim.graph.edges import EdgeRules, Truncation
from dpa3sim.model.config import ModelConfig
from dpa3sim.model.weights import CHARGE_ROWS, SPIN_ROWS
from dpa3sim.structures.system import System

CHARGE_RANGE = (-CHARGE_ROWS // 2, CHARGE_ROWS // 2 - 1)
SPIN_RANGE = (0, SPIN_ROWS - 1)


def edge_rules(config: ModelConfig, truncate: Truncation = "deepmd") -> EdgeRules:
    """Which neighbours are edges of a model; by default as deepmd-kit selects them."""
    descriptor = config.descriptor
    return EdgeRules(
        e_rcut=descriptor.e_rcut,
        a_rcut=descriptor.a_rcut,
        e_sel=descriptor.e_sel,
        a_sel=descriptor.a_sel,
        excluded_pairs=config.excluded_pairs,
        truncate=truncate,
    )


def with_inputs(system: System, config: ModelConfig) -> System:
    """The system with its types and extra inputs: what a model computes.

    Raises:
        InputError: an element that the model does not know, or an extra input that is missing,
            mis-shaped or out of range.
    """
    fparam, aparam, charge_spin = extra_inputs(system, config)
    types = type_indices(system, config)
    return replace(system, types=types, fparam=fparam, aparam=aparam, charge_spin=charge_spin)


def type_indices(system: System, config: ModelConfig) -> np.ndarray:
    """Index of every atom in the model's type map, ``(n,)``.

    Raises:
        InputError: an element that the map lacks.
    """
    index_of = {symbol: index for index, symbol in enumerate(config.type_map)}
    lookup = np.full(len(SYMBOLS) + 1, -1)
    for z, symbol in enumerate(SYMBOLS, start=1):
        lookup[z] = index_of.get(symbol, -1)
    numbers = system.numbers
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
    system: System, config: ModelConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Fparam ``(numb_fparam,)``, aparam ``(n, numb_aparam)`` and charge_spin ``(2,)`` or None.

    Raises:
        InputError: an input that the model needs is missing, mis-shaped or out of range.
    """
    fitting, descriptor, n = config.fitting, config.descriptor, len(system.numbers)
    given_fparam, given_charge_spin = system.fparam, system.charge_spin
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
        aparam = _numbers("aparam", system.aparam, (n, fitting.numb_aparam))
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
