"""Surfaces: the order of faces, consistent references, terminations, polar faces refused."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.optimize import BFGS
from tests_support import EMTPotential

from dpa3sim.common.errors import InputError, NotConvergedError
from dpa3sim.common.units import J_PER_M2
from dpa3sim.protocols import surface
from dpa3sim.protocols.crystals import slabs
from dpa3sim.protocols.crystals.cells import Cells
from dpa3sim.protocols.surface import Settings

SETTINGS = Settings(thickness=10.0)
CUT = {"thickness": 10.0, "sizes": 3, "vacuum": 15.0}


def zincblende():
    return bulk("ZnS", "zincblende", a=5.4, cubic=True)


def wurtzite():
    return bulk("GaN", "wurtzite", a=3.2, c=5.2)


def by_face(result):
    return {tuple(face["miller"]): face for face in result.to_dict()["surfaces"]}


@pytest.fixture(scope="module")
def copper():
    return surface.run(bulk("Cu"), EMTPotential(), SETTINGS)


def test_dense_faces_cost_least(copper):
    assert [s.miller for s in copper.surfaces] == [(1, 1, 1), (1, 0, 0), (1, 1, 0)]
    for face in copper.surfaces:
        assert 0 < face.gamma < face.slabs[-1].gamma_unrelaxed
        assert face.symmetric
        assert face.terminations == 1


def test_every_cell_of_a_crystal_gives_the_same(copper):
    turned = bulk("Cu", cubic=True)
    turned.rotate(33, (1, 2, 3), rotate_cell=True)
    expected = by_face(copper)
    for atoms in (turned, bulk("Cu", a=3.5) * (2, 1, 1)):
        found = by_face(surface.run(atoms, EMTPotential(), SETTINGS))
        assert found.keys() == expected.keys()
        for face, values in found.items():
            for key in ("surface_energy_J_per_m2", "surface_energy_unrelaxed_J_per_m2"):
                assert values[key] == pytest.approx(expected[face][key], abs=1e-4)


def test_as_one_does_it_by_hand(copper):
    a = copper.prepared.to_dict()["conventional_lengths_A"][0]
    face = next(s for s in copper.surfaces if s.miller == (1, 1, 1))
    slab = fcc111("Cu", (1, 1, face.slabs[-1].periods), a=a, vacuum=8.0)
    crystal = bulk("Cu", a=a)
    for atoms in (slab, crystal):
        atoms.calc = EMT()
    BFGS(slab, logfile=None).run(fmax=1e-3)
    energy = slab.get_potential_energy() - len(slab) * crystal.get_potential_energy()
    area = np.linalg.norm(np.cross(slab.cell[0], slab.cell[1]))
    assert face.gamma == pytest.approx(energy / 2 / area, abs=1e-6)
    assert face.to_dict()["surface_energy_J_per_m2"] == pytest.approx(16.0217663 * face.gamma)


def test_the_fit_finds_the_energy_of_the_crystal(copper):
    """Fiorentini and Methfessel: without the bulk energy, from the slabs alone."""
    for face in copper.surfaces:
        assert len(face.slabs) == 3
        assert face.fit.bulk == pytest.approx(copper.energy_per_atom, abs=1e-4)
        assert face.fit.gamma * J_PER_M2 == pytest.approx(face.gamma * J_PER_M2, abs=2e-3)
        assert face.to_dict()["thickness_change_J_per_m2"] == pytest.approx(0, abs=2e-3)
    assert not copper.warnings


def test_the_vacuum_has_no_effect(copper):
    narrow = surface.run(
        bulk("Cu"), EMTPotential(), Settings(thickness=10.0, vacuum=1.0, miller="1,1,1")
    )
    face = next(s for s in copper.surfaces if s.miller == (1, 1, 1))
    assert narrow.surfaces[0].gamma == pytest.approx(face.gamma, abs=1e-9)
    slab = face.slabs[0].atoms
    assert slab.pbc.tolist() == [True, True, False]
    assert slab.cell[2, 2] - np.ptp(slab.positions[:, 2]) == pytest.approx(15.0, abs=0.2)


def test_all_slabs_in_one_batch_a_step():
    potential = EMTPotential()
    found = surface.run(bulk("Cu"), potential, SETTINGS)
    start = len(potential.requests) - 1 - potential.requests[::-1].index(9)
    steps = [slab.steps for face in found.surfaces for slab in face.slabs]
    # From the first request of all nine on: a request for each step, then the bulk's guards.
    first = potential.requests.index(9)
    assert start > first
    assert len(potential.requests) - first - 1 <= max(steps) + 2


def test_indices_are_of_the_conventional_cell():
    """The planes of a slab are as far apart as the cubic indices say."""
    cells = Cells.of(bulk("Cu", a=3.6), 0.01)
    for miller, apart in (((1, 1, 1), 3**-0.5), ((1, 0, 0), 0.5), ((1, 1, 0), 8**-0.5)):
        (cut,) = slabs.cuts_of(cells, miller, **CUT)
        heights = np.unique(np.round(cut.slabs[0].positions[:, 2], 6))
        np.testing.assert_allclose(np.diff(heights), apart * 3.6, atol=1e-5)
        assert len(heights) == len(cut.slabs[0])  # one atom a plane: no larger cell than needed


def test_terminations_of_silicon():
    """(111) of diamond: between the double layers, or within them, which breaks more bonds."""
    cuts = slabs.cuts_of(Cells.of(bulk("Si"), 0.01), (1, 1, 1), **CUT)
    assert len(cuts) == 2
    outermost = sorted(float(np.diff(np.sort(c.slabs[0].positions[:, 2])[:2])[0]) for c in cuts)
    assert outermost == pytest.approx([5.43 / 48**0.5, 5.43 * 3**0.5 / 4], abs=0.01)


@pytest.mark.parametrize(
    ("atoms", "polar", "good"),
    [
        (bulk("MgO", "rocksalt", a=4.25), ["1,1,1"], ["1,0,0", "1,1,0"]),
        (zincblende(), ["1,1,1", "1,0,0"], ["1,1,0"]),
        (wurtzite(), ["0,0,1"], ["1,0,0", "1,1,0"]),
        (bulk("CaF2", "fluorite", a=5.46), ["1,0,0"], ["1,1,1", "1,1,0"]),
    ],
)
def test_polar_faces_are_refused(atoms, polar, good):
    for miller in good:
        surface.check(atoms, Settings(miller=miller))
    for miller in polar:
        with pytest.raises(InputError, match="it is polar, or its faces differ"):
            surface.check(atoms, Settings(miller=miller))
    surface.check(atoms, Settings())  # those are left out of the automatic choice


def test_faces_left_out_are_told():
    cells = Cells.of(zincblende(), 0.01)
    cuts, skipped = surface._all_cuts(cells, Settings())
    assert {cut.miller for cut in cuts} == {(1, 1, 0)}
    assert {miller for miller, _ in skipped} == {(1, 0, 0), (1, 1, 1)}
    for cut in cuts:
        for slab in cut.slabs:
            assert slab.symbols.count("Zn") == slab.symbols.count("S")


def test_different_faces():
    assert len(slabs.distinct_faces(Cells.of(bulk("Cu"), 0.01))) == 3
    hexagonal = slabs.distinct_faces(Cells.of(bulk("Mg"), 0.01))
    assert {(0, 0, 1), (1, 0, 0), (1, 1, 0)} <= set(hexagonal)
    low = Atoms("Cu", cell=[[3, 0, 0], [0.4, 3.3, 0], [0.5, 0.7, 3.8]], pbc=True)
    assert len(slabs.distinct_faces(Cells.of(low, 0.01))) == 13


@pytest.mark.parametrize(
    ("text", "faces"),
    [
        ("1,1,1", [(1, 1, 1)]),
        ("111 100", [(1, 1, 1), (1, 0, 0)]),
        ("-1,1,0 1-10", [(-1, 1, 0), (1, -1, 0)]),
        ("2,2,0 1,1,0", [(1, 1, 0)]),
        ("auto", []),
    ],
)
def test_reading_indices(text, faces):
    assert slabs.parse_miller(text) == faces


@pytest.mark.parametrize("text", ["", "0,0,0", "1,1", "a,b,c", "1,1,1,1", "1.5,1,1"])
def test_no_indices(text):
    with pytest.raises(InputError, match="miller"):
        Settings(miller=text)


@pytest.mark.parametrize("atoms", [molecule("H2O"), fcc111("Cu", (1, 1, 3), vacuum=8)])
def test_no_crystal(atoms):
    with pytest.raises(InputError, match="surfaces need a crystal"):
        surface.check(atoms, Settings())


def test_not_converged_closes_the_way():
    with pytest.raises(NotConvergedError, match="surface: relaxation"):
        surface.run(bulk("Cu"), EMTPotential(), Settings(relax=False, steps=1, miller="1,1,0"))


def test_copper_with_the_embedded_model(embedded64):
    found = surface.run(bulk("Cu"), embedded64, Settings(thickness=7.0, sizes=1))
    assert [s.miller for s in found.surfaces] == [(1, 1, 1), (1, 0, 0), (1, 1, 0)]
    assert 1.2 < found.surfaces[0].gamma * J_PER_M2 < 1.5  # PBE: 1.3 J/m^2
    assert any("was not checked" in warning for warning in found.warnings)
