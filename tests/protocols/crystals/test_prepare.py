"""What precedes every property: tight relaxation, closed on failure, many cells at once."""

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.constraints import FixAtoms

from dpa3sim import Potential
from dpa3sim.common.errors import InputError, NotConvergedError
from dpa3sim.protocols import relax
from dpa3sim.protocols.crystals import prepare
from dpa3sim.protocols.crystals.prepare import PropertySettings
from dpa3sim.run.store import StoredPotential


def stress_gpa(potential, atoms):
    result = potential.evaluate([atoms])[0]
    return np.abs(result.virial).max() / atoms.get_volume() * 160.21766208


@pytest.mark.parametrize("fix_symmetry", [True, False])
def test_relaxed_tightly_in_the_input_cell(embedded64, fix_symmetry):
    start = bulk("Si", a=5.3, cubic=True)
    start.rotate(20, (1, 2, 3), rotate_cell=True)
    settings = PropertySettings(fix_symmetry=fix_symmetry)
    ready = prepare.prepare(start, embedded64, settings, "elastic constants")
    assert len(ready.atoms) == 8
    assert stress_gpa(embedded64, ready.atoms) < 0.0051
    assert ready.atoms.get_volume() ** (1 / 3) == pytest.approx(5.465, abs=0.002)
    assert ready.cells.label() == "Fd-3m (227)"
    assert len(ready.cells.primitive.atoms) == 2
    # Not rotated: the deformation from the start is a pure scaling.
    scale = np.linalg.solve(start.cell[:], ready.atoms.cell[:])
    np.testing.assert_allclose(scale, scale[0, 0] * np.eye(3), atol=1e-5)


def test_every_cell_of_a_crystal_is_relaxed_alike(embedded64):
    energies = [
        prepare.prepare(atoms, embedded64, PropertySettings(), "x").relaxation.steps[-1].energy_eV
        for atoms in (bulk("Si", a=5.4), bulk("Si", a=5.4, cubic=True), bulk("Si", a=5.4) * 2)
    ]
    assert energies == pytest.approx(energies[:1] * 3, abs=1e-9)


def test_no_relaxation_takes_the_structure_as_it_is(embedded64):
    start = bulk("Si", a=5.3)
    ready = prepare.prepare(start, embedded64, PropertySettings(relax=False), "x")
    np.testing.assert_array_equal(ready.atoms.cell[:], start.cell[:])
    assert ready.relaxation is None
    assert ready.to_dict()["relaxed"] is False


def test_failing_to_converge_closes_the_way(embedded64):
    with pytest.raises(NotConvergedError, match=r"did not converge in 1 steps \(largest stress"):
        prepare.prepare(bulk("Si", a=5.3), embedded64, PropertySettings(steps=1), "x")
    assert NotConvergedError.exit_code == 3


def test_the_precision_is_that_of_the_settings():
    single = Potential()
    assert single.dtype == "float32"
    start = bulk("Si", a=5.46)
    ready = prepare.prepare(start, single, PropertySettings(relax=False), "x")
    assert ready.potential.dtype == "float64"
    assert not ready.warnings
    settings = PropertySettings(relax=False, dtype="auto")
    ready = prepare.prepare(start, single, settings, "x")
    assert ready.potential is single
    assert "computed in float32" in ready.warnings[0]


def test_constraints_are_ignored_and_told(embedded64):
    start = bulk("Si", a=5.46)
    start.set_constraint(FixAtoms([0]))
    ready = prepare.prepare(start, embedded64, PropertySettings(relax=False), "x")
    assert "constraints" in ready.warnings[0]
    assert not ready.atoms.constraints


def test_forces_that_symmetry_hides_are_told(embedded64):
    """Diamond (docs/model.md#ties-at-the-selection-limit) loses its symmetry, not silicon."""
    # What is left depends on which of equal distances the cut leaves: 2e-4 eV/Å in this cell.
    settings = PropertySettings(fmax=1e-5)
    diamond = prepare.prepare(bulk("C", a=3.6), embedded64, settings, "x")
    assert any("break the symmetry" in warning for warning in diamond.warnings)
    noisy = bulk("Si", cubic=True)
    noisy.rattle(0.003, seed=2)
    silicon = prepare.prepare(noisy, embedded64, PropertySettings(symprec=0.05), "x")
    assert not silicon.warnings  # made symmetric first, so that nothing is hidden
    assert silicon.cells.label() == "Fd-3m (227)"


def test_a_molecule_is_refused(embedded64):
    with pytest.raises(InputError, match="phonons need a crystal"):
        prepare.prepare(molecule("H2O"), embedded64, PropertySettings(), "phonons")


def test_relaxing_together_is_relaxing_each(embedded64, tmp_path):
    """The same results as one by one, with one batch for each step."""
    cells = []
    for number in range(4):
        cells.append(bulk("Si", a=5.46))
        cells[-1].rattle(0.02, seed=number)
    settings = relax.Settings(fmax=1e-3)
    events = []
    with StoredPotential(embedded64, tmp_path / "s") as stored:
        results = prepare.relax_together(cells, stored, settings, "strain", events.append)
        batches = stored.statistics.batches
    alone = [relax.run(atoms, embedded64, settings) for atoms in cells]
    for a, b in zip(results, alone, strict=True):
        np.testing.assert_allclose(a.atoms.positions, b.atoms.positions, atol=1e-12)
        assert len(a.steps) == len(b.steps)
    assert batches == max(len(r.steps) for r in alone)
    assert [e.done for e in events] == [1, 2, 3, 4]
    assert {e.total for e in events} == {4}


def test_one_that_does_not_converge_stops_all(embedded64):
    cells = [bulk("Si", a=5.46), bulk("Si", a=5.46)]
    cells[1].rattle(0.1, seed=1)
    with pytest.raises(NotConvergedError, match="relaxation 1 of 2"):
        prepare.relax_together(cells, embedded64, relax.Settings(fmax=1e-4, steps=1), "strain")
