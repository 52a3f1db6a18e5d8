"""Guards: what can spoil small differences is found, and its size is right."""

import re

import numpy as np
import pytest
from ase.build import bulk, molecule

from dpa3sim import Potential
from dpa3sim.protocols.crystals import guards


def test_aluminium_second_shell(embedded64):
    """At 4.04 Å: out of reach of half a percent, within that of two."""
    atoms = bulk("Al", a=4.04)
    (near,) = guards.check(atoms, embedded64, strain=0.005)
    assert "Al-Al at 4.0400 Å" in near
    assert "stays on one side" in near
    (crossed,) = guards.check(atoms, embedded64, strain=0.02)
    assert "carry it across" in crossed
    (moved,) = guards.check(atoms, embedded64, displacement=0.03)
    assert "carry it across" in moved


def test_rock_salt(embedded64):
    (warning,) = guards.check(bulk("NaCl", "rocksalt", a=5.657), embedded64, strain=0.005)
    assert "Cl-Cl, Na-Na at 4.000" in warning
    assert "carry it across" in warning


def test_the_size_is_that_of_the_energy(embedded64):
    """Independently: energies along a path across the cutoff, the smooth part taken off."""
    (warning,) = guards.check(bulk("Al", a=4.04), embedded64, strain=0.02)
    told = float(re.search(r"step of ([\d.]+) meV/atom", warning).group(1))
    lattice = 4.0 + np.array([-3e-3, -2e-3, -1e-3, 1e-3, 2e-3, 3e-3])
    energies = 1000 * np.array(
        [r.energy for r in embedded64.evaluate([bulk("Al", a=a) for a in lattice])]
    )
    left = np.polyval(np.polyfit(lattice[:3] - 4, energies[:3], 2), 0)
    right = np.polyval(np.polyfit(lattice[3:] - 4, energies[3:], 2), 0)
    assert told == pytest.approx(abs(left - right), rel=0.01)


@pytest.mark.parametrize(("name", "a"), [("Si", 5.465), ("Cu", 3.62)])
def test_crystals_without_a_shell_there_are_silent(embedded64, name, a):
    assert guards.check(bulk(name, a=a), embedded64, strain=0.005, displacement=0.01) == []


def test_a_smooth_model_has_no_step(smooth):
    atoms = bulk("O", "fcc", 4.0)
    assert guards.check(atoms, smooth, strain=0.05) == []


@pytest.mark.parametrize(
    ("atoms", "shell"),
    [(bulk("Al", a=4.04), 4.04), (bulk("NaCl", "rocksalt", a=5.657), 5.657 / np.sqrt(2))],
    ids=["Al", "NaCl"],
)
def test_a_smoothed_step_is_none(embedded64, atoms, shell):
    """Nothing is told of what was told above, and rightly: there is no step any more."""
    smoothed = Potential(embedded64.model, dtype="float64", smooth_cutoff=0.3)
    assert guards.check(atoms, smoothed, strain=0.02, displacement=0.03) == []
    before, after = (guards._step(atoms, p, 4.0 / shell) for p in (embedded64, smoothed))
    assert before[0] > 1
    assert after[0] < 2e-3 * before[0]  # what the pressure makes of it
    assert after[1] < guards.SMALLEST_GPA


@pytest.mark.parametrize("width", [None, 0.3])
def test_truncation_is_measured(embedded64, width):
    potential = Potential(embedded64.model, dtype="float64", smooth_cutoff=width)
    warnings = guards.check(bulk("C", "diamond", a=3.57), potential)
    assert "selection limit" in warnings[0]
    assert ("still jumps" in warnings[0]) == (width is not None)
    (size,) = re.findall(r"by ([\d.]+) meV/atom", warnings[1])
    assert 0.01 < float(size) < 10


def test_molecules_charges_and_unseen_elements(embedded64):
    assert "molecule" in guards.check(molecule("CO2"), embedded64)[0]
    charged = bulk("MgO", "rocksalt", 4.25)
    charged.info["charge"] = 1
    assert "charge +1" in guards.check(charged, embedded64)[0]
    assert "never saw Po" in guards.check(bulk("Po", "sc", 3.34), embedded64)[0]
