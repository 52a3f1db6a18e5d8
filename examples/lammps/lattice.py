"""LAMMPS from Python: the lattice constant of silicon, by LAMMPS's own minimizer.

Prints:
    5.465 Å, -5.4217 eV/atom
"""

from dpa3sim import Potential
from dpa3sim.lammps import attach, start

lmp = start(["-screen", "none", "-log", "none"])
lmp.commands_string("""
    units metal
    lattice diamond 5.43
    region box block 0 1 0 1 0 1
    create_box 1 box
    create_atoms 1 box
    mass 1 28.0855
    pair_style zero 5.0
    pair_coeff * *
""")
coupling = attach(lmp, Potential(dtype="float64"), ["Si"])
with coupling.raising():
    lmp.command("fix relax all box/relax iso 0.0 vmax 0.005")
    lmp.command("minimize 0 1e-3 100 200")

lower, upper, *_ = lmp.extract_box()
energy = lmp.get_thermo("pe")
print(f"{upper[0] - lower[0]:.3f} Å, {energy / lmp.get_natoms():.4f} eV/atom")
lmp.close()
