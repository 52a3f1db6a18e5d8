"""Check training data: elements, labels, ranges, strange energies, bad frames."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dpa3sim.cli.options import Parser, add_config, add_settings, resolve
from dpa3sim.common.errors import DONE, InputError
from dpa3sim.train.data.settings import DataSettings

EXAMPLES = """\
dpa3sim data info train.xyz valid.xyz               # what is in there, and what is strange
dpa3sim data info systems/ --plot frames.png        # deepmd-kit's data, with histograms
dpa3sim data info 'set-*.xyz' --energy-key E_pbe --forces-key F_pbe --skip-bad
"""
ENDINGS = (".png", ".svg", ".pdf")
SETTINGS = {"reading": DataSettings}


def configure(parser: Parser) -> None:
    """Arguments of ``dpa3sim data``."""
    parser.add_argument("action", choices=("info",), help="action")
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="extended XYZ, trajectory, ASE database, screening, folder with deepmd-kit's data, "
        "HDF5 file (FILE#/GROUP for a part), or a pattern",
    )
    add_settings(parser, "reading", DataSettings)
    add_config(parser)
    parser.add_argument(
        "--plot", metavar="FILE", help=f"draw histograms to this file ({', '.join(ENDINGS)})"
    )
    parser.add_argument("--json", action="store_true", help="print only the results, as JSON")


def run(args: argparse.Namespace) -> int:
    """Read, check and describe the data."""
    from dpa3sim.train.data.info import histograms, inspect_frames
    from dpa3sim.train.data.reading import read_frames

    (settings,) = resolve(args, DataSettings)
    if args.plot and Path(args.plot).suffix not in ENDINGS:
        raise InputError(f"--plot {args.plot}: the name must end in {', '.join(ENDINGS)}")
    frames, rejected = read_frames(args.files, settings)
    info = inspect_frames(frames, rejected)
    if args.json:
        print(json.dumps(info.to_dict(), indent=2, ensure_ascii=False))
    else:
        print("\n".join(info.lines()))
    if args.plot:
        from dpa3sim.report.plots.frames import plot_histograms

        title = f"{len(frames)} frames of {', '.join(map(str, args.files))}"
        plot_histograms(Path(args.plot), histograms(frames), title[:80])
    return DONE
