"""The graph of a batch on its device, updated in place from new positions and cells.

There are three levels (docs/methods.md#candidates-edges-angles). Candidates with a skin are
searched on the host and stay on the device as padded rows. At every step, their distances decide
exactly which are edges and which are angle-edges; the skin does not affect the model. Rows are
then compacted into the slots of the layout's blocks, with angle-edges first and otherwise in the
order of the candidates, so that the result depends on the structure alone and not on the history
of the lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpa3sim.graph.blocks import BlockGraph, Layout
from dpa3sim.graph.edges import EdgeRules
from dpa3sim.graph.skin import SkinList
from dpa3sim.structures.system import System, model_inputs

STATISTICS = ("moved", "nearest", "n_edges", "n_angles", "n_cut_edges", "n_cut_angle_edges")


@dataclass(frozen=True)
class Measured:
    """Distances and selections of one step, with candidates as rows of the original atoms.

    Attributes:
        vectors: ``(n_atoms, width, 3)`` float64, Å.
        edge, angle_edge: ``(n_atoms, width)`` bool.
        n_edges, n_angle_edges: ``(n_atoms,)`` counts.
        moved: ``(n_structures, 2)`` displacements of the two most displaced atoms, Å.
        statistics: ``(n_structures, 6)`` float64, columns :data:`STATISTICS`; "moved" is how far
            the sum of these two displacements exceeds the budget of the list, Å.
    """

    vectors: Tensor
    edge: Tensor
    angle_edge: Tensor
    n_edges: Tensor
    n_angle_edges: Tensor
    moved: Tensor
    statistics: Tensor


class ResidentGraph:
    """Device state of a batch of structures, or of a part of one structure.

    Of a part, only the first atoms are centres; the others are neighbours of these alone.

    Args:
        lists: candidate list of each structure; displaced copies may share one. If it has fewer
            centres than the structure has atoms, it is the only one.
        systems: the structures, with the inputs of a model.
        rules: cutoffs and limits of the model.
        with_angles: whether the model has angles.
        device: device of the state.
        bucket: the room for candidates of an atom is a multiple of this number, so that new lists
            fit into the same arrays; 1 is exactly the number of candidates.

    Attributes:
        programs: changes when a captured step is no longer valid, because shapes, memory or
            operations have changed.
    """

    def __init__(
        self,
        lists: Sequence[SkinList],
        systems: Sequence[System],
        rules: EdgeRules,
        with_angles: bool,
        device: torch.device,
        bucket: int = 1,
    ) -> None:
        self._rules = rules
        self._with_angles = with_angles
        self.device = device
        self.sizes = np.array([len(x.count) for x in lists])
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.n_atoms = int(self.sizes.sum())
        self.n_nodes = sum(len(x) for x in systems)
        self.n_structures = len(systems)
        self._types = [x.types for x in systems]
        self._slots: _Slots | None = None
        self._bucket = bucket
        self._width = 0
        self._ranked = False
        self.programs = 0
        self._candidates: list[Tensor] = []
        self._upload(systems)
        self._input = torch.empty(self._input_size, dtype=torch.float64, device=device)
        self.set_lists(lists)

    # -- what is uploaded once -----------------------------------------------------------------

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _upload(self, systems: Sequence[System]) -> None:
        types, fparam, aparam, charge_spin = model_inputs(systems)
        self.types, self.fparam, self._aparam = map(self._tensor, (types, fparam, aparam))
        self.charge_spin = None if charge_spin is None else self._tensor(charge_spin)
        self._structures = self._tensor(
            np.repeat(np.arange(len(systems)), [len(x) for x in systems])
        )
        self.structure = self._structures[: self.n_atoms]
        self.structure_starts = self._tensor(self.starts)

    def set_lists(self, lists: Sequence[SkinList]) -> None:
        """Set other candidates, one list for each structure."""
        self.lists = list(lists)
        width = max(1, *(x.neighbour.shape[1] for x in lists))
        if self._bucket > 1:
            width = max(self._width, -(-width // self._bucket) * self._bucket)
        n = self.n_atoms
        neighbour = np.repeat(np.arange(n)[:, None], width, axis=1)
        shifts = np.zeros((n, width, 3))
        listed = np.zeros((n, width), dtype=bool)
        excluded = np.zeros((n, width), dtype=bool)
        can_be_cut = False
        for x, types, start in zip(self.lists, self._types, self.starts, strict=True):
            n_rows, own = x.neighbour.shape
            rows = slice(start, start + n_rows)
            neighbour[rows, :own] = x.neighbour + start
            shifts[rows, :own] = x.shifts
            listed[rows, :own] = np.arange(own) < x.count[:, None]
            for a, b in self._rules.excluded_pairs:
                centre_types = types[:n_rows, None]
                excluded[rows, :own] |= (centre_types == a) & (types[x.neighbour] == b)
            can_be_cut |= bool(x.count.max(initial=0) > min(self._rules.a_sel, self._rules.e_sel))
        ranked = can_be_cut and self._rules.truncate == "deepmd"
        if self._bucket > 1:  # ranking has no effect if no neighbour is removed
            ranked = ranked or self._ranked
        pbc = np.repeat([x.pbc for x in lists], [len(x.positions) for x in lists], axis=0)
        arrays = [neighbour, shifts, listed, pbc.astype(np.float64)]
        arrays.append(np.concatenate([x.positions for x in self.lists]))
        arrays += [excluded] if self._rules.excluded_pairs else []
        if (width, ranked) == (self._width, self._ranked):
            for tensor, array in zip(self._candidates, arrays, strict=True):
                tensor.copy_(torch.from_numpy(array))
            return
        self.programs += 1
        self._candidates = [self._tensor(array) for array in arrays]
        self._neighbour, self._shifts, self._listed, self._pbc, self._reference = self._candidates[
            :5
        ]
        self._excluded = self._candidates[5] if self._rules.excluded_pairs else None
        if self._slots is not None and width != self._width:
            self._slots = _Slots(self._slots.layout, self.device, width, self.n_nodes)
        self._width, self._ranked = width, ranked

    # -- every step ----------------------------------------------------------------------------

    @property
    def _input_size(self) -> int:
        return 3 * self.n_nodes + 28 * self.n_structures

    def pack(self, systems: Sequence[System]) -> np.ndarray:
        """Positions and quantities derived from the cells, as one array for one transfer.

        Args:
            systems: the structures with other positions, wrapped or not, and completed cells.
        """
        strains = [x.strain(system.cell) for x, system in zip(self.lists, systems, strict=True)]
        cells = np.stack([system.cell for system in systems])
        return np.concatenate(
            [
                np.concatenate([system.positions for system in systems]).ravel(),
                cells.ravel(),
                np.linalg.inv(cells).ravel(),
                np.stack([gradient for gradient, _ in strains]).ravel(),
                np.array([budget for _, budget in strains]),
            ]
        )

    def upload(self, packed: np.ndarray) -> None:
        """Send a packed step to the device, always to the same memory."""
        self._input.copy_(torch.from_numpy(packed))

    def measure(self) -> Measured:
        """Compute distances of all candidates, and select edges and angle-edges."""
        rules, b, n = self._rules, self.n_structures, self.n_atoms
        x, *cells, budget = self._input.split([3 * self.n_nodes, 9 * b, 9 * b, 9 * b, b])
        x = x.view(-1, 3)
        cell, inverse, gradient = (m.view(b, 3, 3).index_select(0, self._structures) for m in cells)
        u = x - _row_times(self._reference, gradient)
        images = torch.round(_row_times(u, inverse)) * self._pbc
        moved = torch.linalg.vector_norm(u - _row_times(images, cell), dim=1)

        flat = self._neighbour.flatten()
        shifts = self._shifts - (images.index_select(0, flat).view(self._shifts.shape))
        shifts = shifts + images[:n].unsqueeze(1)
        # The image first, as in deepmd-kit, because it decides between two equal distances.
        first, second, third = (shifts[:, :, k : k + 1] * cell[:n, None, k] for k in range(3))
        offset = first + second + third
        vectors = (x.index_select(0, flat).view(self._shifts.shape) + offset) - x[:n].unsqueeze(1)
        # Equal to find_edges to the last bit, which decides between equal distances.
        dx, dy, dz = vectors.unbind(dim=2)
        r = (dx * dx + dy * dy + dz * dz).sqrt_()
        r = torch.where(self._listed, r, torch.inf)
        edge, angle_edge = r <= rules.e_rcut, r < rules.a_rcut
        cut = r.new_zeros((2, self.n_atoms))
        if self._ranked:
            # Equal distances are ordered by neighbour, then by shift, like the candidates.
            rank = r.argsort(dim=1, stable=True).argsort(dim=1)
            kept, kept_angle = edge & (rank < rules.e_sel), angle_edge & (rank < rules.a_sel)
            cut[0] = (edge & ~kept).sum(dim=1)
            cut[1] = (angle_edge & ~kept_angle).sum(dim=1)
            edge, angle_edge = kept, kept_angle
        if self._excluded is not None:
            edge, angle_edge = edge & ~self._excluded, angle_edge & ~self._excluded
        n_edges, n_angle_edges = edge.sum(dim=1), angle_edge.sum(dim=1)
        columns = torch.stack([n_edges, n_angle_edges**2, *cut.to(torch.int64)], dim=1)
        counts = columns.new_zeros((b, 4)).index_add_(0, self.structure, columns)
        if not self._with_angles:
            angle_edge, n_angle_edges = angle_edge & False, n_angle_edges * 0
        two = self._two_largest(moved[:n])
        statistics = torch.cat(
            [
                (two.sum(dim=1) - budget).unsqueeze(1),
                self._smallest(r.amin(dim=1)).unsqueeze(1),
                counts.to(torch.float64),
            ],
            dim=1,
        )
        return Measured(vectors, edge, angle_edge, n_edges, n_angle_edges, two, statistics)

    def _smallest(self, values: Tensor) -> Tensor:
        start = values.new_full((self.n_structures,), torch.inf)
        return start.scatter_reduce_(0, self.structure, values, "amin")

    def _two_largest(self, values: Tensor) -> Tensor:
        zero = values.new_zeros(self.n_structures)
        first = zero.scatter_reduce(0, self.structure, values, "amax")
        is_first = values == first.index_select(0, self.structure)
        rest = torch.where(is_first, 0.0, values)
        second = zero.scatter_reduce(0, self.structure, rest, "amax")
        how_many = zero.index_add(0, self.structure, is_first.to(values.dtype))
        return torch.stack([first, torch.where(how_many > 1, first, second)], dim=1)

    def set_layout(self, layout: Layout) -> None:
        """Set the layout; shapes do not change until the next call."""
        self._slots = _Slots(layout, self.device, self._width, self.n_nodes)

    @property
    def layout(self) -> Layout | None:
        """The layout in use."""
        return self._slots.layout if self._slots else None

    def overflow(self, measured: Measured) -> Tensor:
        """Number of centres that exceed their room in the layout, a scalar tensor."""
        assert self._slots is not None
        too_many = measured.n_edges > self._slots.k_room
        too_many |= measured.n_angle_edges > self._slots.m_room
        return too_many.sum()

    def arrange(self, measured: Measured) -> Arrangement:
        """Assign candidates to slots: angle-edges first, otherwise in their own order."""
        assert self._slots is not None
        slots, width = self._slots, self._width
        category = 2 - measured.edge.to(torch.int8) - measured.angle_edge.to(torch.int8)
        order = category.argsort(dim=1, stable=True)
        first = slots.atom * width
        candidate = first + order.flatten().index_select(0, first + slots.column)
        mask = slots.number < measured.n_edges.index_select(0, slots.atom)
        angle_atom = slots.atom.index_select(0, slots.angle_slots)
        angle_number = slots.number.index_select(0, slots.angle_slots)
        angle_mask = angle_number < measured.n_angle_edges.index_select(0, angle_atom)
        neighbour = self._neighbour.flatten().index_select(0, candidate)
        edge_j = torch.where(mask, slots.row_of.index_select(0, neighbour), slots.edge_i)
        incoming_j, incoming = edge_j.sort(stable=True)
        rows = torch.arange(self.n_nodes, device=self.device)
        starts = torch.searchsorted(incoming_j, rows)
        return Arrangement(candidate, mask, angle_mask, edge_j, incoming, starts)

    def graph(self, measured: Measured, arrangement: Arrangement) -> BlockGraph:
        """The input of the layers."""
        assert self._slots is not None
        slots = self._slots
        vectors = measured.vectors.flatten(0, 1).index_select(0, arrangement.candidate)
        vectors = torch.where(arrangement.mask.unsqueeze(1), vectors, slots.dummy)
        return BlockGraph(
            layout=slots.layout,
            n_structures=self.n_structures,
            types=self.types.index_select(0, slots.node_order),
            structure=self._structures.index_select(0, slots.node_order),
            edge_i=slots.edge_i,
            edge_j=arrangement.edge_j,
            vectors=vectors,
            edge_mask=arrangement.mask,
            angle_slots=slots.angle_slots,
            angle_edge_mask=arrangement.angle_mask,
            incoming=arrangement.incoming,
            incoming_start=arrangement.incoming_start,
            fparam=self.fparam,
            aparam=self._aparam.index_select(0, slots.order),
            charge_spin=self.charge_spin,
        )

    def sum_structures(self, rows: Tensor) -> Tensor:
        """Sum block rows ``(n_atoms, width)`` over the atoms of each structure, in their order."""
        total: Tensor = torch.nn.functional.embedding_bag(
            self.row_of, rows, self.structure_starts, mode="sum"
        )
        return total

    def to_atoms(self, rows: Tensor) -> Tensor:
        """Reorder from block rows to the order of the atoms."""
        return rows.index_select(0, self.row_of)

    @property
    def row_of(self) -> Tensor:
        """Block row of each centre ``(n_atoms,)``, in the order of the atoms."""
        assert self._slots is not None
        return self._slots.row_of[: self.n_atoms]


@dataclass(frozen=True)
class Arrangement:
    """The candidate in each slot (see :class:`BlockGraph` for the last four attributes).

    Attributes:
        candidate: ``(n_slots,)`` flat index of the candidate.
    """

    candidate: Tensor
    mask: Tensor
    angle_mask: Tensor
    edge_j: Tensor
    incoming: Tensor
    incoming_start: Tensor


class _Slots:
    """Index tensors that follow from a layout.

    Attributes:
        order: ``(n_atoms,)`` atom of each row; node_order: ``(n_nodes,)`` the same with the atoms
            that are no centres, which keep their places; row_of: the inverse of that.
        atom, number: ``(n_edges,)`` centre of a slot and its number within the centre;
            column: the number, where it exists among the candidates.
        edge_i: ``(n_edges,)`` row of the centre.
        angle_slots: ``(n_angle_edges,)`` edge slots with room for an angle-edge.
        k_room, m_room: ``(n_atoms,)`` room of each atom.
        dummy: ``(1, 3)`` vector of empty slots.
    """

    def __init__(self, layout: Layout, device: torch.device, width: int, n_nodes: int) -> None:
        self.layout = layout
        n_rows = len(layout.order)
        k_room, m_room = np.zeros(n_rows, dtype=np.int64), np.zeros(n_rows, dtype=np.int64)
        for block in layout.blocks:
            k_room[block.rows], m_room[block.rows] = block.k_room, block.m_room
        rows = np.repeat(np.arange(n_rows), k_room)
        number = np.arange(len(rows)) - (np.cumsum(k_room) - k_room)[rows]
        node_order = np.concatenate([layout.order, np.arange(n_rows, n_nodes)])
        row_of = np.empty(n_nodes, dtype=np.int64)
        row_of[node_order] = np.arange(n_nodes)

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        self.order, self.node_order = tensor(layout.order), tensor(node_order)
        self.row_of = tensor(row_of)
        self.edge_i, self.number = tensor(rows), tensor(number)
        self.atom = tensor(layout.order[rows])
        self.column = tensor(np.minimum(number, width - 1))
        self.angle_slots = tensor(np.flatnonzero(number < m_room[rows]))
        rooms = (room[row_of[:n_rows]] for room in (k_room, m_room))
        self.k_room, self.m_room = map(tensor, rooms)
        self.dummy = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64, device=device)


def _row_times(rows: Tensor, matrices: Tensor) -> Tensor:
    """``(n, 3)`` rows, each times its own ``(3, 3)`` matrix."""
    return (rows.unsqueeze(1) @ matrices).squeeze(1)
