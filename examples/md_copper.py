"""Molecular dynamics of copper at 300 K: its radial distribution function.

Prints:
    12.0 neighbours at 2.6 Å
    drawn in md_copper.png
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from ase.io import read

from dpa3sim import Potential
from dpa3sim.protocols import md

atoms = read(Path(__file__).parent / "Cu.vasp") * (2, 2, 2)
settings = md.Settings(temperature=300, thermostat="bussi", timestep=3, steps=120, interval=2)
result = md.run(atoms, Potential(), settings)

r, g = result.analysis.rdf_r, result.analysis.rdf["Cu-Cu"]
shell = np.where(r < 3.1, 4 * np.pi * r**2 * g, 0) * (r[1] - r[0]) * len(atoms) / atoms.get_volume()
print(f"{shell.sum():.1f} neighbours at {(r * shell).sum() / shell.sum():.1f} Å")

plt.plot(r, g)
plt.gca().set(xlabel="distance (Å)", ylabel="g(r)", title="Cu, 300 K")
plt.savefig("md_copper.png")
print("drawn in md_copper.png")
