"""Gradients with respect to weights against autograd through the readable network."""

import pytest
import torch
from tests_support import (
    MODELS,
    hydrogen_oxygen_structures,
    load_small,
    structures_with_inputs,
)

from dpa3sim import Potential
from dpa3sim.graph.blocks import BlockLimits
from dpa3sim.graph.static import block_graph as block_graph_of
from dpa3sim.kernels import libraries
from dpa3sim.kernels.evaluator import Evaluator, MemoryPolicy
from dpa3sim.kernels.gradients import relative_difference
from dpa3sim.model.network import Network
from dpa3sim.model.weights import is_trained

LIMITS = BlockLimits(angles=500, edges=500, overhead=10.0)
POLICIES = [
    MemoryPolicy("preactivations"),
    MemoryPolicy("inputs"),
    MemoryPolicy("inputs", every=2),
]


def block_graph(potential, atoms):
    """The blocks of some structures."""
    systems = [potential.system(x) for x in atoms]
    edges = [potential.edges(x) for x in systems]
    angles = potential.model.config.descriptor.update_angle
    return block_graph_of(systems, edges, LIMITS, angles, torch.device("cpu"))


def by_autograd(potential, atoms, seed):
    """The gradient of ``seed . energies`` through the definition of the model."""
    network = Network(
        potential.model.config, potential.model.weights, potential.device, torch.float64
    )
    leaves = {n: x.requires_grad_() for n, x in network.weights.items() if is_trained(n)}
    graph = potential.graph(atoms)
    total = (network.atomic_energies(graph, graph.vectors) * seed).sum()
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {n: g for n, g in zip(leaves, found, strict=True) if g is not None}


def by_kernels(potential, graph, seed, policy, library, dtype=torch.float64):
    network = Network(potential.model.config, potential.model.weights, potential.device, dtype)
    evaluator = Evaluator(network, True, library)
    sums = evaluator.weight_sums(graph)
    evaluator.add_weight_gradients(graph, seed[torch.from_numpy(graph.layout.order)], policy, sums)
    return evaluator.named_gradients(graph, sums)


def assert_alike(found, expected, tolerance):
    assert set(found) == set(expected)
    size = max(float(x.abs().max()) for x in expected.values())
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float64
        scale = max(float(gradient.abs().max()), 1e-3 * size)
        assert float((found[name] - gradient).abs().max()) <= tolerance * scale, name


@pytest.fixture(params=["compiled", "torch"])
def library(request):
    if request.param == "torch":
        return None
    found = libraries.status().library
    if found is None:
        pytest.skip(f"no compiled kernels: {libraries.status().reason}")
    return found


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_kernels_equal_autograd_for_every_option(path, library):
    potential, atoms = load_small(path), structures_with_inputs()
    graph = block_graph(potential, atoms)
    seed = torch.linspace(-1, 2, graph.n_atoms, dtype=torch.float64)
    found = by_kernels(potential, graph, seed, POLICIES[1], library)
    assert_alike(found, by_autograd(potential, atoms, seed), 1e-10)


@pytest.mark.parametrize("name", ["dynamic", "sequential", "e_a"])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_what_is_kept_does_not_matter(name, policy, library):
    potential = load_small(next(path for path in MODELS if path.parent.name == name))
    atoms = structures_with_inputs()
    graph = block_graph(potential, atoms)
    seed = torch.linspace(-1, 2, graph.n_atoms, dtype=torch.float64)
    found = by_kernels(potential, graph, seed, policy, library)
    assert_alike(found, by_autograd(potential, atoms, seed), 1e-10)


def test_smoothed_models(library):
    path = next(path for path in MODELS if load_small(path).model.config.descriptor.has_step)
    potential, atoms = load_small(path, smooth_cutoff=0.3), structures_with_inputs()
    assert potential.smooth_cutoff
    graph = block_graph(potential, atoms)
    seed = torch.ones(graph.n_atoms, dtype=torch.float64)
    found = by_kernels(potential, graph, seed, MemoryPolicy(), library)
    assert_alike(found, by_autograd(potential, atoms, seed), 1e-10)


def test_float32_rounds_like_float32(embedded, library):
    """The embedded model, whose layers have the widths that models in use have."""
    potential = Potential(embedded.model, dtype="float64")
    atoms = hydrogen_oxygen_structures()
    graph = block_graph(potential, atoms)
    seed = torch.ones(graph.n_atoms, dtype=torch.float64)
    exact = by_kernels(potential, graph, seed, MemoryPolicy(), library)
    found = by_kernels(potential, graph, seed, MemoryPolicy(), library, torch.float32)
    assert relative_difference(found, exact) < 3e-6


def test_threads_do_not_change_a_bit(embedded):
    """Sums are divided in the same way whatever the number of threads."""
    library = libraries.status().library
    if library is None:
        pytest.skip(f"no compiled kernels: {libraries.status().reason}")
    graph = block_graph(embedded, hydrogen_oxygen_structures())
    seed = torch.ones(graph.n_atoms, dtype=torch.float64)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            arguments = embedded, graph, seed, MemoryPolicy(), library, torch.float32
            found.append(by_kernels(*arguments))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for name, gradient in found[0].items():
            assert torch.equal(gradient, other[name]), name


def test_gradients_follow_a_change_of_the_weights(library):
    """A step along the gradient changes the energy by its square."""
    path = next(path for path in MODELS if path.parent.name == "dynamic")
    potential, atoms = load_small(path), structures_with_inputs()
    graph = block_graph(potential, atoms)
    network = Network(
        potential.model.config, potential.model.weights, potential.device, torch.float64
    )
    evaluator = Evaluator(network, True, library)
    sums, ones = evaluator.weight_sums(graph), torch.ones(graph.n_atoms, dtype=torch.float64)
    evaluator.add_weight_gradients(graph, ones, MemoryPolicy(), sums)
    gradient = evaluator.named_gradients(graph, sums)
    expected = sum(float(g.square().sum()) for g in gradient.values())
    energies, step = [], 1e-5 / expected**0.5
    for sign in (1, -2):
        for name, g in gradient.items():
            network.weights[name].add_(sign * step * g)
        evaluator.refresh()
        energies.append(float(evaluator.evaluate(graph, MemoryPolicy())[0].sum()))
    slope = (energies[0] - energies[1]) / (2 * step)
    assert slope == pytest.approx(expected, rel=1e-6)
