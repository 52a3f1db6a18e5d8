"""Train a model further on structures with energies, forces and stresses."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from dpa3sim.cli.commands import train
from dpa3sim.cli.options import Parser, add_config, add_settings
from dpa3sim.train.options import FinetuneOptions

if TYPE_CHECKING:
    from dpa3sim.train.prepare import Prepared

EXAMPLES = """\
dpa3sim finetune frames.xyz                                        # the embedded model
dpa3sim finetune frames.xyz --validation others.xyz --steps 500 --out better
dpa3sim finetune frames.xyz --replay auto                          # and forget little else
dpa3sim finetune few.xyz --trainable fitting                       # with few frames
"""
_TITLES = "data", "reading", "fine-tuning", "training", "learning rate", "optimizer", "loss"
SETTINGS = dict(zip(_TITLES, FinetuneOptions.classes(), strict=True))


def configure(parser: Parser) -> None:
    """Arguments of ``dpa3sim finetune``."""
    parser.add_argument(
        "files",
        nargs="*",
        metavar="DATA",
        help="files and folders of training frames: extended XYZ, ASE databases, deepmd-kit's "
        "folders and HDF5 files, screenings",
    )
    for title, cls in SETTINGS.items():
        add_settings(parser, title, cls)
    add_config(parser)
    train.add_output(parser, "finetune")


def run(args: argparse.Namespace) -> int:
    """Train further, or continue."""
    return train.execute(args, prepare, "finetune")


def prepare(args: argparse.Namespace) -> tuple[Prepared, dict[str, Any], str]:
    """What to do, the options for ``config.resolved.yaml``, and the name of the data.

    Raises:
        InputError: bad options or data.
    """
    from dpa3sim.train.finetune import from_model

    options = train.resolved(args, FinetuneOptions)
    return from_model(options), options.values(), train.name_of(options.sources)
