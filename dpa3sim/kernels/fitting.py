"""The fitting net (docs/model.md#fitting-net) with a hand-written derivative."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpa3sim.model.activations import ActivationKernel
from dpa3sim.model.config import ModelConfig
from dpa3sim.model.weights import FITTING_LAYERS, has_timestep


@dataclass(frozen=True)
class _Layer:
    matrix: Tensor
    bias: Tensor
    timestep: Tensor | None
    repeat: int
    """How often the input is added to the output: 0, 1, or 2 where the width doubles."""


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
                    weights[f"{name}.matrix"],
                    weights[f"{name}.bias"],
                    weights[f"{name}.idt"] if timed else None,
                    {width: 1, 2 * width: 2}.get(out, 0),
                )
            )
            width = out
        name = f"{FITTING_LAYERS}.{len(config.fitting.neuron)}"
        self._last = weights[f"{name}.matrix"], weights[f"{name}.bias"]

    def forward(self, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Output ``(n_atoms,)`` and the pre-activations, from inputs ``(n_atoms, input_dim)``."""
        tape = []
        for layer in self._layers:
            pre = torch.addmm(layer.bias, y, layer.matrix)
            tape.append(pre)
            z = self._activation.forward(pre, torch.empty_like(pre))
            if layer.timestep is not None:
                z = z * layer.timestep
            y = z + torch.cat([y] * layer.repeat, dim=1) if layer.repeat else z
        matrix, bias = self._last
        return torch.addmm(bias, y, matrix).squeeze(1), tape

    def backward(self, tape: list[Tensor]) -> Tensor:
        """Derivative of the sum of outputs with respect to the inputs."""
        last = self._last[0].t()
        d_y = last.expand(tape[0].shape[0], -1) if tape else last
        for layer, pre in zip(reversed(self._layers), reversed(tape), strict=True):
            d_z = d_y * layer.timestep if layer.timestep is not None else d_y.clone()
            d_in = self._activation.backward_(d_z, pre) @ layer.matrix.t()
            for part in d_y.chunk(layer.repeat, dim=1) if layer.repeat else ():
                d_in = d_in + part
            d_y = d_in
        return d_y
