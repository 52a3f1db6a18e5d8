"""Many clients share one model: their requests are evaluated as one batch.

A client is anything that needs one structure after the other: an optimizer or integrator in its
own thread, a bead of a path integral, an image of a path. One thread evaluates at a time: the
thread that called :meth:`Engine.map` or :meth:`Engine.serve`, or else a thread of the engine.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, get_args

from dpa3sim.common.errors import EngineError, InputError
from dpa3sim.potential.evaluation import Evaluation
from dpa3sim.potential.interface import BatchPotential, dispersion_of, rigidity_of
from dpa3sim.potential.potential import Potential
from dpa3sim.structures.system import AtomsLike, System, as_system

if TYPE_CHECKING:
    from ase import Atoms

    from dpa3sim.checkpoints import ModelFile
    from dpa3sim.potential.dispersion import Dispersion
    from dpa3sim.uncertainty.rigidity import Rigidity

Mode = Literal["lockstep", "streaming"]
DEFAULT_WINDOW = 0.002
MAX_CLIENTS = 64
# Time between searches for clients whose thread has died, s.
PATIENCE = 1.0
T = TypeVar("T")


class _InterruptedError(EngineError):
    """The evaluation was interrupted; this says nothing about the structure."""


def _check_clients(clients: int) -> None:
    if clients < 1:
        raise InputError(f"clients = {clients!r} must be at least 1")


@dataclass
class _Request:
    client: Client
    structure: System
    arrived: float
    future: Future[Evaluation] = field(default_factory=Future)

    def answer(self, outcome: Evaluation | Exception) -> None:
        try:
            if isinstance(outcome, Exception):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)
        except InvalidStateError:  # cancelled by the client
            pass


class Engine:
    """Collects the requests of clients and evaluates them as one batch.

    In ``"lockstep"`` mode, a batch is evaluated when every client waits for a result. It is ordered
    by the clients' rank, so that the batches, and therefore the results to the last bit, do not
    depend on timing. A client that neither asks nor leaves blocks the others. In ``"streaming"``
    mode, no client waits longer than ``window`` for others to join.

    Args:
        potential: a :class:`Potential` or an equivalent, or the model for a new one.
        mode: see above.
        window: waiting time in streaming mode, s.

    Attributes:
        potential: the model.

    Raises:
        CheckpointError, InputError: see :class:`Potential`.
    """

    def __init__(
        self,
        potential: BatchPotential | Any = None,
        *,
        mode: Mode = "lockstep",
        window: float = DEFAULT_WINDOW,
    ) -> None:
        if mode not in get_args(Mode):
            raise InputError(f"mode {mode!r} is not one of {', '.join(get_args(Mode))}")
        if not window >= 0:
            raise InputError(f"window {window!r} must be at least 0 s")
        self.potential: BatchPotential = (
            potential if isinstance(potential, BatchPotential) else Potential(potential)
        )
        self._streaming = mode == "streaming"
        self._window = window
        self._changed = threading.Condition()
        # Weak references, so that an abandoned client does not block the others.
        self._clients: weakref.WeakSet[Client] = weakref.WeakSet()
        self._pending: list[_Request] = []
        self._server: threading.Thread | None = None
        self._joined = 0

    def client(self, rank: int | None = None) -> Client:
        """Make a new client; lockstep batches wait for it until it leaves.

        Args:
            rank: position in the batches, by default the order of joining.
        """
        with self._changed:
            client = Client(self, self._joined if rank is None else rank)
            self._joined += 1
            self._clients.add(client)
        return client

    def serve(self) -> None:
        """Evaluate in the calling thread until the last client has left.

        Otherwise a thread of the engine evaluates, which is slower on a CPU: once the main thread
        has used torch, its OpenMP threads disturb those of another thread.
        """
        self._take_over(lambda: not self._clients)

    def map(
        self,
        structures: Sequence[Atoms],
        function: Callable[[Atoms], T],
        *,
        clients: int = MAX_CLIENTS,
        return_exceptions: bool = False,
    ) -> list[T | Exception]:
        """Apply a function of ASE atoms to many structures, with all evaluations batched.

        ``function`` runs in several threads at a time; it receives a copy of a structure with a
        calculator. A failure of one structure does not affect the others.

        Args:
            structures: the structures.
            function: the function for each structure, such as a relaxation.
            clients: the number of structures in progress at the same time.
            return_exceptions:  put exceptions in the place of results instead of raising the
                first one after all structures are done.
        """
        results: dict[int, T | Exception] = {}
        _check_clients(clients)
        team = max(1, min(clients, len(structures)))
        self.stream(enumerate(structures), function, results.__setitem__, clients=team)
        ordered = [results[index] for index in range(len(structures))]
        if not return_exceptions:
            for result in ordered:
                if isinstance(result, Exception):
                    raise result
        return ordered

    def stream(
        self,
        structures: Iterable[tuple[int, Atoms]],
        function: Callable[[Atoms], T],
        done: Callable[[int, T | Exception], None],
        *,
        clients: int = MAX_CLIENTS,
    ) -> None:
        """Like :meth:`map`, for any number of structures: when one is done, the next one enters.

        Args:
            structures: the structures, each with its number, which is its position in the batches;
                they are taken one at a time.
            function: the function for each structure; it runs in several threads at a time.
            done: called with the number and the outcome as soon as it is known, one at a time.
                An exception that it raises ends everything and is raised again.
            clients: the number of structures in progress at the same time.

        Raises:
            InputError: ``clients`` is less than 1.
        """
        _check_clients(clients)
        queue = iter(structures)
        lock = threading.Lock()
        failures: list[BaseException] = []

        def take() -> tuple[int, Atoms] | None:
            with lock:
                return None if failures else next(queue, None)

        def tell(number: int, outcome: T | Exception) -> None:
            with lock:
                if not failures:
                    done(number, outcome)

        def work(client: Client) -> None:
            with client:
                try:
                    while not client.closed and (taken := take()) is not None:
                        # The client stays the same, so that no batch starts without the next
                        # structure, which has its own position in the batches.
                        client.rank = taken[0]
                        outcome = self._one(client, taken[1], function)
                        if not isinstance(outcome, _InterruptedError):
                            tell(taken[0], outcome)
                except BaseException as error:
                    failures.append(error)

        team = [self.client(rank) for rank in range(clients)]
        threads = [threading.Thread(target=work, args=(c,), daemon=True) for c in team]
        try:
            for thread in threads:
                thread.start()
            self._take_over(lambda: all(client.closed for client in team))
            for thread in threads:
                thread.join()
        except BaseException as error:
            failures.append(error)  # no thread takes another structure
            raise
        finally:
            for client in team:  # all have left already, unless this was interrupted
                client.close()
        if failures:
            raise failures[0]

    def _one(self, client: Client, atoms: Atoms, function: Callable[[Atoms], T]) -> T | Exception:
        """The outcome of ``function`` for a structure whose calculator uses ``client``."""
        from dpa3sim.clients.ase import DPA3Calculator

        try:
            atoms = atoms.copy()
            calculator = DPA3Calculator(client)
            atoms.calc = calculator
            result = function(atoms)
            calculator.potential = self.potential  # the result outlives the client
        except Exception as error:
            return error
        return result

    # -- used by clients ------------------------------------------------------------------------

    def _submit(self, client: Client, structure: System) -> Future[Evaluation]:
        with self._changed:
            if client.closed:
                raise EngineError("this client of the engine has left")
            request = _Request(client, structure, time.monotonic())
            self._pending.append(request)
            self._find_server()
            self._changed.notify_all()
        return request.future

    def _leave(self, client: Client) -> None:
        with self._changed:
            self._clients.discard(client)
            gone = [r for r in self._pending if r.client is client]
            self._pending = [r for r in self._pending if r.client is not client]
            self._changed.notify_all()
        for request in gone:
            request.answer(EngineError("the client left before it received a result"))

    # -- the evaluating thread --------------------------------------------------------------------

    def _find_server(self) -> None:
        """Start a thread that evaluates, if there is none."""
        if self._server is None:
            self._server = threading.Thread(
                target=self._serve,
                args=(lambda: not self._clients,),
                name="dpa3sim",
                daemon=True,
            )
            self._server.start()

    def _take_over(self, done: Callable[[], bool]) -> None:
        """Serve in the calling thread, instead of the current one."""
        with self._changed:
            self._server = threading.current_thread()
            self._changed.notify_all()
        try:
            self._serve(done)
        finally:
            with self._changed:
                if self._server is threading.current_thread():
                    self._server = None
                if self._pending:
                    self._find_server()

    def _serve(self, done: Callable[[], bool]) -> None:
        """Evaluate batches until no more can come, or another thread takes over."""
        me = threading.current_thread()
        while True:
            with self._changed:
                while not self._ready() or self._server is not me:
                    if self._server is not me:
                        return
                    if done():
                        self._server = None
                        return
                    self._changed.wait(self._patience())
                    self._drop_dead_clients()
                batch = sorted(self._pending, key=lambda request: request.client.rank)
                self._pending = []
            self._answer(batch)
            del batch

    def _ready(self) -> bool:
        if not self._pending:
            return False
        waiting = {request.client for request in self._pending}
        if all(client in waiting for client in self._clients):
            return True
        return self._streaming and self._patience() <= 0

    def _patience(self) -> float:
        if not self._streaming or not self._pending:
            return PATIENCE
        oldest = min(request.arrived for request in self._pending)
        return max(0.0, oldest + self._window - time.monotonic())

    def _drop_dead_clients(self) -> None:
        """Remove clients whose thread ended without leaving, which would block the others."""
        for client in list(self._clients):
            thread = client.thread
            if thread is not None and not thread.is_alive():
                self._clients.discard(client)
                client.closed = True

    def _answer(self, batch: list[_Request]) -> None:
        outcomes: Sequence[Evaluation | Exception]
        try:
            outcomes = self.potential.evaluate_each([r.structure for r in batch])
        except Exception as error:
            if len(batch) > 1:  # an error of the whole batch: find the structure that causes it
                for request in batch:
                    self._answer([request])
                return
            outcomes = [error]
        except BaseException:  # no client may wait forever
            for request in batch:
                request.answer(_InterruptedError("the evaluation was interrupted"))
            raise
        for request, outcome in zip(batch, outcomes, strict=True):
            request.answer(outcome)


class Client:
    """A client of an :class:`Engine`; made by :meth:`Engine.client`.

    Use it like a :class:`Potential`, in one thread, and as a context manager: when it is left,
    the engine no longer waits for this client.

    Attributes:
        rank: position in the batches.
        closed: whether the client has left.
        thread: the thread of the last request.
    """

    def __init__(self, engine: Engine, rank: int) -> None:
        self._engine = engine
        self.rank = rank
        self.closed = False
        self.thread: threading.Thread | None = None

    @property
    def model(self) -> ModelFile:
        """The model in use."""
        return self._engine.potential.model

    @property
    def dtype(self) -> str:
        """Precision of the descriptor."""
        return self._engine.potential.dtype

    @property
    def rigidity(self) -> Rigidity | None:
        """What uncertainties are made from."""
        return rigidity_of(self._engine.potential)

    @property
    def dispersion(self) -> Dispersion | None:
        """What is added to the model."""
        return dispersion_of(self._engine.potential)

    def __repr__(self) -> str:
        return repr(self._engine.potential)

    def submit(self, structure: AtomsLike | System) -> Future[Evaluation]:
        """Request an evaluation without waiting; until it is done, the client counts as waiting.

        Raises:
            EngineError: the client has left. Errors of the structure are raised by the future.
        """
        self.thread = threading.current_thread()
        # A copy: the caller may move the atoms before they are evaluated.
        return self._engine._submit(self, as_system(structure).copy())

    def evaluate(self, structures: Sequence[AtomsLike | System]) -> list[Evaluation]:
        """Request evaluations and wait for them.

        Raises:
            InputError, NonFiniteError, OutOfMemoryError: see :meth:`Potential.evaluate`.
            EngineError: the client has left.
        """
        futures = [self.submit(structure) for structure in structures]
        return [future.result() for future in futures]

    def check(self, structure: AtomsLike | System) -> None:
        """Raise InputError if ``structure`` cannot be evaluated; this is cheap and immediate."""
        self._engine.potential.check(structure)

    def close(self) -> None:
        """Leave the engine, which then no longer waits for this client."""
        if not self.closed:
            self.closed = True
            self._engine._leave(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Client:
        """This client: it is a place in the batches."""
        return self

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled.

        Raises:
            InputError: always.
        """
        raise InputError(
            "a client of an engine cannot leave its process: give the calculator a Potential, "
            "or a model, before it is pickled"
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
