"""Run an ASE-based function over several structures, all their evaluations batched.

Prints:
    Cu4     -16.372 eV
    Mg4O4   -47.865 eV
    Si8     -43.374 eV
"""

from pathlib import Path

from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.optimize import FIRE

from dpa3sim import Engine

here = Path(__file__).parent


def relax(atoms: Atoms) -> Atoms:
    """Any function of atoms that have a calculator will do."""
    with FIRE(FrechetCellFilter(atoms), logfile=None) as optimizer:
        optimizer.run(fmax=0.01, steps=100)
    return atoms


structures = [read(here / name) for name in ("Cu.vasp", "MgO.vasp", "Si.vasp")]
for atoms in Engine().map(structures, relax):
    print(f"{atoms.get_chemical_formula():<7} {atoms.get_potential_energy():.3f} eV")
