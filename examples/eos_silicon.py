"""Equation of state of silicon, and its picture.

Prints:
    volume 20.40 Å^3/atom, bulk modulus 92 GPa
    drawn in eos_silicon.png
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from ase.io import read

from dpa3sim import Potential
from dpa3sim.protocols import eos

atoms = read(Path(__file__).parent / "Si.vasp")
result = eos.run(atoms, Potential())
fit = result.fit
print(f"volume {fit.volume:.2f} Å^3/atom, bulk modulus {fit.bulk_modulus:.0f} GPa")

dense = np.linspace(result.volumes.min(), result.volumes.max(), 100)
plt.plot(dense, fit.energy_at(dense), label=fit.equation)
plt.plot(result.volumes, result.energies, "o", label="computed")
plt.xlabel("volume, Å$^3$ per atom")
plt.ylabel("energy, eV per atom")
plt.legend()
plt.savefig("eos_silicon.png", bbox_inches="tight")
print("drawn in eos_silicon.png")
