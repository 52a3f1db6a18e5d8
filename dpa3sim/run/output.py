"""Structures and tables in a run directory."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dpa3sim.common.files import atomic_write
from dpa3sim.structures.isotopes import as_elements, with_symbols

if TYPE_CHECKING:
    from ase import Atoms


def write_structure(folder: Path, name: str, atoms: Atoms) -> None:
    """Write ``name.extxyz``, with the results of its calculator, and ``name.vasp``.

    The latter has its species grouped; a molecule gets a box, which the format demands.
    """
    from ase.io import write

    write(folder / f"{name}.extxyz", atoms, format="extxyz")
    atoms = with_symbols(atoms).copy()
    if atoms.cell.rank < 3:
        atoms.center(vacuum=10.0, axis=[i for i in range(3) if not atoms.pbc[i]])
    if abs(atoms.cell.volume) > 0.0:
        write_poscar = partial(write, format="vasp", direct=True, sort=True)
        with as_elements():
            try:
                write_poscar(folder / f"{name}.vasp", atoms)
            except RuntimeError:  # constraints in a direction that the format cannot hold
                atoms.set_constraint()
                write_poscar(folder / f"{name}.vasp", atoms)


def write_table(path: Path, table: Mapping[str, Sequence[float]]) -> None:
    """Write a csv file with a column for each entry."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(
        [f"{value:.10g}" for value in row] for row in zip(*table.values(), strict=True)
    )
    atomic_write(path, text.getvalue())
