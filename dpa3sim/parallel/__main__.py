"""The program of a process that another one started: ``python -m dpa3sim.parallel``."""

import sys

from dpa3sim.parallel.processes import main

if __name__ == "__main__":
    main(sys.argv[1:])
