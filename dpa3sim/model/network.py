"""The DPA3 network, written to be read: docs/model.md line by line.

Everything here is differentiable by autograd, sparse (edges and angles only where they are)
and batched by concatenation. It is the definition that faster evaluators are tested against.
Symbols follow that page: n, e, a are the node, edge and angle features; i, j the centre and the
neighbour of an edge; q, k two angle-edges of one centre, q the one that receives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpa3sim.graph.blocks import BlockGraph
from dpa3sim.graph.reference import GraphBatch
from dpa3sim.model.activations import activate
from dpa3sim.model.config import DescriptorConfig, ModelConfig
from dpa3sim.model.electrons import econf_rows
from dpa3sim.model.weights import (
    CHARGE_EMBEDDING,
    CHARGE_ROWS,
    FITTING_LAYERS,
    REPFLOWS,
    SPIN_EMBEDDING,
    SPIN_ROWS,
    TYPE_EMBEDDING,
    Weights,
    has_timestep,
)

# Graphs with more angles keep only the features between layers for the backward pass and compute
# the rest again: a third of the memory (1000 silicon atoms: 4.4 GB instead of 14) for little time.
RECOMPUTE_ABOVE = 100_000
AnyGraph = GraphBatch | BlockGraph
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Geometry:
    """What the layers need of edges and angles besides features (docs/model.md#geometry).

    Attributes:
        h: ``(n_edges, 3)`` normalised environment vector; switch: ``(n_edges,)`` s^e.
        weight: ``(n_angles,)`` w = s^a_q s^a_k.
        other: ``(n_edges,)`` t, the share of e in R; None without ``smooth_cutoff``.
    """

    h: Tensor
    switch: Tensor
    weight: Tensor
    other: Tensor | None


class Features(NamedTuple):
    """The state that the layers update.

    Attributes:
        node: ``(n_atoms, n_dim)``; edge: ``(n_edges, e_dim)``; angle: ``(n_angles, a_dim)``.
    """

    node: Tensor
    edge: Tensor
    angle: Tensor


class Network(nn.Module):
    """A DPA3 model with its weights on one device.

    The fitting net, which costs next to nothing, and all sums over atoms are float64 always:
    that halves the rounding error of float32 energies. Parameters have the names of
    :mod:`dpa3sim.model.weights`, and no gradients until ``requires_grad_`` asks for them.

    Args:
        config: the model's options.
        weights: its tensors by name (:mod:`dpa3sim.model.weights`), already checked.
        device: where to compute.
        dtype: precision of the descriptor.

    Attributes:
        weights: the parameters by name.
        included: ``(ntypes,)`` 1 for types that have an energy, 0 for excluded ones.
    """

    weights: dict[str, Tensor]
    included: Tensor

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        for name, array in weights.items():
            if name == "fitting_net.bias_atom_e":
                array = array.astype(config.fitting.precision)  # rounded as in training
            kind = dtype if name.startswith("descriptor.") else torch.float64
            self._register(name, torch.tensor(array, dtype=kind, device=device))
        self.weights = dict(self.named_parameters())
        included = [t not in config.atom_exclude_types for t in range(config.ntypes)]
        mask = torch.tensor(included, dtype=torch.float64, device=device)
        self.register_buffer("included", mask, persistent=False)

    def _register(self, name: str, tensor: Tensor) -> None:
        """Add a parameter; the parts of its name become modules, as torch requires."""
        *path, last = name.split(".")
        module: nn.Module = self
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, nn.Parameter(tensor, requires_grad=False))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.included.device

    # -- energy ---------------------------------------------------------------------------

    def forward(self, graph: GraphBatch) -> Tensor:
        """Energy of every structure, ``(n_structures,)`` float64, eV."""
        energies = self.atomic_energies(graph, graph.vectors)
        return sum_rows(energies, graph.structure, graph.n_structures)

    def atomic_energies(self, graph: GraphBatch, vectors: Tensor) -> Tensor:
        """Energy of every atom, ``(n_atoms,)`` float64, eV.

        Args:
            graph: the batch.
            vectors: ``(n_edges, 3)`` float64 edge vectors, Å; differentiate with respect to them.
        """
        descriptor = self.descriptors(graph, vectors.to(self.dtype))
        energies = self._fitting(descriptor.to(torch.float64), graph)
        energies = energies + self.weights["fitting_net.bias_atom_e"][graph.types, 0]
        energies = energies + self.weights["out_bias"][0, graph.types, 0]
        return energies * self.included[graph.types]

    def descriptors(self, graph: GraphBatch, vectors: Tensor) -> Tensor:
        """The descriptor D_i, ``(n_atoms, output_dim)``."""
        config = self.config.descriptor
        geometry, edge, angle = self._embed_geometry(graph, vectors)
        node, types = self.node_start(graph, self.type_rows())
        features = Features(node, edge, angle)
        update = self._sequential_layer if config.sequential_update else self._parallel_layer
        recompute = graph.angle_q.shape[0] > RECOMPUTE_ABOVE
        for layer in range(config.nlayers):
            if recompute:
                features = checkpoint(update, layer, graph, geometry, features, use_reentrant=False)
            else:
                features = update(layer, graph, geometry, features)
        if config.concat_output_tebd:
            return torch.cat([features.node, types], dim=1)
        return features.node

    # -- docs/model.md#geometry, docs/model.md#embeddings -----------------------------------

    def _embed_geometry(
        self, graph: GraphBatch, vectors: Tensor
    ) -> tuple[Geometry, Tensor, Tensor]:
        """Switches, normalised vectors, and the initial edge and angle features."""
        config = self.config.descriptor
        r = torch.linalg.vector_norm(vectors, dim=1)
        s_e = switch(r, config.e_rcut_smth, config.e_rcut, config.use_exp_switch)
        protected = (r + config.env_protection).unsqueeze(1)
        environment = torch.cat([1 / protected, vectors / protected**2], dim=1) * s_e.unsqueeze(1)
        centre_types = graph.types[graph.edge_i]
        mean = self.weights[f"{REPFLOWS}.mean"][centre_types]
        environment = (environment - mean) / self.weights[f"{REPFLOWS}.stddev"][centre_types]

        if config.edge_init_use_dist:
            edge = self._linear(f"{REPFLOWS}.edge_embd", r.unsqueeze(1))
        else:
            edge = self._linear(f"{REPFLOWS}.edge_embd", environment[:, :1])
            edge = activate(edge, config.activation)

        r_q = r[graph.angle_edges].unsqueeze(1)
        direction = vectors[graph.angle_edges] / (r_q + 1e-6)
        q, k = graph.angle_q, graph.angle_k
        cosine = (direction[q] * direction[k]).sum(dim=1, keepdim=True) * (1 - 1e-6)
        angle = cosine / math.sqrt(math.pi) @ self.weights[f"{REPFLOWS}.angle_embd.matrix"]
        s_a = switch(r_q[:, 0], config.a_rcut_smth, config.a_rcut, config.use_exp_switch)
        other = None
        if config.smooth_cutoff is not None:
            start = config.a_rcut - config.smooth_cutoff
            t = 1 - switch(r_q[:, 0], start, config.a_rcut, False)
            other = torch.ones_like(r).index_copy(0, graph.angle_edges, t)
        weight = s_a[q] * s_a[k]
        geometry = Geometry(h=environment[:, 1:], switch=s_e, weight=weight, other=other)
        return geometry, edge, angle

    def type_rows(self) -> Tensor:
        """The type table T, ``(ntypes, n_dim)``, identity included (docs/model.md#embeddings)."""
        return type_rows(self.config, self.weights)

    def node_start(self, graph: AnyGraph, type_rows: Tensor) -> tuple[Tensor, Tensor]:
        """Node features n^0 and the embedding T before the activation, ``(n_atoms, n_dim)``.

        Args:
            graph: the batch.
            type_rows: what :meth:`type_rows` returns.
        """
        config = self.config.descriptor
        types = type_rows.index_select(0, graph.types)
        if config.add_chg_spin_ebd:
            rows = charge_spin_rows(config, self.weights, graph.charge_spin)
            types = types + rows.index_select(0, graph.structure)
        return activate(types, config.activation), types

    # -- docs/model.md#the-repflow-layer ----------------------------------------------------

    def _parallel_layer(
        self, layer: int, graph: GraphBatch, geometry: Geometry, features: Features
    ) -> Features:
        """All messages read the features of the start of the layer."""
        config = self.config.descriptor
        node, edge, angle = features
        new_node = self._update_node(layer, graph, geometry, node, edge)
        if layer == config.nlayers - 1:
            return Features(new_node, edge, angle)  # other updates never reach the energy
        edge_messages = [self._edge_self_message(layer, graph, node, edge)]
        new_angle = angle
        if config.update_angle:
            inputs = self._angle_inputs(layer, node, edge)
            edge_messages.append(
                self._edge_angle_message(layer, graph, geometry, angle, edge, inputs)
            )
            angle_message = self._angle_message(layer, graph, angle, inputs)
            new_angle = self._combine(f"{layer}.a_residual", angle, [angle_message])
        new_edge = self._combine(f"{layer}.e_residual", edge, edge_messages)
        return Features(new_node, new_edge, new_angle)

    def _sequential_layer(
        self, layer: int, graph: GraphBatch, geometry: Geometry, features: Features
    ) -> Features:
        """Each phase reads the newest edges and angles; the nodes change last."""
        node, edge, angle = features
        u1 = self._edge_self_message(layer, graph, node, edge)
        edge = edge + self._layer_weight(f"{layer}.e_residual.0") * u1
        inputs = self._angle_inputs(layer, node, edge)
        angle = self._combine(
            f"{layer}.a_residual", angle, [self._angle_message(layer, graph, angle, inputs)]
        )
        u2 = self._edge_angle_message(layer, graph, geometry, angle, edge, inputs)
        edge = edge + self._layer_weight(f"{layer}.e_residual.1") * u2
        return Features(self._update_node(layer, graph, geometry, node, edge), edge, angle)

    def _update_node(
        self, layer: int, graph: GraphBatch, geometry: Geometry, node: Tensor, edge: Tensor
    ) -> Tensor:
        """Node messages v1, v2, v3 and their combination."""
        config = self.config.descriptor
        name = f"{REPFLOWS}.layers.{layer}"
        v1 = activate(self._linear(f"{name}.node_self_mlp", node), config.activation)

        node_j = node.index_select(0, graph.edge_j)
        symmetrised = torch.cat(
            [self._symmetrise(graph, geometry, x) for x in (edge, node_j)], dim=1
        )
        v2 = activate(self._linear(f"{name}.node_sym_linear", symmetrised), config.activation)

        message = self._edge_linear(f"{name}.node_edge_linear", graph, node, edge)
        message = activate(message, config.activation) * geometry.switch.unsqueeze(1)
        v3 = sum_rows(message, graph.edge_i, graph.n_atoms) / config.edge_divisor
        chunks = v3.split(config.n_dim, dim=1)
        return self._combine(f"{layer}.n_residual", node, [v1, v2, *chunks])

    def _symmetrise(self, graph: GraphBatch, geometry: Geometry, x: Tensor) -> Tensor:
        """sym_i[X], ``(n_atoms, axis_neuron * dim)``, axis-major."""
        config = self.config.descriptor
        # The switch enters twice: it is inside h already.
        outer = geometry.h.unsqueeze(2) * (geometry.switch.unsqueeze(1) * x).unsqueeze(1)
        psi = sum_rows(outer, graph.edge_i, graph.n_atoms) * config.edge_divisor**-0.5
        product = psi[:, :, : config.axis_neuron].transpose(1, 2) @ psi / 3
        return product.flatten(start_dim=1)

    def _edge_self_message(
        self, layer: int, graph: GraphBatch, node: Tensor, edge: Tensor
    ) -> Tensor:
        """u1, ``(n_edges, e_dim)``."""
        name = f"{REPFLOWS}.layers.{layer}.edge_self_linear"
        return activate(
            self._edge_linear(name, graph, node, edge), self.config.descriptor.activation
        )

    def _edge_linear(self, name: str, graph: GraphBatch, node: Tensor, edge: Tensor) -> Tensor:
        """``[n_i, n_j, e_ij] @ W + b``, the node parts projected before they are gathered."""
        n_dim = self.config.descriptor.n_dim
        w_i, w_j, w_e = self.weights[f"{name}.matrix"].split([n_dim, n_dim, edge.shape[1]])
        out = torch.addmm(self.weights[f"{name}.bias"], edge, w_e)
        out = out + (node @ w_i).index_select(0, graph.edge_i)
        return out + (node @ w_j).index_select(0, graph.edge_j)

    def _angle_inputs(self, layer: int, node: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
        """The compressed features n'_i and e'_ij that enter the angle maps."""
        config = self.config.descriptor
        if not config.a_compress_rate:
            return node, edge
        if config.a_compress_use_split:
            return node[:, : config.node_angle_dim], edge[:, : config.edge_angle_dim]
        name = f"{REPFLOWS}.layers.{layer}"
        return (
            node @ self.weights[f"{name}.a_compress_n_linear.matrix"],
            edge @ self.weights[f"{name}.a_compress_e_linear.matrix"],
        )

    def _angle_linear(
        self, name: str, graph: GraphBatch, angle: Tensor, inputs: tuple[Tensor, Tensor]
    ) -> Tensor:
        """``[a_qk, n'_i, e'_ik, e'_iq] @ W + b``: the other edge k comes before the receiver q."""
        node, edge = inputs
        w_a, w_n, w_k, w_q = self.weights[f"{name}.matrix"].split(
            [angle.shape[1], node.shape[1], edge.shape[1], edge.shape[1]]
        )
        edge = edge.index_select(0, graph.angle_edges)
        # What depends on the centre or on the receiver alone is added once per angle-edge.
        per_q = edge @ w_q + (node @ w_n).index_select(0, graph.angle_centres)
        out = torch.addmm(self.weights[f"{name}.bias"], angle, w_a)
        out = out + per_q.index_select(0, graph.angle_q)
        return out + (edge @ w_k).index_select(0, graph.angle_k)

    def _edge_angle_message(
        self,
        layer: int,
        graph: GraphBatch,
        geometry: Geometry,
        angle: Tensor,
        edge: Tensor,
        inputs: tuple[Tensor, Tensor],
    ) -> Tensor:
        """u2, ``(n_edges, e_dim)``: the angles of an edge reduced; all edges get a message."""
        config = self.config.descriptor
        name = f"{REPFLOWS}.layers.{layer}"
        message = self._angle_linear(f"{name}.edge_angle_linear1", graph, angle, inputs)
        message = activate(message, config.activation) * geometry.weight.unsqueeze(1)
        reduced = sum_rows(message, graph.angle_q, graph.angle_edges.shape[0])
        reduced = reduced * config.angle_divisor**-0.5
        if geometry.other is not None:
            others = geometry.other.unsqueeze(1) * edge
            reduced = others.index_add(0, graph.angle_edges, reduced)
        else:
            # Edges without angles: nothing in smooth models, the edge itself in others, which is
            # docs/model.md#step-at-the-angle-cutoff.
            others = torch.zeros_like(edge) if config.smooth_edge_update else edge
            reduced = others.index_copy(0, graph.angle_edges, reduced)
        return activate(self._linear(f"{name}.edge_angle_linear2", reduced), config.activation)

    def _angle_message(
        self, layer: int, graph: GraphBatch, angle: Tensor, inputs: tuple[Tensor, Tensor]
    ) -> Tensor:
        """t, ``(n_angles, a_dim)``."""
        name = f"{REPFLOWS}.layers.{layer}.angle_self_linear"
        return activate(
            self._angle_linear(name, graph, angle, inputs), self.config.descriptor.activation
        )

    def _combine(self, name: str, x: Tensor, messages: list[Tensor]) -> Tensor:
        """Add messages to a feature in the model's update style."""
        style = self.config.descriptor.update_style
        if style == "res_residual":
            for index, message in enumerate(messages):
                x = x + self._layer_weight(f"{name}.{index}") * message
            return x
        total = torch.stack(messages).sum(dim=0)
        if style == "res_avg":
            return (x + total) / math.sqrt(len(messages) + 1)
        return x + total / math.sqrt(len(messages))

    # -- docs/model.md#fitting-net ----------------------------------------------------------

    def _fitting(self, descriptor: Tensor, graph: GraphBatch) -> Tensor:
        """Output of the fitting net, ``(n_atoms,)``."""
        extra = self.fitting_extra_inputs(graph)
        energy = self._fitting_net(torch.cat([descriptor, *extra], dim=1))
        if self.config.fitting.subtract_vacuum:
            vacuum = torch.cat([torch.zeros_like(descriptor), *extra], dim=1)
            energy = energy - self._fitting_net(vacuum)
        return energy

    def fitting_extra_inputs(self, graph: AnyGraph) -> list[Tensor]:
        """Normalised fparam, normalised aparam and case embedding, as far as the model has them."""
        config, extra = self.config.fitting, []
        if config.numb_fparam:
            extra.append(self._normalised("fparam", graph.fparam)[graph.structure])
        if config.numb_aparam and not config.use_aparam_as_mask:
            extra.append(self._normalised("aparam", graph.aparam))
        if config.dim_case_embd:
            extra.append(self.weights["fitting_net.case_embd"].expand(graph.n_atoms, -1))
        return extra

    def _normalised(self, name: str, values: Tensor) -> Tensor:
        mean = self.weights[f"fitting_net.{name}_avg"]
        return (values - mean) * self.weights[f"fitting_net.{name}_inv_std"]

    def _fitting_net(self, y: Tensor) -> Tensor:
        config = self.config.fitting
        for index, width in enumerate(config.neuron):
            name, width_in = f"{FITTING_LAYERS}.{index}", y.shape[1]
            z = activate(self._linear(name, y), config.activation)
            if has_timestep(width_in, width, config.resnet_dt):
                z = z * self.weights[f"{name}.idt"]
            if width == width_in:
                z = z + y
            elif width == 2 * width_in:
                z = z + torch.cat([y, y], dim=1)
            y = z
        return self._linear(f"{FITTING_LAYERS}.{len(config.neuron)}", y)[:, 0]

    # -- helpers ----------------------------------------------------------------------------

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return _linear(self.weights, name, x)

    def _layer_weight(self, name: str) -> Tensor:
        return self.weights[f"{REPFLOWS}.layers.{name}"]


def type_rows(config: ModelConfig, weights: Mapping[str, Tensor]) -> Tensor:
    """The type table T, ``(ntypes, n_dim)``, identity included (docs/model.md#embeddings)."""
    like = weights[f"{TYPE_EMBEDDING}.matrix"]
    if config.descriptor.use_econf_tebd:
        rows = econf_rows(config.type_map)
    else:
        rows = np.eye(config.ntypes)
    return _embedding(
        weights, TYPE_EMBEDDING, torch.tensor(rows, dtype=like.dtype, device=like.device)
    )


def charge_spin_rows(
    config: DescriptorConfig, weights: Mapping[str, Tensor], charge_spin: Tensor | None
) -> Tensor:
    """act(W_cs [C[charge + 100], P[spin]] + b_cs), ``(n_structures, n_dim)``."""
    if charge_spin is None:
        raise ValueError("this model needs charge_spin")
    dtype = weights["descriptor.mix_cs_mlp.matrix"].dtype
    charge, spin = charge_spin.unbind(dim=1)
    charge_row = one_hot(charge + CHARGE_ROWS // 2, CHARGE_ROWS, dtype)
    both = (
        _embedding(weights, CHARGE_EMBEDDING, charge_row),
        _embedding(weights, SPIN_EMBEDDING, one_hot(spin, SPIN_ROWS, dtype)),
    )
    mixed = _linear(weights, "descriptor.mix_cs_mlp", torch.cat(both, dim=1))
    return activate(mixed, config.activation)


def _embedding(weights: Mapping[str, Tensor], name: str, rows: Tensor) -> Tensor:
    """A linear layer with a skip connection wherever the widths allow one."""
    out = _linear(weights, name, rows)
    if out.shape[1] == rows.shape[1]:
        return out + rows
    if out.shape[1] == 2 * rows.shape[1]:
        return out + torch.cat([rows, rows], dim=1)
    return out


def _linear(weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    out = x @ weights[f"{name}.matrix"]
    bias = weights.get(f"{name}.bias")
    return out if bias is None else out + bias


def switch(r: Tensor, start: float, end: float, exponential: bool) -> Tensor:
    """1 below ``start``, (almost) 0 at ``end``: docs/model.md#switch-functions."""
    if exponential:
        return torch.exp(-torch.exp(20 / start * (r.clamp(max=end) - start)))
    u = ((r - start) / (end - start)).clamp(0.0, 1.0)
    return u**3 * (-6 * u**2 + 15 * u - 10) + 1


def one_hot(index: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Rows of the identity, ``(len(index), size)``; unlike torch's, without looking at values."""
    return (index.unsqueeze(1) == torch.arange(size, device=index.device)).to(dtype)


def sum_rows(x: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum the rows of ``x`` that share an index: ``(size, *x.shape[1:])``."""
    return x.new_zeros((size, *x.shape[1:])).index_add(0, index, x)


def hessian(network: Network, graph: GraphBatch, atoms: Sequence[int]) -> np.ndarray:
    """Second derivatives of a structure's energy, rows of ``atoms``, ``(3k, 3n)``, eV/Å^2.

    Differentiates twice with respect to displacements of the atoms, which enter the edge
    vectors linearly: row by row, a Hessian-vector product each.
    """
    n = graph.n_atoms
    displacement = torch.zeros((n, 3), dtype=torch.float64, device=graph.types.device)
    with torch.enable_grad():
        displacement.requires_grad_(True)
        ends = (
            displacement.index_select(0, graph.edge_j),
            displacement.index_select(0, graph.edge_i),
        )
        energies = network.atomic_energies(graph, graph.vectors + ends[0] - ends[1])
        if not energies.requires_grad:  # isolated atoms
            return np.zeros((3 * len(atoms), 3 * n))
        (gradient,) = torch.autograd.grad(energies.sum(), displacement, create_graph=True)
        rows = []
        for component in gradient[list(atoms)].flatten():
            (row,) = torch.autograd.grad(component, displacement, retain_graph=True)
            rows.append(row.flatten())
    matrix: np.ndarray = torch.stack(rows).cpu().numpy()
    return matrix
