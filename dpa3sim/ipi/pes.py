"""The file that inputs of i-PI name as ``<pes_path>``, at the place where they have it from."""

from dpa3sim.clients.ipi.pes import __DRIVER_CLASS__, __DRIVER_NAME__, DPA3PES

__all__ = ["DPA3PES", "__DRIVER_CLASS__", "__DRIVER_NAME__"]
