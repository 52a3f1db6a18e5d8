"""Write an i-PI input for a structure, and a script that runs it with this model."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from dpa3sim.cli.options import Parser, add_config, add_settings, resolve
from dpa3sim.clients.ipi.inputs import INPUT, RUN_SCRIPT, STRUCTURE, InputSettings, write_inputs
from dpa3sim.common.errors import InputError
from dpa3sim.potential.settings import ModelSettings
from dpa3sim.structures.given import ReadingSettings
from dpa3sim.structures.reading import introduction, read_structure

EXAMPLES = """\
dpa3sim ipi input water.extxyz --motion pimd --nbeads 32 --out run
dpa3sim ipi input water.extxyz --motion npt --pressure 0.1 --transport shm
"""


def configure(parser: Parser) -> None:
    """Arguments of ``dpa3sim ipi input``."""
    parser.add_argument(
        "structure", metavar="STRUCTURE", help="file in any format that ASE reads, or FILE@INDEX"
    )
    add_settings(parser, "reading of structure files", ReadingSettings)
    add_settings(parser, "i-PI", InputSettings)
    add_settings(parser, "model", ModelSettings)
    add_config(parser)
    parser.add_argument("--out", metavar="DIR", help="output folder [NAME.ipi]")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")


def run(args: argparse.Namespace) -> int:
    """Write input.xml, init.extxyz and run.sh."""
    settings, model, reading = resolve(args, InputSettings, ModelSettings, ReadingSettings)
    source = read_structure(args.structure, reading)
    for line in introduction([source]):
        print(line)
    folder = Path(args.out or f"{source.label}.ipi")
    taken = [name for name in (INPUT, STRUCTURE, RUN_SCRIPT) if (folder / name).exists()]
    if taken and not args.force:
        raise InputError(
            f"{folder}: already contains {', '.join(taken)}; choose another --out, or --force"
        )
    write_inputs(folder, source.atoms, settings, chosen(model))
    print(f"{folder}: {INPUT}, {STRUCTURE}, {RUN_SCRIPT}; sh {folder / RUN_SCRIPT} runs it")
    return 0


def chosen(model: ModelSettings) -> dict[str, Any]:
    """The options of the model that differ from the defaults; files by their absolute path."""
    values = {f.name: getattr(model, f.name) for f in fields(model)}
    different = {f.name: values[f.name] for f in fields(model) if values[f.name] != f.default}
    if "model" in different and Path(different["model"]).exists():
        different["model"] = str(Path(different["model"]).resolve())
    return different
