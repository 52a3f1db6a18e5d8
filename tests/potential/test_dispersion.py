"""D3: published numbers, derivatives, sizes, what is named, and what is refused."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.lattice.hexagonal import Graphite
from tests_support import DATA

from dpa3sim import DPA3Calculator, Engine, Potential
from dpa3sim.checkpoints.theory import theory_of
from dpa3sim.cli.main import main
from dpa3sim.common.errors import Dpa3simWarning, InputError
from dpa3sim.common.units import GPA
from dpa3sim.potential.dispersion import Dispersion
from dpa3sim.structures.system import as_system

pytest.importorskip("dftd3")
UNKNOWN = "ignore:the level of theory"


def molybdenite():
    z = 0.621
    places = [(1 / 3, 2 / 3, 1 / 4), (2 / 3, 1 / 3, 3 / 4), (1 / 3, 2 / 3, z)]
    places += [(2 / 3, 1 / 3, z + 1 / 2), (2 / 3, 1 / 3, -z), (1 / 3, 2 / 3, 1 / 2 - z)]
    cell = [3.16, 3.16, 12.29, 90, 90, 120]
    return Atoms("Mo2S4", scaled_positions=places, cell=cell, pbc=True)


# Energy, eV per cell; stress xx and zz, GPa: simple-dftd3 1.7.0 by its own interface.
REFERENCES = [
    (Graphite("C", latticeconstant=(2.461, 6.708)), -0.62549448, (0.27793, 3.39762)),
    (bulk("Si", a=5.431), -0.62776520, (2.47925, 2.47925)),
    (bulk("NaCl", "rocksalt", a=5.64), -0.42864706, (1.59697, 1.59697)),
    (bulk("Cu", a=3.615), -0.58255516, (8.21226, 8.21226)),
    (molybdenite(), -2.56120617, (3.96055, 3.96256)),
    (bulk("Ar", a=5.31), -0.08636887, (0.50225, 0.50225)),
    (molecule("H2O"), -0.00978192, None),
    (molecule("C6H6"), -0.29815768, None),
]


@pytest.fixture(scope="module")
def d3(embedded):
    return Dispersion("d3", embedded.model)


def corrected(dispersion, atoms):
    return dispersion.evaluate([as_system(atoms)])[0]


def rattled(atoms, seed=1):
    moved = atoms.copy()
    moved.rattle(0.05, seed=seed)
    return moved


@pytest.mark.parametrize(("atoms", "energy", "stress"), REFERENCES)
def test_published_numbers(d3, atoms, energy, stress):
    found = corrected(d3, atoms)
    assert found.energy == pytest.approx(energy, abs=1e-7)
    assert found.energies.sum() == pytest.approx(found.energy, abs=1e-12)
    if stress is not None:
        tensor = -found.virial / atoms.get_volume() / GPA
        assert (tensor[0, 0], tensor[2, 2]) == pytest.approx(stress, abs=2e-5)


def wire():
    """Chains of benzene and water, periodic along y only."""
    atoms = molecule("C6H6", cell=[0, 9.0, 0], pbc=(False, True, False))
    other = molecule("H2O")
    other.positions += [3, 40, -25]
    return atoms + other


def slab():
    atoms = fcc111("Cu", (1, 1, 2))
    add_adsorbate(atoms, molecule("H2O"), 2.5, "ontop")
    return atoms


@pytest.mark.parametrize("atoms", [slab(), wire()], ids=["slab", "wire"])
def test_axes_that_are_not_periodic(d3, atoms):
    """The library's own calculator says the same of a cell with a vacuum wider than its cutoff."""
    from dftd3.ase import DFTD3

    found = corrected(d3, atoms)
    for axis in np.flatnonzero(~atoms.pbc):
        atoms.cell[axis] = 120.0 * np.eye(3)[axis]
    atoms.pbc = True
    atoms.calc = DFTD3(method="PBE", damping="d3bj")
    assert found.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    np.testing.assert_allclose(found.forces, atoms.get_forces(), atol=1e-9)


def test_forces_stress_and_hessian_are_derivatives(d3):
    atoms = rattled(molecule("CH3OH", cell=[[5, 0, 0], [1, 6, 0], [0, 2, 7]], pbc=True))
    found, h, volume = corrected(d3, atoms), 1e-3, atoms.get_volume()

    def change(move):
        ends = []
        for sign in (1, -1):
            moved = atoms.copy()
            move(moved, sign * h)
            ends.append(corrected(d3, moved))
        return ends

    for atom, axis in ((0, 0), (3, 2)):

        def displace(moved, x, atom=atom, axis=axis):
            moved.positions[atom, axis] += x

        up, down = change(displace)
        slope = (up.energy - down.energy) / (2 * h)
        assert found.forces[atom, axis] == pytest.approx(-slope, abs=1e-6)
        curvature = (down.forces - up.forces) / (2 * h)
        rows = d3.hessian(as_system(atoms), [atom])[axis]
        np.testing.assert_allclose(rows, curvature.ravel(), atol=1e-6)
    for i, j in ((0, 0), (1, 2)):

        def strain(moved, x, i=i, j=j):
            deformation = np.eye(3)
            deformation[i, j] += x
            moved.set_cell(moved.cell[:] @ deformation, scale_atoms=True)

        up, down = change(strain)
        slope = (up.energy - down.energy) / (2 * h)
        # Pairs beyond 60 bohr count as nothing, which is some 0.1 % of the slope.
        assert found.virial[i, j] / volume == pytest.approx(-slope / volume, abs=1e-6)
    assert np.abs(found.virial).min() > 1e-4  # so that the comparison means something


def test_supercells_and_other_cells_of_the_same_crystal(d3):
    atoms = rattled(bulk("Si", a=5.431))
    one, two = corrected(d3, atoms), corrected(d3, atoms * (2, 1, 1))
    assert two.energy == pytest.approx(2 * one.energy, abs=1e-9)
    np.testing.assert_allclose(two.energies, np.tile(one.energies, 2), atol=1e-9)
    np.testing.assert_allclose(two.forces, np.tile(one.forces, (2, 1)), atol=1e-9)
    np.testing.assert_allclose(two.virial, 2 * one.virial, atol=1e-9)
    skewed = atoms.copy()
    skewed.set_cell(np.array([[1, 0, 0], [3, 1, 0], [0, -2, 1]]) @ atoms.cell[:])
    skewed.positions[0] += 30 * skewed.cell[0]
    assert corrected(d3, skewed).energy == pytest.approx(one.energy, abs=1e-9)


def test_atomic_energies_belong_to_the_atoms(d3):
    """A pair far away from a molecule changes nothing of its energies."""
    water = molecule("H2O")
    far = molecule("N2")
    far.positions += [40.0, 0, 0]
    alone, together = corrected(d3, water), corrected(d3, water + far)
    np.testing.assert_allclose(together.energies[:3], alone.energies, atol=1e-12)


@pytest.mark.filterwarnings(UNKNOWN)
def test_a_potential_adds_it_to_the_model(smooth, water):
    potential = Potential(smooth.model, dispersion="d3")
    structures = [water, molecule("H2O"), water * (2, 1, 1)]
    plain, added = smooth.evaluate(structures), potential.evaluate(structures)
    corrections = potential.dispersion.evaluate([as_system(x) for x in structures])
    for before, after, correction in zip(plain, added, corrections, strict=True):
        assert after.energy == before.energy + correction.energy
        np.testing.assert_array_equal(after.forces, before.forces + correction.forces)
        np.testing.assert_array_equal(after.virial, before.virial + correction.virial)
        assert after.energies.sum() == pytest.approx(after.energy, abs=1e-9)
    np.testing.assert_allclose(
        potential.hessian(structures[1]) - smooth.hessian(structures[1]),
        potential.dispersion.hessian(as_system(structures[1]), range(3)),
        atol=1e-12,
    )


@pytest.mark.filterwarnings(UNKNOWN)
def test_beside_a_gpu_it_is_the_same(smooth, water, monkeypatch):
    potential = Potential(smooth.model, dispersion="d3")
    structures = [water, molecule("H2O")]
    expected = potential.evaluate(structures)
    monkeypatch.setattr(potential, "device", torch.device("cuda"))  # where it believes to be
    for one, other in zip(expected, potential.evaluate(structures), strict=True):
        np.testing.assert_array_equal(one.forces, other.forces)


@pytest.mark.filterwarnings(UNKNOWN)
def test_all_clients_have_it(smooth):
    potential = Potential(smooth.model, dispersion="d3")
    expected = potential.evaluate([molecule("H2O")])[0].energy
    atoms = molecule("H2O")
    atoms.calc = DPA3Calculator(smooth.model, dispersion="d3")
    assert atoms.get_potential_energy() == expected
    with Engine(potential).client() as client:
        assert client.evaluate([atoms])[0].energy == expected
        assert client.dispersion is potential.dispersion
    assert potential.in_precision("float32").dispersion.name == "d3"
    assert Potential.load(potential.settings).identity == potential.identity
    with pytest.raises(InputError, match="dispersion and ranks in the Potential"):
        DPA3Calculator(smooth, dispersion="d3")


@pytest.mark.filterwarnings(UNKNOWN)
@pytest.mark.slow
def test_several_ranks(smooth, water):
    potential = Potential(smooth.model, dispersion="d3")
    one = potential.evaluate([water])[0]
    with Potential(smooth.model, dispersion="d3", ranks=2) as shared:
        two = shared.evaluate([water])[0]
    assert two.energy == pytest.approx(one.energy, abs=1e-10)
    np.testing.assert_allclose(two.forces, one.forces, atol=1e-10)


def test_identities_differ(embedded):
    potential = Potential(embedded.model, dispersion="d3")
    assert potential.identity != embedded.identity
    assert "D3(BJ) for PBE" in repr(potential)
    assert "D3" not in repr(embedded)
    assert potential.settings.dispersion == "d3"


def test_commands_name_it_and_refuse_to_continue_with_another(tmp_path, capsys):
    path = tmp_path / "graphite.vasp"
    REFERENCES[0][0].write(path)
    out = ["--out", str(tmp_path / "run"), "--quiet"]
    assert main(["sp", str(path), "--dispersion", "d3", *out]) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    facts = result["model"]["dispersion"]
    assert (facts["method"], facts["functional"]) == ("D3(BJ)", "PBE")
    assert not any("lacks the dispersion" in line for line in result["warnings"])
    assert main(["sp", str(path), *out]) == 2
    assert "dispersion" in capsys.readouterr().err
    assert main(["sp", str(path), *out, "--force"]) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["model"]["dispersion"] is None
    assert sum("--dispersion d3 adds it" in line for line in result["warnings"]) == 1


def test_models_that_have_it_are_refused(embedded):
    for head in ("OMol25", "SPICE2", "ODAC23"):
        with pytest.raises(InputError, match="includes dispersion already"):
            Dispersion("d3", replace(embedded.model, head=head))
    taught = replace(embedded.model, name="x", origin={"teacher": "dpa3-openlam"})
    assert str(theory_of(taught)) == "PBE"
    learnt = replace(taught, origin={"teacher": "dpa3-openlam", "dispersion": "D3(BJ) for PBE"})
    with pytest.raises(InputError, match="includes dispersion already"):
        Dispersion("d3", learnt)


def test_other_functionals_have_other_parameters(embedded, d3):
    graphite = REFERENCES[0][0]
    other = Dispersion("d3", replace(embedded.model, head="H2O_H2O_PD"))
    assert other.functional == "SCAN"
    assert other.identity != d3.identity
    # SCAN has some of the dispersion itself.
    assert 0.1 < corrected(other, graphite).energy / corrected(d3, graphite).energy < 0.8


def test_an_unknown_level_of_theory_is_warned_of():
    potential = Potential(DATA / "models/dynamic/model.pt", dispersion="d3")
    with pytest.warns(Dpa3simWarning, match="level of theory of model is not known"):
        out = potential.evaluate([molecule("H2O")])[0]
    assert any("parameters for PBE" in line for line in out.warnings)


def test_bad_input(embedded, monkeypatch):
    with pytest.raises(InputError, match="'False' is not one of none, d3"):
        Potential(embedded.model, dispersion="False")
    potential = Potential(embedded.model, dispersion="d3")
    for method in (potential.check, lambda atoms: potential.evaluate([atoms])):
        with pytest.raises(InputError, match="no coefficients for Rf"):
            method(Atoms("Rf2", positions=[[0, 0, 0], [0, 0, 3.0]]))
    monkeypatch.setitem(sys.modules, "dftd3.interface", None)
    with pytest.raises(InputError, match=r"pip install 'dpa3sim\[d3\]'"):
        Potential(embedded.model, dispersion="d3")
