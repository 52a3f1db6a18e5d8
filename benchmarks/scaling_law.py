"""How errors fall with layers, with training frames, and with steps: DPA3's scaling law.

    python benchmarks/scaling_law.py                       # hours; the same command continues
    python benchmarks/scaling_law.py --steps 500 --frames 256 --layers 1 2 4     # a trial

All models have the same width and the same recipe. Three families share their largest member:
models of more and more layers with all frames; with more and more frames; and trained for more and
more steps. The force errors on held-out frames are fitted by a N^-alpha, with N the number of
parameters, of training frames, and of operations. A second part trains the crystals and the DFT
water of deepmd-kit's ``examples/water/data`` (in the folder DPA3SIM_WATER or
``../shared/data/water``) alone and together, as two tasks of one model with dataset encoding.

Frames are made by ``examples/smooth_model/structures.py``, unless --data and --validation name
files. Every training is a run directory of ``dpa3sim train`` in --work, so that an interrupted
benchmark continues where it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peers import ROOT, machine, with_threads, write_report
from training import WATER

GENERATOR = ROOT / "examples" / "smooth_model" / "structures.py"
# Where structures come from (seeds), and how many frames measure errors.
SEED, HELD_OUT_SEED, HELD_OUT = 1, 99, 160
LARGEST = 4096
# The recipe that all share; its name stands in the folder of the runs.
SHAPE = {"n-dim": 48, "e-dim": 24, "a-dim": 12, "neuron": "64 64"}
CUTOFFS = {
    "e-rcut": 5.0,
    "e-rcut-smth": 4.4,
    "e-sel": 80,
    "a-rcut": 3.5,
    "a-rcut-smth": 3.0,
    "a-sel": 20,
}
RECIPE = {
    "batch-size": "auto:48",
    "loss": "mae",
    "start-pref-v": 0,
    "limit-pref-v": 0,
    "start-pref-e": 1,
    "limit-pref-e": 5,
    "start-pref-f": 20,
    "limit-pref-f": 20,
    "schedule": "cosine",
    "learning-rate": 2e-3,
    "stop-learning-rate": 1e-5,
    "warmup-steps": 100,
    "ema-decay": 0.995,
}
ALONE, TOGETHER = "alone", "together"


@dataclass(frozen=True)
class Point:
    """A member of a family.

    Attributes:
        layers, frames, steps: of the training.
        parameters: of the model. energy: eV/atom. forces: eV/Å. Both are root mean squares.
        seconds: of the training.
    """

    layers: int
    frames: int
    steps: int
    parameters: int
    energy: float
    forces: float
    seconds: float


@dataclass(frozen=True)
class Fit:
    """``error = a N^-alpha``; the error of alpha is that of the regression.

    Attributes:
        a, alpha, alpha_error: see above. scatter: root mean square of the logarithm's residuals.
    """

    a: float
    alpha: float
    alpha_error: float
    scatter: float

    @classmethod
    def of(cls, numbers: Sequence[float], errors: Sequence[float]) -> Fit:
        """Least squares in logarithms; at least three points."""
        x, y = np.log(numbers), np.log(errors)
        (slope, offset), covariance = np.polyfit(x, y, 1, cov="unscaled")
        residuals = y - slope * x - offset
        variance = float((residuals**2).sum() / max(len(x) - 2, 1))
        error = float(np.sqrt(variance * covariance[0, 0]))
        return cls(float(np.exp(offset)), -float(slope), error, float(np.sqrt(variance)))


def main() -> None:
    """Train what is missing, fit, draw, and print."""
    options = arguments()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    training, validation = frames_of(options, work)
    families = {
        "parameters": [(n, options.frames, options.steps) for n in options.layers],
        "frames": [(options.depth, n, options.steps) for n in powers(32, options.frames)],
        "operations": [
            (options.depth, options.frames, options.steps // 2**k) for k in range(5, -1, -1)
        ],
    }
    found: dict[str, list[Point]] = {}
    for name, members in families.items():
        found[name] = [
            point(options, work, training, validation, *member) for member in sorted(set(members))
        ]
    fits = {name: Fit.of(sizes(name, points), errors(points)) for name, points in found.items()}
    draw(found, fits, options.out / "scaling_law.png")
    report = table(found, fits)
    both = encoding(options, work, training, validation)
    report += "\n\n" + both
    print(report)
    if options.page is not None:
        write_report(options.page, "scaling law", report)


def arguments() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("scaling_law"), help="run directories")
    parser.add_argument("--data", type=Path, help="labelled frames, extended XYZ")
    parser.add_argument("--validation", type=Path, help="held-out frames, extended XYZ")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8])
    parser.add_argument("--depth", type=int, default=3, help="layers of the other families")
    parser.add_argument("--frames", type=int, default=LARGEST, help="the most training frames")
    parser.add_argument("--steps", type=int, default=6400, help="of the longest trainings")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="of the picture")
    parser.add_argument("--page", type=Path, help="page whose report is replaced")
    return parser.parse_args()


def powers(first: int, last: int) -> list[int]:
    """Powers of two times the first number, up to the last one."""
    found = [first]
    while found[-1] * 2 <= last:
        found.append(found[-1] * 2)
    return found


def frames_of(options: argparse.Namespace, work: Path) -> tuple[Path, Path]:
    """Training and held-out frames, which are made if none are named."""
    made = []
    for given, name, number, seed in (
        (options.data, "training", options.frames, SEED),
        (options.validation, "held_out", HELD_OUT, HELD_OUT_SEED),
    ):
        path = given or work / f"{name}-{number}.extxyz"
        if not path.exists():
            scale, partial = number / 4000, path.with_suffix(".part.extxyz")
            command = [sys.executable, "-W", "ignore", str(GENERATOR), str(partial)]
            command += ["--scale", f"{scale:.5f}", "--seed", str(seed)]
            subprocess.run(command, check=True, env=environment(options))
            partial.rename(path)
        made.append(path)
    return made[0], made[1]


def environment(options: argparse.Namespace) -> dict[str, str]:
    """With this tree's dpa3sim, and so many threads."""
    return with_threads(options.threads) | {"PYTHONPATH": str(ROOT)}


def subset(work: Path, training: Path, number: int) -> Path:
    """The first frames of a file, which are in random order."""
    from ase.io import read, write

    path = work / f"first-{number}.extxyz"
    if not path.exists():
        frames = read(training, index=f":{number}", format="extxyz")
        write(path, frames, format="extxyz")
    return path


def train(
    options: argparse.Namespace,
    folder: Path,
    data: Sequence[str],
    validation: Sequence[str],
    layers: int,
    steps: int,
    **more: Any,
) -> dict[str, Any]:
    """The result of a training, which runs or continues only if it is not done."""
    given = SHAPE | CUTOFFS | RECIPE | {"nlayers": layers, "steps": steps, "out": folder} | more
    given |= {"validate-every": max(steps // 8, 1), "report-every": max(steps // 8, 1)}
    command = [sys.executable, "-m", "dpa3sim", "train", *data]
    for word in validation:
        command += ["--validation", word]
    for name, value in given.items():
        command += [f"--{name}", str(value)]
    command += ["--no-covariance", "--quiet", "--no-plot"]
    subprocess.run(command, check=True, env=environment(options))
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def point(
    options: argparse.Namespace,
    work: Path,
    training: Path,
    validation: Path,
    layers: int,
    frames: int,
    steps: int,
) -> Point:
    """Train one model of a family."""
    folder = work / f"L{layers}-N{frames}-S{steps}"
    data = subset(work, training, frames)
    found = train(options, folder, [str(data)], [str(validation)], layers, steps)
    values = next(iter(found["validation"].values()))
    made = Point(
        *(layers, frames, steps, parameters(folder / "best.safetensors")),
        values["rmse_energy_per_atom_eV"],
        values["rmse_forces_eV_per_A"],
        found["session_s"],
    )
    print(f"{folder.name}: {1e3 * made.forces:.1f} meV/Å, {made.seconds:.0f} s", flush=True)
    return made


def parameters(path: Path) -> int:
    """Number of trainable scalars of a model."""
    from dpa3sim.checkpoints import read_model

    return read_model(path).parameter_count


def sizes(family: str, points: Sequence[Point]) -> list[float]:
    """What changes in a family; operations are parameters times steps, up to a factor."""
    if family == "parameters":
        return [float(p.parameters) for p in points]
    if family == "frames":
        return [float(p.frames) for p in points]
    return [float(p.parameters) * p.steps for p in points]


def errors(points: Sequence[Point]) -> list[float]:
    """Force errors, eV/Å."""
    return [p.forces for p in points]


def draw(found: dict[str, list[Point]], fits: dict[str, Fit], path: Path) -> None:
    """A panel for each family, with its fit."""
    from dpa3sim.report.plots.properties import pyplot

    names = {
        "parameters": "parameters",
        "frames": "training frames",
        "operations": "parameters × steps",
    }
    figure, axes = pyplot().subplots(1, 3, figsize=(10, 3.4), sharey=True, layout="constrained")
    for axis, (family, points) in zip(axes, found.items(), strict=True):
        x, fit = np.array(sizes(family, points)), fits[family]
        axis.loglog(x, [1e3 * y for y in errors(points)], "o")
        axis.loglog(
            x, 1e3 * fit.a * x**-fit.alpha,
            label=f"$\\alpha$ = {fit.alpha:.3f} ± {fit.alpha_error:.3f}",
        )  # fmt: skip
        axis.set_xlabel(names[family])
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize="small")
    axes[0].set_ylabel("force RMSE, held-out frames (meV/Å)")
    figure.savefig(path, dpi=130)


def table(found: dict[str, list[Point]], fits: dict[str, Fit]) -> str:
    """The report in Markdown."""
    lines = [f"{machine()}.", ""]
    lines += ["| family | layers | frames | steps | parameters | E, meV/atom | F, meV/Å | s |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for family, points in found.items():
        for p in points:
            lines.append(
                f"| {family} | {p.layers} | {p.frames} | {p.steps} | {p.parameters} | "
                f"{1e3 * p.energy:.1f} | {1e3 * p.forces:.1f} | {p.seconds:.0f} |"
            )
    lines += ["", "| error of forces against | alpha | scatter of the fit |", "|---|---|---|"]
    for family, fit in fits.items():
        lines.append(
            f"| {family} | {fit.alpha:.3f} ± {fit.alpha_error:.3f} | {100 * fit.scatter:.1f} % |"
        )
    return "\n".join(lines)


def encoding(options: argparse.Namespace, work: Path, training: Path, validation: Path) -> str:
    """Crystals and water alone, and together with dataset encoding."""
    water = [str(WATER / f"data_{k}") for k in range(4)]
    if not all(Path(x).is_dir() for x in water):
        return f"No table of dataset encoding: {WATER} is not there."
    data = {"crystals": [str(subset(work, training, options.frames))], "water": water[:3]}
    held = {"crystals": str(validation), "water": water[3]}
    found: dict[tuple[str, str], dict[str, float]] = {}
    for name, files in data.items():
        result = train(
            options, work / f"alone-{name}", files, [held[name]], options.depth, options.steps
        )
        (found[ALONE, name],) = result["validation"].values()
    both = [f"{name}={file}" for name, files in data.items() for file in files]
    result = train(
        *(options, work / "both", both, [f"{name}={x}" for name, x in held.items()]),
        *(options.depth, 2 * options.steps),
    )
    for name in data:
        found[TOGETHER, name] = result["validation"][name]
    lines = ["| data set | training | E, meV/atom | F, meV/Å |", "|---|---|---|---|"]
    for (kind, name), values in sorted(found.items(), key=lambda item: item[0][::-1]):
        energy, forces = values["rmse_energy_per_atom_eV"], values["rmse_forces_eV_per_A"]
        lines.append(f"| {name} | {kind} | {1e3 * energy:.1f} | {1e3 * forces:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
