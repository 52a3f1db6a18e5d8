"""The two sums over rows that weight gradients are made of, in float64 and in a fixed order."""

from __future__ import annotations

import ctypes
from typing import Protocol

import torch
from torch import Tensor

from dpa3sim.kernels.structs import OuterCall


class Algebra(Protocol):
    """Sums over the rows of matrices, added to float64 totals."""

    def outer(self, left: Tensor, right: Tensor, total: Tensor) -> None:
        """``total += left^T right``, with ``(rows, a)``, ``(rows, b)`` and ``(a, b)``."""

    def columns(self, x: Tensor, total: Tensor) -> None:
        """Add the sums over the rows of ``x`` ``(rows, a)`` to ``total`` ``(a,)``."""


class TensorAlgebra:
    """By torch, whose order of additions may depend on the number of threads."""

    def outer(self, left: Tensor, right: Tensor, total: Tensor) -> None:
        """See :class:`Algebra`."""
        total.add_(left.t() @ right)

    def columns(self, x: Tensor, total: Tensor) -> None:
        """See :class:`Algebra`."""
        total.add_(x.sum(dim=0, dtype=torch.float64))


class CompiledAlgebra:
    """By the compiled kernels, which give the same bits with any number of threads.

    Args:
        library: the compiled kernels. dtype: of the rows.
    """

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        precision = "f64" if dtype == torch.float64 else "f32"
        self._run = getattr(library, f"dpa3_outer_{precision}")
        self._one = torch.ones(1, dtype=dtype)

    def outer(self, left: Tensor, right: Tensor, total: Tensor) -> None:
        """See :class:`Algebra`."""
        self._add(left, left.stride(0), left.shape[1], right, total)

    def columns(self, x: Tensor, total: Tensor) -> None:
        """See :class:`Algebra`."""
        self._add(self._one, 0, 1, x, total)

    def _add(self, left: Tensor, stride: int, width: int, right: Tensor, total: Tensor) -> None:
        assert right.stride(1) == 1 or right.shape[1] == 1
        call = OuterCall(len(right), width, right.shape[1])
        call.left, call.left_stride = left.data_ptr(), stride
        call.right, call.right_stride = right.data_ptr(), right.stride(0)
        call.total, call.total_stride = total.data_ptr(), total.stride(0)
        self._run(ctypes.byref(call))
