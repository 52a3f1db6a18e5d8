"""Atoms in harmonic wells of one frequency, whose path integral is known; and potentials that fail.

V = sum_i m_i omega^2 |r_i - r_i(0)|^2 / 2, with the start positions as minimum.
"""

from ase.io import read
from ase.units import Bohr

from dpa3sim.common.errors import InputError, NonFiniteError

__DRIVER_NAME__ = "harmonic"
__DRIVER_CLASS__ = "Harmonic"

AMU = 1822.888486  # electron masses
PER_CM = 4.556335253e-6  # hartree for a wave number


class Harmonic:
    def __init__(self, structure, wavenumber, fail="", at=0, verbosity=None):
        if fail == "setup":
            raise InputError("this potential does not like its parameters")
        atoms = read(structure)
        self.minimum = atoms.positions / Bohr
        self.stiffness = atoms.get_masses()[:, None] * AMU * (wavenumber * PER_CM) ** 2
        self.fail, self.at, self.calls = fail, at, 0

    def __call__(self, cell, pos):
        if not isinstance(cell, list):
            return self.one(pos)
        self.calls += 1
        if self.fail and self.calls == self.at:
            if self.fail == "infinite":
                raise NonFiniteError("the energy is not finite")
            if self.fail == "input":
                raise InputError("atoms 0 and 1 are 0.001 Å apart")
            raise RuntimeError("something else")
        return [self.one(p) for p in pos]

    def one(self, pos):
        away = pos.reshape(-1, 3) - self.minimum
        force = -self.stiffness * away
        return 0.5 * float((self.stiffness * away**2).sum()), force, -force.T @ pos * 0.0, ""
