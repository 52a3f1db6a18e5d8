"""Barriers between ends as people have them: rotated copies, atoms in each other's way."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read, write

from dpa3sim.cli.main import main
from dpa3sim.common.errors import InputError
from dpa3sim.protocols import neb
from dpa3sim.protocols.crystals import elastic_band, initial_path

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_rotated_copy_is_the_same_minimum(capsys):
    folder = HERE / "neb-rotated-molecule"
    assert main(["neb", str(folder / "methanol.xyz"), str(folder / "methanol_rot.xyz")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "same minimum" in err


def test_a_rotated_copy_in_another_order_is_the_same_minimum(capsys):
    folder = HERE / "neb-rotated-molecule"
    turned = read(folder / "methanol_rot.xyz")
    write("shuffled.extxyz", turned[[5, 1, 3, 0, 2, 4]])
    assert main(["neb", str(folder / "methanol.xyz"), "shuffled.extxyz"]) == 2
    assert "same minimum" in capsys.readouterr().err


@pytest.mark.slow
def test_hydrogen_goes_around_hydrogen_cyanide(embedded64):
    """Through carbon and nitrogen on the straight line; 2.1 eV around them in the literature."""
    folder = HERE / "neb-hcn-linear"
    hcn, hnc = (read(folder / f"{name}.xyz") for name in ("hcn", "hnc"))
    found = neb.run(hcn, hnc, embedded64, neb.Settings(images=3, fmax=0.1))
    stored = found.to_dict()
    assert stored["converged"]
    assert 1.0 < stored["barrier_forward_eV"] < 4.0
    assert any("collide" in warning for warning in found.warnings)
    saddle = found.images[found.highest]
    nearest = saddle.get_all_distances()[np.triu_indices(3, 1)].min()
    assert nearest > 0.9
    assert 40 < saddle.get_angle(2, 0, 1) < 140  # bent
    # It conserves what is rigid: no image turns or drifts.
    centers = [image.positions.mean(axis=0) for image in found.images]
    assert np.ptp(centers, axis=0).max() < 0.05


def test_collisions_are_seen_and_healthy_paths_left_alone():
    hcn, hnc = (read(HERE / f"neb-hcn-linear/{name}.xyz") for name in ("hcn", "hnc"))
    assert initial_path.collisions(hcn, hnc)
    ammonia = molecule("NH3")
    inverted = ammonia.copy()
    inverted.positions[:, 2] *= -1
    assert not initial_path.collisions(ammonia, inverted)
    # Two atoms that exchange along the line between them.
    pair = Atoms("Ar2", [[0, 0, 0], [0, 0, 3.8]])
    swapped = Atoms("Ar2", [[0, 0, 3.8], [0, 0, 0]])
    assert initial_path.collisions(pair, swapped) == [(0, 1)]


def test_atoms_that_exchange_on_a_line_go_around_each_other(embedded64):
    """In a crystal, as given; both move, in opposite directions."""
    initial = Atoms("NaClNa2", [[0, 0, 0], [2.9, 0, 0], [5.8, 0, 0], [2.9, 2.9, 0]])
    final = initial.copy()
    final.positions[[0, 2]] = initial.positions[[2, 0]]
    images, notes = initial_path.initial_path(initial, final, 3, "idpp")
    assert notes
    for image in images[1:-1]:
        assert image.get_all_distances()[np.triu_indices(4, 1)].min() > 1.5


def test_what_diverges():
    """Growing without an end, but neither a rough start nor an image that begins to climb."""
    healthy = [12, 9, 7, 8, 5, 3, 2, 1.5, 0.9, 0.5, 3.0, 2.5, 2.0, 1.0, 0.6, 0.3, 0.1] + [0.1] * 60
    rough = [40 / (1 + k / 10) for k in range(300)]
    stuck = [8.0] * 300
    for forces in (healthy, rough, stuck):
        assert not any(elastic_band.diverges(forces[: k + 1]) for k in range(len(forces)))
    growing = [2 * 1.05**k for k in range(100)]
    first = next(k for k in range(100) if elastic_band.diverges(growing[: k + 1]))
    assert first < 60
    reason = elastic_band.diverges(growing[: first + 1])
    assert "diverges" in reason
    assert "from 2 to" in reason


def test_a_band_that_diverges_ends_the_command_with_its_reason(monkeypatch, capsys):
    """Exit code 3, after some tens of steps."""
    forces = iter(1.2**k for k in range(10_000))
    monkeypatch.setattr(neb, "_report", lambda *_: next(forces))
    monkeypatch.setattr(neb, "largest_force", lambda _: 1.0)
    ammonia = molecule("NH3")
    inverted = ammonia.copy()
    inverted.positions[:, 2] *= -1
    write("a.extxyz", ammonia)
    write("b.extxyz", inverted)
    arguments = ["--images", "1", "--no-relax", "--optimizer", "MDMin"]
    assert main(["neb", "a.extxyz", "b.extxyz", *arguments]) == 3
    assert "the band diverges" in capsys.readouterr().out


def test_nothing_to_match():
    with pytest.raises(InputError):
        neb.check(molecule("H2O"), molecule("CH4"), neb.Settings())
