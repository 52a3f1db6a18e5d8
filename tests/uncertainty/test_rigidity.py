"""Last-layer prediction rigidity: definitions, symmetries, calibration, choice, files."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from tests_support import DATA, MODELS, load_small, structures_with_inputs

from dpa3sim import DPA3Calculator, Engine, Potential
from dpa3sim.cli.main import main
from dpa3sim.common.errors import BAD_INPUT, DONE, InputError
from dpa3sim.kernels.evaluator import Evaluator, MemoryPolicy
from dpa3sim.model.weights import FITTING_LAYERS
from dpa3sim.potential.evaluation import Evaluation
from dpa3sim.uncertainty.agreement import Agreement, Judged
from dpa3sim.uncertainty.choice import choose
from dpa3sim.uncertainty.committee import COLUMNS, deviation, deviations, table
from dpa3sim.uncertainty.rigidity import METHODS, Errors, Labelled, Rigidity, fit, scale

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


def judged(potential, rigidity, structures):
    """Sigma / alpha of each structure, and the novelties of its atoms."""
    found = potential.with_uncertainty(replace(rigidity, alpha=1.0)).evaluate(structures)
    return [(x.uncertainty.energy, x.uncertainty.novelties) for x in found]


def last_layer(potential):
    """Name and matrix of the last layer."""
    name = f"{FITTING_LAYERS}.{len(potential.model.config.fitting.neuron)}.matrix"
    return name, potential.model.weights[name]


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_evaluations_have_what_the_definition_says(path):
    potential, structures = load_small(path), structures_with_inputs()
    rigidity = fit(potential, structures[1:])
    covariances = [np.linalg.inv(x @ x.T) for x in (rigidity.factor, rigidity.atoms)]
    found = potential.with_uncertainty(replace(rigidity, alpha=0.3)).evaluate(structures)
    plain = potential.evaluate(structures)
    for own, out, before in zip(potential.features(structures), found, plain, strict=True):
        assert before.uncertainty is None
        assert out.energy == before.energy
        np.testing.assert_array_equal(out.forces, before.forces)
        for value, row, covariance in (
            (out.uncertainty.energy / 0.3, own.sum(axis=0, keepdims=True), covariances[0]),
            (out.uncertainty.energies / 0.3, own, covariances[0]),
            (out.uncertainty.novelties, own, covariances[1]),
        ):
            expected = np.sqrt(np.einsum("ij,jk,ik->i", row, covariance, row).clip(0))
            np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-7)


def test_training_rows_are_certain(potential, rigidity):
    """A row of F adds itself to the covariance: f^T C f / n^2 <= 1."""
    assert rigidity.count == COUNT
    assert rigidity.elements == ("H", "O")
    for atoms, (total, local) in zip(
        water(COUNT, seed=1), judged(potential, rigidity, water(COUNT, seed=1)), strict=True
    ):
        assert 0 < total / len(atoms) <= 1
        assert len(local) == len(atoms)
        assert (local > 0).all()
        assert (local <= 1).all()


def test_one_more_row_lowers_its_own_novelty(potential, rigidity):
    strange = water(1, seed=9, spread=0.4)
    ((before, _),) = judged(potential, rigidity, strange)
    ((after, _),) = judged(potential, fit(potential, water(COUNT, seed=1) + strange), strange)
    # Sherman and Morrison: f^T C' f = g / (1 + g) with g = f^T C f, of the row f / n.
    n = len(strange[0])
    g = (before / n) ** 2
    # But for the regulariser, which grows with the largest feature.
    assert after / n == pytest.approx(np.sqrt(g / (1 + g)), rel=2e-3)


def test_symmetries(potential, rigidity):
    atoms = water(1, seed=5)[0]
    ((total, local),) = judged(potential, rigidity, [atoms])
    turned = atoms.copy()
    turned.rotate(40, (1, 2, 3), rotate_cell=True)
    order = [2, 0, 1]
    found = judged(potential, rigidity, [turned, atoms[order], atoms * (1, 2, 1)])
    for (other, others), expected, factor in zip(
        found, (local, local[order], np.concatenate([local, local])), (1, 1, 2), strict=True
    ):
        assert other == pytest.approx(factor * total, rel=1e-6)
        np.testing.assert_allclose(others, expected, rtol=1e-6)


def test_what_is_far_is_new(potential, rigidity):
    near = max(local.max() for _, local in judged(potential, rigidity, water(20, seed=3)))
    far = [bulk("O", "fcc", 4.0), molecule("H2O2"), water(1, seed=4, spread=0.5)[0]]
    for _, local in judged(potential, rigidity, far):
        assert local.max() > 1.2 * near


def test_members_scatter_as_the_uncertainty_says(potential, rigidity):
    (features, _) = potential.features(water(2, seed=6))
    total = features.sum(axis=0)
    energies = rigidity.directions(100_000, seed=1).T @ total
    whitened = np.linalg.solve(rigidity.factor, total)
    assert energies.std(ddof=1) == pytest.approx(np.linalg.norm(whitened), rel=0.01)
    few = rigidity.directions(3)
    np.testing.assert_allclose(few.mean(axis=1), 0, atol=1e-9 * np.abs(few).max())
    with pytest.raises(InputError, match="members = 1 must be at least 2"):
        rigidity.directions(1)


def test_an_ensemble_is_what_models_with_these_last_layers_say(potential, rigidity):
    known = potential.with_uncertainty(replace(rigidity, alpha=0.05, alpha_forces=0.02))
    name, matrix = last_layer(potential)
    directions = rigidity.directions(3, seed=4)
    atoms = [water(1, seed=12)[0], molecule("H2O2")]
    found = known.ensemble(atoms, 3, seed=4)
    for k in range(3):
        changed = matrix + 0.05 * directions[:, [k]]
        member = Potential(
            replace(potential.model, weights={**potential.model.weights, name: changed})
        )
        for one, out in zip(found, member.evaluate(atoms), strict=True):
            assert one.energies[k] == pytest.approx(out.energy, abs=1e-9)
            np.testing.assert_allclose(one.forces[k], out.forces, atol=1e-9)
            np.testing.assert_allclose(one.virials[k], out.virial, atol=1e-9)
    for one, out, spread in zip(
        found, potential.evaluate(atoms), known.forces_uncertainty(atoms, 3, seed=4), strict=True
    ):
        np.testing.assert_allclose(one.forces.mean(axis=0), out.forces, atol=1e-9)
        np.testing.assert_allclose(spread, 0.4 * one.forces.std(axis=0, ddof=1), atol=1e-9)


@pytest.mark.parametrize("policy", [MemoryPolicy("preactivations"), MemoryPolicy(every=2)], ids=str)
def test_the_layers_run_backwards_as_often_as_asked(potential, policy, monkeypatch):
    """Whatever the forward pass keeps, all passes back are alike."""
    other = Potential(MODEL)
    other.batcher.use(Evaluator(other.network, sparse=True))
    monkeypatch.setattr(other.batcher.memory, "possible_policy", lambda layout, advice: policy)
    _, matrix = last_layer(other)
    atoms = water(2, seed=1)
    for out, found in zip(
        potential.evaluate(atoms), other.changes(atoms, np.tile(matrix, 3)), strict=True
    ):
        for forces, virial in zip(found.forces, found.virials, strict=True):
            np.testing.assert_allclose(forces, out.forces, atol=1e-12)
            np.testing.assert_allclose(virial, out.virial, atol=1e-12)


def test_without_labels_there_are_no_units(potential, rigidity):
    with pytest.raises(InputError, match="has no uncertainty"):
        potential.forces_uncertainty(water(1, seed=1))
    bare = potential.with_uncertainty(rigidity)
    out = bare.evaluate(water(1, seed=1))[0].uncertainty
    assert out.energy is None
    assert out.energies is None
    with pytest.raises(InputError, match="of forces need labels"):
        bare.forces_uncertainty(water(1, seed=1))
    with pytest.raises(InputError, match="of energies need labels"):
        bare.ensemble(water(1, seed=1))


@pytest.mark.parametrize("method", METHODS)
def test_scale_of_normal_errors(rigidity, method):
    rng = np.random.default_rng(1)
    spread = rng.uniform(0.5, 3.0, 200_000)
    found = scale(rng.normal(scale=1.7 * spread), spread, method)
    assert found == pytest.approx(1.7, rel=0.01)


def test_energies_and_forces_have_scales_of_their_own(potential, rigidity):
    """Errors of another model: the scales are those that the definition gives."""
    name, matrix = last_layer(potential)
    rng = np.random.default_rng(4)
    changed = matrix + rng.normal(scale=0.02, size=matrix.shape)
    truth = Potential(replace(potential.model, weights={**potential.model.weights, name: changed}))
    frames = water(6, seed=20)
    known = [
        Labelled(atoms, out.energy if k < 4 else None, out.forces if k > 2 else None)
        for k, (atoms, out) in enumerate(zip(frames, truth.evaluate(frames), strict=True))
    ]
    errors = Errors.of(potential, rigidity, known, members=4)
    assert len(errors.energies) == 4
    assert errors.sizes.tolist() == [len(atoms) for atoms in frames[:4]]
    assert len(errors.forces) == sum(len(atoms) for atoms in frames[3:])
    found = errors.calibrated(rigidity)
    ratio = np.mean(
        np.abs(errors.energies) / [x for x, _ in judged(potential, rigidity, frames)][:4]
    )
    assert found.alpha == pytest.approx(np.sqrt(np.pi / 2) * ratio)
    known = potential.with_uncertainty(replace(found, alpha_forces=1.0))
    spread = np.concatenate(known.forces_uncertainty(frames[3:], 4))
    np.testing.assert_allclose(np.sqrt((spread**2).mean(axis=1)), errors.force_spreads)
    assert found.alpha_forces == pytest.approx(
        np.sqrt(np.pi / 2) * np.mean(errors.forces / errors.force_spreads)
    )
    nothing = Errors.of(potential, rigidity, [Labelled(frames[0], None, None)], members=4)
    assert nothing.calibrated(rigidity).alpha is None


def test_nothing_to_calibrate_with():
    for errors in (np.array([np.nan]), np.zeros(3)):
        assert scale(errors, np.ones(len(errors))) is None


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
    for alpha, alpha_forces in ((None, None), (0.25, None), (0.25, 0.5)):
        saved = replace(rigidity, alpha=alpha, alpha_forces=alpha_forces)
        saved.save(path)
        found = Rigidity.load(path)
        assert found.path == path
        assert found.identity == saved.identity
        np.testing.assert_array_equal(found.factor, saved.factor)
        assert (found.alpha, found.alpha_forces) == (alpha, alpha_forces)
        assert (found.count, found.elements) == (COUNT, ("H", "O"))
        found.check(potential.model)
    with pytest.raises(InputError, match="of another model than"):
        Potential(DATA / "models/static_linear/model.pt", uncertainty=path)
    data = path.read_bytes()
    with np.load(path) as archive:
        content = dict(archive)
    damaged = [b"", b"x" * 50, data[: len(data) // 2]]
    for name, value in (
        ("factor", np.eye(3)[:2]),
        ("version", np.int64(9)),
        ("factor", -np.eye(2)),
        ("alpha", np.float64(-1)),
        ("alpha_forces", np.float64(np.inf)),
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


def test_the_loaded_model_says_which_uncertainty_it_has(potential, rigidity, tmp_path):
    replace(rigidity, alpha=0.25).save(tmp_path / "known.npz")
    known = Potential(MODEL, uncertainty=tmp_path / "known.npz")
    assert known.settings.uncertainty == str(tmp_path / "known.npz")
    assert known.identity != potential.identity
    assert known.in_precision("float32").rigidity is known.rigidity
    atoms = water(1, seed=2)
    (a,), (b,) = known.evaluate(atoms), Potential.load(known.settings).evaluate(atoms)
    assert a.uncertainty.energy == b.uncertainty.energy


# -- the calculator -------------------------------------------------------------------------------


def test_calculator(potential, rigidity, tmp_path):
    path = tmp_path / "known.npz"
    replace(rigidity, alpha=0.25, alpha_forces=0.5).save(path)
    atoms = water(1, seed=2)[0]
    atoms.calc = DPA3Calculator(MODEL, uncertainty=path)
    energy = atoms.get_potential_energy()
    (out,) = potential.with_uncertainty(Rigidity.load(path)).evaluate([atoms])
    assert energy == out.energy
    assert atoms.calc.get_property("energy_uncertainty") == out.uncertainty.energy
    np.testing.assert_array_equal(atoms.calc.results["novelties"], out.uncertainty.novelties)
    assert atoms.calc.results["energies_uncertainty"].shape == (len(atoms),)
    assert atoms.calc.forces_uncertainty(members=3).shape == (len(atoms), 3)
    write(tmp_path / "frame.extxyz", atoms)
    assert "stress" in atoms.calc.export_properties()
    plain = DPA3Calculator(potential)
    with pytest.raises(InputError, match="nothing was calculated yet"):
        plain.forces_uncertainty()
    with pytest.raises(InputError, match="has no uncertainty"):
        plain.forces_uncertainty(atoms)
    with pytest.raises(InputError, match="uncertainty, dispersion and ranks in the Potential"):
        DPA3Calculator(potential, uncertainty=path)
    with Engine(potential).client() as client, pytest.raises(InputError, match="use a Potential"):
        DPA3Calculator(client).forces_uncertainty(atoms)


def test_strange_surroundings_are_warned_of(potential, rigidity):
    known = potential.with_uncertainty(rigidity)
    near, far = known.evaluate([water(1, seed=1)[0], bulk("O", "fcc", 2.6)])
    assert not near.warnings
    assert far.uncertainty.novelty > 2
    assert any("unlike those that the uncertainty was fitted to" in text for text in far.warnings)


# -- the commands ---------------------------------------------------------------------------------


@pytest.fixture
def folder(potential, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(3)
    for name, frames in (("train", water(30, seed=1)), ("valid", water(12, seed=2))):
        for atoms, out in zip(frames, potential.evaluate(frames), strict=True):
            energy = out.energy + rng.normal(scale=0.01 * len(atoms))
            atoms.calc = SinglePointCalculator(
                atoms,
                energy=energy,
                forces=out.forces + rng.normal(scale=0.02, size=(len(atoms), 3)),
            )
        write(f"{name}.xyz", frames)
    pool = [*water(8, seed=4), molecule("H2O2", cell=[6, 6, 6], pbc=True)]
    write("pool.extxyz", pool)
    return tmp_path


def test_fit_score_select(folder, capsys):
    model = ["--model", str(MODEL)]
    assert main(["uncertainty", "fit", "train.xyz", "--validation", "valid.xyz", *model]) == DONE
    said = capsys.readouterr().out
    assert "calibrated with 12 energies" in said
    assert "calibrated with 54 forces" in said
    assert said.count("rank correlation") == 2
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


def test_true_errors_beside_the_expected(folder, capsys):
    model = ["--model", str(MODEL)]
    assert main(["uncertainty", "fit", "train.xyz", "--validation", "valid.xyz", *model]) == DONE
    capsys.readouterr()
    given = ["score", "valid.xyz", "train.xyz", "--labels", "--uncertainty", "train.npz", *model]
    assert main([*given, "--json", "--csv", "table.csv"]) == DONE
    rows = {row["structure"]: row for row in json.loads(capsys.readouterr().out)}
    assert len(rows) == 42
    frames = read("valid.xyz", ":")
    for index, (atoms, out) in enumerate(
        zip(frames, Potential(MODEL).evaluate(frames), strict=True)
    ):
        row = rows[f"valid.xyz@{index}"]
        error = out.energy - atoms.get_potential_energy()
        assert row["energy_error_eV"] == pytest.approx(error, abs=1e-8)
        rmse = np.sqrt(np.mean((out.forces - atoms.get_forces()) ** 2))
        assert row["forces_rmse_eV_per_A"] == pytest.approx(rmse, abs=1e-6)
    with open("table.csv", newline="") as file:
        assert "forces_rmse_eV_per_A" in next(csv.reader(file))
    assert main(given) == DONE
    said = capsys.readouterr().out
    for name, count in (("valid.xyz", 12), ("train.xyz", 30), ("all", 42)):
        assert f"{name}: {count} structures; rank correlations: energy errors and unc" in said
    assert main(["score", "valid.xyz", "--labels", "--committee", str(MODEL)]) == BAD_INPUT


def test_agreement_is_that_of_ranks():
    def judged(sign):
        return [
            Judged(np.full(2, k), k, sign * k**3, np.full((2, 3), 5.0 + sign * k))
            for k in (0.1, 0.5, 2.0, 3.0)
        ]

    assert Agreement.of(judged(1)) == Agreement(
        pytest.approx(1), pytest.approx(1), pytest.approx(1)
    )
    # The sign of an energy error does not matter, the size of a force error does.
    assert Agreement.of(judged(-1)) == Agreement(
        pytest.approx(1), pytest.approx(-1), pytest.approx(-1)
    )
    bare = [replace(x, energy_uncertainty=None, force_errors=None) for x in judged(1)]
    assert Agreement.of(bare) == Agreement(None, None, None)


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
        (["score", "nothing.xyz", "--uncertainty", "no.npz"], "nothing.xyz"),
        (["score", "pool.extxyz", "--committee", "no.pt"], "no.pt"),
        (["score", "pool.extxyz", "--committee", "no.pt", "--forces", "2"], "which is missing"),
        (["select", "nothing.xyz"], "nothing.xyz"),
        (["select", "pool.extxyz", "-n", "0"], "number = 0 must be at least 1"),
        (["uncertainty", "fit", "nothing.xyz"], "nothing.xyz"),
        (["uncertainty", "fit", "train.xyz", "--uncertainty", "a.npz"], "a fit makes one"),
        (["uncertainty", "fit", "train.xyz", "--members", "1"], "members = 1 must be 0, or"),
        (["score", "pool.extxyz", "--uncertainty", "train.xyz"], "not an uncertainty of a model"),
        (["sp", "pool.extxyz", "--uncertainty", "no.npz"], "no.npz: not an uncertainty"),
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
