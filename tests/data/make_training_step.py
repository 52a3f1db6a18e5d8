"""How the folder ``training_step/`` was made: one training step of deepmd-kit, float64.

Runs under deepmd-kit 3.1.3, not under dpa3sim:

    python make_training_step.py

The folder holds the frame (``water/``), the input (``input.json``), the checkpoint before the step
(``before.pt``), and ``step.npz``: the predictions for the frame before the step, ``weight/NAME``
after it and ``moment/NAME``, AdamW's mean of gradients after it, which is 1 - beta1 = 0.1 of the
shortened gradient. Weights that no energy can reach have no moment.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from deepmd.infer import DeepPot
from deepmd.pt.model.model import get_model
from deepmd.pt.train.wrapper import ModelWrapper

HERE = Path(__file__).parent
TARGET = HERE / "training_step"
TYPES = ["O", "H"]
PREFIX = "model.Default.atomic_model."
INPUT = {
    "model": {
        "type_map": TYPES,
        "descriptor": {
            "type": "dpa3",
            "repflow": {
                "n_dim": 8,
                "e_dim": 6,
                "a_dim": 4,
                "nlayers": 3,
                "e_rcut": 4.0,
                "e_rcut_smth": 3.5,
                "e_sel": 60,
                "a_rcut": 3.0,
                "a_rcut_smth": 2.5,
                "a_sel": 30,
                "axis_neuron": 2,
                "a_compress_rate": 1,
                "a_compress_e_rate": 2,
                "a_compress_use_split": True,
                "update_angle": True,
                "update_style": "res_residual",
                "update_residual": 0.1,
                "update_residual_init": "const",
                "smooth_edge_update": True,
                "edge_init_use_dist": True,
                "use_exp_switch": True,
                "fix_stat_std": 0.3,
            },
            "activation_function": "silut:3.0",
            "precision": "float64",
            "seed": 1,
        },
        "fitting_net": {
            "neuron": [10, 10],
            "activation_function": "silut:3.0",
            "precision": "float64",
            "seed": 1,
        },
    },
    "learning_rate": {"type": "exp", "start_lr": 1e-3, "stop_lr": 3e-5, "decay_steps": 5000},
    "optimizer": {"type": "AdamW", "weight_decay": 0.001},
    "loss": {
        "type": "ener",
        "start_pref_e": 0.2,
        "limit_pref_e": 20,
        "start_pref_f": 100,
        "limit_pref_f": 60,
        "start_pref_v": 0.02,
        "limit_pref_v": 1,
    },
    "training": {
        "training_data": {"systems": ["water"], "batch_size": 1},
        "numb_steps": 1,
        "gradient_max_norm": 5.0,
        "seed": 1,
        "disp_freq": 1,
        "save_freq": 1,
    },
}


def write_frame(folder: Path) -> dict[str, np.ndarray]:
    """Write a small box of water in deepmd-kit's format, and return its arrays."""
    cases = json.loads((HERE / "models/dynamic/reference.json").read_text())["cases"]
    case = next(c for c in cases if c["system"] == "water8_triclinic")
    virial = np.reshape(case["virial"], (3, 3))
    arrays = {
        "coord": np.reshape(case["positions"], (1, -1)),
        "box": np.reshape(case["cell"], (1, 9)),
        "energy": np.array([case["energy"]]),
        # Forces of another untrained model are small beside those of real data.
        "force": 30 * np.reshape(case["forces"], (1, -1)),
        "virial": 30 * (virial + virial.T).reshape(1, 9) / 2,
    }
    (folder / "set.000").mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / "set.000" / f"{name}.npy", array)
    types = [TYPES.index(symbol) for symbol in case["symbols"]]
    (folder / "type.raw").write_text("".join(f"{t}\n" for t in types))
    (folder / "type_map.raw").write_text("\n".join(TYPES) + "\n")
    return arrays | {"type": np.array(types)}


def train(steps: int, folder: Path) -> Path:
    """The checkpoint after so many steps; the same seeds give the same first weights."""
    folder.mkdir()
    given = json.loads(json.dumps(INPUT))
    given["training"]["numb_steps"] = steps
    given["training"]["training_data"]["systems"] = [str(TARGET / "water")]
    (folder / "input.json").write_text(json.dumps(given))
    command = [Path(sys.executable).with_name("dp"), "--pt", "train", "--skip-neighbor-stat"]
    subprocess.run([*command, "input.json"], cwd=folder, check=True)
    return folder / f"model.ckpt-{steps}.pt"


def predictions(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Energy (eV), forces (eV/Å) and virial (eV) of the frame."""
    model = DeepPot(str(path), no_jit=True)
    energy, forces, virial = model.eval(arrays["coord"], arrays["box"], arrays["type"])
    return {
        "energy": energy.reshape(()),
        "forces": forces.reshape(-1, 3),
        "virial": virial.reshape(3, 3),
    }


def main() -> None:
    """Train, and store what tests need."""
    TARGET.mkdir(exist_ok=True)
    arrays = write_frame(TARGET / "water")
    (TARGET / "input.json").write_text(json.dumps(INPUT, indent=1) + "\n")
    with tempfile.TemporaryDirectory() as scratch:
        start, end = train(0, Path(scratch) / "before"), train(1, Path(scratch) / "after")
        before = torch.load(start, weights_only=True)
        after = torch.load(end, weights_only=True)
        found = predictions(start, arrays)
        curve = np.atleast_2d(np.loadtxt(end.parent / "lcurve.out"))
    torch.save({"model": before["model"]}, TARGET / "before.pt")
    params = before["model"]["_extra_state"]["model_params"]
    parameters = [n for n, _ in ModelWrapper(get_model(params)).named_parameters()]
    moments = after["optimizer"]["state"]
    step = found | {"rmse": curve[0, 1]}
    for index, name in enumerate(parameters):
        short = name.removeprefix(PREFIX)
        step[f"weight/{short}"] = after["model"][name].numpy()
        if index in moments:
            step[f"moment/{short}"] = moments[index]["exp_avg"].numpy()
    np.savez_compressed(TARGET / "step.npz", **step)


if __name__ == "__main__":
    main()
