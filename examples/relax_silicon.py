"""Relax atoms and cell of a distorted silicon crystal with the embedded model.

Prints:
    start      a = 5.594, b = 5.323, c = 5.567 Å, P1 (1)
    relaxed    a = 5.465, b = 5.465, c = 5.465 Å, Fd-3m (227)
    energy     -5.4217 eV/atom, converged: True
"""

from pathlib import Path

from ase.io import read

from dpa3sim import Potential
from dpa3sim.protocols import relax

atoms = read(Path(__file__).with_name("POSCAR"))
result = relax.run(atoms, Potential(), relax.Settings(cell="full", fmax=1e-3, smax=1e-3)).to_dict()

for name, lengths, group in (
    ("start", result["cell_lengths_initial_A"], result["spacegroup_initial"]),
    ("relaxed", result["cell_lengths_A"], result["spacegroup_final"]),
):
    a, b, c = lengths
    print(f"{name:<10} a = {a:.3f}, b = {b:.3f}, c = {c:.3f} Å, {group}")
energy, converged = result["energy_per_atom_eV"], result["converged"]
print(f"energy     {energy:.4f} eV/atom, converged: {converged}")
