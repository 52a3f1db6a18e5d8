"""Batches: equal to single evaluations, sized by memory, unharmed by what goes wrong."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from tests_support import (
    DATA,
    NoHostAccess,
    assert_equal_results,
    autograd_results,
    hydrogen_oxygen_structures,
    session_of,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import dpa3sim.potential.batches
import dpa3sim.potential.memory
from dpa3sim import Potential
from dpa3sim.common.errors import InputError, OutOfMemoryError
from dpa3sim.graph.blocks import BlockLimits
from dpa3sim.kernels.evaluator import Evaluator, MemoryPolicy
from dpa3sim.potential.memory import peak_bytes

TOLERANCE = 1e-10
SMALL = DATA / "models/dynamic/model.pt"


@pytest.fixture
def tiny():
    return Potential(SMALL)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DPA3SIM_CACHE", str(tmp_path / "cache"))


def test_any_mix_gives_what_single_evaluations_give(tiny):
    structures = hydrogen_oxygen_structures()
    singles = [Potential(SMALL).evaluate([atoms])[0] for atoms in structures]
    for order in (range(8), (3, 3, 0, 5, 1), (7, 2), (6, 4, 4, 4, 1, 0, 2)):
        results = tiny.evaluate([structures[index] for index in order])
        for index, result in zip(order, results, strict=True):
            assert_equal_results(result, singles[index], TOLERANCE)
            assert result.n_edges == singles[index].n_edges
            assert result.n_angles == singles[index].n_angles
    assert tiny.evaluate([]) == []


def test_a_batch_may_move_and_change_its_members(tiny):
    structures = hydrogen_oxygen_structures()
    rng = np.random.default_rng(0)
    for step in range(12):
        for atoms in structures:
            atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
            if atoms.pbc.any():
                atoms.set_cell(atoms.cell.array * (1 + rng.normal(scale=0.01)), scale_atoms=True)
        members = [structures[index] for index in rng.permutation(8)[: 1 + step % 8]]
        for atoms, result in zip(members, tiny.evaluate(members), strict=True):
            assert_equal_results(result, autograd_results(tiny, atoms), TOLERANCE)


def test_a_bad_structure_gets_an_error_and_no_one_else(tiny):
    good = hydrogen_oxygen_structures()
    expected = Potential(SMALL).evaluate(good)
    overlapping = Atoms("OH", [[0, 0, 0], [0, 0, 0.01]])
    bad = [
        Atoms("Xe"),
        overlapping,
        Atoms("O", [[np.nan, 0, 0]]),
        Atoms("O", cell=[0.05, 9, 9], pbc=True),
    ]
    mixed = [bad[0], *good[:3], bad[1], bad[2], *good[3:], bad[3]]
    for _ in range(2):  # also when the batch is known already
        results = tiny.evaluate_each(mixed)
        errors = [str(r) for r in results if isinstance(r, InputError)]
        assert [type(r) for r in results].count(InputError) == 4
        assert "unknown element 'Xe'" in errors[0]
        assert "atoms 0 and 1 overlap" in errors[1]
        assert "not finite" in errors[2]
        found = [r for r in results if not isinstance(r, InputError)]
        for result, single in zip(found, expected, strict=True):
            assert_equal_results(result, single, TOLERANCE)
    with pytest.raises(InputError, match="structure 3: atoms 0 and 1 overlap"):
        tiny.evaluate(mixed[1:])


# -- memory -----------------------------------------------------------------------------------


def fail_above(monkeypatch, potential, limit, error=torch.OutOfMemoryError):
    """Let the model run out of memory for more than ``limit`` atoms at once."""
    evaluator = potential.batcher.evaluator
    evaluate = evaluator.evaluate

    def limited(graph, policy):
        if graph.n_atoms > limit:
            raise error("not enough memory: you tried to allocate 99 bytes")
        return evaluate(graph, policy)

    monkeypatch.setattr(evaluator, "evaluate", limited)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_out_of_memory_is_halved_and_retried(tiny, monkeypatch, error):
    structures = hydrogen_oxygen_structures()
    expected = Potential(SMALL).evaluate(structures)
    fail_above(monkeypatch, tiny, 8, error)
    results = tiny.evaluate(structures)
    assert tiny.counters.retries > 0
    for result, single in zip(results, expected, strict=True):
        assert_equal_results(result, single, TOLERANCE)


def test_a_structure_that_is_too_large_fails_alone(tiny, monkeypatch):
    structures = hydrogen_oxygen_structures()
    expected = Potential(SMALL).evaluate(structures)
    fail_above(monkeypatch, tiny, 7)
    results = tiny.evaluate_each(structures)
    for atoms, result, single in zip(structures, results, expected, strict=True):
        if len(atoms) > 7:
            assert isinstance(result, OutOfMemoryError)
            assert "8 atoms need more memory than this machine has" in str(result)
        else:
            assert_equal_results(result, single, TOLERANCE)


def test_other_errors_are_not_taken_for_a_lack_of_memory(tiny, monkeypatch):
    def broken(graph, policy):
        raise RuntimeError("something else")

    monkeypatch.setattr(tiny.batcher.evaluator, "evaluate", broken)
    with pytest.raises(RuntimeError, match="something else"):
        tiny.evaluate(hydrogen_oxygen_structures())


def silicon(repeat):
    atoms = bulk("Si", cubic=True) * repeat
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.mark.parametrize(
    "policy",
    [
        MemoryPolicy(),
        *(
            pytest.param(x, marks=pytest.mark.slow)
            for x in (MemoryPolicy("preactivations"), MemoryPolicy(every=3))
        ),
    ],
    ids=str,
)
def test_the_memory_model_predicts_what_is_used(policy, embedded):
    potential = Potential(embedded.model)
    batches = potential.batcher
    for atoms in (silicon((2, 2, 2)), silicon((3, 2, 2)), bulk("Cu", cubic=True) * 3):
        potential.evaluate([atoms])
        session = next(reversed(batches.sessions.values()))
        measured = session._measured
        graph = session.graph.graph(measured, session.graph.arrange(measured))

        def run(graph=graph):
            with batches.evaluator.workspace.private({}):
                batches.evaluator.evaluate(graph, policy)

        estimate = batches.memory._model.estimate(graph.layout, policy)
        assert estimate == pytest.approx(peak_bytes(potential.device, run), rel=0.2)


def test_batches_are_as_large_as_memory_allows(embedded, monkeypatch):
    structures = [silicon((2, 2, 1)) for _ in range(4)]
    for index, atoms in enumerate(structures):
        atoms.rattle(0.02, seed=index)
    whole = Potential(embedded.model, dtype="float64")
    expected = whole.evaluate(structures)
    assert whole.counters.batches == 1
    whole.batcher.memory.policy(next(iter(whole.batcher.sessions.values())).layout, False)
    limited = Potential(embedded.model, dtype="float64", max_memory=0.12)
    for result, single in zip(limited.evaluate(structures), expected, strict=True):
        assert_equal_results(result, single, TOLERANCE)
    assert limited.counters.batches > 1
    with pytest.raises(
        OutOfMemoryError, match=r"216 atoms need more memory than max_memory = 0.05"
    ):
        Potential(embedded.model, max_memory=0.05).evaluate([silicon((3, 3, 3))])


def test_the_memory_model_is_fitted_once_and_kept(embedded, tmp_path, monkeypatch):
    fits = []
    model = dpa3sim.potential.memory.MemoryModel
    fit = model._fit
    monkeypatch.setattr(model, "_fit", lambda self, p: (fits.append(p), fit(self, p))[1])
    for _ in range(2):
        Potential(embedded.model, max_memory=2.0).evaluate([silicon((3, 2, 2))])
    assert len(fits) == len(set(fits))
    (cache,) = (tmp_path / "cache").rglob("memory.json")
    cache.write_text("{ not json")
    Potential(embedded.model, max_memory=2.0).evaluate([silicon((3, 2, 2))])
    assert len(fits) > len(set(fits))


def test_a_control_group_limits_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(dpa3sim.potential.memory, "CONTROL_GROUP", str(tmp_path))
    unlimited = dpa3sim.potential.memory.free_bytes(torch.device("cpu"))
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert dpa3sim.potential.memory.free_bytes(torch.device("cpu")) == 600000 < unlimited
    (tmp_path / "memory.max").write_text("max\n")
    assert dpa3sim.potential.memory.free_bytes(torch.device("cpu")) > 600000


def test_memory_of_many_batches_is_bounded(tiny, monkeypatch):
    monkeypatch.setattr(dpa3sim.potential.batches, "MAX_SESSION_ATOMS", 20)
    for n in range(1, 9):
        tiny.evaluate([molecule("H2O")] * n)
    sessions = tiny.batcher.sessions.values()
    assert sum(s.graph.n_atoms for s in sessions) <= 24


# -- what a device sees -------------------------------------------------------------------------


class Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(make, structures):
    session, step = make(structures)
    with Counting() as mode:
        step()
    return mode.count, len(session.layout.blocks)


def device_session(potential, structures, margin=0.3):
    """A session as on an accelerator, but on the CPU; and the means to do a step."""
    limits = BlockLimits(angles=10**7, edges=10**6, overhead=1e9, margin=margin)
    policy = MemoryPolicy("preactivations")
    session, systems = session_of(potential, structures, limits, policy, False)
    session.step(systems)
    return session, lambda: session._repeat(systems)


def test_operations_do_not_grow_with_the_number_of_structures(tiny):
    """What an accelerator pays as launches, for one structure as for forty."""
    structures = hydrogen_oxygen_structures()
    counts = [
        operations(lambda s: device_session(tiny, s), structures[:1] * n + structures * m)
        for n, m in ((0, 1), (1, 1), (4, 1), (0, 5))
    ]
    assert [blocks for _, blocks in counts] == [1, 1, 1, 1]
    assert len({count for count, _ in counts}) == 1


class NoHostCopies(TorchFunctionMode):
    """Counts tensors that go to the host, and fails on values that do."""

    FORBIDDEN = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__")

    def __init__(self):
        super().__init__()
        self.copies = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        assert name not in self.FORBIDDEN, name
        self.copies += name == "cpu"
        return func(*args, **(kwargs or {}))


VARIANTS = ["models/dynamic", "models/charge_spin", "variants/sequential", "variants/truncated"]
VARIANTS += ["variants/fparam_aparam", "variants/excl", "variants/atom_ener", "variants/noangle"]


def with_inputs(structures):
    for atoms in structures:
        atoms.info |= {"fparam": [0.1, 0.2], "aparam": np.zeros((len(atoms), 1))}
        atoms.info["charge_spin"] = [0, 1]
    return structures


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_never_waits_for_the_device(name):
    potential = Potential(DATA / name / "model.pt")
    structures = with_inputs(hydrogen_oxygen_structures())
    _, step = device_session(potential, structures)
    with NoHostAccess(), NoHostCopies() as transfers:
        result = step()
    assert transfers.copies == 1  # status and results together
    expected = potential.evaluate(structures)
    for found, wanted in zip(result, expected, strict=True):
        np.testing.assert_allclose(found.forces, wanted.forces, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_lives_on_one_device(name):
    """On the meta device, tensors made elsewhere and looks at values are errors."""
    potential = Potential(DATA / name / "model.pt")
    structures = with_inputs(hydrogen_oxygen_structures())
    session, _ = device_session(potential, structures)
    from dpa3sim.model.network import Network

    device = torch.device("meta")
    network = Network(potential.model.config, potential.model.weights, device, torch.float32)
    limits = BlockLimits(angles=10**7, edges=10**6, overhead=1e9)
    there, _ = session_of(potential, structures, limits, MemoryPolicy(), False, network)
    there.graph.set_layout(session.layout)
    output = there.program(MemoryPolicy())
    n, b = there.graph.n_atoms, there.graph.n_structures
    assert output.device == device
    assert output.shape == (6 * b + 1 + 4 * n + 9 * b,)
    assert output.dtype == torch.float64


def test_overflow_and_expired_lists_are_noticed_and_done_again(tiny):
    """Denser and denser, until room and lists no longer suffice."""
    atoms = hydrogen_oxygen_structures()[1]
    batches = tiny.batcher
    batches.use(Evaluator(tiny.network, sparse=False))
    batches.memory.on_host = False  # the way of an accelerator
    for _ in range(12):
        atoms.set_cell(atoms.cell.array * 0.975, scale_atoms=True)
        atoms.rattle(0.02, seed=1)
        assert_equal_results(tiny.evaluate([atoms])[0], autograd_results(tiny, atoms), 1e-10)
    counters = tiny.counters
    assert 1 < counters.rebuilds < 12
    assert 1 < counters.layouts < 12


def test_new_lists_go_where_the_old_ones_were(tiny):
    """Addresses are part of a captured step, which has to outlive the lists."""
    structures = hydrogen_oxygen_structures()
    batches = tiny.batcher
    batches.use(Evaluator(tiny.network, sparse=False))
    batches.memory.on_host = False
    rng = np.random.default_rng(2)

    def addresses():
        (session,) = batches.sessions.values()
        graph = session.graph
        tensors = [*graph._candidates, graph._input, *vars(graph._slots).values()]
        return graph.programs, [t.data_ptr() for t in tensors if isinstance(t, torch.Tensor)]

    tiny.evaluate(structures)
    first = addresses()
    for _ in range(5):
        for atoms in structures:
            # Far, but in step, so that lists expire and distances hardly change.
            atoms.rotate(30, (1, 2, 3), rotate_cell=True)
            atoms.rattle(1e-3, rng=rng)
        for atoms, result in zip(structures, tiny.evaluate(structures), strict=True):
            assert_equal_results(result, autograd_results(tiny, atoms), 1e-10)
    assert tiny.counters.rebuilds >= 5
    assert addresses() == first
    # More candidates than there is room for: another program.
    for atoms in structures:
        atoms.set_cell(atoms.cell.array * 0.8, scale_atoms=True)
    tiny.evaluate(structures)
    assert addresses()[0] == first[0] + 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_step_gives_what_the_cpu_gives(tiny):
    structures = hydrogen_oxygen_structures()
    gpu = Potential(SMALL, device="cuda")
    rng = np.random.default_rng(0)
    for _ in range(12):
        for atoms in structures:
            atoms.positions += rng.normal(scale=0.03, size=atoms.positions.shape)
        for a, b in zip(gpu.evaluate(structures), tiny.evaluate(structures), strict=True):
            assert_equal_results(a, b, 1e-9)
    (session,) = gpu.batcher.sessions.values()
    assert session._capture is not None
    assert session._capture._graph is not None
    first, again = gpu.evaluate(structures), gpu.evaluate(structures)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.forces, b.forces)
