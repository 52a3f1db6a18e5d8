"""DPA3 as an in-process potential of i-PI: ``<ffdirect>`` and ``i-pi-py_driver -m custom``.

    <ffdirect name='dpa3' pbc='false'>
      <pes> custom </pes>
      <pes_path> (what `dpa3sim ipi pes-path` prints) </pes_path>
      <batch_size> 32 </batch_size>
      <parameters> { structure: init.extxyz, device: cuda } </parameters>
    </ffdirect>

i-PI executes this file and only does ``DPA3PES(**parameters)`` and ``pes(cell, positions)``;
nothing is imported from i-PI (docs/ipi.md#inside-i-pis-process). Without sockets and waiting, this
is the fastest way to run path integrals.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from typing import Any

import numpy as np

from dpa3sim.clients.ipi.evaluator import BatchEvaluator
from dpa3sim.common import settings as options_of
from dpa3sim.common.errors import Dpa3simError, InputError
from dpa3sim.potential.potential import Potential
from dpa3sim.potential.settings import ModelSettings
from dpa3sim.structures.given import ReadingSettings
from dpa3sim.structures.reading import read_structure

__DRIVER_NAME__ = "dpa3"
__DRIVER_CLASS__ = "DPA3PES"

Result = tuple[float, np.ndarray, np.ndarray, str]


class DPA3PES:
    """The model, called by i-PI with one structure or a list of them.

    Args:
        structure: file with the elements, their order and the periodic axes.
        extras: names of :data:`dpa3sim.clients.ipi.evaluator.EXTRAS`, separated by ``;``.
        members: of a committee made from the model's uncertainty; see :class:`BatchEvaluator`.
        verbosity: added by i-PI; it is not used.
        options: those of :class:`ModelSettings`: model (several, for a committee, separated by
            ``;``), head, device, dtype ...; and elements and format of the structure, see
            :class:`ReadingSettings`. All of them are optional.

    Raises:
        InputError: a parameter is unknown, or a value is not allowed.
        CheckpointError: a model cannot be read.
    """

    def __init__(
        self,
        structure: Any = None,
        *,
        extras: Any = "",
        members: Any = 0,
        verbosity: Any = None,
        **options: Any,
    ) -> None:
        if structure is None:
            raise InputError("the parameter structure is missing: a file with all atoms in order")
        models: list[str | None] = [*_words(options.pop("model", ""))] or [None]
        given = ReadingSettings(
            **{k: str(options.pop(k)) for k in ("elements", "format") if k in options}
        )
        potentials = [Potential.load(_settings(options | {"model": m})) for m in models]
        atoms = read_structure(str(structure), given).atoms
        if isinstance(members, bool) or not isinstance(members, int) or members < 0:
            raise InputError(f"members = {members!r} must be a whole number, at least 0")
        self._evaluate = BatchEvaluator(potentials, atoms, _words(extras), members)
        self._evaluate.warm_up()

    def __call__(self, cell: Any, positions: Any) -> Result | list[Result]:
        """Evaluate one structure or a list; the result for a list is a list, even of length 1.

        Args:
            cell: ``(3, 3)`` lattice vectors as columns, bohr, or a list of them.
            positions: ``(n, 3)``, bohr, or a list of them. Neither is modified.

        Returns:
            Energy, hartree; forces ``(n, 3)``, hartree/bohr; virial ``(3, 3)``, hartree; extras.
        """
        single = not isinstance(cell, list)
        cells = [cell] if single else cell
        where = [positions] if single else positions
        try:
            results = self._batch(cells, where)
        except Exception:
            _stop_if_nobody_listens()
            raise
        return results[0] if single else results

    def _batch(self, cells: list[np.ndarray], positions: list[np.ndarray]) -> list[Result]:
        where = np.stack([np.asarray(p, dtype=np.float64).reshape(-1, 3) for p in positions])
        if where.shape[1] != self._evaluate.natoms:
            raise InputError(
                f"i-PI sends {where.shape[1]} atoms, the structure has {self._evaluate.natoms}"
            )
        rows = np.stack([np.asarray(c, dtype=np.float64).T for c in cells])
        energies, forces, virials, extras = self._evaluate(rows, where)
        # Copies, because i-PI sets the lower triangle of each virial to zero in place.
        return [
            (float(e), np.array(f), np.array(w.T), x)
            for e, f, w, x in zip(energies, forces, virials, extras, strict=True)
        ]


def _settings(options: dict[str, Any]) -> ModelSettings:
    """Settings of the model from the values that i-PI parsed between the braces."""
    known = options_of.options(ModelSettings)
    for name in options:
        if name not in known:
            names = ("structure", "extras", "members", *known)
            hint = options_of.suggestion(name, names)
            raise InputError(f"unknown parameter {name!r}{hint}; known are {', '.join(names)}")
    given: dict[str, Any] = {
        # i-PI converts what looks like a number or a truth value.
        name: str(value) if known[name][0] is str and value is not None else value
        for name, value in options.items()
    }
    return ModelSettings(**given)


def _words(text: Any) -> list[str]:
    """The items of a parameter, separated by semicolons because i-PI splits at commas."""
    return [word.strip() for word in str(text).split(";") if word.strip()]


def _stop_if_nobody_listens() -> None:
    """End i-PI if an exception would only end its polling thread and leave it hanging.

    With ``threaded='True'``, the potential is called from a thread whose end i-PI does not notice.
    """
    if not threading.current_thread().name.startswith("poll_"):
        return
    error = sys.exc_info()[1]
    if isinstance(error, Dpa3simError):
        print(f"dpa3sim: error: {error}", file=sys.stderr, flush=True)
    else:
        traceback.print_exc()
    softexit = getattr(sys.modules.get("ipi.utils.softexit"), "softexit", None)
    if softexit is not None:  # writes RESTART and notifies the clients
        softexit.cleanup("restartable", "the potential failed.")
    sys.stdout.flush()
    os._exit(getattr(error, "exit_code", 1))
