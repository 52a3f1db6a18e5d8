"""Conduction: sums of modes, known formulas, limits, and published conductivities."""

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read
from tests_support import EMTPotential

from dpa3sim.common.errors import InputError

pytest.importorskip("phono3py")
from dpa3sim.protocols.anharmonics import third_order, transport
from dpa3sim.protocols.anharmonics.transport import LBTE, RTA, WIGNER, Scattering, Transport
from dpa3sim.protocols.harmonics.force_constants import harmonic
from dpa3sim.protocols.harmonics.properties import HarmonicSettings

MESH = (5, 5, 5)
EV, ANGSTROM, THZ = 1.602176634e-19, 1e-10, 1e12


def crystal(atoms, matrix):
    """A phono3py object with force constants of second and third order."""
    ph3 = third_order.new_phono3py(atoms, matrix, matrix)
    (found,) = harmonic([atoms], matrix, EMTPotential(), HarmonicSettings())
    third_order.set_harmonic(ph3, found)
    scheme = third_order.Systematic(ph3, 0.03, None)
    rest, *answers = EMTPotential().evaluate([atoms, *scheme.structures(scheme.count)])
    scheme.solve(third_order.forces_of(answers, rest, ph3))
    return ph3


@pytest.fixture(scope="module")
def copper():
    return crystal(bulk("Cu", a=3.59), np.array([[-2, 2, 2], [2, -2, 2], [2, 2, -2]]))


@pytest.fixture(scope="module")
def relaxation(copper):
    return Transport.of(copper, MESH, Scattering((200.0, 400.0)), pure=True)


def test_the_conductivity_is_the_sum_of_its_modes(copper, relaxation):
    """Heat capacity times velocity squared times lifetime, summed independently."""
    found, volume = relaxation, copper.primitive.volume
    capacities = found.calculator.mode_heat_capacities * EV
    speeds = (found.velocities**2).sum(axis=2) * (ANGSTROM * THZ) ** 2
    terms = capacities * speeds * found.lifetimes * 1e-12 * found.weights[:, None] / 3
    kappa = terms.sum(axis=(1, 2)) / (found.weights.sum() * volume * ANGSTROM**3)
    assert kappa == pytest.approx(found.conductivities, rel=1e-4)
    assert found.modes.sum(axis=(1, 2)) == pytest.approx(found.conductivities)
    for index in range(2):
        paths, conducted = found.cumulative(index)
        assert (np.diff(paths) >= 0).all()
        assert conducted[-1] == pytest.approx(found.conductivities[index])
        frequencies, spectrum = found.spectrum(index)
        assert np.trapezoid(spectrum, frequencies) == pytest.approx(conducted[-1], rel=0.01)


def test_tensors_of_a_cubic_crystal(relaxation):
    for tensor, mean in zip(relaxation.tensors, relaxation.conductivities, strict=True):
        assert tensor == pytest.approx(mean * np.eye(3), abs=1e-9 * mean)
    # Near the Debye temperature lifetimes fall as the inverse temperature, isotopes aside.
    cold, hot = np.trace(relaxation.pure, axis1=1, axis2=2)
    assert cold / hot == pytest.approx(2, rel=0.1)


def test_what_scatters_lowers_the_conductivity(copper, relaxation):
    # Copper has two isotopes.
    pure = np.trace(relaxation.pure, axis1=1, axis2=2) / 3
    assert (pure > relaxation.conductivities).all()
    without = Transport.of(copper, MESH, Scattering((200.0, 400.0), isotopes=False))
    assert without.conductivities == pytest.approx(pure, rel=1e-9)
    length = 1e-3  # µm
    rough = Transport.of(copper, MESH, Scattering((400.0,), isotopes=False, boundary=length))
    assert rough.mean_free_paths.max() < 1000 * length
    assert rough.conductivities[0] < without.conductivities[1]


def test_equations_of_transport(copper, relaxation, capfd):
    """Coherences add; relaxation times are inside each of them; the direct solution differs."""
    wigner = Transport.of(copper, MESH, Scattering((400.0,), WIGNER))
    assert np.trace(wigner.coherences[0]) > 0
    assert wigner.relaxation + wigner.coherences == pytest.approx(wigner.tensors)
    assert wigner.modes.sum() == pytest.approx(wigner.conductivities[0])
    assert wigner.relaxation[0] == pytest.approx(relaxation.tensors[1], abs=0.01)
    direct = Transport.of(copper, MESH, Scattering((400.0,), LBTE))
    assert direct.relaxation[0] == pytest.approx(relaxation.tensors[1], rel=0.02, abs=0.01)
    assert capfd.readouterr().out == ""
    # Normal processes do not resist.
    assert direct.conductivities[0] > relaxation.conductivities[1]


def test_pairs_are_shared_by_heat_capacities():
    pairs = np.array([[2.0, 0.3], [0.3, 1.0]])
    found = transport.shared(pairs, np.array([3.0, 1.0]))
    assert found == pytest.approx([2 + 0.6 * 3 / 4, 1 + 0.6 / 4])
    # A mode without heat capacity gets nothing, and nothing is divided by zero.
    assert transport.shared(np.zeros((2, 2)), np.zeros(2)) == pytest.approx([0, 0])


def test_progress(copper):
    told = []
    Transport.of(copper, (3, 3, 3), Scattering((300.0,)), lambda *args: told.append(args))
    points = transport.irreducible(copper, (3, 3, 3))
    assert told == [(i + 1, points) for i in range(points)]


def test_a_collision_matrix_that_does_not_fit(copper):
    with pytest.raises(InputError, match=r"GiB for a collision matrix of \d+ rows"):
        Transport.of(copper, (30, 30, 30), Scattering((300.0,) * 400, LBTE))


def test_lengths_give_meshes(copper):
    found = Transport.of(copper, 12.0, Scattering((300.0,), RTA))
    assert found.mesh.min() > 1
    assert found.weights.sum() == np.prod(found.mesh)


# Of the other model's forces in shared/data/kappa103: published and, by phono3py 4.10, here.
FORCES = {
    "mp-8062": {9: (519.2, 510.5), 19: (558.9, 552.2)},
    "mp-23251": {9: (1.773, None), 19: (1.709, None)},
}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [9, 19])
@pytest.mark.parametrize("material", FORCES)
def test_from_published_forces_to_published_conductivities(material, mesh, monkeypatch):
    from phono3py import Phono3py
    from phonopy.structure.atoms import PhonopyAtoms
    from tests_support import TESTS

    monkeypatch.syspath_prepend(TESTS.parent / "benchmarks")
    import kappa103

    folder = kappa103.DATA
    if not (folder / "forces_mace_agnesi.npz").is_file():
        pytest.skip(f"{folder} is not there")
    atoms = next(a for a in read(folder / "structures.extxyz", ":") if a.info["mp_id"] == material)
    cell = PhonopyAtoms(
        numbers=atoms.numbers, cell=atoms.cell[:], scaled_positions=atoms.get_scaled_positions()
    )
    ph3 = Phono3py(cell, np.diag([2] * 3), "F", phonon_supercell_matrix=np.diag([4] * 3))
    ph3.generate_displacements(distance=0.03)
    with np.load(folder / "forces_mace_agnesi.npz") as data:
        ph3.forces = data[f"{material}/fc3_forces"]
        ph3.phonon_forces = data[f"{material}/fc2_forces"]
    ph3.produce_fc3()
    ph3.produce_fc2()
    ph3.symmetrize_fc2()
    ph3.symmetrize_fc3()
    scattering = Scattering((300.0,), WIGNER, True, 1e6, averaged=False)
    found = Transport.of(ph3, (mesh, mesh, mesh), scattering)
    kappa, intra = FORCES[material][mesh]
    assert found.conductivities[0] == pytest.approx(kappa, rel=0.01)
    if intra is not None:
        assert np.trace(found.relaxation[0]) / 3 == pytest.approx(intra, rel=0.01)
    if mesh == 19:
        with np.load(folder / "reference_modes_noNAC.npz") as data:
            reference = kappa103.Reference.of(data, material)
        assert kappa103.same_points(found, reference)
        error = {"mp-8062": 0.589, "mp-23251": 0.433}[material]
        assert kappa103.srme(found.modes[0], reference.modes) == pytest.approx(error, abs=0.01)
