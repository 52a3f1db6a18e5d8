"""Training further: what changes before the first step, what is trained, what is not forgotten."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from tests_support import load_small, structures_with_inputs
from training_support import SMALL, labelled, water

from dpa3sim import Potential
from dpa3sim.checkpoints import ModelFile, read_model, write_native
from dpa3sim.cli.main import main
from dpa3sim.common.errors import BAD_INPUT, DONE, NOT_CONVERGED, InputError
from dpa3sim.model.initial import initial_weights
from dpa3sim.model.network import Network
from dpa3sim.train.adapters import LowRank
from dpa3sim.train.finetune import REPLAY, from_model
from dpa3sim.train.gradient import Batch, DifferenceGradient
from dpa3sim.train.loss import Loss
from dpa3sim.train.options import FinetuneOptions
from dpa3sim.train.pretrained import with_case, with_elements
from dpa3sim.train.recording import MemoryRecorder
from dpa3sim.train.replay import labelled as read_and_label
from dpa3sim.train.replay import replayed
from dpa3sim.train.settings import (
    SINGLE,
    FinetuneLossSettings,
    FinetuneScheduleSettings,
    FinetuneSettings,
    FinetuneTrainSettings,
    LossSettings,
    SourceSettings,
)
from dpa3sim.train.trainer import Trainer, labels_of
from dpa3sim.train.trainer import _some as few_frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model of H and O, and labelled frames: water with another reference of energies."""
    found = tmp_path_factory.mktemp("finetune")
    config = replace(SMALL, neuron="24 24").config(("H", "O"))
    weights = initial_weights(config, seed=3)
    weights["out_bias"] = np.array([[[-3.0], [-5.0]]])
    write_native(
        ModelFile(config, weights, "small", found / "small", "native", ""),
        found / "small.safetensors",
    )
    for name, number, seed in (("train", 10, 1), ("valid", 4, 2)):
        atoms = water(number, seed)
        for one, frame in zip(atoms, labelled(atoms), strict=True):
            energy = frame.energy + 2.0 * sum(one.numbers == 1) - 1.0 * sum(one.numbers == 8)
            one.calc = SinglePointCalculator(one, energy=energy, forces=frame.forces)
        write(found / f"{name}.xyz", atoms)
    return found


def options(folder, train=None, schedule=None, loss=None, **own):
    run = {"steps": 8, "batch_size": "2", "validate_every": 4, "validation_share": 0.0}
    run |= {"patience": None, "checks": False} | (train or {})
    own = {"checks": run.pop("checks")} | own
    return FinetuneOptions(
        sources=SourceSettings(str(folder / "train.xyz"), str(folder / "valid.xyz")),
        finetune=FinetuneSettings(model=str(folder / "small.safetensors"), **own),
        train=FinetuneTrainSettings(**run),
        schedule=schedule or FinetuneScheduleSettings(learning_rate=1e-3),
        loss=loss or FinetuneLossSettings(start_pref_v=0, limit_pref_v=0),
    )


def trained(given):
    recorder = MemoryRecorder()
    outcome = Trainer(from_model(given).recipe, recorder).run()
    return outcome, recorder.found["last"][SINGLE]


def energies(config, weights, atoms):
    file = ModelFile(config, weights, "x", "x", "native", "")
    return [x.energy for x in Potential(file, dtype="float64").evaluate(atoms)]


# -- models before they are trained ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["multitask", "static_linear"])
def test_another_case_is_the_same_function_at_first(name):
    from tests_support import MODELS

    path = next(p for p in MODELS if p.parent.name == name)
    potential = load_small(path)
    model, atoms = potential.model, structures_with_inputs()
    config, old, new = with_case(model.config, model.weights)
    expected = [x.energy for x in potential.evaluate(atoms)]
    for weights in (old, new):
        np.testing.assert_allclose(energies(config, weights, atoms), expected, rtol=0, atol=1e-10)
    assert not np.array_equal(old["fitting_net.case_embd"], new["fitting_net.case_embd"])


@pytest.mark.parametrize("neuron", ["16 16", "32 16", "17 16", "34 16"])
def test_no_other_case_where_it_would_change_a_skip_connection(neuron):
    config = replace(SMALL, neuron=neuron).config(("H", "O"))
    weights = initial_weights(config, seed=1)
    same, old, new = with_case(config, weights)
    assert same == config
    for found in (old, new):
        assert all(found[name] is array for name, array in weights.items())


def test_more_elements(folder):
    model = read_model(folder / "small.safetensors")
    config, weights = with_elements(model.config, model.weights, ["H", "N", "Na", "O"], seed=1)
    assert config.type_map == ("H", "O", "N", "Na")
    atoms = water(2, seed=5)
    expected = energies(model.config, model.weights, atoms)
    np.testing.assert_allclose(energies(config, weights, atoms), expected, rtol=0, atol=1e-12)
    # N starts much like O, the nearest known element.
    ammonia = [x.copy() for x in atoms]
    for x in ammonia:
        x.numbers[x.numbers == 8] = 7
    found = np.array(energies(config, weights, ammonia)) - expected
    assert 0 < abs(found).max() < 1.0
    # Widths that allow an identity in the type table: two types and two columns.
    narrow = replace(SMALL, n_dim=2, e_dim=4, axis_neuron=2, a_dim=4, a_compress_rate=0).config(
        ("H", "O")
    )
    start = initial_weights(narrow, seed=1)
    wider = with_elements(narrow, start, ["N"], seed=1)
    np.testing.assert_allclose(
        energies(*wider, atoms), energies(narrow, start, atoms), rtol=0, atol=1e-12
    )


def test_energies_of_elements_follow_the_labels(folder):
    """Labels that differ from the model by energies of the elements leave no error of energies."""
    potential = Potential(folder / "small.safetensors")
    atoms = water(6, seed=4)
    # Two compositions, so that the energies of both elements are determined.
    atoms = [*atoms, *(x[:-1] for x in water(3, seed=8))]
    for one, out in zip(atoms, potential.evaluate(atoms), strict=True):
        energy = out.energy + 2.0 * sum(one.numbers == 1) - 1.0 * sum(one.numbers == 8)
        one.calc = SinglePointCalculator(one, energy=energy, forces=out.forces)
    write(folder / "shifted.xyz", atoms)
    source = SourceSettings(str(folder / "shifted.xyz"), str(folder / "shifted.xyz"))
    for shift, limit in (("elements", 1e-7), ("uniform", 1.0), ("none", 3.0)):
        given = replace(options(folder, {"steps": 1}, shift=shift), sources=source)
        outcome, weights = trained(given)
        start = outcome.rows[0]
        assert start["step"] == 0
        # Positions have eight decimals in the file.
        assert start["validation_rmse_forces_eV_per_A"] < 1e-7
        error = start["validation_rmse_energy_per_atom_eV"]
        assert error < limit
        assert (error > 0.01) == (shift != "elements")
        if shift == "elements":
            expected = [-3.0 + 2.0, -5.0 - 1.0]
            np.testing.assert_allclose(weights["out_bias"].reshape(-1), expected, atol=1e-6)


def test_few_frames_with_all_elements():
    amounts = np.array([[100, 0, 0], [100, 0, 0], [3, 0, 0], [0, 50, 0], [0, 1, 1], [5, 5, 0]])
    assert few_frames(amounts, np.arange(6), 150).tolist() == [0, 1, 3, 4]
    assert few_frames(amounts, np.array([5, 4, 3, 2, 1, 0]), 12).tolist() == [5, 4]
    assert few_frames(amounts, np.arange(6), 10_000).tolist() == [0, 1, 2, 3, 4, 5]


# -- what is trained ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "changed", "kept"),
    [
        ({}, ["descriptor.repflows.layers.0", "fitting_net"], []),
        ({"trainable": "fitting"}, ["fitting_net"], ["descriptor."]),
        (
            {"trainable": "last"},
            ["descriptor.repflows.layers.1", "fitting_net"],
            ["descriptor.repflows.layers.0", "descriptor.type_embedding", "descriptor.repflows.e"],
        ),
        (
            {"trainable": "lora", "lora_rank": 2},
            ["descriptor.repflows.layers.0.node_self_mlp.matrix"],
            ["descriptor.repflows.layers.0.node_self_mlp.bias", "descriptor.repflows.edge_embd"],
        ),
    ],
)
def test_what_is_trained(folder, own, changed, kept):
    before = read_model(folder / "small.safetensors").weights
    outcome, after = trained(options(folder, **own))
    assert outcome.rows[-1]["loss"] < outcome.rows[1]["loss"]
    differs = {name for name, array in after.items() if not np.array_equal(array, before[name])}
    for beginning in changed:
        assert any(name.startswith(beginning) for name in differs), beginning
    for beginning in kept:
        assert not any(name.startswith(beginning) for name in differs), beginning
    if own.get("trainable") == "lora":
        for name in differs - {"out_bias"}:
            assert np.linalg.matrix_rank(after[name] - before[name], tol=1e-10) <= 2


def test_gradients_of_low_rank_changes():
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    trained_ones, fixed = {"a.matrix": matrix.clone(), "a.bias": matrix[0].clone()}, {}
    low_rank = LowRank(2, 3.0, seed=4)
    low_rank.adopt(trained_ones, fixed)
    assert torch.equal(low_rank.fold(trained_ones)["a.matrix"], matrix)
    for tensor in trained_ones.values():
        tensor += 0.3 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        tensor.requires_grad_()
    factor = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    folded = low_rank.fold(trained_ones)["a.matrix"]
    (folded * folded * factor).sum().backward()
    outer = (2 * folded * factor).detach()
    plain = {name: x.detach() for name, x in trained_ones.items()}
    found = low_rank.gradients({"a.matrix": outer}, plain)
    assert found.keys() == trained_ones.keys()
    for name, tensor in trained_ones.items():
        torch.testing.assert_close(found[name], tensor.grad, rtol=1e-12, atol=1e-12)
    with pytest.raises(InputError, match="lora_rank = 9: no trained matrix is larger"):
        LowRank(9, 9.0, seed=1).adopt({"a.matrix": matrix}, {})


def test_gradients_of_the_fitting_net_alone(folder):
    potential = Potential(folder / "small.safetensors")
    frames = labelled(water(2, seed=6))
    systems = [potential.system(frame.system) for frame in frames]
    edges = [potential.edges(x) for x in systems]
    batch = Batch(
        systems,
        edges,
        labels_of(frames, [0, 1], potential.device),
        potential.batcher.memory.limits(False),
        True,
        potential.device,
    )
    model = potential.model
    network = Network(model.config, model.weights, potential.device, torch.float64)
    evaluator = potential.batcher.selection.evaluator(network, sparse=True)

    def loss(*arguments):
        return Loss(LossSettings(), 1e-3)(*arguments, lr=1e-3)

    both = [DifferenceGradient(network, evaluator, fitting_only=x)(batch, loss) for x in (0, 1)]
    whole, part = (x.weights for x in both)
    assert part.keys() == {name for name in whole if name.startswith("fitting_net.")}
    for name, gradient in part.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-10, atol=1e-12)


def test_exported_weights_are_those_that_were_validated(folder):
    """LoRA is folded: the file has the errors of the last row of the learning curve."""
    given = options(folder, {"ema_decay": 0.5}, trainable="lora", lora_rank=2)
    outcome, after = trained(given)
    frames = from_model(given).recipe.tasks[0].validation
    config = read_model(folder / "small.safetensors").config
    potential = Potential(ModelFile(config, after, "x", "x", "native", ""))
    errors = [potential.evaluate([x.system])[0].forces - x.forces for x in frames]
    rmse = np.sqrt(np.mean(np.square(errors)))
    assert outcome.rows[-1]["validation_rmse_forces_eV_per_A"] == pytest.approx(rmse, rel=1e-8)


# -- what is not forgotten ------------------------------------------------------------------------


def test_replayed_structures_start_without_error_and_are_kept(folder):
    replay = {"replay": "auto", "replay_count": 16}
    train = {"steps": 90, "validate_every": 90}
    schedule = FinetuneScheduleSettings(learning_rate=1e-2)
    found = {}
    for weight in (0.0, 1.0):
        given = options(folder, train, schedule, **replay, replay_weight=weight)
        prepared = from_model(given)
        outcome, _ = trained(given)
        start, end = outcome.rows[0], outcome.rows[-1]
        key = f"validation_rmse_forces_eV_per_A_{REPLAY}"
        assert start[key] < 1e-10
        found[weight] = end[key]
        assert prepared.recipe.names == [SINGLE, REPLAY]
        assert [task.name for task in prepared.recipe.main] == [SINGLE]
    assert 0 < found[1.0] < 0.7 * found[0.0]


def test_replayed_structures(folder):
    potential = Potential(folder / "small.safetensors")
    frames = replayed(potential, 30, seed=2)
    assert len(frames) == 30
    pairs = [f for f in frames if not f.system.pbc.any()]
    assert 0 < len(pairs) < 12
    for frame in frames:
        (out,) = potential.evaluate([frame.system])
        assert frame.energy == pytest.approx(out.energy, abs=1e-9)
        np.testing.assert_allclose(frame.forces, out.forces, rtol=0, atol=1e-9)
        assert (frame.virial is None) == (not frame.system.pbc.any())
    assert replayed(potential, 30, seed=2).sha256 == frames.sha256
    assert replayed(potential, 30, seed=3).sha256 != frames.sha256


@pytest.mark.parametrize(("rule", "atoms"), [("4", 4 * 6), ("auto:60", 60)])
def test_batches_of_replayed_structures_have_as_many_atoms(folder, tmp_path, rule, atoms):
    write(tmp_path / "crystals.xyz", [bulk("O", "sc", a=2.2) * 2 for _ in range(8)])
    given = options(folder, {"batch_size": rule}, replay=str(tmp_path / "crystals.xyz"))
    data, replay = from_model(given).recipe.tasks
    assert set(data.training.sizes) == {6}
    assert replay.batch.count(np.full(100, 8)) == -(-atoms // 8)


def test_what_falls_into_a_hole_of_the_energy_is_not_replayed(folder):
    class WithHole(Potential):
        """Crystals of hydrogen collapse; symmetric ones have no forces there."""

        def evaluate_each(self, structures):
            outcomes = super().evaluate_each(structures)
            return [
                replace(x, energy=x.energy - 1e3, forces=0 * x.forces, virial=300 * np.eye(3))
                if one.pbc.any() and set(one.numbers) == {1} and one.get_volume() < 3 * len(one)
                else x
                for one, x in zip(structures, outcomes, strict=True)
            ]

    frames = replayed(WithHole(folder / "small.safetensors"), 30, seed=2)
    assert len(frames) == 30
    assert np.abs(np.nan_to_num(frames.virials)).max() < 300


def test_structures_of_files_are_replayed_with_labels_of_the_model(folder, tmp_path):
    atoms = [*water(5, seed=11), bulk("O", "fcc", 4.2, cubic=True)]
    write(tmp_path / "others.extxyz", atoms)
    potential = Potential(folder / "small.safetensors")
    frames = read_and_label(potential, [str(tmp_path / "others.extxyz")])
    assert len(frames) == 6
    for frame, out in zip(frames, potential.evaluate(atoms), strict=True):
        assert frame.energy == pytest.approx(out.energy, abs=1e-6)
        np.testing.assert_allclose(frame.forces, out.forces, atol=1e-6)
    given = options(folder, {"steps": 2}, replay=str(tmp_path / "others.extxyz"))
    outcome, _ = trained(given)
    assert outcome.rows[0][f"validation_rmse_forces_eV_per_A_{REPLAY}"] < 1e-10
    few = options(folder, replay=f"{folder / 'valid.xyz'}")
    with pytest.raises(InputError, match="4 structures are too few"):
        from_model(few)


def test_only_the_main_task_decides_and_is_written(folder):
    recorder = MemoryRecorder()
    given = options(folder, replay="auto", replay_count=12)
    outcome = Trainer(from_model(given).recipe, recorder).run()
    assert set(recorder.found["best"]) == {SINGLE}
    best = min(row["validation_loss"] for row in outcome.rows if "validation_loss" in row)
    row = next(row for row in outcome.rows if row["step"] == outcome.best_step)
    assert row["validation_loss"] == best


# -- the command ----------------------------------------------------------------------------------


def command(folder, *more):
    return [
        *("finetune", str(folder / "train.xyz"), "--validation", str(folder / "valid.xyz")),
        *("--model", str(folder / "small.safetensors"), "--batch-size", "2", "--steps", "12"),
        *("--validate-every", "4", "--start-pref-v", "0", "--limit-pref-v", "0", *more),
    ]


def test_the_command(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = command(folder, "--replay", "auto", "--replay-count", "10", "--seed", "4")
    assert main(arguments) == DONE
    printed = capsys.readouterr().out
    assert "energies of the elements change by (eV): H" in printed
    assert "before the first step: E" in printed
    assert "before and after, 4 frames:" in printed
    run = tmp_path / "train.finetune"
    found = json.loads((run / "result.json").read_text())
    assert found["protocol"] == "finetune"
    assert set(found["comparison"]["forces_rmse_by_element_eV_per_A"]) == {"H", "O"}
    assert set(found["checks"]["repulsion"]) == {"H-H", "H-O", "O-O"}
    assert {"best.safetensors", "best.pt", "parity.png", "errors.csv"} <= {
        path.name for path in run.iterdir()
    }
    assert not (run / f"best.{REPLAY}.safetensors").exists()
    with open(run / "errors.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 4
    # The comparison is that of the two files.
    before, after = Potential(folder / "small.safetensors"), Potential(run / "best.safetensors")
    assert after.model.origin["started_from"] == "small"
    from ase.io import read

    frames = read(folder / "valid.xyz", ":")
    for potential, when in ((before, "before"), (after, "after")):
        errors = [
            out.forces - atoms.get_forces()
            for out, atoms in zip(potential.evaluate(frames), frames, strict=True)
        ]
        rmse = np.sqrt(np.mean(np.square(errors)))
        assert found["comparison"]["forces_rmse_eV_per_A"][when] == pytest.approx(rmse, rel=1e-5)
    assert main(["report", str(run)]) == DONE
    assert main(arguments) == DONE
    assert "already done" in capsys.readouterr().out


def test_a_stopped_command_continues_with_the_same_bits(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = command(folder, "--trainable", "lora", "--no-checks", "--save-every", "3")
    assert main([*arguments, "--out", "a/run"]) == DONE
    assert main([*arguments, "--out", "b/run", "--max-hours", "1e-9"]) == NOT_CONVERGED
    assert main([*arguments, "--out", "b/run"]) == DONE
    for name in ("best.safetensors", "last.safetensors", "lcurve.csv"):
        assert (tmp_path / "a/run" / name).read_bytes() == (tmp_path / "b/run" / name).read_bytes()


def test_a_model_trained_with_all_neighbours_is_used_so(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*command(folder, "--truncate", "none", "--no-checks"), "--out", "all"]) == DONE
    potential = Potential(tmp_path / "all/best.safetensors")
    assert potential.truncate == "none"
    assert Potential(tmp_path / "all/best.safetensors", truncate="deepmd").truncate == "deepmd"
    assert "trained with all neighbours" in capsys.readouterr().out
    assert not (tmp_path / "all/best.pt").exists()
    again = tmp_path / "again.safetensors"
    assert main(["convert", str(tmp_path / "all/best.safetensors"), str(again)]) == DONE
    assert read_model(again).truncate == "none"
    assert main(["convert", str(again), str(tmp_path / "x.pt")]) == BAD_INPUT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["A={train}"], "leave out TASK="),
        ([], "no training data"),
        (["{train}", "--model", "nothing.pt"], "nothing.pt"),
        (["{train}", "--trainable", "last", "--last-layers", "9"], "the model has 2 layers"),
        (["{train}", "--trainable", "lora", "--lora-rank", "500"], "lora_rank = 500"),
        (["{train}", "--lora-alpha", "-1"], "lora_alpha = -1 must be above 0"),
        (["{train}", "--replay", "nothing.xyz"], "nothing.xyz"),
        (["{train}", "--smooth-cutoff", "9"], "smooth_cutoff"),
    ],
)
def test_bad_input_is_one_line(folder, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = [x.replace("{train}", str(folder / "train.xyz")) for x in arguments]
    if "--model" not in given:
        given += ["--model", str(folder / "small.safetensors")]
    assert main(["finetune", *given]) == BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
