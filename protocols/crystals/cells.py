"""The cells of a crystal, each a type of its own, and quantities that state their cell.

A crystal has the cell that the user gave, a primitive and a conventional one, and supercells.
Lattice vectors are rows; all cells of one :class:`Cells` are in the orientation of the input.
spglib finds the symmetry.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.errors import InputError

from .isotopes import STEP, species

if TYPE_CHECKING:
    from ase import Atoms

# Atoms up to this distance (Å) hold a crystal together, or up to a longer one if their radii are
# large: dispersion-bound layers and molecules are 3 to 4.5 Å apart, and a vacuum is wider.
CONTACT, RADII_FACTOR, LONGEST_CONTACT = 5.0, 1.35, 6.0


@dataclass(frozen=True)
class InputCell:
    """The cell that the user gave."""

    atoms: Atoms


@dataclass(frozen=True)
class PrimitiveCell:
    """A smallest cell of the crystal.

    Attributes:
        atoms: its atoms, in the orientation of the input.
        matrix: ``(3, 3)``, its lattice vectors in those of the input: ``matrix @ input.cell``.
        index: ``(n_input,)``, the atom of this cell of which each atom of the input is a copy.
        offset: ``(n_input, 3)`` whole numbers, its distance in this cell's vectors.
    """

    atoms: Atoms
    matrix: np.ndarray
    index: np.ndarray
    offset: np.ndarray

    def expand(self, atoms: Atoms) -> Atoms:
        """The input cell of a crystal whose primitive cell has changed into ``atoms``."""
        expanded = atoms[self.index]
        expanded.set_cell(np.rint(np.linalg.inv(self.matrix)) @ atoms.cell[:])
        expanded.positions = atoms.positions[self.index] + self.offset @ atoms.cell[:]
        return expanded


@dataclass(frozen=True)
class ConventionalCell:
    """The cell of the International Tables.

    Attributes:
        atoms: its atoms, in the orientation of the input.
        matrix: ``(3, 3)``, its lattice vectors in those of the input: ``matrix @ input.cell``.
        rotation: ``(3, 3)``, from the orientation of the input to spglib's standard one, in which
            a is along x and b in the xy plane: ``x_standard = rotation @ x``.
    """

    atoms: Atoms
    matrix: np.ndarray
    rotation: np.ndarray


@dataclass(frozen=True)
class Supercell:
    """Repetitions of a primitive cell.

    Attributes:
        atoms: its atoms. matrix: ``(3, 3)`` whole numbers, its lattice vectors in those of
        ``unit``. unit: the cell that is repeated.
    """

    atoms: Atoms
    matrix: np.ndarray
    unit: PrimitiveCell

    @classmethod
    def of(cls, unit: PrimitiveCell, matrix: Any) -> Supercell:
        """Repeat ``unit`` along ``matrix @ unit.atoms.cell``.

        Raises:
            InputError: the matrix is not one of whole numbers with a positive determinant.
        """
        from ase.build import make_supercell

        whole = np.rint(np.asarray(matrix, dtype=float)).astype(int)
        if whole.shape != (3, 3) or np.abs(whole - matrix).max() > 1e-6:
            raise InputError(f"a supercell matrix must be 3 x 3 whole numbers, not {matrix}")
        if round(np.linalg.det(whole)) < 1:
            raise InputError(f"a supercell matrix must have a positive determinant, not {matrix}")
        return cls(make_supercell(unit.atoms, whole), whole, unit)


@dataclass(frozen=True)
class Cells:
    """A crystal in its cells.

    Attributes:
        spacegroup: international symbol; number: of the International Tables, 1 ... 230.
        rotations: ``(m, 3, 3)``, the point group, Cartesian, in the orientation of the input.
        symprec: tolerance with which the symmetry was found, Å.
    """

    input: InputCell
    primitive: PrimitiveCell
    conventional: ConventionalCell
    spacegroup: str
    number: int
    rotations: np.ndarray
    symprec: float

    @classmethod
    def of(cls, atoms: Atoms, symprec: float) -> Cells:
        """Find the cells of a crystal.

        Raises:
            InputError: spglib finds no symmetry, not even the identity.
        """
        dataset = symmetry(atoms, symprec)
        if dataset is None:
            raise InputError(
                f"spglib finds no symmetry within symprec = {symprec:g} Å; change symprec"
            )
        primitive = _primitive(atoms, symprec)
        return cls(
            InputCell(atoms.copy()),
            primitive,
            _conventional(atoms, symprec, dataset),
            dataset.international,
            int(dataset.number),
            _point_group(primitive.atoms, symprec),
            symprec,
        )

    @property
    def formula_units(self) -> int:
        """Formula units in the input cell: 4 for eight atoms Mg4O4."""
        return math.gcd(*Counter(self.input.atoms.numbers.tolist()).values())

    def label(self) -> str:
        """Symbol and number of the space group, such as ``Fm-3m (225)``."""
        return f"{self.spacegroup} ({self.number})"


@dataclass(frozen=True)
class Extensive:
    """An extensive quantity of a crystal, known for ``n_atoms`` of its atoms."""

    value: float
    n_atoms: int

    def keys(self, name: str, unit: str, cells: Cells) -> dict[str, float]:
        """The quantity per input cell, atom and formula unit, each with its own key.

        ``keys("energy", "eV", cells)`` has the keys ``energy_per_cell_eV``, ``energy_per_atom_eV``
        and ``energy_per_formula_unit_eV``.
        """
        per_atom = self.value / self.n_atoms
        n_input = len(cells.input.atoms)
        return {
            f"{name}_per_cell_{unit}": per_atom * n_input,
            f"{name}_per_atom_{unit}": per_atom,
            f"{name}_per_formula_unit_{unit}": per_atom * n_input / cells.formula_units,
        }


def symmetry(atoms: Atoms, symprec: float) -> Any:
    """Data set of spglib for a crystal, which must not be changed; None where there is none."""
    if not atoms.pbc.all():
        return None
    lattice, scaled, numbers = spglib_cell(atoms)
    return _dataset(lattice.tobytes(), scaled.tobytes(), tuple(numbers.tolist()), symprec)


# Protocols ask for the symmetry of the same cells repeatedly; a supercell takes some tens of ms.
@lru_cache(maxsize=64)
def _dataset(lattice: bytes, scaled: bytes, numbers: tuple[int, ...], symprec: float) -> Any:
    import spglib

    crystal = _spglib_cell(lattice, scaled, numbers)
    try:
        return spglib.get_symmetry_dataset(crystal, symprec=symprec)
    except getattr(spglib, "SpglibError", ()):  # newer versions raise, older ones return None
        return None


def spacegroup(atoms: Atoms, symprec: float) -> str | None:
    """International symbol and number, such as ``Fd-3m (227)``; None where there is none."""
    dataset = symmetry(atoms, symprec)
    return None if dataset is None else f"{dataset.international} ({dataset.number})"


def conventional_cell(atoms: Atoms, symprec: float) -> tuple[float, ...] | None:
    """a, b, c (Å) and angles (degrees) of the conventional cell; None where there is none."""
    from ase.geometry import cell_to_cellpar

    dataset = symmetry(atoms, symprec)
    return None if dataset is None else tuple(map(float, cell_to_cellpar(dataset.std_lattice)))


def symmetrized(atoms: Atoms, symprec: float) -> Atoms:
    """The crystal with cell and positions made exactly symmetric, in the same orientation.

    Raises:
        InputError: the symmetry found depends on details below ``symprec``.
    """
    pbc = tuple(atoms.pbc.tolist())
    cell, positions, numbers = atoms.cell[:].tobytes(), atoms.positions.tobytes(), atoms.numbers
    lattice, sites = _symmetrized(cell, positions, tuple(numbers.tolist()), pbc, symprec)
    symmetric = atoms.copy()
    symmetric.set_cell(lattice)
    symmetric.positions = sites
    return symmetric


@lru_cache(maxsize=16)
def _symmetrized(
    cell: bytes,
    positions: bytes,
    numbers: tuple[int, ...],
    pbc: tuple[bool, ...],
    symprec: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Cell and positions of :func:`symmetrized`."""
    from ase import Atoms
    from ase.spacegroup.symmetrize import IntermediateDatasetError, get_symmetrized_atoms

    lattice, sites = np.frombuffer(cell).reshape(3, 3), np.frombuffer(positions).reshape(-1, 3)
    atoms = Atoms(numbers, sites, cell=lattice, pbc=pbc)
    try:
        symmetric, _ = get_symmetrized_atoms(atoms, symprec=symprec)
    except (IntermediateDatasetError, AssertionError, AttributeError, ValueError):
        raise InputError(
            f"the symmetry within symprec = {symprec:g} Å is ambiguous; change symprec, or switch "
            "fix_symmetry off"
        ) from None
    return symmetric.cell[:], symmetric.positions


def check_crystal(atoms: Atoms, what: str) -> None:
    """Raise InputError unless ``atoms`` is a crystal: periodic and held together along all axes.

    Args:
        atoms: any structure.
        what: the wanted property, for the message.
    """
    if len(atoms) == 0:
        raise InputError("the structure has no atoms")
    if not np.isfinite(atoms.positions).all() or not np.isfinite(atoms.cell[:]).all():
        raise InputError("positions or cell contain NaN or infinity")
    periodic = int(atoms.pbc.sum())
    if periodic < 3:
        kind = ("a molecule", "a chain", "a slab")[periodic]
        raise InputError(f"{what} need a crystal, periodic along three axes; this is {kind}")
    if atoms.cell.rank < 3 or abs(atoms.cell.volume) < 1e-6:
        raise InputError(f"{what} need three independent cell vectors")
    dimension = connected_dimension(atoms)
    if dimension < 3:
        kind = ("separate atoms or molecules", "chains", "a slab")[dimension]
        raise InputError(
            f"{what} need a crystal; this is {kind} in vacuum (no contacts within "
            f"{CONTACT:g} Å hold it together along every axis)"
        )


def connected_dimension(atoms: Atoms) -> int:
    """Number of dimensions that contacts between atoms connect: 3 in a crystal, 2 in a slab.

    Rank determination of Larsen et al., Phys. Rev. Materials 3, 034003 (2019).
    """
    from ase.data import covalent_radii
    from ase.geometry.dimensionality.rank_determination import RDA
    from ase.neighborlist import neighbor_list

    radii = covalent_radii[atoms.numbers]
    i, j, distance, offset = neighbor_list("ijdS", atoms, LONGEST_CONTACT)
    near = distance <= np.maximum(CONTACT, RADII_FACTOR * (radii[i] + radii[j]))
    ranks = RDA(len(atoms))
    for a, b, s in zip(i[near].tolist(), j[near].tolist(), offset[near].tolist(), strict=True):
        ranks.insert_bond(a, b, tuple(s))
    histogram = ranks.check()
    return max(rank for rank, count in enumerate(histogram) if count)


def spglib_cell(atoms: Atoms) -> tuple[Any, Any, Any]:
    """Lattice, scaled positions and species: the form of a crystal for spglib and seekpath."""
    return atoms.cell[:], atoms.get_scaled_positions(), species(atoms)


def _standard(atoms: Atoms, symprec: float, to_primitive: bool) -> tuple[Any, Any, Any]:
    """Lattice, scaled positions and numbers of a standard cell, not rotated nor idealized."""
    lattice, scaled, numbers = spglib_cell(atoms)
    given = lattice.tobytes(), scaled.tobytes(), tuple(numbers.tolist())
    found = _standardized(*given, symprec, to_primitive)
    if found is None:
        raise InputError(f"spglib finds no symmetry within symprec = {symprec:g} Å; change symprec")
    return found


@lru_cache(maxsize=64)
def _standardized(
    lattice: bytes, scaled: bytes, numbers: tuple[int, ...], symprec: float, to_primitive: bool
) -> Any:
    import spglib

    crystal = _spglib_cell(lattice, scaled, numbers)
    return spglib.standardize_cell(
        crystal, to_primitive=to_primitive, no_idealize=True, symprec=symprec
    )


def _spglib_cell(lattice: bytes, scaled: bytes, numbers: tuple[int, ...]) -> Any:
    return np.frombuffer(lattice).reshape(3, 3), np.frombuffer(scaled).reshape(-1, 3), numbers


def _primitive(atoms: Atoms, symprec: float) -> PrimitiveCell:
    lattice, _, _ = _standard(atoms, symprec, to_primitive=True)
    matrix = _clean(lattice @ np.linalg.inv(atoms.cell[:]))
    # This lattice is exactly commensurate with the input; spglib's has rounding errors.
    lattice = matrix @ atoms.cell[:]
    scaled = atoms.positions @ np.linalg.inv(lattice)
    kind = species(atoms)
    representatives: list[int] = []
    index = np.empty(len(atoms), dtype=int)
    for atom in range(len(atoms)):
        for place, other in enumerate(representatives):
            difference = scaled[atom] - scaled[other]
            difference -= np.rint(difference)
            near = np.linalg.norm(difference @ lattice) < 3 * symprec
            if near and kind[atom] == kind[other]:
                index[atom] = place
                break
        else:
            index[atom] = len(representatives)
            representatives.append(atom)
    if len(representatives) != round(len(atoms) * abs(np.linalg.det(matrix))):
        raise InputError(
            f"spglib finds no primitive cell within symprec = {symprec:g} Å; change symprec"
        )
    primitive = atoms[representatives]
    primitive.set_constraint()
    primitive.set_cell(lattice)
    offset = np.rint(scaled - scaled[np.array(representatives)[index]]).astype(int)
    return PrimitiveCell(primitive, matrix, index, offset)


def _point_group(primitive: Atoms, symprec: float) -> np.ndarray:
    """Cartesian rotations ``(m, 3, 3)``: a primitive cell has all, a supercell may lack some."""
    dataset = symmetry(primitive, symprec)
    fractional = np.unique(dataset.rotations, axis=0) if dataset else np.eye(3)[None]
    columns = primitive.cell[:].T
    return np.array([_orthogonal(columns @ r @ np.linalg.inv(columns)) for r in fractional])


def _conventional(atoms: Atoms, symprec: float, dataset: Any) -> ConventionalCell:
    from ase import Atoms

    lattice, scaled, numbers = _standard(atoms, symprec, to_primitive=False)
    matrix = _clean(lattice @ np.linalg.inv(atoms.cell[:]))
    kind = np.asarray(numbers)
    cell = Atoms(kind % STEP, cell=matrix @ atoms.cell[:], scaled_positions=scaled, pbc=True)
    if atoms.has("masses"):
        given, first = np.unique(species(atoms), return_index=True)
        mass = dict(zip(given.tolist(), atoms.get_masses()[first].tolist(), strict=True))
        cell.set_masses([mass[int(k)] for k in kind])
    return ConventionalCell(cell, matrix, _orthogonal(dataset.std_rotation_matrix))


def _clean(matrix: np.ndarray) -> np.ndarray:
    """Nearby fractions with small denominators, which relate the cells of one crystal."""
    for denominator in range(1, 2000):
        scaled = matrix * denominator
        if np.abs(scaled - np.rint(scaled)).max() < 1e-3:
            return np.rint(scaled) / denominator
    return matrix


def _orthogonal(matrix: np.ndarray) -> np.ndarray:
    """The nearest rotation, proper or not (polar decomposition)."""
    u, _, vt = np.linalg.svd(matrix)
    return u @ vt
