"""Entry point of the command ``dpa3sim``."""

from __future__ import annotations

import io
import sys
import time
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, TextIO

from dpa3sim.cli.options import Parser, unknown_flags
from dpa3sim.cli.signals import interrupted, interruptible
from dpa3sim.common import settings
from dpa3sim.common.errors import (
    BAD_INPUT,
    DONE,
    EXIT_CODES,
    Dpa3simError,
    Dpa3simWarning,
    InputError,
    OutOfMemoryError,
    StorageError,
    memory_ran_out,
)

# Modules are imported when their command runs, so that help and errors appear at once.
GROUPS = {
    "structures": {
        "relax": "relax the atoms and the cell of structures",
        "sp": "energies, forces and stresses of structures as they are",
    },
    "properties of crystals": {
        "eos": "equation of state: energy against volume, bulk modulus",
        "elastic": "elastic constants, with relaxed and with clamped ions",
        "phonon": "phonon bands, densities of states, thermal properties, stability",
        "gruneisen": "mode Grüneisen parameters",
        "qha": "thermal expansion, bulk modulus and Cp in the quasi-harmonic approximation",
        "kappa": "lattice thermal conductivity",
        "vacancy": "formation energies of vacancies",
        "surface": "energies of surfaces",
    },
    "barriers and dynamics": {
        "neb": "minimum energy path and barrier between two structures",
        "md": "molecular dynamics",
        "pimd": "path integral molecular dynamics, with quantum nuclei",
        "ipi": "forces for i-PI: path integrals and its other methods",
        "lammps": "run a LAMMPS input with the forces of the model",
    },
    "screenings of many structures (--screen RUN)": {
        "status": "progress of a screening",
        "retry": "repeat the failed structures of a screening",
        "export": "results of a screening as a table or as structures",
        "shard-script": "a Slurm script for a screening in many jobs",
    },
    "before and after": {
        "plan": "estimate the evaluations, memory and time of a command",
        "report": "write an HTML page about a run or a screening: state, results, plots",
    },
    "training": {
        "sample": "make training structures from given ones, and label them",
        "train": "train a model on structures with energies, forces and stresses",
        "finetune": "train a model further, such as the embedded one, on your structures",
        "distill": "make a small fast model that imitates a large one for your structures",
        "data": "check training data: labels, ranges, strange energies",
        "uncertainty": "fit how certain a model is, from its training structures",
        "score": "tell how certain a model is of structures",
        "select": "choose the structures to label",
    },
    "models and this installation": {
        "model": "list, download and inspect models",
        "validate": "check models by cheap physics, and compare them on one page",
        "convert": "convert a checkpoint to dpa3sim's own format",
        "bench": "measure the speed of the model for your own structures",
        "doctor": "check this installation and its speed",
        "completion": "print a script that lets the TAB key complete commands and options",
    },
}
COMMANDS = {name: text for group in GROUPS.values() for name, text in group.items()}
EXAMPLES = """\
dpa3sim relax POSCAR --cell full           # with the embedded model
dpa3sim relax a.cif b.cif --model my.pth   # several structures, your own checkpoint
dpa3sim phonon POSCAR                      # phonons of the relaxed crystal
dpa3sim model list                         # the public DPA3 models
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    began = time.monotonic()
    arguments = list(sys.argv[1:] if argv is None else argv)
    with interruptible() as signals:
        try:
            code = _run(arguments, began)
            signals.end()
        except BaseException as error:
            signals.close()
            # An interrupt may turn into other errors: a failed import, a file that looks damaged.
            if signals.raised or isinstance(error, KeyboardInterrupt):
                code = interrupted()
            else:
                code = _ended_by(error)
        return code


def _run(arguments: list[str], began: float) -> int:
    # A character that a terminal or file cannot show must not end the command.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.simplefilter("always", Dpa3simWarning)
        warnings.showwarning = _show_warning
        code = _command(arguments, began)
    if sys.stdout is not None:
        sys.stdout.flush()  # while a signal can still end it, if nobody reads
    return code


def _command(arguments: list[str], began: float) -> int:
    if not arguments or arguments[0].startswith("-"):
        _without_command(arguments)
        return DONE
    module, parser, rest = find(arguments)
    args, unknown = parser.parse_known_intermixed_args(rest)
    if unknown:
        parser.error(unknown_flags(parser, unknown))
    args.command_line, args.began = ["dpa3sim", *arguments], began
    return int(module.run(args))


def _ended_by(error: BaseException) -> int:
    """Print what ended a command and return its exit code; raise it if it is a bug."""
    if isinstance(error, BrokenPipeError):  # the reader of our output has gone, such as `head`
        sys.stderr.close()
        return DONE
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else BAD_INPUT
    if isinstance(error, OSError) and not isinstance(error, Dpa3simError):
        error = StorageError.of(error)
    elif memory_ran_out(error):
        error = OutOfMemoryError("this machine does not have enough memory")
    if not isinstance(error, Dpa3simError):
        raise error
    print(f"dpa3sim: error: {error}", file=sys.stderr)
    return error.exit_code


def find(arguments: Sequence[str]) -> tuple[Any, Parser, list[str]]:
    """The module of the command that ``arguments`` begin with, its parser, and what is left."""
    command, *rest = arguments
    if command not in COMMANDS:
        hint = settings.suggestion(command, COMMANDS) or f"; commands are {', '.join(COMMANDS)}"
        top_parser().error(f"unknown command {command!r}" + hint)
    module = module_of(command)
    if rest and not rest[0].startswith("-") and hasattr(module, "SUBCOMMANDS"):
        name, rest = _subcommand(command, module.SUBCOMMANDS, rest)
        module = module_of(command, name)
        command = f"{command} {name}"
    parser = Parser(
        prog=f"dpa3sim {command}",
        description=module.__doc__,
        examples=getattr(module, "EXAMPLES", ""),
    )
    module.configure(parser)
    return module, parser, rest


def module_of(*words: str) -> Any:
    """The module of a command, or of a command and its subcommand, or its replacement."""
    if len(words) > 1 and (within := getattr(module_of(words[0]), "subcommand", None)):
        return within(*words[1:])
    return import_module(f"dpa3sim.cli.commands.{'_'.join(words).replace('-', '_')}")


def top_parser() -> Parser:
    """The parser of the arguments before a command."""
    commands = "".join(
        f"\n\n{title}:\n" + "\n".join(f"  {name:<13}{text}" for name, text in group.items())
        for title, group in GROUPS.items()
    )
    codes = "\n".join(f"  {code:<13}{text}" for code, text in EXIT_CODES.items())
    parser = Parser(
        prog="dpa3sim",
        description="Simulations with the DPA3 potential." + commands,
        usage="dpa3sim [-h] [--version] COMMAND ...",
        epilog=f"exit codes:\n{codes}\n\n'dpa3sim COMMAND --help' lists the options of a command.",
        formatter_class=_raw,
        examples=EXAMPLES,
    )
    parser.add_argument(
        "--version", action="store_true", help="print the versions, the model and the kernels"
    )
    return parser


def _without_command(arguments: list[str]) -> None:
    """Print help or version; anything else is an error."""
    parser = top_parser()
    if not arguments:
        parser.print_help()
        return
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(unknown_flags(parser, unknown))
    if args.version:
        from dpa3sim.cli.version import version

        print(version())


def _subcommand(command: str, known: dict[str, str], arguments: list[str]) -> tuple[str, list[str]]:
    """The subcommand that ``arguments`` begin with, and what is left."""
    name = arguments[0]
    if name not in known:
        hint = settings.suggestion(name, known) or f"; the subcommands are {', '.join(known)}"
        raise InputError(f"{command} has no subcommand {name!r}" + hint)
    return name, arguments[1:]


def _raw(prog: str) -> Any:
    import argparse

    return argparse.RawDescriptionHelpFormatter(prog, width=100)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print our own warnings as one line; warnings of libraries are for developers."""
    if issubclass(category, Dpa3simWarning):
        print(f"dpa3sim: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
