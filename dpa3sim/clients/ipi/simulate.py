"""i-PI in its own process, which can be stopped, killed and continued without a trace.

``python -m dpa3sim.clients.ipi.simulate PREFIX STEPS [STARTER]`` runs ``PREFIX.xml`` in the current
folder up to STEPS steps, unless the process STARTER is gone already. Every few seconds and at the
end, ``PREFIX.RESTART`` is replaced as a whole. It is i-PI's own checkpoint, after a comment with
the data that it lacks. After a restart, outputs are cut to their length at that moment, and the
trajectory continues bit for bit as if nothing had happened.

i-PI alone continues with deviations of about 1e-16: it keeps positions as normal modes between
steps but saves beads, removes the centre-of-mass momentum again when it starts, and redistributes
the heat of its thermostats. Therefore, after every step, the state is made a function of the saved
data.

All code that imports i-PI's internals is in this module.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dpa3sim.clients.ipi.inputs import pes_file
from dpa3sim.common.errors import INTERRUPTED, Dpa3simError, InputError, UnphysicalError
from dpa3sim.common.files import atomic_write, lock_folder, usual_recursion

OUR_PES = re.compile(r"(<pes_path>)[^<]*dpa3sim/(?:clients/)?ipi/pes\.py\s*(</pes_path>)")
CHECKPOINT_SECONDS = 10.0
# For large systems, which take long to write: this many times as long between two checkpoints.
CHECKPOINT_SHARE = 20.0
FLUSH_SECONDS = 0.5
# Time to wait for an earlier process in the same folder, which ends after its step, s.
LOCK_SECONDS = 60.0
ERROR = "dpa3sim: error: "


def restart_file(prefix: str) -> str:
    """Name of the checkpoint."""
    return f"{prefix}.RESTART"


def saved_step(folder: Path, prefix: str) -> int:
    """The step from which a calculation continues; 0 if nothing is saved."""
    try:
        text = (folder / restart_file(prefix)).read_text(encoding="utf-8")
    except FileNotFoundError:
        return 0
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{folder / restart_file(prefix)}: cannot be read ({error})") from None
    step: int = _header(text)["step"]
    return step


def _header(text: str) -> dict[str, Any]:
    """The header in the first line of a checkpoint.

    Raises:
        InputError: the checkpoint is damaged.
    """
    match = re.match(r"<!-- (\{.*\}) -->\n", text)
    try:
        with usual_recursion():
            header = json.loads(match[1]) if match else {}
    except (ValueError, RecursionError):
        header = {}
    if match is None or header.get("sha256") != _sha256(header, text[match.end() :]):
        raise InputError(f"{restart_file('*')} is damaged; --force starts again")
    return header


def _sha256(header: dict[str, Any], body: str) -> str:
    """Checksum of a checkpoint."""
    facts = json.dumps({name: value for name, value in header.items() if name != "sha256"})
    return hashlib.sha256(f"{facts}\n{body}".encode()).hexdigest()


class _WithIsotopes:
    """i-PI's beads, whose names distinguish isotopes in properties such as ``kinetic_cv(D)``.

    The names in trajectories stay elements, which all programs read.
    """

    def __init__(self, beads: Any) -> None:
        from ipi.utils.units import Constants

        from dpa3sim.structures.isotopes import names

        self._beads = beads
        self.names = names(list(beads.names), beads.m / Constants.amu)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._beads, name)


class Simulation:
    """i-PI's simulation in the current folder, from the input or the checkpoint.

    Args:
        prefix: of all files. steps: total number. parent: the process without which the run ends.

    Raises:
        InputError: a damaged checkpoint.
    """

    def __init__(self, prefix: str, steps: int, parent: int) -> None:
        from ipi.engine.simulation import Simulation as IPISimulation

        self.prefix, self.steps = prefix, steps
        self.stopping = False
        self._parent = parent
        self._saved = self._flushed = time.monotonic()
        self._pause = CHECKPOINT_SECONDS
        header, text = self._restore()
        # dpa3sim may have been updated or moved since.
        text = OUR_PES.sub(lambda found: f"{found[1]}{pes_file()}{found[2]}", text)
        kept: dict[str, Any] = {}

        def before_binding(simulation: Any) -> None:
            simulation.tsteps = steps
            (system,) = simulation.syslist
            if header is not None:
                kept.update(p=system.beads.p.copy(), heat=system.ensemble.eens)

        self.ipi = IPISimulation.load_from_xml(text, post_init_hook=before_binding)
        # States are stored here; i-PI's own RESTART would be written every step.
        self._safe_stride, self.ipi.safe_stride = self.ipi.safe_stride, sys.maxsize
        (self._system,) = self.ipi.syslist
        self._system.properties.beads = _WithIsotopes(self._system.beads)
        if header is not None:
            self._system.beads.p[:] = kept["p"]
            for thermostat, heat in zip(self._thermostats(), header["heat"], strict=True):
                thermostat.ethermo = heat
            self._system.ensemble.eens = kept["heat"]
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        self._ipi_step = self.ipi.run_step
        self.ipi.run_step = self._step

    def run(self) -> bool:
        """Run; the result is True if all steps were done, False if the run was stopped before.

        Raises:
            UnphysicalError: the atoms reached a configuration that the model cannot evaluate.
        """
        from ipi.utils.softexit import softexit

        try:
            try:
                self.ipi.run()
            finally:
                self.ipi.stop()  # stops forcefields: sockets are closed and removed
        except InputError as error:  # the first structure could be computed
            raise UnphysicalError(f"in step {self.ipi.step + 1}: {error}") from None
        except Dpa3simError as error:
            error.args = (f"in step {self.ipi.step + 1}: {error}",)
            raise
        if softexit.triggered:  # a file EXIT; outputs are closed, the last checkpoint counts
            return False
        if self.stopping:
            return False
        self._settle()
        self._save(self.steps)
        return True

    def _step(self, step: int) -> None:
        """Called before each step, after everything about the previous one has been written."""
        self._settle()
        now = time.monotonic()
        self.stopping |= os.getppid() != self._parent
        if self.stopping or step == 0 or now - self._saved >= self._pause:
            self._save(step)
        elif now - self._flushed >= FLUSH_SECONDS:
            self._flush()
        if self.stopping:
            self.ipi.finished = True
            return
        self._ipi_step(step)

    def _stop(self, signum: int, frame: object) -> None:
        self.stopping = True

    # -- the state -------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Make the state a function of the content of a checkpoint: positions, momenta, cell."""
        from ipi.utils.depend import dstrip

        beads, nm = self._system.beads, self._system.nm
        # This bypasses i-PI's bookkeeping, which would consider the forces outdated.
        dstrip(nm.qnm)[:] = nm.transform.b2nm(dstrip(beads.q))
        beads.p[:] = dstrip(beads.p).copy()

    def _thermostats(self) -> Iterable[Any]:
        """The thermostats of the normal modes, each of which has its own heat."""
        thermostat = getattr(self._system.motion, "thermostat", None)
        thermostats: list[Any] = getattr(thermostat, "_thermos", [])
        return thermostats

    def _save(self, step: int) -> None:
        """Replace the checkpoint; the outputs are on the disk before it records their length."""
        began = time.monotonic()
        sizes = self._flush(sync=True)
        self.ipi.chk.store()
        status = self.ipi.chk.status
        status.step.store(step)
        status.safe_stride.store(self._safe_stride)
        heat = [float(t.ethermo) for t in self._thermostats()]
        header: dict[str, Any] = {"step": step, "bytes": sizes, "heat": heat}
        body = str(status.write(name="simulation"))
        header["sha256"] = _sha256(header, body)
        atomic_write(Path(restart_file(self.prefix)), f"<!-- {json.dumps(header)} -->\n{body}")
        self._saved = time.monotonic()
        self._pause = max(CHECKPOINT_SECONDS, CHECKPOINT_SHARE * (self._saved - began))

    def _flush(self, sync: bool = False) -> dict[str, int]:
        """Flush all output; returns the sizes of the files."""
        sizes = {}
        for output in self.ipi.outputs:
            streams = output.out if isinstance(output.out, list) else [output.out]
            for stream in streams:
                if stream is None:
                    continue
                stream.flush()
                if sync:
                    os.fsync(stream.fileno())
                sizes[stream.name] = os.fstat(stream.fileno()).st_size
        self._flushed = time.monotonic()
        return sizes

    def _restore(self) -> tuple[dict[str, Any] | None, str]:
        """The header and the text to start from; outputs are cut, or removed for a new run."""
        path = Path(restart_file(self.prefix))
        if not path.exists():
            for leftover in Path().glob(f"{self.prefix}.*"):
                if leftover.suffix not in (".xml", ".log"):
                    leftover.unlink()
            return None, Path(f"{self.prefix}.xml").read_text(encoding="utf-8")
        text = path.read_text(encoding="utf-8")
        header = _header(text)
        for name, size in header["bytes"].items():
            if Path(name).name != name or not Path(name).is_file():
                raise InputError(f"{name} is missing; --force starts again")
            if os.path.getsize(name) < size:
                raise InputError(f"{name} is shorter than recorded; --force starts again")
            os.truncate(name, size)
        return header, text


def wait_for_folder() -> None:
    """Wait until no other process uses the current folder; the lock ends with this process.

    Raises:
        InputError: another process continues to use it.
    """
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            lock_folder(Path())
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise InputError(f"another process is computing in {Path().resolve()}") from None
            time.sleep(0.1)


def _is_alive(process: int) -> bool:
    """Whether a process with this number exists, as far as the system tells."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def main(arguments: list[str]) -> int:
    """Run, and print an error in the last line."""
    prefix, steps, *starter = arguments
    parent = os.getppid()
    # The starter may have ended before; then the parent is another process, and we must end, too.
    if starter and not _is_alive(int(starter[0])):
        return INTERRUPTED
    try:
        wait_for_folder()
        done = Simulation(prefix, int(steps), parent).run()
    except Dpa3simError as error:
        print(f"{ERROR}{error}", file=sys.stderr)
        return error.exit_code
    return 0 if done else INTERRUPTED


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of torch may crash during the shutdown of the interpreter; everything is on the disk.
    os._exit(status)
