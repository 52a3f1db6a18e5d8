"""The ASE calculator: properties, units, when it computes again, and its errors."""

from dataclasses import replace
from enum import Enum

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_stress
from ase.db import connect
from ase.io import read, write
from tests_support import DATA

from dpa3sim import DPA3Calculator, Potential, load_model
from dpa3sim.common.errors import Dpa3simWarning, InputError, NonFiniteError


@pytest.fixture
def calculator(embedded64):
    return DPA3Calculator(embedded64)


@pytest.fixture
def silicon(calculator):
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.calc = calculator
    return atoms


def test_all_properties_and_their_units(silicon, embedded64):
    result = embedded64.evaluate([silicon])[0]
    assert silicon.get_potential_energy() == result.energy
    assert silicon.get_potential_energy(force_consistent=True) == result.energy
    np.testing.assert_array_equal(silicon.get_potential_energies(), result.energies)
    np.testing.assert_array_equal(silicon.get_forces(), result.forces)
    np.testing.assert_array_equal(silicon.calc.get_property("virial", silicon), result.virial)
    volume = silicon.get_volume()
    np.testing.assert_allclose(
        silicon.get_stress(voigt=False), -(result.virial + result.virial.T) / 2 / volume
    )


@pytest.mark.parametrize("name", ["a.traj", "a.extxyz", "a.json"])
def test_results_can_be_written_and_read_by_ase(silicon, name, tmp_path):
    silicon.get_stress()
    write(tmp_path / name, silicon)
    again = read(tmp_path / name)
    assert again.get_potential_energy() == pytest.approx(silicon.get_potential_energy(), abs=1e-7)
    np.testing.assert_allclose(again.get_forces(), silicon.get_forces(), atol=1e-7)
    assert "virial" not in silicon.calc.export_properties()


def test_results_that_are_not_finite_are_an_error():
    model = load_model(DATA / "variants/act_softplus/model.pt")
    huge = ("layers.0.node_self_mlp.matrix", "networks.0.layers.0.matrix")
    weights = {k: v * (1e200 if k.endswith(huge) else 1) for k, v in model.weights.items()}
    potential = Potential(replace(model, weights=weights))
    with pytest.raises(NonFiniteError, match="not finite"):
        potential.evaluate([molecule("H2O")])
    with pytest.raises(NonFiniteError, match=r"structure 0: .*not finite"):
        potential.evaluate([molecule("H2O"), molecule("H2")])


def test_says_which_model_it_took(caplog):
    DPA3Calculator()
    assert caplog.messages == [
        "no model was named, using the embedded one: "
        "dpa3-openlam, head MP_traj_v024_alldata_mixu; float32 on cpu"
    ]
    caplog.clear()
    DPA3Calculator("dpa3-openlam")
    assert caplog.messages == []


def test_stress_is_the_derivative_that_ase_takes_it_for(silicon):
    expected = calculate_numerical_stress(silicon, 1e-5)
    np.testing.assert_allclose(silicon.get_stress(), expected, atol=1e-9)


def test_compression_pushes_outwards(calculator):
    atoms = bulk("Si", a=5.0, cubic=True)
    atoms.calc = calculator
    assert (atoms.get_stress()[:3] < 0).all()  # ASE: negative = under pressure
    assert np.trace(calculator.get_property("virial", atoms)) > 0


def test_recomputes_only_when_something_relevant_changed(silicon, monkeypatch):
    calls = []
    evaluate = Potential.evaluate
    monkeypatch.setattr(Potential, "evaluate", lambda self, s: calls.append(1) or evaluate(self, s))
    silicon.get_forces()
    silicon.get_stress()
    silicon.get_potential_energy()
    assert len(calls) == 1
    irrelevant = [
        lambda a: a.set_initial_charges([0.1] * len(a)),
        lambda a: a.set_initial_magnetic_moments([1.0] * len(a)),
        lambda a: a.set_velocities(np.ones((len(a), 3))),
        lambda a: a.set_tags(1),
        lambda a: a.info.update(comment="something else"),
    ]
    for change in irrelevant:
        change(silicon)
        silicon.get_forces()
    assert len(calls) == 1
    relevant = [
        lambda a: a.positions.__setitem__((0, 0), a.positions[0, 0] + 1e-12),
        lambda a: a.set_cell(a.cell[:] * 1.001),
        lambda a: a.set_pbc((True, True, False)),
        lambda a: a.numbers.__setitem__(0, 6),
        lambda a: a.info.update(charge_spin=(0, 1)),
    ]
    for number, change in enumerate(relevant, start=2):
        change(silicon)
        silicon.get_forces()
        assert len(calls) == number


def test_the_cell_of_a_molecule_does_not_matter(calculator, monkeypatch):
    atoms = molecule("H2O")
    atoms.calc = calculator
    energy = atoms.get_potential_energy()
    monkeypatch.setattr(Potential, "evaluate", None)  # a second evaluation would fail
    atoms.cell = [10, 10, 10]
    assert atoms.get_potential_energy() == energy


def test_stress_needs_periodicity(calculator):
    atoms = molecule("H2O", vacuum=5.0)
    atoms.calc = calculator
    assert atoms.get_forces().shape == (3, 3)
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()


def test_stress_of_a_slab_counts_its_vacuum(calculator):
    slab = fcc111("Al", (1, 1, 3), a=4.2, vacuum=6.0)
    slab.pbc = (True, True, False)
    slab.calc = calculator
    stress = slab.get_stress()
    thicker = slab.copy()
    thicker.center(vacuum=12.0, axis=2)
    thicker.calc = calculator
    ratio = thicker.get_volume() / slab.get_volume()
    np.testing.assert_allclose(thicker.get_stress() * ratio, stress, atol=1e-10)


def test_charge_and_spin_from_info():
    calculator = DPA3Calculator(DATA / "models/charge_spin/model.pt")
    atoms = molecule("H2O")
    atoms.calc = calculator
    default = atoms.get_potential_energy()  # charge 1, spin 2
    atoms.info["charge_spin"] = [-1, 3]
    charged = atoms.get_potential_energy()
    assert charged != default
    atoms.info = {"charge": -1, "spin": 3}
    assert atoms.get_potential_energy() == charged
    atoms.info = {"charge_spin": [1, 2]}
    assert atoms.get_potential_energy() == default


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([0.5, 1], "whole numbers"),
        ([200, 1], "charge 200 is outside"),
        ([0, -1], "spin -1 is outside"),
        ([0], "2"),
        (["a", 1], "not numeric"),
        ([np.nan, 1], "NaN"),
    ],
)
def test_bad_charge_and_spin(value, message):
    atoms = molecule("H2O")
    atoms.calc = DPA3Calculator(DATA / "models/charge_spin/model.pt")
    atoms.info["charge_spin"] = value
    with pytest.raises(InputError, match=message):
        atoms.get_potential_energy()


def test_missing_frame_parameters():
    atoms = molecule("H2O")
    atoms.calc = DPA3Calculator(DATA / "variants/fparam_aparam/model.pt")
    with pytest.raises(InputError, match="this model needs fparam"):
        atoms.get_potential_energy()
    atoms.info["fparam"] = [0.0, 1.0]
    with pytest.raises(InputError, match="this model needs aparam"):
        atoms.get_potential_energy()
    atoms.info["aparam"] = np.zeros((2, 1))
    with pytest.raises(InputError, match="aparam has 2 values"):
        atoms.get_potential_energy()
    atoms.arrays["aparam"] = np.zeros((3, 1))
    assert np.isfinite(atoms.get_potential_energy())


def test_unknown_elements(calculator):
    atoms = Atoms("XH", [[0, 0, 0], [0, 0, 1]], calculator=calculator)
    with pytest.raises(InputError, match=r"unknown element 'X' \(atom 0\).* H \.\.\. Og"):
        atoms.get_potential_energy()
    atoms = molecule("CH4")
    atoms.calc = DPA3Calculator(DATA / "models/dynamic/model.pt")
    with pytest.raises(InputError, match=r"unknown element 'C' \(atom 0\).* knows O, H"):
        atoms.get_potential_energy()


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms(), "no atoms"),
        (Atoms("H2", [[0, 0, 0], [0, 0, 0.05]]), "atoms 0 and 1 overlap"),
        (Atoms("H", [[0, 0, np.nan]]), "not finite"),
        (Atoms("H", cell=[[1, 0, 0], [2, 0, 0], [0, 0, 3]], pbc=True), "singular"),
        (Atoms("H", pbc=True), "periodic along a"),
    ],
)
def test_structures_without_an_answer(calculator, atoms, message):
    atoms.calc = calculator
    with pytest.raises(InputError, match=message):
        atoms.get_potential_energy()


def test_recovers_after_an_error(calculator):
    atoms = molecule("H2O")
    atoms.calc = calculator
    energy = atoms.get_potential_energy()
    good = atoms.positions.copy()
    atoms.positions[1] = atoms.positions[0]
    with pytest.raises(InputError):
        atoms.get_potential_energy()
    atoms.positions = good
    assert atoms.get_potential_energy() == energy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "float16"}, "dtype"),
        ({"truncate": "some"}, "truncate"),
        ({"device": "abacus"}, "device 'abacus'"),
        ({"device": "cuda:77"}, "device"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        DPA3Calculator(DATA / "models/dynamic/model.pt", **arguments)


def test_options_that_a_loaded_model_cannot_follow(smooth):
    with pytest.raises(InputError, match="in the Potential"):
        DPA3Calculator(smooth, dtype="float32")
    with pytest.raises(InputError, match="head 'Omat24' asked for"):
        Potential(smooth.model, head="Omat24")


def test_warns_of_unseen_elements_and_of_truncation():
    potential = Potential()
    with pytest.warns(Dpa3simWarning, match="never saw Po in training"):
        result = potential.evaluate([bulk("Po", "sc", a=3.3)])[0]
    assert len(result.warnings) == 1
    diamond = bulk("C", cubic=True)
    with pytest.warns(Dpa3simWarning, match="selection limit"):
        result = potential.evaluate([diamond])[0]
    assert result.n_cut_edges == 8 * (158 - 120)
    assert result.n_cut_angle_edges == 8 * (46 - 30)
    assert Potential(truncate="none").evaluate([diamond])[0].warnings == ()


def test_truncate_none_keeps_the_symmetry_of_a_perfect_crystal():
    """The limits cut inside a shell: docs/model.md#ties-at-the-selection-limit."""
    diamond = bulk("C", cubic=True)
    cut = Potential(dtype="float64").evaluate([diamond])[0]
    whole = Potential(dtype="float64", truncate="none").evaluate([diamond])[0]
    assert np.abs(whole.forces).max() < 1e-10
    assert np.abs(cut.forces).max() > 1e-4


def test_batch_errors_name_the_structure(embedded):
    with pytest.raises(InputError, match=r"structure 1: .*no atoms"):
        embedded.evaluate([molecule("H2O"), Atoms()])
    assert embedded.evaluate([]) == []


class Device(Enum):
    CPU = "cpu"


def test_keywords_that_other_tools_pass():
    path = DATA / "models/dynamic/model.pt"
    calculator = DPA3Calculator(path, default_dtype="float32", device=Device.CPU)
    assert (calculator.potential.dtype, str(calculator.potential.device)) == ("float32", "cpu")
    assert DPA3Calculator(path, dtype="float32", default_dtype="float32").potential.dtype
    assert DPA3Calculator(path, device=torch.device("cpu")).potential.device.type == "cpu"
    with pytest.raises(
        InputError, match=r"dtype = 'float32' and default_dtype = 'float64' are two"
    ):
        DPA3Calculator(path, dtype="float32", default_dtype="float64")
    with pytest.raises(InputError, match="dtype"):
        DPA3Calculator(path, default_dtype="half")
    with pytest.raises(TypeError, match="verbose"):
        DPA3Calculator(path, verbose=True)


def test_parameters_are_a_dict_that_others_may_write_to(tmp_path):
    heads = DATA / "models/multitask/model.pt"
    calculator = DPA3Calculator(heads, head="Omat24", dtype="float32")
    assert type(calculator.parameters) is dict
    assert calculator.parameters == {"model": "model", "head": "Omat24", "dtype": "float32"}
    calculator.parameters["version"] = "1"
    assert calculator.todict()["version"] == "1"
    atoms = molecule("H2O")
    atoms.calc = calculator
    atoms.get_potential_energy()
    with connect(tmp_path / "a.db") as database:
        database.write(atoms)
        assert database.get(1).calculator_parameters == calculator.parameters
