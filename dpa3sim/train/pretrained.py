"""Changes of a trained model before it is trained further: another case, more elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dpa3sim.common.elements import ATOMIC_NUMBERS
from dpa3sim.common.errors import InputError
from dpa3sim.model.config import ModelConfig
from dpa3sim.model.weights import FITTING_LAYERS, REPFLOWS, TYPE_EMBEDDING, Weights

CASE = "fitting_net.case_embd"
_FIRST = f"{FITTING_LAYERS}.0.matrix"
_TABLE = f"{TYPE_EMBEDDING}.matrix"
# Tensors with one row for each element, and the axis of the rows.
_OF_TYPES = {
    "out_bias": 1,
    "fitting_net.bias_atom_e": 0,
    f"{REPFLOWS}.mean": 0,
    f"{REPFLOWS}.stddev": 0,
}


def with_case(
    config: ModelConfig, weights: Weights
) -> tuple[ModelConfig, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The model with one more entry in its case vector, as it was and for a new data set.

    The new entry acts on the first layer of the fitting net as the old vector does, so that both
    are the same function until they are trained. Where the first layer adds its input to its output
    (docs/model.md#identity-skips), or would do so with one more entry, nothing is changed, and both
    remain one function.

    Returns:
        The configuration; the weights with the old case; those with the new case.
    """
    width = config.fitting.dim_case_embd
    wider = replace(config, fitting=replace(config.fitting, dim_case_embd=width + 1))
    first = config.fitting.neuron[0]
    if first in {n * x.input_dim for n in (1, 2) for x in (config, wider)}:
        return config, dict(weights), dict(weights)
    old = np.asarray(weights[CASE]) if width else np.zeros(0)
    matrix = weights[_FIRST]
    # The case is the last part of the input.
    row = old @ matrix[len(matrix) - width :] if width else np.zeros(matrix.shape[1])
    shared = dict(weights) | {_FIRST: np.concatenate([matrix, row[None]])}
    return (
        wider,
        shared | {CASE: np.append(old, 0.0)},
        shared | {CASE: np.append(np.zeros(width), 1.0)},
    )


def with_elements(
    config: ModelConfig, weights: Weights, symbols: Sequence[str], seed: int
) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """The model with more elements at the end of its type map.

    A new element starts as the known one whose atomic number is closest, with small random
    differences of its embedding; its energy is that of the known one until it is fitted to data.

    Raises:
        InputError: the embedding of the model follows from electron configurations of its own map.
    """
    new = [symbol for symbol in symbols if symbol not in config.type_map]
    if not new:
        return config, dict(weights)
    if config.descriptor.use_econf_tebd:
        raise InputError(
            f"the data have {new[0]}, which a model with electron configurations cannot learn anew"
        )
    known = [i for i, symbol in enumerate(config.type_map) if symbol in ATOMIC_NUMBERS]
    if not known:
        raise InputError("the types of this model are not elements, so that none can be added")
    numbers = np.array([ATOMIC_NUMBERS[config.type_map[i]] for i in known])
    # Elements that the model was trained on, if it tells which, are the better neighbours.
    bias = np.abs(weights["out_bias"][0, known, 0])
    unseen = (bias < 1e-6 * bias.max()) & bias.any()
    source = [
        known[int(np.argmin(np.abs(numbers - ATOMIC_NUMBERS[x]) + 1000 * unseen))] for x in new
    ]
    extended = replace(config, type_map=(*config.type_map, *new))
    found = dict(weights)
    for name, axis in _OF_TYPES.items():
        array = weights[name]
        found[name] = np.concatenate([array, np.take(array, source, axis=axis)], axis=axis)
    table = weights[_TABLE]
    used = table + _identity(*table.shape)
    spread = used[known].std() / 10
    rows = used[source] + spread * np.random.default_rng(seed).standard_normal(
        (len(new), table.shape[1])
    )
    whole = np.concatenate([used, rows])
    found[_TABLE] = (whole - _identity(*whole.shape)).astype(table.dtype)
    return extended, found


def _identity(n_types: int, width: int) -> np.ndarray:
    """What the network adds to a stored type table (docs/model.md#identity-skips)."""
    identity = np.eye(n_types)
    if width == n_types:
        return identity
    return np.tile(identity, 2) if width == 2 * n_types else np.zeros((n_types, width))
