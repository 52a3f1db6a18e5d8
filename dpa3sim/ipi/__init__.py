"""The i-PI client under the name that scripts import; it lives in :mod:`dpa3sim.clients.ipi`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpa3sim.clients import ipi as _ipi

if TYPE_CHECKING:
    from dpa3sim.clients.ipi import BatchEvaluator, IPIClient, order_hash, serve

__all__ = ["BatchEvaluator", "IPIClient", "order_hash", "serve"]


def __getattr__(name: str) -> Any:
    return getattr(_ipi, name)
