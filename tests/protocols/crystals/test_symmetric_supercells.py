"""Supercells by the distance of their faces."""

import numpy as np
import pytest
from ase.build import bulk

from dpa3sim.common.errors import InputError
from dpa3sim.protocols.crystals.cells import Cells
from dpa3sim.protocols.crystals.supercells import Request, parse, widths
from dpa3sim.protocols.crystals.symmetric_supercells import choose

CRYSTALS = {
    "Si": bulk("Si", a=5.465),
    "Cu": bulk("Cu", a=3.625),
    "W": bulk("W", a=3.16),
    "Ti": bulk("Ti", a=2.93, c=4.65),
    "Sn": bulk("Sn", "bct", a=5.9, c=3.2),
}


def brute_force_width(vectors):
    """Volume over the largest face."""
    faces = [np.linalg.norm(np.cross(vectors[i - 1], vectors[i - 2])) for i in range(3)]
    return abs(np.linalg.det(vectors)) / np.array(faces)


def test_widths_are_distances_of_faces_not_lengths_of_vectors():
    vectors = np.array([[3.0, 0, 0], [2.8, 1.0, 0], [0.3, 0.4, 5.0]])
    np.testing.assert_allclose(widths(vectors), brute_force_width(vectors))
    assert widths(vectors)[0] < 1.1


@pytest.mark.parametrize("name", CRYSTALS)
@pytest.mark.parametrize("size", ["auto", "9.5A", "max-atoms=150"])
def test_chosen_supercells_are_wide_small_and_symmetric(name, size):
    cells = Cells.of(CRYSTALS[name], 0.01)
    wanted = parse(size)
    matrix, _ = choose(cells, wanted, 6.0)
    vectors = matrix @ cells.primitive.atoms.cell[:]
    count = round(np.linalg.det(matrix)) * len(cells.primitive.atoms)
    width = brute_force_width(vectors).min()
    if size == "auto":
        assert width >= 15.0
        assert count <= 600
    elif wanted.width:
        assert width >= wanted.width - 1e-6
    else:
        assert count <= 150
        # No simple multiple of the conventional cell within the limit is wider.
        for n in range(1, 6):
            lattice = n * cells.conventional.atoms.cell[:]
            if n**3 * len(cells.conventional.atoms) <= 150:
                assert brute_force_width(lattice).min() <= width + 1e-6
    mapped = vectors @ cells.rotations.transpose(0, 2, 1) @ np.linalg.inv(vectors)
    np.testing.assert_allclose(mapped, np.rint(mapped), atol=1e-6)


@pytest.mark.parametrize("name", CRYSTALS)
def test_the_supercell_does_not_depend_on_the_cell_given(name):
    counts = set()
    start = CRYSTALS[name]
    rotated = start * (2, 1, 1)
    rotated.rotate(33, (1, 2, 3), rotate_cell=True)
    for atoms in (start, Cells.of(start, 0.01).conventional.atoms, rotated):
        cells = Cells.of(atoms, 0.01)
        matrix, _ = choose(cells, Request(), 6.0)
        spread = sorted(widths(matrix @ cells.primitive.atoms.cell[:]).round(6))
        counts.add((round(np.linalg.det(matrix)), *spread))
    assert len(counts) == 1


def test_explicit_supercells_are_of_the_input_cell():
    cubic = Cells.of(bulk("Si", a=5.465, cubic=True), 0.01)
    matrix, warnings = choose(cubic, parse("2,2,2"), 6.0)
    np.testing.assert_allclose(
        matrix @ cubic.primitive.atoms.cell[:], 2 * cubic.input.atoms.cell[:], atol=1e-9
    )
    assert "less than twice the cutoff" in warnings[0]
    matrix, _ = choose(cubic, parse("0 1 1 1 0 1 1 1 0"), 1.0)
    assert round(np.linalg.det(matrix)) == 8  # twice the conventional cell of four


def test_lost_symmetry_is_told():
    _, warnings = choose(Cells.of(CRYSTALS["Si"], 0.01), parse("5,5,6"), 6.0)
    assert any("less symmetry" in w for w in warnings)


def test_many_atoms_are_told():
    _, warnings = choose(Cells.of(CRYSTALS["Cu"], 0.01), Request(), 6.0)
    assert "max-atoms=300" in warnings[0]


def test_a_limit_below_the_smallest_cell_is_refused():
    with pytest.raises(InputError, match="max-atoms=1"):
        choose(Cells.of(CRYSTALS["Si"], 0.01), parse("max-atoms=1"), 6.0)
