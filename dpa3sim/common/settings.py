"""Options of protocols: one definition for Python, command line, config files and documentation.

A protocol's ``Settings`` is a frozen dataclass whose fields are made with :func:`option`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import shlex
import types
import typing
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dpa3sim.common.errors import InputError

UNIT_ENDINGS = {
    "GPa": "_GPa",
    "eV/Å": "_eV_per_A",
    "Å": "_A",
    "µm": "_um",
    "K": "_K",
    "%": "_percent",
    "fs": "_fs",
    "h": "_h",
}


@dataclass(frozen=True)
class OptionInfo:
    """The properties of an option besides its name, type and default.

    Attributes:
        help: one sentence.
        unit: unit of the value, if it has one.
        choices: the allowed values, if there are only a few.
        minimum: smallest allowed number.
        repeatable: whether its flag can be repeated, for a text of several words.
    """

    help: str
    unit: str | None = None
    choices: tuple[str, ...] | None = None
    minimum: float | None = None
    repeatable: bool = False


def option(
    default: Any,
    help: str,
    *,
    unit: str | None = None,
    choices: Iterable[str] | None = None,
    minimum: float | None = None,
    repeatable: bool = False,
) -> Any:
    """A dataclass field with a description and checks."""
    info = OptionInfo(help, unit, tuple(choices) if choices else None, minimum, repeatable)
    return dataclasses.field(default=default, metadata={"option": info})


def options(settings: Any) -> dict[str, tuple[type, OptionInfo]]:
    """Type and description of every option of a Settings class (or instance), by name."""
    cls = settings if isinstance(settings, type) else type(settings)
    hints = typing.get_type_hints(cls)
    return {
        f.name: (_plain_type(hints[f.name]), f.metadata["option"])
        for f in dataclasses.fields(cls)
        if "option" in f.metadata
    }


def validate(settings: Any) -> None:
    """Check every option of a frozen dataclass from its ``__post_init__``.

    Choices are matched in any case and get their canonical spelling. A number, or a list of words
    and numbers, becomes the text that an option takes: config files may say ``batch_size: 4``.

    Raises:
        InputError: a value is not allowed.
    """
    for name, (kind, info) in options(settings).items():
        value = getattr(settings, name)
        if value is None:
            continue
        if kind is str and not isinstance(value, str):
            value = _as_text(value)
            object.__setattr__(settings, name, value)
        if info.choices and isinstance(value, str):
            spelling = {choice.lower(): choice for choice in info.choices}
            value = spelling.get(value.lower(), value)
            object.__setattr__(settings, name, value)
        if isinstance(value, bool) != (kind is bool) or not isinstance(
            value, (int, float) if kind is float else kind
        ):
            raise InputError(f"option {name} = {value!r} must be {_article(kind)}")
        if info.choices and value not in info.choices:
            raise InputError(
                f"option {name} = {value!r} is not one of {', '.join(info.choices)}"
                + suggestion(str(value), info.choices)
            )
        if isinstance(value, str) and any(_is_control(character) for character in value):
            raise InputError(f"option {name} = {value!r} is not printable text")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise InputError(f"option {name} has a number of more than 64 bits")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"option {name} = {value} must be finite")
        if info.minimum is not None and isinstance(value, (int, float)) and value < info.minimum:
            raise InputError(f"option {name} = {value!r} must be at least {info.minimum:g}")


def _as_text(value: Any) -> Any:
    """The text of a number or of a list of words and numbers; other values are as they are."""
    words = value if isinstance(value, (list, tuple)) else [value]
    if words and all(isinstance(x, (str, int)) and not isinstance(x, bool) for x in words):
        return shlex.join(map(str, words))
    return value


def _is_control(character: str) -> bool:
    """Whether it is a control character, which names and readable files must not contain."""
    kind = unicodedata.category(character)
    return kind in ("Cc", "Cs", "Zl", "Zp") and character not in "\t\n"


def to_dict(settings: Any) -> dict[str, Any]:
    """The options as JSON-ready values; names of quantities with a unit end in it."""
    return {
        name + UNIT_ENDINGS.get(info.unit or "", ""): getattr(settings, name)
        for name, (_, info) in options(settings).items()
    }


def parse(settings: type, name: str, text: str) -> Any:
    """The value of option ``name`` from text, as in ``--set name=text``.

    Raises:
        InputError: the option is unknown (the closest known one is named), or the value is invalid.
    """
    known = options(settings)
    if name not in known:
        raise unknown_option(name, known)
    kind, _ = known[name]
    if kind is bool:
        value = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() in value:
            return value[text.lower()]
    else:
        try:
            return kind(text)
        except ValueError:
            pass
    raise InputError(f"option {name} = {text!r} must be {_article(kind)}")


def replace_checked(settings: Any, values: Mapping[str, Any]) -> Any:
    """A copy of ``settings`` with ``values``; an unknown name raises InputError."""
    known = options(settings)
    for name in values:
        if name not in known:
            raise unknown_option(name, known)
    return dataclasses.replace(settings, **values)


def unknown_option(name: str, known: Iterable[str]) -> InputError:
    """The error for an option that does not exist."""
    return InputError(f"unknown option {name!r}" + suggestion(name, known))


def suggestion(name: str, known: Iterable[str]) -> str:
    """``"; did you mean ...?"`` if a known name is close, else an empty text."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _plain_type(hint: Any) -> type:
    """The plain type: ``float`` for ``float | None``, ``str`` for ``Literal[...]``."""
    if typing.get_origin(hint) is typing.Literal:
        return str
    if isinstance(hint, types.UnionType):
        return _plain_type(next(t for t in typing.get_args(hint) if t is not type(None)))
    return typing.cast(type, hint)


def _article(kind: type) -> str:
    return {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
    }.get(kind, kind.__name__)
