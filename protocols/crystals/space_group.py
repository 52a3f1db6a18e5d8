"""Structures keep their space group: ASE's constraint with one search for it instead of five.

Making ASE's :class:`~ase.constraints.FixSymmetry` takes 40 ms for two atoms, as long as four
evaluations of the model: each of its calls of spglib takes 8 ms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from ase.constraints import FixSymmetry

from dpa3sim.common.errors import InputError

from .cells import symmetrized, symmetry

if TYPE_CHECKING:
    from ase import Atoms

# A structure is exactly symmetric if its symmetry moves cell and sites by less, Å.
EXACT = 1e-7


class KeepSpaceGroup(FixSymmetry):
    """Symmetrizes forces, stress and steps by the space group of a structure.

    Unlike the base class it does not change the structure; :meth:`exact` returns a refined one.
    """

    def __init__(self, atoms: Atoms, symprec: float) -> None:
        """Find the space group of a crystal.

        Args:
            atoms: periodic along three axes.
            symprec: distance within which sites are equivalent, Å.

        Raises:
            InputError: spglib finds none.
        """
        self.atoms, self.symprec, self.verbose = atoms.copy(), symprec, False
        self.do_adjust_positions = self.do_adjust_cell = True
        dataset = symmetry(atoms, symprec)
        if dataset is None:
            raise InputError(
                f"spglib finds no symmetry within symprec = {symprec:g} Å; change symprec"
            )
        self.rotations, self.translations = dataset.rotations, dataset.translations
        cell, scaled = atoms.cell[:], atoms.get_scaled_positions()
        self.symm_map, farthest = [], 0.0
        for rotation, translation in zip(self.rotations, self.translations, strict=True):
            apart = scaled - (scaled @ rotation.T + translation)[:, None]
            distances = np.linalg.norm((apart - np.rint(apart)) @ cell, axis=2)
            nearest = distances.argmin(axis=1)
            self.symm_map.append(nearest)
            farthest = max(farthest, float(distances.min(axis=1).max()))
        metric = cell @ cell.T
        turned = self.rotations.transpose(0, 2, 1) @ metric @ self.rotations
        stretched = np.abs(turned - metric).max() / np.sqrt(np.trace(metric))
        self._is_exact = max(farthest, float(stretched)) < EXACT

    def exact(self) -> Atoms:
        """The structure made exactly symmetric.

        Raises:
            InputError: the symmetry found depends on details below ``symprec``.
        """
        return self.atoms if self._is_exact else symmetrized(self.atoms, self.symprec)
