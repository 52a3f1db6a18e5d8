"""The optional compiled kernels; everything else about the package is in pyproject.toml.

One shared library for each instruction set, chosen when it is loaded. They have a plain C
interface, loaded with ctypes, and know neither Python nor torch: a wheel serves every Python.
Without a compiler the build goes on without them (``optional``), and the package runs on tensor
operations.
"""

import os
import platform
from concurrent.futures import ThreadPoolExecutor

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

SOURCE = "dpa3sim/kernels/src/kernels.cpp"
COMMON = [
    "-std=c++17",
    "-O3",
    "-fopenmp",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-Wno-maybe-uninitialized",  # in a header of GCC 12
    # Python's own flags ask for it; it takes a third of the time to compile and most of the file.
    *([] if "CFLAGS" in os.environ else ["-g0"]),
]
# On a processor with neither, the tensor operations are as good.
X86 = {
    "avx512": ["-mavx512f", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"],
    "avx2": ["-mavx2", "-mfma"],
}
VECTOR_BYTES = {"avx512": 64, "avx2": 32, "base": 16}
# Macros and flags of the parts that the source is compiled in, the slowest first: the layers of
# each precision and kind of activation, and the rest. Where functions of the C library take most
# of the time, -O3 gains nothing, and compiles half as long again.
PARTS: list[tuple[list[tuple[str, str]], list[str]]] = [
    *(([("ACTIVATION", "Silut"), ("REAL", real)], []) for real in ("float", "double")),
    *(([("ACTIVATION", "General"), ("REAL", real)], ["-O2"]) for real in ("float", "double")),
    ([], []),
]
COMPILERS = ThreadPoolExecutor(os.cpu_count())


def extensions() -> list[Extension]:
    """The libraries for this machine; none where the compiler is not one like GCC."""
    if os.name != "posix" or os.environ.get("DPA3SIM_NO_NATIVE"):
        return []
    kinds = X86 if platform.machine() in ("x86_64", "AMD64") else {"base": []}
    return [
        Extension(
            f"dpa3sim.kernels._{name}",
            sources=[SOURCE],
            depends=["dpa3sim/kernels/src/simd.hpp", "setup.py"],
            extra_compile_args=[*COMMON, *flags, f"-DVECTOR_BYTES={VECTOR_BYTES[name]}"],
            language="c++",
            # Not linked with an OpenMP runtime: that of torch, loaded before, must be the only one.
            optional=True,
        )
        for name, flags in kinds.items()
    ]


class BuildLibraries(build_ext):
    """Compiles all parts of all libraries side by side; their names say no version of Python."""

    def get_ext_filename(self, fullname: str) -> str:
        """The file of a library, relative to the root of the packages."""
        return f"{fullname.replace('.', '/')}.so"

    def build_extension(self, ext: Extension) -> None:
        """Compile the parts of a library and link them."""
        path = self.get_ext_fullpath(ext.name)
        if not (self.force or newer_group([*ext.sources, *ext.depends], path)):
            return

        def compiled(part: int) -> str:
            macros, flags = PARTS[part]
            (made,) = self.compiler.compile(
                ext.sources,
                output_dir=os.path.join(self.build_temp, f"{ext.name}-{part}"),
                macros=macros,
                debug=self.debug,
                extra_postargs=[*ext.extra_compile_args, *flags],
            )
            return made

        objects = list(COMPILERS.map(compiled, range(len(PARTS))))
        self.compiler.link_shared_object(objects, path, target_lang=ext.language)


class Wheel(bdist_wheel):
    """A wheel for every Python 3 on a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """The tags in the wheel's name."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": Wheel},
    options={"build_ext": {"parallel": len(VECTOR_BYTES)}},
)
