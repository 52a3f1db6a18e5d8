"""Thermal conductivity: phono3py's numbers, the same from every cell, honest refusals."""

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from tests_support import ENVIRONMENT, TESTS, EMTPotential

from dpa3sim import DPA3Calculator
from dpa3sim.common.errors import InputError, UnphysicalError
from dpa3sim.potential.evaluation import Evaluation

pytest.importorskip("phono3py")
from dpa3sim.protocols import kappa
from dpa3sim.protocols.anharmonics.settings import mesh_of
from dpa3sim.protocols.crystals.cells import Cells
from dpa3sim.protocols.kappa import Settings
from dpa3sim.run.directory import with_units

# A small supercell and a coarse mesh, where physics does not need more.
SMALL = {
    "supercell": "max-atoms=32",
    "supercell_fc2": "max-atoms=32",
    "mesh": "5,5,5",
    "fmax": 1e-5,
    "smax": 1e-4,
    "displacements": "systematic",
}


def run(atoms, potential=None, **options):
    return kappa.run(atoms, potential or EMTPotential(), Settings(**(SMALL | options)))


@pytest.fixture(scope="module")
def copper():
    return run(bulk("Cu", a=3.6), temperatures="200,300")


def by_hand(atoms, calculator, mesh, **options):
    """The conductivity of phono3py alone for a conventional cell, W/m/K."""
    from phono3py import Phono3py
    from phonopy.structure.atoms import PhonopyAtoms

    def forces(cells):
        found = []
        for cell in cells:
            moved = Atoms(
                cell.numbers, cell=cell.cell, scaled_positions=cell.scaled_positions, pbc=True
            )
            moved.calc = calculator
            found.append(moved.get_forces())
        return np.array(found)

    cell = PhonopyAtoms(
        numbers=atoms.numbers, cell=atoms.cell[:], scaled_positions=atoms.get_scaled_positions()
    )
    ph3 = Phono3py(cell, primitive_matrix="F", **options)
    ph3.generate_displacements(distance=0.03)
    ph3.generate_fc2_displacements(distance=0.01)
    ph3.forces = forces(ph3.supercells_with_displacements)
    ph3.phonon_forces = forces(ph3.phonon_supercells_with_displacements)
    ph3.produce_fc3()
    ph3.produce_fc2()
    ph3.symmetrize_fc2()
    ph3.symmetrize_fc3()
    ph3.mesh_numbers = mesh
    ph3.init_phph_interaction(average_degenerate_weights=True, symmetrize_tetrahedra=True)
    ph3.run_thermal_conductivity(temperatures=[300.0], is_isotope=True)
    return float(ph3.thermal_conductivity.kappa[0, 0, :3].mean())


def test_phono3py_by_hand(copper):
    from ase.calculators.emt import EMT

    conventional = Cells.of(copper.prepared.atoms, 1e-3).conventional.atoms
    two = np.diag([2, 2, 2])
    expected = by_hand(
        conventional, EMT(), [5, 5, 5], supercell_matrix=two, phonon_supercell_matrix=two
    )
    assert copper.transport.conductivities[1] == pytest.approx(expected, rel=0.01)


# Small supercells, whose conductivities mean little, and are the same nevertheless.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "structure", "a"),
    [("Si", "diamond", 5.467), ("MgO", "rocksalt", 4.2549), ("KCl", "rocksalt", 6.3731)],
)
def test_phono3py_by_hand_with_the_embedded_model(embedded64, name, structure, a):
    conventional = bulk(name, structure, a=a, cubic=True)
    options = {"supercell": "2,1,1", "supercell_fc2": "2,2,2", "mesh": "7,7,7", "distance": 0.03}
    result = run(conventional, embedded64, relax=False, **options)
    expected = by_hand(
        conventional,
        DPA3Calculator(embedded64),
        [7, 7, 7],
        supercell_matrix=np.diag([2, 1, 1]),
        phonon_supercell_matrix=np.diag([2, 2, 2]),
    )
    found = result.transport.conductivities[0]
    print(f"{name}: {found:.4f} and by hand {expected:.4f} W/m/K")
    assert found == pytest.approx(expected, rel=0.01)


def test_result(copper):
    data = copper.to_dict()
    units = with_units(data)["units"]
    assert units["thermal_conductivity_W_per_m_K"] == "W/m/K"
    assert data["verdict"] == "stable"
    assert data["temperatures_K"] == [200.0, 300.0]
    cold, room = data["thermal_conductivity_W_per_m_K"]
    assert cold > room > 0
    assert np.trace(data["thermal_conductivity_tensor_W_per_m_K"][1]) / 3 == pytest.approx(room)
    assert data["thermal_conductivity_coherences_tensor_W_per_m_K"] is None
    assert data["mean_lifetime_ps"][0] > data["mean_lifetime_ps"][1]
    assert data["n_displacements"] == 37
    assert data["phono3py_version"].startswith("4.")
    assert data["seed"] is None
    # Both are told, and say that this mesh and supercell are small.
    assert abs(data["mesh_change_percent"]) > 1
    assert data["fc3_cut_5A_change_percent"] != 0
    assert any("not converged with the mesh" in warning for warning in copper.warnings)


def test_every_cell_of_a_crystal_gives_the_same(copper):
    turned = bulk("Cu", a=3.6, cubic=True)
    turned.rotate(37, (1, 2, 3), rotate_cell=True)
    found = run(turned[[2, 0, 3, 1]], temperatures="200,300")
    # On so coarse a mesh rounding decides which phonons conserve energy when they scatter.
    assert found.transport.conductivities == pytest.approx(
        copper.transport.conductivities, rel=5e-3
    )
    assert found.third.count == copper.third.count


@pytest.mark.slow
def test_random_displacements(copper):
    found = run(bulk("Cu", a=3.6), displacements="random", seed=4)
    data = found.to_dict()
    assert data["displacements"] == "random"
    assert data["seed"] == 4
    assert data["n_displacements"] <= 37
    assert data["residual_fc3_fit_percent"] < 1
    assert found.transport.conductivities[0] == pytest.approx(
        copper.transport.conductivities[1], rel=0.05
    )
    again = run(bulk("Cu", a=3.6), displacements="random", seed=4)
    assert np.array_equal(again.transport.tensors, found.transport.tensors)


def test_few_snapshots(copper, capfd):
    found = run(bulk("Cu", a=3.6), displacements="random", snapshots=6)
    assert found.third.count == 6
    # Nothing of what phono3py and symfc print gets into the output of --json.
    assert capfd.readouterr().out == ""
    with pytest.raises(InputError, match="snapshots = 1: the fit needs at least"):
        run(bulk("Cu", "hcp", a=2.55, c=4.2), displacements="random", snapshots=1)


def test_an_unstable_crystal(copper):
    potential = EMTPotential()
    atoms = bulk("Cu", "bcc", a=2.9)
    with pytest.raises(UnphysicalError, match="dynamically unstable"):
        run(atoms, potential)
    # Nothing of third order was evaluated.
    assert max(potential.requests) < 5
    found = run(atoms, imaginary="report")
    data = found.to_dict()
    assert data["thermal_conductivity_W_per_m_K"] is None
    assert "no conductivity" in data["reasons"][0]
    assert data["n_displacements"] == 0


@pytest.mark.parametrize("displacements", ["systematic", "random"])
def test_a_supercell_in_which_third_order_cancels(displacements):
    """Every pair of atoms has a centre of inversion where images are as far on both sides."""
    options = {"supercell": "2,2,2", "supercell_fc2": "2,2,2", "displacements": displacements}
    with pytest.raises(UnphysicalError, match="conductivity is infinite"):
        run(bulk("Cu", a=3.6), **options)


def test_masses_mean_pure_isotopes(copper):
    heavy = bulk("Cu", a=3.6)
    heavy.set_masses([63.546])
    found = run(heavy)
    assert any("natural isotopes do not scatter" in warning for warning in found.warnings)
    pure = np.trace(copper.transport.pure[1]) / 3
    assert found.transport.conductivities[0] == pytest.approx(pure, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mesh": "fine"}, "mesh = 'fine' is neither a length"),
        ({"mesh": "3,3"}, "neither a length"),
        ({"mesh": "0,3,3"}, "neither a length"),
        ({"temperatures": "0"}, "not a list of positive numbers"),
        ({"temperatures": "300:100:50"}, "not a list of positive numbers"),
        ({"temperatures": "cold"}, "not a list of positive numbers"),
        ({"transport": "green-kubo"}, "not one of rta, wigner, lbte"),
        ({"distance": 0.0}, "must be at least"),
        ({"supercell": "huge"}, "supercell = 'huge' is not one of"),
        ({"displacements": "few"}, "not one of auto, random, systematic"),
        ({"preset": "phonodb"}, "did you mean 'phonondb'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        Settings(**options)


def test_residuals_are_told(copper):
    third = copper.third
    bad = replace(third, residuals=replace(third.residuals, asr=(0.0, 1.0, 0.0)))
    changes = kappa.Changes(mesh=0.0, reach=-40.0)
    sums, reach = kappa._warnings_of(bad, copper.transport, changes)
    assert "translation forbids reach 1 eV/Å^3" in sums
    assert "beyond 5 Å matter: without them the conductivity changes by -40 %" in reach
    assert kappa._warnings_of(third, copper.transport, kappa.Changes(1.0, 1.0)) == []


def test_temperatures_and_meshes():
    assert Settings(temperatures="100:300:100").scattering.temperatures == (100, 200, 300)
    assert Settings(temperatures="77 300").scattering.temperatures == (77, 300)
    assert Settings(temperatures=250).scattering.temperatures == (250,)
    assert mesh_of("60") == 60.0
    assert mesh_of("19,19,15") == mesh_of("19x19x15") == (19, 19, 15)


def test_bad_structures():
    with pytest.raises(InputError, match="thermal conductivities need a crystal"):
        kappa.check(fcc111("Cu", (1, 1, 3), vacuum=9), Settings())
    mixed = bulk("Cu", a=3.6, cubic=True)
    mixed.set_masses([63, 65, 63, 65])
    with pytest.raises(InputError, match="one mass for each element"):
        kappa.check(mixed, Settings())
    with pytest.raises(InputError, match=r"not the space group Im-3m \(229\)"):
        kappa.check(bulk("Fe"), Settings(preset="phonondb"))


def test_without_phono3py(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'dpa3sim\[kappa\]'"):
        kappa.check(bulk("Cu"), Settings())


def stage_of(atoms, **options):
    return kappa.stages(atoms, Settings(preset="phonondb", **options), 6.0)


# Counts of phono3py, less one supercell whose two displacements cancel for each atom.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("atoms", "third", "size", "second"),
    [
        (bulk("KCl", "rocksalt", a=6.3), 146, 64, 512),
        (bulk("ZnTe", "zincblende", a=6.1), 222, 64, 512),
        (bulk("GaN", "wurtzite", a=3.2, c=5.2, u=0.377), 1254, 72, 300),
    ],
)
def test_the_preset_evaluates_what_the_benchmark_does(atoms, third, size, second):
    *_, fc2, fc3 = stage_of(atoms)
    assert set(fc2.atoms) == {second}
    assert set(fc3.atoms) == {size}
    assert third - 8 <= len(fc3.atoms) < third
    assert fc3.exact


def test_the_preset_leaves_what_is_asked_for():
    settings = Settings(preset="phonondb", distance=0.03)
    assert settings.distance == 0.03
    assert settings.displacements == "systematic"
    assert settings.transport == "wigner"
    assert not settings.scattering.averaged
    supercell = bulk("KCl", "rocksalt", a=6.3).repeat((1, 1, 3))
    *_, fc3 = stage_of(supercell, supercell="1,1,1", supercell_fc2="1,1,1", mesh="3,3,3")
    assert set(fc3.atoms) == {8}


MEMORY = """
import resource, sys
import numpy as np
from ase.build import bulk
from test_kappa import Springs
from dpa3sim.protocols import kappa

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

settings = kappa.Settings(
    supercell="5,5,2", supercell_fc2="3,3,3", mesh="2,2,2", fmax=1e-3, smax=0.1
)
atoms = bulk("Cu", a=3.6, cubic=True)
atoms.symbols = ["Cu", "Au", "Cu", "Cu"]
atoms.set_cell(atoms.cell[:] * [1, 1, 1.02], scale_atoms=True)
before = peak()
result = kappa.run(atoms, Springs(), settings)
print(len(result.third.ph3.supercell), result.third.count, peak() - before)
print(result.warnings)
"""


class Springs(EMTPotential):
    """Morse springs between neighbours, fast for large supercells."""

    @staticmethod
    def _evaluate(structure):
        from vesin import ase_neighbor_list

        atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=True)
        cutoff, stiffness = 4.6, 1.2
        i, vectors, r = ase_neighbor_list("iDd", atoms, cutoff)
        wave = np.exp(-stiffness * (r - 2.6))
        switch = 1 - (r / cutoff) ** 2
        energies = (wave**2 - 2 * wave) * switch**3
        slopes = -2 * stiffness * (wave**2 - wave) * switch**3
        slopes -= (wave**2 - 2 * wave) * 6 * r / cutoff**2 * switch**2
        pulls = (slopes / r)[:, None] * vectors
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, i, pulls)
        virial = -0.5 * pulls.T @ vectors
        own = np.bincount(i, 0.5 * energies, minlength=len(atoms))
        return Evaluation(float(own.sum()), own, forces, virial, 0, 0, 0, 0)


@pytest.mark.slow
def test_memory_of_2000_supercells_of_200_atoms():
    """A fit to random displacements would need 46 GiB, so that they are systematic."""
    environment = ENVIRONMENT | {
        "PYTHONPATH": os.pathsep.join(
            [ENVIRONMENT["PYTHONPATH"], str(TESTS), str(TESTS / "protocols")]
        )
    }
    found = subprocess.run(
        [sys.executable, "-c", MEMORY], env=environment, capture_output=True, text=True, check=True
    ).stdout
    size, count, gib = found.split("\n")[0].split()
    assert int(size) == 200
    assert int(count) > 1000
    assert float(gib) < 2
    assert "displacements are systematic: a fit of" in found


def stepped(cutoff=4.0, smooth=None):
    descriptor = SimpleNamespace(has_step=smooth is None, a_rcut=cutoff, smooth_cutoff=smooth)
    return SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(descriptor=descriptor)))


def test_displacements_stay_short_of_the_step():
    sulfide = bulk("CaS", "rocksalt", a=4.039 * np.sqrt(2))
    distance = kappa._distance(sulfide, stepped(), Settings())
    assert 0.005 < distance < 0.02
    assert 2 * distance < 0.039
    assert kappa._distance(bulk("KCl", "rocksalt", a=6.37), stepped(), Settings()) == 0.03
    assert kappa._distance(sulfide, stepped(), Settings(distance=0.03)) == 0.03
    # Where a shell is at the cutoff nothing helps, and noise must not grow.
    at_it = bulk("CaS", "rocksalt", a=4.0 * np.sqrt(2))
    assert kappa._distance(at_it, stepped(), Settings()) == 0.005


def test_a_shell_where_a_smoothed_model_changes():
    sulfide = bulk("CaS", "rocksalt", a=3.9 * np.sqrt(2))
    assert kappa._window(sulfide, stepped(), 0.03) == []
    (warning,) = kappa._window(sulfide, stepped(smooth=0.3), 0.03)
    assert "3.9000 Å are where smooth_cutoff = 0.3 Å" in warning
    assert kappa._window(bulk("KCl", "rocksalt", a=6.0), stepped(smooth=0.3), 0.03) == []
