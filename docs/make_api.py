"""Write docs/api.md from the docstrings, and docs/options.md from the settings of the commands.

    python docs/make_api.py

The tests fail while the files are not what this writes.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from dpa3sim.cli.main import COMMANDS, find
from dpa3sim.common import settings as options_of
from dpa3sim.protocols import PUBLIC
from dpa3sim.protocols.base import Result
from dpa3sim.protocols.crystals.prepare import PropertyResult
from dpa3sim.protocols.harmonics.properties import HarmonicResult

DOCS = Path(__file__).resolve().parent
GENERATED = "<!-- Written by docs/make_api.py; change docstrings and settings instead. -->\n"
# What is public: names of each module; None for all that its protocol defines.
API: dict[str, tuple[str, ...]] = {
    "dpa3sim": ("DPA3Calculator", "Potential", "Evaluation", "Engine", "load_model"),
    "dpa3sim.errors": (
        "Dpa3simError",
        "InputError",
        "CheckpointError",
        "DownloadError",
        "NotConvergedError",
        "NonFiniteError",
        "UnphysicalError",
        "OutOfMemoryError",
        "EngineError",
        "RefusedError",
        "ProtocolError",
        "ConnectionLostError",
        "Dpa3simWarning",
    ),
    "dpa3sim.reading": ("Source", "read_structure", "read_structures"),
    "dpa3sim.ipi": ("serve",),
    "dpa3sim.sample": ("generate", "choose", "label"),
    "dpa3sim.distill": ("DistillOptions", "Errors"),
    "dpa3sim.run.distilling": ("DistillRun",),
    "dpa3sim.run.validating": ("ValidateRun",),
}


def api() -> str:
    """The content of docs/api.md."""
    parts = [
        GENERATED,
        "# Python API\n",
        "Arrays are numpy arrays. Lengths are in Å, energies in eV and stresses in eV/Å^3 as\n"
        "in ASE, unless the name of a value ends in its unit. [Architecture](architecture.md)\n"
        "describes how the parts fit together.\n",
    ]
    for module, names in API.items():
        parts.append(f"## `{module}`\n")
        for name in names:
            parts += _object(f"{module}.{name}", getattr(import_module(module), name))
    parts.append("## Protocols\n")
    parts.append(
        "Each is a module of `dpa3sim.protocols` with `Settings` (the [options](options.md) of\n"
        "its command), `Result` (`to_dict()` is what `result.json` holds), `run`, `check`, which\n"
        "raises an error for an unsuitable structure without computing anything, and `stages`,\n"
        "which lists what `run` is going to evaluate. All results have the attributes of the\n"
        "first class below, properties of crystals also those of the second, and `phonon`,\n"
        "`gruneisen` and `qha` also those of the third.\n"
    )
    for kind in (Result, PropertyResult, HarmonicResult):
        parts += _object(kind.__name__, kind)
    for name in PUBLIC:
        module = import_module(f"dpa3sim.protocols.{name}")
        parts.append(f"### `dpa3sim.protocols.{name}`\n")
        parts.append(_text(module.__doc__))
        for member in ("run", "check"):
            parts += _object(f"{name}.{member}", getattr(module, member))
        parts += _object(f"{name}.Result", module.Result)
    return "\n".join(parts)


def _object(name: str, thing: Any) -> Iterator[str]:
    """The paragraphs about a class or function."""
    if inspect.isclass(thing):
        yield f"#### `{name}`\n"
        if not issubclass(thing, BaseException) and not dataclasses.is_dataclass(thing):
            yield _signature(name, thing)
        yield _text(thing.__doc__)
        if issubclass(thing, BaseException):
            if hasattr(thing, "exit_code"):
                yield f"Exit code {thing.exit_code}.\n"
            return
        for member, value in vars(thing).items():
            if member.startswith("_"):
                continue
            if isinstance(value, property):
                yield f"- `{member}`: {_flat(value.__doc__)}"
            elif inspect.isfunction(value) or isinstance(value, (classmethod, staticmethod)):
                function = getattr(thing, member)
                yield f"- `{member}{_short_signature(function)}`: {_flat(function.__doc__)}"
        yield ""
    else:
        yield f"#### `{name}`\n"
        yield _signature(name, thing)
        yield _text(thing.__doc__)


def _signature(name: str, thing: Any) -> str:
    shown = f"{name.rpartition('.')[2]}{_short_signature(thing)}"
    if len(shown) > 100:
        inside = shown[shown.index("(") + 1 : shown.rindex(")")]
        arguments = re.split(r", (?=[\w*]+(?:[:=,]|$))", inside)
        shown = shown.replace(inside, "\n    " + ",\n    ".join(arguments) + ",\n")
    return f"```text\n{shown}\n```\n"


def _short_signature(thing: Any) -> str:
    """Without ``self``, and without the names of modules in annotations."""
    signature = inspect.signature(thing)
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    text = str(signature.replace(parameters=parameters))
    text = re.sub(r"<function .*? at 0x\w+>", "...", text)  # a default
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", re.sub(r"\b(?:\w+\.)+(?=[A-Z])", "", text))


def _text(docstring: str | None) -> str:
    """A docstring as Markdown: sections of arguments become lists."""
    lines = []
    section = False
    for line in inspect.cleandoc(docstring or "").splitlines():
        if re.fullmatch(r"(Args|Attributes|Returns|Raises|Yields|Example):", line):
            section = line in ("Args:", "Attributes:", "Raises:")
            lines += [f"**{line[:-1]}**", ""]
        elif section and (entry := re.match(r"    (\w[\w, ]*): (.*)", line)):
            lines.append(f"- `{entry.group(1)}`: {entry.group(2)}")
        else:
            lines.append(re.sub("^    +", "  " if section else "", line))
    return _markdown("\n".join(lines)) + "\n"


def _flat(docstring: str | None) -> str:
    return _markdown(" ".join(inspect.cleandoc(docstring or "").split("\n\n")[0].split()))


def _markdown(text: str) -> str:
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text)
    text = re.sub(r"\bdocs/([\w-]+\.md)#([\w-]+)", _link, text)
    return text.replace("``", "`")


def _link(citation: re.Match[str]) -> str:
    """What cites a section of these pages, as a link between them."""
    page, anchor = citation.groups()
    return f"[{anchor.replace('-', ' ')}]({page}#{anchor})"


def options() -> str:
    """The content of docs/options.md."""
    parts = [
        GENERATED,
        "# Options of the commands\n",
        "Options are the same on the command line, in a config file, and in the `Settings` of\n"
        "Python, where names have underscores instead of hyphens. Every command that computes\n"
        "also has the [options of the model](#the-model), and every command that reads\n"
        "structures has those of [reading](#structure-files).\n",
    ]
    from dpa3sim.potential.settings import ModelSettings
    from dpa3sim.structures.given import ReadingSettings

    for command in COMMANDS:
        module, _, _ = find([command])
        kinds = [getattr(module, "Settings", None), getattr(module, "COMMAND", None)]
        kind = kinds[0] or (kinds[1] and kinds[1].job.protocol.Settings)
        if kind is not None:
            parts += [f"## `dpa3sim {command}`\n", _table(kind)]
        for title, kind in getattr(module, "SETTINGS", {}).items():
            parts += [f"## `dpa3sim {command}`: {title}\n", _table(kind)]
        for name in getattr(module, "SUBCOMMANDS", {}):
            sub, _, _ = find([command, name])
            if hasattr(sub, "InputSettings"):
                parts += [f"## `dpa3sim {command} {name}`\n", _table(sub.InputSettings)]
    parts += ["## The model\n", _table(ModelSettings)]
    parts += ["## Structure files\n", _table(ReadingSettings)]
    return "\n".join(parts)


def _table(kind: Any) -> str:
    rows = ["| option | default | unit | |", "|---|---|---|---|"]
    defaults = kind()
    for name, (plain, info) in options_of.options(kind).items():
        flag = f"`--{name.replace('_', '-')}`"
        value = getattr(defaults, name)
        if plain is bool:
            flag += f", `--no-{name.replace('_', '-')}`"
            value = "yes" if value else "no"
        elif isinstance(value, float):
            value = f"{value:g}"
        text = info.help.replace("|", "\\|")
        if info.choices:
            text += f" ({', '.join(info.choices)})"
        shown = "" if value is None else f"`{value}`"
        rows.append(f"| {flag} | {shown} | {info.unit or ''} | {text} |")
    return "\n".join(rows) + "\n"


PAGES = {"api.md": api, "options.md": options}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
