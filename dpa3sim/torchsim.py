"""torch-sim's client under the name that scripts import; see :mod:`dpa3sim.clients.torch_sim`."""

from dpa3sim.clients.torch_sim import DPA3Model

__all__ = ["DPA3Model"]
