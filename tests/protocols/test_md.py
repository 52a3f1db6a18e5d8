"""Molecular dynamics: the physics of the integrators, and exact continuation."""

import itertools
import tracemalloc

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.constraints import FixAtoms, FixBondLength
from tests_support import EMTPotential

from dpa3sim import Potential
from dpa3sim.common.errors import InputError, UnphysicalError
from dpa3sim.potential.evaluation import Evaluation
from dpa3sim.protocols import md
from dpa3sim.protocols.dynamics.integrators import degrees_of_freedom
from dpa3sim.protocols.dynamics.recorders import MemoryRecorder
from dpa3sim.protocols.dynamics.statistics import statistics
from dpa3sim.run.recorder import FileRecorder
from dpa3sim.structures.system import as_system

METHODS = {
    "nve": {"ensemble": "nve"},
    "langevin": {"thermostat": "langevin"},
    "nose-hoover": {"thermostat": "nose-hoover"},
    "bussi": {"thermostat": "bussi"},
    "berendsen": {"thermostat": "berendsen"},
    "mtk": {"ensemble": "npt"},
    "mtk-full": {"ensemble": "npt", "barostat": "mtk-full"},
    "berendsen-npt": {"ensemble": "npt", "barostat": "berendsen"},
    "ramp": {"thermostat": "nose-hoover", "temperature_end": 700.0},
}


class Killed(Exception):
    """What stands for a kill."""


class MortalPotential(EMTPotential):
    """Fails after so many evaluations, as a kill does: nothing can be saved then."""

    def __init__(self, life):
        super().__init__()
        self.life = life

    def evaluate_each(self, structures):
        self.life -= 1
        if self.life < 0:
            raise Killed
        return super().evaluate_each(structures)


@pytest.fixture
def copper():
    return bulk("Cu", cubic=True) * (2, 2, 2)


def settings(method="langevin", **options):
    defaults = {"temperature": 400.0, "timestep": 2.0, "steps": 60, "interval": 4}
    return md.Settings(**(defaults | METHODS[method] | options))


def final_state(result):
    return [
        array
        for atoms in result.atoms
        for array in (atoms.positions, atoms.get_momenta(), atoms.cell[:])
    ]


def files_of(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".npz"}


def table(recorder, column, replica=0):
    return np.array([row[column] for row in recorder.rows(replica)], dtype=float)


# -- exact continuation ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["extxyz", "traj"])
@pytest.mark.parametrize("method", METHODS)
def test_killed_and_continued_is_the_same_to_the_last_bit(method, form, copper, tmp_path):
    """Killed at several moments, mostly between two saved states."""
    options = settings(method, trajectory_format=form, checkpoint=7, replicas=1, seed=5)
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    with FileRecorder(tmp_path / "whole", 1, form) as recorder:
        whole = md.run(copper, EMTPotential(), options, recorder=recorder)
    kills = 0
    for life in (9, 12, 3, 17, 1, 10, 1000):
        try:
            with FileRecorder(tmp_path / "parts", 1, form) as recorder:
                parts = md.run(copper, MortalPotential(life), options, recorder=recorder)
        except Killed:
            kills += 1
    assert kills >= 4
    for a, b in zip(final_state(whole), final_state(parts), strict=True):
        np.testing.assert_array_equal(a, b)
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "parts")
    assert whole.to_dict() == parts.to_dict()


def test_more_steps_continue_a_finished_run(copper, tmp_path):
    for name, stages in (("whole", (60,)), ("parts", (21, 50, 60))):
        (tmp_path / name).mkdir()
        for steps in stages:
            with FileRecorder(tmp_path / name, 1, "extxyz") as recorder:
                result = md.run(
                    copper, EMTPotential(), settings("bussi", steps=steps), recorder=recorder
                )
            assert result.n_steps == steps
            assert result.converged
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "parts")


def test_replicas_killed_together_continue_together(copper, tmp_path):
    options = settings("langevin", replicas=3, checkpoint=10, steps=30)
    for name, lives in (("whole", (1000,)), ("parts", (14, 12, 1000))):
        (tmp_path / name).mkdir()
        for life in lives:
            try:
                with FileRecorder(tmp_path / name, 3, "extxyz") as recorder:
                    md.run(copper, MortalPotential(life), options, recorder=recorder)
            except Killed:
                assert life < 1000
    assert len(files_of(tmp_path / "whole")) == 6
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "parts")


def test_a_model_continues_to_the_last_bit(smooth, water, tmp_path):
    """A fresh potential, with fresh neighbour lists, goes on as one with old ones."""
    options = md.Settings(steps=40, checkpoint=9, temperature=400, interval=3, seed=2)
    results = []
    for name, stages in (("whole", (40,)), ("parts", (13, 26, 40))):
        recorder = MemoryRecorder()
        for steps in stages:
            potential = Potential(smooth.model)
            part = md.Settings(**{**vars(options), "steps": steps})
            results.append(md.run(water, potential, part, recorder=recorder))
        if name == "whole":
            assert potential.counters.batches == 41
    np.testing.assert_array_equal(results[0].atoms[0].positions, results[-1].atoms[0].positions)
    np.testing.assert_array_equal(
        results[0].atoms[0].get_momenta(), results[-1].atoms[0].get_momenta()
    )


def test_results_do_not_depend_on_the_history_of_lists(smooth, water):
    """Along a trajectory long enough for several searches, every step equals a fresh start."""
    rng = np.random.default_rng(0)
    velocity = np.array([0.06, -0.04, 0.03]) + rng.normal(0, 0.004, (len(water), 3))
    old = Potential(smooth.model)
    atoms = water.copy()
    for step in range(60):
        atoms.positions += velocity
        atoms.set_cell(atoms.cell[:] * (1 + 1e-4), scale_atoms=True)
        kept = old.evaluate([atoms])[0]
        if step % 10 == 9:
            fresh = Potential(smooth.model).evaluate([atoms])[0]
            np.testing.assert_array_equal(kept.forces, fresh.forces)
            np.testing.assert_array_equal(kept.virial, fresh.virial)
            assert kept.energy == fresh.energy
    assert old.counters.rebuilds > 2
    old.forget()
    before = old.counters.rebuilds
    old.evaluate([atoms])
    assert old.counters.rebuilds == before + 1


# -- many at once ----------------------------------------------------------------------------------


def test_replicas_are_single_runs_in_one_batch(smooth, water):
    steps, n = 12, 4
    potential = Potential(smooth.model)
    together = md.run(water, potential, md.Settings(steps=steps, replicas=n, seed=7))
    assert potential.counters.batches == steps + 1
    assert potential.counters.evaluations == n * (steps + 1)
    for k in range(n):
        single = md.run(water, Potential(smooth.model), md.Settings(steps=steps, seed=7 + k))
        np.testing.assert_allclose(
            together.atoms[k].positions, single.atoms[0].positions, atol=1e-10
        )
        np.testing.assert_allclose(
            together.atoms[k].get_momenta(), single.atoms[0].get_momenta(), atol=1e-10
        )
    assert not np.allclose(together.atoms[0].positions, together.atoms[1].positions)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "berendsen-npt"])
def test_one_evaluation_for_each_step(method, copper):
    potential = EMTPotential()
    md.run(copper, potential, settings(method, steps=15, replicas=2))
    assert potential.requests == [2] * 16


# -- physics ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_start_is_at_the_temperature_and_at_rest(method, copper):
    recorder = MemoryRecorder()
    md.run(copper, EMTPotential(), settings(method, steps=20), recorder=recorder)
    assert table(recorder, "temperature_K")[0] == pytest.approx(400, rel=1e-12)
    for frame in recorder.frames(0):
        momentum = frame.get_momenta().sum(axis=0)
        np.testing.assert_allclose(momentum, 0, atol=1e-10)
    centre = [f.get_center_of_mass(scaled=True) for f in recorder.frames(0)]
    np.testing.assert_allclose(centre, [centre[0]] * len(centre), atol=1e-9)


def test_molecules_do_not_rotate(smooth):
    for name, degrees in (("H2O", 3), ("H2O2", 6), ("OH", 1), ("H2", 1)):
        atoms = molecule(name)
        assert degrees_of_freedom(atoms, "none") == degrees
        recorder = MemoryRecorder()
        options = md.Settings(ensemble="nve", steps=20, temperature=200, interval=5)
        md.run(atoms, smooth, options, recorder=recorder)
        for frame in recorder.frames(0):
            np.testing.assert_allclose(frame.get_angular_momentum(), 0, atol=1e-8)
            np.testing.assert_allclose(frame.get_momenta().sum(axis=0), 0, atol=1e-10)


@pytest.mark.parametrize(
    "method",
    [
        *("nve", "mtk-full"),
        *(
            pytest.param(x, marks=pytest.mark.slow)
            for x in ("langevin", "nose-hoover", "bussi", "mtk", "ramp", "berendsen")
        ),
    ],
)
def test_what_is_conserved_is_conserved_better_with_shorter_steps(method, copper):
    """Deviations fall with the square of the time step, whatever heat is exchanged."""
    copper.rattle(0.05, seed=1)
    deviations = []
    for timestep in (8.0, 4.0, 2.0):
        steps = int(400 / timestep)
        recorder = MemoryRecorder()
        options = settings(
            method,
            timestep=timestep,
            steps=steps,
            interval=1,
            # The deviation of a trajectory, not of noise: all of them start alike, and the heat
            # is exchanged slowly.
            thermostat_time=2000.0,
            temperature=600.0,
        )
        md.run(copper, EMTPotential(), options, recorder=recorder)
        conserved, total = table(recorder, "conserved_eV"), table(recorder, "total_eV")
        deviations.append(np.std(conserved))
        if method != "nve":
            assert np.std(total) > 3 * np.std(conserved) or timestep > 4
    for coarse, fine in itertools.pairwise(deviations):
        assert 2.5 < coarse / fine < 7


@pytest.mark.slow
def test_ramp_reaches_its_end_and_stays(copper):
    recorder = MemoryRecorder()
    options = settings(
        "berendsen", temperature=100.0, temperature_end=500.0, ramp_steps=100, steps=300,
        thermostat_time=30.0, interval=1,
    )  # fmt: skip
    md.run(copper, EMTPotential(), options, recorder=recorder)
    temperature = table(recorder, "temperature_K")
    assert temperature[:50].mean() < 200
    assert temperature[150:].mean() == pytest.approx(500, rel=0.1)


def test_ramp_goes_on_where_it_was(copper):
    """Extending a run does not stretch its ramp."""
    plan = md.check(copper, settings("ramp", steps=100))
    assert [plan.target(k, 100) for k in (0, 50, 100, 150)] == [400, 550, 700, 700]
    recorder = MemoryRecorder()
    md.run(copper, EMTPotential(), settings("ramp", steps=20), recorder=recorder)
    md.run(copper, EMTPotential(), settings("ramp", steps=40), recorder=recorder)
    assert recorder.state.facts["ramp"] == 20


@pytest.mark.slow
def test_barostat_finds_the_pressure(copper):
    """Weak coupling brings a strained crystal to the pressure asked for."""
    copper.set_cell(copper.cell[:] * 1.01, scale_atoms=True)
    result = md.run(
        copper,
        EMTPotential(),
        settings("berendsen-npt", temperature=50.0, pressure=2.0, steps=400, barostat_time=100.0),
    )
    assert result.mean("pressure_GPa")[0] == pytest.approx(2.0, abs=0.3)
    assert any("berendsen samples no ensemble" in w for w in result.warnings)


def test_isotropic_barostat_keeps_the_shape_and_full_does_not():
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.set_cell(atoms.cell[:] * [[1.0], [1.0], [1.03]], scale_atoms=True)
    for method, changes in (("mtk", False), ("mtk-full", True)):
        final = md.run(atoms, EMTPotential(), settings(method, steps=150)).atoms[0]
        ratio = final.cell[:] / np.where(atoms.cell[:] == 0, 1, atoms.cell[:])
        diagonal = np.diag(ratio)
        assert (np.ptp(diagonal) > 1e-3) == changes
        assert abs(diagonal - 1).max() > 1e-3


def test_fixed_atoms_stay_and_do_not_count(copper):
    copper.set_constraint(FixAtoms(range(8)))
    for method in ("nve", "langevin", "nose-hoover", "bussi"):
        recorder = MemoryRecorder()
        result = md.run(copper, EMTPotential(), settings(method), recorder=recorder)
        np.testing.assert_array_equal(result.atoms[0].positions[:8], copper.positions[:8])
        assert result.plan.degrees == 72
        assert table(recorder, "temperature_K")[0] == pytest.approx(400)


def test_hydrogen_shortens_the_step():
    assert md.check(molecule("H2O"), md.Settings()).timestep == 0.5
    plan = md.check(bulk("Cu", cubic=True), md.Settings())
    assert (plan.timestep, plan.interval) == (1.0, 10)
    assert md.check(molecule("H2O"), md.Settings()).interval == 8


def test_velocities_of_the_structure_are_kept(copper):
    copper.set_momenta(np.random.default_rng(3).normal(size=(32, 3)))
    recorder = MemoryRecorder()
    options = settings("nve", steps=0, keep_velocities=True)
    md.run(copper, EMTPotential(), options, recorder=recorder)
    (frame,) = recorder.frames(0)
    expected = copper.get_momenta() - copper.get_momenta().mean(axis=0)
    np.testing.assert_allclose(frame.get_momenta(), expected, atol=1e-12)


# -- the step of the model at its angle cutoff -----------------------------------------------------


class SteppedPotential(EMTPotential):
    """Energies with a step of a known height wherever the number of angles changes."""

    HEIGHT = 2e-3

    def __init__(self):
        super().__init__()
        self.model.config.descriptor.has_step = True
        self.model.config.descriptor.a_rcut = 4.0

    @classmethod
    def _evaluate(cls, structure):
        plain = EMTPotential._evaluate(structure)
        near = int(np.sum(structure.positions[:, 0] > structure.cell[0, 0] / 2))
        return Evaluation(
            plain.energy + cls.HEIGHT * near, plain.energies, plain.forces, plain.virial,
            0, near, 0, 0,
        )  # fmt: skip


def test_steps_at_the_cutoff_are_counted_and_told(copper):
    potential = SteppedPotential()
    result = md.run(copper, potential, settings("nve", steps=120, temperature=600.0))
    (jumps,) = result.jumps
    assert jumps.steps == 120
    assert 0 < jumps.crossings < 120
    crossing, quiet = jumps.rms
    # One atom or a few cross at once.
    assert SteppedPotential.HEIGHT * 0.5 < crossing < SteppedPotential.HEIGHT * 5
    assert crossing > 2 * quiet
    assert any("--smooth-cutoff" in w for w in result.warnings)
    smooth = SteppedPotential()
    smooth.model.config.descriptor.has_step = False  # as smooth_cutoff does
    result = md.run(copper, smooth, settings("nve", steps=120, temperature=600.0))
    assert not any("--smooth-cutoff" in w for w in result.warnings)


# -- what ends a run -------------------------------------------------------------------------------


def test_an_explosion_names_step_and_quantity(copper, tmp_path):
    options = settings("nve", timestep=60.0, steps=500, temperature=3000.0, interval=1)
    with (
        FileRecorder(tmp_path, 1, "extxyz") as recorder,
        pytest.raises(UnphysicalError, match=r"step \d+: .*") as caught,
    ):
        md.run(copper, EMTPotential(), options, recorder=recorder)
    assert caught.value.exit_code == 4
    assert len((tmp_path / "thermo.csv").read_text().splitlines()) >= 2


def test_atoms_that_collide_are_an_unphysical_result(smooth):
    atoms = Atoms("HH", [[0, 0, 0], [0.8, 0, 0]])
    atoms.set_momenta([[40.0, 0, 0], [-40.0, 0, 0]])
    with pytest.raises(UnphysicalError, match="step"):
        md.run(atoms, smooth, md.Settings(ensemble="nve", keep_velocities=True, steps=50))


def test_one_bad_replica_is_named(copper):
    class Bad(EMTPotential):
        def evaluate_each(self, structures):
            results = super().evaluate_each(structures)
            if len(self.requests) == 5:
                results[1] = InputError("atoms 3 and 4 are closer than 0.3 Å")
            return results

    with pytest.raises(UnphysicalError, match="replica 1, step 4: atoms 3 and 4"):
        md.run(copper, Bad(), settings(replicas=3))


def test_asked_to_stop_it_saves_and_goes_on_the_same(copper):
    recorder, calls = MemoryRecorder(), []

    def stop():
        calls.append(None)
        return len(calls) == 17

    with pytest.raises(KeyboardInterrupt):
        md.run(copper, EMTPotential(), settings("langevin"), recorder=recorder, stop=stop)
    assert recorder.state.step == 16  # asked before the first step, and after each
    rest = md.run(copper, EMTPotential(), settings("langevin"), recorder=recorder)
    whole = md.run(copper, EMTPotential(), settings("langevin"))
    for a, b in zip(final_state(whole), final_state(rest), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("replicas", [1, 2])
def test_asked_to_stop_before_its_first_step_it_takes_none(copper, replicas):
    recorder, potential = MemoryRecorder(), EMTPotential()
    chosen = settings("langevin", replicas=replicas)
    with pytest.raises(KeyboardInterrupt):
        md.run(copper, potential, chosen, recorder=recorder, stop=lambda: True)
    assert recorder.state.step == 0
    assert len(potential.requests) == 1  # of the start
    with pytest.raises(KeyboardInterrupt):
        md.run(copper, potential, chosen, recorder=recorder, stop=lambda: True)
    assert len(potential.requests) == 1
    rest = md.run(copper, EMTPotential(), chosen, recorder=recorder)
    whole = md.run(copper, EMTPotential(), chosen)
    for a, b in zip(final_state(whole), final_state(rest), strict=True):
        np.testing.assert_array_equal(a, b)


def test_time_limit_is_kept_and_told(copper):
    result = md.run(copper, EMTPotential(), settings(steps=10**6, max_hours=1.0 / 3600))
    assert not result.converged
    assert 0 < result.n_steps < 10**6
    assert "stopped before the limit of 0.000277778 h" in result.reasons[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timestep": -1.0}, "timestep = -1 must be positive"),
        ({"timestep": 0.0}, "must be positive"),
        ({"steps": -5}, "steps = -5 must be at least 0"),
        ({"temperature": -3.0}, "at least 0"),
        ({"temperature": 0.0}, "above 0 K"),
        ({"thermostat": "langevn"}, "did you mean 'langevin'"),
        ({"ensemble": "nve", "thermostat": "bussi"}, "nve has no thermostat"),
        ({"barostat": "mtk"}, "nvt has no barostat"),
        ({"pressure": 2.0}, "only with ensemble=npt"),
        ({"ensemble": "npt", "thermostat": "langevin"}, "goes with thermostat=nose-hoover"),
        ({"ensemble": "npt", "barostat": "berendsen", "thermostat": "bussi"}, "berendsen"),
        ({"ensemble": "nve", "temperature_end": 5.0}, "temperature_end"),
        ({"ramp_steps": 5}, "needs temperature_end"),
        ({"replicas": 0}, "at least 1"),
        ({"max_hours": 0.0}, "positive"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        md.Settings(**options)


@pytest.mark.parametrize(
    ("atoms", "options", "message"),
    [
        (Atoms(), {}, "no atoms"),
        (molecule("H2O"), {"ensemble": "npt"}, "is a molecule"),
        (Atoms("Cu", cell=[3, 3, 3], pbc=True), {}, "no degree of freedom"),
        (bulk("Cu", cubic=True), {"keep_velocities": True}, "no velocities"),
        (bulk("Cu", cubic=True), {"thermostat_time": 5.0}, "at least 10 time steps"),
        (Atoms("H2", [[0, 0, 0], [0, 0, 0.8]], constraint=FixBondLength(0, 1)), {},
         "FixBondLength"),
        (Atoms("Cu2", [[0, 0, 0], [2, 0, 0]], cell=[9] * 3, pbc=True, constraint=FixAtoms([0])),
         {"ensemble": "npt"}, "cannot have fixed atoms"),
        (Atoms("Cu2", [[0, 0, 0], [2, 0, 0]], cell=[9] * 3, pbc=(1, 1, 0)),
         {"ensemble": "npt"}, "not periodic along all three"),
    ],
)  # fmt: skip
def test_structures_that_do_not_fit_are_refused(atoms, options, message):
    with pytest.raises(InputError, match=message):
        md.check(atoms, md.Settings(**options))


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_steps(tmp_path, monkeypatch):
    """Five times the steps, frames and rows, in the same memory, analysis included."""
    monkeypatch.setattr("dpa3sim.protocols.dynamics.statistics.CURVE_POINTS", 50)
    atoms = bulk("Cu", cubic=True)

    def peak(steps, recorder):
        options = md.Settings(steps=steps, interval=1, checkpoint=100, equilibration=0)
        tracemalloc.start()
        result = md.run(atoms, ConstantPotential(), options, recorder=recorder)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert result.analysis.n_frames == steps + 1
        return most

    def peak_on_disk(steps):
        folder = tmp_path / str(steps)
        folder.mkdir()
        with FileRecorder(folder, 1, "extxyz") as recorder:
            return peak(steps, recorder)

    peak_on_disk(50)  # loads what is loaded once
    # Python collects its garbage when it wants to; kept, frames and rows would be 4 MB.
    assert peak_on_disk(1000) < peak_on_disk(200) + 1e6
    assert peak(1000, MemoryRecorder()) > peak(200, MemoryRecorder()) + 3e6


class ConstantPotential(EMTPotential):
    """No forces, no cost."""

    @staticmethod
    def _evaluate(structure):
        n = len(structure.numbers)
        return Evaluation(0.0, np.zeros(n), np.zeros((n, 3)), np.zeros((3, 3)), 0, 0, 0, 0)


# -- statistics ------------------------------------------------------------------------------------


def test_drift_and_averages_of_a_known_table():
    rng = np.random.default_rng(0)
    slope, noise, n = 0.8, 2e-4, 4000
    rows = [
        {"step": k, "time_ps": k * 1e-3, "conserved_eV": -5e4 + 4e-3 * slope * k * 1e-3 + e, "x": 7}
        for k, e in enumerate(rng.normal(0, noise, n))
    ]
    found = statistics(iter(rows), n, start=1000, n_atoms=4)
    drift, error = found.drift
    assert abs(drift - slope) < 4 * error
    assert 0 < error < 0.1
    assert found.n_rows == 3000
    assert found.averages["x"].mean == 7
    assert found.averages["step"].mean == pytest.approx(2499.5)
    assert found.averages["step"].deviation == pytest.approx(3000 / np.sqrt(12), rel=1e-3)


def test_error_of_an_average_knows_of_correlations():
    """Of values that each repeat ten times, the error is that of a tenth of them."""
    errors = []
    for seed in range(20):
        values = np.repeat(np.random.default_rng(seed).normal(size=400), 10)
        rows = [{"step": k, "time_ps": k, "x": v} for k, v in enumerate(values)]
        errors.append(statistics(rows, len(rows), start=0, n_atoms=1).averages["x"].error)
    assert np.mean(errors) == pytest.approx(1 / np.sqrt(400), rel=0.15)


def test_rows_agree_with_the_structure(copper):
    recorder = MemoryRecorder()
    result = md.run(copper, EMTPotential(), settings("mtk", steps=20), recorder=recorder)
    row = list(recorder.rows(0))[-1]
    atoms = result.atoms[0]
    assert row["time_ps"] == pytest.approx(0.04)
    assert row["volume_A3"] == pytest.approx(atoms.get_volume())
    kinetic = atoms.get_kinetic_energy()
    assert row["temperature_K"] == pytest.approx(2 * kinetic / (93 * units.kB))
    virial = EMTPotential._evaluate(as_system(atoms)).virial
    pressure = (2 * kinetic + np.trace(virial)) / (3 * atoms.get_volume()) / units.GPa
    assert row["pressure_GPa"] == pytest.approx(pressure)


@pytest.mark.parametrize("form", ["extxyz", "traj"])
def test_frames_have_the_forces_of_their_positions(form, copper, tmp_path):
    """Fixed atoms too, so that a trajectory can be trained on."""
    copper.set_constraint(FixAtoms([0, 5]))
    potential, options = EMTPotential(), settings(steps=8, replicas=2)
    with FileRecorder(tmp_path, 2, form) as recorder:
        md.run(copper, potential, options, recorder=recorder)
        for replica in range(2):
            frames = list(recorder.frames(replica))
            assert len(frames) == 3
            for frame, out in zip(frames, potential.evaluate(frames), strict=True):
                # Positions have eight decimals in a text.
                np.testing.assert_allclose(frame.calc.results["forces"], out.forces, atol=1e-6)
                assert frame.get_potential_energy() == pytest.approx(out.energy, abs=1e-6)
