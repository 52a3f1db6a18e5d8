"""Fail unless the installed package has all compiled kernels for this processor, and computes.

Not a test, but what is run where a wheel was installed: by test_wheel.py and by cibuildwheel.
"""

from __future__ import annotations

import platform
import sys

import numpy as np

import dpa3sim
from dpa3sim import Potential
from dpa3sim.checkpoints.reference import references
from dpa3sim.kernels import libraries

expected = ["avx512", "avx2"] if platform.machine() in ("x86_64", "AMD64") else ["base"]
if libraries.built() != expected:
    sys.exit(f"{dpa3sim.__file__}: kernels {libraries.built()} were built, not {expected}")
status = libraries.status()
if status.library is None:
    sys.exit(f"no kernels are used: {status.reason}")
known = min(references(), key=lambda case: len(case.atoms))
(found,) = Potential(device="cpu").evaluate([known.atoms])
error = float(np.abs(found.forces - known.forces).max())
if not error < 1e-4:
    sys.exit(f"forces of {known.atoms.symbols} differ by {error:.1e} eV/Å from deepmd-kit's")
print(f"{dpa3sim.__file__}: kernels {status.build}; forces within {error:.1e} eV/Å of deepmd-kit's")
