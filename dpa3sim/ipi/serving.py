"""Serving a potential, under the name that scripts import."""

from dpa3sim.clients.ipi.serving import Settings, serve

__all__ = ["Settings", "serve"]
