"""Weights before training: their distributions, their streams, and deepmd-kit's."""

import json
import os
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from tests_support import DATA, hydrogen_oxygen_structures

from dpa3sim.checkpoints import read_model
from dpa3sim.checkpoints.deepmd import read_config
from dpa3sim.common.errors import CheckpointError, InputError
from dpa3sim.model.config import DescriptorConfig, FittingConfig, ModelConfig
from dpa3sim.model.initial import case_vector, initial_weights
from dpa3sim.model.inputs import with_inputs
from dpa3sim.model.weights import REPFLOWS, check_weights, weight_shapes
from dpa3sim.structures.system import System
from dpa3sim.train.statistics import descriptor_statistics, maximum_counts, resolve_selection

PEER = os.environ.get("DPA3SIM_DEEPMD_PYTHON", "")
DESCRIPTOR = DescriptorConfig(
    n_dim=64,
    e_dim=48,
    a_dim=32,
    nlayers=3,
    e_rcut=6.0,
    e_rcut_smth=5.3,
    e_sel=120,
    a_rcut=4.0,
    a_rcut_smth=3.5,
    a_sel=30,
)
CONFIG = ModelConfig(("O", "H", "C"), DESCRIPTOR, FittingConfig((96, 96, 96)))


def descriptor_with(**options):
    """The configuration with other options of the descriptor."""
    return replace(CONFIG, descriptor=replace(DESCRIPTOR, **options))


def expected_moments(name, shape):
    """Mean and standard deviation of a tensor."""
    if name.endswith(".matrix"):
        return 0.0, sum(shape) ** -0.5
    if name.endswith(".idt"):
        return 0.1, 0.001
    if "_residual." in name:
        return 0.1, 0.0
    if name.endswith("stddev"):
        return 0.3, 0.0
    return (0.0, 1.0) if name.endswith(".bias") else (0.0, 0.0)


# -- distributions -----------------------------------------------------------------------------


def test_every_tensor_has_its_distribution():
    weights = initial_weights(CONFIG, 1)
    check_weights(CONFIG, weights)
    for name, values in weights.items():
        mean, spread = expected_moments(name, values.shape)
        assert values.dtype == np.float64
        # Five standard errors of a mean and of a standard deviation.
        assert abs(values.mean() - mean) <= 5 * spread / np.sqrt(values.size) + 1e-15, name
        if values.size > 30:
            error = 5 * spread / np.sqrt(2 * values.size)
            assert values.std() == pytest.approx(spread, abs=error + 1e-15), name


def test_values_are_normal():
    matrix = initial_weights(CONFIG, 2)[f"{REPFLOWS}.layers.1.node_edge_linear.matrix"]
    scaled = matrix.ravel() / matrix.std()
    assert (scaled**4).mean() == pytest.approx(3.0, abs=5 * np.sqrt(96 / scaled.size))


def test_all_kinds_of_tensors():
    """Embeddings of charge and spin, compression, extra inputs and a case vector."""
    fitting = replace(CONFIG.fitting, numb_fparam=2, numb_aparam=1, dim_case_embd=3)
    config = replace(
        descriptor_with(add_chg_spin_ebd=True, use_tebd_bias=True, a_compress_rate=2),
        fitting=fitting,
    )
    weights = initial_weights(config, 1)
    check_weights(config, weights)
    assert not weights["fitting_net.case_embd"].any()
    assert not weights["fitting_net.fparam_avg"].any()
    assert (weights["fitting_net.aparam_inv_std"] == 1).all()


def test_residual_weights():
    names = [f"{REPFLOWS}.layers.{k}.n_residual.{i}" for k in range(3) for i in range(3)]
    constant = initial_weights(CONFIG, 1, update_residual=0.05)
    assert all((constant[name] == 0.05).all() for name in names)
    normal = initial_weights(CONFIG, 1, update_residual=0.05, update_residual_init="norm")
    values = np.concatenate([normal[name] for name in names])
    assert abs(values.mean()) < 5 * 0.05 / np.sqrt(values.size)
    assert values.std() == pytest.approx(0.05, rel=5 / np.sqrt(2 * values.size))


# -- streams -----------------------------------------------------------------------------------


def test_seed_determines_every_bit():
    first, again, other = (initial_weights(CONFIG, seed) for seed in (3, 3, 4))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        if expected_moments(name, first[name].shape)[1]:
            assert (first[name] != other[name]).all(), name


def test_another_layer_changes_no_other_tensor():
    less, more = initial_weights(CONFIG, 1), initial_weights(descriptor_with(nlayers=4), 1)
    assert set(less) < set(more)
    for name, values in less.items():
        np.testing.assert_array_equal(more[name], values)


def test_tensors_are_independent():
    weights = initial_weights(CONFIG, 1)
    layers = [weights[f"{REPFLOWS}.layers.{k}.node_self_mlp.matrix"].ravel() for k in range(3)]
    correlation = np.corrcoef(layers) - np.eye(3)
    assert np.abs(correlation).max() < 5 / np.sqrt(layers[0].size)


def test_values_fit_the_precision_of_their_part():
    config = descriptor_with(precision="float32")
    for name, values in initial_weights(config, 1).items():
        exact = values == values.astype(np.float32)
        assert exact.all() if name.startswith("descriptor.") else True, name
    fitting = initial_weights(config, 1)["fitting_net.filter_layers.networks.0.layers.0.matrix"]
    assert (fitting != fitting.astype(np.float32)).any()


# -- settings ----------------------------------------------------------------------------------


def test_settings_that_make_no_sense():
    with pytest.raises(InputError, match="update_residual_init = 'zero' is not one of const, norm"):
        initial_weights(CONFIG, 1, update_residual_init="zero")
    with pytest.raises(InputError, match="fix_stat_std"):
        initial_weights(CONFIG, 1, fix_stat_std=-1.0)


def test_statistics_cannot_be_forgotten():
    weights = initial_weights(CONFIG, 1, fix_stat_std=0.0)
    with pytest.raises(CheckpointError, match=r"stddev contains NaN"):
        check_weights(CONFIG, weights)


def test_case_vectors():
    heads = ["omat", "SPICE", "Alloy"]  # upper case first: Alloy, SPICE, omat
    np.testing.assert_array_equal(case_vector(heads, "Alloy", 4), [1, 0, 0, 0])
    np.testing.assert_array_equal(case_vector(heads, "omat", 3), [0, 0, 1])
    with pytest.raises(InputError, match="no head 'alloy'"):
        case_vector(heads, "alloy", 3)
    with pytest.raises(InputError, match="dim_case_embd = 2 is too small for the 3 heads"):
        case_vector(heads, "omat", 2)


# -- from structures ---------------------------------------------------------------------------


def systems(config):
    """Water in a box and other structures, with types."""
    return [with_inputs(System.from_atoms(a), config) for a in hydrogen_oxygen_structures()]


def environments(config, found):
    """Environment vectors of all slots by type of the centre, one atom after the other."""
    d = config.descriptor
    slots = {t: [] for t in range(config.ntypes)}
    for system in found:
        images = range(-4, 5)
        steps = [[i, j, k] for i in images for j in images for k in images]
        shifts = np.array([s for s in steps if not np.any(np.array(s)[~system.pbc])])
        for i, centre in enumerate(system.positions):
            vectors = (system.positions[None] + (shifts @ system.cell)[:, None]).reshape(-1, 3)
            vectors = vectors - centre
            r = np.linalg.norm(vectors, axis=1)
            order = np.argsort(r)[: (r <= d.e_rcut).sum()]
            order = order[r[order] > 0][: d.e_sel]
            rows = np.zeros((d.e_sel, 4))
            u = np.clip((r[order] - d.e_rcut_smth) / (d.e_rcut - d.e_rcut_smth), 0, 1)
            switch = 1 - 10 * u**3 + 15 * u**4 - 6 * u**5
            rows[: len(order), 0] = switch / r[order]
            rows[: len(order), 1:] = (switch / r[order] ** 2)[:, None] * vectors[order]
            slots[system.types[i]].append(rows)
    return slots


@pytest.mark.parametrize("options", [{}, {"use_exp_switch": True}, {"e_sel": 40, "a_sel": 20}])
def test_statistics_are_those_of_all_slots(options):
    config = descriptor_with(e_rcut=4.5, e_rcut_smth=3.5, **options)
    found = systems(config)
    stddev = descriptor_statistics(config, found)[f"{REPFLOWS}.stddev"]
    for kind, rows in environments(config, found).items():
        if rows:
            rows = np.array(rows).reshape(-1, 4)
            spread = rows[:, 0].std(), rows[:, 1:].std()
        else:
            spread = 0.1, 0.1
        np.testing.assert_allclose(stddev[kind], [spread[0], *3 * [spread[1]]], rtol=1e-10)


def test_spread_of_isolated_atoms_has_a_floor():
    one = System(np.array([8]), np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, bool))
    found = descriptor_statistics(CONFIG, [with_inputs(one, CONFIG)])
    np.testing.assert_array_equal(found[f"{REPFLOWS}.stddev"][:2, 0], [0.01, 0.1])
    assert not found[f"{REPFLOWS}.mean"].any()


def test_statistics_replace_what_is_missing():
    weights = initial_weights(CONFIG, 1, fix_stat_std=0.0)
    check_weights(CONFIG, weights | descriptor_statistics(CONFIG, systems(CONFIG)))


def test_selection_from_counts():
    """A cubic lattice: 6 neighbours at a, 12 at sqrt(2) a, 8 at sqrt(3) a."""
    cutoffs = {"e_rcut": 3.6, "e_rcut_smth": 3.0, "a_rcut": 3.0, "a_rcut_smth": 2.5}
    config = descriptor_with(**cutoffs, e_sel=2, a_sel=1)
    cubic = System(np.array([8]), np.zeros((1, 3)), 2.0 * np.eye(3), np.ones(3, bool))
    most = maximum_counts(config, [with_inputs(cubic, config)])
    assert most == {"e_sel": 26, "a_sel": 18}
    resolved = resolve_selection(config, {"e_sel": "auto", "a_sel": "auto:1.0"}, most).descriptor
    assert (resolved.e_sel, resolved.a_sel) == (28, 20)  # int(28.6) and 18, up to multiples of 4
    for text in ("auto:0.9", "automatic", "auto:", "auto:-2", "auto:nan"):
        with pytest.raises(InputError, match="a_sel = "):
            resolve_selection(config, {"a_sel": text}, most)
    with pytest.raises(InputError, match="no atom of the training data has a neighbour"):
        resolve_selection(config, {"a_sel": "auto"}, {"a_sel": 0})


# -- deepmd-kit itself -------------------------------------------------------------------------

NEW_MODEL = """
import json, sys
from deepmd.pt.model.model import get_model
from deepmd.utils.argcheck import normalize

settings = normalize(json.load(open(sys.argv[1])))
moments = {}
for name, tensor in get_model(settings["model"]).state_dict().items():
    values = tensor.detach().double()
    moments[name] = [list(values.shape), values.mean().item(), values.std(correction=0).item()]
json.dump(moments, open(sys.argv[2], "w"))
"""


@pytest.mark.slow
@pytest.mark.skipif(not PEER, reason="set DPA3SIM_DEEPMD_PYTHON to the Python of deepmd-kit 3.1.3")
def test_deepmd_starts_from_the_same_distributions(tmp_path):
    """Mean and standard deviation of every tensor agree within five standard errors."""
    settings = json.loads((DATA / "inputs/single.json").read_text())
    settings["model"]["descriptor"]["repflow"] |= {"n_dim": 64, "e_dim": 48, "a_dim": 32}
    settings["model"]["fitting_net"]["neuron"] = [96, 96]
    (tmp_path / "input.json").write_text(json.dumps(settings))
    command = [PEER, "-c", NEW_MODEL, "input.json", "moments.json"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    moments = json.loads((tmp_path / "moments.json").read_text())
    settings["model"].pop("_comment", None)
    config = read_config(settings["model"])
    weights = initial_weights(config, 1)
    for name in weight_shapes(config):
        values = weights[name]
        _, mean, spread = moments[f"atomic_model.{name}"]
        error = expected_moments(name, values.shape)[1] / np.sqrt(values.size)
        assert abs(values.mean() - mean) <= 5 * np.sqrt(2) * error + 1e-12, name
        assert abs(values.std() - spread) <= 5 * error + 1e-12, name


def test_embedded_models_have_such_shapes():
    """A model that deepmd-kit made has exactly the tensors that are drawn here."""
    model = read_model(DATA / "models/static_linear/model.pt")
    drawn = initial_weights(model.config, 1)
    assert {n: w.shape for n, w in drawn.items()} == {n: w.shape for n, w in model.weights.items()}
