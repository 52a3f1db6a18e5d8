"""Optimizers whose whole state is visible, clipping of gradients, and averages of weights.

Parameters, gradients and states are dictionaries by the names of the parameters. A parameter
without gradient is skipped altogether: neither its moments change nor does it decay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dpa3sim.common.errors import InputError
from dpa3sim.train.settings import OPTIMIZERS, OptimizerSettings

_MUON_MOMENTUM = 0.95
_MUON_SCALE = 0.2
# An odd polynomial of degree 5 that takes any singular value in (0, 1] to about 1 in five steps.
_MUON_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
_MUON_ITERATIONS = 5
_MUON_SMALLEST = 1e-7
_STEP, _FIRST, _SECOND = "step", "exp_avg", "exp_avg_sq"


class Optimizer:
    """Changes parameters in place, step by step.

    Args:
        parameters: the tensors to train, which the optimizer keeps and changes.
        settings: the options.
    """

    def __init__(self, parameters: Mapping[str, Tensor], settings: OptimizerSettings) -> None:
        beta2, decay, self._eps = OPTIMIZERS[settings.optimizer]
        self._betas = (settings.beta1, beta2 if settings.beta2 is None else settings.beta2)
        self._decay = decay if settings.weight_decay is None else settings.weight_decay
        self._kind = settings.optimizer
        self._parameters = dict(parameters)
        muon = settings.optimizer == "muon"
        self._by_muon = {n for n, p in parameters.items() if muon and is_muon_matrix(n, p)}
        self._steps = dict.fromkeys(parameters, 0)
        self._moments: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor | None], lr: float) -> None:
        """Change the parameters that have a gradient.

        Args:
            gradients: derivatives of the loss, in any precision; they are not changed.
            lr: the learning rate.
        """
        for name, parameter in self._parameters.items():
            gradient = gradients.get(name)
            if gradient is None:
                continue
            gradient = gradient.to(parameter.dtype)
            if name in self._by_muon:
                self._muon_step(name, parameter, gradient, lr)
            else:
                self._adam_step(name, parameter, gradient, lr)

    def _adam_step(self, name: str, parameter: Tensor, gradient: Tensor, lr: float) -> None:
        if self._kind == "adam":
            gradient = gradient + self._decay * parameter
        elif self._kind == "adamw":
            parameter.mul_(1 - lr * self._decay)
        beta1, beta2 = self._betas
        first, second = self._state(name, _FIRST), self._state(name, _SECOND)
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        self._steps[name] += 1
        # Both means start at 0 and are corrected for it.
        size = lr / (1 - beta1 ** self._steps[name])
        scale = math.sqrt(1 - beta2 ** self._steps[name])
        parameter.addcdiv_(first, (second.sqrt() / scale).add_(self._eps), value=-size)

    def _muon_step(self, name: str, parameter: Tensor, gradient: Tensor, lr: float) -> None:
        momentum = self._state(name, _FIRST)
        momentum.lerp_(gradient, 1 - _MUON_MOMENTUM)
        update = orthogonalised(gradient.lerp(momentum, _MUON_MOMENTUM))
        self._steps[name] += 1
        parameter.mul_(1 - lr * self._decay)
        scale = _MUON_SCALE * math.sqrt(max(parameter.shape))
        parameter.add_(update, alpha=-lr * scale)

    def _state(self, name: str, slot: str) -> Tensor:
        """A mean over gradients of a parameter, zeros before its first step."""
        moments = self._moments.setdefault(name, {})
        if slot not in moments:
            moments[slot] = torch.zeros_like(self._parameters[name])
        return moments[slot]

    def state_dict(self) -> dict[str, Tensor]:
        """The state, ``SLOT.PARAMETER`` for each parameter that had a gradient.

        The slots are ``step``, an int64 number, ``exp_avg`` and, for Adam, ``exp_avg_sq``, in the
        shape and precision of the parameter. The moments are not copied.
        """
        state = {}
        for name, moments in self._moments.items():
            state[f"{_STEP}.{name}"] = torch.tensor(self._steps[name])
            state |= {f"{slot}.{name}": tensor for slot, tensor in moments.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that :meth:`state_dict` gave; the next steps are the same bits.

        Raises:
            InputError: the state is that of other parameters or of another kind of optimizer.
        """
        steps = dict.fromkeys(self._parameters, 0)
        moments: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            slot, _, name = key.partition(".")
            parameter = self._parameters.get(name)
            if parameter is None or slot not in (_STEP, *self._slots(name)):
                raise InputError(f"the optimizer {self._kind} has no state {key!r} for this model")
            if slot == _STEP:
                steps[name] = int(value)
                continue
            if value.shape != parameter.shape or value.dtype != parameter.dtype:
                raise InputError(
                    f"the state {key!r} of the optimizer has shape {tuple(value.shape)} and type "
                    f"{value.dtype}, its parameter {tuple(parameter.shape)} and {parameter.dtype}"
                )
            moments.setdefault(name, {})[slot] = value.to(parameter.device, copy=True)
        for name, step in steps.items():
            if set(moments.get(name, ())) != (set(self._slots(name)) if step else set()):
                raise InputError(f"the state of the optimizer is incomplete for {name!r}")
        self._steps, self._moments = steps, moments

    def _slots(self, name: str) -> tuple[str, ...]:
        return (_FIRST,) if name in self._by_muon else (_FIRST, _SECOND)


def is_muon_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon trains a parameter: a matrix, neither a bias nor only one row or column."""
    words = [word for word in name.split(".") if not word.isdigit()]
    return "bias" not in words[-1] and sum(size > 1 for size in parameter.shape) >= 2


def orthogonalised(matrix: Tensor) -> Tensor:
    """A matrix with the singular vectors of ``matrix`` and singular values near 1.

    Args:
        matrix: ``(rows, columns)``.

    Returns:
        ``(rows, columns)``, with singular values of 0.7 to 1.2; those far below the largest one
        stay smaller. deepmd-kit computes it in bfloat16, which changes it by 0.2 % and is slow on
        processors.
    """
    a, b, c = _MUON_POLYNOMIAL
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / x.norm().clamp(min=_MUON_SMALLEST)
    for _ in range(_MUON_ITERATIONS):
        product = x @ x.mT
        x = a * x + (b * product + c * (product @ product)) @ x
    return x.mT if tall else x


@torch.no_grad()
def clip_(gradients: Mapping[str, Tensor | None], max_norm: float) -> Tensor:
    """Scale gradients in place, so that their total norm is at most ``max_norm``.

    Args:
        gradients: all of them, at least one not None.
        max_norm: the limit; infinity changes nothing.

    Returns:
        The norm before, a scalar in float64. Where it is not finite, neither are the gradients
        afterwards, and the caller must not use them.
    """
    present = [gradient for gradient in gradients.values() if gradient is not None]
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in present]
    total = torch.linalg.vector_norm(torch.stack(norms))
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for gradient in present:
        gradient.mul_(factor)
    return total


class Average:
    """Exponential moving averages of parameters, which start as their first values.

    Args:
        parameters: the values before the first step; they are copied.
        decay: share of the average that a step keeps.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"option ema_decay = {decay:g} must be at least 0 and below 1")
        self._decay = decay
        self._averages = {n: p.detach().clone() for n, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], most: float = 1.0) -> None:
        """Take the values after a step into account; the average keeps at most a share ``most``."""
        for name, average in self._averages.items():
            average.lerp_(parameters[name], 1 - min(self._decay, most))

    def weights(self, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``live``, with averages for the parameters; buffers are those of ``live``."""
        return {name: self._averages.get(name, tensor) for name, tensor in live.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by name; they are not copied."""
        return dict(self._averages)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from averages that :meth:`state_dict` gave.

        Raises:
            InputError: they are those of other parameters.
        """
        shapes = {name: tensor.shape for name, tensor in self._averages.items()}
        if shapes != {name: tensor.shape for name, tensor in state.items()}:
            raise InputError("the averages in the file are those of another model")
        for name, average in self._averages.items():
            average.copy_(state[name])
