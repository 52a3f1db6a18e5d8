"""The fitting net (docs/model.md#fitting-net) with a hand-written derivative."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dpa3sim.kernels.algebra import Algebra
from dpa3sim.model.activations import ActivationKernel
from dpa3sim.model.config import ModelConfig
from dpa3sim.model.weights import FITTING_LAYERS, has_timestep


@dataclass(frozen=True)
class _Layer:
    name: str
    matrix: Tensor
    bias: Tensor
    timestep: Tensor | None
    repeat: int
    """How often the input is added to the output: 0, 1, or 2 where the width doubles."""


class FittingTape(NamedTuple):
    """What the derivative needs again.

    Attributes:
        inputs: of each layer, the last one included, ``(n_atoms, width)``.
        pre: the pre-activations of the hidden layers.
    """

    inputs: list[Tensor]
    pre: list[Tensor]


class FittingKernel:
    """Atomic energies from descriptors, and back.

    Args:
        config: the model's options.
        weights: the network's tensors by name, float64.
        sparse: see :class:`ActivationKernel`.
    """

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor], sparse: bool) -> None:
        self._activation = ActivationKernel(config.fitting.activation, sparse)
        self._layers = []
        width = config.input_dim
        for index, out in enumerate(config.fitting.neuron):
            name = f"{FITTING_LAYERS}.{index}"
            timed = has_timestep(width, out, config.fitting.resnet_dt)
            self._layers.append(
                _Layer(
                    name,
                    weights[f"{name}.matrix"],
                    weights[f"{name}.bias"],
                    weights[f"{name}.idt"] if timed else None,
                    {width: 1, 2 * width: 2}.get(out, 0),
                )
            )
            width = out
        self._last_name = f"{FITTING_LAYERS}.{len(config.fitting.neuron)}"
        self._last = weights[f"{self._last_name}.matrix"], weights[f"{self._last_name}.bias"]

    def forward(self, y: Tensor) -> tuple[Tensor, FittingTape]:
        """Output ``(n_atoms,)`` from inputs ``(n_atoms, input_dim)``."""
        tape = FittingTape([y], [])
        for layer in self._layers:
            pre = torch.addmm(layer.bias, y, layer.matrix)
            tape.pre.append(pre)
            z = self._activation.forward(pre, torch.empty_like(pre))
            if layer.timestep is not None:
                z = z * layer.timestep
            y = z + torch.cat([y] * layer.repeat, dim=1) if layer.repeat else z
            tape.inputs.append(y)
        matrix, bias = self._last
        return torch.addmm(bias, y, matrix).squeeze(1), tape

    def backward(self, tape: FittingTape, seed: Tensor, last: Tensor | None = None) -> Tensor:
        """Derivative of the weighted sum of outputs with respect to the inputs.

        Args:
            tape: of the forward pass. seed: ``(n_atoms,)`` the weights.
            last: ``(width, 1)``, in the place of the last layer's matrix.
        """
        d_y = seed.unsqueeze(1) * (self._last[0] if last is None else last).t()
        return self._backward(tape, d_y, None)

    def add_weights(
        self, tape: FittingTape, seed: Tensor, algebra: Algebra, totals: Mapping[str, Tensor]
    ) -> Tensor:
        """Like :meth:`backward`; the gradients with respect to weights are added to ``totals``."""

        def add(name: str, y: Tensor, d_pre: Tensor) -> None:
            algebra.outer(y, d_pre, totals[f"{name}.matrix"])
            algebra.columns(d_pre, totals[f"{name}.bias"])

        add(self._last_name, tape.inputs[-1], seed.unsqueeze(1))

        def visit(layer: _Layer, index: int, d_y: Tensor, d_pre: Tensor) -> None:
            add(layer.name, tape.inputs[index], d_pre)
            if layer.timestep is not None:
                pre = tape.pre[index]
                z = self._activation.forward(pre, torch.empty_like(pre))
                algebra.columns(z * d_y, totals[f"{layer.name}.idt"])

        return self._backward(tape, seed.unsqueeze(1) * self._last[0].t(), visit)

    def _backward(self, tape: FittingTape, d_y: Tensor, visit: _Visit | None) -> Tensor:
        """From the gradient of what the last layer reads to that of the inputs."""
        for index, layer in reversed(list(enumerate(self._layers))):
            pre = tape.pre[index]
            d_z = d_y * layer.timestep if layer.timestep is not None else d_y.clone()
            d_pre = self._activation.backward_(d_z, pre)
            if visit is not None:
                visit(layer, index, d_y, d_pre)
            d_in = d_pre @ layer.matrix.t()
            for part in d_y.chunk(layer.repeat, dim=1) if layer.repeat else ():
                d_in = d_in + part
            d_y = d_in
        return d_y


_Visit = Callable[[_Layer, int, Tensor, Tensor], None]
