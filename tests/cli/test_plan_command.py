"""The command ``dpa3sim plan``: counts, memory and time, with nothing computed or written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.io import write

from dpa3sim import Potential
from dpa3sim.cli.commands.plan import SUBCOMMANDS
from dpa3sim.cli.main import main
from dpa3sim.potential.batches import BatchEvaluator
from dpa3sim.potential.memory import peak_bytes
from dpa3sim.run.cost import MOST_ATOMS, Neighbours, Pace, stand_in


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("Si.vasp", bulk("Si", cubic=True), format="vasp")
    write("A.vasp", bulk("Si", cubic=True)[1:], format="vasp")
    write("B.vasp", bulk("Si", cubic=True)[[0, 2, 3, 4, 5, 6, 7]], format="vasp")
    return tmp_path


def planned(capsys, *arguments):
    assert main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_phonons(capsys):
    arguments = ["phonon", "Si.vasp", "--supercell", "2,2,2"]
    plan = planned(capsys, *arguments)
    stages = {stage["name"]: stage for stage in plan["stages"]}
    supercells = stages["displaced supercells"]
    assert (supercells["n_structures"], supercells["n_atoms_most"]) == (1, 64)
    assert supercells["exact"] is True
    assert not stages["relax"]["exact"]
    assert plan["evaluations_most"] == sum(s["evaluations_most"] for s in plan["stages"])
    assert 0 < supercells["time_least_s"] < supercells["time_most_s"] < plan["time_most_s"]
    assert 0 < plan["memory_GiB"] < plan["memory_available_GiB"]
    assert plan["fits"] is True
    assert plan["command"] == "phonon"
    assert main(["plan", *arguments]) == 0
    out = capsys.readouterr().out
    assert "Si.vasp: Si8, 8 atoms, periodic along abc" in out
    assert "displaced supercells" in out
    assert "steps, as is typical; at most 1000" in out
    assert "on a machine that does nothing else" in out
    assert sorted(p.name for p in Path().iterdir()) == ["A.vasp", "B.vasp", "Si.vasp"]


def test_several_structures_and_settings_from_a_file(capsys):
    Path("x.yaml").write_text("steps: 7\nreplicas: 3\n")
    plans = planned(capsys, "md", "Si.vasp", "A.vasp", "--config", "x.yaml")
    assert [plan["evaluations_least"] for plan in plans] == [24, 24]
    assert [plan["structure"] for plan in plans] == ["Si.vasp", "A.vasp"]
    assert all(plan["exact"] for plan in plans)


@pytest.mark.slow
def test_a_screening_is_a_sum(capsys):
    Path("in").mkdir()
    write("in/a.cif", bulk("Cu", cubic=True), format="cif")
    write("in/b.cif", bulk("Al"), format="cif")
    Path("in/c.cif").write_text("nothing")
    assert main(["plan", "relax", "in", "Si.vasp", "--screen", "many", "--json"]) == 5
    captured = capsys.readouterr()
    assert "c.cif" in captured.err
    plan = json.loads(captured.out)
    assert plan["n_structures"] == 3
    (stage,) = plan["stages"]
    assert stage["n_structures"] == 3
    assert (stage["n_atoms_least"], stage["n_atoms_most"]) == (1, 8)
    assert (stage["evaluations_least"], stage["evaluations_most"]) == (3 * 4, 3 * 61)
    assert not Path("many").exists()
    # What has batches of its own: the stages of one name are added.
    plan = planned(capsys, "eos", "in/a.cif", "in/b.cif", "--screen", "many", "--points", "6")
    stages = {stage["name"]: stage for stage in plan["stages"]}
    assert stages["volumes"]["n_structures"] == 12
    assert main(["plan", "relax", "Si.vasp", "--screen", "many", "--out", "x"]) == 2
    assert "--out cannot be used with --screen" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["phonon", "nothing.vasp"],
        ["phonon", "Si.vasp", "--supercell", "huge"],
        ["phonon", "Si.vasp", "--suprcell", "2,2,2"],
        ["eos", "Si.vasp", "--points", "2"],
        ["elastic", "water.xyz"],
        ["relax", "water.xyz", "--cell", "full"],
        ["md", "Si.vasp", "--ensemble", "nve", "--temperature-end", "9"],
        ["neb", "Si.vasp"],
        ["neb", "Si.vasp", "A.vasp"],
        ["vacancy", "Si.vasp", "--reference", "nothing.cif"],
        ["surface", "Si.vasp", "--miller", "0,0,0"],
        ["pimd", "Si.vasp", "--method", "piglet"],
        ["relax", "Si.vasp", "--model", "nothing.pth"],
        ["relax", "Si.vasp", "--config", "nothing.yaml"],
        ["relax"],
    ],
    ids=" ".join,
)
def test_errors_are_those_of_the_command(capsys, arguments):
    write("water.xyz", molecule("H2O"), format="xyz")
    errors = []
    for words in (arguments, ["plan", *arguments]):
        assert main(words) == 2
        errors.append(capsys.readouterr().err.replace("dpa3sim plan ", "dpa3sim "))
    assert errors[0] == errors[1]
    assert len(errors[0].splitlines()) == 1


def test_one_bad_structure_of_several(capsys):
    assert main(["plan", "relax", "Si.vasp", "nothing.vasp"]) == 5
    captured = capsys.readouterr()
    assert "\ntotal  " in captured.out
    assert "nothing.vasp: no such file" in captured.err


def test_usage(capsys):
    assert main(["plan"]) == 2
    assert "plan needs a command, one of sp, relax, eos" in capsys.readouterr().err
    assert main(["plan", "phnon", "Si.vasp"]) == 2
    assert "did you mean 'phonon'" in capsys.readouterr().err
    assert main(["plan", "--help"]) == 0
    for command in SUBCOMMANDS:
        assert main(["plan", command, "--help"]) == 0
    assert "--beads" in capsys.readouterr().out


def test_every_command_with_a_protocol_can_be_planned():
    from importlib import import_module

    from dpa3sim.cli.command import Command
    from dpa3sim.cli.main import COMMANDS

    modules = {
        name: import_module(f"dpa3sim.cli.commands.{name.replace('-', '_')}") for name in COMMANDS
    }
    protocols = {
        name
        for name, module in modules.items()
        if isinstance(getattr(module, "COMMAND", None), Command)
    }
    assert protocols | {"train", "finetune", "distill", "validate"} == set(SUBCOMMANDS)


def test_nothing_large_is_evaluated_and_too_large_is_told(capsys, monkeypatch):
    sizes = []
    original = BatchEvaluator.evaluate

    def evaluate(self, systems, frugal=False):
        sizes.extend(len(x) for x in systems)
        return original(self, systems, frugal)

    monkeypatch.setattr(BatchEvaluator, "evaluate", evaluate)
    monkeypatch.setattr("dpa3sim.potential.memory.free_bytes", lambda device: 10**8)
    write("large.vasp", bulk("Si", cubic=True) * 6, format="vasp")
    plan = planned(capsys, "md", "large.vasp", "--steps", "10")
    assert max(sizes) <= MOST_ATOMS
    assert plan["fits"] is False
    assert "steps: 1728 atoms need more memory" in plan["warnings"][0]
    assert "a stand-in as dense" in plan["time_basis"]


def test_memory_is_that_of_an_evaluation(embedded64):
    """Within a third of what an evaluation allocates."""
    atoms = bulk("Si", cubic=True) * 2
    neighbours = Neighbours.of(atoms, embedded64)
    needed, fits = embedded64.memory_needed(neighbours.n_edges, neighbours.n_angle_edges)
    fresh = Potential(dtype="float64")
    fresh.evaluate([bulk("Si")])
    measured = peak_bytes(torch.device("cpu"), lambda: fresh.evaluate([atoms]))
    assert fits
    assert needed == pytest.approx(measured, rel=0.34)


def test_neighbours_of_a_supercell_are_those_of_its_cell(embedded64):
    cell, supercell = bulk("Si"), bulk("Si") * 3
    small, large = (Neighbours.of(atoms, embedded64) for atoms in (cell, supercell))
    repeated = small.repeated(len(supercell))
    np.testing.assert_array_equal(repeated.n_edges, large.n_edges)
    np.testing.assert_array_equal(repeated.n_angle_edges, large.n_angle_edges)
    assert large.work == pytest.approx(27 * small.work)


def test_stand_ins_are_as_dense_and_of_the_same_elements():
    crystal = bulk("MgO", "rocksalt", a=4.2, cubic=True) * 4
    small = stand_in(crystal)
    assert len(small) < MOST_ATOMS < len(crystal)
    assert small.get_volume() / len(small) == pytest.approx(4.2**3 / 8)
    assert set(small.symbols) == {"Mg", "O"}
    assert abs(np.count_nonzero(small.numbers == 8) / len(small) - 0.5) < 0.05
    assert small.get_all_distances(mic=True)[np.triu_indices(len(small), 1)].min() > 1.2
    assert set(stand_in(molecule("C60")).symbols) == {"C"}


def test_pace():
    pace = Pace(per_batch=0.5, per_work=0.01, timed="")
    assert pace.seconds(batches=3, work=200.0) == pytest.approx(3.5)
