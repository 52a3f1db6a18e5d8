"""Compare a trained model with the embedded one, whose labels it learnt, on frames of a trajectory.

python examples/train_water/compare.py MODEL TRAJECTORY
"""

import sys

import numpy as np
from ase.io import read

from dpa3sim import Potential

model, trajectory = sys.argv[1:]
frames = read(trajectory, ":")[::10]
learnt = Potential(model).evaluate(frames)
labels = Potential().evaluate(frames)

n_atoms = np.array([len(atoms) for atoms in frames])
energies = np.array([a.energy - b.energy for a, b in zip(learnt, labels, strict=True)]) / n_atoms
forces = np.concatenate([b.forces for b in labels])
errors = np.concatenate([a.forces for a in learnt]) - forces


def rms(values):
    """Root mean square, in thousandths."""
    return 1e3 * np.sqrt(np.mean(values**2))


print(f"{len(frames)} frames of {trajectory}")
print(f"energy: RMSE {rms(energies):.3g} meV/atom")
print(f"forces: RMSE {rms(errors):.4g} meV/Å, of {rms(forces):.4g} meV/Å")
