"""The hand-written layers against the readable network, in every option and memory policy."""

import numpy as np
import pytest
import torch
from tests_support import (
    DATA,
    assert_equal_results,
    autograd_results,
    hydrogen_oxygen_structures,
)

from dpa3sim import Potential
from dpa3sim.graph.blocks import BlockLimits, make_layout
from dpa3sim.graph.lists import Counters
from dpa3sim.graph.resident import ResidentGraph
from dpa3sim.graph.skin import SkinList
from dpa3sim.kernels.evaluator import Evaluator, MemoryPolicy
from dpa3sim.model.activations import ActivationKernel, activate
from dpa3sim.model.config import ACTIVATIONS, Activation
from dpa3sim.potential.session import Session

MODELS = sorted(
    [*(DATA / "variants").glob("*/model.pt"), *(DATA / "models").glob("*/model.pt")],
    key=lambda path: path.parent.name,
)
POLICIES = [
    MemoryPolicy("preactivations"),
    MemoryPolicy("inputs"),
    MemoryPolicy("inputs", every=2),
    MemoryPolicy("inputs", every=7),
]
# Rounding of energies of some tens of eV, in float64.
ROUNDING = 1e-12


def load(path):
    head = "Omat24" if path.parent.name == "multitask" else None
    return Potential(path, head=head, dtype="float64")


def structures():
    found = hydrogen_oxygen_structures()
    for atoms in found:
        atoms.info |= {
            "fparam": [0.3, 0.7],
            "aparam": np.linspace(-1, 1, len(atoms)),
            "charge_spin": [1, 2],
        }
    return found


def sessions(potential, atoms, limits, exact=True):
    """One that can be told how to arrange and what to keep, as BatchEvaluator makes them."""
    item = potential._item(atoms)
    rules = potential._rules
    skin = SkinList.search(item.positions, item.cell, item.pbc, rules.e_rcut, 0.3)
    with_angles = potential.model.config.descriptor.update_angle
    graph = ResidentGraph([skin], [item.member], rules, with_angles, torch.device("cpu"))
    evaluator = Evaluator(potential._network, sparse=exact)
    return Session(graph, evaluator, limits, exact, Counters()), item, skin


def run(session, item, skin, policy):
    cell = skin.deformation(item.positions, item.cell).cell
    session.measure([item.positions], [cell])
    return session.evaluate(policy)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_layers_equal_the_network(path):
    potential = load(path)
    for atoms in structures():
        result = potential.evaluate([atoms])[0]
        assert_equal_results(result, autograd_results(potential, atoms), ROUNDING)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("name", ["dynamic", "static_linear", "sequential", "res_avg", "e_a"])
@pytest.mark.parametrize("chunk", [1, 300, 10**9])
def test_what_is_kept_and_how_it_is_cut_does_not_matter(name, policy, chunk, water):
    potential = load(next(path for path in MODELS if path.parent.name == name))
    limits = BlockLimits(angles=chunk, edges=chunk, overhead=10.0)
    step = run(*sessions(potential, water, limits), policy)
    expected = potential.evaluate([water])[0]
    np.testing.assert_allclose(step.energies, expected.energies, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(step.forces, expected.forces, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(step.virials[0], expected.virial, rtol=0, atol=10 * ROUNDING)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_spare_room_does_not_matter(path):
    """The way of an accelerator: fixed shapes with a margin, both branches of the activation."""
    potential = load(path)
    limits = BlockLimits(angles=10**6, edges=10**6, overhead=1e5, margin=0.4)
    for atoms in structures():
        step = run(*sessions(potential, atoms, limits, exact=False), POLICIES[0])
        expected = potential.evaluate([atoms])[0]
        np.testing.assert_allclose(step.energies, expected.energies, rtol=0, atol=ROUNDING)
        np.testing.assert_allclose(step.forces, expected.forces, rtol=0, atol=ROUNDING)


def test_the_same_batch_gives_the_same_bits(embedded):
    from ase.build import bulk

    atoms = bulk("MgO", "rocksalt", a=4.25, cubic=True)
    atoms.rattle(0.05, seed=1)
    first = embedded.evaluate([atoms, atoms * (2, 1, 1)])
    embedded.evaluate([atoms * (1, 2, 1)])
    again = embedded.evaluate([atoms, atoms * (2, 1, 1)])
    other = Potential().evaluate([atoms, atoms * (2, 1, 1)])
    for results in (again, other):
        for a, b in zip(first, results, strict=True):
            assert a.energy == b.energy
            np.testing.assert_array_equal(a.forces, b.forces)
            np.testing.assert_array_equal(a.virial, b.virial)


def test_results_do_not_depend_on_the_history_of_the_lists(smooth, water):
    start = water.positions.copy()
    fresh = Potential(smooth.model).evaluate([water])[0]
    smooth.evaluate([water])
    rng = np.random.default_rng(0)
    for _ in range(5):  # away, across the boundary of the cell, and back
        water.positions += rng.normal(scale=0.2, size=water.positions.shape)
        smooth.evaluate([water])
    water.positions = start + water.cell.array[0] - 2 * water.cell.array[1]
    assert_equal_results(smooth.evaluate([water])[0], fresh, ROUNDING)
    water.positions = start
    back = smooth.evaluate([water])[0]
    assert back.energy == fresh.energy
    np.testing.assert_array_equal(back.forces, fresh.forces)


ALL_ACTIVATIONS = [*(Activation(n) for n in ACTIVATIONS), Activation("silut", 10.0)]


@pytest.mark.parametrize("activation", ALL_ACTIVATIONS, ids=str)
@pytest.mark.parametrize("sparse", [True, False])
def test_activations_in_place_equal_autograd(activation, sparse):
    rng = np.random.default_rng(1)
    for scale in (1.0, 6.0):  # few rows above the threshold of SiLUT, most rows
        x = torch.tensor(rng.normal(scale=scale, size=(60, 7)), requires_grad=True)
        upstream = torch.tensor(rng.normal(size=x.shape))
        y = activate(x, activation)
        (expected,) = torch.autograd.grad((y * upstream).sum(), x)
        kernel, given = ActivationKernel(activation, sparse), x.detach()
        rows = kernel.rows(given)
        out = kernel.forward(given, torch.empty_like(given), rows)
        torch.testing.assert_close(out, y.detach(), atol=1e-14, rtol=1e-13)
        gradient = kernel.backward_(upstream.clone(), given, rows)
        torch.testing.assert_close(gradient, expected, atol=1e-14, rtol=1e-13)
        in_place = given.clone()
        assert kernel.forward(in_place, in_place, rows) is in_place
        torch.testing.assert_close(in_place, out)


def test_layouts_have_room_for_every_centre_and_keep_their_limits():
    rng = np.random.default_rng(2)
    for _ in range(200):
        n = int(rng.integers(1, 400))
        m = rng.integers(0, rng.integers(1, 40), n)
        k = m + rng.integers(0, 60, n)
        limits = BlockLimits(
            angles=int(rng.integers(1, 20000)),
            edges=int(rng.integers(1, 5000)),
            overhead=float(rng.choice([0.0, 100.0, 1e5])),
            margin=float(rng.choice([0.0, 0.1])),
        )
        layout = make_layout(k, m, limits)
        assert sorted(layout.order.tolist()) == list(range(n))
        row = 0
        for block in layout.blocks:
            assert block.start == row
            rows = layout.order[block.rows]
            assert (k[rows] <= block.k_room).all()
            assert (m[rows] <= block.m_room).all()
            if block.count > 1:
                assert block.n_angles <= limits.angles
                assert block.n_edges <= limits.edges
            row += block.count
        assert row == n


def test_a_cheap_block_is_cut_off_and_an_expensive_one_is_not():
    k, m = np.array([50] * 10 + [10] * 10), np.array([16] * 10 + [4] * 10)
    limits = {"angles": 10**9, "edges": 10**9}
    assert len(make_layout(k, m, BlockLimits(**limits, overhead=0.0)).blocks) == 2
    assert len(make_layout(k, m, BlockLimits(**limits, overhead=1e6)).blocks) == 1
