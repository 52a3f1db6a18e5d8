"""Files of frames: extended XYZ, and inputs for calculations elsewhere."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dpa3sim.common.errors import InputError
from dpa3sim.common.files import atomic_write
from dpa3sim.sample.frames import kind_of

if TYPE_CHECKING:
    from ase import Atoms

FRAMES = "frames.extxyz"
# What is not periodic along an axis gets so much vacuum on each side, Å.
VACUUM = 8.0
# Inputs of Quantum ESPRESSO: distance of k-points, in 2 pi/Å; forces and stress are asked for.
_KSPACING = 0.03
_CONTROL = {"calculation": "scf", "tprnfor": True, "tstress": True}


def to_extxyz(frames: Sequence[Atoms]) -> str:
    """The frames with their labels as one extended XYZ text."""
    from ase.io import write

    text = io.StringIO()
    write(text, list(frames), format="extxyz")
    return text.getvalue()


def from_extxyz(path: Path) -> list[Atoms]:
    """The frames of a file that :func:`to_extxyz` made.

    Raises:
        InputError: it is damaged.
    """
    from ase.io import read

    try:
        found = read(path, index=":", format="extxyz")
    except Exception as error:  # readers raise all kinds of errors
        raise InputError(
            f"{path}: damaged ({type(error).__name__}); --force starts again"
        ) from None
    return list(found)


def in_box(atoms: Atoms) -> Atoms:
    """The structure in a cell that plane waves can fill: with vacuum where it is not periodic."""
    boxed = atoms.copy()
    boxed.calc = None
    if not atoms.pbc.all():
        boxed.center(vacuum=VACUUM, axis=[k for k in range(3) if not atoms.pbc[k]])
        boxed.pbc = True
    return boxed


def _k_points(atoms: Atoms) -> tuple[int, ...]:
    """Numbers of k-points along the axes; one where the structure is not periodic."""
    spacings = np.linalg.norm(in_box(atoms).cell.reciprocal(), axis=1) / _KSPACING
    periodic = atoms.pbc.tolist()
    return tuple(int(np.ceil(n)) if p else 1 for n, p in zip(spacings, periodic, strict=True))


def export(frames: Sequence[Atoms], folder: Path, formats: Sequence[str]) -> None:
    """Write ``FORMAT/NUMBER-KIND/``, a folder for each frame; extended XYZ is not written here.

    Args:
        frames: in the order in which they were chosen. folder: where. formats: ``"vasp"``: a POSCAR
            with the species grouped; ``"espresso"``: an input with pseudopotentials ``X.UPF``,
            to be edited.
    """
    from ase.io import write

    for number, atoms in enumerate(frames):
        name, boxed = f"{number:05d}-{kind_of(atoms)}", in_box(atoms)
        symbols = sorted(set(boxed.get_chemical_symbols()))
        writers = {
            "vasp": ("POSCAR", partial(write, format="vasp", direct=True, sort=True)),
            "espresso": (
                "pw.in",
                partial(
                    write,
                    format="espresso-in",
                    input_data={"control": _CONTROL},
                    pseudopotentials={symbol: f"{symbol}.UPF" for symbol in symbols},
                    kpts=_k_points(atoms),
                ),
            ),
        }
        for kind in formats:
            if kind in writers:
                file, writer = writers[kind]
                text = io.StringIO()
                writer(text, boxed)
                place = folder / kind / name
                place.mkdir(parents=True, exist_ok=True)
                atomic_write(place / file, text.getvalue())
