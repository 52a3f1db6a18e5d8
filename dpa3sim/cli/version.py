"""The output of ``dpa3sim --version``, without importing torch."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

import dpa3sim


def version() -> str:
    """Versions, the default model, and the kernels that were built."""
    from dpa3sim.checkpoints.registry import DEFAULT_MODEL, embedded_path
    from dpa3sim.kernels import libraries as native

    builds = native.built()
    kernels = f"compiled for {', '.join(builds)}" if builds else "tensor operations, none compiled"
    forced = os.environ.get(native.VARIABLE)
    chosen = f"; {native.VARIABLE}={forced}" if forced else ""
    lines = {
        f"dpa3sim {dpa3sim.__version__}": "",
        "model": f"{DEFAULT_MODEL}, embedded ({embedded_path()})",
        "kernels": f"{kernels}{chosen}; `dpa3sim doctor` shows which of them run here",
        "python": platform.python_version(),
        "torch": _version("torch"),
    }
    return "\n".join(f"{name:<9}{value}".rstrip() for name, value in lines.items())


def _version(package: str) -> str:
    try:
        return installed(package)
    except PackageNotFoundError:
        return "not installed"
