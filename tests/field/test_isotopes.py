"""Averages by element in structures with two isotopes of an element."""

import numpy as np
import pytest
from ase import Atoms
from ase.io import iread
from tests_support import TESTS

from dpa3sim.clients.ipi.inputs import STRUCTURE, direct_forcefield
from dpa3sim.protocols import pimd
from dpa3sim.protocols.dynamics import path_integrals, ring_polymers
from dpa3sim.protocols.dynamics.trajectories import Analyser, Frame
from dpa3sim.structures.isotopes import names

HARMONIC = TESTS / "clients/ipi/harmonic_pes.py"


def mixed():
    """Four H, four D and four O."""
    atoms = Atoms("H8O4", positions=np.random.default_rng(1).uniform(0, 9, (12, 3)))
    atoms.set_cell([10, 10, 10])
    atoms.set_pbc(True)
    atoms.set_masses([1.008, 2.014] * 4 + [15.999] * 4)
    return atoms


def test_names_distinguish_isotopes_but_not_roundings():
    masses = np.array([1.008, 1.0, 2.014, 3.016, 15.999, 16.0, 17.999, 22.99, 13.003])
    found = names(["H", "H", "H", "H", "O", "O", "O", "Na", "C"], masses)
    assert found == ["H", "H", "D", "T", "O", "O", "O18", "Na", "C13"]


def test_path_integrals_do_not_average_hydrogen_with_deuterium(tmp_path):
    """In wells of one frequency, the spread of a nucleus goes as the root of its mass."""
    settings = pimd.Settings(beads=4, steps=600, timestep=0.15, thermostat_time=20.0, interval=200)
    atoms, folder = mixed(), tmp_path
    plan = pimd.check(atoms, settings)
    values = {"structure": STRUCTURE, "wavenumber": 2000.0}
    forces = direct_forcefield(HARMONIC, 4, values)
    ring_polymers.simulate(folder, atoms, plan, "pimd", 4, forces)
    found = path_integrals.analyse(folder, atoms, plan, "pimd", 4)
    assert sorted(found.elements) == ["D", "H", "O"]
    spread = {name: e["radius_of_gyration"].mean for name, e in found.elements.items()}
    assert spread["H"] / spread["D"] == pytest.approx(np.sqrt(2.014 / 1.008), rel=0.1)
    assert spread["D"] / spread["O"] == pytest.approx(np.sqrt(15.999 / 2.014), rel=0.1)
    # The parts make the whole.
    parts = sum(4 * e["kinetic_energy"].mean for e in found.elements.values())
    assert parts == pytest.approx(12 * found.estimates["kinetic_energy"].mean)
    # Other programs know the elements of trajectories.
    frame = next(iread(path_integrals.trajectory_files(folder, "pimd")[0]))
    assert str(frame.symbols) == str(atoms.symbols)


def test_displacements_and_spectra_of_isotopes_are_separate():
    atoms = mixed()
    rng = np.random.default_rng(2)
    analyser = Analyser(atoms, 40, 0.01)
    steps = rng.normal(size=(40, 12, 3)) / np.sqrt(atoms.get_masses())[:, None]
    positions = atoms.positions + np.cumsum(steps, axis=0)
    analyser.read(Frame(p, v, atoms.cell[:]) for p, v in zip(positions, steps, strict=True))
    found = analyser.result()
    assert set(found.msd) == {"H", "D", "O"}
    assert found.msd["H"][1] / found.msd["D"][1] == pytest.approx(2.014 / 1.008, rel=0.3)
