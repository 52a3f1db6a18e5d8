"""The result of a reader, and the options for what a file does not say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpa3sim.common.elements import SYMBOLS
from dpa3sim.common.errors import InputError
from dpa3sim.common.settings import option, validate

if TYPE_CHECKING:
    from ase import Atoms


@dataclass(frozen=True)
class Frame:
    """One structure as a reader understood it.

    Attributes:
        atoms: the structure.
        warnings: what the user must know about the interpretation of the file.
    """

    atoms: Atoms
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReadingSettings:
    """What structure files do not say."""

    elements: str | None = option(
        None,
        "elements of numbered atom types, in their order, such as O,H; for LAMMPS files and "
        "POSCARs that do not name them",
    )
    format: str | None = option(
        None,
        "format of the structure files, such as cif, vasp, extxyz, lammps-data, lammps-dump or any "
        "other format name of ASE [from content and name]",
    )

    def __post_init__(self) -> None:
        validate(self)
        self.symbols()

    def symbols(self) -> list[str]:
        """The elements, in order; empty if the option is not set.

        Raises:
            InputError: one of them does not exist.
        """
        words = re.split(r"[\s,;]+", (self.elements or "").strip(" ,;"))
        words = [word for word in words if word]
        for word in words:
            if word not in SYMBOLS and word not in ISOTOPES:
                raise InputError(f"option elements = {self.elements!r}: {word!r} is not an element")
        return words


# Masses in u: CODATA 2018 (the atoms, not the nuclei).
ISOTOPES = {"D": 2.01410177811, "T": 3.01604928199}
"""Isotopes with symbols of their own; a potential treats both as hydrogen."""


def chosen(symbols: Sequence[str], count: int, what: str) -> list[str]:
    """The elements that the user specified for ``count`` types.

    Raises:
        InputError: there are too few, or too many.
    """
    if len(symbols) != count:
        raise InputError(
            f"--elements {','.join(symbols)} names {len(symbols)} elements, but {what} has {count} "
            "types of atoms"
        )
    return list(symbols)
