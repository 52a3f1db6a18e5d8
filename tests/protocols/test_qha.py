"""Grüneisen parameters and the quasi-harmonic approximation: measured values, consistency."""

import csv
import json
from pathlib import Path

import matplotlib.image
import numpy as np
import phonopy
import pytest
from ase.build import bulk, molecule
from ase.io import write

from dpa3sim.cli.main import main
from dpa3sim.common.errors import InputError, UnphysicalError
from dpa3sim.protocols import gruneisen, qha
from dpa3sim.protocols.crystals import prepare
from dpa3sim.protocols.crystals.volumes import at_volumes
from dpa3sim.protocols.gruneisen import averages
from dpa3sim.run.directory import with_units
from dpa3sim.run.store import StoredPotential

COPPER = bulk("Cu", a=3.62)
SMALL = {"supercell": "max-atoms=32", "mesh": 30.0}


@pytest.fixture(scope="module")
def copper(embedded64):
    return qha.run(COPPER, embedded64, qha.Settings(t_step=20.0, **SMALL))


@pytest.fixture(scope="module")
def copper_modes(embedded64):
    return gruneisen.run(COPPER, embedded64, gruneisen.Settings(**SMALL))


def at(data, key, temperature):
    return data[key][data["temperatures_K"].index(temperature)]


def test_copper(copper):
    """Measured at 300 K: expansion 49.5e-6/K, Cp 24.4 J/K/mol, bulk modulus 133 to 142 GPa."""
    data = copper.to_dict()
    assert data["temperatures_K"][0] == 0
    assert data["temperatures_K"][-1] == 1000
    assert at(data, "thermal_expansion_volumetric_per_K", 300) == pytest.approx(49.5e-6, rel=0.1)
    assert at(data, "heat_capacity_cp_per_atom_J_per_K_mol", 300) == pytest.approx(24.4, rel=0.02)
    assert at(data, "bulk_modulus_GPa", 300) == pytest.approx(136, rel=0.05)
    assert data["fit_residual_per_atom_eV"] < 5e-4
    # All volumes are one request, cut into as few batches as their size allows.
    assert data["n_batches"] <= 2
    units = with_units(data)["units"]
    assert units["thermal_expansion_volumetric_per_K"] == "1/K"
    assert units["volume_per_formula_unit_A3"] == "Å^3/formula unit"


def test_expansion_is_the_derivative_of_the_volume(copper):
    t, v = copper.temperatures, copper.equilibrium_volumes
    np.testing.assert_allclose(
        copper.expansion[2:-1], (np.gradient(v, t) / v)[2:-1], rtol=1e-3, atol=1e-9
    )
    assert (np.diff(v)[2:] > 0).all()
    assert (np.diff(copper.bulk_moduli)[2:] < 0).all()
    # Cp - Cv = T V B alpha^2 > 0
    assert copper.heat_capacities[-1] > 3 * 8.314


def test_the_static_part_is_an_equation_of_state(copper):
    """The grid is one of volumes, and its energies have their minimum at the relaxed crystal."""
    static = copper.prepared.cells.primitive.atoms.cell.volume
    expected = static * np.linspace(0.97, 1.06, 7)
    np.testing.assert_allclose(copper.volumes, expected, rtol=1e-6)
    coefficients = np.polyfit(copper.volumes / static - 1, copper.energies, 4)
    slopes = np.roots(np.polyder(coefficients))
    assert min(abs(slopes.real)) < 2e-3
    # Zero-point motion and heat expand the crystal.
    assert copper.equilibrium_volumes[0] > static


def test_two_ways_to_the_expansion_agree(copper, copper_modes):
    """alpha = gamma Cv / (V B), Grüneisen's relation, at a low temperature."""
    t = 200.0
    row = copper.temperatures.tolist().index(t)
    gamma = np.interp(t, copper_modes.temperatures, copper_modes.averages)
    crystal = copper_modes.crystals[0].phonon
    found = crystal.run_thermal_properties(temperatures=[t], exclude_gamma_acoustic=True)
    capacity = found.heat_capacity[0] / 6.02214076e23
    volume = crystal.primitive.volume * 1e-30
    modulus = copper.bulk_moduli[row] * 1e9
    assert gamma * capacity / (volume * modulus) == pytest.approx(copper.expansion[row], rel=0.12)


def test_mode_parameters_are_logarithmic_derivatives(copper_modes):
    """Compared at L with frequencies at the two volumes."""
    start, smaller, larger = (c.phonon for c in copper_modes.crystals)
    q = copper_modes.path.coordinates(start.primitive.cell)["L"]
    low, mid, high = (p.run_qpoints([q]).frequencies[0] for p in (smaller, start, larger))
    by_hand = -(high - low) / (2 * copper_modes.settings.strain * mid)
    for segment, values, bands in zip(
        copper_modes.path.segments,
        copper_modes.band_parameters,
        copper_modes.bands,
        strict=True,
    ):
        if segment[1] == "L":
            order = np.argsort(bands[-1])
            np.testing.assert_allclose(values[-1][order], by_hand, rtol=2e-3)
            return
    raise AssertionError("no line ends at L")


def test_copper_modes(copper_modes):
    """Measured: 1.96 to 2.0."""
    data = copper_modes.to_dict()
    assert at(data, "gruneisen_average", 300) == pytest.approx(2.0, abs=0.3)
    assert data["frequencies_gamma_optical_THz"] == []
    assert data["gruneisen_lowest"] < at(data, "gruneisen_average", 300) < data["gruneisen_highest"]


def test_the_optical_mode_of_silicon(embedded64):
    """Against frequencies at two volumes; the same for three degenerate modes."""
    settings = gruneisen.Settings(supercell="2,2,2", mesh=20.0)
    data = gruneisen.run(bulk("Si", a=5.465), embedded64, settings).to_dict()
    values = data["gruneisen_gamma_optical"]
    assert len(values) == 3
    assert values == pytest.approx([values[0]] * 3, rel=1e-4)
    frequencies = []
    for strain in (-0.01, 0.01):
        atoms = bulk("Si", a=5.46507 * (1 + strain) ** (1 / 3))
        hessian = embedded64.hessian(atoms, [0])
        frequencies.append(np.sqrt(2 * hessian[0, 0] / 28.0855) * 15.633302)
    by_hand = -(frequencies[1] - frequencies[0]) / (0.02 * np.mean(frequencies))
    assert values[0] == pytest.approx(by_hand, rel=0.01)


def test_averages_weigh_by_heat_capacity():
    """At high temperature all modes count alike, at low temperature only the slow ones."""
    frequencies = np.array([[1.0, 10.0]])
    parameters = np.array([[2.0, 1.0]])
    cold, hot = averages(np.array([5.0, 1e5]), frequencies, parameters, np.array([4]))
    assert cold == pytest.approx(2.0, abs=1e-6)
    assert hot == pytest.approx(1.5, abs=1e-4)
    with_nan = np.array([[2.0, np.nan]])
    assert averages(np.array([300.0]), frequencies, with_nan, np.array([4])) == pytest.approx(2.0)


def test_volumes_are_kept_and_shapes_relaxed(embedded64):
    """Hexagonal titanium: the ratio c/a changes with the volume, the stress becomes isotropic."""
    settings = gruneisen.Settings()
    prepared = prepare.prepare(bulk("Ti", a=2.93, c=4.65), embedded64, settings, "x")
    start = prepared.cells.primitive.atoms
    cells, energies = at_volumes(prepared, (-0.04, 0.04), settings)
    for strain, cell in zip((-0.04, 0.04), cells, strict=True):
        assert cell.cell.volume == pytest.approx(start.cell.volume * (1 + strain), rel=1e-6)
    ratios = [c.cell.cellpar()[2] / c.cell.cellpar()[0] for c in (start, *cells)]
    assert np.ptp(ratios) > 1e-4
    for result, cell, energy in zip(embedded64.evaluate(cells), cells, energies, strict=True):
        stress = result.virial / cell.get_volume() * 160.21766
        assert np.ptp(np.diag(stress)) < 0.02
        assert result.energy == pytest.approx(energy, abs=1e-8)


@pytest.mark.slow
def test_nothing_is_extrapolated(embedded64):
    settings = qha.Settings(largest=0.025, t_step=50.0, **SMALL)
    data = qha.run(COPPER, embedded64, settings).to_dict()
    assert data["temperatures_K"][-1] < 1000
    assert max(data["volume_per_atom_A3"]) < max(data["grid_volumes_per_atom_A3"])
    assert any("leaves the grid" in w for w in data["warnings"])
    with pytest.raises(UnphysicalError, match="outside the grid"):
        qha.run(COPPER, embedded64, qha.Settings(smallest=0.05, largest=0.1, **SMALL))


@pytest.mark.slow
def test_pressure_makes_it_smaller(embedded64, copper):
    settings = qha.Settings(pressure=3.0, t_step=20.0, **SMALL)
    pressed = qha.run(COPPER, embedded64, settings)
    ratio = pressed.equilibrium_volumes[15] / copper.equilibrium_volumes[15]
    # -3 GPa / B to first order.
    assert ratio == pytest.approx(1 - 3.0 / copper.bulk_moduli[15], abs=3e-3)


def test_an_unstable_crystal_ends_it(embedded64):
    for module in (gruneisen, qha):
        settings = module.Settings(supercell="2,2,2", mesh=20.0)
        with pytest.raises(UnphysicalError, match="unstable"):
            module.run(bulk("Ti", "bcc", a=3.25), embedded64, settings)


def test_rough_free_energies_are_told(embedded64):
    """Silicon's second shell is where this model's angles are switched off, 3.5 to 4 Å."""
    settings = qha.Settings(supercell="2,2,2", mesh=20.0)
    result = qha.run(bulk("Si", a=5.465), embedded64, settings)
    assert any("do not depend smoothly" in w for w in result.warnings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"volumes": 4}, "at least 5"),
        ({"smallest": 0.05, "largest": 0.01}, "ascending"),
        ({"t_max": 10.0}, "two steps"),
        ({"eos": "vnet"}, "did you mean 'vinet'"),
        ({"supercell": "huge"}, "is not one of: auto"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        qha.Settings(**options)


def test_molecules_are_refused(embedded64):
    for module in (gruneisen, qha):
        with pytest.raises(InputError, match="need a crystal"):
            module.run(molecule("H2O"), embedded64)


def test_resumed_is_the_same(embedded64, tmp_path):
    results = []
    for _ in range(2):
        with StoredPotential(embedded64, tmp_path / "s") as stored:
            settings = gruneisen.Settings(supercell="2,1,1", mesh=15.0)
            results.append(gruneisen.run(COPPER, stored, settings).to_dict())
            computed = stored.statistics.computed
    assert results[0] == results[1]
    assert computed == 0


def test_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write("Cu.vasp", COPPER, format="vasp")
    options = ["--supercell", "2,2,2", "--mesh", "20", "--t-step", "50"]
    assert main(["qha", "Cu.vasp", *options]) == 0
    assert "bulk modulus" in capsys.readouterr().out
    result = json.loads(Path("Cu.qha/result.json").read_text())
    with open("Cu.qha/quasi_harmonic.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["bulk_modulus_GPa"]) for r in rows] == pytest.approx(result["bulk_modulus_GPa"])
    assert len(rows) == len(result["temperatures_K"])
    loaded = phonopy.load("Cu.qha/phonopy_06.yaml", force_sets_filename="Cu.qha/FORCE_SETS_06")
    assert loaded.primitive.volume == pytest.approx(result["grid_volumes_per_atom_A3"][6], rel=1e-5)
    assert main(["gruneisen", "Cu.vasp", *options]) == 0
    assert "mean at 300 K" in capsys.readouterr().out
    for picture in ("Cu.qha/quasi_harmonic", "Cu.qha/free_energy_volume", "Cu.gruneisen/gruneisen"):
        assert matplotlib.image.imread(f"{picture}.png").std() > 0.05
        assert Path(f"{picture}.svg").exists()
    assert main(["qha", "Cu.vasp", "--volumes", "3", "--out", "x"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not Path("x").exists()
