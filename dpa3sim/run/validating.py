"""The checks of one model in a run directory: run, continued, or found done."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.common.errors import (
    DONE,
    NOT_CONVERGED,
    Dpa3simError,
    Dpa3simWarning,
    InputError,
)
from dpa3sim.run import directory as rundir
from dpa3sim.run.benchmark import time_calls
from dpa3sim.run.directory import RunDirectory
from dpa3sim.run.job import JobOptions, calculation_facts, config, exit_code, fingerprint
from dpa3sim.run.provenance import model_facts, session
from dpa3sim.run.reporter import Narrator, Reporter
from dpa3sim.run.store import StoredPotential
from dpa3sim.validate.check import Check, Findings
from dpa3sim.validate.probes import probes, rattled
from dpa3sim.validate.settings import ValidateSettings

if TYPE_CHECKING:
    from dpa3sim.potential.potential import Potential
    from dpa3sim.protocols.base import Event, Stage

NAME = "validate"
SPEED = "speed"
# The structure whose evaluations are timed has at least so many atoms.
TIMED_ATOMS, CALLS, WARM_UP = 64, 5, 3


def label(potential: Potential) -> str:
    """A short name of a model with the options that change its results, for a folder."""
    parts = [potential.model.name]
    parts += [potential.model.head] if potential.model.head and potential.model.heads else []
    width = potential.smooth_cutoff
    parts += [] if width is None else [f"smooth{width:g}"]
    parts += [] if potential.truncate == potential.model.truncate else [potential.truncate]
    parts += [] if potential.dispersion is None else [potential.dispersion.name]
    parts += [] if potential.dtype == "float64" else [potential.dtype]
    return "-".join("".join(c if c.isalnum() or c in "._-" else "_" for c in p) for p in parts)


def stages(potential: Potential, settings: ValidateSettings) -> list[Stage]:
    """What the checks of a model are going to evaluate.

    Raises:
        InputError: nothing: the model knows the elements of no structure of these checks.
    """
    elements = potential.model.elements
    cutoff = potential.model.config.descriptor.e_rcut
    found = [
        stage
        for name in settings.checks.split()
        if name != SPEED
        for stage in _check(name).stages(elements, settings, cutoff)
    ]
    if not found:
        raise InputError(
            f"{potential.model.name}: nothing to compute; its elements are "
            f"{' '.join(elements) or 'none'}, the checks are {settings.checks}"
        )
    return found


class ValidateRun:
    """The checks of one model in a run directory.

    Args:
        potential: the model, in the precision of the checks.
        settings: options. path: the run directory. options: how to run.
        reporter: receives progress and results in words.
    """

    def __init__(
        self,
        potential: Potential,
        settings: ValidateSettings,
        path: Path,
        options: JobOptions | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self._potential, self._settings = potential, settings
        self._path, self._options = path, options or JobOptions()
        self._reporter = reporter or Reporter()
        log = lambda line: self._directory.log(line)  # noqa: E731
        self._narrator = Narrator(self._reporter, log, time.monotonic())

    def execute(self) -> dict[str, Any]:
        """Run, continue, or find done; returns the content of ``result.json``.

        Raises:
            InputError: the directory cannot be used.
        """
        facts = calculation_facts(NAME, self._potential, self._settings)
        with RunDirectory(
            self._path, fingerprint(facts, ()), facts, force=self._options.force
        ) as self._directory:
            done = self._directory.result
            if done is not None and done.get("converged"):
                self._tell(done)
                self._narrator.say(f"already done in {self._path}")
                return done
            return self._execute(facts)

    @staticmethod
    def exit_code(result: Mapping[str, Any]) -> int:
        """Exit code: what the checks find wrong are warnings, what could not be computed is not."""
        codes = [int(code) for code in result["exit_codes"].values()]
        return exit_code(codes) if codes else DONE

    def _execute(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        directory = self._directory
        directory.write_provenance(session(self._potential, self._options.command_line), facts)
        with directory.session(self._narrator.say) as ending:
            directory.write_config(config(self._potential, self._settings))
            # Each finding is a warning of the result; those of the model would repeat in each.
            with self._reporter.shown(), warnings.catch_warnings():
                warnings.simplefilter("ignore", Dpa3simWarning)
                found, codes = self._found()
            result = self._finish(found, codes)
            ending.exit_code = self.exit_code(result)
            return result

    def _found(self) -> tuple[dict[str, Findings], dict[str, int]]:
        """The findings of every check, and its exit code; an error of one is a problem."""
        found: dict[str, Findings] = {}
        codes: dict[str, int] = {}
        path = self._directory.path / rundir.EVALUATIONS
        with StoredPotential(self._potential, path) as stored:
            for name in self._settings.checks.split():
                try:
                    if name == SPEED:
                        findings = speed(self._potential)
                    else:
                        findings = _check(name).run(stored, self._settings, self._follow)
                    codes[name] = NOT_CONVERGED if findings.problems else DONE
                except Dpa3simError as error:
                    findings = Findings(problems=(f"{name}: {error}",))
                    codes[name] = error.exit_code
                found[name] = findings
                self._narrator.say(f"{name}: {_in_words(findings)}")
            self._directory.note(evaluations=stored.statistics.to_dict())
            self._narrator.say(str(stored.statistics))
        return found, codes

    def _finish(self, found: Mapping[str, Findings], codes: Mapping[str, int]) -> dict[str, Any]:
        model = self._potential.model
        problems = [problem for findings in found.values() for problem in findings.problems]
        done = f"{len(found)} checks are complete"
        values: dict[str, Any] = {}
        for findings in found.values():
            values |= findings.values
        content = {
            "protocol": NAME,
            "structure": model.name,
            "converged": not problems,
            "reasons": problems or [done],
            "warnings": [w for findings in found.values() for w in findings.warnings],
            **_summary(values),
            **values,
            "traps": model.traps(),
            "n_parameters": model.parameter_count,
            "n_elements": len(model.elements),
            "exit_codes": dict(codes),
            "settings": asdict(self._settings),
            "model": model_facts(self._potential),
            "dtype": self._potential.dtype,
            "directory": str(self._directory.path),
        }
        if self._options.plots and values.get("dimers"):
            from dpa3sim.report.plots.dimers import plot_dimers

            plot_dimers(self._directory.path, values["dimers"], model.name)
        self._directory.write_result(content, final=not problems)
        stored = self._directory.result
        assert stored is not None
        self._tell(stored)
        self._narrator.say(f"results in {self._directory.path}")
        return stored

    def _tell(self, stored: Mapping[str, Any]) -> None:
        state = "done" if stored["converged"] else "NOT done"
        self._narrator.say(f"{state}: {'; '.join(stored['reasons'])}")
        for warning in stored["warnings"]:
            self._narrator.say(f"warning: {warning}")

    def _follow(self, event: Event) -> None:
        self._narrator.follow(f"{event.stage}: {event.message}, {event.done} of {event.total}")


def _check(name: str) -> Check:
    found: Check = import_module(f"dpa3sim.validate.{name}")
    return found


def _in_words(findings: Findings) -> str:
    count, failed = len(findings.warnings), len(findings.problems)
    text = f"{count} warning{'' if count == 1 else 's'}" if count else "nothing is wrong"
    return f"{text}, {failed} could not be computed" if failed else text


def _summary(values: Mapping[str, Any]) -> dict[str, Any]:
    """What models are compared by, from the values of the checks that were made."""
    found: dict[str, Any] = {}
    if rows := values.get("scans"):
        found["largest_step_meV_per_atom"] = max(r["largest_step_meV_per_atom"] for r in rows)
    if rows := values.get("invariances"):
        for kind, unit in (("energy", "meV_per_atom"), ("force", "eV_per_A")):
            ending = f"_{kind}_{unit}"
            known = [v for row in rows for k, v in row.items() if k.endswith(ending)]
            found[f"broken_invariance{ending}"] = max(known)
        found["force_error_eV_per_A"] = max(r["derivative_error_eV_per_A"] for r in rows)
    if rows := values.get("dynamics"):
        drifts = [row["drift_meV_per_atom_per_ps"] for row in rows]
        found["largest_drift_meV_per_atom_per_ps"] = max(drifts, key=abs)
    if rows := values.get("dimers"):
        holes = [r for r in rows if r["attractive_below_A"] is not None and not r["overlap"]]
        found["n_attractive_dimers"] = len(holes)
        found["n_collapsing_dimers"] = sum(r["hole_eV"] < 0 for r in holes)
    if rows := values.get("crystals"):
        verdicts = [row.get("verdict") for row in rows]
        found["n_crystals"] = len(rows)
        found["n_unstable_crystals"] = verdicts.count("unstable")
    return found


def speed(potential: Potential) -> Findings:
    """Time of an evaluation in the precision of the checkpoint, while the atoms move."""
    import torch

    from dpa3sim.clients.ase import DPA3Calculator

    known = probes(potential.model.elements)
    if not known:
        return Findings()
    name, atoms = next(iter(known.items()))
    repeat = int(np.ceil((TIMED_ATOMS / len(atoms)) ** (1 / 3)))
    large = rattled(atoms * (repeat, repeat, repeat))
    own = potential.in_precision(potential.model.config.descriptor.precision)
    large.calc = DPA3Calculator(own)
    seconds = time_calls(large, WARM_UP + CALLS, seed=0)[WARM_UP:]
    return Findings(
        {
            "speed": {
                "structure": name,
                "n_atoms": len(large),
                "step_ms": 1e3 * float(np.median(seconds)),
                "per_atom_ms": 1e3 * float(np.median(seconds)) / len(large),
                "dtype": own.dtype,
                "device": str(own.device),
                "threads": torch.get_num_threads(),
            }
        }
    )
