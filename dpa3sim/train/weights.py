"""The weights of a training: those that all tasks share, and those of each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from dpa3sim.model.config import ModelConfig
from dpa3sim.model.network import Network
from dpa3sim.model.weights import Weights, is_trained
from dpa3sim.train.adapters import LowRank

# Of each task in any case, and not trained.
_OWN = ("out_bias", "fitting_net.bias_atom_e", "fitting_net.case_embd")


class TaskWeights:
    """The tensors of a network that computes several tasks, one at a time.

    Tensors of one task have its name and a colon before theirs.

    Args:
        network: the network. tasks: their names.
        separate: whether each task has its own fitting net.
        start: first values of every task; those of shared tensors are the same in all.
        frozen: beginnings of names of tensors that are not trained.
        low_rank: what stands for trained matrices, if only changes of low rank are trained.

    Attributes:
        trained: what training changes, by name; fixed: the rest.
    """

    def __init__(
        self,
        network: Network,
        tasks: Sequence[str],
        separate: bool,
        start: Mapping[str, Weights],
        frozen: Sequence[str] = (),
        low_rank: LowRank | None = None,
    ) -> None:
        self._network, self._separate, self._low_rank = network, separate, low_rank
        self.trained: dict[str, Tensor] = {}
        self.fixed: dict[str, Tensor] = {}
        for task in tasks:
            for name, parameter in network.weights.items():
                array = torch.from_numpy(np.array(start[task][name], dtype=np.float64))
                tensor = array.to(parameter.device, parameter.dtype)
                changes = is_trained(name) and not name.startswith(tuple(frozen))
                group = self.trained if changes else self.fixed
                group.setdefault(self.full_name(task, name), tensor)
        if low_rank is not None:
            low_rank.adopt(self.trained, self.fixed)

    def full_name(self, task: str, name: str) -> str:
        """The name of a tensor of the network while it computes a task."""
        own = name in _OWN or (self._separate and name.startswith("fitting_net."))
        return f"{task}:{name}" if own else name

    def select(self, task: str, trained: Mapping[str, Tensor] | None = None) -> None:
        """Let the network compute a task; its evaluator must be refreshed.

        Args:
            task: its name. trained: what stands for :attr:`trained`, such as averages.
        """
        all_tensors = self._all(self.trained if trained is None else trained)
        for name, parameter in self._network.weights.items():
            parameter.data = all_tensors[self.full_name(task, name)]

    def gradients(self, task: str, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradients by the names of :attr:`trained`, from those of the network for a task."""
        named = {self.full_name(task, name): gradient for name, gradient in found.items()}
        if self._low_rank is not None:
            return self._low_rank.gradients(named, self.trained)
        return {name: gradient for name, gradient in named.items() if name in self.trained}

    def _all(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All tensors of the networks of all tasks."""
        folded = trained if self._low_rank is None else self._low_rank.fold(trained)
        return self.fixed | dict(folded)

    def set_bias(self, task: str, bias: np.ndarray) -> None:
        """Set the energies of the types, ``(ntypes,)`` eV."""
        target = self.fixed[self.full_name(task, "out_bias")]
        target.copy_(torch.from_numpy(bias).view_as(target))

    def bias(self, task: str) -> np.ndarray:
        """The energies of the types that :meth:`set_bias` sets, ``(ntypes,)`` eV."""
        found: np.ndarray = self.fixed[self.full_name(task, "out_bias")].cpu().numpy().reshape(-1)
        return found

    def arrays(
        self, task: str, config: ModelConfig, trained: Mapping[str, Tensor]
    ) -> dict[str, np.ndarray]:
        """The model of a task as arrays, rounded to the precisions that its file has.

        Args:
            task: its name. config: of the model.
            trained: :attr:`trained`, or what stands for it.
        """
        found, tensors = {}, self._all(trained)
        for name in self._network.weights:
            array = tensors[self.full_name(task, name)].cpu().numpy()
            if name.startswith("descriptor."):
                array = array.astype(config.descriptor.precision)
            elif is_trained(name):
                array = array.astype(config.fitting.precision).astype(np.float64)
            found[name] = np.array(array)
        return found
