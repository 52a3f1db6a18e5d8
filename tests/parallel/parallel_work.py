"""What other ranks do in the tests of failures: in a module that they can import by its name."""

import os
import signal
import time

from dpa3sim.kernels.evaluator import Evaluator
from dpa3sim.potential import team

# Set by the test, and inherited: how often the evaluation of a rank fails, or what it does instead.
VARIABLE = "TEST_PARALLEL_WORK"


def failing(model, limit, meeting):
    """Serve, but fail in evaluations as the variable says."""
    what, _, times = os.environ[VARIABLE].partition(" ")
    left, evaluate = int(times or 1), Evaluator.evaluate

    def broken(self, *args):
        nonlocal left
        if left:
            left -= 1
            if what == "memory":
                raise MemoryError("none left")
            if what == "bug":
                raise ZeroDivisionError("one by nothing")
            if what == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            if what == "sleep":
                time.sleep(30)
        return evaluate(self, *args)

    Evaluator.evaluate = broken
    if what == "start" and meeting.place.rank == 1:
        raise ZeroDivisionError("cannot begin")
    team.serve(model, limit, meeting)
