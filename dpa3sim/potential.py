"""The resident model: a batch of structures in, energies, forces and virials out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from dpa3sim.checkpoints import ModelFile
from dpa3sim.checkpoints.registry import load_model
from dpa3sim.errors import Dpa3simWarning, InputError, NonFiniteError
from dpa3sim.graph.batch import GraphBatch, GraphInput, make_batch
from dpa3sim.graph.edges import EdgeRules, Truncation, find_edges
from dpa3sim.model.network import DTYPES, Network
from dpa3sim.structure import AtomsLike, Structure, extra_inputs, type_indices

Dtype = Literal["auto", "float32", "float64"]


@dataclass(frozen=True)
class Evaluation:
    """What the model says of one structure.

    Attributes:
        energy: total energy, eV.
        energies: ``(n,)`` atomic energies, eV; they add up to ``energy``.
        forces: ``(n, 3)``, eV/Å.
        virial: ``(3, 3)``, -dE/dstrain, eV (spec 1.7).
        n_edges, n_angles: size of the graph.
        n_cut_edges, n_cut_angle_edges: neighbours dropped by the model's selection limits.
        warnings: what limits this result.
    """

    energy: float
    energies: np.ndarray
    forces: np.ndarray
    virial: np.ndarray
    n_edges: int
    n_angles: int
    n_cut_edges: int
    n_cut_angle_edges: int
    warnings: tuple[str, ...] = ()


class Potential:
    """A DPA3 model that stays on its device.

    Args:
        model: registry name, path of a checkpoint, or a loaded model; None is the embedded one.
        head: head of a multi-task checkpoint.
        device: ``"auto"`` (CUDA where there is one), or anything torch accepts.
        dtype: precision of the descriptor; ``"auto"`` is the checkpoint's own. Energies are
            fitted and summed in float64 always.
        truncate: ``"deepmd"`` applies the model's neighbour limits as deepmd-kit does,
            ``"none"`` keeps every neighbour inside the cutoffs.

    Raises:
        CheckpointError: the model cannot be read. InputError: bad device, dtype or truncate.
    """

    def __init__(
        self,
        model: str | Path | ModelFile | None = None,
        *,
        head: str | None = None,
        device: str | torch.device = "auto",
        dtype: Dtype = "auto",
        truncate: Truncation = "deepmd",
    ) -> None:
        if dtype not in get_args(Dtype):
            raise InputError(f"dtype {dtype!r} is not one of {', '.join(get_args(Dtype))}")
        if truncate not in get_args(Truncation):
            raise InputError(f"truncate {truncate!r} is not one of 'deepmd', 'none'")
        if isinstance(model, ModelFile) and head not in (None, model.head):
            raise InputError(f"head {head!r} asked for, but the model is loaded with {model.head}")
        self.model = model if isinstance(model, ModelFile) else load_model(model, head)
        self.device = _resolve_device(device)
        config = self.model.config
        self.dtype = config.descriptor.precision if dtype == "auto" else dtype
        self.truncate: Truncation = truncate
        self._rules = EdgeRules(
            e_rcut=config.descriptor.e_rcut,
            a_rcut=config.descriptor.a_rcut,
            e_sel=config.descriptor.e_sel,
            a_sel=config.descriptor.a_sel,
            excluded_pairs=config.excluded_pairs,
            truncate=truncate,
        )
        self._network = Network(config, self.model.weights, self.device, DTYPES[self.dtype])
        self._untrained = set(self.model.untrained_types)
        self._warned: set[str] = set()

    def __repr__(self) -> str:
        head = f", head {self.model.head}" if self.model.head else ""
        return f"{self.model.name}{head}; {self.dtype} on {self.device}"

    def evaluate(self, structures: Sequence[AtomsLike | Structure]) -> list[Evaluation]:
        """Evaluate any mix of structures as one batch.

        Raises:
            InputError: a structure that cannot be computed, named by its index.
            NonFiniteError: the model's answer is not finite.
        """
        if not structures:
            return []
        inputs = []
        for index, structure in enumerate(structures):
            try:
                inputs.append(self._graph_input(structure))
            except InputError as error:
                if len(structures) == 1:
                    raise
                raise InputError(f"structure {index}: {error}") from None
        batch = make_batch(inputs, self.device)
        energies, gradient = self._differentiate(batch)
        return self._collect(inputs, batch, energies, gradient)

    def check(self, structure: AtomsLike | Structure) -> None:
        """Raise InputError if ``structure`` cannot be evaluated; cheap, the network is not run."""
        self._graph_input(structure)

    def _graph_input(self, structure: AtomsLike | Structure) -> GraphInput:
        if not isinstance(structure, Structure):
            structure = Structure.from_atoms(structure)
        types = type_indices(structure, self.model.config)
        fparam, aparam, charge_spin = extra_inputs(structure, self.model.config)
        edges = find_edges(structure.positions, structure.cell, structure.pbc, types, self._rules)
        vectors = edges.vectors(structure.positions, structure.cell)
        return GraphInput(types, vectors, edges, fparam, aparam, charge_spin)

    def _differentiate(self, batch: GraphBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Atomic energies ``(n_atoms,)`` and dE/dd_ij ``(n_edges, 3)``, float64."""
        vectors = batch.vectors.requires_grad_(True)
        with torch.enable_grad():
            energies = self._network.atomic_energies(batch, vectors)
            total = energies.sum()
            if not total.requires_grad:  # no edge reaches the energy: isolated atoms
                return energies, torch.zeros_like(vectors)
            (gradient,) = torch.autograd.grad(total, vectors, allow_unused=True)
        return energies.detach(), torch.zeros_like(vectors) if gradient is None else gradient

    def _collect(
        self,
        inputs: list[GraphInput],
        batch: GraphBatch,
        energies: torch.Tensor,
        gradient: torch.Tensor,
    ) -> list[Evaluation]:
        """Forces and virials from the edge gradients, split by structure (spec 1.7)."""
        forces = gradient.new_zeros((batch.n_atoms, 3))
        forces.index_add_(0, batch.edge_i, gradient)
        forces.index_add_(0, batch.edge_j, gradient, alpha=-1)
        per_edge = -(gradient.unsqueeze(2) * batch.vectors.detach().unsqueeze(1))
        virials = gradient.new_zeros((batch.n_structures, 3, 3))
        virials.index_add_(0, batch.structure[batch.edge_i], per_edge)
        energies_np, forces_np = energies.cpu().numpy(), forces.cpu().numpy()
        virials_np = virials.cpu().numpy()

        results, start = [], 0
        for index, item in enumerate(inputs):
            atoms = slice(start, start + len(item.types))
            start = atoms.stop
            result = Evaluation(
                energy=float(energies_np[atoms].sum()),
                energies=energies_np[atoms].copy(),
                forces=forces_np[atoms].copy(),
                virial=virials_np[index].copy(),
                n_edges=len(item.edges.i),
                n_angles=int((item.edges.n_angle_edges**2).sum()),
                n_cut_edges=item.edges.n_cut_edges,
                n_cut_angle_edges=item.edges.n_cut_angle_edges,
                warnings=self._limits(item),
            )
            if not (np.isfinite(result.energy) and np.isfinite(result.forces).all()):
                raise NonFiniteError(
                    f"structure {index}: the model returned a value that is not finite"
                )
            results.append(result)
        return results

    def _limits(self, item: GraphInput) -> tuple[str, ...]:
        """What limits a result: elements never trained, neighbours cut. Warns of each once."""
        messages = []
        symbols = {self.model.config.type_map[t] for t in np.unique(item.types)}
        unseen = ", ".join(sorted(symbols & self._untrained))
        if unseen:
            messages.append(f"model {self.model.name} never saw {unseen} in training")
        descriptor = self.model.config.descriptor
        if item.edges.n_cut_edges or item.edges.n_cut_angle_edges:
            messages.append(
                f"neighbours beyond the model's selection limit are ignored (the nearest "
                f"{descriptor.e_sel} within {descriptor.e_rcut:g} Å, {descriptor.a_sel} within "
                f"{descriptor.a_rcut:g} Å count), as deepmd-kit does; equal distances are cut "
                "arbitrarily there. truncate='none' keeps them all"
            )
        for message in messages:
            if message not in self._warned:
                self._warned.add(message)
                warnings.warn(message, Dpa3simWarning, stacklevel=4)
        return tuple(messages)


def _resolve_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {device!r} cannot be used: {reason}") from None
    return resolved
