"""What a calculation was made with: versions, model, machine, command line."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Any

import dpa3sim
from dpa3sim.potential.interface import dispersion_of
from dpa3sim.run.directory import timestamp

if TYPE_CHECKING:
    from dpa3sim.potential.interface import PotentialLike
    from dpa3sim.potential.potential import Potential

_PACKAGES = ("torch", "ase", "numpy", "vesin", "spglib", "safetensors", "ipi", "dftd3")


def session(potential: Potential, command: Sequence[str]) -> dict[str, Any]:
    """Facts about one run of a command, JSON-ready."""
    deviation = potential.matmul_deviation
    return {
        **process_facts(command),
        "device": str(potential.device),
        "ranks": potential.ranks,
        "kernels": potential.kernels,
        "matmul": potential.matmul,
        "matmul_deviation": deviation and asdict(deviation),
        "model": model_facts(potential),
    }


def process_facts(command: Sequence[str]) -> dict[str, Any]:
    """Facts about this process, JSON-ready: when, what, and with which versions."""
    return {
        "started": timestamp(),
        "command": list(command),
        "dpa3sim": dpa3sim.__version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def model_facts(potential: PotentialLike) -> dict[str, Any]:
    """Which model exactly: name, file, checksum, head, origin, and what was changed in it."""
    model, added = potential.model, dispersion_of(potential)
    return {
        "name": model.name,
        "file": str(model.path.resolve()),
        "sha256": model.sha256,
        "head": model.head,
        "source_format": model.source_format,
        "origin": dict(model.origin),
        "smooth_cutoff_A": model.config.descriptor.smooth_cutoff,
        "dispersion": None if added is None else added.facts(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
