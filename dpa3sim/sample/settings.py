"""Options of making, choosing, labelling and writing training structures."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from dpa3sim.common.elements import SYMBOLS
from dpa3sim.common.errors import InputError
from dpa3sim.common.settings import option, suggestion, validate
from dpa3sim.protocols.crystals.slabs import parse_miller

# In the order in which candidates are made.
KINDS = (
    *("start", "rattled", "strained", "volumes", "md", "substitutions", "swaps"),
    *("vacancies", "interstitials", "slabs", "dimers", "atoms"),
)
POOL = "pool"
"""The kind of frames that were not made, but read from ``from_files``."""
SHARES = "all=4 md=25 rattled=15 atoms=100"
"""Shares of kinds that the option does not name."""
FORMATS = ("extxyz", "vasp", "espresso")
_LARGEST_PRESSURE = 1e4  # GPa; a tension is at most that


@dataclass(frozen=True)
class SampleSettings:
    """Which candidates are made of each structure, and how many of all are chosen."""

    frames: int = option(200, "number of frames that are chosen", minimum=1)
    shares: str = option(
        "",
        "least share of a kind in the chosen frames, in percent, as long as it has candidates: "
        "KIND=PERCENT, all for the others; kinds with 100 are chosen first; can be repeated "
        f"[{SHARES}]",
        repeatable=True,
    )
    kinds: str = option("all", f"kinds of candidates: all, or some of {', '.join(KINDS)}")
    seed: int = option(0, "random numbers", minimum=0)
    min_atoms: int = option(16, "periodic structures are repeated to at least so many", minimum=1)
    max_atoms: int = option(200, "largest number of atoms in a frame", minimum=1)
    min_distance: float = option(
        0.5,
        "least distance of two atoms, in sums of their covalent radii; 0 accepts any (dimers have "
        "their own distances)",
        minimum=0.0,
    )
    rattle: str = option("0.02 0.05 0.1 0.2", "standard deviations of displacements", unit="Å")
    rattle_count: int = option(8, "rattled candidates of each amplitude", minimum=0)
    strain: float = option(
        6.0, "largest component of random symmetric strains", unit="%", minimum=0.0
    )
    strain_count: int = option(
        16, "strained candidates; every second one is also rattled", minimum=0
    )
    compression: float = option(
        15.0, "how much the smallest volume is smaller", unit="%", minimum=0.0
    )
    expansion: float = option(30.0, "how much the largest volume is larger", unit="%", minimum=0.0)
    volume_points: int = option(10, "number of volumes", minimum=0)
    temperatures: str = option("300 800 1500", "temperatures of molecular dynamics", unit="K")
    pressures: str = option(
        "",
        "pressures of molecular dynamics of crystals and liquids; without, the volume is kept",
        unit="GPa",
    )
    md_time: float = option(500.0, "length of each simulation", unit="fs", minimum=0.0)
    md_interval: float = option(25.0, "time between its frames", unit="fs", minimum=0.0)
    substitute: str = option(
        "",
        "which elements are exchanged by others, such as 'Si=Ge,Sn Al=Ga'; can be repeated",
        repeatable=True,
    )
    substitute_count: int = option(12, "candidates with substitutions", minimum=0)
    swap_count: int = option(8, "candidates with 1 to 4 pairs of unlike atoms swapped", minimum=0)
    defect_count: int = option(4, "candidates with a vacancy, and with an interstitial", minimum=0)
    miller: str = option(
        "auto",
        "faces of slabs, such as 1,1,1; auto is the three with the smallest indices",
        repeatable=True,
    )
    slab_thickness: float = option(8.0, "least thickness of slabs", unit="Å", minimum=0.0)
    dimer_points: int = option(
        12,
        "distances of each pair of elements from 0.6 to 1.6 sums of covalent radii; a third as "
        "many lie between there and the cutoff of the model",
        minimum=0,
    )

    def __post_init__(self) -> None:
        validate(self)
        chosen_kinds(self)
        amplitudes(self)
        temperatures(self)
        pressures(self)
        substitutes(self)
        least_shares(self)
        parse_miller(self.miller)
        if self.max_atoms < self.min_atoms:
            raise InputError(
                f"max_atoms = {self.max_atoms} must be at least min_atoms = {self.min_atoms}"
            )
        for name, limit in (("strain", 50), ("compression", 80), ("expansion", 1000)):
            if getattr(self, name) > limit:
                raise InputError(f"option {name} = {getattr(self, name):g} must be at most {limit}")
        if self.md_time and not 0 < self.md_interval <= self.md_time:
            raise InputError(
                f"md_interval = {self.md_interval:g} fs must be above 0 and at most "
                f"md_time = {self.md_time:g} fs"
            )


@dataclass(frozen=True)
class PoolSettings:
    """Frames that exist already."""

    from_files: str = option(
        "", "files with frames that are candidates as they are; can be repeated", repeatable=True
    )
    known: str = option(
        "",
        "files with frames that are in the training data already: what is chosen differs from "
        "them; can be repeated",
        repeatable=True,
    )

    def __post_init__(self) -> None:
        validate(self)
        words("from_files", self.from_files)
        words("known", self.known)


@dataclass(frozen=True)
class LabelSettings:
    """What computes energies, forces and stresses, and what is written."""

    label: str | None = option(
        None,
        "what labels the frames: model, or module:Calculator, a class or function that makes a "
        "calculator of ASE [no labels, for calculations elsewhere]",
    )
    label_options: str = option(
        "", "arguments of the calculator, KEY=VALUE; can be repeated", repeatable=True
    )
    weights: str = option(
        "",
        "weights of kinds in the loss of a training, KIND=WEIGHT, all for the others; can be "
        "repeated",
        repeatable=True,
    )
    write: str = option(
        "extxyz",
        f"files besides frames.extxyz: {', '.join(FORMATS)} (a folder for each frame); can be "
        "repeated",
        repeatable=True,
    )

    def __post_init__(self) -> None:
        validate(self)
        by_kind("weights", self.weights)
        formats(self)
        if self.label_options and self.label in (None, "model"):
            raise InputError("label_options needs label = module:Calculator")
        if self.label not in (None, "model") and ":" not in str(self.label):
            raise InputError(f"label = {self.label!r} is not model or module:Calculator")


def words(name: str, text: str) -> list[str]:
    """The words of an option; quotes keep blanks.

    Raises:
        InputError: a quotation is not closed.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError(f"option {name}: {error}") from None


def chosen_kinds(settings: SampleSettings) -> tuple[str, ...]:
    """The kinds that are made, in the order of :data:`KINDS`."""
    given = settings.kinds.replace(",", " ").split()
    if given == ["all"]:
        return KINDS
    for word in given or [""]:
        _check_choice("kinds", word, ("all", *KINDS))
    return tuple(kind for kind in KINDS if kind in given or "all" in given)


def least_shares(settings: SampleSettings) -> dict[str, float]:
    """The least share of each kind in the chosen frames, percent."""
    return by_kind("shares", f"{SHARES} {settings.shares}")


def amplitudes(settings: SampleSettings) -> list[float]:
    """Standard deviations of displacements, Å, in the given order."""
    return _numbers("rattle", settings.rattle)


def temperatures(settings: SampleSettings) -> list[float]:
    """Temperatures of molecular dynamics, K, in the given order."""
    return _numbers("temperatures", settings.temperatures)


def pressures(settings: SampleSettings) -> list[float]:
    """Pressures of molecular dynamics, GPa, in the given order; none: the volume is kept."""
    return _numbers("pressures", settings.pressures, -_LARGEST_PRESSURE)


def substitutes(settings: SampleSettings) -> dict[str, list[str]]:
    """For each element that is exchanged, those that take its place."""
    found: dict[str, list[str]] = {}
    for word in words("substitute", settings.substitute):
        element, separator, others = word.partition("=")
        listed = [other for other in others.split(",") if other]
        if not separator or not listed:
            raise InputError(f"substitute = {word!r}: write it as Si=Ge,Sn")
        for symbol in (element, *listed):
            if symbol not in SYMBOLS:
                raise InputError(f"substitute = {word!r}: {symbol!r} is not an element")
        found.setdefault(element, []).extend(listed)
    return found


def formats(settings: LabelSettings) -> list[str]:
    """What is written, each once."""
    found = settings.write.replace(",", " ").split()
    for word in found:
        _check_choice("write", word, FORMATS)
    return list(dict.fromkeys(found))


def by_kind(name: str, text: str) -> dict[str, float]:
    """Numbers of the kinds that a text ``KIND=NUMBER ...`` names, or all with ``all=NUMBER``.

    Raises:
        InputError: it is something else, or a number is negative.
    """
    found: dict[str, float] = {}
    for word in words(name, text):
        kind, separator, number = word.partition("=")
        if not separator:
            raise InputError(f"{name} = {word!r}: write it as KIND=NUMBER")
        _check_choice(name, kind, ("all", *KINDS, POOL))
        found[kind] = _number(name, number, 0.0)
    others = found.pop("all", None)
    every = {} if others is None else dict.fromkeys((*KINDS, POOL), others)
    return every | found


def _numbers(name: str, text: str, least: float = 1e-6) -> list[float]:
    """Numbers between blanks or commas; positive ones by default."""
    return [_number(name, word, least) for word in text.replace(",", " ").split()]


def _number(name: str, word: str, least: float) -> float:
    try:
        value = float(word)
    except ValueError:
        raise InputError(f"{name}: {word!r} is not a number") from None
    if not least <= value < 1e9:
        raise InputError(f"{name}: {word} is not a number of at least {least:g}")
    return value


def _check_choice(name: str, word: str, choices: Iterable[str]) -> None:
    known = list(choices)
    if word not in known:
        raise InputError(
            f"{name}: {word!r} is not one of {', '.join(known)}" + suggestion(word, known)
        )
