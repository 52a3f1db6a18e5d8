"""A layer by the GPU programs of triton_programs.py; the products of the nodes are torch's.

What is launched depends on the layout alone: nothing is asked of the device, so that a step can
be captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpa3sim.graph.blocks import BlockGraph, Layout
from dpa3sim.kernels.api import (
    Features,
    GraphData,
    Incoming,
    LayerGradients,
    LayerInputs,
    LayerTape,
    Matmul,
    NodeSums,
)
from dpa3sim.kernels.gradients import LayerSums
from dpa3sim.kernels.layer import LayerPlan, LayerWeights
from dpa3sim.kernels.tensor import TensorNodes
from dpa3sim.kernels.tiles import LEAST, Tiles
from dpa3sim.kernels.workspace import Workspace
from dpa3sim.model.activations import ActivationKernel, silut_constants
from dpa3sim.model.config import Activation, DescriptorConfig

# Accumulators as wide as this are shared by more threads, lest registers limit their number.
WIDE = 128
# Programs that share the sums over angles in gradients of weights, at most: several for each
# multiprocessor of a large GPU.
WEIGHT_PARTS = 512


def interpreted() -> bool:
    """Whether Triton is installed and its interpreter runs the programs on the CPU."""
    try:
        from dpa3sim.kernels import triton_programs
    except ImportError:
        return False
    return triton_programs.INTERPRETED


def launch(program: Any, grid: tuple[int, ...], device: torch.device, **arguments: Any) -> None:
    """Start ``program``, on the device of its arguments."""
    if 0 in grid:
        return
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        program[grid](**arguments, enable_fp_fusion=True)


@dataclass(frozen=True)
class Segments:
    """Rows of an array to be added: see ``sum_segments``; each ``(n_segments,)`` int64."""

    first: Tensor
    count: Tensor
    stride: Tensor


@dataclass(frozen=True)
class Jobs:
    """What the programs need of a layout, on the device; index tensors are int64.

    Attributes:
        k, m, edge_start, angle_edge_start, angle_start: ``(n_atoms,)``, see ``Layout.centres``.
        angle_rows: tile size of the other edges of an angle.
        slot_row: ``(n_angle_edges,)`` the centre's row.
        angle_edge: ``(n_edges,)`` the angle-edge slot of an edge slot, or -1.
        edge_row, edge_first: of each edge job, its row and first edge.
        angle_row, angle_q, angle_k: of each angle job, its row, first receiver and first other.
        own_edge: sums over the edge jobs of a row.
        both: sums over the angle jobs, for each slot as k and as q; ``d_q`` follows ``d_k``.
        own_angle: sums over the slots as q of a row.
    """

    k: Tensor
    m: Tensor
    edge_start: Tensor
    angle_edge_start: Tensor
    angle_start: Tensor
    angle_rows: int
    slot_row: Tensor
    angle_edge: Tensor
    edge_row: Tensor
    edge_first: Tensor
    angle_row: Tensor
    angle_q: Tensor
    angle_k: Tensor
    own_edge: Segments
    both: Segments
    own_angle: Segments

    @classmethod
    def of(cls, layout: Layout, tiles: Tiles, device: torch.device) -> Jobs:
        """The jobs of a layout, made once and kept with it."""
        key = f"jobs {tiles} {device}"
        jobs = layout.derived.get(key)
        if jobs is None:
            jobs = layout.derived[key] = cls._make(layout, tiles, device)
        assert isinstance(jobs, Jobs)
        return jobs

    @classmethod
    def _make(cls, layout: Layout, tiles: Tiles, device: torch.device) -> Jobs:
        edge_rows, receivers = tiles.edge_rows, tiles.receivers
        k, m, edge_start, angle_edge_start, angle_start = layout.centres
        rows = np.arange(len(k))

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device)

        def segments(first: np.ndarray, count: np.ndarray, stride: Any) -> Segments:
            return Segments(*(tensor(x + 0 * first) for x in (first, count, stride)))

        angle_edge = np.full(layout.n_edges, -1)
        slot_row, slot = np.repeat(rows, m), _within(m)
        angle_edge[edge_start[slot_row] + slot] = np.arange(layout.n_angle_edges)

        edge_jobs = -(-k // edge_rows)
        edge_row = np.repeat(rows, edge_jobs)

        angle_rows = tiles.angle_rows
        if m.max() <= angle_rows // 2:
            angle_rows = max(LEAST, angle_rows // 2)
        of_q, of_k = -(-m // receivers), -(-m // angle_rows)
        angle_row, job = np.repeat(rows, of_q * of_k), _within(of_q * of_k)
        n_jobs = len(angle_row)
        # The jobs of a slot: as k, those of its tile and all receivers; as q the other way.
        start = _starts(of_q * of_k)[slot_row]
        as_k = (start + slot // angle_rows) * angle_rows + slot % angle_rows
        as_q = (start + slot // receivers * of_k[slot_row]) * receivers + slot % receivers
        both = (
            np.stack([as_k, n_jobs * angle_rows + as_q], axis=1),
            np.stack([of_q[slot_row], of_k[slot_row]], axis=1),
            np.stack([of_k[slot_row] * angle_rows, np.full_like(slot, receivers)], axis=1),
        )
        return cls(
            k=tensor(k),
            m=tensor(m),
            edge_start=tensor(edge_start),
            angle_edge_start=tensor(angle_edge_start),
            angle_start=tensor(angle_start),
            angle_rows=angle_rows,
            slot_row=tensor(slot_row),
            angle_edge=tensor(angle_edge),
            edge_row=tensor(edge_row),
            edge_first=tensor(edge_start[edge_row] + edge_rows * _within(edge_jobs)),
            angle_row=tensor(angle_row),
            angle_q=tensor(job // np.maximum(of_k[angle_row], 1) * receivers),
            angle_k=tensor(job % np.maximum(of_k[angle_row], 1) * angle_rows),
            own_edge=segments(_starts(edge_jobs), edge_jobs, 1),
            both=segments(*(x.ravel() for x in both)),
            own_angle=segments(2 * angle_edge_start + 1, m, 2),
        )


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.cumsum(counts) - counts


def _within(counts: np.ndarray) -> np.ndarray:
    """0 to count - 1 for each count, one after the other."""
    return np.arange(counts.sum()) - np.repeat(_starts(counts), counts)


class TritonKernel:
    """The parallel form, by the programs of ``triton_programs.py``.

    Args:
        config: the descriptor's options. layer: number of the layer.
        activation: for what tensor operations compute.
        workspace: memory for temporaries.
        matmul: how the products of edges and angles round; those of nodes never do.

    Raises:
        ImportError: Triton is not installed.
    """

    def __init__(
        self,
        config: DescriptorConfig,
        layer: int,
        activation: ActivationKernel,
        workspace: Workspace,
        matmul: Matmul = "full",
    ) -> None:
        from dpa3sim.kernels import triton_programs

        self.plan = LayerPlan.of(config, layer)
        self._config, self._ws = config, workspace
        self._message_width = config.n_multi_edge_message * config.n_dim
        self._tensor, self._act = TensorNodes(config, layer, activation), activation
        self.algebra = self._tensor.algebra
        self._programs = triton_programs
        self._matmul = matmul

    def refresh(self, weights: Mapping[str, Tensor]) -> None:
        """See :class:`~dpa3sim.kernels.api.Kernel`, like the other methods."""
        config = self._config
        self._tensor.refresh(weights)
        self._w = w = self._tensor.weights
        self.node_keep = w.node_keep
        self._device = w.edge.device
        self._tiles = tiles = Tiles.of(self._device, w.edge.dtype, self._matmul)
        self._edge_rows = tiles.edge_rows
        self._rho = torch.stack(w.node_rho)
        e, width = config.e_dim, self._message_width
        self._activation = _activation_constants(config.activation)
        self._sizes = {"E": e, "N": config.n_dim}
        self._product = {
            **self._activation,
            "E": e,
            "WIDTH": w.width_edge,
            "B_ROWS": self._edge_rows,
            "B_DEPTH": _tile(e, tiles.depth),
            "PRECISION": _precision(self._matmul, self._programs.INTERPRETED),
            "num_warps": tiles.warps,
            "num_stages": tiles.stages,
        }
        self._columns = _tile(max(e, width), tiles.columns)
        self._angle_columns = _tile(e, tiles.chained_columns)
        self._chained = {
            "P_E": _tile(e),
            "B_COLUMNS": _tile(max(e, width), tiles.chained_columns),
            "num_warps": tiles.wide_warps if _tile(e) >= WIDE else tiles.warps,
        }

    @property
    def weights(self) -> LayerWeights:
        return self._w

    def project(self, node: Tensor, n_atoms: int) -> tuple[Tensor, Tensor]:
        return self._tensor.project(node, n_atoms)

    def project_backward(self, d_own: Tensor, d_neighbour: Tensor, d_node: Tensor) -> None:
        self._tensor.project_backward(d_own, d_neighbour, d_node)

    def sum_incoming(self, graph: BlockGraph, incoming: Incoming, d_node: Tensor) -> Tensor:
        return self._tensor.sum_incoming(graph, incoming, d_node)

    def _run(
        self, name: str, grid: tuple[int, ...], *constants: dict[str, Any], **rest: Any
    ) -> None:
        arguments: dict[str, Any] = {}
        for group in constants:
            arguments |= group
        launch(getattr(self._programs, name), grid, self._device, **(arguments | rest))

    def _jobs(self, graph: BlockGraph) -> Jobs:
        return Jobs.of(graph.layout, self._tiles, self._device)

    # -- blocks ---------------------------------------------------------------------------------

    def forward(self, x: LayerInputs, new: Features, sums: NodeSums, tape: LayerTape) -> None:
        data, old, graph = x.data, x.features, x.data.graph
        w, jobs, e = self._w, self._jobs(graph), self._config.e_dim
        columns, width = self._columns, self._message_width
        maps = self._edge_maps(x)
        centres = {"edge_start": jobs.edge_start, "k_room": jobs.k}
        self._run(
            "messages",
            (graph.n_atoms, _tiles(width, columns)),
            self._product,
            maps,
            centres,
            message_weight=data.weighting.message,
            v3=sums.v3,
            MESSAGE=width,
            B_COLUMNS=columns,
        )
        self._run(
            "symmetrise_sums",
            (graph.n_atoms, _tiles(e, columns) + _tiles(self._config.n_dim, columns)),
            self._sizes,
            centres,
            neighbour=graph.edge_j,
            edge=old.edge,
            node=old.node,
            symmetrise=data.weighting.symmetrise,
            psi=sums.psi,
            B_ROWS=self._edge_rows,
            B_COLUMNS=columns,
        )
        if not self.plan.edges:
            return
        if self.plan.angles:
            tape.reduced = self._ws(f"reduced {tape.place}", graph.layout.n_angle_edges, e)
            self._update_angles(x, new, tape.reduced)
        self._run(
            "update_edges",
            (_tiles(graph.layout.n_edges, self._edge_rows), _tiles(e, columns)),
            self._product,
            maps,
            self._edge_angle_map(data, tape),
            n_edges=graph.layout.n_edges,
            centre=graph.edge_i,
            rho_self=w.edge_rho[0],
            new_edge=new.edge,
            MESSAGE=width,
            KEEP=w.edge_keep,
            ANGLES=self.plan.angles,
            B_COLUMNS=columns,
        )

    def _update_angles(self, x: LayerInputs, new: Features, reduced: Tensor) -> None:
        """R, and the new angles."""
        graph, data = x.data.graph, x.data
        maps, columns = self._angle_maps(x), self._angle_columns
        n_slots, slot_row = graph.layout.n_angle_edges, self._jobs(graph).slot_row
        self._run(
            "angle_messages",
            (n_slots, _tiles(self._config.e_dim, columns)),
            maps,
            slot_row=slot_row,
            angle_weight=data.weighting.angle,
            reduced=reduced,
            B_COLUMNS=columns,
        )
        if self.plan.angle_self:
            self._run(
                "update_angles",
                (n_slots,),
                maps,
                slot_row=slot_row,
                rho_update=self._w.angle_rho[0],
                new_angle=new.angle,
                KEEP=self._w.angle_keep,
            )

    def backward(self, x: LayerInputs, grad: LayerGradients, tape: LayerTape) -> None:
        data, old, graph, incoming = x.data, x.features, x.data.graph, grad.incoming
        w, jobs, plan = self._w, self._jobs(graph), self.plan
        n_edges, width = graph.layout.n_edges, w.width_edge
        d_input = d_angle_input = d_rho = None
        edge_angle = self._edge_angle_map(data, tape)
        if plan.angles:
            d_input = self._edge_angle_backward(x, grad, edge_angle)
            d_angle_input = self._angles_backward(x, grad, d_input)
        edge_jobs = {
            "job_row": jobs.edge_row,
            "job_start": jobs.edge_first,
            "edge_start": jobs.edge_start,
            "k_room": jobs.k,
            "symmetrise": data.weighting.symmetrise,
            "d_psi": grad.sums.psi,
        }
        d_own_jobs = self._ws("d own of jobs", len(jobs.edge_row), width)
        d_pre = incoming.projection if incoming else self._ws("d edge pre", n_edges, width)
        if grad.weights is not None and plan.edges:
            d_rho = self._ws("d rho of jobs", len(jobs.edge_row), self._config.e_dim)
        self._run(
            "edges_backward",
            (len(jobs.edge_row),),
            self._sizes,
            self._product,
            self._chained,
            self._edge_maps(x),
            {name: edge_angle[name] for name in ("angle_edge", "other", "SMOOTH")},
            edge_jobs,
            rho_self=w.edge_rho[0] if plan.edges else None,
            message_weight=data.weighting.message,
            d_v3=grad.sums.v3,
            d_input=d_input,
            d_angle_input=d_angle_input,
            d_edge=grad.features.edge,
            d_message_weight=data.d_weighting.message,
            d_pre=d_pre,
            d_own=d_own_jobs,
            d_rho=d_rho,
            MESSAGE=self._message_width,
            CHANNELS=w.angle_edge.shape[0] if plan.angles else 0,
            KEEP=w.edge_keep if plan.edges else 1.0,
            EDGES=plan.edges,
            ANGLES=plan.angles,
            WEIGHTS=grad.weights is not None,
        )
        self._run(
            "symmetrise_sums_backward",
            (len(jobs.edge_row),),
            self._sizes,
            edge_jobs,
            neighbour=graph.edge_j,
            edge=old.edge,
            node=old.node,
            d_symmetrise=data.d_weighting.symmetrise,
            incoming_node=incoming and incoming.node,
            INCOMING=incoming is not None,
            WEIGHTS=grad.weights is not None,
            B_ROWS=self._edge_rows,
            B_COLUMNS=self._columns,
        )
        self._sum(jobs.own_edge, d_own_jobs, grad.own.edge)
        if grad.weights is not None:
            self.algebra.outer(old.edge, d_pre, grad.weights.edge)
            if d_rho is not None:
                self.algebra.columns(d_rho, grad.weights.edge_rho[0])

    def _edge_angle_backward(
        self, x: LayerInputs, grad: LayerGradients, edge_angle: dict[str, Any]
    ) -> Tensor:
        """Gradient of the argument of u2, ``(n_edges, e_dim)``, where the layer needs it."""
        graph, layout = x.data.graph, x.data.graph.layout
        smooth = self._config.smooth_edge_update
        d_input = self._ws("d edge angle input", layout.n_edges, self._config.e_dim)
        n_rows = layout.n_angle_edges if smooth else layout.n_edges
        n_tiles = _tiles(n_rows, self._edge_rows)
        d_pre = d_rho = None
        if grad.weights is not None:
            d_pre = self._ws("d u2", n_rows, self._config.e_dim)
            d_rho = self._ws("d rho of tiles", n_tiles, self._config.e_dim)
        product = {k: v for k, v in self._product.items() if k != "WIDTH"}
        self._run(
            "edge_angle_backward",
            (n_tiles,),
            product,
            self._chained,
            edge_angle,
            n_rows=n_rows,
            angle_slots=graph.angle_slots,
            edge=x.features.edge,
            d_edge=grad.features.edge,
            d_input=d_input,
            d_other=x.data.d_weighting.other,
            d_pre=d_pre,
            d_rho=d_rho,
            SMOOTHED=self._config.smooth_cutoff is not None,
            WEIGHTS=grad.weights is not None,
        )
        if grad.weights is not None:
            assert d_pre is not None
            assert d_rho is not None
            inputs = self._edge_angle_input(x, edge_angle["reduced"])
            self.algebra.outer(inputs, d_pre, grad.weights.ea2)
            self.algebra.columns(d_pre, grad.weights.ea2_bias)
            self.algebra.columns(d_rho, grad.weights.edge_rho[1])
            if smooth:
                self._add_constant_u2(graph, grad.features.edge, grad.weights)
        return d_input

    def _edge_angle_input(self, x: LayerInputs, reduced: Tensor) -> Tensor:
        """The argument of the map to u2: of angle-edge slots in smooth models, else of edges."""
        if self._config.smooth_edge_update:
            return reduced
        edge, other = x.features.edge, x.data.weighting.other.unsqueeze(1)
        inputs = torch.mul(edge, other, out=self._ws("edge angle input", *edge.shape))
        return inputs.index_add_(0, x.data.graph.angle_slots, reduced)

    def _add_constant_u2(self, graph: BlockGraph, d_edge: Tensor, weights: LayerSums) -> None:
        """Add what edges without angles give in smooth models: their u2 is that of the bias.

        ``d_edge`` ``(n_edges, e_dim)`` is the gradient of the new edges.
        """
        without = self._jobs(graph).angle_edge.unsqueeze(1) < 0
        total = torch.where(without, d_edge, 0).sum(dim=0, dtype=torch.float64)
        bias = self._w.ea2_bias.unsqueeze(0)
        u2 = self._act.forward(bias, torch.empty_like(bias))[0]
        d_bias = self._act.backward_(self._w.edge_rho[1].unsqueeze(0).clone(), bias)[0]
        weights.edge_rho[1].add_(u2 * total)
        weights.ea2_bias.add_(d_bias * total)

    def _angles_backward(self, x: LayerInputs, grad: LayerGradients, d_input: Tensor) -> Tensor:
        """Through the angle maps.

        Returns:
            What reaches the leading channels of angle-edges, ``(n_angle_edges, channels)``.
        """
        graph, data = x.data.graph, x.data
        w, jobs, update = self._w, self._jobs(graph), self.plan.angle_self
        tiles = self._tiles
        n_jobs = len(jobs.angle_row)
        of_jobs = self._ws(
            "d projections of jobs", n_jobs * (jobs.angle_rows + tiles.receivers), w.width_angle
        )
        n_parts, d_weight, d_rho = n_jobs, None, None
        if grad.weights is not None:
            n_parts = min(n_jobs, WEIGHT_PARTS)
            d_weight = grad.weights.angle.new_zeros((n_parts, *w.angle.shape))
            d_rho = grad.weights.angle_rho.new_zeros((n_parts, self._config.a_dim))
        self._run(
            "angles_backward",
            (n_parts,),
            self._angle_maps(x),
            n_jobs=n_jobs,
            job_row=jobs.angle_row,
            job_q=jobs.angle_q,
            job_k=jobs.angle_k,
            angle_slots=graph.angle_slots,
            angle_weight=data.weighting.angle,
            d_input=d_input,
            d_angle=grad.features.angle,
            d_angle_weight=data.d_weighting.angle,
            d_k=of_jobs,
            d_q=of_jobs[n_jobs * jobs.angle_rows :],
            d_weight=d_weight,
            d_rho=d_rho,
            rho_update=w.angle_rho[0] if update else None,
            KEEP=w.angle_keep if update else 1.0,
            UPDATE=update,
            WEIGHTS=grad.weights is not None,
            RECEIVERS=tiles.receivers,
            B_COLUMNS=self._angle_columns,
            # The products for the weights need more registers.
            num_warps=tiles.warps if grad.weights is None else tiles.wide_warps,
        )
        slots = graph.layout.n_angle_edges
        d_both = self._ws("d projections", 2 * slots, w.width_angle)
        self._sum(jobs.both, of_jobs, d_both)
        self._sum(jobs.own_angle, d_both, grad.own.angle)
        d_both = d_both.view(slots, 2 * w.width_angle)
        if grad.weights is not None:
            assert d_weight is not None
            assert d_rho is not None
            grad.weights.angle.add_(d_weight.sum(dim=0))
            self.algebra.columns(d_rho, grad.weights.angle_rho[0])
            self.algebra.outer(self._angle_edges(x), d_both, grad.weights.angle_edge)
        out = self._ws("d angle edges", slots, w.angle_edge.shape[0])
        return torch.mm(d_both, w.angle_edge.t(), out=out)

    def _sum(self, segments: Segments, x: Tensor, out: Tensor) -> None:
        width = x.shape[1]
        columns = _tile(width, self._tiles.columns)
        self._run(
            "sum_segments",
            (len(segments.first), _tiles(width, columns)),
            segment_first=segments.first,
            segment_count=segments.count,
            segment_stride=segments.stride,
            x=x,
            out=out,
            out_stride=out.stride(0),
            WIDTH=width,
            B_COLUMNS=columns,
        )

    # -- arguments that several programs share ----------------------------------------------------

    def _edge_maps(self, x: LayerInputs) -> dict[str, Any]:
        return {
            "neighbour": x.data.graph.edge_j,
            "edge": x.features.edge,
            "own": x.own.edge,
            "own_stride": x.own.edge.stride(0),
            "projected": x.neighbour,
            "weight": self._w.edge,
        }

    def _edge_angle_map(self, data: GraphData, tape: LayerTape) -> dict[str, Any]:
        angles = self.plan.angles
        return {
            "angle_edge": self._jobs(data.graph).angle_edge,
            "other": data.weighting.other,
            "reduced": tape.reduced,
            "ea2": self._w.ea2 if angles else None,
            "ea2_bias": self._w.ea2_bias if angles else None,
            "rho_angle": self._w.edge_rho[1] if angles else None,
            "SMOOTH": self._config.smooth_edge_update,
        }

    def _angle_edges(self, x: LayerInputs) -> Tensor:
        """What of the angle-edges enters the angle maps, ``(n_angle_edges, channels)``."""
        channels = self._w.angle_edge.shape[0]
        return x.features.edge[:, :channels].index_select(0, x.data.graph.angle_slots)

    def _angle_maps(self, x: LayerInputs) -> dict[str, Any]:
        graph, old, own = x.data.graph, x.features, x.own
        w, jobs, config = self._w, self._jobs(graph), self._config
        inputs = self._angle_edges(x)
        both = self._ws("angle projections", len(inputs), 2 * w.width_angle)
        return {
            "m_room": jobs.m,
            "angle_edge_start": jobs.angle_edge_start,
            "angle_start": jobs.angle_start,
            "angle": old.angle,
            "own": own.angle,
            "own_stride": own.angle.stride(0),
            "both": torch.mm(inputs, w.angle_edge, out=both),
            "weight": w.angle,
            "E": config.e_dim,
            "A": config.a_dim,
            "P_A": _tile(config.a_dim),
            "WIDTH": w.width_angle,
            "B_ROWS": jobs.angle_rows,
            **self._activation,
            **{name: self._product[name] for name in ("PRECISION", "num_warps", "num_stages")},
        }

    # -- nodes ----------------------------------------------------------------------------------

    def update_node(self, node: Tensor, sums: NodeSums, tape: LayerTape) -> Tensor:
        assert tape.own is not None
        w, new = self._w, torch.empty_like(node)
        tape.sym_pre = torch.addmm(w.sym_bias, self._symmetrise(sums.psi), w.sym)
        self._run(
            "update_nodes",
            (len(node),),
            self._activation,
            self._nodes(tape),
            node=node,
            v3=sums.v3,
            new_node=new,
            KEEP=w.node_keep,
        )
        return new

    def update_node_backward(
        self, d_node: Tensor, tape: LayerTape, d_self: Tensor, weights: LayerSums | None
    ) -> NodeSums:
        assert tape.psi is not None
        d_sym = torch.empty_like(d_node)
        d_v3 = d_node.new_empty((len(d_node), self._message_width))
        self._run(
            "update_nodes_backward",
            (len(d_node),),
            self._activation,
            self._nodes(tape),
            d_node=d_node,
            d_self=d_self,
            d_self_stride=d_self.stride(0),
            d_sym=d_sym,
            d_v3=d_v3,
        )
        if weights is not None:
            self._tensor.add_node_weights(d_node, d_sym, tape, weights)
        return NodeSums(self._symmetrise_backward(tape.psi, d_sym @ self._w.sym.t()), d_v3)

    def _nodes(self, tape: LayerTape) -> dict[str, Any]:
        assert tape.own is not None
        n = self._config.n_dim
        return {
            "self_pre": tape.own.own,
            "self_stride": tape.own.own.stride(0),
            "sym_pre": tape.sym_pre,
            "rho": self._rho,
            "N": n,
            "CHUNKS": self._config.n_multi_edge_message,
            "B_COLUMNS": _tile(n),
        }

    def _symmetrise(self, psi: Tensor) -> Tensor:
        axis, width = self._config.axis_neuron, psi.shape[2]
        out = psi.new_empty((len(psi), axis * width))
        self._run("symmetrise", (len(psi), 2), self._symmetric, psi=psi, out=out)
        return out

    def _symmetrise_backward(self, psi: Tensor, d_sym: Tensor) -> Tensor:
        d_psi = torch.empty_like(psi)
        arguments = {"psi": psi, "d_out": d_sym, "d_psi": d_psi}
        self._run("symmetrise_backward", (len(psi), 2), self._symmetric, arguments)
        return d_psi

    @property
    def _symmetric(self) -> dict[str, Any]:
        columns = _tile(max(self._config.e_dim, self._config.n_dim))
        return {**self._sizes, "AXIS": self._config.axis_neuron, "B_COLUMNS": columns}


def _tile(width: int, most: int = 2**30) -> int:
    """A power of two that holds ``width``, or ``most``; tensor cores need 16."""
    return min(most, max(LEAST, 1 << (width - 1).bit_length()))


def _tiles(size: int, tile: int) -> int:
    return -(-size // tile)


def _precision(matmul: Matmul, interpreted: bool) -> str:
    """As the programs know it."""
    if matmul == "full":
        return "ieee"
    return "emulated bf16" if matmul == "bf16" and interpreted else matmul


def _activation_constants(activation: Activation) -> dict[str, Any]:
    kind = "gelu" if activation.name == "gelu_tf" else activation.name
    alpha, beta = silut_constants(activation.threshold)
    return {"KIND": kind, "THRESHOLD": activation.threshold, "ALPHA": alpha, "BETA": beta}
