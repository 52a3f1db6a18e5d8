"""SIGINT and SIGTERM end a command at any moment, whatever is running then, and exactly once."""

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.io import write
from tests_support import DATA, ENVIRONMENT, TESTS

from dpa3sim.cli import main as command_line
from dpa3sim.cli import signals
from dpa3sim.cli.commands import relax
from dpa3sim.cli.main import main
from dpa3sim.cli.options import Parser
from dpa3sim.cli.signals import stopped_by_signals
from dpa3sim.clients.ipi import simulate
from dpa3sim.common.errors import ConnectionLostError, InputError, UnphysicalError
from dpa3sim.run.directory import RunDirectory

KINDS = [signal.SIGINT, signal.SIGTERM]
LINE = "dpa3sim: interrupted\n"
MODEL = str(DATA / "models/dynamic/model.pt")
# How long what got a signal may go on, s. Nothing here takes that long, on any machine, but for
# commands that lost it, which would go on for longer.
LIMIT = 120.0
MD = ["md", "water.xyz", "--model", MODEL, "--no-plot", "--temperature", "5", "--timestep", "0.1"]
MD += ["--steps", "1000000"]
EOS = ["eos", "Si.vasp", "--no-plot", "--points", "20000"]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def dispositions():
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGALRM]
    return [signal.getsignal(n) for n in numbers], sys.unraisablehook, sys.excepthook


@pytest.fixture
def command(monkeypatch):
    """Makes a function what the command does; gives its exit code."""

    def run(work):
        module = SimpleNamespace(run=lambda args: work() or 0)
        found = lambda arguments: (module, Parser(prog="dpa3sim fake"), [])  # noqa: E731
        monkeypatch.setattr(command_line, "find", found)
        before = dispositions()
        code = main(["fake"])
        assert dispositions() == before
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        return code

    return run


def go_on():
    """What a command does that lost its signal.

    After the command, it has an end: what an interrupt left behind may be collected in other tests.
    """
    end = time.monotonic() + LIMIT
    while time.monotonic() < end and signals._watch is not None:
        pass


@contextmanager
def nobody_looks():
    """Within, no interrupt is raised again, however slow the machine is."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])


# -- what swallows exceptions ----------------------------------------------------------------------
# Each gets a function that is interrupted, and goes on.


def bare_except(interrupted):
    try:
        interrupted()
    except:  # noqa: E722
        return


def another_exception(interrupted):
    try:
        try:
            interrupted()
        except BaseException as error:
            raise ImportError("no such thing") from error
    except ImportError:
        pass


def another_exception_that_hides_it(interrupted):
    try:
        try:
            interrupted()
        except BaseException:
            raise ImportError("no such thing") from None
    except ImportError:
        pass


def return_in_finally(interrupted):
    try:
        interrupted()
    finally:
        return  # noqa: B012


def kept_for_later(interrupted, kept=[]):  # noqa: B006
    try:
        interrupted()
    except BaseException as error:
        kept.append(error)


def printed_by_c(interrupted):
    """As PyErr_Print does it."""
    try:
        interrupted()
    except BaseException:
        sys.excepthook(*sys.exc_info())


def destructor(interrupted):
    class Thing:
        def __del__(self):
            interrupted()

    Thing()


def weakref_callback(interrupted):
    thing = set()
    reference = weakref.ref(thing, lambda _: interrupted())
    del thing
    assert reference() is None


def gc_callback(interrupted):
    def callback(phase, info):
        if phase == "stop":
            gc.callbacks.remove(callback)
            interrupted()

    gc.callbacks.append(callback)
    gc.collect()


def ctypes_callback(interrupted):
    ctypes.CFUNCTYPE(None)(interrupted)()


def ignored_by_c(interrupted):
    class Thing:
        def __getattr__(self, name):
            interrupted()

    has = ctypes.pythonapi.PyObject_HasAttrString
    has.argtypes = [ctypes.py_object, ctypes.c_char_p]
    assert not has(Thing(), b"x")


def generator_closed(interrupted):
    def generator():
        try:
            yield
        finally:
            interrupted()

    running = generator()
    next(running)
    del running


SWALLOWERS = [
    bare_except,
    another_exception,
    another_exception_that_hides_it,
    return_in_finally,
    kept_for_later,
    printed_by_c,
    destructor,
    weakref_callback,
    gc_callback,
    ctypes_callback,
    ignored_by_c,
    generator_closed,
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("swallow", SWALLOWERS)
def test_a_swallowed_signal_ends_the_command(swallow, kind, command, capsys, monkeypatch):
    passed, dropped = [], []
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)

    def work():
        with nobody_looks():
            swallow(lambda: signal.raise_signal(kind))
            passed.append("swallowed")
        go_on()
        passed.append("lost")

    assert command(work) == 130
    assert passed == ["swallowed"]
    assert dropped == []  # of what is told
    assert capsys.readouterr().err == LINE


def test_swallowed_again_and_again(command, capsys):
    passed = []

    def looked_for():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
        try:
            go_on()
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])

    def work():
        with nobody_looks():
            bare_except(lambda: signal.raise_signal(signal.SIGTERM))
            for swallow in SWALLOWERS:
                swallow(looked_for)
                passed.append(swallow)
        go_on()
        passed.append("lost")

    assert command(work) == 130
    assert passed == SWALLOWERS
    assert capsys.readouterr().err == LINE


@pytest.mark.parametrize("error", [ImportError, RuntimeError, InputError, SystemExit])
def test_what_comes_of_it_is_no_error(error, command, capsys):
    """Neither a traceback nor the line of an error, when the cause is the signal."""

    def work():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise error(1) from None

    assert command(work) == 130
    assert capsys.readouterr().err == LINE


@pytest.mark.parametrize("timer", [True, False])
def test_lost_at_the_end(timer, command, monkeypatch, capsys):
    """A command that ends before anybody looks; without a timer, as on Windows, this is all."""
    monkeypatch.setattr(signals, "_HAS_TIMER", timer)
    assert command(lambda: bare_except(lambda: signal.raise_signal(signal.SIGINT))) == 130
    assert capsys.readouterr().err == LINE


def test_errors_of_others_are_still_told(command, capsys):
    """What Python drops, or C prints, and has nothing to do with a signal."""

    def fail():
        raise ValueError("a bug")

    def work():
        destructor(fail)
        printed_by_c(fail)

    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "unraisablehook", lambda found: told.append(str(found.exc_value)))
        assert command(work) == 0
    assert told == ["a bug"]
    assert "ValueError: a bug" in capsys.readouterr().err


# -- clean-up --------------------------------------------------------------------------------------


def test_clean_up_is_left_alone(command):
    """Whatever ``finally``, ``with`` and ``except`` do on the way, for as long as they take."""
    done = []

    def clean(name):
        end = time.monotonic() + 2 * signals.NEXT_LOOKS
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                os.stat("missing")
        done.append(name)

    @contextmanager
    def manager():
        try:
            yield
        finally:
            clean("manager")

    def work():
        try:
            with manager(), ExitStack() as stack:
                stack.callback(clean, "stack")
                try:
                    signal.raise_signal(signal.SIGINT)
                except KeyboardInterrupt:
                    clean("except")
                    raise
        finally:
            clean("finally")

    assert command(work) == 130
    assert done == ["except", "stack", "manager", "finally"]


def test_a_second_signal_ends_clean_up(command, capsys):
    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()

    def work():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            go_on()

    began = time.monotonic()
    assert command(work) == 130
    assert time.monotonic() - began < LIMIT / 2
    assert capsys.readouterr().err == LINE


# -- steps that are finished first -----------------------------------------------------------------


def test_the_first_signal_stops_and_the_second_interrupts(command, capsys):
    passed = []

    def work():
        with stopped_by_signals(lambda: passed.append("stop")):
            signal.raise_signal(signal.SIGTERM)
            time.sleep(3 * signals.FIRST_LOOK)
            passed.append("step")
            bare_except(lambda: signal.raise_signal(signal.SIGINT))
            go_on()
            passed.append("lost")

    assert command(work) == 130
    assert passed == ["stop", "step"]


def test_one_that_was_lost_before_is_not_lost_there(command):
    passed = []

    def work():
        with nobody_looks():
            bare_except(lambda: signal.raise_signal(signal.SIGINT))
            with stopped_by_signals(lambda: passed.append("stop")):
                passed.append("step")

    assert command(work) == 130
    assert passed == []


def test_what_stops_without_an_interrupt_has_its_own_code(command, capsys):
    def work():
        with stopped_by_signals(lambda: None):
            signal.raise_signal(signal.SIGINT)
        raise ConnectionLostError("i-PI is gone")

    assert command(work) == 6
    assert "i-PI is gone" in capsys.readouterr().err


def test_no_other_structure_is_begun(monkeypatch, smooth, capsys):
    """A signal in the last step of one that ends by itself."""
    for name in ("a.xyz", "b.xyz"):
        write(name, molecule("H2O"))
    begun = []

    def execute(job):
        begun.append(job.source.label)
        with stopped_by_signals(lambda: None):
            signal.raise_signal(signal.SIGTERM)
        return {"converged": True}

    monkeypatch.setattr(relax.COMMAND.job, "execute", execute)
    assert main(["relax", "a.xyz", "b.xyz", "--model", MODEL]) == 130
    assert begun == ["a"]
    assert capsys.readouterr().err == LINE


def test_a_failure_after_the_signal_is_told(monkeypatch, capsys):
    """Of the step that is finished because of it."""
    write("a.xyz", molecule("H2O"))

    def execute(job):
        with stopped_by_signals(lambda: None):
            signal.raise_signal(signal.SIGTERM)
        raise UnphysicalError("the atoms flew away")

    monkeypatch.setattr(relax.COMMAND.job, "execute", execute)
    assert main(["relax", "a.xyz", "--model", MODEL]) == 4
    assert "the atoms flew away" in capsys.readouterr().err


def test_a_failure_of_half_an_import_is_none_of_the_structure(monkeypatch, capsys):
    write("a.xyz", molecule("H2O"))

    def execute(job):
        with nobody_looks():
            bare_except(lambda: signal.raise_signal(signal.SIGTERM))
            raise InputError("provenance.json: damaged")

    monkeypatch.setattr(relax.COMMAND.job, "execute", execute)
    assert main(["relax", "a.xyz", "--model", MODEL]) == 130
    assert capsys.readouterr().err == LINE


# -- who else is there -----------------------------------------------------------------------------


def test_handlers_timers_and_hooks_of_others_come_back(command):
    assert command(lambda: None) == 0  # `command` looks
    assert command(lambda: signal.raise_signal(signal.SIGTERM)) == 130
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 1000.0)
    try:
        with pytest.raises(AssertionError, match="999"):  # the timer that `command` sees
            command(lambda: signal.raise_signal(signal.SIGINT))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def test_in_another_thread(command):
    """Nothing can be caught there, and nothing of the main thread is touched."""
    codes, before = [], dispositions()

    def work():
        with stopped_by_signals(lambda: None):
            signals.check()
        assert dispositions() == before

    thread = threading.Thread(target=lambda: codes.append(command(work)))
    thread.start()
    thread.join()
    assert codes == [0]


def test_ctrl_c_is_ignored_in_the_background_of_a_shell(command):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert command(lambda: signal.raise_signal(signal.SIGINT)) == 0
        assert command(lambda: signal.raise_signal(signal.SIGTERM)) == 130
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_forked_child_dies_of_it(kind, command):
    states = []

    def work():
        child = os.fork()
        if child == 0:
            try:
                signal.raise_signal(kind)
            finally:
                os._exit(0)
        states.append(os.waitpid(child, 0)[1])

    assert command(work) == 0
    assert [os.WTERMSIG(state) for state in states if os.WIFSIGNALED(state)] == [kind]


def test_a_process_of_ipi_does_not_outlive_an_early_end():
    """Its parent may be interrupted before it knows of the child."""
    child = subprocess.Popen(["true"])
    child.wait()
    assert simulate.main(["nothing", "5", str(child.pid)]) == 130


# -- the process -----------------------------------------------------------------------------------

# A command whose output nobody reads: the pipe is full, and what it prints waits in its own buffer.
PRINTING = """
import os, sys, time
from types import SimpleNamespace
from dpa3sim.cli import main as command_line
from dpa3sim.cli.options import Parser

def run(args):
    os.set_blocking(1, False)
    try:
        while True:
            os.write(1, bytes(4096))
    except BlockingIOError:
        os.set_blocking(1, True)
    print("the end")
    print("begun", file=sys.stderr, flush=True)
    time.sleep({seconds})
    return 0

command_line.find = lambda arguments: (SimpleNamespace(run=run), Parser(prog="x"), [])
from dpa3sim.__main__ import run as start
sys.argv = ["dpa3sim", "fake"]
start()
"""


@contextmanager
def printing(seconds):
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTING.format(seconds=seconds)],
        env=ENVIRONMENT | {"PYTHONUNBUFFERED": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def next_line(process):
    assert select.select([process.stderr], [], [], LIMIT)[0], "nothing is said"
    return process.stderr.readline()


def wait_until(condition):
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_that_does_not_read(kind):
    """What is not read is waited for until the second signal."""
    with printing(0) as process:
        assert next_line(process) == "begun\n"
        process.send_signal(kind)
        assert next_line(process) == LINE

        def again():
            process.send_signal(kind)
            return process.poll() is not None

        wait_until(again)
        assert process.returncode == 130
        assert process.stderr.read() == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_that_is_gone(kind):
    """As in ``dpa3sim ... | tee``, which the same Ctrl-C ends."""
    with printing(2 * LIMIT) as process:
        assert next_line(process) == "begun\n"
        process.stdout.close()
        process.send_signal(kind)
        assert process.wait(LIMIT) == 130
        assert process.stderr.read() == LINE
        process.stdout = None  # for `communicate`


def test_the_end_is_told_though_the_reader_is_gone(monkeypatch, capsys):
    """The line about the run directory cannot be printed, or logged on a full disk."""
    write("water.xyz", molecule("H2O"))

    def compute(job):
        raise KeyboardInterrupt

    def log(directory, message):
        if "interrupted" in message:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(relax.COMMAND.job, "compute", compute)
    monkeypatch.setattr(RunDirectory, "log", log)
    assert main(["relax", "water.xyz", "--model", MODEL]) == 130
    assert capsys.readouterr().err == LINE


# -- a hundred moments -----------------------------------------------------------------------------


@pytest.fixture
def structures():
    """A molecule that stays together, and a crystal."""
    write("water.xyz", molecule("H2O"))
    assert main(["relax", "water.xyz", "--model", MODEL, "--quiet", "--fmax", "1e-4"]) == 0
    Path("water.relax/structure_relaxed.extxyz").replace("water.xyz")
    write("Si.vasp", bulk("Si", cubic=True), format="vasp")


@pytest.fixture
def loaded():
    """Two processes that do nothing, as fast as they can."""
    busy = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    pass"
    processes = [subprocess.Popen([sys.executable, "-c", busy]) for _ in range(2)]
    yield
    for process in processes:
        process.kill()
        process.wait()


@contextmanager
def started(command, what, number, where=None):
    """The process of a command that tells of a moment (see tests/moments), and where it does."""
    reading, writing = os.pipe()
    path = os.pathsep.join([str(TESTS / "moments"), ENVIRONMENT["PYTHONPATH"]])
    moment = f"{what} {number} {writing if where is None else int(where)}"
    process = subprocess.Popen(
        [sys.executable, "-m", "dpa3sim", *command],
        env=ENVIRONMENT | {"PYTHONPATH": path, "MOMENT": moment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[writing],
    )
    os.close(writing)
    try:
        yield process, reading
    finally:
        os.close(reading)
        process.kill()
        process.communicate()


def told(reading):
    """What the process tells; nothing if it ends before it does."""
    assert select.select([reading], [], [], LIMIT)[0], "the moment does not come"
    return os.read(reading, 100).decode()


def length(command, *few):
    """Calls and imports of a command from its first line on, over a few steps to its end."""
    whole = [*command, *few, "--out", f"whole.{command[0]}"]
    with started(whole, "count", 0) as (process, reading):
        _, err = process.communicate(timeout=LIMIT)
        assert process.returncode in (0, 3), err
        return [int(count) for count in told(reading).split()]


def ended(process, moment):
    _, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, err) == (130, LINE), moment


def signalled(command, number, kind):
    """From outside, once the process has told that so many calls are done."""
    with started(command, "calls", number) as (process, reading):
        assert told(reading) == "x", f"it ended before its call {number}"
        process.send_signal(kind)
        ended(process, (command[0], "call", number, kind))


def signalled_in_import(command, number, kind):
    """In the search for a module, so that the interrupt goes through all that imports it."""
    with started(command, "imports", number, kind) as (process, _):
        ended(process, (command[0], "import", number, kind))


def moments(total, count):
    """From the first on, evenly."""
    return [round(total * (k + 0.5) / count) for k in range(count)]


@pytest.mark.slow
def test_six_moments(structures):
    calls, _ = length(MD, "--steps", "5")
    for k, number in enumerate(moments(calls, 6)):
        signalled(MD, number, KINDS[k % 2])


# Each command goes on where the one before was cut off, of which none may be in its way: one that
# is refused ends with another code.


@pytest.mark.slow
def test_fifty_moments_of_a_simulation(structures, loaded):
    calls, _ = length(MD, "--steps", "200")
    for k, number in enumerate(moments(calls, 50)):
        signalled(MD, number, KINDS[k % 2])
    continues()


@pytest.mark.slow
def test_fifty_moments_of_a_property(structures, loaded):
    calls, _ = length(EOS, "--points", "50")
    for k, number in enumerate(moments(calls, 50)):
        signalled(EOS, number, KINDS[k % 2])
    assert set(codes("Si.eos")) == {130}


@pytest.mark.slow
def test_a_hundred_imports(structures, loaded):
    for command, few in ((MD, ["--steps", "1"]), (EOS, ["--points", "9"])):
        _, imports = length(command, *few)
        for k, number in enumerate(moments(imports, 50)):
            signalled_in_import(command, number, KINDS[k % 2])
    continues()


def continues():
    """The folder that the signals left is that of a simulation that ends well."""
    with np.load("water.md/checkpoint.npz") as data:
        step = json.loads(data["_"].tobytes())["step"]
    assert set(codes("water.md")) == {130}
    assert main([*MD, "--steps", str(step + 2), "--quiet"]) == 0
    assert json.loads(Path("water.md/result.json").read_text())["n_steps"] == step + 2


def codes(folder):
    """How the sessions of a run ended."""
    provenance = json.loads(Path(folder, "provenance.json").read_text())
    return [session["exit_code"] for session in provenance["sessions"]]
