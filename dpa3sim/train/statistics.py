"""What a new model takes from its training structures, energies apart: spreads and counts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dpa3sim.common.errors import InputError
from dpa3sim.graph.edges import find_edges
from dpa3sim.model.config import ModelConfig
from dpa3sim.model.inputs import edge_rules
from dpa3sim.model.weights import REPFLOWS
from dpa3sim.structures.system import System

# Smaller standard deviations, and those of types without atoms, are replaced.
_SMALLEST_SPREAD, _SPREAD_WITHOUT_ATOMS = 1e-2, 0.1
_AUTO = re.compile(r"auto(?::(?P<factor>\d+(\.\d*)?|\.\d+))?")
_USUAL_FACTOR = 1.1
_SELECTIONS = ("e_sel", "a_sel")


def descriptor_statistics(config: ModelConfig, systems: Iterable[System]) -> dict[str, np.ndarray]:
    """Spread of the environment vectors by type of the centre: ``fix_stat_std = 0``.

    The spread is the standard deviation over all atoms of a type and all their ``e_sel`` slots, of
    which the empty ones count as 0. It is one number for 1/r and one for the three components of
    d/r^2 together. As in deepmd-kit, both are weighted with the polynomial switch even where the
    model has the exponential one, and the mean stays 0.

    Args:
        config: the options of the model.
        systems: structures with types, at least one.

    Returns:
        The tensors ``mean`` and ``stddev`` of the model, ``(ntypes, 4)`` float64 with values that
        the precision of the descriptor represents exactly.

    Raises:
        InputError: a structure cannot be computed.
    """
    ntypes, rules = config.ntypes, edge_rules(config)
    atoms = np.zeros(ntypes)
    sums, squares = np.zeros((ntypes, 4)), np.zeros((ntypes, 4))
    for system in systems:
        edges = find_edges(system.positions, system.cell, system.pbc, system.types, rules)
        environment = _environment(config, edges.vectors(system.positions, system.cell))
        atoms += np.bincount(system.types, minlength=ntypes)
        np.add.at(sums, system.types[edges.i], environment)
        np.add.at(squares, system.types[edges.i], environment**2)

    slots = np.maximum(atoms * config.descriptor.e_sel, 1.0)
    radial = _spread(slots, sums[:, 0], squares[:, 0])
    vector = _spread(3 * slots, sums[:, 1:].sum(axis=1), squares[:, 1:].sum(axis=1))
    stddev = np.stack([radial, vector, vector, vector], axis=1)
    stddev[stddev < _SMALLEST_SPREAD] = _SMALLEST_SPREAD
    stddev[atoms == 0] = _SPREAD_WITHOUT_ATOMS
    rounded = stddev.astype(config.descriptor.precision).astype(np.float64)
    return {f"{REPFLOWS}.mean": np.zeros((ntypes, 4)), f"{REPFLOWS}.stddev": rounded}


def _environment(config: ModelConfig, vectors: np.ndarray) -> np.ndarray:
    """Environment vectors before normalisation, ``(n_edges, 4)``, from edge vectors in Å."""
    descriptor = config.descriptor
    r = np.linalg.norm(vectors, axis=1, keepdims=True)
    start, end = descriptor.e_rcut_smth, descriptor.e_rcut
    u = np.clip((r - start) / (end - start), 0.0, 1.0)
    switch = u**3 * (-6 * u**2 + 15 * u - 10) + 1
    protected = r + descriptor.env_protection
    return np.concatenate([1 / protected, vectors / protected**2], axis=1) * switch


def _spread(count: np.ndarray, total: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Population standard deviation of ``count`` numbers from their sums."""
    variance: np.ndarray = squares / count - (total / count) ** 2
    return np.sqrt(np.maximum(variance, 0.0))


def maximum_counts(config: ModelConfig, systems: Iterable[System]) -> dict[str, int]:
    """The largest numbers of neighbours of an atom, before any selection.

    Returns:
        ``e_sel``: within ``e_rcut``; ``a_sel``: within ``a_rcut``.
    """
    rules = replace(edge_rules(config, "none"), excluded_pairs=frozenset())
    most = dict.fromkeys(_SELECTIONS, 0)
    for system in systems:
        edges = find_edges(system.positions, system.cell, system.pbc, system.types, rules)
        counts = np.bincount(edges.i, minlength=len(system)), edges.n_angle_edges
        for name, count in zip(_SELECTIONS, counts, strict=True):
            most[name] = max(most[name], int(count.max()))
    return most


def resolve_selection(
    config: ModelConfig, selection: Mapping[str, str], most: Mapping[str, int]
) -> ModelConfig:
    """The configuration with numbers in place of ``auto`` and ``auto:FACTOR``.

    The number is FACTOR (1.1 if not given) times the largest count in the training structures,
    rounded down to an integer, then up to a multiple of 4.

    Args:
        config: with any numbers where ``selection`` has a text.
        selection: ``e_sel``, ``a_sel`` or both, as in the training input.
        most: the counts, as from :func:`maximum_counts`.

    Raises:
        InputError: a text is not of this form, or there are no neighbours.
    """
    resolved: dict[str, Any] = {}
    for name, text in selection.items():
        factor = selection_factor(name, text)
        if most[name] < 1:
            raise InputError(f"{name} = {text!r}: no atom of the training data has a neighbour")
        resolved[name] = -(-int(factor * most[name]) // 4) * 4
    return replace(config, descriptor=replace(config.descriptor, **resolved))


def selection_factor(name: str, text: str) -> float:
    """FACTOR of ``auto:FACTOR``.

    Raises:
        InputError: it is not of this form, or FACTOR is below 1.
    """
    match = _AUTO.fullmatch(text)
    factor = float(match["factor"] or _USUAL_FACTOR) if match else 0.0
    if factor < 1.0:
        raise InputError(
            f"{name} = {text!r} must be a number, 'auto', or 'auto:1.1' with 1 or more"
        )
    return factor
