"""Command-line options that follow from settings, and options that all commands share."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from dpa3sim.common import settings as options_of
from dpa3sim.common.errors import BAD_INPUT, InputError
from dpa3sim.common.option_files import read_options

KINDS = {"int": "a whole number", "float": "a number"}


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, with suggestions and our exit code.

    Args:
        examples: command lines at the end of the help, one per line, unchanged.
    """

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", _HelpFormatter)
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_help(self) -> str:
        """The help, with the examples at its end."""
        lines = "".join(f"  {line}\n" for line in self.examples.splitlines())
        return super().format_help() + (f"\nexamples:\n{lines}" if lines else "")

    def error(self, message: str) -> NoReturn:
        """Print one line that names the value and the remedy; the exit code is 2."""
        sys.stderr.write(f"{self.prog}: error: {InputError(self._reworded(message))}\n")
        raise SystemExit(BAD_INPUT)

    def _reworded(self, message: str) -> str:
        """Messages of argparse in our own words."""
        if match := re.fullmatch(r"argument (\S+): invalid (\w+) value: (.*)", message):
            name, kind, value = match.groups()
            return f"option {name} = {value} must be {KINDS.get(kind, kind)}"
        if match := re.fullmatch(r"argument (\S+): invalid choice: '(.*)' \(.*\)", message):
            name, value = match.groups()
            (action,) = (a for a in self._actions if name in (a.dest, *a.option_strings))
            choices = list(map(str, action.choices or ()))
            listed = f"{value!r} is not one of {', '.join(choices)}"
            return f"{name}: {listed}{options_of.suggestion(value, choices)}"
        if match := re.fullmatch(r"the following arguments are required: (.*)", message):
            counts = [a.nargs for a in self._actions if isinstance(a.nargs, int) and a.nargs > 1]
            needed = f"{counts[0]} of {match.group(1)} are needed" if counts else ""
            return (
                f"{needed or match.group(1) + ' is missing'}; '{self.prog} --help' shows the usage"
            )
        return message

    def flags(self) -> list[str]:
        """All long option names, for suggestions."""
        return [s for a in self._actions for s in a.option_strings if s.startswith("--")]


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)


class _Words(argparse.Action):
    """Joins the values of a repeated flag to one text."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        before = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, f"{before} {values}" if before else values)


def add_settings(parser: Parser, title: str, settings: Any) -> None:
    """Add one flag for each option of a settings class; absent flags set no value.

    A flag that another class already has applies to both of them.
    """
    group = parser.add_argument_group(title)
    defaults = settings()
    for name, (kind, info) in options_of.options(settings).items():
        flag = "--" + name.replace("_", "-")
        if flag in parser.flags():
            continue
        default = getattr(defaults, name)
        text = info.help if default is None else f"{info.help} [{_show(default)}]"
        text = text.replace("%", "%%")
        if kind is bool:
            group.add_argument(
                flag,
                dest=name,
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=text,
            )
        else:
            # argparse would interpret a percent sign as a format.
            unit = "PERCENT" if info.unit == "%" else info.unit
            metavar = unit or {int: "N", float: "X"}.get(kind, name.upper())
            group.add_argument(
                flag,
                dest=name,
                action=_Words if info.repeatable else "store",
                type=kind,
                default=argparse.SUPPRESS,
                metavar="|".join(info.choices) if info.choices else metavar,
                help=text,
            )


def add_config(parser: Parser) -> None:
    """Add ``--config`` and ``--set``."""
    group = parser.add_argument_group(
        "settings from elsewhere (flags override --set, which overrides --config)"
    )
    group.add_argument("--config", metavar="FILE", help="YAML file with any of the options above")
    group.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="one option by name, such as --set fmax=1e-3; can be repeated",
    )


def resolve(args: argparse.Namespace, *classes: Any) -> list[Any]:
    """Settings of each class from flags, ``--set`` and ``--config``, in this precedence.

    In place of a class, settings of it can be given: their values count where no other is given.

    Raises:
        InputError: unknown option, unreadable value or file.
    """
    kinds: dict[str, tuple[type, Any]] = {}
    for cls in classes:
        kinds |= options_of.options(cls)
    given = read_options(Path(args.config)) if args.config else {}
    values = {name.replace("-", "_"): value for name, value in given.items()}
    for item in args.set:
        name, separator, text = item.partition("=")
        if not separator:
            raise InputError(f"--set {item}: write it as KEY=VALUE")
        # `relax.fmax` and `fmax` are the same in the command `relax`.
        values[name.strip().replace("-", "_").rpartition(".")[2]] = text.strip()
    for name in kinds:
        if hasattr(args, name):
            values[name] = getattr(args, name)
    for name in values:
        if name not in kinds:
            raise options_of.unknown_option(name, kinds)
    resolved = []
    for cls in classes:
        known = options_of.options(cls)
        mine = {k: v for k, v in values.items() if k in known}
        mine = {k: _typed(cls, k, v) for k, v in mine.items()}
        default = cls() if isinstance(cls, type) else cls
        resolved.append(options_of.replace_checked(default, mine))
    return resolved


def _typed(cls: Any, name: str, value: Any) -> Any:
    """Convert text to the option's type; also ``1e-3``, which YAML reads as text."""
    kind, _ = options_of.options(cls)[name]
    if isinstance(value, str) and kind is not str:
        return options_of.parse(cls, name, value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**63 else value
    return value


def unknown_flags(parser: Parser, unknown: Sequence[str]) -> str:
    """The message for arguments that do not belong to any option."""
    first = unknown[0]
    if not first.startswith("-"):
        return f"unexpected {first!r}; '{parser.prog} --help' shows the usage"
    return f"unknown option {first}" + options_of.suggestion(first.split("=")[0], parser.flags())


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
