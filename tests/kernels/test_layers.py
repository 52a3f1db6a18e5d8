"""The hand-written layers against the readable network, in every option and memory policy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests_support import (
    DATA,
    MODELS,
    assert_equal_results,
    autograd_results,
    load_small,
    session_of,
    structures_with_inputs,
)

from dpa3sim import Potential
from dpa3sim.graph.blocks import BlockLimits, make_layout
from dpa3sim.kernels import libraries
from dpa3sim.kernels.evaluator import Evaluator, MemoryPolicy
from dpa3sim.model.activations import ActivationKernel, activate
from dpa3sim.model.config import ACTIVATIONS, Activation

POLICIES = [
    MemoryPolicy("preactivations"),
    MemoryPolicy("inputs"),
    MemoryPolicy("inputs", every=2),
    MemoryPolicy("inputs", every=7),
]
# Rounding of energies of some tens of eV, in float64.
ROUNDING = 1e-12


def run(potential, atoms, limits, policy, on_host=True):
    """An evaluation that is told how to arrange and what to keep."""
    session, systems = session_of(potential, [atoms], limits, policy, on_host)
    return session.step(systems)[0]


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_layers_equal_the_network(path):
    potential = load_small(path)
    for atoms in structures_with_inputs():
        result = potential.evaluate([atoms])[0]
        assert_equal_results(result, autograd_results(potential, atoms), ROUNDING)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("name", ["dynamic", "static_linear", "sequential", "res_avg", "e_a"])
@pytest.mark.parametrize("chunk", [1, 300, 10**9])
def test_what_is_kept_and_how_it_is_cut_does_not_matter(name, policy, chunk, water):
    potential = load_small(next(path for path in MODELS if path.parent.name == name))
    limits = BlockLimits(angles=chunk, edges=chunk, overhead=10.0)
    step = run(potential, water, limits, policy)
    expected = potential.evaluate([water])[0]
    np.testing.assert_allclose(step.energies, expected.energies, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(step.forces, expected.forces, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(step.virial, expected.virial, rtol=0, atol=10 * ROUNDING)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_spare_room_does_not_matter(path):
    """The way of an accelerator: fixed shapes with a margin, both branches of the activation."""
    potential = load_small(path)
    limits = BlockLimits(angles=10**6, edges=10**6, overhead=1e5, margin=0.4)
    for atoms in structures_with_inputs():
        step = run(potential, atoms, limits, POLICIES[0], on_host=False)
        expected = potential.evaluate([atoms])[0]
        np.testing.assert_allclose(step.energies, expected.energies, rtol=0, atol=ROUNDING)
        np.testing.assert_allclose(step.forces, expected.forces, rtol=0, atol=ROUNDING)


class Copies:
    """Nodes that are computed elsewhere: here, copies of all centres."""

    def __init__(self):
        self.calls = []

    def forward(self, node):
        self.calls.append("forward")
        return torch.cat([node, node])

    def backward(self, d_node):
        self.calls.append("backward")
        here, elsewhere = d_node.chunk(2)
        return here + elsewhere


@pytest.mark.parametrize("kernels", ["tensor operations", "compiled"])
@pytest.mark.parametrize("name", ["dynamic", "static_linear", "sequential", "res_avg"])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_nodes_that_are_no_centres(name, policy, kernels, water):
    """Half of the edges point to copies; features and gradients are exchanged between layers."""
    library = libraries.status().library if kernels == "compiled" else None
    if kernels == "compiled" and library is None:
        pytest.skip("the kernels are not built")
    potential = load_small(next(path for path in MODELS if path.parent.name == name))
    limits = BlockLimits(angles=10**6, edges=10**6, overhead=10.0)
    session, systems = session_of(potential, [water], limits, policy, True)
    session.step(systems)
    graph = session.graph.graph(session._measured, session.graph.arrange(session._measured))
    n = graph.n_atoms
    edge_j = graph.edge_j + n * (torch.arange(len(graph.edge_j)) % 2)
    order = torch.argsort(edge_j, stable=True)
    starts = torch.searchsorted(edge_j[order], torch.arange(2 * n))
    wide = replace(
        graph,
        types=graph.types.repeat(2),
        structure=graph.structure.repeat(2),
        edge_j=edge_j,
        incoming=order,
        incoming_start=starts,
    )
    assert (wide.n_atoms, wide.n_nodes) == (n, 2 * n)
    evaluator = Evaluator(potential.network, True, library)
    expected = [x.clone() for x in evaluator.evaluate(graph, policy)]
    copies = Copies()
    found = evaluator.evaluate(wide, policy, copies)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=ROUNDING)
    layers = potential.model.config.descriptor.nlayers
    assert copies.calls.count("backward") == layers - 1
    assert copies.calls.count("forward") == layers - 1


def test_other_weights_are_taken(water):
    """After `refresh` an evaluator computes with the weights that the network has now."""
    potential = load_small(DATA / "models/dynamic/model.pt")
    before = potential.evaluate([water])[0]
    with torch.no_grad():
        for weight in potential.network.parameters():
            weight.mul_(1.01)
    potential.batcher.evaluator.refresh()
    after = potential.evaluate([water])[0]
    assert abs(after.energy - before.energy) > 1e-3
    assert_equal_results(after, autograd_results(potential, water), ROUNDING)


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
