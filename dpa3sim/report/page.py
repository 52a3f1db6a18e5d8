"""The page of a run directory: its content is put in order and rendered by a template."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import dpa3sim
from dpa3sim.common.durations import elapsed
from dpa3sim.report import state as states
from dpa3sim.report.reading import Run, mapping
from dpa3sim.report.state import meaning, model_of, seconds_of, state_of
from dpa3sim.report.values import (
    Cell,
    Row,
    Values,
    arrange,
    error_key,
    label,
    pretty,
    shown,
    units_of,
    with_error,
)
from dpa3sim.run.directory import timestamp

# Only our own pages contain this in their first bytes.
GENERATOR = "dpa3sim report"
# The most important keys of results, by protocol; a dot leads into lists and tables.
HEADLINES: Mapping[str, Sequence[str]] = {
    "relax": ("energy_per_atom_eV", "energy_eV", "volume_A3", "spacegroup_final"),
    "sp": ("energy_per_atom_eV", "energy_eV", "fmax_eV_per_A", "pressure_GPa"),
    "eos": ("volume_per_atom_A3", "bulk_modulus_GPa", "bulk_modulus_derivative"),
    "elastic": (
        "bulk_modulus_hill_GPa",
        "shear_modulus_hill_GPa",
        "youngs_modulus_GPa",
        "poisson_ratio",
        "debye_temperature_K",
        "born_stable",
    ),
    "phonon": (
        "verdict",
        "lowest_frequency_THz",
        "highest_frequency_THz",
        "zero_point_energy_per_atom_eV",
        "heat_capacity_per_atom_J_per_K_mol",
    ),
    "gruneisen": ("verdict", "gruneisen_lowest", "gruneisen_highest", "gruneisen_average"),
    "qha": (
        "volume_per_atom_A3",
        "thermal_expansion_volumetric_per_K",
        "bulk_modulus_GPa",
        "heat_capacity_cp_per_atom_J_per_K_mol",
    ),
    "kappa": (
        "thermal_conductivity_W_per_m_K",
        "verdict",
        "mesh_change_percent",
        "mean_free_path_of_half_nm",
    ),
    "neb": ("barrier_forward_eV", "barrier_backward_eV", "reaction_energy_eV"),
    "vacancy": ("sites.0.element", "sites.0.formation_energy_eV", "sites.0.removal_energy_eV"),
    "surface": ("surfaces.0.miller", "surfaces.0.surface_energy_J_per_m2"),
    "md": ("temperature_K", "pressure_GPa", "potential_energy_per_atom_eV", "simulated_ps"),
    **{
        name: tuple(
            f"validation.Default.rmse_{key}"
            for key in ("energy_per_atom_eV", "forces_eV_per_A", "virial_per_atom_eV")
        )
        for name in ("train", "finetune")
    },
    "pimd": ("temperature_K", "kinetic_energy_per_atom_eV", "pressure_GPa", "simulated_ps"),
}
# The headlines show lists over temperatures at this temperature, K.
ROOM_TEMPERATURE = 300.0


@dataclass(frozen=True)
class Option:
    """An option of the command.

    Attributes:
        name, help, unit: of the option. default: its default.
        open: whether the default leaves the value open; the configuration then records it.
    """

    name: str
    help: str
    unit: str
    default: Any
    open: bool = False


@dataclass(frozen=True)
class Setting:
    """An option as it was used."""

    name: str
    help: str
    cell: Cell
    unit: str
    default: Cell
    changed: bool


@dataclass(frozen=True)
class Session:
    """One run of the command."""

    started: str
    duration: str
    end: str
    machine: str
    evaluations: str
    command: str


def run_page(run: Run, title: str, options: Sequence[Option]) -> str:
    """The page of a run directory, as HTML.

    Args:
        run: its content. title: what was computed. options: the options of the command.
    """
    state = state_of(run)
    result = run.result or {}
    values = arrange(result) if result else Values((), ())
    return template("run.html").render(
        title=title,
        name=run.name,
        subtitle=_subtitle(run),
        state=state,
        warnings=[str(w) for w in _list(result.get("warnings"))],
        headlines=_headlines(run.protocol, result),
        pictures=run.pictures,
        values=values,
        settings=settings_of(run, options),
        model=facts(model_of(run)),
        sessions=[session_line(s) for s in run.sessions],
        versions=versions_of(run),
        log=run.log,
        log_open=state.kind != states.GOOD,
        files=[(name, _size(size)) for name, size in run.files],
    )


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # All content of files is escaped.
    environment = Environment(
        loader=PackageLoader("dpa3sim.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "generator": f"{GENERATOR} {dpa3sim.__version__}",
        "version": dpa3sim.__version__,
        "now": timestamp,
    }
    return environment


def template(name: str) -> Any:
    """A template of the package."""
    return _environment().get_template(name)


def source_text(name: str) -> str:
    """The content of a file beside the templates."""
    return str(_environment().loader.get_source(_environment(), name)[0])


def is_report(content: str) -> bool:
    """Whether a file begins like one of our pages."""
    return f'<meta name="generator" content="{html.escape(GENERATOR)} ' in content


def _subtitle(run: Run) -> str:
    """The structure of the run."""
    result = run.result or {}
    parts = [str(result.get("structure") or run.calculation.get("structure") or "")]
    if isinstance(result.get("formula"), str):
        n = result.get("n_atoms")
        parts.append(f"{result['formula']}{f', {n} atoms' if isinstance(n, int) else ''}")
    group = result.get("spacegroup_final") or result.get("spacegroup")
    if isinstance(group, str):
        parts.append(group)
    return " · ".join(part for part in parts if part)


def _headlines(protocol: str | None, result: Mapping[str, Any]) -> list[Row]:
    rows = []
    temperatures = _list(result.get("temperatures_K"))
    room = temperatures.index(ROOM_TEMPERATURE) if ROOM_TEMPERATURE in temperatures else None
    for path in HEADLINES.get(protocol or "", ()):
        around, key = _reach(result, path)
        value, name = around.get(key), label(key)
        if isinstance(value, list) and len(value) == len(temperatures) and room is not None:
            value, name = value[room], f"{name} at 300 K"
        if value is None or (isinstance(value, list) and len(value) > 3):
            continue
        text = " ".join(map(str, value)) if isinstance(value, list) else None
        cell = Cell(text) if text is not None else with_error(value, around.get(error_key(key)))
        rows.append(Row(name, cell, pretty(units_of(result).get(key))))
    return rows


def _reach(result: Mapping[str, Any], path: str) -> tuple[Mapping[str, Any], str]:
    """The table that contains the last name of a path such as ``sites.0.element``, and the name."""
    *places, key = path.split(".")
    found: Any = result
    for place in places:
        if place.isdigit():
            entries = _list(found)
            found = entries[int(place)] if int(place) < len(entries) else {}
        else:
            found = mapping(found).get(place)
    return mapping(found), key


def settings_of(run: Run, options: Sequence[Option]) -> list[Setting]:
    """All options; those in the file that are no longer known come last."""
    config = dict(run.config or {})
    settings = []
    for option in options:
        if option.name not in config:
            continue
        value = config.pop(option.name)
        changed = not option.open and value != option.default
        default = Cell("auto") if option.open else shown(option.default)
        settings.append(
            Setting(option.name, option.help, shown(value), pretty(option.unit), default, changed)
        )
    return settings + [
        Setting(str(name), "", shown(value), "", Cell("?"), False) for name, value in config.items()
    ]


def session_line(session: Mapping[str, Any]) -> Session:
    """A session as shown on the page."""
    seconds = seconds_of(session)
    evaluations = mapping(session.get("evaluations"))
    command = session.get("command")
    kernels = session.get("kernels")
    return Session(
        started=str(session.get("started", "?")),
        duration="?" if seconds is None else elapsed(seconds),
        end=meaning(session.get("exit_code")),
        machine=", ".join(
            str(part) for part in (session.get("device"), kernels and f"{kernels} kernels") if part
        ),
        evaluations=", ".join(f"{value} {name}" for name, value in evaluations.items()),
        command=_command_line(command),
    )


def _command_line(command: Any) -> str:
    import shlex

    return shlex.join(str(word) for word in command) if isinstance(command, list) else "?"


def versions_of(run: Run) -> list[Row]:
    """The versions of the last session."""
    last = run.sessions[-1] if run.sessions else {}
    rows = facts({k: last.get(k) for k in ("dpa3sim", "python", "platform") if k in last})
    packages = mapping(last.get("packages"))
    rows += [Row(str(name), shown(version)) for name, version in packages.items() if version]
    deviation = mapping(last.get("matmul_deviation"))
    return rows + [Row(f"matmul deviation: {k}", shown(v)) for k, v in deviation.items()]


def facts(table: Mapping[str, Any]) -> list[Row]:
    """Names and values, including those of nested tables."""
    rows = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            rows += [Row(f"{label(key)}: {r.name}", r.cell, r.unit) for r in facts(value)]
        elif value is not None:
            rows.append(Row(label(str(key)), shown(value)))
    return rows


def _size(count: int) -> str:
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.1f} kB" if count < 10**6 else f"{count / 10**6:.1f} MB"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
