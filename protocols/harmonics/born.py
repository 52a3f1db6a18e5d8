"""Born effective charges and the dielectric tensor, from phonopy's BORN files.

The file belongs to the crystal that the user gave: its tensors are in the Cartesian axes of that
cell and in the order of its atoms, either of all atoms or of the symmetry-independent ones. Charges
of a larger cell are reduced if only one result is possible.
Rounding or a poor calculation breaks the site symmetry and the acoustic sum rule (Gonze and Lee,
Phys. Rev. B 55, 10355 (1997)). Both are restored, with a warning if they were broken by much.
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.errors import InputError

if TYPE_CHECKING:
    from ..crystals.cells import PrimitiveCell

# A warning is given of charges that break a rule by more than this: e, or share of the largest one.
# Converged calculations are within 0.02.
WORTH_A_WORD, RELATIVE = 0.05, 0.03
# The signs of charges are checked if electronegativities differ by so much.
POLAR = 0.3
# A charge of the wrong sign, e.
WRONG_SIGN = 0.1
# A factor that differs by more (relative) from that of eV, Å and e belongs to other units.
FACTOR_ERROR = 0.01
LARGEST_FILE = 4 << 20
# No charge (e) or dielectric constant is larger; squares of such numbers do not overflow.
LARGEST_VALUE = 1e4
# Orders of atoms are tried for up to so many elements, 2 for each.
MOST_KINDS = 6
# phonopy's dipole sum has converged if its last terms are smaller than this share of the first.
# With more than this many reciprocal vectors it takes minutes (by default it uses 300).
LAST_TERM, MOST_VECTORS = 1e-5, 30000
# Pauling's electronegativities, as revised by Allred, J. Inorg. Nucl. Chem. 17, 215 (1961).
ELECTRONEGATIVITY = {
    symbol: float(value)
    for symbol, value in (
        pair.split(":")
        for pair in (
            "H:2.20 Li:0.98 Be:1.57 B:2.04 C:2.55 N:3.04 O:3.44 F:3.98 Na:0.93 Mg:1.31 Al:1.61 "
            "Si:1.90 P:2.19 S:2.58 Cl:3.16 K:0.82 Ca:1.00 Sc:1.36 Ti:1.54 V:1.63 Cr:1.66 Mn:1.55 "
            "Fe:1.83 Co:1.88 Ni:1.91 Cu:1.90 Zn:1.65 Ga:1.81 Ge:2.01 As:2.18 Se:2.55 Br:2.96 "
            "Rb:0.82 Sr:0.95 Y:1.22 Zr:1.33 Nb:1.6 Mo:2.16 Tc:1.9 Ru:2.2 Rh:2.28 Pd:2.20 Ag:1.93 "
            "Cd:1.69 In:1.78 Sn:1.96 Sb:2.05 Te:2.1 I:2.66 Cs:0.79 Ba:0.89 La:1.10 Ce:1.12 "
            "Pr:1.13 Nd:1.14 Sm:1.17 Gd:1.20 Dy:1.22 Ho:1.23 Er:1.24 Tm:1.25 Lu:1.27 Hf:1.3 "
            "Ta:1.5 W:2.36 Re:1.9 Os:2.2 Ir:2.20 Pt:2.28 Au:2.54 Hg:2.00 Tl:1.62 Pb:2.33 Bi:2.02 "
            "Th:1.3 U:1.38"
        ).split()
    )
}


@dataclass(frozen=True)
class Born:
    """The input of the non-analytical correction.

    Attributes:
        charges: ``(n, 3, 3)``, e, of the atoms of the given cell; the first index is the field's.
        dielectric: ``(3, 3)``, relative, of clamped ions.
        factor: e^2 / (4 pi eps0) in the units of the force constants, eV Å.
        cutoff, damping: G_cutoff and Lambda of the Ewald sum, None for phonopy's defaults.
        excess: ``(3, 3)``, e, mean charge of an atom in the file, zero by the acoustic sum rule;
            the charges are without it.
        asymmetry: largest change, e, that restores the symmetry of the sites.
        warnings: what is suspicious about them.
    """

    charges: np.ndarray
    dielectric: np.ndarray
    factor: float
    cutoff: float | None = None
    damping: float | None = None
    excess: np.ndarray = field(default_factory=lambda: np.zeros((3, 3)))
    asymmetry: float = 0.0
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """How far the file is from the rules that charges obey, for results."""
        return {
            "born_sum_rule_error_per_atom_e": float(np.abs(self.excess).max()),
            "born_site_symmetry_error_e": self.asymmetry,
        }

    def parameters(self, unit: PrimitiveCell, primitive: Any, symprec: float) -> dict[str, Any]:
        """Symmetrized ``nac_params`` of phonopy for a primitive cell of the given one.

        This cell may be smaller and more symmetric than the one for which the file was read, since
        relaxing may increase the symmetry of a crystal.

        Args:
            unit: the primitive cell. primitive: the same for phonopy. symprec: tolerance, Å.
        """
        charges, dielectric = _symmetrized(
            _averaged(self.charges, unit), self.dielectric, primitive, symprec
        )
        found: dict[str, Any] = {"born": charges, "dielectric": dielectric}
        found["factor"] = self.factor
        found |= {"G_cutoff": self.cutoff} if self.cutoff is not None else {}
        return found | ({"Lambda": self.damping} if self.damping is not None else {})


def read(file: str, unit: PrimitiveCell, primitive: Any, symprec: float) -> Born:
    """Read a BORN file of a crystal.

    Args:
        file: its path. unit: the primitive cell, which knows the atoms of the given one.
        primitive: the same for phonopy. symprec: tolerance of symmetry, Å.

    Raises:
        InputError: the file cannot be read, or does not fit the crystal.
    """
    head, rows = _rows(file)
    if len(rows) < 1:
        raise InputError(f"{file} is not a BORN file (it has no dielectric tensor in line 2)")
    tensors = np.array(rows).reshape(-1, 3, 3)
    if not np.isfinite(tensors).all():
        raise InputError(f"{file} contains NaN or infinity")
    if np.abs(tensors).max() > LARGEST_VALUE:
        largest = np.abs(tensors).max()
        raise InputError(f"{file}: {largest:g} is too large for a charge or dielectric constant")
    factor, cutoff, damping = _first_line(file, head)
    notes = _sum_notes(file, cutoff, damping, tensors[0], abs(unit.atoms.cell.volume))
    charges, assumed = _on_primitive(file, tensors, unit, primitive, symprec)
    notes += assumed
    if len(tensors) - 1 == len(unit.index):
        notes += _copies(file, tensors[1:], charges, unit)
    if factor is None:
        factor = _default_factor()
    notes += _checked(file, charges, tensors[0], factor, primitive, symprec)
    excess = charges.mean(axis=0)
    neutral = charges - excess
    return Born(
        charges=neutral[unit.index],
        dielectric=tensors[0],
        factor=factor,
        cutoff=cutoff,
        damping=damping,
        excess=excess,
        asymmetry=_asymmetry(neutral, tensors[0], primitive, symprec),
        warnings=tuple(notes),
    )


def _rows(file: str) -> tuple[str, list[list[float]]]:
    """The first line, and the nine numbers of each line that follows, up to a blank one.

    Raises:
        InputError: the file cannot be read, or a line does not have nine numbers.
    """
    try:
        with Path(file).open(encoding="utf-8", errors="replace") as text:
            lines = text.read(LARGEST_FILE).splitlines()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    rows: list[list[float]] = []
    for number, line in enumerate(lines[1:], start=2):
        words = line.split("#")[0].split()
        if not words:
            if rows:
                break
            continue
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = []
        if len(values) != 9:
            raise InputError(
                f"{file} is not a BORN file (line {number} does not have nine numbers)"
            )
        rows.append(values)
    return lines[0] if lines else "", rows


def _first_line(file: str, line: str) -> list[float | None]:
    """Factor, G_cutoff and Lambda; each is None if the line has something else, such as a comment.

    Unlike phonopy this does not read numbers inside a comment as a cutoff: those of ``# 1 3`` would
    make frequencies wrong by many THz, and that of ``GaN 2024`` would take hours.

    Raises:
        InputError: a number is impossible, or the line has the tensor of line 2.
    """
    words = line.split()
    found = [_number(word) for word in words]
    if len(words) == 9 and None not in found:
        raise InputError(
            f"{file}: line 1 has nine numbers, but it is for a comment, such as default; the "
            "dielectric tensor belongs in line 2"
        )
    if not words or (found[0] is None and words[0].lower() != "default"):
        return [None, None, None]
    found = [*found[:3], None, None][:3]
    for name, value in zip(("factor", "G_cutoff", "Lambda"), found, strict=True):
        if value is not None and not 0 < value < np.inf:
            raise InputError(
                f"{file}: the {name} of {value:g} in line 1 must be a positive number; without it "
                "phonopy's default is used"
            )
    return found


def _number(word: str) -> float | None:
    number = re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", word)
    return float(word) if number else None


def _sum_notes(
    file: str, cutoff: float | None, damping: float | None, dielectric: np.ndarray, volume: float
) -> list[str]:
    """A warning if the dipole sum ends too early.

    Raises:
        InputError: it has too many terms.
    """
    if cutoff is None:
        return []
    count = 4 / 3 * np.pi * cutoff**3 * volume
    if count > MOST_VECTORS:
        raise InputError(
            f"{file}: the G_cutoff of {cutoff:g} 1/Å in line 1 asks for {count:.2g} reciprocal "
            f"vectors, more than {MOST_VECTORS}; without it phonopy uses 300"
        )
    square = cutoff**2 * float(np.trace(dielectric)) / 3
    if damping is None or np.exp(-square / (4 * damping**2)) < LAST_TERM:
        return []
    return [
        f"with G_cutoff = {cutoff:g} and Lambda = {damping:g} in its first line, {file} makes the "
        "dipole sum end too early: frequencies between wave vectors that fit the supercell are "
        "wrong; leave both out"
    ]


def _default_factor() -> float:
    """The factor that phonopy uses for force constants in eV/Å^2."""
    from phonopy.physical_units import get_physical_units

    units = get_physical_units()
    return float(units.Hartree * units.Bohr)


def _on_primitive(
    file: str, found: np.ndarray, unit: PrimitiveCell, primitive: Any, symprec: float
) -> tuple[np.ndarray, list[str]]:
    """Tensors of all atoms of the primitive cell, ``(n, 3, 3)``, and what was assumed.

    Args:
        found: the dielectric tensor and those of the atoms in the file.

    Raises:
        InputError: the atoms of the file cannot be those of the crystal.
    """
    from phonopy.structure.symmetry import Symmetry

    tensors = found[1:]
    n_primitive, n_input = len(unit.atoms), len(unit.index)
    # Isotopes have equal charges, and phonopy's lists do not distinguish them.
    symmetry = Symmetry(primitive, symprec=symprec)
    independent = np.asarray(symmetry.get_independent_atoms())
    if len(tensors) == len(independent):
        return _spread(tensors, independent, symmetry, primitive), []
    if len(tensors) == n_primitive:
        return tensors, []
    if len(tensors) == n_input:
        return _averaged(tensors, unit), []
    if len(tensors) and len(tensors) % n_primitive == 0:
        charges = _of_larger_cell(file, found, primitive, symprec)
        note = (
            f"{file} has the Born charges of {len(tensors)} atoms; they were taken for those of a "
            f"larger cell in the axes of this structure, and reduced to its {n_primitive} atoms"
        )
        return charges, [note]
    few = "few" if len(tensors) < len(independent) else "many"
    raise InputError(
        f"{file} is not a BORN file of this crystal (Too {few} atoms: {len(tensors)} charge "
        f"tensors; {len(independent)} atoms are independent by symmetry, the primitive cell has "
        f"{n_primitive}, the given one {n_input})"
    )


def _of_larger_cell(file: str, found: np.ndarray, primitive: Any, symprec: float) -> np.ndarray:
    """Tensors of the primitive cell from those of several times as many atoms.

    The order of the atoms in the other cell is unknown. The usual ones are tried; copies of an atom
    must have equal tensors, which must have the symmetry of their site.

    Raises:
        InputError: no order fits, or several do with different results.
    """
    tensors, n = found[1:], len(primitive)
    allowed = max(WORTH_A_WORD, RELATIVE * float(np.abs(tensors).max()))
    fitting: list[np.ndarray] = []
    for order in _orders(list(primitive.symbols), len(tensors) // n):
        sums = np.zeros((n, 3, 3))
        np.add.at(sums, order, tensors)
        charges = sums * n / len(tensors)
        neutral = charges - charges.mean(axis=0)
        if np.abs(tensors - charges[order]).max() > allowed:
            continue
        if _asymmetry(neutral, found[0], primitive, symprec) > allowed:
            continue
        if all(np.abs(charges - other).max() > allowed for other in fitting):
            fitting.append(charges)
    if len(fitting) == 1:
        return fitting[0]
    why = "fit several orders of its atoms" if fitting else "do not have the symmetry of this one"
    raise InputError(
        f"{file} has the Born charges of {len(tensors)} atoms, which is a larger cell than the "
        f"primitive one of {n} atoms, and they {why}; pass the structure whose atoms they belong "
        "to, or write the charges of the symmetry-independent atoms only (phonopy-vasp-born)"
    )


def _orders(symbols: Sequence[str], copies: int) -> Iterator[np.ndarray]:
    """The atom of the primitive cell of which each atom of a larger cell may be a copy.

    The whole cell may be repeated, or each atom in its place; atoms may be sorted by element first.
    """
    whole = np.arange(len(symbols))
    yield np.tile(whole, copies)
    yield np.repeat(whole, copies)
    kinds = [np.flatnonzero(np.array(symbols) == s) for s in dict.fromkeys(symbols)]
    for in_place in itertools.product((False, True), repeat=min(len(kinds), MOST_KINDS)):
        rest = (False,) * (len(kinds) - len(in_place))
        parts = [
            np.repeat(kind, copies) if each else np.tile(kind, copies)
            for kind, each in zip(kinds, (*in_place, *rest), strict=True)
        ]
        yield np.concatenate(parts)


def _copies(file: str, tensors: np.ndarray, charges: np.ndarray, unit: PrimitiveCell) -> list[str]:
    """A warning if equivalent copies of an atom in the given cell have different charges."""
    apart = float(np.abs(tensors - charges[unit.index]).max())
    if apart <= max(WORTH_A_WORD, RELATIVE * float(np.abs(tensors).max())):
        return []
    return [
        f"the Born charges of {file} differ by up to {apart:.3g} e from their mean over atoms that "
        "a translation of the crystal makes equal: are they in the order of this structure's atoms?"
    ]


def _averaged(tensors: np.ndarray, unit: PrimitiveCell) -> np.ndarray:
    """Tensors of the primitive cell: means over the copies in the given cell."""
    sums = np.zeros((len(unit.atoms), 3, 3))
    np.add.at(sums, unit.index, tensors)
    return sums / np.bincount(unit.index)[:, None, None]


def _spread(
    tensors: np.ndarray, independent: np.ndarray, symmetry: Any, primitive: Any
) -> np.ndarray:
    """Tensors of all atoms from the symmetry-independent ones: Z(R x) = R Z R^T."""
    charges = np.zeros((len(primitive), 3, 3))
    of_atom = dict(zip(independent.tolist(), tensors, strict=True))
    columns = np.asarray(primitive.cell).T
    operations = symmetry.symmetry_operations["rotations"]
    # The operation that maps each atom onto its independent equivalent.
    chosen, origin = symmetry.get_map_operations(), symmetry.get_map_atoms()
    for atom in range(len(primitive)):
        turn = columns @ operations[chosen[atom]] @ np.linalg.inv(columns)
        charges[atom] = turn.T @ of_atom[int(origin[atom])] @ turn
    return charges


def _symmetrized(
    charges: np.ndarray, dielectric: np.ndarray, primitive: Any, symprec: float
) -> tuple[np.ndarray, np.ndarray]:
    """Tensors with the symmetry of the crystal."""
    from phonopy.structure.symmetry import symmetrize_borns_and_epsilon

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # _checked warns of the same
        found = symmetrize_borns_and_epsilon(charges, dielectric, primitive, symprec=symprec)
    return np.asarray(found[0]), np.asarray(found[1])


def _asymmetry(
    charges: np.ndarray, dielectric: np.ndarray, primitive: Any, symprec: float
) -> float:
    """The largest change of neutral charges, e, that restores the symmetry of their sites."""
    symmetric, _ = _symmetrized(charges, dielectric, primitive, symprec)
    return float(np.abs(symmetric - charges).max(initial=0.0))


def _checked(
    file: str,
    charges: np.ndarray,
    dielectric: np.ndarray,
    factor: float,
    primitive: Any,
    symprec: float,
) -> list[str]:
    """Warnings about rules that charges, ``(n, 3, 3)`` in the primitive cell, and others break.

    Raises:
        InputError: the dielectric tensor is not positive.
    """
    eigenvalues = np.linalg.eigvalsh((dielectric + dielectric.T) / 2)
    if eigenvalues[0] <= 0:
        raise InputError(f"{file}: the dielectric tensor is not positive ({eigenvalues.round(3)})")
    notes = []
    neutral = charges - charges.mean(axis=0)
    symmetric, screening = _symmetrized(neutral, dielectric, primitive, symprec)
    allowed = max(WORTH_A_WORD, RELATIVE * float(np.abs(charges).max(initial=0.0)))
    excess = float(np.abs(charges.mean(axis=0)).max(initial=0.0))
    if excess > allowed:
        notes.append(
            f"the Born charges of {file} break the acoustic sum rule by {excess:.3g} e for each "
            "atom; they were shifted to be neutral"
        )
    broken = float(np.abs(symmetric - neutral).max(initial=0.0))
    if broken > allowed:
        notes.append(
            f"the Born charges of {file} break the symmetry of their sites by up to {broken:.3g} "
            "e: are they in the axes and the order of this structure? They were made symmetric"
        )
    apart = float(np.abs(screening - dielectric).max())
    if apart > max(WORTH_A_WORD, RELATIVE * float(np.abs(dielectric).max())):
        notes.append(
            f"the dielectric tensor of {file} breaks the symmetry of the crystal by up to "
            f"{apart:.3g}: is it in the axes of this structure? It was made symmetric"
        )
    if eigenvalues[0] < 1:
        notes.append(
            f"the dielectric tensor of {file} has an eigenvalue of {eigenvalues[0]:.3g}; no "
            "crystal has one below 1"
        )
    usual = _default_factor()
    if abs(factor - usual) > FACTOR_ERROR * usual:
        notes.append(
            f"the first line of {file} has the factor {factor:g} instead of {usual:.4f}, "
            "that of charges in e and lengths in Å; it was used"
        )
    return notes + _signs(file, symmetric, list(primitive.symbols))


def _signs(file: str, charges: np.ndarray, symbols: list[str]) -> list[str]:
    """A warning if the most electronegative element is positive or the least one negative."""
    bare = [re.sub(r"\d+$", "", symbol) for symbol in symbols]
    known = {s: ELECTRONEGATIVITY[s] for s in bare if s in ELECTRONEGATIVITY}
    if len(known) < 2 or max(known.values()) - min(known.values()) < POLAR:
        return []
    mean = {
        s: float(np.mean([np.trace(z) / 3 for z, b in zip(charges, bare, strict=True) if b == s]))
        for s in known
    }
    least, most = min(known, key=lambda s: known[s]), max(known, key=lambda s: known[s])
    wrong = [
        f"{s} has {mean[s]:+.2f} e"
        for s, bad in ((most, mean[most] > WRONG_SIGN), (least, mean[least] < -WRONG_SIGN))
        if bad
    ]
    if not wrong:
        return []
    return [
        f"the Born charges of {file} contradict the electronegativities of the elements "
        f"({', '.join(wrong)}): are they in the order of this structure's atoms?"
    ]
