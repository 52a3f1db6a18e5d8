"""Data files and dumps of LAMMPS, whose atoms have numbered types.

The elements come from the user, or else from labels of the types, from the element column of a
dump, or from the masses if they identify elements. The number of a type is never an element.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

import numpy as np

from dpa3sim.common.elements import SYMBOLS
from dpa3sim.common.errors import InputError
from dpa3sim.structures.given import ISOTOPES, Frame, ReadingSettings, chosen
from dpa3sim.structures.isotopes import as_elements, resolved

if TYPE_CHECKING:
    from ase import Atoms

# A larger number of types means a damaged file.
MAX_TYPES = 100_000
# Columns of atom styles: of the type, of x, and their number (LAMMPS manual, read_data).
STYLES = {
    "atomic": (1, 2, 5),
    "charge": (1, 3, 6),
    "molecular": (2, 3, 6),
    "bond": (2, 3, 6),
    "angle": (2, 3, 6),
    "full": (2, 4, 7),
    "dipole": (1, 3, 9),
    "sphere": (1, 4, 7),
    "spin": (1, 2, 9),
    "dpd": (1, 3, 6),
    "tdpd": (1, 2, 5),
    "electron": (1, 5, 8),
    "ellipsoid": (1, 4, 7),
    "line": (2, 5, 8),
    "tri": (2, 5, 8),
    "body": (1, 4, 7),
    "peri": (1, 4, 7),
    "mdpd": (1, 3, 6),
    "edpd": (1, 4, 7),
    "rheo": (1, 4, 7),
}
# Styles to try if the file does not name one.
USUAL = ("atomic", "charge", "molecular", "full")
SECTIONS = re.compile(
    r"(Masses|Atoms|Velocities|Bonds|Angles|Dihedrals|Impropers|Atom Type Labels|Ellipsoids|Lines|"
    r"Triangles|Bodies|(Bond|Angle|Dihedral|Improper) Type Labels|Pair Coeffs|PairIJ Coeffs|"
    r"\w+ Coeffs)\b\s*(#\s*(.*))?$"
)
# Masses are rounded to the fourth digit or better; an element is identified if its relative
# deviation is below this, and no other element is within twice as much.
MASS_ERROR = 0.003
# How far atoms may be outside of their box in a file whose columns are not named, in box lengths.
OUTSIDE = 0.5
WAY_OUT = "pass the elements of the types in their order, such as --elements O,H"


@dataclass(frozen=True)
class _Types:
    """What a file says about its types.

    Attributes:
        count: their number. labels: by number. masses: by number, u.
    """

    count: int
    labels: Mapping[int, str]
    masses: Mapping[int, float]


def _symbols(types: _Types, given: ReadingSettings) -> list[str]:
    """The element of each type, in order.

    Raises:
        InputError: neither the user nor the file names them.
    """
    if wanted := given.symbols():
        return chosen(wanted, types.count, "the file")
    labels = [_element(types.labels.get(k, "")) for k in range(1, types.count + 1)]
    if all(labels):
        return [label for label in labels if label]
    masses = [types.masses.get(k) for k in range(1, types.count + 1)]
    if None in masses or not masses:
        raise InputError(f"its atoms have numbered types, which are not elements; {WAY_OUT}")
    if set(masses) == {1.0}:  # reduced units, not hydrogen
        raise InputError(f"all its masses are 1, which does not identify an element; {WAY_OUT}")
    return [_of_mass(number, mass or 0.0) for number, mass in enumerate(masses, start=1)]


def _element(label: str) -> str | None:
    """The element of a label such as ``Si``, ``Si1`` or ``O_w``; None if it names none."""
    found = re.fullmatch(r"([A-Z][a-z]?)([\d_+\-].*)?", label.strip())
    symbol = found.group(1) if found else ""
    return symbol if symbol in SYMBOLS or symbol in ISOTOPES else None


def _of_mass(number: int, mass: float) -> str:
    """The element, or isotope of hydrogen, with a mass in u.

    Raises:
        InputError: no element has this mass, or several have.
    """
    from ase.data import atomic_masses

    known = {s: float(atomic_masses[z]) for z, s in enumerate(SYMBOLS, start=1)} | ISOTOPES
    # Masses of light elements are written with two digits, such as 1.01 and 16.
    near = {s: abs(m - mass) for s, m in known.items() if abs(m - mass) <= _error(m)}
    best = sorted(near, key=lambda symbol: near[symbol])
    if not best or (len(best) > 1 and near[best[1]] < 4 * near[best[0]] + 1e-3):
        which = f"it can be {' or '.join(best[:3])}" if best else "no element has it"
        raise InputError(f"type {number} has the mass {mass:g} u: {which}; {WAY_OUT}")
    return best[0]


def _error(mass: float) -> float:
    return max(0.012, MASS_ERROR * mass)


def _build(
    symbols: Sequence[str], positions: np.ndarray, cell: np.ndarray, pbc: Sequence[bool]
) -> Atoms:
    from ase import Atoms

    with as_elements():
        atoms = Atoms(list(symbols), positions=positions, cell=cell, pbc=pbc)
    return resolved(atoms)


# -- data files -----------------------------------------------------------------------------------


def data_frames(source: TextIO, given: ReadingSettings) -> Iterator[Frame]:
    """The structure of a data file.

    Raises:
        ValueError: it is not a data file.
        InputError: its types or its columns are not identified.
    """
    title, header, sections, styles = _divide(source.read().splitlines())
    count, n_types = _count(header, "atoms"), _count(header, "atom types")
    if "Atoms" not in sections or count is None or n_types is None:
        raise ValueError("no header with atoms and atom types, or no section Atoms")
    if n_types > MAX_TYPES:
        raise ValueError(f"{n_types} atom types")
    rows = [line.split("#")[0].split() for line in sections["Atoms"]]
    if len(rows) != count:
        raise ValueError(f"{len(rows)} atoms, but the header says {count}")
    cell, origin = _box(header)
    types = _Types(
        n_types,
        _named(sections.get("Atom Type Labels", []), n_types),
        _masses(sections.get("Masses", []), n_types),
    )
    numbers, positions = _columns(rows, styles.get("Atoms", ""), types, cell, origin)
    order = np.argsort([_whole(row[0]) for row in rows], kind="stable")
    symbols = _symbols(types, given)
    scale = _length_unit(title)
    atoms = _build(
        [symbols[k - 1] for k in numbers[order]],
        scale * (positions[order] - origin),
        scale * cell,
        (True, True, True),
    )
    yield Frame(atoms)


def _divide(
    lines: Sequence[str],
) -> tuple[str, list[str], dict[str, list[str]], dict[str, str]]:
    """Title, header, and sections with the comments behind their names, without blank lines."""
    header: list[str] = []
    sections: dict[str, list[str]] = {}
    styles: dict[str, str] = {}
    current = header
    for line in lines[1:]:
        found = SECTIONS.match(line.strip())
        if found:
            name = found.group(1)
            if name in sections:
                raise ValueError(f"two sections {name}")
            current = sections[name] = []
            styles[name] = (found.group(4) or "").strip()
        elif line.split("#")[0].strip():
            current.append(line.strip())
    return lines[0] if lines else "", header, sections, styles


def _count(header: Sequence[str], name: str) -> int | None:
    for line in header:
        found = re.fullmatch(r"(\d+)\s+" + name.replace(" ", r"\s+"), line.split("#")[0].strip())
        if found:
            return int(found.group(1))
    return None


def _box(header: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Lattice vectors as rows and the origin of the box, in the units of the file.

    Raises:
        ValueError: there is no box.
    """
    values: dict[str, list[float]] = {}
    for line in header:
        words = line.split("#")[0].split()
        numbers = [w for w in words if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", w)]
        values[" ".join(words[len(numbers) :])] = [float(w) for w in numbers]
    if "avec" in values:
        rows = [values.get(name, []) for name in ("avec", "bvec", "cvec")]
        return np.array(rows).reshape(3, 3), np.array(values.get("abc origin", [0.0] * 3))
    sides = [values.get(f"{x}lo {x}hi", []) for x in "xyz"]
    if any(len(side) != 2 for side in sides):
        raise ValueError("no box (xlo xhi, ylo yhi, zlo zhi)")
    low, high = np.array(sides).T
    cell = np.diag(high - low)
    tilt = values.get("xy xz yz", [0.0] * 3)
    if len(tilt) != 3:
        raise ValueError("xy xz yz needs three numbers")
    cell[1, 0], cell[2, 0], cell[2, 1] = tilt
    return cell, low


def _named(lines: Sequence[str], count: int) -> dict[int, str]:
    """Labels of types by their numbers."""
    found = {}
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0].isdigit() and 1 <= int(words[0]) <= count:
            found[int(words[0])] = words[1]
    return found


def _masses(lines: Sequence[str], count: int) -> dict[int, float]:
    """Masses of types by their numbers.

    Raises:
        ValueError: a line has no mass.
    """
    found = {}
    for number, line in enumerate(lines, start=1):
        words = line.split("#")[0].split()
        value = float(words[1])
        # A type may be given by its label; the lines are then in the order of the types.
        key = int(words[0]) if words[0].isdigit() else number
        if 1 <= key <= count:
            found[key] = value
    return found


def _length_unit(title: str) -> float:
    """The unit of length in Å; LAMMPS writes it into the first line of its own files.

    Raises:
        InputError: the units are reduced or unusual.
    """
    from ase.units import Bohr

    found = re.search(r"units\s*=\s*(\w+)", title)
    unit = found.group(1) if found else "metal"
    if unit in ("metal", "real"):
        return 1.0
    if unit == "electron":
        return float(Bohr)
    raise InputError(f"is in units {unit!r}; convert it to metal units (Å)")


def _columns(
    rows: Sequence[Sequence[str]],
    style: str,
    types: _Types,
    cell: np.ndarray,
    origin: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Types ``(n,)`` from 1 and positions ``(n, 3)``, from the atom style or from the columns.

    Raises:
        InputError: the columns fit no style, or several with different results.
    """
    name = style.split()[0] if style else ""
    width = min(map(len, rows)) if rows else 0
    readings = []
    for candidate in [name] if name in STYLES else USUAL:
        kind, x, length = STYLES[candidate]
        found = _by_style(rows, kind, x, types)
        if found is None or (
            name not in STYLES
            and not _plausible(rows, width, length, found, cell, origin, candidate)
        ):
            continue
        readings.append((candidate, found))
    if not readings:
        shown = " ".join(rows[0][:10]) if rows else ""
        raise InputError(
            f"the columns of its atoms ({shown!r}) fit no atom style"
            + (f" {name}" if name in STYLES else "; name it behind the word Atoms, as Atoms # full")
        )
    first = readings[0][1]
    for _, other in readings[1:]:
        if not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True)):
            raise InputError(
                f"the columns of its atoms can be of style {' or '.join(n for n, _ in readings)}; "
                "name it behind the word Atoms, as Atoms # full"
            )
    return first


def _by_style(
    rows: Sequence[Sequence[str]], kind: int, x: int, types: _Types
) -> tuple[np.ndarray, np.ndarray] | None:
    """Types and positions from these columns; None if they contain something else."""
    by_label = {label: number for number, label in types.labels.items()}
    try:
        numbers = np.array([by_label.get(row[kind]) or _whole(row[kind]) for row in rows])
        positions = np.array([[float(word) for word in row[x : x + 3]] for row in rows])
    except (ValueError, IndexError):
        return None
    if positions.shape != (len(rows), 3) or not len(rows):
        return None
    good = numbers.min() >= 1 and numbers.max() <= types.count and np.isfinite(positions).all()
    return (numbers, positions) if good else None


def _plausible(
    rows: Sequence[Sequence[str]],
    width: int,
    length: int,
    found: tuple[np.ndarray, np.ndarray],
    cell: np.ndarray,
    origin: np.ndarray,
    style: str,
) -> bool:
    """Whether rows can have an unnamed style, by their width and the distance from the box."""
    images = width == length + 3 and all(_is_whole(w) for row in rows for w in row[length:])
    if width != length and not images:
        return False
    if style in ("molecular", "full") and not all(_is_whole(row[1]) for row in rows):
        return False
    # Formal charges cancel, but types mistaken for charges do not.
    charges = [row[2] for row in rows] if style == "charge" else []
    if charges and all(map(_is_whole, charges)) and sum(map(int, charges)) != 0:
        return False
    try:
        inside = (found[1] - origin) @ np.linalg.inv(cell)
    except np.linalg.LinAlgError:
        return True
    return bool((inside > -OUTSIDE).all() and (inside < 1 + OUTSIDE).all())


def _is_whole(word: str) -> bool:
    return re.fullmatch(r"[-+]?\d+", word) is not None


def _whole(word: str) -> int:
    if not _is_whole(word):
        raise ValueError(f"{word!r} is not a whole number")
    return int(word)


# -- dumps ----------------------------------------------------------------------------------------


def dump_frames(source: TextIO, given: ReadingSettings, last: bool) -> Iterator[Frame]:
    """The frames of a text dump, or only the last one.

    Raises:
        ValueError: it is not a dump.
        InputError: its types are not identified, or it has no positions.
    """
    block: dict[str, list[str]] | None = None
    for block in _dumped(source):
        if not last:
            yield Frame(_of_dump(block, given))
    if last and block is not None:
        yield Frame(_of_dump(block, given))


def _dumped(source: TextIO) -> Iterator[dict[str, list[str]]]:
    """The items of each frame, by their names; the first line is the rest of the item's own."""
    items: dict[str, list[str]] = {}
    current: list[str] = []
    for line in source:
        if not line.startswith("ITEM:"):
            current.append(line)
            continue
        text = line[5:].strip()
        name = next(
            (
                n
                for n in ("ATOMS", "BOX BOUNDS", "NUMBER OF ATOMS", "TIMESTEP", "UNITS", "TIME")
                if text.startswith(n)
            ),
            text,
        )
        if name in ("TIMESTEP", "UNITS") and "ATOMS" in items:
            yield items
            items = {}
        current = items[name] = [text[len(name) :]]
    if "ATOMS" in items:
        yield items


def _of_dump(items: Mapping[str, list[str]], given: ReadingSettings) -> Atoms:
    try:
        count = int(items["NUMBER OF ATOMS"][1])
        cell, origin, pbc = _bounds(items["BOX BOUNDS"])
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"a frame is incomplete ({error})") from None
    names = items["ATOMS"][0].split()
    rows = [line.split() for line in items["ATOMS"][1:] if line.strip()]
    if len(rows) != count or any(len(row) < len(names) for row in rows):
        raise ValueError(f"a frame has {len(rows)} of {count} atoms")
    table = {name: [row[k] for row in rows] for k, name in enumerate(names)}
    scale = _length_unit(f"units = {items['UNITS'][1].strip()}") if "UNITS" in items else 1.0
    positions = _dump_positions(table, cell, origin)
    order = np.arange(count)
    if "id" in table:
        order = np.argsort([_whole(word) for word in table["id"]], kind="stable")
    symbols = _dump_symbols(table, given)
    return _build(
        [symbols[k] for k in order], scale * (positions[order] - origin), scale * cell, pbc
    )


def _bounds(lines: Sequence[str]) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    """Lattice vectors as rows, origin, and periodicity of a box."""
    words = lines[0].split()
    values = np.array([[float(word) for word in line.split()] for line in lines[1:4]])
    flags = [w for w in words if re.fullmatch("[pfsm]{2}", w)]
    pbc = [flag == "pp" for flag in flags] if len(flags) == 3 else [True] * 3
    if words[:2] == ["abc", "origin"]:
        return values[:, :3], values[:, 3], pbc
    low, high = values[:, 0].copy(), values[:, 1].copy()
    xy, xz, yz = values[:, 2] if values.shape[1] > 2 else (0.0, 0.0, 0.0)
    # The bounds are those of the box around the tilted one (LAMMPS manual, Howto triclinic).
    low -= [min(0.0, xy, xz, xy + xz), min(0.0, yz), 0.0]
    high -= [max(0.0, xy, xz, xy + xz), max(0.0, yz), 0.0]
    cell = np.diag(high - low)
    cell[1, 0], cell[2, 0], cell[2, 1] = xy, xz, yz
    return cell, low, pbc


def _dump_positions(
    table: Mapping[str, list[str]], cell: np.ndarray, origin: np.ndarray
) -> np.ndarray:
    for ending, scaled in (("", False), ("u", False), ("s", True), ("su", True)):
        columns = [table.get(f"{axis}{ending}") for axis in "xyz"]
        if all(column is not None for column in columns):
            values = np.array(columns, dtype=float).T
            return values @ cell + origin if scaled else values
    raise InputError("has no positions (columns x y z, xs ys zs, xu yu zu or xsu ysu zsu)")


def _dump_symbols(table: Mapping[str, list[str]], given: ReadingSettings) -> list[str]:
    """The element of each atom: given, named in the file, or of its mass."""
    wanted = given.symbols()
    if not wanted and "element" in table:
        found = [_element(word) for word in table["element"]]
        for word, symbol in zip(table["element"], found, strict=True):
            if symbol is None:
                raise InputError(f"unknown element {word!r} in the column element; {WAY_OUT}")
        return [symbol for symbol in found if symbol]
    if "type" not in table:
        raise InputError("has neither elements nor types")
    words = table["type"]
    if not all(_is_whole(word) for word in words):  # labels
        found = [_element(word) for word in words]
        if None in found:
            raise InputError(f"unknown element {words[found.index(None)]!r} in the column type")
        return [symbol for symbol in found if symbol]
    numbers = [_whole(word) for word in words]
    count = max(numbers, default=0)
    if min(numbers, default=1) < 1:
        raise ValueError(f"there is no type {min(numbers)}")
    if wanted and len(wanted) < count:
        chosen(wanted, count, "the file")
    masses = {n: float(m) for n, m in zip(numbers, table.get("mass", []), strict=False)}
    present = sorted(set(numbers))
    if wanted:  # a dump may have no atoms of the last types
        return [wanted[number - 1] for number in numbers]
    if not masses:
        raise InputError(f"its atoms have numbered types, which are not elements; {WAY_OUT}")
    symbols = dict(
        zip(
            present,
            _symbols(
                _Types(len(present), {}, {k: masses[n] for k, n in enumerate(present, start=1)}),
                given,
            ),
            strict=True,
        )
    )
    return [symbols[number] for number in numbers]
