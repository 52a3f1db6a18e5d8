"""The compiled kernels (``src/`` here), where they were built: found and loaded.

They have a plain C interface and share torch's OpenMP runtime: two of them in one process would
get in each other's way, so that none is linked and that of torch is made visible to the library.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dpa3sim.kernels.structs import STRUCTS

ABI = 6
VARIABLE = "DPA3SIM_KERNELS"
"""Environment variable that names a build to use, or ``torch`` for none."""
TRITON = "triton"
"""Its value that asks for the GPU programs; says nothing about a build."""
# Fastest first, with the capability that torch reports for a processor that can run it.
BUILDS = {"avx512": ("AVX512",), "avx2": ("AVX2", "AVX512"), "base": ()}
# "base" is for other processors than x86, whose every model has vectors of 16 bytes.


@dataclass(frozen=True)
class Status:
    """Which kernels run and why.

    Attributes:
        library: the loaded library, or None.
        build: its instruction set, ``"torch"`` without one.
        reason: a phrase for the user.
    """

    library: ctypes.CDLL | None
    build: str
    reason: str


@cache
def status() -> Status:
    """Load the best library for this processor, once."""
    import torch

    wanted = os.environ.get(VARIABLE, "").lower()
    if wanted == "torch":
        return Status(None, "torch", f"{VARIABLE}=torch")
    if wanted == TRITON:
        wanted = ""
    if wanted and wanted not in BUILDS:
        return Status(None, "torch", f"{VARIABLE}={wanted} is not one of {', '.join(BUILDS)}")
    reasons = []
    capability = torch.backends.cpu.get_cpu_capability()
    for build, capabilities in BUILDS.items():
        if wanted not in ("", build) or (capabilities and capability not in capabilities):
            continue
        path = _find(build)
        if path is None:
            reasons.append(f"{build} was not built")
            continue
        try:
            library = _load(path)
        except OSError as error:
            reasons.append(f"{build} cannot be loaded: {error}")
            continue
        return Status(library, build, f"compiled for {build}, this processor has {capability}")
    return Status(None, "torch", "; ".join(reasons) or f"nothing built for {capability}")


def built() -> list[str]:
    """The builds that are installed, without importing torch; :func:`status` chooses of them."""
    return [build for build in BUILDS if _find(build) is not None]


def _find(build: str) -> Path | None:
    file = Path(__file__).parent / f"_{build}.so"
    return file if file.is_file() else None


def _load(path: Path) -> ctypes.CDLL:
    runtime = _openmp_runtime()
    if runtime is not None:
        ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(path))
    library.dpa3_abi.restype = ctypes.c_int64
    if library.dpa3_abi() != ABI:
        raise OSError("it belongs to another version of dpa3sim")
    library.dpa3_size.argtypes, library.dpa3_size.restype = [ctypes.c_int64], ctypes.c_int64
    for number, struct in enumerate(STRUCTS):
        if library.dpa3_size(number) != ctypes.sizeof(struct):
            raise OSError(f"its arguments {struct.__name__} have another layout than ours")
    for precision in ("f32", "f64"):
        for name in ("forward", "backward", "nodes", "nodes_backward", "incoming", "outer"):
            function = getattr(library, f"dpa3_{name}_{precision}")
            function.argtypes, function.restype = [ctypes.c_void_p], None
        getattr(library, f"dpa3_panel_{precision}").restype = ctypes.c_int64
    return library


def _openmp_runtime() -> str | None:
    """The OpenMP library that torch brought into this process, else that of the system."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        maps = ""
    found = re.findall(r"\S*/lib(?:gomp|iomp5|omp)\b[^\s/]*\.so[^\s/]*", maps)
    # Other packages may have brought their own.
    found.sort(key=lambda path: "torch" not in path)
    return found[0] if found else ctypes.util.find_library("gomp")
