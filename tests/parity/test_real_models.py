"""The two released models against deepmd-kit 3.1.3, in float32 like the checkpoints."""

import numpy as np
import pytest
from tests_support import DATA, assert_parity, load_reference, real_model_path, reference_atoms

from dpa3sim import Potential, load_model

CASES = {
    name: load_reference(DATA / f"reference/2025-03-14-dpa3-{name}.json")
    for name in ("openlam", "mptrj")
}
# eV/atom, eV/Å, eV/atom
ENERGY, FORCE, VIRIAL = 1e-6, 2e-5, 2e-5


@pytest.fixture(scope="module", params=["openlam", "mptrj"])
def released(request):
    path = real_model_path(request.param)
    return request.param, Potential(path, dtype="float32")


@pytest.mark.parametrize("index", range(15))
def test_released_model(released, index):
    name, potential = released
    case = CASES[name][index]
    n = len(case["symbols"])
    assert_parity(potential, case, ENERGY * n, FORCE, VIRIAL * n)


@pytest.mark.parametrize("case", CASES["openlam"], ids=lambda c: c["name"])
def test_embedded_model(embedded, case):
    n = len(case["symbols"])
    assert_parity(embedded, case, ENERGY * n, FORCE, VIRIAL * n)


def test_a_batch_gives_what_single_evaluations_give(embedded64):
    structures = [reference_atoms(c) for c in CASES["openlam"] if len(c["symbols"]) < 20]
    batch = embedded64.evaluate(structures)
    for atoms, together in zip(structures, batch, strict=True):
        alone = embedded64.evaluate([atoms])[0]
        assert together.energy == pytest.approx(alone.energy, abs=1e-10)
        np.testing.assert_allclose(together.forces, alone.forces, rtol=0, atol=1e-10)
        np.testing.assert_allclose(together.virial, alone.virial, rtol=0, atol=1e-10)


def test_float32_stays_close_to_float64(embedded, embedded64):
    for case in CASES["openlam"][:9]:
        atoms = reference_atoms(case)
        single, double = embedded.evaluate([atoms])[0], embedded64.evaluate([atoms])[0]
        assert abs(single.energy - double.energy) < 1e-6 * len(atoms)
        assert np.abs(single.forces - double.forces).max() < 2e-5


def test_the_embedded_model_is_the_released_one():
    released = load_model(real_model_path("openlam"))
    embedded = load_model()
    assert embedded.config == released.config
    assert embedded.origin["sha256"] == released.sha256
    assert set(embedded.weights) == set(released.weights)
    for name, array in released.weights.items():
        assert embedded.weights[name].dtype == array.dtype
        np.testing.assert_array_equal(embedded.weights[name], array)
