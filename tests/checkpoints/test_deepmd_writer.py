"""Checkpoints for deepmd-kit: what is in them, what is refused, and that deepmd-kit takes them.

The last part runs deepmd-kit 3.1.3 in an environment of its own, whose Python
``DPA3SIM_DEEPMD_PYTHON`` names.
"""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from tests_support import DATA, hydrogen_oxygen_structures

from dpa3sim import Potential
from dpa3sim.checkpoints import ModelFile, read_model, write_training
from dpa3sim.cli.main import main
from dpa3sim.common.errors import CheckpointError
from dpa3sim.model.initial import initial_weights
from dpa3sim.model.weights import REPFLOWS, weight_shapes

MULTITASK = DATA / "models/multitask/model.pt"
HEADS = ("H2O_H2O_PD", "Omat24")
EVERY_KIND = [
    "models/dynamic/model.pt",
    "models/static_linear/model.pt",
    *(
        f"variants/{name}/model.pt"
        for name in (
            "atom_ener default_fparam e_a econf_bias16 excl fit_skip fparam_aparam linear "
            "mixed_prec noangle res_incr stat_std tebd_bias_concat tebd_skip"
        ).split()
    ),
    "variants/chgspin_v313/frozen.pth",
]
PEER = os.environ.get("DPA3SIM_DEEPMD_PYTHON", "")
needs_deepmd = pytest.mark.skipif(
    not PEER, reason="set DPA3SIM_DEEPMD_PYTHON to the Python of deepmd-kit 3.1.3"
)


def new_model(config):
    """A model of this configuration with random weights."""
    return ModelFile(config, initial_weights(config, 1), "new", Path("new"), "native", "")


def changed(model, **options):
    """The model with options that change no shape of its weights."""
    config = model.config
    return replace(model, config=replace(config, descriptor=replace(config.descriptor, **options)))


def load(path):
    """The content of a file, as deepmd-kit reads it."""
    return torch.load(path, weights_only=True)


# -- the file ----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", EVERY_KIND)
def test_round_trip_keeps_options_and_bits(source, tmp_path):
    model = read_model(DATA / source)
    write_training(model, tmp_path / "m.pt")
    again = read_model(tmp_path / "m.pt")
    assert again.config == model.config
    for name, array in model.weights.items():
        assert again.weights[name].dtype == array.dtype
        np.testing.assert_array_equal(again.weights[name], array)


@pytest.mark.parametrize("name", ["dynamic", "static_linear"])
def test_entries_are_those_of_deepmd(name, tmp_path):
    source = DATA / f"models/{name}/model.pt"
    write_training(read_model(source), tmp_path / "m.pt")
    content, original = load(tmp_path / "m.pt"), load(source)["model"]
    assert list(content) == ["model", "optimizer"]
    assert content["optimizer"] == {}
    assert set(content["model"]) == set(original)
    for key, tensor in content["model"].items():
        if not key.endswith(("_extra_state", "min_nbor_dist", "out_std")):
            assert torch.equal(tensor, original[key]), key
            assert tensor.dtype == original[key].dtype
            assert tensor.is_contiguous()


def test_description_has_what_further_training_needs(tmp_path):
    write_training(read_model(DATA / "models/dynamic/model.pt"), tmp_path / "m.pt")
    section = load(tmp_path / "m.pt")["model"]["_extra_state"]["model_params"]
    repflow = section["descriptor"]["repflow"]
    assert repflow["fix_stat_std"] == 0.3
    assert repflow["update_residual_init"] == "const"
    assert section["descriptor"]["precision"] == "float64"
    assert section["descriptor"]["activation_function"] == "silut:3"
    assert section["fitting_net"]["activation_function"] == "silut:3"
    # Options of later versions make 3.1.3 fail.
    assert "sequential_update" not in repflow
    assert "default_chg_spin" not in section["descriptor"]


def test_fixed_and_measured_statistics(tmp_path):
    """A float32 model has fix_stat_std 0.3, not its nearest float32; one with statistics has 0."""
    for name, expected in (("mixed_prec", 0.3), ("stat_std", 0.0)):
        write_training(read_model(DATA / f"variants/{name}/model.pt"), tmp_path / "m.pt")
        section = load(tmp_path / "m.pt")["model"]["_extra_state"]["model_params"]
        assert section["descriptor"]["repflow"]["fix_stat_std"] == expected


def test_same_model_same_bytes(tmp_path):
    model = read_model(DATA / "models/dynamic/model.pt")
    for name in ("a.pt", "b.pt"):
        write_training(model, tmp_path / name)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_heads_share_what_is_equal(tmp_path):
    models = {head: read_model(MULTITASK, head) for head in HEADS}
    write_training(models, tmp_path / "m.pt")
    for head in HEADS:
        again = read_model(tmp_path / "m.pt", head)
        assert again.config == models[head].config
        assert again.heads == HEADS
        for name, array in models[head].weights.items():
            np.testing.assert_array_equal(again.weights[name], array)
    state = load(tmp_path / "m.pt")["model"]
    places = {
        name: {state[f"model.{head}.atomic_model.{name}"].data_ptr() for head in HEADS}
        for name in weight_shapes(models[HEADS[0]].config)
    }
    own = {name for name, found in places.items() if len(found) == 2}
    assert own == {"out_bias", "fitting_net.bias_atom_e", "fitting_net.case_embd"}


def test_info_stays_with_the_model(tmp_path):
    info = {"observed_type": ["H", "O"], "frames": 320, "text": "Wasser, 水", "nothing": None}
    write_training(read_model(DATA / "models/dynamic/model.pt"), tmp_path / "m.pt", info=info)
    assert load(tmp_path / "m.pt")["model"]["_extra_state"]["model_params"]["info"] == info
    assert read_model(tmp_path / "m.pt").config.ntypes == 2


# -- what is refused ---------------------------------------------------------------------------


def test_options_that_deepmd_lacks(tmp_path):
    static = read_model(DATA / "variants/truncated/model.pt")
    spin = read_model(DATA / "models/charge_spin/model.pt")
    for model, message in (
        (static.smoothed(0.3), "smooth_cutoff = 0.3 is an option of dpa3sim only"),
        (changed(static, sequential_update=True), "sequential_update = true needs"),
        (spin, r"default_chg_spin = \[1.0, 2.0\] needs deepmd-kit 3.2.0"),
        (changed(spin, default_chg_spin=None), "needs numb_fparam = 2, not 0"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            write_training(model, tmp_path / "m.pt")
        assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_heads_that_do_not_fit_together(tmp_path):
    model = read_model(DATA / "models/dynamic/model.pt")
    swapped = replace(model, config=replace(model.config, type_map=("H", "O")))
    fitting = replace(model.config.fitting, dim_case_embd=2)
    with_case = new_model(replace(model.config, fitting=fitting))
    for heads, message in (
        ({}, "at least one head"),
        ({"a.b": model}, "'a.b': deepmd-kit allows"),
        ({"a": model, "b": swapped}, "a, b have different type maps"),
        ({"a": model, "b": with_case}, "different values of dim_case_embd"),
    ):
        with pytest.raises(CheckpointError, match=message):
            write_training(heads, tmp_path / "m.pt")


def test_info_of_plain_values_only(tmp_path):
    model = read_model(DATA / "models/dynamic/model.pt")
    with pytest.raises(CheckpointError, match="contains a object"):
        write_training(model, tmp_path / "m.pt", info={"what": object()})


# -- the command -------------------------------------------------------------------------------


def test_convert_there_and_back(tmp_path, capsys):
    there, back = tmp_path / "omat.pt", tmp_path / "omat.safetensors"
    assert main(["convert", str(MULTITASK), str(there), "--head", "omat24"]) == 0
    assert "head Omat24" in capsys.readouterr().out
    assert main(["convert", str(there), str(back)]) == 0
    model, again = read_model(MULTITASK, "Omat24"), read_model(back)
    assert again.config == model.config
    for name, array in model.weights.items():
        np.testing.assert_array_equal(again.weights[name], array)
    info = load(there)["model"]["_extra_state"]["model_params"]["info"]
    assert info == {"name": "omat", "head": "Omat24", "source_sha256": model.sha256}


def test_convert_says_what_cannot_be_written(tmp_path, capsys):
    target = tmp_path / "m.pt"
    assert main(["convert", str(DATA / "models/charge_spin/model.pt"), str(target)]) == 2
    assert "m cannot be written for deepmd-kit: default_chg_spin" in capsys.readouterr().err
    assert not target.exists()


# -- deepmd-kit itself -------------------------------------------------------------------------

EVALUATE = """
import json, sys
import numpy as np
from ase import Atoms
from deepmd.calculator import DP
from deepmd.infer import DeepPot

answers = []
for path, head, structures in json.load(open(sys.argv[1])):
    model = DeepPot(path, head=head) if head else DeepPot(path)
    calculator = DP(path, head=head) if head else DP(path)
    for symbols, positions, cell in structures:
        types = [model.get_type_map().index(symbol) for symbol in symbols]
        box = None if cell is None else np.array(cell).reshape(1, 9)
        energy, forces, virial = model.eval(np.array(positions).reshape(1, -1), box, types)[:3]
        atoms = Atoms(symbols, positions, cell=cell, pbc=cell is not None, calculator=calculator)
        answers.append([
            float(energy[0, 0]), forces[0].tolist(), virial.reshape(3, 3).tolist(),
            atoms.get_potential_energy(), atoms.get_forces().tolist(),
        ])
json.dump(answers, open(sys.argv[2], "w"))
"""


def run(*arguments, folder):
    """Run a command beside the Python of deepmd-kit; return what it prints."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DP_INFER_BATCH_SIZE": "1024"}
    found = subprocess.run(
        [str(a) for a in arguments], cwd=folder, capture_output=True, text=True, env=environment
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout + found.stderr


def dp(*arguments, folder):
    """Run ``dp --pt``."""
    return run(Path(PEER).with_name("dp"), "--pt", *arguments, folder=folder)


def evaluate(requests, folder):
    """Results of deepmd-kit for [path, head, structures]: E, F, W, then E, F of its calculator."""
    described = [
        [p.name, head, [describe(atoms) for atoms in found]] for p, head, found in requests
    ]
    (folder / "request.json").write_text(json.dumps(described))
    run(PEER, "-c", EVALUATE, "request.json", "answer.json", folder=folder)
    return json.loads((folder / "answer.json").read_text())


def describe(atoms):
    cell = atoms.cell[:].tolist() if atoms.pbc.all() else None
    return list(atoms.symbols), atoms.positions.tolist(), cell


def structures():
    """Molecules and crystals; deepmd-kit knows no slabs, and fails with left-handed cells."""
    whole = [a for a in hydrogen_oxygen_structures() if a.pbc.all() or not a.pbc.any()]
    return [a for a in whole if not a.pbc.any() or np.linalg.det(a.cell[:]) > 0]


def assert_equal(answers, model):
    """The answers of deepmd-kit for :func:`structures` are ours."""
    ours = Potential(model, dtype="float64").evaluate(structures())
    for own, (energy, forces, virial, ase_energy, ase_forces) in zip(ours, answers, strict=True):
        assert abs(own.energy - energy) < 1e-11
        assert abs(own.energy - ase_energy) < 1e-11
        np.testing.assert_allclose(own.forces, forces, rtol=0, atol=1e-12)
        np.testing.assert_allclose(own.forces, ase_forces, rtol=0, atol=1e-12)
        np.testing.assert_allclose(own.virial, virial, rtol=0, atol=1e-11)


def with_bias(model, seed):
    """The model with an energy for each type, as after the fit to data."""
    bias = np.random.default_rng(seed).normal(-5, 2, model.weights["out_bias"].shape)
    return replace(model, weights={**model.weights, "out_bias": bias})


def models_to_check():
    """A smooth, a static and a new model, the last one in the style of the published recipe."""
    smooth = read_model(DATA / "models/dynamic/model.pt")
    static = read_model(DATA / "models/static_linear/model.pt")
    descriptor = replace(smooth.config.descriptor, use_dynamic_sel=False, e_sel=200, a_sel=100)
    fresh = new_model(replace(smooth.config, descriptor=descriptor))
    return {"smooth": smooth, "static": static, "fresh": with_bias(fresh, 1)}


@pytest.mark.slow
@needs_deepmd
def test_deepmd_computes_the_same(tmp_path):
    models = models_to_check()
    requests = []
    for name, model in models.items():
        write_training(model, tmp_path / f"{name}.pt")
        requests.append((tmp_path / f"{name}.pt", None, structures()))
    heads = {head: with_bias(read_model(MULTITASK, head), len(head)) for head in HEADS}
    write_training(heads, tmp_path / "heads.pt")
    requests += [(tmp_path / "heads.pt", head, structures()) for head in HEADS]
    answers = evaluate(requests, tmp_path)
    for k, model in enumerate([*models.values(), *heads.values()]):
        n = len(structures())
        assert_equal(answers[k * n : (k + 1) * n], model)


@pytest.mark.slow
@needs_deepmd
def test_deepmd_freezes(tmp_path):
    models = {head: read_model(MULTITASK, head) for head in HEADS}
    write_training(models, tmp_path / "heads.pt")
    write_training(models_to_check()["fresh"], tmp_path / "fresh.pt")
    dp("freeze", "-c", "fresh.pt", "-o", "fresh.pth", folder=tmp_path)
    dp("freeze", "-c", "heads.pt", "-o", "omat.pth", "--head", "Omat24", folder=tmp_path)
    requests = [(tmp_path / f"{name}.pth", None, structures()) for name in ("fresh", "omat")]
    answers = evaluate(requests, tmp_path)
    n = len(structures())
    assert_equal(answers[:n], models_to_check()["fresh"])
    assert_equal(answers[n:], models["Omat24"])
    # Our reader checks the frozen files against their own description.
    for name, model in (("fresh", models_to_check()["fresh"]), ("omat", models["Omat24"])):
        assert read_model(tmp_path / f"{name}.pth").config == model.config


def write_data(folder, model, n_frames=3):
    """Frames of water with the model's own energies and forces, in deepmd-kit's format."""
    cell = np.array([[6.2, 0, 0], [0.3, 6.0, 0], [-0.2, 0.4, 6.1]])
    rng = np.random.default_rng(4)
    frames = []
    for _ in range(n_frames):
        oxygen = np.array([[x, y, z] for x in (0, 3) for y in (0, 3) for z in (0, 3.0)])
        hydrogen = [oxygen + 0.96 * np.eye(3)[k] for k in (0, 1)]
        positions = np.concatenate([oxygen, *hydrogen]) + rng.normal(0, 0.08, (24, 3))
        frames.append(Atoms("O8H16", positions, cell=cell, pbc=True))
    found = Potential(model, dtype="float64").evaluate(frames)
    part = folder / "set.000"
    part.mkdir(parents=True)
    (folder / "type.raw").write_text("0\n" * 8 + "1\n" * 16)
    (folder / "type_map.raw").write_text("O\nH\n")
    np.save(part / "coord.npy", [a.positions.ravel() for a in frames])
    np.save(part / "box.npy", [a.cell[:].ravel() for a in frames])
    np.save(part / "energy.npy", [e.energy for e in found])
    np.save(part / "force.npy", [e.forces.ravel() for e in found])
    return frames


@pytest.mark.slow
@needs_deepmd
def test_deepmd_test_and_bias(tmp_path):
    """Labels that the model made itself are met, and a shift of them is found."""
    model = models_to_check()["fresh"]
    write_training(model, tmp_path / "m.pt", info={"name": "fresh"})
    write_data(tmp_path / "water", model)
    printed = dp("test", "-m", "m.pt", "-s", "water", "-n", 3, folder=tmp_path)
    errors = [
        float(s.split(":")[-1].split()[0]) for s in printed.splitlines() if "Force  RMSE" in s
    ]
    assert errors
    assert max(errors) < 1e-12
    assert "['O', 'H']" in dp("show", "m.pt", "type-map", folder=tmp_path)

    energies = np.load(tmp_path / "water/set.000/energy.npy")
    np.save(tmp_path / "water/set.000/energy.npy", energies + 2.4)
    dp("change-bias", "m.pt", "-s", "water", "-o", "shifted.pt", folder=tmp_path)
    shifted = read_model(tmp_path / "shifted.pt")
    change = (shifted.weights["out_bias"] - model.weights["out_bias"])[0, :, 0]
    assert 8 * change[0] + 16 * change[1] == pytest.approx(2.4, abs=1e-8)


@pytest.mark.slow
@needs_deepmd
@pytest.mark.parametrize("option", ["--finetune", "--init-model"])
def test_deepmd_trains_from_the_file(option, tmp_path):
    """Two steps with a tiny rate: the weights are those of the file, but not exactly."""
    model = models_to_check()["fresh"]
    write_training(model, tmp_path / "m.pt")
    write_data(tmp_path / "water", model)
    settings = train_settings(tmp_path / "m.pt")
    (tmp_path / "input.json").write_text(json.dumps(settings))
    script = ["--use-pretrain-script", "--skip-neighbor-stat"]
    dp("train", "input.json", option, "m.pt", *script, folder=tmp_path)
    trained = read_model(tmp_path / "model.ckpt-2.pt")
    changes = []
    for name, array in model.weights.items():
        np.testing.assert_allclose(trained.weights[name], array, rtol=0, atol=1e-6)
        changes.append(np.abs(trained.weights[name] - array).max())
    assert 0 < max(changes) < 1e-6
    assert trained.config == model.config


@pytest.mark.slow
@needs_deepmd
def test_deepmd_fine_tunes_a_head(tmp_path):
    models = {head: read_model(MULTITASK, head) for head in HEADS}
    write_training(models, tmp_path / "heads.pt")
    write_data(tmp_path / "water", models["Omat24"])
    (tmp_path / "input.json").write_text(json.dumps(train_settings(tmp_path / "heads.pt")))
    options = ["--finetune", "heads.pt", "--model-branch", "Omat24", "--use-pretrain-script"]
    dp("train", "input.json", *options, "--skip-neighbor-stat", folder=tmp_path)
    trained = read_model(tmp_path / "model.ckpt-2.pt")
    for name in ("fitting_net.case_embd", f"{REPFLOWS}.edge_embd.matrix"):
        expected = models["Omat24"].weights[name]
        np.testing.assert_allclose(trained.weights[name], expected, rtol=0, atol=1e-6)


def train_settings(path):
    """A training input for two steps; descriptor and fitting net are taken from the file."""
    params = load(path)["model"]["_extra_state"]["model_params"]
    section = next(iter(params.get("model_dict", {"": params}).values()))
    return {
        "model": {"type_map": section["type_map"], "descriptor": {}, "fitting_net": {}},
        "learning_rate": {"type": "exp", "start_lr": 1e-7, "stop_lr": 1e-8, "decay_steps": 10},
        "loss": {"type": "ener"},
        "training": {
            "training_data": {"systems": ["water"], "batch_size": 1},
            "numb_steps": 2,
            "seed": 1,
            "disp_freq": 1,
        },
    }
