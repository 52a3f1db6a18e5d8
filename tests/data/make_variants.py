"""How the checkpoints in ``variants/`` were made: random DPA3 models of every option.

Runs under deepmd-kit (3.2.0; ``chgspin_v313`` with 3.1.3), not under dpa3sim:

    python make_variants.py [NAME ...]

The two files of ``ema`` are from ``dp --pt train`` with ``"enable_ema": true``, four steps.
"""

import copy
import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from deepmd.infer import DeepPot
from deepmd.pt.model.model import get_model
from deepmd.pt.train.wrapper import ModelWrapper
from deepmd.utils.argcheck import normalize

HERE = Path(__file__).parent
REPFLOW = {
    "n_dim": 12,
    "e_dim": 10,
    "a_dim": 8,
    "nlayers": 2,
    "e_rcut": 6.0,
    "e_rcut_smth": 5.3,
    "e_sel": 160,
    "a_rcut": 4.0,
    "a_rcut_smth": 3.5,
    "a_sel": 60,
    "axis_neuron": 3,
    "fix_stat_std": 0.3,
}
DESCRIPTOR = {
    "type": "dpa3",
    "activation_function": "silut:3.0",
    "precision": "float64",
    "seed": 1,
}
FITTING = {
    "neuron": [20, 20],
    "activation_function": "silut:3.0",
    "precision": "float64",
    "seed": 1,
}
DYNAMIC = {
    "smooth_edge_update": True,
    "use_dynamic_sel": True,
    "e_sel": 1200,
    "a_sel": 300,
    "use_exp_switch": True,
    "edge_init_use_dist": True,
}
SPLIT = {"a_compress_rate": 1, "a_compress_e_rate": 2, "a_compress_use_split": True}

# name: changes of (repflow, descriptor, fitting net, model)
VARIANTS = {
    "linear": (
        {"a_compress_rate": 2, "a_compress_e_rate": 2, "smooth_edge_update": True},
        {},
        {},
        {},
    ),
    "res_avg": ({"update_style": "res_avg"}, {}, {}, {}),
    "res_incr": ({"update_style": "res_incr", "n_multi_edge_message": 2}, {}, {}, {}),
    "noangle": ({"update_angle": False, "n_multi_edge_message": 3}, {}, {}, {}),
    "sequential": ({"sequential_update": True, **DYNAMIC}, {}, {}, {}),
    "sequential_static": (
        {"sequential_update": True, "n_multi_edge_message": 2, **SPLIT},
        {},
        {},
        {},
    ),
    "truncated": ({"e_sel": 40, "a_sel": 12}, {}, {}, {}),
    "excl": ({}, {"exclude_types": [[0, 0]]}, {}, {"atom_exclude_types": [1]}),
    "tebd_bias_concat": (
        {},
        {"use_tebd_bias": True, "concat_output_tebd": True, "env_protection": 0.01},
        {},
        {},
    ),
    "tebd_skip": ({"n_dim": 2, "axis_neuron": 2}, {}, {}, {}),
    "econf_bias16": ({"n_dim": 16}, {"use_econf_tebd": True, "use_tebd_bias": True}, {}, {}),
    "fparam_aparam": ({}, {}, {"numb_fparam": 2, "numb_aparam": 1, "dim_case_embd": 3}, {}),
    "default_fparam": ({}, {}, {"numb_fparam": 2, "default_fparam": [0.3, -1.0]}, {}),
    "aparam_mask": ({}, {}, {"numb_aparam": 1, "use_aparam_as_mask": True}, {}),
    "fit_skip": ({}, {}, {"neuron": [12, 24, 24], "resnet_dt": False}, {}),
    "fit_dt": ({}, {}, {"neuron": [12, 24, 48, 10], "activation_function": "tanh"}, {}),
    "atom_ener": ({}, {}, {"atom_ener": [-1.5, None]}, {}),
    "chgspin_bias": (
        {"n_dim": 100},
        {"add_chg_spin_ebd": True, "use_tebd_bias": True, "default_chg_spin": [1.0, 2.0]},
        {},
        {},
    ),
    "chgspin_v313": ({}, {"add_chg_spin_ebd": True}, {"numb_fparam": 2}, {}),
    "stat_std": ({"fix_stat_std": 0.0}, {}, {}, {}),
    "mixed_prec": ({}, {"precision": "float32"}, {"precision": "float64"}, {}),
    "e_a": (
        {
            "a_compress_rate": 4,
            "a_compress_e_rate": 3,
            "a_dim": 16,
            "use_exp_switch": True,
            "update_style": "res_avg",
            "n_multi_edge_message": 2,
            "axis_neuron": 1,
        },
        {"env_protection": 0.1},
        {"neuron": []},
        {},
    ),
    **{
        f"act_{name}": ({}, {"activation_function": name}, {"activation_function": name}, {})
        for name in ("gelu", "softplus", "relu6")
    },
}


def make_checkpoint(name: str, path: Path) -> None:
    """Write a training checkpoint with random weights, biases and statistics."""
    repflow, descriptor, fitting, model = VARIANTS[name]
    config = {
        "type_map": ["O", "H"],
        "descriptor": {**DESCRIPTOR, **descriptor, "repflow": {**REPFLOW, **repflow}},
        "fitting_net": {**FITTING, **fitting},
        **model,
    }
    training = {"training_data": {"systems": ["data"]}, "numb_steps": 1}
    rate = {"type": "exp", "start_lr": 1e-3, "stop_lr": 1e-5, "decay_steps": 5}
    whole = {"model": config, "learning_rate": rate, "loss": {"type": "ener"}, "training": training}
    params = normalize(whole)["model"]
    torch.manual_seed(zlib.crc32(name.encode()))
    wrapper = ModelWrapper(get_model(copy.deepcopy(params)), model_params=params)
    state = wrapper.state_dict()
    for key, tensor in state.items():
        if not torch.is_tensor(tensor) or not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, dtype=torch.float64).to(tensor.dtype)
        if key.endswith(("out_bias", "bias_atom_e")):
            tensor.copy_(noise)
        elif key.endswith(".bias") or "residual" in key:
            tensor.add_(0.2 * noise)
        elif key.endswith("param_avg"):
            tensor.copy_(0.1 * noise)
        elif key.endswith("param_inv_std"):
            tensor.copy_(1.0 + noise.abs())
        elif key.endswith("case_embd"):
            tensor.zero_()
            tensor[1] = 1
        elif key.endswith("repflows.stddev") and name == "stat_std":
            per_type = torch.tensor([0.4, 0.6], dtype=tensor.dtype)[:, None, None]
            tensor.copy_(per_type.expand(tensor.shape))
            tensor[..., 1:] *= 0.5
    wrapper.load_state_dict(state)
    torch.save({"model": wrapper.state_dict()}, path)


def reference(name: str, path: Path) -> list[dict]:
    """Energies, forces and virials of a dimer and a periodic water box."""
    _, descriptor, fitting, _ = VARIANTS[name]
    water = json.loads((HERE / "models/dynamic/reference.json").read_text())["cases"]
    model = DeepPot(path, no_jit=True)
    cases = []
    for case in water:
        if case["system"] not in ("dimer", "water8_triclinic"):
            continue
        atoms = Atoms(case["symbols"], case["positions"], cell=case["cell"], pbc=case["pbc"])
        info, inputs = {}, {}
        if fitting.get("numb_aparam"):
            info["aparam"] = np.random.default_rng(1).normal(size=(len(atoms), 1)).tolist()
            inputs["aparam"] = np.array([info["aparam"]])
        if fitting.get("numb_fparam") and "default_fparam" not in fitting:
            info["fparam"] = [2.0, 3.0] if name == "chgspin_v313" else [0.7, -0.4]
            inputs["fparam"] = np.array([info["fparam"]])
        charge_spins = [None]
        if "default_chg_spin" in descriptor:
            charge_spins = [None, [2.0, 3.0]]
        for charge_spin in charge_spins:
            if charge_spin:
                inputs["charge_spin"] = np.array([charge_spin])
            types = [["O", "H"].index(s) for s in atoms.symbols]
            cell = atoms.cell[:].reshape(1, 9) if atoms.pbc.any() else None
            energy, forces, virial = model.eval(
                atoms.positions.reshape(1, -1), cell, types, **inputs
            )
            cases.append(
                {k: case[k] for k in ("system", "symbols", "positions", "cell", "pbc")}
                | {
                    "info": info,
                    "charge_spin": charge_spin,
                    "energy": float(energy[0, 0]),
                    "forces": forces[0].tolist(),
                    "virial": virial.reshape(3, 3).tolist(),
                }
            )
    return cases


def main() -> None:
    """Make all variants, or those named on the command line."""
    for name in sys.argv[1:] or VARIANTS:
        folder = HERE / "variants" / name
        folder.mkdir(parents=True, exist_ok=True)
        make_checkpoint(name, folder / "model.pt")
        cases = reference(name, folder / "model.pt")
        (folder / "reference.json").write_text(json.dumps({"name": name, "cases": cases}))
        # TorchScript cannot compile every option; those variants have no frozen file.
        frozen = ["--pt", "freeze", "-c", "model.pt", "-o", "frozen.pth"]
        subprocess.run([Path(sys.executable).with_name("dp"), *frozen], cwd=folder, check=False)


if __name__ == "__main__":
    main()
