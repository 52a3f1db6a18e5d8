"""The weights of a training: those that all tasks share, and those of each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from dpa3sim.model.config import ModelConfig
from dpa3sim.model.network import Network
from dpa3sim.model.weights import Weights, is_trained

# Of each task in any case, and not trained.
_OWN = ("out_bias", "fitting_net.bias_atom_e", "fitting_net.case_embd")


class TaskWeights:
    """The tensors of a network that computes several tasks, one at a time.

    Tensors of one task have its name and a colon before theirs.

    Args:
        network: the network. tasks: their names.
        separate: whether each task has its own fitting net.
        start: first values of every task; those of shared tensors are the same in all.

    Attributes:
        trained: what training changes, by name; fixed: the rest.
    """

    def __init__(
        self, network: Network, tasks: Sequence[str], separate: bool, start: Mapping[str, Weights]
    ) -> None:
        self._network, self._separate = network, separate
        self.trained: dict[str, Tensor] = {}
        self.fixed: dict[str, Tensor] = {}
        for task in tasks:
            for name, parameter in network.weights.items():
                array = torch.from_numpy(np.array(start[task][name], dtype=np.float64))
                tensor = array.to(parameter.device, parameter.dtype)
                group = self.trained if is_trained(name) else self.fixed
                group.setdefault(self.full_name(task, name), tensor)

    def full_name(self, task: str, name: str) -> str:
        """The name of a tensor of the network while it computes a task."""
        own = name in _OWN or (self._separate and name.startswith("fitting_net."))
        return f"{task}:{name}" if own else name

    def select(self, task: str, trained: Mapping[str, Tensor] | None = None) -> None:
        """Let the network compute a task; its evaluator must be refreshed.

        Args:
            task: its name. trained: what stands for :attr:`trained`, such as averages.
        """
        all_tensors = self.fixed | dict(self.trained if trained is None else trained)
        for name, parameter in self._network.weights.items():
            parameter.data = all_tensors[self.full_name(task, name)]

    def gradients(self, task: str, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of the network for a task, by the names of :attr:`trained`."""
        return {self.full_name(task, name): gradient for name, gradient in found.items()}

    def set_bias(self, task: str, bias: np.ndarray) -> None:
        """Set the energies of the types, ``(ntypes,)`` eV."""
        target = self.fixed[self.full_name(task, "out_bias")]
        target.copy_(torch.from_numpy(bias).view_as(target))

    def arrays(
        self, task: str, config: ModelConfig, trained: Mapping[str, Tensor]
    ) -> dict[str, np.ndarray]:
        """The model of a task as arrays, rounded to the precisions that its file has.

        Args:
            task: its name. config: of the model.
            trained: :attr:`trained`, or what stands for it.
        """
        found, tensors = {}, self.fixed | dict(trained)
        for name in self._network.weights:
            array = tensors[self.full_name(task, name)].cpu().numpy()
            if name.startswith("descriptor."):
                array = array.astype(config.descriptor.precision)
            elif is_trained(name):
                array = array.astype(config.fitting.precision).astype(np.float64)
            found[name] = np.array(array)
        return found
