"""The step at the cutoff of angles, smoothed: the same by all paths, smooth, conservative."""

import time

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.md.velocitydistribution import Stationary
from ase.md.verlet import VelocityVerlet
from scipy.spatial.transform import Rotation
from tests_support import (
    DATA,
    assert_equal_results,
    autograd_results,
    hydrogen_oxygen_structures,
    load_reference,
    reference_atoms,
)

from dpa3sim import DPA3Calculator, Engine, Potential
from dpa3sim.checkpoints import read_model, write_native
from dpa3sim.checkpoints.registry import load_model
from dpa3sim.common.errors import CheckpointError, Dpa3simWarning, InputError
from dpa3sim.kernels.evaluator import Evaluator
from dpa3sim.model.config import ModelConfig
from dpa3sim.run import provenance

WIDTH = 0.3
ROUNDING = 1e-12
# All kinds of layers that have a step: residual styles, compressions, both forms, both switches.
STEPPED = [
    "models/static_linear",
    *(f"variants/{x}" for x in ("res_avg", "res_incr", "sequential_static", "e_a", "excl")),
    *(f"variants/{x}" for x in ("act_relu6", "truncated", "stat_std", "tebd_bias_concat")),
]
SMOOTH = ["models/dynamic", "variants/linear", "variants/sequential"]


def path_of(name):
    return DATA / name / "model.pt"


def load(name, **arguments):
    return Potential(path_of(name), dtype="float64", **arguments)


def shares(potential, atoms):
    """The distances, and which of the edges are partly their own R."""
    r = np.linalg.norm(potential.graph([atoms]).vectors.numpy(), axis=1)
    descriptor = potential.model.config.descriptor
    return r, (r > descriptor.a_rcut - potential.smooth_cutoff) & (r < descriptor.a_rcut)


# -- all paths compute the same -------------------------------------------------------------------


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("truncate", ["deepmd", "none"])
def test_kernels_equal_the_network(name, truncate):
    potential = load(name, smooth_cutoff=0.9, truncate=truncate)
    within = 0
    for atoms in hydrogen_oxygen_structures():
        within += shares(potential, atoms)[1].sum()
        result = potential.evaluate([atoms])[0]
        assert_equal_results(result, autograd_results(potential, atoms), ROUNDING)
    assert within > 100


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("on_host", [True, False], ids=["exact shapes", "room to spare"])
def test_tensor_operations_equal_the_network(name, on_host):
    potential = load(name, smooth_cutoff=0.9)
    potential.batcher.use(Evaluator(potential.network, sparse=on_host))
    potential.batcher.memory.on_host = on_host
    structures = hydrogen_oxygen_structures()
    for atoms, result in zip(structures, potential.evaluate(structures), strict=True):
        assert_equal_results(result, autograd_results(potential, atoms), ROUNDING)


def test_float32_is_a_rounding(embedded64):
    atoms = bulk("NaCl", "rocksalt", 5.64, cubic=True)
    atoms.rattle(0.1, seed=1)
    results = [
        Potential(embedded64.model, dtype=dtype, smooth_cutoff=WIDTH).evaluate([atoms])[0]
        for dtype in ("float32", "float64")
    ]
    assert abs(results[0].energy - results[1].energy) < 1e-5
    np.testing.assert_allclose(results[0].forces, results[1].forces, rtol=0, atol=2e-5)


# -- off is off -----------------------------------------------------------------------------------


def evaluations(potential, structures):
    for evaluator in (None, Evaluator(potential.network, sparse=True)):
        if evaluator is not None:
            potential.batcher.use(evaluator)
        yield from potential.evaluate(structures)


@pytest.mark.parametrize("name", ["models/static_linear", "variants/sequential_static"])
def test_without_a_pair_in_the_width_no_bit_changes(name):
    off, on = load(name), load(name, smooth_cutoff=1e-3)
    structures = [a for a in hydrogen_oxygen_structures() if not shares(on, a)[1].any()]
    assert len(structures) > 4
    for a, b in zip(evaluations(off, structures), evaluations(on, structures), strict=True):
        assert a.energy == b.energy
        np.testing.assert_array_equal(a.forces, b.forces)
        np.testing.assert_array_equal(a.virial, b.virial)


def test_off_is_the_model_as_it_is(embedded):
    atoms = bulk("NaCl", "rocksalt", 5.64, cubic=True)
    atoms.rattle(0.1, seed=1)
    expected = embedded.evaluate([atoms])[0]
    on = Potential(smooth_cutoff=WIDTH)
    assert abs(on.evaluate([atoms])[0].energy - expected.energy) > 1e-3
    for off in (Potential(smooth_cutoff=0), Potential(on.model, smooth_cutoff=0)):
        found = off.evaluate([atoms])[0]
        assert found.energy == expected.energy
        np.testing.assert_array_equal(found.forces, expected.forces)
        assert (off.identity, repr(off)) == (embedded.identity, repr(embedded))


# -- it is smooth ---------------------------------------------------------------------------------


def pair_at(r):
    """A pair at that distance, and a third atom, so that angles matter."""
    return Atoms("NaClNa", [[0, 0, 0], [1.6, 1.9, 0.3], [r, 0, 0]])


def along(potential, distances):
    """Energies, and forces that drive the pair apart."""
    results = potential.evaluate([pair_at(r) for r in distances])
    energies = np.array([r.energy for r in results])
    return energies, np.array([r.forces[2, 0] for r in results])


@pytest.fixture(scope="module")
def smoothed():
    return Potential(dtype="float64", smooth_cutoff=WIDTH)


@pytest.mark.parametrize("edge", [4.0, 4.0 - WIDTH])
def test_energy_forces_and_curvature_are_continuous(edge, smoothed, embedded64):
    h = 1e-6
    outer = np.array([-1e-4, -h, 0, h, 1e-4])
    energies, forces = along(smoothed, edge + outer)
    before, after = np.diff(energies[1:4]) / h
    assert before == pytest.approx(after, abs=1e-5)
    assert -before == pytest.approx(forces[2], abs=1e-5)
    assert abs(forces[3] - forces[1]) < 1e-4
    slopes = (forces[2] - forces[0]) / 1e-4, (forces[4] - forces[2]) / 1e-4
    assert slopes[0] == pytest.approx(slopes[1], abs=0.02)
    if edge == 4.0:  # where the model itself has a step
        step = np.diff(along(embedded64, edge + outer)[0][1:3])[0]
        assert abs(step) > 1e-3


def test_forces_are_the_derivative_of_the_energy_across_the_cutoff(smoothed):
    h = 2e-5
    ends = [3.65, 3.7, 3.7 + h / 2, 4 - h / 2]
    distances = np.array([*ends, *np.linspace(3.72, 4.02, 13)])
    plus, minus, middle = (along(smoothed, distances + x) for x in (h, -h, 0))
    slope = (plus[0] - minus[0]) / (2 * h)
    np.testing.assert_allclose(middle[1], -slope, rtol=0, atol=1e-6)
    # The share of the edge itself counts in them.
    assert np.ptp(middle[1]) > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_invariance(seed):
    potential = load("models/static_linear", smooth_cutoff=1.0, truncate="none")
    rng = np.random.default_rng(seed)
    atoms = bulk("O", "fcc", 4.1, cubic=True)
    atoms.symbols = "OHHO"
    atoms.rattle(0.2, seed=seed)
    assert shares(potential, atoms)[1].any()
    matrix, order = Rotation.random(random_state=seed).as_matrix(), rng.permutation(len(atoms))
    turned = atoms[order]
    turned.positions += rng.uniform(-9, 9, 3) + rng.integers(-2, 3, (4, 3)) @ turned.cell[:]
    turned.set_cell(turned.cell[:] @ matrix.T)
    turned.positions = turned.positions @ matrix.T
    a, b, double = potential.evaluate([atoms, turned, atoms * (1, 2, 1)])
    assert b.energy == pytest.approx(a.energy, abs=1e-11)
    np.testing.assert_allclose(b.forces, a.forces[order] @ matrix.T, atol=1e-11)
    np.testing.assert_allclose(b.virial, matrix @ a.virial @ matrix.T, atol=1e-10)
    assert double.energy == pytest.approx(2 * a.energy, abs=1e-11)
    np.testing.assert_allclose(double.forces[:4], a.forces, atol=1e-11)
    np.testing.assert_allclose(a.forces.sum(axis=0), 0, atol=1e-12)


@pytest.mark.slow
def test_it_is_another_potential(smoothed, embedded64, capsys):
    """Forces change as much as they should: not at all without a pair in the width."""
    changes, within = [], []
    for case in load_reference(DATA / "reference/2025-03-14-dpa3-openlam.json"):
        atoms = reference_atoms(case)
        a, b = (p.evaluate([atoms])[0].forces for p in (embedded64, smoothed))
        changes.append(1e3 * np.sqrt(np.square(a - b).mean()))
        within.append(shares(smoothed, atoms)[1].any())
        assert within[-1] or (a == b).all()
    assert 5 < np.median(changes) < 100
    assert sum(within) > 8
    with capsys.disabled():
        print(f"\nchange of forces: median {np.median(changes):.1f}, most {max(changes):.1f} meV/Å")


# -- arguments, and what is said ------------------------------------------------------------------


@pytest.mark.parametrize("width", [-0.3, 4.0, 7.0, np.nan, np.inf])
def test_widths_that_cannot_be(width, embedded):
    with pytest.raises(InputError, match="must be between 0 and the cutoff of angles, 4 Å; 0 is"):
        Potential(embedded.model, smooth_cutoff=width)


@pytest.mark.parametrize(
    ("name", "why"),
    [*((name, "is smooth already") for name in SMOOTH), ("variants/noangle", "has no angles")],
)
def test_models_without_a_step_are_refused(name, why):
    with pytest.raises(InputError, match=f"this model {why}"):
        load(name, smooth_cutoff=WIDTH)
    assert load(name, smooth_cutoff=0).smooth_cutoff is None


def test_it_is_named_wherever_the_model_is(smoothed, embedded64):
    assert "cutoff smoothed over 0.3 Å" in repr(smoothed)
    assert smoothed.identity == f"{embedded64.identity} smooth_cutoff=0.3"
    facts = provenance.session(smoothed, ["relax"])["model"]
    assert facts["smooth_cutoff_A"] == WIDTH
    assert provenance.model_facts(embedded64)["smooth_cutoff_A"] is None
    assert any("non-smooth" in trap for trap in embedded64.model.traps())
    assert not any("non-smooth" in trap for trap in smoothed.model.traps())


def test_it_stays_in_other_precisions_clients_and_calculators(smoothed):
    atoms = pair_at(3.9)
    energy = smoothed.evaluate([atoms])[0].energy
    low = smoothed.in_precision("float32")
    assert (low.dtype, low.smooth_cutoff) == ("float32", WIDTH)
    assert low.evaluate([atoms])[0].energy == pytest.approx(energy, abs=1e-5)
    assert smoothed.in_precision("float32") is low
    assert Potential(smoothed.model, dtype="float64").evaluate([atoms])[0].energy == energy
    (found,) = Engine(smoothed).map([atoms], lambda a: a.get_potential_energy())
    assert found == energy
    atoms.calc = DPA3Calculator(dtype="float64", smooth_cutoff=WIDTH)
    assert atoms.get_potential_energy() == energy
    with pytest.raises(InputError, match="smooth_cutoff"):
        DPA3Calculator(smoothed, smooth_cutoff=WIDTH)


def test_the_limits_are_still_warned_of(embedded):
    diamond = bulk("C", "diamond", 3.57, cubic=True)
    with pytest.warns(Dpa3simWarning, match="the energy still jumps, smooth_cutoff or not"):
        result = Potential(smooth_cutoff=WIDTH).evaluate([diamond])[0]
    assert "still jumps" in result.warnings[0]
    assert "still jumps" not in embedded.evaluate([diamond])[0].warnings[0]
    assert not Potential(smooth_cutoff=WIDTH, truncate="none").evaluate([diamond])[0].warnings


def test_model_files_keep_it_and_others_stay_as_they_were(tmp_path):
    model = load_model(path_of("models/static_linear"))
    assert "smooth_cutoff" not in model.config.to_dict()["descriptor"]
    write_native(model.smoothed(WIDTH), tmp_path / "smoothed.safetensors")
    again = read_model(tmp_path / "smoothed.safetensors")
    assert again.config == model.smoothed(WIDTH).config
    assert Potential(again).smooth_cutoff == WIDTH
    data = again.config.to_dict()
    for width in (0.0, 4.0, "much"):
        data["descriptor"]["smooth_cutoff"] = width
        with pytest.raises(CheckpointError, match="smooth_cutoff"):
            ModelConfig.from_dict(data)


def test_memory_needed_is_as_without(smoothed, embedded64):
    """Nothing of the size of the features is kept for it."""
    atoms = bulk("NaCl", "rocksalt", 5.64, cubic=True)
    peaks = []
    for potential in (embedded64, smoothed):
        evaluator = Evaluator(potential.network, sparse=True)
        potential = Potential(potential.model, dtype="float64")
        potential.batcher.use(evaluator)
        potential.evaluate([atoms])
        peaks.append(evaluator.workspace.nbytes)
    assert peaks[0] == peaks[1]


# -- it conserves energy --------------------------------------------------------------------------


def trajectory(atoms, timestep, steps, **arguments):
    """Range (meV/atom) and drift (meV/atom/ps) of the energy, and ms per step, of a run."""
    atoms = atoms.copy()
    atoms.calc = DPA3Calculator(dtype="float64", **arguments)
    scale = np.sqrt(atoms.get_masses() * units.kB * 600)[:, None]
    atoms.set_momenta(scale * np.random.default_rng(0).standard_normal((len(atoms), 3)))
    Stationary(atoms)
    dynamics = VelocityVerlet(atoms, timestep * units.fs)
    began, energies = time.perf_counter(), []
    for _ in dynamics.irun(steps):
        energies.append(1e3 * atoms.get_total_energy() / len(atoms))
    pace = 1e3 * (time.perf_counter() - began) / steps
    times = 1e-3 * timestep * np.arange(len(energies))
    return np.ptp(energies), np.polyfit(times, energies, 1)[0], pace


ROCK_SALT = bulk("NaCl", "rocksalt", 5.64, cubic=True)


@pytest.mark.slow
def test_energy_is_conserved_where_pairs_cross_the_cutoff(capsys):
    """Pairs of equal ions are 3.99 Å apart in the crystal and cross 4.0 Å all the time.

    Over 2 ps, as the error of the integrator, periodic with the velocities, passes for a drift in
    shorter runs; the steps make a random walk, of which the range tells more than the drift.
    """
    drifts, spreads = [], []
    for width in (None, WIDTH):
        spread, drift, pace = trajectory(ROCK_SALT, 2.0, 1000, smooth_cutoff=width)
        drifts.append(abs(drift))
        spreads.append(spread)
        with capsys.disabled():
            print(
                f"\nNaCl, smooth_cutoff {width}: range {spread:.4f} meV/atom, "
                f"drift {drift:+.4f} meV/atom/ps, {pace:.0f} ms/step"
            )
    assert drifts[1] < 0.02
    assert spreads[0] > 1
    assert spreads[1] < 0.2
