"""LAMMPS moves the atoms, the resident model gives the forces (``fix external``).

    from dpa3sim import Potential
    from dpa3sim.lammps import attach, start

    lmp = start()
    lmp.file("in.box")  # units, box, atoms, masses
    coupling = attach(lmp, Potential(), ["Si", "O"])  # types 1 and 2
    with coupling.raising():
        lmp.command("run 100")

``dpa3sim lammps INPUT --elements Si O`` does this for a LAMMPS input.
"""

from dpa3sim.clients.lammps.coupling import Coupling, attach
from dpa3sim.clients.lammps.library import start
from dpa3sim.clients.lammps.ranks import join

__all__ = ["Coupling", "attach", "join", "start"]
