"""Many clients of one model: batching, determinism, and clients that leave, fail or die."""

import gc
import threading
import time

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.optimize import FIRE
from tests_support import DATA, assert_equal_results, hydrogen_oxygen_structures

from dpa3sim import DPA3Calculator, Engine, Potential
from dpa3sim.common.errors import EngineError, InputError
from dpa3sim.protocols import relax

SMALL = DATA / "models/dynamic/model.pt"


@pytest.fixture
def tiny():
    return Potential(SMALL)


def waters(n):
    structures = []
    for seed in range(n):
        atoms = molecule("H2O") if seed % 3 else molecule("H2O2")
        atoms.rattle(0.05, seed=seed)
        structures.append(atoms)
    return structures


def descend(atoms):
    with FIRE(atoms, logfile=None) as optimizer:
        optimizer.run(fmax=0.02, steps=10 + len(atoms))
    return atoms


def in_threads(*functions):
    threads = [threading.Thread(target=f, daemon=True) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive(), "a client waits for ever"


def test_map_gives_what_one_after_the_other_gives(tiny):
    structures = waters(10)
    before = [atoms.positions.copy() for atoms in structures]
    results = Engine(tiny).map(structures, descend)
    assert tiny.counters.batches < tiny.counters.evaluations / 5
    for atoms, start, result in zip(structures, before, results, strict=True):
        np.testing.assert_array_equal(atoms.positions, start)  # the caller's own are not touched
        alone = atoms.copy()
        alone.calc = DPA3Calculator(Potential(SMALL))
        descend(alone)
        np.testing.assert_allclose(result.positions, alone.positions, rtol=0, atol=1e-8)
    # The calculators of the results work on without the engine.
    results[0].positions[0, 0] += 0.1
    assert np.isfinite(results[0].get_potential_energy())


@pytest.mark.parametrize("clients", [1, 3, 64])
def test_lockstep_is_deterministic_to_the_last_bit(clients):
    """Whatever the timing of the clients, also when they take turns."""
    runs = []
    for run in range(2):
        rng = np.random.default_rng(run)
        delays = iter(rng.uniform(0, 0.004, 1000).tolist())

        def slow(atoms, delays=delays):
            time.sleep(next(delays))
            return descend(atoms).positions

        runs.append(Engine(Potential(SMALL)).map(waters(7), slow, clients=clients))
    for first, second in zip(*runs, strict=True):
        np.testing.assert_array_equal(first, second)


def test_protocols_run_on_a_client(tiny):
    settings = relax.Settings(fmax=0.05, steps=60)
    structures = waters(4)
    together = Engine(tiny).map(structures, lambda a: relax.run(a, a.calc.potential, settings))
    for atoms, result in zip(structures, together, strict=True):
        alone = relax.run(atoms, Potential(SMALL), settings)
        assert alone.converged == result.converged
        assert result.atoms.get_potential_energy() == pytest.approx(
            alone.atoms.get_potential_energy(), abs=1e-6
        )


def test_a_bad_structure_of_one_client_is_its_own_error(tiny):
    structures = waters(5)
    structures[2] = Atoms("Xe")
    structures[4] = Atoms("OH", [[0, 0, 0], [0, 0, 0.01]])
    energy = Atoms.get_potential_energy
    results = Engine(tiny).map(structures, energy, return_exceptions=True)
    assert isinstance(results[2], InputError)
    assert "unknown element 'Xe'" in str(results[2])
    assert "overlap" in str(results[4])
    for index in (0, 1, 3):
        single = Potential(SMALL).evaluate([structures[index]])[0].energy
        assert results[index] == pytest.approx(single, abs=1e-10)
    with pytest.raises(InputError, match="unknown element"):
        Engine(tiny).map(structures, energy)


def test_a_client_that_fails_leaves_the_others_unharmed(tiny):
    def fragile(atoms):
        atoms.get_forces()
        if len(atoms) == 4:
            raise ZeroDivisionError("its own mistake")
        return descend(atoms).get_potential_energy()

    results = Engine(tiny).map(waters(6), fragile, return_exceptions=True)
    failed = [isinstance(r, ZeroDivisionError) for r in results]
    assert failed == [True, False, False] * 2


def test_clients_may_join_and_leave(tiny):
    engine = Engine(tiny)
    structures = hydrogen_oxygen_structures()
    singles = [Potential(SMALL).evaluate([atoms])[0] for atoms in structures]
    found = {}

    def work(client, index, count):
        def run():
            with client:
                for _ in range(count):
                    found[index] = client.evaluate([structures[index]])[0]

        return run

    first, second = engine.client(), engine.client()

    def joins_late():
        time.sleep(0.05)
        work(engine.client(), 2, 3)()

    in_threads(work(first, 0, 2), work(second, 1, 6), joins_late)
    for index, result in found.items():
        assert_equal_results(result, singles[index], 1e-10)
    assert set(found) == {0, 1, 2}
    with pytest.raises(EngineError, match="has left"):
        first.evaluate([structures[0]])


def test_a_thread_that_dies_does_not_hold_up_the_others(tiny, monkeypatch):
    monkeypatch.setattr("dpa3sim.clients.engine.PATIENCE", 0.02)
    engine = Engine(tiny)
    mortal, survivor = engine.client(), engine.client()
    water = molecule("H2O")
    done = []

    def dies():
        mortal.evaluate([water])  # and never leaves

    def lives():
        for _ in range(3):
            done.append(survivor.evaluate([water])[0].energy)
        survivor.close()

    in_threads(dies, lives)
    assert len(done) == 3
    assert mortal.closed


def test_a_client_that_nobody_holds_is_not_waited_for(tiny, monkeypatch):
    monkeypatch.setattr("dpa3sim.clients.engine.PATIENCE", 0.02)
    engine = Engine(tiny)
    forgotten, used = engine.client(), engine.client()
    del forgotten
    gc.collect()
    in_threads(lambda: used.evaluate([molecule("H2O")]))


def test_streaming_does_not_wait_for_those_who_do_not_ask(tiny):
    engine = Engine(tiny, mode="streaming", window=0.01)
    idle, busy = engine.client(), engine.client()
    with busy:
        assert np.isfinite(busy.evaluate([molecule("H2O")])[0].energy)
    idle.close()


def test_several_requests_of_a_client_are_one_batch(tiny):
    with Engine(tiny).client() as client:
        futures = [client.submit(atoms) for atoms in waters(5)]
        energies = [future.result(timeout=60).energy for future in futures]
    assert energies == pytest.approx([r.energy for r in tiny.evaluate(waters(5))], abs=1e-10)


def test_atoms_may_move_while_their_evaluation_is_pending(tiny):
    engine = Engine(tiny)
    water = molecule("H2O")
    expected = tiny.evaluate([water])[0].energy
    with engine.client() as client, engine.client() as other:
        future = client.submit(water)
        water.positions += [0.0, 0.0, 1.0]
        water.positions[0] += 0.3
        other.submit(molecule("H2O"))
        assert future.result(timeout=60).energy == pytest.approx(expected, abs=1e-10)


def test_leaving_with_a_pending_request_ends_the_wait(tiny):
    engine = Engine(tiny)
    client, other = engine.client(), engine.client()
    future = client.submit(molecule("H2O"))  # waits for the other one
    client.close()
    with pytest.raises(EngineError, match="left before"):
        future.result(timeout=60)
    other.close()


def test_an_error_of_the_model_itself_reaches_whom_it_concerns(tiny, monkeypatch):
    evaluate = tiny.evaluate_each

    def broken(structures):
        if any(len(s.numbers) == 4 for s in structures):
            raise ValueError("cannot do peroxide")
        return evaluate(structures)

    monkeypatch.setattr(tiny, "evaluate_each", broken)
    results = Engine(tiny).map(waters(4), Atoms.get_potential_energy, return_exceptions=True)
    assert [isinstance(r, ValueError) for r in results] == [True, False, False, True]


def test_an_interrupt_ends_everything(tiny, monkeypatch):
    """Ctrl-C arrives in the thread that evaluates; no other thread may go on or hang."""
    evaluate, calls = tiny.evaluate_each, []

    def interrupted(structures):
        calls.append(len(structures))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(structures)

    monkeypatch.setattr(tiny, "evaluate_each", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Engine(tiny).map(waters(6), descend)
    deadline = time.monotonic() + 30
    while threading.active_count() > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(calls) == 3


def test_serving_in_the_main_thread(tiny):
    engine = Engine(tiny)
    clients = [engine.client() for _ in range(3)]
    evaluated_in = set()
    evaluate = tiny.evaluate_each

    def noted(structures):
        evaluated_in.add(threading.current_thread())
        return evaluate(structures)

    tiny.evaluate_each = noted

    def work(client):
        with client:
            atoms = molecule("H2O")
            for _ in range(5):
                atoms.positions[0, 0] += 0.01
                client.evaluate([atoms])

    threads = [threading.Thread(target=work, args=(c,)) for c in clients]
    for thread in threads:
        thread.start()
    engine.serve()
    for thread in threads:
        thread.join(timeout=60)
    assert threading.current_thread() in evaluated_in
    engine.serve()  # nobody to serve


def test_bad_arguments(tiny):
    with pytest.raises(InputError, match="mode 'fast'"):
        Engine(tiny, mode="fast")
    with pytest.raises(InputError, match="window"):
        Engine(tiny, window=-1)
    with pytest.raises(InputError, match="clients"):
        Engine(tiny).map([], len, clients=0)
    assert Engine(tiny).map([], len) == []
    with pytest.raises(InputError, match="in the Potential"):
        DPA3Calculator(Engine(tiny).client(), dtype="float64")
