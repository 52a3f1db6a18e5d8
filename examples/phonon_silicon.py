"""Phonons of silicon: bands along the path of its Brillouin zone, and their density of states.

Prints:
    optical modes at Γ: 13.79 THz, stable
    drawn in phonon_silicon.png
"""

from pathlib import Path

import matplotlib.pyplot as plt
from ase.io import read

from dpa3sim import Potential
from dpa3sim.protocols import phonon

atoms = read(Path(__file__).parent / "Si.vasp")
result = phonon.run(atoms, Potential(), phonon.Settings(supercell="2,2,2"))
optical = [f"{mode.frequency:.2f}" for mode in result.modes if not mode.acoustic]
print(f"optical modes at Γ: {' '.join(optical)} THz, {result.verdict.state}")

bands = result.phonon.get_band_structure_dict()
figure, (left, right) = plt.subplots(1, 2, sharey=True, width_ratios=(3, 1))
for x, y in zip(bands["distances"], bands["frequencies"], strict=True):
    left.plot(x, y, color="C0")
left.set(ylabel="frequency (THz)", xlabel="wave vector", title="Si")
right.plot(result.dos.total, result.dos.frequencies)
right.set(xlabel="states per THz")
plt.savefig("phonon_silicon.png")
print("drawn in phonon_silicon.png")
