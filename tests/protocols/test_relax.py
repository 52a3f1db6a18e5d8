"""The relaxation protocol: known lattice constants, modes, honest convergence, resuming."""

import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from ase.constraints import FixAtoms, FixSymmetry
from ase.io import read
from tests_support import EXAMPLES

from dpa3sim import Potential
from dpa3sim.common.errors import Dpa3simError, InputError, NonFiniteError
from dpa3sim.protocols import relax
from dpa3sim.protocols.crystals import cells
from dpa3sim.protocols.crystals.optimization import OPTIMIZERS
from dpa3sim.protocols.crystals.space_group import KeepSpaceGroup
from dpa3sim.protocols.relax import Settings

KNOWN = {
    "Si": ((5.465, 5.465, 5.465), 0.005, "Fd-3m (227)"),
    "MgO": ((4.255, 4.255, 4.255), 0.005, "Fm-3m (225)"),
    "Cu": ((3.625, 3.625, 3.625), 0.005, "Fm-3m (225)"),
    "GaN": ((3.216, 3.216, 5.235), 0.01, "P6_3mc (186)"),
}


def strained_and_rattled(atoms, seed=0, strain=0.03, rattle=0.05):
    rng = np.random.default_rng(seed)
    deformation = rng.uniform(-1, 1, (3, 3))
    deformation += deformation.T
    deformation *= strain / np.abs(deformation).max()
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + deformation), scale_atoms=True)
    atoms.rattle(rattle, seed=seed)
    return atoms


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", KNOWN)
def test_lattice_constants_from_strained_and_rattled_cells(embedded, name, seed):
    lengths, tolerance, group = KNOWN[name]
    start = strained_and_rattled(read(EXAMPLES / f"{name}.vasp"), seed)
    result = relax.run(start, embedded, Settings(cell="full")).to_dict()
    assert result["converged"]
    assert result["conventional_lengths_A"] == pytest.approx(lengths, abs=tolerance)
    assert result["cell_lengths_A"] == pytest.approx(lengths, abs=tolerance)
    assert result["spacegroup_initial"] == "P1 (1)"
    assert result["spacegroup_final"] == group


def test_primitive_and_conventional_cells_agree(embedded):
    primitive = relax.run(bulk("Si", a=5.3), embedded, Settings(cell="full", fmax=1e-3, smax=1e-3))
    conventional = relax.run(
        bulk("Si", a=5.5, cubic=True), embedded, Settings(cell="full", fmax=1e-3, smax=1e-3)
    )
    a, b = primitive.to_dict(), conventional.to_dict()
    assert a["conventional_lengths_A"] == pytest.approx(b["conventional_lengths_A"], abs=1e-4)
    assert a["energy_per_atom_eV"] == pytest.approx(b["energy_per_atom_eV"], abs=1e-6)


def test_convergence_is_what_the_forces_and_stress_say(embedded):
    start = strained_and_rattled(bulk("Cu", cubic=True))
    settings = Settings(cell="full", fmax=0.02, smax=0.2)
    result = relax.run(start, embedded, settings)
    check = embedded.evaluate([result.atoms])[0]
    stress = (check.virial + check.virial.T) / 2 / result.atoms.get_volume() * 160.21766208
    assert result.converged
    assert np.linalg.norm(check.forces, axis=1).max() <= 0.02
    assert np.abs(stress).max() <= 0.2
    assert result.steps[-1].fmax_eV_per_A == pytest.approx(
        np.linalg.norm(check.forces, axis=1).max(), abs=1e-5
    )
    # Every step before the last one had not converged yet.
    assert all(s.fmax_eV_per_A > 0.02 or s.smax_GPa > 0.2 for s in result.steps[:-1])


def test_small_forces_alone_are_no_convergence(embedded):
    """A perfect crystal under strain has no forces, but stress (TorchSim issue 582)."""
    start = bulk("Cu", a=3.7, cubic=True)
    result = relax.run(start, embedded, Settings(cell="full", steps=0))
    assert result.steps[-1].fmax_eV_per_A < 1e-4
    assert not result.converged
    assert "stress" in result.reasons[0]
    assert relax.run(start, embedded, Settings(cell="fixed", steps=0)).converged


def test_too_few_steps_is_not_convergence(embedded):
    result = relax.run(strained_and_rattled(bulk("Cu", cubic=True)), embedded, Settings(steps=2))
    assert not result.converged
    assert result.steps[-1].index == 2
    assert "largest force" in result.reasons[0]


@pytest.mark.parametrize("cell", ["fixed", "shape", "volume", "iso"])
def test_cell_modes_keep_what_they_promise(embedded, cell):
    start = strained_and_rattled(bulk("Cu", a=3.7, cubic=True), seed=3)
    result = relax.run(start, embedded, Settings(cell=cell))
    assert result.converged
    before, after = start.cell, result.atoms.cell
    deformation = np.linalg.solve(before[:], after[:])
    if cell == "fixed":
        np.testing.assert_array_equal(after[:], before[:])
    elif cell == "shape":
        assert after.volume == pytest.approx(before.volume, rel=1e-6)
        assert np.abs(after[:] - before[:]).max() > 1e-3
    else:
        scale = (after.volume / before.volume) ** (1 / 3)
        np.testing.assert_allclose(deformation, scale * np.eye(3), atol=1e-6)
        assert abs(scale - 1) > 1e-3


@pytest.mark.parametrize("cell", ["full", "iso"])
def test_pressure(embedded, cell):
    settings = Settings(cell=cell, pressure=30.0)
    result = relax.run(bulk("Cu", cubic=True), embedded, settings)
    assert result.converged
    # 30 GPa outside is balanced by a stress of -30 GPa inside.
    assert result.stress_GPa[:3] == pytest.approx([-30.0] * 3, abs=0.05)
    last = result.steps[-1]
    assert last.enthalpy_eV == pytest.approx(last.energy_eV + 30.0 / 160.21766208 * last.volume_A3)


def test_fix_symmetry_keeps_the_space_group(embedded):
    start = bulk("Ti", "bcc", 3.3, cubic=True)  # unstable in this group
    result = relax.run(start, embedded, Settings(cell="full", fix_symmetry=True))
    assert result.spacegroup_initial == result.spacegroup_final == "Im-3m (229)"
    assert result.atoms.constraints == []


def test_fix_symmetry_makes_an_almost_symmetric_structure_exact(embedded64):
    start = bulk("ZnO", "wurtzite", a=3.25, c=5.2)
    start.rotate(20, (1, 2, 3), rotate_cell=True)
    start.rattle(1e-3, seed=1)
    settings = Settings(cell="full", fix_symmetry=True, fmax=1e-3)
    result = relax.run(start, embedded64, settings)
    assert result.converged
    assert result.spacegroup_initial == result.spacegroup_final == "P6_3mc (186)"
    # Sites off by 1e-3 Å have forces of some 0.01 eV/Å, which the constraint would hide.
    assert np.linalg.norm(result.atoms.get_forces(), axis=1).max() < 1e-3
    exact = cells.symmetry(result.atoms, 1e-6)
    assert exact.number == 186
    np.testing.assert_array_equal(result.initial.positions, start.positions)


@pytest.mark.parametrize("cubic", [False, True])
def test_the_constraint_is_that_of_ase(cubic):
    atoms = bulk("ZnS", "zincblende", a=5.4, cubic=cubic)
    atoms.rotate(20, (1, 2, 3), rotate_cell=True)
    ours, theirs = KeepSpaceGroup(atoms, 0.01), FixSymmetry(atoms.copy(), 0.01)
    assert ours.exact() == atoms
    rng = np.random.default_rng(0)
    forces, stress = rng.normal(size=(len(atoms), 3)), rng.normal(size=6)
    cell = atoms.cell[:] @ (np.eye(3) + 0.02 * rng.normal(size=(3, 3)))
    for name, given in (("forces", forces), ("stress", stress), ("cell", cell)):
        pair = given.copy(), given.copy()
        for constraint, values in zip((ours, theirs), pair, strict=True):
            getattr(constraint, f"adjust_{name}")(atoms, values)
        assert np.abs(pair[0] - given).max() > 1e-3
        np.testing.assert_allclose(*pair, atol=1e-12)


def test_constraints_are_honoured(embedded):
    slab = fcc111("Cu", (1, 1, 4), a=3.7, vacuum=6.0)
    slab.rattle(0.05, seed=1)
    slab.set_constraint(FixAtoms([0, 1]))
    result = relax.run(slab, embedded, Settings())
    assert result.converged
    np.testing.assert_array_equal(result.atoms.positions[:2], slab.positions[:2])
    assert np.abs(result.atoms.positions[2:] - slab.positions[2:]).max() > 1e-3
    assert len(result.atoms.constraints) == 1


def test_molecule(embedded):
    result = relax.run(molecule("H2O"), embedded, Settings())
    assert result.converged
    assert result.atoms.get_distance(0, 1) == pytest.approx(0.97, abs=0.02)
    assert result.atoms.get_angle(1, 0, 2) == pytest.approx(104.5, abs=1.5)
    data = result.to_dict()
    assert data["volume_A3"] is None
    assert data["spacegroup_final"] is None
    assert data["cell_lengths_A"] is None


def test_slab_relaxes_in_its_plane_only(embedded):
    slab = fcc111("Al", (1, 1, 4), a=4.15, vacuum=7.0)
    slab.pbc = (True, True, False)
    result = relax.run(slab, embedded, Settings(cell="full"))
    assert result.converged
    np.testing.assert_array_equal(result.atoms.cell[2], slab.cell[2])
    assert result.atoms.cell[0, 0] < slab.cell[0, 0]


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda a: a.set_pbc(False), {"cell": "full"}, "this one is a molecule"),
        (lambda a: a.set_pbc((1, 1, 0)), {"cell": "shape"}, "three periodic axes"),
        (lambda a: a.set_pbc((1, 1, 0)), {"fix_symmetry": True}, "all three axes"),
        (lambda a: a.rotate(20, "x", rotate_cell=True), {"cell": "full"}, "coordinate axes"),
    ],
)
def test_settings_that_do_not_fit(embedded, change, settings, message):
    atoms = bulk("Cu", cubic=True)
    if "coordinate" in message:
        atoms.pbc = (True, True, False)
    change(atoms)
    with pytest.raises(InputError, match=message):
        relax.run(atoms, embedded, Settings(**settings))


def test_the_input_is_left_alone(embedded):
    start = strained_and_rattled(bulk("Cu", cubic=True))
    before = start.copy()
    relax.run(start, embedded, Settings(cell="full", steps=3))
    assert start == before
    assert start.calc is None


def test_continuing_gives_one_history_and_the_same_minimum(embedded):
    start = strained_and_rattled(bulk("Si", cubic=True), seed=4)
    whole = relax.run(start, embedded, Settings(cell="full"))
    first = relax.run(start, embedded, Settings(cell="full", steps=6))
    seen = []
    second = relax.run(
        first.atoms,
        embedded,
        Settings(cell="full"),
        progress=lambda step, atoms: seen.append(step.index),
        initial=start,
        history=first.steps,
    )
    assert seen[0] == 7
    assert [s.index for s in second.steps] == list(range(len(second.steps)))
    assert second.converged
    assert second.spacegroup_initial == whole.spacegroup_initial
    a, b = whole.to_dict(), second.to_dict()
    assert a["energy_initial_eV"] == b["energy_initial_eV"]
    assert a["energy_eV"] == pytest.approx(b["energy_eV"], abs=1e-3)


def test_steps_count_over_sessions(embedded):
    start = strained_and_rattled(bulk("Si", cubic=True), seed=4)
    first = relax.run(start, embedded, Settings(steps=2))
    second = relax.run(first.atoms, embedded, Settings(steps=5), history=first.steps)
    assert second.steps[-1].index == 5


def test_an_optimizer_that_goes_astray_is_an_error(embedded, monkeypatch):
    """Atoms that end up on top of each other are no result."""
    start = molecule("H2O")
    start.rattle(0.2, seed=1)
    evaluate = Potential.evaluate
    calls = []

    def fail_later(self, structures):
        calls.append(1)
        if len(calls) > 2:
            raise InputError("atoms 0 and 1 overlap")
        return evaluate(self, structures)

    monkeypatch.setattr(Potential, "evaluate", fail_later)
    with pytest.raises(NonFiniteError, match="astray after step 1: atoms 0 and 1") as error:
        relax.run(start, embedded, Settings())
    assert isinstance(error.value, Dpa3simError)
    assert error.value.exit_code == 4


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_finds_the_minimum(embedded, optimizer):
    start = strained_and_rattled(bulk("Cu"), seed=5, strain=0.01, rattle=0.0)
    result = relax.run(start, embedded, Settings(cell="full", optimizer=optimizer))
    assert result.converged
    assert result.to_dict()["conventional_lengths_A"][0] == pytest.approx(3.625, abs=0.005)


def test_results_are_json_ready(embedded):
    import json

    result = relax.run(bulk("Cu"), embedded, Settings(cell="full", steps=1))
    text = json.dumps(result.to_dict(), allow_nan=False)
    data = json.loads(text)
    assert data["settings"]["fmax_eV_per_A"] == 0.01
    assert data["n_atoms"] == 1
