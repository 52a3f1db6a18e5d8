"""Edges and angles against independent neighbour lists, and the model's selection rules."""

from contextlib import suppress

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.neighborlist import primitive_neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st
from matscipy.neighbours import neighbour_list

from dpa3sim.common.errors import InputError
from dpa3sim.graph.edges import EdgeRules, find_edges
from dpa3sim.graph.reference import find_angles

N_RANDOM = 500


def rules(e_rcut=6.0, a_rcut=4.0, e_sel=10**6, a_sel=10**6, **kwargs):
    return EdgeRules(e_rcut, a_rcut, e_sel, a_sel, **kwargs)


def edges_of(atoms, edge_rules):
    return find_edges(atoms.positions, atoms.cell[:], atoms.pbc, atoms.numbers, edge_rules)


def pairs(i, j, shifts):
    return sorted(zip(i.tolist(), j.tolist(), map(tuple, shifts.tolist()), strict=True))


def random_structure(rng):
    """Any cell: small or large, sheared, rotated, left-handed; any periodicity; unwrapped."""
    n = int(rng.integers(1, 9))
    cell = np.zeros((3, 3))
    # Very flat cells are left out: ASE's list takes minutes for them.
    while abs(np.linalg.det(cell)) < max(8.0, 0.05 * np.prod(np.linalg.norm(cell, axis=1))):
        cell = np.diag(rng.uniform(1.8, 9.0, 3)) @ (np.eye(3) + rng.uniform(-0.9, 0.9, (3, 3)))
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    cell = cell @ rotation
    if np.linalg.det(cell) > 0 and rng.random() < 0.3:
        cell = cell[[1, 0, 2]]
    pbc = rng.random(3) < 0.7
    positions = rng.uniform(-1.5, 2.5, (n, 3)) @ cell
    return Atoms(f"H{n}", positions, cell=cell, pbc=pbc)


def far_enough(atoms, low=0.2):
    i = primitive_neighbor_list("i", atoms.pbc, atoms.cell[:], atoms.positions, low)
    return len(i) == 0


@pytest.mark.parametrize("block", range(10))
def test_edges_equal_ase_and_matscipy_on_random_cells(block):
    rng = np.random.default_rng(block)
    done = 0
    while done < N_RANDOM // 10:
        atoms = random_structure(rng)
        if not far_enough(atoms):
            continue
        cutoff = float(rng.uniform(1.0, 7.0))
        found = edges_of(atoms, rules(cutoff, min(4.0, cutoff)))
        ours = pairs(found.i, found.j, found.shifts)
        arguments = (atoms.pbc, atoms.cell[:], atoms.positions, cutoff)
        assert ours == pairs(*primitive_neighbor_list("ijS", *arguments))
        # matscipy shrink-wraps cells with open axes and rejects some; ASE covers those.
        if atoms.pbc.all():
            assert ours == pairs(*neighbour_list("ijS", atoms=atoms, cutoff=cutoff))
        done += 1


def test_cells_much_smaller_than_the_cutoff():
    atoms = bulk("Al", "fcc", 4.05)  # one atom, cell vectors of 2.9 Å
    for cutoff in (6.0, 12.0):
        found = edges_of(atoms, rules(cutoff))
        assert pairs(found.i, found.j, found.shifts) == pairs(
            *neighbour_list("ijS", atoms=atoms, cutoff=cutoff)
        )


@pytest.mark.parametrize("pbc", [(1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1), (1, 0, 1), (0, 0, 0)])
def test_each_axis_counts_for_itself(pbc):
    atoms = bulk("Cu", cubic=True)
    atoms.pbc = pbc
    found = edges_of(atoms, rules())
    assert len(found.i) > 0
    assert not found.shifts[:, ~np.array(pbc, dtype=bool)].any()
    arguments = (atoms.pbc, atoms.cell[:], atoms.positions, 6.0)
    assert pairs(found.i, found.j, found.shifts) == pairs(
        *primitive_neighbor_list("ijS", *arguments)
    )


def test_vectors_of_open_axes_do_not_matter():
    slab = fcc111("Al", (2, 2, 3), vacuum=6.0)
    slab.pbc = (True, True, False)
    reference = edges_of(slab, rules())
    for third in ([0, 0, 0], [0, 0, 0.5], [3, 1, 40], list(slab.cell[0])):
        changed = slab.copy()
        changed.cell[2] = third
        found = edges_of(changed, rules())
        assert pairs(found.i, found.j, found.shifts) == pairs(
            reference.i, reference.j, reference.shifts
        )


def test_molecules_need_no_cell():
    found = edges_of(molecule("C6H6"), rules())
    assert len(found.i) == 12 * 11  # benzene fits into the cutoff
    assert not found.shifts.any()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_edges_are_ranked_by_distance_and_symmetric(seed):
    rng = np.random.default_rng(seed)
    atoms = random_structure(rng)
    if not far_enough(atoms):
        return
    found = edges_of(atoms, rules())
    r = np.linalg.norm(found.vectors(atoms.positions, atoms.cell[:]), axis=1)
    assert (np.diff(found.i) >= 0).all()
    same = np.diff(found.i) == 0
    assert (np.diff(r)[same] >= 0).all()
    assert (r <= 6.0).all()
    reverse = pairs(found.j, found.i, -found.shifts)
    assert pairs(found.i, found.j, found.shifts) == reverse
    inside = np.bincount(found.i[r < 4.0], minlength=len(atoms))
    np.testing.assert_array_equal(found.n_angle_edges, inside)


def test_cutoffs_include_the_edge_but_not_the_angle_distance():
    at = Atoms("H4", [[0, 0, 0], [4, 0, 0], [0, 6, 0], [0, 0, 3.5]])
    found = edges_of(at, rules())
    of_first = found.j[found.i == 0]
    assert of_first.tolist() == [3, 1, 2]  # 3.5, 4 and 6 Å: r <= 6 is in
    assert found.n_angle_edges[0] == 1  # r < 4 is not


def test_selection_keeps_the_nearest_and_counts_the_rest():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=1)
    everything = edges_of(atoms, rules())
    limited = edges_of(atoms, rules(e_sel=40, a_sel=12))
    assert np.bincount(limited.i).tolist() == [40] * 4
    assert limited.n_angle_edges.tolist() == [12] * 4
    assert limited.n_cut_edges == len(everything.i) - 160
    assert limited.n_cut_angle_edges == everything.n_angle_edges.sum() - 48
    for centre in range(4):
        kept = pairs(*(x[everything.i == centre][:40] for x in _triple(everything)))
        assert kept == pairs(*(x[limited.i == centre] for x in _triple(limited)))


def _triple(edges):
    return edges.i, edges.j, edges.shifts


def test_truncate_none_keeps_all():
    atoms = bulk("C", cubic=True)
    limited = edges_of(atoms, rules(e_sel=120, a_sel=30))
    unlimited = edges_of(atoms, rules(e_sel=120, a_sel=30, truncate="none"))
    assert limited.n_cut_edges > 0
    assert limited.n_cut_angle_edges > 0
    assert unlimited.n_cut_edges == unlimited.n_cut_angle_edges == 0
    assert len(unlimited.i) == len(limited.i) + limited.n_cut_edges


def test_equal_distances_are_ranked_by_neighbour_then_shift():
    atoms = Atoms("H", cell=[3.0, 3.0, 3.0], pbc=True)
    found = edges_of(atoms, rules(e_rcut=3.1, a_rcut=3.05))
    assert found.shifts.tolist() == sorted(found.shifts.tolist())
    limited = edges_of(atoms, rules(e_rcut=3.1, a_rcut=3.05, e_sel=2))
    assert limited.shifts.tolist() == found.shifts.tolist()[:2]


def test_excluded_pairs_keep_their_rank():
    atoms = Atoms("HOH", [[0, 0, 0], [1, 0, 0], [0, 2, 0]])
    excluded = frozenset({(1, 8), (8, 1)})
    found = edges_of(atoms, rules(e_sel=1, a_sel=1, excluded_pairs=excluded))
    # The nearest neighbour of atom 0 is the excluded oxygen, which uses up the one slot.
    assert found.j[found.i == 0].tolist() == []
    everything = edges_of(atoms, rules(excluded_pairs=excluded))
    assert everything.j[everything.i == 0].tolist() == [2]


def test_angles_are_all_ordered_pairs_of_each_centre():
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=3)
    found = edges_of(atoms, rules())
    angles = find_angles(found.i, found.n_angle_edges)
    expected = []
    for centre in range(len(atoms)):
        first = np.flatnonzero(found.i == centre)[: found.n_angle_edges[centre]]
        expected += [(q, k) for q in first for k in first]
    listed = zip(angles.edges[angles.q].tolist(), angles.edges[angles.k].tolist(), strict=True)
    assert list(listed) == expected
    np.testing.assert_array_equal(angles.centres, found.i[angles.edges])


def test_atoms_without_neighbours_have_no_edges_or_angles():
    found = edges_of(Atoms("H2", [[0, 0, 0], [50, 0, 0]]), rules())
    assert len(found.i) == 0
    angles = find_angles(found.i, found.n_angle_edges)
    assert len(angles.q) == len(angles.edges) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.positions.__setitem__((1, 2), np.nan), "atom 1 .* not finite"),
        (lambda a: a.positions.__setitem__((0, 0), np.inf), "atom 0 .* not finite"),
        (lambda a: a.positions.__setitem__((1, 1), 1e9), "atom 1 .* away from"),
        (lambda a: a.cell.__setitem__((0, 0), np.nan), "not finite"),
        (lambda a: a.cell.__setitem__(2, [0, 0, 0]), "periodic along c, but"),
        (lambda a: a.cell.__setitem__(2, a.cell[0] + a.cell[1]), "singular"),
        (lambda a: a.set_cell(a.cell[:] * 0.05, scale_atoms=True), "as dense"),
        (lambda a: a.positions.__setitem__(1, a.positions[0]), "atoms 0 and 1 overlap"),
        (lambda a: a.positions.__setitem__(3, a.positions[2] + 0.05), "atoms 2 and 3 overlap"),
    ],
)
def test_impossible_geometry_is_refused_with_its_reason(change, message):
    atoms = bulk("Cu", cubic=True)
    change(atoms)
    with pytest.raises(InputError, match=message):
        edges_of(atoms, rules())


def test_overlap_with_a_periodic_image_names_it():
    atoms = Atoms("H2", [[0, 0, 0], [4.95, 0, 0]], cell=[5, 5, 5], pbc=True)
    with pytest.raises(InputError, match=r"0 and 1 \(its periodic image \[-1, 0, 0\]\)"):
        edges_of(atoms, rules())


def test_no_atoms():
    with pytest.raises(InputError, match="no atoms"):
        edges_of(Atoms(), rules())


@pytest.mark.parametrize("pbc", [True, (True, True, False), (False, True, False)])
@pytest.mark.parametrize(
    "cell",
    [
        np.diag([1e6, 1e6, 1e6]),
        np.diag([1e6, 4.0, 1e6]),
        [[4, 0, 0], [0, 5, 4294967296], [0, 0, 6]],  # killed vesin
        [[4, 0, 0], [0, 5, 1e6], [0, 0, 6]],
        [[0.1, 0, 0], [0.1, 1e-7, 0], [0, 0, 1e6]],
        [[707, 0, 0], [707, 7.07e-4, 0], [0, 0, 0.2]],
        [[1e300, 0, 0], [0, 1e300, 0], [0, 0, 1e300]],
    ],
)
def test_extreme_cells_have_few_neighbours_or_are_refused(cell, pbc):
    """No crash of a library, no search that takes the memory or the day."""
    atoms = Atoms("H", cell=cell, pbc=pbc)
    with suppress(InputError):
        assert len(edges_of(atoms, rules()).i) < 1e5


def test_an_infinite_vector_is_refused_periodic_or_not():
    cell = np.diag([4.0, 4.0, np.inf])
    for pbc in (True, (True, True, False), False):
        with pytest.raises(InputError, match="not finite"):
            edges_of(Atoms("H", cell=cell, pbc=pbc), rules())


def test_skewed_vectors_of_a_good_lattice_are_no_reason_to_refuse():
    cell = np.diag([4.0, 4.0, 4.0])
    skewed = np.array([[1, 0, 0], [7, 1, 0], [-5, 6, 1]]) @ cell
    plain, other = (len(edges_of(Atoms("H", cell=c, pbc=True), rules()).i) for c in (cell, skewed))
    assert plain == other > 0


def test_atoms_on_a_heap_are_refused_before_their_pairs_are_counted():
    positions = np.random.default_rng(0).uniform(0, 1, (30_000, 3))
    with pytest.raises(InputError, match="no material is as dense"):
        edges_of(Atoms("H30000", positions), rules())
