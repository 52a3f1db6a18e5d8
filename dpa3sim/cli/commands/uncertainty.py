"""Fit how certain a model is, from the structures that it was trained on."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa3sim.cli.commands.score import read_all
from dpa3sim.cli.live import Terminal
from dpa3sim.cli.options import Parser, add_config, add_settings, resolve
from dpa3sim.common.errors import DONE
from dpa3sim.potential.settings import ModelSettings
from dpa3sim.structures.given import ReadingSettings
from dpa3sim.train.data.settings import DataSettings
from dpa3sim.uncertainty.settings import FitSettings

if TYPE_CHECKING:
    from dpa3sim.potential.potential import Potential
    from dpa3sim.train.data.frames import Frames
    from dpa3sim.uncertainty.rigidity import Rigidity

EXAMPLES = """\
dpa3sim uncertainty fit train.xyz --validation valid.xyz --model best.safetensors
dpa3sim uncertainty fit structures.xyz --no-labels --out known.npz      # novelty only
"""
SETTINGS = {
    "uncertainty": FitSettings,
    "reading of labels": DataSettings,
    "model": ModelSettings,
    "reading of structure files": ReadingSettings,
}


def configure(parser: Parser) -> None:
    """Arguments of ``dpa3sim uncertainty``."""
    parser.add_argument("action", choices=("fit",), help="action")
    parser.add_argument(
        "files",
        nargs="+",
        metavar="DATA",
        help="the training structures of the model, as for 'dpa3sim train'",
    )
    for title, cls in SETTINGS.items():
        add_settings(parser, title, cls)
    add_config(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--out", metavar="FILE", help="file to write [NAME OF DATA.npz]")
    group.add_argument("--quiet", action="store_true", help="print only errors")


def run(args: argparse.Namespace) -> int:
    """Fit, calibrate and write."""
    from dpa3sim.train.data.reading import read_frames
    from dpa3sim.uncertainty.rigidity import fit

    own, reading, model, structures = resolve(args, *SETTINGS.values())
    terminal = Terminal(args.quiet)
    if own.labels:
        frames, _ = read_frames(args.files, reading)
        others = read_frames(shlex.split(own.validation), reading)[0] if own.validation else frames
        potential = terminal.load(model)
        rigidity = fit(potential, (frame.system for frame in frames))
    else:
        _, plain, _ = read_all(args.files, structures)
        potential = terminal.load(model)
        rigidity = fit(potential, plain)
    terminal.say(f"{rigidity.count} structures of {' '.join(rigidity.elements)}")
    if rigidity.count < len(rigidity.factor):
        terminal.say(
            f"warning: with less than {len(rigidity.factor)} structures, everything that is not "
            "like one of them looks new"
        )
    if own.labels:
        rigidity = _calibrated(potential, rigidity, others, own.calibration, terminal)
    path = Path(args.out or f"{Path(args.files[0]).stem}.npz")
    rigidity.save(path)
    terminal.say(f"written to {path}")
    return DONE


def _calibrated(
    potential: Potential, rigidity: Rigidity, frames: Frames, method: Any, terminal: Terminal
) -> Rigidity:
    """With a scale from the errors of known energies, if there are any."""
    import numpy as np

    from dpa3sim.uncertainty.rigidity import novelties

    known = [frame for frame in frames if frame.energy is not None]
    if not known:
        terminal.say("no energies are known: structures get a novelty without a unit")
        return rigidity
    found = potential.evaluate([frame.system for frame in known])
    labels = np.array([frame.energy for frame in known], dtype=np.float64)
    errors = np.array([x.energy for x in found]) - labels
    totals = [x for x, _ in novelties(potential, rigidity, [frame.system for frame in known])]
    rigidity = rigidity.calibrated(errors, np.array(totals), method)
    sizes = np.array([len(frame.system) for frame in known])
    shown = 1e3 * np.sqrt(np.mean((errors / sizes) ** 2))
    usual = 1e3 * (rigidity.alpha or 0.0) * np.median(np.array(totals) / sizes)
    terminal.say(
        f"calibrated with {len(known)} energies, which err by {shown:.3g} meV/atom (RMSE); the "
        f"median uncertainty is {usual:.3g} meV/atom"
    )
    return rigidity
