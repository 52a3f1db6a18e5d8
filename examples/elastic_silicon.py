"""Elastic constants of silicon, and a picture of how stiff it is along each direction.

Prints:
    C11 C12 C44: 134 57 73 GPa, 101 GPa with clamped ions
    drawn in elastic_silicon.png
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from ase.io import read

from dpa3sim import Potential
from dpa3sim.protocols import elastic

atoms = read(Path(__file__).parent / "Si.vasp")
result = elastic.run(atoms, Potential())
c, clamped = result.relaxed.stiffness, result.clamped.stiffness
print(f"C11 C12 C44: {c[0, 0]:.0f} {c[0, 1]:.0f} {c[3, 3]:.0f} GPa,", end=" ")
print(f"{clamped[3, 3]:.0f} GPa with clamped ions")

angle = np.linspace(0, 2 * np.pi, 181)
x, y = np.cos(angle), np.sin(angle)
voigt = np.stack([x * x, y * y, 0 * x, 0 * x, 0 * x, x * y], axis=1)
axes = plt.subplot(projection="polar")
axes.plot(angle, 1 / np.einsum("ni,ij,nj->n", voigt, np.linalg.inv(c), voigt))
axes.set_title("Young's modulus of Si in the xy plane, GPa")
plt.savefig("elastic_silicon.png")
print("drawn in elastic_silicon.png")
