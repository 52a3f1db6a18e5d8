"""The optional compiled kernels; everything else about the package is in pyproject.toml.

One shared library for each instruction set, chosen when it is loaded. They have a plain C
interface, loaded with ctypes, and know neither Python nor torch. Without a compiler the build goes
on without them (``optional``), and the package runs on tensor operations.
"""

import os
import platform

from setuptools import Extension, setup

COMMON = [
    "-std=c++17",
    "-O3",
    "-fopenmp",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-Wno-maybe-uninitialized",  # in a header of GCC 12
]
# On a processor with neither, the tensor operations are as good.
X86 = {
    "avx512": ["-mavx512f", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"],
    "avx2": ["-mavx2", "-mfma"],
}
VECTOR_BYTES = {"avx512": 64, "avx2": 32, "base": 16}


def extensions() -> list[Extension]:
    """The libraries for this machine; none where the compiler is not one like GCC."""
    if os.name != "posix" or os.environ.get("DPA3SIM_NO_NATIVE"):
        return []
    kinds = X86 if platform.machine() in ("x86_64", "AMD64") else {"base": []}
    return [
        Extension(
            f"dpa3sim.kernels._{name}",
            sources=["dpa3sim/kernels/src/kernels.cpp"],
            depends=["dpa3sim/kernels/src/simd.hpp"],
            extra_compile_args=[*COMMON, *flags, f"-DVECTOR_BYTES={VECTOR_BYTES[name]}"],
            language="c++",
            # Not linked with an OpenMP runtime: that of torch, loaded before, must be the only one.
            optional=True,
        )
        for name, flags in kinds.items()
    ]


# Compiling takes a minute or more each.
setup(ext_modules=extensions(), options={"build_ext": {"parallel": 2}})
