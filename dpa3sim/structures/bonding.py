"""Whether a structure is made of pieces that no bonds hold together: layers, chains, molecules."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from dpa3sim.structures.geometry import check_crowd, complete_cell

if TYPE_CHECKING:
    from ase import Atoms

# Atoms are bonded within this factor of the sum of their covalent radii. Zinc along its long axis
# has 1.19, antimony between its layers 1.21; arsenic has 1.31 and Bi2Te3 1.32.
BOND = 1.25
# Pieces touch if two of their atoms are closer than this, Å.
CONTACT = 5.0
WORDS = ("molecules", "chains", "layers")


def unbonded_pieces(atoms: Atoms) -> str | None:
    """``"layers"``, ``"chains"`` or ``"molecules"`` if a structure consists of them, else None.

    It does if its atoms form pieces that touch each other without a bond, and none of the pieces
    extends in all three directions. The largest dimension of a piece decides. A single molecule
    or slab in vacuum is none.
    """
    i, j, lengths, images = _neighbours(atoms)
    bonded = lengths < BOND * _radii(atoms.numbers[i], atoms.numbers[j])
    pieces, offsets = _spanned(len(atoms), i[bonded], j[bonded], images[bonded])
    # By how many cells the image of j is away from where the bonds of its piece lead to.
    steps = offsets[i] + images - offsets[j]
    same = pieces[i] == pieces[j]
    extent = _by_piece(pieces[i], steps, bonded)
    ranks = {piece: _rank(extent[piece]) for piece in extent}
    dimensions = max(ranks.values(), default=0)
    if dimensions == 3:
        return None
    touching = not same.all()
    for piece, own in _by_piece(pieces[i], steps, same & ~bonded).items():
        known = extent.get(piece, own[:0])
        touching = touching or any(
            _rank(np.vstack([known, step[None]])) > ranks.get(piece, 0) for step in own
        )
    return WORDS[dimensions] if touching else None


def _by_piece(pieces: np.ndarray, steps: np.ndarray, chosen: np.ndarray) -> dict[int, np.ndarray]:
    """The different steps of each piece that has any but zero, ``(n, 3)`` each."""
    moved = chosen & steps.any(axis=1)
    rows = np.unique(np.column_stack([pieces[moved], steps[moved]]), axis=0)
    return {int(p): rows[rows[:, 0] == p, 1:] for p in np.unique(rows[:, 0])}


def _rank(vectors: np.ndarray) -> int:
    return int(np.linalg.matrix_rank(vectors)) if len(vectors) else 0


def _radii(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Sums of covalent radii, Å."""
    from ase.data import covalent_radii

    last = len(covalent_radii) - 1
    sums: np.ndarray = covalent_radii[np.minimum(first, last)]
    return sums + covalent_radii[np.minimum(second, last)]


def _neighbours(atoms: Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ordered pairs that touch or are bonded: i, j, distance, and the cell of j, ``(n, 3)``."""
    from matscipy.neighbours import neighbour_list

    check_crowd(atoms.positions)
    radius = max(CONTACT, BOND * float(_radii(atoms.numbers, atoms.numbers).max()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # for cells that are much larger
        i, j, lengths, images = neighbour_list(
            "ijdS",
            positions=np.asarray(atoms.positions, dtype=float),
            cell=complete_cell(np.asarray(atoms.cell[:], dtype=float), np.asarray(atoms.pbc)),
            pbc=np.asarray(atoms.pbc),
            cutoff=radius,
        )
    return i, j, lengths, images


def _spanned(
    n_atoms: int, i: np.ndarray, j: np.ndarray, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The piece of each atom, ``(n,)``, and the cell where the bonds of its piece put it, (n, 3).

    Args:
        n_atoms: n. i, j, images: of the bonds, in both directions.
    """
    pieces = np.full(n_atoms, -1)
    offsets = np.zeros((n_atoms, 3), dtype=int)
    order = np.argsort(i, kind="stable")
    starts = np.searchsorted(i[order], np.arange(n_atoms + 1))
    count = 0
    for first in range(n_atoms):
        if pieces[first] >= 0:
            continue
        pieces[first], waiting = count, [first]
        while waiting:
            atom = waiting.pop()
            for bond in order[starts[atom] : starts[atom + 1]]:
                other = j[bond]
                if pieces[other] < 0:
                    pieces[other] = count
                    offsets[other] = offsets[atom] + images[bond]
                    waiting.append(int(other))
        count += 1
    return pieces, offsets
