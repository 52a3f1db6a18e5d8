"""A pair potential behind i-PI's interface for PES files; also the toy of all socket tests."""

from __future__ import annotations

import numpy as np
from ase.io import read

__DRIVER_NAME__ = "toy"
__DRIVER_CLASS__ = "ToyPES"

CUTOFF = 5.5  # bohr, less than half of the box of water8.extxyz


def pair(kk=0.02, r0=4.0):
    """Evaluator of a periodic pair potential with a true virial.

    E = sum over pairs of kk exp(r0 - r) (1 - (r / rc)^2)^3, minimum image. ``kk=2e-4`` gives
    gentle dynamics, 0.02 large signals.
    """

    def evaluate(cells, positions):
        energies, forces, virials = [], [], []
        for cell, x in zip(cells, positions, strict=True):
            d = x[:, None] - x[None]
            fractional = d @ np.linalg.inv(cell)
            d = (fractional - np.round(fractional)) @ cell
            r = np.sqrt((d**2).sum(-1))
            np.fill_diagonal(r, 1e9)
            inside = r < CUTOFF
            u = np.where(inside, r / CUTOFF, 1.0)
            switch, slope = (1 - u**2) ** 3, -6 * u * (1 - u**2) ** 2 / CUTOFF
            g = kk * np.exp(r0 - r)
            gradient = np.where(inside, g * (slope - switch), 0.0)
            f = -(gradient / r)[..., None] * d
            energies.append(0.5 * np.where(inside, g * switch, 0.0).sum())
            forces.append(f.sum(1))
            virials.append(0.5 * np.einsum("ija,ijb->ab", f, d))
        return np.array(energies), np.array(forces), np.array(virials), [""] * len(positions)

    return evaluate


class ToyPES:
    """The shape of a PES file without any import from i-PI."""

    def __init__(self, structure, model=None, device="cpu", kk=0.02, verbosity=None):
        self.natoms = len(read(structure))
        self.evaluate = pair(kk)

    def __call__(self, cell, pos):
        single = not isinstance(cell, list)
        cells = np.stack([np.asarray(c).T for c in ([cell] if single else cell)])
        positions = np.stack([np.asarray(p).reshape(-1, 3) for p in ([pos] if single else pos)])
        assert positions.shape[1] == self.natoms
        e, f, w, x = self.evaluate(cells, positions)
        out = [(float(e[i]), f[i], np.array(w[i].T), x[i]) for i in range(len(e))]
        return out[0] if single else out
