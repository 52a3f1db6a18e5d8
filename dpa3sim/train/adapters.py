"""Low-rank changes of matrices (LoRA): W + (alpha / rank) A B, of which only A and B are trained.

Hu et al., LoRA: low-rank adaptation of large language models (arXiv 2106.09685).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dpa3sim.common.errors import InputError

DOWN, UP = ".lora_a", ".lora_b"


class LowRank:
    """Factors in the place of matrices.

    Args:
        rank: of the changes.
        alpha: their scale is ``alpha / rank``.
        seed: of the first factors; the second ones start as 0, so that nothing is changed yet.
    """

    def __init__(self, rank: int, alpha: float, seed: int) -> None:
        self._rank, self._scale = rank, alpha / rank
        self._generator = torch.Generator().manual_seed(seed)
        self._base: dict[str, Tensor] = {}

    def adopt(self, trained: dict[str, Tensor], fixed: dict[str, Tensor]) -> None:
        """Replace the trained matrices by factors; all other trained tensors become fixed.

        Raises:
            InputError: no matrix is larger than the rank.
        """
        for name, tensor in sorted(trained.items()):
            fixed[name] = trained.pop(name)
            if tensor.ndim != 2 or min(tensor.shape) <= self._rank:
                continue
            self._base[name] = tensor
            rows, columns = tensor.shape
            first = torch.randn((rows, self._rank), generator=self._generator, dtype=torch.float64)
            trained[name + DOWN] = (first / math.sqrt(rows)).to(tensor.device, tensor.dtype)
            trained[name + UP] = tensor.new_zeros((self._rank, columns))
        if not trained:
            raise InputError(f"option lora_rank = {self._rank}: no trained matrix is larger")

    def fold(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The matrices with their changes, by name."""
        return {
            name: base + self._scale * (trained[name + DOWN] @ trained[name + UP])
            for name, base in self._base.items()
        }

    def gradients(
        self, found: Mapping[str, Tensor], trained: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Gradients of the factors, float64, from those of the matrices."""
        gradients = {}
        for name in self._base:
            gradient = found.get(name)
            if gradient is None:
                continue
            down, up = (trained[name + x].to(torch.float64) for x in (DOWN, UP))
            gradients[name + DOWN] = self._scale * (gradient @ up.T)
            gradients[name + UP] = self._scale * (down.T @ gradient)
        return gradients
