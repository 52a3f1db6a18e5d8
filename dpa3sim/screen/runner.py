"""Computes what waits in a screening's database, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from dpa3sim.clients.engine import MAX_CLIENTS, Engine
from dpa3sim.common.errors import UNPHYSICAL, InputError
from dpa3sim.screen.calculation import Calculation, failure
from dpa3sim.screen.database import Database, Outcome

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.potential.potential import Potential

Progress = Callable[[int, Outcome], None]
"""Told the id of a structure and what came of it, when that is saved."""


def compute(
    database: Database,
    calculation: Calculation,
    potential: Potential,
    progress: Progress,
    *,
    at_once: int = MAX_CLIENTS,
) -> None:
    """Compute all structures that wait, each saved as soon as it is known.

    Args:
        database: holds the structures, and takes what comes of them.
        calculation: what to do with each.
        potential: the model.
        progress: called for each.
        at_once: so many structures are in the batches at the same time; where one is done the
            next one enters.

    Raises:
        InputError: the database cannot be written.
    """
    waiting = database.waiting()
    structures = ((number, database.input(number)) for number in waiting)

    def save(number: int, outcome: Outcome) -> None:
        database.finish(number, outcome)
        progress(number, outcome)

    def keep(number: int, progress: str) -> None:
        # Not to be taken for the structure's own error; `save` will tell of a full disk.
        with suppress(InputError):
            database.save_progress(number, progress)

    team = min(at_once, len(waiting))
    stream(structures, calculation, potential, save, team, database.progress, keep)


def stream(
    structures: Iterable[tuple[int, Atoms]],
    calculation: Calculation,
    potential: Potential,
    done: Progress,
    at_once: int,
    known: Callable[[int], str | None],
    keep: Callable[[int, str], None] | None = None,
) -> None:
    """Compute structures, given with their ids, and tell what came of each.

    Args:
        structures, calculation, potential, at_once: see :func:`compute`.
        done: called for each.
        known: how far an earlier try of a structure came.
        keep: called every so often with the progress of one.
    """
    if not calculation.together:
        for number, atoms in structures:
            done(number, calculation(atoms, potential))
        return

    def one(atoms: Atoms) -> Outcome:
        assert atoms.calc is not None
        client = atoms.calc.potential
        number: int = client.rank  # of the structure
        save = None if keep is None else partial(keep, number)
        return calculation(atoms, client, known(number), save)

    def tell(number: int, outcome: Outcome | Exception) -> None:
        if isinstance(outcome, Exception):  # not of the calculation, which returns its errors
            outcome = failure(str(outcome), UNPHYSICAL, 0.0)
        done(number, outcome)

    Engine(potential).stream(structures, one, tell, clients=max(1, at_once))
