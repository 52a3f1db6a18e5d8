"""Reading checkpoints: round trips, and everything that must be refused, by one clear line."""

import contextlib
import json
import os
import pickle
import pickletools
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests_support import DATA

from dpa3sim import Potential, load_model
from dpa3sim.checkpoints import read_model, write_native
from dpa3sim.checkpoints.archive import Archive
from dpa3sim.cli.main import main
from dpa3sim.common.errors import CheckpointError, Dpa3simWarning
from dpa3sim.model.config import Activation, ModelConfig

TRAINING = DATA / "models/dynamic/model.pt"
FROZEN = DATA / "models/dynamic/frozen.pth"
MULTITASK = DATA / "models/multitask/model.pt"


def rewrite(source, target, change):
    """Copy a zip archive with the member data changed by ``change(name, data)``."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            data = change(info.filename, old.read(info))
            if data is not None:
                new.writestr(info, data)
    return target


def edit_state(target, edit):
    """Copy the training checkpoint with its content changed by ``edit(content)``."""
    content = torch.load(TRAINING, weights_only=True)
    edit(content)
    torch.save(content, target)
    return target


def refused(path, capsys, match=None):
    """The file raises CheckpointError, and the command line says so in one line, exit code 2."""
    with pytest.raises(CheckpointError, match=match):
        read_model(path)
    assert main(["model", "info", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert "Traceback" not in printed.err
    return printed.err


# -- what can be read --------------------------------------------------------------------------


def test_reader_agrees_with_torch():
    tensors = torch.load(TRAINING, weights_only=True)["model"]
    ours = Archive(TRAINING).tree["model"]
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor):
            np.testing.assert_array_equal(ours[name], tensor.numpy())


def test_reader_understands_every_storage_type(tmp_path):
    kinds = ["float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64"]
    content = {k: torch.arange(6).to(getattr(torch, k)).reshape(2, 3).T for k in kinds}
    content |= {"uint8": torch.arange(3, dtype=torch.uint8), "bool": torch.tensor([True, False])}
    content |= {"empty": torch.empty(0, 3), "scalar": torch.tensor(2.5)}
    content |= {"shared": content["float32"][1:], "device": torch.device("cpu"), "none": None}
    torch.save(content, tmp_path / "x.pt")
    ours = Archive(tmp_path / "x.pt").tree
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            np.testing.assert_array_equal(ours[name], value.to(torch.float64).numpy())


@pytest.mark.parametrize("source", [TRAINING, FROZEN])
def test_native_round_trip_keeps_every_bit(source, tmp_path):
    model = read_model(source)
    path = tmp_path / "model.safetensors"
    write_native(replace(model, name="mine"), path)
    again = read_model(path)
    assert again.config == model.config
    assert again.name == "mine"
    assert again.origin == {
        "file": source.name,
        "sha256": model.sha256,
        "format": model.source_format,
    }
    for name, array in model.weights.items():
        assert again.weights[name].dtype == array.dtype
        np.testing.assert_array_equal(again.weights[name], array)


def test_converting_again_keeps_the_origin(tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_native(read_model(TRAINING), first)
    write_native(read_model(first), second)
    assert read_model(second).origin == read_model(first).origin


def test_content_not_name_tells_the_format(tmp_path):
    for source, kind in ((TRAINING, "training"), (FROZEN, "torchscript")):
        disguised = tmp_path / "model.dat"
        disguised.write_bytes(source.read_bytes())
        assert read_model(disguised).source_format == kind


def test_heads_are_found_in_any_case_and_required(capsys):
    assert read_model(MULTITASK, "omat24").head == "Omat24"
    with pytest.raises(CheckpointError, match="choose one of: H2O_H2O_PD, Omat24"):
        read_model(MULTITASK)
    with pytest.raises(CheckpointError, match="no head 'Omat'"):
        read_model(MULTITASK, "Omat")
    with pytest.raises(CheckpointError, match="single-task"):
        read_model(TRAINING, "Omat24")
    assert main(["model", "info", str(MULTITASK)]) == 0
    out = capsys.readouterr().out
    assert "H2O_H2O_PD" in out
    assert "--head selects another" in out


def test_head_aliases(tmp_path):
    def edit(content):
        heads = content["model"]["_extra_state"]["model_params"]["model_dict"]
        heads["Omat24"]["model_branch_alias"] = ["Default", "OMat"]

    content = torch.load(MULTITASK, weights_only=True)
    edit(content)
    torch.save(content, tmp_path / "m.pt")
    assert read_model(tmp_path / "m.pt", "omat").head == "Omat24"


def test_head_of_a_frozen_model_is_taken_on_trust():
    with pytest.warns(Dpa3simWarning, match="cannot be verified"):
        assert load_model(FROZEN, "Omat24").head == "Omat24"


def test_bare_state_dict(tmp_path):
    content = torch.load(TRAINING, weights_only=True)
    torch.save(content["model"], tmp_path / "bare.pt")
    assert read_model(tmp_path / "bare.pt").config == read_model(TRAINING).config


# -- malicious files ---------------------------------------------------------------------------


class Harmful:
    """Creates a file when unpickled by something careless."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class HarmfulEval(Harmful):
    def __reduce__(self):
        return eval, (f"open({str(self.path)!r}, 'w').close()",)


class HarmfulBuiltin(Harmful):
    def __reduce__(self):
        return __import__, ("antigravity",)


@pytest.mark.parametrize("kind", [Harmful, HarmfulEval, HarmfulBuiltin])
def test_malicious_training_checkpoint_is_refused_and_does_nothing(kind, tmp_path, capsys):
    mark = tmp_path / "created"
    path = tmp_path / "bad.pt"
    edit_state(path, lambda content: content.update(payload=kind(mark)))
    assert "refused" in refused(path, capsys)
    assert not mark.exists()


@pytest.mark.parametrize("member", ["/data.pkl", "/constants.pkl"])
def test_malicious_frozen_model_is_refused_and_does_nothing(member, tmp_path, capsys):
    mark = tmp_path / "created"

    def inject(name, data):
        if name.endswith(member):
            payload = pickle.dumps(Harmful(mark), protocol=2)
            # The payload runs first; its result is dropped and the model follows.
            return payload[:-1] + pickle.POP + data[2:]
        return data

    path = rewrite(FROZEN, tmp_path / "bad.pth", inject)
    assert "refused" in refused(path, capsys)
    assert not mark.exists()
    # The payload is real: a careless reader runs it.
    with zipfile.ZipFile(path) as file:
        stream = next(file.read(n) for n in file.namelist() if n.endswith(member))
    with contextlib.suppress(ModuleNotFoundError):  # it stops at __torch__, too late
        pickle.loads(stream)
    assert mark.exists()


def test_malicious_bare_pickle_is_refused(tmp_path, capsys):
    mark = tmp_path / "created"
    path = tmp_path / "bad.pt"
    path.write_bytes(pickle.dumps(Harmful(mark)))
    refused(path, capsys, "bare pickle")
    assert not mark.exists()


@pytest.mark.parametrize(
    "stream",
    [
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__code__K\x01sb.",  # BUILD
        b"\x80\x02c__torch__\nA\n)\x81c__torch__\nB\nR.",  # REDUCE of an object
        b"\x80\x02(iposix\nsystem\n.",  # INST
        b"\x80\x02]" + pickle.LONG_BINPUT + struct.pack("<I", 2**31) + b".",  # memo bomb
        b"\x80\x02X" + struct.pack("<I", 2**31 - 1) + b"a.",  # text longer than the file
        b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",  # nesting
        b"\x80\x02K\x01.",  # no dictionary
        b"\x80\x02}N" + b"2\x86" * 60 + b"Ns.",  # a key that takes years to hash
        b"\x80\x02}(N" + b"2\x86" * 60 + b"Nu.",
        b"\x80\x02ccollections\nOrderedDict\n](N" + b"2\x86" * 60 + b"NeR.",
        b"\x80\x02(N" + b"2\x86" * 60 + b"\x91.",  # the same in a set
        b"\x80\x02N" + b"2\x86" * 60 + b"Q.",  # a reference that is as long to write
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",  # room for a terabyte
        b"",
    ],
)
def test_forged_pickles_are_refused(stream, tmp_path, capsys):
    path = rewrite(
        TRAINING, tmp_path / "bad.pt", lambda n, d: stream if n.endswith("data.pkl") else d
    )
    refused(path, capsys)


def test_model_with_a_data_modifier_is_refused(tmp_path, capsys):
    path = rewrite(FROZEN, tmp_path / "bad.pth", lambda n, d: b"x" if "data_modifier" in n else d)
    refused(path, capsys, "data_modifier")


# -- damaged files -----------------------------------------------------------------------------


@pytest.mark.parametrize("source", [TRAINING, FROZEN])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99, 0.9999])
def test_truncated(source, share, tmp_path, capsys):
    path = tmp_path / source.name
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused(path, capsys)


@pytest.mark.parametrize("source", [TRAINING, FROZEN])
def test_no_flipped_bit_changes_a_model(source, tmp_path):
    """Damage anywhere is refused, or lies where it means nothing (padding between members)."""
    data = source.read_bytes()
    original = read_model(source)
    rng = np.random.default_rng(0)
    refusals = 0
    for position in rng.integers(0, len(data), 60):
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        path = tmp_path / source.name
        path.write_bytes(damaged)
        try:
            model = read_model(path)
        except CheckpointError:
            refusals += 1
            continue
        assert model.config == original.config
        for name, array in original.weights.items():
            np.testing.assert_array_equal(model.weights[name], array)
    assert refusals > 40


def test_flipped_bit_in_a_native_file(tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    write_native(read_model(TRAINING), path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    refused(path, capsys, "does not match its checksum")
    path.write_bytes(data[: len(data) // 2])
    refused(path, capsys, "damaged")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"hello, this is text", "not a model file"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "HDF5"),
        (b"PK\x05\x06" + b"\0" * 18, "not a model file"),
        (struct.pack("<Q", 50) + b'{"a": 1}', "damaged, or not a safetensors"),
    ],
)
def test_other_files(content, message, tmp_path, capsys):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    refused(path, capsys, message)


def test_missing_file_and_folder(tmp_path, capsys):
    refused(tmp_path, capsys, "folder")
    with pytest.raises(CheckpointError, match="no such file"):
        read_model(tmp_path / "nothing.pt")
    assert main(["model", "info", str(tmp_path / "nothing.pt")]) == 2
    assert "no such model file" in capsys.readouterr().err


KEY = "model.Default.atomic_model.descriptor.repflows.layers.1.edge_self_linear.matrix"


def test_missing_tensor(tmp_path, capsys):
    path = edit_state(tmp_path / "bad.pt", lambda c: c["model"].pop(KEY))
    assert "edge_self_linear.matrix" in refused(path, capsys, "missing")


def test_unknown_tensor(tmp_path, capsys):
    path = edit_state(tmp_path / "bad.pt", lambda c: c["model"].update({KEY + "2": torch.zeros(3)}))
    refused(path, capsys, "unknown tensor")


def test_misshaped_tensor(tmp_path, capsys):
    path = edit_state(tmp_path / "bad.pt", lambda c: c["model"].update({KEY: torch.zeros(44, 11)}))
    refused(path, capsys, r"shape \(44, 11\), the configuration needs \(44, 12\)")


def test_nan_and_integer_weights(tmp_path, capsys):
    path = tmp_path / "bad.pt"
    edit_state(path, lambda c: c["model"][KEY].__setitem__((0, 0), float("nan")))
    refused(path, capsys, "NaN")
    edit_state(path, lambda c: c["model"].update({KEY: torch.zeros(44, 12, dtype=torch.int64)}))
    refused(path, capsys, "not a floating type")


def test_expanded_tensor_is_refused(tmp_path, capsys):
    """A zero-stride tensor of 8 bytes could claim terabytes."""
    path = edit_state(
        tmp_path / "bad.pt", lambda c: c["model"].update({KEY: torch.zeros(1).expand(10**9)})
    )
    refused(path, capsys, "beyond")


def test_storage_smaller_than_its_tensor(tmp_path, capsys):
    def shorten(name, data):
        return data[:-8] if name.endswith("/data/20") else data

    refused(rewrite(TRAINING, tmp_path / "bad.pt", shorten), capsys, "elements")


def test_missing_storage(tmp_path, capsys):
    path = rewrite(
        TRAINING, tmp_path / "bad.pt", lambda n, d: None if n.endswith("/data/20") else d
    )
    refused(path, capsys, "missing")


# -- descriptions ------------------------------------------------------------------------------


def doubled(times):
    """A few lists that are, written out, larger than any memory."""
    tree = [1]
    for _ in range(times):
        tree = [tree, tree]
    return tree


def _parameters(content):
    return content["model"]["_extra_state"]["model_params"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: p["descriptor"]["repflow"].update(novel=1), "unknown option repflow.novel"),
        (lambda p: p["descriptor"].update(novel=1), "unknown option descriptor.novel"),
        (lambda p: p["fitting_net"].update(novel=1), "unknown option fitting_net.novel"),
        (lambda p: p.update(novel=1), "unknown option model.novel"),
        (lambda p: p["descriptor"].update(type="dpa2"), "DPA3 models only"),
        (lambda p: p["fitting_net"].update(type="dipole"), "energy models"),
        (lambda p: p.update(type="linear_ener"), "'linear_ener' are not supported"),
        (lambda p: p.update(use_srtab="table"), "use_srtab"),
        (lambda p: p["descriptor"]["repflow"].update(pre_ln=True), "pre_ln"),
        (lambda p: p["descriptor"]["repflow"].update(e_rcut="six"), "e_rcut"),
        (lambda p: p["descriptor"]["repflow"].update(a_rcut=7.0), "a_rcut"),
        (lambda p: p["descriptor"]["repflow"].update(nlayers=2), "unknown tensor"),
        (lambda p: p["descriptor"]["repflow"].update(n_dim=-1), "n_dim"),
        (lambda p: p["descriptor"]["repflow"].update(update_style="other"), "update_style"),
        (lambda p: p["descriptor"].update(activation_function="swish"), "unknown activation"),
        (lambda p: p["descriptor"].update(precision="bfloat16"), "bfloat16"),
        (lambda p: p.update(type_map=["O", "O"]), "type_map"),
        (lambda p: p.update(type_map=[]), "type_map"),
        (lambda p: p.update(pair_exclude_types=[[0, 9]]), "excluded types"),
        (lambda p: p.pop("descriptor"), "no section 'descriptor'"),
        # What would take any time or memory, or end in an infinite sphere of neighbours.
        (lambda p: p["descriptor"]["repflow"].update(nlayers=10**12), "nlayers"),
        (lambda p: p["descriptor"]["repflow"].update(n_multi_edge_message=10**9), "n_multi_edge"),
        (lambda p: p["descriptor"]["repflow"].update(e_rcut=float("inf")), "e_rcut"),
        (lambda p: p["descriptor"]["repflow"].update(e_rcut=1e6), "e_rcut"),
        (lambda p: p["descriptor"]["repflow"].update(e_rcut_smth=float("nan")), "e_rcut_smth"),
        (lambda p: p["descriptor"].update(activation_function="silut:nan"), "bad threshold"),
        (lambda p: p["fitting_net"].update(neuron=doubled(60)), "larger than that of any model"),
        (lambda p: p.update(info=10**400), "more than 64 bits"),
        (lambda p: p.update(info=torch.zeros(2**21)), "larger than that of any model"),
        (lambda p: p.update({1: 2}), "contains a dict"),
    ],
)
def test_descriptions_that_are_refused(edit, message, tmp_path, capsys):
    path = edit_state(tmp_path / "bad.pt", lambda c: edit(_parameters(c)))
    refused(path, capsys, message)


def test_pre_release_options_are_accepted_at_their_neutral_value(tmp_path):
    path = edit_state(
        tmp_path / "old.pt",
        lambda c: _parameters(c)["descriptor"]["repflow"].update(pre_ln=False, a_mess_has_n=True),
    )
    assert read_model(path).config == read_model(TRAINING).config


def _edit_description(edit):
    def change(name, data):
        if not name.endswith("/data.pkl"):
            return data
        texts = [
            (argument, position)
            for opcode, argument, position in pickletools.genops(data)
            if opcode.name == "BINUNICODE" and argument.startswith('{"type_map"')
        ]
        (text, position) = texts[0]
        description = json.loads(text)
        edit(description)
        new, old = json.dumps(description).encode(), text.encode()
        start = position + 5
        assert data[start : start + len(old)] == old
        return data[: position + 1] + struct.pack("<I", len(new)) + new + data[start + len(old) :]

    return change


def test_frozen_objects_complete_an_old_description(tmp_path):
    """Descriptions of pre-releases lack newer options; the objects have them."""

    def forget(description):
        for name in ("smooth_edge_update", "use_exp_switch", "sel_reduce_factor"):
            del description["descriptor"]["repflow"][name]

    path = rewrite(FROZEN, tmp_path / "old.pth", _edit_description(forget))
    assert read_model(path).config == read_model(FROZEN).config


def test_frozen_objects_must_not_contradict_the_description(tmp_path, capsys):
    def lie(description):
        description["descriptor"]["repflow"]["use_exp_switch"] = False

    path = rewrite(FROZEN, tmp_path / "bad.pth", _edit_description(lie))
    refused(path, capsys, "use_exp_switch is False in the description but True")


def test_configuration_round_trip():
    for path in (TRAINING, DATA / "models/charge_spin/model.pt", DATA / "variants/excl/model.pt"):
        config = read_model(path).config
        through_json = json.loads(json.dumps(config.to_dict()))
        assert ModelConfig.from_dict(through_json) == config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("silut:10", Activation("silut", 10.0)),
        ("custom_silu:3.0", Activation("silut", 3.0)),
        ("SiLUT", Activation("silut", 3.0)),
        ("none", Activation("linear")),
        ("tanh", Activation("tanh")),
    ],
)
def test_activation_names(text, expected):
    assert Activation.parse(text) == expected
    assert Activation.parse(str(expected)) == expected


def test_last_layer_updates_do_not_reach_the_energy(tmp_path, water):
    """Edge and angle weights of a last parallel layer: docs/model.md#what-reaches-the-energy."""
    model = read_model(DATA / "variants/linear/model.pt")
    rng = np.random.default_rng(0)
    names = ("edge_self", "edge_angle", "angle_self", "e_residual", "a_residual", "a_compress")
    weights = {
        k: v + rng.normal(size=v.shape) if ".layers.1." in k and any(n in k for n in names) else v
        for k, v in model.weights.items()
    }
    a = Potential(model).evaluate([water])[0]
    b = Potential(replace(model, weights=weights)).evaluate([water])[0]
    assert a.energy == b.energy
