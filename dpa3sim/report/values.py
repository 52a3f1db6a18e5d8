"""Results as rows and tables: any content of a ``result.json``, with units.

This module does not depend on protocols: numbers become rows, tensors become matrices, lists over
temperatures or steps become columns of one table, and lists of objects become tables with one line
for each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dpa3sim.run.directory import name_and_unit

# Parts of a result that the page shows elsewhere.
ELSEWHERE = frozenset(
    "schema_version protocol structure converged complete reasons warnings units settings model "
    "dtype directory".split()
)
# Lists up to this length are shown in a row; tables with more columns than this are transposed.
SHORT, MANY_COLUMNS, FEW_RECORDS = 6, 6, 6
# The largest number of lines of a table, and the largest size of a matrix.
MOST_LINES, WIDEST = 300, 12
DIGITS, MOST_DECIMALS = 7, 8
# Values in more nested tables than this are shown as in the file.
DEEPEST = 5
_POWERS = {"^2": "²", "^3": "³"}


@dataclass(frozen=True)
class Cell:
    """A value as it is shown.

    Attributes:
        text: as displayed. exact: all digits, if the text has fewer. number: whether it is one.
    """

    text: str
    exact: str = ""
    number: bool = False


@dataclass(frozen=True)
class Row:
    """A quantity: its name, value and unit, and the table with all its values."""

    name: str
    cell: Cell
    unit: str = ""
    anchor: str = ""


@dataclass(frozen=True)
class Table:
    """Values in lines and columns.

    Attributes:
        title: the title. anchor: target for links. head: names of the columns; may be empty.
        lines: lines of the same length. folded: whether it is collapsed initially.
        note: what the table leaves out.
    """

    title: str
    anchor: str
    head: Sequence[str]
    lines: Sequence[Sequence[Cell]]
    folded: bool = False
    note: str = ""


@dataclass(frozen=True)
class Values:
    """All values of a result."""

    rows: Sequence[Row]
    tables: Sequence[Table]


def arrange(result: Mapping[str, Any]) -> Values:
    """Sort the values of a result into rows and tables."""
    return _Arranger(units_of(result)).arrange(result)


def units_of(result: Mapping[str, Any]) -> Mapping[str, str]:
    """The units that a result names, by key."""
    units = result.get("units")
    return units if isinstance(units, Mapping) else {}


def label(key: str) -> str:
    """A key as words, without its unit."""
    words = name_and_unit(key)[0].split("_")
    if words[0] == "n":
        words[0] = "number of"
    return " ".join(word for word in words if word != "n")


def pretty(unit: Any) -> str:
    """A unit as it is printed: Å³ for Å^3."""
    text = str(unit or "")
    for plain, power in _POWERS.items():
        text = text.replace(plain, power)
    return text


def shown(value: Any, digits: int = DIGITS) -> Cell:
    """A single value."""
    if value is None:
        return Cell("–")
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, int):
        return Cell(_signed(str(value)), number=True)
    if isinstance(value, float):
        text = f"{value:.{digits}g}"
        return Cell(_signed(text), "" if float(text) == value else repr(value), True)
    if isinstance(value, str):
        return Cell(value)
    return Cell(_json(value))


def with_error(value: Any, error: Any) -> Cell:
    """A number with its standard error, with the digits that the error determines."""
    if not (_is_number(value) and _is_number(error)) or not 0 < abs(error) < math.inf:
        return shown(value)
    digits = 1 - math.floor(math.log10(abs(error)))
    if not 0 <= digits <= MOST_DECIMALS:
        text = f"{value:.{DIGITS}g} ± {error:.2g}"
    else:
        text = f"{value:.{digits}f} ± {error:.{digits}f}"
    return Cell(_signed(text), f"{value!r} ± {error!r}", True)


class _Arranger:
    """Collects rows and tables from a result."""

    def __init__(self, units: Mapping[str, str]) -> None:
        self._units = units
        self._rows: list[Row] = []
        self._tables: list[Table] = []
        self._folded: list[Table] = []
        self._series: dict[int, dict[str, Sequence[Any]]] = {}

    def arrange(self, result: Mapping[str, Any]) -> Values:
        """All values of a result."""
        for key, value in result.items():
            if key not in ELSEWHERE:
                self._take(str(key), value, result)
        self._take_series()
        return Values(self._rows, [*self._tables, *self._folded])

    def _take(self, key: str, value: Any, around: Mapping[str, Any], within: str = "") -> None:
        """Sort in one value; ``around`` contains its error, ``within`` is its location."""
        name = f"{within}: {label(key)}" if within else label(key)
        if within.count(":") > DEEPEST:
            self._add(self._text(name, value), folded=True)
        elif isinstance(value, Mapping):
            self._take_mapping(key, name, value)
        elif _is_matrix(value):
            self._add(self._matrix(key, name, value), folded=_is_error(key, around))
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            self._take_records(name, {str(n): v for n, v in enumerate(value, 1)})
        elif isinstance(value, list) and len(value) > SHORT and not _is_nested(value):
            self._series.setdefault(len(value), {})[self._head(key, within)] = value
        elif isinstance(value, list) and _is_nested(value):
            self._add(self._text(name, value), folded=True)
        elif not _is_error(key, around):
            unit = "" if value is None else self._unit(key)
            self._rows.append(Row(name, self._short(key, value, around), unit))

    def _take_mapping(self, key: str, name: str, value: Mapping[str, Any]) -> None:
        entries = list(value.values())
        if entries and all(isinstance(v, Mapping) for v in entries):
            self._take_records(name, {str(k): v for k, v in value.items()})
        elif entries and all(isinstance(v, list) and not _is_nested(v) for v in entries):
            lines = [
                [
                    Cell(str(k)),
                    *(shown(x, 5) for x in v[:WIDEST]),
                    *([Cell("…")] * (len(v) > WIDEST)),
                ]
                for k, v in value.items()
            ]
            self._add(self._table(name, self._unit(key), (), _padded(lines)), folded=len(lines) > 8)
        else:
            for inner, entry in value.items():
                self._take(str(inner), entry, value, name)

    def _take_records(self, name: str, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Make a table with a line or a column for each of several similar objects."""
        keys = list(dict.fromkeys(str(k) for record in records.values() for k in record))
        flat = [
            k
            for k in keys
            if all(_is_short(r.get(k)) for r in records.values()) and not _is_error(k, keys)
        ]
        rows = [[self._short(k, r.get(k), r) for k in flat] for r in records.values()]
        names = list(records)
        if len(flat) > MANY_COLUMNS and len(records) <= FEW_RECORDS:
            lines = [
                [Cell(self._head(k)), *column]
                for k, column in zip(flat, zip(*rows, strict=True), strict=True)
            ]
            head: Sequence[str] = ["", *names]
        else:
            lines = [[Cell(n), *row] for n, row in zip(names, rows, strict=True)]
            head = ["", *(self._head(k) for k in flat)]
        if flat:
            self._add(self._table(name, "", head, lines), folded=len(lines) > MOST_LINES)
        for n, record in records.items():
            for k in (k for k in keys if k not in flat and k in record):
                self._take(k, record[k], record, f"{name} {n}")

    def _take_series(self) -> None:
        """Make one table from all lists of the same length."""
        for length, columns in self._series.items():
            lines = list(
                zip(*([shown(v) for v in c[:MOST_LINES]] for c in columns.values()), strict=True)
            )
            title = f"{', '.join(columns)}: {length} values"
            note = (
                f"the first {MOST_LINES} of {length}; all are in result.json"
                if length > MOST_LINES
                else ""
            )
            table = Table(title, self._anchor(), list(columns), lines, True, note)
            self._folded.append(table)
            for head, values in columns.items():
                text = f"{length} values" + _range(values)
                self._rows.append(Row(head, Cell(text), anchor=table.anchor))

    def _short(self, key: str, value: Any, around: Mapping[str, Any]) -> Cell:
        if isinstance(value, list):
            cells = [shown(v) for v in value]
            exact = (
                ", ".join(c.exact or c.text for c in cells) if any(c.exact for c in cells) else ""
            )
            return Cell(", ".join(c.text for c in cells) or "none", exact)
        return with_error(value, around.get(error_key(key)))

    def _matrix(self, key: str, name: str, value: Sequence[Sequence[float]]) -> Table:
        return self._table(name, self._unit(key), (), matrix_cells(value))

    def _text(self, name: str, value: Any) -> Table:
        return self._table(name, "", (), [[Cell(_json(value))]])

    def _table(
        self, name: str, unit: str, head: Sequence[str], lines: Sequence[Sequence[Cell]]
    ) -> Table:
        title = f"{name} ({unit})" if unit else name
        note = f"the first {MOST_LINES} of {len(lines)}" if len(lines) > MOST_LINES else ""
        return Table(title, self._anchor(), head, lines[:MOST_LINES], note=note)

    def _add(self, table: Table, folded: bool = False) -> None:
        if folded:
            self._folded.append(replace(table, folded=True))
        else:
            self._tables.append(table)

    def _anchor(self) -> str:
        return f"table-{len(self._tables) + len(self._folded) + 1}"

    def _head(self, key: str, within: str = "") -> str:
        unit = self._unit(key)
        name = f"{within}: {label(key)}" if within else label(key)
        return f"{name} ({unit})" if unit else name

    def _unit(self, key: str) -> str:
        return pretty(self._units.get(key))


def matrix_cells(matrix: Sequence[Sequence[float]]) -> list[list[Cell]]:
    """Numbers of a matrix with the same number of decimals, according to the largest."""
    largest = max((abs(x) for row in matrix for x in row if math.isfinite(x)), default=0.0)
    whole = all(float(x).is_integer() for row in matrix for x in row)
    decimals = 0 if whole else min(8, max(0, 5 - math.floor(math.log10(largest or 1.0))))
    return [
        [Cell(_signed(f"{x:.{decimals}f}"), "" if whole else repr(x), True) for x in row]
        for row in matrix
    ]


def error_key(key: str) -> str:
    """The key of the standard error of a quantity: ``energy_error_per_atom_eV``."""
    name, _ = name_and_unit(key)
    ending = key.removeprefix(name)
    for share in ("_per_atom", "_per_cell", "_per_formula_unit"):
        if name.endswith(share):
            return f"{name.removesuffix(share)}_error{share}{ending}"
    return f"{name}_error{ending}"


def _is_error(key: str, around: Iterable[str]) -> bool:
    """Whether a key is the error of another quantity, beside which it is shown."""
    quantity = key.replace("_error", "", 1)
    return quantity != key and quantity in around and error_key(quantity) == key


def _is_number(value: Any) -> bool:
    """Whether it is a number that a float can represent."""
    if isinstance(value, bool):
        return False
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _is_nested(value: Sequence[Any]) -> bool:
    return any(isinstance(v, (list, Mapping)) for v in value)


def _is_short(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= SHORT and not _is_nested(value)
    return not isinstance(value, Mapping)


def _is_matrix(value: Any) -> bool:
    if not isinstance(value, list) or not 1 < len(value) <= WIDEST:
        return False
    if not all(isinstance(row, list) and all(map(_is_number, row)) for row in value):
        return False
    lengths = {len(row) for row in value}
    return len(lengths) == 1 and 0 < lengths.pop() <= WIDEST


def _padded(lines: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    width = max(map(len, lines))
    return [[*line, *([Cell("")] * (width - len(line)))] for line in lines]


def _range(values: Sequence[Any]) -> str:
    numbers = [v for v in values if _is_number(v) and math.isfinite(v)]
    if not numbers:
        return ""
    low, high = shown(min(numbers), 5).text, shown(max(numbers), 5).text
    return f", {low} to {high}" if low != high else f", all {low}"


def _signed(text: str) -> str:
    """A number without the sign of a negative zero."""
    return text[1:] if text.startswith("-") and not text.strip("-0.") else text


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 2000 else text[:2000] + " …"
