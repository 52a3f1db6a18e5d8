"""Fine-tuning the embedded model with dpa3sim and with deepmd-kit 3.1.3: error against time.

    python benchmarks/finetuning.py
    python benchmarks/finetuning.py --peer ~/deepmd-env/bin/python

Both start from the same weights, which dpa3sim writes as a checkpoint of deepmd-kit, and train all
of them on the same frames of water with the same learning rate, which falls as a cosine in their
steps. dpa3sim evaluates the models of both on frames of another trajectory. The data are
deepmd-kit's ``examples/water/data``, in the folder DPA3SIM_WATER or ``../shared/data/water``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peers import machine, write_report
from training import (
    HELD_OUT,
    OURS,
    SEED,
    THEIRS,
    TRAINING,
    VALIDATION,
    held_out_error,
    read_water,
    run_process,
    run_to_end,
    write_system,
)

PRETRAINED = "pretrained.pt"


@dataclass(frozen=True)
class Run:
    """A training.

    Attributes:
        minutes, errors: by step: time since the start of the process, and the error of forces of
            held-out frames, eV/Å.
        peak: largest resident memory, bytes. end: how it ended, if it failed.
    """

    minutes: dict[int, float]
    errors: dict[int, float]
    peak: int
    end: str = ""


def prepare(folder: Path, frames: int) -> None:
    """Write the frames for both, and the model for deepmd-kit."""
    from dpa3sim.checkpoints.deepmd_writer import write_training
    from dpa3sim.checkpoints.registry import load_model

    for name, systems, number in (
        ("frames", TRAINING, frames),
        ("held_out", VALIDATION, HELD_OUT),
        ("all_held_out", VALIDATION, 0),
    ):
        arrays = read_water(*systems)
        every = len(arrays["energy"])
        rows = np.linspace(0, every - 1, number or every).astype(int)
        write_system(folder / name, arrays, rows)
    write_training(load_model(None), folder / PRETRAINED)


# -- the sides -----------------------------------------------------------------------------------


def run_ours(folder: Path, args: argparse.Namespace) -> Run:
    """Fine-tune with dpa3sim."""
    words = [sys.executable, __file__, "--worker", str(folder)]
    words += ["--steps", str(args.steps), "--learning-rate", str(args.learning_rate)]
    start = time.time()
    text, peak = run_process(words, folder, args.threads)
    found = json.loads(text.splitlines()[-1])
    errors = {int(step): x for step, x in found["errors"].items()}
    minutes = {step: (found["ends"][str(step)] - start) / 60 for step in errors}
    return Run(minutes, errors, peak)


def fine_tune(folder: Path, steps: int, learning_rate: float) -> None:
    """In a process of its own: train, and print the errors and when the steps ended."""
    import torch

    from dpa3sim.checkpoints import ModelFile, write_native
    from dpa3sim.protocols.base import Event
    from dpa3sim.train.data.settings import DataSettings
    from dpa3sim.train.finetune import from_model
    from dpa3sim.train.options import FinetuneOptions
    from dpa3sim.train.recording import MemoryRecorder
    from dpa3sim.train.settings import (
        SINGLE,
        FinetuneLossSettings,
        FinetuneScheduleSettings,
        FinetuneSettings,
        FinetuneTrainSettings,
        SourceSettings,
    )
    from dpa3sim.train.trainer import Trainer

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    ends = {0: time.time()}

    def follow(event: Event) -> None:
        if event.stage == "train":
            ends[event.done] = time.time()

    options = FinetuneOptions(
        sources=SourceSettings(str(folder / "frames"), str(folder / "held_out")),
        data=DataSettings(outlier_sigma=0),
        finetune=FinetuneSettings(checks=False),
        train=FinetuneTrainSettings(
            steps=steps, batch_size="1", validate_every=max(1, steps // 4), device="cpu", seed=SEED
        ),
        schedule=FinetuneScheduleSettings(learning_rate=learning_rate),
        loss=FinetuneLossSettings(start_pref_v=0, limit_pref_v=0),
    )
    recipe = from_model(options).recipe
    recorder = MemoryRecorder()
    outcome = Trainer(recipe, recorder, progress=follow).run()
    key = "validation_rmse_forces_eV_per_A"
    errors = {int(row["step"]): row[key] for row in outcome.rows if key in row}
    best = recorder.found["best"][SINGLE]
    write_native(
        ModelFile(recipe.config, best, OURS, folder / OURS, "native", ""),
        folder / f"{OURS}.safetensors",
    )
    print(json.dumps({"errors": errors, "ends": {x: ends[x] for x in errors}}))


def run_theirs(folder: Path, args: argparse.Namespace) -> Run:
    """Fine-tune with deepmd-kit, as long as it gets."""
    from dpa3sim.checkpoints.registry import load_model

    steps = args.their_steps or args.steps
    every = max(1, steps // 4)
    given: dict[str, Any] = {
        "model": {
            "type_map": load_model(None).config.type_map,
            "descriptor": {},
            "fitting_net": {},
        },
        "learning_rate": {"type": "cosine", "start_lr": args.learning_rate, "stop_lr": 2e-6},
        "optimizer": {"type": "AdamW", "weight_decay": 0.001},
        "loss": {"type": "ener", "start_pref_e": 0.2, "limit_pref_e": 20}
        | {"start_pref_f": 100, "limit_pref_f": 60, "start_pref_v": 0, "limit_pref_v": 0},
        "training": {
            "training_data": {"systems": [str(folder / "frames")], "batch_size": 1},
            "numb_steps": steps,
            "gradient_max_norm": 5.0,
            "seed": SEED,
            "disp_freq": 1,
            "save_freq": every,
            "max_ckpt_keep": 100,
        },
    }
    (folder / "input.json").write_text(json.dumps(given))
    dp = str(Path(args.peer).with_name("dp"))
    words = [dp, "--pt", "train", "input.json", "--finetune", PRETRAINED]
    words += ["--use-pretrain-script", "--skip-neighbor-stat"]
    start = time.time()
    text, peak, status = run_to_end(words, folder, args.threads)
    minutes, errors = {}, {}
    for step in range(every, steps + 1, every):
        checkpoint = folder / f"model.ckpt-{step}.pt"
        if checkpoint.exists():
            minutes[step] = (checkpoint.stat().st_mtime - start) / 60
            errors[step] = held_out_error(folder, checkpoint)
    end = ""
    if status:
        last = text.strip().splitlines()[-1] if status > 0 else f"killed by signal {-status}"
        end = f"{last[:200]}, at {peak / 2**30:.1f} GiB"
    return Run(minutes, errors, peak, end)


# -- the comparison ------------------------------------------------------------------------------


def report(args: argparse.Namespace, folder: Path) -> str:
    """A table of errors and times."""
    from dpa3sim.checkpoints.registry import embedded_path

    prepare(folder, args.frames)
    runs = {OURS: run_ours(folder, args)}
    if args.peer:
        runs[THEIRS] = run_theirs(folder, args)
    ours = folder / f"{OURS}.safetensors"
    before, after = (
        held_out_error(folder, model, "all_held_out") for model in (embedded_path(), ours)
    )
    lines = [
        f"{machine()}, {args.threads} threads; {args.frames} frames of 192 atoms, one in a batch, "
        f"learning rate {args.learning_rate:g}. Forces of all frames of {VALIDATION[0]}: RMSE "
        f"{1e3 * before:.1f} meV/Å before, **{1e3 * after:.1f} meV/Å** after.\n",
        f"| | step | minutes | RMSE of forces of {HELD_OUT} frames, meV/Å | peak memory, MiB |",
        "|---|---|---|---|---|",
    ]
    for side, run in runs.items():
        for step, error in run.errors.items():
            lines.append(
                f"| {side} | {step} | {run.minutes[step]:.1f} | {1e3 * error:.1f} "
                f"| {run.peak / 2**20:.0f} |"
            )
        if run.end:
            lines.append(f"| {side} | ended by an error | | {run.end} | {run.peak / 2**20:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Compare and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--peer", help="Python of an environment with deepmd-kit 3.1.3")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--their-steps", type=int, help="of deepmd-kit, if not as many")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="file whose marked part the table replaces")
    args = parser.parse_args()
    if args.worker:
        fine_tune(Path(args.worker), args.steps, args.learning_rate)
        return
    with tempfile.TemporaryDirectory() as scratch:
        text = report(args, Path(scratch))
    print(text)
    if args.output:
        write_report(args.output, "fine-tuning", text)


if __name__ == "__main__":
    main()
