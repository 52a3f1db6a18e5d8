"""Convert a model file (.pth, .pt, .safetensors) to .safetensors, or to deepmd-kit's .pt.

Nothing in a file is run. A .pt file contains the one head that was chosen, for deepmd-kit 3.1.3.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dpa3sim.cli.options import Parser
from dpa3sim.common.errors import InputError

if TYPE_CHECKING:
    from dpa3sim.checkpoints import ModelFile

EXAMPLES = """\
dpa3sim convert my.pt my.safetensors --head Omat24
dpa3sim convert my.pt averages.safetensors --ema
dpa3sim convert my.safetensors my.pt
"""


def configure(parser: Parser) -> None:
    """Arguments of ``dpa3sim convert``."""
    parser.add_argument("input", metavar="IN", help="checkpoint file or registry name")
    parser.add_argument("output", metavar="OUT", help="output file, ending in .safetensors or .pt")
    parser.add_argument("--head", help="head of a multi-task checkpoint")
    parser.add_argument("--name", help="name of the converted model [that of OUT]")
    parser.add_argument(
        "--ema", action="store_true", help="use the moving averages (EMA) of a training checkpoint"
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def run(args: argparse.Namespace) -> int:
    """Convert."""
    from dpa3sim.checkpoints import (
        DEEPMD_SUFFIX,
        SUFFIX,
        read_model,
        write_native,
        write_training,
    )
    from dpa3sim.checkpoints.registry import load_model

    output = Path(args.output)
    if output.suffix not in (SUFFIX, DEEPMD_SUFFIX):
        raise InputError(f"{output}: the name must end in {SUFFIX} or {DEEPMD_SUFFIX}")
    if output.exists() and not args.force:
        raise InputError(f"{output}: exists; --force replaces it")
    if not output.parent.is_dir():
        raise InputError(f"{output.parent}: this folder does not exist")
    model = replace(load_model(args.input, args.head, args.ema), name=args.name or output.stem)
    try:
        if output.suffix == SUFFIX:
            write_native(model, output)
        else:
            write_training(model, output, info=_info(model))
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror})") from None
    written = read_model(output)  # the written file can be read
    print(f"{output}: {written.parameter_count:,} parameters, head {model.head or '-'}")
    print(f"SHA-256 {written.sha256}")
    return 0


def _info(model: ModelFile) -> dict[str, str | None]:
    """Where a model comes from, which deepmd-kit keeps with it."""
    return {"name": model.name, "head": model.head, "source_sha256": model.sha256}
