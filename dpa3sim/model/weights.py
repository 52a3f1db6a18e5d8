"""The tensors of a DPA3 model: which there must be, and the checks that they are there.

Names are those of deepmd-kit without ``atomic_model.`` (docs/model.md#names-of-tensors).
Weights are plain numpy arrays, so that reading, checking and converting need no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from dpa3sim.common.errors import CheckpointError
from dpa3sim.model.config import DescriptorConfig, ModelConfig
from dpa3sim.model.electrons import ECONF_DIM

Weights = Mapping[str, np.ndarray]

REPFLOWS = "descriptor.repflows"
TYPE_EMBEDDING = "descriptor.type_embedding.embedding.embedding_net.layers.0"
CHARGE_EMBEDDING = "descriptor.chg_embedding.embedding.embedding_net.layers.0"
SPIN_EMBEDDING = "descriptor.spin_embedding.embedding.embedding_net.layers.0"
FITTING_LAYERS = "fitting_net.filter_layers.networks.0.layers"
CHARGE_ROWS, SPIN_ROWS = 200, 100


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a model with this configuration has.

    Of the normalisation buffers one slot is kept (docs/model.md#normalisation-by-slot):
    ``descriptor.repflows.mean`` and ``stddev`` have shape ``(ntypes, 4)``.
    """
    descriptor, fitting, ntypes = config.descriptor, config.fitting, config.ntypes
    shapes: dict[str, tuple[int, ...]] = {
        "out_bias": (1, ntypes, 1),
        f"{REPFLOWS}.mean": (ntypes, 4),
        f"{REPFLOWS}.stddev": (ntypes, 4),
    }
    shapes |= _linear(f"{REPFLOWS}.edge_embd", 1, descriptor.e_dim)
    shapes |= _linear(f"{REPFLOWS}.angle_embd", 1, descriptor.a_dim, bias=False)
    for layer in range(descriptor.nlayers):
        shapes |= _layer_shapes(descriptor, f"{REPFLOWS}.layers.{layer}")
    shapes |= _embedding_shapes(config)
    shapes["fitting_net.bias_atom_e"] = (ntypes, 1)
    width = config.input_dim
    for i, neurons in enumerate(fitting.neuron):
        shapes |= _linear(f"{FITTING_LAYERS}.{i}", width, neurons)
        if has_timestep(width, neurons, fitting.resnet_dt):
            shapes[f"{FITTING_LAYERS}.{i}.idt"] = (neurons,)
        width = neurons
    shapes |= _linear(f"{FITTING_LAYERS}.{len(fitting.neuron)}", width, 1)
    for name, size in (("fparam", fitting.numb_fparam), ("aparam", fitting.numb_aparam)):
        if size:
            shapes[f"fitting_net.{name}_avg"] = (size,)
            shapes[f"fitting_net.{name}_inv_std"] = (size,)
    if fitting.dim_case_embd:
        shapes["fitting_net.case_embd"] = (fitting.dim_case_embd,)
    return shapes


def has_timestep(width_in: int, width_out: int, resnet_dt: bool) -> bool:
    """Whether a hidden fitting layer scales its output by ``idt`` (docs/model.md#fitting-net)."""
    return resnet_dt and width_out in (width_in, 2 * width_in)


def _linear(
    name: str, width_in: int, width_out: int, bias: bool = True
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.matrix": (width_in, width_out)}
    if bias:
        shapes[f"{name}.bias"] = (width_out,)
    return shapes


def _layer_shapes(config: DescriptorConfig, name: str) -> dict[str, tuple[int, ...]]:
    """Tensors of one repflow layer (docs/model.md#linear-maps-and-residuals)."""
    n, e, a = config.n_dim, config.e_dim, config.a_dim
    chunks = config.n_multi_edge_message
    shapes = _linear(f"{name}.node_self_mlp", n, n)
    shapes |= _linear(f"{name}.node_sym_linear", config.axis_neuron * (e + n), n)
    shapes |= _linear(f"{name}.node_edge_linear", 2 * n + e, chunks * n)
    shapes |= _linear(f"{name}.edge_self_linear", 2 * n + e, e)
    residuals = {"n_residual": (2 + chunks, n), "e_residual": (1, e)}
    if config.update_angle:
        angle_in = a + config.node_angle_dim + 2 * config.edge_angle_dim
        shapes |= _linear(f"{name}.edge_angle_linear1", angle_in, e)
        shapes |= _linear(f"{name}.edge_angle_linear2", e, e)
        shapes |= _linear(f"{name}.angle_self_linear", angle_in, a)
        if config.a_compress_rate and not config.a_compress_use_split:
            shapes |= _linear(f"{name}.a_compress_n_linear", n, config.node_angle_dim, bias=False)
            shapes |= _linear(f"{name}.a_compress_e_linear", e, config.edge_angle_dim, bias=False)
        residuals |= {"e_residual": (2, e), "a_residual": (1, a)}
    if config.update_style == "res_residual":
        for residual, (count, width) in residuals.items():
            shapes |= {f"{name}.{residual}.{i}": (width,) for i in range(count)}
    return shapes


def _embedding_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Tensors of the type and of the charge/spin embedding (docs/model.md#embeddings)."""
    descriptor, n = config.descriptor, config.descriptor.n_dim
    shapes: dict[str, tuple[int, ...]] = {}
    rows = ECONF_DIM if descriptor.use_econf_tebd else config.ntypes
    shapes |= _linear(TYPE_EMBEDDING, rows, n, bias=descriptor.use_tebd_bias)
    if descriptor.add_chg_spin_ebd:
        shapes |= _linear(CHARGE_EMBEDDING, CHARGE_ROWS, n, bias=False)
        shapes |= _linear(SPIN_EMBEDDING, SPIN_ROWS, n, bias=False)
        shapes |= _linear("descriptor.mix_cs_mlp", 2 * n, n)
    return shapes


def check_weights(config: ModelConfig, weights: Weights) -> None:
    """Raise CheckpointError unless the names and shapes are exactly those of ``config``."""
    expected = weight_shapes(config)
    missing = sorted(set(expected) - set(weights))
    unknown = sorted(set(weights) - set(expected))
    if missing:
        raise CheckpointError(f"{len(missing)} tensor(s) missing: {_some(missing)}")
    if unknown:
        raise CheckpointError(f"{len(unknown)} unknown tensor(s): {_some(unknown)}")
    for name, shape in expected.items():
        array = weights[name]
        if array.shape != shape:
            raise CheckpointError(
                f"tensor {name} has shape {array.shape}, the configuration needs {shape}"
            )
        if array.dtype.kind != "f":
            raise CheckpointError(f"tensor {name} has type {array.dtype}, not a floating type")
        if not np.isfinite(array).all():
            raise CheckpointError(f"tensor {name} contains NaN or infinity")


def is_trained(name: str) -> bool:
    """Whether training changes this tensor: no statistics, biases per type, one-hot inputs."""
    fixed = ("mean", "stddev", "_avg", "_inv_std", "case_embd", "out_bias", "bias_atom_e")
    return not name.endswith(fixed)


def parameter_count(weights: Weights) -> int:
    """Number of trainable scalars."""
    return sum(array.size for name, array in weights.items() if is_trained(name))


def _some(names: Iterable[str], limit: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (" ..." if len(names) > limit else "")
