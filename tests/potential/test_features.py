"""What the last layer reads of each atom: the energies are linear in it."""

import numpy as np
import pytest
from ase.build import bulk, molecule
from tests_support import MODELS, load_small, structures_with_inputs

from dpa3sim import Potential
from dpa3sim.model.weights import FITTING_LAYERS


def last_layer(potential):
    """Matrix and bias of the last layer, and the number of the one before."""
    name = f"{FITTING_LAYERS}.{len(potential.model.config.fitting.neuron)}"
    weights = potential.model.weights
    return weights[f"{name}.matrix"][:, 0], float(weights[f"{name}.bias"][0])


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_energies_are_linear_in_features(path):
    potential = load_small(path)
    atoms = structures_with_inputs()
    matrix, bias = last_layer(potential)
    config, weights = potential.model.config, potential.model.weights
    own = weights["fitting_net.bias_atom_e"][:, 0] + weights["out_bias"][0, :, 0]
    results = zip(potential.evaluate(atoms), potential.features(atoms), atoms, strict=True)
    for found, features, one in results:
        types = potential.system(one).types
        included = np.array([t not in config.atom_exclude_types for t in types])
        assert not features[~included].any()
        constant = 0.0 if config.fitting.subtract_vacuum else bias
        expected = (features @ matrix + constant + own[types]) * included
        np.testing.assert_allclose(found.energies, expected, rtol=0, atol=1e-11)


def test_features_do_not_depend_on_how_a_structure_is_given():
    potential = Potential(dtype="float64")
    crystal = bulk("NaCl", "rocksalt", 5.6)
    crystal.rattle(0.1, seed=1)
    water = molecule("H2O")
    one, other = potential.features([crystal, water])
    assert one.shape == (2, potential.model.config.fitting.neuron[-1])
    turned = crystal.copy()
    turned.rotate(31.0, (1, 2, 3), rotate_cell=True)
    turned.translate([0.3, -1.0, 0.2])
    order = [2, 0, 1]
    found = potential.features([crystal * (1, 2, 1), turned, water[order]])
    np.testing.assert_allclose(found[0], np.concatenate([one, one]), rtol=0, atol=1e-9)
    np.testing.assert_allclose(found[1], one, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found[2], other[order], rtol=0, atol=1e-9)
