"""CIF: one crystal for each data block, checked against everything that the block states.

gemmi parses the text and knows the space groups. The content of the cell, from sites and
operations, is compared with the formula; a block that can mean two crystals is refused, or read
with a warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.errors import InputError
from dpa3sim.structures.cif_elements import Formula, Site, formulas_of, group_error, resolve
from dpa3sim.structures.cif_symmetry import Operations, readings
from dpa3sim.structures.given import ISOTOPES, Frame
from dpa3sim.structures.inspection import pairs

if TYPE_CHECKING:
    import gemmi

# Images of one site closer than this are one atom on a special position with rounded coordinates:
# with three decimals they are up to 0.1 Å apart in a cell of 30 Å; no bond is so short.
SAME_ATOM = 0.3
# A warning is given if an atom moved further than this onto its special position, Å.
WORTH_A_WORD = 0.1
# No two nuclei are so close, Å.
TOO_NEAR = 0.5
# Occupancies are refined, with errors of this size.
OCCUPANCY_ERROR = 0.005
# The volume that a file states and that of its cell differ by rounding only.
VOLUME_ERROR = 0.02
UNKNOWN = ("", ".", "?")


def frames(text: str) -> Iterator[Frame | InputError]:
    """The structures of all blocks that have sites; a bad block becomes an error.

    Raises:
        ValueError: the text is not a CIF.
    """
    for block in _blocks(text):
        data = Data(block)
        if not data.has("atom_site_"):
            continue
        try:
            yield _structure(data)
        except InputError as error:
            yield InputError(f"data_{block.name}: {error}")


class Data:
    """The tags of a block, in lower case and without the first underscore, with all their values.

    Tags of CIF 1 and tags with dots are treated alike.
    """

    def __init__(self, block: gemmi.cif.Block) -> None:
        from gemmi import cif

        self._columns: dict[str, list[str]] = {}
        self._twice: set[str] = set()
        item: Any
        for item in block:
            if item.pair is not None:
                self._add(item.pair[0], [cif.as_string(item.pair[1])])
            elif item.loop is not None:
                values, tags = [cif.as_string(v) for v in item.loop.values], item.loop.tags
                for k, tag in enumerate(tags):
                    self._add(tag, values[k :: len(tags)])

    def _add(self, tag: str, values: list[str]) -> None:
        name = tag.lower().lstrip("_").replace(".", "_")
        if self._columns.setdefault(name, values) != values:
            self._twice.add(name)

    def has(self, beginning: str) -> bool:
        """Whether there is any tag with this beginning."""
        return any(name.startswith(beginning) for name in self._columns)

    def column(self, *names: str) -> list[str]:
        """The values of the first of these tags that exists; empty if there is none.

        Raises:
            InputError: the block has this tag twice, with different values.
        """
        for name in names:
            if name in self._twice:
                raise InputError(f"_{name} occurs twice, with different values")
            if name in self._columns:
                return self._columns[name]
        return []

    def value(self, *names: str) -> str:
        """The value of the first of these tags that has one; empty if none has."""
        for name in names:
            for value in self.column(name)[:1]:
                if value.strip() not in UNKNOWN:
                    return value.strip()
        return ""

    def number(self, name: str) -> float | None:
        """The value as a number without its standard deviation; None if it is unknown.

        Raises:
            InputError: it is not a number.
        """
        text = self.value(name)
        return None if not text else _number(text, f"_{name}")


def _blocks(text: str) -> Any:
    """The data blocks; texts with common errors are repaired first.

    Raises:
        ValueError: they cannot be repaired.
    """
    from gemmi import cif

    plain = text.encode("ascii", "replace").decode()  # other characters are in comments and names
    attempts = [plain, _mended(plain)]
    for attempt in attempts:
        try:
            return cif.read_string(attempt, check_level=0)
        except ValueError as error:
            fault = error
    raise ValueError(str(fault).removeprefix("string:")) from None


def _mended(text: str) -> str:
    """Add quotes around values of several words, and a name for a block without one."""
    lines, in_text = [], False
    for line in text.splitlines():
        if line.startswith(";"):
            in_text = not in_text
        words = line.split("#")[0].split()
        plain = not in_text and len(words) > 2 and words[0].startswith("_")
        if plain and not any(w[0] in "_'\"" for w in words[1:]):
            line = f"{words[0]} '{' '.join(words[1:])}'"
        lines.append(line)
    mended = "\n".join(lines) + "\n"
    return mended if re.search(r"^\s*data_", mended, re.I | re.M) else "data_\n" + mended


def _number(text: str, what: str) -> float:
    """A number such as ``5.463(2)``, ``.25`` or ``1/3``."""
    bare = re.sub(r"\(\d*\)$", "", text)
    try:
        above, line, below = bare.partition("/")
        value = float(above) / float(below) if line else float(bare)
    except (ValueError, ZeroDivisionError):
        value = np.nan
    if not np.isfinite(value):
        raise InputError(f"{what} is {text!r}, which is not a number")
    return value


# -- one block ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expansion:
    """All atoms of a cell.

    Attributes:
        fractional: ``(n, 3)``. site: ``(n,)``, the site of which each atom is an image.
        warnings: what was moved or merged.
    """

    fractional: np.ndarray
    site: np.ndarray
    warnings: tuple[str, ...] = field(default=())


def _structure(data: Data) -> Frame:
    """The crystal of a block, or its molecule if it has no cell.

    Raises:
        InputError: it is incomplete, contradicts itself, or is not a structure of whole atoms.
    """
    from ase import Atoms

    if data.has("cell_modulation") or data.has("space_group_ssg"):
        raise InputError("is a modulated structure, which no unit cell can describe")
    cell = _cell(data)
    formulas = formulas_of(data.value("chemical_formula_sum"))
    sites, warnings = _sites(data, cell, formulas)
    if cell is None:
        positions = np.array([site.fractional for site in sites])
        expansion = Expansion(positions, np.arange(len(sites)))
        return Frame(_atoms(Atoms(positions=positions), sites, expansion), tuple(warnings))
    warnings += _volume(data, cell)
    found = [
        _read_with(operations, sites, cell, formulas, data) for operations in readings(data, cell)
    ]
    expansion, notes = _only_one([f for f in found if not isinstance(f, InputError)], found, cell)
    atoms = Atoms(cell=cell, scaled_positions=expansion.fractional, pbc=True)
    return Frame(_atoms(atoms, sites, expansion), (*warnings, *notes))


def _atoms(atoms: Any, sites: Sequence[Site], expansion: Expansion) -> Any:
    """The structure with its elements, and the masses of isotopes."""
    from dpa3sim.common.elements import ATOMIC_NUMBERS
    from dpa3sim.structures.isotopes import set_masses

    symbols = np.array([site.symbol for site in sites])[expansion.site]
    atoms.numbers[:] = [ATOMIC_NUMBERS["H" if s in ISOTOPES else s] for s in symbols]
    for symbol, mass in ISOTOPES.items():
        if (symbols == symbol).any():
            set_masses(atoms, symbols == symbol, mass)
    return atoms


def _cell(data: Data) -> np.ndarray | None:
    """The lattice vectors as rows, Å; None if the block has no cell.

    Raises:
        InputError: the cell is incomplete or impossible.
    """
    from ase.geometry import cellpar_to_cell

    names = [f"cell_length_{x}" for x in "abc"]
    names += [f"cell_angle_{x}" for x in ("alpha", "beta", "gamma")]
    values = [data.number(name) for name in names]
    if values == [None] * 6:
        return None
    for name, value in zip(names, values, strict=True):
        if value is None:
            raise InputError(f"_{name} is missing")
    lengths, angles = np.array(values[:3]), np.array(values[3:])
    if (lengths <= 0).any() or (angles <= 0).any() or (angles >= 180).any():
        raise InputError(f"the cell {' '.join(f'{v:g}' for v in values if v)} is impossible")
    with np.errstate(all="ignore"):
        try:
            cell = np.asarray(cellpar_to_cell(values))
        except AssertionError:  # raised by ASE for impossible angles
            cell = np.zeros((3, 3))
    if not np.isfinite(cell).all() or abs(np.linalg.det(cell)) < 1e-6 * lengths.prod():
        raise InputError(f"the angles {angles.tolist()} do not form a cell")
    return cell


def _volume(data: Data, cell: np.ndarray) -> list[str]:
    stated, volume = data.number("cell_volume"), abs(float(np.linalg.det(cell)))
    if stated is None or abs(stated - volume) <= VOLUME_ERROR * volume:
        return []
    return [f"the file states a volume of {stated:g} Å^3, but its cell has {volume:.6g} Å^3"]


def _sites(
    data: Data, cell: np.ndarray | None, formulas: Sequence[Formula]
) -> tuple[list[Site], list[str]]:
    """The fully occupied sites.

    Raises:
        InputError: there are none, or one has a partial occupancy, no element or no coordinates.
    """
    labels, types = data.column("atom_site_label"), data.column("atom_site_type_symbol")
    labels = labels or types or data.column("atom_site_id")
    if not labels:
        raise InputError("the sites have neither labels nor elements")
    places = _places(data, cell, len(labels))
    shares = data.column("atom_site_occupancy") or ["."] * len(labels)
    flags = data.column("atom_site_calc_flag") or ["."] * len(labels)
    kept, nowhere = [], []
    types = types or ["."] * len(labels)
    for label, kind, place, share, flag in zip(labels, types, places, shares, flags, strict=True):
        if flag.lower() == "dum" or not _is_occupied(label, share):
            continue
        if place is None:
            nowhere.append(label)
            continue
        kept.append(Site(label, "" if kind in UNKNOWN else kind, place))
    _check_alternatives(data, {site.label for site in kept})
    warnings = []
    if nowhere:
        warnings.append(f"sites without coordinates are left out: {', '.join(nowhere)}")
    if not kept:
        raise InputError("no site has both coordinates and an atom")
    return resolve(kept, formulas), warnings


def _check_alternatives(data: Data, kept: set[str]) -> None:
    """Raise InputError if sites are alternatives of a disordered structure, whatever their shares.

    The groups of an assembly exclude each other; one of them alone is an ordered structure.
    """
    labels, groups = data.column("atom_site_label"), data.column("atom_site_disorder_group")
    if len(labels) != len(groups):
        return
    assemblies = data.column("atom_site_disorder_assembly") or ["."] * len(labels)
    found: dict[str, dict[str, str]] = {}
    for label, assembly, group in zip(labels, assemblies, groups, strict=True):
        if label in kept and group not in (*UNKNOWN, "0"):
            found.setdefault("." if assembly in UNKNOWN else assembly, {}).setdefault(group, label)
    for members in found.values():
        if len(members) > 1:
            first, second = list(members.values())[:2]
            raise InputError(
                f"is disordered: the sites {first} and {second} belong to alternative groups "
                "(_atom_site_disorder_group); keep one group of each assembly"
            )


def _is_occupied(label: str, share: str) -> bool:
    """Whether a site has its atom; a site of unknown occupancy has.

    Raises:
        InputError: the occupancy is partial.
    """
    if share in UNKNOWN:
        return True
    try:
        value = _number(share, "the occupancy")
    except InputError:
        value = np.nan
    if abs(value) <= OCCUPANCY_ERROR:
        return False
    if abs(value - 1) <= OCCUPANCY_ERROR:
        return True
    raise InputError(
        f"has partially occupied sites ({label}: {share}); make an ordered structure of it first"
    )


def _places(data: Data, cell: np.ndarray | None, count: int) -> list[np.ndarray | None]:
    """Fractional coordinates of the sites, Cartesian ones (Å) without a cell; None if unknown."""
    columns = [data.column(f"atom_site_fract_{x}") for x in "xyz"]
    fractional = all(len(column) == count for column in columns)
    if not fractional:
        columns = [data.column(f"atom_site_cartn_{x}") for x in "xyz"]
        if not all(len(column) == count for column in columns):
            raise InputError("the sites have no coordinates (_atom_site_fract_x, _y, _z)")
        if cell is not None and data.has("atom_sites_cartn_tran"):
            raise InputError("Cartesian coordinates with their own axes are not supported")
    elif cell is None:
        raise InputError("has fractional coordinates, but no cell (_cell_length_a)")
    inverse = np.eye(3) if fractional or cell is None else np.linalg.inv(cell)
    found: list[np.ndarray | None] = []
    for k, row in enumerate(zip(*columns, strict=True)):
        if any(word in UNKNOWN for word in row):
            found.append(None)
            continue
        place = [_number(word, f"a coordinate of site {k + 1}") for word in row]
        found.append(np.array(place) @ inverse)
    return found


# -- symmetry and formula -------------------------------------------------------------------------


def _read_with(
    operations: Operations,
    sites: Sequence[Site],
    cell: np.ndarray,
    formulas: Sequence[Formula],
    data: Data,
) -> tuple[Expansion, list[str]] | InputError:
    """The structure with these operations, and warnings; an error if it is impossible."""
    try:
        operations.check(cell)
        expansion = expand(sites, operations, cell)
        notes = [*operations.warnings, *expansion.warnings]
        confirmed = False
        if formulas:
            units = data.number("cell_formula_units_z")
            note = _compare(expansion, sites, formulas, units)
            notes += [note] if note else []
            confirmed = units is not None and not note
        if not confirmed:
            notes += operations.doubts
        return expansion, notes
    except InputError as error:
        return error


def expand(sites: Sequence[Site], operations: Operations, cell: np.ndarray) -> Expansion:
    """All images of the sites in a cell; images that coincide are one atom.

    Raises:
        InputError: different atoms are too close to each other.
    """
    parts, owners, warnings = [], [], []
    for number, site in enumerate(sites):
        images, moved = _orbit(site.fractional, operations, cell)
        if moved > WORTH_A_WORD:
            warnings.append(
                f"site {site.label} is {moved:.2f} Å away from a special position "
                "and was moved onto it"
            )
        parts.append(images)
        owners.append(np.full(len(images), number))
    fractional, owner = np.concatenate(parts), np.concatenate(owners)
    keep, repeated = _without_repetitions(fractional, owner, sites, cell)
    for again, first in repeated:
        warnings.append(
            f"site {sites[again].label} repeats atoms of {sites[first].label}; they count once"
        )
    return Expansion(fractional[keep], owner[keep], tuple(warnings))


def _orbit(place: np.ndarray, operations: Operations, cell: np.ndarray) -> tuple[np.ndarray, float]:
    """The images of a position, ``(n, 3)`` fractional, and its distance from a special position, Å.

    If several operations map a position onto itself, up to rounding, the mean of these images is
    the special position.
    """
    images = operations.rotations @ place + operations.translations
    away = images - place
    away -= np.rint(away)
    back = np.linalg.norm(away @ cell, axis=1) < SAME_ATOM
    shift = away[back].mean(axis=0)
    exact = operations.rotations @ (place + shift) + operations.translations
    # Rounded so that no coordinate of a special position is at an edge.
    keys = np.floor((exact - 1.2345e-5) % 1.0 * 1e4).astype(np.int64) % 10_000
    _, first = np.unique(keys, axis=0, return_index=True)
    return exact[np.sort(first)] % 1.0, float(np.linalg.norm(shift @ cell))


def _without_repetitions(
    fractional: np.ndarray, owner: np.ndarray, sites: Sequence[Site], cell: np.ndarray
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Which atoms do not repeat an earlier one, and which sites repeat which.

    Raises:
        InputError: different atoms are too close to each other.
    """
    keep, repeated = np.ones(len(fractional), dtype=bool), set()
    periodic = np.ones(3, dtype=bool)
    for a, b, distance in zip(*pairs(fractional @ cell, cell, periodic, TOO_NEAR), strict=True):
        first, again = int(owner[a]), int(owner[b])
        if first > again or a == b:
            continue
        same = sites[first].symbol == sites[again].symbol
        if first == again or not same or distance >= SAME_ATOM:
            raise InputError(
                f"atoms of sites {sites[first].label} and {sites[again].label} are "
                f"{distance:.2f} Å apart"
            )
        keep[b] = False
        repeated.add((again, first))
    return keep, sorted(repeated)


def _compare(
    expansion: Expansion,
    sites: Sequence[Site],
    formulas: Sequence[Formula],
    units: float | None,
) -> str | None:
    """A warning if the sites lack only hydrogens of the formula.

    Args:
        units: formula units in the cell, if known.

    Raises:
        InputError: sites and formula contradict each other.
    """
    found = Formula.of(sites[k].symbol for k in expansion.site)
    for formula in formulas:
        multiples = [units or found.ratio(formula)]
        if units and formula.is_multiple(units):
            multiples.append(1.0)  # some programs write the content of the cell as formula, and Z
        if any(multiple and found.equals(formula, multiple) for multiple in multiples):
            return None
    for formula in formulas:
        multiple = units or found.ratio(formula, without="H")
        if multiple and found.lacks_hydrogen(formula, multiple):
            if groups := [site.label for site in sites if site.group]:
                raise group_error(groups[0])
            return (
                f"the formula is {formula}, the sites are {found.reduced()}: the positions of "
                "hydrogen atoms are missing, and without them this is another compound"
            )
    stated = f"{formulas[0]}" + (f" with Z = {units:g}" if units else "")
    raise InputError(f"the formula is {stated}, but the sites result in {found} in the cell")


def _only_one(
    good: Sequence[tuple[Expansion, list[str]]], found: Sequence[Any], cell: np.ndarray
) -> tuple[Expansion, list[str]]:
    """The one crystal on which the readings of a block agree.

    Raises:
        InputError: there is none, or there are several.
    """
    if not good:
        raise next(error for error in found if isinstance(error, InputError))
    first, notes = good[0]
    for other, _ in good[1:]:
        if not _alike(first, other, cell):
            raise InputError(
                "the space group has several settings, for which the sites result in different "
                "crystals; the file must list its operations or name the setting, such as "
                "'F d -3 m:2'"
            )
    return first, notes


def _alike(a: Expansion, b: Expansion, cell: np.ndarray) -> bool:
    """Whether two readings are the same crystal, apart from the origin."""
    if len(a.site) != len(b.site) or (np.bincount(a.site) != np.bincount(b.site)).any():
        return False
    return all(
        np.allclose(x, y, atol=1e-3)
        for x, y in zip(_distances(a, cell), _distances(b, cell), strict=True)
    )


def _distances(expansion: Expansion, cell: np.ndarray) -> list[np.ndarray]:
    """Sorted distances from one atom of each site to the atoms of each site, nearest images, Å."""
    from ase.geometry import get_distances

    positions, found = expansion.fractional @ cell, []
    for site in np.unique(expansion.site):
        start = int(np.flatnonzero(expansion.site == site)[0])
        _, away = get_distances(positions[start : start + 1], positions, cell=cell, pbc=True)
        found += [np.sort(away[0][expansion.site == k]) for k in np.unique(expansion.site)]
    return found
