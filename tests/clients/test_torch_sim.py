"""The model for torch-sim: its own suites, and its dynamics beside ours."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE
from tests_support import DATA, hydrogen_oxygen_structures, structures_with_inputs

from dpa3sim import DPA3Calculator, Engine, Potential
from dpa3sim.common.errors import InputError
from dpa3sim.uncertainty import rigidity

torch = pytest.importorskip("torch")
ts = pytest.importorskip("torch_sim", reason="needs torch-sim-atomistic (Python 3.12)")

from torch_sim.models.interface import SumModel, validate_model_outputs  # noqa: E402
from torch_sim.models.lennard_jones import LennardJonesModel  # noqa: E402
from torch_sim.testing import (  # noqa: E402
    CONSISTENCY_SIMSTATES,
    SIMSTATE_GENERATORS,
    assert_model_calculator_consistency,
)

from dpa3sim.torchsim import DPA3Model  # noqa: E402

CPU = torch.device("cpu")
WATER = DATA / "models/dynamic/model.pt"


@pytest.fixture(scope="module")
def model(embedded64):
    return DPA3Model(embedded64)


def state_of(structures):
    return ts.io.atoms_to_state(structures, CPU, torch.float64)


def rows(pbc):
    """The mixed structures with these periodic axes: a state has the same for all its systems."""
    return [x for x in hydrogen_oxygen_structures() if tuple(x.pbc) == pbc]


def mixed(number):
    """Cells of many sizes and shapes with hydrogen and oxygen, without any symmetry."""
    seeds = [
        bulk("O", "fcc", a=3.4),
        bulk("OH", "rocksalt", a=3.6, cubic=True),
        bulk("O", "bcc", a=2.9, cubic=True),
        bulk("OH", "cesiumchloride", a=2.4),
        bulk("O", "hcp", a=2.5, c=4.1),
    ]
    rng = np.random.default_rng(3)
    found = []
    for index in range(number):
        atoms = seeds[index % len(seeds)].copy()
        strain = np.eye(3) + rng.uniform(-0.02, 0.02, (3, 3))
        atoms.set_cell(atoms.cell @ strain, scale_atoms=True)
        atoms.rattle(0.05, seed=index)
        atoms.set_velocities(rng.normal(0, 0.02, (len(atoms), 3)))
        found.append(atoms)
    return found


def test_their_validation():
    validate_model_outputs(DPA3Model(dtype=torch.float64, device=CPU), CPU, torch.float64)
    validate_model_outputs(DPA3Model(dtype="float32", device=None), CPU, torch.float32)


@pytest.mark.parametrize("name", CONSISTENCY_SIMSTATES)
def test_their_consistency_with_the_calculator(name, model, embedded64):
    state = SIMSTATE_GENERATORS[name](CPU, torch.float64)
    assert_model_calculator_consistency(model, DPA3Calculator(embedded64), state)


@pytest.mark.parametrize(
    "pbc", [(True, True, True), (False, False, False), (True, True, False), (True, False, False)]
)
def test_a_batch_is_what_its_systems_are_alone(pbc):
    potential = Potential(WATER, dtype="float64")
    structures = rows(pbc)
    output = DPA3Model(potential)(state_of(structures))
    forces = np.split(output["forces"].numpy(), np.cumsum([len(x) for x in structures])[:-1])
    for index, atoms in enumerate(structures):
        atoms.calc = DPA3Calculator(potential)
        assert output["energy"][index].item() == pytest.approx(atoms.get_potential_energy())
        np.testing.assert_allclose(forces[index], atoms.get_forces(), atol=1e-12)
        if any(pbc):
            stress = atoms.get_stress(voigt=False)
            np.testing.assert_allclose(output["stress"][index], stress, atol=1e-12)
    assert ("stress" in output) == any(pbc)
    assert output["energies"].sum().item() == pytest.approx(output["energy"].sum().item())


def test_tensors_of_any_layout():
    model = DPA3Model(WATER, dtype="float64")
    state = state_of(rows((True, True, True)))
    expected = model(state)
    strided = torch.zeros(state.n_atoms, 7, dtype=torch.float64)[:, ::2][:, :3]
    strided.copy_(state.positions)
    transposed = state.cell.transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided.is_contiguous()
    assert not transposed.is_contiguous()
    state.positions, state.cell = strided.requires_grad_(True), transposed
    found = model(state)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=0, atol=0)
        assert not found[name].requires_grad


def test_what_is_computed():
    state = state_of([bulk("O", "fcc", a=3.2)])
    model = DPA3Model(WATER, compute_forces=False, compute_stress=False)
    assert set(model(state)) == {"energy", "energies"}
    model.compute_forces = True
    assert set(model(state)) == {"energy", "energies", "forces"}
    assert model(state)["forces"].dtype == model.dtype == torch.float64
    with pytest.raises(InputError, match="in the Potential"):
        DPA3Model(model.potential, dtype="float32")
    with pytest.raises(InputError, match="dtype"):
        DPA3Model(WATER, dtype=torch.float16)


@pytest.mark.parametrize("name", ["models/charge_spin", "variants/fparam_aparam"])
def test_extra_inputs(name):
    potential = Potential(DATA / name / "model.pt", dtype="float64")
    structures = [x for x in structures_with_inputs() if x.pbc.all()]
    expected = potential.evaluate(structures)
    state = state_of(structures)
    charge_spin = torch.tensor([x.info["charge_spin"] for x in structures])
    inputs = {
        "charge": charge_spin[:, 0],
        "spin": charge_spin[:, 1],
        "fparam": torch.tensor([x.info["fparam"] for x in structures]),
        "aparam": torch.tensor(np.concatenate([x.info["aparam"] for x in structures])),
    }
    state = ts.SimState.from_state(state, **inputs)
    output = DPA3Model(potential)(state)
    np.testing.assert_allclose(output["energy"], [x.energy for x in expected], atol=1e-12)


def test_uncertainties_of_atoms():
    plain = Potential(WATER, dtype="float64")
    structures = rows((True, True, True))
    fitted = rigidity.fit(plain, structures)
    potential = plain.with_uncertainty(replace(fitted, alpha=0.3))
    output = DPA3Model(potential)(state_of(structures))
    expected = potential.evaluate(structures)
    novelties = np.concatenate([x.uncertainty.novelties for x in expected])
    np.testing.assert_allclose(output["novelties"], novelties, rtol=1e-12)
    assert output["energies_uncertainty"].shape == novelties.shape


def test_systems_that_cannot_be_computed_are_named():
    bad = Atoms("H2", [[0, 0, 0], [0, 0, 0.05]], cell=[5, 5, 5], pbc=True)
    with pytest.raises(InputError, match="structure 1: atoms 0 and 1 overlap"):
        DPA3Model(WATER)(state_of([bulk("O", "fcc", a=3.2), bad]))


def test_adds_to_other_models():
    model = DPA3Model(WATER, dtype="float64")
    other = LennardJonesModel(sigma=2.0, epsilon=0.01, device=CPU, dtype=torch.float64)
    state = state_of([bulk("O", "fcc", a=3.2)])
    total = SumModel(model, other)(state)
    expected = model(state)["energy"] + other(state)["energy"]
    torch.testing.assert_close(total["energy"], expected)


def test_their_velocity_verlet_is_ours():
    potential, timestep = Potential(WATER, dtype="float64"), 0.5 * units.fs
    structures, model = mixed(20), DPA3Model(potential)
    state = ts.nve_init(state_of(structures), model, kT=0.0)
    state.momenta = torch.from_numpy(np.concatenate([x.get_momenta() for x in structures]))
    for _ in range(30):
        state = ts.nve_step(state, model, dt=timestep)

    def moved(atoms):
        VelocityVerlet(atoms, timestep).run(30)
        return atoms

    ours = Engine(potential).map(structures, moved)
    positions = np.concatenate([x.positions for x in ours])
    assert np.abs(positions - np.concatenate([x.positions for x in structures])).max() > 0.05
    np.testing.assert_allclose(state.positions, positions, rtol=0, atol=1e-8)
    np.testing.assert_allclose(
        state.momenta, np.concatenate([x.get_momenta() for x in ours]), rtol=0, atol=1e-8
    )


def test_their_optimizer_is_ours():
    potential = Potential(WATER, dtype="float64")
    structures, model = mixed(20), DPA3Model(potential)
    state = ts.fire_init(state_of(structures), model)
    for _ in range(30):
        state = ts.fire_step(state, model, f_alpha=1.0)

    def optimized(atoms):  # torch-sim lowers alpha one step before ASE: it must stay as it is
        FIRE(atoms, logfile=None, fa=1.0).run(fmax=0.0, steps=30)
        return atoms

    ours = Engine(potential).map(structures, optimized)
    positions = np.concatenate([x.positions for x in ours])
    assert np.abs(positions - np.concatenate([x.positions for x in structures])).max() > 0.05
    np.testing.assert_allclose(state.positions, positions, rtol=0, atol=1e-8)
