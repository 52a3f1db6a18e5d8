"""Pieces of the network against their formulas in the specification."""

import math

import numpy as np
import pytest
import torch
from tests_support import DATA, NoHostAccess

from dpa3sim import Potential
from dpa3sim.common.errors import CheckpointError
from dpa3sim.graph.reference import make_batch
from dpa3sim.model import network
from dpa3sim.model.config import ACTIVATIONS, Activation
from dpa3sim.model.electrons import econf_rows, occupations
from dpa3sim.model.network import activate, sum_rows, switch

X = torch.linspace(-6, 14, 2001, dtype=torch.float64)


@pytest.mark.parametrize(
    ("threshold", "alpha", "beta"),
    [
        (3.0, 1.0881041060151695, 2.8577223804673),
        (5.0, 1.02654743, 4.96653575),
        (10.0, 1.00040856, 9.99954602),
    ],
)
def test_silut_is_silu_below_and_bounded_above_its_threshold(threshold, alpha, beta):
    y = activate(X, Activation("silut", threshold))
    below, above = threshold > X, threshold <= X
    torch.testing.assert_close(y[below], X[below] * torch.sigmoid(X[below]))
    torch.testing.assert_close(
        y[above], torch.tanh(alpha * (X[above] - threshold)) + beta, atol=1e-7, rtol=0
    )


def test_silut_is_continuous_with_its_derivative():
    for threshold in (3.0, 10.0):
        x = torch.tensor([threshold - 1e-9, threshold + 1e-9], dtype=torch.float64)
        x.requires_grad_(True)
        y = activate(x, Activation("silut", threshold))
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert abs(y[1] - y[0]) < 1e-8
        assert abs(slope[1] - slope[0]) < 1e-8


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_have_finite_values_and_derivatives(name):
    x = X.clone().requires_grad_(True)
    y = activate(x, Activation(name))
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.isfinite(y).all()
    assert torch.isfinite(slope).all()


def test_gelu_is_the_tanh_approximation():
    inner = math.sqrt(2 / math.pi) * (X + 0.044715 * X**3)
    torch.testing.assert_close(activate(X, Activation("gelu")), 0.5 * X * (1 + torch.tanh(inner)))


@pytest.mark.parametrize("text", ["swish", "silut:abc", "tanh:3", ""])
def test_bad_activation_names(text):
    if text == "":
        assert Activation.parse(text).name == "linear"
        return
    with pytest.raises(CheckpointError):
        Activation.parse(text)


def test_polynomial_switch():
    r = torch.tensor([0.1, 5.0, 5.5, 6.0], dtype=torch.float64)
    values = switch(r, 5.0, 6.0, exponential=False)
    torch.testing.assert_close(values, torch.tensor([1.0, 1.0, 0.5, 0.0], dtype=torch.float64))


def test_exponential_switch_does_not_end_at_zero():
    r = torch.tensor([6.0, 4.0], dtype=torch.float64)
    assert switch(r[:1], 5.3, 6.0, exponential=True).item() == pytest.approx(8.0e-7, rel=0.01)
    assert switch(r[1:], 3.5, 4.0, exponential=True).item() == pytest.approx(2.7e-8, rel=0.02)


def test_sum_rows():
    x = torch.arange(12.0).reshape(4, 3)
    total = sum_rows(x, torch.tensor([2, 0, 2, 2]), 4)
    torch.testing.assert_close(total[2], x[0] + x[2] + x[3])
    assert not total[1].any()


@pytest.mark.parametrize("variant", ["linear", "sequential"])
def test_recomputing_layers_changes_nothing(variant, water, monkeypatch):
    potential = Potential(DATA / "variants" / variant / "model.pt")
    kept = potential.evaluate([water])[0]
    monkeypatch.setattr(network, "RECOMPUTE_ABOVE", 0)
    again = potential.evaluate([water])[0]
    assert again.energy == kept.energy
    np.testing.assert_array_equal(again.forces, kept.forces)


def _batch(potential, atoms, device):
    return make_batch([potential.system(atoms)], [potential.edges(atoms)], torch.device(device))


MODELS = ["variants/sequential", "variants/fparam_aparam", "models/charge_spin", "variants/excl"]


@pytest.mark.parametrize("name", MODELS)
def test_network_never_waits_for_the_device(name, water):
    potential = Potential(DATA / name / "model.pt")
    water.info |= {"fparam": [0.1, 0.2], "aparam": np.zeros((len(water), 1))}
    batch = _batch(potential, water, "cpu")
    with NoHostAccess():
        energies = potential.network.atomic_energies(batch, batch.vectors.requires_grad_(True))
        (gradient,) = torch.autograd.grad(energies.sum(), batch.vectors)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", MODELS)
def test_network_lives_on_one_device(name, water):
    """On the meta device, any tensor made elsewhere is an error."""
    potential = Potential(DATA / name / "model.pt")
    water.info |= {"fparam": [0.1, 0.2], "aparam": np.zeros((len(water), 1))}
    model = potential.model
    meta = network.Network(model.config, model.weights, torch.device("meta"), torch.float32)
    batch = _batch(potential, water, "meta")
    energies = meta.atomic_energies(batch, batch.vectors)
    assert energies.device.type == "meta"
    assert energies.shape == (len(water),)
    assert energies.dtype == torch.float64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_what_the_cpu_gives(water):
    path = DATA / "models/dynamic/model.pt"
    cpu = Potential(path, device="cpu").evaluate([water])[0]
    gpu = Potential(path, device="cuda").evaluate([water])[0]
    assert gpu.energy == pytest.approx(cpu.energy, abs=1e-9)
    np.testing.assert_allclose(gpu.forces, cpu.forces, atol=1e-9)


def test_electron_configurations():
    assert sum(occupations("U").values()) == 92
    assert occupations("Cr") | {"3d": 5, "4s": 1} == occupations("Cr")
    assert occupations("Pd")["5s"] == 0
    assert occupations("O")["2p"] == 4
    rows = econf_rows(("H", "O", "Og"))
    assert rows.shape == (3, 118)
    np.testing.assert_allclose((rows**2).sum(axis=1), 1)
    assert (rows > 0).sum(axis=1).tolist() == [1, 8, 118]
    with pytest.raises(CheckpointError, match="not type 'OW'"):
        econf_rows(("OW",))
