"""Other formats: which one a file is, what their readers pass over, isotopes, and metadata."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write

from dpa3sim import Potential
from dpa3sim.cli.main import main
from dpa3sim.common.errors import InputError
from dpa3sim.protocols.crystals import guards
from dpa3sim.run.output import write_structure
from dpa3sim.structures.given import ReadingSettings
from dpa3sim.structures.reading import Source, read_structure

HERE = Path(__file__).parent
NACL = (HERE / "qe-input-leading-space/NaCl.in").read_text()


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read_text(name, content, **given):
    Path(name).write_text(content)
    return read_structure(name, ReadingSettings(**given)).atoms


# -- Quantum ESPRESSO -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.in", "x.pwi", "pw.scf.in", "x.inp", "x", "x.txt"])
@pytest.mark.parametrize(
    "change",
    [
        lambda t: t,
        lambda t: t.replace(" &", "&"),
        lambda t: t.replace("&control", "&CONTROL"),
        lambda t: t.replace("&system", "&System"),
        lambda t: "! a comment\n" + t,
        lambda t: t.replace("\n ", "\n    "),
    ],
)
def test_inputs_of_quantum_espresso(name, change):
    atoms = read_text(name, change(NACL))
    assert str(atoms.symbols) == "Na4Cl4"
    assert atoms.get_volume() == pytest.approx(184.25, abs=0.01)


def test_inputs_of_quantum_espresso_with_a_space_group_are_refused():
    with pytest.raises(InputError, match="space group"):
        read_text("x.in", NACL.replace("ibrav = 0", "ibrav = 0\n space_group = 225"))


@pytest.mark.parametrize(
    ("label", "mass", "expected"),
    [
        ("H", "1.008", 1.008),
        ("D", "2.014", 2.014),
        ("H", "2.014", 2.014),
        ("H", "2.0", 2.014),
        ("T", "3.016", 3.016),
    ],
)
def test_isotopes_of_quantum_espresso(label, mass, expected):
    text = NACL.replace(" Cl  35.453  ", f" {label}  {mass}  ").replace(" Cl ", f" {label} ")
    atoms = read_text("x.in", text)
    assert str(atoms.symbols) == "Na4H4"
    np.testing.assert_allclose(atoms.get_masses()[4:], expected, atol=2e-3)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-8-sig", "latin-1"])
def test_encodings(encoding):
    """Editors of Windows write byte order marks; old files have letters of other alphabets."""
    content = NACL.replace("&control", "! Müller, 5.6 Å\n&control")
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    Path("x.in").write_bytes(mark + content.replace("\n", "\r\n").encode(encoding))
    assert str(read_structure("x.in").atoms.symbols) == "Na4Cl4"


# -- parts of a structure -------------------------------------------------------------------------


@pytest.mark.parametrize("extra", ["SYMM -X, -Y, Z", "LATT 1", "LATT -4"])
def test_shelx_files_with_symmetry_are_refused(extra):
    write("x.res", bulk("Si"), format="res")
    assert len(read_structure("x.res").atoms) == 2
    lines = Path("x.res").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("LATT")]
    at = next(k for k, line in enumerate(lines) if line.startswith("SFAC"))
    with pytest.raises(InputError, match="symmetry"):
        read_text("x.res", "\n".join([*lines[:at], extra, *lines[at:]]) + "\n")


@pytest.mark.parametrize(
    ("group", "good"),
    [("P 1", True), ("P1", True), ("", True), ("P 21 21 21", False), ("C 2", False)],
)
def test_pdb_files_with_a_space_group_are_refused(group, good):
    write("x.pdb", bulk("NaCl", "rocksalt", a=5.64, cubic=True), format="proteindatabank")
    lines = Path("x.pdb").read_text().splitlines()
    at = next(k for k, line in enumerate(lines) if line.startswith("CRYST1"))
    lines[at] = lines[at][:54].ljust(55) + group
    if good:
        assert len(read_text("y.pdb", "\n".join(lines) + "\n")) == 8
        return
    with pytest.raises(InputError, match="space group"):
        read_text("y.pdb", "\n".join(lines) + "\n")


def test_a_cell_of_one_angstrom_in_a_pdb_file_is_none():
    """What programs write for molecules, since the format wants a cell."""
    write("x.pdb", molecule("H2O"), format="proteindatabank")
    line = "CRYST1    1.000    1.000    1.000  90.00  90.00  90.00 P 1           1\n"
    atoms = read_text("y.pdb", line + Path("x.pdb").read_text())
    assert not atoms.pbc.any()
    assert atoms.get_chemical_formula() == "H2O"


def test_a_periodic_molecule_of_turbomole_is_refused():
    write("coord", molecule("H2O"), format="turbomole")
    assert len(read_structure("coord").atoms) == 3
    text = Path("coord").read_text().replace("$end", "$periodic 3\n$lattice\n 9 0 0\n$end")
    with pytest.raises(InputError, match="cell"):
        read_text("coord", text)


def test_crystals_of_eon_are_periodic():
    write("x.con", bulk("Cu", cubic=True), format="eon")
    atoms = read_structure("x.con").atoms
    assert atoms.pbc.all()


# -- the format that the user names ---------------------------------------------------------------


def test_formats_by_name(capsys):
    write("x.dat", bulk("Si"), format="vasp")
    for name in ("vasp", "poscar", "POSCAR"):
        assert len(read_structure("x.dat", ReadingSettings(format=name)).atoms) == 2
    with pytest.raises(InputError, match="did you mean"):
        read_structure("x.dat", ReadingSettings(format="vesp"))
    with pytest.raises(InputError, match="not a structure"):
        read_structure("x.dat", ReadingSettings(format="cif"))
    assert main(["sp", "x.dat", "--format", "vasp"]) == 0


def test_standard_input_of_every_kind(monkeypatch):
    import io
    import sys

    cif = (HERE / "cif-symops-no-name/CsCl.cif").read_text()
    lmp = (HERE / "deepmd-water-lmp/water.lmp").read_text()
    poscar = (HERE / "poscar-selective-label-f/POSCAR").read_text()
    xyz = (HERE / "ipi-cell-comment/init.xyz").read_text()
    for text, count in ((cif, 2), (lmp, 12), (poscar, 3), (xyz, 8), (NACL, 8)):
        stdin = io.TextIOWrapper(io.BytesIO(text.encode()))
        monkeypatch.setattr(sys, "stdin", stdin)
        assert (
            len(read_structure("-", ReadingSettings(elements="O,H" if text == lmp else None)).atoms)
            == count
        )


# -- isotopes in every format ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x.gen", "gen"),
        ("x.xsf", "xsf"),
        ("geometry.in", "aims"),
        ("x.cell", "castep-cell"),
        ("x.res", "res"),
        ("POSCAR", "vasp"),
        ("x.extxyz", "extxyz"),
        ("x.xyz", "extxyz"),
    ],
)
def test_deuterium_in_text_formats(name, kind):
    """The symbol D for one hydrogen of a file that ASE wrote."""
    atoms = bulk("LiH", "rocksalt", a=4.08, cubic=True)
    write(name, atoms, format=kind)
    text = Path(name).read_text()
    if kind == "xsf":
        text = re.sub(r"(?m)^(\s*)3(?=\s+[-\d.]+\s+[-\d.]+\s+[-\d.]+)", r"\1Li", text)
        text = re.sub(r"(?m)^(\s*)1(?=\s+[-\d.]+\s+[-\d.]+\s+[-\d.]+)", r"\1H", text)
    heavy = re.sub(r"(?<![A-Za-z])H(?![A-Za-z])", "D", text)
    assert heavy != text
    found = read_text(name, heavy)
    assert found.get_chemical_formula() == "H4Li4"
    np.testing.assert_allclose(found.get_masses()[found.numbers == 1], 2.014, atol=1e-3)
    np.testing.assert_allclose(found.get_masses()[found.numbers == 3], 6.94, atol=1e-2)


def test_isotopes_survive_what_we_write():
    atoms = bulk("LiH", "rocksalt", a=4.08, cubic=True)
    masses = atoms.get_masses()
    masses[[1, 5]] = 2.014, 3.016
    atoms.set_masses(masses)
    write_structure(Path(), "out", atoms)
    for name in ("out.vasp", "out.extxyz"):
        found = read_structure(name).atoms
        assert found.get_chemical_formula() == "H4Li4"
        np.testing.assert_allclose(np.sort(found.get_masses()), np.sort(masses), atol=1e-3)
    assert " D" in Path("out.vasp").read_text()
    assert "119" not in Path("out.vasp").read_text()


def test_runs_of_isotopes_are_different_runs():
    light = bulk("LiH", "rocksalt", a=4.08)
    heavy = light.copy()
    heavy.set_masses([6.94, 2.014])
    usual = light.copy()
    usual.set_masses(light.get_masses())
    first, second, third = (Source("x", "x", a).sha256 for a in (light, heavy, usual))
    assert first == third != second


# -- metadata -------------------------------------------------------------------------------------

STRANGE = [
    {"charge": "neutral"},
    {"charge": "+1"},
    {"charge": np.array([0, 0])},
    {"charge": None},
    {"charge": [1, "a"]},
    {"charge": {"total": 0}},
    {"charge": np.float64(1)},
    {"charge": True},
    {"charge": "neutral", "spin": "singlet"},
    {"charge_spin": "none"},
    {"charge_spin": [[0], 1]},
    {"fparam": "warm"},
    {"fparam": np.array(["a"])},
    {"aparam": "x"},
    {"spin": object()},
    {"charge": np.array([])},
    {"charge": float("nan")},
    {"charge": 10**400},
    {"energy": "low"},
    {"stress": "none"},
    {"key with spaces": 1, 'quotes "': "a"},
]


@pytest.mark.parametrize("info", STRANGE, ids=range(len(STRANGE)))
def test_metadata_of_any_kind(info, embedded):
    """Is of no consequence for a model that takes none of it."""
    from dpa3sim.protocols import md, relax

    atoms = bulk("NaCl", "rocksalt", a=5.64)
    atoms.info.update(info)
    expected = embedded.evaluate([bulk("NaCl", "rocksalt", a=5.64)])[0].energy
    assert embedded.evaluate([atoms])[0].energy == pytest.approx(expected, abs=1e-6)
    assert relax.run(atoms, embedded, relax.Settings(steps=1, fmax=10)).converged
    assert guards.domain(atoms, embedded, embedded.evaluate([atoms])[0]) is not None
    result = md.run(atoms, embedded, md.Settings(steps=1, temperature=100))
    assert result.n_steps == 1
    Source("x", "x", atoms).sha256  # noqa: B018 - it must be possible


@pytest.mark.parametrize("info", STRANGE, ids=range(len(STRANGE)))
def test_metadata_for_a_model_that_takes_charges(info):
    """One line, or a result."""
    from tests_support import DATA

    potential = Potential(DATA / "models/charge_spin/model.pt")
    atoms = molecule("H2O")
    atoms.info.update(info)
    (answer,) = potential.evaluate_each([atoms])
    if isinstance(answer, InputError):
        assert len(str(answer)) < 300
    else:
        assert not isinstance(answer, Exception)
        assert np.isfinite(answer.energy)


@pytest.mark.parametrize(
    "command",
    [
        ["relax", "--steps", "1", "--fmax", "10"],
        ["sp"],
        ["md", "--steps", "1"],
        ["eos"],
        pytest.param(["plan", "phonon"], marks=pytest.mark.slow),
        ["bench", "--steps", "1", "--warm-up", "0"],
    ],
)
def test_metadata_in_commands(command):
    atoms = bulk("Cu", cubic=True)
    atoms.info.update(charge="neutral", spin="singlet", charge_spin="none", fparam="warm")
    write("x.extxyz", atoms)
    command, *options = command
    extra = [options.pop(0)] if command == "plan" else []
    assert main([command, *extra, "x.extxyz", *options]) == 0


def test_an_error_in_a_warning_costs_no_work():
    def broken(atoms):
        raise KeyError("charge")

    (warning,) = guards.afterwards(broken, Atoms("H"))
    assert "KeyError" in warning
    assert guards.afterwards(lambda: ("one", "two")) == ["one", "two"]


def test_a_plot_that_fails_costs_no_result(monkeypatch, capsys):
    from dpa3sim.report.plots import properties as plots

    def broken(*_):
        raise ZeroDivisionError("of matplotlib")

    monkeypatch.setattr(plots, "plot_relaxation", broken)
    write("x.extxyz", bulk("Cu"))
    assert main(["relax", "x.extxyz"]) == 0
    result = json.loads(Path("x.relax/result.json").read_text())
    assert result["converged"]
    assert any("ZeroDivisionError" in warning for warning in result["warnings"])
    assert "ZeroDivisionError" in capsys.readouterr().out
