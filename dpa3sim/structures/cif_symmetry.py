"""The symmetry operations of a CIF: the listed ones, or else those of the named space group."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dpa3sim.common.errors import InputError

if TYPE_CHECKING:
    import gemmi

LISTED = (
    "space_group_symop_operation_xyz",
    "symmetry_equiv_pos_as_xyz",
    "symmetry_equiv_as_xyz",
)
NAMES = (
    "space_group_name_h-m_alt",
    "symmetry_space_group_name_h-m",
    "space_group_name_h-m_full",
    "space_group_name_h-m_ref",
    "symmetry_space_group_name_h-m_alt",
)
HALL = ("space_group_name_hall", "symmetry_space_group_name_hall")
NUMBERS = ("space_group_it_number", "symmetry_int_tables_number", "symmetry_space_group_number")
# Lengths and angles that are equal by symmetry may differ by this, relative to the squares.
METRIC_ERROR = 0.03
# A decimal fraction is replaced by the simple fraction of which it is the rounding.
ROUNDED, LARGEST_DENOMINATOR = 0.004, 12
# No group in a file has more operations.
MAX_OPERATIONS = 5000


class Tags(Protocol):
    """The methods of a data block that are needed here."""

    def has(self, beginning: str) -> bool:
        """Whether there is any tag with this beginning."""

    def column(self, *names: str) -> list[str]:
        """Values of a tag."""

    def value(self, *names: str) -> str:
        """The value of the first tag that has one."""


@dataclass(frozen=True)
class Operations:
    """Symmetry operations, in fractional coordinates.

    Attributes:
        rotations: ``(n, 3, 3)``. translations: ``(n, 3)``.
        warnings: what is unusual about them.
        doubts: what the user must know unless formula and Z confirm the operations.
    """

    rotations: np.ndarray
    translations: np.ndarray
    warnings: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    def check(self, cell: np.ndarray) -> None:
        """Raise InputError if the cell, ``(3, 3)``, does not have the symmetry of the rotations."""
        if self._error(cell) > METRIC_ERROR:
            raise InputError(
                "the symmetry operations do not fit the lengths and angles of the cell"
            )

    def _error(self, cell: np.ndarray) -> float:
        metric = cell @ cell.T
        scale = np.sqrt(np.outer(np.diag(metric), np.diag(metric)))
        turned = self.rotations.transpose(0, 2, 1) @ metric @ self.rotations
        return float(np.abs((turned - metric) / scale).max())

    def fits(self, cell: np.ndarray) -> bool:
        """Whether :meth:`check` accepts the cell."""
        return self._error(cell) <= METRIC_ERROR


def readings(tags: Tags, cell: np.ndarray) -> list[Operations]:
    """The possible sets of operations of a block, usually one.

    Raises:
        InputError: the block does not specify them, or not in a known way.
    """
    magnetic = tags.column("space_group_symop_magn_operation_xyz")
    if magnetic or tags.has("space_group_magn") or tags.has("atom_site_moment"):
        return [_magnetic(tags, magnetic)]
    listed = _triplets(tags.column(*LISTED))
    if listed:
        return [_listed(listed, tags, cell)]
    if tags.value(*HALL):
        return _from_hall(tags.value(*HALL))
    name, number = tags.value(*NAMES), tags.value(*NUMBERS)
    if name or number:
        code = tags.value("space_group_it_coordinate_system_code")
        return _named(name, number, code, cell)
    doubt = "the file gives no symmetry; its atoms are assumed to be all atoms of the cell"
    return [Operations(np.eye(3)[None], np.zeros((1, 3)), doubts=(doubt,))]


# -- operations that are listed -------------------------------------------------------------------


def _triplets(values: Sequence[str]) -> list[str]:
    """One text for each operation, even if their spaces were not quoted."""
    if all(value.count(",") >= 2 for value in values):
        return list(values)
    found, current = [], ""
    for value in values:
        current += value
        if current.count(",") >= 2 and not current.endswith(","):
            found.append(current)
            current = ""
    return [*found, current] if current else found


@cache
def parse(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Rotation ``(3, 3)`` and translation ``(3,)`` of ``-x+1/2, y, z``.

    Raises:
        InputError: it is not an operation.
    """
    error = InputError(f"{text!r} is not a symmetry operation")
    parts = re.sub(r"\s", "", text.lower()).split(",")
    rotation, translation = np.zeros((3, 3)), np.zeros(3)
    if len(parts) < 3:
        raise error
    for row, part in enumerate(parts[:3]):
        terms = re.findall(r"([+-]?)(?:(\d+\.?\d*|\.\d+)(?:/(\d+))?\*?)?([xyz]?)", part)
        if "".join(_spelled(term) for term in terms) != part.replace("*", ""):
            raise error
        for sign, above, below, letter in terms:
            if not above and not letter:
                continue
            if below and int(below) == 0:
                raise error
            value = _fraction(above, below) * (-1 if sign == "-" else 1)
            if letter:
                rotation[row, "xyz".index(letter)] += value
            else:
                translation[row] += value
    if abs(abs(np.linalg.det(rotation)) - 1) > 1e-6 or (rotation != np.rint(rotation)).any():
        raise error
    return rotation, translation


def _spelled(term: tuple[str, str, str, str]) -> str:
    sign, above, below, letter = term
    return sign + above + (f"/{below}" if below else "") + letter


def _fraction(above: str, below: str) -> float:
    """The value of ``1/3``, and the same for 0.333."""
    if not above:
        return 1.0
    value = float(above) / (int(below) if below else 1)
    simple = Fraction(value).limit_denominator(LARGEST_DENOMINATOR)
    return float(simple) if abs(float(simple) - value) < ROUNDED else value


def _stacked(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    if len(texts) > MAX_OPERATIONS:
        raise InputError(f"{len(texts)} symmetry operations are more than any group has")
    found = [parse(re.sub(r"^\s*\d+\s+", "", text)) for text in texts]
    return np.array([r for r, _ in found]), np.array([t for _, t in found])


def _listed(texts: Sequence[str], tags: Tags, cell: np.ndarray) -> Operations:
    """The operations of the file, completed to a group if they only generate it."""
    rotations, translations = _stacked(texts)
    found = _known(tuple(texts))
    if found is None:
        return Operations(rotations, translations)
    complete, number, name = found
    warnings, doubts = [], []
    if complete is not None:
        warnings.append(
            f"the {len(texts)} listed symmetry operations are not all of their group, which has "
            f"{len(complete[0])}; those were used"
        )
        rotations, translations = complete
    stated = tags.value(*NUMBERS)
    if stated.isdigit() and number and int(stated) != number:
        doubts.append(
            f"the file names space group {tags.value(*NAMES)} ({stated}), its operations are those "
            f"of {name} ({number}); the operations were used"
        )
    elif not stated and number:
        group = _by_name(tags.value(*NAMES), cell)
        if group is not None and group.number != number:
            doubts.append(
                f"the file names space group {tags.value(*NAMES)}, its operations are those of "
                f"{name} ({number}); the operations were used"
            )
    return Operations(rotations, translations, tuple(warnings), tuple(doubts))


@cache
def _known(
    texts: tuple[str, ...],
) -> tuple[tuple[np.ndarray, np.ndarray] | None, int | None, str] | None:
    """The whole group, if the list is a part of it; its number and name, if they are known.

    The result is None for operations that gemmi cannot express.
    """
    import gemmi

    try:
        operations = []
        for text in texts:
            rotation, translation = parse(re.sub(r"^\s*\d+\s+", "", text))
            operation = gemmi.Op()
            unit = operation.DEN
            steps = np.rint(unit * translation)
            if np.abs(steps - unit * translation).max() > 1e-6:
                return None
            operation.rot = (np.rint(unit * rotation).astype(int)).tolist()
            operation.tran = steps.astype(int).tolist()
            operations.append(operation.wrap())
        different = {operation.triplet() for operation in operations}
        group = gemmi.GroupOps(operations)
        group.cen_ops = _closed(group.cen_ops, operations[0].DEN)
        group.add_missing_elements()
    except (ValueError, RuntimeError):
        return None
    known = gemmi.find_spacegroup_by_ops(group)
    complete = _arrays(group) if len(group) > len(different) else None
    return complete, known.number if known else None, known.xhm() if known else ""


def _closed(centrings: Sequence[Sequence[int]], unit: int) -> list[list[int]]:
    """All sums of translations, modulo whole cells of ``unit``."""
    found = {(0, 0, 0)} | {tuple(t % unit for t in c) for c in centrings}
    while True:
        sums = {
            tuple((a + b) % unit for a, b in zip(x, y, strict=True)) for x in found for y in found
        }
        if sums <= found:
            return [list(c) for c in sorted(found)]
        found |= sums


def _magnetic(tags: Tags, operations: Sequence[str]) -> Operations:
    """The action of a magnetic space group on positions: its operations after each centring.

    Raises:
        InputError: the block has moments, but no operations.
    """
    operations = _triplets(operations)
    if not operations:
        raise InputError(
            "is a magnetic structure without operations (_space_group_symop_magn_operation.xyz)"
        )
    centrings = _triplets(tags.column("space_group_symop_magn_centering_xyz"))
    rotations, translations = _stacked(operations)
    shifts = _stacked(centrings)[1] if centrings else np.zeros((1, 3))
    turned = np.concatenate([rotations] * len(shifts))
    moved = (translations[None] + shifts[:, None]).reshape(-1, 3)
    return Operations(turned, moved)


# -- space groups by their names ------------------------------------------------------------------


def _arrays(group: gemmi.GroupOps) -> tuple[np.ndarray, np.ndarray]:
    operations = list(group)
    unit = operations[0].DEN
    rotations = np.array([operation.rot for operation in operations]) / unit
    return rotations, np.array([operation.tran for operation in operations]) / unit


def _from_hall(symbol: str) -> list[Operations]:
    import gemmi

    try:
        group = gemmi.symops_from_hall(symbol.replace("_", " "))
    except (ValueError, RuntimeError) as error:
        raise InputError(f"the Hall symbol {symbol!r} is unknown ({error})") from None
    return [Operations(*_arrays(group))]


def _divided(name: str) -> tuple[str, str]:
    """A Hermann-Mauguin symbol without its remarks, and the setting that they name.

    The setting is 1 or 2 (origins), H or R (axes), or empty: ``F d -3 m:2``, ``R -3 m H``, ICSD's S
    and Z, ``{origin @ centre 2}``.
    """
    symbol = re.sub(r"[_'\"]", "", name).strip()
    symbol = re.sub(r"\((\d)\)", r"\1", symbol)  # P2(1)/c
    symbol = re.sub(r"\s*\([^()]*\)$", "", symbol)  # P 21/c (14)
    if remark := re.search(r"\s*\{(.*)\}$", symbol):
        codes = {"1": "1", "2": "2", "hex": "H", "rhom": "R"}
        code = next((c for word, c in codes.items() if word in remark.group(1).lower()), "")
        return symbol[: remark.start()], code
    if ending := re.search(r"\s*:\s*([12HRhr])$|\s+(S|Z|R|H|RS|HR)$", symbol):
        letters = {"S": "1", "Z": "2", "RS": "R", "HR": "H"}
        code = (ending.group(1) or ending.group(2)).upper()
        return symbol[: ending.start()], letters.get(code, code)
    return symbol, ""


def _by_name(name: str, cell: np.ndarray) -> Any:
    """The space group of a symbol in any common spelling and any setting; None if unknown."""
    import gemmi

    symbol, _ = _divided(name)
    if not symbol:
        return None
    alpha, _, gamma = _angles(cell)
    if found := gemmi.find_spacegroup_by_name(symbol, alpha, gamma):
        return found
    hall = _full_symbols().get(re.sub(r"\s", "", symbol).lower())
    return hall and gemmi.find_spacegroup_by_ops(gemmi.symops_from_hall(hall))


@cache
def _full_symbols() -> dict[str, str]:
    """Hall symbols by full Hermann-Mauguin symbols, such as ``f4/m-32/m``."""
    import spglib

    found: dict[str, str] = {}
    for number in range(530, 0, -1):  # the standard settings come first, and so last here
        kind = spglib.get_spacegroup_type(number)
        if kind is not None:
            full = re.sub(r"[\s_]|=.*", "", kind.international_full).lower()
            found[full] = kind.hall_symbol
    return found


def _angles(cell: np.ndarray) -> tuple[float, float, float]:
    from ase.geometry import cell_to_cellpar

    alpha, beta, gamma = cell_to_cellpar(cell)[3:]
    return float(alpha), float(beta), float(gamma)


def _named(name: str, number: str, code: str, cell: np.ndarray) -> list[Operations]:
    """The settings of a space group that the name allows and that fit the cell.

    Raises:
        InputError: the group is unknown, contradicts its number, or does not fit the cell.
    """
    import gemmi

    group = _by_name(name, cell)
    by_number: Any = None
    if number:
        if not number.isdigit() or not 1 <= int(number) <= 230:
            raise InputError(f"there is no space group number {number}")
        by_number = gemmi.find_spacegroup_by_number(int(number))
    if group is None and by_number is None:
        raise InputError(
            f"the space group {name!r} is unknown, and the file lists no symmetry operations"
        )
    if group is not None and by_number is not None and group.number != by_number.number:
        raise InputError(
            f"the file names space group {name}, which has number {group.number}, and the number "
            f"{number}; it must list its operations"
        )
    settings = _settings(group or by_number, _divided(name)[1] or code.strip()[-1:].upper())
    fitting = _fitting(settings, cell)
    if not fitting and group is None:  # unusual axes, such as a monoclinic one along c
        table = gemmi.spacegroup_table()
        fitting = _fitting([s for s in table if s.number == by_number.number], cell)
    if not fitting:
        shown = name or f"number {number}"
        raise InputError(f"space group {shown} does not fit the lengths and angles of the cell")
    return fitting


def _fitting(settings: Sequence[Any], cell: np.ndarray) -> list[Operations]:
    found = [Operations(*_arrays(setting.operations())) for setting in settings]
    return [operations for operations in found if operations.fits(cell)]


def _settings(group: Any, code: str) -> list[Any]:
    """The settings of a group with the same symbol, or the named one of them."""
    import gemmi

    same = [s for s in gemmi.spacegroup_table() if s.hm == group.hm]
    return [s for s in same if code and s.ext == code] or same
