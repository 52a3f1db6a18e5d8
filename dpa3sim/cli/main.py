"""Entry point of the command ``dpa3sim``."""

from __future__ import annotations

import io
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, TextIO

import dpa3sim
from dpa3sim import settings
from dpa3sim.cli.options import Parser, unknown_flags
from dpa3sim.errors import (
    INTERRUPTED,
    Dpa3simError,
    Dpa3simWarning,
    InputError,
    OutOfMemoryError,
    StorageError,
    memory_ran_out,
)

# Modules are imported when their command runs, so that help and errors come at once.
COMMANDS = {
    "relax": "relax the atoms and the cell of structures",
    "eos": "equation of state: energy against volume, bulk modulus",
    "elastic": "elastic constants, with relaxed and with clamped ions",
    "md": "molecular dynamics",
    "neb": "minimum energy path and barrier between two structures",
    "vacancy": "formation energies of vacancies",
    "surface": "energies of surfaces",
    "phonon": "phonon bands, densities of states, thermal properties, stability",
    "gruneisen": "mode Grüneisen parameters",
    "qha": "thermal expansion, bulk modulus and Cp, quasi-harmonic",
    "pimd": "path integral molecular dynamics, with quantum nuclei",
    "ipi": "forces for i-PI: path integrals and its other methods",
    "model": "list, fetch and inspect models",
    "convert": "convert a checkpoint to dpa3sim's own format",
    "bench": "time the model on your own structures",
    "doctor": "check this installation and its speed",
}
_EPILOG = """\
examples:
  dpa3sim relax POSCAR --cell full          relax with the embedded model
  dpa3sim relax a.cif b.cif --model my.pth  several structures, your checkpoint
  dpa3sim phonon POSCAR                     phonons of the relaxed crystal
  dpa3sim model list                        the public DPA3 models

exit codes: 0 done, 2 bad usage or input, 3 not converged, 4 unphysical result,
5 some of many failed, 6 connection lost (i-PI), 130 interrupted (the state is saved)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings():
        warnings.simplefilter("always", Dpa3simWarning)
        warnings.showwarning = _show_warning
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    # What cannot be written, to a terminal or file with few letters, is no reason to stop.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _interrupt)
        command, rest = _split(arguments)
        if command is None:
            return 0
        module: Any = import_module(f"dpa3sim.cli.{command}")
        if rest and not rest[0].startswith("-") and hasattr(module, "SUBCOMMANDS"):
            command, rest = _subcommand(command, module.SUBCOMMANDS, rest)
            module = import_module(f"dpa3sim.cli.{command.replace(' ', '_').replace('-', '_')}")
        parser = Parser(prog=f"dpa3sim {command}", description=module.__doc__)
        module.configure(parser)
        args, unknown = parser.parse_known_intermixed_args(rest)
        if unknown:
            parser.error(unknown_flags(parser, unknown))
        args.command_line = ["dpa3sim", *arguments]
        return int(module.run(args))
    except Dpa3simError as error:
        return _fail(error)
    except KeyboardInterrupt:
        print("dpa3sim: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as in `dpa3sim ... | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        return _fail(StorageError.of(error))
    except (MemoryError, RuntimeError) as error:
        if not memory_ran_out(error):
            raise
        return _fail(OutOfMemoryError("the memory of this machine is not enough"))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2


def _fail(error: Dpa3simError) -> int:
    print(f"dpa3sim: error: {error}", file=sys.stderr)
    return error.exit_code


def _split(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The command and its arguments; None after printing help or version."""
    parser = Parser(
        prog="dpa3sim",
        description="Simulations with the DPA3 potential.",
        usage="dpa3sim [-h] [--version] COMMAND ...",
        epilog="commands:\n"
        + "".join(f"  {name:<10}{text}\n" for name, text in COMMANDS.items())
        + "\nRun 'dpa3sim COMMAND --help' for its options.\n\n"
        + _EPILOG,
        formatter_class=_raw,
    )
    parser.add_argument("--version", action="version", version=f"dpa3sim {dpa3sim.__version__}")
    if not arguments:
        parser.print_help()
        return None, []
    name = arguments[0]
    if name.startswith("-"):
        _, unknown = parser.parse_known_args(arguments)
        parser.error(unknown_flags(parser, unknown or [name]))
    if name not in COMMANDS:
        parser.error(
            f"unknown command {name!r}"
            + (settings.suggestion(name, COMMANDS) or f"; commands are {', '.join(COMMANDS)}")
        )
    return name, arguments[1:]


def _subcommand(command: str, known: dict[str, str], arguments: list[str]) -> tuple[str, list[str]]:
    """``"COMMAND SUBCOMMAND"``, whose module is ``COMMAND_SUBCOMMAND``, and its arguments."""
    name = arguments[0]
    if name not in known:
        hint = settings.suggestion(name, known) or f"; there are {', '.join(known)}"
        raise InputError(f"{command} has no subcommand {name!r}" + hint)
    return f"{command} {name}", arguments[1:]


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
    """Our own warnings are for the user, in a line; those of libraries are for developers."""
    if issubclass(category, Dpa3simWarning):
        print(f"dpa3sim: warning: {message}", file=sys.stderr)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
