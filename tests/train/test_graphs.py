"""Edges on the disk: those of a fresh search, found once, mapped into memory."""

from dataclasses import replace

import numpy as np
import pytest
from training_support import labelled, recipe, water

from dpa3sim.common.errors import InputError
from dpa3sim.graph.edges import find_edges
from dpa3sim.train import graphs
from dpa3sim.train.graphs import GraphStore


@pytest.fixture(scope="module")
def frames():
    return labelled([*water(3, 1), *water(2, 2, n=3)])


@pytest.fixture
def given(frames):
    found = recipe(frames)
    return found.config, found.rules


def assert_fresh(store, rules):
    for index in range(len(store)):
        x, found = store.system(index), store.edges(index)
        expected = find_edges(x.positions, x.cell, x.pbc, x.types, rules)
        for name in ("i", "j", "shifts", "n_angle_edges"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert store.angles[index] == (expected.n_angle_edges**2).sum()


def test_edges_are_those_of_a_fresh_search(frames, given):
    assert_fresh(GraphStore(frames, *given), given[1])


def test_a_file_is_used_again(frames, given, tmp_path, monkeypatch):
    path = tmp_path / "edges.a.training"
    before = GraphStore(frames, *given, path)
    monkeypatch.setattr(graphs, "find_edges", None)  # nothing is searched any more
    again = GraphStore(frames, *given, path)
    for index in range(len(frames)):
        np.testing.assert_array_equal(again.edges(index).j, before.edges(index).j)
    assert again.n_cut == before.n_cut
    with pytest.raises(TypeError):
        GraphStore(frames, *given, tmp_path / "edges.a.validation")


@pytest.mark.parametrize("damage", ["other rules", "other frames", "cut", "no counts", "bytes"])
def test_another_or_a_damaged_file_is_written_again(damage, frames, given, tmp_path):
    config, rules = given
    path = tmp_path / "edges.a.training"
    GraphStore(frames, config, rules, path)
    if damage == "other rules":
        rules = replace(rules, e_sel=3, a_sel=2)
    elif damage == "other frames":
        frames = frames.select(np.arange(len(frames))[::-1])
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif damage == "no counts":
        (tmp_path / f"{path.name}.counts.npy").unlink()
    else:
        (tmp_path / f"{path.name}.json").write_text("{")
    assert_fresh(GraphStore(frames, config, rules, path), rules)


def test_neighbours_that_the_limits_cut_are_counted(frames, given):
    config, rules = given
    few = replace(rules, e_sel=3, a_sel=2)
    assert GraphStore(frames, config, few).n_cut > 0
    assert GraphStore(frames, config, replace(rules, truncate="none")).n_cut == 0


def test_a_frame_that_cannot_be_computed_is_named(frames, given):
    positions = frames.positions.copy()
    positions[frames.starts[2]] = positions[frames.starts[2] + 1]
    with pytest.raises(InputError, match=r"made, frame 2: atoms 0 and 1 overlap"):
        GraphStore(replace(frames, positions=positions), *given)
