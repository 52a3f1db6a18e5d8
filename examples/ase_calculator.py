"""Use DPA3 as an ASE calculator, and evaluate several structures as one batch.

Prints:
    water:   -14.13 eV, largest force 0.10 eV/Å
    batch:   Cu -4.093, MgO -5.979, Si -5.420 eV/atom
"""

import numpy as np
from ase.build import bulk, molecule

from dpa3sim import DPA3Calculator, Potential

water = molecule("H2O")
water.calc = DPA3Calculator()  # DPA3Calculator(model="my_checkpoint.pt", head="Omat24")
fmax = np.linalg.norm(water.get_forces(), axis=1).max()
print(f"water:   {water.get_potential_energy():.2f} eV, largest force {fmax:.2f} eV/Å")

crystals = {
    "Cu": bulk("Cu", "fcc", 3.615),
    "MgO": bulk("MgO", "rocksalt", 4.211),
    "Si": bulk("Si", "diamond", 5.431),
}
results = Potential().evaluate(list(crystals.values()))
energies = [
    f"{name} {result.energy / len(result.energies):.3f}"
    for name, result in zip(crystals, results, strict=True)
]
print(f"batch:   {', '.join(energies)} eV/atom")
