"""The model behind i-PI: units, wrapping, batches, extras, committees, any ASE calculator."""

import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.units import Bohr, Hartree
from ipi_support import SMALL_MODEL, water
from tests_support import hydrogen_oxygen_structures

from dpa3sim import DPA3Calculator, Engine, Potential
from dpa3sim.clients.ipi.evaluator import EXTRAS, BatchEvaluator
from dpa3sim.clients.ipi.serving import CalculatorEvaluator, Settings, make_evaluator
from dpa3sim.common.errors import InputError

TRICLINIC = np.array([[6.21, 0, 0], [0.9, 6.0, 0], [-0.6, 1.1, 6.4]])


@pytest.fixture
def beads():
    """Five beads of water, each in another triclinic cell: cells and positions, bohr."""
    rng = np.random.default_rng(7)
    atoms = water()
    cells, positions = [], []
    for _ in range(5):
        cell = TRICLINIC + rng.uniform(-0.1, 0.1, (3, 3))
        cells.append(cell)
        where = atoms.get_scaled_positions() @ cell
        positions.append(where + rng.normal(scale=0.03, size=where.shape))
    return np.array(cells) / Bohr, np.array(positions) / Bohr


def single(potential, structure, cell, positions):
    """Energy, forces and virial of one structure by the calculator, in atomic units."""
    atoms = structure.copy()
    atoms.set_cell(cell * Bohr)
    atoms.positions = positions * Bohr
    atoms.calc = DPA3Calculator(potential)
    stress = atoms.get_stress(voigt=False)
    return (
        atoms.get_potential_energy() / Hartree,
        atoms.get_forces() * Bohr / Hartree,
        -atoms.get_volume() * stress / Hartree,
    )


def test_a_batch_is_what_the_calculator_says_of_each(smooth, beads):
    evaluate = BatchEvaluator(smooth, water())
    energies, forces, virials, extras = evaluate(*beads)
    assert extras == [""] * 5
    for k in range(5):
        e, f, w = single(smooth, water(), beads[0][k], beads[1][k])
        assert abs(energies[k] - e) < 1e-11
        np.testing.assert_allclose(forces[k], f, atol=1e-11)
        np.testing.assert_allclose(virials[k], w, atol=1e-11)
    np.testing.assert_array_equal(virials, virials.swapaxes(1, 2))
    assert (evaluate.calls, evaluate.structures) == (1, 5)


def test_the_virial_is_minus_the_strain_derivative(smooth, beads):
    evaluate = BatchEvaluator(smooth, water())
    cell, positions = beads[0][:1], beads[1][:1]
    virial = evaluate(cell, positions)[2][0]
    h = 1e-4
    for a in range(3):
        for b in range(3):
            energies = []
            for sign in (1, -1):
                strain = np.eye(3)
                strain[a, b] += 0.5 * sign * h
                strain[b, a] += 0.5 * sign * h
                energies.append(evaluate(cell @ strain, positions @ strain)[0][0])
            derivative = (energies[0] - energies[1]) / (2 * h)
            assert abs(virial[a, b] + derivative) < 1e-7


@pytest.mark.parametrize("cells_away", [1, 100, 10_000])
def test_atoms_may_have_drifted_any_number_of_cells_away(smooth, beads, cells_away):
    rng = np.random.default_rng(cells_away)
    cells, positions = beads
    evaluate = BatchEvaluator(smooth, water())
    e, f, w, _ = evaluate(cells, positions)
    shifts = rng.integers(-cells_away, cells_away + 1, (5, 24, 3)).astype(float)
    shifts[0] = cells_away  # and the whole structure
    drifted = evaluate(cells, positions + shifts @ cells)
    tolerance = 1e-12 * cells_away + 1e-11  # what the positions have lost
    np.testing.assert_allclose(drifted[0], e, atol=tolerance)
    np.testing.assert_allclose(drifted[1], f, atol=tolerance)
    np.testing.assert_allclose(drifted[2], w, atol=10 * tolerance)


def test_lists_are_kept_while_atoms_drift_and_are_wrapped(beads):
    """One search for each slot, or fewer: atoms that jump by a lattice vector need none."""
    potential = Potential(SMALL_MODEL)
    cells, positions = beads
    evaluate = BatchEvaluator(potential, water())
    evaluate(cells, positions)
    searched = potential.counters.rebuilds
    assert 1 <= searched <= 5
    rng = np.random.default_rng(0)
    for _ in range(4):
        jumps = rng.integers(-3, 4, (5, 24, 3)).astype(float)
        moved = positions + rng.normal(scale=0.01, size=positions.shape) + jumps @ cells
        evaluate(cells, moved)
    # Whole bead exchanged between slots: the exact test finds a list that fits, or searches.
    evaluate(cells[::-1], positions[::-1])
    assert potential.counters.rebuilds + potential.counters.row_updates <= searched + 2
    assert potential.counters.batches == 6


def test_periodic_axes_are_those_of_the_structure(smooth):
    """i-PI always sends a full cell; a molecule and a slab must not see their images."""
    box = np.diag([4.0, 4.0, 4.0]) / Bohr
    for atoms in hydrogen_oxygen_structures():
        if atoms.pbc.all():
            continue
        cell = np.where(atoms.pbc[:, None], atoms.cell[:] / Bohr, box)
        expected = smooth.evaluate([atoms])[0]
        e, f, *_ = BatchEvaluator(smooth, atoms)(cell[None], atoms.positions[None] / Bohr)
        assert abs(e[0] * Hartree - expected.energy) < 1e-9
        np.testing.assert_allclose(f[0] * Hartree / Bohr, expected.forces, atol=1e-9)


def test_a_cell_of_zeros_along_other_axes(smooth):
    """ASE's server sends the cell as it is."""
    atoms = next(a for a in hydrogen_oxygen_structures() if a.pbc.sum() == 1)
    atoms.positions[0, 0] += 5 * atoms.cell[0, 0]
    e, *_ = BatchEvaluator(smooth, atoms)(atoms.cell[None] / Bohr, atoms.positions[None] / Bohr)
    assert abs(e[0] * Hartree - smooth.evaluate([atoms])[0].energy) < 1e-9


def test_extras_are_json_in_atomic_units(smooth, beads):
    evaluate = BatchEvaluator(smooth, water(), tuple(EXTRAS))
    energies, _, _, extras = evaluate(*beads)
    for energy, text in zip(energies, extras, strict=True):
        values = json.loads(text)
        assert set(values) == set(EXTRAS)
        assert abs(sum(values["energy_atomic"]) - energy) < 1e-11
        assert values["n_edges"] > 0
    with pytest.raises(InputError, match="unknown extra 'energy_atomc'; did you mean 'energy_a"):
        BatchEvaluator(smooth, water(), ["energy_atomc"])


def test_a_committee_gives_its_mean_and_every_member(smooth, beads, tmp_path):
    other = Potential(SMALL_MODEL.parent.parent / "charge_spin/model.pt")
    atoms = water()
    atoms.info["charge_spin"] = (0, 1)
    members = [smooth, other]
    alone = [BatchEvaluator(p, atoms)(*beads) for p in members]
    e, f, w, extras = BatchEvaluator(members, atoms)(*beads)
    np.testing.assert_allclose(e, (alone[0][0] + alone[1][0]) / 2, atol=1e-12)
    np.testing.assert_allclose(f, (alone[0][1] + alone[1][1]) / 2, atol=1e-12)
    np.testing.assert_allclose(w, (alone[0][2] + alone[1][2]) / 2, atol=1e-12)
    for k, text in enumerate(extras):
        values = json.loads(text)
        for m in range(2):
            assert abs(values["committee_pot"][m] - alone[m][0][k]) < 1e-11
            np.testing.assert_allclose(
                values["committee_force"][m], alone[m][1][k].ravel(), atol=1e-11
            )
            np.testing.assert_allclose(
                values["committee_virial"][m], alone[m][2][k].ravel(), atol=1e-11
            )


def test_structures_are_checked_before_anything_is_served(smooth):
    with pytest.raises(InputError, match="unknown element 'Au'"):
        BatchEvaluator(smooth, Atoms("Au"))
    with pytest.raises(InputError, match="at least one model"):
        BatchEvaluator([], water())


def test_sizes_of_batches_on_a_gpu():
    """Few sizes, so that few programs are captured; with at most a third in vain."""
    evaluate = BatchEvaluator.__new__(BatchEvaluator)
    evaluate._device = type("Device", (), {"type": "cuda"})()
    rooms = [evaluate._room(m) for m in range(1, 65)]
    assert all(m <= room <= 1.5 * m for m, room in enumerate(rooms, start=1))
    assert sorted(set(rooms)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]


def test_everything_that_can_be_served(smooth, beads):
    expected = BatchEvaluator(smooth, water())(*beads)
    with Engine(smooth).client() as client:
        ways = [smooth, DPA3Calculator(smooth), client, [smooth]]
        for what in ways:
            results = make_evaluator(what, water(), Settings(batch=5))(*beads)
            for got, wanted in zip(results[:3], expected[:3], strict=True):
                np.testing.assert_allclose(got, wanted, atol=1e-12)
    function = BatchEvaluator(smooth, water()).__call__
    assert make_evaluator(function, water(), Settings()) == function
    with pytest.raises(InputError, match="is not a potential"):
        make_evaluator(3, water(), Settings())
    with pytest.raises(InputError, match="available with a DPA3 model only"):
        make_evaluator(EMT(), Atoms("Cu"), Settings(extras="n_edges"))


def test_any_ase_calculator():
    atoms = Atoms("Cu4", cell=np.diag([3.7] * 3), pbc=True, scaled_positions=np.eye(4, 3) / 2)
    atoms.rattle(0.05, seed=2)
    evaluate = CalculatorEvaluator(EMT(), atoms)
    cells = np.array([atoms.cell, atoms.cell * 1.01]) / Bohr
    positions = np.array([atoms.positions, atoms.positions * 1.01]) / Bohr
    e, f, w, _ = evaluate(cells, positions)
    for k in range(2):
        check = atoms.copy()
        check.set_cell(cells[k] * Bohr)
        check.positions = positions[k] * Bohr
        check.calc = EMT()
        assert abs(e[k] * Hartree - check.get_potential_energy()) < 1e-10
        np.testing.assert_allclose(f[k] * Hartree / Bohr, check.get_forces(), atol=1e-9)
        stress = check.get_stress(voigt=False)
        np.testing.assert_allclose(w[k] * Hartree, -stress * check.get_volume(), atol=1e-9)


def test_a_molecule_of_an_ase_calculator_has_its_virial():
    atoms = molecule("CO2")
    evaluate = CalculatorEvaluator(LennardJones(sigma=1.0, epsilon=0.1, rc=5.0), atoms)
    x = atoms.positions / Bohr
    box = np.eye(3)[None] * 50
    virial = evaluate(box, x[None])[2][0]
    h = 1e-5
    energies = [evaluate(box, x[None] @ (np.eye(3) * (1 + s * h)))[0][0] for s in (1, -1)]
    assert abs(np.trace(virial) + (energies[0] - energies[1]) / (2 * h)) < 1e-8


def test_a_periodic_calculator_without_stress_is_refused():
    class NoStress(EMT):
        implemented_properties = ("energy", "forces")

    with pytest.raises(InputError, match="NoStress provides no stress"):
        CalculatorEvaluator(NoStress(), Atoms("Cu", cell=[3, 3, 3], pbc=True))
