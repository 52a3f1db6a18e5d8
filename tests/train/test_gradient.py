"""Gradients of losses by differences against double backward through the readable network."""

from functools import partial

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from tests_support import (
    MODELS,
    hydrogen_oxygen_structures,
    load_small,
)

from dpa3sim import Potential
from dpa3sim.graph.blocks import BlockLimits
from dpa3sim.kernels.gradients import largest_difference, relative_difference
from dpa3sim.model.network import Network
from dpa3sim.train.gradient import Batch, DifferenceGradient, ExactGradient, suitable_scale
from dpa3sim.train.loss import Labels, Loss
from dpa3sim.train.settings import LossSettings

LIMITS = BlockLimits(angles=2000, edges=2000, overhead=10.0)
# All terms at once.
SETTINGS = LossSettings(start_pref_e=1.0, start_pref_f=10.0, start_pref_v=1.0)


def labelled(potential, atoms, without=(), seed=0, size=0.1):
    """A batch whose labels differ from what the model says by random numbers."""
    rng = np.random.default_rng(seed)
    systems = [potential.system(x) for x in atoms]
    found = potential.evaluate(atoms)
    n = np.array([len(x) for x in atoms])
    arrays = {
        "energy": np.array([x.energy for x in found]) + size * n * rng.normal(size=len(n)),
        "forces": np.concatenate([x.forces for x in found]),
        "virial": np.stack([x.virial for x in found]),
    }
    arrays["forces"] = arrays["forces"] + size * rng.normal(size=arrays["forces"].shape)
    noise = rng.normal(size=arrays["virial"].shape) * n[:, None, None]
    arrays["virial"] = arrays["virial"] + size * (noise + noise.transpose(0, 2, 1))
    for name in without:
        arrays[name] = np.full_like(arrays[name], np.nan)
    labels = Labels(
        structure=torch.from_numpy(np.repeat(np.arange(len(n)), n)),
        n_atoms_of=torch.from_numpy(n),
        weight=torch.ones(len(n), dtype=torch.float64),
        **{name: torch.from_numpy(array) for name, array in arrays.items()},
    )
    edges = [potential.edges(x) for x in systems]
    angles = potential.model.config.descriptor.update_angle
    return Batch(systems, edges, labels, LIMITS, angles, potential.device)


def exact(potential, batch, loss):
    model = potential.model
    network = Network(model.config, model.weights, potential.device, torch.float64)
    return ExactGradient(network)(batch, loss)


def by_difference(potential):
    return DifferenceGradient(potential.network, potential.batcher.evaluator)


def loss_of(settings=SETTINGS):
    return partial(Loss(settings, 1e-3), lr=1e-3)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_every_option_in_float64(path):
    potential = load_small(path)
    atoms = hydrogen_oxygen_structures()
    for x in atoms:
        x.info |= {
            "fparam": [0.3, 0.7],
            "aparam": np.linspace(-1, 1, len(x)),
            "charge_spin": [1, 2],
        }
    batch, loss = labelled(potential, atoms), loss_of()
    expected, found = exact(potential, batch, loss), by_difference(potential)(batch, loss)
    assert set(found.weights) == set(expected.weights)
    assert relative_difference(found.weights, expected.weights) < 1e-3
    assert float(found.loss) == pytest.approx(float(expected.loss), rel=1e-9)
    torch.testing.assert_close(found.measures.sums, expected.measures.sums, rtol=1e-9, atol=1e-12)


def crystals():
    found = [bulk("Si", cubic=True), bulk("MgO", "rocksalt", a=4.3, cubic=True)]
    for seed, atoms in enumerate(found):
        atoms.rattle(0.05, seed=seed)
    return found


def water():
    rng = np.random.default_rng(3)
    cell = molecule("H2O", cell=[5.6, 3.1, 3.1], pbc=True)
    found = cell.repeat((1, 2, 2))
    found.positions += rng.normal(scale=0.03, size=found.positions.shape)
    return [found]


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 3e-3), ("float64", 1e-3)])
@pytest.mark.parametrize(
    "make",
    [crystals, water, lambda: [molecule("CH3CH2OH"), molecule("C6H6")]],
    ids=["crystals", "water", "molecules"],
)
def test_the_embedded_model(make, dtype, bound, embedded):
    potential = Potential(embedded.model, dtype=dtype)
    loss = loss_of()
    for atoms in make():
        batch = labelled(potential, [atoms], without=() if atoms.pbc.all() else ("virial",))
        expected = exact(potential, batch, loss)
        found = by_difference(potential)(batch, loss)
        assert relative_difference(found.weights, expected.weights) < bound


def test_small_residuals_cost_no_accuracy(embedded64):
    """The displacements have a fixed size, whatever that of the errors."""
    atoms = water()
    for size in (1e-5, 10.0):
        batch = labelled(embedded64, atoms, size=size)
        expected = exact(embedded64, batch, loss_of())
        found = by_difference(embedded64)(batch, loss_of())
        assert relative_difference(found.weights, expected.weights) < 1e-3


@pytest.mark.parametrize("without", [("forces", "virial"), ("energy", "virial"), ("energy",)])
def test_frames_without_some_labels(without, water):
    potential = load_small(next(path for path in MODELS if path.parent.name == "dynamic"))
    batch = labelled(potential, [water], without)
    expected = exact(potential, batch, loss_of())
    found = by_difference(potential)(batch, loss_of())
    bound = 1e-9 if "forces" in without else 1e-3  # energies need no difference
    assert relative_difference(found.weights, expected.weights) < bound


def test_a_batch_is_the_sum_of_its_frames():
    """Steps and seeds of one frame do not depend on the other frames of the batch."""
    potential = load_small(next(path for path in MODELS if path.parent.name == "dynamic"))
    atoms = hydrogen_oxygen_structures()[:3]
    method, loss = by_difference(potential), loss_of()
    together = method(labelled(potential, atoms), loss)
    whole = labelled(potential, atoms)
    total: dict[str, torch.Tensor] = {}
    for k in range(len(atoms)):
        rows = whole.labels.structure == k
        labels = Labels(
            structure=torch.zeros(int(rows.sum()), dtype=torch.int64),
            n_atoms_of=whole.labels.n_atoms_of[k : k + 1],
            energy=whole.labels.energy[k : k + 1],
            forces=whole.labels.forces[rows],
            virial=whole.labels.virial[k : k + 1],
            weight=whole.labels.weight[k : k + 1] / len(atoms),
        )
        one = Batch(
            whole.systems[k : k + 1], whole.edges[k : k + 1], labels, LIMITS, True, potential.device
        )
        for name, gradient in method(one, loss).weights.items():
            total[name] = total.get(name, 0.0) + gradient
    assert relative_difference(total, together.weights) < 1e-7


def test_atoms_without_neighbours_have_energies_only():
    potential = load_small(next(path for path in MODELS if path.parent.name == "dynamic"))
    batch = labelled(potential, [molecule("H")], without=("virial",))
    found = by_difference(potential)(batch, loss_of())
    expected = exact(potential, batch, loss_of())
    for name, gradient in found.weights.items():
        assert torch.isfinite(gradient).all(), name
    assert relative_difference(found.weights, expected.weights) < 1e-9


def test_a_bad_step_is_found(water):
    potential = load_small(next(path for path in MODELS if path.parent.name == "dynamic"))
    method, batch = by_difference(potential), labelled(potential, [water])
    method.scale = 200.0
    for _ in range(12):
        method.scale = suitable_scale(method, batch, loss_of())
    expected = exact(potential, batch, loss_of()).weights
    assert relative_difference(method(batch, loss_of()).weights, expected) < 1e-2


def test_frames_without_errors_do_not_count():
    """Their gradients are rounding alone."""
    ones, noise = {"w": torch.ones(4)}, {"w": torch.full((4,), 1e-9)}
    assert largest_difference([(noise, {"w": -noise["w"]}), (ones, ones)]) < 1e-8
    assert relative_difference(noise, {"w": -noise["w"]}) == pytest.approx(2.0)
    worse = {"w": 1.1 * ones["w"]}
    assert largest_difference([(worse, ones), (ones, ones)]) == pytest.approx(0.1, rel=1e-5)
    assert largest_difference([]) == 0.0
