"""The elements of the sites of a CIF, from labels, types and the formula."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dpa3sim.common.elements import ATOMIC_NUMBERS, SYMBOLS
from dpa3sim.common.errors import InputError
from dpa3sim.structures.given import ISOTOPES

# Heavier elements form no crystals; their symbols in capitals mean groups, such as NO and CN.
LAST_ELEMENT = 101
# Groups of atoms that are listed as one site in tables of minerals and molecules.
GROUPS = frozenset("WAT WA W OH OW NH NH2 NH3 NH4 CH CH2 CH3 CN NO3 CO3 SO4 PO4".split())
# Tolerance for a count in a formula, which is rounded.
ROUNDING = 0.01


@dataclass(frozen=True)
class Site:
    """An atom of the asymmetric unit.

    Attributes:
        label: its name. kind: the element according to the file; may be empty.
        fractional: ``(3,)``. symbol: its element, or D or T, once it is known.
        group: whether its label names a group of atoms; it is the heavy atom if the others have
            their own sites.
    """

    label: str
    kind: str
    fractional: np.ndarray
    symbol: str = ""
    group: bool = False


class Formula:
    """The number of atoms of each element; heavy hydrogen counts as hydrogen."""

    def __init__(self, counts: Mapping[str, float]) -> None:
        self.counts: Counter[str] = Counter()
        for symbol, count in counts.items():
            self.counts["H" if symbol in ISOTOPES else symbol] += count  # type: ignore[assignment]

    @classmethod
    def of(cls, symbols: Iterable[str]) -> Formula:
        """From the elements of all atoms."""
        return cls(Counter(symbols))

    def __str__(self) -> str:
        parts = ((s, self.counts[s]) for s in sorted(self.counts))
        return "".join(s + ("" if n == 1 else f"{n:g}") for s, n in parts)

    def reduced(self) -> Formula:
        """The formula of one unit, if all counts are whole numbers."""
        whole = [round(n) for n in self.counts.values()]
        return Formula({s: n / np.gcd.reduce(whole) for s, n in self.counts.items()})

    def ratio(self, other: Formula, without: str = "") -> float | None:
        """The ratio to ``other``, from all atoms except those of one element."""
        mine, theirs = (sum(n for s, n in f.counts.items() if s != without) for f in (self, other))
        return mine / theirs if mine and theirs else None

    def is_multiple(self, units: float) -> bool:
        """Whether this can be the content of a cell with so many formula units."""
        return all(abs(n / units - round(n / units)) < ROUNDING for n in self.counts.values())

    def equals(self, other: Formula, multiple: float) -> bool:
        """Whether this is ``multiple`` times the other, within rounding."""
        names = self.counts.keys() | other.counts.keys()
        return all(
            abs(self.counts[s] - multiple * other.counts[s]) <= ROUNDING * max(1.0, self.counts[s])
            for s in names
        )

    def lacks_hydrogen(self, other: Formula, multiple: float) -> bool:
        """Whether this is ``multiple`` times the other, except for missing hydrogen atoms."""
        if self.counts["H"] >= multiple * other.counts["H"]:
            return False
        mine, theirs = dict(self.counts), dict(other.counts)
        mine.pop("H", None), theirs.pop("H", None)
        return bool(mine) and Formula(mine).equals(Formula(theirs), multiple)


def formulas_of(text: str) -> list[Formula]:
    """All possible meanings of a formula: ``Ca F2``, or in capitals ``CA F2``; may be empty."""
    found: list[Formula] = []
    words = re.sub(r"[,;]", " ", text).split()
    # First each word is an element in any case; then elements have their usual spelling, no spaces.
    for pattern in (r"([A-Za-z]{1,2})(\d*\.?\d*)", r"([A-Z][a-z]?)(\d*\.?\d*)"):
        parts = [re.findall(pattern, re.sub(r"\d*[+-]$", "", word)) for word in words]
        spelled = ["".join(s + n for s, n in part) for part in parts]
        if spelled != [re.sub(r"\d*[+-]$", "", word) for word in words]:
            continue
        if pattern.startswith("([A-Za-z]") and any(len(part) != 1 for part in parts):
            continue
        flat = [(s.capitalize(), n) for part in parts for s, n in part]
        if flat and all(s in ATOMIC_NUMBERS or s in ISOTOPES for s, _ in flat):
            counts: dict[str, float] = {}
            for symbol, number in flat:
                counts[symbol] = counts.get(symbol, 0.0) + (float(number) if number else 1.0)
            formula = Formula(counts)
            if all(formula.counts != other.counts for other in found):
                found.append(formula)
    return found


def resolve(sites: Sequence[Site], formulas: Sequence[Formula]) -> list[Site]:
    """The sites with their elements.

    Raises:
        InputError: a site has no element, or an ambiguous one.
    """
    allowed = {symbol for formula in formulas for symbol in formula.counts}
    return [_of_kind(s, allowed) if s.kind else _of_label(s, allowed) for s in sites]


def group_error(label: str) -> InputError:
    """The error for a site that stands for a group of atoms."""
    return InputError(
        f"site {label} is a group of atoms, not an element; a structure needs one site "
        "for each of its atoms"
    )


def _of_label(site: Site, allowed: set[str]) -> Site:
    """A site with the element at the beginning of its label.

    Args:
        allowed: the elements of the formula; empty if it is unknown.
    """
    found = re.match(r"([A-Za-z]*)[0-9]*", site.label)
    letters, name = (found.group(1), found.group()) if found else ("", "")
    fitting = [c for c in _candidates(letters) if not allowed or c in allowed]
    if letters[:1] == "D" and not fitting and (not allowed or "H" in allowed):
        fitting = ["D"]
    group = not GROUPS.isdisjoint((letters.upper(), name.upper())) and letters not in fitting
    group |= re.fullmatch(r"[HD]2O\d*", site.label.upper()) is not None  # or a hydrogen of an O2
    if group and (not allowed or not fitting):
        raise group_error(site.label)
    if not fitting:
        stated = f" of the formula ({', '.join(sorted(allowed))})" if allowed else ""
        raise InputError(
            f"the label {site.label} does not begin with an element{stated}; write the elements as "
            "_atom_site_type_symbol"
        )
    if len(fitting) > 1:
        raise InputError(
            f"the label {site.label} can mean {' or '.join(fitting)}; _atom_site_type_symbol or "
            "_chemical_formula_sum would decide"
        )
    return replace(site, symbol=fitting[0], group=group)


def _candidates(letters: str) -> list[str]:
    """The elements that a label may begin with: ``Ca1``, ``CaM``, ``O1``, in capitals ``CA1``."""
    first, second = letters[:1].upper(), letters[:2].capitalize()
    if letters[2:3].islower():  # a word
        return []
    two = len(letters) > 1 and second in SYMBOLS and ATOMIC_NUMBERS[second] <= LAST_ELEMENT
    if two and letters[1].islower():
        return [second]
    return [second] * two + [first] * (first in SYMBOLS)


def _of_kind(site: Site, allowed: set[str]) -> Site:
    """A site with the element of its type symbol, in any case and with any charge."""
    found = re.fullmatch(r"([A-Za-z]{1,2})(val|va|iso)?[\d.+\-]*", site.kind)
    symbol = found.group(1).capitalize() if found else ""
    if symbol in ISOTOPES:
        return replace(site, symbol=symbol)
    usual = ATOMIC_NUMBERS.get(symbol, LAST_ELEMENT + 1) <= LAST_ELEMENT
    if symbol in ATOMIC_NUMBERS and (usual or symbol in allowed):
        return replace(site, symbol=symbol)
    if site.kind.rstrip("0123456789").upper() in GROUPS:
        raise group_error(site.label)
    raise InputError(f"site {site.label} is of type {site.kind!r}, which is not an element")
