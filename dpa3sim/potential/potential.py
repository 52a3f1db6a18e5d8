"""The resident model: a batch of structures in, energies, forces and virials out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from dpa3sim.checkpoints import ModelFile
from dpa3sim.checkpoints.reference import references
from dpa3sim.checkpoints.registry import load_model, reference
from dpa3sim.common.errors import Dpa3simError, Dpa3simWarning, InputError, NonFiniteError
from dpa3sim.graph.blocks import BlockGraph, forces_and_virials
from dpa3sim.graph.edges import Edges, Truncation, find_edges
from dpa3sim.graph.lists import Counters
from dpa3sim.graph.reference import GraphBatch, make_batch
from dpa3sim.graph.static import block_graph
from dpa3sim.kernels.api import Matmul
from dpa3sim.kernels.evaluator import MemoryPolicy
from dpa3sim.model.inputs import edge_rules, with_inputs
from dpa3sim.model.network import DTYPES, Network, hessian
from dpa3sim.parallel.scaling import IMBALANCE
from dpa3sim.potential.batches import BatchEvaluator
from dpa3sim.potential.dispersion import Dispersion
from dpa3sim.potential.evaluation import NEW, Ensemble, Evaluation, raise_first
from dpa3sim.potential.judge import Judge
from dpa3sim.potential.settings import (
    RANK_TIMEOUT,
    DispersionName,
    Dtype,
    ModelSettings,
    Truncate,
    number_of_ranks,
)
from dpa3sim.potential.travel import Recipe, Residents, recipe
from dpa3sim.structures.geometry import check_geometry
from dpa3sim.structures.system import AtomsLike, System, as_system
from dpa3sim.uncertainty.rigidity import MEMBERS, OWN, Rigidity

if TYPE_CHECKING:
    from dpa3sim.potential.team import Team, TeamEvaluator

DEFAULT_SKIN = 1.0
MAX_SKIN = 5.0


@dataclass(frozen=True)
class MatmulDeviation:
    """What rounding in products changes, at most, for the built-in reference structures.

    Attributes:
        energy: eV/atom; force: a component, eV/Å.
        structures: how many of them this model can compute.
    """

    energy: float
    force: float
    structures: int

    def __str__(self) -> str:
        if not self.structures:
            return "unknown: this model can compute none of the reference structures"
        return (
            f"{1e3 * self.energy:.2g} meV/atom, {self.force:.2g} eV/Å at most in "
            f"{self.structures} reference structures"
        )


class Potential:
    """A DPA3 model that stays on its device.

    Neighbour lists have a skin, are kept between calls, and are renewed exactly when needed;
    similar structures share them. Several threads may use one potential.

    A deep copy is the potential itself. Pickled, it is the name or path of its model with the
    checksum of that file, and its options; a model that no file holds, such as one whose weights
    were changed, goes along. Unpickled, it finds the equal potential that the process has already,
    or loads the model.

    Args:
        model: registry name, path of a checkpoint, or a loaded model; None is the embedded one.
        head: head of a multi-task checkpoint.
        device: ``"auto"`` (CUDA if it is available), or any device of torch.
        dtype: precision of the descriptor; ``"auto"`` is the checkpoint's own. Energies are
            fitted and summed in float64 always.
        truncate: ``"deepmd"`` applies the model's neighbour limits as deepmd-kit does,
            ``"none"`` keeps every neighbour inside the cutoffs; ``"auto"`` is as the model was
            trained, and ``"deepmd"`` for files that deepmd-kit wrote.
        smooth_cutoff: width, Å, such as 0.3, over which the step of the energy is smoothed in
            models whose energy jumps when a pair of atoms crosses the cutoff of angles. This
            defines another potential, which conserves energy (docs/model.md#smooth-cutoff).
            Neighbours that the limits cut still make it jump, so use it with
            ``truncate="none"``. None keeps the model as it is, 0 switches the smoothing off.
        skin: distance beyond the cutoff within which neighbours are listed, Å; 0 searches at
            every step.
        max_memory: memory that evaluations may use, GiB; None is the free memory less a margin.
        matmul: how the products of edges and angles round their inputs, on GPUs with the Triton
            programs and in float32: ``"full"`` not at all, ``"tf32"`` to 10 and ``"bf16"`` to 7
            bits. Faster, but see :attr:`matmul_deviation`.
        uncertainty: file that ``dpa3sim uncertainty fit`` made for this model, or what is in it,
            or ``"model"``: what the file of the model says; evaluations then have an uncertainty.
            None for none.
        dispersion: ``"d3"`` adds the dispersion D3(BJ) for the functional that the model was
            trained to (docs/dispersion.md), ``"none"`` adds nothing.
        ranks: processes that share the work, this one among them: a number that are started on
            this machine, each with its own part of the cores or its own GPU, or ``"env"`` for
            those of torchrun or srun, of which the first goes on and the others end with
            SystemExit when it ends (docs/parallel.md). Or the team of another potential.
        rank_timeout: how long one of them is waited for, s.

    Attributes:
        model: the model in use.
        device, dtype: where and in which precision it computes.
        counters: the work done so far.
        network: the readable definition of the model, differentiable, with its weights.
        rules: cutoffs and limits of neighbours.
        batcher: evaluates batches; holds kernels, sessions and the memory model.
        rigidity: what uncertainties are made from; None without.
        dispersion: what is added to the model; None without.

    Raises:
        CheckpointError: the model cannot be read. InputError: a bad argument.
    """

    def __init__(
        self,
        model: str | Path | ModelFile | None = None,
        *,
        head: str | None = None,
        device: str | torch.device = "auto",
        dtype: Dtype = "auto",
        truncate: Truncate = "auto",
        smooth_cutoff: float | None = None,
        skin: float = DEFAULT_SKIN,
        max_memory: float | None = None,
        matmul: Matmul = "full",
        uncertainty: str | Path | Rigidity | None = None,
        dispersion: DispersionName = "none",
        ranks: int | str | Team = 1,
        rank_timeout: float = RANK_TIMEOUT,
    ) -> None:
        ModelSettings(
            head=head, dtype=dtype, matmul=matmul, truncate=truncate, dispersion=dispersion
        )
        if not 0 <= skin <= MAX_SKIN:
            raise InputError(f"skin {skin!r} must be between 0 and {MAX_SKIN:g} Å")
        if max_memory is not None and not max_memory > 0:
            raise InputError(f"max_memory {max_memory!r} must be positive (GiB)")
        if isinstance(model, ModelFile) and head not in (None, model.head):
            raise InputError(f"head {head!r} asked for, but the model is loaded with {model.head}")
        self.model = model if isinstance(model, ModelFile) else load_model(model, head)
        if smooth_cutoff is not None:
            self.model = self.model.smoothed(smooth_cutoff)
        self._wanted_device = str(device)
        self.dispersion = Dispersion(dispersion, self.model) if dispersion != "none" else None
        self.device = resolve_device(device)
        config = self.model.config
        self.dtype: Dtype = config.descriptor.precision if dtype == "auto" else dtype
        self.truncate: Truncation = self.model.truncate if truncate == "auto" else truncate
        self.counters = Counters()
        self.rules = edge_rules(config, self.truncate)
        self.network = Network(config, self.model.weights, self.device, DTYPES[self.dtype])
        self._rank_timeout = rank_timeout
        self._team = self._team_of(ranks)
        self._untrained = set(self.model.untrained_types)
        self._warned: set[str] = set()
        self.matmul: Matmul = matmul
        if matmul != "full" and self.dtype != "float32":
            raise InputError(f"matmul={matmul!r} is for float32, not for {self.dtype}")
        if uncertainty is not None and not isinstance(uncertainty, Rigidity):
            own = str(uncertainty) == OWN
            uncertainty = Rigidity.of(self.model) if own else Rigidity.load(Path(uncertainty))
        self.rigidity = uncertainty
        judge = None
        if self.rigidity is not None:
            self.rigidity.check(self.model)
            judge = Judge(self.rigidity, self.device)
        self.batcher = BatchEvaluator(
            *(self.network, self.rules, skin, max_memory, self._memory_key),
            *(self.counters, matmul, judge, 1 if self._team is None else self._team.sharers),
        )
        self._skin, self._max_memory = skin, max_memory
        if matmul != "full" and self.kernels != "triton":
            raise InputError(
                f"matmul={matmul!r} needs the Triton programs, which do not run on {self.device}: "
                f"{self.kernels_reason}. Use matmul='full'"
            )
        self._others: dict[str, Potential] = {}  # the same model in other precisions
        self._lock = RLock()
        self._shared: TeamEvaluator | None = None
        if self._team is not None:
            from dpa3sim.potential.team import ModelOptions, TeamEvaluator

            options = ModelOptions(
                *(self.dtype, self.truncate, skin, max_memory, matmul, self._memory_key)
            )
            self._shared = TeamEvaluator(self._team, self.batcher, options, self.rigidity)

    def _team_of(self, ranks: int | str | Team) -> Team | None:
        """The other processes; None if this one is alone."""
        if not self._rank_timeout > 0:
            raise InputError(f"rank_timeout {self._rank_timeout!r} must be positive (s)")
        if not isinstance(ranks, int | float | str):
            return ranks
        number = number_of_ranks(ranks)
        if number == 1:
            return None
        from dpa3sim.potential.team import Team  # imports what one process does not need

        return Team(self.model, number, self.device, self._rank_timeout)

    @property
    def ranks(self) -> int:
        """How many processes share the work."""
        return 1 if self._team is None else self._team.size

    @property
    def history_matters(self) -> bool:
        """Whether the last bits of results depend on what was evaluated before."""
        return self.device.type != "cpu" or self._shared is not None

    @property
    def shared(self) -> TeamEvaluator | None:
        """What evaluates on several processes; None if there is only this one."""
        return self._shared

    def close(self) -> None:
        """End the other processes, if there are any; nothing can be evaluated afterwards."""
        if self._team is not None:
            self._team.close()

    def __enter__(self) -> Potential:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """This potential: copies share the model."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it; see the class.

        Raises:
            InputError: several processes share its work.
        """
        if self._team is not None:
            raise InputError(
                f"a potential on {self.ranks} ranks cannot be sent to other processes, each of "
                "which would start as many: send one with ranks=1"
            )
        _residents.add(self._recipe.key, self)
        return _restored, (self._recipe,)

    @cached_property
    def _recipe(self) -> Recipe:
        """What makes it again."""
        settings = replace(self.settings, device=self._wanted_device, uncertainty=None)
        return recipe(self.model, settings, self.rigidity, self._skin, self._max_memory)

    @classmethod
    def load(
        cls,
        settings: ModelSettings,
        model: str | Path | ModelFile | None = None,
        uncertainty: str | Path | Rigidity | None = None,
    ) -> Potential:
        """The model that the settings describe, or another one with their other options.

        Raises:
            CheckpointError: the model cannot be read. InputError: a bad argument.
        """
        given = {"model": model, "uncertainty": uncertainty}
        return cls(**(asdict(settings) | {k: v for k, v in given.items() if v is not None}))

    @property
    def kernels(self) -> str:
        """The kernels in use: ``"triton"``, a build of the compiled kernels, or ``"torch"``."""
        return self.batcher.selection.kernels

    @property
    def kernels_reason(self) -> str:
        """The reason why these kernels are used."""
        return self.batcher.selection.reason

    @cached_property
    def matmul_deviation(self) -> MatmulDeviation | None:
        """The change of results by ``matmul``, against ``"full"``; measured at the first use."""
        if self.matmul == "full":
            return None
        systems = []
        for known in references():
            try:
                systems.append(self.system(known.atoms))
            except InputError:  # an element that this model does not know, or an input is missing
                continue
        # Evaluators of their own: neither lists nor counters nor warnings of the user are touched.
        arguments = self.network, self.rules, 0.0, None, self._memory_key
        rounded, full = (
            raise_first(BatchEvaluator(*arguments, Counters(), matmul).evaluate(systems))
            for matmul in (self.matmul, "full")
        )
        energy = force = 0.0
        for a, b in zip(rounded, full, strict=True):
            energy = max(energy, abs(a.energy - b.energy) / len(a.energies))
            force = max(force, float(np.abs(a.forces - b.forces).max()))
        return MatmulDeviation(energy, force, len(systems))

    @property
    def smooth_cutoff(self) -> float | None:
        """Width over which the step at the cutoff of angles is smoothed, Å; None if it is not."""
        return self.model.config.descriptor.smooth_cutoff

    @property
    def settings(self) -> ModelSettings:
        """The options that load this model again, here or in another process.

        An uncertainty that was not read from a file is left out.
        """
        path = None if self.rigidity is None else self.rigidity.path
        return ModelSettings(
            model=str(reference(self.model)),
            head=self.model.head,
            device=str(self.device),
            dtype=self.dtype,
            matmul=self.matmul,
            truncate=self.truncate,
            smooth_cutoff=self.smooth_cutoff,
            uncertainty=None if path is None else str(path),
            dispersion=self._dispersion_name,
            ranks=str(self.ranks),
            rank_timeout=self._rank_timeout,
        )

    @property
    def batches(self) -> int:
        """How many batches were evaluated so far."""
        return self.counters.batches

    @property
    def identity(self) -> str:
        """A text that distinguishes results of this potential from those of others."""
        smoothed = "" if self.smooth_cutoff is None else f" smooth_cutoff={self.smooth_cutoff!r}"
        judged = "" if self.rigidity is None else f" uncertainty={self.rigidity.identity}"
        added = "" if self.dispersion is None else f" dispersion={self.dispersion.identity}"
        return f"{self._memory_key} {self.truncate} {self.matmul}{smoothed}{judged}{added}"

    @property
    def _dispersion_name(self) -> DispersionName:
        return "none" if self.dispersion is None else self.dispersion.name

    @property
    def _memory_key(self) -> str:
        """What tells the memory that this potential needs from that of others."""
        return f"{self.model.sha256} {self.model.head} {self.dtype}"

    def __repr__(self) -> str:
        head = f", head {self.model.head}" if self.model.head else ""
        matmul = "" if self.matmul == "full" else f", {self.matmul} products"
        width = self.smooth_cutoff
        smoothed = "" if width is None else f", cutoff smoothed over {width:g} Å"
        added = "" if self.dispersion is None else f" + {self.dispersion}"
        where = f"{self.device}" if self._team is None else f"{self.ranks} ranks of {self.device}"
        return f"{self.model.name}{head}{smoothed}{added}; {self.dtype}{matmul} on {where}"

    def evaluate(self, structures: Sequence[AtomsLike | System]) -> list[Evaluation]:
        """Evaluate any mix of structures, as few batches as memory allows.

        Raises:
            InputError: a structure that cannot be computed, named by its index.
            NonFiniteError: the model's answer is not finite.
            OutOfMemoryError: one structure alone is too large.
        """
        return raise_first(self.evaluate_each(structures))

    def evaluate_each(
        self, structures: Sequence[AtomsLike | System]
    ) -> list[Evaluation | Dpa3simError]:
        """Like :meth:`evaluate`, with the error of a bad structure in place of its result."""
        inputs: dict[int, System] = {}
        results: dict[int, Evaluation | Dpa3simError] = {}
        for index, structure in enumerate(structures):
            try:
                inputs[index] = self.system(structure)
            except InputError as error:
                results[index] = error
        outputs = self._with_dispersion(list(inputs.values()))
        for (index, system), output in zip(inputs.items(), outputs, strict=True):
            results[index] = self._judged(system, output)
        return [results[index] for index in range(len(structures))]

    def _by_model(self, systems: list[System]) -> Sequence[Evaluation | Dpa3simError]:
        with self._lock:
            return (self._shared or self.batcher).evaluate(systems)

    def _with_dispersion(self, systems: list[System]) -> Sequence[Evaluation | Dpa3simError]:
        """What the model says, and the dispersion that was asked for added to it."""
        added = self.dispersion
        if added is None:
            return self._by_model(systems)
        if self.device.type == "cpu":  # the model needs all of its cores
            outputs, corrections = self._by_model(systems), added.evaluate(systems)
        else:
            with ThreadPoolExecutor(1) as beside:
                pending = beside.submit(added.evaluate, systems)
                outputs = self._by_model(systems)
                corrections = pending.result()
        return [added.to(x, y) for x, y in zip(outputs, corrections, strict=True)]

    def forget(self) -> None:
        """Drop the kept neighbour lists and layouts.

        On a GPU the last bits of results depend on the history of the layouts, and with several
        ranks on that of the owners of atoms: after this they are those of a fresh start. On one
        CPU they never depend on it.
        """
        with self._lock:
            (self._shared or self.batcher).forget()
            self._others.clear()

    def in_precision(self, dtype: Dtype) -> Potential:
        """The same model in this precision, made once; ``"auto"`` is the one it has."""
        if dtype in ("auto", self.dtype):
            return self
        with self._lock:
            if dtype not in self._others:
                self._others[dtype] = self._like(dtype, self.rigidity)
            return self._others[dtype]

    def with_uncertainty(self, rigidity: Rigidity) -> Potential:
        """A potential with the same model, and this uncertainty.

        Raises:
            InputError: it is that of another model.
        """
        return self._like(self.dtype, rigidity)

    def _like(self, dtype: Dtype, rigidity: Rigidity | None) -> Potential:
        """The same model in another precision, or with another uncertainty."""
        return Potential(
            self.model,
            device=self._wanted_device,
            dtype=dtype,
            truncate=self.truncate,
            skin=self._skin,
            max_memory=self._max_memory,
            matmul=self.matmul if dtype == "float32" else "full",
            uncertainty=rigidity,
            dispersion=self._dispersion_name,
            ranks=1 if self._team is None else self._team,
            rank_timeout=self._rank_timeout,
        )

    def check(self, structure: AtomsLike | System) -> None:
        """Raise InputError if ``structure`` cannot be evaluated; cheap, the network is not run."""
        self.edges(structure)

    def neighbours(self, structure: AtomsLike | System) -> tuple[np.ndarray, np.ndarray]:
        """How many edges and angle-edges each atom has, ``(n_atoms,)`` both; cheap, as `check`.

        Raises:
            InputError: a structure that cannot be computed.
        """
        edges = self.edges(structure)
        n_atoms = len(edges.n_angle_edges)
        return np.bincount(edges.i, minlength=n_atoms), edges.n_angle_edges

    def memory_needed(self, n_edges: np.ndarray, n_angle_edges: np.ndarray) -> tuple[int, bool]:
        """Bytes that a batch of atoms with so many neighbours takes, and whether there are so many.

        Of a structure that several ranks share, those of one of them.

        Args:
            n_edges, n_angle_edges: ``(n_atoms,)``, see :meth:`neighbours`.
        """
        if self._shared is not None and len(n_edges):
            together = self._shared.sharing([len(n_edges)]).together
            if together:  # of the fullest rank
                size = math.ceil(IMBALANCE * len(n_edges) / together[0][1])
                n_edges, n_angle_edges = n_edges[:size], n_angle_edges[:size]
        with self._lock:
            return self.batcher.memory.needed(n_edges, n_angle_edges)

    def batch_sizes(self, sizes: Sequence[int]) -> list[int]:
        """Atoms of the batches that structures of so many atoms are evaluated in, memory aside."""
        return self.batcher.batch_sizes(sizes)

    def hessian(
        self, structure: AtomsLike | System, atoms: Sequence[int] | None = None
    ) -> np.ndarray:
        """Second derivatives d2E/dx_i dx_j, ``(3n, 3n)``, eV/Å^2, always in float64.

        Analytic: the readable network is differentiated twice, once per coordinate, so that
        time and memory limit this to some tens of atoms. Where the energy is not smooth
        (docs/model.md#traps) it is the curvature on this side of the step.

        Args:
            structure: any structure.
            atoms: those k whose rows, ``(3k, 3n)``, are wanted; None is all.

        Raises:
            InputError: a structure that cannot be computed.
        """
        system = as_system(structure)
        rows = range(len(system)) if atoms is None else atoms
        batch = self.graph([system])
        network = self.network
        if self.dtype != "float64":
            network = Network(self.model.config, self.model.weights, self.device, torch.float64)
        with self._lock:
            matrix = hessian(network, batch, rows)
        return matrix if self.dispersion is None else matrix + self.dispersion.hessian(system, rows)

    def features(self, structures: Sequence[AtomsLike | System]) -> list[np.ndarray]:
        """What the last layer of the fitting net reads of every atom, ``(n, width)`` float64 each.

        The energy of an atom is a linear function of it. Structures that look alike to the model
        have alike features.

        Raises:
            InputError: a structure that cannot be computed.
            OutOfMemoryError: one structure alone is too large.
        """
        found = []
        for structure in structures:
            graph, policy = self._still(self.system(structure))
            with self._lock:
                rows = self.batcher.evaluator.features(graph, policy)
            found.append(_in_order(rows, graph))
        return found

    def changes(
        self, structures: Sequence[AtomsLike | System], directions: np.ndarray
    ) -> list[Ensemble]:
        """By how much changes of the last layer's matrix change the results of each structure.

        Energies are linear in that matrix, and so are forces and virials. The model runs once
        forwards, and once backwards for each of the directions.

        Args:
            structures: any. directions: ``(width, n_directions)``.

        Raises:
            InputError: a structure that cannot be computed.
            OutOfMemoryError: one structure alone is too large.
        """
        columns = torch.from_numpy(np.ascontiguousarray(directions)).to(self.device)
        found = []
        for structure in structures:
            graph, policy = self._still(self.system(structure))
            energies, forces, virials = [], [], []
            with self._lock:
                for energy, gradient in self.batcher.evaluator.changes(graph, policy, columns):
                    force, virial = forces_and_virials(gradient, graph)
                    energies.append(float(energy.sum()))
                    forces.append(_in_order(force, graph))
                    virials.append(virial.sum(dim=0).cpu().numpy())
            found.append(Ensemble(np.array(energies), np.array(forces), np.array(virials)))
        return found

    def ensemble(
        self, structures: Sequence[AtomsLike | System], members: int = MEMBERS, seed: int = 0
    ) -> list[Ensemble]:
        """What models with other last layers say, which scatter as the uncertainty of energies.

        Their mean is what :meth:`evaluate` says.

        Args:
            structures: any. members: how many models. seed: of their random numbers.

        Raises:
            InputError: there is no uncertainty, or none of energies; or a bad structure.
        """
        rigidity = self._judged_by()
        directions = rigidity.energy_scale * rigidity.directions(members, seed)
        pairs = zip(self.evaluate(structures), self.changes(structures, directions), strict=True)
        return [
            Ensemble(out.energy + x.energies, out.forces + x.forces, out.virial + x.virials)
            for out, x in pairs
        ]

    def forces_uncertainty(
        self, structures: Sequence[AtomsLike | System], members: int = MEMBERS, seed: int = 0
    ) -> list[np.ndarray]:
        """Standard deviations of the forces of each structure, ``(n, 3)``, eV/Å.

        They are estimated from members; each of them takes some 60 % of an evaluation.

        Args:
            structures: any. members: how many models. seed: of their random numbers.

        Raises:
            InputError: there is no uncertainty, or none of forces; or a bad structure.
        """
        rigidity = self._judged_by()
        directions = rigidity.force_scale * rigidity.directions(members, seed)
        return [x.forces.std(axis=0, ddof=1) for x in self.changes(structures, directions)]

    def _judged_by(self) -> Rigidity:
        if self.rigidity is None:
            raise InputError(f"{self!r} has no uncertainty: give a file of 'dpa3sim uncertainty'")
        return self.rigidity

    def _still(self, system: System) -> tuple[BlockGraph, MemoryPolicy]:
        """The graph of a system with inputs by a fresh search, and how to evaluate it."""
        memory = self.batcher.memory
        graph = block_graph(
            [system],
            [self._edges(system)],
            memory.limits(False),
            self.model.config.descriptor.update_angle,
            self.device,
        )
        return graph, memory.possible_policy(graph.layout, "use a smaller cell")

    def graph(self, structures: Sequence[AtomsLike | System]) -> GraphBatch:
        """The graph of a fresh search, without skin, on which :attr:`network` runs.

        Raises:
            InputError: a structure that cannot be computed.
        """
        systems = [self.system(structure) for structure in structures]
        return make_batch(systems, [self._edges(x) for x in systems], self.device)

    def edges(self, structure: AtomsLike | System) -> Edges:
        """The edges of a structure by a fresh search, without skin.

        Raises:
            InputError: a structure that cannot be computed.
        """
        return self._edges(self._given(structure))

    def _edges(self, x: System) -> Edges:
        """The edges of a system with inputs, whose geometry the search checks."""
        return find_edges(x.positions, x.cell, x.pbc, x.types, self.rules)

    def system(self, structure: AtomsLike | System) -> System:
        """The structure with the types and extra inputs that the model takes, checked.

        Raises:
            InputError: a structure that cannot be computed; overlaps of atoms are found later.
        """
        system = self._given(structure)
        check_geometry(system.positions, system.cell, system.pbc)
        return system

    def _given(self, structure: AtomsLike | System) -> System:
        """The structure with types and extra inputs, its elements checked."""
        system = with_inputs(as_system(structure), self.model.config)
        if self.dispersion is not None:
            self.dispersion.check(system.numbers)
        return system

    def _judged(
        self, system: System, output: Evaluation | Dpa3simError
    ) -> Evaluation | Dpa3simError:
        """The evaluation with its warnings, if it is finite."""
        if isinstance(output, Dpa3simError):
            return output
        if not (np.isfinite(output.energy) and np.isfinite(output.forces).all()):
            return NonFiniteError("the model returned a value that is not finite")
        messages = self._reservations(system.types, output)
        return replace(output, warnings=messages) if messages else output

    def _reservations(self, types: np.ndarray, output: Evaluation) -> tuple[str, ...]:
        """Reasons to doubt a result: untrained elements, cut neighbours. Warns of each once."""
        messages = [] if self.dispersion is None else [*self.dispersion.warnings]
        symbols = {self.model.config.type_map[t] for t in np.unique(types)}
        unseen = ", ".join(sorted(symbols & self._untrained))
        if unseen:
            messages.append(f"model {self.model.name} never saw {unseen} in training")
        descriptor = self.model.config.descriptor
        if output.n_cut_edges or output.n_cut_angle_edges:
            messages.append(
                f"neighbours beyond the model's selection limit are ignored (the nearest "
                f"{descriptor.e_sel} within {descriptor.e_rcut:g} Å, {descriptor.a_sel} within "
                f"{descriptor.a_rcut:g} Å count), as deepmd-kit does; equal distances are cut "
                "arbitrarily there. truncate='none' keeps them all"
            )
            if self.smooth_cutoff is not None:
                messages[-1] += ", without which the energy still jumps, smooth_cutoff or not"
        if output.uncertainty is not None and output.uncertainty.novelty > NEW:
            messages.append(
                f"atoms are in surroundings unlike those that the uncertainty was fitted to (their "
                f"novelty is above {NEW:g}): the result is an extrapolation"
            )
        for message in messages:
            if message not in self._warned:
                self._warned.add(message)
                warnings.warn(message, Dpa3simWarning, stacklevel=5)
        return tuple(messages)


_residents: Residents[Potential] = Residents()


def _restored(recipe: Recipe) -> Potential:
    """The potential of a recipe; the one that is here already, if there is one."""

    def make() -> Potential:
        own = {
            "model": recipe.load(),
            "uncertainty": recipe.rigidity,
            "skin": recipe.skin,
            "max_memory": recipe.max_memory,
        }
        return Potential(**(asdict(recipe.settings) | own))

    return _residents.find(recipe.key, make)


def _in_order(rows: torch.Tensor, graph: BlockGraph) -> np.ndarray:
    """Rows of a graph's centres in the order of the atoms."""
    values = rows.cpu().numpy()
    found = np.empty_like(values)
    found[graph.layout.order] = values
    return found


def resolve_device(device: str | torch.device) -> torch.device:
    """The device of a name; ``auto`` is CUDA where there is one.

    Raises:
        InputError: it cannot be used.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise InputError(
            f"device {device!r} is not a device of torch, such as auto, cpu, cuda, cuda:1"
        ) from None
    try:
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {device!r} cannot be used: {reason}") from None
    return resolved
