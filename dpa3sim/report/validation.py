"""The page that compares the checks of several models side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpa3sim.common.errors import InputError
from dpa3sim.report.page import template
from dpa3sim.report.reading import Run, mapping, read_run
from dpa3sim.report.state import state_of
from dpa3sim.report.values import Cell, Table
from dpa3sim.validate.literature import SOURCES

# Of a result: name, unit, and decimals.
_LINES = (
    ("largest_step_meV_per_atom", "largest step of the energy (meV/atom)", "3g"),
    ("broken_invariance_energy_meV_per_atom", "broken invariance of energies (meV/atom)", "2g"),
    ("broken_invariance_force_eV_per_A", "broken invariance of forces (eV/Å)", "2g"),
    ("force_error_eV_per_A", "forces minus slopes of the energy (eV/Å)", "2g"),
    ("largest_drift_meV_per_atom_per_ps", "largest drift of the total energy (meV/atom/ps)", "3g"),
    ("n_attractive_dimers", "elements whose atoms attract each other when close", "d"),
    ("n_collapsing_dimers", "of them, with a hole deeper than the bond", "d"),
    ("n_crystals", "reference crystals", "d"),
    ("n_unstable_crystals", "of them, unstable", "d"),
    ("deviation_lattice_percent", "lattice constants: mean deviation (%)", "2f"),
    ("deviation_bulk_modulus_percent", "bulk moduli: mean deviation (%)", "1f"),
    ("deviation_elastic_percent", "elastic constants: mean deviation (%)", "1f"),
    ("deviation_optical_mode_percent", "optical modes: mean deviation (%)", "1f"),
    ("n_elements", "elements", "d"),
    ("n_parameters", "parameters", "d"),
)
_CRYSTAL = (
    ("lattice_A", "a (Å)", "3f"),
    ("bulk_modulus_GPa", "B (GPa)", "1f"),
    ("C11_GPa", "C11 (GPa)", "1f"),
    ("C12_GPa", "C12 (GPa)", "1f"),
    ("C44_GPa", "C44 (GPa)", "1f"),
    ("optical_mode_THz", "optical mode (THz)", "2f"),
)
NOTHING = "–"


def read_validations(folder: Path) -> list[Run]:
    """The runs in a folder that are checks of models, by name.

    Raises:
        InputError: there is none.
    """
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not path.is_dir():
            continue
        try:
            run = read_run(path)
        except InputError:  # a folder of something else
            continue
        if run.protocol == "validate":
            found.append(run)
    if not found:
        raise InputError(f"{folder}: holds no checks of models")
    return found


def validation_page(folder: Path, runs: Sequence[Run]) -> str:
    """The page, as HTML."""
    models = [
        {
            "name": run.name,
            "state": state_of(run),
            "warnings": [str(w) for w in (run.result or {}).get("warnings", [])],
            "traps": [str(w) for w in (run.result or {}).get("traps", [])],
            "pictures": run.pictures,
        }
        for run in runs
    ]
    return template("validation.html").render(
        name=folder.resolve().name,
        models=models,
        tables=tables(runs),
        sources=list(SOURCES.values()),
    )


def tables(runs: Sequence[Run]) -> list[Table]:
    """The tables of the comparison; a model is a column."""
    results = {run.name: mapping(run.result) for run in runs}
    found = [_summary(results), _scans(results), _dynamics(results), *_crystals(results)]
    return [table for table in found if table.lines]


def _summary(results: Mapping[str, Mapping[str, Any]]) -> Table:
    lines = []
    for key, name, form in _LINES:
        if any(result.get(key) is not None for result in results.values()):
            lines.append([Cell(name), *(_number(r.get(key), form) for r in results.values())])
    times = [mapping(result.get("speed")) for result in results.values()]
    if any(times):
        shown = [t and f"{t['per_atom_ms']:.3g} ({t['dtype']}, {t['device']})" for t in times]
        lines.append([Cell("time of an evaluation (ms/atom)"), *(_text(t or None) for t in shown)])
    return Table("Summary", "summary", ["", *results], lines)


def _scans(results: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = _by_name(results, "scans", "scan")
    lines = [
        [
            Cell(name),
            *(_number(mapping(row).get("largest_step_meV_per_atom"), "3g") for row in found),
        ]
        for name, found in rows.items()
    ]
    return Table("Largest step along scans (meV/atom)", "scans", ["", *results], lines)


def _dynamics(results: Mapping[str, Mapping[str, Any]]) -> Table:
    lines = []
    for name, found in _by_name(results, "dynamics", "system").items():
        for key, what, form in (
            ("range_meV_per_atom", "range of the total energy (meV/atom)", "3g"),
            ("drift_meV_per_atom_per_ps", "drift (meV/atom/ps)", "3g"),
        ):
            cells = [_number(mapping(row).get(key), form) for row in found]
            lines.append([Cell(f"{name}: {what}"), *cells])
    return Table("Dynamics without a thermostat", "dynamics", ["", *results], lines)


def _crystals(results: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """A table for each quantity: crystals are lines, measured values the first column."""
    rows = _by_name(results, "crystals", "crystal")
    found = []
    for key, title, form in _CRYSTAL:
        lines = []
        for name, of_models in rows.items():
            known = [mapping(row) for row in of_models]
            measured = next((r[f"measured_{key}"] for r in known if f"measured_{key}" in r), None)
            if measured is not None:
                cells = [_beside(row.get(key), measured, form) for row in known]
                lines.append([Cell(name), _number(measured, form), *cells])
        found.append(Table(title, f"crystals-{key}", ["", "measured", *results], lines))
    lines = [
        [Cell(name), *(_text(mapping(row).get("verdict")) for row in of_models)]
        for name, of_models in rows.items()
    ]
    return [*found, Table("Phonons: is the crystal stable?", "verdicts", ["", *results], lines)]


def _by_name(
    results: Mapping[str, Mapping[str, Any]], key: str, name: str
) -> dict[str, list[Mapping[str, Any] | None]]:
    """Rows of all models by their name; None where a model lacks one."""
    names: dict[str, None] = {}
    by_model = []
    for result in results.values():
        own = {str(row[name]): row for row in result.get(key) or []}
        names |= dict.fromkeys(own)
        by_model.append(own)
    return {n: [own.get(n) for own in by_model] for n in names}


def _number(value: Any, form: str) -> Cell:
    if value is None:
        return Cell(NOTHING)
    return Cell(f"{value:{form if form == 'd' else '.' + form}}", repr(value), True)


def _beside(value: Any, measured: float, form: str) -> Cell:
    if value is None:
        return Cell(NOTHING)
    return Cell(f"{value:.{form}} ({100 * (value / measured - 1):+.1f} %)", repr(value), True)


def _text(value: Any) -> Cell:
    return Cell(NOTHING if value is None else str(value))
