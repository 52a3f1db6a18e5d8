"""The model as a ``fix external`` of LAMMPS."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, c_double, cast, create_string_buffer
from typing import Any

import numpy as np
from ase.data import atomic_masses

from dpa3sim.checkpoints import ModelFile
from dpa3sim.clients.lammps.ranks import Alone, Member, Step, check_totals, mpi_ranks
from dpa3sim.common.elements import SYMBOLS
from dpa3sim.common.errors import Dpa3simError, Dpa3simWarning, InputError
from dpa3sim.common.settings import suggestion
from dpa3sim.common.units import KCAL_PER_MOL
from dpa3sim.model.inputs import extra_inputs
from dpa3sim.potential.evaluation import Evaluation
from dpa3sim.potential.interface import PotentialLike
from dpa3sim.structures.system import System

# LAMMPS's energy unit in eV, by its style of units; lengths are in Å in both.
_ENERGY_UNITS = {"metal": 1.0, "real": KCAL_PER_MOL}
_VOIGT = ([0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2])  # LAMMPS's order: xx yy zz xy xz yz


def attach(
    lmp: Any, potential: PotentialLike | Member, elements: Sequence[str], fix_id: str = "dpa3"
) -> Coupling:
    """Let the model compute the forces of a LAMMPS instance.

    This defines ``fix FIX_ID all external pf/callback 1 1``, whose energy and virial are part of
    LAMMPS's thermodynamic output, and ``fix FIX_ID_check``, which stops LAMMPS at a step without
    forces from the model. The box must exist; the atoms may be created later.

    Args:
        lmp: a ``lammps.lammps`` in units metal or real.
        potential: the resident model; on several MPI ranks what :func:`join` gave each of them.
        elements: one element for each atom type, in the order of the types.
        fix_id: name of the fix.

    Raises:
        InputError: the model cannot compute LAMMPS's system.
    """
    member = potential if isinstance(potential, Member) else Alone(potential)
    if mpi_ranks(lmp) != member.size:
        raise InputError(
            f"LAMMPS runs on {mpi_ranks(lmp)} MPI ranks, which do not share this model: give each "
            "of them what dpa3sim.lammps.join(lmp, settings) returns, or start without mpiexec"
        )
    if member.size > 1:
        check_totals(lmp)
    if not lmp.extract_setting("box_exist"):
        raise InputError("LAMMPS has no simulation box yet: attach the model after create_box")
    if lmp.extract_setting("dimension") != 3:
        raise InputError("LAMMPS runs in two dimensions; the model needs three")
    units = lmp.extract_global("units")
    if units not in _ENERGY_UNITS:
        raise InputError(
            f"LAMMPS uses units {units}; the model supports {', '.join(_ENERGY_UNITS)}"
        )
    if not re.fullmatch(r"\w+", fix_id, re.ASCII):
        raise InputError(
            f"{fix_id!r} is not a valid name of a fix: use letters, digits and underscores"
        )
    if lmp.has_id("fix", fix_id):
        raise InputError(f"LAMMPS already has a fix {fix_id}")
    _check_elements(elements, lmp.extract_setting("ntypes"), member.model)
    _check_inputs(member.model)
    return Coupling(lmp, member, elements, fix_id)


class Coupling:
    """The connection of a LAMMPS instance with a model; made by :func:`attach`.

    Attributes:
        evaluations: number of evaluations.
        evaluation: the last result, in eV and Å, with all atoms in the order of their ids; with its
            ``uncertainty``, if the potential has one.
        largest_novelty: of an atom, in all evaluations; None without an uncertainty.
        error: why the model computed no forces; later steps get none either.
        stopped: whether :meth:`stop` was called.
        fix_id: name of the fix.
    """

    def __init__(self, lmp: Any, member: Member, elements: Sequence[str], fix_id: str) -> None:
        self.evaluations = 0
        self.evaluation: Evaluation | None = None
        self.largest_novelty: float | None = None
        self.error: BaseException | None = None
        self.stopped = False
        self.fix_id = fix_id
        self._lmp = lmp
        self._member = member
        self._elements = tuple(elements)
        self._numbers = np.array([0, *(SYMBOLS.index(e) + 1 for e in elements)])
        self._energy_unit = _ENERGY_UNITS[lmp.extract_global("units")]
        self._unknown: Any = ()
        self._define_fixes()

    def _define_fixes(self) -> None:
        """Define the fix, and the check that stops LAMMPS if the fix computed no forces.

        An exception cannot leave a callback (ctypes drops it), and ``run_style respa`` or
        ``unfix`` bypass the callback: therefore each step needs to be confirmed.
        """
        done, missed, check = (f"{self.fix_id}_{name}" for name in ("step", "missed", "check"))
        self._done, self._check = done, check
        command = self._lmp.command
        command(f"fix {self.fix_id} all external pf/callback 1 1")
        command(f"variable {done} internal -1")
        command(f'variable {missed} equal "step != v_{done}"')
        command(f"fix {check} all halt 1 v_{missed} != 0 error hard")
        self._lmp.set_fix_external_callback(self.fix_id, self._callback)

    def stop(self) -> None:
        """End LAMMPS's run after its step and skip later runs; other commands are executed."""
        self.stopped = True
        if self._member.size == 1:  # otherwise all ranks do so in the same step
            self._lmp.force_timeout()

    @contextmanager
    def raising(self) -> Iterator[None]:
        """In this block, an error of the model is raised as itself, not as one of LAMMPS.

        Raises:
            Dpa3simError: the model computed no forces.
        """
        try:
            yield
        except Exception as error:
            if self.error is None and f"fix-id {self._check} " in str(error):
                raise InputError(
                    f"LAMMPS made a step without forces from the model: was fix {self.fix_id} "
                    "removed, or run_style respa used?"
                ) from None
            if self.error is None:
                raise
        if self.error is not None:
            raise self.error from None

    def _callback(
        self, _: Any, step: int, nlocal: int, tag: np.ndarray, x: np.ndarray, f: np.ndarray
    ) -> None:
        """Called by LAMMPS for the forces; the arrays are LAMMPS's own memory."""
        self._forget_errors()
        try:
            if self.error is None:
                self._evaluate(nlocal, tag, x, f)
                self._lmp.set_internal_variable(self._done, step)
        except BaseException as error:
            self.error = _placed(error, step)
            if self._member.rank == 0:
                kind = "" if isinstance(error, Dpa3simError) else f"{type(error).__name__}: "
                self._lmp.error(0, f"no forces from the model: {kind}{self.error}")
        if self.error is not None:
            f[:] = 0
            self._lmp.fix_external_set_energy_global(self.fix_id, math.nan)
            self._lmp.set_internal_variable(self._done, -1)

    def _forget_errors(self) -> None:
        """Clear earlier errors, which LAMMPS's Python module would raise at the next call."""
        if self._lmp.lib.lammps_has_error(self._lmp.lmp):
            text = create_string_buffer(1)
            self._lmp.lib.lammps_get_last_error_message(self._lmp.lmp, text, len(text))

    def _evaluate(self, nlocal: int, tag: np.ndarray, x: np.ndarray, f: np.ndarray) -> None:
        if not self.evaluations and self._member.rank == 0:
            _check_masses(self._lmp, self._elements)
        types = np.asarray(self._lmp.numpy.extract_atom("type"))[:nlocal]
        tags = np.array(tag[:nlocal], dtype=np.int64)
        step = Step(tags, self._numbers[types], x[:nlocal].copy(), *self._box(), self.stopped)
        answer = self._member.answer(step)
        if answer.stopped and self._member.size > 1:
            self.stopped = True
            self._lmp.force_timeout()
        self.evaluation = result = answer.evaluation
        self.evaluations += 1
        if result.uncertainty is not None:
            self.largest_novelty = max(self.largest_novelty or 0.0, result.uncertainty.novelty)
        own = np.searchsorted(answer.tags, tag[:nlocal])
        f[:nlocal] = result.forces[own] / self._energy_unit
        energies = result.energies[own] / self._energy_unit
        virial = (result.virial + result.virial.T)[_VOIGT] / (2 * self._energy_unit)
        lmp = self._lmp
        lmp.fix_external_set_energy_global(self.fix_id, result.energy / self._energy_unit)
        lmp.fix_external_set_virial_global(self.fix_id, virial)
        lmp.fix_external_set_energy_peratom(self.fix_id, energies)
        self._disown_atomic_virials(nlocal)

    def _box(self) -> tuple[np.ndarray, np.ndarray]:
        """Cell (rows, Å) and periodicity."""
        low, high, xy, yz, xz, periodic, _ = self._lmp.extract_box()
        x, y, z = np.subtract(high, low)
        return np.array([[x, 0, 0], [xy, y, 0], [xz, yz, z]]), np.array(periodic, dtype=bool)

    def _disown_atomic_virials(self, nlocal: int) -> None:
        """Set the undefined virials of atoms to NaN; LAMMPS would assume zero."""
        if len(self._unknown) != nlocal:
            row = cast((6 * c_double)(*6 * [math.nan]), POINTER(c_double))
            self._unknown = (nlocal * POINTER(c_double))(*nlocal * [row])
        self._lmp.lib.lammps_fix_external_set_virial_peratom(
            self._lmp.lmp, self.fix_id.encode(), self._unknown
        )


def _placed(error: BaseException, step: int) -> BaseException:
    """The same error with the step, and with a note on how atoms are counted."""
    if not isinstance(error, Dpa3simError):
        return error
    counting = " (atoms count from 0, in the order of their ids)" if "atoms " in str(error) else ""
    return type(error)(f"LAMMPS step {step}: {error}{counting}")


def _check_elements(elements: Sequence[str], n_types: int, model: ModelFile) -> None:
    if len(elements) != n_types:
        given = " ".join(elements) or "none"
        raise InputError(
            f"LAMMPS has {n_types} atom types, but {len(elements)} elements are named ({given}): "
            "name one for each type, in the order of the types"
        )
    known = model.config.type_map
    for number, element in enumerate(elements, start=1):
        if element not in known or element not in SYMBOLS:
            raise InputError(
                f"atom type {number} is {element!r}, which this model does not know; it knows "
                + (", ".join(known) if len(known) <= 20 else f"{known[0]} ... {known[-1]}")
                + suggestion(element, known)
            )


def _check_inputs(model: ModelFile) -> None:
    """Refuse models with inputs that LAMMPS cannot provide."""
    nothing = System(np.zeros(0, dtype=int), np.zeros((0, 3)), np.eye(3), np.ones(3, dtype=bool))
    try:
        extra_inputs(nothing, model.config)
    except InputError as error:
        reason = str(error).partition(":")[0]
        raise InputError(f"{reason}, which LAMMPS cannot provide; use it with ASE") from None


def _check_masses(lmp: Any, elements: Sequence[str]) -> None:
    """Warn of types with the mass of another element, as for a wrong order of elements."""
    masses = lmp.numpy.extract_atom("mass")
    if masses is None:  # each atom has its own
        return
    usual = atomic_masses[1 : len(SYMBOLS) + 1]
    for number, (element, mass) in enumerate(zip(elements, masses[1:], strict=True), start=1):
        nearest = int(np.abs(usual - mass).argmin())
        is_own = abs(usual[SYMBOLS.index(element)] - mass) < 0.5
        if not is_own and abs(usual[nearest] - mass) < 0.3:  # isotopes are rarely so close
            warnings.warn(
                f"atom type {number} is {element}, but has the mass of {SYMBOLS[nearest]} "
                f"({mass:g}): are the elements in the order of the types?",
                Dpa3simWarning,
                stacklevel=2,
            )
