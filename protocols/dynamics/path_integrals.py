"""Results of path integral molecular dynamics: averages with errors, structure, warnings."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.clients.ipi.tables import read_table
from dpa3sim.common.units import G_PER_CM3, GPA

from .. import base
from ..crystals import guards
from .correlation import Estimate, drift_of, estimate
from .ring_polymers import QUANTUM, Plan, runs
from .trajectories import RDF_FRAMES, Frame, RadialDistribution

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import BatchPotential

    from ..pimd import Settings

# A ring polymer resolves vibrations of h nu / k up to about beads * T. The fastest ones, 3600 cm^-1
# of hydrogen with this mass (u), need this product (K); those of heavier isotopes need less, in
# proportion to 1 / sqrt(mass).
HYDROGEN_TEMPERATURE, HYDROGEN_FREQUENCY, HYDROGEN_MASS = 5200.0, 3600.0, 1.008
# Radial distributions are averaged over so many beads: all have the same, and they are correlated.
RDF_BEADS = 4
# Points of a curve in a picture.
CURVE_POINTS = 2000
# An error is meaningful if it comes from at least so many independent values.
FEW_INDEPENDENT = 20
# A warning is given of deviations beyond this many standard errors, and beyond these (K, eV/atom,
# meV/atom/ps).
SIGNIFICANT = 4.0
TEMPERATURE_DEVIATION, ENERGY_DEVIATION, LARGE_DRIFT = 3.0, 5e-4, 1.0
_ELEMENT = re.compile(r"(kinetic_cv|r_gyration)\{\w+\}\((\w+)\)")


@dataclass(frozen=True)
class Run:
    """Averages of one run of i-PI.

    Attributes:
        beads: of each ring polymer.
        estimates: by key of the result, without unit: temperature (K), potential and kinetic
            energies (eV/atom), pressure (GPa), volume (Å^3).
        elements: by element, or isotope such as D: kinetic energy of an atom (eV) and radius of
            gyration (Å).
        drift: of the conserved quantity, meV/atom/ps, and its standard error; None if unknown.
        curves: columns of the table, thinned, with ``time_ps``.
        rdf_r: ``(n_bins,)`` Å; rdf: g(r) by pair of elements; empty for a molecule.
        n_rows, n_frames: numbers of averaged rows and frames.
    """

    beads: int
    estimates: dict[str, Estimate]
    elements: dict[str, dict[str, Estimate]]
    drift: tuple[float, float] | None
    curves: dict[str, np.ndarray]
    rdf_r: np.ndarray
    rdf: dict[str, np.ndarray]
    n_rows: int
    n_frames: int

    def to_dict(self, mass: float | None) -> dict[str, Any]:
        """JSON-ready; with a density if ``mass`` (u) is given."""
        endings = {"temperature": "K", "pressure": "GPa", "volume": "A3"}
        data: dict[str, Any] = {"beads": self.beads}
        for name, found in self.estimates.items():
            unit = endings.get(name, "eV")
            share = "" if name in endings else "_per_atom"
            data[f"{name}{share}_{unit}"] = found.mean
            data[f"{name}_error{share}_{unit}"] = found.error
        if mass is not None and "volume" in self.estimates:
            data["density_g_per_cm3"] = mass * G_PER_CM3 / self.estimates["volume"].mean
        data["elements"] = {
            element: {
                key: value
                for name, unit in (("kinetic_energy", "eV"), ("radius_of_gyration", "A"))
                for key, value in (
                    (f"{name}_{unit}", found[name].mean),
                    (f"{name}_error_{unit}", found[name].error),
                )
            }
            for element, found in self.elements.items()
        }
        data["drift_meV_per_atom_per_ps"] = self.drift and self.drift[0]
        data["drift_error_meV_per_atom_per_ps"] = self.drift and self.drift[1]
        data["n_rows_averaged"] = self.n_rows
        data["n_frames_analysed"] = self.n_frames
        data["n_independent"] = {
            name: round(found.independent, 1) for name, found in self.estimates.items()
        }
        return data


@dataclass(frozen=True, kw_only=True)
class Result(base.Result[Any]):
    """Averages of a path integral simulation, and of the classical run if there was one.

    Attributes:
        plan: the settings with everything decided. atoms: the last centroids.
        quantum, classical: the runs. equilibration: step from which they are averaged.
    """

    settings: Settings
    plan: Plan
    atoms: Atoms
    quantum: Run
    classical: Run | None
    equilibration: int

    def _values(self) -> dict[str, Any]:
        settings = self.settings
        npt = settings.ensemble == "npt"
        mass = float(self.atoms.get_masses().sum()) if npt else None
        return {
            "formula": self.atoms.get_chemical_formula(),
            "n_atoms": len(self.atoms),
            "n_constrained": len(self.plan.fixed),
            "ensemble": settings.ensemble,
            "method": settings.method,
            "n_steps": settings.steps,
            "timestep_fs": self.plan.timestep,
            "simulated_ps": settings.steps * self.plan.timestep / 1000,
            "equilibration_steps": self.equilibration,
            **self.quantum.to_dict(mass),
            "classical": self.classical and self.classical.to_dict(mass),
        }


def _warnings(
    atoms: Atoms, plan: Plan, potential: BatchPotential, found: Sequence[Run]
) -> list[str]:
    """What impairs the results."""
    return [
        *guards.domain(atoms, potential, potential.evaluate([atoms])[0]),
        *_few_beads(atoms, plan.settings.beads, plan),
        *(warning for run in found for warning in _doubts(run, plan)),
        *_steps(plan, potential),
    ]


def summarise(folder: Path, atoms: Atoms, plan: Plan, potential: BatchPotential) -> Result:
    """Read what i-PI wrote, average and judge it.

    Args:
        folder: with all files of the finished runs.
        atoms: the start structure. plan: the settings with everything decided.
        potential: the model, whose limits lead to warnings.
    """
    settings = plan.settings
    found = [analyse(folder, atoms, plan, prefix, beads) for prefix, beads in runs(settings)]
    warnings = guards.afterwards(_warnings, atoms, plan, potential, found)
    return Result(
        settings=settings,
        plan=plan,
        atoms=_centroids(folder, atoms),
        quantum=found[0],
        classical=found[1] if len(found) > 1 else None,
        equilibration=settings.equilibrated(settings.steps),
        reasons=(f"all {settings.steps} steps are done",),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def analyse(folder: Path, atoms: Atoms, plan: Plan, prefix: str, beads: int) -> Run:
    """Averages and radial distributions of one run."""
    settings = plan.settings
    table = read_table(folder / f"{prefix}.out")
    start = settings.equilibrated(settings.steps)
    # The table is longer if an earlier run did more steps than are asked for now.
    chosen = (table["step"] >= start) & (table["step"] <= settings.steps)
    columns = _physical(table, atoms, plan, beads)
    estimates = {name: estimate(values[chosen]) for name, values in columns.items()}
    conserved = table["conserved{ase}"][chosen]
    stride = max(1, math.ceil(len(chosen) / CURVE_POINTS))
    curves = {name: values[::stride] for name, values in columns.items()}
    curves["conserved"] = table["conserved{ase}"][::stride] / len(atoms)
    curves["time_ps"] = table["time{picosecond}"][::stride]
    r, rdf, n_frames = _radial(folder, atoms, plan, prefix, start)
    return Run(
        beads=beads,
        estimates=estimates,
        elements=_elements(table, chosen, atoms, plan),
        drift=drift_of(table["time{picosecond}"][chosen], 1000 * conserved / len(atoms)),
        curves=curves,
        rdf_r=r,
        rdf=rdf,
        n_rows=int(chosen.sum()),
        n_frames=n_frames,
    )


def _physical(
    table: dict[str, np.ndarray], atoms: Atoms, plan: Plan, beads: int
) -> dict[str, np.ndarray]:
    """Columns in our units, energies per atom.

    i-PI's estimators count the momenta of all atoms; those of constrained ones are subtracted.
    """
    from ase import units

    n, n_fixed = len(atoms), len(plan.fixed)
    kt = units.kB * plan.settings.temperature
    columns = {
        "temperature": table["temperature{kelvin}"],
        "potential_energy": table["potential{ase}"] / n,
    }
    if beads > 1:
        columns["kinetic_energy"] = (table["kinetic_cv{ase}"] - 1.5 * n_fixed * kt) / n
        columns["kinetic_energy_thermodynamic"] = (
            table["kinetic_td{ase}"] - 1.5 * n_fixed * beads * kt
        ) / n
    if "volume{angstrom3}" in table:
        volume = table["volume{angstrom3}"]
        columns["pressure"] = table["pressure_cv{gigapascal}"] - n_fixed * kt / volume / GPA
        if plan.settings.ensemble == "npt":
            columns["volume"] = volume
    return columns


def _elements(
    table: dict[str, np.ndarray], chosen: np.ndarray, atoms: Atoms, plan: Plan
) -> dict[str, dict[str, Estimate]]:
    """Kinetic energy (eV) and radius of gyration (Å) of a moving atom, by element or isotope."""
    from ase import units

    from dpa3sim.structures import isotopes

    kt = units.kB * plan.settings.temperature
    elements: dict[str, dict[str, Estimate]] = {}
    labels = isotopes.names(list(atoms.symbols), atoms.get_masses())
    for name, values in table.items():
        match = _ELEMENT.fullmatch(name)
        if match is None:
            continue
        members = [i for i, label in enumerate(labels) if label == match[2]]
        moving = len(set(members) - set(plan.fixed))
        if not moving:
            continue
        fixed = len(members) - moving
        if match[1] == "kinetic_cv":
            found = estimate((values[chosen] - 1.5 * fixed * kt) / moving)
            elements.setdefault(match[2], {})["kinetic_energy"] = found
        else:
            # The table has the mean over all atoms of the element; constrained ones add nothing.
            found = estimate(values[chosen] * len(members) / moving)
            elements.setdefault(match[2], {})["radius_of_gyration"] = found
    return elements


# -- structure -----------------------------------------------------------------------------------


def _radial(
    folder: Path, atoms: Atoms, plan: Plan, prefix: str, start: int
) -> tuple[np.ndarray, dict[str, np.ndarray], int]:
    """Radial distributions of the beads: r, g(r) by pair of elements, and frames read."""
    if not atoms.pbc.all():
        return np.zeros(0), {}, 0
    groups = {
        element: np.flatnonzero(atoms.symbols == element) for element in sorted(set(atoms.symbols))
    }
    radial = RadialDistribution(groups, atoms.pbc)
    available = (plan.settings.steps - start) // plan.interval + 1
    stride = max(1, available // RDF_FRAMES)
    n_frames = 0
    files = trajectory_files(folder, prefix)
    for path in files[:: max(1, math.ceil(len(files) / RDF_BEADS))]:
        for frame in itertools.islice(_frames(path, start, plan.settings.steps), 0, None, stride):
            radial.add(Frame(frame.positions, np.zeros_like(frame.positions), frame.cell[:]))
            n_frames += 1
    r, rdf = radial.result()
    return r, rdf, n_frames


def trajectory_files(folder: Path, prefix: str) -> list[Path]:
    """The trajectories of the beads, in order; i-PI pads their numbers."""
    return sorted(folder.glob(f"{prefix}.pos_*.extxyz"))


def _frames(path: Path, start: int, end: int) -> Iterator[Atoms]:
    """Frames of steps ``start`` to ``end``."""
    from ase.io import iread

    for frame in iread(path, index=":", format="extxyz"):
        step = re.search(r"Step: +(\d+)", frame.info["ipi_comment"])
        if step is not None and start <= int(step[1]) <= end:
            yield frame


def _centroids(folder: Path, atoms: Atoms) -> Atoms:
    """The last centroids that were written, with the periodicity and masses of the start."""
    from ase.io import iread

    path = folder / f"{QUANTUM}.centroid.extxyz"
    (last,) = iread(path, index=slice(-1, None), format="extxyz")
    made = atoms.copy()
    made.calc = None
    made.positions = last.arrays["x_centroid"]
    made.set_cell(last.cell if atoms.pbc.any() else np.zeros((3, 3)))
    return made


# -- judgement -----------------------------------------------------------------------------------


def _few_beads(atoms: Atoms, beads: int, plan: Plan) -> Sequence[str]:
    """A warning if the beads are too few for the vibrations of hydrogen."""
    settings = plan.settings
    hydrogen = np.flatnonzero(atoms.numbers == 1)
    moving = sorted(set(hydrogen.tolist()) - set(plan.fixed))
    if settings.method == "piglet" or beads == 1 or not moving:
        return []
    slower = math.sqrt(HYDROGEN_MASS / float(atoms.get_masses()[moving].min()))
    needed = math.ceil(slower * HYDROGEN_TEMPERATURE / settings.temperature)
    if beads >= needed:
        return []
    return [
        f"{beads} beads at {settings.temperature:g} K are few for vibrations of hydrogen: about "
        f"{needed} resolve {slower * HYDROGEN_FREQUENCY:.0f} cm^-1; compare with more beads"
    ]


def _doubts(run: Run, plan: Plan) -> Iterator[str]:
    """Warnings about averages that contradict each other, or that come from too few values."""
    kind = "" if run.beads > 1 else " of the classical run"
    few = [n for n, e in run.estimates.items() if e.error and e.independent < FEW_INDEPENDENT]
    if few or run.n_rows < 2:
        worst = min((run.estimates[n].independent for n in few), default=1.0)
        yield (
            f"the averages{kind} come from about {worst:.0f} independent values "
            f"({', '.join(few) or 'all'}): their errors are rough; use more steps"
        )
    temperature = run.estimates["temperature"]
    deviation = temperature.mean - plan.settings.temperature
    limit = max(SIGNIFICANT * (temperature.error or math.inf), TEMPERATURE_DEVIATION)
    if temperature.independent < FEW_INDEPENDENT:
        return
    # With coloured noise the momenta do not have the temperature of the beads.
    if plan.settings.method != "piglet" and abs(deviation) > limit:
        yield (
            f"the temperature{kind} is {temperature.mean:.1f} ± {temperature.error or 0:.1f} K: "
            "use a longer equilibration or a shorter timestep"
        )
    if run.beads > 1:
        virial = run.estimates["kinetic_energy"]
        thermo = run.estimates["kinetic_energy_thermodynamic"]
        error = math.hypot(virial.error or math.inf, thermo.error or math.inf)
        difference = virial.mean - thermo.mean
        if plan.settings.method != "piglet" and abs(difference) > max(
            SIGNIFICANT * error, ENERGY_DEVIATION
        ):
            yield (
                f"the two estimators of the kinetic energy differ by {1000 * difference:.2g} ± "
                f"{1000 * error:.1g} meV/atom: use a shorter timestep, or a longer equilibration "
                "of the beads"
            )
    if run.drift and abs(run.drift[0]) > max(LARGE_DRIFT, SIGNIFICANT * run.drift[1]):
        yield (
            f"the conserved quantity{kind} drifts by {run.drift[0]:.3g} ± {run.drift[1]:.2g} "
            f"meV/atom/ps: use a shorter timestep than {plan.timestep:g} fs, or dtype=float64"
        )


def _steps(plan: Plan, potential: BatchPotential) -> list[str]:
    """A warning that a model with a step in its energy does not conserve it."""
    descriptor = potential.model.config.descriptor
    if not descriptor.has_step:
        return []
    return [
        f"the energy of this model has a step where two atoms are {descriptor.a_rcut:g} Å apart: "
        "every crossing changes the conserved quantity, and the thermostat compensates for it"
    ]
