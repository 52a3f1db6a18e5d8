"""A simulation: it moves replicas in lockstep, records and saves them, and decides when to end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa3sim.clients.ase import DPA3Calculator
from dpa3sim.clients.engine import Client, Engine
from dpa3sim.common.durations import estimated
from dpa3sim.common.errors import InputError, NonFiniteError, UnphysicalError
from dpa3sim.common.units import GPA
from dpa3sim.potential.evaluation import Evaluation, Uncertainty
from dpa3sim.potential.interface import BatchPotential
from dpa3sim.potential.potential import Potential

from ..base import Event, Progress
from .integrators import (
    Integrator,
    Parameters,
    make,
    remove_rigid_motion,
    start_velocities,
    temperature_of,
)
from .recorders import Recorder, State
from .statistics import Jumps
from .watch import Watch

if TYPE_CHECKING:
    from ase import Atoms

    from .plan import Plan

# Limits beyond which a simulation has exploded: temperature (K), and volumes over the first one.
MAX_TEMPERATURE = 1e5
VOLUME_RANGE = (0.2, 8.0)
# On a CPU, where results do not depend on the history of neighbour lists, states are also saved at
# this interval, s.
SAVE_SECONDS = 60.0
# Shortest time between two reports of progress, s.
TELL_SECONDS = 0.2
# Time reserved for the end of a run with a time limit: a share of it, and at most so many seconds.
MARGIN, MAX_MARGIN = 0.05, 60.0
# Volume strain that measures the bulk modulus for Berendsen's barostat, and the least bulk modulus.
BULK_STRAIN, MIN_BULK_MODULUS = 0.01, 1.0 * GPA
_COUNTS = ("n_edges", "n_angles", "n_cut_edges", "n_cut_angle_edges")
_ARRAYS = ("energies", "forces", "virial")


@dataclass
class Replica:
    """One of the systems that move together.

    Attributes:
        atoms: with ``calculator``, which holds the last evaluation.
        rng: its random numbers. jumps: changes of its conserved quantity.
        watch: the novelty of its atoms.
    """

    atoms: Atoms
    calculator: DPA3Calculator
    integrator: Integrator
    rng: np.random.Generator
    jumps: Jumps
    watch: Watch

    def count(self, step: int) -> None:
        """Note the conserved quantity and the novelty after a step."""
        assert self.calculator.evaluation is not None
        self.jumps.add(self.integrator.conserved(), self.calculator.evaluation.n_angles)
        self.watch.see(step, self.calculator.evaluation)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Facts and arrays from which :meth:`Simulation._continue` restores it."""
        evaluation = self.calculator.evaluation
        assert evaluation is not None
        facts = {
            "rng": self.rng.bit_generator.state,
            "jumps": self.jumps.state(),
            "watch": self.watch.state(),
            "uncertainty": evaluation.uncertainty and evaluation.uncertainty.to_dict(),
            "energy": evaluation.energy,
            "warnings": list(evaluation.warnings),
            **{name: getattr(evaluation, name) for name in _COUNTS},
        }
        arrays = {
            "positions": self.atoms.positions.copy(),
            "momenta": self.atoms.get_momenta(),
            "cell": np.array(self.atoms.cell[:]),
            **{name: getattr(evaluation, name) for name in _ARRAYS},
            **{f"integrator.{k}": v for k, v in self.integrator.variables().items()},
        }
        return facts, arrays


class Simulation:
    """Replicas, from the start or from the recorder's state to the last step.

    Args:
        start: the structure. plan: the settings with everything decided. For the others, see
            :func:`md.run`.

    Attributes:
        step: number of steps done.
        interrupted: whether the caller wanted to stop.
    """

    def __init__(
        self,
        start: Atoms,
        potential: BatchPotential,
        plan: Plan,
        recorder: Recorder,
        progress: Progress,
        stop: Callable[[], bool] | None,
        began: float,
    ) -> None:
        self.start, self.potential, self.plan = start.copy(), potential, plan
        self.recorder = recorder
        self._progress, self._stop, self._began = progress, stop, began
        self.interrupted = False
        self._reason: str | None = None
        self._saved_at = self._told_at = time.monotonic()
        if recorder.state is None:
            self._begin()
        else:
            try:
                self._continue(recorder.state)
            except InputError:
                raise
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise InputError(f"the saved state cannot be continued ({error!r})") from None
        self._first_step, self._first_time = self.step, time.monotonic()

    # -- the beginning -----------------------------------------------------------------------------

    def _begin(self) -> None:
        """Velocities, first evaluation, first frame and row."""
        settings = self.plan.settings
        self.step, self._ramp = 0, settings.ramp_steps or settings.steps
        generators = [np.random.default_rng(settings.seed + k) for k in range(settings.replicas)]
        systems = []
        for rng in generators:
            atoms = self.start.copy()
            if settings.keep_velocities:
                remove_rigid_motion(atoms)
            elif settings.temperature > 0:
                start_velocities(atoms, settings.temperature, self.plan.degrees, rng)
            else:
                atoms.set_momenta(np.zeros((len(atoms), 3)))
            systems.append(atoms)
        evaluations = self.potential.evaluate(systems)
        self._bulk_modulus = self._measure_bulk_modulus()
        self.replicas = [
            self._replica(*parts, Jumps(), Watch())
            for parts in zip(systems, evaluations, generators, strict=True)
        ]
        self.recorder.begin(self.plan.columns, settings.replicas)
        for replica in self.replicas:
            replica.count(self.step)
        self._record()
        self._save()

    def _continue(self, state: State) -> None:
        """Restore the replicas of a saved state without an evaluation."""
        self.step, self._ramp = state.step, int(state.facts["ramp"])
        self._bulk_modulus = float(state.facts["bulk_modulus"])
        self.replicas = []
        for k, facts in enumerate(state.facts["replicas"]):
            prefix = f"{k}."
            arrays = {
                name.removeprefix(prefix): value
                for name, value in state.arrays.items()
                if name.startswith(prefix)
            }
            atoms = self.start.copy()
            atoms.set_cell(arrays["cell"])
            atoms.set_positions(arrays["positions"], apply_constraint=False)
            atoms.set_momenta(arrays["momenta"], apply_constraint=False)
            known: dict[str, Any] = {name: arrays[name] for name in _ARRAYS}
            known |= {name: facts[name] for name in _COUNTS}
            warnings = tuple(facts["warnings"])
            judged = facts["uncertainty"] and Uncertainty.from_dict(facts["uncertainty"])
            evaluation = Evaluation(
                energy=facts["energy"], warnings=warnings, uncertainty=judged, **known
            )
            rng = np.random.default_rng(0)
            rng.bit_generator.state = facts["rng"]
            jumps, watch = Jumps.restored(facts["jumps"]), Watch(**facts["watch"])
            replica = self._replica(atoms, evaluation, rng, jumps, watch)
            mark = "integrator."
            replica.integrator.restore(
                {k.removeprefix(mark): v for k, v in arrays.items() if k.startswith(mark)}
            )
            self.replicas.append(replica)
        self.recorder.rewind()

    def _replica(
        self,
        atoms: Atoms,
        evaluation: Evaluation,
        rng: np.random.Generator,
        jumps: Jumps,
        watch: Watch,
    ) -> Replica:
        plan = self.plan
        calculator = DPA3Calculator(self.potential)
        calculator.take(atoms, evaluation)
        atoms.calc = calculator
        given = Parameters(
            timestep=plan.timestep,
            temperature=plan.target(self.step, self._ramp),
            thermostat_time=plan.thermostat_time,
            barostat_time=plan.barostat_time,
            pressure=plan.settings.pressure * GPA,
            degrees=plan.degrees,
            bulk_modulus=self._bulk_modulus,
            rng=rng,
        )
        integrator = make(atoms, plan.thermostat, plan.barostat, given)
        return Replica(atoms, calculator, integrator, rng, jumps, watch)

    def _measure_bulk_modulus(self) -> float:
        """The bulk modulus, eV/Å^3, on which the time constant of Berendsen's barostat depends."""
        if self.plan.barostat != "berendsen":
            return 0.0
        volume, sides = self.start.get_volume(), []
        for sign in (1, -1):
            side = self.start.copy()
            side.set_constraint()
            scale = (1 + sign * BULK_STRAIN) ** (1 / 3)
            side.set_cell(self.start.cell[:] * scale, scale_atoms=True)
            sides.append(side)
        larger, smaller = (
            np.trace(result.virial) / 3 / (volume * (1 + sign * BULK_STRAIN))
            for result, sign in zip(self.potential.evaluate(sides), (1, -1), strict=True)
        )
        return max(MIN_BULK_MODULUS, float(smaller - larger) / (2 * BULK_STRAIN))

    # -- the course --------------------------------------------------------------------------------

    def run(self) -> str | None:
        """Simulate up to the last step.

        Returns:
            Why it ended before that; None if it did not.

        Raises:
            UnphysicalError: a replica exploded.
        """
        self._heed()  # the caller may have wanted to stop during the first evaluation
        self._stop_where_new()
        if len(self.replicas) == 1:
            while self._goes_on():
                self._move(0)
                self._after_step()
        elif self._goes_on():
            self._run_together()
        if self.recorder.state is None or self.recorder.state.step != self.step:
            self._save()
        self.tell(self._event, always=True)
        return self._reason

    def wants_to_stop(self) -> bool:
        """Whether the caller wants to stop."""
        return self._stop is not None and self._stop()

    def tell(self, event: Callable[[], Event], always: bool = False) -> None:
        """Report an event, unless one was reported just before."""
        now = time.monotonic()
        if always or now - self._told_at >= TELL_SECONDS:
            self._told_at = now
            self._progress(event())

    def _run_together(self) -> None:
        """Run a thread for each replica, while this thread evaluates for all of them.

        Each replica asks for one evaluation in a step, and the engine waits for all of them, so
        that the batches are the same in every run.
        """
        engine = Engine(self.potential)
        clients = [engine.client(k) for k in range(len(self.replicas))]
        barrier = threading.Barrier(len(clients), action=self._after_step)
        errors: list[BaseException] = []
        threads = [
            threading.Thread(target=self._work, args=(k, client, barrier, errors), daemon=True)
            for k, client in enumerate(clients)
        ]
        try:
            for thread in threads:
                thread.start()
            engine.serve()
        finally:
            if any(not client.closed for client in clients):  # this thread was interrupted
                barrier.abort()
            for client in clients:
                client.close()
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]

    def _work(
        self,
        index: int,
        client: Client,
        barrier: threading.Barrier,
        errors: list[BaseException],
    ) -> None:
        calculator = self.replicas[index].calculator
        calculator.potential = client
        try:
            with client:
                while self._goes_on():
                    self._move(index)
                    barrier.wait()
        except threading.BrokenBarrierError:
            pass  # another replica failed
        except BaseException as error:
            errors.append(error)
            barrier.abort()
        finally:
            calculator.potential = self.potential

    def _goes_on(self) -> bool:
        return self.step < self.plan.settings.steps and self._reason is None

    def _move(self, index: int) -> None:
        """One step of one replica."""
        integrator: Any = self.replicas[index].integrator
        try:
            with np.errstate(all="ignore"):
                if self.plan.settings.temperature_end is not None:
                    integrator.set_target(self.plan.target(self.step + 1, self._ramp))
                integrator.step()
        except (InputError, NonFiniteError, np.linalg.LinAlgError, ArithmeticError) as error:
            raise UnphysicalError(f"{self._where(index, self.step + 1)}: {error}") from None

    def _after_step(self) -> None:
        """Check, record and save the replicas; decide whether to continue."""
        self.step += 1
        for index, replica in enumerate(self.replicas):
            self._check(index)
            before = replica.watch.last
            replica.count(self.step)
            self._keep_uncertain(index, before)
        self._record()
        now = time.monotonic()
        if self.step % self.plan.settings.checkpoint == 0:
            self._save()
            # A continued run starts with new lists, and owners of atoms where there are several.
            if self._history_matters and isinstance(self.potential, Potential):
                self.potential.forget()
        elif not self._history_matters and now - self._saved_at > SAVE_SECONDS:
            self._save()
        self._decide()
        if self._goes_on():
            self.tell(self._event)

    @property
    def _history_matters(self) -> bool:
        if isinstance(self.potential, Potential):
            return self.potential.history_matters
        return self.potential.device.type != "cpu"

    def _heed(self) -> None:
        """End the simulation if the caller wants to stop."""
        steps = self.plan.settings.steps
        if self.step < steps and self.wants_to_stop():
            self.interrupted = True
            self._reason = f"interrupted after {self.step} of {steps} steps"

    def _stop_where_new(self) -> None:
        """End the simulation if it came to surroundings that are too new to the model."""
        limit, steps = self.plan.settings.novelty_stop, self.plan.settings.steps
        for index, replica in enumerate(self.replicas):
            if self._goes_on() and replica.watch.exceeds(limit):
                self._reason = (
                    f"stopped after {self._where(index, self.step)} of {steps}: the novelty of an "
                    f"atom is {replica.watch.last:.3g} > {limit:g} (novelty_stop)"
                )

    def _decide(self) -> None:
        settings = self.plan.settings
        self._heed()
        self._stop_where_new()
        if self._goes_on() and settings.max_hours is not None:
            limit = 3600 * settings.max_hours
            now, done = time.monotonic(), self.step - self._first_step
            step = (now - self._first_time) / done
            if now + 2 * step + min(MARGIN * limit, MAX_MARGIN) > self._began + limit:
                self._reason = (
                    f"stopped before the limit of {settings.max_hours:g} h, after {self.step} of "
                    f"{settings.steps} steps"
                )

    def _where(self, index: int, step: int) -> str:
        replica = f"replica {index}, " if len(self.replicas) > 1 else ""
        return f"{replica}step {step}"

    def _check(self, index: int) -> None:
        """Raise UnphysicalError for a replica that has exploded."""
        atoms, where = self.replicas[index].atoms, self._where(index, self.step)
        hint = "try a shorter timestep, or relax the structure first"
        temperature = temperature_of(atoms, self.plan.degrees)
        if not temperature <= MAX_TEMPERATURE:  # NaN as well
            raise UnphysicalError(f"{where}: the temperature is {temperature:.3g} K; {hint}")
        if not np.isfinite(atoms.positions).all():
            raise UnphysicalError(f"{where}: positions are not finite; {hint}")
        if self.plan.barostat != "none":
            ratio = atoms.get_volume() / self.start.get_volume()
            if not VOLUME_RANGE[0] <= ratio <= VOLUME_RANGE[1]:
                raise UnphysicalError(f"{where}: the volume is {ratio:.3g} times the first one")

    # -- what is kept ------------------------------------------------------------------------------

    def _record(self) -> None:
        """Record a frame and a row if they are due at this step."""
        if self.step % self.plan.interval == 0:
            for index, replica in enumerate(self.replicas):
                self.recorder.frame(index, self._frame(replica))
        if self.step % self.plan.table_interval == 0:
            for index, replica in enumerate(self.replicas):
                self.recorder.row(index, self._row(replica))

    def _keep_uncertain(self, index: int, before: float | None) -> None:
        """Keep a frame that has come above the limit, and those of the trajectory above it."""
        limit, watch = self.plan.settings.novelty_keep, self.replicas[index].watch
        if limit is None or not watch.exceeds(limit):
            return
        if before is None or before <= limit or self.step % self.plan.interval == 0:
            self.recorder.uncertain(index, self._frame(self.replicas[index]))
            watch.kept += 1

    def _save(self) -> None:
        facts: dict[str, Any] = {
            "ramp": self._ramp,
            "bulk_modulus": self._bulk_modulus,
            "replicas": [],
        }
        arrays: dict[str, np.ndarray] = {}
        for index, replica in enumerate(self.replicas):
            own, mine = replica.state()
            facts["replicas"].append(own)
            arrays |= {f"{index}.{name}": value for name, value in mine.items()}
        self.recorder.save(State(self.step, facts, arrays))
        self._saved_at = time.monotonic()

    def _frame(self, replica: Replica) -> Atoms:
        from ase.calculators.singlepoint import SinglePointCalculator

        frame = replica.atoms.copy()
        frame.set_constraint()
        frame.info = {"step": self.step, "time_ps": self.plan.time(self.step)}
        if replica.watch.last is not None:
            frame.info["novelty"] = replica.watch.last
        frame.calc = SinglePointCalculator(
            frame,
            energy=replica.atoms.get_potential_energy(),
            forces=replica.atoms.get_forces(apply_constraint=False),
        )
        return frame

    def _row(self, replica: Replica) -> dict[str, float | None]:
        atoms = replica.atoms
        potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
        values: list[float | None] = [
            self.step,
            self.plan.time(self.step),
            float(potential),
            float(kinetic),
            float(potential + kinetic),
            replica.integrator.conserved(),
            temperature_of(atoms, self.plan.degrees),
        ]
        if self.plan.periodic:
            values += [_pressure(atoms), float(atoms.get_volume())]
            values += atoms.cell.cellpar().tolist()
        return dict(zip(self.plan.columns, values, strict=True))

    def _event(self) -> Event:
        """The present step in one line."""
        plan, steps = self.plan, self.plan.settings.steps
        atoms = [replica.atoms for replica in self.replicas]
        temperature = np.mean([temperature_of(a, plan.degrees) for a in atoms])
        energy = np.mean([a.get_total_energy() / len(a) for a in atoms])
        parts = [f"T {temperature:.1f} K", f"E {energy:.5f} eV/atom"]
        if plan.periodic:
            parts.append(f"P {np.mean([_pressure(a) for a in atoms]):.3f} GPa")
        done, seconds = self.step - self._first_step, time.monotonic() - self._first_time
        if done and seconds > 0:
            parts.append(f"{plan.time(done) / 1000 * 86400 / seconds:.3g} ns/day")
            if self.step < steps:
                parts.append(f"{estimated((steps - self.step) * seconds / done)} left")
        message = f"step {self.step} of {steps}, {plan.time(self.step):.4g} ps: {', '.join(parts)}"
        return Event("md", message, self.step, steps)


def _pressure(atoms: Atoms) -> float:
    """Pressure with the kinetic part, GPa."""
    stress = atoms.get_stress(include_ideal_gas=True)
    return float(-stress[:3].sum() / 3 / GPA)
