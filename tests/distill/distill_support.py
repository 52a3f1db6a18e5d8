"""A small teacher, a smaller student, and the shortest distillation."""

import json
from pathlib import Path

from ase.build import molecule
from ase.io import write
from tests_support import DATA

TEACHER = str(DATA / "models/dynamic/model.pt")
MODEL = ["--model", TEACHER]
STUDENT = [
    *("--n-dim", "8", "--e-dim", "8", "--a-dim", "4", "--neuron", "8 8", "--e-rcut", "3"),
    *("--e-rcut-smth", "2", "--a-rcut", "2.5", "--a-rcut-smth", "1.5"),
]
SHORT = [
    *("--temperatures", "300 600", "--md-time", "4", "--md-interval", "2"),
    *("--held-out-time", "4", "--own-time", "4", "--own-frames", "2", "--frames", "6"),
    *("--kinds", "rattled md dimers", "--rattle-count", "2", "--dimer-points", "3"),
    *("--min-atoms", "3", "--steps", "6", "--round-steps", "4", "--rounds", "1"),
    *("--validate-every", "2", "--report-every", "2", "--save-every", "1", "--target", "1000"),
    *("--check-atoms", "3"),
]
COMMAND = ["distill", "water.xyz", *MODEL, *STUDENT, *SHORT]


def water(periodic=False):
    """A molecule, in a cell if it is periodic."""
    atoms = molecule("H2O")
    if periodic:
        atoms.set_cell([3.2, 3.2, 3.2])
        atoms.pbc = True
    write("water.xyz", atoms)
    return atoms


def result(folder="water.distill"):
    return json.loads(Path(folder, "result.json").read_text())
