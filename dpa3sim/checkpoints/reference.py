"""The built-in reference results of deepmd-kit for the embedded model."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from dpa3sim.checkpoints.registry import embedded_path


@dataclass(frozen=True)
class Reference:
    """A structure and the result of deepmd-kit with the embedded model.

    Attributes:
        atoms: the structure; energy: eV; forces: ``(n, 3)``, eV/Å.
    """

    atoms: Atoms
    energy: float
    forces: np.ndarray


def references() -> list[Reference]:
    """All reference results."""
    text = embedded_path().with_name("reference.json").read_text(encoding="utf-8")
    return [
        Reference(
            Atoms(case["symbols"], case["positions"], cell=case["cell"], pbc=case["pbc"]),
            case["energy"],
            np.array(case["forces"]),
        )
        for case in json.loads(text)["cases"]
    ]
