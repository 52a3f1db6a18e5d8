"""Paths, references and comparisons that several tests share."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms

from dpa3sim import Potential

TESTS = Path(__file__).parent
DATA = TESTS / "data"
EXAMPLES = TESTS.parent / "examples"
MODELS_VARIABLE = "DPA3SIM_TEST_MODELS"


def real_model_path(name: str) -> Path:
    """The original .pth file of a public model; skips the test where it is absent."""
    folder = os.environ.get(MODELS_VARIABLE)
    folders = [Path(folder)] if folder else [TESTS.parent.parent / "shared" / "models"]
    for candidate in folders:
        path = candidate / f"2025-03-14-dpa3-{name}.pth"
        if path.is_file():
            return path
    pytest.skip(f"2025-03-14-dpa3-{name}.pth not found; set {MODELS_VARIABLE} to its folder")


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
