"""Memory that evaluations use again and again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Workspaces up to this size are never given back.
RETAINED_BYTES = 2**28


class Workspace:
    """Memory by name: grows to the largest request and stays, so that it is paid for once."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._buffers: dict[str, Tensor] = {}
        self._used: dict[str, int] = {}
        self._retain = False

    def __call__(self, name: str, rows: int, width: int) -> Tensor:
        """An uninitialised contiguous ``(rows, width)`` tensor."""
        size = rows * width
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            self._buffers.pop(name, None)  # before the new one, so as not to have both
            buffer = torch.empty(size, device=self._device, dtype=self._dtype)
            self._buffers[name] = buffer
        self._used[name] = max(size, self._used.get(name, 0))
        return buffer[:size].view(rows, width)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(b.numel() * b.element_size() for b in self._buffers.values())

    def end(self) -> None:
        """End an evaluation: memory is given back if it is far more than was used just now."""
        used = sum(self._used.values()) * self._dtype.itemsize
        if not self._retain and self.nbytes > max(RETAINED_BYTES, 4 * used):
            self._buffers.clear()
        self._used.clear()

    def release(self) -> None:
        """Give all memory back."""
        self._buffers.clear()
        self._used.clear()

    @contextmanager
    def private(self, buffers: dict[str, Tensor]) -> Iterator[None]:
        """Use other buffers for a while, which no other evaluation touches or frees."""
        shared, self._buffers = self._buffers, buffers
        self._retain = True
        try:
            yield
        finally:
            self._buffers, self._retain = shared, False
