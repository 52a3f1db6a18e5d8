"""Minimum energy paths: symmetric hops, both directions, wrapped and reordered ends, batches."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.mep import NEB
from ase.optimize import FIRE
from tests_support import EMTPotential

from dpa3sim.common.errors import InputError, NotConvergedError
from dpa3sim.protocols import neb
from dpa3sim.protocols.crystals import superposition
from dpa3sim.protocols.crystals.elastic_band import Band
from dpa3sim.protocols.neb import Settings

QUICK = Settings(images=3, fmax=0.01)


def hop(name="Al", repeat=2, cubic=True, **kwargs):
    """A vacancy before and after an atom next to it has jumped in; atoms keep their numbers."""
    perfect = bulk(name, cubic=cubic, **kwargs) * repeat
    near = perfect.get_distances(0, range(len(perfect)), mic=True)
    jumping = int(np.argsort(near, kind="stable")[1])
    initial, final = perfect.copy(), perfect.copy()
    final.positions[jumping] = perfect.positions[0]
    del initial[0], final[0]
    return initial, final


@pytest.fixture(scope="module")
def result():
    return neb.run(*hop(), EMTPotential(), QUICK)


def test_a_symmetric_hop_has_a_symmetric_path(result):
    stored = result.to_dict()
    energies = np.array(stored["energies_eV"])
    np.testing.assert_allclose(energies, energies[::-1], atol=1e-5)
    assert stored["barrier_forward_eV"] == pytest.approx(stored["barrier_backward_eV"], abs=1e-6)
    assert stored["reaction_energy_eV"] == pytest.approx(0.0, abs=1e-6)
    assert stored["converged"] is True
    assert stored["saddle_image"] == 2
    assert stored["saddle_fmax_eV_per_A"] < 0.01
    assert stored["barrier_forward_spline_eV"] == pytest.approx(
        stored["barrier_forward_eV"], abs=2e-3
    )
    assert not result.warnings
    first, last = result.images[0].positions, result.images[-1].positions
    jumping = int(np.argmax(np.linalg.norm(last - first, axis=1)))
    middle = (first + last)[jumping] / 2
    np.testing.assert_allclose(result.images[2].positions[jumping], middle, atol=0.01)


def test_the_way_back_is_the_same(result):
    back = neb.run(*hop()[::-1], EMTPotential(), QUICK)
    assert back.band.energies.max() == pytest.approx(result.band.energies.max(), abs=1e-5)
    np.testing.assert_allclose(back.band.energies[::-1], result.band.energies, atol=1e-3)


def test_one_batch_for_each_step():
    potential = EMTPotential()
    found = neb.run(*hop(), potential, QUICK)
    of_band = [n for n in potential.requests if n == 3]
    assert len(of_band) == found.steps + 1
    # Before it both ends, together as long as neither has converged.
    assert max(potential.requests[: -len(of_band)]) == 2
    assert len(potential.requests) - len(of_band) == max(found.endpoints) + 2


def test_as_ase_does_it_image_by_image(result):
    images = [result.images[0].copy() for _ in range(4)] + [result.images[-1].copy()]
    for image in images:
        image.calc = EMT()
    band = NEB(images, method="improvedtangent", climb=True)
    band.interpolate(mic=True)
    assert FIRE(band, logfile=None).run(fmax=0.01, steps=300)
    barrier = images[2].get_potential_energy() - images[0].get_potential_energy()
    assert result.to_dict()["barrier_forward_eV"] == pytest.approx(barrier, abs=5e-4)


def test_wrapped_and_reordered_ends(result):
    """Other periodic images and another order of the atoms: the same path, and a word of it."""
    initial, final = hop()
    final.positions += np.random.default_rng(0).integers(-1, 2, (len(final), 3)) @ final.cell[:]
    again = neb.run(initial, final, EMTPotential(), QUICK)
    np.testing.assert_allclose(again.band.energies, result.band.energies, atol=1e-6)
    assert not again.warnings
    mixed = final[np.random.default_rng(1).permutation(len(final))]
    again = neb.run(initial, mixed, EMTPotential(), QUICK)
    np.testing.assert_allclose(again.band.energies, result.band.energies, atol=1e-6)
    assert "order of" in again.warnings[0]


def test_vacancies_made_by_deleting_different_atoms(result):
    """What a user does: the order shifts between the two atoms that were deleted."""
    perfect = bulk("Al", cubic=True) * 2
    jumping = int(np.argsort(perfect.get_distances(0, range(32), mic=True), kind="stable")[1])
    initial, final = perfect.copy(), perfect.copy()
    del initial[0], final[jumping]
    again = neb.run(initial, final, EMTPotential(), QUICK)
    assert again.band.energies.max() == pytest.approx(result.band.energies.max(), abs=1e-5)
    assert np.ptp(again.band.path) == pytest.approx(np.ptp(result.band.path), abs=0.05)


def test_matching_looks_at_elements_and_leaves_exchanges_alone():
    initial = Atoms("CuAlCu", [[0, 0, 0], [3, 0, 0], [6, 0, 0]])
    other = Atoms("AlCuCu", [[3.2, 0, 0], [0, 0, 0], [6, 0, 0]])
    matched, changed = superposition.matched(initial, other)
    assert str(matched.symbols) == "CuAlCu"
    assert changed == 2
    assert matched.positions[1, 0] == 3.2
    swapped = initial[[2, 1, 0]]
    same, changed = superposition.matched(initial, swapped)
    assert changed == 0
    np.testing.assert_array_equal(same.positions, swapped.positions)


def test_a_molecule_turned_and_shifted(embedded64):
    """Ammonia turns inside out, whatever the frame of the last structure."""
    initial = molecule("NH3")
    final = initial.copy()
    final.positions[:, 2] *= -1
    final.rotate(40, (1, 2, 3))
    final.translate([1, 2, 3])
    found = neb.run(initial, final, embedded64, Settings(images=3, fmax=0.02))
    stored = found.to_dict()
    assert 0.1 < stored["barrier_forward_eV"] < 0.4  # measured: 0.25 eV
    assert stored["barrier_forward_eV"] == pytest.approx(stored["barrier_backward_eV"], abs=1e-4)
    assert stored["path_A"][-1] < 1.0
    assert any("molecule" in warning for warning in found.warnings)


def test_fixed_atoms_and_partial_periodicity():
    slab = fcc111("Cu", (2, 2, 2), a=3.6)
    add_adsorbate(slab, "O", 1.2, "fcc")
    slab.center(vacuum=6.0, axis=2)
    slab.pbc = (True, True, False)
    slab.set_constraint(FixAtoms([0, 1, 2, 3]))
    other = slab.copy()
    other.positions[-1] += (slab.cell[0] + slab.cell[1]) / 6  # from fcc to the hcp hollow
    found = neb.run(slab, other, EMTPotential(), QUICK)
    assert found.converged
    for image in found.images:
        np.testing.assert_allclose(image.positions[:4], slab.positions[:4], atol=1e-12)
    moved = other.copy()
    moved.set_constraint()
    moved.positions[1, 0] += 0.3
    with pytest.raises(InputError, match=r"atom 1 is fixed .* 0.3 Å away"):
        neb.check(slab, moved, QUICK)


def test_what_is_not_converged_says_so():
    found = neb.run(*hop(), EMTPotential(), Settings(images=3, steps=1, relax=False))
    assert found.converged is False
    assert "largest force of the band" in found.reasons[0]
    with pytest.raises(NotConvergedError):
        neb.run(*hop(), EMTPotential(), Settings(images=3, steps=1))


def test_a_slope_is_no_barrier():
    near = bulk("Al", cubic=True)
    near.positions[0, 0] += 0.6
    found = neb.run(bulk("Al", cubic=True), near, EMTPotential(), Settings(relax=False, images=3))
    assert not found.has_barrier
    assert found.to_dict()["saddle_image"] is None
    assert any("no barrier" in warning for warning in found.warnings)


def test_a_minimum_on_the_way_is_told():
    """Two jumps in a row: the vacancy rests in between."""
    perfect = bulk("Al", cubic=True) * 2
    step = np.array([0.5, 0.5, 0.0]) * 4.05
    sites = [perfect.positions[0], perfect.positions[0] + step, perfect.positions[0] + 2 * step]
    a, b = (int(np.argmin(np.linalg.norm(perfect.positions - site, axis=1))) for site in sites[1:])
    initial, final = perfect.copy(), perfect.copy()
    final.positions[a], final.positions[b] = sites[0], sites[1]
    del initial[0], final[0]
    settings = Settings(images=5, fmax=0.1, climb=False, match=False)
    found = neb.run(initial, final, EMTPotential(), settings)
    assert any("minimum on the path, at image 3" in warning for warning in found.warnings)
    assert any("no image climbed" in warning for warning in found.warnings)


def test_the_spline_follows_energies_and_forces():
    path = np.array([0.0, 0.7, 1.5, 2.0])
    band = Band(path, path**3 - 2 * path, -(3 * path**2 - 2))
    dense, energies = band.spline()
    np.testing.assert_allclose(energies, dense**3 - 2 * dense, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.append("Cu"), "the same atoms"),
        (lambda a: a.set_cell(a.cell[:] * 1.01), "cells of the structures differ by up to"),
        (lambda a: a.set_pbc([True, True, False]), "not periodic along the same axes"),
    ],
)
def test_no_path(change, message):
    initial, final = hop()
    change(final)
    with pytest.raises(InputError, match=message):
        neb.check(initial, final, QUICK)


def test_ends_that_are_the_same():
    initial, _ = hop()
    shaken = initial.copy()
    shaken.rattle(0.05, seed=1)
    with pytest.raises(InputError, match="relax to the same minimum"):
        neb.run(initial, shaken, EMTPotential(), QUICK)


def test_order_of_elements_without_matching():
    initial = Atoms("CuAl", [[0, 0, 0], [3, 0, 0]])
    with pytest.raises(InputError, match="order of the elements differs from atom 0"):
        neb.check(initial, initial[[1, 0]], Settings(match=False))


@pytest.mark.slow
def test_copper_with_the_embedded_model(embedded64):
    """One image suffices for a symmetric saddle point."""
    ends = hop("Cu", 3, cubic=False, a=3.625)
    stored = neb.run(*ends, embedded64, Settings(images=1)).to_dict()
    assert 0.5 < stored["barrier_forward_eV"] < 0.9
    assert stored["barrier_forward_eV"] == pytest.approx(stored["barrier_backward_eV"], abs=1e-4)
    assert stored["saddle_fmax_eV_per_A"] < 0.05
