"""What is told about training data."""

import json
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from dpa3sim.common.units import GPA
from dpa3sim.report.plots.frames import plot_histograms
from dpa3sim.structures.system import System
from dpa3sim.train.data.frames import Frame, Frames, Rejected
from dpa3sim.train.data.info import FORCE, PRESSURE, histograms, inspect_frames


def frame(atoms, energy=None, forces=None, virial=None, origin="made"):
    return Frame(System.from_atoms(atoms), energy, forces, virial, None, 1.0, origin)


def oxides(count=30):
    """Crystals, a slab and molecules of H, O and Mg, whose energies are sums of -3, -430, -1700.

    One frame is 0.5 eV/atom too high.
    """
    of_element = {1: -3.0, 8: -430.0, 12: -1700.0}
    rng = np.random.default_rng(1)
    structures = [molecule("H2O"), molecule("H2"), molecule("O2"), bulk("MgO", "rocksalt", 4.2)]
    structures.append(Atoms("MgO", [[0, 0, 0], [2.1, 0, 0]], cell=[4, 4, 9], pbc=[1, 1, 0]))
    frames = []
    for k in range(count):
        atoms = structures[k % len(structures)].copy()
        atoms.rattle(0.02, seed=k)
        energy = sum(of_element[z] for z in atoms.numbers) + 1e-3 * len(atoms) * rng.normal()
        energy += 0.5 * len(atoms) * (k == 12)
        forces = np.full((len(atoms), 3), 0.1) if k % 2 == 0 else None
        pressure = 3 * GPA
        virial = np.eye(3) * pressure * atoms.get_volume() if atoms.pbc.all() else None
        frames.append(frame(atoms, energy, forces, virial, f"o.xyz, frame {k}"))
    return Frames.from_frames(frames)


def test_contents():
    info = inspect_frames(oxides())
    assert (info.n_frames, info.n_atoms) == (30, 6 * (3 + 2 + 2 + 2 + 2))
    assert (info.sizes.minimum, info.sizes.maximum) == (2, 3)
    assert info.periodicity == {"molecule": 18, "chain": 0, "slab": 6, "crystal": 6}
    assert info.labels == {"energy": 30, "forces": 15, "virial": 6}
    assert [(e.symbol, e.frames, e.atoms) for e in info.elements] == [
        ("H", 12, 24),
        ("O", 24, 30),
        ("Mg", 12, 12),
    ]
    for element, energy in zip(info.elements, (-3, -430, -1700), strict=True):
        assert element.energy_eV == pytest.approx(energy, abs=0.3)
    assert info.independent == 3
    assert not info.underdetermined
    assert info.force.median == pytest.approx(0.1 * np.sqrt(3))
    # A compressed crystal has a positive pressure and virial.
    assert info.pressure.minimum == pytest.approx(3)
    assert info.pressure.maximum == pytest.approx(3)
    assert 0.6 < info.shortest.value < 0.8  # of H2


def test_the_strangest_energy_comes_first():
    info = inspect_frames(oxides())
    first, second, *_ = info.outliers
    assert first.origin == "o.xyz, frame 12"
    assert first.value == pytest.approx(0.5, abs=0.02)
    assert abs(second.value) < 6 * info.sigma
    assert info.sigma < 0.01
    assert len(info.outliers) == 5


def test_the_shortest_distance_may_be_to_an_image():
    chain = Atoms("He2", [[0, 0, 0], [0, 0, 3]], cell=[9, 9, 4], pbc=True)
    assert inspect_frames(Frames.from_frames([frame(chain, 0.0)])).shortest.value == 1.0
    # Close packing, where a cell has its atoms as far from each other as possible.
    info = inspect_frames(Frames.from_frames([frame(bulk("Cu", "fcc", 3.6), 0.0)]))
    assert info.shortest.value == pytest.approx(3.6 / np.sqrt(2))
    far = Atoms("He2", [[0, 0, 0], [0, 0, 30]])
    assert inspect_frames(Frames.from_frames([frame(far, 0.0)])).shortest is None


def test_underdetermined_energies_are_told():
    water = Frames.from_frames([frame(molecule("H2O"), -14.0)] * 3)
    info = inspect_frames(water)
    assert info.independent == 1
    assert info.underdetermined
    assert "underdetermined" in "\n".join(info.lines())
    assert "underdetermined" not in "\n".join(inspect_frames(oxides()).lines())


def test_data_without_energies_or_forces():
    only_forces = Frames.from_frames([frame(molecule("H2O"), forces=np.ones((3, 3)))])
    info = inspect_frames(only_forces)
    assert all(element.energy_eV is None for element in info.elements)
    assert info.residual is None
    assert not info.underdetermined
    only_energy = Frames.from_frames([frame(molecule("H2O"), -14.0)])
    assert inspect_frames(only_energy).force is None
    for one in (only_forces, only_energy):
        text = json.dumps(inspect_frames(one).to_dict(), allow_nan=False)
        assert json.loads(text)["pressure_GPa"] is None


def test_extra_inputs_and_bad_frames_are_counted():
    atoms = molecule("H2O")
    plain = frame(atoms, -14.0)
    system = replace(plain.system, aparam=np.ones((3, 2)), fparam=np.ones(1))
    frames = Frames.from_frames([plain, replace(plain, system=system)])
    bad = [Rejected(f"o.xyz, frame {k}", "its energy is NaN") for k in range(30)]
    info = inspect_frames(frames, bad)
    assert info.labels == {"energy": 2, "forces": 0, "virial": 0, "aparam": 1, "fparam": 1}
    text = "\n".join(info.lines())
    assert "30 bad frames left out:" in text
    assert "o.xyz, frame 3: its energy is NaN" in text
    assert "... and 10 more" in text
    assert len(info.to_dict()["rejected"]) == 30


def test_keys_have_units():
    found = inspect_frames(oxides()).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["force_eV_per_A"]["maximum"] == pytest.approx(0.1 * np.sqrt(3))
    assert found["pressure_GPa"]["median"] == pytest.approx(3)
    assert found["largest_energy_residuals"][0]["origin"] == "o.xyz, frame 12"
    assert found["shortest_distance"]["distance_A"] < 0.8
    assert found["elements"][2] == {
        "symbol": "Mg",
        "frames": 12,
        "atoms": 12,
        "energy_eV": found["elements"][2]["energy_eV"],
    }


def test_histograms(tmp_path):
    values = histograms(oxides())
    assert len(values[FORCE]) == 33  # atoms with forces
    np.testing.assert_allclose(values[PRESSURE], 3)
    path = tmp_path / "frames.png"
    plot_histograms(path, {FORCE: values[FORCE]}, "forces alone")
    assert path.read_bytes().startswith(b"\x89PNG")
