"""Checks of models find what is wrong with a potential whose faults are known, and nothing else."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from tests_support import EMTPotential

from dpa3sim.common.errors import InputError
from dpa3sim.graph.lists import Counters
from dpa3sim.potential.evaluation import Evaluation
from dpa3sim.protocols.base import silent
from dpa3sim.structures.inspection import pairs
from dpa3sim.structures.system import as_system
from dpa3sim.validate import crystals, dimers, dynamics, invariances, scans
from dpa3sim.validate.literature import CRYSTALS
from dpa3sim.validate.settings import ValidateSettings

CUTOFF, ANGLES = 6.0, 4.0
STEP_EV = 2e-3


class Springs:
    """A smooth, repulsive pair potential, with faults on request.

    Attributes:
        step: eV of every pair that is closer than 4 Å.
        tilt: eV of an atom and Å in the distance of its neighbours along x.
        friction: share of the force that is missing.
    """

    def __init__(self, elements=("Si",), step=0.0, tilt=0.0, friction=0.0):
        descriptor = SimpleNamespace(e_rcut=CUTOFF, a_rcut=ANGLES)
        config = SimpleNamespace(descriptor=descriptor)
        self.model = SimpleNamespace(name="springs", elements=elements, config=config)
        self.step, self.tilt, self.friction = step, tilt, friction
        self.counters, self.dtype = Counters(), "float64"

    def evaluate(self, structures):
        return [self._one(as_system(x)) for x in structures]

    def _one(self, x):
        from matscipy.neighbours import neighbour_list

        i, _, d, vectors = neighbour_list(
            "ijdD", positions=x.positions, cell=x.cell, pbc=x.pbc, cutoff=CUTOFF
        )
        energy = 0.5 * 20 * (1 - d / CUTOFF) ** 4
        slope = -4 * 20 * (1 - d / CUTOFF) ** 3 / CUTOFF
        energy = energy + 0.5 * self.step * (d < ANGLES) + self.tilt * np.abs(vectors[:, 0])
        gradient = slope[:, None] * vectors / d[:, None]
        forces = np.zeros((len(x), 3))
        np.add.at(forces, i, gradient)
        virial = -0.5 * vectors.T @ gradient
        energies = np.bincount(i, energy, minlength=len(x))
        forces *= 1 - self.friction
        return Evaluation(float(energies.sum()), energies, forces, virial, 0, 0, 0, 0)


def test_a_step_is_found_where_it_is_and_as_high_as_it_is():
    findings = scans.run(Springs(step=STEP_EV), ValidateSettings(), silent)
    scaled, moved = findings.values["scans"]
    (step,) = scaled["steps"]
    # The second shell of silicon, 12 pairs of every atom, crosses 4 Å when lengths are scaled.
    distance = 5.431 / np.sqrt(2)
    assert step["at"] == pytest.approx(ANGLES / distance - 1, abs=1e-6)
    assert step["step_meV_per_atom"] == pytest.approx(6e3 * STEP_EV, abs=1e-4)
    assert step["where"] == "a pair of atoms crosses the cutoff of angles (4 Å)"
    assert moved["largest_step_meV_per_atom"] == pytest.approx(1e3 * STEP_EV / 8, abs=1e-4)
    path = scans.paths(["Si"])[1]
    for step in moved["steps"]:
        atoms = path.at(step["at"])
        d = pairs(atoms.positions, atoms.cell[:], atoms.pbc, 4.1)[2]
        assert np.abs(d - ANGLES).min() < 1e-5
    assert len(findings.warnings) == 2


def test_a_smooth_potential_has_no_step():
    findings = scans.run(Springs(), ValidateSettings(), silent)
    assert all(row["steps"] == [] for row in findings.values["scans"])
    assert findings.warnings == ()


def test_broken_symmetries_and_wrong_forces_are_found():
    good = invariances.run(Springs(), ValidateSettings(), silent)
    assert good.warnings == ()
    tilted = invariances.run(Springs(tilt=1e-5), ValidateSettings(), silent)
    assert any("a rotation" in line for line in tilted.warnings)
    assert not any("order" in line or "doubled" in line for line in tilted.warnings)
    wrong = invariances.run(Springs(friction=0.2), ValidateSettings(), silent)
    assert [line for line in wrong.warnings if "slope of the energy" in line]
    assert not any("rotation" in line for line in wrong.warnings)


class Whirl(Springs):
    """Forces with a curl, which are the slope of no energy."""

    def _one(self, x):
        out = super()._one(x)
        arms = x.positions - x.positions.mean(axis=0)
        return replace(out, forces=out.forces + 0.5 * np.cross([0, 0, 1.0], arms))


def test_dynamics_conserve_the_energy_of_a_conservative_potential():
    settings = ValidateSettings(steps=200)
    good = dynamics.run(Springs(), settings, silent)
    (row,) = good.values["dynamics"]
    assert abs(row["drift_meV_per_atom_per_ps"]) < 0.3
    assert row["simulated_ps"] == pytest.approx(0.2)
    assert good.warnings == ()
    bad = dynamics.run(Whirl(), settings, silent)
    assert "drifts by" in bad.warnings[0]


def test_light_atoms_have_a_shorter_time_step():
    rows = dynamics.run(Springs(("H", "O")), ValidateSettings(steps=10), silent).values
    assert [row["timestep_fs"] for row in rows["dynamics"]] == [0.5]


class Dimers(Springs):
    """Springs whose atoms fall into each other at short distances."""

    def __init__(self, hole, below):
        super().__init__(("Si", "O"))
        self.hole, self.below = hole, below

    def _one(self, x):
        d = float(np.linalg.norm(x.positions[1] - x.positions[0]))
        energy = 4 * (np.exp(-4 * (d - 2)) - 2 * np.exp(-2 * (d - 2)))
        if d < self.below:
            energy -= self.hole * (1 - d / self.below)
        return Evaluation(
            energy, np.full(2, energy / 2), np.zeros((2, 3)), np.zeros((3, 3)), *[0] * 4
        )


def test_two_atoms():
    good = dimers.run(Dimers(0, 0), ValidateSettings(), silent)
    assert good.warnings == ()
    row = good.values["dimers"][0]
    assert row["bond_length_A"] == pytest.approx(2.0, abs=0.1)
    assert row["bond_energy_eV"] == pytest.approx(-4, abs=0.1)
    assert row["attractive_below_A"] is None
    bad = dimers.run(Dimers(1e5, 1.2), ValidateSettings(), silent)
    assert bad.values["dimers"][0]["attractive_below_A"] == pytest.approx(1.2, abs=0.1)
    assert "below: Si (1." in bad.warnings[0]
    assert bad.warnings[1] == "there the energy is below that of the bond: Si, O"
    # What happens where atoms overlap by half is nobody's concern.
    close = dimers.run(Dimers(1e5, 0.8), ValidateSettings(), silent)
    assert close.values["dimers"][0]["overlap"] is True
    assert not any("Si (" in line for line in close.warnings)


def test_crystals_beside_measured_values():
    potential = EMTPotential()
    potential.model.elements = ("Cu", "Al")
    settings = ValidateSettings(crystals="Cu Si", supercell="8A")
    findings = crystals.run(potential, settings, silent)
    (row,) = findings.values["crystals"]  # the other one is of elements that EMT lacks
    assert row["crystal"] == "Cu"
    assert row["verdict"] == "stable"
    # Of EMT: docs of ASE have 3.59 Å and 134 GPa.
    assert row["lattice_A"] == pytest.approx(3.59, abs=0.01)
    assert row["bulk_modulus_GPa"] == pytest.approx(134, abs=3)
    assert row["measured_bulk_modulus_GPa"] == pytest.approx((168.3 + 2 * 121.2) / 3)
    expected = 100 * abs(row["lattice_A"] / 3.615 - 1)
    assert findings.values["deviation_lattice_percent"] == pytest.approx(expected)
    assert findings.values["deviation_optical_mode_percent"] is None
    assert findings.problems == ()


def test_what_cannot_be_computed_is_a_problem():
    potential = EMTPotential()
    potential.model.elements = ("Cu",)
    settings = ValidateSettings(crystals="Cu", supercell="1,1,0")
    findings = crystals.run(potential, settings, silent)
    assert "Cu: " in findings.problems[0]
    assert "lattice_A" in findings.values["crystals"][0]  # the others are there
    assert "verdict" not in findings.values["crystals"][0]


def test_reference_crystals_are_complete():
    for name, crystal in CRYSTALS.items():
        atoms = crystal.atoms(name)
        assert isinstance(atoms, Atoms)
        assert atoms.get_chemical_formula("metal") is not None
        assert crystal.bulk_modulus > 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checks": "scans dimer"}, "'dimer' is not one of .*did you mean 'dimers'"),
        ({"crystals": "Si Xe"}, "'Xe' is not one of Cu, Al"),
        ({"checks": ""}, "name at least one"),
        ({"steps": 1}, "at least 10"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        ValidateSettings(**options)
