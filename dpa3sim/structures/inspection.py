"""A structure in one line for the user to check, and what is suspicious about it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dpa3sim.common.errors import InputError
from dpa3sim.structures.geometry import check_crowd, check_geometry, complete_cell
from dpa3sim.structures.isotopes import as_elements, with_symbols

if TYPE_CHECKING:
    from ase import Atoms

# Nearest neighbours are searched within these distances, one after the other, Å.
SEARCH = (3.0, 6.0, 12.0)
# Atoms closer than this fraction of the sum of their covalent radii overlap.
OVERLAP = 0.5
# Volumes per atom of solids are within this factor of the estimate below.
UNUSUAL = 3.0
# Planes of atoms further apart than this, Å, have vacuum between them; layers of crystals and of
# molecules are at most 5 Å apart.
VACUUM = 6.0


@dataclass(frozen=True)
class Inspection:
    """What is known about a structure before anything is computed.

    Attributes:
        line: formula, number of atoms, periodicity, volume per atom, shortest distance.
        warnings: what is suspicious.
    """

    line: str
    warnings: tuple[str, ...]


def inspect(atoms: Atoms) -> Inspection:
    """Describe a structure and look for signs of a misread file."""
    periodic = "".join(axis for axis, p in zip("abc", atoms.pbc, strict=True) if p)
    with as_elements():
        formula = with_symbols(atoms).get_chemical_formula()
    parts = [formula, f"{len(atoms)} atoms" if len(atoms) > 1 else "1 atom"]
    parts.append(f"periodic along {periodic}" if periodic else "molecule")
    try:
        check_geometry(atoms.positions, np.asarray(atoms.cell[:]), np.asarray(atoms.pbc))
        if len(periodic) == 3:
            parts.append(f"{atoms.get_volume() / len(atoms):.2f} Å^3/atom")
        shortest, found = _distances(atoms)
    except InputError:  # the reason is reported when the structure is computed
        return Inspection(", ".join(parts), ())
    parts += shortest
    return Inspection(", ".join(parts), (*found, *_density_and_vacuum(atoms)))


def describe(atoms: Atoms) -> str:
    """The structure in one line for the user to check."""
    return inspect(atoms).line


def _distances(atoms: Atoms) -> tuple[list[str], list[str]]:
    """The shortest distance with its pair, and a warning if atoms overlap."""
    from ase.data import chemical_symbols, covalent_radii

    for radius in SEARCH:
        i, j, lengths = pairs(atoms.positions, atoms.cell[:], atoms.pbc, radius)
        if len(i):
            break
    else:
        return [], []
    known = np.minimum(atoms.numbers, len(covalent_radii) - 1)
    sums = covalent_radii[known[i]] + covalent_radii[known[j]]

    def pair(k: int) -> str:
        first, second = sorted((int(atoms.numbers[i[k]]), int(atoms.numbers[j[k]])))
        return f"{chemical_symbols[first]}-{chemical_symbols[second]}"

    # Equal distances give the same pair, whatever their rounding errors.
    nearest = int(np.argmin(lengths.round(6)))
    worst = int(np.argmin(lengths / sums))
    found = []
    if lengths[worst] < OVERLAP * sums[worst]:
        count = int(np.count_nonzero(lengths < OVERLAP * sums)) // 2
        others = f" ({count} such pairs)" if count > 1 else ""
        found.append(
            f"atoms {min(i[worst], j[worst])} and {max(i[worst], j[worst])} ({pair(worst)}) are "
            f"{lengths[worst]:.3f} Å apart, less than half of the sum of their covalent radii "
            f"({sums[worst]:.2f} Å){others}: the file may have been misread, or lists atoms twice"
        )
    return [f"shortest distance {lengths[nearest]:.2f} Å ({pair(nearest)})"], found


def pairs(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All ordered pairs of atoms within a radius, and their distances.

    Args:
        positions: ``(n, 3)``, Å. cell: ``(3, 3)``, rows, Å. pbc: ``(3,)``. radius: Å.

    Returns:
        i, j, distance: ``(n_pairs,)`` each, Å.

    Raises:
        InputError: more atoms in one place than in any material.
    """
    from matscipy.neighbours import neighbour_list

    check_crowd(positions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # for cells that are much larger
        i, j, distances = neighbour_list(
            "ijd",
            positions=np.asarray(positions, dtype=float),
            cell=complete_cell(np.asarray(cell, dtype=float), np.asarray(pbc)),
            pbc=np.asarray(pbc),
            cutoff=radius,
        )
    return i, j, distances


def _density_and_vacuum(atoms: Atoms) -> list[str]:
    """Warnings about gaps along periodic axes, and about an unusual volume per atom."""
    gaps = _gaps(atoms)
    if gaps:
        where = " and ".join(f"{gap:.1f} Å along {axis}" for axis, gap in gaps)
        return [
            f"the cell has a vacuum of {where} and is periodic there: the structure repeats beyond "
            "it, and the stress across the vacuum is meaningless"
        ]
    if not atoms.pbc.all():
        return []
    volume, usual = atoms.get_volume(), float(_usual_volumes(atoms.numbers).sum())
    if usual / UNUSUAL <= volume <= usual * UNUSUAL:
        return []
    factor, word = (usual / volume, "denser") if volume < usual else (volume / usual, "less dense")
    return [
        f"{volume / len(atoms):.3g} Å^3 per atom is {factor:.1f} times {word} than usual for these "
        "elements: is the cell in Å, and are all atoms there?"
    ]


def _usual_volumes(numbers: np.ndarray) -> np.ndarray:
    """Volume of an atom of each element in a solid, Å^3, within a factor of 2.6.

    This is a fit to crystals of the elements (Cs has 0.42 of it, W 1.8, diamond 2.0) and compounds.
    """
    from ase.data import covalent_radii

    radii = covalent_radii[np.minimum(numbers, len(covalent_radii) - 1)]
    return np.asarray(np.maximum(16.0 * radii**1.2, 8.0))


def _gaps(atoms: Atoms) -> list[tuple[str, float]]:
    """The widest gap without atoms along each periodic axis, Å, if it is a vacuum."""
    cell = complete_cell(np.asarray(atoms.cell[:]), np.asarray(atoms.pbc))
    inverse = np.linalg.inv(cell)
    found = []
    for k in np.flatnonzero(atoms.pbc):
        height = 1.0 / np.linalg.norm(inverse[:, k])
        places = np.sort((atoms.positions @ inverse[:, k]) % 1.0)
        gap = float(np.diff(np.append(places, places[0] + 1.0)).max() * height)
        if gap > VACUUM:
            found.append(("abc"[k], gap))
    return found
