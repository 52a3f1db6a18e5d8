"""Estimate the evaluations, atoms, memory and time of a command, without running it.

`dpa3sim plan COMMAND ...` accepts the arguments of that command: `dpa3sim plan phonon POSCAR`.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa3sim.cli.command import Command
from dpa3sim.cli.commands import distill, validate
from dpa3sim.cli.live import Terminal
from dpa3sim.cli.options import Parser
from dpa3sim.common.durations import estimated
from dpa3sim.common.errors import Dpa3simError, Dpa3simWarning, InputError
from dpa3sim.protocols.base import HESSIAN
from dpa3sim.run.job import exit_code, origins
from dpa3sim.structures.reading import introduction
from dpa3sim.structures.sources import entries

if TYPE_CHECKING:
    from dpa3sim.potential.potential import Potential
    from dpa3sim.run.cost import Cost
    from dpa3sim.run.job import Job

SUBCOMMANDS = {
    "sp": "single points",
    "relax": "relaxation",
    "eos": "equation of state",
    "elastic": "elastic constants",
    "md": "molecular dynamics",
    "neb": "barriers",
    "vacancy": "vacancies",
    "surface": "surfaces",
    "phonon": "phonons",
    "gruneisen": "mode Grüneisen parameters",
    "qha": "thermal expansion",
    "kappa": "thermal conductivity",
    "pimd": "path integrals",
    "train": "training",
    "finetune": "training a model further",
    "distill": "a small fast model",
    "validate": "checks of a model",
}
EXAMPLES = """\
dpa3sim plan phonon POSCAR --supercell 20A   # evaluations, atoms, memory and time
dpa3sim plan relax 'in/*.cif' --screen run   # the sum for a screening
"""


def configure(parser: Parser) -> None:
    """Arguments of ``dpa3sim plan`` alone."""
    parser.usage = f"dpa3sim plan {{{','.join(SUBCOMMANDS)}}} STRUCTURE ..."
    parser.epilog = "The options are those of the planned command: dpa3sim plan phonon --help."


def run(args: argparse.Namespace) -> int:
    """Report that a command is missing.

    Raises:
        InputError: always.
    """
    raise InputError(f"plan needs a command, one of {', '.join(SUBCOMMANDS)}")


def subcommand(
    name: str,
) -> PlannedCommand | PlannedTraining | PlannedDistillation | PlannedValidation:
    """The replacement for the module of a command."""
    module = import_module(f"dpa3sim.cli.commands.{name}")
    examples = module.EXAMPLES.replace(f"dpa3sim {name} ", f"dpa3sim plan {name} ")
    if name in ("train", "finetune"):
        return PlannedTraining(name, examples)
    if name == "distill":
        return PlannedDistillation(examples)
    if name == "validate":
        return PlannedValidation(examples)
    return PlannedCommand(module.COMMAND, examples)


@dataclass(frozen=True)
class PlannedCommand:
    """A command that is not run, but whose cost is estimated."""

    command: Command
    EXAMPLES: str

    def configure(self, parser: Parser) -> None:
        """Arguments of the command; those for its output have no effect."""
        parser.description = __doc__
        self.command.configure(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Estimate every calculation after the command's checks; for a screening, the sum."""
        resolved = self.command.resolved(args)
        if self.command.screen(resolved) is not None:
            return _plan_screening(self.command, args, resolved)
        return self.command.each(args, resolved, _plan)


@dataclass(frozen=True)
class PlannedTraining:
    """A training of which only a few steps are made."""

    name: str
    EXAMPLES: str

    def configure(self, parser: Parser) -> None:
        """Arguments of the command; those for its output have no effect."""
        parser.description = __doc__
        self._module.configure(parser)

    @property
    def _module(self) -> Any:
        return import_module(f"dpa3sim.cli.commands.{self.name}")

    def run(self, args: argparse.Namespace) -> int:
        """Make a few steps and say how long all of them take."""
        from dpa3sim.run.training import estimate

        terminal = Terminal(args.quiet or args.json)
        prepared, _, _ = self._module.prepare(args)
        found = estimate(prepared.recipe)
        terminal.say(
            f"{found['steps']} steps of {found['step_s']:.3g} s and {found['validations']} "
            f"validations of {estimated(found['validation_s'])}: {estimated(found['total_s'])}"
        )
        terminal.say(
            f"memory: {found['memory_GiB']:.2g} GiB, libraries included; measured in a few steps "
            f"on {found['device']}"
        )
        if args.json:
            print(json.dumps(found, indent=2))
        return 0


@dataclass(frozen=True)
class PlannedDistillation:
    """A distillation of which a few evaluations and steps are made."""

    EXAMPLES: str

    def configure(self, parser: Parser) -> None:
        """Arguments of the command; those for its output have no effect."""
        parser.description = __doc__
        distill.configure(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Say how long the teacher's evaluations and the trainings take."""
        from dpa3sim.run.distilling import estimate

        options, model, sources = distill.prepare(args)
        terminal = Terminal(args.quiet or args.json)
        cost, training = estimate(sources, terminal.load(model), options)
        for line in (*introduction(sources), *lines(cost)):
            terminal.say(line)
        least, most = (training[f"steps_{x}"] for x in ("least", "most"))
        terminal.say(
            f"training: {least} to {most} steps of {training['step_s']:.3g} s, at most "
            f"{estimated(training['time_most_s'])}; checks and the student's dynamics aside"
        )
        if args.json:
            shown = {"command": "distill", **cost.to_dict(), "training": training}
            print(json.dumps(shown, indent=2, ensure_ascii=False))
        return 0


@dataclass(frozen=True)
class PlannedValidation:
    """Checks of models that are not made."""

    EXAMPLES: str

    def configure(self, parser: Parser) -> None:
        """Arguments of the command; those for its output have no effect."""
        parser.description = __doc__
        validate.configure(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Say how long the checks of each model take."""
        from dpa3sim.run.cost import estimate
        from dpa3sim.run.validating import stages

        terminal = Terminal(args.quiet or args.json)
        plans: list[dict[str, Any]] = []

        def plan(potential: Potential, settings: Any) -> int:
            cost = estimate(stages(potential, settings), potential)
            for line in lines(cost):
                terminal.say(line)
            plans.append({"command": "validate", "model": potential.model.name, **cost.to_dict()})
            return 0

        code = validate.each(args, terminal, plan)
        if args.json:
            shown: Any = plans if len(plans) > 1 else next(iter(plans), None)
            print(json.dumps(shown, indent=2, ensure_ascii=False))
        return code


def _plan(job: Job) -> tuple[dict[str, Any], int]:
    from dpa3sim.run.cost import estimate

    cost = estimate(job.stages(), job.potential)
    for line in (*introduction(job.sources), *lines(cost)):
        job.reporter.say(line)
    return {"command": job.name, "structure": origins(job.sources), **cost.to_dict()}, 0


def _plan_screening(command: Command, args: argparse.Namespace, resolved: list[Any]) -> int:
    """All structures of a screening, regardless of shards."""
    from dpa3sim.run.cost import estimate

    settings, model, reading, screen = resolved
    command.check_screening(args, settings)
    terminal = Terminal(args.quiet or args.json)
    potential = terminal.load(model.for_protocol(settings))
    stages, codes = [], []
    for entry in entries(args.structures, reading):
        try:
            stages += command.job((entry.source,), potential, settings, Path()).stages()
            codes.append(0)
        except Dpa3simError as error:
            where = "" if error is entry.atoms else f"{entry.origin}: "
            print(f"dpa3sim: error: {where}{error}", file=sys.stderr)
            codes.append(error.exit_code)
    if not stages:
        if not codes:
            raise InputError("the input contains no structures")
        return exit_code(codes)
    count = len(codes) - sum(map(bool, codes))
    terminal.say(f"{count} structures -> {screen.screen}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Dpa3simWarning)  # they are for results
        cost = estimate(stages, potential, screen.at_once if command.job.together else 1)
    for line in lines(cost):
        terminal.say(line)
    if args.json:
        shown = {"command": command.job.name, "n_structures": count, **cost.to_dict()}
        print(json.dumps(shown, indent=2, ensure_ascii=False))
    return exit_code(codes)


def lines(cost: Cost) -> list[str]:
    """The stages as a table, the sums, and the basis of the estimate."""
    head = ("structures", "atoms of each", "evaluations", "time")
    table = [_line("", *head)]
    for part in cost.parts:
        count = _to(part.evaluations) + ("" if part.exact else " *")
        seconds = _times(part.seconds)
        table.append(_line(part.name, str(part.structures), _to(part.atoms), count, seconds))
    table.append(_line("total", "", "", _to(cost.evaluations), _times(cost.seconds)))
    table += [f"* {name}: {note}" for name, note in cost.notes]
    gib = 2**30
    table.append(
        f"memory: {cost.needed / gib:.2g} GiB for the largest batch, model and libraries aside; "
        f"{cost.available / gib:.3g} GiB may be used"
    )
    if any(part.kind == HESSIAN for part in cost.parts):
        table[-1] += "; the memory for second derivatives is not estimated"
    table.append(cost.basis)
    return table + [f"warning: {warning}" for warning in cost.warnings]


def _line(name: str, structures: str, atoms: str, evaluations: str, seconds: str) -> str:
    return f"{name:<32}{structures:>10}  {atoms:>13}  {evaluations:>15}  {seconds:>18}"


def _to(numbers: Any) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _times(seconds: tuple[float, float]) -> str:
    low, high = (estimated(s) for s in seconds)
    return low if low == high else f"{low} to {high}"
