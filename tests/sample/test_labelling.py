"""Labels of a model and of calculators; failures that do not end anything."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from tests_support import hydrogen_oxygen_structures

from dpa3sim.common.errors import InputError
from dpa3sim.sample import label, labelling
from dpa3sim.sample.export import export, from_extxyz, in_box, to_extxyz
from dpa3sim.sample.labelling import Failure, Label, arguments, calculator, labels
from dpa3sim.train.data.reading import read_frames
from dpa3sim.train.data.settings import DataSettings


def metals():
    rng = np.random.default_rng(2)
    frames = [bulk("Cu", cubic=True), bulk("Al"), Atoms("Cu2", [[0, 0, 0], [0, 0, 2.3]])]
    for atoms in frames:
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        atoms.info["config_type"] = "rattled"
    return frames


@pytest.mark.parametrize("batch", [512, 1, 7])
def test_labels_of_the_model(smooth, monkeypatch, batch):
    monkeypatch.setattr(labelling, "BATCH_ATOMS", batch)
    frames = hydrogen_oxygen_structures()
    for atoms, expected in zip(label(frames, smooth), smooth.evaluate(frames), strict=True):
        assert atoms.get_potential_energy() == pytest.approx(expected.energy, abs=1e-9)
        np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-9)
        assert ("stress" in atoms.calc.results) == atoms.pbc.all()
        if atoms.pbc.all():
            virial = -atoms.get_stress(voigt=False) * atoms.get_volume()
            np.testing.assert_allclose(virial, (expected.virial + expected.virial.T) / 2, atol=1e-8)


def test_labels_of_a_calculator():
    frames = metals()
    found = label(frames, EMT())
    for atoms, given in zip(found, frames, strict=True):
        assert given.calc is None
        assert atoms.info == given.info
        expected = given.copy()
        expected.calc = EMT()
        assert atoms.get_potential_energy() == pytest.approx(expected.get_potential_energy())
        np.testing.assert_allclose(atoms.get_forces(), expected.get_forces())
        if given.pbc.all():
            np.testing.assert_allclose(atoms.get_stress(), expected.get_stress())
    assert "stress" not in found[2].calc.results


class Odd(Calculator):
    """Fails for aluminium, has no number for dimers, and a free energy below its energy."""

    implemented_properties = ("energy", "free_energy", "forces")

    def calculate(self, atoms=None, properties=(), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        if 13 in atoms.numbers:
            raise RuntimeError("SCF\ndid not converge")
        energy = np.nan if len(atoms) == 2 else 5.0
        self.results = {"energy": energy, "free_energy": energy - 1, "forces": atoms.positions}


def test_failures_are_named_and_the_others_go_on():
    found = label(metals(), Odd())
    assert found[0].get_potential_energy() == 4.0  # of which the forces are derivatives
    assert "stress" not in found[0].calc.results
    assert [atoms.calc is None for atoms in found] == [False, True, True]
    assert found[1].info["label_error"] == "RuntimeError: SCF did not converge"
    assert found[2].info["label_error"] == "energy is not finite"


def test_failures_of_the_model_are_named(smooth):
    frames = [Atoms("Cu"), molecule("H2O")]
    outcomes = dict(labels(frames, smooth))
    assert isinstance(outcomes[0], Failure)
    assert "Cu" in outcomes[0].reason
    assert isinstance(outcomes[1], Label)


def test_memory_that_runs_out_is_no_failure_of_a_frame():
    class Hungry(Odd):
        def calculate(self, *args, **kwargs):
            raise MemoryError

    with pytest.raises(MemoryError):
        label(metals(), Hungry())


def test_labels_as_text_are_exact():
    for _, found in labels(metals(), EMT()):
        again = Label.from_dict(found.to_dict())
        assert again.energy == found.energy
        assert (again.forces == found.forces).all()
        assert (again.stress is None) == (found.stress is None)
        assert found.stress is None or (again.stress == found.stress).all()


def test_calculators_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_calculators.py").write_text(
        "from ase.calculators.emt import EMT\n"
        "class Shelf:\n"
        "    @staticmethod\n"
        "    def make(cutoff): return EMT(asap_cutoff=cutoff)\n"
    )
    made = calculator("my_calculators:Shelf.make", arguments(["cutoff=True"]))
    assert made.parameters["asap_cutoff"] is True
    assert isinstance(calculator("ase.calculators.emt:EMT", {}), EMT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no_such_module:X", "ModuleNotFoundError"),
        ("ase.calculators.emt:EMTT", "AttributeError"),
        ("collections:Counter", "makes no calculator of ASE, but Counter"),
        ("ase.calculators.lj:LennardJones.nothing", "AttributeError"),
    ],
)
def test_bad_calculators(text, message):
    with pytest.raises(InputError, match=message):
        calculator(text, {})


def test_arguments_are_python_values_or_texts():
    found = arguments(["a=1", "b=1.5", "c=True", "d=[1, 2]", "e=pbe", "f=x=y", "g={'k': (1, 1)}"])
    assert found == {
        "a": 1,
        "b": 1.5,
        "c": True,
        "d": [1, 2],
        "e": "pbe",
        "f": "x=y",
        "g": {"k": (1, 1)},
    }
    with pytest.raises(InputError, match="write it as KEY=VALUE"):
        arguments(["--a"])


def test_a_training_reads_what_is_written(tmp_path, smooth):
    frames = label(hydrogen_oxygen_structures(), smooth)
    for atoms in frames:
        atoms.info |= {"config_type": "md", "parent": "a b.xyz", "detail": "300 K, 5 fs"}
    path = tmp_path / "frames.extxyz"
    path.write_text(to_extxyz(frames))
    found, rejected = read_frames([path], DataSettings(outlier_sigma=0))
    assert len(found) == len(frames)
    assert rejected == ()
    for frame, atoms in zip(found, frames, strict=True):
        assert frame.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-7)
        np.testing.assert_allclose(frame.forces, atoms.get_forces(), atol=1e-7)
        assert (frame.virial is not None) == atoms.pbc.all()
    again = from_extxyz(path)
    assert [a.info["detail"] for a in again] == ["300 K, 5 fs"] * len(frames)
    path.write_text("nothing")
    with pytest.raises(InputError, match="damaged"):
        from_extxyz(path)


def test_inputs_for_other_programs(tmp_path):
    from ase.io import read

    frames = [*metals(), molecule("H2O")]
    frames[3].info["config_type"] = "start"
    export(frames, tmp_path, ["extxyz", "vasp", "espresso"])
    names = sorted(path.name for path in (tmp_path / "vasp").iterdir())
    assert names == ["00000-rattled", "00001-rattled", "00002-rattled", "00003-start"]
    for name, atoms in zip(names, frames, strict=True):
        poscar = read(tmp_path / "vasp" / name / "POSCAR")
        pw = read(tmp_path / "espresso" / name / "pw.in", format="espresso-in")
        for found in (poscar, pw):
            assert sorted(found.numbers) == sorted(atoms.numbers)
            assert found.get_volume() == pytest.approx(in_box(atoms).get_volume(), rel=1e-6)
        text = (tmp_path / "espresso" / name / "pw.in").read_text()
        assert "tprnfor" in text
        points = text.partition("K_POINTS automatic\n")[2].split()[:3]
        assert (points == ["1", "1", "1"]) == (not atoms.pbc.any())
    box = in_box(frames[3])
    assert box.pbc.all()
    assert box.cell.lengths().min() >= 16
