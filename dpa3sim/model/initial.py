"""Weights of a model before training, with the distributions of deepmd-kit.

A matrix with ``in`` rows and ``out`` columns starts as N(0, 1/(in + out)), a bias as N(0, 1), the
time steps of the fitting net as N(0.1, 0.001^2). Each tensor has a random stream of its own, made
from the seed and its name, so that a further layer changes no other tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from dpa3sim.common.errors import InputError
from dpa3sim.model.config import ModelConfig
from dpa3sim.model.weights import weight_shapes

RESIDUAL_INITS = ("const", "norm")
# Mean and standard deviation of the time steps ``idt`` of the fitting net.
_TIMESTEP_MEAN, _TIMESTEP_SPREAD = 0.1, 0.001
_ZEROS = ("out_bias", "bias_atom_e", "repflows.mean", "_avg", "case_embd")
# Added to an energy in float64, whatever the precision of the model.
_ALWAYS_FLOAT64 = ("out_bias", "bias_atom_e")


def initial_weights(
    config: ModelConfig,
    seed: int,
    update_residual: float = 0.1,
    update_residual_init: str = "const",
    fix_stat_std: float = 0.3,
) -> dict[str, np.ndarray]:
    """Random weights for a new model, all tensors of ``weight_shapes(config)``.

    The arrays are float64, with values that the precision of their part of the model represents
    exactly. Energy biases, case vector and statistics of extra inputs are neutral; they come from
    data, or from :func:`case_vector`.

    Args:
        config: the options of the model.
        seed: any integer; the same seed gives the same weights.
        update_residual: what the residual weights start with.
        update_residual_init: ``const``: all residual weights equal ``update_residual``; ``norm``:
            that is their standard deviation around 0.
        fix_stat_std: standard deviation that normalises the environment vectors. With 0 it comes
            from data, and NaN keeps its place, which no model file may contain:
            :func:`dpa3sim.train.statistics.descriptor_statistics` replaces it.

    Raises:
        InputError: a setting is not allowed.
    """
    if update_residual_init not in RESIDUAL_INITS:
        raise InputError(
            f"option update_residual_init = {update_residual_init!r} is not one of "
            f"{', '.join(RESIDUAL_INITS)}"
        )
    if not 0.0 <= fix_stat_std < np.inf:
        raise InputError(f"option fix_stat_std = {fix_stat_std!r} must be at least 0")
    weights = {}
    for name, shape in weight_shapes(config).items():
        if ".n_residual." in name or ".e_residual." in name or ".a_residual." in name:
            values = np.full(shape, update_residual)
            if update_residual_init == "norm":
                values *= _stream(seed, name).standard_normal(shape)
        elif name.endswith("repflows.stddev"):
            values = np.full(shape, fix_stat_std or np.nan)
        else:
            values = _initial(name, shape, _stream(seed, name))
        weights[name] = values.astype(_precision(config, name)).astype(np.float64)
    return weights


def _initial(name: str, shape: tuple[int, ...], stream: np.random.Generator) -> np.ndarray:
    """Values of a tensor without settings of its own."""
    if name.endswith(_ZEROS):
        return np.zeros(shape)
    if name.endswith("_inv_std"):
        return np.ones(shape)
    values = stream.standard_normal(shape)
    if name.endswith(".idt"):
        return _TIMESTEP_MEAN + _TIMESTEP_SPREAD * values
    if name.endswith(".matrix"):
        return values / np.sqrt(sum(shape))
    return values  # a bias


def _stream(seed: int, name: str) -> np.random.Generator:
    key = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key, "little")))


def _precision(config: ModelConfig, name: str) -> str:
    if name.endswith(_ALWAYS_FLOAT64):
        return "float64"
    part = config.descriptor if name.startswith("descriptor.") else config.fitting
    return part.precision


def case_vector(heads: Sequence[str], head: str, dim: int) -> np.ndarray:
    """The input that tells a shared fitting net which data set it computes, ``(dim,)``.

    It is a unit vector; its place is that of the head among the sorted names, where all upper case
    letters stand before all lower case ones.

    Raises:
        InputError: there is no such head, or the vector is too short for all of them.
    """
    names = sorted(heads)
    if head not in names:
        raise InputError(f"there is no head {head!r}; there are {', '.join(names)}")
    if dim < len(names):
        raise InputError(
            f"dim_case_embd = {dim} is too small for the {len(names)} heads {', '.join(names)}"
        )
    vector = np.zeros(dim)
    vector[names.index(head)] = 1.0
    return vector
