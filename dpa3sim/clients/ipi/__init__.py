"""i-PI: a client for its sockets and shared memory, and a potential inside its process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpa3sim.common.lazy import lazy

if TYPE_CHECKING:
    from dpa3sim.clients.ipi.client import IPIClient
    from dpa3sim.clients.ipi.evaluator import BatchEvaluator
    from dpa3sim.clients.ipi.serving import serve
    from dpa3sim.clients.ipi.wire import order_hash

__all__ = ["BatchEvaluator", "IPIClient", "order_hash", "serve"]

_EXPORTS = {
    "BatchEvaluator": "dpa3sim.clients.ipi.evaluator",
    "IPIClient": "dpa3sim.clients.ipi.client",
    "order_hash": "dpa3sim.clients.ipi.wire",
    "serve": "dpa3sim.clients.ipi.serving",
}
__getattr__ = lazy(__name__, _EXPORTS)  # torch and ASE only where they are needed
