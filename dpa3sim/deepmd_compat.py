"""The stand-in for deepmd-kit's calculator: ``python -m dpa3sim.deepmd_compat -- PROGRAM ...``.

See :mod:`dpa3sim.clients.deepmd`.
"""

import sys

from dpa3sim.clients.deepmd import DP, install, main

__all__ = ["DP", "install", "main"]

if __name__ == "__main__":
    sys.exit(main())
