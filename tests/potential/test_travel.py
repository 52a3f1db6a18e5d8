"""Potentials and calculators in other processes: pickled, unpickled, copied."""

import copy
import multiprocessing
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from tests_support import DATA, head_of, hydrogen_oxygen_structures, load_small

from dpa3sim import DPA3Calculator, Engine, Potential, load_model
from dpa3sim.common.errors import CheckpointError, InputError
from dpa3sim.potential import potential as potentials
from dpa3sim.uncertainty import rigidity

WATER = DATA / "models/dynamic/model.pt"
STEP = DATA / "models/static_linear/model.pt"
HEADS = DATA / "models/multitask/model.pt"


@pytest.fixture(scope="module")
def elsewhere():
    """Calls a function in another process, which knows nothing of this one."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result(timeout=120)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """As if nothing had been unpickled in this process."""
    monkeypatch.setattr(potentials, "_residents", potentials.Residents())


def equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.energy == b.energy
        np.testing.assert_array_equal(a.forces, b.forces)
        np.testing.assert_array_equal(a.virial, b.virial)


def with_uncertainty():
    potential = load_small(WATER)
    fitted = rigidity.fit(potential, hydrogen_oxygen_structures())
    return potential.with_uncertainty(replace(fitted, alpha=0.3))


def changed_weights():
    model = load_model(WATER)
    name = "fitting_net.filter_layers.networks.0.layers.0.matrix"
    return Potential(replace(model, weights=model.weights | {name: 1.1 * model.weights[name]}))


KINDS = {
    "float64": lambda: Potential(WATER, dtype="float64"),
    "float32": lambda: Potential(WATER, dtype="float32"),
    "head": lambda: Potential(HEADS, head=head_of(HEADS)),
    "smoothed": lambda: Potential(STEP, smooth_cutoff=0.3, truncate="none", skin=0.5),
    "loaded": lambda: Potential(load_model(STEP).smoothed(0.2)),
    "uncertain": with_uncertainty,
    "changed": changed_weights,
}


@pytest.mark.parametrize("kind", KINDS)
def test_another_process_computes_the_same(kind, elsewhere):
    potential = KINDS[kind]()
    structures = hydrogen_oxygen_structures()
    expected = potential.evaluate(structures)
    found = elsewhere(Potential.evaluate, potential, structures)
    equal(found, expected)
    again = elsewhere(copy.copy, potential)  # there and back
    assert again is potential
    assert (again.identity, again.settings) == (potential.identity, potential.settings)
    if kind == "uncertain":
        for a, b in zip(found, expected, strict=True):
            assert a.uncertainty.energy == b.uncertainty.energy
            np.testing.assert_array_equal(a.uncertainty.novelties, b.uncertainty.novelties)


def test_the_embedded_model_goes_by_its_name(elsewhere):
    potential = Potential(dtype="float64")
    data = pickle.dumps(potential)
    assert len(data) < 2000
    assert b"dpa3-openlam" in data
    silicon = bulk("Si")
    equal(elsewhere(Potential.evaluate, potential, [silicon]), potential.evaluate([silicon]))


def test_only_a_model_that_no_file_holds_goes_along(tmp_path):
    path = shutil.copy(WATER, tmp_path / "model.pt")
    potential = Potential(path)
    size = sum(x.nbytes for x in potential.model.weights.values())
    assert len(pickle.dumps(potential)) < 2000
    assert len(pickle.dumps(changed_weights())) > size
    (tmp_path / "model.pt").unlink()
    assert len(pickle.dumps(Potential(potential.model))) > size


def test_a_file_that_changed_is_refused(tmp_path):
    path = shutil.copy(WATER, tmp_path / "model.pt")
    data = pickle.dumps(Potential(path))
    shutil.copy(STEP, path)
    potentials._residents = potentials.Residents()
    with pytest.raises(InputError, match=r"model\.pt is not the model that was pickled: its SHA"):
        pickle.loads(data)
    path.unlink()
    with pytest.raises(CheckpointError, match="no such model file"):
        pickle.loads(data)


def test_a_process_has_a_model_once():
    potential = Potential(WATER)
    assert pickle.loads(pickle.dumps(potential)) is potential
    assert copy.deepcopy(potential) is potential
    others = [
        Potential(WATER, dtype="float32"),
        Potential(WATER, skin=0.4),
        Potential(WATER, max_memory=1.0),
        Potential(WATER, truncate="none"),
        changed_weights(),
        with_uncertainty(),
    ]
    assert len({id(pickle.loads(pickle.dumps(x))) for x in [potential, *others]}) == 7


def test_a_worker_loads_the_model_once_for_all_its_tasks(monkeypatch):
    data = pickle.dumps(Potential(WATER))
    potentials._residents = potentials.Residents()
    loaded = []
    init = Potential.__init__
    monkeypatch.setattr(
        Potential, "__init__", lambda self, *a, **k: (loaded.append(1), init(self, *a, **k))[1]
    )
    for _ in range(3):
        pickle.loads(data).evaluate([molecule("H2O")])
    assert len(loaded) == 1


def test_the_device_is_chosen_where_it_arrives():
    assert Potential(WATER)._recipe.settings.device == "auto"
    assert Potential(WATER, device="cpu")._recipe.settings.device == "cpu"


@pytest.mark.slow
def test_a_potential_on_several_ranks_stays():
    with Potential(WATER, ranks=2) as potential:
        assert copy.deepcopy(potential) is potential
        with pytest.raises(InputError, match=r"on 2 ranks cannot be sent .* ranks=1"):
            pickle.dumps(potential)


def test_a_client_of_an_engine_stays():
    with Engine(Potential(WATER)).client() as client:
        assert copy.deepcopy(client) is client
        with pytest.raises(InputError, match="cannot leave its process"):
            pickle.dumps(DPA3Calculator(client))


def test_atoms_take_their_calculator_along(elsewhere):
    atoms = molecule("H2O")
    atoms.calc = DPA3Calculator(WATER, dtype="float64")
    expected = atoms.get_forces()
    there = elsewhere(copy.deepcopy, atoms)
    np.testing.assert_array_equal(there.calc.results["forces"], expected)
    moved = atoms.copy()
    moved.positions += [[0.1, 0, 0], [0, 0, 0], [0, 0, 0]]
    moved.calc = atoms.calc
    np.testing.assert_array_equal(elsewhere(Atoms.get_forces, moved), moved.get_forces())


def test_copies_of_a_calculator_have_their_own_results():
    atoms = molecule("H2O")
    atoms.calc = DPA3Calculator(WATER)
    energy = atoms.get_potential_energy()
    other = copy.deepcopy(atoms)
    assert other.calc.potential is atoms.calc.potential
    batches = atoms.calc.potential.batches
    assert other.get_potential_energy() == energy
    assert atoms.calc.potential.batches == batches
    other.rattle(0.1)
    assert other.get_potential_energy() != energy
    assert atoms.get_potential_energy() == energy
    other.calc.results["forces"][:] = 0
    assert atoms.get_forces().any()


@pytest.mark.slow
def test_joblib():
    joblib = pytest.importorskip("joblib")
    structures = hydrogen_oxygen_structures()
    calculator = DPA3Calculator(WATER, dtype="float64")
    expected = calculator.potential.evaluate(structures)

    def energy(atoms):
        atoms.calc = calculator
        return atoms.get_potential_energy()

    found = joblib.Parallel(n_jobs=2)(joblib.delayed(energy)(x) for x in structures)
    np.testing.assert_allclose(found, [x.energy for x in expected], atol=1e-10)
