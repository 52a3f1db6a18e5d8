"""LAMMPS on several MPI ranks: each moves its own atoms, and all of them share the model.

In a step, every rank sends its atoms to rank 0, which evaluates the structure with the help of all
and gives them the results; each takes those of its atoms.
"""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from ctypes import byref, c_char, c_int, create_string_buffer, sizeof
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from dpa3sim.checkpoints import ModelFile
from dpa3sim.checkpoints.registry import load_model
from dpa3sim.common.errors import Dpa3simError, InputError, RankLostError
from dpa3sim.parallel.messages import packed, unpacked
from dpa3sim.parallel.processes import (
    CONNECT_LAUNCHED,
    Meeting,
    Place,
    fail,
    local_store,
    on_loopback,
    select,
)
from dpa3sim.potential.evaluation import Evaluation
from dpa3sim.potential.interface import PotentialLike
from dpa3sim.potential.potential import Potential, resolve_device
from dpa3sim.potential.settings import ENVIRONMENT, ModelSettings
from dpa3sim.potential.team import Follower, Team, outcomes_from, outcomes_packed
from dpa3sim.structures.system import System


@dataclass(frozen=True)
class Step:
    """What LAMMPS asks for, in one of its steps, on one rank.

    Attributes:
        tags: ``(n_local,)`` ids of the atoms of this rank. numbers: ``(n_local,)`` their atomic
            numbers. positions: ``(n_local, 3)`` Å.
        cell: rows, Å. pbc: ``(3,)`` periodicity.
        stopped: whether this rank wants to end the run.
    """

    tags: np.ndarray
    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    stopped: bool


class Answer(NamedTuple):
    """What all ranks are told of a step.

    Attributes:
        tags: ``(n,)`` ids of all atoms, rising. evaluation: in this order.
        stopped: whether any rank wants to end the run.
    """

    tags: np.ndarray
    evaluation: Evaluation
    stopped: bool


class Alone:
    """The model, where LAMMPS runs on one MPI rank.

    Args:
        potential: the resident model.

    Attributes:
        model: of the potential. rank, size: which MPI rank this is, and of how many.
    """

    rank, size = 0, 1

    def __init__(self, potential: PotentialLike) -> None:
        self.model: ModelFile = potential.model
        self._potential = potential

    def answer(self, step: Step) -> Answer:
        """The forces of a step.

        Raises:
            Dpa3simError: the model cannot compute the structure.
        """
        # In the order of ids, however LAMMPS sorts: neighbour lists refer to the index of an atom.
        order = np.argsort(step.tags, kind="stable")
        structure = System(step.numbers[order], step.positions[order], step.cell, step.pbc)
        return Answer(step.tags[order], self._potential.evaluate([structure])[0], step.stopped)

    def close(self) -> None:
        """Nobody else takes part."""


class First(Alone):
    """The model on rank 0 of several.

    Args:
        potential: of the team. team: all ranks.

    Attributes:
        potential: as given.
    """

    def __init__(self, potential: Potential, team: Team) -> None:
        super().__init__(potential)
        self.potential = potential
        self.size = team.size
        self._team = team

    def answer(self, step: Step) -> Answer:
        """See :class:`Alone`; all other ranks have the same answer, or the same error."""
        parts = self._team.collect(packed(*_own(step)))
        try:
            answer = super().answer(_united(step, parts))
        except Exception as error:
            known = isinstance(error, Dpa3simError)
            told = error if known else RankLostError(f"rank 0 failed: {error!r}")
            with suppress(RankLostError):  # which may be the error that is to be told
                self._give(told, np.zeros(0, dtype=np.int64), False)
            raise
        self._give(answer.evaluation, answer.tags, answer.stopped)
        return answer

    def _give(self, outcome: Any, tags: np.ndarray, stopped: bool) -> None:
        found = np.frombuffer(outcomes_packed([outcome]), dtype=np.uint8)
        self._team.give({"stopped": stopped}, {"outcome": found, "tags": tags})

    def close(self) -> None:
        """Let the other ranks end."""
        self._team.close()


class Other:
    """One of the other ranks.

    Args:
        follower: does what rank 0 says. meeting: how the ranks found each other.

    Attributes:
        model: in use. rank, size: which MPI rank this is, and of how many.
    """

    def __init__(self, follower: Follower, meeting: Meeting) -> None:
        self.model = follower.model
        self.rank, self.size = follower.ranks.rank, follower.ranks.size
        self._follower, self._store = follower, meeting.store

    def answer(self, step: Step) -> Answer:
        """See :class:`First`."""
        try:
            self._follower.ranks.collect(packed(*_own(step)))
            message = self._follower.follow()
        except Dpa3simError:
            raise
        except BaseException as error:
            # LAMMPS would go on with this rank alone; its end is what the others notice.
            traceback.print_exc()
            fail(self._store, self.rank, error)
            os._exit(RankLostError.exit_code)
        if message is None:
            raise RankLostError("rank 0 has ended")
        words, arrays = message
        (outcome,) = outcomes_from(arrays["outcome"].tobytes(), 0)
        if isinstance(outcome, Dpa3simError):
            raise outcome
        return Answer(arrays["tags"], outcome, words["stopped"])

    def close(self) -> None:
        """Wait until rank 0 needs this one no more."""
        with suppress(RankLostError):
            while self._follower.follow() is not None:
                pass


Member = Alone | Other
# The fields of a step that hold something of each atom, so that ranks exchange them.
_OF_ATOMS = ("tags", "numbers", "positions")


def _own(step: Step) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    arrays = {name: getattr(step, name) for name in _OF_ATOMS}
    return {"stopped": step.stopped}, arrays


def _united(step: Step, messages: Sequence[bytes]) -> Step:
    """The step with the atoms of all ranks."""
    parts = [unpacked(message) for message in messages]
    arrays = {name: np.concatenate([x[name] for _, x in parts]) for name in _OF_ATOMS}
    stopped = any(words["stopped"] for words, _ in parts)
    return Step(**arrays, cell=step.cell, pbc=step.pbc, stopped=stopped)


# -- how they find each other --------------------------------------------------------------------


def join(lmp: Any, settings: ModelSettings) -> First | Other:
    """Share a model among the MPI ranks of a LAMMPS instance, each of which calls this.

    Args:
        lmp: the instance. settings: which model, and how it computes; ``ranks`` is ``"env"``.

    Raises:
        InputError: the ranks cannot share it. CheckpointError: the model cannot be read.
        RankLostError: another rank does not come.
    """
    if settings.ranks != ENVIRONMENT:
        raise InputError(
            f"LAMMPS runs on {mpi_ranks(lmp)} MPI ranks: they share the model with --ranks "
            f"{ENVIRONMENT}; or start LAMMPS without mpiexec, with --ranks N for the model"
        )
    model = load_model(settings.model, settings.head)
    if settings.smooth_cutoff is not None:
        model = model.smoothed(settings.smooth_cutoff)
    device = resolve_device(settings.device)
    world = _World(lmp)
    hosts = world.gather(socket.gethostname())
    place = Place(world.rank, world.size, hosts[: world.rank].count(hosts[world.rank]))
    select(device, place)
    _divide_threads(hosts.count(hosts[world.rank]))
    together = len(set(hosts)) == 1
    meeting = Meeting(place, _store(world, hosts[0], together), device, CONNECT_LAUNCHED)
    with on_loopback() if together else nullcontext():
        if place.rank:
            follower = Follower(model, settings.rank_timeout, meeting)
            follower.follow()  # until rank 0 has its potential
            return Other(follower, meeting)
        team = Team(model, meeting, device, settings.rank_timeout)
    options = asdict(settings) | {"model": model, "ranks": team}
    # The model is smoothed, and of its head, already.
    potential = Potential(**options | {"smooth_cutoff": None, "head": None})
    team.give({}, {})
    return First(potential, team)


def mpi_ranks(lmp: Any) -> int:
    """On how many MPI ranks a LAMMPS instance runs.

    Raises:
        InputError: there are partitions.
    """
    size, all_of_them = (lmp.extract_setting(x) for x in ("world_size", "universe_size"))
    if size != all_of_them:
        raise InputError("LAMMPS has partitions (-partition), which cannot share a model")
    return int(size)


def check_totals(lmp: Any) -> None:
    """See that energy and virial, which all ranks give to LAMMPS, count once and not several times.

    Some versions of LAMMPS add those of the ranks. What this one does is tried with a small box.

    Raises:
        InputError: they count otherwise.
    """
    probe = type(lmp)(cmdargs=["-log", "none", "-screen", "none", "-nocite"])
    try:
        probe.commands_string(
            "units lj\nregion r block 0 2 0 2 0 2\ncreate_box 1 r\nmass 1 1\npair_style zero 0.5\n"
            "pair_coeff * *\ncreate_atoms 1 single 0.5 1 1\ncreate_atoms 1 single 1.5 1 1\n"
            "thermo_style custom pe press\nthermo_modify norm no\n"
            "fix x all external pf/callback 1 1"
        )

        def give(*_: Any) -> None:
            probe.fix_external_set_energy_global("x", 5.0)
            probe.fix_external_set_virial_global("x", np.full(6, 8.0))

        probe.set_fix_external_callback("x", give)
        probe.command("run 0 post no")
        found = probe.get_thermo("pe"), probe.get_thermo("press")
    finally:
        probe.close()
    if not np.allclose(found, (5.0, 1.0)):
        raise InputError(
            f"this LAMMPS (version {lmp.version()}) makes an energy of {found[0]:g} and a pressure "
            f"of {found[1]:g} of 5 and 1 on {mpi_ranks(lmp)} MPI ranks; run it on one"
        )


def _store(world: _World, host: str, together: bool) -> TCPStore:
    """Where the ranks meet: at a port of rank 0, of which the others learn by MPI."""
    store: TCPStore | None = None
    if world.rank == 0:
        store = local_store() if together else TCPStore(host, 0, None, True, wait_for_workers=False)
    port = 0 if store is None else store.port
    port = int(world.gather(str(port))[0])
    return store or TCPStore("127.0.0.1" if together else host, port, is_master=False)


def _divide_threads(ranks: int) -> None:
    """Give each rank of a machine its part of the cores, unless something else has done so."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    if "OMP_NUM_THREADS" not in os.environ and available == os.cpu_count():
        torch.set_num_threads(max(1, available // ranks))


class _World:
    """All MPI ranks, by the MPI library that LAMMPS has loaded and begun.

    Args:
        lmp: a LAMMPS instance.

    Attributes:
        rank, size: which rank this is, and of how many.

    Raises:
        InputError: this MPI library is not known, or LAMMPS has only some of its ranks.
    """

    _LENGTH = 256

    def __init__(self, lmp: Any) -> None:
        self._lib = lmp.lib
        self._world: Any
        self._byte: Any
        version, length = create_string_buffer(8192), c_int()
        self._lib.MPI_Get_library_version(version, byref(length))
        if b"Open MPI" in version.value:
            names = ("ompi_mpi_comm_world", "ompi_mpi_byte")
            self._world, self._byte = (byref(c_char.in_dll(self._lib, x)) for x in names)
        elif any(x in version.value for x in (b"MPICH", b"Intel", b"MVAPICH")):
            # The numbers of MPI_COMM_WORLD and MPI_BYTE in the common interface of these.
            self._world, self._byte = c_int(0x44000000), c_int(0x4C00010D)
        else:
            name = version.value.decode(errors="replace").splitlines()[:1]
            raise InputError(f"MPI library {name} is not known; run LAMMPS without mpiexec")
        self.rank, self.size = self._number("MPI_Comm_rank"), self._number("MPI_Comm_size")
        if self.size != mpi_ranks(lmp):
            raise InputError(f"LAMMPS uses {mpi_ranks(lmp)} of {self.size} MPI ranks, not all")

    def gather(self, text: str) -> list[str]:
        """The texts of all ranks."""
        own = create_string_buffer(text.encode()[: self._LENGTH - 1], self._LENGTH)
        every = create_string_buffer(self._LENGTH * self.size)
        size = c_int(self._LENGTH)
        self._lib.MPI_Allgather(own, size, self._byte, every, size, self._byte, self._world)
        starts = range(0, sizeof(every), self._LENGTH)
        return [every.raw[x : x + self._LENGTH].partition(b"\0")[0].decode() for x in starts]

    def _number(self, name: str) -> int:
        number = c_int()
        getattr(self._lib, name)(self._world, byref(number))
        return number.value
