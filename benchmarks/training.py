"""Training with dpa3sim against deepmd-kit 3.1.3: seconds a step, memory, and learning curves.

    python benchmarks/training.py --peer ~/deepmd-env/bin/python
    python benchmarks/training.py --peer ~/deepmd-env/bin/python --model small --curve 200

Both train the same model on the same frames of water with the same input file; each run is a
process of its own, and the two take turns. The data are deepmd-kit's ``examples/water/data``, in
the folder DPA3SIM_WATER or ``../shared/data/water``.

dpa3sim starts from deepmd-kit's first checkpoint, its energy bias included. Times are those of
batches of one frame. With ``--curve``, every batch has the same two frames, so that the batches of
both are the same in any order, and dpa3sim evaluates the models of both on other frames.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from peers import ROOT, machine, with_threads, write_report

WATER = Path(os.environ.get("DPA3SIM_WATER", ROOT.parent / "shared" / "data" / "water"))
TRAINING, VALIDATION = ("data_0", "data_1", "data_2"), ("data_3",)
LABELS = ("coord", "box", "energy", "force")
OURS, THEIRS = "dpa3sim", "deepmd-kit"
BATCH, HELD_OUT = 2, 16  # frames
SEED = 1
FIRST = "model.ckpt-0.pt"
_VERSION = re.compile(r"DeePMD version: +(\S+)")
_WALL_TIME = re.compile(r"total wall time = ([\d.]+) s")
# The recipe of deepmd-kit's examples/water/dpa3, and a model for quick learning curves.
MODELS: dict[str, dict[str, Any]] = {
    "recipe": {
        "repflow": {"n_dim": 128, "e_dim": 64, "a_dim": 32, "nlayers": 6}
        | {"e_rcut": 6.0, "e_rcut_smth": 5.3, "e_sel": 120}
        | {"a_rcut": 4.0, "a_rcut_smth": 3.5, "a_sel": 30},
        "neuron": [240, 240, 240],
        "start_lr": 1e-3,
    },
    "small": {
        "repflow": {"n_dim": 32, "e_dim": 16, "a_dim": 8, "nlayers": 3}
        | {"e_rcut": 4.5, "e_rcut_smth": 4.0, "e_sel": 60}
        | {"a_rcut": 3.5, "a_rcut_smth": 3.0, "a_sel": 30},
        "neuron": [48, 48, 48],
        "start_lr": 5e-3,
    },
}
REPFLOW = {
    "axis_neuron": 4,
    "fix_stat_std": 0.3,
    "a_compress_rate": 1,
    "a_compress_e_rate": 2,
    "a_compress_use_split": True,
    "update_angle": True,
    "smooth_edge_update": True,
    "edge_init_use_dist": True,
    "use_exp_switch": True,
    "update_style": "res_residual",
    "update_residual": 0.1,
    "update_residual_init": "const",
}


def training_input(
    model: str, system: str, batch: int, steps: int, save_every: int
) -> dict[str, Any]:
    """An input of deepmd-kit."""
    layers = {"activation_function": "silut:10.0", "precision": "float32", "seed": SEED}
    repflow, rate = MODELS[model]["repflow"] | REPFLOW, MODELS[model]["start_lr"]
    return {
        "model": {
            "type_map": ["O", "H"],
            "descriptor": {"type": "dpa3", "repflow": repflow} | layers,
            "fitting_net": {"neuron": MODELS[model]["neuron"], "resnet_dt": True} | layers,
        },
        "learning_rate": {"type": "exp", "start_lr": rate, "stop_lr": 0.03 * rate},
        "optimizer": {"type": "AdamW", "weight_decay": 0.001},
        "loss": {"type": "ener", "start_pref_e": 0.2, "limit_pref_e": 20}
        | {"start_pref_f": 100, "limit_pref_f": 60, "start_pref_v": 0.02, "limit_pref_v": 1},
        "training": {
            "training_data": {"systems": [system], "batch_size": batch},
            "numb_steps": steps,
            "gradient_max_norm": 5.0,
            "seed": SEED,
            "disp_freq": 1,
            "save_freq": save_every,
            "max_ckpt_keep": 100,
        },
    }


# -- the data ------------------------------------------------------------------------------------


def read_water(*names: str) -> dict[str, np.ndarray]:
    """The frames of some systems, one after the other."""
    folders = [WATER / name for name in names]
    if missing := [folder for folder in folders if not folder.is_dir()]:
        sys.exit(f"{missing[0]} does not exist; set DPA3SIM_WATER to deepmd-kit's water data")
    return {
        label: np.concatenate([np.load(x / "set.000" / f"{label}.npy") for x in folders])
        for label in LABELS
    }


def write_system(folder: Path, arrays: dict[str, np.ndarray], rows: np.ndarray) -> None:
    """Write some frames as a system of deepmd-kit."""
    (folder / "set.000").mkdir(parents=True)
    for label, array in arrays.items():
        np.save(folder / "set.000" / f"{label}.npy", array[rows])
    for name in ("type.raw", "type_map.raw"):
        (folder / name).write_text((WATER / TRAINING[0] / name).read_text())


def prepare(folder: Path, model: str, steps: int, every: int) -> None:
    """Write the frames and inputs of both sides.

    The input ``first.json`` has no steps and gives the first checkpoint.

    Args:
        folder: where to. model: one of :data:`MODELS`.
        steps: of the training.
        every: steps between validations; 0 for none, and for batches of one frame.
    """
    for name, systems, number in (("frames", TRAINING, BATCH), ("held_out", VALIDATION, HELD_OUT)):
        arrays = read_water(*systems)
        rows = np.linspace(0, len(arrays["energy"]) - 1, number).astype(int)
        write_system(folder / name, arrays, rows)
    for name, number in (("first", 0), (THEIRS, steps), (OURS, steps)):
        batch, save_every = (BATCH, every) if every else (1, steps)
        given = training_input(model, str(folder / "frames"), batch, number, save_every)
        if name == OURS and every:
            given["training"]["validation_data"] = {"systems": [str(folder / "held_out")]}
        (folder / f"{name}.json").write_text(json.dumps(given))


# -- the sides -----------------------------------------------------------------------------------


def train_ours(folder: Path, every: int) -> None:
    """Train from deepmd-kit's first checkpoint; print the times and errors of all steps."""
    import torch

    from dpa3sim.checkpoints import read_model
    from dpa3sim.kernels import libraries
    from dpa3sim.protocols.base import Event
    from dpa3sim.train.data.settings import DataSettings
    from dpa3sim.train.prepare import from_deepmd
    from dpa3sim.train.settings import SINGLE
    from dpa3sim.train.trainer import Trainer

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    ends: list[float] = []

    def follow(event: Event) -> None:
        if event.stage == "train":
            ends.append(time.perf_counter())

    given = {"device": "cpu"} | ({"validate_every": every} if every else {})
    recipe = from_deepmd(folder / f"{OURS}.json", DataSettings(outlier_sigma=0), given).recipe
    first = read_model(folder / FIRST)
    outcome = Trainer(replace(recipe, start={SINGLE: first.weights}), progress=follow).run()
    print(
        json.dumps(
            {
                "seconds": np.diff(ends).tolist(),
                "rows": outcome.rows,
                "gradient_error": outcome.gradient_error,
                "versions": f"torch {torch.__version__}, kernels {libraries.status().build}",
            }
        )
    )


@dataclass(frozen=True)
class Run:
    """What a training took.

    Attributes:
        seconds: of each step but the first. peak: largest resident memory, bytes.
        versions: what it ran with.
        errors: rmse of the forces of each step's batch before the step, eV/Å.
        held_out: rmse of the forces of held-out frames by step, of dpa3sim; empty for its peer.
    """

    seconds: list[float]
    peak: int
    versions: str
    errors: list[float]
    held_out: dict[int, float]


def run_process(arguments: list[str], folder: Path, threads: int) -> tuple[str, int]:
    """All that a process prints, and its largest resident memory in bytes; it must succeed."""
    text, peak, status = run_to_end(arguments, folder, threads)
    if status:
        sys.exit(f"{' '.join(arguments)} failed:\n{text[-3000:]}")
    return text, peak


def run_to_end(arguments: list[str], folder: Path, threads: int) -> tuple[str, int, int]:
    """The same, and its exit status, whatever that is."""
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            arguments, cwd=folder, env=with_threads(threads), stdout=file, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return log.read_text(), peak, os.waitstatus_to_exitcode(status)


def run_theirs(python: str, folder: Path, threads: int, name: str = THEIRS) -> Run:
    """Train with deepmd-kit, with the input of this name."""
    dp = str(Path(python).with_name("dp"))
    arguments = [dp, "--pt", "train", "--skip-neighbor-stat", f"{name}.json"]
    text, peak = run_process(arguments, folder, threads)
    curve = np.loadtxt(folder / "lcurve.out", ndmin=2) if name == THEIRS else np.empty((0, 4))
    return Run(
        seconds=[float(x) for x in _WALL_TIME.findall(text)][1:],
        peak=peak,
        versions=_VERSION.findall(text)[0],
        errors=curve[:, 3].tolist(),  # step, rmse, rmse_e, rmse_f, ...
        held_out={},
    )


def run_ours(folder: Path, threads: int, every: int = 0) -> Run:
    """Train with dpa3sim."""
    arguments = [sys.executable, __file__, "--worker", str(folder), str(every)]
    text, peak = run_process(arguments, folder, threads)
    found = json.loads(text.splitlines()[-1])
    rows, key = found["rows"], "validation_rmse_forces_eV_per_A"
    return Run(
        seconds=found["seconds"],
        peak=peak,
        versions=found["versions"],
        errors=[row["train_rmse_forces_eV_per_A"] for row in rows if row["step"]],
        held_out={int(row["step"]): row[key] for row in rows if row["step"] and key in row},
    )


# -- the comparisons -----------------------------------------------------------------------------


def compare_speed(args: argparse.Namespace, folder: Path) -> str:
    """A table of times and memory."""
    prepare(folder, args.model, args.steps, 0)
    run_theirs(args.peer, folder, args.threads, "first")
    rounds = []
    for _ in range(args.rounds):
        rounds.append((run_theirs(args.peer, folder, args.threads), run_ours(folder, args.threads)))
        print([run.seconds for run in rounds[-1]], file=sys.stderr, flush=True)
    theirs, ours = zip(*rounds, strict=True)
    ratios = [np.median(a.seconds) / np.median(b.seconds) for a, b in rounds]
    seconds = [
        float(np.median([s for run in side for s in run.seconds])) for side in (theirs, ours)
    ]
    peaks = [max(run.peak for run in side) / 2**20 for side in (theirs, ours)]
    return (
        f"{machine()}, {args.threads} threads; {OURS} with {ours[0].versions}, against "
        f"{THEIRS} {theirs[0].versions}; {args.rounds} rounds in turn of {args.steps} "
        "steps, the first of which is not counted.\n\n"
        f"| model {args.model}, water of 192 atoms | {THEIRS} | {OURS} | ratio |\n"
        "|---|---|---|---|\n"
        f"| seconds a step, median | {seconds[0]:.2f} | {seconds[1]:.2f} "
        f"| **{np.median(ratios):.1f}** ({min(ratios):.1f} to {max(ratios):.1f}) |\n"
        f"| peak memory, MiB | {peaks[0]:.0f} | {peaks[1]:.0f} | {peaks[0] / peaks[1]:.1f} |"
    )


def compare_curves(args: argparse.Namespace, folder: Path) -> str:
    """A table of errors of held-out forces as both learn."""
    every = max(1, args.curve // 4)
    prepare(folder, args.model, args.curve, every)
    run_theirs(args.peer, folder, args.threads, "first")
    start = held_out_error(folder, folder / FIRST)
    theirs = run_theirs(args.peer, folder, args.threads)
    ours = run_ours(folder, args.threads, every)
    lines = [
        f"| step, model {args.model} | {THEIRS}, rmse of forces eV/Å | {OURS} | difference |",
        "|---|---|---|---|",
        f"| 0 | {start:.5f} | the same | |",
    ]
    for step, mine in ours.held_out.items():
        other = held_out_error(folder, folder / f"model.ckpt-{step}.pt")
        lines.append(f"| {step} | {other:.5f} | {mine:.5f} | {100 * (mine / other - 1):+.2f} % |")
    same = np.abs(np.array(ours.errors) / theirs.errors - 1)
    lines.append(
        f"\nThe errors of forces that both report for the batch of each step, in three digits by "
        f"{THEIRS}, differ by at most {100 * same[:20].max():.2f} % in the first 20 steps and by "
        f"{100 * same.max():.2f} % in all."
    )
    return "\n".join(lines)


def held_out_error(folder: Path, model: Path, name: str = "held_out") -> float:
    """Root mean square error of the forces of the frames of this name, eV/Å."""
    from dpa3sim import Potential
    from dpa3sim.train.data.reading import read_frames
    from dpa3sim.train.data.settings import DataSettings

    frames, _ = read_frames([folder / name], DataSettings(outlier_sigma=0), ("O", "H"))
    found = Potential(model).evaluate([frame.system for frame in frames])
    forces = np.concatenate([x.forces for x in found])
    return float(np.sqrt(np.mean((forces - frames.forces) ** 2)))


def main() -> None:
    """Compare and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--peer", help="Python of an environment with deepmd-kit 3.1.3")
    parser.add_argument("--model", choices=MODELS, default="recipe")
    parser.add_argument("--steps", type=int, default=5, help="of each run, 2 at least")
    parser.add_argument("--rounds", type=int, default=2, help="how often they take turns")
    parser.add_argument(
        "--curve", type=int, default=0, help="compare the errors of so many steps, not the times"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="file whose marked part the table replaces")
    args = parser.parse_args()
    if args.worker:
        folder, every = args.worker
        train_ours(Path(folder), int(every))
        return
    if not args.peer:
        parser.error("--peer is needed: the Python of an environment with deepmd-kit")
    with tempfile.TemporaryDirectory() as scratch:
        compare = compare_curves if args.curve else compare_speed
        report = compare(args, Path(scratch))
    print(report)
    if args.output:
        write_report(args.output, f"training {'curve' if args.curve else 'speed'}", report)


if __name__ == "__main__":
    main()
