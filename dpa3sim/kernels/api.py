"""What computes a layer: the interface between the course of a layer and its kernels.

:class:`~dpa3sim.kernels.layer.Layer` is the same for all kernels; a :class:`Kernel` does the
arithmetic. Names and formulas are those of docs/model.md#the-repflow-layer; ``d_x`` is dE/dx.

Rows of nodes are the centres, ``n_atoms`` of them, and possibly, after them, atoms that only
others have edges to (``n_nodes >= n_atoms``), whose features are computed elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from dpa3sim.graph.blocks import BlockGraph
    from dpa3sim.kernels.algebra import Algebra
    from dpa3sim.kernels.gradients import LayerSums
    from dpa3sim.kernels.layer import LayerWeights

Matmul = Literal["full", "tf32", "bf16"]
"""How products of edges and angles round their inputs: not at all, to 10 bits, to 7 bits."""


class Features(NamedTuple):
    """State between layers, or the gradient with respect to it.

    Attributes:
        node: ``(n_nodes, n_dim)``; edge: ``(n_edges, e_dim)``.
        angle: ``(n_angles, a_dim)``; None for a gradient where no later layer reads it.
    """

    node: Tensor
    edge: Tensor
    angle: Tensor | None


class Projections(NamedTuple):
    """Linear maps of the nodes, or the gradient with respect to them.

    Attributes:
        own: ``(n_atoms, n_dim)`` the argument of v1.
        edge: ``(n_atoms, width_edge)`` what the centre contributes to edge maps, with the bias.
        angle: ``(n_atoms, width_angle)`` what it contributes to angle maps, with the bias.
    """

    own: Tensor
    edge: Tensor
    angle: Tensor


class NodeSums(NamedTuple):
    """Sums over the edges of each centre, or the gradient with respect to them.

    Attributes:
        psi: ``(n_atoms, 3, e_dim + n_dim)``; v3: ``(n_atoms, H n_dim)``.
    """

    psi: Tensor
    v3: Tensor


class Incoming(NamedTuple):
    """Gradients that edges send to their neighbour's node.

    Attributes:
        projection: ``(n_edges, width_edge)`` with respect to the neighbour's projection.
        node: ``(n_edges, n_dim)`` with respect to its features.
    """

    projection: Tensor
    node: Tensor


@dataclass
class LayerTape:
    """What a layer keeps for its backward pass besides the features that it received.

    Attributes:
        keep: whether to keep the pre-activations of edges and angles too.
        place: names the memory of what the layer makes.
        own, neighbour: projections of the nodes; ``own.own`` is the pre-activation of v1.
        sym_pre: ``(n_atoms, n_dim)`` pre-activation of v2.
        psi: ``(n_atoms, 3, e_dim + n_dim)``; v3: ``(n_atoms, H n_dim)``.
        rows: see :meth:`ActivationKernel.rows`, by block and name.
        pre: pre-activations by block and name, as far as they are kept.
        reduced: ``(n_angle_edges, e_dim)`` R, by kernels that do not compute it again.
    """

    keep: bool
    place: str
    own: Projections | None = None
    neighbour: Tensor | None = None
    sym_pre: Tensor | None = None
    psi: Tensor | None = None
    v3: Tensor | None = None
    rows: dict[tuple[int, str], Tensor | None] = field(default_factory=dict)
    pre: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    reduced: Tensor | None = None


@dataclass(frozen=True)
class Weighting:
    """Factors with which the layers sum over edges and angles; or gradients with respect to them.

    Attributes:
        symmetrise: ``(n_edges, 3)`` N_e^(-1/2) s^e h, the factors of Psi
            (docs/model.md#node-messages).
        message: ``(n_edges,)`` s^e / N_e, the factors of v3.
        angle: ``(n_angles,)`` N_a^(-1/2) w, the factors of R.
        other: ``(n_edges,)`` the factor of the edge itself in R: 1 for edges that are not
            angle-edges; for these 0 or, with ``smooth_cutoff``, t (docs/model.md#smooth-cutoff).
            Its gradient is only computed with ``smooth_cutoff``, and for angle-edges.
    """

    symmetrise: Tensor
    message: Tensor
    angle: Tensor
    other: Tensor

    def zeros_like(self) -> Weighting:
        """A place to accumulate gradients."""
        parts = (self.symmetrise, self.message, self.angle, self.other)
        return Weighting(*(part.new_zeros(part.shape) for part in parts))


@dataclass(frozen=True)
class GraphData:
    """What all layers need of a graph.

    Attributes:
        graph: the graph.
        weighting: factors of sums; d_weighting: the gradient with respect to them, added to.
        derived: what a kernel makes of these and wants to keep as long as they live.
    """

    graph: BlockGraph
    weighting: Weighting
    d_weighting: Weighting
    derived: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerInputs:
    """What the edges and angles of a layer read, forward and backward.

    Attributes:
        data: of the graph.
        features: at the start of the layer.
        own: linear maps of the centres.
        neighbour: ``(n_nodes, width_edge)``, linear maps of the nodes as neighbours.
    """

    data: GraphData
    features: Features
    own: Projections
    neighbour: Tensor


@dataclass(frozen=True)
class LayerGradients:
    """Gradients that the backward pass of edges and angles starts from, and those it fills.

    Attributes:
        features: with respect to the new edges and angles; replaced by that with respect to the
            old ones.
        sums: with respect to the sums over edges, as :meth:`Kernel.update_node_backward` gives it.
        own: filled: with respect to the centres' linear maps, but for ``own.own``.
        incoming: filled: what edges send to their neighbours; None if it is not needed.
        weights: gradients of the weights of edges and angles, added to; with them, those of the
            weighting are not computed. None if they are not needed.
    """

    features: Features
    sums: NodeSums
    own: Projections
    incoming: Incoming | None
    weights: LayerSums | None = None


class Kernel(Protocol):
    """The arithmetic of one layer, on one device.

    Attributes:
        node_keep: the factor of the old node features in the new ones.
        algebra: sums over nodes for gradients of weights.
    """

    node_keep: float
    algebra: Algebra

    @property
    def weights(self) -> LayerWeights:
        """The weights in use."""

    def refresh(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of the model, by name; before anything else, and when they change."""

    def project(self, node: Tensor, n_atoms: int) -> tuple[Tensor, Tensor]:
        """Linear maps ``(n_atoms, width)`` of the centres, and of all nodes as neighbours."""

    def project_backward(self, d_own: Tensor, d_neighbour: Tensor, d_node: Tensor) -> None:
        """Add to ``d_node`` what reached the nodes through their linear maps."""

    def forward(self, x: LayerInputs, new: Features, sums: NodeSums, tape: LayerTape) -> None:
        """New edges and angles into ``new``, what they send to their centres into ``sums``."""

    def backward(self, x: LayerInputs, grad: LayerGradients, tape: LayerTape) -> None:
        """The gradients of edges and angles.

        That of the weighting is added to ``x.data``, or those of the weights to ``grad.weights``.
        """

    def update_node(self, node: Tensor, sums: NodeSums, tape: LayerTape) -> Tensor:
        """The new features of the centres."""

    def update_node_backward(
        self, d_node: Tensor, tape: LayerTape, d_self: Tensor, weights: LayerSums | None
    ) -> NodeSums:
        """Gradient of the sums over edges; that of the argument of v1 goes to ``d_self``.

        Those of the weights of the update are added to ``weights``, if given.
        """

    def sum_incoming(self, graph: BlockGraph, incoming: Incoming, d_node: Tensor) -> Tensor:
        """Gradient of the neighbours' linear maps; that of their features is added to d_node."""


class Exchange(Protocol):
    """Fetches the features of nodes that are computed elsewhere, between two layers."""

    def forward(self, node: Tensor) -> Tensor:
        """Features ``(n_nodes, n_dim)`` of all nodes from those of the centres."""

    def backward(self, d_node: Tensor) -> Tensor:
        """Gradient ``(n_atoms, n_dim)`` of the centres from that of all nodes."""
