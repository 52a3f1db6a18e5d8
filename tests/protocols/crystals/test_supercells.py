"""Supercells: what options may say, and sizes that do not depend on the cell that was given."""

import numpy as np
import pytest
from ase.build import bulk, make_supercell

from dpa3sim.common.errors import InputError
from dpa3sim.protocols.crystals import supercells
from dpa3sim.protocols.crystals.cells import Cells, Supercell
from dpa3sim.protocols.crystals.supercells import Request, choose, face_distance, parse


def cells_of(atoms):
    return Cells.of(atoms, 0.01)


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("auto", Request()),
        ("AUTO", Request()),
        ("20A", Request(width=20.0)),
        ("12.5 Å", Request(width=12.5)),
        ("max-atoms=300", Request(max_atoms=300)),
        ("2,3,4", Request(matrix=((2, 0, 0), (0, 3, 0), (0, 0, 4)))),
        ("2 2 2", Request(matrix=((2, 0, 0), (0, 2, 0), (0, 0, 2)))),
        ("-1,1,1,1,-1,1,1,1,-1", Request(matrix=((-1, 1, 1), (1, -1, 1), (1, 1, -1)))),
    ],
)
def test_what_may_be_said(text, request_):
    assert parse(text) == request_


@pytest.mark.parametrize(
    "text", ["", "big", "0A", "-3A", "2,2", "0,1,1", "1,0,0,1,0,0,0,0,1", "max-atoms=0", "1.5,2,2"]
)
def test_nonsense(text):
    with pytest.raises(InputError, match="supercell = "):
        parse(text)


@pytest.mark.parametrize("name", ["Cu", "Fe", "Si", "Mg"])
@pytest.mark.parametrize("width", [8.0, 12.0, 15.0])
def test_a_width_is_met_and_not_wasted(name, width):
    cells = cells_of(bulk(name))
    shape = choose(cells, parse("auto"), width)
    assert face_distance(cells, shape.matrix) >= width - 1e-6
    assert choose(cells, parse(f"{width:g}A"), 99.0).multiples == shape.multiples
    smaller = shape.smaller()
    assert face_distance(cells, smaller.matrix) < width
    assert smaller.size < shape.size


def test_every_cell_of_a_crystal_has_the_same_supercell():
    for name in ("Cu", "Si", "Fe"):
        given = [bulk(name), bulk(name, cubic=True), bulk(name) * (1, 2, 1)]
        given[1].rotate(25, (1, 2, 3), rotate_cell=True)
        boxes = []
        for atoms in given:
            cells = cells_of(atoms)
            cell = Supercell.of(cells.primitive, choose(cells, parse("auto"), 10.0).matrix).atoms
            boxes.append(
                (len(cell), *np.sort(cell.cell.lengths()), face_distance(cells, np.eye(3)))
            )
        assert boxes[1:] == [pytest.approx(boxes[0])] * 2


def test_as_wide_as_atoms_allow():
    cells = cells_of(bulk("Si"))
    for limit in (2, 16, 63, 64, 250):
        shape = choose(cells, parse(f"max-atoms={limit}"), 5.0)
        assert 2 * shape.size <= limit
    assert 2 * choose(cells, parse("max-atoms=64"), 5.0).size == 64
    with pytest.raises(InputError, match="the primitive cell has 2 atoms"):
        choose(cells, parse("max-atoms=1"), 5.0)


def test_numbers_are_of_the_input_cell():
    atoms = bulk("Cu", cubic=True)
    cells = cells_of(atoms)
    shape = choose(cells, parse("2,3,1"), 5.0)
    cell = Supercell.of(cells.primitive, shape.matrix).atoms
    assert sorted(cell.cell.lengths()) == pytest.approx(sorted((atoms * (2, 3, 1)).cell.lengths()))
    rows = [[2, 2, 0], [-2, 2, 0], [0, 0, 4]]
    text = ",".join(str(n) for row in rows for n in row)
    shape = choose(cells, parse(text), 5.0)
    cell = Supercell.of(cells.primitive, shape.matrix).atoms
    expected = make_supercell(atoms, rows)
    assert len(cell) == len(expected)
    np.testing.assert_allclose(cell.cell.cellpar(), expected.cell.cellpar(), atol=1e-6)


def test_smaller_ones_keep_the_shape():
    cells = cells_of(bulk("Cu", cubic=True))
    shape = choose(cells, parse("4,4,2"), 5.0)
    assert shape.smaller().multiples == (3, 3, 2)
    assert shape.smaller().smaller().multiples == (2, 2, 1)
    text = "4,4,0,-4,4,0,0,0,4"
    assert choose(cells, parse(text), 5.0).smaller().multiples != (1, 1, 1)
    assert choose(cells, parse("1,1,1"), 5.0).smaller() is None
    assert supercells.Shape(np.eye(3, dtype=int), (1, 1, 1)).size == 1
