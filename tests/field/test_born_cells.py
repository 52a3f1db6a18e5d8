"""BORN files of another cell of the same crystal, and the sizes of what their charges break."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.spacegroup import crystal

from dpa3sim.common.errors import InputError
from dpa3sim.protocols.crystals.cells import Cells
from dpa3sim.protocols.harmonics import born
from dpa3sim.protocols.harmonics.force_constants import new_phonopy

MGO = bulk("MgO", "rocksalt", a=4.255)
# Cubic perovskite: the tensor of an oxygen is larger along its bond to titanium.
PEROVSKITE = Atoms(
    "BaTiO3",
    scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
    cell=[4.0] * 3,
    pbc=True,
)
PEROVSKITE_CHARGES = [
    np.eye(3) * 2.7,
    np.eye(3) * 7.3,
    *(np.diag([-2.15 - 3.55 * (k == axis) for k in range(3)]) for axis in (2, 1, 0)),
]


def read_for(atoms, tensors, tmp_path, epsilon=5.0):
    lines = [" ".join(f"{v:.8f}" for v in np.ravel(t)) for t in (np.eye(3) * epsilon, *tensors)]
    file = tmp_path / "BORN"
    file.write_text("\n".join(["default value", *lines]) + "\n")
    unit = Cells.of(atoms, 0.01).primitive
    primitive = new_phonopy(unit.atoms, np.eye(3, dtype=int), 0.01).primitive
    return born.read(str(file), unit, primitive, 0.01)


@pytest.mark.parametrize("copies", [4, 8, 27])
def test_a_larger_cell_of_a_primitive_structure(tmp_path, copies):
    tensors = [np.eye(3) * 2, -np.eye(3) * 2]
    for listed in (np.repeat(tensors, copies, axis=0), np.tile(tensors, (copies, 1, 1))):
        found = read_for(MGO, listed, tmp_path)
        np.testing.assert_allclose(found.charges, tensors)
        assert any(f"{2 * copies} atoms" in w for w in found.warnings)


def test_a_conventional_cell_of_fluorite(tmp_path):
    atoms = bulk("CaF2", "fluorite", a=5.46)
    tensors = [np.eye(3) * 2.4] * 4 + [-np.eye(3) * 1.2] * 8
    found = read_for(atoms, tensors, tmp_path)
    np.testing.assert_allclose(found.charges, [np.eye(3) * z for z in (2.4, -1.2, -1.2)])


@pytest.mark.parametrize("order", ["each atom", "the cell", "by element"])
def test_anisotropic_tensors_are_assigned_by_their_symmetry(tmp_path, order):
    charges = np.array(PEROVSKITE_CHARGES)
    listed = {
        "each atom": np.repeat(charges, 2, axis=0),
        "the cell": np.tile(charges, (2, 1, 1)),
        "by element": np.concatenate(
            [np.tile(charges[k], (2, 1, 1)) for k in ([0], [1], [2, 3, 4])]
        ),
    }[order]
    found = read_for(PEROVSKITE, listed, tmp_path)
    np.testing.assert_allclose(found.charges, charges, atol=1e-6)


def test_tensors_of_another_order_are_refused_with_a_way_out(tmp_path):
    rng = np.random.default_rng(1)
    listed = np.repeat(PEROVSKITE_CHARGES, 2, axis=0)[rng.permutation(10)]
    with pytest.raises(InputError, match="pass the structure whose atoms they belong to") as error:
        read_for(PEROVSKITE, listed, tmp_path)
    assert "\n" not in str(error.value)


def test_tensors_in_turned_axes_are_refused(tmp_path):
    """A hexagonal crystal, the tensors with their unique axis along x."""
    atoms = crystal(
        ["Ga", "N"], [(1 / 3, 2 / 3, 0), (1 / 3, 2 / 3, 0.376)], spacegroup=186,
        cellpar=[3.19, 3.19, 5.19, 90, 90, 120],
    )  # fmt: skip
    along = [np.diag([2.6, 2.6, 3.0])] * 4 + [-np.diag([2.6, 2.6, 3.0])] * 4
    np.testing.assert_allclose(
        read_for(atoms, along, tmp_path).charges, np.array(along)[[0, 1, 4, 5]]
    )
    with pytest.raises(InputError, match="do not have the symmetry"):
        read_for(atoms, [np.diag(np.diag(t)[::-1]) for t in along], tmp_path)


@pytest.mark.parametrize(("error", "warned"), [(0.0, False), (0.03, False), (0.2, True)])
def test_the_size_of_a_broken_sum_rule_is_told(tmp_path, error, warned):
    tensors = [np.eye(3) * (2 + error), -np.eye(3) * (2 - error)]
    found = read_for(MGO, tensors, tmp_path)
    assert found.to_dict()["born_sum_rule_error_per_atom_e"] == pytest.approx(error, abs=1e-7)
    assert found.to_dict()["born_site_symmetry_error_e"] == pytest.approx(0, abs=1e-7)
    assert any("acoustic sum rule" in w for w in found.warnings) == warned


def test_the_size_of_a_broken_symmetry_is_told(tmp_path):
    tensors = [np.diag([2.0, 2.0, 2.03]), -np.diag([2.0, 2.0, 2.03])]
    found = read_for(MGO, tensors, tmp_path).to_dict()
    assert found["born_sum_rule_error_per_atom_e"] == pytest.approx(0, abs=1e-7)
    # The mean is 2.01.
    assert found["born_site_symmetry_error_e"] == pytest.approx(0.02, abs=1e-6)
