"""Tell how certain a model is of structures."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa3sim.cli.live import Terminal
from dpa3sim.cli.options import Parser, add_config, add_settings, resolve
from dpa3sim.common.errors import DONE, SOME_FAILED, InputError
from dpa3sim.potential.settings import ModelSettings
from dpa3sim.structures.given import ReadingSettings
from dpa3sim.train.data.settings import DataSettings
from dpa3sim.uncertainty.settings import ScoreSettings

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.evaluation import Evaluation
    from dpa3sim.potential.potential import Potential
    from dpa3sim.structures.system import System
    from dpa3sim.train.data.frames import Frames
    from dpa3sim.uncertainty.agreement import Judged

EXAMPLES = """\
dpa3sim score candidates.xyz --uncertainty train.npz --model best.safetensors
dpa3sim score test.xyz --labels --uncertainty train.npz --model best.safetensors
dpa3sim score trajectory.extxyz --model a.pt --committee b.pt --committee c.pt
"""
SETTINGS = {
    "judgement": ScoreSettings,
    "model": ModelSettings,
    "reading of structure files": ReadingSettings,
}
DEVIATIONS = "model_devi.out"
_ERRORS = {"E error meV/atom": "energy_error_eV", "F RMSE meV/Å": "forces_rmse_eV_per_A"}


def configure(parser: Parser) -> None:
    """Arguments of ``dpa3sim score``."""
    parser.add_argument(
        "structures", nargs="+", metavar="STRUCTURE", help="files; all frames of each"
    )
    for title, cls in SETTINGS.items():
        add_settings(parser, title, cls)
    add_config(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--csv", metavar="FILE", help="write the table to this file")
    group.add_argument("--json", action="store_true", help="print only the results, as JSON")


def run(args: argparse.Namespace) -> int:
    """Judge all structures; the most uncertain ones come first."""
    from dpa3sim.train.data.reading import read_frames

    own, model, reading = resolve(args, *SETTINGS.values())
    if not (model.uncertainty or own.committee):
        raise InputError("give --uncertainty FILE, or --committee with further models")
    if own.forces and not model.uncertainty:
        raise InputError("--forces makes a committee from --uncertainty FILE, which is missing")
    if own.labels and not model.uncertainty:
        raise InputError("--labels compares errors with --uncertainty FILE, which is missing")
    structures: Sequence[Atoms | System]
    if own.labels:
        frames, _ = read_frames(args.structures, DataSettings(outlier_sigma=0))
        names, structures, failed = _names(frames), [x.system for x in frames], 0
    else:
        names, structures, failed = read_all(args.structures, reading)
    terminal = Terminal(args.json)
    potential = terminal.load(model)
    rows: list[dict[str, Any]] = [{"structure": name} for name in names]
    if model.uncertainty:
        outcomes = potential.evaluate(structures)
        _judge(rows, outcomes)
        if own.forces:
            _judge_forces(rows, potential, structures, own.forces)
        if own.labels:
            for line in _compare_errors(rows, frames, outcomes):
                terminal.say(line)
        rows.sort(key=lambda row: -row["largest_novelty"])
    if own.committee:
        _compare(shlex.split(own.committee), model, potential, structures, terminal)
    if args.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif model.uncertainty:
        for line in lines(rows):
            terminal.say(line)
    if args.csv:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        with open(args.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return SOME_FAILED if failed else DONE


def read_all(files: list[str], reading: ReadingSettings) -> tuple[list[str], list[Atoms], int]:
    """All frames of the files by name, and how many cannot be read, which are told.

    Raises:
        InputError: none can be read.
    """
    from dpa3sim.structures.sources import entries

    names, structures, errors = [], [], []
    for entry in entries(files, reading):
        if isinstance(entry.atoms, InputError):
            errors.append(entry.atoms)
            continue
        names.append(entry.origin)
        structures.append(entry.atoms)
    if not structures:
        raise errors[0] if errors else InputError("there are no structures")
    for error in errors:
        print(f"dpa3sim: error: {error}", file=sys.stderr)
    return names, structures, len(errors)


def _names(frames: Frames) -> list[str]:
    numbers = [f"@{number}" if number >= 0 else "" for number in frames.number_of]
    return [frames.files[x] + number for x, number in zip(frames.file_of, numbers, strict=True)]


def _judge(rows: list[dict[str, Any]], outcomes: Sequence[Evaluation]) -> None:
    """Add energies and their uncertainties, or novelties where there is no calibration."""
    for row, out in zip(rows, outcomes, strict=True):
        judged = out.uncertainty
        assert judged is not None
        row |= {"atoms": len(out.energies), "energy_eV": out.energy}
        row["mean_novelty"] = float(judged.novelties.mean())
        row["largest_novelty"] = judged.novelty
        row["atom_of_largest_novelty"] = int(judged.novelties.argmax())
        if judged.energy is not None:
            row["energy_uncertainty_eV"] = judged.energy


def _judge_forces(
    rows: list[dict[str, Any]],
    potential: Potential,
    structures: Sequence[Atoms | System],
    members: int,
) -> None:
    scatters = potential.forces_uncertainty(structures, members)
    for row, scatter in zip(rows, scatters, strict=True):
        # The root mean square of the three components, of the worst atom.
        row["largest_force_uncertainty_eV_per_A"] = float((scatter**2).mean(axis=1).max()) ** 0.5


def _compare_errors(
    rows: list[dict[str, Any]], frames: Frames, outcomes: Sequence[Evaluation]
) -> list[str]:
    """Add true errors; how well they are told, in words, of each file and of all."""
    from dpa3sim.uncertainty.agreement import Judged

    by_file: dict[str, list[Judged]] = {}
    for index, (row, frame, out) in enumerate(zip(rows, frames, outcomes, strict=True)):
        assert out.uncertainty is not None
        judged = Judged(
            novelties=out.uncertainty.novelties,
            energy_uncertainty=out.uncertainty.energy,
            energy_error=None if frame.energy is None else out.energy - frame.energy,
            force_errors=None if frame.forces is None else out.forces - frame.forces,
        )
        if judged.energy_error is not None:
            row["energy_error_eV"] = judged.energy_error
        if judged.force_rmse is not None:
            row["forces_rmse_eV_per_A"] = judged.force_rmse
        by_file.setdefault(frames.files[frames.file_of[index]], []).append(judged)
    if len(by_file) > 1:
        by_file["all"] = [x for group in by_file.values() for x in group]
    return [f"{name}: {_agreement(group)}" for name, group in by_file.items()]


def _agreement(group: Sequence[Judged]) -> str:
    from dpa3sim.uncertainty.agreement import Agreement

    found = Agreement.of(group)
    parts = (
        ("energy errors and uncertainties", found.energies),
        ("force errors and novelties, of structures", found.structures),
        ("of atoms", found.atoms),
    )
    known = [f"{name} {value:.2f}" for name, value in parts if value is not None]
    return f"{len(group)} structures; rank correlations: {', '.join(known) or 'none'}"


def _compare(
    files: list[str],
    model: ModelSettings,
    potential: Potential,
    structures: Sequence[Atoms | System],
    terminal: Terminal,
) -> None:
    """Write the scatter of several models in deepmd-kit's format."""
    from dpa3sim.potential import Potential
    from dpa3sim.uncertainty.committee import deviations, table

    alone = dataclasses.replace(model, uncertainty=None)  # which is of one model
    others = [Potential.load(alone, Path(file)) for file in files]
    found = deviations([potential, *others], structures)
    Path(DEVIATIONS).write_text(table(found), encoding="utf-8")
    largest = max(float(x.forces.max()) for x in found)
    terminal.say(
        f"{1 + len(others)} models, {len(found)} structures: forces differ by at most "
        f"{1e3 * largest:.4g} meV/Å; {DEVIATIONS} is written"
    )


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The table for people."""
    calibrated = "energy_uncertainty_eV" in rows[0]
    forces = "largest_force_uncertainty_eV_per_A" in rows[0]
    head = f"{'E eV/atom':>11} {'largest novelty':>15} {'its atom':>8} {'mean':>8}"
    head += f" {'E ± meV/atom':>13}" if calibrated else ""
    head += f" {'F ± meV/Å':>10}" if forces else ""
    errors = [(n, k) for n, k in _ERRORS.items() if any(k in row for row in rows)]
    head += "".join(f" {name:>16}" for name, _ in errors)
    found = [f"{head}  structure"]
    for row in rows:
        line = f"{row['energy_eV'] / row['atoms']:11.5f} {row['largest_novelty']:15.3f} "
        line += f"{row['atom_of_largest_novelty']:8d} "
        line += f"{row['mean_novelty']:8.3f}"
        if calibrated:
            line += f" {1e3 * row['energy_uncertainty_eV'] / row['atoms']:13.3g}"
        if forces:
            line += f" {1e3 * row['largest_force_uncertainty_eV_per_A']:10.4g}"
        for _, key in errors:
            per = row["atoms"] if key == "energy_error_eV" else 1
            line += f" {1e3 * row[key] / per:16.4g}" if key in row else f" {'':16}"
        found.append(f"{line}  {row['structure']}")
    return found
