"""Equation of state: fits, volumes, relaxation at constant volume, no extrapolation."""

import json

import numpy as np
import pytest
from ase import eos as ase_eos
from ase.build import bulk, molecule
from ase.io import read
from tests_support import EXAMPLES

from dpa3sim.common.errors import InputError, NotConvergedError
from dpa3sim.protocols import elastic, eos
from dpa3sim.protocols.crystals.equations_of_state import EQUATIONS, Fit, fit_equation
from dpa3sim.protocols.eos import Settings
from dpa3sim.run.store import StoredPotential

GPA = 1 / 160.21766208
FUNCTIONS = {
    "vinet": ase_eos.vinet,
    "birch-murnaghan": ase_eos.birchmurnaghan,
    "murnaghan": ase_eos.murnaghan,
}


@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("energy", [-5.0, -30000.0])
def test_fits_recover_their_own_equation(equation, energy):
    volumes = 12 * np.linspace(0.94, 1.06, 9)
    energies = FUNCTIONS[equation](volumes, energy, 140 * GPA, 5.2, 11.9)
    fit = fit_equation(equation, volumes, energies)
    assert isinstance(fit, Fit)
    assert fit.volume == pytest.approx(11.9, rel=1e-5)
    assert fit.energy == pytest.approx(energy, abs=1e-6)
    assert fit.bulk_modulus == pytest.approx(140, rel=1e-3)
    assert fit.derivative == pytest.approx(5.2, rel=1e-2)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_the_parameters_mean_what_their_names_say(equation):
    """V0, B0 and B0' as derivatives of E(V), numerically."""
    fit = Fit(equation, -3.0, 12.0, 150.0, 4.5, (0.0,) * 4, 0.0)
    h = 0.02
    v = 12.0 + h * np.arange(-2, 3)
    p = fit.pressure_at(v)
    assert p[2] == pytest.approx(0, abs=1e-4)
    modulus = -v * np.gradient(p, v, edge_order=2)
    assert modulus[2] == pytest.approx(150.0, rel=1e-4)
    assert (modulus[3] - modulus[1]) / (p[3] - p[1]) == pytest.approx(4.5, rel=1e-2)


def test_errors_cover_noise():
    rng = np.random.default_rng(0)
    volumes = 12 * np.linspace(0.94, 1.06, 9)
    exact = ase_eos.vinet(volumes, -5.0, 140 * GPA, 5.2, 11.9)
    pulls = []
    for _ in range(60):
        fit = fit_equation("vinet", volumes, exact + 1e-4 * rng.normal(size=9))
        pulls.append((fit.bulk_modulus - 140) / fit.errors[2])
    assert 0.6 < np.sqrt(np.mean(np.square(pulls))) < 1.8


def test_a_minimum_outside_is_no_result():
    volumes = 12 * np.linspace(0.94, 1.06, 9)
    energies = ase_eos.vinet(volumes, -5.0, 140 * GPA, 5.2, 13.0)
    assert "outside the volumes" in fit_equation("vinet", volumes, energies)
    assert "curves downwards" in fit_equation("vinet", volumes, -((volumes - 12) ** 2))


def test_copper(embedded64):
    """The bulk modulus is that of the elastic constants; volumes are volumes."""
    result = eos.run(bulk("Cu", cubic=True), embedded64)
    assert result.converged
    data = result.to_dict()
    shares = result.volumes / result.prepared.atoms.get_volume() * 4
    np.testing.assert_allclose(shares, 1 + np.linspace(-0.06, 0.06, 9), rtol=1e-9)
    hill = elastic.run(bulk("Cu"), embedded64).moduli.bulk[2]
    assert data["bulk_modulus_GPa"] == pytest.approx(hill, rel=0.01)
    assert data["volume_per_cell_A3"] == pytest.approx(4 * data["volume_per_atom_A3"])
    assert data["volume_per_atom_A3"] == pytest.approx(
        result.prepared.atoms.get_volume() / 4, rel=1e-3
    )
    assert data["pressure_deviation_GPa"] < 0.1
    moduli = [fit["bulk_modulus_GPa"] for fit in data["fits"].values()]
    assert moduli == pytest.approx([moduli[0]] * 3, rel=0.01)


def test_cells_of_a_crystal_have_one_equation(embedded64):
    settings = Settings(points=6, relax=False)
    results = [
        eos.run(atoms, embedded64, settings).to_dict()
        for atoms in (bulk("MgO", "rocksalt", 4.25), bulk("MgO", "rocksalt", 4.25, cubic=True))
    ]
    for key in ("bulk_modulus_GPa", "volume_per_atom_A3", "energy_per_formula_unit_eV"):
        assert results[0][key] == pytest.approx(results[1][key], rel=1e-4)
    assert results[1]["volume_per_cell_A3"] == pytest.approx(
        4 * results[0]["volume_per_cell_A3"], rel=1e-4
    )


def test_shape_and_ions_relax_at_constant_volume(embedded64):
    settings = Settings(points=6, fmax=1e-3, smax=0.02)
    result = eos.run(read(EXAMPLES / "GaN.vasp"), embedded64, settings)
    ratios = []
    for atoms in result.structures:
        stress = atoms.get_stress(voigt=False) / GPA
        assert np.abs(stress - np.trace(stress) / 3 * np.eye(3)).max() <= 0.02
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() <= 1e-3
        lengths = atoms.cell.lengths()
        ratios.append(lengths[2] / lengths[0])
    assert np.ptp(ratios) > 1e-3


def test_few_batches(embedded64, tmp_path):
    with StoredPotential(embedded64, tmp_path / "s") as stored:
        result = eos.run(bulk("Cu"), stored)
        relaxation = result.prepared.relaxation.steps[-1].index + 1
        # All volumes at once, and two for the guards at most.
        assert stored.statistics.batches <= relaxation + 3


def test_not_relaxed_and_far_from_the_minimum_is_not_converged(embedded64):
    result = eos.run(bulk("Cu", a=3.4), embedded64, Settings(relax=False, points=6))
    assert not result.converged
    assert "outside the volumes" in result.reasons[0]
    assert "bulk_modulus_GPa" not in result.to_dict()


def test_a_relaxation_that_fails_closes_the_way(embedded64):
    with pytest.raises(NotConvergedError):
        eos.run(bulk("Cu", a=3.4), embedded64, Settings(steps=1))


def test_a_step_that_the_volumes_cross_is_told(embedded64):
    result = eos.run(bulk("Al"), embedded64, Settings(points=6))
    assert any("carry it across" in warning for warning in result.warnings)
    assert any("pressures from the stress differ" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 5}, "at least 6"),
        ({"volume_range": 60.0}, "at most 50"),
        ({"equation": "hooke"}, "is not one of"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(InputError, match=message):
        Settings(**options)


def test_a_molecule_has_none(embedded64):
    with pytest.raises(InputError, match="this is a molecule"):
        eos.run(molecule("H2O"), embedded64)


def test_result_is_json_ready(embedded64):
    data = eos.run(bulk("Cu"), embedded64, Settings(points=6)).to_dict()
    assert json.loads(json.dumps(data, allow_nan=False))["settings"]["points"] == 6
