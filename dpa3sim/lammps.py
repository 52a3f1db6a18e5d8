"""The LAMMPS client under the name that scripts import; see :mod:`dpa3sim.clients.lammps`."""

from dpa3sim.clients.lammps import Coupling, attach, join, start

__all__ = ["Coupling", "attach", "join", "start"]
