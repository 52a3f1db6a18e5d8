"""Farthest points: by the definition, without duplicates, and with shares of kinds."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from dpa3sim.common.errors import InputError
from dpa3sim.sample import choose, selection
from dpa3sim.sample.selection import DUPLICATE, Whitening, select


class Positions:
    """Describes an atom by its position, instead of a model."""

    def features(self, structures):
        return [atoms.positions.copy() for atoms in structures]


def clouds(number, seed=0, kinds=("a", "b")):
    """Atoms of two elements at random points, one to four of them."""
    rng = np.random.default_rng(seed)
    found = []
    for k in range(number):
        n = int(rng.integers(1, 5))
        atoms = Atoms(rng.choice([1, 8], size=n), rng.normal(size=(n, 3)) * [1, 2, 3])
        atoms.info["config_type"] = kinds[k % len(kinds)]
        found.append(atoms)
    return found


def distance(atoms, others, white):
    """D(A, S) as it is written in the docstring."""
    total = 0.0
    elements = set(atoms.numbers.tolist())
    for element in elements:
        reference = [
            z
            for b in others
            for z, e in zip(white(b.positions), b.numbers, strict=True)
            if e == element
        ]
        novelties = [
            min((np.linalg.norm(z - y) for y in reference), default=np.inf)
            for z, e in zip(white(atoms.positions), atoms.numbers, strict=True)
            if e == element
        ]
        total += max(novelties)
    return total / len(elements)


def brute_force(candidates, n, known):
    white = Whitening.fit([atoms.positions for atoms in [*candidates, *known]])
    chosen = []
    while len(chosen) < n:
        others = [*known, *(candidates[k] for k in chosen)]
        rest = [k for k in range(len(candidates)) if k not in chosen]
        chosen.append(max(rest, key=lambda k: distance(candidates[k], others, white)))
    return chosen


@pytest.mark.parametrize("block", [2**21, 5])
@pytest.mark.parametrize("n_known", [0, 3])
def test_farthest_points_are_those_of_the_definition(monkeypatch, block, n_known):
    monkeypatch.setattr(selection, "_BLOCK", block)
    candidates, known = clouds(25), clouds(n_known, seed=7)
    found = choose(candidates, Positions(), 10, known=known)
    assert found == brute_force(candidates, 10, known)


def test_distances_are_those_of_the_definition():
    candidates = clouds(12)
    found = select(candidates, Positions(), 12)
    white = Whitening.fit([atoms.positions for atoms in candidates])
    for place, (k, value) in enumerate(zip(found.indices, found.distances, strict=True)):
        others = [candidates[j] for j in found.indices[:place]]
        assert value == pytest.approx(distance(candidates[k], others, white), rel=1e-5)
    finite = [d for d in found.distances if np.isfinite(d)]
    assert finite[-1] < finite[0]
    assert found.distances[0] == np.inf


def test_whitened_features_have_unit_variance():
    x = np.random.default_rng(1).normal(size=(500, 3)) @ [[1, 0, 5], [0, 30, 0], [0, 0, 2]]
    x = np.hstack([x, x[:, :1]])  # a direction without variance
    white = Whitening.fit([x[:200], x[200:]])(x)
    assert white.shape == (500, 3)
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(3), atol=1e-9)


def test_duplicates_and_known_frames_are_never_chosen():
    candidates = clouds(8)
    again = [*candidates, *[atoms.copy() for atoms in candidates]]
    found = choose(again, Positions(), 16)
    assert sorted(k % 8 for k in found) == list(range(8))
    known = [candidates[3].copy(), candidates[5].copy()]
    found = choose(candidates, Positions(), 8, known=known)
    assert sorted(found) == [0, 1, 2, 4, 6, 7]
    assert choose(candidates, Positions(), 8, known=candidates) == []
    assert choose([], Positions(), 3) == []


def test_what_is_equal_to_the_model_is_a_duplicate(smooth):
    water = bulk("O", "fcc", 3.4, cubic=True)
    moved = water.copy()
    moved.translate([0.3, 0.2, 0.1])
    moved.wrap()
    squeezed = water.copy()
    squeezed.set_cell(water.cell * 0.95, scale_atoms=True)
    candidates = [water, moved, water * 2, squeezed, Atoms("O"), Atoms("O2", [[0] * 3, [0, 0, 30]])]
    found = choose(candidates, smooth, 6)
    assert sorted(found) == [0, 3, 4]


def test_kinds_get_their_shares():
    candidates = clouds(40, kinds=("a", "a", "a", "b", "c"))
    for atoms in candidates:  # the others are far more different
        if atoms.info["config_type"] != "a":
            atoms.positions *= 0.1
    free = choose(candidates, Positions(), 12)
    assert sum(candidates[k].info["config_type"] == "b" for k in free) < 3
    found = choose(candidates, Positions(), 12, shares={"b": 25, "c": 10, "d": 50})
    kinds = [candidates[k].info["config_type"] for k in found]
    assert kinds.count("b") >= 3
    assert kinds.count("c") >= 2
    assert len(set(found)) == 12


def test_kinds_of_which_all_are_wanted_come_first():
    candidates = clouds(20, kinds=("a",) * 9 + ("b",))
    found = choose(candidates, Positions(), 8, shares={"a": 5, "b": 100})
    kinds = [candidates[k].info["config_type"] for k in found]
    assert kinds[:2] == ["b", "b"]
    assert kinds.count("b") == 2


def test_shares_are_bounded_by_what_is_there_and_what_is_wanted():
    candidates = clouds(10, kinds=("a",) * 9 + ("b",))
    found = choose(candidates, Positions(), 4, shares={"a": 100, "b": 100})
    assert len(found) == 4
    copies = [*candidates, *[candidates[9].copy() for _ in range(5)]]
    found = choose(copies, Positions(), 10, shares={"b": 60})
    assert len(found) == 10
    assert sum(copies[k].info["config_type"] == "b" for k in found) == 1


def test_a_sample_of_atoms_is_enough_for_the_directions(monkeypatch):
    monkeypatch.setattr(selection, "SAMPLE_ATOMS", 20)
    candidates = clouds(30)
    found = select(candidates, Positions(), 30)
    assert sorted(found.indices) == list(range(30))
    assert min(found.distances) > DUPLICATE


def test_a_frame_that_cannot_be_described_is_named(smooth):
    bad = Atoms("Cu")
    bad.info["parent"] = "copper.vasp"
    with pytest.raises(InputError, match=r"copper\.vasp: "):
        choose([Atoms("H"), bad], smooth, 1)
