"""Third-order force constants: displaced supercells in, a phono3py object out.

Systematic displacements are phono3py's finite differences. Random ones are fitted by symfc with all
symmetry built in, and need far fewer supercells (Seko and Togo, Phys. Rev. B 110, 214302 (2024)).
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.errors import InputError, UnphysicalError

from ..crystals.isotopes import STEP, species
from ..harmonics.force_constants import SYMMETRIZE_ROUNDS, as_atoms

if TYPE_CHECKING:
    from ase import Atoms
    from phono3py import Phono3py

    from dpa3sim.potential.evaluation import Evaluation

    from ..harmonics.force_constants import Harmonic

INSTALL = "thermal conductivities need phono3py: pip install 'dpa3sim[kappa]'"
NONE = (
    "symmetry cancels all force constants of third order in this supercell, so that nothing "
    "scatters phonons and the conductivity is infinite; use a larger --supercell"
)
# Random displacements begin with so many times what symfc's unknowns need at least.
FIRST_ROUND = 4
# Bytes that a fit may take, and those for the equations that it adds at once to its normal matrix.
MOST_BYTES, EQUATIONS_BYTES = 7 << 28, 1 << 28
# Tolerance of symmetry, Å: phono3py compares displacements with it, in vectors of the supercell.
SYMPREC = 1e-5
# Displacements that differ by less are the same, Å.
SAME = 1e-7


@dataclass(frozen=True)
class Residuals:
    """How well the third-order force constants are known.

    Attributes:
        asr: ``(3,)``, largest sum over each index, which translation forbids, before it was
            imposed, eV/Å^3; None for a fit, which has none.
        permutation: largest difference of elements that are equal by exchanging their last two
            indices, before it was imposed, eV/Å^3; None for a fit.
        fit: what a fit leaves of the forces, relative, root mean square; None without a fit.
        largest: largest element, eV/Å^3.
    """

    asr: tuple[float, float, float] | None
    permutation: float | None
    fit: float | None
    largest: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready keys."""
        return {
            "residual_fc3_asr_eV_per_A3": None if self.asr is None else list(self.asr),
            "residual_fc3_permutation_eV_per_A3": self.permutation,
            "residual_fc3_fit_percent": None if self.fit is None else 100 * self.fit,
            "largest_fc3_eV_per_A3": self.largest,
        }


def require_phono3py() -> None:
    """Raise InputError where phono3py is not installed."""
    if importlib.util.find_spec("phono3py") is None:
        raise InputError(INSTALL)


def check_species(atoms: Atoms) -> None:
    """Raise InputError for atoms of one element with different masses, unknown to phono3py."""
    if (species(atoms) >= STEP).any():
        raise InputError(
            "thermal conductivities need one mass for each element; take the masses of the "
            "isotopes out of the structure"
        )


def new_phono3py(atoms: Atoms, matrix: np.ndarray, matrix_fc2: np.ndarray) -> Phono3py:
    """A phono3py object without force constants.

    Args:
        atoms: the primitive cell.
        matrix, matrix_fc2: ``(3, 3)``, supercells of third and of second order in its vectors.
    """
    from phono3py import Phono3py
    from phonopy.structure.atoms import PhonopyAtoms

    cell = PhonopyAtoms(
        numbers=atoms.numbers,
        masses=atoms.get_masses() if atoms.has("masses") else None,
        cell=atoms.cell[:],
        scaled_positions=atoms.get_scaled_positions(wrap=False),
    )
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        # The choice of a supercell already warns of a lower symmetry, which phono3py prints.
        warnings.simplefilter("ignore", UserWarning)
        return Phono3py(
            cell,
            supercell_matrix=matrix.T,
            phonon_supercell_matrix=matrix_fc2.T,
            primitive_matrix="P",
            symprec=SYMPREC,
        )


def set_harmonic(ph3: Phono3py, crystal: Harmonic) -> None:
    """Give a phono3py object the second order of a phonopy object of the same cells."""
    ph3.fc2 = crystal.phonon.force_constants
    ph3.nac_params = crystal.phonon.nac_params
    if crystal.phonon.dataset is not None:
        ph3.phonon_dataset = crystal.phonon.dataset


class Systematic:
    """Pairs of displacements, only the symmetry-independent ones.

    Args:
        ph3: without displacements of third order.
        distance: their length, Å. cutoff: pairs further apart are left out, Å.
    """

    name = "systematic"

    def __init__(self, ph3: Phono3py, distance: float, cutoff: float | None) -> None:
        harmonic = ph3.phonon_dataset
        ph3.generate_displacements(distance=distance, cutoff_pair_distance=cutoff)
        ph3.phonon_dataset = harmonic  # which phono3py would have made
        self.ph3 = ph3
        self._cells = ph3.supercells_with_displacements
        self._place = _places(self._cells, ph3.supercell.positions)

    @property
    def count(self) -> int:
        """Number of different supercells."""
        return len(set(self._place) - {None})

    def structures(self, count: int) -> list[Atoms]:
        """The displaced supercells, each once; ``count`` is :attr:`count`."""
        first = {place: i for i, place in reversed(list(enumerate(self._place)))}
        return [as_atoms(self._cells[first[place]]) for place in range(count)]

    def solve(self, forces: np.ndarray) -> Residuals:
        """Set force constants from forces ``(count, n_atoms, 3)`` of :meth:`structures`, eV/Å."""
        ph3 = self.ph3
        none = np.zeros_like(forces[0])
        ph3.forces = [none if place is None else forces[place] for place in self._place]
        ph3.produce_fc3()
        asr, permutation = _asymmetry(ph3)
        ph3.symmetrize_fc3(options=f"level={SYMMETRIZE_ROUNDS}")
        return Residuals(asr, permutation, None, float(np.abs(ph3.fc3).max()))


class Random:
    """All atoms of a supercell displaced in random directions, and a fit by symfc.

    Args:
        ph3: without displacements of third order.
        distance: of every atom, Å. cutoff: beyond it force constants are zero, Å. seed: of the
            directions.

    Attributes:
        minimum: number of supercells with as many equations as unknowns of third order.
        unknowns: independent force constants. bytes: that a fit takes.
    """

    name = "random"

    def __init__(self, ph3: Phono3py, distance: float, cutoff: float | None, seed: int) -> None:
        from symfc import Symfc
        from symfc.utils.utils import SymfcAtoms

        cell = ph3.supercell
        self.ph3, self._distance, self._cutoff = ph3, distance, cutoff
        self._symfc = Symfc(
            SymfcAtoms(
                cell=cell.cell, scaled_positions=cell.scaled_positions, numbers=cell.numbers
            ),
            spacegroup_operations=ph3.symmetry.symmetry_operations,
            symprec=ph3.symmetry.tolerance,
            cutoff=None if cutoff is None else {3: cutoff},
        )
        sizes = self._symfc.estimate_basis_size(orders=[2, 3])
        self.minimum = max(1, -(-sizes[3] // (3 * len(cell))))
        self.unknowns = sum(sizes.values())
        self.bytes = 24 * self.unknowns**2 + EQUATIONS_BYTES
        self._random = np.random.default_rng(seed)
        self._displacements = np.empty((0, len(cell), 3))
        self._forces = np.empty((0, len(cell), 3))

    @property
    def fits(self) -> bool:
        """Whether a fit takes no more memory than it may."""
        return self.bytes <= MOST_BYTES

    @property
    def count(self) -> int:
        """Number of supercells so far."""
        return len(self._displacements)

    def structures(self, count: int) -> list[Atoms]:
        """As many further supercells as there will be ``count`` in all.

        Raises:
            UnphysicalError: symmetry leaves no force constants of third order.
        """
        if not self._symfc.basis_set:
            try:
                self._symfc.compute_basis_set(orders=[2, 3])
            except AssertionError:  # symfc expects one at least
                raise UnphysicalError(NONE) from None
        rest = as_atoms(self.ph3.supercell)
        shape = (count - self.count, len(rest), 3)
        fresh = self._random.normal(size=shape)
        fresh *= self._distance / np.linalg.norm(fresh, axis=2, keepdims=True)
        self._displacements = np.concatenate([self._displacements, fresh])
        displaced = []
        for moves in fresh:
            moved = rest.copy()
            moved.positions += moves
            displaced.append(moved)
        return displaced

    def solve(self, forces: np.ndarray) -> Residuals:
        """Fit force constants to all forces so far.

        Args:
            forces: ``(n, n_atoms, 3)``, of the supercells from :meth:`structures`, eV/Å.
        """
        ph3, solver = self.ph3, self._symfc
        self._forces = np.concatenate([self._forces, forces])
        solver.displacements, solver.forces = self._displacements, self._forces
        row = 8 * self.unknowns * 3 * len(ph3.supercell)
        solver.solve(orders=[2, 3], batch_size=max(1, EQUATIONS_BYTES // row))
        assert solver.p2s_map is not None
        if solver.p2s_map.tolist() != list(ph3.primitive.p2s_map):
            raise RuntimeError("symfc and phono3py have different primitive cells")
        ph3.fc3 = solver.force_constants[3]
        ph3.dataset = {"displacements": self._displacements, "forces": self._forces}
        left = self._misfit(solver.force_constants[2], solver.force_constants[3])
        return Residuals(None, None, left, float(np.abs(ph3.fc3).max()))

    def _misfit(self, fc2: np.ndarray, fc3: np.ndarray) -> float:
        """What the force constants leave of the forces on the atoms of the primitive cell."""
        atoms = self.ph3.primitive.p2s_map
        left = 0.0
        for moves, forces in zip(self._displacements, self._forces, strict=True):
            second = np.einsum("ijab,jb->ia", fc2, moves)
            third = np.einsum("ijkabc,jb,kc->ia", fc3, moves, moves, optimize=True) / 2
            left += float(((forces[atoms] + second + third) ** 2).sum())
        return float(np.sqrt(left / (self._forces[:, atoms] ** 2).sum()))


def forces_of(answers: Sequence[Evaluation], rest: Evaluation, ph3: Phono3py) -> np.ndarray:
    """Forces ``(n, n_atoms, 3)`` less those of the undisplaced crystal and the drift, eV/Å.

    Args:
        answers: of displaced supercells. rest: of the primitive cell. ph3: knows the supercell.
    """
    unit_atom = [ph3.supercell.u2u_map[u] for u in ph3.supercell.s2u_map]
    forces = np.array([answer.forces for answer in answers]) - rest.forces[unit_atom]
    return np.asarray(forces - forces.mean(axis=1, keepdims=True))


def _asymmetry(ph3: Phono3py) -> tuple[tuple[float, float, float], float]:
    """Largest sums over each index of compact force constants, and asymmetry, eV/Å^3."""
    from phono3py.phonon3.fc3 import get_drift_fc3

    fc3 = np.asarray(ph3.fc3)
    first, second, third = (abs(float(x)) for x in get_drift_fc3(fc3, ph3.primitive)[:3])
    return (first, second, third), float(np.abs(fc3 - fc3.transpose(0, 2, 1, 3, 5, 4)).max())


def _places(cells: Sequence[Any], rest: np.ndarray) -> list[int | None]:
    """For each displaced supercell its place among the different ones.

    None where there is nothing to be evaluated: beyond the cutoff of pairs, or if two opposite
    displacements of an atom cancel.
    """
    known: dict[bytes, int] = {}
    places: list[int | None] = []
    for cell in cells:
        moves = None if cell is None else np.rint((cell.positions - rest) / SAME).astype(int)
        if moves is None or not moves.any():
            places.append(None)
        else:
            places.append(known.setdefault(moves.tobytes(), len(known)))
    return places
