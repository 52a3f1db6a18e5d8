"""Structure and motion from trajectories, against systems whose answers are known."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from dpa3sim.common.units import M2_PER_S
from dpa3sim.protocols.dynamics.trajectories import (
    Analyser,
    Displacements,
    Frame,
    RadialDistribution,
    Velocities,
)


def groups_of(atoms):
    symbols = np.array(atoms.symbols)
    return {s: np.flatnonzero(symbols == s) for s in dict.fromkeys(symbols)}


def frames_of(positions, velocities, cell):
    return [Frame(x, v, cell) for x, v in zip(positions, velocities, strict=True)]


def test_rdf_of_a_crystal_counts_its_shells():
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    rdf = RadialDistribution(groups_of(atoms), atoms.pbc)
    rdf.add(Frame(atoms.positions, atoms.positions, atoms.cell[:]))
    r, found = rdf.result()
    density = len(atoms) / atoms.get_volume()
    shells = 4 / 3 * np.pi * ((r + 0.01) ** 3 - (r - 0.01) ** 3) * density
    counts = np.cumsum(found["Cu-Cu"] * shells)
    a = 3.61
    for outer, expected in ((0.9 * a, 12), (1.1 * a, 18), (1.3 * a, 42)):
        assert counts[r < outer][-1] == pytest.approx(expected, abs=1e-6)


def test_rdf_of_an_ideal_gas_is_one_for_every_pair_of_elements():
    rng = np.random.default_rng(0)
    atoms = Atoms("H300O200", cell=[14, 15, 16], pbc=True)
    rdf = RadialDistribution(groups_of(atoms), atoms.pbc)
    for _ in range(40):
        positions = rng.uniform(-1, 2, (500, 3)) @ atoms.cell[:]  # not wrapped
        rdf.add(Frame(positions, positions, atoms.cell[:]))
    r, found = rdf.result()
    assert set(found) == {"H-H", "H-O", "O-O"}
    for values in found.values():
        # Without the atom itself, a pair of like atoms has one partner less.
        assert values[r > 4].mean() == pytest.approx(1.0, abs=0.01)


def random_walk(n_frames, n_atoms, step, seed):
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.normal(0, step, (n_frames, n_atoms, 3)), axis=0)


def test_diffusion_of_a_random_walk_with_its_error():
    """D = step^2 / (2 dt); of two elements, one walks twice as far."""
    atoms = Atoms("Li200Na200", cell=[50] * 3, pbc=True)
    dt, step, n = 0.02, 0.05, 1000
    walk = random_walk(n, 400, step, seed=1)
    walk[:, 200:] *= 2
    analyser = Analyser(atoms, n, dt)
    analyser.read(frames_of(walk, walk, atoms.cell[:]))
    found = analyser.result().diffusion
    for name, factor in (("Li", 1), ("Na", 4)):
        expected = factor * step**2 / (2 * dt) * M2_PER_S
        # The heavier walkers set the centre of mass, whose motion is taken out: of order 1/N.
        assert found[name].coefficient == pytest.approx(expected, rel=0.08)
        assert 0 < found[name].error < 0.1 * expected
        assert abs(found[name].coefficient - expected) < 5 * found[name].error
        assert found[name].diffusive


def test_vibration_and_flight_are_no_diffusion():
    atoms = Atoms("Li100", cell=[50] * 3, pbc=True)
    rng = np.random.default_rng(2)
    n, dt = 400, 0.01
    phases = rng.uniform(0, 6, (100, 3))
    time = np.arange(n)[:, None, None] * dt
    vibration = 0.2 * np.sin(2 * np.pi * 5 * time + phases)
    flight = time * rng.normal(0, 3, (100, 3))
    for motion in (vibration, flight):
        analyser = Analyser(atoms, n, dt)
        analyser.read(frames_of(motion, motion, atoms.cell[:]))
        assert not analyser.result().diffusion["Li"].diffusive


def test_displacements_ignore_the_breathing_cell_and_the_drift_of_the_whole():
    atoms = Atoms("Li8Cl8", cell=[8, 9, 10], pbc=True)
    rng = np.random.default_rng(3)
    scaled = rng.uniform(0, 3, (16, 3))
    plain = Displacements(groups_of(atoms), atoms, 60, 0.01)
    for k in range(60):
        cell = atoms.cell[:] @ (np.eye(3) + 0.02 * np.sin(k) * np.diag([1, -1, 2]))
        positions = scaled @ cell + k * np.array([0.1, 0.2, -0.3])
        plain.add(Frame(positions, positions, cell))
    _, found = plain.result()
    for values in found.values():
        np.testing.assert_allclose(values, 0, atol=1e-20)


def test_displacements_equal_the_plain_definition():
    atoms = Atoms("LiCl", cell=[9] * 3, pbc=False)
    walk = random_walk(41, 2, 0.1, seed=4)
    walk -= (walk * atoms.get_masses()[:, None]).sum(axis=1, keepdims=True) / sum(
        atoms.get_masses()
    )
    mean = Displacements(groups_of(atoms), atoms, 41, 0.5)
    for x in walk:
        mean.add(Frame(x, x, atoms.cell[:]))
    time, found = mean.result()
    np.testing.assert_allclose(time, 0.5 * np.arange(21))
    for k, name in enumerate(("Li", "Cl")):
        for lag in (0, 1, 7, 20):
            pairs = walk[lag:, k] - walk[: 41 - lag, k]
            assert found[name][lag] == pytest.approx((pairs**2).sum(axis=1).mean())


def oscillators(n_frames, dt, frequencies, n_atoms=60, seed=5):
    """Velocities, Å/ps, of atoms of mass 7 at 300 K, half of them of each frequency, THz."""
    rng = np.random.default_rng(seed)
    phases = rng.uniform(0, 2 * np.pi, (n_atoms, 3))
    nu = np.repeat(frequencies, n_atoms // len(frequencies))[:, None]
    time = np.arange(n_frames)[:, None, None] * dt
    return 5.0 * np.cos(2 * np.pi * nu * time + phases)


def test_density_of_states_of_oscillators():
    dt, n = 0.01, 2000
    atoms = Atoms("Li30Na30", cell=[20] * 3, pbc=True)
    v = oscillators(n, dt, [8.0, 12.5])
    vacf = Velocities(groups_of(atoms), atoms.get_masses(), n, dt)
    for x in v:
        vacf.add(Frame(x, x, atoms.cell[:]))
    time, correlation, frequency, vdos = vacf.result()
    for name, nu in (("Li", 8.0), ("Na", 12.5)):
        assert frequency[vdos[name].argmax()] == pytest.approx(nu, abs=0.2)
        np.testing.assert_allclose(
            correlation[name][:50], np.cos(2 * np.pi * nu * time[:50]), atol=0.1
        )
    width = frequency[1] - frequency[0]
    total = vdos["total"].sum() * width
    assert total == pytest.approx(3.0, rel=0.01)
    # Kinetic energies here go like the masses, and so do the shares.
    shares = [vdos[name].sum() * width for name in ("Li", "Na")]
    assert shares[1] / shares[0] == pytest.approx(22.98976928 / 6.94, rel=0.02)


def test_isotopes_count_with_their_mass():
    """Half of the hydrogen is heavy: it has its share of the kinetic energy, not of the atoms."""
    dt, n = 0.01, 2000
    atoms = Atoms("H60", cell=[20] * 3, pbc=True)
    masses = np.repeat([1.008, 2.014], 30)
    vacf = Velocities(groups_of(atoms), masses, n, dt)
    for x in oscillators(n, dt, [12.5, 8.0]):
        vacf.add(Frame(x, x, atoms.cell[:]))
    _, _, frequency, vdos = vacf.result()
    width = frequency[1] - frequency[0]
    assert vdos["total"].sum() * width == pytest.approx(3.0, rel=0.01)
    slow = vdos["H"][np.abs(frequency - 8.0) < 2].sum()
    fast = vdos["H"][np.abs(frequency - 12.5) < 2].sum()
    assert slow / fast == pytest.approx(2.014 / 1.008, rel=0.02)


def test_correlation_equals_the_plain_definition():
    atoms = Atoms("Li3", cell=[9] * 3)
    v = np.random.default_rng(6).normal(size=(40, 3, 3))
    vacf = Velocities(groups_of(atoms), atoms.get_masses(), 40, 0.1)
    for x in v:
        vacf.add(Frame(x, x, atoms.cell[:]))
    _, correlation, _, _ = vacf.result()
    plain = [(v[lag:] * v[: 40 - lag]).sum(axis=2).mean() for lag in range(20)]
    np.testing.assert_allclose(correlation["Li"], np.array(plain) / plain[0], atol=1e-12)


def test_what_is_held_does_not_grow_with_the_trajectory():
    atoms = Atoms("Li4", cell=[9] * 3, pbc=True)
    groups = groups_of(atoms)
    held = {}
    for n in (2_000, 20_000):
        msd = Displacements(groups, atoms, n, 0.01)
        vacf = Velocities(groups, atoms.get_masses(), n, 0.01)
        frame = Frame(np.ones((4, 3)), np.ones((4, 3)), atoms.cell[:])
        most = 0
        for _ in range(n):
            msd.add(frame)
            most = max(most, len(msd._origins))
        held[n] = most, vacf.length
    assert held[2_000] == held[20_000]
    assert held[20_000][0] <= 201


def test_replicas_are_averaged_and_not_joined():
    """The displacement between the end of one replica and the start of the next is none."""
    atoms = Atoms("Li50", cell=[50] * 3, pbc=True)
    walks = [random_walk(200, 50, 0.05, seed) + 100 * seed for seed in (7, 8)]
    together = Analyser(atoms, 200, 0.02)
    singles = []
    for walk in walks:
        together.read(frames_of(walk, walk, atoms.cell[:]))
        single = Analyser(atoms, 200, 0.02)
        single.read(frames_of(walk, walk, atoms.cell[:]))
        singles.append(single.result().msd["Li"])
    np.testing.assert_allclose(together.result().msd["Li"], np.mean(singles, axis=0))


def test_too_few_frames_give_nothing_rather_than_nonsense():
    atoms = Atoms("Li2", cell=[9] * 3, pbc=False)
    analyser = Analyser(atoms, 2, 0.01)
    x = np.ones((2, 3))
    analyser.read([Frame(x, x, atoms.cell[:])] * 2)
    result = analyser.result()
    assert not result.rdf
    assert not result.msd
    assert not result.diffusion
    assert not result.vdos
