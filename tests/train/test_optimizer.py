"""Optimizers, clipping and averages: torch's formulas, exact resumption, untouched parameters."""

import math

import pytest
import torch
from safetensors.torch import load, save

from dpa3sim.common.errors import InputError
from dpa3sim.train.optimizer import (
    Average,
    Optimizer,
    clip_,
    is_muon_matrix,
    orthogonalised,
)
from dpa3sim.train.settings import OptimizerSettings

SHAPES = {
    "layers.0.matrix": (20, 12),
    "layers.0.bias": (12,),
    "layers.10.bias": (1, 12),
    "edge_embd.matrix": (1, 12),
    "rho.0": (12,),
}


def tensors(seed, dtype=torch.float64, shapes=SHAPES):
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, dtype=torch.float64, generator=draw).to(dtype)
        for name, shape in shapes.items()
    }


def train(optimizer, first, last, lr=lambda t: 1e-2 / (1 + t), dtype=torch.float64):
    for t in range(first, last):
        optimizer.step(tensors(100 + t, dtype), lr(t))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("kind", "reference", "decay"),
    [("adam", torch.optim.Adam, 0.02), ("adamw", torch.optim.AdamW, 0.02)],
)
def test_steps_are_those_of_torch(kind, reference, decay, dtype):
    own, theirs = tensors(0, dtype), tensors(0, dtype)
    settings = OptimizerSettings(optimizer=kind, beta1=0.8, beta2=0.97, weight_decay=decay)
    optimizer = Optimizer(own, settings)
    other = reference(theirs.values(), lr=1.0, betas=(0.8, 0.97), weight_decay=decay)
    for t in range(20):
        gradients, lr = tensors(100 + t, dtype), 1e-2 / (1 + t)
        optimizer.step(gradients, lr)
        other.param_groups[0]["lr"] = lr
        for name, parameter in theirs.items():
            parameter.grad = gradients[name]
        other.step()
    for name in own:
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(own[name], theirs[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("kind", "beta2", "decay"), [("adam", 0.999, 0.0), ("adamw", 0.999, 1e-3), ("muon", 0.95, 1e-3)]
)
def test_defaults_of_each_kind(kind, beta2, decay):
    implied, given = tensors(0), tensors(0)
    train(Optimizer(implied, OptimizerSettings(optimizer=kind)), 0, 5)
    settings = OptimizerSettings(optimizer=kind, beta1=0.9, beta2=beta2, weight_decay=decay)
    train(Optimizer(given, settings), 0, 5)
    assert all(torch.equal(implied[name], given[name]) for name in implied)


@pytest.mark.parametrize("kind", ["adam", "adamw", "muon"])
def test_parameters_without_gradient_are_left_alone(kind):
    parameters = tensors(0)
    optimizer = Optimizer(parameters, OptimizerSettings(optimizer=kind, weight_decay=0.1))
    quiet = {"layers.0.matrix": None, "layers.0.bias": None}
    for t in range(3):
        optimizer.step({**tensors(t), **quiet}, 1e-2)
    start = tensors(0)
    for name, parameter in parameters.items():
        assert torch.equal(parameter, start[name]) == (name in quiet)
        assert any(name in key for key in optimizer.state_dict()) == (name not in quiet)


def test_late_parameter_starts_with_its_own_first_step():
    late, alone = tensors(0), tensors(0)
    settings, name = OptimizerSettings(), "layers.0.bias"
    optimizer = Optimizer(late, settings)
    for t in range(3):
        optimizer.step({**tensors(t), name: None}, 1e-2)
    optimizer.step(tensors(7), 1e-2)
    Optimizer(alone, settings).step(tensors(7), 1e-2)
    assert torch.equal(late[name], alone[name])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["adam", "adamw", "muon"])
def test_resumed_training_is_the_same_to_the_last_bit(kind, dtype):
    straight, settings = tensors(0, dtype), OptimizerSettings(optimizer=kind)
    train(Optimizer(straight, settings), 0, 10, dtype=dtype)
    half = tensors(0, dtype)
    first = Optimizer(half, settings)
    train(first, 0, 5, dtype=dtype)
    saved = save(first.state_dict())
    resumed = {name: parameter.clone() for name, parameter in half.items()}
    train(first, 5, 6, dtype=dtype)
    second = Optimizer(resumed, settings)
    second.load_state_dict(load(saved))
    train(second, 5, 10, dtype=dtype)
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_gradients_of_higher_precision_are_rounded_and_kept():
    a, b = tensors(0, torch.float32), tensors(0, torch.float32)
    settings = OptimizerSettings()
    exact = tensors(1)
    Optimizer(a, settings).step(exact, 1e-2)
    Optimizer(b, settings).step({n: g.float() for n, g in exact.items()}, 1e-2)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert all(torch.equal(exact[name], same) for name, same in tensors(1).items())


def change(state, key, value=None):
    state = dict(state)
    if value is None:
        del state[key]
    else:
        state[key] = value
    return state


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("exp_avg.rho.0", torch.zeros(3), "shape"),
        ("exp_avg.rho.0", torch.zeros(12, dtype=torch.float32), "float32"),
        ("exp_avg.other", torch.zeros(3), "no state 'exp_avg.other'"),
        ("momentum.rho.0", torch.zeros(12), "no state 'momentum.rho.0'"),
        ("exp_avg.rho.0", None, "incomplete for 'rho.0'"),
        ("step.rho.0", None, "incomplete for 'rho.0'"),
    ],
)
def test_state_of_something_else_is_refused(key, value, message):
    optimizer = Optimizer(tensors(0), OptimizerSettings())
    train(optimizer, 0, 1)
    with pytest.raises(InputError, match=message):
        optimizer.load_state_dict(change(optimizer.state_dict(), key, value))


def test_which_parameters_muon_trains():
    assert [n for n, p in tensors(0).items() if is_muon_matrix(n, p)] == ["layers.0.matrix"]
    square = torch.zeros(3, 3)
    assert is_muon_matrix("bias_net.matrix", square)
    assert not is_muon_matrix("net.my_bias.4", square)


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (16, 4), (12, 12)])
def test_orthogonalised_matrix(shape):
    matrix = tensors(3, shapes={"m": shape})["m"]
    update = orthogonalised(matrix)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    # The iteration keeps singular vectors, and takes each singular value through a polynomial.
    values = s / s.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    torch.testing.assert_close(update, u @ values.diag() @ v, rtol=0, atol=1e-12)
    if shape[0] != shape[1]:
        # Those of a random square matrix can be too small to get there.
        singular = torch.linalg.svdvals(update)
        assert 0.68 < singular.min() <= singular.max() < 1.2


def test_orthogonalised_zero_is_zero():
    assert not orthogonalised(torch.zeros(3, 4)).any()


def test_muon_matrix_follows_its_formula():
    parameters, lr = tensors(0), 1e-2
    name, decay = "layers.0.matrix", 0.1
    optimizer = Optimizer(parameters, OptimizerSettings(optimizer="muon", weight_decay=decay))
    weight, momentum = tensors(0)[name], torch.zeros(20, 12, dtype=torch.float64)
    for t in range(3):
        gradient = tensors(t)[name]
        optimizer.step(tensors(t), lr)
        momentum = 0.95 * momentum + 0.05 * gradient
        update = orthogonalised(0.95 * momentum + 0.05 * gradient)
        weight = weight * (1 - lr * decay) - lr * 0.2 * math.sqrt(20) * update
        torch.testing.assert_close(parameters[name], weight, rtol=1e-12, atol=1e-12)


def test_muon_trains_other_parameters_by_adam_without_decay():
    parameters, others = tensors(0), tensors(0)
    optimizer = Optimizer(parameters, OptimizerSettings(optimizer="muon", weight_decay=0.5))
    adam = torch.optim.AdamW(others.values(), lr=1e-2, betas=(0.9, 0.95), eps=1e-7, weight_decay=0)
    for t in range(5):
        optimizer.step(tensors(t), 1e-2)
        for name, parameter in others.items():
            parameter.grad = tensors(t)[name]
        adam.step()
    for name in set(SHAPES) - {"layers.0.matrix"}:
        torch.testing.assert_close(parameters[name], others[name], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("max_norm", [1e-3, 5.0, 1e9, math.inf])
def test_clipping_is_that_of_torch(max_norm):
    own, theirs = {**tensors(1), "none": None}, tensors(1)
    for parameter in theirs.values():
        parameter.grad = parameter.clone()
    norm = clip_(own, max_norm)
    expected = torch.nn.utils.clip_grad_norm_(theirs.values(), max_norm)
    torch.testing.assert_close(norm, expected, rtol=1e-14, atol=0)
    for name, parameter in theirs.items():
        torch.testing.assert_close(own[name], parameter.grad, rtol=1e-14, atol=0)


def test_norm_of_float32_gradients_is_summed_in_float64():
    gradients = {"a": torch.full((1000,), 1e30), "b": torch.full((3,), 1.0)}
    norm = clip_(gradients, 5.0)
    assert norm.dtype == torch.float64
    assert float(norm) == pytest.approx(1e30 * math.sqrt(1000), rel=1e-6)
    assert float(gradients["a"].norm()) == pytest.approx(5.0, rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_norm_that_is_not_finite_is_reported(bad):
    gradients = tensors(1)
    gradients["rho.0"][3] = bad
    assert not clip_(gradients, 5.0).isfinite()


def test_average_in_closed_form():
    decay, values = 0.9, [tensors(t) for t in range(6)]
    average = Average(values[0], decay)
    for later in values[1:]:
        average.update(later)
    shares = [decay**5] + [(1 - decay) * decay ** (5 - t) for t in range(1, 6)]
    for name, found in average.state_dict().items():
        expected = sum(s * v[name] for s, v in zip(shares, values, strict=True))
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)


def test_average_is_independent_of_the_parameters_and_keeps_constants():
    parameters = tensors(0, torch.float32)
    average = Average(parameters, 0.999)
    for _ in range(10):
        average.update(parameters)
    for parameter in parameters.values():
        parameter.zero_()
    same = tensors(0, torch.float32)
    assert all(torch.equal(average.state_dict()[name], same[name]) for name in same)


def test_averages_as_weights_have_the_buffers_of_the_model():
    parameters = tensors(0)
    average = Average(parameters, 0.5)
    live = {**tensors(1), "out_bias": torch.ones(2)}
    weights = average.weights(live)
    assert list(weights) == list(live)
    assert torch.equal(weights["out_bias"], live["out_bias"])
    assert torch.equal(weights["rho.0"], parameters["rho.0"])


def test_resumed_average():
    first = Average(tensors(0), 0.9)
    first.update(tensors(1))
    second = Average(tensors(5), 0.9)
    second.load_state_dict(first.state_dict())
    for average in (first, second):
        average.update(tensors(2))
    assert all(
        torch.equal(tensor, second.state_dict()[name])
        for name, tensor in first.state_dict().items()
    )
    with pytest.raises(InputError, match="another model"):
        second.load_state_dict({"rho.0": torch.zeros(12)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "sgd"}, "adam, adamw, muon"),
        ({"beta1": 1.0}, "below 1"),
        ({"beta2": 1.5}, "below 1"),
        ({"weight_decay": -1.0}, "at least 0"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(InputError, match=message):
        OptimizerSettings(**options)


@pytest.mark.parametrize("decay", [1.0, -0.1, math.nan])
def test_bad_decay_of_averages(decay):
    with pytest.raises(InputError, match="ema_decay"):
        Average(tensors(0), decay)
