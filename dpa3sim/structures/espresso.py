"""Inputs of pw.x (Quantum ESPRESSO): namelists, cards, and all its Bravais lattices.

The conventions are those of the page INPUT_PW of Quantum ESPRESSO: ``celldm`` in bohr and relative
to the first length, or A, B, C in Å with cosines.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from dpa3sim.common.elements import SYMBOLS
from dpa3sim.common.errors import InputError
from dpa3sim.structures.given import ISOTOPES, Frame
from dpa3sim.structures.isotopes import SAME_MASS, as_elements, resolved, set_masses

if TYPE_CHECKING:
    from ase import Atoms

CARDS = (
    "ATOMIC_SPECIES|ATOMIC_POSITIONS|K_POINTS|CELL_PARAMETERS|CONSTRAINTS|OCCUPATIONS|ADDITIONAL_K_"
    "POINTS|ATOMIC_VELOCITIES|ATOMIC_FORCES|SOLVENTS|HUBBARD|AUTOPILOT|PLOT_WANNIER|REF_CELL_PARA"
    "METERS"
)
PARTIAL = (
    "lists only the symmetry-inequivalent atoms of its space group; convert it to a CIF or a "
    "POSCAR with all atoms of the cell"
)
# A coordinate is a short expression, such as 1/3 or 2.0d0*0.25.
LONGEST_EXPRESSION = 80
LARGEST_POWER = 100.0
Values = Mapping[str, str]


def frames(source: TextIO) -> Iterator[Frame]:
    """The structure of an input, with its fixed coordinates.

    Raises:
        ValueError: it is not an input of pw.x.
        InputError: its lattice or its elements are not understood.
    """
    namelists, cards = _divide(source.read().splitlines())
    system = namelists.get("system")
    if system is None:
        raise ValueError("there is no namelist &SYSTEM")
    positions = cards.get("ATOMIC_POSITIONS")
    if positions is None:
        raise ValueError("there is no card ATOMIC_POSITIONS")
    unit = positions[0]
    if "space_group" in system or unit == "crystal_sg":
        raise InputError(PARTIAL)
    cell, alat = _cell(system, cards.get("CELL_PARAMETERS"))
    rows = [line.split() for line in positions[1:]]
    count = _whole(system, "nat")
    if not 0 < count <= len(rows):
        raise ValueError(f"nat is {count}, but ATOMIC_POSITIONS has {len(rows)} lines")
    rows = rows[:count]
    axes = _unit(unit, "ATOMIC_POSITIONS", alat)
    places = np.array([[_value(word) for word in _three(row)] for row in rows]).reshape(-1, 3)
    species = _species(cards.get("ATOMIC_SPECIES", [""])[1:])
    symbols = [_element(row[0], species.get(row[0], ("", ""))[1]) for row in rows]
    atoms = _atoms(symbols, places @ (cell if axes is None else axes * np.eye(3)), cell)
    _heavy(atoms, [row[0] for row in rows], species)
    _constrain(atoms, rows)
    yield Frame(atoms)


# -- text -----------------------------------------------------------------------------------------


def _divide(lines: Sequence[str]) -> tuple[dict[str, dict[str, str]], dict[str, list[str]]]:
    """Values of the namelists, and the lines of the cards after the word behind their name.

    Raises:
        ValueError: a namelist or a card occurs twice.
    """
    namelists: dict[str, dict[str, str]] = {}
    cards: dict[str, list[str]] = {}
    values: list[str] | None = None
    name, current = "", cards.setdefault("", [])
    for raw in lines:
        line = _without_comment(raw)
        if not line:
            continue
        if values is None and (opening := re.match(r"&(\w+)\s*(.*)", line)):
            name, line, values = opening.group(1).lower(), opening.group(2), []
            if name in namelists:
                raise ValueError(f"two namelists &{name.upper()}")
        if values is None:
            if card := re.match(rf"({CARDS})\b\W*(\w*)", line, re.IGNORECASE):
                title = card.group(1).upper()
                if title in cards:
                    raise ValueError(f"two cards {title}")
                cards[title] = current = [card.group(2).lower()]
            else:
                current.append(line)
            continue
        end = re.fullmatch(r"(.*?)(?:/|&end)", line, re.IGNORECASE)
        values.append(end.group(1) if end else line)
        if end:
            namelists[name], values = _assignments(" , ".join(values)), None
    if values is not None:
        raise ValueError(f"the namelist &{name.upper()} does not end")
    return namelists, cards


def _without_comment(line: str) -> str:
    """A line without its comment; an exclamation mark in a text is no comment."""
    if line.lstrip().startswith("#"):
        return ""
    kept = re.match(r"""(?:[^!'"#]|'[^']*'|"[^"]*"|['"])*""", line)
    return kept.group().strip() if kept else ""


def _assignments(text: str) -> dict[str, str]:
    """The values of a namelist by their names in lower case; those of an array by ``name(1)``."""
    found: dict[str, str] = {}
    pieces = re.split(r"(\w+\s*(?:\([\d\s,]*\))?)\s*=", re.sub(r"'[^']*'|\"[^\"]*\"", _shut, text))
    for key, value in zip(pieces[1::2], pieces[2::2], strict=True):
        name = re.sub(r"\s", "", key).lower()
        words = [word for word in re.split(r"[\s,]+", value) if word]
        if name == "celldm":
            found |= {f"celldm({k})": word for k, word in enumerate(words, start=1)}
        elif words:
            found[name] = words[0]
    return found


def _shut(match: re.Match[str]) -> str:
    """A quoted text as one word, so that nothing in it looks like an assignment."""
    return re.sub(r"[\s,=]", "_", match.group())


_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def _value(text: str) -> float:
    """The value of a number or an arithmetic expression: ``1.0d0``, ``1/3``, ``(2+1)*0.1``.

    Raises:
        ValueError: it is none.
    """
    plain = re.sub(r"(?<=[\d.])[dD](?=[-+\d])", "e", text).replace("^", "**")
    try:
        return float(plain)
    except ValueError:
        pass
    if len(plain) > LONGEST_EXPRESSION or not re.fullmatch(r"[-+*/().\deE]+", plain):
        raise ValueError(f"{text[:40]!r} is not a number")
    try:
        return _computed(ast.parse(plain, mode="eval").body)
    except (SyntaxError, ArithmeticError, TypeError):
        raise ValueError(f"{text[:40]!r} is not a number") from None


def _computed(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.UnaryOp):
        value = _computed(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _computed(node.left), _computed(node.right)
        if isinstance(node.op, ast.Pow) and abs(right) > LARGEST_POWER:
            raise ArithmeticError
        return float(_OPERATORS[type(node.op)](left, right))
    raise TypeError


def _three(row: Sequence[str]) -> Sequence[str]:
    """The coordinates of an atom.

    Raises:
        ValueError: the line has fewer.
    """
    if len(row) < 4:
        raise ValueError(f"the line {' '.join(row)[:40]!r} of ATOMIC_POSITIONS is too short")
    return row[1:4]


def _whole(system: Values, name: str) -> int:
    """A whole number of &SYSTEM.

    Raises:
        ValueError: it is missing, or something else.
    """
    text = system.get(name)
    if text is None or not re.fullmatch(r"[-+]?\d+", text):
        raise ValueError(f"{name} in &SYSTEM " + (f"is {text!r}" if text else "is missing"))
    return int(text)


# -- lattice --------------------------------------------------------------------------------------


def _cell(system: Values, card: Sequence[str] | None) -> tuple[np.ndarray, float | None]:
    """Lattice vectors as rows, and the unit of length called alat, None if not given; both in Å.

    Raises:
        InputError: the lattice is incomplete or unknown. ValueError: a number is missing.
    """
    from ase.units import Bohr

    ibrav = _whole(system, "ibrav")
    celldm = {k: _value(system[f"celldm({k})"]) for k in range(1, 7) if f"celldm({k})" in system}
    stated = {name: _value(system[name]) for name in ("a", "b", "c") if name in system}
    if celldm.get(1) and stated.get("a"):
        raise InputError("&SYSTEM has both celldm and A; pw.x accepts only one of them")
    if stated.get("a"):
        celldm, scale = _celldm(ibrav, system, stated), 1.0
    else:
        scale = float(Bohr)
    alat = celldm[1] * scale if celldm.get(1) else None
    if ibrav != 0:
        if alat is None:
            raise InputError(f"ibrav = {ibrav} needs celldm(1) or A in &SYSTEM")
        return alat * lattice(ibrav, celldm), alat
    if card is None or len(card) < 4:
        raise InputError("ibrav = 0 needs the card CELL_PARAMETERS with three vectors")
    vectors = np.array([[_value(w) for w in (line.split() + [""] * 3)[:3]] for line in card[1:4]])
    # Without a unit, vectors are in alat if that is given, else in bohr.
    unit = card[0] or ("alat" if alat else "bohr")
    factor = _unit(unit, "CELL_PARAMETERS", alat)
    if factor is None:
        raise InputError(f"CELL_PARAMETERS cannot be in units of {unit}")
    cell = factor * vectors
    return cell, alat or float(np.linalg.norm(cell[0]))


def _celldm(ibrav: int, system: Values, lengths: Mapping[str, float]) -> dict[int, float]:
    """Lattice parameters as celldm, from A, B, C in Å and cosines; celldm(1) is in Å."""
    first = lengths["a"]
    found = {1: first}
    found |= {k: lengths[name] / first for k, name in ((2, "b"), (3, "c")) if lengths.get(name)}
    cosines = {name: _value(system[name]) for name in ("cosab", "cosac", "cosbc") if name in system}
    order = {4: "cosab"}
    if ibrav == 14:
        order = {4: "cosbc", 5: "cosac", 6: "cosab"}
    elif ibrav in (-12, -13):
        order = {5: "cosac"}
    return found | {k: cosines[name] for k, name in order.items() if name in cosines}


def _unit(unit: str, card: str, alat: float | None) -> float | None:
    """A unit of length in Å; None for fractional coordinates.

    Raises:
        InputError: it is unknown.
    """
    from ase.units import Bohr

    if unit in ("crystal", "bohr", "angstrom"):
        return {"crystal": None, "bohr": float(Bohr), "angstrom": 1.0}[unit]
    if unit not in ("", "alat"):
        raise InputError(f"{card} has the unknown unit {unit!r}")
    if alat is None:
        raise InputError(f"{card} is in units of alat, but &SYSTEM has neither celldm(1) nor A")
    return alat


# The lengths (2: b/a, 3: c/a) and cosines (4 to 6) that each lattice needs.
NEEDED: Mapping[int, tuple[int, ...]] = {
    1: (), 2: (), 3: (), -3: (), 4: (3,), 5: (4,), -5: (4,), 6: (3,), 7: (3,), 8: (2, 3),
    9: (2, 3), -9: (2, 3), 91: (2, 3), 10: (2, 3), 11: (2, 3), 12: (2, 3, 4), -12: (2, 3, 5),
    13: (2, 3, 4), -13: (2, 3, 5), 14: (2, 3, 4, 5, 6),
}  # fmt: skip


def lattice(ibrav: int, celldm: Mapping[int, float]) -> np.ndarray:
    """Primitive vectors as rows, in units of celldm(1), of a Bravais lattice of pw.x.

    Raises:
        InputError: the number is unknown, or a length or cosine is missing or impossible.
    """
    if ibrav not in NEEDED:
        raise InputError(f"ibrav = {ibrav} is not a lattice of pw.x")
    for k in NEEDED[ibrav]:
        if k not in celldm:
            raise InputError(f"ibrav = {ibrav} needs celldm({k}) or its A, B, C and cosines")
        if celldm[k] <= 0 if k <= 3 else abs(celldm[k]) >= 1:
            raise InputError(f"celldm({k}) = {celldm[k]:g} is impossible for ibrav = {ibrav}")
    b, c = celldm.get(2, 1.0), celldm.get(3, 1.0)
    if ibrav in (5, -5):
        return _trigonal(ibrav, celldm[4])
    if ibrav in (12, -12, 13, -13, 14):
        return _oblique(ibrav, b, c, celldm)
    half = 0.5
    vectors = {
        1: [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        2: [[-half, 0, half], [0, half, half], [-half, half, 0]],
        3: [[half, half, half], [-half, half, half], [-half, -half, half]],
        -3: [[-half, half, half], [half, -half, half], [half, half, -half]],
        4: [[1, 0, 0], [-half, np.sqrt(0.75), 0], [0, 0, c]],
        6: [[1, 0, 0], [0, 1, 0], [0, 0, c]],
        7: [[half, -half, c / 2], [half, half, c / 2], [-half, -half, c / 2]],
        8: [[1, 0, 0], [0, b, 0], [0, 0, c]],
        9: [[half, b / 2, 0], [-half, b / 2, 0], [0, 0, c]],
        -9: [[half, -b / 2, 0], [half, b / 2, 0], [0, 0, c]],
        91: [[1, 0, 0], [0, b / 2, -c / 2], [0, b / 2, c / 2]],
        10: [[half, 0, c / 2], [half, b / 2, 0], [0, b / 2, c / 2]],
        11: [[half, b / 2, c / 2], [-half, b / 2, c / 2], [-half, -b / 2, c / 2]],
    }
    return np.array(vectors[ibrav], dtype=float)


def _trigonal(ibrav: int, cosine: float) -> np.ndarray:
    """Rhombohedral vectors around z (5), or around the diagonal of a cube (-5).

    Raises:
        InputError: three vectors cannot have this angle between them.
    """
    if cosine <= -0.5:
        raise InputError(f"celldm(4) = {cosine:g} is impossible for ibrav = {ibrav}")
    x, y, z = np.sqrt([(1 - cosine) / 2, (1 - cosine) / 6, (1 + 2 * cosine) / 3])
    if ibrav == 5:
        return np.array([[x, -y, z], [0, 2 * y, z], [-x, -y, z]])
    u, v = (z - 2 * np.sqrt(2) * y) / np.sqrt(3), (z + np.sqrt(2) * y) / np.sqrt(3)
    return np.array([[u, v, v], [v, u, v], [v, v, u]])


def _oblique(ibrav: int, b: float, c: float, celldm: Mapping[int, float]) -> np.ndarray:
    """Monoclinic and triclinic vectors.

    Raises:
        InputError: the angles form no cell.
    """
    if ibrav in (-12, -13):  # b is the unique axis
        third = [c * celldm[5], 0, c * np.sqrt(1 - celldm[5] ** 2)]
        if ibrav == -12:
            return np.array([[1, 0, 0], [0, b, 0], third])
        return np.array([[0.5, b / 2, 0], [-0.5, b / 2, 0], third])
    bc, ac, ab = (celldm[k] for k in (4, 5, 6)) if ibrav == 14 else (0.0, 0.0, celldm[4])
    sine = np.sqrt(1 - ab**2)
    second = [b * ab, b * sine, 0]
    if ibrav == 12:
        return np.array([[1, 0, 0], second, [0, 0, c]])
    if ibrav == 13:
        return np.array([[0.5, 0, -c / 2], second, [0.5, 0, c / 2]])
    square = 1 + 2 * bc * ac * ab - bc**2 - ac**2 - ab**2
    if square <= 0:
        raise InputError("celldm(4) to celldm(6) are cosines of angles that form no cell")
    third = [c * ac, c * (bc - ac * ab) / sine, c * np.sqrt(square) / sine]
    return np.array([[1, 0, 0], second, third])


# -- atoms ----------------------------------------------------------------------------------------


def _species(lines: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Mass and potential of each label."""
    rows = [[*line.split(), "", ""][:3] for line in lines]
    return {label: (mass, potential) for label, mass, potential in rows}


def _element(label: str, potential: str) -> str:
    """The element of a label such as ``Fe1``, ``C_h``, ``SI``; the potential's name decides.

    Raises:
        InputError: it begins with no element.
    """
    letters = re.match(r"[A-Za-z]{0,2}", label)
    found = letters.group().capitalize() if letters else ""
    fitting = [s for s in (found, found[:1]) if s in SYMBOLS or s in ISOTOPES]
    if not fitting:
        raise InputError(f"the label {label!r} does not begin with an element")
    beginning = re.match(r"[A-Za-z]{1,2}(?![A-Za-z])", potential)
    named = beginning.group().capitalize() if beginning else ""
    return named if named in fitting else fitting[0]


def _atoms(symbols: Sequence[str], positions: np.ndarray, cell: np.ndarray) -> Atoms:
    from ase import Atoms

    with as_elements():
        atoms = Atoms(list(symbols), positions=positions, cell=cell, pbc=True)
    return resolved(atoms)


def _heavy(atoms: Atoms, labels: Sequence[str], species: Mapping[str, tuple[str, str]]) -> None:
    """Set the mass of heavy hydrogen, which an input shows by its mass only."""
    for label, (text, _) in species.items():
        try:
            mass = _value(text)
        except ValueError:
            continue
        for isotope in ISOTOPES.values():
            # Within usual rounding, and far from the mass of hydrogen.
            which = np.array([name == label for name in labels]) & (atoms.numbers == 1)
            if abs(mass - isotope) < 5 * SAME_MASS and which.any():
                set_masses(atoms, which, isotope)


def _constrain(atoms: Atoms, rows: Sequence[Sequence[str]]) -> None:
    """Fix coordinates whose multiplier (if_pos) is 0."""
    from ase.constraints import FixAtoms, FixCartesian

    free = np.array(
        [[_multiplier(w) for w in (row[4:7] if len(row) > 6 else "111")] for row in rows]
    )
    fixed = (free == 0).reshape(-1, 3)
    constraints: list[Any] = [
        FixCartesian(int(k), fixed[k])
        for k in np.flatnonzero(fixed.any(axis=1) & ~fixed.all(axis=1))
    ]
    if fixed.all(axis=1).any():
        constraints.append(FixAtoms(np.flatnonzero(fixed.all(axis=1))))
    atoms.set_constraint(constraints)


def _multiplier(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"if_pos is {word[:20]!r}, not 0 or 1") from None
