"""Training inputs of deepmd-kit: what they mean here, what is ignored, and what is refused."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tests_support import DATA

from dpa3sim.checkpoints import read_model
from dpa3sim.common.errors import InputError
from dpa3sim.model.config import Activation
from dpa3sim.model.initial import case_vector
from dpa3sim.train.deepmd_input import read_deepmd_input

PEER = os.environ.get("DPA3SIM_DEEPMD_PYTHON", "")
INPUTS = DATA / "inputs"
# Training options of single.json, which has only what is required.
DEFAULTS = (
    {"steps": 2, "epochs": None, "seed": 7, "model_prob": None, "preset_out_bias": None}
    | {"optimizer": "adam", "betas": [0.9, 0.999], "weight_decay": 0.0}
    | {"schedule": "exp", "learning_rate": 1e-3, "stop_learning_rate": 1e-5}
    | {"decay_steps": 5000, "decay_rate": None, "smooth": False}
    | {"decay_phase_ratio": 0.1, "decay_type": "inverse_linear"}
    | {"warmup_steps": 0, "warmup_start_factor": 0.0}
    | {"gradient_max_norm": None, "ema_decay": None}
    | {"loss": "mse", "huber_delta": 0.01, "relative_f": None}
    | {"force_norm": False, "intensive": False}
    | {"start_pref_e": 0.02, "limit_pref_e": 1.0, "start_pref_f": 1000.0, "limit_pref_f": 1.0}
    | {"start_pref_v": 0.0, "limit_pref_v": 0.0, "start_pref_ae": 0.0, "limit_pref_ae": 0.0}
    | {"batch_size": "auto:32"}
    | {"report_every": 1000, "save_every": 1000}
)


def make_system(folder):
    """An empty system, which is enough to be found."""
    folder.mkdir(parents=True)
    (folder / "type.raw").write_text("0\n1\n1\n")
    return folder


@pytest.fixture
def folder(tmp_path):
    make_system(tmp_path / "water")
    return tmp_path


def read(folder, name="single", **changes):
    """Read an input with some values replaced; dotted paths with __ for the dots."""
    values = json.loads((INPUTS / f"{name}.json").read_text())
    for path, value in changes.items():
        *sections, last = path.split("__")
        section = values
        for part in sections:
            section = section.setdefault(part, {})
        if value is ...:
            del section[last]
        else:
            section[last] = value
    (folder / "input.json").write_text(json.dumps(values))
    return read_deepmd_input(folder / "input.json")


def refused(folder, match, name="single", **changes):
    """The input is refused in one line that names the file and matches."""
    with pytest.raises(InputError, match=match) as caught:
        read(folder, name, **changes)
    text = str(caught.value)
    assert text.startswith(f"{folder / 'input.json'}: ")
    assert "\n" not in text
    return text


# -- what an input means -----------------------------------------------------------------------


def test_defaults_are_those_of_deepmd(folder):
    found = read(folder)
    model = found.models["Default"]
    assert list(found.models) == ["Default"]
    assert model.type_map == ("O", "H")
    descriptor, fitting = model.descriptor, model.fitting
    assert (descriptor.axis_neuron, descriptor.a_compress_rate) == (4, 0)
    assert descriptor.update_style == "res_residual"
    assert descriptor.activation == Activation("silu")
    assert descriptor.precision == fitting.precision == "float64"
    assert fitting.activation == Activation("tanh")
    assert fitting.resnet_dt
    assert found.training == DEFAULTS
    assert found.initial == {
        "update_residual": 0.1,
        "update_residual_init": "const",
        "fix_stat_std": 0.3,
    }
    assert found.data["Default"].training.systems == (str(folder / "water"),)
    assert found.data["Default"].validation is None
    assert (found.overrides, found.selection, found.frozen) == ({"Default": {}}, {}, ())
    assert found.ignored == ()


def test_default_widths(folder):
    """What the sections have where the input says nothing about widths."""
    path = "model__descriptor__repflow__"
    widths = {path + name: ... for name in ("n_dim", "e_dim", "a_dim", "nlayers")}
    model = read(folder, **widths, model__fitting_net={}).models["Default"]
    descriptor = model.descriptor
    assert (descriptor.n_dim, descriptor.e_dim, descriptor.a_dim) == (128, 64, 64)
    assert descriptor.nlayers == 6
    assert model.fitting.neuron == (120, 120, 120)


def test_recipe(folder):
    found = read(folder, "recipe")
    model, training = found.models["Default"], found.training
    assert model.descriptor.edge_init_use_dist
    assert model.descriptor.activation == Activation("silut", 10.0)
    assert model.descriptor.precision == model.fitting.precision == "float32"
    assert model.fitting.neuron == (48, 48)
    assert found.selection == {"e_sel": "auto:1.2", "a_sel": "auto"}
    assert found.initial["update_residual_init"] == "norm"
    assert (training["optimizer"], training["weight_decay"]) == ("adamw", 0.002)
    assert (training["schedule"], training["steps"]) == ("cosine", 1000)
    assert training["stop_learning_rate"] == pytest.approx(3e-5)
    assert (training["warmup_steps"], training["warmup_start_factor"]) == (50, 0.1)
    assert (training["loss"], training["huber_delta"]) == ("huber", 0.02)
    assert training["gradient_max_norm"] == 5.0
    assert training["preset_out_bias"] == [None, -13.6]
    data = found.data["Default"]
    assert (data.training.batch_size, data.training.auto_prob) == ("auto:128", "prob_uniform")
    assert data.validation.batch_size == 1
    assert [line.split(":")[0] for line in found.ignored] == [
        "training.stat_file",
        "training.disp_file",
        "training.validation_data.numb_btch",
    ]


def test_two_heads(folder):
    found = read(folder, "two_heads")
    assert list(found.models) == ["pbe", "SCAN"]
    assert found.models["pbe"] == found.models["SCAN"]
    assert found.models["pbe"].fitting.dim_case_embd == 2
    assert found.training["model_prob"] == {"pbe": 0.75, "SCAN": 0.25}
    assert found.training["start_pref_f"] == 1000.0
    assert found.overrides["pbe"] == {}
    assert found.overrides["SCAN"] == {
        "start_pref_f": 100.0,
        "limit_pref_f": 60.0,
        "batch_size": "max:48",
    }
    assert found.data["SCAN"].training.batch_size == "max:48"


def test_heads_with_their_own_fitting_nets(folder):
    changes = {
        f"model__model_dict__{head}__fitting_net": {"neuron": [8]} for head in ("pbe", "SCAN")
    }
    found = read(
        folder, "two_heads", **changes, model__shared_dict__fit=..., training__model_prob=...
    )
    assert found.models["pbe"].fitting.neuron == (8,)
    # One system each: the default probabilities count systems.
    assert found.training["model_prob"] == {"pbe": 0.5, "SCAN": 0.5}


def test_head_to_start_from(folder):
    found = read(folder, "two_heads", model__model_dict__pbe__finetune_head="Omat24")
    assert found.finetune_heads == {"pbe": "Omat24"}


def test_epochs(folder):
    found = read(folder, training__numb_steps=..., training__num_epochs=2.5)
    assert (found.training["steps"], found.training["epochs"]) == (None, 2.5)
    epochs = {"pbe": 2, "SCAN": 1}
    found = read(
        folder,
        "two_heads",
        training__numb_steps=...,
        training__model_prob=...,
        training__num_epoch_dict=epochs,
    )
    assert (found.training["epochs"], found.training["model_prob"]) == (epochs, None)


def test_options_of_other_versions(folder):
    """Optimizer options where 3.1.2 had them; the schedule, averages and loss of later versions."""
    found = read(folder, training__opt_type="AdamW", training__weight_decay=0.01)
    assert (found.training["optimizer"], found.training["weight_decay"]) == ("adamw", 0.01)
    rate = {"type": "wsd", "start_lr": 1e-3, "stop_lr_ratio": 0.1, "decay_type": "cosine"}
    found = read(folder, learning_rate=rate, training__enable_ema=True, loss__loss_func="mae")
    assert (found.training["schedule"], found.training["decay_type"]) == ("wsd", "cosine")
    assert (found.training["ema_decay"], found.training["loss"]) == (0.999, "mae")


def test_rate_without_a_stop(folder):
    """3.1.3 completes it with 5e-8, as out.json shows."""
    found = read(folder, learning_rate__stop_lr=...)
    assert found.training["stop_learning_rate"] == 5e-8
    assert read(folder, learning_rate__stop_lr=0).training["stop_learning_rate"] == 0.0


def test_muon(folder):
    optimizer = {"type": "HybridMuon", "muon_momentum": 0.95, "flash_muon": False}
    found = read(folder, optimizer=optimizer)
    assert (found.training["optimizer"], found.training["betas"]) == ("muon", [0.9, 0.95])
    assert found.ignored[0].startswith("optimizer.flash_muon: ")


def test_frozen_parts_and_old_statistics(folder):
    found = read(folder, model__descriptor__trainable=False)
    assert found.frozen == ("descriptor",)
    found = read(folder, model__fitting_net__trainable=[False, False, False])
    assert found.frozen == ("fitting_net",)
    changes = {"fix_stat_std": 0.0, "skip_stat": True}
    repflow = {f"model__descriptor__repflow__{name}": v for name, v in changes.items()}
    assert read(folder, **repflow).initial["fix_stat_std"] == 0.3


def test_comments_are_dropped_everywhere(folder):
    found = read(
        folder,
        training___why="because",
        model__descriptor__repflow___note=1,
        loss___x={},
        model__fitting_net___y=[],
    )
    assert found == read(folder)


def test_ignored_options_are_listed(folder):
    found = read(folder, model__info={"who": "me"}, training__tensorboard=True)
    assert found.ignored == (
        "model.info: is free text",
        "training.tensorboard: does not affect results",
    )


def test_yaml(folder):
    import yaml

    values = json.loads((INPUTS / "two_heads.json").read_text())
    (folder / "input.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    assert read_deepmd_input(folder / "input.yaml") == read(folder, "two_heads")


# -- systems -----------------------------------------------------------------------------------


def test_folders_are_searched(folder):
    for name in ("b/x", "a/y", "a/z/deep"):
        make_system(folder / "many" / name)
    found = read(folder, training__training_data__systems=["many", "water"])
    systems = [
        Path(s).relative_to(folder).as_posix() for s in found.data["Default"].training.systems
    ]
    assert systems == ["many/a/y", "many/a/z/deep", "many/b/x", "water"]
    data = {"systems": "many", "rglob_patterns": ["z*/*"]}
    found = read(folder, training__training_data=data)
    assert found.data["Default"].training.systems == (str(folder / "many/a/z/deep"),)


def test_paths_are_relative_to_the_input_or_to_here(folder, monkeypatch):
    here = folder / "here"
    make_system(here / "water")
    make_system(here / "only")
    (here / "data.h5").write_bytes(b"")
    monkeypatch.chdir(here)
    found = read(folder, training__training_data__systems=["water", "only", "data.h5#/group"])
    systems = found.data["Default"].training.systems
    assert systems == (str(folder / "water"), "only", "data.h5#/group")


def test_numbers_for_each_system(folder):
    make_system(folder / "ice")
    data = {"systems": ["water", "ice"], "batch_size": [1, 4], "sys_weights": [0.3, -1]}
    found = read(folder, training__training_data=data)
    assert found.data["Default"].training.batch_size == (1, 4)
    assert found.data["Default"].training.sys_probs == (0.3, -1.0)
    assert found.training["batch_size"] == [1, 4]
    for name, value in (("batch_size", [1]), ("sys_probs", [1, "x"]), ("batch_size", [0, 1])):
        values = {"systems": ["water", "ice"], name: value}
        refused(
            folder, f"training_data.{name} = .* each of 2 systems", training__training_data=values
        )


# -- what is refused ---------------------------------------------------------------------------

PREFIX = "training__training_data__"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {"type": "LKF"}}, 'optimizer.type = "LKF" is not supported'),
        ({"optimizer": {"type": "HybridMuon", "momentum": 0.9}}, "optimizer.momentum = 0.9"),
        ({"optimizer": {"type": "Adam"}, "training__opt_type": "AdamW"}, "exclude each other"),
        ({"loss__start_pref_h": 1.0}, "loss.start_pref_h = 1.0 is not supported"),
        ({"loss__enable_atom_ener_coeff": True}, "loss.enable_atom_ener_coeff = true"),
        ({"loss__limit_pref_v": 1}, "loss.start_pref_v = 0 beside limit_pref_v > 0"),
        ({"loss__limit_pref_f": 0}, "loss.limit_pref_f = 0 beside start_pref_f > 0"),
        ({"loss__start_pref_e": -1}, "loss.start_pref_e = -1 must be at least 0"),
        ({"loss__use_huber": True, "loss__relative_f": 1.0}, "loss.relative_f = 1.0 needs"),
        ({"loss__type": "dos"}, 'loss.type = "dos" is not supported, only ener'),
        ({"loss": ...}, "loss is missing"),
        ({"model__descriptor__type": "se_e2_a"}, 'model.descriptor.type = "se_e2_a"'),
        ({"model__descriptor__repflow__n_dmi": 8}, "model: unknown option repflow.n_dmi"),
        ({"model__descriptor__repflow__e_sel": "auto:x"}, "repflow.e_sel = 'auto:x'"),
        ({"model__descriptor__repflow__e_rcut": ...}, "e_rcut"),
        ({"model__descriptor__precision": "bfloat16"}, "precision 'bfloat16' is not supported"),
        ({"model__fitting_net__type": "dos"}, "only energy models"),
        ({"model__fitting_net__rcond": 0.1}, "model.fitting_net.rcond = 0.1 is not supported"),
        ({"model__fitting_net__trainable": [True, False]}, "all layers or none"),
        ({"model__type_map": ...}, "model.type_map is missing"),
        ({"model__use_srtab": "table"}, "model.use_srtab = 'table'"),
        ({"model__preset_out_bias": {"energy": [1.0]}}, "with 2 numbers or null"),
        ({"learning_rate__type": "step"}, 'learning_rate.type = "step" is not supported'),
        ({"learning_rate__stop_lr_ratio": 0.1}, "stop_lr and stop_lr_ratio exclude each other"),
        ({"learning_rate__decay_step": 10}, "learning_rate.decay_step = 10; did you mean 'decay_s"),
        ({"learning_rate": ...}, "learning_rate is missing"),
        ({"training__numb_steps": 1.5}, "training.numb_steps = 1.5 must be a whole number"),
        ({"training__numb_steps": ...}, "one of training.numb_steps and training.numb_epoch"),
        ({"training__numb_epoch": 1}, "one of training.numb_steps and training.numb_epoch"),
        ({"training__stop_batch": 3}, "training.numb_steps and training.stop_batch are the same"),
        ({"training__seeed": 3}, "unknown option training.seeed = 3; did you mean 'seed'"),
        ({"training__seed": "one"}, 'training.seed = "one" must be a whole number'),
        ({"learning_rate__decay_steps": 0}, "learning_rate.decay_steps = 0 must be above 0"),
        ({"training__disp_freq": "1"}, 'training.disp_freq = "1" must be a number'),
        ({"training__mixed_precision": {"compute_prec": "float16"}}, "training.mixed_precision"),
        ({"training__change_bias_after_training": True}, "change_bias_after_training = true is"),
        ({PREFIX + "systems": "nowhere"}, 'systems = "nowhere" does not exist'),
        ({PREFIX + "batch_size": "mixed:4"}, 'batch_size = "mixed:4" is not supported'),
        ({PREFIX + "auto_prob": "prob_size"}, 'training_data.auto_prob = "prob_size"'),
        ({PREFIX + "systems": []}, r"systems = \[\] must be a path"),
        ({"nvnmd": {}}, "unknown option nvnmd"),
        ({"training": 3}, "training = 3 must be a section"),
    ],
)
def test_what_cannot_be_honoured(changes, message, folder):
    refused(folder, message, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__model_dict__pbe__descriptor": "dpa3:1"}, "shared at level 0 only"),
        ({"model__model_dict__pbe__descriptor": "dpa"}, "not in model.shared_dict; did you mean"),
        ({"model__shared_dict__fit__dim_case_embd": 1}, "dim_case_embd = 1 is too small for 2"),
        ({"model__shared_dict__fit__dim_case_embd": 0}, "dim_case_embd = 0 is too small for 2"),
        ({"model__model_dict__pbe__fitting_net": {"dim_case_embd": 2}}, "all heads or none must"),
        ({"model__shared_dict__spare": {}}, "model.shared_dict.spare is not used"),
        ({"training__model_prob": {"pbe": 1}}, "training.model_prob.SCAN is missing"),
        ({"training__model_prob": {"pbe": 1, "SCAN": 1, "x": 1}}, "training.model_prob.x"),
        ({"training__model_prob": {"pbe": 0, "SCAN": 0}}, "a number above 0"),
        ({"loss_dict__SCAN": ...}, "loss_dict.SCAN is missing"),
        ({"training__training_data": {}}, "unknown option training.training_data"),
    ],
)
def test_heads_that_cannot_be_honoured(changes, message, folder):
    refused(folder, message, "two_heads", **changes)


def test_heads_need_one_descriptor(folder):
    own = json.loads((INPUTS / "two_heads.json").read_text())["model"]["shared_dict"]["dpa3"]
    changes = {"model__model_dict__pbe__descriptor": own}
    refused(folder, "the heads pbe, SCAN must share one descriptor", "two_heads", **changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"model": NaN}', "NaN is not a number of JSON"),
        ('{"model": {}, "model": {}}', "'model' occurs twice"),
        ("[" * 5000, "not valid JSON"),
        ("[1]", "must be a section"),
        ('{"model": {"descriptor": {}}}', "model.fitting_net is missing"),
    ],
)
def test_files_that_are_no_input(text, message, folder):
    path = folder / "bad.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_deepmd_input(path)
    assert "\n" not in str(caught.value)


def test_missing_file(folder):
    with pytest.raises(InputError, match="cannot be read"):
        read_deepmd_input(folder / "none.json")


# -- deepmd-kit itself -------------------------------------------------------------------------

NORMALIZE = """
import json, sys
from deepmd.utils.argcheck import normalize
json.dump([normalize(values) for values in json.load(sys.stdin)], sys.stdout)
"""
needs_deepmd = pytest.mark.skipif(
    not PEER, reason="set DPA3SIM_DEEPMD_PYTHON to the Python of deepmd-kit 3.1.3"
)


@pytest.mark.slow
@needs_deepmd
def test_deepmd_completes_them_alike(folder):
    """An input with all of deepmd-kit's defaults written out means the same as without them."""
    names = ("single", "recipe")
    values = json.dumps([json.loads((INPUTS / f"{name}.json").read_text()) for name in names])
    command = [PEER, "-c", NORMALIZE]
    found = subprocess.run(command, input=values, capture_output=True, text=True, check=True)
    for name, complete in zip(names, json.loads(found.stdout), strict=True):
        expected = read(folder, name)
        (folder / "complete.json").write_text(json.dumps(complete))
        whole = read_deepmd_input(folder / "complete.json")
        for part in ("models", "training", "overrides", "data", "initial", "selection", "frozen"):
            assert getattr(whole, part) == getattr(expected, part), (name, part)


@pytest.mark.slow
@needs_deepmd
def test_deepmd_trains_the_same_models(tmp_path):
    """Two heads: the options and the case vectors of deepmd-kit's own checkpoint are ours."""
    folder = make_system(tmp_path / "water")
    (folder / "type_map.raw").write_text("O\nH\n")
    (folder / "set.000").mkdir()
    water = [0, 0, 0, 0.96, 0, 0, -0.24, 0.93, 0]
    arrays = {"coord": water, "box": (8 * np.eye(3)).ravel(), "energy": -3.0, "force": np.zeros(9)}
    for name, values in arrays.items():
        np.save(folder / f"set.000/{name}.npy", np.array([values]))
    shutil.copy(INPUTS / "two_heads.json", tmp_path)
    command = [Path(PEER).with_name("dp"), "--pt", "train", "two_heads.json"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    found = read_deepmd_input(tmp_path / "two_heads.json")
    for head, config in found.models.items():
        model = read_model(tmp_path / "model.ckpt-2.pt", head)
        assert model.config == config
        expected = case_vector(list(found.models), head, 2)
        np.testing.assert_array_equal(model.weights["fitting_net.case_embd"], expected)
