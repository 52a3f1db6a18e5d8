"""Compute the forces for i-PI: a client for its unix sockets, TCP and shared memory."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dpa3sim.cli.live import Terminal
from dpa3sim.cli.options import Parser, add_config, add_settings, resolve
from dpa3sim.cli.signals import stopped_by_signals
from dpa3sim.clients.ipi.serving import Settings, make_client
from dpa3sim.clients.ipi.wire import UNIX_PREFIX, Address
from dpa3sim.common.errors import INTERRUPTED, InputError
from dpa3sim.potential.settings import ModelSettings
from dpa3sim.structures.given import ReadingSettings

if TYPE_CHECKING:
    from dpa3sim.clients.ipi.client import IPIClient
    from dpa3sim.structures.reading import Source

# Each of them is a module, `dpa3sim.cli.ipi_NAME`, that is run instead of this one.
SUBCOMMANDS = {
    "input": "write an i-PI input and a script that runs it",
    "check": "send frames through a real i-PI and compare the results with the model",
    "pes-path": "print the path of the PES file for <ffdirect>",
}

EXAMPLES = """\
dpa3sim ipi -u -a water --structure init.extxyz --batch 32    # a unix socket
dpa3sim ipi -a localhost -p 31415 --structure init.extxyz     # TCP
dpa3sim ipi input water.extxyz --motion pimd --nbeads 32      # an input to start from
"""


def configure(parser: Parser) -> None:
    """Arguments of ``dpa3sim ipi``."""
    parser.usage = (
        "dpa3sim ipi -u -a NAME --structure FILE [options]\n"
        "       dpa3sim ipi -a HOST -p PORT --structure FILE [options]\n"
        f"       dpa3sim ipi {{{','.join(SUBCOMMANDS)}}} ..."
    )
    names = "; ".join(f"{name}: {text}" for name, text in SUBCOMMANDS.items())
    parser.epilog = f"subcommands: {names}"
    group = parser.add_argument_group("where i-PI listens (letters as in i-PI's own drivers)")
    group.add_argument(
        "-u", dest="is_unix", action="store_true", help="connect to a unix socket instead of TCP"
    )
    group.add_argument("--unix", metavar="NAME", help="the same as -u -a NAME")
    group.add_argument(
        "-a", "--address", metavar="NAME", help="host; with -u, the name in <address>, or a path"
    )
    group.add_argument("-p", "--port", type=int, metavar="N", help="TCP port")
    group.add_argument(
        "-S",
        "--sockets-prefix",
        metavar="P",
        default=UNIX_PREFIX,
        help=f"prefix of the unix socket [{UNIX_PREFIX}]",
    )
    parser.add_argument(
        "--structure",
        required=True,
        metavar="FILE",
        help="file with the elements in i-PI's order and the periodic axes; i-PI sends neither",
    )
    add_settings(parser, "reading of structure files", ReadingSettings)
    add_settings(parser, "client", Settings)
    parser.add_argument(
        "--model",
        metavar="MODEL",
        action="append",
        default=argparse.SUPPRESS,
        help="checkpoint file or registry name; repeat it for a committee [embedded dpa3-openlam]",
    )
    add_settings(parser, "model", ModelSettings)
    add_config(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="print a line for each batch")
    parser.add_argument("--quiet", action="store_true", help="print only errors")


def run(args: argparse.Namespace) -> int:
    """Serve until i-PI ends."""
    from dpa3sim.structures.reading import read_structure

    address = _address(args)
    models = vars(args).pop("model", [])
    settings, model, reading = resolve(args, Settings, ModelSettings, ReadingSettings)
    source = read_structure(args.structure, reading)
    terminal = Terminal(args.quiet)
    chosen = [dataclasses.replace(model, model=name) for name in models] or [model]
    potentials = [terminal.load(choice) for choice in chosen]
    start = time.monotonic()
    client = make_client(
        potentials, source.atoms, address, settings, say=terminal.say, verbose=args.verbose
    )
    seconds = time.monotonic() - start
    _introduce(terminal, source, settings, seconds)
    terminal.say(f"serving i-PI at {address}")
    with stopped_by_signals(client.stop):
        return _serve(client, source, terminal)


def _serve(client: IPIClient, source: Source, terminal: Terminal) -> int:
    try:
        ending = client.run().ending
    finally:
        terminal.say(str(client.statistics))
        if client.failed is not None:
            try:
                terminal.say(f"the failed batch is in {_dump(client, source)}")
            except OSError as error:  # less important than the error itself
                terminal.say(f"the failed batch could not be saved: {error}")
    if ending == "stopped":
        terminal.say("interrupted; the last request of i-PI was answered")
        return INTERRUPTED
    terminal.say("i-PI ended" if ending == "exit" else "i-PI closed the connection")
    return 0


def _address(args: argparse.Namespace) -> Address:
    if args.unix and (args.address or args.port is not None):
        raise InputError("--unix NAME cannot be combined with -a or -p")
    name = args.unix or args.address
    if not name:
        raise InputError("the address of i-PI is missing: -u -a NAME, or -a HOST -p PORT")
    if args.unix or args.is_unix:
        if args.port is not None:
            raise InputError("a unix socket (-u) does not have a port (-p)")
        return Address.unix(name, args.sockets_prefix)
    if args.port is None:
        raise InputError(f"-a {name}: TCP needs a port (-p); for a unix socket use -u")
    return Address(host=name, port=args.port)


def _introduce(terminal: Terminal, source: Source, settings: Settings, seconds: float) -> None:
    from dpa3sim.structures.reading import introduction

    sizes = "1" if settings.batch == 1 else f"1 and {settings.batch}"
    first, *warnings = introduction([source])
    terminal.say(
        f"{first}; hartree and bohr on the wire; warm for batches of {sizes} after {seconds:.1f} s"
    )
    for warning in warnings:
        terminal.say(warning)


def _dump(client: IPIClient, source: Source) -> Path:
    """Write the structures that could not be evaluated, one frame for each."""
    from ase.io import write
    from ase.units import Bohr

    assert client.failed is not None
    frames = []
    for cell, positions in zip(*client.failed, strict=True):
        atoms = source.atoms.copy()
        atoms.calc = None
        atoms.set_constraint()
        atoms.set_cell(cell * Bohr)
        atoms.positions = positions * Bohr
        frames.append(atoms)
    path = Path(f"{source.label}.failed.extxyz")
    write(path, frames, format="extxyz")
    return path
