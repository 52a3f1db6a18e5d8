"""Time and peak memory of silicon supercells, a process for each size: does it scale?

python benchmarks/scaling.py [MODEL ...]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from ase.build import bulk
from ase.io import write

SIZES = {512: (4, 4, 4), 1000: (5, 5, 5), 2000: (10, 5, 5), 4000: (10, 10, 5)}


def main() -> None:
    """Measure every model named, the embedded one without arguments."""
    for model in sys.argv[1:] or ["dpa3-openlam"]:
        reference = None
        for n, repeat in SIZES.items():
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / f"Si{n}.extxyz"
                atoms = bulk("Si", cubic=True) * repeat
                atoms.rattle(0.05, seed=1)
                write(file, atoms)
                command = [sys.executable, "-m", "dpa3sim", "bench", str(file), "--json"]
                command += ["--model", model, "--steps", "3", "--warm-up", "1", "--threads", "2"]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
            result = json.loads(done.stdout)
            reference = reference or result["per_atom_ms"]
            print(
                f"{Path(model).stem} Si{n}: {result['per_atom_ms']:.2f} ms/atom "
                f"({result['per_atom_ms'] / reference:.2f} of the first), "
                f"peak {result['peak_memory_MiB'] / 1024:.2f} GiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
