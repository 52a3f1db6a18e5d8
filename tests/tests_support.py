"""Paths, references and comparisons that several tests share."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from torch.utils._python_dispatch import TorchDispatchMode

import dpa3sim
from dpa3sim import Potential
from dpa3sim.graph.lists import Counters, ListCache
from dpa3sim.kernels.evaluator import Evaluator
from dpa3sim.potential.evaluation import Evaluation, raise_first
from dpa3sim.potential.session import Session
from dpa3sim.structures.geometry import complete_cell
from dpa3sim.structures.system import System, as_system

TESTS = Path(__file__).parent
DATA = TESTS / "data"
EXAMPLES = TESTS.parent / "examples"
MODELS_VARIABLE = "DPA3SIM_TEST_MODELS"
# Workers of pytest-xdist share the cores, and so do the processes that their tests start: threads
# that wait for each other on one core are many times slower.
if (WORKERS := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    THREADS = max(1, (os.cpu_count() or 1) // WORKERS)
    os.environ["OMP_NUM_THREADS"] = str(THREADS)
    torch.set_num_threads(THREADS)
# Other processes have the same dpa3sim: that of the folder may lack its compiled kernels, and so
# give other last bits.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(dpa3sim.__file__).parents[1])}


class NoHostAccess(TorchDispatchMode):
    """Fails on operations that make the host wait for the device or ask it for a value."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "equal.default")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert not any(f in name for f in self.FORBIDDEN), name
        if "index.Tensor" in name or "index_put" in name:
            assert all(i is None or i.dtype != torch.bool for i in args[1]), name
        return func(*args, **(kwargs or {}))


def real_model_path(name: str) -> Path:
    """The original .pth file of a public model; skips the test where it is absent."""
    folder = os.environ.get(MODELS_VARIABLE)
    folders = [Path(folder)] if folder else [TESTS.parent.parent / "shared" / "models"]
    for candidate in folders:
        path = candidate / f"2025-03-14-dpa3-{name}.pth"
        if path.is_file():
            return path
    pytest.skip(f"2025-03-14-dpa3-{name}.pth not found; set {MODELS_VARIABLE} to its folder")


# Small models with every option of the architecture, which tests find here.
MODELS = sorted(
    [*(DATA / "variants").glob("*/model.pt"), *(DATA / "models").glob("*/model.pt")],
    key=lambda path: path.parent.name,
)


def head_of(path: Path) -> str | None:
    """The head to take where one of :data:`MODELS` has several."""
    return "Omat24" if path.parent.name == "multitask" else None


def load_small(path: Path, smooth_cutoff: float | None = None) -> Potential:
    """One of :data:`MODELS` in float64."""
    return Potential(path, head=head_of(path), dtype="float64", smooth_cutoff=smooth_cutoff)


def load_reference(path: Path) -> list[dict[str, Any]]:
    """The cases of a reference file."""
    data = json.loads(path.read_text())
    return data.get("cases") or data["systems"]


def reference_atoms(case: dict[str, Any]) -> Atoms:
    """Structure of a reference case, with its extra inputs."""
    atoms = Atoms(case["symbols"], case["positions"], cell=case["cell"], pbc=case["pbc"])
    atoms.info.update(case.get("info", {}))
    if case.get("charge_spin"):
        atoms.info["charge_spin"] = case["charge_spin"]
    return atoms


def assert_parity(
    potential: Potential, case: dict[str, Any], energy: float, forces: float, virial: float
) -> None:
    """Compare with a reference; the bounds of energy and virial are for the whole structure."""
    result = potential.evaluate([reference_atoms(case)])[0]
    assert abs(result.energy - case["energy"]) <= energy
    assert np.abs(result.forces - case["forces"]).max() <= forces
    assert np.abs(result.virial - case["virial"]).max() <= virial


def autograd_results(potential: Potential, atoms: Atoms) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy, forces and virial by the readable network, autograd and a fresh neighbour search.

    What the resident engine must reproduce, and shares no code with it beyond the edge rules.
    """
    batch = potential.graph([atoms])
    vectors = batch.vectors.requires_grad_(True)
    with torch.enable_grad():
        energies = potential.network.atomic_energies(batch, vectors)
        gradient = torch.zeros_like(vectors)
        if energies.requires_grad:
            (found,) = torch.autograd.grad(energies.sum(), vectors, allow_unused=True)
            gradient = gradient if found is None else found
    forces = torch.zeros((len(atoms), 3), dtype=torch.float64)
    forces.index_add_(0, batch.edge_i, gradient)
    forces.index_add_(0, batch.edge_j, -gradient)
    virial = -(gradient.T @ vectors.detach())
    return float(energies.detach().sum()), forces.numpy(), virial.numpy()


def assert_equal_results(result: Any, expected: Any, tolerance: float) -> None:
    """Compare an evaluation with another one, or with energy, forces and virial."""
    if not isinstance(expected, tuple):
        expected = (expected.energy, expected.forces, expected.virial)
    energy, forces, virial = expected
    assert abs(result.energy - energy) <= tolerance * len(forces)
    np.testing.assert_allclose(result.forces, forces, rtol=0, atol=tolerance)
    np.testing.assert_allclose(result.virial, virial, rtol=0, atol=tolerance * len(forces))


def hydrogen_oxygen_structures() -> list[Atoms]:
    """Everything that may stand in a batch, of the two elements that the small models know.

    No neighbours are equally far where the small models cut them: rounding, which differs between
    processors, would choose.
    """
    rng = np.random.default_rng(5)
    cell = [[3.4, 0, 0], [0.8, 3.1, 0], [-0.5, 0.4, 3.3]]
    dense = Atoms("OHHOHH", cell=cell, pbc=True)
    grid = [[i, j, 0] for i in (0, 1) for j in (0, 1, 2)]
    dense.positions = np.array(grid) * [1.7, 1.1, 0] + rng.uniform(0, 0.3, (6, 3))
    slab = bulk("O", "fcc", 4.0, cubic=True) * (1, 1, 2)
    slab.pbc = (True, True, False)
    slab.rattle(0.1, seed=1)
    one = bulk("O", "fcc", 3.2)
    left_handed = bulk("O", "bcc", 2.9, cubic=True)
    left_handed.set_cell(left_handed.cell[[1, 0, 2]])
    left_handed.symbols = "OH"
    for atoms in (slab, one, left_handed):
        atoms.set_cell(atoms.cell @ (np.eye(3) + rng.uniform(0, 0.04, (3, 3))), scale_atoms=True)
    far = molecule("H2O2")
    far.translate([40.0, -30.0, 25.0])
    chain = Atoms("OH", [[0, 0, 0], [1.0, 0.2, 0]], cell=[2.6, 0, 0], pbc=(True, False, False))
    return [molecule("H2O"), dense, Atoms("H"), slab, one, left_handed, far, chain]


def structures_with_inputs() -> list[Atoms]:
    """The same with every extra input that a small model may have."""
    found = hydrogen_oxygen_structures()
    for atoms in found:
        atoms.info |= {
            "fparam": [0.3, 0.7],
            "aparam": np.linspace(-1, 1, len(atoms)),
            "charge_spin": [1, 2],
        }
    return found


class EMTPotential:
    """Effective medium theory in the place of a model: fast metals with known properties.

    Attributes:
        requests: how many structures each request had.
    """

    def __init__(self) -> None:
        descriptor = SimpleNamespace(e_rcut=6.0, has_step=False, add_chg_spin_ebd=False)
        config = SimpleNamespace(descriptor=descriptor)
        self.model = SimpleNamespace(name="emt", head=None, origin={}, config=config)
        self.counters = Counters()
        self.device = torch.device("cpu")
        self.dtype = "float64"
        self.identity = "emt"
        self.requests: list[int] = []

    @property
    def batches(self) -> int:
        return len(self.requests)

    def hessian(self, structure: Any, atoms: Any = None) -> np.ndarray:
        raise NotImplementedError

    def in_precision(self, dtype: str) -> EMTPotential:
        return self

    def check(self, structure: Any) -> None:
        as_system(structure)

    def evaluate(self, structures: Any) -> list[Evaluation]:
        return raise_first(self.evaluate_each(structures))

    def evaluate_each(self, structures: Any) -> list[Any]:
        self.requests.append(len(structures))
        return [self._evaluate(as_system(structure)) for structure in structures]

    @staticmethod
    def _evaluate(structure: System) -> Evaluation:
        atoms = Atoms(
            structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc
        )
        atoms.calc = EMT()
        virial = np.zeros((3, 3))
        if atoms.pbc.any():
            virial = -atoms.get_volume() * atoms.get_stress(voigt=False)
        energies = atoms.get_potential_energies()
        forces = atoms.get_forces()
        return Evaluation(atoms.get_potential_energy(), energies, forces, virial, 0, 0, 0, 0)


class FixedMemory:
    """In the place of a memory plan: the layout and the policy that a test wants."""

    def __init__(self, limits, policy, on_host):
        self._limits, self._policy, self.on_host = limits, policy, on_host

    def limits(self, frugal):
        return self._limits

    def policy(self, layout, frugal):
        return self._policy


def session_of(potential, structures, limits, policy, on_host, network=None):
    """A session by tensor operations, and the systems that it is for, with completed cells."""
    network = network or potential.network
    systems = [potential.system(atoms) for atoms in structures]
    systems = [replace(x, cell=complete_cell(x.cell, x.pbc)) for x in systems]
    session = Session(
        systems,
        potential.rules,
        potential.model.config.descriptor.update_angle,
        Evaluator(network, sparse=on_host),
        FixedMemory(limits, policy, on_host),
        ListCache(potential.rules.e_rcut, 0.3, Counters()),
        network.device,
        False,
        Counters(),
    )
    return session, systems
