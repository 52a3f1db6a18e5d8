"""Activation functions, differentiable ones and hand-written pairs in place.

Their definitions are those of docs/model.md#activation-functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from dpa3sim.model.config import Activation

aten = torch.ops.aten
# Above this share of rows with SiLUT's upper branch, all rows are treated alike.
DENSE_ABOVE = 0.5


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply an activation function; autograd differentiates it."""
    if activation.name == "silut":
        alpha, beta = silut_constants(activation.threshold)
        t = activation.threshold
        return torch.where(x < t, functional.silu(x), torch.tanh(alpha * (x - t)) + beta)
    if activation.name in ("gelu", "gelu_tf"):
        return functional.gelu(x, approximate="tanh")
    if activation.name == "linear":
        return x
    function = {
        "relu": torch.relu,
        "tanh": torch.tanh,
        "relu6": functional.relu6,
        "softplus": functional.softplus,
        "sigmoid": torch.sigmoid,
        "silu": functional.silu,
    }[activation.name]
    return function(x)


def silut_constants(threshold: float) -> tuple[float, float]:
    """Alpha and beta of SiLUT: slope and value of SiLU at the threshold."""
    sigma = 1 / (1 + math.exp(-threshold))
    return sigma + threshold * sigma * (1 - sigma), threshold * sigma


class ActivationKernel:
    """An activation and its derivative, for code that keeps its own tape.

    SiLUT has another branch above its threshold, which few rows reach in some models and most
    in others. With ``sparse`` these rows are found first and only they take that branch; their
    number is needed on the host, which costs nothing on a CPU and would be a synchronisation
    elsewhere. Without it, all elements go through both branches.
    """

    def __init__(self, activation: Activation, sparse: bool) -> None:
        self._silut = _Silut(activation.threshold) if activation.name == "silut" else None
        # SiLUT below its threshold is SiLU.
        self._forward, self._backward = _PAIRS["silu" if self._silut else activation.name]
        self._sparse = sparse and self._silut is not None

    def rows(self, x: Tensor) -> Tensor | None:
        """Rows of ``x`` ``(rows, channels)`` that need the upper branch; None: maybe all.

        To be passed to the other methods for the same ``x`` or for some of its channels.
        """
        if not self._sparse:
            return None
        assert self._silut is not None
        # The maximum is one pass; a mask of the size of x would be written and read again.
        rows = (x.amax(dim=1) > self._silut.threshold).nonzero().squeeze(1)
        return rows if rows.shape[0] < DENSE_ABOVE * x.shape[0] else None

    def forward(self, x: Tensor, out: Tensor, rows: Tensor | None = None) -> Tensor:
        """Write the activation of ``x`` to ``out``, which may be ``x``."""
        if self._silut is None:
            return self._forward(x, out)
        if rows is None:
            return self._silut.forward(x, out)
        if rows.shape[0] == 0:
            return self._forward(x, out)
        above = x.index_select(0, rows)
        self._forward(x, out)
        return out.index_copy_(0, rows, self._silut.forward(above, above))

    def backward_(self, grad: Tensor, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Multiply ``grad`` by the derivative at ``x``."""
        if self._silut is None:
            return self._backward(grad, x)
        if rows is None:
            return self._silut.backward_(grad, x)
        if rows.shape[0] == 0:
            return self._backward(grad, x)
        above = self._silut.backward_(grad.index_select(0, rows), x.index_select(0, rows))
        self._backward(grad, x)
        return grad.index_copy_(0, rows, above)


class _Silut:
    """SiLU below a threshold, beta + tanh(alpha (x - threshold)) above it.

    The tanh of y >= 0 is taken as 2 sigmoid(2y) - 1, which is several times faster on a CPU.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.alpha, self.beta = silut_constants(threshold)

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        # Below the threshold the second term is 2 sigmoid(0) - 1 = 0, exactly.
        upper = (x - self.threshold).clamp_(min=0.0).mul_(2 * self.alpha).sigmoid_()
        lower: Tensor = aten.silu_(torch.clamp(x, max=self.threshold, out=out))
        return lower.add_(upper, alpha=2).sub_(1)

    def backward_(self, grad: Tensor, x: Tensor) -> Tensor:
        upper = (x - self.threshold).mul_(2 * self.alpha).sigmoid_()
        # d tanh(y) = 4 s (1 - s) with s = sigmoid(2 y)
        slope = torch.addcmul(upper, upper, upper, value=-1).mul_(4 * self.alpha).mul_(grad)
        aten.silu_backward.grad_input(grad, x, grad_input=grad)
        return torch.where(x < self.threshold, grad, slope, out=grad)


_Forward = Callable[[Tensor, Tensor], Tensor]
_Backward = Callable[[Tensor, Tensor], Tensor]
_gelu: tuple[_Forward, _Backward] = (
    lambda x, out: aten.gelu.out(x, approximate="tanh", out=out),
    lambda g, x: g.copy_(aten.gelu_backward(g, x, approximate="tanh")),
)
_PAIRS: dict[str, tuple[_Forward, _Backward]] = {
    "relu": (lambda x, out: torch.clamp(x, min=0.0, out=out), lambda g, x: g.mul_(x > 0)),
    "gelu": _gelu,
    "gelu_tf": _gelu,
    "tanh": (
        lambda x, out: torch.tanh(x, out=out),
        lambda g, x: g.mul_(1 - torch.tanh(x) ** 2),
    ),
    "relu6": (
        lambda x, out: torch.clamp(x, 0.0, 6.0, out=out),
        lambda g, x: g.mul_((x > 0) & (x < 6)),
    ),
    "softplus": (
        lambda x, out: aten.softplus.out(x, out=out),
        lambda g, x: g.copy_(aten.softplus_backward(g, x, 1, 20)),
    ),
    "sigmoid": (
        lambda x, out: torch.sigmoid(x, out=out),
        lambda g, x: g.copy_(aten.sigmoid_backward(g, torch.sigmoid(x))),
    ),
    "silu": (
        lambda x, out: aten.silu.out(x, out=out),
        lambda g, x: aten.silu_backward.grad_input(g, x, grad_input=g),
    ),
    "linear": (lambda x, out: out if out is x else out.copy_(x), lambda g, x: g),
}
