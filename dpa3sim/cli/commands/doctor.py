"""Check this installation: what runs, whether its results are right, and how fast it is."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, get_args

from dpa3sim.cli.live import Terminal
from dpa3sim.cli.options import Parser
from dpa3sim.common.errors import DONE, UNPHYSICAL
from dpa3sim.kernels.api import Matmul

if TYPE_CHECKING:
    from dpa3sim.potential.potential import Potential

# As in the tests, in eV/atom and eV/Å; the reference of deepmd-kit is float32 itself.
ENERGY, FORCE = 1e-6, 2e-5
LIST_STEPS = 12

EXAMPLES = """\
dpa3sim doctor
dpa3sim doctor --device cuda --matmul tf32
"""


def configure(parser: Parser) -> None:
    """Arguments of ``dpa3sim doctor``."""
    parser.add_argument("--device", default="auto", help="device to check [auto]")
    parser.add_argument(
        "--matmul",
        default="full",
        choices=get_args(Matmul),
        help="also measure the effect of rounded matrix products on a GPU [full]",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def run(args: argparse.Namespace) -> int:
    """Check, report, and return 0 if all results are right."""
    from dpa3sim.potential.potential import Potential

    terminal = Terminal(args.json)
    report: dict[str, Any] = environment()
    for name, value in report.items():
        terminal.say(f"{name:<15}{value}")
    potential = rounded = Potential(device=args.device)
    facts = {
        "model": repr(potential),
        "kernels": f"{potential.kernels} ({potential.kernels_reason})",
    }
    if args.matmul != "full":
        rounded = Potential(potential.model, device=args.device, matmul=args.matmul)
        facts["deviation"] = f"{args.matmul} products: {rounded.matmul_deviation}"
    for name, value in facts.items():
        terminal.say(f"{name:<15}{value}")
    report |= facts

    checks = [*parity(potential), lists(potential)]
    for check in checks:
        terminal.say(f"{'ok' if check['passed'] else 'FAILED':<15}{check['what']}")
    speed = pace(rounded)
    terminal.say(
        f"{'speed':<15}{speed['per_atom_ms']:.2f} ms/atom and step for Si64, "
        f"{speed['simulated_ns_per_day']:.3g} ns/day at {speed['timestep_fs']:g} fs"
    )
    hints = list(advice(potential))
    for hint in hints:
        terminal.say(f"{'faster':<15}{hint}")
    passed = all(check["passed"] for check in checks)
    terminal.say("all checks passed" if passed else "the results of this installation are wrong")
    if args.json:
        report |= {"checks": checks, "speed": speed, "advice": hints, "passed": passed}
        print(json.dumps(report, indent=2, ensure_ascii=False))
    return DONE if passed else UNPHYSICAL


def environment() -> dict[str, Any]:
    """Versions, threads and memory."""
    import ase
    import torch

    import dpa3sim
    from dpa3sim.potential.memory import free_bytes

    cpu = torch.device("cpu")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "dpa3sim": f"{dpa3sim.__version__}, Python {platform.python_version()}",
        "torch": f"{torch.__version__}, ASE {ase.__version__}",
        "threads": f"{torch.get_num_threads()} of {cores()} cores",
        "memory": f"{free_bytes(cpu) / 2**30:.1f} GiB free",
        "GPU": ", ".join(gpus) or "none that torch can use",
    }


def cores() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def parity(potential: Potential) -> Iterator[dict[str, Any]]:
    """Compare with the energies and forces of deepmd-kit that come with the embedded model."""
    import numpy as np

    from dpa3sim.checkpoints.reference import references

    for reference in references():
        result = potential.evaluate([reference.atoms])[0]
        energy = abs(result.energy - reference.energy) / len(reference.atoms)
        force = float(np.abs(result.forces - reference.forces).max())
        formula = reference.atoms.get_chemical_formula()
        yield {
            "what": f"{formula} against deepmd-kit: energy {energy:.1e} eV/atom, "
            f"forces {force:.1e} eV/Å",
            "passed": energy <= ENERGY and force <= FORCE,
        }


def lists(potential: Potential) -> dict[str, Any]:
    """Compare kept neighbour lists with fresh ones, while atoms and cell move."""
    import numpy as np
    from ase.build import bulk

    atoms = bulk("MgO", "rocksalt", a=4.25, cubic=True)
    rng = np.random.default_rng(0)
    before, wrong = potential.counters.rebuilds, 0
    for _ in range(LIST_STEPS):
        atoms.positions += rng.normal(scale=0.06, size=atoms.positions.shape)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(scale=0.004, size=(3, 3))), True)
        found = potential.evaluate([atoms])[0]
        fresh = potential.edges(atoms)
        angles = int((fresh.n_angle_edges**2).sum())
        wrong += (found.n_edges, found.n_angles) != (len(fresh.i), angles)
    searches = potential.counters.rebuilds - before
    return {
        "what": f"neighbour lists: {LIST_STEPS} steps with {searches} searches, {wrong} wrong",
        "passed": wrong == 0,
    }


def pace(potential: Potential) -> dict[str, Any]:
    """Measure the speed for 64 silicon atoms."""
    from ase.build import bulk

    from dpa3sim.cli.commands.bench import Settings, measure
    from dpa3sim.structures.reading import Source

    silicon = bulk("Si", cubic=True) * 2
    silicon.rattle(0.05, seed=1)
    return measure(Source("Si64", "Si64", silicon), potential, Settings(steps=6, warm_up=2))


def advice(potential: Potential) -> Iterator[str]:
    """What would make dpa3sim faster on this machine."""
    import torch

    from dpa3sim.kernels import libraries as native

    if potential.device.type != "cpu":
        if potential.kernels != "triton":
            yield f"the Triton programs are not used: {potential.kernels_reason}"
        return
    if native.status().library is None:
        yield (
            "the compiled kernels are about twice as fast: install a C++ compiler (g++), "
            "then `pip install --force-reinstall --no-deps dpa3sim`"
        )
    threads, available = torch.get_num_threads(), cores()
    if threads < available // 2:
        yield f"only {threads} of {available} cores are used: set OMP_NUM_THREADS={available}"
    elif threads > available:
        yield f"{threads} threads share {available} cores: set OMP_NUM_THREADS={available}"
    yield "evaluate small structures together: Potential.evaluate([...]) or Engine.map"
