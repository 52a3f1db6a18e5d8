"""The page of a screening: states of many structures, their results in one table, failures."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa3sim.common.durations import elapsed
from dpa3sim.common.errors import InputError
from dpa3sim.report import state as states
from dpa3sim.report.page import (
    HEADLINES,
    Option,
    facts,
    session_line,
    settings_of,
    source_text,
    template,
    versions_of,
)
from dpa3sim.report.reading import Picture, Run, mapping, read_run
from dpa3sim.report.state import State, model_of, seconds_of
from dpa3sim.report.values import ELSEWHERE, Cell, Row, label, pretty, shown
from dpa3sim.run.directory import unit_of
from dpa3sim.screen.database import WORDS, bare_error

if TYPE_CHECKING:
    from dpa3sim.screen.database import Row as Structure

# The largest number of structures in the table, and of their results.
MOST_ROWS, MOST_COLUMNS = 2000, 20
# The largest number of structures that are named for an error.
MOST_NAMES = 20


@dataclass
class Collected:
    """The data of the structures for the page, collected in one pass.

    Attributes:
        rows: the first structures. counts: numbers by state. computed: how many were computed.
        failures: labels of the structures by error, of which the first one is shown.
        numbers: values of the headlines, for structures that have all of them.
        damage: why further structures could not be read.
    """

    rows: list[Structure] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WORDS, 0))
    computed: int = 0
    failures: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    numbers: list[Sequence[float]] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)

    def fail(self, name: str, error: str) -> None:
        """Count an error; errors that differ only in numbers count as the same."""
        kind = re.sub(r"\d[\d.]*([eE][-+]?\d+)?", "#", error)
        self.failures.setdefault(kind, (error, []))[1].append(name)


@dataclass(frozen=True)
class Screening:
    """The content of the folder of a screening.

    Attributes:
        name: name of the folder. parts: its content, or that of the folders of its shards.
        found: the data of the structures.
    """

    name: str
    parts: Sequence[Run]
    found: Collected

    @property
    def protocol(self) -> str | None:
        """The command of the screening, if it is known."""
        return self.parts[0].protocol


@dataclass(frozen=True)
class Failure:
    """Structures that failed in the same way."""

    error: str
    count: int
    names: str


def read_screening(path: Path) -> Screening:
    """Read a screening; damage is recorded, not raised.

    Raises:
        InputError: the folder does not contain a screening.
    """
    from dpa3sim.screen.results import Results, part_folders

    parts = [read_run(folder) for folder in part_folders(path)]
    if not parts:
        raise InputError(f"{path}: does not contain results of a screening")
    try:
        with Results(path) as results:
            found = collect((row for _, row in results.rows()), parts[0].protocol)
    except InputError as error:
        found = Collected(damage=[str(error)])
    return Screening(path.resolve().name, parts, found)


def collect(rows: Iterable[Structure], protocol: str | None) -> Collected:
    """Collect the data of all structures in one pass."""
    found = Collected()
    keys = headline_keys(protocol)
    try:
        for row in rows:
            found.counts[row.state] = found.counts.get(row.state, 0) + 1
            found.computed += bool(row.attempts)
            if len(found.rows) < MOST_ROWS:
                found.rows.append(row)
            if row.error is not None:
                found.fail(str(row.label), bare_error(row.error, row.origin))
            values = [quantity(row, key) for key in keys]
            if row.state == "done" and all(isinstance(v, (int, float)) for v in values):
                found.numbers.append([float(v) for v in values])
    except InputError as error:
        found.damage.append(str(error))
    return found


def headline_keys(protocol: str | None) -> list[str]:
    """The two most important quantities of a structure."""
    if protocol in ("relax", "sp", None):
        return ["energy_per_atom_eV", "volume_per_atom_A3"]
    return [key for key in HEADLINES.get(protocol, ()) if unit_of(key) and "." not in key][:2]


def quantity(row: Structure, key: str) -> Any:
    """A result; the volume per atom is computed from that of the cell if necessary."""
    result = mapping(row.result)
    if key == "volume_per_atom_A3" and key not in result:
        volume, n_atoms = result.get("volume_A3"), row.n_atoms
        if not isinstance(volume, float) or not isinstance(n_atoms, int) or n_atoms < 1:
            return None
        return volume / n_atoms
    return result.get(key)


def screening_page(screening: Screening, title: str, options: Sequence[Option]) -> str:
    """The page of a screening, as HTML.

    Args:
        screening: its content. title: what was computed. options: the options of the command.
    """
    parts, found, protocol = screening.parts, screening.found, screening.protocol
    total = sum(found.counts.values())
    script = source_text("sort.js")
    head, lines = table(found.rows, protocol)
    failures = sorted(found.failures.values(), key=lambda item: -len(item[1]))
    return template("screening.html").render(
        title=f"screening: {title}",
        name=screening.name,
        subtitle=f"{total} structures",
        state=_state(parts, found),
        headlines=_cards(parts, found),
        pictures=pictures(found.numbers, headline_keys(protocol)),
        failures=[Failure(error, len(names), _names(names)) for error, names in failures],
        head=head,
        lines=lines,
        total=total,
        settings=settings_of(parts[0], options),
        model=facts(model_of(parts[0])),
        parts=[(run.name, [session_line(s) for s in run.sessions]) for run in parts],
        versions=versions_of(parts[0]),
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def table(
    rows: Sequence[Structure], protocol: str | None
) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """Column heads, and for each structure its state and cells with the main scalar results."""
    keys = dict.fromkeys(k for k in HEADLINES.get(protocol or "", ()) if "." not in k)
    keys |= dict.fromkeys(headline_keys(protocol))
    for row in rows:
        keys |= dict.fromkeys(k for k in mapping(row.result) if k not in ELSEWHERE)
    scalar = [
        key
        for key in keys
        if key not in ("formula", "n_atoms")
        and any(quantity(row, key) is not None for row in rows)
        and not any(isinstance(quantity(row, key), (list, Mapping)) for row in rows)
    ][:MOST_COLUMNS]
    units = {key: pretty(unit_of(key)) for key in scalar}
    head = [f"{label(k)} ({units[k]})" if units[k] else label(k) for k in scalar]
    lines = []
    for row in rows:
        cells = [shown(row.label), shown(row.formula), shown(row.n_atoms)]
        cells.append(Cell(WORDS.get(row.state, row.state)))
        cells += [shown(quantity(row, key)) for key in scalar]
        lines.append((row.state, [*cells, shown(row.seconds, 3)]))
    return ["label", "formula", "atoms", "state", *head, "time (s)"], lines


def pictures(numbers: Sequence[Sequence[float]], keys: Sequence[str]) -> list[Picture]:
    """Plots of the distribution of the first quantity, and of both against each other."""
    if len(numbers) < 2 or not keys:
        return []
    from matplotlib.figure import Figure

    names = [f"{label(key)} ({pretty(unit_of(key))})" for key in keys]
    columns = list(zip(*numbers, strict=True))
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.hist(columns[0], bins="auto" if len(numbers) < 10**5 else 100)
    axis.set_xlabel(names[0])
    axis.set_ylabel("structures")
    figures = {f"distribution of {names[0]}": figure}
    if len(keys) > 1:
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        axis = figure.subplots()
        # With rasterized points, the size of the plot does not depend on their number.
        axis.scatter(columns[1], columns[0], s=9, alpha=0.6, rasterized=True)
        axis.set_xlabel(names[1])
        axis.set_ylabel(names[0])
        axis.grid(alpha=0.3)
        figures[f"{names[0]} against {names[1]}"] = figure
    return [Picture(name, _drawing(figure)) for name, figure in figures.items()]


def _drawing(figure: Any) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="svg", dpi=120)
    return f"data:image/svg+xml;base64,{base64.b64encode(data.getvalue()).decode()}"


def _state(parts: Sequence[Run], found: Collected) -> State:
    """The state of all structures together."""
    damage = [f"{run.name}: {text}" for run in parts for text in run.damage]
    if found.damage or damage:
        return State(states.BAD, "damaged", [*damage, *found.damage])
    counts = found.counts
    reasons = [", ".join(f"{counts[s]} {word}" for s, word in WORDS.items() if counts[s])]
    if counts["waiting"]:
        return State(states.DOUBTFUL, "unfinished", [*reasons, "the same command continues it"])
    if counts["failed"] or counts["not_converged"]:
        kind = states.DOUBTFUL if counts["done"] else states.BAD
        return State(kind, "complete, with failures", reasons)
    return State(states.GOOD, "complete", reasons)


def _cards(parts: Sequence[Run], found: Collected) -> list[Row]:
    rows = [Row(word, shown(found.counts[state])) for state, word in WORDS.items()]
    times = [s for run in parts for session in run.sessions if (s := seconds_of(session))]
    if times and found.computed:
        rows.append(Row("computing time, all sessions", Cell(elapsed(sum(times)))))
        rows.append(Row("pace", shown(round(3600 * found.computed / sum(times))), "structures/h"))
    return rows


def _names(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
