"""Whether a model conserves the energy: velocity Verlet from thermal velocities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.protocols.base import Event, Progress, Stage
from dpa3sim.protocols.dynamics.correlation import drift_of
from dpa3sim.validate.check import Findings
from dpa3sim.validate.probes import moving, rattled

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.interface import BatchPotential
    from dpa3sim.validate.settings import ValidateSettings

# Light atoms oscillate faster: their time step is this share.
LIGHT, LIGHT_SHARE = 4.0, 0.5
# Larger drifts (meV/atom/ps), with respect to their error, are warned of.
LARGE_DRIFT, SIGNIFICANT = 0.5, 4.0
SEED = 1


def systems(elements: Sequence[str]) -> dict[str, Atoms]:
    """The systems of the simulations."""
    return {name: rattled(atoms) for name, atoms in moving(elements).items()}


def stages(elements: Sequence[str], settings: ValidateSettings, cutoff: float) -> list[Stage]:
    """See :class:`~dpa3sim.validate.check.Check`."""
    tried = list(systems(elements).values())
    number = settings.steps + 1
    sizes = [len(atoms) for atoms in tried]
    return [Stage("dynamics", sizes, tried[-1], (number, number))] if tried else []


def run(potential: BatchPotential, settings: ValidateSettings, progress: Progress) -> Findings:
    """See :class:`~dpa3sim.validate.check.Check`."""
    tried = systems(potential.model.elements)
    if not tried:
        return Findings({"dynamics": []})
    totals = _simulated(list(tried.values()), potential, settings, progress)
    rows, warnings = [], []
    for (name, atoms), energies in zip(tried.items(), totals, strict=True):
        step = _timestep(atoms, settings)
        row = _conserved(1e3 * energies / len(atoms), step)
        rows.append({"system": name, "timestep_fs": step, **row})
        drift, error = row["drift_meV_per_atom_per_ps"], row["drift_error_meV_per_atom_per_ps"]
        if abs(drift) > max(LARGE_DRIFT, SIGNIFICANT * error):
            warnings.append(
                f"{name}: the total energy drifts by {drift:.2g} ± {error:.1g} meV/atom/ps at "
                f"{settings.temperature:g} K"
            )
    return Findings({"dynamics": rows}, tuple(warnings))


def _timestep(atoms: Atoms, settings: ValidateSettings) -> float:
    """Time step, fs."""
    light = bool((atoms.get_masses() < LIGHT).any())
    return settings.timestep * (LIGHT_SHARE if light else 1.0)


def _simulated(
    tried: list[Atoms], potential: BatchPotential, settings: ValidateSettings, progress: Progress
) -> np.ndarray:
    """Total energies of the systems, all at once, ``(n_systems, steps + 1)``, eV."""
    from ase import units
    from ase.md.velocitydistribution import Stationary, thermalize_momenta

    for atoms in tried:
        # Half of the kinetic energy becomes potential energy.
        thermalize_momenta(atoms, 2 * settings.temperature, rng=np.random.default_rng(SEED))
        Stationary(atoms)
    steps = [_timestep(atoms, settings) * units.fs for atoms in tried]
    outs = potential.evaluate(tried)
    totals = [[o.energy + a.get_kinetic_energy() for o, a in zip(outs, tried, strict=True)]]
    for done in range(settings.steps):
        for atoms, out, dt in zip(tried, outs, steps, strict=True):
            momenta = atoms.get_momenta() + 0.5 * dt * out.forces
            atoms.set_momenta(momenta)
            atoms.positions += dt * momenta / atoms.get_masses()[:, None]
        outs = potential.evaluate(tried)
        for atoms, out, dt in zip(tried, outs, steps, strict=True):
            atoms.set_momenta(atoms.get_momenta() + 0.5 * dt * out.forces)
        totals.append([o.energy + a.get_kinetic_energy() for o, a in zip(outs, tried, strict=True)])
        if (done + 1) % 50 == 0:
            progress(Event("dynamics", f"{done + 1} steps", done + 1, settings.steps))
    return np.array(totals).T


def _conserved(energies: np.ndarray, step: float) -> dict[str, Any]:
    """How well a total energy is conserved.

    Args:
        energies: ``(n,)`` meV/atom. step: fs.
    """
    time = 1e-3 * step * np.arange(len(energies))
    found = drift_of(time, energies)
    assert found is not None  # the settings ask for more than four steps
    drift, error = found
    return {
        "simulated_ps": float(time[-1]),
        "range_meV_per_atom": float(np.ptp(energies)),
        "drift_meV_per_atom_per_ps": drift,
        "drift_error_meV_per_atom_per_ps": error,
        "largest_change_meV_per_atom": float(np.abs(np.diff(energies)).max()),
    }
