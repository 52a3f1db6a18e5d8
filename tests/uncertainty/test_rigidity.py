"""Last-layer prediction rigidity: definitions, symmetries, calibration, choice, files."""

import csv
import json

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from tests_support import DATA, structures_with_inputs

from dpa3sim import Potential
from dpa3sim.cli.main import main
from dpa3sim.common.errors import BAD_INPUT, DONE, InputError
from dpa3sim.model.weights import FITTING_LAYERS
from dpa3sim.potential.evaluation import Evaluation
from dpa3sim.uncertainty.choice import choose
from dpa3sim.uncertainty.committee import COLUMNS, deviation, deviations, table
from dpa3sim.uncertainty.rigidity import METHODS, Rigidity, fit, novelties

MODEL = DATA / "models/dynamic/model.pt"
COUNT = 100


@pytest.fixture(scope="module")
def potential():
    return Potential(MODEL)


def water(number, seed, spread=0.1):
    rng, found = np.random.default_rng(seed), []
    for k in range(number):
        atoms = molecule("H2O", cell=[3.3, 3.3, 3.3], pbc=True).repeat((1 + k % 2, 1, 1))
        atoms.positions += rng.normal(scale=spread, size=atoms.positions.shape)
        found.append(atoms)
    return found


@pytest.fixture(scope="module")
def rigidity(potential):
    return fit(potential, water(COUNT, seed=1))


def test_training_rows_are_certain(potential, rigidity):
    """A row of F adds itself to the covariance: f^T C f / n^2 <= 1."""
    assert rigidity.count == COUNT
    assert rigidity.elements == ("H", "O")
    for atoms, (total, local) in zip(
        water(COUNT, seed=1), novelties(potential, rigidity, water(COUNT, seed=1)), strict=True
    ):
        assert 0 < total / len(atoms) <= 1
        assert len(local) == len(atoms)
        assert (local > 0).all()
        assert (local <= 1).all()


def test_one_more_row_lowers_its_own_novelty(potential, rigidity):
    strange = water(1, seed=9, spread=0.4)
    ((before, _),) = novelties(potential, rigidity, strange)
    ((after, _),) = novelties(potential, fit(potential, water(COUNT, seed=1) + strange), strange)
    # Sherman and Morrison: f^T C' f = g / (1 + g) with g = f^T C f, of the row f / n.
    n = len(strange[0])
    g = (before / n) ** 2
    # But for the regulariser, which grows with the largest feature.
    assert after / n == pytest.approx(np.sqrt(g / (1 + g)), rel=2e-3)


def test_symmetries(potential, rigidity):
    atoms = water(1, seed=5)[0]
    ((total, local),) = novelties(potential, rigidity, [atoms])
    turned = atoms.copy()
    turned.rotate(40, (1, 2, 3), rotate_cell=True)
    order = [2, 0, 1]
    found = novelties(potential, rigidity, [turned, atoms[order], atoms * (1, 2, 1)])
    for (other, others), expected, factor in zip(
        found, (local, local[order], np.concatenate([local, local])), (1, 1, 2), strict=True
    ):
        assert other == pytest.approx(factor * total, rel=1e-6)
        np.testing.assert_allclose(others, expected, rtol=1e-6)


def test_what_is_far_is_new(potential, rigidity):
    near = max(local.max() for _, local in novelties(potential, rigidity, water(20, seed=3)))
    far = [bulk("O", "fcc", 4.0), molecule("H2O2"), water(1, seed=4, spread=0.5)[0]]
    for _, local in novelties(potential, rigidity, far):
        assert local.max() > 1.2 * near


def test_members_scatter_as_the_uncertainty_says(potential, rigidity):
    calibrated = rigidity.calibrated(np.array([0.1, -0.2]), np.array([1.0, 1.0]))
    atoms = water(2, seed=6)
    (features, _) = potential.features(atoms)
    members = calibrated.members(potential.model, 3000, seed=1)
    name = f"{FITTING_LAYERS}.{len(potential.model.config.fitting.neuron)}.matrix"
    weights = np.array([x.weights[name][:, 0] for x in members])
    energies = weights @ features.sum(axis=0)
    expected = calibrated.alpha * calibrated.total(features)
    assert energies.std() == pytest.approx(expected, rel=0.05)
    # Members are models like any other, and the same ones every time.
    first, second = (Potential(x).evaluate(atoms)[0].energy for x in members[:2])
    base = potential.evaluate(atoms)[0].energy
    own = potential.model.weights[name][:, 0] @ features.sum(axis=0)
    assert first - base == pytest.approx(energies[0] - own, abs=1e-9)
    assert first != second
    again = calibrated.members(potential.model, 2, seed=1)
    assert again[0].weights[name].shape == (len(features[0]), 1)


@pytest.mark.parametrize("method", METHODS)
def test_scale_of_normal_errors(rigidity, method):
    rng = np.random.default_rng(1)
    spread = rng.uniform(0.5, 3.0, 200_000)
    found = rigidity.calibrated(rng.normal(scale=1.7 * spread), spread, method)
    assert found.alpha == pytest.approx(1.7, rel=0.01)


def test_nothing_to_calibrate_with(rigidity):
    for errors in (np.array([np.nan]), np.zeros(3)):
        with pytest.raises(InputError, match="no error of an energy is known"):
            rigidity.calibrated(errors, np.ones(len(errors)))


def test_greedy_choice_increases_the_determinant_most(potential, rigidity):
    features = potential.features([*water(14, seed=7, spread=0.2), *structures_with_inputs()[:6]])
    rows = np.array([x.mean(axis=0) for x in features])
    matrix = rigidity.factor @ rigidity.factor.T
    left, expected = list(range(len(rows))), []
    for _ in range(6):
        gains = [np.linalg.slogdet(matrix + np.outer(rows[k], rows[k]))[1] for k in left]
        best = left.pop(int(np.argmax(gains)))
        matrix = matrix + np.outer(rows[best], rows[best])
        expected.append(best)
    assert [index for index, _ in choose(features, 6, rigidity)] == expected


def test_copies_are_not_chosen(potential):
    frames = water(6, seed=8, spread=0.3)
    features = potential.features([*frames, *[x * (1, 1, 2) for x in frames]])
    chosen = [index % 6 for index, _ in choose(features, 6)]
    assert sorted(chosen) == [0, 1, 2, 3, 4, 5]
    assert choose([], 3) == []


def test_files(potential, rigidity, tmp_path):
    path = tmp_path / "known.npz"
    for alpha in (None, 0.25):
        saved = Rigidity(
            rigidity.factor,
            rigidity.atoms,
            alpha,
            COUNT,
            ("H", "O"),
            rigidity.sha256,
            rigidity.head,
        )
        saved.save(path)
        found = Rigidity.load(path)
        np.testing.assert_array_equal(found.factor, saved.factor)
        assert (found.alpha, found.count, found.elements) == (alpha, COUNT, ("H", "O"))
        found.check(potential.model)
    with pytest.raises(InputError, match="of another model than"):
        found.check(Potential(DATA / "models/static_linear/model.pt").model)
    data = path.read_bytes()
    with np.load(path) as archive:
        content = dict(archive)
    damaged = [b"", b"x" * 50, data[: len(data) // 2]]
    for name, value in (
        ("factor", np.eye(3)[:2]),
        ("version", np.int64(9)),
        ("factor", -np.eye(2)),
    ):
        np.savez(path, **(content | {name: value}))
        damaged.append(path.read_bytes())
    np.savez(path, **(content | {"factor": np.array([[{}]], dtype=object)}), allow_pickle=True)
    damaged.append(path.read_bytes())
    for bad in damaged:
        path.write_bytes(bad)
        with pytest.raises(InputError, match="not an uncertainty of a model"):
            Rigidity.load(path)
    with pytest.raises(InputError, match="not an uncertainty"):
        Rigidity.load(tmp_path / "absent.npz")


def test_deviations_by_their_definition():
    rng = np.random.default_rng(2)
    outs = [
        Evaluation(e, np.zeros(4), f, v, 1, 1, 0, 0)
        for e, f, v in zip(
            rng.normal(size=3), rng.normal(size=(3, 4, 3)), rng.normal(size=(3, 3, 3)), strict=True
        )
    ]
    found = deviation(outs)
    mean = sum(x.forces for x in outs) / 3
    expected = np.sqrt(sum(((x.forces - mean) ** 2).sum(axis=1) for x in outs) / 3)
    np.testing.assert_allclose(found.forces, expected)
    np.testing.assert_allclose(found.virial, np.std([x.virial / 4 for x in outs], axis=0))
    head, row = table([found]).splitlines()
    assert head.lstrip("# ").split() == list(COLUMNS)
    assert float(row.split()[4]) == pytest.approx(expected.max(), rel=1e-6)
    with pytest.raises(InputError, match="at least two models"):
        deviation(outs[:1])


def test_scatter_of_members_is_that_of_forces(potential, rigidity):
    """Finite members: energies and forces of a committee from one model are consistent."""
    calibrated = rigidity.calibrated(np.array([0.1]), np.array([1.0]))
    members = [Potential(x) for x in calibrated.members(potential.model, 4)]
    atoms = water(1, seed=12)[0]
    (found,) = deviations(members, [atoms])
    step = 1e-4
    shifted = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[0, 1] += sign * step
        shifted.append([x.evaluate([moved])[0].energy for x in members])
    slopes = -(np.array(shifted[0]) - shifted[1]) / (2 * step)
    forces = np.array([x.evaluate([atoms])[0].forces[0, 1] for x in members])
    np.testing.assert_allclose(forces, slopes, atol=1e-6)
    assert (found.forces > 0).all()


# -- the commands ---------------------------------------------------------------------------------


@pytest.fixture
def folder(potential, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(3)
    for name, frames in (("train", water(30, seed=1)), ("valid", water(12, seed=2))):
        for atoms, out in zip(frames, potential.evaluate(frames), strict=True):
            energy = out.energy + rng.normal(scale=0.01 * len(atoms))
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=out.forces)
        write(f"{name}.xyz", frames)
    pool = [*water(8, seed=4), molecule("H2O2", cell=[6, 6, 6], pbc=True)]
    write("pool.extxyz", pool)
    return tmp_path


def test_fit_score_select(folder, capsys):
    model = ["--model", str(MODEL)]
    assert main(["uncertainty", "fit", "train.xyz", "--validation", "valid.xyz", *model]) == DONE
    assert "calibrated with 12 energies" in capsys.readouterr().out
    given = ["score", "pool.extxyz", "--uncertainty", "train.npz", *model]
    assert main([*given, "--json", "--csv", "table.csv", "--forces", "3"]) == DONE
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 9
    assert rows[0]["structure"] == "pool.extxyz@8"
    assert rows[0]["largest_novelty"] == max(row["largest_novelty"] for row in rows)
    assert all(row["energy_uncertainty_eV"] > 0 for row in rows)
    assert all(row["largest_force_uncertainty_eV_per_A"] > 0 for row in rows)
    with open("table.csv", newline="") as file:
        assert [row["structure"] for row in csv.DictReader(file)] == [r["structure"] for r in rows]
    assert main(given) == DONE
    assert capsys.readouterr().out.splitlines()[2].endswith("pool.extxyz@8")
    chosen = ["select", "pool.extxyz", "-n", "3", "--uncertainty", "train.npz", *model]
    assert main(chosen) == DONE
    assert "3 of 9 structures" in capsys.readouterr().out
    frames = read("selected.extxyz", ":")
    assert len(frames) == 3
    assert frames[0].get_chemical_formula() == "H2O2"


def test_without_labels_there_is_no_unit(folder, capsys):
    model = ["--model", str(MODEL)]
    write("bare.extxyz", water(COUNT, seed=1))
    assert main(["uncertainty", "fit", "bare.extxyz", "--no-labels", *model]) == DONE
    assert "warning: with less than" not in capsys.readouterr().out
    assert main(["score", "pool.extxyz", "--uncertainty", "bare.npz", *model, "--json"]) == DONE
    rows = json.loads(capsys.readouterr().out)
    assert not any("uncertainty" in key for key in rows[0])
    assert main(["score", "pool.extxyz", "--uncertainty", "bare.npz", "--forces", "2", *model]) == (
        BAD_INPUT
    )


def test_a_committee_of_files(folder, capsys):
    other = str(DATA / "models/static_linear/model.pt")
    arguments = ["score", "pool.extxyz", "--model", str(MODEL), "--committee", other]
    assert main(arguments) == DONE
    rows = np.loadtxt("model_devi.out")
    assert rows.shape == (9, 8)
    frames = read("pool.extxyz", ":")
    found = deviations([Potential(MODEL), Potential(other)], frames)
    np.testing.assert_allclose(rows[:, 4], [x.forces.max() for x in found], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "pool.extxyz"], "give --uncertainty FILE"),
        (["score", "pool.extxyz", "--uncertainty", "no.npz"], "no.npz"),
        (["score", "nothing.xyz", "--uncertainty", "no.npz"], "no.npz"),
        (["score", "pool.extxyz", "--committee", "no.pt"], "no.pt"),
        (["score", "pool.extxyz", "--committee", "no.pt", "--forces", "2"], "which is missing"),
        (["select", "nothing.xyz"], "nothing.xyz"),
        (["select", "pool.extxyz", "-n", "0"], "number = 0 must be at least 1"),
        (["uncertainty", "fit", "nothing.xyz"], "nothing.xyz"),
        (["uncertainty", "make", "pool.extxyz"], "'make' is not one of fit"),
    ],
)
def test_bad_input_is_one_line(folder, arguments, message, capsys):
    try:
        code = main([*arguments, "--model", str(MODEL)])
    except SystemExit as end:
        code = end.code
    assert code == BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
