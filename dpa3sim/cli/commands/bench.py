"""Measure the time for energy, forces and stress of your own structures, as in dynamics."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dpa3sim.cli.live import Terminal
from dpa3sim.cli.options import Parser, add_config, add_settings, resolve
from dpa3sim.common.errors import DONE, SOME_FAILED, Dpa3simError, InputError
from dpa3sim.common.settings import option, validate
from dpa3sim.potential.settings import ModelSettings
from dpa3sim.structures.given import ReadingSettings
from dpa3sim.structures.reading import Source, introduction, read_structures

if TYPE_CHECKING:
    from dpa3sim.potential.potential import Potential

EXAMPLES = """\
dpa3sim bench POSCAR
dpa3sim bench POSCAR --copies 32 --threads 1        # in one batch, on one core
dpa3sim bench POSCAR --ranks 2                      # measured and predicted for two processes
"""


@dataclass(frozen=True)
class Settings:
    """How to measure."""

    steps: int = option(10, "number of timed evaluations", minimum=1)
    warm_up: int = option(3, "number of evaluations before, which are not timed", minimum=0)
    copies: int = option(1, "number of copies that are evaluated as one batch", minimum=1)
    threads: int = option(0, "number of threads; 0 is the choice of torch", minimum=0)
    timestep: float = option(
        1.0, "time step for the simulated time per day", unit="fs", minimum=0.0
    )

    def __post_init__(self) -> None:
        validate(self)


def configure(parser: Parser) -> None:
    """Arguments of ``dpa3sim bench``."""
    parser.add_argument("structures", nargs="+", metavar="STRUCTURE", help="file, or FILE@INDEX")
    add_settings(parser, "measurement", Settings)
    add_settings(parser, "model", ModelSettings)
    add_settings(parser, "reading of structure files", ReadingSettings)
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="print only the results, as JSON")


def run(args: argparse.Namespace) -> int:
    """Measure every structure."""
    settings, model, reading = resolve(args, Settings, ModelSettings, ReadingSettings)
    sources = read_structures(args.structures, reading)
    if settings.threads:
        import torch

        torch.set_num_threads(settings.threads)
    terminal = Terminal(args.json)
    potential, results, codes = None, [], []
    for source in sources:
        try:
            if isinstance(source, InputError):
                raise source
            if potential is None:
                potential = terminal.load(model)
            for line in introduction([source]):
                terminal.say(line)
            results.append(measure(source, potential, settings))
            terminal.say(summary(results[-1]))
        except Dpa3simError as error:
            origin = "" if error is source else f"{source.origin}: "  # type: ignore[union-attr]
            print(f"dpa3sim: error: {origin}{error}", file=sys.stderr)
            codes.append(error.exit_code)
    if args.json:
        print(json.dumps(results if len(sources) > 1 else next(iter(results), None), indent=2))
    if not codes:
        return DONE
    return SOME_FAILED if results else codes[0]


def measure(source: Source, potential: Potential, settings: Settings) -> dict[str, Any]:
    """Time one structure, or independently moving copies of it; the result is JSON-ready."""
    import numpy as np
    import torch

    from dpa3sim.run.benchmark import peak_memory, time_calls

    batch = _Batch(source.atoms, potential, settings.copies)
    time_calls(batch, settings.warm_up, seed=0)
    before = potential.counters.to_dict()
    seconds = time_calls(batch, settings.steps, seed=1)
    after = potential.counters.to_dict()
    median = float(np.median(seconds))
    n = len(source.atoms)
    shared = _shared(source.atoms, potential, settings.copies)
    deviation = potential.matmul_deviation
    return {
        "structure": source.origin,
        "formula": source.atoms.get_chemical_formula(),
        "n_atoms": n,
        "copies": settings.copies,
        "edges_per_atom": batch.results[0].n_edges / n,
        "angles_per_atom": batch.results[0].n_angles / n,
        "step_ms": 1e3 * median,
        "step_min_ms": 1e3 * min(seconds),
        "step_max_ms": 1e3 * max(seconds),
        "per_atom_ms": 1e3 * median / (n * settings.copies),
        "timestep_fs": settings.timestep,
        "simulated_ns_per_day": 1e-6 * settings.timestep * 86400 / median,
        "peak_memory_MiB": peak_memory() / 2**20,
        "threads": torch.get_num_threads(),
        "device": str(potential.device),
        "dtype": potential.dtype,
        "smooth_cutoff_A": potential.smooth_cutoff,
        "dispersion": None if potential.dispersion is None else potential.dispersion.facts(),
        **shared,
        "kernels": potential.kernels,
        "matmul": potential.matmul,
        "matmul_deviation": deviation and asdict(deviation),
        "counters": {name: after[name] - before[name] for name in after},
        "warnings": [*source.warnings, *batch.results[0].warnings],
    }


def _shared(atoms: Any, potential: Potential, copies: int) -> dict[str, Any]:
    """How ranks share the structures, and how long it should take; nothing with one rank."""
    if potential.shared is None:
        return {"ranks": 1}
    from dpa3sim.run.cost import Neighbours, Pace, density, seconds_on_ranks

    shared, sizes = potential.shared, [len(atoms)] * copies
    pace = Pace.measure(atoms, potential)
    alone = pace.seconds(1, copies * Neighbours.of(atoms, potential).work)
    facts, balance = shared.facts(), shared.model.balance
    return {
        "ranks": potential.ranks,
        "sharing": str(shared.sharing(sizes)),
        "imbalance": None if balance is None else balance.imbalance,
        "atoms_of_ranks": None if balance is None else balance.n_atoms.tolist(),
        "ghosts_of_ranks": None if balance is None else balance.n_ghosts.tolist(),
        "predicted_step_ms": 1e3 * seconds_on_ranks(alone, sizes, density(atoms), potential),
        "exchange_ms_of_ranks": [
            1e3 * x["traffic"]["seconds"] / max(1, x["traffic"]["steps"]) for x in facts
        ],
        "traffic_of_ranks": [x["traffic"] for x in facts],
        "peak_memory_of_ranks_MiB": [x["peak_memory"] / 2**20 for x in facts],
    }


class _Batch:
    """Copies of a structure, with the few methods of ASE atoms that are needed for timing."""

    def __init__(self, atoms: Any, potential: Potential, copies: int) -> None:
        import numpy as np

        self._atoms = [atoms.copy() for _ in range(copies)]
        self._potential = potential
        self.pbc = atoms.pbc
        self.positions = np.concatenate([a.positions for a in self._atoms])

    def get_potential_energy(self) -> None:
        import numpy as np

        parts = np.split(self.positions, len(self._atoms))
        for atoms, positions in zip(self._atoms, parts, strict=True):
            atoms.positions[:] = positions
        self.results = self._potential.evaluate(self._atoms)

    def get_forces(self) -> None:
        """They are already known, and so is the stress."""

    get_stress = get_forces


def summary(result: dict[str, Any]) -> str:
    """The result in a few lines for people."""
    copies = f" x {result['copies']}" if result["copies"] > 1 else ""
    counters = result["counters"]
    lines = [
        f"{result['structure']}: {result['formula']}, {result['n_atoms']} atoms{copies}, "
        f"{result['edges_per_atom']:.0f} edges and {result['angles_per_atom']:.0f} angles per atom",
        f"  {result['per_atom_ms']:.3g} ms/atom, {result['step_ms']:.4g} ms/step "
        f"({result['step_min_ms']:.4g} to {result['step_max_ms']:.4g}), "
        f"{result['simulated_ns_per_day']:.3g} ns/day at {result['timestep_fs']:g} fs",
        f"  {result['kernels']} kernels, {result['threads']} threads, "
        f"peak memory {result['peak_memory_MiB']:.0f} MiB, "
        f"{counters['rebuilds']} neighbour searches in {counters['batches']} steps",
    ]
    if result["ranks"] > 1:
        memory = " and ".join(f"{x:.0f}" for x in result["peak_memory_of_ranks_MiB"])
        lines.append(
            f"  {result['ranks']} ranks: {result['sharing']}; predicted "
            f"{result['predicted_step_ms']:.4g} ms/step, exchanges with waiting at most "
            f"{max(result['exchange_ms_of_ranks']):.3g} ms/step, peak memory {memory} MiB"
        )
    return "\n".join(lines + [f"  warning: {warning}" for warning in result["warnings"]])
