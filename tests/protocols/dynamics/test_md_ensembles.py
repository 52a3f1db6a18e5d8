"""Ensembles that the integrators sample, judged by the package physical_validation.

Deviations are in standard errors. The system is solid argon (Lennard-Jones, 32 atoms), which is
cheap enough for the statistics; thermostats and barostats are those of ``dpa3sim md``.
"""

import contextlib
import io

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from tests_support import EMTPotential

from dpa3sim.potential.evaluation import Evaluation
from dpa3sim.protocols import md
from dpa3sim.protocols.dynamics.recorders import MemoryRecorder

validation = pytest.importorskip("physical_validation")

# For this number of tests, a deviation that chance gives once in some hundred runs of all.
SIGMAS = 4.0
THERMOSTATS = ("langevin", "nose-hoover", "bussi")
BAROSTATS = ("mtk", "mtk-full")
TEMPERATURES = (40.0, 50.0)
# With these short-ranged forces, argon is bound by pressure only.
PRESSURES = (0.3, 0.36)
# At 40 K the crystal is so nearly harmonic that chains of thermostats, which are deterministic, do
# not go through their ensemble in the time of a test.
BAROSTAT_TEMPERATURE = 70.0


class LennardJones(EMTPotential):
    """Argon with forces that go to zero at the cutoff; minimum images of one fixed shape."""

    EPSILON, SIGMA, CUTOFF = 0.0104, 3.4, 4.8

    @classmethod
    def _evaluate(cls, structure):
        scaled = structure.positions @ np.linalg.inv(structure.cell)
        delta = scaled[:, None] - scaled[None, :]
        vectors = (delta - np.rint(delta)) @ structure.cell
        square = (vectors**2).sum(axis=2)
        np.fill_diagonal(square, np.inf)
        near = square < cls.CUTOFF**2
        r = np.sqrt(np.where(near, square, cls.CUTOFF**2))

        def plain(distance):
            x = (cls.SIGMA / distance) ** 6
            return 4 * cls.EPSILON * (x**2 - x), 24 * cls.EPSILON * (2 * x**2 - x) / distance

        energy, force = plain(r)
        last_energy, last_force = plain(cls.CUTOFF)
        energy = energy - last_energy + last_force * (r - cls.CUTOFF)
        pull = ((force - last_force) / r)[:, :, None] * vectors
        virial = 0.5 * np.einsum("ijk,ijl->kl", pull, vectors)
        energies = 0.5 * energy.sum(axis=1)
        return Evaluation(
            float(energies.sum()), energies, pull.sum(axis=1), virial, 0, 0, 0, 0
        )  # fmt: skip


def argon():
    return bulk("Ar", "fcc", a=5.4, cubic=True) * (2, 2, 2)


def unit_data():
    return validation.data.UnitData(
        kb=units.kB,
        energy_str="eV",
        energy_conversion=96.48533,
        length_str="A",
        length_conversion=0.1,
        volume_str="A^3",
        volume_conversion=1e-3,
        temperature_str="K",
        temperature_conversion=1.0,
        pressure_str="eV/A^3",
        pressure_conversion=1.0 / (1e5 * units.Pascal),
        time_str="ps",
        time_conversion=1.0,
    )


def simulate(method, temperature, pressure=0.0, steps=100_000, **options):
    """The data of a simulation in the form that physical_validation takes."""
    atoms, recorder = argon(), MemoryRecorder()
    npt = method in BAROSTATS
    chosen = {"ensemble": "npt", "barostat": method} if npt else {"thermostat": method}
    defaults = {
        "timestep": 10.0, "thermostat_time": 200.0, "barostat_time": 500.0, "table_interval": 10,
        "interval": 10**9, "checkpoint": 10**9, "seed": 1,
    }  # fmt: skip
    settings = md.Settings(
        **chosen, temperature=temperature, pressure=pressure, steps=steps, **(defaults | options)
    )
    result = md.run(atoms, LennardJones(), settings, recorder=recorder)
    rows = [r for r in recorder.rows(0) if r["step"] >= steps // 10]
    column = {name: np.array([row[name] for row in rows], dtype=float) for name in rows[0]}
    return result, validation.data.SimulationData(
        units=unit_data(),
        dt=settings.timestep / 1000,
        system=validation.data.SystemData(
            natoms=len(atoms),
            nconstraints=0,
            ndof_reduction_tra=3,
            ndof_reduction_rot=0,
            mass=atoms.get_masses(),
        ),
        ensemble=validation.data.EnsembleData(
            ensemble="NPT" if npt else "NVT",
            natoms=len(atoms),
            volume=None if npt else atoms.get_volume(),
            pressure=pressure * units.GPa if npt else None,
            temperature=temperature,
        ),
        observables=validation.data.ObservableData(
            kinetic_energy=column["kinetic_eV"],
            potential_energy=column["potential_eV"],
            total_energy=column["total_eV"],
            volume=column["volume_A3"] if npt else None,
            constant_of_motion=column["conserved_eV"],
        ),
    )


def quietly(function, *args, **kwargs):
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*args, **kwargs)


def kinetic_deviations(data):
    """Of the mean and the width of the kinetic energy from those of the ensemble."""
    return quietly(
        validation.kinetic_energy.distribution, data, strict=False, verbosity=0,
        bs_repetitions=200, bootstrap_seed=1,
    )  # fmt: skip


def ensemble_deviation(first, second):
    """Of the ratio of two distributions from that of the ensemble, the largest."""
    found = quietly(
        validation.ensemble.check, first, second, total_energy=False, verbosity=0,
        bootstrap_repetitions=200, bootstrap_seed=1,
    )  # fmt: skip
    return float(np.max(np.abs(found)))


def check_samples(method, runs, column, targets, digits):
    """Kinetic energies and the mean of a column in two runs, and how they relate."""
    quantity, _, unit = column.rpartition("_")
    for (result, data), target in zip(runs, targets, strict=True):
        mean, width = kinetic_deviations(data)
        value, error = result.mean(column)
        print(
            f"{method} {target:g} {unit}: {quantity} {value:.{digits}f} ± {error:.{digits}f}, "
            f"kinetic energy deviates by {mean:.2f} (mean), {width:.2f} (width) sigma"
        )
        assert abs(mean) < SIGMAS
        assert abs(width) < SIGMAS
        assert abs(value - target) < SIGMAS * error
    deviation = ensemble_deviation(runs[0][1], runs[1][1])
    print(f"{method} {targets} {unit}: ensemble deviates by {deviation:.2f} sigma")
    assert deviation < SIGMAS


@pytest.mark.slow
@pytest.mark.parametrize("method", THERMOSTATS)
def test_thermostats_sample_the_canonical_ensemble(method):
    """Kinetic energies at two temperatures, and how potential energies change between them."""
    runs = [simulate(method, temperature) for temperature in TEMPERATURES]
    check_samples(method, runs, "temperature_K", TEMPERATURES, 2)


@pytest.mark.slow
@pytest.mark.parametrize("method", BAROSTATS)
def test_barostats_sample_the_isothermal_isobaric_ensemble(method):
    """Kinetic energies, mean pressures, and how volumes change between two pressures."""
    runs = [simulate(method, BAROSTAT_TEMPERATURE, pressure) for pressure in PRESSURES]
    check_samples(method, runs, "pressure_GPa", PRESSURES, 5)


@pytest.mark.slow
def test_weak_coupling_is_found_out():
    """What the warning about Berendsen's thermostat says; and these tests can fail."""
    _, data = simulate("berendsen", TEMPERATURES[0], steps=40_000)
    mean, width = kinetic_deviations(data)
    print(f"berendsen 40 K: kinetic energy deviates by {mean:.2f}, {width:.2f} sigma")
    assert abs(width) > 10


def test_energy_fluctuations_fall_with_the_square_of_the_time_step():
    """Velocity Verlet, by physical_validation's own measure: ratios against those of dt^2."""
    runs = []
    for timestep in (32.0, 16.0, 8.0):
        atoms, recorder = argon(), MemoryRecorder()
        settings = md.Settings(
            ensemble="nve", temperature=60.0, timestep=timestep, steps=int(4000 / timestep),
            table_interval=1, interval=10**9,
        )  # fmt: skip
        md.run(atoms, LennardJones(), settings, recorder=recorder)
        conserved = np.array([row["conserved_eV"] for row in recorder.rows(0)], dtype=float)
        runs.append(
            validation.data.SimulationData(
                units=unit_data(),
                dt=timestep / 1000,
                ensemble=validation.data.EnsembleData("NVE", natoms=32, volume=atoms.get_volume()),
                observables=validation.data.ObservableData(constant_of_motion=conserved),
            )
        )
    deviation = quietly(validation.integrator.convergence, runs, verbose=False)
    print(f"ratios of fluctuations and of dt^2 differ by {deviation:.3f} at most")
    assert deviation < 0.5


def test_lennard_jones_forces_and_virial_are_derivatives():
    """The potential of these tests is one."""
    atoms = argon()
    atoms.rattle(0.1, seed=2)
    evaluation = LennardJones().evaluate([atoms])[0]
    moved = []
    for sign in (1, -1):
        copy = atoms.copy()
        copy.positions[3, 1] += sign * 1e-4
        strained = atoms.copy()
        strained.set_cell(atoms.cell[:] * (1 + sign * 1e-5), scale_atoms=True)
        moved.append([r.energy for r in LennardJones().evaluate([copy, strained])])
    up, down = np.array(moved)
    assert -(up[0] - down[0]) / 2e-4 == pytest.approx(evaluation.forces[3, 1], rel=1e-5)
    assert -(up[1] - down[1]) / 2e-5 == pytest.approx(np.trace(evaluation.virial), rel=1e-5)
