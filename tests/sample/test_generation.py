"""Candidates: their physics, their bounds, and that they can be made again."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.data import covalent_radii
from tests_support import EMTPotential

from dpa3sim.common.errors import InputError, NonFiniteError
from dpa3sim.sample import SampleSettings, generate
from dpa3sim.sample.clusters import dimer_distances
from dpa3sim.sample.frames import supercell, too_close
from dpa3sim.sample.generation import LEFT_OUT
from dpa3sim.sample.settings import KINDS, LabelSettings, PoolSettings, chosen_kinds, least_shares
from dpa3sim.sample.trajectories import start_temperature
from dpa3sim.sample.variations import random_strain

SMALL = SampleSettings(
    min_atoms=8,
    max_atoms=60,
    rattle="0.05 0.2",
    rattle_count=2,
    strain_count=4,
    temperatures="300",
    md_time=20,
    md_interval=5,
    slab_thickness=4.0,
    substitute="Cu=Au",
)


def copper():
    atoms = bulk("Cu", cubic=True)
    atoms.info = {"parent": "copper", "energy": -3.0}
    return atoms


def alloy():
    return Atoms("CuAu", [[0, 0, 0], [1.7, 1.7, 1.7]], cell=[3.4] * 3, pbc=True)


def made(kinds, *structures, potential=None, progress=None, **options):
    settings = replace(SMALL, kinds=kinds, **options)
    arguments = {"progress": progress} if progress else {}
    return generate(structures, potential or EMTPotential(), settings, **arguments)


def same(first, second):
    return len(first) == len(second) and all(
        a == b and a.info == b.info for a, b in zip(first, second, strict=True)
    )


@pytest.fixture(scope="module")
def everything():
    """All kinds of a crystal and an alloy."""
    return generate([copper(), alloy()], EMTPotential(), SMALL)


def test_every_kind_is_made_and_says_what_it_is(everything):
    counts = Counter(atoms.info["config_type"] for atoms in everything)
    assert set(counts) == set(KINDS)
    assert {atoms.info["parent"] for atoms in everything} >= {"copper", "structure 1", "Cu", "Au2"}
    assert counts["rattled"] == 8
    assert counts["dimers"] == 3 * (12 + 4)
    assert counts["atoms"] == 2
    assert counts["md"] == 8


def test_frames_have_no_labels_and_do_not_change_what_was_given(everything):
    given = copper()
    given.set_momenta(np.ones((4, 3)))
    before = given.copy()
    (start,) = made("start", given)
    assert given == before
    assert given.info == before.info
    assert start.info == {"config_type": "start", "parent": "copper"}
    for atoms in everything:
        assert atoms.calc is None
        assert set(atoms.arrays) == {"numbers", "positions"}


def test_no_atoms_are_too_close_and_none_too_many(everything):
    for atoms in everything:
        assert len(atoms) <= SMALL.max_atoms + 1  # an interstitial
        assert not too_close(atoms, SMALL.min_distance)


def test_the_same_seed_makes_the_same_frames(everything):
    assert same(everything, generate([copper(), alloy()], EMTPotential(), SMALL))
    others = generate([copper(), alloy()], EMTPotential(), replace(SMALL, seed=1, kinds="rattled"))
    assert not same([a for a in everything if a.info["config_type"] == "rattled"], others)


def test_a_kind_does_not_depend_on_the_other_kinds(everything):
    for kind in ("strained", "md", "slabs"):
        expected = [a for a in everything if a.info["config_type"] == kind]
        assert same(expected, made(kind, copper(), alloy()))


def test_strains_are_symmetric_and_bounded():
    rng = np.random.default_rng(0)
    strains = np.array([random_strain(0.06, rng) for _ in range(200)])
    assert (strains == strains.transpose(0, 2, 1)).all()
    assert np.abs(strains).max() <= 0.06
    assert np.abs(strains).max(axis=0).min() > 0.05  # every component comes near it


def test_strained_cells_keep_fractional_positions_unless_rattled():
    frames = made("strained", copper(), strain=4.0, strain_count=6)
    start = supercell(copper(), 8, 60)
    for number, atoms in enumerate(frames):
        strain = np.linalg.inv(start.cell[:]) @ atoms.cell[:] - np.eye(3)
        np.testing.assert_allclose(strain, strain.T, atol=1e-12)
        assert np.abs(strain).max() <= 0.04 + 1e-12
        difference = np.abs(start.positions @ (np.eye(3) + strain) - atoms.positions).max()
        assert (difference > 1e-3) == bool(number % 2)


def test_volumes_are_exact():
    frames = made("volumes", copper(), compression=20.0, expansion=40.0, volume_points=7)
    start = supercell(copper(), 8, 60)
    ratios = [atoms.get_volume() / start.get_volume() for atoms in frames]
    np.testing.assert_allclose(ratios, np.linspace(0.8, 1.4, 7), rtol=1e-12)
    for atoms in frames:
        np.testing.assert_allclose(atoms.get_scaled_positions(), start.get_scaled_positions())


def test_displacements_have_their_amplitude():
    frames = made("rattled", copper(), rattle="0.1", rattle_count=60, min_distance=0.0)
    start = supercell(copper(), 8, 60)
    moves = np.array([atoms.positions - start.positions for atoms in frames])
    assert moves.std() == pytest.approx(0.1, rel=0.05)
    assert abs(moves.mean()) < 0.01


@pytest.mark.parametrize(("cutoff", "beyond"), [(6.0, True), (2.0, False)])
def test_distances_of_dimers(cutoff, beyond):
    bond = covalent_radii[29] + covalent_radii[79]
    distances = dimer_distances(29, 79, 12, cutoff)
    assert (np.diff(distances) > 0).all()
    assert distances[0] == pytest.approx(0.6 * bond)
    assert distances[-1] < cutoff
    assert (distances[-1] > 1.6 * bond) == beyond
    if beyond:
        assert np.isclose(distances, 1.6 * bond).any()


def test_dimers_are_all_pairs_of_elements():
    frames = made("dimers", alloy())
    pairs = {str(atoms.symbols) for atoms in frames}
    assert pairs == {"Cu2", "CuAu", "Au2"}
    for atoms in frames:
        assert not atoms.pbc.any()
        bond = covalent_radii[atoms.numbers].sum()
        assert 0.6 * bond - 1e-9 <= atoms.get_distance(0, 1) < 6.0


def test_swaps_keep_the_composition_and_change_sites():
    start = supercell(alloy(), 8, 60)
    frames = made("swaps", alloy(), swap_count=10)
    assert len(frames) == 10
    for atoms in frames:
        assert str(atoms.symbols) != str(start.symbols)
        assert Counter(atoms.numbers.tolist()) == Counter(start.numbers.tolist())
    assert made("swaps start", copper())[0].info["config_type"] == "start"  # nothing to swap


def test_substitutions_change_only_their_element():
    start = supercell(alloy(), 8, 60)
    for atoms in made("substitutions", alloy(), substitute="Cu=Au,Ag"):
        changed = atoms.numbers != start.numbers
        assert changed.any()
        assert (start.numbers[changed] == 29).all()
        assert set(atoms.symbols[changed]) <= {"Au", "Ag"}


def test_point_defects():
    start = supercell(copper(), 8, 60)
    for atoms in made("vacancies", copper()):
        assert len(atoms) == len(start) - 1
    for atoms in made("interstitials", copper()):
        assert len(atoms) == len(start) + 1
        others = atoms.get_distances(len(start), range(len(start)), mic=True)
        assert others.min() > 1.2  # the octahedral site is 1.8 Å from its neighbours


def test_slabs_are_periodic_along_two_axes():
    frames = made("slabs", copper(), miller="1,1,1 1,0,0")
    assert {atoms.info["detail"].partition(",")[0] for atoms in frames} == {
        "face (1 1 1)",
        "face (1 0 0)",
    }
    for atoms in frames:
        assert atoms.pbc.tolist() == [True, True, False]
        assert np.ptp(atoms.positions[:, 2]) > 2.0


def test_molecules_get_only_what_suits_them():
    frames = made("all", molecule("H2O"), substitute="")
    kinds = {atoms.info["config_type"] for atoms in frames}
    assert kinds == {"start", "rattled", "md", "swaps", "dimers", "atoms"}
    assert all(len(a) == 3 for a in frames if a.info["config_type"] == "rattled")


@pytest.mark.parametrize(("least", "most", "expected"), [(1, 9, 4), (16, 99, 16), (16, 15, 8)])
def test_supercells(least, most, expected):
    assert len(supercell(copper(), least, most)) == expected


def test_supercells_grow_along_their_shortest_sides():
    atoms = bulk("Cu", cubic=True) * (1, 1, 3)
    cell = supercell(atoms, 48, 99).cell.lengths() / 3.61
    np.testing.assert_allclose(cell, [2, 2, 3])


class Diverging(EMTPotential):
    """The model returns no number after some evaluations, as in an explosion."""

    def __init__(self, good):
        super().__init__()
        self.good = good

    def evaluate(self, structures):
        if len(self.requests) >= self.good:
            raise NonFiniteError("the model returned a value that is not finite")
        return super().evaluate(structures)


def test_frames_before_a_divergence_are_kept_and_it_is_said():
    events = []
    # The start is evaluated twice: whether it is at rest decides about the velocities.
    frames = made("md", copper(), potential=Diverging(14), progress=events.append)
    assert [a.info["detail"] for a in frames] == ["300 K, 5 fs", "300 K, 10 fs"]
    said = [event.message for event in events if event.stage == LEFT_OUT]
    assert len(said) == 1
    assert said[0].startswith("md: copper at 300 K: step 13: the model returned")
    assert said[0].endswith("2 frames before are used")


def test_pressures_are_those_of_what_can_have_one():
    copper_at = made("md", copper(), pressures="0 10", md_time=10.0, md_interval=5.0)
    details = [a.info["detail"] for a in copper_at]
    assert details[::2] == ["300 K, 0 GPa, 5 fs", "300 K, 10 GPa, 5 fs"]
    # They start from the same volume, and a barostat changes it.
    assert copper_at[3].get_volume() < copper_at[1].get_volume() != copper().get_volume()
    slab = copper()
    slab.pbc = [True, True, False]
    for atoms in made("md", slab, pressures="0 10", md_time=10.0):
        assert "GPa" not in atoms.info["detail"]
        assert atoms.cell.volume == pytest.approx(2 * slab.cell.volume)  # repeated


def test_atoms_at_rest_start_with_twice_the_temperature():
    potential = EMTPotential()
    assert start_temperature(copper(), potential, 300.0) == 600.0
    moved = copper()
    moved.positions[0] += 0.2
    assert start_temperature(moved, potential, 300.0) == 300.0


def test_a_simulation_that_cannot_begin_is_said():
    events = []
    frames = made("start md", copper(), potential=Diverging(0), progress=events.append)
    assert [a.info["config_type"] for a in frames] == ["start"]
    said = [event.message for event in events if event.stage == LEFT_OUT]
    assert said == ["md: copper at 300 K: the model returned a value that is not finite"]


def test_what_is_too_close_is_left_out_and_said():
    events = []
    frames = made("start rattled", copper(), rattle="2.0", min_distance=0.9, progress=events.append)
    assert [a.info["config_type"] for a in frames] == ["start"]
    said = [event.message for event in events if event.stage == LEFT_OUT]
    assert said == ["rattled: copper (amplitude 2 A): atoms are closer than min_distance (2 times)"]


def test_structures_that_cannot_be_used():
    with pytest.raises(InputError, match="copper: has 4 atoms, more than max_atoms = 3"):
        made("start", copper(), min_atoms=1, max_atoms=3)
    with pytest.raises(InputError, match="substitute: no structure contains Si"):
        made("start", copper(), substitute="Si=Ge")
    with pytest.raises(InputError, match="no candidate can be made"):
        made("volumes", molecule("H2O"), substitute="")


def test_unknown_elements_are_refused(smooth):
    with pytest.raises(InputError, match="copper: "):
        generate([copper()], smooth, SMALL)
    with pytest.raises(InputError, match=r"substitute: .*Si"):
        generate([molecule("H2O")], smooth, replace(SMALL, substitute="O=Si"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": "ratled"}, "did you mean 'rattled'"),
        ({"kinds": ""}, "kinds: '' is not one of"),
        ({"rattle": "0.1 x"}, "rattle: 'x' is not a number"),
        ({"temperatures": "-5"}, "temperatures: -5 is not a number of at least"),
        ({"substitute": "Si"}, "write it as Si=Ge,Sn"),
        ({"substitute": "Si=Qq"}, "'Qq' is not an element"),
        ({"shares": "dimer=3"}, "did you mean 'dimers'"),
        ({"shares": "dimers"}, "write it as KIND=NUMBER"),
        ({"min_atoms": 9, "max_atoms": 8}, "must be at least min_atoms"),
        ({"strain": 80.0}, "at most 50"),
        ({"md_interval": 0.0}, "md_interval = 0 fs"),
        ({"miller": "1,1"}, "miller"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        SampleSettings(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "EMT"}, "is not model or module:Calculator"),
        ({"label": "model", "label_options": "a=1"}, "needs label = module:Calculator"),
        ({"write": "vsap"}, "did you mean 'vasp'"),
        ({"weights": "dimers=-1"}, "at least 0"),
    ],
)
def test_bad_options_of_labels(options, message):
    with pytest.raises(InputError, match=message):
        LabelSettings(**options)
    with pytest.raises(InputError, match="No closing quotation"):
        PoolSettings(known="'a")


def test_shares_that_are_not_named_stay():
    assert least_shares(SampleSettings())["atoms"] == 100
    found = least_shares(SampleSettings(shares="md=40 all=1"))
    assert (found["md"], found["atoms"], found["dimers"], found["pool"]) == (40, 100, 1, 1)
    assert found["rattled"] == least_shares(SampleSettings())["rattled"]


def test_kinds_have_their_own_order():
    assert chosen_kinds(SampleSettings(kinds="md,start")) == ("start", "md")
    assert chosen_kinds(SampleSettings()) == KINDS
