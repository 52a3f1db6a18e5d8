"""Relax structures to their energy minimum and write one run directory for each."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa3sim.cli.options import (
    ModelSettings,
    Parser,
    add_config,
    add_settings,
    announce,
    resolve,
)
from dpa3sim.cli.structures import Source, read_structures
from dpa3sim.errors import Dpa3simError, Dpa3simWarning, InputError
from dpa3sim.files import atomic_write
from dpa3sim.protocols import relax
from dpa3sim.run import directory as rundir
from dpa3sim.run.directory import RunDirectory

if TYPE_CHECKING:
    from ase import Atoms
    from rich.console import Console
    from rich.live import Live

    from dpa3sim.potential import Potential

DONE, BAD_INPUT, NOT_CONVERGED, SOME_FAILED, INTERRUPTED = 0, 2, 3, 5, 130
TRAJECTORY = "trajectory.extxyz"
STRUCTURE = "structure_relaxed"
PLOT = "convergence.png"


def configure(parser: Parser) -> None:
    """Arguments of ``dpa3sim relax``."""
    parser.add_argument(
        "structures",
        nargs="+",
        metavar="STRUCTURE",
        help="file of any format that ASE reads; FILE@INDEX for a frame; - for standard input",
    )
    add_settings(parser, "relaxation", relax.Settings)
    add_settings(parser, "model", ModelSettings)
    add_config(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out", metavar="DIR", help="run directory; with several structures, their parent"
    )
    group.add_argument("--force", action="store_true", help="replace an existing run directory")
    group.add_argument("--no-plot", action="store_true", help="do not draw the convergence")
    group.add_argument("--json", action="store_true", help="print only the results, as JSON")
    group.add_argument("--quiet", action="store_true", help="print only errors")


def run(args: argparse.Namespace) -> int:
    """Relax all structures; a failure of one does not stop the others."""
    from rich.console import Console

    settings, model = resolve(args, relax.Settings, ModelSettings)
    sources = read_structures(args.structures)
    if not any(isinstance(s, Source) for s in sources):
        for source in sources:
            print(f"dpa3sim: error: {source}", file=sys.stderr)
        return BAD_INPUT
    console = Console(quiet=args.quiet or args.json, highlight=False, soft_wrap=True)
    potential = model.load()
    announce(console, potential)

    codes: list[int] = []
    results: list[dict[str, Any]] = []
    for source in sources:
        if isinstance(source, InputError):
            print(f"dpa3sim: error: {source}", file=sys.stderr)
            codes.append(source.exit_code)
            continue
        try:
            job = _Job(source, potential, settings, args, _out(args, source, len(sources)), console)
            with warnings.catch_warnings():
                # What limits a result stands in the result, and is printed with it.
                warnings.simplefilter("ignore", Dpa3simWarning)
                result = job.execute()
        except Dpa3simError as error:
            print(f"dpa3sim: error: {source.origin}: {error}", file=sys.stderr)
            codes.append(error.exit_code)
            continue
        results.append(result)
        codes.append(DONE if result["converged"] else NOT_CONVERGED)
    if args.json:
        shown: Any = results if len(sources) > 1 else next(iter(results), None)
        print(json.dumps(shown, indent=2, ensure_ascii=False))
    return _exit_code(codes)


def _exit_code(codes: Sequence[int]) -> int:
    """One code for all structures; mixed failures are 5, the others having been kept."""
    failures = set(codes) - {DONE}
    if not failures:
        return DONE
    if len(codes) == 1 or failures == {NOT_CONVERGED} or set(codes) == failures == {codes[0]}:
        return failures.pop()
    return SOME_FAILED


def _out(args: argparse.Namespace, source: Source, count: int) -> Path:
    name = f"{source.label}.relax"
    if args.out is None:
        return Path(name)
    return Path(args.out) if count == 1 else Path(args.out) / name


class _Job:
    """The relaxation of one structure in its run directory."""

    def __init__(
        self,
        source: Source,
        potential: Potential,
        settings: relax.Settings,
        args: argparse.Namespace,
        path: Path,
        console: Console,
    ) -> None:
        self.source, self.potential, self.settings = source, potential, settings
        self.args, self.console = args, console
        self._live: Live | None = None
        self._began, self._computed = 0.0, 0
        model = potential.model
        self.summary = {
            "protocol": "relax",
            "structure_sha256": source.sha256,
            "structure": source.origin.rpartition("/")[2],
            "model": model.name,
            "model_sha256": model.sha256,
            "head": model.head,
            "dtype": potential.dtype,
            "matmul": potential.matmul,
            "truncate": potential.truncate,
            **asdict(settings),
        }
        # Refuse a bad structure before a directory is made for it.
        self._start = source.atoms
        potential.check(source.atoms)
        relax.check(source.atoms, settings)
        # Names do not change what is computed; more steps continue an unfinished run.
        names = ("structure", "model", "steps")
        identity = {k: v for k, v in self.summary.items() if k not in names}
        self.directory = RunDirectory(
            path, rundir.fingerprint(identity), self.summary, force=args.force
        )

    def execute(self) -> dict[str, Any]:
        """Run, continue, or find done; returns the content of ``result.json``."""
        directory = self.directory
        finished = directory.result
        if finished is not None and (
            finished["converged"] or finished["n_steps"] >= self.settings.steps
        ):
            self._report(finished, f"already done in {directory.path}")
            return finished
        from dpa3sim.run.provenance import session

        directory.write_provenance(session(self.potential, self.args.command_line), self.summary)
        self._write_config()
        atoms, history = self._restore()
        self._say(f"{self.source.origin}: {_describe(self._start)} -> {directory.path}")
        if history:
            self._say(f"continuing after step {history[-1].index}")
        code = INTERRUPTED
        try:
            with self._live_line():
                result = relax.run(
                    atoms,
                    self.potential,
                    self.settings,
                    progress=lambda step, now: self._record(step, now, history),
                    initial=self._start,
                    history=tuple(history),
                )
            code = DONE if result.converged else NOT_CONVERGED
            return self._finish(result)
        except KeyboardInterrupt:
            self._say(f"interrupted; the same command continues (state in {directory.path})")
            raise
        except Dpa3simError as error:
            code = error.exit_code
            directory.log(f"failed: {error}")
            raise
        finally:
            directory.end_session(code)

    @contextmanager
    def _live_line(self) -> Iterator[None]:
        """On a terminal, show below the steps how far and how fast it goes."""
        if not self.console.is_terminal or self.console.quiet:
            yield
            return
        from rich.live import Live

        self._began = time.monotonic()
        with Live(console=self.console, transient=True, auto_refresh=False) as live:
            self._live = live
            yield
        self._live = None

    def _status(self, step: relax.Step) -> str:
        """The live line: how many steps, how fast, what is still missing."""
        self._computed += 1
        pace = (time.monotonic() - self._began) / self._computed
        missing = "; ".join(relax.unmet(step, self.settings)) or "converged"
        return f"step {step.index} of at most {self.settings.steps}, {pace:.2g} s each: {missing}"

    # -- state --------------------------------------------------------------------------------

    def _record(self, step: relax.Step, atoms: Atoms, history: list[relax.Step]) -> None:
        """Save one step: first the frame, then the state that refers to it."""
        from ase.io import write

        history.append(step)
        frame = atoms.copy()
        frame.constraints = []
        frame.info = {k: v for k, v in asdict(step).items() if v is not None}
        frame.arrays["forces"] = atoms.get_forces()
        write(self.directory.path / TRAJECTORY, frame, format="extxyz", append=step.index > 0)
        self.directory.write_checkpoint(
            {
                "positions": atoms.positions.tolist(),
                "cell": atoms.cell[:].tolist(),
                "trajectory_bytes": (self.directory.path / TRAJECTORY).stat().st_size,
                "steps": [asdict(s) for s in history],
            }
        )
        line = step_line(step)
        self.directory.log(line)
        self.console.print(line)
        if self._live is not None:
            self._live.update(self._status(step), refresh=True)

    def _restore(self) -> tuple[Atoms, list[relax.Step]]:
        """The last saved structure and the steps so far; the start where there are none."""
        atoms = self._start.copy()
        state = self.directory.checkpoint
        if state is None:
            return atoms, []
        try:
            history = [relax.Step(**step) for step in state["steps"]]
            atoms.positions = state["positions"]
            atoms.cell = state["cell"]
            # A frame written just before a kill has no state and is computed again.
            with (self.directory.path / TRAJECTORY).open("r+b") as file:
                file.truncate(state["trajectory_bytes"])
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise InputError(
                f"{self.directory.path}: damaged state ({error}); --force starts again"
            ) from None
        return atoms, history

    def _write_config(self) -> None:
        import yaml

        from dpa3sim.checkpoints.registry import reference

        model = self.potential.model
        config = asdict(self.settings) | {
            "model": reference(model),
            "head": model.head,
            "dtype": self.potential.dtype,
            "matmul": self.potential.matmul,
            "truncate": self.potential.truncate,
        }
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        atomic_write(self.directory.path / rundir.CONFIG, text)

    # -- results ------------------------------------------------------------------------------

    def _finish(self, result: relax.Result) -> dict[str, Any]:
        from ase.io import write

        from dpa3sim.run.provenance import model_facts

        path = self.directory.path
        write(path / f"{STRUCTURE}.extxyz", result.atoms, format="extxyz")
        _write_poscar(path / f"{STRUCTURE}.vasp", result.atoms)
        if not self.args.no_plot:
            from dpa3sim.cli.plots import plot_relaxation

            plot_relaxation(path / PLOT, result, self.source.label)
        content = {"protocol": "relax", "structure": self.source.origin, **result.to_dict()}
        content["model"] = model_facts(self.potential.model)
        content["dtype"] = self.potential.dtype
        content["directory"] = str(path)
        self.directory.write_result(content, final=result.converged)
        stored = self.directory.result
        assert stored is not None
        self._report(stored, f"results in {path}")
        return stored

    def _report(self, result: dict[str, Any], where: str) -> None:
        for line in summary_lines(result):
            self._say(line)
        self._say(where)

    def _say(self, message: str) -> None:
        self.directory.log(message)
        self.console.print(message)


def step_line(step: relax.Step) -> str:
    """One line about a step, for terminal and log."""
    stress = "" if step.smax_GPa is None else f"  smax {step.smax_GPa:9.4f} GPa"
    volume = "" if step.volume_A3 is None else f"  V {step.volume_A3:10.3f} Å^3"
    return (
        f"step {step.index:4d}  E {step.energy_eV:14.6f} eV  "
        f"fmax {step.fmax_eV_per_A:8.4f} eV/Å{stress}{volume}"
    )


def summary_lines(result: dict[str, Any]) -> list[str]:
    """The result in a few lines for people."""
    state = "converged" if result["converged"] else "NOT converged"
    lines = [f"{state} after {result['n_steps']} steps: {'; '.join(result['reasons'])}"]
    lines.append(
        f"energy {result['energy_eV']:.6f} eV ({result['energy_per_atom_eV']:.6f} eV/atom), "
        f"{result['energy_eV'] - result['energy_initial_eV']:+.6f} eV from the start"
    )
    if result["cell_lengths_A"]:
        lines.append(_cell_line("cell        ", result, "cell_lengths_A", "cell_angles_deg"))
    if result["conventional_lengths_A"]:
        lines.append(
            _cell_line("conventional", result, "conventional_lengths_A", "conventional_angles_deg")
        )
    if result["spacegroup_final"]:
        lines.append(f"space group {result['spacegroup_initial']} -> {result['spacegroup_final']}")
    lines += [f"warning: {warning}" for warning in result["warnings"]]
    return lines


def _cell_line(name: str, result: dict[str, Any], lengths: str, angles: str) -> str:
    a, b, c = result[lengths]
    alpha, beta, gamma = result[angles]
    return (
        f"{name} a {a:.4f}  b {b:.4f}  c {c:.4f} Å  "
        f"alpha {alpha:.2f}  beta {beta:.2f}  gamma {gamma:.2f}"
    )


def _describe(atoms: Atoms) -> str:
    periodic = "".join(axis for axis, p in zip("abc", atoms.pbc, strict=True) if p)
    kind = f"periodic along {periodic}" if periodic else "molecule"
    return f"{atoms.get_chemical_formula()}, {len(atoms)} atoms, {kind}"


def _write_poscar(path: Path, atoms: Atoms) -> None:
    """POSCAR with the species grouped; a molecule gets a box, which the format demands."""
    from ase.io import write

    atoms = atoms.copy()
    if atoms.cell.rank < 3:
        atoms.center(vacuum=10.0, axis=[i for i in range(3) if not atoms.pbc[i]])
    if not math.isclose(abs(atoms.cell.volume), 0.0):
        write(path, atoms, format="vasp", direct=True, sort=True)
