"""The potential of OpenMM-ML: pure and mixed systems against the model alone."""

from importlib import import_module

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from tests_support import DATA

from dpa3sim import DPA3Calculator, Potential
from dpa3sim.common.errors import InputError

WATER = DATA / "models/dynamic/model.pt"


openmm = pytest.importorskip("openmm", reason="needs OpenMM")
mlpotential = pytest.importorskip("openmmml.mlpotential", reason="needs OpenMM-ML")

from openmm import app, unit  # noqa: E402

from dpa3sim.openmm import Factory  # noqa: E402


@pytest.fixture(autouse=True)
def registered():
    """As the entry point does where this package is installed."""
    mlpotential.MLPotential.registerImplFactory("dpa3", Factory())


def topology_of(atoms, residues=1):
    """A topology with the elements, and the box if there is one."""
    topology = app.Topology()
    chain = topology.addChain()
    for part in np.array_split(np.arange(len(atoms)), residues):
        residue = topology.addResidue("UNK", chain)
        for index in part:
            symbol = atoms.symbols[index]
            element = app.Element.getBySymbol(symbol)
            topology.addAtom(f"{symbol}{index}", element, residue)
    if atoms.pbc.any():
        topology.setPeriodicBoxVectors(atoms.cell[:] * unit.angstrom)
    return topology


def context_of(system, atoms):
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.0005), platform)
    context.setPositions(atoms.positions * unit.angstrom)
    return context


def results(context, groups=-1):
    """Energy, eV, and forces, eV/Å."""
    state = context.getState(getEnergy=True, getForces=True, groups=groups)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.angstrom)
    return energy * units.kJ / units.mol, forces * units.kJ / units.mol


def water_box():
    atoms = Atoms(cell=[7.0, 7.5, 8.0], pbc=True)
    for index in range(4):
        one = molecule("H2O")
        one.rotate(40 * index, "z")
        one.translate([3.4 * (index % 2), 3.6 * (index // 2), 1 + index])
        atoms += one
    return atoms


@pytest.mark.parametrize("periodic", [False, True])
def test_pure_systems(periodic):
    atoms = water_box()
    if not periodic:
        atoms.pbc = False
    potential = mlpotential.MLPotential("dpa3", model=WATER, dtype="float64")
    context = context_of(potential.createSystem(topology_of(atoms)), atoms)
    energy, forces = results(context)
    atoms.calc = DPA3Calculator(WATER, dtype="float64")
    assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-6)


def test_the_box_may_change():
    atoms = water_box()
    potential = mlpotential.MLPotential("dpa3", model=WATER)
    context = context_of(potential.createSystem(topology_of(atoms)), atoms)
    atoms.set_cell(atoms.cell * 1.02, scale_atoms=True)
    context.setPeriodicBoxVectors(*atoms.cell[:] * unit.angstrom)
    context.setPositions(atoms.positions * unit.angstrom)
    atoms.calc = DPA3Calculator(WATER)
    assert results(context)[0] == pytest.approx(atoms.get_potential_energy(), abs=1e-6)


def test_mixed_systems():
    """A conventional force field for all, of which the model takes over one molecule."""
    atoms = water_box()
    topology = topology_of(atoms, residues=4)
    conventional = openmm.System()
    conventional.setDefaultPeriodicBoxVectors(*atoms.cell[:] / 10)
    pairs = openmm.NonbondedForce()
    pairs.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    pairs.setCutoffDistance(0.3)
    for mass in atoms.get_masses():
        conventional.addParticle(mass)
        pairs.addParticle(0.1, 0.2, 0.5)
    conventional.addForce(pairs)
    potential = mlpotential.MLPotential("dpa3", model=WATER, dtype="float64")
    chosen = [3, 4, 5]
    mixed = potential.createMixedSystem(topology, conventional, chosen, forceGroup=7)
    energy, forces = results(context_of(mixed, atoms), groups={7})
    alone = atoms[chosen]
    alone.calc = DPA3Calculator(WATER, dtype="float64")
    assert energy == pytest.approx(alone.get_potential_energy(), abs=1e-6)
    np.testing.assert_allclose(forces[chosen], alone.get_forces(), atol=1e-6)
    rest = np.delete(np.arange(len(atoms)), chosen)
    np.testing.assert_allclose(forces[rest], 0, atol=1e-9)


def test_lists_are_kept_and_energy_is_conserved():
    atoms = molecule("H2O")
    potential = Potential(WATER, dtype="float64")
    implementation = import_module("dpa3sim.clients.openmm").Implementation(potential)
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    implementation.addForces(topology_of(atoms), system, None, 0)
    context = context_of(system, atoms)

    def total():
        state = context.getState(getEnergy=True)
        energy = state.getPotentialEnergy() + state.getKineticEnergy()
        return energy.value_in_unit(unit.kilojoule_per_mole)

    context.setVelocitiesToTemperature(300, 1)
    before, rebuilds = total(), potential.counters.rebuilds
    context.getIntegrator().setStepSize(0.0001)
    context.getIntegrator().step(100)
    assert potential.counters.rebuilds == rebuilds
    assert total() == pytest.approx(before, abs=0.05)


def test_systems_can_be_saved():
    atoms = molecule("H2O")
    system = mlpotential.MLPotential("dpa3", model=WATER).createSystem(topology_of(atoms))
    again = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    assert results(context_of(again, atoms))[0] == results(context_of(system, atoms))[0]


def test_charge_and_spin():
    path = DATA / "models/charge_spin/model.pt"
    atoms = molecule("H2O")
    potential = mlpotential.MLPotential("dpa3", model=path)
    system = potential.createSystem(topology_of(atoms), charge=-1, spin=3)
    atoms.info["charge_spin"] = [-1, 3]
    atoms.calc = DPA3Calculator(path)
    energy = results(context_of(system, atoms))[0]
    assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)


def test_elements():
    potential = mlpotential.MLPotential("dpa3", model=WATER)
    with pytest.raises(InputError, match="is C, which model model does not know"):
        potential.createSystem(topology_of(molecule("CH4")))
    topology = topology_of(molecule("H2O"))
    topology.addAtom("EP", None, next(topology.residues()))
    with pytest.raises(InputError, match=r"EP.* has no element"):
        potential.createSystem(topology)
    with pytest.raises(TypeError, match="abacus"):
        mlpotential.MLPotential("dpa3", model=WATER, abacus=1)
