"""Physics through the real i-PI, with DPA3 models."""

import json
import uuid

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.socketio import SocketIOCalculator
from ase.io import read
from ase.optimize import LBFGS
from ase.units import Bohr, Hartree
from ipi_support import DATA, NATOMS, ClientThread, Toy, water, water_hash

from dpa3sim import DPA3Calculator, Potential
from dpa3sim.clients.ipi.evaluator import BatchEvaluator
from dpa3sim.clients.ipi.wire import UNIX_PREFIX, Address

TRICLINIC = np.array([[6.21, 0, 0], [0.9, 6.0, 0], [-0.6, 1.1, 6.4]])
STEP = r"<timestep units='femtosecond'> 0.25"
# i-PI's own constants (docs/ipi.md#units-and-layout).
RELATIVE = 2e-7


class Recorder:
    """An evaluator that keeps what it was asked for."""

    def __init__(self, potential, structure):
        self.evaluate, self.asked = BatchEvaluator(potential, structure), []

    def __call__(self, cells, positions):
        self.asked.append((cells[0].copy(), positions[0].copy()))
        return self.evaluate(cells, positions)


@pytest.mark.parametrize("cell", ["cubic", "triclinic"])
@pytest.mark.parametrize("far", [False, True])
def test_replay_of_known_frames(ipi, smooth, cell, far):
    """Replay: energies, forces and virials, whatever the cell and however far the atoms."""
    structures = [water(), *read(DATA / "ipi/frames.extxyz", ":")]
    for atoms in structures:
        if cell == "triclinic":
            atoms.set_cell(TRICLINIC, scale_atoms=True)
    jumps = np.random.default_rng(11).integers(-100, 101, (NATOMS, 3)).astype(float) * far
    start, *frames = (a.copy() for a in structures)
    for atoms in (start, *frames):
        atoms.positions += jumps @ atoms.cell[:]
    server = ipi("t00", water=start, frames=frames)
    evaluate = Recorder(smooth, water())
    client = ClientThread(server.address, evaluate, order=water_hash())
    assert server.wait() == 0
    client.done()
    rows = server.columns()
    written = read(server.folder / "sim.frc_0.extxyz", ":")
    assert len(rows) == len(written) == len(evaluate.asked) == len(structures) == 4
    for row, frame, atoms, (h, x) in zip(rows, written, structures, evaluate.asked, strict=True):
        # i-PI's factors for cells and positions differ by 1e-8, which far away is a distance: so
        # go back to the first cell with what it really sent.
        atoms.set_cell(h * Bohr)
        atoms.positions = (x - jumps @ h) * Bohr
        expected = smooth.evaluate([atoms])[0]
        assert abs(row[1] / expected.energy - 1) < RELATIVE
        atol = RELATIVE * np.abs(expected.forces).max() + 1e-8  # written with eight decimals
        np.testing.assert_allclose(frame.get_forces(), expected.forces, rtol=0, atol=atol)
        virial = expected.virial[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]] / Hartree
        atol = RELATIVE * np.abs(virial).max()
        volume = np.linalg.det(h)
        np.testing.assert_allclose(row[3:9] * volume, virial, rtol=0, atol=atol)


def test_replay_agrees_with_the_calculator(ipi, smooth):
    """Replay of files: i-PI's numbers against those of the files."""
    structures = [water(), *read(DATA / "ipi/frames.extxyz", ":")]
    server = ipi("t00")
    client = ClientThread(server.address, BatchEvaluator(smooth, water()))
    assert server.wait() == 0
    client.done()
    for row, atoms in zip(server.columns(), structures, strict=True):
        atoms.calc = DPA3Calculator(smooth)
        assert abs(row[1] / atoms.get_potential_energy() - 1) < RELATIVE
        virial = -atoms.get_volume() * atoms.get_stress(voigt=False) / Hartree
        virial = virial[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
        volume = atoms.get_volume() / Bohr**3
        atol = RELATIVE * np.abs(virial).max()
        np.testing.assert_allclose(row[3:9] * volume, virial, rtol=0, atol=atol)


# -- conservation --------------------------------------------------------------------------------


def conserved(ipi, name, timestep, time, evaluate, *, edit=(), natoms=NATOMS, **options):
    """The conserved quantity, eV, one value a step, and the server."""
    edit = [(STEP, f"<timestep units='femtosecond'> {timestep}"), *edit]
    server = ipi(name, steps=round(time / timestep), edit=edit, **options)
    client = ClientThread(server.address, evaluate, natoms)
    assert server.wait(600) == 0
    client.done()
    return server


def copper():
    """Four atoms whose distances stay away from 4.0 Å, where the embedded model has a step."""
    atoms = bulk("Cu", cubic=True, a=3.6)
    atoms.rattle(0.03, seed=4)
    return atoms


def energy_errors(ipi, potential, atoms, timesteps, time):
    """Root mean square of the conserved quantity for each step, eV, and the last server."""
    energy = potential.evaluate([atoms])[0].energy
    # i-PI writes nine digits: let them begin after the point.
    offset = f"<offset units='electronvolt'> {energy} </offset><latency>"
    edit = [("<latency>", offset), ("stride='2'", "stride='1'")]
    rms = []
    for timestep in timesteps:
        evaluate = BatchEvaluator(potential, atoms)
        server = conserved(
            ipi, "t01", timestep, time, evaluate, edit=edit, natoms=len(atoms), water=atoms
        )
        values = server.columns()[:, 2]
        half = len(values) // 2
        assert abs(values[half:].mean() - values[:half].mean()) < values.std()  # no drift
        rms.append(values.std())
    return rms, server


@pytest.mark.slow
def test_energy_conservation_is_of_second_order(ipi, smooth):
    """NVE with a small model: half the step, a quarter of the error."""
    (large, small), _ = energy_errors(ipi, smooth, water(), (0.25, 0.125), 25.0)
    assert abs(large / small - 4.0) < 0.5


@pytest.mark.slow
def test_energy_conservation_of_the_embedded_model(ipi, embedded64):
    """NVE in float64, where no distance comes near the step of the angles at 4.0 Å."""
    (large, small), server = energy_errors(ipi, embedded64, copper(), (4.0, 2.0), 400.0)
    assert abs(large / small - 4.0) < 0.5
    for frame in read(server.folder / "sim.pos_0.extxyz", "::5"):
        distances = frame.repeat(3).get_all_distances()
        assert not ((distances > 3.95) & (distances < 4.05)).any()


def ranges_with_barostat(ipi, make, time):
    """Range of the conserved quantity, eV, with steps of 0.5 and 0.25 fs, and of the volume."""
    ranges = []
    for timestep in (0.5, 0.25):
        edit = [("<latency>", f"<offset units='electronvolt'> {make.energy} </offset><latency>")]
        data = conserved(ipi, "t04", timestep, time, make(), edit=edit).columns()
        ranges.append(np.ptp(data[:, 2]))
    return ranges, np.ptp(data[:, 6])


def toy(factor):
    def make():
        evaluate = Toy(kk=2e-4)

        def scaled(cells, positions):
            e, f, w, x = evaluate(cells, positions)
            return e, f, factor * w, x

        return scaled

    make.energy = 0.0
    return make


@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_conservation_at_constant_pressure(ipi, factor):
    """NPT: what is conserved with a barostat is so only if the virial is right."""
    (large, small), volume = ranges_with_barostat(ipi, toy(factor), 30.0)
    assert volume > 1e-3
    if factor == 1.0:
        assert 3.0 < large / small < 5.0
    else:  # such an error would be seen
        assert large / small < 2.0


@pytest.mark.slow
def test_conservation_at_constant_pressure_of_a_model(ipi, smooth):
    """NPT with DPA3."""

    def make():
        return BatchEvaluator(smooth, water())

    make.energy = smooth.evaluate([water()])[0].energy
    (large, small), _ = ranges_with_barostat(ipi, make, 40.0)
    assert 3.0 < large / small < 5.0


def test_cells_that_shear(ipi, smooth):
    """Four beads in a cell that becomes triclinic, as one batch and one by one."""
    outputs = []
    for batch in (4, 1):
        edit = [("<batch_size> 4", f"<batch_size> {batch}"), ("cell_abcABC", "cell_h")]
        server = ipi("t04b", steps=8, edit=edit)
        evaluate = Recorder(smooth, water())
        client = ClientThread(server.address, evaluate)
        assert server.wait() == 0
        assert client.done().calls == (9 if batch == 4 else 36)
        outputs.append(server.columns())
        h = evaluate.asked[-1][0]  # rows; i-PI's cells are upper triangular in columns
        assert np.abs(h[[1, 2, 2], [0, 0, 1]]).min() > 1e-5
        assert not h[[0, 0, 1], [1, 2, 2]].any()
    np.testing.assert_allclose(outputs[0][:3], outputs[1][:3], rtol=1e-8, atol=1e-8)


# -- minima and their curvature ------------------------------------------------------------------


@pytest.mark.slow
def test_geometry_optimization_and_phonons(ipi, embedded64):
    """A geometry optimization, and phonons at the minimum that it found."""
    atoms = copper()
    server = ipi("t05", water=atoms)
    client = ClientThread(server.address, BatchEvaluator(embedded64, atoms), 4)
    assert server.wait() == 0
    assert client.done().ending == "exit"
    assert "Geometry optimization converged" in server.log
    energies = server.columns()[:, 1]
    assert (np.diff(energies) <= 1e-8).all()
    final = read(server.folder / "sim.pos_0.extxyz", "-1")
    final.calc = DPA3Calculator(embedded64)
    assert np.abs(final.get_forces()).max() <= 1.1e-3
    again = final.copy()
    again.calc = DPA3Calculator(embedded64)
    LBFGS(again, logfile=None).run(fmax=1e-4, steps=50)
    assert abs(again.get_potential_energy() - final.get_potential_energy()) < 1e-6

    server = ipi("t06", water=again)
    client = ClientThread(server.address, BatchEvaluator(embedded64, atoms), 4)
    assert server.wait() == 0
    assert client.done().calls == 6 * 4 + 1
    (file,) = server.folder.glob("*phonons.hess")
    hessian = np.loadtxt(file)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-12)
    analytic = embedded64.hessian(again) * Bohr**2 / Hartree
    # The difference quotient has an error of its own, and i-PI imposes the sum rule.
    np.testing.assert_allclose(hessian, analytic, atol=1e-3 * np.abs(analytic).max())
    modes = np.linalg.eigvalsh(hessian)
    largest = modes.max()
    assert (np.abs(modes) < 1e-6 * largest).sum() == 3
    assert modes.min() > -1e-6 * largest


# -- committees and other servers ------------------------------------------------------------------


def test_committee(ipi, smooth):
    """i-PI finds energies, forces and virials of both members in the extras."""
    atoms = water()
    atoms.info["charge_spin"] = (0, 1)
    other = Potential(DATA / "models/charge_spin/model.pt")
    # Sockets of an <ffcommittee> do not heed the prefix.
    name = f"dpa3sim_{uuid.uuid4().hex[:12]}"
    server = ipi("t14", steps=3, edit=[("dpa3_t14", name)])
    server.prefix = UNIX_PREFIX
    client = ClientThread(server.address, BatchEvaluator([smooth, other], atoms))
    assert server.wait() == 0, server.log
    client.done()
    energies = server.columns("sim.committee_pot_0")
    assert energies.shape == (4, 2)
    first = [p.evaluate([atoms])[0] for p in (smooth, other)]
    np.testing.assert_allclose(energies[0] * Hartree, [x.energy for x in first], rtol=RELATIVE)
    sigma = server.columns("sim.committee_sigma_0").ravel()
    np.testing.assert_allclose(sigma, energies.std(axis=1, ddof=1), rtol=1e-6)
    assert sigma.min() > 0
    forces = server.columns("sim.committee_force_0")  # a line for each member
    np.testing.assert_allclose(
        forces[:2] * Hartree / Bohr, [x.forces.ravel() for x in first], atol=1e-6
    )
    assert "doesn't have" not in server.log


def test_extras_reach_i_pi(ipi, smooth):
    server = ipi(
        "t01",
        steps=2,
        edit=[
            (
                "<checkpoint",
                "<trajectory filename='x' stride='1' extra_type='energy_atomic'>"
                " extras </trajectory><checkpoint",
            ),
        ],
    )
    evaluate = BatchEvaluator(smooth, water(), ["energy_atomic", "n_edges"])
    client = ClientThread(server.address, evaluate)
    assert server.wait() == 0, server.log
    client.done()
    energies = server.columns("sim.x_0").reshape(3, NATOMS)
    expected = smooth.evaluate([water()])[0].energies / Hartree
    np.testing.assert_allclose(energies[0], expected, rtol=1e-6)
    assert json.loads(evaluate(water().cell[None] / Bohr, water().positions[None] / Bohr)[3][0])


def test_ase_as_server(smooth):
    """ASE as the server, with a triclinic cell: stress against the strain derivative."""
    atoms = water()
    atoms.set_cell(TRICLINIC, scale_atoms=True)
    name = f"dpa3sim_{uuid.uuid4().hex[:12]}"
    with SocketIOCalculator(unixsocket=name, timeout=30) as calculator:
        client = ClientThread(Address.unix(name), BatchEvaluator(smooth, water()))
        atoms.calc = calculator
        expected = smooth.evaluate([atoms])[0]
        assert abs(atoms.get_potential_energy() - expected.energy) < 1e-9
        np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-9)
        stress = atoms.get_stress(voigt=False)
        h = 1e-4
        cell, positions = atoms.cell[:].copy(), atoms.positions.copy()
        volume = atoms.get_volume()
        for a, b in ((0, 0), (1, 1), (0, 1), (2, 0)):
            energies = []
            for sign in (1, -1):
                strain = np.eye(3)
                strain[a, b] += 0.5 * sign * h
                strain[b, a] += 0.5 * sign * h
                atoms.set_cell(cell @ strain)
                atoms.positions = positions @ strain
                energies.append(atoms.get_potential_energy())
            derivative = (energies[0] - energies[1]) / (2 * h * volume)
            assert abs(stress[a, b] - derivative) < 1e-6
    assert client.done().ending == "eof"
