"""Evaluations on disk: exact, told apart, saved as they come, and for one process at a time."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from tests_support import DATA, TESTS, assert_equal_results, hydrogen_oxygen_structures

from dpa3sim import Engine, Potential
from dpa3sim.common.errors import InputError
from dpa3sim.run.store import StoredPotential

MODEL = DATA / "models/dynamic/model.pt"
FIELDS = ("energy", "energies", "forces", "virial", "n_edges", "n_angles", "warnings")


def assert_identical(a, b):
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field))


def test_saved_evaluations_come_back_bit_for_bit(smooth, tmp_path):
    structures = hydrogen_oxygen_structures()
    plain = smooth.evaluate(structures)
    path = tmp_path / "evaluations.sqlite"
    with StoredPotential(smooth, path) as stored:
        first = stored.evaluate(structures)
        again = stored.evaluate(structures[::-1])[::-1]
        assert stored.statistics.to_dict() == {
            "asked": 2 * len(structures),
            "found": len(structures),
            "computed": len(structures),
            "batches": 1,
        }
    with StoredPotential(smooth, path) as stored:
        later = stored.evaluate(structures)
        assert stored.statistics.computed == 0
    for results in zip(plain, first, again, later, strict=True):
        for other in results[1:]:
            assert_identical(results[0], other)


def test_warnings_are_saved_too(embedded, tmp_path):
    atoms = Atoms("PoH", [[0, 0, 0], [0, 0, 1.8]])
    for computed in (1, 0):
        with StoredPotential(embedded, tmp_path / "s") as stored:
            assert "never saw Po" in stored.evaluate([atoms])[0].warnings[0]
            assert stored.statistics.computed == computed


def test_what_the_model_sees_is_told_apart(smooth, tmp_path):
    atoms = molecule("H2O")
    moved, other, periodic = atoms.copy(), atoms.copy(), atoms.copy()
    moved.positions[0, 0] = np.nextafter(moved.positions[0, 0], 1)
    other.numbers[0] = 1
    periodic.set_cell([9, 9, 9])
    periodic.pbc = True
    charged = atoms.copy()
    charged.info["charge_spin"] = (1, 1)
    named = atoms.copy()
    named.info["name"] = "of no importance"
    with StoredPotential(smooth, tmp_path / "s") as stored:
        stored.evaluate([atoms, moved, other, periodic, charged, named])
        assert stored.statistics.computed == 5


@pytest.mark.parametrize(
    "change", [{"dtype": "float32"}, {"truncate": "none"}, {"smooth_cutoff": 0.3}]
)
def test_other_potentials_have_evaluations_of_their_own(tmp_path, change):
    atoms, model = molecule("H2O"), DATA / "models/static_linear/model.pt"
    with StoredPotential(Potential(model), tmp_path / "s") as stored:
        stored.evaluate([atoms])
    with StoredPotential(Potential(model, **change), tmp_path / "s") as stored:
        stored.evaluate([atoms])
        assert stored.statistics.computed == 1


def test_the_same_structure_twice_is_computed_once(smooth, tmp_path):
    atoms = molecule("H2O")
    with StoredPotential(smooth, tmp_path / "s") as stored:
        a, b = stored.evaluate([atoms, atoms.copy()])
        assert stored.statistics.computed == 1
    assert_identical(a, b)


def test_errors_stay_with_whom_they_concern_and_are_not_saved(smooth, tmp_path):
    bad = Atoms("H2", [[0, 0, 0], [0, 0, 1e-4]])
    with StoredPotential(smooth, tmp_path / "s") as stored:
        good, error = stored.evaluate_each([molecule("H2O"), bad])
        assert isinstance(error, InputError)
        assert_identical(good, smooth.evaluate([molecule("H2O")])[0])
        with pytest.raises(InputError, match="structure 1"):
            stored.evaluate([molecule("H2O"), bad])
        with pytest.raises(InputError):
            stored.check(bad)
        assert stored.statistics.computed == 1


def test_beneath_an_engine(smooth, tmp_path):
    structures = hydrogen_oxygen_structures()
    with StoredPotential(smooth, tmp_path / "s") as stored:
        energies = Engine(stored).map(structures, lambda atoms: atoms.get_potential_energy())
        assert stored.statistics.batches == 1
    assert energies == [r.energy for r in smooth.evaluate(structures)]


def moved_water(count):
    structures = [molecule("H2O") for _ in range(count)]
    for number, atoms in enumerate(structures):
        atoms.positions[0, 0] += 0.01 * number
    return structures


def test_large_requests_are_cut_into_parts(smooth, tmp_path):
    with StoredPotential(smooth, tmp_path / "s", chunk_atoms=9) as stored:
        stored.evaluate(moved_water(8))
        assert stored.statistics.batches == 3
    with StoredPotential(smooth, tmp_path / "t") as stored:
        stored.evaluate(moved_water(8))
        assert stored.statistics.batches == 1


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", range(5))
def test_batches_do_not_depend_on_what_is_saved(smooth, tmp_path, monkeypatch, after):
    """The last bits of a result depend on its batch: an interrupted run must have the same."""
    structures = moved_water(12)
    requests = [structures[:4], structures[2:11], structures]

    def ask(name, kill_after=None):
        batches = []
        original = Potential.evaluate_each

        def spy(self, asked):
            if len(batches) == kill_after:
                raise Killed
            batches.append([s.positions.tobytes() for s in asked])
            return original(self, asked)

        monkeypatch.setattr(Potential, "evaluate_each", spy)
        with StoredPotential(smooth, tmp_path / name, chunk_atoms=9) as stored:
            try:
                for request in requests:
                    stored.evaluate(request)
            except Killed:
                pass
        monkeypatch.setattr(Potential, "evaluate_each", original)
        return batches

    undisturbed = ask("whole")
    assert len(undisturbed) == 6
    assert ask("killed", after) + ask("killed") == undisturbed


def test_a_second_process_is_refused(smooth, tmp_path):
    path = tmp_path / "s"
    code = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from dpa3sim import Potential
from dpa3sim.common.errors import InputError
from dpa3sim.run.store import StoredPotential
try:
    StoredPotential(Potential({str(MODEL)!r}), {str(path)!r})
except InputError as error:
    print(error)
"""
    with StoredPotential(smooth, path):
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
    assert "another process is using it" in result.stdout


def test_a_file_that_is_no_database_is_refused(smooth, tmp_path):
    (tmp_path / "s").write_text("POSCAR " * 300)
    with pytest.raises(InputError, match="cannot be used"):
        StoredPotential(smooth, tmp_path / "s")


def test_another_precision_is_refused(smooth, tmp_path):
    with StoredPotential(smooth, tmp_path / "s") as stored:
        assert stored.in_precision("float64") is stored
        assert stored.in_precision("auto") is stored
        with pytest.raises(InputError, match="float64, not in float32"):
            stored.in_precision("float32")


def test_a_kill_loses_only_what_was_not_committed(smooth, tmp_path):
    """The process is killed while it computes; what it had committed is found, and is right."""
    path = tmp_path / "s"
    code = f"""
import numpy as np
from ase.build import molecule
from dpa3sim import Potential
from dpa3sim.run import store
store.COMMIT_SECONDS = 0.0
stored = store.StoredPotential(Potential({str(MODEL)!r}), {str(path)!r})
atoms = molecule("H2O")
for number in range(10**6):
    atoms.positions[0, 0] = 1e-6 * number
    stored.evaluate([atoms])
    print(number, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(20):
        process.stdout.readline()
    time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    rest = process.communicate()[0].split()
    done = int(rest[-1]) if rest else 19
    atoms = molecule("H2O")
    with StoredPotential(smooth, path) as stored:
        for number in range(done + 1):
            atoms.positions[0, 0] = 1e-6 * number
            found = stored.evaluate([atoms])[0]
        assert stored.statistics.computed == 0
        # Of another process, whose threads may have added in another order.
        assert_equal_results(found, smooth.evaluate([atoms])[0], 1e-12)


def test_hessians_are_saved(smooth, tmp_path):
    atoms = molecule("H2O")
    matrices = []
    for _ in range(2):
        with StoredPotential(smooth, tmp_path / "s") as stored:
            matrices.append(stored.hessian(atoms, [1]))
            statistics = stored.statistics
    np.testing.assert_array_equal(matrices[0], matrices[1])
    np.testing.assert_array_equal(matrices[0], smooth.hessian(atoms, [1]))
    assert (statistics.found, statistics.computed) == (1, 0)
    with StoredPotential(smooth, tmp_path / "s") as stored:
        assert stored.hessian(atoms).shape == (9, 9)
        assert stored.statistics.computed == 1


def test_batches_are_those_of_an_undisturbed_run(smooth, tmp_path):
    structures = [molecule("H2O") for _ in range(5)]
    for number, atoms in enumerate(structures):
        atoms.rattle(0.01, seed=number)
    counts = []
    for _ in range(2):
        with StoredPotential(smooth, tmp_path / "s", chunk_atoms=6) as stored:
            stored.evaluate(structures)
            counts.append(stored.batches)
    assert counts == [3, 3]
